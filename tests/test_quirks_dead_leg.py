"""From firmware 8.3.6000 on, the storage CT loses a leg for a poll: the half that is left is no valid reading."""

from typing import Any

import pytest

from bridge.model import Phase, Reading
from bridge.pipeline import dead_leg, repaired
from bridge.records import (
    APPARENT_ENERGY,
    APPARENT_POWER,
    CURRENT,
    ENERGY,
    FREQUENCY,
    POWER,
    REACTIVE_ENERGY,
    REACTIVE_POWER,
    TIME,
    VOLTAGE,
    measurement,
)

QUANTITIES = {
    "power": POWER,
    "instantaneous_demand": POWER,
    "apparent_power": APPARENT_POWER,
    "reactive_power": REACTIVE_POWER,
    "voltage": VOLTAGE,
    "current": CURRENT,
    "frequency": FREQUENCY,
    "energy_delivered": ENERGY,
    "energy_received": ENERGY,
    "apparent_energy": APPARENT_ENERGY,
    "reactive_energy_lagging": REACTIVE_ENERGY,
    "reactive_energy_leading": REACTIVE_ENERGY,
    "measured_at": TIME,
}


def meter(*voltages: float | None, device: str = "meter/storage") -> list[Reading]:
    """A meter with these legs. All of its other values are different."""
    found: list[Reading] = []
    for phase in (None, *list(Phase)[: len(voltages)]):
        for name, quantity in QUANTITIES.items():
            value: Any = 1_000.0 + len(found)
            if name == "voltage" and phase is not None:
                value = voltages[list(Phase).index(phase)]
            found.append(Reading(device, phase, measurement(name, quantity), value))
    return found


@pytest.mark.parametrize(
    "voltages", [(121.334, 0.0), (0.0, 121.248), (-0.0, 100.1), (230.0, 230.0, 0.9), (0.0, 0.0, 230.0)]
)
@pytest.mark.parametrize("device", ["meter/storage", "meter/storage-2"])
def test_a_meter_with_a_dead_leg_is_no_reading(voltages: tuple[float, ...], device: str) -> None:
    assert list(dead_leg(meter(*voltages, device=device))) == []


@pytest.mark.parametrize(
    "voltages",
    [(), (0.0,), (121.3, 121.2), (0.0, 0.0), (0.0, 100.0), (1.0, 121.2), (121.3, None), (12.0, 6.1, 230.0)],
)
def test_everything_else_is_a_reading(voltages: tuple[float | None, ...]) -> None:
    given = meter(*voltages)

    assert list(dead_leg(given)) == given


@pytest.mark.parametrize(
    "device", ["meter/production", "meter/net-consumption", "meter/storage-b", "live/storage", "report/grid"]
)
def test_only_storage_meters_lose_legs(device: str) -> None:
    given = meter(121.3, 0.0, device=device)

    assert list(dead_leg(given)) == given


def test_other_meters_of_the_answer_stay() -> None:
    other = meter(121.3, 121.2, device="meter/production")

    assert list(dead_leg([*other, *meter(121.3, 0.0)])) == other


def test_it_repairs_readings_alone() -> None:
    given = meter(121.3, 0.0)

    assert list(repaired("readings", given)) == []
    assert list(repaired("livedata", given)) == given
