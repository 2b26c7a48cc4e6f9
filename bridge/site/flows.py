"""The flows of a site: their measurements, and their powers from one answer.

Signs: solar + producing, grid + importing, battery + discharging, generator + producing, home + consuming;
the first four add up to home.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge.endpoints.livedata import LIVE_GENERATOR, LIVE_GRID, LIVE_LOAD, LIVE_PV, LIVE_STORAGE
from bridge.model import Measurement, Quantity
from bridge.records import CHARGE, CONNECTIVITY, ENERGY, FLAG, POWER, STORED, TEXT, TIME, measurement
from bridge.site.selection import (
    BALANCE,
    METERS,
    PRODUCTION,
    STANDBY_MAX_W,
    SourceSelection,
    Values,
    without_livedata,
)

SOLAR, GRID, BATTERY, GENERATOR, HOME = FLOWS = ("solar", "grid", "battery", "generator", "home")
SITE_PREFIX = "site/"
"""Beginning of the devices that the flows belong to."""


# Measurements


def _enabled(name: str, quantity: Quantity, **options: Any) -> Measurement:
    return measurement(name, quantity, **{"enabled": True, **options})


def _common() -> dict[str, Measurement]:
    return {
        "power": _enabled("power", POWER, interval=0.0),
        "source": measurement("source", TEXT, diagnostic=True),
        "estimated": measurement("estimated", FLAG, diagnostic=True),
    }


SINCE = _enabled("energy_since", TIME, label="Energy counted since")
TODAY = _enabled("energy_today", ENERGY)

ROWS: Mapping[str, Mapping[str, Measurement]] = {
    SOLAR: {
        **_common(),
        "energy_lifetime": _enabled("energy_lifetime", ENERGY, label="Energy produced"),
        "energy_today": TODAY,
    },
    GRID: {
        **_common(),
        "energy_imported": _enabled("energy_imported", ENERGY),
        "energy_exported": _enabled("energy_exported", ENERGY),
        "energy_since": SINCE,
        "connected": _enabled("connected", CONNECTIVITY),
    },
    BATTERY: {
        **_common(),
        "energy_charged": _enabled("energy_charged", ENERGY),
        "energy_discharged": _enabled("energy_discharged", ENERGY),
        "energy_since": SINCE,
        "soc": _enabled("soc", CHARGE, label="Charge"),
        "energy_stored": _enabled("energy_stored", STORED),
        "capacity": _enabled("capacity", STORED),
    },
    GENERATOR: {
        **_common(),
        "energy_lifetime": _enabled("energy_lifetime", ENERGY, label="Energy produced"),
        "energy_since": SINCE,
    },
    HOME: {
        **_common(),
        "energy_lifetime": _enabled("energy_lifetime", ENERGY, label="Energy consumed"),
        "energy_today": TODAY,
        "energy_since": SINCE,
    },
}
"""The measurements of each `site/<flow>`, by name."""


# Powers

IMPLAUSIBLE_W, IMPLAUSIBLE_SHARE = 50.0, 0.02
"""A home power below minus these W, plus this share of the largest flow, is impossible. A storage transformer was
seen to repeat the grid's leg, which gave a home of -736 W."""


def can_be_home(power: float, flows: Iterable[float]) -> bool:
    """Whether the power of the home (W) that follows from these flows is possible."""
    return power >= -(IMPLAUSIBLE_W + IMPLAUSIBLE_SHARE * max(map(abs, flows), default=0.0))


@dataclass(frozen=True, slots=True)
class Powers:
    """The powers of all flows at one instant, in W; `None` if unknown."""

    solar: float | None = None
    grid: float | None = None
    battery: float | None = None
    generator: float | None = None
    home: float | None = None

    @property
    def plausible(self) -> bool:
        parts = (self.solar, self.grid, self.battery, self.generator)
        return self.home is None or can_be_home(self.home, [part for part in parts if part is not None])

    def without_battery(self) -> "Powers":
        return replace(self, battery=None, home=None)

    def with_battery(self, power: float) -> "Powers":
        """The same powers with another one of the battery (W), and the home that follows from it."""
        if self.home is None or self.battery is None:
            return replace(self, battery=power, home=None)
        return replace(self, battery=power, home=round(self.home - self.battery + power, 3))

    def on_generator(self) -> "Powers":
        """The powers while the grid is disconnected and its meter measures the generator in its place."""
        if self.grid is None:
            return self
        if self.generator is None:
            return replace(self, grid=0.0, generator=self.grid)
        home = None if self.home is None else round(self.home - self.grid, 3)
        return replace(self, grid=0.0, home=home)


