"""The whole service with a simulated home and a real broker, as a subscriber sees it."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from brokers import Mosquitto, watching
from houses import House, house, housed, publish
from running import running, settings, tree, until

from bridge.endpoints import BY_SOURCE
from bridge.model import SourceName
from bridge.simulator.gateway import DEVICE_DATA_PATH, INVERTERS_PATH, LIVEDATA_PATH, METERS_PATH
from bridge.simulator.meters import STREAM_DURATION_S as QUARTER
from bridge.simulator.meters import STREAM_PATH
from bridge.simulator.presets import InverterSpec
from bridge.simulator.truth import Flow, Truth

pytestmark = pytest.mark.hasty

SOURCES = [
    "info",
    "device_list",
    "inventory",
    "power",
    "secctrl",
    "sched",
    "tariff",
    "status",
    "pel_settings",
    "pcs_settings",
    "dpel",
    "pvlimit",
    "firmware",
    "wifi",
    "meters",
    "readings",
    "production",
    "energy",
    "inverters",
    "device_data",
    "livedata",
    "consumption",
    "grid",
    "site",
]
UPDATE = "update_running update_status update_progress update_failure auto_update storage_firmware"
GATEWAY = (
    "firmware serial_number part_number euaid sequence api_version metered web_tokens build_id build_time "
    "release_version release_stage time comms_bridge auto_scan inverters_total inverters_reporting "
    "wifi_connected wifi_signal problem token_expires token_role certificate last_answer answer_time failures "
    "counters_held"
)
METER = "eid enabled metering_status status_flags phase_mode phase_count"
ENERGIES = "energy_delivered energy_received apparent_energy reactive_energy_lagging reactive_energy_leading"
READING = f"power instantaneous_demand apparent_power reactive_power voltage frequency {ENERGIES}"
STORED = "soc backup_soc encharge_soc acb_soc encharge_energy acb_energy backup_mode"
BATTERY = (
    "type status connection interface capacity phase soc temperature cell_temperature power apparent_power "
    "communicating operating last_report admin_state admin_state_code firmware firmware_loaded part_number "
    "installed created firmware_zigbee link_sub_ghz link_2_4_ghz der_index dc_switch sleep_enabled grid_state "
    "led_status revision firmware_bmu assembly_number rated_power grid_mode retries configured firmware_asic "
    "bootloader bootloader_zigbee"
)
TOTALS = (
    "soc encharge_soc acb_soc encharge_energy acb_energy max_energy encharge_soh capacity commissioned_capacity "
    "reserve reserve_now reserve_energy reserve_lowest recovery recovery_entry recovery_exit shutdown "
    "commissioning updating upgrading"
)
SETTINGS = (
    "mode mode_subtype reserve reserve_lowest charge_from_grid optimized changed "
    "override override_reserve override_rate override_mode obeyed"
)
CONTROL = (
    "mode reserve reserve_lowest charge_from_grid action forced_discharge energy_lowest energy_backup energy_max"
)
PANEL = (
    "active solar battery ev_charger panel busbar main_breaker main_busbar der_breaker der3_breaker solar_breaker "
    "battery_breaker meter_location relay_action"
)
MAINS = (
    "grid_connected state admin_state der1_state der2_state der3_state srt12_state srt13_state "
    "battery_grid_mode solar_grid_mode"
)
COUNTER = "power energy_today energy_7d energy_lifetime"
TREE = {
    "gateway": f"{GATEWAY} {UPDATE}",
    "battery/492301002201": BATTERY,
    "battery/492301002214": BATTERY,
    "relay/mains": MAINS,
    "storage/totals": TOTALS,
    **{
        f"storage/totals/l{n}": "frequency_bias voltage_bias frequency_bias_raw voltage_bias_raw" for n in (1, 2, 3)
    },
    "storage/offgrid": "active balanced f v vd_neg vq_neg vd_zero vq_zero",
    "storage/settings": SETTINGS,
    "storage/control": CONTROL,
    "limit/production": "active cause percent power",
    "limit/export": "active power",
    "limit/installer": "active power",
    "limit/breaker": PANEL,
    "tariff/current": "currency rate rate_sell",
    "device/122301009007": "type status interface",
    "meter/production": f"{METER} {READING} measured_at",
    "meter/net-consumption": f"{METER} {READING} measured_at",
    "meter/storage": f"{METER} {READING} measured_at",
    "meter/load": METER,
    **{
        f"meter/{role}/l{n}": f"eid {READING} power_factor current measured_at"
        for role in ("production", "net-consumption", "storage")
        for n in (1, 2, 3)
    },
    **{f"energy/{name}": COUNTER for name in ("production", "production-pcu", "production-eim", "consumption-eim")},
    "energy/production-rgm": COUNTER,
    **{f"live/{name}": "power apparent_power" for name in ("pv", "grid", "load", "generator")},
    **{
        f"live/{name}/l{n}": "power apparent_power"
        for name in ("pv", "storage", "grid", "load", "generator")
        for n in (1, 2, 3)
    },
    "live/storage": f"power apparent_power {STORED}",
    "live/system": "main_relay generator_relay split_phase phase_count stream measured_at",
    **{f"report/{kind}": f"{READING} measured_at" for kind in ("net-consumption", "total-consumption")},
    **{
        f"report/{kind}/l{n}": f"{READING} power_factor current"
        for kind in ("net-consumption", "total-consumption")
        for n in (1, 2, 3)
    },
    "site/solar": "power source estimated energy_lifetime energy_today",
    "site/grid": "power source estimated energy_imported energy_exported energy_since connected",
    "site/battery": "power source estimated energy_charged energy_discharged soc energy_stored capacity",
    "site/home": "power source estimated energy_lifetime energy_today energy_since",
    "report/grid": "power reactive_power",
    **{f"report/grid/l{n}": "power reactive_power voltage current frequency" for n in (1, 2, 3)},
}
"""The topic tree of a home with three phases and batteries, without inverters and the free objects of `live`."""
LISTED = "power max_power type last_report reporting"
COUNTED = "energy_today energy_yesterday energy_7d energy_lifetime"
DETAILED = f"last_report_duration last_report_energy ac_voltage ac_current frequency temperature {COUNTED}"
INPUT = "dc_voltage dc_current"
OF_SEVERAL = f"{INPUT} power temperature energy_lifetime"
MIN_MOVE_W = 200.0
"""Watts, more than the dead band. A home may use as much power as an hour ago."""
FREE = ("live/connection", "live/tasks", "live/counters")


def values(seen: Mapping[str, str], serial: str) -> dict[str, str]:
    """The value topics below the gateway."""
    prefix = f"enphase/{serial}/"
    own = {topic.removeprefix(prefix): text for topic, text in seen.items() if topic.startswith(prefix)}
    return {topic: text for topic, text in own.items() if text[0] != "{"}


def number(text: str) -> float:
    value = float(text)
    assert text == f"{value:.3f}".rstrip("0").rstrip(".")
    return value


def shown(unit: InverterSpec) -> Mapping[str, str]:
    """The topics of an inverter, below its device. One that is removed has never reported."""
    if unit.removed:
        return {"": f"{LISTED} active module_gone energy_today energy_yesterday energy_7d"}
    inputs = {f"/c{place}": INPUT if unit.inputs == 1 else OF_SEVERAL for place in range(1, unit.inputs + 1)}
    return {"": f"{LISTED} active module_gone {DETAILED}", **inputs}


async def test_every_topic_of_the_tree(tmp_path: Path) -> None:
    """The topics are exactly those of the contract."""
    async with house(tmp_path) as home, running(home.settings()):
        await home.settled()
        found = {topic for topic in values(home.seen, home.serial) if not topic.startswith(FREE)}
        inverters = {
            f"inverter/{unit.serial}{place}": names
            for unit in home.simulator.home.inverters
            for place, names in shown(unit).items()
        }
        wanted = {f"{device}/{name}" for device, names in (TREE | inverters).items() for name in names.split()}
        counted = ("meter/production", "report/total-consumption")
        wanted |= {f"{device}/l{n}/energy_today" for device in counted for n in (1, 2, 3)}
        wanted |= {"state", *(f"availability/{source}" for source in SOURCES)}
        assert sorted(found) == sorted(wanted)
        await until(lambda: set(home.availability.values()) == {"online"})
        await until(lambda: home.topic("state") == home.seen["enphase/bridge/state"] == "online")
        assert json.loads(home.seen["enphase/bridge/info"])["gateways"] == [home.serial]


def expected(truth: Truth) -> Iterator[tuple[str, float]]:
    """The payloads below the gateway that follow from the state of the house."""
    for role in ("production", "net-consumption", "storage"):
        meter = truth.meters[role]
        yield from _metered(f"meter/{role}", meter.total)
        for phase, flow in meter.phases.items():
            yield from _metered(f"meter/{role}/{phase.value}", flow)
    for name, flows in (("", truth.site), *((f"/{phase.value}", flows) for phase, flows in truth.phases.items())):
        yield f"live/grid{name}/power", flows.grid.power
        yield f"live/storage{name}/power", flows.battery.power
        yield f"live/load{name}/power", flows.home.power
        yield f"report/grid{name}/power", flows.grid.power
        yield f"report/net-consumption{name}/power", flows.grid.power
        yield f"report/total-consumption{name}/power", flows.home.power
    for inverter in truth.inverters:
        yield f"inverter/{inverter.serial}/max_power", inverter.peak
        if inverter.reported_at:
            yield f"inverter/{inverter.serial}/power", inverter.reported
            yield f"inverter/{inverter.serial}/energy_lifetime", inverter.lifetime
            yield f"inverter/{inverter.serial}/energy_today", inverter.today
    for battery in truth.batteries:
        yield f"battery/{battery.serial}/capacity", battery.capacity
    yield "live/storage/soc", round(truth.soc)
    yield "energy/production/energy_today", truth.today


def _metered(device: str, flow: Flow) -> Iterator[tuple[str, float]]:
    yield f"{device}/power", flow.power
    yield f"{device}/energy_delivered", flow.delivered
    yield f"{device}/energy_received", flow.received


async def test_values_are_those_of_the_house(tmp_path: Path) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await home.settled()
        found = values(home.seen, home.serial)
        wrong = {
            topic: (found[topic], value)
            for topic, value in expected(home.simulator.truth())
            if abs(number(found[topic]) - value) > 1
        }
        assert not wrong
        assert (found["gateway/inverters_total"], found["gateway/inverters_reporting"]) == ("21", "20")


@pytest.mark.may_log("which can't be")
async def test_a_value_that_moves_is_followed(tmp_path: Path) -> None:
    """The hour in which the load changes passes in the house alone, so the counters' step can't be true."""
    async with house(tmp_path) as home, running(home.settings()):
        await home.settled()
        home.clock.forward(60)
        produced = home.simulator.truth().meters["production"].total.delivered
        await until(lambda: abs(number(home.topic("meter/production/energy_delivered") or "0") - produced) <= 1)
        before, used = home.topic("live/load/power"), home.simulator.truth().site.home.power
        home.clock.forward(3600)
        while abs((truth := home.simulator.truth()).site.home.power - used) < MIN_MOVE_W:
            home.clock.forward(60)
        await until(lambda: abs(number(home.topic("live/load/power") or "0") - truth.site.home.power) <= 1)
        assert home.topic("live/load/power") != before


@pytest.mark.may_log("which can't be")
async def test_the_live_stream_is_turned_on_and_stays_on(tmp_path: Path) -> None:
    """The gateway turns the stream off after a quarter of an hour."""
    async with house(tmp_path) as home, running(home.settings()):
        for times in (1, 2):
            await until(partial(lambda times: home.simulator.count(STREAM_PATH) == times, times))
            await until(lambda: home.topic("live/system/stream") == "enabled")
            await until(lambda: home.availability.get("livedata") == "online")
            load = home.simulator.truth().site.home.power
            await until(partial(lambda load: abs(number(home.topic("live/load/power") or "0") - load) <= 1, load))
            home.clock.forward(QUARTER + 60)


@pytest.mark.expects_log("device_data: the answer is not JSON")
async def test_details_that_fail_cost_only_themselves(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.simulator.faults.add(DEVICE_DATA_PATH, "html")
        async with running(home.settings()):
            await until(lambda: home.availability.get("device_list") == "online")
            await until(lambda: home.availability.get("device_data") == "offline")
            await until(lambda: home.availability.get("inverters") == "online")
            await until(lambda: home.topic("inverter/482301001005/power") is not None)
            assert home.topic("inverter/482301001005/ac_voltage") is None


async def test_of_500_inverters_none_is_lost(tmp_path: Path) -> None:
    """49 have details. Each is one device, whose availability is that of the source that has all of them."""
    async with house(tmp_path, "large") as home, running(home.settings()):
        await home.settled()
        serials = [unit.serial for unit in home.simulator.home.inverters]
        powers = [home.topic(f"inverter/{serial}/power") for serial in serials]
        assert None not in powers
        assert sum(home.topic(f"inverter/{serial}/ac_voltage") is not None for serial in serials) == 49
        prefix = f"homeassistant/device/iqgateway_{home.serial}_inverter_"
        announced = {topic: json.loads(text) for topic, text in home.seen.items() if topic.startswith(prefix)}
        assert len(announced) == 500
        topics = {body["availability"][1]["topic"] for body in announced.values()}
        assert topics == {f"enphase/{home.serial}/availability/inverters"}


async def test_a_clean_stop_says_goodbye(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        async with running(home.settings()):
            await home.settled()
        await until(lambda: home.seen["enphase/bridge/state"] == "offline")
        assert "Received DISCONNECT from iqgateway2mqtt-" in home.broker.log
        said = [message.payload for message in home.watcher.seen if message.topic == "enphase/bridge/state"]
        assert said == ["online", "offline"]


async def test_birth_of_home_assistant_brings_everything_again(tmp_path: Path) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await home.settled()
        first, all_topics = f"homeassistant/device/iqgateway_{home.serial}_gateway/config", home.seen.keys()
        async with watching(home.broker.port, qos=0) as late:  # messages of different QoS may change their order
            await until(lambda: tree(late).keys() >= all_topics)
            known = len(late.seen)
            await publish(home.broker, "homeassistant/status", "online")
            await until(lambda: first in [message.topic for message in late.seen[known:]])
            start = next(i for i, message in enumerate(late.seen) if i >= known and message.topic == first)
            await until(lambda: {message.topic for message in late.seen[start:]} >= all_topics)
            again = list(dict.fromkeys(message.topic for message in late.seen[start:]))
        others = [topic for topic in again if not topic.startswith("homeassistant/")]
        assert again[-len(others) :] == others  # discovery is sent first


async def test_a_birth_message_that_was_retained_is_old_news(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await publish(home.broker, "homeassistant/status", "online", "-r")
        topic = f"enphase/{home.serial}/meter/production/eid"
        async with running(home.settings()):
            await home.settled()
            await publish(home.broker, "homeassistant/status", "online")
            await until(lambda: _times(home, topic) > 1)
            assert _times(home, topic) == 2


def _times(home: House, topic: str) -> int:
    return [message.topic for message in home.watcher.seen].count(topic)


async def test_an_endpoint_that_is_not_there_has_no_availability(tmp_path: Path) -> None:
    """Without storage gear the gateway answers 404: the source is neither online nor offline."""
    async with house(tmp_path, "single-phase") as home, running(home.settings()):
        await home.settled()
        gear = {"device_list", "power", "secctrl", "tariff", "status", "sched", "pcs_settings", "firmware"}
        there = {source: "online" for source in SOURCES if source not in gear}
        await until(lambda: home.availability == there)
        assert not any(home.simulator.count(BY_SOURCE[source].path) for source in gear - {"device_list"})


@pytest.mark.hasty
async def test_values_of_an_endpoint_that_goes_are_unknown(tmp_path: Path) -> None:
    """A firmware update may take it away, while the gateway runs or while the bridge does not. It may come back."""
    relay = BY_SOURCE[SourceName.RELAY].path
    async with house(tmp_path, "split-phase") as home:

        async def becomes(state: str) -> None:
            def told() -> object:
                text = home.seen.get(f"enphase/{home.serial}/relay/mains", "{}")
                return json.loads(text).get("state", "") or "None"

            await until(lambda: home.topic("relay/mains/state") == told() == state)

        async with running(home.settings()):
            await becomes("closed")
            home.simulator.faults.add(relay, "404")
            await becomes("None")
            await until(lambda: "relay" not in home.availability)
            home.simulator.faults.clear()
            await becomes("closed")
        home.simulator.faults.add(relay, "404")
        async with running(home.settings()):
            await becomes("None")


async def test_two_gateways_have_trees_of_their_own(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        async with (
            housed(tmp_path, broker, "three-phase") as one,
            housed(tmp_path, broker, "single-phase") as other,
            watching(broker.port) as watcher,
        ):
            one.watcher = other.watcher = watcher
            gateways = [{"host": home.url, "token": home.simulator.token()} for home in (one, other)]
            async with running(settings(tmp_path, broker.url, gateways=gateways)):
                await until(lambda: len(_names(one)) > 1 and len(_names(other)) > 1)
                await until(
                    lambda: one.availability.keys() == {*SOURCES} and bool(other.topic("meter/production/power"))
                )
                assert json.loads(one.seen["enphase/bridge/info"])["gateways"] == sorted([one.serial, other.serial])
                truths = {home.serial: home.simulator.truth().site.grid.power for home in (one, other)}
                await until(lambda: other.topic("live/grid/power") is not None)
                grid = "meter/net-consumption/power"
                await until(lambda: all(home.topic(grid) is not None for home in (one, other)))
                for home in (one, other):
                    assert abs(number(home.topic(grid) or "") - truths[home.serial]) <= 1
                first, second = _names(one), _names(other)
    assert {"IQ Gateway 3111", "Production meter 3111", "Meter reports 3111"} <= first
    assert {"IQ Gateway 3333", "Production meter 3333", "Meter reports 3333"} <= second
    assert not first & second


async def test_a_single_gateway_with_a_name_names_its_meters_too(tmp_path: Path) -> None:
    async with house(tmp_path, "single-phase") as home:
        gateway = {"token": home.simulator.token(), "name": "Cabin"}
        async with running(home.settings(gateway=gateway)):
            wanted = {"Cabin", "IQ Gateway Cabin", "Production meter Cabin", "Net consumption meter Cabin"}
            await until(lambda: _names(home) >= wanted)
        inverters = {f"Inverter {unit.serial}" for unit in home.simulator.home.inverters}
        groups = {"Energy counters Cabin", "Live data Cabin", "Meter reports Cabin", "Limits Cabin"}
        assert wanted <= _names(home) <= wanted | inverters | groups


def _names(home: House) -> set[str]:
    """The names of the gateway's devices in Home Assistant."""
    prefix = f"homeassistant/device/iqgateway_{home.serial}_"
    found = {topic: json.loads(text) for topic, text in home.seen.items() if topic.startswith(prefix)}
    return {body["device"]["name"] for body in found.values()} if f"{prefix}gateway/config" in found else set()


