"""The rules that apply to a reading of a lifetime counter. Each gives a ruling or `None`; the first ruling counts.

Where docs/numbers.md leaves room, these are the rules:

- A new level, below or above the last good reading, needs three advancing readings, the first included. Zeros and
  falls below 50 Wh between them are faults of their own, and do not restart the count.
- A new level removes only the step: what the counter counts on it while it is held is published.
- While a rise is held, further readings from there do not become possible by waiting, because the step was made at
  once.
- A fall is published only if a reset to 0 explains it: the new value can have been counted since the last good
  reading (within a day at most), it is less than what remains when one leg of two or three is missing, and Home
  Assistant will see a reset. Any other fall is rebased, which counts the same energy without a fall.
- A fall of less than 1 Wh is noise of an idle meter: the published value stays, and nothing is logged.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from bridge.counters.state import (
    CONFIRM_S,
    FALLS,
    NOISE_WH,
    REWIND_WH,
    SLACK_WH,
    YEAR_2020,
    Cause,
    CounterLimits,
    CounterState,
    Held,
    Observation,
    small_fall,
)
from bridge.model import DAY_S, HOUR_S, MAX_COUNTER_WH

WRAP_WH = 2**32 / HOUR_S
"""2^32 J: the sum of the inverters falls by this when the counter of one of them restarts."""
UINT32_WH = 2.0**32
WRAPS = (1, 2, 3, round(UINT32_WH / WRAP_WH))
"""How many steps of 2^32 J a fall can have. The last is 2^32 Wh: a sum in 32 bits has restarted."""
UINT32_MARGIN_WH = 200_000.0
"""So close to its end such a sum, not a negative one, is what looks like a negative number."""
WRAP_UNDONE_WH = 5_000.0
"""Wh by which a rise may differ from steps of 2^32 J that it undoes."""
DOUBTFUL_S = 31 * DAY_S
"""Where nobody knows for how long a counter was not read, it is assumed to be no longer than this."""
DAYLIGHT_S = 16 * HOUR_S
"""Longest time in a day for which inverters produce."""
GOOD_DAY = 1.5
"""Factor by which a day can be better than the best of the last month."""
UNDO_SHARE = 0.05
"""A jump that undoes a new level differs from its step by no more than this share."""
LEG_SHARE = 0.3
"""A counter without one leg of two, or two legs of three, keeps more than this share."""
RESET_SHARE, RESET_MARGIN_WH = 0.9, 2.0
"""Home Assistant takes a fall below this share for a reset. Its value may differ from ours by the dead band."""


class Kind(StrEnum):
    """What happens with a reading."""

    PUBLISHED = "published"
    WAITING = "waiting"
    """Nothing is published yet, since the first reading is not confirmed."""
    TAKEN = "taken"
    """A rise is published although it can't be judged."""
    HELD = "held"
    """The last good value is published instead."""
    BACK = "back"
    """The counter is back after it was held."""
    REBASED = "rebased"
    """A step is removed by an offset."""
    UNDONE = "undone"
    """The counter is back from a step that was removed, and so is the offset."""
    RESET = "reset"
    """The counter restarted at 0, and so does the published value."""
    UNWRAPPED = "unwrapped"
    """A step of 2^32 J is removed by an offset."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one reading: the value to publish (`None` for none yet), and a text if it is worth logging."""

    kind: Kind
    value: float | None
    text: str = ""


Ruling = tuple[CounterState, Outcome]


