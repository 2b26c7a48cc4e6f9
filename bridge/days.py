"""What lifetime counters have counted today: what they show, less what they showed at the last midnight.

Firmware's own counts of today do not always begin again at midnight, or not at 0.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

FIRST = "2020-01-01"
"""Clocks that were never set show days before: they end none."""


@dataclass(slots=True)
class Days:
    """By counter: its day (ISO), what it showed when that began, and what it showed last. Wh."""

    _known: dict[str, tuple[str, float, float]] = field(default_factory=dict)

    def today(self, counter: str, lifetime: float, day: str, *, already: float = 0.0) -> float:
        """Wh since the last midnight; since now where nobody knows what the counter was then.

        `already` is what it had counted of this day before it is first looked at, where somebody knows that.
        """
        known, base, last = self._known.get(counter, (day, lifetime - already, lifetime))
        if lifetime < last:
            base -= last - lifetime  # the counter began again, the day did not
        if day != known and day >= FIRST:
            base = min(last, lifetime) if _follows(day, known) else lifetime
            known = day
        self._known[counter] = (known, base, lifetime)
        return round(max(0.0, lifetime - base), 3)

    def dump(self) -> dict[str, list[str | float]]:
        """For the store."""
        return {counter: list(day) for counter, day in self._known.items()}

    def of(self, counters: Container[str]) -> "Days":
        """Only these."""
        return Days({counter: day for counter, day in self._known.items() if counter in counters})

    @classmethod
    def load(cls, kept: object) -> "Days":
        """What the store has; nothing where it is damaged."""
        if not isinstance(kept, Mapping):
            return cls()
        try:
            items = kept.items()
            return cls({str(name): (str(day), float(base), float(last)) for name, (day, base, last) in items})
        except (TypeError, ValueError):
            return cls()


def _follows(day: str, known: str) -> bool:
    try:
        return date.fromisoformat(day) - date.fromisoformat(known) == timedelta(days=1)
    except ValueError:
        return False
