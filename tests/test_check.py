"""`check`, against everything that can be wrong with a gateway, its token, the cloud and the broker."""

import asyncio
import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from brokers import Mosquitto, free_port, password_lines
from cli import EXIT_CONFIGURATION, EXIT_REFUSED, EXIT_UNAVAILABLE, Shell, Told, home, served, shell
from houses import NOON_HOUR

from bridge.commands.session import CommandTiming, GatewayAddress
from bridge.endpoints import ENDPOINTS
from bridge.model import Unavailable
from bridge.settings import found
from bridge.simulator import Simulator
from bridge.simulator.faults import status, with_body
from bridge.simulator.gateway import DEVICE_LIST_PATH, READINGS_PATH
from bridge.state import IdentityState
from bridge.store import Store

__all__ = ["shell"]
SOURCES = {endpoint.source for endpoint in ENDPOINTS}
SWITCHES = {
    *("relay", "dry_contacts", "dry_contact_settings", "generator", "gen_config"),
    *("acb_config", "sc_status", "errors", "event_list"),
    *("gen_mode", "gen_schedule", "acb_config", "sc_status"),
}
"""Sources that are asked only of a home with a controller or similar gear, with AC Batteries, or with a limit, or
where the owner turns them on."""
SHORT_TIMING = CommandTiming(request=2, echo=2)
"""Short for what never answers, and long enough for what does on a busy machine."""
ASKED = SOURCES - SWITCHES
"""The sources that are asked of a home with batteries and no other gear."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(autouse=True)
def _settings(shell: Shell, broker: Mosquitto) -> None:
    shell.set(mqtt__url=broker.url)


def sources(told: Told) -> dict[str, str]:
    """The result of each endpoint, by source."""
    return {line.step: line.word for line in told.lines if line.step in SOURCES}


@contextmanager
def several(shell: Shell, *names: str) -> Iterator[list[Simulator]]:
    """Several homes with a token each, called first, second and so on."""
    with ExitStack() as stack:
        simulators, gateways = [Simulator(name, start_hour=NOON_HOUR) for name in names], []
        for simulator, name in zip(simulators, ("first", "second"), strict=True):
            address = stack.enter_context(served(shell, simulator))
            gateways.append({"host": address, "token": simulator.token(), "name": name})
        shell.unset("gateway__host")
        shell.set(gateways=json.dumps(gateways))
        yield simulators


# --- all is well ---


def test_a_good_home(shell: Shell) -> None:
    with home(shell) as simulator:
        told = shell.run("check")
    assert told.code == 0
    assert told.text.endswith("\nNo problems.\n")
    assert not told.of("problem")
    assert not told.of("note")
    assert sources(told) == dict.fromkeys(ASKED, "ok")
    assert told.about("storage gear").text.startswith("no gear seen that needs relay, dry_contacts, ")
    assert told.about("gateway").text == "122301003111, firmware D8.3.5167, part number 800-00654-r08"
    assert told.about("token").text.startswith("from BRIDGE_GATEWAY__TOKEN: role owner, 365 days left (until ")
    assert told.about("connection").text.endswith(": connected, MQTT 5")
    assert "BRIDGE_GATEWAY__TOKEN" in told.about("environment").text
    assert sorted(seen.path for seen in simulator.requests) == sorted(
        endpoint.path.partition("?")[0] for endpoint in ENDPOINTS if endpoint.source in ASKED
    )


def test_what_an_endpoint_gives(shell: Shell) -> None:
    with home(shell):
        told = shell.run("check")
    seconds, _, length, unit, values, _ = told.about("readings").text.split()
    assert float(seconds) >= 0
    assert (float(length) > 10, unit) == (True, "kB")
    assert int(values) > 100
    assert told.about("livedata").text.endswith("; these values do not change until `run` turns the live stream on")


def test_a_clamp_that_measures_nothing(shell: Shell) -> None:
    def report(body: bytes) -> bytes:
        units = json.loads(body)
        return json.dumps(
            [unit | {"lastReportDate": int(time.time()), "lastReportWatts": 130} for unit in units]
        ).encode()

    def measure_nothing(body: bytes) -> bytes:
        production, *others = json.loads(body)
        return json.dumps([production | {"activePower": 1.305}, *others]).encode()

    with home(shell) as simulator:
        simulator.faults.add("/api/v1/production/inverters", with_body("all report", report))
        simulator.faults.add("/ivp/meters/readings", with_body("no clamp", measure_nothing))
        told = shell.run("check")
    assert told.code == 0
    text = told.about("clamp").text
    assert text.startswith("the production meter shows 1 W, the microinverters report ")
    assert text.endswith(" W: its clamp is not on the wire of the microinverters")


def test_the_key_is_pinned_on_first_use(shell: Shell) -> None:
    with home(shell) as simulator:
        first, second = shell.run("check"), shell.run("check")
    assert first.about("TLS key").text.endswith(": new, and pinned from now on")
    assert second.about("TLS key").text.endswith(": as pinned")
    pinned = Store(Path("state")).load(simulator.serial, IdentityState).key_pin
    assert pinned is not None
    assert second.about("TLS key").text.startswith(pinned[:16])


def test_nothing_stays_at_the_broker(shell: Shell, broker: Mosquitto) -> None:
    with home(shell):
        shell.run("check")
    command = ["mosquitto_sub", "-p", str(broker.port), "-t", "#", "-W", "1", "-v", "--retained-only"]
    assert subprocess.run(command, capture_output=True, check=False).stdout == b""


def test_legacy_firmware(shell: Shell) -> None:
    with home(shell, "legacy") as simulator:
        told = shell.run("check")
    assert told.code == 0
    assert told.about("TLS key").text.startswith("none")
    assert told.about("token").text.startswith("none is needed")
    assert {source for source, word in sources(told).items() if word == "ok"} == {"info", "production", "inverters"}
    assert not [seen for seen in simulator.requests if "authorization" in str(seen)]


def test_several_gateways(shell: Shell) -> None:
    with several(shell, "three-phase", "no-cts") as (one, other):
        told, named = shell.run("check"), shell.run("check", "--gateway", "second")
        counts = [simulator.count("/info") for simulator in (one, other)]
    assert (told.code, named.code) == (0, 0)
    assert [line.text[:12] for line in told.lines if line.step == "gateway"] == [one.serial, other.serial]
    assert [line.text[:12] for line in named.lines if line.step == "gateway"] == [other.serial]
    assert counts == [1, 2]


# --- commands ---


def told_of_commands(shell: Shell, name: str, allow: str) -> list[tuple[str, str]]:
    """What `check` says of commands, and whether it wrote anything."""
    with home(shell, name) as simulator:
        told = shell.set(control__allow=allow).run("check")
    assert simulator.writes() == []
    assert {seen.method for seen in simulator.requests if "check_jwt" not in seen.path} == {"GET"}
    return [(line.word, line.text) for line in told.lines if line.step == "commands"]


def test_without_permission_it_says_what_could_be_allowed(shell: Shell) -> None:
    ((word, text),) = told_of_commands(shell, "split-phase", "")
    could = "storage, contacts, grid, generator"
    assert word == "ok"
    assert text == f"none is allowed; this gateway has {could}, which BRIDGE_CONTROL__ALLOW may name"


def test_it_says_what_may_be_set(shell: Shell) -> None:
    settings = "charge_from_grid, mode, optimized, reserve, reserve_lowest of storage/settings"
    assert told_of_commands(shell, "ac-batteries", "storage,generator,acb,limit") == [
        ("ok", f"storage: may set {settings}"),
        ("note", "storage/settings/optimized is ON: with it, newer firmware follows Enphase's schedules instead"),
        ("ok", "grid: not allowed by BRIDGE_CONTROL__ALLOW"),
        ("ok", "generator: allowed, but this gateway has nothing of it"),
        ("ok", "acb: may set sleep of acb/121908002401, acb/121908002419"),
        ("note", "limit: allowed, but limits can't be set yet"),
        ("ok", "role owner: owners report that theirs is enough; a gateway that wants another one refuses"),
    ]


def test_it_says_what_this_firmware_ignores(shell: Shell) -> None:
    first, *_ = told_of_commands(shell, "limited", "storage")
    assert first[0] == "note"
    assert first[1].startswith("storage: refused unless forced: charge_from_grid, mode, ")
    assert first[1].endswith(" of storage/settings: this firmware stores it and obeys Enphase's app instead")


def test_it_says_what_could_not_be_read(shell: Shell) -> None:
    with home(shell, "split-phase") as simulator:
        simulator.faults.add("/admin/lib/tariff", status(401))
        told = shell.set(control__allow="storage").run("check")
    assert ("note", "storage: allowed, but what the gateway has of it could not be read") in [
        (line.word, line.text) for line in told.lines if line.step == "commands"
    ]


# --- settings ---


def test_where_settings_come_from(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = tmp_path / "credentials"
    secrets.mkdir()
    (secrets / "bridge_mqtt__username").write_text("nobody")
    (tmp_path / ".env").write_text("BRIDGE_POLL__PROFILE=gentle\nOTHERS=1\n")
    (tmp_path / "bridge.toml").write_text('[poll]\nprofile = "live"\n[log]\nlevel = "INFO"\n')
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secrets))
    monkeypatch.setenv("BRIDGE_CONFIG", "bridge.toml")
    assert found() == {
        "environment": ["BRIDGE_MQTT__URL", "BRIDGE_STATE_DIR"],
        ".env": ["BRIDGE_POLL__PROFILE"],
        str(secrets): ["BRIDGE_MQTT__USERNAME"],
        "bridge.toml": ["BRIDGE_LOG__LEVEL", "BRIDGE_POLL__PROFILE"],
    }
    with home(shell):
        told = shell.run("check")
    assert told.code == 0
    (note,) = told.of("note")
    assert note.text == (
        "bridge.toml: BRIDGE_LOG__LEVEL, BRIDGE_POLL__PROFILE; "
        "ignored, because they are set above: BRIDGE_POLL__PROFILE"
    )
    assert "nobody" not in told.text


def test_a_wrong_setting(shell: Shell) -> None:
    told = shell.set(poll__profile="fast").run("check")
    assert told.code == EXIT_CONFIGURATION
    assert told.errors.startswith("iqgateway2mqtt: BRIDGE_POLL__PROFILE: ")


def test_a_host_that_is_none(shell: Shell) -> None:
    told = shell.set(gateway__host="envoy.local:99999").run("check")
    assert told.code == EXIT_CONFIGURATION
    assert told.errors.startswith("iqgateway2mqtt: BRIDGE_GATEWAY__HOST: must be a name, an address")


def test_an_unknown_gateway(shell: Shell) -> None:
    told = shell.run("check", "--gateway", "nowhere")
    assert told.code == EXIT_CONFIGURATION
    assert told.errors == "iqgateway2mqtt: --gateway: no gateway is called nowhere; there is envoy.local\n"


def test_a_state_folder_that_is_a_file(shell: Shell) -> None:
    Path("state").write_text("")
    with home(shell):
        told = shell.run("check")
    assert "BRIDGE_STATE_DIR" in told.about("state folder").text
    assert told.about("state folder").word == "note"


# --- the way there ---


def test_a_name_in_local_that_nobody_knows(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_known(monkeypatch)
    told = shell.set(gateway__host="envoy.local").run("check")
    assert told.code == EXIT_UNAVAILABLE
    text = told.about("name").text
    assert text.startswith("envoy.local is unknown here: names in .local are found by mDNS")
    assert "containers" in text
    assert "BRIDGE_GATEWAY__HOST" in text


def test_another_name_that_nobody_knows(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_known(monkeypatch)
    told = shell.set(gateway__host="https://gateway.lan:4443").run("check")
    assert told.code == EXIT_UNAVAILABLE
    assert told.about("name").text.startswith(
        "gateway.lan is unknown here: check the spelling in BRIDGE_GATEWAY__HOST"
    )


def nobody_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the names of gateways unknown."""
    real = socket.getaddrinfo

    def unknown(host: str, *rest: object, **more: object) -> object:
        if host in {"envoy.local", "gateway.lan"}:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def test_a_name_that_leads_there(shell: Shell) -> None:
    with home(shell) as simulator:
        port = os.environ["BRIDGE_GATEWAY__HOST"].rpartition(":")[2]
        told = shell.set(gateway__host=f"localhost:{port}").run("check")
    assert told.code == 0
    assert "127.0.0.1" in told.about("name").text
    assert simulator.count("/info") == 1


