"""The client of a gateway, over real TLS sockets, against the simulator."""

import asyncio
import datetime as dt
import ipaddress
import logging
import re
import ssl
import tempfile
import tracemalloc
from asyncio import sslproto
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from brokers import free_port
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from bridge.endpoints import BY_SOURCE
from bridge.gateway import open_gateway, transport
from bridge.gateway.client import Gateway, HttpLimits
from bridge.gateway.cloud import CloudLimits
from bridge.gateway.errors import (
    Blocked,
    CloudUnavailable,
    EndpointRefused,
    KeyChanged,
    MultiFactor,
    NotOnAccount,
    TokenRejected,
    WrongPassword,
)
from bridge.gateway.http1 import TLS_BUFFER_BYTES, hardware_address
from bridge.http_server import Receive, Scope, Send
from bridge.model import BadAnswer, BridgeError, Rejected, Request, Unavailable, Unsupported
from bridge.settings import CloudSettings, GatewaySettings
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.serve import Certificate, self_signed, serve
from bridge.state import CloudPause

INFO_REQUEST, METERS_REQUEST, READINGS_REQUEST = (
    Request("/info"),
    Request("/ivp/meters"),
    Request("/ivp/meters/readings"),
)
LIVEDATA_REQUEST, DEVICES_REQUEST = Request("/ivp/livedata/status"), Request("/ivp/ensemble/device_list")
QUICK_LIMITS = HttpLimits(retry_wait=0, deadline=20)
SHORT_KEY = rsa.generate_private_key(65537, 1024)  # noqa: S505 - as old firmware has it
QUICK_CLOUD = CloudLimits(retry_wait=0)
SHORT_LIMITS = HttpLimits(retry_wait=0, deadline=0.3)


class RecordingSimulator(Simulator):
    """A simulator that records the headers of each request."""

    def __init__(self, home: str = "three-phase") -> None:
        super().__init__(home)
        self.headers: list[dict[str, str]] = []
        self.connections: set[object] = set()
        self.busiest = 0
        self._busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        self.connections.add(scope["client"])
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._busy -= 1

    def secrets(self) -> set[str]:
        """All secrets that the bridge received and must not show."""
        sent = {header.get("authorization", "") for header in self.headers}
        cookies = {header.get("cookie", "") for header in self.headers}
        return {text.rpartition(" ")[2].rpartition("=")[2] for text in sent | cookies} - {""}


@pytest.fixture
def simulator(caplog: pytest.LogCaptureFixture) -> Iterator[RecordingSimulator]:
    """A simulator. After the test, no secret may be in the log, not even at DEBUG."""
    caplog.set_level(logging.DEBUG)
    simulator = RecordingSimulator()
    yield simulator
    for secret in (PASSWORD, *simulator.secrets()):
        assert secret not in caplog.text


@pytest.fixture
async def address(simulator: RecordingSimulator) -> AsyncIterator[str]:
    async with serve(simulator, tls=True) as address:
        yield address


