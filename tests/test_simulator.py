"""Tests of the simulator itself, because everything else is tested with it."""

import asyncio
import json
import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest
from running import Clock

from bridge.model import Phase
from bridge.simulator import (
    BRIEF_PATHS,
    HARMFUL_PATHS,
    HOME_NAMES,
    HOMES,
    PASSWORD,
    USER,
    SimulatedCloud,
    Simulator,
    fault_by_name,
)
from bridge.simulator.cloud import decode_token, encode_token
from bridge.simulator.faults import FAULTS_BY_NAME, always
from bridge.simulator.house import House
from bridge.simulator.http import HttpReply, ReplyChannel
from bridge.simulator.presets import NET_CONSUMPTION, PRODUCTION, STORAGE, TOTAL_CONSUMPTION
from bridge.simulator.serve import self_signed, serve, serve_in_thread
from bridge.simulator.truth import EnergyBalance, Flow, Truth

AFTERNOON = 1_750_000_000.0
"""15:06:40 UTC, when the sun shines."""
NIGHT = AFTERNOON + 9 * 3600
CAPTURED = Path(__file__).parents[2] / "shared" / "gateways"
READINGS_PATH = "/ivp/meters/readings"
LIVEDATA_PATH = "/ivp/livedata/status"
STREAM_PATH = "/ivp/livedata/stream"
INVERTERS_PATH = "/api/v1/production/inverters"
DEVICE_LIST_PATH = "/ivp/ensemble/device_list"
DEVICE_DATA_PATH = "/ivp/pdm/device_data"


@pytest.fixture
def clock() -> Clock:
    return Clock(AFTERNOON)


@pytest.fixture
def simulator(clock: Clock) -> Simulator:
    return Simulator("three-phase", clock=clock)


