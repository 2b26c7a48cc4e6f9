"""`check`, the gateway's part: is it there, who is it, does it let us in, and what does it tell?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bridge.commands import codes, papers
from bridge.commands.reach import HOST, Place
from bridge.commands.report import Report, plural, size
from bridge.commands.visit import INFO, Visit, understood
from bridge.endpoints import ENDPOINTS, Endpoint, Parsed
from bridge.gateway import CloudRejected, CloudUnavailable, EndpointRefused, KeyChanged, TokenRejected
from bridge.model import Answer, BadAnswer, BridgeError, Facts, Request, Unavailable, Unsupported
from bridge.quirks import repaired
from bridge.service.health import LACKING, REFUSED

ENOUGH = 3
"""A gateway that leaves so many requests in a row unanswered is left in peace."""
WORTH_TELLING = 60.0
"""Seconds that a gateway's clock may be wrong."""
MINUTE, DAY = 60, 86_400
METERS = "meters"


class Inspection:
    """One gateway, step by step; each request is made once, as by a polite client."""

    def __init__(
        self, visit: Visit, report: Report, periods: Mapping[str, float], *, accept_key: bool = False
    ) -> None:
        self._visit, self._report, self._periods, self._accept_key = visit, report, periods, accept_key
        self._facts = Facts("")

    async def run(self) -> None:
        for step in (self._reach, self._identify, self._let_in):
            if not await step():
                return
        await Round(self._visit, self._report, self._facts).run(self._periods)

    async def _reach(self) -> bool:
        place = Place.of(self._visit.own.base_url)
        try:
            if place.named:
                self._report.ok("name", f"{place.host} is {await place.resolve()}")
        except Unavailable as error:
            self._report.fault("name", error)
            return False
        try:
            await place.knock()
        except Unavailable as error:
            self._report.fault("port", error)
            return False
        self._report.ok("port", f"{place.port} is open")
        return True

    # Who it is

    async def _identify(self) -> bool:
        try:
            self._facts = await self._visit.meet()
            self._tell_key()
        except KeyChanged as error:
            return await self._judge_key(error)
        except BridgeError as error:
            self._report.fault("gateway", error, self._advice(error))
            return False
        self._tell_identity()
        return True

    def _tell_key(self) -> None:
        key = _short(self._visit.gateway.fingerprint or "")
        if not self._visit.secure:
            self._report.note("TLS key", "none: plain HTTP, as firmware before 7 speaks it")
        elif self._visit.own.tls == "off":
            self._report.note("TLS key", f"{key}: not checked")
        elif self._visit.pinned is None:
            self._report.ok("TLS key", f"{key}: new, and pinned from now on")
        else:
            self._report.ok("TLS key", f"{key}: as pinned")

    async def _judge_key(self, changed: KeyChanged) -> bool:
        """Whether the new key can be trusted: as an update's, or since the owner says so."""
        visit, report = self._visit, self._report
        try:
            facts, key = await visit.look()
            if visit.updated(facts, key):
                report.note("TLS key", "it has changed together with the firmware, as updates do: pinned anew")
            elif self._accept_key:
                visit.accept(facts, key)
                report.note("TLS key", "it has changed, and is accepted and pinned; restart the bridge if it runs")
            else:
                report.fault("TLS key", changed)
        except BridgeError as error:
            report.fault("TLS key", error, self._advice(error))
            return False
        report.fact("before", visit.pinned or "unknown")
        report.fact("now", key)
        report.fact("shown by", f"gateway {facts.serial}, firmware {facts.firmware or 'unknown'}")
        self._facts = visit.facts
        if visit.facts.serial:
            self._tell_identity()
        return bool(visit.facts.serial)

    def _tell_identity(self) -> None:
        facts, known = self._facts, self._visit.known
        part = f", part number {facts.part_number}" if facts.part_number else ""
        self._report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}{part}")
        if known not in (None, facts.serial):
            self._report.note("gateway", f"another one than at the last run ({known}): it gets topics of its own")
        if abs(facts.clock_offset) > WORTH_TELLING:
            way = "fast" if facts.clock_offset > 0 else "slow"
            much = _spelt(abs(facts.clock_offset))
            self._report.note("clock", f"the gateway's is {much} {way}, or this computer's is wrong")

    def _advice(self, error: BridgeError) -> str:
        text, place = str(error), Place.of(self._visit.own.base_url)
        if self._visit.secure and "TLS fails" in text:
            return place.without_tls
        if not self._visit.secure and (isinstance(error, BadAnswer) or "broke off" in text):
            return place.with_tls
        if "is starting" in text:
            return "try again in a minute"
        return f"is {HOST} right?" if isinstance(error, BadAnswer) else ""

    # Whether it lets us in

    async def _let_in(self) -> bool:
        if not self._visit.secure:
            self._report.ok("token", "none is needed: firmware before 7 knows no tokens")
            return True
        at_hand = papers.at_hand(self._visit.own, self._visit.state.token)
        tokens = self._visit.gateway.tokens
        try:
            token = await tokens.current()
        except BridgeError as error:
            self._report.fault("token", error)
            return False
        source = papers.source_of(token, at_hand)
        self._report.ok("token", f"from {source}: {papers.described(token)}, for this gateway")
        for paper in at_hand:
            if paper.source != source and (fault := paper.fault(self._facts.serial)):
                self._report.note("token", f"{paper.source} is of no use: {fault}")
        if problem := tokens.problem:
            self._report.note("token", problem)
        return True


