"""Turns the answers of one gateway into topics, saves its counters, and keeps its present problem."""

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

from bridge.endpoints import Parsed
from bridge.gateway.client import Gateway
from bridge.model import HOUR_S, MINUTE_S, NEVER, BadAnswer, BridgeError, Event, Message, Reading, SourceName
from bridge.pipeline import CountersState, Pipeline, Processed
from bridge.service.events import EventOutput
from bridge.service.identity import Identity
from bridge.service.publisher import Diagnostics, GatewayPublisher, Publish, PublishOptions, TreeState
from bridge.service.sources import Source, Sources
from bridge.store import Store

LOG = logging.getLogger(__name__)
COUNTERS_SAVE_S = 300.0
"""Seconds between two saves of the counters. A memory card has to last for years."""
TREE_SAVE_S = 6 * HOUR_S
"""Seconds between two saves of the published tree, which is large, if nothing else makes one necessary."""
BATTERIES_PERIOD_S = 10.0
"""Longest period of the batteries' own powers where their energy is integrated from them."""
LOG_BURST, LOG_PAUSE_S = 200, MINUTE_S
"""Lines about one gateway that may be written at once, and seconds after which there may be one more."""
COUNTING_MODULES = ("bridge.pipeline", "bridge.counters", "bridge.site", "bridge.inverters")
LONG_ANSWER_READINGS = 1_000
"""An answer with so many readings (150 inverters) lets others run between its steps, which take milliseconds."""
COUNTERS_RESET_AT = 2
"""The occurrence of the same fault in counting at which the counters begin anew."""
RetainedValues = Callable[[str], Awaitable[Mapping[str, float]]]
"""Reads the counters of the gateway with this serial number from the broker, by topic below the gateway."""


async def no_retained_values(_serial: str) -> Mapping[str, float]:
    """Read no counters, where there is no broker or nothing is to be read from it."""
    return {}


class GatewayLog(logging.LoggerAdapter[logging.Logger]):
    """The log of one gateway: its records have the key `gateway`, beside the keys of each call.

    No answers can make it grow: after `LOG_BURST` lines there is one in `LOG_PAUSE_S`, which tells how many were
    left out. `time` returns monotonic seconds.
    """

    def __init__(self, host: str, time: Callable[[], float] = time.monotonic) -> None:
        super().__init__(LOG, {"gateway": host})
        self._time = time
        self._left_out = 0
        self._free_at = NEVER
        """When as many lines as `LOG_BURST` may be written again."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a line, unless there were too many."""
        if not self.isEnabledFor(level):
            return
        now = self._time()
        if self._free_at - now > (LOG_BURST - 1) * LOG_PAUSE_S:
            self._left_out += 1
            return
        self._free_at = max(self._free_at, now) + LOG_PAUSE_S
        if self._left_out:
            msg, args = f"{msg} (%d lines before this one were left out)", (*args, self._left_out)
            self._left_out = 0
        super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": {**(self.extra or {}), **kwargs.get("extra", {})}}

    def log_events(self, source: Source, events: Iterable[Event]) -> None:
        """Log what has happened to the counters of a source."""
        for event in events:
            level = logging.WARNING if event.warning else logging.INFO
            self.log(level, "%s", event.text, extra={"source": source.name.value, "event": event.name})


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """How the site is computed.

    If `netted`, the phases of a meter are netted before import and export are counted. `third_party` tells whether
    the site has solar power that is not Enphase's. Days begin in the time zone `zone`; `None` is this machine's.
    """

    netted: bool = True
    third_party: bool = False
    in_home: bool = False
    zone: tzinfo | None = None


