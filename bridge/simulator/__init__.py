"""A simulated IQ Gateway, and Enphase's cloud, for tests, `demo` and `simulate`.

    simulator = Simulator("three-phase", clock=clock, seed=1)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(simulator), base_url="https://envoy.local")
    headers = {"Authorization": f"Bearer {simulator.token()}"}
    simulator.truth()                                       # what is so, to compare with
    simulator.faults.add("/ivp/meters/readings", "503", times=2)
    simulator.count("/ivp/meters/readings")                 # who asked for what: simulator.requests

`bridge.simulator.serve` puts it on a real socket (needs the `demo` extra).

    async with serve(simulator, tls=True) as address:       # "127.0.0.1:41233"

A simulator answers for the gateway and for the cloud; give the bridge its address for both. The homes are in
`HOMES`: `three-phase` (20 inverters and one that was removed), `split-phase` (controller, dry contacts, generator),
`single-phase`, `no-cts`, `legacy`, `large`, `collar` (meter collar, combiner), `ac-batteries`. The clock is a
callable that tells unix time; another clock makes another speed. `start_hour` makes it that hour of the simulated
day at the start, so that the sun shines in a demo at night.

Also: `become(firmware=...)`, `revoke_tokens()`, `reboot(zeros=120)`, `gateway.guard.needs_check = True` (the token
is refused until `/auth/check_jwt` was asked), `cloud.role = "installer"`. What faults there are stands in `faults`.
Through `httpx.ASGITransport` a cut connection is a `ConnectionResetError` and bodies come in one piece: order
`reset`, `drop`, `slow` and `huge` over a real socket.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.simulator.app import PASSWORD, Simulator
    from bridge.simulator.cloud import USER, Cloud
    from bridge.simulator.exchange import Seen
    from bridge.simulator.faults import Fault, named
    from bridge.simulator.gateway import ENDPOINTS, NEVER
    from bridge.simulator.homes import HOMES, Home
    from bridge.simulator.truth import Truth

__all__ = [
    "ENDPOINTS",
    "HOMES",
    "NAMES",
    "NEVER",
    "PASSWORD",
    "USER",
    "Cloud",
    "Fault",
    "Home",
    "Seen",
    "Simulator",
    "Truth",
    "named",
]

NAMES = ("ac-batteries", "collar", "large", "legacy", "no-cts", "single-phase", "split-phase", "three-phase")
"""Of the homes in `HOMES`: the command line lists them without building any."""

PLACES = {
    **dict.fromkeys(("PASSWORD", "Simulator"), "app"),
    **dict.fromkeys(("USER", "Cloud"), "cloud"),
    "Seen": "exchange",
    **dict.fromkeys(("Fault", "named"), "faults"),
    **dict.fromkeys(("ENDPOINTS", "NEVER"), "gateway"),
    **dict.fromkeys(("HOMES", "Home"), "homes"),
    "Truth": "truth",
}
"""Where each name comes from. Only what is used is loaded."""


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
