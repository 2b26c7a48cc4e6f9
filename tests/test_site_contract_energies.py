"""The energies of `site/*`, judged from outside.

Each test writes answers, and compares what is published with sums that were worked out by hand from the rules of
docs/numbers.md, and not from the code.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from answering import DAY, HOUR, MINUTE, MORNING, Answering, MeterValues, every, times

QUARTER = 15 * MINUTE
MIDNIGHT = datetime(2026, 6, 2, tzinfo=UTC)


def first_reading(house: Answering, **values: MeterValues) -> None:
    """Read the meters twice, as a first start needs."""
    house.meters(0)
    house.readings(1, **values)
    house.readings(6, **values)


class Sunny:
    """A home that makes 4 kW, sells 3 kW and uses 1 kW; with a battery, that gives 500 W of the export.

    Its counters go on at each moment, whatever the gateway says of them.
    """

    def __init__(self, *roles: str, kept: Answering | None = None) -> None:
        self.roles = roles or ("production", "net")
        self.house = kept or Answering(*self.roles)
        if not kept:
            self.house.inventory(0, soc=50 if "storage" in self.roles else None)
            first_reading(self.house, **self.at(0))

    def at(self, t: float, *, without: Sequence[str] = ()) -> dict[str, MeterValues]:
        hours = t / HOUR
        battery = 500.0 if "storage" in self.roles else 0.0
        meters = {
            "production": (4000.0, 5_000_000 + 4000 * hours, 70.0),
            "net": (-3000.0 - battery, 100_000.0, 200_000 + (3000 + battery) * hours),
            "total": (1000.0, 300_000 + 1000 * hours, 60.0),
            "storage": (battery, 40_000 + battery * hours, 50_000.0),
        }
        return {role: meters[role] for role in self.roles if role not in without}

    def live(self, first: float, last: float, *, step: float = MINUTE, without: Sequence[str] = ()) -> None:
        every(first, last, step, lambda t: self.house.readings(t, **self.at(t, without=without)))

    def both(self, first: float, last: float, *, without: Sequence[str] = ()) -> None:
        """Read the meters every minute, and the sum of the microinverters every five."""
        for t in times(first, last, MINUTE):
            self.house.readings(t, **self.at(t, without=without))
            if t % 300 == 0:
                self.pcu(t + 1)

    def pcu(self, t: float) -> None:
        self.house.pcu(t, 4000, 4_900_000 + 4000 * t / HOUR)

    def home(self) -> float:
        home = self.house["home/energy_lifetime"]
        assert isinstance(home, float | int)
        return home


# E1 and E2: intervals, and sources that take over


def test_a_production_meter_that_is_disabled_for_an_hour() -> None:
    """Sequence R1: 4 kWh are made, 3 exported and 1 used, which is told once."""
    home = Sunny()
    house = home.house
    home.pcu(7)
    home.pcu(8)
    house.meters(10, off=["production"])
    for quarter in times(QUARTER, HOUR, QUARTER):
        house.readings(quarter, **home.at(quarter, without=["production"]))
        home.pcu(quarter + 1)
    assert house["solar/source"] == "energy/production-pcu"
    assert house["solar/energy_lifetime"] == pytest.approx(5_004_000, abs=10)
    house.meters(HOUR + 10)
    home.live(HOUR + 11, HOUR + 11)
    assert house["solar/source"] == "meter/production"
    assert house["solar/energy_lifetime"] == pytest.approx(5_004_000, abs=15)
    assert home.home() == pytest.approx(1000, abs=5)
    assert house["grid/energy_exported"] == pytest.approx(203_000, abs=10)
    home.live(HOUR + 60, 2 * HOUR)
    assert house["solar/energy_lifetime"] == pytest.approx(5_008_000, abs=25)
    assert home.home() == pytest.approx(2000, abs=5)


def test_a_net_meter_that_is_disabled_for_an_hour() -> None:
    """Sequence R1b: 1 kWh is used in the hour, and 3 kWh in the three hours that follow."""
    home = Sunny()
    home.house.meters(10, off=["net"])
    home.live(QUARTER, HOUR, step=QUARTER, without=["net"])
    home.house.meters(HOUR + 10)
    home.live(HOUR + 11, HOUR + 11)
    assert home.home() == pytest.approx(1000, abs=5)
    assert home.house["grid/energy_exported"] == pytest.approx(203_000, abs=10)
    home.live(2 * HOUR, 4 * HOUR, step=HOUR)
    assert home.home() == pytest.approx(4000, abs=5)


@pytest.mark.parametrize("off", ["production", "net", "storage"])
def test_one_lying_answer(off: str) -> None:
    """An hourly answer says `disabled` of a meter that goes on: nothing is lost, and nothing is counted twice."""
    home = Sunny("production", "net", "storage")
    home.both(60, 3 * HOUR)
    home.house.meters(3 * HOUR + 1, off=[off])
    home.both(3 * HOUR + 60, 4 * HOUR, without=[off])
    home.house.meters(4 * HOUR + 1)
    home.both(4 * HOUR + 60, 5 * HOUR)
    assert home.house["solar/energy_lifetime"] == pytest.approx(5_020_000, abs=400)
    assert home.house["solar/energy_lifetime"] <= 5_020_001
    assert home.house["grid/energy_exported"] == pytest.approx(217_500, abs=2)
    assert home.house["battery/energy_discharged"] == pytest.approx(42_500, abs=2)
    assert home.home() == pytest.approx(5000, abs=400 if off == "storage" else 5)


def test_meters_that_are_gone_for_an_hour() -> None:
    """`/ivp/meters` gives `[]`, as firmware does at times."""
    home = Sunny()
    home.both(60, HOUR)
    home.house.meters(HOUR + 1, roles=[])
    for t in times(HOUR + 60, 2 * HOUR, 300):
        home.pcu(t)
        home.house.production(t + 1, 4000, 4_900_000 + 4000 * t / HOUR)
        home.live(t + 2, t + 2)
    home.house.meters(2 * HOUR + 1)
    home.both(2 * HOUR + 60, 3 * HOUR)
    assert home.house["solar/energy_lifetime"] == pytest.approx(5_012_000, abs=750)
    assert home.house["solar/energy_lifetime"] <= 5_012_001
    assert home.house["grid/energy_exported"] == pytest.approx(209_000, abs=2)
    assert home.home() == pytest.approx(3000, abs=10)


def test_a_toggled_meter_is_not_counted_twice() -> None:
    """vincentwolsink#32: disabled, 500 Wh made and 400 exported, enabled, 10 more made and 8 exported."""
    house = Answering("production", "net", periods={"energy": 5.0})
    house.inventory(0, soc=None)
    house.meters(0)

    def at(t: float, made: float, exported: float, *, off: bool = False) -> None:
        if not off:
            house.readings(t, production=(3000, 5e6 + made, 0), net=(-2400, 1e6, 2e6 + exported))
        else:
            house.readings(t, net=(-2400, 1e6, 2e6 + exported))
        house.pcu(t + 1, 3000, 4.9e6 + made)

    for t in times(0, 15, 5):
        at(t, 0, 0)
    house.meters(16, off=["production"])
    for t in times(20, 30, 5):
        at(t, 0, 0, off=True)
    for t in times(35, 45, 5):
        at(t, 500, 400, off=True)
    assert house["solar/energy_lifetime"] == 5_000_500
    house.meters(46)
    for t in times(50, 60, 5):
        at(t, 510, 408)
    assert house["solar/energy_lifetime"] in (5_000_500, 5_000_510)
    for t in times(65, 75, 5):
        at(t, 520, 416)
    assert house["solar/energy_lifetime"] in (5_000_510, 5_000_520)
    assert house["home/energy_lifetime"] == pytest.approx(104, abs=2)


