"""`setup`, with the answers of a person, a simulated home, its cloud and a real broker."""

import stat
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from brokers import Mosquitto, free_port, password_lines
from cli import NOWHERE, Person, Shell, Told, served, shell
from dotenv import dotenv_values
from houses import NOON_HOUR
from nearby import LOOPBACK, alone, announced

from bridge.commands import report
from bridge.commands.draft import (
    SettingsFile,
    broker_of,
    changed_environment,
    changed_toml,
    host_of,
    in_words,
)
from bridge.commands.report import next_command
from bridge.commands.session import CommandTiming
from bridge.model import BadSetting
from bridge.simulator import PASSWORD, USER, Simulator

__all__ = ["alone", "shell"]
pytestmark = pytest.mark.usefixtures("alone")
BROKER_USER, BROKER_PASSWORD = "bridge", 'it\'s "hard" #1 $\\ to quote'
NO_TOKEN = (
    "this is not a token (three parts joined by dots): get a token at https://entrez.enphaseenergy.com and paste it"
)
A_TOKEN = f"eyJraWQiOiI3ZDEw.eyJhdWQiOiIx{'A' * 300}.{'s' * 86}"
"""The form of a token, for what is only typed."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    folder = tmp_path_factory.mktemp("broker")
    with Mosquitto(folder, *password_lines(folder, BROKER_USER, BROKER_PASSWORD)) as running:
        yield running


@pytest.fixture
def home() -> Simulator:
    return Simulator("three-phase", start_hour=NOON_HOUR)


@pytest.fixture
def address(shell: Shell, home: Simulator) -> Iterator[str]:
    """The only setting about the home is the address of its cloud."""
    with served(shell, home, with_cloud=True) as place:
        shell.unset("gateway__host")
        shell.secrets |= {PASSWORD, BROKER_PASSWORD, home.token()}
        yield place


@pytest.fixture
def its_broker(broker: Mosquitto) -> tuple[str, str, str]:
    """The answers about a broker that work."""
    return broker.url, BROKER_USER, BROKER_PASSWORD


def answered(shell: Shell, *answers: str, arguments: tuple[str, ...] = (), listen: float = 0.1) -> Told:
    """Run `setup` with these answers; it listens for gateways so many seconds."""
    told = shell.run(
        *("setup", "--interface", LOOPBACK, *arguments),
        stdin="".join(f"{line}\n" for line in answers),
        timing=CommandTiming(announcement=listen),
    )
    assert not list(Path().glob(".*.new"))
    return told


def problems(told: Told) -> list[str]:
    found = [line.text for line in told.of("problem")]
    assert not [text for text in found if "BRIDGE_" in text], "a setting, where a question was asked"
    return found


# What works


def test_an_account_a_found_gateway_and_a_broker(
    shell: Shell, home: Simulator, address: str, its_broker: tuple[str, str, str]
) -> None:
    with announced(home.serial, int(address.rpartition(":")[2])):
        told = answered(shell, "", USER, PASSWORD, "", "Sonnenhaus", "", *its_broker, "", listen=3.0)
    assert told.code == 0
    assert "Looking for gateways in this network" in told.text
    assert f"gateway {home.serial} at " in told.text
    assert "\nNo problems.\n" in told.text, "a first check"
    assert told.text.endswith("\nNow: iqgateway2mqtt run\n")
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600
    assert dotenv_values(".env", interpolate=False) == {
        "BRIDGE_GATEWAY__HOST": address,
        "BRIDGE_GATEWAY__USERNAME": USER,
        "BRIDGE_GATEWAY__PASSWORD": PASSWORD,
        "BRIDGE_GATEWAY__NAME": "Sonnenhaus",
        "BRIDGE_HOMEASSISTANT__DISCOVERY": "device",
        "BRIDGE_MQTT__URL": its_broker[0],
        "BRIDGE_MQTT__USERNAME": BROKER_USER,
        "BRIDGE_MQTT__PASSWORD": BROKER_PASSWORD,
    }
    assert shell.run("check").code == 0, "what it wrote is all that is needed"


def test_a_pasted_token_and_a_toml_file(
    shell: Shell, home: Simulator, address: str, its_broker: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several gateways, the one that the token is for is offered first."""
    token, port = home.token(), str(free_port())
    others = announced("999999999999", 9), announced("000000000000", 9)
    with others[0], others[1], announced(home.serial, int(address.rpartition(":")[2])):
        answers = (token, "", "", "off", *its_broker, port)
        told = answered(shell, *answers, arguments=("--output", "etc/bridge.toml"), listen=3.0)
    assert told.code == 0
    assert "a number, or its address) [2]: " in told.text
    assert told.text.endswith("\nNow: BRIDGE_CONFIG=etc/bridge.toml iqgateway2mqtt run\n")
    assert tomllib.loads(Path("etc/bridge.toml").read_text()) == {
        "gateway": {"token": token, "host": address},
        "mqtt": {"url": its_broker[0], "username": BROKER_USER, "password": BROKER_PASSWORD},
        "homeassistant": {"discovery": "off"},
        "http": {"listen": port},
    }
    assert stat.S_IMODE(Path("etc/bridge.toml").stat().st_mode) == 0o600
    monkeypatch.setenv("BRIDGE_CONFIG", "etc/bridge.toml")
    assert shell.run("check").code == 0


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_legacy_firmware_needs_no_token(shell: Shell, its_broker: tuple[str, str, str], scheme: str) -> None:
    """Nobody has to know that it has no TLS."""
    simulator = Simulator("legacy", start_hour=NOON_HOUR)
    with served(shell, simulator, tls=False) as address:
        shell.unset("gateway__host")
        told = answered(shell, "", "", f"{scheme}{address}", "", "", *its_broker, "")
    assert told.code == 0
    assert dotenv_values(".env")["BRIDGE_GATEWAY__HOST"] == f"http://{address}"
    assert "BRIDGE_GATEWAY__TOKEN" not in dotenv_values(".env")


