"""Tokens: what they contain, which one is used, and how Enphase's cloud is asked for one."""

import asyncio
import base64
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from pytest_httpx import HTTPXMock

from bridge.gateway.cloud import Cloud, CloudLimits
from bridge.gateway.errors import (
    Blocked,
    CloudRejected,
    CloudUnavailable,
    MultiFactor,
    NotOnAccount,
    TokenRejected,
    WrongPassword,
)
from bridge.gateway.token import Token
from bridge.gateway.tokens import CLOUD_PAUSES_S, Backoff, TokenSource
from bridge.model import DAY_S, BadSetting, BridgeError, Rejected, Unavailable
from bridge.settings import CloudSettings, GatewaySettings
from bridge.state import CloudPause

SERIAL, OTHER_SERIAL = "122125067699", "122125067700"
NOW = 1_800_000_000.0
YEAR_S = 365 * DAY_S
PASSWORD, SESSION, COOKIE = "Pa55w0rd-secret", "5e5510n-secret", "c00k1e-secret"
USER = "user@example.com"
CLOUD_SETTINGS = CloudSettings()
LOGIN_ANSWER = {"message": "success", "session_id": SESSION, "manager_token": "m4nager-secret", "is_consumer": True}
QUICK_LIMITS = CloudLimits(retry_wait=0)
HTML_PAGE = "<!DOCTYPE html><html><body>We will be back soon (b0dy-secret)</body></html>"


def jwt(**claims: Any) -> str:
    own = {
        "aud": SERIAL,
        "iss": "Entrez",
        "enphaseUser": "owner",
        "exp": NOW + YEAR_S,
        "iat": NOW,
        "username": USER,
    }
    return ".".join([_part({"alg": "ES256", "typ": "JWT"}), _part({**own, **claims}), "c2lnbmF0dXJl"])


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.fixture(autouse=True)
def nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert_no_secret(caplog.text)


def assert_no_secret(text: str) -> None:
    assert not re.search(r"secret|ey[\w-]{10,}\.", text), text


def advice(error: BaseException | str | None) -> str:
    """One line of plain words that says what to do."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert_no_secret(text + repr(error))
    return text


@dataclass
class Hands:
    """Both clocks, which the test moves."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class Runs:
    """The token sources of one gateway in one run after the other, and the state in its store."""

    clock: Hands = field(default_factory=Hands)
    kept: list[str] = field(default_factory=list)
    pause: CloudPause | None = None
    stored: str | None = None

    def load_tokens(self, serial: str) -> tuple[SecretStr | None, CloudPause | None]:
        assert serial == SERIAL
        return (SecretStr(self.stored) if self.stored else None), self.pause

    def save_token(self, serial: str, token: SecretStr) -> None:
        assert serial == SERIAL
        self.kept.append(token.get_secret_value())

    def save_pause(self, serial: str, pause: CloudPause | None) -> None:
        """Save the pause in the form that the file has."""
        assert serial == SERIAL
        self.pause = pause and CloudPause.model_validate_json(pause.model_dump_json())
        assert_no_secret(str(self.pause))

    def restarted(self, password: str = PASSWORD, **settings: Any) -> TokenSource:
        """Start another run of the bridge, whose gateway has told its serial number."""
        source = self.source(username=USER, password=SecretStr(password), **settings)
        source.identify(SERIAL)
        return source

    def source(
        self,
        stored: str | None = None,
        *,
        account: bool = True,
        limits: CloudLimits = QUICK_LIMITS,
        **settings: Any,
    ) -> TokenSource:
        own = GatewaySettings(serial=SERIAL, **settings)
        cloud = Cloud(CLOUD_SETTINGS, USER, own.password or SecretStr(PASSWORD), limits=limits) if account else None
        self.stored = stored
        return TokenSource(own, cloud, store=self, serial=SERIAL, clock=self.clock, monotonic=self.clock)


@pytest.fixture
def runs() -> Runs:
    return Runs()


def secret(token: Token) -> str:
    return token.secret.get_secret_value()


# --- what a token says ---


def test_token_tells_what_it_is_for() -> None:
    token = Token.parse(jwt())
    assert token.serials == (SERIAL,)
    assert token.role == "owner"
    assert token.issued == datetime.fromtimestamp(NOW, UTC)
    assert token.expires == datetime.fromtimestamp(NOW + YEAR_S, UTC)


