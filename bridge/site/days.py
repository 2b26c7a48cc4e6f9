"""What was counted since local midnight: a lifetime counter less what it was then."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

FIRST = "2020-01-01"
"""Clocks that were never set show days before: they end none."""


@dataclass(slots=True)
class Days:
    """For each counter the day (ISO), its value when that began, and its last value (Wh)."""

    known: dict[str, tuple[str, float, float]] = field(default_factory=dict)

    def today(self, name: str, lifetime: float, day: str) -> float:
        """Wh since the last midnight; since now where nobody knows what the counter was then."""
        known, base, last = self.known.get(name, (day, lifetime, lifetime))
        if lifetime < last:
            base -= last - lifetime  # the counter began again, the day did not
        if day != known and day >= FIRST:
            base = min(last, lifetime) if _follows(day, known) else lifetime
            known = day
        self.known[name] = (known, base, lifetime)
        return round(max(0.0, lifetime - base), 3)

    def dump(self) -> dict[str, list[str | float]]:
        """For the store."""
        return {name: list(day) for name, day in self.known.items()}

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
