"""Measures the CPU time of one round of requests, with all messages that follow from it at a real broker.

Each contender (`contenders.py`) has a process, a simulated gateway that answers at once, and a broker of its own;
only the contender's CPU time counts. They run in turns, some rounds each, because the machine's load changes by the
second; ratios are those of each turn: the least, the median and the greatest. Without pyenphase
(`pip install pyenphase`) there is no script.

    python benchmarks/cost.py                         beside a bare client and a script with pyenphase
    python benchmarks/cost.py --against CHECKOUT      beside another checkout of the project
    python benchmarks/cost.py --inverters 1000 --sources inverters device_data
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median

import lab

from bridge.endpoints import ENDPOINTS

CONTENDERS_PROGRAM = Path(__file__).with_name("contenders.py")
HERE = Path(__file__).parent.parent
ROUNDS, TURNS = 25, 15
SIZES = (1, 20, 500)
BARE = ("ours", "floor")
"""The contenders that need nothing but the bridge."""
PYENPHASE_SOURCES = ("meters", "inventory", "power", "production", "readings", "device_data", "secctrl", "tariff")
"""What pyenphase 4.2.0 requests in one `update` of the simulated home; `peers.py` compares the requests."""
BRIEF_SOURCES = tuple(endpoint.source.value for endpoint in ENDPOINTS if endpoint.appendix)
"""The endpoints of Enphase's technical brief."""


@dataclass(frozen=True)
class Measured:
    """What to measure: numbers of inverters with the sources that are polled, in turns of some rounds."""

    rounds: int
    turns: int
    cases: Sequence[tuple[int, Sequence[str]]]


class Contender:
    """A contender in a process of its own, with a gateway and a broker of its own, ready to run rounds."""

    def __init__(self, stack: ExitStack, who: str, inverters: int, sources: Sequence[str], checkout: Path) -> None:
        _, address, token = stack.enter_context(
            lab.gateways(inverters, manner=lab.Manner(step=1 / len(sources)))
        ).only
        port = stack.enter_context(lab.broker())
        command = [sys.executable, str(CONTENDERS_PROGRAM), who, address, token, str(port), *sources]
        env = {**os.environ, "PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(self._process.communicate)
        self._told()
        self.ms: list[float] = []
        self.messages: list[float] = []

    def run(self, rounds: int) -> None:
        assert self._process.stdin
        print(rounds, file=self._process.stdin, flush=True)
        found = json.loads(self._told())
        self.ms.append(found["ms"])
        self.messages.append(found["messages"])

    def _told(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline() or sys.exit("a contender has ended")


def in_turns(contenders: Sequence[Contender], rounds: int, turns: int) -> None:
    """Run all contenders in turns, in both orders, since the machine's load changes by the second."""
    for turn in range(turns):
        for contender in contenders if turn % 2 else reversed(contenders):
            contender.run(rounds)


def ratios(these: Contender, those: Contender) -> str:
    return lab.spread([mine / other for mine, other in zip(these.ms, those.ms, strict=True)])


def against(other: Path, measured: Measured) -> None:
    rows = []
    for inverters, sources in measured.cases:
        with ExitStack() as stack:
            both = [Contender(stack, "ours", inverters, sources, place) for place in (HERE, other)]
            in_turns(both, measured.rounds, measured.turns)
        cells = [cell for each in both for cell in (lab.spread(each.ms), median(each.messages))]
        rows.append((inverters, len(sources), *cells, ratios(*both)))
    header = ("inverters", "endpoints", "ms", "messages", "the other, ms", "messages", "ratio")
    lab.table(f"CPU time of a round beside {other}", header, rows)


def beside_others(measured: Measured) -> None:
    rows = []
    for inverters, sources in measured.cases:
        names = [*BARE, "script"] if sources == PYENPHASE_SOURCES and find_spec("pyenphase") else [*BARE]
        with ExitStack() as stack:
            there = {name: Contender(stack, name, inverters, sources, HERE) for name in names}
            in_turns([*there.values()], measured.rounds, measured.turns)
        cells: list[object] = []
        for name in ("ours", "floor", "script"):
            one = there.get(name)
            cells += [lab.spread(one.ms), median(one.messages)] if one else ["", ""]
        beside = [ratios(there["ours"], there[name]) if name in there else "" for name in ("floor", "script")]
        rows.append((inverters, len(sources), *cells, *beside))
    each = [f"{who}, {what}" for who in ("ours", "floor", "script") for what in ("ms", "messages")]
    lab.table("CPU time of a round", ("inverters", "endpoints", *each, "ours / floor", "ours / script"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each turn")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--inverters", type=int, nargs="+", default=SIZES)
    parser.add_argument("--sources", nargs="+", help="poll these instead of pyenphase's eight and the brief's ten")
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    asked = parser.parse_args()
    wanted = [tuple(asked.sources)] if asked.sources else [PYENPHASE_SOURCES, BRIEF_SOURCES]
    measured = Measured(asked.rounds, asked.turns, [*product(asked.inverters, wanted)])
    if asked.against:
        against(asked.against.resolve(), measured)
    else:
        beside_others(measured)


if __name__ == "__main__":
    main()
