"""Energies of a site: lifetime counters of the meters, and those that the bridge makes where no meter has one.

A counter that the bridge makes adds up what its parts have counted between two moments at which all parts were read
and good. While a part is missing, the interval becomes longer, and what the part has counted is added once.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Annotated

from pydantic import Field

from bridge.model import DAY_S, HOUR_S
from bridge.site.days import HourProfile, HoursState
from bridge.site.selection import GIVEN, MAX_ANSWER_STEP_S, STANDBY, STANDBY_MAX_W, Values
from bridge.site.totals import RESTART_SHARE, Accumulator, SiteCounters, Totals
from bridge.state import SOUND_ENTRIES, SavedWattHours, State, UnixTime

LONGEST_STEP_S, LONGEST_STEP_PERIODS = 60.0, 2.5
"""Time between two powers, in seconds or in periods, up to which the power is integrated along a straight line."""
LONG_GAP_PERIODS, LONG_GAP_MIN_S = 3, 60.0
"""A time between two readings that is longer than this many periods, and than this many seconds, is a gap. How much
import and export have cancelled each other out in a gap is unknown.
"""
MARKS_KEPT_S = 7 * DAY_S
"""After this many seconds of answers in which a part of a counter was missing, the counter begins anew."""
MAX_COUNTED_W = 100_000.0
"""A power above this is a fault of the counter, not energy."""
HOUR_PROFILES = ("solar", "imported", "exported", "cancelled")
"""Energies whose usual course over the day is kept."""
HOME_MARK, GRID_MARK, NET_MARK = "home", "grid", "net"
"""Names of marks: of the home by balance, of the grid by balance, and of the two counters of the grid meter."""
MADE_FROM: Mapping[str, frozenset[str]] = {
    HOME_MARK: frozenset({"home"}),
    GRID_MARK: frozenset({"imported", "exported", "generator"}),
    NET_MARK: frozenset({"imported", "exported", "generator"}),
}
"""The bridge's own counters that are counted from each mark."""

Parts = Mapping[str, float]
"""Counters (Wh) that an energy is made of, by `+device/name` or `-device/name`."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The counters that an energy was last counted from: their values (Wh) at the unix time `at`.

    `lacking_s` are the seconds of answers since then in which not all of them were good.
    """

    at: UnixTime
    values: dict[str, SavedWattHours]
    lacking_s: Annotated[float, Field(ge=0)] = 0.0


class EnergiesState(State):
    """What is kept of a site's energies. `tallies` holds `since` (unix time), `total` and `carry` (Wh) by name."""

    tallies: Annotated[dict[str, tuple[UnixTime | None, SavedWattHours, SavedWattHours]], SOUND_ENTRIES] = Field(
        default_factory=dict
    )
    marks: Annotated[dict[str, SavedWattHours], SOUND_ENTRIES] = Field(default_factory=dict)
    """Of files of version 1: the meters' counters at their last reading, by `role/name`."""
    counted: Annotated[dict[str, Mark], SOUND_ENTRIES] = Field(default_factory=dict)
    offsets: Annotated[dict[str, SavedWattHours], SOUND_ENTRIES] = Field(default_factory=dict)
    owners: Annotated[dict[str, str], SOUND_ENTRIES] = Field(default_factory=dict)
    published: Annotated[dict[str, SavedWattHours], SOUND_ENTRIES] = Field(default_factory=dict)
    left: Annotated[dict[str, tuple[str, SavedWattHours]], SOUND_ENTRIES] = Field(default_factory=dict)
    battery: tuple[UnixTime, SavedWattHours, SavedWattHours | None] | None = None
    unsettled: SavedWattHours = 0.0
    paired: Totals | None = None
    """The site's counters when the microinverters' sum has changed last, while a meter counts its solar energy."""
    hours: Annotated[dict[str, HoursState], SOUND_ENTRIES] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GridStep:
    """What the grid has given and taken between two readings, in Wh.

    `delivered` and `received` are the meter's own counts; `imported` and `exported` are the net of all phases.
    `estimated` is how much is assumed to have cancelled out within a gap; 0 where there was no gap.
    """

    delivered: float
    received: float
    imported: float
    exported: float
    estimated: float = 0.0