def test_the_environment_is_shown_only_where_it_is_asked_for(
    shell: Shell, address: str, its_broker: tuple[str, str, str]
) -> None:
    shell.secrets.clear()  # `--show` prints secrets
    told = answered(shell, "", USER, PASSWORD, address, "", "", *its_broker, arguments=("--show",))
    assert told.code == 0
    assert f"\nBRIDGE_GATEWAY__PASSWORD='{PASSWORD}'\n" in told.text
    assert not Path(".env").exists()


def test_what_the_environment_sets_too_is_told(
    shell: Shell, home: Simulator, address: str, its_broker: tuple[str, str, str]
) -> None:
    shell.set(mqtt__url="mqtt://elsewhere")
    told = answered(shell, home.token(), address, "", "", *its_broker, "")
    assert told.code == 0
    assert "But the environment sets BRIDGE_MQTT__URL, too, which counts more: remove it there." in told.text


# What does not work


def test_wrong_answers_about_the_gateway(
    shell: Shell, home: Simulator, address: str, its_broker: tuple[str, str, str]
) -> None:
    other = Simulator("split-phase", start_hour=NOON_HOUR).token()
    told = answered(
        *(shell, home.token()[:60], "", "", "300.1.1.1", NOWHERE, f"https://{address}/home#overview"),
        *("", "", other, "", USER, "wrong password", "", USER, "", "", USER, PASSWORD),
        *("", "", *its_broker, ""),
    )
    assert told.code == 0
    get_one = "get a token at https://entrez.enphaseenergy.com and paste it"
    legacy = f"Otherwise, firmware before 7 has no TLS: enter http://{NOWHERE}"
    assert problems(told) == [
        NO_TOKEN,
        "must be a name, an address (IPv6 in brackets), host:port or a URL such as http://192.168.1.20",
        f"port 9 is closed (connection refused): is the address right? {legacy}",
        f"there is no token: {get_one}",
        f"the token is for gateway 122302003222, this one is {home.serial}: {get_one}",
        f"Enphase's cloud refuses the password: enter both again, or {get_one}",
        "an account needs a password",
    ]
    assert dotenv_values(".env")["BRIDGE_GATEWAY__HOST"] == address


