"""The HTTP listener beside a bridge: loaded only where one is wanted."""

import asyncio
import importlib

from bridge.config import Settings
from bridge.model import BadSetting
from bridge.service import Bridge


def require(settings: Settings) -> None:
    """Say at once what is not installed.

    Raises:
        BadSetting: there is nothing to listen with.
    """
    if settings.http.listen is None:
        return
    try:
        importlib.import_module("bridge.web")
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        raise BadSetting(f"BRIDGE_HTTP__LISTEN: {package} is missing: install 'iqgateway2mqtt[web]'") from None


async def attended(settings: Settings, bridge: Bridge) -> None:
    """The bridge and, where one is wanted, its listener: both end together, and only by being cancelled."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="bridge")
        if settings.http.listen is not None:
            from bridge.web import listen  # noqa: PLC0415 - needs the web extra

            tasks.create_task(listen(settings.http, bridge.status), name="listener")