def test_the_home_from_another_set_meanwhile_is_not_counted_again() -> None:
    """For an hour the consumption meter counts the load; what it has counted is not added once more."""
    home = Sunny("production", "net", "total")
    house = home.house
    house.meters(1, roles=["production", "net"])
    home.live(10, HOUR, step=10, without=["total"])
    assert home.home() == pytest.approx(1000, abs=5)
    house.meters(HOUR + 1, roles=["production", "total"])
    home.live(HOUR + 10, 2 * HOUR, step=10, without=["net"])
    assert home.home() == pytest.approx(2000, abs=10)
    house.meters(2 * HOUR + 1, roles=["production", "net"])
    home.live(2 * HOUR + 10, 3 * HOUR, step=10, without=["total"])
    assert home.home() == pytest.approx(3000, abs=15)


def test_a_set_that_was_not_whole_for_a_week_begins_anew() -> None:
    home = Sunny()
    home.live(60, HOUR)
    before = home.home()
    home.house.meters(HOUR + 1, off=["net"])
    home.live(HOUR + 100, HOUR + 8 * DAY, step=300, without=["net"])
    home.house.meters(HOUR + 8 * DAY + 1)
    home.live(HOUR + 8 * DAY + 60, HOUR + 8 * DAY + HOUR)
    assert home.home() == pytest.approx(before + 1000, abs=30)


def test_a_battery_that_was_removed_does_not_stop_the_home() -> None:
    """It gave 500 W of the home's 1000 W. After a week without a sign of it, 1000 W are the meters' alone."""
    house = Answering("production", "net")
    house.inventory(0)
    first_reading(house, production=(0, 5e6, 0), net=(500, 1e6, 2e6))
    for t in times(30, HOUR, 30):
        house.batteries(t, 500)
        house.readings(t + 1, production=(0, 5e6, 0), net=(500, 1e6 + 500 * t / HOUR, 2e6))
    assert house["home/energy_lifetime"] == pytest.approx(1000, abs=10)
    house.inventory(HOUR + 2, soc=None)
    house.say("power", HOUR + 3, {"devices:": []})
    for t in times(300, 8 * DAY, 300):
        house.readings(HOUR + t, production=(0, 5e6, 0), net=(1000, 1e6 + 500 + 1000 * t / HOUR, 2e6))
    assert house["home/power"] == 1000
    assert house["home/energy_lifetime"] == pytest.approx(1000 + 8 * 24 * 1000, abs=100)


def test_a_part_on_another_level_counts_as_published() -> None:
    """The production meter is replaced: the new one has another id, and stands at 7 MWh."""
    home = Sunny()
    home.live(60, HOUR)
    home.house.eids["production"] = 99
    home.house.meters(HOUR + 1)

    def replaced(t: float) -> None:
        values = home.at(t)
        power, delivered, received = values["production"]
        home.house.readings(t, **(values | {"production": (power, delivered + 2e6, received)}))

    every(HOUR + 60, 3 * HOUR, MINUTE, replaced)
    assert home.house["solar/energy_lifetime"] == pytest.approx(5_012_000, abs=1100)
    assert home.home() == pytest.approx(3000, abs=1100)
    before = home.home()
    every(3 * HOUR, 4 * HOUR, MINUTE, replaced)
    assert home.home() == pytest.approx(before + 1000, abs=20)


@pytest.mark.parametrize("off", [[], ["net"]], ids=["held", "disabled"])
def test_an_interval_is_kept_over_a_restart(off: Sequence[str]) -> None:
    home = Sunny()
    home.live(60, HOUR)
    home.house.meters(HOUR + 1, off=off)
    home.live(HOUR + 60, HOUR + 60, without=off)
    home.house = home.house.later()
    home.house.meters(2 * HOUR)
    home.live(2 * HOUR + 1, 2 * HOUR + 1)
    assert home.home() == pytest.approx(2000, abs=5)


