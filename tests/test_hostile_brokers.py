"""Brokers that stop in the middle, are late or flood the bridge, and other clients that misbehave."""

import asyncio
import itertools
import logging
import signal
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from brokers import Mosquitto, password_lines, program, watching
from edge import (
    CONFIG,
    CONNACK_3,
    CONNACK_5,
    DISCONNECT,
    PUBLISH,
    VALUE,
    Received,
    fake_broker,
    packet,
    publish_id,
    soon,
    unclosed,
    using,
    within,
)
from houses import house, housed
from running import running, until

from bridge.model import Message, Unavailable
from bridge.mqtt import Broker, BrokerTiming, MessageRefused, TopicBlocklist
from bridge.mqtt import connect as connect_module
from bridge.mqtt.loop import MAX_RECEIVED_BYTES
from bridge.outbox import Outbox
from bridge.service.retained import BIRTH_PAUSE_S, Sender

SUBSCRIBE, PINGREQ = 0x82, 0xC0
BIRTH = "homeassistant/status"


# Brokers that do not work properly


@pytest.mark.may_log("no answer within")
async def test_a_broker_that_is_stopped_is_left_and_found_again(mosquitto: Mosquitto) -> None:
    """The system accepts connections for a stopped broker, but nobody answers."""
    async with using(mosquitto.url, keepalive=1, timing=BrokerTiming(connect=0.5)) as broker:
        await broker.connect()
        mosquitto.signal(signal.SIGSTOP)
        assert await within(broker.lost()) == "the broker no longer answers"
        with pytest.raises(Unavailable, match="no answer within"):
            await broker.connect()
        mosquitto.signal(signal.SIGCONT)
        await within(broker.reconnect())
        assert await broker.send(VALUE)


