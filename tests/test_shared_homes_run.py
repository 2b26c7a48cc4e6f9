"""The whole service with two gateways of one home, over real sockets: what a subscriber sees."""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brokers import Mosquitto, watching
from houses import MAIN_ROOF, SHARED_POLL, two_gateways
from running import running, settings, until

from bridge.commands.run import poll_once, run_once
from bridge.discovery import MIGRATE_PAYLOAD
from bridge.model import Unsupported
from bridge.simulator.presets import METER_EIDS, NET_CONSUMPTION, PRODUCTION
from bridge.simulator.replay import Replay
from bridge.simulator.serve import serve
from bridge.simulator.truth import Flow

pytestmark = pytest.mark.hasty

AVAILABILITY = "enphase/home/villa/availability"
COMPONENTS = [f"{flow}_{name}" for flow in ("solar", "grid", "home") for name in ("power", "source", "estimated")]


@pytest.fixture
def mosquitto_here(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


async def test_two_gateways_are_one_home(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    async with two_gateways(mosquitto_here, tmp_path) as two:
        async with running(two.settings("Villa", "Villa")):
            await until(two.is_known)
            await until(lambda: "homeassistant/device/iqgateway_home_villa/config" in two.seen)
            await until(lambda: two.of("villa")["availability"] == "online")
            found, roof, barn = two.of("villa"), two.roof, two.barn

            def sites(name: str) -> list[float]:
                return [float(house.topic(f"site/{name}") or "nan") for house in (roof, barn)]

            assert float(found["solar/power"]) == pytest.approx(sum(sites("solar/power")))
            assert float(found["solar/energy_lifetime"]) == pytest.approx(sum(sites("solar/energy_lifetime")))
            assert found["grid/power"] == roof.topic("site/grid/power")
            assert found["grid/energy_imported"] == roof.topic("site/grid/energy_imported")
            document = json.loads(found["home"])
            parts = json.loads(found["solar"])["power"] + json.loads(found["grid"])["power"]
            assert document["power"] == pytest.approx(parts)
            assert found["home/source"] == "balance"
            assert not [topic for topic in found if topic.startswith(("battery", "generator", "site"))]
            config = json.loads(two.seen["homeassistant/device/iqgateway_home_villa/config"])
            assert config["device"] == {
                "identifiers": ["iqgateway_home_villa"],
                "name": "Villa",
                "manufacturer": "Enphase",
                "model": "Start here: solar, grid, battery, home",
            }
            assert [place["topic"] for place in config["availability"]] == [
                "enphase/bridge/state",
                "enphase/home/villa/availability",
            ]
            assert {*COMPONENTS} <= config["components"].keys()
            assert config["components"]["home_power"] == {
                "platform": "sensor",
                "name": "Home power",
                "unique_id": "iqgateway_home_villa_home_power",
                "state_topic": "enphase/home/villa/home/power",
                "device_class": "power",
                "unit_of_measurement": "W",
                "state_class": "measurement",
                "suggested_display_precision": 0,
            }
            site = json.loads(two.seen[f"homeassistant/device/iqgateway_{roof.serial}_site/config"])
            own = {key: part.get("enabled_by_default", True) for key, part in site["components"].items()}
            assert not any(enabled for key, enabled in own.items() if key.startswith("home_"))
            assert own["grid_power"]
            assert own["solar_power"]
        await until(lambda: two.of("villa")["availability"] == "offline")
        assert roof.topic("gateway/problem") == "none"


async def test_the_other_form_of_discovery_goes_though_the_state_folder_was_lost(
    mosquitto_here: Mosquitto, tmp_path: Path
) -> None:
    async with two_gateways(mosquitto_here, tmp_path) as two:
        topic = "homeassistant/device/iqgateway_home_villa/config"
        async with running(two.settings("Villa", "Villa")):
            await until(lambda: topic in two.seen)
        shutil.rmtree(tmp_path / "state")
        async with running(two.settings("Villa", "Villa", homeassistant={"discovery": "component"})):
            await until(lambda: "homeassistant/sensor/iqgateway_home_villa_solar_power/config" in two.seen)
            await until(lambda: not [seen for seen in two.seen if seen.startswith("homeassistant/device/")])
        payloads = [message.payload for message in two.watcher.seen if message.topic == topic]
        assert payloads[-2:] == [MIGRATE_PAYLOAD, ""]


async def test_powers_that_stand_still_are_told_with_each_answer(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    """The grid's power of a home is that of one gateway; the answers of the other one do not repeat it."""
    async with two_gateways(mosquitto_here, tmp_path) as two, running(two.settings("Villa", "Villa")):
        await until(two.is_known)
        begun = len(two.watcher.seen)

        def count(topic: str) -> int:
            return [message.topic for message in two.watcher.seen[begun:]].count(f"enphase/{topic}")

        await until(lambda: count(f"{two.roof.serial}/site/grid/power") >= 8)
        roof, barn = (count(f"{house.serial}/site/solar/power") for house in (two.roof, two.barn))
        assert barn >= 6
        assert count("home/villa/grid/power") == pytest.approx(roof, abs=1)
        assert count("home/villa/solar/power") == pytest.approx(roof + barn, abs=2)


@pytest.mark.expects_log("the gateway can't be read")
@pytest.mark.may_log("connection")
async def test_a_gateway_that_is_away_makes_its_home_unknown(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    async with two_gateways(mosquitto_here, tmp_path) as two, running(two.settings("villa", "villa")):
        await until(two.is_known)
        before = two.of("villa")
        await two.barn.unplug()
        await until(lambda: two.of("villa")["availability"] == "offline")
        await until(lambda: two.of("villa")["home/power"] == "None")
        assert two.of("villa")["solar/power"] == "None"
        assert two.of("villa")["grid/power"] == two.roof.topic("site/grid/power")
        assert two.of("villa")["solar/energy_lifetime"] == before["solar/energy_lifetime"]
        assert json.loads(two.of("villa")["home"])["power"] is None
        await two.barn.plug()
        await until(two.is_known)
        await until(lambda: two.of("villa")["availability"] == "online")


async def test_the_home_s_energy_is_the_true_one_also_over_a_restart(
    mosquitto_here: Mosquitto, tmp_path: Path
) -> None:
    """The grid meter of one gateway sees the sun of both."""
    async with two_gateways(mosquitto_here, tmp_path) as two:
        two.roof.simulator.house.behind = two.barn.simulator.house

        def true_home() -> Flow:
            return two.roof.simulator.truth().site.home

        two.clock.forward(60)
        async with running(two.settings("villa", "villa"), now=two.clock):
            await until(lambda: two.number("home/energy_lifetime") == 0)
            await until(lambda: two.number("home/power") == pytest.approx(true_home().power, abs=2))
            before, since = true_home(), two.of("villa")["home/energy_since"]
        two.clock.forward(1800)
        async with running(two.settings("villa", "villa"), now=two.clock):
            await until(lambda: two.of("villa")["availability"] == "online")
            await until(lambda: two.number("home/energy_lifetime") > 0)
            counted = two.number("home/energy_lifetime")
            assert counted == pytest.approx(true_home().delivered - before.delivered, abs=3)
            await until(lambda: two.number("home/power") == pytest.approx(true_home().power, abs=2))
            assert two.of("villa")["home/energy_since"] == since


@pytest.mark.expects_log("home-villa.json can't be understood")
async def test_a_damaged_file_of_a_home_costs_the_home_alone(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    async with two_gateways(mosquitto_here, tmp_path) as two:
        async with running(two.settings("villa", "villa")):
            await until(two.is_known)
            roof = float(two.roof.topic("site/solar/energy_lifetime") or "nan")
            sun = two.number("solar/energy_lifetime")
        (tmp_path / "state" / "home-villa.json").write_text('{"version": 2, "home"')
        async with running(two.settings("villa", "villa")):
            await until(lambda: two.of("villa")["availability"] == "online")
            await until(two.is_known)
            assert float(two.roof.topic("site/solar/energy_lifetime") or "nan") >= roof
            assert sun <= two.number("solar/energy_lifetime") < sun + 100


@pytest.mark.expects_log("home villa: the gateways .* each have a grid meter")
async def test_two_grid_meters_need_a_choice(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    also_metered = replace(MAIN_ROOF, serial="122303003334")
    async with two_gateways(mosquitto_here, tmp_path, also_metered) as two:
        async with running(two.settings("villa", "villa")):
            await until(lambda: "set grid_meter = true" in (two.roof.topic("gateway/problem") or ""))
            await until(lambda: "set grid_meter = true" in (two.barn.topic("gateway/problem") or ""))
            assert two.of("villa")["home/power"] == "None"
            assert two.of("villa")["grid/power"] == "None"
        gateways = [two.entry(two.roof, "villa"), two.entry(two.barn, "villa", grid_meter=True)]
        async with running(settings(tmp_path, mosquitto_here.url, gateways=gateways, poll=SHARED_POLL)):
            await until(two.is_known)
            assert two.of("villa")["grid/power"] == two.barn.topic("site/grid/power")
            await until(lambda: two.roof.topic("gateway/problem") == "none")


async def test_a_home_that_the_settings_lose_leaves_nothing_behind(
    mosquitto_here: Mosquitto, tmp_path: Path
) -> None:
    async with two_gateways(mosquitto_here, tmp_path) as two:
        async with running(two.settings("old", "old")):
            await until(lambda: "homeassistant/device/iqgateway_home_old/config" in two.seen)
            await until(lambda: two.is_known("old"))
        assert (tmp_path / "state" / "home-old.json").is_file()
        async with running(two.settings("new", "new")):
            await until(lambda: two.is_known("new"))
            await until(lambda: not two.of("old"))
            await until(lambda: "homeassistant/device/iqgateway_home_old/config" not in two.seen)
            await until(lambda: not (tmp_path / "state" / "home-old.json").is_file())
            await until(lambda: "homeassistant/device/iqgateway_home_new/config" in two.seen)


async def test_homes_come_and_go_with_the_file_of_gateways(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    file = tmp_path / "gateways.json"

    def listed(*gateways: dict[str, Any]) -> None:
        (tmp_path / "new").write_text(json.dumps(gateways))
        os.replace(tmp_path / "new", file)  # noqa: PTH105 - what people do

    async with two_gateways(mosquitto_here, tmp_path) as two:
        listed(two.entry(two.roof, "villa", site="a"), two.entry(two.barn, "villa", site="b"))
        given = settings(
            tmp_path, mosquitto_here.url, gateways_file=file, poll=SHARED_POLL, mqtt={"base_topic": "fleet/{site}"}
        )

        def number(topic: str) -> float:
            return two.number(topic, base="fleet")

        async with running(given):
            await until(lambda: two.is_known(base="fleet"))
            both, sun = number("solar/energy_lifetime"), number("solar/power")
            listed(two.entry(two.roof, "villa", site="a"), two.entry(two.barn, None, site="b"))
            await until(lambda: 0 < number("solar/power") < 0.8 * sun)
            assert number("solar/energy_lifetime") >= both
            listed(two.entry(two.roof, None, site="a"), two.entry(two.barn, None, site="b"))
            await until(lambda: not two.of("villa", "fleet"))
            await until(lambda: not (tmp_path / "state" / "home-villa.json").is_file())


@pytest.mark.expects_log("is polled by another bridge already")
async def test_the_bridge_that_stands_by_leaves_the_home_alone(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    async with two_gateways(mosquitto_here, tmp_path) as two:
        first, second = (
            two.settings("villa", "villa", instance=name).model_copy(update={"state_dir": tmp_path / name})
            for name in ("first", "second")
        )
        standing_by = "enphase/bridge/second/info"
        async with running(first, now=two.clock):
            await until(two.is_known)
            async with running(second, now=two.clock):
                await until(lambda: len(json.loads(two.seen.get(standing_by, "{}")).get("standing_by", ())) == 2)
                told = len(two.watcher.seen)
                seen = two.roof.simulator.count("/ivp/meters/readings")
                await until(lambda: two.roof.simulator.count("/ivp/meters/readings") > seen + 2)
                states = [seen.payload for seen in two.watcher.seen if seen.topic == AVAILABILITY]
                assert states[-1] == "online"
                assert "offline" not in states[states.index("online") :]
                assert "offline" not in [
                    seen.payload for seen in two.watcher.seen[told:] if seen.topic == AVAILABILITY
                ]
        sun = two.number("solar/energy_lifetime")
        assert two.of("villa")["availability"] == "offline"
        two.clock.forward(600)
        async with running(second, now=two.clock):
            await until(lambda: two.of("villa")["availability"] == "online")
            await until(lambda: two.number("solar/energy_lifetime") > sun)
            assert two.is_known()


# Answers with values that were worked out by hand


def reading(eid: int, power: float, delivered: float, received: float) -> dict[str, Any]:
    """A meter of one phase, as `/ivp/meters/readings` gives it."""
    values: dict[str, Any] = {
        "timestamp": 1795904986,
        "actEnergyDlvd": delivered,
        "actEnergyRcvd": received,
        "activePower": power,
        "instantaneousDemand": power,
        "apparentPower": abs(power),
        "reactivePower": 0.0,
        "pwrFactor": 1.0,
        "voltage": 231.5,
        "current": 1.0,
        "freq": 50.0,
    }
    empty = dict.fromkeys(values, 0.0)
    channels = [{"eid": eid + 1 + place, **(values if place == 0 else empty)} for place in range(3)]
    return {"eid": eid, **values, "channels": channels}


def captured(folder: Path, serial: str, meters: Sequence[tuple[str, float, float, float]]) -> Replay:
    """A gateway with these meters: role, power (W), energies delivered and received (Wh)."""
    folder.mkdir()
    info = f"<time>1795904986</time><device><sn>{serial}</sn><pn>800-00654-r08</pn><software>D8.3.5167</software>"
    (folder / "info").write_text(f"<envoy_info>{info}<imeter>true</imeter></device></envoy_info>")
    listed = [
        {
            "eid": METER_EIDS[role],
            "state": "enabled",
            "measurementType": role,
            "phaseMode": "three",
            "phaseCount": 1,
            "meteringStatus": "normal",
            "statusFlags": [],
        }
        for role, *_ in meters
    ]
    (folder / "ivp_meters").write_text(json.dumps(listed))
    readings = [reading(METER_EIDS[role], *values) for role, *values in meters]
    (folder / "ivp_meters_readings").write_text(json.dumps(readings))
    return Replay(folder)


async def test_the_flows_of_two_captured_gateways_add_up(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    """The second gateway alone would say that 520 W are consumed: 1,430 W of its sun less 910 W that go out."""
    barn = captured(tmp_path / "barn", "122301000021", [(PRODUCTION, 620.0, 11_000_000.0, 700.0)])
    roof = captured(
        tmp_path / "roof",
        "122301000022",
        [(PRODUCTION, 1430.0, 3_000_000.0, 200.0), (NET_CONSUMPTION, -910.0, 1_500_000.0, 2_600_000.0)],
    )
    async with (
        serve(barn, tls=True) as at_barn,
        serve(roof, tls=True) as at_roof,
        watching(mosquitto_here.port) as watcher,
    ):
        gateways = [
            {"host": f"https://{address}", "token": gateway.token(), "home": "farm"}
            for gateway, address in ((barn, at_barn), (roof, at_roof))
        ]
        async with running(settings(tmp_path, mosquitto_here.url, gateways=gateways)):
            await until(lambda: watcher.newest.get("enphase/home/farm/home/power") == "1140")
            await until(lambda: "enphase/home/farm/solar/energy_lifetime" in watcher.newest)
            found = {
                topic.removeprefix("enphase/home/farm/"): text
                for topic, text in watcher.newest.items()
                if topic.startswith("enphase/home/farm/")
            }
    assert found["solar/power"] == "2050"
    assert found["grid/power"] == "-910"
    assert found["solar/energy_lifetime"] == "14000000"
    assert found["home/source"] == "balance"


async def test_once_shows_the_home(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    async with two_gateways(mosquitto_here, tmp_path) as two:
        found, polled = await poll_once(two.settings("villa", "villa"))
        power = {
            flow: float(found[f"enphase/home/villa/{flow}/power"].payload) for flow in ("solar", "grid", "home")
        }
        assert power["home"] == pytest.approx(power["solar"] + power["grid"])
        assert found[AVAILABILITY].payload == "online"
        assert all(isinstance(error, Unsupported) for one in polled for error in one.errors.values())
        assert [one.status.serial for one in polled] == [two.roof.serial, two.barn.serial]


async def test_the_summary_of_once_has_each_gateway_and_the_home(
    mosquitto_here: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with two_gateways(mosquitto_here, tmp_path) as two:
        await asyncio.to_thread(run_once, two.settings("villa", "villa"), "site")
    captured = capsys.readouterr()
    found = dict(line.split(" ", 1) for line in captured.out.splitlines())
    lines = captured.err.splitlines()
    assert len(lines) == 2 * 5 + 2
    home = round(float(found["enphase/home/villa/home/power"]))
    (line,) = [line for line in lines if " home  " in line]
    assert line.split("  ")[-1].strip().startswith("villa: solar ")
    assert line.endswith(f", home {home} W")
