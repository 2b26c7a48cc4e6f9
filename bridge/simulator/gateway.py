"""The simulated gateway, and the simulator as an ASGI application: a gateway, its house, Enphase's cloud, faults.

Firmware 7 and later uses tokens and sessions, older firmware digest authentication.
"""

import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from hashlib import md5
from threading import Lock
from typing import TYPE_CHECKING, Any

from bridge.simulator import ensemble, meters, responses
from bridge.simulator.cloud import CHECK_PATH, CLOUD_PATHS, HTML_TYPE, Claim, Guard, SimulatedCloud, unauthorized
from bridge.simulator.equipment import Controls, Refused, ServiceCrashed
from bridge.simulator.faults import Faults, is_write
from bridge.simulator.house import House
from bridge.simulator.http import HttpReply, HttpRequest, LoggedRequest, json_reply, read_request
from bridge.simulator.meters import STREAM_PATH
from bridge.simulator.presets import HOMES, PERSONALITIES, Home, Personality
from bridge.simulator.truth import Truth, zeroed

if TYPE_CHECKING:
    from bridge.http_server import Receive, Scope, Send

DIGEST_REALM = "enphaseenergy.com"
DIGEST_FIELD = re.compile(r'(\w+)="?([^",]+)"?')


def digest_allows(request: HttpRequest, serial: str) -> bool:
    """Return whether the digest is that of user `envoy`, whose password is the last 6 digits of the serial."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    given = dict(DIGEST_FIELD.findall(rest))
    if scheme.lower() != "digest" or given.get("username") != "envoy":
        return False
    secret = _md5(f"envoy:{DIGEST_REALM}:{serial[-6:]}")
    action = _md5(f"{request.method}:{given.get('uri')}")
    middle = ":".join(given.get(name, "") for name in ("nonce", "nc", "cnonce", "qop"))
    return given.get("response") == _md5(f"{secret}:{middle}:{action}")


def digest_challenge(now: float) -> HttpReply:
    """Return the 401 of firmware before 7 for a missing or wrong digest."""
    challenge = f'Digest qop="auth", realm="{DIGEST_REALM}", nonce="{int(now)}"'
    return HttpReply(401, b"Error: 401", {"Content-Type": "text/plain", "WWW-Authenticate": challenge})


def _md5(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()


INFO_PATH = "/info"
DEVICE_LIST_PATH = "/ivp/ensemble/device_list"
METERS_PATH = "/ivp/meters"
READINGS_PATH = "/ivp/meters/readings"
PRODUCTION_PATH = "/api/v1/production"
ENERGY_PATH = "/ivp/pdm/energy"
INVERTERS_PATH = "/api/v1/production/inverters"
DEVICE_DATA_PATH = "/ivp/pdm/device_data"
LIVEDATA_PATH = "/ivp/livedata/status"
CONSUMPTION_REPORTS_PATH = "/ivp/meters/reports/consumption"
GRID_READING_PATH = "/ivp/meters/gridReading"

BRIEF_PATHS = (
    INFO_PATH,
    DEVICE_LIST_PATH,
    METERS_PATH,
    READINGS_PATH,
    PRODUCTION_PATH,
    ENERGY_PATH,
    INVERTERS_PATH,
    LIVEDATA_PATH,
    CONSUMPTION_REPORTS_PATH,
    GRID_READING_PATH,
)
"""The paths of Enphase's technical brief."""
HARMFUL_PATHS = ("/production", "/production.json", "/home", "/home.json", "/inventory", "/inventory.json")
"""Requests for these can bring a real gateway down. The simulator answers and logs them."""
JSON_TYPED_PATHS = (PRODUCTION_PATH, INVERTERS_PATH, *HARMFUL_PATHS)
"""The answers with a Content-Type header. All others have none."""

NOT_FOUND_BODY = b'{ "error" : "404 - Not Found" }\n'
NO_ENSEMBLE_BODY = b'{"err":"404 - Not Found"}'
CRASHED_PAGE = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body></body>\r\n</html>\r\n"
OLD_JSON_TYPE = {"Content-Type": "application/json; charset=ISO-8859-4"}
PROXY_HEADERS = {
    "Server": "openresty/1.17.8.1",
    "Strict-Transport-Security": "max-age=63072000; includeSubdomains",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
}


