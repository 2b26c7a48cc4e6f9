"""Connects to a broker: address, TLS, the CONNECT packet and its answer, and errors that say what to do."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from socket import gaierror
from typing import Literal, NamedTuple, Self, cast
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, WebsocketConnectionError
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridge.model import BridgeError, Message, Rejected, Unavailable
from bridge.mqtt.loop import MAX_RECEIVED_BYTES, BoundedClient
from bridge.settings import MqttSettings

BROKER_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
TRANSPORTS: dict[str, Literal["tcp", "websockets", "unix"]] = {
    "mqtt": "tcp",
    "mqtts": "tcp",
    "ws": "websockets",
    "wss": "websockets",
    "unix": "unix",
}
WRONG_NAME_CODES = {62, 64}
"""OpenSSL's codes for a certificate with another host name or address."""
WRONG_TIME_CODES = {9, 10}
"""OpenSSL's codes for a certificate that is not yet valid, and for an expired one."""
MAX_ADDRESSES = 3
"""Addresses of one name that there is time for; each may take the whole timeout."""
MAX_HANGING_THREADS = 4
"""Threads that may hang in a connection attempt at a time: a thread can't be stopped."""
THREAD_NAME = "mqtt-connect"
MAX_UNACKNOWLEDGED = 20
"""QoS 1 messages that may be unacknowledged; a broker may ask for less."""


class ProtocolOptions(NamedTuple):
    """How to speak to a broker. See `UnsupportedOption`."""

    protocol: MQTTProtocolVersion
    will_qos: int
    will_retain: bool = True

    @property
    def mqtt5(self) -> bool:
        """Whether MQTT 5 is spoken, else MQTT 3.1.1."""
        return self.protocol == MQTTProtocolVersion.MQTTv5


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is. As text it shows neither user nor password."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.scheme in {"mqtts", "wss"}

    @classmethod
    def of(cls, text: str) -> Self:
        """The address in a URL."""
        url = urlsplit(text)
        if url.scheme == "unix":
            return cls("unix", unquote(url.path), 1, "")  # paho requires a port
        return cls(url.scheme, url.hostname or "", url.port or BROKER_PORTS[url.scheme], url.path or "/mqtt")

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def _plain(error: ssl.SSLError) -> str:
    """OpenSSL's reason without its source files."""
    return (error.reason or "unknown reason").replace("_", " ").lower()


def refused_tls(address: BrokerAddress, reason: str) -> Rejected:
    """The error for a broker that ends the TLS handshake, mostly because it wants a client certificate."""
    return Rejected(f"{address}: the broker refuses our TLS ({reason}): it may want BRIDGE_MQTT__CERT_FILE")


def _tls_problem(address: BrokerAddress, error: ssl.SSLError) -> BridgeError:
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = f"the broker's certificate is not trusted: {error.verify_message.rstrip('.')}"
        if error.verify_code in WRONG_NAME_CODES:
            return Rejected(f"{address}: {problem}; name the broker in BRIDGE_MQTT__URL as its certificate does")
        if error.verify_code in WRONG_TIME_CODES:
            return Rejected(f"{address}: {problem}; renew it at the broker, unless this machine's clock is wrong")
        return Rejected(f"{address}: {problem}; set BRIDGE_MQTT__CA_FILE to the certificate of its CA")
    if "ALERT" in (error.reason or ""):
        return refused_tls(address, _plain(error))
    return Unavailable(f"{address}: no TLS connection: {_plain(error)}; does the broker speak TLS at this port?")


