"""CPU time of one round of all endpoints, beside a bare client's, and beside pyenphase's on the same gateway.

Our round ends with everything that would be published. The floor is httpx and `json.loads`. pyenphase asks for what
it wants; where it is not installed (`pip install pyenphase`), its column is empty.

    python benchmarks/cost.py [ROUNDS]
"""

import asyncio
import json
import logging
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import lab

from bridge.config import Settings
from bridge.endpoints import ENDPOINTS
from bridge.outbox import Outbox
from bridge.service import make_poller
from bridge.store import Store

ROUNDS = 100
SIZES = (1, 20, 500)


async def timed(round_of: Callable[[], Awaitable[object]], rounds: int) -> float:
    """Milliseconds of CPU time for each round, the first two not counted."""
    await round_of()
    await round_of()
    begun = time.process_time()
    for _ in range(rounds):
        await round_of()
    return 1000 * (time.process_time() - begun) / rounds


async def floor(address: str, token: str, rounds: int) -> float:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        base_url=f"https://{address}", verify=context, headers=headers, trust_env=False
    ) as http:

        async def once() -> None:
            for endpoint in ENDPOINTS:
                body = (await http.get(endpoint.path)).content
                if endpoint.source != "info" and body.startswith((b"{", b"[")):
                    json.loads(body)

        return await timed(once, rounds)


async def ours(address: str, token: str, rounds: int) -> float:
    with TemporaryDirectory() as folder:
        settings = Settings(gateway={"host": address, "token": token}, state_dir=Path(folder))  # type: ignore[arg-type]
        outbox = Outbox()
        poller = make_poller(settings, settings.gateway, Store(settings.state_dir), outbox.put)

        async def once() -> None:
            await poller.once()
            for message in outbox.pending(time.monotonic()):
                outbox.sent(message, time.monotonic())

        try:
            return await timed(once, rounds)
        finally:
            await poller.aclose()


async def theirs(address: str, token: str, rounds: int) -> float:
    from pyenphase import Envoy  # noqa: PLC0415 - not one of our dependencies

    envoy = Envoy(address)
    await envoy.setup()
    await envoy.authenticate(token=token)
    try:
        return await timed(envoy.update, rounds)
    finally:
        await envoy.close()


WHO = {"floor": floor, "ours": ours, "pyenphase": theirs}


def one(who: str, inverters: int, rounds: int) -> float | None:
    """In a process of its own, so that nobody pays for another's imports."""
    command = [sys.executable, __file__, who, str(inverters), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def main(rounds: int) -> None:
    rows = []
    for inverters in SIZES:
        print(f"{inverters} inverters ...", file=sys.stderr)
        few = max(10, rounds // 5) if inverters > 100 else rounds  # noqa: PLR2004 - a large site
        times = {who: one(who, inverters, few) for who in WHO}
        bare, own, other = times["floor"], times["ours"], times["pyenphase"]
        rows.append(
            (
                inverters,
                bare or "?",
                own or "?",
                other or "not installed",
                own / bare if own and bare else "?",
                own / other if own and other else "?",
            )
        )
    header = ("inverters", "floor, ms", "ours, ms", "pyenphase, ms", "ours / floor", "ours / pyenphase")
    lab.table("CPU time of a round of all endpoints", header, rows)


def measure(who: str, inverters: int, rounds: int) -> None:
    logging.disable()
    with lab.gateways(inverters) as served:
        _, address, token = served.only
        print(asyncio.run(WHO[who](address, token, rounds)))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WHO:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