def balance(selected: SourceSelection, values: Values) -> Powers:
    """The powers in an answer of the selected source. The flow that nothing measures follows from the others."""
    found = Powers(
        solar=_solar(values, selected),
        grid=_power(values, selected.grid),
        battery=_power(values, selected.battery),
        generator=_power(values, LIVE_GENERATOR) if selected.live else None,
        home=_power(values, selected.home),
    )
    if selected.home == BALANCE:
        return replace(found, home=_home(selected, found))
    found = replace(found, home=_consumption(values, selected))
    return replace(found, grid=_grid(selected, found)) if selected.grid == BALANCE else found


def fallback(values: Values, selected: SourceSelection) -> Powers:
    """The powers by the meters while live data are stale; battery and home are unknown."""
    return balance(without_livedata(selected), values)


def _solar(values: Values, selected: SourceSelection) -> float | None:
    """Solar power. It is never negative: what inverters draw at night counts as consumption."""
    own, others = _power(values, selected.solar), _power(values, selected.third_party)
    if selected.battery_behind_clamp and own is not None:
        battery = _power(values, selected.battery)
        own = None if battery is None else own - battery
    if own is None or (selected.third_party and others is None):
        return None
    return round(max(0.0, own) + max(0.0, others or 0.0), 3)


def _consumption(values: Values, selected: SourceSelection) -> float | None:
    """The home's power by the meter of all consumption, which leaves out what the inverters draw at night."""
    total = _power(values, selected.home)
    own = values.get((METERS[PRODUCTION], "power"), 0.0) if selected.solar == METERS[PRODUCTION] else 0.0
    return None if total is None else round(total + min(max(0.0, -own), STANDBY_MAX_W), 3)


def _power(values: Values, device: str | None) -> float | None:
    return values.get((device, "power")) if device and device != BALANCE else None


def _home(selected: SourceSelection, powers: Powers) -> float | None:
    if powers.solar is None or powers.grid is None or _lacks_battery(selected, powers):
        return None
    return round(powers.solar + powers.grid + (powers.battery or 0.0) + (powers.generator or 0.0), 3)


def _grid(selected: SourceSelection, powers: Powers) -> float | None:
    if powers.solar is None or powers.home is None or _lacks_battery(selected, powers):
        return None
    return round(powers.home - powers.solar - (powers.battery or 0.0), 3)


def _lacks_battery(selected: SourceSelection, powers: Powers) -> bool:
    return (selected.integrates or selected.battery is not None) and powers.battery is None


LIVE_STALE_AFTER_S, LIVE_STALE_AFTER_PERIODS = 30.0, 2
"""Time, in seconds and in periods, after which live data that do not change, or do not come, are stale. Firmware
8.2 was seen to repeat its last values for 57 s."""
LIVE_FLOWS = tuple(
    (device, name)
    for device in (LIVE_PV, LIVE_STORAGE, LIVE_GRID, LIVE_LOAD)
    for name in ("power", "apparent_power")
)


class LiveStream:
    """Whether live data are being updated: the gateway may repeat its last values for a while."""

    def __init__(self) -> None:
        self._flows: tuple[float | None, ...] = ()
        self._seen_at = self._live_at = -math.inf
        self._still_s = 0.0
        self._stale_after = LIVE_STALE_AFTER_S
        self._is_frozen = False

    def observe(self, values: Values, now: float, *, fresh: bool, period: float = 0.0) -> None:
        """Take note of an answer.

        `fresh` is what the gateway says; `period` is the usual time between two answers, in seconds.
        """
        flows = tuple(map(values.get, LIVE_FLOWS))
        self._stale_after = max(LIVE_STALE_AFTER_S, LIVE_STALE_AFTER_PERIODS * period)
        # A clock that is set between two answers freezes nothing, and without any meter all powers are 0 for ever.
        longest = LIVE_STALE_AFTER_PERIODS * period or math.inf
        is_still = flows == self._flows and any(flows)
        self._still_s = self._still_s + min(now - self._seen_at, longest) if is_still else 0.0
        self._flows, self._seen_at = flows, now
        self._is_frozen = self._still_s > self._stale_after
        if fresh and not self._is_frozen:
            self._live_at = now

    def was_live_at(self, now: float) -> bool:
        """Whether the answer that came at this time was live."""
        return self._live_at == now

    def is_stale(self, now: float) -> bool:
        return self._is_frozen or now - self._live_at > self._stale_after


