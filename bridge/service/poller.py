"""One gateway, polled: which source when, and what its answers and failures lead to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo

from bridge.config import GatewaySettings
from bridge.endpoints import BY_SOURCE, ENDPOINTS, Endpoint, Parsed
from bridge.gateway import CloudRejected, CloudUnavailable, Gateway, Kept, KeyChanged, Token, TokenRejected
from bridge.model import Answer, BadAnswer, BridgeError, Message, Rejected, Request, Unavailable, Unsupported
from bridge.service.budget import Budget
from bridge.service.counting import Counting
from bridge.service.diagnostics import Diagnostics
from bridge.service.health import NEVER, Health
from bridge.service.identity import Identity
from bridge.service.mirror import Mirror, Publish, Style
from bridge.service.pulse import Pulse
from bridge.service.schedule import Schedule
from bridge.service.search import Search
from bridge.service.status import GatewayStatus, SourceStatus
from bridge.store import Store

LOG = logging.getLogger(__name__)
INFO, METERS = "info", "meters"
QUICK = frozenset({"readings", "livedata"})
SAVE = 300.0
"""Seconds between two saves of the counters: a memory card must last for years."""
KEEP = 6 * 3600.0
"""Seconds between two saves of what is published, which is large, where there is no other reason for one."""
PROBE, PROBE_LAST = 10.0, 300.0
"""Least and most seconds between looks at a gateway that does not answer: only at `/info`, which costs least."""
REFUSED_FIRST, REFUSED_LAST = 30.0, 900.0
"""Seconds until a gateway that refuses us is asked again: twice as long each time."""
MAX_DOUBLINGS = 10
STREAM_PAUSE = 60.0
"""Least seconds between two requests to turn the live stream on."""
SHOWN = ("site/", "meter/")
"""Devices whose values a status has."""
SHORTEST_WATCH = 0.5
"""Least seconds between two looks at what has become stale."""


Seeds = Callable[[str], Awaitable[Mapping[str, float]]]
"""Values of our own retained topics of a gateway, by topic below it."""


async def no_seeds(_serial: str) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked how often (seconds), how much of the gateway's time that may take, and how the site is counted.

    `site_period` is how often the answer with the site's powers is wanted, `None` where the owner has said it.
    """

    periods: Mapping[str, float]
    site_period: float | None = None
    budget: float = 0.25
    netted: bool = True
    third_party: bool = False
    zone: tzinfo | None = None


