"""What the connections to gateway and cloud share: TLS with a pinned key, bounded bodies, errors, retries, quiet
logs.

The gateway's certificate is self-signed, so its public key is pinned on first use. The key is checked at the end of
the handshake, before any request, so that another device gets neither token nor cookie. A new certificate for the
same key is accepted, since only the key proves that it is the same gateway.
"""

import asyncio
import hashlib
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from bridge.gateway.errors import BrokenOff, ConnectionFault, KeyChanged, TlsFault, UnknownName
from bridge.model import MEGABYTE, BadAnswer, BridgeError, Unavailable

LOG = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
MAX_BODY_BYTES = 4 * MEGABYTE
"""No answer is longer, whatever was asked for."""
PIECE_BYTES = 64 * 1024
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "iqgateway2mqtt"}
"""Headers of every request. Answers come uncompressed: that avoids decompression bombs."""


def quiet_libraries() -> None:
    """Silence libraries in every log: httpcore's DEBUG lines hold Set-Cookie, and httpx logs each request.

    zeroconf logs a traceback for each network interface on which nothing can be sent.
    """
    for name in ("httpcore", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)


async def short_retries(work: Callable[[], Awaitable[ResultT]], attempts: int, longest_wait: float) -> ResultT:
    """Do some work, and do it again after passing faults, with pauses of `longest_wait` seconds at most; a longer
    outage waits for the next poll.
    """
    try:
        return await work()
    except ConnectionFault as fault:
        first = [fault]

    async def again() -> ResultT:
        if first:
            raise first.pop()
        return await work()

    # tenacity takes as long to begin as a fifth of a request, so it is asked after a failure only
    policy = AsyncRetrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=longest_wait / 4, max=longest_wait),
        retry=retry_if_exception_type(ConnectionFault),
        reraise=True,
        before_sleep=_log_retry,
    )
    return await policy(again)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    LOG.debug("%s: trying again in %.1f s", error, state.upcoming_sleep)


class RequestLog(logging.LoggerAdapter[logging.Logger]):
    """Logs requests at DEBUG: a line for each, with path, status, bytes and milliseconds, and nothing secret.

    Only the path of a URL is logged, no query, header or body. `prefix` begins each line, and `keys` are those of
    its record.
    """

    def __init__(self, prefix: str = "", **keys: str) -> None:
        super().__init__(LOG, keys)
        self._prefix = prefix

    async def answered(self, response: httpx.Response) -> None:
        """Log an answer of any status. As a response hook of httpx, it has to come after `bounded`."""
        if self.isEnabledFor(logging.DEBUG):
            size = len(await response.aread())  # its time is known only then
            asked, ms = response.request, response.elapsed.total_seconds() * 1000
            line = f"{self._prefix}%s %s: %d, %d bytes, %.0f ms"
            self.debug(line, asked.method, asked.url.path, response.status_code, size, ms)

    def failed(self, method: str, path: str, reason: object, seconds: float) -> None:
        """Log a request without a whole answer."""
        self.debug(f"{self._prefix}%s %s: %s, %.0f ms", method, path, reason, seconds * 1000)


@contextmanager
def translated(log: RequestLog, name: str, method: str, path: str, unknown_name: str = "") -> Iterator[None]:
    """A context that turns errors of the HTTP library into ours, and logs them at DEBUG.

    Their chain is cut, since it holds the request. `name` is the receiver of the request, `unknown_name` the advice
    if that name can't be resolved.

    Raises:
        Unavailable: no connection can be made, or no answer comes in time.
    """
    started = time.monotonic()
    failure: BridgeError
    try:
        yield
    except httpx.TimeoutException as error:
        verb = "can't be reached" if isinstance(error, httpx.ConnectTimeout) else "did not answer"
        failure = Unavailable(f"{name} {verb} in time")
    except (httpx.TransportError, OSError, UnicodeError) as error:
        kind, reason = _cause(error)
        failure = kind(f"no connection to {name}: {reason}{unknown_name if kind is UnknownName else ''}")
    except asyncio.CancelledError:
        log.failed(method, path, "given up", time.monotonic() - started)
        raise
    else:
        return
    log.failed(method, path, failure, time.monotonic() - started)
    raise failure from None


def _cause(error: BaseException) -> tuple[type[ConnectionFault], str]:
    """The kind of fault, and the first cause that tells something, in plain words."""
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return ConnectionFault, (
                    "its certificate can't be verified: check this computer's clock, or name a proxy's certificate "
                    "in BRIDGE_CLOUD__CA_FILE"
                )
            case ssl.SSLError():
                return TlsFault, f"TLS fails ({cause.reason or 'no reason given'})"
            case socket.gaierror():
                return UnknownName, "the name is unknown in this network"
            case OSError(errno=int(number)) if number:
                return ConnectionFault, os.strerror(number)
    return BrokenOff, "the connection broke off"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            error = error.__cause__ or error.__context__


