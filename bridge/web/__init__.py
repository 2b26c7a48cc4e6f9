"""The HTTP listener: a page for people, health checks, and metrics.

It needs what the `web` extra installs, and is imported only if `BRIDGE_HTTP__LISTEN` is set.
"""

import asyncio
import logging
import os
from collections.abc import Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

from bridge.http_server import HttpServer, ServerLimits
from bridge.service.status import Status
from bridge.settings import HttpSettings
from bridge.web.app import StatusPage

LOG = logging.getLogger(__name__)
PAGE_LIMITS = ServerLimits(keep_alive=10, answer=15.0, head=16_384, connections=32, per_client=8, backlog=32)
"""Few and short connections, and small requests: a stranger in the network must not slow the bridge down."""
MAX_RETRY_WAIT_S = 60.0


async def listen(settings: HttpSettings, status: Callable[[], Status]) -> None:
    """Serve until cancelled. A failure is logged once and tried again: the bridge works without a listener."""
    logged: set[str] = set()

    def log_failure(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        text = f"no status page at {settings.listen}: {_reason(error)}; the bridge goes on without it"
        LOG.log(
            logging.DEBUG if text in logged else logging.ERROR,
            "%s",
            text,
            exc_info=None if isinstance(error, OSError) else error,
        )
        logged.add(text)

    policy = AsyncRetrying(
        stop=stop_never,
        wait=wait_random_exponential(multiplier=1, min=1, max=MAX_RETRY_WAIT_S),
        retry=retry_if_exception_type(Exception),
        reraise=True,
        before_sleep=log_failure,
    )
    hosts = [name.strip() for name in settings.hosts.split(",")]
    await policy(_serve, settings, StatusPage(status, hosts))


async def _serve(settings: HttpSettings, app: StatusPage) -> None:
    server = HttpServer(app, PAGE_LIMITS)
    host, port = await server.start(*settings.address)
    try:
        LOG.info("status page at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
        await asyncio.get_running_loop().create_future()
    finally:
        await server.aclose()


def _reason(error: BaseException | None) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
