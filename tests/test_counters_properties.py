"""Whatever a gateway answers: no fault makes a published counter fall, and Home Assistant counts true energy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import add

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import restored

from bridge.counters import Ledger
from bridge.counters.rules import WRAP_WH, Kind, apply, usual
from bridge.counters.state import REWIND_WH, CounterLimits, CounterState, Held
from bridge.model import Reading
from bridge.pipeline import CountersState
from bridge.records import ENERGY, POWER, measurement
from bridge.state import decode, encode

START = 1_795_000_000.0
MAX_WH = 1e10
SLACK, HOUR = 1_000.0, 3_600.0
ROW = measurement("energy_lifetime", ENERGY)


# Any readings at all


class HomeAssistant:
    """The statistics of a `total_increasing` sensor: a fall by over a tenth is a reset, a smaller one is
    subtracted.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._start: float | None = None
        self._state = 0.0

    def see(self, state: float) -> None:
        """Take a value as MQTT sends it: changes within the dead band of 1 Wh are not sent."""
        if self._start is None:
            self._start = self._state = state
        elif abs(state - self._state) >= 1:
            if state < 0.9 * self._state:
                self._before, self._start = self.energy, 0.0
            self._state = state

    @property
    def energy(self) -> float:
        """The Wh counted since the sensor was first seen."""
        return self._before + self._state - (self._start or 0.0)


def test_the_model_of_home_assistant() -> None:
    statistics = HomeAssistant()
    counted = []
    for state in (100.0, 110.0, 105.0, 110.0, 110.5, 0.0, 5.0, 5e6):
        statistics.see(state)
        counted.append(statistics.energy)

    assert counted == [0, 10, 5, 10, 10, 10, 15, 10 + 5e6]


raws = st.one_of(
    st.floats(-100, 1e8),
    st.sampled_from(
        [0.0, 8e6, 8e6 - WRAP_WH, 8e6 - 2 * WRAP_WH, 4e6, 8e6 + 5_000, 8e6 - 3, 500.0, 250.0, 1e15, 1e300]
    ),
)
steps = st.one_of(
    raws.map(lambda raw: lambda _last: raw),
    st.floats(-2_000, 3_000).map(lambda change: lambda last: last + change),
    st.sampled_from([WRAP_WH, -WRAP_WH, -2 * WRAP_WH, 3 * WRAP_WH, 50.0, -50.0]).map(
        lambda change: lambda last: last + change
    ),
)
pauses = st.one_of(st.floats(0, 120), st.sampled_from([10.0, 300.0, 450.0, 900.0, 1_800.0, 86_400.0]))


@settings(max_examples=600)
@given(
    start=st.sampled_from([0.0, 500.0, 8_000.0, 300_000.0, 8e6, 2.7e7]),
    readings=st.lists(st.tuples(pauses, steps), max_size=80),
    limits=st.sampled_from(
        [
            CounterLimits(25_000),
            CounterLimits(7_500, confirm=3_600, stall=900, wrap=True),
            CounterLimits(1_000, wrap=True),
            CounterLimits(0),
        ]
    ),
    share=st.sampled_from([None, 0.0, 0.2, 0.8]),
)
@example(start=0.0, readings=[(61.0, lambda _: 1_424.0)], limits=CounterLimits(25_000), share=0.2)
def test_any_readings(
    start: float,
    readings: list[tuple[float, Callable[[float], float]]],
    limits: CounterLimits,
    share: float | None,
) -> None:
    """Counters fall only if they may have begun again, and rise only by what is possible. JSON keeps all values.

    `share` is the power that is read with the counter, as a share of its highest power.
    """
    state = CounterState(start, changed_at=START, seen_at=START)
    power = None if share is None else share * limits.cap
    now, raw, mark, risen_at, good_at = START, start, start, START, START
    for pause, step in readings:
        now, raw = now + pause, step(raw)
        state, outcome = apply(state, raw, now, limits, power)
        assert outcome.value is not None
        assert outcome.value == state.published
        if outcome.value < mark:
            assert outcome.kind is Kind.RESET
            assert outcome.value < 0.9 * mark
            assert outcome.value <= limits.rise(min(now - good_at + limits.stall, 2 * 86_400))
        else:
            slacks = 2 if outcome.kind in (Kind.UNWRAPPED, Kind.REBASED) else 1
            assert outcome.value - mark <= limits.rise(now - risen_at) + (slacks - 1) * SLACK + 0.01
        assert (outcome.kind is Kind.HELD) is (state.held is not None)
        assert outcome.kind in (Kind.HELD, Kind.PUBLISHED) or outcome.text
        risen_at = now if outcome.value != mark or outcome.kind is Kind.REBASED else risen_at
        good_at = now if state.held is None else good_at
        mark = outcome.value
        assert state == round_trip(state)


