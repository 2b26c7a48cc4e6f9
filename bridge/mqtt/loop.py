"""A paho client with bounds, what drives it on the running event loop, and what its broker has read."""

import asyncio
import logging
import math
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import LogLevel, MQTTErrorCode

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

LOG = logging.getLogger(__name__)
MAX_RECEIVED_BYTES = 65_536
"""Largest packet that is kept, as others may write to those topics, too. With MQTT 5 the broker is told so; with
MQTT 3.1.1 a larger message is read to its end and dropped."""
MAX_JOINED_BYTES = 65_536
"""Packets are joined up to this: paho keeps each whole until its end is written, and copies what a slow broker has
left of it at each attempt."""
MAX_SHOWN_TOPIC_LETTERS, PACKET_TYPE, PUBLISH, PINGREQ = 100, 0xF0, 0x30, 0xC0
PROTOCOL_IS_BROKEN = "the broker has sent what MQTT does not allow"
OnDoubt = Callable[[Sequence[str]], None]
"""Topics whose last messages may be lost."""

PING_AFTER, MAX_PINGS = 64, 4
"""Messages between two pings, and pings without an answer, after which sending waits. More messages would only wait
in sockets, where newer ones can't replace them."""
STALL_S = 3.0
"""A broker that reads nothing for so long has lost messages: NATS waits 4 s for a stream that has no leader, and
then drops the message. The time that it usually takes for as many messages comes on top of that."""
PACE_SHARE = 0.1
"""The share of the newest answer in what is usual. So a slow broker is soon known, and one stall changes little."""


class Receipts:
    """Notes which messages the broker has read: it answers a ping after it has read all that was sent before.

    MQTT acknowledges messages of QoS 1 only, and those cost a cluster twice as much. `ping` sends a ping,
    `on_answer` is called after each answer, `on_doubt` gets the topics of messages that may be lost. `time` returns
    monotonic seconds.
    """

    def __init__(
        self,
        ping: Callable[[], None],
        on_answer: Callable[[], None],
        on_doubt: OnDoubt,
        time: Callable[[], float],
    ) -> None:
        self._ping, self._on_answer, self._on_doubt, self._time = ping, on_answer, on_doubt, time
        self._sent: list[str] = []
        self._asked: deque[tuple[float, int, list[str]]] = deque()
        """When each ping was sent, how many messages it follows, and the topics of those that are not in doubt."""
        self._answered_at = -math.inf
        self._pace = 0.0
        """Seconds that the broker usually takes for one of many messages."""

    @property
    def full(self) -> bool:
        """Whether too many messages are under way to send another one."""
        return len(self._asked) >= MAX_PINGS

    def sent(self, topic: str) -> None:
        """Note a message that was sent."""
        self._sent.append(topic)
        if len(self._sent) >= PING_AFTER:
            self._ping()

    def ask(self) -> None:
        """Send a ping if none has followed the last message."""
        if self._sent:
            self._ping()

    def asked(self) -> None:
        """Note that a ping was sent."""
        self._asked.append((self._time(), len(self._sent), self._sent))
        self._sent = []

    def answered(self) -> None:
        """Note that a ping was answered. After a stall everything under way is in doubt."""
        if not self._asked:
            return
        now, (asked_at, count, _) = self._time(), self._asked[0]
        took = now - max(asked_at, self._answered_at)
        if took > STALL_S + count * self._pace:
            self.doubt()
        if count >= PING_AFTER:
            self._pace += PACE_SHARE * (took / count - self._pace)
        self._asked.popleft()
        self._answered_at = now
        self._on_answer()

    def doubt(self) -> None:
        """Hand on the topics of all messages under way, each message once."""
        if topics := [topic for *_, batch in self._asked for topic in batch] + self._sent:
            self._asked = deque((at, count, []) for at, count, _ in self._asked)
            self._sent = []
            self._on_doubt(topics)


