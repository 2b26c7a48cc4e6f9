"""The answers of the listener, a plain ASGI application: only reading, nothing secret, nothing from elsewhere."""

import ipaddress
import json
import logging
import mimetypes
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from prometheus_client.exposition import choose_encoder

from bridge.service import Status
from bridge.web import report
from bridge.web.metrics import registry

LOG = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Mapping[str, str]

JSON, TEXT = "application/json", "text/plain; charset=utf-8"
LOCAL = (".localhost", ".local", ".lan", ".home", ".internal", ".home.arpa", ".fritz.box")
"""Ends of names that nobody can own in the Internet's name system, or that stay in a house."""
POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGE = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    kind: str = TEXT
    headers: Headers = field(default_factory=dict)


class App:
    """`hosts` are the names that may be used for it beside addresses and local ones."""

    def __init__(self, status: Callable[[], Status], hosts: Collection[str] = ()) -> None:
        self._status, self._hosts = status, frozenset(host.lower() for host in hosts)
        self._registry = registry(status)
        self._files = {path: _file(name) for path, name in PAGE.items()}
        self._answers: Mapping[str, Callable[[Headers], Reply]] = {
            "/healthz": lambda _: _json(report.alive(status()), well="alive"),
            "/readyz": lambda _: _json(report.ready(status()), well="ready"),
            "/status.json": lambda _: _json(report.whole(status())),
            "/metrics": self._metrics,
        }
        self._faults: set[str] = set()

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reply = self._reply(scope["method"], scope["path"], headers)
        told = {**POLICY, **reply.headers, "Content-Type": reply.kind, "Content-Length": str(len(reply.body))}
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            told["Connection"] = "close"  # nobody reads what comes there
        coded = [(name.lower().encode(), value.encode("latin-1")) for name, value in told.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": coded})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})

    def _reply(self, method: str, path: str, headers: Headers) -> Reply:
        if not self._may_ask(headers.get("host", "")):
            return Reply(421, b"This name is not known here: add it to BRIDGE_HTTP__HOSTS.\n")
        if path not in self._answers and path not in self._files:
            return Reply(404, b"There is nothing here.\n")
        if method not in {"GET", "HEAD"}:
            return Reply(405, b"There is nothing to change here.\n", headers={"Allow": "GET, HEAD"})
        return self._files.get(path) or self._answer(path, headers)

    def _answer(self, path: str, headers: Headers) -> Reply:
        """A fault of ours is told once in the log, however often it is asked for."""
        try:
            return self._answers[path](headers)
        except Exception as error:
            kind = f"{path} {type(error).__name__}"
            LOG.log(logging.DEBUG if kind in self._faults else logging.ERROR, "fault at %s", path, exc_info=True)
            self._faults.add(kind)
            return Reply(500, b"A fault of the bridge: its log says more.\n")

    def _metrics(self, headers: Headers) -> Reply:
        encode, kind = choose_encoder(headers.get("accept", ""))
        return Reply(200, encode(self._registry), kind)

    def _may_ask(self, host: str) -> bool:
        """A page of the Internet can give its own name our address, and would then be the same origin as ours.

        What is no browser may leave the name out.
        """
        name = _name(host)
        return not name or name in self._hosts or "." not in name or name.endswith(LOCAL) or _is_address(name)


def _name(host: str) -> str:
    """Without the port and the brackets of IPv6."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _json(body: report.Json, *, well: str | None = None) -> Reply:
    """503 where what makes it well is not so."""
    is_well = well is None or body[well]
    return Reply(200 if is_well else 503, json.dumps(body, ensure_ascii=False).encode() + b"\n", JSON)


def _file(name: str) -> Reply:
    kind, _ = mimetypes.guess_type(name)
    return Reply(200, resources.files(__package__).joinpath("page", name).read_bytes(), f"{kind}; charset=utf-8")
