"""The bridge: a poller for each gateway, one sender, and what joins them."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

from bridge import __version__, discovery
from bridge.config import GatewaySettings, PollSettings, Settings
from bridge.endpoints import ENDPOINTS
from bridge.gateway import open_gateway
from bridge.model import Message
from bridge.mqtt import Broker
from bridge.outbox import Outbox
from bridge.service.condition import Condition
from bridge.service.memory import retained
from bridge.service.mirror import Publish, Style
from bridge.service.poller import Plan, Poller, Seeds, no_seeds
from bridge.service.pulse import Pulse
from bridge.service.sender import Sender
from bridge.service.status import BrokerStatus, GatewayStatus, SourceStatus, Status
from bridge.store import Store
from bridge.topics import Names, bridge_info, online

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
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)
"""No clock that is right shows an earlier time."""
FAULT_FIRST, FAULT_LAST = 10, 900
"""Seconds until a poller that met a fault of ours starts again."""


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


def names_of(settings: Settings) -> Names:
    return Names(settings.mqtt.base_topic, settings.instance)


def _style(settings: Settings, gateway: GatewaySettings, *, first: bool) -> Callable[[str], Style]:
    """How a gateway is shown once its serial number is known: only the first one goes without a name."""
    ha = settings.homeassistant
    announcement = None
    if ha.discovery != "off":
        announcement = discovery.Settings(names_of(settings), ha.prefix, ha.discovery)

    def style(serial: str) -> Style:
        suffix = "" if first else gateway.name or serial[-4:]
        site = gateway.name or f"Enphase {suffix}".strip()
        return Style(names_of(settings), settings.mqtt.payload, announcement, gateway.base_url, site, suffix)

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
    style = _style(settings, gateway, first=gateway is settings.all_gateways[0])
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
        self._started = datetime.fromtimestamp(int(now()), UTC)
        self._on_sent = on_sent
        self._last = online(f"{self._names.bridge}/state", is_online=False)
        self._broker_id = settings.mqtt.client_id or f"iqgateway2mqtt-{self._store.client_suffix()}"
        self._birth = f"{settings.homeassistant.prefix}/status"
        self._broker = Broker(
            settings.mqtt,
            client_id=self._broker_id,
            will=self._last,
            on_message=self._received,
            subscriptions=[] if settings.homeassistant.discovery == "off" else [self._birth],
        )
        self._outbox = Outbox(settings.mqtt.deadband)
        mqtt = settings.mqtt
        self._sender = Sender(
            self._outbox, self._broker, heartbeat=mqtt.heartbeat, rate=mqtt.rate, on_sent=self._sent
        )
        self._pollers = [self._poller(gateway) for gateway in settings.all_gateways]

    async def run(self) -> None:
        if self._started < EARLIEST:  # a Raspberry Pi has no clock of its own
            LOG.warning("this machine's clock says %s: until it is set, times are wrong", self._started.isoformat())
        async with AsyncExitStack() as stack:
            for poller in self._pollers:
                stack.push_async_callback(poller.aclose)
            stack.push_async_callback(self._leave)
            self._sender.put(online(self._last.topic, is_online=True))
            self._inform()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sender.run(), name="sender")
                for poller in self._pollers:
                    tasks.create_task(_supervised(poller), name=f"poller {poller.host}")

    @property
    def _pulses(self) -> Sequence[Pulse]:
        return [self._sender.pulse, *(poller.pulse for poller in self._pollers)]

    @property
    def idle(self) -> bool:
        """Whether all wait for their next turn: nothing is asked, and nothing is being sent."""
        return all(pulse.resting for pulse in self._pulses)

    @property
    def condition(self) -> Condition:
        stuck = tuple(pulse.name for pulse in self._pulses if pulse.stuck)
        broker = [] if self._broker.connected else [f"no connection to the broker {self._broker.address}"]
        lacks = tuple(filter(None, [*broker, *(poller.lack for poller in self._pollers)]))
        return Condition(len(self._pollers), stuck, lacks)

    def _poller(self, gateway: GatewaySettings) -> Poller:
        return make_poller(
            self._settings,
            gateway,
            self._store,
            self._sender.put,
            identified=self._inform,
            seeds=self._seeds,
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
        gateways = tuple(poller.status for poller in self._pollers)
        return Status(__version__, self._started, now, self.condition.stuck, broker, gateways)

    async def _seeds(self, serial: str) -> Mapping[str, float]:
        return await retained(self._settings.mqtt, f"{self._broker_id}-memory", f"{self._names.base}/{serial}")

    async def _leave(self) -> None:
        """What no will can say: nothing is polled any more."""
        for poller in self._pollers:
            poller.leave()
        if self._leave_nothing:
            self._sender.clear()
        await self._sender.finish(FAREWELL)
        await self._broker.close(None if self._leave_nothing else self._last)

    def _inform(self) -> None:
        serials = [poller.serial for poller in self._pollers]
        self._sender.put(bridge_info(self._names, __version__, self._started, filter(None, serials)))

    def _sent(self, message: Message) -> None:
        for poller in self._pollers:
            poller.sent(message)
        if self._on_sent is not None:
            self._on_sent(message)

    def _received(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic == self._birth and payload == b"online" and not retained:
            self._sender.birth()


async def _supervised(poller: Poller) -> None:
    """A fault of ours in one gateway's poller must not end the others; only cancelling ends it."""

    def log(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        LOG.error("fault while polling %s; starting anew", poller.host, exc_info=error)
        poller.pulse.rest(state.upcoming_sleep)

    policy = AsyncRetrying(
        stop=stop_never,
        wait=wait_random_exponential(multiplier=FAULT_FIRST, max=FAULT_LAST),
        retry=retry_if_exception_type(Exception),
        reraise=True,
        before_sleep=log,
    )
    await policy(poller.run)