def bounded(limit: int) -> Callable[[httpx.Response], Awaitable[None]]:
    """A response hook that makes every body end with BadAnswer beyond `limit` bytes, those of refusals included."""

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
        """Yield large pieces: collecting millions of single bytes would need forty times their size in memory."""
        size, piece = 0, bytearray()
        async for part in self._inner:
            size += len(part)
            if size > self._limit:
                raise BadAnswer(f"the answer is longer than {self._limit} bytes")
            piece += part
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)

    async def aclose(self) -> None:
        await self._inner.aclose()


# The pinned key

DER_SEQUENCE, DER_VERSION = 0x30, 0xA0
DER_LONG_FORM = 0x80
DER_MAX_LENGTH_BYTES = 4
FIELDS_BEFORE_KEY = 5
"""They are serial number, signature algorithm, issuer, validity, subject."""
Mode = Literal["pin", "strict", "off"]


@dataclass(slots=True)
class KeyPin:
    """The key that a gateway must show (`None`: the first one is pinned), and the key that it showed last.

    `strange_since` is when another key than the expected one was first `seen`, with no other key since, in the
    seconds of `monotonic`; `None` where the key is the expected one.
    """

    mode: Mode = "pin"
    expected: str | None = None
    monotonic: Callable[[], float] = time.monotonic
    seen: str | None = None
    strange_since: float | None = None

    def check(self, certificate: bytes | None) -> None:
        """Compare a DER certificate's key with the pinned one, or pin it if there is none.

        Raises:
            KeyChanged: it is another key.
        """
        before, self.seen = self.seen, fingerprint(certificate or b"")
        if self.mode == "off":
            return
        self.expected = self.expected or self.seen
        if self.seen == self.expected:
            self.strange_since = None
            return
        if self.strange_since is None or self.seen != before:
            self.strange_since = self.monotonic()
        raise KeyChanged(self.seen)

    @property
    def stale(self) -> bool:
        """Whether the open connection was checked against another pin than the one now set."""
        return self.mode != "off" and None not in (self.seen, self.expected) and self.seen != self.expected


def tls_context() -> ssl.SSLContext:
    """A TLS context that verifies nothing: `KeyPin.check` does, once the handshake is over."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # CN=envoy-<serial> is never the address
    context.verify_mode = ssl.CERT_NONE  # self-signed; the pin stands instead
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Gateways of firmware 7 still offer SHA-1 signatures and short keys, which OpenSSL 3 refuses by default.
    context.set_ciphers("DEFAULT:!aNULL:@SECLEVEL=0")
    return context


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of the public key (SPKI) in a DER certificate.

    Raises:
        ssl.SSLError: it is no certificate.
    """
    try:
        return hashlib.sha256(public_key(certificate)).hexdigest()
    except ValueError as error:
        raise ssl.SSLError("the gateway's certificate can't be read") from error


def public_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a DER certificate: the sixth field after the optional version (RFC 5280, 4.1).

    Raises:
        ValueError: it is no certificate.
    """
    body = _content(certificate, DER_SEQUENCE)
    fields = (item for item in _items(_content(body, DER_SEQUENCE)) if item[0] != DER_VERSION)
    key = next(islice(fields, FIELDS_BEFORE_KEY, None), b"")
    if not key or key[0] != DER_SEQUENCE:
        raise ValueError("no public key")
    return key


def _content(der: bytes, tag: int) -> bytes:
    start, end = _extent(der, 0)
    if der[0] != tag:
        raise ValueError("unexpected tag")
    return der[start:end]


def _items(der: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(der):
        _, end = _extent(der, position)
        yield der[position:end]
        position = end


def _extent(der: bytes, position: int) -> tuple[int, int]:
    """Where the content of the DER element at `position` begins and ends."""
    header = der[position : position + 2]
    if len(header) < 2:  # noqa: PLR2004 - tag and length
        raise ValueError("cut off")
    start, length = position + 2, header[1]
    if length & DER_LONG_FORM:
        count = length & ~DER_LONG_FORM
        if not 1 <= count <= DER_MAX_LENGTH_BYTES:
            raise ValueError("unusable length")
        length = int.from_bytes(der[start : start + count])
        start += count
    if start + length > len(der):
        raise ValueError("cut off")
    return start, start + length
