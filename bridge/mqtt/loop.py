"""Drives a paho client on the running event loop, in place of paho's thread."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

LOG = logging.getLogger(__name__)


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
        self._writes_at_end = self._will_call_flushed = False

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
            self._loop.add_writer(sock, self._writable)
        self._tick()

    def stop_timer(self) -> None:
        """End the calls of every second; paho closes the socket itself."""
        if self._timer is not None:
            self._timer.cancel()

    def stop(self) -> None:
        """Close the socket without DISCONNECT."""
        self.stop_timer()
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

    def _writable(self) -> None:
        self._step(self._client.loop_write)
        if not self._client.want_write():
            self._on_flushed()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """A context at whose end all messages published in it are written, as far as the socket accepts them.

        Otherwise they would wait until all callbacks that are ready on the loop have run.
        """
        self._writes_at_end = True
        try:
            yield
        finally:
            self._writes_at_end = False
        self._step(self._client.loop_write)
        sock = self._client.socket()
        if sock is None:
            return
        if self._client.want_write():
            self._loop.add_writer(sock, self._writable)
        elif not self._will_call_flushed:
            self._will_call_flushed = True
            self._loop.call_soon(self._call_flushed)

    def _call_flushed(self) -> None:
        self._will_call_flushed = False
        if not self._client.want_write():
            self._on_flushed()

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

    def _on_register_write(self, _client: Client, _data: object, sock: "SocketLike") -> None:
        if not self._writes_at_end:
            self._loop.add_writer(sock, self._writable)

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