@dataclass(slots=True)
class Netting:
    """Makes import and export from the counters of a grid meter with several phases, which count for themselves.

    Most utility meters net the phases at each instant, so each reading's net counts as import or as export.
    `cancelled` is how much of both has cancelled out at each hour of the day.
    """

    cancelled: HourProfile
    _pending: tuple[float, float] = (0.0, 0.0)
    """Import and export (Wh) since the mark, from readings in which a counter was held or stood still."""
    _raw: tuple[float, float] | None = None
    """The counters (Wh) of the last such reading; `None` if it had none that tell anything."""
    _read_at: float | None = None
    """The unix time of the last such reading; `None` if there was none since the mark."""

    def observe_held(self, raw: tuple[float, float], now: float) -> None:
        """Note a reading in which a counter is held: `raw` are the values (Wh) that the gateway gives."""
        if self._raw is not None and self._read_at is not None:
            taken, given = raw[0] - self._raw[0], raw[1] - self._raw[1]
            longest = MAX_COUNTED_W * (now - self._read_at) / HOUR_S
            if 0 <= taken <= longest and 0 <= given <= longest:
                self._add(taken - given)
        self._raw, self._read_at = raw, now

    def observe_power(self, power: float, now: float) -> None:
        """Note a reading in which a counter stands still: its power (W) tells what flows meanwhile."""
        if self._read_at is not None:
            self._add(power * min(max(0.0, now - self._read_at), LONGEST_STEP_S) / HOUR_S)
        self._raw, self._read_at = None, now

    def _add(self, net: float) -> None:
        """Count the Wh of the net of all phases, + importing."""
        self._pending = self._pending[0] + max(0.0, net), self._pending[1] + max(0.0, -net)

    def step(self, delivered: float, received: float, start: float, now: float, *, is_gap: bool) -> GridStep:
        """Net what the meter's counters have counted from the unix time `start` until now."""
        net, (imported, exported) = delivered - received, self._pending
        was_held, self._pending, self._raw, self._read_at = self._read_at is not None, (0.0, 0.0), None, None
        if was_held:
            net -= imported - exported
            return GridStep(delivered, received, imported + max(0.0, net), exported + max(0.0, -net))
        both = min(delivered, received)
        if not is_gap:
            self.cancelled.add(both, now - start, now)
            return GridStep(delivered, received, max(0.0, net), max(0.0, -net))
        usual = self.cancelled.usual(start, now) if self.cancelled.is_known else 0.0
        estimated = min(both, usual)
        return GridStep(delivered, received, delivered - estimated, received - estimated, estimated)