def test_a_closed_port(shell: Shell) -> None:
    port = free_port()
    told = shell.set(gateway__host=f"127.0.0.1:{port}").run("check")
    assert told.code == EXIT_UNAVAILABLE
    text = told.about("port").text
    assert text.startswith(f"port {port} is closed (connection refused): is BRIDGE_GATEWAY__HOST right?")
    assert f"set BRIDGE_GATEWAY__HOST=http://127.0.0.1:{port}" in text


def test_old_firmware_is_found_at_the_other_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports = {"https": free_port(), "http": listener.getsockname()[1]}
        address = GatewayAddress("https", "127.0.0.1", ports["https"], "127.0.0.1", standard_ports=ports)
        with pytest.raises(Unavailable, match="but port 80 is open: firmware before 7 has no TLS"):
            asyncio.run(address.check_port())


def test_a_silent_address(shell: Shell) -> None:
    """A listener whose queue is full and that never accepts a connection does not answer."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        shell.set(gateway__host=f"127.0.0.1:{listener.getsockname()[1]}")
        told = shell.run("check", timing=CommandTiming(connect=0.3))
    assert told.code == EXIT_UNAVAILABLE
    assert "is the gateway on and in this network" in told.about("port").text


def test_old_firmware_that_is_not_old(shell: Shell) -> None:
    port = free_port()
    told = shell.set(gateway__host=f"http://127.0.0.1:{port}").run("check")
    assert told.code == EXIT_UNAVAILABLE
    assert told.about("port").text.endswith(
        f"firmware from 7 on speaks TLS: set BRIDGE_GATEWAY__HOST=127.0.0.1:{port}"
    )


def test_a_gateway_that_is_in_another_network(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nowhere(*_: object) -> None:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(asyncio, "open_connection", nowhere)
    told = shell.set(gateway__host="192.0.2.1").run("check")
    assert told.code == EXIT_UNAVAILABLE
    assert told.about("port").text.startswith("port 443: No route to host: is the gateway on and in this network")


def test_tls_where_there_is_none(shell: Shell) -> None:
    with home(shell, "legacy"):
        address = os.environ["BRIDGE_GATEWAY__HOST"].removeprefix("http://")
        told = shell.set(gateway__host=address).run("check")
    assert told.code == EXIT_UNAVAILABLE
    assert told.about("gateway").text.endswith(
        f"firmware before 7 has no TLS: set BRIDGE_GATEWAY__HOST=http://{address}"
    )


def test_no_tls_where_there_should_be(shell: Shell) -> None:
    with home(shell):
        address = os.environ["BRIDGE_GATEWAY__HOST"].removeprefix("https://")
        told = shell.set(gateway__host=f"http://{address}").run("check")
    assert told.code == EXIT_UNAVAILABLE
    assert told.about("gateway").text.endswith(f"firmware from 7 on speaks TLS: set BRIDGE_GATEWAY__HOST={address}")


# --- who is there ---


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("booting", "the gateway is starting (503); try again in a minute"),
        ("html", "it is not from a gateway; is BRIDGE_GATEWAY__HOST right?"),
        (
            "404",
            "what answers there is not an IQ Gateway (it has no page /info); is BRIDGE_GATEWAY__HOST right?",
        ),
        ("301", "/info: the gateway answers with status 301; is BRIDGE_GATEWAY__HOST right?"),
        ("500", "/info: the gateway fails (500)"),
    ],
)
def test_something_else_than_a_gateway(shell: Shell, fault: str, says: str) -> None:
    with home(shell) as simulator:
        simulator.faults.add("gateway", fault)
        told = shell.run("check")
        assert simulator.count() == 1
    assert told.code == EXIT_UNAVAILABLE
    assert told.about("gateway").text.endswith(says)
    assert not Path("state/gateway-122301003111.json").exists()


def test_another_gateway_than_the_settings_say(shell: Shell) -> None:
    with home(shell) as simulator:
        told = shell.set(gateway__serial="122300000000").run("check")
        assert simulator.count() == 1
    assert told.code == EXIT_REFUSED
    assert "where 122300000000 is expected" in told.about("gateway").text


def test_another_gateway_than_last_time(shell: Shell) -> None:
    with home(shell) as simulator:
        shell.run("check")
        simulator.become(serial="122399999999")
        told = shell.run("check")
    assert told.code == EXIT_REFUSED
    assert [line.text for line in told.lines if line.step == "gateway"][1:] == [
        "not the same one as at the last run (122301003111): it gets its own topics"
    ]
    assert told.about("token").text.startswith("the token is for gateway 122301003111, this one is 122399999999")


def test_a_clock_that_is_wrong(shell: Shell) -> None:
    simulator = Simulator("legacy", clock=lambda: 1_600_000_000.0)
    with served(shell, simulator, tls=False):
        told = shell.run("check")
    assert re.search(r"is \d+ days slow, or this computer's clock is wrong$", told.about("clock").text)


@pytest.mark.parametrize(("fault", "words"), [("401", "refuses every endpoint"), ("404", "firmware is too old")])
def test_a_gateway_that_lets_us_read_nothing_is_not_well(shell: Shell, fault: str, words: str) -> None:
    with home(shell) as simulator:
        for place in ("/ivp/*", "/api/*", "/admin/*"):
            simulator.faults.add(place, fault)
        told = shell.run("check")
    assert told.code == EXIT_REFUSED
    assert words in told.about("endpoints").text


# --- its key ---


@contextmanager
def changed_key(shell: Shell, **changes: str) -> Iterator[Simulator]:
    """A home that was checked before and now has a new key, and perhaps other changes."""
    simulator = Simulator(start_hour=NOON_HOUR)
    shell.set(gateway__token=simulator.token())
    with served(shell, simulator) as address:
        assert shell.run("check").code == 0
    simulator.become(**changes)
    simulator.requests.clear()
    with served(shell, simulator, port=int(address.rpartition(":")[2])):
        yield simulator


def test_a_changed_key(shell: Shell) -> None:
    with changed_key(shell) as simulator:
        before = Store(Path("state")).load(simulator.serial, IdentityState).key_pin
        told = shell.run("check")
        assert [seen.path for seen in simulator.requests] == ["/info"]
        assert Store(Path("state")).load(simulator.serial, IdentityState).key_pin == before
    assert told.code == EXIT_REFUSED
    assert "iqgateway2mqtt check --accept-key" in told.about("TLS key").text
    assert told.about("before").text == before
    assert told.about("now").text not in (before, "")
    assert told.about("shown by").text == f"gateway {simulator.serial}, firmware {simulator.home.firmware}"


def test_a_changed_key_that_is_accepted(shell: Shell) -> None:
    with changed_key(shell) as simulator:
        told, again = shell.run("check", "--accept-key"), shell.run("check")
    assert (told.code, again.code) == (0, 0)
    assert told.about("TLS key").text.startswith("it has changed; the new key is accepted and pinned")
    assert told.about("now").text == Store(Path("state")).load(simulator.serial, IdentityState).key_pin
    assert again.about("TLS key").text.endswith(": as pinned")


def test_a_key_that_changed_with_the_firmware(shell: Shell) -> None:
    """A single look can't tell whether the old key is out of reach, so a command pins nothing unasked."""
    with changed_key(shell, firmware="D8.3.6000") as simulator:
        told = shell.run("check")
        assert [seen.path for seen in simulator.requests] == ["/info"]
    assert told.code == EXIT_REFUSED


