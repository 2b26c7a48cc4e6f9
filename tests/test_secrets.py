"""Passwords, tokens and sessions show nowhere, whatever fails: only the state file has a token."""

import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from brokers import Mosquitto, password_lines, watching
from houses import House, housed
from programs import BRIDGE_COMMAND, started
from running import running, until

from bridge.http_server import Receive, Scope, Send
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.gateway import INFO_PATH, READINGS_PATH

pytestmark = [pytest.mark.hasty, pytest.mark.may_log(".")]

BROKER_USER, BROKER_PASSWORD = "bridge", "hunter2-Ä/€"

STATES = (
    (),
    (("login", "wrong_password"),),
    (("login", "mfa"),),
    (("login", "blocked"),),
    (("login", "406"),),
    (("login", "html"),),
    (("login", "truncated"),),
    (("login", "garbage"),),
    (("login", "reset"),),
    (("tokens", "html"),),
    (("tokens", "not_your_serial"),),
    (("tokens", "wrong_aud"),),
    (("tokens", "expired"),),
    (("tokens", "truncated"), ("entrez", "truncated")),
    (("tokens", "503"), ("entrez", "error_object")),
    (("cloud", "drop"),),
    (("cloud", "503"),),
    (("check", "500"), ("/ivp/*", "401")),
    (("/ivp/*", "401"),),
    (("gateway", "html"),),
    (("/ivp/*", "reset"),),
    (("/api/*", "hang"),),
)


class SecretsSimulator(Simulator):
    """A simulator that remembers the secrets of its requests, which must not show."""

    came: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        token = headers.get("authorization", "").removeprefix("Bearer ")
        self.came |= {part for part in (token, *token.split(".")) if len(part) > 8}
        await super().__call__(scope, receive, send)


def secrets(simulator: Simulator) -> set[str]:
    assert isinstance(simulator, SecretsSimulator)
    passwords = (PASSWORD, BROKER_PASSWORD)
    to_text = {quote(text) for text in passwords} | {quote_plus(text) for text in passwords} | {*passwords}
    basic = {b64encode(f"{user}:{text}".encode()).decode() for user in (USER, BROKER_USER) for text in passwords}
    return to_text | basic | simulator.came | {f"{1:032x}", "sessionId=", "session_id="}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker with a password for the bridge, which others may read without one."""
    _, passwords = password_lines(tmp_path, BROKER_USER, BROKER_PASSWORD)
    with Mosquitto(tmp_path, "allow_anonymous true", passwords) as broker:
        yield broker


@asynccontextmanager
async def watched(folder: Path, broker: Mosquitto) -> AsyncIterator[House]:
    async with (
        housed(folder, broker, "three-phase", SecretsSimulator) as home,
        watching(broker.port) as home.watcher,
    ):
        yield home


def told(home: House) -> str:
    """Everything that anybody could read at the broker at any time."""
    return "\n".join(f"{message.topic} {message.payload}" for message in home.watcher.seen)


def problem(home: House) -> bool:
    return home.topic("gateway/problem") not in (None, "none")


MQTT = {"username": BROKER_USER, "password": BROKER_PASSWORD}


@pytest.mark.parametrize("orders", STATES, ids=lambda orders: "+".join(map("=".join, orders)) or "well")
async def test_no_state_tells_a_secret(
    orders: tuple[tuple[str, str], ...], tmp_path: Path, guarded: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with watched(tmp_path, guarded) as home:
        for order in orders:
            home.simulator.faults.add(*order)
        settings = home.settings(gateway=home.account, mqtt=MQTT)
        async with running(settings) as service:
            await until(
                lambda: (
                    problem(home) or home.simulator.count(READINGS_PATH) > 1 or home.simulator.count(INFO_PATH) > 2
                )
            )
            objects = repr([settings, settings.all_gateways, settings.mqtt, service])
        known = secrets(home.simulator)
        for place in (caplog.text, told(home), objects, str(settings.model_dump()), settings.model_dump_json()):
            assert [secret for secret in known if secret in place] == []
        files = [path for path in (tmp_path / "state").iterdir() if path.name != f"gateway-{home.serial}.json"]
        for file in files:
            assert [secret for secret in known if secret in file.read_text()] == []


async def test_the_state_file_holds_the_token_and_no_password(tmp_path: Path, guarded: Mosquitto) -> None:
    async with watched(tmp_path, guarded) as home:
        async with running(home.settings(gateway=home.account, mqtt=MQTT)):
            await home.settled()
        text = (tmp_path / "state" / f"gateway-{home.serial}.json").read_text()
        assert any(secret in text for secret in secrets(home.simulator) if secret.count(".") == 2)
        assert PASSWORD not in text
        assert BROKER_PASSWORD not in text


@pytest.mark.parametrize("command", ["run", "once"])
@pytest.mark.parametrize(
    "orders", [(), (("login", "wrong_password"),), (("/ivp/*", "401"),)], ids=["well", "login", "401"]
)
async def test_the_program_prints_no_secret(
    command: str, orders: tuple[tuple[str, str], ...], tmp_path: Path, guarded: Mosquitto
) -> None:
    """The log level is DEBUG."""
    async with watched(tmp_path, guarded) as home:
        for order in orders:
            home.simulator.faults.add(*order)
        port = guarded.port
        environment = {
            "BRIDGE_GATEWAY__HOST": home.url,
            "BRIDGE_GATEWAY__USERNAME": USER,
            "BRIDGE_GATEWAY__PASSWORD": PASSWORD,
            **{f"BRIDGE_CLOUD__{name.upper()}": url for name, url in home.at_cloud.items()},
            "BRIDGE_MQTT__URL": f"mqtt://{BROKER_USER}:{quote(BROKER_PASSWORD, safe='')}@127.0.0.1:{port}",
            "BRIDGE_STATE_DIR": str(tmp_path / "state"),
            "BRIDGE_LOG__LEVEL": "DEBUG",
            "BRIDGE_LOG__FORMAT": "json",
        }
        async with started(*BRIDGE_COMMAND, command, env=environment) as program:
            if command == "run":
                await until(lambda: any("device_list" in line for line in program.err) or orders != ())
                await until(lambda: home.simulator.count(INFO_PATH) > 0 and len(program.err) > 1)
                assert await program.stop() == 0
            else:
                await program.ended()
        printed = "\n".join([*program.out, *program.err, told(home)])
        assert [secret for secret in secrets(home.simulator) if secret in printed] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"BRIDGE_GATEWAY__PASSWORD": PASSWORD},
        {"BRIDGE_MQTT__URL": f"mqtt//{BROKER_USER}:{quote(BROKER_PASSWORD)}@broker"},
        {"BRIDGE_MQTT__URL": f"mqtt://{BROKER_USER}:{quote(BROKER_PASSWORD, safe='')}@broker:port"},
        {"BRIDGE_GATEWAYS": f'[{{"host": "a", "username": "{USER}", "password": "{PASSWORD}", "pasword": 1}}]'},
        {"BRIDGE_GATEWAYS": f'[{{"password": "{PASSWORD}"'},
        {"BRIDGE_MQTT__PASSWORD": BROKER_PASSWORD},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_a_wrong_setting_is_told_without_its_value(wrong: dict[str, str]) -> None:
    async with started(*BRIDGE_COMMAND, "run", env=wrong) as program:
        assert await program.ended() == 78
    assert len(program.err) == 1
    for secret in (PASSWORD, BROKER_PASSWORD, quote(BROKER_PASSWORD), quote(BROKER_PASSWORD, safe="")):
        assert secret not in program.err[0]
