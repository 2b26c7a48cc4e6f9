"""Firmware repairs, one row each: what a known firmware says wrongly is put right here and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bridge.model import Phase, Reading

Repair = Callable[[Sequence[Reading]], Sequence[Reading]]


@dataclass(frozen=True, slots=True)
class Quirk:
    """A repair of one source's readings, and the firmware that was seen to need it."""

    source: str
    firmware: str
    repair: Repair


def _values(readings: Sequence[Reading], device: str, name: str) -> dict[Phase | None, float]:
    return {
        reading.phase: reading.value
        for reading in readings
        if reading.device == device and reading.name == name and isinstance(reading.value, int | float)
    }


def _adds_up(values: dict[Phase | None, float], total: float) -> bool:
    """Within 1 W and 0.5 % (NUMBERS.md, "Phases")."""
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


def _with_demand(reading: Reading, device: str, demand: dict[Phase | None, float]) -> Reading:
    affected = reading.device == device and reading.name == "power" and reading.phase is not None
    return replace(reading, value=demand[reading.phase]) if affected else reading


QUIRKS = (Quirk("readings", "some 8.3, seen on D8.3.1598", phase_power),)


def repaired(source: str, readings: Sequence[Reading]) -> Sequence[Reading]:
    for quirk in QUIRKS:
        if quirk.source == source:
            readings = quirk.repair(readings)
    return readings