class Poller:
    """Polls one gateway and keeps its mirror true. `now` is the wall clock; all other times are the loop's."""

    def __init__(
        self,
        settings: GatewaySettings,
        gateway: Gateway,
        store: Store,
        publish: Publish,
        style: Callable[[str], Style],
        *,
        plan: Plan,
        identified: Callable[[], None] = lambda: None,
        seeds: Seeds = no_seeds,
        now: Callable[[], float],
    ) -> None:
        self._settings, self._gateway = settings, gateway
        self._publish, self._style, self._identified, self._now = publish, style, identified, now
        self._log = logging.LoggerAdapter(LOG, {"gateway": settings.host})
        self._time = asyncio.get_running_loop().time
        self.pulse = Pulse(f"the poller of {settings.host}", self._time)
        self._identity = Identity(settings, gateway, store)
        self._plan, self._seeds = plan, seeds
        ticks = {e.source: (plan.periods[e.source], e.urgency) for e in ENDPOINTS}
        self._schedule = Schedule(ticks, self._time())
        self._budget = Budget(plan.budget, ticks)
        wanted = {source: self._schedule.period(source) for source in self._schedule.sources}
        self._health = Health(wanted, self._time(), self._log)
        self._search = Search(settings, self._time, self._log)
        self._counting: Counting | None = None
        self._counted_at = NEVER
        self._kept_at = self._time()
        self._diagnostics = Diagnostics()
        self._mirror: Mirror | None = None
        self._restored = False
        self._problem: str | None = None
        self._refusals = 0
        self._streamed = NEVER

    @property
    def host(self) -> str:
        return self._settings.host

    @property
    def _address(self) -> str:
        """As the settings have it, unless it has moved."""
        url = self._gateway.url
        return self.host if url == self._settings.base_url else url.removeprefix("https://")

    @property
    def serial(self) -> str | None:
        return self._identity.serial

    @property
    def lack(self) -> str | None:
        """What a person should know, in plain words; `None` where all is well."""
        problem = self._trouble
        return problem and f"{self.host}: {problem}"

    @property
    def _trouble(self) -> str | None:
        """Who has no problem, but does not answer either, has one all the same."""
        if self._problem is None and not self._health.online(self._time()):
            return str(self._health.last_error or "no answer yet")
        return self._diagnosed().problem

    def keep_token(self, token: Token) -> None:
        self._identity.keep_token(token)

    def keep_pause(self, kept: Kept) -> None:
        self._identity.keep_pause(kept)

    def sent(self, message: Message) -> None:
        """The broker has it; what had to go is gone then."""
        if self._mirror and self._mirror.sent(message):
            self._identity.keep_published(self._mirror.dump())

    def leave(self) -> None:
        """Nobody polls any more: nothing is fresh."""
        if serial := self._identity.serial:
            mirror = self._mirror or self._make_mirror(serial)
            mirror.health(self._time(), is_online=False, powered_by=self._powered_by)
        self.save()
        self._keep_tree()

    @property
    def status(self) -> GatewayStatus:
        """What is so now."""
        now, known = self._time(), self._diagnosed()
        is_online = self._health.online(now)
        powered = self._health.sources.get(self._powered_by or "")
        return GatewayStatus(
            host=self.host,
            address=self._address,
            serial=self.serial,
            name=self._settings.name,
            firmware=self._identity.facts.firmware,
            known=self._identity.known,
            online=is_online,
            problem=self._trouble,
            needs_token=self._settings.base_url.startswith("https"),
            token_expires=known.token_expires,
            token_role=known.token_role,
            counters_held=known.counters_held,
            sources=tuple(SourceStatus.of(source, now) for source in self._health.sources.values()),
            flows_fresh=is_online and powered is not None and bool(powered.online(now)),
            readings=self._mirror.readings(SHOWN) if self._mirror else (),
        )

    @property
    def _powered_by(self) -> str | None:
        return self._counting.site.powered_by if self._counting else None

    async def aclose(self) -> None:
        await self._gateway.aclose()

    async def run(self) -> None:
        """Poll for ever."""
        self._refresh()  # nobody must take the values of an earlier run for fresh ones
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                await self._step()

    async def once(self) -> list[BridgeError]:
        """Ask for everything once; what did not answer."""
        asked = (source for source in self._schedule.sources if source == INFO or self._identity.known)
        errors = [await self._ask(source) for source in asked]
        self._refresh()
        return [error for error in errors if error is not None]

    async def _step(self) -> None:
        now = self._time()
        self.pulse.work()
        if self._away(now):
            await self._probe()
        elif source := self._schedule.next(now) or self._lifeline(now):
            await self._ask(source)
            self._refresh()
            await self._give_way()
        else:
            await self._rest(min(self._schedule.delay(now), self._health.lifeline_delay(now)))

    def _lifeline(self, now: float) -> str | None:
        return None if self._schedule.held(now) else self._health.lifeline(now)

    def _away(self, now: float) -> bool:
        return not self._identity.known or self._health.away(now)

    async def _probe(self) -> None:
        """A look at `/info`; if it answers, everything is asked for again."""
        before = self._gateway.requests
        error = await self._ask(INFO)
        self._refresh()
        if error is None and not self._schedule.held(self._time()):
            self._health.give_chance(self._time())
            self._schedule.restart(self._time(), without=INFO)
        else:
            await self._look_around()
            await self._rest(self._probe_pause(self._gateway.requests - before))

    def _probe_pause(self, requests: int) -> float:
        """Seconds until the next look: one that is ill must not be asked more often than when it is well."""
        return min(PROBE_LAST, max(PROBE, self._schedule.fastest * requests))

    async def _look_around(self) -> None:
        """It may have another address now. If it does not answer there either, it is asked at its old one again."""
        found = await self._search.url(self.serial) if self.serial else None
        if await self._gateway.move(found or self._settings.base_url) and found:
            self._log.info("gateway %s announces itself at %s: trying there", self.serial, found)

    async def _give_way(self) -> None:
        """To the sender: what is new leaves before more is made, which takes longer than sending it."""
        await asyncio.sleep(0)

    async def _rest(self, seconds: float) -> None:
        self.pulse.rest(seconds)
        await asyncio.sleep(seconds)

    async def _ask(self, source: str) -> BridgeError | None:
        endpoint = BY_SOURCE[source]
        if not endpoint.wanted(self._identity.facts):
            self._health.sources[source].needless()
            self._schedule.asked(source, self._time())
            return None
        started, before = self._time(), self._gateway.requests
        try:
            answer = await self._gateway.fetch(Request(endpoint.path), deadline=endpoint.timeout)
            parsed = self._understood(endpoint, answer)
            await self._learn(source, parsed)
        except BridgeError as failure:
            missing = source == INFO and isinstance(failure, Unsupported)
            error = Unavailable(f"{failure}: this is no IQ Gateway") if missing else failure
            await self._bad(source, error)
            return error
        else:
            await self._good(source, answer, parsed)
            await self._follow(parsed.request)
            return None
        finally:
            self._asked(source, self._time() - started, self._gateway.requests - before)

    def _asked(self, source: str, seconds: float, requests: int) -> None:
        """What this has cost the gateway is taken from what it will be asked."""
        self._budget.spent(source, seconds)
        stretch = self._budget.stretch(source)
        health = self._health.sources[source]
        health.period = self._schedule.period(source) * stretch
        health.tally.add(seconds, requests)
        self._schedule.asked(source, self._time(), pause=health.pause, skip=max(0, requests - 1), stretch=stretch)

    def _understood(self, endpoint: Endpoint, answer: Answer) -> Parsed:
        try:
            return endpoint.split(answer.body, self._identity.facts, self._now())
        except BridgeError:
            raise
        except Exception as error:  # an answer that nobody has thought of must cost only its own source
            self._log.debug("%s: unforeseen answer", endpoint.source, exc_info=True)
            raise BadAnswer(f"{endpoint.path}: unforeseen answer ({type(error).__name__})") from error

    # What an answer leads to

    async def _learn(self, source: str, parsed: Parsed) -> None:
        if parsed.facts is None:
            return
        before = self._identity.facts
        if source != INFO:
            self._identity.learn(parsed.facts)
            return
        self._identity.recognise(parsed.facts)
        if self._mirror is None:
            self._mirror = self._make_mirror(parsed.facts.serial)
            self._restored = self._mirror.restore(self._identity.published())
            self._log.info("gateway %s, firmware %s", parsed.facts.serial, parsed.facts.firmware)
            self._identified()
            await self._open_counters(parsed.facts.serial)
        elif before.firmware != parsed.facts.firmware:
            self._log.info("firmware changed from %s to %s", before.firmware, parsed.facts.firmware)
            for absent in self._health.forget_absences():
                self._schedule.advance(absent, self._time())

    def _make_mirror(self, serial: str) -> Mirror:
        return Mirror(serial, self._style(serial), self._health.sources, self._publish)

    async def _good(self, source: str, answer: Answer, parsed: Parsed) -> None:
        self._health.good(source, parsed, answer.elapsed, self._time())
        self._succeed(source)
        self._diagnostics.last_answer = datetime.fromtimestamp(self._now(), UTC)
        self._diagnostics.answer_time = round(answer.elapsed, 3)
        if self._mirror and self._counting:
            await self._show(self._mirror, self._counting, source, parsed)

    async def _show(self, mirror: Mirror, counting: Counting, source: str, parsed: Parsed) -> None:
        facts, now = self._identity.facts, self._now()
        counted = counting.count(source, parsed, facts, now=now, steady=self._time())
        for event in counted.events:
            self._log.log(logging.WARNING if event.warning else logging.INFO, "%s", event.text)
        self._diagnostics.counters_held = counted.held
        if mirror.show(source, counted.readings, now):
            await self._give_way()
        mirror.complete(source, counting.flows(counted.answer), now)
        self._quicken(counting.site.powered_by)
        if self._time() - self._counted_at >= SAVE:
            self.save()

    async def _open_counters(self, serial: str) -> None:
        """From the state file, and from what our subscribers have: nothing is published before that is known."""
        kept = self._identity.counted()
        self._counting = Counting(
            netted=self._plan.netted,
            third_party=self._plan.third_party,
            zone=self._plan.zone,
            kept=kept,
            devices=self._mirror.devices if self._mirror else (),
        )
        self._counting.seed(await self._seeds(serial))
        self._counted_at = self._time()

    def _quicken(self, source: str | None) -> None:
        """The answer that the site's powers come from is wanted more often than it would be for itself."""
        wanted = self._plan.site_period
        if source in QUICK and wanted and self._schedule.period(source) > wanted:
            self._schedule.change_period(source, wanted)
            self._budget.change_period(source, wanted)

    def save(self) -> None:
        """Counters must outlive the process."""
        self._counted_at = self._time()
        if self._counting and self._identity.known:
            self._identity.keep_counted(self._counting.dump())
        if self._time() - self._kept_at >= KEEP:
            self._keep_tree()

    def _keep_tree(self) -> None:
        """What is published, and since when something of it is absent."""
        self._kept_at = self._time()
        if self._mirror and self._identity.known:
            self._identity.keep_published(self._mirror.dump())

    def _succeed(self, source: str) -> None:
        """`/info` needs no token, so it alone does not make a gateway one that can be used."""
        if source == INFO and len(self._health.sources) > 1:
            return
        if self._health.succeeded(self._time()):
            self._log.info("gateway %s is online", self._identity.serial)
        self._refusals = 0
        self._tell(self._health.barred)

    async def _follow(self, request: Request | None) -> None:
        """What an answer asks us to do: to turn the live stream on again."""
        if request is None or self._time() - self._streamed < STREAM_PAUSE:
            return
        self._streamed = self._time()
        try:
            await self._gateway.fetch(request)
        except BridgeError as error:
            self._log.info("%s: %s", request.path, error)
        else:
            self._schedule.advance("livedata", self._time())

    # What a failure leads to

    async def _bad(self, source: str, error: BridgeError) -> None:
        if isinstance(error, KeyChanged) and await self._repinned():
            return  # with the next tick it answers again
        if isinstance(error, Unsupported):
            self._missing(source, error)
        elif isinstance(error, TokenRejected | CloudRejected | KeyChanged) or self._is_other(source, error):
            self._health.sources[source].failed()
            self._refuse(error)
        else:
            self._health.failed(source, error)

    def _is_other(self, source: str, error: BridgeError) -> bool:
        return source == INFO and isinstance(error, Rejected)

    def _missing(self, source: str, error: BridgeError) -> None:
        self._health.missing(source, error)
        if source == METERS and self._identity.facts.meters is None:
            self._identity.facts = replace(self._identity.facts, meters=())
        self._succeed(source)

    def _refuse(self, error: BridgeError) -> None:
        """Somebody must do something: until then we ask ever more seldom."""
        self._health.failures += 1
        self._schedule.hold(self._time() + min(REFUSED_LAST, REFUSED_FIRST * 2**self._refusals))
        self._refusals = min(self._refusals + 1, MAX_DOUBLINGS)
        self._tell(str(error))

    async def _repinned(self) -> bool:
        """A changed TLS key is looked at without showing it anything secret."""
        try:
            answer, seen = await self._gateway.look()
            facts = self._understood(BY_SOURCE[INFO], answer).facts
        except BridgeError:
            return False
        if facts is None or not self._identity.repinned(facts, seen):
            return False
        self._log.warning("the gateway's TLS key changed with its firmware %s: pinned anew", facts.firmware)
        self._schedule.advance(INFO, self._time())
        return True

    # What subscribers are told

    def _tell(self, problem: str | None, *, is_news: bool = True) -> None:
        """What a person must know, once for each change; in the log unless it stands there already."""
        if problem and is_news and problem != self._problem:
            self._log.warning("%s", problem)
        self._problem = problem

    def _tell_absence(self, error: BridgeError) -> None:
        """Why nothing is read, as it is now. The log has it from the source that met it first."""
        if isinstance(error, CloudUnavailable):
            self._tell(str(error), is_news=False)
        else:
            text = f"the gateway can't be read: {error}"
            self._tell(text, is_news=self._identity.known and self._problem is None)

    def _refresh(self) -> None:
        now = self._time()
        if self._away(now) and not self._refusals and self._health.last_error is not None:
            self._tell_absence(self._health.last_error)
        serial = self._identity.serial
        if serial is None:
            return
        mirror = self._mirror or self._make_mirror(serial)
        mirror.health(now, is_online=self._health.online(now), powered_by=self._powered_by)
        mirror.diagnose(self._diagnosed(), now, self._now())
        if self._mirror and (self._health.tried or self._restored) and mirror.announce(self._identity.facts):
            self._keep_tree()

    def _diagnosed(self) -> Diagnostics:
        tokens, known = self._gateway.tokens, self._diagnostics
        known.certificate = self._gateway.fingerprint
        known.failures = self._health.failures
        known.problem = self._problem
        if self._settings.base_url.startswith("https"):
            known.token_expires, known.token_role = tokens.expires, tokens.role
            known.problem = self._problem or tokens.problem
        return known

    async def _watch(self) -> None:
        """Publishes what has become stale, also while a request hangs."""
        while True:
            self._refresh()
            await asyncio.sleep(max(SHORTEST_WATCH, self._health.next_change(self._time())))