def test_a_key_that_was_pinned_anew_is_confirmed(shell: Shell) -> None:
    simulator = Simulator(start_hour=NOON_HOUR)
    shell.set(gateway__token=simulator.token())
    with served(shell, simulator):
        assert shell.run("check").code == 0
        store = Store(Path("state"))
        store.save(simulator.serial, store.load(simulator.serial, IdentityState).changed(key_unconfirmed=True))
        told, accepted, again = shell.run("check"), shell.run("check", "--accept-key"), shell.run("check")
    assert (told.code, accepted.code, again.code) == (0, 0, 0)
    assert "confirm that with `iqgateway2mqtt check --accept-key`" in told.about("TLS key").text
    assert accepted.about("TLS key").text.endswith(": as pinned, and confirmed")
    assert again.about("TLS key").text.endswith(": as pinned")


def test_strict_trusts_no_update(shell: Shell) -> None:
    shell.set(gateway__tls="strict")
    with changed_key(shell, firmware="D8.3.6000") as simulator:
        told = shell.run("check")
        assert simulator.count() == 1
    assert told.code == EXIT_REFUSED


def test_a_new_gateway_with_its_own_key(shell: Shell) -> None:
    with changed_key(shell, serial="122399999999") as simulator:
        assert shell.run("check").code == EXIT_REFUSED
        shell.set(gateway__token=simulator.token())
        assert shell.run("check", "--accept-key").code == 0
        assert shell.run("check").code == 0


