"""The ASGI application of the listener. It only reads, shows no secrets, and loads nothing from other servers."""

import ipaddress
import json
import logging
import mimetypes
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources

from prometheus_client.exposition import choose_encoder

from bridge.http_server import Receive, Scope, Send
from bridge.service.status import Status
from bridge.web import report
from bridge.web.metrics import registry

LOG = logging.getLogger(__name__)
Headers = Mapping[str, str]

JSON_TYPE, TEXT_TYPE = "application/json", "text/plain; charset=utf-8"
LOCAL_SUFFIXES = (".localhost", ".local", ".lan", ".home", ".internal", ".home.arpa", ".fritz.box")
"""Endings of host names that nobody can register on the Internet, or that are used only in home networks."""
SECURITY_HEADERS = {
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
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    kind: str = TEXT_TYPE
    headers: Headers = field(default_factory=dict)


class StatusPage:
    """Answers HTTP requests. `hosts` are the names that it may be called by, beside addresses and local names."""

    def __init__(self, status: Callable[[], Status], hosts: Collection[str] = ()) -> None:
        self._status, self._hosts = status, frozenset(host.lower() for host in hosts)
        self._registry = registry(status)
        self._files = {path: _file(name) for path, name in PAGE_FILES.items()}
        self._answers: Mapping[str, Callable[[Headers], Reply]] = {
            "/healthz": lambda _: _json(report.alive(status()), well="alive"),
            "/readyz": lambda _: _json(report.ready(status()), well="ready"),
            "/status.json": lambda _: _json(report.status_report(status())),
            "/metrics": self._metrics,
        }
        self._faults: set[str] = set()

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reply = self._reply(scope["method"], scope["path"], headers)
        reply_headers = {
            **SECURITY_HEADERS,
            **reply.headers,
            "Content-Type": reply.kind,
            "Content-Length": str(len(reply.body)),
        }
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            reply_headers["Connection"] = "close"  # the body of the request is not read
        coded = [(name.lower().encode(), value.encode("latin-1")) for name, value in reply_headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": coded})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})

    def _reply(self, method: str, path: str, headers: Headers) -> Reply:
        if not self._may_ask(headers.get("host", "")):
            return Reply(421, b"This name is not known here: add it to BRIDGE_HTTP__HOSTS.\n")
        if path not in self._answers and path not in self._files:
            return Reply(404, b"There is nothing here.\n")
        if method not in {"GET", "HEAD"}:
            return Reply(405, b"Only GET and HEAD are allowed here.\n", headers={"Allow": "GET, HEAD"})
        return self._files.get(path) or self._answer(path, headers)

    def _answer(self, path: str, headers: Headers) -> Reply:
        """Answer a request. A fault of the bridge is logged once, however often it happens."""
        try:
            return self._answers[path](headers)
        except Exception as error:
            kind = f"{path} {type(error).__name__}"
            LOG.log(
                logging.DEBUG if kind in self._faults else logging.ERROR,
                "can't answer a request to %s",
                path,
                exc_info=True,
            )
            self._faults.add(kind)
            return Reply(500, b"The bridge failed to answer; its log says why.\n")

    def _metrics(self, headers: Headers) -> Reply:
        encode, kind = choose_encoder(headers.get("accept", ""))
        return Reply(200, encode(self._registry), kind)

    def _may_ask(self, host: str) -> bool:
        """Whether a request with this Host header may be answered. Programs other than browsers may omit it.

        This prevents DNS rebinding: a website could let its own name point to our address, and a browser would then
        let its scripts read our answers.
        """
        name = _name(host)
        return (
            not name or name in self._hosts or "." not in name or name.endswith(LOCAL_SUFFIXES) or _is_address(name)
        )


def _name(host: str) -> str:
    """The name in a Host header, without the port and the brackets of IPv6."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _json(body: report.Json, *, well: str | None = None) -> Reply:
    """A reply in JSON. Its status is 503 if the value of the key `well` is false."""
    is_well = well is None or body[well]
    return Reply(200 if is_well else 503, json.dumps(body, ensure_ascii=False).encode() + b"\n", JSON_TYPE)


def _file(name: str) -> Reply:
    kind, _ = mimetypes.guess_type(name)
    return Reply(200, resources.files(__package__).joinpath("page", name).read_bytes(), f"{kind}; charset=utf-8")
