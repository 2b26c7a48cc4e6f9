"""The ten rules of lifetime counters, one by one, with numbers that real gateways gave."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from bridge.counters.rules import WRAP_WH, Kind, Outcome, apply
from bridge.counters.state import BestDays, Cause, CounterLimits, CounterState

START = 1_795_000_000.0
METER = CounterLimits(cap=75_000)
"""Three phases of 25 kW: 1208.333 Wh are possible in ten seconds, with the slack of 1 kWh."""
PCU = CounterLimits(cap=7_500, confirm=3_600, stall=900, wrap=True)
"""Twenty inverters of 300 W, whose source counts every quarter of an hour."""
PRODUCTION = 26_785_327.449
"""actEnergyDlvd of the production meter in 4.10.35."""

Step = tuple[float, float]
"""Seconds since the start, and the gateway's value."""


class Counter:
    """One counter that is read again and again."""

    def __init__(self, state: CounterState | None = None, limits: CounterLimits = METER) -> None:
        self.state, self.limits = state, limits
        self.outcomes: list[Outcome] = []

    @classmethod
    def known(cls, raw: float, limits: CounterLimits = METER) -> "Counter":
        """A counter that was read at the start, and long before."""
        return cls(CounterState(raw, changed_at=START, seen_at=START), limits)

    def read(self, seconds: float, raw: float, power: float | None = None, **limits: Any) -> float | None:
        changed = replace(self.limits, **limits) if limits else self.limits
        self.state, outcome = apply(self.state, raw, START + seconds, changed, power)
        self.outcomes.append(outcome)
        return outcome.value

    def all(self, steps: Iterable[Step]) -> list[float | None]:
        return [self.read(*step) for step in steps]

    @property
    def last(self) -> Outcome:
        return self.outcomes[-1]

    @property
    def offset(self) -> float:
        return self.state.offset if self.state else 0.0

    @property
    def texts(self) -> list[str]:
        return [outcome.text for outcome in self.outcomes if outcome.text]


def every(period: float, until: float, start: float = 0.0) -> list[float]:
    return [start + period * n for n in range(int((until - start) / period) + 1)]


# Rule 1: unwrap, negatives


@pytest.mark.parametrize("raw", [-19.677, -4.0, -0.0])
def test_a_negative_counter_publishes_0(raw: float) -> None:
    counter = Counter.known(0.0)

    assert str(counter.read(10, raw)) == "0.0"
    assert counter.last.kind is Kind.PUBLISHED


def test_a_counter_that_turns_negative_is_held_like_a_zero() -> None:
    counter = Counter.known(123.136)

    assert counter.all([(10, -19.677), (20, -19.7), (30, 123.2)]) == [123.136, 123.136, 123.2]


# Rule 2: rise


@pytest.mark.parametrize(
    ("seconds", "rise", "kind"),
    [
        (10, 0, Kind.PUBLISHED),
        (10, 0.001, Kind.PUBLISHED),
        (10, 1208.3, Kind.PUBLISHED),
        (10, 1208.4, Kind.HELD),
        (0, 1000, Kind.PUBLISHED),
        (0, 1000.1, Kind.HELD),
        (3600, 76_000, Kind.PUBLISHED),
        (3600, 76_001, Kind.HELD),
    ],
)
def test_a_rise_is_published_as_far_as_it_is_possible(seconds: float, rise: float, kind: Kind) -> None:
    counter = Counter.known(PRODUCTION)

    value = counter.read(seconds, PRODUCTION + rise)

    assert counter.last.kind is kind
    assert value == (PRODUCTION if kind is Kind.HELD else round(PRODUCTION + rise, 3))
    assert bool(counter.last.text) is (kind is Kind.HELD)


def test_a_source_that_stalled_for_a_quarter_of_an_hour_rises_at_once() -> None:
    counter = Counter.known(8_000_000, PCU)
    stalled = [(seconds, 8_000_000.0) for seconds in every(60, 840, 60)]

    assert set(counter.all(stalled)) == {8_000_000}
    assert counter.read(900, 8_002_870) == 8_002_870
    assert counter.texts == []
    assert counter.read(960, 8_005_000) == 8_002_870, "the stall was used up"


def test_a_gateway_that_was_down_for_a_week_rises_at_once() -> None:
    counter = Counter.known(PRODUCTION)

    assert counter.read(7 * 86_400, PRODUCTION + 12_000_000) == PRODUCTION + 12_000_000
    assert counter.texts == []


def test_float_noise_is_not_published() -> None:
    counter = Counter(CounterState(0.1, offset=0.2, changed_at=START, seen_at=START))

    assert counter.read(10, 0.1) == 0.3


# Rule 3: larger rise


