"""Polls one gateway: asks its sources, learns which gateway it is, and reacts to failures."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bridge.endpoints import ENDPOINTS, Endpoint, Parsed
from bridge.gateway.client import Gateway
from bridge.gateway.errors import (
    NO_GATEWAY,
    CloudRejected,
    CloudUnavailable,
    KeyChanged,
    TokenRejected,
    at_first_contact,
)
from bridge.model import (
    NEVER,
    Answer,
    BadAnswer,
    BridgeError,
    Facts,
    Rejected,
    Request,
    SourceName,
    Unavailable,
    Unsupported,
)
from bridge.pipeline import Processed
from bridge.service.commander import Commander
from bridge.service.identity import Identity, Rediscovery
from bridge.service.output import GatewayLog, GatewayOutput
from bridge.service.sources import Source, Sources, SourceState
from bridge.service.status import Watchdog
from bridge.settings import GatewaySettings, PollSettings

PROBE_PAUSE_MIN_S, PROBE_PAUSE_MAX_S = 10.0, 300.0
"""Pause between two requests to a gateway that does not answer: only `/info` is asked, which costs it least."""
REFUSED_PAUSE_MIN_S, REFUSED_PAUSE_MAX_S = 30.0, 900.0
"""Pause after a gateway or the cloud has refused us; it doubles each time."""
MAX_DOUBLINGS = 10
STREAM_PAUSE_S = 60.0
"""Least time between two requests to turn the live stream on."""
CONFIRM_PAUSE_S = 5.0
"""Seconds after which a source is asked again whose counters were read for the first time."""
LONG_ANSWER_BYTES = 64_000
"""An answer about so many inverters (300) takes 10 ms to read on a PC, and 100 ms on the smallest computers."""
WATCH_PAUSE_MIN_S = 0.5
"""Least time between two checks of what has become stale."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a value of `BRIDGE_POLL__PROFILE` stands for, beside the periods in the table of endpoints.

    `site_period` is the time between two polls of the source of the site's powers, in seconds. `budget` is the
    share of a gateway's time that polls may take. `paced` value topics have the pace of their quantity.
    """

    site_period: float
    budget: float
    paced: bool = True


PROFILES = {
    "gentle": Profile(site_period=15.0, budget=0.1),
    "normal": Profile(site_period=5.0, budget=0.25),
    "live": Profile(site_period=1.0, budget=0.6, paced=False),
}


def periods(settings: PollSettings) -> Mapping[str, float]:
    """Seconds between two polls of each source; 0 turns a source off."""
    own = {endpoint.source: settings.period(endpoint.source) for endpoint in ENDPOINTS}
    return {
        endpoint.source: endpoint.period(settings.profile) if (period := own[endpoint.source]) is None else period
        for endpoint in ENDPOINTS
    }


class Poller:
    """Polls one gateway, one request at a time, and hands its answers to `output`.

    `site_period` is how often, in seconds, the source of the site's powers is asked, if its own period is longer;
    `None` leaves that to its own period. `on_identified` is called once the gateway has told its serial number.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        gateway: Gateway,
        identity: Identity,
        sources: Sources,
        output: GatewayOutput,
        *,
        commander: Commander,
        rediscovery: Rediscovery,
        site_period: float | None,
        on_identified: Callable[[], None],
        now: Callable[[], float],
        log: GatewayLog,
    ) -> None:
        self.settings, self.gateway, self.identity, self.sources = settings, gateway, identity, sources
        self.output, self.commander = output, commander
        self._site_period, self._on_identified, self._now, self._log = site_period, on_identified, now, log
        self._time = asyncio.get_running_loop().time
        self.watchdog = Watchdog(f"the poller of {settings.host}", self._time)
        self._info = sources.by_name[SourceName.INFO]
        self._rediscovery = rediscovery
        self._refusals = 0
        self._unconfirmed: set[Source] = set()
        self._confirmed: set[Source] = set()
        """Sources to ask early once, to confirm first readings of counters, and those that were asked so."""
        self._stream_requested_at = NEVER

    @property
    def host(self) -> str:
        """The address in the settings."""
        return self.settings.host

    @property
    def serial(self) -> str | None:
        """The serial number, once it is known."""
        return self.identity.serial

    async def aclose(self) -> None:
        """Close the connection to the gateway."""
        await self.gateway.aclose()

    async def run(self) -> None:
        """Poll until cancelled."""
        await self.output.reopen()
        self._refresh()  # what an earlier run has left in the broker must not look fresh
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                await self._step()

    async def once(self) -> Mapping[SourceName, BridgeError]:
        """Ask every source, and again those that answer: a counter's first reading has to be confirmed.

        Returns the errors of the first round.
        """
        know = self.identity
        errors = {each.name: await self._ask(each) for each in self.sources if each is self._info or know.known}
        for source in self.sources:
            if source.state is SourceState.GOOD:
                await self._ask(source)
        self._refresh()
        return {name: error for name, error in errors.items() if error is not None}

    async def poll(self, source: Source) -> BridgeError | None:
        """Ask one source, and publish what follows from its answer or its failure, which is returned."""
        is_news = source.endpoint.wanted(self.identity.facts) or source.state is SourceState.WAITING
        error = await self._ask(source)
        if source in self._unconfirmed:
            self._unconfirmed.remove(source)
            source.due = min(source.due, self._time() + CONFIRM_PAUSE_S)
        if is_news:
            self._refresh()
        return error

    async def _step(self) -> None:
        now = self._time()
        self.watchdog.busy()
        is_away = self._away(now)
        if await self.commander.step(self.poll, is_away=is_away or self.sources.held(now)):
            await asyncio.sleep(0)
        elif is_away:
            await self._probe()
        elif source := self.sources.next(now) or self.sources.liveness_source(now):
            await self.poll(source)
            await asyncio.sleep(0)  # let the sender work
        else:
            pauses = self.sources.delay(now), self.sources.liveness_delay(now), self.commander.delay(now)
            await self._rest(min(pauses))

    def _away(self, now: float) -> bool:
        return not self.identity.known or self.sources.away(now)

    async def _probe(self) -> None:
        """Ask a silent gateway for `/info`. If it answers, everything is asked again."""
        before = self.gateway.requests
        error = await self._ask(self._info)
        self._refresh()
        now = self._time()
        if error is None and not self.sources.held(now):
            self.sources.restart(now, without=self._info)
        else:
            await self._rediscover()
            # A gateway that fails gets no more requests than one that works; one probe may be several requests.
            pause = max(PROBE_PAUSE_MIN_S, self.sources.fastest * (self.gateway.requests - before))
            await self._rest(min(PROBE_PAUSE_MAX_S, pause))

    async def _rediscover(self) -> None:
        """Look for another address of the gateway. If there is none, its address in the settings is asked next."""
        found = await self._rediscovery.find(self.serial) if self.serial else None
        if await self.gateway.move(found or self.settings.base_url) and found:
            text = "gateway %s announces itself at %s: trying there"
            self._log.info(text, self.serial, found, extra={"event": "moved"})

    async def _rest(self, seconds: float) -> None:
        self.watchdog.idle(seconds)
        await self.commander.rest(seconds)

    async def _watch(self) -> None:
        """Publish that a source has become stale, also while a request hangs."""
        while True:
            self._refresh()
            await asyncio.sleep(max(WATCH_PAUSE_MIN_S, self.sources.next_change(self._time())))

    def _refresh(self) -> None:
        error = self.sources.last_error
        if self._away(self._time()) and not self._refusals and error is not None:
            self._report_absence(error)
        self.output.refresh()

    def _report_absence(self, error: BridgeError) -> None:
        """Set the problem of a gateway that does not answer. The log has the error of the first source already."""
        if isinstance(error, CloudUnavailable):
            self.output.report_problem(str(error), log=False, event="offline")
        else:
            is_new = self.identity.known and self.output.problem is None
            self.output.report_problem(f"the gateway can't be read: {error}", log=is_new, event="offline")

    async def _ask(self, source: Source) -> BridgeError | None:
        """Ask one source, and learn from its answer or its failure. Returns the failure."""
        endpoint = source.endpoint
        if not endpoint.wanted(self.identity.facts):
            source.skip(self._time())
            return None
        started, before = self._time(), self.gateway.requests
        error: BridgeError | None = None
        followup: Request | None = None
        try:
            answer = await self.gateway.fetch(endpoint.request, deadline=endpoint.timeout)
            parsed = await _parse(endpoint, answer, self.identity.facts, self._now())
            await self._learn(source, parsed)
            parsed = self.commander.observe(source, parsed, answer.body)
            processed = self.output.process(source, parsed)
        except BridgeError as failure:
            if isinstance(failure, BadAnswer) and failure.__cause__ is not None:
                self._log.debug("%s: unforeseen answer", source.name, exc_info=failure.__cause__)
            error = _of_info(failure, self.identity, self.gateway.url) if source is self._info else failure
            await self._on_failure(source, error)
        else:
            await self._on_answer(source, answer, parsed, processed)
            followup = parsed.request
        finally:
            now, requests = self._time(), self.gateway.requests - before
            self.sources.polled(source, now, seconds=now - started, requests=requests)
        await self._run_followup(followup)
        return error

    # Answers

    async def _learn(self, source: Source, parsed: Parsed) -> None:
        """Take over what an answer says about the gateway itself.

        Raises:
            Rejected: another gateway answers than the one that is expected.
            KeyChanged: the gateway has another TLS key than before.
        """
        facts, before = parsed.facts, self.identity.facts
        if facts is None:
            return
        if source is not self._info:
            self.identity.learn(facts)
            return
        self.identity.recognise(facts)
        if self.output.publisher is None:
            text = "gateway %s, firmware %s"
            self._log.info(text, facts.serial, facts.firmware, extra={"event": "identified"})
            self._on_identified()
            await self.output.open(facts.serial)
            self.commander.open(facts.serial)
        elif before.firmware != facts.firmware:
            text = "firmware changed from %s to %s"
            self._log.info(text, before.firmware, facts.firmware, extra={"event": "firmware_changed"})
            self.sources.retry_absent(self._time())

    async def _on_answer(self, source: Source, answer: Answer, parsed: Parsed, processed: Processed | None) -> None:
        self.sources.record_answer(source, parsed, answer.elapsed, self._time())
        self._succeed(source)
        await self.output.publish(source, processed, answer.elapsed)
        if processed and processed.is_unconfirmed and source not in self._confirmed:
            self._confirmed.add(source)
            self._unconfirmed.add(source)
        if self._site_period is not None:
            self.output.speed_up(self._site_period)

    def _succeed(self, source: Source) -> None:
        """Note that the gateway can be used. `/info` alone does not show that: it needs no token."""
        if source is self._info and len(self.sources.by_name) > 1:
            return
        if self.sources.record_success(self._time()):
            self._log.info("gateway %s is online", self.serial, extra={"event": "online"})
        self._refusals = 0
        self.output.report_problem(self.sources.access_problem, event="access_problem")

    async def _run_followup(self, request: Request | None) -> None:
        """Make the request that an answer asks for: it turns the live stream on again."""
        if request is None or self._time() - self._stream_requested_at < STREAM_PAUSE_S:
            return
        self._stream_requested_at = self._time()
        try:
            await self.gateway.fetch(request)
        except BridgeError as error:
            self._log.info("%s: %s", request.path, error, extra={"source": SourceName.LIVEDATA.value})
        else:
            self.sources.by_name[SourceName.LIVEDATA].due = self._time()

    # Failures

    async def _on_failure(self, source: Source, error: BridgeError) -> None:
        if isinstance(error, KeyChanged) and await self.identity.pin_new_key(self._now()):
            self.output.report_problem(self.identity.problem, event="key_pinned")
            self._info.due = self._time()  # with the new key it answers
            return
        another_gateway = source is self._info and isinstance(error, Rejected)
        if isinstance(error, Unsupported):
            if self.sources.record_missing(source, error):
                self.output.lose(source)
            if source.name is SourceName.METERS and self.identity.facts.meters is None:
                self.identity.facts = replace(self.identity.facts, meters=())
            self._succeed(source)
        elif isinstance(error, TokenRejected | CloudRejected | KeyChanged) or another_gateway:
            source.record_failure()
            self._refuse(error)
        else:
            self.sources.record_failure(source, error)

    def _refuse(self, error: BridgeError) -> None:
        """Pause after a failure that only a person can mend. The pause doubles each time."""
        self.sources.failures += 1
        self.sources.hold(self._time() + min(REFUSED_PAUSE_MAX_S, REFUSED_PAUSE_MIN_S * 2**self._refusals))
        self._refusals = min(self._refusals + 1, MAX_DOUBLINGS)
        self.output.report_refusal(error)


def _of_info(failure: BridgeError, identity: Identity, url: str) -> BridgeError:
    """A failure of `/info`, which every gateway has; at the first contact with advice about the settings."""
    advice = at_first_contact(failure, url) if identity.is_stranger else ""
    error = Unavailable(NO_GATEWAY) if isinstance(failure, Unsupported) else failure
    if advice:
        error.args = (f"{error}; {advice}",)  # the class stays, which callers act on
    return error


async def _parse(endpoint: Endpoint, answer: Answer, facts: Facts, now: float) -> Parsed:
    """Read an answer; a long one in a thread, since on a small computer it would hold up the other gateways."""
    if len(answer.body) < LONG_ANSWER_BYTES:
        return endpoint.parse(answer.body, facts, now)
    return await asyncio.to_thread(endpoint.parse, answer.body, facts, now)
