"""The way to a gateway: its name, its port; and what to do where one of them leads nowhere."""

import asyncio
import errno
import ipaddress
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from bridge.model import Unavailable

PORTS = {"http": 80, "https": 443}
PATIENCE = 10.0
HOST = "BRIDGE_GATEWAY__HOST"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway should be."""

    scheme: str
    host: str
    port: int
    written: str
    """host and port as the settings have them"""

    @classmethod
    def of(cls, base_url: str) -> Self:
        url = urlsplit(base_url)
        return cls(url.scheme, url.hostname or "", url.port or PORTS[url.scheme], url.netloc)

    @property
    def named(self) -> bool:
        """Whether there is a name to resolve."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    @property
    def without_tls(self) -> str:
        return f"firmware before 7 has no TLS: set {HOST}=http://{self.written}"

    @property
    def with_tls(self) -> str:
        return f"firmware from 7 on speaks TLS: set {HOST}={self.written}"

    async def resolve(self) -> str:
        """Its addresses. Raises Unavailable with what to do."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE):
                found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise Unavailable(f"no name server answers: {self._by_address()}") from None
        except (socket.gaierror, UnicodeError):
            raise Unavailable(f"{self.host} is unknown here: {self._advice()}") from None
        return ", ".join(dict.fromkeys(str(address[4][0]) for address in found))

    async def knock(self) -> None:
        """Raises Unavailable with what to do where no connection can be made."""
        try:
            await self._connect(self.port)
        except TimeoutError:
            raise Unavailable(
                f"no answer from port {self.port}: is the gateway on and in this network, and is {HOST} still its "
                "address? Guest networks and firewalls keep devices apart, too"
            ) from None
        except OSError as error:
            raise Unavailable(await self._closed(error)) from None

    async def _connect(self, port: int) -> None:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(self.host, port)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _closed(self, error: OSError) -> str:
        reason = os.strerror(error.errno) if error.errno else "no connection"
        if error.errno != errno.ECONNREFUSED:
            return f"port {self.port}: {reason}: is the gateway on and in this network, and is {HOST} right?"
        closed = f"port {self.port} is closed (connection refused)"
        if self.scheme == "http":
            return f"{closed}: {self.with_tls}"
        if self.port == PORTS["https"] and await self._is_open(PORTS["http"]):
            return f"{closed}, but port 80 is open: {self.without_tls}"
        return f"{closed}: is {HOST} right? Otherwise, {self.without_tls}"

    async def _is_open(self, port: int) -> bool:
        try:
            await self._connect(port)
        except OSError:  # a TimeoutError is one
            return False
        return True

    def _advice(self) -> str:
        if self.host.endswith(".local"):
            return (
                "names in .local are found by mDNS, which reaches neither into most containers nor into other "
                f"networks; {self._by_address()}"
            )
        return f"check {HOST} for a slip, or {self._by_address()}"

    def _by_address(self) -> str:
        return f"set {HOST} to the gateway's address, which your router's list of devices shows"
