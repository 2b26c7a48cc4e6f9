"""One answer, one balance: the powers of all flows from the same instant."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bridge.site.plan import BALANCE, Plan, without_livedata

Values = Mapping[tuple[str, str], float]
"""Values of one answer by device and name, phases left out."""

IMPLAUSIBLE_WATTS, IMPLAUSIBLE_SHARE = 50.0, 0.02
"""A home below minus this (and this share of the largest flow) can't be: a storage CT was seen to repeat the
grid's leg, which made a home of -736 W."""


@dataclass(frozen=True, slots=True)
class Powers:
    """W; `None` where nobody knows."""

    solar: float | None = None
    grid: float | None = None
    battery: float | None = None
    generator: float | None = None
    home: float | None = None

    @property
    def plausible(self) -> bool:
        known = [abs(flow) for flow in (self.solar, self.grid, self.battery, self.generator) if flow is not None]
        return self.home is None or self.home >= -(IMPLAUSIBLE_WATTS + IMPLAUSIBLE_SHARE * max(known, default=0))

    def without_battery(self) -> "Powers":
        return replace(self, battery=None, home=None)

    def on_generator(self) -> "Powers":
        """With the grid open, what its meter reads comes from the generator that stands in its place."""
        if self.grid is None:
            return self
        if self.generator is None:
            return replace(self, grid=0.0, generator=self.grid)
        home = None if self.home is None else round(self.home - self.grid, 3)
        return replace(self, grid=0.0, home=home)


def balance(plan: Plan, values: Values) -> Powers:
    """The flows as the plan's answer gives them; what follows from the others is computed from those published."""
    found = Powers(
        solar=_sun(values, plan),
        grid=_power(values, plan.grid),
        battery=_power(values, plan.battery),
        generator=_power(values, "live/generator") if plan.live else None,
        home=_power(values, plan.home),
    )
    if plan.home == BALANCE:
        return replace(found, home=_sum(plan, found))
    if plan.grid == BALANCE:
        return replace(found, grid=_rest(plan, found))
    return found


def fallback(values: Values, plan: Plan) -> Powers:
    """Where live data stand still: the meters know solar and grid, and nobody the battery."""
    return balance(without_livedata(plan), values)


def _sun(values: Values, plan: Plan) -> float | None:
    """Never negative: what inverters draw at night is consumption."""
    own, others = _power(values, plan.solar), _power(values, plan.third_party)
    if own is None or (plan.third_party and others is None):
        return None
    return round(max(0.0, own) + max(0.0, others or 0.0), 3)


def _power(values: Values, device: str | None) -> float | None:
    return values.get((device, "power")) if device and device != BALANCE else None


def _sum(plan: Plan, powers: Powers) -> float | None:
    if powers.solar is None or powers.grid is None or (plan.battery and powers.battery is None):
        return None
    return round(powers.solar + powers.grid + (powers.battery or 0.0) + (powers.generator or 0.0), 3)


def _rest(plan: Plan, powers: Powers) -> float | None:
    if powers.solar is None or powers.home is None or (plan.battery and powers.battery is None):
        return None
    return round(powers.home - powers.solar - (powers.battery or 0.0), 3)
