"""Who may ask a gateway: tokens and sessions from firmware 7 on, digest authentication before."""

import re
from collections.abc import Callable
from hashlib import md5
from itertools import count

from bridge.simulator import tokens
from bridge.simulator.exchange import Ask, Reply

IDLE = 600.0
"""Seconds after which a session that nobody uses has ended."""
SESSION = "sessionId"
REALM = "enphaseenergy.com"
FIELD = re.compile(r'(\w+)="?([^",]+)"?')
UNAUTHORIZED = (
    b"<html>\r\n<head><title>401 Authorization Required</title></head>\r\n<body>\r\n"
    b"<center><h1>401 Authorization Required</h1></center>\r\n<hr><center>openresty</center>\r\n"
    b"</body>\r\n</html>\r\n"
)
HTML = {"Content-Type": "text/html"}


class Guard:
    """The door of a gateway with tokens. With `needs_check` a token opens it only after `/auth/check_jwt`."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self.needs_check = False
        self._clock = clock
        self._numbers = count(1)
        self._sessions: dict[str, float] = {}
        self._revoked = ""

    def allows(self, ask: Ask, serial: str) -> bool:
        if self._in_session(ask):
            return True
        return not self.needs_check and self._valid(_bearer(ask), serial)

    def check(self, ask: Ask, serial: str) -> Reply:
        """`/auth/check_jwt`: a good token gets a session, which is a cookie."""
        if not self._valid(_bearer(ask), serial):
            return unauthorized()
        session, now = f"{next(self._numbers):08x}", self._clock()
        alive = {name: used for name, used in self._sessions.items() if now - used < IDLE}
        self._sessions = {**alive, session: now}
        cookie = f"{SESSION}={session}; path=/; HttpOnly; Secure"
        return Reply(200, b"<!DOCTYPE html><h2>Valid token.</h2>\n", {**HTML, "Set-Cookie": cookie})

    def forget(self) -> None:
        """Ends all sessions, as a reboot does."""
        self._sessions.clear()

    def revoke(self, number: str) -> None:
        """Refuses all tokens of the cloud up to this one's `jti`."""
        self._revoked = number
        self.forget()

    def _in_session(self, ask: Ask) -> bool:
        session, now = ask.cookie(SESSION), self._clock()
        if session is None or now - self._sessions.get(session, -IDLE) >= IDLE:
            return False
        self._sessions[session] = now
        return True

    def _valid(self, token: str, serial: str) -> bool:
        claims = tokens.decode(token)
        alive = isinstance(end := claims.get("exp"), int) and end > self._clock()
        return alive and claims.get("aud") == serial and str(claims.get("jti", "~")) > self._revoked


def unauthorized() -> Reply:
    return Reply(401, UNAUTHORIZED, HTML)


def digest_allows(ask: Ask, serial: str) -> bool:
    """Firmware before 7: user `envoy`, the password is the end of the serial."""
    scheme, _, rest = ask.headers.get("authorization", "").partition(" ")
    given = dict(FIELD.findall(rest))
    if scheme.lower() != "digest" or given.get("username") != "envoy":
        return False
    secret = _md5(f"envoy:{REALM}:{serial[-6:]}")
    request = _md5(f"{ask.method}:{given.get('uri')}")
    middle = ":".join(given.get(name, "") for name in ("nonce", "nc", "cnonce", "qop"))
    return given.get("response") == _md5(f"{secret}:{middle}:{request}")


def digest_challenge(now: float) -> Reply:
    """What old firmware says to strangers, and on some endpoints to everybody."""
    challenge = f'Digest qop="auth", realm="{REALM}", nonce="{int(now)}"'
    return Reply(401, b"Error: 401", {"Content-Type": "text/plain", "WWW-Authenticate": challenge})


def _bearer(ask: Ask) -> str:
    scheme, _, token = ask.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _md5(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()
