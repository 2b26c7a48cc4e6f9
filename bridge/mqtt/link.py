"""One connection to the broker, from its welcome to its end."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Self, cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, error_string
from paho.mqtt.enums import LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridge.model import BridgeError, Message
from bridge.mqtt.pump import LARGEST, Pump
from bridge.mqtt.suspects import Suspects, area

_log = logging.getLogger(__name__)

OnMessage = Callable[[str, bytes, bool], None]
"""Topic, payload, and whether the message was retained."""

BURST = 32
"""Messages until others have their turn on the loop, and until the socket has taken them."""
WINDOW = 20
"""QoS 1 messages that may be unacknowledged; a broker may ask for less."""
ACK_TIMEOUT = 60.0
"""A broker that does not acknowledge for so long, yet answers pings, is stuck."""
CLOSED = re.compile("broken pipe|connection reset", re.IGNORECASE)
"""How the system says that the broker has closed the connection, if it was in a hurry."""
TROUBLE = re.compile(r"^failed to receive on socket: |\[Errno \d+\] ")
TAKEN_OVER, TOO_FAST = 0x8E, 0x96
LOSSES = {
    0x8B: "the broker is shutting down",
    TOO_FAST: "the broker says: Message rate too high: set BRIDGE_MQTT__RATE",
    TAKEN_OVER: "another client uses the same client id: set BRIDGE_MQTT__CLIENT_ID",
}


class MessageRefused(BridgeError):
    """This message can't be sent over this connection; others can."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker announced when it let us in."""

    packet_size: int | None = None
    window: int = WINDOW
    qos: int = 1
    retain: bool = True

    @classmethod
    def of(cls, properties: Properties | None) -> Self:
        return cls(
            packet_size=getattr(properties, "MaximumPacketSize", None),
            window=min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW)),
            qos=min(1, getattr(properties, "MaximumQoS", 1)),
            retain=bool(getattr(properties, "RetainAvailable", True)),
        )

    def check(self, message: Message, qos: int, properties: Properties | None) -> None:
        """Only MQTT 5 knows a limit of the size.

        Raises:
            MessageRefused: the broker would close the connection over it.
        """
        if self.packet_size is None:
            return
        size = _packet_size(message, qos, properties)
        if size > self.packet_size:
            raise MessageRefused(
                f"{message.topic}: {size} bytes, but the broker takes no more than {self.packet_size}: "
                "allow larger messages there"
            )