async def test_a_broker_that_stops_reading_is_left() -> None:
    """Our messages fill the system's buffers, so that not even a ping gets through."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK_5)
        await asyncio.Event().wait()

    async with fake_broker(talk) as url, using(url, keepalive=1) as broker:
        await broker.connect()
        sending = asyncio.create_task(send_until_lost(broker))
        assert await within(broker.lost()) == "the broker no longer answers"
        await within(sending)


def length_bytes(size: int) -> bytes:
    """The length of a packet as MQTT writes it, in four bytes."""
    return bytes([size >> (7 * place) & 0x7F | (0x80 if place < 3 else 0) for place in range(4)])


async def send_until_lost(broker: Broker) -> None:
    for number in itertools.count():
        if not await broker.send(Message(f"enphase/{number}", "x" * 10_000)):
            return


async def test_late_acknowledgements_lose_nothing() -> None:
    """The window is full nearly all the time, and the values between have to wait, too."""
    received: list[str] = []
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(b"\x20\x06\x00\x00\x03\x21\x00\x02")  # receive maximum 2
        while (body := await packet(reader))[0] != DISCONNECT:
            if body[0] & 0xF0 == PUBLISH:
                received.append(topic_of(body))
            if body[0] & 0x06:
                await asyncio.sleep(0.02)
                writer.write(b"\x40\x02" + publish_id(body) if body[0] & 0xF0 == PUBLISH else b"")
        left.set()

    messages = [Message(f"enphase/{number}", "1", qos=number % 2) for number in range(40)]
    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        for message in messages:
            assert await within(broker.send(message))
        await within(broker.close())
        await within(left.wait())

    assert received == [message.topic for message in messages]


def topic_of(body: bytes) -> str:
    return body[3 : 3 + int.from_bytes(body[1:3], "big")].decode()


@unclosed
@pytest.mark.parametrize("answer", [b"HTTP/1.1 101 ", b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n"])
async def test_a_broker_that_answers_drop_by_drop_costs_a_few_threads_at_most(answer: bytes) -> None:
    """paho waits for each byte anew, in a thread that nobody can stop."""
    over = asyncio.Event()

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        while not over.is_set():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    def waiting() -> int:
        return sum(thread.name == connect_module.THREAD_NAME for thread in threading.enumerate())

    async with (
        fake_broker(talk) as url,
        using(url.replace("mqtt", "ws"), timing=BrokerTiming(connect=0.1)) as broker,
    ):
        for _ in range(connect_module.MAX_HANGING_THREADS):
            with pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
                await broker.connect()
        with pytest.raises(Unavailable, match="earlier attempts are still waiting"):
            await broker.connect()
        assert waiting() == connect_module.MAX_HANGING_THREADS
        over.set()
        await soon(lambda: waiting() == 0)


# Too many or too large messages


async def test_a_flood_of_messages_does_not_keep_us_from_sending() -> None:
    """The flood ends only when all of our messages have arrived."""
    received: list[Received] = []
    ours = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ours
        await packet(reader)
        writer.write(CONNACK_5)
        reading = asyncio.create_task(count(reader))
        while ours < 200:
            writer.write(b"\x30\x08\x00\x04spam\x00x" * 100)
            await writer.drain()
            await asyncio.sleep(0)
        await reading

    async def count(reader: asyncio.StreamReader) -> None:
        nonlocal ours
        while ours < 200:
            ours += (await packet(reader))[0] & 0xF0 == PUBLISH

    async with fake_broker(talk) as url, using(url, received=received) as broker:
        await broker.connect()
        for number in range(200):
            assert await within(broker.send(Message(f"enphase/{number}", str(number))))
        await soon(lambda: ours == 200)
        assert broker.connected

    assert set(received) == {("spam", b"x", False)}


async def test_the_broker_is_told_how_much_we_take() -> None:
    connects: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.append(await packet(reader))
        writer.write(CONNACK_5)
        await reader.read()

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()

    assert b"\x27" + MAX_RECEIVED_BYTES.to_bytes(4, "big") in connects[0]


@pytest.mark.expects_log(f"messages of more than {MAX_RECEIVED_BYTES} bytes are left out: one at {BIRTH}$")
async def test_a_message_that_is_too_large_costs_only_itself(
    mosquitto: Mosquitto, tmp_path: Path, warned: Sequence[str]
) -> None:
    """With MQTT 3.1.1 a broker can't know our limit. Formerly such a message ended all subscriptions."""
    received: list[Received] = []
    (tmp_path / "large").write_bytes(b"x" * 2**24)
    large = ("mosquitto_pub", "-p", str(mosquitto.port), "-t", BIRTH, "-r", "-f", str(tmp_path / "large"))
    assert await (await asyncio.create_subprocess_exec(*large)).wait() == 0
    async with using(mosquitto.url, protocol="3.1.1", received=received) as broker:
        await broker.connect()
        await soon(lambda: len(warned) == 1)
        assert await (await asyncio.create_subprocess_exec(*large)).wait() == 0
        assert await broker.send(Message(BIRTH, "online", qos=1))
        await soon(lambda: bool(received))
        assert broker.connected
    assert received == [(BIRTH, b"online", False)]
    assert len(warned) == 1


@pytest.mark.expects_log("are left out: one at a")
async def test_a_message_that_is_larger_than_memory_is_not_kept() -> None:
    size = 40 * 2**20
    received: list[Received] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        left = size - 3
        writer.write(CONNACK_3 + b"\x30" + length_bytes(size) + b"\x00\x01a")
        while left:
            part = b"x" * min(left, 2**16)
            writer.write(part)
            await writer.drain()
            left -= len(part)
        writer.write(b"\x30\x08\x00\x04spam\x00x")
        await reader.read()

    async with fake_broker(talk) as url, using(url, protocol="3.1.1", received=received) as broker:
        await broker.connect()
        tracemalloc.start()
        try:
            await soon(lambda: bool(received))
            assert tracemalloc.get_traced_memory()[1] < 2**21
        finally:
            tracemalloc.stop()
        assert broker.connected
    assert received == [("spam", b"\x00x", False)]


