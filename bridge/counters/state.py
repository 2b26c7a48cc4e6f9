"""What is known of one lifetime counter, and what is possible for it. Energies are in Wh, times are unix times."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from bridge.model import DAY_S, HOUR_S, MINUTE_S
from bridge.state import UnixTime

YEAR_2020 = 1_577_836_800.0
"""Earlier unix times come from a clock that was never set."""
SLACK_WH = 1_000.0
"""Wh by which a counter may always rise."""
SMALL_FALL_WH, SMALL_FALL_SHARE = 5_000.0, 0.001
REWIND_WH = 50.0
"""A smaller fall is not worth an offset: the counter passes it soon."""
NOISE_WH = 1.0
"""A smaller fall is noise of an idle meter."""
CONFIRM_S = 15 * MINUTE_S
"""Seconds that a level must last before it is believed."""
WRAP_READINGS, LEVEL_READINGS = 3, 3
"""Advancing readings, the first included, that confirm a step of 2^32 J, and any other level."""
GAP_S, GAP_INTERVALS = 2 * MINUTE_S, 3.0
"""A counter was not read between two looks that lie further apart than both: seconds, and intervals before."""
POWER_HEADROOM = 1.25
"""Factor by which energy can exceed the integral of the power that was read with it."""
SPARSE_S = MINUTE_S
"""Between two looks that lie further apart, the power can have been any."""
STANDSTILL_S = 30 * MINUTE_S
"""A counter without a power beside it that stands still for longer has counted nothing before."""
WEEKS = 5
"""Calendar weeks whose best days are kept: those of the last month."""
WEEK_DAYS = 7

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Day = Annotated[int, Field(ge=0, le=2**17)]
"""Days since 1970, until 2328."""


class Cause(StrEnum):
    """Why a reading is held: a zero, a small fall, a fall, a rise, or a step of 2^32 J."""

    ZERO = "zero"
    SMALL = "small"
    FALL = "fall"
    RISE = "rise"
    WRAP = "wrap"


FALLS = {Cause.SMALL, Cause.FALL}


@dataclass(frozen=True, slots=True)
class CounterLimits:
    """What is possible for one counter at this reading.

    `cap` is the highest power in W. `confirm` is the number of seconds that a fall must last. `stall` is the number
    of seconds for which the source may keep its value. `wrap` is set if steps of 2^32 J occur. `doubtful` is set if
    the time since the last good reading is unknown.
    """

    cap: float
    confirm: float = CONFIRM_S
    stall: float = 0.0
    wrap: bool = False
    doubtful: bool = False

    def energy(self, seconds: float) -> float:
        """Wh that can be counted in this time."""
        return self.cap * max(0.0, seconds) / HOUR_S

    def rise(self, seconds: float) -> float:
        """Wh by which the counter can rise in this time."""
        return self.energy(seconds) + SLACK_WH


@dataclass(frozen=True, slots=True)
class Held:
    """A level that is not believed yet.

    It began with `first` (Wh) at `since`; `raw` is its newest value. `readings` counts its advancing readings.
    `wraps` is the number of steps of 2^32 J that explain it; it is negative for steps that are undone. `counted`
    (Wh, by the power) and `unread` (seconds) are those of `CounterState`, but since the last good reading.
    `possible` are the Wh that a counter can have counted if it began at 0 after that.
    """

    cause: Cause
    first: Number
    since: UnixTime
    raw: Number
    changed_at: UnixTime
    seen_at: UnixTime
    readings: int = 1
    wraps: int = 0
    counted: Number = 0.0
    unread: Number = 0.0
    possible: Number = 0.0

    def continues(self, raw: float, now: float, limits: CounterLimits) -> bool:
        """Whether a reading continues this level: it has advanced by no more than is possible."""
        return self.raw > 0 and self.raw - NOISE_WH < raw <= self.raw + limits.rise(now - self.changed_at)

    def is_glitch(self, raw: float) -> bool:
        """Whether a reading is another fault on top of this level: a fall that is not worth an offset."""
        return 0 < self.raw - raw <= REWIND_WH

    def is_confirmed(self, now: float, limits: CounterLimits) -> bool:
        """Whether the level has lasted long enough to be believed."""
        lasted = now - self.since
        if self.cause is Cause.WRAP:
            return self.readings >= WRAP_READINGS or lasted >= CONFIRM_S
        return self.readings >= LEVEL_READINGS and lasted >= (
            limits.confirm if self.cause is Cause.FALL else CONFIRM_S
        )

    def with_reading(self, raw: float, now: float) -> "Held":
        if raw > self.raw:
            return replace(self, raw=raw, changed_at=now, seen_at=now, readings=self.readings + 1)
        return replace(self, seen_at=now)


@dataclass(frozen=True, slots=True)
class BestDays:
    """How much a counter has counted on its best day of each of the last weeks. Days are those of UTC.

    `day` (days since 1970) began with the published `first` (Wh). `weeks` has the Wh of the best day of each week,
    by the number of weeks since 1970.
    """

    day: Day = 0
    first: Number = 0.0
    weeks: tuple[tuple[Day, Number], ...] = ()

    @property
    def best(self) -> float | None:
        """Wh of the best day; `None` before one has ended."""
        return max((energy for _, energy in self.weeks), default=None)

    def with_reading(self, published: float, now: float) -> "BestDays":
        """A copy that has seen this published value."""
        today = int(now // DAY_S)
        passed, energy = today - self.day, published - self.first
        if not passed and energy >= 0:
            return self
        if energy < 0 or not 0 < passed < WEEKS * WEEK_DAYS:
            return BestDays(today, published)
        week = self.day // WEEK_DAYS
        weeks = {number: best for number, best in self.weeks if number > week - WEEKS}
        weeks[week] = max(energy / passed, weeks.get(week, 0.0))
        return BestDays(today, published, tuple(weeks.items()))


@dataclass(frozen=True, slots=True)
class CounterState:
    """What is known of one counter.

    `raw` is the last good reading; `None` before the first. `offset` is added to what is published. `changed_at` is
    when `raw` last changed, `seen_at` when it was last read and good.

    Since `raw` changed, `counted` (Wh) is the integral of the power that was read with it, and `unread` the seconds
    in which it was not read. `interval` are the seconds between the last two looks. `power` is the last power (W),
    and `peak` the highest power that was read twice in a row.

    `wraps` counts the steps of 2^32 J in `offset`. `undo` is what the last new level has added to `offset`, at
    `undo_at`. `signed` counters may fall, and are not guarded.
    """

    raw: Number | None = None
    offset: Number = 0.0
    changed_at: UnixTime = 0.0
    seen_at: UnixTime = 0.0
    wraps: int = 0
    held: Held | None = None
    signed: bool = False
    peak: Number = 0.0
    power: Number = 0.0
    counted: Number = 0.0
    unread: Number = 0.0
    interval: Number = 0.0
    undo: Number = 0.0
    undo_at: UnixTime = 0.0
    days: BestDays = BestDays()

    @property
    def published(self) -> float | None:
        """The published value in Wh, which is never negative."""
        return None if self.raw is None else max(0.0, round(self.raw + self.offset, 3))

    @property
    def is_held(self) -> bool:
        return self.raw is not None and self.held is not None

    @property
    def last_seen_at(self) -> float:
        """When it was last read, good or not."""
        return max(self.changed_at, self.seen_at, self.held.seen_at if self.held else 0.0)

    def is_gap(self, now: float) -> bool:
        """Whether the counter was not read since the last look, as measured by the interval before."""
        return now - self.last_seen_at > max(GAP_S, GAP_INTERVALS * self.interval)

    def since_look(self, now: float, power: float | None) -> tuple[float, float, float]:
        """Seconds since the last look, of these the seconds in which it was not read, and Wh by the power (W).

        While a fault is held, the counter is not read: zeros, for one, come with a power of 0.
        """
        is_known = self.last_seen_at >= YEAR_2020
        interval = max(0.0, now - self.last_seen_at) if is_known else 0.0
        is_true = self.held is None or self.held.cause is Cause.SMALL
        unread = interval if not is_true or self.is_gap(now) else 0.0
        counted = 0.0 if unread or power is None else (self.power + abs(power)) / 2 * interval / HOUR_S
        return interval, unread, counted

    def after_look(self, now: float, power: float | None) -> "CounterState":
        """A copy that knows what can have been counted since the last look. `power` (W) was read with it."""
        interval, unread, counted = self.since_look(now, power)
        held = self.held and replace(
            self.held, counted=self.held.counted + counted, unread=self.held.unread + unread
        )
        return self.with_power(
            power, held=held, interval=interval, counted=self.counted + counted, unread=self.unread + unread
        )

    def with_power(self, power: float | None, **changes: Any) -> "CounterState":
        """A copy that has seen this power in W, and has these other changes."""
        watts = abs(power or 0.0)
        return replace(self, power=watts, peak=max(self.peak, min(self.power, watts)), **changes)

    def good(self, raw: float, now: float, offset: float | None = None) -> "CounterState":
        """A copy whose last good reading is `raw` (Wh), perhaps with a new `offset`."""
        offset = self.offset if offset is None else offset
        if raw == self.raw and offset == self.offset:
            return replace(self, seen_at=now, held=None)
        return replace(
            self, raw=raw, offset=offset, changed_at=now, seen_at=now, held=None, counted=0.0, unread=0.0
        )

    def at_least(self, published: float, when: float, now: float, stall: float = 0.0) -> "CounterState":
        """A copy that publishes no less than the Wh that were published at the time `when`; 0 if unknown.

        The counter may have stood still for `stall` seconds before that time.
        """
        when = when if when <= now else 0.0
        if self.raw is None:
            when = when or now
            return replace(self, raw=published, changed_at=when - stall, seen_at=when, held=None)
        if published > (self.published or 0.0):
            when = max(when, self.changed_at)
            raw, seen_at = published - self.offset, max(when, self.seen_at)
            changed_at = max(when - stall, self.changed_at)
            return replace(
                self, raw=raw, changed_at=changed_at, seen_at=seen_at, held=None
            )  # it has counted on since
        return self

    def after_clock_change(self, now: float) -> "CounterState":
        """A copy for after the clock was set: no time lies in the future, and a held level starts anew."""
        latest = now - 1
        return replace(self, changed_at=min(self.changed_at, latest), seen_at=min(self.seen_at, latest), held=None)


def small_fall(last: float) -> float:
    """Wh by which a counter may go back when the gateway restarts."""
    return min(SMALL_FALL_WH, SMALL_FALL_SHARE * last)


@dataclass(frozen=True, slots=True)
class Observation:
    """A reading, compared with the last good one (`last`).

    `before` is the state before this look. `is_metered` is set if the power that was read with the counter tells
    what it counts: not where the counter may stand still meanwhile.
    """

    before: CounterState
    state: CounterState
    last: float
    raw: float
    now: float
    limits: CounterLimits
    is_metered: bool

    @property
    def step(self) -> float:
        return self.raw - self.last

    @property
    def published(self) -> float:
        return self.state.published or 0.0

    @property
    def is_gap(self) -> bool:
        """Whether the counter was not read since the last look."""
        return self.before.is_gap(self.now)

    @property
    def is_small_fall(self) -> bool:
        return 0 < -self.step <= small_fall(self.last)

    @property
    def slack(self) -> float:
        """Wh by which the counter can have risen since it changed."""
        counted = self.while_read + self.limits.energy(self.state.unread)
        return SLACK_WH + min(counted, self.limits.energy(self.now - self.state.changed_at))

    @property
    def while_read(self) -> float:
        """Wh that it can have counted while it was read: what its power tells, or for half an hour any power."""
        if self.is_metered:
            return POWER_HEADROOM * self.state.counted + self.between_looks
        still = min(self.now - self.state.changed_at - self.state.unread, STANDSTILL_S)
        return self.limits.energy(max(still, 0.0 if self.is_gap else self.state.interval))

    @property
    def between_looks(self) -> float:
        """Wh that the powers of this look and of the last one do not tell, since these lie far apart."""
        is_sparse = self.state.interval > SPARSE_S and not self.is_gap
        return self.limits.energy(self.state.interval) if is_sparse else 0.0

    @property
    def possible(self) -> float:
        """Wh that the counter can have counted if it began at 0 after the last good reading."""
        if self.is_metered:
            counted, unread = self.since_good
            return POWER_HEADROOM * counted + self.between_looks + self.limits.rise(min(unread, DAY_S))
        good_at = max(self.state.changed_at, self.state.seen_at - self.limits.stall)
        return self.limits.rise(min(self.now - good_at, DAY_S))

    @property
    def since_good(self) -> tuple[float, float]:
        """Wh by the power, and seconds in which it was not read, since the last good reading."""
        if self.state.held:
            return self.state.held.counted, self.state.held.unread
        return self.state.counted - self.before.counted, self.state.unread - self.before.unread

    def counting(self, seconds: float) -> float:
        """The largest rise (Wh) in this time that looks like counting, and not like a jump."""
        most = self.limits.energy(seconds)
        if self.is_metered and not self.is_gap:
            watts = max(self.before.power, self.state.power)
            most = min(most, POWER_HEADROOM * watts * seconds / HOUR_S + self.between_looks)
        return most + REWIND_WH

    def level(self, cause: Cause, wraps: int = 0) -> Held:
        """The level that this reading belongs to: the one that is held already, or a new one."""
        held = self.state.held
        if held and (held.cause is cause or {held.cause, cause} == FALLS):
            if held.continues(self.raw, self.now, self.limits):
                return held.with_reading(self.raw, self.now)
            if held.is_glitch(self.raw):
                return held.with_reading(held.raw, self.now)
        counted, unread = self.since_good
        return Held(
            *(cause, self.raw, self.now, self.raw, self.now, self.now),
            wraps=wraps,
            counted=counted,
            unread=unread,
            possible=self.possible,
        )
