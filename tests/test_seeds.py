"""Our own retained topics are read before anything is published: a lost state file must not show at subscribers."""

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from brokers import Mosquitto
from houses import House, house, publish
from running import running, settled, until

from bridge.config import MqttSettings
from bridge.service.memory import retained

HELD = {
    "meter/production/energy_delivered": "1234.5",
    "meter/production/l1/energy_delivered": "34.5",
    "energy/production/energy_lifetime": "7",
    "site/home/energy_lifetime": "1",
    "meter/production/metering_status": "normal",
    "energy/production/power": "None",
    "site/solar/energy_lifetime": "NaN",
}
DOCUMENTS = {
    "meter/production": {"energy_delivered": 1234.5, "enabled": True, "l1": {"energy_delivered": 34.5}},
    "energy/production": {"energy_lifetime": 7, "power": None, "timestamp": "2026-11-22T06:00:00+00:00"},
    "site/home": {"energy_lifetime": 1, "deep": {"deeper": {"deepest": 5}}},
}


async def seeds(broker: Mosquitto, payload: str = "both") -> Mapping[str, float]:
    return await retained(MqttSettings(url=broker.url, payload=payload), "memory", "enphase/7")  # type: ignore[arg-type]


@pytest.mark.parametrize("payload", ["both", "json"])
async def test_numbers_are_found_however_they_are_published(payload: str, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        published: Mapping[str, object] = HELD if payload == "both" else DOCUMENTS
        for topic, value in published.items():
            text = value if isinstance(value, str) else json.dumps(value)
            await publish(broker, f"enphase/7/{topic}", text, "-r")
        await publish(broker, "enphase/8/meter/production/energy_delivered", "5", "-r")
        assert await seeds(broker, payload) == {
            "meter/production/energy_delivered": 1234.5,
            "meter/production/l1/energy_delivered": 34.5,
            "energy/production/energy_lifetime": 7,
            "site/home/energy_lifetime": 1,
        }


async def test_what_a_stranger_left_there_is_ignored(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        for number, text in enumerate(("[" * 5000, "1" + "0" * 400, '{"a":', "1e999", "true", '"5"')):
            await publish(broker, f"enphase/7/energy/{number}/energy_lifetime", text, "-r")
        await publish(broker, "enphase/7/energy/x/energy_lifetime", "6", "-r")
        assert await seeds(broker) == {"energy/x/energy_lifetime": 6}


async def test_a_broker_that_is_down_tells_nothing(tmp_path: Path) -> None:
    assert await seeds(Mosquitto(tmp_path)) == {}


def lifetimes(home: House) -> dict[str, float]:
    """The gateway's own counters, as the broker has them."""
    tails = ("energy_delivered", "energy_received", "solar/energy_lifetime")
    prefix = f"enphase/{home.serial}/"
    return {
        topic: float(text)
        for topic, text in home.seen.items()
        if topic.startswith((f"{prefix}meter", f"{prefix}site/solar")) and topic.endswith(tails)
    }


async def _stays(home: House, before: Mapping[str, float]) -> None:
    assert len(before) > 8
    home.simulator.reboot(zeros=1e6)
    async with running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial))
        await until(lambda: float(home.topic("gateway/counters_held") or 0) > 8)
        await asyncio.sleep(3)
        assert lifetimes(home) == before


@pytest.mark.expects_log("fell from .* to 0")
@pytest.mark.parametrize("state", ["lost", "empty", "garbage", "newer"])
@pytest.mark.may_log("can't be understood")
async def test_a_state_that_is_lost_or_damaged_lets_nothing_fall(
    state: str, tmp_path: Path, warned: Sequence[str]
) -> None:
    """The gateway shows zeros just then."""
    async with house(tmp_path) as home:
        async with running(home.settings()):
            await until(lambda: settled(home.watcher, home.serial) and len(lifetimes(home)) > 8)
            await until(lambda: home.topic("site/solar/energy_lifetime") is not None)
        before = lifetimes(home)
        folder = tmp_path / "state"
        if state == "lost":
            shutil.rmtree(folder)
        else:
            content = {"empty": "", "garbage": '{"version": 1, "extra": [', "newer": '{"version": 2}'}[state]
            files = list(folder.glob("gateway-*counters*.json"))
            assert len(files) == 1
            files[0].write_text(content)
        await _stays(home, before)
        assert len([line for line in warned if "can't be understood" in line]) == (state != "lost")
