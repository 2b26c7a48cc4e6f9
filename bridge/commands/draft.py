"""The answers of `setup`: those that work are kept, and written to a file whose other lines stay as they are."""

import asyncio
import io
import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from bridge.commands.report import EXIT_CONFIGURATION, Report
from bridge.commands.terminal import ask
from bridge.commands.token import describe
from bridge.gateway.token import Token
from bridge.model import BadSetting, BridgeError
from bridge.settings import VARIABLE_PREFIX, Settings, load
from bridge.store import PRIVATE_FILE_MODE

Sections = Mapping[str, Mapping[str, str]]
"""Settings by section and field. An empty text stands for one that is not set."""
UNQUOTED = re.compile(r"[A-Za-z0-9_.,:/@%+-]+")
"""Values that need no quotes in shells, python-dotenv and compose."""


MAX_TRIES = 5
"""How often one question is asked."""
TOPIC_SECTIONS = ("gateway", "mqtt", "homeassistant", "http")
"""The sections of the settings that are asked for."""
WORDS: Mapping[str, str] = {
    r"set BRIDGE_GATEWAY__HOST(=| to )": "enter ",
    r" in BRIDGE_GATEWAY__HOST": "",
    r"and set BRIDGE_GATEWAY__TOKEN to it": "and paste it",
    r"correct BRIDGE_GATEWAY__USERNAME and .*\(these are not tried again\)": "enter both again",
    r"(set|check) BRIDGE_MQTT__USERNAME(,| and) BRIDGE_MQTT__PASSWORD": r"\1 user name\2 password",
    r"set BRIDGE_MQTT__URL": "enter its new address",
    r"set BRIDGE_HOMEASSISTANT__DISCOVERY=off": "choose `off` for discovery",
    r"(?:input|string) should ": "must ",
    r"(^|; )BRIDGE_(?:GATEWAY|MQTT|HTTP|HOMEASSISTANT)(?:__\w+)?: (?:url: )?": r"\1",
    r"BRIDGE_(?:GATEWAY__HOST|MQTT__URL)": "the address",
}
"""What complaints say of settings, and what they say here, where questions are answered."""

Check = Coroutine[Any, Any, None]
"""Checks an answer, and keeps it if it works. Raises BridgeError, or reports a problem, if it does not."""


class SetupAborted(Exception):
    """A question has no answer that works; the text says which."""


class SettingsDraft:
    """The settings of the file, with the answers that work in their places."""

    def __init__(self, report: Report, known: Sections) -> None:
        self.report = report
        self.sections = {name: dict(fields) for name, fields in known.items()}

    def of(self, section: str, field: str) -> str:
        return self.sections.get(section, {}).get(field, "")

    def settings(self, **candidates: Mapping[str, str]) -> Settings:
        """All settings, with candidates in their places; what is empty is not set.

        Raises:
            BadSetting: one can't be used.
        """
        given = {name: {**self.sections.get(name, {}), **candidates.get(name, {})} for name in TOPIC_SECTIONS}
        return load(
            **{name: {f: text or None for f, text in fields.items()} for name, fields in given.items() if fields}
        )

    def keep(self, **sections: Mapping[str, str]) -> None:
        for name, fields in sections.items():
            self.sections[name] = {**self.sections.get(name, {}), **fields}

    async def keep_if_usable(self, section: str, field: str, text: str) -> None:
        self.settings(**{section: {field: text}})
        self.keep(**{section: {field: text}})

    def ask_until_accepted(self, what: str, question: Callable[[], Check]) -> None:
        """Raises SetupAborted after five answers that do not work."""
        if not any(self.is_accepted(question) for _ in range(MAX_TRIES)):
            raise SetupAborted(f"no answer works for {what}")

    def is_accepted(self, question: Callable[[], Check]) -> bool:
        """Ask, and check the answer. Returns whether that ends without a problem."""
        before = self.report.problems
        try:
            asyncio.run(_interruptible(question()))
        except BridgeError as error:
            self.report.fault("answer", error)
        return self.report.problems == before


async def _interruptible(answer: Check) -> None:
    """Check an answer. Without the pause, Ctrl-C would be lost during a check that waits for nothing."""
    try:
        await answer
    finally:
        await asyncio.sleep(0)


def in_words(text: str) -> str:
    """A complaint about a setting in the words of the question."""
    for setting, words in WORDS.items():
        text = re.sub(setting, words, text)
    return text


