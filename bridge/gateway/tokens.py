"""When a new token is fetched, and what is said about it. The old token serves until a better one is there."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from pydantic import SecretStr

from bridge.config import GatewaySettings
from bridge.gateway.cloud import Cloud
from bridge.gateway.errors import HOUR, MINUTE, PASTE, CloudRejected, TokenRejected
from bridge.gateway.shelf import Now, Shelf
from bridge.gateway.token import Token
from bridge.model import BridgeError, Unavailable

LOG = logging.getLogger(__name__)
PAUSES = (MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR)
"""between attempts at the cloud, until the gateway takes a token that came of one"""
AFTER_SUCCESS = 15 * MINUTE


class Pause:
    """How long the cloud is left alone: it locks and rate-limits."""

    def __init__(self, monotonic: Now, jitter: Now = random.random) -> None:
        self._monotonic = monotonic
        self._jitter = jitter
        self._attempts = 0
        self._until = float("-inf")

    @property
    def over(self) -> bool:
        return self._monotonic() >= self._until

    def begin(self) -> None:
        """An attempt counts as failed from its start: one that is cut off must not come again at the next tick."""
        self.at_least(PAUSES[min(self._attempts, len(PAUSES) - 1)])
        self._attempts += 1

    def at_least(self, seconds: float) -> None:
        self._until = max(self._until, self._monotonic() + seconds * (1 + self._jitter() / 4))

    def proved(self) -> None:
        """The gateway took the new token. A cloud whose tokens are always due must not be asked at each tick."""
        self._attempts = 0
        self._until = self._monotonic() + AFTER_SUCCESS


class TokenSource:
    """The tokens of one gateway: the current one, renewed when due or refused.

    `on_new_token` is called with each token from the cloud, once it has passed its check.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        cloud: Cloud | None,
        *,
        stored: SecretStr | None = None,
        on_new_token: Callable[[Token], None] | None = None,
        clock: Now = time.time,
        monotonic: Now = time.monotonic,
    ) -> None:
        self._shelf = Shelf(settings, stored, clock, monotonic)
        self._cloud = cloud
        self._on_new_token = on_new_token
        self._clock = clock
        self._pause = Pause(monotonic)
        self._attempt: asyncio.Task[None] | None = None
        self._unproved: Token | None = None
        self._trouble: BridgeError | None = None

    def identify(self, serial: str) -> None:
        """No token is given out before its gateway is known."""
        self._shelf.serial = serial

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
        if self._lacking():
            await self._renew()
        best = self._shelf.best()
        if best is None:
            raise (self._trouble or self._shelf.fault()).with_traceback(None)
        return best

    async def replace(self, refused: Token) -> Token:
        """Another token than the one the gateway refuses. Raises as `current` does."""
        self.refused(refused)
        return await self.current()

    def refused(self, token: Token) -> BridgeError:
        """The gateway refuses it; the error says what that means."""
        self._shelf.refuse(token)
        if token != self._unproved:
            return self._shelf.fault()
        self._unproved = None
        self._failed(TokenRejected(f"the gateway refuses even a new token: check its clock, or {PASTE}"))
        return self._trouble or self._shelf.fault()

    def accepted(self, token: Token) -> None:
        """The gateway took it."""
        self._shelf.accept(token)
        if token == self._unproved:
            self._unproved = self._trouble = None
            self._pause.proved()

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
        if best is None:
            return str(self._trouble or self._shelf.fault()) if self._trouble or not self._cloud else None
        if not best.due(self._clock()):
            return None
        if self._cloud is None:
            return f"the token expires on {best.expires:%Y-%m-%d}: {PASTE}"
        return f"{self._trouble} (the token serves until {best.expires:%Y-%m-%d})" if self._trouble else None

    async def aclose(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            with suppress(asyncio.CancelledError):
                await self._attempt

    def _lacking(self) -> bool:
        best = self._shelf.best()
        return best is None or best.due(self._clock())

    async def _renew(self) -> None:
        """One attempt at a time. It is waited for only where no token is left to serve meanwhile."""
        if self._cloud is None:
            return
        if self._attempt is None or self._attempt.done():
            if not self._pause.over:
                return
            self._attempt = asyncio.create_task(self._ask(self._cloud), name="token renewal")
        if self._shelf.best() is None:
            await asyncio.shield(self._attempt)  # whoever waits may give up, the login goes on

    async def _ask(self, cloud: Cloud) -> None:
        self._pause.begin()
        try:
            token = await cloud.token(self._shelf.serial)
            token.check(self._shelf.serial, self._clock())
        except BridgeError as error:
            self._failed(error)
            return
        LOG.info("new token from Enphase's cloud, valid until %s", token.expires.isoformat())
        self._trouble, self._unproved = None, token
        self._shelf.add(token)
        if self._on_new_token is not None:
            self._on_new_token(token)

    def _failed(self, error: BridgeError) -> None:
        if isinstance(error, CloudRejected):
            self._pause.at_least(error.pause)
        repeated = self._trouble is not None and str(error) == str(self._trouble)
        LOG.log(logging.DEBUG if repeated else logging.WARNING, "no new token: %s", error)
        error.__context__ = None  # it holds the request, and that holds the password
        self._trouble = error.with_traceback(None)
