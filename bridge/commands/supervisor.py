"""What systemd, or whoever else gives a NOTIFY_SOCKET, is told: the protocol of sd_notify(3)."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from bridge.service import Condition

LOG = logging.getLogger(__name__)
LOOK = 5.0
"""Most seconds between two looks at how the bridge is doing."""
FEEDS = 3
"""How often a watchdog is fed within its time: twice may be late on a machine that is busy."""
LONGEST_STATUS = 400
MICROSECONDS = 1_000_000


class Supervisor:
    """Without one, everything here does nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        ours = environment.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        self._watchdog = _seconds(environment.get("WATCHDOG_USEC", "")) if ours else None
        self._pause = min(LOOK, self._watchdog / FEEDS) if self._watchdog else LOOK

    async def attend(self, condition: Callable[[], Condition]) -> None:
        """Say that we are ready, then what is missing whenever that changes, and that we live as long as we do."""
        self.ready()
        told, was_alive = "", True
        while True:
            now = condition()
            if self._watchdog and now.alive:
                self._tell("WATCHDOG=1")
            if str(now) != told:
                told = str(now)
                self._tell(f"STATUS={_line(told)}")
            if was_alive and not now.alive:
                LOG.error("stuck: %s; only a new start helps", ", ".join(now.stuck))
            was_alive = now.alive
            await asyncio.sleep(self._pause)

    def ready(self) -> None:
        self._tell("READY=1")

    def reloading(self) -> None:
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1", "STATUS=taking leave")

    def _tell(self, *lines: str) -> None:
        """Never waits, and never fails: without listeners the bridge does its work all the same."""
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)


def _address(given: str) -> str | None:
    """A path, or a name of the abstract kind behind an `@`; systemd's other kinds are for virtual machines."""
    if given.startswith("@"):
        return f"\0{given[1:]}"
    return given if given.startswith("/") else None


def _seconds(microseconds: str) -> float | None:
    return int(microseconds) / MICROSECONDS if microseconds.isdecimal() and int(microseconds) else None


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_STATUS]
