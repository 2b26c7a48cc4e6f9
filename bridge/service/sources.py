"""The sources of one gateway: when each is due, what its answers cost, how it is doing, and what to ask next.

A source is one endpoint as one gateway serves it. All times are monotonic seconds that the caller passes in.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bridge.endpoints import Endpoint, Parsed
from bridge.gateway.errors import EndpointRefused, Starting
from bridge.model import DAY_S, HOUR_S, MINUTE_S, NEVER, BridgeError, SourceName, Unavailable

URGENCY_STEP_S = 2.0
"""Head start for each step of urgency: urgent sources are asked first, but the others get their turn."""

STALE_AFTER_PERIODS = 3
STALE_AFTER_MIN_S = 30.0
"""A source is offline after so many periods without a good answer, but never before so many seconds."""

ABSENT_AFTER_404S = 3
"""A source that has answered before is absent only after so many 404s: a firmware update causes some."""
ABSENT_PAUSE_MIN_S, ABSENT_PAUSE_MAX_S = MINUTE_S, DAY_S
"""An absent source is asked again after the shorter pause, which doubles each time until it reaches a day."""

BREAKER_AFTER_FAILURES = 3
"""From so many failures in a row on, each further failure doubles the time until the next poll."""
BREAKER_PAUSE_MAX_S = 900.0
"""A source that fails is asked at least this often, unless its own period is longer."""

MAX_SLOWDOWN = 20.0  # times the wanted period
MIN_SHARE_OF_BUDGET = 0.25
"""Neither the live sources nor the others get less than this part of the budget."""
RECOVERY_WEIGHT = 0.05
"""Part of a slowdown that each answer takes back once the gateway is faster again."""
COST_WEIGHT = 0.3
"""Weight of the newest answer time in the smoothed one."""

LIVENESS_AFTER_SHARE = 0.6
"""When this part of the time until a silent gateway counts as offline is over, another of its sources is asked."""
LIVENESS_PAUSE_MIN_S = 1.0
ALL_REFUSED = "the gateway calls the token valid but refuses every endpoint: use the token of the system's owner"
ALL_MISSING = "the gateway has none of the endpoints that are read here: its firmware is too old"


class SourceState(Enum):
    """What is known of a source. ABSENT: the gateway answers 404, or 401 although the token is valid."""

    WAITING = "waiting"
    GOOD = "good"
    FAILING = "failing"
    ABSENT = "absent"


@dataclass(slots=True)
class Stats:
    """What polling a source has cost since the start. One poll may take several requests."""

    polls: int = 0
    requests: int = 0
    failures: int = 0
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Source:
    """One source.

    `period` is the wanted time between two polls, in seconds. `slowdown` is the factor by which the budget of the
    gateway stretches it at present. `interval` is the time between the last poll and the next one: the product of
    both, as it was at the last poll. `cost` is the smoothed time that an answer takes, in seconds.
    A source that is `in_first_round` is asked before those that are due.

    Of the last good answer, `good_at` is its time, `took` its seconds, `fresh` whether its data was new, `problems`
    the kinds of its unusable values, and `waited` the seconds that its oldest value has waited for the broker.
    `absences` and `failures` count 404s and failures in a row. `refused`: it is absent due to a 401, not a 404.
    """

    endpoint: Endpoint
    period: float
    due: float = 0.0
    in_first_round: bool = True
    slowdown: float = 1.0
    interval: float = field(init=False)
    cost: float | None = None
    state: SourceState = SourceState.WAITING
    good_at: float | None = None
    took: float | None = None
    fresh: bool = True
    absences: int = 0
    failures: int = 0
    error: BridgeError | None = None
    refused: bool = False
    problems: tuple[str, ...] = ()
    waited: float = 0.0
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        self.interval = self.period

    @property
    def name(self) -> SourceName:
        return self.endpoint.source

    @property
    def rank(self) -> float:
        """Of the sources that are due, the one with the lowest rank is asked first."""
        return self.due + self.endpoint.urgency * URGENCY_STEP_S

    @property
    def stale_after(self) -> float:
        """Seconds after a good answer until the source is offline."""
        return max(STALE_AFTER_PERIODS * self.interval, STALE_AFTER_MIN_S)

    def online(self, now: float, waited: float | None = None) -> bool | None:
        """Whether its data is fresh; `None` where it is absent. `waited` stands for its own, if given."""
        if self.state is SourceState.ABSENT or self.good_at is None:
            return None if self.state is SourceState.ABSENT else False
        age = max(now - self.good_at, self.waited if waited is None else waited)
        return self.fresh and age < self.stale_after

    @property
    def pause(self) -> float:
        """Least seconds until the next poll of a source that is absent, or fails again and again; 0 otherwise."""
        if self.state is SourceState.ABSENT:
            return min(ABSENT_PAUSE_MAX_S, ABSENT_PAUSE_MIN_S * _doubled(self.absences - 1))
        if self.failures < BREAKER_AFTER_FAILURES:
            return 0.0
        pause = self.interval * _doubled(self.failures - BREAKER_AFTER_FAILURES + 1)
        return min(pause, max(BREAKER_PAUSE_MAX_S, self.interval))

    def polled(self, now: float, *, seconds: float = 0.0, requests: int = 1) -> None:
        """Count a poll that took so many `seconds` and `requests`, and plan the next one.

        Requests beyond the first (retries, token checks) use up one period each.
        """
        self.stats.polls += 1
        self.stats.requests += requests
        self.stats.seconds += seconds
        self.interval = self.period * self.slowdown
        self.plan_next(now, pause=self.pause, skip=max(0, requests - 1))

    def plan_next(self, now: float, *, pause: float = 0.0, skip: int = 0) -> None:
        """Make it due at the first tick after `now`, or `skip` ticks later, but not before `pause` is over."""
        self.in_first_round = False
        missed = max(0, int((now - self.due) // self.interval))
        self.due = max(self.due + (missed + 1 + skip) * self.interval, now + pause)

    def record_answer(self, now: float, *, fresh: bool = True, took: float | None = None) -> bool:
        """Note a good answer. Returns whether that is a change of state."""
        before, self.state = self.state, SourceState.GOOD
        self.good_at, self.fresh, self.took, self.error, self.absences, self.failures = now, fresh, took, None, 0, 0
        return before is not SourceState.GOOD

    def record_failure(self) -> bool:
        """Note a poll without an answer, or with a bad one. Returns whether that is a change of state.

        An absent source stays absent: otherwise an outage would create availability topics for sources that the
        gateway does not have.
        """
        if self.state is SourceState.ABSENT:
            return False
        changed, self.state = self.state is not SourceState.FAILING, SourceState.FAILING
        self.failures += 1
        self.stats.failures += 1
        return changed

    def record_missing(self) -> bool:
        """Note that the gateway says it does not have this source. Returns whether that is a change of state."""
        self.absences += 1
        if self.good_at is not None and self.absences < ABSENT_AFTER_404S:
            return self.record_failure()
        before, self.state, self.good_at = self.state, SourceState.ABSENT, None
        return before is not SourceState.ABSENT

    def skip(self, now: float) -> None:
        """Pass over a source that this gateway can't have, without a request."""
        if self.state is SourceState.WAITING:
            self.state = SourceState.ABSENT
        self.plan_next(now)

    def forget_absence(self) -> None:
        """Treat an absent source like one that was never asked."""
        if self.state is SourceState.ABSENT:
            self.state, self.absences = SourceState.WAITING, 0