def test_a_spike_is_forgotten() -> None:
    counter = Counter.known(PRODUCTION)

    values = counter.all([(10, PRODUCTION * 2), (20, PRODUCTION * 2 + 1), (30, PRODUCTION + 20)])

    assert values == [PRODUCTION, PRODUCTION, PRODUCTION + 20]
    assert counter.offset == 0
    assert [outcome.kind for outcome in counter.outcomes] == [Kind.HELD, Kind.HELD, Kind.BACK]
    assert len(counter.texts) == 2


def test_a_larger_rise_is_rebased_once_it_has_proved_itself() -> None:
    counter = Counter.known(1_000_000)

    values = counter.all([(10, 6_000_000), (450, 6_000_100), (909, 6_000_200), (910, 6_000_200)])

    assert values == [1_000_000, 1_000_000, 1_000_000, 1_000_200]
    assert counter.last.kind is Kind.REBASED
    assert "offset -5000000.000" in counter.last.text
    assert counter.read(920, 6_000_210) == 1_000_210
    assert counter.offset == -5_000_000


def test_a_rise_that_does_not_advance_proves_nothing() -> None:
    counter = Counter.known(1_000_000)

    assert set(counter.all((seconds, 1_500_000) for seconds in every(60, 86_400, 60))) == {1_000_000}
    assert set(counter.all([(86_460, 1_500_001)])) == {1_000_000}, "two readings are too few"


def test_a_small_step_does_not_become_possible_by_waiting() -> None:
    """The step is 5 kWh at once. At 25 kW these would take 10 minutes."""
    counter = Counter.known(1_000_000, CounterLimits(cap=25_000))

    values = counter.all((seconds, 1_005_000 + seconds / 10) for seconds in every(10, 900, 10))

    assert set(values) == {1_000_000}
    assert counter.read(910, 1_005_091) == 1_000_090
    assert counter.last.kind is Kind.REBASED
    assert counter.texts[1:] == [counter.last.text]


def test_a_held_rise_is_no_more_possible_after_some_minutes_without_a_reading() -> None:
    counter = Counter.known(1_000_000, CounterLimits(cap=25_000))

    counter.all([(10, 1_005_000), (500, 1_005_001), (1_000, 1_005_002)])

    assert counter.last == Outcome(Kind.REBASED, 1_000_002, counter.last.text)


def test_a_rise_is_proved_in_15_minutes_on_every_source() -> None:
    counter = Counter.known(8_000_000, PCU)

    counter.all([(60, 9_500_000), (510, 9_500_001), (960, 9_500_002)])

    assert counter.last == Outcome(Kind.REBASED, 8_000_002, counter.last.text)


def test_after_a_gap_a_held_rise_is_judged_anew() -> None:
    counter = Counter.known(1_000_000, CounterLimits(cap=25_000))
    counter.read(10, 1_003_000)

    assert counter.read(3_600, 1_004_000) == 1_004_000
    assert counter.offset == 0


def test_where_the_clock_is_doubtful_a_rise_is_accepted() -> None:
    counter = Counter.known(1_000_000)

    assert counter.read(10, 1_300_000, doubtful=True) == 1_300_000
    assert counter.last == Outcome(
        Kind.TAKEN, 1_300_000, "rose by 300000: taken as it is, since nobody knows how long it took"
    )
    assert counter.read(20, 1_600_000) == 1_300_000


@pytest.mark.parametrize("seen_at", [0.0, 1_000.0, START + 86_400])
def test_the_clock_is_doubtful_before_2020_and_where_it_went_back(seen_at: float) -> None:
    """Nobody knows how long the counter was not read: up to a month is believed."""
    month = 31 * 24 * METER.cap

    def counter() -> Counter:
        return Counter(CounterState(1_000_000, changed_at=seen_at, seen_at=seen_at))

    assert counter().read(10, 1_000_000 + month) == 1_000_000 + month
    assert counter().read(10, 1_000_000 + month + 60_000) == 1_000_000


def test_a_rewind_by_a_reboot_is_held_and_what_is_counted_meanwhile_is_not_lost() -> None:
    """300 Wh are gone at 100 s; 0.1 Wh are counted each second, so 290 Wh more are seen then."""
    counter = Counter.known(PRODUCTION)

    values = counter.all((seconds, PRODUCTION - 300 + seconds / 10) for seconds in every(100, 3_200, 100))

    assert values[:9] == [PRODUCTION] * 9
    assert counter.outcomes[9].kind is Kind.REBASED
    expected = [PRODUCTION + 10 * number for number in range(9, 32)]
    assert values[9:] == pytest.approx(expected, abs=0.001)
    assert [text.split()[0] for text in counter.texts] == ["went", "stays"]


