"""The energy of today of single phases, from the phases' own counters."""

from datetime import UTC, datetime
from typing import Any

import pytest
from samples import SINGLE, THREE, answers, changed, parse, restored

from bridge.model import Facts
from bridge.pipeline import CountersState, Pipeline

MIDNIGHT = datetime(2026, 6, 2, tzinfo=UTC).timestamp()
ROLES = ("production", "net-consumption")


class PhaseRun:
    """A home with three phases in the hours around midnight UTC."""

    def __init__(self, state: CountersState | None = None, facts: Facts = THREE) -> None:
        self.pipeline = Pipeline(netted=True, zone=UTC, state=state)
        self._facts = facts

    def take(self, source: str, answer: Any, minutes: float) -> dict[str, Any]:
        """What is published of an answer so many minutes after midnight."""
        now = MIDNIGHT + 60 * minutes
        parsed = parse(source, answer, self._facts, now)
        shown = self.pipeline.process(source, parsed, self._facts, now=now, steady=now).readings
        return {"/".join(filter(None, (r.device, r.phase, r.name))): r.value for r in shown}

    def produced(self, energy: float, minutes: float) -> Any:
        """The energy of today of L2 when its counter shows this."""
        readings = changed(answers()["readings"], "0.channels.1.actEnergyDlvd", lambda _: 5_000.0 + energy)
        return self.take("readings", readings, minutes).get("meter/production/l2/energy_today")

    def consumed(self, energy: float, minutes: float) -> Any:
        """The same of the consumption of L2, which the gateway reports."""
        report = changed(answers()["consumption"], "1.lines.1.whDlvdCum", lambda _: 5_000.0 + energy)
        return self.take("consumption", report, minutes).get("report/total-consumption/l2/energy_today")


def test_production_of_a_phase_begins_at_midnight() -> None:
    run = PhaseRun()
    assert [run.produced(energy, minutes) for energy, minutes in ((0, -20), (1, -10))] == [None, None]
    assert run.produced(1, -0.1) is None  # nobody has seen this day begin
    assert run.produced(1, 0.1) == pytest.approx(0)
    assert run.produced(250, 60) == pytest.approx(249, abs=0.1)
    run = PhaseRun(restored(run.pipeline.state))
    assert run.produced(300, 70) == pytest.approx(299, abs=0.1)
    assert run.produced(400, 1440.1) == pytest.approx(0, abs=0.5)


def test_consumption_of_a_phase_does_not_fall_where_the_report_does() -> None:
    """The report is a difference of two meters, which falls and rises by some Wh."""
    run = PhaseRun()
    run.consumed(0, -1)
    assert run.consumed(0, 0.1) == pytest.approx(0)
    shown = [run.consumed(energy, 10 + place) for place, energy in enumerate((50, 48, 51, 47, 52, 60))]
    assert shown == [50, 50, 51, 51, 52, 60]


def test_a_home_with_one_phase_has_no_energies_of_phases() -> None:
    run = PhaseRun(facts=SINGLE)
    found = run.take("readings", answers(1)["readings"], 1) | run.take("consumption", answers(1)["consumption"], 2)
    assert not [topic for topic in found if topic.endswith("energy_today")]
