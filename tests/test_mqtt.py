"""The MQTT client, with a real mosquitto, and with fakes for what mosquitto can't do."""

import asyncio
import base64
import hashlib
import logging
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from authority import LOOPBACK_NAME, Authority
from brokers import Mosquitto, Seen, free_port, password_lines, watching
from cryptography.hazmat.primitives import serialization
from edge import (
    CONFIG,
    CONNACK_3,
    CONNACK_5,
    DISCONNECT,
    DOCUMENT,
    OFFLINE,
    PASSWORD,
    PUBLISH,
    VALUE,
    WILL,
    Received,
    Talk,
    answers,
    closes,
    fake_broker,
    packet,
    publish_id,
    resets,
    says_nothing,
    soon,
    unclosed,
    using,
    websocket_relay,
    within,
)
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from tenacity import Future, RetryCallState, Retrying

from bridge.model import BridgeError, Message, Rejected, Unavailable
from bridge.mqtt import Broker, BrokerTiming, ConnectionLimits, MessageRefused
from bridge.mqtt.connect import MAX_UNACKNOWLEDGED, BrokerAddress, _closed_before_connack, _in_thread
from bridge.mqtt.connection import MAX_BURST
from bridge.mqtt.loop import LoopAdapter
from bridge.settings import MqttSettings


@pytest.fixture(autouse=True)
def _no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert PASSWORD not in caplog.text


async def level(reader: asyncio.StreamReader) -> int:
    """The protocol level of a CONNECT: 4 is MQTT 3.1.1."""
    return (await packet(reader))[7]


# connecting


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_messages_arrive_retained_with_their_qos(mosquitto: Mosquitto, protocol: str) -> None:
    async with using(mosquitto.url, protocol=protocol) as broker, watching(mosquitto.port) as live:
        await broker.connect()
        assert (broker.connected, broker.protocol) == (True, protocol)
        for message in (CONFIG, VALUE, DOCUMENT):
            assert await broker.send(message)
        await live.until(lambda: len(live.seen) == 3)

        async with watching(mosquitto.port) as late:
            await late.until(lambda: len(late.newest) == 3)

    kind = "application/json" if protocol == "5" else ""
    assert set(late.seen) == {
        Seen(DOCUMENT.topic, DOCUMENT.payload, qos=0, retained=True, content_type=kind),
        Seen(VALUE.topic, VALUE.payload, qos=0, retained=True, content_type=""),
        Seen(CONFIG.topic, CONFIG.payload, qos=1, retained=True, content_type=""),
    }


async def test_an_empty_payload_clears_the_topic(mosquitto: Mosquitto) -> None:
    async with using(mosquitto.url) as broker, watching(mosquitto.port) as live:
        await broker.connect()
        await broker.send(DOCUMENT)
        await broker.send(Message(DOCUMENT.topic, "", content_type="application/json"))
        await broker.send(VALUE)
        await live.until(lambda: len(live.seen) == 3)

        async with watching(mosquitto.port) as late:
            await late.until_seen(VALUE.topic, VALUE.payload)

    assert set(late.seen) == {Seen(VALUE.topic, VALUE.payload, qos=0, retained=True, content_type="")}


