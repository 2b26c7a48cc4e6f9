"""The true values of a simulated home, from which the answers are made and with which tests compare.

Powers are in watts and energies in watt-hours, with the signs of the bridge: grid + is import, battery + is
discharge. The electrical values that meters report beside them (volts, amperes, reactive and apparent power) are
derived from them and differ a little on every phase, meter and second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import copysign, hypot, sin
from typing import Any, Self

from bridge.model import Phase
from bridge.simulator.presets import LOAD, NET_CONSUMPTION, PRODUCTION, STORAGE, TOTAL_CONSUMPTION, Home, MeterSpec


@dataclass(frozen=True, slots=True)
class Flow:
    """A power and its energies so far: `delivered` while it was positive, `received` while it was negative."""

    power: float
    delivered: float
    received: float


ZERO_FLOW = Flow(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class EnergyBalance:
    """The balance home = solar + grid + battery of a phase or a site.

    Solar is never negative; the inverters' standby at night counts as home. The energies of solar and battery are
    those of their meters. Grid and home count from the start of the simulation. A site's grid energies are
    integrated from the sum of the phases' powers at each moment.
    """

    solar: Flow
    grid: Flow
    battery: Flow
    home: Flow


@dataclass(frozen=True, slots=True)
class MeterTruth:
    """The values of a meter since its installation. The total's energies are sums over the phases, not netted."""

    total: Flow
    phases: Mapping[Phase, Flow]


@dataclass(frozen=True, slots=True)
class BatteryTruth:
    """A battery: `soc` in percent of `capacity`, `stored` and `capacity` in Wh, `power` + is discharge."""

    serial: str
    soc: float
    stored: float
    capacity: float
    power: float
    is_ac: bool = False


@dataclass(frozen=True, slots=True)
class InverterTruth:
    """An inverter: `power` is its present power, `reported` (whole W) that of its last report at `reported_at`.

    `lifetime`, `today`, `yesterday` and `week` are the Wh of the last report. A removed inverter has 0 in all
    fields but `peak`.
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


Document = Mapping[str, Any]
"""A JSON object that is stored as it was written. It is never changed, but replaced."""
Place = tuple[str, ...]
"""A place in `Equipment`: the name of a field, and a key if the field is a mapping of several devices."""


@dataclass(frozen=True, slots=True)
class BatteryUse:
    """How the controller really uses the IQ Batteries, whatever the stored tariff says. Charges are in percent.

    On the grid the batteries give nothing below `floor`, off the grid nothing below `lowest`. `floor` is the
    reserve, except in a home whose settings were never written: such a home uses its batteries down to `lowest`.
    """

    mode: str = "self-consumption"
    reserve: float = 20.0
    lowest: float = 10.0
    charge_from_grid: bool = False
    floor: float = 10.0


@dataclass(frozen=True, slots=True)
class Equipment:
    """The state of all equipment that can be controlled, as it really is.

    `tariff` is the stored object, which the controller may or may not follow; `use` is what it does. `relay` is
    what was commanded of the grid relay (`admin`) and its position (`oper`). `contacts` are positions and
    `contact_settings` the settings, both by the contact's name. `generator` is its state. `sleeping` has the levels
    of the AC Batteries that sleep, by serial number; None or nothing means awake.
    """

    tariff: Document
    contacts: Mapping[str, str]
    contact_settings: Mapping[str, Document]
    generator: Document
    generator_mode: Document
    generator_settings: Document
    generator_schedule: Document
    use: BatteryUse = BatteryUse()
    relay: Mapping[str, str] = field(default_factory=lambda: {"admin": "closed", "oper": "closed"})
    sleeping: Mapping[str, Document | None] = field(default_factory=dict)
    contacts_hidden: bool = False
    """Whether the gateway shows the contacts NC1 and NC2 as open, whatever they are."""
    is_stale: bool = False
    """Whether the schedule in the tariff's answer tells what is stored, and not what is in force."""

    @property
    def on_grid(self) -> bool:
        return self.relay["oper"] == "closed"

    def get(self, place: Place) -> Any:
        """Return the value of a place, or None for an unknown device."""
        value = getattr(self, place[0])
        return value.get(place[1]) if len(place) > 1 else value

    def having(self, place: Place, value: Any) -> Self:
        """Return the equipment with another value at one place."""
        if len(place) > 1:
            value = {**getattr(self, place[0]), place[1]: value}
        return replace(self, **{place[0]: value})


