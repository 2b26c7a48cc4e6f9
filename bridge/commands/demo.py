"""`demo` runs a simulated home, a broker and the bridge; `simulate` only a simulated or captured gateway."""

import asyncio
import logging
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from amqtt.broker import Broker as EmbeddedBroker
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge.commands.report import configure_log
from bridge.commands.run import until_stopped
from bridge.model import BadSetting, Message, Priority
from bridge.service.bridge import Bridge
from bridge.settings import LOOPBACK, LogSettings, Settings
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.replay import Replay
from bridge.simulator.serve import serve

DISCONNECT_MESSAGE = re.compile(r"client_connected_cb|StreamReaderProtocol\.connection_made")
"""What asyncio logs about amqtt when a client disconnects, in Python 3.12 and in 3.11."""
DEFAULT_PORT = 1883
START_HOUR = 10.0
"""Hour of the day at which the simulation starts: in the morning, so that the sun shines."""


def _free_port() -> int:
    """The default MQTT port if it is free, so that tools find the broker without a port; otherwise any free one."""
    for wanted in (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on the loopback interface")


@asynccontextmanager
async def _embedded_broker() -> AsyncIterator[dict[str, str]]:
    """Run a small MQTT 3.1.1 broker during the block; yields the settings for it.

    It does not answer clients that speak MQTT 5.
    """
    address = f"{LOOPBACK}:{_free_port()}"
    config = {
        "listeners": {"default": {"type": "tcp", "bind": address}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    running = EmbeddedBroker(config)
    await running.start()
    try:
        yield {"url": f"mqtt://{address}", "protocol": "3.1.1"}
    finally:
        await running.shutdown()


SHOWN_TOPICS = (
    "/live/pv/",
    "/live/grid/",
    "/live/storage/",
    "/live/load/",
    "/meter/production/",
    "/meter/net-consumption/",
    "/meter/storage/",
    "/energy/production/",
    "/gateway/inverters",
    "/gateway/firmware",
)
"""Parts of the topics that the table shows, in this order; the tree has hundreds of topics."""

SHOWN_QUANTITIES = frozenset(
    {"power", "soc", "energy_today", "energy_lifetime", "inverters_total", "inverters_reporting", "firmware"}
)


RESERVED_LINES = 12
"""Lines of the terminal that are used for other things than values."""


class Screen:
    """Shows the sent messages: as a live table on a terminal, otherwise as lines. Call `show` with each message."""

    def __init__(self, title: str, watch_line: str) -> None:
        self._title, self._watch_line = title, watch_line
        self._values: dict[str, str] = {}
        self._count = 0
        self._topics: set[str] = set()
        self._live: Live | None = None
        self._is_lost = False
        """Whether the output can't be written any more. That ends the demo, and its end must not fail, too."""

    def __enter__(self) -> Self:
        print(
            f"Simulated home: {self._title}\nWatch from another terminal:  {self._watch_line}\nCtrl-C stops it.\n"
        )
        if sys.stdout.isatty():
            self._live = Live(get_renderable=self._table, console=Console(), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, message: Message) -> None:
        self._count += 1
        self._topics.add(message.topic)
        if self._live is None:
            if message.priority > Priority.CLEANUP and not self._is_lost:
                self._is_lost = True
                print(message.topic, message.payload, flush=True)
                self._is_lost = False
        elif message.content_type is None and self._wanted(message.topic):
            self._values[message.topic] = message.payload

    def _wanted(self, topic: str) -> bool:
        return topic.rpartition("/")[2] in SHOWN_QUANTITIES and any(part in topic for part in SHOWN_TOPICS)

    def _table(self) -> Group:
        table = Table("topic", "value")
        table.columns[1].justify = "right"
        room = max(5, Console().size.height - RESERVED_LINES)
        for topic in sorted(self._values, key=self._order)[:room]:
            table.add_row(topic, self._values[topic])
        note = f"{len(self._topics)} topics, {self._count} messages.  {self._watch_line}"
        return Group(table, Text(note))

    def _order(self, topic: str) -> tuple[int, str]:
        place = next((i for i, part in enumerate(SHOWN_TOPICS) if part in topic), len(SHOWN_TOPICS))
        return place, topic


class DemoSettings(Settings):
    """Settings that ignore the environment and files of this machine."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _settings(gateway: str, cloud: str, broker: dict[str, str], state_dir: Path, *, secure: bool) -> Settings:
    account = {"username": USER, "password": PASSWORD} if secure else {}
    try:
        return DemoSettings(
            gateway={"host": gateway, **account},
            cloud={
                "login_url": f"http://{cloud}/login/login.json",
                "token_url": f"http://{cloud}/tokens",
                "entrez_url": f"http://{cloud}/entrez-auth-token",
            },
            mqtt=broker,
            poll={"profile": "live", "inverters": 60},
            state_dir=state_dir,
        )
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
    raise BadSetting(f"--mqtt: {problem}")  # outside of the handler: the URL may hold a password


@asynccontextmanager
async def _simulated_home(name: str) -> AsyncIterator[tuple[str, str, bool]]:
    """Run a simulated home; yields the gateway's URL, the cloud's address, and whether a token is needed."""
    simulator = Simulator(name, start_hour=START_HOUR)
    secure = simulator.home.secure
    async with serve(simulator, tls=secure) as address, serve(simulator, tls=False) as cloud:
        yield f"{'https' if secure else 'http'}://{address}", cloud, secure


def _watch_line(broker: str) -> str:
    """A command that shows all topics from another terminal."""
    url = urlsplit(broker)
    return f"mosquitto_sub -h {url.hostname} -p {url.port or 1883} -t 'enphase/#' -v"


async def _demo(home: str, mqtt: str | None) -> None:
    async with AsyncExitStack() as stack:
        state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iqgateway2mqtt-demo-")))
        gateway, cloud, secure = await stack.enter_async_context(_simulated_home(home))
        broker = {"url": mqtt} if mqtt else await stack.enter_async_context(_embedded_broker())
        settings = _settings(gateway, cloud, broker, state_dir, secure=secure)
        with Screen(f"{home} at {gateway}", _watch_line(settings.mqtt.url)) as screen:
            await Bridge(settings, on_sent=screen.show, remove_at_end=True).run()


async def _run(home: str, mqtt: str | None) -> None:
    await until_stopped(_demo(home, mqtt))


def run(home: str, mqtt: str | None) -> int:
    """Run the command until Ctrl-C.

    Raises:
        BadSetting: `mqtt` is no address of a broker.
        OSError: there is no free port.
    """
    configure_log(LogSettings(level="WARNING"))
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    # amqtt logs this when a client disconnects while it is being served
    logging.getLogger("asyncio").addFilter(lambda record: not DISCONNECT_MESSAGE.search(record.getMessage()))
    asyncio.run(_run(home, mqtt))
    print("stopped", file=sys.stderr)
    return 0


# simulate


async def _serve_alone(app: Simulator | Replay, name: str, host: str, port: int, *, secure: bool) -> None:
    async with serve(app, tls=secure, host=host, port=port) as address, serve(app, tls=False) as cloud:
        scheme = "https" if secure else "http"
        print(f"{name}: gateway {app.serial} at {scheme}://{address}, its cloud at http://{cloud}\n")
        print("Settings for `iqgateway2mqtt run`:")
        print(f"BRIDGE_GATEWAY__HOST={scheme}://{address}")
        if secure:
            print(f"BRIDGE_GATEWAY__TOKEN={app.token()}")
            print("or, in place of the token,")
            print(f"BRIDGE_GATEWAY__USERNAME={USER} BRIDGE_GATEWAY__PASSWORD='{PASSWORD}'")
            print(f"BRIDGE_CLOUD__LOGIN_URL=http://{cloud}/login/login.json")
            print(f"BRIDGE_CLOUD__TOKEN_URL=http://{cloud}/tokens")
            print(f"BRIDGE_CLOUD__ENTREZ_URL=http://{cloud}/entrez-auth-token")
        print("\nCtrl-C stops it.", flush=True)
        await asyncio.Event().wait()


async def _simulate(home: str, host: str, port: int, capture: Path | None) -> None:
    if capture is None:
        simulator = Simulator(home, start_hour=START_HOUR)
        work = _serve_alone(simulator, home, host, port, secure=simulator.home.secure)
    else:
        replay = Replay(capture)
        work = _serve_alone(replay, f"{capture.name}, firmware {replay.firmware}", host, port, secure=replay.secure)
    await until_stopped(work)


def run_simulator(home: str, host: str, port: int, capture: Path | None = None) -> int:
    """Run the command until Ctrl-C.

    Raises:
        OSError: the port is in use, or the capture can't be read.
        BadSetting: the capture is not one.
    """
    asyncio.run(_simulate(home, host, port, capture))
    return 0
