"""Measures the time from the gateway's answer to its values at an MQTT subscriber, at one poll per second.

The floor is a bare loop that requests the same answer with the same HTTP library, and publishes as many values with
paho as the bridge does. Answers take 50 ms. Of each answer's values, the first, the median and the last to arrive
count. Both are measured in turns, because the load of the machine changes by the minute; ratios are those of each
turn: the least, the median and the greatest.

    python benchmarks/freshness.py [--seconds SECONDS] [--turns TURNS]
    python benchmarks/freshness.py --documents --seconds 3600      the age of documents, at first and at last
"""

import argparse
import json
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import lab
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

DURATION_S, TURNS = 60.0, 3
WARM_UP_S = 10.0
DELAY_S, PERIOD_S = 0.05, 1.0
LIVE = {"BRIDGE_POLL__PROFILE": "live"}
PICKS: Mapping[str, Callable[[Sequence[float]], float]] = {"first": min, "median": median, "last": max}
DOCUMENT_TOPIC = "enphase/+/live/pv"


def floor(address: str, token: str, port: int, values: int) -> None:
    """Run the bare loop until the process is killed."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    sock = client.socket()
    assert isinstance(sock, socket.socket)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the bridge does
    client.loop_start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"https://{address}", verify=context, headers=headers, trust_env=False) as http:
        due = time.monotonic()
        while True:
            meters = json.loads(http.get(lab.LIVEDATA_PATH).content)["meters"]
            flows = ((name, flow) for name, flow in meters.items() if isinstance(flow, dict))
            numbers = ((f"{name}/{key}", value) for name, flow in flows for key, value in flow.items())
            for topic, value in islice(numbers, values):
                client.publish(f"enphase/floor/live/{topic}", value / 1000, retain=True)
            due += PERIOD_S
            time.sleep(max(0.0, due - time.monotonic()))


@dataclass(frozen=True)
class Arrived:
    """When the messages of a run have arrived, and when the gateway sent its answers, by their solar power."""

    messages: Sequence[tuple[float, str, bytes]]
    answers: Mapping[int, float]

    def ages(self) -> list[list[float]]:
        """Return the ages of the messages of each answer, in ms, in their order."""
        found = []
        for when, following in pairwise(sorted(self.answers.values())):
            until = min(following, when + 0.9 * PERIOD_S)
            found.append([1000 * (at - when) for at, _, _ in self.messages if when <= at < until])
        return [ages for ages in found if ages]


def watched(name: str, values: int, topics: Sequence[str], seconds: float) -> Arrived:
    """Run the bridge or the floor, and return what a subscriber to these topics has received."""
    messages: list[tuple[float, str, bytes]] = []

    def arrived(message: MQTTMessage) -> None:
        messages.append((time.monotonic(), message.topic, bytes(message.payload)))

    with (
        lab.gateways(20, manner=lab.Manner(delay=DELAY_S)) as served,
        lab.broker() as port,
        TemporaryDirectory() as folder,
        lab.watching(port, topics[0], arrived) as watcher,
    ):
        for topic in topics[1:]:
            watcher.subscribe(topic)
        _, address, token = served.only
        bare = [sys.executable, __file__, "floor", address, token, str(port), str(values)]
        bridge = [sys.executable, "-m", "bridge", "run"]
        env = lab.environment(served, port, Path(folder), **LIVE)
        with lab.running(bare if name == "floor" else bridge, env):
            time.sleep(WARM_UP_S + seconds)
        stamps = {int(watts): when for watts, when in served.ask(lab.STAMPS_PATH).items()}
    begun = min(stamps.values(), default=0.0) + WARM_UP_S
    return Arrived(messages, {watts: when for watts, when in stamps.items() if when > begun})


def values_in_turns(seconds: float, turns: int) -> None:
    topics = ("enphase/+/live/+/+", "enphase/+/live/+/+/+")
    found: dict[str, list[list[list[float]]]] = {"bridge": [], "floor": []}
    values = 0
    for turn in range(turns):
        for name, runs in found.items():
            print(f"turn {turn + 1} of {turns}: {name} ...", file=sys.stderr)
            runs.append(watched(name, values, topics, seconds).ages())
            values = values or round(median(len(ages) for ages in runs[0]))
    rows = []
    for measure, pick in PICKS.items():
        picked = {name: [[pick(each) for each in run] for run in runs] for name, runs in found.items()}
        for name, turns_of in picked.items():
            every = [age for run in turns_of for age in run]
            beside = [median(run) / median(base) for run, base in zip(turns_of, picked["floor"], strict=True)]
            many = median(len(each) for run in found[name] for each in run)
            middle, late = lab.percentile(every, 0.5), lab.percentile(every, 0.99)
            rows.append((measure, name, len(every), round(many), middle, late, lab.spread(beside)))
    header = ("value", "", "answers", "values of each", "p50, ms", "p99, ms", "p50 / floor's")
    lab.table("Freshness", header, rows)


def documents(seconds: float) -> None:
    run = watched("bridge", 0, (DOCUMENT_TOPIC,), seconds)
    sent = ((at, round(json.loads(payload)["power"])) for at, _, payload in run.messages)
    ages = [1000 * (at - run.answers[watts]) for at, watts in sent if watts in run.answers]
    tenth = max(1, len(ages) // 10)
    parts = {"first tenth": ages[:tenth], "all": ages, "last tenth": ages[-tenth:]}
    rows = [
        (name, len(part), lab.percentile(part, 0.5), lab.percentile(part, 0.99)) for name, part in parts.items()
    ]
    title = f"Age of documents; the gateway has sent {len(run.answers)} answers"
    lab.table(title, ("", "documents", "p50, ms", "p99, ms"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=DURATION_S)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--documents", action="store_true")
    asked = parser.parse_args()
    if asked.documents:
        documents(asked.seconds)
    else:
        values_in_turns(asked.seconds, asked.turns)


if __name__ == "__main__":
    if sys.argv[1:2] == ["floor"]:
        floor(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