def apply(
    state: CounterState | None, raw: float, now: float, limits: CounterLimits, power: float | None = None
) -> Ruling:
    """Apply one reading to a counter; return its new state and what to publish.

    Args:
        state: of the counter; `None` if nothing is known of it.
        raw: the reading in Wh.
        now: unix time.
        limits: what is possible for the counter.
        power: the power (W) that was read with it and that it counts; `None` if there was none.
    """
    state = state or CounterState()
    if state.raw is None:
        return _begin(state.with_power(power), raw, now, limits)
    if state.seen_at < YEAR_2020 or now < state.seen_at:
        limits = replace(limits, doubtful=True)
    is_metered = power is not None and not limits.stall
    raw = min(_unwrapped(raw, state.raw) if limits.wrap else max(0.0, raw), MAX_COUNTER_WH)
    reading = Observation(state, state.after_look(now, power), state.raw, raw, now, limits, is_metered)
    rulings = (rule(reading) for rule in RULES)
    state, outcome = next(ruling for ruling in rulings if ruling is not None)
    if limits.wrap and outcome.value is not None:
        days = state.days.with_reading(outcome.value, now)
        state = state if days is state.days else replace(state, days=days)
    return state, outcome


def usual(state: CounterState, raw: float, now: float, power: float | None, *, days: bool) -> Ruling | None:
    """What `apply` makes of a reading that no rule objects to, as nearly all are, in one step; else `None`.

    Nothing is held, and the reading is a rise that is always possible, or noise. `days` is whether the counter
    keeps its best days.
    """
    last = state.raw
    if last is None or state.held is not None or state.undo or not -NOISE_WH < raw - last <= SLACK_WH:
        return None
    if not 0 <= raw <= MAX_COUNTER_WH or (raw == 0 and last >= NOISE_WH):
        return None
    interval, unread, counted = state.since_look(now, power)
    watts, good, is_same = abs(power or 0.0), max(raw, last), raw <= last
    published = max(0.0, round(good + state.offset, 3))
    after = CounterState(
        good,
        state.offset,
        changed_at=state.changed_at if is_same else now,
        seen_at=now,
        wraps=state.wraps,
        peak=max(state.peak, min(state.power, watts)),
        power=watts,
        counted=state.counted + counted if is_same else 0.0,
        unread=state.unread + unread if is_same else 0.0,
        interval=interval,
        undo_at=state.undo_at,
        days=state.days.with_reading(published, now) if days else state.days,
    )
    return after, Outcome(Kind.PUBLISHED, published)


def _begin(state: CounterState, raw: float, now: float, limits: CounterLimits) -> Ruling:
    """Believe a first reading that the next one confirms; a zero only if it lasts: gateways start with one."""
    raw = max(0.0, raw)
    held = state.held
    if held is None or (raw > 0) != (held.raw > 0) or not (raw == 0 or held.continues(raw, now, limits)):
        cause = Cause.RISE if raw else Cause.ZERO
        return replace(state, held=Held(cause, raw, now, raw, now, now)), Outcome(Kind.WAITING, None)
    if raw > MAX_COUNTER_WH or (raw == 0 and now - held.since < CONFIRM_S):
        return state, Outcome(Kind.WAITING, None)
    begun = state.good(raw, now)
    return begun, Outcome(Kind.PUBLISHED, begun.published)


# Rule 1: unsigned numbers


def _unwrapped(raw: float, last: float) -> float:
    """The reading, never negative. Near the end of 32 bits a number that looks negative is the next one above."""
    is_at_end = raw < 0 and last > UINT32_WH - UINT32_MARGIN_WH
    return raw + UINT32_WH if is_at_end else max(0.0, raw)


# Rule 7: zero


def _zero(reading: Observation) -> Ruling | None:
    """Hold a zero: the gateway is starting, since counters do not fall to 0.

    A level that is held stays so, but for a small fall: the power beside it is no longer believed.
    """
    if reading.raw > 0 or reading.last < NOISE_WH:
        return None
    held = reading.state.held
    if held is None or held.cause is Cause.SMALL:
        return _hold(reading, reading.level(Cause.ZERO))
    return _hold(reading, replace(held, seen_at=reading.now))


# Rule 6: steps of 2^32 J


