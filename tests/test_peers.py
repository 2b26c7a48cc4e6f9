"""Two bridges and one gateway: which one polls it, and what the other one does meanwhile."""

import asyncio
import json
import signal
import tracemalloc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import Line, Mosquitto, Seen, send, watching
from houses import House, house, housed, publish
from programs import BRIDGE_COMMAND, started
from running import COUNTER_TOPIC, running, until

from bridge.service.peers import Peers
from bridge.topics import Names

OWN_START, EARLIER_START, LATER_START = (
    "2026-11-25T08:00:00+00:00",
    "2026-11-25T07:59:59.999000+00:00",
    "2026-11-25T08:00:01+00:00",
)
GATEWAY = "122125067699"
ODD_INFOS: tuple[Mapping[str, object], ...] = (
    *({"gateways": odd} for odd in (7, None, GATEWAY, [7], [[GATEWAY]], {GATEWAY: 1}, [GATEWAY * 3])),
    *({"started": odd} for odd in (0, None, "", "long ago", "2000-01-01" + " " * 10_000)),
    *({"heartbeat": odd} for odd in (None, "soon", [60])),
)
"""What a bridge can't have written into its info."""
LONG_INTRODUCTION_S = 60.0
"""Seconds to wait for other bridges: the loop's time runs fast, the broker's does not."""


class Listening:
    """A bridge called `us` that gets the messages of others. `repeated` counts how often it repeats its own."""

    def __init__(self, name: str | None = "us") -> None:
        self.repeated = 0
        self.peers = Peers(Names("solar", name), OWN_START, self._repeat, ours=lambda: frozenset({GATEWAY}))

    def _repeat(self, *topics: str) -> None:
        self.repeated += 1
        assert topics == ("solar/bridge/us/state", "solar/bridge/us/info")

    def info(
        self, name: str, started: str, *gateways: str, retained: bool = True, every: float | None = 60
    ) -> None:
        body: dict[str, object] = {"version": "9", "started": started, "gateways": gateways}
        body |= {} if every is None else {"heartbeat": every}
        self.peers.on_message(f"solar/bridge{name}/info", json.dumps(body).encode(), retained=retained)

    def state(self, name: str, text: str, *, retained: bool = True) -> None:
        self.peers.on_message(f"solar/bridge{name}/state", text.encode(), retained=retained)


async def test_the_bridge_that_started_first_owns_the_gateway() -> None:
    ours = Listening()
    ours.info("/them", EARLIER_START, "1", GATEWAY)
    assert ours.peers.owner_of(GATEWAY) is None  # the other bridge is not known to be online
    ours.state("/them", "online")
    assert ours.peers.owner_of(GATEWAY) == "solar/bridge/them"
    assert ours.peers.owner_of("2") is None
    assert ours.peers.owner_of(None) is None
    ours.state("/them", "offline")
    assert ours.peers.owner_of(GATEWAY) is None


@pytest.mark.parametrize(
    ("name", "started", "ahead"),
    [
        ("/a", OWN_START, True),
        ("/z", OWN_START, False),
        ("", OWN_START, True),
        ("/a", LATER_START, False),
        ("/z", EARLIER_START, True),
    ],
)
async def test_of_two_bridges_exactly_one_precedes(name: str, started: str, ahead: bool) -> None:
    ours = Listening()
    ours.state(name, "online")
    ours.info(name, started, GATEWAY)
    assert (ours.peers.owner_of(GATEWAY) == f"solar/bridge{name}") is ahead


async def test_a_gateway_that_its_owner_gives_up_is_free() -> None:
    ours = Listening()
    ours.state("/a", "online")
    ours.info("/a", EARLIER_START, GATEWAY)
    change = asyncio.ensure_future(ours.peers.wait_for_change())
    await asyncio.sleep(0)
    ours.info("/a", EARLIER_START, GATEWAY)
    await asyncio.sleep(0)
    assert not change.done()
    ours.info("/a", EARLIER_START)
    await change
    assert ours.peers.owner_of(GATEWAY) is None


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b"null"),
        *(json.dumps({"started": EARLIER_START, "gateways": [GATEWAY], **odd}).encode() for odd in ODD_INFOS),
    ],
)
async def test_messages_that_no_bridge_can_have_sent_are_ignored(payload: bytes) -> None:
    ours = Listening()
    ours.state("/a", "online")
    ours.peers.on_message("solar/bridge/a/info", payload, retained=True)
    ours.info("s/a", EARLIER_START, GATEWAY)
    ours.peers.on_message("other/bridge/a/info", payload, retained=True)
    assert ours.peers.owner_of(GATEWAY) is None


