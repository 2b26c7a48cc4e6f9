"""The bridge: a poller for each gateway, one sender, and what joins them."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from bridge import __version__, discovery
from bridge.config import SITE, GatewaySettings, PollSettings, Settings, reread
from bridge.endpoints import ENDPOINTS
from bridge.gateway import open_gateway
from bridge.model import BadSetting, Message, Rank
from bridge.mqtt import Broker
from bridge.outbox import Outbox
from bridge.service.condition import Condition
from bridge.service.memory import retained
from bridge.service.mirror import Publish, Style
from bridge.service.poller import Plan, Poller, Seeds, no_seeds
from bridge.service.pulse import Pulse
from bridge.service.rivals import Rivals
from bridge.service.roster import Roster
from bridge.service.sender import Sender
from bridge.service.status import BrokerStatus, GatewayStatus, SourceStatus, Status
from bridge.store import Store
from bridge.topics import Names, bridge_info, online, text

__all__ = [
    "Bridge",
    "BrokerStatus",
    "Condition",
    "GatewayStatus",
    "SourceStatus",
    "Status",
    "make_poller",
    "names_of",
    "periods",
]

LOG = logging.getLogger(__name__)
SITE_PERIODS = {"gentle": 15.0, "normal": 5.0, "live": 1.0}
"""Seconds between answers that the site's powers come from."""
BUDGETS = {"gentle": 0.1, "normal": 0.25, "live": 0.6}
"""Share of a gateway's time that we may take."""
FAREWELL = 2.0
"""Seconds that the last messages may take."""
PARTING = (Rank.HANDOVER, Rank.FAREWELL)
"""What is said to discovery topics that have to go."""
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)
"""No clock that is right shows an earlier time."""
KEEPALIVE = {False: 60, True: 15}
"""Seconds between pings to a broker, and to a cluster: there is another server, so silence is not waited out."""
READERS = 16
"""Gateways whose retained values are read at a time."""
WATCH = 10.0
"""Seconds between looks at the file of gateways."""
REMINDER = 15.0
"""Seconds after which a cluster is told everything once more: it may forget some of it when it loses a server."""


def periods(settings: PollSettings) -> Mapping[str, float]:
    """Seconds between polls of each source."""
    given = {endpoint.source: getattr(settings, endpoint.source) for endpoint in ENDPOINTS}
    return {e.source: e.period(settings.profile) if (own := given[e.source]) is None else own for e in ENDPOINTS}


def plan_of(settings: Settings) -> Plan:
    """What the settings say about polling and counting."""
    poll = settings.poll
    said = poll.readings is not None or poll.livedata is not None
    return Plan(
        periods(poll),
        None if said else SITE_PERIODS[poll.profile],
        BUDGETS[poll.profile] if poll.budget is None else poll.budget,
        settings.site.netting == "sum",
        settings.site.third_party_pv,
        ZoneInfo(settings.timezone) if settings.timezone else None,
    )


def names_of(settings: Settings, gateway: GatewaySettings | None = None) -> Names:
    """The topics of the bridge, and of one of its gateways."""
    root = settings.mqtt.root
    base = settings.mqtt.base_topic.replace(SITE, gateway.level) if gateway else root
    return Names(base, settings.own_name, root)


def _style(settings: Settings, gateway: GatewaySettings, *, first: bool) -> Callable[[str], Style]:
    """How a gateway is shown once its serial number is known: only the first one goes without a name."""
    ha, names = settings.homeassistant, names_of(settings, gateway)
    announcement = None
    if ha.discovery != "off":
        announcement = discovery.Settings(names, ha.prefix, ha.discovery)

    def style(serial: str) -> Style:
        suffix = "" if first else gateway.name or serial[-4:]
        site = gateway.name or f"Enphase {suffix}".strip()
        return Style(names, settings.mqtt.payload, announcement, gateway.base_url, site, suffix)

    return style