@settings(max_examples=200)
@given(
    powers=st.lists(st.sampled_from([0.0, 300.0, 3_000.0]), min_size=1, max_size=12),
    rise=st.sampled_from([900.0, 2_000.0, 5_000.0, 20_000.0, 80_000.0]),
)
def test_a_rise_in_one_reading_is_what_its_power_tells(powers: list[float], rise: float) -> None:
    """The counter stands still for ten minutes at each of these powers, and is read every 20 seconds."""
    state, now, integral = CounterState(1e6, changed_at=START, seen_at=START), START, 0.0
    before = 0.0
    for power in powers:
        for _ in range(30):
            now += 20
            integral += (before + power) / 2 * 20 / HOUR
            before = power
            state, outcome = apply(state, 1e6, now, CounterLimits(25_000), power)
            assert outcome.value == 1e6
    state, outcome = apply(state, 1e6 + rise, now + 20, CounterLimits(25_000), before)
    integral += before * 20 / HOUR
    is_possible = rise <= SLACK + 1.25 * integral
    assert outcome.value == (1e6 + rise if is_possible else 1e6)


watts = st.none() | st.floats(-1e5, 1e5)
levels = st.floats(0, MAX_WH)
past = st.floats(0, START)


@settings(max_examples=500)
@given(
    state=st.builds(
        CounterState,
        raw=levels,
        offset=st.floats(-1e6, 1e6),
        changed_at=past,
        seen_at=past,
        peak=levels,
        power=levels,
        counted=levels,
        unread=levels,
        interval=st.floats(0, 1e5),
        undo_at=past,
    ),
    rise=st.floats(-1.5, 1.5 * SLACK) | st.just(0.0),
    power=watts,
    limits=st.builds(CounterLimits, st.floats(0, 1e6), stall=st.sampled_from([0.0, 300.0]), wrap=st.booleans()),
)
def test_a_usual_reading_is_what_the_rules_make_of_it(
    state: CounterState, rise: float, power: float | None, limits: CounterLimits
) -> None:
    raw = (state.raw or 0.0) + rise
    ruling = usual(state, raw, START + 1, power, days=limits.wrap)
    assert ruling in (None, apply(state, raw, START + 1, limits, power))


def test_what_is_usual() -> None:
    def is_usual(state: CounterState, raw: float) -> bool:
        return usual(state, raw, START, None, days=False) is not None

    known = CounterState(raw=5_000.0, changed_at=START, seen_at=START)
    rises = (-1, -0.9, 0, 0.5, SLACK, SLACK + 1)
    assert [rise for rise in rises if is_usual(known, 5_000 + rise)] == [-0.9, 0, 0.5, SLACK]
    assert not is_usual(CounterState(), 1)
    assert not is_usual(replace(known, undo=1.0), 5_000)
    assert not is_usual(replace(known, raw=1.0), 0.0), "a zero may be a gateway that starts"


def round_trip(state: CounterState) -> CounterState:
    return restored(CountersState(counters={"x": state})).counters["x"]


