"""The first contact with a gateway: find its address, open a session with it, and identify it."""

import asyncio
import errno
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from bridge.commands.report import EXIT_UNAVAILABLE, Report, configure_log, plural
from bridge.endpoints import BY_SOURCE
from bridge.gateway import open_gateway
from bridge.gateway.errors import HOST_SETTING, NO_GATEWAY, other_scheme
from bridge.gateway.mdns import DiscoveredGateway, discover
from bridge.model import Answer, BadAnswer, BadSetting, BridgeError, Facts, SourceName, Unavailable, Unsupported
from bridge.service.identity import Identity
from bridge.settings import CloudSettings, GatewaySettings, LogSettings, Settings
from bridge.state import IdentityState
from bridge.store import Store

PORT_OF_SCHEME = {"http": 80, "https": 443}
MAX_SILENT = 3
"""Requests in a row without an answer after which a gateway is asked no more."""


@dataclass(frozen=True, slots=True)
class CommandTiming:
    """How long commands wait at most, in seconds.

    `connect` is for a name server or a TCP connection, `request` for one request with its retries, `echo` for a
    message that comes back from the broker, `announcement` for gateways that announce themselves over mDNS,
    `listen` for a sign of life of a bridge that may be running.
    """

    connect: float = 10.0
    request: float = 15.0
    echo: float = 5.0
    announcement: float = 4.0
    listen: float = 16.0