class Energies:
    """The lifetime energies of one site in Wh: what its meters and its battery add to its counters."""

    def __init__(self, state: EnergiesState, zone: tzinfo | None = None) -> None:
        """`state` is what an earlier run has kept; `zone` is where days begin."""
        tallies = {name: Accumulator(*values) for name, values in state.tallies.items()}
        self.counters = SiteCounters(
            tallies, dict(state.offsets), dict(state.owners), dict(state.published), dict(state.left)
        )
        self._marks, self._version_1 = dict(state.counted), dict(state.marks)
        self._others: dict[str, Mark] = {}
        """Marks of other parts than those that an energy was last counted from."""
        self._lacked_at: dict[str, float] = {}
        self._drawn_at: dict[str, float] = {}
        """When what the inverters draw has last risen, by the name of the mark (unix time)."""
        self._battery = state.battery
        """The last reading of the battery: unix time, W, and Wh stored."""
        self._ahead = 0.0
        """Wh that the battery has given according to retained topics, which are newer than `_battery`."""
        self._unsettled = state.unsettled
        """Net grid energy of the last interval (Wh) that the next one may still cancel."""
        hours = {name: HourProfile.load(state.hours.get(name, ()), zone) for name in HOUR_PROFILES}
        self._imported, self._exported = hours["imported"], hours["exported"]
        self.solar = hours["solar"]
        """The usual solar energy at each hour of the day."""
        self._netting = Netting(hours["cancelled"])
        self._hours = hours

    @property
    def state(self) -> EnergiesState:
        """What must outlive the process."""
        own = self.counters
        return EnergiesState(
            tallies={name: (made.since, made.total, made.carry) for name, made in own.tallies.items()},
            counted=dict(self._marks),
            offsets=dict(own.offsets),
            owners=dict(own.owners),
            published=dict(own.published),
            left=dict(own.left),
            battery=self._battery,
            unsettled=self._unsettled,
            hours={name: profile.state for name, profile in self._hours.items()},
        )

    def seed(self, totals: Mapping[str, float], retained: Mapping[str, float]) -> None:
        """Adopt retained values, which may be newer than the store's.

        Args:
            totals: counters of our own, by name.
            retained: all retained values, by topic.
        """
        own = self.counters
        own.retained = retained
        given_before = self._given_total()
        risen = set()
        for name, total in totals.items():
            known = own.tallies.get(name)
            if known is None:
                own.tallies[name] = Accumulator(None, total)
            elif round(known.total, 3) < total:  # topics have three decimals
                own.tallies[name] = replace(known, total=total)
                risen.add(name)
        self._ahead += self._given_total() - given_before if self._battery else 0.0
        for name in MADE_FROM.keys() & self._marks.keys():
            if risen.intersection(MADE_FROM[name]):
                self._marks[name] = self._advanced(self._marks[name], retained)

    def _advanced(self, mark: Mark, retained: Mapping[str, float]) -> Mark:
        """The mark, raised to retained values that are higher: the retained totals contain that energy already."""
        values = {key: max(value, retained.get(key[1:], value)) for key, value in mark.values.items()}
        values |= {key: self._given_total() for key in values if key[1:] == GIVEN}
        return replace(mark, values=values)

    # The battery

    def integrate(self, power: float, stored: float | None, now: float, period: float = 0.0) -> None:
        """Count battery energy: from its power (W, + discharging), or after a gap from what it holds (Wh).

        `period` is the usual time between two powers, in seconds.
        """
        last, self._battery = self._battery, (now, power, stored)
        seconds = now - last[0] if last else 0.0
        discharged = charged = 0.0
        if last and 0 <= seconds <= max(LONGEST_STEP_S, LONGEST_STEP_PERIODS * period):
            # Each direction for itself: a load that cycles between two readings makes the battery do so, too.
            discharged = (max(0.0, last[1]) + max(0.0, power)) / 2 * seconds / HOUR_S
            charged = (max(0.0, -last[1]) + max(0.0, -power)) / 2 * seconds / HOUR_S
        elif last and last[2] is not None and stored is not None:
            discharged, charged = max(0.0, last[2] - stored), max(0.0, stored - last[2])
        if self._ahead:
            given, self._ahead = discharged - charged - self._ahead, 0.0
            discharged, charged = max(0.0, given), max(0.0, -given)
        self.counters.count("discharged", discharged, now)
        self.counters.count("charged", charged, now)

    def given(self, now: float, longest: float) -> float | None:
        """Wh that the battery has given until now, less those it has taken.

        `None` where its last power is older than `longest` seconds.
        """
        if self._battery is None or not 0 <= now - self._battery[0] <= longest:
            return None
        return self._given_total() + self._battery[1] * (now - self._battery[0]) / HOUR_S

    def _given_total(self) -> float:
        totals = (self.counters.tallies.get(name) for name in ("discharged", "charged"))
        discharged, charged = (0.0 if made is None else made.total for made in totals)
        return discharged - charged

    # What is made from several counters

    def count_net(self, parts: Parts | None, told: tuple[float, ...], now: float, period: float) -> GridStep | None:
        """What a grid meter has counted since its last good reading; `None` where that is unknown.

        `parts` are its two counters, `None` while one of them is held or stands still; `told` are then both values
        that the gateway gives, or its power (W), or nothing. `period` is the usual time between two readings, in
        seconds.
        """
        match told if parts is None else ():
            case (delivered, received):
                self._netting.observe_held((delivered, received), now)
            case (power,):
                self._netting.observe_power(power, now)
        mark = self._marks.get(NET_MARK)
        if self.growth(NET_MARK, parts, now) is None or mark is None or parts is None:
            return None
        self.begin(GRID_MARK, None, now)
        delivered, received = (_grown(mark.values[key], parts[key]) for key in parts)
        return self._netting.step(delivered, received, mark.at, now, is_gap=_is_gap(mark.at, now, period))

    def count_grid(self, imported: float, exported: float, now: float) -> None:
        """Add to what the grid has given and taken (Wh)."""
        self.counters.count("imported", imported, now)
        self.counters.count("exported", exported, now)

    def count_balance(
        self, parts: Parts | None, now: float, period: float, *, is_one_answer: bool, on_generator: bool
    ) -> float:
        """Count the grid from the counters of all other flows; return how many Wh are an estimate.

        `is_one_answer` is whether all parts are of one instant. Otherwise a change of sign may only come from the
        difference of their moments, so it is cancelled within one interval instead of adding to both counters.
        With `on_generator` a generator gives this energy in place of the grid.
        """
        grown = self.growth(GRID_MARK, parts, now)
        if grown is None:
            return 0.0
        net, start = grown
        self.begin(NET_MARK, None, now)
        if on_generator:
            self.counters.count("generator", net, now)
            return 0.0
        if _is_gap(start, now, period) and self._imported.is_known:
            usual = self._imported.usual(start, now), self._exported.usual(start, now)
            rest = net - usual[0] + usual[1]
            self.count_grid(usual[0] + max(0.0, rest), usual[1] + max(0.0, -rest), now)
            return min(usual)
        self._imported.add(max(0.0, net), now - start, now)
        self._exported.add(max(0.0, -net), now - start, now)
        if is_one_answer:
            self.count_grid(max(0.0, net), max(0.0, -net), now)
        elif self._unsettled * net < 0:
            self._unsettled += net
        else:
            self.count_grid(max(0.0, self._unsettled), max(0.0, -self._unsettled), now)
            self._unsettled = net
        return 0.0

    def count_home(self, parts: Parts | None, now: float) -> float:
        """Count the home by balance; return the Wh of a negative balance that had to be dropped."""
        grown = self.growth(HOME_MARK, parts, now)
        return 0.0 if parts is None else self.counters.count("home", grown[0] if grown else 0.0, now)

    def begin(self, name: str, parts: Parts | None, now: float) -> None:
        """Let an energy be counted from these parts on; where they are `None`, from the next ones."""
        self._others.pop(name, None)
        self._lacked_at.pop(name, None)
        if parts is None:
            self._marks.pop(name, None)
        else:
            self._marks[name] = Mark(now, dict(parts))

    def growth(self, name: str, parts: Parts | None, now: float) -> tuple[float, float] | None:
        """What the parts have counted together since they were last complete (Wh), and since when (unix time).

        `parts` is `None` while one of them is missing or held. The result is `None` as long as nothing can be
        said: at first, and when the energy begins to be made from other parts.
        """
        if parts is None:
            self._lack(name, now)
            return None
        mark = self._marks.get(name) or self._earlier_mark(parts)
        mark = mark and _without_removed_battery(mark, parts)
        if mark is not None and mark.values.keys() != parts.keys():
            self._lack(name, now)
            mark = self._others.get(name)
            if mark is None or mark.values.keys() != parts.keys():
                self._others[name] = Mark(now, dict(parts))
                return None
        self.begin(name, parts, now)
        if mark is None:
            return None
        changes = {
            key: value - mark.values[key] if key[1:] == GIVEN else _grown(mark.values[key], value)
            for key, value in parts.items()
        }
        if changes.get(STANDBY):
            longest = STANDBY_MAX_W * max(0.0, now - self._drawn_at.get(name, mark.at)) / HOUR_S
            changes[STANDBY], self._drawn_at[name] = min(changes[STANDBY], longest), now
        return sum(change if key.startswith("+") else -change for key, change in changes.items()), mark.at

    def _lack(self, name: str, now: float) -> None:
        """Note an answer in which the parts are not complete; give the mark up after a week of such answers."""
        passed = min(max(0.0, now - self._lacked_at.get(name, now)), MAX_ANSWER_STEP_S)
        self._lacked_at[name] = now
        if (mark := self._marks.get(name)) is not None:
            self._marks[name] = replace(mark, lacking_s=mark.lacking_s + passed)
            if mark.lacking_s + passed > MARKS_KEPT_S:
                del self._marks[name]

    def _earlier_mark(self, parts: Parts) -> Mark | None:
        """The mark that a state file of version 1 has for these parts."""
        earlier = {key: self._version_1.get(key[1:].removeprefix("meter/")) for key in parts}
        earlier |= {key: self._given_total() for key in parts if key[1:] == GIVEN}
        known = {key: value for key, value in earlier.items() if value is not None}
        return Mark(0.0, known) if len(known) == len(parts) else None


