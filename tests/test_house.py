"""The model of a house is right: by it the bridge's numbers are judged (tests/test_numbers.py)."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from house.clock import LeapingLoop
from house.faults import MAY_28_2026, combinations
from house.gateway import ENERGY, METERS, READINGS, Gateway
from house.judge import Judge, Sum
from house.kinds import BY_NAME, KINDS, counters
from house.model import DAY_S, HOUR_S, House, Kind, Truth, clear_sky
from house.statistics import Statistics
from house.world import PREFIX, World, world

NOON = MAY_28_2026 + DAY_S / 2
NET1, NET3, STORAGE1 = BY_NAME["net1"], BY_NAME["net3"], BY_NAME["storage1"]
SOLAR_WH = sum(channel.delivered for channel in House(NET3, MAY_28_2026).production)
"""What the production meter of each house has counted before."""


def _after(kind: Kind, hours: float, *, step_s: float = DAY_S, seed: int = 1) -> House:
    house = House(kind, MAY_28_2026, seed)
    end = house.time + hours * HOUR_S
    while house.time < end:
        house.advance(min(end, house.time + step_s))
    return house


def _delivered(gateway: Gateway, role: str) -> tuple[float, float]:
    answer = json.loads(gateway.answer("GET", READINGS)[1])
    place = list(gateway.clamps).index(role)
    return answer[place]["actEnergyDlvd"], answer[place]["actEnergyRcvd"]


class Clock:
    """The time of a gateway that no world runs."""

    def __init__(self, when: float = MAY_28_2026) -> None:
        self.when = when

    def __call__(self) -> float:
        return self.when


# The house


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_flows_in_flows_out(kind: Kind) -> None:
    truth = _after(kind, 24).truth
    grid, battery = truth.imported - truth.exported, truth.discharged - truth.charged
    foreign = sum(clear_sky(MAY_28_2026 + step) for step in range(0, DAY_S, 600)) / 6 * kind.foreign_w
    assert truth.solar > 15_000
    missing = truth.home - (truth.solar + grid + battery + truth.generator)
    if kind.foreign_w:
        assert 0.2 * foreign < missing < foreign
    else:
        assert missing == pytest.approx(0, abs=1e-6 * truth.home)


@pytest.mark.parametrize("kind", [NET1, NET3, STORAGE1], ids=lambda kind: kind.name)
def test_the_sums_do_not_depend_on_when_one_looks(kind: Kind) -> None:
    whole, cut = _after(kind, 30).truth, _after(kind, 30, step_s=7.3).truth
    for name in ("solar", "imported", "exported", "home", "charged", "discharged", "pcu"):
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), rel=2e-3, abs=0.5), name


def test_another_seed_is_another_day() -> None:
    one, same, other = (_after(NET1, 24, seed=seed).truth for seed in (1, 1, 2))
    assert one == same
    assert one.solar != other.solar
    assert one.home != other.home


def test_the_sun_shines_by_day_and_inverters_draw_power_at_night() -> None:
    regular = Kind("regular", is_regular=True)
    night, day = _after(regular, 2), _after(regular, 24)
    assert sum(night.powers.solar) == pytest.approx(-16 * 0.35)
    assert night.truth.solar == 0
    clear = sum(clear_sky(MAY_28_2026 + minute * 60) for minute in range(1440)) / 60
    assert day.truth.solar == pytest.approx(6_000 * clear, rel=0.05)
    assert day.truth.home == pytest.approx(24 * 180 + 16 * 0.35 * 8, rel=0.02)


def test_clamps_count_each_phase_and_the_truth_nets_them() -> None:
    house = _after(NET3, 24)
    imported = sum(channel.delivered for channel in house.net) - 3 * 3.1e6 - 3_000
    exported = sum(channel.received for channel in house.net) - 3 * 2.2e6 - 1_500
    truth = house.truth
    assert imported == pytest.approx(truth.phases_imported)
    assert imported > truth.imported * 1.2
    assert imported - exported == pytest.approx(truth.imported - truth.exported, abs=1)


def test_one_phase_needs_no_netting() -> None:
    house = _after(NET1, 24)
    assert house.net[0].delivered - 3.1e6 == pytest.approx(house.truth.imported)
    assert house.net[0].received - 2.2e6 == pytest.approx(house.truth.exported)
    assert house.truth.imported == house.truth.phases_imported


def test_a_battery_loses_a_tenth_and_never_holds_more_than_it_can() -> None:
    house = House(STORAGE1, MAY_28_2026)
    stored = house.stored_wh
    for _ in range(48 * 6):
        house.advance(house.time + 600)
        assert 0 <= house.stored_wh <= STORAGE1.battery_wh
    truth = house.truth
    assert truth.charged > 10_000
    assert truth.discharged / 0.95 == pytest.approx(truth.charged * 0.95 - (house.stored_wh - stored), rel=0.01)
    assert house.storage[0].delivered - 8.1e5 == pytest.approx(truth.discharged)
    assert house.storage[0].received - 9.2e5 == pytest.approx(truth.charged)


def test_the_inverters_count_at_quarter_hours() -> None:
    house, seen = House(NET1, NOON), []
    for _ in range(90):
        house.advance(house.time + 60)
        seen.append(house.pcu_wh)
    changes = [minute for minute, (one, two) in enumerate(pairwise(seen)) if one != two]
    assert changes == [13, 28, 43, 58, 73, 88]
    assert house.truth.pcu == pytest.approx(house.truth.solar * 0.995, rel=0.001)


def test_off_the_grid_a_generator_gives_what_is_missing() -> None:
    kind = BY_NAME["generator2"]
    house = House(kind, MAY_28_2026 + 3 * HOUR_S)
    house.grid_is_open = house.generator_is_on = True
    before = house.truth.copy()
    house.advance(house.time + HOUR_S)
    change = house.truth.since(before)
    assert change.imported == change.exported == 0
    assert change.generator == pytest.approx(change.home - change.solar)
    assert change.generator > 100
    assert sum(channel.power for channel in house.net) == pytest.approx(sum(house.powers.generator))


def test_days_begin_at_local_midnight() -> None:
    house = _after(NET1, 30)
    assert house.day_began == MAY_28_2026 + DAY_S
    assert house.midnight == MAY_28_2026 + 2 * DAY_S
    assert house.truth.since(house.today).home < house.truth.home / 3


# The gateway


def test_readings_add_up_and_unused_phases_are_noise() -> None:
    clock = Clock()
    gateway = Gateway(House(NET3, MAY_28_2026), clock)
    clock.when += 11 * HOUR_S
    production, net = json.loads(gateway.answer("GET", READINGS)[1])
    for meter in (production, net):
        assert len(meter["channels"]) == 3
        for name in ("activePower", "actEnergyDlvd", "actEnergyRcvd"):
            assert meter[name] == pytest.approx(sum(part[name] for part in meter["channels"]), abs=0.01)
    single = Gateway(House(NET1, MAY_28_2026), clock)
    assert [part["voltage"] for part in json.loads(single.answer("GET", READINGS)[1])[0]["channels"][1:]] == [
        4.3
    ] * 2


def test_a_reversed_clamp_counts_the_other_way_and_an_absent_one_nothing() -> None:
    clock = Clock(NOON)
    house = House(NET1, NOON)
    gateway = Gateway(house, clock)
    before = _delivered(gateway, "production")
    gateway.clamp("production", "reversed")
    clock.when += HOUR_S
    reversed_ = _delivered(gateway, "production")
    made = house.truth.solar
    assert reversed_[0] == before[0]
    assert reversed_[1] == pytest.approx(before[1] + made, abs=0.01)
    gateway.clamp("production", "absent")
    clock.when += HOUR_S
    assert _delivered(gateway, "production") == reversed_
    gateway.clamp("production", "right")
    made = house.truth.solar
    clock.when += HOUR_S
    assert _delivered(gateway, "production")[0] == pytest.approx(before[0] + house.truth.solar - made, abs=0.01)


def test_frozen_counters_catch_up() -> None:
    clock = Clock(NOON)
    house = House(NET1, NOON)
    gateway = Gateway(house, clock)
    before = _delivered(gateway, "net-consumption")
    gateway.freeze("net-consumption", "received")
    clock.when += HOUR_S
    frozen = _delivered(gateway, "net-consumption")
    gateway.thaw("net-consumption")
    after = _delivered(gateway, "net-consumption")
    assert frozen[1] == before[1]
    assert frozen[0] == after[0] == pytest.approx(before[0] + house.truth.imported, abs=0.01)
    assert after[1] == pytest.approx(before[1] + house.truth.exported, abs=0.01)


def test_disabled_meters_still_report() -> None:
    gateway = Gateway(House(NET1, NOON), Clock(NOON))
    gateway.tweaks.disabled.add("production")
    states = {meter["measurementType"]: meter["state"] for meter in json.loads(gateway.answer("GET", METERS)[1])}
    assert states == {"production": "disabled", "net-consumption": "enabled"}
    assert _delivered(gateway, "production")[0] > 4e6
    assert not gateway.reads_well("production")
    assert gateway.reads_well("net-consumption")


def test_negative_values_of_32_bits() -> None:
    gateway = Gateway(House(NET1, MAY_28_2026), Clock())
    gateway.tweaks.is_unsigned = True
    assert json.loads(gateway.answer("GET", READINGS)[1])[0]["activePower"] == 2**32 - 6


def test_live_data_go_off_after_a_quarter_of_an_hour() -> None:
    clock = Clock(NOON)
    gateway = Gateway(House(BY_NAME["live1"], NOON), clock)

    def stream() -> str:
        found: str = json.loads(gateway.answer("GET", "/ivp/livedata/status")[1])["connection"]["sc_stream"]
        return found

    assert stream() == "disabled"
    gateway.answer("POST", "/ivp/livedata/stream")
    assert stream() == "enabled"
    clock.when += 901
    assert stream() == "disabled"


def test_every_source_of_a_number_answers() -> None:
    for kind in KINDS:
        gateway = Gateway(House(kind, NOON), Clock(NOON))
        assert gateway.answer("GET", ENERGY)[0] == 200
        assert gateway.answer("GET", READINGS)[0] == (404 if kind.is_standard else 200)
        assert gateway.answer("GET", "/ivp/ensemble/power")[0] == (200 if kind.battery_wh else 404)


# The statistics


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([1_000, 1_010, 1_030], 30),
        ([1_000, 1_010, 1_005, 1_020], 20),
        ([1_000, 5, 7], 7),
        ([1_000, 901, 1_000], 0),
        ([1_000, 899, 1_000], 1_000),
    ],
)
def test_sums_as_home_assistant_makes_them(values: list[float], total: float) -> None:
    statistics = Statistics()
    for place, value in enumerate(values):
        statistics.take(value, place * 600)
    assert statistics.total == total
    assert sum(statistics.bars.values()) == total


# The judge


def _hours(found: Sum, hours: int, flowed: float, published: float) -> list[float]:
    """What the judge says of so many hours with the same energies (Wh) in each."""
    said = []
    for _ in range(hours):
        found.low += flowed
        found.high += flowed
        found.total += published
        said.append(found.phantom(60, 0.0))
    return said


def test_a_false_hour_is_noticed_also_after_weeks() -> None:
    found = Sum(counters(NET1)[0])
    assert max(_hours(found, 400, 1_000, 1_000)) < 0
    assert _hours(found, 1, 1_000, 3_500)[0] > 1_000
    assert found.ahead(60) < 0


def test_a_gap_may_be_caught_up_in_one_hour_but_only_once() -> None:
    found = Sum(counters(NET1)[0])
    assert max(_hours(found, 100, 1_000, 1_000)) < 0
    assert _hours(found, 200, 1_000, 0) == [0.0] * 200
    assert _hours(found, 1, 1_000, 201_000)[0] < 0
    assert _hours(found, 1, 1_000, 20_000)[0] > 10_000


def _play(work: Callable[[World], Coroutine[Any, Any, None]], folder: Path, kind: Kind = NET1) -> None:
    async def run() -> None:
        async with world(kind, folder, MAY_28_2026, settings={}) as made:
            made._bridge = asyncio.create_task(asyncio.sleep(10 * DAY_S))
            await work(made)

    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(run())


Edit = Callable[[float, dict[str, dict[str, Any]]], None]


def _judged(folder: Path, edit: Edit, *, hours: float = 24.0, kind: Kind = NET1) -> list[str]:
    """Publish the truth every half minute, after `edit` has changed it, and return the judge's complaints."""
    complaints: list[str] = []

    async def work(made: World) -> None:
        judge = Judge(made, 30)
        while made.now() < MAY_28_2026 + hours * HOUR_S:
            made.gateway.answer("GET", READINGS)
            documents = _truth(made.house)
            edit((made.now() - MAY_28_2026) / HOUR_S, documents)
            _publish(made, documents)
            await made.sleep(30)
        complaints.extend(judge.finish())

    _play(work, folder, kind)
    return complaints


