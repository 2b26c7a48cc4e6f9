"""Both ends of an MQTT connection for tests: the bridge's client, and brokers that misbehave."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from brokers import TIMEOUT_S
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError
from websockets.typing import Subprotocol

from bridge.model import Message, Priority
from bridge.mqtt import Broker
from bridge.settings import MqttSettings

PASSWORD = "hunter2-Ä/€"
WILL = Message("enphase/bridge/state", "gone", qos=1, priority=Priority.AVAILABILITY)
OFFLINE = Message("enphase/bridge/state", "offline", qos=1, priority=Priority.AVAILABILITY)
VALUE = Message("enphase/1/site/solar/power", "4321.5")
DOCUMENT = Message("enphase/1/site/solar", '{"power": 4321.5}', content_type="application/json")
CONFIG = Message("homeassistant/device/x/config", '{"a": "ü"}', qos=1, priority=Priority.DISCOVERY)
CONNACK_3, CONNACK_5 = b"\x20\x02\x00\x00", b"\x20\x03\x00\x00\x00"
PUBLISH, DISCONNECT = 0x30, 0xE0
OF_THE_BROKER = ("client_id", "will", "keepalive", "timing", "on_doubt")

Received = tuple[str, bytes, bool]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


unclosed = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
"""paho leaves a socket to the garbage collector when the connection fails early."""


@asynccontextmanager
async def using(url: str, *, received: list[Received] | None = None, **options: Any) -> AsyncIterator[Broker]:
    """Run a `Broker` and close it at the end. Options that are not the broker's are MQTT settings."""
    own = {name: options.pop(name) for name in OF_THE_BROKER if name in options}
    broker = Broker(
        MqttSettings(url=url, **options),
        on_message=lambda *message: received.append(message) if received is not None else None,
        subscriptions=["homeassistant/status"],
        **{"client_id": "iqgateway2mqtt-test", "will": WILL, **own},
    )
    try:
        yield broker
    finally:
        broker.abort()


@asynccontextmanager
async def fake_broker(talk: Talk, **options: Any) -> AsyncIterator[str]:
    """Run a server with these options of asyncio's, and yield its URL. `talk` serves one connection."""
    tasks: set[asyncio.Task[None]] = set()
    writers = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await talk(reader, writer)
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, **options)
    async with server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        for writer in writers:
            writer.transport.abort()
    await asyncio.sleep(0)


@asynccontextmanager
async def websocket_relay(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Forward WebSocket connections, since mosquitto's own listener can't be limited to the loopback interface."""

    async def relay(socket: ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.path == "/some/path"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            while data := await reader.read(65_536):
                await socket.send(data)
            await socket.close()

        returning = asyncio.create_task(back())
        try:
            with suppress(ConnectionClosedError):  # paho does not close the WebSocket properly
                async for data in socket:
                    writer.write(data if isinstance(data, bytes) else data.encode())
        finally:
            writer.close()
            await returning
            await writer.wait_closed()

    async with serve(relay, "127.0.0.1", 0, subprotocols=[Subprotocol("mqtt")], ssl=tls) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def packet(reader: asyncio.StreamReader) -> bytes:
    """Read an MQTT packet, and return it without its length."""
    kind, length, shift = await reader.readexactly(1), 0, 0
    while True:
        (byte,) = await reader.readexactly(1)
        length |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            return kind + await reader.readexactly(length)


async def closes(*_: Any) -> None:
    """Behaviours of simple brokers that do not know MQTT 5."""


async def resets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def says_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


def answers(connack: bytes) -> Talk:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(connack)
        await reader.read()

    return answer


async def within(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(TIMEOUT_S):
        return await awaitable


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - a log or a counter has no event
            await asyncio.sleep(0.01)


def publish_id(body: bytes) -> bytes:
    end = 3 + int.from_bytes(body[1:3], "big")
    return body[end : end + 2]
