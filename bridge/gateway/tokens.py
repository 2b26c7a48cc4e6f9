"""Which token serves a gateway now, when the cloud is asked for a new one, and what is said about it.

`Renewal` asks Enphase's cloud, seldom: it locks and rate-limits accounts. `TokenSource` gives out the best of the
tokens in the cache; the old token serves until a better one is there.
"""

import asyncio
import logging
import random
import time
from datetime import datetime
from typing import Protocol

from pydantic import SecretStr

from bridge.gateway.cloud import CLOUD_NAME, Cloud
from bridge.gateway.errors import (
    PASTE,
    REFUSALS,
    CloudRejected,
    CloudUnavailable,
    NotOnAccount,
    TokenRejected,
)
from bridge.gateway.token import Clock, Token, TokenCache
from bridge.model import HOUR_S, MINUTE_S, NEVER, BridgeError, Unavailable
from bridge.settings import GatewaySettings
from bridge.state import CloudPause

LOG = logging.getLogger(__name__)
CLOUD_PAUSES_S = (MINUTE_S, 5 * MINUTE_S, 15 * MINUTE_S, 30 * MINUTE_S, HOUR_S, 2 * HOUR_S, 4 * HOUR_S)
"""Seconds between attempts at the cloud, until the gateway accepts a token that came of one."""
SECOND_TOKEN_AFTER_S = 15 * MINUTE_S
"""A second token at once is reasonable (the first was revoked), a third one within this time is not."""
EARLY_RENEWAL_AFTER_S = HOUR_S
"""A cloud whose tokens are always due must not be asked at each poll."""
PAUSE_AFTER_RESTART_MAX_S = 15 * MINUTE_S
"""Longest pause after a restart, whatever failed before it: whoever restarts wants to see something happen."""


class TokenStore(Protocol):
    """Where tokens and pauses of the cloud outlive the process, by the gateway's serial number."""

    def load_tokens(self, serial: str) -> tuple[SecretStr | None, CloudPause | None]:
        """The last token from the cloud, and why the cloud is left alone, if it is."""

    def save_token(self, serial: str, token: SecretStr) -> None:
        """Keep a new token, once it has passed its check."""

    def save_pause(self, serial: str, pause: CloudPause | None) -> None:
        """Keep the pause after an attempt at the cloud; `None` once a token of it is accepted."""


class Backoff:
    """The pauses between attempts at the cloud. An attempt counts as failed until its token is accepted."""

    def __init__(self, monotonic: Clock, jitter: Clock = random.random) -> None:
        self._monotonic = monotonic
        self._jitter = jitter
        self.attempts = 0
        """Attempts since a token was last accepted."""
        self._began = self._began_before = self._until = NEVER
        self._succeeded = False

    @property
    def is_over(self) -> bool:
        """Whether a new attempt may be made because no token serves."""
        return self._monotonic() >= self._until

    @property
    def allows_early_renewal(self) -> bool:
        """Whether a token that still serves may be renewed."""
        recent = self._succeeded and self._monotonic() < self._began + EARLY_RENEWAL_AFTER_S
        return self.is_over and not recent

    @property
    def seconds_left(self) -> float:
        """Seconds until the pause is over."""
        return max(0.0, self._until - self._monotonic())

    def restore(self, attempts: int, seconds: float) -> None:
        """Go on with the attempts of an earlier run, and with so many seconds of its pause."""
        self.attempts, self._until = attempts, self._monotonic() + seconds

    def begin(self) -> None:
        """Count an attempt when it begins: one that is cut off must not come again at the next poll."""
        self._began_before, self._began, self._succeeded = self._began, self._monotonic(), False
        self.at_least(CLOUD_PAUSES_S[min(self.attempts, len(CLOUD_PAUSES_S) - 1)])
        self.attempts += 1

    def at_least(self, seconds: float) -> None:
        """Wait no less than this, and up to a quarter longer, so that many bridges do not come back together."""
        self._until = max(self._until, self._monotonic() + seconds * (1 + self._jitter() / 4))

    def succeed(self) -> None:
        """Note that the gateway has accepted the new token."""
        self.attempts, self._succeeded = 0, True
        self._until = self._began_before + SECOND_TOKEN_AFTER_S


