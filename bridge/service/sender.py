"""One sender: what the outbox holds goes to the broker whenever there is one."""

import asyncio
import logging
import math
import random
from collections.abc import Callable
from contextlib import suppress

from bridge.model import Message, Rank
from bridge.mqtt import Broker, MessageRefused, area
from bridge.outbox import Outbox
from bridge.service.pulse import Pulse

LOG = logging.getLogger(__name__)
BIRTH_DELAY = 5.0
"""Seconds over which answers to Home Assistant's birth are spread, lest all bridges of a house answer at once."""
BIRTH_PAUSE = 10.0
"""Seconds between two answers: anybody may send a birth message, and an answer is everything there is."""
SHORTER = ", or set BRIDGE_HOMEASSISTANT__DISCOVERY to component, which has shorter ones, or to off"


class Sender:
    """Keeps the broker's retained tree equal to the outbox.

    `heartbeat` is in seconds, as is `reminder`, the first one after a connection; `rate` is in messages a second
    (0: as many as the broker takes).
    """

    def __init__(
        self,
        outbox: Outbox,
        broker: Broker,
        *,
        heartbeat: float,
        reminder: float | None = None,
        rate: float = 0,
        on_sent: Callable[[Message], None] = lambda _: None,
    ) -> None:
        self._outbox, self._broker, self._heartbeat = outbox, broker, heartbeat
        self._reminder = min(heartbeat, reminder or heartbeat)
        self._on_sent = on_sent
        self._time = asyncio.get_running_loop().time
        self.pulse = Pulse("the sender", self._time)
        self._wake = asyncio.Event()
        self._beat = 0.0
        self._gap = 1 / rate if rate else 0.0
        self._next = self._born = -math.inf
        self._reported: set[str] = set()
        self.sent = 0
        """messages since the start"""
        self.connections = 0

    def put(self, message: Message) -> None:
        self._outbox.put(message)
        self._wake.set()

    def birth(self) -> None:
        """Home Assistant has started: it needs everything anew, unless that is about to come."""
        now = self._time()
        if self._born < now:
            delay = random.uniform(0, BIRTH_DELAY)  # noqa: S311 - no secret
            self._born = max(now + delay, self._born + BIRTH_PAUSE)
            asyncio.get_running_loop().call_at(self._born, self._again)

    async def run(self) -> None:
        """Send for ever, over as many connections as it takes."""
        while True:
            self.pulse.wait()
            await self._broker.reconnect()
            self.connections += 1
            self._again()
            self._beat = self._time() + self._reminder
            reason = await self._serve()
            # one that was lost at once is told of by whoever tries again
            level = logging.WARNING if self._broker.lasted else logging.DEBUG
            LOG.log(level, "the connection to the broker ended: %s", reason)

    def repeat(self, *topics: str) -> None:
        """Somebody else has written there."""
        self._outbox.repeat(topics)
        self._wake.set()

    def withdraw(self, belongs: Callable[[str], bool], *, last_words: bool) -> None:
        """Say nothing more about these topics, but what is still to be said."""
        if last_words:
            self._outbox.release(belongs)
        else:
            self._outbox.drop(belongs)

    def clear(self) -> None:
        """Take everything back."""
        self._outbox.clear()

    async def finish(self, seconds: float) -> None:
        """Send what is left, if the broker takes it in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._flush():
                    pass

    def _again(self) -> None:
        self._outbox.forget()
        self._beat = self._time() + self._heartbeat
        self._wake.set()

    async def _serve(self) -> str:
        """Until the connection is lost; why."""
        lost = asyncio.ensure_future(self._broker.lost())
        lost.add_done_callback(lambda _: self._wake.set())
        try:
            while not lost.done():
                self._wake.clear()
                await self._flush()
                if not lost.done():
                    await self._rest()
            return lost.result()
        finally:
            lost.cancel()

    async def _flush(self) -> bool:
        """Send a round; whether another may follow."""
        more = False
        if self._time() >= self._beat:
            self._again()
            self._wake.clear()
        for message in self._outbox.pending(self._time()):
            more = True
            await self._pace()
            self.pulse.work()
            try:
                if not await self._broker.send(message):
                    return False
            except MessageRefused as refusal:
                self._outbox.refuse(message)
                self._report(message, refusal)
                continue
            self._outbox.sent(message, self._time())
            self.sent += 1
            self._on_sent(message)
        return more

    async def _pace(self) -> None:
        now = self._time()
        if self._next > now:
            await asyncio.sleep(self._next - now)
        self._next = max(now, self._next) + self._gap

    async def _rest(self) -> None:
        """Until there is something to send, or the connection is gone."""
        now = self._time()
        due = self._outbox.next_due(now)
        pause = max(0.0, min(self._beat - now, due if due is not None else self._heartbeat))
        self.pulse.rest(pause)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wake.wait()

    def _report(self, message: Message, refusal: MessageRefused) -> None:
        """Aloud once for all that is alike."""
        alike = area(message.topic)
        advice = SHORTER if message.rank == Rank.DISCOVERY else ""
        LOG.log(logging.DEBUG if alike in self._reported else logging.WARNING, "%s%s", refusal, advice)
        self._reported.add(alike)
