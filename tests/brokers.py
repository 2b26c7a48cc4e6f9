"""Real brokers for tests, on loopback ports of their own, and a subscriber that records messages."""

import asyncio
import getpass
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from enclave import pump

TIMEOUT_S = 60.0
"""Real seconds after which a test that waits for something fails."""
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
FIRST_PORT = 12_000 + WORKER % 20 * 1_000
OWN_PORTS = itertools.cycle(range(FIRST_PORT, FIRST_PORT + 1_000))
"""The ports that this worker tries, one after another. No other worker does."""


def program(name: str, package: str = "mosquitto mosquitto-clients") -> str:
    """Return the path of a program. Tests fail without it, because a skipped test would go unnoticed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: apt-get install {package}")
    return found


def send(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal directly, because asyncio's method first polls the exit code and takes it from its watcher."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def needed(name: str, package: str) -> str:
    """Return the path of an optional program, or skip the test. In CI a missing program is a failure."""
    try:
        return program(name, package)
    except FileNotFoundError as missing:
        if "CI" in os.environ:
            raise
        pytest.skip(str(missing))


def free_port() -> int:
    """Return a port that nothing uses, another one each time.

    It is below those that Linux gives to connections: one of them could take it before a slow broker opens it.
    """
    return next(filter(_is_free, OWN_PORTS))


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Served:
    """A broker on a loopback port of its own. It can be stopped and started again at the same port.

    As a context manager it starts and stops itself.
    """

    name = "broker"
    start_timeout_s = TIMEOUT_S

    def __init__(self, folder: Path, scheme: str = "mqtt") -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._log = folder / f"{self.name}-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment()
            )
        deadline = time.monotonic() + self.start_timeout_s
        while not self.listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} does not start:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the broker as a service manager does: it disconnects its clients properly."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(TIMEOUT_S)
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Stop the broker as a power cut does."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def listens(self) -> bool:
        return answers(self.port)


def answers(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Mosquitto(Served):
    """A mosquitto without persistence: it loses everything when it is stopped.

    `lines` are added to the configuration of its listener; `first` precedes it.
    """

    name = "mosquitto"

    def __init__(self, folder: Path, *lines: str, scheme: str = "mqtt", first: Sequence[str] = ()) -> None:
        super().__init__(folder, scheme)
        self._config = folder / f"mosquitto-{self.port}.conf"
        anonymous = [] if any(line.startswith("allow_anonymous") for line in lines) else ["allow_anonymous true"]
        # if started as root, it changes to a user who may not read the test's files
        fixed = [f"listener {self.port} 127.0.0.1", "persistence false", f"user {getpass.getuser()}"]
        self._config.write_text("\n".join([*first, *fixed, *anonymous, *lines, ""]))
        self._runs = 0

    def command(self) -> list[str]:
        return [program("mosquitto"), "-v", "-c", str(self._config)]

    def start(self) -> None:
        self._runs += 1
        super().start()

    def listens(self) -> bool:
        """Return whether it accepts connections at all of its listeners."""
        return self.log.count(" running\n") == self._runs and super().listens()


OWN_NETWORK = ("unshare", "--map-root-user", "--net")


class EnclosedMosquitto(Served):
    """A mosquitto with a WebSocket listener, in a network of its own, because it would listen on all interfaces.

    `port` is a loopback port that leads to it; its plain listener is a Unix socket.
    """

    name = "mosquitto-enclosed"

    def __init__(self, folder: Path, *lines: str, scheme: str = "ws") -> None:
        super().__init__(folder, scheme)
        self.plain, self._door = folder / "plain.sock", folder / "door.sock"
        self._config = folder / "mosquitto.conf"
        fixed = ("persistence false", "user root", "allow_anonymous true", f"listener 0 {self.plain}")
        websocket = (f"listener {self.port}", "protocol websockets", *lines)
        self._config.write_text("\n".join([*fixed, *websocket, ""]))

    def command(self) -> list[str]:
        enclave = [sys.executable, str(Path(__file__).with_name("enclave.py")), str(self._door), str(self.port)]
        return [
            "unshare",
            "--map-root-user",
            "--net",
            *enclave,
            program("mosquitto"),
            "-v",
            "-c",
            str(self._config),
        ]

    @classmethod
    def check(cls) -> None:
        """Skip the test if this machine does not allow network namespaces."""
        if subprocess.run([*OWN_NETWORK, "true"], check=False, capture_output=True).returncode:
            pytest.skip("no network namespaces here")

    def listens(self) -> bool:
        return "running" in self.log and self._door.exists()

    @asynccontextmanager
    async def reachable(self) -> AsyncIterator[None]:
        """Forward connections from its port while this context is open."""

        async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner_reader, inner_writer = await asyncio.open_unix_connection(str(self._door))
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

        async with await asyncio.start_server(join, "127.0.0.1", self.port):
            yield


class Configured(Served):
    """A broker with a given configuration, such as one from the documents.

    The configuration must contain `port`.
    """

    def __init__(self, folder: Path, name: str, configuration: str, port: int, *options: str) -> None:
        super().__init__(folder)
        self.port, self.url = port, f"mqtt://127.0.0.1:{port}"
        self.name, self._program, self._options = name, program(name, name), options
        self._config = folder / f"{name}-{port}.conf"
        self._config.write_text(configuration)

    def command(self) -> list[str]:
        return [self._program, "-c", str(self._config), *self._options]


class Nats(Served):
    """A NATS server with MQTT and WebSocket listeners. Arguments such as `users` are added to its configuration."""

    name = "nats-server"

    def __init__(self, folder: Path, *lines: str) -> None:
        super().__init__(folder)
        self._program = needed("nats-server", "nats-server")
        self.websocket_url = f"ws://127.0.0.1:{(websocket := free_port())}/mqtt"
        self._config = folder / "nats.conf"
        # MQTT needs its persistence (JetStream), which needs a server name
        fixed = (
            f"listen: 127.0.0.1:{free_port()}",
            f'server_name: test, jetstream: {{ store_dir: "{folder}/jetstream" }}',
            f"mqtt: {{ listen: 127.0.0.1:{self.port} }}",
            f"websocket: {{ listen: 127.0.0.1:{websocket}, no_tls: true }}",
        )
        self._config.write_text("\n".join([*fixed, *lines, ""]))

    def command(self) -> list[str]:
        return [self._program, "-c", str(self._config)]


class RabbitMq(Served):
    """A RabbitMQ with MQTT plugins and the users of its definitions. It starts slowly, so all tests share one."""

    name = "rabbitmq"
    start_timeout_s = 120.0

    def __init__(self, folder: Path, definitions: Mapping[str, Any], *lines: str) -> None:
        super().__init__(folder)
        needed("rabbitmq-server", "rabbitmq-server")
        # the scripts that are found first need root, or a user of their own
        self._program = next(Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmq-server"))
        self._epmd: subprocess.Popen[bytes] | None = None
        self._epmd_port, self._node_port, web = free_port(), free_port(), free_port()
        self.websocket_url = f"ws://127.0.0.1:{web}/ws"
        (folder / "definitions.json").write_text(json.dumps(definitions))
        (folder / "plugins").write_text("[rabbitmq_mqtt, rabbitmq_web_mqtt].")
        fixed = (
            "listeners.tcp = none",
            f"mqtt.listeners.tcp.1 = 127.0.0.1:{self.port}",
            "mqtt.allow_anonymous = false",
            "web_mqtt.tcp.ip = 127.0.0.1",
            f"web_mqtt.tcp.port = {web}",
            f"load_definitions = {folder}/definitions.json",
            "log.console = true",
            "log.file = false",
        )
        (folder / "rabbitmq.conf").write_text("\n".join([*fixed, *lines, ""]))

    def command(self) -> list[str]:
        return [str(self._program)]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": "test@localhost",
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def start(self) -> None:
        """Start with an own Erlang name server. The usual one outlives the tests and listens on all interfaces."""
        epmd = [program("epmd", "rabbitmq-server"), "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._epmd = subprocess.Popen(epmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        super().start()

    def listens(self) -> bool:
        """Return whether it is ready. It already listens before it knows its users."""
        return "startup complete" in self.log

    def stop(self) -> None:
        super().stop()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(TIMEOUT_S)
            self._epmd = None


def password_lines(folder: Path, user: str, password: str) -> tuple[str, ...]:
    """Return the configuration of a mosquitto that only accepts this user."""
    file = folder / "passwords"
    command = [program("mosquitto_passwd"), "-b", "-c", str(file), user, password]
    subprocess.run(command, check=True, capture_output=True)
    return ("allow_anonymous false", f"password_file {file}")


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as a subscriber receives it. It is `retained` if the broker had it before the subscription."""

    topic: str
    payload: str
    qos: int
    retained: bool
    content_type: str