def test_a_meter_of_consumption_alone_goes_on_though_what_inverters_draw_fell() -> None:
    """By day that counter stands still, and is held: grid and home do not wait for the evening."""
    house = Answering("production", "total")
    first_reading(house, production=(4000.0, 5_000_000, 70.0), total=(1000.0, 300_000, 0.02))

    def day(t: float) -> None:
        drawn, hours = 70.0 if t < HOUR else 40.0, t / HOUR
        made, used = 5_000_000 + 4000 * hours, 300_000 + 1000 * hours
        house.readings(t, production=(4000.0, made, drawn), total=(1000.0, used, 0.02))

    for hour in range(1, 7):
        every((hour - 1) * HOUR + MINUTE, hour * HOUR, MINUTE, day)
        assert house["home/energy_lifetime"] == pytest.approx(1000 * hour, abs=60)
        assert house["grid/energy_exported"] == pytest.approx(3000 * hour, abs=150)
    assert house["grid/energy_imported"] == pytest.approx(0, abs=1)


@pytest.mark.parametrize("is_off", [False, True], ids=["the counter stands still", "the meter shows zeros"])
def test_what_inverters_draw_is_counted_later(is_off: bool) -> None:
    """Their meter fails for six hours of the night in which they draw 70 W, beside a load of 500 W."""
    house = Answering("production", "total")
    first_reading(house, production=(-70.0, 5_000_000, 1_000.0), total=(500.0, 300_000, 0.02))

    def night(t: float) -> None:
        hours, fails = t / HOUR, HOUR < t <= 7 * HOUR
        production = (-70.0, 5_000_000.0, 1_000 + 70 * (1 if fails else hours))
        if fails and is_off:
            production = (0.0, 0.0, 0.0)
        house.readings(t, production=production, total=(500.0, 300_000 + 500 * hours, 0.02))

    every(MINUTE, 8 * HOUR, MINUTE, night)
    assert house["home/energy_lifetime"] == pytest.approx(570 * 8, abs=15)
    assert house["grid/energy_imported"] == pytest.approx(570 * 8, abs=15)


# E3: a negative balance


def test_a_reversed_grid_clamp_does_not_stop_the_home_for_weeks() -> None:
    """The clamp is reversed for 20 days and then put right: from then on the home counts what it uses."""
    house = Answering("production", "net", periods={"readings": QUARTER})
    house.inventory(0, soc=None)
    house.meters(0)
    made, exported, imported = 5e6, 2e6, 1e6
    used = 0.0

    def quarter(t: float, *, reversed_clamp: bool) -> None:
        nonlocal made, exported, imported, used
        sun = 4000.0 if 8 <= (t / HOUR + 8) % 24 < 18 else 0.0
        net = 1000 - sun
        made, used = made + sun / 4, used + 250
        shown = -net if reversed_clamp else net
        imported, exported = imported + max(0, shown) / 4, exported - min(0, shown) / 4
        house.readings(t, production=(sun, made, 0), net=(shown, imported, exported))

    every(0, DAY, QUARTER, lambda t: quarter(t, reversed_clamp=False))
    assert house["home/energy_lifetime"] == pytest.approx(used, abs=510)
    every(DAY + QUARTER, 21 * DAY, QUARTER, lambda t: quarter(t, reversed_clamp=True))
    right, used = house["home/energy_lifetime"], 0.0
    every(21 * DAY + QUARTER, 22 * DAY, QUARTER, lambda t: quarter(t, reversed_clamp=False))
    assert house["home/energy_lifetime"] - right == pytest.approx(used, abs=510)
    told = [event for event in house.log if event.warning and "home" in event.text]
    assert 1 <= len(told) <= 21


def test_a_small_negative_balance_is_carried_over() -> None:
    """The meters are read one after the other: 100 Wh too few are taken from what follows."""
    house = Answering("production", "net")
    house.inventory(0, soc=None)
    first_reading(house, production=(4000, 5e6, 0), net=(-3000, 1e6, 2e6))
    seen = []
    for t, made, exported in ((60, 0, 100), (120, 150, 100), (180, 200, 150), (240, 300, 150)):
        house.readings(t, production=(4000, 5e6 + made, 0), net=(-3000, 1e6, 2e6 + exported))
        seen.append(house["home/energy_lifetime"])
    assert seen == [0, 50, 50, 150]
    assert not house.log


THIRD_WH = 700_000.0


@pytest.mark.parametrize("fault", ["clamp", "disabled"])
def test_other_makers_panels_count_beside_the_inverters_sum(fault: str) -> None:
    """The roof makes 4 kW by the microinverters, and other makers' panels 1 kW by a meter of their own."""
    house = Answering("production", "net", "pv3p", third_party=True)

    def read(t: float, *, seen: float) -> None:
        hours = t / HOUR
        meters: dict[str, MeterValues] = {
            "production": (4000 * (seen == hours), 5e6 + 4000 * seen, 0),
            "net": (-4000, 1e6, 2e6 + 4000 * hours),
            "pv3p": (1000, THIRD_WH + 1000 * hours, 0),
        }
        if fault == "disabled" and seen < hours:
            del meters["production"]
        house.readings(t, **meters)
        if t % 300 == 0:
            house.pcu(t + 1, 4000, 4.9e6 + 4000 * hours)
            house.inverters(t + 2, 200)

    house.inventory(0, soc=None)
    house.meters(0)
    every(0, 2 * HOUR, 60, lambda t: read(t, seen=t / HOUR))
    assert house["solar/energy_lifetime"] == pytest.approx(5e6 + THIRD_WH + 10_000, abs=10)
    if fault == "disabled":
        house.meters(2 * HOUR + 10, off=["production"])
    every(2 * HOUR + 60, 4 * HOUR, 60, lambda t: read(t, seen=2))
    assert (house["solar/power"], house["solar/source"]) == (5000, "energy/production-pcu, meter/pv3p")
    assert house["solar/energy_lifetime"] == pytest.approx(5e6 + THIRD_WH + 20_000, abs=100)
    if fault == "clamp":
        assert house["home/energy_lifetime"] == pytest.approx(4000, abs=100)


