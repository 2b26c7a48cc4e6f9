"""`clean` removes what former settings have left at a broker, and nothing else. All of it runs as real programs."""

import asyncio
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from brokers import Mosquitto, Served, password_lines, watching
from cli import EXIT_REFUSED, EXIT_UNAVAILABLE
from houses import House, house, housed, publish
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from programs import BRIDGE_COMMAND, started
from running import running, settled, until

from bridge.commands.ownership import MAX_BRIDGES
from bridge.settings import Settings

pytestmark = pytest.mark.hasty
FOREIGN = {
    "homeassistant/sensor/zigbee_1/config": '{"origin": {"name": "zigbee2mqtt"}, "name": "x"}',
    "homeassistant/device/iqgateway_77_site/config": '{"origin": {"name": "other"}, "components": {}}',
    "enphase/77/state": "online",
    "zigbee2mqtt/lamp": "on",
}
"""Topics of other programs, some of which look like ours."""


@dataclass
class Done:
    """The exit code of a command, and its output."""

    code: int
    text: str

    def about(self, step: str) -> list[str]:
        return [line for line in self.text.splitlines() if f" {step} " in line]


async def clean(home: House, *arguments: str, **settings: str) -> Done:
    """Run the real command with the settings of a home, apart from these."""
    given = {
        "mqtt__url": home.broker.url,
        "gateway__host": home.url,
        "state_dir": str(home.folder / "state"),
        **settings,
    }
    env = {f"BRIDGE_{name.upper()}": value for name, value in given.items()}
    async with started(*BRIDGE_COMMAND, "clean", *arguments, env=env) as program:
        code = await program.ended()
    await asyncio.sleep(1)
    text = "\n".join([*program.out, *program.err])
    assert "Traceback" not in text
    return Done(code, text)


async def was_run(home: House, **sections: Any) -> None:
    """Run the bridge until it has published everything, and stop it properly."""
    settings = home.settings(**sections)
    async with running(settings):
        root, ha = settings.mqtt.root, settings.homeassistant
        await until(lambda: f"{root}/{home.serial}/site/home/power" in home.seen)
        if ha.discovery != "off":
            await until(lambda: any(f"_{home.serial}_site" in topic for topic in below(home, ha.prefix)))
        await asyncio.sleep(5)
    await home.ended(settings)


def below(home: House, *levels: str) -> set[str]:
    """The topics that the broker has below some levels."""
    return {topic for topic in home.seen if topic.startswith("/".join(levels) + "/")}


async def strangers(home: House, more: Mapping[str, str] = FOREIGN) -> None:
    for topic, payload in more.items():
        await publish(home.broker, topic, payload, "-r")
    await until(lambda: more.keys() <= home.seen.keys())


def offers(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "left at the broker" in record.message]


async def test_a_former_base_topic_is_cleaned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with house(tmp_path) as home:
        await was_run(home)
        await strangers(home)
        await strangers(home, {f"enphase/{home.serial}/other/state": "1"})
        assert offers(caplog) == []
        await was_run(home, mqtt={"base_topic": "solar"})
        (offer,) = offers(caplog)
        assert "former base topic enphase;" in offer
        assert "iqgateway2mqtt clean" in offer

        before = home.seen
        old = below(home, "enphase", home.serial) - {f"enphase/{home.serial}/other/state"}
        listed = await clean(home, mqtt__base_topic="solar")
        assert listed.code == 0
        assert f"enphase: values of gateway {home.serial}: {len(old)} topics" in listed.text
        assert home.seen == before

        done = await clean(home, "--yes", mqtt__base_topic="solar")
        assert done.code == 0
        await until(lambda: not old & home.seen.keys())
        assert home.seen == {
            t: text for t, text in before.items() if t not in old and not t.startswith("enphase/bridge")
        }
        again = await clean(home, mqtt__base_topic="solar")
        assert again.about("leftovers")
        caplog.clear()
        await was_run(home, mqtt={"base_topic": "solar"})
        assert offers(caplog) == []


async def test_a_base_topic_whose_bridge_runs_is_left_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial))
        before = below(home, "enphase")
        for arguments in (("--base", "enphase", "--yes"), ("--base", "enphase", "--gateway", home.serial, "--yes")):
            done = await clean(home, *arguments, mqtt__base_topic="solar")
            assert done.code == 0
            assert [line.partition("alone")[2].strip() for line in done.about("left alone")]
            assert "removed" not in done.text
        assert before <= below(home, "enphase")


async def test_a_state_that_the_broker_only_remembers_protects_nothing(tmp_path: Path) -> None:
    """Broker and bridge lost their power together, so nobody published the last will."""
    async with house(tmp_path) as home:
        await was_run(home)
        info = json.loads(home.seen["enphase/bridge/info"])
        last = {"enphase/bridge/state": "online", "enphase/bridge/info": json.dumps(info | {"heartbeat": 10})}
        await strangers(home, last)
        await until(lambda: home.seen["enphase/bridge/state"] == "online")
        await was_run(home, mqtt={"base_topic": "solar"})
        done = await clean(home, "--yes", mqtt__base_topic="solar")
        assert done.code == 0
        assert "listening" in done.text
        await until(lambda: not below(home, "enphase"))


