"""Tests of the demo and the simulated gateway, as used by a person who has just cloned the project."""

import asyncio
import json
import os
import pty
import re
import shlex
import signal
import socket
import struct
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path
from urllib.parse import quote

import httpx
import pyte
import pytest
from brokers import Mosquitto, password_lines, send, watching
from houses import publish
from programs import BRIDGE_COMMAND, Program, started
from running import tree, until

from bridge.commands.demo import _look_on
from bridge.commands.picture import Picture
from bridge.model import Message, Priority
from bridge.settings import MqttSettings
from bridge.simulator import HOMES

SERIAL = HOMES["three-phase"].serial
WATCH_COMMAND = re.compile(r"mosquitto_sub -h \S+ -p \d+(?: -u .*)? -t 'enphase/#' -v")
PAINT = re.compile(r"\x1b\[[0-9;]*m")
"""Colours."""
PV = f"enphase/{SERIAL}/live/pv/power"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which programs must leave empty."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    return temporary


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@asynccontextmanager
async def demo(*options: str) -> AsyncIterator[tuple[Program, str]]:
    """Run the demo, and yield it with the command line that it prints for watching."""
    async with started(*BRIDGE_COMMAND, "demo", *options) as program:
        await until(lambda: any(WATCH_COMMAND.search(line) for line in program.out))
        yield program, next(found[0] for line in program.out if (found := WATCH_COMMAND.search(line)))


async def test_the_demo_needs_nothing(folder: Path) -> None:
    """The demo has its own broker and gateway. It prints its messages and a command line that prints them, too."""
    async with demo() as (program, watch_command):
        await until(lambda: any(line.startswith(f"{PV} ") for line in program.out))
        async with started(*shlex.split(watch_command)) as other_terminal:
            await until(lambda: any(line.startswith(f"{PV} ") for line in other_terminal.out))
            await until(lambda: len({line.partition(" ")[0] for line in other_terminal.out}) > 400)
            moved = [line for line in other_terminal.out if line.startswith(f"{PV} ")]
            await until(lambda: any(line.startswith(f"{PV} ") and line not in moved for line in other_terminal.out))
            assert await program.stop() == 0
        assert program.err == ["stopped: its broker has stopped with it, and nothing is left behind"]
    assert names(folder.parent) == [folder.name]
    assert names(folder) == []


async def test_the_demo_with_a_broker_of_ones_own(folder: Path) -> None:
    """Devices appear in Home Assistant, and disappear at the end of the demo."""
    with Mosquitto(folder.parent) as broker:
        async with watching(broker.port) as watcher, demo("--mqtt", broker.url) as (program, watch_command):
            assert f"-p {broker.port} " in watch_command
            await until(lambda: tree(watcher).get("enphase/bridge/demo/state") == "online")
            await until(lambda: f"homeassistant/device/iqgateway_{SERIAL}_gateway/config" in tree(watcher))
            await until(lambda: PV in tree(watcher))
            assert await program.stop(signal.SIGTERM) == 0
            await until(lambda: not tree(watcher))
    assert names(folder) == []


async def test_the_demo_obeys_commands_where_they_are_allowed(folder: Path) -> None:
    with Mosquitto(folder.parent) as broker:
        async with (
            watching(broker.port) as watcher,
            demo("--mqtt", broker.url, "--allow", "storage") as (program, _),
        ):
            reserve = f"enphase/{SERIAL}/storage/settings/reserve"
            await until(lambda: reserve in tree(watcher))
            await publish(broker, f"{reserve}/set", "35")
            await until(lambda: tree(watcher)[reserve] == "35")
            states = [
                json.loads(seen.payload)["state"] for seen in watcher.seen if seen.topic.endswith("/response")
            ]
            assert states[:2] == ["accepted", "sent"]
            assert await program.stop(signal.SIGTERM) == 0


