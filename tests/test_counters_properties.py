"""Whatever a gateway says: published counters never fall by a fault, and Home Assistant counts what is true."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.counters import WRAP, Account, Held, Kind, Ledger, Limits, advance
from bridge.model import Reading
from bridge.records import ENERGY, measurement

START = 1_795_000_000.0
MOST = 1e12
SLACK, HOUR = 1_000.0, 3_600.0
ROW = measurement("energy_lifetime", ENERGY)


# Any readings at all


class HomeAssistant:
    """Its statistics of a `total_increasing` sensor: a fall by over a tenth is a reset, others are believed."""

    def __init__(self) -> None:
        self._before = 0.0
        self._start: float | None = None
        self._state = 0.0

    def see(self, state: float) -> None:
        """What MQTT sends: nothing within the dead band of 1 Wh."""
        if self._start is None:
            self._start = self._state = state
        elif abs(state - self._state) >= 1:
            if state < 0.9 * self._state:
                self._before, self._start = self.energy, 0.0
            self._state = state

    @property
    def energy(self) -> float:
        """Wh counted since the sensor was first seen."""
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
    st.sampled_from([0.0, 8e6, 8e6 - WRAP, 8e6 - 2 * WRAP, 4e6, 8e6 + 5_000, 8e6 - 3, 500.0, 250.0, 1e15, 1e300]),
)
steps = st.one_of(
    raws.map(lambda raw: lambda _last: raw),
    st.floats(-2_000, 3_000).map(lambda change: lambda last: last + change),
    st.sampled_from([WRAP, -WRAP, -2 * WRAP, 3 * WRAP, 50.0, -50.0]).map(lambda change: lambda last: last + change),
)
pauses = st.one_of(st.floats(0, 120), st.sampled_from([10.0, 300.0, 450.0, 900.0, 1_800.0, 86_400.0]))


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(
    start=st.sampled_from([0.0, 500.0, 8_000.0, 300_000.0, 8e6, 2.7e7]),
    readings=st.lists(st.tuples(pauses, steps), max_size=80),
    limits=st.sampled_from(
        [Limits(25_000), Limits(7_500, confirm=3_600, stall=900, wrap=True), Limits(1_000, wrap=True), Limits(0)]
    ),
)
def test_any_readings(start: float, readings: list[tuple[float, Callable[[float], float]]], limits: Limits) -> None:
    """No fall but where the counter may have begun again, no rise that is not possible, no loss in JSON."""
    account = Account(start, changed_at=START, seen_at=START)
    now, raw, mark, risen_at, good_at = START, start, start, START, START
    for pause, step in readings:
        now, raw = now + pause, step(raw)
        account, verdict = advance(account, raw, now, limits)
        assert verdict.value == account.mark is not None
        if verdict.value < mark:
            assert verdict.kind is Kind.RESET
            assert verdict.value < 0.9 * mark
            assert verdict.value <= limits.rise(min(now - good_at + limits.stall, 2 * 86_400))
        else:
            slacks = 2 if verdict.kind is Kind.UNWRAPPED else 1
            assert verdict.value - mark <= limits.rise(now - risen_at) + (slacks - 1) * SLACK + 0.01
        assert (verdict.kind is Kind.HELD) is (account.held is not None)
        assert verdict.kind in (Kind.HELD, Kind.PUBLISHED) or verdict.text
        risen_at = now if verdict.value != mark or verdict.kind is Kind.REBASED else risen_at
        good_at = now if account.held is None else good_at
        mark = verdict.value
        assert account == round_trip(account)


def round_trip(account: Account) -> Account:
    return Ledger.load(json.loads(json.dumps(Ledger({"x": account}).dump())))._accounts["x"]


@settings(max_examples=300)
@given(readings=st.lists(st.tuples(pauses, raws), max_size=30))
def test_any_first_readings(readings: list[tuple[float, float]]) -> None:
    """Nothing is known, and the first ten minutes take every rise: yet nothing falls."""
    account, now, mark, begun_at = None, START, None, None
    for pause, raw in readings:
        now += pause
        account, verdict = advance(account, raw, now, Limits(25_000))
        if verdict.value is None:
            assert (mark, account.mark) == (None, None)
            assert raw <= 0
        elif mark is None:
            assert verdict.value == min(max(0.0, round(raw, 3)), MOST)
            assert raw > 0 or now - START >= 900
            begun_at = now
        else:
            assert verdict.value >= mark or verdict.kind is Kind.RESET
            assert verdict.kind is not Kind.TAKEN or now - (begun_at or 0.0) <= 600
        mark = verdict.value


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda children: (
            st.lists(children, max_size=3)
            | st.dictionaries(st.sampled_from([*Account.__slots__, *Held.__slots__]), children, max_size=12)
        ),
    )
)
def test_any_state(damaged: object) -> None:
    """A state that somebody else wrote: it is understood or dropped, and what is understood can be worked with."""
    ledger = Ledger.load({"energy/production/energy_lifetime": damaged})

    guarded = ledger.guard("production", [_reading(5e6)], lambda _: 1_000.0, now=START, steady=0.0)

    assert all(isinstance(reading.value, float) for reading in guarded.readings)
    json.dumps(ledger.dump(), allow_nan=False)


def _reading(value: float, device: str = "energy/production") -> Reading:
    return Reading(device, None, ROW, value)


# A home that is true, a gateway that lies, a bridge that dies


@dataclass
class World:
    """A counter that is true, what the gateway makes of it, and what subscribers get."""

    true: float
    cap: float
    period: float
    source: str = "readings"
    device: str = "meter/production"
    now: float = START
    shift: float = 0.0
    """What the gateway's counter says more than it should, for good."""
    power: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    statistics: HomeAssistant = field(default_factory=HomeAssistant)
    retained: tuple[float, float] | None = None
    seen_at: float = START
    """When the truth was last read."""
    grown_at: float = START
    """When what is published last grew."""
    kinds: list[str] = field(default_factory=list)
    resets: int = 0

    def __post_init__(self) -> None:
        self.first = self.true
        self.kept = json.dumps(self.ledger.dump())

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
        reading = _reading(raw, self.device)
        guarded = self.ledger.guard(self.source, [reading], lambda _: self.cap, now=self.now, steady=self.now)
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
        self.kept = json.dumps(self.ledger.dump())

    def restart(self, *, keeps_state: bool) -> None:
        """A new process: with the file as it was last written, or with the retained topics alone."""
        self.ledger = Ledger.load(json.loads(self.kept)) if keeps_state else Ledger()
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
    """Wh that can't have been counted since the counter last rose, nor in the next quarter of an hour."""
    return world.cap * (world.now - world.grown_at + 900) / HOUR + 2 * SLACK


