"""Who we are, as seen by the gateway: the Bearer token, its session cookie, and what a 401 really means."""

import asyncio
from collections.abc import AsyncGenerator, Generator

import httpx

from bridge.gateway.errors import EndpointRefused
from bridge.gateway.token import Token
from bridge.gateway.tokens import TokenSource
from bridge.model import Unavailable

CHECK = "/auth/check_jwt"
UNAUTHORIZED = 401
NO_VERDICT = 500
LEGACY_USER = "envoy"
Flow = AsyncGenerator[httpx.Request, httpx.Response]


class TokenAuth(httpx.Auth):
    """Adds the token; after a 401 asks the gateway about it, renews it once if need be, and tries once more.

    A 401 alone proves nothing: 7.3.130 answers so on /ivp/ensemble/* to every token, and some gateways take no
    Bearer header before /auth/check_jwt has set its sessionId cookie.
    """

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens
        self._lock = asyncio.Lock()

    async def async_auth_flow(self, request: httpx.Request) -> Flow:
        token = await self._tokens.current()
        request.headers["Authorization"] = token.bearer
        response = yield request
        if response.is_success:
            self._tokens.accepted(token)
        if response.status_code != UNAUTHORIZED:
            return
        await response.aread()  # frees the connection, of which there is one
        async with self._lock:
            token = await self._tokens.current()  # whoever held the lock before may have renewed it
            check = yield _check(request, token)
            if not await _is_valid(check):
                token = await self._tokens.replace(token)
                check = yield _check(request, token)
                if not await _is_valid(check):
                    raise self._tokens.refused(token)
        self._tokens.accepted(token)
        response = yield _again(request, token, check)
        if response.status_code == UNAUTHORIZED:
            await response.aread()  # an answer that is left lying costs the connection, and so a handshake
            raise EndpointRefused(f"{request.url.path}: the gateway refuses this to a valid token (401)")


def _check(request: httpx.Request, token: Token) -> httpx.Request:
    """Without the old cookie: the token alone is to be judged."""
    url = request.url.copy_with(raw_path=CHECK.encode())
    headers = {"Authorization": token.bearer, "Accept-Encoding": "identity"}
    return httpx.Request("GET", url, headers=headers, extensions=request.extensions)


async def _is_valid(check: httpx.Response) -> bool:
    """Raises Unavailable where the gateway gives no verdict: a busy one must not cost a login at the cloud."""
    body = await check.aread()
    if check.is_redirect or check.status_code >= NO_VERDICT:
        raise Unavailable(f"the gateway can't check the token now ({check.status_code})")
    return check.is_success and b"invalid" not in body.lower()


def _again(request: httpx.Request, token: Token, check: httpx.Response) -> httpx.Request:
    request.headers["Authorization"] = token.bearer
    if check.cookies:
        request.headers.pop("Cookie", None)
        httpx.Cookies(check.cookies).set_cookie_header(request)
    return request


class LegacyAuth(httpx.Auth):
    """Firmware before 7: no token; some endpoints ask for digest auth with a password made of the serial number."""

    def __init__(self) -> None:
        self._serial = ""
        self._digest = self._new_digest()

    def identify(self, serial: str) -> None:
        self._serial = serial
        self._digest = self._new_digest()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        try:
            yield from self._digest.auth_flow(request)
        except (httpx.ProtocolError, LookupError, NotImplementedError, ValueError):
            self._digest = self._new_digest()  # a challenge nobody can answer: the 401 stands

    def _new_digest(self) -> httpx.DigestAuth:
        return httpx.DigestAuth(LEGACY_USER, self._serial[-6:])
