"""Runs a bridge for a test; provides an event loop that shortens idle waits, and functions to wait with."""

import asyncio
import json
import re
import selectors
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from brokers import TIMEOUT_S, Watcher

from bridge.service.bridge import Bridge
from bridge.settings import Settings

SPEED_FACTOR = 20.0
"""Factor by which idle waits are shorter: half a minute takes one and a half seconds."""
POLL_INTERVAL_S = 0.03
"""Real seconds between two looks at a condition."""
AXES = ("l1", "l2", "l3", "c1", "c2", "c3", "c4")
SLOW_TOPIC = re.compile(r"/gateway/(last_answer|answer_time|failures)$")
"""Value topics that are published at most once a minute, unlike their document."""
NUMBER = re.compile(r"-?[\d.]+")
URGENT_WH = 10
STATE_TOPIC = re.compile(r"^[^/]+/\w+/(state$|events$|availability/|re(quest|sponse)$|.+/set$)")
COUNTER_TOPIC = re.compile(r"/(energy_(lifetime|delivered|received|charged|discharged)|apparent_energy)$")
ZERO_COUNTERS = tuple(
    f"energy/{name}/energy_lifetime"
    for name in ("production", "production-eim", "production-rgm", "consumption-eim")
)
"""Counters that are 0 where a home lacks the equipment: a zero is published after a quarter of an hour only."""
DISCOVERY_PREFIX = "homeassistant/device/"
NEWEST_COMMAND = "/command/text"
"""A topic that is announced before there is any command."""
GROUPED_KINDS = ("site", "energy", "live", "report", "storage", "limit")
"""The kinds of devices that Home Assistant shows as one device."""


async def until(condition: Callable[[], bool], seconds: float = TIMEOUT_S) -> None:
    """Wait until a condition is true, and fail after this many real seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {seconds} s")
        await asyncio.sleep(POLL_INTERVAL_S * SPEED_FACTOR)


class _Impatient(selectors.DefaultSelector):
    """A selector that waits for sockets as usual, but for timers only a part of their time."""

    skipped = 0.0
    """The seconds that were skipped."""

    def select(self, timeout: float | None = None) -> Any:
        started = time.monotonic()
        found = super().select(timeout / SPEED_FACTOR if timeout else timeout)
        waited = time.monotonic() - started
        rest = waited * (SPEED_FACTOR - 1)
        self.skipped += rest if timeout is None else min(rest, max(0.0, timeout - waited))
        return found


class HastyLoop(asyncio.SelectorEventLoop):
    """An event loop whose time runs faster while it is idle.

    Its time does not run faster while it works, so that a slow machine causes no timeouts. Code that waits for
    something outside of the loop (a broker, another program) has less time.
    """

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return super().time() + self._impatient.skipped


class Clock:
    """A simulator's clock, which only tests move. It begins now by default, because tokens must be valid now."""

    def __init__(self, now: float | None = None) -> None:
        self.now = float(int(time.time())) if now is None else now

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


@asynccontextmanager
async def ticking(clock: Clock) -> AsyncIterator[None]:
    """Let a clock go as the loop does, second by second."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)
            clock.forward(1)

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()


@asynccontextmanager
async def running(settings: Settings, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Run the service, and stop it as a signal does."""
    task = asyncio.create_task(Bridge(settings, **options).run())
    try:
        yield task
    finally:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=TIMEOUT_S * SPEED_FACTOR)
        if not done:
            stuck = [f"{other.get_name()}: {other.get_stack()}" for other in asyncio.all_tasks()]
            raise AssertionError("the service does not stop:\n" + "\n".join(stuck))
        with suppress(asyncio.CancelledError):
            await task


def settings(folder: Path, broker: str, **sections: Any) -> Settings:
    """Return settings with defaults except for the given ones."""
    return Settings(mqtt={"url": broker} | sections.pop("mqtt", {}), state_dir=folder / "state", **sections)


def tree(watcher: Watcher) -> dict[str, str]:
    """Return the topics and payloads that the broker holds, as a subscriber has seen them."""
    return {topic: payload for topic, payload in watcher.newest.items() if payload}


