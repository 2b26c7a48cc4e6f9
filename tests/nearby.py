"""Announces gateways over mDNS on the loopback interface only."""

import asyncio
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import pytest
from zeroconf import ServiceInfo, Zeroconf

from bridge.gateway import mdns

LOOPBACK = "127.0.0.1"
MDNS_GROUP, MDNS_PORT = "224.0.0.251", 5353
PTR, INTERNET, AUTHORITATIVE = 12, 1, 0x8400
"""Numbers of DNS: a kind of record, a class, and the flags of an answer."""


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


@contextmanager
def announcing_names(count: int) -> Iterator[None]:
    """Announce names again and again, as some devices do, behind which nobody answers what they stand for."""
    service = _labels(mdns.SERVICE_TYPE)
    records = []
    for number in range(count):
        name = _labels(f"nobody{number}")[:-1] + service
        records.append(service + struct.pack(">HHIH", PTR, INTERNET, 4500, len(name)) + name)
    packets = [
        struct.pack(">HHHHHH", 0, AUTHORITATIVE, 0, len(part), 0, 0) + b"".join(part)
        for part in (records[start : start + 10] for start in range(0, count, 10))
    ]
    done = threading.Event()

    def announce() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
            sender.bind(("", MDNS_PORT))
            while not done.wait(0.2):
                for packet in packets:
                    sender.sendto(packet, (MDNS_GROUP, MDNS_PORT))

    thread = threading.Thread(target=announce)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _labels(name: str) -> bytes:
    return b"".join(bytes([len(level)]) + level.encode() for level in name.rstrip(".").split(".")) + b"\0"