def test_a_generator_is_no_import_where_the_grid_is_a_balance() -> None:
    """With a meter of all consumption: the grid gives 1 kWh, then a generator 2 kWh, then the grid 1 kWh."""
    house = Answering("production", "total")
    house.inventory(0, soc=None)

    def switch(t: float, power: float, *, closed: bool) -> None:
        relay = 1 if closed else 2
        house.live(t, pv=0, grid=0, main_relay_state=relay, generator={"agg_p_mw": round(power * 1000)})

    def read(t: float) -> None:
        on_generator = HOUR <= t < 3 * HOUR
        if t % 120 == 0:
            switch(t, 1000 if on_generator else 0, closed=not on_generator)
        house.readings(t + 1, production=(0, 5e6, 10), total=(1000, 1e6 + 1000 * t / HOUR, 10))

    house.meters(0)
    every(0, 4 * HOUR, 60, read)
    assert house["generator/energy_lifetime"] == pytest.approx(2000, abs=20)
    assert house["grid/energy_imported"] == pytest.approx(2000, abs=100)
    assert house["home/energy_lifetime"] == pytest.approx(4000, abs=50)


# E4: netting


def test_one_phase_is_counted_as_the_utility_counts() -> None:
    """Sequence R3: after 24 hours without the bridge both counters are the meter's own."""
    house = Answering("production", "net")
    house.inventory(0, soc=None)
    first_reading(house, production=(0, 5e6, 0), net=(500, 1e6, 2e6))
    house = house.later()
    house.meters(DAY)
    house.readings(DAY + 1, production=(0, 5_025_000, 0), net=(500, 1_010_000, 2_015_000))
    assert (house["grid/energy_imported"], house["grid/energy_exported"]) == (1_010_000, 2_015_000)
    assert house["home/energy_lifetime"] == pytest.approx(20_000)
    # a load that cycles between two polls: the meter sees both directions
    house.readings(DAY + 6, production=(0, 5_025_000, 0), net=(500, 1_010_003, 2_015_002))
    assert (house["grid/energy_imported"], house["grid/energy_exported"]) == (1_010_003, 2_015_002)


class ThreePhases:
    """A grid meter with three phases that takes 100 Wh and gives 60 Wh in each minute, on different phases."""

    def __init__(self, *, netted: bool = True) -> None:
        self.house = Answering("production", "net", phases=3, netted=netted, periods={"readings": MINUTE})
        self.house.inventory(0, soc=None)
        self.house.meters(0)
        self.taken, self.given, self.t = 1e6, 2e6, 0.0

    def minutes(self, count: int, taken: float = 100, given: float = 60) -> None:
        for _ in range(count):
            self.t, self.taken, self.given = self.t + MINUTE, self.taken + taken, self.given + given
            self.read((taken - given) * 60)

    def read(self, power: float) -> None:
        self.house.readings(self.t, production=(0, 5e6, 0), net=(power, self.taken, self.given))

    def gap(self, hours: float, taken: float, given: float) -> tuple[float, float]:
        """Let hours pass without the bridge; return what import and export rise by at the next reading."""
        before = self.counted()
        self.t, self.taken, self.given = self.t + hours * HOUR, self.taken + taken, self.given + given
        self.read(100)
        after = self.counted()
        return after[0] - before[0], after[1] - before[1]

    def counted(self) -> tuple[float, float]:
        return self.house["grid/energy_imported"], self.house["grid/energy_exported"]


def test_several_phases_are_netted_at_each_poll() -> None:
    home = ThreePhases()
    home.minutes(2)
    before = home.counted()
    home.minutes(10)
    home.minutes(10, taken=10, given=70)
    imported, exported = home.counted()
    assert (imported - before[0], exported - before[1]) == pytest.approx((400, 600))


def test_per_phase_takes_the_counters_of_the_meter() -> None:
    home = ThreePhases(netted=False)
    home.minutes(20)
    assert home.counted() == (home.taken, home.given)


def test_a_gap_is_passed_on_less_what_usually_cancels_out() -> None:
    """60 Wh a minute have cancelled out in each hour: 3.6 kWh an hour, so 18 kWh in five hours."""
    home = ThreePhases()
    home.minutes(26 * 60)
    home.house.log.clear()
    assert home.gap(5, 40_000, 30_000) == pytest.approx((22_000, 12_000), abs=100)
    told = [event for event in home.house.log if event.name == "grid_estimated"]
    assert len(told) == 1
    assert not told[0].warning
    assert "180" in told[0].text or "179" in told[0].text
    # never more than the lesser of the two sums
    assert home.gap(5, 20_000, 9_000) == pytest.approx((11_000, 0), abs=1)


