"""What is known of inverters beyond a single answer: their counters, what they have made today, who sleeps."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from samples import NOW, THREE, changed, details, parse, reading

from bridge.counters import WRAP
from bridge.days import Days
from bridge.service.counting import Counting

DAY, HOUR = 86_400.0, 3_600.0
JOULES = 3600
UNIT = "inverter/7"


class Bridge:
    """What counts, with a clock. Midnight is that of UTC."""

    def __init__(self, kept: dict[str, Any] | None = None, now: float = NOW) -> None:
        self.counting = Counting(netted=True, zone=UTC, kept=kept or {})
        self.now = now
        self.held = 0

    def wait(self, seconds: float) -> "Bridge":
        self.now += seconds
        return self

    def take(self, source: str, answer: object) -> dict[str, Any]:
        parsed = parse(source, answer, THREE, self.now)
        counted = self.counting.count(source, parsed, THREE, now=self.now, steady=self.now)
        self.counting.flows(counted.answer)  # what the sun gives tells who is asleep
        self.held = counted.held
        return {"/".join(filter(None, (r.device, r.phase, r.name))): r.value for r in counted.readings}

    def details(self, lifetime: float, today: float = 0.0, **options: Any) -> dict[str, Any]:
        """`lifetime` and `today` in Wh, as they are told; the rest is a usual report of a minute ago."""
        return self.take("device_data", self.answer(lifetime, today, **options))

    def answer(self, lifetime: float, today: float, **options: Any) -> Any:
        answer = {"1": details("7", **options), "deviceCount": 1}
        answer = changed(answer, "1.channels.0.lifetime.joulesProduced", lambda _: round(lifetime * JOULES) % 2**32)
        answer = changed(answer, "1.channels.0.wattHours.today", lambda _: today)
        return changed(answer, "1.channels.0.lastReading.endDate", lambda _: int(self.now) - 60)

    def restarted(self) -> "Bridge":
        return Bridge(json.loads(json.dumps(self.counting.dump())), self.now)


# The lifetime counter


def test_a_counter_that_begins_again_goes_on() -> None:
    bridge = Bridge()
    shown = []
    for lifetime in (WRAP - 100, WRAP - 50, WRAP, WRAP + 50, WRAP + 110, WRAP + 170):
        shown.append(bridge.details(lifetime)[f"{UNIT}/energy_lifetime"])
        bridge.wait(900)
    assert shown[:2] == pytest.approx([WRAP - 100, WRAP - 50], abs=0.001)
    assert shown[2] == shown[3] == shown[1]  # held until two readings have risen
    assert shown[4:] == pytest.approx([WRAP + 110, WRAP + 170], abs=0.001)
    assert bridge.held == 0


def test_it_begins_again_in_the_night_and_while_the_bridge_is_away() -> None:
    """No more can be made in half a day than the unit can give, so a fall by 2^32 J is one."""
    bridge = Bridge()
    bridge.details(WRAP - 30)
    bridge = bridge.restarted().wait(40 * HOUR)
    for made in (2_000, 2_050, 2_100):
        found = bridge.details(WRAP + made)[f"{UNIT}/energy_lifetime"]
        bridge.wait(900)
    assert found == pytest.approx(WRAP + 2_100, abs=0.001)


def test_a_lost_state_costs_no_fall() -> None:
    """What subscribers have is above what the counter can show at all: it stays, and goes on after an hour."""
    bridge = Bridge()
    bridge.counting.seed({f"{UNIT}/energy_lifetime": 1_500_000.0})
    shown = []
    for minutes in range(0, 120, 15):
        shown.append(bridge.details(306_953 + minutes)[f"{UNIT}/energy_lifetime"])
        bridge.wait(900)
    assert shown[0] == 1_500_000
    assert shown == sorted(shown)
    assert shown[-1] == 1_500_105
    assert bridge.held == 0


def test_each_input_begins_again_for_itself() -> None:
    bridge = Bridge()
    for first, second in ((WRAP - 20, 500_000), (WRAP + 20, 500_030), (WRAP + 60, 500_060), (WRAP + 90, 500_090)):
        answer = bridge.answer(first, 0, inputs=2)
        answer = changed(answer, "1.channels.1.lifetime.joulesProduced", lambda _, wh=second: wh * JOULES)
        found = bridge.take("device_data", answer)
        bridge.wait(900)
    names = ("energy_lifetime", "c1/energy_lifetime", "c2/energy_lifetime")
    shown = [found[f"{UNIT}/{name}"] for name in names]
    assert shown == pytest.approx([WRAP + 500_180, WRAP + 90, 500_090], abs=0.001)


def test_a_rise_that_the_unit_can_not_make_is_held() -> None:
    """371 W, not the 25 kW of a phase: 10 kWh within 15 minutes."""
    bridge = Bridge()
    bridge.details(300_000)
    bridge.wait(2 * HOUR).details(300_100)
    assert bridge.wait(900).details(310_100)[f"{UNIT}/energy_lifetime"] == 300_100
    assert bridge.held == 1


# Today


def test_today_is_lifetime_less_lifetime_at_midnight() -> None:
    """And what the gateway says of today is not asked again: it may never begin anew."""
    bridge = Bridge(now=datetime(2025, 11, 22, 12, tzinfo=UTC).timestamp())
    assert bridge.details(300_000, today=900)[f"{UNIT}/energy_today"] == 900
    assert bridge.wait(4 * HOUR).details(300_400, today=1_300)[f"{UNIT}/energy_today"] == 1_300
    assert bridge.wait(9 * HOUR).details(300_400, today=1_300)[f"{UNIT}/energy_today"] == 0
    assert bridge.wait(6 * HOUR).details(300_250 + 200, today=1_350)[f"{UNIT}/energy_today"] == 50


def test_today_survives_a_restart() -> None:
    bridge = Bridge()
    bridge.details(300_000, today=900)
    assert bridge.restarted().wait(900).details(300_040, today=5)[f"{UNIT}/energy_today"] == 940


@pytest.mark.parametrize("told", [57_134, -5, "x", None])
def test_a_today_that_can_not_be_begins_at_nothing(told: Any) -> None:
    """More than the unit's highest power gives in a day: an AC Battery was seen to add up for ever."""
    bridge = Bridge()
    found = bridge.details(300_000, today=told)
    assert found.get(f"{UNIT}/energy_today") == (None if told == "x" else 0)
    bridge.wait(900)
    assert bridge.details(300_040, today=5)[f"{UNIT}/energy_today"] == (5 if told == "x" else 40)


