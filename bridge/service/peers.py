"""Finds the other bridges at the broker, so that no gateway is polled twice: each publishes what it polls."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from bridge.model import NEVER
from bridge.topics import ONLINE, Names

MAX_PEERS, MAX_LISTED = 2_000, 50_000
"""Bridges that are remembered at most, and the gateways that all of them may list: anybody may write to their
topics. Half of each is for those that list a gateway of ours."""
MAX_BRIDGE_TOPIC_LETTERS, MAX_SERIAL_LETTERS, MAX_START_LETTERS = 256, 32, 40
PRESENCE_MAX_S = 60.0
"""Longest time until a bridge repeats its message, so that others know that it still runs."""
PRESENCE_BOUNDS_S = (10.0, 300.0)
"""Bounds of the heartbeat, in seconds, that another bridge may announce."""
SILENT_PERIODS, SILENT_MIN_S = 2.5, 75.0
"""A bridge that is not heard for so many of these times counts as gone. The least time is longer than a bridge
takes to connect again after a restart of the broker."""
AWAY_PERIODS = 1.5
"""Heartbeats between two of our own messages from the broker after which this bridge counts as having been away: it
may have missed messages of others, too."""
INTRODUCTION_S = 2.0
"""Longest time that the first poll waits for the retained messages of other bridges."""
UNKNOWN_START = "9999"
"""Start of a bridge that has not told its own. It sorts behind every known one."""


@dataclass(frozen=True, slots=True)
class Peer:
    """What another bridge has published. Its `started` is ISO 8601, which sorts as text does.

    It was heard last at `heard` (the loop's time), and will be heard again within `every` seconds.
    """

    started: str = UNKNOWN_START
    gateways: frozenset[str] = frozenset()
    online: bool = False
    every: float = PRESENCE_MAX_S
    heard: float = NEVER

    def is_silent(self, now: float) -> bool:
        """Whether it should have been heard by now."""
        return now - self.heard > max(SILENT_MIN_S, SILENT_PERIODS * self.every)


class _PeerTable:
    """The bridges that are known, within limits. `ours` gives the serial numbers of this bridge's gateways."""

    def __init__(self, ours: Callable[[], frozenset[str]]) -> None:
        self._ours = ours
        self._peers: dict[str, Peer] = {}

    def get(self, name: str) -> Peer | None:
        return self._peers.get(name)

    def owners(self, serial: str) -> Iterator[tuple[str, Peer]]:
        """The bridges that poll this gateway, as far as they say."""
        return ((name, peer) for name, peer in self._peers.items() if peer.online and serial in peer.gateways)

    def put(self, name: str, peer: Peer) -> bool:
        """Keep what a bridge has published, if there is room. Returns whether it is news.

        There is always room for a known bridge with the same list. Beyond half of a limit only what concerns our
        gateways is kept.
        """
        known = self._peers.get(name)
        listed = sum(len(other.gateways) for other in self._peers.values()) - len(known.gateways if known else ())
        if known is not None and known.gateways == peer.gateways:
            peer = replace(peer, gateways=known.gateways)
        elif listed + len(peer.gateways) > MAX_LISTED // 2:
            peer = replace(peer, gateways=self._ours() & peer.gateways)
        room = MAX_PEERS if self._ours() & peer.gateways else MAX_PEERS // 2
        if listed + len(peer.gateways) > MAX_LISTED or (known is None and len(self._peers) >= room):
            return False
        self._peers[name] = peer
        return known is None or replace(known, heard=peer.heard) != peer

    def wait_anew(self, now: float) -> None:
        """Measure the silence of all bridges from `now` on."""
        self._peers = {name: replace(peer, heard=now) for name, peer in self._peers.items()}

    def forget_silent(self, now: float) -> bool:
        """Forget the bridges that should have been heard by now. Returns whether there were any."""
        before = len(self._peers)
        self._peers = {name: peer for name, peer in self._peers.items() if not peer.is_silent(now)}
        return len(self._peers) < before


class Takeovers:
    """Collects which of our gateways other bridges claim to poll, from the last echo of our own message on.

    An echo is our own message as it comes back from the broker.
    """

    def __init__(self, ours: Callable[[], frozenset[str]], echo_timeout_s: float) -> None:
        self._ours, self._echo_timeout_s = ours, echo_timeout_s
        self._claimed: frozenset[str] = frozenset()
        self._awaited: asyncio.Event | None = None
        self._comes_back = False

    def add(self, gateways: frozenset[str]) -> None:
        self._claimed |= gateways & self._ours()

    def on_echo(self) -> None:
        self._comes_back = True
        if self._awaited is not None:
            self._awaited.set()
        else:
            self._claimed = frozenset()

    async def until_echo(self) -> frozenset[str]:
        """Wait for the echo of the message that was just sent over a new connection. Returns the claimed gateways.

        The broker delivers what it has of other bridges before the echo. There is no wait if this broker has never
        sent an echo.
        """
        self._awaited = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._echo_timeout_s if self._comes_back else 0.0):
                await self._awaited.wait()
        found, self._claimed, self._awaited = self._claimed, frozenset(), None
        return found


def peer_topics(names: Names) -> Sequence[str]:
    """The topic filters of what bridges publish of themselves."""
    return [f"{place}/{name}" for place in (names.bridges, f"{names.bridges}/+") for name in ("state", "info")]