@dataclass(frozen=True, slots=True)
class Truth:
    """A snapshot at unix time `at`. `soc` is in percent; `today` and `week` are the solar Wh of the simulated days.

    `meters` are those that would be there if every role had a meter; the home says which do.
    """

    at: float
    site: EnergyBalance
    phases: Mapping[Phase, EnergyBalance]
    meters: Mapping[str, MeterTruth]
    batteries: tuple[BatteryTruth, ...]
    inverters: tuple[InverterTruth, ...]
    soc: float
    today: float
    week: float
    equipment: Equipment

    @property
    def iq_batteries(self) -> tuple[BatteryTruth, ...]:
        return tuple(battery for battery in self.batteries if not battery.is_ac)

    @property
    def ac_batteries(self) -> tuple[BatteryTruth, ...]:
        return tuple(battery for battery in self.batteries if battery.is_ac)

    @staticmethod
    def charge(batteries: tuple[BatteryTruth, ...]) -> int:
        """Return the state of charge of some batteries together, in whole percent as gateways report it."""
        capacity = sum(battery.capacity for battery in batteries)
        return round(100 * sum(battery.stored for battery in batteries) / capacity) if capacity else 0


def zeroed(truth: Truth) -> Truth:
    """Return the values of a gateway with old firmware that has just started: all powers and counters are 0."""
    nothing = EnergyBalance(ZERO_FLOW, ZERO_FLOW, ZERO_FLOW, ZERO_FLOW)
    return replace(
        truth,
        site=nothing,
        phases=dict.fromkeys(truth.phases, nothing),
        meters={
            role: MeterTruth(ZERO_FLOW, dict.fromkeys(m.phases, ZERO_FLOW)) for role, m in truth.meters.items()
        },
        today=0.0,
        week=0.0,
    )


ROLE_ORDER = (PRODUCTION, NET_CONSUMPTION, TOTAL_CONSUMPTION, STORAGE, LOAD)
REACTIVE_POWER_MODEL = {
    PRODUCTION: (0.021, 11.3),
    NET_CONSUMPTION: (0.043, -47.7),
    TOTAL_CONSUMPTION: (0.031, -29.1),
    STORAGE: (0.015, 8.9),
    LOAD: (0.0, 0.1),
}
"""Reactive power by role: a share of the active power, plus a constant in VAr."""
FIRMWARE_8_3 = (8, 3)
"""From this firmware on, gateways add up power factors, net the energies of reports and report an unknown meter."""


@dataclass(frozen=True, slots=True)
class ElectricalValues:
    """All values of a meter's channel or of a whole meter."""

    flow: Flow = ZERO_FLOW
    reactive: float = 0.0
    apparent: float = 0.0
    voltage: float = 0.0
    current: float = 0.0
    factor: float = 0.0
    frequency: float = 0.0
    apparent_energy: float = 0.0
    lagging: float = 0.0
    leading: float = 0.0


def channel_values(home: Home, truth: Truth, meter: MeterSpec) -> list[ElectricalValues]:
    """Return the three channels of a meter. Channels that are not connected have meaningless values."""
    if not meter.enabled:
        return [_disabled_channel(home, truth.at, meter, leg) for leg in range(3)]
    return [
        *phase_values(home, truth, meter.role),
        *(_unconnected_channel(home, meter.role, leg) for leg in range(home.legs, 3)),
    ]


def whole_meter(home: Home, legs: Sequence[ElectricalValues]) -> ElectricalValues:
    """Return the values of a whole meter from its phases.

    The firmware adds up even volts, amperes without their signs and, from 8.3 on, power factors.
    """
    factors = sum(e.factor for e in legs)
    return replace(
        sum_currents(legs),
        voltage=sum(e.voltage for e in legs),
        factor=factors if home.version >= FIRMWARE_8_3 else factors / len(legs),
    )


