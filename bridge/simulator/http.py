"""ASGI requests and replies, and JSON and XML written as the gateway's firmware writes them.

A reply can replace the way its body is sent, so that faults can send it late, slowly or not at all.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from math import copysign
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import parse_qsl

if TYPE_CHECKING:  # at run time it needs uvicorn, and the simulator does not
    from bridge.http_server import AsgiEvent, Receive, Scope, Send

JsonValue = Mapping[str, "JsonValue"] | Sequence["JsonValue"] | str | int | float | bool | None


class Written(float):
    """A number that is written with the digits of its text, not with three decimals."""

    __slots__ = ("text",)

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


def hundredths(value: float) -> Written:
    """Return a number that is written with two decimals."""
    return Written(f"{value:.2f}")


def indented_json(value: JsonValue, step: str = "    ") -> bytes:
    """Return indented JSON with one value per line; floats have three decimals."""
    return (_indented(value, "\n", step) + "\n").encode()


def compact_json(value: JsonValue) -> bytes:
    """Return JSON without spaces and line breaks."""
    return json.dumps(value, separators=(",", ":")).encode()


def with_signed_zero(value: float) -> float:
    """Return `value`, or 0.0 with the same sign if three decimals show it as zero: the firmware writes -0.000."""
    return value if abs(value) >= 0.0005 else copysign(0.0, value)  # noqa: PLR2004 (half of the last decimal)


def _indented(value: JsonValue, margin: str, step: str) -> str:
    inner = margin + step
    match value:
        case str() | bool() | int() | None:
            return json.dumps(value)
        case float():
            return value.text if isinstance(value, Written) else f"{value:.3f}"
        case Mapping():
            parts = [f"{json.dumps(key)}: {_indented(item, inner, step)}" for key, item in value.items()]
            return _joined(parts, "{}", margin, inner)
        case _:
            return _joined([_indented(item, inner, step) for item in value], "[]", margin, inner)


def _joined(parts: list[str], brackets: str, margin: str, inner: str) -> str:
    if not parts:
        return brackets
    return f"{brackets[0]}{inner}{f',{inner}'.join(parts)}{margin}{brackets[1]}"


def xml_element(tag: str, *content: str, **attributes: str) -> str:
    """Return an XML element: on one line if it contains text, on several if it contains elements."""
    opening = tag + "".join(f' {name}="{value}"' for name, value in attributes.items())
    text = "".join(content)
    if text.endswith("\n"):
        inner = "".join(f"  {line}\n" for line in text.splitlines())
        return f"<{opening}>\n{inner}</{tag}>\n"
    return f"<{opening}>{text}</{tag}>\n"


ABORT_EXTENSION = "simulator.abort"
"""The ASGI extension of `serve` that resets the connection. Without it (httpx.ASGITransport) a reset raises."""

NO_REPLY = 0
"""The status in the request log when no reply was begun."""


class LoggedRequest(NamedTuple):
    """An entry of the request log. `path` has no query; `status` is `NO_REPLY` when no reply was begun.

    `body` is kept of writes to the gateway only, since that of a login has a password.
    """

    time: float
    method: str
    path: str
    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A complete request. The header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def target(self) -> str:
        """The path with the query."""
        return "?".join(filter(None, (self.path, "&".join("=".join(pair) for pair in self.query.items()))))

    @property
    def form(self) -> Mapping[str, str]:
        return dict(parse_qsl(self.body.decode(errors="replace")))

    def cookie(self, name: str) -> str | None:
        morsel = SimpleCookie(self.headers.get("cookie", "")).get(name)
        return None if morsel is None else morsel.value


class ReplyChannel:
    """Sends the reply to a request, piece by piece, and can reset its connection."""

    def __init__(self, scope: "Scope", receive: "Receive", send: "Send", head: "AsgiEvent") -> None:
        self._abort: Callable[[], None] | None = scope.get("extensions", {}).get(ABORT_EXTENSION)
        self._receive = receive
        self._send = send
        self._head = head
        self._begun = False

    async def write(self, piece: bytes, *, more: bool = True) -> None:
        """Send a piece of the body, and the head before the first piece."""
        if not self._begun:
            self._begun = True
            await self._send(self._head)
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def wait_closed(self, within: float | None = None) -> bool:
        """Wait until the client has closed the connection; return False if it has not after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return False
        return True

    def abort(self) -> None:
        """Reset the connection.

        Raises:
            ConnectionResetError: there is no socket (httpx.ASGITransport).
        """
        if self._abort is None:
            raise ConnectionResetError("the simulator cut the connection")
        self._abort()


BodySender = Callable[[bytes, ReplyChannel], Awaitable[None]]
"""A function that sends a body."""


async def send_at_once(body: bytes, channel: ReplyChannel) -> None:
    """Send the whole body at once, as a normal reply."""
    await channel.write(body, more=False)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A reply. Without `with_length` it has no Content-Length header, for a body of unknown length."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    send_body: BodySender = send_at_once
    with_length: bool = True

    async def send(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        await self.send_body(self.body, ReplyChannel(scope, receive, send, self._head()))

    def _head(self) -> "AsgiEvent":
        headers = dict(self.headers)
        if self.with_length:
            headers["Content-Length"] = str(len(self.body))
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        return {"type": "http.response.start", "status": self.status, "headers": raw}


def json_reply(status: int, value: JsonValue, **headers: str) -> HttpReply:
    return HttpReply(status, compact_json(value), {"Content-Type": "application/json", **headers})


async def read_request(scope: "Scope", receive: "Receive") -> HttpRequest:
    """Return the request with its whole body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return HttpRequest(
        scope["method"],
        scope["path"],
        dict(parse_qsl(scope["query_string"].decode())),
        {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]},
        body,
    )
