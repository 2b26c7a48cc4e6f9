"""Gateway tokens: reading one, and choosing among those that there are.

A token is a JWT that only the gateway can and need verify. Here it is read, never trusted.
"""

import base64
import binascii
import json
import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import SecretStr

from bridge.gateway.errors import PASTE, TokenRejected
from bridge.model import MINUTE_S, NEVER
from bridge.settings import GatewaySettings, ordinary

MAX_TOKEN_LETTERS = 8192
MAX_SERIALS = 8
OWNER_TOKEN_LIFETIME, INSTALLER_TOKEN_LIFETIME = timedelta(days=365), timedelta(hours=12)
RENEWAL_SHARE = 1 / 10
"""A token is renewed when this share of its life is left: an owner's about a month, an installer's an hour before.
"""
REFUSED_FOR_S = 5 * MINUTE_S
"""A gateway that has just started may have a wrong clock and refuse good tokens: they are tried again after this.
"""
MAX_CLOUD_TOKENS = 2
TOKEN_SETTING, TOKEN_FILE_SETTING = "BRIDGE_GATEWAY__TOKEN", "BRIDGE_GATEWAY__TOKEN_FILE"
BYTE_ORDER_MARK = "\ufeff"
"""What some editors put before a text."""
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Token:
    """One token and its claims. Neither `repr` nor `str` shows the token itself."""

    secret: SecretStr = field(repr=False)
    serials: tuple[str, ...]
    issued: datetime
    expires: datetime
    role: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what people paste: the token, `Bearer` and the token, or the JSON of `entrez-auth-token`.

        Raises:
            TokenRejected: it is no token.
        """
        try:
            text = _bare(text)
            claims = _claims(text)
            expires = _time(claims["exp"])
            role = _word(claims.get("enphaseUser"))
            life = INSTALLER_TOKEN_LIFETIME if role == "installer" else OWNER_TOKEN_LIFETIME
            issued = _time(claims["iat"]) if "iat" in claims else expires - life
            return cls(SecretStr(text), _serials(claims.get("aud")), issued, expires, role)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, OSError):
            raise TokenRejected(f"this is not a token (three parts joined by dots): {PASTE}") from None

    @property
    def bearer(self) -> str:
        """The value of the Authorization header: the secret itself."""
        return f"Bearer {self.secret.get_secret_value()}"

    @property
    def renew_at(self) -> datetime:
        """When a new token is wanted, well before this one expires."""
        return self.expires - (self.expires - self.issued) * RENEWAL_SHARE

    def due(self, now: float) -> bool:
        """Whether a new token is wanted at `now` (unix time)."""
        return now >= self.renew_at.timestamp()

    def check(self, serial: str, now: float) -> None:
        """Check that the gateway `serial` would accept the token at `now` (unix time).

        Raises:
            TokenRejected: it is for another gateway, or has expired.
        """
        if serial.upper() not in map(str.upper, self.serials):
            other = ", ".join(self.serials) or "unknown"
            raise TokenRejected(f"the token is for gateway {other}, this one is {serial}: {PASTE}")
        if now >= self.expires.timestamp():
            raise TokenRejected(f"the token expired on {self.expires:%Y-%m-%d}: {PASTE}")


def _bare(text: str) -> str:
    text = text[: 2 * MAX_TOKEN_LETTERS].removeprefix(BYTE_ORDER_MARK).strip()
    if text.startswith("{"):
        text = str(json.loads(text)["token"]).strip()
    return text.removeprefix("Bearer ").strip().strip("\"'")


def _claims(text: str) -> dict[str, object]:
    if len(text) > MAX_TOKEN_LETTERS or not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", text, re.ASCII):
        raise ValueError("not three parts")
    header, payload, _ = text.split(".")
    _part(header)
    claims = _part(payload)
    if not isinstance(claims, dict):
        raise TypeError("no claims")
    return claims


def _part(text: str) -> object:
    try:
        found: object = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("not base64url") from error
    return found


def _time(value: object) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("no time")
    return datetime.fromtimestamp(value, UTC)


def _serials(aud: object) -> tuple[str, ...]:
    values = aud if isinstance(aud, list) else [aud]
    return tuple(filter(None, map(_word, values[:MAX_SERIALS])))


def _word(value: object) -> str:
    """A claim that looks like a serial number or a role, else an empty text: anybody may write claims."""
    text = str(value).strip() if isinstance(value, str | int) else ""
    return text if re.fullmatch(r"[A-Za-z0-9_-]{1,32}", text) else ""


class TokenCache:
    """The tokens in the owner's order: a pasted one comes first, unless it is due or was refused."""

    def __init__(
        self, settings: GatewaySettings, clock: Clock = time.time, monotonic: Clock = time.monotonic
    ) -> None:
        """`clock` tells unix time, `monotonic` a time that nobody sets; both in seconds."""
        self.serial = settings.serial or ""
        self._clock, self._monotonic = clock, monotonic
        self._refused_until: dict[Token, float] = {}
        self._unreadable: dict[str, str] = {}
        self._path = settings.token_file
        self._pasted = self._parse(settings.token, TOKEN_SETTING)
        self._from_file: list[Token] = []
        self._from_cloud: list[Token] = []
        self.read_file()

    def best(self) -> Token | None:
        """The token to use; `None` where none can serve."""
        usable = [token for token in self._all() if self.fault_of(token) is None]
        return min(usable, key=self._doubts, default=None)

    def is_doubtful(self, best: Token | None) -> bool:
        """Whether no token serves, or only one that the gateway has refused before and that is tried again."""
        return best is None or best in self._refused_until

    def fault(self) -> TokenRejected:
        """Why the first token in order can't serve."""
        for reason in self._unreadable.values():
            return TokenRejected(reason)
        found = next(filter(None, map(self.fault_of, self._all())), None)
        return found or TokenRejected(f"there is no token: {PASTE}")

    def add(self, token: Token) -> None:
        """Put a token from the cloud first; the one before stays, for the gateway may refuse the new one."""
        self._from_cloud = [token, *self._from_cloud][:MAX_CLOUD_TOKENS]

    def restore(self, stored: SecretStr) -> None:
        """Add a token of an earlier run. An unusable one is dropped silently, since nobody can mend it."""
        with suppress(TokenRejected):
            self.add(Token.parse(stored.get_secret_value()))

    def refuse(self, token: Token) -> None:
        """Note that the gateway has refused the token: the others come first for a while."""
        known = self._all()
        self._refused_until = {old: until for old, until in self._refused_until.items() if old in known}
        self._refused_until[token] = self._monotonic() + REFUSED_FOR_S

    def accept(self, token: Token) -> None:
        """Note that the gateway has accepted the token."""
        self._refused_until.pop(token, None)

    def read_file(self) -> None:
        """Read the token file again: whoever renews tokens by other means just replaces it."""
        if self._path is None:
            return
        try:
            with ordinary(self._path).open(errors="replace") as file:
                text = SecretStr(file.read(MAX_TOKEN_LETTERS * 2))
        except OSError as error:
            self._unreadable[TOKEN_FILE_SETTING] = (
                f"{TOKEN_FILE_SETTING}: {self._path}: {error.strerror or 'unreadable'}"
            )
        except ValueError as problem:
            self._unreadable[TOKEN_FILE_SETTING] = f"{TOKEN_FILE_SETTING}: {problem}"
        else:
            self._from_file = self._parse(text, TOKEN_FILE_SETTING) or self._from_file

    @property
    def by_origin(self) -> list[tuple[str, Token | str]]:
        """All tokens in order, with the setting that gave each; in place of an unreadable one the reason.

        A token from the cloud has an empty text in place of a setting.
        """
        given = [(TOKEN_SETTING, self._pasted), (TOKEN_FILE_SETTING, self._from_file)]
        found: list[tuple[str, Token | str]] = []
        for setting, tokens in given:
            found += [(setting, token) for token in tokens]
            if setting in self._unreadable and not tokens:
                found.append((setting, self._unreadable[setting].removeprefix(f"{setting}: ")))
        return [*found, *(("", token) for token in self._from_cloud)]

    def fault_of(self, token: Token) -> TokenRejected | None:
        """Why a token can't serve now; `None` where it can."""
        try:
            token.check(self.serial, self._clock())
        except TokenRejected as error:
            return error
        if self._refused_until.get(token, NEVER) > self._monotonic():
            return TokenRejected(f"the gateway refuses the token: {PASTE}")
        return None

    def _all(self) -> list[Token]:
        return [*self._pasted, *self._from_file, *self._from_cloud]

    def _doubts(self, token: Token) -> tuple[bool, bool]:
        """Tokens that were refused before come after all others, or they would cost requests again and again."""
        return token in self._refused_until, token.due(self._clock())

    def _parse(self, text: SecretStr | None, setting: str) -> list[Token]:
        if text is None:
            return []
        try:
            token = Token.parse(text.get_secret_value())
        except TokenRejected as error:
            self._unreadable[setting] = f"{setting}: {error}"
            return []
        self._unreadable.pop(setting, None)
        return [token]
