"""Announces gateways over mDNS on the loopback interface only."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import pytest
from zeroconf import ServiceInfo, Zeroconf

from bridge.gateway import mdns

LOOPBACK = "127.0.0.1"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a service name of our own: programs of one machine hear each other, and so would parallel tests."""
    monkeypatch.setattr(mdns, "SERVICE_TYPE", f"_enphase-{os.getpid()}._tcp.local.")


@contextmanager
def announced(
    serial: str, port: int, *, firmware: str = "8.3.5167", address: str = LOOPBACK, **properties: str
) -> Iterator[None]:
    """Announce a gateway as a real one does. The properties may be changed or extended."""
    said: Mapping[str, str] = {"serialnum": serial, "protovers": firmware, **properties}
    info = ServiceInfo(
        mdns.SERVICE_TYPE,
        f"envoy-{serial or 'nobody'}.{mdns.SERVICE_TYPE}",
        addresses=[socket.inet_aton(address)],
        port=port,
        properties=dict(said),
        server=f"envoy-{serial}.local.",
    )
    network = Zeroconf(interfaces=[LOOPBACK])
    try:
        network.register_service(info, cooperating_responders=True)  # without probes, which take a second
        yield
    finally:
        network.close()


@asynccontextmanager
async def announcing(serial: str, port: int) -> AsyncIterator[None]:
    """Like `announced`, for tests that have an event loop."""
    one = announced(serial, port)
    await asyncio.to_thread(one.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(one.__exit__, None, None, None)
