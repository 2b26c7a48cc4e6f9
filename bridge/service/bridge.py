"""The bridge: wires a poller for each gateway, one sender and the broker, and runs them."""

import asyncio
import gc
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from bridge import __version__
from bridge.gateway.mdns import Search
from bridge.model import HOUR_S, MINUTE_S, BadSetting, Message, Priority
from bridge.mqtt import Broker, CommandTopics, MessageRefused, Received
from bridge.outbox import Outbox
from bridge.service.assembly import announcement_of, make_homes, make_poller
from bridge.service.leftovers import BrokerMemory, DepartedGateways, current_bases, names_of
from bridge.service.peers import INTRODUCTION_S, Peers, peer_topics
from bridge.service.poller import Poller
from bridge.service.pool import GatewayPool, changes
from bridge.service.retained import RetainedReader, Sender
from bridge.service.status import BrokerStatus, GatewayStatus, Status, Watchdog
from bridge.settings import SITE_PLACEHOLDER, GatewaySettings, Settings, reread
from bridge.store import Store
from bridge.topics import bridge_info, online, text

LOG = logging.getLogger(__name__)


FINAL_SEND_S = 2.0
"""Longest time for sending the last messages when the bridge stops."""
REMOVAL_PRIORITIES = (Priority.MIGRATE, Priority.CLEANUP)
"""Priorities of the messages that remove discovery topics."""
EARLIEST_CLOCK = datetime(2026, 1, 1, tzinfo=UTC)
"""A clock that shows an earlier time is not set."""
KEEPALIVE_S, CLUSTER_KEEPALIVE_S = 60, 15
"""Time between two pings. With a cluster it is short: another server is there to take over."""
CLUSTER_REPEAT_S = 15.0
"""Time after connecting until everything is sent to a cluster again, since it may have lost messages."""


