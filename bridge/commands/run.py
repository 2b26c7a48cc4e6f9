"""`run`: the service. SIGTERM and SIGINT stop it, SIGHUP makes it read its settings again."""

import asyncio
import faulthandler
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

from bridge.commands import listener, log
from bridge.commands.supervisor import Supervisor
from bridge.config import Settings, load
from bridge.model import BadSetting
from bridge.service import Bridge
from bridge.store import Store

LOG = logging.getLogger(__name__)
STDIN, STDERR = 0, 2


async def until_stopped(
    work: Coroutine[object, object, None], stopping: Callable[[], object] = lambda: None
) -> None:
    """Do the work until SIGTERM or SIGINT; then call `stopping`, and let the work come to its end."""
    task = asyncio.ensure_future(work)

    def stop() -> None:
        stopping()
        task.cancel()

    with suppress(asyncio.CancelledError), _on(stop, signal.SIGTERM, signal.SIGINT):
        await task


@contextmanager
def _on(action: Callable[[], object], *signals: signal.Signals) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in signals:
        loop.add_signal_handler(number, action)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


class Service:
    """A bridge with the newest settings that can be used. Token files are read anew with them."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self._settings, self._supervisor = settings, supervisor
        self._store = Store(settings.state_dir)
        self._bridge = Bridge(settings, store=self._store)
        self._asked = asyncio.Event()

    def reload(self) -> None:
        """Read the settings again, soon."""
        self._asked.set()

    async def run(self) -> None:
        """Serve until cancelled, one bridge after the other."""
        while True:
            await self._serve(self._bridge)

    async def _serve(self, bridge: Bridge) -> None:
        """Until there are new settings: then this bridge takes leave, as at a stop."""
        async with asyncio.TaskGroup() as tasks:
            parts = [
                tasks.create_task(listener.attended(self._settings, bridge), name="bridge"),
                tasks.create_task(self._supervisor.attend(lambda: bridge.condition), name="supervisor"),
            ]
            await self._renewed()
            for part in parts:
                part.cancel()

    async def _renewed(self) -> None:
        """Wait for settings that can be used. Those that can't change nothing."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._supervisor.reloading()
            try:
                return self._take(load())
            except BadSetting as problem:
                LOG.error("the new settings can't be used, the old ones stay: %s", problem)  # noqa: TRY400 - one line
                self._supervisor.ready()

    def _take(self, settings: Settings) -> None:
        """What the disk did not take is in the store alone: it stays, unless the state is to be elsewhere."""
        listener.require(settings)
        store = self._store if settings.state_dir == self._settings.state_dir else Store(settings.state_dir)
        self._bridge = Bridge(settings, store=store)
        self._settings, self._store = settings, store
        log.configure(settings.log)
        LOG.info("settings and tokens are read again: starting with them")


async def _run(settings: Settings) -> None:
    supervisor = Supervisor()
    service = Service(settings, supervisor)
    terminal = os.isatty(STDIN)

    def hang_up() -> None:
        """A terminal that has gone sends the same signal: nobody wants a bridge that is left behind unseen."""
        if terminal and not os.isatty(STDIN):
            signal.raise_signal(signal.SIGTERM)
        else:
            service.reload()

    with _on(hang_up, signal.SIGHUP):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # what came before is done now
        await until_stopped(service.run(), supervisor.stopping)


def run(settings: Settings) -> int:
    listener.require(settings)
    log.configure(settings.log)
    faulthandler.enable(STDERR)  # a watchdog ends us by SIGABRT: the log then says where we hung
    asyncio.run(_run(settings))
    return 0
