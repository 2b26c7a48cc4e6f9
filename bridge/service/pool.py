"""Decides which gateways this bridge polls, and runs a poller for each of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

from bridge.model import NEVER, BadSetting
from bridge.service.peers import Peers
from bridge.service.poller import Poller
from bridge.settings import GatewaySettings

LOG = logging.getLogger(__name__)
FAULT_PAUSE_MIN_S, FAULT_PAUSE_MAX_S = 10, 900
"""Pause until a poller that met a fault in this program starts again; it doubles each time."""
TAKEOVER_GRACE_S, TAKEOVER_GRACE_MAX_S = 5.0, 120.0
"""Time that a bridge may be away before another one takes over its gateways. A restart takes less. It doubles each
time that the bridge comes back within `FLAP_S`: each change asks the gateway for everything."""
FLAP_S = 900.0
"""A bridge that comes back within this time counts as flapping."""
YIELD_S = 1.0
"""Time within which another bridge stops publishing once it has heard this one."""

GATEWAYS_FILE_CHECK_S = 10.0
"""Time between two looks at the file of gateways."""

MakePoller = Callable[[GatewaySettings], Poller]
Withdraw = Callable[[Poller, bool], None]
"""Called when this bridge no longer polls a gateway. The flag tells whether to send its unsent messages first."""


@dataclass(slots=True)
class _Entry:
    """One entry in the list of gateways. `task` runs its poller.

    `owner` names who polls the gateway instead: another bridge, or another entry. `None`: this entry polls it.

    `taken_at` is when it was taken over last (the loop's time), `grace` how long `owner` may be away.
    """

    settings: GatewaySettings
    poller: Poller
    owner: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    taken_at: float = NEVER
    grace: float = TAKEOVER_GRACE_S


class _Owners:
    """Tells who polls a gateway in place of an entry: another bridge, or another entry with the same gateway.

    Several entries may be addresses of one gateway. The first one whose serial number is known polls it.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._first: dict[str, _Entry] = {}
        self.outdated: set[str] = set()
        """Gateways that another bridge has polled while this one was away: what this one knows is out of date."""

    async def poll(self, entry: _Entry) -> None:
        """Poll until somebody else polls this gateway, or what this bridge knows of it is out of date."""
        if entry.poller.serial in self.outdated:
            self.outdated.remove(entry.poller.serial)
            await asyncio.sleep(YIELD_S)
        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(_supervised(entry.poller))
            while self.of(entry) is None and entry.poller.serial not in self.outdated:
                await self._peers.wait_for_change()
            polling.cancel()

    def of(self, entry: _Entry) -> str | None:
        """Who polls the gateway in place of this entry; `None` if nobody does."""
        twin = self.twin_of(entry)
        return f"this bridge at {twin}" if twin else self._peers.owner_of(entry.poller.serial)

    def twin_of(self, entry: _Entry) -> str | None:
        """The address of the entry that polls the same gateway; `None` if there is none."""
        serial = entry.poller.serial
        if serial is None:
            return None
        first = self._first.get(serial, entry)
        if first.poller.serial != serial:
            first = entry
        self._first[serial] = first
        return None if first is entry else first.poller.host

    def keep(self, entries: Iterable[_Entry]) -> None:
        """Forget all but these entries."""
        kept = {id(entry) for entry in entries}
        self._first = {serial: entry for serial, entry in self._first.items() if id(entry) in kept}

    def set(self, entry: _Entry, owner: str | None) -> None:
        """Note who polls the gateway in place of this entry, and log it where that begins or ends."""
        serial, before, entry.owner = entry.poller.serial, entry.owner, owner
        now = asyncio.get_running_loop().time()
        if owner is None:
            entry.taken_at = now
            text = "gateway %s is not polled by %s any more: polling it"
            LOG.info(text, serial, before, extra={"event": "taking_over"})
            return
        if before is not None:
            return
        is_flapping = now - entry.taken_at < FLAP_S
        entry.grace = min(TAKEOVER_GRACE_MAX_S, 2 * entry.grace) if is_flapping else TAKEOVER_GRACE_S
        text, args = "gateway %s is polled by another bridge already (%s): standing by", [serial, owner]
        if twin := self.twin_of(entry):
            text = "%s is gateway %s, which is polled at %s already: remove one of the two from the settings"
            args = [entry.poller.host, serial, twin]
        LOG.warning(text, *args, extra={"event": "standing_by"})


class GatewayPool:
    """A poller for each gateway. A fault in one of them does not affect the others."""

    def __init__(
        self, make_poller: MakePoller, withdraw: Withdraw, on_change: Callable[[], None], peers: Peers
    ) -> None:
        """`on_change` is called when `pollers` or `standing_by` may have changed."""
        self._make_poller, self._withdraw, self._on_change, self._peers = make_poller, withdraw, on_change, peers
        self._entries: dict[GatewaySettings, _Entry] = {}
        self._owners = _Owners(peers)
        self._removed: list[_Entry] = []
        self._changed = asyncio.Event()

    @property
    def pollers(self) -> Sequence[Poller]:
        """The pollers of the gateways that nobody else polls."""
        return [entry.poller for entry in self._entries.values() if entry.owner is None]

    @property
    def standing_by(self) -> Mapping[str, str]:
        """By serial number, the gateways that another bridge or another entry polls, and which."""
        return {
            entry.poller.serial or "": entry.owner for entry in self._entries.values() if entry.owner is not None
        }

    @property
    def by_serial(self) -> Mapping[str, GatewaySettings]:
        """The gateways of which the serial number is known, whoever polls them."""
        polled_last = sorted(self._entries.values(), key=lambda entry: entry.owner is None)
        return {serial: entry.settings for entry in polled_last if (serial := entry.poller.serial)}

    def set_gateways(self, gateways: Iterable[GatewaySettings]) -> None:
        """Replace the list of gateways. The pollers of those that stay are not disturbed.

        Raises:
            BadSetting: a gateway can't be polled. Then nothing has changed.
        """
        wanted = dict.fromkeys(gateways)
        added = [gateway for gateway in wanted if gateway not in self._entries]
        new = {gateway: _Entry(gateway, self._make_poller(gateway)) for gateway in added}
        self._removed += [entry for gateway, entry in self._entries.items() if gateway not in wanted]
        self._entries = {gateway: new.get(gateway) or self._entries[gateway] for gateway in wanted}
        self._owners.keep(self._entries.values())
        self._changed.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        await self._peers.wait_until_known()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._peers.run(), name="peers")
            while True:
                self._changed.clear()
                await self._stop_removed()
                self._peers.notify()
                for entry in self._entries.values():
                    if entry.task is None:
                        entry.task = tasks.create_task(self._serve(entry), name=f"poller {entry.poller.host}")
                self._on_change()
                await self._changed.wait()

    def renew(self, serials: Collection[str]) -> None:
        """Begin anew with gateways that another bridge has polled meanwhile, from what it has published."""
        text = "other bridges have polled %d gateways meanwhile: continuing from what they have published"
        LOG.info(text, len(serials), extra={"event": "returned"})
        self._owners.outdated.update(serials)
        self._peers.notify()

    def stop(self) -> None:
        """Publish that no gateway is polled any more. Call it when `run` has ended."""
        for poller in self.pollers:
            _end(poller, "the bridge was stopped")

    async def aclose(self) -> None:
        """Close the connections to all gateways."""
        for entry in (*self._entries.values(), *self._removed):
            await entry.poller.aclose()

    async def _stop_removed(self) -> None:
        while self._removed:
            entry = self._removed[0]
            if entry.task is not None:
                entry.task.cancel()
                await asyncio.wait({entry.task})
            if entry.owner is None:
                _end(entry.poller, "the gateway has left the settings")
                self._withdraw(entry.poller, True)
            await entry.poller.aclose()
            self._removed.remove(entry)

    async def _serve(self, entry: _Entry) -> None:
        while True:
            await self._stand_by(entry)
            await self._owners.poll(entry)
            if self._owners.twin_of(entry) is None:  # otherwise the topics are those of the other entry
                self._withdraw(entry.poller, False)
            await self._replace_poller(entry)

    async def _stand_by(self, entry: _Entry) -> None:
        """Wait while somebody else polls this gateway."""
        while owner := self._owners.of(entry):
            self._owners.set(entry, owner)
            self._on_change()
            await self._peers.wait_for_change()
            if self._owners.of(entry) is None:
                await asyncio.sleep(entry.grace)
        if entry.owner is not None:
            self._owners.set(entry, None)
            self._on_change()

    async def _replace_poller(self, entry: _Entry) -> None:
        """Make a new poller for the next time, since the counters of the old one are out of date by then."""
        old = entry.poller
        _hand_over(old)
        try:
            entry.poller = self._make_poller(entry.settings)
        except BadSetting as problem:  # its token file may be gone
            LOG.error("%s: %s", old.host, problem)  # noqa: TRY400 - one line
        else:
            await old.aclose()