def test_nothing_is_taken_off_a_gap_before_half_a_day_was_seen() -> None:
    home = ThreePhases()
    home.minutes(11 * 60)
    assert home.gap(5, 40_000, 30_000) == pytest.approx((40_000, 30_000))


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_the_number_of_phases_changes_while_the_bridge_is_away(before: int, after: int) -> None:
    house = Answering("production", "net", phases=before)
    house.inventory(0, soc=None)
    first_reading(house, production=(0, 5e6, 0), net=(500, 1e6, 2e6))
    house.readings(11, production=(0, 5e6, 0), net=(500, 1_000_100, 2e6))
    imported, exported = house["grid/energy_imported"], house["grid/energy_exported"]
    house = house.later()
    house.phases = after
    house.meters(6 * HOUR)
    house.readings(6 * HOUR + 1, production=(0, 5e6, 0), net=(500, 1_005_100, 2_002_000))
    house.readings(6 * HOUR + 6, production=(0, 5e6, 0), net=(500, 1_005_100, 2_002_000))
    assert house["grid/energy_imported"] - imported == 5000
    assert house["grid/energy_exported"] - exported == 2000


def test_three_periods_are_no_gap() -> None:
    home = ThreePhases()
    home.minutes(10)
    assert home.gap(2.9 / 60, 300, 180) == pytest.approx((120, 0))
    assert home.gap(3.2 / 60, 320, 190) == pytest.approx((320, 190))


# E5: the grid by balance, and changes of sign


def test_in_one_answer_each_interval_counts_as_it_is() -> None:
    """Every ten seconds the load is 10 Wh more or less than the sun: nothing is cancelled."""
    house = Answering("production", "total", periods={"readings": 10.0})
    house.inventory(0, soc=None)
    made, used = 5e6, 1e6
    first_reading(house, production=(3000, made, 9), total=(3000, used, 9))
    for index in range(100):
        made, used = made + 10, used + (20 if index % 2 else 0)
        house.readings(20 + index * 10, production=(3600, made, 9), total=(3600, used, 9))
    assert house["grid/energy_imported"] == pytest.approx(500)
    assert house["grid/energy_exported"] == pytest.approx(500)
    assert house["home/energy_lifetime"] == pytest.approx(1000)


@pytest.mark.parametrize("source", ["power", "live"])
def test_parts_of_different_moments_make_no_energy_out_of_nothing(source: str) -> None:
    """Sequence R9: load and battery are both 1 kW for ten hours, the battery is told every 30 s: no grid at all."""
    house = Answering("production", "total", periods={"readings": 10.0, "livedata": 30.0, "power": 30.0})
    house.meters(0)
    house.inventory(0)
    for t in times(0, 36_000, 10):
        house.readings(t, production=(0, 5e6, 9), total=(1000, 5e6 + t / 3.6, 9))
        if t % 30 == 0 and source == "power":
            house.batteries(t + 1, 1000)
        elif t % 30 == 0:
            house.live(t + 1, pv=0, storage=1000 + (t % 7) / 1000, grid=0)
    assert house["grid/energy_imported"] == pytest.approx(0, abs=20)
    assert house["grid/energy_exported"] == pytest.approx(0, abs=20)
    assert house["battery/energy_discharged"] == pytest.approx(10_000, abs=20)
    assert house["home/energy_lifetime"] == pytest.approx(10_000, abs=20)


# E6: batteries that no meter counts


def test_slow_powers_are_integrated() -> None:
    """Sequence R10: 300 W for ten hours and then back, read every 120 s; the charge is in whole percent."""
    house = Answering("production", "net", periods={"power": 120.0, "readings": 120.0})
    house.meters(0)

    def read(t: float, power: float, stored: float) -> None:
        house.inventory(t, soc=int(stored / 100))
        house.readings(t, production=(0, 5e6, 0), net=(0, 1e6, 1e6))
        house.batteries(t + 1, power, soc=int(stored / 100))

    every(0, 36_000, 120, lambda t: read(t, 300, 9000 - 300 * t / HOUR / 0.95))
    assert house["battery/energy_discharged"] == pytest.approx(3000, abs=15)
    assert house["battery/energy_charged"] == 0
    every(36_120, 72_000, 120, lambda t: read(t, -300, 5842 + 300 * (t - 36_000) / HOUR * 0.95))
    assert house["battery/energy_discharged"] == pytest.approx(3000, abs=15)
    assert house["battery/energy_charged"] == pytest.approx(3000, abs=15)


@pytest.mark.parametrize(("gap", "given"), [(60, 1000 / 60), (2 * HOUR, 3000)])
def test_a_gap_uses_the_change_of_what_is_stored(gap: float, given: float) -> None:
    """The power is 1 kW before and after the gap; in two hours the battery has given 3 kWh."""
    house = Answering("production", "net")
    house.meters(0)
    for t, soc in ((0, 80), (30, 80), (30 + gap, 80 if gap < HOUR else 50)):
        house.inventory(t, soc=soc)
        house.readings(t, production=(0, 5e6, 0), net=(0, 1e6, 1e6))
        house.batteries(t + 1, 1000, soc=soc)
    assert house["battery/energy_discharged"] == pytest.approx(given + 1000 / 120, abs=5)


# E7: today


class Days:
    """A home with sun from 8 to 18 h, 1 kW, that uses 500 W all day; it is read every quarter of an hour."""

    def __init__(self, start: datetime) -> None:
        self.house = Answering("production", "net", start=start, periods={"readings": QUARTER})
        self.house.inventory(0, soc=None)
        self.house.meters(0)
        self.offset = (start - start.replace(hour=0, minute=0)).total_seconds()

    def made(self, t: float) -> float:
        days, seconds = divmod(t + self.offset, DAY)
        return 10_000 * days + 1000 * min(max(0.0, seconds / HOUR - 8), 10)

    def read(self, t: float) -> None:
        made, used = self.made(t) - self.made(0), 500 * t / HOUR
        hour = (t + self.offset) % DAY / HOUR
        sun = 1000.0 if 8 <= hour < 18 else 0.0
        bought = max(0.0, used - made)
        self.house.readings(
            t, production=(sun, 5e6 + made, 0), net=(500 - sun, 1e6 + 1000 + used, 2e6 + 1000 + made)
        )
        assert bought >= 0

    def live(self, first: float, last: float) -> None:
        every(first, last, QUARTER, self.read)

    def today(self) -> tuple[Any, Any]:
        return self.house["solar/energy_today"], self.house["home/energy_today"]


