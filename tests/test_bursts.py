"""Messages that follow one another are written in one piece, and none is lost or overtakes another one."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from authority import LOOPBACK_NAME, Authority
from edge import (
    CONNACK_5,
    DISCONNECT,
    PUBLISH,
    Talk,
    fake_broker,
    packet,
    publish_id,
    soon,
    using,
    websocket_relay,
    within,
)

from bridge.model import Message
from bridge.mqtt import Broker, BrokerTiming
from bridge.mqtt.loop import MAX_JOINED_BYTES, BoundedClient
from bridge.outbox import Outbox
from bridge.service.retained import Sender

SMALL = 4096
"""Bytes of a buffer that is soon full."""
MESSAGES = [Message(f"enphase/{n}", f"{n}:" + "x" * (n % 11 * 400), qos=int(n % 7 == 0)) for n in range(400)]
SENT = [(message.topic, message.payload) for message in MESSAGES]


def taking(taken: list[tuple[str, str]], left: asyncio.Event) -> Talk:
    """A broker that takes little at a time, until the client says goodbye."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK_5)
        while (body := await packet(reader))[0] != DISCONNECT:
            if body[0] & 0xF0 == PUBLISH:
                taken.append(published(body))
            if body[0] & 0xF6 == PUBLISH | 2:
                writer.write(b"\x40\x02" + publish_id(body))
            await asyncio.sleep(0)
        left.set()

    return talk


def published(body: bytes) -> tuple[str, str]:
    """Topic and payload of a PUBLISH of MQTT 5 without properties."""
    end = 3 + int.from_bytes(body[1:3], "big")
    return body[3:end].decode(), body[end + (2 if body[0] & 0x06 else 0) + 1 :].decode()


def client_of(broker: Broker) -> BoundedClient:
    assert broker._connection is not None
    return broker._connection._client


def shrink(broker: Broker) -> None:
    """Let the system take little at a time from the client."""
    sock = client_of(broker).socket()
    assert sock is not None
    with socket.socket(fileno=os.dup(sock.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)


@asynccontextmanager
async def reached_by(scheme: str, talk: Talk, authority: Authority) -> AsyncIterator[str]:
    """Run a broker with this scheme and yield its URL."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("slow", LOOPBACK_NAME))
    async with fake_broker(talk, limit=SMALL, ssl=tls if scheme == "mqtts" else None) as url:
        if scheme not in {"ws", "wss"}:
            yield url.replace("mqtt", scheme)
            return
        async with websocket_relay(urlsplit(url).port or 0, tls if scheme == "wss" else None) as port:
            yield f"{scheme}://127.0.0.1:{port}/some/path"


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
async def test_all_arrive_in_order_where_little_is_taken_at_a_time(scheme: str, authority: Authority) -> None:
    taken: list[tuple[str, str]] = []
    left = asyncio.Event()
    async with (
        reached_by(scheme, taking(taken, left), authority) as url,
        using(url, ca_file=authority.file) as broker,
    ):
        await broker.connect()
        shrink(broker)
        for message in MESSAGES:
            assert await within(broker.send(message))
        await within(broker.close())
        await within(left.wait())

    assert taken == SENT


class Noting:
    """A socket that notes what is written."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.written: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.written.append(bytes(data))
        sent: int = self._sock.send(data)
        return sent

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


@pytest.mark.parametrize("qos", [0, 1])
async def test_the_first_is_written_at_once_and_all_others_in_one_piece(qos: int) -> None:
    taken: list[tuple[str, str]] = []
    async with fake_broker(taking(taken, asyncio.Event())) as url, using(url) as broker:
        await broker.connect()
        await soon(lambda: not client_of(broker).want_write())
        client = client_of(broker)
        noting = Noting(client._sock)
        client._sock = noting  # type: ignore[assignment]
        for number in range(10):
            assert await broker.send(Message(f"a/{number}", "x", qos=qos))
            assert len(noting.written) == 1
        await soon(lambda: len(taken) == 10)

    assert [topic for topic, _ in taken] == [f"a/{number}" for number in range(10)]
    assert len(noting.written) == 2
    assert noting.written[0].count(b"a/") == 1


async def test_all_values_of_an_answer_are_written_before_its_documents_are_made() -> None:
    """The poller waits for two turns of the event loop. Then it makes documents, which takes longer."""
    taken: list[tuple[str, str]] = []
    async with fake_broker(taking(taken, asyncio.Event())) as url, using(url) as broker:
        sender = Sender(Outbox(), broker, heartbeat=3600)
        running = asyncio.create_task(sender.run())
        await soon(lambda: sender.connections == 1 and not client_of(broker).want_write())
        sender.put([Message(f"a/{number}", "x") for number in range(60)])
        for _ in range(2):
            await asyncio.sleep(0)
        assert sender.sent == 60
        assert not client_of(broker).want_write()
        await soon(lambda: len(taken) == 60)
        running.cancel()
        await asyncio.wait([running])


async def test_what_a_slow_broker_leaves_is_copied_in_pieces_of_a_bounded_size() -> None:
    """Nothing is read until all is sent, so that the client has to keep most of it."""
    go_on, taken = asyncio.Event(), list[tuple[str, str]]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * SMALL)
        writer.write(CONNACK_5)
        await go_on.wait()
        await taking(taken, asyncio.Event())(reader, writer)

    large = [Message(f"enphase/{n}", str(n) * 150_000) for n in range(8)]
    async with fake_broker(talk, limit=SMALL) as url, using(url) as broker:
        await broker.connect()
        shrink(broker)
        for message in large:
            assert await broker.send(message)
        waiting = [len(packet["packet"]) for packet in client_of(broker)._out_packet]
        assert len(waiting) > 1
        assert max(waiting) < MAX_JOINED_BYTES + 151_000
        go_on.set()
        await soon(lambda: len(taken) == len(large))

    assert taken == [(message.topic, message.payload) for message in large]


async def test_the_reason_of_a_failed_write_is_told() -> None:
    class Failing(Noting):
        def send(self, _: bytes) -> int:
            raise OSError(errno.EHOSTUNREACH, "No route to host")

    async with fake_broker(taking([], asyncio.Event())) as url, using(url) as broker:
        await broker.connect()
        await soon(lambda: not client_of(broker).want_write())
        client_of(broker)._sock = Failing(client_of(broker)._sock)  # type: ignore[assignment]
        assert not await broker.send(MESSAGES[0])
        assert await broker.lost() == "No route to host"


@pytest.mark.expects_log("the connection to the broker ended")
async def test_a_connection_that_ends_within_a_piece_loses_nothing() -> None:
    """The first connection is reset after a part of what was written together."""
    taken: list[tuple[str, str]] = []
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            writer.write(CONNACK_5)
            await reader.readexactly(2 * SMALL)
            writer.transport.abort()
        else:
            await taking(taken, asyncio.Event())(reader, writer)

    async with fake_broker(talk, limit=SMALL) as url, using(url, timing=BrokerTiming(settled=-1)) as broker:
        sender = Sender(Outbox(), broker, heartbeat=3600)
        sender.put(MESSAGES)
        running = asyncio.create_task(sender.run())
        await soon(lambda: len(taken) >= len(MESSAGES))
        running.cancel()
        await asyncio.wait([running])

    assert connections == 2
    assert sorted(taken) == sorted(SENT)
