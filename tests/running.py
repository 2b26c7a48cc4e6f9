"""A bridge that runs for a test, a loop whose idle time runs faster, and how tests wait."""

import asyncio
import json
import re
import selectors
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from brokers import Watcher

from bridge.config import Settings
from bridge.service import Bridge

SPEED = 20.0
"""How much sooner an idle wait is over: half a minute of patience takes one and a half seconds."""
PATIENCE = 60.0
LOOK = 0.03
PHASES = ("l1", "l2", "l3", "c1", "c2", "c3", "c4")
SLOW = re.compile(r"/gateway/(last_answer|answer_time|failures)$")
"""Value topics that follow their document at most once a minute."""
STATE = re.compile(r"^[^/]+/\w+/(state$|availability/)")
DISCOVERY = "homeassistant/device/"
TOGETHER = ("site", "energy", "live", "report", "storage")
"""Kinds of which Home Assistant sees one device."""


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until something has come true. The deadline, in real seconds, is there for failures only."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {seconds} s")
        await asyncio.sleep(LOOK * SPEED)


class _Impatient(selectors.DefaultSelector):
    """Waits for sockets as ever, for timers only a part of the time."""

    skipped = 0.0
    """seconds that were not waited for"""

    def select(self, timeout: float | None = None) -> Any:
        started = time.monotonic()
        found = super().select(timeout / SPEED if timeout else timeout)
        waited = time.monotonic() - started
        rest = waited * (SPEED - 1)
        self.skipped += rest if timeout is None else min(rest, max(0.0, timeout - waited))
        return found


class HastyLoop(asyncio.SelectorEventLoop):
    """A loop whose time runs faster while nothing happens.

    Work takes as long as it takes, so that a slow machine trips no timeout. Whatever waits for something that is
    not in this loop (a broker, another program) has the less time.
    """

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return super().time() + self._impatient.skipped


class Clock:
    """A simulator's time: it stands still until it is moved. It begins now, since tokens must be valid now."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


@asynccontextmanager
async def running(settings: Settings, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """The service, stopped as a signal does."""
    task = asyncio.create_task(Bridge(settings, **options).run())
    try:
        yield task
    finally:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=PATIENCE * SPEED)
        if not done:
            stuck = [f"{other.get_name()}: {other.get_stack()}" for other in asyncio.all_tasks()]
            raise AssertionError("the service does not stop:\n" + "\n".join(stuck))
        with suppress(asyncio.CancelledError):
            await task


def settings(folder: Path, broker: str, **sections: Any) -> Settings:
    """Settings of a test: what is not named has its default."""
    return Settings(mqtt={"url": broker} | sections.pop("mqtt", {}), state_dir=folder / "state", **sections)


def tree(watcher: Watcher) -> dict[str, str]:
    """What the broker holds, as far as a subscriber can know."""
    return {topic: payload for topic, payload in watcher.newest.items() if payload}


def flat(document: dict[str, Any]) -> dict[str, str]:
    """The value topics that say the same as a document, below its device."""
    phases = {name: document[name] for name in PHASES if isinstance(document.get(name), dict)}
    plain = {name: value for name, value in document.items() if not isinstance(value, dict) and name != "timestamp"}
    found = {name.replace("timestamp_2", "timestamp"): spelt(value) for name, value in plain.items()}
    return found | {f"{phase}/{name}": spelt(value) for phase, own in phases.items() for name, value in own.items()}


def spelt(value: object) -> str:
    """A JSON value as MQTT.md spells it in a value topic."""
    if value is None or isinstance(value, bool):
        return {None: "None", True: "ON", False: "OFF"}[value]
    return str(value)


def disagreements(seen: Mapping[str, str], serial: str) -> list[str]:
    """Value topics that say something else than their device's document, and what discovery misses."""
    own = {topic: text for topic, text in seen.items() if topic.startswith(f"enphase/{serial}/")}
    own = {topic: text for topic, text in own.items() if not STATE.search(topic)}
    documents = {topic: json.loads(text) for topic, text in own.items() if text[0] == "{"}
    told = {f"{device}/{name}": text for device, body in documents.items() for name, text in flat(body).items()}
    values = {topic: text for topic, text in own.items() if topic not in documents}
    odd = {topic for topic, _ in told.items() ^ values.items() if not SLOW.search(topic)}
    announced = {topic: json.loads(text) for topic, text in seen.items() if topic.startswith(DISCOVERY)}
    wanted = {entity["state_topic"] for body in announced.values() for entity in body["components"].values()}
    wanted |= {_config(serial, device) for device, body in documents.items() if body.get("enabled") is not False}
    return sorted(odd | (wanted - seen.keys()))


def _config(serial: str, topic: str) -> str:
    """Where a device of the tree is announced; some are one device together."""
    _, _, kind, *name = topic.split("/")
    return f"{DISCOVERY}iqgateway_{serial}_{'_'.join([kind] if kind in TOGETHER else [kind, *name])}/config"


def settled(watcher: Watcher, serial: str) -> bool:
    """Whether the first round is over: everything is announced, and every topic is there."""
    seen = tree(watcher)
    return f"{DISCOVERY}iqgateway_{serial}_gateway/config" in seen and not disagreements(seen, serial)
