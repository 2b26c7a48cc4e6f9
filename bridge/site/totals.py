"""The lifetime counters of `site/*`: the gateway's, which a site passes on, and those that the bridge makes.

Two observers tell when the gateway's counters can be used for that: `FrozenCounters` and `InverterSum`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bridge.model import DAY_S, HOUR_S, NEVER
from bridge.site.selection import DELIVERED, METERS, RECEIVED, Values
from bridge.state import SavedWattHours, UnixTime

OURS = "ours"
"""The owner of counters that the bridge makes."""
OWNER_SEPARATOR = ", "
"""Stands between the devices of an owner, if a counter is the sum of several."""
RESTART_SHARE = 0.9
"""A guarded counter that falls below this share of itself has restarted at 0."""
DEAD_BAND_WH = 10.0
"""Wh by which two retained topics may differ because they were published at different times."""
FROZEN_WH, FROZEN_MIN_W, FROZEN_STEP_S = 20.0, 50.0, 60.0
"""A counter stands still once this energy has flowed past it, at this power or more. Between two readings no more
seconds count, so that an outage says nothing.
"""
FROZEN_READINGS = 2
FROZEN_MAX_S = 6 * HOUR_S
"""A counter that has stood still for longer does not count at all; waiting for it would stop the balances."""
SUM_STILL_S = 1_800.0
"""Seconds without a change after which the microinverters' sum is up to date."""
PAIRED_S = 1_800.0
"""Seconds for which the site's counters at a change of that sum may be used to continue from the sum."""
MAX_CARRY_WH, MAX_CARRY_S = 500.0, 900.0
"""A negative change is subtracted from later ones up to this energy, and within this time."""
NEGATIVE_LOG_PAUSE_S = DAY_S
"""Seconds between two log lines about a negative balance that goes on."""


def owner_of(devices: Iterable[str]) -> str:
    """The owner of a counter that is the sum of these devices' counters."""
    return OWNER_SEPARATOR.join(devices)


def devices_of(owner: str) -> Sequence[str]:
    """The devices whose counters make up the counter of this owner."""
    return owner.split(OWNER_SEPARATOR)


@dataclass(frozen=True, slots=True)
class Accumulator:
    """A counter of our own in Wh. It starts at 0 at the unix time `since` (`None`: unknown), and never falls.

    A negative change is carried over and subtracted from the next positive ones, since parts of a sum are read at
    slightly different times. `carry_at` is the unix time at which the carry began.
    """

    since: float | None
    total: float = 0.0
    carry: float = 0.0
    carry_at: float | None = None

    def add(self, change: float, now: float) -> "Accumulator":
        change += self.carry
        if change < 0:
            return replace(self, carry=change, carry_at=now if self.carry_at is None else self.carry_at)
        return replace(self, total=self.total + change, carry=0.0, carry_at=None)

    def dropped(self, now: float) -> float:
        """The Wh of a carry that is too large, or too old, to come from different reading times; 0 if it is not."""
        is_old = self.carry_at is not None and now - self.carry_at > MAX_CARRY_S
        return -self.carry if is_old or self.carry < -MAX_CARRY_WH else 0.0


@dataclass(slots=True)
class NegativeBalance:
    """Makes the warning that an energy by balance would be negative, once in `NEGATIVE_LOG_PAUSE_S`."""

    _warned_at: float = NEVER

    def warning(self, whose: str, dropped: float, now: float) -> str | None:
        """The warning for the log; `None` if nothing was dropped, or the log has a recent one.

        Args:
            whose: the first words of the warning, such as "the home's".
            dropped: Wh that were not counted.
            now: unix time.
        """
        if dropped <= 0 or now - self._warned_at < NEGATIVE_LOG_PAUSE_S:
            return None
        self._warned_at = now
        return (
            f"{whose} energy would be negative by {dropped:.0f} Wh: not counted; a clamp may be reversed, or "
            "another producer may be connected behind the grid meter"
        )