@settings(max_examples=300)
@given(readings=st.lists(st.tuples(pauses, raws), max_size=30))
def test_any_first_readings(readings: list[tuple[float, float]]) -> None:
    """The first value that is published was confirmed by the reading before, or is 0; then no counter falls."""
    state, now, mark, last = None, START, None, (START, -1.0)
    for pause, raw in readings:
        now += pause
        state, outcome = apply(state, raw, now, CounterLimits(25_000))
        if outcome.value is None:
            assert (mark, state.published) == (None, None)
        elif mark is None:
            value, risen = outcome.value, outcome.value - last[1]
            assert value == min(max(0.0, round(raw, 3)), MAX_WH)
            assert (value == 0 and now - START >= 900) or -1 < risen <= 25_000 * (
                now - last[0]
            ) / HOUR + SLACK + 0.001
        else:
            assert outcome.value >= mark or outcome.kind is Kind.RESET
            assert outcome.kind is not Kind.TAKEN
        mark, last = outcome.value, (now if raw != last[1] else last[0], max(0.0, raw))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda children: (
            st.lists(children, max_size=3)
            | st.dictionaries(st.sampled_from([*CounterState.__slots__, *Held.__slots__]), children, max_size=12)
        ),
    )
)
def test_any_state(damaged: object) -> None:
    """A state that another program wrote is read or dropped, and a state that is read can be used."""
    counters = {"energy/production/energy_lifetime": damaged}
    ledger = Ledger.load(CountersState.model_validate({"counters": counters}).counters)

    guarded = ledger.guard("production", [_reading(5e6)], lambda _: 1_000.0, now=START, steady=0.0)

    assert all(isinstance(reading.value, float) for reading in guarded.readings)
    assert restored(CountersState(counters=ledger.states)).counters == ledger.states


def _reading(value: float, device: str = "energy/production") -> Reading:
    return Reading(device, None, ROW, value)


# A true counter, a faulty gateway, and a bridge that crashes


@dataclass
class World:
    """A true counter, the values that the gateway makes of it, and the values that subscribers get."""

    true: float
    cap: float
    period: float
    source: str = "readings"
    device: str = "meter/production"
    now: float = START
    shift: float = 0.0
    """The permanent error of the gateway's counter."""
    power: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    statistics: HomeAssistant = field(default_factory=HomeAssistant)
    retained: tuple[float, float] | None = None
    seen_at: float = START
    """The time at which the true value was last read."""
    grown_at: float = START
    """The time at which the published value last grew."""
    kinds: list[str] = field(default_factory=list)
    resets: int = 0

    def __post_init__(self) -> None:
        self.first = self.true
        self.kept = encode(CountersState(counters=self.ledger.states))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.true += self.power * seconds / HOUR

    def poll(self, lie: Callable[[float], float] | None = None, count: int = 1) -> None:
        for _ in range(count):
            self.pass_time(self.period)
            raw = self.true + self.shift
            self.publish(round(lie(raw) if lie else raw, 3))
            self.seen_at = self.seen_at if lie else self.now

    def publish(self, raw: float) -> None:
        power = Reading(self.device, None, measurement("power", POWER), self.power if raw else 0.0)
        readings = [power, _reading(raw, self.device)]
        answer = self.ledger.guard(self.source, readings, lambda _: self.cap, now=self.now, steady=self.now)
        guarded = replace(answer, readings=[item for item in answer.readings if item.name != "power"])
        self.kinds += [event.text for event in guarded.events if event.warning]
        for item in guarded.readings:
            assert isinstance(item.value, float)
            if self.retained:
                self.check(item.value, self.published)
            if not self.retained or item.value != self.published:
                self.grown_at = self.now
            self.retained = (item.value, self.now)
            self.statistics.see(item.value)

    def check(self, value: float, before: float) -> None:
        if value < before:
            self.resets += 1
            assert value < 0.9 * before
            assert value <= self.cap * (self.now - self.seen_at + 900) / HOUR + SLACK

    def save(self) -> None:
        self.kept = encode(CountersState(counters=self.ledger.states))

    def restart(self, *, keeps_state: bool) -> None:
        """A new process, with the file as it was last written, or with the retained topics only."""
        self.ledger = Ledger.load(decode(CountersState, self.kept)[0].counters) if keeps_state else Ledger()
        if self.retained:
            self.ledger.seed(f"{self.device}/{ROW.name}", *self.retained)

    @property
    def held(self) -> int:
        return self.ledger.held

    @property
    def published(self) -> float:
        assert self.retained
        return self.retained[0]


