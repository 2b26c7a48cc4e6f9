"""Inverters beyond a single answer: their counters, their energy of today, and which of them sleep."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from samples import NOW, THREE, changed, details, parse, reading, restored

from bridge.counters.rules import WRAP_WH
from bridge.pipeline import CountersState, Pipeline

DAY, HOUR = 86_400.0, 3_600.0
JOULES = 3600
UNIT = "inverter/7"


class PipelineRun:
    """The pipeline with a clock. Days begin at midnight UTC."""

    def __init__(self, state: CountersState | None = None, now: float = NOW) -> None:
        self.pipeline = Pipeline(netted=True, zone=UTC, state=state, devices=state.units if state else ())
        self.now = now
        self.held = 0

    def wait(self, seconds: float) -> "PipelineRun":
        self.now += seconds
        return self

    def take(self, source: str, answer: object) -> dict[str, Any]:
        parsed = parse(source, answer, THREE, self.now)
        counted = self.pipeline.process(source, parsed, THREE, now=self.now, steady=self.now)
        self.pipeline.flows(counted.answer)  # the power of the sun tells which units sleep
        self.held = counted.held
        return {"/".join(filter(None, (r.device, r.phase, r.name))): r.value for r in counted.readings}

    def details(self, lifetime: float, today: Any = 0.0, **options: Any) -> dict[str, Any]:
        """`lifetime` and `today` in Wh, as the gateway gives them. The rest is a usual report, one minute old."""
        return self.take("device_data", self.answer(lifetime, today, **options))

    def begin(self, lifetime: float, today: Any = 0.0) -> dict[str, Any]:
        """Read details for the first time, and confirm them a second later."""
        self.details(lifetime, today)
        return self.wait(1).details(lifetime, today)

    def answer(self, lifetime: float, today: float, **options: Any) -> Any:
        answer = {"1": details("7", **options), "deviceCount": 1}
        answer = changed(answer, "1.channels.0.lifetime.joulesProduced", lambda _: round(lifetime * JOULES) % 2**32)
        answer = changed(answer, "1.channels.0.wattHours.today", lambda _: today)
        return changed(answer, "1.channels.0.lastReading.endDate", lambda _: int(self.now) - 60)

    def restarted(self) -> "PipelineRun":
        return PipelineRun(restored(self.pipeline.state), self.now)


# The lifetime counter


def test_a_counter_that_begins_again_goes_on() -> None:
    bridge = PipelineRun()
    shown = []
    bridge.begin(WRAP_WH - 150)
    for lifetime in (WRAP_WH - 100, WRAP_WH - 50, WRAP_WH, WRAP_WH + 50, WRAP_WH + 110, WRAP_WH + 170):
        shown.append(bridge.details(lifetime)[f"{UNIT}/energy_lifetime"])
        bridge.wait(900)
    assert shown[:2] == pytest.approx([WRAP_WH - 100, WRAP_WH - 50], abs=0.001)
    assert shown[2] == shown[3] == shown[1]  # a zero proves nothing, and the level must last 15 minutes
    assert shown[4:] == pytest.approx([WRAP_WH + 110, WRAP_WH + 170], abs=0.001)
    assert bridge.held == 0


def test_it_begins_again_in_the_night_and_while_the_bridge_is_away() -> None:
    """A fall by 2^32 J is a wrap, since the unit can't make that much energy in half a day."""
    bridge = PipelineRun()
    bridge.begin(WRAP_WH - 30)
    bridge = bridge.restarted().wait(40 * HOUR)
    found: Any = None
    for made in (2_000, 2_050, 2_100):
        found = bridge.details(WRAP_WH + made)[f"{UNIT}/energy_lifetime"]
        bridge.wait(900)
    assert found == pytest.approx(WRAP_WH + 2_100, abs=0.001)