class SimulatedGateway:
    """The gateway of one house: it answers from the house's true values, and carries out what is written."""

    def __init__(
        self, home: Home, house: House, *, clock: Callable[[], float], personality: Personality | None = None
    ) -> None:
        self.home = home
        self.guard = Guard(clock=clock)
        self.controls = Controls(home, personality)
        self._house = house
        self._clock = clock
        self._zero_until = 0.0
        self._lock = Lock()
        house.follow(self.controls.equipment)
        self._stream = meters.SimulatedStream(self.truth())

    def truth(self) -> Truth:
        """Move the house on to the present and return its true values."""
        with self._lock:  # tests call this from another thread than the server's
            now = self._clock()
            for at in self.controls.advance(now):
                self._house.follow(self.controls.equipment)
                self._house.advance(at)
            self._house.follow(self.controls.equipment)
            self._house.advance(now)
            return self._house.truth()

    def reboot(self, zeros: float) -> None:
        """End sessions and stream; for `zeros` seconds all powers and counters are 0, as on old firmware."""
        self.guard.forget()
        self.controls.reboot()
        self._stream.switch(on=False, truth=self.truth())
        self._zero_until = self._clock() + zeros

    def answer(self, request: HttpRequest) -> HttpReply:
        """Return the reply to a request as this firmware gives it."""
        reply = self._secure(request) if self.home.secure else self._legacy(request)
        headers = {**self._common(), **reply.headers}
        return replace(reply, headers=headers)

    def _secure(self, request: HttpRequest) -> HttpReply:
        if request.path == CHECK_PATH:
            return self.guard.check(request, self.home.serial)
        if request.path != INFO_PATH and not self.guard.allows(request, self.home.serial):
            return unauthorized()
        if (request.method, request.path) == ("POST", STREAM_PATH):
            return self._switch(request)
        if self.controls.is_down(request.path, self._clock()):
            return HttpReply(502, CRASHED_PAGE, HTML_TYPE)
        documents = self._documents()
        if request.method == "GET" or request.path not in documents:
            return self._get(request.path, documents)
        return self._write(request)

    def _write(self, request: HttpRequest) -> HttpReply:
        """Carry out a write, and answer with the document that it changes; that tells a slow change not yet."""
        if self.guard.role(request) not in self.controls.personality.roles:
            return unauthorized()
        try:
            with self._lock:
                self.controls.write(request.method, request.path, request.body, self._clock())
        except Refused as refused:
            return json_reply(refused.status, {"error": str(refused)})
        except ServiceCrashed:
            return HttpReply(502, CRASHED_PAGE, HTML_TYPE)
        if request.path == ensemble.AC_BATTERIES_PATH:
            return json_reply(200, {"message": "success"})
        return self._get(request.path, self._documents())

    def _legacy(self, request: HttpRequest) -> HttpReply:
        refused = request.path == INVERTERS_PATH and not digest_allows(request, self.home.serial)
        if refused or request.path == METERS_PATH:
            return digest_challenge(self._clock())
        known = {INFO_PATH, PRODUCTION_PATH, INVERTERS_PATH, *HARMFUL_PATHS}
        return self._get(request.path, {path: make for path, make in self._documents().items() if path in known})

    def _get(self, path: str, documents: Mapping[str, Callable[[], bytes]]) -> HttpReply:
        make = documents.get(path.partition("?")[0])
        if make is None:
            missing = NO_ENSEMBLE_BODY if self.home.secure and path.startswith("/ivp/ensemble/") else NOT_FOUND_BODY
            return HttpReply(404, missing, OLD_JSON_TYPE)
        typed = {"Content-Type": "application/json"} if path in JSON_TYPED_PATHS or not self.home.secure else {}
        return HttpReply(200, make(), typed)

    def _documents(self) -> dict[str, Callable[[], bytes]]:
        home, truth = self.home, self._shown()
        documents = {
            INFO_PATH: lambda: responses.info(home, truth),
            METERS_PATH: lambda: meters.meters(home),
            READINGS_PATH: lambda: meters.readings(home, truth),
            PRODUCTION_PATH: lambda: responses.production(home, truth),
            ENERGY_PATH: lambda: responses.energy(home, truth),
            INVERTERS_PATH: lambda: responses.inverters(home, truth),
            DEVICE_DATA_PATH: lambda: responses.device_data(home, truth),
            LIVEDATA_PATH: lambda: meters.livedata_status(home, self._stream, truth),
            CONSUMPTION_REPORTS_PATH: lambda: meters.consumption_reports(home, truth),
            GRID_READING_PATH: lambda: meters.grid_reading(home, truth),
            **{path: lambda: b"{}\n" for path in HARMFUL_PATHS},
            **ensemble.documents(home, truth),
        }
        if home.ensemble:
            documents[DEVICE_LIST_PATH] = lambda: responses.device_list(home)
        return documents

    def _switch(self, request: HttpRequest) -> HttpReply:
        try:
            on = json.loads(request.body).get("enable") == 1
        except (ValueError, AttributeError):
            return HttpReply(400, b"")
        self._stream.switch(on=on, truth=self._shown())
        return HttpReply(200, meters.stream_state(on=on))

    def _shown(self) -> Truth:
        truth = self.truth()
        return zeroed(truth) if truth.at < self._zero_until else truth

    def _common(self) -> dict[str, str]:
        """Return the headers of all replies. Old firmware has no proxy and closes the connection after a reply."""
        now = {"Date": formatdate(self._clock(), usegmt=True)}
        return {**now, **PROXY_HEADERS} if self.home.secure else {**now, "Connection": "close"}


