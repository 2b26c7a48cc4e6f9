"""Plays a captured gateway back: an ASGI application that answers from the files of a folder or a zip file.

A file is the answer to the path that it is named after. `<name>_log.json` beside it has the status, headers and
duration. A path that was not captured gets a 404.
"""

import json
import re
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.model import BadSetting
from bridge.simulator import cloud, meters
from bridge.simulator.cloud import CHECK_PATH, Guard, SimulatedCloud, unauthorized
from bridge.simulator.gateway import CONSUMPTION_REPORTS_PATH, INFO_PATH, NOT_FOUND_BODY, PASSWORD
from bridge.simulator.http import HttpReply, HttpRequest, read_request
from bridge.simulator.meters import STREAM_PATH

if TYPE_CHECKING:
    from bridge.http_server import Receive, Scope, Send

LOG_SUFFIX = "_log.json"
ALL_REPORTS = "/ivp/meters/reports"
FIRST_TOKEN_FIRMWARE = 7
MAX_CAPTURE_BYTES = 64 * 1024 * 1024
"""A larger folder or zip file is refused: it is no capture, but a mistake or an attack."""
MIN_STATUS, MAX_STATUS = 100, 599

CapturedFiles = Mapping[str, bytes]


def file_of(path: str) -> str:
    """Return the name of the file with the answer to a path."""
    return re.sub(r"[/?=& ]", "_", path.removeprefix("/"))


class Replay:
    """A captured gateway. If its firmware uses tokens, requests need one: `token` issues it."""

    def __init__(self, capture: Path) -> None:
        """Read a capture.

        Raises:
            BadSetting: this is no capture of a gateway, or it cannot be read.
        """
        self._files = _read(capture)
        info = self._files.get(file_of(INFO_PATH), b"").decode(errors="replace")
        self.serial, self.firmware = _between(info, "sn"), _between(info, "software")
        major = re.match(r"\D*(\d+)", self.firmware)
        if not self.serial or major is None:
            raise BadSetting(f"{capture}: is no capture of a gateway: its /info has no serial number and firmware")
        self.secure = int(major[1]) >= FIRST_TOKEN_FIRMWARE
        self._guard = Guard(clock=time.time)
        self._cloud = SimulatedCloud(clock=time.time, password=PASSWORD)
        self._cloud.serials.add(self.serial)

    def token(self) -> str:
        """Return a new token for this gateway."""
        return self._cloud.issue(self.serial)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return
        request = await read_request(scope, receive)
        await self._reply(request).send(scope, receive, send)

    def answer(self, path: str) -> HttpReply:
        """Return the captured answer to a path, or a 404."""
        name = file_of(path)
        body = self._files.get(name)
        if body is None and path == CONSUMPTION_REPORTS_PATH:
            every = self.answer(ALL_REPORTS)
            return replace(every, body=_without_production(every.body))
        if body is None:
            return HttpReply(404, NOT_FOUND_BODY, dict(self._headers({"Content-Type": "application/json"})))
        status, headers = _recorded(self._files.get(f"{name}{LOG_SUFFIX}", b"{}"))
        return HttpReply(status, body, dict(self._headers(headers)))

    def _reply(self, request: HttpRequest) -> HttpReply:
        if request.path in cloud.CLOUD_PATHS:
            return self._cloud.answer(request)
        if request.path == CHECK_PATH:
            return self._guard.check(request, self.serial)
        if self.secure and request.path != INFO_PATH and not self._guard.allows(request, self.serial):
            return unauthorized()
        if (request.method, request.path) == ("POST", STREAM_PATH):
            return HttpReply(HTTPStatus.OK, meters.stream_state(on=True))
        return self.answer(request.target if file_of(request.target) in self._files else request.path)

    def _headers(self, seen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the headers that matter: the captured content type and, for old firmware, `Connection: close`."""
        yield from ((name, str(value)) for name, value in seen.items() if name.lower() == "content-type")
        if not self.secure:
            yield "Connection", "close"


def _read(capture: Path) -> CapturedFiles:
    """Read all files at once, so that later changes to them have no effect."""
    try:
        if capture.is_dir():
            return dict(_contents(capture))
        with zipfile.ZipFile(capture) as archive:
            return dict(_contents(zipfile.Path(archive)))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # RuntimeError: it is encrypted
        problem = "is neither a folder nor a zip file that can be read"
    except OSError as error:
        problem = error.strerror or "can't be read"
    raise BadSetting(f"{capture}: {problem}")


def _contents(folder: Path | zipfile.Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file, also when the zip contains the folder instead of its files."""
    inner: list[Path | zipfile.Path] = [item for item in folder.iterdir() if item.is_dir()]
    if not (folder / file_of(INFO_PATH)).is_file() and len(inner) == 1:
        folder = inner[0]
    room = MAX_CAPTURE_BYTES
    for file in folder.iterdir():
        if file.is_file():
            with file.open("rb") as content:
                body = content.read(room + 1)
            room -= len(body)
            if room < 0:
                raise BadSetting(f"{folder}: is too big for a capture (more than 64 MiB)")
            yield file.name, body


def _between(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text)
    return found[1].strip() if found else ""


def _recorded(log: bytes) -> tuple[int, Mapping[str, Any]]:
    """Return status and headers from a `_log.json` file; 200 and no headers if it is unusable."""
    try:
        found = json.loads(log)
        status, headers = int(found.get("code", HTTPStatus.OK)), dict(found.get("headers", {}))
    except (ValueError, RecursionError, AttributeError, TypeError):
        return HTTPStatus.OK, {}
    return (status if MIN_STATUS <= status <= MAX_STATUS else HTTPStatus.OK), headers


def _without_production(reports: bytes) -> bytes:
    """Return the reports without the production's: the consumption reports, when those were not captured."""
    try:
        kept = [report for report in json.loads(reports) if report.get("reportType") != "production"]
    except (ValueError, RecursionError, AttributeError, TypeError):
        return reports
    return json.dumps(kept, indent=4).encode()
