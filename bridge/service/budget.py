"""How much of a gateway's time we may take: when it becomes slow, it is asked less by itself."""

from collections.abc import Mapping

LONGEST = 20.0
"""A period is stretched so much at most."""
LEAST = 4
"""Neither the live sources nor the others are left with less than this part of the budget."""
SLOWLY = 0.05
"""Share of the way that a stretched period goes back with each answer."""
SMOOTH = 0.3
"""Weight of the newest answer time."""


class Budget:
    """Keeps the sum of all answer times below `share` of the time: first the slow ones give way, then the live.

    `periods` holds seconds and urgency by source; answer times are in seconds.
    """

    def __init__(self, share: float, periods: Mapping[str, tuple[float, int]]) -> None:
        self._share = share
        self._periods = dict(periods)
        self._costs: dict[str, float] = {}
        self._stretches: dict[str, float] = {}

    def change_period(self, source: str, period: float) -> None:
        self._periods[source] = (period, self._periods[source][1])

    def spent(self, source: str, seconds: float) -> None:
        """An answer, or the lack of one, has taken so long."""
        known = self._costs.get(source, seconds)
        self._costs[source] = known + (seconds - known) * SMOOTH
        for name, wanted in self._wanted().items():
            now = self._stretches.get(name, 1.0)
            self._stretches[name] = wanted if wanted > now else now + (wanted - now) * SLOWLY

    def stretch(self, source: str) -> float:
        """By how much the source's period is longer than its usual one."""
        return self._stretches.get(source, 1.0)

    def _wanted(self) -> dict[str, float]:
        """A source that takes half of the budget alone gives way alone; the rest is shared."""
        loads = {name: cost / self._periods[name][0] for name, cost in self._costs.items()}
        own = {name: _bounded(load / (self._share / 2)) for name, load in loads.items()}
        live = [name for name in loads if self._periods[name][1] == 0]
        live_load = sum(loads[name] / own[name] for name in live)
        other_load = sum(loads[name] / own[name] for name in loads if name not in live)
        least = self._share / LEAST
        others = _bounded(other_load / max(self._share - live_load, least))
        lives = _bounded(live_load / max(self._share - other_load / others, least))
        return {name: _bounded(own[name] * (lives if name in live else others)) for name in loads}


def _bounded(stretch: float) -> float:
    return min(LONGEST, max(1.0, stretch))
