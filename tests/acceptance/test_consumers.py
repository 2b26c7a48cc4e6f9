"""docs/consumers.md: each recipe with the real program if there is a package, else against its documented rules."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from brokers import TIMEOUT_S, free_port, needed
from houses import House, house
from install import CACHE
from nodered import NODE_RED_4, NODE_RED_5, Release, example, node_red
from programs import started
from running import POLL_INTERVAL_S, running, until

pytestmark = pytest.mark.hasty
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "consumers.md").read_text()
GRAFANA = ROOT / "examples" / "grafana" / "dashboard.json"
PINNED = "mqtt-exporter==1.12.1"
SERIAL = "122301003111"
"""The gateway of the page is the simulated one."""
EVCC_KEYS = {"source", "topic", "jq", "scale", "timeout"}
TELEGRAF_KEYS = {
    *("servers", "topics", "data_format", "json_time_key", "json_time_format", "topic_parsing"),
}
FLOWS = ("solar", "grid", "battery", "home")
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)(?: \d+)?$", re.MULTILINE)


def recipe(heading: str, language: str) -> str:
    """The settings that the page shows below a heading."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    found = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@asynccontextmanager
async def published(folder: Path) -> AsyncIterator[House]:
    """The simulated home, once all of it has been published. Its bridge goes on."""
    async with house(folder) as home, running(home.settings(), now=home.clock):
        await home.settled()
        await until(lambda: home.topic("site/battery/energy_charged") not in {None, "None"})
        yield home


def documents(home: House) -> Mapping[str, Mapping[str, Any]]:
    return {topic: json.loads(text) for topic, text in home.seen.items() if text.startswith("{")}


# Real programs


@pytest.fixture(scope="module")
def exporter() -> Path:
    """mqtt-exporter in an environment of its own, kept between runs."""
    there = CACHE / PINNED
    if not (there / "complete").exists():
        if not (os.environ.get("CI") or CACHE.is_dir()):
            pytest.skip("the tools of the acceptance tests are not installed here")
        shutil.rmtree(there, ignore_errors=True)
        uv = (sys.executable, "-m", "uv", "--no-config")
        subprocess.run([*uv, "venv", "--quiet", str(there)], check=True)
        python = ("--python", str(there / "bin" / "python"))
        subprocess.run([*uv, "pip", "install", "--quiet", *python, PINNED], check=True)
        (there / "complete").touch()
    return there / "bin" / "mqtt-exporter"


Samples = Mapping[tuple[str, str], float]
"""What an exporter offers, by metric and labels."""


async def samples(port: int, *wanted: str) -> Samples:
    """What it offers, once these metrics are among it."""
    found: dict[tuple[str, str], float] = {}
    deadline = time.monotonic() + TIMEOUT_S
    async with httpx.AsyncClient() as client:
        while not {name for name, _ in found}.issuperset(wanted):
            assert time.monotonic() < deadline, found.keys()
            await asyncio.sleep(POLL_INTERVAL_S)
            try:
                text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            except httpx.TransportError:
                continue
            found = {(name, labels): float(value) for name, labels, value in SAMPLE.findall(text)}
    return found


@asynccontextmanager
async def exported(home: House, exporter: Path) -> AsyncIterator[Samples]:
    """What mqtt-exporter makes of a home with the settings of the page."""
    lines = recipe("Prometheus", "sh").splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    port = free_port()
    environment |= {"MQTT_ADDRESS": "127.0.0.1", "MQTT_PORT": str(home.broker.port), "PROMETHEUS_PORT": str(port)}
    async with started(str(exporter), env={**environment, "PROMETHEUS_ADDRESS": "127.0.0.1"}):
        yield await samples(port, "mqtt_power", "mqtt_soc", "mqtt_energy_today")


async def test_prometheus_reads_the_flows_by_mqtt_exporter(tmp_path: Path, exporter: Path) -> None:
    async with published(tmp_path) as home, exported(home, exporter) as found:
        for flow in FLOWS:
            power = found["mqtt_power", f'topic="enphase_{SERIAL}_site_{flow}"']
            assert power == float(home.topic(f"site/{flow}/power") or "nan")
        assert found["mqtt_soc", f'topic="enphase_{SERIAL}_site_battery"'] == float(
            home.topic("site/battery/soc") or "nan"
        )


