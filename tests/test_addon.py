"""The add-on for Home Assistant OS: the supervisor accepts it, and its options are the bridge's settings.

The supervisor's rules are those of its `addons/validate.py` and `addons/options.py`: it does not show an add-on
whose configuration breaks one.
"""

import json
import os
import pwd
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import pytest
import yaml
from houses import House, house
from programs import Program, started
from pydantic import BaseModel
from running import until

from bridge import __version__
from bridge.settings import Settings
from bridge.simulator.serve import serve

ROOT = Path(__file__).parents[1]
ADDON = ROOT / "homeassistant-addon"
CONFIG: dict[str, Any] = yaml.safe_load((ADDON / "config.yaml").read_text())
REQUIRED = {"name", "version", "slug", "description", "arch"}
USED = REQUIRED | {"url", "homeassistant", "startup", "init", "services", "options", "schema"}
"""Keys of the configuration. The supervisor silently drops unknown ones."""
ARCHITECTURES = {"aarch64", "amd64"}
"""The architectures that Home Assistant OS supports since 2025.12."""
ELEMENT = re.compile(
    r"(bool|email|url|port|(str|password|int)(\(\d*,\d*\))?|float(\([\d.]*,[\d.]*\))?|match\(.*\)|list\(.+\))\??"
)
LANGUAGES = sorted(ADDON.glob("translations/*.yaml"))


