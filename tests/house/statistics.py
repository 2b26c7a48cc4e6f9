"""Adds up a counter as Home Assistant's long-term statistics do for `total_increasing` sensors."""

from dataclasses import dataclass, field

RESET_SHARE = 0.9
"""A value below this share of the one before counts as a reset (homeassistant/components/sensor/recorder.py)."""
HOUR_S = 3600


@dataclass(slots=True)
class Statistics:
    """The sum that the Energy dashboard shows for one counter, with a bar for each hour.

    `bars` holds Wh by the hour since 1970. The first value is where the sum begins, and it is no energy.
    """

    last: float | None = None
    total: float = 0.0
    bars: dict[int, float] = field(default_factory=dict)

    def take(self, value: float, when: float) -> float:
        """Add a new value of the counter and return by how much the sum has changed."""
        if self.last is None:
            change = 0.0
        elif value < RESET_SHARE * self.last:
            change = value
        else:
            change = value - self.last
        self.last = value
        self.total += change
        hour = int(when // HOUR_S)
        self.bars[hour] = self.bars.get(hour, 0.0) + change
        return change
