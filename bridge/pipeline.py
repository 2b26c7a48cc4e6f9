"""From the readings of an answer to readings that may be published: everything with a memory between bytes and
topics.

An answer goes through the repairs of its firmware, the limit of devices, what is known of inverters, and the guard
of the lifetime counters; then the site's flows are made from it. Pure: times and state come from the caller.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Annotated, ClassVar

from pydantic import Field

from bridge.counters import Guarded, Ledger, is_counter, usual_cap
from bridge.counters.state import CounterState
from bridge.endpoints import Parsed
from bridge.endpoints.production import ENERGY_PCU
from bridge.in_force import InForce, InForceState
from bridge.inverters import Inverters, UnitsState
from bridge.model import MAX_COUNTER_WH, Axis, BadAnswer, Event, Facts, Reading, SourceName
from bridge.site import GuardedAnswer, Site, SiteState
from bridge.site.days import DayClock, DaysState, PhaseDays
from bridge.state import SOUND_ENTRIES, FileState, UnixTime
from bridge.topics import TIMESTAMP

Repair = Callable[[Sequence[Reading]], Sequence[Reading]]

STORAGE_METER = re.compile(r"meter/storage(-\d+)?")
DEAD_LEG_V, LIVE_LEG_V = 1.0, 100.0
STARTS_WITH_ZEROS = frozenset({SourceName.READINGS, SourceName.PRODUCTION, SourceName.ENERGY})
"""Sources whose counters are all 0 for some minutes while a gateway starts."""
PCU_COUNTER = (ENERGY_PCU, "energy_lifetime")
MAX_DEVICES = 3_000
"""Devices of one gateway: a site of 1,000 inverters may have all of them replaced twice."""
MAX_GONE_DEVICES = MAX_DEVICES // 2
"""Devices that have gone and are taken over by a restart: they may come back, and their counters must go on."""


class CountersState(FileState):
    """What is kept of a gateway's counters: its lifetime counters, its site, its inverters and their days, and the
    days of phases.

    `in_force` is what is kept of stored and live settings. `day_time` is the unix time of the last answer, by which
    days begin.
    """

    suffix: ClassVar[str] = "_counters"

    counters: Annotated[dict[str, CounterState], SOUND_ENTRIES] = Field(default_factory=dict)
    site: SiteState = SiteState()
    days: DaysState = Field(default_factory=dict)
    phases: DaysState = Field(default_factory=dict)
    units: UnitsState = Field(default_factory=dict)
    in_force: InForceState = InForceState()
    day_time: UnixTime = 0.0


@dataclass(frozen=True, slots=True)
class Processed:
    """An answer's readings as they may be published, what the site learns from them, and what a log should say.

    `held` is how many counters of the gateway are held at their last good value. `is_unconfirmed` is set if first
    readings of counters wait for the next answer, which confirms them. `in_force` are the readings of what is in
    force after it. `asks_why` is set if the controller should explain a new limit.
    """

    readings: Sequence[Reading]
    answer: GuardedAnswer
    events: Sequence[Event]
    held: int
    is_unconfirmed: bool
    in_force: Sequence[Reading] = ()
    asks_why: bool = False


class Pipeline:
    """The pipeline of one gateway.

    `zone` is where the days begin; `None`: this machine's. `netted` and `third_party` are those of `Site`. `state`
    is what an earlier run has kept, `devices` are those that it has published.
    """

    def __init__(
        self,
        *,
        netted: bool,
        zone: tzinfo | None,
        state: CountersState | None = None,
        third_party: bool = False,
        in_home: bool = False,
        devices: Iterable[str] = (),
    ) -> None:
        state = state or CountersState()
        self._day_clock = DayClock(state.day_time)
        self._ledger = Ledger.load(state.counters)
        self._ledger.forget(published := frozenset(devices), MAX_GONE_DEVICES)
        self._limit = DeviceLimit(published | self._ledger.devices)
        self.site = Site(netted=netted, third_party=third_party, in_home=in_home, zone=zone, state=state.site)
        self._inverters = Inverters(state.units, state.days, self._limit, zone)
        self._phases = PhaseDays(state.phases, zone)
        self._in_force = InForce(state.in_force)
        self._flows: Sequence[Reading] = ()
        self._pcu: object = None
        """What the gateway has last given as the sum of its inverters' energy."""

    @property
    def state(self) -> CountersState:
        """What must outlive the process."""
        return CountersState(
            counters=self._ledger.states,
            site=self.site.state,
            days=self._inverters.days,
            phases=self._phases.state,
            units=self._inverters.units,
            in_force=self._in_force.state,
            day_time=self._day_clock.at,
        )

    def seed(self, values: Mapping[str, float]) -> None:
        """Take over what subscribers have of an earlier run's counters, by topic below the gateway.

        `<device>/timestamp` is the unix time of the device's document. Anybody may write at a broker, so a value
        that no counter can have is left out; the same limit ends the times in the year 2286.
        """
        possible = {key: value for key, value in values.items() if 0 <= value <= MAX_COUNTER_WH}
        for key, value in possible.items():
            self._ledger.seed(key, value, _time_of(key, possible))
        self.site.seed(possible)

    def process(
        self,
        source: str,
        parsed: Parsed,
        facts: Facts,
        *,
        now: float,
        steady: float,
        period: float = 0.0,
        storage_pending: bool = False,
    ) -> Processed:
        """Make the readings of an answer publishable.

        Args:
            source: where the answer comes from.
            parsed: the answer.
            facts: what is known of the gateway.
            now: the wall clock (unix time).
            steady: a clock that nobody sets, in seconds.
            period: the usual time between two answers of this source, in seconds.
            storage_pending: whether the gateway may still say that it has batteries.

        Raises:
            BadAnswer: all its counters are 0, as they are while a gateway starts.
        """
        given = repaired(source, parsed.readings)
        accepted = self._limit.accept(given)
        clock, day_time = now + facts.clock_offset, self._day_clock.read(now, steady)
        readings = self._inverters.judged(source, accepted, self.site.solar, now=now, clock=clock)
        guarded = self._ledger.guard(source, readings, self._cap(facts), now=now, steady=steady)
        if source == SourceName.ENERGY:
            self._pcu = next((r.value for r in readings if (r.device, r.name) == PCU_COUNTER), self._pcu)
        is_believed = self._pcu == 0 and self._inverters.have_made_nothing
        _refuse_zeros(source, guarded, zeros_are_believed=is_believed or source != _source_of_solar(facts))
        known = _with_unknown(readings, guarded.readings)
        shown = self._phases.with_today(self._inverters.with_today(known, day_time), day_time)
        answer = GuardedAnswer(
            source,
            guarded.readings,
            facts,
            now,
            parsed.fresh,
            held=guarded.held_values,
            period=period,
            day_time=day_time,
            storage_pending=storage_pending,
        )
        events = [*self._limit.warning(given, accepted), *guarded.events]
        in_force = self._in_force.update(source, shown, facts, now, period)
        asks_why = self._in_force.asks_why
        return Processed(shown, answer, events, guarded.held, guarded.is_unconfirmed, in_force, asks_why)

    def flows(self, answer: GuardedAnswer) -> Sequence[Reading]:
        """The site's readings after an answer; none where they have not changed and none of them comes from it."""
        before, self._flows = self._flows, self.site.update(answer)
        is_told = answer.source == self.site.powered_by or any(reading.repeat for reading in self._flows)
        return self._flows if self._flows != before or is_told else ()

    def _cap(self, facts: Facts) -> Callable[[Reading], float]:
        phases = max((meter.phase_count for meter in facts.meters or () if meter.enabled), default=1)
        return lambda reading: usual_cap(
            reading, phases=phases, solar=self._inverters.highest_power(reading.device)
        )