def test_a_strangers_key_is_not_accepted_where_the_serial_is_set(shell: Shell) -> None:
    shell.set(gateway__serial="122301003111")
    with changed_key(shell, serial="122399999999") as simulator:
        told, again = shell.run("check", "--accept-key"), shell.run("check")
        assert {seen.path for seen in simulator.requests} == {"/info"}
    assert (told.code, again.code) == (EXIT_REFUSED, EXIT_REFUSED)
    assert "where 122301003111 is expected" in told.about("TLS key").text


def test_tls_that_is_off(shell: Shell) -> None:
    shell.set(gateway__tls="off")
    with changed_key(shell):
        told = shell.run("check")
    assert told.code == 0
    assert told.about("TLS key").text.endswith(": not checked")
    assert "whoever sits in between gets the token" in told.about("also").text


# --- its token, and the cloud ---


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("wrong_password", EXIT_REFUSED, "Enphase's cloud refuses the password"),
        ("mfa", EXIT_REFUSED, "the Enphase account asks for a second factor"),
        ("blocked", EXIT_REFUSED, "Enphase has blocked the account"),
        ("406", EXIT_UNAVAILABLE, "Enphase's cloud does not accept the login from this program (406)"),
        ("503", EXIT_UNAVAILABLE, "Enphase's cloud is down (503)"),
        ("html", EXIT_UNAVAILABLE, "Enphase's cloud answers with a page instead of data"),
    ],
)
def test_an_account_that_gives_no_token(shell: Shell, fault: str, code: int, says: str) -> None:
    with home(shell, token=False, account=True) as simulator:
        simulator.faults.add("login", fault)
        told = shell.run("check")
        assert {seen.path for seen in simulator.requests} == {"/info", "/login/login.json"}
    assert told.code == code
    (problem,) = told.of("problem")
    assert problem.step == "token"
    assert problem.text.startswith(says)
    assert not told.of("note")


