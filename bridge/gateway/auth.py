"""How requests to a gateway prove who asks: with a token, or with a digest at firmware before 7."""

from collections.abc import AsyncGenerator, Generator
from http import HTTPStatus

import httpx

from bridge.gateway.errors import EndpointRefused
from bridge.gateway.token import Token
from bridge.gateway.tokens import TokenSource
from bridge.model import Unavailable

CHECK_PATH = "/auth/check_jwt"
LEGACY_USER = "envoy"
AuthFlow = AsyncGenerator[httpx.Request, httpx.Response]


class TokenAuth(httpx.Auth):
    """Adds the token; after a 401 asks the gateway about it, renews it once if need be, and tries once more.

    A 401 alone proves nothing: firmware 7.3.130 answers so on /ivp/ensemble/* to every token, and some gateways
    accept no Bearer header before /auth/check_jwt has set its sessionId cookie. A request that is sent once follows
    one that was accepted, so there it means that the token's role may not do this.
    """

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    async def async_auth_flow(self, request: httpx.Request) -> AuthFlow:
        token = await self._tokens.current()
        request.headers["Authorization"] = token.bearer
        response = yield request
        if response.is_success:
            self._tokens.accepted(token)
        if response.status_code != HTTPStatus.UNAUTHORIZED:
            return
        if request.extensions.get("once"):
            raise EndpointRefused(f"{request.url.path}: the gateway refuses this to the token's role (401)")
        check = yield _check(request, token)
        if not _is_valid(check):
            token = await self._tokens.replace(token)
            check = yield _check(request, token)
            if not _is_valid(check):
                raise self._tokens.refused(token)
        self._tokens.accepted(token)
        response = yield _again(request, token, check)
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            raise EndpointRefused(f"{request.url.path}: the gateway refuses this to a valid token (401)")


def _check(request: httpx.Request, token: Token) -> httpx.Request:
    """The request that asks about a token. It has no cookie, so that the token alone decides."""
    url = request.url.copy_with(raw_path=CHECK_PATH.encode())
    headers = {"Authorization": token.bearer, "Accept-Encoding": "identity"}
    return httpx.Request("GET", url, headers=headers, extensions=request.extensions)


def _is_valid(check: httpx.Response) -> bool:
    """Whether the gateway calls the token valid.

    Raises:
        Unavailable: the gateway can't tell now. A busy gateway must not cost a login at the cloud.
    """
    if check.is_redirect or check.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Unavailable(f"the gateway can't check the token now ({check.status_code})")
    return check.is_success and b"invalid" not in check.content.lower()


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
