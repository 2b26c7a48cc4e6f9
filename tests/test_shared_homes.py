"""Homes of several gateways: their flows from those of the gateways, with values worked out by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from bridge import discovery
from bridge.discovery.devices import AnnouncedHome
from bridge.model import BadSetting, Facts, Scalar
from bridge.settings import Settings, load
from bridge.sharding import place
from bridge.site.homes import HomeState, HomeUpdate, MemberFlows, SharedHome
from bridge.topics import Names, Tree

MORNING = datetime(2026, 6, 1, 9, tzinfo=UTC).timestamp()
QUARTER_S, DAY_S = 900.0, 86_400.0
KWH = 1000.0


def roof(power: float = 500.0, lifetime: float = 12_000 * KWH, **more: Scalar) -> dict[str, Scalar]:
    """What a gateway with a production meter gives."""
    found: dict[str, Scalar] = {
        "solar/power": power,
        "solar/source": "meter/production",
        "solar/estimated": False,
        "solar/energy_lifetime": lifetime,
        "solar/energy_today": 1200.0,
    }
    return found | more


def grid(power: float = -300.0, imported: float = 1738 * KWH, exported: float = 2777 * KWH) -> dict[str, Scalar]:
    return {
        "grid/power": power,
        "grid/source": "meter/net-consumption",
        "grid/estimated": False,
        "grid/energy_imported": imported,
        "grid/energy_exported": exported,
        "home/power": 700.0,
        "home/energy_lifetime": 1.0,
    }


def battery(power: float = 0.0, charged: float = 0.0, discharged: float = 0.0, **more: Scalar) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {
        "battery/power": power,
        "battery/estimated": False,
        "battery/energy_charged": charged,
        "battery/energy_discharged": discharged,
    }
    return found | {f"battery/{name}": value for name, value in more.items()}


def member(serial: str, values: Mapping[str, Scalar], **more: Any) -> MemberFlows:
    given: dict[str, Any] = {"read_at": 100.0, "period": 5.0, "is_online": True, "is_settled": True}
    given["has_grid_meter"] = values.get("grid/source") == "meter/net-consumption"
    given["has_solar_meter"] = values.get("solar/source") == "meter/production"
    return MemberFlows(serial, values, **given | more)


def news(home: SharedHome, members: Sequence[MemberFlows], now: float) -> HomeUpdate:
    return home.update(members, now, now)


def shown(update: HomeUpdate) -> dict[str, Any]:
    return {f"{reading.device}/{reading.name}": reading.value for reading in update.readings}


def old(**more: Any) -> MemberFlows:
    return member("11", roof(), **more)


def new(**more: Any) -> MemberFlows:
    return member("12", roof(1000.0, 2_000 * KWH) | grid(), **more)


# Powers


def test_the_home_is_what_both_gateways_give_and_the_grid() -> None:
    found = shown(news(SharedHome("villa"), [old(), new()], MORNING))
    assert found["solar/power"] == 1500
    assert found["grid/power"] == -300
    assert found["home/power"] == 1200
    assert found["solar/energy_lifetime"] == 14_000 * KWH
    assert found["solar/energy_today"] == 2400
    assert found["grid/energy_imported"] == 1738 * KWH
    assert found["grid/energy_exported"] == 2777 * KWH
    assert found["home/source"] == "balance"
    assert found["home/energy_lifetime"] == 0
    assert found["home/energy_since"] == datetime.fromtimestamp(MORNING, UTC)


@pytest.mark.parametrize(
    ("old_told", "new_told", "told"),
    [
        ((), (), set()),
        (["solar/power"], (), {"solar/power", "home/power"}),
        ((), ["solar/power", "grid/power", "home/power"], {"solar/power", "grid/power", "home/power"}),
        (["grid/power"], (), set()),  # the meter at the grid connection is the other one's
        (["battery/soc"], (), {"battery/soc"}),
    ],
)
def test_what_a_gateway_repeats_its_home_repeats(
    old_told: Sequence[str], new_told: Sequence[str], told: set[str]
) -> None:
    home, values = SharedHome("villa"), roof() | battery(soc=50, capacity=5000) | {"grid/power": 5.0}
    members = [member("11", values, told=frozenset(old_told)), new(told=frozenset(new_told))]
    found = news(home, members, MORNING)
    assert {f"{reading.device}/{reading.name}" for reading in found.readings if reading.repeat} == told


def test_a_counter_that_is_not_confirmed_yet_is_waited_for() -> None:
    """A gateway publishes a counter with its second reading. What it counted earlier is in the first sum."""
    home, without = SharedHome("villa"), {**roof(1000.0), **grid()}
    del without["solar/energy_lifetime"]
    early = shown(news(home, [old(), member("12", without)], MORNING))
    assert "solar/energy_lifetime" not in early
    assert early["solar/power"] == 1500
    found = shown(news(home, [old(), new()], MORNING + 5))
    assert found["solar/energy_lifetime"] == 14_000 * KWH
    assert found["home/energy_lifetime"] == 0


def test_a_gateway_without_a_counter_is_not_waited_for_for_ever() -> None:
    home, without = SharedHome("villa"), {**roof(1000.0), **grid()}
    del without["solar/energy_lifetime"]
    updates = [news(home, [old(), member("12", without)], MORNING + 60 * minutes) for minutes in range(21)]
    assert [shown(update).get("solar/energy_lifetime") for update in updates] == [None] * 20 + [12_000 * KWH]


def test_one_gateway_alone_is_a_home() -> None:
    found = shown(news(SharedHome("villa"), [new()], MORNING))
    assert (found["solar/power"], found["grid/power"], found["home/power"]) == (1000, -300, 700)


def test_batteries_and_a_generator_are_parts_of_the_balance() -> None:
    one = member("11", roof(200.0) | battery(-400.0, soc=50.0, capacity=10_000.0, energy_stored=5_000.0))
    two = member(
        "12",
        roof(100.0) | grid(900.0) | battery(1500.0, soc=20.0, capacity=5_000.0, energy_stored=1_000.0)
        | {"generator/power": 0.0, "generator/energy_lifetime": 7.0},
    )  # fmt: skip
    found = shown(news(SharedHome("villa"), [one, two], MORNING))
    assert found["battery/power"] == 1100
    assert found["battery/soc"] == 40  # 6 kWh of 15 kWh
    assert found["battery/energy_stored"] == 6000
    assert found["battery/capacity"] == 15_000
    assert found["generator/power"] == 0
    assert found["home/power"] == 300 + 900 + 1100


@pytest.mark.parametrize(
    ("charges", "capacities", "expected"),
    [
        ((0.0, 50.0), (10_000.0, 1_200.0), 5.4),
        ((0.0, 50.0), (10_000.0, None), None),
        ((None, 50.0), (1.0, 1.0), None),
    ],
)
def test_an_empty_battery_is_still_a_battery(
    charges: tuple[float | None, ...], capacities: tuple[float | None, ...], expected: float | None
) -> None:
    members = [
        member(str(number), roof() | battery(soc=charge, capacity=capacity))
        for number, (charge, capacity) in enumerate(zip(charges, capacities, strict=True))
    ]
    assert shown(news(SharedHome("villa"), members, MORNING))["battery/soc"] == expected


@pytest.mark.parametrize(
    ("apart", "periods", "expected"),
    [(10.0, (1.0, 1.0), 1200), (10.1, (1.0, 5.0), None), (30.0, (5.0, 15.0), 1200), (30.1, (15.0, 5.0), None)],
)
def test_powers_of_different_times_do_not_add_up(
    apart: float, periods: tuple[float, float], expected: float | None
) -> None:
    members = [old(period=periods[0]), new(read_at=100 + apart, period=periods[1])]
    found = shown(news(SharedHome("villa"), members, MORNING))
    assert found["home/power"] == expected
    assert (found["solar/power"], found["grid/power"]) == (1500, -300)


def test_what_a_gateway_does_not_know_nobody_knows() -> None:
    home = SharedHome("villa")
    news(home, [old(), new()], MORNING)
    blind = replace(old(), values=roof() | {"solar/power": None})
    found = shown(news(home, [blind, new()], MORNING + 5))
    assert (found["solar/power"], found["grid/power"], found["home/power"]) == (None, -300, None)


def test_a_flow_that_is_missing_is_unknown_and_no_zero() -> None:
    home = SharedHome("villa")
    news(home, [old(), member("12", roof(1000.0) | grid() | battery(250.0))], MORNING)
    found = shown(news(home, [old(), new()], MORNING + 5))
    assert found["battery/power"] is None
    assert found["home/power"] is None
    later = shown(news(home, [old(), new()], MORNING + 8 * DAY_S))  # the battery is gone for good
    assert "battery/power" not in later
    assert later["home/power"] == 1200


@pytest.mark.parametrize(("silent", "unknown"), [(0, {"solar", "home"}), (1, {"solar", "grid", "home"})])
def test_what_a_silent_gateway_is_part_of_is_unknown_and_its_counters_stand(silent: int, unknown: set[str]) -> None:
    home = SharedHome("villa")
    before = shown(news(home, [old(), new()], MORNING))
    members = [old(), new()]
    members[silent] = replace(members[silent], is_online=False)
    found = shown(news(home, members, MORNING + 60))
    assert {name.partition("/")[0] for name in found if name.endswith("/power") and found[name] is None} == unknown
    counters = [name for name in before if "energy_" in name and "today" not in name]
    assert {name: found[name] for name in counters} == {name: before[name] for name in counters}


def test_roofs_without_a_grid_meter_are_sums_alone() -> None:
    home, barn = SharedHome("villa"), member("13", roof(70.0, 1.0))
    found = shown(news(home, [old(), barn], MORNING))
    assert found["solar/power"] == 570
    assert {name.partition("/")[0] for name in found} == {"solar"}
    found = shown(news(home, [old(), replace(barn, is_online=False)], MORNING + 60))
    assert found["solar/power"] is None


def test_nothing_is_told_until_all_gateways_are_known() -> None:
    home = SharedHome("villa")
    assert news(home, [old(is_settled=False), new()], MORNING).readings == ()
    assert news(home, [MemberFlows("11"), new()], MORNING).readings == ()
    assert shown(news(home, [old(), new()], MORNING + 5))["home/power"] == 1200


def test_a_restart_knows_the_gateways() -> None:
    home = SharedHome("villa")
    news(home, [old(), new()], MORNING)
    again = SharedHome("villa", HomeState.model_validate(home.state.model_dump(mode="json")))
    found = shown(news(again, [MemberFlows("11"), new()], MORNING + 60))
    assert found["solar/power"] is None
    assert found["solar/energy_lifetime"] == 14_000 * KWH
    assert found["grid/power"] == -300


@pytest.mark.parametrize(("power", "expected"), [(-1550.0, -50), (-1600.0, None)])
def test_a_home_that_gives_power_is_impossible(power: float, expected: float | None) -> None:
    """1,500 W of sun: 50 W and 2 % of 1,550 W may be missing, 100 W of 1,600 W may not."""
    members = [old(), member("12", roof(1000.0) | grid(power))]
    home = SharedHome("villa")
    update = news(home, members, MORNING)
    assert shown(update)["home/power"] == expected
    assert update.problem is None
    later = news(home, members, MORNING + QUARTER_S).problem
    assert (later is None) == (expected is not None)
    assert later is None or later.startswith("home villa: more flows into the grid than its gateways give")
    assert news(home, [old(), new()], MORNING + QUARTER_S + 5).problem is None


# The meter at the grid connection


def two_meters(**of_the_second: Any) -> list[MemberFlows]:
    return [member("11", roof() | grid(50.0, 1.0, 2.0)), new(**of_the_second)]


def test_two_grid_meters_and_none_is_chosen() -> None:
    update = news(SharedHome("villa"), two_meters(), MORNING)
    found = shown(update)
    assert (found["solar/power"], found["grid/power"], found["home/power"]) == (1500, None, None)
    assert "grid/energy_imported" not in found
    assert update.problem == (
        "home villa: the gateways 11 and 12 each have a grid meter: set grid_meter = true for the one whose meter "
        "measures the whole home (BRIDGE_GATEWAYS)"
    )


def test_the_settings_choose_the_grid_meter() -> None:
    update = news(SharedHome("villa"), two_meters(is_chosen=True), MORNING)
    assert (shown(update)["grid/power"], shown(update)["home/power"]) == (-300, 1200)
    assert update.problem is None


def test_a_grid_known_from_live_data_is_one() -> None:
    live = grid(400.0) | {"grid/source": "live/grid"}
    found = shown(news(SharedHome("villa"), [old(), member("12", roof(1000.0) | live)], MORNING))
    assert (found["grid/power"], found["home/power"]) == (400, 1900)


def test_a_grid_by_balance_is_none_of_the_home() -> None:
    """A gateway that measures all consumption takes the other one's sun for import."""
    balanced = grid(400.0) | {"grid/source": "balance"}
    found = shown(news(SharedHome("villa"), [old(), member("12", roof(1000.0) | balanced)], MORNING))
    assert found["solar/power"] == 1500
    assert not {name for name in found if name.startswith(("grid/", "home/"))}


