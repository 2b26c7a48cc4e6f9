"""What our subscribers have: our own retained topics, read before anything is published."""

import asyncio
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from bridge.config import MqttSettings
from bridge.model import BridgeError, Message, Rank
from bridge.mqtt import Broker, MessageRefused

LOG = logging.getLogger(__name__)
FIRST, QUIET = 1.5, 0.3
"""Seconds to the first message, where a broker lets no word of ours pass, and then without another: that is all."""
LONGEST = 3.0
"""Seconds that reading may take in all, connecting included."""
LAST_WORD = "memory/state"
"""What we say once we have subscribed. It comes back behind what is retained; some brokers look for it on the side,
hence the wait after it, which is as long again on a slow one. It clears its own topic, and so leaves nothing."""
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

    # Also the will, for a connection has to have one: nobody else listens to it.
    word = Message(f"{prefix}/{LAST_WORD}", "", rank=Rank.VALUE)
    topics = DOCUMENTS if settings.payload == "json" else VALUES
    subscriptions = [f"{prefix}/{topic}" for topic in (*topics, LAST_WORD)]
    broker = Broker(settings, client_id=client_id, will=word, on_message=take, subscriptions=subscriptions)
    try:
        async with asyncio.timeout(LONGEST):
            await broker.connect()
            await _quiet(broker, word, news)
    except (BridgeError, TimeoutError) as error:
        LOG.info("earlier values can't be read from the broker: %s", str(error) or "too many")
    finally:
        await broker.close()
        broker.abort()
    return found


async def _quiet(broker: Broker, word: Message, news: asyncio.Event) -> None:
    """Until nothing more comes. The first that comes, our own word at the latest, tells how slow the broker is."""
    time = asyncio.get_running_loop().time
    asked, patience = time(), FIRST
    with suppress(MessageRefused):
        await broker.send(word)
    while await _happens(news, patience):
        patience = max(QUIET, time() - asked) if patience == FIRST else patience
        news.clear()


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


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
