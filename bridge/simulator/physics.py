"""A home that lives: its powers follow sun and habits, its meters add them up, its batteries fill and empty.

Inside, powers are whole milliwatts and energies whole microjoules (mW x ms), so that every balance is exact and
nothing is lost in rounding, however often or rarely the clock is looked at. Between two looks powers are taken
once a second; when the clock has jumped, once a minute or once an hour.
"""

from collections import deque
from dataclasses import dataclass, replace
from random import Random

from bridge.model import Phase
from bridge.simulator.homes import NET, PRODUCTION, STORAGE, TOTAL, Battery, Home, Inverter
from bridge.simulator.nature import DAY, Nature, last_daylight
from bridge.simulator.truth import BatteryTruth, Flow, Flows, InverterTruth, Metered, Truth

WH = 3_600_000_000
"""Microjoules in a watt-hour."""
SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
STANDBY = 1_370
"""What the inverters of a phase draw at night, in mW; each phase a little more than the one before."""
REPORT = 300
"""Seconds between two reports of an inverter."""
RESERVE = 0.1
TAPER = HOUR
"""Batteries slow down so that full and empty stay at least so far away, which is the longest stretch there is."""
EFFICIENCY = 0.96
SHARES = {1: (1.0,), 2: (0.53, 0.47), 3: (0.38, 0.33, 0.29)}
"""How the storage's power is spread over the phases."""
WARM_UP = 7 * DAY * SECOND


@dataclass(slots=True)
class Counter:
    """A meter's channel: what it shows now (mW) and what it has added up (uJ)."""

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
        return Flow(self.power / 1000, self.delivered / WH, self.received / WH)


def summed(counters: list[Counter]) -> Flow:
    return Counter(
        sum(c.power for c in counters), sum(c.delivered for c in counters), sum(c.received for c in counters)
    ).flow()


