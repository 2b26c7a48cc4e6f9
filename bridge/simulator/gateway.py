"""A gateway: which path has which answer, and who may have it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import formatdate
from threading import Lock

from bridge.simulator import answers, details, ensemble, livedata, metering
from bridge.simulator.access import Guard, digest_allows, digest_challenge, unauthorized
from bridge.simulator.exchange import Ask, Reply
from bridge.simulator.homes import Home
from bridge.simulator.physics import House
from bridge.simulator.truth import Truth, zeroed

INFO = "/info"
DEVICES = "/ivp/ensemble/device_list"
METERS = "/ivp/meters"
READINGS = "/ivp/meters/readings"
PRODUCTION = "/api/v1/production"
ENERGY = "/ivp/pdm/energy"
INVERTERS = "/api/v1/production/inverters"
DETAILS = "/ivp/pdm/device_data"
LIVEDATA = "/ivp/livedata/status"
STREAM = "/ivp/livedata/stream"
REPORTS = "/ivp/meters/reports/consumption"
GRID = "/ivp/meters/gridReading"
CHECK = "/auth/check_jwt"

ENDPOINTS = (INFO, DEVICES, METERS, READINGS, PRODUCTION, ENERGY, INVERTERS, LIVEDATA, REPORTS, GRID)
"""The ten of Enphase's brief."""
MORE = (DETAILS,)
"""Others that the bridge asks for."""
NEVER = ("/production", "/production.json", "/home", "/home.json", "/inventory", "/inventory.json")
"""These take a real gateway down: they are answered, and the request log shows who asked."""
TYPED = (PRODUCTION, INVERTERS, *NEVER)
"""The few answers that say what they are. All others come without a content type."""

NOT_FOUND = b'{ "error" : "404 - Not Found" }\n'
NO_ENSEMBLE = b'{"err":"404 - Not Found"}'
OLD_JSON = {"Content-Type": "application/json; charset=ISO-8859-4"}
COMMON = {
    "Server": "openresty/1.17.8.1",
    "Strict-Transport-Security": "max-age=63072000; includeSubdomains",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
}


class Gateway:
    """The gateway of one house."""

    def __init__(self, home: Home, house: House, *, clock: Callable[[], float]) -> None:
        self.home = home
        self.guard = Guard(clock=clock)
        self._house = house
        self._clock = clock
        self._zero_until = 0.0
        self._lock = Lock()
        self._stream = livedata.Stream(self.truth())

    def truth(self) -> Truth:
        """What is so in the house, now."""
        with self._lock:  # tests ask from their own thread
            self._house.advance(self._clock())
            return self._house.truth()

    def reboot(self, zeros: float) -> None:
        """Ends sessions and stream; for `zeros` seconds all powers and counters are 0, as on old firmware."""
        self.guard.forget()
        self._stream.switch(on=False, truth=self.truth())
        self._zero_until = self._clock() + zeros

    def answer(self, ask: Ask) -> Reply:
        reply = self._secure(ask) if self.home.secure else self._legacy(ask)
        headers = {**self._common(), **reply.headers}
        return replace(reply, headers=headers)

    def _secure(self, ask: Ask) -> Reply:
        if ask.path == "/auth/check_jwt":
            return self.guard.check(ask, self.home.serial)
        if ask.path != INFO and not self.guard.allows(ask, self.home.serial):
            return unauthorized()
        if (ask.method, ask.path) == ("POST", STREAM):
            return self._switch(ask)
        return self._get(ask.path, self._documents())

    def _legacy(self, ask: Ask) -> Reply:
        refused = ask.path == INVERTERS and not digest_allows(ask, self.home.serial)
        if refused or ask.path == METERS:
            return digest_challenge(self._clock())
        known = {INFO, PRODUCTION, INVERTERS, *NEVER}
        return self._get(ask.path, {path: make for path, make in self._documents().items() if path in known})

    def _get(self, path: str, documents: Mapping[str, Callable[[], bytes]]) -> Reply:
        make = documents.get(path)
        if make is None:
            missing = NO_ENSEMBLE if self.home.secure and path.startswith("/ivp/ensemble/") else NOT_FOUND
            return Reply(404, missing, OLD_JSON)
        typed = {"Content-Type": "application/json"} if path in TYPED or not self.home.secure else {}
        return Reply(200, make(), typed)

    def _documents(self) -> dict[str, Callable[[], bytes]]:
        home, truth = self.home, self._shown()
        documents = {
            INFO: lambda: answers.info(home, truth),
            METERS: lambda: metering.meters(home),
            READINGS: lambda: metering.readings(home, truth),
            PRODUCTION: lambda: answers.production(home, truth),
            ENERGY: lambda: answers.energy(home, truth),
            INVERTERS: lambda: answers.inverters(home, truth),
            DETAILS: lambda: details.device_data(home, truth),
            LIVEDATA: lambda: livedata.status(home, self._stream, truth),
            REPORTS: lambda: metering.consumption_reports(home, truth),
            GRID: lambda: metering.grid_reading(home, truth),
            **{path: lambda: b"{}\n" for path in NEVER},
            **ensemble.documents(home, truth),
        }
        if home.ensemble:
            documents[DEVICES] = lambda: answers.device_list(home)
        return documents

    def _switch(self, ask: Ask) -> Reply:
        try:
            on = json.loads(ask.body).get("enable") == 1
        except (ValueError, AttributeError):
            return Reply(400, b"")
        self._stream.switch(on=on, truth=self._shown())
        return Reply(200, livedata.switched(on=on))

    def _shown(self) -> Truth:
        truth = self.truth()
        return zeroed(truth) if truth.at < self._zero_until else truth

    def _common(self) -> dict[str, str]:
        """Old firmware has no proxy before it and closes the connection after each answer."""
        now = {"Date": formatdate(self._clock(), usegmt=True)}
        return {**now, **COMMON} if self.home.secure else {**now, "Connection": "close"}