def _steps_of_joules(reading: Observation) -> Ruling | None:
    """The counter of one inverter has restarted, or of up to three: exactly that is added to the sum."""
    if not reading.limits.wrap:
        return None
    before = reading.state.held
    if before and before.continues(reading.raw, reading.now, reading.limits):  # it was judged when it began
        counts = [before.wraps] if before.cause is Cause.WRAP else []
    else:
        counts = _counts_of_steps(reading)
    if not counts:
        return None
    held = reading.level(Cause.WRAP, counts[0])
    if not held.is_confirmed(reading.now, reading.limits):
        doubt = f"; or {counts[1]} steps of 2^32 J at once" if len(counts) > 1 else ""
        return _hold(reading, held, doubt)
    step = held.wraps * WRAP_WH
    raw = max(held.raw, reading.last - step)  # a small fall beside it stays hidden behind the last good value
    good = reading.state.good(raw, reading.now, reading.state.offset + step)
    good = replace(good, wraps=good.wraps + held.wraps)
    what = "an inverter's counter began again" if step > 0 else "an earlier step of an inverter's counter is undone"
    text = f"{what}: {step:+.3f} from now on, offset {good.offset:+.3f}"
    return good, Outcome(Kind.UNWRAPPED, good.published, text)


def _counts_of_steps(reading: Observation) -> list[int]:
    """How many steps of 2^32 J explain a fall, the smallest number first; negative for a rise that undoes some."""
    step = reading.step
    if step < 0 and not reading.is_small_fall:
        least, most = -small_fall(reading.last), _made(reading)
        return [count for count in WRAPS if least <= step + count * WRAP_WH <= most]
    if step <= reading.slack:
        return []
    earlier = [count for count in WRAPS if count <= reading.state.wraps]
    return [-count for count in earlier if abs(step - count * WRAP_WH) <= WRAP_UNDONE_WH]


def _made(reading: Observation) -> float:
    """Wh that inverters can have made since the counter changed: as on good days for the time without readings."""
    days, rest = divmod(reading.state.unread, DAY_S)
    unread = reading.limits.energy(days * DAYLIGHT_S + min(rest, DAYLIGHT_S))
    best = reading.state.days.best
    if best is not None:
        unread = min(unread, GOOD_DAY * best * max(1.0, reading.state.unread / DAY_S))
    return SLACK_WH + reading.while_read + unread


# A jump back from a level that was believed


def _undone(reading: Observation) -> Ruling | None:
    """The counter is back on the level that it left within a day: the offset goes, too."""
    state, step = reading.state, reading.step
    if not state.undo or reading.now - state.undo_at > DAY_S:
        return None
    counted = step - state.undo
    is_back = abs(counted) <= UNDO_SHARE * abs(state.undo) and counted <= reading.slack
    if not is_back or 0 < step <= reading.slack - SLACK_WH + REWIND_WH:
        return None
    offset = max(state.offset - state.undo, reading.published - reading.raw)
    good = replace(state.good(reading.raw, reading.now, offset), undo=0.0)
    text = f"is back from another level at {reading.raw:.0f}, offset {good.offset:+.3f} from now on"
    return good, Outcome(Kind.UNDONE, good.published, text)


# Rules 5 and 4: falls


def _fall(reading: Observation) -> Ruling | None:
    """A fall is held until the counter is back, or has proved that it counts on from there."""
    if reading.step > -NOISE_WH:
        return _passed(reading)
    held = reading.level(Cause.SMALL if reading.is_small_fall else Cause.FALL)
    is_worth_it = reading.last - held.first >= REWIND_WH
    if not is_worth_it or not held.is_confirmed(reading.now, reading.limits):
        return _hold(reading, held)
    return _reset(reading, held) or _rebase(reading, held)


def _passed(reading: Observation) -> Ruling | None:
    """Rebase a counter that has counted on from a lower level past the last good reading, without a jump."""
    held = reading.state.held
    if held is None or held.cause not in FALLS or reading.last - held.first < REWIND_WH:
        return None
    if reading.raw - held.raw > reading.counting(reading.now - held.changed_at):
        return None
    return _rebase(reading, held.with_reading(reading.raw, reading.now))


