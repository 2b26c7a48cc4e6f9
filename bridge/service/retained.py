"""Keeps this bridge's retained topics in the broker up to date, and reads them when the bridge starts."""

import asyncio
import json
import logging
import math
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from bridge.model import MAX_COUNTER_WH, BridgeError, Message, Priority
from bridge.mqtt import Broker, MessageRefused, area
from bridge.outbox import Outbox
from bridge.service.status import Watchdog
from bridge.settings import MqttSettings
from bridge.topics import TIMESTAMP

LOG = logging.getLogger(__name__)
BIRTH_DELAY_MAX_S = 5.0
"""Answers to Home Assistant's birth message are spread over this time, so that not all bridges answer at once."""
BIRTH_PAUSE_S = 10.0
"""Least time between two answers: anybody may send a birth message, and each answer sends every topic again."""
LATE_S = 30.0
"""A change that waits for the broker for longer is too late for people, who should know why."""
FEWER_MESSAGES_ADVICE = (
    "publish less with BRIDGE_MQTT__PAYLOAD=values or json, a larger BRIDGE_MQTT__DEADBAND, or "
    "BRIDGE_POLL__PROFILE=gentle"
)
DISCOVERY_ADVICE = ", or set BRIDGE_HOMEASSISTANT__DISCOVERY to component, which has shorter ones, or to off"

FIRST_MESSAGE_WAIT_S, NEXT_MESSAGE_WAIT_S = 1.5, 0.3
"""Longest waits for the first message and for each further one; then reading ends. The first is needed for brokers
that do not deliver our own marker message."""
READ_TIMEOUT_S = 3.0
"""Longest time that reading takes, connecting included."""
MARKER_TOPIC = "memory/state"
"""Topic of a marker message that is sent after subscribing: its echo shows that the retained messages have come.
Some brokers deliver retained messages later, so a quiet time follows, which is longer with a slow broker. The
marker is empty, so nothing of it stays in the broker."""
MAX_READERS = 16
"""Number of gateways whose retained values are read at a time."""
MAX_SLASHES = 2
"""Slashes of `meter/production/l1`, the longest topic that stands for a part of a document."""
MAX_NUMBERS, MAX_KEY_LETTERS = 20_000, 160
"""Numbers that are read of one gateway at most, and their longest topics: anybody may write there. A gateway with
1,000 inverters has 6,000."""


class CounterTopics(NamedTuple):
    """The topics of counters below a gateway or a home: of their values, and of the documents that contain them.

    `dated` are the documents that are read for their time where each counter has a topic of its own.
    The first of each come first from the broker: counters that only a bridge has, before those of a gateway.
    """

    values: Sequence[str]
    documents: Sequence[str]
    dated: Sequence[str] = ()


OF_GATEWAY = CounterTopics(
    (
        *("site/+/+", "meter/+/+", "meter/+/+/+", "energy/+/+"),
        *("inverter/+/energy_lifetime", "inverter/+/+/energy_lifetime"),
        *("inverter/+/energy_charged", "inverter/+/energy_discharged"),
    ),
    ("meter/+", "energy/+", "site/+", "inverter/+"),
    ("meter/+", "site/+"),
)
OF_HOME = CounterTopics(("+/+",), ("+",), ("+",))