async def test_retained_messages_of_an_earlier_run_of_ours_are_ignored() -> None:
    ours = Listening()
    ours.state("/us", "online")
    ours.info("/us", EARLIER_START, GATEWAY)
    assert ours.peers.owner_of(GATEWAY) is None
    assert ours.repeated == 0
    waiting = asyncio.ensure_future(ours.peers.wait_until_known())
    await asyncio.sleep(0)
    assert not waiting.done()
    ours.info("/us", OWN_START, retained=False)
    await waiting
    assert ours.repeated == 0


async def test_an_earlier_bridge_of_the_same_name_owns_the_gateway() -> None:
    ours = Listening()
    ours.info("/us", EARLIER_START, GATEWAY, retained=False)
    assert ours.peers.owner_of(GATEWAY) == "solar/bridge/us"
    assert ours.repeated == 0
    ours.state("/us", "offline", retained=False)
    assert ours.peers.owner_of(GATEWAY) is None
    assert ours.repeated == 1  # this topic is also ours


async def test_our_messages_are_repeated_for_a_later_bridge_of_the_same_name() -> None:
    ours = Listening()
    ours.info("/us", LATER_START, GATEWAY, retained=False)
    assert ours.peers.owner_of(GATEWAY) is None
    assert ours.repeated == 1


# Who is alive


def echo(ours: Listening) -> None:
    """Our own info comes back from the broker."""
    ours.info("/us", OWN_START, retained=False)


@pytest.mark.hasty
@pytest.mark.parametrize(("every", "patience"), [(None, 150), (10, 75), (60, 150)])
async def test_a_bridge_counts_while_it_is_heard(every: float | None, patience: float) -> None:
    """One that stays silent for two and a half of its periods, and for 75 s at least, is gone."""
    ours = Listening()
    ours.state("/a", "online")
    ours.info("/a", EARLIER_START, GATEWAY, every=every)
    echo(ours)
    begun = asyncio.get_running_loop().time()
    change = asyncio.ensure_future(ours.peers.wait_for_change())
    while ours.peers.owner_of(GATEWAY):
        await asyncio.sleep(40)
        assert not change.done()
        echo(ours)
    assert patience < asyncio.get_running_loop().time() - begun < patience + 41
    await change
    ours.info("/a", EARLIER_START, GATEWAY)  # the broker gives it to us once more
    ours.state("/a", "online")
    assert ours.peers.owner_of(GATEWAY) is None
    ours.info("/a", EARLIER_START, GATEWAY, retained=False)
    ours.state("/a", "online", retained=False)
    assert ours.peers.owner_of(GATEWAY) == "solar/bridge/a"


@pytest.mark.hasty
async def test_silence_while_we_hear_nothing_ourselves_proves_nothing() -> None:
    ours = Listening()
    ours.state("/a", "online")
    ours.info("/a", EARLIER_START, GATEWAY, every=10)
    echo(ours)
    await asyncio.sleep(40)
    echo(ours)
    await asyncio.sleep(120)  # there is no broker
    for _ in range(3):
        echo(ours)
        assert ours.peers.owner_of(GATEWAY) == "solar/bridge/a"
        await asyncio.sleep(30)
    ours.info("/a", EARLIER_START, GATEWAY, every=10, retained=False)
    echo(ours)
    await asyncio.sleep(40)
    echo(ours)
    assert ours.peers.owner_of(GATEWAY) == "solar/bridge/a"


MADE_UP = tuple(str(serial) for serial in range(100_000_000_000, 100_000_004_000))
"""As many serial numbers as fit into the largest message that is accepted."""


@pytest.mark.parametrize("named", [(), (GATEWAY,)], ids=["other gateways", "ours"])
async def test_made_up_bridges_cost_little_and_hide_nobody(named: tuple[str, ...]) -> None:
    ours = Listening()
    ours.state("/known", "online")
    ours.info("/known", LATER_START, "7")
    tracemalloc.start()
    try:
        for number in range(300):
            ours.state(f"/{number}", "online")
            ours.info(f"/{number}", LATER_START, *MADE_UP, *named)
        for number in range(5_000):
            ours.state(f"/s{number}", "online")
            ours.state(f"/{'x' * 10_000}{number}", "online")
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 12_000_000
    assert ours.peers.owner_of(GATEWAY) is None
    ours.info("/known", EARLIER_START, "7", GATEWAY)
    assert ours.peers.owner_of(GATEWAY) == "solar/bridge/known"
    ours.state("/known", "offline")
    assert ours.peers.owner_of(GATEWAY) is None
    ours.state("/new", "online")
    ours.info("/new", EARLIER_START, GATEWAY)
    ours.info("/new", EARLIER_START, GATEWAY, retained=False)
    assert ours.peers.owner_of(GATEWAY) == "solar/bridge/new"


