"""`simulate`: a simulated or a captured gateway alone, on a port, for those who write flows or look for a fault."""

import asyncio
from pathlib import Path

from bridge.commands.run import until_stopped
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.replay import Replay

START_HOUR = 10.0
"""The simulated day begins in the morning, so that there is sun to see."""


async def _serve(app: Simulator | Replay, name: str, host: str, port: int, *, secure: bool) -> None:
    from bridge.simulator.serve import serve  # noqa: PLC0415 - needs the demo extra

    async with serve(app, tls=secure, host=host, port=port) as address, serve(app, tls=False) as cloud:
        scheme = "https" if secure else "http"
        print(f"{name}: gateway {app.serial} at {scheme}://{address}, its cloud at http://{cloud}\n")
        print("Settings for `iqgateway2mqtt run`:")
        print(f"BRIDGE_GATEWAY__HOST={scheme}://{address}")
        if secure:
            print(f"BRIDGE_GATEWAY__TOKEN={app.token()}")
            print("or, in place of the token,")
            print(f"BRIDGE_GATEWAY__USERNAME={USER} BRIDGE_GATEWAY__PASSWORD='{PASSWORD}'")
            print(f"BRIDGE_CLOUD__LOGIN_URL=http://{cloud}/login/login.json")
            print(f"BRIDGE_CLOUD__TOKEN_URL=http://{cloud}/tokens")
            print(f"BRIDGE_CLOUD__ENTREZ_URL=http://{cloud}/entrez-auth-token")
        print("\nCtrl-C stops it.", flush=True)
        await asyncio.Event().wait()


async def _run(home: str, host: str, port: int, capture: Path | None) -> None:
    if capture is None:
        simulator = Simulator(home, start_hour=START_HOUR)
        work = _serve(simulator, home, host, port, secure=simulator.home.secure)
    else:
        replay = Replay(capture)
        work = _serve(replay, f"{capture.name}, firmware {replay.firmware}", host, port, secure=replay.secure)
    await until_stopped(work)


def run(home: str, host: str, port: int, capture: Path | None = None) -> int:
    asyncio.run(_run(home, host, port, capture))
    return 0
