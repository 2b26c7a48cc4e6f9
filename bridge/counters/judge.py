"""One lifetime counter and one reading of it.

How the rules are read where they leave room:

- A rise is judged by the time since the counter last rose. But while a rise is held, readings that go on from it do
  not become possible by waiting: the step was made at once.
- A fall is passed on only where a reset to 0 explains it: the new level could have been counted since the last good
  reading (a day at most), it is less than what a missing leg of two or three leaves, and Home Assistant will see a
  reset. Else it is rebased, which counts the same energy without a fall.
- A rebase takes out the step alone: what the new level counted while it was held is published.
- Three advancing readings are three, the first of the new level included. Zeros and small falls in between are
  faults of their own, and do not begin the proof anew.
- A step of 2^32 J is told from others only while the slack is a small share of it.
- Falls below 1 Wh are noise of an idle meter: the value stays, and nothing is said.
"""

from dataclasses import dataclass, replace

from bridge.counters.account import CONFIRM, MOST, WRAP, Account, Cause, Held, Kind, Limits, Verdict, small

DAY = 86_400.0
YEAR_2020 = 1_577_836_800.0
"""Clocks that were never set show times before."""
NOISE = 1.0
MOST_WRAPS = 3
WRAP_SLACK = WRAP / 4
FRESH = 600.0
"""Seconds after a first start in which a larger rise is taken as it is: there is no history to protect."""
LEG = 0.3
"""Less than what is left of a counter without one leg of two, or two of three."""
RESET, RESET_MARGIN = 0.9, 2.0
"""Home Assistant takes a fall below this share for a reset; what it has may differ from ours by the dead band."""


def advance(account: Account | None, raw: float, now: float, limits: Limits) -> tuple[Account, Verdict]:
    """What one reading makes of a counter."""
    account, raw = account or Account(), min(max(0.0, raw), MOST)
    if account.raw is None:
        return _begin(account, raw, now)
    if account.seen_at < YEAR_2020 or now < account.seen_at:
        limits = replace(limits, doubtful=True)
    look = _Look(account, account.raw, raw, now, limits)
    if look.is_good:
        return _publish(look)
    held = look.level()
    if held.is_proved(now, limits):
        return _unwrap(look, held) if held.cause is Cause.WRAP else _settle(look, held)
    is_news = account.held is None or (account.held.cause is Cause.SMALL and held.cause is not Cause.SMALL)
    text = _complaint(look, held) if is_news else ""
    return replace(account, held=held), Verdict(Kind.HELD, account.mark, text)


def _begin(account: Account, raw: float, now: float) -> tuple[Account, Verdict]:
    """Without history the first reading is taken; a zero only when it stays, since a reboot shows zeros."""
    held = account.held or Held(Cause.FALL, raw, now, raw, now, now)
    if raw == 0 and now - held.since < CONFIRM:
        return replace(account, held=held), Verdict(Kind.WAITING, None)
    begun = account.on_level(raw, now, offset=0.0)
    return replace(begun, started_at=now if raw else None), Verdict(Kind.PUBLISHED, begun.mark)


@dataclass(frozen=True, slots=True)
class _Look:
    """A reading beside `last`, the last good one."""

    account: Account
    last: float
    raw: float
    now: float
    limits: Limits

    @property
    def step(self) -> float:
        return self.raw - self.last

    @property
    def slack(self) -> float:
        return self.limits.rise(self.now - self.account.changed_at)

    @property
    def is_small(self) -> bool:
        return 0 < -self.step <= small(self.last)

    @property
    def wraps(self) -> int:
        """How many steps of 2^32 J explain a fall; negative for the rise that takes back those we added."""
        if not self.limits.wrap or self.slack >= WRAP_SLACK:
            return 0
        count = -round(self.step / WRAP)
        is_possible = -small(self.last) <= self.step + count * WRAP <= self.slack
        return count if is_possible and -min(self.account.wraps, MOST_WRAPS) <= count <= MOST_WRAPS else 0

    @property
    def is_good(self) -> bool:
        if self.step < 0:
            return -self.step < NOISE
        if self.wraps:
            return False
        return self.is_taken or (self.step <= self.slack and not self.is_high)

    @property
    def is_taken(self) -> bool:
        """Whether any rise is taken as it is."""
        started_at = self.account.started_at
        return self.limits.doubtful or (started_at is not None and self.now - started_at <= FRESH)

    @property
    def is_high(self) -> bool:
        """Whether a held rise goes on. After a gap in the readings it may as well be what was counted meanwhile."""
        held = self.account.held
        if held is None or held.cause is not Cause.RISE or self.raw < held.raw:
            return False
        return self.now - held.seen_at <= self.limits.confirm

    def level(self) -> Held:
        """Where this reading belongs: to the level that is held already, or to a new one."""
        held = None if self.is_small else self.account.held
        if held and held.goes_on(self.raw, self.now, self.limits):
            return held.seen(self.raw, self.now)
        if held and held.cause is not Cause.SMALL and held.disturbed(self.raw):
            return held.seen(held.raw, self.now)
        return Held(self.cause, self.raw, self.now, self.raw, self.now, self.now, wraps=self.wraps)

    @property
    def cause(self) -> Cause:
        if self.is_small:
            return Cause.SMALL
        if self.wraps:
            return Cause.WRAP
        return Cause.FALL if self.step < 0 else Cause.RISE


