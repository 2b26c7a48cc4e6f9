"""Measures the load on the gateway: requests per minute and connections, in normal operation and during faults.

Each fault has a bridge and a gateway of its own. It starts after a while of normal operation, affects all requests
to the gateway, and ends again. Each connection begins with a TLS handshake. All faults are measured at once.

    python benchmarks/kindness.py [SECONDS] [FAULT ...]      each fault lasts SECONDS (default 180)
"""

import asyncio
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import lab

from bridge.http_server import Receive, Scope, Send
from bridge.simulator import Simulator
from bridge.simulator.serve import serve

DURATION_S = 180.0
FIRST_ROUND_S = 20.0
HEALTHY = "healthy"
FAULTS = (
    *("503", "429", "401", "403", "404", "html", "empty", "truncated", "error_object", "garbage"),
    *("hang", "late:3", "slow:0.5", "reset", "drop", "huge:16", "booting"),
)


class Watched:
    """A simulator that counts requests and the connections that they came on."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.connections: set[object] = set()
        self.requests = 0

    @property
    def serial(self) -> str:
        return self._simulator.serial

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.connections.add(scope["client"])
        self.requests += 1
        await self._simulator(scope, receive, send)


async def measured(number: int, fault: str, seconds: float, port: int, folder: Path) -> tuple[object, ...]:
    """Return a row: the fault, requests per minute before, in and after it, connections in it and in all."""
    await asyncio.sleep(number)  # the start of a bridge costs most CPU time, so they start one by one
    simulator = Simulator(lab.home_of(20, number=number), start_hour=12)
    watched = Watched(simulator)
    async with serve(watched, tls=True) as address:
        served = lab.RunningGateways({simulator.serial: (address, simulator.token())}, os.getpid())
        environment = lab.environment(served, port, folder / str(number))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bridge", "run", env=environment, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await asyncio.sleep(FIRST_ROUND_S)
            asked, opened = [], []
            for trouble in (HEALTHY, fault, HEALTHY):
                if trouble != HEALTHY:
                    simulator.faults.add("gateway", trouble)
                requests, connections = watched.requests, len(watched.connections)
                await asyncio.sleep(seconds)
                asked.append(60 * (watched.requests - requests) / seconds)
                opened.append(len(watched.connections) - connections)
                simulator.faults.clear()
        finally:
            process.terminate()
            await process.wait()
    return fault, *asked, asked[1] / asked[0], opened[1], 3600 * opened[1] / seconds, len(watched.connections)


async def every(faults: list[str], seconds: float, port: int, folder: Path) -> list[tuple[object, ...]]:
    tasks = (measured(number, fault, seconds, port, folder) for number, fault in enumerate(faults))
    return await asyncio.gather(*tasks)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else DURATION_S
    with lab.broker() as port, TemporaryDirectory() as folder:
        rows = asyncio.run(every(sys.argv[2:] or [HEALTHY, *FAULTS], seconds, port, Path(folder)))
    header = (
        *("fault", "requests a minute before", "in it", "after", "in it / before"),
        *("connections in it", "an hour", "in all"),
    )
    lab.table("Kindness", header, rows)


if __name__ == "__main__":
    main()
