"""`setup`, with the answers of a person, a simulated home, its cloud and a real broker."""

import os
import pty
import select
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Mosquitto, password_lines
from cli import NOWHERE, Shell, Told, served, shell
from dotenv import dotenv_values
from houses import NOON_HOUR
from nearby import LOOPBACK, alone, announced
from programs import BRIDGE_COMMAND

from bridge.commands import setup
from bridge.commands.session import CommandTiming
from bridge.simulator import PASSWORD, USER, Simulator

__all__ = ["alone", "shell"]
pytestmark = pytest.mark.usefixtures("alone")
BROKER_USER, BROKER_PASSWORD = "bridge", 'it\'s "hard" #1 $\\ to quote'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    folder = tmp_path_factory.mktemp("broker")
    with Mosquitto(folder, *password_lines(folder, BROKER_USER, BROKER_PASSWORD)) as running:
        yield running


@pytest.fixture
def home() -> Simulator:
    return Simulator("three-phase", start_hour=NOON_HOUR)


@pytest.fixture
def address(shell: Shell, home: Simulator) -> Iterator[str]:
    """The only setting about the home is the address of its cloud."""
    with served(shell, home, with_cloud=True) as place:
        shell.unset("gateway__host")
        shell.secrets |= {PASSWORD, BROKER_PASSWORD, home.token()}
        yield place


def answered(shell: Shell, *answers: str, arguments: tuple[str, ...] = (), listen: float = 0.1) -> Told:
    """Run `setup` with these answers; it listens for gateways so many seconds."""
    told = shell.run(
        *("setup", "--interface", LOOPBACK, *arguments),
        stdin="".join(f"{line}\n" for line in answers),
        timing=CommandTiming(announcement=listen),
    )
    assert not Path(".env.tmp").exists()
    return told


def test_an_account_a_found_gateway_and_a_broker(
    shell: Shell, home: Simulator, address: str, broker: Mosquitto
) -> None:
    with announced(home.serial, int(address.rpartition(":")[2])):
        told = answered(shell, "", USER, PASSWORD, broker.url, BROKER_USER, BROKER_PASSWORD, listen=8.0)
    assert told.code == 0
    assert f"gateway {home.serial} at " in told.text
    assert "Now: iqgateway2mqtt run" in told.text
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600
    written = dotenv_values(".env")
    assert written["BRIDGE_GATEWAY__USERNAME"] == USER
    assert written["BRIDGE_GATEWAY__PASSWORD"] == PASSWORD
    assert written["BRIDGE_MQTT__URL"] == broker.url
    assert written["BRIDGE_MQTT__PASSWORD"] == BROKER_PASSWORD
    assert "BRIDGE_GATEWAY__TOKEN" not in written
    assert shell.run("check").code == 0, "what it wrote is all that is needed"


