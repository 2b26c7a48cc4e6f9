"""Plays every fault at every kind of site against the whole bridge, and says where its numbers are wrong.

The model of a house in tests/house is the truth (see tests/house/__init__.py). The matrix takes about an hour of
simulated days in two processes. Each complaint is a sentence; a combination without one is "ok".

    python benchmarks/true_numbers.py                 plays all, and writes the table of docs/numbers.md
    python benchmarks/true_numbers.py DAYS [KIND]    plays so many days without a fault, to be right within 0.5 %
    python benchmarks/true_numbers.py KIND [FAULT]   plays those whose names begin so, or all faults of `KIND`

With `--results FILE` each result is a line of that file, and what the file has already is not played again. So an
interrupted matrix goes on where it stopped; the file must be of one state of the program. `--table` plays nothing
and writes the table of what the file has.
"""

import argparse
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from house.faults import BY_NAME as FAULTS  # noqa: E402 - tests are no package
from house.faults import Fault, combinations, many_days  # noqa: E402
from house.kinds import BY_NAME as KINDS  # noqa: E402
from house.runs import Verdict, play, quiet  # noqa: E402

PROCESSES = 2
DOCUMENT = ROOT / "docs" / "numbers.md"
BLOCK = re.compile(r"(<!-- begin matrix: benchmarks/true_numbers\.py -->\n).*?(<!-- end matrix -->)", re.DOTALL)


def _play(kind: str, fault: str) -> Verdict:
    return play(KINDS[kind], _fault(fault))


def _fault(name: str) -> Fault:
    """Return the fault of this name, where a number means so many days without one."""
    return many_days(int(name)) if name.isdecimal() else FAULTS[name]


def verdicts(pairs: Sequence[tuple[str, str]]) -> Iterator[Verdict]:
    """Play all pairs and yield each verdict when it is there."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=quiet) as pool:
        for done in as_completed([pool.submit(_play, *pair) for pair in pairs]):
            yield done.result()


def table(found: Iterable[Verdict]) -> str:
    """Return the matrix: a line for each fault, a column for each kind of site."""
    by_pair = {(verdict.kind, verdict.fault): verdict for verdict in found}
    kinds = [name for name in KINDS if any(kind == name for kind, _ in by_pair)]
    faults = [name for name in FAULTS if any(fault == name for _, fault in by_pair)]
    faults += sorted({fault for _, fault in by_pair} - set(faults))
    lines = [["what goes wrong", *kinds], ["---"] * (len(kinds) + 1)]
    lines += [[fault, *(_cell(by_pair.get((kind, fault))) for kind in kinds)] for fault in faults]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return " "
    return "wrong" if verdict.complaints else "ok"


def write(text: str) -> None:
    """Put the matrix into the document."""
    document = DOCUMENT.read_text()
    DOCUMENT.write_text(BLOCK.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", document))


def _pairs(first: str, second: str) -> list[tuple[str, str]]:
    if first.isdecimal():
        return [(name, first) for name in KINDS if name.startswith(second)]
    return [
        (kind.name, fault.name)
        for kind, fault in combinations(list(KINDS.values()))
        if kind.name.startswith(first) and fault.name.startswith(second)
    ]


def _known(file: Path) -> list[Verdict]:
    """Return the results in a file."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Verdict(**json.loads(line)) for line in lines]


def _sentence(found: Sequence[Verdict]) -> str:
    """Say how much of the matrix was played, and when."""
    possible, wrong = len(_pairs("", "")), sum(bool(verdict.complaints) for verdict in found)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    return f"{len(found)} of {possible} combinations were played on {today}; {wrong} of them were wrong."


def main(first: str, second: str, results: Path | None, *, table_only: bool) -> int:
    pairs = [] if table_only else _pairs(first, second)
    started, found = time.monotonic(), _known(results) if results else []
    played = {(verdict.kind, verdict.fault) for verdict in found}
    for verdict in verdicts([pair for pair in pairs if pair not in played]):
        found.append(verdict)
        if results:
            with results.open("a") as file:
                print(json.dumps(asdict(verdict)), file=file)
        print(f"{len(found)}/{len(pairs)} {verdict} ({verdict.seconds:.0f} s)", flush=True)
    print(f"\n{table(found)}\n\n{(time.monotonic() - started) / 60:.0f} minutes")
    if not first:
        write(f"{_sentence(found)}\n\n{table(found)}")
    return int(any(verdict.complaints for verdict in found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="DAYS|KIND", nargs="?", default="")
    parser.add_argument("second", metavar="KIND|FAULT", nargs="?", default="")
    parser.add_argument("--results", metavar="FILE", type=Path)
    parser.add_argument("--table", dest="table_only", action="store_true")
    sys.exit(main(**vars(parser.parse_args())))
