"""The parts that all benchmarks share: simulated gateways in another process, a broker, settings, and tables."""

import asyncio
import ctypes
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from bridge.http_server import Receive, Scope, Send
from bridge.simulator import HOMES, Home, Simulator
from bridge.simulator.presets import InverterSpec
from bridge.simulator.serve import serve

LIVEDATA_PATH, STAMPS_PATH, COUNTS_PATH = "/ivp/livedata/status", "/benchmark/stamps", "/benchmark/counts"
PATHS_PATH, FAULT_PATH = "/benchmark/paths", "/benchmark/fault"
READINGS_PATH = "/ivp/meters/readings"
INVERTERS_OF_BIG_SITE = 1000


def home_of(inverters: int, *, number: int = 0) -> Home:
    """Return the three-phase home with this many inverters; each `number` has other serial numbers."""
    base = HOMES["three-phase"]
    serial = str(int(base.serial) + 1000 * number)
    roof = tuple(
        InverterSpec(str(482_200_000_000 + INVERTERS_OF_BIG_SITE * number + place), 290 + place % 60, place % 3)
        for place in range(inverters)
    )
    return replace(base, name=f"{inverters} inverters", serial=serial, inverters=roof)


@dataclass
class SteppedClock:
    """A simulator's clock that can be moved on."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass(frozen=True, slots=True)
class Manner:
    """How a simulated gateway answers: `delay` seconds late; each answer moves its clock on by `step` seconds.

    In the answers of the path `marked`, solar power grows by 10 W from one to the next.
    """

    delay: float = 0.0
    step: float = 0.0
    marked: str = LIVEDATA_PATH


class Stamped:
    """A simulator that records when it has sent each marked answer, and counts requests and TLS connections.

    Requests to its `/benchmark/...` paths return that, or set the fault that the query names.
    """

    def __init__(self, simulator: Simulator, clock: SteppedClock, manner: Manner) -> None:
        self._simulator, self._clock, self._manner = simulator, clock, manner
        self._stamps: dict[int, float] = {}
        self._clients: set[tuple[str, int]] = set()
        self._asked: Counter[str] = Counter()

    @property
    def serial(self) -> str:
        return self._simulator.serial

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        told = {STAMPS_PATH: self._stamps, PATHS_PATH: self._asked, FAULT_PATH: None}
        told[COUNTS_PATH] = {"requests": self._asked.total(), "connections": len(self._clients)}
        if path == FAULT_PATH:
            self._simulator.faults.add("gateway", scope["query_string"].decode())
        if path in told:
            await _answer(send, told[path])
            return
        self._asked[path] += 1
        self._clients.add(tuple(scope["client"]))
        self._clock.ahead += self._manner.step
        await asyncio.sleep(self._manner.delay)
        await self._simulator(scope, receive, self._marked(send) if path == self._manner.marked else send)

    def _marked(self, send: Send) -> Send:
        watts = 10 * (1 + len(self._stamps))

        async def sent(event: Any) -> None:
            if event["type"] == "http.response.start":
                headers = [pair for pair in event["headers"] if pair[0].lower() != b"content-length"]
                event = {**event, "headers": headers}
            if body := event.get("body"):
                event = {**event, "body": with_solar_power(body, watts)}
            if body:  # before sending: the client may run before this coroutine goes on
                self._stamps[watts] = time.monotonic()
            await send(event)

        return sent


def with_solar_power(body: bytes, watts: int) -> bytes:
    """Replace the solar power in an answer of `LIVEDATA_PATH` or `READINGS_PATH`; other bodies stay the same."""
    try:
        told = json.loads(body)
    except ValueError:  # a fault
        return body
    if isinstance(told, list):
        told[0]["activePower"] = watts
    else:
        told["meters"]["pv"]["agg_p_mw"] = 1000 * watts
    return json.dumps(told).encode()


async def _answer(send: Send, value: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


@dataclass(frozen=True, slots=True)
class RunningGateways:
    """Running gateways: address and token by serial number, and the process that serves them."""

    gateways: Mapping[str, tuple[str, str]]
    pid: int

    @property
    def only(self) -> tuple[str, str, str]:
        """Return serial number, address and token of the only gateway."""
        ((serial, (address, token)),) = self.gateways.items()
        return serial, address, token

    @property
    def listed(self) -> list[dict[str, str]]:
        """All gateways as the bridge's settings have them."""
        return [{"serial": serial, "host": at, "token": token} for serial, (at, token) in self.gateways.items()]

    def ask(self, path: str) -> Any:
        """Ask the only gateway for one of its `/benchmark/...` paths."""
        _, address, _ = self.only
        return httpx.get(f"https://{address}{path}", verify=False, trust_env=False).json()  # noqa: S501 - loopback


