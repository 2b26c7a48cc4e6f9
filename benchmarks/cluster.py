"""A cluster of three NATS servers (JetStream) that loses the one that the bridge is connected to.

New subscribers at a server that is left ask again and again what is retained, and that is compared with what the
bridge has sent: when is each topic right again? Documents only, as a fleet has them.

    python benchmarks/cluster.py [GATEWAYS ...]
"""

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import lab
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from bridge.config import Settings
from bridge.model import Message
from bridge.service import Bridge

COUNTS = (10, 300)
SERVERS = 3
LONGEST = 180.0
"""Seconds until this gives up."""
SETTLE = 15.0
"""Seconds that the bridge is left alone before a server is killed."""
QUIET = 1.0
"""Seconds without another retained message after which a subscriber has them all."""
ON_ITS_WAY = 1.0
"""Seconds that a message may take."""
KEPT = 20
"""Payloads of each topic that are remembered."""


@dataclass
class Server:
    """One of the three."""

    port: int
    process: "subprocess.Popen[bytes]"


@contextmanager
def cluster(folder: Path) -> Iterator[list[Server]]:
    """Three servers that have agreed on a leader, each with an MQTT port."""
    program = shutil.which("nats-server", path="/usr/bin:/usr/sbin:/usr/local/bin")
    if program is None:
        sys.exit("nats-server is missing: apt-get install nats-server")
    routes = [_free_port() for _ in range(SERVERS)]
    servers: list[Server] = []
    with ExitStack() as stack:
        for number, route in enumerate(routes):
            port = _free_port()
            others = ", ".join(f"nats://127.0.0.1:{other}" for other in routes)
            lines = (
                f"server_name: n{number}",
                f"listen: 127.0.0.1:{_free_port()}",
                f'jetstream: {{ store_dir: "{folder}/{number}" }}',
                f"cluster: {{ name: fleet, listen: 127.0.0.1:{route}, routes: [{others}] }}",
                f"mqtt: {{ listen: 127.0.0.1:{port} }}",
            )
            config = folder / f"{number}.conf"
            config.write_text("\n".join(lines))
            process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            servers.append(Server(port, process))
        deadline = time.monotonic() + 60
        while not takes(servers[0].port):
            if time.monotonic() > deadline:
                sys.exit("the cluster does not come up")
            time.sleep(0.5)
        yield servers


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def takes(port: int) -> bool:
    """Whether a server acknowledges a message: then the cluster has its leaders."""
    acknowledged = False

    def published(*_: object) -> None:
        nonlocal acknowledged
        acknowledged = True

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_publish = published
    try:
        client.connect("127.0.0.1", port)
        client.loop_start()
        client.publish("probe", "1", qos=1, retain=True)
        deadline = time.monotonic() + 5
        while not acknowledged and time.monotonic() < deadline:
            time.sleep(0.05)
        client.loop_stop()
    except OSError:
        time.sleep(0.2)
    return acknowledged


def retained(port: int) -> dict[str, str]:
    """What a new subscriber gets."""
    found: dict[str, str] = {}
    news = time.monotonic()

    def arrived(_client: Client, _data: object, message: MQTTMessage) -> None:
        nonlocal news
        if message.retain:
            found[message.topic] = message.payload.decode()
            news = time.monotonic()

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_message = arrived
    with suppress(OSError):
        client.connect("127.0.0.1", port)
        client.subscribe("enphase/#")
        client.loop_start()
        while time.monotonic() < news + QUIET + (2 if not found else 0):
            time.sleep(0.05)
        client.loop_stop()
        client.disconnect()
    return found


class Sent:
    """The newest payloads of each topic, and when they were handed to the broker."""

    def __init__(self) -> None:
        self.topics: defaultdict[str, deque[tuple[float, str]]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.count = 0
        self.news = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.count += 1
        self.news.set()
        self.news = asyncio.Event()
        self.topics[message.topic].append((time.monotonic(), message.payload))

    def wrong(self, seen: dict[str, str], asked: float) -> list[str]:
        """Topics of which a subscriber who asked then got something else than what was newest, or newer."""
        return [topic for topic, history in self.topics.items() if not _right(history, seen.get(topic), asked)]


def _right(history: deque[tuple[float, str]], payload: str | None, asked: float) -> bool:
    before = [when for when, _ in history if when <= asked - ON_ITS_WAY]
    newest = before[-1] if before else 0.0
    return (payload or "") in {text for when, text in history if when >= newest}


async def measured(count: int) -> tuple[object, ...]:
    with lab.gateways(20, count) as served, TemporaryDirectory() as name, cluster(Path(name)) as servers:
        fleet = [
            {"host": host, "token": token, "serial": serial} for serial, (host, token) in served.gateways.items()
        ]
        settings = Settings(
            gateways=fleet,
            mqtt={"url": ",".join(f"mqtt://127.0.0.1:{server.port}" for server in servers), "payload": "json"},
            homeassistant={"discovery": "off"},
            state_dir=Path(name) / "state",
        )
        sent, started = Sent(), time.monotonic()
        bridge = asyncio.create_task(Bridge(settings, on_sent=sent).run())
        try:
            alive = {f"enphase/{serial}/site/solar" for serial in served.gateways}
            while not alive <= sent.topics.keys():
                await sent.news.wait()
            up = time.monotonic() - started
            await asyncio.sleep(SETTLE)
            before, since = sent.count, time.monotonic()
            await asyncio.sleep(SETTLE)
            rate = (sent.count - before) / (time.monotonic() - since)
            servers[0].process.kill()
            killed = time.monotonic()
            leads = asyncio.create_task(_leads([server.port for server in servers[1:]]))
            wrong = len(sent.topics)
            while wrong and time.monotonic() - killed < LONGEST:
                asked = time.monotonic()
                seen = await asyncio.to_thread(retained, servers[2].port)
                new = all(sent.topics[topic][-1][0] > killed for topic in alive)
                wrong = len(sent.wrong(seen, asked)) or (not new)
                print(f"  {asked - killed:5.1f} s: {len(seen)} topics, {int(wrong)} wrong", file=sys.stderr)
            return count, len(sent.topics), up, rate, await leads - killed, asked - killed, int(wrong)
        finally:
            bridge.cancel()
            await asyncio.wait({bridge})


async def _leads(ports: list[int]) -> float:
    """When all servers that are left take clients and messages again."""
    for port in ports:
        while not await asyncio.to_thread(takes, port):
            pass
    return time.monotonic()


def main() -> None:
    rows = []
    for count in [int(text) for text in sys.argv[1:]] or COUNTS:
        print(f"{count} gateways ...", file=sys.stderr)
        rows.append(asyncio.run(measured(count)))
    header = (
        "gateways",
        "topics",
        "all seen, s",
        "messages/s",
        "servers take messages, s",
        "all right, s",
        "wrong",
    )
    lab.table("A cluster of three that loses one", header, rows)


if __name__ == "__main__":
    main()
