"""`capture`: collects all answers of a gateway, redacted, in a zip for a bug report or for `simulate`."""

import asyncio
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from bridge import __version__
from bridge.commands.redaction import Redactor
from bridge.commands.report import Report, configure_log, plural, size
from bridge.commands.session import DEFAULT_TIMING, SEE_CHECK, CommandTiming, GatewaySession, only
from bridge.endpoints import ENDPOINTS
from bridge.gateway.client import Exchange
from bridge.gateway.errors import CloudRejected, CloudUnavailable, KeyChanged, TokenRejected
from bridge.model import BadSetting, BridgeError, Facts, Rejected, Request
from bridge.settings import LogSettings, Settings
from bridge.simulator.replay import LOG_SUFFIX, file_of
from bridge.store import PRIVATE_FILE_MODE, Store

EXTRA_PATHS = (
    "/ivp/meters/reports",
    "/ivp/meters/pvReading",
    # the generator, and the gateway's own health
    "/ivp/ss/der_settings",
    "/installer/agf/details.json",
)
"""Paths outside the endpoint table that a gateway answers quickly. Paths that can make it crash are left out."""
CAPTURED_PATHS = (*(each.path for each in ENDPOINTS if each.every.normal), *EXTRA_PATHS)
KEPT_HEADERS = ("content-type", "connection", "retry-after")
"""Headers that are kept. The others say nothing about the gateway, or hold a session."""
README_TEXT = """\
Answers of an Enphase IQ Gateway, redacted by iqgateway2mqtt {version} on {date}.
Firmware {firmware}, part number {part}.

A file holds the answer to the path that it is named after; <name>_log.json tells status, headers and seconds.
Serial numbers, addresses, names and secrets are made up or removed; energy figures, prices and times are real.
{missing}"""


class Archive:
    """The newest answer of each path, and for paths without one the reason."""

    def __init__(self) -> None:
        self.answers: dict[str, Exchange] = {}
        self.missing: dict[str, str] = {}

    def keep(self, exchange: Exchange) -> None:
        """Keep the answer to one of `CAPTURED_PATHS`; others, such as token checks, are not part of a capture."""
        if exchange.path in CAPTURED_PATHS:
            self.answers[exchange.path] = exchange

    def pack(self, redactor: Redactor, facts: Facts) -> bytes:
        for exchange in self.answers.values():
            redactor.learn(exchange.body)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("_readme", redactor.apply(self._readme(facts).encode()))
            for path, exchange in self.answers.items():
                archive.writestr(file_of(path), redactor.apply(exchange.body))
                archive.writestr(f"{file_of(path)}{LOG_SUFFIX}", redactor.apply(_log_of(exchange)))
        return content.getvalue()

    def _readme(self, facts: Facts) -> str:
        missing = "".join(f"No answer: {path}: {reason}\n" for path, reason in self.missing.items())
        return README_TEXT.format(
            version=__version__,
            date=datetime.now(UTC).date(),
            firmware=facts.firmware or "unknown",
            part=facts.part_number or "unknown",
            missing=f"\n{missing}" if missing else "",
        )


def _log_of(exchange: Exchange) -> bytes:
    headers = {name: value for name, value in exchange.headers.items() if name.lower() in KEPT_HEADERS}
    seen = {"headers": headers, "code": exchange.status, "duration_seconds": round(exchange.elapsed, 3)}
    return json.dumps(seen).encode()


async def _collect(session: GatewaySession, archive: Archive, report: Report) -> None:
    """Ask each path once, one after another.

    Raises:
        BridgeError: the gateway can't be identified, or it refuses the token.
    """
    session.gateway.listen(archive.keep)
    report.section(f"Gateway {session.own.base_url}")
    facts = await session.identify()
    report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}")
    if session.secure:
        await session.gateway.tokens.current()
    for path in CAPTURED_PATHS:
        if session.unresponsive:
            archive.missing[path] = "not asked, because the gateway had stopped answering"
        elif path not in archive.answers:
            await _ask(session, archive, path)
        session.count_request(answered=path not in archive.missing)
        _show(report, archive, path)


