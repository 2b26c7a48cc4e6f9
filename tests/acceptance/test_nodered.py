"""Node-RED, the real one: what it gets from the bridge, and what the example flows make of it.

Each flow runs in two releases, and its finer points in the newer one.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from brokers import TIMEOUT_S, Mosquitto, watching
from houses import House, house, publish
from nodered import (
    EXAMPLES,
    NODE_RED_4,
    NODE_RED_5,
    TAB,
    Node,
    NodeRed,
    Release,
    at_home,
    broker,
    example,
    node_red,
    subscription,
)
from running import POLL_INTERVAL_S, running, ticking, until

ROOT = Path(__file__).parents[2]
SERIAL = "122301003111"
GRID, BATTERY = f"enphase/{SERIAL}/site/grid", f"enphase/{SERIAL}/site/battery"
SITE, UNITS = f"enphase/{SERIAL}/availability/site", f"enphase/{SERIAL}/availability/inverters"
BRIDGE_TOPIC = "enphase/bridge/state"


each_release = pytest.mark.parametrize("release", [NODE_RED_4, NODE_RED_5], ids=lambda release: release.version)


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """Before the time of the first test runs."""
    for release in (NODE_RED_4, NODE_RED_5):
        release.install()


def numeric(home: House) -> set[str]:
    """Topics that discovery announces as numbers."""
    bodies = [json.loads(text) for topic, text in home.seen.items() if topic.startswith("homeassistant/")]
    entities = [entity for body in bodies for entity in body["components"].values()]
    return {entity["state_topic"] for entity in entities if "suggested_display_precision" in entity}


@pytest.mark.parametrize("version", ["5", "4"], ids=["MQTT 5", "MQTT 3.1.1"])
@each_release
async def test_numbers_are_numbers_and_documents_objects(tmp_path: Path, release: Release, version: str) -> None:
    """Subscribed as the editor proposes: QoS 2, auto-detect."""
    async with house(tmp_path) as home, running(home.settings()):
        nodes = [TAB, broker("at", home.broker.port, version), subscription("in", "enphase/#", "at")]
        async with node_red(tmp_path, nodes, {"in": "all"}, release) as red:
            await home.settled()
            sent = {topic: text for topic, text in home.seen.items() if topic.startswith("enphase/")}
            await until(lambda: {message["topic"] for message in red.heard("all")} >= sent.keys())
            heard = {message["topic"]: message["payload"] for message in red.heard("all")}
        numbers = numeric(home)
    known = {topic for topic in numbers if sent[topic] != "None"}
    assert len(known) > 300
    assert {type(heard[topic]) for topic in known} == {int, float}
    documents = {topic for topic, text in sent.items() if text.startswith("{")}
    assert {type(heard[topic]) for topic in documents} == {dict}
    assert {topic: heard[topic].keys() for topic in documents} == {t: json.loads(sent[t]).keys() for t in documents}
    meters = {topic for topic in known if "/meter/" in topic}
    assert {topic: heard[topic] for topic in meters} == {topic: float(sent[topic]) for topic in meters}
    assert heard[f"enphase/{home.serial}/site/grid/connected"] == "ON"
    assert heard[f"enphase/{home.serial}/state"] == "online"


def test_every_example_is_tested_and_shares_one_broker() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.json")} == {
        "surplus",
        "missing-inverter",
        "dashboard",
        "chargers",
        "reserve",
    }
    found = [node for path in EXAMPLES.glob("*.json") for node in json.loads(path.read_text())]
    assert [node for node in found if node["type"] == "mqtt-broker"][1:] == [
        node for node in found if node["type"] == "mqtt-broker"
    ][:-1]


class Bench:
    """A flow at a broker of its own, whose topics are what the test says."""

    def __init__(self, red: NodeRed, mosquitto: Mosquitto) -> None:
        self.red, self.mosquitto = red, mosquitto

    async def tell(self, topic: str, payload: object) -> None:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        await publish(self.mosquitto, topic, text, "-r")

    def said(self, ear: str) -> list[Any]:
        return [message["payload"] for message in self.red.heard(ear)]


@asynccontextmanager
async def bench(
    folder: Path, name: str, ears: dict[str, str], release: Release = NODE_RED_5, **settings: float
) -> AsyncIterator[Bench]:
    with Mosquitto(folder) as mosquitto:
        async with node_red(folder, example(name, mosquitto.port, **settings), ears, release) as red:
            yield Bench(red, mosquitto)


def shown() -> dict[str, list[Node]]:
    """The flows that the documents show."""
    found = re.compile(r"^```json\n(\[.*?\])\n```$", re.MULTILINE | re.DOTALL)
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    return {
        f"{page.name}-{place}": json.loads(block)
        for page in pages
        for place, block in enumerate(found.findall(page.read_text()))
    }


@pytest.mark.parametrize(
    ("name", "ear", "payload"),
    [("node-red.md-0", "enphase-power", 658.5), ("node-red.md-1", "enphase-volts", [229.1, 230.2, 231.3])],
)
@each_release
async def test_a_flow_of_the_documents(
    tmp_path: Path, release: Release, name: str, ear: str, payload: object
) -> None:
    volts = {f"l{place}": {"voltage": value} for place, value in enumerate((229.1, 230.2, 231.3), 1)}
    with Mosquitto(tmp_path) as mosquitto:
        nodes = [TAB, *(at_home(node, mosquitto.port) for node in shown()[name])]
        async with node_red(tmp_path, nodes, {ear: "end"}, release) as red:
            document = {"power": 658.5, **volts}
            await publish(mosquitto, f"enphase/{SERIAL}/meter/net-consumption", json.dumps(document), "-r")
            await until(lambda: [message["payload"] for message in red.heard("end")] == [payload])


def test_every_flow_of_the_documents_is_tested() -> None:
    assert shown().keys() == {"node-red.md-0", "node-red.md-1"}


# Surplus

DECIDE = {"enphase-surplus-decide:0": "load", "enphase-surplus-decide:1": "why"}


async def why(flow: Bench, **state: object) -> None:
    """Until the flow says so."""
    await until(lambda: bool(flow.said("why")) and flow.said("why")[-1].items() >= state.items())


async def sunny(flow: Bench) -> None:
    """All is well, and 3 kW go to the grid."""
    await flow.tell(BRIDGE_TOPIC, "online")
    await flow.tell(SITE, "online")
    await flow.tell(GRID, {"power": -3000.5, "connected": True})
    await why(flow, on=True, surplus=3000.5, problem=None)


async def test_surplus_has_a_hysteresis(tmp_path: Path) -> None:
    async with bench(tmp_path, "surplus", DECIDE, HOLD_S=0) as flow:
        await why(flow, on=False, problem="bridge offline")
        await sunny(flow)
        for power, on in (1, True), (199, True), (200, False), (-1999, False), (-2000, True):
            await flow.tell(GRID, {"power": power, "connected": True})
            await why(flow, on=on, surplus=-power, problem=None)
        assert flow.said("load") == ["OFF", "ON", "OFF", "ON"]


async def test_surplus_is_off_at_once_where_it_is_not_known(tmp_path: Path) -> None:
    doubts: tuple[tuple[str, object, str], ...] = (
        (SITE, "offline", "site offline"),
        (BRIDGE_TOPIC, "offline", "bridge offline"),
        (GRID, {"power": None, "connected": True}, "power unknown"),
        (GRID, "", "power unknown"),
        (GRID, {"power": -3000, "connected": False}, "off grid"),
        (BATTERY, {"power": None}, "power unknown"),
    )
    async with bench(tmp_path, "surplus", DECIDE, HOLD_S=0) as flow:
        for topic, payload, problem in doubts:
            await sunny(flow)
            await flow.tell(topic, payload)
            await why(flow, on=False, surplus=None, problem=problem)
        assert flow.said("load") == ["OFF", *(["ON", "OFF"] * len(doubts))]


async def test_surplus_is_off_when_no_news_come(tmp_path: Path) -> None:
    async with bench(tmp_path, "surplus", DECIDE, HOLD_S=0, STALE_S=3) as flow:
        await sunny(flow)
        await why(flow, on=False, surplus=None, problem="no news")
        assert flow.said("load") == ["OFF", "ON", "OFF"]


async def test_what_a_battery_gives_is_no_surplus(tmp_path: Path) -> None:
    async with bench(tmp_path, "surplus", DECIDE, HOLD_S=0) as flow:
        await sunny(flow)
        await flow.tell(BATTERY, {"power": -800})
        await why(flow, on=True, surplus=3000.5)
        await flow.tell(BATTERY, {"power": 3300})
        await why(flow, on=False, surplus=-299.5)


async def test_surplus_must_last(tmp_path: Path) -> None:
    async with bench(tmp_path, "surplus", DECIDE, HOLD_S=3600) as flow:
        await flow.tell(BRIDGE_TOPIC, "online")
        await flow.tell(SITE, "online")
        await flow.tell(GRID, {"power": -3000, "connected": True})
        await why(flow, on=False, surplus=3000, problem=None)
        assert flow.said("load") == ["OFF"]


@each_release
async def test_the_load_gets_its_orders(tmp_path: Path, release: Release) -> None:
    """From the real bridge, whatever the simulated sun does, and at once the opposite when the bridge goes."""
    async with house(tmp_path) as home, watching(home.broker.port, "cmnd/#") as load:
        flow = example("surplus", home.broker.port, HOLD_S=0, ON_W=-20000, OFF_W=-30000)
        async with node_red(tmp_path, flow, release=release):
            async with running(home.settings()):
                await load.until_seen("cmnd/water-heater/POWER", "ON")
                assert load.seen[0].payload == "OFF"
            await load.until_seen("cmnd/water-heater/POWER", "OFF")


# Missing inverter

JUDGE = {"enphase-missing-judge": "alerts"}
FIRST, SECOND, THIRD, REMOVED = (
    f"enphase/{SERIAL}/inverter/48230100{number}" for number in (1001, 1002, 1003, 1009)
)
LAST = "2026-11-22T06:00:00+00:00"


def unit(*, reporting: bool) -> dict[str, object]:
    return {"timestamp": LAST, "power": 100, "reporting": reporting, "last_report": LAST}


async def test_a_missing_inverter_is_told_once_and_when_it_is_back(tmp_path: Path) -> None:
    async with bench(tmp_path, "missing-inverter", JUDGE, HOURS=0) as flow:
        await flow.tell(BRIDGE_TOPIC, "online")
        await flow.tell(UNITS, "online")
        await flow.tell(REMOVED, {"reporting": False, "last_report": None})
        for topic in FIRST, SECOND, THIRD:
            await flow.tell(topic, unit(reporting=True))
        await flow.tell(SECOND, unit(reporting=False))
        gone = f"Inverter 482301001002 has not reported since {LAST}"
        await until(lambda: flow.said("alerts") == [gone])
        await flow.tell(FIRST, unit(reporting=True))
        await flow.tell(SECOND, unit(reporting=True))
        await until(lambda: flow.said("alerts") == [gone, "Inverter 482301001002 reports again"])


async def test_nobody_is_missed_when_most_are_silent(tmp_path: Path) -> None:
    """Neither at night nor without data. The alert at the end tells that all before was judged."""
    everyone = (FIRST, SECOND, THIRD)
    async with bench(tmp_path, "missing-inverter", JUDGE, HOURS=0) as flow:
        for state, other in (BRIDGE_TOPIC, UNITS), (UNITS, BRIDGE_TOPIC):
            await flow.tell(state, "offline")
            await flow.tell(other, "online")
            for topic in everyone:
                await flow.tell(topic, unit(reporting=True))
            for topic in everyone[:2]:
                await flow.tell(topic, unit(reporting=False))
            await flow.tell(state, "online")
            await flow.tell(THIRD, unit(reporting=False))
            await flow.tell(state, "offline")
        for topic in everyone:
            await flow.tell(topic, unit(reporting=True))
        await flow.tell(UNITS, "online")
        await flow.tell(SECOND, unit(reporting=False))
        await until(lambda: flow.said("alerts") == [f"Inverter 482301001002 has not reported since {LAST}"])


@each_release
async def test_an_alert_is_published(tmp_path: Path, release: Release) -> None:
    with Mosquitto(tmp_path) as mosquitto:
        async with (
            watching(mosquitto.port, "alerts/#") as watcher,
            node_red(tmp_path, example("missing-inverter", mosquitto.port, HOURS=0), release=release),
        ):
            for topic in FIRST, SECOND:
                await publish(mosquitto, topic, json.dumps(unit(reporting=True)), "-r")
            await publish(mosquitto, THIRD, json.dumps(unit(reporting=False)), "-r")
            for topic in BRIDGE_TOPIC, UNITS:
                await publish(mosquitto, topic, "online", "-r")
            await watcher.until_seen("alerts/enphase", f"Inverter 482301001003 has not reported since {LAST}")


# Reserve

ASK = {
    "enphase-reserve-ask:1": "outcome",
    "enphase-reserve-ask:2": "alerts",
    "enphase-reserve-bridge": "bridge",
}


@asynccontextmanager
async def asking(folder: Path, port: int, release: Release = NODE_RED_5, **settings: str) -> AsyncIterator[NodeRed]:
    """The flow, which the topic `wish` makes ask. The bridge's state is the sign that it is subscribed."""
    wishes = subscription("wish", "wish", "enphase-broker", "enphase-reserve-ask")
    flow = [TAB, *example("reserve", port, **settings), wishes]
    async with node_red(folder, flow, ASK, release) as red:
        await until(lambda: bool(red.heard("bridge")))
        yield red


