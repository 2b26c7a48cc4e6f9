"""`check`, the broker's part: does it let us in, and does it take and give what we need?"""

import asyncio
import logging
import secrets
from contextlib import suppress

from bridge.commands.codes import REFUSED, UNAVAILABLE
from bridge.commands.report import Report, size
from bridge.config import Settings
from bridge.model import BridgeError, Message
from bridge.mqtt import Broker, MessageRefused
from bridge.service import names_of
from bridge.store import Store

PATIENCE = 5.0
"""Seconds until a message that has not come back is given up."""
ROOMY = 100_000
"""Bytes that the announcement of a large home takes."""
MQTT5 = "5"


class _Complaints(logging.Handler):
    """What a broker refuses after its welcome is known from the log alone. Each line sets `news`."""

    def __init__(self, news: asyncio.Event) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []
        self._news = news

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())
        self._news.set()

    def about(self, topic: str) -> str:
        return next((text for text in self._texts if topic in text), "")


class Trial:
    """One connection, one message there and back. Nothing of it stays."""

    def __init__(self, settings: Settings, store: Store, report: Report) -> None:
        self._report, self._mqtt, self._ha = report, settings.mqtt, settings.homeassistant
        bridge = names_of(settings).bridge
        self._mine = Message(f"{bridge}/check", secrets.token_hex(4), qos=1)
        self._gone = Message(self._mine.topic, "", qos=1)
        self._filter = f"{bridge}/+"
        self._news, self._returned = asyncio.Event(), False
        self._tells = False
        """whether this broker says so where it does not take a message"""
        self._complaints = _Complaints(self._news)
        own_id = self._mqtt.client_id or f"iqgateway2mqtt-{store.client_suffix()}"
        self._broker = Broker(
            self._mqtt,
            client_id=f"{own_id}-check",  # the service has the other one
            will=self._gone,
            on_message=self._received,
            subscriptions=[self._filter, *([] if self._ha.discovery == "off" else [self._birth])],
        )

    async def run(self) -> None:
        log = logging.getLogger("bridge.mqtt")
        log.addHandler(self._complaints)
        try:
            await self._broker.connect()
            self._tell_welcome()
            await self._exchange()
        except MessageRefused as error:
            self._report.problem("publish", str(error), REFUSED)
        except BridgeError as error:
            self._report.fault("connection", error)
        finally:
            self._broker.abort()
            log.removeHandler(self._complaints)

    @property
    def _birth(self) -> str:
        return f"{self._ha.prefix}/status"

    @property
    def _announcement(self) -> Message:
        """Clears what nobody has announced: without effect, but it shows whether we may write there."""
        place = "device" if self._ha.discovery == "device" else "sensor"
        return Message(f"{self._ha.prefix}/{place}/iqgateway2mqtt_check/config", "", qos=1)

    def _received(self, topic: str, payload: bytes, _retained: bool) -> None:
        if topic == self._mine.topic and payload == self._mine.payload.encode():
            self._returned = True
            self._news.set()

    def _tell_welcome(self) -> None:
        broker, limits = self._broker, self._broker.limits
        self._tells = broker.protocol == MQTT5 and limits.qos > 0
        self._report.ok("connection", f"{broker.address} lets us in, over MQTT {broker.protocol}")
        if broker.protocol != self._mqtt.protocol:
            advice = f"BRIDGE_MQTT__PROTOCOL={broker.protocol} spares a vain attempt at each connection"
            self._report.note("protocol", f"it does not speak MQTT {self._mqtt.protocol}; {advice}")
        most = "of any size" if limits.packet_size is None else f"up to {size(limits.packet_size)}"
        text = f"messages {most}, QoS {limits.qos}, {limits.window} unacknowledged at a time"
        if limits.packet_size is not None and limits.packet_size < ROOMY:
            self._report.note("limits", f"{text}; announcements of large homes are longer: allow {size(ROOMY)}")
        else:
            self._report.ok("limits", text)

    async def _exchange(self) -> None:
        sent = await self._broker.send(self._mine)
        if self._ha.discovery != "off":
            sent = sent and await self._broker.send(self._announcement)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._verdict()
        if not sent or not self._broker.connected:
            doubt = "some brokers do so where they do not let this user write or read"
            reason = await self._broker.lost()
            self._report.problem("publish", f"the connection ended: {reason}; {doubt}", UNAVAILABLE)
            return
        await self._broker.close(self._gone)  # all is acknowledged then
        self._tell_publish()
        if self._ha.discovery != "off":
            self._tell_discovery()

    async def _verdict(self) -> None:
        """Until the message is back, or is known not to come."""
        refused = (self._mine.topic, self._filter)
        while self._broker.connected and not self._returned and not any(map(self._complaints.about, refused)):
            self._news.clear()
            await self._news.wait()

    def _tell_publish(self) -> None:
        base, about = f"{self._mqtt.root}/#", self._complaints.about
        if self._returned:
            self._report.ok("publish", f"{self._mine.topic}: there, back and cleared")
        elif complaint := about(self._mine.topic):
            self._report.problem("publish", f"{complaint}; allow this user to write to {base}", REFUSED)
        elif self._tells:
            self._report.ok("publish", f"{self._mine.topic}: taken and cleared; this user may not read it")
        else:
            doubt = f"this user may not write to {base}, or not read it: a broker like this one never says which"
            self._report.problem("publish", f"{self._mine.topic} did not come back: {doubt}", REFUSED)

    def _tell_discovery(self) -> None:
        prefix = f"{self._ha.prefix}/#"
        if complaint := self._complaints.about(self._announcement.topic):
            advice = f"allow this user to write to {prefix}, or set BRIDGE_HOMEASSISTANT__DISCOVERY=off"
            self._report.problem("discovery", f"{complaint}; {advice}", REFUSED)
        elif self._tells:
            self._report.ok("discovery", f"this user may write to {prefix}")
        else:
            self._report.note("discovery", f"may this user write to {prefix}? A broker like this one never says")
        if complaint := self._complaints.about(self._birth):
            advice = "Home Assistant's restarts will not be noticed; allow this user to read it"
            self._report.note("discovery", f"{complaint}; {advice}")


async def check_broker(settings: Settings, store: Store, report: Report) -> None:
    report.section(f"Broker {settings.mqtt.url}")
    await Trial(settings, store, report).run()