class Renewal:
    """Adds tokens from the cloud to the cache, one attempt at a time. `trouble` is why the last attempt failed.

    The pause after an attempt is kept in the store: otherwise a bridge that is restarted again and again could get
    the account locked.
    """

    def __init__(
        self, cloud: Cloud, cache: TokenCache, store: TokenStore | None, *, clock: Clock, monotonic: Clock
    ) -> None:
        self.trouble: BridgeError | None = None
        self._cloud, self._cache, self._store = cloud, cache, store
        self._clock = clock
        self._backoff = Backoff(monotonic)
        self._attempt: asyncio.Task[None] | None = None
        self._unproved: Token | None = None
        self._logged = ""

    def restore(self, pause: CloudPause) -> None:
        """Go on with the pause of an earlier run, unless account or password have changed since."""
        if self._attempt or pause.account != self._cloud.account_mark:
            return
        seconds = float("inf")
        if pause.until is not None and pause.seconds is not None:
            seconds = max(0.0, min(pause.until - self._clock(), pause.seconds))
        self.trouble = _refusal(pause.why, self._cache.serial)
        if self.trouble is None:
            self.trouble = CloudUnavailable(f"{CLOUD_NAME} gave no token before the restart: trying again later")
            seconds = min(seconds, PAUSE_AFTER_RESTART_MAX_S)
        self._backoff.restore(pause.attempts, seconds)

    async def run(self) -> None:
        """Start an attempt if the pause is over. It is waited for only where no token serves meanwhile.

        Raises:
            CloudUnavailable: no token serves, and the cloud is slow; the attempt goes on.
        """
        is_urgent = self._cache.is_doubtful(self._cache.best())
        if self._attempt is None or self._attempt.done():
            if not (self._backoff.is_over if is_urgent else self._backoff.allows_early_renewal):
                return
            self._attempt = asyncio.create_task(self._ask(), name="token renewal")
        if is_urgent:
            await self._wait(self._attempt)

    async def _wait(self, attempt: asyncio.Task[None]) -> None:
        """Wait for a while; a slow cloud must not pass for a slow gateway, and the login goes on."""
        done, _ = await asyncio.wait([attempt], timeout=self._cloud.request_wait_s)
        for finished in done:
            finished.result()
        if not done and self._cache.best() is None:
            raise CloudUnavailable(f"{CLOUD_NAME} has not answered yet: still waiting for a token")

    def accepted(self, token: Token) -> None:
        """The gateway has accepted a token. If it is the new one, the attempt has succeeded."""
        if token == self._unproved:
            self._unproved = self.trouble = None
            self._logged = ""
            self._backoff.succeed()
            if self._store:
                self._store.save_pause(self._cache.serial, None)

    def refused(self, token: Token) -> None:
        """The gateway has refused a token. If it is the new one, the attempt has failed."""
        if token == self._unproved:
            self._unproved = None
            self._fail(TokenRejected(f"the gateway refuses even a new token: check its clock, or {PASTE}"))

    async def aclose(self) -> None:
        """Cancel the attempt that is under way."""
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])

    async def _ask(self) -> None:
        self._backoff.begin()
        try:
            token = await self._cloud.token(self._cache.serial)
            token.check(self._cache.serial, self._clock())
        except BridgeError as error:
            self._fail(error)
            return
        LOG.info(
            "new token from Enphase's cloud, valid until %s",
            token.expires.isoformat(),
            extra={"event": "token_renewed"},
        )
        self.trouble, self._unproved = None, token
        self._cache.add(token)
        if self._store:
            self._store.save_token(self._cache.serial, token.secret)

    def _fail(self, error: BridgeError) -> None:
        if isinstance(error, CloudRejected):
            self._backoff.at_least(error.pause_s)
        before, self._logged = self._logged, str(error)
        # Where no token serves, whoever wanted one logs the error.
        is_known = before == self._logged or self._cache.best() is None
        LOG.log(logging.DEBUG if is_known else logging.WARNING, "no new token: %s", error)
        error.__context__ = None  # it holds the request, and that holds the password
        self.trouble = error.with_traceback(None)
        self._save_pause(error)

    def _save_pause(self, trouble: BridgeError) -> None:
        if self._store is None:
            return
        left = self._backoff.seconds_left
        lasts = left == float("inf")
        pause = CloudPause(
            account=self._cloud.account_mark,
            why=type(trouble).__name__,
            until=None if lasts else round(self._clock() + left),
            seconds=None if lasts else round(left),
            attempts=self._backoff.attempts,
        )
        self._store.save_pause(self._cache.serial, pause)