# Whole bridges


def info(home: House, name: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.seen.get(f"enphase/bridge{name}/info", "{}"))
    return found


@pytest.mark.hasty
@pytest.mark.expects_log(r"gateway \d+ is polled by another bridge already \(enphase/bridge/one\): standing by")
@pytest.mark.parametrize("known", [True, False])
async def test_the_later_one_stands_by_and_takes_over(known: bool, tmp_path: Path) -> None:
    async with house(tmp_path, "no-cts") as home, AsyncExitStack() as first:
        gateway = {"token": home.simulator.token()} | ({"serial": home.serial} if known else {})
        one = home.settings(gateway=gateway, instance="one")
        two = home.settings(gateway=gateway, instance="two").model_copy(update={"state_dir": tmp_path / "two"})
        await first.enter_async_context(running(one, introduction=LONG_INTRODUCTION_S))
        await until(lambda: set(home.availability.values()) == {"online"})
        before = len(home.watcher.seen)
        own = {topic for topic in home.seen if topic.startswith(f"enphase/{home.serial}/")}
        async with running(two, introduction=LONG_INTRODUCTION_S):
            await until(lambda: "standing_by" in info(home, "/two"))
            assert info(home, "/two")["standing_by"] == {home.serial: "enphase/bridge/one"}
            assert info(home, "/two")["gateways"] == []
            asked = home.simulator.count("/info")
            seen = len(home.watcher.seen)
            await until(lambda: len(home.watcher.seen) > seen)
            assert home.simulator.count("/info") == asked
            assert info(home, "/one")["gateways"] == [home.serial]
            assert not [m for m in home.watcher.seen[before:] if m.topic in own and m.payload == "offline"]
            await first.aclose()
            await until(lambda: home.seen["enphase/bridge/one/state"] == "offline")
            await until(lambda: info(home, "/two")["gateways"] == [home.serial])
            assert "standing_by" not in info(home, "/two")
            await until(lambda: set(home.availability.values()) == {"online"})
            assert home.topic("state") == "online"


@pytest.mark.hasty
@pytest.mark.expects_log(r"gateway \d+ is polled by another bridge already \(enphase/bridge\): standing by")
async def test_two_bridges_without_a_name(tmp_path: Path) -> None:
    async with house(tmp_path, "no-cts") as home, AsyncExitStack() as second:
        one = home.settings()
        two = one.model_copy(update={"state_dir": tmp_path / "two"})
        async with running(one, introduction=LONG_INTRODUCTION_S):
            await until(lambda: set(home.availability.values()) == {"online"})
            started = info(home)["started"]
            await second.enter_async_context(running(two, introduction=LONG_INTRODUCTION_S))
            await until(lambda: any("standing_by" in message.payload for message in home.watcher.seen))
            await until(lambda: info(home)["started"] == started)
            await second.aclose()
            await until(lambda: any(m.payload == "offline" for m in home.watcher.seen if "bridge/state" in m.topic))
            await until(lambda: home.seen["enphase/bridge/state"] == "online")
            assert info(home)["gateways"] == [home.serial]
            assert home.topic("state") == "online"


@pytest.mark.hasty
@pytest.mark.expects_log(r"gateway \d+ is polled by another bridge already \(enphase/bridge/ghost\): standing by")
async def test_a_bridge_that_stands_by_repeats_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, "no-cts") as home, running(home.settings(mqtt={"heartbeat": 10})):
        await until(lambda: set(home.availability.values()) == {"online"})
        ghost = {"started": "2000-01-01T00:00:00+00:00", "gateways": [home.serial], "heartbeat": 300}
        await publish(home.broker, "enphase/bridge/ghost/state", "online", "-r")
        await publish(home.broker, "enphase/bridge/ghost/info", json.dumps(ghost), "-r")
        await until(lambda: "standing_by" in info(home))
        said = len(home.watcher.seen)

        def later() -> list[str]:
            return [message.topic for message in home.watcher.seen[said:]]

        await until(lambda: later().count("enphase/bridge/state") >= 2)
        assert not [topic for topic in later() if home.serial in topic]
        await publish(home.broker, "enphase/bridge/ghost/state", "offline", "-r")
        await until(lambda: f"enphase/{home.serial}/site/solar/power" in later())
        assert info(home)["gateways"] == [home.serial]


