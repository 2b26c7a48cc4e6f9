"""The programs whose CPU time `cost.py` compares, each in its own process: the bridge, a script, a bare client.

A round is one request to each source, and all messages that follow from it, at a real broker. Rounds follow one
another at once; in the bridge, as in the simulated home, a second passes in each of them. With another checkout of
the project in `PYTHONPATH`, this measures that one. Standard input says how many rounds to run, one number a line.

    python benchmarks/contenders.py CONTENDER ADDRESS TOKEN BROKER_PORT SOURCE ...
"""

import asyncio
import json
import logging
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from bridge.endpoints import ENDPOINTS
from bridge.model import Message
from bridge.mqtt import Broker
from bridge.outbox import Outbox
from bridge.store import Store

WARM_UP_ROUNDS = 2
KEEP_S = 60.0
"""The floor keeps its connection for so long."""
MOST_BYTES = 10_000_000
"""The floor reads answers up to this size."""
SETTLE_S = 0.5
"""The first round is sent within this time."""


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time can be moved on, so that a second passes for the bridge without waiting for it."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


async def measure(once: Callable[[], Awaitable[object]], sent: Callable[[], int]) -> None:
    """Run as many rounds as each line of standard input says, and print their CPU time (ms) and messages."""
    loop = asyncio.get_running_loop()
    for _ in range(WARM_UP_ROUNDS):
        await once()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        messages, begun = sent(), time.process_time()
        for _ in range(rounds := int(line)):
            await once()
        found = {"ms": 1000 * (time.process_time() - begun) / rounds, "messages": (sent() - messages) / rounds}
        print(json.dumps(found), flush=True)


def parts_of_bridge() -> tuple[Any, Any, Any]:
    """Return `Settings`, `make_poller` and `Sender`, which had other places until 2026-11-25 (commit 57519a3)."""
    with suppress(ModuleNotFoundError):
        from bridge.service.assembly import make_poller  # noqa: PLC0415
        from bridge.service.retained import Sender  # noqa: PLC0415
        from bridge.settings import Settings  # noqa: PLC0415

        return Settings, make_poller, Sender
    from importlib import import_module  # noqa: PLC0415

    places = ("bridge.config", "Settings"), ("bridge.service", "make_poller"), ("bridge.service.sender", "Sender")
    settings, make_poller, sender = (getattr(import_module(module), name) for module, name in places)
    return settings, make_poller, sender


async def ours(address: str, token: str, port: int, sources: Sequence[str]) -> None:
    """Poll all sources once, then measure rounds of these: in a real home most sources are polled seldom."""
    settings_type, make_poller, sender_type = parts_of_bridge()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteppedLoop)
    begun = time.time() - loop.time()
    with TemporaryDirectory() as folder:
        settings = settings_type(
            gateway={"host": address, "token": token},
            mqtt={"url": f"mqtt://127.0.0.1:{port}"},
            state_dir=Path(folder),
            poll={"profile": "live"},
        )
        will = Message("benchmark/will", "")
        broker = Broker(settings.mqtt, client_id="benchmark", will=will, on_message=lambda *_: None)
        sender = sender_type(Outbox(settings.mqtt.deadband), broker, heartbeat=settings.mqtt.heartbeat)
        store = Store(settings.state_dir)
        poller = make_poller(settings, settings.gateway, store, sender.put, now=lambda: begun + loop.time())
        sending = asyncio.create_task(sender.run())
        poll = poller.poll if hasattr(poller, "poll") else poller._ask  # noqa: SLF001 - its name before 2026-11-25
        asked = [poller.sources.by_name[name] if hasattr(poller, "sources") else name for name in sources]

        async def once() -> None:
            for source in asked:
                await poll(source)
                await asyncio.sleep(0)  # as the poller does: it lets the sender work
                loop.ahead += 1 / len(asked)

        try:
            await poller.once()
            await asyncio.sleep(SETTLE_S)
            await measure(once, lambda: sender.sent)
        finally:
            sending.cancel()
            broker.abort()
            await poller.aclose()


async def floor(address: str, token: str, port: int, sources: Sequence[str]) -> None:
    """A bare client: the bridge's HTTP connection, `json.loads`, and each answer published as it is."""
    from bridge.gateway.http1 import Http1Transport  # noqa: PLC0415 - there was none until 2026-11-25

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    paths = [endpoint.path for endpoint in ENDPOINTS if endpoint.source in sources]
    extensions = {"most_bytes": MOST_BYTES, "timeout": {"connect": KEEP_S, "read": KEEP_S}}
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    sent = 0
    async with Http1Transport(context, lambda _certificate: None, KEEP_S) as transport:

        async def once() -> None:
            nonlocal sent
            for path in paths:
                url = f"https://{address}{path}"
                request = httpx.Request("GET", url, headers=headers, extensions=extensions)
                body = (await transport.handle_async_request(request)).content
                if body.startswith((b"{", b"[")):
                    json.loads(body)
                client.publish(f"floor{path}", body, retain=True)
                sent += 1

        await measure(once, lambda: sent)
    client.loop_stop()


async def script(address: str, token: str, port: int, _sources: Sequence[str]) -> None:
    """pyenphase, and what has changed published: see `script.py`."""
    from script import Publisher, opened  # noqa: PLC0415 - pyenphase may be missing

    publisher = Publisher(port, on_change=True)
    envoy = await opened(address, token)

    async def once() -> None:
        publisher.publish(await envoy.update())

    await measure(once, lambda: publisher.sent)
    await envoy.close()


CONTENDERS = {"ours": ours, "floor": floor, "script": script}


def main() -> None:
    logging.disable()
    who, address, token, port, *sources = sys.argv[1:]
    with asyncio.Runner(loop_factory=SteppedLoop) as runner:
        runner.run(CONTENDERS[who](address, token, int(port), sources))


if __name__ == "__main__":
    main()