@dataclass(frozen=True, slots=True)
class Connector:
    """Makes connections to one broker. `timeout` (seconds) is for each step: an address, TLS, the CONNACK."""

    settings: MqttSettings
    client_id: str
    will: Message | None
    keepalive: int
    timeout: float

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress.of(self.settings.url)

    async def connect(self, options: ProtocolOptions) -> BoundedClient:
        """Connect, and return a paho client that has sent its CONNECT packet.

        Raises:
            Unavailable: nothing answers.
            Rejected: a certificate or a setting is wrong.
        """
        if sum(thread.name == THREAD_NAME for thread in threading.enumerate()) >= MAX_HANGING_THREADS:
            raise Unavailable(f"{self.address}: earlier attempts are still waiting for an answer")
        client = self._client(options)
        try:
            async with asyncio.timeout(self.timeout * MAX_ADDRESSES):
                problem = await _in_thread(lambda: self._connect(client), lambda: _drop(client))
        except TimeoutError:
            problem = self.timeout_error()
        if problem is not None:
            raise problem
        return client

    def timeout_error(self) -> Unavailable:
        return Unavailable(f"{self.address}: no answer within {self.timeout:g} s")

    def _client(self, options: ProtocolOptions) -> BoundedClient:
        settings, address = self.settings, self.address
        client = BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id=self.client_id,
            clean_session=None if options.mqtt5 else True,
            protocol=options.protocol,
            transport=TRANSPORTS[address.scheme],
            reconnect_on_failure=False,
        )
        client.connect_timeout = self.timeout
        client.ws_set_options(path=address.path)
        if will := self.will:
            client.will_set(will.topic, will.payload, options.will_qos, retain=options.will_retain)
        if settings.username is not None:
            password = settings.password
            client.username_pw_set(settings.username, password.get_secret_value() if password else None)
        return client

    def _connect(self, client: Client) -> BridgeError | None:
        """Connect, in a thread. An error is returned: if raised, its traceback would keep a half-open socket."""
        address = self.address
        try:
            if address.tls:
                client.tls_set_context(_tls(self.settings))
            client.connect(address.host, address.port, self.keepalive, properties=_connect_properties(client))
        except Rejected as error:
            return error
        except (OSError, ValueError) as error:
            return self._explain(error)
        return None

    def _explain(self, error: OSError | ValueError) -> BridgeError:
        address = self.address
        match error:
            case ssl.SSLError():
                return _tls_problem(address, error)
            case gaierror():
                problem = f"the name {address.host} can't be resolved"
            case TimeoutError():
                return self.timeout_error()
            case ConnectionRefusedError():
                problem = "connection refused: no broker listens there"
            case WebsocketConnectionError():
                problem = f"no WebSocket at path {address.path}"
            case OSError():
                problem = error.strerror or type(error).__name__
            case _:
                return Rejected(f"{address}: {error}: check BRIDGE_MQTT__URL")
        return Unavailable(f"{address}: {problem}")