def zeros(world: World, count: int) -> None:
    world.poll(lambda _: 0.0, count)


def halves(world: World, count: int) -> None:
    world.poll(lambda raw: raw / 2, count)


def _impossible(world: World) -> float:
    """Energy (Wh) that can't be counted between the last rise and a quarter of an hour from now."""
    return world.cap * (world.now - world.grown_at + 900) / HOUR + 2 * SLACK


def spikes(world: World, count: int) -> None:
    height = _impossible(world)
    world.poll(lambda raw: raw * 1.5 + height, count)


def frozen_spike(world: World, count: int) -> None:
    high = world.true + _impossible(world)
    world.poll(lambda _: high, count)


def flicker(world: World, count: int) -> None:
    """All faults at once, another one at each poll."""
    for number in range(count):
        height = _impossible(world)
        lies: list[Callable[[float], float]]
        lies = [lambda _: 0.0, lambda raw: raw / 2, partial(add, height), lambda _: -3.0]
        world.poll(lies[number % 4])


def stall(world: World, count: int) -> None:
    """The value stands still at its true level."""
    raw = round(world.true + world.shift, 3)
    for _ in range(min(count, round(HOUR / 2 / world.period))):
        world.pass_time(world.period)
        world.publish(raw)
    world.seen_at = world.now


def rewind(world: World, count: int) -> None:
    """A reboot loses a few Wh for good."""
    world.shift -= min(20, count)
    world.poll(count=2)


def pause(world: World, count: int) -> None:
    """The gateway is offline for up to ten hours."""
    world.pass_time(count * 450.0)


def save(world: World, _count: int) -> None:
    world.save()


def restart(world: World, _count: int) -> None:
    world.save()
    world.restart(keeps_state=True)


def crash(world: World, _count: int) -> None:
    """The file is as old as the last save."""
    world.restart(keeps_state=True)


def amnesia(world: World, _count: int) -> None:
    """The file is lost."""
    world.restart(keeps_state=False)


def wrap(world: World, count: int) -> None:
    """The counters of one to three inverters begin again."""
    if world.shift > -2.5 * WRAP_WH:
        world.shift -= WRAP_WH * (1 + count % 2 if world.shift > -WRAP_WH else 1)
    world.poll(count=2)


TRANSIENT = [zeros, halves, spikes, frozen_spike, flicker, stall, rewind, pause, save, restart, crash, amnesia]
Episode = tuple[Callable[[World, int], None], int, int, float]


def episodes(kinds: Sequence[Callable[[World, int], None]]) -> st.SearchStrategy[list[Episode]]:
    """The fault, the number of its polls and of the good polls after it, and the power as a share of the cap."""
    share = st.just(0.0) | st.floats(0.01, 0.8)  # a higher power would raise the cap
    one = st.tuples(st.sampled_from(kinds), st.integers(1, 80), st.integers(1, 10), share)
    return st.lists(one, max_size=25)


def live(world: World, script: list[Episode]) -> World:
    world.power = 0.3 * world.cap
    world.poll(count=2)
    world.first = world.true
    world.poll(count=round(660 / world.period))
    for happens, count, good, share in script:
        world.power = share * world.cap
        happens(world, count)
        world.poll(count=good)
    world.power = 0.3 * world.cap
    world.period = 60.0
    world.poll(count=180)
    return world


@settings(max_examples=150)
@given(script=episodes(TRANSIENT), start=st.sampled_from([2e5, 1e6, 8e6, 2.7e7]))
@example(script=[(rewind, 1, 1, 0.0), (zeros, 29, 1, 0.5)], start=2e5)
@example(script=[(rewind, 1, 1, 0.0), (save, 1, 1, 0.0), (zeros, 1, 1, 0.5), (crash, 1, 1, 0.5)], start=2e5)
def test_glitches_leave_nothing_behind(script: list[Episode], start: float) -> None:
    world = live(World(start, cap=25_000, period=10), script)

    assert (world.held, world.resets) == (0, 0)
    lost = -world.shift
    assert world.true - lost - 0.001 <= world.published <= world.true + 0.001
    assert world.statistics.energy == pytest.approx(world.published - world.first, abs=2)
    assert lost >= REWIND_WH or not any("offset" in text for text in world.kinds)