class Sources:
    """The sources of one gateway that are polled, and what their answers say about the gateway as a whole.

    The polls together take no more than the share `budget` of the gateway's time: when the gateway becomes slow,
    the slow sources are asked less often first, then the live ones. Each change of state is one line in the log.
    """

    def __init__(
        self, sources: Iterable[Source], now: float, *, budget: float, log: "logging.LoggerAdapter[Any]"
    ) -> None:
        """All sources are due at once, in the order given. Those whose period is 0 are left out."""
        self.by_name: dict[str, Source] = {source.name: source for source in sources if source.period > 0}
        for source in self:
            source.due = now
        self.failures = 0
        """failed requests since the start"""
        self.last_error: BridgeError | None = None
        self.was_starting = False
        """Whether the gateway has said that it starts, until somebody has taken note of it."""
        self._budget, self._log = budget, log
        self._held_until = now
        self._succeeded_at, self._chance_at = NEVER, now
        self._failures_in_a_row = 0
        self._logged: set[SourceName] = set()
        """Sources whose present failure is in the log."""

    def __iter__(self) -> Iterator[Source]:
        return iter(self.by_name.values())

    # What to ask when

    @property
    def fastest(self) -> float:
        """The shortest wanted period, in seconds."""
        return min((source.period for source in self), default=0.0)

    def next(self, now: float) -> Source | None:
        """The source to ask now, or `None`. The first round asks all sources in the order given."""
        if self.held(now):
            return None
        first_round = [source for source in self if source.in_first_round]
        due = first_round[:1] or [source for source in self if source.due <= now]
        return min(due, key=lambda source: source.rank, default=None)

    def delay(self, now: float) -> float:
        """Seconds until a source is due."""
        soonest = min((now if source.in_first_round else source.due for source in self), default=now + HOUR_S)
        return max(0.0, soonest - now, self._held_until - now)

    def hold(self, until: float) -> None:
        """Ask nothing before this time."""
        self._held_until = until

    def held(self, now: float) -> bool:
        return now < self._held_until

    def restart(self, now: float, *, without: Source) -> None:
        """Begin a new first round, of all sources but the one that has just been asked: the gateway is back."""
        self._chance_at = now
        for source in self:
            if source is not without:
                source.due, source.in_first_round = now, True

    def polled(self, source: Source, now: float, *, seconds: float = 0.0, requests: int = 1) -> None:
        """Record what a poll has cost, adapt the slowdowns to it, and plan the next poll of this source."""
        known = seconds if source.cost is None else source.cost
        source.cost = known + (seconds - known) * COST_WEIGHT
        for other, wanted in _slowdowns([s for s in self if s.cost is not None], self._budget):
            grows = wanted > other.slowdown
            other.slowdown = wanted if grows else other.slowdown + (wanted - other.slowdown) * RECOVERY_WEIGHT
        source.polled(now, seconds=seconds, requests=requests)

    # How the gateway is doing

    @property
    def _offline_after(self) -> float:
        """Seconds without any success after which the gateway is offline."""
        there = [source.interval for source in self if source.state is not SourceState.ABSENT]
        return max(STALE_AFTER_MIN_S, STALE_AFTER_PERIODS * min(there, default=0.0))

    @property
    def tried(self) -> bool:
        """Whether every source has been asked."""
        return all(source.state is not SourceState.WAITING for source in self)

    def is_pending(self, name: SourceName) -> bool:
        """Whether a source is polled, and has neither answered nor turned out to be absent."""
        source = self.by_name.get(name)
        return source is not None and source.good_at is None and source.state is not SourceState.ABSENT

    @property
    def access_problem(self) -> str | None:
        """Why the gateway gives nothing of the system, but only facts of its own; `None` if it gives more."""
        others = [source for source in self if source.name not in {SourceName.INFO, SourceName.WIFI}]
        if not others or any(source.state is not SourceState.ABSENT for source in others):
            return None
        return ALL_REFUSED if any(source.refused for source in others) else ALL_MISSING

    def online(self, now: float) -> bool:
        """Whether the gateway answers."""
        return now - self._succeeded_at < self._offline_after

    def away(self, now: float) -> bool:
        """Whether to ask only `/info`: the last success and the last restart are both too long ago."""
        return now - max(self._succeeded_at, self._chance_at) >= self._offline_after

    def liveness_source(self, now: float) -> Source | None:
        """A good source to ask before its time, so that a gateway is not given up because its fast sources fail.

        A source that fails is no longer good, so every source is tried once at most.
        """
        good = [each for each in self if each.state is SourceState.GOOD and each.name is not SourceName.INFO]
        silent = now - self._succeeded_at >= LIVENESS_AFTER_SHARE * self._offline_after
        if not good or not silent or self.held(now):
            return None
        return min(good, key=lambda source: source.interval)

    def liveness_delay(self, now: float) -> float:
        """Seconds until `liveness_source` may return a source."""
        return max(LIVENESS_PAUSE_MIN_S, self._succeeded_at + LIVENESS_AFTER_SHARE * self._offline_after - now)

    def next_change(self, now: float) -> float:
        """Seconds until a source or the gateway becomes offline if nothing answers."""
        ends = [source.good_at + source.stale_after for source in self if source.good_at is not None]
        ends.append(self._succeeded_at + self._offline_after)
        return min((end - now for end in ends if end > now), default=STALE_AFTER_MIN_S)

    # What polls have brought

    def record_answer(self, source: Source, parsed: Parsed, took: float, now: float) -> None:
        """Note a good answer that took so many seconds."""
        self._log_problems(source, parsed)
        self._failures_in_a_row = 0
        self._logged.discard(source.name)
        was_failing = source.state is SourceState.FAILING
        if source.record_answer(now, fresh=parsed.fresh, took=took):
            event = "source_recovered" if was_failing else "source_online"
            self._log.info("%s: answers (%.2f s)", source.name, took, extra=_extra(source, event))

    def record_failure(self, source: Source, error: BridgeError) -> None:
        """Note a failed poll. The log has an outage once: only the first source that fails is named."""
        self.failures += 1
        self.last_error = source.error = error.bare()
        self.was_starting |= isinstance(error, Starting)
        if source.state is SourceState.ABSENT:
            return
        self._failures_in_a_row += 1
        source.record_failure()
        is_first = self._failures_in_a_row == 1 or not isinstance(error, Unavailable)
        if source.name not in self._logged and is_first:
            self._logged.add(source.name)
            self._log.warning("%s: %s", source.name, error, extra=_extra(source, "source_failed"))

    def record_missing(self, source: Source, error: BridgeError) -> bool:
        """Note that the gateway has no such source, or refuses it to everybody. Returns whether that is new."""
        self._failures_in_a_row = 0
        source.refused = isinstance(error, EndpointRefused)
        if has_changed := source.record_missing():
            self._log.info("%s: %s", source.name, error, extra=_extra(source, "source_absent"))
        return has_changed

    def record_success(self, now: float) -> bool:
        """Note that the gateway can be used. Returns whether it was offline before."""
        was_offline, self._succeeded_at = not self.online(now), now
        return was_offline

    def retry_absent(self, now: float) -> None:
        """Ask for the absent sources again: new firmware may have them."""
        for source in self:
            if source.state is SourceState.ABSENT:
                source.forget_absence()
                source.due = now

    def _log_problems(self, source: Source, parsed: Parsed) -> None:
        kinds = tuple(sorted({problem.partition(":")[0] for problem in parsed.problems}))
        if kinds and kinds != source.problems:
            more = f" (and {len(parsed.problems) - 1} more)" if len(parsed.problems) > 1 else ""
            values, extra = f"{parsed.problems[0]}{more}", _extra(source, "values_left_out")
            self._log.warning("%s: skipped unusable values: %s", source.name, values, extra=extra)
        source.problems = kinds