# Energies


def at(hours: float, *, sun: tuple[float, float], taken: float, given: float, **more: Any) -> list[MemberFlows]:
    """Both gateways after some hours, with the kWh that each has counted since the beginning."""
    return [
        member("11", roof(500.0, (12_000 + sun[0]) * KWH), read_at=hours * 3600, **more),
        member(
            "12",
            roof(1000.0, (2_000 + sun[1]) * KWH) | grid(-300.0, (1738 + taken) * KWH, (2777 + given) * KWH),
            read_at=hours * 3600,
        ),
    ]


def test_the_home_s_energy_is_what_its_parts_have_counted() -> None:
    home = SharedHome("villa")
    news(home, at(0, sun=(0, 0), taken=0, given=0), MORNING)
    found = shown(news(home, at(1, sun=(0.5, 1.0), taken=0.1, given=0.4), MORNING + 3600))
    assert found["home/energy_lifetime"] == pytest.approx(1200)
    assert found["solar/energy_lifetime"] == 14_001.5 * KWH
    found = shown(news(home, at(2, sun=(0.5, 1.0), taken=1.1, given=0.4), MORNING + 7200))
    assert found["home/energy_lifetime"] == pytest.approx(2200)


def test_the_battery_s_energy_is_part_of_the_home_s() -> None:
    home = SharedHome("villa")
    one = member("11", roof() | battery(0.0, 5.0, 7.0))
    news(home, [one, new()], MORNING)
    charged = member("11", roof() | battery(0.0, 305.0, 107.0))
    sunny = member("12", roof(0.0, 2_001 * KWH) | grid())
    found = shown(news(home, [charged, sunny], MORNING + 60))
    assert found["home/energy_lifetime"] == pytest.approx(1000 - 300 + 100)


