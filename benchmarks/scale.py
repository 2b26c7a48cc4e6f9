"""Measures a bridge with many gateways of 20 inverters each, and with one of 1,000.

It shows CPU time and memory of the bridge alone, and the delay of values: the longest time without a live data
document of one gateway, beyond the period of the profile.

    python benchmarks/scale.py [GATEWAYS | GATEWAYSxINVERTERS ...]
    python benchmarks/scale.py --shards 4 --profile gentle --payload json 1000      as a fleet would do it
    python benchmarks/scale.py --blocks [GATEWAYS | GATEWAYSxINVERTERS ...]

With `--blocks` it shows by how much the timers of the bridge's event loop come late instead: so long, whatever the
loop does blocks all other values.
"""

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import lab
from paho.mqtt.client import MQTTMessage

from bridge.service.bridge import Bridge
from bridge.service.poller import PROFILES
from bridge.settings import Settings

SITES = ("1", "10", "100", "300", "1x1000")
INVERTERS_PER_SITE = 20
FIRST_ROUND_S = 20.0
"""The first round may take this long, plus one second for every 200 inverters."""
LISTEN_S = 10.0
"""A new subscriber receives all retained messages within this time."""


TICK_S = 0.002
"""Seconds between two timers."""


class Options(argparse.Namespace):
    """The options of the command line."""

    sites: list[str]
    seconds: float
    shards: int
    profile: str
    payload: str
    blocks: bool


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


async def blocked(count: int, inverters: int, options: Options) -> tuple[object, ...]:
    with lab.gateways(inverters, count) as served, lab.broker() as port, TemporaryDirectory() as folder:
        settings = Settings(
            gateways=served.listed,
            mqtt={"url": f"mqtt://127.0.0.1:{port}", "payload": options.payload},
            poll={"profile": options.profile},
            state_dir=Path(folder) / "state",
        )
        alone = await _delays(10)
        running = asyncio.create_task(Bridge(settings).run())
        first = await _delays(FIRST_ROUND_S + count * inverters / 200)
        usual = await _delays(options.seconds)
        running.cancel()
        await asyncio.wait({running})
    parts = [lab.percentile(delays, share) * 1000 for delays in (alone, first, usual) for share in (0.99, 1.0)]
    return count, inverters, *parts


async def _delays(seconds: float) -> list[float]:
    """Return how many seconds each timer comes late."""
    loop, found = asyncio.get_running_loop(), list[float]()
    end = loop.time() + seconds
    while (now := loop.time()) < end:
        await asyncio.sleep(TICK_S)
        found.append(loop.time() - now - TICK_S)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="*", default=SITES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--profile", choices=PROFILES, default="normal")
    parser.add_argument("--payload", choices=("both", "json"), default="both", help="json: documents only")
    parser.add_argument("--blocks", action="store_true", help="how long the event loop is blocked")
    options = parser.parse_args(namespace=Options())
    rows = []
    for site in options.sites:
        count, _, inverters = site.partition("x")
        print(f"{count} gateways of {inverters or INVERTERS_PER_SITE} inverters ...", file=sys.stderr)
        size = (int(count), int(inverters or INVERTERS_PER_SITE), options)
        rows.append(asyncio.run(blocked(*size)) if options.blocks else measured(*size))
    if options.blocks:
        ways = [
            f"{when}, {which}" for when in ("no bridge", "first round", "later") for which in ("p99", "longest")
        ]
        lab.table("Timers late, ms", ("gateways", "inverters each", *ways), rows)
        return
    cost = ("CPU, % of a core", "each", "memory, MB", "each", "latest, s")
    header = ("gateways", "inverters each", "seen", "topics", *cost)
    lab.table(f"Scale: {options.shards} bridges, profile {options.profile}", header, rows)


if __name__ == "__main__":
    main()