REFUSES_5 = {
    "code of 3.1.1": answers(b"\x20\x02\x00\x01"),
    "code of 5": answers(b"\x20\x03\x00\x84\x00"),
    "not authorized as 3.1.1 says it": answers(b"\x20\x02\x00\x05"),
    "garbage": answers(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "closes": closes,
    "resets": resets,
    "says nothing": says_nothing,
}


@pytest.mark.parametrize("refusal", REFUSES_5.values(), ids=REFUSES_5)
async def test_a_broker_that_refuses_mqtt_5_gets_3_1_1_from_then_on(refusal: Talk) -> None:
    levels = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        levels.append(await level(reader))
        await (answers(CONNACK_3) if levels[-1] == 4 else refusal)(reader, writer)

    async with fake_broker(talk) as url, using(url, timing=BrokerTiming(connect=2)) as broker:
        await broker.connect()
        assert (broker.connected, broker.protocol, levels) == (True, "3.1.1", [5, 4])

        await broker.connect()
        assert levels == [5, 4, 4]


async def test_a_broker_that_takes_neither_protocol_is_asked_for_both_again() -> None:
    levels = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        levels.append(await level(reader))
        await answers(b"\x20\x02\x00\x01")(reader, writer)

    async with fake_broker(talk) as url, using(url) as broker:
        for _ in range(2):
            with pytest.raises(Unavailable, match=url):
                await broker.connect()

    assert levels == [5, 4, 5, 4]
    assert broker.protocol == "5"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_wrong_password_is_for_the_owner(tmp_path: Path, protocol: str) -> None:
    with Mosquitto(tmp_path, *password_lines(tmp_path, "bridge", "other")) as mosquitto:
        options: dict[str, Any] = {"username": "bridge", "password": PASSWORD, "protocol": protocol}
        async with using(mosquitto.url, **options) as broker:
            with pytest.raises(Rejected, match="BRIDGE_MQTT__PASSWORD") as caught:
                await broker.connect()

    assert mosquitto.url in str(caught.value)
    assert PASSWORD not in f"{caught.value!r} {broker!r} {vars(broker)}"
    assert not broker.connected


async def test_the_right_password_lets_in(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, *password_lines(tmp_path, "bridge", PASSWORD)) as mosquitto:
        async with using(mosquitto.url, username="bridge", password=PASSWORD) as broker:
            await broker.connect()
            assert broker.connected
            assert PASSWORD not in f"{broker!r} {vars(broker)}"


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (0x85, Rejected, "BRIDGE_MQTT__CLIENT_ID"),
        (0x86, Rejected, "wrong user name or password"),
        (0x87, Rejected, "not authorized"),
        (0x8A, Rejected, "banned"),
        (0x88, Unavailable, "Server unavailable"),
        (0x97, Unavailable, "Quota exceeded"),
        (0x9B, Unavailable, "last will"),
    ],
)
async def test_refusals(code: int, kind: type[BridgeError], text: str) -> None:
    talk = answers(b"\x20\x03\x00" + bytes([code]) + b"\x00")
    async with fake_broker(talk) as url, using(url) as broker:
        with pytest.raises(kind, match=text) as caught:
            await broker.connect()

    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_nobody_listens() -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    async with using(url) as broker:
        with pytest.raises(Unavailable, match=f"{url}: connection refused"):
            await broker.connect()


async def test_a_name_that_nobody_knows() -> None:
    async with using("mqtt://no-such-broker.invalid") as broker:
        with pytest.raises(Unavailable, match="name no-such-broker"):
            await broker.connect()


async def test_a_name_that_can_be_none() -> None:
    async with using(f"mqtt://{'x' * 64}.local") as broker:
        with pytest.raises(Rejected, match="BRIDGE_MQTT__URL"):
            await broker.connect()


async def test_a_broker_that_accepts_and_says_nothing() -> None:
    async with fake_broker(says_nothing) as url, using(url, timing=BrokerTiming(connect=0.3)) as broker:
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
            await broker.connect()


async def test_a_fault_in_the_thread_is_not_lost() -> None:
    def stumble() -> None:
        raise LookupError("stumbled")

    with pytest.raises(LookupError, match="stumbled"):
        await _in_thread(stumble, lambda: None)


