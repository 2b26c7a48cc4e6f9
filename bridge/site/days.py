"""Energy of the current day, from lifetime counters, and what is usual at each hour of a day.

The gateway's own counts of today do not always restart at midnight, or not at 0 (firmware 5 to 8.3). So the bridge
subtracts the lifetime value of the last local midnight. Pure: the caller passes all times.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from typing import Annotated, Any

from pydantic import BeforeValidator

from bridge.model import DAY_S, HOUR_S, Phase, Reading
from bridge.site.totals import RESTART_SHARE
from bridge.state import SOUND_ENTRIES, SavedWattHours, UnixTime

HOURS = 24
CLOCK_DEVIATION_S = 7_200.0
"""A wall clock that leaves the steady clock by more than this was set wrongly, or was wrong until now."""
CLOCK_CONFIRM_S = 900.0
"""Seconds that a clock which was set must go on before a new day begins by it."""
FIRST_DAY = "2020-01-01"
"""Earlier dates come from a clock that was never set, and never begin a new day."""
OLD_HOURS_SHARE = 6 / 7
"""Weight of the hours before when a new one begins: what is usual is a mean of about a week."""
ENOUGH_HOURS = 12
"""Hours that must have been seen before anything is called usual."""
FIRST_SUN_S, MOST_SOLAR_W, PEAK_SHARE = 3 * HOUR_S, 25_000.0, 1.25
"""Solar energy of a day begins so long after midnight at the earliest. It comes with the highest known power times
a share at most; where none is known, with this power."""
MORNING_HOUR, EVENING_HOUR = 7, 19
"""Hours of the local day between which energy is shared while it is unknown what is usual at each hour."""


@dataclass(frozen=True, slots=True)
class CountedDay:
    """One counter's day. `base` is its value (Wh) when `day` (ISO date) began; `None` if nobody knows.

    `last` is its last value (Wh), `at` the unix time of that. `earlier` and `earlier_base` are the day that was
    left for this one, in case the clock turns out to have been wrong. If that was a later day, `earlier_at` is the
    unix time of its last value: the clock was ahead then, or it is behind now.
    """

    day: str
    base: SavedWattHours | None
    last: SavedWattHours
    at: UnixTime = 0.0
    earlier: str = ""
    earlier_base: SavedWattHours | None = None
    earlier_at: UnixTime = 0.0


def _from_file(value: object) -> Any:
    """A day in the form in which files of version 1 have it: day, base, last."""
    if isinstance(value, list | tuple):
        return dict(zip(("day", "base", "last"), value, strict=False))
    return value


DaysState = Annotated[
    dict[str, Annotated[CountedDay, BeforeValidator(_from_file)]],
    SOUND_ENTRIES,
]
"""The day of each counter, by any name that is always the same for a counter."""
HoursState = tuple[tuple[SavedWattHours, SavedWattHours], ...]
"""For each hour of a day: Wh, and the seconds in which they were counted."""


@dataclass(slots=True)
class DayClock:
    """The unix time by which days begin.

    It is the wall clock, unless that leaves the steady clock by hours or stands before the last reading: then the
    time goes on by the steady clock for a quarter of an hour, in case the wall clock is set right again.
    """

    at: float = 0.0
    _steady: float | None = None
    _doubted_since: float | None = None

    def read(self, wall: float, steady: float) -> float:
        """Read both clocks, in seconds; return the time by which the day is told."""
        passed = 0.0 if self._steady is None else max(0.0, steady - self._steady)
        is_first, self._steady = self._steady is None, steady
        expected = self.at + passed
        is_wrong = wall < self.at if is_first else abs(wall - expected) > CLOCK_DEVIATION_S
        if not is_wrong:
            self._doubted_since = None
        elif self._doubted_since is None:
            self._doubted_since = steady
        if is_wrong and self._doubted_since is not None and steady - self._doubted_since < CLOCK_CONFIRM_S:
            self.at = expected
        else:
            self.at, self._doubted_since = wall, None
        return self.at


@dataclass(slots=True)
class HourProfile:
    """The energy (Wh) that is usual at each hour of the local day, as a mean of about the last week."""

    zone: tzinfo | None = None
    _hours: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)] * HOURS)
    _hour: int | None = None

    @classmethod
    def load(cls, state: HoursState, zone: tzinfo | None) -> "HourProfile":
        return cls(zone, list(state)) if len(state) == HOURS else cls(zone)

    @property
    def state(self) -> HoursState:
        """What must outlive the process."""
        return tuple((round(energy, 3), round(seconds)) for energy, seconds in self._hours)

    def add(self, energy: float, seconds: float, now: float) -> None:
        """Count energy (Wh) of the last seconds before the unix time `now`.

        Of a time that is longer than an hour nobody knows which hours its energy belongs to.
        """
        if seconds > HOUR_S:
            return
        hour = datetime.fromtimestamp(now - seconds / 2, self.zone).hour
        known, known_s = self._hours[hour]
        if hour != self._hour:
            self._hour, known, known_s = hour, known * OLD_HOURS_SHARE, known_s * OLD_HOURS_SHARE
        self._hours[hour] = known + energy, known_s + seconds

    @property
    def is_known(self) -> bool:
        return sum(min(seconds, HOUR_S) for _, seconds in self._hours) >= ENOUGH_HOURS * HOUR_S

    def usual(self, start: float, end: float) -> float:
        """The energy (Wh) that is usual between two unix times."""
        return self._weighted(start, end, self._mean)

    def share(self, start: float, middle: float, end: float) -> float:
        """The part of what was counted from `start` to `end` that belongs before `middle`, from 0 to 1.

        While it is unknown what is usual, the hours from 7 to 19 count alike, and those of the night do not.
        """
        for weight in (self._mean if self.is_known else _is_day, _is_day):
            if (total := self._weighted(start, end, weight)) > 0:
                return min(1.0, self._weighted(start, middle, weight) / total)
        return time_share(start, middle, end)

    def _mean(self, hour: int) -> float:
        """Wh that are usual in this hour."""
        energy, seconds = self._hours[hour]
        return energy / seconds * HOUR_S if seconds else 0.0

    def _weighted(self, start: float, end: float, weight: Callable[[int], float]) -> float:
        """The sum of the hours between two unix times, each with its weight by the hour of the local day."""
        whole_days, rest = divmod(max(0.0, end - start), DAY_S)
        total, at = whole_days * sum(map(weight, range(HOURS))), end - rest
        while at < end:
            until = min(end, (at // HOUR_S + 1) * HOUR_S)
            total += weight(datetime.fromtimestamp(at, self.zone).hour) * (until - at) / HOUR_S
            at = until
        return total


def _is_day(hour: int) -> float:
    return 1.0 if MORNING_HOUR <= hour < EVENING_HOUR else 0.0


def time_share(start: float, middle: float, end: float) -> float:
    """The part of the time from `start` to `end` that lies before `middle`, from 0 to 1."""
    return min(1.0, max(0.0, (middle - start) / (end - start))) if end > start else 1.0


EnergyShare = Callable[[float, float, float], float]
"""Tells which part of the energy of a time from `start` to `end` belongs before `middle` (unix times)."""


class Days:
    """What lifetime counters have counted since the last local midnight, by the name of the counter."""

    def __init__(self, state: DaysState, zone: tzinfo | None = None) -> None:
        """`zone` is where days begin; `None` is the time zone of this machine."""
        self._zone = zone
        self._counters = dict(state)

    @property
    def state(self) -> DaysState:
        """What must outlive the process."""
        return dict(self._counters)

    def last(self, counter: str) -> float:
        """The last value of a counter in Wh; 0 if it is unknown."""
        return self._counters[counter].last if counter in self._counters else 0.0

    def of(self, counters: Container[str]) -> "Days":
        """A copy with only these counters."""
        return Days({name: day for name, day in self._counters.items() if name in counters}, self._zone)

    def seed(self, counter: str, lifetime: float, today: float, at: float) -> None:
        """Adopt what was published of a counter at the unix time `at`, unless something is known of it.

        Both energies are in Wh.
        """
        self._counters.setdefault(counter, CountedDay(self.date(at), lifetime - today, lifetime, at))

    def date(self, now: float) -> str:
        """The local day (ISO date) at a unix time."""
        return datetime.fromtimestamp(now, self._zone).strftime("%Y-%m-%d")

    def today(
        self,
        counter: str,
        lifetime: float,
        now: float,
        *,
        already: Callable[[], float | None] = lambda: None,
        share: EnergyShare = time_share,
        is_read: bool = True,
    ) -> float | None:
        """Return the Wh that `counter` has counted today; `None` where nobody knows what it was at midnight.

        Args:
            counter: any name that is always the same for this counter.
            lifetime: its value in Wh.
            now: the unix time by which days begin (`DayClock`).
            already: gives the Wh that the gateway says it has counted today; called on the first day only. `None`:
                it does not say.
            share: shares what was counted over a midnight that nobody saw.
            is_read: whether `lifetime` was just read. A day begins with the first value that was read in it.
        """
        day = self.date(now)
        known = self._counters.get(counter)
        if known is None:
            known = CountedDay(day, None, lifetime, now)
        if is_read:
            known = self._continued(known, lifetime, day, now, share)
            if known.base is None and (told := already()) is not None:
                known = replace(known, base=lifetime - told)
            self._counters[counter] = known
        if known.day != day and day >= FIRST_DAY:
            return None
        return None if known.base is None else round(max(0.0, known.last - known.base), 3)

    def _continued(
        self, known: CountedDay, lifetime: float, day: str, now: float, share: EnergyShare
    ) -> CountedDay:
        """The counter's day after one more value."""
        base, grown = known.base, lifetime - known.last
        if grown < 0 and base is not None:  # the counter restarted, the day did not
            base += grown - (lifetime if lifetime < RESTART_SHARE * known.last else 0.0)
        if day == known.day or day < FIRST_DAY:
            return replace(known, base=base, last=lifetime, at=now)
        if day == known.earlier and now >= known.earlier_at:
            left_at = known.at if day < known.day else 0.0
            return CountedDay(day, known.earlier_base, lifetime, now, known.day, base, left_at)
        if day < known.day:
            return CountedDay(day, None, lifetime, now)
        before = max(0.0, grown) * share(known.at, self._midnight(day), now) if known.at else 0.0
        started = min(lifetime, known.last) + before
        return CountedDay(day, started, lifetime, now, earlier=known.day, earlier_base=base)

    def most_solar(self, now: float, peak: float) -> float:
        """The solar energy (Wh) that the day can have brought until `now`. `peak` is in W; 0: unknown.

        A gateway's own count may still be that of the day before.
        """
        sunny_s = max(0.0, now - self._midnight(self.date(now)) - FIRST_SUN_S)
        return sunny_s / HOUR_S * (PEAK_SHARE * peak or MOST_SOLAR_W)

    def _midnight(self, day: str) -> float:
        """The unix time at which a local day begins."""
        return datetime.fromisoformat(day).replace(tzinfo=self._zone).timestamp()


