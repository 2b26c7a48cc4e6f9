"""Whether anything grows, falls or goes wild with time: the service, while gateway, cloud and broker fail.

A simulated month, in which time leaps from one event to the next, and the gateway is asked ten times less often:

    python benchmarks/soak.py [--days 30]

Or real time, with mosquitto and the default settings, an outage each minute or two:

    python benchmarks/soak.py --real 3600

Simulator, its cloud and the service are one process here, and all of it must stay flat. The first days (a sixth of
the hour) are healthy: they say how much a gateway is asked. Ctrl-C ends it sooner, with its tables. It ends with 1
where something is not as it should be.
"""

import argparse
import asyncio
import gc
import logging
import os
import random
import selectors
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, stdev
from tempfile import TemporaryDirectory
from typing import Any

import lab

from bridge.config import Settings
from bridge.endpoints import ENDPOINTS
from bridge.model import Message
from bridge.service import Bridge
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.exchange import Receive, Scope, Send
from bridge.simulator.serve import self_signed, serve

DAY, HOUR = 86_400.0, 3_600.0
HEALTHY = 1 / 6, 2 * DAY
"""Share of the time that passes without an outage, and seconds of it at most."""
PATIENCE = 1_000.0, 2 * DAY
"""Seconds within which all must be well after the last outage, and where the cloud has blocked the account."""
COUNTERS = ("energy_delivered", "energy_received", "energy_lifetime", "energy_imported", "energy_exported")
PLACES = ("/ivp/*", "/api/*", "/ivp/meters/readings", "/ivp/livedata/status", "/info", "gateway")
FAULTS = ("503", "html", "empty", "truncated", "error_object", "garbage", "reset", "drop", "hang", "booting")
CLOUD_FAULTS = ("down", "html", "timeout", "blocked")
"""The last one costs a day, for the cloud is left alone that long: an hour of real time has none."""
SLOWER = 10
"""Times the gentle periods at which a simulated month is polled: more often is only more of the same."""
SLACK = 1.02
"""What a window's share of an hourly poll may add to the requests."""

LOOK = 0.001
"""Seconds of one look."""
AT_REST, UNDER_WAY = 1, 100
"""Looks that find nothing until time leaps: kernels may hold data between two sockets back for 40 ms."""


class _Leaper(selectors.DefaultSelector):
    """Where nothing is to be read or written, the next timer's time has come."""

    leapt = 0.0
    """seconds that were not waited for"""
    jobs = 0
    """what runs in threads: time must not leap meanwhile"""
    _looks = 0

    def __init__(self) -> None:
        super().__init__()
        self.at_rest: Callable[[], bool] = lambda: False

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout is not None and timeout > 0 and not self._awaits():
            self.leapt += timeout
        elif not found and timeout != 0:
            found = super().select(LOOK)
        if found:
            self._looks = 0
        return found

    def _awaits(self) -> bool:
        """What has fallen silent stays so until a timer does something."""
        if self.jobs:
            return True
        self._looks += 1
        return self._looks <= (AT_REST if self.at_rest() else UNDER_WAY)


class LeapingLoop(asyncio.SelectorEventLoop):
    """A loop in which waiting takes no time, and work as long as ever. All that it talks to has to live in it."""

    def __init__(self) -> None:
        self._leaper = _Leaper()
        super().__init__(self._leaper)

    def leap_freely(self, at_rest: Callable[[], bool]) -> None:
        """Where this is true, nothing is on its way."""
        self._leaper.at_rest = at_rest

    def time(self) -> float:
        return super().time() + self._leaper.leapt

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self._leaper.jobs += 1
        future.add_done_callback(self._done)
        return future

    def _done(self, _future: object) -> None:
        self._leaper.jobs -= 1


class Sink:
    """As much of an MQTT 3.1.1 broker as a publisher sees, in our loop."""

    def __init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def up(self, port: int) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while (answer := _answer_to(*await _packet(reader))) is not None:
                writer.write(answer)
        self._writers.discard(writer)
        writer.close()


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first, length, shift = (await reader.readexactly(1))[0], 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 - the last of the length
            return first, await reader.readexactly(length)


def _answer_to(first: int, body: bytes) -> bytes | None:
    """`None` where the client takes its leave, and a ping's answer where it wants none: nobody minds."""
    kind, after_topic = first >> 4, 2 + int.from_bytes(body[:2])
    acknowledged = b"\x40\x02" + body[after_topic : after_topic + 2] if first & 0x06 else b""
    answers = {1: b"\x20\x02\0\0", 3: acknowledged, 8: b"\x90\x03" + body[:2] + b"\0", 12: b"\xd0\0", 14: None}
    return answers[kind]


