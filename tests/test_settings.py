"""Settings: every one from every source, and one clear line, without its value, for each that can't be used."""

import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from programs import BRIDGE_COMMAND, started
from pydantic import BaseModel, SecretStr

from bridge import settings as settings_module
from bridge.endpoints import ENDPOINTS
from bridge.model import BadSetting, SourceName
from bridge.settings import (
    CloudSettings,
    GatewaySettings,
    HomeAssistantSettings,
    HttpSettings,
    LogSettings,
    MqttSettings,
    PollSettings,
    Settings,
    config_file,
    load,
    names,
    secret_folders,
)

SECRET = "hunter2-Xq9zKm"  # these values must never show

Given = Callable[[Mapping[str, str]], None]


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the container secrets of this machine."""

    def folders() -> list[Path]:
        return [folder for folder in secret_folders() if folder != Path("/run/secrets")]

    monkeypatch.setattr(settings_module, "secret_folders", folders)


def environment(monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"BRIDGE_{name}", value)


def toml(monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    file = Path("bridge.toml").resolve()
    file.write_text(text)
    monkeypatch.setenv("BRIDGE_CONFIG", str(file))
    return file


def credentials(monkeypatch: pytest.MonkeyPatch, **given: str) -> Path:
    folder = Path("credentials").resolve()
    folder.mkdir(exist_ok=True)
    for name, value in given.items():
        (folder / name).write_text(value)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def refusal(**overrides: Any) -> str:
    """The one line for a wrong setting. The error must not refer to any object that holds the value."""
    with pytest.raises(BadSetting) as caught:
        load(**overrides)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    line = str(error)
    assert line
    assert "\n" not in line
    for text in (line, repr(error), "".join(traceback.format_exception(error))):
        assert SECRET not in text
        assert "pydantic" not in text.rpartition("BadSetting")[2]
    return line


# Defaults


def test_nothing_needs_to_be_set() -> None:
    found = load()
    assert found.gateway.host == "envoy.local"
    assert found.all_gateways == (GatewaySettings(),)
    assert (found.gateway.token, found.gateway.username, found.gateway.tls) == (None, None, "pin")
    assert (found.mqtt.url, found.mqtt.base_topic, found.mqtt.payload, found.mqtt.protocol) == (
        *("mqtt://localhost:1883", "enphase"),
        *("both", "5"),
    )
    assert (found.mqtt.heartbeat, found.mqtt.deadband) == (300, 1)
    assert (found.homeassistant.discovery, found.homeassistant.prefix) == ("device", "homeassistant")
    assert (found.poll.profile, found.poll.period(SourceName.READINGS), found.log.level, found.log.format) == (
        *("normal", None),
        *("INFO", "text"),
    )
    assert (found.instance, found.timezone, found.site.netting) == (None, None, "sum")


def test_every_setting_says_what_it_is() -> None:
    """The table in the documents is made of these descriptions."""
    for section in (
        CloudSettings,
        GatewaySettings,
        HomeAssistantSettings,
        HttpSettings,
        LogSettings,
        MqttSettings,
        PollSettings,
    ):
        documented_by_the_table = {*SourceName} if section is PollSettings else set()
        fields = (field for name, field in section.model_fields.items() if name not in documented_by_the_table)
        assert all(field.description for field in fields), section


def test_the_names_of_the_contract() -> None:
    fixed = {
        *(
            f"GATEWAY__{name}"
            for name in ("HOST", "TOKEN", "TOKEN_FILE", "USERNAME", "PASSWORD", "SERIAL", "TLS", "NAME")
        ),
        *("GATEWAYS", "INSTANCE", "STATE_DIR", "LOG__LEVEL", "LOG__FORMAT", "POLL__PROFILE"),
        *("HTTP__LISTEN", "HTTP__HOSTS"),
        *("CLOUD__LOGIN_URL", "CLOUD__TOKEN_URL", "CLOUD__ENTREZ_URL", "CLOUD__CA_FILE"),
        *(
            f"MQTT__{name}"
            for name in ("URL", "USERNAME", "PASSWORD", "CA_FILE", "CERT_FILE", "KEY_FILE", "BASE_TOPIC")
        ),
        *(f"MQTT__{name}" for name in ("CLIENT_ID", "PROTOCOL", "PAYLOAD", "HEARTBEAT", "DEADBAND")),
        *("HOMEASSISTANT__DISCOVERY", "HOMEASSISTANT__PREFIX", "POLL__BUDGET", "TIMEZONE", "SITE__NETTING"),
        *(f"POLL__{endpoint.source.upper()}" for endpoint in ENDPOINTS),
    }
    assert {f"BRIDGE_{name}" for name in fixed} <= {*names()}


# Every setting from every source

VALUES: dict[str, str] = {
    "GATEWAY__HOST": "192.0.2.7:8443",
    "GATEWAY__TOKEN": "a-token",
    "GATEWAY__TOKEN_FILE": "token.txt",
    "GATEWAY__USERNAME": "me@example.org",
    "GATEWAY__PASSWORD": "a-password",
    "GATEWAY__SERIAL": "122125067699",
    "GATEWAY__TLS": "strict",
    "GATEWAY__NAME": "Cabin",
    "GATEWAY__SITE": "South side",
    "GATEWAY__HOME": "Two roofs",
    "GATEWAY__GRID_METER": "True",
    "GATEWAY__ALLOW": "contacts,grid",
    "CONTROL__ALLOW": "storage,acb",
    "CLOUD__LOGIN_URL": "https://example.org/login",
    "CLOUD__TOKEN_URL": "https://example.org/tokens",
    "CLOUD__ENTREZ_URL": "https://example.org/entrez",
    "CLOUD__CA_FILE": "cloud.pem",
    "MQTT__URL": "mqtts://broker:8883",
    "MQTT__USERNAME": "bridge",
    "MQTT__PASSWORD": "mqtt-password",
    "MQTT__CA_FILE": "ca.pem",
    "MQTT__CERT_FILE": "cert.pem",
    "MQTT__KEY_FILE": "key.pem",
    "MQTT__BASE_TOPIC": "home/solar",
    "MQTT__CLIENT_ID": "bridge-1",
    "MQTT__PROTOCOL": "3.1.1",
    "MQTT__PAYLOAD": "values",
    "MQTT__HEARTBEAT": "60.5",
    "MQTT__DEADBAND": "0.0",
    "MQTT__RATE": "90.5",
    "MQTT__REPEAT_SITE": "False",
    "HOMEASSISTANT__DISCOVERY": "component",
    "HOMEASSISTANT__PREFIX": "hass",
    "POLL__PROFILE": "live",
    "POLL__BUDGET": "0.5",
    **{f"POLL__{endpoint.source.upper()}": f"{1017 + place}.0" for place, endpoint in enumerate(ENDPOINTS)},
    "LOG__LEVEL": "DEBUG",
    "LOG__FORMAT": "json",
    "HTTP__LISTEN": "192.0.2.8:8088",
    "HTTP__HOSTS": "enphase.example.org",
    "SITE__NETTING": "per_phase",
    "SITE__THIRD_PARTY_PV": "True",
    "TIMEZONE": "Europe/Lisbon",
    "INSTANCE": "attic",
    "SHARD": "1/2",
    "STATE_DIR": "state",
}
"""A value for each setting, none of which is the default."""


def plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def setting(found: Settings, name: str) -> str:
    place: Any = found
    for step in name.lower().split("__"):
        place = getattr(place, step)
    return plain(place)


def leaves(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += leaves(kind, f"{prefix}{name.upper()}__")
        else:
            found += [f"{prefix}{name.upper()}"]
    return found


def test_each_setting_has_a_value_of_its_own() -> None:
    mine = {*leaves()} - {"GATEWAYS", "GATEWAYS_FILE"}
    assert {*VALUES} == mine
    telling = [
        value for value in VALUES.values() if value != "True"
    ]  # there are two switches that are off at first
    assert len({*telling}) == len(telling)
    assert all(setting(load(), name) != value for name, value in VALUES.items())


def in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, **VALUES)


def in_small_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(f"bridge_{name.lower()}", value)


def in_dotenv(_: pytest.MonkeyPatch) -> None:
    lines = [f"BRIDGE_{name}='{value}'" for name, value in VALUES.items()]
    Path(".env").write_text("\n".join(["# a comment", "OTHER=1", "DATABASE_URL=postgres://x", *lines]))


def in_secret_files(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials(monkeypatch, **{f"bridge_{name.lower()}": f"{value}\n" for name, value in VALUES.items()})


def in_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    sections: dict[str, list[str]] = {"": []}
    for name, value in VALUES.items():
        section, _, key = name.lower().rpartition("__")
        sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
    text = "\n".join(sections.pop(""))
    toml(monkeypatch, text + "".join(f"\n[{name}]\n" + "\n".join(lines) for name, lines in sections.items()))


def in_toml_named_in_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    in_toml(monkeypatch)
    Path(".env").write_text(f"BRIDGE_CONFIG={os.environ['BRIDGE_CONFIG']}\n")
    monkeypatch.delenv("BRIDGE_CONFIG")


@pytest.mark.parametrize(
    "put", [in_environment, in_small_letters, in_dotenv, in_secret_files, in_toml, in_toml_named_in_dotenv]
)
def test_every_setting_from_every_source(
    put: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch)
    found = load()
    assert {name: setting(found, name) for name in VALUES} == VALUES


def test_sections_as_json() -> None:
    os.environ["BRIDGE_GATEWAY"] = json.dumps({"host": "a", "token": "b"})
    try:
        assert plain(load().gateway.token) == "b"
    finally:
        del os.environ["BRIDGE_GATEWAY"]


def test_toml_has_types_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    toml(monkeypatch, "[poll]\nreadings = 0\nlivedata = 2.5\n[mqtt]\nheartbeat = 60\n")
    found = load()
    assert (found.poll.period(SourceName.READINGS), found.poll.period(SourceName.LIVEDATA)) == (0, 2.5)
    assert found.mqtt.heartbeat == 60


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment, `.env`, secret files, the TOML file: the first wins, for each setting."""
    keys = ("serial", "username", "password", "host")
    toml(monkeypatch, "[gateway]\n" + "\n".join(f'{key} = "toml"' for key in keys))
    credentials(monkeypatch, **{f"bridge_gateway__{key}": "secret" for key in keys[:3]})
    Path(".env").write_text("\n".join(f"BRIDGE_GATEWAY__{key.upper()}=dotenv" for key in keys[:2]))
    environment(monkeypatch, GATEWAY__SERIAL="environment")

    gateway = load().gateway
    assert [plain(getattr(gateway, key)) for key in keys] == ["environment", "dotenv", "secret", "toml"]


