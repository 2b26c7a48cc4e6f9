"""Requests to a gateway: one at a time, over one connection that is kept."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from http import HTTPStatus

import httpx

from bridge.gateway.auth import LegacyAuth, TokenAuth
from bridge.gateway.errors import HOST_SETTING, ConnectionFault, Starting, raise_for_status
from bridge.gateway.http1 import Http1Transport, hardware_address
from bridge.gateway.tokens import TokenSource
from bridge.gateway.transport import (
    HEADERS,
    MAX_BODY_BYTES,
    KeyPin,
    RequestLog,
    quiet_libraries,
    short_retries,
    tls_context,
    translated,
)
from bridge.model import Answer, BadSetting, Request, Unavailable
from bridge.settings import MAX_PORT, GatewaySettings

LOG = logging.getLogger(__name__)
INFO_PATH = "/info"
"""The endpoint that answers without a token: nothing secret is sent to a gateway that is not identified."""
GATEWAY_NAME = "the gateway"
ALL_HEADERS = {"Accept": "*/*", "Connection": "keep-alive", **HEADERS}
MAX_COOKIES, MAX_COOKIE_LETTERS = 8, 4096
"""A gateway sets one cookie, `sessionId`. Cookies without limit would end in requests that are too long."""
TLS_IS_OFF = "BRIDGE_GATEWAY__TLS is off: %s is not verified, and whoever sits in between gets the token"


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of the requests to a gateway, in seconds, bytes and attempts.

    `deadline` is for one fetch with all its retries and token checks. `keep` is how long an idle connection is
    kept: longer than the pauses between polls, since a new TLS handshake costs the gateway as much as fifteen
    requests.
    """

    connect: float = 10.0
    read: float = 30.0
    deadline: float = 60.0
    keep: float = 300.0
    body: int = MAX_BODY_BYTES
    attempts: int = 3
    retry_wait: float = 2.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A response of the gateway, whatever its status. `elapsed` is in seconds."""

    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    elapsed: float


@dataclass(frozen=True, slots=True)
class _Session:
    """An HTTP connection, and the cookies that the gateway has set."""

    transport: Http1Transport
    cookies: httpx.Cookies

    def keep_cookies(self, response: httpx.Response) -> None:
        """Keep new cookies. All are dropped when there are more, or longer ones, than any gateway needs."""
        if "Set-Cookie" in response.headers:
            self.cookies.extract_cookies(response)
            letters = sum(len(cookie.name) + len(cookie.value or "") for cookie in self.cookies.jar)
            if len(self.cookies.jar) > MAX_COOKIES or letters > MAX_COOKIE_LETTERS:
                self.cookies.clear()

    async def aclose(self) -> None:
        await self.transport.aclose()


class _Connection:
    """The one HTTP connection to a gateway, which is kept. `requests` counts what was sent, retries included.

    httpx has the requests, answers, cookies and the digest. Its client is not used: a third of the time of a fetch.
    """

    def __init__(
        self, settings: GatewaySettings, pin: KeyPin, limits: HttpLimits, monotonic: Callable[[], float]
    ) -> None:
        self.url = _checked_url(settings.base_url)
        self.pin = pin
        self.auth: httpx.Auth | None = None
        self.requests = 0
        self.peer: object = None
        """The address and the port that answered last."""
        self.listener: Callable[[Exchange], None] | None = None
        self._limits, self._monotonic, self._log = limits, monotonic, RequestLog(gateway=settings.host)
        self.session = self.open(pin)

    async def exchange(self, request: Request) -> Answer:
        """Send one request. Errors of the HTTP library become those of `bridge.gateway.errors`."""
        if self.pin.stale:
            await self.renew()
        return await self.send(self.session, request)

    async def send(self, session: _Session, request: Request) -> Answer:
        """Send one request over this session."""
        auth = (request.path != INFO_PATH and self.auth) or httpx.Auth()
        started = self._monotonic()
        asked = httpx.Request(
            request.method,
            _address(self.url, request.path),
            headers=ALL_HEADERS if request.body is None else {**ALL_HEADERS, "Content-Type": "application/json"},
            cookies=session.cookies,
            content=request.body,
            extensions={
                "most_bytes": min(request.most_bytes, self._limits.body),
                "once": request.once,
                "timeout": {"connect": self._limits.connect, "read": self._limits.read},
            },
        )
        with translated(self._log, GATEWAY_NAME, request.method, request.path, self._host_advice):
            response = await self._authenticated(session, auth, asked)
        self.peer = response.extensions.get("peer")
        body = response.content
        if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE and (
            "Retry-After" in response.headers or b"retry" in body.lower()
        ):
            raise Starting(f"{GATEWAY_NAME} is starting (503)")  # it asks for half a minute: no short retries
        raise_for_status(response.status_code, request.path)
        return Answer(body, self._monotonic() - started)

    async def renew(self) -> None:
        """Replace a connection that was cut off or checked against another pin. Its cookies are kept."""
        old, self.session = self.session, self.open(self.pin, self.session.cookies)
        await old.aclose()

    def open(self, pin: KeyPin, cookies: httpx.Cookies | None = None) -> _Session:
        """A session that checks the TLS key by `pin`."""
        return _Session(Http1Transport(tls_context(), pin.check, self._limits.keep), cookies or httpx.Cookies())

    async def _authenticated(self, session: _Session, auth: httpx.Auth, request: httpx.Request) -> httpx.Response:
        """Send what `auth` makes of a request, and tell it each answer, until it wants to send nothing more."""
        flow = auth.async_auth_flow(request)
        try:
            request = await anext(flow)
            while True:
                response = await self._answer(session, request)
                try:
                    request = await flow.asend(response)
                except StopAsyncIteration:
                    return response
        finally:
            await flow.aclose()

    async def _answer(self, session: _Session, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        started = time.perf_counter()
        response = await session.transport.handle_async_request(request)
        response.elapsed = timedelta(seconds=time.perf_counter() - started)
        session.keep_cookies(response)
        await self._log.answered(response)
        if self.listener is not None:
            path, seconds = request.url.raw_path.decode(), response.elapsed.total_seconds()
            self.listener(Exchange(path, response.status_code, response.headers, response.content, seconds))
        return response

    @property
    def _host_advice(self) -> str:
        """Advice for a host name that can't be resolved."""
        local = "; names in .local are not found from most containers" if ".local" in self.url else ""
        return f"{local}; set {HOST_SETTING} to the gateway's address"


