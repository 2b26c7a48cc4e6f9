"""What the service knows of the broker: connect, send, close, and the policy of trying again."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from paho.mqtt.enums import MQTTProtocolVersion
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
from bridge.mqtt.welcome import NoMqtt5, NoQos, judge

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 2.0


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
        self._flaps = 0

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
            except (NoMqtt5, NoQos) as error:
                lower = error.lower(manner)
                if lower == manner:
                    raise
                manner = lower
        self._manner = manner
        _log.info("Connected to %s with MQTT %s", self.address, self.protocol)

    async def reconnect(self) -> None:
        """Try until there is a connection.

        A house's broker may be gone for a week: only cancelling the task ends it, hence `stop_never`.
        """
        policy = AsyncRetrying(
            stop=stop_never,
            wait=self._pause,
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
        link = self._link
        if link is not None and not link.alive:
            self._link = None
            if link.taken_over:
                raise Rejected(f"{self.address}: {link.ended.result()}")
            if not link.settled:
                self._flaps += 1
                hint = "after a moment; does another client use the same client id (BRIDGE_MQTT__CLIENT_ID)?"
                raise Unavailable(f"{self.address}: {link.ended.result()} {hint}")
            self._flaps, self._told = 0, ""
        await self.connect()

    async def _open(self, manner: Manner) -> Link:
        link = Link(await self._dialler.dial(manner), self._on_message, self._complaints)
        try:
            link.start()
            async with asyncio.timeout(self._timeout):
                judge(self._dialler.address, await link.answer, link)
        except TimeoutError:
            link.hang_up("no answer")  # a broker may wait for the rest of a CONNECT it takes for an older one
            raise NoMqtt5(str(self._dialler.no_answer())) from None
        except BaseException:
            link.hang_up("given up")
            raise
        link.subscribe(self._subscriptions)
        return link

    def _pause(self, state: RetryCallState) -> float:
        """A wrong password does not become right by asking often, and some brokers ban who asks often."""
        if state.outcome is not None and isinstance(state.outcome.exception(), Rejected):
            return wait_random_exponential(multiplier=60, min=60, max=300)(state)
        return wait_random_exponential(multiplier=2 ** min(self._flaps, 6), min=1, max=60)(state)

    def _tell(self, state: RetryCallState) -> None:
        """Say it aloud once, not each time."""
        text = str(state.outcome.exception()) if state.outcome is not None else ""
        level = logging.DEBUG if text == self._told else logging.WARNING
        _log.log(level, "%s; trying again in %.0f s", text, state.upcoming_sleep)
        self._told = text