def test_token_never_shows_itself() -> None:
    token = Token.parse(jwt())
    assert secret(token) == jwt()
    assert jwt() not in f"{token} {token!r} {[token]}"
    assert_no_secret(f"{token} {token!r}")


@pytest.mark.parametrize(
    "pasted",
    [
        f"  {jwt()}\n",
        f"Bearer {jwt()}",
        f"\ufeff{jwt()}\r\n",
        f'"{jwt()}"',
        json.dumps({"generation_time": 1, "token": jwt(), "expires_at": 2}),
    ],
)
def test_token_as_people_paste_it(pasted: str) -> None:
    assert secret(Token.parse(pasted)) == jwt()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        HTML_PAGE,
        "a.b.c",
        "{",
        '{"token": 5}',
        '{"message": "no"}',
        "[" * 10_000,
        jwt() + ".more",
        jwt(exp=None),
        jwt(exp="tomorrow"),
        jwt(exp=True),
        jwt(exp=1e300),
        jwt(exp=1e16),
        jwt(exp=-1e16),
        jwt(iat="yesterday"),
        ".".join([_part({}), _part([1, 2]), "x"]),
        ".".join([_part({}), "e30", "x"]),
        jwt(filler="x" * 10_000),
    ],
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(TokenRejected) as error:
        Token.parse(text)
    assert "entrez.enphaseenergy.com" in advice(error.value)


@given(st.text() | st.lists(st.text(alphabet="abcXYZ019-_="), min_size=3, max_size=3).map(".".join))
def test_any_text_is_a_token_or_is_refused(text: str) -> None:
    with pytest.raises(TokenRejected):
        Token.parse(text)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            key: st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.integers())
            for key in ("aud", "exp", "iat", "enphaseUser")
        },
    )
)
def test_any_claims_are_read_or_refused(claims: dict[str, Any]) -> None:
    try:
        token = Token.parse(jwt(**claims))
    except TokenRejected:
        return
    assert len(token.role) <= 32
    token.due(NOW)


def test_token_for_several_gateways() -> None:
    token = Token.parse(jwt(aud=[OTHER_SERIAL, SERIAL]))
    token.check(SERIAL, NOW)
    Token.parse(jwt(aud=int(SERIAL))).check(SERIAL, NOW)


def test_token_of_another_gateway_is_refused() -> None:
    with pytest.raises(TokenRejected, match=f"is for gateway {OTHER_SERIAL}, this one is {SERIAL}") as error:
        Token.parse(jwt(aud=OTHER_SERIAL)).check(SERIAL, NOW)
    advice(error.value)


def test_claims_do_not_get_into_texts() -> None:
    token = Token.parse(jwt(aud="evil\nline", enphaseUser="<script>"))
    assert token.role == ""
    with pytest.raises(TokenRejected, match="is for gateway unknown"):
        token.check(SERIAL, NOW)


def test_expired_token_is_refused() -> None:
    token = Token.parse(jwt(exp=NOW))
    token.check(SERIAL, NOW - 1)
    with pytest.raises(TokenRejected, match="expired on 2027-01-15") as error:
        token.check(SERIAL, NOW)
    advice(error.value)


@pytest.mark.parametrize(
    ("role", "life", "last_tenth"), [("owner", YEAR_S, 36.5 * DAY_S), ("installer", 12 * 3600, 4320)]
)
@pytest.mark.parametrize("dated", [True, False])
def test_renewal_is_due_at_the_last_tenth(role: str, life: float, last_tenth: float, dated: bool) -> None:
    claims = {"enphaseUser": role, "exp": NOW + life, "iat": NOW}
    if not dated:
        del claims["iat"]
        claims = {**claims, "unrelated": 1}
    text = ".".join([_part({}), _part({"aud": SERIAL, **claims}), "x"])
    token = Token.parse(text)
    assert not token.due(NOW + life - last_tenth - 1)
    assert token.due(NOW + life - last_tenth)


# --- the cloud, one attempt ---


@pytest.fixture
def cloud() -> Cloud:
    return Cloud(CLOUD_SETTINGS, USER, SecretStr(PASSWORD), limits=QUICK_LIMITS)


def login(mock: HTTPXMock, **answer: Any) -> None:
    mock.add_response(method="POST", url=CLOUD_SETTINGS.login_url, **(answer or {"json": LOGIN_ANSWER}))


