"""What is known of one lifetime counter, and what may happen to it."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from pydantic import Field

HOUR = 3_600.0
SLACK = 1_000.0
"""Wh that a counter may always rise by."""
SMALL, SMALL_SHARE = 5_000.0, 0.001
WRAP = 2**32 / HOUR
"""2^32 J in Wh: what a sum of inverters loses when the counter of one of them begins again."""
WRAP_READINGS, READINGS = 2, 3
CONFIRM = 900.0

MOST = 1e12
"""Wh that no counter reaches."""

Number = Annotated[float, Field(ge=-1e15, le=1e15)]


class Cause(StrEnum):
    """Why a reading is held."""

    SMALL = "small"
    FALL = "fall"
    RISE = "rise"
    WRAP = "wrap"


class Kind(StrEnum):
    """What became of a reading.

    `WAITING`: nothing may be published yet. `TAKEN`: a rise that can't be judged. `BACK`: no longer held. `RESET`:
    the counter began again, and so does what is published.
    """

    PUBLISHED = "published"
    WAITING = "waiting"
    TAKEN = "taken"
    HELD = "held"
    BACK = "back"
    REBASED = "rebased"
    RESET = "reset"
    UNWRAPPED = "unwrapped"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is possible for one counter at this reading.

    `cap` in W. `confirm`: seconds that a fall must last. `stall`: seconds for which the source may stand still.
    `wrap`: steps of 2^32 J occur. `doubtful`: nobody knows how long the last good reading is past.
    """

    cap: float
    confirm: float = CONFIRM
    stall: float = 0.0
    wrap: bool = False
    doubtful: bool = False

    def rise(self, seconds: float) -> float:
        return self.cap * max(0.0, seconds) / HOUR + SLACK


@dataclass(frozen=True, slots=True)
class Held:
    """A level that is not believed yet: where it began (`first`, `since`), its newest value, and its proof.

    `readings` counts those that advanced, `wraps` the steps of 2^32 J that explain it (negative: taken away).
    """

    cause: Cause
    first: Number
    since: Number
    raw: Number
    changed_at: Number
    seen_at: Number
    readings: int = 1
    wraps: int = 0

    def goes_on(self, raw: float, now: float, limits: Limits) -> bool:
        return 0 < self.raw <= raw <= self.raw + limits.rise(now - self.changed_at)

    def disturbed(self, raw: float) -> bool:
        """Whether a reading is a fault on top of this level: a zero, or a small fall."""
        return raw == 0 or 0 <= self.raw - raw <= small(self.raw)

    def is_proved(self, now: float, limits: Limits) -> bool:
        if self.cause is Cause.WRAP:
            return self.readings >= WRAP_READINGS
        seconds = limits.confirm if self.cause is Cause.FALL else CONFIRM
        return self.readings >= READINGS and now - self.since >= seconds

    def seen(self, raw: float, now: float) -> "Held":
        if raw > self.raw:
            return replace(self, raw=raw, changed_at=now, seen_at=now, readings=self.readings + 1)
        return replace(self, seen_at=now)


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of a counter. `raw` is its last good reading (`None`: there was none yet).

    Times are unix times. `changed_at` is when `raw` last changed, `started_at` when a counter without history was
    first published.
    `signed` counters may fall, and are not guarded. `peak` is the highest power (W) that was read twice in a row.
    """

    raw: Number | None = None
    offset: Number = 0.0
    changed_at: Number = 0.0
    seen_at: Number = 0.0
    started_at: Number | None = None
    wraps: int = 0
    held: Held | None = None
    signed: bool = False
    peak: Number = 0.0
    power: Number = 0.0

    @property
    def mark(self) -> float | None:
        """What is published: never negative."""
        return None if self.raw is None else max(0.0, round(self.raw + self.offset, 3))

    @property
    def is_held(self) -> bool:
        return self.raw is not None and self.held is not None

    @property
    def newest(self) -> float:
        return max(self.changed_at, self.seen_at, self.held.seen_at if self.held else 0.0)

    def on_level(self, raw: float, now: float, offset: float) -> "Account":
        """The same counter, believed on another level."""
        return replace(self, raw=raw, offset=offset, changed_at=now, seen_at=now, held=None)

    def at_least(self, mark: float, when: float) -> "Account":
        """What subscribers have seen already: nothing below it may follow."""
        if self.raw is None:
            return replace(self, raw=mark, changed_at=when, seen_at=when, held=None)
        if mark > (self.mark or 0.0):
            when = max(when, self.changed_at)
            return replace(self, raw=mark - self.offset, changed_at=when, seen_at=max(when, self.seen_at))
        return self

    def with_power(self, power: float) -> "Account":
        peak = max(self.peak, min(self.power, power))
        return self if (power, peak) == (self.power, self.peak) else replace(self, power=power, peak=peak)

    def untimed(self, now: float) -> "Account":
        """The same after the clock was set: no proof that takes time is kept, and nothing lies ahead."""
        latest = now - 1
        changed_at, seen_at = min(self.changed_at, latest), min(self.seen_at, latest)
        return replace(self, changed_at=changed_at, seen_at=seen_at, started_at=None, held=None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to publish (`None`: nothing yet), and what to tell where something happened."""

    kind: Kind
    value: float | None
    text: str = ""


def small(last: float) -> float:
    """The Wh that a counter may go back by when the gateway boots."""
    return min(SMALL, SMALL_SHARE * last)