class Sender:
    """Sends the messages of the outbox whenever there is a connection to the broker.

    Everything is sent again after `heartbeat` seconds, and the first time `reminder` seconds after a connection.
    `rate` is the highest number of messages a second; 0 is no limit. `on_sent` gets each message that the broker
    has.
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
        self._outbox, self._broker, self._heartbeat, self._on_sent = outbox, broker, heartbeat, on_sent
        self._reminder = min(heartbeat, reminder or heartbeat)
        self._time = asyncio.get_running_loop().time
        self.watchdog = Watchdog("the sender", self._time)
        self._wake = asyncio.Event()
        self._rate_limit, self._late, self._connected_at = _RateLimit(rate), _LateLog(rate), math.inf
        self._beat, self._born = 0.0, -math.inf
        self._refusals = _RefusalLog()
        self.sent = self.connections = 0
        """Messages sent and connections made since the start."""

    def put(self, messages: Iterable[Message]) -> float:
        """Send those soon that the broker does not have. Returns how long one has waited at most (seconds)."""
        waited = self._outbox.put_all(messages, now := self._time())
        self._wake.set()
        connected = now - self._connected_at if self._broker.connected else 0.0
        self._late.note(min(waited, connected - LATE_S - self._rate_limit.seconds(self._outbox.topics)))
        return max(0.0, min(waited, connected))

    def birth(self) -> None:
        """Send everything again soon, because Home Assistant has started. Calls before that add nothing."""
        now = self._time()
        if self._born < now:
            delay = random.uniform(0, BIRTH_DELAY_MAX_S)  # noqa: S311 - no secret
            self._born = max(now + delay, self._born + BIRTH_PAUSE_S)
            asyncio.get_running_loop().call_at(self._born, self._again)

    async def run(self, connect: Callable[[], Awaitable[None]] | None = None) -> None:
        """Send until cancelled, over one connection after the other, each of which is made with `connect`."""
        while True:
            self.watchdog.disarm()
            await (connect or self._broker.reconnect)()
            self.connections, self._connected_at = self.connections + 1, self._time()
            self._again()
            self._beat = self._connected_at + self._reminder
            reason = await self._serve()
            level = logging.WARNING if self._broker.lasted else logging.DEBUG  # `reconnect` logs all others
            LOG.log(level, "the connection to the broker ended: %s", reason)

    def repeat(self, *topics: str) -> None:
        """Send the newest messages of these topics again: another program has written there, or they are lost."""
        self._outbox.repeat(topics)
        self._wake.set()

    async def finish(self, seconds: float) -> None:
        """Send what is left, for so many seconds at most."""
        self._outbox.hurry()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._flush():
                    pass

    def _again(self) -> None:
        self._outbox.forget()
        self._beat = self._time() + self._heartbeat
        self._wake.set()

    async def _serve(self) -> str:
        """Send until the connection is lost. Returns the reason."""
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
        """Send what is pending. Returns whether there may be more."""
        if self._time() >= self._beat:
            self._again()
            self._wake.clear()
        more = False
        for message in self._outbox.pending(self._time()):
            more = True
            await self._rate_limit.wait()
            self.watchdog.busy()
            try:
                if not await self._broker.send(message):
                    return False
            except MessageRefused as refusal:
                self._outbox.refuse(message)
                self._refusals.add(message, refusal)
                continue
            self._outbox.sent(message, self._time())
            self.sent += 1
            self._on_sent(message)
        return more

    async def _rest(self) -> None:
        """Wait until there is something to send, or the connection is lost."""
        now = self._time()
        due = self._outbox.next_due(now)
        pause = max(0.0, min(self._beat - now, due if due is not None else self._heartbeat))
        self.watchdog.idle(pause)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wake.wait()


class _RefusalLog:
    """Logs refused messages: the first one of each area of topics as WARNING, later ones as DEBUG."""

    def __init__(self) -> None:
        self._areas: set[str] = set()

    def add(self, message: Message, refusal: MessageRefused) -> None:
        topics = area(message.topic)
        advice = DISCOVERY_ADVICE if message.priority == Priority.DISCOVERY else ""
        LOG.log(logging.DEBUG if topics in self._areas else logging.WARNING, "%s%s", refusal, advice)
        self._areas.add(topics)


class _LateLog:
    """Logs once that values wait for the broker, and which settings help. `rate` is the limit; 0 is none."""

    def __init__(self, rate: float) -> None:
        self._why = "the broker takes fewer messages a second than change:"
        if rate:
            self._why = f"BRIDGE_MQTT__RATE={rate:g} allows fewer messages a second than change: raise it, or"
        self._is_logged = False

    def note(self, waited: float) -> None:
        """Note that a value has been waiting for so many seconds, beyond the time that a first round takes."""
        if waited > LATE_S and not self._is_logged:
            self._is_logged = True
            LOG.warning("values wait for more than %g s: %s %s", LATE_S, self._why, FEWER_MESSAGES_ADVICE)


class _RateLimit:
    """Spaces messages out to `rate` a second; 0 stands for no limit."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._time = asyncio.get_running_loop().time
        self._next = -math.inf

    def seconds(self, messages: int) -> float:
        """How long so many messages take."""
        return self._gap * messages

    async def wait(self) -> None:
        """Wait until the next message may be sent."""
        now = self._time()
        if self._next > now:
            await asyncio.sleep(self._next - now)
        self._next = max(now, self._next) + self._gap


class RetainedReader:
    """Reads the retained values of many gateways, a few at a time: hundreds of connections would be too many.

    Each connection has a client id of its own, as a broker closes the older of two connections with one id.
    """

    def __init__(self, settings: MqttSettings, client_id: str) -> None:
        self._settings = settings
        self._free: asyncio.LifoQueue[str] = asyncio.LifoQueue()
        for number in range(MAX_READERS, 0, -1):
            self._free.put_nowait(f"{client_id}-memory{'' if number == 1 else number}")

    async def read(self, prefix: str, topics: CounterTopics = OF_GATEWAY) -> Mapping[str, float]:
        """Read the numbers below a topic prefix. The keys of the result are the topics without the prefix."""
        async with self._client_id() as client_id:
            return await read_retained(self._settings, client_id, prefix, topics)

    async def announced(self, own: str, place: str, filters: Sequence[str]) -> frozenset[str]:
        """Read the discovery topics that these filters fit, of the devices whose ids begin with `own`.

        `place` is where the bridge may write.
        """
        found, of_own = set[str](), re.compile(f"/{own}[_/]")

        def take(topic: str, _payload: bytes) -> None:
            if of_own.search(topic) and len(found) < MAX_NUMBERS:
                found.add(topic)

        async with self._client_id() as client_id:
            await _read(self._settings, client_id, place, filters, take)
        return frozenset(found)

    @asynccontextmanager
    async def _client_id(self) -> AsyncIterator[str]:
        client_id = await self._free.get()
        try:
            yield client_id
        finally:
            self._free.put_nowait(client_id)