def _described(draft: SettingsDraft) -> Mapping[str, str]:
    """What is known of each topic, without secrets; empty where that is not enough."""
    of, user = draft.of, draft.of("mqtt", "username")
    access = of("gateway", "token_file") or of("gateway", "username")
    if text := of("gateway", "token"):
        access = "unreadable"
        with suppress(BridgeError):
            access = describe(Token.parse(text))
    elif not access and of("gateway", "host").startswith("http://"):
        access = "none is needed"
    return {
        "token": access,
        "gateway": of("gateway", "host"),
        "name": of("gateway", "name") or "Enphase",
        "discovery": of("homeassistant", "discovery") or "device",
        "broker": of("mqtt", "url") + (f", user {user}" if user else ""),
        "page": of("http", "listen") or "no page",
    }


def choose(draft: SettingsDraft, place: Path) -> Collection[str]:
    """Show the settings that the file has, and ask which ones to change, by their numbers or names.

    Raises:
        InputEnded: the input has ended.
    """
    draft.report.section(f"{place} has these settings; secrets are not shown")
    known = _described(draft)
    for number, (topic, text) in enumerate(known.items(), 1):
        draft.report.fact(str(number), f"{topic:10} {text or 'missing'}")
    missing = " ".join(str(number) for number, text in enumerate(known.values(), 1) if not text)
    names = {str(number): topic for number, topic in enumerate(known, 1)} | {topic: topic for topic in known}
    while True:
        given = ask(f"Numbers of those to change{'' if missing else ' (empty: none)'}", missing).lower()
        words = {*re.split(r"[\s,]+", given)} - {""}
        if words <= names.keys():
            return {names[word] for word in words}
        draft.report.problem("answer", f"must be numbers from 1 to {len(known)}, such as 1,2", EXIT_CONFIGURATION)


# Addresses as people type them


OTHER_SCHEMES = {"tcp": "mqtt", "ssl": "mqtts", "tls": "mqtts"}
"""Our schemes for those that other programs have in a broker's address."""


def host_of(text: str) -> str:
    """A gateway's address without what a browser shows behind it."""
    url = urlsplit(text)
    return text if not url.netloc else url.netloc if url.scheme == "https" else f"{url.scheme}://{url.netloc}"


def broker_of(text: str) -> dict[str, str]:
    """The settings of a broker from its address as people type it: without a scheme, or with user and password."""
    if "://" not in text:
        text = f"{'mqtts' if text.endswith(':8883') else 'mqtt'}://{text}"
    scheme, _, place = text.partition("://")
    if scheme in {"http", "https"}:  # the page of Home Assistant, on the machine of the broker
        scheme, place = "mqtt", place.partition("/")[0].partition(":")[0]
    user, _, host = place.rpartition("@")
    name, _, password = user.partition(":")
    url = f"{OTHER_SCHEMES.get(scheme, scheme)}://{host.rstrip('/')}"
    return {"url": url, "username": unquote(name), "password": unquote(password)}


# The file


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A file of environment variables, or a TOML file if its name says so."""

    path: Path

    @property
    def is_toml(self) -> bool:
        return self.path.suffix == ".toml"

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8-sig")

    def read(self) -> dict[str, dict[str, str]]:
        """The settings in the file's sections; none if there is no file.

        Raises:
            BadSetting: the file can't be read, or `setup` can't change it.
        """
        try:
            text = self._text()
            found = _of_toml(text) if self.is_toml else _of_environment(text)
        except FileNotFoundError:
            return {}
        except OSError as problem:
            raise BadSetting(f"--output: {self.path}: {problem.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            raise BadSetting(f"--output: {self.path} is not valid: correct it, or name another file") from None
        if "gateways" in found:
            raise BadSetting(f"--output: {self.path} lists several gateways: change it by hand, or name another")
        return found

    def require_writable(self) -> None:
        """Check before the first question that the file can be written.

        Raises:
            BadSetting: it can't.
        """
        if self.is_toml and self.path.is_file():
            changed_toml(self._text(), {name: {"some": "text"} for name in TOPIC_SECTIONS})
        try:
            folder = next(parent for parent in self.path.absolute().parents if parent.exists())
            is_other = self.path.exists() and not self.path.is_file()
        except OSError as problem:
            raise BadSetting(f"--output: {self.path}: {problem.strerror}") from None
        if is_other or not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            reason = "it is no ordinary file" if is_other else f"this user may not write to {folder}"
            raise BadSetting(f"--output: {self.path} can't be written: {reason}")

    def write(self, answers: Sections) -> "SettingsFile":
        """Write the answers; all other lines stay. Only the owner may read the file. Returns the file.

        Values with `${`, which python-dotenv replaces even within quotes, go to a TOML file beside it.

        Raises:
            BadSetting: the file can't be written, or not be changed.
        """
        if not self.is_toml and any("${" in value for _, _, value in _each(answers)):
            if self.path.exists():
                self.write({name: dict.fromkeys(fields, "") for name, fields in answers.items()})
            return SettingsFile(self.path.with_name("iqgateway2mqtt.toml")).write(answers)
        try:
            text = self._text() if self.path.exists() else ""
            changed = changed_toml(text, answers) if self.is_toml else changed_environment(text, answers)
            _replace(self.path.resolve(), changed)
        except OSError as problem:
            raise BadSetting(f"--output: {self.path}: {problem.strerror}") from None
        return self


def _replace(path: Path, text: str) -> None:
    """Put a file in the place of an older one, with the owner of that one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor, no path
            stream.write(text)
        with suppress(FileNotFoundError, PermissionError):  # only root may give files away
            before = path.stat()
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(new, before.st_uid, before.st_gid)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _each(answers: Sections) -> Iterator[tuple[str, str, str]]:
    """Section, field and value of each setting."""
    for section, fields in answers.items():
        yield from ((section, field, value) for field, value in fields.items())