def _truth(house: House) -> dict[str, dict[str, Any]]:
    truth, today = house.truth, house.truth.since(house.today)
    solar, grid = max(0.0, sum(house.powers.solar)), sum(house.powers.grid)
    return {
        "solar": {"power": solar, "energy_lifetime": SOLAR_WH + truth.solar, "energy_today": today.solar},
        "grid": {"power": grid, "energy_imported": truth.imported, "energy_exported": truth.exported},
        "home": {"power": solar + grid, "energy_lifetime": truth.home, "energy_today": today.home},
    }


def _publish(made: World, documents: Mapping[str, Mapping[str, Any]]) -> None:
    made.broker.retained[f"{PREFIX}availability/site"] = b"online"
    for flow, document in documents.items():
        topic, payload = f"{PREFIX}site/{flow}", json.dumps(document).encode()
        made.broker.retained[topic] = payload
        for listener in made.listeners:
            listener(topic, payload)


def _nothing(_hour: float, _documents: dict[str, dict[str, Any]]) -> None:
    """Publish the truth."""


def _of(flow: str, name: str, change: Callable[[float, Any], Any]) -> Edit:
    def edit(hour: float, documents: dict[str, dict[str, Any]]) -> None:
        documents[flow][name] = change(hour, documents[flow][name])

    return edit


