"""A captured gateway, served again: the answers of a folder, as an ASGI application for `bridge.simulator.serve`.

A file holds the answer to the path that it is named after; `<name>_log.json` beside it tells status and headers.
What was not captured is answered with 404.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge.simulator import PASSWORD, Cloud
from bridge.simulator.access import Guard, unauthorized
from bridge.simulator.exchange import Receive, Reply, Scope, Send, read

INFO, CHECK = "/info", "/auth/check_jwt"
REPORTS, CONSUMPTION = "ivp_meters_reports", "/ivp/meters/reports/consumption"
NOT_FOUND = Reply(404, b'{"error" : "404 - Not Found"}\n', {"Content-Type": "application/json"})
FIRST_SECURE = 7


class Replay:
    """One set. `requests` and `connections` tell what was asked, and over how many connections."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        info = (folder / "info").read_text(errors="replace")
        self.serial = _between(info, "sn")
        firmware = _between(info, "software")
        self.secure = int(re.sub(r"^\D*", "", firmware).split(".")[0]) >= FIRST_SECURE
        self.requests: list[tuple[str, str]] = []
        self.connections: set[object] = set()
        self._guard = Guard(clock=time.time)
        self.token = Cloud(clock=time.time, password=PASSWORD).issue(self.serial)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        ask = await read(scope, receive)
        self.requests.append((ask.method, ask.path))
        self.connections.add(tuple(scope["client"]))
        if ask.path == CHECK:
            reply = self._guard.check(ask, self.serial)
        elif self.secure and ask.path != INFO and not self._guard.allows(ask, self.serial):
            reply = unauthorized()
        else:
            reply = self.answer(ask.path)
        await reply.send(scope, receive, send)

    def answer(self, path: str) -> Reply:
        """What the gateway once answered."""
        name = re.sub(r"[/?=& ]", "_", path[1:])
        if path == CONSUMPTION and (reports := self._body(REPORTS)):
            return Reply(200, _without_production(reports))
        body = self._body(name)
        if body is None:
            return NOT_FOUND
        seen = json.loads(self._body(f"{name}_log.json") or b"{}")
        return Reply(seen.get("code", 200), body, dict(self._headers(seen.get("headers", {}))))

    def _body(self, name: str) -> bytes | None:
        file = self._folder / name
        return file.read_bytes() if file.is_file() else None

    def _headers(self, seen: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Only what matters: a content type that may lie, and old firmware's closing of the connection."""
        yield from ((name, value) for name, value in seen.items() if name.lower() == "content-type")
        if not self.secure:
            yield "Connection", "close"


def _between(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text)
    assert found is not None, f"no {tag} in /info"
    return found[1]


def _without_production(reports: bytes) -> bytes:
    """It was not captured by itself: it is the array of all reports without the production's."""
    kept = [report for report in json.loads(reports) if report.get("reportType") != "production"]
    return json.dumps(kept, indent=4).encode()