def _refusal(why: str | None, serial: str) -> CloudRejected | None:
    """The refusal of that class name."""
    if why == NotOnAccount.__name__:
        return NotOnAccount(serial)
    kind = next((kind for kind in REFUSALS if kind.__name__ == why), None)
    return kind() if kind else None


class TokenSource:
    """The tokens of one gateway: the current one, renewed when it is due or refused."""

    def __init__(
        self,
        settings: GatewaySettings,
        cloud: Cloud | None,
        *,
        store: TokenStore | None = None,
        serial: str | None = None,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        """`serial` is the gateway that answered here in an earlier run, so that its token is known from the
        start.
        """
        self._clock = clock
        self._store = store
        self._cache = TokenCache(settings, clock, monotonic)
        self._renewal = Renewal(cloud, self._cache, store, clock=clock, monotonic=monotonic) if cloud else None
        self._restored: str | None = None
        if serial:
            self._restore_token(serial)

    def identify(self, serial: str) -> None:
        """Tell which gateway this is. No token is given out before."""
        self._cache.serial = serial
        pause = self._restore_token(serial)
        if self._renewal and pause:
            self._renewal.restore(pause)

    def _restore_token(self, serial: str) -> CloudPause | None:
        token, pause = self._store.load_tokens(serial) if self._store else (None, None)
        if token is not None and self._restored != serial:
            self._cache.restore(token)
        self._restored = serial
        return pause

    async def current(self) -> Token:
        """The token to use; one that is due still serves while the next is fetched.

        Raises:
            Rejected: there is none, and a person must act.
            Unavailable: there is none until the cloud answers.
        """
        if not self._cache.serial:
            raise Unavailable("the gateway has not told its serial number yet")
        best = self._cache.best()
        if self._wants_another(best):
            self._cache.read_file()
            if self._renewal and self._wants_another(self._cache.best()):
                await self._renewal.run()
            best = self._cache.best()
        if best is None:
            raise self._fault().with_traceback(None)
        return best

    async def replace(self, refused: Token) -> Token:
        """Another token than the one that the gateway refuses. Raises as `current` does."""
        self.refused(refused)
        return await self.current()

    def refused(self, token: Token) -> BridgeError:
        """Note that the gateway refuses the token; the error says what that means."""
        self._cache.refuse(token)
        if self._renewal:
            self._renewal.refused(token)
        return self._fault()

    def accepted(self, token: Token) -> None:
        """Note that the gateway accepts the token."""
        self._cache.accept(token)
        if self._renewal:
            self._renewal.accepted(token)

    @property
    def is_set(self) -> bool:
        """Whether there is any token, though it may be of no use."""
        return bool(self._cache.by_origin)

    @property
    def expires(self) -> datetime | None:
        """When the current token expires."""
        best = self._cache.best()
        return best.expires if best else None

    @property
    def role(self) -> str | None:
        """The role of the current token: owner or installer."""
        best = self._cache.best()
        return best.role or None if best else None

    @property
    def problem(self) -> str | None:
        """What a person should know or do, in one line; `None` where all is well."""
        best = self._cache.best()
        trouble = self._renewal.trouble if self._renewal else None
        if best is None:
            is_untried = self._renewal is not None and trouble is None
            return None if is_untried else str(self._fault())
        if not best.due(self._clock()):
            return None
        if self._renewal is None:
            return f"the token expires on {best.expires:%Y-%m-%d}: {PASTE}"
        return f"{trouble} (the token serves until {best.expires:%Y-%m-%d})" if trouble else None

    async def aclose(self) -> None:
        """Stop a renewal that is under way."""
        if self._renewal:
            await self._renewal.aclose()

    def _wants_another(self, best: Token | None) -> bool:
        return best is None or self._cache.is_doubtful(best) or best.due(self._clock())

    def _fault(self) -> BridgeError:
        return (self._renewal and self._renewal.trouble) or self._cache.fault()
