"""Lifetime counters that never show a fault of the firmware (docs/numbers.md). Pure: the caller passes the time.

Home Assistant takes any fall of a `total_increasing` sensor by more than a tenth for a reset, and then counts the
whole new value as energy of that hour; it believes every rise. So an impossible reading is held: the last good
value stays published until the reading is back, or until it has lasted so long that an offset removes its step.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bridge.counters.rules import Kind, Outcome, apply, usual
from bridge.counters.state import CONFIRM_S, CounterLimits, CounterState, small_fall
from bridge.endpoints import ENDPOINTS
from bridge.endpoints.production import ENERGY_PCU, ENERGY_PRODUCTION
from bridge.model import DAY_S, MAX_COUNTER_WH, Axis, Event, Phase, Reading

POWER_OF_UNIT = {"Wh": "power", "VAh": "apparent_power", "varh": "reactive_power"}
"""The units of lifetime counters, and for each the power that it counts."""
POWERS = frozenset(POWER_OF_UNIT.values())
UPDATES_EVERY_S: Mapping[str, float] = {e.source: e.updates_every for e in ENDPOINTS if e.updates_every}
"""Sources whose values stand still for so many seconds."""
CONFIRM_SLOW_S = 3_600.0
"""Seconds that a fall must last in such a source."""
INVERTER_SUMS = frozenset({ENERGY_PRODUCTION, ENERGY_PCU})
"""Devices whose counter is the sum of the inverters' counters."""
INVERTER = "inverter/"
SOLAR_DEVICES = ("meter/production", ENERGY_PRODUCTION, "site/solar", INVERTER)
"""Beginnings of the devices that count solar energy."""
PHASE_NAMES = frozenset(phase.value for phase in Phase)
SOLAR_HEADROOM, HEADROOM = 1.25, 2.0
"""Factors by which the power can exceed the highest power that was read."""
PHASE_W, INVERTER_W = 25_000.0, 1_000.0
"""Highest powers of a phase and of an inverter of which nothing else is known."""
MAX_W = 1_000_000.0
"""A power above this is a fault of the gateway."""
CLOCK_SET_S = 60.0
"""Seconds by which the wall clock may run ahead of the steady clock before it counts as set."""
FROM_BROKER = (
    "; the broker had the higher value: if another program has written it there, the counter stays too high"
)
QUIET_S = 3_600.0
"""Seconds for which the log stays silent on a counter that is held again and again."""

