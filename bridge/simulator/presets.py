"""The homes that can be simulated, with their inverters, batteries, meters and other equipment; and personalities
of gateways, which differ in what they do with a command.

Powers are in watts, energies in watt-hours. All phases, meters and devices of a home differ, so that a test
notices when two of them are swapped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

PRODUCTION = "production"
NET_CONSUMPTION = "net-consumption"
TOTAL_CONSUMPTION = "total-consumption"
STORAGE = "storage"
LOAD = "load"

METER_EIDS = {
    PRODUCTION: 704643328,
    NET_CONSUMPTION: 704643584,
    TOTAL_CONSUMPTION: 704643584,
    STORAGE: 704643840,
    LOAD: 704644608,
}
"""The identifier (eid) of a meter by its role. All gateways use the same ones."""


@dataclass(frozen=True, slots=True)
class MeterSpec:
    """A meter of the gateway, with current transformers. A disabled meter still reports, but meaningless values."""

    role: str
    enabled: bool = True

    @property
    def eid(self) -> int:
        return METER_EIDS[self.role]


@dataclass(frozen=True, slots=True)
class InverterSpec:
    """A microinverter on phase `leg` (0 is L1). `peak` is the highest power (W) that it has ever reported.

    A removed inverter stays in the gateway's list and has never reported. `inputs` is its number of solar modules.
    """

    serial: str
    peak: int
    leg: int
    removed: bool = False
    inputs: int = 1


@dataclass(frozen=True, slots=True)
class BatterySpec:
    """A battery. `capacity` is in Wh, `power` (W) limits charging and discharging, `leg` is its phase (0 is L1)."""

    serial: str
    capacity: int
    power: int
    leg: int


@dataclass(frozen=True, slots=True)
class GearSpec:
    """Other equipment in the device list.

    Kinds: 0 unknown, 17 system controller, 22 communications kit, 27 meter collar, 125 controller of a combiner.
    """

    serial: str
    kind: int


@dataclass(frozen=True, slots=True)
class LimitSpec:
    """A limit on the solar power of a home: `percent` of the rated power, due to the installer's limit (`power`, W)
    on the power to the grid.
    """

    percent: int
    power: float


@dataclass(frozen=True)
class Home:
    """A home and its gateway. `load` is the base load (W) of each phase, without large appliances.

    `phase_mode` is the kind of grid and `legs` the number of phases that are connected: a European home with one
    phase has "three" and 1. `nominal` is the voltage of a phase against neutral, `frequency` is in Hz. AC Batteries
    are listed among the inverters, as on a real gateway. `imeter` None leaves that element out of `/info`.
    """

    name: str
    serial: str
    firmware: str
    part_number: str
    legs: int
    phase_mode: str
    inverters: tuple[InverterSpec, ...]
    load: tuple[float, ...]
    meters: tuple[MeterSpec, ...] = ()
    batteries: tuple[BatterySpec, ...] = ()
    ac_batteries: tuple[BatterySpec, ...] = ()
    gear: tuple[GearSpec, ...] = ()
    generator: bool = False
    nominal: float = 230.0
    frequency: float = 50.0
    imeter: bool | None = True
    limit: LimitSpec | None = None

    @cached_property
    def version(self) -> tuple[int, int]:
        major, minor, *_ = self.firmware.lstrip("DRM").split(".")
        return int(major), int(minor)

    @property
    def light(self) -> float:
        """The highest share of their peak that the inverters may give."""
        return 1.0 if self.limit is None else self.limit.percent / 100

    @property
    def secure(self) -> bool:
        """True for firmware 7 and later (TLS, tokens); older firmware has plain HTTP and some digest auth."""
        return self.version >= (7, 0)

    @property
    def ensemble(self) -> bool:
        """True with storage equipment; only then a gateway answers on all of `/ivp/ensemble/*`."""
        return bool(self.batteries or self.gear)

    @property
    def storing(self) -> tuple[BatterySpec, ...]:
        """The batteries of both kinds: IQ Batteries, then AC Batteries."""
        return (*self.batteries, *self.ac_batteries)

    def has(self, *kinds: int) -> bool:
        return any(gear.kind in kinds for gear in self.gear)

    @property
    def working(self) -> tuple[InverterSpec, ...]:
        return tuple(inverter for inverter in self.inverters if not inverter.removed)

    def measures(self, role: str) -> bool:
        return any(meter.role == role and meter.enabled for meter in self.meters)


def _inverters(
    first: int, count: int, *, legs: int, removed: int = 0, two: Sequence[int] = ()
) -> tuple[InverterSpec, ...]:
    """Return `count` working and then `removed` removed inverters; those in `two` have two inputs."""
    return tuple(
        InverterSpec(
            str(first + 13 * i),
            250 + i * 84 % 239,
            leg=i % legs,
            removed=i >= count,
            inputs=2 if i in two else 1,
        )
        for i in range(count + removed)
    )


def _meters(*roles: str, enabled: bool = True) -> tuple[MeterSpec, ...]:
    return tuple(MeterSpec(role, enabled) for role in roles)


THREE_PHASE = Home(
    name="three-phase",
    serial="122301003111",
    firmware="D8.3.5167",
    part_number="800-00654-r08",
    legs=3,
    phase_mode="three",
    inverters=_inverters(482301001005, 20, legs=3, removed=1, two=(3, 16)),
    load=(310.0, 205.0, 420.0),
    meters=(*_meters(PRODUCTION, NET_CONSUMPTION, STORAGE), MeterSpec(LOAD, enabled=False)),
    batteries=(BatterySpec("492301002201", 5000, 3840, leg=0), BatterySpec("492301002214", 3360, 1280, leg=1)),
    gear=(GearSpec("122301009007", 0),),
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
    meters=_meters(PRODUCTION, NET_CONSUMPTION),
    batteries=(BatterySpec("492302002102", 5000, 3840, leg=0), BatterySpec("492302002119", 3360, 1280, leg=1)),
    gear=(GearSpec("122302007001", 17), GearSpec("122302007044", 22)),
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
    meters=_meters(PRODUCTION, NET_CONSUMPTION),
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
    meters=_meters(PRODUCTION, NET_CONSUMPTION, enabled=False),
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
    meters=_meters(PRODUCTION, NET_CONSUMPTION),
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
    meters=_meters(PRODUCTION, NET_CONSUMPTION),
    batteries=(BatterySpec("492307002301", 5000, 3540, leg=0), BatterySpec("492307002318", 5010, 3550, leg=1)),
    gear=(GearSpec("482307007027", 27), GearSpec("482307007125", 125)),
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
    meters=_meters(PRODUCTION, NET_CONSUMPTION),
    ac_batteries=(BatterySpec("121908002401", 1200, 270, leg=0), BatterySpec("121908002419", 1210, 260, leg=0)),
)

LIMITED = Home(
    name="limited",
    serial="122309003999",
    firmware="D8.3.6086",
    part_number="800-00555-r03",
    legs=2,
    phase_mode="split",
    inverters=_inverters(482309001009, 15, legs=2),
    load=(325.0, 510.0),
    meters=_meters(PRODUCTION, NET_CONSUMPTION, STORAGE),
    batteries=(BatterySpec("492309002501", 5000, 3840, leg=0),),
    gear=(GearSpec("122309007012", 17),),
    nominal=120.0,
    frequency=60.0,
    limit=LimitSpec(percent=35, power=500.0),
)

HOMES = {
    home.name: home
    for home in (THREE_PHASE, SPLIT_PHASE, SINGLE_PHASE, NO_CTS, LEGACY, LARGE, COLLAR, AC_BATTERIES, LIMITED)
}
"""All homes by name."""


DELAYS = {"storage": 10.0, "open": 28.0, "closed": 15.0, "contact": 3.0, "settings": 3.0, "generator": 5.0}
"""Seconds from a write until it is in force: storage settings, the grid relay's two directions, a dry contact, its
settings, and the generator. Those of relay and contacts were measured on firmware 8.3.6086.
"""


@dataclass(frozen=True, slots=True)
class Personality:
    """What a gateway does with the writes that it receives.

    `follows` tells which storage settings its controller follows: the `stored` ones, the stored ones only while
    `opt_schedules` is false (`unoptimized`), or only those of the `app`. `optimized` is the first value of
    `opt_schedules`; None leaves it out, as old firmware does. `roles` are the tokens' roles that may write. `reply`
    is the name of a fault that each write meets. With `spoils_rates` a write changes a price that nobody asked for.
    With `booleans` a contact's overrides are JSON booleans until the contact's settings are written, which must
    have them as texts.

    `delays` are those of `DELAYS` (s), and some that only a few gateways have: after `cloud` the cloud puts its own
    copy of the tariff back, after `undone` somebody undoes the change with the app, and for `hidden` after a change
    of a contact's settings the contacts NC1 and NC2 are shown as open, whatever they are.
    """

    firmware: str = "D8.2.127"
    follows: Literal["stored", "unoptimized", "app"] = "stored"
    optimized: bool | None = None
    roles: tuple[str, ...] = ("owner", "installer")
    reply: str = ""
    spoils_rates: bool = False
    booleans: bool = False
    delays: Mapping[str, float] = field(default_factory=lambda: MappingProxyType(DELAYS))


PERSONALITIES = {
    "obeys": Personality(),
    "ignores": Personality(firmware="D8.2.4264", follows="unoptimized", optimized=True),
    "cloud-restores": Personality(
        firmware="D8.3.5169", follows="unoptimized", optimized=False, delays={**DELAYS, "cloud": 90.0}
    ),
    "stale-file": Personality(
        firmware="D8.3.6086", follows="app", optimized=True, booleans=True, delays={**DELAYS, "hidden": 90.0}
    ),
    "hides-contacts": Personality(delays={**DELAYS, "hidden": 90.0}),
    "app-undoes": Personality(delays={**DELAYS, "undone": 120.0}),
    "installer-only": Personality(roles=("installer",)),
    "spoils-rates": Personality(spoils_rates=True),
    "refuses": Personality(reply="400"),
    "fails": Personality(reply="500"),
    "hangs": Personality(reply="hang"),
    "loses-answers": Personality(reply="lost"),
}
"""All personalities by name. The first four are those of real firmware."""
