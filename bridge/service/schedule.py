"""When to ask for what: one request at a time, the most urgent first, missed ticks skipped."""

from collections.abc import Mapping
from dataclasses import dataclass

HEAD_START = 2.0
"""Seconds that one step of urgency is worth. An urgent source goes first, but can't starve the others."""


@dataclass(slots=True)
class Tick:
    """The next time of one source. `urgency` 0 is the most urgent; times are in seconds."""

    period: float
    urgency: int
    due: float

    @property
    def rank(self) -> float:
        return self.due + self.urgency * HEAD_START


class Schedule:
    """The ticks of one gateway's sources. Times come from the caller."""

    def __init__(self, periods: Mapping[str, tuple[float, int]], now: float) -> None:
        """`periods` holds each source's period and urgency. All are due at once, in the order given."""
        self._ticks = {
            source: Tick(period, urgency, now) for source, (period, urgency) in periods.items() if period > 0
        }
        self._first = list(self._ticks)
        self._held = now

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self._ticks)

    def period(self, source: str) -> float:
        return self._ticks[source].period

    @property
    def fastest(self) -> float:
        """The shortest period, in seconds."""
        return min((tick.period for tick in self._ticks.values()), default=0.0)

    def next(self, now: float) -> str | None:
        """The source to ask now; the first round goes through all in the order given."""
        if now < self._held:
            return None
        if self._first:
            return self._first[0]
        due = [source for source, tick in self._ticks.items() if tick.due <= now]
        return min(due, key=lambda source: self._ticks[source].rank, default=None)

    def delay(self, now: float) -> float:
        """Seconds until a source is due."""
        soonest = now if self._first else min((tick.due for tick in self._ticks.values()), default=now + 3600)
        return max(0.0, soonest - now, self._held - now)

    def hold(self, until: float) -> None:
        """Nothing is due before this time."""
        self._held = until

    def held(self, now: float) -> bool:
        return now < self._held

    def advance(self, source: str, now: float) -> None:
        """The source is due now."""
        self._ticks[source].due = now

    def change_period(self, source: str, period: float) -> None:
        """From its next tick on."""
        self._ticks[source].period = period

    def asked(self, source: str, now: float, *, pause: float = 0.0, skip: int = 0, stretch: float = 1.0) -> None:
        """The source was asked: its next tick is the first that lies ahead, `pause` seconds from now at least.

        `skip` ticks are used up already, by retries and token checks; `stretch` makes the period longer this once.
        """
        if source in self._first:
            self._first.remove(source)
        tick = self._ticks[source]
        period = tick.period * stretch
        missed = max(0, int((now - tick.due) // period))
        tick.due = max(tick.due + (missed + 1 + skip) * period, now + pause)

    def restart(self, now: float, *, without: str) -> None:
        """All sources are due, as at the start, but the one that has just been asked."""
        self._first = [source for source in self._ticks if source != without]
        for source in self._first:
            self._ticks[source].due = now