def tokens(mock: HTTPXMock, **answer: Any) -> None:
    mock.add_response(method="POST", url=CLOUD_SETTINGS.token_url, **(answer or {"text": jwt()}))


def entrez(mock: HTTPXMock, **answer: Any) -> None:
    mock.add_response(method="GET", url=f"{CLOUD_SETTINGS.entrez_url}?serial_num={SERIAL}", **answer)


async def test_login_then_token(httpx_mock: HTTPXMock, cloud: Cloud) -> None:
    login(httpx_mock)
    tokens(httpx_mock)
    assert secret(await cloud.token(SERIAL)) == jwt()
    first, second = httpx_mock.get_requests()
    assert parse_qs(first.content.decode()) == {"user[email]": [USER], "user[password]": [PASSWORD]}
    assert json.loads(second.content) == {"session_id": SESSION, "serial_num": SERIAL, "username": USER}


async def test_the_other_road_goes_by_the_cookie(httpx_mock: HTTPXMock, cloud: Cloud) -> None:
    cookie = {"Set-Cookie": f"_enlighten_4_session={COOKIE}; path=/; secure; HttpOnly"}
    login(httpx_mock, json=LOGIN_ANSWER, headers=cookie)
    tokens(httpx_mock, text=HTML_PAGE)
    entrez(httpx_mock, json={"generation_time": 1, "token": jwt(), "expires_at": 2})
    assert secret(await cloud.token(SERIAL)) == jwt()
    assert COOKIE in httpx_mock.get_requests()[-1].headers["Cookie"]
    assert "Cookie" not in httpx_mock.get_requests()[1].headers  # another host


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"status_code": 401, "text": HTML_PAGE}, WrongPassword, "BRIDGE_GATEWAY__PASSWORD"),
        ({"json": {"success": True, "isBlocked": False}}, MultiFactor, "second factor"),
        ({"json": {"message": "success", "session_id": None}}, MultiFactor, "second factor"),
        ({"json": {"success": False, "isBlocked": True}}, Blocked, "blocked"),
        ({"json": {**LOGIN_ANSWER, "isBlocked": True}}, Blocked, "blocked"),
        ({"status_code": 406}, CloudUnavailable, "406"),
        ({"status_code": 429}, CloudUnavailable, "429"),
        ({"status_code": 500, "text": HTML_PAGE}, CloudUnavailable, "500"),
        ({"status_code": 302, "headers": {"Location": "https://elsewhere"}}, CloudUnavailable, "302"),
        ({"status_code": 200, "html": HTML_PAGE}, CloudUnavailable, "page instead of data"),
        ({"status_code": 200, "text": ""}, CloudUnavailable, "page instead of data"),
        ({"status_code": 200, "text": "[" * 100_000}, CloudUnavailable, "page instead of data"),
        ({"status_code": 200, "json": ["secret"]}, CloudUnavailable, "page instead of data"),
        ({"status_code": 200, "json": {"success": False}}, CloudUnavailable, "without a reason"),
        ({"status_code": 200, "json": {}}, CloudUnavailable, "without a reason"),
        ({"status_code": 200, "json": {"error": "maintenance"}}, CloudUnavailable, "without a reason"),
        ({"status_code": 200, "text": "x" * 1_000_000}, CloudUnavailable, "cloud: the answer is longer"),
    ],
)
async def test_states_of_the_login(
    httpx_mock: HTTPXMock, cloud: Cloud, answer: dict[str, Any], kind: type[BridgeError], words: str
) -> None:
    login(httpx_mock, **answer)
    with pytest.raises(kind) as error:
        await cloud.token(SERIAL)
    assert words in advice(error.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_serial_not_on_the_account(httpx_mock: HTTPXMock, cloud: Cloud, status: int) -> None:
    login(httpx_mock)
    tokens(httpx_mock, status_code=status, text=HTML_PAGE)
    with pytest.raises(NotOnAccount, match=SERIAL) as error:
        await cloud.token(SERIAL)
    advice(error.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status_code": 200, "html": HTML_PAGE}, "no token"),
        ({"status_code": 200, "json": {"message": "try later"}}, "no token"),
        ({"status_code": 200, "content": b"\xff\xfe"}, "no token"),
        ({"status_code": 500}, "500"),
        ({"status_code": 406}, "406"),
    ],
)
async def test_where_both_roads_fail_the_first_is_told(
    httpx_mock: HTTPXMock, cloud: Cloud, answer: dict[str, Any], words: str
) -> None:
    login(httpx_mock)
    tokens(httpx_mock, **answer)
    entrez(httpx_mock, status_code=403)
    with pytest.raises(CloudUnavailable) as error:
        await cloud.token(SERIAL)
    assert words in advice(error.value)


