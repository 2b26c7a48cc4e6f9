"""Exit codes, and the one line that names the mistake."""

import json
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from brokers import free_port
from cli import REPORT_LINE, ReportLine
from houses import NOON_HOUR
from programs import BRIDGE_COMMAND, started
from running import until

from bridge.commands import main
from bridge.simulator import Simulator
from bridge.simulator.presets import SINGLE_PHASE, MeterSpec
from bridge.simulator.serve import serve, serve_in_thread

Set = Mapping[str, str]


@pytest.fixture
def simulator(request: pytest.FixtureRequest) -> Simulator:
    """A simulated gateway: of the home that a test gives, or of a usual one."""
    return Simulator(getattr(request, "param", SINGLE_PHASE), start_hour=NOON_HOUR)


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


def printed(lines: list[str]) -> dict[str, str]:
    """The payloads by topic, in the order in which they were printed."""
    return dict(line.split(" ", 1) for line in lines)


def summary(complaints: list[str]) -> dict[str, ReportLine]:
    """The lines on standard error by their step. There are no others."""
    found = [match for line in complaints if (match := REPORT_LINE.fullmatch(line))]
    assert len(found) == len(complaints)
    return {match[2].strip(): ReportLine(match[1], match[2].strip(), match[3]) for match in found}


SUMMARY = ["gateway", "answered", "no answer", "to do", "site", "printed"]


@pytest.mark.usefixtures("at_home")
def test_once_prints_all_that_would_be_published(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["once", "--all"]) == 0
    lines, complaints = said(capsys)
    found = printed(lines)
    assert list(found) == sorted(found)
    assert found[f"enphase/{simulator.serial}/state"] == "online"
    assert f"homeassistant/device/iqgateway_{simulator.serial}_gateway/config" in found
    truth = simulator.truth().meters["production"].total.delivered
    assert abs(float(found[f"enphase/{simulator.serial}/meter/production/energy_delivered"]) - truth) < 10
    assert complaints == ["iqgateway2mqtt: /ivp/ensemble/device_list: the gateway does not have this (404)"]
    assert simulator.count("/ivp/meters/readings") == 2, "counters are confirmed by a second reading"
    assert simulator.count("/ivp/ensemble/device_list") == 1, "what is missing is not asked again"