@asynccontextmanager
async def opened(
    address: str,
    simulator: Simulator,
    *,
    token: str | None = "",
    limits: HttpLimits = QUICK_LIMITS,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """An identified gateway with a token of the simulator."""
    text = simulator.token() if token == "" else token
    own = GatewaySettings(host=address, token=SecretStr(text) if text else None, **settings)
    async with open_gateway(own, CloudSettings(), limits=limits) as gateway:
        gateway.identify(simulator.serial)
        yield gateway


@asynccontextmanager
async def with_account(address: str, simulator: Simulator, **settings: Any) -> AsyncIterator[Gateway]:
    """An identified gateway with an account. The cloud is the simulator's."""
    async with serve(simulator, tls=False) as cloud:
        urls = cloud_at(f"http://{cloud}")
        own = GatewaySettings(host=address, username=USER, password=SecretStr(PASSWORD), **settings)
        async with open_gateway(own, urls, limits=QUICK_LIMITS, cloud_limits=QUICK_CLOUD) as gateway:
            gateway.identify(simulator.serial)
            yield gateway


def cloud_at(url: str, **more: Any) -> CloudSettings:
    return CloudSettings(
        login_url=f"{url}/login/login.json",
        token_url=f"{url}/tokens",
        entrez_url=f"{url}/entrez-auth-token",
        **more,
    )


def advice(error: BaseException | str | None) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    return text


# --- fetching ---


async def test_info_needs_no_token_and_gets_none(simulator: RecordingSimulator, address: str) -> None:
    async with opened(address, simulator) as gateway:
        answer = await gateway.fetch(INFO_REQUEST)
    assert simulator.serial.encode() in answer.body
    assert answer.elapsed > 0
    assert "authorization" not in simulator.headers[0]


async def test_everything_else_gets_the_token(simulator: RecordingSimulator, address: str) -> None:
    async with opened(address, simulator) as gateway:
        answer = await gateway.fetch(METERS_REQUEST)
    assert answer.body.startswith(b"[")
    assert simulator.headers[0]["authorization"].startswith("Bearer ey")
    assert simulator.headers[0]["accept-encoding"] == "identity"


async def test_json_is_posted(simulator: RecordingSimulator, address: str) -> None:
    async with opened(address, simulator) as gateway:
        await gateway.fetch(Request("/ivp/livedata/stream", "POST", '{"enable": 1}'))
        answer = await gateway.fetch(LIVEDATA_REQUEST)
    assert [seen.method for seen in simulator.requests] == ["POST", "GET"]
    assert b'"enabled"' in answer.body


async def test_before_the_gateway_is_identified_no_token_leaves(
    simulator: RecordingSimulator, address: str
) -> None:
    own = GatewaySettings(host=address, token=SecretStr(simulator.token()))
    async with open_gateway(own, CloudSettings(), limits=QUICK_LIMITS) as gateway:
        with pytest.raises(Unavailable, match="serial number"):
            await gateway.fetch(METERS_REQUEST)
    assert simulator.count() == 0


async def test_one_request_at_a_time_over_one_connection(simulator: RecordingSimulator, address: str) -> None:
    async with opened(address, simulator) as gateway:
        await asyncio.gather(
            *(
                gateway.fetch(request)
                for request in [INFO_REQUEST, METERS_REQUEST, READINGS_REQUEST, LIVEDATA_REQUEST] * 5
            )
        )
        assert gateway.requests == simulator.count() == 20
    assert simulator.busiest == 1
    assert len(simulator.connections) == 1


async def test_the_environments_proxy_is_not_for_the_gateway(
    simulator: RecordingSimulator, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with opened(address, simulator) as gateway:
        await gateway.fetch(INFO_REQUEST)


@pytest.mark.parametrize(
    ("fault", "kind", "requests"),
    [
        ("404", Unsupported, 1),
        ("405", Unsupported, 1),
        ("403", Rejected, 1),
        ("301", BadAnswer, 1),
        ("302", BadAnswer, 1),
        ("400", BadAnswer, 1),
        ("429", Unavailable, 1),
        ("500", Unavailable, 1),
        ("502", Unavailable, 3),
        ("503", Unavailable, 3),
        ("504", Unavailable, 3),
        ("booting", Unavailable, 1),
        ("drop", Unavailable, 3),
        ("reset", Unavailable, 3),
        ("huge", BadAnswer, 1),
    ],
)
async def test_what_went_wrong_is_told_by_what_to_do(
    simulator: RecordingSimulator, address: str, fault: str, kind: type[BridgeError], requests: int
) -> None:
    async with opened(address, simulator) as gateway:
        simulator.faults.add(READINGS_REQUEST.path, fault)
        with pytest.raises(kind) as error:
            await gateway.fetch(READINGS_REQUEST)
        advice(error.value)
        assert gateway.requests == simulator.count() == requests
        assert (await gateway.fetch(METERS_REQUEST)).body  # other requests are still answered


@pytest.mark.parametrize("fault", ["502", "503", "504", "drop", "reset"])
async def test_a_fault_of_a_moment_is_not_noticed(simulator: RecordingSimulator, address: str, fault: str) -> None:
    async with opened(address, simulator) as gateway:
        simulator.faults.add(READINGS_REQUEST.path, fault, times=2)
        assert (await gateway.fetch(READINGS_REQUEST)).body.startswith(b"[")


async def test_a_gateway_that_starts_says_so(simulator: RecordingSimulator, address: str) -> None:
    simulator.faults.add("gateway", "booting")
    async with opened(address, simulator) as gateway:
        with pytest.raises(Unavailable, match="the gateway is starting"):
            await gateway.fetch(INFO_REQUEST)


@pytest.mark.parametrize("fault", ["hang", "slow:0.05"])
async def test_no_answer_takes_longer_than_its_deadline(
    simulator: RecordingSimulator, address: str, fault: str
) -> None:
    """A gateway that sends single bytes causes no read timeout."""
    async with opened(address, simulator, limits=SHORT_LIMITS) as gateway:
        simulator.faults.add(READINGS_REQUEST.path, fault)
        with pytest.raises(Unavailable, match="no whole answer in time to /ivp/meters/readings"):
            await gateway.fetch(READINGS_REQUEST)
        assert simulator.count() == 1
        assert (await gateway.fetch(METERS_REQUEST, deadline=20)).body


async def test_a_silent_gateway_is_not_asked_again_at_once(simulator: RecordingSimulator, address: str) -> None:
    async with opened(address, simulator, limits=HttpLimits(read=0.1, retry_wait=0)) as gateway:
        simulator.faults.add(READINGS_REQUEST.path, "hang")
        with pytest.raises(Unavailable, match="did not answer in time"):
            await gateway.fetch(READINGS_REQUEST)
        assert simulator.count() == 1


@pytest.mark.parametrize("delay", [None, 0.0, 0.1], ids=["in one piece", "in two pieces", "later"])
@pytest.mark.parametrize("more", ["twice", "a few bytes", "another answer"])
@pytest.mark.parametrize("tls", [True, False])
async def test_bytes_that_were_not_asked_for_are_no_answer_to_the_next_request(
    more: str, delay: float | None, *, tls: bool
) -> None:
    """Each answer names its request, so that one which belongs to another request shows."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
                whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path)
                extra = {"twice": whole, "a few bytes": b"\r\n", "another answer": whole.replace(path, b"?")}[more]
                if delay is None:
                    writer.write(whole + extra)
                    continue
                writer.write(whole)
                await writer.drain()
                await asyncio.sleep(delay)
                writer.write(extra)

    async with listening(talk, server_context() if tls else None) as port:
        own = GatewaySettings(host=f"{'https' if tls else 'http'}://127.0.0.1:{port}")
        async with open_gateway(own, CloudSettings(), limits=QUICK_LIMITS) as gateway:
            gateway.identify("122301003111")
            gateway._connection.auth = None
            for number in range(4):
                path = f"/ivp/{number}"
                assert (await gateway.fetch(Request(path))).body.decode() == path
                await asyncio.sleep(0.3)
    assert connections == 4


async def test_an_idle_connection_is_kept_without_such_bytes(simulator: RecordingSimulator, address: str) -> None:
    async with opened(address, simulator) as gateway:
        for _ in range(3):
            await gateway.fetch(METERS_REQUEST)
            await asyncio.sleep(0.2)
    assert len(simulator.connections) == 1


async def test_an_untrusted_probe_has_a_deadline_too(simulator: RecordingSimulator, address: str) -> None:
    simulator.faults.add(INFO_REQUEST.path, "hang")
    async with opened(address, simulator, limits=SHORT_LIMITS) as gateway:
        with pytest.raises(Unavailable, match="no whole answer in time to /info"):
            await gateway.probe_untrusted(INFO_REQUEST)


async def test_bodies_are_handed_on_as_they_are(simulator: RecordingSimulator, address: str) -> None:
    """The client does not check the body of an answer with status 2xx."""
    async with opened(address, simulator) as gateway:
        for fault in ("html", "empty", "truncated", "garbage", "deep", "error_object", "status_object"):
            simulator.faults.add(METERS_REQUEST.path, fault, times=1)
            await gateway.fetch(METERS_REQUEST)


@pytest.mark.parametrize("source", BY_SOURCE)
async def test_no_more_is_read_than_an_endpoint_may_send(
    simulator: RecordingSimulator, address: str, source: str
) -> None:
    endpoint = BY_SOURCE[source]
    simulator.faults.add(endpoint.path.partition("?")[0], "huge:4")
    async with opened(address, simulator) as gateway:
        with pytest.raises(BadAnswer, match=f"longer than {endpoint.limits.size} bytes"):
            await gateway.fetch(endpoint.request)


async def test_an_endless_refusal_is_cut_off_too(simulator: RecordingSimulator, address: str) -> None:
    """The HTTP library reads the body of a 401 by itself."""
    async with opened(address, simulator, limits=HttpLimits(body=100)) as gateway:
        simulator.faults.add(METERS_REQUEST.path, "401")
        with pytest.raises(BadAnswer, match="longer than 100 bytes"):
            await gateway.fetch(METERS_REQUEST)


async def test_nothing_is_unpacked() -> None:
    """A compressed megabyte of zeros has only a thousand bytes."""
    body = b"\x1f\x8b not to be unpacked"

    async def bomb(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async with listening(bomb) as port:
        own = GatewaySettings(host=f"http://127.0.0.1:{port}")
        async with open_gateway(own, CloudSettings(), limits=QUICK_LIMITS) as gateway:
            assert (await gateway.fetch(INFO_REQUEST)).body == body


def server_context() -> ssl.SSLContext:
    """TLS for such a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "certificate"), Path(folder, "key")
        for path, content in zip(paths, self_signed("122301003111"), strict=True):
            path.write_bytes(content)
        context.load_cert_chain(*paths)
    return context


@asynccontextmanager
async def listening(serve: Any, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server of a few lines, for answers that the simulator can't give."""
    writers: list[asyncio.StreamWriter] = []

    async def remember(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(remember, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


REQUEST_LINE = re.compile(
    r"(?:Enphase's cloud: )?(GET|POST) (/\S*): (?:(\d{3}), (\d+) bytes|no connection .*), \d+ ms"
)


async def test_debug_has_a_line_for_each_request(
    simulator: RecordingSimulator, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The simulator's log of requests is the judge: logins, token checks, refusals and retries included."""
    async with with_account(address, simulator) as gateway:
        simulator.faults.add(METERS_REQUEST.path, "reset", times=1)
        simulator.faults.add(READINGS_REQUEST.path, "500", times=1)
        info = await gateway.fetch(INFO_REQUEST)
        for request in (METERS_REQUEST, LIVEDATA_REQUEST):
            await gateway.fetch(request)
        with pytest.raises(Unavailable):
            await gateway.fetch(READINGS_REQUEST)
        simulator.revoke_tokens()
        await gateway.fetch(METERS_REQUEST)
    lines = [match for text in caplog.messages if (match := REQUEST_LINE.fullmatch(text))]
    seen = list(simulator.requests)
    assert [(line[1], line[2]) for line in lines] == [(request.method, request.path) for request in seen]
    broken = next(place for place, line in enumerate(lines) if not line[3])
    assert lines[broken][2] == METERS_REQUEST.path
    del lines[broken], seen[broken]
    assert [int(line[3]) for line in lines] == [request.status for request in seen]
    assert lines[0][4] == str(len(info.body))
    assert all(record.levelno == logging.DEBUG for record in caplog.records if REQUEST_LINE.match(record.message))


async def test_debug_tells_a_request_whose_answer_does_not_end(
    simulator: RecordingSimulator, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(address, simulator, limits=SHORT_LIMITS) as gateway:
        simulator.faults.add(READINGS_REQUEST.path, "hang")
        with pytest.raises(Unavailable):
            await gateway.fetch(READINGS_REQUEST)
    (line,) = [text for text in caplog.messages if text.startswith(f"GET {READINGS_REQUEST.path}: ")]
    assert re.search(r"given up, \d+ ms$", line)


async def test_a_restarted_gateway_is_found_again(simulator: RecordingSimulator) -> None:
    certificate, port = self_signed(simulator.serial), free_port()
    async with opened(f"127.0.0.1:{port}", simulator) as gateway:
        async with serve(simulator, tls=True, port=port, certificate=certificate):
            await gateway.fetch(METERS_REQUEST)
        with pytest.raises(Unavailable, match="Connection refused"):
            await gateway.fetch(METERS_REQUEST)
        async with serve(simulator, tls=True, port=port, certificate=certificate):
            await gateway.fetch(METERS_REQUEST)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("https://127.0.0.1:9", "Connection refused"),
        ("localhost:9", "Connection refused"),
        ("nowhere.invalid", "no connection to the gateway"),
        ("a..b", "no connection to the gateway"),
    ],
)
async def test_no_connection(host: str, words: str) -> None:
    async with open_gateway(GatewaySettings(host=host), CloudSettings(), limits=QUICK_LIMITS) as gateway:
        with pytest.raises(Unavailable) as error:
            await gateway.fetch(INFO_REQUEST)
    assert words in advice(error.value)


@pytest.mark.parametrize("host", ["https://[::1", "envoy.local:port", "envoy.local:99999999"])
def test_what_can_not_be_a_host_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="host:port"):
        GatewaySettings(host=host)


# --- TLS ---


async def test_the_first_key_is_pinned(simulator: RecordingSimulator) -> None:
    certificate = self_signed(simulator.serial)
    async with (
        serve(simulator, tls=True, certificate=certificate) as address,
        opened(address, simulator) as gateway,
    ):
        assert gateway.fingerprint is None
        await gateway.fetch(INFO_REQUEST)
        assert gateway.fingerprint == key_of(certificate)


def key_of(certificate: Certificate) -> str:
    key = x509.load_pem_x509_certificate(certificate[0]).public_key()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return digest.finalize().hex()


@pytest.mark.parametrize("mode", ["pin", "strict"])
async def test_another_key_stops_before_any_request(simulator: RecordingSimulator, address: str, mode: str) -> None:
    async with opened(address, simulator, tls=mode) as gateway:
        gateway.pin("00" * 32)
        for request in (INFO_REQUEST, METERS_REQUEST):
            with pytest.raises(KeyChanged, match="TLS key has changed") as error:
                await gateway.fetch(request)
            assert error.value.fingerprint == gateway.fingerprint
            advice(error.value)
    assert simulator.count() == 0


async def test_a_key_that_changes_while_we_run(simulator: RecordingSimulator) -> None:
    port = free_port()
    async with opened(f"127.0.0.1:{port}", simulator) as gateway:
        async with serve(simulator, tls=True, port=port):
            await gateway.fetch(METERS_REQUEST)
        before = simulator.count()
        async with serve(simulator, tls=True, port=port):
            with pytest.raises(KeyChanged) as error:
                await gateway.fetch(METERS_REQUEST)
            assert simulator.count() == before

            answer, key = await gateway.probe_untrusted(INFO_REQUEST)
            assert simulator.serial.encode() in answer.body
            assert key == error.value.fingerprint
            assert not {"authorization", "cookie"} & simulator.headers[-1].keys()

            gateway.pin(key)
            assert (await gateway.fetch(METERS_REQUEST)).body


async def test_a_pin_that_is_set_late_holds_for_the_open_connection(
    simulator: RecordingSimulator, address: str
) -> None:
    """The serial number, and so the pin, is known only after `/info`."""
    async with opened(address, simulator) as gateway:
        await gateway.fetch(INFO_REQUEST)
        gateway.pin("00" * 32)
        with pytest.raises(KeyChanged):
            await gateway.fetch(METERS_REQUEST)
        assert simulator.count() == 1


async def test_a_new_certificate_for_the_same_key_is_accepted(simulator: RecordingSimulator) -> None:
    key, port = ec.generate_private_key(ec.SECP256R1()), free_port()
    async with opened(f"127.0.0.1:{port}", simulator) as gateway:
        for number in (1, 2):
            certificate = issued(key, f"envoy-{number}", number=number)
            async with serve(simulator, tls=True, port=port, certificate=certificate):
                await gateway.fetch(INFO_REQUEST)


@pytest.mark.expects_log("BRIDGE_GATEWAY__TLS is off")
async def test_off_checks_nothing_and_is_warned_of(
    simulator: RecordingSimulator, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(address, simulator, tls="off") as gateway:
        gateway.pin("00" * 32)
        await gateway.fetch(INFO_REQUEST)
        assert gateway.fingerprint not in (None, "00" * 32)
    assert "BRIDGE_GATEWAY__TLS is off" in caplog.text


def issued(key: Any, name: str, **more: Any) -> Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(more.get("number", 1))
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM), private


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        SHORT_KEY,
        rsa.generate_private_key(65537, 2048),
    ],
)
@pytest.mark.parametrize("name", ["e", "envoy-122125067699" * 3])
@pytest.mark.parametrize("number", [1, 2**158 + 1])
def test_keys_are_found_where_cryptography_finds_them(key: Any, name: str, number: int) -> None:
    certificate = issued(key, name, number=number)
    der = ssl.PEM_cert_to_DER_cert(certificate[0].decode())
    assert transport.fingerprint(der) == key_of(certificate)


def test_certificates_without_a_version_are_read() -> None:
    """X.509 version 1 has no version field, and old firmware makes such certificates."""
    certificate = issued(SHORT_KEY, "envoy" * 5)
    der = bytearray(ssl.PEM_cert_to_DER_cert(certificate[0].decode()))
    outer, inner = 4, 8  # both lengths are of the form 82 xx xx
    assert der[inner : inner + 5] == b"\xa0\x03\x02\x01\x02"
    del der[inner : inner + 5]
    for start in (0, outer):
        length = int.from_bytes(der[start + 2 : start + 4]) - 5
        der[start + 2 : start + 4] = length.to_bytes(2)
    assert transport.fingerprint(bytes(der)) == key_of(certificate)


CERTIFICATE = ssl.PEM_cert_to_DER_cert(self_signed("1")[0].decode())


@given(
    st.binary(max_size=64)
    | st.integers(0, len(CERTIFICATE)).map(lambda end: CERTIFICATE[:end])
    | st.tuples(st.integers(0, len(CERTIFICATE) - 1), st.integers(0, 255)).map(
        lambda at: CERTIFICATE[: at[0]] + bytes([at[1]]) + CERTIFICATE[at[0] + 1 :]
    )
)
def test_any_bytes_have_a_key_or_none(der: bytes) -> None:
    try:
        assert transport.public_key(der) in der
    except ValueError:
        return


def test_without_a_certificate_there_is_no_connection() -> None:
    with pytest.raises(ssl.SSLError):
        transport.KeyPin().check(None)


@pytest.fixture
def old_context(tmp_path: Path) -> ssl.SSLContext:
    file = tmp_path / "both.pem"
    file.write_bytes(b"".join(issued(SHORT_KEY, "envoy")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")
    context.load_cert_chain(file)
    return context


async def test_old_ciphers_and_short_keys_of_old_firmware_work(old_context: ssl.SSLContext) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")
        await writer.drain()

    async with listening(answer, old_context) as port:
        own = GatewaySettings(host=f"127.0.0.1:{port}")
        async with open_gateway(own, CloudSettings(), limits=QUICK_LIMITS) as gateway:
            assert (await gateway.fetch(INFO_REQUEST)).body == b"old"


async def test_a_gateway_that_speaks_no_tls(simulator: RecordingSimulator) -> None:
    async with serve(simulator, tls=False) as address, opened(address, simulator) as gateway:
        with pytest.raises(Unavailable, match="TLS fails"):
            await gateway.fetch(INFO_REQUEST)


# --- what a 401 means ---


async def test_an_endpoint_that_is_refused_alone(simulator: RecordingSimulator, address: str) -> None:
    """Firmware 7.3.130 answers 401 on /ivp/ensemble/* to a token that works elsewhere."""
    simulator.faults.add(DEVICES_REQUEST.path, "401")
    async with with_account(address, simulator) as gateway:
        for _ in range(3):
            with pytest.raises(EndpointRefused, match="/ivp/ensemble/device_list") as error:
                await gateway.fetch(DEVICES_REQUEST)
            advice(error.value)
        assert (await gateway.fetch(METERS_REQUEST)).body
    assert simulator.count("/login/login.json") == 1
    assert simulator.count("/auth/check_jwt") == 3


async def test_a_refused_endpoint_does_not_cost_the_connection(simulator: RecordingSimulator, address: str) -> None:
    """A new TLS handshake is as much work for a gateway as fifteen requests."""
    simulator.faults.add(DEVICES_REQUEST.path, "401")
    async with opened(address, simulator) as gateway:
        for _ in range(3):
            with pytest.raises(EndpointRefused):
                await gateway.fetch(DEVICES_REQUEST)
            await gateway.fetch(METERS_REQUEST)
    assert len(simulator.connections) == 1


async def test_cookies_that_grow_are_forgotten() -> None:
    longest = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal longest
        with suppress(asyncio.IncompleteReadError):
            for number in count(step=20):
                lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                longest = max(longest, sum(len(line) for line in lines if line.startswith(b"cookie:")))
                cookies = "".join(f"Set-Cookie: c{number + i}={'z' * 40}; Path=/\r\n" for i in range(20))
                writer.write(f"HTTP/1.1 200 OK\r\n{cookies}Content-Length: 2\r\n\r\n[]".encode())

    async with listening(answer) as port:
        own = GatewaySettings(host=f"http://127.0.0.1:{port}")
        async with open_gateway(own, CloudSettings(), limits=QUICK_LIMITS) as gateway:
            for _ in range(100):
                assert (await gateway.fetch(METERS_REQUEST)).body == b"[]"
    assert longest < 1200


async def test_long_cookies_are_forgotten() -> None:
    """A gateway that refuses long requests would refuse them until the bridge is restarted."""
    heads: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            for number in count():
                heads.append(len(await reader.readuntil(b"\r\n\r\n")))
                cookie = f"c{number % 8}={'z' * 3000}; Path=/"
                writer.write(f"HTTP/1.1 200 OK\r\nSet-Cookie: {cookie}\r\nContent-Length: 2\r\n\r\n[]".encode())

    async with listening(answer) as port:
        own = GatewaySettings(host=f"http://127.0.0.1:{port}")
        async with open_gateway(own, CloudSettings(), limits=QUICK_LIMITS) as gateway:
            for _ in range(20):
                assert (await gateway.fetch(METERS_REQUEST)).body == b"[]"
    assert max(heads) < 5000


@pytest.mark.parametrize(("interim", "is_read"), [(8, True), (9, False)])
async def test_interim_answers_are_bounded(interim: int, is_read: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                early = b"HTTP/1.1 103 Early Hints\r\n\r\n" * interim
                writer.write(early + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")

    async with listening(answer) as port:
        own = GatewaySettings(host=f"http://127.0.0.1:{port}")
        async with open_gateway(own, CloudSettings(), limits=QUICK_LIMITS) as gateway:
            if is_read:
                assert (await gateway.fetch(METERS_REQUEST)).body == b"[]"
            else:
                with pytest.raises(Unavailable):
                    await gateway.fetch(METERS_REQUEST)


async def test_a_body_in_single_bytes_is_collected_in_large_pieces() -> None:
    """A list of eight million bytes objects would need more memory than a small machine has."""

    async def drops() -> AsyncIterator[bytes]:
        for _ in range(200_000):
            yield b"x"

    response = httpx.Response(200, content=drops(), request=httpx.Request("GET", "https://envoy.local/info"))
    await transport.bounded(1_000_000)(response)
    assert isinstance(response.stream, httpx.AsyncByteStream)
    pieces = [piece async for piece in response.stream]
    assert sum(map(len, pieces)) == 200_000
    assert len(pieces) <= 4


async def test_a_connection_needs_little_memory(simulator: RecordingSimulator, address: str) -> None:
    """A fleet has a connection to each gateway. By itself asyncio keeps 256 kB for each."""
    async with opened(address, simulator) as gateway:
        tracemalloc.start()
        assert (await gateway.fetch(METERS_REQUEST)).body
        kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, sslproto.__file__)])
        tracemalloc.stop()
    largest = max(trace.size for trace in kept.traces)
    assert TLS_BUFFER_BYTES <= largest < 1.1 * TLS_BUFFER_BYTES


async def test_a_gateway_that_wants_its_session_first(simulator: RecordingSimulator, address: str) -> None:
    simulator.gateway.guard.needs_check = True
    async with opened(address, simulator) as gateway:
        assert (await gateway.fetch(METERS_REQUEST)).body
        assert gateway.requests == 3
        assert (await gateway.fetch(READINGS_REQUEST)).body
        assert gateway.requests == 4
        simulator.reboot()
        assert (await gateway.fetch(READINGS_REQUEST)).body
        assert gateway.requests == 7
    assert simulator.headers[-1]["cookie"].startswith("sessionId=")


async def test_the_session_outlives_a_broken_connection(simulator: RecordingSimulator, address: str) -> None:
    simulator.gateway.guard.needs_check = True
    async with opened(address, simulator, limits=SHORT_LIMITS) as gateway:
        await gateway.fetch(METERS_REQUEST, deadline=20)
        simulator.faults.add(READINGS_REQUEST.path, "hang", times=1)
        with pytest.raises(Unavailable):
            await gateway.fetch(READINGS_REQUEST)
        before = gateway.requests
        await gateway.fetch(READINGS_REQUEST, deadline=20)
        assert gateway.requests == before + 1


async def test_a_refused_token_is_renewed_once(simulator: RecordingSimulator, address: str) -> None:
    async with with_account(address, simulator) as gateway:
        await gateway.fetch(METERS_REQUEST)
        simulator.revoke_tokens()
        assert (await gateway.fetch(METERS_REQUEST)).body
        assert simulator.count("/login/login.json") == 2
        assert gateway.tokens.problem is None


async def test_ten_refusals_at_once_cause_one_renewal(simulator: RecordingSimulator, address: str) -> None:
    token = simulator.token()
    simulator.revoke_tokens()
    async with with_account(address, simulator, token=SecretStr(token)) as gateway:
        await gateway.fetch(INFO_REQUEST)
        answers = await asyncio.gather(*(gateway.fetch(METERS_REQUEST) for _ in range(10)))
        assert all(answer.body for answer in answers)
    assert simulator.count("/login/login.json") == 1


async def test_a_refused_token_without_an_account(simulator: RecordingSimulator, address: str) -> None:
    async with opened(address, simulator) as gateway:
        simulator.revoke_tokens()
        for _ in range(10):
            with pytest.raises(TokenRejected, match="the gateway refuses the token: get a token at https") as error:
                await gateway.fetch(METERS_REQUEST)
            assert gateway.tokens.problem == advice(error.value)
        assert simulator.count() == 2  # the gateway gets no requests either


async def test_even_a_new_token_is_refused(simulator: RecordingSimulator, address: str) -> None:
    simulator.gateway.guard.revoke("99999999")
    async with with_account(address, simulator) as gateway:
        for _ in range(10):
            with pytest.raises(Rejected) as error:
                await gateway.fetch(METERS_REQUEST)
            advice(error.value)
    assert simulator.count("/login/login.json") == 1


@pytest.mark.parametrize("fault", ["503", "500", "302", "drop"])
async def test_a_gateway_too_busy_to_judge_costs_no_login(
    simulator: RecordingSimulator, address: str, fault: str
) -> None:
    simulator.faults.add("check", fault)
    simulator.faults.add(METERS_REQUEST.path, "401")
    async with with_account(address, simulator) as gateway:
        with pytest.raises(Unavailable):
            await gateway.fetch(METERS_REQUEST)
    assert simulator.count("/login/login.json") == 1


async def test_info_that_is_refused(simulator: RecordingSimulator, address: str) -> None:
    simulator.faults.add(INFO_REQUEST.path, "401")
    async with opened(address, simulator) as gateway:
        with pytest.raises(EndpointRefused):
            await gateway.fetch(INFO_REQUEST)
        assert gateway.requests == 1


@pytest.mark.parametrize(
    ("order", "kind"),
    [
        (("login", "wrong_password"), WrongPassword),
        (("login", "mfa"), MultiFactor),
        (("login", "blocked"), Blocked),
        (("login", "406"), CloudUnavailable),
        (("login", "html"), CloudUnavailable),
        (("login", "huge"), CloudUnavailable),
        (("login", "deep"), CloudUnavailable),
        (("cloud", "503"), CloudUnavailable),
        (("cloud", "drop"), CloudUnavailable),
        (("tokens", "not_your_serial"), NotOnAccount),
        (("tokens", "wrong_aud"), TokenRejected),
        (("tokens", "expired"), TokenRejected),
    ],
)
async def test_states_of_the_account(
    simulator: RecordingSimulator,
    address: str,
    caplog: pytest.LogCaptureFixture,
    order: tuple[str, str],
    kind: type[BridgeError],
) -> None:
    simulator.faults.add(*order)
    async with with_account(address, simulator) as gateway:
        for _ in range(5):
            with pytest.raises(kind) as error:
                await gateway.fetch(METERS_REQUEST)
            assert gateway.tokens.problem == advice(error.value)
    assert simulator.count("/login/login.json") <= 2  # one attempt, perhaps with its one retry
    assert "WARNING" not in [record.levelname for record in caplog.records]  # the caller reports the error


@pytest.mark.parametrize("fault", ["500", "html", "empty", "truncated"])
async def test_a_token_comes_from_either_endpoint_of_the_cloud(
    simulator: RecordingSimulator, address: str, fault: str
) -> None:
    simulator.faults.add("tokens", fault)
    async with with_account(address, simulator) as gateway:
        assert (await gateway.fetch(METERS_REQUEST)).body
    assert simulator.count("/entrez-auth-token") == 1


class Kept:
    """A token store in memory."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def load_tokens(self, serial: str) -> tuple[SecretStr | None, CloudPause | None]:
        del serial
        return None, None

    def save_token(self, serial: str, token: SecretStr) -> None:
        del serial
        self.tokens.append(token.get_secret_value())

    def save_pause(self, serial: str, pause: CloudPause | None) -> None:
        del serial, pause


async def test_renewal_goes_on_in_the_background(simulator: RecordingSimulator, address: str) -> None:
    old = simulator.token(iat=0)
    kept = Kept()
    async with serve(simulator, tls=False) as cloud:
        own = GatewaySettings(host=address, token=SecretStr(old), username=USER, password=SecretStr(PASSWORD))
        async with open_gateway(own, cloud_at(f"http://{cloud}"), store=kept, limits=QUICK_LIMITS) as gateway:
            gateway.identify(simulator.serial)
            await gateway.fetch(METERS_REQUEST)
            while not kept.tokens:
                await gateway.fetch(METERS_REQUEST)
            await gateway.fetch(METERS_REQUEST)
    assert simulator.headers[-1]["authorization"] == f"Bearer {kept.tokens[0]}"
    assert len(kept.tokens) == 1


async def test_the_clouds_certificate_is_verified(
    simulator: RecordingSimulator, address: str, tmp_path: Path
) -> None:
    certificate = issued(ec.generate_private_key(ec.SECP256R1()), "cloud")
    file = tmp_path / "ca.pem"
    file.write_bytes(certificate[0])
    async with serve(simulator, tls=True, certificate=certificate) as cloud:
        own = GatewaySettings(host=address, username=USER, password=SecretStr(PASSWORD))
        async with open_gateway(
            own, cloud_at(f"https://{cloud}"), limits=QUICK_LIMITS, cloud_limits=QUICK_CLOUD
        ) as gateway:
            gateway.identify(simulator.serial)
            with pytest.raises(CloudUnavailable, match="can't be verified"):
                await gateway.fetch(METERS_REQUEST)
        assert simulator.count() == 0
        async with open_gateway(own, cloud_at(f"https://{cloud}", ca_file=file), limits=QUICK_LIMITS) as gateway:
            gateway.identify(simulator.serial)
            await gateway.fetch(METERS_REQUEST)


# --- firmware before 7 ---


async def test_legacy_firmware_wants_a_digest_and_no_token() -> None:
    simulator = RecordingSimulator("legacy")
    async with (
        serve(simulator, tls=False) as address,
        opened(f"http://{address}", simulator, token=None) as gateway,
    ):
        await gateway.fetch(Request("/api/v1/production"))
        assert (await gateway.fetch(Request("/api/v1/production/inverters"))).body.startswith(b"[")
        with pytest.raises(EndpointRefused):
            await gateway.fetch(METERS_REQUEST)  # 3.18 answers 401 to everybody
    assert simulator.headers[-1]["authorization"].startswith('Digest username="envoy"')


async def test_no_token_ever_goes_over_plain_http(simulator: RecordingSimulator) -> None:
    async with serve(simulator, tls=False) as address, opened(f"http://{address}", simulator) as gateway:
        with pytest.raises(EndpointRefused):
            await gateway.fetch(METERS_REQUEST)
    assert "authorization" not in simulator.headers[0]


@pytest.mark.parametrize(
    "challenge",
    [
        'Digest realm="r", nonce="n", algorithm="ROT13"',
        'Digest realm="r", nonce="n", qop="auth-int"',
        'Digest realm="r"',
        "Digest nonsense",
        "Basic",
    ],
)
async def test_a_challenge_nobody_can_answer(challenge: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                head = f"HTTP/1.1 401 No\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n"
                writer.write(head.encode())
                await writer.drain()

    async with listening(refuse) as port:
        own = GatewaySettings(host=f"http://127.0.0.1:{port}")
        async with open_gateway(own, CloudSettings(), limits=QUICK_LIMITS) as gateway:
            gateway.identify("122125067699")
            for _ in range(2):
                with pytest.raises(EndpointRefused):
                    await gateway.fetch(METERS_REQUEST)


NEIGHBOURS = """\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.20     0x1         0x2         00:1D:C0:7f:b6:3b     *        eth0
192.168.1.21     0x1         0x0         00:00:00:00:00:00     *        eth0
192.168.1.22     0x1
"""


@pytest.mark.parametrize(
    ("peer", "mac"),
    [
        (("192.168.1.20", 443), "00:1d:c0:7f:b6:3b"),
        (("192.168.1.20", 80), "00:1d:c0:7f:b6:3b"),
        (("192.168.1.20", 8443), None),
        (("192.168.1.21", 443), None),
        (("192.168.1.22", 443), None),
        (("192.168.1.2", 443), None),
        (("fe80::1", 443, 0, 2), None),
        ("/run/gateway.sock", None),
        (None, None),
    ],
)
def test_the_mac_address_of_a_neighbour(tmp_path: Path, peer: object, mac: str | None) -> None:
    """A port of its own is that of a tunnel or of a machine that stands for several gateways."""
    (tmp_path / "arp").write_text(NEIGHBOURS)
    assert hardware_address(peer, tmp_path / "arp") == mac
    assert hardware_address(peer, tmp_path / "none") is None