async def told(red: NodeRed, name: str, count: int) -> list[str]:
    """What was heard, once there is so much of it."""
    await until(lambda: len(red.heard(name)) >= count)
    return [message["payload"] for message in red.heard(name)]


@each_release
async def test_a_reserve_is_set_and_its_outcome_told(
    tmp_path: Path, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        house(tmp_path, "split-phase", "obeys") as home,
        running(home.settings(control={"allow": "storage"})),
    ):
        await home.settled()
        async with asking(tmp_path, home.broker.port, release) as red, ticking(home.clock):
            await publish(home.broker, "wish", "35")
            good = await told(red, "outcome", 3)
            assert good == ["reserve 35 %: accepted", "reserve 35 %: sent", "reserve 35 %: confirmed"]
            assert home.topic("storage/settings/reserve") == "35"
            await publish(home.broker, "wish", "135")
            refused = await told(red, "alerts", 1)
            assert refused == ["reserve 135 %: refused (135 can't be set: it takes whole numbers from 0 to 100)"]
    assert any(record.getMessage().endswith(", from Node-RED") for record in caplog.records)


async def test_without_a_bridge_or_with_several_gateways_it_asks_nobody(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as mosquitto:
        await publish(mosquitto, BRIDGE_TOPIC, "offline", "-r")
        async with watching(mosquitto.port, "enphase/+/request") as watcher:
            async with asking(tmp_path, mosquitto.port) as red:
                await publish(mosquitto, "wish", "30")
                assert await told(red, "alerts", 1) == ["reserve 30 %: the bridge is offline"]
                info = json.dumps({"gateways": [SERIAL, "122301003112"]})
                await publish(mosquitto, "enphase/bridge/info", info, "-r")
                await publish(mosquitto, BRIDGE_TOPIC, "online", "-r")
                await publish(mosquitto, "wish", "30")
                assert (await told(red, "alerts", 2))[1] == "reserve 30 %: name one GATEWAY"
                assert watcher.seen == []
            async with asking(tmp_path, mosquitto.port, GATEWAY=SERIAL):
                await publish(mosquitto, "wish", "30")
                await until(lambda: len(watcher.seen) == 1)
            body = json.loads(watcher.seen[0].payload)
            assert watcher.seen[0].topic == f"enphase/{SERIAL}/request"
            assert (body["set"], body["value"]) == ("storage/settings/reserve", 30)


# Dashboard

FLOWS = ("solar", "grid", "battery", "home")


@each_release
async def test_the_dashboard_shows_the_home(tmp_path: Path, release: Release) -> None:
    async with (
        house(tmp_path) as home,
        running(home.settings()),
        node_red(tmp_path, example("dashboard", home.broker.port), release=release) as red,
        httpx.AsyncClient(base_url=f"{red.url}/dashboard") as client,
    ):

        async def shown(widget: str) -> Any:
            """What a widget shows: the payload that came last."""
            answer = await client.get(f"/_debug/datastore/enphase-board-{widget}")
            return answer.json()["payload"] if answer.text else None

        async def until_shown(widget: str, right: Callable[[Any], bool]) -> None:
            while not right(await shown(widget)):  # noqa: ASYNC110 - the dashboard tells nothing by itself
                await asyncio.sleep(POLL_INTERVAL_S)

        assert 'id="app"' in (await client.get("/energy")).text
        await home.settled()
        values = {flow: float(home.topic(f"site/{flow}/power") or "nan") for flow in FLOWS}
        async with asyncio.timeout(TIMEOUT_S):
            for flow, value in values.items():
                await until_shown(flow, partial(lambda value, payload: payload == round(value), value))
            await until_shown("charge", lambda payload: payload == float(home.topic("site/battery/soc") or "nan"))
            await until_shown("word", lambda payload: payload == "online")
            await until_shown("meter-table", lambda rows: len(rows or ()) == 9)
            await until_shown("inverter-table", lambda rows: len(rows or ()) == 21)
        meters = {(row["meter"], row["phase"]): row for row in await shown("meter-table")}
        row = meters["net-consumption", "L2"]
        assert row["V"] == float(home.topic("meter/net-consumption/l2/voltage") or "nan")
        (one,) = [row for row in await shown("inverter-table") if row["inverter"] == "482301001005"]
        assert (one["W"], one["reporting"]) == (float(home.topic("inverter/482301001005/power") or "nan"), "yes")
        await publish(home.broker, SITE, "offline", "-r")
        async with asyncio.timeout(TIMEOUT_S):
            await until_shown("word", lambda payload: payload == "offline: site")
