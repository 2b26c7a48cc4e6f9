"""Runs the service for a long time while gateway, cloud and broker fail, and checks that it stays healthy.

No memory, file or task may accumulate, no counter may decrease, and the gateway may not get more requests.
A simulated month skips from one event to the next and polls the gateway ten times less often:

    python benchmarks/soak.py [--days 30]

In real time it uses mosquitto and the default settings, with an outage every minute or two:

    python benchmarks/soak.py --real 3600

The simulator, its cloud and the service run in one process. The first two days, or the first sixth of a shorter
run, have no outages and show the normal number of requests. Ctrl-C ends the run early and prints its tables. The
exit code is 1 if a check fails.
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

from bridge.endpoints import ENDPOINTS
from bridge.http_server import Receive, Scope, Send
from bridge.model import DAY_S, HOUR_S, Message
from bridge.service.bridge import Bridge
from bridge.settings import Settings
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.serve import self_signed, serve

OUTAGE_FREE = 1 / 6, 2 * DAY_S
"""The share of the run without outages, and its limit in seconds."""
RECOVERY_LIMITS_S = 1_000.0, 2 * DAY_S
"""The service must recover from the last outage within this time: in real time, and in simulated time.

Only simulated runs have a cloud that blocks the account, after which the bridge waits for a day."""
COUNTERS = ("energy_delivered", "energy_received", "energy_lifetime", "energy_imported", "energy_exported")
PLACES = ("/ivp/*", "/api/*", "/ivp/meters/readings", "/ivp/livedata/status", "/info", "gateway")
FAULTS = ("503", "html", "empty", "truncated", "error_object", "garbage", "reset", "drop", "hang", "booting")
CLOUD_FAULTS = ("down", "html", "timeout", "blocked")
"""Real time leaves the last one out: the bridge does not ask a cloud that blocked the account for a day."""
PERIOD_FACTOR = 10
"""A simulated month polls at this multiple of the gentle periods, to take less time."""
REQUEST_TOLERANCE = 1.02
"""The number of requests per window may exceed the normal one by this factor, because of hourly polls."""

SELECT_TIMEOUT_S = 0.001
"""One call of `select` waits this long (seconds)."""
EMPTY_SELECTS_IDLE, EMPTY_SELECTS_BUSY = 1, 100
"""Time skips after this many calls without events: kernels may delay data between two sockets by 40 ms."""


class _SkippingSelector(selectors.DefaultSelector):
    """A selector that skips the time to the next timer when there is nothing to read or write."""

    skipped = 0.0
    """The seconds that were skipped."""
    jobs = 0
    """The number of jobs in threads. Time is not skipped while there are any."""
    _empty_selects = 0

    def __init__(self) -> None:
        super().__init__()
        self.at_rest: Callable[[], bool] = lambda: False

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout is not None and timeout > 0 and not self._awaits():
            self.skipped += timeout
        elif not found and timeout != 0:
            found = super().select(SELECT_TIMEOUT_S)
        if found:
            self._empty_selects = 0
        return found

    def _awaits(self) -> bool:
        """Return whether something may still arrive without a timer."""
        if self.jobs:
            return True
        self._empty_selects += 1
        return self._empty_selects <= (EMPTY_SELECTS_IDLE if self.at_rest() else EMPTY_SELECTS_BUSY)


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time. Everything that it communicates with must run in it."""

    def __init__(self) -> None:
        self._selector = _SkippingSelector()
        super().__init__(self._selector)

    def skip_sooner(self, at_rest: Callable[[], bool]) -> None:
        """Skip time sooner whenever `at_rest` returns True, because then no data is on its way."""
        self._selector.at_rest = at_rest

    def time(self) -> float:
        return super().time() + self._selector.skipped

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self._selector.jobs += 1
        future.add_done_callback(self._done)
        return future

    def _done(self, _future: object) -> None:
        self._selector.jobs -= 1


class MinimalBroker:
    """A minimal MQTT 3.1.1 broker for a publisher. It runs in the same event loop."""

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
        if byte < 0x80:  # noqa: PLR2004 - the last byte of the length
            return first, await reader.readexactly(length)


