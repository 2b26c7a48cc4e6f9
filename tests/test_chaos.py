"""Ten minutes in which gateway, cloud and broker fail at random: no false value is published, and all recovers."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from brokers import Mosquitto, watching
from houses import House, housed
from running import running, until

from bridge.model import Message

pytestmark = pytest.mark.hasty

DURATION_S = 600.0
COUNTERS = ("energy_delivered", "energy_received", "energy_lifetime", "energy_imported", "energy_exported")
GATEWAY_FAULTS = (
    "503",
    "500",
    "html",
    "empty",
    "truncated",
    "error_object",
    "status_object",
    "garbage",
    "reset",
    "drop",
)
PLACES = ("/ivp/*", "/api/*", "/ivp/meters/readings", "/ivp/livedata/status", "/info", "gateway")
CLOUD_FAULTS = ("down", "html", "blocked", "timeout")


class Chaos:
    """One fault, chosen by a seed, and its end."""

    def __init__(self, home: House, seed: int) -> None:
        self._home, self._random = home, random.Random(seed)  # noqa: S311 - no secret
        self._deeds: tuple[Callable[[], object], ...] = (
            self._fault,
            self._fault,
            self._fault,
            self._cloud,
            self._unplug,
            self._silence,
            self._reboot,
            self._revoke,
        )

    async def wreak(self) -> None:
        done = self._random.choice(self._deeds)()
        if asyncio.iscoroutine(done):
            await done
        await asyncio.sleep(self._random.uniform(5, 25))
        if self._random.random() < 0.6:
            self._home.simulator.faults.clear()

    def _fault(self) -> None:
        place, fault = self._random.choice(PLACES), self._random.choice(GATEWAY_FAULTS)
        self._home.simulator.faults.add(place, fault, times=self._random.randint(1, 8))

    def _cloud(self) -> None:
        self._home.simulator.faults.add("cloud", self._random.choice(CLOUD_FAULTS), times=2)

    async def _unplug(self) -> None:
        await self._home.unplug()
        await asyncio.sleep(self._random.uniform(5, 60))
        await self._home.plug()

    async def _silence(self) -> None:
        self._home.broker.stop()
        await asyncio.sleep(self._random.uniform(1, 30))
        self._home.broker.start()

    def _reboot(self) -> None:
        self._home.simulator.reboot(zeros=self._random.uniform(5, 40))

    def _revoke(self) -> None:
        self._home.simulator.revoke_tokens()


@asynccontextmanager
async def passing(home: House) -> AsyncIterator[None]:
    """Move the house's clock with real time."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.5)
            home.clock.forward(0.5)

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()


def fallen(sent: list[tuple[str, str]]) -> list[tuple[str, float, float]]:
    """The counters whose published value has decreased."""
    newest: dict[str, float] = {}
    falls = []
    for topic, payload in sent:
        if topic.rpartition("/")[2] in COUNTERS and "/report/" not in topic and payload != "None":
            value = float(payload)
            if value < newest.get(topic, value):
                falls.append((topic, newest[topic], value))
            newest[topic] = value
    return falls


@pytest.mark.expects_log("WARNING|ERROR|.")
@pytest.mark.parametrize("seed", [2])
async def test_ten_minutes_of_everything(seed: int, tmp_path: Path) -> None:
    sent: list[tuple[str, str]] = []

    def note(message: Message) -> None:
        sent.append((message.topic, message.payload))

    with Mosquitto(tmp_path) as broker:
        async with housed(tmp_path, broker, "three-phase") as home:
            settings = home.settings(gateway=home.account)
            async with passing(home), running(settings, on_sent=note, now=home.clock):
                loop, chaos = asyncio.get_running_loop(), Chaos(home, seed)
                end = loop.time() + DURATION_S
                while loop.time() < end:
                    await chaos.wreak()
                home.simulator.faults.clear()
                async with watching(broker.port) as home.watcher:
                    # After a failure of the cloud, the bridge does not ask it for a quarter of an hour.
                    await until(lambda: home.topic("state") == "online", seconds=200)
                    await until(lambda: set(home.availability.values()) == {"online"}, seconds=120)
                    await until(lambda: as_is_true(home), seconds=120)
                    assert home.topic("gateway/problem") == "none"
    assert len(sent) > 2000
    assert fallen(sent) == []
    topics = {topic for topic, _ in sent}
    assert not any(secret in text for secret in ("correct horse", home.simulator.token()[:40]) for text in topics)


def as_is_true(home: House) -> bool:
    """Whether the published values of all meters, phases and flows are true, as of a moment ago."""
    true = home.simulator.truth()
    wanted = {
        f"meter/{role}/energy_{way}": getattr(meter.total, way)
        for role, meter in true.meters.items()
        if role in ("production", "net-consumption", "storage")
        for way in ("delivered", "received")
    }
    return all(near(home.topic(name), value, 60.0) for name, value in wanted.items()) and near(
        home.topic("site/home/power"), true.site.home.power, 1500.0
    )


def near(text: str | None, value: float, slack: float) -> bool:
    return text is not None and text != "None" and abs(float(text) - value) <= slack
