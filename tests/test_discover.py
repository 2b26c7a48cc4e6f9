"""`discover`, against gateways that announce themselves over real mDNS on the loopback interface."""

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from brokers import OWN_NETWORK
from cli import NOWHERE, Shell, Told, served, shell
from nearby import LOOPBACK, alone, announced, announcing, announcing_names
from programs import BRIDGE_COMMAND, started

from bridge.gateway import mdns
from bridge.gateway.mdns import DiscoveredGateway, Search
from bridge.simulator import Simulator

__all__ = ["alone", "shell"]
ANNOUNCED = mdns.SERVICE_TYPE
pytestmark = pytest.mark.usefixtures("alone")


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def discover(shell: Shell, seconds: str = "3") -> Told:
    return shell.run("discover", "--seconds", seconds, "--interface", LOOPBACK)


def test_a_gateway_is_found_with_serial_number_firmware_and_its_setting(shell: Shell) -> None:
    simulator = Simulator("three-phase")
    with served(shell, simulator) as address, announced(simulator.serial, int(address.rpartition(":")[2])):
        told = discover(shell)
    assert told.code == 0
    assert f"Gateway {simulator.serial}\n" in told.text
    assert told.about("firmware").text == "D8.3.5167"
    assert told.about("setting").text == f"BRIDGE_GATEWAY__HOST={address}"
    assert told.about("answer").word == "ok"
    assert "1 gateway. " in told.text


def test_the_service_is_the_one_that_gateways_announce() -> None:
    assert ANNOUNCED == "_enphase-envoy._tcp.local."


def test_legacy_firmware_is_named_with_its_scheme(shell: Shell) -> None:
    simulator = Simulator("legacy")
    with (
        served(shell, simulator, tls=False) as address,
        announced(simulator.serial, int(address.rpartition(":")[2]), firmware="3.17.3"),
    ):
        told = discover(shell)
    assert told.code == 0
    assert told.about("setting").text == f"BRIDGE_GATEWAY__HOST=http://{address}"
    assert told.about("firmware").text == "D3.18.10"


def test_another_gateway_at_the_announced_address_is_told(shell: Shell) -> None:
    simulator = Simulator("three-phase")
    with served(shell, simulator) as address, announced("202233445566", int(address.rpartition(":")[2])):
        told = discover(shell)
    assert told.about("answer").word == "note"
    assert simulator.serial in told.about("answer").text


def test_a_gateway_that_does_not_answer_is_named_all_the_same(shell: Shell) -> None:
    with announced("202233445566", int(NOWHERE.rpartition(":")[2])):
        told = discover(shell)
    assert told.code == 69
    assert told.about("firmware").text == "8.3.5167"
    assert told.about("answer").word == "problem"


def test_several_are_told_by_serial_number(shell: Shell) -> None:
    with ExitStack() as stack:
        for serial in ("202233445577", "202233445566"):
            stack.enter_context(announced(serial, 9))
        told = discover(shell)
    places = [told.text.index(serial) for serial in ("202233445566", "202233445577")]
    assert places == sorted(places)
    assert "2 gateways. " in told.text


@pytest.mark.parametrize("serial", ["", "../../etc", "12 34", "1" * 33])
def test_what_has_no_serial_number_is_nobody(shell: Shell, serial: str) -> None:
    with announced("202233445599", 9, serialnum=serial):
        told = discover(shell)
    assert told.code == 69
    assert "no gateway has announced itself within 3 s" in told.text
    assert "router" in told.text


def test_without_the_extra_it_says_what_to_install(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf.asyncio", None)
    told = discover(shell)
    assert told.code == 78
    assert f"this installs it: {sys.executable} -m pip install '" in told.errors
    assert told.errors.endswith("[discover]'\n")


async def test_without_a_network_it_says_so_and_what_to_do() -> None:
    """A namespace of its own has no network at all."""
    async with started(*OWN_NETWORK, *BRIDGE_COMMAND, "discover", "--seconds", "1") as program:
        assert await program.ended() == 69, program.err
    (line,) = program.out
    assert "problem  mDNS" in line
    assert "this machine has no network" in line
    assert "BRIDGE_GATEWAY__HOST" in line
    assert program.err == ["Listening for 1 s ..."]


def test_an_interface_of_another_machine_is_named(shell: Shell) -> None:
    told = shell.run("discover", "--seconds", "1", "--interface", "192.0.2.7")
    assert told.code == 78
    assert "--interface: 192.0.2.7 is no address of this machine" in told.errors


@pytest.mark.parametrize(
    ("address", "port", "firmware", "host"),
    [
        ("192.168.1.20", 80, "8.3.5167", "192.168.1.20"),
        ("192.168.1.20", 443, "", "192.168.1.20"),
        ("192.168.1.20", 8443, "7.0.88", "192.168.1.20:8443"),
        ("192.168.1.20", 80, "5.0.62", "http://192.168.1.20"),
        ("fd00::20", 80, "8.2.4264", "[fd00::20]"),
    ],
)
def test_the_setting_follows_from_port_and_firmware(address: str, port: int, firmware: str, host: str) -> None:
    assert DiscoveredGateway("1", address, port, "envoy.local", firmware).host == host


async def test_the_search_finds_the_one_gateway_among_others() -> None:
    search = Search([LOOPBACK], listen=1.5)
    async with announcing("202233445566", 8001), announcing("202233445577", 8002):
        assert await search.find("202233445577") == "127.0.0.1:8002"
        assert await search.find("202233445588") is None


async def test_names_behind_which_nobody_answers_delay_nothing() -> None:
    """Each was waited for in turn, two seconds long and whatever the limit of the search: 200 took minutes."""
    async with announcing("202233445577", 8002):
        with announcing_names(200):
            async with asyncio.timeout(15):
                assert await Search([LOOPBACK], listen=3.0).find("202233445577") == "127.0.0.1:8002"


async def test_gateways_that_search_at_the_same_time_share_one_search() -> None:
    """Each opened three sockets and more, so 400 gateways behind a broken line left none for the broker."""
    search = Search([LOOPBACK], listen=1.5)
    async with announcing("202233445577", 8002):
        open_before = open_files()
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(search.find("202233445577")) for _ in range(100)]
            await asyncio.sleep(0.5)
            assert open_files() - open_before < 10
    assert {one.result() for one in found} == {"127.0.0.1:8002"}