def test_wrong_answers_about_all_else(shell: Shell, home: Simulator, address: str, broker: Mosquitto) -> None:
    there, taken = broker.url.removeprefix("mqtt://"), broker.url.rpartition(":")[2]
    told = answered(
        *(shell, home.token(), address, "x" * 65, "Haus", "devices", "OFF"),
        *(NOWHERE, "", there, BROKER_USER, "wrong", "ftp://somewhere"),
        *(f"{BROKER_USER}:{quote(BROKER_PASSWORD)}@{there}", taken, "port", ""),
    )
    assert told.code == 0
    said = problems(told)
    assert said == [
        "must have at most 64 characters",
        "must be 'device', 'component' or 'off'",
        f"mqtt://{NOWHERE}: connection refused: no broker listens there",
        f"{broker.url}: not authorized: check user name, password and the broker's access rules",
        said[4],
        f"port {taken} can't be used (Address already in use): choose another one",
        "must be a port such as 8080, or an address and a port such as 0.0.0.0:8080 or [::]:8080",
    ]
    assert said[4].startswith("must look like mqtt://host:1883, ")
    written = dotenv_values(".env", interpolate=False)
    assert (written["BRIDGE_MQTT__URL"], written["BRIDGE_MQTT__PASSWORD"]) == (broker.url, BROKER_PASSWORD)
    assert written["BRIDGE_HOMEASSISTANT__DISCOVERY"] == "off"


def test_an_address_that_can_not_be_one_is_not_offered_again(
    shell: Shell, home: Simulator, address: str, its_broker: tuple[str, str, str]
) -> None:
    """It is often a password that was typed one question too late."""
    typed = "pass#phrase"
    shell.secrets.add(typed)
    told = answered(shell, home.token(), address, "", "", typed, *its_broker, "")
    assert told.code == 0
    assert [text.partition(" ")[0] for text in problems(told)] == ["must"]
    assert told.text.count("Its password") == 1, "the address was refused before the next question"


def test_a_token_is_a_token_wherever_it_is_given(
    shell: Shell, home: Simulator, address: str, its_broker: tuple[str, str, str]
) -> None:
    """It is sent to nobody as a user name or a password; `Shell` sees whether it is shown."""
    token = home.token()
    told = answered(
        *(shell, "", token, token, address, token, "", "", token, "localhost", token),
        *(its_broker[0], BROKER_USER, token, *its_broker, ""),
    )
    assert told.code == 0
    assert [text.partition(",")[0].partition(";")[0] for text in problems(told)] == [
        *["that is a token"] * 4,
        "that is the token of a gateway",
    ]
    assert not [seen for seen in home.requests if "login" in seen.path]
    written = dotenv_values(".env", interpolate=False)
    assert written["BRIDGE_GATEWAY__TOKEN"] == token
    assert [name for name, value in written.items() if value == token] == ["BRIDGE_GATEWAY__TOKEN"]


def test_a_password_with_a_token_in_it_goes_with_an_account(shell: Shell, home: Simulator, address: str) -> None:
    told = answered(shell, "", USER, home.token(), address)
    assert "the gateway accepts it" in told.text
    assert not [seen for seen in home.requests if "login" in seen.path]


def test_after_five_wrong_answers_what_works_is_kept(
    shell: Shell, home: Simulator, address: str, its_broker: tuple[str, str, str]
) -> None:
    told = answered(shell, home.token(), address, "Haus", "", *[NOWHERE, ""] * 5)
    assert told.code == 78
    assert "no answer works for the broker" in told.errors
    assert "setup` again" in told.errors
    assert set(dotenv_values(".env")) == {
        *("BRIDGE_GATEWAY__TOKEN", "BRIDGE_GATEWAY__HOST", "BRIDGE_GATEWAY__NAME"),
        "BRIDGE_HOMEASSISTANT__DISCOVERY",
    }
    told = answered(shell, "", *its_broker)
    assert told.code == 0
    assert "[5]: " in told.text, "only what is missing is asked for"
    assert dotenv_values(".env")["BRIDGE_MQTT__URL"] == its_broker[0]


