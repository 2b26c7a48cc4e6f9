"""Commands end to end: a simulated gateway, a real broker, and the bridge between them."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import program
from houses import House, house, publish
from running import running, settled, ticking, until

from bridge.control.values import CONTACTS_STAND_S
from bridge.gateway.client import HttpLimits
from bridge.service.answers import CommandsState
from bridge.service.bridge import Bridge
from bridge.simulator.faults import with_body
from bridge.store import Store

REQUEST_KEYS = {
    "id",
    "set",
    "value",
    "state",
    "reason",
    "observed",
    "at",
    "final",
    "dry_run",
    "event_type",
}


class Commanded:
    """A house whose bridge obeys. `answers` are those at its response topic."""

    def __init__(self, home: House) -> None:
        self.house = home

    @property
    def answers(self) -> list[dict[str, Any]]:
        topic = f"enphase/{self.house.serial}/response"
        return [json.loads(seen.payload) for seen in self.house.watcher.seen if seen.topic == topic]

    @property
    def states(self) -> list[str]:
        return [answer["state"] for answer in self.answers]

    async def set(self, target: str, value: str, *options: str) -> None:
        await publish(self.house.broker, f"enphase/{self.house.serial}/{target}/set", value, *options)

    async def request(self, *options: str, **fields: Any) -> None:
        topic = f"enphase/{self.house.serial}/request"
        await publish(self.house.broker, topic, json.dumps(fields), *options)

    async def until(self, *states: str) -> None:
        """Wait for these answers, and fail at once where another one comes."""
        await until(lambda: len(self.states) >= len(states) or self.states != list(states[: len(self.states)]))
        told = [(answer["state"], answer["reason"]) for answer in self.answers]
        assert self.states == list(states), told


@asynccontextmanager
async def commanded(
    folder: Path, home: str, allow: str, personality: str | None = None, **sections: Any
) -> AsyncIterator[Commanded]:
    async with (
        house(folder, home, personality) as built,
        running(built.settings(control={"allow": allow}, **sections)),
    ):
        await built.settled()
        async with ticking(built.clock):
            yield Commanded(built)


RESERVE = "storage/settings/reserve"
STORAGE_HOME = "split-phase"


@pytest.mark.expects_log(
    "a command for storage/settings/reserve is not allowed: add storage to BRIDGE_CONTROL__ALLOW"
)
async def test_without_permission_a_command_is_refused_and_the_log_names_the_setting(tmp_path: Path) -> None:
    async with commanded(tmp_path, "three-phase", "") as home:
        before = home.house.simulator.count()
        await home.set(RESERVE, "30")
        await home.request(set=RESERVE, value=31, id="mine")
        await home.until("refused", "refused")
        first, second = home.answers
        assert first.keys() == REQUEST_KEYS
        assert (second["id"], second["set"], second["value"]) == ("mine", RESERVE, 31)
        assert (second["final"], second["event_type"], second["observed"]) == (True, "refused", None)
        assert home.house.topic("command") is None
        assert {seen.method for seen in home.house.simulator.requests} <= {"GET", "POST"}
        assert home.house.simulator.count() >= before


async def test_answers_are_not_retained_and_have_qos_1(tmp_path: Path) -> None:
    async with commanded(tmp_path, "three-phase", "storage") as home:
        await home.request(set="no/such/thing", value=1)
        await home.until("refused")
        (seen,) = [one for one in home.house.watcher.seen if one.topic.endswith("/response")]
        assert (seen.qos, seen.retained, seen.content_type) == (1, False, "application/json")


async def test_retained_and_empty_messages_are_no_commands(tmp_path: Path) -> None:
    async with commanded(tmp_path, "three-phase", "storage") as home:
        await home.set("no/such/thing", "1", "-r")
        await home.set("no/such/thing", "")
        await home.set("no/such/thing", "2")
        await home.until("refused")
        assert home.answers[0]["value"] == "2"


async def test_what_can_not_be_read_is_answered_with_the_reason(tmp_path: Path) -> None:
    async with commanded(tmp_path, "three-phase", "storage") as home:
        topic = f"enphase/{home.house.serial}/request"
        await publish(home.house.broker, topic, "{")
        await publish(home.house.broker, topic, json.dumps({"set": RESERVE, "value": "x" * 4000, "id": "long"}))
        await home.until("refused", "refused")
        assert [(answer["id"], answer["reason"]) for answer in home.answers] == [
            (None, "the request is not valid JSON"),
            (None, "the message is longer than 4000 bytes"),
        ]


async def test_the_answer_goes_to_the_response_topic_with_its_correlation_data(tmp_path: Path) -> None:
    async with commanded(tmp_path, "three-phase", "storage") as home:
        asked = json.dumps({"set": "no/such/thing", "value": 1})
        reply = await requested(home.house, f"enphase/{home.house.serial}/request", asked, "elsewhere/answers")
        assert json.loads(reply)["state"] == "refused"


async def requested(home: House, topic: str, payload: str, reply: str) -> str:
    """Ask as `mosquitto_rr` does, which waits for the answer with its correlation data."""
    where = ("-h", "127.0.0.1", "-p", str(home.broker.port), "-V", "5", "-W", "20")
    command = (program("mosquitto_rr"), *where, "-t", topic, "-e", reply, "-m", payload)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode()


@pytest.mark.parametrize("topic", ["enphase/122301003111/request", "homeassistant/device/x/config"])
async def test_no_answer_goes_where_the_bridge_may_write_and_its_sender_may_not(tmp_path: Path, topic: str) -> None:
    """Nor is an answer taken for a request."""
    async with commanded(tmp_path, "three-phase", "storage") as home:
        property_ = ("-V", "5", "-D", "PUBLISH", "response-topic", topic)
        await home.request(*property_, set="no/such/thing", value=1, id="first")
        await home.request(set="no/such/thing", value=1, id="after")
        await home.until("refused", "refused")
        assert [answer["id"] for answer in home.answers] == ["first", "after"]
        assert not [
            seen for seen in home.house.watcher.seen if seen.topic == topic and "event_type" in seen.payload
        ]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_both_versions_of_mqtt_bring_commands(tmp_path: Path, protocol: str) -> None:
    async with commanded(tmp_path, "three-phase", "storage", mqtt={"protocol": protocol}) as home:
        await home.set("no/such/thing", "1")
        await home.until("refused")


# What becomes of commands to gateways of several firmwares

OBEYED, TRIED = ("accepted", "sent", "confirmed"), ("accepted", "sent")
Case = tuple[str, str, str, str, tuple[str, ...]]
STORAGE_CASES: tuple[Case, ...] = (
    ("obeys", "storage/settings/reserve", "35", "35", OBEYED),
    ("obeys", "storage/settings/charge_from_grid", "ON", "ON", OBEYED),
    ("obeys", "storage/settings/reserve_lowest", "12", "12", OBEYED),
    ("obeys", "storage/settings/mode", "economy", "economy", OBEYED),
    ("ignores", "storage/settings/reserve", "35", "35", (*TRIED, "ignored")),
    ("ignores", "storage/settings/optimized", "OFF", "OFF", (*TRIED, "unconfirmed")),
    ("cloud-restores", "storage/settings/reserve", "35", "22", (*OBEYED, "overridden")),
    ("stale-file", "storage/settings/reserve", "35", "22", ("refused",)),
    ("refuses", "storage/settings/reserve", "35", "22", ("accepted", "refused")),
    ("fails", "storage/settings/reserve", "35", "22", ("accepted", "failed")),
    ("loses-answers", "storage/settings/reserve", "35", "35", ("accepted", "confirmed")),
    ("installer-only", "storage/settings/reserve", "35", "22", ("accepted", "refused")),
)
OTHER_CASES: tuple[Case, ...] = (
    ("obeys", "relay/nc1/state", "open", "open", OBEYED),
    ("obeys", "relay/nc1/mode", "soc", "soc", OBEYED),
    ("stale-file", "relay/nc1/soc_low", "25", "25", OBEYED),
    ("obeys", "relay/no1/generator_action", "none", "none", OBEYED),
    ("obeys", "relay/nc1/essential_start", "07:30", "07:30", OBEYED),
    ("loses-answers", "relay/nc1/state", "open", "open", ("accepted", "confirmed")),
    ("obeys", "generator/1/command", "on", "on", OBEYED),
    ("obeys", "generator/1/charge_from_generator", "OFF", "OFF", OBEYED),
    ("obeys", "generator/1/exercise_start", "08:15", "08:15", OBEYED),
    ("obeys", "generator/1/exercise_day", "wed", "wed", OBEYED),
    ("obeys", "generator/1/exercise_minutes", "40", "40", OBEYED),
    ("app-undoes", "generator/1/exercise_weeks", "3", "1", (*OBEYED, "overridden")),
    ("obeys", "relay/mains/grid_connected", "OFF", "OFF", OBEYED),
    ("obeys", "acb/121908002401/sleep", "ON", "ON", OBEYED),
)


@pytest.mark.hasty
@pytest.mark.parametrize("case", [*STORAGE_CASES, *OTHER_CASES], ids=lambda case: f"{case[0]}-{case[1]}")
async def test_the_outcome_is_the_true_one(tmp_path: Path, case: Case) -> None:
    personality, target, value, shown, states = case
    equipped = "ac-batteries" if target.startswith("acb/") else STORAGE_HOME
    async with commanded(tmp_path, equipped, "all,grid", personality) as home:
        await home.set(target, value)
        await home.until(*states)
        await until(lambda: home.house.topic(target) == shown)
        assert len(home.house.simulator.writes()) == (0 if states == ("refused",) else 1)
        await until(lambda: home.house.topic("command/state") == states[-1])
        await until(lambda: json.loads(home.house.topic("command") or "{}").get("state") == states[-1])
        assert f"{value}: {states[-1]}" in json.loads(home.house.topic("command") or "{}")["text"]


@pytest.mark.hasty
async def test_a_value_that_another_answer_tells_is_not_written_where_its_own_is_missing(tmp_path: Path) -> None:
    """Without a controller there is no relay to command, although a sum of everything tells its state."""
    async with commanded(tmp_path, "ac-batteries", "grid", "obeys") as home:
        await until(lambda: home.house.topic("relay/mains/grid_connected") == "ON")
        await home.request(set="relay/mains/grid_connected", value="OFF", force=True)
        await home.until("accepted", "refused")
        assert home.answers[-1]["reason"] == "this gateway does not have it now"
        await until(lambda: home.house.topic("command/state") == "refused")
        assert not home.house.simulator.writes()


@pytest.mark.hasty
async def test_the_last_answer_of_all_is_kept_for_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path, STORAGE_HOME, "obeys") as built:
        home = Commanded(built)
        at = built.settings(control={"allow": "storage"})
        store = Store(at.state_dir)
        async with running(at):
            await built.settled()
            for name in ("first", "second", "third"):
                await home.request(set=RESERVE, value=35, id=name, dry_run=True)
            await home.until("accepted", "accepted", "accepted")
            await until(lambda: len(store.reload(built.serial, CommandsState).answers) == 3)


@pytest.mark.hasty
async def test_the_newest_answer_is_retained_as_the_documents_say_and_announced(tmp_path: Path) -> None:
    async with commanded(tmp_path, STORAGE_HOME, "contacts", "obeys") as home:
        await home.set("relay/nc1/state", "open")
        await home.until("accepted", "sent", "confirmed")
        await until(lambda: settled(home.house.watcher, home.house.serial))
        await until(lambda: json.loads(home.house.topic("command") or "{}").get("state") == "confirmed")
        document = json.loads(home.house.topic("command") or "{}")
        page = Path(__file__).parents[1] / "docs" / "topics.md"
        told = re.findall(r"^\| `command/(\w+)` \|", page.read_text(), re.MULTILINE)
        assert told == [key for key in document if key != "timestamp"]
        assert all(home.house.topic(f"command/{key}") == document[key] for key in told)


@pytest.mark.hasty
async def test_a_write_that_hangs_is_not_repeated(tmp_path: Path) -> None:
    async with commanded(tmp_path, STORAGE_HOME, "storage", "hangs") as home:
        await home.set(RESERVE, "35")
        await home.until("accepted", "failed")
        assert "no whole answer in time" in home.answers[-1]["reason"]
        assert len(home.house.simulator.writes()) == 1


@pytest.mark.hasty
async def test_an_answer_that_is_too_long_does_not_hide_that_it_was_written(tmp_path: Path) -> None:
    async with commanded(tmp_path, STORAGE_HOME, "storage", "obeys") as home:
        too_long = with_body("too long", lambda body: body + b" " * HttpLimits().body)
        home.house.simulator.faults.add("writes", too_long, 1)
        await home.set(RESERVE, "35")
        await home.until("accepted", "confirmed")
        assert home.answers[-1]["reason"] == "the answer was lost"
        assert len(home.house.simulator.writes()) == 1


@pytest.mark.hasty
@pytest.mark.expects_log("more than this has changed: single_rate.sell was")
async def test_a_write_that_spoils_something_else_is_told(tmp_path: Path) -> None:
    async with commanded(tmp_path, STORAGE_HOME, "storage", "spoils-rates") as home:
        await home.set(RESERVE, "35")
        await home.until("accepted", "sent", "sent", "confirmed")
        assert "single_rate.sell" in home.answers[2]["reason"]


@pytest.mark.hasty
async def test_contacts_stand_while_the_gateway_calls_them_open(tmp_path: Path) -> None:
    async with commanded(tmp_path, STORAGE_HOME, "contacts", "hides-contacts") as home:
        topic = f"enphase/{home.house.serial}/relay/nc1/state"
        await home.set("relay/nc1/mode", "soc")
        await home.until("accepted", "sent", "confirmed")
        asked = home.house.simulator.count("/ivp/ensemble/dry_contacts")
        await until(lambda: home.house.simulator.count("/ivp/ensemble/dry_contacts") > asked + 2)
        assert {seen.payload for seen in home.house.watcher.seen if seen.topic == topic} == {"closed"}


SEEN_S = 15
"""Longest time until a change of a contact's settings is confirmed."""