def flat(document: dict[str, Any]) -> dict[str, str]:
    """Return the values of a document as payloads of the value topics below its device."""
    phases = {name: document[name] for name in AXES if isinstance(document.get(name), dict)}
    plain = {name: value for name, value in document.items() if not isinstance(value, dict) and name != "timestamp"}
    found = {name.replace("timestamp_2", "timestamp"): to_text(value) for name, value in plain.items()}
    return found | {
        f"{phase}/{name}": to_text(value) for phase, own in phases.items() for name, value in own.items()
    }


def to_text(value: object) -> str:
    """Return a JSON value as the payload of a value topic, as MQTT.md specifies it."""
    if value is None or isinstance(value, bool):
        return {None: "None", True: "ON", False: "OFF"}[value]
    return str(value)


def disagreements(seen: Mapping[str, str], serial: str, *, exact: bool = False) -> list[str]:
    """Return the value topics that differ from their device's document, and the topics missing in discovery.

    Unless these must be `exact`, energies may differ by what waits for its pace.
    """
    own = {topic: text for topic, text in seen.items() if topic.startswith(f"enphase/{serial}/")}
    own = {topic: text for topic, text in own.items() if not STATE_TOPIC.search(topic)}
    documents = {topic: json.loads(text) for topic, text in own.items() if text[0] == "{"}
    told = {f"{device}/{name}": text for device, body in documents.items() for name, text in flat(body).items()}
    values = {topic: text for topic, text in own.items() if topic not in documents}
    odd = {topic for topic, _ in told.items() ^ values.items() if not SLOW_TOPIC.search(topic)}
    odd = {topic for topic in odd if exact or not _may_wait(topic, told, values)}
    announced = {topic: json.loads(text) for topic, text in seen.items() if topic.startswith(DISCOVERY_PREFIX)}
    entities = [entity for body in announced.values() for entity in body["components"].values()]
    wanted = {entity["state_topic"] for entity in entities if entity["platform"] != "event" and len(entity) > 1}
    wanted = {topic for topic in wanted if not topic.endswith(NEWEST_COMMAND)}
    wanted |= {_config(serial, device) for device, body in documents.items() if body.get("enabled") is not False}
    return sorted(odd | (wanted - seen.keys()))


def _may_wait(topic: str, told: Mapping[str, str], values: Mapping[str, str]) -> bool:
    """Return whether the newest value of an energy may wait for its pace, for it has moved by less than 10 Wh."""
    pair = (told.get(topic, ""), values.get(topic, ""))
    numbers = [float(text) for text in pair if "energy" in topic and NUMBER.fullmatch(text)]
    return len(numbers) == len(pair) and abs(numbers[0] - numbers[1]) < URGENT_WH


def _config(serial: str, topic: str) -> str:
    """Return the discovery topic of a device. Some devices share one."""
    _, _, kind, *name = topic.replace("/acb/", "/inverter/").split("/")  # AC Batteries report as inverters do
    device = "_".join([kind] if kind in GROUPED_KINDS else [kind, *name])
    if kind == "command":
        device = "gateway_control"
    return f"{DISCOVERY_PREFIX}iqgateway_{serial}_{device}/config"


def confirmed(watcher: Watcher, serial: str) -> bool:
    """Return whether all counters have a value: each first reading was confirmed by a second one."""
    prefix = f"enphase/{serial}/"
    own = {topic.removeprefix(prefix): text for topic, text in tree(watcher).items() if topic.startswith(prefix)}
    return not any(
        COUNTER_TOPIC.search(topic) and text == "None" for topic, text in own.items() if topic not in ZERO_COUNTERS
    )


def settled(watcher: Watcher, serial: str, *, exact: bool = False) -> bool:
    """Return whether the first round is over: all devices are announced and all topics have a value."""
    seen, config = tree(watcher), f"{DISCOVERY_PREFIX}iqgateway_{serial}_gateway/config"
    return config in seen and not disagreements(seen, serial, exact=exact)
