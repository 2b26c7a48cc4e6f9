"""What the service knows of the broker: connect, send, close, and the policy of trying again."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
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
from bridge.mqtt.suspects import Suspects
from bridge.mqtt.welcome import NoMqtt5, NoQos, NoRetain, judge

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 2.0
SETTLED = 10.0
"""Seconds; a connection that was lost sooner hardly counts as one."""
TWINS = 5.0
"""Nor does one that lasted no longer than so many of our pauses: two clients of one id take turns like that."""
CAREFUL = 2
"""Connections lost so soon until we look for what the broker closes them over."""
LONGEST_PAUSE = 300.0
TURMOIL, TURMOIL_PAUSE = 5, 3.0
"""Seconds between attempts while a cluster that has lost a server shuts the door a few times; then it is well."""
HASTE = 2.0
"""Seconds for a server of a cluster to let us in, doubled every other round: another one may be ready sooner."""
RULES = "check its access rules and its limits"


class Broker:
    """The broker, over the one connection that there is at a time; of several brokers the one that can be had."""

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
        self._diallers = deque(Dialler(one, client_id, will, keepalive, connect_timeout) for one in settings.each)
        """the one in use first"""
        protocols = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}
        self._manner = Manner(protocols[settings.protocol], min(1, will.qos))
        self._on_message = on_message
        self._subscriptions = tuple(subscriptions)
        self._timeout = connect_timeout
        self._link: Link | None = None
        self._complaints: set[tuple[str, str]] = set()
        self._told: set[str] = set()
        self._flaps = 0
        self._rounds = 0
        self._paused = 0.0
        self._careful = False
        self._suspects = Suspects()
        self._deaf = False

    @property
    def _dialler(self) -> Dialler:
        return self._diallers[0]

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

    @property
    def lasted(self) -> bool:
        """Whether the connection that ended last was a success."""
        link = self._link
        least = max(SETTLED, TWINS * self._paused)
        return link is not None and not link.taken_over and not link.overfed and link.lasted > least

    async def connect(self) -> None:
        """One attempt at each broker, and one more in each simpler manner that it may understand.

        Raises:
            Unavailable: nobody there, or not now.
            Rejected: the broker won't have us, and the text says what to do.
        """
        self.abort()
        for left in reversed(range(len(self._diallers))):
            try:
                return await self._connect()
            except (Unavailable, Rejected) as error:
                self._diallers.rotate(-1)
                if not left:
                    self._rounds += 1
                    raise
                _log.info("%s; trying %s", error, self.address)
        return None

    async def _connect(self) -> None:
        manner = self._manner
        while self._link is None:
            try:
                self._link = await self._open(manner)
            except (NoMqtt5, NoQos, NoRetain) as error:
                lower = error.lower(manner)
                if lower == manner:
                    raise
                manner = lower
        self._manner, self._rounds = manner, 0
        _log.info("Connected to %s with MQTT %s", self.address, self.protocol)
        if not self.limits.retain:
            self._say(f"{self.address} keeps no retained messages: subscribers see nothing until it is sent again")

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
        if self._suspects.guilty(message.topic):
            raise MessageRefused(f"{message.topic} is left out: the broker closes the connection over it; {RULES}")
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
            self._look_back(link)
        await self.connect()

    def _look_back(self, link: Link) -> None:
        """What an ended connection means for the next one.

        Raises:
            Unavailable, Rejected: wait first, and tell why.
        """
        lasted, self._link = self.lasted, None
        if lasted:
            self._flaps, self._paused, self._careful, self._deaf = 0, 0.0, False, False
            self._told.clear()
            self._suspects.forget()
            return
        self._flaps += 1
        self._careful |= self._flaps >= CAREFUL
        self._deaf |= link.overfed
        if self._suspects.accuse(link.suspect):
            self._flaps = 1  # it may be over now
        reason = f"{self.address}: {link.ended.result()}"
        self._diallers.rotate(-1)
        if link.taken_over:
            raise Rejected(reason)
        if link.overfed:
            raise Unavailable(f"{reason}; nothing is subscribed to any more")
        raise Unavailable(
            f"{reason} after a moment; does another client use the same client id (BRIDGE_MQTT__CLIENT_ID)?"
        )

    async def _open(self, manner: Manner) -> Link:
        suspects = self._suspects if self._careful else None
        patience = self._patience
        link = Link(await self._dialler.dial(manner), self._on_message, self._complaints, suspects=suspects)
        try:
            link.start()
            async with asyncio.timeout(patience):
                judge(self._dialler.address, self._dialler.will.topic, await link.answer, link)
            await link.subscribe(self._wanted())
        except TimeoutError:
            link.hang_up("no answer")  # a broker may wait for the rest of a CONNECT it takes for an older one
            if patience < self._timeout:
                raise Unavailable(f"{self.address}: no answer within {patience:g} s") from None
            raise NoMqtt5(str(self._dialler.no_answer())) from None
        except BaseException:
            link.hang_up("given up")
            raise
        return link

    @property
    def _patience(self) -> float:
        """Seconds until an answer has to be there."""
        if len(self._diallers) == 1:
            return self._timeout
        return min(self._timeout, HASTE * 2.0 ** min(self._rounds // 2, 5))

    def _wanted(self) -> Iterator[str]:
        for topic in () if self._deaf else self._subscriptions:
            if self._suspects.guilty(topic):
                self._say(f"the broker closes the connection when we subscribe to {topic}, so we do not; {RULES}")
            else:
                yield topic

    def _pause(self, state: RetryCallState) -> float:
        """A wrong password does not become right by asking often, and some brokers ban who asks often."""
        rejected = state.outcome is not None and isinstance(state.outcome.exception(), Rejected)
        least, most = (60, LONGEST_PAUSE) if rejected else (1, LONGEST_PAUSE if self._flaps else 60)
        if len(self._diallers) > 1 and self._flaps <= TURMOIL and not rejected:
            most = TURMOIL_PAUSE
        growth = 2 ** min(self._flaps, 8)
        pause = wait_random_exponential(multiplier=least * growth, min=least, max=most)(state)
        self._paused = pause if self._flaps else 0.0
        return pause

    def _tell(self, state: RetryCallState) -> None:
        text = str(state.outcome.exception()) if state.outcome is not None else ""
        self._say(text, f"; trying again in {state.upcoming_sleep:.0f} s")

    def _say(self, text: str, more: str = "") -> None:
        """Aloud once, until a connection has lasted."""
        _log.log(logging.DEBUG if text in self._told else logging.WARNING, "%s%s", text, more)
        self._told.add(text)
