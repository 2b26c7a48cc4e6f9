"""`capture`: all answers of a gateway, redacted, in one zip: for a bug report, and for `simulate`."""

import asyncio
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from bridge import __version__
from bridge.commands import log
from bridge.commands.redaction import Redactor
from bridge.commands.report import Report, plural, size
from bridge.commands.visit import TELLS_MORE, Visit, only
from bridge.config import LogSettings, Settings
from bridge.endpoints import ENDPOINTS
from bridge.gateway import CloudRejected, CloudUnavailable, Exchange, KeyChanged, TokenRejected
from bridge.model import BadSetting, BridgeError, Facts, Rejected, Request
from bridge.simulator.replay import LOG_SUFFIX, file_of
from bridge.store import Store

MORE = (
    "/ivp/meters/reports",
    "/ivp/meters/pvReading",
    "/ivp/ss/gen_schedule",
    "/ivp/ss/pel_settings",
    "/ivp/sc/pvlimit",
)
"""What a gateway tells quickly, beside the endpoints of the table. Those that take it down are none of them."""
PATHS = (*(endpoint.path for endpoint in ENDPOINTS), *MORE)
PATIENCE = 15.0
"""Seconds for one request with its retries."""
ENOUGH = 3
"""A gateway that leaves so many requests in a row unanswered is left in peace."""
OK = 200
PRIVATE = 0o600
HEADERS = ("content-type", "connection", "retry-after")
"""The rest tells nothing of the gateway, or a session."""
README = """\
Answers of an Enphase IQ Gateway, redacted by iqgateway2mqtt {version} on {date}.
Firmware {firmware}, part number {part}.

A file holds the answer to the path that it is named after; <name>_log.json tells status, headers and seconds.
Serial numbers, addresses, names and secrets are made up or removed; energy figures, prices and times are real.
{missing}"""


class Album:
    """What came back, the newest answer of each path; and why there is none."""

    def __init__(self) -> None:
        self.answers: dict[str, Exchange] = {}
        self.missing: dict[str, str] = {}

    def keep(self, exchange: Exchange) -> None:
        """Token checks and other roads are nobody's business."""
        if exchange.path in PATHS:
            self.answers[exchange.path] = exchange

    def pack(self, redactor: Redactor, facts: Facts) -> bytes:
        for exchange in self.answers.values():
            redactor.learn(exchange.body)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("_readme", redactor.apply(self._readme(facts).encode()))
            for path, exchange in self.answers.items():
                archive.writestr(file_of(path), redactor.apply(exchange.body))
                archive.writestr(f"{file_of(path)}{LOG_SUFFIX}", redactor.apply(_seen(exchange)))
        return content.getvalue()

    def _readme(self, facts: Facts) -> str:
        missing = "".join(f"No answer: {path}: {reason}\n" for path, reason in self.missing.items())
        return README.format(
            version=__version__,
            date=datetime.now(UTC).date(),
            firmware=facts.firmware or "unknown",
            part=facts.part_number or "unknown",
            missing=f"\n{missing}" if missing else "",
        )


def _seen(exchange: Exchange) -> bytes:
    headers = {name: value for name, value in exchange.headers.items() if name.lower() in HEADERS}
    seen = {"headers": headers, "code": exchange.status, "duration_seconds": round(exchange.elapsed, 3)}
    return json.dumps(seen).encode()


async def _take(visit: Visit, album: Album, report: Report) -> None:
    """One request after another, each path once.

    Raises:
        BridgeError: the gateway can't be asked, or not any more.
    """
    visit.gateway.listen(album.keep)
    report.section(f"Gateway {visit.own.base_url}")
    facts = await visit.introduce()
    report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}")
    if visit.secure:
        await visit.gateway.tokens.current()
    silent = 0
    for path in PATHS:
        if silent >= ENOUGH:
            album.missing[path] = "not asked any more, for the gateway had not answered several times"
        elif path not in album.answers:
            await _ask(visit, album, path)
        silent = silent + 1 if path in album.missing else 0
        _tell(report, album, path)


