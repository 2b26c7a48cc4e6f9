"""One gateway, polled: which source when, what its answers mean, and what its failures mean."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from bridge.config import GatewaySettings
from bridge.endpoints import BY_SOURCE, ENDPOINTS, Endpoint, Parsed
from bridge.gateway import CloudRejected, Gateway, KeyChanged, Token, TokenRejected
from bridge.model import (
    Answer,
    BadAnswer,
    BridgeError,
    Facts,
    MeterFacts,
    Rejected,
    Request,
    Unavailable,
    Unsupported,
)
from bridge.service.diagnostics import Diagnostics
from bridge.service.mirror import Mirror, Publish, Style
from bridge.service.schedule import Schedule
from bridge.service.sources import STALE_PERIODS, STALE_SECONDS, Source, State
from bridge.store import Store

LOG = logging.getLogger(__name__)
METERS = TypeAdapter(tuple[MeterFacts, ...])
INFO = "info"
PROBE = 10.0
"""Seconds between looks at a gateway that does not answer: only at `/info`, since that costs it the least."""
REFUSED_FIRST, REFUSED_LAST = 30.0, 900.0
"""Seconds until a gateway that refuses us is asked again: twice as long each time."""
STREAM_PAUSE = 60.0
"""Least seconds between two requests to turn the live stream on."""
SHORTEST_WATCH = 0.5
"""Least seconds between two looks at what has become stale."""
NEVER = float("-inf")


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
        periods: Mapping[str, float],
        identified: Callable[[], None] = lambda: None,
        now: Callable[[], float],
    ) -> None:
        self._settings, self._gateway, self._store = settings, gateway, store
        self._publish, self._style, self._identified, self._now = publish, style, identified, now
        self._time = asyncio.get_running_loop().time
        self._schedule = Schedule({e.source: (periods[e.source], e.urgency) for e in ENDPOINTS}, self._time())
        self._sources = {name: Source(name, self._schedule.period(name)) for name in self._schedule.sources}
        self._diagnostics = Diagnostics()
        self._mirror: Mirror | None = None
        self.facts = Facts("")
        self._succeeded = NEVER
        self._patient_since = self._time()
        self._refusals = self._failures_in_a_row = 0
        self._streamed = NEVER
        self._problem: str | None = None
        self._last_error: BridgeError | None = None
        self._log = logging.LoggerAdapter(LOG, {"gateway": settings.host})

    @property
    def host(self) -> str:
        return self._settings.host

    async def aclose(self) -> None:
        await self._gateway.aclose()

    @property
    def serial(self) -> str | None:
        """Known once the gateway has said it, or from the settings or an earlier run."""
        known = self.facts.serial or self._settings.serial or self._store.serial_of(self._settings.host)
        return known.lower() if known else None

    async def run(self) -> None:
        """Poll for ever."""
        if self.serial:  # its subscribers must not take the values of an earlier run for fresh ones
            self._refresh()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                await self._step()

    async def once(self) -> list[BridgeError]:
        """Ask for everything once; what did not answer."""
        errors = [
            await self._ask(source) for source in self._schedule.sources if source == INFO or self.facts.serial
        ]
        self._refresh()
        return [error for error in errors if error is not None]

    async def _step(self) -> None:
        now = self._time()
        if self._away(now):
            await self._probe(now)
        elif source := self._schedule.next(now):
            await self._ask(source)
            self._refresh()
        else:
            await asyncio.sleep(self._schedule.delay(now))

    def _patience(self) -> float:
        return max(STALE_SECONDS, STALE_PERIODS * self._schedule.fastest)

    def _online(self, now: float) -> bool:
        return now - self._succeeded < self._patience()

    def _away(self, now: float) -> bool:
        """Nothing has succeeded for long, or the gateway has never said who it is."""
        lost = now - max(self._succeeded, self._patient_since) >= self._patience()
        return not self.facts.serial or lost

    async def _probe(self, now: float) -> None:
        error = await self._ask(INFO)
        self._refresh()
        if error is None and not self._schedule.held(now):
            self._patient_since = self._time()
            self._schedule.restart(self._time(), without=INFO)
        else:
            await asyncio.sleep(PROBE)

    async def _ask(self, source: str) -> BridgeError | None:
        endpoint = BY_SOURCE[source]
        error: BridgeError | None = None
        try:
            answer = await self._gateway.fetch(Request(endpoint.path))
            parsed = self._understood(endpoint, answer)
            if parsed.facts:
                await self._learn(source, parsed.facts)
        except BridgeError as failure:
            error = failure
            await self._bad(source, failure)
        else:
            self._good(source, answer, parsed)
            await self._follow(parsed.request)
        self._schedule.asked(source, self._time(), pause=self._sources[source].pause)
        return error

    def _understood(self, endpoint: Endpoint, answer: Answer) -> Parsed:
        try:
            return endpoint.split(answer.body, self.facts, self._now())
        except BridgeError:
            raise
        except Exception as error:  # an answer that nobody has thought of must cost only its own source
            self._log.debug("%s: unforeseen answer", endpoint.source, exc_info=True)
            raise BadAnswer(f"{endpoint.path}: unforeseen answer ({type(error).__name__})") from error

    # What a good answer means

    def _good(self, source: str, answer: Answer, parsed: Parsed) -> None:
        self._failures_in_a_row = 0
        self._report_problems(self._sources[source], parsed)
        if self._sources[source].good(self._time(), fresh=parsed.fresh):
            self._log.info("%s: answers (%.2f s)", source, answer.elapsed)
        self._succeed(source)
        self._diagnostics.last_answer = datetime.fromtimestamp(self._now(), UTC)
        self._diagnostics.answer_time = round(answer.elapsed, 3)
        if self._mirror:
            self._mirror.show(source, parsed, self._now())

    def _succeed(self, source: str) -> None:
        """`/info` needs no token, so it alone does not make a gateway one that can be used."""
        if source == INFO and len(self._sources) > 1:
            return
        if not self._online(self._time()):
            self._log.info("gateway %s is online", self.facts.serial)
        self._succeeded = self._time()
        self._refusals = 0
        self._tell(None)

    def _report_problems(self, source: Source, parsed: Parsed) -> None:
        """One line for each change, not for each poll."""
        kinds = tuple(sorted({problem.partition(":")[0] for problem in parsed.problems}))
        if kinds and kinds != source.problems:
            more = f" (and {len(parsed.problems) - 1} more)" if len(parsed.problems) > 1 else ""
            self._log.warning("%s: left out what can't be used: %s%s", source.name, parsed.problems[0], more)
        source.problems = kinds

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

    # What the gateway teaches

    async def _learn(self, source: str, facts: Facts) -> None:
        if source == INFO:
            await self._identify(facts)
            facts = replace(facts, meters=facts.meters or self._known_meters(facts))
            if self.facts.firmware and facts.firmware != self.facts.firmware:
                self._updated(facts)
        self.facts = facts
        self._remember()

    async def _identify(self, facts: Facts) -> None:
        """Whether this is the gateway that we want.

        Raises:
            Rejected: it is another one; its data must not be mixed with ours.
        """
        wanted = self.facts.serial or (self._settings.serial or "").lower()
        if wanted and facts.serial != wanted:
            raise Rejected(
                f"gateway {facts.serial} answers at {self._settings.host} where {wanted} is expected: "
                "correct BRIDGE_GATEWAY__HOST or BRIDGE_GATEWAY__SERIAL"
            )
        self._check_key(facts)
        if self._mirror is None:
            self._gateway.identify(facts.serial)
            self._mirror = Mirror(facts.serial, self._style(facts.serial), self._sources, self._publish)
            self.facts = facts
            self._identified()
            self._store.remember(self._settings.host, facts.serial)
            self._log.info("gateway %s, firmware %s", facts.serial, facts.firmware)

    def _check_key(self, facts: Facts) -> None:
        """Trust on first use: the key that `/info` came with must be the one known of this serial number."""
        seen = self._gateway.fingerprint
        known = self._store.load(facts.serial).key_pin
        if seen is None or self._settings.tls == "off":
            return
        if known is not None and known != seen:
            raise KeyChanged(seen)
        self._gateway.pin(seen)
        if known is None:
            self._store.save(facts.serial, self._store.load(facts.serial).changed(key_pin=seen))

    def _known_meters(self, facts: Facts) -> tuple[MeterFacts, ...] | None:
        """From an earlier run, so that the readings need not wait for `/ivp/meters`."""
        with suppress(ValidationError):
            return METERS.validate_python(self._store.load(facts.serial).extra.get("meters"))
        return None

    def _remember(self) -> None:
        state = self._store.load(self.facts.serial)
        meters = [asdict(meter) for meter in self.facts.meters or ()] if self.facts.meters is not None else None
        changed = state.changed(firmware=self.facts.firmware, extra={**state.extra, "meters": meters})
        if changed != state:
            self._store.save(self.facts.serial, changed)

    def keep_token(self, token: Token) -> None:
        """A new token must outlive the process."""
        if self.facts.serial:
            self._store.save(self.facts.serial, self._store.load(self.facts.serial).changed(token=token.secret))

    def _updated(self, facts: Facts) -> None:
        self._log.info("firmware changed from %s to %s", self.facts.firmware, facts.firmware)
        for source in self._sources.values():
            if source.state is State.ABSENT:
                source.forget()
                self._schedule.advance(source.name, self._time())

    # What a failure means

    async def _bad(self, source: str, error: BridgeError) -> None:
        self._diagnostics.failures += 1
        if isinstance(error, KeyChanged):
            error = await self._key_changed(error) or error
        if isinstance(error, Unsupported):
            self._missing(source, error)
            return
        news = self._sources[source].failed()
        self._failures_in_a_row += 1
        self._last_error = error
        if isinstance(error, TokenRejected | CloudRejected | KeyChanged) or (
            source == INFO and isinstance(error, Rejected)
        ):
            self._refuse(error)
        elif news and (self._failures_in_a_row == 1 or not isinstance(error, Unavailable)):
            self._log.warning("%s: %s", source, error)

    def _missing(self, source: str, error: BridgeError) -> None:
        """The gateway answers, but does not have this, or has it for nobody."""
        if self._sources[source].missing():
            self._log.info("%s: %s", source, error)
        if source == "meters" and self.facts.meters is None:
            self.facts = replace(self.facts, meters=())
        self._failures_in_a_row = 0
        self._succeed(source)

    def _refuse(self, error: BridgeError) -> None:
        pause = min(REFUSED_LAST, REFUSED_FIRST * 2**self._refusals)
        self._refusals = min(self._refusals + 1, 10)
        self._schedule.hold(self._time() + pause)
        self._tell(str(error))

    async def _key_changed(self, error: KeyChanged) -> BridgeError | None:
        """A nightly update may bring a new key with the new firmware: that one is pinned anew, and said loudly."""
        known = self._store.load(self.serial or "")
        if self._settings.tls != "pin" or known.firmware is None:
            return None
        try:
            answer, seen = await self._gateway.look()
            facts = self._understood(BY_SOURCE[INFO], answer).facts
        except BridgeError as failure:
            return failure
        if facts is None or seen is None or facts.serial != self.serial or facts.firmware == known.firmware:
            return None
        self._log.warning("the gateway's TLS key changed with its firmware %s: pinned anew", facts.firmware)
        self._gateway.pin(seen)
        self._store.save(facts.serial, known.changed(key_pin=seen, firmware=facts.firmware))
        return Unavailable(str(error))

    def _tell(self, problem: str | None) -> None:
        """What a person must know, once for each change."""
        if problem and problem != self._problem:
            self._log.warning("%s", problem)
        self._problem = problem

    # What subscribers are told

    def _refresh(self) -> None:
        serial, now = self.serial, self._time()
        if serial is None:
            return
        mirror = self._mirror or Mirror(serial, self._style(serial), self._sources, self._publish)
        mirror.health(now, is_online=self._online(now))
        self._diagnose()
        mirror.diagnose(self._diagnostics, now, self._now())
        if all(source.tried for source in self._sources.values()) and self.facts.serial:
            mirror.announce(self.facts)

    def _diagnose(self) -> None:
        if self._away(self._time()) and self._problem is None and self._last_error is not None:
            self._tell(f"the gateway can't be read: {self._last_error}")
        tokens, known = self._gateway.tokens, self._diagnostics
        known.certificate = self._gateway.fingerprint
        known.problem = self._problem
        if self._settings.base_url.startswith("https"):
            known.token_expires, known.token_role = tokens.expires, tokens.role
            known.problem = self._problem or tokens.problem

    async def _watch(self) -> None:
        """Publishes what has become stale, also while a request hangs."""
        while True:
            now = self._time()
            self._refresh()
            ends = [self._succeeded + self._patience()]
            ends += [source.good_at + source.patience for source in self._sources.values() if source.good_at]
            ahead = [end - now for end in ends if end > now]
            await asyncio.sleep(max(SHORTEST_WATCH, min(ahead, default=STALE_SECONDS)))