def test_what_was_counted_while_a_gateway_was_silent_counts_once() -> None:
    home = SharedHome("villa")
    news(home, at(0, sun=(0, 0), taken=0, given=0), MORNING)
    for minutes in range(5, 60, 5):
        silent = at(minutes / 60, sun=(0, minutes / 60), taken=0, given=0, is_online=False)
        found = shown(news(home, silent, MORNING + 60 * minutes))
        assert found["home/energy_lifetime"] == 0
    found = shown(news(home, at(1, sun=(2.0, 1.0), taken=0, given=0), MORNING + 3600))
    assert found["home/energy_lifetime"] == pytest.approx(3000)
    assert found["solar/energy_lifetime"] == 14_003 * KWH


def test_energy_goes_on_after_a_restart() -> None:
    home = SharedHome("villa")
    news(home, at(0, sun=(0, 0), taken=0, given=0), MORNING)
    news(home, at(1, sun=(1, 1), taken=0, given=1), MORNING + 3600)
    again = SharedHome("villa", HomeState.model_validate(home.state.model_dump(mode="json")))
    found = shown(news(again, at(3, sun=(2, 3), taken=0.5, given=2), MORNING + 3 * 3600))
    assert found["home/energy_lifetime"] == pytest.approx(1000 + 3000 + 500 - 1000)
    assert found["home/energy_since"] == datetime.fromtimestamp(MORNING, UTC)