@pytest.mark.parametrize(
    ("called", "path", "shown"),
    [
        (".venv/bin/iqgateway2mqtt", "/usr/bin", ".venv/bin/iqgateway2mqtt"),
        ("my venv/bin/iqgateway2mqtt", "/usr/bin", "'my venv/bin/iqgateway2mqtt'"),
        ("{here}/iqgateway2mqtt", "{here}", "iqgateway2mqtt"),
        ("/somewhere/bridge/__main__.py", "/usr/bin", "iqgateway2mqtt"),
    ],
)
def test_what_to_do_next_can_be_typed_as_it_stands(
    called: str, path: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "iqgateway2mqtt"
    program.touch(mode=0o700)
    monkeypatch.setenv("PATH", path.format(here=tmp_path))
    monkeypatch.setattr(sys, "argv", [called.format(here=tmp_path), "setup"])
    assert setup._program_name() == shown


def test_a_pasted_token_and_a_toml_file(
    shell: Shell, home: Simulator, address: str, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = home.token()
    answers = (address, "", token, broker.url, BROKER_USER, BROKER_PASSWORD)
    told = answered(shell, *answers, arguments=("--output", "etc/bridge.toml"))
    assert told.code == 0
    written = tomllib.loads(Path("etc/bridge.toml").read_text())
    assert written["gateway"]["token"] == token
    assert written["mqtt"] == {"url": broker.url, "username": BROKER_USER, "password": BROKER_PASSWORD}
    assert stat.S_IMODE(Path("etc/bridge.toml").stat().st_mode) == 0o600
    monkeypatch.setenv("BRIDGE_CONFIG", "etc/bridge.toml")
    assert shell.run("check").code == 0


def test_wrong_answers_are_told_and_asked_for_again(shell: Shell, address: str, broker: Mosquitto) -> None:
    told = answered(
        shell,
        *(NOWHERE, address, USER, "wrong password", "", "no token", USER, PASSWORD),
        *("mqtt://" + NOWHERE, "", broker.url, BROKER_USER, "wrong", broker.url, BROKER_USER, BROKER_PASSWORD),
    )
    assert told.code == 0
    problems = [line.text for line in told.of("problem")]
    assert len(problems) == 5
    assert "connection refused" in problems[0]
    assert "refuses the password" in problems[1]
    assert "token" in problems[2]
    assert "no broker listens there" in problems[3]
    assert "not authorized" in problems[4]


def test_the_environment_is_shown_only_where_it_is_asked_for(shell: Shell, address: str, broker: Mosquitto) -> None:
    shell.secrets.clear()  # `--show` prints secrets
    answers = (address, USER, PASSWORD, broker.url, BROKER_USER, BROKER_PASSWORD)
    told = answered(shell, *answers, arguments=("--show",))
    assert told.code == 0
    assert f"\nBRIDGE_GATEWAY__PASSWORD='{PASSWORD}'\n" in told.text
    assert not Path(".env").exists()


def test_it_gives_up_where_nothing_works(shell: Shell) -> None:
    told = answered(shell, *[NOWHERE] * 5)
    assert told.code == 78
    assert "iqgateway2mqtt check" in told.errors
    assert not Path(".env").exists()


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("/etc/iqgateway2mqtt/settings.toml", "systemctl enable --now iqgateway2mqtt"),
        ("/etc/iqgateway2mqtt/attic/settings.toml", "systemctl enable --now iqgateway2mqtt@attic"),
        ("/etc/iqgateway2mqtt/other.toml", "BRIDGE_CONFIG=/etc/iqgateway2mqtt/other.toml iqgateway2mqtt run"),
        ("/srv/settings.toml", "BRIDGE_CONFIG=/srv/settings.toml iqgateway2mqtt run"),
    ],
)
def test_it_says_what_to_do_next(file: str, command: str) -> None:
    assert setup._start_line(Path(file)) == command


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ([b"\x04"], 78, b"nothing was written"),
        ([b"\n", b"\x04"], 78, b"nothing was written"),
        ([b"\x03"], 130, b""),
    ],
    ids=["Ctrl-D", "Ctrl-D at a secret", "Ctrl-C"],
)
def test_keys_that_end_it_end_it_quietly(address: str, keys: list[bytes], code: int, said: bytes) -> None:
    """On a real terminal, after the gateway has been identified."""
    ours, its = pty.openpty()
    heeding = ("env", "--default-signal=INT")  # programs that a shell starts in the background ignore Ctrl-C
    command = (*heeding, "setsid", "--ctty", "--wait", *BRIDGE_COMMAND, "setup", "--interface", LOOPBACK)
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        seen = b""
        for wanted, key in zip(
            (b"envoy.local]: ", b"paste a token): ", b"not shown): "),
            [f"{address}\n".encode(), *keys],
            strict=False,
        ):
            seen = _until_shown(ours, wanted)
            os.write(ours, key)
        while True:
            if not select.select([ours], [], [], 1)[0]:
                os.write(ours, keys[-1])  # a program that was not reading yet may have missed the key
            elif more := _read(ours):
                seen += more
            else:
                break
    os.close(ours)
    assert process.returncode == code
    assert said in seen
    assert b"Traceback" not in seen
    assert not Path(".env").exists()


def _until_shown(terminal: int, text: bytes) -> bytes:
    """The output until this text, or until the end. If the text does not come, the test fails."""
    seen = b""
    while text not in seen:
        assert select.select([terminal], [], [], 60)[0], f"not shown: {text!r}, but {seen!r}"
        if not (more := _read(terminal)):
            break
        seen += more
    return seen


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # no process has the terminal open any more
        return b""


def test_who_leaves_leaves_nothing(shell: Shell, address: str) -> None:
    told = answered(shell, address, USER)
    assert told.code == 78
    assert "nothing was written" in told.errors
    assert not Path(".env").exists()


def test_a_file_that_is_there_is_not_touched(shell: Shell) -> None:
    Path(".env").write_text("OTHERS=1\n")
    told = answered(shell)
    assert told.code == 78
    assert "--output: .env exists already" in told.errors
    assert Path(".env").read_text() == "OTHERS=1\n"


@pytest.mark.parametrize("output", ["barrier/settings.toml", "barrier/more/.env"])
def test_where_nothing_can_be_written_nobody_is_asked(shell: Shell, output: str) -> None:
    Path("barrier").write_text("a file")
    told = answered(shell, NOWHERE, arguments=("--output", output))
    assert (told.code, told.text) == (78, "")
    assert f"--output: {output} can't be written: " in told.errors


def test_what_a_dotenv_file_would_expand_goes_into_a_toml_file(tmp_path: Path) -> None:
    assert "iqgateway2mqtt.toml" in setup._save({"mqtt": {"password": "${HOME}"}}, tmp_path / ".env")
    assert tomllib.loads((tmp_path / "iqgateway2mqtt.toml").read_text()) == {"mqtt": {"password": "${HOME}"}}


def test_legacy_firmware_is_asked_for_no_token(shell: Shell, broker: Mosquitto) -> None:
    simulator = Simulator("legacy", start_hour=NOON_HOUR)
    with served(shell, simulator, tls=False) as address:
        shell.unset("gateway__host")
        told = answered(shell, f"http://{address}", broker.url, BROKER_USER, BROKER_PASSWORD)
    assert told.code == 0
    assert "Enphase account" not in told.text


@pytest.mark.parametrize("value", ["simple", "it's", 'a"b', "a b #c", "back\\slash", "$HOME", "ümläut", "a=b"])
def test_values_survive_both_kinds_of_file(value: str, tmp_path: Path) -> None:
    answers = {"mqtt": {"password": value}}
    file = tmp_path / "one.env"
    file.write_text(setup.environment(answers))
    assert dotenv_values(file, interpolate=False)["BRIDGE_MQTT__PASSWORD"] == value
    assert tomllib.loads(setup.toml(answers)) == answers