class Bridge:
    """The whole service. `run` ends only when it is cancelled; then it publishes that nothing is polled any more.

    With `remove_at_end` it removes everything that it has published, as a demo should. `store` is the one of an
    earlier bridge of this process, which also has what could not be written to the disk. `on_sent` gets each
    message that was sent. `search` looks for gateways that have moved, `introduction` how many
    seconds to wait for news of other bridges before the first poll. `now` is the wall clock.

    Raises:
        BadSetting: the host of a gateway or a file in the settings can't be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_sent: Callable[[Message], None] | None = None,
        remove_at_end: bool = False,
        store: Store | None = None,
        search: Search | None = None,
        introduction: float = INTRODUCTION_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._now, self._remove_at_end = settings, now, remove_at_end
        self._search = search or Search()
        self._names = names_of(settings)
        self._store = store or Store(settings.state_dir)
        self._on_sent = on_sent
        self._started = datetime.fromtimestamp(round(now(), 3), UTC)
        self._will = online(f"{self._names.bridge}/state", is_online=False)
        client_id = settings.mqtt.client_id or f"iqgateway2mqtt-{self._store.client_suffix()}"
        announcement = announcement_of(settings, self._names)
        self._birth_topic = f"{announcement.prefix}/status" if announcement else None
        self._broker = Broker(
            settings.mqtt,
            client_id=client_id,
            will=self._will,
            on_message=self._received,
            on_doubt=lambda topics: self._sender.repeat(*topics),
            keepalive=CLUSTER_KEEPALIVE_S if len(settings.mqtt.each) > 1 else KEEPALIVE_S,
            subscriptions=[*peer_topics(self._names), *filter(None, [self._birth_topic])],
            commands=_command_topics(settings, self._commanded),
        )
        self._outbox = Outbox(settings.mqtt.deadband, repeats=settings.mqtt.repeat_site)
        mqtt = settings.mqtt
        self._sender = Sender(
            self._outbox,
            self._broker,
            heartbeat=mqtt.heartbeat,
            reminder=CLUSTER_REPEAT_S if len(mqtt.each) > 1 else mqtt.heartbeat,
            rate=mqtt.rate,
            on_sent=self._sent,
        )
        self._peers = Peers(
            self._names,
            text(self._started),
            self._sender.repeat,
            heartbeat=mqtt.heartbeat,
            introduction=introduction,
            ours=lambda: frozenset(self._pool.by_serial),
        )
        self._memory = memory = BrokerMemory(self._store, RetainedReader(mqtt, client_id), announcement)
        self._homes = make_homes(
            settings, self._store, self._sender.put, memory.of_home, self._outbox.drop, now=now
        )
        self._pool = GatewayPool(self._make_poller, self._withdraw, self._on_change, self._peers)
        self._departed = DepartedGateways(
            self._store,
            self._names,
            mqtt.payload,
            current=lambda: current_bases(self._settings, self._pool.by_serial),
            publish=self._publish_last,
            is_elsewhere=self._peers.is_polled_elsewhere,
            now=now,
        )
        self._set_gateways(settings)

    async def run(self) -> None:
        """Poll and publish until cancelled."""
        if self._started < EARLIEST_CLOCK:  # a Raspberry Pi has no clock of its own
            LOG.warning("this machine's clock says %s: until it is set, times are wrong", self._started.isoformat())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._pool.aclose)
            stack.push_async_callback(self._stop)
            self._store.note_bridge(self._names.bridge)
            self._sender.put([online(self._will.topic, is_online=True), self._info()])
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sender.run(self._connect), name="sender")
                tasks.create_task(self._pool.run(), name="pool")
                tasks.create_task(self._departed.run(), name="departed gateways")
                if self._settings.gateways_file is not None:
                    tasks.create_task(self._watch(self._settings.gateways_file), name="watch")

    @property
    def watchdogs(self) -> Sequence[Watchdog]:
        """The watchdogs of the parts that run until the bridge stops."""
        return [self._sender.watchdog, *(poller.watchdog for poller in self._pool.pollers)]

    def _make_poller(self, gateway: GatewaySettings) -> Poller:
        async def retained_values(serial: str) -> Mapping[str, float]:
            await self._homes.open(gateway)
            base = names_of(self._settings, gateway).base
            self._store.note_base(serial, base)
            return await self._memory.of_gateway(serial, f"{base}/{serial}")

        poller = make_poller(
            self._settings,
            gateway,
            self._store,
            self._sender.put,
            on_identified=self._on_identified,
            retained_values=retained_values,
            search=self._search,
            now=self._now,
            on_refresh=lambda: self._homes.refresh(gateway),
        )
        self._homes.add(gateway, poller)
        return poller

    def _set_gateways(self, settings: Settings) -> None:
        self._pool.set_gateways(settings.all_gateways)
        self._homes.set_gateways(settings.all_gateways, settings.every_gateway)

    def status(self, *, details: bool = True) -> Status:
        """The status of the bridge and its gateways now, without secrets.

        Without `details` the gateways have neither sources nor readings, which is cheap enough for every second.
        """
        broker = BrokerStatus(
            address=self._broker.address,
            connected=self._broker.connected,
            protocol=self._broker.protocol,
            connections=self._sender.connections,
            sent=self._sender.sent,
            topics=self._outbox.topics,
            unsent=len(self._outbox),
            problem=self._broker.failure,
        )
        now = datetime.fromtimestamp(self._now(), UTC)
        return Status(
            version=__version__,
            started=self._started,
            now=now,
            stuck=[watchdog.name for watchdog in self.watchdogs if watchdog.expired],
            broker=broker,
            gateways=[GatewayStatus.of(poller, now, details=details) for poller in self._pool.pollers],
            standing_by=self._pool.standing_by,
            homes=self._homes.statuses(),
        )

    def _withdraw(self, poller: Poller, send_pending: bool) -> None:
        """Forget the topics of a gateway, so that they are not repeated: another bridge may publish them by now.

        With `send_pending` the unsent messages of these topics are sent first.
        """
        if serial := poller.serial:
            (self._outbox.release if send_pending else self._outbox.drop)(_topics_of({serial}))
        if not send_pending:
            self._homes.withdraw(poller.settings)

    def _publish_last(self, serial: str, messages: Iterable[Message]) -> None:
        """Publish the last messages of a gateway that left the settings, and then forget its topics."""
        self._sender.put(messages)
        self._outbox.release(_topics_of({serial}))

    def _on_identified(self) -> None:
        self._on_change()
        self._peers.notify()

    def _on_change(self) -> None:
        self._publish_info()
        self._departed.notify()

    async def _watch(self, file: Path) -> None:
        """Follow changes of the file of gateways. A file that can't be used changes nothing."""
        async for _ in changes(file):
            before = self._settings
            try:
                self._settings = await asyncio.to_thread(reread, before)
                if self._settings.all_gateways != before.all_gateways:
                    self._set_gateways(self._settings)
                    LOG.info("%s: now %d gateways", file, len(self._settings.all_gateways))
            except BadSetting as problem:
                self._settings = before
                LOG.error("%s can't be used, the earlier list stays: %s", file, problem)  # noqa: TRY400 - one line

    async def _stop(self) -> None:
        """Publish that nothing is polled any more. The will of the bridge does not say that of each gateway."""
        self._pool.stop()
        self._homes.stop()
        if self._remove_at_end:
            self._outbox.clear()
        await self._sender.finish(FINAL_SEND_S)
        await self._broker.close(None if self._remove_at_end else self._will)

    def _publish_info(self) -> None:
        self._sender.put([self._info()])

    def _info(self) -> Message:
        serials = filter(None, [poller.serial for poller in self._pool.pollers])
        others = {"standing_by": owners} if (owners := dict(sorted(self._pool.standing_by.items()))) else {}
        return bridge_info(self._names, __version__, self._started, serials, self._peers.every, **others)

    async def _connect(self) -> None:
        """Connect to the broker.

        After an outage, forget the unsent messages of gateways that another bridge has taken over meanwhile.
        """
        await self._broker.reconnect()
        if not self._sender.connections:
            return
        for message in (online(self._will.topic, is_online=True), self._info()):
            with suppress(MessageRefused):
                await self._broker.send(message)
        if taken := await self._peers.takeovers.until_echo():
            self._outbox.drop(_topics_of(taken))
            self._pool.renew(taken)

    def _sent(self, message: Message) -> None:
        if message.priority in REMOVAL_PRIORITIES or not message.retain:  # there can be thousands of pollers
            for poller in self._pool.pollers:
                poller.output.sent(message)
        self._homes.sent(message)
        if self._on_sent is not None:
            self._on_sent(message)

    def _commanded(self, message: Received) -> None:
        """Hand a command to the gateway that it is for, if this bridge polls it."""
        levels = frozenset(message.topic.split("/"))
        for poller in self._pool.pollers:
            if poller.serial in levels:
                above = f"{names_of(self._settings, poller.settings).base}/{poller.serial}/"
                if message.topic.startswith(above):
                    poller.commander.receive(message, message.topic.removeprefix(above))

    def _received(self, topic: str, payload: bytes, retained: bool) -> None:
        self._peers.on_message(topic, payload, retained=retained)
        if topic == self._birth_topic and payload == b"online" and not retained:
            self._sender.birth()


