"""Measures how a cluster of three NATS servers (JetStream) recovers when it loses a server.

The benchmark kills the server that leads NATS's stream of retained messages, to which the bridge is connected; with
`--elsewhere` the bridge is connected to another one. New subscribers then ask the two remaining servers, in turn
and each in a process of its own, for all retained messages. A topic is wrong if its value is older than the one
that the bridge had sent one second before the subscriber asked; it is missing if it has no value. All is right when
two subscribers in a row find nothing wrong or missing and each gateway has new values; the time in the table is
when the first of the two asked, so it is known to a few seconds only.

The messages are those that the bridge sends for one simulated gateway with 20 inverters in a minute, as documents
only; each gateway of the fleet sends them over and over from a moment of its own, through the bridge's outbox,
sender and connection. So the processor is left to the servers: NATS stores the retained messages of a connection
one by one and waits several times for each, longer where the processor is busy. `--connections` divides the fleet
as shards do; without `--receipts` the bridge does not ask how far the broker has read.

With `--flood` it only sends messages as fast as a healthy cluster accepts them, in several manners.

    python benchmarks/cluster.py --flood
    python benchmarks/cluster.py [--receipts] [--qos 1] [--elsewhere] [--connections N] [--kills N] [GATEWAYS ...]
"""

import argparse
import asyncio
import heapq
import itertools
import json
import math
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import lab
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from bridge.model import Message, Priority
from bridge.mqtt import Broker
from bridge.outbox import Outbox
from bridge.service.bridge import CLUSTER_KEEPALIVE_S, CLUSTER_REPEAT_S, Bridge
from bridge.service.retained import Sender
from bridge.settings import MqttSettings, Settings

GATEWAY_COUNTS = (10, 300)
ALIVE = "/site/solar"
"""Topics that are sent with each poll of live data."""
STREAM = "$MQTT_rmsgs"
"""NATS's stream of retained messages."""
START_S, RECORD_S = 20.0, 60.0
"""The messages of one gateway are recorded for so long; those after the start are repeated."""
HEARTBEAT_S = 300.0
FLOOD_MESSAGES = 3000
CLEARED = crc32(b"")
SUBSCRIBER = "subscriber"
"""The first argument of the subscriber's process."""
SERVER_COUNT = 3
MAX_RECOVERY_S = 90.0
"""A kill ends after this time."""
MAX_START_S = 120.0
"""The benchmark gives up if NATS does not have all topics after this time."""
SETTLE_S = 15.0
"""The fleet runs this long before and during the measurement of its rate, so that the reminder is over."""
QUIET_S = 1.0
"""A subscriber has all retained messages when none has come for this long."""
DELIVERY_S = 1.0
"""A message may take this long from the bridge to a subscriber."""
KEPT_PAYLOADS = 20
"""This many payloads of each topic are kept for comparison."""


class Options(argparse.Namespace):
    """The options of the command line."""

    gateways: Sequence[int]
    receipts: bool
    elsewhere: bool
    flood: bool
    qos: int
    connections: int
    kills: int


@dataclass
class ClusterServer:
    """A server of the cluster, with the port of its monitoring."""

    name: str
    port: int
    monitor: int
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
            port, monitor = _free_port(), _free_port()
            others = ", ".join(f"nats://127.0.0.1:{other}" for other in routes)
            lines = (
                f"server_name: n{number}",
                f"listen: 127.0.0.1:{_free_port()}",
                f"http: 127.0.0.1:{monitor}",
                f'jetstream: {{ store_dir: "{folder}/{number}" }}',
                f"cluster: {{ name: fleet, listen: 127.0.0.1:{route}, routes: [{others}] }}",
                f"mqtt: {{ listen: 127.0.0.1:{port} }}",
            )
            config = folder / f"{number}.conf"
            config.write_text("\n".join(lines))
            process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            servers.append(ClusterServer(f"n{number}", port, monitor, process))
        deadline = time.monotonic() + 60
        for server in servers:  # the first client of a server takes seconds longer
            while not accepts_messages(server.port):
                if time.monotonic() > deadline:
                    sys.exit("the cluster has not started within 60 seconds")
                time.sleep(0.5)
        yield servers


def leader(server: ClusterServer) -> str:
    """Return the name of the server that leads the stream of retained messages, as this server knows it."""
    url = f"http://127.0.0.1:{server.monitor}/jsz?accounts=1&streams=1"
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        accounts = json.load(answer).get("account_details", ())
        streams = [stream for account in accounts for stream in account.get("stream_detail", ())]
        return next((one["cluster"].get("leader", "") for one in streams if one["name"] == STREAM), "")
    return ""


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

    def __call__(self, message: Message) -> None:
        self.count += 1
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

    def silent(self, since: float) -> int:
        """Return how many gateways have sent no solar power since then."""
        return sum(history[-1][0] < since for topic, history in self.topics.items() if topic.endswith(ALIVE))

    def not_resent(self, since: float) -> int:
        """Return how many topics have not been sent since then, without those that are cleared."""
        return sum(history[-1][0] < since and history[-1][1] != CLEARED for history in self.topics.values())