async def test_an_unknown_group_is_one_clear_line(folder: Path) -> None:
    async with started(*BRIDGE_COMMAND, "demo", "--allow", "everything") as program:
        assert await program.ended() == 78
    assert program.err[-1].startswith("iqgateway2mqtt: --allow: there is no group 'everything'; there are storage,")
    assert names(folder) == []


async def test_a_broker_that_can_not_be_is_one_clear_line(folder: Path) -> None:
    async with started(*BRIDGE_COMMAND, "demo", "--mqtt", "mqtt://user:hunter2@host:port") as program:
        assert await program.ended() == 78
    assert len(program.err) == 1
    assert program.err[0].startswith("iqgateway2mqtt: --mqtt: must look like mqtt://host:1883")
    assert names(folder) == []


async def test_the_line_to_look_on_has_user_and_password(folder: Path) -> None:
    """It is pasted into a shell. Blanks and quotes in a password are no trouble."""
    password = "it's hunter2"
    _, passwords = password_lines(folder.parent, "guest", password)
    url_of = f"mqtt://guest:{quote(password, safe='')}@127.0.0.1:{{}}".format
    with Mosquitto(folder.parent, "allow_anonymous false", passwords) as broker:
        async with demo("--mqtt", url_of(broker.port)) as (program, watch_command):
            async with started("sh", "-c", f"exec {watch_command}") as other_terminal:
                await until(lambda: any(line.startswith(f"{PV} ") for line in other_terminal.out))
            assert await program.stop() == 0
    removed = f"all its topics and devices are removed from mqtt://127.0.0.1:{broker.port}"
    assert program.err == [f"stopped: {removed}, and nothing is left behind"]


async def test_the_demo_says_what_it_could_not_remove(folder: Path) -> None:
    with Mosquitto(folder.parent) as broker:
        async with demo("--mqtt", broker.url) as (program, _):
            await until(lambda: any(line.startswith(f"{PV} ") for line in program.out))
            broker.stop()
            await until(lambda: any("no broker listens there" in line for line in program.err))
            assert await program.stop() == 0
    assert re.match(rf"stopped: {broker.url} did not take all removals, and \d+ topics", program.err[-1])
    assert program.err[-1].endswith(
        f"`iqgateway2mqtt clean --gateway {SERIAL} --yes` removes the values and devices"
    )


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("mqtts://host", "mosquitto_sub -h host -p 8883 --tls-use-os-certs -t 'enphase/#' -v"),
        ("mqtt://a@host:1884", "mosquitto_sub -h host -p 1884 -u a -t 'enphase/#' -v"),
        ("mqtt://one,mqtt://two", "mosquitto_sub -h one -p 1883 -t 'enphase/#' -v"),
        ("unix:///run/the broker", "mosquitto_sub --unix '/run/the broker' -t 'enphase/#' -v"),
        ("wss://host/mqtt", ""),
    ],
)
def test_the_line_to_look_on_fits_the_broker(url: str, command: str) -> None:
    assert " ".join(_look_on(MqttSettings(url=url))) == command


def test_a_last_picture_shows_what_was_there_before_the_topics_were_removed() -> None:
    picture = Picture("title", ["mosquitto_sub", "-v"])
    sent = [
        Message(f"enphase/1/{name}", "100", priority=Priority.SITE) for name in ("site/home/power", "meter/a/power")
    ]
    for message in sent:
        picture.add(message)
    before = picture.lines(80, 24, ended=True)
    assert [line.split() for line in before if line.startswith("Home")] == [["Home", "100", "W"]]
    for message in sent:
        picture.add(replace(message, payload=""))
    after = picture.lines(80, 24, ended=True)
    assert after[:-1] == before[:-1]
    assert (before[-1], after[-1]) == ("2 topics, 2 messages", "2 topics, 4 messages")


