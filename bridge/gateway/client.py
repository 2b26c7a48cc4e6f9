"""The one verb towards a gateway: `fetch`. One request at a time, over one connection that is kept."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx

from bridge.config import GatewaySettings
from bridge.gateway import tls
from bridge.gateway.auth import LegacyAuth, TokenAuth
from bridge.gateway.errors import ConnectionFault, EndpointRefused
from bridge.gateway.http import MAX_BODY, PLAIN, bounded, quiet_libraries, short_retries, spare_searches, translated
from bridge.gateway.tokens import TokenSource
from bridge.model import Answer, BadAnswer, BadSetting, Rejected, Request, Unavailable, Unsupported

LOG = logging.getLogger(__name__)
INFO = "/info"
"""answers without a token; nothing secret goes to a gateway that is not identified"""
NAME = "the gateway"
MAX_COOKIES = 8
"""A gateway sets one, `sessionId`. What grows with each answer would end in requests that are too long."""
BUSY = 503
LAST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes and attempts. `deadline` is for one fetch with all its retries and token checks.

    `keep` outlasts the pauses between polls: a new TLS handshake costs the gateway fifteen requests' work.
    """

    connect: float = 10.0
    read: float = 30.0
    deadline: float = 60.0
    keep: float = 300.0
    body: int = MAX_BODY
    attempts: int = 3
    retry_wait: float = 2.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """What came back from the gateway, whatever its status. `elapsed` is in seconds."""

    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    elapsed: float