class PhaseDays:
    """The energies of today of single phases, which the bridge makes from the phases' own counters.

    Those of reports are differences that may fall a little, so the highest value counts.
    """

    def __init__(self, state: DaysState, zone: tzinfo | None = None) -> None:
        self._days = Days(state, zone)

    @property
    def state(self) -> DaysState:
        """What must outlive the process."""
        return self._days.state

    def with_today(self, readings: Sequence[Reading], day_time: float) -> Sequence[Reading]:
        """Replace the phases' `energy_today`. `day_time` is the unix time by which days begin."""
        shown = list(readings)
        of_today = [n for n, r in enumerate(shown) if isinstance(r.phase, Phase) and r.name == "energy_today"]
        counters = {
            (r.device, r.phase): float(r.value)
            for r in (readings if of_today else ())
            if r.name == "energy_delivered" and isinstance(r.value, int | float)
        }
        for place in of_today:
            reading = shown[place]
            name, value = f"{reading.device}/{reading.phase}", counters.get((reading.device, reading.phase))
            if value is not None:
                last = self._days.last(name)
                is_restarted = value < RESTART_SHARE * last
                value = self._days.today(name, value if is_restarted else max(value, last), day_time)
            shown[place] = replace(reading, value=value)
        return shown


class GatewayDays:
    """What counters of the gateway were when the day began, by its own counts of today."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, float]] = {}
        """By device: its counter then (Wh), and the unix time at which the gateway told it."""

    def observe(self, device: str, lifetime: float | None, today: float | None, now: float) -> None:
        """Note a counter and its count of today in Wh; `None` where the answer does not have them."""
        if lifetime is not None and today is not None:
            self._began[device] = lifetime - today, now

    def counted(self, device: str, lifetime: float, days: Days, now: float, peak: float) -> float | None:
        """The Wh of today at the unix time `now`; `None` where the gateway has none that can be true.

        `peak` is the highest solar power in W; 0: unknown.
        """
        began, told_at = self._began.get(device, (0.0, 0.0))
        counted = lifetime - began
        is_of_today = days.date(told_at) == days.date(now)
        return counted if is_of_today and 0 <= counted <= days.most_solar(now, peak) else None
