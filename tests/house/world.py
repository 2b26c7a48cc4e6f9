"""One simulated world: a house with its gateway, a broker, and the bridge between them, in time that leaps.

All of it lives in one `LeapingLoop`, and the same world does the same each time.
"""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

from bridge.service.bridge import Bridge
from bridge.settings import Settings, load
from house.broker import Broker
from house.gateway import SERIAL, Gateway
from house.model import HOUR_S, House, Kind

SETTLE_S = 5_400.0
"""Time after a fault in which the bridge may still make sure of what it reads."""
START_S = 600.0
"""Time after a start until everything that is asked for seldom has been asked for."""
PREFIX = f"enphase/{SERIAL}/"
UNNEEDED = (
    *("grid", "consumption", "device_data", "device_list", "tariff", "gen_config", "status"),
    *("dry_contacts", "dry_contact_settings"),
)
"""Sources that no number of the site comes from."""
PERIODS: Mapping[str, float] = {
    **dict.fromkeys(UNNEEDED, 0.0),
    "energy": 300.0,
    "production": 600.0,
    "secctrl": 120.0,
    "relay": 60.0,
    "inverters": 900.0,
}
"""Seconds between two polls. What gives a site's solar is asked more often (`World`)."""
BATTERIES_S = 120.0
"""The same of the batteries' own word, where a storage meter or live data measure them."""
INVENTORY_S = 3_600.0
"""The same of the inventory, where there is nothing in it."""
SUMS_S = 120.0
"""The same of the inverters' sums, at sites without a production clamp."""


class World:
    """A house, its gateway, a broker, and a bridge that is started, stopped and killed.

    Time begins at `start`, a local midnight. `clock_offset_s` is by how much the clock of the bridge's computer is
    wrong. `settings` go to the bridge beside those that the world needs.
    """

    def __init__(self, house: House, folder: Path, settings: Mapping[str, Any]) -> None:
        self.house, self.start = house, house.time
        self.gateway = Gateway(house, self.now)
        self.broker = Broker(self._heard)
        self.state = folder / "state"
        self.clock_offset_s = 0.0
        self.calm_from = house.time
        """The time from which on nothing is wrong and everything should be right."""
        self.listeners: list[Callable[[str, bytes], None]] = []
        self._settings = settings
        self._began = asyncio.get_running_loop().time()
        self._bridge: asyncio.Task[None] | None = None

    def now(self) -> float:
        """The true time."""
        return self.start + asyncio.get_running_loop().time() - self._began

    @property
    def is_running(self) -> bool:
        return self._bridge is not None

    def _wall_clock(self) -> float:
        return self.now() + self.clock_offset_s

    def _heard(self, topic: str, payload: bytes) -> None:
        for listener in self.listeners:
            listener(topic, payload)

    async def sleep(self, seconds: float) -> None:
        """Let time pass. A bridge that has ended by itself is an error."""
        await asyncio.sleep(seconds)
        if self._bridge is not None and self._bridge.done():
            self._bridge.result()

    async def until(self, hours: float) -> None:
        """Let time pass until so many hours after the first midnight."""
        await self.sleep(self.start + hours * HOUR_S - self.now())

    async def one_answer(self, path: str, set_wrong: Callable[[], None], set_right: Callable[[], None]) -> None:
        """Let only the next answer of this path be wrong."""
        answered = asyncio.Event()

        def look(found: str) -> None:
            if found == path:
                answered.set()

        set_wrong()
        self.gateway.listeners.append(look)
        await answered.wait()
        self.gateway.listeners.remove(look)
        set_right()

    @contextmanager
    def trouble(self, settle_s: float = SETTLE_S) -> Iterator[None]:
        """Tell for how long something is wrong; so long after its end, everything should be right again."""
        self.calm_from = float("inf")
        yield
        self.calm_from = self.now() + settle_s

    @property
    def is_calm(self) -> bool:
        return self.is_running and self.now() >= self.calm_from

    # What was published

    def document(self, device: str) -> Mapping[str, Any]:
        """The retained document of a device, or nothing."""
        payload = self.broker.retained.get(PREFIX + device)
        found: Mapping[str, Any] = json.loads(payload) if payload else {}
        return found

    def value(self, topic: str) -> str | None:
        """The retained value of a topic below the gateway."""
        payload = self.broker.retained.get(PREFIX + topic)
        return None if payload is None else payload.decode()

    # The bridge

    def _load(self) -> Settings:
        given = dict(self._settings)
        kind = self.house.kind
        sums = {} if kind.production_ct else dict.fromkeys(("energy", "production"), SUMS_S)
        is_measured = (kind.storage_ct and not kind.foreign_w) or kind.live
        batteries = {"power": BATTERIES_S} if is_measured else {}
        inventory = {} if kind.ensemble or kind.has_generator else {"inventory": INVENTORY_S}
        poll = {**PERIODS, **sums, **batteries, **inventory, "profile": kind.profile, **given.pop("poll", {})}
        mqtt = {"protocol": "3.1.1", "payload": "json", "heartbeat": 86_400, **given.pop("mqtt", {})}
        return load(
            gateway={"host": f"http://127.0.0.1:{self.gateway.port}"},
            mqtt={**mqtt, "url": f"mqtt://127.0.0.1:{self.broker.port}"},
            homeassistant={"discovery": "off"},
            site={"third_party_pv": kind.third_party_w > 0},
            poll=poll,
            state_dir=self.state,
            timezone=str(self.house.zone),
            **given,
        )

    async def start_bridge(self) -> None:
        bridge = Bridge(self._load(), now=self._wall_clock)
        self._bridge = asyncio.create_task(bridge.run())
        self.calm_from = max(self.calm_from, self.now() + START_S)

    async def stop_bridge(self) -> None:
        if self._bridge is not None:
            self._bridge.cancel()
            with suppress(asyncio.CancelledError):
                await self._bridge
            self._bridge = None

    async def kill_bridge(self) -> None:
        """End the bridge as `kill -9` does: only what the state folder and the broker have at this moment stays."""
        kept = self.state.with_name("kept")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.state, kept)
        retained, listeners = dict(self.broker.retained), self.listeners
        self.listeners = []
        await self.stop_bridge()
        await asyncio.sleep(0.5)
        self.broker.retained, self.listeners = retained, listeners
        shutil.rmtree(self.state)
        kept.rename(self.state)


@asynccontextmanager
async def world(
    kind: Kind, folder: Path, start: float, *, seed: int = 1, zone: str = "UTC", settings: Mapping[str, Any]
) -> AsyncIterator[World]:
    """A world that lives as long as the context. CLOCK_BOOTTIME of the computer follows the simulated time."""
    loop = asyncio.get_running_loop()
    real = time.clock_gettime

    def clock_gettime(clock: int) -> float:
        return loop.time() if clock == time.CLOCK_BOOTTIME else real(clock)

    made = World(House(kind, start, seed, ZoneInfo(zone)), folder, settings)
    await made.gateway.start()
    await made.broker.start()
    try:
        with patch.object(time, "clock_gettime", clock_gettime):
            yield made
    finally:
        await made.stop_bridge()
        await made.gateway.stop()
        await made.broker.stop()
