"""Requests to a gateway: one at a time, over one connection that is kept."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import httpx

from bridge.gateway.errors import HOST_SETTING, ConnectionFault, EndpointRefused, Starting, raise_for_status
from bridge.gateway.http1 import Http1Transport, hardware_address
from bridge.gateway.token import Token
from bridge.gateway.tokens import TokenSource
from bridge.gateway.transport import (
    HEADERS,
    MAX_BODY_BYTES,
    KeyPin,
    RequestLog,
    bounded,
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
MAX_COOKIES, MAX_COOKIE_LETTERS = 8, 4096
"""A gateway sets one cookie, `sessionId`. Cookies without limit would end in requests that are too long."""
CHECK_PATH = "/auth/check_jwt"
LEGACY_USER = "envoy"
TLS_IS_OFF = "BRIDGE_GATEWAY__TLS is off: %s is not verified, and whoever sits in between gets the token"
AuthFlow = AsyncGenerator[httpx.Request, httpx.Response]


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


class TokenAuth(httpx.Auth):
    """Adds the token; after a 401 asks the gateway about it, renews it once if need be, and tries once more.

    A 401 alone proves nothing: firmware 7.3.130 answers so on /ivp/ensemble/* to every token, and some gateways
    accept no Bearer header before /auth/check_jwt has set its sessionId cookie. A request that is sent once follows
    one that was accepted, so there it means that the token's role may not do this.
    """

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens
        self._lock = asyncio.Lock()

    async def async_auth_flow(self, request: httpx.Request) -> AuthFlow:
        token = await self._tokens.current()
        request.headers["Authorization"] = token.bearer
        response = yield request
        if response.is_success:
            self._tokens.accepted(token)
        if response.status_code != HTTPStatus.UNAUTHORIZED:
            return
        await response.aread()  # frees the connection, of which there is one
        if request.extensions.get("once"):
            raise EndpointRefused(f"{request.url.path}: the gateway refuses this to the token's role (401)")
        async with self._lock:
            token = await self._tokens.current()  # another request may have renewed it meanwhile
            check = yield _check(request, token)
            if not await _is_valid(check):
                token = await self._tokens.replace(token)
                check = yield _check(request, token)
                if not await _is_valid(check):
                    raise self._tokens.refused(token)
        self._tokens.accepted(token)
        response = yield _again(request, token, check)
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            await response.aread()  # an answer that is not read costs the connection, and so a handshake
            raise EndpointRefused(f"{request.url.path}: the gateway refuses this to a valid token (401)")


def _check(request: httpx.Request, token: Token) -> httpx.Request:
    """The request that asks about a token. It has no cookie, so that the token alone decides."""
    url = request.url.copy_with(raw_path=CHECK_PATH.encode())
    headers = {"Authorization": token.bearer, "Accept-Encoding": "identity"}
    return httpx.Request("GET", url, headers=headers, extensions=request.extensions)


async def _is_valid(check: httpx.Response) -> bool:
    """Whether the gateway calls the token valid.

    Raises:
        Unavailable: the gateway can't tell now. A busy gateway must not cost a login at the cloud.
    """
    body = await check.aread()
    if check.is_redirect or check.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Unavailable(f"the gateway can't check the token now ({check.status_code})")
    return check.is_success and b"invalid" not in body.lower()


def _again(request: httpx.Request, token: Token, check: httpx.Response) -> httpx.Request:
    request.headers["Authorization"] = token.bearer
    if check.cookies:
        request.headers.pop("Cookie", None)
        httpx.Cookies(check.cookies).set_cookie_header(request)
    return request


class LegacyAuth(httpx.Auth):
    """For firmware before 7, which has no tokens: some endpoints ask for digest authentication.

    The password is the last six digits of the serial number.
    """

    def __init__(self) -> None:
        self._serial = ""
        self._digest = self._new_digest()

    def identify(self, serial: str) -> None:
        """Tell the serial number, which the password is made of."""
        self._serial = serial
        self._digest = self._new_digest()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        try:
            yield from self._digest.auth_flow(request)
        except (httpx.ProtocolError, LookupError, NotImplementedError, ValueError):
            self._digest = self._new_digest()  # a challenge that can't be answered: the 401 stands

    def _new_digest(self) -> httpx.DigestAuth:
        return httpx.DigestAuth(LEGACY_USER, self._serial[-6:])


class _Connection:
    """The one HTTP connection to a gateway, which is kept. `requests` counts what was sent, retries included."""

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
        self.client = self.open(pin)

    async def exchange(self, request: Request) -> Answer:
        """Send one request. Errors of the HTTP library become those of `bridge.gateway.errors`."""
        if self.pin.stale:
            await self.renew()
        return await self.send(self.client, request)

    async def send(self, client: httpx.AsyncClient, request: Request) -> Answer:
        """Send one request over this client."""
        auth = None if request.path == INFO_PATH else self.auth
        started = self._monotonic()
        sent: dict[str, Any] = {
            "auth": auth,
            "extensions": {"most_bytes": request.most_bytes, "once": request.once},
        }
        if request.body is not None:
            sent |= {"content": request.body, "headers": {"Content-Type": "application/json"}}
        with translated(self._log, GATEWAY_NAME, request.method, request.path, self._host_advice):
            async with client.stream(request.method, _address(self.url, request.path), **sent) as response:
                body = await response.aread()
        self.peer = response.extensions.get("peer")
        wants_time = "Retry-After" in response.headers or b"retry" in body.lower()
        if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE and wants_time:
            raise Starting(f"{GATEWAY_NAME} is starting (503)")  # it asks for half a minute: no short retries
        raise_for_status(response.status_code, request.path)
        return Answer(body, self._monotonic() - started)

    async def renew(self) -> None:
        """Replace a connection that was cut off or checked against another pin. Its cookies are kept."""
        old, self.client = self.client, self.open(self.pin, self.client.cookies)
        await old.aclose()

    def open(self, pin: KeyPin, cookies: httpx.Cookies | None = None) -> httpx.AsyncClient:
        """A client for this URL that checks the TLS key by `pin`."""
        client = _client(self.url, pin, self._limits)
        client.cookies = cookies or httpx.Cookies()
        client.event_hooks["request"].append(self._count)
        client.event_hooks["response"] += [self._log.answered, self._notify_listener]
        client.event_hooks["response"].append(_limit_cookies(client))
        return client

    @property
    def _host_advice(self) -> str:
        """Advice for a host name that can't be resolved."""
        local = "; names in .local are not found from most containers" if ".local" in self.url else ""
        return f"{local}; set {HOST_SETTING} to the gateway's address"

    async def _count(self, _: httpx.Request) -> None:
        self.requests += 1

    async def _notify_listener(self, response: httpx.Response) -> None:
        if self.listener is None:
            return
        body = await response.aread()
        path, seconds = response.request.url.raw_path.decode(), response.elapsed.total_seconds()
        self.listener(Exchange(path, response.status_code, response.headers, body, seconds))


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
        await self._connection.client.aclose()

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
                    try:
                        return await self._connection.exchange(request)
                    except ConnectionFault as fault:
                        return await self._retry(request, attempts, fault)
            except ConnectionFault:
                self._failing = True
                raise
            except TimeoutError:
                await self._connection.renew()
                raise Unavailable(f"{GATEWAY_NAME} gave no whole answer in time to {request.path}") from None

    async def _retry(self, request: Request, attempts: int, first: ConnectionFault) -> Answer:
        """Try again after the first attempt, which failed. tenacity takes longer than a request that succeeds."""
        failures = [first]

        async def attempt() -> Answer:
            if failures:
                raise failures.pop()
            return await self._connection.exchange(request)

        return await short_retries(attempts, self._limits.retry_wait)(attempt)

    async def probe_untrusted(self, info: Request) -> tuple[Answer, str | None]:
        """Fetch `/info` without checking the TLS key; returns the answer and the key's SHA-256.

        It serves to decide about a changed key. Neither a token nor a cookie is sent.

        Raises:
            Unavailable: there is no answer.
        """
        stranger = KeyPin("off")
        async with self._turn, self._connection.open(stranger) as client:
            try:
                async with asyncio.timeout(self._limits.deadline):
                    return await self._connection.send(client, info), stranger.seen
            except TimeoutError:
                raise Unavailable(f"{GATEWAY_NAME} gave no whole answer in time to {INFO_PATH}") from None


@lru_cache(maxsize=256)
def _address(url: str, path: str) -> httpx.URL:
    """The whole URL of a path. It is kept, since httpx takes long to read one, and the same paths are asked for."""
    return httpx.URL(url.rstrip("/") + path)


def _client(url: str, pin: KeyPin, limits: HttpLimits) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        transport=Http1Transport(tls_context(), pin.check, limits.keep),
        trust_env=False,
        follow_redirects=False,
        headers=HEADERS,
        timeout=httpx.Timeout(limits.read, connect=limits.connect),
        event_hooks={"request": [], "response": [bounded(limits.body)]},
    )


def _limit_cookies(client: httpx.AsyncClient) -> Callable[[httpx.Response], Awaitable[None]]:
    """A response hook that drops all cookies when there are more, or longer ones, than any gateway needs."""

    async def limit(_: httpx.Response) -> None:
        letters = sum(len(cookie.name) + len(cookie.value or "") for cookie in client.cookies.jar)
        if len(client.cookies.jar) > MAX_COOKIES or letters > MAX_COOKIE_LETTERS:
            client.cookies.clear()

    return limit


def _checked_url(url: str) -> str:
    try:
        if (httpx.URL(url).port or 0) <= MAX_PORT:
            return url
    except httpx.InvalidURL:
        pass
    raise BadSetting(f"{HOST_SETTING}: must be a name, an address, host:port or a URL")
