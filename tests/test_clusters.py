"""Several brokers for one bridge: if one fails, the next one is used, and the tree is complete again."""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from brokers import TIMEOUT_S, Mosquitto, Watcher, watching
from clusters import Cluster
from edge import fake_broker, says_nothing
from houses import House, housed
from pydantic import SecretStr
from running import disagreements, running, settings, tree, until
from tenacity import AsyncRetrying, RetryCallState

from bridge.model import BadSetting, BridgeError, Message, Rejected, Unavailable
from bridge.mqtt import Broker, BrokerTiming
from bridge.settings import MqttSettings, load

OLD = ("-V", "311")
"""NATS does not speak MQTT 5. It also sends messages of its own to a subscriber to all topics."""
TOPICS = ("enphase/#", "homeassistant/#")
HOMES = ("no-cts", "single-phase")
BEAT_S = 20.0
NEW_SUBSCRIBER_S = 5.0
"""Within this time, a new subscriber gets all that the servers keep."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster.running(tmp_path) as found:
        yield found


def truth(homes: list[House]) -> dict[str, str]:
    """The true power of each inverter."""
    return {
        f"enphase/{home.serial}/inverter/{unit.serial}/power": str(unit.reported)
        for home in homes
        for unit in home.simulator.truth().inverters
    }


def wrong(seen: Mapping[str, str], homes: list[House]) -> list[str]:
    """Return which topics are missing, disagree or are not true."""
    states = [f"enphase/{level}/state" for level in ("bridge", *(home.serial for home in homes))]
    odd = [topic for home in homes for topic in disagreements(seen, home.serial)]
    untrue = [f"{topic} {seen.get(topic)}" for topic, text in truth(homes).items() if seen.get(topic) != text]
    return [topic for topic in states if seen.get(topic) != "online"] + odd + untrue


async def all_right(watcher: Watcher, homes: list[House]) -> None:
    """Wait until the tree is complete, consistent and true."""
    deadline = time.monotonic() + TIMEOUT_S
    while found := wrong(tree(watcher), homes):
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


async def _kept(port: int) -> dict[str, str]:
    """Return what a new subscriber gets that the broker has kept."""
    async with watching(port, *TOPICS, qos=0, options=OLD) as watcher:
        await asyncio.sleep(NEW_SUBSCRIBER_S)
        return {message.topic: message.payload for message in watcher.seen if message.retained}


@pytest.mark.expects_log("the connection to the broker ended")
@pytest.mark.may_log(
    "no MQTT answer",  # this and the next three: while the servers agree on new leaders
    "no answer within",
    "after a moment; does another client",
    "does not allow subscribing",
    "rose from",  # the gateways' clocks leap an hour, which those of the bridge do not
)
async def test_a_server_of_the_cluster_dies(cluster: Cluster, tmp_path: Path) -> None:
    dies, stays, _ = cluster.members
    async with AsyncExitStack() as stack:
        homes = [await stack.enter_async_context(housed(tmp_path, dies, home)) for home in HOMES]
        fleet = [{"host": home.url, "token": home.simulator.token()} for home in homes]
        # On a busy machine NATS loses messages for so long that sending all twice does not help, but a beat does.
        given = settings(tmp_path, cluster.url, gateways=fleet, poll={"inverters": 1}, mqtt={"heartbeat": BEAT_S})
        watcher = await stack.enter_async_context(watching(stays.port, *TOPICS, qos=0, options=OLD))
        async with running(given):
            await all_right(watcher, homes)
            settled = time.monotonic() + 11  # a shorter connection would count as a failure
            await until(lambda: time.monotonic() > settled)
            before = truth(homes)
            dies.kill()
            for seconds in (3600, *(60,) * 60):  # until each value has changed
                for home in homes:
                    home.clock.forward(seconds)
                if before.items().isdisjoint(truth(homes).items()):
                    break
            assert before.items().isdisjoint(truth(homes).items())
            await all_right(watcher, homes)
            deadline = time.monotonic() + TIMEOUT_S  # NATS keeps a message some time after it has passed it on
            while found := wrong(await _kept(stays.port), homes):
                assert time.monotonic() < deadline, found
        deadline = time.monotonic() + TIMEOUT_S
        while (state := (await _kept(stays.port))["enphase/bridge/state"]) != "offline":
            assert time.monotonic() < deadline, state


# A plain list of brokers


class Both:
    """Two brokers that do not exchange messages."""

    def __init__(self, folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "b").mkdir()
        self.one, self.other = Mosquitto(folder / "a"), Mosquitto(folder / "b")
        self.url = f"{self.one.url},{self.other.url}"


def client(url: str, failover: float = 2.0) -> Broker:
    will = Message("enphase/bridge/state", "offline", qos=1)
    return Broker(
        MqttSettings(url=url),
        client_id="ours",
        will=will,
        on_message=lambda *_: None,
        timing=BrokerTiming(failover=failover),
    )


async def test_the_next_broker_is_taken_and_kept(tmp_path: Path) -> None:
    both = Both(tmp_path)
    ours = client(both.url)
    with both.other:
        await ours.connect()
        assert ours.address == both.other.url
        with both.one:
            await ours.connect()
            assert ours.address == both.other.url
            both.other.kill()
            await ours.lost()
            await ours.connect()
            assert ours.address == both.one.url
            assert await ours.send(Message("a", "1", qos=1))
            await ours.close()


async def test_each_broker_is_tried_once_in_an_attempt(tmp_path: Path) -> None:
    both = Both(tmp_path)
    ours = client(both.url)
    for _ in range(2):
        with pytest.raises(Unavailable, match=f"^{both.other.url}: connection refused"):
            await ours.connect()
        assert ours.address == both.one.url


async def test_a_broker_that_does_not_let_us_in_is_passed_over(tmp_path: Path) -> None:
    both = Both(tmp_path)
    with Mosquitto(tmp_path, "allow_anonymous false") as strict, both.one:
        ours = client(f"{strict.url},{both.one.url}")
        await ours.connect()
        assert ours.address == both.one.url
        await ours.close()


async def test_a_server_that_lets_us_wait_is_left_for_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The bridge does not conclude that the server only speaks an older MQTT."""
    caplog.set_level(logging.INFO, "bridge")
    async with fake_broker(says_nothing) as silent:
        with Mosquitto(tmp_path) as ready:
            ours = client(f"{silent},{ready.url}", failover=0.2)
            await ours.connect()
            assert (ours.address, ours.protocol) == (ready.url, "5")
            await ours.close()
    assert f"{silent}: no answer within 0.2 s; trying {ready.url}" in caplog.messages