@settings(max_examples=150)
@given(
    script=episodes([wrap, zeros, stall, pause, save, restart, crash, amnesia]), start=st.sampled_from([4e6, 8e6])
)
@example(script=[(wrap, 1, 1, 0.5), (wrap, 1, 1, 0.0), (amnesia, 1, 1, 0.5)], start=8e6)
def test_wrapped_inverters_leave_nothing_behind(script: list[Episode], start: float) -> None:
    world = World(start, cap=7_500, period=60, source="energy", device="energy/production-pcu")

    live(world, script)

    assert (world.held, world.resets) == (0, 0)
    assert world.published == pytest.approx(world.true, abs=0.01)
    assert world.statistics.energy == pytest.approx(world.true - world.first, abs=1_000)


class Unit(World):
    """One inverter, whose own counter begins again at 2^32 J. It is polled every five minutes."""

    def poll(self, lie: Callable[[float], float] | None = None, count: int = 1) -> None:
        super().poll(lambda raw: (lie(raw) if lie else raw) % WRAP_WH, count)
        self.seen_at = self.seen_at if lie else self.now


def an_hour_of_zeros(world: World, count: int) -> None:
    zeros(world, min(count, round(HOUR / world.period)))


@settings(max_examples=150)
@given(
    script=episodes([an_hour_of_zeros, pause, save, restart]),
    left=st.floats(100, 340),
    power=st.sampled_from([300, 480]),
)
@example(script=[(pause, 80, 10, 0.8)], left=100.0, power=480)
@example(script=[(pause, 47, 1, 0.0), (pause, 51, 3, 0.0), (pause, 35, 1, 0.5)], left=100.0, power=480)
def test_an_inverter_that_wraps_counts_on(script: list[Episode], left: float, power: float) -> None:
    """The counter begins again at some time, in the days after two good ones."""
    made = 0.5 * power * 48
    start = WRAP_WH - left - made
    unit = Unit(start, cap=1.25 * power, period=300, source="device_data", device="inverter/482301001005")
    unit.power = 0.5 * power
    unit.poll(count=48 * 12)
    counted, began = unit.statistics.energy, unit.true

    live(unit, script)

    assert (unit.held, unit.resets) == (0, 0)
    assert unit.published == pytest.approx(unit.true, abs=0.01)
    assert unit.statistics.energy - counted == pytest.approx(unit.true - began, abs=2)
    assert unit.true > WRAP_WH > began


def swap(world: World, count: int) -> None:
    """The level changes for good by up to 16 MWh, with enough time to confirm it."""
    world.shift = count * 200_000 - world.true
    world.poll(count=round(2 * HOUR / world.period))


def short_halves(world: World, count: int) -> None:
    halves(world, min(count, 25))


def begin_again(world: World, _count: int) -> None:
    world.shift = -world.true
    world.poll(count=round(2 * HOUR / world.period))


@settings(max_examples=60)
@given(
    script=episodes([swap, begin_again, zeros, restart, short_halves]).map(lambda s: s[:8]),
    start=st.sampled_from([2e5, 8e6]),
)
def test_other_levels_cost_little_and_end_in_a_constant_offset(script: list[Episode], start: float) -> None:
    script = [(happens, count, good, max(0.1, share)) for happens, count, good, share in script]
    world = live(World(start, cap=25_000, period=30), script)

    assert world.held == 0
    off = world.published - world.true
    world.poll(count=100)
    assert world.published - world.true == pytest.approx(off, abs=0.002)
    steps = sum(happens in (swap, begin_again) for happens, *_ in script)
    assert world.statistics.energy == pytest.approx(world.true - world.first, abs=2 + steps * 7_000)
