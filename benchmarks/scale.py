"""Measures a bridge with many gateways of 20 inverters each, and with one of 1,000, at the default periods.

It shows CPU time and memory of the bridge alone, and the delay of values: the longest time between two live data
documents of one gateway, beyond their period of 5 seconds.

    python benchmarks/scale.py [SECONDS] [GATEWAYS | GATEWAYSxINVERTERS ...]
"""

import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import lab
from paho.mqtt.client import MQTTMessage

DURATION_S = 60.0
SITES = ("1", "10", "100", "300", "1x1000")
INVERTERS_PER_SITE = 20
LIVE_PERIOD_S = 5.0
FIRST_ROUND_S = 20.0
"""The first round may take this long, plus one second for every 200 inverters."""
LISTEN_S = 10.0
"""A new subscriber receives all retained messages within this time."""


def measured(count: int, inverters: int, seconds: float) -> tuple[object, ...]:
    arrivals: defaultdict[str, list[float]] = defaultdict(list)

    def arrived(message: MQTTMessage) -> None:
        arrivals[message.topic].append(time.monotonic())

    off = {"BRIDGE_HOMEASSISTANT__DISCOVERY": "off"}
    with (
        lab.gateways(inverters, count) as served,
        lab.broker() as port,
        TemporaryDirectory() as folder,
        lab.watching(port, "enphase/+/live/system", arrived) as watcher,
        lab.bridge(lab.environment(served, port, Path(folder), **off)) as process,
    ):
        time.sleep(FIRST_ROUND_S + count * inverters / 200)
        arrivals.clear()
        used = lab.cpu_seconds(process.pid)
        time.sleep(seconds)
        used, memory = lab.cpu_seconds(process.pid) - used, lab.resident(process.pid)
        watcher.subscribe("enphase/#")
        live = {topic: list(times) for topic, times in arrivals.items()}
        time.sleep(LISTEN_S)
    gaps = [later - earlier for times in live.values() for earlier, later in pairwise(times)]
    late = max(gaps, default=float("nan")) - LIVE_PERIOD_S
    share = 100 * used / seconds
    return count, inverters, len(live), len(arrivals), share, share / count, memory, memory / count, late


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else DURATION_S
    rows = []
    for site in sys.argv[2:] or SITES:
        count, _, inverters = site.partition("x")
        print(f"{count} gateways of {inverters or INVERTERS_PER_SITE} inverters ...", file=sys.stderr)
        rows.append(measured(int(count), int(inverters or INVERTERS_PER_SITE), seconds))
    cost = ("CPU, % of a core", "each", "memory, MB", "each", "latest, s")
    header = ("gateways", "inverters each", "seen", "topics", *cost)
    lab.table("Scale", header, rows)


if __name__ == "__main__":
    main()