async def read_retained(
    settings: MqttSettings, client_id: str, prefix: str, topics: CounterTopics = OF_GATEWAY
) -> Mapping[str, float]:
    """Read the numbers below a topic prefix within `READ_TIMEOUT_S`.

    The keys of the result are the topics without the prefix.
    """
    found: dict[str, float] = {}
    foreign: set[str] = set()

    def take(topic: str, payload: bytes) -> None:
        numbers = _numbers(topic.removeprefix(f"{prefix}/"), payload)
        for key, value in islice(numbers, MAX_NUMBERS - len(found) - len(foreign)):
            if _may_be_ours(key, value):
                found[key] = value
            else:
                foreign.add(key)

    kept = topics.documents if settings.payload == "json" else (*topics.values, *topics.dated)
    await _read(settings, client_id, prefix, [f"{prefix}/{topic}" for topic in kept], take)
    if foreign:
        text = "%d numbers at the broker can't be counters of a bridge and are left out: who has written %s/%s?"
        LOG.warning(text, len(foreign), prefix, ascii(min(foreign))[1:-1], extra={"event": "foreign_numbers"})
    return found


async def _read(
    settings: MqttSettings, client_id: str, place: str, filters: Sequence[str], take: Callable[[str, bytes], None]
) -> None:
    """Give all retained messages that these filters fit to `take`, within `READ_TIMEOUT_S`.

    If the broker can't be reached, there are none, since the bridge must start without it. `place` is where the
    bridge may write.
    """
    news = asyncio.Event()

    def on_message(topic: str, payload: bytes, is_retained: bool) -> None:
        if is_retained:
            take(topic, payload)
        news.set()

    # The marker is also the will, since a connection has to have one.
    marker = Message(f"{place}/{MARKER_TOPIC}", "", priority=Priority.VALUE)
    wanted = [*filters, marker.topic]
    broker = Broker(settings, client_id=client_id, will=marker, on_message=on_message, subscriptions=wanted)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await broker.connect()
            LOG.info("That connection only reads the earlier values from the broker")
            await _wait_until_quiet(broker, marker, news)
    except (BridgeError, TimeoutError) as error:
        LOG.info("can't read the earlier values from the broker: %s", str(error) or "too many")
    finally:
        await broker.close()
        broker.abort()


async def _wait_until_quiet(broker: Broker, marker: Message, news: asyncio.Event) -> None:
    """Wait until no more messages come. The first one, at the latest our marker, shows how slow the broker is."""
    time = asyncio.get_running_loop().time
    asked, seconds = time(), FIRST_MESSAGE_WAIT_S
    with suppress(MessageRefused):
        await broker.send(marker)
    while await _happens(news, seconds):
        if seconds == FIRST_MESSAGE_WAIT_S:
            seconds = max(NEXT_MESSAGE_WAIT_S, time() - asked)
        news.clear()


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _may_be_ours(key: str, value: float) -> bool:
    """Whether a bridge can have published this. Only reactive energies may be negative."""
    return -MAX_COUNTER_WH <= value <= MAX_COUNTER_WH and (value >= 0 or "reactive" in key)


def _numbers(topic: str, payload: bytes) -> Sequence[tuple[str, float]]:
    """The energy of a value topic, or all energies of a document, each with the value topic that it belongs to."""
    try:
        return list(_numbers_in(topic, json.loads(payload)))
    except (ValueError, RecursionError):
        return ()


def _numbers_in(topic: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict) and topic.count("/") <= MAX_SLASHES:
        for name, item in value.items():
            yield from _numbers_in(f"{topic}/{name}", _unix_time(item) if name == TIMESTAMP else item)
    elif isinstance(value, int | float) and not isinstance(value, bool) and len(topic) <= MAX_KEY_LETTERS:
        name = topic.rpartition("/")[2]
        if "energy" in name or name == TIMESTAMP:
            yield topic, float(max(-10 * MAX_COUNTER_WH, min(value, 10 * MAX_COUNTER_WH)))


def _unix_time(text: object) -> float | None:
    """The unix time of a document's timestamp; `None` if it has none."""
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None
    except ValueError:
        return None