class Gateway(AbstractAsyncContextManager["Gateway"]):
    """One gateway. Call `identify` with the serial of `/info` before anything else is fetched."""

    def __init__(
        self,
        settings: GatewaySettings,
        tokens: TokenSource,
        *,
        pin: str | None = None,
        limits: HttpLimits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        quiet_libraries()
        self.tokens, self._limits = tokens, limits or HttpLimits()
        self.key = KeyPin(settings.tls, pin, monotonic)
        self._connection = _Connection(settings, self.key, self._limits, monotonic)
        self._legacy = LegacyAuth() if self.url.startswith("http://") else None
        self._connection.auth = self._legacy or TokenAuth(tokens)
        self._turn = asyncio.Lock()
        self._failing = False
        """Whether the last request failed with all its retries: then the next one is not retried."""
        if settings.tls == "off" and self._legacy is None:
            LOG.warning(TLS_IS_OFF, self.url)

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.tokens.aclose()
        await self._connection.session.aclose()

    def __repr__(self) -> str:
        return f"Gateway({self.url!r})"

    @property
    def url(self) -> str:
        """The URL that it is asked at now."""
        return self._connection.url

    @property
    def requests(self) -> int:
        """Requests sent so far, token checks and retries included."""
        return self._connection.requests

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 (hex) of the public key that the gateway showed last; `None` before the first handshake."""
        return self.key.seen

    @property
    def mac(self) -> str | None:
        """Its MAC address, if it is a neighbour in this machine's network."""
        return hardware_address(self._connection.peer)

    def pin(self, expected: str | None) -> None:
        """Set the key (SHA-256, hex) that the gateway must show, on the open connection too; `None`: any key."""
        self.key.expected, self.key.strange_since = expected, None

    def identify(self, serial: str) -> None:
        """Tell the serial number that `/info` gave: from now on tokens may be sent."""
        self.tokens.identify(serial)
        if self._legacy:
            self._legacy.identify(serial)

    def listen(self, listener: Callable[[Exchange], None]) -> None:
        """Call `listener` with every response from now on, refusals and token checks included."""
        self._connection.listener = listener

    async def move(self, url: str) -> bool:
        """Ask at another address from now on; the pinned key stays. False if that is the address already.

        Raises:
            BadSetting: the URL can't be used.
        """
        url = _checked_url(url)
        if url == self.url:
            return False
        async with self._turn:
            self._connection.url = url
            await self._connection.renew()
        return True

    async def fetch(self, request: Request, *, deadline: float | None = None) -> Answer:
        """Send a request and return the body of a 2xx answer. `deadline` is in seconds.

        Raises:
            Unavailable: there is no answer, also after short retries; GatewayFault where it says that it fails.
            Unsupported: the gateway does not have this (404); EndpointRefused where it says so with a 401.
            Rejected: a person must act; KeyChanged where the TLS key is not the pinned one.
            BadAnswer: the answer is none that can be used.
        """
        async with self._turn:
            attempts = 1 if self._failing or request.once else self._limits.attempts
            self._failing = False
            try:
                async with asyncio.timeout(deadline or self._limits.deadline):
                    send = partial(self._connection.exchange, request)
                    return await short_retries(send, attempts, self._limits.retry_wait)
            except ConnectionFault:
                self._failing = True
                raise
            except TimeoutError:
                await self._connection.renew()
                raise Unavailable(f"{GATEWAY_NAME} gave no whole answer in time to {request.path}") from None

    async def probe_untrusted(self, info: Request) -> tuple[Answer, str | None]:
        """Fetch `/info` without checking the TLS key; returns the answer and the key's SHA-256.

        It serves to decide about a changed key. Neither a token nor a cookie is sent.

        Raises:
            Unavailable: there is no answer.
        """
        stranger = KeyPin("off")
        async with self._turn, aclosing(self._connection.open(stranger)) as session:
            try:
                async with asyncio.timeout(self._limits.deadline):
                    return await self._connection.send(session, info), stranger.seen
            except TimeoutError:
                raise Unavailable(f"{GATEWAY_NAME} gave no whole answer in time to {INFO_PATH}") from None


@lru_cache(maxsize=256)
def _address(url: str, path: str) -> httpx.URL:
    """The whole URL of a path. It is kept, since httpx takes long to read one, and the same paths are asked for."""
    return httpx.URL(url.rstrip("/") + path)


def _checked_url(url: str) -> str:
    try:
        if (httpx.URL(url).port or 0) <= MAX_PORT:
            return url
    except httpx.InvalidURL:
        pass
    raise BadSetting(f"{HOST_SETTING}: must be a name, an address, host:port or a URL")
