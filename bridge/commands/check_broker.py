"""The part of `check` about the broker: whether it accepts the bridge, its messages and its subscriptions."""

import asyncio
import secrets
from contextlib import suppress

from bridge.commands.report import EXIT_REFUSED, EXIT_UNAVAILABLE, Report, size
from bridge.commands.session import CommandTiming
from bridge.model import BridgeError, Message
from bridge.mqtt import Broker, MessageRefused
from bridge.service.leftovers import names_of
from bridge.settings import Settings
from bridge.store import Store

LARGE_MESSAGE_BYTES = 100_000
"""Size of the discovery message of a large home."""
MQTT5 = "5"


class BrokerCheck:
    """Makes one connection, publishes a message that it subscribes to, and at last removes that message."""

    def __init__(self, settings: Settings, store: Store, report: Report, timing: CommandTiming) -> None:
        self._timing = timing
        self._report, self._mqtt, self._ha = report, settings.mqtt, settings.homeassistant
        bridge = names_of(settings).bridge
        self._mine = Message(f"{bridge}/check", secrets.token_hex(4), qos=1)
        self._gone = Message(self._mine.topic, "", qos=1)
        self._filter = f"{bridge}/+"
        self._news, self._returned = asyncio.Event(), False
        self._reports_refusals = False
        """Whether this broker reports that it does not accept a message."""
        self._refusals: dict[str, str] = {}
        own_id = self._mqtt.client_id or f"iqgateway2mqtt-{store.client_suffix()}"
        self._broker = Broker(
            self._mqtt,
            client_id=f"{own_id}-check",  # the service uses the id without this suffix
            will=self._gone,
            on_message=self._received,
            on_refusal=self._refused,
            subscriptions=[self._filter, *([] if self._ha.discovery == "off" else [self._birth])],
        )

    async def run(self) -> None:
        """Connect, report the limits, and try to publish and to read."""
        try:
            await self._broker.connect()
            self._report_connection()
            await self._exchange()
        except MessageRefused as error:
            self._report.problem("publish", str(error), EXIT_REFUSED)
        except BridgeError as error:
            self._report.fault("connection", error)
        finally:
            self._broker.abort()

    @property
    def _birth(self) -> str:
        return f"{self._ha.prefix}/status"

    @property
    def _announcement(self) -> Message:
        """An empty message to an unused discovery topic. It changes nothing, but a broker may refuse it."""
        place = "device" if self._ha.discovery == "device" else "sensor"
        return Message(f"{self._ha.prefix}/{place}/iqgateway2mqtt_check/config", "", qos=1)

    def _received(self, topic: str, payload: bytes, _retained: bool) -> None:
        if topic == self._mine.topic and payload == self._mine.payload.encode():
            self._returned = True
            self._news.set()

    def _refused(self, topic: str, text: str) -> None:
        self._refusals[topic] = text
        self._news.set()

    def _report_connection(self) -> None:
        broker, limits = self._broker, self._broker.limits
        self._reports_refusals = broker.protocol == MQTT5 and limits.qos > 0
        self._report.ok("connection", f"{broker.address}: connected, MQTT {broker.protocol}")
        if broker.protocol != self._mqtt.protocol:
            advice = f"BRIDGE_MQTT__PROTOCOL={broker.protocol} avoids a failed attempt at each connection"
            self._report.note("protocol", f"it does not speak MQTT {self._mqtt.protocol}; {advice}")
        most = "of any size" if limits.packet_size is None else f"up to {size(limits.packet_size)}"
        text = f"messages {most}, QoS {limits.qos}, {limits.window} unacknowledged at a time"
        if limits.packet_size is not None and limits.packet_size < LARGE_MESSAGE_BYTES:
            self._report.note("limits", f"{text}; large homes need more: allow {size(LARGE_MESSAGE_BYTES)}")
        else:
            self._report.ok("limits", text)

    async def _exchange(self) -> None:
        sent = await self._broker.send(self._mine)
        if self._ha.discovery != "off":
            sent = sent and await self._broker.send(self._announcement)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timing.echo):
                await self._echo_or_refusal()
        if not sent or not self._broker.connected:
            doubt = "some brokers end it if this user may not write or read"
            reason = await self._broker.lost()
            self._report.problem("publish", f"the connection ended: {reason}; {doubt}", EXIT_UNAVAILABLE)
            return
        await self._broker.close(self._gone)  # everything is acknowledged then
        self._report_publish()
        if self._ha.discovery != "off":
            self._report_discovery()

    async def _echo_or_refusal(self) -> None:
        """Wait until the message has come back, or is known not to come."""
        refused = (self._mine.topic, self._filter)
        while self._broker.connected and not self._returned and not any(map(self._refusals.get, refused)):
            self._news.clear()
            await self._news.wait()

    def _report_publish(self) -> None:
        base = f"{self._mqtt.root}/#"
        if self._returned:
            self._report.ok("publish", f"{self._mine.topic}: written, read back, removed")
        elif refusal := self._refusals.get(self._mine.topic):
            self._report.problem("publish", f"{refusal}; allow this user to write to {base}", EXIT_REFUSED)
        elif self._reports_refusals:
            self._report.ok("publish", f"{self._mine.topic}: written and removed; this user may not read it")
        else:
            doubt = f"this user may not write to {base} or may not read it; this broker does not say which"
            self._report.problem("publish", f"{self._mine.topic} did not come back: {doubt}", EXIT_REFUSED)

    def _report_discovery(self) -> None:
        prefix = f"{self._ha.prefix}/#"
        if refusal := self._refusals.get(self._announcement.topic):
            advice = f"allow this user to write to {prefix}, or set BRIDGE_HOMEASSISTANT__DISCOVERY=off"
            self._report.problem("discovery", f"{refusal}; {advice}", EXIT_REFUSED)
        elif self._reports_refusals:
            self._report.ok("discovery", f"this user may write to {prefix}")
        else:
            text = f"this broker does not say whether this user may write to {prefix}"
            self._report.note("discovery", text)
        if refusal := self._refusals.get(self._birth):
            advice = "Home Assistant's restarts will not be noticed; allow this user to read it"
            self._report.note("discovery", f"{refusal}; {advice}")


async def check_broker(settings: Settings, store: Store, report: Report, timing: CommandTiming) -> None:
    """Report what works with the broker."""
    report.section(f"Broker {settings.mqtt.url}")
    await BrokerCheck(settings, store, report, timing).run()
