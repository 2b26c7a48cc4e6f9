"""What the service knows of the broker: connect, send, close, and the policy of trying again."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_never,
    wait_random_exponential,
)

from bridge.config import MqttSettings
from bridge.model import Message, Rejected, Unavailable
from bridge.mqtt.dial import Dialler, Manner
from bridge.mqtt.link import Limits, Link, MessageRefused, OnMessage

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 2.0
REFUSALS = {
    0x85: "the broker does not accept the client id: set BRIDGE_MQTT__CLIENT_ID",
    0x86: "wrong user name or password: set BRIDGE_MQTT__USERNAME and BRIDGE_MQTT__PASSWORD",
    0x87: "not authorized: check BRIDGE_MQTT__USERNAME, BRIDGE_MQTT__PASSWORD and the broker's access rules",
    0x8A: "the broker has banned this client",
    0x8C: "the broker wants another way to log in than user name and password",
    0x90: "the broker does not accept the topic of the last will: check BRIDGE_MQTT__BASE_TOPIC",
    0x9A: "the broker keeps no retained messages, which the bridge needs: allow them (retain_available)",
    0x9C: "the broker sends its clients to another server: set BRIDGE_MQTT__URL",
    0x9D: "the broker has moved: set BRIDGE_MQTT__URL",
}
"""What the owner must do about a CONNACK's reason code; the other codes may pass by themselves."""


class _NoMqtt5(Unavailable):
    @staticmethod
    def lower(manner: Manner) -> Manner:
        return manner._replace(protocol=MQTTProtocolVersion.MQTTv311)


class _NoQos(Unavailable):
    @staticmethod
    def lower(manner: Manner) -> Manner:
        return manner._replace(will_qos=0)


class Broker:
    """The broker, over the one connection that there is at a time."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        client_id: str,
        will: Message,
        on_message: OnMessage,
        subscriptions: Sequence[str] = (),
        keepalive: int = 60,
        connect_timeout: float = 10,
    ) -> None:
        self._dialler = Dialler(settings, client_id, will, keepalive, connect_timeout)
        protocols = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}
        self._manner = Manner(protocols[settings.protocol], min(1, will.qos))
        self._on_message = on_message
        self._subscriptions = tuple(subscriptions)
        self._timeout = connect_timeout
        self._link: Link | None = None
        self._complaints: set[tuple[str, str]] = set()
        self._told = ""

    @property
    def address(self) -> str:
        return str(self._dialler.address)

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.alive

    @property
    def limits(self) -> Limits:
        return self._link.limits if self._link is not None else Limits()

    @property
    def protocol(self) -> str:
        """What is spoken, or would be spoken first."""
        return "5" if self._manner.mqtt5 else "3.1.1"

    async def connect(self) -> None:
        """One attempt, and one more in each simpler manner that the broker may understand.

        Raises:
            Unavailable: nobody there, or not now.
            Rejected: the broker won't have us, and the text says what to do.
        """
        self.abort()
        manner = self._manner
        while self._link is None:
            try:
                self._link = await self._open(manner)
            except (_NoMqtt5, _NoQos) as error:
                lower = error.lower(manner)
                if lower == manner:
                    raise
                manner = lower
        self._manner, self._told = manner, ""
        _log.info("Connected to %s with MQTT %s", self.address, self.protocol)

    async def reconnect(self) -> None:
        """Try until there is a connection.

        A house's broker may be gone for a week: only cancelling the task ends it, hence `stop_never`.
        """
        policy = AsyncRetrying(
            stop=stop_never,
            wait=_pause,
            retry=retry_if_exception_type((Unavailable, Rejected)),
            reraise=True,
            before_sleep=self._tell,
        )
        await policy(self._attempt)

    async def lost(self) -> str:
        """Wait until the connection has ended; the reason in plain words."""
        return await asyncio.shield(self._link.ended) if self._link is not None else "not connected"

    async def send(self, message: Message) -> bool:
        """Hand over one retained message as soon as the broker can take it; `False` if it is gone.

        Raises:
            MessageRefused: this message can't be sent to this broker.
        """
        return self._link is not None and await self._link.send(message)

    async def close(self, last: Message | None = None) -> None:
        """Publish the last message, await its acknowledgement and take leave; no will is published then."""
        link = self._link
        if link is None or not link.alive:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                with suppress(MessageRefused):
                    await (link.send(last) if last is not None else asyncio.sleep(0))
                await link.leave()
                await self.lost()
        self.abort()

    def abort(self) -> None:
        """Drop the connection at once, as a crash would: the broker publishes the will."""
        if self._link is not None:
            self._link.hang_up("closed by us")
            self._link = None

    async def _attempt(self) -> None:
        """A connection that did not last counts as a failure, lest two clients of one id chase each other."""
        link, self._link = self._link, None
        if link is not None and not link.alive and (link.taken_over or not link.settled):
            kind = Rejected if link.taken_over else Unavailable
            raise kind(f"{self.address}: {link.ended.result()}")
        await self.connect()

    async def _open(self, manner: Manner) -> Link:
        link = Link(await self._dialler.dial(manner), self._on_message, self._complaints)
        try:
            link.start()
            async with asyncio.timeout(self._timeout):
                self._judge(await link.answer, link)
        except TimeoutError:
            link.hang_up("no answer")  # a broker may wait for the rest of a CONNECT it takes for an older one
            raise _NoMqtt5(str(self._dialler.no_answer())) from None
        except BaseException:
            link.hang_up("given up")
            raise
        link.subscribe(self._subscriptions)
        return link

    def _judge(self, reason: ReasonCode | None, link: Link) -> None:
        where = self.address
        if reason is None:
            raise self._speechless(link.ended.result())
        if reason == "Unsupported protocol version":
            raise _NoMqtt5(f"{where}: the broker speaks neither MQTT 5 nor 3.1.1")
        if reason == "QoS not supported":
            raise _NoQos(f"{where}: the broker refuses a last will of any QoS")
        if reason.value in REFUSALS:
            raise Rejected(f"{where}: {REFUSALS[reason.value]}")
        if reason.is_failure:
            raise Unavailable(f"{where}: the broker says: {reason}")
        if not link.limits.retain:
            raise Rejected(f"{where}: {REFUSALS[0x9A]}")

    def _speechless(self, text: str) -> Unavailable | Rejected:
        """It closed without an answer: what brokers do that do not know MQTT 5, and others."""
        if "alert" in text.lower():
            problem = f"the broker refuses our TLS ({text}): it may want BRIDGE_MQTT__CERT_FILE"
            return Rejected(f"{self.address}: {problem}")
        return _NoMqtt5(f"{self.address}: no MQTT answer ({text}): is it an MQTT port, and does it want TLS?")

    def _tell(self, state: RetryCallState) -> None:
        """Say it aloud once, not each time."""
        text = str(state.outcome.exception()) if state.outcome is not None else ""
        level = logging.DEBUG if text == self._told else logging.WARNING
        _log.log(level, "%s; trying again in %.0f s", text, state.upcoming_sleep)
        self._told = text


def _pause(state: RetryCallState) -> float:
    """A wrong password does not become right by asking often, and some brokers ban who asks often."""
    if state.outcome is not None and isinstance(state.outcome.exception(), Rejected):
        return wait_random_exponential(multiplier=60, min=60, max=300)(state)
    return wait_random_exponential(multiplier=1, min=1, max=60)(state)
