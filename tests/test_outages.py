"""What is gone comes back: the gateway, the broker, one endpoint. What is told meanwhile is true, and told once."""

import asyncio
import re
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from brokers import Mosquitto, watching
from houses import House, house, housed
from programs import BRIDGE, started
from running import running, settled, tree, until

from bridge.endpoints import BY_SOURCE
from bridge.simulator.cloud import LOGIN
from bridge.simulator.gateway import INFO, READINGS
from bridge.simulator.serve import self_signed

pytestmark = pytest.mark.hasty

UNREACHABLE = "connection refused: no broker listens there; trying again"
LOST = "the connection to the broker ended"


def all_are(home: House, text: str) -> bool:
    """The gateway's state and each of its sources."""
    return {home.topic("state"), *home.availability.values()} == {text}


@pytest.mark.expects_log("no connection to the gateway", "the gateway can't be read")
async def test_a_gateway_that_goes_and_comes_back(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        sources = home.availability.keys()
        await home.unplug()
        await until(lambda: all_are(home, "offline"))
        assert home.seen["enphase/bridge/state"] == "online"
        assert home.availability.keys() == sources
        assert "no connection" in (home.topic("gateway/problem") or "")
        assert len(warned) == 2
        home.clock.forward(3600)
        await home.plug()
        await until(lambda: all_are(home, "online"))
        await until(lambda: home.topic("gateway/problem") == "none")
        load = home.simulator.truth().site.home.power
        await until(lambda: abs(float(home.topic("live/load/power") or 0) - load) <= 1)
        assert len(warned) == 2


@pytest.mark.expects_log("no connection to the gateway")
async def test_a_gateway_that_is_down_at_the_start_is_found_later(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home:
        await home.unplug()
        async with running(home.settings(gateway={"token": home.simulator.token(), "serial": home.serial})):
            await until(lambda: home.topic("state") == "offline")
            await until(lambda: "no connection" in (home.topic("gateway/problem") or ""))
            assert len(warned) == 1
            await home.plug()
            await home.settled()
            await until(lambda: all_are(home, "online"))
            assert home.topic("gateway/problem") == "none"


@pytest.mark.may_log(UNREACHABLE)
@pytest.mark.expects_log(LOST)
async def test_a_broker_that_is_killed_and_comes_back_empty(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        before = home.seen
        await until(lambda: home.simulator.count(READINGS) > 3)  # a connection must last to count as one
        home.broker.kill()
        home.clock.forward(600)
        home.broker.start()
        async with watching(home.broker.port) as late:
            await until(lambda: tree(late).keys() >= before.keys())
            load = home.simulator.truth().site.home.power
            topic = f"enphase/{home.serial}/live/load/power"
            await until(lambda: abs(float(tree(late)[topic]) - load) <= 1)
            assert tree(late)["enphase/bridge/state"] == "online"
            assert len(warned) <= 2  # it may come back before anybody has tried


@pytest.mark.expects_log(UNREACHABLE)
async def test_a_broker_that_is_not_there_at_the_start(tmp_path: Path, warned: Sequence[str]) -> None:
    """The gateway is polled meanwhile, and nothing is lost but time."""
    broker = Mosquitto(tmp_path)
    with ExitStack() as later:
        async with housed(tmp_path, broker, "three-phase") as home, running(home.settings()):
            await until(lambda: home.simulator.count(READINGS) > 1)
            assert len(warned) == 1
            later.enter_context(broker)
            async with watching(broker.port) as home.watcher:
                await home.settled()
                assert len(warned) == 1


@pytest.mark.expects_log("readings: the answer is not JSON")
async def test_a_page_instead_of_data_costs_one_source(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        others = {source: "online" for source in home.availability if source != "readings"}
        home.simulator.faults.add(READINGS, "html")
        await until(lambda: home.availability == others | {"readings": "offline", "site": "offline"})
        assert home.topic("state") == "online"
        assert len(warned) == 1
        power = home.topic("meter/production/power")
        assert power is not None
        home.simulator.faults.clear()
        await until(lambda: all_are(home, "online"))
        assert len(warned) == 1


@pytest.mark.expects_log("WARNING grid: ")
@pytest.mark.parametrize(
    "fault", ["503", "500", "empty", "truncated", "error_object", "garbage", "reset", "drop", "hang"]
)
async def test_one_endpoint_that_fails_costs_only_itself(fault: str, tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home:
        home.simulator.faults.add("/ivp/meters/gridReading", fault)
        async with running(home.settings()):
            await until(lambda: home.availability.get("grid") == "offline" and len(home.availability) > 9)
            await until(
                lambda: {**home.availability, "grid": "online"} == dict.fromkeys(home.availability, "online")
            )
            assert home.topic("state") == "online"
            assert home.topic("meter/production/power") is not None
            assert len(warned) == 1


async def test_a_killed_bridge_leaves_its_will(tmp_path: Path) -> None:
    """As after a power cut: it is the broker that says so."""
    async with house(tmp_path) as home:
        environment = {
            "BRIDGE_GATEWAY__HOST": home.url,
            "BRIDGE_GATEWAY__TOKEN": home.simulator.token(),
            "BRIDGE_MQTT__URL": home.broker.url,
            "BRIDGE_STATE_DIR": str(tmp_path / "state"),
        }
        async with started(*BRIDGE, "run", env=environment) as program:
            await home.settled()
            assert home.seen["enphase/bridge/state"] == "online"
            await program.stop(signal.SIGKILL)
            await until(lambda: home.seen["enphase/bridge/state"] == "offline")
        # the reader of earlier values took leave as it should
        assert not re.search(r"Received DISCONNECT from iqgateway2mqtt-[0-9a-f]{8}$", home.broker.log, re.MULTILINE)


@pytest.mark.expects_log("gateway 122301003111 answers at .* where 122301009999 is expected")
async def test_another_gateway_at_the_address_is_refused(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home:
        gateway = {"token": home.simulator.token(), "serial": "122301009999"}
        async with running(home.settings(gateway=gateway)):
            await until(lambda: "is expected" in home.seen.get("enphase/122301009999/gateway/problem", ""))
            assert home.seen["enphase/122301009999/state"] == "offline"
            assert not [topic for topic in home.seen if topic.startswith(f"enphase/{home.serial}/")]
            assert {seen.path for seen in home.simulator.requests} == {INFO}
            assert len(warned) == 1


@pytest.mark.may_log("refuses the token")
@pytest.mark.expects_log("gateway 122301009999 answers at .* where 122301003111 is expected")
async def test_a_gateway_that_is_exchanged_is_refused(tmp_path: Path) -> None:
    """Two gateways' data must not be mixed; the tree of the old one must not look alive."""
    async with house(tmp_path) as home, running(home.settings(poll={"info": 5})):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        serial = home.serial
        home.simulator.become(serial="122301009999")
        await until(lambda: "is expected" in home.seen.get(f"enphase/{serial}/gateway/problem", ""))
        await until(lambda: home.seen[f"enphase/{serial}/state"] == "offline")
        assert not [topic for topic in home.seen if topic.startswith(f"enphase/{home.serial}/")]


@pytest.mark.may_log("no connection")
@pytest.mark.expects_log("the gateway's TLS key has changed")
async def test_a_stranger_with_another_key_gets_nothing(tmp_path: Path, warned: Sequence[str]) -> None:
    """Same address, same serial number, same firmware: it may be anybody."""
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        await home.unplug()
        known = home.simulator.count()
        await home.plug(self_signed(home.serial))
        await until(lambda: "TLS key has changed" in (home.topic("gateway/problem") or ""))
        await until(lambda: all_are(home, "offline"))
        assert {seen.path for seen in list(home.simulator.requests)[known:]} <= {INFO}
        assert len([line for line in warned if "TLS key" in line]) == 1


@pytest.mark.may_log("no connection")
@pytest.mark.expects_log("TLS key changed with its firmware D8.3.9999: pinned anew")
async def test_an_update_that_brings_a_new_key_is_followed(tmp_path: Path) -> None:
    """A house that nobody looks at must not go dark over night."""
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        await home.unplug()
        home.simulator.become(firmware="D8.3.9999")
        await home.plug(self_signed(home.serial))
        await until(lambda: home.topic("gateway/firmware") == "D8.3.9999")
        await until(lambda: all_are(home, "online"))
        assert home.topic("gateway/problem") == "none"


@pytest.mark.expects_log("Enphase's cloud is down")
async def test_without_a_token_a_cloud_that_is_down_is_told_once(tmp_path: Path, warned: Sequence[str]) -> None:
    """And it is not the gateway that can't be read."""
    async with house(tmp_path) as home:
        home.simulator.faults.add("cloud", "503")
        async with running(home.settings(gateway=home.account)):
            await until(lambda: home.simulator.count(INFO) >= 3)  # it has been given up, and is looked at
            problem = home.topic("gateway/problem") or ""
            assert problem.startswith("Enphase's cloud is down")
            assert home.topic("state") == "offline"
        assert len(warned) == 1


@pytest.mark.expects_log("the gateway (answers but refuses every|has none of the)")
@pytest.mark.parametrize(("fault", "words"), [("401", "refuses every endpoint"), ("404", "firmware is too old")])
async def test_a_gateway_that_lets_us_read_nothing_is_a_problem(
    fault: str, words: str, tmp_path: Path, warned: Sequence[str]
) -> None:
    """Single endpoints that are refused to a good token, or lacking, are usual; all of them are not."""
    async with house(tmp_path) as home:
        for place in ("/ivp/*", "/api/*"):
            home.simulator.faults.add(place, fault)
        async with running(home.settings()):
            await until(lambda: words in (home.topic("gateway/problem") or ""))
            assert set(home.availability) == {"info"}
            home.simulator.faults.clear("/api/*")
            await until(lambda: home.topic("gateway/problem") == "none")
            assert home.availability["production"] == "online"
        assert len(warned) == 1


@pytest.mark.expects_log("refuses the password")
async def test_a_wrong_password_is_tried_once_whatever_is_restarted(tmp_path: Path, warned: Sequence[str]) -> None:
    """It is tried again where the setting has changed; `token get` tries whenever somebody wants it to."""
    async with house(tmp_path) as home:
        home.simulator.faults.add("login", "wrong_password")
        logins = []
        for password in ("first", "first", "second"):
            told = len(warned)
            async with running(home.settings(gateway={**home.account, "password": password})):
                await until(lambda told=told: len(warned) > told)  # type: ignore[misc]
                logins.append(home.simulator.count(LOGIN))
        assert logins == [1, 1, 2]
        home.simulator.faults.clear()
        async with running(home.settings(gateway={**home.account})):
            await until(lambda: home.simulator.count(LOGIN) == 3)
            await until(lambda: home.topic("gateway/problem") == "none")


@pytest.mark.expects_log("the gateway is starting or overloaded", "the gateway can't be read")
async def test_an_overloaded_gateway_is_asked_no_more_often_than_a_healthy_one(tmp_path: Path) -> None:
    """Each look at it is tried three times: with seldom polls that was more than all polls together."""
    seconds = 200
    async with house(tmp_path) as home, running(home.settings(poll={"profile": "gentle"})):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        home.simulator.faults.add("gateway", "503")
        await until(lambda: home.topic("state") == "offline", seconds=30)
        before = home.simulator.count()
        await asyncio.sleep(seconds)
        asked = home.simulator.count() - before
        assert 3 <= asked <= 3 + seconds / BY_SOURCE["livedata"].gentle
        home.simulator.faults.clear()
        await until(lambda: all_are(home, "online"))