@dataclass
class Watcher:
    """The messages that a subscriber has received so far, oldest first."""

    seen: list[Seen] = field(default_factory=list)
    subscribed: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def newest(self) -> dict[str, str]:
        return {message.topic: message.payload for message in self.seen}

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S  # real seconds, which may differ from those of the loop
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
            self._take(line.decode(errors="replace").rstrip("\n"))
            self._news.set()

    def _take(self, line: str) -> None:
        mark, *fields = line.split("\t", 5)
        if mark == "Seen":
            retained, qos, content_type, topic, payload = fields
            self.seen.append(Seen(topic, payload, int(qos), retained == "1", content_type))
        elif line.startswith("Subscribed"):
            self.subscribed = True


@asynccontextmanager
async def watching(
    where: int | Path, *topics: str, qos: int = 1, options: Sequence[str] = ("-V", "5")
) -> AsyncIterator[Watcher]:
    """Run a subscriber of these or all topics. With QoS 1 mosquitto drops what it can't deliver soon enough.

    `where` is a port or a Unix socket, `options` are more options of `mosquitto_sub`.
    """
    output = "Seen\t%r\t%q\t%C\t%t\t%p"
    filters = [part for topic in topics or ("#",) for part in ("-t", topic)]
    road = ["-h", "127.0.0.1", "-p", str(where)] if isinstance(where, int) else ["--unix", str(where)]
    fixed = ["-d", *road, "-q", str(qos), "-F", output]
    line_by_line = [program("stdbuf"), "-oL"]  # to a pipe it would write whole blocks
    process = await asyncio.create_subprocess_exec(
        *line_by_line, program("mosquitto_sub"), *fixed, *options, *filters, stdout=subprocess.PIPE, limit=2**24
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


class Line:
    """A line to a broker that can be cut, as when a network fails: both ends see a connection that was reset."""

    def __init__(self, broker: Served) -> None:
        self._broker, self._port = broker, free_port()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self._port}"

    async def join(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self._port)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()
            await self._server.wait_closed()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._broker.port)
        self._open |= {writer, other_writer}
        await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))
        self._open -= {writer, other_writer}