async def test_servers_that_all_let_us_wait_are_given_more_and_more_time() -> None:
    given: list[str] = []
    async with fake_broker(says_nothing) as one, fake_broker(says_nothing) as other:
        ours = client(f"{one},{other}", failover=0.01)
        for _ in range(6):
            with pytest.raises(Unavailable) as raised:
                await ours.connect()
            given.append(str(raised.value).removeprefix(f"{other}: "))
    assert given == [f"no answer within {seconds} s" for seconds in (0.01, 0.01, 0.02, 0.02, 0.04, 0.04)]


@pytest.mark.parametrize(
    "given",
    [
        "mqtt://me:pa,ss@a,mqtts://b:1",
        "mqtt://a , mqtts://me:pa%2Css@b:1",
        ["mqtt://me:pa,ss@a", "mqtts://me:pa,ss@b:1"],
        '["mqtt://me:pa,ss@a", "mqtts://b:1"]',
    ],
)
def test_several_brokers_in_the_settings(given: str | list[str]) -> None:
    found = MqttSettings.model_validate({"url": given})
    assert [one.url for one in found.each] == ["mqtt://a", "mqtts://b:1"]
    assert all(one.username == "me" and one.password == SecretStr("pa,ss") for one in found.each)
    assert "pa,ss" not in str(found)


@pytest.mark.parametrize(
    "given",
    [
        "mqtt://a,mqtt://a",
        "mqtt://u:secret@a,mqtt://v:secret@b",
        "mqtt://a,b",
        "mqtt://a,",
        "[7]",
        "[]",
        "[",
        "a,mqtt://b",
    ],
)
def test_lists_of_brokers_that_are_none(given: str) -> None:
    with pytest.raises(BadSetting, match=r"^BRIDGE_MQTT") as found:
        load(mqtt={"url": given})
    assert "secret" not in str(found.value)


def pause(broker: Broker, error: BridgeError) -> float:
    """The longest of many pauses, after many attempts."""
    state = RetryCallState(AsyncRetrying(), None, (), {})
    state.attempt_number = 30
    state.set_exception((type(error), error, None))
    return max(broker._pause(state) for _ in range(200))


async def test_a_cluster_in_turmoil_is_asked_often_but_not_for_ever() -> None:
    one, several = client("mqtt://a"), client("mqtt://a,mqtt://b")
    assert pause(several, Unavailable("")) <= 3 < pause(one, Unavailable(""))
    several._flaps = 5
    assert pause(several, Unavailable("")) <= 3
    assert pause(several, Rejected("")) > 60  # wrong passwords, and two clients of one id
    several._flaps = 6
    assert pause(several, Unavailable("")) > 60