@pytest.mark.parametrize("fault", ["not_your_serial", "wrong_aud", "expired"])
def test_a_token_that_is_for_others(shell: Shell, fault: str) -> None:
    with home(shell, token=False, account=True) as simulator:
        simulator.faults.add("tokens", fault)
        told = shell.run("check")
    assert told.code == EXIT_REFUSED
    assert len(told.of("problem")) == 1
    assert told.about("token").text.endswith("set BRIDGE_GATEWAY__TOKEN to it")


def test_an_account_that_gives_one(shell: Shell) -> None:
    with home(shell, token=False, account=True) as simulator:
        told, again = shell.run("check"), shell.run("check")
        assert simulator.count("/login/login.json") == 1
    assert (told.code, again.code) == (0, 0)
    assert told.about("token").text.startswith("from the Enphase account, just now: role owner")
    assert again.about("token").text.startswith("from the state folder: role owner")


def test_no_token_at_all(shell: Shell) -> None:
    with home(shell, token=False) as simulator:
        told = shell.run("check")
        assert simulator.count() == 1
    assert told.code == EXIT_REFUSED
    assert told.about("token").text.startswith("there is no token: get a token at https://entrez.enphaseenergy.com")


@pytest.mark.parametrize(
    ("claims", "says"),
    [({"exp": 1_000_000_000}, "expired on 2001-09-09"), ({"aud": "122300000000"}, "is for gateway 122300000000")],
)
def test_a_token_that_can_not_serve(shell: Shell, claims: dict[str, str | int], says: str) -> None:
    with home(shell, token=False) as simulator:
        told = shell.set(gateway__token=simulator.token(**claims)).run("check")
        assert simulator.count() == 1
    assert told.code == EXIT_REFUSED
    assert says in told.about("token").text