def spikes(world: World, count: int) -> None:
    height = _impossible(world)
    world.poll(lambda raw: raw * 1.5 + height, count)


def frozen_spike(world: World, count: int) -> None:
    high = world.true + _impossible(world)
    world.poll(lambda _: high, count)


def flicker(world: World, count: int) -> None:
    """Everything at once, poll by poll."""
    for number in range(count):
        height = _impossible(world)
        world.poll(
            [lambda _: 0.0, lambda raw: raw / 2, lambda raw, up=height: raw + up, lambda _: -3.0][number % 4]
        )


def stall(world: World, count: int) -> None:
    """The value stands still, and is as true as it was."""
    raw = round(world.true + world.shift, 3)
    for _ in range(count):
        world.pass_time(world.period)
        world.publish(raw)
    world.seen_at = world.now


def rewind(world: World, count: int) -> None:
    """A reboot loses a few Wh for good."""
    world.shift -= min(20, count)
    world.poll(count=2)


def pause(world: World, count: int) -> None:
    """The gateway is away, for up to ten hours."""
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
    if world.shift > -2.5 * WRAP:
        world.shift -= WRAP * (1 + count % 2 if world.shift > -WRAP else 1)
    world.poll(count=2)


TRANSIENT = [zeros, halves, spikes, frozen_spike, flicker, stall, rewind, pause, save, restart, crash, amnesia]
Episode = tuple[Callable[[World, int], None], int, int, float]


def episodes(kinds: list[Callable[[World, int], None]]) -> st.SearchStrategy[list[Episode]]:
    """What happens, for how many polls, how many good polls follow, and the power as a share of the cap."""
    share = st.just(0.0) | st.floats(0.01, 0.9)
    one = st.tuples(st.sampled_from(kinds), st.integers(1, 80), st.integers(1, 10), share)
    return st.lists(one, max_size=25)


def live(world: World, script: list[Episode]) -> World:
    world.power = 0.3 * world.cap
    world.poll(count=1)
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=episodes(TRANSIENT), start=st.sampled_from([2e5, 1e6, 8e6, 2.7e7]))
def test_glitches_leave_nothing_behind(script: list[Episode], start: float) -> None:
    world = live(World(start, cap=25_000, period=10), script)

    assert (world.held, world.resets) == (0, 0)
    assert world.published == pytest.approx(world.true + world.shift, abs=0.001)
    lost = min(20 * len(script), -world.shift)
    assert world.statistics.energy == pytest.approx(world.true - world.first - lost, abs=100)
    assert not any("offset" in text for text in world.kinds)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
    """One inverter, whose own counter begins again at 2^32 J; it is asked every five minutes."""

    def poll(self, lie: Callable[[float], float] | None = None, count: int = 1) -> None:
        super().poll(lambda raw: (lie(raw) if lie else raw) % WRAP, count)
        self.seen_at = self.seen_at if lie else self.now


def an_hour_of_zeros(world: World, count: int) -> None:
    zeros(world, min(count, round(HOUR / world.period)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    script=episodes([an_hour_of_zeros, pause, save, restart]),
    left=st.floats(100, 340),
    power=st.sampled_from([300, 480]),
)
@example(script=[(pause, 80, 10, 0.9)], left=100.0, power=480)
def test_an_inverter_that_wraps_counts_on(script: list[Episode], left: float, power: float) -> None:
    """The counter begins again some time on the way."""
    unit = Unit(WRAP - left, cap=1.25 * power, period=300, source="device_data", device="inverter/482301001005")

    live(unit, script)

    assert (unit.held, unit.resets) == (0, 0)
    assert unit.published == pytest.approx(unit.true, abs=0.01)
    assert unit.statistics.energy == pytest.approx(unit.true - unit.first, abs=2)
    assert unit.true > WRAP > unit.first


def swap(world: World, count: int) -> None:
    """Another level for good, up to 16 MWh, and time enough to prove it."""
    world.shift = count * 200_000 - world.true
    world.poll(count=round(2 * HOUR / world.period))


def short_halves(world: World, count: int) -> None:
    halves(world, min(count, 25))


def begin_again(world: World, _count: int) -> None:
    world.shift = -world.true
    world.poll(count=round(2 * HOUR / world.period))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
