"""A cluster of three NATS servers (JetStream) that loses the one that the bridge is connected to.

New subscribers at the servers that are left, in turn and each in a process of its own, ask again and again what
is retained. A topic is wrong where that is neither what the bridge had sent last, a second before the subscriber
asked, nor newer; it is missing where there is nothing. All is right when two subscribers in a row find nothing
wrong and nothing missing, and each gateway has new values: the time is when the first of them asked. How long a
subscriber takes for all topics while the cluster is well is told, too, and when the bridge is connected again and
has sent everything again. Documents only, as a fleet has them. Each server has had a client before: the first one
that a server of NATS ever has takes seconds more.

    python benchmarks/cluster.py [GATEWAYS ...]
"""

import asyncio
import itertools
import json
import math
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
from zlib import crc32

import lab
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from bridge.config import Settings
from bridge.model import Message
from bridge.service import Bridge

COUNTS = (10, 300)
CLEARED = crc32(b"")
LOOK = "look"
"""The first argument of a subscriber's own process."""
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


def retained(port: int) -> dict[str, int]:
    """What a new subscriber gets, as checksums."""
    found: dict[str, int] = {}
    news = time.monotonic()
    ended = False

    def arrived(_client: Client, _data: object, message: MQTTMessage) -> None:
        nonlocal news
        if message.retain:
            found[message.topic] = crc32(message.payload)
            news = time.monotonic()

    def closed(*_: object) -> None:
        nonlocal ended
        ended = True

    client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    client.on_message, client.on_disconnect = arrived, closed
    with suppress(OSError):
        client.connect("127.0.0.1", port)
        client.subscribe("enphase/#")
        client.loop_start()
        while time.monotonic() < news + QUIET + (2 if not found else 0) and not ended:
            time.sleep(0.05)
        client.loop_stop()
        client.disconnect()
    return found


@dataclass
class Look:
    """What a subscriber saw who asked at that time; `took` seconds until it had the last topic."""

    asked: float
    took: float
    seen: dict[str, int]


async def look(server: Server) -> Look:
    """In a process of its own: it must not take the bridge's time."""
    command = (sys.executable, __file__, LOOK, str(server.port))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    told, _ = await process.communicate()
    return Look(**json.loads(told))


def _look(port: int) -> None:
    asked = time.monotonic()
    seen = retained(port)
    json.dump({"asked": asked, "took": time.monotonic() - asked - QUIET, "seen": seen}, sys.stdout)


class Sent:
    """The newest payloads of each topic, as checksums, and when they were handed to the broker."""

    def __init__(self) -> None:
        self.topics: defaultdict[str, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.count = 0
        self.news = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.count += 1
        self.news.set()
        self.news = asyncio.Event()
        self.topics[message.topic].append((time.monotonic(), crc32(message.payload.encode())))

    def wrong(self, found: Look) -> int:
        """Topics of which the subscriber got something else than what was newest, or newer."""
        return sum(
            topic in found.seen and not _right(history, found.seen[topic], found.asked)
            for topic, history in self.topics.items()
        )

    def missing(self, found: Look) -> int:
        return sum(
            topic not in found.seen and not _right(history, CLEARED, found.asked)
            for topic, history in self.topics.items()
        )

    def untold(self, since: float) -> int:
        """Topics that were not sent after that, those left out that are cleared."""
        return sum(history[-1][0] < since and history[-1][1] != CLEARED for history in self.topics.values())


def _right(history: deque[tuple[float, int]], payload: int, asked: float) -> bool:
    before = [when for when, _ in history if when <= asked - ON_ITS_WAY]
    newest = before[-1] if before else 0.0
    return payload in {text for when, text in history if when >= newest}


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
        sent = Sent()
        service = Bridge(settings, on_sent=sent)
        bridge = asyncio.create_task(service.run())
        try:
            alive = {f"enphase/{serial}/site/solar" for serial in served.gateways}
            while not alive <= sent.topics.keys():
                await sent.news.wait()
            await asyncio.sleep(SETTLE)
            before, since = sent.count, time.monotonic()
            await asyncio.sleep(SETTLE)
            rate = (sent.count - before) / (time.monotonic() - since)
            floor = max([(await look(server)).took for server in servers])
            servers[0].process.kill()
            killed = time.monotonic()
            leads = asyncio.create_task(_leads([server.port for server in servers[1:]]))
            connected = asyncio.create_task(_connected(service, sent))
            again = asyncio.create_task(_again(sent, killed))
            first, right = None, 0.0
            for place in itertools.cycle((1, 2)):
                found = await look(servers[place])
                wrong, missing = sent.wrong(found), sent.missing(found)
                silent, untold = sum(sent.topics[topic][-1][0] < killed for topic in alive), sent.untold(killed)
                print(
                    f"  {found.asked - killed:5.1f} s: {len(found.seen)} topics in {found.took:.1f} s, "
                    f"{wrong} wrong, {missing} missing, {silent} gateways silent, {untold} not sent again",
                    file=sys.stderr,
                )
                if found.seen and first is None:
                    first = wrong
                if right and not wrong + missing + silent:
                    break
                right = 0.0 if wrong + missing + silent else found.asked
                if found.asked - killed > LONGEST:
                    right = math.inf
                    break
            ends = [when - killed for when in (await leads, await connected, right, await again)]
            return count, len(sent.topics), rate, floor, first, *ends
        finally:
            bridge.cancel()
            await asyncio.wait({bridge})


async def _leads(ports: list[int]) -> float:
    """When all servers that are left take clients and messages again."""

    async def leads(port: int) -> None:
        while not await asyncio.to_thread(takes, port):
            pass

    await asyncio.gather(*map(leads, ports))
    return time.monotonic()


async def _connected(service: Bridge, sent: Sent) -> float:
    """When the bridge sends something over another connection."""
    before = service.status().broker.connections
    while service.status().broker.connections == before:
        await sent.news.wait()
    return time.monotonic()


async def _again(sent: Sent, killed: float) -> float:
    """When the bridge had sent everything again."""
    while sent.untold(killed) and time.monotonic() - killed < LONGEST:
        await sent.news.wait()
        await asyncio.sleep(0.2)
    return time.monotonic()


def main() -> None:
    if sys.argv[1:2] == [LOOK]:
        _look(int(sys.argv[2]))
        return
    rows = []
    for count in [int(text) for text in sys.argv[1:]] or COUNTS:
        print(f"{count} gateways ...", file=sys.stderr)
        rows.append(asyncio.run(measured(count)))
    header = (
        "gateways",
        "topics",
        "messages/s",
        "new subscriber, s",
        "wrong at first",
        "servers take messages, s",
        "bridge sends, s",
        "all right, s",
        "all sent again, s",
    )
    lab.table("A cluster of three that loses one", header, rows)


if __name__ == "__main__":
    main()