@pytest.mark.parametrize(
    "answer",
    [b"\x90\xff\xff\xff\x7f" + b"x" * 2**17, b"\xf7\x00", b"\x30\xff\xff\xff\xff\xff"],
    ids=["huge", "unknown", "length"],
)
@pytest.mark.expects_log("the broker has sent what MQTT does not allow after a moment; trying again")
async def test_a_broker_that_breaks_the_protocol_is_told_from_a_second_client(answer: bytes) -> None:
    """Nobody should look for another bridge because of it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK_5 + answer)
        await reader.read()

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        assert await within(broker.lost()) == "the broker has sent what MQTT does not allow"
        trying = asyncio.create_task(broker.reconnect())
        await soon(lambda: broker.failure is not None)
        trying.cancel()
        assert "another client" not in (broker.failure or "")


async def test_a_topic_that_is_no_text_is_left_out() -> None:
    """The log would get a traceback of 600 bytes for each such message of 8 bytes."""
    received: list[Received] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK_5 + b"\x30\x06\x00\x02\xff\xfe\x00x" * 100 + b"\x30\x08\x00\x04spam\x00x")
        await reader.read()

    async with fake_broker(talk) as url, using(url, received=received) as broker:
        await broker.connect()
        await soon(lambda: bool(received))
        assert broker.connected
    assert received == [("spam", b"x", False)]


async def test_messages_that_are_never_released_are_not_kept() -> None:
    """paho keeps a message of QoS 2 until the broker releases it: 65,535 of them may have 64 kB each."""
    received: list[Received] = []
    body = b"\x00\x04spam%b\x00" + b"x" * 60_000

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK_5)
        for number in range(1, 201):
            content = body % number.to_bytes(2, "big")
            writer.write(b"\x34" + bytes([len(content) % 128 | 128, len(content) // 128 % 128 | 128, 3]) + content)
        await writer.drain()
        writer.write(b"\x30\x08\x00\x04last\x00x")
        await reader.read()

    async with fake_broker(talk) as url, using(url, received=received) as broker:
        await broker.connect()
        tracemalloc.start()
        await soon(lambda: bool(received))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert broker.connected
    assert received == [("last", b"x", False)]
    assert held < 4_000_000


@pytest.mark.hasty
async def test_a_flood_of_birth_messages_is_answered_a_few_times(tmp_path: Path) -> None:
    """Each answer sends all topics: nobody may make the bridge send a thousand times as much as he sends."""
    time = asyncio.get_running_loop().time
    async with house(tmp_path) as home, running(home.settings(mqtt={"heartbeat": 86_400})):
        await home.settled()
        config = f"homeassistant/device/iqgateway_{home.serial}_site/config"

        def announced() -> int:
            return sum(seen.topic == config for seen in home.watcher.seen)

        before, started = announced(), time()
        async with using(home.broker.url, client_id="vandal") as vandal:
            await vandal.connect()
            for _ in range(30):
                for _ in range(20):
                    await vandal.send(Message("homeassistant/status", "online"))
                await asyncio.sleep(1)
        await until(lambda: announced() > before)
        await asyncio.sleep(2 * BIRTH_PAUSE_S)
        answered = announced() - before
        assert answered <= (time() - started) / BIRTH_PAUSE_S + 2
        await asyncio.sleep(6 * BIRTH_PAUSE_S)
        assert announced() - before == answered


NONSENSE = (["-m", "offline"], ["-m", "ONLINE"], ["-n"], ["-m", "{" * 60_000], ["-m", "\udcff\udcfe"])


@pytest.mark.hasty
@pytest.mark.parametrize("payload", NONSENSE, ids=["offline", "capitals", "empty", "long", "no text"])
async def test_nonsense_at_the_birth_topic_is_nothing_to_us(payload: list[str], tmp_path: Path) -> None:
    """The messages are retained, so that they arrive with the subscription."""
    async with house(tmp_path) as home:
        command = (program("mosquitto_pub"), "-h", "127.0.0.1", "-p", str(home.broker.port), "-r")
        process = await asyncio.create_subprocess_exec(*command, "-t", "homeassistant/status", *payload)
        assert await process.wait() == 0
        async with running(home.settings()):
            await home.settled()


# Others of the same name, and the wrong password


@pytest.mark.hasty
@pytest.mark.expects_log("BRIDGE_MQTT__PASSWORD and the broker's access rules; trying again in 60 s")
async def test_a_wrong_password_is_told_once_and_tried_seldom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, warned: Sequence[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with Mosquitto(tmp_path, *password_lines(tmp_path, "bridge", "right")) as mosquitto:
        async with using(mosquitto.url, username="bridge", password="wrong") as broker:
            started = asyncio.get_running_loop().time()
            trying = asyncio.create_task(broker.reconnect())
            await until(lambda: caplog.text.count("trying again in") == 2)
            assert asyncio.get_running_loop().time() - started >= 60
            trying.cancel()
    assert len(warned) == 1


@pytest.mark.hasty
@pytest.mark.may_log("does another client use the same client id", "is not subscribed")
async def test_two_bridges_of_one_name_take_turns_ever_more_seldom(
    mosquitto: Mosquitto, warned: Sequence[str]
) -> None:
    """mosquitto 2.0 does not tell which client has taken over. Each bridge logs it once, and none floods the
    broker.
    """

    async def keep_connected(broker: Broker) -> None:
        while True:
            await broker.reconnect()
            await broker.lost()

    async with using(mosquitto.url) as one, using(mosquitto.url) as two:
        twins = [asyncio.create_task(keep_connected(broker)) for broker in (one, two)]
        await asyncio.sleep(60)
        early = mosquitto.log.count("already connected")
        await asyncio.sleep(60)
        late = mosquitto.log.count("already connected") - early
        for twin in twins:
            twin.cancel()
        await asyncio.wait(twins)

    assert early < 40
    assert late < early
    assert 2 <= len(warned) <= 6


async def test_a_connection_counts_if_it_was_longer_than_our_pauses(
    mosquitto: Mosquitto,
) -> None:
    """Otherwise another client with our id would make the pauses start again from the shortest."""
    async with using(mosquitto.url, timing=BrokerTiming(settled=0)) as broker:
        await broker.connect()
        mosquitto.stop()
        await within(broker.lost())
        assert broker.lasted
        broker._last_pause = 60
        assert not broker.lasted


# TopicBlocklist


async def test_after_a_connection_that_has_lasted_everything_is_tried_again(
    mosquitto: Mosquitto,
) -> None:
    """The broker may have been restarted with other rules."""
    async with using(mosquitto.url, timing=BrokerTiming(settled=0)) as broker:
        await broker.connect()
        accuse(broker._blocklist, VALUE.topic)
        with pytest.raises(MessageRefused, match="is left out"):
            await broker.send(VALUE)
        mosquitto.stop()
        await within(broker.lost())
        mosquitto.start()
        await within(broker.reconnect())
        assert await broker.send(VALUE)


def accuse(blocklist: TopicBlocklist, topic: str) -> None:
    """Record as many disconnects as it takes to block the topic."""
    times = blocklist.BLOCKED_AFTER
    assert [blocklist.record_disconnect(topic) for _ in range(times)] == [False] * (times - 1) + [True]


def test_what_ends_the_connection_several_times_in_a_row_is_guilty() -> None:
    blocklist = TopicBlocklist()
    accuse(blocklist, "a/b/c")
    assert blocklist.is_blocked("a/b/c")
    assert not blocklist.is_blocked("a/b/d")


def test_different_ends_accuse_nobody() -> None:
    blocklist = TopicBlocklist()
    for topic in ("a/b/c", "a/b/c", "a/b/d", "", "a/b/c", "a/b/c", "", "", "", ""):
        assert not blocklist.record_disconnect(topic)
    assert not any(map(blocklist.is_blocked, ("a/b/c", "a/b/d", "")))


def test_an_area_of_which_nothing_was_taken_is_left_out_as_a_whole() -> None:
    blocklist = TopicBlocklist()
    for number in range(blocklist.AREA_BLOCKED_AFTER):
        assert not blocklist.is_blocked("ha/device/x/config")
        accuse(blocklist, f"ha/device/{number}/config")
    assert blocklist.is_blocked("ha/device/x/config")
    assert not blocklist.is_blocked("ha/sensor/x/config")
    blocklist.record_ack("ha/device/y/config")
    assert not blocklist.is_blocked("ha/device/x/config")
    assert blocklist.is_blocked("ha/device/0/config")
    blocklist.clear()
    assert not blocklist.is_blocked("ha/device/0/config")


@pytest.mark.may_log("after a moment")
@pytest.mark.expects_log("enphase/7/value/1[345] is left out: the broker closes the connection because of it")
@pytest.mark.hasty
async def test_messages_that_end_the_connection_are_found_among_many(warned: Sequence[str]) -> None:
    """The broker is a fake, since no real one rejects a value of QoS 0. The accepted messages are not acknowledged
    yet.
    """
    poison = {f"enphase/7/value/{number}" for number in (13, 14, 15)}
    taken: set[str] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK_5)
        while body := await packet(reader):
            if body[0] == SUBSCRIBE:
                writer.write(b"\x90\x04" + body[1:3] + b"\x00\x01")
            if body[0] == PINGREQ:
                writer.write(b"\xd0\x00")
            if body[0] & 0xF0 == PUBLISH:
                if topic_of(body) in poison:
                    return
                taken.add(topic_of(body))
                late = b"\x40\x02" + publish_id(body) if body[0] & 0x06 else b""
                asyncio.get_running_loop().call_later(0.1, writer.write, late)

    outbox = Outbox()
    for number in range(30):
        outbox.put(Message(f"enphase/7/value/{number}", "1"))
    async with fake_broker(talk) as url, using(url) as broker:
        sending = asyncio.create_task(Sender(outbox, broker, heartbeat=1e6).run())
        await until(lambda: len(taken) == 27)
        await until(lambda: any("is left out" in line for line in warned))
        await until(lambda: len(outbox) == 0)
        sending.cancel()


# Brokers with limits


@pytest.mark.hasty
async def test_no_more_messages_a_second_than_the_owner_allows(mosquitto: Mosquitto) -> None:
    outbox = Outbox()
    for number in range(100):
        outbox.put(Message(f"enphase/{number}", "1"))
    async with using(mosquitto.url) as broker, watching(mosquitto.port) as watcher:
        sender = Sender(outbox, broker, heartbeat=1e6, rate=50)
        started = asyncio.get_running_loop().time()
        sending = asyncio.create_task(sender.run())
        await watcher.until(lambda: len(watcher.newest) == 100)
        assert asyncio.get_running_loop().time() - started >= 99 / 50
        sending.cancel()


@pytest.mark.hasty
async def test_a_broker_with_the_limits_of_aws_iot_gets_everything(tmp_path: Path) -> None:
    """https://docs.aws.amazon.com/general/latest/gr/iot-core.html, message broker limits."""
    taken: dict[str, str] = {}
    broken: list[str] = []
    times: list[float] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        # QoS 1 at most, 100 messages unacknowledged
        writer.write(b"\x20\x08\x00\x00\x05\x24\x01\x21\x00\x64")
        while (body := await packet(reader))[0] != DISCONNECT:
            if body[0] == SUBSCRIBE:
                writer.write(b"\x90\x04" + body[1:3] + b"\x00\x01")
            if body[0] & 0xF0 == PUBLISH:
                take(topic_of(body), body)
                writer.write(b"\x40\x02" + publish_id(body) if body[0] & 0x06 else b"")

    def take(topic: str, body: bytes) -> None:
        now = asyncio.get_running_loop().time()
        times.append(now)
        crowd = len(times) > 100 and now - times[-101] < 1
        if topic.count("/") > 7 or len(topic) > 256 or len(body) > 128 * 1024 or topic[0] == "$" or crowd:
            broken.append(topic)
        taken[topic] = ""

    with Mosquitto(tmp_path) as unused:
        async with housed(tmp_path, unused, "three-phase") as home, fake_broker(talk) as url:
            settings = home.settings(mqtt={"url": url, "rate": 50})
            async with running(settings):
                await until(lambda: len(taken) > 650)
    assert broken == []


async def test_a_retained_config_is_kept_by_the_heartbeat(mosquitto: Mosquitto) -> None:
    """A message that somebody has cleared by mistake is back with the next heartbeat."""
    outbox = Outbox()
    outbox.put(CONFIG)
    async with using(mosquitto.url) as broker, watching(mosquitto.port) as watcher:
        sending = asyncio.create_task(Sender(outbox, broker, heartbeat=0.5).run())
        await watcher.until_seen(CONFIG.topic, CONFIG.payload)
        async with using(mosquitto.url, client_id="vandal") as other:
            await other.connect()
            await other.send(Message(CONFIG.topic, "", qos=1))
            await other.close()
        await watcher.until(lambda: "" in [seen.payload for seen in watcher.seen])
        await watcher.until_seen(CONFIG.topic, CONFIG.payload)
        sending.cancel()