class Round:
    """Everything of the table once, one after another."""

    def __init__(self, visit: Visit, report: Report, facts: Facts) -> None:
        self._visit, self._report, self._facts = visit, report, facts
        self._needless: list[str] = []

    async def run(self, periods: Mapping[str, float]) -> None:
        silent, errors = 0, dict[str, BridgeError | None]()
        for endpoint in ENDPOINTS:
            if not self._worth_asking(endpoint, periods):
                continue
            error = errors[endpoint.source] = await self._ask(endpoint)
            if isinstance(error, TokenRejected | CloudRejected | CloudUnavailable):
                self._report.note("the others", "not asked, for want of a token")
                return
            silent = silent + 1 if isinstance(error, Unavailable) else 0
            if silent >= ENOUGH:
                self._report.note("the others", "not asked, for the gateway does not answer any more")
                break
        self._conclude([error for source, error in errors.items() if source != INFO.source])

    def _worth_asking(self, endpoint: Endpoint, periods: Mapping[str, float]) -> bool:
        if periods[endpoint.source] == 0:
            setting = f"BRIDGE_POLL__{endpoint.source.upper()}"
            self._report.note(endpoint.source, f"turned off ({setting} is 0)")
            return False
        if not endpoint.wanted(self._facts):
            self._needless.append(endpoint.source)
            return False
        return True

    def _conclude(self, errors: Sequence[BridgeError | None]) -> None:
        if self._needless:
            self._report.ok("storage gear", f"none was seen that needs {', '.join(self._needless)}")
        if errors and all(isinstance(error, Unsupported) for error in errors):
            is_refused = any(isinstance(error, EndpointRefused) for error in errors)
            self._report.problem("endpoints", REFUSED if is_refused else LACKING, codes.REFUSED)
        if any(error is not None and not isinstance(error, Unsupported) for error in errors):
            advice = "if it lasts, restart the gateway; for a report of it, see `iqgateway2mqtt capture`"
            self._report.note("advice", f"the bridge goes on with what answers, and asks again; {advice}")

    async def _ask(self, endpoint: Endpoint) -> BridgeError | None:
        try:
            answer = await self._answer(endpoint)
            parsed = understood(endpoint, answer, self._facts)
        except BridgeError as error:
            self._report.fault(endpoint.source, error)
            if isinstance(error, Unsupported) and endpoint.source == METERS:
                self._facts = replace(self._facts, meters=())
            return error
        if parsed.facts is not None:
            self._facts = parsed.facts
        self._tell_answer(endpoint, answer, parsed)
        return None

    async def _answer(self, endpoint: Endpoint) -> Answer:
        """`/info` was asked already."""
        if endpoint.source == INFO.source and self._visit.info is not None:
            return self._visit.info
        return await self._visit.gateway.fetch(Request(endpoint.path), deadline=endpoint.timeout)

    def _tell_answer(self, endpoint: Endpoint, answer: Answer, parsed: Parsed) -> None:
        count = len(repaired(endpoint.source, parsed.readings))
        text = f"{answer.elapsed:5.2f} s {size(len(answer.body)):>9} {plural(count, 'value'):>12}"
        if not parsed.fresh:
            text += "; standing still until `run` turns the live stream on"
        if parsed.problems:
            more = f" (and {len(parsed.problems) - 1} more)" if len(parsed.problems) > 1 else ""
            self._report.note(endpoint.source, f"{text}; left out what can't be used: {parsed.problems[0]}{more}")
        else:
            self._report.ok(endpoint.source, text)


def _spelt(seconds: float) -> str:
    """A length of time in the largest unit that says enough."""
    days, minutes = seconds / DAY, seconds / MINUTE
    return f"{days:.0f} days" if days >= 2 else f"{minutes:.0f} min"  # noqa: PLR2004 - one day is 1440 minutes


def _short(fingerprint: str) -> str:
    """As much as a person can compare."""
    return f"{fingerprint[:16]}…"
