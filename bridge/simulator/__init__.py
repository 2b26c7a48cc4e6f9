"""This package simulates an IQ Gateway and Enphase's cloud, for the tests and the commands `demo` and `simulate`.

    simulator = Simulator("three-phase", clock=clock, seed=1)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(simulator), base_url="https://envoy.local")
    headers = {"Authorization": f"Bearer {simulator.token()}"}
    simulator.truth()                                       # the true values, to compare with
    simulator.faults.add("/ivp/meters/readings", "503", times=2)
    simulator.count("/ivp/meters/readings")                 # the log of requests is simulator.requests

`bridge.simulator.serve` puts it on a real socket (this needs the `demo` extra).

    async with serve(simulator, tls=True) as address:       # "127.0.0.1:41233"

A simulator answers both as the gateway and as the cloud: give the bridge its address for both. `HOMES` holds the
homes: `three-phase` (20 inverters and one that was removed), `split-phase` (controller, dry contacts, generator),
`single-phase`, `no-cts`, `legacy`, `large`, `collar` (meter collar, combiner), `ac-batteries`, `limited` (firmware
8.3.6086: solar power is limited, and the controller does not do what the stored settings say). The clock is a
function that returns unix time; a clock that runs faster makes the home live faster. `start_hour` sets the hour of
the simulated day at which the simulation starts, so that the sun shines in a demo at night.

More controls are `become(firmware=...)`, `revoke_tokens()`, `reboot(zeros=120)`, `cloud.role = "installer"` and
`gateway.guard.needs_check = True` (the gateway then refuses a token until `/auth/check_jwt` has been requested).
`roof.house.behind = barn.house` makes two simulators one home: the grid meter of `roof` sees the sun of both.

Anybody with a token may write what can be controlled (storage settings, contacts, generator, AC Batteries, grid
relay), and the home follows after some seconds. `personality="stale-file"` makes it a gateway that takes writes in
another way; `PERSONALITIES` has them all. `writes()` are the writes that were received, `truth().equipment` is what
is really in force, and `gateway.controls.set_by_app(...)` changes it without a write.

The module `faults` lists the faults. Through `httpx.ASGITransport` a cut connection raises `ConnectionResetError`
and a body arrives in one piece, so test `reset`, `drop`, `slow` and `huge` over a real socket.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.simulator.cloud import USER, SimulatedCloud
    from bridge.simulator.faults import Fault, fault_by_name
    from bridge.simulator.gateway import BRIEF_PATHS, HARMFUL_PATHS, PASSWORD, Simulator
    from bridge.simulator.http import LoggedRequest
    from bridge.simulator.presets import HOMES, PERSONALITIES, Home, Personality
    from bridge.simulator.truth import Truth

__all__ = [
    "BRIEF_PATHS",
    "HARMFUL_PATHS",
    "HOMES",
    "HOME_NAMES",
    "PASSWORD",
    "PERSONALITIES",
    "PERSONALITY_NAMES",
    "USER",
    "Fault",
    "Home",
    "LoggedRequest",
    "Personality",
    "SimulatedCloud",
    "Simulator",
    "Truth",
    "fault_by_name",
]

HOME_NAMES = (
    "ac-batteries",
    "collar",
    "large",
    "legacy",
    "limited",
    "no-cts",
    "single-phase",
    "split-phase",
    "three-phase",
)
"""The names of the homes in `HOMES`. The command line lists them from here, without building the homes."""

PERSONALITY_NAMES = (
    "app-undoes",
    "cloud-restores",
    "fails",
    "hangs",
    "hides-contacts",
    "ignores",
    "installer-only",
    "loses-answers",
    "obeys",
    "refuses",
    "spoils-rates",
    "stale-file",
)
"""The names of the personalities in `PERSONALITIES`."""

MODULE_OF = {
    **dict.fromkeys(("USER", "SimulatedCloud"), "cloud"),
    "LoggedRequest": "http",
    **dict.fromkeys(("Fault", "fault_by_name"), "faults"),
    **dict.fromkeys(("BRIEF_PATHS", "HARMFUL_PATHS", "PASSWORD", "Simulator"), "gateway"),
    **dict.fromkeys(("HOMES", "PERSONALITIES", "Home", "Personality"), "presets"),
    "Truth": "truth",
}
"""The module that each exported name comes from. A module is loaded when a name of it is first used."""


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULE_OF[name]}"), name)
