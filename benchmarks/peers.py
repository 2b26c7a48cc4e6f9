"""Measures the bridge beside the script that people would write (`script.py`: pyenphase and paho), in turns.

Each program has a simulated gateway with 20 inverters, whose answers take 50 ms, and a mosquitto of its own. With
the same eight endpoints at 1 s, the bridge and the script do the same work; the bridge's default and its profile
`live` are beside them. After the measurement all answers are 503 for a while. An age is the time from the last byte
of an answer to its solar power at a subscriber. Ratios are those of CPU time to the script that publishes what has
changed, turn by turn: the least, the median and the greatest. For the same work, that is CPU time of a request: on
a busy machine the simulated gateway becomes slow, and the bridge asks it less often.

    python benchmarks/peers.py                        each program for 60 s, and 60 s of 503, in three turns
    python benchmarks/peers.py --seconds 20 --fault-seconds 0 --turns 1
    python benchmarks/peers.py --against CHECKOUT     beside another checkout, too
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import lab
from cost import HERE, PYENPHASE_SOURCES
from paho.mqtt.client import MQTTMessage

SCRIPT = str(Path(__file__).with_name("script.py"))
DELAY_S = 0.05
WARM_UP_S = 20.0
"""The first round, and the second one that confirms counters, are over by then."""
SAME_WORK = "bridge, the same eight at 1 s"
EVERY_VALUE, ON_CHANGE = "script, every value", "script, on change"
OTHER = "the other checkout, the same eight at 1 s"
ALIKE = frozenset({EVERY_VALUE, ON_CHANGE, SAME_WORK, OTHER})
WEEK_S = "604800"
SOLAR_TOPICS = {
    lab.READINGS_PATH: ("script/ctmeters/production/active_power", "meter/production/power", "meter/production"),
    lab.LIVEDATA_PATH: ("live/pv/power", "live/pv"),
}
"""The ends of the topics of the solar power in a marked answer: a value, or a document with it."""


def solar_power(payload: bytes) -> int:
    told = json.loads(payload or b"0")
    return round(float(told.get("power", 0) if isinstance(told, dict) else told))


@dataclass(frozen=True)
class Program:
    """The script with options, or the bridge of a checkout with settings, and the path that its gateway marks."""

    marked: str = lab.READINGS_PATH
    options: Sequence[str] | None = None
    settings: Mapping[str, str] | None = None
    checkout: Path = HERE

    def start(
        self, served: lab.RunningGateways, port: int, folder: Path
    ) -> tuple[Sequence[str], Mapping[str, str]]:
        _, address, token = served.only
        env = {**lab.environment(served, port, folder, **(self.settings or {})), "PYTHONPATH": str(self.checkout)}
        if self.options is None:
            return [sys.executable, "-m", "bridge", "run"], env
        return [sys.executable, SCRIPT, address, token, str(port), *self.options], env


def settings_of_same_work(checkout: Path = HERE) -> Mapping[str, str]:
    """Return the settings with which the bridge requests the same as pyenphase every second, and nothing else."""
    code = (
        "from bridge.endpoints import ENDPOINTS; print(*(getattr(e.source, 'value', e.source) for e in ENDPOINTS))"
    )
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    listed = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    periods = {name: "1" if name in PYENPHASE_SOURCES else "0" for name in listed.split()} | {"info": WEEK_S}
    # eight answers of 50 ms a second are more than a gateway's usual share of time
    settings = {"profile": "live", "budget": "0.9", **periods}
    return {f"BRIDGE_POLL__{name.upper()}": value for name, value in settings.items()}


@dataclass(frozen=True)
class Counts:
    """Counts at a time, or since an earlier one: CPU time (s), messages, and requests by path."""

    at: float
    cpu: float
    messages: int
    paths: Counter[str]

    def since(self, before: "Counts") -> "Counts":
        spent, cpu, messages = self.at - before.at, self.cpu - before.cpu, self.messages - before.messages
        return Counts(spent, cpu, messages, self.paths - before.paths)

    @property
    def share(self) -> float:
        """CPU time in percent of a core."""
        return 100 * self.cpu / self.at

    @property
    def requests(self) -> int:
        return self.paths.total()

    def per_minute(self, number: int) -> float:
        return 60 * number / self.at


@dataclass(frozen=True)
class Run:
    """A run of a program: the counts of both times, its memory (MB), and the ages (ms) of the marked values."""

    healthy: Counts
    failing: Counts
    memory: float
    ages: Sequence[float]


def run(program: Program, seconds: float, fault_seconds: float) -> Run:
    arrivals: dict[int, float] = {}
    topics: list[str] = []

    def arrived(message: MQTTMessage) -> None:
        topics.append(message.topic)
        if message.topic.endswith(SOLAR_TOPICS[program.marked]):
            arrivals.setdefault(solar_power(bytes(message.payload)), time.monotonic())

    with (
        lab.gateways(20, manner=lab.Manner(delay=DELAY_S, marked=program.marked)) as served,
        lab.broker() as port,
        TemporaryDirectory() as folder,
        lab.watching(port, "#", arrived),
        lab.running(*program.start(served, port, Path(folder))) as process,
    ):

        def counted() -> Counts:
            paths = Counter(served.ask(lab.PATHS_PATH))
            return Counts(time.monotonic(), lab.cpu_seconds(process.pid), len(topics), paths)

        time.sleep(WARM_UP_S)
        if process.poll() is not None:
            sys.exit(f"ended by itself: {process.args!r}")
        begun = counted()
        time.sleep(seconds)
        healthy, memory, stamps = counted(), lab.resident(process.pid), served.ask(lab.STAMPS_PATH)
        served.ask(f"{lab.FAULT_PATH}?503")
        time.sleep(fault_seconds)
        failing = counted().since(healthy)
    left = {int(watts): when for watts, when in stamps.items() if when > begun.at}
    ages = [1000 * (arrivals[watts] - when) for watts, when in left.items() if watts in arrivals]
    return Run(healthy.since(begun), failing, memory, ages)


def ratio(name: str, mine: Counts, its: Counts) -> float:
    """Return the CPU time beside that of the script: of a request, where both make the same ones."""
    return mine.cpu / mine.requests / (its.cpu / its.requests) if name in ALIKE else mine.share / its.share


def row(name: str, runs: Sequence[Run], base: Sequence[Run]) -> tuple[object, ...]:
    healthy, failing = [run.healthy for run in runs], [run.failing for run in runs]
    ages = [age for run in runs for age in run.ages]
    return (
        name,
        lab.spread([each.share for each in healthy]),
        1000 * median(each.cpu / each.requests for each in healthy),
        1000 * median(each.cpu / each.messages for each in healthy),
        median(run.memory for run in runs),
        lab.spread([each.per_minute(each.requests) for each in healthy], 0),
        round(median(each.per_minute(each.messages) for each in healthy)),
        f"{lab.percentile(ages, 0.5):.1f} / {lab.percentile(ages, 0.99):.1f}" if ages else "",
        round(median(each.per_minute(each.requests) for each in failing)),
        median(each.share for each in failing),
        lab.spread([ratio(name, mine.healthy, its.healthy) for mine, its in zip(runs, base, strict=True)]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--fault-seconds", type=float, default=60)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--same-work", action="store_true", help="only the programs that do the same work")
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    asked = parser.parse_args()
    programs = {
        EVERY_VALUE: Program(options=()),
        ON_CHANGE: Program(options=("--on-change",)),
        SAME_WORK: Program(settings=settings_of_same_work()),
    }
    if asked.against:
        other = asked.against.resolve()
        programs[OTHER] = Program(settings=settings_of_same_work(other), checkout=other)
    if not asked.same_work:
        live = {"BRIDGE_POLL__PROFILE": "live"}
        programs["bridge, default"] = Program(lab.LIVEDATA_PATH, settings={})
        programs["bridge, profile live"] = Program(lab.LIVEDATA_PATH, settings=live)
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    for turn in range(asked.turns):
        for name, program in reversed(programs.items()) if turn % 2 else programs.items():
            print(f"turn {turn + 1} of {asked.turns}: {name} ...", file=sys.stderr)
            runs[name].append(run(program, asked.seconds, asked.fault_seconds))
    for name in (ON_CHANGE, SAME_WORK):
        print(f"{name}: {dict(sorted(runs[name][0].healthy.paths.items()))}")
    header = (
        *("", "CPU, % of a core", "ms a request", "ms a message", "memory, MB", "requests a minute"),
        *("messages a minute", "age p50 / p99, ms", "503: requests a minute", "503: CPU, %", "CPU / script's"),
    )
    lab.table("Peers", header, [row(name, each, runs[ON_CHANGE]) for name, each in runs.items()])


if __name__ == "__main__":
    main()
