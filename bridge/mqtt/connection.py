"""One connection to the broker, from its CONNACK to its end."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, error_string
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from bridge.model import Message
from bridge.mqtt.connect import ConnectionLimits, MessageRefused
from bridge.mqtt.loop import PROTOCOL_IS_BROKEN, BoundedClient, LoopAdapter, OnDoubt, Receipts

LOG = logging.getLogger(__name__)

OnMessage = Callable[[str, bytes, bool], None]
"""Topic, payload, and whether the message was retained."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message to a topic of commands.

    `duplicate` is set where it may have been delivered before. What follows it is known with MQTT 5 only:
    `response_topic` and `correlation` tell where to answer, `sender` is the user property `from`, and the message
    expires in `expires` seconds.
    """

    topic: str
    payload: bytes
    retained: bool = False
    duplicate: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    sender: str | None = None
    expires: float | None = None

    @classmethod
    def of(cls, message: MQTTMessage) -> Self:
        """The message as paho has received it.

        Raises:
            UnicodeDecodeError: its topic is no text.
        """
        topic, payload, given = message.topic, bytes(message.payload), message.properties
        if given is None:
            return cls(topic, payload, message.retain, message.dup)
        return cls(
            topic,
            payload,
            message.retain,
            message.dup,
            response_topic=getattr(given, "ResponseTopic", None),
            correlation=getattr(given, "CorrelationData", None),
            sender=dict(getattr(given, "UserProperty", ())).get("from"),
            expires=getattr(given, "MessageExpiryInterval", None),
        )


@dataclass(frozen=True, slots=True)
class CommandTopics:
    """The topics of commands, and what takes their messages. `obeyed` is unset where all commands are refused."""

    topics: tuple[str, ...]
    take: Callable[[Received], None]
    obeyed: bool = True


OnRefusal = Callable[[str, str], None]
"""Topic that the broker refuses to accept or to deliver, and the error for people."""

MAX_BURST = 64
"""Messages that may be sent before other tasks run and before the socket has accepted them."""
CLOSED_TEXT = re.compile("broken pipe|connection reset", re.IGNORECASE)
"""Texts of the system's errors after the broker has closed the connection."""
TEXT_PREFIX = re.compile(r"^failed to receive on socket: |\[Errno \d+\] ")
PROTOCOL_ERROR, KEEP_ALIVE_TIMEOUT, TAKEN_OVER, TOO_FAST = 0x82, 0x8D, 0x8E, 0x96
"""Reason codes of MQTT 5. paho also uses the first two itself, where a broker breaks the protocol or does not
answer a ping."""
DISCONNECT_REASONS = {
    0x8B: "the broker is shutting down",
    TOO_FAST: "the broker says: Message rate too high: set BRIDGE_MQTT__RATE",
    TAKEN_OVER: "another client uses the same client id: set BRIDGE_MQTT__CLIENT_ID",
}


