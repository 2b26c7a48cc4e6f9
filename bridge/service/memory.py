"""What our subscribers have: our own retained topics, read before anything is published."""

import asyncio
import logging
import math
from collections.abc import Mapping

from bridge.config import MqttSettings
from bridge.model import BridgeError, Message, Rank
from bridge.mqtt import Broker

LOG = logging.getLogger(__name__)
QUIET = 0.3
"""Seconds without another retained message after which there are no more."""
LONGEST = 3.0
"""Seconds that reading may take in all, connecting included."""
LAST_WORD = "memory/state"
COUNTERS = (
    *("meter/+/+", "meter/+/+/+", "energy/+/+", "site/+/+"),
    *("inverter/+/energy_lifetime", "inverter/+/+/energy_lifetime"),
    *("inverter/+/energy_charged", "inverter/+/energy_discharged"),
)
"""Where counters stand below a gateway."""


async def retained(settings: MqttSettings, client_id: str, prefix: str) -> Mapping[str, float]:
    """Numbers below a topic prefix, by the rest of their topic; what the broker has told within three seconds.

    A broker that is down tells nothing: the bridge must start all the same.
    """
    found: dict[str, float] = {}
    news = asyncio.Event()

    def take(topic: str, payload: bytes, is_retained: bool) -> None:
        value = _number(payload)
        if is_retained and value is not None:
            found[topic.removeprefix(f"{prefix}/")] = value
        news.set()

    # The will says nothing that anybody listens to; a connection has to have one.
    will = Message(f"{prefix}/{LAST_WORD}", "", rank=Rank.VALUE)
    subscriptions = [f"{prefix}/{counters}" for counters in COUNTERS]
    broker = Broker(settings, client_id=client_id, will=will, on_message=take, subscriptions=subscriptions)
    try:
        async with asyncio.timeout(LONGEST):
            await broker.connect()
            await _quiet(news)
    except (BridgeError, TimeoutError) as error:
        LOG.info("earlier values can't be read from the broker: %s", str(error) or "too many")
    finally:
        await broker.close()
        broker.abort()
    return found


async def _quiet(news: asyncio.Event) -> None:
    while True:
        news.clear()
        try:
            async with asyncio.timeout(QUIET):
                await news.wait()
        except TimeoutError:
            return


def _number(payload: bytes) -> float | None:
    try:
        value = float(payload)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
