"""`run`: the service."""

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress

from bridge.commands import log
from bridge.config import Settings
from bridge.service import Bridge


async def until_stopped(work: Coroutine[object, object, None]) -> None:
    """Do the work until SIGTERM or SIGINT."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await task
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _run(settings: Settings) -> None:
    await until_stopped(Bridge(settings).run())


def run(settings: Settings) -> int:
    log.configure(settings.log)
    asyncio.run(_run(settings))
    return 0
