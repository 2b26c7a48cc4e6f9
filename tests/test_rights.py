"""The access lists of docs/brokers.md, at real brokers: one user may give commands, another one only read."""

import json
import shlex
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from brokers import Configured, Mosquitto, RabbitMq, Served, free_port, needed, program, watching
from cli import EXIT_REFUSED
from houses import House, housed, publish
from programs import BRIDGE_COMMAND, started
from running import running, ticking, until
from test_brokers import ALL_RIGHTS, blocks, one_rabbitmq

pytestmark = pytest.mark.hasty
PASSWORD, USERS = "secret", ("enphase", "owner", "display")
RESERVE = "storage/settings/reserve"


@contextmanager
def mosquitto(folder: Path) -> Iterator[Served]:
    passwords, rules = folder / "passwords", folder / "rules"
    for user in USERS:
        command = [program("mosquitto_passwd"), "-b", *(() if passwords.exists() else ("-c",))]
        subprocess.run([*command, str(passwords), user, PASSWORD], check=True, capture_output=True)
    rules.write_text(blocks("Who may give commands", "text")[0])
    lines = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {rules}")
    with Mosquitto(folder, *lines) as broker:
        yield broker


@contextmanager
def nats(folder: Path) -> Iterator[Served]:
    needed("nats-server", "nats-server")
    port = free_port()
    fixed = f'server_name: home, jetstream: {{ store_dir: "{folder}" }}, mqtt: {{ listen: 127.0.0.1:{port} }}'
    text = "\n".join([fixed, blocks("Who may give commands")[0]])
    with Configured(folder, "nats-server", text, port, "-a", "127.0.0.1", "-p", str(free_port())) as broker:
        yield broker


@contextmanager
def rabbitmq(folder: Path) -> Iterator[Served]:
    (text,) = blocks("Who may give commands", "sh")
    shown = [shlex.split(line)[2:] for line in text.splitlines()]
    rights = [{"user": user, "write": write, "read": read} for user, _, write, read in shown]
    definitions = {
        "users": [{"name": user, "password": PASSWORD, "tags": ""} for user in USERS],
        "vhosts": [{"name": "/"}],
        "permissions": [{"user": user, **ALL_RIGHTS} for user in USERS],
        "topic_permissions": [{"vhost": "/", "exchange": "amq.topic", **right} for right in rights],
    }
    with RabbitMq(folder, definitions) as broker:
        yield broker


def by(user: str) -> Sequence[str]:
    return ("-V", "mqttv311", "-u", user, "-P", PASSWORD)


@asynccontextmanager
async def obeying(folder: Path, broker: Served, **mqtt: str) -> AsyncIterator[House]:
    """A home whose storage may be set, and that is watched by the user who may only read."""
    async with (
        housed(folder, broker, "split-phase", personality="obeys") as home,
        watching(broker.port, "enphase/#", options=by("display")) as home.watcher,
        running(
            home.settings(
                control={"allow": "storage"},
                homeassistant={"discovery": "off"},
                mqtt={"username": "enphase", "password": PASSWORD, **mqtt},
            )
        ),
    ):
        await until(lambda: home.topic(RESERVE) == "22")
        yield home


@pytest.mark.parametrize("kind", [mosquitto, nats, pytest.param(rabbitmq, marks=one_rabbitmq)])
async def test_only_the_owner_is_obeyed(tmp_path: Path, kind: object) -> None:
    with kind(tmp_path) as broker:  # type: ignore[operator] # one of the functions above
        async with obeying(tmp_path, broker, protocol="3.1.1") as home, ticking(home.clock):
            place = f"enphase/{home.serial}"
            for user, value in (("display", 35), ("owner", 36)):
                await publish(broker, f"{place}/{RESERVE}/set", str(value), *by(user))
                request = {"set": RESERVE, "value": value, "id": user, "dry_run": True}
                await publish(broker, f"{place}/request", json.dumps(request), *by(user))
                await publish(broker, f"{place}/{RESERVE}", "1", *by(user))
            await until(lambda: home.topic("command/text") == "reserve 36: confirmed")
            answers = [json.loads(seen.payload) for seen in home.watcher.seen if seen.topic.endswith("/response")]
            assert {answer["value"] for answer in answers} == {"36", 36}
            assert len(home.simulator.writes()) == 1
            values = {seen.payload for seen in home.watcher.seen if seen.topic == f"{place}/{RESERVE}"}
            assert values <= {"22", "36"}


def environment(broker: Served, user: str) -> Mapping[str, str]:
    return {
        "BRIDGE_MQTT__URL": broker.url,
        "BRIDGE_MQTT__USERNAME": user,
        "BRIDGE_MQTT__PASSWORD": PASSWORD,
        "BRIDGE_STATE_DIR": str(broker.folder / "none"),
    }


async def test_the_command_line_says_that_it_may_not(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with obeying(tmp_path, broker):
            command = (*BRIDGE_COMMAND, "set", RESERVE, "35", "--dry-run")
            async with started(*command, env=environment(broker, "owner")) as owner:
                assert await owner.ended() == 0
            async with started(*command, env=environment(broker, "display")) as display:
                assert await display.ended() == EXIT_REFUSED
            assert "the broker does not accept enphase/" in display.out[-1]
            assert "docs/brokers.md" in display.out[-1]
