"""Tests the connection to several kinds of brokers, over all transports. docs/brokers.md describes the results."""

import asyncio
import getpass
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from authority import LOOPBACK_NAME, Authority
from brokers import (
    TIMEOUT_S,
    Configured,
    EnclosedMosquitto,
    Mosquitto,
    Nats,
    RabbitMq,
    Seen,
    Served,
    free_port,
    needed,
    password_lines,
    program,
    watching,
)
from edge import CONFIG, DOCUMENT, OFFLINE, PASSWORD, VALUE, WILL, Received, soon, using, within
from houses import House, housed, publish
from running import disagreements, running, until

from bridge.model import Message, Rejected, Unavailable
from bridge.mqtt.connect import BrokerAddress
from bridge.service.retained import read_retained
from bridge.settings import MqttSettings

BROKER_USER, LIMITED = "bridge", "limited"
DOCUMENT_OF_BROKERS = Path(__file__).parents[1] / "docs/brokers.md"
BIRTH = ("homeassistant/status", b"online", False)
LARGE_MESSAGE = Message("homeassistant/device/large/config", "x" * 60_000, qos=1)
"""A message as long as our longest discovery message."""
AS_USER = ("-V", "mqttv311", "-u", BROKER_USER, "-P", PASSWORD)
ALL_RIGHTS = {"configure": ".*", "write": ".*", "read": ".*", "vhost": "/"}
OWN_RIGHTS = {"vhost": "/", "exchange": "amq.topic", "write": r"^enphase\..*", "read": r"^enphase\..*"}


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Nats]:
    with Nats(
        tmp_path, f'authorization {{ users: [ {{ user: {BROKER_USER}, password: "{PASSWORD}" }} ] }}'
    ) as broker:
        yield broker


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    definitions = {
        "users": [{"name": name, "password": PASSWORD, "tags": ""} for name in (BROKER_USER, LIMITED)],
        "vhosts": [{"name": "/"}],
        "permissions": [{"user": name, **ALL_RIGHTS} for name in (BROKER_USER, LIMITED)],
        "topic_permissions": [{"user": LIMITED, **OWN_RIGHTS}],
    }
    shown = [line for line in blocks("RabbitMQ")[0].splitlines() if "port" not in line and "tcp" not in line]
    with RabbitMq(tmp_path_factory.mktemp("rabbitmq"), definitions, *shown) as broker:
        yield broker


