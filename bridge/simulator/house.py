"""The model of a home: weather and loads set its powers, meters integrate them, batteries charge and discharge.

Powers are whole milliwatts and energies whole microjoules (mW x ms), so that every balance is exact and the result
does not depend on how often the house is advanced. Powers are computed once per second, or once per minute or hour
if the clock has jumped far ahead. Weather and loads are functions of local time in seconds, whose days begin at
multiples of 86400; they are the same for the same seed.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import pi, pow, sin, tau  # noqa: A004 (of floats, a float)
from random import Random

from bridge.model import Phase
from bridge.simulator.equipment import MICROJOULES_PER_WH, SimulatedBattery, dispatch, first_equipment
from bridge.simulator.presets import (
    NET_CONSUMPTION,
    PRODUCTION,
    STORAGE,
    TOTAL_CONSUMPTION,
    Home,
    InverterSpec,
)
from bridge.simulator.truth import EnergyBalance, Equipment, Flow, InverterTruth, MeterTruth, Truth

DAY_S = 86_400
SUNRISE_S = 6 * 3600
SUNSET_S = 20 * 3600
TWILIGHT_S = 800
"""For this long after sunrise and before sunset the inverters are off and draw standby power."""


@dataclass(frozen=True, slots=True)
class Noise:
    """A smooth value between -1 and 1 that does not repeat: the mean of sine waves (speed and phase)."""

    waves: tuple[tuple[float, float], ...]

    @classmethod
    def seeded(cls, random: Random, periods: Sequence[float]) -> "Noise":
        """Return waves with these periods (seconds) and random phases."""
        return cls(tuple((tau / period, random.uniform(0, tau)) for period in periods))

    def at(self, time: float) -> float:
        return sum(sin(speed * time + phase) for speed, phase in self.waves) / len(self.waves)


@dataclass(frozen=True, slots=True)
class Appliance:
    """An appliance that draws `power` watts for `length` seconds in every `period` seconds."""

    power: float
    period: int
    length: int
    offset: int

    def at(self, time: float) -> float:
        return self.power if (time + self.offset) % self.period < self.length else 0.0


def sun_height(time: float) -> float:
    """Return the strength of the sun from 0 to 1; it is 0 while the inverters are off."""
    second = time % DAY_S
    if not SUNRISE_S + TWILIGHT_S <= second <= SUNSET_S - TWILIGHT_S:
        return 0.0
    return pow(sin(pi * (second - SUNRISE_S) / (SUNSET_S - SUNRISE_S)), 1.3)


def last_daylight(time: float) -> float:
    """Return `time` by day, and by night the last time at which the inverters were on."""
    if sun_height(time):
        return time
    dusk = time - time % DAY_S + SUNSET_S - TWILIGHT_S
    return dusk if time >= dusk else dusk - DAY_S


class WeatherAndLoad:
    """The weather at a home and the electrical loads in it."""

    def __init__(self, home: Home, seed: int) -> None:
        random = Random(f"{home.serial}/{seed}")  # noqa: S311 (weather, not secrets)
        self._clouds = Noise.seeded(random, (4021, 1373, 467, 61))
        self._legs = [Noise.seeded(random, (197, 31)) for _ in range(home.legs)]
        self._habits = [Noise.seeded(random, (2903, 317, 23)) for _ in range(home.legs)]
        self._appliances = [_appliances(random, base) for base in home.load]
        self._load, self._light = home.load, home.light

    def sunshine(self, time: float) -> list[float]:
        """Return the share of its peak that an inverter on each phase produces: up to 0.97, 0 at night.

        A limit on solar power cuts it.
        """
        bright = sun_height(time)
        if not bright:
            return [0.0] * len(self._legs)
        sky = bright * (0.72 + 0.2 * self._clouds.at(time))
        shares = (sky * (1.0 - 0.012 * i + 0.02 * leg.at(time)) for i, leg in enumerate(self._legs))
        return [min(share, self._light) for share in shares]

    def load(self, time: float) -> list[float]:
        """Return the load of each phase in watts."""
        return [
            base * (1.0 + 0.3 * habit.at(time)) + sum(a.at(time) for a in appliances)
            for base, habit, appliances in zip(self._load, self._habits, self._appliances, strict=True)
        ]


def _appliances(random: Random, base: float) -> tuple[Appliance, ...]:
    """Return a fridge, a kettle and an oven, with powers in proportion to the phase's base load."""
    kinds = ((0.4, 2700, 900), (4.0, 5900, 200), (5.5, 28_100, 2400))
    return tuple(
        Appliance(base * share * random.uniform(0.9, 1.1), period, length, random.randrange(period))
        for share, period, length in kinds
    )


