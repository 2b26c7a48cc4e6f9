"""`setup`: asks for gateway, token and broker, checks each answer at once, and writes the settings.

Nothing is written before everything works. Secrets are not shown while they are typed.
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
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from bridge.commands.check_broker import check_broker
from bridge.commands.report import EXIT_CONFIGURATION, EXIT_UNAVAILABLE, Report, configure_log, plural
from bridge.commands.session import DEFAULT_TIMING, INFO_ENDPOINT, CommandTiming, GatewayAddress, GatewaySession
from bridge.commands.token import describe, verify_with_gateway
from bridge.gateway import open_gateway
from bridge.gateway.cloud import Cloud
from bridge.gateway.errors import TOKEN_PAGE
from bridge.gateway.mdns import DiscoveredGateway, discover
from bridge.gateway.token import MAX_TOKEN_LETTERS, Token
from bridge.model import BadSetting, BridgeError, Facts
from bridge.settings import VARIABLE_PREFIX, CloudSettings, GatewaySettings, LogSettings, Settings, load
from bridge.store import PRIVATE_FILE_MODE, Store

INPUT_ENDED = "no more answers: nothing was written"
SYSTEMD_FOLDER = Path("/etc/iqgateway2mqtt")
"""Where the units in systemd/ look for settings; each instance has its own subfolder."""
MAX_TRIES = 5
"""How often one question is asked."""
PROGRAM = "iqgateway2mqtt"
UNQUOTED = re.compile(r"[A-Za-z0-9_.,:/@%+-]+")
"""Values that need no quotes in shells, python-dotenv and compose."""

Sections = dict[str, dict[str, str]]
"""The given answers by section and field of the settings."""


class SetupAborted(Exception):
    """The input has ended, or no answer works; the text says what to do."""


class Interview:
    """One dialog with the user. Settings that it does not ask for are taken from the existing ones."""

    def __init__(self, report: Report, interfaces: Sequence[str], timing: CommandTiming) -> None:
        self._report, self._interfaces, self._timing = report, interfaces, timing
        self._gateway: dict[str, str] = {}
        self._mqtt: dict[str, str] = {}
        self._serial = ""

    def run(self) -> Sections:
        """Ask all questions, and return the answers.

        Raises:
            SetupAborted: the input has ended, or a question has no answer that works.
        """
        self._report.section("Gateway")
        self._ask_until_accepted(self._ask_gateway)
        if self._settings().gateway.base_url.startswith("https"):
            self._report.section("Token")
            self._ask_until_accepted(self._ask_token)
        self._report.section("Broker")
        self._ask_until_accepted(self._ask_broker)
        return {"gateway": self._gateway, "mqtt": self._mqtt}

    def _ask_until_accepted(self, question: Callable[[], Coroutine[Any, Any, None]]) -> None:
        for _ in range(MAX_TRIES):
            if self._is_accepted(question()):
                return
        raise SetupAborted("no answer works; `iqgateway2mqtt check` shows details")

    def _is_accepted(self, attempt: Coroutine[Any, Any, None]) -> bool:
        """Whether a check of an answer ends without a problem."""
        before = self._report.problems
        try:
            asyncio.run(attempt)
        except BridgeError as error:
            self._report.fault("answer", error)
        return self._report.problems == before

    def _settings(self) -> Settings:
        return load(gateway=self._gateway, mqtt=self._mqtt)

    def _ask_gateway(self) -> Coroutine[Any, Any, None]:
        found = self._nearby()
        for number, gateway in enumerate(found, 1):
            self._report.fact(str(number), f"gateway {gateway.serial} at {gateway.host}")
        hint = "a number from this list, or its address" if found else "its address, as your router shows it"
        given = ask(f"Which gateway ({hint})", "1" if found else "envoy.local")
        listed = given.isdecimal() and 0 < int(given) <= len(found)
        self._gateway = {"host": found[int(given) - 1].host if listed else given}
        return self._check_gateway()

    def _nearby(self) -> list[DiscoveredGateway]:
        """The gateways found by mDNS; none if its library (an extra) or the network does not allow it."""
        try:
            return asyncio.run(discover(self._timing.announcement, self._interfaces))
        except (ModuleNotFoundError, OSError):
            return []

    async def _check_gateway(self) -> None:
        settings = self._settings()
        address = GatewayAddress.from_url(settings.gateway.base_url, self._timing)
        if address.has_name:
            await address.resolve()
        await address.check_port()
        async with aclosing(GatewaySession(settings, settings.gateway, Store(settings.state_dir))) as session:
            facts = await session.identify()
        self._serial = facts.serial
        self._report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}")

    def _ask_token(self) -> Coroutine[Any, Any, None]:
        host = {"host": self._gateway["host"]}
        print(
            "The gateway needs a token. With an Enphase account, the bridge gets and renews tokens itself. For an"
        )
        print(f"account with a second factor, get a token at {TOKEN_PAGE} and paste it.")
        if user := ask("E-mail address of the Enphase account (empty: paste a token)", ""):
            self._gateway = {**host, "username": user, "password": ask_secretly("Its password")}
            return self._check_account()
        token = ask_secretly("The token")
        self._gateway = {**host, "token": token}
        return self._check_pasted_token(token)

    async def _check_account(self) -> None:
        settings = self._settings()
        own = settings.gateway
        if own.username is None or own.password is None:  # an empty password counts as none
            raise BadSetting("an account needs a password")
        await self._check_token(await Cloud(settings.cloud, own.username, own.password).token(self._serial))

    async def _check_pasted_token(self, text: str) -> None:
        await self._check_token(Token.parse(text))

    async def _check_token(self, token: Token) -> None:
        token.check(self._serial, time.time())
        settings = self._settings()
        async with aclosing(GatewaySession(settings, settings.gateway, Store(settings.state_dir))) as session:
            await session.identify()
            await verify_with_gateway(settings, settings.gateway, session, token)
        self._report.ok("token", f"{describe(token)}; the gateway accepts it")

    def _ask_broker(self) -> Coroutine[Any, Any, None]:
        self._mqtt = {"url": ask("Address of the MQTT broker", "mqtt://localhost:1883")}
        if user := ask("User name at the broker (empty: none)", ""):
            self._mqtt |= {"username": user, "password": ask_secretly("Its password")}
        return self._check_broker()

    async def _check_broker(self) -> None:
        settings = self._settings()
        await check_broker(settings, Store(settings.state_dir), self._report, self._timing)


def ask(question: str, default: str) -> str:
    """Read one line; an empty one gives the default.

    Raises:
        SetupAborted: the input has ended.
    """
    print(f"{question}{f' [{default}]' if default else ''}: ", end="", flush=True)
    line = sys.stdin.readline(MAX_TOKEN_LETTERS)
    if not line:
        raise SetupAborted(INPUT_ENDED)
    if not sys.stdin.isatty():
        print()  # a terminal has shown the end of the line
    return line.strip() or default


def ask_secretly(question: str) -> str:
    """Read one line that the terminal does not show.

    Raises:
        SetupAborted: the input has ended.
    """
    if not sys.stdin.isatty():
        return ask(question, "")
    with suppress(EOFError):
        return getpass.getpass(f"{question} (not shown): ").strip()
    raise SetupAborted(INPUT_ENDED)


# Writing the settings


def _named(answers: Sections) -> Iterator[tuple[str, str]]:
    for section, fields in answers.items():
        yield from ((f"{VARIABLE_PREFIX}{section}__{field}".upper(), value) for field, value in fields.items())


def environment(answers: Sections) -> str:
    """Lines of an environment file for python-dotenv, compose and shells."""
    return "".join(f"{name}={_quoted(value)}\n" for name, value in _named(answers))


def _quoted(value: str) -> str:
    if UNQUOTED.fullmatch(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def toml(answers: Sections) -> str:
    """A TOML file. JSON's quoted strings are valid in TOML too."""
    sections = (f"[{name}]\n{_fields(fields)}" for name, fields in answers.items())
    return "\n".join(sections)