def _right(history: deque[tuple[float, int]], payload: int, asked: float) -> bool:
    before = [when for when, _ in history if when <= asked - DELIVERY_S]
    newest = before[-1] if before else 0.0
    return payload in {text for when, text in history if when >= newest}


async def recorded() -> Sequence[tuple[float, Message]]:
    """Return what the bridge sends for one gateway, with the seconds since its first message."""
    found: list[tuple[float, Message]] = []
    with lab.gateways(20) as served, lab.broker() as port, TemporaryDirectory() as name:
        serial, host, token = served.only
        settings = Settings(
            gateways=[{"host": host, "token": token, "serial": serial}],
            mqtt={"url": f"mqtt://127.0.0.1:{port}", "payload": "json"},
            homeassistant={"discovery": "off"},
            state_dir=Path(name) / "state",
        )

        def sent(message: Message) -> None:
            if serial in message.topic and message.payload:
                found.append((time.monotonic(), replace(message, topic=message.topic.replace(serial, "{serial}"))))

        bridge = asyncio.create_task(Bridge(settings, on_sent=sent).run())
        await asyncio.sleep(START_S + RECORD_S)
        messages = tuple((when - found[0][0], message) for when, message in found)
        bridge.cancel()
        await asyncio.wait({bridge})
    return messages


class Fleet:
    """Gateways that publish recorded messages again and again, over one or several connections to a cluster."""

    def __init__(self, record: Sequence[tuple[float, Message]], count: int, url: str, options: Options) -> None:
        self._count, self._first = count, {message.topic: message for _, message in record}
        self._record = [(when, message) for when, message in record if when >= START_S]
        self.sent = Sent()
        self.outboxes = [Outbox() for _ in range(options.connections)]
        self._senders = [self._sender(number, url, options) for number in range(options.connections)]

    def _sender(self, number: int, url: str, options: Options) -> Sender:
        def doubt(topics: Sequence[str]) -> None:
            self._senders[number].repeat(*topics)

        state = f"enphase/bridge/shard-{number}/state"
        broker = Broker(
            MqttSettings(url=url),
            client_id=f"benchmark-{number}",
            will=Message(state, "offline", qos=1, priority=Priority.AVAILABILITY),
            on_message=lambda *_: None,
            on_doubt=doubt if options.receipts else None,
            keepalive=int(CLUSTER_KEEPALIVE_S),
        )
        outbox = self.outboxes[number]
        return Sender(outbox, broker, heartbeat=HEARTBEAT_S, reminder=CLUSTER_REPEAT_S, on_sent=self.sent)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for sender in self._senders:
                tasks.create_task(sender.run())
            tasks.create_task(self._publish())

    async def _publish(self) -> None:
        for gateway in range(self._count):
            for message in self._first.values():
                self._put(gateway, message, 0)
            await asyncio.sleep(0)
        began = time.monotonic()
        places = [(began + RECORD_S * gateway / self._count, gateway, 0) for gateway in range(self._count)]
        heapq.heapify(places)
        for number in itertools.count(1):
            due, gateway, place = places[0]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._put(gateway, self._record[place][1], number)
            following = (place + 1) % len(self._record)
            pause = self._record[following][0] - self._record[place][0] + (0 if following else RECORD_S)
            heapq.heapreplace(places, (due + pause, gateway, following))

    def _put(self, gateway: int, message: Message, number: int) -> None:
        """Give the message to a sender, with a number that makes each document another one."""
        payload = message.payload
        if payload.endswith("}"):
            payload = f'{payload[:-1]},"number":{number}}}'
        topic = message.topic.format(serial=122_300_000_000 + gateway)
        self._senders[gateway % len(self._senders)].put([replace(message, topic=topic, payload=payload)])


async def measured(
    record: Sequence[tuple[float, Message]], count: int, options: Options
) -> tuple[int, float, float, float, float]:
    """Return topics, messages a second, the servers' CPU, and when there is a leader again and all is right."""
    with TemporaryDirectory() as name, cluster(Path(name)) as servers:
        first = leader(servers[0])
        servers.sort(key=lambda server: server.name != first)
        order = [*servers[1:], servers[0]] if options.elsewhere else servers
        fleet = Fleet(record, count, ",".join(f"mqtt://127.0.0.1:{server.port}" for server in order), options)
        publishing = asyncio.create_task(fleet.run())
        try:
            deadline = time.monotonic() + MAX_START_S
            await asyncio.sleep(SETTLE_S)
            while sum(map(len, fleet.outboxes)) > count or fleet.sent.missing(await take_snapshot(servers[1])):
                if time.monotonic() > deadline:
                    sys.exit("NATS accepts fewer messages than the fleet has on this machine now")
            used, before, since = _cpu(servers), fleet.sent.count, time.monotonic()
            await asyncio.sleep(SETTLE_S)
            seconds = time.monotonic() - since
            rate, used = (fleet.sent.count - before) / seconds, 100 * (_cpu(servers) - used) / seconds
            servers[0].process.kill()
            killed = time.monotonic()
            elected = asyncio.create_task(asyncio.to_thread(_elected, servers[1:], first))
            right = await _all_right(servers[1:], fleet.sent, killed)
            topics = sum(outbox.topics for outbox in fleet.outboxes)
            return topics, rate, used, await elected - killed, right - killed
        finally:
            publishing.cancel()
            await asyncio.wait({publishing})