async def test_a_cloud_that_asks_for_a_pause_gets_one(httpx_mock: HTTPXMock, cloud: Cloud) -> None:
    login(httpx_mock)
    tokens(httpx_mock, status_code=429)
    with pytest.raises(CloudUnavailable, match="429"):
        await cloud.token(SERIAL)
    assert len(httpx_mock.get_requests()) == 2


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_moment_of_trouble_is_tried_again_once(httpx_mock: HTTPXMock, cloud: Cloud, status: int) -> None:
    login(httpx_mock, status_code=status)
    login(httpx_mock)
    tokens(httpx_mock)
    assert secret(await cloud.token(SERIAL)) == jwt()


async def test_a_lasting_one_is_not(httpx_mock: HTTPXMock, cloud: Cloud) -> None:
    login(httpx_mock, status_code=503)
    login(httpx_mock, status_code=503)
    with pytest.raises(CloudUnavailable, match="503"):
        await cloud.token(SERIAL)


@pytest.mark.parametrize(
    ("fault", "requests", "words"),
    [
        (httpx.ConnectError("secret"), 2, "no connection to Enphase's cloud"),
        (httpx.ReadError("secret"), 2, "no connection to Enphase's cloud"),
        (httpx.ConnectTimeout("secret"), 1, "can't be reached in time"),
        (httpx.ReadTimeout("secret"), 1, "did not answer in time"),
        (httpx.ProxyError("secret"), 2, "no connection to Enphase's cloud"),
    ],
)
async def test_cloud_out_of_reach(
    httpx_mock: HTTPXMock, cloud: Cloud, fault: Exception, requests: int, words: str
) -> None:
    httpx_mock.add_exception(fault, is_reusable=True)
    with pytest.raises(CloudUnavailable) as error:
        await cloud.token(SERIAL)
    assert words in advice(error.value)
    assert len(httpx_mock.get_requests()) == requests


async def test_a_cloud_that_never_answers_is_given_up(httpx_mock: HTTPXMock) -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    httpx_mock.add_callback(never)
    cloud = Cloud(CLOUD_SETTINGS, USER, SecretStr(PASSWORD), limits=CloudLimits(deadline=0.01))
    with pytest.raises(CloudUnavailable, match="did not answer in time"):
        await cloud.token(SERIAL)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_wrong_ca_file_is_told_at_the_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(BadSetting, match=r"BRIDGE_CLOUD__CA_FILE: .*ca\.pem: "):
        Cloud(CloudSettings(ca_file=file), USER, SecretStr(PASSWORD))


# --- which token serves ---


async def test_a_pasted_token_needs_no_cloud(runs: Runs) -> None:
    tokens = runs.source(token=jwt())
    assert secret(await tokens.current()) == jwt()
    assert tokens.problem is None
    assert tokens.role == "owner"
    assert tokens.expires == datetime.fromtimestamp(NOW + YEAR_S, UTC)
    assert "secret" not in repr(tokens)


async def test_a_stored_token_serves_after_a_restart(runs: Runs) -> None:
    tokens = runs.source(stored=jwt())
    assert secret(await tokens.current()) == jwt()


async def test_a_token_that_is_found_later(runs: Runs) -> None:
    """The store finds the token by the serial number, which only the gateway could tell."""
    tokens = TokenSource(GatewaySettings(), None, store=runs, clock=runs.clock, monotonic=runs.clock)
    runs.stored = jwt()
    tokens.identify(SERIAL)
    assert secret(await tokens.current()) == jwt()


