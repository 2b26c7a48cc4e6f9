"""Values and errors that all stages share. The values are frozen."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from itertools import islice
from typing import Self

MINUTE_S, HOUR_S, DAY_S, MEGABYTE = 60.0, 3_600.0, 86_400.0, 1_000_000
MAX_COUNTER_WH = 1e10
"""No counter of a gateway has reached this."""
NEVER = float("-inf")
"""A time before all others, for what has not happened yet."""

Scalar = bool | int | float | str | datetime | None
"""One plain value: booleans become ON/OFF, times ISO 8601, `None` the text `None`."""

Structure = Mapping[str, "Structure | Scalar"]
"""A value that only a JSON document can hold, such as the package list of `/info`."""


class Phase(StrEnum):
    """A line conductor. A phase is an axis of a reading, never part of a measurement's name."""

    L1 = "l1"
    L2 = "l2"
    L3 = "l3"

    @property
    def label(self) -> str:
        return self.value.upper()


class Input(StrEnum):
    """A DC input of a microinverter; one solar module is connected to each."""

    C1, C2, C3, C4 = "c1", "c2", "c3", "c4"

    @property
    def label(self) -> str:
        return f"Input {self.value[1:]}"


Axis = Phase | Input  # a part of a device that is measured separately


class SourceName(StrEnum):
    """The endpoints of the gateway, by the names that settings, topics and logs use for them."""

    INFO = "info"
    METERS = "meters"
    LIVEDATA = "livedata"
    READINGS = "readings"
    GRID = "grid"
    CONSUMPTION = "consumption"
    PRODUCTION = "production"
    ENERGY = "energy"
    INVERTERS = "inverters"
    DEVICE_DATA = "device_data"
    INVENTORY = "inventory"
    DEVICE_LIST = "device_list"
    POWER = "power"
    SECCTRL = "secctrl"
    RELAY = "relay"
    DRY_CONTACTS = "dry_contacts"
    DRY_CONTACT_SETTINGS = "dry_contact_settings"
    GENERATOR = "generator"
    GEN_CONFIG = "gen_config"
    GEN_MODE = "gen_mode"
    GEN_SCHEDULE = "gen_schedule"
    TARIFF = "tariff"
    STATUS = "status"
    SCHED = "sched"
    ACB_CONFIG = "acb_config"
    PEL_SETTINGS = "pel_settings"
    PCS_SETTINGS = "pcs_settings"
    DPEL = "dpel"
    PVLIMIT = "pvlimit"
    SC_STATUS = "sc_status"
    FIRMWARE = "firmware"
    ERRORS = "errors"
    WIFI = "wifi"
    EVENT_LIST = "event_list"


class Platform(StrEnum):
    """The Home Assistant platform that shows a measurement, or sets it."""

    SENSOR = "sensor"
    BINARY_SENSOR = "binary_sensor"
    EVENT, UPDATE = "event", "update"
    NUMBER, SELECT, SWITCH, TEXT = "number", "select", "switch", "text"


