"""The tokens at hand: pasted, from a file, and the last ones from the cloud. Which of them serves best?"""

from collections.abc import Callable
from contextlib import suppress

from pydantic import SecretStr

from bridge.config import GatewaySettings
from bridge.gateway.errors import MINUTE, PASTE, TokenRejected
from bridge.gateway.token import MAX_LENGTH, Token

REFUSED_FOR = 5 * MINUTE
"""A gateway that has just started may have a wrong clock and refuse good tokens: they are tried again."""
KEPT = 2
PASTED, FILE = "BRIDGE_GATEWAY__TOKEN", "BRIDGE_GATEWAY__TOKEN_FILE"
Now = Callable[[], float]


class Shelf:
    """Tokens in the owner's order: what was pasted comes first, unless it is due or was refused."""

    def __init__(self, settings: GatewaySettings, stored: SecretStr | None, clock: Now, monotonic: Now) -> None:
        self.serial = settings.serial or ""
        self._clock, self._monotonic = clock, monotonic
        self._refused: dict[Token, float] = {}
        self._unreadable: dict[str, TokenRejected] = {}
        self._path = settings.token_file
        self._pasted = self._read(settings.token, PASTED)
        self._from_file: list[Token] = []
        self._renewed: list[Token] = []
        self.read_file()
        if stored is not None:
            self.offer(stored)

    def best(self) -> Token | None:
        usable = [token for token in self._all() if self._fault(token) is None]
        return min(usable, key=self._doubts, default=None)

    @property
    def lacking(self) -> bool:
        """Whether no token serves beyond doubt: one that was refused is only tried again."""
        best = self.best()
        return best is None or best in self._refused

    def fault(self) -> TokenRejected:
        """Why the first on offer can't serve."""
        found = next(filter(None, map(self._fault, self._all())), None)
        unreadable = next(iter(self._unreadable.values()), None)
        return unreadable or found or TokenRejected(f"there is no token: {PASTE}")

    def add(self, token: Token) -> None:
        """A new token comes first; the one before stays, for the gateway may refuse the new one."""
        self._renewed = [token, *self._renewed][:KEPT]

    def offer(self, stored: SecretStr) -> None:
        """One from an earlier run; if it is unusable nobody can mend it, so that it is not told."""
        with suppress(TokenRejected):
            self.add(Token.parse(stored.get_secret_value()))

    def refuse(self, token: Token) -> None:
        known = self._all()
        self._refused = {old: until for old, until in self._refused.items() if old in known}
        self._refused[token] = self._monotonic() + REFUSED_FOR

    def accept(self, token: Token) -> None:
        self._refused.pop(token, None)

    def read_file(self) -> None:
        """Whoever renews tokens by other means just replaces the file."""
        if self._path is None:
            return
        try:
            with self._path.open(errors="replace") as file:
                text = SecretStr(file.read(MAX_LENGTH * 2))
        except OSError as error:
            reason = f"{FILE}: {self._path}: {error.strerror or 'unreadable'}"
            self._unreadable[FILE] = TokenRejected(reason)
        else:
            self._from_file = self._read(text, FILE) or self._from_file

    def _all(self) -> list[Token]:
        return [*self._pasted, *self._from_file, *self._renewed]

    def _doubts(self, token: Token) -> tuple[bool, bool]:
        """One that was refused before comes after all others, or it would cost requests again and again."""
        return token in self._refused, token.due(self._clock())

    def _fault(self, token: Token) -> TokenRejected | None:
        try:
            token.check(self.serial, self._clock())
        except TokenRejected as error:
            return error
        if self._refused.get(token, float("-inf")) > self._monotonic():
            return TokenRejected(f"the gateway refuses the token: {PASTE}")
        return None

    def _read(self, text: SecretStr | None, setting: str) -> list[Token]:
        if text is None:
            return []
        try:
            token = Token.parse(text.get_secret_value())
        except TokenRejected as error:
            self._unreadable[setting] = TokenRejected(f"{setting}: {error}")
            return []
        self._unreadable.pop(setting, None)
        return [token]