def options(schema: Mapping[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each option by its path, with its type. The keys of `more` are names of settings."""
    for name, kind in schema.items():
        inner = kind[0] if isinstance(kind, list) else kind
        if isinstance(inner, Mapping):
            yield from options(inner, *above, name)
        else:
            yield (*above, name), inner


OPTIONS = dict(options(CONFIG["schema"]))


def test_the_supervisor_takes_the_configuration() -> None:
    assert CONFIG.keys() == USED
    assert re.fullmatch(r"[-_.A-Za-z0-9]+", CONFIG["slug"])
    assert CONFIG["version"] == __version__
    assert set(CONFIG["arch"]) == ARCHITECTURES
    assert CONFIG["startup"] in {"initialize", "system", "services", "application", "once"}
    assert all(re.fullmatch(r"(mqtt|mysql):(provide|want|need)", service) for service in CONFIG["services"])
    assert [kind for kind in OPTIONS.values() if not ELEMENT.fullmatch(kind)] == []


def test_the_defaults_are_complete_and_right() -> None:
    """No section is optional: if one were missing, the supervisor would not start the add-on."""
    assert CONFIG["options"].keys() == CONFIG["schema"].keys()
    for section, given in CONFIG["options"].items():
        schema = CONFIG["schema"][section]
        if isinstance(schema, list):
            assert given == []
            continue
        needed = {name for name, kind in schema.items() if not kind.endswith("?")}
        assert needed <= given.keys() <= schema.keys()
        for name, value in given.items():
            choices = re.fullmatch(r"list\((.*)\)\??", schema[name])
            assert choices is None or value in choices[1].split("|")


@pytest.mark.parametrize("path", [path for path in OPTIONS if path[0] not in {"start", "more"}], ids="__".join)
def test_each_option_is_a_setting(path: tuple[str, ...]) -> None:
    section, name = path
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    field = model.model_fields[name]
    choices = re.fullmatch(r"list\((.*)\)\??", OPTIONS[path])
    if choices:
        assert tuple(choices[1].split("|")) == get_args(field.annotation)
    secret = "SecretStr" in str(field.annotation)
    assert OPTIONS[path].startswith("password") == secret
    if path in {("gateway", "host"), ("poll", "profile"), ("log", "level")}:
        assert CONFIG["options"][section][name] == field.default


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda file: file.stem)
def test_each_option_has_a_name_and_a_meaning(file: Path) -> None:
    found = yaml.safe_load(file.read_text())
    assert found.keys() == {"configuration"}
    told = found["configuration"]
    assert told.keys() == CONFIG["schema"].keys()
    paths = {(section, name) for section, about in told.items() for name in about["fields"]}
    assert paths == OPTIONS.keys()
    fields = [field for about in told.values() for field in about["fields"].values()]
    for one in [*told.values(), *fields]:
        assert one.keys() <= {"name", "description", "fields"}
        assert all(isinstance(one[key], str) and one[key] for key in ("name", "description"))


def test_there_are_an_english_and_a_german_one() -> None:
    assert [file.stem for file in LANGUAGES] == ["de", "en"]


@pytest.mark.parametrize(("name", "size"), [("icon", (128, 128)), ("logo", (250, 100))])
def test_the_pictures_have_the_size_that_the_store_wants(name: str, size: tuple[int, int]) -> None:
    content = (ADDON / f"{name}.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == size


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ADDON / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_repository_is_one_of_add_ons_with_one_of_them() -> None:
    """The supervisor reads every file of that name as the configuration of an add-on."""
    about = yaml.safe_load((ROOT / "repository.yaml").read_text())
    assert about.keys() == {"name", "url", "maintainer"}
    found = [file for kind in ("yaml", "yml", "json") for file in ROOT.glob(f"**/config.{kind}")]
    shown = [file for file in found if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)]
    assert shown == [ADDON / "config.yaml"]


def test_the_manual_shows_options_that_are_accepted() -> None:
    block = re.search(r"```yaml\n(.*?)```", (ADDON / "DOCS.md").read_text(), re.DOTALL)
    assert block
    shown = yaml.safe_load(block[1])
    assert shown.keys() == CONFIG["schema"].keys()
    plain = [section for section in shown if section != "more"]
    assert {(section, name) for section in plain for name in shown[section] or {}} <= OPTIONS.keys()
    pattern = re.fullmatch(r"match\((.*)\)", OPTIONS["more", "name"])
    assert pattern
    assert all(re.match(pattern[1], one["name"]) and isinstance(one["value"], str) for one in shown["more"])


class SupervisorApi:
    """Stands in for the supervisor's services that the add-on uses. If `service` is `None`, there is no broker."""

    serial = ""  # an address without a gateway

    def __init__(self, service: Mapping[str, Any] | None) -> None:
        self.service = service
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002 - its name in ASGI
        if scope["type"] != "http":
            return
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        self.asked.append((scope["path"], headers["authorization"]))
        body = {"result": "ok", "data": self.service} if self.service else {"result": "error", "message": "none"}
        status = 200 if self.service else 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def written(folder: Path, home: House, **changes: Any) -> Path:
    """Options as the supervisor writes them: the defaults, and the options that a person has set."""
    own = {"host": home.url, "token": home.simulator.token()}
    more = [{"name": "BRIDGE_INSTANCE", "value": "addon"}, {"name": "BRIDGE_POLL__INVERTERS", "value": "60"}]
    chosen = {**CONFIG["options"], "gateway": own, "more": more, **changes}
    file = folder / "options.json"
    file.write_text(json.dumps(chosen))
    return file


def environment(folder: Path) -> dict[str, str]:
    """The environment of the container, with the tests' `iqgateway2mqtt` in its path."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return {"PATH": path, "SUPERVISOR_TOKEN": "sesame", "BRIDGE_STATE_DIR": str(folder / "data")}


async def start_with(program: Program, home: House) -> None:
    await until(lambda: home.topic("site/solar/power") is not None or program.process.returncode is not None)
    assert program.process.returncode is None, program.err


@pytest.mark.parametrize("named", [False, True], ids=["the supervisor's broker", "another broker"])
async def test_it_starts_the_bridge_with_its_options(named: bool, tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        nowhere = {
            "host": "127.0.0.1",
            "port": 9,
            "ssl": False,
            "username": "",
            "password": "",
            "protocol": "3.1.1",
        }
        supervisor = SupervisorApi(nowhere if named else {**nowhere, "port": home.broker.port})
        async with serve(supervisor, tls=False) as address:
            file = written(tmp_path, home, **({"mqtt": {"url": home.broker.url}} if named else {}))
            command = (sys.executable, str(ADDON / "start.py"), str(file), f"http://{address}")
            async with started(*command, env=environment(tmp_path)) as program:
                await start_with(program, home)
                assert home.seen["enphase/bridge/addon/state"] == "online"
                assert await program.stop() == 0
        assert supervisor.asked == ([] if named else [("/services/mqtt", "Bearer sesame")])
        assert (tmp_path / "data" / "bridge.json").exists()


@pytest.mark.parametrize("answers", [True, False], ids=["it knows none", "it does not answer"])
async def test_without_a_broker_it_says_what_to_do(answers: bool, tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_text(json.dumps(CONFIG["options"]))
    async with serve(SupervisorApi(None), tls=False) as address:
        where = f"http://{address if answers else '127.0.0.1:9'}"
        async with started(sys.executable, str(ADDON / "start.py"), str(file), where) as program:
            assert await program.ended() == 78
    assert len(program.err) == 1
    assert program.err[0].startswith("There is no MQTT broker: install the Mosquitto broker add-on, or name one")


async def test_a_broker_with_tls_and_a_password(tmp_path: Path) -> None:
    """A program that stands in for the bridge prints the settings that it gets."""
    stand_in = tmp_path / "iqgateway2mqtt"
    stand_in.write_text("#!/bin/sh\nenv | grep ^BRIDGE_MQTT\n")
    stand_in.chmod(0o700)
    file = tmp_path / "options.json"
    file.write_text(json.dumps({**CONFIG["options"], "mqtt": {"username": "", "password": None}}))
    service = {"host": "core-mosquitto", "port": 8883, "ssl": True, "username": "addons", "password": "p w"}
    async with serve(SupervisorApi(service), tls=False) as address:
        command = (sys.executable, str(ADDON / "start.py"), str(file), f"http://{address}")
        async with started(*command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}) as program:
            assert await program.ended() == 0
    url = "BRIDGE_MQTT__URL=mqtts://core-mosquitto:8883"
    assert sorted(program.out) == ["BRIDGE_MQTT__PASSWORD=p w", url, "BRIDGE_MQTT__USERNAME=addons"]


def test_the_image_locks_what_it_installs() -> None:
    """The supervisor builds with this folder alone, so that it has a copy of the container's requirements."""
    assert (ADDON / "requirements.txt").read_bytes() == (ROOT / "requirements.txt").read_bytes()


@pytest.mark.parametrize(
    ("start", "calls"),
    [
        ({}, ["run"]),
        ({"check": False, "accept_key": False}, ["run"]),
        ({"check": True}, ["check", "run"]),
        ({"check": True, "accept_key": True}, ["check --accept-key", "run"]),
    ],
)
def test_without_a_terminal_it_can_be_checked_at_the_start(
    tmp_path: Path, start: dict[str, bool], calls: list[str]
) -> None:
    """The bridge runs even after a check with problems. A program stands in for it, and says how it is called."""
    stand_in = tmp_path / "iqgateway2mqtt"
    stand_in.write_text('#!/bin/sh\necho "$@"; env | grep -c ^BRIDGE_START; test "$1" = run\n')
    stand_in.chmod(0o700)
    file = tmp_path / "options.json"
    file.write_text(json.dumps({**CONFIG["options"], "mqtt": {"url": "mqtt://192.0.2.1"}, "start": start}))
    command = (sys.executable, str(ADDON / "start.py"), str(file), "http://192.0.2.2")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [line for call in calls for line in (call, "0")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_bridge_runs_as_a_user_of_its_own_without_the_supervisors_token(tmp_path: Path) -> None:
    """The options are readable for root alone. What an earlier version has left as root becomes the user's."""
    with TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)  # unlike those of pytest, so that the user can reach its program
        stand_in = place / "iqgateway2mqtt"
        stand_in.write_text(
            "#!/bin/sh\nid -u; id -G; env | grep -c sesame; cat data/state/kept; touch data/state/new\n"
        )
        stand_in.chmod(0o755)
        state = place / "data" / "state"
        state.mkdir(parents=True, mode=0o700)
        (state.parent).chmod(0o755)
        (state / "kept").write_text("kept\n")
        (state / "kept").chmod(0o600)
        file = tmp_path / "options.json"
        file.write_text(json.dumps({**CONFIG["options"], "mqtt": {"url": "mqtt://192.0.2.1"}}))
        file.chmod(0o600)
        given = {"PATH": f"{place}:/usr/bin:/bin", "SUPERVISOR_TOKEN": "sesame", "HASSIO_TOKEN": "sesame"}
        command = (
            "env",
            f"--chdir={place}",
            sys.executable,
            str(ADDON / "start.py"),
            str(file),
            "http://192.0.2.2",
        )
        env = {**given, "BRIDGE_STATE_DIR": str(state)}
        done = subprocess.run([*command, "nobody"], env=env, capture_output=True, text=True, check=True)
        nobody = pwd.getpwnam("nobody")
        assert done.stdout.split() == [str(nobody.pw_uid), str(nobody.pw_gid), "0", "kept"]
        assert {path.stat().st_uid for path in (state, *state.iterdir())} == {nobody.pw_uid}
        assert (state / "new").exists()
