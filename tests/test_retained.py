"""Our own retained topics are read before anything is published: subscribers must not notice a lost state file."""

import asyncio
import json
import re
import shutil
import tracemalloc
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from brokers import Mosquitto
from houses import House, house, publish
from programs import BRIDGE_COMMAND, started
from running import running, settled, until

from bridge.service.retained import read_retained
from bridge.settings import MqttSettings

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

DATED = datetime(2026, 11, 22, 6, tzinfo=UTC).timestamp()
"""The unix time of the document that has one."""


async def seeds(broker: Mosquitto, payload: str = "both") -> Mapping[str, float]:
    return await read_retained(MqttSettings(url=broker.url, payload=payload), "memory", "enphase/7")


FOREIGN = "1 numbers at the broker can't be counters of a bridge and are left out: who has written enphase/7/{}"


@pytest.mark.may_log(FOREIGN.format("site/solar/energy_lifetime"))
@pytest.mark.parametrize("payload", ["both", "json"])
async def test_numbers_are_found_however_they_are_published(payload: str, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        published: Mapping[str, object] = HELD if payload == "both" else DOCUMENTS
        for topic, value in published.items():
            text = value if isinstance(value, str) else json.dumps(value)
            await publish(broker, f"enphase/7/{topic}", text, "-r")
        await publish(broker, "enphase/8/meter/production/energy_delivered", "5", "-r")
        dated = {"energy/production/timestamp": DATED} if payload == "json" else {}
        assert await seeds(broker, payload) == dated | {
            "meter/production/energy_delivered": 1234.5,
            "meter/production/l1/energy_delivered": 34.5,
            "energy/production/energy_lifetime": 7,
            "site/home/energy_lifetime": 1,
        }


@pytest.mark.expects_log("2 numbers at the broker .* who has written enphase/7/energy/1/energy_lifetime")
async def test_what_a_stranger_left_there_is_ignored(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        for number, text in enumerate(("[" * 5000, "1" + "0" * 400, '{"a":', "1e999", "true", '"5"')):
            await publish(broker, f"enphase/7/energy/{number}/energy_lifetime", text, "-r")
        await publish(broker, "enphase/7/energy/x/energy_lifetime", "6", "-r")
        assert await seeds(broker) == {"energy/x/energy_lifetime": 6}


@pytest.mark.parametrize("number", ["1e10", "0", "-0.0"])
async def test_numbers_of_the_largest_counter_are_no_foreign_ones(number: str, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        await publish(broker, "enphase/7/energy/x/energy_lifetime", number, "-r")
        await publish(broker, "enphase/7/meter/x/reactive_energy_lagging", f"-{number.lstrip('-')}", "-r")
        found = await seeds(broker)
        assert list(found.values()) == [pytest.approx(-float(number)), pytest.approx(float(number))]


@pytest.mark.expects_log(FOREIGN.format("site/home/energy_lifetime"))
async def test_a_hint_names_one_foreign_number(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        await publish(broker, "enphase/7/site/home/energy_lifetime", "-1", "-r")
        assert await seeds(broker) == {}


async def test_a_hint_names_a_counter_that_another_program_may_have_raised(tmp_path: Path) -> None:
    """Subscribers have seen the number, so it is not taken back; but the owner should know why it is there."""
    hint = re.compile("energy/production/energy_lifetime fell from 900000000 .*: if another program has written it")
    async with house(tmp_path, "single-phase") as home:
        command = (*BRIDGE_COMMAND, "run")
        async with started(*command, env=home.environment) as program:
            await until(lambda: home.topic("energy/production/energy_lifetime") not in {None, "None"})
            await program.stop()
        await publish(home.broker, f"enphase/{home.serial}/energy/production/energy_lifetime", "900000000", "-r")
        async with started(*command, env=home.environment) as program:
            await until(lambda: any(map(hint.search, program.err)))


async def test_a_hundred_thousand_retained_topics_cost_little(tmp_path: Path) -> None:
    """What is read is bounded in number and time, and large messages are left out."""
    with Mosquitto(tmp_path) as broker:
        await publish_many(broker, [f"enphase/7/meter/{number}/energy_delivered" for number in range(100_000)])
        await publish(broker, "enphase/7/site/home", json.dumps({"energy_lifetime": 5, "x": "x" * 100_000}), "-r")
        await publish(broker, "enphase/7/site/grid/energy_imported", "5", "-r")
        tracemalloc.start()
        try:
            found = await seeds(broker)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert 0 < len(found) <= 20_000
        assert found["site/grid/energy_imported"] == 5
        assert peak < 20_000_000


async def test_the_log_says_why_it_connects_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The bridge's own connection is logged at the same moment."""
    caplog.set_level("INFO")
    with Mosquitto(tmp_path) as broker:
        await seeds(broker)
    assert caplog.messages == [
        f"Connected to {broker.url} with MQTT 5",
        "That connection only reads the earlier values from the broker",
    ]


async def test_a_broker_that_is_down_tells_nothing(tmp_path: Path) -> None:
    assert await seeds(Mosquitto(tmp_path)) == {}


async def publish_many(broker: Mosquitto, topics: Iterable[str]) -> None:
    """Publish a retained `7` to each of these topics, faster than any client could: with MQTT 3.1.1 by hand."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x")
    assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
    for topic in topics:
        body = len(topic).to_bytes(2, "big") + topic.encode() + b"7"
        assert len(body) < 128
        writer.write(b"\x31" + bytes([len(body)]) + body)
    writer.write(b"\xc0\x00")
    assert await reader.readexactly(2) == b"\xd0\x00"  # it answers the ping after everything else
    writer.close()


def lifetimes(home: House) -> dict[str, float]:
    """The gateway's counters, as the broker has them, without those that wait for their second reading."""
    tails = ("energy_delivered", "energy_received", "solar/energy_lifetime")
    prefix = f"enphase/{home.serial}/"
    return {
        topic: float(text)
        for topic, text in home.seen.items()
        if topic.startswith((f"{prefix}meter", f"{prefix}site/solar")) and topic.endswith(tails) and text != "None"
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
@pytest.mark.may_log("all its counters are 0, as they are while a gateway starts")
async def test_a_state_that_is_lost_or_damaged_lets_nothing_fall(
    state: str, tmp_path: Path, warned: Sequence[str]
) -> None:
    """At this moment the gateway shows zeros."""
    async with house(tmp_path) as home:
        async with running(home.settings()):
            await home.settled()
        await home.ended(home.settings())
        before = lifetimes(home)
        assert f"enphase/{home.serial}/site/solar/energy_lifetime" in before
        folder = tmp_path / "state"
        if state == "lost":
            shutil.rmtree(folder)
        else:
            content = {"empty": "", "garbage": '{"version": 1, "extra": [', "newer": '{"version": 3}'}[state]
            files = list(folder.glob("gateway-*counters*.json"))
            assert len(files) == 1
            files[0].write_text(content)
        await _stays(home, before)
        assert len([line for line in warned if "can't be understood" in line]) == (state != "lost")