def test_a_lost_state_costs_no_fall() -> None:
    """The published value is above the counter's range: it stays until the step of 2^32 J is proved."""
    bridge = PipelineRun()
    bridge.pipeline.seed({f"{UNIT}/energy_lifetime": 1_500_000.0})
    shown: list[Any] = []
    for minutes in range(0, 120, 15):
        shown.append(bridge.details(306_953 + minutes)[f"{UNIT}/energy_lifetime"])
        bridge.wait(900)
    assert shown[0] == 1_500_000
    assert shown == sorted(shown)
    assert shown[-1] == pytest.approx(306_953 + 105 + WRAP_WH, abs=0.001)
    assert bridge.held == 0


def test_each_input_begins_again_for_itself() -> None:
    bridge, found = PipelineRun(), dict[str, Any]()
    for first, second in (
        (WRAP_WH - 40, 499_990),
        (WRAP_WH - 20, 500_000),
        (WRAP_WH + 20, 500_030),
        (WRAP_WH + 60, 500_060),
        (WRAP_WH + 90, 500_090),
    ):
        answer = bridge.answer(first, 0, inputs=2)
        answer = changed(answer, "1.channels.1.lifetime.joulesProduced", partial(lambda wh, _: wh * JOULES, second))
        found = bridge.take("device_data", answer)
        bridge.wait(900)
    names = ("energy_lifetime", "c1/energy_lifetime", "c2/energy_lifetime")
    shown = [found[f"{UNIT}/{name}"] for name in names]
    assert shown == pytest.approx([WRAP_WH + 500_180, WRAP_WH + 90, 500_090], abs=0.001)


def test_a_rise_that_the_unit_can_not_make_is_held() -> None:
    """The unit has 371 W, not the 25 kW of a phase, and the rise is 10 kWh within 15 minutes."""
    bridge = PipelineRun()
    bridge.begin(300_000)
    bridge.wait(2 * HOUR).details(300_100)
    assert bridge.wait(900).details(310_100)[f"{UNIT}/energy_lifetime"] == 300_100
    assert bridge.held == 1


# Today


def test_today_is_lifetime_less_lifetime_at_midnight() -> None:
    """The gateway's value of today is used only once, since it may never begin again."""
    bridge = PipelineRun(now=datetime(2025, 11, 22, 12, tzinfo=UTC).timestamp())
    assert bridge.begin(300_000, today=900)[f"{UNIT}/energy_today"] == 900
    assert bridge.wait(4 * HOUR).details(300_400, today=1_300)[f"{UNIT}/energy_today"] == 1_300
    assert bridge.wait(9 * HOUR).details(300_400, today=1_300)[f"{UNIT}/energy_today"] == 0
    assert bridge.wait(6 * HOUR).details(300_250 + 200, today=1_350)[f"{UNIT}/energy_today"] == 50


def test_today_survives_a_restart() -> None:
    bridge = PipelineRun()
    bridge.begin(300_000, today=900)
    assert bridge.restarted().wait(900).details(300_040, today=5)[f"{UNIT}/energy_today"] == 940


@pytest.mark.parametrize("told", [57_134, -5, "x"])
def test_today_is_unknown_on_the_first_day_until_the_gateway_says_what_can_be(told: Any) -> None:
    """57 kWh are more than the unit can make in a day: an AC Battery was seen to add up for ever."""
    bridge = PipelineRun()
    found = bridge.begin(300_000, today=told)
    assert found.get(f"{UNIT}/energy_today") is None
    bridge.wait(900)
    assert bridge.details(300_040, today=5)[f"{UNIT}/energy_today"] == 5


def test_today_begins_at_nothing_where_the_gateway_has_not_counted_yet() -> None:
    bridge = PipelineRun()
    assert bridge.begin(300_000, today=None)[f"{UNIT}/energy_today"] == 0
    assert bridge.wait(900).details(300_040, today=5)[f"{UNIT}/energy_today"] == 40


def test_today_of_a_unit_whose_lifetime_is_not_known_is_not_known() -> None:
    bridge = PipelineRun()
    answer = changed(bridge.answer(300_000, 900), "1.channels.0.lifetime.joulesProduced", lambda _: None)
    assert bridge.take("device_data", answer)[f"{UNIT}/energy_today"] is None


