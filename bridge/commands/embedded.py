"""A small MQTT 3.1.1 broker for the demo, in this process. It is no reference: use a real one for anything else."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from amqtt.broker import Broker

USUAL_PORT = 1883
LOOPBACK = "127.0.0.1"


def _free_port() -> int:
    """The usual port where it is free, so that tools find it unasked, else any."""
    for wanted in (USUAL_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on the loopback interface")


@asynccontextmanager
async def broker() -> AsyncIterator[dict[str, str]]:
    """Runs until the block is left; yields the settings for it. It is silent where MQTT 5 is spoken to it."""
    address = f"{LOOPBACK}:{_free_port()}"
    config = {
        "listeners": {"default": {"type": "tcp", "bind": address}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    running = Broker(config)
    await running.start()
    try:
        yield {"url": f"mqtt://{address}", "protocol": "3.1.1"}
    finally:
        await running.shutdown()