@pytest.mark.parametrize("kind", [NET1, NET3], ids=lambda kind: kind.name)
def test_the_judge_has_nothing_to_say_about_the_truth(tmp_path: Path, kind: Kind) -> None:
    assert _judged(tmp_path, _nothing, kind=kind, hours=30) == []


WRONG = {
    "powers do not add up by 1.0 W": _of("grid", "power", lambda hour, power: power + (6 < hour < 6.1)),
    "home/energy_lifetime counted": _of("home", "energy_lifetime", lambda _, value: value * 0.97),
    "grid/energy_imported counted": _of("grid", "energy_imported", lambda _, value: value * 1.04),
    "import minus export is wrong": _of("grid", "energy_exported", lambda _, value: value * 0.98),
    "solar/energy_lifetime falls by": _of(
        "solar", "energy_lifetime", lambda hour, value: value - 500 * (13 < hour < 13.1)
    ),
    "solar/energy_lifetime begins at": _of("solar", "energy_lifetime", lambda _, value: value + 60_000),
    "solar/energy_lifetime is 4": _of("solar", "energy_lifetime", lambda hour, value: value + 50_000 * (hour > 3)),
    "home/energy_lifetime is": _of("home", "energy_lifetime", lambda hour, value: value if hour < 5 else 1_800),
    "solar energy_today is": _of("solar", "energy_today", lambda _, value: value + 900),
    "home energy_today is": _of("home", "energy_today", lambda hour, value: value if hour < 6 else 0.0),
    "home energy_today is None": _of("home", "energy_today", lambda hour, value: None if hour > 24 else value),
    "home power is": _of("home", "power", lambda hour, power: 3_333.0 if 14 < hour < 14.2 else power),
}


