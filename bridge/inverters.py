"""What is known of a gateway's inverters beyond a single answer: which report, sleep or have gone, and what each
has made today. Pure: the caller passes the time.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from functools import lru_cache, partial
from typing import Annotated, NamedTuple

from pydantic import Field

from bridge.counters import INVERTER
from bridge.endpoints.parsing import MAX_MEASUREMENTS
from bridge.endpoints.production import REPORTING, REPORTING_WINDOW_S, Inverter
from bridge.model import DAY_S, HOUR_S, Measurement, Reading, Scalar, SourceName, Structure
from bridge.site.days import Days, DaysState
from bridge.state import SOUND_ENTRIES, UnixTime

DARK_SHARE = 0.01
"""Share of all inverters' highest power below which inverters that do not report are taken to be asleep."""
LAST_POWER_S = HOUR_S
"""Seconds after its last report for which an inverter's power is believed by day."""

Power = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]


class UnitState(NamedTuple):
    """What is known of an inverter or an AC Battery. Files have it as a list, which is short.

    `source` is the source that lists it. `last_report` is a unix time of the gateway's clock; `None`: it has never
    reported. `power` (W) is that of its last report, `highest` (W) what it has ever reached. `has_counted` is set
    if its lifetime energy is not 0. `missing_since` (unix time) is set while its source lists others, but not this
    one.
    """

    source: str
    last_report: UnixTime | None = None
    power: Power | None = None
    highest: Power = 0.0
    has_counted: bool = False
    missing_since: UnixTime | None = None

    @property
    def is_unused(self) -> bool:
        """Whether it has never worked at this gateway, which then lists a unit of another gateway."""
        return self.last_report is None and not self.highest and not self.has_counted

    def is_reporting(self, clock: float) -> bool:
        """Whether it has reported lately. `clock` is the gateway's clock."""
        return self.last_report is not None and clock - self.last_report < REPORTING_WINDOW_S

    def shown_power(self, told: Scalar | Structure, clock: float, *, dark: bool) -> Scalar | Structure:
        """The power (W) to publish. `told` is the gateway's value, which repeats the last report for ever.

        `dark`: the sun gives too little for inverters to work.
        """
        if self.is_reporting(clock):
            return told
        if dark:
            return 0
        return told if self.last_report is not None and clock - self.last_report < LAST_POWER_S else None

    def with_answer(self, source: str, values: Mapping[str, Scalar | Structure]) -> "UnitState":
        """A copy with an answer's values. Where `inverters` lists the unit, powers come from there alone."""
        told = values.get("last_report")
        reports = [self.last_report, told.timestamp() if isinstance(told, datetime) else None]
        known = self._replace(
            last_report=max((time for time in reports if time is not None), default=None),
            has_counted=self.has_counted or bool(_positive(values.get("energy_lifetime"))),
        )
        if self.source == SourceName.INVERTERS != source:
            return known
        return known._replace(
            source=source,
            power=_watts(values.get("power")),
            highest=_positive(values.get("max_power")),
            missing_since=None,
        )

    def readings(self, device: str) -> Iterator[Reading]:
        """What its source would say if it still listed this unit."""
        rows, last = Inverter.table, self.last_report
        yield Reading(device, None, rows["power"], self.power)
        yield Reading(device, None, rows["max_power"], self.highest)
        yield Reading(device, None, rows["last_report"], last and datetime.fromtimestamp(last, UTC))
        yield Reading(device, None, REPORTING, value=False)


UnitsState = Annotated[dict[str, UnitState], SOUND_ENTRIES]


