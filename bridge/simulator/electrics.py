"""What current transformers and their meters feel, made up around the powers and energies of the truth.

Volts, amperes, reactive and apparent power are a little different on every phase, meter and second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import copysign, hypot, sin

from bridge.simulator.homes import LOAD, NET, PRODUCTION, STORAGE, TOTAL, Home, Meter
from bridge.simulator.truth import STILL, Flow, Truth

ROLES = (PRODUCTION, NET, TOTAL, STORAGE, LOAD)
REACTIVE = {
    PRODUCTION: (0.021, 11.3),
    NET: (0.043, -47.7),
    TOTAL: (0.031, -29.1),
    STORAGE: (0.015, 8.9),
    LOAD: (0.0, 0.1),
}
"""Reactive power: a share of the active power and so many VAr besides."""
NEW = (8, 3)
"""Firmware that adds power factors up, nets the energies of reports and knows a meter that nobody else knows."""


@dataclass(frozen=True, slots=True)
class Electrics:
    """Everything that a channel, or a whole meter, measures."""

    flow: Flow = STILL
    reactive: float = 0.0
    apparent: float = 0.0
    voltage: float = 0.0
    current: float = 0.0
    factor: float = 0.0
    frequency: float = 0.0
    apparent_energy: float = 0.0
    lagging: float = 0.0
    leading: float = 0.0


def channels(home: Home, truth: Truth, meter: Meter) -> list[Electrics]:
    """The three channels of a meter: those that measure something, and noise for the rest."""
    if not meter.enabled:
        return [_phantom(home, truth.at, meter, leg) for leg in range(3)]
    return [*used(home, truth, meter.role), *(_idle(home, meter.role, leg) for leg in range(home.legs, 3))]


def total(home: Home, legs: Sequence[Electrics]) -> Electrics:
    """A whole meter. Firmware adds up even volts, amperes without their signs and, from 8.3, power factors."""
    factors = sum(e.factor for e in legs)
    return replace(
        added(legs),
        voltage=sum(e.voltage for e in legs),
        factor=factors if home.version >= NEW else factors / len(legs),
    )


def added(parts: Sequence[Electrics]) -> Electrics:
    """Several currents on one conductor: what adds up is added, the voltage is that of the first."""
    power, apparent = sum(e.flow.power for e in parts), sum(e.apparent for e in parts)
    return Electrics(
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


def used(home: Home, truth: Truth, role: str) -> list[Electrics]:
    """The channels of a meter that are on a conductor."""
    flows = truth.meters[role].phases.values()
    return [_electrics(home, truth.at, role, leg, flow) for leg, flow in enumerate(flows)]


def _electrics(home: Home, at: float, role: str, leg: int, flow: Flow) -> Electrics:
    share, constant = REACTIVE[role]
    reactive = share * abs(flow.power) + constant * (1 + leg / 7) + 0.4 * sin(at / 13 + leg)
    apparent = hypot(flow.power, reactive)
    voltage = volts_of(home, at, leg) + 0.037 * ROLES.index(role)
    energy = flow.delivered + flow.received
    return Electrics(
        flow,
        reactive=reactive,
        apparent=apparent,
        voltage=voltage,
        current=apparent / voltage,
        factor=flow.power / apparent,
        frequency=frequency_of(home, at),
        apparent_energy=energy * 1.07 + 113.4 * (leg + 1),
        lagging=energy * (0.19 if constant > 0 else 0.0004) + 61.7 * (leg + 1),
        leading=energy * (0.0004 if constant > 0 else 0.21) + 8.9 * (leg + 1),
    )


def volts_of(home: Home, at: float, leg: int) -> float:
    return home.nominal * (1.0 + (0.0021, -0.0104, 0.0133)[leg] + 0.004 * sin(at / 97 + 2 * leg))


def frequency_of(home: Home, at: float) -> float:
    return home.frequency + 0.031 * sin(at / 41)


def _idle(home: Home, role: str, leg: int) -> Electrics:
    """A channel without a CT picks up a few volts and even energy, except on split-phase boxes: there it is 0."""
    if home.phase_mode == "split":
        return Electrics(frequency=home.frequency)
    scale = 1.0 + ROLES.index(role)
    noise = Flow(-0.0 if leg == 1 else -0.163 * scale, 0.0, 5370.79 * scale + 811.3 * leg)
    return Electrics(
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


def _phantom(home: Home, at: float, meter: Meter, leg: int) -> Electrics:
    """What a disabled meter makes of nothing: full volts, and watts out of thin air."""
    scale = 1.0 + ROLES.index(meter.role)
    power = copysign(1.13 * scale + 0.7 * leg + 0.2 * sin(at / 7), -1.0 if meter.role == NET else 1.0)
    energy = 431.2 * scale + 57.3 * leg
    flow = Flow(power, *((0.0, energy) if power < 0 else (energy, 0.0)))
    return _electrics(home, at, meter.role, leg, flow)