def _answer_to(first: int, body: bytes) -> bytes | None:
    """Return the answer to a packet, or None for a DISCONNECT. A publish with QoS 0 is answered with no bytes."""
    kind, after_topic = first >> 4, 2 + int.from_bytes(body[:2])
    acknowledged = b"\x40\x02" + body[after_topic : after_topic + 2] if first & 0x06 else b""
    answers = {1: b"\x20\x02\0\0", 3: acknowledged, 8: b"\x90\x03" + body[:2] + b"\0", 12: b"\xd0\0", 14: None}
    return answers[kind]


@asynccontextmanager
async def mosquitto(port: int) -> AsyncIterator[int]:
    """Run mosquitto in a process of its own."""
    up = lab.broker(port)
    yield await asyncio.to_thread(up.__enter__)
    await asyncio.to_thread(up.__exit__, None, None, None)


class RestartableServer:
    """A server that can be stopped and started again at the same port."""

    def __init__(self, up: Callable[[int], AbstractAsyncContextManager[int]]) -> None:
        self._up, self.port = up, 0
        self._power = AsyncExitStack()

    async def start(self) -> None:
        self.port = await self._power.enter_async_context(self._up(self.port))

    async def stop(self) -> None:
        await self._power.aclose()


class CountedSimulator:
    """A simulator at a port of its own that counts its requests per window of time."""

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
    """The durations of a run in seconds: total length, counting window, range of pauses and range of outages."""

    length: float
    window: float
    pauses: tuple[float, float]
    outages: tuple[float, float]
    is_real: bool = False

    @property
    def healthy(self) -> float:
        share, most = OUTAGE_FREE
        return min(share * self.length, most)

    @classmethod
    def simulated(cls, days: float) -> "Course":
        return cls(days * DAY_S, DAY_S, (HOUR_S, 6 * HOUR_S), (60, HOUR_S))

    @classmethod
    def real(cls, seconds: float) -> "Course":
        return cls(seconds, seconds / 20, (20, 60), (5, 45), is_real=True)


class SoakRun:
    """The home, its gateway, the cloud and the broker, and the outages of all of them."""

    def __init__(self, course: Course, seed: int) -> None:
        loop = asyncio.get_running_loop()
        began, started = int(time.time()), loop.time()
        self.elapsed: Callable[[], float] = lambda: loop.time() - started
        self.now: Callable[[], float] = time.time if course.is_real else lambda: began + self.elapsed()
        self.course, self._random = course, random.Random(seed)  # noqa: S311 - no secret
        self.simulator = Simulator("three-phase", clock=self.now, start_hour=12)
        self.simulator.requests = deque(maxlen=1)  # a longer log would look like growth
        self.simulator.cloud.role = "installer"  # their tokens last for twelve hours
        self.gateway_front, self.cloud_front = self._front(tls=True), self._front(tls=False)
        self.gateway, self.cloud = RestartableServer(self.gateway_front.up), RestartableServer(self.cloud_front.up)
        self.broker = RestartableServer(mosquitto if course.is_real else MinimalBroker().up)
        self.outages: Counter[str] = Counter()
        self._is_stopped = False
        loop.add_signal_handler(signal.SIGINT, self._stop)

    def _stop(self) -> None:
        self._is_stopped = True

    @property
    def is_over(self) -> bool:
        return self._is_stopped or self.elapsed() >= self.course.length

    def _front(self, *, tls: bool) -> CountedSimulator:
        return CountedSimulator(self.simulator, lambda: int(self.elapsed() / self.course.window), tls=tls)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        plugs = (self.gateway, self.cloud, self.broker)
        for plug in plugs:
            await plug.start()
        try:
            yield
        finally:
            for plug in plugs:
                await plug.stop()

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
                "poll": {} if self.course.is_real else _long_periods(),
                "state_dir": folder / "state",
            }
        )

    async def outage(self) -> None:
        """Cause one or two random failures, and repair them."""
        actions = (
            self._fault,
            self._fault,
            self._cloud,
            self._stop_gateway,
            self._stop_broker,
            self._reboot,
            self._revoke,
        )
        chosen = self._random.sample(actions, self._random.choice((1, 1, 2)))
        async with asyncio.TaskGroup() as tasks:
            for action in chosen:
                self.outages[action.__name__.strip("_")] += 1
                tasks.create_task(action(self._random.uniform(*self.course.outages)))

    async def pause(self) -> None:
        await asyncio.sleep(self._random.uniform(*self.course.pauses))

    async def _fault(self, seconds: float) -> None:
        place, fault = self._random.choice(PLACES), self._random.choice(FAULTS)
        self.simulator.faults.add(place, fault)
        await asyncio.sleep(seconds)
        self.simulator.faults.clear(place)

    async def _cloud(self, seconds: float) -> None:
        """Let the cloud fail while the bridge needs a new token."""
        known = CLOUD_FAULTS[:-1] if self.course.is_real else CLOUD_FAULTS
        self.simulator.faults.add("cloud", self._random.choice(known))
        self.simulator.revoke_tokens()
        await asyncio.sleep(seconds)
        self.simulator.faults.clear("cloud")

    async def _stop_gateway(self, seconds: float) -> None:
        await self.gateway.stop()
        await asyncio.sleep(seconds)
        await self.gateway.start()

    async def _stop_broker(self, seconds: float) -> None:
        await self.broker.stop()
        await asyncio.sleep(seconds)
        await self.broker.start()

    async def _reboot(self, seconds: float) -> None:
        self.simulator.reboot(zeros=seconds / 4)
        self.simulator.faults.add("gateway", "booting")
        await asyncio.sleep(seconds / 8)
        self.simulator.faults.clear("gateway")

    async def _revoke(self, _seconds: float) -> None:
        self.simulator.revoke_tokens()


