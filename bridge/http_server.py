"""An HTTP server on the running event loop, for the status page and the simulator.

It uses uvicorn's protocol without uvicorn's server, which takes over the signals of the process and wakes a
sleeping machine ten times a second. This module needs uvicorn, which the extras `web` and `demo` install.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

Scope = MutableMapping[str, Any]
AsgiEvent = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiEvent]]
Send = Callable[[AsgiEvent], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI 3 application."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of a server. `None` is no limit.

    `keep_alive` is for how many seconds an idle connection stays open, `answer` how many seconds a connection has
    until the end of its next answer, `head` the most bytes of a request's head. A new connection beyond
    `connections`, or the `per_client` connections of one address, is accepted, and the one that has been silent for
    longest is cut off for it: so a client that opens many and says nothing keeps nobody out.
    """

    keep_alive: int
    answer: float | None = None
    head: int | None = None
    connections: int | None = None
    per_client: int | None = None
    backlog: int = 128


class HttpServer:
    """Serves an ASGI application from `start` to `aclose`."""

    def __init__(self, app: AsgiApp, limits: ServerLimits, context: ssl.SSLContext | None = None) -> None:
        self.limits = limits
        self.is_open = False
        self._context = context
        self._config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=limits.keep_alive,
            h11_max_incomplete_event_size=limits.head,
        )
        self._state = ServerState()
        self._connection_lost = asyncio.Event()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and return the address; `port` 0 takes a free one.

        Raises:
            OSError: the address can't be used.
        """
        self._config.load()
        self.is_open = True
        loop, backlog = asyncio.get_running_loop(), self.limits.backlog
        self._server = await loop.create_server(self._protocol, host, port, ssl=self._context, backlog=backlog)
        address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return address

    async def aclose(self) -> None:
        """Stop listening, and cut off all connections, also those with a request that hangs."""
        self.is_open = False
        # asyncio accepts a connection in one turn of the loop, makes its transport in the next, and calls us in the
        # one after that. If the server is closed in between, asyncio forgets the socket.
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening)
        await asyncio.sleep(0)
        self._server.close()
        await asyncio.sleep(0)
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._state.connections:
            self._connection_lost.clear()
            await self._connection_lost.wait()

    def cut_off(self, client: tuple[str, int]) -> None:
        """Break off the connection from this address and port."""
        for connection in list(self._state.connections):
            if isinstance(connection, H11Protocol) and connection.client == client:
                connection.transport.abort()

    def make_room(self, new: "_ClientConnection") -> None:
        """Cut off the connection that has been silent for longest if the limits are exceeded with this `new` one.

        Of the connections from one address if these are too many, else of the address with the most connections.
        One whose request is being answered is cut off only if none is silent.
        """
        clients: dict[str, list[_ClientConnection]] = {}
        for connection in self._state.connections:
            if isinstance(connection, _ClientConnection) and not connection.transport.is_closing():
                clients.setdefault(connection.address, []).append(connection)
        own, limits = clients[new.address], self.limits
        if limits.per_client is not None and len(own) > limits.per_client:
            crowd = own
        elif limits.connections is not None and sum(map(len, clients.values())) > limits.connections:
            most = max(map(len, clients.values()))
            crowd = [connection for some in clients.values() if len(some) == most for connection in some]
        else:
            return
        min(crowd, key=lambda one: (one is new, one.is_answering, one.silent_since)).transport.abort()

    def _protocol(self) -> "_ClientConnection":
        return _ClientConnection(self, self._config, self._state, self._connection_lost)


class _ClientConnection(H11Protocol):
    """One connection. It is cut off if it exceeds the limits, also if it only reads slowly or sends nothing."""

    _watch: asyncio.TimerHandle | None = None
    silent_since = 0.0
    """Since when, in seconds of the loop's clock, its next answer is awaited."""

    def __init__(self, server: HttpServer, config: uvicorn.Config, state: ServerState, lost: asyncio.Event) -> None:
        super().__init__(config, state, {})
        self._server, self._lost = server, lost

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        # a connection may be accepted, or a TLS handshake may end, after the server was closed
        if not self._server.is_open:
            transport.abort()
        else:
            self._await_answer()
            self._server.make_room(self)

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def is_answering(self) -> bool:
        """Whether it has sent a request whose answer is not complete."""
        is_first = self.cycle is None  # uvicorn has none before the first request, unlike its annotation
        return not (is_first or self.cycle.response_complete)

    def on_response_complete(self) -> None:
        self._await_answer()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_watch()
        super().connection_lost(exc)
        self._lost.set()

    def _await_answer(self) -> None:
        self._cancel_watch()
        self.silent_since = self.loop.time()
        seconds = self._server.limits.answer
        if seconds is not None:
            self._watch = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
