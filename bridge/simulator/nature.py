"""Sun, clouds and appetite: pure functions of time, smooth where nature is, deterministic for a seed.

Times are seconds of the simulated local clock, whose day begins at multiples of 86400.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, pow, sin, tau  # noqa: A004 (of floats, a float)
from random import Random

from bridge.simulator.homes import Home

DAY = 86_400
SUNRISE = 6 * 3600
SUNSET = 20 * 3600
TWILIGHT = 800
"""After sunrise and before sunset the inverters are off for so many seconds, and draw their standby power."""


@dataclass(frozen=True, slots=True)
class Noise:
    """A smooth value between -1 and 1 that does not repeat: waves of seeded phase and uneven periods (seconds)."""

    waves: tuple[tuple[float, float], ...]

    @classmethod
    def seeded(cls, random: Random, periods: Sequence[float]) -> "Noise":
        return cls(tuple((tau / period, random.uniform(0, tau)) for period in periods))

    def at(self, time: float) -> float:
        return sum(sin(speed * time + phase) for speed, phase in self.waves) / len(self.waves)


@dataclass(frozen=True, slots=True)
class Appliance:
    """Something that switches on for `length` seconds in every `period`, and draws `power` watts."""

    power: float
    period: int
    length: int
    offset: int

    def at(self, time: float) -> float:
        return self.power if (time + self.offset) % self.period < self.length else 0.0


def height(time: float) -> float:
    """How high the sun stands, 0 to 1; 0 while the inverters are off."""
    second = time % DAY
    if not SUNRISE + TWILIGHT <= second <= SUNSET - TWILIGHT:
        return 0.0
    return pow(sin(pi * (second - SUNRISE) / (SUNSET - SUNRISE)), 1.3)


def last_daylight(time: float) -> float:
    """`time` itself by day, else the last moment at which the inverters were on."""
    if height(time):
        return time
    dusk = time - time % DAY + SUNSET - TWILIGHT
    return dusk if time >= dusk else dusk - DAY


class Nature:
    """The weather over a home and the habits in it."""

    def __init__(self, home: Home, seed: int) -> None:
        random = Random(f"{home.serial}/{seed}")  # noqa: S311 (weather, not secrets)
        self._clouds = Noise.seeded(random, (4021, 1373, 467, 61))
        self._legs = [Noise.seeded(random, (197, 31)) for _ in range(home.legs)]
        self._moods = [Noise.seeded(random, (2903, 317, 23)) for _ in range(home.legs)]
        self._appliances = [_appliances(random, base) for base in home.load]
        self._load = home.load

    def sunshine(self, time: float) -> list[float]:
        """The share of its peak that an inverter on each phase makes: below 0.97, and 0 in the dark."""
        bright = height(time)
        if not bright:
            return [0.0] * len(self._legs)
        sky = bright * (0.72 + 0.2 * self._clouds.at(time))
        return [sky * (1.0 - 0.012 * i + 0.02 * leg.at(time)) for i, leg in enumerate(self._legs)]

    def appetite(self, time: float) -> list[float]:
        """What the phases draw, in watts."""
        return [
            base * (1.0 + 0.3 * mood.at(time)) + sum(a.at(time) for a in appliances)
            for base, mood, appliances in zip(self._load, self._moods, self._appliances, strict=True)
        ]


def _appliances(random: Random, base: float) -> tuple[Appliance, ...]:
    """A fridge, a kettle and an oven, in proportion to the phase's load."""
    kinds = ((0.4, 2700, 900), (4.0, 5900, 200), (5.5, 28_100, 2400))
    return tuple(
        Appliance(base * share * random.uniform(0.9, 1.1), period, length, random.randrange(period))
        for share, period, length in kinds
    )
