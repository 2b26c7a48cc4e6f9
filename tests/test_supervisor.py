"""The notifications to systemd, and when its watchdog is no longer fed."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import Mosquitto
from houses import house, housed
from programs import BRIDGE_COMMAND, started
from running import until
from test_web import BROKER, GATEWAY, STATUS

from bridge.commands.run import Supervisor
from bridge.service.assembly import make_poller
from bridge.service.bridge import Bridge
from bridge.service.status import MAX_WORK_S, Status, Watchdog
from bridge.store import Store

WELL = STATUS


class Manager:
    """Listens as systemd does; `said` are the lines so far."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.environment = {"NOTIFY_SOCKET": address}
        self._said: list[str] = []

    @property
    def said(self) -> list[str]:
        with suppress(BlockingIOError):
            while True:
                self._said += self._socket.recv(4096).decode().split("\n")
        return self._said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@iqgateway2mqtt-test-{os.getpid()}"
    listening = Manager(address)
    yield listening
    listening.close()


@contextmanager
def attended(supervisor: Supervisor, *statuses: Status) -> Iterator[None]:
    """Let a supervisor watch these statuses, one at each look. The last one stays."""
    left = list(statuses)
    task = asyncio.create_task(supervisor.watch(lambda: left.pop(0) if len(left) > 1 else left[0]))
    try:
        yield
    finally:
        task.cancel()


async def test_each_status_is_told_once(manager: Manager) -> None:
    gone = replace(GATEWAY, online=False, problem="no\nanswer")
    degraded = replace(STATUS, broker=replace(BROKER, connected=False), gateways=(gone,))
    supervisor = Supervisor({**manager.environment, "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid())})
    with attended(supervisor, degraded, degraded, WELL):
        await until(lambda: manager.said.count("WATCHDOG=1") >= 4)
    supervisor.stopping()
    assert [line for line in manager.said if line != "WATCHDOG=1"] == [
        "READY=1",
        "STATUS=no connection to the broker mqtt://broker:1883; gateway 192.0.2.7: no answer",
        "STATUS=publishing one gateway",
        "STOPPING=1",
        "STATUS=stopping",
    ]


def test_warnings_are_summed_up_behind_problems() -> None:
    warned = replace(GATEWAY, host="envoy.local", problem="the token expires soon")
    gone = replace(GATEWAY, online=False, problem="no answer")
    status = replace(STATUS, gateways=(warned, gone), standing_by={"122": "enphase/bridge/one"})
    assert (status.problems, status.warnings) == (
        ["gateway 192.0.2.7: no answer"],
        ["gateway envoy.local: the token expires soon", "gateway 122: polled by enphase/bridge/one"],
    )
    assert status.summary == "; ".join((*status.problems, *status.warnings))
    assert replace(STATUS, gateways=(GATEWAY, GATEWAY)).summary == "publishing 2 gateways"


@pytest.mark.expects_log("stuck: the poller of envoy.local; only a restart helps")
async def test_a_stuck_part_is_not_fed(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    stuck = replace(WELL, stuck=("the poller of envoy.local",))
    looks: list[Status] = []

    def look() -> Status:
        looks.append(stuck)
        return stuck

    task = asyncio.create_task(Supervisor({**manager.environment, "WATCHDOG_USEC": "3000"}).watch(look))
    await until(lambda: len(looks) > 5)
    task.cancel()
    assert "WATCHDOG=1" not in manager.said
    assert caplog.text.count("stuck") == 1


@pytest.mark.parametrize(
    "watchdog",
    [{"WATCHDOG_USEC": "3000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "9" * 400}, {}],
)
async def test_a_watchdog_that_is_not_ours_is_not_fed(manager: Manager, watchdog: dict[str, str]) -> None:
    supervisor = Supervisor({**manager.environment, **watchdog})
    with attended(supervisor, WELL):
        await until(lambda: "STATUS=publishing one gateway" in manager.said)
    assert "WATCHDOG=1" not in manager.said


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:1234", "@nobody-listens-here"])
async def test_nobody_has_to_listen(address: str) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000"})
    looks: list[Status] = []

    def look() -> Status:
        looks.append(WELL)
        return WELL

    task = asyncio.create_task(supervisor.watch(look))
    await until(lambda: len(looks) > 3)
    assert not task.done()
    task.cancel()
    supervisor.reloading()
    supervisor.stopping()


async def test_the_program_tells_what_it_does(manager: Manager, tmp_path: Path) -> None:
    watched = {**manager.environment, "WATCHDOG_USEC": "300000", "BRIDGE_STATE_DIR": str(tmp_path / "state")}
    with Mosquitto(tmp_path) as broker:
        async with housed(tmp_path, broker, "legacy") as home:
            reach = {"BRIDGE_GATEWAY__HOST": home.url, "BRIDGE_MQTT__URL": broker.url}
            async with started(*BRIDGE_COMMAND, "run", env={**watched, **reach}) as bridge:
                await until(lambda: "STATUS=publishing one gateway" in manager.said)
                await home.unplug()
                await until(lambda: any("no answer" in line for line in manager.said))
                fed = manager.said.count("WATCHDOG=1")
                await until(lambda: manager.said.count("WATCHDOG=1") > fed)
                assert await bridge.stop() == 0
    assert manager.said[0] == "READY=1"
    assert manager.said[-2:] == ["STOPPING=1", "STATUS=stopping"]


def test_a_watchdog_counts_from_the_last_call() -> None:
    now = [0.0]
    watchdog = Watchdog("it", lambda: now[0])
    watchdog.busy()
    now[0] = MAX_WORK_S
    assert not watchdog.expired
    now[0] += 1
    assert watchdog.expired
    assert not watchdog.is_idle
    watchdog.idle(3600)
    assert watchdog.is_idle
    now[0] += 3600 + MAX_WORK_S
    assert not watchdog.expired
    watchdog.disarm()
    now[0] += 1e9
    assert not watchdog.expired
    assert not watchdog.is_idle


@pytest.mark.hasty
@pytest.mark.may_log("envoy|127.0.0.1|connection to the broker|readings|no whole answer|can't be read")
async def test_a_gateway_that_hangs_does_not_make_the_bridge_stuck(tmp_path: Path) -> None:
    """A bridge without gateway and broker is not stuck. A poller that waits without a limit is."""
    reached = asyncio.Event()

    async def never(_serial: str) -> dict[str, float]:
        reached.set()
        return await asyncio.Future()

    async with house(tmp_path) as home:
        good = home.settings()
        bridge = Bridge(good)
        lost = make_poller(good, good.gateway, Store(tmp_path / "other"), lambda _: None, retained_values=never)
        tasks = [asyncio.create_task(bridge.run()), asyncio.create_task(lost.run())]
        await home.settled()
        await reached.wait()
        home.simulator.faults.add("gateway", "hang")
        home.broker.stop()
        ill: set[str] = set()
        while not lost.watchdog.expired:
            ill.update(bridge.status(details=False).stuck)
            await asyncio.sleep(5)
        await asyncio.sleep(MAX_WORK_S / 5)
        ill.update(bridge.status(details=False).stuck)
        assert bridge.status(details=False).problems
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await lost.aclose()
    assert ill == set()