def _source_of_solar(facts: Facts) -> SourceName | None:
    """The source that the site's solar energy comes from. All others may count nothing for ever."""
    if facts.meters is None:
        return None
    if any(meter.enabled for meter in facts.meters):
        return SourceName.READINGS
    return SourceName.ENERGY if facts.meters else SourceName.PRODUCTION


def _refuse_zeros(source: str, guarded: Guarded, *, zeros_are_believed: bool) -> None:
    """Refuse an answer of a gateway that starts; its powers are as wrong as its counters.

    `zeros_are_believed` is whether counters that have always been 0 may be right.

    Raises:
        BadAnswer: all its counters are 0, and they were not before.
    """
    if source not in STARTS_WITH_ZEROS or not guarded.held_values or any(guarded.held_values.values()):
        return
    counters = {
        (reading.device, reading.name): reading.value
        for reading in guarded.readings
        if reading.phase is None and is_counter(reading)
    }
    if any({**counters, **guarded.held_values}.values()):
        return
    if not zeros_are_believed or counters.keys() & guarded.held_values.keys():
        raise BadAnswer("all its counters are 0, as they are while a gateway starts: the answer is not used")


def _time_of(key: str, values: Mapping[str, float]) -> float:
    """The unix time of the document that has this counter (`device[/phase]/name`); 0 if there is none."""
    kind, name, *_ = (*key.split("/"), "")
    return values.get(f"{kind}/{name}/{TIMESTAMP}", 0.0)