def test_a_rewind_that_counting_passes_first_loses_nothing() -> None:
    """100 Wh are gone, and 60 Wh are counted every 10 s (21.6 kW): passed after 20 s."""
    counter = Counter.known(PRODUCTION)

    values = counter.all(
        [(10, PRODUCTION - 100), (20, PRODUCTION - 40), (30, PRODUCTION + 20), (40, PRODUCTION + 80)]
    )

    assert values == [PRODUCTION, PRODUCTION, PRODUCTION + 120, PRODUCTION + 180]
    assert counter.outcomes[2].kind is Kind.REBASED


@pytest.mark.parametrize("power", [None, 500.0])
def test_a_rewind_that_one_jump_passes_is_forgotten(power: float | None) -> None:
    """Of 75 kW 10 s make 208 Wh, which with 50 Wh looks like counting; of the 500 W that are read 1.7 Wh."""
    counter = Counter.known(PRODUCTION)
    jump = 200.0 if power else 300.0

    for seconds, raw in ((10, PRODUCTION - jump), (20, PRODUCTION - jump + 1)):
        assert counter.read(seconds, raw, power=power) == PRODUCTION
    assert counter.read(30, PRODUCTION + 3, power=power) == PRODUCTION + 3

    assert counter.last.kind is Kind.BACK
    assert counter.offset == 0


def test_a_rewind_of_less_than_50_wh_waits_until_it_is_passed() -> None:
    counter = Counter.known(PRODUCTION)

    values = counter.all((seconds, PRODUCTION - 50 + seconds / 100) for seconds in every(10, 6_000, 10))

    assert values[:499] == [PRODUCTION] * 499
    assert values[-1] == PRODUCTION + 10
    assert counter.offset == 0


def test_a_jump_back_within_a_day_takes_the_new_level_away() -> None:
    """A reboot lost 3 kWh, 90 Wh are counted on the new level, and a later one finds them again."""
    counter = Counter.known(PRODUCTION)
    counter.all([(100, PRODUCTION - 3_000), (550, PRODUCTION - 2_955), (1_000, PRODUCTION - 2_910)])
    assert (counter.last.kind, counter.last.value) == (Kind.REBASED, PRODUCTION + 90)
    for moment in every(50, 40_000, 1_050):
        assert counter.read(moment, PRODUCTION - 2_910, power=0.0) == PRODUCTION + 90

    assert counter.read(40_010, PRODUCTION + 100, power=0.0) == PRODUCTION + 100
    assert counter.last.kind is Kind.UNDONE
    assert counter.offset == 0
    assert counter.read(40_020, PRODUCTION + 101) == PRODUCTION + 101


@pytest.mark.parametrize(
    ("seconds", "jump", "kind"),
    [
        (86_400 + 1_000, 3_000, Kind.UNDONE),
        (86_400 + 1_001, 3_000, Kind.HELD),
        (10_000, 3_151, Kind.HELD),
        (10_000, 3_150, Kind.UNDONE),
        (10_000, 2_850, Kind.UNDONE),
        (10_000, 2_849, Kind.HELD),
    ],
)
def test_only_the_same_jump_within_a_day_takes_the_new_level_away(seconds: float, jump: float, kind: Kind) -> None:
    """The counter is read every 50 seconds, without any power: a jump of 3 kWh is not counted."""
    counter = Counter.known(PRODUCTION)
    raw = PRODUCTION - 3_000
    counter.all([(100, raw), (550, raw + 1), (1_000, raw + 2)])
    for moment in (*every(50, seconds - 15, 1_050), seconds - 10):
        counter.read(moment, raw + 2, power=0.0)

    before = counter.last.value or 0.0
    assert (counter.read(seconds, raw + 2 + jump, power=0.0) or 0.0) >= before

    assert counter.last.kind is kind


def test_a_step_up_that_was_removed_and_comes_down_again_is_undone() -> None:
    counter = Counter.known(1_000_000)
    counter.all([(10, 1_050_000), (460, 1_050_100), (910, 1_050_200)])
    assert counter.last.value == 1_000_200

    assert counter.read(4_000, 1_000_500) == 1_000_500
    assert (counter.last.kind, counter.offset) == (Kind.UNDONE, 0)


def test_a_larger_fall_may_count_up_to_where_a_small_one_would_be() -> None:
    counter = Counter.known(PRODUCTION)

    counter.all([(10, PRODUCTION - 5_050), (20, PRODUCTION - 4_950), (909, PRODUCTION - 100)])
    assert counter.offset == 0

    assert counter.read(910, PRODUCTION - 100) == PRODUCTION + 4_950
    assert counter.last.kind is Kind.REBASED