@dataclass(frozen=True, slots=True)
class Quantity:
    """The kind of a measurement's value, in Home Assistant's terms.

    `deadband` is the change, in `unit`, below which a value topic is not published again. `pace` is the least time,
    in seconds, between two publications of a value topic. A change of `urgent_change` or more does not wait for it;
    0 stands for no such change. `precision` is the number of decimals that Home Assistant shows.
    """

    unit: str | None = None
    device_class: str | None = None
    state_class: str | None = None
    precision: int | None = None
    deadband: float = 0.0
    platform: Platform = Platform.SENSOR
    numeric: bool = True
    pace: float = 0.0
    urgent_change: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that is known of a value before it is read.

    `name` is the last level of the topic. `label` is the name for people, without the name of the device.
    `enabled` is set if Home Assistant enables the entity at first; `enabled_phases` is the same for single phases.
    `entity` is False if there is no entity for it. `document_only` values have neither an entity nor a topic.
    `interval` is the least number of seconds between two publications; `None` stands for the pace of its quantity,
    which does not apply in profile `live`. `fallback` values are used only while no other source has the same value
    without `fallback`. `unused` is set for units that never worked here: their entities are disabled, and the
    gateway's serial number in their names leaves the usual ids to the gateway that does use the unit.
    """

    name: str
    quantity: Quantity
    label: str
    enabled: bool = False
    enabled_phases: bool = False
    diagnostic: bool = False
    entity: bool = True
    document_only: bool = False
    interval: float | None = None
    fallback: bool = False
    unused: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """One measured value of one device, in the unit of its quantity.

    `phase` is the measured part, or `None` for the whole device. With `repeat` it is published even if unchanged.
    """

    device: str
    phase: Axis | None
    measurement: Measurement
    value: Scalar | Structure
    repeat: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        return self.measurement.name

    @property
    def quantity(self) -> Quantity:
        return self.measurement.quantity


@dataclass(frozen=True, slots=True)
class MeterFacts:
    """A meter, as `/ivp/meters` describes it. `phase_mode` is split, three or single."""

    eid: int
    role: str
    enabled: bool
    phase_count: int
    phase_mode: str


def _release(firmware: str) -> tuple[int, ...]:
    """The numbers of a release: 8, 3 and 5169 of `D8.3.5169`; none where there are none."""
    found = re.match(r"\D*(\d{1,9}(?:\.\d{1,9})*)", firmware, re.ASCII)
    return tuple(map(int, found[1].split("."))) if found else ()


MAX_GEAR = 256
"""No home has more units. The limit keeps invented serial numbers from growing memory."""


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What a unit is, as its answers tell, for its device in Home Assistant. Its owner calls it `name`.

    `maker` is `None` for Enphase. `is_used` tells whether a contact has a load.
    """

    name: str | None = None
    maker: str | None = None
    model: str | None = None
    part_number: str | None = None
    firmware: str | None = None
    is_used: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a gateway, and is needed to read answers or to know which endpoints to ask.

    Most of it comes from `/info` and `/ivp/meters`. `mac` is known only where it is a neighbour in our network.
    `meters` is `None` until `/ivp/meters` has answered or is missing. `clock_offset` (s) is its clock minus ours.
    `gear` are other devices that were seen, as `battery/492301002201`. `units` tells what some devices are.
    """

    serial: str
    firmware: str = ""
    part_number: str | None = None
    clock_offset: float = 0.0
    meters: tuple[MeterFacts, ...] | None = None
    gear: frozenset[str] = frozenset()
    units: Mapping[str, UnitFacts] = field(default_factory=dict)
    mac: str | None = None

    def is_from(self, release: str, *, if_unknown: bool = False) -> bool:
        """Whether its firmware is this release, such as `8.2`, or a newer one; `if_unknown` where it is unknown."""
        own = _release(self.firmware)
        return own >= _release(release) if own else if_unknown

    def is_newer(self, firmware: str | None) -> bool:
        """Whether its firmware is a newer release than this one; False where one of them is unknown."""
        own, other = _release(self.firmware), _release(firmware or "")
        return bool(other) and own > other

    def has(self, *kinds: str) -> bool:
        """Whether gear of one of these kinds was seen."""
        return any(item.partition("/")[0] in kinds for item in self.gear)

    def kind_of(self, serial: str) -> str | None:
        """The kind of the device with this serial number, if known. AC Batteries are inverters in the tree."""
        kinds = (item.partition("/")[0] for item in sorted(self.gear) if item.endswith(f"/{serial}"))
        return next(("inverter" if kind == "acb" else kind for kind in kinds), None)

    def uses(self, device: str) -> bool:
        """Whether a device is used, as far as it is known. A contact without a load is not."""
        return device not in self.units or self.units[device].is_used

    def with_gear(self, seen: Iterable[str], units: Mapping[str, UnitFacts] | None = None) -> "Facts | None":
        """A copy with more gear and what these units are; `None` if nothing of it is new."""
        gear = self.gear.union(sorted(seen)[: MAX_GEAR - len(self.gear)])
        known = dict(islice({**self.units, **(units or {})}.items(), MAX_GEAR))
        learnt = replace(self, gear=gear, units=known)
        return None if learnt == self else learnt

    def meter(self, eid: int) -> MeterFacts | None:
        return next((meter for meter in self.meters or () if meter.eid == eid), None)

    def consumption(self) -> MeterFacts | None:
        """The enabled meter at the grid connection, whose phases are those of the site."""
        roles = ("net-consumption", "total-consumption")
        return next((m for m in self.meters or () if m.enabled and m.role in roles), None)


def slug(text: str, separator: str, *, keep: str = "") -> str:
    """Replace each run of characters by `separator`, except ASCII lower-case letters, digits and those in `keep`.

    There is none at the beginning and at the end. The result may be empty.
    """
    return re.sub(rf"[^a-z0-9{re.escape(keep)}]+", separator, text).strip(separator)


UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")
"""Control characters, those that change the direction of a text or can't be seen, and halves of surrogate pairs."""