def test_code_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, INSTANCE="environment")
    assert load(instance="code").instance == "code"


def test_empty_variables_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, GATEWAY__TOKEN="", MQTT__URL="", POLL__READINGS="")
    assert load() == Settings()


def test_other_programs_lines_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGES", "London")
    Path(".env").write_text("DEBUG=1\nMQTT_URL=x\n")
    assert load() == Settings()


# Secret files


def test_the_files_of_others_are_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = credentials(monkeypatch, bridge_gateway__token=SECRET, postgres_password="x", token="y")
    (folder / "key.der").write_bytes(bytes(range(256)))
    (folder / "folder").mkdir()
    (folder / "folder" / "bridge_nonsense").write_text("x")

    assert plain(load().gateway.token) == SECRET


@pytest.mark.parametrize("name", ["gateway__token", "MQTT__PASSWORD"])
def test_a_secret_file_needs_the_whole_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `BRIDGE_`, as systemd's folder of secrets has them, it would be ignored."""
    folder = credentials(monkeypatch, **{name: SECRET})
    assert refusal() == f"{folder / name}: must be called bridge_{name.lower()}"


def test_secret_files_may_be_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Container engines mount them as links."""
    folder = credentials(monkeypatch)
    (folder.parent / "elsewhere").write_text(SECRET)
    (folder / "bridge_gateway__token").symlink_to(folder.parent / "elsewhere")
    assert plain(load().gateway.token) == SECRET


def test_a_secret_file_of_wrong_bytes_is_a_wrong_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = credentials(monkeypatch)
    (folder / "bridge_mqtt__password").write_bytes(b"\xff" + SECRET.encode())
    assert refusal() == "BRIDGE_MQTT: password needs username"


@pytest.mark.parametrize("folder", ["nowhere", "file"])
def test_what_is_no_folder_of_secrets_is_ignored(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", folder)
    assert load() == Settings()


def test_credentials_come_before_a_containers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [Path("first").resolve(), Path("second").resolve()]
    for folder in folders:
        folder.mkdir()
        (folder / "bridge_gateway__token").write_text(folder.name)
    (folders[1] / "bridge_instance").write_text("second")
    monkeypatch.setattr(settings_module, "secret_folders", lambda: folders)

    assert (plain(load().gateway.token), load().instance) == ("first", "second")


def test_where_secrets_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = credentials(monkeypatch)
    assert secret_folders()[0] == folder
    assert {*secret_folders()[1:]} <= {Path("/run/secrets")}


# Wrong values

WRONG = [
    ("GATEWAY__HOST", "two words"),
    ("GATEWAY__HOST", "https://user@host"),
    ("GATEWAY__HOST", "host/path"),
    ("GATEWAY__HOST", "ftp://host"),
    ("GATEWAY__SERIAL", "1221-2506"),
    ("GATEWAY__TLS", SECRET),
    ("GATEWAY__NAME", "n" * 65),
    ("GATEWAY__HOME", "h" * 65),
    ("CLOUD__LOGIN_URL", "enlighten.example.org"),
    ("CLOUD__TOKEN_URL", "http://example.org/tokens"),
    ("CLOUD__ENTREZ_URL", "ftp://example.org"),
    ("MQTT__URL", "http://broker"),
    ("MQTT__URL", "broker:1883"),
    ("MQTT__URL", "mqtt://"),
    ("MQTT__URL", "mqtt://broker:many"),
    ("MQTT__URL", "mqtt://broker:99999"),
    ("MQTT__URL", "mqtt://[::1"),
    ("MQTT__URL", "unix://"),
    ("MQTT__URL", f"mqtt://user:{SECRET}#x@broker:1883"),
    ("MQTT__URL", f"mqtt://user:1/{SECRET}@broker:1883"),
    ("MQTT__URL", f"mqtt://user:1?{SECRET}@broker:1883"),
    ("MQTT__BASE_TOPIC", "enphase/#"),
    ("MQTT__BASE_TOPIC", "a b"),
    ("MQTT__BASE_TOPIC", "/enphase"),
    ("MQTT__BASE_TOPIC", "enphase/"),
    ("MQTT__BASE_TOPIC", "a//b"),
    ("MQTT__BASE_TOPIC", "$SYS"),
    ("MQTT__BASE_TOPIC", "+"),
    ("MQTT__CLIENT_ID", "a b"),
    ("MQTT__PROTOCOL", "4"),
    ("MQTT__PAYLOAD", "xml"),
    ("MQTT__HEARTBEAT", "5"),
    ("MQTT__HEARTBEAT", "nan"),
    ("MQTT__DEADBAND", "-1"),
    ("MQTT__DEADBAND", "inf"),
    ("MQTT__RATE", "-1"),
    ("MQTT__RATE", "nan"),
    ("HOMEASSISTANT__DISCOVERY", "on"),
    ("HOMEASSISTANT__PREFIX", "home assistant"),
    ("POLL__PROFILE", "fast"),
    ("POLL__READINGS", "often"),
    ("POLL__READINGS", "0.5"),
    ("POLL__READINGS", "-1"),
    ("POLL__READINGS", "nan"),
    ("POLL__READINGS", "inf"),
    ("POLL__READINGS", "604801"),
    ("POLL__INFO", "0"),
    ("POLL__BUDGET", "0"),
    ("POLL__BUDGET", "0.95"),
    ("POLL__BUDGET", "nan"),
    ("SITE__NETTING", "phases"),
    ("TIMEZONE", "Europe/Atlantis"),
    ("TIMEZONE", "../../etc/passwd"),
    ("TIMEZONE", "/etc/localtime"),
    ("TIMEZONE", "America"),
    ("LOG__LEVEL", "LOUD"),
    ("LOG__FORMAT", "xml"),
    ("INSTANCE", "Upper Case"),
    ("INSTANCE", "a/b"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_one_line_that_names_the_setting(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(monkeypatch, **{name: value})
    line = refusal()
    assert line.startswith(f"BRIDGE_{name}: ")
    assert len(line) > len(f"BRIDGE_{name}: ") + 10
    assert value not in line or value in {"4", "5", "0", "+", "-1", "on", "a/b", "xml", "mqtt://", "unix://"}


@pytest.mark.parametrize("put", [in_dotenv, in_secret_files, in_toml])
def test_a_wrong_value_of_any_source(
    put: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VALUES, "GATEWAY__TLS", SECRET)
    put(monkeypatch)
    assert refusal() == "BRIDGE_GATEWAY__TLS: input should be 'pin', 'strict' or 'off'"


def test_several_wrong_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, LOG__LEVEL=SECRET, MQTT__HEARTBEAT=SECRET)
    line = refusal()
    assert "BRIDGE_LOG__LEVEL: " in line
    assert "; " in line
    assert "BRIDGE_MQTT__HEARTBEAT: " in line


@pytest.mark.parametrize("value", ["", "0", "1", "604800"])
def test_the_bounds_of_a_period(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, POLL__GRID=value)
    assert load().poll.period(SourceName.GRID) == (float(value) if value else None)


@pytest.mark.parametrize("source", SourceName)
def test_each_source_has_a_period_of_its_own(source: SourceName) -> None:
    """No source may have the name of another setting of `poll`."""
    poll = load(poll={source.value: 907.5}).poll
    assert [poll.period(name) for name in SourceName] == [907.5 if name is source else None for name in SourceName]


@pytest.mark.parametrize("value", ["0", "900", "7200"])
def test_the_gateways_list_of_events_is_read_rarely(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, POLL__EVENT_LIST=value)
    assert load().poll.period(SourceName.EVENT_LIST) == float(value)
    environment(monkeypatch, POLL__EVENT_LIST="899")
    assert refusal() == "BRIDGE_POLL__EVENT_LIST: 0 or at least 900: this is much work for the gateway"


def test_words_of_choice_are_told() -> None:
    """The error lists the choices for somebody who mistypes one."""
    line = refusal(poll={"profile": SECRET})
    assert all(word in line for word in get_args(PollSettings.model_fields["profile"].annotation))
    assert get_origin(PollSettings.model_fields["profile"].annotation) is Literal


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"GATEWAY__USERNAME": "a"}, "BRIDGE_GATEWAY: username and password go together"),
        ({"GATEWAY__USERNAME": "eyJh.eyJh.x"}, "BRIDGE_GATEWAY: username or password is a token: set token to it"),
        ({"GATEWAY__USERNAME": "a", "GATEWAY__PASSWORD": "eyJh.eyJh.x"}, "BRIDGE_GATEWAY: username or password is"),
        ({"GATEWAY__PASSWORD": SECRET}, "BRIDGE_GATEWAY: username and password go together"),
        ({"MQTT__PASSWORD": SECRET}, "BRIDGE_MQTT: password needs username"),
        ({"MQTT__KEY_FILE": "a"}, "BRIDGE_MQTT: key_file needs cert_file"),
        ({"MQTT__PAYLOAD": "json"}, "BRIDGE_MQTT__PAYLOAD: json has no value topics"),
        ({"GATEWAYS": '[{"host":"a"}]', "GATEWAY__HOST": "b"}, "BRIDGE_GATEWAYS: set either one gateway"),
        ({"GATEWAYS": '[{"host":"a"},{"host":"https://a/"}]'}, "BRIDGE_GATEWAYS: names the same host twice"),
        ({"GATEWAYS": SECRET}, "BRIDGE_GATEWAYS: not valid JSON"),
        ({"GATEWAYS": f'[{{"token":"{SECRET}"'}, "BRIDGE_GATEWAYS: not valid JSON"),
        ({"GATEWAY": f'{{"token":"{SECRET}"'}, "BRIDGE_GATEWAY: not valid JSON"),
        ({"MQTT": SECRET}, "BRIDGE_MQTT: not valid JSON"),
        ({"GATEWAYS": f'["{SECRET}",' + "[" * 50_000}, "BRIDGE_GATEWAYS: not valid JSON"),
        ({"MQTT__USERNAME": f"{SECRET}\udcff"}, "BRIDGE_MQTT__USERNAME: not UTF-8 text"),
        ({"GATEWAYS": f'{{"host":"{SECRET}"}}'}, "BRIDGE_GATEWAYS: "),
        ({"GATEWAYS": f'[{{"token":["{SECRET}"]}}]'}, "BRIDGE_GATEWAYS__0__TOKEN: "),
        ({"GATEWAYS": f'[{{"host":"a"}},{{"hots":"{SECRET}"}}]'}, "BRIDGE_GATEWAYS__1__HOTS: no such setting"),
        ({"GATEWAYS": f'["{SECRET}"]'}, "BRIDGE_GATEWAYS__0: "),
    ],
)
def test_settings_that_do_not_fit(given: Mapping[str, str], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, **given)
    assert refusal().startswith(line)


@pytest.mark.parametrize("discovery", ["device", "component"])
def test_json_payloads_need_discovery_off(discovery: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, MQTT__PAYLOAD="json", HOMEASSISTANT__DISCOVERY=discovery)
    assert "BRIDGE_HOMEASSISTANT__DISCOVERY" in refusal()
    environment(monkeypatch, HOMEASSISTANT__DISCOVERY="off")
    assert load().mqtt.payload == "json"


# Unknown names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("BRIDGE_GATEWAY__HOTS", "BRIDGE_GATEWAY__HOST"),
        ("BRIDGE_GATEWAY_HOST", "BRIDGE_GATEWAY__HOST"),
        ("BRIDGE_MQTT__PASWORD", "BRIDGE_MQTT__PASSWORD"),
        ("bridge_mqqt__url", "BRIDGE_MQTT__URL"),
        ("BRIDGE_POLL__READING", "BRIDGE_POLL__READINGS"),
        ("BRIDGE_LOGLEVEL", "BRIDGE_LOG__LEVEL"),
        ("BRIDGE_CONFIG_FILE", None),
        ("BRIDGE_QQQQQQQQQQQQ", None),
    ],
)
@pytest.mark.parametrize("where", ["environment", ".env", "secret file"])
def test_an_unknown_name_is_told_with_the_nearest(
    name: str, near: str | None, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "environment":
        monkeypatch.setenv(name, SECRET)
    elif where == ".env":
        Path(".env").write_text(f"{name}={SECRET}\n")
    else:
        credentials(monkeypatch, **{name.lower(): SECRET})
    line = refusal()
    assert line.startswith(f"{name.upper()}: no such setting")
    if near:
        assert line.endswith(f"; did you mean {near}?")


@pytest.mark.parametrize(
    ("slips", "hint"),
    [
        ("GATEWAY__IP GATEWAY__ADDRESS GATEWAY_URL ENVOY_HOST ENVOY__HOST IQ_GATEWAY_HOST", "GATEWAY__HOST"),
        ("TOKEN GATEWAY_TOKEN GATEWAY__JWT ENPHASE_TOKEN GATEWAYS__0__TOKN", "GATEWAY__TOKEN"),
        ("GATEWAY__USER GATEWAY__EMAIL ENPHASE_USERNAME", "GATEWAY__USERNAME"),
        ("MQTT__HOST MQTT_HOST MQTT__PORT MQTT__BROKER MQTT_SERVER MQTT__TLS BROKER_HOST URL", "MQTT__URL"),
        ("MQTT__USER MQTT_USER MQTT__LOGIN MQTT__USER_NAME", "MQTT__USERNAME"),
        ("MQTT__PASS MQTT__PASSWD MQTT_PASSWORD", "MQTT__PASSWORD"),
        ("MQTT__TOPIC MQTT__PREFIX TOPIC MQTT_BASETOPIC", "MQTT__BASE_TOPIC"),
        ("HA__DISCOVERY HOME_ASSISTANT__DISCOVERY DISCOVERY HOMEASSISTANT_DISCOVERY", "HOMEASSISTANT__DISCOVERY"),
        ("DISCOVERY_PREFIX", "HOMEASSISTANT__PREFIX"),
        ("HTTP__PORT WEB_PORT LISTEN", "HTTP__LISTEN"),
        ("LOG_LEVEL LOGGING_LEVEL DEBUG LOG__DEBUG", "LOG__LEVEL"),
        ("POLL__INTERVAL INTERVAL", "POLL__PROFILE"),
        ("TZ TIME_ZONE", "TIMEZONE"),
        ("CONFIG_FILE", "CONFIG"),
        ("HOST", "GATEWAY__HOST"),
        ("USER USER_NAME LOGIN", "GATEWAY__USERNAME or BRIDGE_MQTT__USERNAME"),
        ("PASSWORD", "GATEWAY__PASSWORD or BRIDGE_MQTT__PASSWORD"),
        ("PORT", "MQTT__URL or BRIDGE_HTTP__LISTEN"),
        ("GATEWAY__CA_FILE GATEWAY__QQQQ MQTT__ANYTHING POLL__SUN QQQQQQQQ SOLAR", ""),
    ],
)
def test_what_other_programs_call_a_setting_leads_to_it(
    slips: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in slips.split():
        monkeypatch.setenv(f"BRIDGE_{name}", SECRET)
        asked = f"; did you mean BRIDGE_{hint}?" if hint else ""
        assert refusal() == f"BRIDGE_{name}: no such setting{asked}"
        monkeypatch.delenv(f"BRIDGE_{name}")


def test_a_swapped_letter_leads_to_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting of a section, with the last two letters of its name swapped."""
    misled = {}
    for name in sorted(names()):
        slip = f"{name[:-2]}{name[-1]}{name[-2]}"
        if "__" not in name or slip in {*names()}:
            continue
        monkeypatch.setenv(slip, SECRET)
        if f"; did you mean {name}?" not in (said := refusal()):
            misled[slip] = said
        monkeypatch.delenv(slip)
    assert misled == {}


