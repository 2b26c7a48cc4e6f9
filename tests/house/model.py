"""The physics of a house: sun, loads, battery, generator, grid, and the clamps that count them.

Powers are in W, energies in Wh, times in seconds since 1970. Positive means: solar and generator produce, the
battery discharges, the grid is imported from, the home consumes. Between two changes of the clouds or of an
appliance all powers are constant, so the sums are exact however time is cut. A house with the same seed always does
the same.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, time, timedelta, tzinfo
from operator import add, attrgetter, sub

HOUR_S, DAY_S = 3600, 86_400
CHARGE_EFFICIENCY = DISCHARGE_EFFICIENCY = 0.95
STANDBY_W = 0.35
"""What one inverter draws at night."""
INVERTER_METER_RATIO = 0.995
"""What the inverters count of each Wh that the production clamp counts."""
SKY_STEP_S = 20.0
FOLLOWED = 0.97
"""Share of the surplus or shortage that the batteries take: their control is never perfect."""
AC_BATTERY_W = 260.0
BASE_LOAD_W = 180.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What a site consists of.

    `pv_shares` spreads the sun's power over the phases. `foreign_w` is the peak power of a producer of another make
    that only the clamp at the grid connection sees; `third_party_w` that of one with a `pv3p` clamp. `report_s` is
    the time between two reports of the inverters, at which their sum changes. `ensemble` says whether the batteries
    tell their own power. A regular house has a clear sky and a constant load.
    """

    name: str
    phases: int = 1
    pv_shares: tuple[float, ...] = (1.0,)
    pv_peak_w: float = 6_000.0
    inverters: int = 16
    report_s: float = 900.0
    production_ct: bool = True
    net_ct: bool = True
    total_ct: bool = False
    storage_ct: bool = False
    battery_wh: float = 0.0
    battery_w: float = 3_840.0
    ac_battery_wh: float = 0.0
    live: bool = False
    ensemble: bool = False
    has_generator: bool = False
    has_collar: bool = False
    foreign_w: float = 0.0
    third_party_w: float = 0.0
    is_standard: bool = False
    is_regular: bool = False
    profile: str = "normal"

    @property
    def has_storage(self) -> bool:
        return self.battery_wh > 0 or self.ac_battery_wh > 0

    @property
    def has_ct(self) -> bool:
        return self.production_ct or self.net_ct or self.total_ct or self.storage_ct


@dataclass(slots=True)
class Channel:
    """One clamp on one phase: what it measures now, and what it has counted in either direction."""

    power: float = 0.0
    delivered: float = 0.0
    received: float = 0.0

    def count(self, watts: float, seconds: float) -> None:
        self.power = watts
        if watts >= 0:
            self.delivered += watts * seconds / HOUR_S
        else:
            self.received -= watts * seconds / HOUR_S


@dataclass(slots=True)
class Truth:
    """What has really flowed since the house was built, in Wh.

    `imported` and `exported` are netted over the phases at each instant, as most utility meters do it;
    `phases_imported` and `phases_exported` are each phase's own. `pcu` is what the inverters have reported.
    """

    solar: float = 0.0
    imported: float = 0.0
    exported: float = 0.0
    phases_imported: float = 0.0
    phases_exported: float = 0.0
    home: float = 0.0
    charged: float = 0.0
    discharged: float = 0.0
    generator: float = 0.0
    pcu: float = 0.0

    def copy(self) -> "Truth":
        return Truth(*ALL(self))

    def since(self, before: "Truth") -> "Truth":
        return Truth(*map(sub, ALL(self), ALL(before)))

    def plus(self, other: "Truth") -> "Truth":
        return Truth(*map(add, ALL(self), ALL(other)))


TRUTHS = tuple(found.name for found in fields(Truth))
ALL = attrgetter(*TRUTHS)
"""Returns all sums of a `Truth`."""


@dataclass(frozen=True, slots=True)
class Powers:
    """The flows of this moment, each by phase."""

    solar: Sequence[float]
    battery: Sequence[float]
    generator: Sequence[float]
    home: Sequence[float]
    grid: Sequence[float]


