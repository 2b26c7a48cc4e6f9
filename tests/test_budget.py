"""A slow gateway is asked less often, its live sources last of all, and the periods recover slowly."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.endpoints import ENDPOINTS
from bridge.service.sources import MAX_SLOWDOWN, Source, Sources

NAMES = [endpoint.source for endpoint in ENDPOINTS if endpoint.every.normal]  # those that are on by default


def made(budget: float = 0.25) -> Sources:
    log = logging.LoggerAdapter(logging.getLogger(__name__), {})
    return Sources([Source(line, line.every.normal) for line in ENDPOINTS], 0.0, budget=budget, log=log)


def load(sources: Sources, costs: dict[str, float]) -> float:
    """The share of the gateway's time that polls take."""
    found = [sources.by_name[name] for name in costs]
    return sum(costs[source.name] / (source.period * source.slowdown) for source in found)


def spend(sources: Sources, costs: dict[str, float], rounds: int = 60) -> None:
    for _ in range(rounds):
        for name, cost in costs.items():
            sources.polled(sources.by_name[name], 0.0, seconds=cost)


def slowdown(sources: Sources, name: str) -> float:
    return sources.by_name[name].slowdown


def test_a_healthy_gateway_is_asked_as_usual() -> None:
    sources = made()
    spend(sources, {"livedata": 0.4, "readings": 0.2, "grid": 0.1, "consumption": 0.1, "inverters": 0.3})
    assert [slowdown(sources, name) for name in NAMES] == [1.0] * len(NAMES)


def test_the_others_are_slowed_down_before_the_live_ones() -> None:
    sources = made()
    costs = {"livedata": 0.5, "readings": 1.2, "grid": 3.0, "consumption": 3.0}
    spend(sources, costs)
    assert slowdown(sources, "livedata") == 1.0
    assert slowdown(sources, "readings") > 1.5
    assert load(sources, costs) <= 0.2501


def test_one_slow_source_is_slowed_down_alone() -> None:
    sources = made()
    costs = {"livedata": 0.3, "readings": 15.0, "grid": 0.1}
    spend(sources, costs)
    assert slowdown(sources, "readings") >= 12
    assert slowdown(sources, "livedata") == 1.0


@given(st.fixed_dictionaries({name: st.floats(0.01, 3.0) for name in NAMES}), st.sampled_from([0.1, 0.25, 0.6]))
def test_the_budget_is_kept_unless_all_are_at_the_longest_period(costs: dict[str, float], share: float) -> None:
    sources = made(share)
    spend(sources, costs, rounds=3)
    stretched = max(slowdown(sources, name) for name in NAMES)
    assert load(sources, costs) <= share * 1.001 or stretched == MAX_SLOWDOWN
    assert min(slowdown(sources, name) for name in NAMES) >= 1.0


def test_a_slowdown_ends_slowly() -> None:
    sources = made()
    spend(sources, {"readings": 4.0})
    slow = slowdown(sources, "readings")
    spend(sources, {"readings": 0.1}, rounds=1)
    assert 1.0 < slowdown(sources, "readings") <= slow
    spend(sources, {"readings": 0.1}, rounds=300)
    assert slowdown(sources, "readings") == pytest.approx(1.0, abs=0.01)


def test_a_quicker_period_counts_for_more() -> None:
    sources = made()
    spend(sources, {"readings": 1.0})
    assert slowdown(sources, "readings") == 1.0
    sources.by_name["readings"].period = 1.0
    spend(sources, {"readings": 1.0})
    assert slowdown(sources, "readings") > 4


def test_the_others_keep_a_quarter_of_the_budget_whatever_the_live_ones_take() -> None:
    """A live source that hangs may use more than the whole budget, even with its longest period."""
    sources = made(0.2)
    costs = {"livedata": 25.0, "grid": 2.5, "consumption": 5.0}
    spend(sources, costs, rounds=100)
    assert slowdown(sources, "livedata") == MAX_SLOWDOWN
    del costs["livedata"]
    assert load(sources, costs) == pytest.approx(0.25 * 0.2, rel=0.01)
