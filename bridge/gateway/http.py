"""What both HTTP clients of this edge share: bounded bodies, translated errors, short retries, quiet logs."""

import logging
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from bridge.gateway.errors import ConnectionFault
from bridge.model import BadAnswer, Unavailable

LOG = logging.getLogger(__name__)
UNKNOWN = "the name is unknown in this network"
MAX_BODY = 8 * 1024 * 1024
PIECE = 64 * 1024
PLAIN = {"Accept-Encoding": "identity", "User-Agent": "iqgateway2mqtt"}
"""Nothing is ever unpacked: packed bytes could swell a thousandfold."""


def quiet_libraries() -> None:
    """Keep httpcore's DEBUG lines (they hold Set-Cookie) and httpx's line for each request out of every log.

    zeroconf tells by a traceback of each interface that nothing can be sent on.
    """
    for name in ("httpcore", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)


def spare_searches() -> None:
    """httpcore 1.0 tries to import sniffio at each step of a request, and does without it where there is none.

    anyio brings it no more since 4.12. To look for it through all of `sys.path` costs a fifth of a request's CPU
    time (docs/performance.md); a `None` among the modules is how Python is told that there is none.
    """
    if "sniffio" not in sys.modules and find_spec("sniffio") is None:
        sys.modules["sniffio"] = None  # type: ignore[assignment] # the import system documents it so


def short_retries(attempts: int, longest_wait: float) -> AsyncRetrying:
    """For faults of a moment only; a longer outage waits for the next tick."""
    return AsyncRetrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=longest_wait / 4, max=longest_wait),
        retry=retry_if_exception_type(ConnectionFault),
        reraise=True,
        before_sleep=_log_retry,
    )


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    LOG.debug("%s: trying again in %.1f s", error, state.upcoming_sleep)


@contextmanager
def translated(name: str, unknown: str = "") -> Iterator[None]:
    """The one place where the library's errors become ours; their chain is cut, for it holds the request.

    `unknown` is what to do where the name can't be resolved.
    """
    try:
        yield
    except httpx.TimeoutException as error:
        verb = "can't be reached" if isinstance(error, httpx.ConnectTimeout) else "did not answer"
        raise Unavailable(f"{name} {verb} in time") from None
    except (httpx.TransportError, OSError, UnicodeError) as error:
        reason = _reason(error)
        raise ConnectionFault(f"no connection to {name}: {reason}{unknown * (reason == UNKNOWN)}") from None


def _reason(error: BaseException) -> str:
    """The first cause that says something, in plain words."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                "its certificate can't be verified: check this computer's clock, or name a proxy's certificate "
                "in BRIDGE_CLOUD__CA_FILE"
            )
        if isinstance(cause, ssl.SSLError):
            return f"TLS fails ({cause.reason or 'no reason given'})"
        if isinstance(cause, socket.gaierror):
            return UNKNOWN
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    return "the connection broke off"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            error = error.__cause__ or error.__context__


def bounded(limit: int) -> Callable[[httpx.Response], Awaitable[None]]:
    """A response hook: no body, those of refusals included, is read beyond `limit` bytes."""

    async def bind(response: httpx.Response) -> None:
        response.headers.pop("Content-Encoding", None)
        if isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _Bounded(response.stream, limit)

    return bind


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, limit: int) -> None:
        self._inner = inner
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """In large pieces: whoever collects millions of single bytes needs forty times their size."""
        size, piece = 0, bytearray()
        async for part in self._inner:
            size += len(part)
            if size > self._limit:
                raise BadAnswer(f"the answer is longer than {self._limit} bytes")
            piece += part
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)

    async def aclose(self) -> None:
        await self._inner.aclose()
