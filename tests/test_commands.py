"""Exit codes, and the one line that names the mistake."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from brokers import free_port
from houses import NOON_HOUR
from programs import BRIDGE_COMMAND, started
from running import until

from bridge.commands import main
from bridge.simulator import Simulator
from bridge.simulator.serve import serve_in_thread

Set = Mapping[str, str]


@pytest.fixture
def simulator() -> Simulator:
    return Simulator("single-phase", start_hour=NOON_HOUR)


@pytest.fixture
def at_home(simulator: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Settings that work."""
    monkeypatch.setenv("BRIDGE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BRIDGE_GATEWAY__TOKEN", simulator.token())
    with serve_in_thread(simulator, tls=True) as address:
        monkeypatch.setenv("BRIDGE_GATEWAY__HOST", address)
        yield


def said(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


@pytest.mark.usefixtures("at_home")
def test_once_prints_what_would_be_published(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["once"]) == 0
    lines, complaints = said(capsys)
    found = dict(line.split(" ", 1) for line in lines)
    assert list(found) == sorted(found)
    assert found[f"enphase/{simulator.serial}/state"] == "online"
    assert f"homeassistant/device/iqgateway_{simulator.serial}_gateway/config" in found
    truth = simulator.truth().meters["production"].total.delivered
    assert abs(float(found[f"enphase/{simulator.serial}/meter/production/energy_delivered"]) - truth) < 10
    assert complaints == ["iqgateway2mqtt: /ivp/ensemble/device_list: the gateway does not have this (404)"]
    assert simulator.count("/ivp/meters/readings") == 2, "counters are confirmed by a second reading"
    assert simulator.count("/ivp/ensemble/device_list") == 1, "what is missing is not asked again"


@pytest.mark.usefixtures("at_home")
def test_once_without_a_gateway(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_GATEWAY__HOST", f"127.0.0.1:{free_port()}")
    assert main(["once"]) == 69
    assert said(capsys) == ([], ["iqgateway2mqtt: no connection to the gateway: Connection refused"])


@pytest.mark.usefixtures("at_home")
def test_once_with_a_refused_token(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    simulator.revoke_tokens()
    assert main(["once"]) == 77
    lines, complaints = said(capsys)
    assert f"enphase/{simulator.serial}/gateway/firmware {simulator.home.firmware}" in lines
    assert len(complaints) == 1
    assert "set BRIDGE_GATEWAY__TOKEN" in complaints[0]
    assert simulator.count() < 8


@pytest.mark.usefixtures("at_home")
def test_once_with_one_endpoint_that_fails(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    simulator.faults.add("/ivp/pdm/energy", "html")
    assert main(["once"]) == 69
    lines, complaints = said(capsys)
    assert any("/meter/production/power " in line for line in lines)
    assert len(complaints) == 2
    assert "not JSON" in complaints[0]


WRONG: Sequence[tuple[Set, str]] = (
    (
        {"BRIDGE_GATEWAY__HOTS": "envoy.local"},
        "BRIDGE_GATEWAY__HOTS: no such setting; did you mean BRIDGE_GATEWAY__HOST?",
    ),
    ({"BRIDGE_MQTT__URL": "localhost"}, "BRIDGE_MQTT__URL: must look like mqtt://"),
    ({"BRIDGE_POLL__READINGS": "often"}, "BRIDGE_POLL__READINGS: "),
    ({"BRIDGE_GATEWAY__USERNAME": "me@example.com"}, "BRIDGE_GATEWAY: username and password go together"),
    ({"BRIDGE_GATEWAYS": "[{"}, "BRIDGE_GATEWAYS: not valid JSON"),
    ({"BRIDGE_CLOUD__LOGIN_URL": "http://example.com/login"}, "BRIDGE_CLOUD__LOGIN_URL: plain http"),
    ({"BRIDGE_MQTT__PAYLOAD": "json"}, "BRIDGE_MQTT__PAYLOAD: json has no value topics"),
)


@pytest.mark.parametrize("command", ["run", "once"])
@pytest.mark.parametrize(
    ("wrong", "text"), WRONG, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_a_wrong_setting_is_one_line(
    command: str, wrong: Set, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    assert main([command]) == 78
    lines, complaints = said(capsys)
    assert lines == []
    assert len(complaints) == 1
    assert complaints[0].startswith(f"iqgateway2mqtt: {text}")


async def test_run_as_a_process_with_a_wrong_setting() -> None:
    async with started(*BRIDGE_COMMAND, "run", env={"BRIDGE_MQTT__PASSWORD": "hunter2"}) as program:
        assert await program.ended() == 78
    assert program.out == []
    assert len(program.err) == 1
    assert "hunter2" not in program.err[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_without_anything_there_goes_on_until_it_is_stopped(number: int, tmp_path: Path) -> None:
    """An unreachable gateway or broker does not end the service."""
    nowhere = {
        "BRIDGE_GATEWAY__HOST": f"127.0.0.1:{free_port()}",
        "BRIDGE_MQTT__URL": f"mqtt://127.0.0.1:{free_port()}",
        "BRIDGE_STATE_DIR": str(tmp_path / "state"),
    }
    async with started(*BRIDGE_COMMAND, "run", env=nowhere) as program:
        await until(lambda: any("no broker listens there" in line for line in program.err))
        await until(lambda: any("no connection to the gateway" in line for line in program.err))
        assert await program.stop(number) == 0
    assert program.out == []
    assert not [line for line in program.err if "Traceback" in line]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (["simulate", "--port", "65536"], "65536 is not a port"),
        (["simulate", "--port", "-1"], "-1 is not a port"),
        (["discover", "--seconds", "nan"], "nan is not a number of seconds up to 3600"),
        (["discover", "--seconds", "0"], "0 is not a number of seconds"),
        (["discover", "--interface", "eth0"], "eth0 is not an IP address"),
        (["setup", "--interface", "eth0"], "eth0 is not an IP address"),
    ],
)
def test_a_wrong_option_is_a_wrong_call(call: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(call)
    assert stop.value.code == 2
    assert text in said(capsys)[1][-1]


@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_an_unknown_home_is_a_wrong_call(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--home", "castle"])
    assert stop.value.code == 2
    assert "three-phase" in said(capsys)[1][-1]