class Store:
    """One battery: `energy` in uJ."""

    def __init__(self, battery: Battery, *, is_ac: bool) -> None:
        self.battery, self.is_ac = battery, is_ac
        self.full = battery.capacity * WH
        self.energy = self.full * 55 // 100
        self.power = 0

    def ask(self, power: int) -> int:
        """Takes or gives as much of `power` (mW, + is discharge) as it can, and says how much that is."""
        limit = self.battery.power * 1000
        spare = self.energy - int(self.full * RESERVE) if power > 0 else int((self.full - self.energy) / EFFICIENCY)
        limit = min(limit, max(0, spare) // TAPER)
        self.power = max(-limit, min(limit, power))
        return self.power

    def integrate(self, duration: int) -> None:
        energy = self.power * duration
        self.energy -= energy if energy > 0 else int(energy * EFFICIENCY)

    def truth(self) -> BatteryTruth:
        return BatteryTruth(
            self.battery.serial,
            soc=100 * self.energy / self.full,
            stored=self.energy / WH,
            capacity=float(self.battery.capacity),
            is_ac=self.is_ac,
            power=self.power / 1000,
        )


class House:
    """A home's state at one instant of the clock; `advance` moves it on.

    `start_hour` moves the simulated day so that it is that hour when the simulation starts; without it the day is
    that of UTC.
    """

    def __init__(self, home: Home, *, start: float, seed: int = 0, start_hour: float | None = None) -> None:
        self.home = home
        self._nature = Nature(home, seed)
        self._shift = 0 if start_hour is None else 60 * round((start_hour * 3600 - start % DAY) / 60)
        self._peaks = [sum(i.peak for i in home.working if i.leg == leg) for leg in range(home.legs)]
        self._meters = _meters(home, Random(f"{home.name}/{seed}"))  # noqa: S311 (numbers, not secrets)
        self._site_grid = Counter()
        self._solar = [Counter(0, c.delivered, 0) for c in self._meters[PRODUCTION]]
        self._stores = [Store(battery, is_ac=battery in home.ac_batteries) for battery in home.storing]
        self._reports: dict[str, InverterTruth] = {}
        self._midnights: deque[list[int]] = deque(maxlen=7)
        """What each phase had produced at the last midnights (uJ)."""
        self._now = round(start * SECOND)
        self._at = self._end = self._midnight() - WARM_UP
        self.advance(start)
        self._forget_past()

    def advance(self, now: float) -> None:
        """Moves on to unix time `now`; a clock that went back changes nothing."""
        target = round(now * SECOND)
        while self._at < target:
            if self._at >= self._end:
                self._open(target)
            until = min(target, self._end)
            self._integrate(until - self._at)
            self._at = until
        if self._at >= self._end:
            self._open(self._at)

    def truth(self) -> Truth:
        meters = {role: _metered(counters) for role, counters in self._meters.items()}
        solar, home = _metered(self._solar), meters[TOTAL]
        names = list(Phase)[: self.home.legs]
        grid, storage = meters[NET], meters[STORAGE]
        phases = {p: Flows(solar.phases[p], grid.phases[p], storage.phases[p], home.phases[p]) for p in names}
        site = Flows(solar.total, self._site_grid.flow(), storage.total, home.total)
        batteries = tuple(store.truth() for store in self._stores)
        capacity = sum(battery.capacity for battery in batteries)
        made = sum(self._made_by_leg)
        return Truth(
            at=self._at / SECOND,
            site=site,
            phases=phases,
            meters=meters,
            batteries=batteries,
            inverters=self._inverters(),
            soc=100 * sum(battery.stored for battery in batteries) / capacity if capacity else 0.0,
            today=(made - sum(self._midnights[-1])) / WH,
            week=(made - sum(self._midnights[0])) / WH,
        )

    @property
    def _made_by_leg(self) -> list[int]:
        return [counter.delivered for counter in self._meters[PRODUCTION]]

    def _midnight(self) -> int:
        """The beginning of the simulated day that `_now` lies in, on the real clock."""
        return self._now - (self._now + self._shift * SECOND) % (DAY * SECOND)

    def _open(self, target: int) -> None:
        """Begins the next stretch of time that has one power throughout."""
        start, ahead = self._at, target - self._at
        length = HOUR if ahead >= 3 * HOUR else MINUTE if ahead >= 3 * MINUTE else SECOND
        shift = self._shift * SECOND
        self._end = start + length - (start + shift) % length
        if (start + shift) % (DAY * SECOND) == 0:
            self._midnights.append(self._made_by_leg)
        middle = start if length == SECOND else (start + self._end) // 2
        self._settle((middle + shift) / SECOND)

    def _settle(self, local: float) -> None:
        """Sets all powers to those of the local time: each phase's grid is what the others leave over."""
        production = [self._made(i, share) for i, share in enumerate(self._nature.sunshine(local))]
        load = [round(watts * 1000) for watts in self._nature.appetite(local)]
        storage = self._dispatch(sum(load) - sum(production))
        for i in range(self.home.legs):
            grid = load[i] - production[i] - storage[i]
            solar = max(0, production[i])
            self._solar[i].power = solar
            self._meters[PRODUCTION][i].power = production[i]
            self._meters[NET][i].power = grid
            self._meters[STORAGE][i].power = storage[i]
            self._meters[TOTAL][i].power = solar + grid + storage[i]
        self._site_grid.power = sum(counter.power for counter in self._meters[NET])

    def _made(self, leg: int, share: float) -> int:
        return round(1000 * self._peaks[leg] * share) if share else -STANDBY - 211 * leg

    def _dispatch(self, missing: int) -> list[int]:
        """The batteries cover nine tenths of what is missing (mW), or take as much of what is left over."""
        capacity = sum(store.full for store in self._stores) or 1
        total = sum(store.ask(missing * 9 // 10 * store.full // capacity) for store in self._stores)
        legs = [int(total * share) for share in SHARES[self.home.legs]]
        legs[-1] += total - sum(legs)
        return legs

    def _integrate(self, duration: int) -> None:
        for counters in self._meters.values():
            for counter in counters:
                counter.integrate(duration)
        for counter in (*self._solar, self._site_grid):
            counter.integrate(duration)
        for store in self._stores:
            store.integrate(duration)

    def _forget_past(self) -> None:
        """Grid and home count from the start: nobody knows what they were before."""
        for counter in (self._site_grid, *self._meters[TOTAL]):
            counter.delivered = counter.received = 0

    def _inverters(self) -> tuple[InverterTruth, ...]:
        share = self._nature.sunshine(self._at / SECOND + self._shift)
        return tuple(self._inverter(i, unit, share) for i, unit in enumerate(self.home.inverters))

    def _inverter(self, index: int, unit: Inverter, share: list[float]) -> InverterTruth:
        if unit.removed:
            return InverterTruth(unit.serial, 0.0, 0, 0, unit.peak)
        at = self._reported_at(index)
        known = self._reports.get(unit.serial)
        if known is None or known.reported_at != at:
            known = self._reports[unit.serial] = self._report(unit, at)
        return replace(known, power=unit.peak * share[unit.leg])

    def _report(self, unit: Inverter, at: int) -> InverterTruth:
        """All inverters of a phase have the same sun, so each has made its part of what the phase has."""
        part = unit.peak / self._peaks[unit.leg] / WH
        made = self._made_by_leg[unit.leg]
        begun = [legs[unit.leg] for legs in self._midnights]
        watts = round(unit.peak * self._nature.sunshine(at + self._shift)[unit.leg])
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

    def _reported_at(self, index: int) -> int:
        """Each inverter has its own second in the five minutes; at night the last report was at dusk."""
        offset = index * 37 % REPORT
        seen = self._cycle(self._at / SECOND, offset)
        return self._cycle(last_daylight(seen + self._shift) - self._shift, offset)

    def _cycle(self, time: float, offset: int) -> int:
        return int((time - offset) // REPORT) * REPORT + offset


def _metered(counters: list[Counter]) -> Metered:
    return Metered(summed(counters), {p: c.flow() for p, c in zip(Phase, counters, strict=False)})


def _meters(home: Home, random: Random) -> dict[str, list[Counter]]:
    """Meters with some years behind them. No counter is like another, nor an end of one like a beginning."""
    years = {
        PRODUCTION: (2900.0, 2.1),
        NET: (2300.0, 1500.0),
        STORAGE: (800.0 if home.storing else 0.0, 910.0 if home.storing else 0.0),
        TOTAL: (0.0, 0.0),
    }
    scale = sum(home.load) / len(home.load) / 300 * WH * 1000
    return {
        role: [Counter(0, *(int(scale * kwh * random.uniform(0.8, 1.2)) for kwh in both)) for _ in home.load]
        for role, both in years.items()
    }
