"""The service under a real systemd, on a fresh Debian where docs/install.md was followed line by line."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from brokers import TIMEOUT_S, password_lines, program
from machines import TOOLS, Machine, booted, debian, install, layered, properties, required

from bridge.simulator import Simulator

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "install.md"
UNIT_FILE, TEMPLATE_FILE = "iqgateway2mqtt.service", "iqgateway2mqtt@.service"
COPIED_FILES = (
    "bridge",
    "systemd",
    "docs",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "ARCHITECTURE.md",
)
GATEWAY_ADDRESS, BROKER_ADDRESS = "127.0.0.1:8443", "127.0.0.1:1883"
BROKER_USER, BROKER_PASSWORD = "enphase", "a broker's password"
MAX_EXPOSURE_SCORE = 1.5


def command(words: str, kind: str = "sh") -> str:
    """The only code block of the guide with these words: a command to type, or a text to write."""
    section = GUIDE.read_text().partition("\n## systemd\n")[2].partition("\n## ")[0]
    blocks = re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)
    (found,) = [block for block in blocks if words in block]
    return str(found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root folder of a Debian on which the program is installed and which has not booted yet."""
    required(*TOOLS)
    with layered(debian(), tmp_path_factory.mktemp("debian")) as root:
        (root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {os.uname().nodename}\n")
        _copy_sources(root / "root" / "iqgateway2mqtt")
        install(root, f"apt-get -q update\ncd ~/iqgateway2mqtt\n{command('pip install')}")
        yield root


def _copy_sources(folder: Path) -> None:
    folder.mkdir()
    for name in COPIED_FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)


@pytest.fixture(scope="module")
def machine(installed: Path) -> Iterator[Machine]:
    with booted(installed) as up:
        yield up


