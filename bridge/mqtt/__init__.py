"""The broker: sends one message at a time, receives subscribed messages, and connects again after a failure.

paho runs on the event loop, without a thread, and each connection has a paho client of its own, so that nothing of
an ended connection reaches the next one. paho's own queue stays nearly empty: the outbox keeps the messages that
are still to be sent.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from paho.mqtt.enums import MQTTProtocolVersion
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_never,
    wait_random_exponential,
)

from bridge.model import Message, Rejected, Unavailable
from bridge.mqtt.connect import (
    ConnectionLimits,
    Connector,
    MessageRefused,
    ProtocolOptions,
    UnsupportedOption,
    check_connack,
    with_older_mqtt,
)
from bridge.mqtt.connection import CommandTopics, Connection, OnMessage, OnRefusal, Received
from bridge.mqtt.loop import MAX_RECEIVED_BYTES, OnDoubt
from bridge.settings import MqttSettings

__all__ = [
    "Broker",
    "BrokerTiming",
    "CommandTopics",
    "ConnectionLimits",
    "MessageRefused",
    "OnMessage",
    "Received",
    "TopicBlocklist",
    "area",
]

LOG = logging.getLogger(__name__)
CAREFUL_AFTER_CONNECTIONS = 2
"""Number of short connections after which the bridge looks for the topic because of which they are closed."""
MAX_PAUSE_S = 300.0
FAILOVER_ROUNDS, FAILOVER_PAUSE_S = 5, 3.0
"""Attempts, and the longest pause between them, while a cluster that has lost a server refuses connections."""
CHECK_RULES = "check its access rules and its limits"
MAX_REFUSED_AREAS = 1_000


@dataclass(frozen=True, slots=True)
class BrokerTiming:
    """Times in seconds, except `flap_factor`, which is a number.

    A connection shorter than `settled`, or than `flap_factor` times the pause before it, counts as a failure: two
    clients with one client id end each other's connections like that. `failover` is how long one server of a
    cluster may take to answer, since another one may be ready sooner; it doubles every other round. A broker that
    answers pings, but does not acknowledge a message within `acknowledge`, is stuck.
    """

    connect: float = 10.0
    acknowledge: float = 60.0
    close: float = 2.0
    settled: float = 10.0
    flap_factor: float = 5.0
    failover: float = 2.0


class TopicBlocklist:
    """Finds the topics because of which a broker closes connections: RabbitMQ and others do so instead of refusing.

    A topic is blocked when several connections in a row have ended while nothing else was under way. An area is a
    topic's first two levels. An area of which nothing was ever accepted is blocked as a whole after a few of its
    topics, since access rules are the likely reason.
    """

    BLOCKED_AFTER = 3
    """Disconnects in a row with one topic. A single one may be chance, as when another client has our client id."""
    AREA_BLOCKED_AFTER = 3
    """Blocked topics of one area after which all of it is blocked."""

    def __init__(self) -> None:
        self._last, self._times = "", 0
        self._blocked: set[str] = set()
        self._accepted_areas: set[str] = set()

    def record_ack(self, topic: str) -> None:
        """Note that the broker has accepted the topic, and so accepts others of its area."""
        self._accepted_areas.add(area(topic))

    def record_disconnect(self, topic: str) -> bool:
        """Note that a connection has ended with `topic` under way (empty: none). Returns whether it is blocked."""
        self._times = self._times + 1 if topic == self._last else 1
        self._last = topic
        is_blocked = bool(topic) and self._times >= self.BLOCKED_AFTER
        if is_blocked:
            self._blocked.add(topic)
        return is_blocked

    def is_blocked(self, topic: str) -> bool:
        """Whether the topic should be neither published nor subscribed to."""
        if not self._blocked:
            return False
        if topic in self._blocked:
            return True
        whole = area(topic)
        blocked = sum(area(other) == whole for other in self._blocked)
        return whole not in self._accepted_areas and blocked >= self.AREA_BLOCKED_AFTER

    def clear(self) -> None:
        """Forget everything: the broker may have other rules by now."""
        self._last, self._times = "", 0
        self._blocked.clear()
        self._accepted_areas.clear()


def area(topic: str) -> str:
    """A topic's first two levels, such as `homeassistant/device`."""
    return "/".join(topic.split("/")[:2])