SECOND_MS, MINUTE_MS, HOUR_MS = 1000, 60_000, 3_600_000
STANDBY_MW = 1_370
"""The inverters of L1 draw this power at night; those of each further phase draw a little more."""
REPORT_PERIOD_S = 300
"""An inverter reports at this interval."""
STORAGE_SHARES = {1: (1.0,), 2: (0.53, 0.47), 3: (0.38, 0.33, 0.29)}
"""The shares of the phases in the batteries' power, by the number of phases."""
WARM_UP_MS = 7 * DAY_S * SECOND_MS


@dataclass(slots=True)
class MeterChannel:
    """A channel of a meter: the present power (mW) and the energies of both directions so far (uJ)."""

    power: int = 0
    delivered: int = 0
    received: int = 0

    def integrate(self, duration: int) -> None:
        energy = self.power * duration
        if energy > 0:
            self.delivered += energy
        else:
            self.received -= energy

    def flow(self) -> Flow:
        return Flow(self.power / 1000, self.delivered / MICROJOULES_PER_WH, self.received / MICROJOULES_PER_WH)


def total_flow(counters: list[MeterChannel]) -> Flow:
    return MeterChannel(
        sum(c.power for c in counters), sum(c.delivered for c in counters), sum(c.received for c in counters)
    ).flow()


class InverterReports:
    """The reports of a home's inverters, each with its own offset in the reporting period; none reports at night.

    `peaks` are the highest powers of the phases in W; `shift` is that of the simulated day in seconds.
    """

    def __init__(self, home: Home, surroundings: WeatherAndLoad, peaks: Sequence[float], shift: int) -> None:
        self._home, self._surroundings, self._peaks, self._shift = home, surroundings, peaks, shift
        self._reports: dict[str, InverterTruth] = {}

    def at(
        self, time: float, produced: Sequence[int], midnights: Sequence[Sequence[int]]
    ) -> tuple[InverterTruth, ...]:
        """All inverters at a time, by what the phases have produced until then and until the last midnights
        (uJ).
        """
        share = self._surroundings.sunshine(time + self._shift)
        found = []
        for index, unit in enumerate(self._home.inverters):
            if unit.removed:
                found.append(InverterTruth(unit.serial, 0.0, 0, 0, unit.peak))
                continue
            reported_at = self._reported_at(index, time)
            known = self._reports.get(unit.serial)
            if known is None or known.reported_at != reported_at:
                known = self._reports[unit.serial] = self._report(unit, reported_at, produced, midnights)
            found.append(replace(known, power=unit.peak * share[unit.leg]))
        return tuple(found)

    def _report(
        self, unit: InverterSpec, at: int, produced: Sequence[int], midnights: Sequence[Sequence[int]]
    ) -> InverterTruth:
        """The report of time `at`. Its energies are the inverter's share of its phase's, by peak power."""
        part = unit.peak / self._peaks[unit.leg] / MICROJOULES_PER_WH
        made = produced[unit.leg]
        begun = [legs[unit.leg] for legs in midnights]
        watts = round(unit.peak * self._surroundings.sunshine(at + self._shift)[unit.leg])
        return InverterTruth(
            unit.serial,
            0.0,
            watts,
            at,
            unit.peak,
            lifetime=made * part,
            today=(made - begun[-1]) * part,
            yesterday=(begun[-1] - begun[-2]) * part,
            week=(made - begun[0]) * part,
        )

    def _reported_at(self, index: int, time: float) -> int:
        offset = index * 37 % REPORT_PERIOD_S
        seen = _last_cycle(time, offset)
        return _last_cycle(last_daylight(seen + self._shift) - self._shift, offset)


def zone_where(hour: float, now: float) -> str:
    """The name of a time zone in which it is this hour of the day at the unix time `now`, within half an hour."""
    behind = round(now % DAY_S / 3600 - hour)
    return f"Etc/GMT{(behind + 12) % 24 - 12:+d}"


