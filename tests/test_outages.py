"""Gateway, broker or an endpoint fail and come back. What is published is true, and each failure is logged once."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import Mosquitto, watching
from houses import House, house, housed
from programs import BRIDGE_COMMAND, started
from running import running, settled, tree, until

from bridge.endpoints import BY_SOURCE
from bridge.simulator import Simulator
from bridge.simulator.cloud import LOGIN_PATH
from bridge.simulator.gateway import INFO_PATH, READINGS_PATH
from bridge.simulator.http import HttpReply, HttpRequest
from bridge.simulator.serve import self_signed

pytestmark = pytest.mark.hasty

UNREACHABLE = "connection refused: no broker listens there; trying again"
LOST = "the connection to the broker ended"


def all_are(home: House, text: str) -> bool:
    """Wait until the gateway and all of its sources have this state."""
    return {home.topic("state"), *home.availability.values()} == {text}


@pytest.mark.expects_log("no connection to the gateway", "the gateway can't be read")
@pytest.mark.may_log("which can't be")
async def test_a_gateway_that_goes_and_comes_back(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        sources = home.availability.keys()
        await home.unplug()
        await until(lambda: all_are(home, "offline"))
        assert home.seen["enphase/bridge/state"] == "online"
        assert home.availability.keys() == sources
        await until(lambda: "no connection" in (home.topic("gateway/problem") or ""))
        assert len(warned) == 2
        home.clock.forward(3600)
        await home.plug()
        await until(lambda: all_are(home, "online"))
        await until(lambda: home.topic("gateway/problem") == "none")
        load = home.simulator.truth().site.home.power
        await until(lambda: abs(float(home.topic("live/load/power") or 0) - load) <= 1)
        assert len([text for text in warned if "which can't be" not in text]) == 2


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
            await until(lambda: home.topic("gateway/problem") == "none")


@pytest.mark.may_log(UNREACHABLE, "which can't be")
@pytest.mark.expects_log(LOST)
async def test_a_broker_that_is_killed_and_comes_back_empty(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        before = home.seen
        await until(lambda: home.simulator.count(READINGS_PATH) > 3)  # a connection must last to count as one
        home.broker.kill()
        home.clock.forward(600)
        home.broker.start()
        async with watching(home.broker.port) as late:
            await until(lambda: tree(late).keys() >= before.keys())
            load = home.simulator.truth().site.home.power
            topic = f"enphase/{home.serial}/live/load/power"
            await until(lambda: abs(float(tree(late)[topic]) - load) <= 1)
            await until(lambda: tree(late)["enphase/bridge/state"] == "online")
            assert len(warned) <= 2  # it may come back before the first attempt


@pytest.mark.expects_log(UNREACHABLE)
async def test_a_broker_that_is_not_there_at_the_start(tmp_path: Path, warned: Sequence[str]) -> None:
    """The gateway is polled meanwhile, and only time is lost."""
    broker = Mosquitto(tmp_path)
    with ExitStack() as later:
        async with housed(tmp_path, broker, "three-phase") as home, running(home.settings()):
            await until(lambda: home.simulator.count(READINGS_PATH) > 1)
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
        home.simulator.faults.add(READINGS_PATH, "html")
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
            await until(lambda: home.topic("state") == "online")
            await until(lambda: home.topic("meter/production/power") is not None)
            assert len(warned) == 1


class MixedUpSimulator(Simulator):
    """A simulator that has other answers for some paths: those of other paths, or values in `tasks`."""

    instead: dict[str, str | dict[str, str]] = {}  # noqa: RUF012 - each test replaces it

    def _reply(self, request: HttpRequest) -> HttpReply:
        other = self.instead.get(request.path)
        if isinstance(other, str):
            return super()._reply(replace(request, path=other))
        reply = super()._reply(request)
        return (
            replace(reply, body=json.dumps(json.loads(reply.body) | {"tasks": other}).encode()) if other else reply
        )


@asynccontextmanager
async def mixed_up(folder: Path) -> AsyncIterator[tuple[House, MixedUpSimulator]]:
    with Mosquitto(folder) as broker:
        async with (
            housed(folder, broker, "three-phase", MixedUpSimulator) as home,
            watching(broker.port) as home.watcher,
            running(home.settings()),
        ):
            assert isinstance(home.simulator, MixedUpSimulator)
            await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
            yield home, home.simulator


@pytest.mark.expects_log("readings: the answer has no usable value: MeterReading: it has only an eid")
async def test_the_answer_to_another_request_keeps_no_value_fresh(tmp_path: Path, warned: Sequence[str]) -> None:
    async with mixed_up(tmp_path) as (home, simulator):
        simulator.instead = {READINGS_PATH: BY_SOURCE["meters"].path}
        await until(lambda: home.availability["readings"] == "offline")
        simulator.instead = {}
        await until(lambda: all_are(home, "online"))
        assert len(warned) == 1


@pytest.mark.expects_log(r"live/tasks: its document of \d{6} bytes is too long, and is not published")
async def test_a_document_that_is_too_long_is_cleared_and_its_values_go_on(
    tmp_path: Path, warned: Sequence[str]
) -> None:
    async with mixed_up(tmp_path) as (home, simulator):
        await until(lambda: bool(home.topic("live/tasks")))
        simulator.instead = {BY_SOURCE["livedata"].path: {f"t{number}": "日" * 255 for number in range(200)}}
        await until(lambda: home.topic("live/tasks/t199") == "日" * 255)
        await until(lambda: not home.topic("live/tasks"))
        assert all_are(home, "online")
        simulator.instead = {}
        await until(lambda: bool(home.topic("live/tasks")))
        assert len(warned) == 1


async def test_a_killed_bridge_leaves_its_will(tmp_path: Path) -> None:
    """After a power cut, the broker publishes that the bridge is offline."""
    async with house(tmp_path) as home:
        async with started(*BRIDGE_COMMAND, "run", env=home.environment) as program:
            await home.settled()
            assert home.seen["enphase/bridge/state"] == "online"
            await program.stop(signal.SIGKILL)
            await until(lambda: home.seen["enphase/bridge/state"] == "offline")
        # only the reader of earlier values, which has another client id, has disconnected properly
        assert not re.search(r"Received DISCONNECT from iqgateway2mqtt-[0-9a-f]{8}$", home.broker.log, re.MULTILINE)


@pytest.mark.expects_log("gateway 122301003111 answers at .* where 122301009999 is expected")
async def test_another_gateway_at_the_address_is_refused(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home:
        gateway = {"token": home.simulator.token(), "serial": "122301009999"}
        async with running(home.settings(gateway=gateway)):
            await until(lambda: "is expected" in home.seen.get("enphase/122301009999/gateway/problem", ""))
            assert home.seen["enphase/122301009999/state"] == "offline"
            assert not [topic for topic in home.seen if topic.startswith(f"enphase/{home.serial}/")]
            assert {seen.path for seen in home.simulator.requests} == {INFO_PATH}
            assert len(warned) == 1


@pytest.mark.may_log("refuses the token")
@pytest.mark.expects_log("gateway 122301009999 answers at .* where 122301003111 is expected")
async def test_a_gateway_that_is_exchanged_is_refused(tmp_path: Path) -> None:
    """The data of two gateways must not be mixed, and the old one's topics must not look up to date."""
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
    """With the same address, serial number and firmware it may still be a stranger."""
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        await home.unplug()
        known = home.simulator.count()
        await home.plug(self_signed(home.serial))
        await until(lambda: "TLS key has changed" in (home.topic("gateway/problem") or ""))
        await until(lambda: all_are(home, "offline"))
        assert {seen.path for seen in list(home.simulator.requests)[known:]} <= {INFO_PATH}
        assert len([line for line in warned if "TLS key" in line]) == 1