class CountingFaults:
    """The faults of this program in counting, by kind and place: none stops a gateway twice in the same way.

    The first one may have been chance. If it comes again, the saved counters may be the cause. If it comes even
    with fresh counters, it is lasting, and costs only the answers in which it comes.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], int] = {}

    def add(self, fault: BaseException) -> bool:
        """Count a fault. Returns whether it is one in counting that has come for the second time."""
        place = _counting_place(fault)
        if place is None:
            return False
        self._counts[place] = self._counts.get(place, 0) + 1
        return self._counts[place] == COUNTERS_RESET_AT

    def is_lasting(self, fault: BaseException) -> bool:
        """Whether the fault has come so often that the counters have begun anew because of it."""
        place = _counting_place(fault)
        return place is not None and self._counts.get(place, 0) >= COUNTERS_RESET_AT


def _counting_place(fault: BaseException) -> tuple[str, str, int] | None:
    """The kind of a fault, and the innermost line of the counting modules in it; `None` if it has none."""
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    lines = [
        (type(fault).__name__, module, number)
        for frame, number in traceback.walk_tb(fault.__traceback__)
        if (module := str(frame.f_globals.get("__name__"))).startswith(COUNTING_MODULES)
    ]
    return lines[-1] if lines else None


class GatewayOutput:
    """Publishes one gateway, saves its counters, and knows its problem.

    `now` is the wall clock; all other times are the loop's. `options_of` gives the options for a serial number.
    `on_refresh` is called with each refresh, and returns the problem of the gateway's home.
    """

    def __init__(
        self,
        gateway: Gateway,
        identity: Identity,
        sources: Sources,
        store: Store,
        *,
        publish: Publish,
        options_of: Callable[[str], PublishOptions],
        site: SiteOptions,
        retained_values: RetainedValues,
        now: Callable[[], float],
        log: GatewayLog,
        on_refresh: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._gateway, self._identity, self._sources, self._store = gateway, identity, sources, store
        self._publish, self._options_of, self._retained_values = publish, options_of, retained_values
        self._site, self._now, self._log, self._on_refresh = site, now, log, on_refresh
        self._time = asyncio.get_running_loop().time
        self.problem: str | None = None
        """The problem that a person should know of; `None` if there is none."""
        self.is_refused = False
        """Whether the problem is that the gateway or the cloud refuses the bridge."""
        self._home_problem: str | None = None
        self._diagnostics = Diagnostics()
        batteries = sources.by_name.get(SourceName.POWER)
        self._batteries_period = batteries.period if batteries else 0.0
        self._identified: _IdentifiedOutput | None = None
        self._faults = CountingFaults()

    async def open(self, serial: str) -> None:
        """Begin to publish a gateway once it has told its serial number.

        Its counters come from the state file and from the broker; nothing of it is published before both are read.
        """
        values = await self._retained_values(serial)  # what is found may change what the store knows
        topic = self._options_of(serial).names.events(serial)
        events = EventOutput(serial, topic, self._store, self._publish)
        self._identified = _IdentifiedOutput(serial, self._make_publisher(serial), self._store, self._site, events)
        self._identified.pipeline.seed(values)

    def note_fault(self, fault: BaseException) -> None:
        """Note a fault of this program that has ended the polling, which will go on.

        If the same one in counting has come before, the gateway's counters begin anew, from what the broker has.
        """
        serial = self._identity.serial
        if self._faults.add(fault) and serial is not None:
            if self._identified:
                self._identified.save_tree()
            self._identified = None
            kept = self._store.set_aside(serial, CountersState)
            text = (
                "the same fault in counting came twice: starting with fresh counters; those before are kept as %s"
            )
            self._log.error(text, kept, extra={"event": "counters_reset"})

    async def reopen(self) -> None:
        """Publish again a gateway whose counters begin anew."""
        if self._identified is None and self._identity.known:
            await self.open(self._identity.facts.serial)

    @property
    def publisher(self) -> GatewayPublisher | None:
        return self._identified.publisher if self._identified else None

    def process(self, source: Source, parsed: Parsed) -> Processed | None:
        """Make an answer publishable; `None` while the gateway's serial number is unknown.

        Raises:
            BadAnswer: its values can't be used.
        """
        if self._identified is None:
            return None
        try:
            return self._identified.pipeline.process(
                source.name,
                parsed,
                self._identity.facts,
                now=self._now(),
                steady=self._time(),
                period=source.interval,
                storage_pending=self._sources.is_pending(SourceName.INVENTORY),
            )
        except Exception as fault:
            if isinstance(fault, BridgeError) or not self._faults.is_lasting(fault):
                raise
            raise BadAnswer(f"a fault of the bridge, {type(fault).__name__}: the answer is not used") from fault

    async def publish(self, source: Source, processed: Processed | None, elapsed: float) -> None:
        """Publish a good answer that took `elapsed` seconds."""
        self._diagnostics.last_answer = datetime.fromtimestamp(self._now(), UTC)
        self._diagnostics.answer_time = round(elapsed, 3)
        if self._identified is None or processed is None:
            return
        publisher, pipeline, now = self._identified.publisher, self._identified.pipeline, processed.answer.now
        is_long = len(processed.readings) >= LONG_ANSWER_READINGS
        self._log.log_events(source, processed.events)
        self._diagnostics.counters_held = processed.held
        if is_long:
            await asyncio.sleep(0)
        if publisher.publish_values(source.name, processed.readings, now):
            await asyncio.sleep(0)  # the sender takes these values,
            await asyncio.sleep(0)  # and they are written before documents and the site's values are made
        else:
            is_long = False  # discovery comes first, at the end
        flows = self._flows(pipeline, processed)
        if is_long:
            await asyncio.sleep(0)
        self._log.log_events(source, publisher.publish_documents(source.name, flows, now, processed.in_force))
        if is_long:
            await asyncio.sleep(0)
        if processed.asks_why and (explaining := self._sources.by_name.get(SourceName.SC_STATUS)):
            explaining.due = min(explaining.due, self._time())
        if source.name is SourceName.LIVEDATA:
            source.fresh = source.fresh and pipeline.site.is_live(now)
        self._log.log_events(source, told := pipeline.site.take_events())
        self._identified.events.answered(
            source, processed, flows, lines=told, sources=self._sources, gateway=self._gateway
        )
        self._identified.save_if_due()

    def lose(self, source: Source) -> None:
        """Publish that the gateway no longer has a source."""
        if self._identified:
            self._identified.publisher.lose(source.name, self._now())

    def _flows(self, pipeline: Pipeline, processed: Processed) -> Sequence[Reading]:
        try:
            return pipeline.flows(processed.answer)
        except Exception as fault:
            if not self._faults.is_lasting(fault):
                raise
            return ()  # the log has the fault twice already

    def _make_publisher(self, serial: str) -> GatewayPublisher:
        return GatewayPublisher(serial, self._options_of(serial), self._sources.by_name, self._publish)

    def refresh(self) -> None:
        """Publish the state of the gateway and its sources as it is now, its diagnostics, and discovery."""
        serial, now = self._identity.serial, self._time()
        self._home_problem = self._on_refresh()
        if serial is None:
            return
        publisher = self._publish_availability(serial, is_online=self._sources.online(now))
        publisher.publish_diagnostics(self.diagnostics(), now, self._now())
        may_announce = self._identified and (self._sources.tried or self._identified.has_saved_tree)
        if self._identified and may_announce and publisher.announce(self._identity.facts):
            self._identified.save_tree()

    def _publish_availability(self, serial: str, *, is_online: bool) -> GatewayPublisher:
        publisher = self._identified.publisher if self._identified else self._make_publisher(serial)
        powered_by = self.powering.name if self.powering else None
        publisher.publish_availability(self._time(), is_online=is_online, powered_by=powered_by)
        return publisher

    def report_problem(
        self, problem: str | None, *, event: str, log: bool = True, is_refused: bool = False
    ) -> None:
        """Set the problem of the gateway. A new one is logged with this `event`, unless the log has it already.

        `is_refused` is whether the problem is that the gateway or the cloud refuses the bridge.
        """
        if problem and log and problem != self.problem:
            self._log.warning("%s", problem, extra={"event": event})
        self.problem, self.is_refused = problem, is_refused

    def report_refusal(self, error: BridgeError) -> None:
        """Set the problem of a gateway that refuses the bridge, or for which the cloud gives no token."""
        self.report_problem(str(error), event="refused", is_refused=True)
        if self._identified:
            self._identified.events.refused(error, self._now())

    def speed_up(self, wanted: float) -> None:
        """Ask the source of the site's powers each `wanted` seconds, and batteries where only they tell theirs."""
        if (source := self.powering) and source.endpoint.site_powers:
            source.period = min(source.period, wanted)
        if batteries := self._sources.by_name.get(SourceName.POWER):
            usual, asks = self._batteries_period, self._identified and self._identified.pipeline.site.asks_batteries
            batteries.period = min(usual, wanted, BATTERIES_PERIOD_S) if asks else usual

    @property
    def knows_storage(self) -> bool:
        """Whether it is known if the site has a battery."""
        return self._identified is not None and self._identified.pipeline.site.storage_known

    @property
    def powering(self) -> Source | None:
        """The source that the site's powers come from."""
        name = self._identified.pipeline.site.powered_by if self._identified else None
        return None if name is None else self._sources.by_name.get(name)

    def diagnostics(self) -> Diagnostics:
        """The diagnostics of the gateway as they are now."""
        known, gateway = self._diagnostics, self._gateway
        known.certificate, known.failures, known.problem = gateway.fingerprint, self._sources.failures, self.problem
        if gateway.url.startswith("https"):
            known.token_expires, known.token_role = gateway.tokens.expires, gateway.tokens.role
            known.problem = self.problem or gateway.tokens.problem or self._identity.problem
        if self._identified and known.problem is None:
            known.problem = self._identified.pipeline.site.problem(self._now())
        known.problem = known.problem or self._home_problem
        return known

    def sent(self, message: Message) -> None:
        """Note that the broker has a message. Once it has all removals, the tree is saved without them."""
        if self._identified:
            self._identified.events.sent(message)
        if self._identified and self._identified.publisher.sent(message):
            self._identified.save_tree()

    def stop(self) -> None:
        """Publish that the gateway and its sources are offline, and save everything."""
        if serial := self._identity.serial:
            self._publish_availability(serial, is_online=False)
        if self._identified:
            self._identified.save_counters()
            self._identified.save_tree()

    def save(self) -> None:
        """Save the counters."""
        if self._identified:
            self._identified.save_counters()


