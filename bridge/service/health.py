"""How one gateway and its sources are doing. Each change of state is one line in the log, each poll is none."""

import logging
from collections.abc import Mapping
from typing import Any

from bridge.endpoints import Parsed
from bridge.gateway import EndpointRefused
from bridge.model import BridgeError, Unavailable
from bridge.service.sources import STALE_PERIODS, STALE_SECONDS, Source, State

NEVER = float("-inf")
INFO = "info"
REFUSED = (
    "the gateway answers but refuses every endpoint, with a token that it calls valid: "
    "use the token of the system's owner"
)
LACKING = "the gateway has none of the endpoints that are read here: its firmware is too old"
SHORTEST_DOUBT = 1.0
DOUBT = 0.6
"""Share of its patience after which a silent gateway is asked for something that it answered before."""


class Health:
    """Times are monotonic seconds."""

    def __init__(self, periods: Mapping[str, float], now: float, log: "logging.LoggerAdapter[Any]") -> None:
        self.sources = {name: Source(name, period) for name, period in periods.items()}
        self.failures = 0
        """failed requests since the start"""
        self.last_error: BridgeError | None = None
        self._log = log
        self._succeeded, self._since = NEVER, now
        self._in_a_row = 0
        self._told: set[str] = set()
        """Sources of whose failing the log knows."""

    @property
    def _patience(self) -> float:
        """Seconds without any success after which the gateway is gone."""
        there = [source.period for source in self.sources.values() if source.state is not State.ABSENT]
        return max(STALE_SECONDS, STALE_PERIODS * min(there, default=0.0))

    @property
    def barred(self) -> str | None:
        """Why a gateway that answers tells us nothing but who it is; `None` where it tells more."""
        others = [source for source in self.sources.values() if source.name != INFO]
        if not others or any(source.state is not State.ABSENT for source in others):
            return None
        return REFUSED if any(source.refused for source in others) else LACKING

    @property
    def tried(self) -> bool:
        """Whether every source has been asked."""
        return all(source.tried for source in self.sources.values())

    def online(self, now: float) -> bool:
        """Whether the gateway answers."""
        return now - self._succeeded < self._patience

    def away(self, now: float) -> bool:
        """Whether it has been given up: nothing has succeeded for long, nor since it was last given a chance."""
        return now - max(self._succeeded, self._since) >= self._patience

    def give_chance(self, now: float) -> None:
        self._since = now

    def lifeline(self, now: float) -> str | None:
        """What to ask out of turn, lest a gateway be given up only because its fastest sources fail.

        A source that fails is no longer good, so that this ends by itself.
        """
        good = [s for s in self.sources.values() if s.state is State.GOOD and s.name != INFO]
        if not good or now - self._succeeded < DOUBT * self._patience:
            return None
        return min(good, key=lambda source: source.period).name

    def lifeline_delay(self, now: float) -> float:
        """Seconds until `lifeline` may have something."""
        return max(SHORTEST_DOUBT, self._succeeded + DOUBT * self._patience - now)

    def next_change(self, now: float) -> float:
        """Seconds until something becomes stale by itself."""
        ends = [source.good_at + source.patience for source in self.sources.values() if source.good_at is not None]
        ahead = [end - now for end in (*ends, self._succeeded + self._patience) if end > now]
        return min(ahead, default=STALE_SECONDS)

    def good(self, name: str, parsed: Parsed, elapsed: float, now: float) -> None:
        source = self.sources[name]
        self._report(source, parsed)
        self._in_a_row = 0
        self._told.discard(name)
        if source.good(now, fresh=parsed.fresh, took=elapsed):
            self._log.info("%s: answers (%.2f s)", name, elapsed)

    def failed(self, name: str, error: BridgeError) -> None:
        """An outage is one line, not one for each source: the first that fails speaks for those that follow."""
        self.failures += 1
        self.last_error = error
        source = self.sources[name]
        if source.state is State.ABSENT:
            return
        self._in_a_row += 1
        source.failed()
        if name not in self._told and (self._in_a_row == 1 or not isinstance(error, Unavailable)):
            self._told.add(name)
            self._log.warning("%s: %s", name, error)

    def missing(self, name: str, error: BridgeError) -> None:
        """The gateway answers, but does not have this, or has it for nobody."""
        self._in_a_row = 0
        self.sources[name].refused = isinstance(error, EndpointRefused)
        if self.sources[name].missing():
            self._log.info("%s: %s", name, error)

    def succeeded(self, now: float) -> bool:
        """The gateway is there. True where that is news."""
        news = not self.online(now)
        self._succeeded = now
        return news

    def forget_absences(self) -> list[str]:
        """After a firmware change: the sources that the gateway lacked, which may be there now."""
        absent = [name for name, source in self.sources.items() if source.state is State.ABSENT]
        for name in absent:
            self.sources[name].forget()
        return absent

    def _report(self, source: Source, parsed: Parsed) -> None:
        kinds = tuple(sorted({problem.partition(":")[0] for problem in parsed.problems}))
        if kinds and kinds != source.problems:
            more = f" (and {len(parsed.problems) - 1} more)" if len(parsed.problems) > 1 else ""
            self._log.warning("%s: left out what can't be used: %s%s", source.name, parsed.problems[0], more)
        source.problems = kinds