@pytest.mark.hasty
async def test_contacts_stand_over_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path, STORAGE_HOME, "hides-contacts") as built:
        settings = built.settings(control={"allow": "contacts"})
        home, topic = Commanded(built), f"enphase/{built.serial}/relay/nc1/state"
        async with ticking(built.clock):
            async with running(settings):
                await built.settled()
                await home.set("relay/nc1/mode", "soc")
                await home.until("accepted", "sent", "confirmed")
                written, asked = built.clock.now, built.simulator.count("/ivp/ensemble/dry_contacts")
            async with running(settings):
                await until(lambda: built.topic("state") == "online")
                await until(lambda: built.simulator.count("/ivp/ensemble/dry_contacts") > asked)
                await home.set("relay/nc1/state", "open")
                await home.until("accepted", "sent", "confirmed", "accepted")
                assert {seen.payload for seen in built.watcher.seen if seen.topic == topic} == {"closed"}
                await home.until("accepted", "sent", "confirmed", "accepted", "sent", "confirmed")
                assert built.clock.now - written >= CONTACTS_STAND_S - SEEN_S


async def test_a_dry_run_tells_the_request_and_writes_nothing(tmp_path: Path) -> None:
    async with commanded(tmp_path, STORAGE_HOME, "storage", "obeys") as home:
        await home.request(set=RESERVE, value=35, dry_run=True, id="try")
        await home.until("accepted")
        (answer,) = home.answers
        assert (answer["final"], answer["dry_run"], answer["id"]) == (True, True, "try")
        assert answer["reason"] == (
            "PUT /admin/lib/tariff with reserved_soc = 35.0 instead of 22.0, all else as it is"
        )
        assert home.house.simulator.writes() == []


