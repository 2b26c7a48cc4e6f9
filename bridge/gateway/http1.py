"""HTTP/1.1 below httpx, over one connection that is kept, for a client that asks for one thing at a time.

httpcore, which httpx uses otherwise, keeps bytes that came beyond an answer and takes them for the answer to the
next request: an answer that is sent twice then shifts all later ones by one. Here such bytes end the connection.
"""

import asyncio
import ipaddress
import re
import ssl
from asyncio import sslproto
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h11
import httpx

from bridge.model import BadAnswer

READ_BYTES = 64 * 1024
TLS_BUFFER_BYTES = 32 * 1024
"""Size of the buffer that asyncio keeps for each TLS connection. A TLS record has 16 kB at most."""
sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES  # with asyncio's own 256 kB each gateway takes 1.8 MB, else 1.6
MAX_HEAD_BYTES = 64 * 1024
"""Most bytes of a status line with its headers."""
MAX_INTERIM_ANSWERS = 8
"""Most answers with a status of 1xx before the answer itself: without a limit they keep a core busy."""
SECOND_ADDRESS_S = 0.25
"""Seconds until the next address of a host name is tried beside the first."""
DEFAULT_PORTS = {"http": 80, "https": 443}
NEIGHBOURS = Path("/proc/net/arp")
"""Linux's table of IPv4 neighbours: a line for each, with its MAC address in column `MAC_COLUMN` (from 0 on)."""
MAC_COLUMN = 3
MAC, UNKNOWN_MAC = re.compile("(?:[0-9a-f]{2}:){5}[0-9a-f]{2}"), "00:00:00:00:00:00"


