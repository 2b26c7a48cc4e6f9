"""Firmware repairs, one row each: what a known firmware says wrongly is put right here and nowhere else."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bridge.model import Axis, Reading

Repair = Callable[[Sequence[Reading]], Sequence[Reading]]

STORAGE = re.compile(r"meter/storage(-\d+)?")
DEAD_VOLTS, LIVE_VOLTS = 1.0, 100.0
POWERS_AND_ENERGIES = frozenset({"W", "VA", "var", "Wh", "VAh", "varh"})


@dataclass(frozen=True, slots=True)
class Quirk:
    """A repair of one source's readings, and the firmware that was seen to need it."""

    source: str
    firmware: str
    repair: Repair


def _values(readings: Sequence[Reading], device: str, name: str) -> dict[Axis | None, float]:
    return {
        reading.phase: reading.value
        for reading in readings
        if reading.device == device and reading.name == name and isinstance(reading.value, int | float)
    }


def _adds_up(values: dict[Axis | None, float], total: float) -> bool:
    """Within 1 W and 0.5 % (docs/topics.md)."""
    parts = [value for phase, value in values.items() if phase is not None]
    return abs(sum(parts) - total) <= 1 + 0.005 * abs(total)


def phase_power(readings: Sequence[Reading]) -> Sequence[Reading]:
    """A channel's activePower that does not add up to the meter's gives way to its instantaneousDemand."""
    for device in {reading.device for reading in readings if reading.phase is not None}:
        power = _values(readings, device, "power")
        demand = _values(readings, device, "instantaneous_demand")
        total = power.get(None)
        complete = total is not None and power.keys() == demand.keys()
        if complete and not _adds_up(power, power[None]) and _adds_up(demand, power[None]):
            readings = [_with_demand(reading, device, demand) for reading in readings]
    return readings


def _with_demand(reading: Reading, device: str, demand: dict[Axis | None, float]) -> Reading:
    affected = reading.device == device and reading.name == "power" and reading.phase is not None
    return replace(reading, value=demand[reading.phase]) if affected else reading


def dead_leg(readings: Sequence[Reading]) -> Sequence[Reading]:
    """A storage meter that lost a leg for a poll measures the half: its powers and energies are no readings."""
    devices = {reading.device for reading in readings if STORAGE.fullmatch(reading.device)}
    dead = {device for device in devices if _has_dead_leg(_values(readings, device, "voltage"))}
    return [r for r in readings if r.device not in dead or r.quantity.unit not in POWERS_AND_ENERGIES]


def _has_dead_leg(voltages: dict[Axis | None, float]) -> bool:
    legs = [abs(voltage) for phase, voltage in voltages.items() if phase is not None]
    return bool(legs) and min(legs) < DEAD_VOLTS and max(legs) > LIVE_VOLTS


QUIRKS = (
    Quirk("readings", "some 8.3, seen on D8.3.1598", phase_power),
    Quirk("readings", "from 8.3.6000", dead_leg),
)


def repaired(source: str, readings: Sequence[Reading]) -> Sequence[Reading]:
    for quirk in QUIRKS:
        if quirk.source == source:
            readings = quirk.repair(readings)
    return readings
