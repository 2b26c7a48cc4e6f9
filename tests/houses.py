"""A simulated home, its cloud, a real broker and somebody who watches: what the service's tests live in."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from brokers import Mosquitto, Served, Watcher, program, watching
from running import Clock, settings, settled, tree, until

from bridge.config import Settings
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.serve import Certificate, self_signed, serve

SUN_UP = 12.0


class House:
    """A gateway that can be unplugged, at an address that stays. Its clock stands still until it is moved."""

    def __init__(self, folder: Path, broker: Served, home: str, kind: type[Simulator] = Simulator) -> None:
        self.folder, self.broker, self.clock = folder, broker, Clock()
        self.simulator = kind(home, clock=self.clock, start_hour=SUN_UP)
        self.secure = self.simulator.home.secure
        self.watcher = Watcher()
        self.cloud = ""
        self.certificate = self_signed(self.simulator.serial)
        self._address = "127.0.0.1:0"
        self._power = AsyncExitStack()

    async def plug(self, certificate: Certificate | None = None) -> None:
        """It comes up at the address where it was, unless told otherwise with the key that it had."""
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
        """The cloud's settings."""
        paths = {"login_url": "login/login.json", "token_url": "tokens", "entrez_url": "entrez-auth-token"}
        return {name: f"http://{self.cloud}/{path}" for name, path in paths.items()}

    def settings(self, **sections: Any) -> Settings:
        """Settings with a good token, unless `gateway` says how else to get in."""
        own = {"token": self.simulator.token()} if self.secure else {}
        gateway = {"host": self.url, **sections.pop("gateway", own)}
        cloud = self.at_cloud if self.cloud else {}
        return settings(self.folder, self.broker.url, gateway=gateway, cloud=cloud, **sections)

    @property
    def account(self) -> dict[str, str]:
        """In place of a token."""
        return {"username": USER, "password": PASSWORD}

    @property
    def seen(self) -> Mapping[str, str]:
        """What the broker holds."""
        return tree(self.watcher)

    def topic(self, name: str) -> str | None:
        """What the broker holds of this gateway."""
        return self.seen.get(f"enphase/{self.serial}/{name}")

    @property
    def availability(self) -> dict[str, str]:
        """`online` or `offline` by source."""
        prefix = f"enphase/{self.serial}/availability/"
        return {topic.removeprefix(prefix): text for topic, text in self.seen.items() if topic.startswith(prefix)}

    async def settled(self) -> None:
        """Until all has been asked once and published."""
        await until(lambda: settled(self.watcher, self.serial))


@asynccontextmanager
async def house(folder: Path, home: str = "three-phase") -> AsyncIterator[House]:
    """A home with everything on."""
    with Mosquitto(folder) as broker:
        async with housed(folder, broker, home) as built, watching(broker.port) as built.watcher:
            yield built


@asynccontextmanager
async def housed(
    folder: Path, broker: Served, home: str, kind: type[Simulator] = Simulator
) -> AsyncIterator[House]:
    """A home at a broker that is there already; nobody watches yet."""
    built = House(folder, broker, home, kind)
    async with serve(built.simulator, tls=False) as built.cloud:
        await built.plug()
        try:
            yield built
        finally:
            await built.unplug()


async def publish(broker: Served, topic: str, payload: str, *options: str) -> None:
    """As another program at the broker."""
    where = ("-h", "127.0.0.1", "-p", str(broker.port))
    command = (program("mosquitto_pub"), *where, "-t", topic, "-m", payload, *options)
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0