@contextmanager
def neighbour(machine: Machine, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program of this system in the machine's network, such as the gateway."""
    process = subprocess.Popen(machine.in_network(*command), stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


@contextmanager
def a_gateway(machine: Machine) -> Iterator["subprocess.Popen[bytes]"]:
    port = GATEWAY_ADDRESS.rpartition(":")[2]
    with neighbour(machine, sys.executable, "-m", "bridge", "simulate", "--port", port) as process:
        yield process


@contextmanager
def a_broker(machine: Machine, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    lines = [
        f"listener {BROKER_ADDRESS.rpartition(':')[2]} 127.0.0.1",
        "user root",
        *password_lines(folder, BROKER_USER, BROKER_PASSWORD),
    ]
    config = folder / "mosquitto.conf"
    config.write_text("\n".join([*lines, ""]))
    with neighbour(machine, program("mosquitto"), "-c", str(config)) as process:
        yield process


@pytest.fixture(scope="module")
def gateway(machine: Machine) -> Iterator["subprocess.Popen[bytes]"]:
    with a_gateway(machine) as process:
        yield process


@pytest.fixture(scope="module")
def broker(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[bytes]"]:
    with a_broker(machine, tmp_path_factory.mktemp("broker")) as process:
        yield process


def until(machine: Machine, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen in time: {about(machine)}\n{journal(machine)}")
        time.sleep(0.2)


def listening(machine: Machine) -> set[str]:
    """The addresses where a program listens in the machine."""
    table = (line.split() for line in machine.ask("cat", "/proc/net/tcp").splitlines()[1:])
    ports = {int(fields[1].partition(":")[2], 16) for fields in table if fields[3] == "0A"}
    return {f"127.0.0.1:{port}" for port in ports}


def about(machine: Machine, unit: str = UNIT_FILE) -> Mapping[str, str]:
    names = ("ActiveState", "SubState", "Result", "StatusText", "MainPID", "NRestarts", "ExecMainStatus")
    return properties(machine, unit, *names)


def publishes(machine: Machine, unit: str = UNIT_FILE) -> bool:
    now = about(machine, unit)
    return (now["ActiveState"], now["StatusText"]) == ("active", "publishing one gateway")


def journal(machine: Machine) -> str:
    return machine.ask("journalctl", "--no-pager", "-o", "cat", "-u", "iqgateway2mqtt*")


def drop_in(machine: Machine, unit: str, *lines: str) -> None:
    """The change of a unit that a person makes with `systemctl edit`."""
    folder = machine.root / "etc" / "systemd" / "system" / f"{unit}.d"
    folder.mkdir(exist_ok=True)
    (folder / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))
    machine.ask("systemctl", "daemon-reload")


# In the order of a person's steps: each test begins with the state that the one before has left.


@pytest.mark.parametrize("unit", [UNIT_FILE, TEMPLATE_FILE.replace("@", "@attic")])
def test_unit_is_valid_and_confined(machine: Machine, unit: str) -> None:
    checked = machine.run("systemd-analyze", "verify", unit)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    worst = f"--threshold={MAX_EXPOSURE_SCORE * 10:.0f}"
    score = machine.run("systemd-analyze", "security", "--offline=true", "--no-pager", worst, unit)
    assert score.returncode == 0, score.stdout


def test_setup_writes_the_settings(machine: Machine, tmp_path: Path) -> None:
    answers = (
        Simulator("three-phase").token(),
        GATEWAY_ADDRESS,
        *("", "", BROKER_ADDRESS, BROKER_USER, BROKER_PASSWORD, ""),
        "",
    )
    with a_gateway(machine), a_broker(machine, tmp_path):
        until(machine, lambda: listening(machine) >= {GATEWAY_ADDRESS, BROKER_ADDRESS})
        done = machine.run("sh", "-c", command("setup --output"), stdin="\n".join(answers))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"\nNow: {command('systemctl enable').splitlines()[0]}\n")
    assert machine.ask("stat", "-c", "%a %U", "/etc/iqgateway2mqtt/settings.toml") == "600 root"


def test_it_starts_before_gateway_and_broker(machine: Machine) -> None:
    assert "active (running)" in machine.shell(command("systemctl enable"))
    now = about(machine)
    assert now["ActiveState"] == "active"
    assert "no connection to the broker mqtt://127.0.0.1:1883" in now["StatusText"]
    assert machine.ask("systemctl", "is-enabled", UNIT_FILE) == "enabled"


@pytest.mark.usefixtures("gateway", "broker")
def test_it_publishes_once_they_are_there(machine: Machine) -> None:
    until(machine, lambda: publishes(machine))
    assert "\n  problem" not in machine.shell(command("as-service check"))
    assert publishes(machine)
    open_to_others = ("find", "/var/lib/private", "-mindepth", "2", "-type", "f", "-not", "-perm", "0600")
    assert machine.ask(*open_to_others) == ""
    assert machine.ask("stat", "-c", "%a", "/var/lib/private") == "700"
    assert BROKER_PASSWORD not in journal(machine)


@pytest.mark.usefixtures("gateway", "broker")
def test_it_comes_back_after_a_crash(machine: Machine) -> None:
    before = about(machine)
    machine.ask("systemctl", "kill", "--kill-whom=main", "-s", "KILL", UNIT_FILE)
    until(machine, lambda: about(machine)["NRestarts"] == str(int(before["NRestarts"]) + 1) and publishes(machine))
    assert about(machine)["MainPID"] != before["MainPID"]


@pytest.mark.usefixtures("gateway", "broker")
def test_it_is_replaced_when_it_hangs(machine: Machine) -> None:
    drop_in(machine, UNIT_FILE, "WatchdogSec=5")
    machine.ask("systemctl", "restart", UNIT_FILE)
    until(machine, lambda: publishes(machine))
    before = about(machine)
    machine.ask("kill", "-STOP", before["MainPID"])
    until(machine, lambda: about(machine)["NRestarts"] != before["NRestarts"] and publishes(machine))
    assert "Watchdog timeout (limit 5s)!" in journal(machine)
    assert "Fatal Python error: Aborted" in journal(machine)


@pytest.mark.usefixtures("gateway", "broker")
def test_reload_takes_good_settings_and_refuses_bad_ones(machine: Machine) -> None:
    settings = machine.root / "etc" / "iqgateway2mqtt" / "settings.toml"
    good = settings.read_text()
    before = about(machine)
    settings.write_text(f"{good}\n[poll]\nprofle = 'live'\n")
    machine.ask("systemctl", "reload", UNIT_FILE)
    refusal = "the new settings can't be used, the old ones are kept: BRIDGE_POLL__PROFLE: no such setting; "
    until(machine, lambda: refusal in journal(machine))
    assert publishes(machine)

    settings.write_text(good.replace("[mqtt]", "[mqtt]\nbase_topic = 'elsewhere'"))
    machine.ask("systemctl", "reload", UNIT_FILE)
    user = ("-u", BROKER_USER, "-P", BROKER_PASSWORD)
    seen = machine.in_network(
        program("mosquitto_sub"), *user, "-t", "elsewhere/bridge/state", "-C", "1", "-W", "30"
    )
    assert subprocess.run(seen, capture_output=True, text=True, check=True).stdout == "online\n"
    until(machine, lambda: publishes(machine))
    after = about(machine)
    assert (after["MainPID"], after["NRestarts"]) == (before["MainPID"], before["NRestarts"])


def test_it_stops_soon_whoever_hangs(
    machine: Machine, gateway: "subprocess.Popen[bytes]", broker: "subprocess.Popen[bytes]"
) -> None:
    """After five seconds systemd would kill the program and report it."""
    drop_in(machine, UNIT_FILE, "TimeoutStopSec=5")
    machine.ask("systemctl", "restart", UNIT_FILE)
    until(machine, lambda: publishes(machine))
    gateway.send_signal(signal.SIGSTOP)
    broker.send_signal(signal.SIGSTOP)
    try:
        machine.ask("systemctl", "stop", UNIT_FILE)
    finally:
        gateway.send_signal(signal.SIGCONT)
        broker.send_signal(signal.SIGCONT)
    now = about(machine)
    assert (now["ActiveState"], now["Result"], now["ExecMainStatus"]) == ("inactive", "success", "0")


def test_a_wrong_setting_is_told_once(machine: Machine) -> None:
    settings = machine.root / "etc" / "iqgateway2mqtt" / "settings.toml"
    good = settings.read_text()
    settings.write_text("[gateway]\nhst = '192.168.1.20'\n")
    try:
        machine.run("systemctl", "start", UNIT_FILE)
        until(machine, lambda: about(machine)["ActiveState"] == "failed")
    finally:
        settings.write_text(good)
    now = about(machine)
    assert (now["ExecMainStatus"], now["NRestarts"]) == ("78", "0")
    assert "BRIDGE_GATEWAY__HST: no such setting; did you mean BRIDGE_GATEWAY__HOST?" in journal(machine)


@pytest.mark.usefixtures("gateway", "broker")
def test_several_instances_share_nothing(machine: Machine) -> None:
    """One has all its settings in one file, the other has its secret in a separate one."""
    folder = machine.root / "etc" / "iqgateway2mqtt"
    by_hand = (
        command("[gateway]", "toml")
        .replace("192.168.1.20", GATEWAY_ADDRESS)
        .replace("192.168.1.10:1883", BROKER_ADDRESS)
    )
    by_hand = by_hand.replace('"enphase"', f'"{BROKER_USER}"').replace('"secret"', f'"{BROKER_PASSWORD}"')
    token, settings = Simulator("three-phase").token(), {"attic": (folder / "settings.toml").read_text()}
    settings["barn"] = "\n".join(line for line in by_hand.splitlines() if not line.startswith("token"))
    paste = command("secrets/gateway__token").replace("iqgateway2mqtt/secrets", "iqgateway2mqtt/barn/secrets")
    assert machine.run("sh", "-c", paste, stdin=f"{token}\n").returncode == 0
    for name, text in settings.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "settings.toml").write_text(text)
        (folder / name / "settings.toml").chmod(0o600)
        machine.ask("systemctl", "start", f"iqgateway2mqtt@{name}.service")
    for name in settings:
        until(machine, lambda: publishes(machine, f"iqgateway2mqtt@{name}.service"))  # noqa: B023 - called at once
        assert (machine.root / "var/lib/private" / f"iqgateway2mqtt-{name}" / "bridge.json").is_file()
        assert "\n  problem" not in machine.ask("iqgateway2mqtt-as-service", f"@{name}", "check")
