"""`discover`: the gateways of this network, with serial number and firmware, and the setting that names each."""

import asyncio
import sys
from collections.abc import Sequence

from bridge.commands import log
from bridge.commands.codes import UNAVAILABLE
from bridge.commands.report import Report, plural
from bridge.config import CloudSettings, GatewaySettings, LogSettings
from bridge.endpoints import BY_SOURCE
from bridge.gateway import open_gateway
from bridge.gateway.neighbours import Neighbour, neighbours
from bridge.model import BridgeError, Facts

NOBODY = (
    "no gateway has announced itself within {seconds:g} s. mDNS reaches neither into most containers nor into "
    "other networks: try it on the host itself, or look for the gateway in your router's list of devices"
)
INFO = BY_SOURCE["info"]


async def _facts(neighbour: Neighbour) -> Facts:
    """What `/info` says; it gets no token. Raises BridgeError."""
    async with open_gateway(GatewaySettings(host=neighbour.host), CloudSettings()) as gateway:
        answer, _ = await gateway.look()
    facts = INFO.split(answer.body, Facts(""), 0.0).facts
    assert facts is not None, "/info always tells"  # noqa: S101 - its split function sees to it
    return facts


async def _tell(neighbour: Neighbour, report: Report) -> None:
    report.section(f"Gateway {neighbour.serial}")
    report.fact("name", neighbour.name or "unknown")
    report.fact("setting", f"BRIDGE_GATEWAY__HOST={neighbour.host}")
    try:
        facts = await _facts(neighbour)
    except BridgeError as error:
        report.fact("firmware", neighbour.firmware or "unknown")
        report.fault("answer", error)
        return
    report.fact("firmware", facts.firmware or "unknown")
    if facts.part_number:
        report.fact("part number", facts.part_number)
    if facts.serial == neighbour.serial:
        report.ok("answer", "it is there, and it is the one that was announced")
    else:
        report.note("answer", f"at this address answers gateway {facts.serial}, not the announced one")


async def _discover(seconds: float, interfaces: Sequence[str]) -> int:
    report = Report()
    print(f"Listening for {seconds:g} s ...", file=sys.stderr)
    found = await neighbours(seconds, interfaces)
    for neighbour in found:
        await _tell(neighbour, report)
    if not found:
        report.problem("mDNS", NOBODY.format(seconds=seconds), UNAVAILABLE)
        return report.worst
    report.section(f"{plural(len(found), 'gateway')}. `iqgateway2mqtt setup` helps with the rest.")
    return report.worst


def run(seconds: float, interfaces: Sequence[str]) -> int:
    """69 where nobody is found, or one does not answer."""
    log.configure(LogSettings(level="ERROR"))
    return asyncio.run(_discover(seconds, interfaces))