DEFAULT_TIMING = CommandTiming()


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Scheme, host and port of a gateway, from its setting."""

    scheme: str
    host: str
    port: int
    netloc: str
    """host and port as they are written in the settings"""
    timing: CommandTiming = DEFAULT_TIMING
    standard_ports: Mapping[str, int] = field(default_factory=lambda: PORT_OF_SCHEME)
    """the port that a gateway uses for each scheme"""

    @classmethod
    def from_url(cls, base_url: str, timing: CommandTiming = DEFAULT_TIMING) -> Self:
        url = urlsplit(base_url)
        port = url.port or PORT_OF_SCHEME[url.scheme]
        return cls(url.scheme, url.hostname or "", port, url.netloc, timing)

    @property
    def has_name(self) -> bool:
        """Whether the host is a name, which has to be resolved, and no address."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    @property
    def _other_scheme(self) -> str:
        """Advice to try the other one of HTTP and HTTPS."""
        return other_scheme(f"{self.scheme}://{self.netloc}")

    async def resolve(self) -> str:
        """The addresses of the host, separated by commas.

        Raises:
            Unavailable: the name can't be resolved; the text says what to do.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timing.connect):
                found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise Unavailable(f"no name server answers: {self._by_address()}") from None
        except (socket.gaierror, UnicodeError):
            raise Unavailable(f"{self.host} is unknown here: {self._advice()}") from None
        return ", ".join(dict.fromkeys(str(address[4][0]) for address in found))

    async def check_port(self) -> None:
        """Make one TCP connection and close it.

        Raises:
            Unavailable: no connection can be made; the text says what to do.
        """
        try:
            await self._connect(self.port)
        except TimeoutError:
            raise Unavailable(
                f"no answer from port {self.port}: is the gateway on and in this network, and is "
                f"{HOST_SETTING} still right? Guest networks and firewalls keep devices apart, too"
            ) from None
        except OSError as error:
            raise Unavailable(await self._closed(error)) from None

    async def _connect(self, port: int) -> None:
        async with asyncio.timeout(self.timing.connect):
            _, writer = await asyncio.open_connection(self.host, port)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _closed(self, error: OSError) -> str:
        reason = os.strerror(error.errno) if error.errno else "no connection"
        if error.errno != errno.ECONNREFUSED:
            return (
                f"port {self.port}: {reason}: is the gateway on and in this network, and is {HOST_SETTING} right?"
            )
        closed = f"port {self.port} is closed (connection refused)"
        if self.scheme == "http":
            return f"{closed}: {self._other_scheme}"
        if self.port == self.standard_ports["https"] and await self.is_open(self.standard_ports["http"]):
            return f"{closed}, but port 80 is open: {self._other_scheme}"
        return f"{closed}: is {HOST_SETTING} right? Otherwise, {self._other_scheme}"

    async def is_open(self, port: int | None = None) -> bool:
        """Whether this port of the host, by default its own, takes a connection."""
        try:
            await self._connect(port or self.port)
        except OSError:  # a TimeoutError is one
            return False
        return True

    def _advice(self) -> str:
        if self.host.endswith(".local"):
            return (
                "names in .local are found by mDNS, which works only within one network and not in most "
                f"containers; {self._by_address()}"
            )
        return f"check the spelling in {HOST_SETTING}, or {self._by_address()}"

    def _by_address(self) -> str:
        return f"set {HOST_SETTING} to the gateway's address, as your router lists it"


INFO_ENDPOINT = BY_SOURCE[SourceName.INFO]
SEE_CHECK = "`iqgateway2mqtt check` shows details"


class GatewaySession:
    """A client for one gateway, opened with the serial number, TLS key and tokens that the store has of it.

    Use it with `contextlib.aclosing`, and call `identify` first.

    `previous_serial` is the serial number of the gateway that answered at this host last time; `pinned` is the TLS
    key that was known before this session; `info` is the answer of `/info`, kept so that it is requested only once.
    """

    def __init__(
        self, settings: Settings, own: GatewaySettings, store: Store, timing: CommandTiming = DEFAULT_TIMING
    ) -> None:
        """Open the session; nothing is sent yet.

        Raises:
            BadSetting: host or CA file can't be used.
        """
        self.own, self.store, self.timing = own, store, timing
        self.previous_serial = store.serial_of(own.host)
        self.pinned = store.load(self.previous_serial, IdentityState).key_pin if self.previous_serial else None
        self.info: Answer | None = None
        self._silent = 0
        self.gateway = open_gateway(own, settings.cloud, serial=self.previous_serial, pin=self.pinned, store=store)
        self._identity = Identity(own, self.gateway, store)

    async def aclose(self) -> None:
        """Close the connection."""
        await self.gateway.aclose()

    @property
    def secure(self) -> bool:
        """Whether the gateway uses TLS and needs a token; firmware before 7 has neither."""
        return self.own.base_url.startswith("https")

    @property
    def unresponsive(self) -> bool:
        """Whether the last three requests were left unanswered, so that no more should be made."""
        return self._silent >= MAX_SILENT

    def count_request(self, *, answered: bool) -> None:
        """Record the result of one request for `unresponsive`."""
        self._silent = 0 if answered else self._silent + 1

    @property
    def facts(self) -> Facts:
        return self._identity.facts

    @property
    def state(self) -> IdentityState:
        """The stored key and token of the identified gateway."""
        return self.store.load(self.facts.serial, IdentityState)

    async def identify(self) -> Facts:
        """Read `/info` and take the serial number from it. A TLS key that is seen for the first time is pinned.

        Raises:
            KeyChanged: the gateway shows another key than the pinned one; nothing was sent to it.
            Rejected: the gateway is another one than the settings say.
            Unavailable: no gateway answers.
            BadAnswer: something answers that is no gateway.
        """
        with _no_gateway():
            answer = await self.gateway.fetch(INFO_ENDPOINT.request, deadline=INFO_ENDPOINT.timeout)
        facts = self._facts_of(answer)
        self.pinned = self.pinned or self.store.load(facts.serial, IdentityState).key_pin
        return self.recognise(facts)

    async def probe_untrusted(self) -> tuple[Facts, str]:
        """Read `/info` without checking the TLS key. Returns the facts and the key that was shown.

        Raises:
            Unavailable, BadAnswer: as for `identify`.
        """
        with _no_gateway():
            answer, seen = await self.gateway.probe_untrusted(INFO_ENDPOINT.request)
        facts = self._facts_of(answer)
        self.pinned = self.pinned or self.store.load(facts.serial, IdentityState).key_pin
        return facts, seen or ""

    def recognise(self, facts: Facts) -> Facts:
        """Accept the gateway if it is the one that the settings and the store know.

        Raises:
            Rejected: it is another one.
            KeyChanged: its TLS key is not the stored one.
        """
        self._identity.recognise(facts)
        return facts

    def confirm_key(self) -> None:
        """Note that the owner trusts the pinned key."""
        self.store.save(self.facts.serial, self.state.changed(key_unconfirmed=False))

    def _facts_of(self, answer: Answer) -> Facts:
        self.info = answer
        facts = INFO_ENDPOINT.parse(answer.body, Facts(""), time.time()).facts
        assert facts is not None, "/info has facts"  # noqa: S101 - its split function makes them or raises
        return facts


@contextmanager
def _no_gateway() -> Iterator[None]:
    """Turn '/info is missing' into BadAnswer: every gateway answers `/info`, also without a token."""
    try:
        yield
    except Unsupported:
        raise BadAnswer(NO_GATEWAY) from None


def chosen(settings: Settings, name: str | None) -> tuple[GatewaySettings, ...]:
    """The gateways with this host or name; all of them if `name` is None.

    Raises:
        BadSetting: there is none.
    """
    every = settings.all_gateways
    if not every:
        raise BadSetting("this bridge has no gateway: see BRIDGE_GATEWAYS_FILE and BRIDGE_SHARD")
    found = tuple(gateway for gateway in every if name in (None, gateway.host, gateway.base_url, gateway.name))
    if not found:
        raise BadSetting(f"--gateway: no gateway is called {name}; there is {_hosts(every)}")
    return found


def only(settings: Settings, name: str | None) -> GatewaySettings:
    """The gateway with this host or name; if `name` is None, the only configured one.

    Raises:
        BadSetting: there is none, or there are several.
    """
    found = chosen(settings, name)
    if len(found) > 1:
        raise BadSetting(f"--gateway: several gateways are configured, name one of {_hosts(found)}")
    return found[0]


def _hosts(gateways: tuple[GatewaySettings, ...]) -> str:
    return ", ".join(gateway.host for gateway in gateways)


# discover

NONE_FOUND = (
    "no gateway has announced itself within {seconds:g} s. mDNS works only within one network and not in most "
    "containers: try it on the host itself, or look for the gateway in your router's list of devices"
)
NO_MDNS = (
    "mDNS can't be used: {reason}; connect this machine to the gateway's network, or look for the gateway in your "
    "router's list of devices and set BRIDGE_GATEWAY__HOST to its address"
)


async def _facts(announced: DiscoveredGateway) -> Facts:
    """Read `/info` without sending a token. Raises BridgeError."""
    async with open_gateway(GatewaySettings(host=announced.host), CloudSettings()) as gateway:
        answer, _ = await gateway.probe_untrusted(INFO_ENDPOINT.request)
    facts = INFO_ENDPOINT.parse(answer.body, Facts(""), 0.0).facts
    assert facts is not None, "/info has facts"  # noqa: S101 - its split function makes them or raises
    return facts


async def _report_gateway(announced: DiscoveredGateway, report: Report) -> None:
    report.section(f"Gateway {announced.serial}")
    report.fact("name", announced.name or "unknown")
    report.fact("setting", f"BRIDGE_GATEWAY__HOST={announced.host}")
    try:
        facts = await _facts(announced)
    except BridgeError as error:
        report.fact("firmware", announced.firmware or "unknown")
        report.fault("answer", error)
        return
    report.fact("firmware", facts.firmware or "unknown")
    if facts.part_number:
        report.fact("part number", facts.part_number)
    if facts.serial == announced.serial:
        report.ok("answer", "the announced gateway answers")
    else:
        report.note("answer", f"gateway {facts.serial} answers at this address, not the announced one")


async def _discover(seconds: float, interfaces: Sequence[str]) -> int:
    report = Report()
    print(f"Listening for {seconds:g} s ...", file=sys.stderr)
    try:
        found = await discover(seconds, interfaces)
    except OSError as error:
        reason = error.strerror or str(error)
        if interfaces:
            raise BadSetting(
                f"--interface: {' or '.join(interfaces)} is no address of this machine: {reason}"
            ) from None
        report.problem("mDNS", NO_MDNS.format(reason=reason), EXIT_UNAVAILABLE)
        return report.worst
    for announced in found:
        await _report_gateway(announced, report)
    if not found:
        report.problem("mDNS", NONE_FOUND.format(seconds=seconds), EXIT_UNAVAILABLE)
        return report.worst
    report.section(f"{plural(len(found), 'gateway')}. `iqgateway2mqtt setup` helps with the rest.")
    return report.worst


def run_discovery(seconds: float, interfaces: Sequence[str]) -> int:
    """Run the command. Returns 69 if no gateway is found, or one does not answer.

    Raises:
        BadSetting: an interface can't be used.
    """
    configure_log(LogSettings(level="ERROR"))
    return asyncio.run(_discover(seconds, interfaces))