@pytest.mark.parametrize("size", [1_000.0, 10_000.0, 2_971_414.0])
def test_a_leg_that_stays_dead_is_rebased_and_its_return_undoes_that(size: float) -> None:
    counter = Counter.known(size)
    dead = [(seconds, size / 2 + seconds / 100) for seconds in every(10, 2_000, 10)]
    back = [(seconds, size + seconds / 100) for seconds in every(10, 4_000, 2_010)]

    values = [value or 0 for value in counter.all(dead + back)]

    assert values == sorted(values)
    assert values[-1] == pytest.approx(size + 40, abs=1)
    kinds = [outcome.kind for outcome in counter.outcomes]
    assert (kinds.count(Kind.REBASED), kinds.count(Kind.UNDONE)) == (1, 1)


# Rule 4: small fall


@pytest.mark.parametrize(
    ("last", "fall", "cause"),
    [
        (PRODUCTION, 3.0, Cause.SMALL),
        (PRODUCTION, 5_000.0, Cause.SMALL),
        (PRODUCTION, 5_000.1, Cause.FALL),
        (1_000_000.0, 1_000.0, Cause.SMALL),
        (1_000_000.0, 1_000.1, Cause.FALL),
    ],
)
def test_what_is_a_small_fall(last: float, fall: float, cause: Cause) -> None:
    counter = Counter.known(last)

    assert counter.read(10, last - fall) == last
    assert counter.state
    assert counter.state.held
    assert counter.state.held.cause is cause


def test_a_small_fall_that_becomes_a_larger_one_is_another_level() -> None:
    counter = Counter.known(PRODUCTION)

    counter.all([(10, PRODUCTION - 4_000), (20, PRODUCTION - 6_000), (470, PRODUCTION - 5_999)])
    counter.read(920, PRODUCTION - 5_998)

    assert counter.last.kind is Kind.REBASED
    assert [text.split()[0] for text in counter.texts] == ["went", "fell", "stays"]


def test_noise_of_an_idle_meter_is_nothing_to_speak_of() -> None:
    counter = Counter.known(0.9)

    assert counter.all([(10, 0.3), (20, 0.0), (30, 0.8), (40, 1.1)]) == [0.9, 0.9, 0.9, 1.1]
    assert {outcome.kind for outcome in counter.outcomes} == {Kind.PUBLISHED}
    assert counter.read(50, 0.1) == 1.1
    assert counter.last.kind is Kind.HELD


# Rules 5 and 7: larger fall, zero


def test_zeros_after_a_reboot_are_forgotten() -> None:
    """Old firmware gives zeros for two to three minutes."""
    counter = Counter.known(PRODUCTION)
    zeros = [(seconds, 0.0) for seconds in every(10, 180, 10)]

    assert set(counter.all(zeros)) == {PRODUCTION}
    assert counter.read(190, PRODUCTION + 100) == PRODUCTION + 100
    assert (counter.offset, len(counter.texts)) == (0, 2)


def test_zeros_prove_nothing_however_long_they_last() -> None:
    counter = Counter.known(PRODUCTION)

    assert set(counter.all((seconds, 0.0) for seconds in every(600, 3 * 86_400, 600))) == {PRODUCTION}
    assert counter.read(4 * 86_400, PRODUCTION + 40_000) == PRODUCTION + 40_000


def test_halves_by_a_dead_leg_are_forgotten() -> None:
    """The answers are those of 8.2.127_with_3cts_and_battery_split, with the second leg at zero for a poll."""
    whole, half = 2_971_414.344, 1_485_292.441
    counter = Counter.known(whole)

    assert counter.all([(10, half), (20, whole + 5), (30, half + 5), (40, whole + 10)]) == [
        whole,
        whole + 5,
        whole + 5,
        whole + 10,
    ]
    assert counter.offset == 0


def test_a_lower_counter_after_a_swap_is_rebased() -> None:
    counter = Counter.known(PRODUCTION)

    values = counter.all([(60, 3_183_793.885), (500, 3_183_893.885), (959, 3_183_993.885)])
    assert values == [PRODUCTION] * 3
    assert counter.read(960, 3_183_993.885) == PRODUCTION + 200
    assert counter.last.kind is Kind.REBASED
    assert f"offset +{PRODUCTION - 3_183_793.885:.3f}" in counter.last.text
    assert counter.read(970, 3_184_000.885) == PRODUCTION + 207


def test_a_lower_counter_after_a_week_is_rebased() -> None:
    """In a week, 75 kW make 12.6 MWh, but Home Assistant would count them as today's."""
    counter = Counter.known(PRODUCTION)

    week = 7 * 86_400
    assert counter.all([(week, 5e6), (week + 450, 5e6 + 100), (week + 900, 5e6 + 200)])[-1] == PRODUCTION + 200
    assert counter.last.kind is Kind.REBASED


