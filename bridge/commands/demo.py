"""`demo`: a simulated home, an embedded broker and the bridge in one process; nothing to install or configure."""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from bridge.commands import embedded, log
from bridge.commands.run import until_stopped
from bridge.commands.screen import Screen
from bridge.config import LogSettings, Settings
from bridge.model import BadSetting
from bridge.service import Bridge
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.serve import serve

START_HOUR = 10.0
"""The simulated day begins in the morning, so that there is sun to see."""


class DemoSettings(Settings):
    """Settings of the demo's own: what is configured on this machine must neither help nor disturb it."""

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
async def _home(name: str) -> AsyncIterator[tuple[str, str, bool]]:
    """The gateway's URL, the cloud's address, and whether the gateway wants a token."""
    simulator = Simulator(name, start_hour=START_HOUR)
    secure = simulator.home.secure
    async with serve(simulator, tls=secure) as address, serve(simulator, tls=False) as cloud:
        yield f"{'https' if secure else 'http'}://{address}", cloud, secure


def _look_on(broker: str) -> str:
    """The line that shows the tree from outside."""
    url = urlsplit(broker)
    return f"mosquitto_sub -h {url.hostname} -p {url.port or 1883} -t 'enphase/#' -v"


async def _demo(home: str, mqtt: str | None) -> None:
    async with AsyncExitStack() as stack:
        state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iqgateway2mqtt-demo-")))
        gateway, cloud, secure = await stack.enter_async_context(_home(home))
        broker = {"url": mqtt} if mqtt else await stack.enter_async_context(embedded.broker())
        settings = _settings(gateway, cloud, broker, state_dir, secure=secure)
        with Screen(f"{home} at {gateway}", _look_on(settings.mqtt.url)) as screen:
            await Bridge(settings, on_sent=screen.show, leave_nothing=True).run()


async def _run(home: str, mqtt: str | None) -> None:
    await until_stopped(_demo(home, mqtt))


def run(home: str, mqtt: str | None) -> int:
    """Returns when Ctrl-C is pressed."""
    log.configure(LogSettings(level="WARNING"))
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    # amqtt again: a client that leaves while it is being served
    logging.getLogger("asyncio").addFilter(lambda record: "client_connected_cb" not in record.getMessage())
    try:
        asyncio.run(_run(home, mqtt))
    except* BrokenPipeError:  # whoever reads our lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print("stopped", file=sys.stderr)
    return 0