def test_a_month_without_the_bridge_is_counted() -> None:
    home = SharedHome("villa")
    news(home, at(0, sun=(0, 0), taken=0, given=0), MORNING)
    again = SharedHome("villa", HomeState.model_validate(home.state.model_dump(mode="json")))
    found = shown(news(again, at(0, sun=(500, 400), taken=200, given=300), MORNING + 30 * DAY_S))
    assert found["home/energy_lifetime"] == pytest.approx(800 * KWH)


def test_marks_of_more_than_a_week_with_a_silent_gateway_are_of_no_use() -> None:
    home = SharedHome("villa")
    news(home, at(0, sun=(0, 0), taken=0, given=0), MORNING)
    late = MORNING + 7 * DAY_S + 600
    for seconds in range(300, int(late - MORNING), 300):
        news(home, at(0, sun=(0, 50), taken=0, given=0, is_online=False), MORNING + seconds)
    found = shown(news(home, at(0, sun=(100, 100), taken=50, given=0), late))
    assert found["home/energy_lifetime"] == 0
    assert found["solar/energy_lifetime"] == 14_200 * KWH
    found = shown(news(home, at(0, sun=(101, 100), taken=50, given=0), late + 3600))
    assert found["home/energy_lifetime"] == pytest.approx(1000)