@dataclass(slots=True)
class Appliance:
    """A load that is on for a while and off for a while, both drawn anew each time.

    It starts only between the hours `hours` of the day.
    """

    watts: float
    on_s: tuple[float, float]
    off_s: tuple[float, float]
    phase: int
    dice: random.Random
    hours: tuple[int, int] = (0, 24)
    is_on: bool = False
    until: float = 0.0

    def begin(self, time: float) -> None:
        self.until = time + self.dice.uniform(0, self.off_s[1])

    def turn(self) -> None:
        """Switch over at the time `until`, and draw the time of the next switch."""
        hour = self.until % DAY_S / HOUR_S
        self.is_on = not self.is_on and self.hours[0] <= hour < self.hours[1]
        self.until += self.dice.uniform(*(self.on_s if self.is_on else self.off_s))


@dataclass(slots=True)
class Sky:
    """The sun and its clouds. The share of light that gets through is a walk with a step every 20 seconds."""

    dice: random.Random
    is_clear: bool
    clouds: float = 0.2
    light: float = 0.0
    flicker_w: float = 0.0
    """How far the home's base load is from its mean: real powers never stand still."""
    until: float = 0.0

    def turn(self) -> None:
        """Draw what holds from the time `until` on."""
        if self.is_clear:
            self.clouds = 0.0
        else:
            self.flicker_w = self.dice.uniform(-15, 15)
            self.clouds += self.dice.gauss(0, 0.06) + 0.02 * (0.3 - self.clouds)
            self.clouds = min(0.9, max(0.0, self.clouds))
        self.light = clear_sky(self.until + SKY_STEP_S / 2) * (1 - self.clouds)
        self.until += SKY_STEP_S


def _dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same weather each time is the point


def clear_sky(when: float) -> float:
    """The light at a place whose noon is at 12:00 UTC, from 0 to 1, with days of 8 to 16 hours."""
    day, hour = divmod(when, DAY_S)
    length = 12 + 4 * math.sin(2 * math.pi * (day % 365.25 - 80) / 365.25)
    phase = (hour / HOUR_S - 12) / length
    return max(0.0, math.cos(math.pi * phase)) ** 1.2 if abs(phase) < 1 / 2 else 0.0


def _appliances(phases: int, dice: random.Random) -> list[Appliance]:
    """A fridge, a heat pump, a kettle, an oven, a washing machine and a car, on the phases that there are."""
    last = phases - 1
    return [
        Appliance(110, (600, 900), (1_500, 2_400), 0, dice),
        Appliance(1_900, (180, 420), (400, 900), last, dice),
        Appliance(2_150, (90, 180), (3_000, 9_000), min(1, last), dice, (6, 22)),
        Appliance(2_700, (40, 70), (60, 110), 0, dice, (17, 19)),
        Appliance(1_300, (900, 1_500), (9_000, 20_000), min(1, last), dice, (8, 20)),
        Appliance(3_600, (3_000, 7_000), (40_000, 90_000), last, dice, (0, 5)),
    ]


