"""Measures a bridge with many gateways of 20 inverters each, and with one of 1,000.

It shows CPU time and memory of the bridge alone, and the delay of values: the longest time without a live data
document of one gateway, beyond the period of the profile.

    python benchmarks/scale.py [GATEWAYS | GATEWAYSxINVERTERS ...]
    python benchmarks/scale.py --shards 4 --profile gentle --payload json 1000      as a fleet would do it
"""

import argparse
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import lab
from paho.mqtt.client import MQTTMessage

from bridge.service.poller import PROFILES

SITES = ("1", "10", "100", "300", "1x1000")
INVERTERS_PER_SITE = 20
FIRST_ROUND_S = 20.0
"""The first round may take this long, plus one second for every 200 inverters."""
LISTEN_S = 10.0
"""A new subscriber receives all retained messages within this time."""


class Options(argparse.Namespace):
    """The options of the command line."""

    sites: list[str]
    seconds: float
    shards: int
    profile: str
    payload: str


def measured(count: int, inverters: int, options: Options) -> tuple[object, ...]:
    arrivals: defaultdict[str, list[float]] = defaultdict(list)

    def arrived(message: MQTTMessage) -> None:
        arrivals[message.topic].append(time.monotonic())

    chosen = {
        "BRIDGE_HOMEASSISTANT__DISCOVERY": "off",
        "BRIDGE_POLL__PROFILE": options.profile,
        "BRIDGE_MQTT__PAYLOAD": options.payload,
    }
    with ExitStack() as stack:
        served = stack.enter_context(lab.gateways(inverters, count))
        port = stack.enter_context(lab.broker())
        watcher = stack.enter_context(lab.watching(port, "enphase/+/live/system", arrived))
        processes = []
        for number in range(options.shards):
            folder = Path(stack.enter_context(TemporaryDirectory()))
            own = chosen | ({"BRIDGE_SHARD": f"{number}/{options.shards}"} if options.shards > 1 else {})
            processes.append(stack.enter_context(lab.bridge(lab.environment(served, port, folder, **own))))
        pids = [process.pid for process in processes]
        time.sleep(FIRST_ROUND_S + count * inverters / 200)
        arrivals.clear()
        begun, before = time.monotonic(), sum(map(lab.cpu_seconds, pids))
        time.sleep(options.seconds)
        used, memory = sum(map(lab.cpu_seconds, pids)) - before, sum(map(lab.resident, pids))
        until = time.monotonic()
        live = {topic: [begun, *times, until] for topic, times in arrivals.items()}
        watcher.subscribe("enphase/#")
        time.sleep(LISTEN_S)
    gaps = [later - earlier for times in live.values() for earlier, later in pairwise(times)]
    late = max(gaps, default=float("nan")) - PROFILES[options.profile].site_period
    share = 100 * used / options.seconds
    return count, inverters, len(live), len(arrivals), share, share / count, memory, memory / count, late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="*", default=SITES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--profile", choices=PROFILES, default="normal")
    parser.add_argument("--payload", choices=("both", "json"), default="both", help="json: documents only")
    options = parser.parse_args(namespace=Options())
    rows = []
    for site in options.sites:
        count, _, inverters = site.partition("x")
        print(f"{count} gateways of {inverters or INVERTERS_PER_SITE} inverters ...", file=sys.stderr)
        rows.append(measured(int(count), int(inverters or INVERTERS_PER_SITE), options))
    cost = ("CPU, % of a core", "each", "memory, MB", "each", "latest, s")
    header = ("gateways", "inverters each", "seen", "topics", *cost)
    lab.table(f"Scale: {options.shards} bridges, profile {options.profile}", header, rows)


if __name__ == "__main__":
    main()
