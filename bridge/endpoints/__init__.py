"""The table: every endpoint, those of the brief and others, and every value that it gives.

A new endpoint is a record, a split function and one line here; a new value is one line in its record.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bridge.endpoints import device_data, device_list, info, inverters, livedata, meters, production, reports
from bridge.endpoints.body import Parsed
from bridge.model import Facts

__all__ = ["BY_SOURCE", "ENDPOINTS", "Endpoint", "Parsed"]

Split = Callable[[bytes, Facts, float], Parsed]
MINUTE, HOUR = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint: where it is, how to read it, and how often (seconds) in each polling profile.

    The order of the table is that of the first poll and of precedence where two sources name one value;
    `urgency` is the order among those that are due at the same moment, 0 first. `appendix` is the brief's, empty
    where the brief does not name the endpoint.
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
    appendix: str
    timeout: float = 15.0

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
        "",
    ),
    Endpoint("device_list", "/ivp/ensemble/device_list", device_list.split, 15 * MINUTE, HOUR, 15 * MINUTE, 4, "B"),
)

BY_SOURCE = {endpoint.source: endpoint for endpoint in ENDPOINTS}