class Terminal:
    """A terminal in which a program runs, and what a person sees on it."""

    def __init__(self, columns: int, lines: int) -> None:
        self._ours, self.theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.seen = bytearray()
        """Everything that was written."""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def read(self) -> None:
        with suppress(OSError):  # there is nothing, or the other end is closed
            piece = os.read(self._ours, 65536)
            self.seen.extend(piece)
            self._stream.feed(piece)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    @property
    def lines(self) -> list[str]:
        return [str(line).rstrip() for line in self._screen.display]

    @asynccontextmanager
    async def running(self, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ours, self.read)
        untold = {name: text for name, text in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        process = await asyncio.create_subprocess_exec(
            *("setsid", "--ctty", *command),
            env={**untold, "TERM": "xterm-256color"},
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
        )
        try:
            yield process
        finally:
            loop.remove_reader(self._ours)
            send(process, signal.SIGKILL)
            await process.wait()
            os.close(self._ours)
            os.close(self.theirs)


FLOWS = ("Solar", "Grid", "Battery", "Home")
TOPIC_CELL = r"(?:meter|live|energy|inverter)/\S+ +-?\d+ [W%]"


def is_picture(lines: Sequence[str], columns: int, cells: int) -> bool:
    """Whether this is the whole picture and nothing else: flows with units, then so many topics in a line."""
    text = "\n".join(lines)
    shape = (
        r"The simulated home three-phase at\s+https://\S+\n\n"
        r"Solar     → +\d+ W\n"
        r"Grid      [→←] +\d+ W  (?:imports|exports)\n"
        r"Battery   [→←] +\d+ W  (?:charges|discharges), \d+ %\n"
        r"Home        +\d+ W\n\n"
        rf"Topics below enphase/{SERIAL}/\n"
        rf"(?:{TOPIC_CELL}(?:  {TOPIC_CELL}){{{cells - 1}}}\n)+\n"
        r"\d+ topics, \d+ messages"
        r"(?:\nWatch from another terminal:\nmosquitto_sub (?:.*\\\n)*.*-v\nCtrl-C stops it\.)?"
    )
    return re.fullmatch(shape, text.strip()) is not None and max(map(len, lines)) == columns


async def test_the_demo_in_a_terminal(folder: Path) -> None:
    """The picture fits each size of the terminal. Ctrl-C restores the terminal, and a last picture stays on it."""
    terminal = Terminal(120, 40)
    before = termios.tcgetattr(terminal.theirs)
    async with terminal.running(*BRIDGE_COMMAND, "demo") as process:
        await until(lambda: is_picture(terminal.lines, 120, 2))
        assert any(WATCH_COMMAND.fullmatch(line) for line in terminal.lines)
        terminal.resize(40, 24)
        await until(lambda: is_picture(terminal.lines, 40, 1) and len(terminal.lines[-1]) > 0)
        terminal.resize(80, 24)
        await until(lambda: is_picture(terminal.lines, 80, 2) and len(terminal.lines[-1]) > 0)
        rows = [line.split()[0] for line in terminal.lines if re.match(TOPIC_CELL, line)]
        assert rows[0].startswith("meter/")
        terminal.type(b"\x03")
        await until(lambda: process.returncode is not None)
        terminal.read()
        assert process.returncode == 0
        _, left, last = terminal.seen.decode().rpartition("\x1b[?1049l")
        assert left, "the usual screen is back"
        *picture, end, _ = PAINT.sub("", last).replace("\r", "").split("\n")
        assert is_picture([line.rstrip() for line in picture], 80, 2)
        assert end == "stopped: its broker has stopped with it, and nothing is left behind"
        assert terminal.seen.rfind(b"\x1b[?25h") > terminal.seen.rfind(b"\x1b[?25l") > 0
        assert b"Traceback" not in terminal.seen
        assert termios.tcgetattr(terminal.theirs) == before
    assert names(folder) == []


def blocks(lines: list[str], start: str) -> list[str]:
    """The paragraphs of an output whose lines begin with this text, as a person would copy them."""
    paragraphs = "\n".join(lines).split("\n\n")
    return [text for text in paragraphs if all(line.startswith(start) for line in text.splitlines())]


@asynccontextmanager
async def simulated(home: str) -> AsyncIterator[Program]:
    async with started(*BRIDGE_COMMAND, "simulate", "--home", home, "--port", "0") as program:
        await until(lambda: any("Ctrl-C" in line for line in program.out))
        yield program


@pytest.mark.parametrize(("home", "ways"), [("three-phase", 2), ("legacy", 1)])
async def test_what_simulate_prints_can_be_pasted(home: str, ways: int, tmp_path: Path) -> None:
    """Each block alone is all that `once` needs: in a file `.env`, and typed into a shell."""
    wanted = f"enphase/{HOMES[home].serial}/energy/production/power"
    async with simulated(home) as gateway:
        files, exports = blocks(gateway.out, "BRIDGE_"), blocks(gateway.out, "export BRIDGE_")
        assert (len(files), len(exports)) == (ways, ways)
        scripts = [f"{text}\n{shlex.join(BRIDGE_COMMAND)} once" for text in exports]
        for text, command in [
            *((text, (*BRIDGE_COMMAND, "once")) for text in files),
            *(("", ("sh", "-c", script)) for script in scripts),
        ]:
            (tmp_path / ".env").write_text(text)
            async with started(*command) as once:
                assert await once.ended() == 0, once.err
            assert wanted in {line.split()[0] for line in once.out}
        assert await gateway.stop() == 0
        assert gateway.err == []


async def test_a_gateway_that_is_simulated_again_is_no_stranger(tmp_path: Path) -> None:
    """Its TLS key is another one. A bridge refused it, since it knew the key of the simulation before."""
    for _ in range(2):
        async with simulated("single-phase") as gateway:
            (tmp_path / ".env").write_text(blocks(gateway.out, "BRIDGE_")[0])
            async with started(*BRIDGE_COMMAND, "once") as once:
                assert await once.ended() == 0, once.err
            assert await gateway.stop() == 0


async def test_simulate_at_a_port_in_use_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with started(*BRIDGE_COMMAND, "simulate", "--port", port) as gateway:
            assert await gateway.ended() == 78
    assert gateway.err == [
        f"iqgateway2mqtt: --port: 127.0.0.1:{port} is in use: name another port, or 0 for any free one"
    ]


async def test_simulate_prints_each_command_that_its_gateway_receives() -> None:
    options = ("--home", "split-phase", "--personality", "loses-answers", "--port", "0")
    async with started(*BRIDGE_COMMAND, "simulate", *options) as gateway:
        await until(lambda: any("Ctrl-C" in line for line in gateway.out))
        settings = dict(line.split("=", 1) for line in blocks(gateway.out, "BRIDGE_")[0].splitlines())
        url, token = settings["BRIDGE_GATEWAY__HOST"], settings["BRIDGE_GATEWAY__TOKEN"]
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(verify=False, base_url=url, headers=headers) as client:  # noqa: S501 (loopback)
            with pytest.raises(httpx.TransportError):
                await client.post("/ivp/ensemble/relay", json={"mains_admin_state": "open"})
            assert (await client.get("/ivp/ensemble/relay")).json()["mains_admin_state"] == "open"
        wanted = 'POST /ivp/ensemble/relay {"mains_admin_state":"open"}: 200'
        await until(lambda: wanted in gateway.out)
        assert await gateway.stop() == 0
        assert sum(line.startswith("POST") for line in gateway.out) == 1


async def test_a_capture_takes_no_commands(tmp_path: Path) -> None:
    async with started(*BRIDGE_COMMAND, "simulate", str(tmp_path), "--personality", "obeys") as gateway:
        assert await gateway.ended() == 78
    assert gateway.err == ["iqgateway2mqtt: --personality: a capture is only played back, and takes no commands"]
