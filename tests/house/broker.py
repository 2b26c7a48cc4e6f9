"""A small MQTT 3.1.1 broker: retained messages, wildcards, QoS 0 and 1 in, QoS 0 out."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, PING, DISCONNECT = 1, 3, 8, 10, 12, 14
STOP_S = 1.0
"""Simulated time for open connections to end."""
MORE = 128
"""The flag of a length that goes on in the next byte."""


class Broker:
    """The broker on a port of the loopback interface. `listener` gets topic and payload of each publication."""

    def __init__(self, listener: Callable[[str, bytes], None]) -> None:
        self.retained: dict[str, bytes] = {}
        self.port = 0
        self._listener = listener
        self._subscribers: dict[asyncio.StreamWriter, list[str]] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._subscribers):
            writer.close()
        await asyncio.sleep(STOP_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._subscribers[writer] = []
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                kind, body = await _packet(reader)
                reply = self._take(kind, body, writer)
                if reply is None:
                    break
                writer.write(reply)
        del self._subscribers[writer]
        writer.close()

    def _take(self, kind: int, body: bytes, writer: asyncio.StreamWriter) -> bytes | None:
        """Return the reply to a packet, or `None` to end the connection."""
        packet = kind >> 4
        if packet == PUBLISH:
            return self._publish(kind, body)
        if packet == SUBSCRIBE:
            return self._subscribe(body, writer)
        if packet == DISCONNECT:
            return None
        return {CONNECT: b"\x20\x02\0\0", UNSUBSCRIBE: b"\xb0\x02" + body[:2], PING: b"\xd0\0"}.get(packet, b"")

    def _publish(self, kind: int, body: bytes) -> bytes:
        size = int.from_bytes(body[:2], "big")
        topic, rest, reply = body[2 : 2 + size].decode(), body[2 + size :], b""
        if kind & 6:
            reply, rest = b"\x40\x02" + rest[:2], rest[2:]
        if kind & 1 and rest:
            self.retained[topic] = rest
        elif kind & 1:
            self.retained.pop(topic, None)
        for writer, filters in self._subscribers.items():
            if any(_matches(given, topic) for given in filters):
                writer.write(_message(topic, rest, retained=False))
        self._listener(topic, rest)
        return reply

    def _subscribe(self, body: bytes, writer: asyncio.StreamWriter) -> bytes:
        place, granted, found = 2, b"", b""
        while place < len(body):
            size = int.from_bytes(body[place : place + 2], "big")
            given = body[place + 2 : place + 2 + size].decode()
            place += 3 + size
            self._subscribers[writer].append(given)
            granted += b"\0"
            for topic, payload in self.retained.items():
                if _matches(given, topic):
                    found += _message(topic, payload, retained=True)
        return b"\x90" + _length(2 + len(granted)) + body[:2] + granted + found


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await reader.readexactly(1))[0]
    length, shift = 0, 0
    while True:
        part = (await reader.readexactly(1))[0]
        length |= (part & 127) << shift
        shift += 7
        if part < MORE:
            break
    return kind, await reader.readexactly(length)


def _length(size: int) -> bytes:
    parts = bytearray()
    while True:
        size, part = divmod(size, 128)
        parts.append(part | (128 if size else 0))
        if not size:
            return bytes(parts)


def _message(topic: str, payload: bytes, *, retained: bool) -> bytes:
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name + payload
    return bytes([0x31 if retained else 0x30]) + _length(len(body)) + body


@lru_cache(maxsize=4_096)
def _matches(given: str, topic: str) -> bool:
    wanted, levels = given.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)
