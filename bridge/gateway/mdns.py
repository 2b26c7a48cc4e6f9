"""Finding gateways in the local network by mDNS (DNS-SD service `_enphase-envoy._tcp`).

It needs the zeroconf library, which is an extra: the bridge also runs without it, because mDNS works neither in
most containers nor across networks.
"""

import asyncio
import errno
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo

SERVICE_TYPE = "_enphase-envoy._tcp.local."
ALL_INTERFACES: tuple[str, ...] = ()
"""All network interfaces."""
FIRST_FIRMWARE_WITH_TLS = 7
WEB_PORTS = frozenset({80, 443})
MAX_ANNOUNCEMENTS = 256
"""Announcements that are read; no house has so many gateways."""
LISTEN_S = 4.0
"""How long a search for a gateway that has moved takes."""


@dataclass(frozen=True, slots=True)
class DiscoveredGateway:
    """A gateway's announcement. `firmware` lacks the letter that `/info` has, and is empty where it is not
    announced.
    """

    serial: str
    address: str
    port: int
    name: str
    firmware: str = ""

    @property
    def legacy(self) -> bool:
        """Whether its firmware is before 7, which speaks plain HTTP."""
        major = self.firmware.partition(".")[0]
        return major.isdecimal() and int(major) < FIRST_FIRMWARE_WITH_TLS

    @property
    def host(self) -> str:
        """The value for `BRIDGE_GATEWAY__HOST`. The usual ports are left out: all gateways announce 80, TLS or
        not.
        """
        address = f"[{self.address}]" if ":" in self.address else self.address
        place = address if self.port in WEB_PORTS else f"{address}:{self.port}"
        return f"http://{place}" if self.legacy else place


async def discover(seconds: float, interfaces: Sequence[str] = ALL_INTERFACES) -> list[DiscoveredGateway]:
    """The gateways that answer within so many seconds, ordered by serial number.

    `interfaces` are addresses of this machine to search from. Names are looked up at the same time, as any of them
    may be announced by somebody who does not answer.

    Raises:
        ModuleNotFoundError: zeroconf is not installed.
        OSError: this machine has no network for it.
    """
    from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415 - an extra

    found: dict[str, DiscoveredGateway] = {}
    names: asyncio.Queue[str] = asyncio.Queue(MAX_ANNOUNCEMENTS)

    async def look_up(zeroconf: "Zeroconf", name: str) -> None:
        details = AsyncServiceInfo(SERVICE_TYPE, name)
        if await details.async_request(zeroconf, seconds * 1000) and (gateway := _read(details)):
            found.setdefault(gateway.serial, gateway)

    async with _listening(names, interfaces) as zeroconf:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                for _ in range(MAX_ANNOUNCEMENTS):
                    tasks.create_task(look_up(zeroconf, await names.get()))
    return sorted(found.values(), key=lambda gateway: gateway.serial)


class Search:
    """Finds gateways by their serial number. All who search at the same time share one search.

    A search opens sockets on each interface, and hundreds of gateways can be out of reach at once. `interfaces` are
    addresses of this machine to search from, `listen` is how long a search takes, in seconds.
    """

    def __init__(self, interfaces: Sequence[str] = ALL_INTERFACES, listen: float = LISTEN_S) -> None:
        self.interfaces, self._listen = interfaces, listen
        self._running: asyncio.Task[list[DiscoveredGateway]] | None = None

    async def find(self, serial: str) -> str | None:
        """Where this gateway is now, as a value for `BRIDGE_GATEWAY__HOST`; `None` if it did not answer in time.

        Raises:
            ModuleNotFoundError: zeroconf is not installed.
            OSError: this machine has no network for it.
        """
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(discover(self._listen, self.interfaces))
        gateways = await asyncio.shield(self._running)
        return next((gateway.host for gateway in gateways if gateway.serial == serial), None)


@asynccontextmanager
async def _listening(names: asyncio.Queue[str], interfaces: Sequence[str]) -> AsyncIterator["Zeroconf"]:
    from zeroconf import InterfaceChoice  # noqa: PLC0415 - an extra
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf  # noqa: PLC0415 - an extra

    def on_change(zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange") -> None:  # noqa: ARG001 - the signature is zeroconf's
        if not names.full():
            names.put_nowait(name)

    try:
        network = AsyncZeroconf(interfaces=[*interfaces] or InterfaceChoice.All)
    except RuntimeError:  # zeroconf's error for a machine that is offline
        raise OSError(errno.ENETDOWN, "this machine has no network with IPv4 addresses") from None
    try:
        browser = AsyncServiceBrowser(network.zeroconf, SERVICE_TYPE, handlers=[on_change])
        yield network.zeroconf
        await browser.async_cancel()
    finally:
        await network.async_close()


def _read(details: "AsyncServiceInfo") -> DiscoveredGateway | None:
    """Parse one announcement; `None` without a valid serial number and address. Anybody may announce anything."""
    said = {_text(key): _text(value) for key, value in details.properties.items()}
    serial, addresses = said.get("serialnum", "").lower(), details.parsed_addresses()
    if not (serial.isalnum() and serial.isascii() and len(serial) <= 32 and addresses):  # noqa: PLR2004 - as settings
        return None
    firmware = said.get("protovers", "")
    return DiscoveredGateway(
        serial,
        _preferred(addresses),
        details.port or 0,
        (details.server or "").rstrip("."),
        firmware if firmware.replace(".", "").isdecimal() else "",
    )


def _preferred(addresses: Sequence[str]) -> str:
    """The first IPv4 address if there is one: a link-local IPv6 address is of no use without its interface."""
    return min(addresses, key=lambda text: ipaddress.ip_address(text.partition("%")[0]).version)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