class BoundedClient(Client):
    """A paho client that drops received messages which are too large, and writes several in one piece.

    `on_dropped` gets the topics of dropped ones; paho keeps 256 MB. `on_log` gets errors only: paho makes a text of
    each message otherwise. `receipts` are told of all pings and answers.
    """

    on_dropped: Callable[[str], None]
    receipts: Receipts | None = None

    def ping(self) -> None:
        """Send a ping. paho closes the connection only if one of its own, after a silence, stays unanswered."""
        self._send_simple_command(PINGREQ)

    def _send_simple_command(self, command: int) -> MQTTErrorCode:
        if self.receipts and command == PINGREQ:
            self.receipts.asked()
        return super()._send_simple_command(command)

    def _handle_pingresp(self) -> MQTTErrorCode:
        if self.receipts:
            self.receipts.answered()
        return super()._handle_pingresp()

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._in_packet["remaining_length"] > MAX_RECEIVED_BYTES:
            if self._in_packet["command"] & PACKET_TYPE != PUBLISH:
                raise OSError(PROTOCOL_IS_BROKEN)  # paho has no other way out of here
            del self._in_packet["packet"][MAX_RECEIVED_BYTES:]  # the beginning has the topic
        return super()._sock_recv(min(bufsize, MAX_RECEIVED_BYTES))

    def _packet_handle(self) -> MQTTErrorCode:
        if self._in_packet["remaining_length"] <= MAX_RECEIVED_BYTES:
            return super()._packet_handle()
        start = bytes(self._in_packet["packet"][: MAX_SHOWN_TOPIC_LETTERS + 2])
        self.on_dropped(start[2 : 2 + int.from_bytes(start[:2])].decode(errors="replace"))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _packet_queue(
        self, command: int, packet: bytes | bytearray, mid: int, qos: int, info: MQTTMessageInfo | None = None
    ) -> MQTTErrorCode:
        """Join a message to the one that waits before it, since each write costs more than a message."""
        if command == PUBLISH and self._out_packet:
            last = self._out_packet[-1]
            if last["command"] == PUBLISH and len(last["packet"]) < MAX_JOINED_BYTES:
                last["packet"] += packet
                last["to_process"] += len(packet)
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        # for a QoS of 0 paho would make objects after each write to tell of it, which nobody waits for
        return super()._packet_queue(command, packet, mid, max(1, qos), info)

    def _sock_send(self, buf: bytes | bytearray) -> int:
        sent = super()._sock_send(buf)
        if not sent:  # a WebSocket has taken a part of it; paho would forget the rest
            raise BlockingIOError
        return sent

    def _easy_log(self, level: LogLevel, fmt: str, *args: object) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            super()._easy_log(level, fmt, *args)


class LoopAdapter:
    """Drives a paho client on the running event loop, in place of paho's thread.

    It reads, writes and keeps the connection alive from `start` until paho closes the socket, or until `stop`. It
    starts after paho's blocking `connect`, so that paho calls back on the loop only, never in a thread.
    `on_flushed` is called when paho's queue is empty, `on_second` every second, and `on_failure` when paho has
    raised an error.
    """

    def __init__(
        self,
        client: Client,
        *,
        on_flushed: Callable[[], None],
        on_second: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._on_flushed, self._on_second = on_flushed, on_second
        self._on_failure = on_failure
        self._timer: asyncio.TimerHandle | None = None
        self._next_write: asyncio.Handle | None = None

    def start(self) -> None:
        """Begin to drive the client."""
        client = self._client
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        sock = client.socket()
        if sock is None:  # paho could not even send its CONNECT
            self._on_failure("the broker closed the connection")
            return
        _send_at_once(sock)
        self._loop.add_reader(sock, self._readable)
        if client.want_write():
            self._loop.add_writer(sock, self._write_and_tell)
        self._tick()

    def stop_timer(self) -> None:
        """End the calls of every second; paho closes the socket itself."""
        if self._timer is not None:
            self._timer.cancel()

    def stop(self) -> None:
        """Close the socket without DISCONNECT."""
        self.stop_timer()
        if self._next_write is not None:
            self._next_write.cancel()
        client, sock = self._client, self._client.socket()
        client.on_socket_close = client.on_socket_unregister_write = None
        if sock is not None and sock.fileno() >= 0:
            self._on_socket_close(client, None, sock)
            sock.close()

    def _readable(self) -> None:
        self._step(self._client.loop_read)
        self._client._in_messages.clear()  # noqa: SLF001 - of QoS 2, which is not subscribed to; paho keeps them
        # TLS may hold decrypted bytes that the loop does not know of
        if getattr(self._client.socket(), "pending", int)() > 0:
            self._loop.call_soon(self._readable)

    def write(self) -> None:
        """Write what is queued, as far as the socket accepts it; else the loop writes it in its next turn."""
        self._step(self._client.loop_write)

    def _write_and_tell(self) -> None:
        self._next_write = None
        self.write()
        sock = self._client.socket()
        if not self._client.want_write():
            self._on_flushed()
        elif sock is not None and sock.fileno() >= 0:  # an error has closed it otherwise
            self._loop.add_writer(sock, self._write_and_tell)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(1, self._tick)
        self._step(self._client.loop_misc)
        self._on_second()

    def _step(self, work: Callable[[], MQTTErrorCode]) -> None:
        """Run a step of paho. After an exception paho may be in the middle of a packet, so the connection ends."""
        try:
            work()
        except Exception:
            LOG.exception("The MQTT library failed")
            self._on_failure("a fault of the MQTT library")

    def _on_register_write(self, _client: Client, _data: object, _sock: "SocketLike") -> None:
        if self._next_write is None:
            self._next_write = self._loop.call_soon(self._write_and_tell)

    def _on_unregister_write(self, _client: Client, _data: object, sock: "SocketLike") -> None:
        self._loop.remove_writer(sock)

    def _on_socket_close(self, _client: Client, _data: object, sock: "SocketLike") -> None:
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)


def _send_at_once(sock: "SocketLike") -> None:
    """Turn off Nagle's algorithm: a message would wait up to 40 ms until the broker acknowledges the one before."""
    same = socket.socket(fileno=sock.fileno())  # the connection may be wrapped, for TLS or in a WebSocket
    try:
        if same.family in {socket.AF_INET, socket.AF_INET6}:
            same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    finally:
        same.detach()