def test_today_of_a_unit_whose_lifetime_is_not_known_is_not_known() -> None:
    bridge = Bridge()
    answer = changed(bridge.answer(300_000, 900), "1.channels.0.lifetime.joulesProduced", lambda _: None)
    assert bridge.take("device_data", answer)[f"{UNIT}/energy_today"] is None


@pytest.mark.parametrize("kept", [None, 5, [], {"solar": 5}, {"solar": ["2025-11-22", "x", 1]}, {"solar": [1, 2]}])
def test_damaged_days_are_no_days(kept: object) -> None:
    assert Days.load(kept).dump() == {}


# Power at night


@pytest.mark.parametrize("sources", [("inverters", "device_data"), ("device_data",)])
@pytest.mark.parametrize(("solar", "power"), [(0.0, 0), (2_000.0, None)])
def test_a_unit_that_sleeps_gives_nothing(sources: tuple[str, ...], solar: float, power: float | None) -> None:
    """Whichever source tells of it."""
    bridge = Bridge()
    meter = changed([reading("production", 0)], "0.activePower", lambda _: solar)
    bridge.take("readings", meter)
    old = int(bridge.now) - 7200
    given = {
        "inverters": [
            {"serialNumber": "7", "lastReportDate": old, "lastReportWatts": 255, "maxReportWatts": 371},
        ],
        "device_data": changed(bridge.answer(300_000, 0), "1.channels.0.lastReading.endDate", lambda _: old),
    }
    for source in sources:
        found = bridge.take(source, given[source])
        assert found[f"{UNIT}/power"] == (255 if power is None else power)
        assert found[f"{UNIT}/reporting"] is False


def test_the_sums_cap_counts_all_units_not_only_those_with_details() -> None:
    """Of 500 units 49 have details: what the site can make is what all of them can."""
    bridge = Bridge()
    bridge.take("inverters", [{"serialNumber": str(n), "maxReportWatts": 300} for n in range(500)])
    bridge.details(300_000)
    bridge.take("readings", [reading("production", 0)])
    before = bridge.take("production", {"wattHoursLifetime": 9_000_000})["energy/production/energy_lifetime"]
    bridge.wait(HOUR)
    found = bridge.take("production", {"wattHoursLifetime": 9_150_000})["energy/production/energy_lifetime"]
    assert (before, found) == (9_000_000, 9_150_000)
    assert bridge.held == 0