def test_today_is_unknown_from_midnight_until_its_flow_was_read() -> None:
    days = Days(MORNING)
    days.live(0, 16 * HOUR - QUARTER)
    days.house.say("relay", 16 * HOUR + 5, {"mains_admin_state": "closed", "mains_oper_state": "closed"})
    days.house.pcu(16 * HOUR + 6, 0, 4.9e6)
    days.house.pcu(16 * HOUR + 7, 0, 4.9e6 + 1)
    assert days.today() == (None, None)
    days.read(16 * HOUR + 60)
    assert days.today() == (0, pytest.approx(500 / 60, abs=5))
    days.live(16 * HOUR + QUARTER, 30 * HOUR)
    assert days.today() == (pytest.approx(6000, abs=5), pytest.approx(7000, abs=5))


def test_a_gap_of_47_hours_over_two_midnights() -> None:
    """Sequence R5: down from Monday 00:05 to Tuesday 23:55; 30 kWh are made and 10 used on each day."""
    house = Answering("production", "net", start=datetime(2026, 6, 1, 0, 4, 50, tzinfo=UTC))
    house.inventory(0, soc=None)
    first_reading(house, production=(0, 5e6, 0), net=(500, 1e6, 2e6))
    house = house.later()
    house.meters(10 + 47 * HOUR + 50 * MINUTE)
    house.readings(11 + 47 * HOUR + 50 * MINUTE, production=(0, 5_060_000, 0), net=(500, 1_010_000, 2_050_000))
    assert house["solar/energy_today"] == pytest.approx(30_000, abs=200)
    assert house["home/energy_today"] == pytest.approx(10_000, abs=50)


def test_a_gap_over_midnight_is_shared_by_the_sun() -> None:
    """Down from 20:00 to 10:00 after three days: all 2 kWh of the sun are today's, and 5 of 7 kWh of the home."""
    days = Days(MORNING)
    days.live(0, 60 * HOUR)
    assert days.today() == (pytest.approx(10_000, abs=5), pytest.approx(10_000, abs=5))
    days.house = days.house.later()
    days.house.meters(74 * HOUR)
    days.read(74 * HOUR)
    assert days.today() == (pytest.approx(2000, abs=60), pytest.approx(5000, abs=60))


def test_a_gap_over_midnight_while_the_bridge_runs_says_nothing_of_single_hours() -> None:
    """The gateway is silent from 13:00 to 23:30 of the next day: 5 of 15 kWh of the sun are yesterday's."""
    days = Days(MORNING)
    days.live(0, 53 * HOUR)
    days.read(87.5 * HOUR)
    assert days.today()[0] == pytest.approx(10_000, abs=60)


def test_three_days_away() -> None:
    """Sequence R8: from Monday to Thursday, both at 10:00, the home uses 20 kWh: 10 of 72 hours are today's."""
    house = Answering("production", "net", start=MORNING + timedelta(hours=2))
    house.inventory(0, soc=None)
    first_reading(house, production=(0, 5e6, 0), net=(500, 1e6, 2e6))
    house = house.later()
    house.meters(3 * DAY)
    house.readings(3 * DAY + 1, production=(0, 5_060_000, 0), net=(500, 1_010_000, 2_050_000))
    assert house["home/energy_today"] == pytest.approx(2778, abs=10)
    assert 0 <= house["solar/energy_today"] <= 20_000


@pytest.mark.parametrize(("today", "shown"), [(7000, 7100), (300_000, None), (None, None)])
def test_the_first_day_begins_with_the_gateways_own_count(today: float | None, shown: float | None) -> None:
    house = Answering()
    house.say("meters", 0, [{"eid": 1, "state": "disabled", "measurementType": "production", "phaseCount": 1}])
    for t, wh in ((1, 0), (301, 0), (601, 100)):
        house.pcu(t, 4000, 8e6 + wh, today=None if today is None else today + wh)
    assert house["solar/energy_lifetime"] == 8e6 + 100
    assert house["solar/energy_today"] == shown


@pytest.mark.parametrize(("hour", "shown"), [(0, None), (2, None), (5, None), (12, 30_000)])
def test_a_count_of_today_may_be_that_of_yesterday(hour: int, shown: float | None) -> None:
    """Some firmware begins its count after midnight: 30 kWh at once are more than 16 inverters make by then."""
    house = Answering(start=MORNING.replace(hour=hour, minute=10))
    house.say("meters", 0, [{"eid": 1, "state": "disabled", "measurementType": "production", "phaseCount": 1}])
    house.inverters(0.5, 0, count=16, reported=-4 * HOUR)
    for t in (1, 301, 601):
        house.pcu(t, 0, 8e6, today=30_000)
    assert house["solar/energy_today"] == shown
    for t in range(900, 3600, 900):  # the gateway begins its count of today
        house.pcu(t, 0, 8e6 + t / 900 if hour > 2 else 8e6, today=t / 900 if hour > 2 else 0)
    if shown is None:
        assert house["solar/energy_today"] == (3 if hour > 2 else 0)


def test_a_true_reset_of_a_counter_does_not_reset_the_day() -> None:
    """At noon on the second day the meter is replaced by a new one that begins at 0."""
    days = Days(MORNING)
    days.live(0, 28 * HOUR)
    assert days.today()[0] == pytest.approx(4000, abs=5)

    def replaced(t: float) -> None:
        made = days.made(t) - days.made(28 * HOUR)
        used = 500 * t / HOUR
        days.house.readings(
            t,
            production=(1000, made, 0),
            net=(-500, 1e6 + 1000 + used, 2e6 + 1000 + days.made(t) - days.made(0)),
        )

    every(28 * HOUR + QUARTER, 32 * HOUR, QUARTER, replaced)
    assert days.today()[0] == pytest.approx(8000, abs=300)


