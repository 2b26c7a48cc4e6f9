"""The lifetime energies of a home of several gateways: sums of their counters, and its own energy by balance.

Pure: the caller passes all times.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Annotated

from pydantic import Field

from bridge.model import DAY_S, MAX_COUNTER_WH, MINUTE_S
from bridge.site.days import Days, DaysState
from bridge.site.selection import MAX_ANSWER_STEP_S
from bridge.site.totals import RESTART_SHARE, Accumulator
from bridge.state import SOUND_ENTRIES, SavedWattHours, State, UnixTime

MARKS_S = 7 * DAY_S
"""After this many seconds of news in which a gateway was missing, the energy of a home begins anew. Time in which
no bridge ran, or no gateway answered, does not count.
"""
STILL_S = 30 * MINUTE_S
"""Seconds without a change after which a sum that is made every quarter of an hour is up to date."""
AWAY_WH = 100_000.0
"""Wh that a counter may have grown by while no bridge ran and its state was lost."""

SIGN_OF_COUNTER: Mapping[str, int] = {
    "solar/energy_lifetime": 1,
    "grid/energy_imported": 1,
    "grid/energy_exported": -1,
    "battery/energy_discharged": 1,
    "battery/energy_charged": -1,
    "generator/energy_lifetime": 1,
}
"""The counters of the parts of a home, and the sign with which each is part of the energy of the home."""
HOME_COUNTER = "home/energy_lifetime"


class SummedEnergy(State):
    """A counter of a home that is the sum of counters of its gateways. `marks` are these at the last sum, by serial
    number.
    """

    total: SavedWattHours = 0.0
    marks: Annotated[dict[str, SavedWattHours], SOUND_ENTRIES] = Field(default_factory=dict)

    def counted(self, parts: Mapping[str, float]) -> "SummedEnergy":
        """The counter after another reading of all parts. What a new part has counted earlier is not added."""
        grown = sum(_growth(self.marks[serial], value) for serial, value in parts.items() if serial in self.marks)
        marks = {serial: _mark(self.marks.get(serial, value), value) for serial, value in parts.items()}
        return SummedEnergy(total=round(self.total + grown, 3), marks=marks)


def _growth(mark: float, value: float) -> float:
    """The Wh that a counter has counted since its mark. A counter that has restarted began at 0."""
    if value >= mark:
        return value - mark
    return value if value < RESTART_SHARE * mark else 0.0


def _mark(mark: float, value: float) -> float:
    return mark if RESTART_SHARE * mark <= value < mark else value


class BalancedEnergy(State):
    """The energy of a home: what its parts have counted between moments at which all of them were read.

    `since`, `total`, `carry` and `carry_at` are those of an `Accumulator`. `marks` are the counters of the parts at
    the last such moment `at`, and `members` are the serial numbers of the gateways then. `lacking_s` are the
    seconds of news since then in which a part was missing.
    """

    since: UnixTime = 0.0
    total: SavedWattHours = 0.0
    carry: SavedWattHours = 0.0
    carry_at: UnixTime | None = None
    marks: Annotated[dict[str, SavedWattHours], SOUND_ENTRIES] = Field(default_factory=dict)
    members: tuple[str, ...] = ()
    at: UnixTime = 0.0
    lacking_s: Annotated[float, Field(ge=0)] = 0.0

    def continues(self, members: tuple[str, ...], values: Mapping[str, float]) -> bool:
        """Whether the marks are of these parts, and a part has not been missing for too long."""
        return self.members == members and self.marks.keys() == values.keys() and self.lacking_s <= MARKS_S

    def begun_anew(self, members: tuple[str, ...], values: Mapping[str, float], now: float) -> "BalancedEnergy":
        """The same total with new marks."""
        return self.changed(members=members, marks=dict(values), at=now, carry=0.0, carry_at=None, lacking_s=0.0)

    def change(self, values: Mapping[str, float]) -> float:
        """The Wh that all parts have given since the last moment."""
        return sum(SIGN_OF_COUNTER[name] * (value - self.marks[name]) for name, value in values.items())

    def counted(self, values: Mapping[str, float], now: float) -> tuple["BalancedEnergy", float]:
        """The energy after another moment, and the Wh of a negative balance that had to be dropped."""
        made = Accumulator(self.since, self.total, self.carry, self.carry_at).add(self.change(values), now)
        if dropped := made.dropped(now):
            made = replace(made, carry=0.0, carry_at=None)
        changed = self.changed(
            total=round(made.total, 3),
            carry=round(made.carry, 3),
            carry_at=made.carry_at,
            marks=dict(values),
            at=now,
            lacking_s=0.0,
        )
        return changed, dropped


@dataclass(frozen=True, slots=True)
class SlowSum:
    """A sum of solar energy (Wh) that a gateway makes every quarter of an hour, and since when it has this value.

    `is_change` tells whether it had another value before: of the first one nobody knows how old it is.
    """

    value: float
    at: float
    is_change: bool = False

    def followed_by(self, value: float, now: float) -> "SlowSum":
        """The sum after another reading at the unix time `now`."""
        return self if value == self.value else SlowSum(value, now, is_change=True)

    def is_still(self, now: float) -> bool:
        return now - self.at >= STILL_S


class HomeEnergiesState(State):
    """What is kept of the energies of a home. `sums` are the counters of its parts by name."""

    sums: Annotated[dict[str, SummedEnergy], SOUND_ENTRIES] = Field(default_factory=dict)
    home: BalancedEnergy | None = None
    days: DaysState = Field(default_factory=dict)


class HomeEnergies:
    """The energies of one home, by names such as `solar/energy_lifetime`. `state` is that of an earlier run."""

    def __init__(self, state: HomeEnergiesState, zone: tzinfo | None = None) -> None:
        """`zone` is where days begin; `None` is the time zone of this machine."""
        self._sums, self._days = dict(state.sums), Days(state.days, zone)
        self.home = state.home
        """The energy of the home; `None` until it was counted for the first time."""
        self._retained: Mapping[str, float] = {}
        self._slow: dict[str, SlowSum] = {}
        self._looked_at: float | None = None

    @property
    def state(self) -> HomeEnergiesState:
        """What must outlive the process."""
        return HomeEnergiesState(sums=dict(self._sums), home=self.home, days=self._days.state)

    @property
    def totals(self) -> Mapping[str, float]:
        """The counters of the parts of the home in Wh. One that can't be counted now stands still."""
        return {name: counter.total for name, counter in self._sums.items()}

    def is_of(self, members: Collection[str]) -> bool:
        """Whether the energy of the home was counted while just these gateways were its members."""
        return self.home is not None and self.home.members == tuple(sorted(members))

    def seed(self, retained: Mapping[str, float]) -> None:
        """Take note of what subscribers have of an earlier run, by name: no counter falls below it.

        A value that no counter can have is left out: anybody may write at a broker.
        """
        self._retained = {name: value for name, value in retained.items() if 0 <= value <= MAX_COUNTER_WH}
        lifetime, today, at = map(self._retained.get, (HOME_COUNTER, "home/energy_today", "home/timestamp"))
        if lifetime is not None and today is not None and at is not None:
            self._days.seed(HOME_COUNTER, lifetime, today, at)

    def sum_up(self, parts: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
        """Count these counters of the gateways, by name and serial number. Returns the counters of the home."""
        for name, given in parts.items():
            known = self._sums.get(name) or self._first_sum(name, given)
            counted = known.counted(given)
            self._sums[name] = counted.changed(total=max(counted.total, self._retained.get(name, 0.0)))
        return {name: self._sums[name].total for name in parts}

    def _first_sum(self, name: str, parts: Mapping[str, float]) -> SummedEnergy:
        """The counter where no state is kept: the sum, or what subscribers have if that is of other gateways."""
        total, shown = round(sum(parts.values()), 3), self._retained.get(name)
        if shown is not None and not 0 <= total - shown <= AWAY_WH:
            total = shown
        return SummedEnergy(total=total, marks=dict(parts))

    def note_slow_sums(self, sums: Mapping[str, float], now: float) -> None:
        """Take note of the sums of solar energy that gateways make every quarter of an hour, by serial number."""
        self._slow = {
            serial: self._slow[serial].followed_by(value, now) if serial in self._slow else SlowSum(value, now)
            for serial, value in sums.items()
        }

    def lack(self, now: float) -> None:
        """Take note of news in which a part of the home was missing."""
        passed = min(max(0.0, now - self._looked_at), MAX_ANSWER_STEP_S) if self._looked_at is not None else 0.0
        self._looked_at = now
        if self.home is not None and passed:
            self.home = self.home.changed(lacking_s=self.home.lacking_s + passed)

    def count_home(
        self, members: Collection[str], values: Mapping[str, float], now: float, day_time: float
    ) -> float:
        """Count the energy of the home at a moment at which all its parts were read.

        Where solar energy is a sum of a quarter of an hour, only those moments count at which it has just changed,
        or has not changed for long. `values` are the counters of the parts, `day_time` is the unix time by which
        days begin. Returns the Wh of a negative balance that are not counted.
        """
        serials, slow = tuple(sorted(members)), list(self._slow.values())
        home = self.home or BalancedEnergy(since=now, total=self._retained.get(HOME_COUNTER, 0.0))
        self._looked_at, is_known = now, home.continues(serials, values)
        if is_known and not _is_moment(home, slow, values, now):
            return 0.0
        if not is_known and not _may_begin(slow, now):
            return 0.0
        counted, dropped = home.counted(values, now) if is_known else (home.begun_anew(serials, values, now), 0.0)
        self.home = counted.changed(total=max(counted.total, self._retained.get(HOME_COUNTER, 0.0)))
        self._days.today(HOME_COUNTER, self.home.total, day_time)
        return dropped

    def home_today(self, day_time: float) -> float | None:
        """The Wh that the home has used today; `None` until they were counted on this day, and on the first day."""
        total = self.home.total if self.home is not None else 0.0
        return self._days.today(HOME_COUNTER, total, day_time, is_read=False)


def _may_begin(slow: Sequence[SlowSum], now: float) -> bool:
    is_new = any(known.is_change and known.at == now for known in slow)
    return is_new or all(known.is_still(now) for known in slow)


def _is_moment(home: BalancedEnergy, slow: Sequence[SlowSum], values: Mapping[str, float], now: float) -> bool:
    if all(known.is_change and known.at > home.at for known in slow):
        return True
    return all(known.is_still(now) for known in slow) and home.carry + home.change(values) >= 0
