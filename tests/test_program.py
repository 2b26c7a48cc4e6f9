"""The program between its start and its end: signals at any time, and standard streams that are closed or full."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from brokers import free_port, needed
from houses import house
from programs import BRIDGE_COMMAND, HEEDING, started
from running import until

COMMANDS = (
    "run",
    "demo",
    "simulate",
    "once",
    "check",
    "setup",
    "discover",
    "health",
    "token",
    "capture",
    "completion",
)
NOBODY = {"BRIDGE_GATEWAY__HOST": "127.0.0.1:9"}
ENDLESS = {"run", "demo", "simulate"}
CTRL_C_AT_IMPORT = """\
import signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv[1:] = [{command!r}]
from bridge.__main__ import main
main()
sys.exit("went on after Ctrl-C")
"""


def done(
    *command: str, streams: str = "", folder: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; `streams` closes or redirects its streams, as a shell writes it."""
    words = ("bash", "-c", f'exec "$@" {streams}', "bash", *HEEDING, *command)
    environment = {"PATH": "/usr/bin:/bin", **(env or {})}
    return subprocess.run(
        words, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


# Ctrl-C


@pytest.mark.parametrize("module", ["bridge.commands", "pydantic", "bridge.settings", "bridge.simulator"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_ctrl_c_while_the_program_is_loaded(command: str, module: str) -> None:
    ended = done(sys.executable, "-c", CTRL_C_AT_IMPORT.format(module=module, command=command))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0 if command in ENDLESS else 130, "", "")


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("run", "bridge.commands.run"),
        ("demo", "bridge.commands.demo"),
        ("simulate", "bridge.commands.demo"),
        ("once", "bridge.commands.run"),
        ("discover", "bridge.commands.session"),
        ("setup", "bridge.commands.setup"),
    ],
)
def test_ctrl_c_while_a_command_is_loaded(command: str, module: str, tmp_path: Path) -> None:
    code = CTRL_C_AT_IMPORT.format(module=module, command=command)
    ended = done(sys.executable, "-c", code, folder=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0 if command in ENDLESS else 130, "", "\n")