def test_a_refused_token(shell: Shell) -> None:
    with home(shell) as simulator:
        simulator.revoke_tokens()
        told = shell.run("check")
        assert simulator.count() == 3  # /info, an endpoint, and whether the token is good
    assert told.code == EXIT_REFUSED
    assert told.about("meters").text.startswith("the gateway refuses the token")
    assert told.about("the others").text == "not asked, because there is no valid token"


def test_one_token_of_two(shell: Shell) -> None:
    with home(shell, token=False) as simulator:
        Path("good").write_text(simulator.token())
        shell.set(gateway__token=simulator.token(exp=1_000_000_000), gateway__token_file="good")
        told = shell.run("check")
    assert told.code == 0
    first, second = (line for line in told.lines if line.step == "token")
    assert first.text.startswith("from BRIDGE_GATEWAY__TOKEN_FILE: role owner")
    assert second.text.startswith("BRIDGE_GATEWAY__TOKEN can't be used: the token expired on 2001-09-09")


def test_a_token_that_is_due(shell: Shell) -> None:
    with home(shell, token=False) as simulator:
        told = shell.set(gateway__token=simulator.token(iat=0)).run("check")
    assert told.code == 0
    (note,) = told.of("note")
    assert note.text.startswith("the token expires on ")


# --- what it tells ---


