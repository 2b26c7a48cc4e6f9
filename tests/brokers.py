"""A real mosquitto for tests, on a loopback port of its own, and a subscriber that tells what it sees."""

import asyncio
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

PATIENCE = 20
"""Seconds until a test gives up; nothing here takes so long."""


def program(name: str) -> str:
    """Its path. A test that needs it fails without it: skipped, nobody would see that nothing was tested."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: apt-get install mosquitto mosquitto-clients")
    return found


def send(process: asyncio.subprocess.Process, number: int) -> None:
    """A signal, straight: asyncio's own way asks for the exit code first, and takes it from its own watcher."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Mosquitto:
    """One broker. It may be stopped and started again, on the same port; it forgets everything in between.

    `lines` are added to the configuration of its one listener. A context manager starts and stops it.
    """

    def __init__(self, folder: Path, *lines: str, scheme: str = "mqtt") -> None:
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._log = folder / f"mosquitto-{self.port}.log"
        self._config = folder / f"mosquitto-{self.port}.conf"
        anonymous = [] if any(line.startswith("allow_anonymous") for line in lines) else ["allow_anonymous true"]
        # as root it would become a user who may not read the test's files
        fixed = [f"listener {self.port} 127.0.0.1", "persistence false", f"user {getpass.getuser()}"]
        self._config.write_text("\n".join([*fixed, *anonymous, *lines, ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [program("mosquitto"), "-v", "-c", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"mosquitto does not start:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """As a service manager does: the broker takes leave of its clients."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None

    def kill(self) -> None:
        """As a power cut does."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def _listens(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(1)
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


def password_lines(folder: Path, user: str, password: str) -> tuple[str, ...]:
    """Configuration of a broker that lets only this user in."""
    file = folder / "passwords"
    command = [program("mosquitto_passwd"), "-b", "-c", str(file), user, password]
    subprocess.run(command, check=True, capture_output=True)
    return ("allow_anonymous false", f"password_file {file}")


@dataclass(frozen=True, slots=True)
class Seen:
    """One message as a subscriber gets it. `retained` is whether the broker had it before we subscribed."""

    topic: str
    payload: str
    qos: int
    retained: bool
    content_type: str


@dataclass
class Watcher:
    """What a subscriber has seen so far, oldest first."""

    seen: list[Seen] = field(default_factory=list)
    subscribed: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def newest(self) -> dict[str, str]:
        return {message.topic: message.payload for message in self.seen}

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE  # of real seconds, whatever the loop's are
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"it never came; seen: {self.seen[-20:]}")
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), 1)

    async def until_seen(self, topic: str, payload: str) -> None:
        await self.until(lambda: self.newest.get(topic) == payload)

    async def read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self._take(line.decode().rstrip("\n"))
            self._news.set()

    def _take(self, line: str) -> None:
        mark, *fields = line.split("\t", 5)
        if mark == "Seen":
            retained, qos, content_type, topic, payload = fields
            self.seen.append(Seen(topic, payload, int(qos), retained == "1", content_type))
        elif line.startswith("Subscribed"):
            self.subscribed = True


@asynccontextmanager
async def watching(port: int, *topics: str, qos: int = 1) -> AsyncIterator[Watcher]:
    """A subscriber, of all topics unless named. With QoS 1 mosquitto drops what it can't deliver soon enough."""
    output = "Seen\t%r\t%q\t%C\t%t\t%p"
    filters = [part for topic in topics or ("#",) for part in ("-t", topic)]
    options = ["-d", "-h", "127.0.0.1", "-p", str(port), "-V", "5", "-q", str(qos), "-F", output]
    line_by_line = [program("stdbuf"), "-oL"]  # into a pipe it would write by the block
    process = await asyncio.create_subprocess_exec(
        *line_by_line, program("mosquitto_sub"), *options, *filters, stdout=subprocess.PIPE, limit=2**24
    )
    watcher = Watcher()
    assert process.stdout is not None
    reading = asyncio.create_task(watcher.read(process.stdout))
    try:
        await watcher.until(lambda: watcher.subscribed)
        yield watcher
    finally:
        send(process, signal.SIGKILL)  # on SIGTERM mosquitto_sub 2.0.11 may wait for ever for its own lock
        await reading
        await process.wait()