async def _serve(inverters: int, gateways: int, manner: Manner) -> None:
    """Print the gateways as JSON, and serve them until standard input ends."""
    from contextlib import AsyncExitStack  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        places = {}
        for number in range(gateways):
            clock = SteppedClock()
            simulator = Simulator(home_of(inverters, number=number), clock=clock, seed=number, start_hour=12)
            address = await stack.enter_async_context(serve(Stamped(simulator, clock, manner), tls=True))
            places[simulator.serial] = (address, simulator.token())
        print(json.dumps(places), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@contextmanager
def gateways(inverters: int = 20, count: int = 1, manner: Manner | None = None) -> Iterator[RunningGateways]:
    """Run gateways in a process of their own, so that their CPU time does not count."""
    told = json.dumps(asdict(manner or Manner()))
    command = [sys.executable, __file__, str(inverters), str(count), told]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        yield RunningGateways(json.loads(process.stdout.readline()), process.pid)
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # hundreds of gateways stop slowly
            process.kill()
            process.wait()


@contextmanager
def broker(port: int = 0) -> Iterator[int]:
    """Run mosquitto on loopback, at `port` or a free port, and yield its port."""
    found = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        sys.exit("mosquitto is missing: apt-get install mosquitto")
    with socket.socket() as sock, TemporaryDirectory() as folder:
        if not port:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        sock.close()
        config = Path(folder) / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
        process = subprocess.Popen([found, "-c", str(config)], stderr=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def watching(port: int, topic: str, arrived: Callable[[MQTTMessage], None]) -> Iterator[Client]:
    """Subscribe to the topics, and call `arrived` with each message, in a thread."""
    watcher = Client(CallbackAPIVersion.VERSION2)
    watcher.on_message = lambda _client, _data, message: arrived(message)
    watcher.connect("127.0.0.1", port)
    watcher.subscribe(topic)
    watcher.loop_start()
    try:
        yield watcher
    finally:
        watcher.loop_stop()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("the broker has not started listening within 20 seconds")


def environment(served: RunningGateways, broker_port: int, folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a bridge for these gateways. `more` adds settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    tables = ["\n".join(f"{name} = {json.dumps(value)}" for name, value in each.items()) for each in served.listed]
    config = folder / "bridge.toml"  # an environment variable has no room for a thousand gateways
    config.write_text("".join(f"[[gateways]]\n{table}\n" for table in tables))
    return {
        **clean,
        "BRIDGE_CONFIG": str(config),
        "BRIDGE_MQTT__URL": f"mqtt://127.0.0.1:{broker_port}",
        "BRIDGE_STATE_DIR": str(folder / "state"),
        **more,
    }


@contextmanager
def running(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program as a process, and end it."""
    process = subprocess.Popen(command, env=env and dict(env), stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def bridge(env: Mapping[str, str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the bridge as a process. `options` are those of the Python interpreter."""
    with running([sys.executable, *options, "-m", "bridge", "run"], env) as process:
        yield process


def cpu_seconds(pid: int) -> float:
    """Return the CPU time (user and system) that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int | str = "self") -> float:
    """Return the resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2` (2.33 on), in bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def heap() -> float:
    """Return the MB that glibc's allocator has handed out in this process, without Python's own blocks."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Mallinfo
    told = ask()
    given: int = told.uordblks + told.hblkhd
    return given / 1e6


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the least, the median and the greatest value as text."""
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table as in docs/performance.md."""
    print(f"\n{title}\n{machine()}\n")
    print("| " + " | ".join(header) + " |")
    print("| " + " | ".join("---" for _ in header) + " |")
    for row in rows:
        print("| " + " | ".join(f"{item:.2f}" if isinstance(item, float) else str(item) for item in row) + " |")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    when = time.strftime("%Y-%m-%d")
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {when}"


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), Manner(**json.loads(sys.argv[3]))))