def test_where_nothing_works_nothing_is_written(shell: Shell) -> None:
    told = answered(shell, "", "", *[NOWHERE] * 5)
    assert told.code == 78
    assert "no answer works for the gateway" in told.errors
    assert "Nothing was written" in told.text
    assert not Path(".env").exists()


def test_a_token_is_kept_while_the_gateway_is_away(shell: Shell, home: Simulator) -> None:
    token = home.token()
    told = answered(shell, token, *[NOWHERE] * 5)
    assert told.code == 78
    assert dotenv_values(".env") == {"BRIDGE_GATEWAY__TOKEN": token}


def test_who_leaves_leaves_nothing(shell: Shell, address: str) -> None:
    told = answered(shell, "", USER, PASSWORD, address)
    assert told.code == 78
    assert "nothing was written" in told.errors
    assert not Path(".env").exists()


# An existing file


def test_an_existing_file_is_shown_and_changed(
    shell: Shell, home: Simulator, address: str, its_broker: tuple[str, str, str]
) -> None:
    mine = "# mine\nOTHER='1'\n\n"
    Path(".env").write_text(mine)
    assert answered(shell, home.token(), address, "Haus", "", *its_broker, "").code == 0
    before = Path(".env").read_text()
    assert before.startswith(mine)

    told = answered(shell, "")
    assert told.code == 0
    assert "Nothing was written" in told.text
    shown = dict(line.text.split(maxsplit=1) for line in told.lines[:6])
    assert shown.pop("token").startswith("role owner, ")
    assert shown == {
        "gateway": address,
        "name": "Haus",
        "discovery": "device",
        "broker": f"{its_broker[0]}, user {BROKER_USER}",
        "page": "no page",
    }
    assert told.text.endswith("\nNow: iqgateway2mqtt run\n")
    assert Path(".env").read_text() == before

    told = answered(shell, "localhost", "7", "")
    assert problems(told) == ["must be numbers from 1 to 6, such as 1,2"] * 2
    assert "Nothing was written" in told.text

    told = answered(shell, "name, 1", "", USER, PASSWORD, "-")
    assert told.code == 0
    changed = Path(".env").read_text()
    assert changed.startswith(mine)
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600
    kept = [line for line in before.splitlines() if "__TOKEN=" not in line and "__NAME=" not in line]
    account = [f"BRIDGE_GATEWAY__USERNAME={USER}", f"BRIDGE_GATEWAY__PASSWORD='{PASSWORD}'"]
    assert changed.splitlines() == kept + account


def test_another_gateway_needs_another_token(shell: Shell, home: Simulator, address: str) -> None:
    other = Simulator("split-phase", start_hour=NOON_HOUR)
    token, file = other.token(), SettingsFile(Path(".env"))
    file.write({"gateway": {"host": address, "token": home.token()}, "mqtt": {"url": f"mqtt://{NOWHERE}"}})
    with served(shell, other) as place:
        shell.unset("gateway__host")
        told = answered(shell, "2", place, *["no token"] * 4, token)
    assert file.read()["gateway"] == {"host": place, "token": token}
    assert problems(told)[0].startswith("the token is for gateway 122301003111, this one is 122302003222: ")
    assert problems(told)[1:5] == [NO_TOKEN] * 4
    assert told.text.endswith("\n1 problem.\n\nWhen that is solved: iqgateway2mqtt run\n"), "its broker is away"


def test_a_token_that_works_is_not_lost_to_one_that_does_not(shell: Shell, home: Simulator, address: str) -> None:
    """A readable token of another gateway, and nothing better in five tries."""
    file = SettingsFile(Path(".env"))
    file.write({"gateway": {"host": address, "token": home.token()}, "mqtt": {"url": f"mqtt://{NOWHERE}"}})
    before = Path(".env").read_text()
    told = answered(shell, "1", Simulator("split-phase", start_hour=NOON_HOUR).token(), *["no token"] * 5)
    assert told.code == 78
    assert Path(".env").read_text() == before


