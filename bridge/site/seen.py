"""What has been seen of a site, for the choice of its sources: it is kept for a week without being seen again."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.site.powers import Values

KEPT = 7 * 86_400.0
"""Seconds of answers without a thing after which it is gone."""
LONGEST_STEP = 300.0
"""Seconds between two answers that count at most: an outage, or a clock that is set, takes nothing away."""
BATTERY, LIVEDATA, STALLED, GENERATOR = "battery", "livedata", "stalled", "generator"
FOR_EVER = frozenset({GENERATOR})
"""A generator stands still for months."""


@dataclass(slots=True)
class Seen:
    """What there is, each with the seconds of answers since it was seen last. It outlives a restart."""

    lacking: dict[str, float] = field(default_factory=dict)
    _answered_at: float | None = None

    def __contains__(self, thing: str) -> bool:
        return thing in self.lacking

    def observe(
        self,
        source: str,
        values: Values,
        latest: Values,
        now: float,
        *,
        battery: bool = False,
        generator: bool = False,
    ) -> None:
        """An answer's values, and the latest of all answers; `battery` and `generator`: it shows one otherwise."""
        passed = 0.0 if self._answered_at is None else now - self._answered_at
        self._answered_at = now
        self.lacking = {
            thing: seconds + min(max(0.0, passed), LONGEST_STEP)
            for thing, seconds in self.lacking.items()
            if thing in FOR_EVER or seconds < KEPT
        }
        self.lacking |= dict.fromkeys(_things(source, values, latest), 0.0)
        self.lacking |= {BATTERY: 0.0} if battery else {}
        self.lacking |= {GENERATOR: 0.0} if generator else {}

    @classmethod
    def load(cls, kept: object) -> "Seen":
        """What the store has."""
        given = kept if isinstance(kept, Mapping) else {}
        known = {thing: given.get(thing) for thing in (BATTERY, LIVEDATA, STALLED, GENERATOR)}
        return cls({thing: seconds for thing, seconds in known.items() if isinstance(seconds, float)})


def _things(source: str, values: Values, latest: Values) -> set[str]:
    """`/api/v1/production` is stalled where it counts nothing while the inverters count.

    Where it has counted before, as before an update to 8.3.5422, its lifetime is held: the week tells.
    """
    held = ("encharge_energy", "acb_energy", "encharge_soc", "acb_soc")
    found = {
        LIVEDATA: source == "livedata" and ("live/grid", "power") in values,
        BATTERY: any(values.get(("live/storage", name), 0) > 0 for name in held)
        or any(device.startswith("battery/") for device, _ in values),
        STALLED: any(
            latest.get(("energy/production", name)) == 0 and latest.get(("energy/production-pcu", name), 0) > 0
            for name in ("energy_lifetime", "energy_7d")
        ),
    }
    return {thing for thing, is_there in found.items() if is_there}