def printable(text: str, most: int) -> str:
    """Make a text from outside fit for the log: one line of at most `most` characters, without `UNPRINTABLE`."""
    return UNPRINTABLE.sub("", " ".join(text[: 4 * most].split()))[:most].strip()


@dataclass(frozen=True, slots=True)
class Event:
    """A line for the log: what has happened, perhaps to the counter `about`. `name` is its key in JSON logs."""

    name: str
    text: str
    warning: bool
    about: str = ""


class Priority(IntEnum):
    """The order in which messages are sent: discovery of a device comes before its values.

    When the form of discovery changes, `MIGRATE` releases the entities from the old form, `DISCOVERY` announces the
    new form, and `CLEANUP` removes the old one.
    """

    MIGRATE = 0
    DISCOVERY = 1
    CLEANUP = 2
    SITE = 3
    """The flows of sites and homes, which automations act on."""
    AVAILABILITY = 4
    VALUE = 5


@dataclass(frozen=True, slots=True)
class Message:
    """One MQTT message, retained unless `retain` is unset. An empty payload clears the topic.

    A newer payload is sent if it differs by `deadband` or more and `interval` seconds have passed. If it differs by
    `urgent_change` or more, it does not wait; 0 stands for none. One with `repeat` is sent even if the broker has
    its payload. With MQTT 5, `correlation` is its correlation data, and `sender` its user property `from`.
    """

    topic: str
    payload: str
    qos: int = 0
    priority: Priority = Priority.VALUE
    deadband: float = 0.0
    interval: float = 0.0
    urgent_change: float = 0.0
    repeat: bool = False
    content_type: str | None = None
    retain: bool = True
    correlation: bytes | None = None
    sender: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the gateway, with JSON as its `body`. An answer of more than `most_bytes` is not read.

    A request that is sent `once` is not repeated after a failure, since it may have taken effect.
    """

    path: str
    method: str = "GET"
    body: str | None = None
    most_bytes: int = MEGABYTE
    once: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a 2xx answer of the gateway, and the seconds that it took."""

    body: bytes
    elapsed: float


class BridgeError(Exception):
    """Base of all expected errors. The classes tell callers what to do.

    BridgeError
    ├── Unavailable               try again with the next poll
    │   ├── ConnectionFault       a second try a moment later often helps
    │   │   ├── UnknownName       the host name can't be resolved
    │   │   ├── TlsFault          the TLS handshake failed
    │   │   ├── BrokenOff         the connection broke off
    │   │   └── Overloaded        502, 503, 504
    │   ├── Starting              the gateway asks for half a minute
    │   ├── GatewayFault          429, 500
    │   ├── CloudUnavailable      Enphase's cloud gives no answer
    │   │   └── RateLimited       Enphase's cloud asks for a pause
    │   └── UnsupportedOption     the broker does not take an MQTT option
    ├── Unsupported               ask again rarely
    │   └── EndpointRefused       a 401 to a valid token
    ├── Rejected                  a person has to act
    │   ├── KeyChanged            the TLS key is not the pinned one
    │   ├── TokenRejected         the gateway refuses the token
    │   └── CloudRejected         Enphase's cloud refuses the account
    │       ├── WrongPassword
    │       ├── MultiFactor
    │       ├── Blocked
    │       └── NotOnAccount
    ├── BadAnswer                 the answer is unusable
    │   └── RequestRefused        400, and others that have no class
    ├── BadSetting                a setting is unusable
    └── MessageRefused            the broker refuses this message
    """

    def bare(self) -> Self:
        """This error without traceback and causes, to be kept: their frames would keep the answer in memory."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class Unavailable(BridgeError):
    """There is no answer, or no usable one; the caller tries again with the next poll."""


class Unsupported(BridgeError):
    """The gateway does not have this (404); the caller asks again rarely."""


class Rejected(BridgeError):
    """The gateway or the cloud refuses access; the text tells the owner what to do."""


class BadAnswer(BridgeError):
    """The answer is unusable: HTML, half a document, or an error object."""


class BadSetting(BridgeError):
    """A setting is unusable; the text names it and says what to do. The exit code is 78."""