def _cpu(servers: Sequence[ClusterServer]) -> float:
    return sum(lab.cpu_seconds(server.process.pid) for server in servers)


def _elected(servers: Sequence[ClusterServer], before: str) -> float:
    """Wait until these servers know another leader. Returns when that was."""
    while not all(leader(server) not in {"", before} for server in servers):
        time.sleep(0.2)
    return time.monotonic()


async def _all_right(servers: Sequence[ClusterServer], sent: Sent, killed: float) -> float:
    """Return when the first of two subscribers asked that found all right; infinite if none has in time."""
    right = 0.0
    for server in itertools.cycle(servers):
        found = await take_snapshot(server)
        wrong, missing, silent = sent.outdated(found), sent.missing(found), sent.silent(killed)
        told = f"{found.asked - killed:5.1f} s: {len(found.seen)} topics in {found.took:.1f} s, {wrong} wrong"
        again = sent.not_resent(killed)
        print(f"  {told}, {missing} missing, {silent} silent, {again} not sent again", file=sys.stderr)
        if right and not wrong + missing + silent:
            return right
        right = 0.0 if wrong + missing + silent else found.asked
        if found.asked - killed > MAX_RECOVERY_S:
            return math.inf
    raise AssertionError


@dataclass(frozen=True, slots=True)
class Flood:
    """How messages are sent as fast as a server accepts them."""

    name: str
    connections: int = 1
    qos: int = 0
    size: int = 400

    def rate(self, port: int) -> float:
        """Send retained messages; each connection ends with one of QoS 1. Returns messages a second."""
        clients = [Client(CallbackAPIVersion.VERSION2) for _ in range(self.connections)]
        for client in clients:
            client.max_inflight_messages_set(FLOOD_MESSAGES)
            client.connect("127.0.0.1", port)
            client.loop_start()
        while not all(client.is_connected() for client in clients):
            time.sleep(0.01)
        began = time.monotonic()
        for number in range(FLOOD_MESSAGES):
            client = clients[number % self.connections]
            client.publish(f"flood/{number}", f"{began}" + "x" * self.size, qos=self.qos, retain=True)
        for number, client in enumerate(clients):
            client.publish(f"flood/end/{number}", "x", qos=1, retain=True).wait_for_publish(MAX_START_S)
        took = time.monotonic() - began
        for client in clients:
            client.disconnect()
            client.loop_stop()
        return FLOOD_MESSAGES / took


FLOODS = (
    Flood("QoS 0"),
    Flood("QoS 1", qos=1),
    Flood("QoS 0, 4,000 bytes", size=4000),
    Flood("QoS 0, 4 connections", connections=4),
    Flood("QoS 0, 8 connections", connections=8),
)


def flood(turns: int) -> None:
    """Print how many messages of 400 bytes a healthy cluster accepts, in turns."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    used: defaultdict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as name, cluster(Path(name)) as servers:
        for turn, each in itertools.product(range(turns + 1), FLOODS):
            before = _cpu(servers)
            rate = each.rate(servers[0].port)
            if turn:  # the first one makes the topics
                rates[each.name].append(rate)
                used[each.name].append(1000 * (_cpu(servers) - before) / FLOOD_MESSAGES)
    rows = [(each.name, lab.spread(rates[each.name]), lab.spread(used[each.name])) for each in FLOODS]
    lab.table("As fast as NATS accepts", ("messages", "messages/s", "CPU of the servers, ms a message"), rows)


def main() -> None:
    if sys.argv[1:2] == [SUBSCRIBER]:
        _print_snapshot(int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gateways", nargs="*", type=int, default=GATEWAY_COUNTS)
    parser.add_argument("--receipts", action="store_true")
    parser.add_argument("--elsewhere", action="store_true")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--qos", type=int, choices=(0, 1), default=0, help="that of all messages, at least")
    parser.add_argument("--flood", action="store_true")
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args(namespace=Options())
    if options.flood:
        flood(options.kills)
        return
    record = [
        (when, replace(message, qos=max(message.qos, options.qos))) for when, message in asyncio.run(recorded())
    ]
    rows = []
    for count in options.gateways:
        runs = []
        for number in range(options.kills):
            print(f"{count} gateways, kill {number + 1} ...", file=sys.stderr)
            runs.append(asyncio.run(measured(record, count, options)))
        columns = list(zip(*runs, strict=True))
        rows.append((count, options.connections, runs[0][0], *(lab.spread(column) for column in columns[1:])))
    header = (
        "gateways",
        "connections",
        "topics",
        "messages/s",
        "CPU of the servers, % of a core",
        "leader again, s",
        "all right, s",
    )
    where = "elsewhere" if options.elsewhere else "there"
    receipts = "on" if options.receipts else "off"
    lab.table(f"Leader killed, bridge {where}, QoS {options.qos}, receipts {receipts}", header, rows)


if __name__ == "__main__":
    main()