async def test_a_token_from_a_file(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(jwt() + "\n")
    assert secret(await runs.source(account=False, token_file=file).current()) == jwt()


async def test_without_a_serial_no_token_is_given_out(runs: Runs) -> None:
    tokens = TokenSource(GatewaySettings(token=SecretStr(jwt())), None, clock=runs.clock)
    with pytest.raises(Unavailable, match="serial"):
        await tokens.current()
    tokens.identify(SERIAL)
    assert secret(await tokens.current()) == jwt()


@pytest.mark.parametrize(
    ("pasted", "words"),
    [
        (None, "there is no token"),
        ("nonsense", "BRIDGE_GATEWAY__TOKEN: this is not a token"),
        (jwt(exp=NOW - 1), "expired"),
        (jwt(aud=OTHER_SERIAL), OTHER_SERIAL),
    ],
)
async def test_without_an_account_a_person_must_act(runs: Runs, pasted: str | None, words: str) -> None:
    tokens = runs.source(account=False, token=pasted)
    with pytest.raises(Rejected) as error:
        await tokens.current()
    assert words in advice(error.value)
    assert "https://entrez.enphaseenergy.com" in str(error.value)
    assert tokens.problem == str(error.value)


@pytest.mark.parametrize("pasted", [None, "nonsense", jwt(exp=NOW - 1), jwt(aud=OTHER_SERIAL)])
async def test_a_useless_token_gives_way_to_a_stored_one(runs: Runs, pasted: str | None) -> None:
    tokens = runs.source(token=pasted, stored=jwt(jti="stored"))
    assert secret(await tokens.current()) == jwt(jti="stored")


@pytest.mark.parametrize("pasted", [None, "nonsense", jwt(exp=NOW - 1), jwt(aud=OTHER_SERIAL)])
async def test_a_useless_token_gives_way_to_the_account(
    httpx_mock: HTTPXMock, runs: Runs, pasted: str | None
) -> None:
    login(httpx_mock)
    tokens(httpx_mock)
    source = runs.source(token=pasted, stored=jwt(exp=NOW - 5))
    assert source.problem is None or pasted
    assert secret(await source.current()) == jwt()
    assert runs.kept == [jwt()]
    assert source.problem is None


async def test_a_token_file_that_has_become_a_pipe_is_not_waited_for(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(jwt())
    tokens = runs.source(account=False, token_file=file)
    file.unlink()
    os.mkfifo(file)
    assert secret(await tokens.current()) == jwt()
    with pytest.raises(Rejected, match=r"TOKEN_FILE: .* is no ordinary file"):
        await tokens.replace(Token.parse(jwt()))  # the gateway has refused it, so the file is read again


async def test_a_token_file_is_read_again_when_its_token_is_of_no_use(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / "token"
    tokens = runs.source(account=False, token_file=file)
    with pytest.raises(Rejected, match=r"TOKEN_FILE: .*No such file") as error:
        await tokens.current()
    advice(error.value)
    file.write_text(jwt(exp=NOW + 10))
    assert secret(await tokens.current()) == jwt(exp=NOW + 10)
    file.write_text(jwt()[:40])  # another program is just writing the file
    assert secret(await tokens.current()) == jwt(exp=NOW + 10)
    file.write_text(jwt(jti="new"))
    assert secret(await tokens.replace(Token.parse(jwt(exp=NOW + 10)))) == jwt(jti="new")


# --- renewal ---


async def settle(source: TokenSource) -> None:
    """Let a renewal in the background end."""
    if source._renewal and source._renewal._attempt:
        await asyncio.wait([source._renewal._attempt])


async def test_the_old_token_serves_while_the_new_one_is_fetched(httpx_mock: HTTPXMock, runs: Runs) -> None:
    login(httpx_mock)
    tokens(httpx_mock, text=jwt(jti="new"))
    old = jwt(exp=NOW + DAY_S, iat=NOW - 300 * DAY_S)
    source = runs.source(stored=old)
    assert secret(await source.current()) == old
    await settle(source)
    assert secret(await source.current()) == jwt(jti="new")
    assert runs.kept == [jwt(jti="new")]
    assert source.problem is None


@pytest.mark.parametrize(
    "bad", [jwt(aud=OTHER_SERIAL), jwt(exp=NOW - 1), "nonsense", jwt()[:-200], json.dumps({"message": "no"})]
)
@pytest.mark.expects_log("no new token")
async def test_a_new_token_is_checked_before_it_replaces_the_old(
    httpx_mock: HTTPXMock, runs: Runs, bad: str
) -> None:
    login(httpx_mock)
    tokens(httpx_mock, text=bad)
    httpx_mock.add_response(method="GET", status_code=500, is_optional=True)
    old = jwt(exp=NOW + DAY_S, iat=NOW - 300 * DAY_S)
    source = runs.source(stored=old)
    await source.current()
    await settle(source)
    assert secret(await source.current()) == old
    assert runs.kept == []
    assert "serves until" in advice(source.problem)


@pytest.mark.expects_log("no new token")
async def test_a_cloud_that_is_down_is_asked_ever_more_seldom(
    httpx_mock: HTTPXMock, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """The old token is still used, there is one WARNING, and after three attempts at most one in 15 minutes."""
    httpx_mock.add_response(status_code=500, is_reusable=True)
    source = runs.source(stored=jwt(exp=NOW + 2 * DAY_S, iat=NOW - 300 * DAY_S))
    attempts: list[float] = []
    for minute in range(24 * 60):
        runs.clock.now = NOW + 60 * minute
        before = len(httpx_mock.get_requests())
        await source.current()
        await settle(source)
        attempts += [runs.clock.now] * (len(httpx_mock.get_requests()) - before)
    gaps = [later - earlier for earlier, later in pairwise(attempts)]
    assert min(gaps[2:]) >= 15 * 60
    assert max(gaps) >= 4 * 3600
    assert len(attempts) <= 12
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert "serves until" in advice(source.problem)


async def test_without_any_token_a_cloud_that_is_down_is_no_fault_of_the_owner(
    httpx_mock: HTTPXMock, runs: Runs
) -> None:
    httpx_mock.add_response(status_code=500, is_reusable=True)
    source = runs.source()
    for _ in range(20):
        with pytest.raises(Unavailable) as error:
            await source.current()
        advice(error.value)
        assert source.problem == str(error.value)
    assert len(httpx_mock.get_requests()) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "again"),
    [
        ({"status_code": 401}, WrongPassword, False),
        ({"json": {"success": True, "isBlocked": False}}, MultiFactor, True),
        ({"json": {"isBlocked": True}}, Blocked, True),
    ],
)
async def test_a_refused_account_is_left_alone(
    httpx_mock: HTTPXMock, runs: Runs, answer: dict[str, Any], kind: type[CloudRejected], again: bool
) -> None:
    httpx_mock.add_response(is_reusable=True, **answer)
    source = runs.source()
    for hour in range(23):
        runs.clock.now = NOW + 3600 * hour
        with pytest.raises(kind):
            await source.current()
    assert len(httpx_mock.get_requests()) == 1
    assert advice(source.problem)
    runs.clock.now = NOW + 365 * DAY_S
    with pytest.raises(kind):
        await source.current()
    assert len(httpx_mock.get_requests()) == 1 + again


@pytest.mark.parametrize(
    ("answer", "kind", "hours"),
    [
        ({"status_code": 401}, WrongPassword, 24 * 365),
        ({"json": {"success": True, "isBlocked": False}}, MultiFactor, 23),
        ({"json": {"isBlocked": True}}, Blocked, 23),
        ({"status_code": 500}, CloudUnavailable, 0.01),
    ],
)
async def test_a_restart_costs_no_login(
    httpx_mock: HTTPXMock, runs: Runs, answer: dict[str, Any], kind: type[BridgeError], hours: float
) -> None:
    """A bridge that is restarted again and again must not get the account locked."""
    httpx_mock.add_response(is_reusable=True, **answer)
    with pytest.raises(kind):
        await runs.source().current()
    for share in (0.0, 0.5, 0.5):
        runs.clock.now += share * hours * 3600
        source = runs.restarted()
        with pytest.raises(kind) as error:
            await source.current()
        assert source.problem == advice(error.value)
    assert len(httpx_mock.get_requests()) == 1
    with pytest.raises(kind):
        await runs.restarted("another, secret").current()
    assert len(httpx_mock.get_requests()) == 2


async def test_a_restart_makes_a_long_outage_of_the_cloud_shorter(httpx_mock: HTTPXMock, runs: Runs) -> None:
    """After a restart the next attempt comes soon, but not at once."""
    httpx_mock.add_response(status_code=500, is_reusable=True)
    source = runs.source()
    for _ in CLOUD_PAUSES_S:
        with pytest.raises(CloudUnavailable):
            await source.current()
        runs.clock.now += 1.3 * CLOUD_PAUSES_S[-1]
    runs.clock.now -= 1.3 * CLOUD_PAUSES_S[-1]
    asked = len(httpx_mock.get_requests())
    source = runs.restarted()
    for wait, more in ((0, 0), (14 * 60, 0), (2 * 60, 1), (3600, 1)):
        runs.clock.now += wait
        with pytest.raises(CloudUnavailable):
            await source.current()
        assert len(httpx_mock.get_requests()) == asked + more


async def test_a_clock_that_was_never_set_makes_no_pause_longer(httpx_mock: HTTPXMock, runs: Runs) -> None:
    login(httpx_mock, json={"isBlocked": True})
    with pytest.raises(Blocked):
        await runs.source().current()
    runs.clock.now = 0.0
    source = runs.restarted()
    login(httpx_mock)
    tokens(httpx_mock)
    with pytest.raises(Blocked):
        await source.current()
    runs.clock.now = 31 * 3600
    assert secret(await source.current()) == jwt()


async def test_a_damaged_stored_token_is_dropped_silently(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    tokens = runs.source(stored="damaged", account=False)
    with pytest.raises(TokenRejected, match="there is no token"):
        await tokens.current()
    assert caplog.text == ""


@pytest.mark.parametrize("damaged", [{}, {"account": None}, {"account": "x"}, {"why": "WrongPassword"}])
async def test_what_cannot_be_recalled_is_forgotten(httpx_mock: HTTPXMock, runs: Runs, damaged: object) -> None:
    login(httpx_mock)
    tokens(httpx_mock)
    source = runs.source()
    runs.pause = CloudPause.model_validate(damaged)
    source.identify(SERIAL)
    assert secret(await source.current()) == jwt()


async def test_a_token_that_is_proved_ends_the_memory_of_failures(httpx_mock: HTTPXMock, runs: Runs) -> None:
    login(httpx_mock, status_code=500)
    source = runs.source()
    with pytest.raises(CloudUnavailable):
        await source.current()
    assert runs.pause
    runs.clock.now += 3600
    login(httpx_mock)
    tokens(httpx_mock)
    source.accepted(await source.current())
    assert runs.pause is None


async def test_a_pasted_token_helps_a_refused_account(httpx_mock: HTTPXMock, runs: Runs, tmp_path: Path) -> None:
    login(httpx_mock, json={"success": True})
    file = tmp_path / "token"
    source = runs.source(token_file=file)
    with pytest.raises(MultiFactor):
        await source.current()
    file.write_text(jwt())
    assert secret(await source.current()) == jwt()
    assert source.problem is None


async def test_whoever_waits_may_give_up_and_the_login_goes_on(httpx_mock: HTTPXMock, runs: Runs) -> None:
    slow = asyncio.Event()

    async def answer(_: httpx.Request) -> httpx.Response:
        await slow.wait()
        return httpx.Response(200, json=LOGIN_ANSWER)

    httpx_mock.add_callback(answer, method="POST", url=CLOUD_SETTINGS.login_url)
    tokens(httpx_mock)
    source = runs.source()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(source.current(), 0.01)
    slow.set()
    assert secret(await source.current()) == jwt()
    assert len(httpx_mock.get_requests()) == 2


async def test_a_cloud_that_hangs_does_not_pass_for_a_gateway_that_does(httpx_mock: HTTPXMock, runs: Runs) -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    httpx_mock.add_callback(never)
    source = runs.source(limits=CloudLimits(retry_wait=0, request_wait=0.01))
    with pytest.raises(CloudUnavailable, match="not answered yet") as error:
        await source.current()
    advice(error.value)
    await source.aclose()


async def test_closing_ends_a_login(httpx_mock: HTTPXMock, runs: Runs) -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    httpx_mock.add_callback(never)
    source = runs.source(stored=jwt(exp=NOW + DAY_S, iat=NOW - 300 * DAY_S))
    await source.current()
    await asyncio.sleep(0)
    await source.aclose()
    assert source._renewal
    assert source._renewal._attempt
    assert source._renewal._attempt.cancelled()
    await runs.source().aclose()


@pytest.mark.may_log("no new token")  # unless an older token is tried again just then
async def test_a_new_token_that_the_gateway_refuses_is_not_fetched_for_ever(
    httpx_mock: HTTPXMock, runs: Runs, warned: Sequence[str]
) -> None:
    """A gateway with a wrong clock refuses all tokens, and the bridge must not ask the cloud for ever more."""
    httpx_mock.add_response(url=CLOUD_SETTINGS.login_url, json=LOGIN_ANSWER, is_reusable=True)
    issued = iter(range(1000))
    httpx_mock.add_callback(
        lambda _: httpx.Response(200, text=jwt(jti=next(issued))), url=CLOUD_SETTINGS.token_url, is_reusable=True
    )
    source = runs.source()
    for minute in range(24 * 60):
        runs.clock.now = NOW + 60 * minute
        try:
            token = await source.current()
        except Rejected as error:
            assert "refuses even a new token" in advice(error)  # noqa: PT017 - some of them are served
        else:
            source.refused(token)
    assert next(issued) <= 12
    assert "refuses even a new token" in advice(source.problem)
    assert len(warned) <= 1, "told once, not with each attempt"

    runs.clock.now = NOW + 3 * DAY_S
    source.accepted(await source.current())
    assert source.problem is None


@pytest.mark.expects_log("no new token")
async def test_the_old_token_serves_where_the_new_one_is_refused(httpx_mock: HTTPXMock, runs: Runs) -> None:
    login(httpx_mock)
    tokens(httpx_mock, text=jwt(jti="new"))
    old = jwt(exp=NOW + DAY_S, iat=NOW - 300 * DAY_S)
    source = runs.source(stored=old)
    await source.current()
    await settle(source)
    new = await source.current()
    assert secret(await source.replace(new)) == old


async def test_a_refused_token_gets_another_chance(runs: Runs) -> None:
    """A gateway that has just started has a wrong clock. Its only token must not be lost."""
    source = runs.source(account=False, token=jwt())
    with pytest.raises(Rejected, match="the gateway refuses the token"):
        await source.replace(await source.current())
    runs.clock.now += 301
    token = await source.current()
    source.accepted(token)
    assert secret(token) == jwt()


async def test_revoked_tokens_do_not_keep_the_account_from_being_asked(httpx_mock: HTTPXMock, runs: Runs) -> None:
    """Each token is tried again after five minutes; a bridge that polls every fifteen would try them for ever."""
    login(httpx_mock)
    tokens(httpx_mock, text=jwt(jti="third"))
    source = runs.source(token=jwt(), stored=jwt(jti="second"))
    source._cache.refuse(await source.current())
    source._cache.refuse(await source.current())
    runs.clock.now += 900
    assert secret(await source.current()) == jwt(jti="third")


async def test_a_token_refused_once_comes_last(runs: Runs) -> None:
    """A pasted token that was revoked must not cause a refusal every few minutes."""
    source = runs.source(token=jwt(), stored=jwt(jti="stored"))
    assert secret(await source.replace(await source.current())) == jwt(jti="stored")
    runs.clock.now += DAY_S
    assert secret(await source.current()) == jwt(jti="stored")


async def test_an_expiring_token_without_an_account_is_told_in_time(runs: Runs) -> None:
    source = runs.source(account=False, token=jwt())
    runs.clock.now = NOW + YEAR_S - 30 * DAY_S
    assert secret(await source.current()) == jwt()
    assert "expires on 2028-01-15" in advice(source.problem)


async def test_a_cloud_whose_tokens_are_always_due_is_not_asked_at_each_tick(
    httpx_mock: HTTPXMock, runs: Runs
) -> None:
    httpx_mock.add_response(url=CLOUD_SETTINGS.login_url, json=LOGIN_ANSWER, is_reusable=True)
    due = jwt(exp=NOW + DAY_S, iat=NOW - 300 * DAY_S)
    httpx_mock.add_response(url=CLOUD_SETTINGS.token_url, text=due, is_reusable=True)
    source = runs.source()
    for second in range(600):
        runs.clock.now = NOW + second
        source.accepted(await source.current())
        await settle(source)
    assert len(httpx_mock.get_requests()) == 2


def test_pauses_grow_and_end() -> None:
    clock = Hands()
    pause = Backoff(clock, jitter=lambda: 1.0)
    for seconds in (*CLOUD_PAUSES_S, CLOUD_PAUSES_S[-1], CLOUD_PAUSES_S[-1]):
        pause.begin()
        clock.now += seconds
        assert not pause.is_over  # jitter makes pauses longer, never shorter
        clock.now += seconds / 4
        assert pause.is_over
    pause.succeed()
    pause.begin()
    clock.now += 1.25 * CLOUD_PAUSES_S[0]
    assert pause.is_over


def test_at_most_two_good_tokens_in_a_quarter_of_an_hour() -> None:
    """A gateway that accepts a token and then refuses it must not cost a login each time."""
    clock = Hands()
    pause = Backoff(clock)
    attempts = 0
    for _ in range(4 * 3600):
        clock.now += 1
        if pause.is_over:
            attempts += 1
            pause.begin()
            pause.succeed()
    assert 16 <= attempts <= 33
