"""`setup`: asks for what is needed, tries each answer at once, and writes the settings.

Nothing is written before all of it works, and nothing secret is shown while it is typed.
"""

import asyncio
import getpass
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bridge.commands import log, papers
from bridge.commands.check_broker import check_broker
from bridge.commands.codes import CONFIGURATION
from bridge.commands.reach import Place
from bridge.commands.report import Report
from bridge.commands.token import prove
from bridge.commands.visit import Visit
from bridge.config import PREFIX, LogSettings, Settings, load
from bridge.gateway import Cloud, Token
from bridge.gateway.errors import TOKEN_PAGE
from bridge.gateway.neighbours import Neighbour, neighbours
from bridge.gateway.token import MAX_LENGTH
from bridge.model import BadSetting, BridgeError
from bridge.store import Store

SILENCE = "no more answers: nothing was written"
SERVICE = Path("/etc/iqgateway2mqtt")
"""Where the units in systemd/ look for settings: that of an instance in a folder of its own."""
TRIES = 5
"""Times that one question is asked."""
LISTEN = 4.0
"""Seconds that gateways have to announce themselves."""
PRIVATE = 0o600
PROGRAM = "iqgateway2mqtt"
SAFE = re.compile(r"[A-Za-z0-9_.,:/@%+-]+")
"""Values that need no quotes, whoever reads them."""

Answers = dict[str, dict[str, str]]
"""Section and field of a setting, and what was said."""


class GivenUp(Exception):
    """There is nobody to ask any more, or no answer that works; the text says what else to do."""


class Interview:
    """One conversation. What it does not ask for comes from the settings that are there already."""

    def __init__(self, report: Report, interfaces: Sequence[str]) -> None:
        self._report, self._interfaces = report, interfaces
        self._gateway: dict[str, str] = {}
        self._mqtt: dict[str, str] = {}
        self._serial = ""

    def hold(self) -> Answers:
        """Raises GivenUp where a question has no answer that works."""
        self._report.section("Gateway")
        self._until_good(self._ask_gateway)
        if self._settings().gateway.base_url.startswith("https"):
            self._report.section("Token")
            self._until_good(self._ask_token)
        self._report.section("Broker")
        self._until_good(self._ask_broker)
        return {"gateway": self._gateway, "mqtt": self._mqtt}

    def _until_good(self, question: Callable[[], Coroutine[Any, Any, None]]) -> None:
        for _ in range(TRIES):
            if self._works(question()):
                return
        raise GivenUp("no answer works; `iqgateway2mqtt check` looks closer")

    def _works(self, trial: Coroutine[Any, Any, None]) -> bool:
        """Each answer is tried at once."""
        before = self._report.problems
        try:
            asyncio.run(trial)
        except BridgeError as error:
            self._report.fault("answer", error)
        return self._report.problems == before

    def _settings(self) -> Settings:
        return load(gateway=self._gateway, mqtt=self._mqtt)

    def _ask_gateway(self) -> Coroutine[Any, Any, None]:
        found = self._nearby()
        for number, neighbour in enumerate(found, 1):
            self._report.fact(str(number), f"gateway {neighbour.serial} at {neighbour.host}")
        hint = "a number of these, or its address" if found else "its address, as your router shows it"
        given = ask(f"Which gateway ({hint})", "1" if found else "envoy.local")
        listed = given.isdecimal() and 0 < int(given) <= len(found)
        self._gateway = {"host": found[int(given) - 1].host if listed else given}
        return self._meet()

    def _nearby(self) -> list[Neighbour]:
        """Nobody where mDNS can't be had: its library is an extra, and most containers have no way for it."""
        try:
            return asyncio.run(neighbours(LISTEN, self._interfaces))
        except (ModuleNotFoundError, OSError):
            return []

    async def _meet(self) -> None:
        settings = self._settings()
        place = Place.of(settings.gateway.base_url)
        if place.named:
            await place.resolve()
        await place.knock()
        async with Visit(settings, settings.gateway, Store(settings.state_dir)) as visit:
            facts = await visit.introduce()
        self._serial = facts.serial
        self._report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}")

    def _ask_token(self) -> Coroutine[Any, Any, None]:
        host = {"host": self._gateway["host"]}
        print(
            "The gateway wants a token. With an Enphase account the bridge gets and renews it by itself. An account"
        )
        print(f"with a second factor can't be used so: get a token at {TOKEN_PAGE} and paste it.")
        if user := ask("E-mail address of the Enphase account (empty: paste a token)", ""):
            self._gateway = {**host, "username": user, "password": ask_secretly("Its password")}
            return self._log_in()
        token = ask_secretly("The token")
        self._gateway = {**host, "token": token}
        return self._present(token)

    async def _log_in(self) -> None:
        settings = self._settings()
        own = settings.gateway
        if own.username is None or own.password is None:  # an empty password is none
            raise BadSetting("an account needs a password")
        await self._prove(await Cloud(settings.cloud, own.username, own.password).token(self._serial))

    async def _present(self, text: str) -> None:
        await self._prove(Token.parse(text))

    async def _prove(self, token: Token) -> None:
        token.check(self._serial, time.time())
        settings = self._settings()
        async with Visit(settings, settings.gateway, Store(settings.state_dir)) as visit:
            await visit.introduce()
            await prove(settings, settings.gateway, visit, token)
        self._report.ok("token", f"{papers.described(token)}; the gateway takes it")

    def _ask_broker(self) -> Coroutine[Any, Any, None]:
        self._mqtt = {"url": ask("Address of the MQTT broker", "mqtt://localhost:1883")}
        if user := ask("User name there (empty: none)", ""):
            self._mqtt |= {"username": user, "password": ask_secretly("Its password")}
        return self._greet_broker()

    async def _greet_broker(self) -> None:
        settings = self._settings()
        await check_broker(settings, Store(settings.state_dir), self._report)