def test_a_gateway_that_joins_adds_nothing_of_its_past() -> None:
    home = SharedHome("villa")
    news(home, [new()], MORNING)
    found = shown(news(home, [old(), new()], MORNING + 60))
    assert found["solar/energy_lifetime"] == 2_000 * KWH
    assert found["home/energy_lifetime"] == 0
    grown = replace(old(), values=roof(500.0, 12_001 * KWH))
    found = shown(news(home, [grown, new()], MORNING + 120))
    assert found["solar/energy_lifetime"] == 2_001 * KWH
    assert found["home/energy_lifetime"] == pytest.approx(1000)


def test_a_gateway_that_leaves_takes_nothing_with_it() -> None:
    home = SharedHome("villa")
    news(home, [old(), new()], MORNING)
    found = shown(news(home, [new()], MORNING + 60))
    assert (found["solar/power"], found["solar/energy_lifetime"]) == (1000, 14_000 * KWH)
    assert found["home/power"] == 700


def test_a_counter_that_restarts_is_no_fall() -> None:
    home = SharedHome("villa")
    news(home, [old(), new()], MORNING)
    restarted = replace(old(), values=roof(500.0, 250.0))
    found = shown(news(home, [restarted, new()], MORNING + 60))
    assert found["solar/energy_lifetime"] == 14_000 * KWH + 250
    assert found["home/energy_lifetime"] == pytest.approx(250)