@pytest.mark.expects_log("Enphase's cloud is down")
async def test_without_a_token_a_cloud_that_is_down_is_told_once(tmp_path: Path, warned: Sequence[str]) -> None:
    """The problem names the cloud, not the gateway."""
    async with house(tmp_path) as home:
        home.simulator.faults.add("cloud", "503")
        async with running(home.settings(gateway=home.account)):
            await until(
                lambda: home.simulator.count(INFO_PATH) >= 3
            )  # the gateway is offline by now, and is probed
            problem = home.topic("gateway/problem") or ""
            assert problem.startswith("Enphase's cloud is down")
            assert home.topic("state") == "offline"
        assert len(warned) == 1


@pytest.mark.expects_log("the gateway (calls the token valid but refuses every|has none of the)")
@pytest.mark.parametrize(("fault", "words"), [("401", "refuses every endpoint"), ("404", "firmware is too old")])
async def test_a_gateway_that_lets_us_read_nothing_is_a_problem(
    fault: str, words: str, tmp_path: Path, warned: Sequence[str]
) -> None:
    """It is normal that a gateway lacks or refuses single endpoints, but not that it refuses all of them."""
    async with house(tmp_path) as home:
        for place in ("/ivp/*", "/api/*"):
            home.simulator.faults.add(place, fault)
        async with running(home.settings()):
            await until(lambda: words in (home.topic("gateway/problem") or ""))
            await until(lambda: home.availability == {"info": "online", "wifi": "online", "site": "offline"})
            home.simulator.faults.clear("/api/*")
            await until(lambda: home.topic("gateway/problem") == "none")
            await until(lambda: home.availability.get("production") == "online")
        assert len(warned) == 1


@pytest.mark.expects_log("refuses the password")
async def test_a_wrong_password_is_tried_once_whatever_is_restarted(tmp_path: Path, warned: Sequence[str]) -> None:
    """It is tried again after the setting has changed, and whenever somebody uses `token get`."""
    async with house(tmp_path) as home:
        home.simulator.faults.add("login", "wrong_password")
        logins = []
        for password in ("first", "first", "second"):
            told = len(warned)
            async with running(home.settings(gateway={**home.account, "password": password})):
                await until(lambda told=told: len(warned) > told)  # type: ignore[misc]
                logins.append(home.simulator.count(LOGIN_PATH))
        assert logins == [1, 1, 2]
        home.simulator.faults.clear()
        async with running(home.settings(gateway={**home.account})):
            await until(lambda: home.simulator.count(LOGIN_PATH) == 3)
            await until(lambda: home.topic("gateway/problem") == "none")


@pytest.mark.expects_log("the gateway is starting or overloaded", "the gateway can't be read")
async def test_an_overloaded_gateway_is_asked_no_more_often_than_a_healthy_one(tmp_path: Path) -> None:
    """Each probe may be three requests: with long periods, these were more than all polls together."""
    seconds = 200
    async with house(tmp_path) as home, running(home.settings(poll={"profile": "gentle"})):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"))
        home.simulator.faults.add("gateway", "503")
        await until(lambda: home.topic("state") == "offline", seconds=30)
        before = home.simulator.count()
        await asyncio.sleep(seconds)
        asked = home.simulator.count() - before
        assert 3 <= asked <= 3 + seconds / BY_SOURCE["livedata"].every.gentle
        home.simulator.faults.clear()
        await until(lambda: all_are(home, "online"))