def test_a_counter_that_begins_again_is_passed_on() -> None:
    counter = Counter.known(PRODUCTION)

    assert set(counter.all([(10, 0.0), (20, 0.0), (600, 20.0), (1_000, 250.0), (1_499, 400.0)])) == {PRODUCTION}
    assert counter.read(1_500, 400.0) == 400
    assert counter.last.kind is Kind.RESET
    assert counter.last.text
    assert counter.read(1_510, 410.0) == 410
    assert counter.offset == 0


def test_a_counter_that_began_again_while_the_gateway_was_away_is_passed_on() -> None:
    counter = Counter.known(PRODUCTION)
    counter.state = replace(counter.state or CounterState(), offset=1_000.0)

    day = 86_400
    assert counter.all([(day, 9_000.0), (day + 450, 9_100.0), (day + 900, 9_200.0)])[-1] == 9_200
    assert counter.offset == 0


@pytest.mark.parametrize(
    ("last", "first", "kind"),
    [
        (PRODUCTION, 1_200.0, Kind.RESET),
        (PRODUCTION, 1_210.0, Kind.REBASED),
        (3_900.0, 1_169.0, Kind.RESET),
        (3_900.0, 1_171.0, Kind.REBASED),
    ],
)
def test_only_what_was_possible_since_the_last_good_reading_is_passed_on(
    last: float, first: float, kind: Kind
) -> None:
    counter = Counter.known(last)

    counter.all([(10, first), (460, first + 1), (910, first + 2)])

    assert counter.last.kind is kind
    assert counter.last.value == (first + 2 if kind is Kind.RESET else last + 2)


@pytest.mark.parametrize(("days", "first", "kind"), [(2, 1_800_000, Kind.RESET), (2, 1_802_000, Kind.REBASED)])
def test_more_than_a_day_can_make_is_never_passed_on(days: int, first: float, kind: Kind) -> None:
    counter = Counter.known(PRODUCTION)
    seconds = days * 86_400

    counter.all([(seconds, first), (seconds + 450, first + 1), (seconds + 900, first + 2)])

    assert counter.last.kind is kind


def test_a_level_that_rose_too_fast_is_not_passed_on() -> None:
    counter = Counter.known(300_000, CounterLimits(cap=1_000))

    counter.all([(10, 0.5), *((seconds, seconds * 9) for seconds in every(100, 910, 110))])

    assert counter.last.kind is Kind.REBASED


def test_an_idle_counter_has_counted_nothing_while_it_was_read() -> None:
    """The counter is idle for a day: 1.8 MWh are possible since its last change, but not since its last reading."""
    counter = Counter.known(300_000)
    counter.all((seconds, 300_000) for seconds in every(600, 86_400, 600))

    counter.all([(86_410, 80_000), (86_860, 80_001), (87_310, 80_002)])

    assert counter.last.kind is Kind.REBASED


def test_a_fall_that_home_assistant_would_not_take_for_a_reset_is_not_passed_on() -> None:
    """It rises from 0.5 Wh to 358.5 Wh of 400 Wh while it proves itself."""
    counter = Counter.known(400)

    counter.all([(10, 0.5), (460, 200), (909, 358.5), (910, 358.5)])

    assert counter.last == Outcome(Kind.REBASED, 758, counter.last.text)


def test_where_the_clock_is_doubtful_a_fall_is_never_passed_on() -> None:
    counter = Counter.known(PRODUCTION)

    counter.all([(10, 1.0), (460, 2.0)])
    counter.read(910, 3.0, doubtful=True)

    assert counter.last.kind is Kind.REBASED


