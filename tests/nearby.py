"""Gateways that announce themselves over mDNS, on the loopback interface alone."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import pytest
from zeroconf import ServiceInfo, Zeroconf

from bridge.gateway import neighbours

LOOPBACK = "127.0.0.1"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All programs of a machine hear each other: a service of our own, lest tests that run side by side meet."""
    monkeypatch.setattr(neighbours, "SERVICE", f"_enphase-{os.getpid()}._tcp.local.")


@contextmanager
def announced(
    serial: str, port: int, *, firmware: str = "8.3.5167", address: str = LOOPBACK, **properties: str
) -> Iterator[None]:
    """As a gateway does it; more or other properties may be said."""
    said: Mapping[str, str] = {"serialnum": serial, "protovers": firmware, **properties}
    info = ServiceInfo(
        neighbours.SERVICE,
        f"envoy-{serial or 'nobody'}.{neighbours.SERVICE}",
        addresses=[socket.inet_aton(address)],
        port=port,
        properties=dict(said),
        server=f"envoy-{serial}.local.",
    )
    network = Zeroconf(interfaces=[LOOPBACK])
    try:
        network.register_service(info, cooperating_responders=True)  # no probes: they take a second
        yield
    finally:
        network.close()


@asynccontextmanager
async def announcing(serial: str, port: int) -> AsyncIterator[None]:
    """As `announced`, beside a running loop."""
    one = announced(serial, port)
    await asyncio.to_thread(one.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(one.__exit__, None, None, None)