@pytest.mark.parametrize(
    ("fault", "word", "code"),
    [
        ("html", "problem", EXIT_UNAVAILABLE),
        ("empty", "problem", EXIT_UNAVAILABLE),
        ("truncated", "problem", EXIT_UNAVAILABLE),
        ("garbage", "problem", EXIT_UNAVAILABLE),
        ("deep", "problem", EXIT_UNAVAILABLE),
        ("error_object", "problem", EXIT_UNAVAILABLE),
        ("hang", "problem", EXIT_UNAVAILABLE),
        ("reset", "problem", EXIT_UNAVAILABLE),
        ("drop", "problem", EXIT_UNAVAILABLE),
        ("503", "problem", EXIT_UNAVAILABLE),
        ("403", "problem", EXIT_REFUSED),
        ("404", "note", 0),
        ("401", "note", 0),
    ],
)
def test_one_endpoint_that_fails(shell: Shell, fault: str, word: str, code: int) -> None:
    with home(shell) as simulator:
        simulator.faults.add("/api/v1/production", fault)
        told = shell.run("check", timing=SHORT_TIMING)
    assert told.code == code
    assert sources(told) == dict.fromkeys(ASKED, "ok") | {"production": word}
    assert ("the bridge publishes what answers" in told.text) == (word == "problem")


def test_a_gateway_that_falls_silent_is_left_in_peace(shell: Shell) -> None:
    with home(shell) as simulator:
        simulator.faults.add("/ivp/*", "hang")
        simulator.faults.add("/api/*", "hang")
        told = shell.run("check", timing=SHORT_TIMING)
        assert simulator.count() == 4  # /info, which answers, and three more
    assert told.code == EXIT_UNAVAILABLE
    assert told.about("the others").text == "not asked, because the gateway has stopped answering"


def test_what_can_not_be_used(shell: Shell) -> None:
    with home(shell) as simulator:
        simulator.faults.add(
            READINGS_PATH, with_body("wild", lambda body: body.replace(b'"freq"', b'"freq": "much", "x"'))
        )
        told = shell.run("check")
    assert told.code == 0
    assert told.about("readings").word == "note"
    assert "skipped unusable values" in told.about("readings").text


def test_what_is_turned_off_is_not_asked(shell: Shell) -> None:
    with home(shell) as simulator:
        told = shell.set(poll__device_list="0").run("check")
        assert simulator.count(DEVICE_LIST_PATH) == 0
    assert told.code == 0
    assert told.about("device_list").text == "turned off (BRIDGE_POLL__DEVICE_LIST is 0)"


# --- the broker ---


def of_broker(told: Told) -> list[tuple[str, str]]:
    return [(line.word, line.step) for line in told.lines if line.step in BROKER_STEPS]


BROKER_STEPS = ("connection", "protocol", "limits", "publish", "discovery")
GOOD_STEPS = [("ok", "connection"), ("ok", "limits"), ("ok", "publish"), ("ok", "discovery")]


def test_no_broker(shell: Shell) -> None:
    with home(shell):
        told = shell.set(mqtt__url=f"mqtt://127.0.0.1:{free_port()}").run("check")
    assert told.code == EXIT_UNAVAILABLE
    assert "no broker listens there" in told.about("connection").text