# Environment variables


def _variables(answers: Sections) -> Mapping[str, str]:
    """The answers by the names of their environment variables."""
    named = ((f"{VARIABLE_PREFIX}{section}__{field}", value) for section, field, value in _each(answers))
    return {name.upper(): value for name, value in named}


def filled(answers: Sections) -> Mapping[str, str]:
    """Those of them that are set."""
    return {name: value for name, value in _variables(answers).items() if value}


def _of_environment(text: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, value in dotenv_values(stream=io.StringIO(text), interpolate=False).items():
        section, _, field = name.upper().removeprefix(VARIABLE_PREFIX).lower().partition("__")
        if name.upper().startswith(VARIABLE_PREFIX) and value:
            found.setdefault(section, {}).update({field: value} if field else {})
    return found


def changed_environment(text: str, answers: Sections) -> str:
    """The lines of an environment file for python-dotenv, compose and shells, with these answers in it."""
    named = _variables(answers)
    left = dict(named)
    lines = []
    for found in parse_stream(io.StringIO(text)):
        line, name = found.original.string, (found.key or "").upper()
        if name in named:  # the lines before it are empty ones
            line = line[: len(line) - len(line.lstrip())] + _assignment(name, left.pop(name, ""))
        lines.append(line)
    kept = "".join(lines)
    gap = "\n" if kept and not kept.endswith("\n") else ""
    return kept + gap + "".join(_assignment(name, value) for name, value in left.items())


def _assignment(name: str, value: str) -> str:
    return f"{name}={_quoted(value)}\n" if value else ""


def _quoted(value: str) -> str:
    if UNQUOTED.fullmatch(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


# TOML


def _of_toml(text: str) -> dict[str, dict[str, str]]:
    sections = {
        name: content if isinstance(content, Mapping) else {} for name, content in tomllib.loads(text).items()
    }
    return {
        name: {f: str(value) for f, value in fields.items() if value != ""} for name, fields in sections.items()
    }


def changed_toml(text: str, answers: Sections) -> str:
    """A TOML file with these answers in it.

    Raises:
        BadSetting: the file has a form in which a line can't be changed alone.
    """
    wanted: dict[str, dict[str, object]] = tomllib.loads(text)
    lines = text.splitlines()
    for section, field, value in _each(answers):
        _set(lines, section, field, value)
        if value:
            wanted.setdefault(section, {})[field] = value
        else:
            wanted.get(section, {}).pop(field, None)
    changed = "".join(f"{line}\n" for line in lines)
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(changed) == wanted:
            return changed
    raise BadSetting("--output: this TOML file has a form that `setup` can't change: change it by hand")


def _set(lines: list[str], section: str, field: str, value: str) -> None:
    """Set or remove one line of a section. JSON's quoted texts are valid in TOML, too."""
    header = next((number for number, line in enumerate(lines) if re.match(rf"\s*\[\s*{section}\s*\]", line)), None)
    if header is None:
        if not value:
            return
        lines += [*([""] if lines else []), f"[{section}]"]
        header = len(lines) - 1
    inside = range(header + 1, len(lines))
    end = next((number for number in inside if lines[number].lstrip().startswith("[")), len(lines))
    old = next((number for number in inside if number < end and re.match(rf"\s*{field}\s*=", lines[number])), None)
    new = [f"{field} = {json.dumps(value, ensure_ascii=False)}"] if value else []
    if old is not None:
        lines[old : old + 1] = new
    else:
        last = max(number for number in range(header, end) if number == header or lines[number].strip())
        lines[last + 1 : last + 1] = new