class Peers:
    """Finds the bridge that may poll a gateway: of those that list it, the one that started first.

    A bridge counts only while it is heard: the broker may have lost its last will, and then keeps a state `online`
    for ever. So each bridge repeats its info, and retained messages are believed only when this bridge connects for
    the first time. How long another one has been silent is checked whenever our own info comes back from the
    broker, which shows that messages arrive. Those that are silent are forgotten.

    Two bridges of one name share their topics. The one that started first publishes its own messages again whenever
    the later one has written there, or has gone offline in the name of both.
    """

    def __init__(
        self,
        names: Names,
        started: str,
        repeat: Callable[..., None],
        *,
        heartbeat: float = PRESENCE_MAX_S,
        introduction: float = INTRODUCTION_S,
        ours: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """`started` is the start of this bridge (ISO 8601), `ours` gives the serial numbers of its gateways.

        `repeat` publishes the newest messages of these topics again; the info every `heartbeat` seconds, or more
        often. `wait_until_known` takes at most `introduction` seconds.
        """
        self._names, self._started, self._repeat, self._introduction = names, started, repeat, introduction
        self.every = min(heartbeat, PRESENCE_MAX_S)
        """Longest time between two of our messages, in seconds."""
        self._time = asyncio.get_running_loop().time
        self._echoed_at = NEVER
        self._is_introduced = False
        self._table = _PeerTable(ours)
        self._changed = asyncio.Event()
        self._own_message_seen = asyncio.Event()
        self.takeovers = Takeovers(ours, introduction)

    async def run(self) -> None:
        """Let other bridges hear this one until cancelled."""
        while True:
            await asyncio.sleep(self.every)
            self._repeat(f"{self._names.bridge}/info")

    def on_message(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Learn from a message to a topic of a bridge. Messages to other topics are ignored."""
        name, _, kind = topic.rpartition("/")
        is_bridge = f"{name}/".startswith(f"{self._names.bridges}/") and len(name) <= MAX_BRIDGE_TOPIC_LETTERS
        if kind not in {"state", "info"} or not is_bridge:
            return
        peer = read_peer(self._table.get(name) or Peer(every=self.every), kind, payload)
        if peer is not None:
            is_online = peer.online or (kind == "info" and not retained)
            peer = replace(peer, online=is_online, heard=self._time())
            if kind == "info" and peer.started != self._started:
                self.takeovers.add(peer.gateways)
        if name == self._names.bridge:
            self._on_same_name(peer, kind, retained=retained)
        elif peer is not None and not (retained and self._is_introduced):
            self._take(name, peer)

    def _on_same_name(self, peer: Peer | None, kind: str, *, retained: bool) -> None:
        """Take a message of our own topics. Retained ones are ignored: they may stem from a previous run."""
        is_ours = peer is not None and peer.started == self._started
        if kind == "info" and is_ours:
            self._own_message_seen.set()
            if not retained:
                self._on_echo(self._time())
        if retained or peer is None or is_ours:
            return
        name = self._names.bridge
        if kind == "info":
            self._take(name, peer)
            if not self._precedes(name, peer):
                self._repeat(f"{name}/state", f"{name}/info")
        elif not peer.online:
            self._take(name, Peer(heard=peer.heard))
            self._repeat(f"{name}/state", f"{name}/info")

    def _on_echo(self, now: float) -> None:
        """Our own message has come back from the broker: what others sent meanwhile has come, too."""
        self.takeovers.on_echo()
        was_away, self._echoed_at = now - self._echoed_at > AWAY_PERIODS * self.every, now
        if was_away:
            self._table.wait_anew(now)
            return
        self._is_introduced = True
        if self._table.forget_silent(now):
            self.notify()

    def owner_of(self, serial: str | None) -> str | None:
        """The other bridge that polls this gateway and started before this bridge; `None` if there is none."""
        owners = self._table.owners(serial) if serial else ()
        return next((name for name, peer in owners if self._precedes(name, peer)), None)

    def is_polled_elsewhere(self, serial: str) -> bool:
        """Whether another bridge polls this gateway, whichever started first."""
        return any(True for _ in self._table.owners(serial))

    def _take(self, name: str, peer: Peer) -> None:
        if self._table.put(name, peer):
            self.notify()

    def _precedes(self, name: str, peer: Peer) -> bool:
        return (peer.started, name) < (self._started, self._names.bridge)

    async def wait_until_known(self) -> None:
        """Wait until the retained messages of all bridges have come: our own message comes back after them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._introduction):
                await self._own_message_seen.wait()

    async def wait_for_change(self) -> None:
        """Wait until the result of `owner_of` may have changed."""
        await self._changed.wait()

    def notify(self) -> None:
        """End all calls of `wait_for_change`."""
        self._changed.set()
        self._changed = asyncio.Event()


def _is_serial(item: object) -> bool:
    return isinstance(item, str) and len(item) <= MAX_SERIAL_LETTERS and item.isascii() and item.isalnum()


def read_peer(known: Peer, kind: str, payload: bytes) -> Peer | None:
    """What is known of a bridge after this message; `None` if no bridge can have written it."""
    if kind == "state":
        return replace(known, online=payload == ONLINE.encode())
    least, most = PRESENCE_BOUNDS_S
    try:
        body = json.loads(payload)
        started, listed = str(body["started"])[:MAX_START_LETTERS], body["gateways"]
        datetime.fromisoformat(started)
        gateways = frozenset(filter(_is_serial, listed if isinstance(listed, list) else ()))
        every = max(least, min(most, float(body.get("heartbeat", known.every))))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return replace(known, started=started, gateways=gateways, every=every)
