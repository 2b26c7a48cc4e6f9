"""A captured gateway, played back: the answers of a folder or a zip, as an ASGI application.

A file holds the answer to the path that it is named after; `<name>_log.json` beside it tells status, headers and
duration. What was not captured is answered with 404.
"""

import json
import re
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.model import BadSetting
from bridge.simulator import cloud, livedata
from bridge.simulator.access import Guard, unauthorized
from bridge.simulator.app import PASSWORD
from bridge.simulator.cloud import Cloud
from bridge.simulator.exchange import Ask, Receive, Reply, Scope, Send, read
from bridge.simulator.gateway import CHECK, INFO, NOT_FOUND, REPORTS, STREAM

LOG_SUFFIX = "_log.json"
ALL_REPORTS = "/ivp/meters/reports"
FIRST_SECURE = 7
BIGGEST = 64 * 1024 * 1024
"""Bytes: what is larger is no capture, but an accident or an attack."""
OK, LOWEST, HIGHEST = 200, 100, 599

Files = Mapping[str, bytes]


def file_of(path: str) -> str:
    """The name of the file that holds the answer to a path."""
    return re.sub(r"[/?=& ]", "_", path.removeprefix("/"))


class Replay:
    """One captured gateway. Like a gateway of its firmware it wants a token; `token` makes one."""

    def __init__(self, capture: Path) -> None:
        """Raises BadSetting where there is no capture."""
        self._files = _read(capture)
        info = self._files.get(file_of(INFO), b"").decode(errors="replace")
        self.serial, self.firmware = _between(info, "sn"), _between(info, "software")
        major = re.match(r"\D*(\d+)", self.firmware)
        if not self.serial or major is None:
            raise BadSetting(f"{capture}: is no capture of a gateway: its /info has no serial number and firmware")
        self.secure = int(major[1]) >= FIRST_SECURE
        self._guard = Guard(clock=time.time)
        self._cloud = Cloud(clock=time.time, password=PASSWORD)
        self._cloud.serials.add(self.serial)

    def token(self) -> str:
        return self._cloud.issue(self.serial)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        ask = await read(scope, receive)
        await self._reply(ask).send(scope, receive, send)

    def answer(self, path: str) -> Reply:
        """What the gateway once answered."""
        name = file_of(path)
        body = self._files.get(name)
        if body is None and path == REPORTS:
            every = self.answer(ALL_REPORTS)
            return replace(every, body=_without_production(every.body))
        if body is None:
            return Reply(404, NOT_FOUND, dict(self._headers({"Content-Type": "application/json"})))
        status, headers = _recorded(self._files.get(f"{name}{LOG_SUFFIX}", b"{}"))
        return Reply(status, body, dict(self._headers(headers)))

    def _reply(self, ask: Ask) -> Reply:
        if ask.path in cloud.PATHS:
            return self._cloud.answer(ask)
        if ask.path == CHECK:
            return self._guard.check(ask, self.serial)
        if self.secure and ask.path != INFO and not self._guard.allows(ask, self.serial):
            return unauthorized()
        if (ask.method, ask.path) == ("POST", STREAM):
            return Reply(OK, livedata.switched(on=True))
        return self.answer(ask.path)

    def _headers(self, seen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Only what matters: a content type that may lie, and old firmware's closing of the connection."""
        yield from ((name, str(value)) for name, value in seen.items() if name.lower() == "content-type")
        if not self.secure:
            yield "Connection", "close"


def _read(capture: Path) -> Files:
    """All of it, so that nothing changes while it is played."""
    try:
        if capture.is_dir():
            return dict(_contents(capture))
        with zipfile.ZipFile(capture) as archive:
            return dict(_contents(zipfile.Path(archive)))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # the last one is that of encrypted ones
        problem = "is neither a folder nor a zip file that can be read"
    except OSError as error:
        problem = error.strerror or "can't be read"
    raise BadSetting(f"{capture}: {problem}")


def _contents(folder: Path | zipfile.Path) -> Iterator[tuple[str, bytes]]:
    """Also where somebody has packed the folder and not what is in it."""
    inner: list[Path | zipfile.Path] = [item for item in folder.iterdir() if item.is_dir()]
    if not (folder / file_of(INFO)).is_file() and len(inner) == 1:
        folder = inner[0]
    room = BIGGEST
    for file in folder.iterdir():
        if file.is_file():
            with file.open("rb") as content:
                body = content.read(room + 1)
            room -= len(body)
            if room < 0:
                raise BadSetting(f"{folder}: is too big for a capture")
            yield file.name, body


def _between(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text)
    return found[1].strip() if found else ""


def _recorded(log: bytes) -> tuple[int, Mapping[str, Any]]:
    """Status and headers."""
    try:
        found = json.loads(log)
        status, headers = int(found.get("code", OK)), dict(found.get("headers", {}))
    except (ValueError, RecursionError, AttributeError, TypeError):
        return OK, {}
    return (status if LOWEST <= status <= HIGHEST else OK), headers


def _without_production(reports: bytes) -> bytes:
    """Where it was not captured by itself: it is the array of all reports without the production's."""
    try:
        kept = [report for report in json.loads(reports) if report.get("reportType") != "production"]
    except (ValueError, RecursionError, AttributeError, TypeError):
        return reports
    return json.dumps(kept, indent=4).encode()