def test_a_quarter_hour_source_must_prove_a_fall_for_an_hour() -> None:
    counter = Counter.known(8_000_000, PCU)

    steps = [(seconds, 3_000_000 + seconds // 900 * 500) for seconds in every(60, 3_540, 60)]

    assert set(counter.all(steps)) == {8_000_000}
    assert counter.read(3_660, 3_002_000) == 8_002_000
    assert counter.last.kind is Kind.REBASED


def test_a_quarter_hour_source_may_have_counted_before_it_began_again() -> None:
    """The counter stood still for a quarter of an hour, in which 1.5 kWh are possible."""
    limits = replace(PCU, cap=6_000)
    counter = Counter.known(8_000_000, limits)
    counter.all((seconds, 8_000_000) for seconds in every(60, 900, 60))

    counter.all([(960, 2_200), (2_000, 2_300), (4_560, 2_400)])

    assert counter.last == Outcome(Kind.RESET, 2_400, counter.last.text)


def test_a_zero_in_between_does_not_begin_the_proof_anew() -> None:
    counter = Counter.known(PRODUCTION)

    counter.all([(10, 3e6), (400, 3e6 + 50), (500, 0.0), (600, 3e6 + 49), (910, 3e6 + 100)])

    assert counter.last.value == PRODUCTION + 100


def test_a_fall_from_zeros_to_a_half_is_another_level() -> None:
    """Otherwise the half would seem to have grown from nothing, and would be published."""
    counter = Counter.known(8_000)

    counter.all([(10, 0.0), (20, 4_000.0), (500, 4_001.0), (919, 4_002.0)])
    assert counter.last.kind is Kind.HELD
    counter.read(920, 4_002.0)

    assert counter.last == Outcome(Kind.REBASED, 8_002, counter.last.text)


def test_a_level_that_jumps_must_prove_itself_anew() -> None:
    counter = Counter.known(PRODUCTION)

    counter.all([(10, 3e6), (400, 3e6 + 50), (800, 5e6), (910, 5e6 + 50), (1_699, 5e6 + 60)])
    assert counter.last.kind is Kind.HELD

    assert counter.read(1_700, 5e6 + 70) == PRODUCTION + 70


def test_a_level_that_stood_still_may_not_jump() -> None:
    counter = Counter.known(PRODUCTION, CounterLimits(cap=25_000))

    counter.all([(10, 3e6), (3_000, 3e6 + 50), (3_010, 3e6 + 15_000), (3_500, 3e6 + 15_001)])

    assert counter.last.kind is Kind.HELD


def test_what_a_new_level_counted_meanwhile_is_counted_as_far_as_it_is_possible() -> None:
    counter = Counter.known(PRODUCTION, CounterLimits(cap=1_000))

    counter.all([(10, 3e6), *((seconds, 3e6 + 9 * (seconds - 10)) for seconds in every(100, 910, 110))])

    assert counter.last == Outcome(Kind.REBASED, round(PRODUCTION + 1_000 + 250, 3), counter.last.text)


# Rule 6: 2^32 J


def test_the_step_is_2_to_the_32_joules() -> None:
    assert round(WRAP_WH / 1_000, 6) == 1_193.046471


@pytest.mark.parametrize("count", [1, 2, 3])
def test_wrapped_inverters_are_added_again(count: int) -> None:
    """Two further advancing readings prove it."""
    counter = Counter.known(8_000_000, PCU)
    wrapped = 8_000_000 - count * WRAP_WH

    values = counter.all([(300, wrapped + 200), (360, wrapped + 200), (600, wrapped + 400), (900, wrapped + 600)])

    assert values == [8_000_000, 8_000_000, 8_000_000, 8_000_600]
    assert counter.last.kind is Kind.UNWRAPPED
    assert counter.offset == count * WRAP_WH
    assert len(counter.texts) == 2


def test_a_wrapped_inverter_at_dusk_is_added_after_15_minutes() -> None:
    """Nothing advances any more."""
    counter = Counter.known(8_000_000, PCU)
    wrapped = 8_000_100 - WRAP_WH

    assert set(counter.all((seconds, wrapped) for seconds in every(60, 959, 60))) == {8_000_000}
    assert counter.read(960, wrapped) == 8_000_100


def test_inverters_that_wrap_one_after_the_other() -> None:
    counter = Counter.known(8_000_000, PCU)

    values = counter.all(
        [
            (300, 8_000_100 - WRAP_WH),
            (600, 8_000_200 - 2 * WRAP_WH),
            (900, 8_000_300 - 2 * WRAP_WH),
            (1_200, 8_000_400 - 3 * WRAP_WH),
            (1_500, 8_000_500 - 3 * WRAP_WH),
        ]
    )
    assert values == [8_000_000] * 5

    assert counter.read(1_800, 8_000_600 - 3 * WRAP_WH) == 8_000_600
    assert counter.offset == 3 * WRAP_WH


def test_a_wrap_that_is_undone_is_taken_away() -> None:
    counter = Counter.known(8_000_000, PCU)
    counter.all([(300, 8_000_100 - WRAP_WH), (600, 8_000_200 - WRAP_WH), (900, 8_000_300 - WRAP_WH)])
    assert counter.last.value == 8_000_300

    assert counter.all([(1_200, 8_000_400), (1_500, 8_000_500), (1_800, 8_000_600), (2_100, 8_000_700)]) == [
        8_000_300,
        8_000_300,
        8_000_600,
        8_000_700,
    ]
    assert counter.offset == pytest.approx(0)
    assert [text.split(":")[0] for text in counter.texts] == [
        "fell from 8000000 to 6807054, which can't be",
        "an inverter's counter began again",
        "rose from 6807254 to 8000400, which can't be",
        "an earlier step of an inverter's counter is undone",
    ]
    counter.all([(2_400, 8_000_800 + WRAP_WH), (2_700, 8_000_900 + WRAP_WH), (3_000, 8_001_000 + WRAP_WH)])
    assert counter.last.kind is Kind.HELD, "nothing is left to be taken away"


def test_a_counter_that_began_again_has_no_steps_to_take_away() -> None:
    counter = Counter.known(8_000_000, PCU)
    counter.all([(300 * place, 8_000_000 + 100 * place - WRAP_WH) for place in (1, 2, 3)])
    assert counter.offset == WRAP_WH
    counter.all([(1_200, 100), (3_000, 200), (4_800, 300)])
    kind = counter.last.kind
    assert kind is Kind.RESET

    counter.all([(4_860, WRAP_WH + 400), (5_160, WRAP_WH + 500), (5_460, WRAP_WH + 600)])

    assert counter.last.kind is Kind.HELD
    assert counter.offset == 0


def test_a_wrap_seen_once_is_forgotten() -> None:
    counter = Counter.known(8_000_000, PCU)

    assert counter.all([(300, 8_000_100 - WRAP_WH), (600, 8_000_200)]) == [8_000_000, 8_000_200]
    assert counter.offset == 0


def test_a_wrap_together_with_a_small_rewind_publishes_no_fall() -> None:
    counter = Counter.known(8_000_000, PCU)

    values = counter.all([(300 * place, 7_999_940 + 10 * place - WRAP_WH) for place in range(1, 8)])

    assert values[:2] == [8_000_000] * 2
    assert counter.outcomes[2].kind is Kind.UNWRAPPED
    assert values[2:] == [8_000_000] * 4 + [8_000_010]
    assert counter.offset == WRAP_WH


@pytest.mark.parametrize(
    ("fall", "limits", "seconds"),
    [
        (WRAP_WH, replace(PCU, wrap=False), 300),
        (4 * WRAP_WH, PCU, 300),
        (WRAP_WH - 2_000, PCU, 300),
        (WRAP_WH + 8_000, PCU, 300),
        (1_000_000, PCU, 86_400),
    ],
)
def test_what_is_no_wrap(fall: float, limits: CounterLimits, seconds: float) -> None:
    """In the last case 193 kWh would have been made in a day, of which 7.5 kW make 120 kWh."""
    counter = Counter.known(8_000_000, limits)

    counter.all([(seconds, 8_000_000 - fall), (seconds + 300, 8_000_100 - fall), (seconds + 600, 8_000_200 - fall)])

    assert counter.last.kind is Kind.HELD
    assert counter.state
    assert counter.state.held
    assert counter.state.held.cause is Cause.FALL


@pytest.mark.parametrize("raw", [0.0, -3.0])
def test_a_zero_is_no_wrap(raw: float) -> None:
    """The counter of a single unit, at its end."""
    counter = Counter.known(WRAP_WH - 20, PCU)

    assert set(counter.all((seconds, raw) for seconds in every(300, 6_000, 300))) == {round(WRAP_WH - 20, 3)}
    assert counter.all([(6_300, 10), (6_600, 20), (6_900, 30)])[-1] == pytest.approx(WRAP_WH + 30, abs=0.001)


def after_days(days: float, change: float, best: float | None = None) -> Counter:
    """A sum of 10 MWh that was not read for days, and has changed by then."""
    counter = Counter.known(10_000_000, PCU)
    if best is not None:
        weeks = ((int(START // (7 * 86_400)), best),)
        counter.state = replace(counter.state or CounterState(), days=BestDays(int(START // 86_400), 1e7, weeks))
    for place in range(3):
        counter.read(days * 86_400 + 300 * place, 10_000_000 + change + 10 * place)
    return counter


@pytest.mark.parametrize(
    ("days", "made", "best", "kind"),
    [
        (5, 590_000, None, Kind.UNWRAPPED),
        (5, 610_000, None, Kind.HELD),
        (5, 290_000, 40_000, Kind.UNWRAPPED),
        (5, 310_000, 40_000, Kind.HELD),
        (0.25, 40_000, None, Kind.UNWRAPPED),
        (0.25, 50_000, None, Kind.HELD),
        (0.25, 14_000, 10_000, Kind.UNWRAPPED),
        (0.25, 17_000, 10_000, Kind.HELD),
    ],
)
def test_a_wrap_within_an_outage_of_days(days: float, made: float, best: float | None, kind: Kind) -> None:
    """7.5 kW for 16 hours a day, or half as much again as on the best day of the month, and 1 kWh."""
    counter = after_days(days, made - WRAP_WH, best)

    assert counter.last.kind is kind
    if kind is Kind.UNWRAPPED:
        assert counter.last.value == pytest.approx(10_000_000 + made + 20, abs=0.001)


def test_a_fall_that_two_numbers_of_steps_explain_counts_as_the_smaller_one_and_says_so() -> None:
    """In 20 days 2,401 kWh are possible: 1,100 kWh, or with one step more 2,293 kWh."""
    counter = after_days(20, 1_100_000 - WRAP_WH)

    assert counter.last.value == pytest.approx(11_100_020, abs=0.001)
    assert "or 2 steps of 2^32 J at once" in counter.texts[0]


def test_the_best_day_of_the_last_weeks_is_known() -> None:
    counter = Counter.known(10_000_000, PCU)
    raw = 10_000_000.0
    made = {0: 20_000, 3: 30_000, 10: 25_000, 40: 12_000, 41: 8_000}
    bests = []
    for day in range(47):
        for hour in range(24):
            raw += made.get(day, 5_000) / 24
            counter.read(day * 86_400 + hour * 3_600 + 3_599 - START % 86_400 + 86_400, raw)
        assert counter.state
        bests.append(counter.state.days.best)
    assert bests[0] is None
    assert bests[2] == pytest.approx(20_000, rel=0.05)
    assert bests[30] == pytest.approx(30_000, rel=0.05)
    assert bests[46] == pytest.approx(12_000, rel=0.05)


def test_a_sum_of_32_bits_that_restarts_goes_on() -> None:
    """In the last 100 kWh before it restarts, its readings look negative."""
    limits = replace(PCU, cap=400_000)
    counter = Counter.known(2**32 - 120_000, limits)
    raws = [-90_000, -30_000, 30_000, 90_000, 150_000, 210_000]

    values = counter.all((900 * place, raw) for place, raw in enumerate(raws, 1))

    assert values == [
        2**32 - 90_000,
        2**32 - 30_000,
        2**32 - 30_000,
        2**32 + 90_000,
        2**32 + 150_000,
        2**32 + 210_000,
    ]


def test_the_first_reading_that_is_not_0_is_published_when_the_next_one_confirms_it() -> None:
    counter = Counter()

    assert counter.all([(0, 0.0), (10, -3.0), (20, PRODUCTION), (30, PRODUCTION + 1), (40, PRODUCTION + 2)]) == [
        None,
        None,
        None,
        PRODUCTION + 1,
        PRODUCTION + 2,
    ]
    assert [outcome.kind for outcome in counter.outcomes[2:4]] == [Kind.WAITING, Kind.PUBLISHED]
    assert counter.texts == []


@pytest.mark.parametrize("glitch", [995e6, PRODUCTION / 2, PRODUCTION + 50_000, 1e12, 1e300, 0.0])
def test_a_first_reading_that_the_next_one_does_not_confirm_is_forgotten(glitch: float) -> None:
    counter = Counter()

    values = counter.all([(0, glitch), (10, PRODUCTION), (20, PRODUCTION + 1), (30, glitch), (40, PRODUCTION + 2)])

    assert values == [None, None, *[PRODUCTION + 1] * 2, PRODUCTION + 2]


def test_what_no_counter_can_reach_is_never_a_first_reading() -> None:
    assert set(Counter().all((seconds, 1e12) for seconds in every(60, 7_200))) == {None}


def test_a_first_reading_that_stands_still_is_confirmed() -> None:
    """A source that changes every quarter of an hour, or a meter that is idle."""
    assert Counter(limits=PCU).all([(0, 8_000_000), (60, 8_000_000)]) == [None, 8_000_000]
    assert Counter().all([(0, 0.9), (10, 0.3), (20, 0.6)]) == [None, 0.3, 0.6]


# Rule 8: first start


def test_at_the_very_first_start_0_is_accepted_after_15_minutes() -> None:
    counter = Counter()

    assert counter.all([(0, 0.0), (899, 0.0), (900, 0.0), (910, 0.5)]) == [None, None, 0, 0.5]


def test_after_an_accepted_0_a_large_number_is_rebased() -> None:
    counter = Counter()
    counter.all([(0, 0.0), (900, 0.0)])

    counter.all([(910, PRODUCTION), (1_400, PRODUCTION + 100), (1_810, PRODUCTION + 200)])

    assert counter.last == Outcome(Kind.REBASED, 200, counter.last.text)


def test_without_history_a_fall_is_held_all_the_same() -> None:
    counter = Counter()

    assert counter.all([(0, PRODUCTION), (10, PRODUCTION), (20, 0.0)]) == [None, PRODUCTION, PRODUCTION]