def _end(poller: Poller, why: str) -> None:
    """Publish that a gateway is polled no more, and what has become of its commands."""
    poller.commander.stop(why)
    poller.output.stop()


def _hand_over(poller: Poller) -> None:
    """Save what is known of a gateway that another bridge polls now."""
    poller.commander.stop("another bridge polls the gateway")
    poller.output.save()


async def _supervised(poller: Poller) -> None:
    """Run a poller, and start it again after a fault in this program. Only cancelling ends it."""

    def log(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        extra = {"gateway": poller.host, "event": "fault"}
        LOG.error("fault while polling %s; starting again", poller.host, exc_info=error, extra=extra)
        if error is not None:
            poller.output.note_fault(error)
        poller.watchdog.idle(state.upcoming_sleep)

    policy = AsyncRetrying(
        stop=stop_never,
        wait=wait_random_exponential(multiplier=FAULT_PAUSE_MIN_S, max=FAULT_PAUSE_MAX_S),
        retry=retry_if_exception_type(Exception),
        reraise=True,
        before_sleep=log,
    )
    await policy(poller.run)


async def changes(file: Path) -> AsyncIterator[None]:
    """Yield once at first, and then whenever the file has changed."""
    seen: object = None
    while True:
        await asyncio.sleep(GATEWAYS_FILE_CHECK_S)
        stamp = _stamp(file)
        if stamp != seen:
            seen = stamp
            yield


def _stamp(file: Path) -> tuple[int, ...]:
    """A value that changes with the file, also if a link is changed to point to another file, as in Kubernetes."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