@dataclass(slots=True)
class House:
    """One house. `advance` lets time pass; everything else says how it is now.

    `grid_is_open` and `generator_is_on` are set by whoever plays the utility.
    """

    kind: Kind
    time: float
    seed: int = 1
    zone: tzinfo = UTC
    grid_is_open: bool = False
    generator_is_on: bool = False
    truth: Truth = field(default_factory=Truth)

    production: list[Channel] = field(init=False)
    net: list[Channel] = field(init=False)
    total: list[Channel] = field(init=False)
    storage: list[Channel] = field(init=False)
    third_party: list[Channel] = field(init=False)
    pcu_wh: float = field(init=False)
    """The inverters' own sum, as they have reported it."""
    stored_wh: float = field(init=False)
    ac_stored_wh: float = field(init=False)
    powers: Powers = field(init=False)
    iq_battery_w: float = field(init=False, default=0.0)
    """The power of the IQ Batteries alone."""
    reported_at: float = field(init=False)
    reported_w: float = field(init=False)
    """The mean power of one inverter between its last two reports."""
    today: Truth = field(init=False)
    """What had flowed at the last local midnight, or when the house was built."""
    day_began: float = field(init=False)
    """The last local midnight, or when the house was built."""
    midnight: float = field(init=False)
    """The next local midnight."""
    _made_wh: float = field(init=False)
    _sky: Sky = field(init=False)
    _loads: list[Appliance] = field(init=False)

    def __post_init__(self) -> None:
        base = _dice(self.seed).uniform(4e6, 9e6)
        phases = range(self.kind.phases)
        self.production = [Channel(0, base * share + i, 900.0 + 7 * i) for i, share in enumerate(self._shares)]
        self.net = [Channel(0, 3.1e6 + 1_000 * i, 2.2e6 + 500 * i) for i in phases]
        self.total = [Channel(0, 5.3e6 + 1_300 * i, 11.0 * i) for i in phases]
        self.storage = [Channel(0, 8.1e5 + 170 * i, 9.2e5 + 190 * i) for i in phases]
        self.third_party = [Channel(0, 4.4e5 + 80 * i, 3.0) for i in phases]
        self.pcu_wh = self._made_wh = base * INVERTER_METER_RATIO
        self.stored_wh, self.ac_stored_wh = self.kind.battery_wh * 0.4, self.kind.ac_battery_wh * 0.5
        self.reported_at, self.reported_w = self.time - self.time % self.kind.report_s, 0.0
        self._sky = Sky(_dice(self.seed + 1), self.kind.is_regular, until=self.time)
        self._loads = []
        if not self.kind.is_regular:
            self._loads = _appliances(self.kind.phases, _dice(self.seed + 2))
        for appliance in self._loads:
            appliance.begin(self.time)
        self._sky.turn()
        self._begin_day()
        self._pass(0.0)

    def _begin_day(self) -> None:
        self.today, self.day_began = self.truth.copy(), self.time
        day = datetime.fromtimestamp(self.time + 1, self.zone).date() + timedelta(days=1)
        self.midnight = datetime.combine(day, time(), self.zone).timestamp()

    @property
    def _shares(self) -> Sequence[float]:
        return [*self.kind.pv_shares, *(0.0,) * self.kind.phases][: self.kind.phases]

    @property
    def soc(self) -> float:
        """The charge of the IQ Batteries in percent."""
        return 100 * self.stored_wh / self.kind.battery_wh if self.kind.battery_wh else 0.0

    @property
    def ac_soc(self) -> float:
        """The charge of the AC Batteries in percent."""
        return 100 * self.ac_stored_wh / self.kind.ac_battery_wh if self.kind.ac_battery_wh else 0.0

    @property
    def inverter_max_w(self) -> float:
        return self.kind.pv_peak_w / self.kind.inverters

    def advance(self, until: float) -> None:
        """Let time pass until then."""
        while self.time < until:
            report = self.reported_at + self.kind.report_s
            end = min(
                until, report, self.midnight, self._sky.until, *(appliance.until for appliance in self._loads)
            )
            self._pass(end - self.time)
            self.time = end
            if end >= self._sky.until:
                self._sky.turn()
            for appliance in self._loads:
                if end >= appliance.until:
                    appliance.turn()
            if end >= report:
                self._report()
            if end >= self.midnight:
                self._begin_day()

    def _report(self) -> None:
        """Let all inverters report; their sum is counted anew."""
        made = self._made_wh - self.pcu_wh
        self.truth.pcu += made
        self.pcu_wh = self._made_wh
        self.reported_at += self.kind.report_s
        self.reported_w = made * HOUR_S / self.kind.report_s / self.kind.inverters

    def _pass(self, seconds: float) -> None:
        kind = self.kind
        count = kind.phases
        light = self._sky.light
        home = [(BASE_LOAD_W + self._sky.flicker_w) / count] * count
        for appliance in self._loads:
            if appliance.is_on:
                home[appliance.phase] += appliance.watts
        pv = min(kind.pv_peak_w, light * kind.pv_peak_w * 1.05)
        if self.grid_is_open:
            self._pass_alone(pv, sum(home), seconds)
            return
        foreign, third = light * kind.foreign_w / count, light * kind.third_party_w / count
        solar = self._solar(pv)
        rest = [h - s - foreign - third for h, s in zip(home, solar, strict=True)]
        battery = self._battery(FOLLOWED * sum(rest), seconds) / count
        grid = [r - battery for r in rest]
        self.powers = Powers(solar, [battery] * count, [0.0] * count, home, grid)
        self._count(pv, foreign, third, seconds)

    def _solar(self, pv: float) -> list[float]:
        standby = STANDBY_W * self.kind.inverters if pv <= 0 else 0.0
        return [(pv - standby) * share for share in self._shares]

    def _pass_alone(self, pv: float, home: float, seconds: float) -> None:
        """Let time pass off the grid. The phases are balanced; surplus sun is turned down, or loads are cut off."""
        count = self.kind.phases
        battery = self._battery(home - pv, seconds)
        pv = min(pv, max(0.0, home - battery))
        solar = self._solar(pv)
        missing = home - battery - sum(solar)
        generator = max(0.0, missing) if self.generator_is_on else 0.0
        self.powers = Powers(
            solar,
            [battery / count] * count,
            [generator / count] * count,
            [battery / count + generator / count + power for power in solar],
            [0.0] * count,
        )
        self._count(pv, 0.0, 0.0, seconds)

    def _battery(self, wanted: float, seconds: float) -> float:
        """Cover what is missing or store what is left over, as far as the batteries can. Positive: discharging."""
        kind = self.kind
        given = 0.0
        if kind.battery_wh:
            power = _possible(wanted, kind.battery_w, self.stored_wh, kind.battery_wh, seconds)
            self.stored_wh = _stored(self.stored_wh, power, kind.battery_wh, seconds)
            given = self.iq_battery_w = power
        if kind.ac_battery_wh:
            power = _possible(wanted - given, AC_BATTERY_W, self.ac_stored_wh, kind.ac_battery_wh, seconds)
            self.ac_stored_wh = _stored(self.ac_stored_wh, power, kind.ac_battery_wh, seconds)
            given += power
        return given

    def _count(self, pv: float, foreign: float, third: float, seconds: float) -> None:
        flows, truth, hours = self.powers, self.truth, seconds / HOUR_S
        for i in range(self.kind.phases):
            # Off the grid, the clamp at the grid connection measures the generator.
            at_grid = flows.generator[i] if self.grid_is_open else flows.grid[i]
            self.production[i].count(flows.solar[i], seconds)
            self.storage[i].count(flows.battery[i], seconds)
            self.third_party[i].count(third, seconds)
            self.net[i].count(at_grid, seconds)
            self.total[i].count(flows.home[i] - foreign, seconds)
            truth.phases_imported += max(0.0, flows.grid[i]) * hours
            truth.phases_exported += max(0.0, -flows.grid[i]) * hours
        grid, battery = sum(flows.grid), sum(flows.battery)
        solar = sum(flows.solar)
        truth.solar += (max(0.0, solar) + third * self.kind.phases) * hours
        truth.imported += max(0.0, grid) * hours
        truth.exported += max(0.0, -grid) * hours
        truth.home += (sum(flows.home) + max(0.0, -solar)) * hours
        truth.charged += max(0.0, -battery) * hours
        truth.discharged += max(0.0, battery) * hours
        truth.generator += sum(flows.generator) * hours
        self._made_wh += pv * hours * INVERTER_METER_RATIO


def _possible(wanted: float, limit: float, stored: float, capacity: float, seconds: float) -> float:
    """The power that a battery can keep up for so long, at most what is wanted."""
    hours = max(seconds, 1.0) / HOUR_S
    if wanted > 0:
        return min(wanted, limit, stored * DISCHARGE_EFFICIENCY / hours)
    return max(wanted, -limit, -(capacity - stored) / CHARGE_EFFICIENCY / hours)


def _stored(stored: float, power: float, capacity: float, seconds: float) -> float:
    change = -power / DISCHARGE_EFFICIENCY if power > 0 else -power * CHARGE_EFFICIENCY
    return min(capacity, max(0.0, stored + change * seconds / HOUR_S))
