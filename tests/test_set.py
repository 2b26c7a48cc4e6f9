"""`set` gives a command to the running bridge, and ends with what has become of it."""

import asyncio
import json
import logging
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from brokers import Mosquitto, Served, program
from cli import EXIT_CONFIGURATION, EXIT_REFUSED, EXIT_UNAVAILABLE, Shell, shell
from houses import House, house
from programs import BRIDGE_COMMAND, HEEDING, started
from running import running, ticking, until

from bridge.commands.report import EXIT_STOPPED, Report
from bridge.commands.session import DEFAULT_TIMING, CommandTiming
from bridge.commands.set import MEANINGS, Conversation, ToldAnswer, Wish
from bridge.control import CommandState

__all__ = ["shell"]
pytestmark = pytest.mark.hasty
RESERVE = "storage/settings/reserve"
HOME = "split-phase"


@dataclass
class Told:
    """The exit code of a command, and its output."""

    code: int
    text: str

    @property
    def states(self) -> list[str]:
        return [line[11:24].strip() for line in self.text.splitlines() if line.startswith("  ")]


def environment(broker: Served) -> dict[str, str]:
    """The settings of a computer that knows no more than the broker."""
    return {"BRIDGE_MQTT__URL": broker.url, "BRIDGE_STATE_DIR": str(broker.folder / "none")}


async def told(broker: Served, *arguments: str) -> Told:
    """Run the real command."""
    async with started(*BRIDGE_COMMAND, "set", *arguments, env=environment(broker)) as running_command:
        code = await running_command.ended()
    text = "\n".join([*running_command.out, *running_command.err])
    assert "Traceback" not in text
    return Told(code, text)


@asynccontextmanager
async def obeying(folder: Path, personality: str, allow: str = "storage,contacts") -> AsyncIterator[House]:
    async with house(folder, HOME, personality) as built, running(built.settings(control={"allow": allow})):
        await built.settled()
        async with ticking(built.clock):
            yield built


