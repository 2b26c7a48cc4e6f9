"""Measures the CPU time of one round of requests: the bridge's, pyenphase's, and that of a bare HTTP client.

A round is either all endpoints or those that pyenphase requests. The bridge's time includes everything up to the
messages that it would publish. The floor is a bare client that requests the same paths with httpx and parses the
answers with `json.loads`. The gateway counts who requests which path. The column of pyenphase is empty if it is not
installed (`pip install pyenphase`).

    python benchmarks/cost.py [ROUNDS]
"""

import asyncio
import json
import logging
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import lab

from bridge.endpoints import ENDPOINTS
from bridge.outbox import Outbox
from bridge.service.assembly import make_poller
from bridge.settings import Settings
from bridge.store import Store

ROUNDS, TRIES = 100, 3
SIZES = (1, 20, 500)


async def timed(round_of: Callable[[], Awaitable[object]], rounds: int) -> float:
    """Return the CPU time per round in milliseconds, without the first two rounds."""
    await round_of()
    await round_of()
    begun = time.process_time()
    for _ in range(rounds):
        await round_of()
    return 1000 * (time.process_time() - begun) / rounds


async def floor(address: str, token: str, rounds: int, sources: Sequence[str]) -> float:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    paths = [endpoint.path for endpoint in ENDPOINTS if endpoint.source in sources]
    async with httpx.AsyncClient(
        base_url=f"https://{address}", verify=context, headers=headers, trust_env=False
    ) as http:

        async def once() -> None:
            for path in paths:
                body = (await http.get(path)).content
                if body.startswith((b"{", b"[")):
                    json.loads(body)

        return await timed(once, rounds)


async def ours(address: str, token: str, rounds: int, sources: Sequence[str]) -> float:
    """Poll all sources once, then measure rounds of these: in a real home most sources are polled seldom."""
    with TemporaryDirectory() as folder:
        settings = Settings(gateway={"host": address, "token": token}, state_dir=Path(folder))
        outbox = Outbox()
        poller = make_poller(settings, settings.gateway, Store(settings.state_dir), outbox.put_all)

        def publish() -> None:
            for message in outbox.pending(time.monotonic()):
                outbox.sent(message, time.monotonic())

        async def once() -> None:
            for source in sources:
                await poller.poll(poller.sources.by_name[source])
                publish()

        try:
            await poller.once()
            publish()
            return await timed(once, rounds)
        finally:
            await poller.aclose()


async def theirs(address: str, token: str, rounds: int, _sources: Sequence[str]) -> float:
    from pyenphase import Envoy  # noqa: PLC0415 - not one of our dependencies

    envoy = Envoy(address)
    await envoy.setup()
    await envoy.authenticate(token=token)
    try:
        return await timed(envoy.update, rounds)
    finally:
        await envoy.close()


async def asked(address: str, token: str) -> tuple[str, ...]:
    """Return the sources that pyenphase requests in one `update`, of those that the bridge reads as well."""
    from pyenphase import Envoy  # noqa: PLC0415 - not one of our dependencies

    envoy = Envoy(address)
    await envoy.setup()
    await envoy.authenticate(token=token)
    await envoy.update()
    before = _counted(address)
    await envoy.update()
    after = _counted(address)
    await envoy.close()
    new = {path: count - before.get(path, 0) for path, count in after.items()}
    print({path: count for path, count in new.items() if count}, file=sys.stderr)
    return tuple(e.source for e in ENDPOINTS if new.get(e.path))


def _counted(address: str) -> dict[str, int]:
    found: dict[str, int] = httpx.get(f"https://{address}{lab.PATHS_PATH}", verify=False, trust_env=False).json()  # noqa: S501 - loopback
    return found


CONTENDERS = {"floor": floor, "ours": ours, "pyenphase": theirs}
BRIEF_SOURCES = tuple(endpoint.source for endpoint in ENDPOINTS if endpoint.appendix)
"""The endpoints of Enphase's technical brief."""


def one(who: str, inverters: int, rounds: int, sources: Sequence[str]) -> float:
    """Measure in a process of its own, without the imports of the others; return the least of some tries."""
    command = [sys.executable, __file__, who, str(inverters), str(rounds), *sources]
    done = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(TRIES)]
    return min((float(run.stdout) for run in done if run.returncode == 0), default=float("nan"))


def main(rounds: int) -> None:
    with lab.gateways(20) as served:
        _, address, token = served.only
        try:
            common = asyncio.run(asked(address, token))
        except ModuleNotFoundError:
            common = ("inverters", "production", "readings")
    rows = []
    for inverters in SIZES:
        few = max(10, rounds // 5) if inverters > 100 else rounds  # noqa: PLR2004 - a large site
        for sources in (BRIEF_SOURCES, common):
            print(f"{inverters} inverters, {len(sources)} endpoints ...", file=sys.stderr)
            whose = CONTENDERS if sources == common else ("floor", "ours")
            times = {who: one(who, inverters, few, sources) for who in whose}
            bare, own, other = times["floor"], times["ours"], times.get("pyenphase", float("nan"))
            rows.append((inverters, len(sources), bare, own, other, own - bare, own / bare, own / other))
    print(f"Sources that pyenphase requests and the bridge reads, too: {', '.join(common)}")
    header = (
        "inverters",
        "endpoints",
        "floor, ms",
        "ours, ms",
        "pyenphase, ms",
        "ours - floor, ms",
        "ours / floor",
        "ours / pyenphase",
    )
    lab.table("CPU time of a round", header, rows)


def measure(who: str, inverters: int, rounds: int, sources: Sequence[str]) -> None:
    logging.disable()
    with lab.gateways(inverters) as served:
        _, address, token = served.only
        print(asyncio.run(CONTENDERS[who](address, token, rounds, sources)))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CONTENDERS:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