def make_poller(
    settings: Settings,
    gateway: GatewaySettings,
    store: Store,
    publish: Publish,
    *,
    identified: Callable[[], None] = lambda: None,
    seeds: Seeds = no_seeds,
    now: Callable[[], float] = time.time,
) -> Poller:
    """A poller with its gateway, and what the store knows of it."""
    known = store.serial_of(gateway.host)
    state = store.load(known) if known else None
    edge = open_gateway(
        gateway,
        settings.cloud,
        pin=state.key_pin if state else None,
        stored_token=state.token if state else None,
        clock=now,
        monotonic=asyncio.get_running_loop().time,
        on_new_token=lambda token: poller.keep_token(token),  # noqa: PLW0108 - it does not exist yet
        on_pause=lambda kept: poller.keep_pause(kept),  # noqa: PLW0108 - nor does it here
    )
    fleet = settings.gateways_file is not None or settings.shard is not None
    style = _style(settings, gateway, first=not fleet and gateway is settings.all_gateways[0])
    poller = Poller(
        gateway, edge, store, publish, style, plan=plan_of(settings), identified=identified, seeds=seeds, now=now
    )
    return poller


class Bridge:
    """All of it. `run` ends only when it is cancelled, and says goodbye to the broker then.

    With `leave_nothing` it takes back all that it has published, as a demo should. A `store` of an earlier bridge
    also has what the disk did not take.

    Raises:
        BadSetting: what a setting names can't be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_sent: Callable[[Message], None] | None = None,
        leave_nothing: bool = False,
        store: Store | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._now, self._leave_nothing = settings, now, leave_nothing
        self._names = names_of(settings)
        self._store = store or Store(settings.state_dir)
        self._on_sent = on_sent
        self._started = datetime.fromtimestamp(round(now(), 3), UTC)
        self._last = online(f"{self._names.bridge}/state", is_online=False)
        self._broker_id = settings.mqtt.client_id or f"iqgateway2mqtt-{self._store.client_suffix()}"
        self._birth = f"{settings.homeassistant.prefix}/status"
        self._rivals = Rivals(self._names, text(self._started), self._repeat)
        self._broker = Broker(
            settings.mqtt,
            client_id=self._broker_id,
            will=self._last,
            on_message=self._received,
            keepalive=KEEPALIVE[len(settings.mqtt.each) > 1],
            subscriptions=[
                *self._rivals.subscriptions,
                *([] if settings.homeassistant.discovery == "off" else [self._birth]),
            ],
        )
        self._outbox = Outbox(settings.mqtt.deadband)
        mqtt = settings.mqtt
        self._sender = Sender(
            self._outbox,
            self._broker,
            heartbeat=mqtt.heartbeat,
            reminder=REMINDER if len(mqtt.each) > 1 else mqtt.heartbeat,
            rate=mqtt.rate,
            on_sent=self._sent,
        )
        self._readers: asyncio.LifoQueue[str] = asyncio.LifoQueue()
        for number in range(READERS, 0, -1):
            self._readers.put_nowait(f"{self._broker_id}-memory{'' if number == 1 else number}")
        self._roster = Roster(self._poller, self._withdraw, self._inform, self._rivals)
        self._roster.want(settings.all_gateways)

    async def run(self) -> None:
        if self._started < EARLIEST:  # a Raspberry Pi has no clock of its own
            LOG.warning("this machine's clock says %s: until it is set, times are wrong", self._started.isoformat())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._roster.aclose)
            stack.push_async_callback(self._leave)
            self._sender.put(online(self._last.topic, is_online=True))
            self._inform()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sender.run(), name="sender")
                tasks.create_task(self._roster.run(), name="roster")
                if self._settings.gateways_file is not None:
                    tasks.create_task(self._watch(self._settings.gateways_file), name="watch")

    @property
    def _pulses(self) -> Sequence[Pulse]:
        return [self._sender.pulse, *(poller.pulse for poller in self._roster.pollers)]

    @property
    def idle(self) -> bool:
        """Whether all wait for their next turn: nothing is asked, and nothing is being sent."""
        return all(pulse.resting for pulse in self._pulses)

    @property
    def condition(self) -> Condition:
        pollers = self._roster.pollers
        stuck = tuple(pulse.name for pulse in self._pulses if pulse.stuck)
        broker = [] if self._broker.connected else [f"no connection to the broker {self._broker.address}"]
        others = (f"{serial}: polled by {rival}" for serial, rival in self._roster.standing_by.items())
        lacks = tuple(filter(None, [*broker, *(poller.lack for poller in pollers), *others]))
        return Condition(len(self._roster), stuck, lacks)

    def _poller(self, gateway: GatewaySettings) -> Poller:
        return make_poller(
            self._settings,
            gateway,
            self._store,
            self._sender.put,
            identified=self._identified,
            seeds=lambda serial: self._seeds(names_of(self._settings, gateway), serial),
            now=self._now,
        )

    def status(self) -> Status:
        """How everything is now, without secrets."""
        broker = BrokerStatus(
            address=self._broker.address,
            connected=self._broker.connected,
            protocol=self._broker.protocol,
            connections=self._sender.connections,
            sent=self._sender.sent,
            topics=self._outbox.topics,
            unsent=len(self._outbox),
        )
        now = datetime.fromtimestamp(self._now(), UTC)
        gateways = tuple(poller.status for poller in self._roster.pollers)
        return Status(__version__, self._started, now, self.condition.stuck, broker, gateways)

    async def _seeds(self, names: Names, serial: str) -> Mapping[str, float]:
        """A few gateways at a time: hundreds of connections are too many, and two of one id shut each other out."""
        client_id = await self._readers.get()
        try:
            return await retained(self._settings.mqtt, client_id, f"{names.base}/{serial}")
        finally:
            self._readers.put_nowait(client_id)

    def _withdraw(self, poller: Poller, last_words: bool) -> None:
        """What is known of a gateway must not be repeated: it may be another bridge's by now."""
        if serial := poller.serial:
            own = re.compile(f"/{serial}/|/iqgateway_{serial}_")
            self._sender.withdraw(lambda topic: own.search(topic) is not None, last_words=last_words)

    def _identified(self) -> None:
        self._inform()
        self._rivals.reconsider()

    def _repeat(self) -> None:
        names = self._names
        self._sender.repeat(f"{names.bridge}/state", f"{names.bridge}/info")

    async def _watch(self, file: Path) -> None:
        """Keep to the list of gateways. One that can't be used changes nothing."""
        seen: object = None
        while True:
            await asyncio.sleep(WATCH)
            stamp = _stamp(file)
            if stamp == seen:
                continue
            seen = stamp
            try:
                settings = await asyncio.to_thread(reread, self._settings)
                before, self._settings = self._settings, settings
                if settings.all_gateways != before.all_gateways:
                    self._roster.want(settings.all_gateways)
                    LOG.info("%s: now %d gateways", file, len(settings.all_gateways))
            except BadSetting as problem:
                LOG.error("%s can't be used, the earlier list stays: %s", file, problem)  # noqa: TRY400 - one line

    async def _leave(self) -> None:
        """What no will can say: nothing is polled any more."""
        self._roster.leave()
        if self._leave_nothing:
            self._sender.clear()
        await self._sender.finish(FAREWELL)
        await self._broker.close(None if self._leave_nothing else self._last)

    def _inform(self) -> None:
        serials = filter(None, [poller.serial for poller in self._roster.pollers])
        standing_by = self._roster.standing_by
        self._sender.put(bridge_info(self._names, __version__, self._started, serials, standing_by))

    def _sent(self, message: Message) -> None:
        if message.rank in PARTING:  # all that pollers care for; there can be thousands of them
            for poller in self._roster.pollers:
                poller.sent(message)
        if self._on_sent is not None:
            self._on_sent(message)

    def _received(self, topic: str, payload: bytes, retained: bool) -> None:
        self._rivals.hear(topic, payload, retained=retained)
        if topic == self._birth and payload == b"online" and not retained:
            self._sender.birth()


def _stamp(file: Path) -> tuple[int, ...]:
    """Changes when the file does, also where a link leads elsewhere, as Kubernetes does it."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
