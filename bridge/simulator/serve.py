"""The simulator on real sockets: in the running loop, or in a thread of its own.

This module needs what the `demo` extra installs.
"""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bridge.http_server import HttpServer, Receive, Scope, Send, ServerLimits
from bridge.simulator.http import ABORT_EXTENSION

CERTIFICATE_LIFETIME = dt.timedelta(days=3650)
NO_LIMITS = ServerLimits(keep_alive=3600)

Certificate = tuple[bytes, bytes]
"""A certificate and its private key, both PEM."""


class ServedGateway(Protocol):
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
        .not_valid_after(now + CERTIFICATE_LIFETIME)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


@asynccontextmanager
async def serve(
    app: ServedGateway,
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

    async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
        """Give the application a way to cut off the connection that a request came on."""
        cut_off = partial(server.cut_off, scope["client"])
        scope["extensions"] = {**scope.get("extensions", {}), ABORT_EXTENSION: cut_off}
        with suppress(asyncio.CancelledError):  # that is how the server ends a request that hangs
            await app(scope, receive, send)

    server = HttpServer(with_abort, NO_LIMITS, context)
    _, bound = await server.start(host, port)
    try:
        yield f"{host}:{bound}"
    finally:
        await server.aclose()


@contextmanager
def serve_in_thread(
    app: ServedGateway, *, tls: bool, port: int = 0, certificate: Certificate | None = None
) -> Iterator[str]:
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


def _context(certificate: Certificate) -> ssl.SSLContext:
    """TLS 1.2 and later: the real box knows nothing newer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with TemporaryDirectory() as folder:
        chain = Path(folder, "gateway.pem")
        chain.write_bytes(b"".join(certificate))
        context.load_cert_chain(chain)
    return context
