"""`token`: it shows, gets and accepts tokens, with every way in which that can fail."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cli import EXIT_CONFIGURATION, EXIT_REFUSED, EXIT_UNAVAILABLE, Person, Shell, home, served, shell

from bridge.gateway.token import Token
from bridge.simulator import Simulator
from bridge.simulator.faults import always
from bridge.simulator.http import HttpReply
from bridge.state import IdentityState
from bridge.store import Store

__all__ = ["shell"]
FILE = Path("state/gateway-122301003111.json")


def stored(serial: str = "122301003111") -> str | None:
    token = Store(Path("state")).load(serial, IdentityState).token
    return token.get_secret_value() if token else None


# --- show ---


def test_a_token_is_shown_but_not_itself(shell: Shell) -> None:
    with home(shell) as simulator:
        shell.run("check")
        simulator.requests.clear()
        told = shell.run("token", "show")
        assert simulator.count() == 0
    token = Token.parse(next(secret for secret in shell.secrets if secret.startswith("ey")))
    assert told.code == 0
    assert told.text.startswith(
        f"Gateway https://127.0.0.1:{told.text.split(':')[2].split(',')[0]}, 122301003111\n"
    )
    assert [(line.step, line.text) for line in told.lines][:3] == [
        ("token", "from BRIDGE_GATEWAY__TOKEN: this one is used"),
        ("role", "owner"),
        ("issued", f"{datetime.fromtimestamp(token.issued.timestamp(), UTC):%Y-%m-%d %H:%M} UTC"),
    ]
    assert told.about("expires").text == f"{token.expires:%Y-%m-%d %H:%M} UTC, 365 days left"
    assert told.about("gateway").text == "122301003111"
    assert len(told.about("fingerprint").text) == 8


def test_all_tokens_are_shown_in_their_order(shell: Shell) -> None:
    simulator = Simulator()
    Path("file").write_text(simulator.token(enphaseUser="installer"))
    shell.set(gateway__token=simulator.token(exp=1_000_000_000), gateway__token_file="file")
    told = shell.run("token", "show")
    assert told.code == 0
    first, second = (line.text for line in told.lines if line.step == "token")
    assert first.startswith("from BRIDGE_GATEWAY__TOKEN: the token expired on 2001-09-09: get a token at https://")
    assert second == "from BRIDGE_GATEWAY__TOKEN_FILE: this one is used"
    assert [line.text for line in told.lines if line.step == "role"] == ["owner", "installer"]
    expired, serves = (line.text for line in told.lines if line.step == "expires")
    assert expired.startswith("2001-09-09 01:46 UTC, expired ")
    assert serves.endswith(" UTC, 12 hours left")


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        ({}, EXIT_REFUSED, "no valid token: get one at https://entrez.enphaseenergy.com"),
        ({"gateway__token": "nonsense"}, EXIT_REFUSED, "from BRIDGE_GATEWAY__TOKEN: this is not a token"),
        (
            {"gateway__token_file": "missing"},
            EXIT_REFUSED,
            "from BRIDGE_GATEWAY__TOKEN_FILE: missing: No such file",
        ),
        (
            {"gateway__username": "me", "gateway__password": "mine"},
            0,
            "no valid token: `iqgateway2mqtt token get`",
        ),
        ({"gateway__host": "http://envoy.local"}, 0, "none is needed: with http:"),
    ],
)
def test_no_token_to_show(shell: Shell, settings: dict[str, str], code: int, says: str) -> None:
    told = shell.set(**settings).run("token", "show")
    assert told.code == code
    assert says in told.text


def test_several_gateways(shell: Shell) -> None:
    one, other = Simulator(), Simulator("split-phase")
    gateways = [{"host": "one.local", "token": one.token()}, {"host": "other.local", "token": other.token()}]
    shell.set(gateways=json.dumps(gateways))
    told = shell.run("token", "show")
    assert [line.text for line in told.lines if line.step == "gateway"] == [one.serial, other.serial]
    told = shell.run("token", "show", "--gateway", "other.local")
    assert told.about("gateway").text == other.serial
    told = shell.run("token", "paste", stdin=one.token())
    assert told.code == EXIT_CONFIGURATION
    assert told.errors.endswith("several gateways are configured, name one of one.local, other.local\n")


# --- get ---


def test_a_token_by_the_account(shell: Shell) -> None:
    with home(shell, token=False, account=True) as simulator:
        told = shell.run("token", "get")
        paths = [seen.path for seen in simulator.requests]
    assert told.code == 0
    assert paths == ["/info", "/login/login.json", "/tokens", "/auth/check_jwt"]
    assert [line.word for line in told.lines] == ["ok"] * 4
    assert told.about("account").text.startswith("the account gives a token: role owner, 365 days left")
    assert Token.parse(stored() or "").serials == (simulator.serial,)
    assert FILE.stat().st_mode & 0o777 == 0o600


def test_without_an_account(shell: Shell) -> None:
    with home(shell) as simulator:
        told = shell.run("token", "get")
        assert simulator.count() == 0
    assert told.code == EXIT_CONFIGURATION
    assert "BRIDGE_GATEWAY__PASSWORD" in told.about("account").text


@pytest.mark.parametrize(
    ("order", "code", "says"),
    [
        (("login", "wrong_password"), EXIT_REFUSED, "Enphase's cloud refuses the password"),
        (
            ("login", "mfa"),
            EXIT_REFUSED,
            "a second factor, which only a person can give: get a token at https://entrez",
        ),
        (("login", "blocked"), EXIT_REFUSED, "Enphase has blocked the account"),
        (("login", "406"), EXIT_UNAVAILABLE, "does not accept the login from this program (406)"),
        (("login", "429"), EXIT_UNAVAILABLE, "asks for a pause (429)"),
        (("login", "html"), EXIT_UNAVAILABLE, "answers with a page instead of data"),
        (("cloud", "503"), EXIT_UNAVAILABLE, "Enphase's cloud is down (503)"),
        (("cloud", "drop"), EXIT_UNAVAILABLE, "no connection to Enphase's cloud"),
        (("tokens", "not_your_serial"), EXIT_REFUSED, "gives this account no token for gateway 122301003111"),
        (("tokens", "wrong_aud"), EXIT_REFUSED, "the token is for gateway 122399999999, this one is 122301003111"),
        (("tokens", "expired"), EXIT_REFUSED, "the token expired on 2001-09-09"),
        (("/*tok*", "html"), EXIT_UNAVAILABLE, "answers with something that is no token"),
    ],
)
def test_what_the_cloud_says(shell: Shell, order: tuple[str, str], code: int, says: str) -> None:
    with home(shell, token=False, account=True) as simulator:
        simulator.faults.add(*order)
        told = shell.run("token", "get")
        assert simulator.count("/auth/check_jwt") == 0
    assert told.code == code
    (problem,) = told.of("problem")
    assert problem.step == "account"
    assert says in problem.text
    assert stored() is None


def test_a_token_that_the_gateway_refuses_is_not_kept(shell: Shell) -> None:
    with home(shell, token=False, account=True) as simulator:
        assert shell.run("token", "get").code == 0
        old = stored()
        simulator.gateway.guard.revoke("99999999")
        told = shell.run("token", "get")
    assert told.code == EXIT_REFUSED
    assert told.of("problem")[0].text.endswith("; nothing was stored")
    assert stored() == old


def test_a_gateway_that_can_not_tell_its_serial_number(shell: Shell) -> None:
    with home(shell, token=False, account=True) as simulator:
        simulator.faults.add("gateway", "booting")
        told = shell.run("token", "get")
        assert simulator.count("/login/login.json") == 0
    assert told.code == EXIT_UNAVAILABLE
    assert told.about("gateway").text == "the gateway is starting (503); `iqgateway2mqtt check` shows details"


def test_old_firmware_needs_none(shell: Shell) -> None:
    with home(shell, "legacy", account=True) as simulator:
        told = shell.run("token", "get")
        assert simulator.count() == 0
    assert told.code == 0
    assert told.about("token").text.startswith("none is needed")


# --- paste ---


@pytest.mark.parametrize("form", ["{}", "Bearer {}\n", '{{"token": "{}"}}', "  {}  \n\n"])
def test_a_pasted_token(shell: Shell, form: str) -> None:
    with home(shell, token=False) as simulator:
        token = simulator.token()
        shell.secrets.add(token)
        told = shell.run("token", "paste", stdin=form.format(token))
        assert simulator.requests[-1].path == "/auth/check_jwt"
    assert told.code == 0
    assert stored() == token
    assert FILE.stat().st_mode & 0o777 == 0o600
    shown = shell.run("token", "show")
    assert shown.about("token").text == "from the state folder: this one is used"


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"aud": "122300000000"}, "is for gateway 122300000000, this one is 122301003111"),
        ({"exp": 1_000_000_000}, "expired on 2001-09-09"),
        (None, "this is not a token"),
    ],
)
def test_a_pasted_text_that_is_no_good(shell: Shell, claims: dict[str, str | int] | None, says: str) -> None:
    with home(shell, token=False) as simulator:
        text = "no token at all" if claims is None else simulator.token(**claims)
        shell.secrets.add(text)
        told = shell.run("token", "paste", stdin=text)
        assert {seen.path for seen in simulator.requests} == {"/info"}
    assert told.code == EXIT_REFUSED
    assert says in told.about("token").text
    assert stored() is None


@pytest.mark.parametrize("fault", ["401", "html", "503"])
def test_a_pasted_token_that_the_gateway_does_not_take(shell: Shell, fault: str) -> None:
    with home(shell, token=False) as simulator:
        if fault == "401":
            simulator.gateway.guard.revoke("99999999")
        else:
            simulator.faults.add("check", fault)
        told = shell.run("token", "paste", stdin=simulator.token())
    assert told.code == {"401": EXIT_REFUSED, "503": EXIT_UNAVAILABLE, "html": 0}[fault]
    assert (stored() is None) == (fault != "html")


def test_a_gateway_that_says_invalid_with_200(shell: Shell) -> None:
    with home(shell, token=False) as simulator:
        simulator.faults.add("check", always("invalid", HttpReply(200, b"<h2>Invalid token.</h2>")))
        told = shell.run("token", "paste", stdin=simulator.token())
    assert told.code == EXIT_REFUSED
    assert stored() is None


def test_pasting_at_a_terminal_shows_nothing(shell: Shell) -> None:
    with home(shell, token=False) as simulator:
        token = simulator.token()
        person = Person("token", "paste")
        person.type("it will not show): ", f"{token}\n")
        assert person.end() == 0
    assert b"https://entrez.enphaseenergy.com" in person.seen
    assert token[:20].encode() not in person.seen
    assert stored() == token


def test_what_is_set_comes_first(shell: Shell) -> None:
    with home(shell) as simulator:
        told = shell.run("token", "paste", stdin=simulator.token())
    assert told.code == 0
    assert told.of("note")[0].text == "BRIDGE_GATEWAY__TOKEN is set, and is used first as long as it is valid"


def test_where_nothing_can_be_kept(shell: Shell) -> None:
    Path("state").write_text("")
    with home(shell, token=False) as simulator:
        told = shell.run("token", "paste", stdin=simulator.token())
    assert told.code == EXIT_CONFIGURATION
    assert told.about("kept").text.startswith("the token is not stored: state can't be written")


def test_a_changed_key_gets_no_token(shell: Shell) -> None:
    simulator = Simulator()
    with served(shell, simulator) as address:
        assert shell.run("token", "paste", stdin=simulator.token()).code == 0
    simulator.requests.clear()
    with served(shell, simulator, port=int(address.rpartition(":")[2])):
        told = shell.run("token", "paste", stdin=simulator.token())
        assert {seen.path for seen in simulator.requests} <= {"/info"}
    assert told.code == EXIT_REFUSED
    assert "check --accept-key" in told.about("gateway").text


def test_a_pipe_is_not_prompted(shell: Shell) -> None:
    with home(shell, token=False) as simulator:
        assert "paste it here" not in shell.run("token", "paste", stdin=simulator.token()).text