Cap = Callable[[Reading], float]
"""The highest power in W that a counter can count."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """What `Ledger.guard` makes of an answer.

    These are readings that may be published, lines for the log, and the number of the gateway's counters that are
    held. `held_values` has the counters of whole devices that are held in this answer, by device and name, with the
    values that the gateway gives. `is_unconfirmed` is set if the next answer can confirm first readings, which are
    not published before.
    """

    readings: Sequence[Reading]
    events: Sequence[Event]
    held: int
    held_values: Mapping[tuple[str, str], float]
    is_unconfirmed: bool = False


def is_counter(reading: Reading) -> bool:
    """Whether a reading is a lifetime counter. Counts of today are none, since they restart each night."""
    quantity = reading.measurement.quantity
    rises = quantity.state_class == "total_increasing" and quantity.unit in POWER_OF_UNIT
    return rises and not reading.name.endswith("_today")


def usual_cap(reading: Reading, *, phases: int, solar: float = 0.0) -> float:
    """The highest power in W that a counter can count, by what it belongs to.

    `solar` is the highest power of the inverter, or the sum of all inverters; 0 if unknown.
    """
    if solar > 0 and reading.device.startswith(SOLAR_DEVICES):
        return SOLAR_HEADROOM * solar
    if reading.device.startswith(INVERTER):
        return INVERTER_W
    return PHASE_W * (1 if reading.phase else max(1, phases))


@dataclass(slots=True)
class _Clock:
    """Unix time that never goes back, and follows the wall clock when that is set forward.

    For counters that were last seen at `doubted` or before, the time since then is unknown.
    """

    time: float = 0.0
    steady: float | None = None
    doubted: float = -math.inf

    def read(self, wall: float, steady: float) -> bool:
        """Read both clocks; return whether the wall clock was set since the last call."""
        passed = 0.0 if self.steady is None else max(0.0, steady - self.steady)
        is_first, self.steady = self.steady is None, steady
        before, expected = self.time, self.time + passed
        is_back = is_first and wall < before
        is_set = is_back or (not is_first and wall > expected + CLOCK_SET_S)
        self.time = wall if is_first else max(wall, expected)
        if is_back or (is_set and wall > expected + DAY_S):
            self.doubted = min(wall - 1, before)
        return is_set


@dataclass(slots=True)
class _EventFilter:
    """Selects the outcomes that are worth a line in the log.

    These are changes of state, but not every one of a fault that comes and goes. `told` is when the log last said
    that a counter is held. `open` are the counters that are still held by the newest line of the log.
    """

    told: dict[str, float] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)

    def events(self, outcomes: Mapping[str, Outcome], now: float) -> Sequence[Event]:
        """Events for the log.

        All counters that become held share one line, since a restart of the gateway affects all. So do all that
        are back.
        """
        told = [(key, item) for key, item in outcomes.items() if item.text and self._is_news(key, item, now)]
        events: list[Event] = []
        for kind in Kind:
            texts = {key: f"{key} {item.text}" for key, item in told if item.kind is kind}
            if kind in (Kind.HELD, Kind.BACK) and len(texts) > 1:
                first = next(iter(texts))
                texts = {first: f"{texts[first]} (and {len(texts) - 1} more counters)"}
            is_warning = kind not in (Kind.BACK, Kind.TAKEN)
            events.extend(Event(f"counter_{kind}", text, is_warning, key) for key, text in texts.items())
        return events

    def _is_news(self, key: str, outcome: Outcome, now: float) -> bool:
        if outcome.kind is not Kind.HELD:
            is_open = key in self.open
            self.open.discard(key)
            return is_open or outcome.kind is not Kind.BACK
        if now - self.told.get(key, -math.inf) < QUIET_S:
            return False
        self.told[key] = now
        self.open.add(key)
        return True


@dataclass(slots=True)
class Ledger:
    """Guards the lifetime counters of one gateway. Their keys are `device[/phase]/name`."""

    _counters: dict[str, CounterState] = field(default_factory=dict)
    _seeds: dict[str, tuple[float, float]] = field(default_factory=dict)
    _clock: _Clock = field(default_factory=_Clock)
    _filter: _EventFilter = field(default_factory=_EventFilter)

    @classmethod
    def load(cls, states: Mapping[str, CounterState]) -> "Ledger":
        """The counters of an earlier run, from what `states` gave then."""
        newest = max((state.last_seen_at for state in states.values()), default=0.0)
        is_open = {key for key, state in states.items() if state.is_held}
        return cls(dict(states), _clock=_Clock(newest), _filter=_EventFilter(open=is_open))

    @property
    def states(self) -> Mapping[str, CounterState]:
        """What must outlive the process, by "device[/phase]/name"."""
        return dict(self._counters)

    @property
    def devices(self) -> set[str]:
        """The devices that have counters."""
        return {_device(key) for key in self._counters}

    def forget(self, there: Container[str], most: int) -> None:
        """Drop counters of devices that are not `there`, except for the `most` that were seen last."""
        seen: dict[str, float] = {}
        for key, state in self._counters.items():
            if (device := _device(key)) not in there:
                seen[device] = max(state.last_seen_at, seen.get(device, 0.0))
        gone = set(sorted(seen, key=seen.__getitem__, reverse=True)[most:])
        self._counters = {key: state for key, state in self._counters.items() if _device(key) not in gone}

    @property
    def held(self) -> int:
        return sum(state.is_held for state in self._counters.values())

    def seed(self, key: str, value: float, when: float = 0.0) -> None:
        """Adopt the retained value of an earlier run; call this before the first `guard`.

        Nothing below this value will be published. Without a stored state it is all that is known of a counter.

        Args:
            key: `device[/phase]/name`.
            value: in Wh, or in the unit of the counter.
            when: the unix time when it was published. 0: unknown; it may then have risen by 1 kWh since.
        """
        if 0 <= value <= MAX_COUNTER_WH:
            self._seeds[key] = (value, when)

    def guard(self, source: str, readings: Sequence[Reading], cap: Cap, *, now: float, steady: float) -> Guarded:
        """Judge the counters of an answer; leave out those that have no value yet.

        `now` is the wall clock, `steady` a clock that nobody sets; both in seconds.
        """
        if self._clock.read(now, steady):
            self._counters = {key: state.after_clock_change(now) for key, state in self._counters.items()}
        powers = _powers(readings)
        passed: list[Reading] = []
        outcomes: dict[str, Outcome] = {}
        held: dict[tuple[str, str], float] = {}
        is_unconfirmed = False
        for reading in readings:
            quantity = reading.measurement.quantity
            raw = _number(reading) if quantity.state_class and is_counter(reading) else None
            if raw is None:
                passed.append(reading)
                continue
            power = powers.get((reading.device, reading.phase, POWER_OF_UNIT[quantity.unit or ""]))
            key = _key(reading)
            outcome = self._usual(key, reading, raw, power) or self._judge(source, reading, raw, power, cap)
            outcomes[key] = outcome
            passed.extend(_with_value(reading, outcome.value, raw))
            if reading.phase is None and outcome.kind in (Kind.HELD, Kind.WAITING):
                held[reading.device, reading.name] = raw
            is_unconfirmed |= outcome.value is None and raw > 0
        return Guarded(passed, self._filter.events(outcomes, self._clock.time), self.held, held, is_unconfirmed)

    def _usual(self, key: str, reading: Reading, raw: float, power: float | None) -> Outcome | None:
        """The outcome of a reading that no rule objects to, as nearly all are; else `None`."""
        state = self._counters.get(key)
        if state is None or state.signed or key in self._seeds:
            return None
        ruling = usual(state, raw, self._clock.time, power, days=_is_of_inverters(reading))
        if ruling is None:
            return None
        self._counters[key], outcome = ruling
        return outcome

    def _judge(self, source: str, reading: Reading, raw: float, power: float | None, cap: Cap) -> Outcome:
        key, now = _key(reading), self._clock.time
        before = state = self._counters.get(key) or CounterState()
        if seed := self._seeds.pop(key, None):
            state = state.at_least(*seed, now, UPDATES_EVERY_S.get(source, 0.0))
        if state.signed or (reading.quantity.unit == "varh" and raw < 0):
            self._counters[key] = replace(state, signed=True, held=None)
            return Outcome(Kind.PUBLISHED, raw)
        is_doubtful = state.seen_at <= self._clock.doubted
        limits = _limits(source, reading, max(cap(reading), _headroom(reading) * state.peak), is_doubtful)
        self._counters[key], outcome = apply(state, raw, now, limits, power)
        is_raised = seed and before.raw is not None and state is not before
        if seed and is_raised and outcome.kind is Kind.HELD and seed[0] - raw > small_fall(seed[0]):
            return replace(outcome, text=f"{outcome.text}; {FROM_BROKER}")
        return outcome


def _powers(readings: Sequence[Reading]) -> Mapping[tuple[str, Axis | None, str], float]:
    """The powers (W) of an answer, by device, phase and name, without their sign.

    A meter counts each phase: where one imports what another exports, its power is 0, but its counters run. So the
    power of a whole meter is at least the sum of its phases.
    """
    found: dict[tuple[str, Axis | None, str], float] = {}
    phases: dict[tuple[str, Axis | None, str], float] = {}
    for reading in readings:
        watts = _number(reading) if reading.name in POWERS else None
        if watts is None:
            continue
        found[reading.device, reading.phase, reading.name] = min(abs(watts), MAX_W)
        if isinstance(reading.phase, Phase):
            whole = reading.device, None, reading.name
            phases[whole] = phases.get(whole, 0.0) + min(abs(watts), MAX_W)
    return found | {key: max(watts, found.get(key, 0.0)) for key, watts in phases.items()}


def _with_value(reading: Reading, value: float | None, raw: float) -> Iterable[Reading]:
    """The reading with the published value; none if there is no value yet."""
    if value is None:
        return ()
    return (reading if value == raw else replace(reading, value=value),)


def _key(reading: Reading) -> str:
    return "/".join((reading.device, *((reading.phase.value,) if reading.phase else ()), reading.name))


def _device(key: str) -> str:
    """The device of a key."""
    device, _, _ = key.rpartition("/")
    above, _, last = device.rpartition("/")
    return above if above and last in PHASE_NAMES else device


def _number(reading: Reading) -> float | None:
    value = reading.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _headroom(reading: Reading) -> float:
    return SOLAR_HEADROOM if reading.device.startswith(SOLAR_DEVICES) else HEADROOM


def _is_of_inverters(reading: Reading) -> bool:
    """Whether a counter is that of an inverter or of all of them, which can fall by 2^32 J."""
    return reading.device in INVERTER_SUMS or reading.device.startswith(INVERTER)


def _limits(source: str, reading: Reading, cap: float, is_doubtful: bool) -> CounterLimits:
    stall = UPDATES_EVERY_S.get(source, 0.0)
    return CounterLimits(
        cap,
        confirm=CONFIRM_SLOW_S if stall else CONFIRM_S,
        stall=stall,
        wrap=_is_of_inverters(reading),
        doubtful=is_doubtful,
    )