async def _in_thread(work: Callable[[], BridgeError | None], too_late: Callable[[], None]) -> BridgeError | None:
    """Run `work` in a daemon thread. `too_late` is called if nobody waits for the result any more.

    With asyncio's own threads, a process that ends would wait for a name server that does not answer.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[BridgeError | None] = loop.create_future()

    def deliver(problem: BridgeError | None, fault: Exception | None) -> None:
        if done.cancelled():
            too_late()
        elif fault is not None:
            done.set_exception(fault)
        else:
            done.set_result(problem)

    def run() -> None:
        problem, fault = None, None
        try:
            problem = work()
        except Exception as error:  # noqa: BLE001 - it is raised where the thread was started
            fault = error
        try:
            loop.call_soon_threadsafe(deliver, problem, fault)
        except RuntimeError:  # the loop is closed
            too_late()

    threading.Thread(target=run, name=THREAD_NAME, daemon=True).start()
    return await done


def _connect_properties(client: Client) -> Properties | None:
    """The properties of CONNECT, which only MQTT 5 has."""
    if client.protocol != MQTTProtocolVersion.MQTTv5:
        return None
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's types end here
    properties.MaximumPacketSize = MAX_RECEIVED_BYTES
    return properties


def _drop(client: Client) -> None:
    sock = client.socket()
    if sock is not None:
        sock.close()


def _tls(settings: MqttSettings) -> ssl.SSLContext:
    """The TLS context, read again for each connection, so that renewed certificates are used.

    Raises:
        Rejected: a file can't be used; the text names the setting.
    """
    setting = "BRIDGE_MQTT__CA_FILE"
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.ca_file is not None:
            # Python 3.13 requires extensions that home-made CAs do not have
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if settings.cert_file is not None:
            setting = "BRIDGE_MQTT__CERT_FILE, BRIDGE_MQTT__KEY_FILE"
            # without a password OpenSSL would ask on the terminal
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    except ssl.SSLError as error:
        raise Rejected(f"{setting}: not usable as PEM files: {_plain(error)}") from None
    except OSError as error:
        raise Rejected(f"{setting}: {error.strerror}") from None
    return context


CONNACK_REFUSALS = {
    0x85: "the broker does not accept the client id: set BRIDGE_MQTT__CLIENT_ID",
    0x86: "wrong user name or password: set BRIDGE_MQTT__USERNAME and BRIDGE_MQTT__PASSWORD",
    0x87: "not authorized: check BRIDGE_MQTT__USERNAME, BRIDGE_MQTT__PASSWORD and the broker's access rules",
    0x8A: "the broker has banned this client",
    0x8C: "the broker wants another login than user name and password",
    0x90: "the broker does not accept the topic of the last will: check BRIDGE_MQTT__BASE_TOPIC",
    0x9C: "the broker sends its clients to another server: set BRIDGE_MQTT__URL",
    0x9D: "the broker has moved: set BRIDGE_MQTT__URL",
}
"""Reason codes of a CONNACK that the owner must do something about. The others may be temporary."""


class UnsupportedOption(Unavailable):
    """The broker does not support an option of the connection. `simpler` gives the options to try instead."""

    def __init__(self, text: str, simpler: "Simplify") -> None:
        super().__init__(text)
        self.simpler = simpler


Simplify = Callable[[ProtocolOptions], ProtocolOptions]


def with_older_mqtt(options: ProtocolOptions) -> ProtocolOptions:
    """The same options with MQTT 3.1.1."""
    return options._replace(protocol=MQTTProtocolVersion.MQTTv311)


UNSUPPORTED: Mapping[int, tuple[str, Simplify]] = {
    0x84: ("the broker speaks neither MQTT 5 nor 3.1.1", with_older_mqtt),
    0x9B: ("the broker refuses a last will of any QoS", lambda options: options._replace(will_qos=0)),
    0x9A: ("the broker refuses a last will, retained or not", lambda options: options._replace(will_retain=False)),
}
"""Reason codes of a CONNACK for unsupported options: an error text, and a function that gives simpler options."""


def check_connack(address: BrokerAddress, will: Message | None, answer: ReasonCode | None, ended: str) -> None:
    """Check the answer to CONNECT. It is `None` if the connection was closed without one, for the reason `ended`.

    Raises:
        UnsupportedOption: simpler options may do.
        Unavailable: the broker can't be used now.
        Rejected: the owner must do something.
    """
    if answer is None:
        raise _closed_before_connack(address, will, ended)
    if answer.value in UNSUPPORTED:
        text, simpler = UNSUPPORTED[answer.value]
        raise UnsupportedOption(f"{address}: {text}", simpler)
    if answer.value in CONNACK_REFUSALS:
        raise Rejected(f"{address}: {CONNACK_REFUSALS[answer.value]}")
    if answer.is_failure:
        raise Unavailable(f"{address}: the broker says: {answer}")


def _closed_before_connack(address: BrokerAddress, will: Message | None, ended: str) -> BridgeError:
    """The error for a connection that was closed before CONNACK, as brokers without MQTT 5 do."""
    if "alert" in ended.lower():  # OpenSSL's text: paho gives no code
        return refused_tls(address, ended)
    wish = "BRIDGE_MQTT__CERT_FILE" if address.tls else "TLS"
    doubt = ", and does it accept a . in topics (BRIDGE_MQTT__BASE_TOPIC)" if will and "." in will.topic else ""
    text = f"{address}: no MQTT answer ({ended}): is it an MQTT port, and does it want {wish}{doubt}?"
    return UnsupportedOption(text, with_older_mqtt)


class MessageRefused(BridgeError):
    """This message can't be sent to this broker; others can."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of the broker: bytes of a packet, unacknowledged messages, QoS, and whether it retains messages."""

    packet_size: int | None = None
    window: int = MAX_UNACKNOWLEDGED
    qos: int = 1
    retain: bool = True

    @classmethod
    def of(cls, properties: Properties | None) -> Self:
        """The limits in the properties of a CONNACK."""
        return cls(
            packet_size=getattr(properties, "MaximumPacketSize", None),
            window=min(MAX_UNACKNOWLEDGED, getattr(properties, "ReceiveMaximum", MAX_UNACKNOWLEDGED)),
            qos=min(1, getattr(properties, "MaximumQoS", 1)),
            retain=bool(getattr(properties, "RetainAvailable", True)),
        )

    def check(self, message: Message, qos: int, properties: Properties | None) -> None:
        """Check that the broker accepts a message of this size; only MQTT 5 has such a limit.

        Raises:
            MessageRefused: it is too large; the broker would close the connection because of it.
        """
        if self.packet_size is None:
            return
        size = _packet_size(message, qos, properties)
        if size > self.packet_size:
            raise MessageRefused(
                f"{message.topic}: {size} bytes, but the broker accepts no more than {self.packet_size}: "
                "allow larger messages there"
            )


def _packet_size(message: Message, qos: int, properties: Properties | None) -> int:
    """Bytes of the whole PUBLISH packet in MQTT 5."""
    packed = cast("bytes", properties.pack()) if properties is not None else b"\0"  # type: ignore[no-untyped-call]
    mid = 2 if qos else 0
    rest = 2 + len(message.topic.encode()) + mid + len(packed) + len(message.payload.encode())
    return 1 + max(1, (rest.bit_length() + 6) // 7) + rest