async def test_who_says_who_he_is_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with commanded(tmp_path, STORAGE_HOME, "storage", "obeys") as home:
        options = ("-V", "5", "-D", "PUBLISH", "user-property", "from", "garage")
        await home.request(*options, set=RESERVE, value=135, id="seven")
        await home.until("refused")
    lines = [record.getMessage() for record in caplog.records if "command seven" in record.getMessage()]
    why = "135 can't be set: it takes whole numbers from 0 to 100"
    assert lines == [f"command seven: {RESERVE} 135: refused ({why}), from garage"]


@pytest.mark.hasty
@pytest.mark.expects_log("is polled by another bridge already")
async def test_of_two_bridges_only_the_one_that_polls_obeys(tmp_path: Path) -> None:
    async with house(tmp_path, STORAGE_HOME, "obeys") as built:
        control = {"allow": "storage"}
        first = built.settings(control=control, instance="first")
        async with running(first):
            await built.settled()
            second = built.settings(control=control, instance="second")
            second = second.model_copy(update={"state_dir": tmp_path / "other"})
            async with running(second):
                await until(lambda: "standing_by" in built.seen.get("enphase/bridge/second/info", ""))
                async with ticking(built.clock):
                    home = Commanded(built)
                    await home.set(RESERVE, "35")
                    await home.until("accepted", "sent", "confirmed")
                    assert len(built.simulator.writes()) == 1


