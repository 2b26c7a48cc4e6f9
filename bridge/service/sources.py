"""How one source of one gateway is doing, and what its subscribers are told of it."""

from dataclasses import dataclass, field
from enum import Enum

STALE_PERIODS = 3
STALE_SECONDS = 30.0
"""A source is offline after three periods, and at least this long, without a good answer."""

ABSENT_AFTER = 3
"""A source that has answered before is taken for absent only after so many 404s: updates bring passing ones."""

ABSENT_FIRST, ABSENT_LAST = 60.0, 86_400.0
"""Seconds until an absent source is asked again: twice as long each time, once a day in the end."""


class State(Enum):
    """What is known of a source. An ABSENT one the gateway does not have, or refuses to everybody."""

    WAITING = "waiting"
    GOOD = "good"
    FAILING = "failing"
    ABSENT = "absent"


BREAKER_AFTER = 3
"""A source that fails so many times in a row is asked half as often with each further failure."""
BREAKER_LAST = 900.0
"""Seconds that such a source is left alone at most."""


@dataclass(slots=True)
class Tally:
    """What asking a source has come to since the start. One poll may be several requests."""

    polls: int = 0
    requests: int = 0
    failures: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, requests: int) -> None:
        self.polls += 1
        self.requests += requests
        self.seconds += seconds


@dataclass(slots=True)
class Source:
    """One source. Times are monotonic seconds."""

    name: str
    period: float
    state: State = State.WAITING
    good_at: float | None = None
    absences: int = 0
    failures: int = 0
    problems: tuple[str, ...] = field(default=())
    fresh: bool = True
    refused: bool = False
    """It is absent because of a 401, not of a 404."""
    took: float | None = None
    """seconds that the newest good answer took"""
    tally: Tally = field(default_factory=Tally)

    @property
    def tried(self) -> bool:
        return self.state is not State.WAITING

    @property
    def patience(self) -> float:
        return max(STALE_PERIODS * self.period, STALE_SECONDS)

    def online(self, now: float) -> bool | None:
        """Whether its data is fresh; `None` where the gateway does not have it."""
        if self.state is State.ABSENT:
            return None
        return self.fresh and self.good_at is not None and now - self.good_at < self.patience

    def good(self, now: float, *, fresh: bool, took: float | None = None) -> bool:
        """A good answer. True where that is news."""
        news = self.state is not State.GOOD
        self.state, self.good_at, self.fresh, self.absences = State.GOOD, now, fresh, 0
        self.took = took
        self.failures = 0
        return news

    def failed(self) -> bool:
        """No answer, or none that can be used. True where that is news.

        What the gateway does not have can't fail: an outage must not bring it an availability topic.
        """
        if self.state is State.ABSENT:
            return False
        news = self.state is not State.FAILING
        self.state = State.FAILING
        self.failures += 1
        self.tally.failures += 1
        return news

    def missing(self) -> bool:
        """The gateway says that it does not have this. True where that is news."""
        self.absences += 1
        if self.good_at is not None and self.absences < ABSENT_AFTER:
            return self.failed()
        news = self.state is not State.ABSENT
        self.state, self.good_at = State.ABSENT, None
        return news

    def needless(self) -> None:
        """By all that is known the gateway can't have this: it is not even asked."""
        if self.state is State.WAITING:
            self.state = State.ABSENT

    @property
    def pause(self) -> float:
        """Seconds to leave the source alone: it lacks, or fails again and again."""
        if self.state is State.ABSENT:
            return min(ABSENT_LAST, ABSENT_FIRST * _doubled(self.absences - 1))
        if self.failures < BREAKER_AFTER:
            return 0.0
        return min(max(BREAKER_LAST, self.period), self.period * _doubled(self.failures - BREAKER_AFTER + 1))

    def forget(self) -> None:
        """The gateway's firmware has changed: what it lacked it may have now."""
        if self.state is State.ABSENT:
            self.state, self.absences = State.WAITING, 0


def _doubled(times: int) -> float:
    return 2.0 ** min(times, 20)