PASSWORD = "correct horse"  # noqa: S105 (of no real account)
MAX_LOGGED_REQUESTS = 20_000
"""The log keeps this many requests, the newest ones."""


class Simulator:
    """A gateway and the cloud behind it, as an ASGI application. The package's docstring shows how to use it."""

    def __init__(
        self,
        home: Home | str = "three-phase",
        *,
        clock: Callable[[], float] = time.time,
        password: str = PASSWORD,
        seed: int = 0,
        start_hour: float | None = None,
        shared_cloud: SimulatedCloud | None = None,
        personality: Personality | str | None = None,
        on_write: Callable[[LoggedRequest], object] | None = None,
    ) -> None:
        """Start a gateway. With a personality it has the firmware of that personality. `on_write` is called with
        each write to the gateway.

        Raises:
            KeyError: no home or personality has this name.
        """
        home = HOMES[home] if isinstance(home, str) else home
        if isinstance(personality, str):
            personality = PERSONALITIES[personality]
        if personality is not None:
            home = replace(home, firmware=personality.firmware)
        self.house: House = House(home, start=clock(), seed=seed, start_hour=start_hour)
        self.gateway = SimulatedGateway(home, self.house, clock=clock, personality=personality)
        self.cloud = shared_cloud or SimulatedCloud(clock=clock, password=password)
        self.cloud.serials.add(home.serial)
        self.faults = Faults()
        if personality is not None and personality.reply:
            self.faults.add("writes", personality.reply)
        self.requests: deque[LoggedRequest] = deque(maxlen=MAX_LOGGED_REQUESTS)
        self._clock, self._on_write = clock, on_write

    @property
    def home(self) -> Home:
        return self.gateway.home

    @property
    def serial(self) -> str:
        return self.home.serial

    def token(self, **claims: Claim) -> str:
        """Return a new token for this gateway. Arguments replace claims (`exp`, `aud`, `enphaseUser`, ...)."""
        return self.cloud.issue(self.serial, **claims)

    def truth(self) -> Truth:
        """Return the true values of this moment, to compare published values with."""
        return self.gateway.truth()

    def revoke_tokens(self) -> None:
        """Make the gateway refuse all tokens that were issued so far, and end all sessions."""
        self.gateway.guard.revoke(self.cloud.last_number())

    def reboot(self, *, zeros: float = 0.0) -> None:
        """End sessions and the live stream; for `zeros` seconds all powers and counters are 0.

        The gateway goes on answering. Add the fault `booting` to get the 503 answers of a reboot as well.
        """
        self.gateway.reboot(zeros)

    def become(self, **changes: Any) -> None:
        """Replace fields of `Home`: other firmware or another gateway at the same address. The house stays."""
        self.gateway.home = replace(self.home, **changes)
        self.cloud.serials.add(self.serial)

    def count(self, path: str | None = None) -> int:
        """Return the number of logged requests for `path`, or of all requests."""
        return sum(path in (None, seen.path) for seen in self.requests)

    def writes(self) -> list[LoggedRequest]:
        """Return the logged writes to the gateway, also those that were refused or met a fault."""
        return [seen for seen in self.requests if is_write(seen.method, seen.path)]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return
        request = await read_request(scope, receive)
        reply = self._reply(request)
        seen = LoggedRequest(self._clock(), request.method, request.path, reply.status)
        if is_write(request.method, request.path):
            seen = seen._replace(body=request.body)
            if self._on_write is not None:
                self._on_write(seen)
        self.requests.append(seen)
        await reply.send(scope, receive, send)

    def _reply(self, request: HttpRequest) -> HttpReply:
        normal = partial((self.cloud if request.path in CLOUD_PATHS else self.gateway).answer, request)
        fault = self.faults.take(request.method, request.path)
        return fault.reply(normal) if fault else normal()