@pytest.mark.parametrize("kept", [None, 5, [], {"solar": 5}, {"solar": ["2025-11-22", "x", 1]}, {"solar": [1, 2]}])
def test_damaged_days_are_no_days(kept: object) -> None:
    assert CountersState.model_validate({"days": kept}).days == {}


# Units that sleep, have gone, or never worked here


def listed(serial: int, report: float, power: float = 180, highest: float = 240) -> dict[str, Any]:
    return {
        "serialNumber": str(serial),
        "lastReportDate": int(report),
        "devType": 1,
        "lastReportWatts": power,
        "maxReportWatts": highest,
    }


def sun(bridge: PipelineRun, watts: float) -> None:
    bridge.take("readings", changed([reading("production", 0)], "0.activePower", lambda _: watts))


@pytest.mark.parametrize("sources", [("inverters", "device_data"), ("device_data",)])
@pytest.mark.parametrize(
    ("solar", "age", "power", "reports"),
    [
        (0.0, 60, 255, True),
        (2_000.0, 1_799, 255, True),
        (0.0, 1_801, 0, False),
        (3.0, 7_200, 0, False),
        (5.0, 1_801, 255, False),
        (5.0, 3_599, 255, False),
        (5.0, 3_601, None, False),
        (2_000.0, 8 * 365 * DAY, None, False),
    ],
)
def test_the_power_of_a_unit_that_does_not_report(
    sources: tuple[str, ...], solar: float, age: float, power: float | None, reports: bool
) -> None:
    """A unit of 371 W is asleep while the sun gives less than 1 % of that; by day its last power goes stale."""
    bridge = PipelineRun()
    sun(bridge, solar)
    old = int(bridge.now - age)
    given = {
        "inverters": [
            {"serialNumber": "7", "lastReportDate": old, "lastReportWatts": 255, "maxReportWatts": 371},
        ],
        "device_data": changed(bridge.answer(300_000, 0), "1.channels.0.lastReading.endDate", lambda _: old),
    }
    for source in sources:
        found = bridge.take(source, given[source])
        assert (found[f"{UNIT}/power"], found[f"{UNIT}/reporting"]) == (power, reports)


def test_units_that_leave_the_list_stop_reporting() -> None:
    """Two of five leave, and at night the list is empty: nobody reports, and nothing is produced."""
    bridge = PipelineRun()
    sun(bridge, 900)
    bridge.take("inverters", [listed(serial, NOW - 60) for serial in range(1, 6)])

    left = bridge.wait(600).take("inverters", [listed(n, bridge.now - 60, 50) for n in (3, 4, 5)])
    assert [left[f"inverter/{n}/reporting"] for n in range(1, 6)] == [True] * 5
    assert (left["gateway/inverters_total"], left["gateway/inverters_reporting"]) == (5, 5)
    later = bridge.wait(HOUR).take("inverters", [listed(n, bridge.now - 60, 50) for n in (3, 4, 5)])
    assert [later[f"inverter/{n}/reporting"] for n in range(1, 6)] == [False, False, True, True, True]
    assert [later[f"inverter/{n}/power"] for n in range(1, 6)] == [None, None, 50, 50, 50]
    assert (later["gateway/inverters_total"], later["gateway/inverters_reporting"]) == (5, 3)

    sun(bridge.wait(8 * HOUR), 0)
    night = bridge.restarted()
    sun(night, 0)
    found = night.take("inverters", [])
    assert [found[f"inverter/{n}/reporting"] for n in range(1, 6)] == [False] * 5
    assert [found[f"inverter/{n}/power"] for n in range(1, 6)] == [0] * 5
    assert (found["gateway/inverters_total"], found["gateway/inverters_reporting"]) == (5, 0)


