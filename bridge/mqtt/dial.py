"""From a URL to a connected paho client: addresses, TLS, and what can go wrong, in the owner's words."""

import asyncio
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from socket import gaierror
from typing import Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, WebsocketConnectionError
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.config import MqttSettings
from bridge.model import BridgeError, Message, Rejected, Unavailable
from bridge.mqtt.pump import LARGEST

PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
TRANSPORTS: dict[str, Literal["tcp", "websockets", "unix"]] = {
    "mqtt": "tcp",
    "mqtts": "tcp",
    "ws": "websockets",
    "wss": "websockets",
    "unix": "unix",
}
WRONG_NAME = {62, 64}
"""OpenSSL's codes for another host name, another address."""
WRONG_TIME = {9, 10}
"""OpenSSL's codes for a certificate that is not valid yet, and for one that is no more."""
ADDRESSES = 3
"""A name may have several addresses; each may take the whole timeout."""
STUCK = 4
"""Threads that may hang in a connection attempt at a time: such a thread can't be stopped."""
THREAD = "mqtt-connect"


class Manner(NamedTuple):
    """How we speak to a broker; lowered where it does not understand."""

    protocol: MQTTProtocolVersion
    will_qos: int
    will_retain: bool = True

    @property
    def mqtt5(self) -> bool:
        return self.protocol == MQTTProtocolVersion.MQTTv5


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is. As text it shows neither user nor password."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def tls(self) -> bool:
        return self.scheme in {"mqtts", "wss"}

    @classmethod
    def of(cls, text: str) -> Self:
        url = urlsplit(text)
        if url.scheme == "unix":
            return cls("unix", unquote(url.path), 1, "")  # paho insists on a port
        return cls(url.scheme, url.hostname or "", url.port or PORTS[url.scheme], url.path or "/mqtt")

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def _plain(error: ssl.SSLError) -> str:
    """OpenSSL's reason without its source files."""
    return (error.reason or "unknown reason").replace("_", " ").lower()


def refused_tls(where: Address, reason: str) -> Rejected:
    """The broker does not like our side of TLS, mostly because it wants to see a certificate."""
    return Rejected(f"{where}: the broker refuses our TLS ({reason}): it may want BRIDGE_MQTT__CERT_FILE")


def _tls_problem(where: Address, error: ssl.SSLError) -> BridgeError:
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = f"the broker's certificate is not trusted: {error.verify_message.rstrip('.')}"
        if error.verify_code in WRONG_NAME:
            return Rejected(f"{where}: {problem}; name the broker in BRIDGE_MQTT__URL as its certificate does")
        if error.verify_code in WRONG_TIME:
            return Rejected(f"{where}: {problem}; renew it at the broker, unless this machine's clock is wrong")
        return Rejected(f"{where}: {problem}; set BRIDGE_MQTT__CA_FILE to the certificate of its CA")
    if "ALERT" in (error.reason or ""):
        return refused_tls(where, _plain(error))
    return Unavailable(f"{where}: no TLS connection: {_plain(error)}; does the broker speak TLS at this port?")


@dataclass(frozen=True, slots=True)
class Dialler:
    """Makes connections to one broker. `timeout` is for each step: an address, TLS, the broker's welcome."""

    settings: MqttSettings
    client_id: str
    will: Message
    keepalive: int
    timeout: float

    @property
    def address(self) -> Address:
        return Address.of(self.settings.url)

    async def dial(self, manner: Manner) -> Client:
        """A paho client that has sent its CONNECT.

        Raises:
            Unavailable: nobody there.
            Rejected: a certificate or a setting is wrong.
        """
        if sum(thread.name == THREAD for thread in threading.enumerate()) >= STUCK:
            raise Unavailable(f"{self.address}: earlier attempts still wait for an answer")
        client = self._client(manner)
        try:
            async with asyncio.timeout(self.timeout * ADDRESSES):
                problem = await _in_thread(lambda: self._connect(client), lambda: _drop(client))
        except TimeoutError:
            problem = self.no_answer()
        if problem is not None:
            raise problem
        return client

    def no_answer(self) -> Unavailable:
        return Unavailable(f"{self.address}: no answer within {self.timeout:g} s")

    def _client(self, manner: Manner) -> Client:
        settings, address = self.settings, self.address
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.client_id,
            clean_session=None if manner.mqtt5 else True,
            protocol=manner.protocol,
            transport=TRANSPORTS[address.scheme],
            reconnect_on_failure=False,
        )
        client.connect_timeout = self.timeout
        client.ws_set_options(path=address.path)
        client.will_set(self.will.topic, self.will.payload, manner.will_qos, retain=manner.will_retain)
        if settings.username is not None:
            password = settings.password
            client.username_pw_set(settings.username, password.get_secret_value() if password else None)
        return client

    def _connect(self, client: Client) -> BridgeError | None:
        """Runs in a thread. An error is returned: raised, its traceback would keep a half-open socket."""
        address = self.address
        try:
            if address.tls:
                client.tls_set_context(_tls(self.settings))
            client.connect(address.host, address.port, self.keepalive, properties=_announced(client))
        except Rejected as error:
            return error
        except (OSError, ValueError) as error:
            return self._explain(error)
        return None

    def _explain(self, error: OSError | ValueError) -> BridgeError:
        where = self.address
        match error:
            case ssl.SSLError():
                return _tls_problem(where, error)
            case gaierror():
                problem = f"the name {where.host} can't be resolved"
            case TimeoutError():
                return self.no_answer()
            case ConnectionRefusedError():
                problem = "connection refused: no broker listens there"
            case WebsocketConnectionError():
                problem = f"no WebSocket at path {where.path}"
            case OSError():
                problem = error.strerror or type(error).__name__
            case _:
                return Rejected(f"{where}: {error}: check BRIDGE_MQTT__URL")
        return Unavailable(f"{where}: {problem}")


async def _in_thread(work: Callable[[], BridgeError | None], too_late: Callable[[], None]) -> BridgeError | None:
    """A daemon thread: asyncio's own threads make a process wait at its end for a silent name server."""
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

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    return await done


def _announced(client: Client) -> Properties | None:
    """What we tell of ourselves; only MQTT 5 can."""
    if client.protocol != MQTTProtocolVersion.MQTTv5:
        return None
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's types end here
    properties.MaximumPacketSize = LARGEST
    return properties


def _drop(client: Client) -> None:
    sock = client.socket()
    if sock is not None:
        sock.close()


def _tls(settings: MqttSettings) -> ssl.SSLContext:
    """Read anew for each connection, so that renewed certificates count.

    Raises:
        Rejected: a file can't be used; the text names the setting.
    """
    setting = "BRIDGE_MQTT__CA_FILE"
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.ca_file is not None:
            # Python 3.13 asks for extensions that the CAs people make at home do not have
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if settings.cert_file is not None:
            setting = "BRIDGE_MQTT__CERT_FILE, BRIDGE_MQTT__KEY_FILE"
            # without a password OpenSSL would ask at the terminal
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    except ssl.SSLError as error:
        raise Rejected(f"{setting}: not usable as PEM files: {_plain(error)}") from None
    except OSError as error:
        raise Rejected(f"{setting}: {error.strerror}") from None
    return context