def blocks(heading: str, language: str = "ini") -> list[str]:
    """The code blocks of docs/brokers.md under a heading."""
    section = re.split(rf"^## {heading}$", DOCUMENT_OF_BROKERS.read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


one_rabbitmq = pytest.mark.xdist_group("rabbitmq")
"""Marks tests that share the only RabbitMQ."""


@pytest.fixture(params=["nats", pytest.param("rabbitmq", marks=one_rabbitmq)])
def other(request: pytest.FixtureRequest) -> Served:
    """A broker that is not mosquitto."""
    broker: Served = request.getfixturevalue(request.param)
    return broker


@dataclass
class Road:
    """How the bridge reaches a broker, and how a subscriber that watches it does."""

    settings: dict[str, Any]
    watch: int | Path
    options: tuple[str, ...] = ("-V", "5")
    protocol: str = "5"
    wills_always: bool = False
    """Whether the broker publishes the will after a DISCONNECT too, as RabbitMQ's WebSocket listener does."""

    @property
    def content_type(self) -> str:
        return "application/json" if self.protocol == "5" else ""

    async def keeps(self, expected: dict[str, str], nothing_at: str = "no/thing") -> list[Seen]:
        """Wait until a new subscriber gets this. RabbitMQ retains a message a moment after it has delivered it."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            async with watching(self.watch, *expected, nothing_at, options=self.options) as late:
                await asyncio.sleep(0.2)
            if late.newest == expected:
                return late.seen
            assert time.monotonic() < deadline, f"kept: {late.newest}"

    def connected(self, received: list[Received] | None = None) -> Any:
        return using(received=received, **self.settings)


ROADS = (
    *("mosquitto mqtt", "mosquitto mqtts", "mosquitto certificate", "mosquitto password", "mosquitto unix"),
    *("mosquitto ws", "mosquitto wss", "nats mqtt", "nats ws"),
    *(pytest.param(road, marks=one_rabbitmq) for road in ("rabbitmq mqtt", "rabbitmq ws")),
)


@pytest.fixture(params=ROADS)
async def road(request: pytest.FixtureRequest, tmp_path: Path, authority: Authority) -> AsyncIterator[Road]:
    kind, by = request.param.split()
    if kind == "mosquitto":
        async with to_mosquitto(by, tmp_path, authority) as found:
            yield found
    else:
        broker = request.getfixturevalue(kind)
        url = broker.websocket_url if by == "ws" else broker.url
        user = {"username": BROKER_USER, "password": PASSWORD}
        yield Road({"url": url, **user}, broker.port, AS_USER, "3.1.1", wills_always=request.param == "rabbitmq ws")


@asynccontextmanager
async def to_mosquitto(by: str, folder: Path, authority: Authority) -> AsyncIterator[Road]:
    certificate, key = authority.issue("broker", LOOPBACK_NAME)
    tls = (f"certfile {certificate}", f"keyfile {key}")
    trust = {"ca_file": authority.file}
    if by in {"ws", "wss"}:
        EnclosedMosquitto.check()
        with EnclosedMosquitto(folder, *(tls if by == "wss" else ()), scheme=by) as enclosed:
            async with enclosed.reachable():
                yield Road({"url": enclosed.url, **trust}, enclosed.plain)
        return
    plain = folder / "plain.sock"
    lines: tuple[str, ...] = ("allow_anonymous true",)
    settings: dict[str, Any] = {}
    if by in {"mqtts", "certificate"}:
        lines, settings = (*lines, *tls), {**trust}
    if by == "certificate":
        lines = (*lines, f"cafile {authority.file}", "require_certificate true")
        settings |= dict(zip(("cert_file", "key_file"), authority.issue("bridge"), strict=True))
    if by == "password":
        lines = password_lines(folder, BROKER_USER, PASSWORD)
        settings = {"username": BROKER_USER, "password": PASSWORD}
    own = ("per_listener_settings true",)
    scheme = "mqtts" if by in {"mqtts", "certificate"} else "mqtt"
    with Mosquitto(
        folder, *lines, f"listener 0 {plain}", "allow_anonymous true", scheme=scheme, first=own
    ) as broker:
        yield Road({"url": f"unix://{plain}" if by == "unix" else broker.url, **settings}, plain)


async def test_every_road_takes_and_gives_everything(road: Road) -> None:
    sent = (CONFIG, LARGE_MESSAGE, VALUE, DOCUMENT)
    expected = {message.topic: message.payload for message in sent}
    topics = list(expected)
    received: list[Received] = []
    async with watching(road.watch, *topics, WILL.topic, options=road.options) as live:
        async with road.connected(received) as broker:
            await broker.connect()
            assert broker.protocol == road.protocol
            for message in sent:
                assert await broker.send(message)
            await live.until(lambda: expected.items() <= live.newest.items())
            await broker.send(Message("homeassistant/status", "online"))
            await soon(lambda: BIRTH in received)

            late = await road.keeps(expected)
            broker.abort()
            await live.until_seen(WILL.topic, WILL.payload)
        assert all(seen.retained for seen in late)
        kinds = {seen.topic: seen.content_type for seen in late}
        assert kinds == {**dict.fromkeys(topics, ""), DOCUMENT.topic: road.content_type}


async def test_every_road_knows_a_farewell_and_clears_what_is_gone(road: Road) -> None:
    async with watching(road.watch, VALUE.topic, WILL.topic, options=road.options) as live:
        async with using(client_id="farewell", **road.settings) as broker:
            await broker.connect()
            await broker.send(VALUE)
            await broker.send(Message(VALUE.topic, ""))
            await broker.close(OFFLINE)
            await live.until_seen(OFFLINE.topic, OFFLINE.payload)
        last = WILL if road.wills_always else OFFLINE
        await road.keeps({last.topic: last.payload}, nothing_at=VALUE.topic)
    assert (WILL.payload in [seen.payload for seen in live.seen if not seen.retained]) == road.wills_always


async def test_a_wrong_password_is_for_the_owner(other: Served) -> None:
    async with using(other.url, username=BROKER_USER, password="wrong") as broker:
        with pytest.raises(Rejected, match="BRIDGE_MQTT__PASSWORD"):
            await broker.connect()


@pytest.mark.expects_log("does another client use the same client id")
async def test_a_second_client_of_the_same_id(other: Served, warned: Sequence[str]) -> None:
    """These brokers do not tell that another client has taken over."""
    user: dict[str, Any] = {"username": BROKER_USER, "password": PASSWORD, "client_id": "twin"}
    async with using(other.url, **user) as one, using(other.url, **user) as two:
        await one.connect()
        await asyncio.sleep(1.1)  # with NATS, another client can't take over earlier
        await two.connect()
        await within(one.lost())
        trying = asyncio.create_task(one.reconnect())
        await soon(lambda: bool(warned))
        trying.cancel()
        assert two.connected


async def test_nats_takes_no_dots(nats: Nats) -> None:
    will = Message("home.solar/bridge/state", "gone", qos=1)
    async with using(nats.url, username=BROKER_USER, password=PASSWORD, will=will) as broker:
        with pytest.raises(Unavailable, match=r"does it accept a \. in topics \(BRIDGE_MQTT__BASE_TOPIC\)"):
            await broker.connect()


@one_rabbitmq
async def test_rabbitmq_shows_dots_as_slashes(rabbitmq: RabbitMq) -> None:
    """So a base topic must have no dots: a subscriber to the exact topic would get it under another name."""
    dotted = Message("home.solar/value", "1")
    async with (
        using(rabbitmq.url, username=BROKER_USER, password=PASSWORD) as broker,
        watching(rabbitmq.port, dotted.topic, options=AS_USER) as watcher,
    ):
        await broker.connect()
        await broker.send(dotted)
        await watcher.until_seen("home/solar/value", "1")


@pytest.mark.parametrize("kind", ["mosquitto", "nats", pytest.param("rabbitmq", marks=one_rabbitmq)])
async def test_what_the_broker_remembers(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """RabbitMQ does not send retained messages to a subscription with wildcards, so the store is needed there."""
    user: dict[str, Any] = {"username": BROKER_USER, "password": PASSWORD}
    mosquitto = (
        Mosquitto(tmp_path, *password_lines(tmp_path, BROKER_USER, PASSWORD)) if kind == "mosquitto" else None
    )
    broker = mosquitto or request.getfixturevalue(kind)
    broker.start() if mosquitto else None
    try:
        settings = MqttSettings(url=broker.url, **user)
        async with using(broker.url, **user) as writer:
            await writer.connect()
            await writer.send(Message("enphase/7/energy/production/energy_lifetime", "4321.5", qos=1))
            await writer.close()
        found = await read_retained(settings, "reader", "enphase/7")
    finally:
        mosquitto.stop() if mosquitto else None
    assert found == ({} if kind == "rabbitmq" else {"energy/production/energy_lifetime": 4321.5})


# The whole bridge


@asynccontextmanager
async def home_at(broker: Served, folder: Path) -> AsyncIterator[House]:
    filters = ("enphase/#", "homeassistant/#")
    async with (
        housed(folder, broker, "three-phase") as home,
        watching(broker.port, *filters, qos=0, options=AS_USER) as home.watcher,
    ):
        yield home


def announcements(home: House) -> int:
    return sum(seen.topic.startswith("homeassistant/device/") for seen in home.watcher.seen)


@pytest.mark.hasty
async def test_the_whole_bridge(other: Served, tmp_path: Path) -> None:
    user = {"username": BROKER_USER, "password": PASSWORD}
    async with home_at(other, tmp_path) as home:
        async with running(home.settings(mqtt=user)):
            await home.settled()
            assert home.seen["enphase/bridge/state"] == "online"
            before = announcements(home)
            await publish(other, "homeassistant/status", "online", *AS_USER)
            await until(lambda: announcements(home) >= 2 * before)
        await until(lambda: home.seen["enphase/bridge/state"] == home.topic("state") == "offline")
        lifetime = home.topic("site/solar/energy_lifetime")

        home.watcher.seen.clear()
        home.folder = tmp_path / "anew"  # after the loss of the state folder, only the broker has the values
        async with running(home.settings(mqtt=user)):
            await home.settled()
            assert home.topic("state") == "online"
            assert home.topic("site/solar/energy_lifetime") == lifetime


LEFT_OUT = (
    r"homeassistant/device/\S+ is left out: the broker closes the connection because of it; check its access rules"
)
NO_BIRTH = "homeassistant/status is not subscribed: the broker closes the connection then; check its access rules"


@one_rabbitmq
@pytest.mark.hasty
@pytest.mark.may_log("the broker closed the connection after a moment")
@pytest.mark.expects_log(
    LEFT_OUT,
    "homeassistant/status is not subscribed: the broker closes the connection then; check its access rules",
)
async def test_rabbitmq_hangs_up_over_what_is_not_allowed(
    rabbitmq: RabbitMq, tmp_path: Path, warned: Sequence[str]
) -> None:
    """All allowed messages arrive nevertheless."""
    user = {"username": LIMITED, "password": PASSWORD}
    async with home_at(rabbitmq, tmp_path) as home, running(home.settings(mqtt=user)):
        await until(lambda: (home.topic("live/tasks"), home.topic("state")) != (None, None))
        await until(lambda: set(home.availability.values()) == {"online"})
        await until(lambda: home.topic("site/home/power") is not None)
        assert announcements(home) == 0
    assert len([line for line in warned if "left out" in line]) == 1


LONG = ("report",)
"""Devices whose discovery messages are larger than 30,000 bytes."""


@pytest.mark.hasty
@pytest.mark.may_log("after a moment")
@pytest.mark.expects_log("homeassistant/device/.*__DISCOVERY to component")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_broker_that_takes_no_long_messages(protocol: str, tmp_path: Path, warned: Sequence[str]) -> None:
    """With MQTT 3.1.1 the broker can't announce its limit, and disconnects."""
    with Mosquitto(tmp_path, "max_packet_size 30000") as mosquitto:
        async with (
            housed(tmp_path, mosquitto, "three-phase") as home,
            watching(mosquitto.port) as home.watcher,
            running(home.settings(mqtt={"protocol": protocol})),
        ):
            prefix = f"homeassistant/device/iqgateway_{home.serial}"
            long = {f"{prefix}_{device}/config" for device in LONG}
            await until(lambda: set(disagreements(home.seen, home.serial)) == long)
    assert len(warned) == (1 if protocol == "5" else 2)


# What docs/brokers.md shows

RULES = blocks("mosquitto", "text")[0].splitlines()
BROKER_SECRET = "secret"


def ruled(folder: Path, *rules: str) -> Mosquitto:
    """A mosquitto with the first configuration of the document, these rules, and a user who may do everything."""
    file, passwords = folder / "rules", password_lines(folder, "enphase", BROKER_SECRET)[1].split()[1]
    command = [program("mosquitto_passwd"), "-b", passwords, BROKER_USER, PASSWORD]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text("\n".join([*rules, f"user {BROKER_USER}", "topic readwrite #", ""]))
    listener, *shown = blocks("mosquitto")[0].splitlines()
    assert listener.startswith("listener ")
    places = {"/etc/mosquitto/passwords": passwords, "/etc/mosquitto/rules": str(file)}
    assert [line.split()[1] for line in shown[1:]] == list(places)
    return Mosquitto(folder, *(" ".join(places.get(word, word) for word in line.split()) for line in shown))


@pytest.mark.hasty
async def test_the_rules_that_are_shown_are_enough(tmp_path: Path) -> None:
    with ruled(tmp_path, *RULES) as mosquitto:
        async with home_at(mosquitto, tmp_path) as home:
            async with running(home.settings(mqtt={"username": "enphase", "password": BROKER_SECRET})):
                await home.settled()
                before = announcements(home)
                await publish(mosquitto, "homeassistant/status", "online", *AS_USER)
                await until(lambda: announcements(home) >= 2 * before)
            await until(lambda: home.seen["enphase/bridge/state"] == "offline")
        assert "Denied" not in mosquitto.log


@pytest.mark.may_log("does not accept")
@pytest.mark.parametrize("left_out", [1, 2, 3], ids=["tree", "discovery", "birth"])
async def test_each_rule_that_is_shown_is_needed(left_out: int, tmp_path: Path) -> None:
    received: list[Received] = []
    rules = [rule for number, rule in enumerate(RULES) if number != left_out]
    with ruled(tmp_path, *rules) as mosquitto:
        async with (
            watching(mosquitto.port, "#", options=AS_USER) as watcher,
            using(mosquitto.url, received=received, username="enphase", password=BROKER_SECRET) as broker,
            using(mosquitto.url, client_id="other", username=BROKER_USER, password=PASSWORD) as other,
        ):
            await broker.connect()
            await other.connect()
            for message in (VALUE, CONFIG):  # the last of them is acknowledged
                await broker.send(message)
            link = broker._connection
            assert link is not None
            await soon(lambda: not link._unacked)
            await other.send(Message("homeassistant/status", "online", qos=1))
            await other.close()
            await watcher.until_seen("homeassistant/status", "online")
            await broker.send(OFFLINE)
            await broker.close()  # the retained messages have come before the acknowledgement
    seen = [VALUE.topic in watcher.newest, CONFIG.topic in watcher.newest, BIRTH in received]
    assert seen == [number != left_out for number in (1, 2, 3)]


async def test_the_tls_that_is_shown(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("broker", LOOPBACK_NAME)
    places = {"ca.pem": authority.file, "broker.pem": certificate, "broker.key": key}
    text = blocks("mosquitto")[1]
    for name, file in places.items():
        assert text.count(f" /etc/mosquitto/certs/{name}") == 1
        text = text.replace(f"/etc/mosquitto/certs/{name}", str(file))
    tls, _, websocket = text.partition("\n\n")
    assert "protocol websockets" in websocket  # tried in test_every_road, shut in
    port = free_port()
    text = tls.replace("listener 8883", f"user {getpass.getuser()}\nlistener {port} 127.0.0.1")
    client, client_key = authority.issue("bridge")
    with Configured(tmp_path, "mosquitto", text, port) as broker:
        url = broker.url.replace("mqtt", "mqtts")
        async with using(url, ca_file=authority.file, cert_file=client, key_file=client_key) as ours:
            await ours.connect()
            assert ours.connected


async def test_the_nats_that_is_shown(tmp_path: Path) -> None:
    needed("nats-server", "nats-server")
    text = blocks("NATS")[0]
    port = free_port()
    changes = {
        "/var/lib/nats": f'"{tmp_path}"',
        "port: 1883": f"listen: 127.0.0.1:{port}",
        "port: 9001": f"listen: 127.0.0.1:{free_port()}",
    }
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    with Configured(tmp_path, "nats-server", text, port, "-a", "127.0.0.1", "-p", str(free_port())) as broker:
        async with using(broker.url, username="enphase", password=BROKER_SECRET) as ours:
            await ours.connect()
            assert ours.connected


URLS = re.findall(r"^\| `(\w+://\S+)` \| .* \| (.*) \|$", DOCUMENT_OF_BROKERS.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("url", "address"), URLS)
def test_the_urls_that_are_shown(url: str, address: str) -> None:
    found = BrokerAddress.of(MqttSettings(url=url).url)
    if found.scheme == "unix":
        assert address == ""
    else:
        bare = BrokerAddress.of(f"{found.scheme}://host")
        assert address == (f"{bare.port}, `{bare.path}`" if found.scheme.startswith("ws") else str(bare.port))


def test_the_versions_in_the_table_are_those_of_these_tests() -> None:
    if "CI" not in os.environ:
        pytest.skip("other machines have other versions")
    shown = re.findall(r"our tests, ([\d.]+)", DOCUMENT_OF_BROKERS.read_text())
    said = [version_of("mosquitto", "-h"), version_of("nats-server", "--version")]
    rabbitmq = next(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")).name.partition("-")[2]
    assert shown == [*said, rabbitmq]


def version_of(name: str, option: str) -> str:
    done = subprocess.run([program(name), option], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    assert found is not None
    return found[0]
