"""Published rows are remembered: over restarts, and until they have been gone for a week."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from brokers import Mosquitto
from houses import house, publish
from running import running, until
from samples import restored

from bridge import discovery
from bridge.discovery.devices import AnnouncedGateway
from bridge.model import Facts, Input, Message, Phase, Reading
from bridge.records import POWER, measurement
from bridge.rows import Row
from bridge.service.publisher import TreeState
from bridge.service.retained import read_retained
from bridge.settings import MqttSettings
from bridge.simulator.faults import with_body
from bridge.simulator.gateway import INVERTERS_PATH
from bridge.state import encode
from bridge.topics import Names, Tree

START = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
OWN_POWER = measurement("power", POWER)
HIGHEST = measurement("max_power", POWER)


def reading(device: str, value: float, row: object = OWN_POWER, phase: Phase | None = None) -> Reading:
    assert row in (OWN_POWER, HIGHEST)
    return Reading(device, phase, row, value)


def cleared(messages: list[Message]) -> list[str]:
    return sorted(message.topic for message in messages if not message.payload)


def told(tree: Tree, readings: list[Reading], days: float) -> list[Message]:
    return list(tree.update("inverters", readings, START + timedelta(days=days)))


def test_a_device_is_gone_after_a_week_without_it() -> None:
    tree = Tree(Names(), "7", ["inverters"])
    both = [reading("inverter/11", 1), reading("inverter/12", 2)]
    assert cleared(told(tree, both, 0)) == []
    assert cleared(told(tree, both[:1], 1)) == []
    assert cleared(told(tree, [], 9)) == []  # an empty answer does not show that devices are gone
    assert [row.device for row in tree.rows] == ["inverter/11", "inverter/12"]
    assert cleared(told(tree, both[:1], 8.1)) == ["enphase/7/inverter/12", "enphase/7/inverter/12/power"]
    assert [row.device for row in tree.rows] == ["inverter/11"]


def test_a_device_that_comes_back_starts_its_week_anew() -> None:
    tree = Tree(Names(), "7", ["inverters"])
    both = [reading("inverter/11", 1), reading("inverter/12", 2)]
    for day, readings in ((0, both), (1, both[:1]), (6, both), (7, both[:1]), (13, both[:1])):
        assert cleared(told(tree, readings, day)) == []
    assert cleared(told(tree, both[:1], 14)) == ["enphase/7/inverter/12", "enphase/7/inverter/12/power"]


def test_a_value_that_is_gone_takes_its_entity_along_but_not_its_device() -> None:
    tree = Tree(Names(), "7", ["inverters"])
    whole = [reading("inverter/11", 1), reading("inverter/11", 9, HIGHEST)]
    told(tree, whole, 0)
    told(tree, whole[:1], 1)
    assert cleared(told(tree, whole[:1], 9)) == ["enphase/7/inverter/11/max_power"]
    about = AnnouncedGateway(Facts("7"), "https://envoy.local")
    messages = discovery.announce(discovery.DiscoveryOptions(Names()), about, tree.rows, tree.rows.gone.values())
    found = {message.topic: json.loads(message.payload) for message in messages}
    components = found["homeassistant/device/iqgateway_7_inverter_11/config"]["components"]
    assert components["max_power"] == {"platform": "sensor"}
    assert components["power"]["unique_id"] == "iqgateway_7_inverter_11_power"


def test_a_device_of_two_sources_goes_at_once() -> None:
    """If it disappeared in parts, Home Assistant would keep some of its entities for ever."""
    tree = Tree(Names(), "7", ["inverters", "device_data"])
    powers = [reading("inverter/11", 1), reading("inverter/12", 2)]
    details = [reading("inverter/11", 3, HIGHEST), reading("inverter/12", 4, HIGHEST)]

    def answered(source: str, readings: list[Reading], days: float) -> list[str]:
        return cleared(list(tree.update(source, readings, START + timedelta(days=days))))

    for day, count in ((0, 2), (1, 1)):
        assert answered("inverters", powers[:count], day) == []
        assert answered("device_data", details[:count], day + 0.5) == []
    assert answered("inverters", powers[:1], 8) == []  # the details have half a day left
    gone = "enphase/7/inverter/12"
    assert answered("device_data", details[:1], 8.5) == [gone, f"{gone}/max_power", f"{gone}/power"]
    assert [row.device for row in tree.rows] == ["inverter/11", "inverter/11"]


def test_a_source_that_fails_keeps_nothing_of_what_is_gone() -> None:
    tree = Tree(Names(), "7", ["inverters", "device_data"])
    powers = [reading("inverter/11", 1), reading("inverter/12", 2)]
    told(tree, powers, 0)
    list(tree.update("device_data", [reading("inverter/12", 4, HIGHEST)], START))
    told(tree, powers[:1], 1)
    assert cleared(told(tree, powers[:1], 8)) == ["enphase/7/inverter/12/power"]


def test_rows_survive_a_restart() -> None:
    tree = Tree(Names(), "7", ["inverters", "readings"])
    told(tree, [reading("inverter/11", 1), reading("meter/production", 3, phase=Phase.L2)], 0)
    kept = restored(TreeState(rows=tuple(tree.rows))).rows
    again = Tree(Names(), "7", ["inverters", "readings"])
    assert again.rows.restore(kept)
    assert list(again.rows) == list(tree.rows)


def test_rows_share_the_descriptions_of_their_measurements_in_the_file() -> None:
    rows = [
        Row(f"inverter/{number}", phase, measured, "inverters", absent_since)
        for number in range(50)
        for phase, measured, absent_since in (
            (None, OWN_POWER, None),
            (Phase.L3, OWN_POWER, 1.5),
            (Input.C2, HIGHEST, None),
        )
    ]
    state = TreeState(rows=tuple(rows), discovered=frozenset({"a", "b"}), leaving=frozenset({"c"}))
    again = restored(state)
    assert again == state
    assert [(row.phase, row.absent_since) for row in again.rows] == [(row.phase, row.absent_since) for row in rows]
    assert encode(state).count(b'"label"') == 2


POWER_IN_FILE = {"name": "power", "quantity": {"unit": "W"}, "label": "Power"}


@pytest.mark.parametrize(
    "kept",
    [
        *(None, {}, [1], [{"device": "x"}], "rows", [{"device": 1, "phase": "l9"}]),
        {"measurements": [], "rows": [["gateway", None, 0, "info", None]]},
        {"measurements": [POWER_IN_FILE], "rows": [["gateway", None, 1, "info", None]]},
        {"measurements": [], "rows": [["gateway", None]]},
        {"measurements": None, "rows": []},
        {"measurements": [], "rows": 7},
    ],
)
def test_damaged_rows_are_no_rows(kept: object) -> None:
    assert TreeState.model_validate({"rows": kept}).rows == ()


@pytest.mark.expects_log("inverters: ")
async def test_a_source_that_fails_at_a_restart_costs_no_entity(tmp_path: Path, warned: Sequence[str]) -> None:
    """A retained message without its entities would make Home Assistant forget them."""
    async with house(tmp_path) as home:
        async with running(home.settings()):
            await home.settled()
        before = {topic: text for topic, text in home.seen.items() if topic.startswith("homeassistant/")}
        home.simulator.faults.add("/api/v1/production/inverters", "html")
        home.watcher.newest.clear()
        async with running(home.settings()):
            await until(lambda: bool(warned))  # the watcher may still be at the first run
            await until(lambda: home.topic("meter/production/power") is not None)
            await until(lambda: home.availability.get("device_list") == "online")
            after = {topic: text for topic, text in home.seen.items() if topic.startswith("homeassistant/")}
    assert after.keys() == before.keys()
    assert all(json.loads(after[t])["components"] == json.loads(before[t])["components"] for t in before)


async def test_what_was_announced_stays_for_a_week(tmp_path: Path) -> None:
    """A meter was disabled while the bridge was stopped."""
    config = "homeassistant/device/iqgateway_{}_meter_storage/config"
    async with house(tmp_path) as home:
        async with running(home.settings()):
            await home.settled()
        assert config.format(home.serial) in home.seen
        meters = tuple(meter for meter in home.simulator.home.meters if meter.role != "storage")
        home.simulator.become(meters=meters)
        async with running(home.settings()):
            await until(lambda: home.availability.get("device_list") == "online")
        assert config.format(home.serial) in home.seen  # its rows stay for a week, since it may come back


async def test_a_clean_stop_says_that_nothing_is_fresh(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        async with running(home.settings()):
            await home.settled()
            assert home.topic("state") == "online"
        await until(lambda: home.seen.get("enphase/bridge/state") == "offline")
        assert home.topic("state") == "offline"
        assert set(home.availability.values()) == {"offline"}


async def test_a_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        async with running(home.settings(), remove_at_end=True):
            await home.settled()
        await until(lambda: not home.seen)


async def test_a_week_without_a_device_may_hold_restarts(tmp_path: Path) -> None:
    """A removed inverter is gone a week after it was given up, although the bridge is restarted each night.

    A unit that has left the list is still shown for a day, as not reporting.
    """

    def without_the_first(body: bytes) -> bytes:
        return json.dumps(json.loads(body)[1:]).encode()

    listed = {"device_data": 0}  # the only list that has these devices
    async with house(tmp_path) as home:
        unit = f"inverter/{home.simulator.home.inverters[0].serial}"
        async with running(home.settings(poll=listed)):
            await home.settled()
            assert home.topic(f"{unit}/power") is not None
        home.simulator.faults.add(INVERTERS_PATH, with_body("a unit less", without_the_first))
        for days in (0, 1):
            await until(lambda: home.topic("availability/inverters") == "offline")
            async with running(home.settings(poll=listed), now=lambda days=days: time.time() + days * 86_400):
                await until(lambda: home.topic("availability/inverters") == "online")
        await until(lambda: home.topic("availability/inverters") == "offline")
        async with running(home.settings(poll=listed), now=lambda: time.time() + 8 * 86_400):
            await until(lambda: home.topic(f"{unit}/power") is None and home.topic(unit) is None)


COUNTERS = {
    "meter/production/energy_delivered": 5.5,
    "meter/production/l2/energy_delivered": 6.5,
    "energy/production/energy_lifetime": 7.5,
    "site/grid/energy_imported": 8.5,
    "inverter/482301001005/energy_lifetime": 9.5,
    "inverter/482301001005/c2/energy_lifetime": 10.5,
    "inverter/121917000000/energy_charged": 11.5,
    "inverter/121917000000/energy_discharged": 12.5,
}


async def test_what_subscribers_have_of_counters_is_read(tmp_path: Path) -> None:
    """Only these topics are read, to save time: 500 inverters have thousands of topics."""
    others = {"meter/production/metering_status": "normal", "inverter/482301001005/power": "255"}
    with Mosquitto(tmp_path) as broker:
        for topic, value in (COUNTERS | others).items():
            await publish(broker, f"enphase/7/{topic}", str(value), "-r")
        await publish(broker, "enphase/8/meter/production/energy_delivered", "1", "-r")
        assert await read_retained(MqttSettings(url=broker.url), "test", "enphase/7") == COUNTERS