def test_all_unknown_names_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, GATEWAY__HOTS="a", MQTT__ULR="b")
    assert refusal() == (
        "BRIDGE_GATEWAY__HOTS: no such setting; did you mean BRIDGE_GATEWAY__HOST?; "
        "BRIDGE_MQTT__ULR: no such setting; did you mean BRIDGE_MQTT__URL?"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"BRIDGE_INSTANCE=barn\nBRIDGE_MQTT__PASSWORD {SECRET}\n", 2),
        (f"\n\n# a comment\n  BRIDGE_MQTT__PASSWORD: {SECRET}\n", 4),
        (f'\r\nBRIDGE_MQTT__PASSWORD="{SECRET}\r\nBRIDGE_INSTANCE=barn\r\n', 2),
        (f"BRIDGE_MQTT__PASSWORD='{SECRET}\nBRIDGE_INSTANCE='barn'\n", 1),
        ("BRIDGE_INSTANCE\n", 1),
        (f"{SECRET} and more\n", 1),
    ],
)
def test_a_line_of_dotenv_that_is_no_assignment(text: str, line: int) -> None:
    Path(".env").write_text(text, newline="")
    assert refusal() == f".env, line {line}: must be NAME=value; quotes that are opened must be closed"


def test_lines_of_dotenv_that_are_no_mistake() -> None:
    Path(".env").write_text("export BRIDGE_GATEWAY__NAME='ba\nrn' # why\n\nDEBUG\n#BRIDGE_X\nBRIDGE_TIMEZONE=\n")
    assert load().gateway.name == "ba\nrn"