def _reset(reading: Observation, held: Held) -> Ruling | None:
    """The counter has restarted at 0, if Home Assistant will count its new value as energy since then."""
    published = reading.published
    is_part = held.cause is Cause.SMALL or held.first >= LEG_SHARE * published
    is_seen = held.raw < RESET_SHARE * published - RESET_MARGIN_WH
    counted = held.raw - held.first
    is_possible = held.first <= held.possible and counted <= reading.limits.rise(reading.now - held.since)
    if reading.limits.doubtful or is_part or not is_seen or not is_possible:
        return None
    good = replace(reading.state.good(held.raw, reading.now, offset=0.0), wraps=0, undo=0.0)
    return good, Outcome(Kind.RESET, good.published, f"began again: {held.raw:.0f} after {published:.0f}")


# Rule 2: rise


def _rise(reading: Observation) -> Ruling | None:
    """A rise that is possible is published at once."""
    limits, slack = reading.limits, reading.slack
    doubt = limits.energy(DOUBTFUL_S) if limits.doubtful else 0.0
    if reading.step > slack + doubt or _belongs_to_held_rise(reading):
        return None
    good = reading.state.good(max(reading.raw, reading.last), reading.now)
    if reading.step > slack:
        text = f"rose by {reading.step:.0f}: taken as it is, since nobody knows how long it took"
        return good, Outcome(Kind.TAKEN, good.published, text)
    if reading.state.held:
        return good, Outcome(Kind.BACK, good.published, f"is back at {reading.raw:.0f}: no longer held")
    return good, Outcome(Kind.PUBLISHED, good.published)


def _belongs_to_held_rise(reading: Observation) -> bool:
    """Whether a reading belongs to a rise that is held. After a gap it may be what was counted meanwhile."""
    held = reading.state.held
    if held is None or held.cause is not Cause.RISE or reading.raw <= held.raw - NOISE_WH:
        return False
    return not reading.limits.doubtful and reading.now - held.seen_at <= reading.limits.confirm


# Rule 3: larger rise


def _larger_rise(reading: Observation) -> Ruling:
    """A larger rise is held until it has proved itself; then its step is removed."""
    held = reading.level(Cause.RISE)
    return _rebase(reading, held) if held.is_confirmed(reading.now, reading.limits) else _hold(reading, held)


RULES = (_zero, _steps_of_joules, _undone, _fall, _rise, _larger_rise)
"""In the order in which they are applied. The last one always gives a ruling."""


def _hold(reading: Observation, held: Held, doubt: str = "") -> Ruling:
    """Keep the last good value. The log says so when it begins, and when a small fall turns into another fault."""
    before = reading.state.held
    is_news = before is None or (before.cause is Cause.SMALL and held.cause is not Cause.SMALL)
    text = _description(reading, held) + doubt if is_news else ""
    return replace(reading.state, held=held), Outcome(Kind.HELD, reading.state.published, text)


def _description(reading: Observation, held: Held) -> str:
    if held.cause is Cause.SMALL:
        return f"went back from {reading.last:.0f} to {reading.raw:.0f}: held until it is passed again"
    moved = "rose" if reading.step > 0 else "fell"
    return f"{moved} from {reading.last:.0f} to {reading.raw:.0f}, which can't be: held at the last good value"


def _rebase(reading: Observation, held: Held) -> Ruling:
    """Remove the step to a new level, so that the published value goes on from the last good one."""
    state = reading.state
    counted = min(held.raw - held.first, reading.limits.rise(reading.now - held.since))
    offset = reading.published + counted - held.raw
    good = state.good(held.raw, reading.now, offset)
    good = replace(good, undo=offset - state.offset, undo_at=reading.now)
    text = f"stays at another level: {held.first:.0f} after {reading.last:.0f}; the step is not counted"
    return good, Outcome(Kind.REBASED, good.published, f"{text}, offset {good.offset:+.3f} from now on")
