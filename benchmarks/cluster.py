"""Measures how a cluster of three NATS servers (JetStream) recovers when it loses the bridge's server.

The benchmark kills the server that the bridge is connected to. New subscribers then ask the two remaining servers,
in turn and each in a process of its own, for all retained messages. A topic is wrong if its value is older than the
one that the bridge had sent one second before the subscriber asked; it is missing if it has no value. All is right
when two subscribers in a row find nothing wrong or missing and each gateway has new values; the time in the table
is when the first of the two asked. The table also shows how long a subscriber takes for all topics while the
cluster is healthy, when the bridge is connected again and when it has sent everything again. Payloads are documents
only, as in a fleet. Each server has had a client before, because the first client of a NATS server takes seconds
longer.

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

from bridge.model import Message
from bridge.service.bridge import Bridge
from bridge.settings import Settings

GATEWAY_COUNTS = (10, 300)
CLEARED = crc32(b"")
SUBSCRIBER = "subscriber"
"""The first argument of the subscriber's process."""
SERVER_COUNT = 3
MAX_RECOVERY_S = 180.0
"""The benchmark gives up after this time."""
SETTLE_S = 15.0
"""The bridge runs this long before and during the measurement of its rate."""
QUIET_S = 1.0
"""A subscriber has all retained messages when none has come for this long."""
DELIVERY_S = 1.0
"""A message may take this long from the bridge to a subscriber."""
KEPT_PAYLOADS = 20
"""This many payloads of each topic are kept for comparison."""


@dataclass
class ClusterServer:
    """A server of the cluster."""

    port: int
    process: "subprocess.Popen[bytes]"


@contextmanager
def cluster(folder: Path) -> Iterator[list[ClusterServer]]:
    """Run three servers with an MQTT port each. They have elected a leader when this yields."""
    program = shutil.which("nats-server", path="/usr/bin:/usr/sbin:/usr/local/bin")
    if program is None:
        sys.exit("nats-server is missing: apt-get install nats-server")
    routes = [_free_port() for _ in range(SERVER_COUNT)]
    servers: list[ClusterServer] = []
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
            servers.append(ClusterServer(port, process))
        deadline = time.monotonic() + 60
        while not accepts_messages(servers[0].port):
            if time.monotonic() > deadline:
                sys.exit("the cluster has not started within 60 seconds")
            time.sleep(0.5)
        yield servers


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accepts_messages(port: int) -> bool:
    """Return whether a server acknowledges a message; it does when the cluster has its leaders."""
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
    """Return the checksums of the retained messages that a new subscriber receives, by topic."""
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
        while time.monotonic() < news + QUIET_S + (2 if not found else 0) and not ended:
            time.sleep(0.05)
        client.loop_stop()
        client.disconnect()
    return found


@dataclass
class Snapshot:
    """The checksums that a subscriber received; `asked` is when it asked, `took` the seconds to the last topic."""

    asked: float
    took: float
    seen: dict[str, int]


async def take_snapshot(server: ClusterServer) -> Snapshot:
    """Run a subscriber in a process of its own, so that it does not slow the bridge down."""
    command = (sys.executable, __file__, SUBSCRIBER, str(server.port))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    told, _ = await process.communicate()
    return Snapshot(**json.loads(told))


def _print_snapshot(port: int) -> None:
    asked = time.monotonic()
    seen = retained(port)
    json.dump({"asked": asked, "took": time.monotonic() - asked - QUIET_S, "seen": seen}, sys.stdout)


class Sent:
    """The checksums of the newest payloads of each topic, and when the bridge sent them."""

    def __init__(self) -> None:
        self.topics: defaultdict[str, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=KEPT_PAYLOADS))
        self.count = 0
        self.news = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.count += 1
        self.news.set()
        self.news = asyncio.Event()
        self.topics[message.topic].append((time.monotonic(), crc32(message.payload.encode())))

    def outdated(self, found: Snapshot) -> int:
        """Return how many topics had an outdated value at the subscriber."""
        return sum(
            topic in found.seen and not _right(history, found.seen[topic], found.asked)
            for topic, history in self.topics.items()
        )

    def missing(self, found: Snapshot) -> int:
        return sum(
            topic not in found.seen and not _right(history, CLEARED, found.asked)
            for topic, history in self.topics.items()
        )

    def not_resent(self, since: float) -> int:
        """Return how many topics have not been sent since then, without those that are cleared."""
        return sum(history[-1][0] < since and history[-1][1] != CLEARED for history in self.topics.values())


def _right(history: deque[tuple[float, int]], payload: int, asked: float) -> bool:
    before = [when for when, _ in history if when <= asked - DELIVERY_S]
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
            await asyncio.sleep(SETTLE_S)
            before, since = sent.count, time.monotonic()
            await asyncio.sleep(SETTLE_S)
            rate = (sent.count - before) / (time.monotonic() - since)
            baseline = max([(await take_snapshot(server)).took for server in servers])
            servers[0].process.kill()
            killed = time.monotonic()
            leads = asyncio.create_task(_leads([server.port for server in servers[1:]]))
            connected = asyncio.create_task(_connected(service, sent))
            again = asyncio.create_task(_again(sent, killed))
            first, right = None, 0.0
            for place in itertools.cycle((1, 2)):
                found = await take_snapshot(servers[place])
                wrong, missing = sent.outdated(found), sent.missing(found)
                silent, not_resent = (
                    sum(sent.topics[topic][-1][0] < killed for topic in alive),
                    sent.not_resent(killed),
                )
                print(
                    f"  {found.asked - killed:5.1f} s: {len(found.seen)} topics in {found.took:.1f} s, "
                    f"{wrong} wrong, {missing} missing, {silent} gateways silent, {not_resent} not sent again",
                    file=sys.stderr,
                )
                if found.seen and first is None:
                    first = wrong
                if right and not wrong + missing + silent:
                    break
                right = 0.0 if wrong + missing + silent else found.asked
                if found.asked - killed > MAX_RECOVERY_S:
                    right = math.inf
                    break
            ends = [when - killed for when in (await leads, await connected, right, await again)]
            return count, len(sent.topics), rate, baseline, first, *ends
        finally:
            bridge.cancel()
            await asyncio.wait({bridge})


async def _leads(ports: list[int]) -> float:
    """Return when all these servers accept clients and messages again."""

    async def leads(port: int) -> None:
        while not await asyncio.to_thread(accepts_messages, port):
            pass

    await asyncio.gather(*map(leads, ports))
    return time.monotonic()


async def _connected(service: Bridge, sent: Sent) -> float:
    """Return when the bridge sends its first message over a new connection."""
    before = service.status().broker.connections
    while service.status().broker.connections == before:
        await sent.news.wait()
    return time.monotonic()


async def _again(sent: Sent, killed: float) -> float:
    """Return when the bridge has sent everything again, or when the benchmark gives up."""
    while sent.not_resent(killed) and time.monotonic() - killed < MAX_RECOVERY_S:
        await sent.news.wait()
        await asyncio.sleep(0.2)
    return time.monotonic()


def main() -> None:
    if sys.argv[1:2] == [SUBSCRIBER]:
        _print_snapshot(int(sys.argv[2]))
        return
    rows = []
    for count in [int(text) for text in sys.argv[1:]] or GATEWAY_COUNTS:
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
