"""The homes that can be simulated: what is on the roof, on the wall and behind the meter.

Powers are in watts, energies in watt-hours. No two phases, meters or devices of a home are alike, so that a
swap shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

PRODUCTION = "production"
NET = "net-consumption"
TOTAL = "total-consumption"
STORAGE = "storage"
LOAD = "load"

EIDS = {PRODUCTION: 704643328, NET: 704643584, TOTAL: 704643584, STORAGE: 704643840, LOAD: 704644608}
"""The identifiers that every gateway gives to the meters of a role."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A current transformer's meter. A disabled one goes on reporting, and what it reports is nonsense."""

    role: str
    enabled: bool = True

    @property
    def eid(self) -> int:
        return EIDS[self.role]


@dataclass(frozen=True, slots=True)
class Inverter:
    """A microinverter on phase `leg` (0 is L1). `peak` is the highest power it ever reported.

    A removed one stays in the gateway's list and has never reported. `inputs` is how many modules it takes.
    """

    serial: str
    peak: int
    leg: int
    removed: bool = False
    inputs: int = 1


@dataclass(frozen=True, slots=True)
class Battery:
    """`power` is the most it charges or discharges with, `leg` the phase it names in the device list."""

    serial: str
    capacity: int
    power: int
    leg: int


@dataclass(frozen=True, slots=True)
class Gear:
    """Other equipment in the device list: 0 unknown, 17 system controller, 22 communications kit, 27 meter collar,
    125 controller of a combiner.
    """

    serial: str
    kind: int


@dataclass(frozen=True)
class Home:
    """A home and its gateway. `load` is what each phase draws when nothing in particular is switched on.

    `phase_mode` is the grid's kind and `legs` the number of phases that are really connected: the ordinary European
    home with one phase has "three" and 1. `nominal` is the voltage of a phase against neutral. AC Batteries report
    as inverters do.
    """

    name: str
    serial: str
    firmware: str
    part_number: str
    legs: int
    phase_mode: str
    inverters: tuple[Inverter, ...]
    load: tuple[float, ...]
    meters: tuple[Meter, ...] = ()
    batteries: tuple[Battery, ...] = ()
    ac_batteries: tuple[Battery, ...] = ()
    gear: tuple[Gear, ...] = ()
    generator: bool = False
    nominal: float = 230.0
    frequency: float = 50.0
    imeter: bool | None = True

    @cached_property
    def version(self) -> tuple[int, int]:
        major, minor, *_ = self.firmware.lstrip("DRM").split(".")
        return int(major), int(minor)

    @property
    def secure(self) -> bool:
        """Firmware 7 brought TLS and tokens; before that it is plain HTTP and, here and there, digest auth."""
        return self.version >= (7, 0)

    @property
    def ensemble(self) -> bool:
        """Storage gear is what makes a gateway answer on `/ivp/ensemble/*`."""
        return bool(self.batteries or self.gear)

    @property
    def storing(self) -> tuple[Battery, ...]:
        """Batteries of both kinds."""
        return (*self.batteries, *self.ac_batteries)

    def has(self, *kinds: int) -> bool:
        return any(gear.kind in kinds for gear in self.gear)

    @property
    def working(self) -> tuple[Inverter, ...]:
        return tuple(inverter for inverter in self.inverters if not inverter.removed)

    def measures(self, role: str) -> bool:
        return any(meter.role == role and meter.enabled for meter in self.meters)


def _inverters(
    first: int, count: int, *, legs: int, removed: int = 0, two: Sequence[int] = ()
) -> tuple[Inverter, ...]:
    """`removed` more than `count` units, at the end of the list; those at the places in `two` have two inputs."""
    return tuple(
        Inverter(
            str(first + 13 * i),
            250 + i * 84 % 239,
            leg=i % legs,
            removed=i >= count,
            inputs=2 if i in two else 1,
        )
        for i in range(count + removed)
    )


def _meters(*roles: str, enabled: bool = True) -> tuple[Meter, ...]:
    return tuple(Meter(role, enabled) for role in roles)