# The TOML file


@pytest.mark.parametrize("where", ["environment", ".env"])
@pytest.mark.parametrize("name", ["missing.toml", ".", "folder"])
def test_what_is_no_file_is_named(name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder").mkdir()
    if where == "environment":
        environment(monkeypatch, CONFIG=name)
    else:
        Path(".env").write_text(f"BRIDGE_CONFIG={name}\n")
    assert refusal() == f"BRIDGE_CONFIG: there is no file {Path(name)}"


def test_the_environment_names_the_file_before_dotenv_does(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("BRIDGE_CONFIG=missing.toml\n")
    file = toml(monkeypatch, 'instance = "toml"')
    assert config_file() == file
    assert load().instance == "toml"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[mqqt]\nurl = 'x'", "BRIDGE_MQQT: no such setting; did you mean BRIDGE_MQTT?"),
        ("nonsense = 5", "BRIDGE_NONSENSE: no such setting"),
        ("[MQTT]\nurl = 'x'", "BRIDGE_MQTT: must be written in small letters here"),
        ("[Mqtt]\nurl = 'x'", "BRIDGE_Mqtt: must be written in small letters here"),
        ("[mqtt]\nURL = 'x'", "BRIDGE_MQTT__URL: must be written in small letters here"),
        (
            f"[mqtt]\npasword = '{SECRET}'",
            "BRIDGE_MQTT__PASWORD: no such setting; did you mean BRIDGE_MQTT__PASSWORD?",
        ),
        (f"[gateway]\ntoken = {SECRET}", "BRIDGE_CONFIG: not valid TOML"),
        (f"gateway.token = '{SECRET}", "BRIDGE_CONFIG: not valid TOML"),
        (f"mqtt = '{SECRET}'", "BRIDGE_MQTT: must be a section with settings of its own, such as [mqtt] in TOML"),
        (f"gateway = ['{SECRET}']", "BRIDGE_GATEWAY: must be a section"),
        (f"[gateway]\nhost = '{SECRET} x'", "BRIDGE_GATEWAY__HOST: must be a name, an address (IPv6 in"),
        (f"[mqtt]\nurl = ['{SECRET}']", "BRIDGE_MQTT__URL: "),
        (f"[gateways]\nhost = '{SECRET}'", "BRIDGE_GATEWAYS: "),
    ],
)
def test_a_wrong_file(text: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toml(monkeypatch, text)
    assert refusal().startswith(line)


def test_a_file_as_windows_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has a byte order mark, and two characters at the end of each line."""
    toml(monkeypatch, "").write_bytes(b"\xef\xbb\xbf[gateway]\r\nhost = 'attic'\r\n[mqtt]\r\nurl = 'mqtt://b'\r\n")
    Path(".env").write_bytes(b"\xef\xbb\xbfBRIDGE_INSTANCE=barn\r\nBRIDGE_LOG__LEVEL=debug\r\n")
    settings = load()
    assert (settings.gateway.host, settings.mqtt.url) == ("attic", "mqtt://b")
    assert (settings.instance, settings.log.level) == ("barn", "DEBUG")


def test_what_is_empty_in_a_file_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody fills in a template and leaves the rest of it empty."""
    empty = "host = ''\ntoken = ''\nusername = ''\npassword = ''\nserial = ''"
    toml(monkeypatch, f"timezone = ''\n[gateway]\n{empty}\n[mqtt]\nurl = ''\nusername = ''\n[poll]\nreadings = 0\n")
    settings = load()
    assert settings.gateway == GatewaySettings()
    assert settings.mqtt == MqttSettings()
    assert (settings.timezone, settings.poll.period(SourceName.READINGS)) == (None, 0)


def test_what_is_empty_in_a_file_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    toml(monkeypatch, "[[gateways]]\nhost = 'a'\nname = ''\n[[gateways]]\nhost = 'b'\nhots = ''\n")
    assert refusal() == "BRIDGE_GATEWAYS__1__HOTS: no such setting; did you mean BRIDGE_GATEWAY__HOST?"


@pytest.mark.parametrize("name", [".env", "bridge.toml"])
def test_a_file_of_wrong_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(name).write_bytes(b'instance = "\xff' + SECRET.encode() + b'"\n')
    if name != ".env":
        environment(monkeypatch, CONFIG=name)
    assert refusal() == ".env or the file of BRIDGE_CONFIG: not UTF-8 text"


def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    toml(monkeypatch, "")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "bridge.toml")

    monkeypatch.setattr(Path, "read_text", forbidden)
    assert refusal() == f"bridge.toml: Permission denied; let user {os.geteuid()} read it"


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_that_nobody_has_removed_are_told(quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker run --env-file` passes them on, and the broker would refuse the password."""
    environment(monkeypatch, MQTT__USERNAME="bridge", MQTT__PASSWORD=f"{quote}{SECRET}{quote}")
    assert refusal() == (
        "BRIDGE_MQTT__PASSWORD: has quotes around its value, which `docker run --env-file` keeps: "
        "remove them there, or put the value in a secret file"
    )


def test_a_password_may_contain_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of the same kind at both ends is a slip, and a file may have any."""
    environment(monkeypatch, MQTT__USERNAME="bridge", MQTT__PASSWORD="'it\"")
    assert plain(load().mqtt.password) == "'it\""
    environment(monkeypatch, MQTT__PASSWORD="")
    Path(".env").write_text("""BRIDGE_MQTT__PASSWORD="'it'"\n""")
    assert plain(load().mqtt.password) == "'it'"


# Secrets are never shown


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(
        monkeypatch,
        GATEWAY__TOKEN=f"{SECRET}-token",
        GATEWAY__USERNAME="me",
        GATEWAY__PASSWORD=f"{SECRET}-password",
        MQTT__URL=f"mqtt://me:{SECRET}-mqtt@broker",
    )
    found = load()
    assert plain(found.mqtt.password) == f"{SECRET}-mqtt"
    for shown in (repr(found), str(found), f"{found.gateway}", f"{found.mqtt!r}", found.model_dump_json()):
        assert SECRET not in shown
    assert found.mqtt.url == "mqtt://broker"


def test_a_refusal_by_pydantic_itself_does_not_show_the_value() -> None:
    """Sections are also made by commands, not only by `load`."""
    for make in (lambda: GatewaySettings(tls=SECRET), lambda: Settings(log={"level": SECRET})):
        with pytest.raises(ValueError, match=r"tls|level") as caught:
            make()
        assert SECRET not in str(caught.value)


def test_a_secret_of_several_gateways(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, GATEWAYS=json.dumps([{"host": "a", "token": SECRET}, {"host": "b", "name": "Cabin"}]))
    found = load()
    assert SECRET not in repr(found)
    assert [(gateway.host, gateway.name) for gateway in found.all_gateways] == [("a", None), ("b", "Cabin")]
    assert plain(found.all_gateways[0].token) == SECRET


# What the settings mean


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("envoy.local", "https://envoy.local"),
        ("192.0.2.7", "https://192.0.2.7"),
        ("envoy:8443", "https://envoy:8443"),
        ("http://192.0.2.7", "http://192.0.2.7"),
        ("https://envoy.local/", "https://envoy.local"),
        ("[2001:db8::1]:443", "https://[2001:db8::1]:443"),
    ],
)
def test_the_address_of_a_gateway(host: str, url: str) -> None:
    assert GatewaySettings(host=host).base_url == url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", ("mqtt://broker", None, None)),
        ("mqtt://me@broker:1884", ("mqtt://broker:1884", "me", None)),
        ("mqtts://me:pass@broker", ("mqtts://broker", "me", "pass")),
        ("wss://me:p%40ss%2F@broker/mqtt", ("wss://broker/mqtt", "me", "p@ss/")),
        ("ws://broker:9001/mqtt", ("ws://broker:9001/mqtt", None, None)),
        ("unix:///run/mosquitto.sock", ("unix:///run/mosquitto.sock", None, None)),
        ("mqtt://me:a@b@broker", ("mqtt://broker", "me", "a@b")),
        ("mqtt://[::1]:1883", ("mqtt://[::1]:1883", None, None)),
    ],
)
def test_a_user_in_the_url_of_the_broker(url: str, expected: tuple[str, str | None, str | None]) -> None:
    found = MqttSettings(url=url)
    assert (found.url, found.username, found.password and plain(found.password)) == expected


def test_a_user_of_its_own_wins_over_that_in_the_url() -> None:
    found = MqttSettings(url="mqtt://a:b@broker", username="c", password=SecretStr("d"))
    assert (found.username, plain(found.password)) == ("c", "d")


def test_the_level_may_be_written_small(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, LOG__LEVEL="debug")
    assert load().log.level == "DEBUG"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/x", "http://localhost/x", "http://[::1]:1/x", "https://a.b/c"]
)
def test_a_plain_cloud_is_for_tests_on_this_machine(url: str) -> None:
    assert CloudSettings(login_url=url).login_url == url


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/bridge"}, "/var/lib/bridge"),
        ({"STATE_DIRECTORY": "/var/lib/bridge:/var/lib/other"}, "/var/lib/bridge"),
        ({"XDG_STATE_HOME": "/home/me/state"}, "/home/me/state/iqgateway2mqtt"),
        ({"HOME": "/home/me"}, "/home/me/.local/state/iqgateway2mqtt"),
        ({"STATE_DIRECTORY": "/var/lib/bridge", "BRIDGE_STATE_DIR": "mine"}, "mine"),
    ],
)
def test_where_state_is_kept(given: Mapping[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert load().state_dir == Path(folder)


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().instance = "x"  # type: ignore[misc] # that it can not be is what is tested
    with pytest.raises(ValueError, match="frozen"):
        load().mqtt.url = "x"  # type: ignore[misc] # as above


# Where to listen


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("8080", ("127.0.0.1", 8080)),
        ("0", ("127.0.0.1", 0)),
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),  # noqa: S104 - that is what it tests
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:8080", ("::1", 8080)),
        ("[::]:8080", ("::", 8080)),
    ],
)
def test_a_listener_is_a_port_of_this_machine_unless_said_otherwise(
    value: str, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(monkeypatch, HTTP__LISTEN=value)
    assert load().http.address == address


@pytest.mark.parametrize(
    "value",
    ["on", "::1:8080", "65536", "192.0.2.7", "http://192.0.2.7:8080", "[a]:1", ":8080", "a b:1", "a:x"],
)
def test_what_is_no_place_to_listen_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, HTTP__LISTEN=value)
    assert refusal().startswith("BRIDGE_HTTP__LISTEN: must be a port such as 8080, or ")


def test_nothing_listens_unless_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, HTTP__LISTEN="")
    assert load().http.listen is None


def test_a_port_in_toml_may_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    toml(monkeypatch, "[http]\nlisten = 8080")
    assert load().http.address == ("127.0.0.1", 8080)


FILES = (
    "GATEWAY__TOKEN_FILE",
    "MQTT__CA_FILE",
    "MQTT__CERT_FILE",
    "MQTT__KEY_FILE",
    "CLOUD__CA_FILE",
    "GATEWAYS_FILE",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
async def test_what_is_no_file_stops_the_program_with_one_line(name: str, kind: str, tmp_path: Path) -> None:
    """A named pipe that nobody writes into held up the start for ever, whatever signal came."""
    odd = tmp_path / kind
    make = os.mkfifo if kind == "pipe" else os.mkdir
    make(odd)
    given = {f"BRIDGE_{name}": str(odd), "BRIDGE_STATE_DIR": str(tmp_path / "state")}
    given |= {"BRIDGE_MQTT__CERT_FILE": str(odd)} if name == "MQTT__KEY_FILE" else {}
    async with started(*BRIDGE_COMMAND, "run", env=given) as program:
        assert await program.ended() == 78
    assert len(program.err) == 1
    assert f"BRIDGE_{name}: {odd} is no ordinary file" in program.err[0]


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("", set()),
        ("none", set()),
        ("storage", {"storage"}),
        (" Storage , acb,", {"storage", "acb"}),
        ("all", {"storage", "contacts", "generator", "limit", "acb"}),
        ("all,grid", {"storage", "contacts", "generator", "limit", "acb", "grid"}),
    ],
)
def test_commands_are_allowed_by_group(monkeypatch: pytest.MonkeyPatch, given: str, allowed: set[str]) -> None:
    monkeypatch.setenv("BRIDGE_CONTROL__ALLOW", given)
    found = load()
    assert found.control.allowed(found.gateway) == allowed


def test_a_gateway_of_a_list_replaces_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = [{"host": "a", "allow": "grid"}, {"host": "b", "allow": ""}, {"host": "c"}]
    monkeypatch.setenv("BRIDGE_GATEWAYS", json.dumps(gateways))
    monkeypatch.setenv("BRIDGE_CONTROL__ALLOW", "storage")
    found = load()
    assert [found.control.allowed(gateway) for gateway in found.every_gateway] == [{"grid"}, set(), {"storage"}]


@pytest.mark.parametrize("name", ["BRIDGE_CONTROL__ALLOW", "BRIDGE_GATEWAY__ALLOW"])
def test_an_unknown_group_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "storage,roof")
    with pytest.raises(BadSetting) as problem:
        load()
    assert str(problem.value) == (
        f"{name}: there is no group 'roof'; there are storage, contacts, generator, limit, acb, grid and all"
    )