@dataclass(slots=True)
class SiteCounters:
    """The lifetime counters of one site, in Wh.

    `tallies` are the counters of our own, by name. `offsets`, `owners` and `published` belong to those of `site/*`:
    what is added to the gateway's counter, whose counter it is, and the last published value. `left` has the owner
    before the present one, and its offset.
    """

    tallies: dict[str, Accumulator] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    left: dict[str, tuple[str, float]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    """Counters of the gateway that were read in this run. The stored value of another one may be out of date."""
    retained: Mapping[str, float] = field(default_factory=dict)
    """Retained values of an earlier run, by topic. They serve for counters that the store does not have."""

    def count(self, name: str, change: float, now: float) -> float:
        """Add to a counter of our own; it begins now if there is none. Returns the Wh that had to be dropped.

        It continues from a gateway's counter that it replaces.
        """
        known = self.tallies.get(name, Accumulator(now))
        if self.owners.get(name, OURS) != OURS:
            self.owners[name], known = OURS, replace(known, total=self.published.get(name, known.total))
        made = known.add(change, now)
        dropped, self.published[name] = made.dropped(now), made.total
        self.tallies[name] = replace(made, carry=0.0, carry_at=None) if dropped else made
        return dropped

    def made(self, name: str) -> Accumulator | None:
        """A counter of our own; `None` before it begins, and until it is counted after one of the gateway."""
        tally = self.tallies.get(name)
        if tally is None or self.owners.get(name, OURS) != OURS:
            return None
        self.owners[name], self.published[name] = OURS, tally.total
        return tally

    def passed_on(self, name: str, owner: str, value: float, topics: tuple[str, str]) -> float:
        """Publish a counter of the gateway as one of the site, and return its value.

        If the counter now comes from another owner, an offset makes the published value continue. So `value` must
        have just been read: one from before the other owner would make the site count the time between twice. An
        owner that comes back has the offset that it had, unless the value would fall: it has gone on counting.

        Args:
            name: the site's counter.
            owner: the devices that the value comes from.
            value: the gateway's counter in Wh.
            topics: the site's topic and the owner's; their retained values give the offset if the store has none.
        """
        offset, before = self.offsets.get(name, 0.0), self.published.get(name)
        if before is None or name not in self.owners:
            offset = self._earlier_offset(value, *topics)
        elif self.owners[name] != owner:
            back, earlier = self.left.get(name, ("", 0.0))
            self.left[name] = self.owners[name], offset
            offset = max(before - value, earlier) if back == owner else before - value
        elif value < RESTART_SHARE * (before - offset):
            offset = max(0.0, before) if offset > 0 else 0.0
        self.offsets[name], self.owners[name] = offset, owner
        self.published[name] = round(value + offset, 3)
        self.read.add(name)
        return self.published[name]

    def take_over(self, name: str, owner: str, value: float, offset: float) -> None:
        """Let a counter go on with another owner's and this offset, or a higher one that keeps it from falling."""
        offset = max(offset, self.published.get(name, 0.0) - value)
        if name in self.owners and self.owners[name] != owner:
            self.left[name] = self.owners[name], self.offsets.get(name, 0.0)
        self.offsets[name], self.owners[name], self.published[name] = offset, owner, round(value + offset, 3)

    def is_unread(self, name: str, owner: str) -> bool:
        """Whether a counter of this owner was not read in this run. It may show the value at which it is held."""
        return name not in self.read and self.owners.get(name) == owner

    def latest_devices(self, name: str) -> frozenset[str]:
        """The devices that a counter comes from, and those that it came from before."""
        owners = (self.owners.get(name, ""), self.left.get(name, ("",))[0])
        return frozenset(device for owner in owners for device in devices_of(owner))

    def _earlier_offset(self, value: float, ours: str, theirs: str) -> float:
        """The offset by both retained topics. Without that of the owner, it only keeps the value from falling."""
        shown = self.retained.get(ours)
        if shown is None:
            return 0.0
        offset = shown - self.retained.get(theirs, min(shown, value))
        return offset if abs(offset) > DEAD_BAND_WH else 0.0

    def leave_out(self, **changes: float) -> None:
        """Subtract from the grid's counters what the grid's meter has counted of a generator."""
        for name, change in changes.items():
            if name in self.offsets:
                self.offsets[name] -= change


@dataclass(frozen=True, slots=True)
class _Standing:
    """A counter that has this value (Wh) since a unix time, and was last read `at` another one.

    `energy` (Wh) has flowed past it since then; `readings` counts the readings that repeated the value.
    """

    value: float
    since: float
    at: float
    energy: float = 0.0
    readings: int = 0

    @property
    def is_frozen(self) -> bool:
        is_long = self.readings >= FROZEN_READINGS and self.energy >= FROZEN_WH
        return is_long and self.at - self.since <= FROZEN_MAX_S


class FrozenCounters:
    """Finds counters of meters that stand still although power flows: firmware stops counting for up to an hour.

    Such a reading is no good part of a balance. The counter catches up later, and is then good again.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Standing] = {}

    def observe(self, values: Values, now: float) -> frozenset[tuple[str, str]]:
        """Take note of an answer of the meters; return the counters that stand still in it."""
        for device in METERS.values():
            power = values.get((device, "power"), 0.0)
            for name, flowing in ((DELIVERED, power), (RECEIVED, -power)):
                value = values.get((device, name))
                if value is not None:
                    self._note((device, name), value, flowing if flowing >= FROZEN_MIN_W else 0.0, now)
        return frozenset(pair for pair, seen in self._seen.items() if seen.at == now and seen.is_frozen)

    def _note(self, pair: tuple[str, str], value: float, flowing: float, now: float) -> None:
        seen = self._seen.get(pair)
        if seen is None or value != seen.value:
            self._seen[pair] = _Standing(value, now, now)
            return
        energy = flowing * min(max(0.0, now - seen.at), FROZEN_STEP_S) / HOUR_S
        self._seen[pair] = replace(seen, at=now, energy=seen.energy + energy, readings=seen.readings + 1)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters (Wh) at the unix time `at`: the microinverters' sum, and those of the site.

    `others` is the sum of the counters that the home is made of beside solar. `third_party` is the meter of other
    makers' panels, which is a part of `solar` and of `others`. `None` for a counter that the site does not have.
    """

    at: UnixTime
    pcu: SavedWattHours
    solar: SavedWattHours | None = None
    home: SavedWattHours | None = None
    others: SavedWattHours | None = None
    third_party: SavedWattHours | None = None

    def offset(self, third_party: float | None) -> float | None:
        """What to add to the microinverters' sum, and to the meter of other makers' panels, to go on from `solar`.

        `None` where that is unknown: then that meter counted as solar, and now it does not, or the opposite.
        """
        if self.solar is None or (self.third_party is None) != (third_party is None):
            return None
        return self.solar - self.pcu - (self.third_party or 0.0)


@dataclass(slots=True)
class InverterSum:
    """The microinverters' sum, which changes a few times an hour.

    `is_new` is whether its newest answer had another value. `paired` are the site's counters at the last change
    at which the site's solar energy was read from a meter.
    """

    value: float | None = None
    changed_at: float = 0.0
    is_new: bool = False
    paired: Totals | None = None

    @property
    def paired_at(self) -> float:
        return self.paired.at if self.paired else NEVER

    def paired_until(self, read_at: float | None) -> Totals | None:
        """The site's counters at that change, if its meter was read last at this unix time; `None`: in no run."""
        is_old = self.paired is not None and read_at is not None and read_at - self.paired.at > PAIRED_S
        return None if is_old else self.paired

    def offset(self, read_at: float | None, third_party: float | None, otherwise: float) -> float:
        """What to add to the sum (Wh) to go on from a meter that was read last at the unix time `read_at`."""
        paired = self.paired_until(read_at)
        offset = None if paired is None else paired.offset(third_party)
        return otherwise if offset is None else offset

    def observe(self, value: float, now: float) -> None:
        self.is_new = value != self.value
        if self.is_new:
            self.value, self.changed_at = value, now

    def is_moment(self, now: float) -> bool:
        """Whether the sum is up to date: it has just changed, or stands still as at night."""
        return self.is_new or now - self.changed_at >= SUM_STILL_S
