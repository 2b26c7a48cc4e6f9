"""What is really true in a simulated home: the answers are made from it, and tests compare with it.

Watts and watt-hours, with the signs of the bridge: grid + is import, battery + is discharge.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bridge.model import Phase


@dataclass(frozen=True, slots=True)
class Flow:
    """A power and the energies that it has added up to: `delivered` where it was positive, `received` where not."""

    power: float
    delivered: float
    received: float


STILL = Flow(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Flows:
    """One balance: home = solar + grid + battery. Solar is never negative; standby at night counts as home.

    The energies of solar and battery are those of their meters. Grid and home count from the simulation's start;
    the grid of a whole site is netted over the phases from one instant to the next, a single phase's is not.
    """

    solar: Flow
    grid: Flow
    battery: Flow
    home: Flow


@dataclass(frozen=True, slots=True)
class Metered:
    """What a meter counts since it was built in. The total's energies are sums over the phases, not netted."""

    total: Flow
    phases: Mapping[Phase, Flow]


@dataclass(frozen=True, slots=True)
class BatteryTruth:
    """`soc` in percent of `capacity`, `stored` and `capacity` in Wh, `power` + is discharge."""

    serial: str
    soc: float
    stored: float
    capacity: float
    power: float
    is_ac: bool = False


@dataclass(frozen=True, slots=True)
class InverterTruth:
    """`power` is what flows now; `reported` (W, whole) is what the gateway knows, since `reported_at`.

    `lifetime`, `today`, `yesterday` and `week` are the Wh that the gateway knows. A removed unit has 0 everywhere
    but in `peak`.
    """

    serial: str
    power: float
    reported: int
    reported_at: int
    peak: int
    lifetime: float = 0.0
    today: float = 0.0
    yesterday: float = 0.0
    week: float = 0.0


@dataclass(frozen=True, slots=True)
class Truth:
    """A snapshot at unix time `at`. `soc` is in percent; `today` and `week` are the solar Wh of the simulated days.

    `meters` are those that would be there if every role had a meter; the home says which do.
    """

    at: float
    site: Flows
    phases: Mapping[Phase, Flows]
    meters: Mapping[str, Metered]
    batteries: tuple[BatteryTruth, ...]
    inverters: tuple[InverterTruth, ...]
    soc: float
    today: float
    week: float

    @property
    def iq_batteries(self) -> tuple[BatteryTruth, ...]:
        return tuple(battery for battery in self.batteries if not battery.is_ac)

    @property
    def ac_batteries(self) -> tuple[BatteryTruth, ...]:
        return tuple(battery for battery in self.batteries if battery.is_ac)

    @staticmethod
    def charge(batteries: tuple[BatteryTruth, ...]) -> int:
        """Whole percent, as gateways say it."""
        capacity = sum(battery.capacity for battery in batteries)
        return round(100 * sum(battery.stored for battery in batteries) / capacity) if capacity else 0


def zeroed(truth: Truth) -> Truth:
    """A gateway that has just started on old firmware: no power yet and no counters."""
    nothing = Flows(STILL, STILL, STILL, STILL)
    return replace(
        truth,
        site=nothing,
        phases=dict.fromkeys(truth.phases, nothing),
        meters={role: Metered(STILL, dict.fromkeys(m.phases, STILL)) for role, m in truth.meters.items()},
        today=0.0,
        week=0.0,
    )