@pytest.mark.parametrize("complaint", WRONG)
def test_the_judge_notices(tmp_path: Path, complaint: str) -> None:
    found = _judged(tmp_path, WRONG[complaint], hours=26 if "None" in complaint else 23.8)
    assert any(complaint in text for text in found), found


@pytest.mark.parametrize(("problem", "expected"), [("none", True), ("a clamp is not on the wire", False)])
def test_the_judge_hears_of_problems(tmp_path: Path, problem: str, expected: bool) -> None:
    async def work(made: World) -> None:
        judge = Judge(made, 30)
        judge.problem_expected = expected
        await made.sleep(3_600)
        for listener in made.listeners:
            listener(f"{PREFIX}gateway", json.dumps({"problem": problem}).encode())
        assert sum("problem" in text for text in judge.finish()) == 1

    _play(work, tmp_path)


def test_what_is_excused_is_not_compared(tmp_path: Path) -> None:
    async def work(made: World) -> None:
        judge, wrong = Judge(made, 30), 0.0
        for minute in range(60 * 24):
            made.gateway.answer("GET", READINGS)
            if minute == 600:
                judge.excuse("home")
            if 600 <= minute < 700:
                wrong += 100
            if minute == 700:
                judge.resume()
            documents = _truth(made.house)
            documents["home"]["energy_lifetime"] += wrong
            documents["home"].pop("energy_today")
            _publish(made, documents)
            await made.sleep(60)
        assert [text for text in judge.finish() if "energy_today" not in text] == []

    _play(work, tmp_path)


# Time


def test_idle_time_is_skipped_and_threads_are_waited_for() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(30 * DAY_S)
        assert loop.time() - began == pytest.approx(30 * DAY_S)
        began = loop.time()
        late = loop.call_later(5, lambda: None)
        await asyncio.to_thread(time.sleep, 0.05)
        assert loop.time() - began < 5
        done = asyncio.Event()

        def ring() -> None:
            time.sleep(0.05)
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=ring).start()
        await done.wait()
        assert loop.time() - began < 5
        late.cancel()

    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(work())


def test_every_kind_and_every_fault_is_played() -> None:
    pairs = combinations(KINDS)
    assert {kind for kind, _ in pairs} == set(KINDS)
    assert len({(kind.name, fault.name) for kind, fault in pairs}) == len(pairs)


def test_truths_can_be_compared() -> None:
    assert Truth(solar=5, home=3).since(Truth(solar=2)) == Truth(solar=3, home=3)
