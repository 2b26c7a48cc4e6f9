"""Repairs of firmware faults: they change faulty answers and no others."""

import random
import re
from collections.abc import Iterable
from typing import Any

import pytest
from samples import SINGLE, SPLIT, THREE, home, parse, publish, reading, values_of

from bridge.model import Facts, Phase, Reading
from bridge.pipeline import QUIRKS, phase_power, repaired
from bridge.records import POWER, measurement

ROW = measurement("power", POWER)
DEMAND = measurement("instantaneous_demand", POWER)


def meter(
    total: float, powers: list[float], demands: list[float], device: str = "meter/net-consumption"
) -> list[Reading]:
    """A meter whose channels' demand adds up to its total."""
    found = [Reading(device, None, ROW, total), Reading(device, None, DEMAND, total)]
    for phase, power, demand in zip(Phase, powers, demands, strict=False):
        found += [Reading(device, phase, ROW, power), Reading(device, phase, DEMAND, demand)]
    return found


def powers(readings: Iterable[Reading], device: str = "meter/net-consumption") -> list[Any]:
    found = [item for item in readings if item.name == "power" and item.device == device]
    return [item.value for item in found]


def test_the_captured_fault() -> None:
    """D8.3.1598: the channels' activePower adds up to 3854.682 W, the meter's is 3760.828 W; the demand adds up."""
    given = meter(3760.828, [2395.037, 1459.645], [2309.657, 1451.171])
    assert powers(phase_power(given)) == [3760.828, 2309.657, 1451.171]


def test_everything_else_stays() -> None:
    given = meter(3760.828, [2395.037, 1459.645], [2309.657, 1451.171])
    found = phase_power(given)
    assert [(item.device, item.phase, item.measurement) for item in found] == [
        (item.device, item.phase, item.measurement) for item in given
    ]
    assert [item.value for item in found if item.name != "power"] == [
        item.value for item in given if item.name != "power"
    ]


@pytest.mark.parametrize(
    ("total", "powers_given", "demands"),
    [
        (1000.0, [600.0, 400.0], [100.0, 100.0]),
        (1000.0, [600.0, 405.9], [599.0, 401.0]),
        (0.0, [0.5, 0.5], [0.0, 0.0]),
        (-1000.0, [-600.0, -405.9], [-600.0, -400.0]),
        (1000.0, [700.0, 400.0], [700.0, 410.0]),
    ],
    ids=["adds up", "within 1 W and 0.5 %", "within 1 W", "within, exporting", "neither adds up"],
)
def test_what_adds_up_is_left_alone(total: float, powers_given: list[float], demands: list[float]) -> None:
    given = meter(total, powers_given, demands)
    assert list(phase_power(given)) == given


@pytest.mark.parametrize(
    ("total", "powers_given"), [(1000.0, [600.0, 406.1]), (0.0, [0.5, 0.6]), (-1000.0, [-600.0, -406.1])]
)
def test_the_bound_is_1_w_and_half_a_percent(total: float, powers_given: list[float]) -> None:
    demands = [total * 0.6, total * 0.4]
    assert powers(phase_power(meter(total, powers_given, demands))) == [total, *demands]


def test_one_meter_does_not_touch_another() -> None:
    sick = meter(3760.828, [2395.037, 1459.645], [2309.657, 1451.171])
    well = meter(1000.0, [600.0, 400.0], [600.5, 399.5], "meter/production")
    mixed = [*sick, *well]
    random.Random(7).shuffle(mixed)  # noqa: S311 - an order, no secret

    assert sorted(powers(phase_power(mixed), "meter/production")) == [400.0, 600.0, 1000.0]
    assert sorted(powers(phase_power(mixed))) == [1451.171, 2309.657, 3760.828]


@pytest.mark.parametrize("missing", range(6))
def test_what_is_incomplete_is_left_alone(missing: int) -> None:
    given = meter(3760.828, [2395.037, 1459.645], [2309.657, 1451.171])
    del given[missing]
    assert list(phase_power(given)) == given


def test_a_null_is_left_alone() -> None:
    given = meter(3760.828, [2395.037, 1459.645], [2309.657, 1451.171])
    given[2] = Reading("meter/net-consumption", Phase.L1, ROW, None)
    assert list(phase_power(given)) == given


def test_only_its_own_source_is_repaired() -> None:
    given = meter(3760.828, [2395.037, 1459.645], [2309.657, 1451.171])
    assert powers(repaired("readings", given)) == [3760.828, 2309.657, 1451.171]
    assert repaired("consumption", given) is given


@pytest.mark.parametrize("facts", [SINGLE, SPLIT, THREE])
def test_a_whole_answer(facts: Facts) -> None:
    """The repair gets the result of the split function, without phases that do not exist."""
    answer = reading("net-consumption", activePower=3760.828, instantaneousDemand=3760.828)
    for channel, power, demand in zip(
        answer["channels"], (2395.037, 1459.645, 0.0), (2309.657, 1451.171, 0.0), strict=True
    ):
        channel |= {"activePower": power, "instantaneousDemand": demand}
    found = values_of(publish("readings", parse("readings", [answer], facts).readings))

    assert found["meter/net-consumption/power"] == "3760.828"
    if facts is not SINGLE:
        assert found["meter/net-consumption/l1/power"] == "2309.657"
        assert found["meter/net-consumption/l2/power"] == "1451.171"


def test_each_row_names_its_firmware() -> None:
    assert QUIRKS
    sources = {item.source for item in QUIRKS}
    assert sources <= {
        "info",
        "meters",
        "livedata",
        "readings",
        "grid",
        "consumption",
        "production",
        "energy",
        "inverters",
    }
    assert all(re.search(r"\d\.\d", item.firmware) for item in QUIRKS)


# A storage meter that lost a leg (from 8.3.6000)


def storage(left: float, right: float, role: str = "storage") -> list[Reading]:
    """The result of the split function for a split-phase meter whose legs have these voltages."""
    answer = reading(role)
    for channel, volts in zip(answer["channels"], (left, right, 0.0), strict=True):
        channel["voltage"] = volts
    return list(parse("readings", [answer], home(2, (role,))).readings)


@pytest.mark.parametrize("legs", [(0.0, 121.5), (121.5, 0.0), (-0.0, 121.5), (0.9, 100.1)])
def test_a_dead_leg_halves_the_meter_so_it_is_no_reading(legs: tuple[float, float]) -> None:
    assert repaired("readings", storage(*legs)) == []


@pytest.mark.parametrize("legs", [(121.4, 121.5), (0.0, 0.0), (0.5, 99.9), (1.1, 121.5)])
def test_legs_that_live_or_are_all_dead_are_left_alone(legs: tuple[float, float]) -> None:
    given = storage(*legs)
    assert list(repaired("readings", given)) == given


@pytest.mark.parametrize("role", ["production", "net-consumption", "load"])
def test_other_meters_are_left_alone(role: str) -> None:
    given = storage(0.0, 121.5, role)
    assert list(repaired("readings", given)) == given


def test_a_dead_leg_costs_its_own_meter_only() -> None:
    dead, well = storage(0.0, 121.5), storage(0.0, 121.5, "production")
    assert [item for item in repaired("readings", [*dead, *well]) if item.device == "meter/production"] == well
