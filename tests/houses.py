"""A simulated home with its cloud, a real broker and a subscriber, for the tests of the service."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brokers import Mosquitto, Served, Watcher, program, watching
from running import Clock, confirmed, settings, settled, tree, until

from bridge.service.leftovers import names_of
from bridge.settings import Settings
from bridge.simulator import HOMES, PASSWORD, USER, Home, Personality, Simulator
from bridge.simulator.house import zone_where
from bridge.simulator.presets import PRODUCTION, MeterSpec
from bridge.simulator.serve import Certificate, self_signed, serve

NOON_HOUR = 12.0


class House:
    """A simulated gateway that can be unplugged and keeps its address. Tests move its clock."""

    def __init__(
        self,
        folder: Path,
        broker: Served,
        home: Home | str,
        kind: type[Simulator] = Simulator,
        personality: Personality | str | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.folder, self.broker, self.clock = folder, broker, clock or Clock()
        self.simulator = kind(home, clock=self.clock, start_hour=NOON_HOUR, personality=personality)
        self.secure = self.simulator.home.secure
        self.watcher = Watcher()
        self.cloud = ""
        self.timezone = zone_where(NOON_HOUR, self.clock())
        self.certificate = self_signed(self.simulator.serial)
        self._address = "127.0.0.1:0"
        self._power = AsyncExitStack()

    async def plug(self, certificate: Certificate | None = None) -> None:
        """Start the gateway at its previous address, with the same certificate unless another is given."""
        self.certificate = certificate or self.certificate
        port = int(self._address.rpartition(":")[2])
        up = serve(self.simulator, tls=self.secure, port=port, certificate=self.certificate)
        self._address = await self._power.enter_async_context(up)

    async def unplug(self) -> None:
        await self._power.aclose()

    @property
    def serial(self) -> str:
        return self.simulator.serial

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self._address}"

    @property
    def at_cloud(self) -> dict[str, str]:
        """The settings of the simulated cloud."""
        paths = {"login_url": "login/login.json", "token_url": "tokens", "entrez_url": "entrez-auth-token"}
        return {name: f"http://{self.cloud}/{path}" for name, path in paths.items()}

    def settings(self, **sections: Any) -> Settings:
        """Return settings with a valid token, unless `gateway` has other credentials."""
        own = {"token": self.simulator.token()} if self.secure else {}
        gateway = {"host": self.url, **sections.pop("gateway", own)}
        cloud = self.at_cloud if self.cloud else {}
        sections = {"gateway": gateway, "cloud": cloud, "timezone": self.timezone, **sections}
        return settings(self.folder, self.broker.url, **sections)

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a bridge of its own process that reads this house, as environment variables."""
        return {
            "BRIDGE_GATEWAY__HOST": self.url,
            "BRIDGE_GATEWAY__TOKEN": self.simulator.token(),
            "BRIDGE_MQTT__URL": self.broker.url,
            "BRIDGE_STATE_DIR": str(self.folder / "state"),
            "BRIDGE_TIMEZONE": self.timezone,
        }

    @property
    def account(self) -> dict[str, str]:
        """Credentials for the cloud, in place of a token."""
        return {"username": USER, "password": PASSWORD}

    @property
    def seen(self) -> Mapping[str, str]:
        """The topics and payloads that the broker holds."""
        return tree(self.watcher)

    def topic(self, name: str) -> str | None:
        """Return the payload of a topic of this gateway, or None."""
        return self.seen.get(f"enphase/{self.serial}/{name}")

    @property
    def availability(self) -> dict[str, str]:
        """`online` or `offline` by source."""
        prefix = f"enphase/{self.serial}/availability/"
        return {topic.removeprefix(prefix): text for topic, text in self.seen.items() if topic.startswith(prefix)}

    async def settled(self) -> None:
        """Wait until every source has been polled and published once, and the counters are confirmed."""
        await until(lambda: settled(self.watcher, self.serial) and confirmed(self.watcher, self.serial))

    async def ended(self, of: Settings) -> None:
        """Wait for the last message of a bridge with these settings."""
        await until(lambda: self.seen.get(f"{names_of(of).bridge}/state") == "offline")


