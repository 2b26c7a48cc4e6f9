"""Plays one fault at one kind of site and says what was wrong with the bridge's numbers."""

import asyncio
import gc
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from house.clock import LeapingLoop
from house.faults import Fault
from house.judge import Judge
from house.model import Kind
from house.world import world

MEMORY = Path("/dev/shm")  # noqa: S108 - the state of a simulated bridge needs no disk
"""A file system in memory, where the machine has one."""
GENTLE_S = 15.0
"""The time between two polls of the site's source in the profile `gentle`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one combination. Without complaints all numbers were right."""

    kind: str
    fault: str
    complaints: tuple[str, ...]
    sums: Mapping[str, tuple[float, float, float]]
    """By topic: what was published, and the range of the truth, in Wh."""
    seconds: float
    """Processor time."""
    requests: int

    def __str__(self) -> str:
        return f"{self.kind} x {self.fault}: {'; '.join(self.complaints) or 'ok'}"


def play(kind: Kind, fault: Fault, *, seed: int = 1) -> Verdict:
    """Play one combination in a loop of its own."""
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        asyncio.Runner(loop_factory=LeapingLoop) as runner,
    ):
        return runner.run(_play(kind, fault, Path(folder), seed))


async def _play(kind: Kind, fault: Fault, folder: Path, seed: int) -> Verdict:
    began = time.process_time()
    period = fault.period_s if kind.profile == "normal" else None
    settings: dict[str, Any] = {"mqtt": dict(fault.mqtt), "poll": {**_periods(period), **fault.poll}}
    zone = fault.zone
    async with world(kind, folder, fault.start, seed=seed, zone=zone, settings=settings) as made:
        judge = Judge(
            made,
            period or GENTLE_S,
            reset_allowed=fault.reset_allowed,
            handover_wh=fault.handover_wh if kind.production_ct else 0.0,
            tolerance=fault.tolerance,
            integrates="power" in fault.poll,
        )
        await fault.play(made, judge)
        complaints = judge.finish()
        sums = {name: (found.total, found.low, found.high) for name, found in judge.sums.items()}
        requests = sum(made.gateway.requests.values())
    return Verdict(kind.name, fault.name, tuple(complaints), sums, time.process_time() - began, requests)


def _periods(period: float | None) -> dict[str, float]:
    """Ask so often for what the site's powers come from. How often to ask batteries is the bridge's own choice."""
    return {} if period is None else dict.fromkeys(("readings", "livedata"), period)


def quiet() -> None:
    """Keep the bridge's own words off the screen, and look for garbage seldom, in a process that only plays."""
    logging.getLogger("bridge").setLevel(logging.CRITICAL)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