class Broker:
    """The broker, over one connection at a time; of several brokers, the one that can be reached.

    `on_refusal` is called with each topic that the broker refuses to accept or to deliver, and the error for
    people. `on_doubt` gets the topics of messages that a cluster of brokers may have lost.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        client_id: str,
        will: Message | None,
        on_message: OnMessage,
        on_refusal: OnRefusal = lambda _topic, _text: None,
        on_doubt: OnDoubt | None = None,
        subscriptions: Sequence[str] = (),
        commands: CommandTopics | None = None,
        keepalive: int = 60,
        timing: BrokerTiming | None = None,
    ) -> None:
        self._timing = timing or BrokerTiming()
        connect_s = self._timing.connect
        self._connectors = deque(Connector(one, client_id, will, keepalive, connect_s) for one in settings.each)
        """The one in use comes first."""
        protocols = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}
        self._options = ProtocolOptions(protocols[settings.protocol], min(1, will.qos if will else 0))
        self._on_message, self._on_refusal = on_message, on_refusal
        self._on_doubt = on_doubt if len(self._connectors) > 1 else None
        self._subscriptions, self._commands = tuple(subscriptions), commands
        self._connection: Connection | None = None
        self.failure: str | None = None
        """Why the last attempt to connect has failed; `None` after one that has not."""
        self._refused, self._warned = set[str](), set[str]()
        self._flaps = self._rounds = 0
        self._last_pause, self._careful = 0.0, False
        self._blocklist = TopicBlocklist()

    @property
    def _connector(self) -> Connector:
        return self._connectors[0]

    @property
    def address(self) -> str:
        """The broker in use, without user and password."""
        return str(self._connector.address)

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None and self._connection.alive

    @property
    def limits(self) -> ConnectionLimits:
        """What the broker has announced."""
        return self._connection.limits if self._connection is not None else ConnectionLimits()

    @property
    def protocol(self) -> str:
        """The MQTT version in use, or the one that is tried first: 5 or 3.1.1."""
        return "5" if self._options.mqtt5 else "3.1.1"

    @property
    def lasted(self) -> bool:
        """Whether the connection that ended last counts as a success."""
        ended = self._connection
        least = max(self._timing.settled, self._timing.flap_factor * self._last_pause)
        return ended is not None and not ended.taken_over and ended.lasted > least

    async def connect(self) -> None:
        """Try each broker once, and once more with each simpler option that it may understand.

        Raises:
            Unavailable: none can be reached now.
            Rejected: the broker refuses the bridge; the text says what to do.
        """
        self.abort()
        for left in reversed(range(len(self._connectors))):
            try:
                return await self._connect()
            except (Unavailable, Rejected) as error:
                self._connectors.rotate(-1)
                if not left:
                    self._rounds += 1
                    raise
                LOG.info("%s; trying %s", error, self.address)
        return None

    async def _connect(self) -> None:
        options = self._options
        while self._connection is None:
            try:
                self._connection = await self._open(options)
            except UnsupportedOption as error:
                simpler = error.simpler(options)
                if simpler == options:
                    raise
                options = simpler
        self._options, self._rounds, self.failure = options, 0, None
        LOG.info("Connected to %s with MQTT %s", self.address, self.protocol)
        if not self.limits.retain:
            self._log_once(
                f"{self.address} keeps no retained messages: subscribers see nothing until it is sent again"
            )

    async def reconnect(self) -> None:
        """Try until there is a connection.

        A broker at home may be gone for a week: only cancelling the task ends it, hence `stop_never`.
        """
        policy = AsyncRetrying(
            stop=stop_never,
            wait=self._pause,
            retry=retry_if_exception_type((Unavailable, Rejected)),
            reraise=True,
            before_sleep=self._log_retry,
        )
        await policy(self._attempt)

    async def lost(self) -> str:
        """Wait until the connection has ended; returns the reason in plain words."""
        return await asyncio.shield(self._connection.ended) if self._connection is not None else "not connected"

    async def send(self, message: Message) -> bool:
        """Hand over one message as soon as there is room. Returns False if the connection has ended.

        Raises:
            MessageRefused: this message can't be sent to this broker.
        """
        if self._blocklist.is_blocked(message.topic):
            text = f"{message.topic} is left out: the broker closes the connection because of it; {CHECK_RULES}"
            raise MessageRefused(text)
        return self._connection is not None and await self._connection.send(message)

    async def close(self, last: Message | None = None) -> None:
        """Publish the last message, wait for its acknowledgement and disconnect; no will is published then."""
        connection = self._connection
        if connection is None or not connection.alive:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timing.close):
                with suppress(MessageRefused):
                    await (connection.send(last) if last is not None else asyncio.sleep(0))
                await connection.disconnect()
                await self.lost()
        self.abort()

    def abort(self) -> None:
        """Drop the connection at once, as a crash would: the broker publishes the will."""
        if self._connection is not None:
            self._connection.hang_up("closed by the bridge")
            self._connection = None

    async def _attempt(self) -> None:
        """Connect, unless the connection before has failed and a pause is needed; see `_review`."""
        ended = self._connection
        if ended is not None and not ended.alive:
            self._review(ended)
        await self.connect()

    def _review(self, ended: Connection) -> None:
        """Learn from an ended connection. One that did not last counts as a failure; see `BrokerTiming`.

        Raises:
            Unavailable, Rejected: it failed, and there must be a pause before the next one.
        """
        lasted, self._connection = self.lasted, None
        if lasted:
            self._flaps, self._last_pause, self._careful = 0, 0.0, False
            self._warned.clear()
            self._blocklist.clear()
            return
        self._flaps += 1
        self._careful |= self._flaps >= CAREFUL_AFTER_CONNECTIONS
        if self._blocklist.record_disconnect(ended.suspect):
            self._flaps = 1  # without this topic it may be all right now
        reason = f"{self.address}: {ended.ended.result()}"
        self._connectors.rotate(-1)
        if ended.taken_over:
            raise Rejected(reason)
        doubt = "; does another client use the same client id (BRIDGE_MQTT__CLIENT_ID)?"
        raise Unavailable(f"{reason} after a moment{doubt if ended.was_silent else ''}")

    async def _open(self, options: ProtocolOptions) -> Connection:
        timeout_s, connector = self._answer_timeout_s, self._connector
        client = await connector.connect(options)
        on_ack = self._blocklist.record_ack if self._careful else None
        connection = Connection(
            client,
            self._on_message,
            on_dropped=self._log_dropped,
            on_refusal=self._record_refusal,
            on_ack=on_ack,
            on_doubt=self._on_doubt,
            ack_timeout=self._timing.acknowledge,
        )
        try:
            connection.start()
            async with asyncio.timeout(timeout_s):
                answer = await connection.answer
            ended = "" if connection.alive else connection.ended.result()
            check_connack(connector.address, connector.will, answer, ended)
            await connection.subscribe(self._allowed(self._subscriptions))
            if self._commands:
                await connection.listen(replace(self._commands, topics=(*self._allowed(self._commands.topics),)))
        except TimeoutError:
            connection.hang_up("no answer")  # a broker may wait for the rest of a CONNECT of an older version
            if timeout_s < self._timing.connect:
                raise Unavailable(f"{self.address}: no answer within {timeout_s:g} s") from None
            raise UnsupportedOption(str(connector.timeout_error()), with_older_mqtt) from None
        except BaseException:
            connection.hang_up("given up")
            raise
        return connection

    @property
    def _answer_timeout_s(self) -> float:
        if len(self._connectors) == 1:
            return self._timing.connect
        return min(self._timing.connect, self._timing.failover * 2.0 ** min(self._rounds // 2, 5))

    def _allowed(self, topics: Iterable[str]) -> Iterator[str]:
        for topic in topics:
            if self._blocklist.is_blocked(topic):
                self._log_once(f"{topic} is not subscribed: the broker closes the connection then; {CHECK_RULES}")
            else:
                yield topic

    def _log_dropped(self, topic: str) -> None:
        self._log_once(
            f"messages of more than {MAX_RECEIVED_BYTES} bytes are left out", f": one at {ascii(topic)[1:-1]}"
        )

    def _record_refusal(self, topic: str, text: str) -> None:
        """Log the first refusal of each area."""
        if area(topic) not in self._refused and len(self._refused) < MAX_REFUSED_AREAS:
            self._refused.add(area(topic))
            LOG.warning("%s", text)
        self._on_refusal(topic, text)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds until the next attempt. They are more after a refusal, as some brokers ban persistent clients."""
        rejected = state.outcome is not None and isinstance(state.outcome.exception(), Rejected)
        least, most = (60, MAX_PAUSE_S) if rejected else (1, MAX_PAUSE_S if self._flaps else 60)
        if len(self._connectors) > 1 and self._flaps <= FAILOVER_ROUNDS and not rejected:
            most = FAILOVER_PAUSE_S
        growth = 2 ** min(self._flaps, 8)
        pause = wait_random_exponential(multiplier=least * growth, min=least, max=most)(state)
        self._last_pause = pause if self._flaps else 0.0
        return pause

    def _log_retry(self, state: RetryCallState) -> None:
        text = str(state.outcome.exception()) if state.outcome is not None else ""
        self.failure = text
        self._log_once(text, f"; trying again in {state.upcoming_sleep:.0f} s")

    def _log_once(self, text: str, more: str = "") -> None:
        """WARNING the first time, then DEBUG, until a connection was stable."""
        LOG.log(logging.DEBUG if text in self._warned else logging.WARNING, "%s%s", text, more)
        self._warned.add(text)
