"""An event loop whose time leaps: while everything waits, the clock goes on to the next timer at once."""

import asyncio
import os
import selectors
import socket
import stat
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any

INFO_SIZE = 256
RECEIVED = struct.Struct("128xQ8xI")
"""`tcpi_bytes_received` and `tcpi_notsent_bytes` in Linux' `struct tcp_info`."""
SENT = struct.Struct("200xQQ")
"""`tcpi_bytes_sent` and `tcpi_bytes_retrans`."""
EXECUTOR = "asyncio_"
"""How the names of the threads of asyncio's executor begin."""
RARER_S = {"_tick": 20.0}
"""Functions that the bridge calls each second to keep its connection alive, which is needed less often here."""
LOOK_S = 0.0005
"""Real time to wait for a thread or a byte that is under way."""


class Wire:
    """One end of a TCP connection of this process; the other end is here, too.

    Raises:
        OSError: it is not connected.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.ends = end.getsockname(), end.getpeername()

    def counts(self) -> tuple[int, int]:
        """Return how many bytes were given to the kernel to send, and how many it has received."""
        info = self._end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_SIZE)
        received, unsent = RECEIVED.unpack_from(info)
        sent, again = SENT.unpack_from(info)
        return sent - again + unsent, received

    def release(self) -> None:
        """Leave the file descriptor to its owner."""
        self._end.detach()


class LeapingSelector(selectors.DefaultSelector):
    """A selector that never waits for a timer. `now` is the loop's time, `jobs` counts what the executor has to do.

    The executor's threads may wait; every other thread that is newer than the selector is at work.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.jobs = 0
        self._threads = frozenset(threading.enumerate())
        self._wires: dict[int, Wire] = {}
        self._connecting: set[int] = set()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        if stat.S_ISSOCK(os.fstat(key.fd).st_mode):
            self._know(key.fd)
        return key

    def _know(self, fd: int) -> None:
        end = socket.socket(fileno=fd)
        is_tcp = end.family == socket.AF_INET and end.type == socket.SOCK_STREAM
        if is_tcp and not end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            try:
                self._wires[fd] = Wire(end)
            except OSError:
                self._connecting.add(fd)
        if fd not in self._wires:
            end.detach()  # or else the file descriptor, which belongs to others, is closed

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self._connecting.discard(key.fd)
        if wire := self._wires.pop(key.fd, None):
            wire.release()
        return key

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None or timeout < 0 or self._is_busy():
            return super().select(LOOK_S)
        found = super().select(0)  # what was under way at the first look may have come before the second
        if not found:
            self.now += timeout
        return found

    def _is_busy(self) -> bool:
        """Say whether a thread works, a connection is being made, or bytes are under way."""
        if self.jobs or self._connecting or self._has_new_thread():
            return True
        counts = {wire.ends: wire.counts() for wire in self._wires.values()}
        return any(
            sent != counts[there, here][1] for (here, there), (sent, _) in counts.items() if (there, here) in counts
        )

    def _has_new_thread(self) -> bool:
        new = (thread for thread in threading.enumerate() if thread not in self._threads)
        return any(not thread.name.startswith(EXECUTOR) for thread in new)


class LeapingLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while everything in it waits."""

    def __init__(self) -> None:
        self._leaping = LeapingSelector()
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.now

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        delay = max(delay, RARER_S.get(getattr(callback, "__name__", ""), 0.0))
        return super().call_later(delay, callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        self._leaping.jobs += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._finish_job)
        return future

    def _finish_job(self, _future: object) -> None:
        self._leaping.jobs -= 1