# What becomes of a reading


def _publish(look: _Look) -> tuple[Account, Verdict]:
    changed_at = look.now if look.step > 0 else look.account.changed_at
    raw = max(look.raw, look.last)
    good = replace(look.account, raw=raw, changed_at=changed_at, seen_at=look.now, held=None)
    if look.step > look.slack:
        reason = "nobody knows how long it took" if look.limits.doubtful else "there is no history yet"
        return good, Verdict(Kind.TAKEN, good.mark, f"rose by {look.step:.0f}: taken as it is, since {reason}")
    if look.account.held:
        return good, Verdict(Kind.BACK, good.mark, f"is back at {look.raw:.0f}: no longer held")
    return good, Verdict(Kind.PUBLISHED, good.mark)


def _unwrap(look: _Look, held: Held) -> tuple[Account, Verdict]:
    """What went back a little besides stays on the last good value."""
    step = held.wraps * WRAP
    raw = max(held.raw, look.last - step)
    good = look.account.on_level(raw, look.now, look.account.offset + step)
    good = replace(good, wraps=good.wraps + held.wraps)
    what = "an inverter's counter began again" if step > 0 else "an earlier step of an inverter's counter is undone"
    text = f"{what}: {step:+.3f} from now on, offset {good.offset:+.3f}"
    return good, Verdict(Kind.UNWRAPPED, good.mark, text)


def _settle(look: _Look, held: Held) -> tuple[Account, Verdict]:
    """A level that has proved itself: the counter began again, or its step is taken out."""
    mark = look.account.mark or 0.0
    if _is_reset(look, held, mark):
        good = replace(look.account.on_level(held.raw, look.now, offset=0.0), wraps=0)
        return good, Verdict(Kind.RESET, good.mark, f"began again: {held.raw:.0f} after {mark:.0f}")
    counted = min(held.raw - held.first, look.limits.rise(look.now - held.since))
    good = look.account.on_level(held.raw, look.now, offset=mark + counted - held.raw)
    text = f"stays at another level: {held.first:.0f} after {look.last:.0f}; the step is not counted"
    return good, Verdict(Kind.REBASED, good.mark, f"{text}, offset {good.offset:+.3f} from now on")


def _is_reset(look: _Look, held: Held, mark: float) -> bool:
    """Whether Home Assistant counts the new value rightly: as what was counted since the counter began again."""
    if look.limits.doubtful or held.first >= LEG * mark or held.raw >= RESET * mark - RESET_MARGIN:
        return False
    good_at = max(look.account.changed_at, look.account.seen_at - look.limits.stall)
    points = ((held.first, held.since), (held.raw, look.now))
    return all(raw <= look.limits.rise(min(when - good_at, DAY)) for raw, when in points)


def _complaint(look: _Look, held: Held) -> str:
    if held.cause is Cause.SMALL:
        return f"went back from {look.last:.0f} to {look.raw:.0f}: held until it is passed again"
    moved = "rose" if look.step > 0 else "fell"
    return f"{moved} from {look.last:.0f} to {look.raw:.0f}, which can't be: held at the last good value"