async def test_a_former_prefix_is_cleaned_when_the_state_is_lost(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await was_run(home, homeassistant={"prefix": "old"})
        shutil.rmtree(tmp_path / "state")
        others = {topic.replace("homeassistant", "old"): text for topic, text in FOREIGN.items()}
        await strangers(home, others)
        await was_run(home)
        assert (await clean(home)).about("leftovers")
        old = below(home, "old") - others.keys()
        kept = home.seen.keys() - old
        assert len(old) > 20
        listed = await clean(home, "--prefix", "old")
        assert f"old: discovery of gateway {home.serial}: {len(old)} topics" in listed.text
        assert old <= home.seen.keys()
        done = await clean(home, "--prefix", "old", "--yes")
        assert done.code == 0
        await until(lambda: not old & home.seen.keys())
        assert home.seen.keys() == kept


@pytest.mark.parametrize(("form", "former"), [("device", "component"), ("component", "device")])
async def test_the_other_form_of_discovery_is_handed_over(form: str, former: str, tmp_path: Path) -> None:
    """The broker has it again from a backup, after the bridge has handed it over itself."""
    async with house(tmp_path) as home:
        await was_run(home, homeassistant={"discovery": former})
        old = below(home, "homeassistant")
        backup = {topic: home.seen[topic] for topic in old}
        shutil.rmtree(tmp_path / "state")
        await was_run(home, homeassistant={"discovery": form})
        new = below(home, "homeassistant") - old
        await asyncio.to_thread(fill, home.broker, backup)
        await until(lambda: old <= home.seen.keys())
        await strangers(home)
        mark = len(home.watcher.seen)
        done = await clean(home, "--yes", homeassistant__discovery=form)
        assert done.code == 0
        await until(lambda: not old & home.seen.keys())
        assert new <= home.seen.keys()
        said = [seen.payload for seen in home.watcher.seen[mark:] if seen.topic == min(old)]
        assert said == ['{"migrate_discovery": true}', ""]
        order = [seen.topic for seen in home.watcher.seen[mark:] if seen.topic in old | new]
        assert [*order[: len(old)], *order[-len(old) :]] == sorted(old) * 2
        assert {*order[len(old) : -len(old)]} == new


async def test_a_gateway_that_left_the_settings_is_offline_and_can_be_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with house(tmp_path) as home, housed(tmp_path, home.broker, "split-phase") as other:
        both = [gateway(home), gateway(other)]
        async with running(settings_of(home, both)):
            await until(lambda: all(f"enphase/{one.serial}/site/home/power" in home.seen for one in (home, other)))
            await until(lambda: any(f"_{other.serial}_site" in topic for topic in below(home, "homeassistant")))
            await asyncio.sleep(5)
        # as after a power cut
        await strangers(home, {f"enphase/{other.serial}/state": "online"})
        await until(lambda: home.seen[f"enphase/{other.serial}/state"] == "online")
        async with running(settings_of(home, both[:1])):
            await until(lambda: home.seen[f"enphase/{other.serial}/state"] == "offline")
            await until(lambda: home.seen[f"enphase/{other.serial}/gateway/problem"] == "no longer polled")
            document = json.loads(home.seen[f"enphase/{other.serial}/gateway"])
            assert document["problem"] == "no longer polled"
            states = [home.seen[topic] for topic in below(home, "enphase", other.serial, "availability")]
            assert {*states} == {"offline"}
            await until(lambda: settled(home.watcher, home.serial))
            await asyncio.sleep(5)
            (offer,) = offers(caplog)
            assert f"gateway {other.serial}, which left the settings" in offer
            gone = {topic for topic in home.seen if other.serial in topic}
            kept = home.seen.keys() - gone
            done = await clean(home, "--yes", gateway__serial=home.serial)
            assert done.code == 0
            await until(lambda: not gone & home.seen.keys())
            assert kept <= home.seen.keys()
        caplog.clear()
        async with running(settings_of(home, both[:1])):
            await until(lambda: home.topic("state") == "online")
            await asyncio.sleep(5)
            assert offers(caplog) == []
            assert not gone & home.seen.keys()


async def test_a_gateway_that_is_taken_off_the_list_is_told_at_once(tmp_path: Path) -> None:
    async with house(tmp_path) as home, housed(tmp_path, home.broker, "split-phase") as other:
        file = tmp_path / "gateways.json"
        file.write_text(json.dumps([gateway(home), gateway(other)]))
        settings = Settings(mqtt={"url": home.broker.url}, gateways_file=file, state_dir=tmp_path / "state")
        problem = f"enphase/{other.serial}/gateway/problem"
        async with running(settings):
            await until(lambda: home.seen.get(problem) == "none")
            file.write_text(json.dumps([gateway(home)]))
            await until(lambda: home.seen[problem] == "no longer polled")
            assert home.seen[f"enphase/{other.serial}/state"] == "offline"
            file.write_text(json.dumps([gateway(home), gateway(other)]))
            await until(lambda: home.seen[problem] == "none")
            await until(lambda: home.seen[f"enphase/{other.serial}/state"] == "online")


def gateway(home: House) -> dict[str, str]:
    return {"host": home.url} | ({"token": home.simulator.token()} if home.secure else {})


def settings_of(home: House, gateways: list[dict[str, str]]) -> Settings:
    return Settings(mqtt={"url": home.broker.url}, gateways=gateways, state_dir=home.folder / "state")


async def test_the_broker_s_rules_may_forbid_it(tmp_path: Path) -> None:
    """The user of the new settings may not write below the former base topic, or not even read there."""
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite #\n")
    with Mosquitto(tmp_path, f"acl_file {rules}") as broker:
        async with housed(tmp_path, broker, "three-phase") as home, watching(broker.port) as home.watcher:
            await was_run(home)
            old = below(home, "enphase", home.serial)
            await was_run(home, mqtt={"base_topic": "solar"})
            for rule, told in (("topic read enphase/#", "still there"), ("topic deny enphase/#", "access")):
                rules.write_text(f"{rule}\ntopic readwrite solar/#\ntopic readwrite homeassistant/#\n")
                broker.signal(1)
                await asyncio.sleep(20)
                done = await clean(home, "--yes", mqtt__base_topic="solar")
                assert (done.code, told in done.text) == (EXIT_REFUSED, True)
            assert old <= home.seen.keys()


async def test_a_broker_that_is_away_or_refuses_us(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    async with housed(tmp_path, broker, "three-phase") as home:
        done = await clean(home)
        assert (done.code, len(done.text.splitlines())) == (EXIT_UNAVAILABLE, 2)
        with Mosquitto(tmp_path, *password_lines(tmp_path, "me", "secret")) as home.broker:
            assert (await clean(home)).code == EXIT_REFUSED


async def test_a_hundred_thousand_topics_of_others_are_no_obstacle(tmp_path: Path) -> None:
    """mosquitto delivers only a part of them. What a lost state has left is found nevertheless."""
    async with house(tmp_path) as home:
        await was_run(home, homeassistant={"discovery": "component"})
        old, former = below(home, "enphase", home.serial), below(home, "homeassistant")
        shutil.rmtree(tmp_path / "state")
        await was_run(home)
        await was_run(home, mqtt={"base_topic": "solar"})
        payload = json.dumps({"origin": {"name": "other"}, "state_topic": "x" * 300})
        crowd = {f"homeassistant/sensor/stranger_{number}/config": payload for number in range(100_000)}
        await asyncio.to_thread(fill, home.broker, crowd)
        done = await clean(home, "--yes", mqtt__base_topic="solar")
        assert done.code == 0
        assert "messages of others below homeassistant" in done.about("limits")[0]
        # The usual subscriber may miss removals among so many messages. Retained ones come in the order of topics.
        strange = "homeassistant/sensor/stranger_99999/config"
        async with watching(home.broker.port, f"enphase/{home.serial}/#", *sorted(former), strange) as watcher:
            await watcher.until(lambda: any(message.topic == strange for message in watcher.seen))
        assert not {message.topic for message in watcher.seen if message.payload} & (old | former)


async def test_made_up_bridges_protect_what_is_there(tmp_path: Path) -> None:
    """A real one may be among those that were not read."""
    async with house(tmp_path) as home:
        await was_run(home)
        old = below(home, "enphase", home.serial)
        await was_run(home, mqtt={"base_topic": "solar"})
        for number in range(MAX_BRIDGES):
            await publish(home.broker, f"enphase/bridge/{number}/state", "online", "-r")
        done = await clean(home, "--yes", mqtt__base_topic="solar")
        assert done.code == EXIT_UNAVAILABLE
        assert old <= home.seen.keys()


def fill(broker: Served, messages: Mapping[str, str]) -> None:
    """Publish retained messages, each with its topic, as another program would."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(0)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    for topic, payload in messages.items():
        client.publish(topic, payload, retain=True)
    client.publish("last", "", qos=1).wait_for_publish()
    client.disconnect()
    client.loop_stop()


async def test_topics_with_and_without_a_site_are_told_apart(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        own = {"token": home.simulator.token(), "site": "Berlin"}
        await was_run(home)
        plain = below(home, "enphase", home.serial)
        async with running(home.settings(gateway=own, mqtt={"base_topic": "enphase/{site}"})):
            await until(lambda: f"enphase/berlin/{home.serial}/site/home/power" in home.seen)
            await asyncio.sleep(5)
        with_site = below(home, "enphase", "berlin", home.serial)
        done = await clean(home, "--yes", mqtt__base_topic="enphase/{site}", gateway__site="Berlin")
        assert (done.code, "left alone" in done.text) == (0, False)
        await until(lambda: not plain & home.seen.keys())
        assert with_site <= home.seen.keys()
        assert "enphase/bridge/state" in home.seen
        shutil.rmtree(tmp_path / "state")
        await was_run(home)
        done = await clean(home, "--yes", "--base", "enphase/{site}")
        assert done.code == 0
        await until(lambda: not with_site & home.seen.keys())
        assert below(home, "enphase", home.serial) >= plain - {f"enphase/{home.serial}/gateway/failures"}