@pytest.mark.hasty
async def test_what_is_open_when_the_bridge_stops_has_failed(tmp_path: Path) -> None:
    async with house(tmp_path, STORAGE_HOME, "ignores") as built:
        home = Commanded(built)
        async with running(built.settings(control={"allow": "storage"})):
            await built.settled()
            await home.request(set=RESERVE, value=35, id="open")
            await home.until("accepted", "sent")
        await home.until("accepted", "sent", "failed")
        assert (home.answers[-1]["reason"], home.answers[-1]["final"]) == ("the bridge was stopped", True)
        async with running(built.settings(control={"allow": "storage"})):
            await until(lambda: built.topic("state") == "online")
            await home.request(set=RESERVE, value=35, id="open")
            await home.until("accepted", "sent", "failed", "failed")
        assert len(built.simulator.writes()) == 1


@pytest.mark.hasty
async def test_what_was_open_at_a_crash_is_closed_at_the_next_start(tmp_path: Path) -> None:
    async with house(tmp_path, STORAGE_HOME, "ignores") as built:
        home = Commanded(built)
        at = built.settings(control={"allow": "storage"})
        store = Store(at.state_dir)
        async with running(at):
            await built.settled()
            await home.request(set=RESERVE, value=35, id="open")
            await home.until("accepted", "sent")
            await until(lambda: bool(store.reload(built.serial, CommandsState).answers))
            crashed = store.reload(built.serial, CommandsState)
        await home.until("accepted", "sent", "failed")
        Store(at.state_dir).save(built.serial, crashed)
        async with running(at):
            await home.until("accepted", "sent", "failed", "failed")
        assert home.answers[-1]["reason"] == "the bridge was stopped"


async def test_the_status_has_the_newest_answer_to_each_of_the_newest_commands(tmp_path: Path) -> None:
    async with house(tmp_path, STORAGE_HOME, "obeys") as built:
        bridge = Bridge(built.settings(control={"allow": "storage"}))
        task = asyncio.create_task(bridge.run())
        try:
            await built.settled()
            home = Commanded(built)
            for number in range(8):
                await home.request(set=RESERVE, value=200 + number)
            await home.request(set="no/such/thing", value=1)
            for number in range(3):
                await home.request(set=RESERVE, value=35 + number, dry_run=True, id=f"try {number}")
            await until(lambda: home.states.count("accepted") == 3)
            (gateway,) = bridge.status().gateways
            states = [one.answer.state for one in gateway.commands]
            assert states == ["refused"] * 7 + ["accepted"] * 3
            assert [one.answer.asked.value for one in gateway.commands][-2:] == [36, 37]
            assert bridge.status(details=False).gateways[0].commands == ()
        finally:
            task.cancel()
            await asyncio.wait({task})
