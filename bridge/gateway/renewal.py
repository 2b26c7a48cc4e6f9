"""When the cloud is asked for a new token, and how long it is left alone: it locks and rate-limits."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

from bridge.gateway.cloud import NAME, Cloud
from bridge.gateway.errors import (
    HOUR,
    MINUTE,
    PASTE,
    Blocked,
    CloudRejected,
    CloudUnavailable,
    MultiFactor,
    NotOnAccount,
    TokenRejected,
    WrongPassword,
)
from bridge.gateway.shelf import Now, Shelf
from bridge.gateway.token import Token
from bridge.model import BridgeError

LOG = logging.getLogger(__name__)
NEVER = float("-inf")
PAUSES = (MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR)
"""between attempts at the cloud, until the gateway takes a token that came of one"""
PROVED_TWICE = 15 * MINUTE
"""A second token at once is reasonable (the first was revoked), a third one within this time is not."""
REST = HOUR
"""A cloud whose tokens are always due must not be asked at each tick."""


AFTER_RESTART = 15 * MINUTE
"""A cloud that failed before a restart is left alone no longer: whoever restarts wants to see something happen."""
Kept = Mapping[str, str | float | None]


class Pause:
    """The rhythm of the attempts. One counts as failed from its start until its token is proved."""

    def __init__(self, monotonic: Now, jitter: Now = random.random) -> None:
        self._monotonic = monotonic
        self._jitter = jitter
        self._attempts = 0
        self._began = self._before = self._until = NEVER
        self._proved = False

    @property
    def over(self) -> bool:
        return self._monotonic() >= self._until

    @property
    def rested(self) -> bool:
        """Whether a token that still serves may be renewed."""
        return self.over and not (self._proved and self._monotonic() < self._began + REST)

    @property
    def attempts(self) -> int:
        """Since a token was last proved."""
        return self._attempts

    @property
    def left(self) -> float:
        """Seconds until it is over."""
        return max(0.0, self._until - self._monotonic())

    def resume(self, attempts: int, seconds: float) -> None:
        """As it was in an earlier run."""
        self._attempts, self._until = attempts, self._monotonic() + seconds

    def begin(self) -> None:
        """Counts here and not at the end: an attempt that is cut off must not come again at the next tick."""
        self._before, self._began, self._proved = self._began, self._monotonic(), False
        self.at_least(PAUSES[min(self._attempts, len(PAUSES) - 1)])
        self._attempts += 1

    def at_least(self, seconds: float) -> None:
        self._until = max(self._until, self._monotonic() + seconds * (1 + self._jitter() / 4))

    def proved(self) -> None:
        """The gateway took the new token."""
        self._attempts, self._proved = 0, True
        self._until = self._before + PROVED_TWICE


class Renewal:
    """Puts new tokens on the shelf, one attempt at a time. `trouble` is why the last one failed.

    `on_pause` is called with what must outlive a restart, lest a bridge that is restarted again and again get the
    account locked; `recall` takes it back.
    """

    def __init__(
        self,
        cloud: Cloud,
        shelf: Shelf,
        on_new_token: Callable[[Token], None],
        on_pause: Callable[[Kept], None],
        *,
        clock: Now,
        monotonic: Now,
    ) -> None:
        self.trouble: BridgeError | None = None
        self._cloud = cloud
        self._shelf = shelf
        self._on_new_token, self._on_pause = on_new_token, on_pause
        self._clock = clock
        self._pause = Pause(monotonic)
        self._attempt: asyncio.Task[None] | None = None
        self._unproved: Token | None = None
        self._told = ""

    def recall(self, kept: object) -> None:
        """What an earlier run has met; nothing where the settings have changed since."""
        if not isinstance(kept, Mapping) or self._attempt or kept.get("account") != self._cloud.mark:
            return
        why, until, longest, attempts = (kept.get(name) for name in ("why", "until", "seconds", "attempts"))
        seconds = float("inf")
        if isinstance(until, int | float) and isinstance(longest, int | float):
            seconds = max(0.0, min(until - self._clock(), longest))
        self.trouble = _refusal(why, self._shelf.serial)
        if self.trouble is None:
            self.trouble = CloudUnavailable(f"{NAME} gave no token before the restart: trying again later")
            seconds = min(seconds, AFTER_RESTART)
        self._pause.resume(attempts if isinstance(attempts, int) else 1, seconds)

    def _keep(self) -> None:
        left = self._pause.left
        lasts = left == float("inf")
        why = type(self.trouble).__name__ if self.trouble else None
        self._on_pause(
            {
                "account": self._cloud.mark,
                "why": why,
                "until": None if lasts else round(self._clock() + left),
                "seconds": None if lasts else round(left),
                "attempts": self._pause.attempts,
            }
        )

    async def run(self) -> None:
        """Starts an attempt if the pause is over; it is waited for only where no token serves meanwhile."""
        urgent = self._shelf.lacking
        if self._attempt is None or self._attempt.done():
            if not (self._pause.over if urgent else self._pause.rested):
                return
            self._attempt = asyncio.create_task(self._ask(), name="token renewal")
        if urgent:
            await self._wait(self._attempt)

    async def _wait(self, attempt: asyncio.Task[None]) -> None:
        """Whoever waits may give up, the login goes on; a slow cloud must not pass for a slow gateway."""
        try:
            async with asyncio.timeout(self._cloud.patience):
                await asyncio.shield(attempt)
        except TimeoutError:
            if self._shelf.best() is None:
                raise CloudUnavailable(f"{NAME} has not answered yet: still waiting for a token") from None

    def accepted(self, token: Token) -> None:
        if token == self._unproved:
            self._unproved = self.trouble = None
            self._told = ""
            self._pause.proved()
            self._on_pause({})

    def refused(self, token: Token) -> None:
        if token == self._unproved:
            self._unproved = None
            self._failed(TokenRejected(f"the gateway refuses even a new token: check its clock, or {PASTE}"))

    async def aclose(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])

    async def _ask(self) -> None:
        self._pause.begin()
        try:
            token = await self._cloud.token(self._shelf.serial)
            token.check(self._shelf.serial, self._clock())
        except BridgeError as error:
            self._failed(error)
            return
        LOG.info("new token from Enphase's cloud, valid until %s", token.expires.isoformat())
        self.trouble, self._unproved = None, token
        self._shelf.add(token)
        self._on_new_token(token)

    def _failed(self, error: BridgeError) -> None:
        if isinstance(error, CloudRejected):
            self._pause.at_least(error.pause)
        known, self._told = self._told, str(error)
        told = known == self._told or self._shelf.best() is None  # then whoever wanted the token tells it
        LOG.log(logging.DEBUG if told else logging.WARNING, "no new token: %s", error)
        error.__context__ = None  # it holds the request, and that holds the password
        self.trouble = error.with_traceback(None)
        self._keep()


def _refusal(why: object, serial: str) -> CloudRejected | None:
    """The refusal of that name."""
    match why:
        case "WrongPassword":
            return WrongPassword()
        case "MultiFactor":
            return MultiFactor()
        case "Blocked":
            return Blocked()
        case "NotOnAccount":
            return NotOnAccount(serial)
        case _:
            return None