def test_a_negative_balance_is_carried_over() -> None:
    home = SharedHome("villa")
    news(home, at(0, sun=(0, 0), taken=0, given=0), MORNING)
    found = shown(news(home, at(0.1, sun=(0, 0), taken=0, given=0.4), MORNING + 360))
    assert found["home/energy_lifetime"] == 0
    found = shown(news(home, at(0.2, sun=(1, 0), taken=0, given=0.4), MORNING + 720))
    assert found["home/energy_lifetime"] == pytest.approx(600)


def test_a_large_negative_balance_is_dropped_and_told_once_a_day() -> None:
    home, told = SharedHome("villa"), []
    news(home, at(0, sun=(0, 0), taken=0, given=0), MORNING)
    for minute in range(1, 61):
        update = news(home, at(0, sun=(0, 0), taken=0, given=0.05 * minute), MORNING + 60 * minute)
        told += [update.warning] if update.warning else []
        assert shown(update)["home/energy_lifetime"] == 0
    text = "its energy would be negative by 550 Wh: not counted; a clamp may be reversed"
    assert told == [f"home villa: {text}, or another producer may be connected behind the grid meter"]
    # Every 11 minutes 550 Wh are dropped; 5 minutes of 50 Wh are carried over.
    found = shown(news(home, at(1, sun=(5, 0), taken=0, given=3), MORNING + 3660))
    assert found["home/energy_lifetime"] == pytest.approx(5000 - 250)


# Today


NIGHT = datetime(2026, 6, 1, 23, 0, tzinfo=UTC).timestamp()


def used(hours: float, *, taken: float) -> list[MemberFlows]:
    return at(hours, sun=(0, 0), taken=taken, given=0)


def today(home: SharedHome, hours: float, *, taken: float) -> Scalar:
    """What the home has used on this day, some hours after 23:00, if it took these kWh until then."""
    value: Scalar = shown(news(home, used(hours, taken=taken), NIGHT + 3600 * hours))["home/energy_today"]
    return value


def test_today_is_unknown_on_the_first_day_and_counted_from_midnight() -> None:
    home = SharedHome("villa", zone=UTC)
    assert today(home, 0, taken=0) is None
    assert today(home, 0.5, taken=1) is None
    assert today(home, 1.5, taken=3) == pytest.approx(1000)  # half of the 2 kWh of an hour that midnight divides
    assert today(home, 2, taken=3.5) == pytest.approx(1500)


def test_at_midnight_today_is_unknown_until_it_was_counted() -> None:
    home = SharedHome("villa", zone=UTC)
    today(home, 0, taken=0)
    today(home, 0.9, taken=1)
    away = used(1.1, taken=1.2)
    silent = [replace(away[0], is_online=False), away[1]]
    assert shown(news(home, silent, NIGHT + 1.1 * 3600))["home/energy_today"] is None
    assert today(home, 1.2, taken=1.3) == pytest.approx(200)


def test_the_sun_of_today_is_that_of_all_gateways() -> None:
    unknown = replace(old(), values=roof() | {"solar/energy_today": None})
    assert shown(news(SharedHome("villa"), [old(), new()], MORNING))["solar/energy_today"] == 2400
    assert shown(news(SharedHome("villa"), [unknown, new()], MORNING))["solar/energy_today"] is None


# Solar energy that is summed up every quarter of an hour


def slow(lifetime: float, power: float = 400.0) -> MemberFlows:
    return member("11", roof(power, lifetime * KWH, **{"solar/source": "energy/production-pcu"}))


def with_grid(taken: float, given: float = 0.0) -> MemberFlows:
    return member("12", roof(0.0, 0.0) | grid(100.0, taken * KWH, given * KWH))


def test_a_sum_of_a_quarter_of_an_hour_is_no_power_of_now() -> None:
    found = shown(news(SharedHome("villa"), [slow(100), new()], MORNING))
    assert (found["solar/power"], found["home/power"]) == (1400, None)


