"""What our subscribers have: our own retained topics, read before anything is published."""

import asyncio
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence

from bridge.config import MqttSettings
from bridge.model import BridgeError, Message, Rank
from bridge.mqtt import Broker

LOG = logging.getLogger(__name__)
FIRST, QUIET = 1.5, 0.3
"""Seconds to the first retained message, from a slow broker, and then without another: there are no more."""
LONGEST = 3.0
"""Seconds that reading may take in all, connecting included."""
LAST_WORD = "memory/state"
PHASE_DEPTH = 2
"""Slashes of `meter/production/l1`: no document is nested more deeply."""
VALUES = (
    *("meter/+/+", "meter/+/+/+", "energy/+/+", "site/+/+"),
    *("inverter/+/energy_lifetime", "inverter/+/+/energy_lifetime"),
    *("inverter/+/energy_charged", "inverter/+/energy_discharged"),
)
"""Where counters stand below a gateway."""
DOCUMENTS = ("meter/+", "energy/+", "site/+", "inverter/+")


async def retained(settings: MqttSettings, client_id: str, prefix: str) -> Mapping[str, float]:
    """Numbers below a topic prefix, by the rest of their topic; what the broker has told within three seconds.

    A broker that is down tells nothing: the bridge must start all the same.
    """
    found: dict[str, float] = {}
    news = asyncio.Event()

    def take(topic: str, payload: bytes, is_retained: bool) -> None:
        if is_retained:
            found.update(_numbers(topic.removeprefix(f"{prefix}/"), payload))
        news.set()

    # The will says nothing that anybody listens to; a connection has to have one.
    will = Message(f"{prefix}/{LAST_WORD}", "", rank=Rank.VALUE)
    topics = DOCUMENTS if settings.payload == "json" else VALUES
    subscriptions = [f"{prefix}/{topic}" for topic in topics]
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
    patience = FIRST
    while True:
        try:
            async with asyncio.timeout(patience):
                await news.wait()
        except TimeoutError:
            return
        news.clear()
        patience = QUIET


def _numbers(topic: str, payload: bytes) -> Sequence[tuple[str, float]]:
    """That of a value topic; those of a document, by the topics that they would have."""
    try:
        return list(_numbers_in(topic, json.loads(payload)))
    except (ValueError, RecursionError, OverflowError):
        return ()


def _numbers_in(topic: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict) and topic.count("/") <= PHASE_DEPTH:
        for name, item in value.items():
            yield from _numbers_in(f"{topic}/{name}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield topic, float(value)
