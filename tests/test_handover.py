"""Discovery changes its form, and Home Assistant keeps entities, names and history."""

import json
import shutil
from pathlib import Path

import pytest
from brokers import watching
from houses import House, house, publish
from running import running, until

from bridge.discovery import MIGRATE_PAYLOAD

FORMS = ("device", "component")


def announced(home: House) -> dict[str, str]:
    """The unique ids, and the topic that announces each."""
    found: dict[str, str] = {}
    for topic, text in home.seen.items():
        if not topic.startswith("homeassistant/") or text == MIGRATE_PAYLOAD:
            continue
        body = json.loads(text)
        entities = body["components"].values() if "components" in body else [body]
        found |= {entity["unique_id"]: topic for entity in entities}
    return found


def said(home: House, since: int) -> list[tuple[str, str]]:
    """The messages to discovery topics, in order: `handover`, `config` or `clear`."""
    words = {MIGRATE_PAYLOAD: "handover", "": "clear"}
    messages = [seen for seen in home.watcher.seen[since:] if seen.topic.startswith("homeassistant/")]
    return [(message.topic, words.get(message.payload, "config")) for message in messages]


async def run_once(home: House, form: str) -> None:
    async with running(home.settings(homeassistant={"discovery": form})):
        await until(lambda: set(home.availability.values()) == {"online"} and bool(announced(home)))
        await until(lambda: home.topic("site/home/energy_lifetime") is not None)
        await until(lambda: MIGRATE_PAYLOAD not in home.seen.values())


@pytest.mark.parametrize(("before", "after"), [FORMS, FORMS[::-1]])
async def test_the_old_form_lets_go_then_the_new_one_comes_then_the_old_one_goes(
    before: str, after: str, tmp_path: Path
) -> None:
    async with house(tmp_path) as home:
        await run_once(home, before)
        old, since = announced(home), len(home.watcher.seen)
        await run_once(home, after)
        new = announced(home)
        other = {unique_id.removeprefix(f"iqgateway_{home.serial}_") for unique_id in new.keys() ^ old.keys()}
        assert other == {"gateway_update"}  # it needs a template, so the component form leaves it out
        assert not set(new.values()) & set(old.values())
        story = said(home, since)
        assert [topic for topic, what in story if what == "handover"] == sorted(set(old.values()))
        assert {topic for topic, what in story if what == "clear"} == set(old.values())
        order = [what for _, what in story]
        first = len(set(old.values()))
        assert order[:first] == ["handover"] * first
        last = [what for topic, what in story if topic in {*new.values()}].count("config")
        assert "clear" not in order[: first + len(set(new.values()))]
        assert last >= len(set(new.values()))


@pytest.mark.parametrize("form", FORMS)
async def test_without_a_change_nothing_is_handed_over(form: str, tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await run_once(home, form)
        since, topics = len(home.watcher.seen), {*announced(home).values()}
        async with running(home.settings(homeassistant={"discovery": form})):
            await until(lambda: {topic for topic, _ in said(home, since)} >= topics)
        assert {what for _, what in said(home, since)} == {"config"}


@pytest.mark.expects_log("no broker listens there")
async def test_what_could_not_be_said_is_said_after_a_restart(tmp_path: Path) -> None:
    """The bridge was stopped before the broker came back."""
    async with house(tmp_path) as home:
        await run_once(home, "device")
        old = set(announced(home).values())
        home.broker.stop()
        by_component = home.settings(homeassistant={"discovery": "component"})
        async with running(by_component):
            await until(lambda: leaving(home) == old)
        home.broker.start()
        async with watching(home.broker.port) as home.watcher:
            await run_once(home, "component")
            await until(lambda: not leaving(home))
            story = said(home, 0)
    assert {topic for topic, what in story if what == "handover"} == old
    assert {topic for topic, what in story if what == "clear"} == old


def leaving(home: House) -> set[str]:
    """The topics that the store remembers because they have to be cleared."""
    (file,) = (home.folder / "state").glob("gateway-*_tree.json")
    return set(json.loads(file.read_text())["leaving"])


async def test_without_discovery_everything_is_taken_back(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await run_once(home, "device")
        since, old = len(home.watcher.seen), set(announced(home).values())
        async with running(home.settings(homeassistant={"discovery": "off"})):
            await until(lambda: not announced(home))
        assert {*said(home, since)} == {(topic, "clear") for topic in old}


@pytest.mark.parametrize(("before", "after"), [FORMS, FORMS[::-1]])
async def test_the_old_form_goes_though_the_state_folder_was_lost(before: str, after: str, tmp_path: Path) -> None:
    """What the broker has of it is handed over, as if nothing had been lost; what is another's stays."""
    places = ("device/iqgateway_1_gateway", "sensor/iqgateway_1_site_solar_power", "sensor/freezer")
    others = {f"homeassistant/{place}/config": json.dumps({"unique_id": place}) for place in places}
    async with house(tmp_path) as home:
        await run_once(home, before)
        old = announced(home)
        for topic, text in others.items():
            await publish(home.broker, topic, text, "-r")
        shutil.rmtree(tmp_path / "state")
        since = len(home.watcher.seen)
        await run_once(home, after)
        await until(lambda: not {*old.values()} & home.seen.keys())
        story = [(topic, what) for topic, what in said(home, since) if topic not in others]
        assert {topic for topic, what in story if what == "handover"} == {*old.values()}
        assert {topic for topic, what in story if what == "clear"} == {*old.values()}
        assert [what for _, what in story[: len({*old.values()})]] == ["handover"] * len({*old.values()})
        assert {topic: home.seen[topic] for topic in others} == others