class Http1Transport(httpx.AsyncBaseTransport):
    """One connection. An idle one is used again for `keep` seconds.

    The extension `most_bytes` of a request limits the body of the answer, which is read whole, and not unpacked.
    `check` gets the certificate (DER) that the server shows, before anything is sent to it, and raises where it is
    not the right one.
    """

    def __init__(self, context: ssl.SSLContext, check: Callable[[bytes | None], None], keep: float) -> None:
        self._context, self._check, self._keep = context, check, keep
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._usable_until = 0.0
        self._read_timeout_s: float | None = None
        """Seconds to wait for more bytes."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts = request.extensions.get("timeout", {})
        self._read_timeout_s = timeouts.get("read")
        if not await self._is_usable():
            self._drop()
            await self._open(request.url, timeouts.get("connect"))
        with self._dropped_on_failure():
            await self._send(request)
            head = await _final(self._event)
            if not isinstance(head, h11.Response):
                raise httpx.RemoteProtocolError("no answer")
            body = await _body(self._event, request.extensions["most_bytes"])
        peer = self._writer and self._writer.get_extra_info("peername")
        self._finish()
        headers = [pair for pair in head.headers.raw_items() if pair[0].lower() != b"content-encoding"]
        return httpx.Response(
            head.status_code, headers=headers, content=body, extensions={"peer": peer}, request=request
        )

    async def aclose(self) -> None:
        self._drop()

    def _finish(self) -> None:
        """Keep the connection after an answer that leaves it open and that nothing follows; else close it."""
        is_open = self._http.our_state is self._http.their_state is h11.DONE
        if is_open and not self._http.trailing_data[0]:
            self._http.start_next_cycle()
            self._usable_until = asyncio.get_running_loop().time() + self._keep
        else:
            self._drop()

    async def _is_usable(self) -> bool:
        """Whether the next request may use the connection: it is open, and nothing came that was not asked for."""
        if self._reader is None or self._writer is None or self._http.our_state is not h11.IDLE:
            return False
        if self._writer.is_closing() or asyncio.get_running_loop().time() >= self._usable_until:
            return False
        for _ in range(2):  # the loop takes from the socket what has arrived meanwhile
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(0):
                await self._reader.read(1)
        except TimeoutError:
            return True
        except OSError:
            return False
        return False

    async def _open(self, url: httpx.URL, timeout_s: float | None) -> None:
        tls = self._context if url.scheme == "https" else None
        try:
            async with asyncio.timeout(timeout_s):
                self._reader, self._writer = await asyncio.open_connection(
                    url.host,
                    url.port or DEFAULT_PORTS[url.scheme],
                    ssl=tls,
                    server_hostname=url.host if tls else None,
                    # asyncio may leave a socket open that is tried beside others, if it is cancelled at that moment
                    happy_eyeballs_delay=None if _is_address(url.host) else SECOND_ADDRESS_S,
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no connection in time") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(str(error)) from error
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        if tls:
            with self._dropped_on_failure():
                self._check(self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True))

    async def _send(self, request: httpx.Request) -> None:
        if self._writer is None:
            raise httpx.WriteError("no connection")
        self._writer.write(_encoded(self._http, request, await request.aread()))
        await self._writer.drain()

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._reader is None:
                raise httpx.ReadError("no connection")
            async with asyncio.timeout(self._read_timeout_s):
                given = await self._reader.read(READ_BYTES)
            if not given and self._http.their_state is h11.SEND_RESPONSE:
                raise httpx.RemoteProtocolError("the connection was closed without an answer")
            self._http.receive_data(given)
        return event

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()  # a server that goes on sending is not listened to
        self._reader = self._writer = None

    @contextmanager
    def _dropped_on_failure(self) -> Iterator[None]:
        """A context that closes the connection after an error, and turns errors into those of httpx."""
        try:
            yield
        except BaseException as error:
            self._drop()
            if (other := _translated(error)) is error:
                raise
            raise other from error


def _encoded(http: h11.Connection, request: httpx.Request, body: bytes) -> bytes:
    head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
    return b"".join(filter(None, (http.send(head), http.send(h11.Data(data=body)), http.send(h11.EndOfMessage()))))


def hardware_address(peer: object, table: Path = NEIGHBOURS) -> str | None:
    """The MAC address of a machine that this one has a connection to, if both are in one network.

    `peer` is its address and port. Other ports than the usual ones belong to a tunnel, or to a machine that stands
    for several gateways. `table` is Linux's list of IPv4 neighbours; other systems have none.
    """
    match peer:
        case (str(address), int(port), *_) if port in DEFAULT_PORTS.values():
            try:
                lines = table.read_text().splitlines()
            except (OSError, UnicodeError):
                return None
            known = {words[0]: words[MAC_COLUMN] for line in lines[1:] if len(words := line.split()) > MAC_COLUMN}
            found = known.get(address, "").lower()
            return found if MAC.fullmatch(found) and found != UNKNOWN_MAC else None
    return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _final(next_event: Callable[[], Awaitable[object]]) -> object:
    """The first event that is no interim answer; after too many of these, the next event whatever it is."""
    event = await next_event()
    for _ in range(MAX_INTERIM_ANSWERS):
        if not isinstance(event, h11.InformationalResponse):
            break
        event = await next_event()
    return event


async def _body(next_event: Callable[[], Awaitable[object]], most_bytes: int) -> bytes:
    body = bytearray()  # a list of single bytes would need forty times their size
    while not isinstance(event := await next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            body += event.data
        if len(body) > most_bytes:
            raise BadAnswer(f"the answer is longer than {most_bytes} bytes")
    return bytes(body)


def _translated(error: BaseException) -> BaseException:
    """The error of httpx for one of h11 or of a socket; the same error, if it is another one."""
    match error:
        case h11.RemoteProtocolError():
            return httpx.RemoteProtocolError(str(error))
        case h11.LocalProtocolError():
            return httpx.LocalProtocolError(str(error))
        case TimeoutError():
            return httpx.ReadTimeout("no answer in time")
        case OSError():
            return httpx.ReadError(str(error))
        case _:
            return error
