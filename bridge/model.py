"""What flows through the pipeline: plain frozen values that every stage shares."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum, StrEnum

Scalar = bool | int | float | str | datetime | None
"""One plain value: booleans become ON/OFF, times ISO 8601, `None` the text `None`."""

Structure = Mapping[str, "Structure | Scalar"]
"""What only a document can hold, such as the package list of `/info`."""


class Phase(StrEnum):
    """A line conductor. A phase is an axis of a reading, never part of a measurement's name."""

    L1 = "l1"
    L2 = "l2"
    L3 = "l3"

    @property
    def label(self) -> str:
        """What people call it."""
        return self.value.upper()


class Input(StrEnum):
    """A DC input of a microinverter: what one solar module is connected to."""

    C1 = "c1"
    C2 = "c2"
    C3 = "c3"
    C4 = "c4"

    @property
    def label(self) -> str:
        """What people call it."""
        return f"Input {self.value[1:]}"


Axis = Phase | Input
"""The parts of a device that are measured each for itself. A part is never in a measurement's name."""


class Platform(StrEnum):
    """The Home Assistant platform that shows a measurement."""

    SENSOR = "sensor"
    BINARY_SENSOR = "binary_sensor"


@dataclass(frozen=True, slots=True)
class Quantity:
    """What kind of value a measurement is, in Home Assistant's terms.

    `deadband` is the change, in `unit`, below which a value topic is not sent again.
    `precision` is the number of decimals to show.
    """

    unit: str | None = None
    device_class: str | None = None
    state_class: str | None = None
    precision: int | None = None
    deadband: float = 0.0
    platform: Platform = Platform.SENSOR
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the table: everything that is known of a value before it is read.

    `name` is the topic's last part; `label` says it in people's words, without the device's name.
    `enabled` is whether Home Assistant shows the entity unasked; `phases` the same for one phase of a device.
    `entity` False keeps it out of discovery; `document_only` keeps it out of the value topics as well.
    `interval` is the least number of seconds between two publications. `fallback` gives way to any source that
    names the value without it.
    """

    name: str
    quantity: Quantity
    label: str
    enabled: bool = False
    enabled_phases: bool = False
    diagnostic: bool = False
    entity: bool = True
    document_only: bool = False
    interval: float = 0.0
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """One measured value of one device, in the unit of its quantity.

    `phase` is the part of the device that it was measured at: a phase, a DC input, or all of it (`None`).
    """

    device: str
    phase: Axis | None
    measurement: Measurement
    value: Scalar | Structure

    @property
    def name(self) -> str:
        return self.measurement.name

    @property
    def quantity(self) -> Quantity:
        return self.measurement.quantity


@dataclass(frozen=True, slots=True)
class MeterFacts:
    """What `/ivp/meters` says of one meter. `phase_mode` is the grid's kind: split, three, single."""

    eid: int
    role: str
    enabled: bool
    phase_count: int
    phase_mode: str


MOST_GEAR = 256
"""No home has more units; a gateway that made up serial numbers must not fill our memory."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What endpoints must know to be understood, or to be asked at all; most of it from `/info` and `/ivp/meters`.

    `meters` is `None` until `/ivp/meters` has answered or is known to be missing.
    `clock_offset` is the gateway's clock minus ours in seconds.
    `gear` is what was ever seen beside inverters and meters, as `kind/id`: `battery/492301002201`.
    """

    serial: str
    firmware: str = ""
    part_number: str | None = None
    clock_offset: float = 0.0
    meters: tuple[MeterFacts, ...] | None = None
    gear: frozenset[str] = frozenset()

    @property
    def release(self) -> int | None:
        """The firmware's major version: 8 of `D8.3.5169`."""
        found = re.match(r"\D*(\d+)", self.firmware)
        return int(found[1]) if found else None

    def has(self, *kinds: str) -> bool:
        """Whether gear of one of these kinds was seen."""
        return any(item.partition("/")[0] in kinds for item in self.gear)

    def kind_of(self, serial: str) -> str | None:
        """The kind of device in the tree that has this serial number. AC Batteries stand among the inverters."""
        kinds = (item.partition("/")[0] for item in sorted(self.gear) if item.endswith(f"/{serial}"))
        return next(("inverter" if kind == "acb" else kind for kind in kinds), None)

    def with_gear(self, seen: Iterable[str]) -> "Facts | None":
        """What is known after more gear was seen; `None` where nothing of it is new."""
        gear = self.gear.union(sorted(seen)[: MOST_GEAR - len(self.gear)])
        return None if gear == self.gear else replace(self, gear=gear)

    def meter(self, eid: int) -> MeterFacts | None:
        return next((meter for meter in self.meters or () if meter.eid == eid), None)

    def consumption(self) -> MeterFacts | None:
        """The enabled meter whose phases are those of the grid connection."""
        roles = ("net-consumption", "total-consumption")
        return next((m for m in self.meters or () if m.enabled and m.role in roles), None)


class Rank(IntEnum):
    """The order in which messages leave: subscribers learn of a device before they see its values.

    While discovery changes its form, the old form lets go of its entities first, and is cleared once the new one
    has them.
    """

    HANDOVER = 0
    DISCOVERY = 1
    FAREWELL = 2
    AVAILABILITY = 3
    VALUE = 4


@dataclass(frozen=True, slots=True)
class Message:
    """One retained MQTT message. An empty payload clears the topic.

    `deadband` and `interval` (seconds) say when a newer payload is worth sending.
    """

    topic: str
    payload: str
    qos: int = 0
    rank: Rank = Rank.VALUE
    deadband: float = 0.0
    interval: float = 0.0
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the gateway. `json` makes it a POST."""

    path: str
    json: Mapping[str, int] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said: the body of a 2xx answer, and how long it took in seconds."""

    body: bytes
    elapsed: float


class BridgeError(Exception):
    """Base of all errors that are expected; each is named after what the caller must do."""


class Unavailable(BridgeError):
    """No answer, or none that can be used: try again at the next tick."""


class Unsupported(BridgeError):
    """The gateway does not have this (404): ask again rarely."""


class Rejected(BridgeError):
    """The gateway or the cloud refuses us: the owner must do something, and the text says what."""


class BadAnswer(BridgeError):
    """The gateway answered with something that is no answer (HTML, half a document, an error object)."""


class BadSetting(BridgeError):
    """A setting can't be used: the text names it and says what to do. Exit code 78."""