SUM_ONLY = replace(SINGLE_PHASE, meters=(MeterSpec("production", enabled=False), MeterSpec("net-consumption")))


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("simulator", [SUM_ONLY], indirect=True)
def test_once_prints_what_only_a_second_round_can_know(
    simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the production meter is disabled, solar energy is the inverters' sum, which has to be confirmed."""
    assert main(["once", "--topics"]) == 0
    lines, _ = said(capsys)
    found, gateway = printed(lines), f"enphase/{simulator.serial}"
    assert float(found[f"{gateway}/site/solar/power"]) > 1000
    assert found[f"{gateway}/site/solar/power"] == found[f"{gateway}/energy/production-pcu/power"]
    assert float(found[f"{gateway}/site/solar/energy_lifetime"]) > 1000


@pytest.mark.usefixtures("at_home")
def test_once_prints_the_parts_that_are_asked_for(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for which in ("--all", "", "--site", "--topics", "--discovery"):
        assert main(["once", *filter(None, [which])]) == 0
        found[which] = list(printed(said(capsys)[0]))
    own = f"enphase/{simulator.serial}/"
    every = set(found["--all"])
    documents = {topic for topic in every if any(other.startswith(f"{topic}/") for other in every)}
    states = {topic for topic in every if topic == f"{own}state" or topic.startswith(f"{own}availability/")}
    discovery = {topic for topic in every if topic.startswith("homeassistant/")}
    values = every - documents - states - discovery
    site = {topic for topic in values if topic.startswith(f"{own}site/")}
    assert len(site) > 10
    assert set(found[""]) == values
    assert set(found["--site"]) == site
    assert set(found["--topics"]) == every - discovery
    assert set(found["--discovery"]) == discovery
    assert found[""][: len(site)] == found["--site"] == sorted(site)
    assert found[""][len(site) :] == sorted(values - site)


@pytest.mark.usefixtures("at_home")
def test_once_prints_documents_where_they_are_all_that_is_published(
    simulator: Simulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_MQTT__PAYLOAD", "json")
    monkeypatch.setenv("BRIDGE_HOMEASSISTANT__DISCOVERY", "off")
    assert main(["once", "--site"]) == 0
    found = printed(said(capsys)[0])
    flows = [f"enphase/{simulator.serial}/site/{flow}" for flow in ("grid", "home", "solar")]
    assert list(found) == flows
    assert json.loads(found[flows[2]])["power"] > 0


@pytest.mark.usefixtures("at_home")
def test_once_ends_with_a_summary(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["once"]) == 0
    lines, complaints = said(capsys)
    told, found = summary(complaints), printed(lines)
    assert list(told) == SUMMARY
    assert simulator.serial in told["gateway"].text
    assert simulator.home.firmware in told["gateway"].text
    count, _, names = told["answered"].text.partition(" endpoints: ")
    assert int(count) == len(names.split(", ")) > 10
    assert names.startswith("info, meters, ")
    assert told["no answer"].word == "note"
    assert "device_list: /ivp/ensemble/device_list: the gateway does not have this (404)" in told["no answer"].text
    assert told["to do"].text.startswith("nothing; ")
    powers = {
        flow: float(found[f"enphase/{simulator.serial}/site/{flow}/power"]) for flow in ("solar", "grid", "home")
    }
    grid = f"grid {abs(round(powers['grid']))} W ({'imports' if powers['grid'] > 0 else 'exports'})"
    assert told["site"].text == f"solar {round(powers['solar'])} W, {grid}, home {round(powers['home'])} W"
    assert told["printed"].text.startswith(f"{len(lines)} of ")


@pytest.mark.usefixtures("at_home")
def test_once_without_a_gateway(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("BRIDGE_GATEWAY__HOST", nowhere)
    assert main(["once"]) == 69
    lines, complaints = said(capsys)
    told = summary(complaints)
    assert lines == []
    assert list(told) == SUMMARY
    assert nowhere in told["gateway"].text
    assert told["answered"].text == "nothing"
    assert told["no answer"].word == "problem"
    assert told["no answer"].text.startswith(
        "info: no connection to the gateway: Connection refused; is the gateway"
    )
    assert told["site"].text == "not known"
    assert main(["once", "--all"]) == 69
    assert said(capsys)[1] == [f"iqgateway2mqtt: {told['no answer'].text.removeprefix('info: ')}"]


@pytest.mark.usefixtures("at_home")
def test_once_with_a_refused_token(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    simulator.revoke_tokens()
    assert main(["once", "--topics"]) == 77
    lines, complaints = said(capsys)
    told = summary(complaints)
    assert f"enphase/{simulator.serial}/gateway/firmware {simulator.home.firmware}" in lines
    assert told["answered"].text == "1 endpoint: info"
    assert told["no answer"].word == "problem"
    assert told["no answer"].text.startswith("meters, inventory, ")
    assert told["no answer"].text.count("set BRIDGE_GATEWAY__TOKEN") == 1
    assert "`iqgateway2mqtt check`" in told["to do"].text
    assert simulator.count() < 8


@pytest.mark.usefixtures("at_home")
def test_once_with_one_endpoint_that_fails(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    simulator.faults.add("/ivp/pdm/energy", "html")
    assert main(["once"]) == 69
    lines, complaints = said(capsys)
    told = summary(complaints)
    assert any("/meter/production/power " in line for line in lines)
    assert told["no answer"].word == "problem"
    assert re.match("energy: .*not JSON.*; device_list: .*404", told["no answer"].text)
    assert "`iqgateway2mqtt capture`" in told["to do"].text


@pytest.mark.usefixtures("at_home")
def test_once_where_everything_is_refused_says_that_the_token_is_not_the_owners(
    simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("/ivp/*", "/api/*"):
        simulator.faults.add(place, "401")
    assert main(["once"]) == 0
    assert "the token of the system's owner" in summary(said(capsys)[1])["to do"].text


@pytest.mark.usefixtures("at_home")
def test_once_at_debug_tells_its_requests(
    simulator: Simulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_LOG__LEVEL", "DEBUG")
    assert main(["once", "--site"]) == 0
    told = [line for line in said(capsys)[1] if re.search(r" (?:GET|POST) /\S+: \d{3}, \d+ bytes, \d+ ms$", line)]
    assert len(told) == simulator.count()


@dataclass(frozen=True)
class FirstContact:
    """A home with a mistake in its address or a fault, and what the owner should do."""

    home: str
    scheme: str
    tls: bool
    advice: str
    fault: str = ""


FIRST_CONTACTS = {
    "firmware 3 by HTTPS": FirstContact("legacy", "", False, "set BRIDGE_GATEWAY__HOST=http://{address}"),
    "firmware 8 by HTTP": FirstContact("single-phase", "http://", True, "set BRIDGE_GATEWAY__HOST={address}"),
    "a web page": FirstContact("single-phase", "", True, "is BRIDGE_GATEWAY__HOST right?", "html"),
    "another device": FirstContact("single-phase", "", True, "is BRIDGE_GATEWAY__HOST right?", "404"),
}


@pytest.mark.parametrize("name", FIRST_CONTACTS)
async def test_run_and_once_have_the_advice_of_check(name: str, tmp_path: Path) -> None:
    case = FIRST_CONTACTS[name]
    simulator = Simulator(case.home, start_hour=NOON_HOUR)
    if case.fault:
        simulator.faults.add("/info", case.fault)
    async with serve(simulator, tls=case.tls) as address:
        advice = case.advice.format(address=address)
        environment = {
            "BRIDGE_GATEWAY__HOST": f"{case.scheme}{address}",
            "BRIDGE_MQTT__URL": f"mqtt://127.0.0.1:{free_port()}",
            "BRIDGE_STATE_DIR": str(tmp_path / "state"),
        }
        async with started(*BRIDGE_COMMAND, "check", env=environment) as program:
            await program.ended()
        assert any(line.endswith(advice) for line in program.out)
        async with started(*BRIDGE_COMMAND, "once", env=environment) as program:
            assert await program.ended() == 69
        assert summary(program.err)["no answer"].text.endswith(advice)
        async with started(*BRIDGE_COMMAND, "run", env=environment) as program:
            await until(lambda: any(line.endswith(advice) for line in program.err))
            assert await program.stop() == 0


async def test_a_gateway_that_has_answered_before_needs_no_other_address(tmp_path: Path) -> None:
    """While it restarts, nobody should doubt settings that are right."""
    simulator = Simulator("legacy", start_hour=NOON_HOUR)
    environment = {"BRIDGE_STATE_DIR": str(tmp_path / "state")}
    async with serve(simulator, tls=False) as address:
        environment["BRIDGE_GATEWAY__HOST"] = f"http://{address}"
        async with started(*BRIDGE_COMMAND, "once", env=environment) as program:
            assert await program.ended() == 0
    async with started(*BRIDGE_COMMAND, "once", env=environment) as program:
        assert await program.ended() == 69
    assert summary(program.err)["no answer"].text == "info: no connection to the gateway: Connection refused"


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


async def test_where_nothing_is_set_setup_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is often the wrong folder."""
    monkeypatch.chdir(tmp_path)
    async with started(*BRIDGE_COMMAND, "run", env={"HOME": str(tmp_path)}) as program:
        await until(lambda: len(program.err) > 0)
        await program.stop()
    assert (
        f" INFO no setting in the environment or in {tmp_path / '.env'}; `iqgateway2mqtt setup`" in program.err[0]
    )


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
