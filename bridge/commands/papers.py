"""A gateway's tokens in people's words. The token itself is never shown."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import SecretStr

from bridge.config import GatewaySettings
from bridge.gateway import Token, TokenRejected
from bridge.gateway.shelf import FILE, PASTED
from bridge.gateway.token import MAX_LENGTH

MINUTE, HOUR, DAY = 60, 3600, 86_400
STORE = "the state folder"
ACCOUNT = "the Enphase account, just now"


@dataclass(frozen=True, slots=True)
class Paper:
    """A token and where it comes from, or why it can't be read."""

    source: str
    token: Token | None
    problem: str = ""

    def fault(self, serial: str) -> str:
        """Why the gateway of this serial number would refuse it; nothing where it would not."""
        if self.token is None:
            return self.problem
        try:
            self.token.check(serial, time.time())
        except TokenRejected as error:
            return str(error)
        return ""


def at_hand(own: GatewaySettings, stored: SecretStr | None) -> list[Paper]:
    """All of one gateway, in the order in which they are used."""
    return [_read(source, text) for source, text in _texts(own, stored)]


def source_of(token: Token, papers: list[Paper]) -> str:
    return next((paper.source for paper in papers if paper.token == token), ACCOUNT)


def described(token: Token) -> str:
    return f"role {token.role or 'unknown'}, {left(token)} (until {token.expires:%Y-%m-%d})"


def left(token: Token) -> str:
    seconds = token.expires.timestamp() - time.time()
    span = _span(abs(seconds))
    return f"{span} left" if seconds > 0 else f"expired {span} ago"


def fingerprint(token: Token) -> str:
    """Enough to tell two tokens apart, and nothing to find one by."""
    return hashlib.sha256(token.secret.get_secret_value().encode()).hexdigest()[:8]


def _span(seconds: float) -> str:
    if seconds >= 2 * DAY:
        return f"{seconds / DAY:.0f} days"
    return f"{seconds / HOUR:.0f} hours" if seconds >= 2 * HOUR else f"{seconds / MINUTE:.0f} minutes"


def _texts(own: GatewaySettings, stored: SecretStr | None) -> Iterator[tuple[str, SecretStr | OSError]]:
    if own.token is not None:
        yield PASTED, own.token
    if own.token_file is not None:
        try:
            with own.token_file.open(errors="replace") as file:
                yield FILE, SecretStr(file.read(2 * MAX_LENGTH))
        except OSError as error:
            yield FILE, error
    if stored is not None:
        yield STORE, stored


def _read(source: str, text: SecretStr | OSError) -> Paper:
    if isinstance(text, OSError):
        return Paper(source, None, f"{text.filename}: {text.strerror or 'unreadable'}")
    try:
        return Paper(source, Token.parse(text.get_secret_value()))
    except TokenRejected as error:
        return Paper(source, None, str(error))