@pytest.mark.hasty
@pytest.mark.expects_log(r"gateway \d+ is polled by another bridge already \(enphase/bridge/ghost\): standing by")
async def test_a_bridge_that_comes_and_goes_is_followed_ever_more_slowly(tmp_path: Path) -> None:
    """Each change asks the gateway for everything, and marks all of its values as old for a moment."""
    async with house(tmp_path, "no-cts") as home, running(home.settings()):
        await until(lambda: home.topic("state") == "online")
        ghost = {"started": "2000-01-01T00:00:00+00:00", "gateways": [home.serial], "heartbeat": 300}
        loop, pauses = asyncio.get_running_loop(), list[float]()
        for _ in range(4):
            await publish(home.broker, "enphase/bridge/ghost/state", "online")
            await publish(home.broker, "enphase/bridge/ghost/info", json.dumps(ghost))
            await until(lambda: "standing_by" in info(home))
            await publish(home.broker, "enphase/bridge/ghost/state", "offline")
            gone = loop.time()
            await until(lambda: "standing_by" not in info(home))
            pauses.append(loop.time() - gone)
        assert all(pause > least for pause, least in zip(pauses, (4.5, 9, 19, 39), strict=True))


BROKER_GONE = (
    *("no broker listens there", "the broker closed the connection", "the connection to the broker ended"),
    "values wait for more than 30 s",  # the loop's time runs fast, and a broker that saves each change is slow
)


@asynccontextmanager
async def pair(home: House, heartbeat: float = 30) -> AsyncIterator[AsyncExitStack]:
    """Two bridges: `one` polls the gateway, `two` stands by. Closing the stack that this gives stops `one`."""
    one, two = (home.settings(instance=name, mqtt={"heartbeat": heartbeat}) for name in ("one", "two"))
    two = two.model_copy(update={"state_dir": home.folder / "two"})
    async with AsyncExitStack() as first:
        await first.enter_async_context(running(one, introduction=LONG_INTRODUCTION_S))
        await until(lambda: set(home.availability.values()) == {"online"})
        async with running(two, introduction=LONG_INTRODUCTION_S):
            await until(lambda: "standing_by" in info(home, "/two"))
            yield first


KEPT = ("persistence true", "autosave_interval 1", "autosave_on_changes true")
"""The configuration of a mosquitto that keeps its retained messages over a power cut."""


@asynccontextmanager
async def at_a_broker(folder: Path, *, keeps: bool, kind: str = "no-cts") -> AsyncIterator[House]:
    lines = (*KEPT, f"persistence_location {folder}/") if keeps else ()
    with Mosquitto(folder, *lines) as broker:
        async with housed(folder, broker, kind) as home, watching(broker.port) as home.watcher:
            yield home


@pytest.mark.hasty
@pytest.mark.expects_log("is polled by another bridge already .*: standing by")
@pytest.mark.may_log(*BROKER_GONE)
@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "lost"])
async def test_the_broker_and_the_working_bridge_die_together(keeps: bool, tmp_path: Path) -> None:
    """One power strip: the broker sends no last will, and comes back alone."""
    async with at_a_broker(tmp_path, keeps=keeps) as home, pair(home) as first:
        broker = home.broker
        broker.kill()
        await first.aclose()  # it can't tell anybody
        said = len(home.watcher.seen)
        broker.start()
        begun = asyncio.get_running_loop().time()

        def later(topic: str) -> list[str]:
            return [message.payload for message in home.watcher.seen[said:] if message.topic == topic]

        if keeps:
            await until(lambda: later("enphase/bridge/one/state") == ["online"])
        await until(lambda: info(home, "/two")["gateways"] == [home.serial])
        assert "standing_by" not in info(home, "/two")
        assert asyncio.get_running_loop().time() - begun < 180
        await until(lambda: later(f"enphase/{home.serial}/state")[-1:] == ["online"])
        await until(lambda: later(f"enphase/{home.serial}/site/solar/power") != [])


