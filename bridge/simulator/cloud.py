"""Tokens: Enphase's cloud accepts the login and issues them at its two endpoints, and a gateway accepts them.

A token has three base64url parts, as a real one. Its signature is a constant, because the bridge does not
verify signatures.
"""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from itertools import count

from bridge.simulator.http import HttpReply, HttpRequest, JsonValue, json_reply

Claim = str | int
Claims = Mapping[str, Claim]

OWNER_TOKEN_LIFETIME_S = 365 * 86400
INSTALLER_TOKEN_LIFETIME_S = 12 * 3600
"""An owner's token is valid for a year, an installer's for twelve hours."""
TOKEN_SIGNATURE = "c2ln"  # noqa: S105 (constant and public: nobody checks it)
TOKEN_SHAPE = re.compile(rb"[\w-]+\.[\w-]+\.[\w-]+")
TOKEN_HEADER = {"kid": "7d10005d-7899-4c0d-bcb4-244f98ee156b", "typ": "JWT", "alg": "ES256"}


def encode_token(claims: Claims) -> str:
    return f"{_part(TOKEN_HEADER)}.{_part(claims)}.{TOKEN_SIGNATURE}"


def decode_token(token: str) -> Claims:
    """Return the claims of a token, or no claims if this simulator did not issue it."""
    try:
        _, payload, signature = token.split(".")
        claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) and signature == TOKEN_SIGNATURE else {}


def with_claims(body: bytes, **claims: Claim) -> bytes:
    """Return the document with the given claims replaced in every token that it contains."""
    return TOKEN_SHAPE.sub(lambda found: encode_token({**decode_token(found[0].decode()), **claims}).encode(), body)


def _part(value: Mapping[str, Claim]) -> str:
    return urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()


LOGIN_PATH = "/login/login.json"
TOKENS_PATH = "/tokens"
ENTREZ_PATH = "/entrez-auth-token"
CLOUD_PATHS = (LOGIN_PATH, TOKENS_PATH, ENTREZ_PATH)
CLOUD_SESSION_COOKIE = "_enlighten_4_session"
USER = "user@example.com"


class SimulatedCloud:
    """One account of the cloud. It owns the gateways in `serials`, so that several gateways can share a cloud."""

    def __init__(self, *, clock: Callable[[], float], password: str, user: str = USER) -> None:
        self.user = user
        self.password = password
        self.role = "owner"
        self.serials: set[str] = set()
        self._clock = clock
        self._issued = 0
        self._numbers = count(1)
        self._sessions: set[str] = set()

    def answer(self, request: HttpRequest) -> HttpReply:
        """Return the reply to a login or to a request for a token."""
        replies = {
            ("POST", LOGIN_PATH): self._login,
            ("POST", TOKENS_PATH): self._tokens,
            ("GET", ENTREZ_PATH): self._entrez,
        }
        reply = replies.get((request.method, request.path))
        return reply(request) if reply else HttpReply(405)

    def issue(self, serial: str, **claims: Claim) -> str:
        """Return a new token for a gateway, valid as long as the account's role allows; arguments replace claims.

        The `jti` claim counts up, so that no two tokens are alike.
        """
        now = int(self._clock())
        self._issued += 1
        life = (
            OWNER_TOKEN_LIFETIME_S
            if claims.get("enphaseUser", self.role) == "owner"
            else INSTALLER_TOKEN_LIFETIME_S
        )
        own: Claims = {
            "aud": serial,
            "iss": "Entrez",
            "enphaseUser": self.role,
            "exp": now + life,
            "iat": now,
            "jti": self.last_number(),
            "username": self.user,
        }
        return encode_token({**own, **claims})

    def last_number(self) -> str:
        """Return the `jti` of the newest token. Later tokens have higher numbers."""
        return f"{self._issued:08}"

    def _login(self, request: HttpRequest) -> HttpReply:
        form = request.form
        if (form.get("user[email]"), form.get("user[password]")) != (self.user, self.password):
            return json_reply(401, {"message": "Invalid email or password"})
        session = f"{next(self._numbers):032x}"
        self._sessions.add(session)
        answer: JsonValue = {
            "message": "success",
            "session_id": session,
            "manager_token": "manager",
            "is_consumer": True,
        }
        return json_reply(200, answer, **{"Set-Cookie": f"{CLOUD_SESSION_COOKIE}={session}; path=/; HttpOnly"})

    def _tokens(self, request: HttpRequest) -> HttpReply:
        try:
            asked = json.loads(request.body)
        except ValueError:
            return json_reply(400, {"message": "Bad request"})
        if not isinstance(asked, dict) or asked.get("session_id") not in self._sessions:
            return json_reply(401, {"message": "Session is not valid"})
        if asked.get("serial_num") not in self.serials or asked.get("username") != self.user:
            return json_reply(403, {"message": "Serial number is not on this account"})
        return HttpReply(200, self.issue(asked["serial_num"]).encode(), {"Content-Type": "text/plain"})

    def _entrez(self, request: HttpRequest) -> HttpReply:
        serial = request.query.get("serial_num", "")
        if request.cookie(CLOUD_SESSION_COOKIE) not in self._sessions:
            return json_reply(401, {"message": "Session is not valid"})
        if serial not in self.serials:
            return json_reply(403, {"message": "Serial number is not on this account"})
        token = self.issue(serial)
        claims = decode_token(token)
        return json_reply(200, {"generation_time": claims["iat"], "token": token, "expires_at": claims["exp"]})


CHECK_PATH = "/auth/check_jwt"
SESSION_IDLE_S = 600.0
"""A session ends when it has not been used for this long."""
SESSION_COOKIE = "sessionId"
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
        self._sessions: dict[str, tuple[float, str]] = {}
        """When each session was used last, and the role of its token."""
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
        alive = {name: kept for name, kept in self._sessions.items() if now - kept[0] < SESSION_IDLE_S}
        self._sessions = {**alive, session: (now, _role(_bearer(request)))}
        cookie = f"{SESSION_COOKIE}={session}; path=/; HttpOnly; Secure"
        return HttpReply(200, b"<!DOCTYPE html><h2>Valid token.</h2>\n", {**HTML_TYPE, "Set-Cookie": cookie})

    def role(self, request: HttpRequest) -> str:
        """Return the role of the token of a request, or of that which its session began with."""
        _, role = self._sessions.get(request.cookie(SESSION_COOKIE) or "", (0.0, ""))
        return role or _role(_bearer(request))

    def forget(self) -> None:
        """End all sessions, as a reboot does."""
        self._sessions.clear()

    def revoke(self, number: str) -> None:
        """Refuse all tokens up to this `jti` from now on, and end all sessions."""
        self._revoked = number
        self.forget()

    def _in_session(self, request: HttpRequest) -> bool:
        session, now = request.cookie(SESSION_COOKIE), self._clock()
        used, role = self._sessions.get(session or "", (-SESSION_IDLE_S, ""))
        if session is None or now - used >= SESSION_IDLE_S:
            return False
        self._sessions[session] = now, role
        return True

    def _valid(self, token: str, serial: str) -> bool:
        claims = decode_token(token)
        alive = isinstance(end := claims.get("exp"), int) and end > self._clock()
        return alive and claims.get("aud") == serial and str(claims.get("jti", "~")) > self._revoked


def unauthorized() -> HttpReply:
    return HttpReply(401, UNAUTHORIZED_PAGE, HTML_TYPE)


def _bearer(request: HttpRequest) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _role(token: str) -> str:
    return str(decode_token(token).get("enphaseUser", ""))