@pytest.mark.parametrize("hours", [3, -30])
def test_a_clock_that_jumps_begins_no_new_day_at_once(hours: float) -> None:
    """At 22 h the clock of the machine jumps for ten minutes; the day goes on."""
    days = Days(MORNING)
    days.live(0, 38 * HOUR)
    assert days.today() == (pytest.approx(10_000, abs=5), pytest.approx(11_000, abs=5))
    days.house.clock_error = hours * HOUR
    every(38 * HOUR + MINUTE, 38 * HOUR + 10 * MINUTE, MINUTE, days.read)
    assert days.today() == (pytest.approx(10_000, abs=5), pytest.approx(11_083, abs=10))
    days.house.clock_error = 0
    every(38 * HOUR + 11 * MINUTE, 38 * HOUR + 30 * MINUTE, MINUTE, days.read)
    assert days.today() == (pytest.approx(10_000, abs=5), pytest.approx(11_250, abs=10))


def test_a_clock_that_was_set_for_good_begins_a_new_day_after_a_quarter_of_an_hour() -> None:
    days = Days(MORNING)
    days.live(0, 38 * HOUR)
    days.house.clock_error = 3 * HOUR
    every(38 * HOUR + MINUTE, 38 * HOUR + 14 * MINUTE, MINUTE, days.read)
    assert days.today()[1] == pytest.approx(11_117, abs=10)
    every(38 * HOUR + 15 * MINUTE, 38 * HOUR + 30 * MINUTE, MINUTE, days.read)
    home = days.today()[1]
    assert home is not None
    assert home < 1000


def test_a_clock_behind_the_last_look_begins_no_new_day() -> None:
    """The machine starts with yesterday's time, and gets the right one after ten minutes."""
    days = Days(MORNING)
    days.live(0, 38 * HOUR)
    days.house = days.house.later()
    days.house.clock_error = -DAY
    every(38 * HOUR + MINUTE, 38 * HOUR + 10 * MINUTE, MINUTE, days.read)
    days.house.clock_error = 0
    every(38 * HOUR + 11 * MINUTE, 38 * HOUR + 30 * MINUTE, MINUTE, days.read)
    assert days.today() == (pytest.approx(10_000, abs=5), pytest.approx(11_250, abs=10))


@pytest.mark.parametrize(
    ("wrong", "hours"),
    [((24 * 60 + 5, 24 * 60 + 25), -1), ((24 * 60 - 5, 24 * 60 + 25), -24), ((24 * 60 - 30, 24 * 60 - 20), 1)],
)
def test_a_clock_that_is_wrong_around_midnight_keeps_the_base_of_the_new_day(
    wrong: tuple[float, float], hours: float
) -> None:
    """`wrong` are the minutes since the first midnight in which the clock is wrong."""
    days = Days(MORNING.replace(hour=0))
    days.live(0, 23 * HOUR)
    for minute in range(23 * 60 + 1, 26 * 60):
        days.house.clock_error = hours * HOUR if wrong[0] <= minute < wrong[1] else 0.0
        days.read(minute * MINUTE)
    days.live(26 * HOUR, 36 * HOUR)
    assert days.today() == (pytest.approx(4000, abs=5), pytest.approx(6000, abs=20))
    days.live(36 * HOUR + QUARTER, 60 * HOUR)
    assert days.today() == (pytest.approx(4000, abs=5), pytest.approx(6000, abs=20))


# E8: a state that was lost


def test_a_kill_while_a_meter_is_disabled_costs_nothing() -> None:
    """What subscribers have is rounded, which is no news: the parts of the home are kept as they were."""
    house = Answering("production", "net")

    def at(t: float) -> dict[str, MeterValues]:
        return {"production": (4000, 5e6 + 4000 * t / HOUR, 0), "net": (-3000, 1e6, 2e6 + 3000 * t / HOUR)}

    def is_rounded_up() -> bool:
        return bool(house.pipeline.state.site.energies.tallies["home"][1] < house["home/energy_lifetime"])

    house.inventory(0, soc=None)
    house.meters(0)
    every(1, 15, 7, lambda t: house.readings(t, **at(t)))
    t = next(t for t in times(22, HOUR, 7) if house.readings(t, **at(t)) and is_rounded_up())
    before = house["home/energy_lifetime"]
    house.meters(t, off=["production"])
    every(t + 60, t + HOUR, 60, lambda t: house.readings(t, net=at(t)["net"]))
    house = house.later(retained=house.retained())
    every(t + HOUR + 60, t + 2 * HOUR, 60, lambda t: house.readings(t, net=at(t)["net"]))
    house.meters(t + 2 * HOUR)
    house.readings(t + 2 * HOUR, **at(t + 2 * HOUR))
    assert house["home/energy_lifetime"] - before == pytest.approx(2000, abs=10)


def test_a_meter_that_is_disabled_while_the_bridge_is_away() -> None:
    """Solar goes on with what the microinverters have made since the meter was read last."""
    home = Sunny()
    home.both(60, 2 * HOUR)
    home.house = home.house.later()
    home.house.meters(5 * HOUR, off=["production"])
    home.both(5 * HOUR, 6 * HOUR, without=["production"])
    assert home.house["solar/source"] == "energy/production-pcu"
    assert home.house["solar/energy_lifetime"] == pytest.approx(5_024_000, abs=20)
    home.house.meters(6 * HOUR + 10)
    home.both(6 * HOUR + 60, 7 * HOUR)
    assert home.house["solar/energy_lifetime"] == pytest.approx(5_028_000, abs=20)
    assert home.home() == pytest.approx(7000, abs=20)