@pytest.mark.parametrize(
    ("personality", "arguments", "states", "code"),
    [
        ("obeys", ("relay/nc1/state", "open"), ["accepted", "sent", "confirmed"], 0),
        ("ignores", ("storage/settings/optimized", "OFF"), ["accepted", "sent", "unconfirmed"], 0),
        ("ignores", (RESERVE, "35"), ["accepted", "sent", "ignored"], 1),
        ("cloud-restores", (RESERVE, "35", "--watch"), ["accepted", "sent", "confirmed", "overridden"], 1),
        ("fails", (RESERVE, "35"), ["accepted", "failed"], EXIT_UNAVAILABLE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_each_state_is_told_and_the_exit_code_is_that_of_the_last(
    tmp_path: Path, personality: str, arguments: tuple[str, ...], states: list[str], code: int
) -> None:
    async with obeying(tmp_path, personality) as home:
        done = await told(home.broker, *arguments)
        assert (done.states, done.code) == (states, code), done.text


@pytest.mark.expects_log("a command for generator/1/command is not allowed")
async def test_what_is_refused_or_only_tried_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with obeying(tmp_path, "obeys") as home:
        tried = await told(home.broker, RESERVE, "35", "--dry-run")
        assert (tried.states, tried.code) == (["accepted"], 0)
        assert "PUT /admin/lib/tariff with reserved_soc = 35.0" in tried.text
        for refused in ((RESERVE, "135"), (RESERVE, "35", "--hold", "60"), ("generator/1/command", "on")):
            done = await told(home.broker, *refused)
            assert (done.states, done.code) == (["refused"], EXIT_REFUSED), done.text
        assert home.simulator.writes() == []
    (line,) = [text for record in caplog.records if "refused (135" in (text := record.getMessage())]
    assert ", from iqgateway2mqtt set on " in line


@pytest.mark.parametrize(("observed", "said"), [(True, "ON"), (False, "OFF"), (35, "35"), ("backup", "backup")])
def test_what_is_in_force_is_told_in_the_words_of_its_topic(observed: object, said: str) -> None:
    answer = ToldAnswer.read(json.dumps({"state": "confirmed", "final": True, "observed": observed}).encode())
    assert answer is not None
    assert answer.text == f"it is in force (in force: {said})"


def test_each_state_has_its_exit_code() -> None:
    codes = {state: MEANINGS[state].code for state in CommandState}
    assert {state for state, code in codes.items() if code == 0} == {"accepted", "sent", "confirmed", "unconfirmed"}
    assert {state for state, code in codes.items() if code == 1} == {"ignored", "overridden", "superseded"}
    assert {state for state, code in codes.items() if code == EXIT_UNAVAILABLE} == {"failed", "expired"}
    assert codes[CommandState.REFUSED] == EXIT_REFUSED


@pytest.mark.slow
async def test_what_lasts_is_told_after_the_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with obeying(tmp_path, "obeys") as home:
        report, wish = Report(), Wish(RESERVE, "35", watch=True)
        await Conversation(home.settings(), wish, report, DEFAULT_TIMING).run(None, 300)
        assert "  ok       in force      nothing has changed it back" in capsys.readouterr().out
        assert report.worst == 0


async def test_a_newer_command_ends_the_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with obeying(tmp_path, "obeys") as home:
        first = Conversation(home.settings(), Wish(RESERVE, "35", watch=True), Report(), DEFAULT_TIMING)
        watching = asyncio.create_task(first.run(None, 300))
        await until(lambda: home.topic("command/state") == "confirmed")
        await Conversation(home.settings(), Wish(RESERVE, "36"), Report(), DEFAULT_TIMING).run(None, 300)
        await watching
        assert "  note     superseded    a newer command" in capsys.readouterr().out


async def test_ctrl_c_ends_it_with_the_usual_code(tmp_path: Path) -> None:
    async with obeying(tmp_path, "obeys") as home:
        command = (*HEEDING, *BRIDGE_COMMAND, "set", RESERVE, "35", "--watch")
        async with started(*command, env=environment(home.broker)) as watching:
            await until(lambda: any("confirmed" in line for line in watching.out))
            assert await watching.stop() == EXIT_STOPPED
            assert "Traceback" not in "".join(watching.err)


# Without a bridge, or with more than one: a test writes what bridges publish

SHORT = replace(DEFAULT_TIMING, echo=2, listen=2)
INFO = {"started": "2026-01-01T00:00:00+00:00", "heartbeat": 60}


class Pretended:
    """A broker, to which the test writes what bridges publish."""

    def __init__(self, broker: Mosquitto, shell: Shell) -> None:
        self.broker, self.shell = broker, shell.set(mqtt__url=broker.url)

    def bridge(self, *gateways: str, name: str = "enphase/bridge", state: str = "online") -> None:
        self.keep(f"{name}/info", json.dumps({**INFO, "gateways": gateways}))
        self.keep(f"{name}/state", state)

    def keep(self, topic: str, payload: str) -> None:
        where = ("-p", str(self.broker.port), "-r", "-t", topic, "-m", payload)
        subprocess.run((program("mosquitto_pub"), *where), check=True)

    def told(self, *options: str, timing: CommandTiming = SHORT) -> Told:
        done = self.shell.run("set", RESERVE, "35", *options, timing=timing)
        return Told(done.code, done.text + done.errors)


@pytest.fixture
def pretended(tmp_path: Path, shell: Shell) -> Iterator[Pretended]:
    with Mosquitto(tmp_path) as broker:
        yield Pretended(broker, shell)


def test_without_a_bridge_it_says_so(pretended: Pretended) -> None:
    done = pretended.told()
    assert done.code == EXIT_UNAVAILABLE
    assert "no bridge publishes at enphase/bridge" in done.text


def test_a_bridge_that_is_offline_is_told_from_none(pretended: Pretended) -> None:
    pretended.bridge("122301003111", state="offline")
    done = pretended.told()
    assert done.code == EXIT_UNAVAILABLE
    assert "the bridge is offline: start it" in done.text


def test_a_bridge_without_a_gateway_is_told(pretended: Pretended) -> None:
    pretended.bridge()
    done = pretended.told()
    assert done.code == EXIT_UNAVAILABLE
    assert "has not reached its gateway" in done.text


def test_a_bridge_that_does_not_answer_is_told(pretended: Pretended) -> None:
    pretended.bridge("122301003111")
    done = pretended.told()
    assert (done.states, done.code) == (["no answer"], EXIT_UNAVAILABLE)


def test_several_gateways_are_listed(pretended: Pretended) -> None:
    pretended.bridge("122301003111", "122301003112")
    pretended.bridge("122301003113", name="enphase/bridge/barn")
    done = pretended.told()
    assert done.code == EXIT_CONFIGURATION
    assert "name one of 122301003111, 122301003112, 122301003113" in done.text
    assert "Gateway 122301003113" in pretended.told("--gateway", "122301003113").text


def test_the_only_gateway_of_the_settings_is_meant(pretended: Pretended) -> None:
    pretended.bridge("122301003111", "122301003112")
    pretended.shell.set(gateway__host="roof.local", gateway__serial="122301003112")
    assert "Gateway 122301003112" in pretended.told().text
    assert "Gateway 122301003112" in pretended.told("--gateway", "roof.local").text


def test_a_gateway_that_nobody_polls_is_not_asked(pretended: Pretended) -> None:
    pretended.bridge("122301003111")
    done = pretended.told("--gateway", "122301009999")
    assert done.code == EXIT_UNAVAILABLE
    assert "no bridge polls the gateway 122301009999 now, but 122301003111" in done.text


def test_the_level_of_a_site_is_found(pretended: Pretended) -> None:
    pretended.shell.set(mqtt__base_topic="enphase/{site}", gateway__site="Berlin")
    pretended.bridge("122301003111")
    pretended.keep("enphase/Berlin/122301003111/state", "online")
    assert "Gateway 122301003111" in pretended.told().text


def test_a_broker_that_is_not_there_is_told(pretended: Pretended) -> None:
    pretended.broker.stop()
    assert pretended.told().code == EXIT_UNAVAILABLE


def test_a_broker_that_goes_away_is_told(pretended: Pretended) -> None:
    pretended.bridge("122301003111")
    threading.Timer(2, pretended.broker.stop).start()
    done = pretended.told(timing=DEFAULT_TIMING)
    assert done.code == EXIT_UNAVAILABLE
    assert "the connection to the broker ended" in done.text


@pytest.mark.parametrize("payload", ["{", "[]", '{"state": "confirmed"}', '{"state": [], "final": true}'])
def test_what_no_bridge_has_written_is_no_answer(pretended: Pretended, payload: str) -> None:
    pretended.bridge("122301003111")
    pretended.keep("enphase/122301003111/response", payload)
    pretended.keep("enphase/bridge/other/info", payload)
    assert pretended.told().states == ["no answer"]
