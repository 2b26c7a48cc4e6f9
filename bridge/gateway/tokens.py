"""Which token serves now, and what is said about it. The old one serves until a better one is there."""

import time
from collections.abc import Callable
from datetime import datetime

from pydantic import SecretStr

from bridge.config import GatewaySettings
from bridge.gateway.cloud import Cloud
from bridge.gateway.errors import PASTE
from bridge.gateway.renewal import Kept, Renewal
from bridge.gateway.shelf import Now, Shelf
from bridge.gateway.token import Token
from bridge.model import BridgeError, Unavailable


class TokenSource:
    """The tokens of one gateway: the current one, renewed when due or refused.

    `on_new_token` is called with each token from the cloud, once it has passed its check; `on_pause` with what an
    attempt at the cloud has come to, which `recall` wants back after a restart.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        cloud: Cloud | None,
        *,
        stored: SecretStr | None = None,
        on_new_token: Callable[[Token], None] = lambda _: None,
        on_pause: Callable[[Kept], None] = lambda _: None,
        clock: Now = time.time,
        monotonic: Now = time.monotonic,
    ) -> None:
        self._clock = clock
        self._shelf = Shelf(settings, stored, clock, monotonic)
        self._renewal = (
            Renewal(cloud, self._shelf, on_new_token, on_pause, clock=clock, monotonic=monotonic) if cloud else None
        )

    def identify(self, serial: str) -> None:
        """No token is given out before its gateway is known."""
        self._shelf.serial = serial

    def offer(self, stored: SecretStr) -> None:
        """A token of an earlier run, where the gateway's serial was not known at the start."""
        self._shelf.offer(stored)

    def recall(self, kept: object) -> None:
        """What `on_pause` was last called with in an earlier run."""
        if self._renewal:
            self._renewal.recall(kept)

    async def current(self) -> Token:
        """The token to use; one that is due still serves while the next is fetched.

        Raises:
            Rejected: there is none, and a person must act.
            Unavailable: there is none until the cloud answers.
        """
        if not self._shelf.serial:
            raise Unavailable("the gateway has not told its serial number yet")
        if self._lacking():
            self._shelf.read_file()
        if self._lacking() and self._renewal:
            await self._renewal.run()
        best = self._shelf.best()
        if best is None:
            raise self._fault().with_traceback(None)
        return best

    async def replace(self, refused: Token) -> Token:
        """Another token than the one the gateway refuses. Raises as `current` does."""
        self.refused(refused)
        return await self.current()

    def refused(self, token: Token) -> BridgeError:
        """The gateway refuses it; the error says what that means."""
        self._shelf.refuse(token)
        if self._renewal:
            self._renewal.refused(token)
        return self._fault()

    def accepted(self, token: Token) -> None:
        """The gateway took it."""
        self._shelf.accept(token)
        if self._renewal:
            self._renewal.accepted(token)

    @property
    def expires(self) -> datetime | None:
        best = self._shelf.best()
        return best.expires if best else None

    @property
    def role(self) -> str | None:
        best = self._shelf.best()
        return best.role or None if best else None

    @property
    def problem(self) -> str | None:
        """What a person should know or do, in one line; `None` where all is well."""
        best = self._shelf.best()
        trouble = self._renewal.trouble if self._renewal else None
        if best is None:
            untried = self._renewal is not None and trouble is None
            return None if untried else str(self._fault())
        if not best.due(self._clock()):
            return None
        if self._renewal is None:
            return f"the token expires on {best.expires:%Y-%m-%d}: {PASTE}"
        return f"{trouble} (the token serves until {best.expires:%Y-%m-%d})" if trouble else None

    async def aclose(self) -> None:
        if self._renewal:
            await self._renewal.aclose()

    def _lacking(self) -> bool:
        best = self._shelf.best()
        return best is None or self._shelf.lacking or best.due(self._clock())

    def _fault(self) -> BridgeError:
        return (self._renewal and self._renewal.trouble) or self._shelf.fault()
