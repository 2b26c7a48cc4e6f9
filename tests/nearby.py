"""Gateways that announce themselves over mDNS, on the loopback interface alone."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from zeroconf import ServiceInfo, Zeroconf

from bridge.gateway.neighbours import SERVICE

LOOPBACK = "127.0.0.1"


@contextmanager
def announced(
    serial: str, port: int, *, firmware: str = "8.3.5167", address: str = LOOPBACK, **properties: str
) -> Iterator[None]:
    """As a gateway does it; more or other properties may be said."""
    said: Mapping[str, str] = {"serialnum": serial, "protovers": firmware, **properties}
    info = ServiceInfo(
        SERVICE,
        f"envoy-{serial or 'nobody'}.{SERVICE}",
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
