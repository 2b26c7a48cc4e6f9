"""`check`: shows step by step what works and what does not, and what to do about it."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from bridge.commands.check_broker import check_broker
from bridge.commands.report import (
    EXIT_REFUSED,
    FAILING_ADVICE,
    LogCollector,
    Report,
    configure_log,
    plural,
    size,
)
from bridge.commands.session import (
    DEFAULT_TIMING,
    INFO_ENDPOINT,
    CommandTiming,
    GatewayAddress,
    GatewaySession,
    chosen,
)
from bridge.commands.token import STATE_FOLDER_ORIGIN, describe, origin_of, token_cache
from bridge.control.values import ControlValues, Prospects
from bridge.endpoints import CONTROLS, ENDPOINTS, Endpoint, Parsed
from bridge.gateway.errors import (
    BrokenOff,
    CloudRejected,
    CloudUnavailable,
    EndpointRefused,
    KeyChanged,
    Overloaded,
    Starting,
    TlsFault,
    TokenRejected,
    at_first_contact,
)
from bridge.gateway.token import Token
from bridge.model import (
    DAY_S,
    MINUTE_S,
    Answer,
    BadSetting,
    BridgeError,
    Facts,
    Reading,
    SourceName,
    Unavailable,
    Unsupported,
)
from bridge.pipeline import repaired
from bridge.service.identity import UNCONFIRMED
from bridge.service.poller import periods
from bridge.service.sources import ALL_MISSING, ALL_REFUSED
from bridge.settings import ENVIRONMENT, GatewaySettings, LogSettings, Settings, found, nothing_set
from bridge.site.clamp import doubts
from bridge.state import IdentityState
from bridge.store import Store

NOTICED = "a running bridge notices that within a quarter of an hour, or at once when it is restarted"
CLOCK_TOLERANCE_S = 60.0
"""A gateway's clock is reported if it is off by more than this."""


class GatewayCheck:
    """Checks one gateway step by step, and stops at the first step that fails. Each request is made once."""

    def __init__(
        self, session: GatewaySession, report: Report, settings: Settings, *, accept_key: bool = False
    ) -> None:
        self._session, self._report, self._accept_key = session, report, accept_key
        self._periods, self._allowed = periods(settings.poll), settings.control.allowed(session.own)
        self._facts, self._role = Facts(""), ""

    async def run(self) -> None:
        for step in (self._check_connection, self._identify, self._check_token):
            if not await step():
                return
        sweep = EndpointSweep(self._session, self._report, self._facts)
        await sweep.run(self._periods)
        sweep.report_commands(self._allowed, self._role)

    async def _check_connection(self) -> bool:
        address = GatewayAddress.from_url(self._session.own.base_url, self._session.timing)
        try:
            if address.has_name:
                self._report.ok("name", f"{address.host} is {await address.resolve()}")
        except Unavailable as error:
            self._report.fault("name", error)
            return False
        try:
            await address.check_port()
        except Unavailable as error:
            self._report.fault("port", error)
            return False
        self._report.ok("port", f"{address.port} is open")
        return True

    # Identity

    async def _identify(self) -> bool:
        try:
            self._facts = await self._session.identify()
            self._show_key()
        except KeyChanged as error:
            return await self._handle_changed_key(error)
        except BridgeError as error:
            self._report.fault("gateway", error, _advice(self._session, error))
            return False
        self._show_identity()
        return True

    def _show_key(self) -> None:
        key = _short(self._session.gateway.fingerprint or "")
        if not self._session.secure:
            self._report.note("TLS key", "none: plain HTTP, which firmware before 7 uses")
        elif self._session.own.tls == "off":
            self._report.note("TLS key", f"{key}: not checked")
        elif self._session.pinned is None:
            self._report.ok("TLS key", f"{key}: new, and pinned from now on")
        elif not self._session.state.key_unconfirmed:
            self._report.ok("TLS key", f"{key}: as pinned")
        elif self._accept_key:
            self._session.confirm_key()
            self._report.ok("TLS key", f"{key}: as pinned, and confirmed")
        else:
            self._report.note("TLS key", UNCONFIRMED)

    async def _handle_changed_key(self, changed: KeyChanged) -> bool:
        """Pin the new key if the owner accepts it. Only the running bridge sees whether the old key has gone."""
        session, report = self._session, self._report
        try:
            facts, key = await session.probe_untrusted()
            if self._accept_key:
                _accept_key(session, facts, key)
                report.note("TLS key", f"it has changed; the new key is accepted and pinned; {NOTICED}")
            else:
                report.fault("TLS key", changed)
        except BridgeError as error:
            report.fault("TLS key", error, _advice(self._session, error))
            return False
        report.fact("before", session.pinned or "unknown")
        report.fact("now", key)
        report.fact("shown by", f"gateway {facts.serial}, firmware {facts.firmware or 'unknown'}")
        self._facts = session.facts
        if session.facts.serial:
            self._show_identity()
        return bool(session.facts.serial)

    def _show_identity(self) -> None:
        facts, known = self._facts, self._session.previous_serial
        part = f", part number {facts.part_number}" if facts.part_number else ""
        self._report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}{part}")
        if known not in (None, facts.serial):
            self._report.note("gateway", f"not the same one as at the last run ({known}): it gets its own topics")
        if abs(facts.clock_offset) > CLOCK_TOLERANCE_S:
            way = "fast" if facts.clock_offset > 0 else "slow"
            much = _duration(abs(facts.clock_offset))
            self._report.note("clock", f"the gateway's clock is {much} {way}, or this computer's clock is wrong")

    # Access

    async def _check_token(self) -> bool:
        if not self._session.secure:
            self._report.ok("token", "none is needed with firmware before 7")
            return True
        cache = token_cache(self._session.own, self._session.state.token, self._facts.serial)
        tokens = self._session.gateway.tokens
        try:
            token = await tokens.current()
        except BridgeError as error:
            self._report.fault("token", error)
            return False
        self._role = token.role
        self._report.ok("token", f"from {origin_of(token, cache)}: {describe(token)}, for this gateway")
        for setting, other in cache.by_origin:
            fault = cache.fault_of(other) if isinstance(other, Token) else other
            if other != token and fault:
                self._report.note("token", f"{setting or STATE_FOLDER_ORIGIN} can't be used: {fault}")
        if problem := tokens.problem:
            self._report.note("token", problem)
        return True