async def collect_seldom(first: float = MINUTE_S, pause: float = HOUR_S) -> None:
    """Collect all garbage after `first` seconds and then every `pause` seconds.

    What a bridge keeps stays the same for hours, but Python's collector goes through all of it every few minutes,
    which stops everything for 50 ms with 1,000 inverters. So what is left after a collection here is exempt from
    the automatic ones, which then look at newer objects only.
    """
    try:
        while True:
            await asyncio.sleep(first)
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            first = pause
    finally:
        gc.unfreeze()


def _command_topics(settings: Settings, take: Callable[[Received], None]) -> CommandTopics:
    """The topics of commands to all gateways: a device has two levels, and its value one."""
    base = settings.mqtt.base_topic.replace(SITE_PLACEHOLDER, "+")
    obeyed = any(settings.control.allowed(gateway) for gateway in settings.all_gateways)
    return CommandTopics((f"{base}/+/request", f"{base}/+/+/+/+/set"), take, obeyed)


def _topics_of(serials: Collection[str]) -> Callable[[str], bool]:
    """Tells of a topic whether it belongs to one of these gateways."""
    own = re.compile("(?<!/home)/([A-Za-z0-9]+)(?=/)|/iqgateway_([A-Za-z0-9]+)_")
    return lambda topic: any(first in serials or second in serials for first, second in own.findall(topic))