def test_the_gateways_clock_decides_who_reports() -> None:
    bridge = PipelineRun()
    sun(bridge, 900)
    ahead = replace(THREE, clock_offset=DAY)
    answer = [listed(1, NOW + DAY - 60), listed(2, NOW - 60)]
    parsed = parse("inverters", answer, ahead, NOW)
    counted = bridge.pipeline.process("inverters", parsed, ahead, now=NOW, steady=NOW)
    found = {(r.device, r.name): r.value for r in counted.readings}
    assert [found[f"inverter/{n}", "reporting"] for n in (1, 2)] == [True, False]


def test_a_unit_that_has_left_is_forgotten_after_a_day_of_lists_without_it() -> None:
    """Empty lists prove nothing: snow may lie for weeks."""
    bridge = PipelineRun()
    bridge.take("inverters", [listed(1, NOW), listed(2, NOW)])
    snow = bridge.wait(9 * DAY).take("inverters", [])
    assert snow["gateway/inverters_total"] == 2
    missing = bridge.wait(60).take("inverters", [listed(2, bridge.now)])
    assert missing["inverter/1/reporting"] is False
    assert "inverter/1/reporting" in bridge.wait(DAY - 60).take("inverters", [listed(2, bridge.now)])
    forgotten = bridge.wait(61).take("inverters", [listed(2, bridge.now)])
    assert "inverter/1/reporting" not in forgotten
    assert forgotten["gateway/inverters_total"] == 1


def test_a_unit_that_is_back_is_no_longer_missing() -> None:
    bridge = PipelineRun()
    for hours in range(0, 72, 12):
        bridge.take("inverters", [listed(1, bridge.now)] * (hours % 24 == 0) + [listed(2, bridge.now)])
        bridge.wait(12 * HOUR)
    assert bridge.take("inverters", [listed(2, bridge.now)])["gateway/inverters_total"] == 2


def test_a_unit_of_another_gateway_is_marked_and_not_counted() -> None:
    bridge = PipelineRun()
    answer = [listed(1, NOW), listed(2, 0, power=0, highest=0), listed(3, 0, power=0, highest=240)]

    def unused() -> set[str]:
        parsed = parse("inverters", answer, THREE, bridge.now)
        counted = bridge.pipeline.process("inverters", parsed, THREE, now=bridge.now, steady=bridge.now)
        return {reading.device for reading in counted.readings if reading.measurement.unused}

    assert unused() == {"inverter/2"}
    assert bridge.take("inverters", answer)["gateway/inverters_total"] == 2
    answer[1] = listed(2, NOW, power=5, highest=5)
    assert unused() == set()
    answer[1] = listed(2, 0, power=0, highest=0)
    assert unused() == set(), "it has worked here"


def test_what_counts_energy_is_used() -> None:
    """`device_data` tells of a unit that `inverters` does not know to have reported."""
    bridge = PipelineRun()
    bridge.take("inverters", [listed(7, 0, power=0, highest=0), listed(8, NOW)])
    bridge.details(300_000)
    assert bridge.take("inverters", [listed(7, 0, power=0, highest=0)])["gateway/inverters_total"] == 2


@pytest.mark.parametrize("kept", [None, 5, {"inverter/7": 5}, {"inverter/7": ["inverters", "x"]}])
def test_damaged_units_are_no_units(kept: object) -> None:
    assert CountersState.model_validate({"units": kept}).units == {}


def test_the_sums_cap_counts_all_units_not_only_those_with_details() -> None:
    """49 of 500 units have details, but the site can make the power of all of them."""
    bridge = PipelineRun()
    bridge.take("inverters", [{"serialNumber": str(n), "maxReportWatts": 300} for n in range(500)])
    bridge.details(300_000)
    bridge.take("readings", [reading("production", 0)])
    bridge.take("production", {"wattHoursLifetime": 9_000_000})
    before = bridge.take("production", {"wattHoursLifetime": 9_000_000})["energy/production/energy_lifetime"]
    bridge.wait(HOUR)
    found = bridge.take("production", {"wattHoursLifetime": 9_150_000})["energy/production/energy_lifetime"]
    assert (before, found) == (9_000_000, 9_150_000)
    assert bridge.held == 0