async def _ask(session: GatewaySession, archive: Archive, path: str) -> None:
    """Ask one path. An error status is an answer too, unless the token or the account is refused."""
    try:
        await session.gateway.fetch(Request(path), deadline=session.timing.request)
    except (TokenRejected, CloudRejected, CloudUnavailable, KeyChanged):
        raise
    except BridgeError as error:
        if path not in archive.answers:
            archive.missing[path] = str(error)


def _show(report: Report, archive: Archive, path: str) -> None:
    exchange = archive.answers.get(path)
    if exchange is None:
        report.note("no answer", f"{path}: {archive.missing[path]}")
        return
    text = f"{exchange.elapsed:5.2f} s {size(len(exchange.body)):>9}  {path}"
    if exchange.status == HTTPStatus.OK:
        report.ok("200", text)
    else:
        report.note(f"{exchange.status}", text)


def _secrets(settings: Settings, session: GatewaySession) -> Iterator[str]:
    """Secrets and names from the settings and the state, which must not be in the zip."""
    own, mqtt = session.own, settings.mqtt
    for secret in (own.token, own.password, mqtt.password, session.state.token):
        if secret is not None:
            yield secret.get_secret_value()
    yield from filter(None, (own.username, own.name, mqtt.username))
    host = urlsplit(own.base_url).hostname or ""
    if not host.endswith(".local"):
        yield host


def _write(file: Path, content: bytes) -> None:
    """Write a file that only its owner may read. An existing file is not overwritten. Raises BadSetting."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
        with open(descriptor, "wb") as target:  # noqa: PTH123 - a descriptor, no path
            target.write(content)
    except OSError as error:
        raise _bad_output(file, error.strerror or "can't be written") from None


def _bad_output(file: Path, reason: str) -> BadSetting:
    return BadSetting(f"--output: {file}: {reason}")


def _checked_output(output: str | None) -> Path | None:
    """The file to write, checked before the gateway is asked for anything. Raises BadSetting."""
    if output is None:
        return None
    file = Path(output)
    try:
        if file.exists():
            raise _bad_output(file, "exists already; name another file")
        if not file.parent.is_dir():
            raise _bad_output(file, "there is no such folder")
    except OSError as error:
        raise _bad_output(file, error.strerror or "can't be used") from None
    return file


def _file_name(facts: Facts) -> Path:
    firmware = re.sub(r"[^A-Za-z0-9.]", "", facts.firmware) or "unknown"
    return Path(f"iqgateway2mqtt-{firmware}-{datetime.now(UTC):%Y%m%d-%H%M%S}.zip")


async def _capture(settings: Settings, session: GatewaySession, file: Path | None) -> int:
    report, archive = Report(), Archive()
    try:
        await _collect(session, archive, report)
    except BridgeError as error:
        report.fault("gateway", error, "" if isinstance(error, Rejected) else SEE_CHECK)
        return report.worst
    redactor = Redactor(_secrets(settings, session))
    content = archive.pack(redactor, session.facts)
    file = file or _file_name(session.facts)
    _write(file, content)
    replaced = ", ".join(plural(count, kind) for kind, count in redactor.counts.items())
    report.section(f"Written to {file} ({size(len(content))}, readable only by you)")
    report.fact("replaced", replaced or "nothing")
    report.fact("still in it", "energy figures, tariff, dates and times, firmware and part numbers")
    report.fact("look at it", f"unzip -p {file} | less")
    report.fact("play it", f"iqgateway2mqtt simulate {file}")
    return 0


async def _run(settings: Settings, gateway: str | None, output: str | None, timing: CommandTiming) -> int:
    own, file = only(settings, gateway), _checked_output(output)
    async with aclosing(GatewaySession(settings, own, Store(settings.state_dir), timing)) as session:
        return await _capture(settings, session, file)


def run(settings: Settings, gateway: str | None, output: str | None, timing: CommandTiming = DEFAULT_TIMING) -> int:
    """Run the command. Returns its exit code.

    Raises:
        BadSetting: gateway or file can't be used.
    """
    configure_log(LogSettings(level="ERROR", format=settings.log.format))
    return asyncio.run(_run(settings, gateway, output, timing))