class Link:
    """`answer` is the broker's CONNACK, `None` if it closed without; `ended` tells why in plain words.

    A careful one has only one thing under way at a time, and has everything acknowledged, so that `suspect` is what
    the broker has closed the connection over.
    """

    def __init__(
        self,
        client: Client,
        on_message: OnMessage,
        complaints: set[tuple[str, str]],
        *,
        suspects: Suspects | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._on_message = on_message
        self._complaints = complaints
        self._suspects = suspects
        self._pump = Pump(
            client, flushed=self._flushed, ticked=self._check_acks, failed=self.hang_up, overfed=self._overfed
        )
        self._burst = 0
        self._unacked: dict[int, tuple[float, str]] = {}
        self._asked: dict[int, tuple[float, str]] = {}
        self._progress = asyncio.Event()
        self._trouble = ""
        self._started = self._loop.time()
        self.limits = Limits()
        self.answer: asyncio.Future[ReasonCode | None] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.lasted = 0.0
        self.suspect = ""
        self.taken_over = False
        self.overfed = False

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def start(self) -> None:
        client = self._client
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_message, client.on_publish = self._received, self._acknowledged
        client.on_subscribe, client.on_log = self._subscribed, self._noted
        self._pump.start()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """With QoS 0: for more, a NATS cluster that has just lost a server hangs for seconds, and us with it."""
        for topic in topics:
            await self._room(0)
            _, mid = self._client.subscribe(topic, qos=0)
            if mid is not None:
                self._asked[mid] = (self._loop.time(), topic)

    async def send(self, message: Message) -> bool:
        qos = min(1 if self._careful else message.qos, self.limits.qos)
        properties = self._properties(message)
        self.limits.check(message, qos, properties)
        await self._room(qos)
        return self.alive and self._publish(message, qos, properties)

    async def leave(self) -> None:
        """Wait until all is acknowledged, then take leave, so that the broker does not publish the will."""
        while self.alive and (self._unacked or self._client.want_write()):
            await self._news()
        self._client.disconnect()

    def hang_up(self, reason: str) -> None:
        """End the connection without a word: the broker publishes the will."""
        self._end(reason)
        self._pump.stop()

    @property
    def _careful(self) -> bool:
        return self._suspects is not None

    async def _room(self, qos: int) -> None:
        """Wait until there is room for one more, or the connection is gone."""
        while self.alive and self._full(qos):
            await self._news()

    def _full(self, qos: int) -> bool:
        if self._careful and (self._unacked or self._asked):
            return True
        return self._burst >= BURST or (qos > 0 and len(self._unacked) >= self.limits.window)

    async def _news(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    def _properties(self, message: Message) -> Properties | None:
        mqtt5 = self._client.protocol == MQTTProtocolVersion.MQTTv5
        return _content_type(message.content_type) if mqtt5 and message.content_type else None

    def _publish(self, message: Message, qos: int, properties: Properties | None) -> bool:
        with self._pump.at_once():
            try:
                info = self._client.publish(
                    message.topic, message.payload, qos, retain=self.limits.retain, properties=properties
                )
            except ValueError as error:  # a topic that MQTT does not allow
                raise MessageRefused(f"{message.topic}: {error}") from None
            if qos:
                self._unacked[info.mid] = (self._loop.time(), message.topic)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self.hang_up(error_string(info.rc))
            return False
        self._burst += 1
        return self.alive

    def _end(self, reason: str) -> None:
        if not self.alive:
            return
        self.lasted = self._loop.time() - self._started
        under_way = [*self._asked.values(), *self._unacked.values()]
        self.suspect = under_way[0][1] if self._careful and under_way else ""
        self.ended.set_result(reason)
        if not self.answer.done():
            self.answer.set_result(None)
        self._pump.rest()
        self._progress.set()

    def _flushed(self) -> None:
        self._burst = 0
        self._progress.set()

    def _overfed(self) -> None:
        self.overfed = True
        self.hang_up(f"the broker sends us a message of more than {LARGEST} bytes")

    def _check_acks(self) -> None:
        oldest = [next(iter(waiting.values()))[0] for waiting in (self._unacked, self._asked) if waiting]
        if oldest and self._loop.time() - min(oldest) > ACK_TIMEOUT:
            self.hang_up(f"the broker has not acknowledged a message for {ACK_TIMEOUT:g} s")

    def _noted(self, _client: Client, _data: object, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR and not CLOSED.search(text):
            self._trouble = TROUBLE.sub("", text)

    def _connected(
        self,
        _client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if not reason.is_failure:
            self.limits = Limits.of(properties)
        if not self.answer.done():
            self.answer.set_result(reason)

    def _disconnected(
        self, _client: Client, _data: object, flags: DisconnectFlags, reason: ReasonCode, _more: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.taken_over = reason == TAKEN_OVER
            self._end(LOSSES.get(reason.value, f"the broker says: {reason}"))
        elif reason == "Keep alive timeout":
            self._end("the broker does not answer any more")
        else:
            self._end(
                self._trouble or ("the broker closed the connection" if reason.is_failure else "closed by us")
            )

    def _received(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        """What the service makes of one message must not cost the connection."""
        try:
            self._on_message(message.topic, bytes(message.payload), message.retain)
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("A message from the broker could not be handled")

    def _acknowledged(
        self, _client: Client, _data: object, mid: int, reason: ReasonCode, _more: Properties
    ) -> None:
        if mid not in self._unacked:
            return  # QoS 0: it is written
        _, topic = self._unacked.pop(mid)
        self._progress.set()
        if self._suspects is not None:
            self._suspects.acquit(topic)
        complaint = (str(reason), area(topic))
        if reason.is_failure and complaint not in self._complaints:
            self._complaints.add(complaint)
            _log.warning("The broker does not accept %s and the like: %s", topic, reason)

    def _subscribed(
        self, _client: Client, _data: object, mid: int, reasons: list[ReasonCode], _more: Properties | None
    ) -> None:
        _, topic = self._asked.pop(mid, (0, ""))
        self._progress.set()
        for reason in reasons:
            if reason.is_failure:
                _log.warning("The broker does not let us subscribe to %s: %s", topic, reason)


@cache
def _content_type(value: str) -> Properties:
    """Shared between messages, for paho takes long to make one."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho's types end here
    properties.ContentType = value
    return properties


def _packet_size(message: Message, qos: int, properties: Properties | None) -> int:
    """Of the whole PUBLISH packet in MQTT 5."""
    packed = cast("bytes", properties.pack()) if properties is not None else b"\0"  # type: ignore[no-untyped-call]
    mid = 2 if qos else 0
    rest = 2 + len(message.topic.encode()) + mid + len(packed) + len(message.payload.encode())
    return 1 + max(1, (rest.bit_length() + 6) // 7) + rest
