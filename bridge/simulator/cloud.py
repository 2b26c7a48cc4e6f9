"""Enphase's cloud: the login, and the two roads to a token."""

import json
from collections.abc import Callable
from itertools import count

from bridge.simulator import tokens
from bridge.simulator.exchange import Ask, Reply, json_reply
from bridge.simulator.rendering import Json

LOGIN = "/login/login.json"
TOKENS = "/tokens"
ENTREZ = "/entrez-auth-token"
PATHS = (LOGIN, TOKENS, ENTREZ)
COOKIE = "_enlighten_4_session"
USER = "user@example.com"


class Cloud:
    """Accounts and the serials that belong to them. Several gateways can share one cloud: add to `serials`."""

    def __init__(self, *, clock: Callable[[], float], password: str, user: str = USER) -> None:
        self.user = user
        self.password = password
        self.role = "owner"
        self.serials: set[str] = set()
        self._clock = clock
        self._issued = 0
        self._numbers = count(1)
        self._sessions: set[str] = set()

    def answer(self, ask: Ask) -> Reply:
        roads = {("POST", LOGIN): self._login, ("POST", TOKENS): self._tokens, ("GET", ENTREZ): self._entrez}
        road = roads.get((ask.method, ask.path))
        return road(ask) if road else Reply(405)

    def issue(self, serial: str, **claims: tokens.Claim) -> str:
        """A token for a gateway, valid from now for as long as the account's role has it. No two are alike."""
        now = int(self._clock())
        self._issued += 1
        life = tokens.OWNER if claims.get("enphaseUser", self.role) == "owner" else tokens.INSTALLER
        own: tokens.Claims = {
            "aud": serial,
            "iss": "Entrez",
            "enphaseUser": self.role,
            "exp": now + life,
            "iat": now,
            "jti": self.last_number(),
            "username": self.user,
        }
        return tokens.encode({**own, **claims})

    def last_number(self) -> str:
        """The `jti` of the newest token: numbers rise."""
        return f"{self._issued:08}"

    def _login(self, ask: Ask) -> Reply:
        form = ask.form
        if (form.get("user[email]"), form.get("user[password]")) != (self.user, self.password):
            return json_reply(401, {"message": "Invalid email or password"})
        session = f"{next(self._numbers):032x}"
        self._sessions.add(session)
        answer: Json = {
            "message": "success",
            "session_id": session,
            "manager_token": "manager",
            "is_consumer": True,
        }
        return json_reply(200, answer, **{"Set-Cookie": f"{COOKIE}={session}; path=/; HttpOnly"})

    def _tokens(self, ask: Ask) -> Reply:
        try:
            asked = json.loads(ask.body)
        except ValueError:
            return json_reply(400, {"message": "Bad request"})
        if not isinstance(asked, dict) or asked.get("session_id") not in self._sessions:
            return json_reply(401, {"message": "Session is not valid"})
        if asked.get("serial_num") not in self.serials or asked.get("username") != self.user:
            return json_reply(403, {"message": "Serial number is not on this account"})
        return Reply(200, self.issue(asked["serial_num"]).encode(), {"Content-Type": "text/plain"})

    def _entrez(self, ask: Ask) -> Reply:
        serial = ask.query.get("serial_num", "")
        if ask.cookie(COOKIE) not in self._sessions:
            return json_reply(401, {"message": "Session is not valid"})
        if serial not in self.serials:
            return json_reply(403, {"message": "Serial number is not on this account"})
        token = self.issue(serial)
        claims = tokens.decode(token)
        return json_reply(200, {"generation_time": claims["iat"], "token": token, "expires_at": claims["exp"]})