@pytest.mark.parametrize(
    ("complaint", "words"),
    [
        (
            "check the spelling in BRIDGE_GATEWAY__HOST, or set BRIDGE_GATEWAY__HOST to the gateway's address",
            "check the spelling, or enter the gateway's address",
        ),
        ("is BRIDGE_GATEWAY__HOST still right?", "is the address still right?"),
        ("set BRIDGE_GATEWAY__HOST=http://envoy", "enter http://envoy"),
        ("get one and set BRIDGE_GATEWAY__TOKEN to it", "get one and paste it"),
        ("wrong: set BRIDGE_MQTT__USERNAME and BRIDGE_MQTT__PASSWORD", "wrong: set user name and password"),
        ("the broker has moved: set BRIDGE_MQTT__URL", "the broker has moved: enter its new address"),
        ("name the broker in BRIDGE_MQTT__URL as there", "name the broker in the address as there"),
        ("BRIDGE_GATEWAY: a; BRIDGE_MQTT__URL: b", "a; b"),
        ("or set BRIDGE_HOMEASSISTANT__DISCOVERY=off", "or choose `off` for discovery"),
        ("set BRIDGE_MQTT__CA_FILE to its CA", "set BRIDGE_MQTT__CA_FILE to its CA"),
    ],
)
def test_complaints_use_the_words_of_the_questions(complaint: str, words: str) -> None:
    """What is not asked for keeps its name, since it has to be set by hand."""
    assert in_words(complaint) == words


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "[[gateways]]\nhost = 'a'\n", "a.toml lists several gateways: change it by hand"),
        ("a.env", "BRIDGE_GATEWAYS='[]'\n", "a.env lists several gateways"),
        ("a.toml", "gateway = {host = 'a'}\n", "this TOML file has a form that `setup` can't change"),
        ("a.toml", "no toml", "a.toml is not valid: correct it, or name another file"),
        ("a.env", "BRIDGE_MQTT__URL=ftp://x\n", "BRIDGE_MQTT__URL: must look like"),
    ],
)
def test_a_file_that_it_can_not_change_is_left_alone(shell: Shell, name: str, text: str, said: str) -> None:
    Path(name).write_text(text)
    told = answered(shell, "", arguments=("--output", name))
    assert (told.code, told.text) == (78, "")
    assert said in told.errors
    assert Path(name).read_text() == text


@pytest.mark.parametrize("output", ["barrier/settings.toml", "barrier/more/.env", "folder"])
def test_where_nothing_can_be_written_nobody_is_asked(shell: Shell, output: str) -> None:
    Path("barrier").write_text("a file")
    Path("folder").mkdir()
    told = answered(shell, NOWHERE, arguments=("--output", output))
    assert (told.code, told.text) == (78, "")
    assert f"--output: {output}" in told.errors


# Files


@pytest.mark.parametrize("value", ["simple", "it's", 'a"b', "a b #c", "back\\slash", "$HOME", "ümläut", "a=b"])
def test_values_survive_both_kinds_of_file(value: str, tmp_path: Path) -> None:
    answers = {"mqtt": {"password": value}, "http": {"listen": "8080"}}
    for name in (".env", "a.toml"):
        file = SettingsFile(tmp_path / name)
        file.write({"mqtt": {"password": "before", "username": "gone"}})
        file.write({**answers, "mqtt": {"password": value, "username": ""}})
        assert file.read() == answers
    assert dotenv_values(tmp_path / ".env", interpolate=False)["BRIDGE_MQTT__PASSWORD"] == value
    assert tomllib.loads((tmp_path / "a.toml").read_text()) == answers


def test_only_the_lines_of_the_answers_change() -> None:
    answers = {"gateway": {"host": "b", "token": ""}, "mqtt": {"url": "mqtt://x"}}
    env = "# a\nexport OTHER=1\n\nBRIDGE_GATEWAY__HOST='a'\n# b\nbridge_gateway__token=t\nBRIDGE_LOG__LEVEL=INFO"
    assert changed_environment(env, answers) == (
        "# a\nexport OTHER=1\n\nBRIDGE_GATEWAY__HOST=b\n# b\nBRIDGE_LOG__LEVEL=INFO\nBRIDGE_MQTT__URL=mqtt://x\n"
    )
    toml = '# a\ninstance = "x"\n[gateway] # b\nhost = "a" # c\ntoken="t"\n\n[poll]\ninverters = 600\n'
    assert changed_toml(toml, answers) == (
        '# a\ninstance = "x"\n[gateway] # b\nhost = "b"\n\n[poll]\ninverters = 600\n\n[mqtt]\nurl = "mqtt://x"\n'
    )


