"""The table of all endpoints that are polled: where they are, how their answers are read, and how often.

A new endpoint is a record, a split function and one line here; a new value is one line in its record.
"""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from bridge.control import Control
from bridge.endpoints import (
    controller,
    info,
    inventory,
    livedata,
    meters,
    production,
    storage,
    switchgear,
)
from bridge.endpoints.controller import LIMIT_KIND
from bridge.endpoints.parsing import AnswerLimits, Parsed
from bridge.model import HOUR_S, MINUTE_S, BadAnswer, BridgeError, Facts, Request, SourceName

__all__ = ["BY_SOURCE", "CONTROLS", "ENDPOINTS", "Endpoint", "Parsed", "Periods"]

Split = Callable[[bytes, Facts, float], Parsed]
Wanted = Callable[[Facts], bool]
USUAL_LIMITS = AnswerLimits()
LARGEST_SITE = 1000
"""Microinverters of the largest site that a gateway is sold for, with a reserve."""
FIRST_FIRMWARE_WITH_DETAILS = "7"
"""Older firmware does not have `/ivp/pdm/device_data`."""
FIRST_FIRMWARE_WITH_STORAGE = "5"
"""Older firmware answers all `/ivp/ensemble/*` with 404."""
FIRST_FIRMWARE_WITH_LIMITS = "7"
"""Older firmware answers all `/ivp/sc/*` and `/ivp/ss/*` about limits with 404 (seen on 3.8 to 5.0)."""
SWITCHGEAR_KINDS = ("controller", "collar", "combiner")
"""Kinds of gear that have relays, and to which a generator is connected."""
STORAGE_KINDS = ("battery", "acb", *SWITCHGEAR_KINDS)
"""Kinds of gear that belong to a storage, or are prepared for one."""
EXPLAINED_KINDS = (LIMIT_KIND, "controller", "collar")
"""Where the long answer that explains a limit is wanted: a limit was seen, or the home can leave the grid, where
full batteries limit solar power.
"""


def always(_facts: Facts) -> bool:
    return True


def details_possible(facts: Facts) -> bool:
    return facts.is_from(FIRST_FIRMWARE_WITH_DETAILS, if_unknown=True)


def storage_possible(facts: Facts) -> bool:
    return facts.is_from(FIRST_FIRMWARE_WITH_STORAGE, if_unknown=True)


def limits_possible(facts: Facts) -> bool:
    return facts.is_from(FIRST_FIRMWARE_WITH_LIMITS, if_unknown=True)


def where(*kinds: str) -> Wanted:
    """Ask only gateways with gear of one of these kinds; the answers of others mean nothing."""
    return lambda facts: storage_possible(facts) and facts.has(*kinds)


@dataclass(frozen=True, slots=True)
class Periods:
    """Seconds between two polls of one endpoint, for each profile of `BRIDGE_POLL__PROFILE`."""

    normal: float
    gentle: float
    live: float


OFF = Periods(normal=0.0, gentle=0.0, live=0.0)
"""Only polled where the owner sets a period."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One line of the table: where an endpoint is, how its answers are read, and how often it is polled.

    The order of the table is the order of the first poll, and the precedence where two sources give one value.

    `urgency` orders the endpoints that are due at the same moment; 0 comes first.
    `appendix` is the letter in the brief, if the brief has the endpoint.
    `timeout` (seconds) bounds one request with its retries: no more time is lost to an endpoint that hangs, and a
    gateway with one such endpoint stays online. Real answers take 0.02 to 1.6 s.
    `wanted` tells from the facts whether a gateway can have this endpoint at all.
    `updates_every` is set where the gateway renews its values only after so many seconds.
    `main_source_of` is the kind of device that counts as unavailable when this endpoint fails.
    `limits` bound an answer; where each unit of a site adds to it, they go by the number of units.
    `site_powers` is set where the endpoint is polled faster while the powers of the site come from it.
    """

    source: SourceName
    path: str
    split: Split
    _: KW_ONLY
    every: Periods
    urgency: int
    appendix: str = ""
    timeout: float = 15.0
    wanted: Wanted = always
    updates_every: float = 0.0
    main_source_of: str | None = None
    limits: AnswerLimits = USUAL_LIMITS
    site_powers: bool = False

    @property
    def request(self) -> Request:
        """The request for an answer."""
        return Request(self.path, most_bytes=self.limits.size)

    def period(self, profile: Literal["normal", "gentle", "live"]) -> float:
        """Seconds between two polls in this profile."""
        periods: float = getattr(self.every, profile)
        return periods

    def parse(self, body: bytes, facts: Facts, now: float) -> Parsed:
        """Read an answer of this endpoint; `now` is the unix time at which it came.

        Raises:
            BadAnswer: the answer can't be used. The error has a cause if it comes from a fault in our own code.
            Unsupported: the gateway says that it does not have this endpoint.
        """
        try:
            self.limits.check(body)
            parsed = self.split(body, facts, now)
        except BridgeError:
            raise
        except Exception as error:  # an answer that no code foresees must cost only its own source
            raise BadAnswer(f"{self.path}: unforeseen answer ({type(error).__name__})") from error
        if parsed.problems and not parsed.readings:  # it may be the answer to another request
            raise BadAnswer(f"the answer has no usable value: {parsed.problems[0]}")
        return parsed


