"""The gateways that are polled: they come and go with the owner's list, and with other bridges."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

from bridge.config import GatewaySettings
from bridge.model import BadSetting
from bridge.service.poller import Poller
from bridge.service.rivals import Rivals

LOG = logging.getLogger(__name__)
FAULT_FIRST, FAULT_LAST = 10, 900
"""Seconds until a poller that met a fault of ours starts again."""
GRACE = 5.0
"""Seconds that a bridge may be away before another one takes its gateways: a restart takes less."""

Make = Callable[[GatewaySettings], Poller]
Withdraw = Callable[[Poller, bool], None]
"""What has been published of a gateway is no longer ours; `True` if its last words are still to be sent."""


@dataclass(slots=True)
class _Post:
    """One gateway. `rival` is the bridge that polls it in our place."""

    settings: GatewaySettings
    poller: Poller
    rival: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Roster:
    """A poller for each gateway; none of them touches another one."""

    def __init__(self, make: Make, withdraw: Withdraw, inform: Callable[[], None], rivals: Rivals) -> None:
        self._make, self._withdraw, self._inform, self._rivals = make, withdraw, inform, rivals
        self._posts: dict[GatewaySettings, _Post] = {}
        self._left: list[_Post] = []
        self._news = asyncio.Event()

    @property
    def pollers(self) -> Sequence[Poller]:
        """Those at work."""
        return [post.poller for post in self._posts.values() if post.rival is None]

    @property
    def standing_by(self) -> Mapping[str, str]:
        """By serial number, the bridge that polls in our place."""
        return {post.poller.serial or "": post.rival for post in self._posts.values() if post.rival is not None}

    def __len__(self) -> int:
        return len(self._posts)

    def want(self, gateways: Iterable[GatewaySettings]) -> None:
        """From now on these. Those that were there already notice nothing.

        Raises:
            BadSetting: one of them can't be polled; all stays as it was.
        """
        wanted = dict.fromkeys(gateways)
        new = {gateway: _Post(gateway, self._make(gateway)) for gateway in wanted if gateway not in self._posts}
        self._left += [post for gateway, post in self._posts.items() if gateway not in wanted]
        self._posts = {gateway: new.get(gateway) or self._posts[gateway] for gateway in wanted}
        self._news.set()

    async def run(self) -> None:
        """Poll for ever."""
        await self._rivals.known()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._news.clear()
                await self._dismiss()
                for post in self._posts.values():
                    if post.task is None:
                        post.task = tasks.create_task(self._serve(post), name=f"poller {post.poller.host}")
                self._inform()
                await self._news.wait()

    def leave(self) -> None:
        """Nobody polls any more: nothing is fresh."""
        for poller in self.pollers:
            poller.leave()

    async def aclose(self) -> None:
        for post in (*self._posts.values(), *self._left):
            await post.poller.aclose()

    async def _dismiss(self) -> None:
        while self._left:
            post = self._left[0]
            if post.task is not None:
                await _ended(post.task)
            if post.rival is None:
                post.poller.leave()
                self._withdraw(post.poller, True)
            await post.poller.aclose()
            self._left.remove(post)

    async def _serve(self, post: _Post) -> None:
        while True:
            await self._stand_by(post)
            await self._poll(post)

    async def _stand_by(self, post: _Post) -> None:
        """While another bridge polls this gateway. What it has counted meanwhile is read from the broker then."""
        while rival := self._rivals.ahead(post.poller.serial):
            if post.rival is None:
                LOG.warning(
                    "gateway %s is polled by another bridge already (%s): standing by",
                    post.poller.serial,
                    rival,
                )
            post.rival = rival
            self._inform()
            await self._rivals.change()
            if self._rivals.ahead(post.poller.serial) is None:
                await asyncio.sleep(GRACE)
        if post.rival is not None:
            LOG.info("gateway %s is not polled by %s any more: polling it", post.poller.serial, post.rival)
            post.rival = None
            self._inform()

    async def _poll(self, post: _Post) -> None:
        """Until there is an earlier bridge that does so."""
        work = asyncio.create_task(_supervised(post.poller))
        try:
            while self._rivals.ahead(post.poller.serial) is None:
                change = asyncio.create_task(self._rivals.change())
                try:
                    await asyncio.wait({work, change}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
                if work.done():
                    work.result()
        finally:
            await _ended(work)
        self._withdraw(post.poller, False)
        await self._relieve(post)

    async def _relieve(self, post: _Post) -> None:
        """The next turn is a new poller's: what this one has counted is out of date then."""
        before = post.poller
        before.save()
        try:
            post.poller = self._make(post.settings)
        except BadSetting as problem:  # its token file may have gone
            LOG.error("%s: %s", before.host, problem)  # noqa: TRY400 - one line
        else:
            await before.aclose()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait({task})


async def _supervised(poller: Poller) -> None:
    """A fault of ours in one gateway's poller must not end the others; only cancelling ends it."""

    def log(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        LOG.error("fault while polling %s; starting anew", poller.host, exc_info=error)
        poller.pulse.rest(state.upcoming_sleep)

    policy = AsyncRetrying(
        stop=stop_never,
        wait=wait_random_exponential(multiplier=FAULT_FIRST, max=FAULT_LAST),
        retry=retry_if_exception_type(Exception),
        reraise=True,
        before_sleep=log,
    )
    await policy(poller.run)
