"""One request and its reply, in terms of ASGI: what was asked, what to send, and how to send it badly."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from bridge.simulator.rendering import Json, compact

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ABORT = "simulator.abort"
"""The server's extension that cuts the connection; without it (httpx.ASGITransport) a cut is an exception."""

NO_REPLY = 0
"""The status that is logged where none was ever sent."""


class Seen(NamedTuple):
    """A line of the request log. `path` is without its query; `status` 0 means that no answer was begun."""

    time: float
    method: str
    path: str
    status: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, read to its end. Header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def form(self) -> Mapping[str, str]:
        return dict(parse_qsl(self.body.decode(errors="replace")))

    def cookie(self, name: str) -> str | None:
        morsel = SimpleCookie(self.headers.get("cookie", "")).get(name)
        return None if morsel is None else morsel.value


class Line:
    """The way back to whoever asked."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, head: Message) -> None:
        self._abort: Callable[[], None] | None = scope.get("extensions", {}).get(ABORT)
        self._receive = receive
        self._send = send
        self._head = head
        self._begun = False

    async def write(self, piece: bytes, *, more: bool = True) -> None:
        if not self._begun:
            self._begun = True
            await self._send(self._head)
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def gone(self, within: float | None = None) -> bool:
        """Waits until the other side has hung up; False if it is still there after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return False
        return True

    def cut(self) -> None:
        """Resets the connection, whatever has been sent."""
        if self._abort is None:
            raise ConnectionResetError("the simulator cut the connection")
        self._abort()


Pace = Callable[[bytes, Line], Awaitable[None]]
"""How a body is sent."""


async def at_once(body: bytes, line: Line) -> None:
    await line.write(body, more=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send. `sized` False leaves out the length, for a body whose end nobody knows."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pace: Pace = at_once
    sized: bool = True

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.pace(self.body, Line(scope, receive, send, self._head()))

    def _head(self) -> Message:
        headers = dict(self.headers)
        if self.sized:
            headers["Content-Length"] = str(len(self.body))
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        return {"type": "http.response.start", "status": self.status, "headers": raw}


def json_reply(status: int, value: Json, **headers: str) -> Reply:
    return Reply(status, compact(value), {"Content-Type": "application/json", **headers})


async def read(scope: Scope, receive: Receive) -> Ask:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return Ask(
        scope["method"],
        scope["path"],
        dict(parse_qsl(scope["query_string"].decode())),
        {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]},
        body,
    )
