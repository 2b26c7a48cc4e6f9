"""A slow gateway is asked less by itself, the live sources last, and it is forgiven slowly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.endpoints import ENDPOINTS
from bridge.service.budget import LONGEST, Budget

TABLE = {endpoint.source: (endpoint.normal, endpoint.urgency) for endpoint in ENDPOINTS}


def load(budget: Budget, costs: dict[str, float]) -> float:
    """The share of the gateway's time that is taken."""
    return sum(cost / (TABLE[name][0] * budget.stretch(name)) for name, cost in costs.items())


def spent(budget: Budget, costs: dict[str, float], rounds: int = 60) -> None:
    for _ in range(rounds):
        for name, cost in costs.items():
            budget.spent(name, cost)


def test_a_healthy_gateway_is_asked_as_usual() -> None:
    budget = Budget(0.25, TABLE)
    spent(budget, {"livedata": 0.4, "readings": 0.2, "grid": 0.1, "consumption": 0.1, "inverters": 0.3})
    assert [budget.stretch(name) for name in TABLE] == [1.0] * len(TABLE)


def test_the_others_give_way_before_the_live_ones() -> None:
    budget = Budget(0.25, TABLE)
    costs = {"livedata": 0.5, "readings": 1.2, "grid": 3.0, "consumption": 3.0}
    spent(budget, costs)
    assert budget.stretch("livedata") == 1.0
    assert budget.stretch("readings") > 1.5
    assert load(budget, costs) <= 0.2501


def test_one_slow_source_gives_way_alone() -> None:
    budget = Budget(0.25, TABLE)
    costs = {"livedata": 0.3, "readings": 15.0, "grid": 0.1}
    spent(budget, costs)
    assert budget.stretch("readings") >= 12
    assert budget.stretch("livedata") == 1.0


@given(st.fixed_dictionaries({name: st.floats(0.01, 3.0) for name in TABLE}), st.sampled_from([0.1, 0.25, 0.6]))
def test_the_budget_is_kept_as_long_as_stretching_can(costs: dict[str, float], share: float) -> None:
    budget = Budget(share, TABLE)
    spent(budget, costs, rounds=3)
    stretched = max(budget.stretch(name) for name in TABLE)
    assert load(budget, costs) <= share * 1.001 or stretched == LONGEST
    assert min(budget.stretch(name) for name in TABLE) >= 1.0


def test_it_is_forgiven_slowly() -> None:
    budget = Budget(0.25, TABLE)
    spent(budget, {"readings": 4.0})
    slow = budget.stretch("readings")
    budget.spent("readings", 0.1)
    assert 1.0 < budget.stretch("readings") <= slow
    spent(budget, {"readings": 0.1}, rounds=300)
    assert budget.stretch("readings") == pytest.approx(1.0, abs=0.01)


def test_a_quicker_period_counts_for_more() -> None:
    budget = Budget(0.25, TABLE)
    spent(budget, {"readings": 1.0})
    assert budget.stretch("readings") == 1.0
    budget.change_period("readings", 1.0)
    spent(budget, {"readings": 1.0})
    assert budget.stretch("readings") > 4