@asynccontextmanager
async def mosquitto(port: int) -> AsyncIterator[int]:
    """A real one, in a process of its own."""
    up = lab.broker(port)
    yield await asyncio.to_thread(up.__enter__)
    await asyncio.to_thread(up.__exit__, None, None, None)


class Plug:
    """Something at a port that stays, and that can be unplugged."""

    def __init__(self, up: Callable[[int], AbstractAsyncContextManager[int]]) -> None:
        self._up, self.port = up, 0
        self._power = AsyncExitStack()

    async def plug(self) -> None:
        self.port = await self._power.enter_async_context(self._up(self.port))

    async def unplug(self) -> None:
        await self._power.aclose()


class Front:
    """A simulator at a port of its own, whose requests are counted by window of time."""

    def __init__(self, simulator: Simulator, window: Callable[[], int], *, tls: bool) -> None:
        self._simulator, self._window, self._tls = simulator, window, tls
        self._certificate = self_signed(simulator.serial)
        self.requests: Counter[int] = Counter()

    @property
    def serial(self) -> str:
        return self._simulator.serial

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.requests[self._window()] += 1
        await self._simulator(scope, receive, send)

    @asynccontextmanager
    async def up(self, port: int) -> AsyncIterator[int]:
        async with serve(self, tls=self._tls, port=port, certificate=self._certificate) as address:
            yield int(address.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Course:
    """How long it takes, and what happens when; all in seconds."""

    length: float
    window: float
    pauses: tuple[float, float]
    outages: tuple[float, float]
    is_real: bool = False

    @property
    def healthy(self) -> float:
        share, most = HEALTHY
        return min(share * self.length, most)

    @classmethod
    def simulated(cls, days: float) -> "Course":
        return cls(days * DAY, DAY, (HOUR, 6 * HOUR), (60, HOUR))

    @classmethod
    def real(cls, seconds: float) -> "Course":
        return cls(seconds, seconds / 20, (20, 60), (5, 45), is_real=True)


class World:
    """The home, its gateway, the cloud, the broker, and what goes wrong with them."""

    def __init__(self, course: Course, seed: int) -> None:
        loop = asyncio.get_running_loop()
        began, started = int(time.time()), loop.time()
        self.elapsed: Callable[[], float] = lambda: loop.time() - started
        self.now: Callable[[], float] = time.time if course.is_real else lambda: began + self.elapsed()
        self.course, self._random = course, random.Random(seed)  # noqa: S311 - no secret
        self.simulator = Simulator("three-phase", clock=self.now, start_hour=12)
        self.simulator.requests = deque(maxlen=1)  # else it grows until it is full
        self.simulator.cloud.role = "installer"  # their tokens last for twelve hours
        self.gateway_front, self.cloud_front = self._front(tls=True), self._front(tls=False)
        self.gateway, self.cloud = Plug(self.gateway_front.up), Plug(self.cloud_front.up)
        self.broker = Plug(mosquitto if course.is_real else Sink().up)
        self.outages: Counter[str] = Counter()
        self._is_stopped = False
        loop.add_signal_handler(signal.SIGINT, self._stop)

    def _stop(self) -> None:
        self._is_stopped = True

    @property
    def is_over(self) -> bool:
        return self._is_stopped or self.elapsed() >= self.course.length

    def _front(self, *, tls: bool) -> Front:
        return Front(self.simulator, lambda: int(self.elapsed() / self.course.window), tls=tls)

    @asynccontextmanager
    async def plugged(self) -> AsyncIterator[None]:
        plugs = (self.gateway, self.cloud, self.broker)
        for plug in plugs:
            await plug.plug()
        try:
            yield
        finally:
            for plug in plugs:
                await plug.unplug()

    def settings(self, folder: Path) -> Settings:
        cloud = f"http://127.0.0.1:{self.cloud.port}"
        paths = {"login_url": "login/login.json", "token_url": "tokens", "entrez_url": "entrez-auth-token"}
        return Settings.model_validate(
            {
                "gateway": {
                    "host": f"https://127.0.0.1:{self.gateway.port}",
                    "username": USER,
                    "password": PASSWORD,
                },
                "cloud": {name: f"{cloud}/{path}" for name, path in paths.items()},
                "mqtt": {"url": f"mqtt://127.0.0.1:{self.broker.port}", "protocol": "3.1.1"},
                "poll": {} if self.course.is_real else _slowly(),
                "state_dir": folder / "state",
            }
        )

    async def outage(self) -> None:
        """One thing or several that go wrong, and are put right again."""
        deeds = (self._fault, self._fault, self._cloud, self._unplug, self._silence, self._reboot, self._revoke)
        chosen = self._random.sample(deeds, self._random.choice((1, 1, 2)))
        async with asyncio.TaskGroup() as tasks:
            for deed in chosen:
                self.outages[deed.__name__.strip("_")] += 1
                tasks.create_task(deed(self._random.uniform(*self.course.outages)))

    async def pause(self) -> None:
        await asyncio.sleep(self._random.uniform(*self.course.pauses))

    async def _fault(self, seconds: float) -> None:
        place, fault = self._random.choice(PLACES), self._random.choice(FAULTS)
        self.simulator.faults.add(place, fault)
        await asyncio.sleep(seconds)
        self.simulator.faults.clear(place)

    async def _cloud(self, seconds: float) -> None:
        """It fails while it is needed."""
        known = CLOUD_FAULTS[:-1] if self.course.is_real else CLOUD_FAULTS
        self.simulator.faults.add("cloud", self._random.choice(known))
        self.simulator.revoke_tokens()
        await asyncio.sleep(seconds)
        self.simulator.faults.clear("cloud")

    async def _unplug(self, seconds: float) -> None:
        await self.gateway.unplug()
        await asyncio.sleep(seconds)
        await self.gateway.plug()

    async def _silence(self, seconds: float) -> None:
        await self.broker.unplug()
        await asyncio.sleep(seconds)
        await self.broker.plug()

    async def _reboot(self, seconds: float) -> None:
        self.simulator.reboot(zeros=seconds / 4)
        self.simulator.faults.add("gateway", "booting")
        await asyncio.sleep(seconds / 8)
        self.simulator.faults.clear("gateway")

    async def _revoke(self, _seconds: float) -> None:
        self.simulator.revoke_tokens()


def _slowly() -> dict[str, float]:
    return {endpoint.source: SLOWER * endpoint.gentle for endpoint in ENDPOINTS}


class Falls:
    """Counters whose published value went down, and how many messages there were."""

    def __init__(self) -> None:
        self._newest: dict[str, float] = {}
        self.found: list[str] = []
        self.messages = 0

    def note(self, message: Message) -> None:
        self.messages += 1
        topic, payload = message.topic, message.payload
        if topic.rpartition("/")[2] not in COUNTERS or "/report/" in topic or payload in ("", "None"):
            return
        value, before = float(payload), self._newest.get(topic, 0.0)
        if value < before:
            self.found.append(f"{topic}: {before} -> {value}")
        self._newest[topic] = value


class Lines(logging.Handler):
    """Counts what the service logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings = self.faults = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.faults += 1
            print(f"fault: {self.format(record)}", file=sys.stderr)
        else:
            self.warnings += 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What is there at one moment (seconds since the start), while nothing is amiss."""

    at: float
    memory: float
    heap: float
    blocks: int
    objects: int
    files: int
    tasks: int

    @classmethod
    def take(cls, at: float) -> "Sample":
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the fastest way, and the fewest files
        tasks, given = len(asyncio.all_tasks()), lab.heap()
        return cls(at, lab.resident(), given, sys.getallocatedblocks(), len(gc.get_objects()), files, tasks)


FLOORS = {"memory": 2.0, "heap": 0.1, "blocks": 1_500, "objects": 500, "files": 1, "tasks": 1}
"""Less than that is no growth, however exact the line is: MB, and numbers.

`memory` is what the system has given; `heap` what is in use of it outside Python's `blocks`. Hundreds of outages
leave holes between what is in use: memory grows on a little, slower and slower, where the others don't.
"""


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through the last half of the samples."""

    first: float
    last: float
    highest: float
    growth: float
    noise: float
    is_flat: bool

    @classmethod
    def of(cls, samples: Sequence[Sample], name: str) -> "Trend":
        half = samples[len(samples) // 2 :]
        times, values = [sample.at for sample in half], [float(getattr(sample, name)) for sample in half]
        slope, base = linear_regression(times, values)
        growth = slope * (times[-1] - times[0])
        noise = 2 * stdev(value - base - slope * at for at, value in zip(times, values, strict=True))
        ends = float(getattr(samples[0], name)), values[-1]
        highest = max(getattr(sample, name) for sample in samples)
        return cls(*ends, highest, growth, noise, growth <= max(noise, FLOORS[name]))


@dataclass(slots=True)
class Log:
    """What was seen."""

    samples: list[Sample] = field(default_factory=list)
    falls: Falls = field(default_factory=Falls)
    lines: Lines = field(default_factory=Lines)
    lacks: tuple[str, ...] = ()


async def soak(world: World, log: Log, folder: Path) -> None:
    """The whole course."""
    began = time.monotonic()

    def sample() -> None:
        log.samples.append(new := Sample.take(world.elapsed()))
        share, took = new.at / world.course.length, time.monotonic() - began
        print(
            f"{share:6.1%} after {took:5.0f} s: {new.memory:.1f} MB, {new.objects} objects, {new.files} files, "
            f"{new.tasks} tasks, {sum(world.gateway_front.requests.values())} requests, "
            f"{sum(world.outages.values())} outages, {len(log.falls.found)} falls",
            file=sys.stderr,
            flush=True,
        )

    async with world.plugged():
        bridge = Bridge(world.settings(folder), on_sent=log.falls.note, now=world.now)
        service = asyncio.create_task(bridge.run())
        if isinstance(loop := asyncio.get_running_loop(), LeapingLoop):
            loop.leap_freely(lambda: bridge.idle)
        while not world.is_over:
            if world.elapsed() > world.course.healthy:
                await world.outage()
            await world.pause()
            sample()
        log.lacks = await _recovered(bridge, world)
        sample()
        service.cancel()
        with suppress(asyncio.CancelledError):
            await service


async def _recovered(bridge: Bridge, world: World) -> tuple[str, ...]:
    """What is still missing after as long as a cloud that has failed is left alone."""
    end = world.elapsed() + PATIENCE[not world.course.is_real]
    while bridge.condition.lacks and world.elapsed() < end:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(1)
    return bridge.condition.lacks


def told(world: World, log: Log) -> bool:
    """The tables. Whether all is as it should be."""
    course, length = world.course, log.samples[-1].at
    trends = {name: Trend.of(log.samples, name) for name in FLOORS}
    rows = [
        (
            name,
            *(getattr(trend, part) for part in ("first", "last", "highest", "growth", "noise")),
            _word(trend.is_flat),
        )
        for name, trend in trends.items()
    ]
    kind = "real time" if course.is_real else "simulated"
    lab.table(
        f"Soak: {length / HOUR:.2f} hours, {kind}",
        ("", "first", "last", "highest", "growth in the last half", "noise", "flat"),
        rows,
    )
    counts = world.gateway_front.requests
    until = max(1, int(course.healthy / course.window))
    whole = int(length / course.window)
    healthy = max(counts[window] for window in range(until))
    worst = max((counts[window] for window in range(until, whole)), default=0)
    seldom = worst <= SLACK * healthy
    days = length / DAY
    checks = [
        (f"most requests in {course.window:.0f} s, healthy and later", f"{healthy}, {worst}", _word(seldom)),
        ("counters that fell", len(log.falls.found), _word(not log.falls.found)),
        ("faults of ours in the log", log.lines.faults, _word(not log.lines.faults)),
        ("missing in the end", "; ".join(log.lacks) or "nothing", _word(not log.lacks)),
        ("outages", ", ".join(f"{name} {times}" for name, times in sorted(world.outages.items())), ""),
        ("requests to the gateway", sum(counts.values()), ""),
        ("requests to the cloud a day", sum(world.cloud_front.requests.values()) / days, ""),
        ("messages to the broker", log.falls.messages, ""),
        ("warnings a day", log.lines.warnings / days, ""),
    ]
    lab.table("What else was seen", ("", "", "as it should be"), checks)
    for fall in log.falls.found[:20]:
        print(fall)
    good = not log.falls.found and not log.lines.faults and not log.lacks
    return good and seldom and all(trend.is_flat for trend in trends.values())


def _word(good: bool) -> str:
    return "yes" if good else "**no**"


async def run(course: Course, seed: int) -> bool:
    log = Log()
    logging.getLogger("bridge").addHandler(log.lines)
    logging.getLogger("bridge").propagate = False
    with TemporaryDirectory() as folder:
        world = World(course, seed)
        await soak(world, log, Path(folder))
    return told(world, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=30.0, help="simulated days (default: 30)")
    parser.add_argument("--real", type=float, metavar="SECONDS", help="in real time, for so long")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
        del os.environ[name]
    course = Course.real(given.real) if given.real else Course.simulated(given.days)
    with asyncio.Runner(loop_factory=None if course.is_real else LeapingLoop) as runner:
        sys.exit(0 if runner.run(run(course, given.seed)) else 1)


if __name__ == "__main__":
    main()
