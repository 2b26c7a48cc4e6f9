"""Drives a paho client on the running event loop, in place of paho's thread."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

_log = logging.getLogger(__name__)

LARGEST = 65_536
"""Bytes of a packet that we take: what is meant for us is tiny, and others may write to those topics, too."""


class Pump:
    """Reads, writes and keeps alive from `start` until paho closes the socket, or until `stop`.

    It starts when paho's blocking `connect` is over, so paho calls back on the loop only, never in a thread.
    `flushed` is called on the loop when paho's queue is empty, `ticked` every second, `failed` when paho raised
    something, and `overfed` when a packet comes that is larger than we take.
    """

    def __init__(
        self,
        client: Client,
        *,
        flushed: Callable[[], None],
        ticked: Callable[[], None],
        failed: Callable[[str], None],
        overfed: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._flushed = flushed
        self._ticked = ticked
        self._failed = failed
        self._overfed = overfed
        self._timer: asyncio.TimerHandle | None = None
        self._at_once = self._tells = False

    def start(self) -> None:
        client = self._client
        client.on_socket_close = self._unwatch
        client.on_socket_register_write = self._want_write
        client.on_socket_unregister_write = self._want_no_write
        sock = client.socket()
        if sock is None:  # paho could not even send its CONNECT
            self._failed("the broker closed the connection")
            return
        self._loop.add_reader(sock, self._readable)
        if client.want_write():
            self._loop.add_writer(sock, self._writable)
        self._tick()

    def rest(self) -> None:
        """No ticks any more; paho closes the socket itself."""
        if self._timer is not None:
            self._timer.cancel()

    def stop(self) -> None:
        """Close the socket without a word."""
        self.rest()
        client, sock = self._client, self._client.socket()
        client.on_socket_close = client.on_socket_unregister_write = None
        if sock is not None and sock.fileno() >= 0:
            self._unwatch(client, None, sock)
            sock.close()

    def _readable(self) -> None:
        self._step(self._client.loop_read)
        # MQTT 3.1.1 has no way to say what we take, and paho takes everything
        if self._client._in_packet["remaining_length"] > LARGEST:  # noqa: SLF001 - nothing public tells it
            self._overfed()
            return
        # TLS may have decrypted more than was read: the loop would not learn of it
        if getattr(self._client.socket(), "pending", int)() > 0:
            self._loop.call_soon(self._readable)

    def _writable(self) -> None:
        self._step(self._client.loop_write)
        if not self._client.want_write():
            self._flushed()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What paho is given meanwhile is written when this ends, as far as the socket takes it.

        Left to the loop, it would wait until all that is ready to run has run.
        """
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
        self._step(self._client.loop_write)
        sock = self._client.socket()
        if sock is None:
            return
        if self._client.want_write():
            self._loop.add_writer(sock, self._writable)
        elif not self._tells:
            self._tells = True
            self._loop.call_soon(self._tell_flushed)

    def _tell_flushed(self) -> None:
        self._tells = False
        if not self._client.want_write():
            self._flushed()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(1, self._tick)
        self._step(self._client.loop_misc)
        self._ticked()

    def _step(self, work: Callable[[], MQTTErrorCode]) -> None:
        """After an exception paho may be half way through a packet, so the connection can't go on."""
        try:
            work()
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("The MQTT library failed")
            self._failed("a fault in the MQTT library")

    def _want_write(self, _client: Client, _data: object, sock: "SocketLike") -> None:
        if not self._at_once:
            self._loop.add_writer(sock, self._writable)

    def _want_no_write(self, _client: Client, _data: object, sock: "SocketLike") -> None:
        self._loop.remove_writer(sock)

    def _unwatch(self, _client: Client, _data: object, sock: "SocketLike") -> None:
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