def ask(question: str, default: str) -> str:
    """One line. Raises GivenUp where nobody answers."""
    print(f"{question}{f' [{default}]' if default else ''}: ", end="", flush=True)
    line = sys.stdin.readline(MAX_LENGTH)
    if not line:
        raise GivenUp(SILENCE)
    if not sys.stdin.isatty():
        print()  # a terminal has shown the end of the line
    return line.strip() or default


def ask_secretly(question: str) -> str:
    """As `ask`; a terminal does not show what is typed."""
    if not sys.stdin.isatty():
        return ask(question, "")
    with suppress(EOFError):
        return getpass.getpass(f"{question} (it will not show): ").strip()
    raise GivenUp(SILENCE)


# What comes of it


def _named(answers: Answers) -> Iterator[tuple[str, str]]:
    for section, fields in answers.items():
        yield from ((f"{PREFIX}{section}__{field}".upper(), value) for field, value in fields.items())


def environment(answers: Answers) -> str:
    """Lines of an environment file, as python-dotenv, compose and shells read them."""
    return "".join(f"{name}={_quoted(value)}\n" for name, value in _named(answers))


def _quoted(value: str) -> str:
    if SAFE.fullmatch(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def toml(answers: Answers) -> str:
    """A text in JSON's quotes is one in TOML's."""
    sections = (f"[{name}]\n{_fields(fields)}" for name, fields in answers.items())
    return "\n".join(sections)


def _fields(fields: Mapping[str, str]) -> str:
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items())


def _write(file: Path, text: str) -> None:
    """For its owner alone from the first byte on. Raises FileExistsError: it was not there when we began."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor, no path
        stream.write(text)


def _see_to(file: Path) -> None:
    """That it can be written is known before anybody is asked anything. Raises BadSetting."""
    try:
        if file.exists():
            raise BadSetting(f"--output: {file} is there already: name another file, or move it away")
        folder = next(parent for parent in file.absolute().parents if parent.exists())
    except OSError as problem:
        raise BadSetting(f"--output: {file}: {problem.strerror}") from None
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise BadSetting(f"--output: {file} can't be written: {folder} is no folder that this user may write to")


def _keep(answers: Answers, file: Path) -> str:
    """Where it is, and what to do next. What looks like a variable in a `.env` is taken for one, quotes or not."""
    if "${" in environment(answers):
        file = file.with_name("iqgateway2mqtt.toml")
    if file.suffix == ".toml":
        _write(file, toml(answers))
        return f"{file}, for your eyes only. Now: {_start(file)}"
    _write(file, environment(answers))
    here = file.resolve() == Path(".env").resolve()
    load_it = "" if here else f"set -a; . {file}; set +a; "
    return f"{file}, for your eyes only. Now: {load_it}{_program()} run"


def _program() -> str:
    """As it was called, where the name alone would not find it: in a venv that is not activated."""
    called = sys.argv[0]
    own = Path(called).name == PROGRAM and shutil.which(PROGRAM) != called
    return shlex.quote(called) if own else PROGRAM


def _start(file: Path) -> str:
    """What to type where the settings are in this TOML file."""
    place = file.resolve()
    if place.name == "settings.toml" and SERVICE in (place.parent, place.parent.parent):
        instance = "" if place.parent == SERVICE else f"@{place.parent.name}"
        return f"systemctl enable --now iqgateway2mqtt{instance}"
    return f"BRIDGE_CONFIG={file} {_program()} run"


def run(settings: Settings, output: str, interfaces: Sequence[str], *, show: bool) -> int:
    """`show` prints the settings, secrets included, in place of a file."""
    file, report = Path(output), Report()
    if not show:
        _see_to(file)
    log.configure(LogSettings(level="ERROR", format=settings.log.format))
    try:
        answers = Interview(report, interfaces).hold()
        if show:
            print(f"\nThe environment for a container; keep it to yourself:\n\n{environment(answers)}", end="")
            return 0
        report.section(f"Written to {_keep(answers, file)}")
    except GivenUp as end:
        print(f"\niqgateway2mqtt: {end}", file=sys.stderr)
        return CONFIGURATION
    except OSError as problem:
        raise BadSetting(f"--output: {file}: {problem.strerror}") from None
    return 0