class Connection:
    """One connection. `answer` becomes the reason code of CONNACK or `None`, `ended` the reason of the end.

    With `on_ack` the connection is careful: it has only one message or subscription under way at a time, all of
    them acknowledged, so that `suspect` is the topic because of which the broker has closed it. `on_ack` gets each
    topic that was accepted, `on_refusal` each that was refused, `on_dropped` that of each too large message.
    `on_doubt` gets the topics of messages that may be lost; without it nobody asks, as a single broker loses none.
    """

    def __init__(
        self,
        client: BoundedClient,
        on_message: OnMessage,
        *,
        on_dropped: Callable[[str], None],
        on_refusal: OnRefusal,
        on_ack: Callable[[str], None] | None = None,
        on_doubt: OnDoubt | None = None,
        ack_timeout: float = 60.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._on_message, self._on_dropped = on_message, on_dropped
        self._on_refusal, self._on_ack, self._ack_timeout = on_refusal, on_ack, ack_timeout
        self._adapter = LoopAdapter(
            client,
            on_flushed=self._flushed,
            on_second=self._check_acks,
            on_failure=self.hang_up,
        )
        self._burst = 0
        self._unacked: dict[int, tuple[float, str]] = {}
        self._subscribing: dict[int, tuple[float, str]] = {}
        self._progress = asyncio.Event()
        wake, now = self._progress.set, self._loop.time
        self._receipts = Receipts(client.ping, wake, on_doubt, now) if on_doubt else None
        self._commands: CommandTopics | None = None
        self._error = ""
        self._started = self._loop.time()
        self.limits = ConnectionLimits()
        self.answer: asyncio.Future[ReasonCode | None] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.lasted = 0.0
        self.suspect = ""
        self.taken_over = False
        self.was_silent = False
        """Whether the broker has closed the connection without a word."""

    @property
    def alive(self) -> bool:
        """Whether the connection is still open."""
        return not self.ended.done()

    def start(self) -> None:
        """Begin to read and write."""
        client = self._client
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_message, client.on_publish = self._received, self._acknowledged
        client.on_subscribe, client.on_log = self._subscribed, self._noted
        client.on_dropped, client.receipts = self._on_dropped, self._receipts
        self._adapter.start()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe with QoS 0: with more, a NATS cluster that has just lost a server hangs for seconds."""
        for topic in topics:
            await self._wait_for_room(0)
            _, mid = self._client.subscribe(topic, qos=0)
            if mid is not None:
                self._subscribing[mid] = (self._loop.time(), topic)

    async def listen(self, commands: CommandTopics) -> None:
        """Subscribe to commands. With MQTT 5 retained ones are told from others, and none come at once."""
        self._commands = commands
        qos = 1 if commands.obeyed else 0
        for topic in commands.topics:
            await self._wait_for_room(0)
            self._client.message_callback_add(topic, self._commanded)
            if self._client.protocol == MQTTProtocolVersion.MQTTv5:
                options = SubscribeOptions(qos, retainAsPublished=True, retainHandling=2)
                _, mid = self._client.subscribe(topic, options=options)
            else:
                _, mid = self._client.subscribe(topic, qos=qos)
            if mid is not None:
                self._subscribing[mid] = (self._loop.time(), topic)

    async def send(self, message: Message) -> bool:
        """Hand over a message as soon as there is room for it. Returns False if the connection has ended.

        Raises:
            MessageRefused: this message can't be sent to this broker.
        """
        qos = min(1 if self._careful else message.qos, self.limits.qos)
        properties = self._properties(message)
        self.limits.check(message, qos, properties)
        await self._wait_for_room(qos)
        return self.alive and self._publish(message, qos, properties)

    async def disconnect(self) -> None:
        """Wait until everything is acknowledged, then send DISCONNECT: the broker does not publish the will."""
        while self.alive and (self._unacked or self._client.want_write()):
            await self._progress_made()
        self._client.disconnect()

    def hang_up(self, reason: str) -> None:
        """End the connection without DISCONNECT: the broker publishes the will."""
        self._end(reason)
        self._adapter.stop()

    @property
    def _careful(self) -> bool:
        return self._on_ack is not None

    async def _wait_for_room(self, qos: int) -> None:
        """Wait until one more may be sent, or the connection has ended."""
        while self.alive and self._full(qos):
            await self._progress_made()

    def _full(self, qos: int) -> bool:
        if self._careful and (self._unacked or self._subscribing):
            return True
        if self._receipts and self._receipts.full:
            return True
        return self._burst >= MAX_BURST or (qos > 0 and len(self._unacked) >= self.limits.window)

    async def _progress_made(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    def _properties(self, message: Message) -> Properties | None:
        if self._client.protocol != MQTTProtocolVersion.MQTTv5 or not message.content_type:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho's types end here
        properties.ContentType = message.content_type
        if message.correlation is not None:
            properties.CorrelationData = message.correlation
        if message.sender is not None:
            properties.UserProperty = ("from", message.sender)
        return properties

    def _publish(self, message: Message, qos: int, properties: Properties | None) -> bool:
        try:
            info = self._client.publish(
                message.topic,
                message.payload,
                qos,
                retain=message.retain and self.limits.retain,
                properties=properties,
            )
        except ValueError as error:  # a topic that MQTT does not allow
            raise MessageRefused(f"{message.topic}: {error}") from None
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self.hang_up(error_string(info.rc))
            return False
        if qos:
            self._unacked[info.mid] = (self._loop.time(), message.topic)
        if self._receipts:
            self._receipts.sent(message.topic)
        self._burst += 1
        if self._burst == 1:  # the first one of a burst is written at once, those that follow it in one piece
            self._adapter.write()
        return self.alive

    def _end(self, reason: str) -> None:
        if not self.alive:
            return
        self.lasted = self._loop.time() - self._started
        under_way = [*self._subscribing.values(), *self._unacked.values()]
        self.suspect = under_way[0][1] if self._careful and under_way else ""
        self.ended.set_result(reason)
        if not self.answer.done():
            self.answer.set_result(None)
        self._adapter.stop_timer()
        self._progress.set()
        if self._receipts:
            self._receipts.doubt()

    def _flushed(self) -> None:
        self._burst = 0
        self._progress.set()

    def _check_acks(self) -> None:
        if self._receipts:
            self._receipts.ask()
        oldest = [next(iter(waiting.values()))[0] for waiting in (self._unacked, self._subscribing) if waiting]
        if oldest and self._loop.time() - min(oldest) > self._ack_timeout:
            self.hang_up(f"the broker has not acknowledged a message for {self._ack_timeout:g} s")

    def _noted(self, _client: Client, _data: object, _level: int, text: str) -> None:
        if not CLOSED_TEXT.search(text):
            self._error = TEXT_PREFIX.sub("", text)

    def _connected(
        self,
        _client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if not reason.is_failure:
            self.limits = ConnectionLimits.of(properties)
        if not self.answer.done():
            self.answer.set_result(reason)

    def _disconnected(
        self, _client: Client, _data: object, flags: DisconnectFlags, reason: ReasonCode, _more: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.taken_over = reason.value == TAKEN_OVER
            self._end(DISCONNECT_REASONS.get(reason.value, f"the broker says: {reason}"))
        elif reason.value == KEEP_ALIVE_TIMEOUT:
            self._end("the broker no longer answers")
        elif reason.value == PROTOCOL_ERROR:
            self._end(PROTOCOL_IS_BROKEN)
        elif self._error or not reason.is_failure:
            self._end(self._error or "closed by the bridge")
        else:
            self.was_silent = True
            self._end("the broker closed the connection")

    def _received(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self._hand_on(lambda: self._on_message(message.topic, bytes(message.payload), message.retain))

    def _commanded(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        if commands := self._commands:
            self._hand_on(lambda: commands.take(Received.of(message)))

    def _hand_on(self, work: Callable[[], None]) -> None:
        """Hand a message to the service, whose errors must not end the connection."""
        try:
            work()
        except UnicodeDecodeError:  # a topic that is no UTF-8 belongs to no subscription
            LOG.debug("A message at a topic that is no text was left out")
        except Exception:
            LOG.exception("A message from the broker could not be handled")

    def _acknowledged(
        self, _client: Client, _data: object, mid: int, reason: ReasonCode, _more: Properties
    ) -> None:
        if mid not in self._unacked:
            return
        _, topic = self._unacked.pop(mid)
        self._progress.set()
        if self._on_ack is not None:
            self._on_ack(topic)
        if reason.is_failure:
            self._on_refusal(topic, f"the broker does not accept {topic} and the like: {reason}")

    def _subscribed(
        self, _client: Client, _data: object, mid: int, reasons: list[ReasonCode], _more: Properties | None
    ) -> None:
        _, topic = self._subscribing.pop(mid, (0, ""))
        self._progress.set()
        needless = self._commands is not None and not self._commands.obeyed and topic in self._commands.topics
        for reason in reasons:
            if reason.is_failure and not needless:
                self._on_refusal(topic, f"the broker does not allow subscribing to {topic}: {reason}")