class Inverters:
    """What is known of a gateway's inverters beyond a single answer."""

    def __init__(
        self, units: UnitsState, days: DaysState, known: Container[str], zone: tzinfo | None = None
    ) -> None:
        """`units` and `days` are what an earlier run has kept; only inverters that are `known` are taken over.

        `zone` is where days begin.
        """
        self._units = {device: unit for device, unit in units.items() if device in known}
        self._days = Days(days, zone).of(known)

    @property
    def days(self) -> DaysState:
        """What the next run must know of the energies of today."""
        return self._days.state

    @property
    def units(self) -> UnitsState:
        """What the next run must know of the units."""
        return dict(self._units)

    def highest_power(self, device: str) -> float:
        """The highest power (W) of an inverter so far; of all of them together for another device. 0: unknown."""
        if device.startswith(INVERTER):
            return self._units[device].highest if device in self._units else 0.0
        return sum(unit.highest for unit in self._units.values())

    @property
    def have_made_nothing(self) -> bool:
        """Whether inverters are known, and none of them has ever made anything."""
        return bool(self._units) and not any(unit.highest or unit.has_counted for unit in self._units.values())

    def judged(
        self, source: str, readings: Sequence[Reading], solar: float | None, *, now: float, clock: float
    ) -> Sequence[Reading]:
        """Correct what an answer says of inverters, and add those that it no longer lists.

        A unit that sleeps or has gone does not say so: the gateway repeats its last power, or leaves it out.

        Args:
            source: of the answer; only those that list inverters are corrected.
            readings: of the answer.
            solar: the site's solar power now, in W; `None` if unknown.
            now: unix time.
            clock: the gateway's clock, as unix time.
        """
        if source not in (SourceName.INVERTERS, SourceName.DEVICE_DATA):
            return readings
        missing = self._learn(source, readings, now)
        left_out = [reading for device in missing for reading in self._units[device].readings(device)]
        is_dark = solar is not None and solar <= DARK_SHARE * self.highest_power("")
        return [self._corrected(reading, clock, dark=is_dark) for reading in (*readings, *left_out)]

    def _learn(self, source: str, readings: Sequence[Reading], now: float) -> Sequence[str]:
        """Learn from an answer; return the known units that it leaves out. An empty list drops none."""
        given: dict[str, dict[str, Scalar | Structure]] = {}
        for reading in readings:
            if reading.device.startswith(INVERTER) and reading.phase is None:
                given.setdefault(reading.device, {})[reading.name] = reading.value
        for device, values in given.items():
            self._units[device] = self._units.get(device, UnitState(source)).with_answer(source, values)
        missing = [device for device, unit in self._units.items() if unit.source == source and device not in given]
        for device in missing if given else ():
            since = min(self._units[device].missing_since or now, now)
            self._units[device] = self._units[device]._replace(missing_since=since)
            if now - since >= DAY_S:
                del self._units[device]
        return [device for device in missing if device in self._units]

    def _corrected(self, reading: Reading, clock: float, *, dark: bool) -> Reading:
        if reading.device == "gateway":
            counted = self._count(reading.name, clock)
            return reading if counted is None else _with_value(reading, counted)
        unit = self._units.get(reading.device)
        if unit is None:
            return reading
        if unit.is_unused:
            reading = replace(reading, measurement=_unused(reading.measurement))
        if reading.name == "reporting":
            return _with_value(reading, unit.is_reporting(clock))
        if reading.name == "power":
            return _with_value(reading, unit.shown_power(reading.value, clock, dark=dark))
        return reading

    def _count(self, name: str, clock: float) -> int | None:
        """How many inverters there are, or report; `None` for another name."""
        units = [unit for unit in self._units.values() if unit.source == SourceName.INVERTERS]
        if name == "inverters_total":
            return sum(not unit.is_unused for unit in units)
        return sum(unit.is_reporting(clock) for unit in units) if name == "inverters_reporting" else None

    def with_today(self, readings: Sequence[Reading], day_time: float) -> Sequence[Reading]:
        """Replace the inverters' `energy_today` by the bridge's own, which is made from guarded lifetime counters.

        `day_time` is the unix time by which days begin. On the first day, `energy_today` begins with the gateway's
        own count of that day; if that can't be true, it is unknown.
        """
        shown, lifetimes = list(readings), dict[str, float | None]()
        of_today = [n for n, r in enumerate(shown) if r.name == "energy_today" and r.device.startswith(INVERTER)]
        if of_today:
            lifetimes = {r.device: _number(r) for r in readings if r.name == "energy_lifetime" and r.phase is None}
        for place in of_today:
            reading = shown[place]
            told, lifetime = _number(reading) or 0.0, lifetimes.get(reading.device)
            already = partial(self._possible_today, reading.device, told, day_time)
            today = lifetime and self._days.today(reading.device, lifetime, day_time, already=already)
            shown[place] = replace(reading, value=today)
        return shown

    def _possible_today(self, device: str, told: float, day_time: float) -> float | None:
        """The Wh that an inverter says it has made today; `None` where it can't have made them."""
        return told if 0 <= told <= self._days.most_solar(day_time, self.highest_power(device)) else None


def _with_value(reading: Reading, value: Scalar | Structure) -> Reading:
    return reading if value is reading.value else replace(reading, value=value)


def _number(reading: Reading) -> float | None:
    return _watts(reading.value)


def _watts(value: Scalar | Structure) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _positive(value: Scalar | Structure) -> float:
    return max(0.0, _watts(value) or 0.0)


@lru_cache(MAX_MEASUREMENTS)
def _unused(measurement: Measurement) -> Measurement:
    """The measurement of a unit that is not used here; the same object for each answer."""
    return replace(measurement, unused=True)