MAX_IMPOSSIBLE = 2
"""Answers with an impossible balance after which the battery's power counts as unknown."""
CONFIRM_W, CONFIRM_SHARE = 100.0, 0.1
"""The batteries' own reports confirm their meter within these W and this share."""
BATTERY_REPORTS_S = 60.0
"""Seconds for which such a report counts."""
ANOTHER_PRODUCER_S, PROBLEM_KEPT_S = 900.0, 3_600.0
"""Seconds for which a home must be negative until a problem is reported, and for which the problem then stays."""
ANOTHER_PRODUCER = (
    "the home would be negative: another producer stands behind the clamp of the grid meter, so the home's power "
    "is unknown; if it belongs to another IQ Gateway, set BRIDGE_GATEWAY__HOME to one name for both"
)


@dataclass(frozen=True, slots=True)
class PowerContext:
    """What other answers say that powers depend on.

    `on_generator` is whether a generator supplies the site in place of the grid, `has_generator` whether there is
    one. `batteries` is the power that the batteries reported themselves within the last minute, in W.
    """

    on_generator: bool = False
    has_generator: bool = False
    batteries: float | None = None

    def confirms(self, battery: float) -> bool:
        """Whether the batteries' own reports agree with this power in W."""
        if self.batteries is None:
            return False
        return abs(self.batteries - battery) <= CONFIRM_W + CONFIRM_SHARE * abs(battery)


class SitePowers:
    """The powers of a site. All are of the same answer, and those that can't be true are left out.

    `in_home`: the gateway is one of several in a home. Its own home may be negative, since the others produce, too.
    """

    def __init__(self, *, in_home: bool = False) -> None:
        self._in_home = in_home
        self.now = Powers()
        self.powered_by: str | None = None
        """The source of the newest powers."""
        self.told: frozenset[str] = frozenset()
        """The flows whose powers come from the newest answer, whether they have changed or not."""
        self._measured: tuple[Powers, str] | None = None
        """The last measured powers and their source, without corrections for a generator."""
        self._was_generating = False
        self._impossible = 0
        self._negative_since: float | None = None
        self._another_producer_at = -math.inf

    def take(self, found: Powers | None, source: str, now: float, site: PowerContext) -> None:
        """Adopt the powers of an answer. `found` is `None` if it has none, or none that are current."""
        self.told = frozenset(FLOWS if found is not None else ())
        if found is not None:
            self._measured = found, source
        if self._measured and (found is not None or site.on_generator != self._was_generating):
            measured, self.powered_by = self._measured
            self._settle(_completed(measured, site), now, site)
        self._was_generating = site.on_generator

    def keep(self, measured: Collection[str]) -> None:
        """Forget the powers of flows that are no longer measured. Without one of them, the home is unknown."""
        gone = [
            flow for flow in (SOLAR, GRID, BATTERY) if flow not in measured and getattr(self.now, flow) is not None
        ]
        if gone:
            self.now = replace(self.now, home=None, **dict.fromkeys(gone))

    def use_sum(self, solar: float | None) -> None:
        """Take the solar power (W) from the microinverters' sum. It is of another moment, so home is unknown."""
        self.now, self.told = replace(self.now, solar=solar, home=None), self.told | {SOLAR}

    def use_batteries(self, power: float | None, *, told: bool) -> None:
        """Take the battery's power from the batteries' own reports, which the newest answer has `told` or not.

        They are of another moment: home is unknown.
        """
        self.now = replace(self.now, battery=power, home=None)
        self.told = self.told | {BATTERY} if told else self.told - {BATTERY}

    def _settle(self, found: Powers, now: float, site: PowerContext) -> None:
        """Leave out what makes an impossible balance.

        The battery keeps its last good power for two answers; after that, battery and home are unknown. If the
        batteries' own reports confirm their power, or there is no battery, the cause is another producer behind
        the grid meter.
        """
        if found.plausible:
            self._impossible, self._negative_since, self.now = 0, None, found
            return
        if self._in_home:
            self.now = replace(found, home=None)
            return
        self._impossible += 1
        if found.battery is None or site.confirms(found.battery):
            self._negative_since = now if self._negative_since is None else self._negative_since
            if now - self._negative_since >= ANOTHER_PRODUCER_S:
                self._another_producer_at = now
            self.now = replace(found, home=None)
        elif self._impossible <= MAX_IMPOSSIBLE and self.now.battery is not None and self.now.home is not None:
            held = found.with_battery(self.now.battery)
            self.now = held if held.plausible else replace(held, home=None)
        else:
            self.now = found.without_battery()

    def problem(self, now: float) -> str | None:
        """What the owner should know of the balance; `None` where all is well."""
        return ANOTHER_PRODUCER if now - self._another_producer_at < PROBLEM_KEPT_S else None


def _completed(found: Powers, site: PowerContext) -> Powers:
    """Add what the answer with the powers does not have: a generator."""
    if site.on_generator:
        return found.on_generator()
    return replace(found, generator=0.0) if site.has_generator and found.generator is None else found
