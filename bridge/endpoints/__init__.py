"""The table: every endpoint that is asked, and every value that it gives.

A new endpoint is a record, a split function and one line here; a new value is one line in its record.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bridge.endpoints import (
    device_data,
    device_list,
    info,
    inventory,
    inverters,
    livedata,
    meters,
    production,
    reports,
    storage,
    switchgear,
)
from bridge.endpoints.body import Parsed
from bridge.model import Facts

__all__ = ["BY_SOURCE", "ENDPOINTS", "Endpoint", "Parsed"]

Split = Callable[[bytes, Facts, float], Parsed]
Wanted = Callable[[Facts], bool]
MINUTE, HOUR = 60.0, 3600.0
FIRST_WITH_DETAILS = 7
"""No older firmware tells of its inverters one by one at `/ivp/pdm`."""
FIRST_WITH_STORAGE = 5
"""No older firmware knows storage gear: all its answers to `/ivp/ensemble/*` are 404."""
SWITCHING = ("controller", "collar", "combiner")
"""What has relays, and a generator's connection."""
STORING = ("battery", "acb", *SWITCHING)
"""What belongs to a storage, or is made ready for one."""


def always(_facts: Facts) -> bool:
    return True


def details_possible(facts: Facts) -> bool:
    return facts.release is None or facts.release >= FIRST_WITH_DETAILS


def storage_possible(facts: Facts) -> bool:
    return facts.release is None or facts.release >= FIRST_WITH_STORAGE


def where(*kinds: str) -> Wanted:
    """Only where gear of one of these kinds was seen: others answer with what means nothing, or not at all."""
    return lambda facts: storage_possible(facts) and facts.has(*kinds)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint: where it is, how to read it, and how often (seconds) in each polling profile.

    The order of the table is that of the first poll and of precedence where two sources name one value;
    `urgency` is the order among those that are due at the same moment, 0 first. `appendix` is the brief's, if any.
    `wanted` tells by what is known of a gateway whether it may have this at all.
    `timeout` (seconds) bounds one request with its retries: it is all that a hanging endpoint costs the others,
    and is short enough for a gateway with one such endpoint to stay online. Real answers take 0.02 to 1.6 s.
    """

    source: str
    path: str
    split: Split
    normal: float
    gentle: float
    live: float
    urgency: int
    appendix: str = ""
    timeout: float = 15.0
    wanted: Wanted = always

    def period(self, profile: str) -> float:
        return {"normal": self.normal, "gentle": self.gentle, "live": self.live}[profile]


ENDPOINTS = (
    Endpoint("info", "/info", info.split, 4 * HOUR, 4 * HOUR, 4 * HOUR, 2, "A"),
    Endpoint("meters", "/ivp/meters", meters.split_meters, HOUR, HOUR, HOUR, 2, "C"),
    Endpoint("livedata", "/ivp/livedata/status", livedata.split, 5, 15, 1, 0, "H"),
    Endpoint("readings", "/ivp/meters/readings", meters.split_readings, 10, 30, 5, 1, "D"),
    Endpoint("grid", "/ivp/meters/gridReading", reports.split_grid, 30, 2 * MINUTE, 15, 2, "J"),
    Endpoint(
        "consumption",
        "/ivp/meters/reports/consumption",
        reports.split_consumption,
        MINUTE,
        5 * MINUTE,
        30,
        3,
        "I",
    ),
    Endpoint("production", "/api/v1/production", production.split_production, MINUTE, 5 * MINUTE, MINUTE, 3, "E"),
    Endpoint("energy", "/ivp/pdm/energy", production.split_energy, MINUTE, 5 * MINUTE, MINUTE, 3, "F"),
    Endpoint(
        "inverters",
        "/api/v1/production/inverters",
        inverters.split,
        5 * MINUTE,
        15 * MINUTE,
        5 * MINUTE,
        4,
        "G",
    ),
    Endpoint(
        "device_data",
        "/ivp/pdm/device_data",
        device_data.split,
        5 * MINUTE,
        15 * MINUTE,
        5 * MINUTE,
        4,
        wanted=details_possible,
    ),
    Endpoint(
        "inventory",
        "/ivp/ensemble/inventory",
        inventory.split,
        5 * MINUTE,
        15 * MINUTE,
        MINUTE,
        4,
        wanted=storage_possible,
    ),
    Endpoint("device_list", "/ivp/ensemble/device_list", device_list.split, 15 * MINUTE, HOUR, 15 * MINUTE, 4, "B"),
    Endpoint("power", "/ivp/ensemble/power", inventory.split_power, 30, 2 * MINUTE, 10, 2, wanted=where("battery")),
    Endpoint(
        "secctrl",
        "/ivp/ensemble/secctrl",
        storage.split_secctrl,
        MINUTE,
        5 * MINUTE,
        30,
        3,
        wanted=where(*STORING),
    ),
    Endpoint(
        "relay", "/ivp/ensemble/relay", switchgear.split_relay, 30, 2 * MINUTE, 10, 2, wanted=where(*SWITCHING)
    ),
    Endpoint(
        "dry_contacts",
        "/ivp/ensemble/dry_contacts",
        switchgear.split_contacts,
        MINUTE,
        5 * MINUTE,
        30,
        3,
        wanted=where(*SWITCHING),
    ),
    Endpoint(
        "dry_contact_settings",
        "/ivp/ss/dry_contact_settings",
        switchgear.split_contact_settings,
        15 * MINUTE,
        HOUR,
        15 * MINUTE,
        4,
        wanted=where(*SWITCHING),
    ),
    Endpoint(
        "generator",
        "/ivp/ensemble/generator",
        switchgear.split_generator,
        MINUTE,
        5 * MINUTE,
        30,
        3,
        wanted=where(*SWITCHING),
    ),
    Endpoint(
        "gen_config",
        "/ivp/ss/gen_config",
        switchgear.split_generator_settings,
        HOUR,
        4 * HOUR,
        HOUR,
        4,
        wanted=where("generator"),
    ),
    Endpoint(
        "tariff",
        "/admin/lib/tariff",
        storage.split_tariff,
        5 * MINUTE,
        15 * MINUTE,
        5 * MINUTE,
        4,
        wanted=where(*STORING),
    ),
    Endpoint(
        "status",
        "/ivp/ensemble/status",
        storage.split_status,
        HOUR,
        4 * HOUR,
        HOUR,
        4,
        wanted=where(*STORING),
    ),
)

BY_SOURCE = {endpoint.source: endpoint for endpoint in ENDPOINTS}
