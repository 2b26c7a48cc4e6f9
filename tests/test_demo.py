"""Tests of the demo and the simulated gateway, as used by a person who has just cloned the project."""

import asyncio
import os
import pty
import re
import shlex
import signal
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from fcntl import ioctl
from pathlib import Path

import pytest
from brokers import Mosquitto, send, watching
from programs import BRIDGE_COMMAND, Program, started
from running import tree, until

from bridge.simulator import HOMES

SERIAL = HOMES["three-phase"].serial
WATCH_COMMAND = re.compile(r"mosquitto_sub -h \S+ -p \d+ -t 'enphase/#' -v")
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
        assert program.err == ["stopped"]
    assert names(folder.parent) == [folder.name]
    assert names(folder) == []


async def test_the_demo_with_a_broker_of_ones_own(folder: Path) -> None:
    """Devices appear in Home Assistant, and disappear at the end of the demo."""
    with Mosquitto(folder.parent) as broker:
        async with watching(broker.port) as watcher, demo("--mqtt", broker.url) as (program, watch_command):
            assert f"-p {broker.port} " in watch_command
            await until(lambda: tree(watcher).get("enphase/bridge/state") == "online")
            await until(lambda: f"homeassistant/device/iqgateway_{SERIAL}_gateway/config" in tree(watcher))
            await until(lambda: PV in tree(watcher))
            assert await program.stop(signal.SIGTERM) == 0
            await until(lambda: not tree(watcher))
    assert names(folder) == []


async def test_a_broker_that_can_not_be_is_one_clear_line(folder: Path) -> None:
    async with started(*BRIDGE_COMMAND, "demo", "--mqtt", "mqtt://user:hunter2@host:port") as program:
        assert await program.ended() == 78
    assert len(program.err) == 1
    assert program.err[0].startswith("iqgateway2mqtt: --mqtt: must look like mqtt://host:1883")
    assert names(folder) == []


async def test_the_demo_in_a_terminal(folder: Path) -> None:
    """The demo redraws a table; Ctrl-C restores the terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    before, screen = termios.tcgetattr(theirs), bytearray()
    loop = asyncio.get_running_loop()

    def read() -> None:
        with suppress(OSError):  # the other end of the terminal is closed
            screen.extend(os.read(ours, 65536))

    loop.add_reader(ours, read)
    environment = {**os.environ, "TERM": "xterm-256color"}
    command = ("setsid", "--ctty", *BRIDGE_COMMAND, "demo")
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    try:
        await until(lambda: screen.count(b"live/pv/power") > 2)
        assert WATCH_COMMAND.search(screen.decode(errors="replace"))
        os.write(ours, b"\x03")
        await until(lambda: process.returncode is not None)
        assert process.returncode == 0
        assert screen.rfind(b"\x1b[?25h") > screen.rfind(b"\x1b[?25l") > 0
        assert b"Traceback" not in screen
        assert termios.tcgetattr(theirs) == before
    finally:
        loop.remove_reader(ours)
        send(process, signal.SIGKILL)
        await process.wait()
        os.close(ours)
        os.close(theirs)
    assert names(folder) == []


def assignments(lines: list[str]) -> list[dict[str, str]]:
    """Return lines of `NAME=value` as a dictionary, as a shell reads them."""
    words = [shlex.split(line) for line in lines if line.startswith("BRIDGE_")]
    return [dict(word.split("=", 1) for word in line) for line in words]


@pytest.mark.parametrize("home", ["three-phase", "legacy"])
async def test_what_simulate_prints_is_all_that_once_needs(home: str, tmp_path: Path) -> None:
    async with started(*BRIDGE_COMMAND, "simulate", "--home", home, "--port", "0") as gateway:
        await until(lambda: any("Ctrl-C" in line for line in gateway.out))
        lines = assignments(gateway.out)
        ways = [[line for line in lines if "BRIDGE_GATEWAY__USERNAME" not in line]]
        ways.append([line for line in lines if "BRIDGE_GATEWAY__TOKEN" not in line])
        for number, way in enumerate(ways):
            settings = {name: value for line in way for name, value in line.items()}
            settings["BRIDGE_STATE_DIR"] = str(tmp_path / f"state-{number}")
            async with started(*BRIDGE_COMMAND, "once", env=settings) as once:
                assert await once.ended() == 0, once.err
            assert f"enphase/{HOMES[home].serial}/energy/production/power" in {line.split()[0] for line in once.out}
        assert await gateway.stop() == 0
        assert gateway.err == []
