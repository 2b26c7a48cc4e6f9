"""The listener's sockets: few and short connections, small requests; a port that is taken costs nothing else."""

import asyncio
import logging
import os
from collections.abc import Callable

import uvicorn
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from bridge.config import HttpSettings
from bridge.service import Status
from bridge.web.app import App

LOG = logging.getLogger(__name__)
CONNECTIONS = 32
"""How many may be open; what comes then is hung up on."""
PATIENCE = 15.0
"""Seconds that a connection has until the end of its next answer."""
KEEP_ALIVE = 10
LONGEST_HEAD = 16_384
BACKLOG = 16
OPEN = "open"
"""Whether the listener is still there: a connection may have been accepted just before it ended."""
RETRY_LAST = 60.0


async def listen(settings: HttpSettings, status: Callable[[], Status]) -> None:
    """Serve until cancelled. Where that can't be, say so once, and try again: the bridge needs no listener."""
    told: set[str] = set()

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        text = f"no status page at {settings.listen}: {_reason(error)}; the bridge goes on without it"
        LOG.log(
            logging.DEBUG if text in told else logging.ERROR,
            "%s",
            text,
            exc_info=None if isinstance(error, OSError) else error,
        )
        told.add(text)

    policy = AsyncRetrying(
        stop=stop_never,
        wait=wait_random_exponential(multiplier=1, min=1, max=RETRY_LAST),
        retry=retry_if_exception_type(Exception),
        reraise=True,
        before_sleep=tell,
    )
    hosts = [name.strip() for name in settings.hosts.split(",")]
    await policy(_serve, settings, App(status, hosts))


async def _serve(settings: HttpSettings, app: App) -> None:
    """uvicorn's protocol without uvicorn's server, which would wake a sleeping machine ten times a second."""
    config, state, shared = _config(app), ServerState(), {OPEN: True}
    loop, (wanted, port) = asyncio.get_running_loop(), settings.address
    server = await loop.create_server(lambda: _Connection(config, state, shared), wanted, port, backlog=BACKLOG)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        LOG.info("status page at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
        await loop.create_future()
    finally:
        shared[OPEN] = False
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()


def _reason(error: BaseException | None) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


class _Connection(H11Protocol):
    """One that takes its time is hung up on, whether it says nothing, says it slowly, or does not listen."""

    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS or not self.app_state[OPEN]:
            transport.abort()
        else:
            self._await_answer()

    def on_response_complete(self) -> None:
        self._await_answer()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _await_answer(self) -> None:
        self._rest()
        self._watch = self.loop.call_later(PATIENCE, self.transport.abort)

    def _rest(self) -> None:
        if self._watch is not None:
            self._watch.cancel()


def _config(app: App) -> uvicorn.Config:
    """uvicorn without logs and patience."""
    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        h11_max_incomplete_event_size=LONGEST_HEAD,
    )
    config.load()
    return config