class _IdentifiedOutput:
    """The pipeline and the publisher of a gateway that has told its serial number, and when they were saved."""

    def __init__(
        self, serial: str, publisher: GatewayPublisher, store: Store, site: SiteOptions, events: EventOutput
    ) -> None:
        self._serial, self._store, self.events = serial, store, events
        self.publisher = publisher
        self.has_saved_tree = publisher.restore(store.load(serial, TreeState))
        self.pipeline = Pipeline(
            netted=site.netted,
            third_party=site.third_party,
            in_home=site.in_home,
            zone=site.zone,
            state=store.load(serial, CountersState),
            devices=publisher.devices,
        )
        self._time = asyncio.get_running_loop().time
        self._counters_saved_at = self._tree_saved_at = self._time()

    def save_if_due(self) -> None:
        """Save what was saved long ago: the counters, and less often the published tree."""
        now = self._time()
        if now - self._counters_saved_at >= COUNTERS_SAVE_S:
            self.save_counters()
        if now - self._tree_saved_at >= TREE_SAVE_S:
            self.save_tree()

    def save_counters(self) -> None:
        self._counters_saved_at = self._time()
        self._store.save(self._serial, self.pipeline.state)

    def save_tree(self) -> None:
        """Save what is published, and since when each absent value has been absent."""
        self._tree_saved_at = self._time()
        self._store.save(self._serial, self.publisher.state)