@pytest.mark.hasty
@pytest.mark.expects_log("is polled by another bridge already .*: standing by")
@pytest.mark.may_log(*BROKER_GONE)
@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "lost"])
async def test_it_stands_by_while_the_other_one_lives(keeps: bool, tmp_path: Path) -> None:
    """Also where the broker restarts, and for much longer than one that is silent is believed."""
    async with at_a_broker(tmp_path, keeps=keeps) as home, pair(home):
        said = len(home.watcher.seen)
        home.broker.kill()
        await asyncio.sleep(20)
        home.broker.start()
        await asyncio.sleep(200)
        told = {m.payload for m in home.watcher.seen[said:] if m.topic == "enphase/bridge/two/info"}
        assert [json.loads(body)["gateways"] for body in told] == [[]]
        assert info(home, "/one")["gateways"] == [home.serial]
        assert home.topic("state") == "online"


async def lived(home: House, minutes: int) -> None:
    """Let the home live for so long, until subscribers have seen a part of what it has used meanwhile."""

    def used() -> float:
        return float(home.topic("site/home/energy_lifetime") or 0)

    before, clock = used(), home.clock
    for _ in range(4 * minutes):
        clock.forward(15)
        await asyncio.sleep(15)
    await until(lambda: used() > before)


def falls(seen: Sequence[Seen]) -> list[tuple[str, float, float]]:
    """The lifetime counters that were ever published lower than before: topic, highest and lower value.

    The report of net consumption is a balance, which may fall.
    """
    highest, found = dict[str, float](), list[tuple[str, float, float]]()
    for message in seen:
        is_counter = COUNTER_TOPIC.search(message.topic) and "/report/net-consumption/" not in message.topic
        if is_counter and message.payload not in {"", "None"}:
            value = float(message.payload)
            if value < highest.get(message.topic, value):
                found.append((message.topic, highest[message.topic], value))
            highest[message.topic] = max(value, highest.get(message.topic, value))
    return found


@pytest.mark.hasty
@pytest.mark.expects_log("is polled by another bridge already .*enphase/bridge/one.: standing by")
async def test_a_bridge_that_was_asleep_continues_from_what_the_other_one_has_published(tmp_path: Path) -> None:
    """A laptop is closed, or a virtual machine paused. It published all that it knew of before, and then went on
    with its own counters from there.
    """
    async with at_a_broker(tmp_path, keeps=False, kind="ac-batteries") as home:
        line, other = Line(home.broker), tmp_path / "one"
        await line.join()
        environment = {**home.environment, "BRIDGE_INSTANCE": "one", "BRIDGE_STATE_DIR": str(other)}
        environment |= {"BRIDGE_MQTT__URL": line.url, "BRIDGE_POLL__PROFILE": "live"}
        async with started(*BRIDGE_COMMAND, "run", env=environment) as one:
            await until(lambda: home.topic("site/home/energy_lifetime") not in {None, "None"})
            two = home.settings(instance="two")
            async with running(two, introduction=LONG_INTRODUCTION_S):
                await until(lambda: "standing_by" in info(home, "/two"))
                send(one.process, signal.SIGSTOP)
                await line.cut()
                await until(lambda: info(home, "/two").get("gateways") == [home.serial])
                await lived(home, minutes=4)
                await line.join()
                send(one.process, signal.SIGCONT)
                await until(lambda: "standing_by" in info(home, "/two"))
                await lived(home, minutes=1)
            assert falls(home.watcher.seen) == []


@pytest.mark.hasty
@pytest.mark.expects_log(r"is polled by another bridge already \(enphase/bridge/old\): standing by")
async def test_an_instance_that_was_renamed_is_believed_for_a_moment_only(tmp_path: Path) -> None:
    async with house(tmp_path, "no-cts") as home:
        old = {"started": EARLIER_START, "gateways": [home.serial], "heartbeat": 30}
        await publish(home.broker, "enphase/bridge/old/state", "online", "-r")
        await publish(home.broker, "enphase/bridge/old/info", json.dumps(old), "-r")
        given = home.settings(instance="new", gateway={"token": home.simulator.token(), "serial": home.serial})
        async with running(given, introduction=LONG_INTRODUCTION_S):
            await until(lambda: "standing_by" in info(home, "/new"))
            assert home.simulator.count("/info") == 0
            await until(lambda: info(home, "/new")["gateways"] == [home.serial])
            await until(lambda: home.topic("state") == "online")
