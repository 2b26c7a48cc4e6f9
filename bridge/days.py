"""What lifetime counters have counted today: what they show, less what they showed at the last midnight.

Firmware's own counts of today do not always begin again at midnight, or not at 0.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Days:
    """By counter: its day, what it showed at the beginning of that day, and what it showed last. Wh."""

    _known: dict[str, tuple[str, float, float]] = field(default_factory=dict)

    def today(self, counter: str, lifetime: float, day: str, *, already: float = 0.0) -> float:
        """`already` is what it had counted of this day before it is first looked at, where somebody knows that."""
        kept = self._known.get(counter)
        base = lifetime - already if kept is None else kept[1] if kept[0] == day else kept[2]
        self._known[counter] = (day, base, lifetime)
        return round(max(0.0, lifetime - base), 3)

    def dump(self) -> dict[str, list[str | float]]:
        """For the store."""
        return {counter: list(day) for counter, day in self._known.items()}

    @classmethod
    def load(cls, kept: object) -> "Days":
        """What the store has; nothing where it is damaged."""
        if not isinstance(kept, dict):
            return cls()
        try:
            return cls(
                {str(name): (str(day), float(base), float(last)) for name, (day, base, last) in kept.items()}
            )
        except (TypeError, ValueError):
            return cls()