def _slowdowns(sources: Sequence[Source], budget: float) -> Iterator[tuple[Source, float]]:
    """The slowdown that each source needs, so that all together take the share `budget` of the gateway's time.

    A source that would take more than half of the budget is slowed down alone. Then the sources that are not live
    share what the live ones leave, and at last the live ones are slowed down.
    """
    loads = {source: (source.cost or 0.0) / source.period for source in sources}
    is_live = {source: source.endpoint.urgency == 0 for source in sources}
    own = {source: _bounded(load / (budget / 2)) for source, load in loads.items()}
    live_load = sum(loads[source] / own[source] for source in sources if is_live[source])
    other_load = sum(loads[source] / own[source] for source in sources if not is_live[source])
    least = budget * MIN_SHARE_OF_BUDGET
    others = _bounded(other_load / max(budget - live_load, least))
    live = _bounded(live_load / max(budget - other_load / others, least))
    for source in sources:
        yield source, _bounded(own[source] * (live if is_live[source] else others))


def _bounded(slowdown: float) -> float:
    return min(MAX_SLOWDOWN, max(1.0, slowdown))


def _doubled(times: int) -> float:
    return 2.0 ** min(times, 20)


def _extra(source: Source, event: str) -> dict[str, str]:
    """Keys for JSON logs."""
    return {"source": source.name.value, "event": event}