async def test_an_old_gateway_over_plain_http_with_digest(tmp_path: Path) -> None:
    """Firmware 3 has no TLS and no token; inverters need a password that is made from the serial number."""
    async with house(tmp_path, "legacy") as home, running(home.settings()):
        await home.settled()
        there = dict.fromkeys(("info", "production", "inverters", "site"), "online")
        await until(lambda: home.availability == there)
        truth = home.simulator.truth()
        found = {unit.serial: home.topic(f"inverter/{unit.serial}/power") for unit in truth.inverters}
        assert found == {unit.serial: str(unit.reported) for unit in truth.inverters}
        assert home.topic("gateway/problem") == "none"
        answers = {(seen.path, seen.status) for seen in home.simulator.requests}
        assert {(METERS_PATH, 401), (INVERTERS_PATH, 200)} <= answers


@pytest.mark.parametrize("home", ["split-phase", "single-phase", "no-cts", "large"])
async def test_other_homes_come_up_whole(home: str, tmp_path: Path) -> None:
    async with house(tmp_path, home) as built, running(built.settings()):
        await built.settled()
        await until(lambda: set(built.availability.values()) == {"online"})
        await until(lambda: built.topic("gateway/problem") == "none")
        assert built.simulator.count(LIVEDATA_PATH) >= 1
        await until(lambda: tree(built.watcher).get("enphase/bridge/state") == "online")


