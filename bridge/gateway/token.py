"""A gateway token: a JWT that only the gateway can and need verify. Here it is read, never trusted."""

import base64
import binascii
import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import SecretStr

from bridge.gateway.errors import PASTE, TokenRejected

MAX_LENGTH = 8192
OWNER_LIFE, INSTALLER_LIFE = timedelta(days=365), timedelta(hours=12)
LAST_SHARE = 10
"""renewed when a tenth of its life is left: an owner's about a month, an installer's about an hour before"""


@dataclass(frozen=True, slots=True)
class Token:
    """Neither `repr` nor `str` shows the token itself."""

    secret: SecretStr = field(repr=False)
    serials: tuple[str, ...]
    issued: datetime
    expires: datetime
    role: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what people paste: the token, `Bearer` and the token, or the JSON of `entrez-auth-token`.

        Raises:
            TokenRejected: it is no token.
        """
        try:
            text = _bare(text)
            claims = _claims(text)
            expires = _time(claims["exp"])
            role = _word(claims.get("enphaseUser"))
            life = INSTALLER_LIFE if role == "installer" else OWNER_LIFE
            issued = _time(claims["iat"]) if "iat" in claims else expires - life
            return cls(SecretStr(text), _serials(claims.get("aud")), issued, expires, role)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, OSError):
            raise TokenRejected(f"this is not a token (three parts joined by dots): {PASTE}") from None

    @property
    def bearer(self) -> str:
        return f"Bearer {self.secret.get_secret_value()}"

    @property
    def renew_at(self) -> datetime:
        return self.expires - (self.expires - self.issued) / LAST_SHARE

    def due(self, now: float) -> bool:
        return now >= self.renew_at.timestamp()

    def check(self, serial: str, now: float) -> None:
        """Raises TokenRejected where the gateway `serial` would have to refuse this token."""
        if serial.upper() not in map(str.upper, self.serials):
            other = ", ".join(self.serials) or "unknown"
            raise TokenRejected(f"the token is for gateway {other}, this one is {serial}: {PASTE}")
        if now >= self.expires.timestamp():
            raise TokenRejected(f"the token expired on {self.expires:%Y-%m-%d}: {PASTE}")


MARK = "\ufeff"
"""What some editors put before a text."""


def _bare(text: str) -> str:
    text = text[: 2 * MAX_LENGTH].removeprefix(MARK).strip()
    if text.startswith("{"):
        text = str(json.loads(text)["token"]).strip()
    return text.removeprefix("Bearer ").strip().strip("\"'")


def _claims(text: str) -> dict[str, object]:
    if len(text) > MAX_LENGTH or not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", text, re.ASCII):
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
    return tuple(filter(None, map(_word, values[:8])))


def _word(value: object) -> str:
    """Claims are anybody's: only what looks like a serial or a role may reach a log or a topic."""
    text = str(value).strip() if isinstance(value, str | int) else ""
    return text if re.fullmatch(r"[A-Za-z0-9_-]{1,32}", text) else ""
