"""Enphase's cloud: from an account to a token. One attempt; `bridge.gateway.tokens` decides when to try again."""

import asyncio
import hashlib
import json
import ssl
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus

import httpx
from pydantic import SecretStr

from bridge.gateway.errors import (
    Blocked,
    CloudUnavailable,
    ConnectionFault,
    MultiFactor,
    NotOnAccount,
    RateLimited,
    WrongPassword,
)
from bridge.gateway.token import Token
from bridge.gateway.transport import (
    HEADERS,
    RequestLog,
    bounded,
    quiet_libraries,
    short_retries,
    translated,
)
from bridge.model import BadAnswer, BadSetting, BridgeError, Unavailable
from bridge.settings import CloudSettings

CLOUD_NAME = "Enphase's cloud"
PASSING_STATUSES = frozenset({502, 503, 504})
ACCOUNT_MARK_ROUNDS, ACCOUNT_MARK_BYTES = 100_000, 8
REFUSING_STATUSES = frozenset({400, 401, 403, 404, 422})


@dataclass(frozen=True, slots=True)
class CloudLimits:
    """Seconds and bytes. `deadline` is for a whole attempt.

    `request_wait` is how long a request to the gateway waits for an attempt: less than that request may take.
    """

    connect: float = 10.0
    read: float = 30.0
    deadline: float = 60.0
    request_wait: float = 10.0
    body: int = 256 * 1024
    attempts: int = 2
    retry_wait: float = 2.0


class Cloud:
    """One account at Enphase. Every error says what a person can do; none holds anything that the cloud has
    sent.
    """

    def __init__(
        self,
        settings: CloudSettings,
        username: str,
        password: SecretStr,
        *,
        limits: CloudLimits | None = None,
    ) -> None:
        quiet_libraries()
        self._settings = settings
        self._username = username
        self._password = password
        self._limits = limits or CloudLimits()
        self._log = RequestLog(f"{CLOUD_NAME}: ")
        if settings.ca_file is not None:
            _trust(settings)  # a wrong file is told at the start, not at the first renewal

    @property
    def request_wait_s(self) -> float:
        """Seconds for which a request to the gateway waits for an attempt."""
        return self._limits.request_wait

    @cached_property
    def account_mark(self) -> str:
        """A text that differs with account and password and does not reveal them: it is kept on disk."""
        salt = f"{self._settings.login_url} {self._username}".encode()
        secret = self._password.get_secret_value().encode()
        return hashlib.pbkdf2_hmac("sha256", secret, salt, ACCOUNT_MARK_ROUNDS, ACCOUNT_MARK_BYTES).hex()

    async def token(self, serial: str) -> Token:
        """A token as the cloud gave it: readable, but not checked against the gateway.

        Raises:
            CloudRejected: the account can't have one; a subclass says why.
            CloudUnavailable: the cloud is down, slow or confused.
        """
        try:
            async with asyncio.timeout(self._limits.deadline), self._client() as client:
                return await self._token(client, serial)
        except TimeoutError:
            raise CloudUnavailable(f"{CLOUD_NAME} did not answer in time") from None
        except CloudUnavailable:
            raise
        except BadAnswer as error:
            raise CloudUnavailable(f"{CLOUD_NAME}: {error}") from None
        except Unavailable as error:
            raise CloudUnavailable(str(error)) from None

    async def _token(self, client: httpx.AsyncClient, serial: str) -> Token:
        session = await self._login(client)
        try:
            return await self._request_token(client, session, serial)
        except RateLimited:
            raise
        except (BadAnswer, Unavailable) as error:
            try:
                return await self._entrez_token(client, serial)
            except BridgeError:
                raise error from None

    async def _login(self, client: httpx.AsyncClient) -> str:
        form = {"user[email]": self._username, "user[password]": self._password.get_secret_value()}
        status, body = await self._send(client, "POST", self._settings.login_url, data=form)
        if status == HTTPStatus.UNAUTHORIZED:
            raise WrongPassword
        _require(status, "the login")
        answer = _object(body)
        if answer.get("isBlocked") is True:
            raise Blocked
        session = answer.get("session_id")
        if isinstance(session, str) and session:
            return session
        if answer.get("success") is True or answer.get("message") == "success":
            raise MultiFactor
        raise CloudUnavailable(f"{CLOUD_NAME} fails at the login without a reason: trying again later")

    async def _request_token(self, client: httpx.AsyncClient, session: str, serial: str) -> Token:
        wish = {"session_id": session, "serial_num": serial, "username": self._username}
        status, body = await self._send(client, "POST", self._settings.token_url, json=wish)
        if status in REFUSING_STATUSES:
            raise NotOnAccount(serial)
        _require(status, "the token request")
        return _readable(body)

    async def _entrez_token(self, client: httpx.AsyncClient, serial: str) -> Token:
        """The brief's second way to a token: it goes by the login's cookie, which the client keeps."""
        status, body = await self._send(client, "GET", self._settings.entrez_url, params={"serial_num": serial})
        _require(status, "the token request")
        return _readable(body)

    async def _send(self, client: httpx.AsyncClient, method: str, url: str, **content: object) -> tuple[int, bytes]:
        async def once() -> tuple[int, bytes]:
            with translated(self._log, CLOUD_NAME, method, httpx.URL(url).path):
                response = await client.request(method, url, **content)  # type: ignore[arg-type] # httpx's own
            if response.status_code in PASSING_STATUSES:
                raise ConnectionFault(f"{CLOUD_NAME} is down ({response.status_code}): trying again later")
            return response.status_code, response.content

        return await short_retries(once, self._limits.attempts, self._limits.retry_wait)

    def _client(self) -> httpx.AsyncClient:
        """A new client for each attempt, since they are months apart. It uses the environment's proxies."""
        return httpx.AsyncClient(
            verify=_trust(self._settings),
            headers=HEADERS,
            timeout=httpx.Timeout(self._limits.read, connect=self._limits.connect),
            event_hooks={"response": [bounded(self._limits.body), self._log.answered]},
        )


def _trust(settings: CloudSettings) -> ssl.SSLContext:
    """The TLS context; the cloud's certificate is always verified."""
    if settings.ca_file is None:
        trust = httpx.create_ssl_context()
        trust.load_default_certs()  # httpx brings its own certificates; the system may hold a proxy's
        return trust
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        reason = "holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise BadSetting(f"BRIDGE_CLOUD__CA_FILE: {settings.ca_file}: {reason}") from None


def _require(status: int, step: str) -> None:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited(f"{CLOUD_NAME} asks for a pause (429): trying again later")
    if status == HTTPStatus.NOT_ACCEPTABLE:
        raise CloudUnavailable(
            f"{CLOUD_NAME} does not accept {step} from this program (406): look for a newer version of it"
        )
    if status != HTTPStatus.OK:
        raise CloudUnavailable(f"{CLOUD_NAME} fails at {step} ({status}): trying again later")


def _object(body: bytes) -> dict[str, object]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise CloudUnavailable(f"{CLOUD_NAME} answers with a page instead of data: trying again later")
    return answer


def _readable(body: bytes) -> Token:
    try:
        return Token.parse(body.decode(errors="replace"))
    except BridgeError:
        raise CloudUnavailable(
            f"{CLOUD_NAME} answers with something that is no token: trying again later"
        ) from None