@pytest.mark.parametrize(
    "text",
    [
        "[mqtt]\nurl = 'a'\nlist = [\n[1],\n]\n",
        "mqtt.url = 'a'\n",
        "[x]\ny = '''\n[mqtt]\n'''\n",
        "[ mqtt ]\n'url'='a'",
    ],
)
def test_a_change_of_toml_is_right_or_refused(text: str) -> None:
    """Whatever a file looks like, it says afterwards what it said before, but for the answer."""
    wanted = tomllib.loads(text)
    wanted.setdefault("mqtt", {})["url"] = "mqtt://x"
    try:
        changed = changed_toml(text, {"mqtt": {"url": "mqtt://x"}})
    except BadSetting as refusal:
        assert "change it by hand" in str(refusal)  # noqa: PT017 - both ends are good
    else:
        assert tomllib.loads(changed) == wanted


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.env").write_text("BRIDGE_GATEWAY__HOST=a\n")
    (tmp_path / ".env").symlink_to("real.env")
    SettingsFile(tmp_path / ".env").write({"gateway": {"host": "b"}})
    assert (tmp_path / "real.env").read_text() == "BRIDGE_GATEWAY__HOST=b\n"
    assert (tmp_path / ".env").is_symlink()


@pytest.mark.parametrize("before", ["", "OTHER=1\nBRIDGE_MQTT__PASSWORD=old\n"])
def test_what_a_dotenv_file_would_expand_goes_into_a_toml_file(tmp_path: Path, before: str) -> None:
    if before:
        (tmp_path / ".env").write_text(before)
    written = SettingsFile(tmp_path / ".env").write({"mqtt": {"password": "${HOME}"}})
    assert written.path.name == "iqgateway2mqtt.toml"
    assert written.read() == {"mqtt": {"password": "${HOME}"}}
    assert not before or (tmp_path / ".env").read_text() == "OTHER=1\n"


# Addresses


@pytest.mark.parametrize(
    ("typed", "url", "user", "password"),
    [
        ("192.168.1.10", "mqtt://192.168.1.10", "", ""),
        ("host:1883", "mqtt://host:1883", "", ""),
        ("homeassistant.local/", "mqtt://homeassistant.local", "", ""),
        ("broker.example.com:8883", "mqtts://broker.example.com:8883", "", ""),
        ("http://homeassistant.local:8123/lovelace/0", "mqtt://homeassistant.local", "", ""),
        ("tcp://192.168.1.10:1883", "mqtt://192.168.1.10:1883", "", ""),
        ("ssl://192.168.1.10:8883", "mqtts://192.168.1.10:8883", "", ""),
        ("me:secret@192.168.1.10", "mqtt://192.168.1.10", "me", "secret"),
        ("mqtt://me:p%40ss@host:1883", "mqtt://host:1883", "me", "p@ss"),
        ("mqtt://me:p@ss/#?@host", "mqtt://host", "me", "p@ss/#?"),
        ("wss://broker.example.com/some/path", "wss://broker.example.com/some/path", "", ""),
        ("mqtt://a,mqtt://b", "mqtt://a,mqtt://b", "", ""),
        ("unix:///run/mosquitto.sock", "unix:///run/mosquitto.sock", "", ""),
        ("[fd00::1]:1883", "mqtt://[fd00::1]:1883", "", ""),
    ],
)
def test_the_address_of_a_broker_as_people_type_it(typed: str, url: str, user: str, password: str) -> None:
    assert broker_of(typed) == {"url": url, "username": user, "password": password}


@pytest.mark.parametrize(
    ("typed", "host"),
    [
        ("envoy.local", "envoy.local"),
        ("192.168.1.20:443", "192.168.1.20:443"),
        ("https://192.168.1.20/home#overview", "192.168.1.20"),
        ("http://192.168.1.20/", "http://192.168.1.20"),
        ("[fd00::1]", "[fd00::1]"),
    ],
)
def test_the_address_of_a_gateway_as_a_browser_shows_it(typed: str, host: str) -> None:
    assert host_of(typed) == host