async def test_storage_gear_is_asked_for_once_it_was_seen(tmp_path: Path) -> None:
    """A controller is asked for its relays in the first round."""
    async with house(tmp_path, "split-phase") as home, running(home.settings()):
        await home.settled()
        await until(lambda: home.topic("relay/no1/name") == "Fridge and freezer")
        assert home.topic("generator/1/manufacturer") == "Simulated"
        assert home.topic("controller/122302007001/temperature") == "31.1"
        assert home.topic("site/grid/connected") == "ON"


async def test_old_firmware_is_asked_for_no_storage_gear(tmp_path: Path) -> None:
    async with house(tmp_path, "legacy") as home, running(home.settings()):
        await home.settled()
        known = {endpoint.path for endpoint in BY_SOURCE.values() if endpoint.appendix}
        assert {seen.path for seen in home.simulator.requests} <= known


async def test_what_gear_there_is_outlives_a_restart(tmp_path: Path) -> None:
    """The gear's values must not wait for an inventory that is asked for seldom, or fails."""
    async with house(tmp_path, "split-phase") as home:
        async with running(home.settings()):
            await home.settled()
        for path in ("/ivp/ensemble/inventory", "/ivp/ensemble/device_list"):
            home.simulator.faults.add(path, "404")
        asked = home.simulator.count("/ivp/ensemble/relay")
        async with running(home.settings()):
            await until(lambda: home.simulator.count("/ivp/ensemble/relay") > asked)