async def test_prometheus_reads_the_flows_by_debians_exporter(tmp_path: Path) -> None:
    program = needed("prometheus-mqtt-exporter", "prometheus-mqtt-exporter")
    settings = yaml.safe_load(recipe("Prometheus", "yaml"))
    names = {metric["mqtt_name"]: metric["prom_name"] for metric in settings["metrics"]}
    async with published(tmp_path) as home:
        settings["mqtt"]["server"] = f"tcp://127.0.0.1:{home.broker.port}"
        (tmp_path / "exporter.yaml").write_text(yaml.safe_dump(settings))
        port = free_port()
        where = ("-listen-address", "127.0.0.1", "-listen-port", str(port))
        async with started(program, "-config", str(tmp_path / "exporter.yaml"), *where):
            found = await samples(port, *names.values())
        for (metric, labels), value in found.items():
            if metric in names.values():
                (flow,) = re.findall(r'sensor="(\w+)"', labels)
                (name,) = [ours for ours, theirs in names.items() if theirs == metric]
                assert value == documents(home)[f"enphase/{SERIAL}/site/{flow}"][name]
        assert {metric for metric, _ in found} >= set(names.values())


async def test_each_query_of_the_grafana_dashboard_finds_something(tmp_path: Path, exporter: Path) -> None:
    panels = json.loads(GRAFANA.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    selectors = [(query, *re.findall(r'(mqtt_\w+)\{topic=~"([^"]+)"\}', query)) for query in queries]
    assert [query for query, *found in selectors if len(found) != 1] == []
    async with published(tmp_path) as home:
        await until(lambda: home.topic("site/solar/energy_today") is not None)
        async with exported(home, exporter) as found:
            known = {(name, labels.removeprefix('topic="').removesuffix('"')) for name, labels in found}
        unknown = {
            (f"mqtt_{name}", topic.replace("/", "_"))
            for topic, body in documents(home).items()
            for name, value in body.items()
            if value is None and "/site/" in topic
        }
        assert unknown == {("mqtt_energy_today", f"enphase_{SERIAL}_site_home")}  # known from midnight on
        known |= unknown
    for query, (metric, pattern) in selectors:
        assert [topic for name, topic in known if name == metric and re.fullmatch(pattern, topic)], query
    boxes = [tuple(panel["gridPos"].values()) for panel in panels]
    assert max(x + width for x, _, width, _ in boxes) <= 24
    assert len({panel["id"] for panel in panels}) == len(panels)


# Documented rules


def mqtt_plugins(part: object) -> Iterator[Mapping[str, Any]]:
    """Everything in evcc's settings that reads MQTT."""
    if isinstance(part, dict):
        if part.get("source") == "mqtt":
            yield part
        for value in part.values():
            yield from mqtt_plugins(value)
    if isinstance(part, list):
        for value in part:
            yield from mqtt_plugins(value)


async def test_evcc_finds_a_number_behind_each_plugin(tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe("evcc", "yaml"))
    named = {meter["name"]: meter for meter in settings["meters"]}
    assert named.keys() == set(settings["site"]["meters"].values())
    assert {meter["type"] for meter in named.values()} == {"custom"}
    plugins = list(mqtt_plugins(settings))
    assert len(plugins) > len(named)
    async with published(tmp_path) as home:
        told = documents(home)
    for plugin in plugins:
        assert plugin.keys() <= EVCC_KEYS
        assert re.fullmatch(r"\d+s", plugin["timeout"])
        name = re.fullmatch(r"\.(\w+)", plugin["jq"])
        assert name
        assert isinstance(told[plugin["topic"]][name[1]], int | float)


def parsed(topic: str, rule: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Telegraf's `topic_parsing`: measurement and tags by position, `_` for what is left out."""
    levels = topic.split("/")
    assert len(levels) == len(rule["topic"].split("/"))
    (place,) = [i for i, word in enumerate(rule["measurement"].split("/")) if word != "_"]
    tags = zip(rule["tags"].split("/"), levels, strict=True)
    return levels[place], {name: level for name, level in tags if name != "_"}


def matches(topic: str, subscription: str) -> bool:
    return bool(re.fullmatch(subscription.replace("+", "[^/]+"), topic))


async def test_telegraf_gets_a_time_a_measurement_and_numbers(tmp_path: Path) -> None:
    settings = tomllib.loads(recipe("Telegraf and InfluxDB", "toml"))
    (consumer,) = settings["inputs"]["mqtt_consumer"]
    assert consumer.keys() <= TELEGRAF_KEYS
    (rule,) = consumer["topic_parsing"]
    async with published(tmp_path) as home:
        told = documents(home)
        values = home.seen.keys() - told.keys()
    heard = [topic for topic in told if any(matches(topic, wanted) for wanted in consumer["topics"])]
    made = {parsed(topic, rule)[0] for topic in heard}
    assert made == {"site", "meter", "battery", "inverter"}
    assert {parsed(topic, rule)[1]["gateway"] for topic in heard} == {SERIAL}
    assert [topic for topic in values if any(matches(topic, wanted) for wanted in consumer["topics"])] == []
    for topic in heard:
        when = datetime.fromisoformat(told[topic][consumer["json_time_key"]])
        assert when.tzinfo  # the layout has an offset, and takes a fraction of a second beside it
        assert any(isinstance(value, int | float) for value in told[topic].values())


CHARGERS = {
    "enphase-chargers-openwb": "openwb",
    "enphase-chargers-smartevse": "smartevse",
    "enphase-chargers-venus": "venus",
}
OPENWB_NAMES = {
    "counter": {"power", "imported", "exported"},
    "pv": {"power", "exported"},
    "bat": {"power", "imported", "exported", "soc"},
}


@pytest.mark.parametrize("release", [NODE_RED_4, NODE_RED_5], ids=lambda release: release.version)
async def test_wallboxes_and_venus_os_get_what_they_take(tmp_path: Path, release: Release) -> None:
    """At noon the home exports, and its battery charges."""
    release.install()
    async with published(tmp_path) as home:
        flow = example("chargers", home.broker.port)
        async with node_red(tmp_path, flow, CHARGERS, release) as red:
            await until(lambda: {message["topic"] for message in red.heard("venus")} >= {"venus/grid", "venus/pv"})
            await until(lambda: len({message["topic"] for message in red.heard("smartevse")}) == 2)
            await until(lambda: len({message["topic"] for message in red.heard("openwb")}) == 9)
            heard = {ear: {m["topic"]: m["payload"] for m in red.heard(ear)} for ear in CHARGERS.values()}
        told = {topic.removeprefix(f"enphase/{SERIAL}/"): body for topic, body in documents(home).items()}
    check_openwb(heard["openwb"], told)
    check_smartevse(heard["smartevse"], told)
    check_venus(heard["venus"], told)


def check_openwb(heard: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Numbers only. Production and discharging are negative."""
    places = {topic: re.fullmatch(r"openWB/set/mqtt/(\w+)/(\d+)/get/(\w+)", topic) for topic in heard}
    names: dict[str, set[str]] = {kind: set() for kind in OPENWB_NAMES}
    for place in places.values():
        assert place
        names[place[1]].add(place[3])
    assert names == OPENWB_NAMES
    assert {type(payload) for payload in heard.values()} <= {int, float}
    assert heard["openWB/set/mqtt/counter/1/get/power"] == told["site/grid"]["power"] < 0
    assert heard["openWB/set/mqtt/pv/2/get/power"] == -told["site/solar"]["power"] < 0
    assert heard["openWB/set/mqtt/bat/3/get/power"] == -told["site/battery"]["power"] > 0
    assert heard["openWB/set/mqtt/bat/3/get/soc"] == told["site/battery"]["soc"]


def check_smartevse(heard: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Whole tenths of an ampere as text, L1:L2:L3, each from -2000 to 2000."""
    assert all(re.fullmatch(r"-?\d+(:-?\d+:-?\d+)?", payload) for payload in map(str, heard.values()))
    mains = [int(part) for part in heard["SmartEVSE-1234/Set/MainsMeter"].split(":")]
    phases = [told["meter/net-consumption"][phase] for phase in ("l1", "l2", "l3")]
    assert all(abs(part) <= 2000 for part in mains)
    for part, phase in zip(mains, phases, strict=True):
        assert abs(abs(part) / 10 - phase["current"]) <= 0.05 + 1e-9
        assert (part < 0) == (phase["power"] < 0)
    battery = int(heard["SmartEVSE-1234/Set/HomeBatteryCurrent"])
    assert battery == round(-told["site/battery"]["power"] / 23.0) > 0


def check_venus(heard: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """What the drivers' READMEs call the minimum, the phases, and energies in kWh."""
    for place, role in (("grid", "net-consumption"), ("pv", "production")):
        body, meter = heard[f"venus/{place}"][place], told[f"meter/{role}"]
        assert body["power"] == meter["power"]
        assert body["energy_forward"] == pytest.approx(meter["energy_delivered"] / 1000)
        assert [body[line]["power"] for line in ("L1", "L2", "L3")] == [
            meter[phase]["power"] for phase in ("l1", "l2", "l3")
        ]
    battery = heard["venus/battery"]
    assert battery["Dc"]["Power"] == -told["site/battery"]["power"] > 0
    assert battery["Dc"]["Voltage"] > 0
    assert battery["Soc"] == told["site/battery"]["soc"]