def _with_unknown(readings: Sequence[Reading], guarded: Sequence[Reading]) -> Sequence[Reading]:
    """The guarded readings, and as `None` (unknown) the counters that may not be published yet."""
    if len(guarded) == len(readings):
        return guarded
    known = {(r.device, r.phase, r.name) for r in guarded}
    unknown = [replace(r, value=None) for r in readings if (r.device, r.phase, r.name) not in known]
    return [*guarded, *unknown]


class DeviceLimit:
    """Keeps a gateway that makes up serial numbers from filling the memory of the bridge and of the broker.

    Devices are never removed during a run, so that invented serial numbers come to an end.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._devices = set(known)
        self._has_warned = False

    def __contains__(self, device: object) -> bool:
        return device in self._devices

    def accept(self, readings: Sequence[Reading]) -> Sequence[Reading]:
        """The readings of devices within the limit."""
        new = [device for device in dict.fromkeys(r.device for r in readings) if device not in self._devices]
        self._devices.update(new[: max(0, MAX_DEVICES - len(self._devices))])
        if self._devices.issuperset(new):
            return readings
        return [reading for reading in readings if reading.device in self._devices]

    def warning(self, readings: Sequence[Reading], accepted: Sequence[Reading]) -> Sequence[Event]:
        """A warning for the log the first time that readings were left out."""
        if self._has_warned or len(accepted) == len(readings):
            return ()
        self._has_warned = True
        first = next(reading.device for reading in readings if reading.device not in self._devices)
        text = (
            f"{first} and all devices that are new after it are left out: the gateway has named {MAX_DEVICES} "
            "devices, more than any home has; a restart forgets most of those that have gone"
        )
        return (Event("device_limit", text, warning=True),)


# Repairs of known firmware faults, one row each. No other module corrects values of the gateway.


@dataclass(frozen=True, slots=True)
class Quirk:
    """A repair of the readings of one source, and the firmware that needs it."""

    source: str
    firmware: str
    repair: Repair


def _values(readings: Sequence[Reading], device: str, name: str) -> dict[Axis | None, float]:
    return {
        reading.phase: reading.value
        for reading in readings
        if reading.device == device and reading.name == name and isinstance(reading.value, int | float)
    }


def _adds_up(values: dict[Axis | None, float], total: float) -> bool:
    """Whether the phases add up to the total, within 1 W and 0.5 % (docs/topics.md)."""
    parts = [value for phase, value in values.items() if phase is not None]
    return abs(sum(parts) - total) <= 1 + 0.005 * abs(total)


def phase_power(readings: Sequence[Reading]) -> Sequence[Reading]:
    """Use `instantaneousDemand` of the channels if their `activePower` does not add up to that of the meter."""
    for device in {reading.device for reading in readings if reading.phase is not None}:
        power = _values(readings, device, "power")
        demand = _values(readings, device, "instantaneous_demand")
        total = power.get(None)
        complete = total is not None and power.keys() == demand.keys()
        if complete and not _adds_up(power, power[None]) and _adds_up(demand, power[None]):
            readings = [_with_demand(reading, device, demand) for reading in readings]
    return readings


def _with_demand(reading: Reading, device: str, demand: dict[Axis | None, float]) -> Reading:
    affected = reading.device == device and reading.name == "power" and reading.phase is not None
    return replace(reading, value=demand[reading.phase]) if affected else reading


def dead_leg(readings: Sequence[Reading]) -> Sequence[Reading]:
    """Drop all values of a storage meter that has lost a leg for one poll, and so measures only half."""
    devices = {reading.device for reading in readings if STORAGE_METER.fullmatch(reading.device)}
    dead = {device for device in devices if _has_dead_leg(_values(readings, device, "voltage"))}
    return [reading for reading in readings if reading.device not in dead]


def _has_dead_leg(voltages: dict[Axis | None, float]) -> bool:
    legs = [abs(voltage) for phase, voltage in voltages.items() if phase is not None]
    return bool(legs) and min(legs) < DEAD_LEG_V and max(legs) > LIVE_LEG_V


QUIRKS = (
    Quirk(SourceName.READINGS, "some 8.3, seen on D8.3.1598", phase_power),
    Quirk(SourceName.READINGS, "from 8.3.6000", dead_leg),
)


def repaired(source: str, readings: Sequence[Reading]) -> Sequence[Reading]:
    for quirk in QUIRKS:
        if quirk.source == source:
            readings = quirk.repair(readings)
    return readings