def _long_periods() -> dict[str, float]:
    return {endpoint.source: PERIOD_FACTOR * endpoint.every.gentle for endpoint in ENDPOINTS}


class DecreasingCounters:
    """Finds counters whose published value decreased, and counts messages."""

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


class LogCounter(logging.Handler):
    """Counts the warnings and errors that the service logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings = self.faults = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.faults += 1
            print(f"error: {self.format(record)}", file=sys.stderr)
        else:
            self.warnings += 1


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """The resources in use at one moment (`at`, seconds since the start). Memory and heap are in MB."""

    at: float
    memory: float
    heap: float
    blocks: int
    objects: int
    files: int
    tasks: int

    @classmethod
    def take(cls, at: float) -> "ResourceSample":
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would open more files
        tasks, given = len(asyncio.all_tasks()), lab.heap()
        return cls(at, lab.resident(), given, sys.getallocatedblocks(), len(gc.get_objects()), files, tasks)


GROWTH_LIMITS = {"memory": 2.0, "heap": 0.1, "blocks": 1_500, "objects": 500, "files": 1, "tasks": 1}
"""Growth below these limits does not count (MB, and numbers).

`memory` is the resident memory; `heap` is the part of it in use outside Python's `blocks`. Hundreds of outages
fragment the memory, so that `memory` still grows a little, ever more slowly, when the others do not.
"""


@dataclass(frozen=True, slots=True)
class Trend:
    """The growth of a value: a straight line through the last half of the samples."""

    first: float
    last: float
    highest: float
    growth: float
    noise: float
    is_flat: bool

    @classmethod
    def of(cls, samples: Sequence[ResourceSample], name: str) -> "Trend":
        half = samples[len(samples) // 2 :]
        times, values = [sample.at for sample in half], [float(getattr(sample, name)) for sample in half]
        slope, base = linear_regression(times, values)
        growth = slope * (times[-1] - times[0])
        noise = 2 * stdev(value - base - slope * at for at, value in zip(times, values, strict=True))
        ends = float(getattr(samples[0], name)), values[-1]
        highest = max(getattr(sample, name) for sample in samples)
        return cls(*ends, highest, growth, noise, growth <= max(noise, GROWTH_LIMITS[name]))


@dataclass(slots=True)
class Observations:
    """The observations of a run."""

    samples: list[ResourceSample] = field(default_factory=list)
    falls: DecreasingCounters = field(default_factory=DecreasingCounters)
    lines: LogCounter = field(default_factory=LogCounter)
    missing: tuple[str, ...] = ()


async def soak(world: SoakRun, log: Observations, folder: Path) -> None:
    """Run the service through the whole course."""
    began = time.monotonic()

    def sample() -> None:
        log.samples.append(new := ResourceSample.take(world.elapsed()))
        share, took = new.at / world.course.length, time.monotonic() - began
        print(
            f"{share:6.1%} after {took:5.0f} s: {new.memory:.1f} MB, {new.objects} objects, {new.files} files, "
            f"{new.tasks} tasks, {sum(world.gateway_front.requests.values())} requests, "
            f"{sum(world.outages.values())} outages, {len(log.falls.found)} falls",
            file=sys.stderr,
            flush=True,
        )

    async with world.running():
        bridge = Bridge(world.settings(folder), on_sent=log.falls.note, now=world.now)
        service = asyncio.create_task(bridge.run())
        if isinstance(loop := asyncio.get_running_loop(), SkippingLoop):
            loop.skip_sooner(lambda: all(part.is_idle for part in bridge.watchdogs))
        while not world.is_over:
            if world.elapsed() > world.course.healthy:
                await world.outage()
            await world.pause()
            sample()
        log.missing = await _recovered(bridge, world)
        sample()
        service.cancel()
        with suppress(asyncio.CancelledError):
            await service


def _problems(bridge: Bridge) -> tuple[str, ...]:
    status = bridge.status(details=False)
    return (*status.problems, *status.warnings)


async def _recovered(bridge: Bridge, world: SoakRun) -> tuple[str, ...]:
    """Wait until the service has recovered, but not longer than `RECOVERY_LIMITS_S`; return the problems left."""
    end = world.elapsed() + RECOVERY_LIMITS_S[not world.course.is_real]
    while _problems(bridge) and world.elapsed() < end:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(1)
    return _problems(bridge)


def report(world: SoakRun, log: Observations) -> bool:
    """Print the tables, and return whether all checks have passed."""
    course, length = world.course, log.samples[-1].at
    trends = {name: Trend.of(log.samples, name) for name in GROWTH_LIMITS}
    rows = [
        (
            name,
            *(getattr(trend, part) for part in ("first", "last", "highest", "growth", "noise")),
            _yes_or_no(trend.is_flat),
        )
        for name, trend in trends.items()
    ]
    kind = "real time" if course.is_real else "simulated"
    lab.table(
        f"Soak: {length / HOUR_S:.2f} hours, {kind}",
        ("", "first", "last", "highest", "growth in the last half", "noise", "flat"),
        rows,
    )
    counts = world.gateway_front.requests
    until = max(1, int(course.healthy / course.window))
    whole = int(length / course.window)
    healthy = max(counts[window] for window in range(until))
    worst = max((counts[window] for window in range(until, whole)), default=0)
    seldom = worst <= REQUEST_TOLERANCE * healthy
    days = length / DAY_S
    checks = [
        (f"most requests in {course.window:.0f} s, healthy and later", f"{healthy}, {worst}", _yes_or_no(seldom)),
        ("counters that decreased", len(log.falls.found), _yes_or_no(not log.falls.found)),
        ("errors in the log", log.lines.faults, _yes_or_no(not log.lines.faults)),
        ("problems at the end", "; ".join(log.missing) or "nothing", _yes_or_no(not log.missing)),
        ("outages", ", ".join(f"{name} {times}" for name, times in sorted(world.outages.items())), ""),
        ("requests to the gateway", sum(counts.values()), ""),
        ("requests to the cloud a day", sum(world.cloud_front.requests.values()) / days, ""),
        ("messages to the broker", log.falls.messages, ""),
        ("warnings a day", log.lines.warnings / days, ""),
    ]
    lab.table("Checks", ("", "", "passed"), checks)
    for fall in log.falls.found[:20]:
        print(fall)
    good = not log.falls.found and not log.lines.faults and not log.missing
    return good and seldom and all(trend.is_flat for trend in trends.values())


def _yes_or_no(good: bool) -> str:
    return "yes" if good else "**no**"


async def run(course: Course, seed: int) -> bool:
    log = Observations()
    logging.getLogger("bridge").addHandler(log.lines)
    logging.getLogger("bridge").propagate = False
    with TemporaryDirectory() as folder:
        world = SoakRun(course, seed)
        await soak(world, log, Path(folder))
    return report(world, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=30.0, help="simulated days (default: 30)")
    parser.add_argument("--real", type=float, metavar="SECONDS", help="run in real time for this long")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random outages (default: 1)")
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
        del os.environ[name]
    course = Course.real(given.real) if given.real else Course.simulated(given.days)
    with asyncio.Runner(loop_factory=None if course.is_real else SkippingLoop) as runner:
        sys.exit(0 if runner.run(run(course, given.seed)) else 1)


if __name__ == "__main__":
    main()