class Gateway:
    """One gateway. Call `identify` with the serial of `/info` before anything else is fetched."""

    def __init__(
        self,
        settings: GatewaySettings,
        tokens: TokenSource,
        *,
        pin: str | None = None,
        limits: Limits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        quiet_libraries()
        spare_searches()
        self.tokens = tokens
        self.requests = 0
        """sent so far, token checks and retries included"""
        self._url = _usable(settings.base_url)
        self._limits = limits or Limits()
        self._monotonic = monotonic
        self._legacy = LegacyAuth() if self._url.startswith("http://") else None
        self._auth = self._legacy or TokenAuth(tokens)
        self._listener: Callable[[Exchange], None] | None = None
        self._pin = tls.KeyPin(settings.tls, pin)
        self._client = self._connect(self._pin)
        self._turn = asyncio.Lock()
        self._failing = False
        """Since a request has failed with all its retries: it is no fault of a moment then, nothing is repeated."""
        if settings.tls == "off" and self._legacy is None:
            LOG.warning(
                "BRIDGE_GATEWAY__TLS is off: %s is not verified, and whoever sits in between gets the token",
                self._url,
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.tokens.aclose()
        await self._client.aclose()

    def __repr__(self) -> str:
        return f"Gateway({self._url!r})"

    @property
    def url(self) -> str:
        """Where it is asked now."""
        return self._url

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the public key that the gateway showed last."""
        return self._pin.seen

    def pin(self, expected: str | None) -> None:
        """The key it must show; `None` takes the next one. Holds for the open connection too."""
        self._pin.expected = expected

    def identify(self, serial: str) -> None:
        self.tokens.identify(serial)
        if self._legacy:
            self._legacy.identify(serial)

    def listen(self, listener: Callable[[Exchange], None]) -> None:
        """Tell of whatever comes back from now on, refusals and token checks included: a capture wants them."""
        self._listener = listener

    async def move(self, url: str) -> bool:
        """Ask at another address from now on; the key that it must show stays. False: we do already."""
        url = _usable(url)
        if url == self._url:
            return False
        async with self._turn:
            self._url = url
            await self._reconnect()
        return True

    async def fetch(self, request: Request, *, deadline: float | None = None) -> Answer:
        """The body of a 2xx answer.

        Raises:
            Unavailable: no answer; it was tried again shortly, the next tick may do better.
            Unsupported: 404; EndpointRefused where only a 401 says so.
            Rejected: a person must act; KeyChanged where the TLS key is not the pinned one.
            BadAnswer: something that is no answer.
        """
        async with self._turn:
            retries = short_retries(1 if self._failing else self._limits.attempts, self._limits.retry_wait)
            self._failing = False
            try:
                async with asyncio.timeout(deadline or self._limits.deadline):
                    return await retries(self._exchange, request)
            except ConnectionFault:
                self._failing = True
                raise
            except TimeoutError:
                await self._reconnect()
                raise Unavailable(f"{NAME} gave no whole answer in time to {request.path}") from None

    async def look(self) -> tuple[Answer, str | None]:
        """`/info` of whoever answers, and the key it showed: to decide about a changed key.

        It gets no token and no cookie.
        """
        stranger = tls.KeyPin("off")
        async with self._turn, self._connect(stranger) as client:
            try:
                async with asyncio.timeout(self._limits.deadline):
                    with translated(NAME):
                        return await self._send(client, Request(INFO)), stranger.seen
            except TimeoutError:
                raise Unavailable(f"{NAME} gave no whole answer in time to {INFO}") from None

    @property
    def _where_else(self) -> str:
        """What to do where its name is unknown."""
        local = "; names in .local are not found from most containers" if ".local" in self._url else ""
        return f"{local}; set BRIDGE_GATEWAY__HOST to the gateway's address"

    async def _exchange(self, request: Request) -> Answer:
        if self._pin.stale:
            await self._reconnect()
        with translated(NAME, self._where_else):
            try:
                return await self._send(self._client, request)
            except httpx.PoolTimeout:  # something holds the only connection for good
                await self._reconnect()
                raise

    async def _send(self, client: httpx.AsyncClient, request: Request) -> Answer:
        method = "GET" if request.json is None else "POST"
        auth = None if request.path == INFO else self._auth
        started = self._monotonic()
        async with client.stream(method, request.path, json=request.json, auth=auth) as response:
            body = await response.aread()
        if response.status_code == BUSY and ("Retry-After" in response.headers or b"retry" in body.lower()):
            raise Unavailable(f"{NAME} is starting (503)")  # it asks for half a minute: no short retries
        _judge(response.status_code, request.path)
        return Answer(body, self._monotonic() - started)

    async def _reconnect(self) -> None:
        """A connection that was cut off, or checked against another pin, is of no more use; its cookies are."""
        old, self._client = self._client, self._connect(self._pin, self._client.cookies)
        await old.aclose()

    def _connect(self, pin: tls.KeyPin, cookies: httpx.Cookies | None = None) -> httpx.AsyncClient:
        client = _client(self._url, pin, self._limits)
        client.cookies = cookies or httpx.Cookies()
        client.event_hooks["request"].append(self._count)
        client.event_hooks["response"].append(self._overhear)
        client.event_hooks["response"].append(_forgetful(client))
        return client

    async def _count(self, _: httpx.Request) -> None:
        self.requests += 1

    async def _overhear(self, response: httpx.Response) -> None:
        if self._listener is None:
            return
        body = await response.aread()
        path, seconds = response.request.url.raw_path.decode(), response.elapsed.total_seconds()
        self._listener(Exchange(path, response.status_code, response.headers, body, seconds))


def _client(url: str, pin: tls.KeyPin, limits: Limits) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        verify=tls.context(pin),
        trust_env=False,
        follow_redirects=False,
        headers=PLAIN,
        timeout=httpx.Timeout(limits.read, connect=limits.connect),
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=limits.keep),
        event_hooks={"request": [], "response": [bounded(limits.body)]},
    )


def _forgetful(client: httpx.AsyncClient) -> Callable[[httpx.Response], Awaitable[None]]:
    """A response hook: more cookies than any gateway sets are none that it needs."""

    async def forget(_: httpx.Response) -> None:
        if len(client.cookies.jar) > MAX_COOKIES:
            client.cookies.clear()

    return forget


def _usable(url: str) -> str:
    try:
        if (httpx.URL(url).port or 0) <= LAST_PORT:
            return url
    except httpx.InvalidURL:
        pass
    raise BadSetting("BRIDGE_GATEWAY__HOST: must be a name, an address, host:port or a URL")


def _judge(status: int, path: str) -> None:
    """By status and bytes, never by content type: 404s and 401s are HTML or JSON, /ivp answers carry none."""
    match status:
        case 401:
            raise EndpointRefused(f"{path}: the gateway refuses this (401)")
        case 403:
            raise Rejected(f"{path}: the gateway forbids this to the token's role (403)")
        case 404 | 405 | 410 | 501:
            raise Unsupported(f"{path}: the gateway does not have this ({status})")
        case 503:
            raise ConnectionFault("the gateway is starting or overloaded (503)")
        case 502 | 504:
            raise ConnectionFault(f"the gateway is overloaded ({status})")
        case 429 | 500:
            raise Unavailable(f"{path}: the gateway fails ({status})")
        case _ if not 200 <= status < 300:  # noqa: PLR2004 - success
            raise BadAnswer(f"{path}: the gateway answers with status {status}")
        case _:
            return