async def test_cancelling_a_connect_leaves_no_connection_behind() -> None:
    """The thread that connects can't be stopped. A connection that it makes later is dropped."""
    opened, go_on, dropped = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = next(line for line in (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n") if b"Key" in line)
        opened.set()
        await go_on.wait()
        writer.write(websocket_welcome(key.split(b": ")[1]))
        with suppress(ConnectionError):
            await reader.read()
        dropped.set()

    async with fake_broker(talk) as url, using(url.replace("mqtt", "ws")) as broker:
        connecting = asyncio.create_task(broker.connect())
        await within(opened.wait())
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        go_on.set()
        await within(dropped.wait())
        assert not broker.connected


def websocket_welcome(key: bytes) -> bytes:
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()  # noqa: S324 - as RFC 6455 says
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


# limits


async def test_limits_are_read_from_the_welcome(tmp_path: Path) -> None:
    lines = ("max_packet_size 1000", "max_qos 0", "max_inflight_messages 5")
    with Mosquitto(tmp_path, *lines) as mosquitto:
        async with using(mosquitto.url) as broker:
            assert broker.limits == ConnectionLimits()
            await broker.connect()
            assert broker.limits == ConnectionLimits(packet_size=1000, window=5, qos=0)
            assert broker.protocol == "5"


async def test_qos_is_lowered_to_what_the_broker_takes(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, "max_qos 0") as mosquitto:
        async with using(mosquitto.url) as broker, watching(mosquitto.port) as watcher:
            await broker.connect()
            await broker.send(CONFIG)
            await watcher.until_seen(CONFIG.topic, CONFIG.payload)
            broker.abort()
            await watcher.until_seen(WILL.topic, WILL.payload)

    assert {seen.qos for seen in watcher.seen} == {0}


@pytest.mark.expects_log("keeps no retained messages: subscribers see nothing until it is sent again")
async def test_a_broker_that_retains_nothing_gets_plain_messages(tmp_path: Path, warned: Sequence[str]) -> None:
    with Mosquitto(tmp_path, "retain_available false") as mosquitto:
        async with using(mosquitto.url) as broker, watching(mosquitto.port) as watcher:
            for _ in range(2):
                await broker.connect()
                assert await broker.send(CONFIG)
            await watcher.until_seen(CONFIG.topic, CONFIG.payload)
            broker.abort()
            await watcher.until_seen(WILL.topic, WILL.payload)
            assert broker.protocol == "5"
        async with watching(mosquitto.port) as late, using(mosquitto.url) as broker:
            await broker.connect()
            await broker.send(VALUE)
            await late.until_seen(VALUE.topic, VALUE.payload)

    assert CONFIG.topic not in late.newest
    assert len(warned) == 2


@pytest.mark.expects_log("keeps no retained messages")
async def test_a_broker_that_retains_nothing_may_tell_it_in_its_welcome() -> None:
    published: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(b"\x20\x05\x00\x00\x02\x25\x00")
        while body := await packet(reader):
            published.extend([body] if body[0] & 0xF0 == PUBLISH else [])

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        assert await broker.send(VALUE)
        await soon(lambda: len(published) == 1)

    assert published[0][0] & 1 == 0  # the retain flag


async def test_a_broker_that_refuses_any_last_will_is_not_asked_for_ever() -> None:
    connects: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flags = (await packet(reader))[8]
        connects.append(flags)
        writer.write(b"\x20\x03\x00\x9a\x00")

    async with fake_broker(talk) as url, using(url) as broker:
        with pytest.raises(Unavailable, match="refuses a last will, retained or not"):
            await broker.connect()

    assert [bool(flags & 0x20) for flags in connects] == [True, False]


@pytest.mark.parametrize("limit", [100, 129, 131, 16_386, 16_388])
@pytest.mark.parametrize("template", [VALUE, DOCUMENT, CONFIG], ids=["value", "document", "config"])
async def test_the_size_of_a_packet_is_known_to_the_byte(limit: int, template: Message) -> None:
    """If the computed size were too small, the connection would end; if too large, a message would be refused."""
    sizes, left = [], asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(b"\x20\x08\x00\x00\x05\x27" + limit.to_bytes(4, "big"))
        while (body := await packet(reader))[0] != DISCONNECT:
            if body[0] & 0xF0 == PUBLISH:
                sizes.append(len(body) + max(1, ((len(body) - 1).bit_length() + 6) // 7))
                writer.write(b"\x40\x02" + publish_id(body) if template.qos else b"")
        left.set()

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        taken = [await takes(broker, replace(template, payload="x" * size)) for size in range(limit - 80, limit)]
        await broker.close()
        await within(left.wait())

    assert taken == sorted(taken, reverse=True)
    assert sum(taken) == len(sizes)
    assert max(sizes) == limit


async def test_a_message_that_is_too_large_blocks_nobody(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, "max_packet_size 100") as mosquitto:
        async with using(mosquitto.url) as broker, watching(mosquitto.port) as watcher:
            await broker.connect()
            with pytest.raises(MessageRefused, match=r"home.*config: \d+ bytes, but .* no more than 100"):
                await broker.send(replace(CONFIG, payload="x" * 100))
            assert await broker.send(CONFIG)
            await watcher.until_seen(CONFIG.topic, CONFIG.payload)
            assert broker.connected


async def takes(broker: Broker, message: Message) -> bool:
    try:
        return await broker.send(message)
    except MessageRefused:
        return False


async def test_a_topic_that_mqtt_does_not_allow_is_refused(mosquitto: Mosquitto) -> None:
    async with using(mosquitto.url) as broker, watching(mosquitto.port) as watcher:
        await broker.connect()
        with pytest.raises(MessageRefused, match="enphase/#"):
            await broker.send(replace(VALUE, topic="enphase/#"))
        assert await broker.send(VALUE)
        await watcher.until_seen(VALUE.topic, VALUE.payload)


# sending


async def test_20000_messages_pass_and_paho_holds_next_to_nothing(mosquitto: Mosquitto) -> None:
    messages = [Message(f"enphase/1/inverter/{n}/power", str(n), qos=int(n % 20 == 0)) for n in range(20_000)]
    async with using(mosquitto.url) as broker, watching(mosquitto.port, qos=0) as watcher:
        await broker.connect()
        assert broker._connection is not None
        client = broker._connection._client
        held = unacknowledged = 0  # bytes, messages
        for message in messages:
            assert await broker.send(message)
            held = max(held, sum(packet["to_process"] for packet in client._out_packet))
            unacknowledged = max(unacknowledged, len(client._out_messages))
        await watcher.until(lambda: len(watcher.newest) == len(messages))

    assert held <= MAX_BURST * 50
    assert unacknowledged <= MAX_UNACKNOWLEDGED
    assert watcher.newest == {message.topic: message.payload for message in messages}


async def test_a_slow_broker_makes_the_sender_wait_and_loses_nothing() -> None:
    """The broker reads nothing until it is told to, so the system's buffers fill up."""
    go_on, left, received = asyncio.Event(), asyncio.Event(), 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        writer.write(CONNACK_5)
        await go_on.wait()
        while (await packet(reader))[0] != DISCONNECT:
            received += 1
        left.set()

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        sent = asyncio.create_task(send_many(broker, 3000, size=10_000))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.shield(sent)
        assert broker._connection is not None
        client = broker._connection._client
        assert sum(packet["to_process"] for packet in client._out_packet) <= (MAX_BURST + 1) * 10_100
        go_on.set()
        assert await within(sent) == 3000
        await broker.close()
        await within(left.wait())

    assert received == 3000 + 2  # CONNECT and SUBSCRIBE


async def send_many(broker: Broker, count: int, size: int) -> int:
    """Send many messages. Returns how many were accepted."""
    results = [await broker.send(Message(f"enphase/{n}", "x" * size)) for n in range(count)]
    return sum(results)


async def test_a_sender_that_waits_learns_that_the_broker_is_gone() -> None:
    gone = asyncio.Event()

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK_5)
        await gone.wait()
        writer.transport.abort()

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        sent = asyncio.create_task(send_many(broker, 3000, size=10_000))
        await asyncio.sleep(0.3)
        gone.set()
        assert await within(sent) < 3000
        assert not broker.connected
        assert not await broker.send(VALUE)


async def test_no_more_unacknowledged_messages_than_the_broker_allows() -> None:
    """The broker acknowledges only when it has as many messages as it allows, and never gets one more."""
    waiting: list[bytes] = []
    most = acknowledged = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most, acknowledged
        await packet(reader)
        writer.write(b"\x20\x06\x00\x00\x03\x21\x00\x03")  # receive maximum 3
        while True:
            body = await packet(reader)
            if body[0] & 0xF0 == PUBLISH:
                waiting.append(publish_id(body))
                most = max(most, len(waiting))
            if len(waiting) == 3:
                await asyncio.sleep(0.01)
                acknowledged += 3
                writer.write(b"".join(b"\x40\x02" + mid for mid in waiting))
                waiting.clear()

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        for number in range(30):
            assert await within(broker.send(replace(CONFIG, topic=f"a/{number}")))
        await within(broker.close())

    assert (most, acknowledged) == (3, 30)


async def test_a_packet_id_that_is_still_in_use_ends_the_connection() -> None:
    """Ids repeat after 65535 messages. A new connection shows what became of the old message."""
    async with fake_broker(answers(CONNACK_5)) as url, using(url) as broker:
        await broker.connect()
        assert await broker.send(CONFIG)
        assert broker._connection is not None
        client = broker._connection._client
        client._last_mid -= 1
        assert not await broker.send(CONFIG)
        assert not broker.connected


@pytest.mark.parametrize("messages", [[CONFIG], []], ids=["a message", "a subscription"])
async def test_a_broker_that_never_acknowledges_is_left(
    messages: list[Message],
) -> None:
    timing = BrokerTiming(acknowledge=0.5)
    async with fake_broker(answers(CONNACK_5)) as url, using(url, timing=timing) as broker:
        await broker.connect()
        for message in messages:
            assert await broker.send(message)
        assert "not acknowledged" in await within(broker.lost())


@pytest.mark.expects_log(r"does not accept homeassistant/device/0")
async def test_what_the_broker_does_not_accept_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite enphase/#\ntopic read homeassistant/#\n")
    with Mosquitto(tmp_path, f"acl_file {rules}") as mosquitto:
        async with using(mosquitto.url) as broker, watching(mosquitto.port) as watcher:
            for _ in range(2):
                await broker.connect()
                for number in range(5):
                    assert await broker.send(replace(CONFIG, topic=f"homeassistant/device/{number}/config"))
                assert await broker.send(replace(OFFLINE, payload="online"))
                await broker.close()
            await watcher.until_seen(OFFLINE.topic, "online")

    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["the broker does not accept homeassistant/device/0/config and the like: Not authorized"]


# receiving


async def test_messages_are_received(mosquitto: Mosquitto) -> None:
    received: list[Received] = []
    async with using(mosquitto.url, received=received) as broker, using(mosquitto.url) as other:
        other._connectors[0] = replace(other._connector, client_id="other")
        await other.connect()
        await other.send(Message("homeassistant/status", "online", qos=1))
        link = other._connection
        assert link is not None
        await soon(lambda: not link._unacked)  # the broker has it
        await broker.connect()
        await soon(lambda: len(received) == 1)
        await other.send(Message("homeassistant/status", "offline", qos=1))
        await soon(lambda: len(received) == 2)

    assert received == [
        ("homeassistant/status", b"online", True),
        ("homeassistant/status", b"offline", False),
    ]


@pytest.mark.expects_log(r"could not be handled")
async def test_a_fault_in_what_is_made_of_a_message_is_logged_and_costs_nothing(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def stumble(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise LookupError("stumbled")

    broker = Broker(
        MqttSettings(url=mosquitto.url), client_id="x", will=WILL, on_message=stumble, subscriptions=["a", "b"]
    )
    await broker.connect()
    await broker.send(Message("a", "1"))
    await broker.send(Message("b", "1", qos=1))
    await soon(lambda: calls == 2)
    await broker.close()

    assert caplog.text.count("LookupError: stumbled") == 2


@pytest.mark.expects_log(r"subscribing to homeassistant/status: Not authorized")
async def test_a_subscription_that_is_refused_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK_5)
        mid = (await packet(reader))[1:3]
        writer.write(b"\x90\x04" + mid + b"\x00\x87")
        await reader.read()

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        await soon(lambda: "subscribing to homeassistant/status: Not authorized" in caplog.text)
        assert broker.connected


# the end of a connection


async def test_a_dropped_connection_makes_the_broker_publish_the_will(mosquitto: Mosquitto) -> None:
    async with using(mosquitto.url) as broker, watching(mosquitto.port) as watcher:
        await broker.connect()
        lost = asyncio.create_task(broker.lost())
        await asyncio.sleep(0)
        broker.abort()
        await watcher.until_seen(WILL.topic, WILL.payload)

        assert await lost == "closed by the bridge"
        assert watcher.seen == [Seen(WILL.topic, WILL.payload, qos=1, retained=False, content_type="")]
        assert await broker.lost() == "not connected"
        assert not await broker.send(VALUE)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_offline_comes_before_a_clean_leave_and_no_will(mosquitto: Mosquitto, protocol: str) -> None:
    async with using(mosquitto.url, protocol=protocol) as broker, watching(mosquitto.port) as watcher:
        await broker.connect()
        await broker.send(VALUE)
        await broker.close(OFFLINE)
        assert not broker.connected
        await watcher.until_seen(OFFLINE.topic, OFFLINE.payload)
        await soon(lambda: "Client iqgateway2mqtt-test disconnected." in mosquitto.log)

    assert [seen.payload for seen in watcher.seen] == [VALUE.payload, OFFLINE.payload]
    assert "Received DISCONNECT from iqgateway2mqtt-test" in mosquitto.log


async def test_closing_does_not_wait_for_ever() -> None:
    async with fake_broker(answers(CONNACK_5)) as url, using(url, timing=BrokerTiming(close=0.2)) as broker:
        await broker.connect()
        await within(broker.close(OFFLINE))
        assert not broker.connected


async def test_closing_what_is_not_open_is_no_fault(mosquitto: Mosquitto) -> None:
    async with using(mosquitto.url) as broker:
        await broker.close(OFFLINE)
        await broker.connect()
        await broker.close()
        await broker.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_broker_that_stops(mosquitto: Mosquitto, protocol: str) -> None:
    async with using(mosquitto.url, protocol=protocol) as broker:
        await broker.connect()
        mosquitto.stop()
        assert await within(broker.lost())
        assert not broker.connected
        assert not await broker.send(VALUE)


async def test_a_broker_that_is_killed(mosquitto: Mosquitto) -> None:
    async with using(mosquitto.url) as broker:
        await broker.connect()
        mosquitto.kill()
        assert await within(broker.lost())


async def test_a_broker_that_falls_silent_is_noticed() -> None:
    async with fake_broker(answers(CONNACK_5)) as url, using(url, keepalive=1) as broker:
        await broker.connect()
        assert await within(broker.lost()) == "the broker no longer answers"


async def test_a_quiet_connection_is_kept_alive(mosquitto: Mosquitto) -> None:
    async with using(mosquitto.url, keepalive=1) as broker:
        await broker.connect()
        await soon(lambda: mosquitto.log.count("PINGRESP") >= 2)
        assert broker.connected


async def test_a_broker_may_ask_for_a_shorter_keepalive() -> None:
    pinged = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(b"\x20\x06\x00\x00\x03\x13\x00\x01")
        while await packet(reader) != b"\xc0":
            pass
        pinged.set()

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        await within(pinged.wait())


@pytest.mark.parametrize(
    ("last_words", "reason"),
    [
        (b"\xe0\x02\x8e\x00", "another client uses the same client id: set BRIDGE_MQTT__CLIENT_ID"),
        (b"\xe0\x01\x8b", "the broker is shutting down"),
        (b"\xe0\x02\x96\x00", "the broker says: Message rate too high: set BRIDGE_MQTT__RATE"),
        (b"\xe0\x02\x98\x00", "the broker says: Administrative action"),
        (b"\xe0\x00", "the broker says: Normal disconnection"),
        (b"\xf0\x7f" + b"x" * 127, "the broker has sent what MQTT does not allow"),
        (b"", "the broker closed the connection"),
    ],
)
async def test_last_words(last_words: bytes, reason: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK_5)
        await packet(reader)
        writer.write(last_words)

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        assert reason in await within(broker.lost())


def nothing() -> None:
    """A callback that does nothing."""


@pytest.mark.expects_log(r"The MQTT library failed")
async def test_a_fault_in_paho_ends_the_connection_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()

    class Faulty(Client):
        def socket(self) -> socket.socket:
            return ours

        def loop_read(self, *_: object) -> NoReturn:
            raise LookupError("stumbled")

    failures: list[str] = []
    client = Faulty(CallbackAPIVersion.VERSION2)

    def failed(reason: str) -> None:
        failures.append(reason)
        pump.stop()

    pump = LoopAdapter(client, on_flushed=nothing, on_second=nothing, on_failure=failed)
    pump.start()
    theirs.send(b"x")
    await soon(lambda: bool(failures))
    theirs.close()

    assert failures == ["a fault of the MQTT library"]
    assert "LookupError: stumbled" in caplog.text


async def test_a_connection_that_is_gone_before_it_is_watched() -> None:
    failures: list[str] = []
    client = Client(CallbackAPIVersion.VERSION2)
    LoopAdapter(client, on_flushed=nothing, on_second=nothing, on_failure=failures.append).start()
    assert failures == ["the broker closed the connection"]


# trying again


@pytest.mark.expects_log(r"connection refused")
async def test_it_connects_again_after_a_restart(mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    async with using(mosquitto.url, timing=BrokerTiming(settled=-1)) as broker:
        await broker.reconnect()
        mosquitto.stop()
        await within(broker.lost())
        trying = asyncio.create_task(broker.reconnect())
        await soon(lambda: caplog.text.count("connection refused: no broker listens there") >= 2)
        mosquitto.start()
        await within(trying)

        async with watching(mosquitto.port) as watcher:
            assert await broker.send(VALUE)
            await watcher.until_seen(VALUE.topic, VALUE.payload)

    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("bridge")]
    assert [text.partition(";")[0] for text in said] == [
        f"{mosquitto.url}: connection refused: no broker listens there"
    ]


@pytest.mark.expects_log(r"another client uses the same client id")
async def test_two_clients_of_one_id_do_not_chase_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """mosquitto 2.0 does not tell which client has taken over; others do. The length of the connection does not
    matter.
    """
    connects = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connects
        connects += 1
        await packet(reader)
        writer.write(CONNACK_5)
        await packet(reader)
        writer.write(b"\xe0\x02\x8e\x00")

    async with fake_broker(talk) as url, using(url, timing=BrokerTiming(settled=-1)) as broker:
        await broker.connect()
        await within(broker.lost())
        trying = asyncio.create_task(broker.reconnect())
        await soon(
            lambda: re.search("BRIDGE_MQTT__CLIENT_ID; trying again in [0-9]{2,3} s", caplog.text) is not None
        )
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying

    assert connects == 1


@pytest.mark.expects_log(r"does another client use the same client id")
async def test_a_second_client_of_the_same_id(mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    async with using(mosquitto.url) as one, using(mosquitto.url) as other:
        await one.connect()
        await other.connect()
        await within(one.lost())
        trying = asyncio.create_task(one.reconnect())
        await soon(lambda: "does another client use the same client id" in caplog.text)
        trying.cancel()
        assert other.connected


@pytest.mark.expects_log(r"after a moment")
async def test_a_connection_that_does_not_last_is_no_success(caplog: pytest.LogCaptureFixture) -> None:
    connects = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connects
        connects += 1
        await packet(reader)
        writer.write(CONNACK_5)

    async with fake_broker(talk) as url, using(url) as broker:
        await broker.connect()
        await within(broker.lost())
        trying = asyncio.create_task(broker.reconnect())
        await soon(lambda: "trying again" in caplog.text)
        assert connects == 1
        await within(trying)
        assert connects == 2


@pytest.mark.parametrize(
    ("problem", "least", "most"), [(Unavailable("gone"), 1, 60), (Rejected("wrong password"), 60, 300)]
)
async def test_the_pauses_grow(problem: BridgeError, least: float, most: float) -> None:
    pauses = []
    async with using("mqtt://127.0.0.1") as broker:
        for attempt in range(1, 30):
            state = RetryCallState(Retrying(), None, (), {})
            state.attempt_number = attempt
            state.outcome = Future(attempt)
            state.outcome.set_exception(problem)
            pauses.append(broker._pause(state))

    assert pauses[0] == least
    assert all(least <= pause <= most for pause in pauses)
    assert max(pauses) > most / 2


# TLS, WebSocket and Unix sockets


@pytest.fixture(scope="module")
def tls_lines(authority: Authority) -> tuple[str, ...]:
    certificate, key = authority.issue("broker", LOOPBACK_NAME)
    return (f"cafile {authority.file}", f"certfile {certificate}", f"keyfile {key}")


@pytest.fixture
def mosquitto_tls(tmp_path: Path, tls_lines: tuple[str, ...]) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, *tls_lines, scheme="mqtts") as broker:
        yield broker


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_tls(mosquitto_tls: Mosquitto, authority: Authority, protocol: str) -> None:
    """Large messages come back, so that TLS has more decrypted bytes than the socket reports."""
    received: list[Received] = []
    broker = Broker(
        MqttSettings(url=mosquitto_tls.url, ca_file=authority.file, protocol=protocol),
        client_id="x",
        will=WILL,
        on_message=lambda *message: received.append(message),
        subscriptions=["#"],
    )
    await broker.connect()
    for number in range(200):
        assert await broker.send(Message(f"enphase/{number}", "x" * 5000, qos=number % 2))
    await soon(lambda: len(received) == 200)
    await broker.close()


@unclosed
async def test_a_certificate_of_nobody_we_know(mosquitto_tls: Mosquitto) -> None:
    async with using(mosquitto_tls.url) as broker:
        with pytest.raises(Rejected, match=r"certificate is not trusted.*BRIDGE_MQTT__CA_FILE"):
            await broker.connect()


@unclosed
async def test_a_certificate_of_another_host(mosquitto_tls: Mosquitto, authority: Authority) -> None:
    url = mosquitto_tls.url.replace("127.0.0.1", "localhost")
    async with using(url, ca_file=authority.file) as broker:
        with pytest.raises(Rejected, match=r"Hostname mismatch.*BRIDGE_MQTT__URL"):
            await broker.connect()


@unclosed
@pytest.mark.parametrize(("days_ago", "reason"), [(3, "expired"), (-3, "not yet valid")])
async def test_a_certificate_of_another_time(
    days_ago: int, reason: str, tmp_path: Path, authority: Authority
) -> None:
    """The authority is trusted, so a CA file would not help."""
    certificate, key = authority.issue(f"broker of {days_ago} days ago", LOOPBACK_NAME, days_ago=days_ago)
    lines = (f"certfile {certificate}", f"keyfile {key}")
    with Mosquitto(tmp_path, *lines, scheme="mqtts") as broker:
        async with using(broker.url, ca_file=authority.file) as client:
            with pytest.raises(Rejected, match=rf"certificate is {reason}|certificate has {reason}") as caught:
                await client.connect()
            assert "renew it at the broker" in str(caught.value)
            assert "BRIDGE_MQTT__CA_FILE" not in str(caught.value)


@unclosed
async def test_a_broker_that_refuses_in_the_middle_of_the_handshake(authority: Authority) -> None:
    """TLS 1.2 does so. With TLS 1.3 a broker refuses after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    context.load_cert_chain(*authority.issue("strict", LOOPBACK_NAME))

    def refuse(listener: socket.socket) -> None:  # asyncio's TLS closes without the alert
        connection, _ = listener.accept()
        with connection, suppress(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        refusing = asyncio.create_task(asyncio.to_thread(refuse, listener))
        async with using(f"mqtts://127.0.0.1:{listener.getsockname()[1]}", ca_file=authority.file) as broker:
            with pytest.raises(Rejected, match=r"alert handshake failure.*BRIDGE_MQTT__CERT_FILE"):
                await broker.connect()
        await refusing


def test_an_alert_after_the_handshake_is_understood() -> None:
    problem = _closed_before_connack(
        BrokerAddress.of("mqtts://x"), None, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]"
    )
    assert isinstance(problem, Rejected)
    assert "BRIDGE_MQTT__CERT_FILE" in str(problem)


@unclosed
async def test_something_else_than_tls() -> None:
    talk = answers(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    async with fake_broker(talk) as url, using(url.replace("mqtt", "mqtts")) as broker:
        with pytest.raises(Unavailable, match=r"no TLS connection: .*does the broker speak TLS at this port"):
            await broker.connect()


@unclosed
async def test_no_answer_to_tls() -> None:
    async with (
        fake_broker(says_nothing) as url,
        using(url.replace("mqtt", "mqtts"), timing=BrokerTiming(connect=0.3)) as broker,
    ):
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
            await broker.connect()


async def test_a_client_certificate(tmp_path: Path, authority: Authority, tls_lines: tuple[str, ...]) -> None:
    certificate, key = authority.issue("bridge")
    with Mosquitto(tmp_path, *tls_lines, "require_certificate true", scheme="mqtts") as mosquitto:
        async with using(mosquitto.url, ca_file=authority.file, cert_file=certificate, key_file=key) as broker:
            await broker.connect()
            assert broker.connected

        async with using(mosquitto.url, ca_file=authority.file) as broker:
            with pytest.raises(BridgeError, match="BRIDGE_MQTT__CERT_FILE"):  # the error depends on the moment
                await broker.connect()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ca_file": "missing.pem"}, "BRIDGE_MQTT__CA_FILE: No such file or directory"),
        ({"ca_file": "ca.key"}, "BRIDGE_MQTT__CA_FILE: not usable as PEM files: no certificate"),
        ({"ca_file": "ca.pem", "cert_file": "missing.pem"}, "BRIDGE_MQTT__CERT_FILE"),
        ({"ca_file": "ca.pem", "cert_file": "ca.pem"}, "BRIDGE_MQTT__CERT_FILE"),
        ({"ca_file": "ca.pem", "cert_file": "ca.pem", "key_file": "locked.key"}, "BRIDGE_MQTT__KEY_FILE"),
    ],
)
async def test_files_that_are_of_no_use(authority: Authority, settings: dict[str, str], text: str) -> None:
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked = authority.key.private_bytes(pem, form, serialization.BestAvailableEncryption(b"secret"))
    (authority.folder / "locked.key").write_bytes(locked)
    files: dict[str, Any] = {name: authority.folder / file for name, file in settings.items()}
    async with using("mqtts://127.0.0.1", **files) as broker:
        with pytest.raises(Rejected, match=text):
            await broker.connect()


@unclosed
async def test_tls_where_the_broker_speaks_none(mosquitto: Mosquitto) -> None:
    async with using(mosquitto.url.replace("mqtt", "mqtts"), timing=BrokerTiming(connect=2)) as broker:
        with pytest.raises(Unavailable, match="mqtts://127"):
            await broker.connect()


async def test_no_tls_where_the_broker_wants_it(mosquitto_tls: Mosquitto) -> None:
    async with using(mosquitto_tls.url.replace("mqtts", "mqtt")) as broker:
        with pytest.raises(Unavailable, match="does it want TLS"):
            await broker.connect()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_websocket(mosquitto: Mosquitto, authority: Authority, scheme: str) -> None:
    context = None
    if scheme == "wss":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("relay", LOOPBACK_NAME))
    received: list[Received] = []
    async with websocket_relay(mosquitto.port, context) as port:
        broker = Broker(
            MqttSettings(url=f"{scheme}://127.0.0.1:{port}/some/path", ca_file=authority.file),
            client_id="x",
            will=WILL,
            on_message=lambda *message: received.append(message),
            subscriptions=["#"],
        )
        await broker.connect()
        for number in range(100):
            assert await broker.send(Message(f"enphase/{number}", "x" * 500, qos=number % 2))
        await soon(lambda: len(received) == 100)
        await broker.close()


@unclosed
async def test_no_websocket_there() -> None:
    talk = answers(b"HTTP/1.1 404 Not Found\r\n\r\n")
    async with fake_broker(talk) as url, using(url.replace("mqtt", "ws") + "/nowhere") as broker:
        with pytest.raises(Unavailable, match="no WebSocket at path /nowhere"):
            await broker.connect()


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.sock"
    with Mosquitto(tmp_path, f"listener 0 {path}") as mosquitto:
        async with using(f"unix://{path}") as broker, watching(mosquitto.port) as watcher:
            await broker.connect()
            await broker.send(CONFIG)
            await watcher.until_seen(CONFIG.topic, CONFIG.payload)


@unclosed
async def test_no_unix_socket_there(tmp_path: Path) -> None:
    async with using(f"unix://{tmp_path}/none") as broker:
        with pytest.raises(Unavailable, match="none: No such file or directory"):
            await broker.connect()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", ("mqtt", "broker", 1883, "/mqtt")),
        ("mqtts://broker", ("mqtts", "broker", 8883, "/mqtt")),
        ("mqtt://[fd00::1]:2883", ("mqtt", "fd00::1", 2883, "/mqtt")),
        ("ws://broker:9001/", ("ws", "broker", 9001, "/")),
        ("wss://broker/path", ("wss", "broker", 443, "/path")),
        ("unix:///run/my%20socket", ("unix", "/run/my socket", 1, "")),
    ],
)
def test_addresses(url: str, address: tuple[str, str, int, str]) -> None:
    assert BrokerAddress.of(url) == BrokerAddress(*address)


def test_an_address_as_text() -> None:
    assert str(BrokerAddress.of("mqtt://[fd00::1]")) == "mqtt://[fd00::1]:1883"
    assert str(BrokerAddress.of("unix:///run/mqtt")) == "unix:///run/mqtt"