# What to do next


@pytest.mark.parametrize(
    ("file", "existed", "command"),
    [
        (".env", False, "iqgateway2mqtt run"),
        ("/srv/my env", False, "set -a; . '/srv/my env'; set +a; iqgateway2mqtt run"),
        ("/etc/iqgateway2mqtt/settings.toml", False, "sudo systemctl enable --now iqgateway2mqtt"),
        ("/etc/iqgateway2mqtt/settings.toml", True, "sudo systemctl restart iqgateway2mqtt"),
        ("/etc/iqgateway2mqtt/attic/settings.toml", False, "sudo systemctl enable --now iqgateway2mqtt@attic"),
        (
            "/etc/iqgateway2mqtt/b.toml",
            False,
            "BRIDGE_CONFIG=/etc/iqgateway2mqtt/b.toml iqgateway2mqtt run",
        ),
        ("/srv/settings.toml", True, "BRIDGE_CONFIG=/srv/settings.toml iqgateway2mqtt run"),
    ],
)
def test_it_says_what_to_do_next(file: str, *, existed: bool, command: str) -> None:
    assert next_command(Path(file), existed=existed) == command


def test_in_a_container_compose_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of the program tells it, together with a mark of Docker or Podman."""
    monkeypatch.setattr(report, "CONTAINER_MARKS", (tmp_path / "missing", tmp_path))
    assert next_command(Path(".env")) == "iqgateway2mqtt run"
    monkeypatch.setattr(sys, "prefix", "/opt/iqgateway2mqtt")
    assert next_command(Path("/settings/.env")) == "docker compose up --build --detach"


@pytest.mark.parametrize(
    ("called", "path", "shown"),
    [
        (".venv/bin/iqgateway2mqtt", "/usr/bin", ".venv/bin/iqgateway2mqtt run"),
        ("my venv/bin/iqgateway2mqtt", "/usr/bin", "'my venv/bin/iqgateway2mqtt' run"),
        ("{here}/iqgateway2mqtt", "{here}", "iqgateway2mqtt run"),
        ("/somewhere/bridge/__main__.py", "/usr/bin", "iqgateway2mqtt run"),
    ],
)
def test_what_to_do_next_can_be_typed_as_it_stands(
    called: str, path: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "iqgateway2mqtt"
    program.touch(mode=0o700)
    monkeypatch.setenv("PATH", path.format(here=tmp_path))
    monkeypatch.setattr(sys, "argv", [called.format(here=tmp_path), "setup"])
    assert next_command(Path(".env")) == shown


# A terminal


def test_nothing_is_seen_of_a_token_that_is_pasted_too_early() -> None:
    """Between two questions, while the gateway's address is tried."""
    person = Person("setup", "--interface", LOOPBACK)
    for question, typed in (("account): ", "\n"), ("before 7): ", "\n"), ("envoy.local]: ", f"{NOWHERE}\n")):
        person.type(question, typed)
    person.type(NOWHERE, f"{A_TOKEN}\n")
    person.type("not a token", "\x03")
    assert person.end() == 130
    assert b"eyJ" not in person.seen


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        (["\x04"], 78, "no more answers: nothing was written"),
        (["\n", "\x04"], 78, "no more answers: nothing was written"),
        (["\x03"], 130, "iqgateway2mqtt: nothing was written"),
        ([f"{A_TOKEN}\n", "\x03"], 130, "iqgateway2mqtt: nothing was written"),
    ],
    ids=["Ctrl-D", "Ctrl-D at an address", "Ctrl-C", "Ctrl-C after a token"],
)
def test_keys_that_end_it_end_it_quietly(keys: list[str], code: int, said: str) -> None:
    person = Person("setup", "--interface", LOOPBACK)
    for question, typed in zip(("account): ", "): "), keys, strict=False):
        person.type(question, typed)
    assert person.end() == code
    assert said.encode() in person.seen
    assert b"Traceback" not in person.seen
    assert b"eyJ" not in person.seen
    assert not Path(".env").exists()
