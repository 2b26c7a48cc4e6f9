"""Enphase's cloud: it accepts the login and issues tokens at its two endpoints.

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