def complete(keys: Iterable[str], values: Values, held: Container[tuple[str, str]]) -> dict[str, float] | None:
    """The counters that an energy is made of, from one answer; `None` where one is missing or held.

    What the inverters draw does not count as held: it stands still by day, so a fall of it would be held all day.
    Its last good value does until then, since it is little.
    """
    found: dict[str, float] = {}
    for key in keys:
        device, _, name = key[1:].rpartition("/")
        if (device, name) not in values or ((device, name) in held and key != STANDBY):
            return None
        found[key] = values[device, name]
    return found


def _without_removed_battery(mark: Mark, parts: Parts) -> Mark:
    """The mark for the same parts without the battery that the site had. A battery that is gone gives nothing."""
    rest = {key: value for key, value in mark.values.items() if key[1:] != GIVEN}
    return replace(mark, values=rest) if rest.keys() == parts.keys() else mark


def _is_gap(start: float, now: float, period: float) -> bool:
    """Whether so much time has passed between two readings that nobody knows what has cancelled out within it."""
    return now - start > max(LONG_GAP_MIN_S, LONG_GAP_PERIODS * period)


def _grown(before: float, value: float) -> float:
    """Wh that a guarded counter has grown by. It falls only where it began again at 0."""
    return value if value < RESTART_SHARE * before else value - before