ENDPOINTS = (
    Endpoint(
        SourceName.INFO,
        "/info",
        info.split_info,
        every=Periods(normal=4 * HOUR_S, gentle=4 * HOUR_S, live=4 * HOUR_S),
        urgency=2,
        appendix="A",
        limits=AnswerLimits(size=64_000, items=4_000),
    ),
    Endpoint(
        SourceName.METERS,
        "/ivp/meters",
        meters.split_meters,
        every=Periods(normal=HOUR_S, gentle=HOUR_S, live=HOUR_S),
        urgency=2,
        appendix="C",
    ),
    Endpoint(
        SourceName.INVENTORY,
        "/ivp/ensemble/inventory",
        inventory.split_inventory,
        every=Periods(normal=5 * MINUTE_S, gentle=15 * MINUTE_S, live=MINUTE_S),
        urgency=4,
        wanted=storage_possible,
    ),
    Endpoint(
        SourceName.POWER,
        "/ivp/ensemble/power",
        inventory.split_power,
        every=Periods(normal=30, gentle=2 * MINUTE_S, live=10),
        urgency=2,
        wanted=where("battery"),
    ),
    Endpoint(
        SourceName.PRODUCTION,
        "/api/v1/production",
        production.split_production,
        every=Periods(normal=MINUTE_S, gentle=5 * MINUTE_S, live=MINUTE_S),
        urgency=3,
        appendix="E",
        updates_every=15 * MINUTE_S,
    ),
    Endpoint(
        SourceName.ENERGY,
        "/ivp/pdm/energy",
        production.split_energy,
        every=Periods(normal=MINUTE_S, gentle=5 * MINUTE_S, live=MINUTE_S),
        urgency=3,
        appendix="F",
        updates_every=15 * MINUTE_S,
    ),
    Endpoint(
        SourceName.LIVEDATA,
        "/ivp/livedata/status",
        livedata.split_livedata,
        every=Periods(normal=5, gentle=15, live=1),
        urgency=0,
        appendix="H",
        site_powers=True,
    ),
    Endpoint(
        SourceName.READINGS,
        "/ivp/meters/readings",
        meters.split_readings,
        every=Periods(normal=10, gentle=30, live=5),
        urgency=1,
        appendix="D",
        main_source_of="meter",
        site_powers=True,
    ),
    Endpoint(
        SourceName.GRID,
        "/ivp/meters/gridReading",
        meters.split_grid,
        every=Periods(normal=30, gentle=2 * MINUTE_S, live=15),
        urgency=2,
        appendix="J",
    ),
    Endpoint(
        SourceName.CONSUMPTION,
        "/ivp/meters/reports/consumption",
        meters.split_consumption,
        every=Periods(normal=MINUTE_S, gentle=5 * MINUTE_S, live=30),
        urgency=3,
        appendix="I",
    ),
    Endpoint(
        SourceName.INVERTERS,
        "/api/v1/production/inverters",
        production.split_inverters,
        every=Periods(normal=5 * MINUTE_S, gentle=15 * MINUTE_S, live=5 * MINUTE_S),
        urgency=4,
        appendix="G",
        main_source_of="inverter",
        limits=AnswerLimits(size=512 * LARGEST_SITE, items=32 * LARGEST_SITE),
    ),
    Endpoint(
        SourceName.DEVICE_DATA,
        "/ivp/pdm/device_data",
        production.split_device_data,
        every=Periods(normal=5 * MINUTE_S, gentle=15 * MINUTE_S, live=5 * MINUTE_S),
        urgency=4,
        wanted=details_possible,
        updates_every=15 * MINUTE_S,
        limits=AnswerLimits(size=2_048 * LARGEST_SITE, items=160 * LARGEST_SITE),
    ),
    Endpoint(
        SourceName.DEVICE_LIST,
        "/ivp/ensemble/device_list",
        inventory.split_device_list,
        every=Periods(normal=15 * MINUTE_S, gentle=HOUR_S, live=15 * MINUTE_S),
        urgency=4,
        appendix="B",
    ),
    Endpoint(
        SourceName.SECCTRL,
        "/ivp/ensemble/secctrl",
        storage.split_secctrl,
        every=Periods(normal=MINUTE_S, gentle=5 * MINUTE_S, live=30),
        urgency=3,
        wanted=where(*STORAGE_KINDS),
    ),
    Endpoint(
        SourceName.RELAY,
        "/ivp/ensemble/relay",
        switchgear.split_relay,
        every=Periods(normal=30, gentle=2 * MINUTE_S, live=10),
        urgency=2,
        wanted=where(*SWITCHGEAR_KINDS),
    ),
    Endpoint(
        SourceName.DRY_CONTACTS,
        "/ivp/ensemble/dry_contacts",
        switchgear.split_contacts,
        every=Periods(normal=MINUTE_S, gentle=5 * MINUTE_S, live=30),
        urgency=3,
        wanted=where(*SWITCHGEAR_KINDS),
    ),
    Endpoint(
        SourceName.DRY_CONTACT_SETTINGS,
        "/ivp/ss/dry_contact_settings",
        switchgear.split_contact_settings,
        every=Periods(normal=15 * MINUTE_S, gentle=HOUR_S, live=15 * MINUTE_S),
        urgency=4,
        wanted=where(*SWITCHGEAR_KINDS),
    ),
    Endpoint(
        SourceName.GENERATOR,
        "/ivp/ensemble/generator",
        switchgear.split_generator,
        every=Periods(normal=MINUTE_S, gentle=5 * MINUTE_S, live=30),
        urgency=3,
        wanted=where(*SWITCHGEAR_KINDS),
    ),
    Endpoint(
        SourceName.GEN_CONFIG,
        "/ivp/ss/gen_config",
        switchgear.split_generator_settings,
        every=Periods(normal=HOUR_S, gentle=4 * HOUR_S, live=HOUR_S),
        urgency=4,
        wanted=where("generator"),
    ),
    Endpoint(
        SourceName.GEN_MODE,
        "/ivp/ss/gen_mode",
        switchgear.split_generator_mode,
        every=Periods(normal=5 * MINUTE_S, gentle=15 * MINUTE_S, live=5 * MINUTE_S),
        urgency=4,
        wanted=where("generator"),
    ),
    Endpoint(
        SourceName.GEN_SCHEDULE,
        "/ivp/ss/gen_schedule",
        switchgear.split_generator_schedule,
        every=Periods(normal=HOUR_S, gentle=4 * HOUR_S, live=HOUR_S),
        urgency=4,
        wanted=where("generator"),
    ),
    Endpoint(
        SourceName.SCHED,
        "/ivp/sc/sched",
        controller.split_sched,
        every=Periods(normal=90, gentle=5 * MINUTE_S, live=90),
        urgency=3,
        wanted=where("battery", "acb"),
    ),
    Endpoint(
        SourceName.TARIFF,
        "/admin/lib/tariff",
        storage.split_tariff,
        every=Periods(normal=5 * MINUTE_S, gentle=15 * MINUTE_S, live=5 * MINUTE_S),
        urgency=4,
        wanted=where(*STORAGE_KINDS),
    ),
    Endpoint(
        SourceName.STATUS,
        "/ivp/ensemble/status",
        storage.split_status,
        every=Periods(normal=HOUR_S, gentle=4 * HOUR_S, live=HOUR_S),
        urgency=4,
        wanted=where(*STORAGE_KINDS),
    ),
    Endpoint(
        SourceName.ACB_CONFIG,
        "/admin/lib/acb_config",
        storage.split_acb_config,
        every=Periods(normal=15 * MINUTE_S, gentle=HOUR_S, live=15 * MINUTE_S),
        urgency=4,
        wanted=where("acb"),
    ),
    Endpoint(
        SourceName.PEL_SETTINGS,
        "/ivp/ss/pel_settings",
        controller.split_pel_settings,
        every=Periods(normal=4 * HOUR_S, gentle=12 * HOUR_S, live=4 * HOUR_S),
        urgency=4,
        wanted=limits_possible,
    ),
    Endpoint(
        SourceName.PCS_SETTINGS,
        "/ivp/ss/pcs_settings",
        controller.split_pcs_settings,
        every=Periods(normal=4 * HOUR_S, gentle=12 * HOUR_S, live=4 * HOUR_S),
        urgency=4,
        wanted=where(*STORAGE_KINDS),
    ),
    Endpoint(
        SourceName.DPEL,
        "/ivp/ss/dpel",
        controller.split_dpel,
        every=Periods(normal=30 * MINUTE_S, gentle=HOUR_S, live=30 * MINUTE_S),
        urgency=4,
        wanted=limits_possible,
    ),
    Endpoint(
        SourceName.PVLIMIT,
        "/ivp/sc/pvlimit",
        controller.split_pvlimit,
        every=Periods(normal=10 * MINUTE_S, gentle=30 * MINUTE_S, live=10 * MINUTE_S),
        urgency=4,
        wanted=limits_possible,
    ),
    Endpoint(
        SourceName.SC_STATUS,
        "/ivp/sc/status",
        controller.split_sc_status,
        every=Periods(normal=30 * MINUTE_S, gentle=HOUR_S, live=30 * MINUTE_S),
        urgency=4,
        wanted=where(*EXPLAINED_KINDS),
    ),
    Endpoint(
        SourceName.FIRMWARE,
        "/ivp/firmware_manager/state",
        info.split_firmware_state,
        every=Periods(normal=15 * MINUTE_S, gentle=HOUR_S, live=15 * MINUTE_S),
        urgency=4,
        wanted=where(*STORAGE_KINDS),
    ),
    Endpoint(
        SourceName.ERRORS,
        "/ivp/ensemble/errors",
        switchgear.split_errors,
        every=Periods(normal=15 * MINUTE_S, gentle=HOUR_S, live=15 * MINUTE_S),
        urgency=4,
        wanted=where("controller"),
    ),
    Endpoint(
        SourceName.WIFI,
        "/admin/lib/wireless_display.json?site_info=0",  # without the query the gateway scans for networks
        info.split_wifi,
        every=Periods(normal=HOUR_S, gentle=4 * HOUR_S, live=HOUR_S),
        urgency=4,
        wanted=details_possible,
    ),
    Endpoint(
        SourceName.EVENT_LIST,
        "/datatab/event_dt.rb?start=0&length=10",
        info.split_event_list,
        every=OFF,
        urgency=4,
        timeout=60.0,
        wanted=details_possible,
    ),
)

BY_SOURCE: Mapping[str, Endpoint] = {endpoint.source: endpoint for endpoint in ENDPOINTS}

CONTROLS: Mapping[str, Control] = {
    f"{device}/{name}": control
    for device, record in (
        (storage.STORAGE_SETTINGS, storage.StorageSettings),
        ("relay/+", switchgear.DryContact),
        ("relay/+", switchgear.DryContactSettings),
        (switchgear.RELAY_MAINS, switchgear.MainsRelay),
        (switchgear.GENERATOR_DEVICE, switchgear.GeneratorMode),
        (switchgear.GENERATOR_DEVICE, switchgear.GeneratorSettings),
        (switchgear.GENERATOR_DEVICE, switchgear.GeneratorSchedule),
    )
    for name, control in record.controls.items()
} | {f"acb/+/{storage.SLEEP.name}": storage.SLEEPING}
"""What commands can set, by topic below a gateway. `+` stands for the id of any device of a kind."""