def test_the_brokers_password(shell: Shell, tmp_path: Path) -> None:
    with home(shell), Mosquitto(tmp_path, *password_lines(tmp_path, "bridge", "secret word")) as broker:
        shell.set(mqtt__url=broker.url, mqtt__username="bridge", mqtt__password="wrong word")
        wrong = shell.run("check")
        right = shell.set(mqtt__password="secret word").run("check")
    assert (wrong.code, right.code) == (EXIT_REFUSED, 0)
    assert "BRIDGE_MQTT__PASSWORD" in wrong.about("connection").text
    assert of_broker(right) == GOOD_STEPS


def test_mqtt_3(shell: Shell) -> None:
    with home(shell):
        told = shell.set(mqtt__protocol="3.1.1").run("check")
    assert told.code == 0
    assert of_broker(told) == [*GOOD_STEPS[:3], ("note", "discovery")]


@pytest.mark.parametrize(
    ("rule", "protocol", "words"),
    [
        ("topic readwrite enphase/#", "5", ["ok", "problem"]),
        ("topic read #", "5", ["problem", "problem"]),
        ("topic write #", "5", ["ok", "ok"]),
        ("topic readwrite homeassistant/#", "5", ["problem", "ok"]),
        ("topic readwrite homeassistant/#", "3.1.1", ["problem", "note"]),
        ("topic readwrite enphase/#", "3.1.1", ["ok", "note"]),
    ],
)
def test_access_rules(shell: Shell, tmp_path: Path, rule: str, protocol: str, words: list[str]) -> None:
    rules = tmp_path / "rules"
    rules.write_text(f"{rule}\n")
    rules.chmod(0o600)
    with home(shell), Mosquitto(tmp_path, f"acl_file {rules}") as broker:
        told = shell.set(mqtt__url=broker.url, mqtt__protocol=protocol).run("check", timing=SHORT_TIMING)
    assert told.code == (EXIT_REFUSED if "problem" in words else 0)
    assert [told.about(step).word for step in ("publish", "discovery")] == words


def test_a_broker_that_acknowledges_nothing(shell: Shell, tmp_path: Path) -> None:
    with home(shell), Mosquitto(tmp_path, "max_qos 0") as broker:
        told = shell.set(mqtt__url=broker.url).run("check")
    assert told.code == 0
    assert of_broker(told) == [*GOOD_STEPS[:3], ("note", "discovery")]


def test_without_discovery(shell: Shell) -> None:
    with home(shell):
        told = shell.set(homeassistant__discovery="off").run("check")
    assert told.code == 0
    assert of_broker(told) == GOOD_STEPS[:3]


def test_a_broker_with_small_pockets(shell: Shell, tmp_path: Path) -> None:
    with home(shell), Mosquitto(tmp_path, "max_packet_size 2000") as broker:
        told = shell.set(mqtt__url=broker.url).run("check")
    assert told.code == 0
    assert told.about("limits").word == "note"


def test_a_broker_that_keeps_nothing(shell: Shell, tmp_path: Path) -> None:
    with home(shell), Mosquitto(tmp_path, "retain_available false") as broker:
        told = shell.set(mqtt__url=broker.url).run("check")
    assert told.code == 0
    assert told.text.count("keeps no retained messages") == 1


def test_the_worst_fault_counts(shell: Shell) -> None:
    with home(shell) as simulator:
        simulator.revoke_tokens()
        told = shell.set(mqtt__url=f"mqtt://127.0.0.1:{free_port()}").run("check")
    assert told.code == EXIT_REFUSED
    assert told.text.endswith("\n2 problems.\n")


# --- how it is told ---


def test_a_reader_who_has_seen_enough(shell: Shell) -> None:
    with home(shell):
        command = f"{sys.executable} -m bridge check | head -1"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
        )
    assert done.stdout == "Settings\n"
    assert done.stderr == ""


def test_a_terminal_gets_colours_and_whole_words(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with home(shell, token=False):
        told = shell.run("check")
    assert "\033[31mproblem\033[0m" in told.text
    assert max(map(len, told.text.replace("\033[0m", "").splitlines())) <= 75
    monkeypatch.setenv("NO_COLOR", "1")
    with home(shell, token=False):
        assert "\033" not in shell.run("check").text
