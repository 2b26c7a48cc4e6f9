"""The simulator on real sockets: uvicorn in the running loop, or in a thread of its own.

This module needs what the `demo` extra installs.
"""

import asyncio
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from uvicorn.protocols.http.h11_impl import H11Protocol

from bridge.simulator.exchange import ABORT, Receive, Scope, Send

LIFE = dt.timedelta(days=3650)
KEEP_ALIVE = 3600
"""Seconds that an idle connection stays open."""

Certificate = tuple[bytes, bytes]
"""A certificate and its private key, both PEM."""


class App(Protocol):
    """An ASGI application that answers for the gateway of this serial number."""

    @property
    def serial(self) -> str: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def self_signed(serial: str) -> Certificate:
    """A certificate such as a gateway makes for itself: `CN=envoy-<serial>`, a new key each time."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"envoy-{serial}")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + LIFE)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


@asynccontextmanager
async def serve(
    app: App,
    *,
    tls: bool,
    host: str = "127.0.0.1",
    port: int = 0,
    certificate: Certificate | None = None,
) -> AsyncIterator[str]:
    """Serves until the block is left, and yields the address as `host:port`.

    Leaving cuts all connections, also those that hang. The same port can be served again at once, with the same
    `certificate` or another.
    """
    context = _context(certificate or self_signed(app.serial)) if tls else None
    listener = socket.create_server((host, port))
    # asyncio sets it only where the protocol is told; without, each answer waits for an acknowledgement (40 ms)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bound = f"{host}:{listener.getsockname()[1]}"
    server = _Server(app, context)
    running = asyncio.create_task(server.serve([listener]))
    try:
        await server.ready(running)
        yield bound
    finally:
        await server.stop(running)
        listener.close()


@contextmanager
def serve_in_thread(app: App, *, tls: bool, port: int = 0, certificate: Certificate | None = None) -> Iterator[str]:
    """As `serve`, for programs without a loop."""
    serving: Future[tuple[str, Callable[[], object]]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        async with serve(app, tls=tls, port=port, certificate=certificate) as address:
            serving.set_result((address, partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set)))
            await stop.wait()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: asyncio.run(run()))
        running.add_done_callback(partial(_fail, serving))
        address, stop = serving.result()
        try:
            yield address
        finally:
            stop()
            running.result()


def _fail(serving: "Future[tuple[str, Callable[[], object]]]", running: "Future[None]") -> None:
    """Tells whoever waits for the address that there will be none."""
    if not serving.done():
        serving.set_exception(running.exception())


class _Server(uvicorn.Server):
    """uvicorn without signals, logs and patience."""

    def __init__(self, app: App, context: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            self._with_abort(app),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = context
        super().__init__(config)
        self._up, self._over = asyncio.Event(), asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the program."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()

    async def main_loop(self) -> None:
        """In place of uvicorn's, which looks ten times a second whether it is over."""
        await self._over.wait()

    async def ready(self, running: asyncio.Task[None]) -> None:
        running.add_done_callback(lambda _done: self._up.set())
        await self._up.wait()
        if running.done():
            running.result()

    async def stop(self, running: asyncio.Task[None]) -> None:
        self.should_exit = True
        self._over.set()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        await running

    def _with_abort(self, app: App) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Gives the application a way to cut the connection that a request came on."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if self.should_exit:  # a handshake outlived the listener: an unplugged gateway does not answer
                self._cut(scope["client"])
                return
            scope["extensions"] = {**scope.get("extensions", {}), ABORT: lambda: self._cut(scope["client"])}
            with suppress(asyncio.CancelledError):  # that is how `stop` ends a request that hangs
                await app(scope, receive, send)

        return wrapped

    def _cut(self, client: tuple[str, int]) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, H11Protocol) and connection.client == client:
                connection.transport.abort()


def _context(certificate: Certificate) -> ssl.SSLContext:
    """TLS 1.2 and later: the real box knows nothing newer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with TemporaryDirectory() as folder:
        chain = Path(folder, "gateway.pem")
        chain.write_bytes(b"".join(certificate))
        context.load_cert_chain(chain)
    return context