@asynccontextmanager
async def house(
    folder: Path, home: str = "three-phase", personality: Personality | str | None = None
) -> AsyncIterator[House]:
    """A running home with its broker and a subscriber."""
    with Mosquitto(folder) as broker:
        async with (
            housed(folder, broker, home, personality=personality) as built,
            watching(broker.port) as built.watcher,
        ):
            yield built


@asynccontextmanager
async def housed(
    folder: Path,
    broker: Served,
    home: Home | str,
    kind: type[Simulator] = Simulator,
    personality: Personality | str | None = None,
    *,
    clock: Clock | None = None,
) -> AsyncIterator[House]:
    """A running home at an existing broker, without a subscriber."""
    built = House(folder, broker, home, kind, personality, clock=clock)
    async with serve(built.simulator, tls=False) as built.cloud:
        await built.plug()
        try:
            yield built
        finally:
            await built.unplug()


async def publish(broker: Served, topic: str, payload: str, *options: str) -> None:
    """Publish a message as another program would."""
    where = ("-h", "127.0.0.1", "-p", str(broker.port))
    command = (program("mosquitto_pub"), *where, "-t", topic, "-m", payload, *options)
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


MAIN_ROOF = HOMES["single-phase"]
"""A gateway with meters of its panels and of the grid."""
BARN = replace(MAIN_ROOF, serial="122303003334", meters=(MeterSpec(PRODUCTION),))
"""A gateway with a meter of its panels only."""
SHARED_POLL = {"grid": 0}
"""The simulated gateway without a grid meter gives an answer there that can't be used."""


@dataclass
class TwoGateways:
    """The gateways of a home, their broker and a subscriber. The sun is the same for both, so the clock is, too."""

    broker: Mosquitto
    watcher: Watcher
    folder: Path
    roof: House
    barn: House

    @property
    def clock(self) -> Clock:
        return self.roof.clock

    def settings(self, *homes: str | None, **sections: Any) -> Settings:
        gateways = [self.entry(house, home) for house, home in zip((self.roof, self.barn), homes, strict=True)]
        return settings(self.folder, self.broker.url, gateways=gateways, poll=SHARED_POLL, **sections)

    @staticmethod
    def entry(house: House, home: str | None, **more: Any) -> dict[str, Any]:
        entry = {"host": house.url, "token": house.simulator.token(), "serial": house.serial, **more}
        return entry if home is None else {**entry, "home": home}

    @property
    def seen(self) -> dict[str, str]:
        return tree(self.watcher)

    def of(self, home: str, base: str = "enphase") -> dict[str, str]:
        """The topics below a home."""
        prefix = f"{base}/home/{home}/"
        return {topic.removeprefix(prefix): text for topic, text in self.seen.items() if topic.startswith(prefix)}

    def number(self, topic: str, home: str = "villa", base: str = "enphase") -> float:
        """A value of a home; `nan` while it is not known."""
        text = self.of(home, base).get(topic, "None")
        return float("nan") if text == "None" else float(text)

    def is_known(self, home: str = "villa", base: str = "enphase") -> bool:
        """Whether the power of the home is known, and its counters, which are confirmed by a second reading."""
        names = ("home/power", "solar/energy_lifetime", "grid/energy_imported")
        return all(self.number(name, home, base) > 0 for name in names)


@asynccontextmanager
async def two_gateways(broker: Mosquitto, folder: Path, barn: Any = BARN) -> AsyncIterator[TwoGateways]:
    clock = Clock()
    async with (
        housed(folder, broker, MAIN_ROOF, clock=clock) as roof,
        housed(folder, broker, barn, clock=clock) as other,
        watching(broker.port) as watcher,
    ):
        roof.watcher = other.watcher = watcher
        yield TwoGateways(broker, watcher, folder, roof, other)