def _advice(session: GatewaySession, error: BridgeError) -> str:
    """What to do about an error at the first contact; empty if the error says it."""
    if isinstance(error, Starting | Overloaded):
        return "try again in a minute"
    is_silent = isinstance(error, Unavailable) and not isinstance(error, TlsFault | BrokenOff)
    return "" if is_silent else at_first_contact(error, session.own.base_url)


def _accept_key(session: GatewaySession, facts: Facts, key: str) -> None:
    """Pin a new key because the owner has confirmed it.

    Raises:
        Rejected: the settings want another gateway.
    """
    session.gateway.pin(key)
    try:
        session.recognise(facts)
    except KeyChanged:
        state = session.store.load(facts.serial, IdentityState)
        session.store.save(facts.serial, state.changed(key_pin=key, key_unconfirmed=False))
        session.recognise(facts)


class EndpointSweep:
    """Asks each endpoint of the table once, one after another, and reports the answers."""

    def __init__(self, session: GatewaySession, report: Report, facts: Facts) -> None:
        self._session, self._report, self._facts = session, report, facts
        self._not_needed: list[str] = []
        self._readings: list[Reading] = []
        self._settable = ControlValues(CONTROLS)
        self._errors: dict[str, BridgeError | None] = {}

    async def run(self, periods: Mapping[str, float]) -> None:
        for endpoint in ENDPOINTS:
            if not self._is_wanted(endpoint, periods):
                continue
            error = self._errors[endpoint.source] = await self._ask(endpoint)
            if isinstance(error, TokenRejected | CloudRejected | CloudUnavailable):
                self._report.note("the others", "not asked, because there is no valid token")
                return
            self._session.count_request(answered=not isinstance(error, Unavailable))
            if self._session.unresponsive:
                self._report.note("the others", "not asked, because the gateway has stopped answering")
                break
        for doubt in doubts(self._facts, self._readings):
            self._report.note("clamp", doubt)
        self._summarize([error for source, error in self._errors.items() if source != INFO_ENDPOINT.source])

    def _is_wanted(self, endpoint: Endpoint, periods: Mapping[str, float]) -> bool:
        if not endpoint.every.normal and not periods[endpoint.source]:
            return False  # it is off unless it is turned on
        if periods[endpoint.source] == 0:
            setting = f"BRIDGE_POLL__{endpoint.source.upper()}"
            self._report.note(endpoint.source, f"turned off ({setting} is 0)")
            return False
        if not endpoint.wanted(self._facts):
            self._not_needed.append(endpoint.source)
            return False
        return True

    def _summarize(self, errors: Sequence[BridgeError | None]) -> None:
        if self._not_needed:
            self._report.ok("storage gear", f"no gear seen that needs {', '.join(self._not_needed)}")
        if errors and all(isinstance(error, Unsupported) for error in errors):
            is_refused = any(isinstance(error, EndpointRefused) for error in errors)
            self._report.problem("endpoints", ALL_REFUSED if is_refused else ALL_MISSING, EXIT_REFUSED)
        if any(error is not None and not isinstance(error, Unsupported) for error in errors):
            text = "the bridge publishes what answers, and asks the rest again later"
            self._report.note("advice", f"{text}; {FAILING_ADVICE}")

    def report_commands(self, allowed: frozenset[str], role: str) -> None:
        """Report what commands may set, as far as can be told without trying."""
        unread = frozenset(source for source, error in self._errors.items() if error is not None)
        for is_good, text in Prospects(CONTROLS, self._settable, self._facts, allowed, unread):
            (self._report.ok if is_good else self._report.note)("commands", text)
        if allowed and role:
            text = f"role {role}: owners report that theirs is enough; a gateway that wants another one refuses"
            self._report.ok("commands", text)

    async def _ask(self, endpoint: Endpoint) -> BridgeError | None:
        try:
            answer = await self._answer(endpoint)
            parsed = endpoint.parse(answer.body, self._facts, time.time())
        except BridgeError as error:
            self._report.fault(endpoint.source, error)
            if isinstance(error, Unsupported) and endpoint.source == SourceName.METERS:
                self._facts = replace(self._facts, meters=())
            return error
        if parsed.facts is not None:
            self._facts = parsed.facts
        self._show_answer(endpoint, answer, parsed)
        return None

    async def _answer(self, endpoint: Endpoint) -> Answer:
        """The answer of an endpoint; `/info` was read when the session began."""
        if endpoint.source == INFO_ENDPOINT.source and self._session.info is not None:
            return self._session.info
        deadline = min(endpoint.timeout, self._session.timing.request)
        return await self._session.gateway.fetch(endpoint.request, deadline=deadline)

    def _show_answer(self, endpoint: Endpoint, answer: Answer, parsed: Parsed) -> None:
        readings = repaired(endpoint.source, parsed.readings)
        self._readings.extend(readings)
        self._settable.take(endpoint.source, readings)
        count = len(readings)
        text = f"{answer.elapsed:5.2f} s {size(len(answer.body)):>9} {plural(count, 'value'):>12}"
        if not parsed.fresh:
            text += "; these values do not change until `run` turns the live stream on"
        if parsed.problems:
            more = f" (and {len(parsed.problems) - 1} more)" if len(parsed.problems) > 1 else ""
            self._report.note(endpoint.source, f"{text}; skipped unusable values: {parsed.problems[0]}{more}")
        else:
            self._report.ok(endpoint.source, text)


