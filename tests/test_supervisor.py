"""What a service manager is told, and when the watchdog is left to starve."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from brokers import Mosquitto
from houses import house, housed
from programs import BRIDGE, started
from running import until

from bridge.commands.supervisor import Supervisor
from bridge.service import Bridge, Condition, make_poller
from bridge.service.pulse import LONGEST, Pulse
from bridge.store import Store

WELL = Condition(1)


class Manager:
    """As systemd listens; `said` are the lines so far."""

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
def attended(supervisor: Supervisor, *conditions: Condition) -> Iterator[None]:
    """A condition for each look; the last one stays."""
    left = list(conditions)
    task = asyncio.create_task(supervisor.attend(lambda: left.pop(0) if len(left) > 1 else left[0]))
    try:
        yield
    finally:
        task.cancel()


async def test_it_says_once_what_is_missing(manager: Manager) -> None:
    lacking = Condition(1, lacks=("no connection to the broker mqtt://broker:1883", "envoy.local:\nno answer"))
    supervisor = Supervisor({**manager.environment, "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid())})
    with attended(supervisor, lacking, lacking, WELL):
        await until(lambda: manager.said.count("WATCHDOG=1") >= 4)
    supervisor.stopping()
    assert [line for line in manager.said if line != "WATCHDOG=1"] == [
        "READY=1",
        "STATUS=no connection to the broker mqtt://broker:1883; envoy.local: no answer",
        "STATUS=publishing one gateway",
        "STOPPING=1",
        "STATUS=taking leave",
    ]


@pytest.mark.expects_log("stuck: the poller of envoy.local; only a new start helps")
async def test_a_stuck_part_is_not_fed(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    stuck = Condition(1, stuck=("the poller of envoy.local",))
    looks: list[Condition] = []

    def look() -> Condition:
        looks.append(stuck)
        return stuck

    task = asyncio.create_task(Supervisor({**manager.environment, "WATCHDOG_USEC": "3000"}).attend(look))
    await until(lambda: len(looks) > 5)
    task.cancel()
    assert "WATCHDOG=1" not in manager.said
    assert caplog.text.count("stuck") == 1


@pytest.mark.parametrize("watchdog", [{"WATCHDOG_USEC": "3000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {}])
async def test_a_watchdog_that_is_not_ours_is_not_fed(manager: Manager, watchdog: dict[str, str]) -> None:
    supervisor = Supervisor({**manager.environment, **watchdog})
    with attended(supervisor, WELL):
        await until(lambda: "STATUS=publishing one gateway" in manager.said)
    assert "WATCHDOG=1" not in manager.said


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:1234", "@nobody-listens-here"])
async def test_nobody_has_to_listen(address: str) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000"})
    looks: list[Condition] = []
    task = asyncio.create_task(supervisor.attend(lambda: looks.append(WELL) or WELL))
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
            async with started(*BRIDGE, "run", env={**watched, **reach}) as bridge:
                await until(lambda: "STATUS=publishing one gateway" in manager.said)
                await home.unplug()
                await until(lambda: any("no answer" in line for line in manager.said))
                fed = manager.said.count("WATCHDOG=1")
                await until(lambda: manager.said.count("WATCHDOG=1") > fed)
                assert await bridge.stop() == 0
    assert manager.said[0] == "READY=1"
    assert manager.said[-2:] == ["STOPPING=1", "STATUS=taking leave"]


def test_a_pulse_counts_from_its_last_promise() -> None:
    now = [0.0]
    pulse = Pulse("it", lambda: now[0])
    pulse.work()
    now[0] = LONGEST
    assert not pulse.stuck
    now[0] += 1
    assert pulse.stuck
    assert not pulse.resting
    pulse.rest(3600)
    assert pulse.resting
    now[0] += 3600 + LONGEST
    assert not pulse.stuck
    pulse.wait()
    now[0] += 1e9
    assert not pulse.stuck
    assert not pulse.resting


@pytest.mark.hasty
@pytest.mark.may_log("envoy|127.0.0.1|connection to the broker|readings|no whole answer|can't be read")
async def test_a_gateway_that_hangs_is_no_hang_of_ours(tmp_path: Path) -> None:
    """No answer ever, nor a broker: the bridge lives. A poller that waits for what nobody bounds does not."""
    reached = asyncio.Event()

    async def never(_serial: str) -> dict[str, float]:
        reached.set()
        return await asyncio.Future()

    async with house(tmp_path) as home:
        good = home.settings()
        bridge = Bridge(good)
        lost = make_poller(good, good.gateway, Store(tmp_path / "other"), lambda _: None, seeds=never)
        tasks = [asyncio.create_task(bridge.run()), asyncio.create_task(lost.run())]
        await home.settled()
        await reached.wait()
        home.simulator.faults.add("gateway", "hang")
        home.broker.stop()
        ill: set[str] = set()
        while not lost.pulse.stuck:
            ill.update(bridge.condition.stuck)
            await asyncio.sleep(5)
        await asyncio.sleep(LONGEST / 5)
        ill.update(bridge.condition.stuck)
        assert bridge.condition.lacks
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await lost.aclose()
    assert ill == set()