THREE_PHASE = Home(
    name="three-phase",
    serial="122301003111",
    firmware="D8.3.5167",
    part_number="800-00654-r08",
    legs=3,
    phase_mode="three",
    inverters=_inverters(482301001005, 20, legs=3, removed=1, two=(3, 16)),
    load=(310.0, 205.0, 420.0),
    meters=(*_meters(PRODUCTION, NET, STORAGE), Meter(LOAD, enabled=False)),
    batteries=(Battery("492301002201", 5000, 3840, leg=0), Battery("492301002214", 3360, 1280, leg=1)),
    gear=(Gear("122301009007", 0),),
)

SPLIT_PHASE = Home(
    name="split-phase",
    serial="122302003222",
    firmware="D8.2.4345",
    part_number="800-00555-r03",
    legs=2,
    phase_mode="split",
    inverters=_inverters(482302001002, 16, legs=2),
    load=(365.0, 540.0),
    meters=_meters(PRODUCTION, NET),
    batteries=(Battery("492302002102", 5000, 3840, leg=0), Battery("492302002119", 3360, 1280, leg=1)),
    gear=(Gear("122302007001", 17), Gear("122302007044", 22)),
    generator=True,
    nominal=120.0,
    frequency=60.0,
)

SINGLE_PHASE = Home(
    name="single-phase",
    serial="122303003333",
    firmware="D8.3.5169",
    part_number="800-00554-r03",
    legs=1,
    phase_mode="three",
    inverters=_inverters(482303001004, 10, legs=1),
    load=(290.0,),
    meters=_meters(PRODUCTION, NET),
)

NO_CTS = Home(
    name="no-cts",
    serial="122304003444",
    firmware="D8.2.4264",
    part_number="800-00649-r01",
    legs=3,
    phase_mode="three",
    inverters=_inverters(482304001006, 12, legs=3),
    load=(275.0, 330.0, 190.0),
    meters=_meters(PRODUCTION, NET, enabled=False),
)

LEGACY = Home(
    name="legacy",
    serial="121405003555",
    firmware="D3.18.10",
    part_number="800-00069-r05",
    legs=1,
    phase_mode="split",
    inverters=_inverters(121405001003, 8, legs=1),
    load=(250.0,),
    imeter=None,
)

LARGE = Home(
    name="large",
    serial="122306003666",
    firmware="D8.3.5167",
    part_number="800-00647-r09",
    legs=3,
    phase_mode="three",
    inverters=_inverters(482306001001, 500, legs=3),
    load=(18200.0, 15400.0, 21700.0),
    meters=_meters(PRODUCTION, NET),
)

COLLAR = Home(
    name="collar",
    serial="482307003777",
    firmware="D8.3.1598",
    part_number="800-02403-r08",
    legs=2,
    phase_mode="split",
    inverters=_inverters(482307001003, 14, legs=2),
    load=(345.0, 480.0),
    meters=_meters(PRODUCTION, NET),
    batteries=(Battery("492307002301", 5000, 3540, leg=0), Battery("492307002318", 5010, 3550, leg=1)),
    gear=(Gear("482307007027", 27), Gear("482307007125", 125)),
    nominal=120.0,
    frequency=60.0,
)

AC_BATTERIES = Home(
    name="ac-batteries",
    serial="122308003888",
    firmware="D8.3.5169",
    part_number="800-00554-r03",
    legs=1,
    phase_mode="three",
    inverters=_inverters(482308001007, 6, legs=1),
    load=(265.0,),
    meters=_meters(PRODUCTION, NET),
    ac_batteries=(Battery("121908002401", 1200, 270, leg=0), Battery("121908002419", 1210, 260, leg=0)),
)

HOMES = {
    home.name: home
    for home in (THREE_PHASE, SPLIT_PHASE, SINGLE_PHASE, NO_CTS, LEGACY, LARGE, COLLAR, AC_BATTERIES)
}
"""The homes by name."""
