"""Publishes what pyenphase reads from a gateway, each value to its own topic: a script that people would write.

python benchmarks/script.py ADDRESS TOKEN BROKER_PORT [--every SECONDS] [--on-change]
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from pyenphase import Envoy
from pyenphase.exceptions import EnvoyError

PARTS = (
    *("system_production", "ctmeters", "ctmeters_phases", "inverters"),
    *("encharge_inventory", "encharge_power", "encharge_aggregate", "tariff"),
)


def values(topic: str, value: object) -> Iterator[tuple[str, object]]:
    """Find the numbers and texts in a part of pyenphase's data, each with its topic."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from values(f"{topic}/{key}", item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from values(f"{topic}/{field.name}", getattr(value, field.name))
    elif isinstance(value, str | int | float):
        yield topic, value


class Publisher:
    """Publishes the data of a gateway; with `on_change` only the values that differ from the last ones."""

    def __init__(self, port: int, *, on_change: bool) -> None:
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._on_change = on_change
        self._last: dict[str, object] = {}
        self.sent = 0

    def publish(self, data: object) -> None:
        for part in PARTS:
            for topic, value in values(f"script/{part}", getattr(data, part)):
                if not self._on_change or self._last.get(topic) != value:
                    self._client.publish(topic, str(value), retain=True)
                    self._last[topic] = value
                    self.sent += 1


async def opened(address: str, token: str) -> Envoy:
    envoy = Envoy(address)
    await envoy.setup()
    await envoy.authenticate(token=token)
    return envoy


async def run(address: str, token: str, publisher: Publisher, every: float) -> None:
    envoy = await opened(address, token)
    due = time.monotonic()
    while True:
        try:
            publisher.publish(await envoy.update())
        except EnvoyError as error:
            print(error, file=sys.stderr)
        due = max(due + every, time.monotonic())
        await asyncio.sleep(due - time.monotonic())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("token")
    parser.add_argument("broker_port", type=int)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--on-change", action="store_true")
    asked = parser.parse_args()
    asyncio.run(
        run(asked.address, asked.token, Publisher(asked.broker_port, on_change=asked.on_change), asked.every)
    )