def _last_cycle(time: float, offset: int) -> int:
    return int((time - offset) // REPORT_PERIOD_S) * REPORT_PERIOD_S + offset


class House:
    """The state of a home at one moment of the clock; `advance` moves it on.

    `start_hour` shifts the simulated day so that the simulation starts at this hour. Without it, days are UTC days.
    """

    def __init__(self, home: Home, *, start: float, seed: int = 0, start_hour: float | None = None) -> None:
        self.home = home
        self._equipment = first_equipment(home)
        self.behind: House | None = None  # a roof with its own gateway, whose sun this house's grid meter sees
        self.surroundings = WeatherAndLoad(home, seed)
        self._shift = 0 if start_hour is None else 60 * round((start_hour * 3600 - start % DAY_S) / 60)
        self.peaks = [sum(i.peak for i in home.working if i.leg == leg) for leg in range(home.legs)]
        self._meters = _meters(home, Random(f"{home.name}/{seed}"))  # noqa: S311 (numbers, not secrets)
        self._site_grid = MeterChannel()
        self._solar = [MeterChannel(0, c.delivered, 0) for c in self._meters[PRODUCTION]]
        self._batteries = [
            SimulatedBattery(battery, is_ac=battery in home.ac_batteries) for battery in home.storing
        ]
        self._reports = InverterReports(home, self.surroundings, self.peaks, self._shift)
        self._midnights: deque[list[int]] = deque(maxlen=7)
        """The energy that each phase had produced at each of the last seven midnights (uJ)."""
        self._now = round(start * SECOND_MS)
        self._at = self._interval_end = self._midnight() - WARM_UP_MS
        self.advance(start)
        for counter in (self._site_grid, *self._meters[TOTAL_CONSUMPTION]):  # they count from the start on
            counter.delivered = counter.received = 0

    def advance(self, now: float) -> None:
        """Move on to unix time `now`. A time before the present one changes nothing."""
        target = round(now * SECOND_MS)
        while self._at < target:
            if self._at >= self._interval_end:
                self._start_interval(target)
            until = min(target, self._interval_end)
            self._integrate(until - self._at)
            self._at = until
        if self._at >= self._interval_end:
            self._start_interval(self._at)

    def follow(self, equipment: Equipment) -> None:
        """Follow another state of the equipment from the present moment on. The same state changes nothing."""
        if equipment == self._equipment:
            return
        self._equipment = equipment
        self._set_powers((self._at + self._shift * SECOND_MS) / SECOND_MS)

    def truth(self) -> Truth:
        """Return the true values of the present moment."""
        meters = {role: _metered(counters) for role, counters in self._meters.items()}
        flows = _metered(self._solar), meters[NET_CONSUMPTION], meters[STORAGE], meters[TOTAL_CONSUMPTION]
        phases = {p: EnergyBalance(*(flow.phases[p] for flow in flows)) for p in list(Phase)[: self.home.legs]}
        solar, _, storage, home = flows
        site = EnergyBalance(solar.total, self._site_grid.flow(), storage.total, home.total)
        batteries = tuple(battery.truth() for battery in self._batteries)
        capacity = sum(battery.capacity for battery in batteries)
        made = sum(self._produced)
        return Truth(
            at=self._at / SECOND_MS,
            site=site,
            phases=phases,
            meters=meters,
            batteries=batteries,
            inverters=self._reports.at(self._at / SECOND_MS, self._produced, self._midnights),
            soc=100 * sum(battery.stored for battery in batteries) / capacity if capacity else 0.0,
            today=(made - sum(self._midnights[-1])) / MICROJOULES_PER_WH,
            week=(made - sum(self._midnights[0])) / MICROJOULES_PER_WH,
            equipment=self._equipment,
        )

    @property
    def _produced(self) -> list[int]:
        return [counter.delivered for counter in self._meters[PRODUCTION]]

    def _midnight(self) -> int:
        """Return when the simulated day that contains `_now` began, as a time of the real clock (ms)."""
        return self._now - (self._now + self._shift * SECOND_MS) % (DAY_S * SECOND_MS)

    def _start_interval(self, target: int) -> None:
        """Begin the next interval, in which all powers are constant."""
        start, ahead = self._at, target - self._at
        length = HOUR_MS if ahead >= 3 * HOUR_MS else MINUTE_MS if ahead >= 3 * MINUTE_MS else SECOND_MS
        shift = self._shift * SECOND_MS
        self._interval_end = start + length - (start + shift) % length
        if (start + shift) % (DAY_S * SECOND_MS) == 0:
            self._midnights.append(self._produced)
        middle = start if length == SECOND_MS else (start + self._interval_end) // 2
        self._set_powers((middle + shift) / SECOND_MS)

    def _set_powers(self, local: float) -> None:
        """Set all powers to those of the local time (s). The grid of each phase balances the others."""
        production = _production(self, local)
        others = [0] * self.home.legs if self.behind is None else _production(self.behind, local)
        load = [round(watts * 1000) for watts in self.surroundings.load(local)]
        if not self._equipment.on_grid:
            production = [max(0, power) for power in production]
        missing = sum(load) - sum(production)
        total = dispatch(self._batteries, self._equipment, missing, int(local % DAY_S // 3600))
        if self._equipment.on_grid:
            storage = _by_phase(total, self.home.legs)
        else:
            load, production, storage = _island(load, production, total)
        for i in range(self.home.legs):
            grid = load[i] - production[i] - storage[i]
            solar = self._solar[i].power = max(0, production[i])
            self._meters[PRODUCTION][i].power = production[i]
            self._meters[NET_CONSUMPTION][i].power = grid - others[i]
            self._meters[STORAGE][i].power = storage[i]
            self._meters[TOTAL_CONSUMPTION][i].power = solar + grid + storage[i]
        self._site_grid.power = sum(counter.power for counter in self._meters[NET_CONSUMPTION])

    def _integrate(self, duration: int) -> None:
        for counters in self._meters.values():
            for counter in counters:
                counter.integrate(duration)
        for counter in (*self._solar, self._site_grid):
            counter.integrate(duration)
        for battery in self._batteries:
            battery.integrate(duration)


def _by_phase(total: int, legs: int) -> list[int]:
    """Return the batteries' power (mW) on each phase."""
    parts = [int(total * share) for share in STORAGE_SHARES[legs]]
    parts[-1] += total - sum(parts)
    return parts


def _island(load: list[int], production: list[int], storage: int) -> tuple[list[int], list[int], list[int]]:
    """Return the powers (mW) of load, production and batteries on each phase of a home that is off the grid.

    Loads are shed if the batteries give too little, and the inverters make no more than is used.
    """
    lacking = sum(load) - sum(production) - storage
    load, production = _scaled(load, -max(0, lacking)), _scaled(production, min(0, lacking))
    return load, production, [used - made for used, made in zip(load, production, strict=True)]


def _scaled(powers: list[int], difference: int) -> list[int]:
    """Return powers whose sum differs by `difference`, in the same proportions."""
    total = sum(powers)
    if not difference or not total:
        return powers
    scaled = [power * (total + difference) // total for power in powers]
    scaled[-1] += total + difference - sum(scaled)
    return scaled


def _production(house: House, local: float) -> list[int]:
    """The power (mW) of the inverters on each phase at the local time (s); at night a small draw."""
    shares = enumerate(house.surroundings.sunshine(local))
    return [round(1000 * house.peaks[i] * share) if share else -STANDBY_MW - 211 * i for i, share in shares]


def _metered(counters: list[MeterChannel]) -> MeterTruth:
    return MeterTruth(total_flow(counters), {p: c.flow() for p, c in zip(Phase, counters, strict=False)})


def _meters(home: Home, random: Random) -> dict[str, list[MeterChannel]]:
    """Return meters that have already counted for some years, each channel with other values."""
    years = {
        PRODUCTION: (2900.0, 2.1),
        NET_CONSUMPTION: (2300.0, 1500.0),
        STORAGE: (800.0 if home.storing else 0.0, 910.0 if home.storing else 0.0),
        TOTAL_CONSUMPTION: (0.0, 0.0),
    }
    scale = sum(home.load) / len(home.load) / 300 * MICROJOULES_PER_WH * 1000
    return {
        role: [MeterChannel(0, *(int(scale * kwh * random.uniform(0.8, 1.2)) for kwh in both)) for _ in home.load]
        for role, both in years.items()
    }