def _duration(seconds: float) -> str:
    """A duration in days, or in minutes if it is shorter than two days."""
    days, minutes = seconds / DAY_S, seconds / MINUTE_S
    return f"{days:.0f} days" if days >= 2 else f"{minutes:.0f} min"  # noqa: PLR2004 - one day is 1440 minutes


def _short(fingerprint: str) -> str:
    """The first characters of a fingerprint, as many as a person can compare."""
    return f"{fingerprint[:16]}…"


def _check_settings(settings: Settings, report: Report) -> None:
    report.section("Settings")
    places = {place: names for place, names in found().items() if names}
    if text := nothing_set():
        report.note("none", text)
    above: set[str] = set()
    for place, names in places.items():
        step, text = ("environment", "") if place == ENVIRONMENT else ("file", f"{place}: ")
        text += ", ".join(names)
        if twice := above.intersection(names):
            report.note(step, f"{text}; ignored, because they are set above: {', '.join(sorted(twice))}")
        else:
            report.ok(step, text)
        above.update(names)
    _check_folder(settings.state_dir, report)


def _check_folder(folder: Path, report: Report) -> None:
    """Check that tokens and keys can be kept in the state folder."""
    # os.path.exists says no where a folder above may not be searched; Path.exists raises an error
    existing = next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)  # noqa: PTH110
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        report.ok("state folder", str(folder))
    else:
        advice = "make it writable for this user, or set BRIDGE_STATE_DIR"
        report.note(
            "state folder", f"{folder} can't be written, so tokens and keys are lost at each restart; {advice}"
        )


async def _check_gateway(
    settings: Settings,
    own: GatewaySettings,
    store: Store,
    report: Report,
    timing: CommandTiming,
    *,
    accept_key: bool,
) -> None:
    report.section(f"Gateway {own.base_url}")
    try:
        session = GatewaySession(settings, own, store, timing)
    except BadSetting as problem:
        report.fault("settings", problem)
        return
    async with aclosing(session):
        await GatewayCheck(session, report, settings, accept_key=accept_key).run()


async def _check(
    settings: Settings, gateway: str | None, timing: CommandTiming, report: Report, *, accept_key: bool
) -> None:
    collector, store = LogCollector(), Store(settings.state_dir)
    logging.getLogger().handlers[:] = [collector]
    for own in chosen(settings, gateway):
        await _check_gateway(settings, own, store, report, timing, accept_key=accept_key)
        collector.flush_to(report)
    await check_broker(settings, store, report, timing)
    collector.flush_to(report)
    report.section(f"{plural(report.problems, 'problem')}." if report.problems else "No problems.")


def run(
    settings: Settings,
    gateway: str | None,
    accept_key: bool,
    timing: CommandTiming = DEFAULT_TIMING,
    *,
    places: bool = True,
) -> int:
    """Run the command; with `places`, show first where settings are. Returns the exit code of the worst problem.

    Raises:
        BadSetting: no gateway is called `gateway`.
    """
    report = Report()
    configure_log(LogSettings(level="WARNING"))
    chosen(settings, gateway)
    if places:
        _check_settings(settings, report)
    asyncio.run(_check(settings, gateway, timing, report, accept_key=accept_key))
    return report.worst
