"""Which source is asked when: first in the order of the table, then urgent ones first, and none is left out."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.endpoints import BY_SOURCE, ENDPOINTS
from bridge.model import SourceName
from bridge.service.sources import URGENCY_STEP_S, Source, Sources

TABLE: dict[str, tuple[float, int]] = {
    endpoint.source: (endpoint.every.normal, endpoint.urgency) for endpoint in ENDPOINTS if endpoint.every.normal
}  # those that are on by default
START = 1000.0
LINE = BY_SOURCE[SourceName.LIVEDATA]


def sources(periods: Mapping[str, tuple[float, int]], now: float = START) -> Sources:
    """Sources of these names, with their periods (seconds) and urgencies."""
    lines = {
        name: replace(LINE, source=cast(SourceName, name), urgency=urgency)
        for name, (_, urgency) in periods.items()
    }
    made = [Source(lines[name], period) for name, (period, _) in periods.items()]
    return Sources(made, now, budget=0.25, log=logging.LoggerAdapter(logging.getLogger(__name__), {}))


def after_first_round(periods: Mapping[str, tuple[float, int]], now: float = START) -> Sources:
    schedule = sources(periods, now)
    while (source := schedule.next(now)) is not None:
        schedule.polled(source, now)
    return schedule


def to_ask(schedule: Sources, now: float) -> str | None:
    """The name of the source to ask."""
    source = schedule.next(now)
    return None if source is None else source.name


def polled(schedule: Sources, name: str, now: float, requests: int = 1) -> None:
    schedule.polled(schedule.by_name[name], now, requests=requests)


def run(schedule: Sources, seconds: float, takes: float = 0.1, now: float = START) -> list[tuple[float, str]]:
    """Which source is asked when, if each answer takes so long and the budget slows no source down."""
    asked: list[tuple[float, str]] = []
    end = now + seconds
    while now < end:
        source = schedule.next(now)
        if source is None:
            now += max(schedule.delay(now), 1e-6)
            continue
        asked.append((now, source.name))
        now += takes
        schedule.polled(source, now)
    return asked


# The first round


def test_the_first_round_goes_through_all_in_the_order_of_the_table() -> None:
    schedule, order = sources(TABLE), []
    while schedule.delay(START) == 0:
        order.append(to_ask(schedule, START) or "")
        polled(schedule, order[-1], START)
    assert order == list(TABLE)
    assert order[:2] == ["info", "meters"]
    assert schedule.next(START) is None


def test_the_first_round_goes_on_while_urgent_ones_are_due_again() -> None:
    """Answers may be so slow that live data is due before the first round ends."""
    schedule = sources(TABLE)
    order = [source for _, source in run(schedule, 6 * len(TABLE), takes=6.0)]
    assert order[: len(TABLE)] == list(TABLE)


def test_a_period_of_zero_turns_a_source_off() -> None:
    schedule = sources({"a": (0, 0), "b": (10, 1)})
    assert list(schedule.by_name) == ["b"]
    assert to_ask(schedule, START) == "b"
    assert (schedule.by_name["b"].period, schedule.fastest) == (10, 10)


def test_nothing_to_ask() -> None:
    schedule = sources({})
    assert schedule.next(START) is None
    assert schedule.fastest == 0
    assert schedule.delay(START) > 0


# Ticks


def test_ticks_keep_their_time() -> None:
    """The time that answers take does not add up."""
    schedule = after_first_round({"a": (10, 0)})
    for tick in range(1, 50):
        now = START + 10 * tick
        assert schedule.next(now - 0.01) is None
        assert schedule.delay(now - 0.01) == pytest.approx(0.01)
        assert to_ask(schedule, now) == "a"
        polled(schedule, "a", now + 3)


@pytest.mark.parametrize(("late", "due"), [(0, 10), (9.9, 10), (10, 20), (25, 30), (1000.5, 1010)])
def test_missed_ticks_are_skipped(late: float, due: float) -> None:
    """After a hang of minutes a source is asked once, not once for each missed tick."""
    schedule = after_first_round({"a": (10, 0)})
    polled(schedule, "a", START + 10 + late)
    assert schedule.next(START + 10 + due - 0.001) is None
    assert to_ask(schedule, START + 10 + due) == "a"


def test_an_answer_before_its_time_does_not_move_the_ticks_twice() -> None:
    schedule = after_first_round({"a": (10, 0)})
    schedule.by_name["a"].due = START + 3
    assert to_ask(schedule, START + 3) == "a"
    polled(schedule, "a", START + 3)
    assert schedule.next(START + 12.9) is None
    assert to_ask(schedule, START + 13) == "a"


def test_a_pause_delays_one_source_only() -> None:
    schedule = after_first_round({"a": (10, 0), "b": (10, 0)})
    schedule.by_name["a"].record_missing()
    polled(schedule, "a", START + 10)
    assert to_ask(schedule, START + 10) == "b"
    polled(schedule, "b", START + 10)
    assert to_ask(schedule, START + 69.9) == "b"
    for _ in range(2):
        polled(schedule, "b", START + 69.9)
    assert to_ask(schedule, START + 70) in {"a", "b"}
    polled(schedule, "b", START + 70)
    assert to_ask(schedule, START + 70) == "a"


def test_a_pause_shorter_than_the_period_changes_nothing() -> None:
    schedule = after_first_round({"a": (100, 0)})
    schedule.by_name["a"].record_missing()
    assert schedule.by_name["a"].pause == 60
    polled(schedule, "a", START + 100)
    assert schedule.delay(START + 100) == 100


def test_retries_use_up_ticks() -> None:
    schedule = after_first_round({"a": (10, 0)})
    polled(schedule, "a", START + 10.5, requests=3)
    assert schedule.delay(START + 10.5) == 29.5


def test_a_slowdown_holds_until_the_next_poll() -> None:
    schedule = after_first_round({"a": (10, 0)})
    source = schedule.by_name["a"]
    source.slowdown = 2.5
    source.polled(START + 10)
    assert (source.interval, source.stale_after) == (25, 75)
    assert schedule.delay(START + 10) == 25
    source.slowdown = 1
    assert (source.interval, source.stale_after) == (25, 75)  # otherwise it would be stale before it is due
    source.polled(START + 35)
    assert source.interval == 10
    assert schedule.delay(START + 35) == 10


def test_a_slow_source_skips_missed_ticks_too() -> None:
    schedule = after_first_round({"a": (10, 0)})
    schedule.by_name["a"].slowdown = 2
    schedule.by_name["a"].polled(START + 45)
    assert schedule.delay(START + 45) == 5


def test_a_new_period_holds_from_the_next_tick_on() -> None:
    schedule = after_first_round({"a": (10, 0), "b": (60, 0)})
    schedule.by_name["a"].period = 100
    assert (schedule.by_name["a"].period, schedule.fastest) == (100, 60)
    assert to_ask(schedule, START + 10) == "a"
    polled(schedule, "a", START + 10)
    assert schedule.delay(START + 60) == 0
    polled(schedule, "b", START + 60)
    assert schedule.delay(START + 60) == 50


# Urgency


def test_the_urgent_one_goes_first() -> None:
    schedule = after_first_round({"slow": (10, 4), "fast": (10, 0), "middle": (10, 1)})
    order = []
    for _ in range(3):
        order.append(to_ask(schedule, START + 10) or "")
        polled(schedule, order[-1], START + 10)
    assert order == ["fast", "middle", "slow"]


def test_one_that_waits_long_enough_goes_before_an_urgent_one() -> None:
    schedule = after_first_round({"slow": (10, 4), "fast": (1, 0)})
    now = START + 10 + 4 * URGENCY_STEP_S
    for time in (now - 0.1, now + 0.1):
        schedule.by_name["fast"].due = time
        assert to_ask(schedule, time) == ("fast" if time < now else "slow")


def test_a_gateway_that_is_too_slow_starves_no_source() -> None:
    """Each answer takes longer than the fastest period, and all slow sources still get their turn."""
    asked = run(after_first_round(TABLE), 7200, takes=6.0)
    counts = {source: sum(1 for _, name in asked if name == source) for source in TABLE}
    assert counts["meters"] >= 1
    assert counts["inverters"] >= 22
    assert counts["production"] >= 90


def test_a_usual_gateway_is_asked_as_often_as_wanted() -> None:
    asked = run(after_first_round(TABLE), 3600, takes=0.2)
    counts = {source: sum(1 for _, name in asked if name == source) for source in TABLE}
    assert counts == {source: max(round(3600 / period) - 1, 0) for source, (period, _) in TABLE.items()}


def test_live_data_is_hardly_ever_late() -> None:
    asked = [time for time, source in run(after_first_round(TABLE), 3600, takes=0.2) if source == "livedata"]
    assert max((time - START) % 5 for time in asked) <= 0.21


# Holding


def test_nothing_is_due_while_held() -> None:
    schedule = sources({"a": (10, 0)})
    schedule.hold(START + 30)
    assert schedule.next(START + 29.9) is None
    assert (schedule.held(START + 29.9), schedule.held(START + 30)) == (True, False)
    assert schedule.delay(START + 10) == 20
    assert to_ask(schedule, START + 30) == "a"


def test_a_hold_ends_with_its_time_and_skips_what_it_missed() -> None:
    schedule = after_first_round({"a": (10, 0)})
    schedule.hold(START + 100)
    assert schedule.delay(START + 5) == 95
    assert to_ask(schedule, START + 100) == "a"
    polled(schedule, "a", START + 101)
    assert schedule.delay(START + 101) == 9


# Restarts


def test_a_restart_asks_all_but_the_one_that_was_just_asked() -> None:
    """The answer of `/info` has shown that the gateway is back."""
    schedule = after_first_round(TABLE)
    now = START + 7200
    polled(schedule, "info", now)
    schedule.restart(now, without=schedule.by_name["info"])

    order = []
    while (source := schedule.next(now)) is not None:
        order.append(source.name)
        schedule.polled(source, now)
    assert order == list(TABLE)[1:]
    assert schedule.delay(now) == 5


# Any course

PERIODS = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.floats(1, 1000), st.integers(0, 4)),
    min_size=1,
)


def eighths(least: int, most: int) -> st.SearchStrategy[float]:
    """Times that add up without rounding."""
    return st.integers(8 * least, 8 * most).map(lambda number: number / 8)


EXACT_PERIODS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(eighths(1, 1000), st.integers(0, 4)), min_size=1
)


@settings(max_examples=150)
@given(EXACT_PERIODS, st.lists(eighths(0, 300), max_size=40), eighths(0, 10**6))
def test_one_that_was_asked_is_not_due_again_at_once(
    periods: dict[str, tuple[float, int]], steps: list[float], now: float
) -> None:
    schedule = after_first_round(periods, now)
    for step in steps:
        now += step
        source = schedule.next(now)
        if source is None:
            assert schedule.delay(now) > 0
            now += schedule.delay(now)
            source = schedule.next(now)
            assert source is not None
        schedule.polled(source, now)
        assert schedule.next(now) != source


@settings(max_examples=60)
@given(PERIODS, st.floats(0.01, 20))
def test_no_source_starves(periods: dict[str, tuple[float, int]], takes: float) -> None:
    """Between two turns of a source, each other one is asked only until its head start is used up."""
    asked = run(after_first_round(periods), 4000, takes)
    for source, (period, urgency) in periods.items():
        times = [START, *(time for time, name in asked if name == source), START + 4000]
        longest = max(later - earlier for earlier, later in pairwise(times))
        assert (
            longest
            <= 2 * period + urgency * URGENCY_STEP_S + len(periods) * (takes + 4 * URGENCY_STEP_S) + 2 * takes
        )
