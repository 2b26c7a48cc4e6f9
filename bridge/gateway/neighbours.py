"""Gateways of this network, by what they announce over mDNS (DNS-SD service `_enphase-envoy._tcp`).

Needs the zeroconf library, which is an extra: the bridge runs without, for mDNS reaches neither into most
containers nor into other networks.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo

SERVICE = "_enphase-envoy._tcp.local."
ALL: tuple[str, ...] = ()
"""No interface in particular: all of them."""
FIRST_WITH_TLS = 7
WEB_PORTS = frozenset({80, 443})
MAX_SEEN = 256
"""Names that are looked at; no house has so many gateways."""
ANSWER = 2.0
"""Seconds that one announcement's details may take."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What a gateway says of itself. `firmware` lacks the letter that `/info` has; empty where it is not said."""

    serial: str
    address: str
    port: int
    name: str
    firmware: str = ""

    @property
    def legacy(self) -> bool:
        """Firmware before 7 speaks plain HTTP."""
        major = self.firmware.partition(".")[0]
        return major.isdecimal() and int(major) < FIRST_WITH_TLS

    @property
    def host(self) -> str:
        """As `BRIDGE_GATEWAY__HOST` takes it. Gateways announce the port of their old web page, 80, all alike."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        place = address if self.port in WEB_PORTS else f"{address}:{self.port}"
        return f"http://{place}" if self.legacy else place


async def neighbours(seconds: float, interfaces: Sequence[str] = ALL) -> list[Neighbour]:
    """The gateways that answer within so many seconds, by serial number.

    `interfaces` are addresses of this machine, all of them where none is named.

    Raises:
        ModuleNotFoundError: zeroconf is not installed.
        OSError: this machine has no network for it.
    """
    found: dict[str, Neighbour] = {}
    async for neighbour in _announced(seconds, interfaces):
        found.setdefault(neighbour.serial, neighbour)
    return sorted(found.values(), key=lambda neighbour: neighbour.serial)


async def whereabouts(serial: str, seconds: float, interfaces: Sequence[str] = ALL) -> str | None:
    """Where this gateway is now, as `BRIDGE_GATEWAY__HOST` takes it. Raises as `neighbours` does."""
    async for neighbour in _announced(seconds, interfaces):
        if neighbour.serial == serial:
            return neighbour.host
    return None


async def _announced(seconds: float, interfaces: Sequence[str]) -> AsyncIterator[Neighbour]:
    from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415 - an extra

    names: asyncio.Queue[str] = asyncio.Queue(MAX_SEEN)
    deadline = asyncio.get_running_loop().time() + seconds
    async with _listening(names, interfaces) as zeroconf:
        while (name := await _next(names, deadline)) is not None:
            details = AsyncServiceInfo(SERVICE, name)
            if await details.async_request(zeroconf, ANSWER * 1000) and (neighbour := _read(details)):
                yield neighbour


@asynccontextmanager
async def _listening(names: asyncio.Queue[str], interfaces: Sequence[str]) -> AsyncIterator["Zeroconf"]:
    from zeroconf import InterfaceChoice  # noqa: PLC0415 - an extra
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf  # noqa: PLC0415 - an extra

    def heard(zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange") -> None:  # noqa: ARG001 - the signature is zeroconf's
        if not names.full():
            names.put_nowait(name)

    network = AsyncZeroconf(interfaces=[*interfaces] or InterfaceChoice.All)
    try:
        browser = AsyncServiceBrowser(network.zeroconf, SERVICE, handlers=[heard])
        yield network.zeroconf
        await browser.async_cancel()
    finally:
        await network.async_close()


async def _next(names: asyncio.Queue[str], deadline: float) -> str | None:
    try:
        async with asyncio.timeout_at(deadline):
            return await names.get()
    except TimeoutError:
        return None


def _read(details: "AsyncServiceInfo") -> Neighbour | None:
    """Anybody may announce anything: what is no serial number or has no address is nobody."""
    said = {_text(key): _text(value) for key, value in details.properties.items()}
    serial, addresses = said.get("serialnum", "").lower(), details.parsed_addresses()
    if not (serial.isalnum() and serial.isascii() and len(serial) <= 32 and addresses):  # noqa: PLR2004 - as settings
        return None
    firmware = said.get("protovers", "")
    return Neighbour(
        serial,
        _preferred(addresses),
        details.port or 0,
        (details.server or "").rstrip("."),
        firmware if firmware.replace(".", "").isdecimal() else "",
    )


def _preferred(addresses: Sequence[str]) -> str:
    """IPv4 first: a link-local IPv6 address is of no use without its interface."""
    return min(addresses, key=lambda text: ipaddress.ip_address(text.partition("%")[0]).version)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