def test_energy_is_counted_when_such_a_sum_has_changed() -> None:
    home = SharedHome("villa")
    news(home, [slow(100.0), with_grid(0.0)], MORNING)
    found = shown(news(home, [slow(100.2), with_grid(1.0)], MORNING + 300))  # the first change that was seen
    assert found["home/energy_lifetime"] == 0
    found = shown(news(home, [slow(100.2), with_grid(1.1)], MORNING + 600))
    assert found["home/energy_lifetime"] == 0
    found = shown(news(home, [slow(100.5), with_grid(1.2)], MORNING + 1200))
    assert found["home/energy_lifetime"] == pytest.approx(300 + 200)


def test_live_data_have_a_power_of_now_and_such_a_sum() -> None:
    live = {"solar/source": "live/pv"}
    members = [member("11", roof(400.0, 100 * KWH, **live)), with_grid(0.0)]
    home = SharedHome("villa")
    assert shown(news(home, members, MORNING))["home/power"] == 500
    assert "home/energy_lifetime" not in shown(news(home, members, MORNING + 60))
    news(home, [member("11", roof(400.0, 100.2 * KWH, **live)), with_grid(0.0)], MORNING + 120)
    found = shown(news(home, [member("11", roof(400.0, 100.2 * KWH, **live)), with_grid(0.0, 0.1)], MORNING + 420))
    assert found["home/energy_lifetime"] == 0
    found = shown(news(home, [member("11", roof(400.0, 100.6 * KWH, **live)), with_grid(0.0, 0.3)], MORNING + 1020))
    assert found["home/energy_lifetime"] == pytest.approx(400 - 300)


def test_at_night_such_a_sum_is_up_to_date() -> None:
    home = SharedHome("villa")
    news(home, [slow(100.0), with_grid(0.0)], MORNING)
    news(home, [slow(100.2), with_grid(1.0)], MORNING + 300)
    found = shown(news(home, [slow(100.2), with_grid(1.5)], MORNING + 300 + 1799))
    assert found["home/energy_lifetime"] == 0
    found = shown(news(home, [slow(100.2), with_grid(1.6)], MORNING + 300 + 1800))
    assert found["home/energy_lifetime"] == pytest.approx(600)
    found = shown(news(home, [slow(100.2), with_grid(1.6, given=0.3)], MORNING + 2400))  # the sun is up again
    assert found["home/energy_lifetime"] == pytest.approx(600)
    found = shown(news(home, [slow(101.0), with_grid(1.6, given=0.5)], MORNING + 2700))
    assert found["home/energy_lifetime"] == pytest.approx(600 + 800 - 500)


# What subscribers have of an earlier run


def test_no_counter_falls_where_the_state_was_lost() -> None:
    home = SharedHome("villa")
    home.seed({"solar/energy_lifetime": 13_999 * KWH, "home/energy_lifetime": 5_000.0, "solar/power": 3.0})
    found = shown(news(home, [old(), new()], MORNING))
    assert found["solar/energy_lifetime"] == 14_000 * KWH  # the same sum, a little later
    assert found["home/energy_lifetime"] == 5_000


def test_today_goes_on_from_what_subscribers_have() -> None:
    home = SharedHome("villa", zone=UTC)
    home.seed({"home/energy_lifetime": 5_000.0, "home/energy_today": 700.0, "home/timestamp": MORNING - 60})
    assert shown(news(home, [old(), new()], MORNING))["home/energy_today"] == 700


@pytest.mark.parametrize("retained", [2_000 * KWH, 20_000 * KWH])
def test_a_sum_of_other_gateways_goes_on(retained: float) -> None:
    home = SharedHome("villa")
    home.seed({"solar/energy_lifetime": retained})
    assert shown(news(home, [old(), new()], MORNING))["solar/energy_lifetime"] == retained
    grown = replace(old(), values=roof(500.0, 12_001 * KWH))
    assert shown(news(home, [grown, new()], MORNING + 60))["solar/energy_lifetime"] == retained + 1 * KWH