def _fields(fields: Mapping[str, str]) -> str:
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items())


def _write(file: Path, text: str) -> None:
    """Write a file that only its owner may read. Raises FileExistsError if it was made since the start."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
    with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor, no path
        stream.write(text)


def _require_writable(file: Path) -> None:
    """Check before the first question that the file can be written. Raises BadSetting."""
    try:
        if file.exists():
            raise BadSetting(f"--output: {file} exists already: name another file, or move it away")
        folder = next(parent for parent in file.absolute().parents if parent.exists())
    except OSError as problem:
        raise BadSetting(f"--output: {file}: {problem.strerror}") from None
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise BadSetting(f"--output: {file} can't be written: this user may not write to {folder}")


def _save(answers: Sections, file: Path) -> str:
    """Write the settings. Returns the file's name and what to do next.

    Values with `${` go to a TOML file, because python-dotenv would replace them in a `.env`, even within quotes.
    """
    if "${" in environment(answers):
        file = file.with_name("iqgateway2mqtt.toml")
    if file.suffix == ".toml":
        _write(file, toml(answers))
        return f"{file}, readable only by you. Now: {_start_line(file)}"
    _write(file, environment(answers))
    here = file.resolve() == Path(".env").resolve()
    load_it = "" if here else f"set -a; . {file}; set +a; "
    return f"{file}, readable only by you. Now: {load_it}{_program_name()} run"


def _program_name() -> str:
    """The name to call this program by: its path if the name alone is not found, as in a venv not activated."""
    called = sys.argv[0]
    own = Path(called).name == PROGRAM and shutil.which(PROGRAM) != called
    return shlex.quote(called) if own else PROGRAM


def _start_line(file: Path) -> str:
    """The command that starts the service with the settings in this TOML file."""
    place = file.resolve()
    if place.name == "settings.toml" and SYSTEMD_FOLDER in (place.parent, place.parent.parent):
        instance = "" if place.parent == SYSTEMD_FOLDER else f"@{place.parent.name}"
        return f"systemctl enable --now iqgateway2mqtt{instance}"
    return f"BRIDGE_CONFIG={file} {_program_name()} run"


def run(
    settings: Settings,
    output: str,
    interfaces: Sequence[str],
    *,
    show: bool,
    timing: CommandTiming = DEFAULT_TIMING,
) -> int:
    """Run the command; with `show`, print the settings, secrets included, instead of writing a file.

    Raises:
        BadSetting: the file can't be written.
    """
    file, report = Path(output), Report()
    if not show:
        _require_writable(file)
    configure_log(LogSettings(level="ERROR", format=settings.log.format))
    try:
        answers = Interview(report, interfaces, timing).run()
        if show:
            print(f"\nThe environment for a container; it holds secrets:\n\n{environment(answers)}", end="")
            return 0
        report.section(f"Written to {_save(answers, file)}")
    except SetupAborted as end:
        print(f"\niqgateway2mqtt: {end}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except OSError as problem:
        raise BadSetting(f"--output: {file}: {problem.strerror}") from None
    return 0


# discover

NONE_FOUND = (
    "no gateway has announced itself within {seconds:g} s. mDNS works only within one network and not in most "
    "containers: try it on the host itself, or look for the gateway in your router's list of devices"
)


async def _facts(announced: DiscoveredGateway) -> Facts:
    """Read `/info` without sending a token. Raises BridgeError."""
    async with open_gateway(GatewaySettings(host=announced.host), CloudSettings()) as gateway:
        answer, _ = await gateway.probe_untrusted(INFO_ENDPOINT.request)
    facts = INFO_ENDPOINT.parse(answer.body, Facts(""), 0.0).facts
    assert facts is not None, "/info has facts"  # noqa: S101 - its split function makes them or raises
    return facts


async def _report_gateway(announced: DiscoveredGateway, report: Report) -> None:
    report.section(f"Gateway {announced.serial}")
    report.fact("name", announced.name or "unknown")
    report.fact("setting", f"BRIDGE_GATEWAY__HOST={announced.host}")
    try:
        facts = await _facts(announced)
    except BridgeError as error:
        report.fact("firmware", announced.firmware or "unknown")
        report.fault("answer", error)
        return
    report.fact("firmware", facts.firmware or "unknown")
    if facts.part_number:
        report.fact("part number", facts.part_number)
    if facts.serial == announced.serial:
        report.ok("answer", "the announced gateway answers")
    else:
        report.note("answer", f"gateway {facts.serial} answers at this address, not the announced one")


async def _discover(seconds: float, interfaces: Sequence[str]) -> int:
    report = Report()
    print(f"Listening for {seconds:g} s ...", file=sys.stderr)
    found = await discover(seconds, interfaces)
    for announced in found:
        await _report_gateway(announced, report)
    if not found:
        report.problem("mDNS", NONE_FOUND.format(seconds=seconds), EXIT_UNAVAILABLE)
        return report.worst
    report.section(f"{plural(len(found), 'gateway')}. `iqgateway2mqtt setup` helps with the rest.")
    return report.worst


def run_discovery(seconds: float, interfaces: Sequence[str]) -> int:
    """Run the command. Returns 69 if no gateway is found, or one does not answer."""
    configure_log(LogSettings(level="ERROR"))
    return asyncio.run(_discover(seconds, interfaces))
