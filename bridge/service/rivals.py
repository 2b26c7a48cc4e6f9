"""Other bridges at the same broker, as they tell of themselves: no gateway should be polled by two of them."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from bridge.topics import ONLINE, Names

MOST = 10_000
"""Bridges that are remembered: anybody may write to their topics."""
PATIENCE = 2.0
"""Seconds in which a broker has told of all bridges that it knows."""
UNKNOWN = "9999"
"""Later than all that is known."""


@dataclass(frozen=True, slots=True)
class _Other:
    """What another bridge has said. Its `started` sorts as text does."""

    started: str = UNKNOWN
    gateways: frozenset[str] = frozenset()
    online: bool = False


class Rivals:
    """Bridges that started earlier go first; who started later stands by.

    Two bridges of one name have one topic: the earlier one repeats there what it is (`repeat`) whenever the later
    one has spoken, or has said goodbye for both.
    """

    def __init__(self, names: Names, started: str, repeat: Callable[[], None]) -> None:
        self._names, self._started, self._repeat = names, started, repeat
        self._others: dict[str, _Other] = {}
        self._change = asyncio.Event()
        self._heard_ourselves = asyncio.Event()

    @property
    def subscriptions(self) -> tuple[str, ...]:
        places = (self._names.bridges, f"{self._names.bridges}/+")
        return tuple(f"{place}/{name}" for place in places for name in ("state", "info"))

    def hear(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """A message of any topic."""
        name, _, kind = topic.rpartition("/")
        if kind not in {"state", "info"} or not f"{name}/".startswith(f"{self._names.bridges}/"):
            return
        known = self._others.get(name, _Other())
        said = _told(known, kind, payload)
        if name == self._names.bridge:
            self._hear_namesake(said, kind, retained=retained)
        elif said is not None and len(self._others) < MOST:
            self._note(name, said)

    def _hear_namesake(self, said: _Other | None, kind: str, *, retained: bool) -> None:
        """What is retained at our own place may be of an earlier run of ours, and proves nothing."""
        ours = said is not None and said.started == self._started
        if kind == "info" and ours:
            self._heard_ourselves.set()
        if retained or said is None or ours:
            return
        name = self._names.bridge
        if kind == "info":
            self._note(name, replace(said, online=True))
            if not self._first(name, said):
                self._repeat()
        elif not said.online:
            self._note(name, _Other())
            self._repeat()

    def ahead(self, serial: str | None) -> str | None:
        """The bridge that polls this gateway, and has the right to."""
        return next(self._ahead(serial), None) if serial else None

    def _ahead(self, serial: str) -> Iterator[str]:
        return (
            name
            for name, other in self._others.items()
            if other.online and serial in other.gateways and self._first(name, other)
        )

    def _first(self, name: str, other: _Other) -> bool:
        return (other.started, name) < (self._started, self._names.bridge)

    async def known(self) -> None:
        """Until the broker has told of those that are there, or tells nothing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._heard_ourselves.wait()

    async def change(self) -> None:
        """Until one of them is seen to do something else."""
        await self._change.wait()

    def reconsider(self) -> None:
        """What is known of us has changed."""
        self._change.set()
        self._change = asyncio.Event()

    def _note(self, name: str, other: _Other) -> None:
        if self._others.get(name, _Other()) != other:
            self._others[name] = other
            self.reconsider()


def _told(known: _Other, kind: str, payload: bytes) -> _Other | None:
    """What is known after a message; `None` if it is none of a bridge."""
    if kind == "state":
        return replace(known, online=payload == ONLINE.encode())
    try:
        body = json.loads(payload)
        gateways = frozenset(str(serial) for serial in body["gateways"])
        return replace(known, started=str(body["started"]), gateways=gateways)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