@pytest.mark.parametrize("retained", [-5.0, 1e300])
def test_what_can_not_be_a_counter_is_not_believed(retained: float) -> None:
    home = SharedHome("villa")
    home.seed({"home/energy_lifetime": retained})
    assert shown(news(home, [old(), new()], MORNING))["home/energy_lifetime"] == 0


# Settings


def listing(*gateways: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"host": f"gw-{number}", "serial": str(number), **given} for number, given in enumerate(gateways)]


def test_a_home_of_any_name_has_a_level() -> None:
    found = load(gateways=listing({"home": "Müller & Söhne"}, {"home": "muller-sohne"}, {}))
    assert [gateway.home_level for gateway in found.all_gateways] == ["muller-sohne", "muller-sohne", ""]


@pytest.mark.parametrize(
    ("gateways", "problem"),
    [
        ([{"home": "屋根"}], "home needs at least one of the letters"),
        ([{"grid_meter": True}], "grid_meter needs home"),
        ([{"home": "a", "grid_meter": True}] * 2, "the home a has more than one gateway with grid_meter"),
    ],
)
def test_settings_that_can_not_be(gateways: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(BadSetting, match=problem):
        load(gateways=listing(*gateways))


def test_a_home_in_two_shards_is_told_with_the_names() -> None:
    serials = ["7", next(str(number) for number in range(99) if place(str(number), 2) != place("7", 2))]
    gateways = [
        {"host": f"gw-{serial}", "serial": serial, "home": "villa", "name": name}
        for serial, name in zip(serials, ("House", "Barn"), strict=True)
    ]
    mine = place("7", 2)
    with pytest.raises(BadSetting) as found:
        load(gateways=gateways, shard=f"{mine}/2")
    assert str(found.value) == (
        "BRIDGE_SHARD: one bridge must poll all gateways of the home villa, but this shard has House (7) and not "
        f"Barn ({serials[1]}): give this home a bridge of its own"
    )
    whole = Settings(gateways=[gateways[0], {**gateways[1], "home": "other"}], shard=f"{mine}/2")
    assert [gateway.serial for gateway in whole.all_gateways] == ["7"]


# Home Assistant


def announced(form: str) -> dict[str, dict[str, Any]]:
    tree = Tree(Names("enphase"), "home/villa-1", ["home"])
    readings = news(SharedHome("villa-1"), [old(), new()], MORNING).readings
    list(tree.update("home", readings, datetime.fromtimestamp(MORNING, UTC)))
    options = discovery.DiscoveryOptions(Names("enphase"), form=form)
    home = AnnouncedHome(Facts(""), "", "Müller's villa", home="villa-1")
    rows = [replace(row, device=f"site/{row.device}") for row in tree.rows]
    return {message.topic: json.loads(message.payload) for message in discovery.announce(options, home, rows)}


def test_a_home_is_one_device() -> None:
    topic, *others = announced("device")
    assert (topic, others) == ("homeassistant/device/iqgateway_home_villa-1/config", [])
    components = announced("device")[topic]["components"]
    assert all(key.replace("_", "").isalnum() and key.islower() for key in components)
    assert components["grid_energy_imported"]["state_topic"] == "enphase/home/villa-1/grid/energy_imported"
    assert "default_entity_id" not in components["solar_power"]


def test_a_home_by_component_has_the_same_entities() -> None:
    by_component = announced("component")
    components = next(iter(announced("device").values()))["components"]
    assert len(by_component) == len(components)
    power = by_component["homeassistant/sensor/iqgateway_home_villa-1_home_power/config"]
    assert power["unique_id"] == components["home_power"]["unique_id"] == "iqgateway_home_villa-1_home_power"
    assert [place["topic"] for place in power["availability"]] == [
        "enphase/bridge/state",
        "enphase/home/villa-1/availability",
    ]