def test_all_counters_go_on_from_the_retained_topics() -> None:
    home = Sunny("production", "net", "storage")
    home.live(QUARTER, 20 * HOUR, step=QUARTER)
    before = dict(home.house.shown)
    assert before["home/energy_today"] is not None
    home.house = home.house.without_state()
    home.house.meters(20 * HOUR + 10)
    home.live(20 * HOUR + 20, 20 * HOUR + 80, step=10)
    home.live(20 * HOUR + 90, 21 * HOUR, step=10)
    hourly = {
        "solar/energy_lifetime": 4000,
        "grid/energy_imported": 0,
        "grid/energy_exported": 3500,
        "battery/energy_discharged": 500,
        "battery/energy_charged": 0,
        "home/energy_lifetime": 1000,
        "home/energy_today": 1000,
    }
    for topic, rise in hourly.items():
        assert home.house[topic] - before[topic] == pytest.approx(rise, abs=60), topic


def test_netted_and_derived_counters_go_on_from_the_retained_topics() -> None:
    home = ThreePhases()
    home.minutes(100)
    before, used = home.counted(), home.house["home/energy_lifetime"]
    home.house = home.house.without_state()
    home.house.meters(home.t)
    home.minutes(60)
    imported, exported = home.counted()
    assert imported - before[0] == pytest.approx(60 * 40, abs=100)
    assert exported == pytest.approx(before[1], abs=1)
    assert home.house["home/energy_lifetime"] - used == pytest.approx(60 * 40, abs=100)


@pytest.mark.parametrize("value", [1e300, -5.0, 2e10, float("inf"), float("nan")])
@pytest.mark.parametrize("topic", ["site/home/energy_lifetime", "site/solar/energy_lifetime"])
def test_a_retained_value_that_no_counter_can_have_is_ignored(topic: str, value: float) -> None:
    house = Answering("production", "net", retained={topic: value})
    house.inventory(0, soc=None)
    first_reading(house, production=(4000, 5e6, 0), net=(-3000, 1e6, 2e6))
    house.readings(60, production=(4000, 5e6 + 60, 0), net=(-3000, 1e6, 2e6 + 45))
    assert house["home/energy_lifetime"] == pytest.approx(15)
    assert house["solar/energy_lifetime"] == 5e6 + 60


# Counters that step


def test_a_sum_of_many_inverters_passes_2_31() -> None:
    """Sequence R6."""
    house = Answering(periods={"production": 900.0})
    house.say("meters", 0, [])
    for index in range(40):
        house.production(index * 900, 8000, 2**31 - 20_000 + index * 2000)
    assert house["solar/energy_lifetime"] == 2**31 - 20_000 + 39 * 2000


def test_the_state_can_be_written() -> None:
    """What is kept is plain JSON, also in the middle of a suspicion and of a pause."""
    home = Sunny("production", "net", "storage")
    home.pcu(7)
    home.house.meters(10, off=["production"])
    home.pcu(20)
    json.loads(home.house.pipeline.state.model_dump_json())


def test_a_jump_that_was_taken_out_stays_out_when_the_state_is_lost() -> None:
    """Sequence R12: the production counter jumps by 500 kWh; the state is lost half an hour later."""
    house = Answering("production", "net", periods={"readings": 10.0})
    house.inventory(0, soc=None)
    house.meters(0)

    def read(t: float) -> None:
        jump = 5e5 if t > 100 else 0
        house.readings(t, production=(4000, 5e6 + t * 1.1 + jump, 0), net=(-3000, 1e5, 2e5 + t * 0.8))

    every(0, 2390, 10, read)
    before, today, exported = (
        house[topic] for topic in ("solar/energy_lifetime", "solar/energy_today", "grid/energy_exported")
    )
    assert 5e6 + 2390 * 1.1 - 1100 <= before <= 5e6 + 2390 * 1.1 + 1
    house = house.without_state()
    house.meters(2410)
    every(2420, 2490, 10, read)  # while a counter is held, the retained value stays
    assert before <= (house["solar/energy_lifetime"] or before) <= before + 200
    assert exported <= house["grid/energy_exported"] <= exported + 100
    assert today is None or (house["solar/energy_today"] or today) >= today
    every(2500, 6000, 10, read)
    assert house["solar/energy_lifetime"] == pytest.approx(before + 3610 * 1.1, abs=1200)


def test_a_step_at_night_is_not_energy() -> None:
    """Sequence R4: at three in the morning one reading is 50 kWh too high, in both meters."""
    house = Answering("production", "net", start=datetime(2026, 6, 1, 20, 30, tzinfo=UTC))
    house.inventory(0, soc=None)
    house.meters(0)
    house.inverters(0, 0, count=16, highest=375)
    used = 0.0
    for t in times(0, 24_000, 20):
        used = t * 500 / HOUR
        step = 50_000 if t == 23_400 else 0
        house.readings(t, production=(0, 5e6 + step, 0), net=(500, 1e6 + used, 2e6 + step))
    assert house.highest["solar/energy_lifetime"] == 5e6
    assert house.highest["grid/energy_exported"] == 2e6
    assert house["grid/energy_imported"] == pytest.approx(1e6 + used, abs=1)
    assert house["home/energy_lifetime"] == pytest.approx(used, abs=5)
    for t in times(24_020, 25_220, 20):
        house.readings(t, production=(100, 5e6 + (t - 24_000) / 36, 0), net=(400, 1e6 + used, 2e6))
    assert house["solar/energy_lifetime"] == pytest.approx(5e6 + 1220 / 36, abs=1)