@pytest.mark.parametrize("command", [("check",), ("once",), ("token", "get"), ("capture",)], ids=" ".join)
async def test_ctrl_c_while_a_gateway_is_silent(command: Sequence[str], tmp_path: Path) -> None:
    """A gateway that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        environment = {
            "BRIDGE_GATEWAY__HOST": f"127.0.0.1:{gateway.getsockname()[1]}",
            "BRIDGE_GATEWAY__USERNAME": "a",
            "BRIDGE_GATEWAY__PASSWORD": "b",
            "BRIDGE_STATE_DIR": str(tmp_path),
        }
        async with started(*HEEDING, *BRIDGE_COMMAND, *command, env=environment) as program:
            gateway.setblocking(False)
            connection, _ = await asyncio.get_running_loop().sock_accept(gateway)
            with connection:
                assert await program.stop(signal.SIGINT) == 130
        assert program.err == [""]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [("run",), ("simulate", "--port", "0"), ("demo",)], ids=lambda words: words[0])
async def test_what_is_stopped_as_usual_ends_with_0(command: Sequence[str], number: int, tmp_path: Path) -> None:
    environment = {
        "BRIDGE_GATEWAY__HOST": f"127.0.0.1:{free_port()}",
        "BRIDGE_MQTT__URL": f"mqtt://127.0.0.1:{free_port()}",
        "BRIDGE_STATE_DIR": str(tmp_path),
    }
    async with started(*HEEDING, *BRIDGE_COMMAND, *command, env=environment) as program:
        await until(lambda: bool(program.out or program.err))
        assert await program.stop(number) == 0
    assert not [line for line in program.err if "Traceback" in line]


# Signals that are blocked, streams that are closed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_blocked_signal_stops_the_service_too(tmp_path: Path, number: int) -> None:
    """A supervisor may start programs with its own signals blocked, and the mask is inherited."""
    async with house(tmp_path) as home:
        blocked = ("env", "--block-signal=INT,TERM,HUP")
        async with started(*blocked, *BRIDGE_COMMAND, "run", env=home.environment) as program:
            await until(lambda: home.topic("state") == "online")
            assert await program.stop(number) == 0
        assert home.topic("state") == "offline"


async def test_a_stop_during_the_start_is_not_lost(tmp_path: Path) -> None:
    """As the first process of a container, a program gets no signal that it does not handle yet."""
    code = CTRL_C_AT_IMPORT.replace("SIGINT", "SIGTERM").format(module="bridge.commands", command="run")
    async with started(*HEEDING, sys.executable, "-c", code, env={"BRIDGE_STATE_DIR": str(tmp_path)}) as program:
        assert await program.ended() == 0


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
async def test_the_service_runs_without_standard_streams(tmp_path: Path, closed: str) -> None:
    """No connection and no file gets the number of a closed stream, so that nothing is written into it."""
    async with house(tmp_path) as home:
        environment = {**home.environment, "BRIDGE_LOG__LEVEL": "DEBUG"}
        words = ("bash", "-c", f'exec "$@" {closed}', "bash", *HEEDING, *BRIDGE_COMMAND, "run")
        async with started(*words, env=environment) as program:
            await until(lambda: home.topic("state") == "online")
            files = [os.readlink(f"/proc/{program.process.pid}/fd/{number}") for number in range(3)]  # noqa: PTH115
            assert files[2] == "/dev/null"
            assert not [file for file in files if file.startswith(("socket:", "anon_inode:"))]
            assert await program.stop(signal.SIGTERM) == 0
        assert home.topic("state") == "offline"


def test_setup_without_standard_input_says_so(tmp_path: Path) -> None:
    ended = done(*BRIDGE_COMMAND, "setup", "--interface", "127.0.0.1", streams="<&-", folder=tmp_path)
    assert ended.returncode == 78
    assert "nothing was written" in ended.stderr
    assert "Traceback" not in ended.stderr


# Settings and folders that can't be read


def test_an_unreadable_line_of_dotenv_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('BRIDGE_GATEWAY__HOST="192.0.2.1\nBRIDGE_MQTT__PASSWORD=secret\n')
    text = "iqgateway2mqtt: .env, line 1: must be NAME=value; quotes that are opened must be closed\n"
    for command in ("run", "check", "once"):
        ended = done(*BRIDGE_COMMAND, command, folder=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (78, "", text)


def test_check_where_the_folder_above_the_state_folder_can_not_be_read(tmp_path: Path) -> None:
    needed("setpriv", "util-linux")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    plain = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    environment = {**NOBODY, "BRIDGE_STATE_DIR": str(closed / "state"), "BRIDGE_MQTT__URL": "mqtt://127.0.0.1:9"}
    ended = done(*plain, *BRIDGE_COMMAND, "check", folder=tmp_path, env=environment)
    assert "Traceback" not in ended.stderr
    (line,) = (line for line in ended.stdout.splitlines() if "state folder" in line)
    assert line.split(None, 1)[0] == "note"
    assert f"{closed}/state can't be written" in line
    assert ended.returncode == 69


# Output that can't be written

FULL = "iqgateway2mqtt: the output can't be written: No space left on device\n"


async def test_once_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        environment = {
            "BRIDGE_GATEWAY__HOST": home.url,
            "BRIDGE_GATEWAY__TOKEN": home.simulator.token(),
            "BRIDGE_STATE_DIR": str(tmp_path / "state"),
        }
        words = (*BRIDGE_COMMAND, "once")
        ended = await asyncio.to_thread(done, *words, streams="> /dev/full", env=environment)
    assert (ended.returncode, ended.stderr) == (69, FULL)


@pytest.mark.parametrize(
    "command",
    [("check",), ("--help",), ("--version",), ("completion", "bash"), ("demo",), ("simulate", "--port", "0")],
)
def test_other_output_on_a_full_disk_is_one_line(command: Sequence[str], tmp_path: Path) -> None:
    words = (*BRIDGE_COMMAND, *command)
    ended = done(*words, streams="> /dev/full", folder=tmp_path, env=NOBODY)
    assert (ended.returncode, ended.stderr) == (69, FULL)


@pytest.mark.parametrize("command", [("check",), ("--help",), ("demo",), ("completion", "zsh")])
def test_a_reader_that_has_ended_is_no_error(command: Sequence[str], tmp_path: Path) -> None:
    words = (*BRIDGE_COMMAND, *command)
    ended = done(*words, streams="> >(exec true)", folder=tmp_path, env=NOBODY)
    assert (ended.returncode, ended.stderr) == (130, "")