@asynccontextmanager
async def asking(simulator: Simulator, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a socket, with a valid token unless `headers` are given."""
    options.setdefault("headers", {"Authorization": f"Bearer {simulator.token()}"})
    transport = httpx.ASGITransport(simulator)
    async with httpx.AsyncClient(transport=transport, base_url="https://envoy.local", **options) as client:
        yield client


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(simulator) as client:
        yield client


async def fetch(simulator: Simulator, path: str) -> Any:
    async with asking(simulator) as client:
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


def milliwatts(flow: Flow) -> int:
    return round(flow.power * 1000)


def flows(truth: Truth) -> Iterator[EnergyBalance]:
    yield truth.site
    yield from truth.phases.values()


# ---------------------------------------------------------------- the model of the house


def test_the_command_line_lists_every_home() -> None:
    assert list(HOME_NAMES) == sorted(HOMES)


@pytest.mark.parametrize("name", HOMES)
@pytest.mark.parametrize("hours", range(0, 24, 3))
def test_every_phase_and_the_site_balance_exactly(name: str, hours: int) -> None:
    house = House(HOMES[name], start=AFTERNOON)
    house.advance(AFTERNOON + hours * 3600 + 0.5)
    truth = house.truth()
    for flow in flows(truth):
        assert milliwatts(flow.home) == milliwatts(flow.solar) + milliwatts(flow.grid) + milliwatts(flow.battery)
    assert truth.site.solar.power >= 0


@pytest.mark.parametrize("name", HOMES)
def test_site_is_the_sum_of_its_phases(name: str) -> None:
    truth = House(HOMES[name], start=AFTERNOON).truth()
    for flow in ("solar", "grid", "battery", "home"):
        parts = sum(milliwatts(getattr(phase, flow)) for phase in truth.phases.values())
        assert parts == milliwatts(getattr(truth.site, flow))
    assert list(truth.phases) == list(Phase)[: HOMES[name].legs]


@pytest.mark.parametrize("role", [PRODUCTION, NET_CONSUMPTION, STORAGE, TOTAL_CONSUMPTION])
def test_energy_is_the_integral_of_power(role: str) -> None:
    house = House(HOMES["three-phase"], start=AFTERNOON)
    before = house.truth()
    joules = dict.fromkeys(Phase, 0.0)
    for second in range(600):
        house.advance(AFTERNOON + second)
        for phase, flow in house.truth().meters[role].phases.items():
            joules[phase] += flow.power
    house.advance(AFTERNOON + 600)
    for phase, flow in house.truth().meters[role].phases.items():
        old = before.meters[role].phases[phase]
        gained = (flow.delivered - old.delivered) - (flow.received - old.received)
        assert gained == pytest.approx(joules[phase] / 3600, abs=1e-6)


def test_counters_never_decrease() -> None:
    house = House(HOMES["three-phase"], start=AFTERNOON)
    last = house.truth()
    for step in range(1, 100):
        house.advance(AFTERNOON + step * 1811)
        truth = house.truth()
        for role, meter in truth.meters.items():
            assert meter.total.delivered >= last.meters[role].total.delivered
            assert meter.total.received >= last.meters[role].total.received
        assert 9.9 <= truth.soc <= 100
        last = truth


def test_a_days_energies_balance() -> None:
    house = House(HOMES["three-phase"], start=AFTERNOON)
    before = house.truth().site
    house.advance(AFTERNOON + 86400)
    after = house.truth().site

    def net(name: str) -> float:
        old: Flow = getattr(before, name)
        new: Flow = getattr(after, name)
        return (new.delivered - new.received) - (old.delivered - old.received)

    assert net("home") == pytest.approx(net("solar") + net("grid") + net("battery"), abs=1e-3)
    assert net("solar") > 20_000
    assert after.grid.delivered > before.grid.delivered
    assert after.grid.received > before.grid.received


def test_battery_stores_what_was_charged_less_its_losses() -> None:
    house = House(HOMES["split-phase"], start=AFTERNOON)
    before = house.truth()
    house.advance(AFTERNOON + 3 * 86400)
    after = house.truth()
    charged = after.site.battery.received - before.site.battery.received
    discharged = after.site.battery.delivered - before.site.battery.delivered
    stored = sum(b.stored for b in after.batteries) - sum(b.stored for b in before.batteries)
    assert stored == pytest.approx(0.96 * charged - discharged, abs=0.1)
    assert charged > 5000


def test_batteries_charge_by_day_and_discharge_by_night() -> None:
    house = House(HOMES["split-phase"], start=AFTERNOON, start_hour=10)
    assert house.truth().site.battery.power < -100
    house.advance(AFTERNOON + 11 * 3600)
    truth = house.truth()
    assert truth.site.battery.power > 100
    assert all(battery.power > 0 for battery in truth.batteries)


def test_at_night_the_inverters_draw_standby_power() -> None:
    truth = House(HOMES["three-phase"], start=NIGHT).truth()
    meter = truth.meters[PRODUCTION]
    assert -9 < meter.total.power < -0.6
    assert all(flow.power < -0.6 for flow in meter.phases.values())
    assert truth.site.solar.power == 0
    assert truth.today == 0
    assert truth.week > 100_000


@pytest.mark.parametrize("start", [AFTERNOON, NIGHT, 0.25, AFTERNOON + 12345.678])
def test_start_hour_makes_it_that_hour(start: float) -> None:
    truth = House(HOMES["single-phase"], start=start, start_hour=10.5).truth()
    assert truth.site.solar.power > 1000


def test_today_begins_at_midnight_of_the_simulated_day() -> None:
    house = House(HOMES["single-phase"], start=AFTERNOON, start_hour=23.0)
    evening = house.truth()
    assert evening.today > 1000
    house.advance(AFTERNOON + 2 * 3600)
    night = house.truth()
    assert night.today == 0
    assert night.week == pytest.approx(evening.week, rel=0.3)
    assert night.site.solar.delivered == evening.site.solar.delivered


def test_the_same_seed_and_clock_give_the_same_numbers() -> None:
    def day(seed: int, step: int) -> Truth:
        house = House(HOMES["three-phase"], start=AFTERNOON, seed=seed)
        for second in range(0, 181, step):
            house.advance(AFTERNOON + second)
        return house.truth()

    assert day(1, 1) == day(1, 1)
    assert day(1, 1) == day(1, 20), "it does not matter how often one looks"
    assert day(1, 1).meters != day(2, 1).meters
    assert day(1, 1).site.solar.power != day(2, 1).site.solar.power


def test_something_moves_every_second() -> None:
    house = House(HOMES["three-phase"], start=AFTERNOON)
    seen = set()
    for second in range(30):
        house.advance(AFTERNOON + second)
        truth = house.truth()
        seen.add((truth.site.solar.power, truth.site.grid.power, truth.phases[Phase.L3].home.power))
    assert len(seen) == 30


def test_a_clock_that_goes_back_changes_nothing() -> None:
    house = House(HOMES["three-phase"], start=AFTERNOON)
    truth = house.truth()
    house.advance(AFTERNOON - 3600)
    assert house.truth() == truth


class CountingHouse(House):
    """A house that counts how often it computes its powers."""

    steps = 0

    def _set_powers(self, local: float) -> None:
        self.steps += 1
        super()._set_powers(local)


def test_a_month_is_simulated_in_few_steps() -> None:
    house = CountingHouse(HOMES["large"], start=AFTERNOON)
    house.steps = 0
    house.advance(AFTERNOON + 30 * 86400)
    assert 720 < house.steps < 1200
    assert len(house.truth().inverters) == 500


def test_inverters_report_every_five_minutes_each_in_its_own_second() -> None:
    house = House(HOMES["three-phase"], start=AFTERNOON)
    before = {i.serial: i for i in house.truth().inverters if i.reported_at}
    assert len(before) == 20
    assert len({i.reported_at for i in before.values()}) == 20
    assert all(AFTERNOON - 300 < i.reported_at <= AFTERNOON for i in before.values())
    house.advance(AFTERNOON + 299)
    for inverter in house.truth().inverters:
        if inverter.reported_at:
            assert inverter.reported_at - before[inverter.serial].reported_at in (0, 300)
            assert 0 < inverter.reported < inverter.peak


@pytest.mark.parametrize("hour", [5.5, 19])
def test_inverters_reports_never_go_back_at_dawn_and_dusk(hour: float) -> None:
    house = House(HOMES["three-phase"], start=AFTERNOON, start_hour=hour)
    last = {i.serial: i.reported_at for i in house.truth().inverters}
    for step in range(0, 2 * 3600, 60):
        house.advance(AFTERNOON + step)
        for inverter in house.truth().inverters:
            assert inverter.reported_at >= last[inverter.serial]
            last[inverter.serial] = inverter.reported_at


def test_inverters_reports_stop_at_dusk() -> None:
    truth = House(HOMES["three-phase"], start=NIGHT).truth()
    assert all(NIGHT - i.reported_at > 3 * 3600 for i in truth.inverters)
    assert not any(i.power for i in truth.inverters)


def test_inverters_add_up_to_the_sun_of_their_phase() -> None:
    home = HOMES["three-phase"]
    truth = House(home, start=AFTERNOON).truth()
    for leg, phase in enumerate(truth.phases.values()):
        made = sum(i.power for i, unit in zip(truth.inverters, home.inverters, strict=True) if unit.leg == leg)
        assert made == pytest.approx(phase.solar.power, abs=0.01)


def test_inverters_have_made_what_their_phase_has() -> None:
    """The sums of the inverters match those of the phases in lifetime, today, and each of the days before."""
    home = HOMES["three-phase"]
    house = House(home, start=AFTERNOON)
    truth = house.truth()
    for leg, flow in enumerate(truth.meters["production"].phases.values()):
        made = sum(i.lifetime for i, unit in zip(truth.inverters, home.inverters, strict=True) if unit.leg == leg)
        assert made == pytest.approx(flow.delivered, rel=1e-9)
    assert sum(i.today for i in truth.inverters) == pytest.approx(truth.today)
    assert sum(i.week for i in truth.inverters) == pytest.approx(truth.week)
    assert truth.today < sum(i.yesterday for i in truth.inverters) < truth.week
    house.advance(AFTERNOON + 86_400)
    later = house.truth()
    for before, after in zip(truth.inverters, later.inverters, strict=True):
        assert after.lifetime - before.lifetime == pytest.approx(after.yesterday + after.today - before.today)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("name", HOMES)
@pytest.mark.parametrize("path", [path for path in (*BRIEF_PATHS, DEVICE_DATA_PATH) if path != "/info"])
async def test_answers_are_json_or_an_error_status(name: str, path: str) -> None:
    simulator = Simulator(name, clock=Clock(AFTERNOON))
    async with asking(simulator) as client:
        answer = await client.get(path)
    if answer.status_code == 200:
        answer.json()
    else:
        assert name in {"legacy", "single-phase", "no-cts", "large", "ac-batteries"}
        assert (answer.status_code, path) in {(404, path), (401, "/ivp/meters"), (401, INVERTERS_PATH)}


@pytest.mark.parametrize("name", HOMES)
async def test_info_is_xml_and_needs_no_token(name: str) -> None:
    simulator = Simulator(name, clock=Clock(AFTERNOON))
    async with asking(simulator, headers={}) as client:
        answer = await client.get("/info")
    root = ET.fromstring(answer.content)  # noqa: S314 (our own)
    device = root.find("device")
    assert device is not None
    assert device.findtext("sn") == simulator.serial
    assert device.findtext("software") == simulator.home.firmware
    assert device.findtext("imeter") == (None if name == "legacy" else "true")
    assert root.findtext("time") == str(int(AFTERNOON))
    assert "content-type" not in answer.headers or name == "legacy"
    assert len(root.findall("package")) >= 8
    assert (root.find("build_info") is None) == (name == "legacy")


async def test_readings_match_the_truth(simulator: Simulator) -> None:
    truth = simulator.truth()
    roles = {meter.eid: meter.role for meter in simulator.home.meters if meter.enabled}
    answer = {meter["eid"]: meter for meter in await fetch(simulator, READINGS_PATH)}
    for eid, role in roles.items():
        everything = [(answer[eid], truth.meters[role].total)]
        everything += zip(answer[eid]["channels"], truth.meters[role].phases.values(), strict=True)
        for shown, flow in everything:
            assert shown["activePower"] == pytest.approx(flow.power, abs=0.0006)
            assert shown["instantaneousDemand"] == shown["activePower"]
            assert shown["actEnergyDlvd"] == pytest.approx(flow.delivered, abs=0.0006)
            assert shown["actEnergyRcvd"] == pytest.approx(flow.received, abs=0.0006)
            assert shown["timestamp"] == int(AFTERNOON)


async def test_a_meters_total_adds_up_even_voltages_and_power_factors(simulator: Simulator) -> None:
    for meter in await fetch(simulator, READINGS_PATH):
        for field in ("activePower", "voltage", "current", "reactivePower", "actEnergyDlvd", "pwrFactor"):
            assert meter[field] == pytest.approx(sum(c[field] for c in meter["channels"]), abs=0.003)


async def test_the_values_of_all_phases_and_meters_differ(simulator: Simulator) -> None:
    meters = (await fetch(simulator, READINGS_PATH))[:3]
    channels = [reading for meter in meters for reading in (meter, *meter["channels"])]
    for field in channels[1].keys() - {"timestamp", "freq", "pwrFactor"}:
        values = [reading[field] for reading in channels]
        assert len(set(values)) == len(values) == 12, field
        assert 0 not in values, field


async def test_the_values_of_all_inverters_differ(simulator: Simulator) -> None:
    inverters = await fetch(simulator, INVERTERS_PATH)
    for field in ("serialNumber", "lastReportDate", "maxReportWatts"):
        assert len({inverter[field] for inverter in inverters}) == 21, field
    assert len({(i["lastReportDate"], i["lastReportWatts"]) for i in inverters}) == 21
    assert [i["lastReportDate"] for i in inverters].count(0) == 1


async def units(simulator: Simulator) -> list[dict[str, Any]]:
    """Return the microinverters of `device_data`."""
    given = (await fetch(simulator, DEVICE_DATA_PATH)).values()
    return [item for item in given if isinstance(item, dict) and item["devName"] == "pcu"]


async def test_device_data_matches_the_truth(simulator: Simulator) -> None:
    for unit, truth in zip(await units(simulator), simulator.truth().inverters, strict=True):
        channels = unit["channels"]
        lifetime = sum(channel["lifetime"].get("joulesProduced", 0) for channel in channels) / 3600
        assert unit["sn"] == truth.serial
        assert lifetime == pytest.approx(truth.lifetime, abs=0.01)
        assert sum(channel["watts"]["now"] for channel in channels) == pytest.approx(truth.reported, abs=1)
        assert {channel["created"] for channel in channels} == {truth.reported_at}
        for reading in (channel["lastReading"] for channel in channels if channel["lastReading"]):
            watts = reading["dcVoltageINmV"] * reading["dcCurrentINmA"] / 1e6
            assert watts == pytest.approx(reading["joulesProduced"] / reading["duration"] * 1.03, rel=0.01)
            assert reading["acVoltageINmV"] == pytest.approx(230_000, rel=0.03)


async def test_the_device_data_of_all_inverters_and_inputs_differ(simulator: Simulator) -> None:
    found = await units(simulator)
    channels = [channel for unit in found for channel in unit["channels"] if channel["lastReading"]]
    assert sorted(len(unit["channels"]) for unit in found) == [1] * 19 + [2] * 2
    assert [unit["active"] for unit in found].count(False) == 1
    for field in ("acVoltageINmV", "dcCurrentINmA"):
        values = [channel["lastReading"][field] for channel in channels]
        assert len(set(values)) >= len(values) - 2, field
    assert len({channel["lifetime"]["joulesProduced"] for channel in channels}) == len(channels) == 22


async def test_device_data_has_49_of_500_inverters() -> None:
    """Some of their 32-bit counters have wrapped around."""
    simulator = Simulator("large", clock=Clock(AFTERNOON))
    answer = await fetch(simulator, DEVICE_DATA_PATH)
    shown = await units(simulator)
    assert (len(shown), answer["deviceCount"], answer["deviceDataLimit"]) == (49, 50, 50)
    assert len(await fetch(simulator, INVERTERS_PATH)) == 500
    wrapped = [unit for unit in simulator.truth().inverters[:49] if unit.lifetime * 3600 > 2**32]
    assert 0 < len(wrapped) < 49
    assert all(unit["channels"][0]["lifetime"]["joulesProduced"] < 2**32 for unit in shown)


async def test_at_night_inverters_are_active_without_modules() -> None:
    clock = Clock(AFTERNOON)
    simulator = Simulator("single-phase", clock=clock, start_hour=12.0)
    assert not any(unit["modGone"] for unit in await units(simulator))
    clock.now += 11 * 3600
    assert all(unit["modGone"] and unit["active"] for unit in await units(simulator))


async def test_device_data_has_meters_with_unsigned_watts() -> None:
    simulator = Simulator("single-phase", clock=Clock(AFTERNOON), start_hour=2.0)
    found = [item for item in (await fetch(simulator, DEVICE_DATA_PATH)).values() if isinstance(item, dict)]
    meters = {item["sn"]: item for item in found if item["devName"] == "eim"}
    assert meters.keys() == {f"{simulator.serial}EIM1", f"{simulator.serial}EIM2"}
    assert meters[f"{simulator.serial}EIM1"]["channels"][0]["watts"]["now"] == 2**32 - 1


async def test_inverters_on_split_phase_are_connected_to_both_phases() -> None:
    found = await units(Simulator("split-phase", clock=Clock(AFTERNOON)))
    volts = [unit["channels"][0]["lastReading"]["acVoltageINmV"] for unit in found]
    assert volts == pytest.approx([240_000] * 16, rel=0.03)


async def test_firmware_8_3_reports_a_meter_that_it_does_not_list(simulator: Simulator) -> None:
    listed = {meter["eid"] for meter in await fetch(simulator, "/ivp/meters")}
    reported = {meter["eid"] for meter in await fetch(simulator, READINGS_PATH)}
    assert reported - listed == {1023410688}


async def test_disabled_meters_still_report_values() -> None:
    simulator = Simulator("no-cts", clock=Clock(AFTERNOON))
    assert {meter["state"] for meter in await fetch(simulator, "/ivp/meters")} == {"disabled"}
    for meter in await fetch(simulator, READINGS_PATH):
        assert meter["activePower"] != 0
        assert meter["actEnergyDlvd"] + meter["actEnergyRcvd"] > 0
    assert (await fetch(simulator, "/api/v1/production"))["wattHoursLifetime"] == 1583
    pcu = (await fetch(simulator, "/ivp/pdm/energy"))["production"]["pcu"]
    assert pcu["wattHoursLifetime"] == int(simulator.truth().site.solar.delivered)


async def test_a_gateway_without_meters_sums_its_inverters() -> None:
    simulator = Simulator("split-phase", clock=Clock(AFTERNOON))
    simulator.become(meters=(), imeter=False, gear=(), batteries=())
    for path in ("/ivp/meters", READINGS_PATH, "/ivp/meters/gridReading", "/ivp/meters/reports/consumption"):
        assert await fetch(simulator, path) == []
    production = await fetch(simulator, "/api/v1/production")
    energy = (await fetch(simulator, "/ivp/pdm/energy"))["production"]
    assert production == energy["pcu"]
    assert production["wattHoursLifetime"] == int(simulator.truth().site.solar.delivered)
    assert set(energy["eim"].values()) == {0}
    assert b"<imeter>false</imeter>" in await raw(simulator, "/info")


async def test_a_home_with_one_phase_has_noise_on_the_others() -> None:
    simulator = Simulator("single-phase", clock=Clock(AFTERNOON))
    production, net = (await fetch(simulator, "/ivp/meters"))[:2]
    assert (production["phaseMode"], production["phaseCount"]) == ("three", 1)
    for meter in (await fetch(simulator, READINGS_PATH))[:2]:
        used, *unused = meter["channels"]
        assert all(1 < channel["voltage"] < 13 for channel in unused)
        assert {**used, "eid": meter["eid"]} == {key: meter[key] for key in used}
    assert net["eid"] == 704643584
    assert b"-0.000" in await raw(simulator, READINGS_PATH)


async def raw(simulator: Simulator, path: str) -> bytes:
    async with asking(simulator) as client:
        return (await client.get(path)).content


async def test_split_phase_has_its_battery_only_in_live_data() -> None:
    simulator = Simulator("split-phase", clock=Clock(AFTERNOON))
    roles = {meter["measurementType"] for meter in await fetch(simulator, "/ivp/meters")}
    assert roles == {"production", "net-consumption"}
    live = (await fetch(simulator, LIVEDATA_PATH))["meters"]
    truth = simulator.truth()
    assert live["is_split_phase"] == 1
    assert live["storage"]["agg_p_mw"] == milliwatts(truth.site.battery)
    assert live["storage"]["agg_p_ph_c_mw"] == 0
    kinds = {device["device_type"] for device in (await fetch(simulator, DEVICE_LIST_PATH))["devices"]}
    assert kinds == {13, 17, 22}


async def test_devices_of_three_phase(simulator: Simulator) -> None:
    devices = (await fetch(simulator, DEVICE_LIST_PATH))["devices"]
    assert [device["device_type"] for device in devices] == [13, 13, 0]
    assert devices[0]["dev_info"] == {"capacity": 5000, "DER_Index": 1}
    assert "dev_info" not in devices[2]


async def test_production_and_energy(simulator: Simulator) -> None:
    truth = simulator.truth()
    production = await fetch(simulator, "/api/v1/production")
    energy = await fetch(simulator, "/ivp/pdm/energy")
    assert production == energy["production"]["eim"]
    assert production["wattsNow"] == int(truth.meters[PRODUCTION].total.power)
    assert production["wattHoursLifetime"] == int(truth.meters[PRODUCTION].total.delivered)
    assert production["wattHoursToday"] == int(truth.today)
    assert energy["production"]["pcu"]["wattsNow"] == sum(i.reported for i in truth.inverters)
    assert 1 < energy["production"]["pcu"]["wattHoursLifetime"] / production["wattHoursLifetime"] < 1.02
    assert set(energy["production"]["rgm"].values()) == {0}


async def test_production_is_negative_at_night() -> None:
    simulator = Simulator("three-phase", clock=Clock(NIGHT))
    assert (await fetch(simulator, "/api/v1/production"))["wattsNow"] < 0
    assert (await fetch(simulator, "/ivp/pdm/energy"))["production"]["pcu"]["wattsNow"] == 0


async def test_grid_reading_and_reports_are_those_of_the_net_meter(simulator: Simulator) -> None:
    truth = simulator.truth()
    ((_, grid),) = (await fetch(simulator, "/ivp/meters/gridReading"))[0].items()
    assert [channel["phase"] for channel in grid] == ["L1", "L2", "L3"]
    net, total = await fetch(simulator, "/ivp/meters/reports/consumption")
    assert (net["reportType"], total["reportType"]) == ("net-consumption", "total-consumption")
    for channel, line, phase in zip(grid, net["lines"], truth.phases.values(), strict=True):
        assert channel["activePower"] == line["actPower"] == pytest.approx(phase.grid.power, abs=0.0006)
    assert total["cumulative"]["actPower"] == pytest.approx(truth.site.home.power, abs=0.003)
    assert net["cumulative"]["whRcvdCum"] == 0


@pytest.mark.parametrize(("name", "lines"), [("single-phase", 1), ("split-phase", 2), ("three-phase", 3)])
async def test_reports_have_the_real_phases_and_the_grid_reading_always_three(name: str, lines: int) -> None:
    simulator = Simulator(name, clock=Clock(AFTERNOON))
    for report in await fetch(simulator, "/ivp/meters/reports/consumption"):
        assert len(report["lines"]) == lines
    assert len((await fetch(simulator, "/ivp/meters/gridReading"))[0]["channels"]) == 3


@pytest.mark.parametrize("name", ["three-phase", "split-phase", "single-phase"])
async def test_live_data_balances_on_every_phase(name: str) -> None:
    simulator = Simulator(name, clock=Clock(AFTERNOON))
    meters = (await fetch(simulator, LIVEDATA_PATH))["meters"]
    for key in ("agg_p_mw", "agg_p_ph_a_mw", "agg_p_ph_b_mw", "agg_p_ph_c_mw"):
        assert meters["load"][key] == sum(meters[flow][key] for flow in ("pv", "grid", "storage"))
    assert meters["pv"]["agg_p_mw"] == milliwatts(simulator.truth().site.solar)
    assert meters["soc"] == round(simulator.truth().soc)


async def test_live_data_has_both_spellings_of_a_counter(simulator: Simulator) -> None:
    counters = (await fetch(simulator, LIVEDATA_PATH))["counters"]
    assert {"MqttClient_connect_err", "MqttClient_connect_Err"} < set(counters)


async def test_live_data_is_fresh_only_while_the_stream_is_on(
    simulator: Simulator, client: httpx.AsyncClient, clock: Clock
) -> None:
    async def look() -> tuple[str, float, int, bool]:
        answer = (await client.get(LIVEDATA_PATH)).json()
        shown = answer["meters"]
        on = answer["connection"]["sc_stream"]
        return on, shown["last_update"], shown["pv"]["agg_p_mw"], "info" in answer

    first = await look()
    assert first[0] == "disabled"
    clock.forward(30)
    assert await look() == first
    assert (await client.post(STREAM_PATH, json={"enable": 1})).json() == {"sc_stream": "enabled"}
    clock.forward(30)
    assert await look() == ("enabled", clock.now, milliwatts(simulator.truth().site.solar), False)
    clock.forward(869)
    last = await look()
    assert last[:2] == ("enabled", clock.now)
    clock.forward(1)
    assert await look() == ("disabled", *last[1:3], True)
    await client.post(STREAM_PATH, json={"enable": 1})
    await client.post(STREAM_PATH, json={"enable": 0})
    assert (await look())[0] == "disabled"
    assert (await client.post(STREAM_PATH, content=b"[]")).status_code == 400


@pytest.mark.parametrize("path", HARMFUL_PATHS)
async def test_harmful_paths_are_answered_and_logged(simulator: Simulator, path: str) -> None:
    await fetch(simulator, path)
    assert [(seen.method, seen.path, seen.status) for seen in simulator.requests] == [("GET", path, 200)]
    assert simulator.count(path) == simulator.count() == 1


SAME_SHAPE = [
    ("three-phase", "8.3.5169_ACB_inventory", "/ivp/meters"),
    ("single-phase", "8.3.5169_ACB_inventory", READINGS_PATH),
    ("three-phase", "8.3.1598_collar", READINGS_PATH),
    ("three-phase", "8.3.5169_ACB_inventory", "/ivp/meters/gridReading"),
    ("three-phase", "8.3.5169_ACB_inventory", "/ivp/pdm/energy"),
    ("three-phase", "8.3.5169_ACB_inventory", "/api/v1/production"),
    ("three-phase", "8.3.5169_ACB_inventory", INVERTERS_PATH),
]


@pytest.mark.skipif(not CAPTURED.exists(), reason="needs the captured gateways beside the project")
@pytest.mark.parametrize(("name", "capture", "path"), SAME_SHAPE)
async def test_answers_have_the_shape_of_real_ones(name: str, capture: str, path: str) -> None:
    real = json.loads((CAPTURED / capture / path[1:].replace("/", "_")).read_text())
    assert shape(await fetch(Simulator(name, clock=Clock(AFTERNOON)), path)) == shape(real)


@pytest.mark.skipif(not CAPTURED.exists(), reason="needs the captured gateways beside the project")
@pytest.mark.parametrize("capture", ["8.2.4345_with_device_data", "8.3.5167_3rd-pv"])
async def test_device_data_has_the_shape_of_real_ones(simulator: Simulator, capture: str) -> None:
    real = json.loads((CAPTURED / capture / "ivp_pdm_device_data").read_text())
    ours = await fetch(simulator, DEVICE_DATA_PATH)
    assert next(iter(real)) == next(iter(ours)) == "553648384"
    assert shape(ours["553648384"]) == shape(real["553648384"])
    assert [*ours][-2:] == [*real][-2:]


@pytest.mark.skipif(not CAPTURED.exists(), reason="needs the captured gateways beside the project")
async def test_reports_have_the_shape_of_real_ones(simulator: Simulator) -> None:
    real = json.loads((CAPTURED / "8.3.5169_ACB_inventory" / "ivp_meters_reports").read_text())
    assert shape(await fetch(simulator, "/ivp/meters/reports/consumption")) == shape(real[1:])


@pytest.mark.skipif(not CAPTURED.exists(), reason="needs the captured gateways beside the project")
@pytest.mark.parametrize(("name", "capture"), [("three-phase", "8.3.5167_3rd-pv"), ("legacy", "3.17.3")])
async def test_info_has_the_elements_of_real_ones(name: str, capture: str) -> None:
    real = ET.fromstring((CAPTURED / capture / "info").read_bytes())  # noqa: S314 (files of ours)
    ours = ET.fromstring(await raw(Simulator(name, clock=Clock(AFTERNOON)), "/info"))  # noqa: S314
    assert {element.tag for element in ours.iter()} == {element.tag for element in real.iter()}


def shape(value: Any) -> Any:
    """Return the names in their order and the types of values; for a list, the shape of its first item."""
    match value:
        case dict():
            return {"names": list(value), "shapes": {key: shape(item) for key, item in value.items()}}
        case list():
            return [shape(item) for item in value[:1]]
        case _:
            return type(value)


# ---------------------------------------------------------------- authentication


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


BAD_TOKENS: dict[str, Callable[[Simulator], dict[str, str]]] = {
    "none": lambda _: {},
    "no token": lambda _: bearer("nonsense"),
    "three parts of nothing": lambda _: bearer("a.b.c2ln"),
    "not an object": lambda _: bearer("e30.WzFd.c2ln"),
    "another signature": lambda s: bearer(s.token()[:-4] + "AAAA"),
    "another gateway's": lambda s: bearer(s.token(aud="122399999999")),
    "expired": lambda s: bearer(s.token(exp=int(AFTERNOON))),
    "basic": lambda s: {"Authorization": f"Basic {s.token()}"},
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
async def test_bad_tokens_are_refused_with_a_page(simulator: Simulator, kind: str) -> None:
    async with asking(simulator, headers=BAD_TOKENS[kind](simulator)) as client:
        for path in ("/ivp/meters", "/api/v1/production", STREAM_PATH, "/auth/check_jwt", "/home"):
            answer = await client.get(path)
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "text/html"
            assert answer.text.startswith("<html>")


async def test_a_valid_token_is_accepted_until_it_expires(client: httpx.AsyncClient, clock: Clock) -> None:
    assert (await client.get("/ivp/meters")).status_code == 200
    clock.forward(366 * 86400)
    assert (await client.get("/ivp/meters")).status_code == 401


async def test_check_gives_a_session_that_needs_no_token(client: httpx.AsyncClient, clock: Clock) -> None:
    answer = await client.get("/auth/check_jwt")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html")
    assert "Valid token." in answer.text
    del client.headers["Authorization"]
    for _ in range(3):
        clock.forward(599)
        assert (await client.get("/ivp/meters")).status_code == 200
    clock.forward(601)
    assert (await client.get("/ivp/meters")).status_code == 401


async def test_some_gateways_require_the_token_check_first(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.gateway.guard.needs_check = True
    assert (await client.get("/ivp/meters")).status_code == 401
    await client.get("/auth/check_jwt")
    assert (await client.get("/ivp/meters")).status_code == 200


async def test_revoked_tokens_and_their_sessions_are_refused(
    simulator: Simulator, client: httpx.AsyncClient
) -> None:
    await client.get("/auth/check_jwt")
    simulator.revoke_tokens()
    assert (await client.get("/ivp/meters")).status_code == 401
    assert (await client.get("/auth/check_jwt")).status_code == 401
    assert (await client.get("/ivp/meters", headers=bearer(simulator.token()))).status_code == 200


async def test_missing_storage_gear_and_missing_paths_are_not_found() -> None:
    simulator = Simulator("single-phase", clock=Clock(AFTERNOON))
    async with asking(simulator) as client:
        answer = await client.get(DEVICE_LIST_PATH)
        assert (answer.status_code, answer.json()) == (404, {"err": "404 - Not Found"})
        assert answer.headers["content-type"] == "application/json; charset=ISO-8859-4"
        assert (await client.get("/nothing")).status_code == 404


async def test_answers_carry_the_headers_of_a_gateway(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/ivp/meters")).headers
    assert "content-type" not in headers
    assert headers["server"].startswith("openresty")
    assert headers["date"] == "Sun, 15 Jun 2025 15:06:40 GMT"
    assert (await client.get("/api/v1/production")).headers["content-type"] == "application/json"


async def test_legacy_needs_no_token_but_digest_authentication_on_some_paths() -> None:
    simulator = Simulator("legacy", clock=Clock(AFTERNOON))
    async with asking(simulator, headers={}) as client:
        assert (await client.get("/api/v1/production")).json()["wattsNow"] > 100
        assert (await client.get("/ivp/pdm/energy")).status_code == 404
        refused = await client.get(INVERTERS_PATH)
        assert (refused.status_code, refused.text) == (401, "Error: 401")
        assert refused.headers["www-authenticate"].startswith("Digest ")
        assert refused.headers["connection"] == "close"
        right = httpx.DigestAuth("envoy", simulator.serial[-6:])
        inverters = (await client.get(INVERTERS_PATH, auth=right)).json()
        assert len(inverters) == 8
        assert "devType" not in inverters[0]
        wrong = httpx.DigestAuth("envoy", "000000")
        assert (await client.get(INVERTERS_PATH, auth=wrong)).status_code == 401
        assert (await client.get("/ivp/meters", auth=right)).status_code == 401


# ---------------------------------------------------------------- the cloud

LOGIN_FORM = {"user[email]": USER, "user[password]": PASSWORD}


async def test_login_then_tokens(simulator: Simulator, client: httpx.AsyncClient) -> None:
    login = await client.post("/login/login.json", data=LOGIN_FORM)
    assert login.status_code == 200
    assert login.json()["message"] == "success"
    order = {"session_id": login.json()["session_id"], "serial_num": simulator.serial, "username": USER}
    answer = await client.post("/tokens", json=order)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain")
    claims = decode_token(answer.text)
    assert (claims["aud"], claims["iss"], claims["enphaseUser"]) == (simulator.serial, "Entrez", "owner")
    assert claims["exp"] == int(AFTERNOON) + 365 * 86400
    assert (await client.get("/ivp/meters", headers=bearer(answer.text))).status_code == 200


async def test_login_then_the_token_endpoint_of_the_brief(simulator: Simulator, client: httpx.AsyncClient) -> None:
    road = f"/entrez-auth-token?serial_num={simulator.serial}"
    assert (await client.get(road)).status_code == 401
    await client.post("/login/login.json", data=LOGIN_FORM)
    answer = (await client.get(road)).json()
    assert decode_token(answer["token"])["exp"] == answer["expires_at"]
    assert answer["generation_time"] == int(AFTERNOON)
    assert (await client.get("/entrez-auth-token?serial_num=1")).status_code == 403
    assert simulator.requests[-1].path == "/entrez-auth-token"


async def test_the_cloud_refuses_wrong_credentials_and_unknown_serials(
    simulator: Simulator, client: httpx.AsyncClient
) -> None:
    wrong = {**LOGIN_FORM, "user[password]": "wrong"}
    assert (await client.post("/login/login.json", data=wrong)).status_code == 401
    session = (await client.post("/login/login.json", data=LOGIN_FORM)).json()["session_id"]
    order = {"session_id": session, "serial_num": simulator.serial, "username": USER}
    for change in ({"session_id": "x"}, {"serial_num": "1"}, {"username": "x@example.com"}):
        assert (await client.post("/tokens", json={**order, **change})).status_code in (401, 403)
    assert (await client.post("/tokens", content=b"nonsense")).status_code == 400
    assert (await client.get("/tokens")).status_code == 405


def test_installers_tokens_are_valid_for_twelve_hours(simulator: Simulator) -> None:
    simulator.cloud.role = "installer"
    assert decode_token(simulator.token())["exp"] == int(AFTERNOON) + 12 * 3600
    assert decode_token(simulator.token(enphaseUser="owner"))["exp"] == int(AFTERNOON) + 365 * 86400
    assert simulator.token() != simulator.token()


async def test_gateways_can_share_a_cloud(clock: Clock) -> None:
    cloud = SimulatedCloud(clock=clock, password="shared")
    one = Simulator("three-phase", clock=clock, shared_cloud=cloud)
    two = Simulator("split-phase", clock=clock, shared_cloud=cloud)
    assert cloud.serials == {one.serial, two.serial}
    async with asking(two, headers=bearer(cloud.issue(two.serial))) as client:
        assert (await client.get("/ivp/meters")).status_code == 200
        assert (await client.get("/ivp/meters", headers=bearer(one.token()))).status_code == 401


# ---------------------------------------------------------------- faults


async def test_a_fault_affects_its_path_so_many_times(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.faults.add("/ivp/*", "404")
    simulator.faults.add("/ivp/meters", "status:503", times=2)
    simulator.faults.add("/ivp/meters", "502", times=1)
    codes = [(await client.get("/ivp/meters")).status_code for _ in range(4)]
    assert codes == [503, 503, 502, 404]
    assert (await client.get(READINGS_PATH)).status_code == 404
    assert (await client.get("/api/v1/production")).status_code == 200
    simulator.faults.clear()
    assert (await client.get("/ivp/meters")).status_code == 200


async def test_clearing_a_place_keeps_the_faults_of_others(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.faults.add("gateway", "booting")
    simulator.faults.add("login", "mfa")
    assert (await client.get("/info")).status_code == 503
    simulator.faults.clear("gateway")
    assert (await client.get("/info")).status_code == 200
    assert "session_id" not in (await client.post("/login/login.json", data=LOGIN_FORM)).json()


def test_an_unknown_fault_is_an_error(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match="no fault is called 'nonsense'; there are "):
        simulator.faults.add("/info", "nonsense")


@pytest.mark.parametrize("kind", FAULTS_BY_NAME)
def test_every_fault_can_be_added_by_name(kind: str) -> None:
    assert fault_by_name(kind).name
    assert not kind.startswith("_")


BODIES: dict[str, Callable[[httpx.Response, bytes], bool]] = {
    "html": lambda answer, _: answer.content.startswith(b"<!DOCTYPE html>"),
    "empty": lambda answer, _: answer.content == b"",
    "truncated": lambda answer, real: answer.content == real[: len(real) // 2],
    "error_object": lambda answer, _: "error" in answer.json(),
    "status_object": lambda answer, _: answer.json()["status"] == 401,
    "deep": lambda answer, _: answer.content.count(b"[") == 100_000,
    "deep:7": lambda answer, _: answer.json() == [[[[[[[]]]]]]],
    "late:0": lambda answer, real: answer.content == real,
    "slow:0": lambda answer, real: answer.content == real,
    "huge:1": lambda answer, _: len(answer.content) > 1 << 20,
    "blocked": lambda answer, _: answer.json()["isBlocked"] is True,
    "mfa": lambda answer, _: answer.json() == {"success": True, "isBlocked": False},
}


@pytest.mark.parametrize("kind", BODIES)
async def test_bodies_that_faults_send_with_status_200(
    simulator: Simulator, client: httpx.AsyncClient, kind: str
) -> None:
    real = (await client.get("/ivp/meters")).content
    simulator.faults.add("/ivp/meters", kind)
    answer = await client.get("/ivp/meters")
    assert answer.status_code == 200
    assert BODIES[kind](answer, real)


async def test_garbage_is_not_valid_utf_8(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.faults.add("/ivp/meters", "garbage")
    with pytest.raises(UnicodeDecodeError):
        (await client.get("/ivp/meters")).content.decode()


CODES = {"booting": 503, "wrong_password": 401, "down": 503, "not_your_serial": 403, "406": 406, "status": 503}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
async def test_status_codes_that_faults_send(
    simulator: Simulator, client: httpx.AsyncClient, kind: str, code: int
) -> None:
    simulator.faults.add("cloud", kind, times=1)
    assert (await client.get("/ivp/meters")).status_code == 200
    assert (await client.post("/login/login.json", data=LOGIN_FORM)).status_code == code
    assert simulator.requests[-1].status == code


@pytest.mark.parametrize(("kind", "claim"), [("wrong_aud", "aud"), ("expired", "exp")])
async def test_faulty_tokens_are_refused_by_the_gateway(
    simulator: Simulator, client: httpx.AsyncClient, kind: str, claim: str
) -> None:
    simulator.faults.add("tokens", kind)
    simulator.faults.add("entrez", kind)
    session = (await client.post("/login/login.json", data=LOGIN_FORM)).json()["session_id"]
    order = {"session_id": session, "serial_num": simulator.serial, "username": USER}
    good = decode_token(simulator.token())
    for token in (
        (await client.post("/tokens", json=order)).text,
        (await client.get(f"/entrez-auth-token?serial_num={simulator.serial}")).json()["token"],
    ):
        assert decode_token(token)[claim] != good[claim]
        assert (await client.get("/ivp/meters", headers=bearer(token))).status_code == 401


async def test_a_refused_request_changes_nothing(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.faults.add("stream", "503", times=1)
    assert (await client.post(STREAM_PATH, json={"enable": 1})).status_code == 503
    assert (await client.get(LIVEDATA_PATH)).json()["connection"]["sc_stream"] == "disabled"


async def test_cut_without_a_socket_is_an_error(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.faults.add("/info", "reset")
    with pytest.raises(ConnectionResetError):
        await client.get("/info")


async def test_reboot_shows_zeros_for_a_while(
    simulator: Simulator, client: httpx.AsyncClient, clock: Clock
) -> None:
    await client.post(STREAM_PATH, json={"enable": 1})
    simulator.reboot(zeros=120)
    meters = (await client.get(READINGS_PATH)).json()
    assert {(m["actEnergyDlvd"], m["activePower"]) for m in meters if m["eid"] < 704644608} == {(0.0, 0.0)}
    assert (await client.get("/api/v1/production")).json()["wattHoursLifetime"] == 0
    assert (await client.get(LIVEDATA_PATH)).json()["connection"]["sc_stream"] == "disabled"
    clock.forward(121)
    assert (await client.get("/api/v1/production")).json()["wattHoursLifetime"] > 1_000_000


async def test_another_gateway_at_the_same_address(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.become(serial="122301009999", firmware="D8.4.1000")
    assert b"122301009999" in (await client.get("/info")).content
    assert (await client.get("/ivp/meters")).status_code == 401
    assert (await client.get("/ivp/meters", headers=bearer(simulator.token()))).status_code == 200


# ---------------------------------------------------------------- real sockets


def trusting_anybody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def connected(simulator: Simulator, address: str, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    options.setdefault("headers", bearer(simulator.token()))
    scheme = "https" if simulator.home.secure else "http"
    base, context = f"{scheme}://{address}", trusting_anybody()
    async with httpx.AsyncClient(verify=context, base_url=base, **options) as client:
        yield client


async def test_all_ten_over_tls_on_one_connection(simulator: Simulator) -> None:
    async with serve(simulator, tls=True) as address, connected(simulator, address) as client:
        streams = set()
        for path in BRIEF_PATHS:
            answer = await client.get(path)
            assert answer.status_code == 200
            streams.add(answer.extensions["network_stream"].get_extra_info("socket").getsockname())
    assert len(streams) == 1
    assert [seen.path for seen in simulator.requests] == list(BRIEF_PATHS)


async def test_certificate_is_the_gateways_own_and_tls_1_2_will_do(simulator: Simulator) -> None:
    certificate = self_signed(simulator.serial)
    context = ssl.create_default_context(cadata=certificate[0].decode())
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serve(simulator, tls=True, certificate=certificate) as address:
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        peer = writer.get_extra_info("peercert")
        assert writer.get_extra_info("cipher")[1] == "TLSv1.2"
        writer.close()
        await writer.wait_closed()
    assert peer["subject"] == ((("commonName", f"envoy-{simulator.serial}"),),)
    assert self_signed("1")[1] != self_signed("1")[1]


async def test_legacy_uses_plain_http_and_closes_connections() -> None:
    simulator = Simulator("legacy", clock=Clock(AFTERNOON))
    async with serve(simulator, tls=False) as address, connected(simulator, address, headers={}) as client:
        auth = httpx.DigestAuth("envoy", simulator.serial[-6:])
        answer = await client.get(INVERTERS_PATH, auth=auth)
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("kind", ["reset", "drop"])
async def test_cut_connections(simulator: Simulator, kind: str) -> None:
    async with serve(simulator, tls=True) as address, connected(simulator, address) as client:
        simulator.faults.add(READINGS_PATH, kind, times=1)
        with pytest.raises(httpx.TransportError):
            await client.get(READINGS_PATH)
        assert (await client.get(READINGS_PATH)).status_code == 200


async def test_hanging_and_slow_replies_end_when_the_client_gives_up(simulator: Simulator) -> None:
    async with serve(simulator, tls=True) as address, connected(simulator, address) as client:
        simulator.faults.add("/ivp/meters", "hang")
        simulator.faults.add(READINGS_PATH, "slow:0.01")
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/ivp/meters", timeout=0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.get(READINGS_PATH, timeout=5)
    assert [seen.status for seen in simulator.requests] == [0, 200]


async def test_a_huge_answer_has_no_length_and_can_be_aborted(simulator: Simulator) -> None:
    simulator.faults.add(READINGS_PATH, "huge")
    async with serve(simulator, tls=True) as address, connected(simulator, address) as client:
        async with client.stream("GET", READINGS_PATH) as answer:
            assert "content-length" not in answer.headers
            async for piece in answer.aiter_bytes():
                assert piece
                break
        assert (await client.get("/info")).status_code == 200


async def test_the_port_is_free_again_at_once(simulator: Simulator) -> None:
    async with serve(simulator, tls=True) as address, connected(simulator, address) as client:
        port = int(address.partition(":")[2])
        await client.get("/info")
        with pytest.raises(OSError, match="in use"):
            await serve(simulator, tls=True, port=port).__aenter__()
    async with serve(simulator, tls=True, port=port) as again, connected(simulator, again) as client:
        assert again == address
        assert (await client.get("/ivp/meters")).status_code == 200


async def test_stopping_cuts_hanging_requests_and_logs_nothing(
    simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    tasks, arrived = asyncio.all_tasks(), asyncio.Event()

    async def hold(_body: bytes, channel: ReplyChannel) -> None:
        arrived.set()
        await channel.wait_closed()

    simulator.faults.add("/ivp/meters", always("hold", HttpReply(0, send_body=hold)))
    caplog.set_level(logging.DEBUG)
    async with asyncio.timeout(10):
        async with serve(simulator, tls=True) as address:
            client = httpx.AsyncClient(verify=trusting_anybody(), base_url=f"https://{address}", timeout=60)
            hanging = asyncio.create_task(client.get("/ivp/meters"))
            await arrived.wait()
        with pytest.raises(httpx.TransportError):
            await hanging
    with pytest.raises(httpx.ConnectError):
        await client.get("/info")
    await client.aclose()
    assert asyncio.all_tasks() == tasks
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_in_a_thread(clock: Clock) -> None:
    simulator = Simulator("split-phase", clock=clock)
    with serve_in_thread(simulator, tls=True) as address:
        answer = httpx.get(
            f"https://{address}/ivp/meters", headers=bearer(simulator.token()), verify=trusting_anybody()
        )
        assert answer.status_code == 200
        with (
            pytest.raises(OSError, match="in use"),
            serve_in_thread(simulator, tls=True, port=int(address.partition(":")[2])),
        ):
            pass


async def test_the_cloud_can_have_an_address_of_its_own(simulator: Simulator) -> None:
    async with (
        serve(simulator, tls=True) as gateway,
        serve(simulator, tls=False) as cloud,
        httpx.AsyncClient(verify=trusting_anybody()) as client,
    ):
        login = await client.post(f"http://{cloud}/login/login.json", data=LOGIN_FORM)
        order = {"session_id": login.json()["session_id"], "serial_num": simulator.serial, "username": USER}
        token = (await client.post(f"http://{cloud}/tokens", json=order)).text
        answer = await client.get(f"https://{gateway}/ivp/meters", headers=bearer(token))
        assert answer.status_code == 200


# ---------------------------------------------------------------- the package


def test_importing_needs_nothing_of_the_demo_extra() -> None:
    code = (
        "import sys\nfor name in ('uvicorn', 'cryptography', 'rich', 'amqtt'): sys.modules[name] = None\n"
        "import bridge.simulator\n"
        "print(*sorted(name for name in sys.modules if name.startswith('bridge.')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in found if not name.startswith("bridge.simulator")} <= {"bridge.model"}


def test_tokens_survive_a_round_trip() -> None:
    assert decode_token(encode_token({"aud": "1", "exp": 2})) == {"aud": "1", "exp": 2}


def test_homes_have_nothing_in_common() -> None:
    homes = HOMES.values()
    serials = [home.serial for home in homes]
    serials += [inverter.serial for home in homes for inverter in home.inverters]
    serials += [battery.serial for home in homes for battery in home.storing]
    serials += [gear.serial for home in homes for gear in home.gear]
    assert len(set(serials)) == len(serials)
    assert all(len(serial) == 12 for serial in serials)
