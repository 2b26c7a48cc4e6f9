"""The simulated gateway: it checks the authentication of a request and chooses the answer to its path.

Firmware 7 and later uses tokens and sessions, older firmware digest authentication.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import formatdate
from hashlib import md5
from itertools import count
from threading import Lock

from bridge.simulator import cloud, ensemble, meters, responses
from bridge.simulator.house import House
from bridge.simulator.http import HttpReply, HttpRequest
from bridge.simulator.presets import Home
from bridge.simulator.truth import Truth, zeroed

SESSION_IDLE_S = 600.0
"""A session ends when it has not been used for this long."""
SESSION_COOKIE = "sessionId"
DIGEST_REALM = "enphaseenergy.com"
DIGEST_FIELD = re.compile(r'(\w+)="?([^",]+)"?')
UNAUTHORIZED_PAGE = (
    b"<html>\r\n<head><title>401 Authorization Required</title></head>\r\n<body>\r\n"
    b"<center><h1>401 Authorization Required</h1></center>\r\n<hr><center>openresty</center>\r\n"
    b"</body>\r\n</html>\r\n"
)
HTML_TYPE = {"Content-Type": "text/html"}


class Guard:
    """Decides who may ask a gateway with tokens.

    With `needs_check` a token alone is refused: a session from `/auth/check_jwt` is needed.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self.needs_check = False
        self._clock = clock
        self._numbers = count(1)
        self._sessions: dict[str, float] = {}
        self._revoked = ""

    def allows(self, request: HttpRequest, serial: str) -> bool:
        """Return whether the request has a session or, without `needs_check`, a valid token."""
        if self._in_session(request):
            return True
        return not self.needs_check and self._valid(_bearer(request), serial)

    def check(self, request: HttpRequest, serial: str) -> HttpReply:
        """Answer `/auth/check_jwt`: a valid token starts a session, whose identifier is set as a cookie."""
        if not self._valid(_bearer(request), serial):
            return unauthorized()
        session, now = f"{next(self._numbers):08x}", self._clock()
        alive = {name: used for name, used in self._sessions.items() if now - used < SESSION_IDLE_S}
        self._sessions = {**alive, session: now}
        cookie = f"{SESSION_COOKIE}={session}; path=/; HttpOnly; Secure"
        return HttpReply(200, b"<!DOCTYPE html><h2>Valid token.</h2>\n", {**HTML_TYPE, "Set-Cookie": cookie})

    def forget(self) -> None:
        """End all sessions, as a reboot does."""
        self._sessions.clear()

    def revoke(self, number: str) -> None:
        """Refuse all tokens up to this `jti` from now on, and end all sessions."""
        self._revoked = number
        self.forget()

    def _in_session(self, request: HttpRequest) -> bool:
        session, now = request.cookie(SESSION_COOKIE), self._clock()
        if session is None or now - self._sessions.get(session, -SESSION_IDLE_S) >= SESSION_IDLE_S:
            return False
        self._sessions[session] = now
        return True

    def _valid(self, token: str, serial: str) -> bool:
        claims = cloud.decode_token(token)
        alive = isinstance(end := claims.get("exp"), int) and end > self._clock()
        return alive and claims.get("aud") == serial and str(claims.get("jti", "~")) > self._revoked


def unauthorized() -> HttpReply:
    return HttpReply(401, UNAUTHORIZED_PAGE, HTML_TYPE)


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


def _bearer(request: HttpRequest) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


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
STREAM_PATH = "/ivp/livedata/stream"
CONSUMPTION_REPORTS_PATH = "/ivp/meters/reports/consumption"
GRID_READING_PATH = "/ivp/meters/gridReading"
CHECK_PATH = "/auth/check_jwt"

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
OLD_JSON_TYPE = {"Content-Type": "application/json; charset=ISO-8859-4"}
PROXY_HEADERS = {
    "Server": "openresty/1.17.8.1",
    "Strict-Transport-Security": "max-age=63072000; includeSubdomains",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
}


class SimulatedGateway:
    """The gateway of one house: it answers requests from the house's true values."""

    def __init__(self, home: Home, house: House, *, clock: Callable[[], float]) -> None:
        self.home = home
        self.guard = Guard(clock=clock)
        self._house = house
        self._clock = clock
        self._zero_until = 0.0
        self._lock = Lock()
        self._stream = meters.SimulatedStream(self.truth())

    def truth(self) -> Truth:
        """Move the house on to the present and return its true values."""
        with self._lock:  # tests call this from another thread than the server's
            self._house.advance(self._clock())
            return self._house.truth()

    def reboot(self, zeros: float) -> None:
        """End sessions and stream; for `zeros` seconds all powers and counters are 0, as on old firmware."""
        self.guard.forget()
        self._stream.switch(on=False, truth=self.truth())
        self._zero_until = self._clock() + zeros

    def answer(self, request: HttpRequest) -> HttpReply:
        """Return the reply to a request as this firmware gives it."""
        reply = self._secure(request) if self.home.secure else self._legacy(request)
        headers = {**self._common(), **reply.headers}
        return replace(reply, headers=headers)

    def _secure(self, request: HttpRequest) -> HttpReply:
        if request.path == "/auth/check_jwt":
            return self.guard.check(request, self.home.serial)
        if request.path != INFO_PATH and not self.guard.allows(request, self.home.serial):
            return unauthorized()
        if (request.method, request.path) == ("POST", STREAM_PATH):
            return self._switch(request)
        return self._get(request.path, self._documents())

    def _legacy(self, request: HttpRequest) -> HttpReply:
        refused = request.path == INVERTERS_PATH and not digest_allows(request, self.home.serial)
        if refused or request.path == METERS_PATH:
            return digest_challenge(self._clock())
        known = {INFO_PATH, PRODUCTION_PATH, INVERTERS_PATH, *HARMFUL_PATHS}
        return self._get(request.path, {path: make for path, make in self._documents().items() if path in known})

    def _get(self, path: str, documents: Mapping[str, Callable[[], bytes]]) -> HttpReply:
        make = documents.get(path)
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