async def _ask(visit: Visit, album: Album, path: str) -> None:
    """A refusal is an answer too, unless it is us who are refused."""
    try:
        await visit.gateway.fetch(Request(path), deadline=PATIENCE)
    except (TokenRejected, CloudRejected, CloudUnavailable, KeyChanged):
        raise
    except BridgeError as error:
        if path not in album.answers:
            album.missing[path] = str(error)


def _tell(report: Report, album: Album, path: str) -> None:
    exchange = album.answers.get(path)
    if exchange is None:
        report.note("no answer", f"{path}: {album.missing[path]}")
        return
    text = f"{exchange.elapsed:5.2f} s {size(len(exchange.body)):>9}  {path}"
    if exchange.status == OK:
        report.ok("200", text)
    else:
        report.note(f"{exchange.status}", text)


def _secrets(settings: Settings, visit: Visit) -> Iterator[str]:
    """What we know and nobody else must learn."""
    own, mqtt = visit.own, settings.mqtt
    for secret in (own.token, own.password, mqtt.password, visit.state.token):
        if secret is not None:
            yield secret.get_secret_value()
    yield from filter(None, (own.username, own.name, mqtt.username))
    host = urlsplit(own.base_url).hostname or ""
    if not host.endswith(".local"):
        yield host


def _write(file: Path, content: bytes) -> None:
    """For the owner's eyes only, until they have looked at it. Nothing is overwritten."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        with open(descriptor, "wb") as target:  # noqa: PTH123 - a descriptor, no path
            target.write(content)
    except OSError as error:
        raise _unusable(file, error.strerror or "can't be written") from None


def _unusable(file: Path, reason: str) -> BadSetting:
    return BadSetting(f"--output: {file}: {reason}")


def _usable(output: str | None) -> Path | None:
    """Told before the gateway is asked for anything."""
    if output is None:
        return None
    file = Path(output)
    try:
        if file.exists():
            raise _unusable(file, "exists already; name another file")
        if not file.parent.is_dir():
            raise _unusable(file, "there is no such folder")
    except OSError as error:
        raise _unusable(file, error.strerror or "can't be used") from None
    return file


def _file_name(facts: Facts) -> Path:
    firmware = re.sub(r"[^A-Za-z0-9.]", "", facts.firmware) or "unknown"
    return Path(f"iqgateway2mqtt-{firmware}-{datetime.now(UTC):%Y%m%d-%H%M%S}.zip")


async def _capture(settings: Settings, visit: Visit, file: Path | None) -> int:
    report, album = Report(), Album()
    try:
        await _take(visit, album, report)
    except BridgeError as error:
        report.fault("gateway", error, "" if isinstance(error, Rejected) else TELLS_MORE)
        return report.worst
    redactor = Redactor(_secrets(settings, visit))
    content = album.pack(redactor, visit.facts)
    file = file or _file_name(visit.facts)
    _write(file, content)
    replaced = ", ".join(plural(count, kind) for kind, count in redactor.counts.items())
    report.section(f"Written to {file} ({size(len(content))}, readable for you alone)")
    report.fact("replaced", replaced or "nothing")
    report.fact("still in it", "energy figures, tariff, dates and times, firmware and part numbers")
    report.fact("look at it", f"unzip -p {file} | less")
    report.fact("play it", f"iqgateway2mqtt simulate {file}")
    return 0


async def _run(settings: Settings, gateway: str | None, output: str | None) -> int:
    own, file = only(settings, gateway), _usable(output)
    async with Visit(settings, own, Store(settings.state_dir)) as visit:
        return await _capture(settings, visit, file)


def run(settings: Settings, gateway: str | None, output: str | None) -> int:
    """Raises BadSetting where gateway or file can't be used."""
    log.configure(LogSettings(level="ERROR", format=settings.log.format))
    return asyncio.run(_run(settings, gateway, output))
