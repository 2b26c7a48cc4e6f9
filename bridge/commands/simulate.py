"""`simulate`: the simulated gateway alone, on a port, for those who write flows."""

import asyncio

from bridge.commands.run import until_stopped
from bridge.simulator import PASSWORD, USER, Simulator

START_HOUR = 10.0
"""The simulated day begins in the morning, so that there is sun to see."""


async def _serve(home: str, host: str, port: int) -> None:
    from bridge.simulator.serve import serve  # noqa: PLC0415 - needs the demo extra

    simulator = Simulator(home, start_hour=START_HOUR)
    legacy = not simulator.home.secure
    async with (
        serve(simulator, tls=not legacy, host=host, port=port) as address,
        serve(simulator, tls=False) as cloud,
    ):
        scheme = "http" if legacy else "https"
        print(f"{home}: gateway {simulator.serial} at {scheme}://{address}, its cloud at http://{cloud}\n")
        print("Settings for `iqgateway2mqtt run`:")
        print(f"BRIDGE_GATEWAY__HOST={scheme}://{address}")
        if not legacy:
            print(f"BRIDGE_GATEWAY__TOKEN={simulator.token()}")
            print("or, in place of the token,")
            print(f"BRIDGE_GATEWAY__USERNAME={USER} BRIDGE_GATEWAY__PASSWORD='{PASSWORD}'")
            print(f"BRIDGE_CLOUD__LOGIN_URL=http://{cloud}/login/login.json")
            print(f"BRIDGE_CLOUD__TOKEN_URL=http://{cloud}/tokens")
            print(f"BRIDGE_CLOUD__ENTREZ_URL=http://{cloud}/entrez-auth-token")
        print("\nCtrl-C stops it.", flush=True)
        await asyncio.Event().wait()


async def _run(home: str, host: str, port: int) -> None:
    await until_stopped(_serve(home, host, port))


def run(home: str, host: str, port: int) -> int:
    asyncio.run(_run(home, host, port))
    return 0