def sum_currents(parts: Sequence[ElectricalValues]) -> ElectricalValues:
    """Return the sum of several currents on one conductor. The voltage is that of the first."""
    power, apparent = sum(e.flow.power for e in parts), sum(e.apparent for e in parts)
    return ElectricalValues(
        Flow(power, sum(e.flow.delivered for e in parts), sum(e.flow.received for e in parts)),
        reactive=sum(e.reactive for e in parts),
        apparent=apparent,
        voltage=parts[0].voltage,
        current=sum(e.current for e in parts),
        factor=power / apparent,
        frequency=parts[0].frequency,
        apparent_energy=sum(e.apparent_energy for e in parts),
        lagging=sum(e.lagging for e in parts),
        leading=sum(e.leading for e in parts),
    )


def phase_values(home: Home, truth: Truth, role: str) -> list[ElectricalValues]:
    """Return the channels of a meter that are connected to a phase."""
    flows = truth.meters[role].phases.values()
    return [_electrics(home, truth.at, role, leg, flow) for leg, flow in enumerate(flows)]


def _electrics(home: Home, at: float, role: str, leg: int, flow: Flow) -> ElectricalValues:
    share, constant = REACTIVE_POWER_MODEL[role]
    reactive = share * abs(flow.power) + constant * (1 + leg / 7) + 0.4 * sin(at / 13 + leg)
    apparent = hypot(flow.power, reactive)
    voltage = voltage_at(home, at, leg) + 0.037 * ROLE_ORDER.index(role)
    energy = flow.delivered + flow.received
    return ElectricalValues(
        flow,
        reactive=reactive,
        apparent=apparent,
        voltage=voltage,
        current=apparent / voltage,
        factor=flow.power / apparent,
        frequency=frequency_at(home, at),
        apparent_energy=energy * 1.07 + 113.4 * (leg + 1),
        lagging=energy * (0.19 if constant > 0 else 0.0004) + 61.7 * (leg + 1),
        leading=energy * (0.0004 if constant > 0 else 0.21) + 8.9 * (leg + 1),
    )


def voltage_at(home: Home, at: float, leg: int) -> float:
    """Return the voltage (V) of a phase at a time."""
    return home.nominal * (1.0 + (0.0021, -0.0104, 0.0133)[leg] + 0.004 * sin(at / 97 + 2 * leg))


def frequency_at(home: Home, at: float) -> float:
    """Return the grid's frequency (Hz) at a time."""
    return home.frequency + 0.031 * sin(at / 41)


def _unconnected_channel(home: Home, role: str, leg: int) -> ElectricalValues:
    """Return a channel without CT: noise of a few volts and even energy, but zeros on split-phase gateways."""
    if home.phase_mode == "split":
        return ElectricalValues(frequency=home.frequency)
    scale = 1.0 + ROLE_ORDER.index(role)
    noise = Flow(-0.0 if leg == 1 else -0.163 * scale, 0.0, 5370.79 * scale + 811.3 * leg)
    return ElectricalValues(
        noise,
        reactive=-0.0,
        apparent=0.229 * (leg - 1) * scale,
        voltage=2.041 * leg * scale,
        current=0.067 * (leg - 1) * scale,
        factor=-1.0,
        frequency=home.frequency,
        apparent_energy=211.3 * leg * scale,
        lagging=690.2 * leg * scale,
        leading=0.487 * leg * scale,
    )


def _disabled_channel(home: Home, at: float, meter: MeterSpec, leg: int) -> ElectricalValues:
    """Return a channel of a disabled meter: the full voltage and a small power that does not exist."""
    scale = 1.0 + ROLE_ORDER.index(meter.role)
    power = copysign(1.13 * scale + 0.7 * leg + 0.2 * sin(at / 7), -1.0 if meter.role == NET_CONSUMPTION else 1.0)
    energy = 431.2 * scale + 57.3 * leg
    flow = Flow(power, *((0.0, energy) if power < 0 else (energy, 0.0)))
    return _electrics(home, at, meter.role, leg, flow)
