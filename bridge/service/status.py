"""How the bridge, its broker and its gateways are doing, as a page, a probe or a monitoring system may see it.

Nothing in it is secret.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from bridge.model import Reading
from bridge.service.sources import Source, Tally


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One source. `period`, `age` of the last good answer and the time that it `took` are in seconds.

    `fresh` is `None` where the gateway does not have it; `seconds` is the time that all polls together took.
    """

    name: str
    state: str
    fresh: bool | None
    period: float
    age: float | None
    took: float | None
    polls: int
    requests: int
    failures: int
    seconds: float

    @classmethod
    def of(cls, source: Source, now: float) -> Self:
        tally: Tally = source.tally
        return cls(
            name=source.name,
            state=source.state.value,
            fresh=source.online(now),
            period=source.period,
            age=None if source.good_at is None else max(0.0, now - source.good_at),
            took=source.took,
            polls=tally.polls,
            requests=tally.requests,
            failures=tally.failures,
            seconds=tally.seconds,
        )


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """One gateway. `known`: it has said who it is; `online`: it answers; `flows_fresh`: its powers are of now.

    `host` is what the settings call it, `address` where it is asked: elsewhere where it has moved.
    `readings` are the newest ones of the site and of the meters.
    """

    host: str
    address: str
    serial: str | None
    name: str | None
    firmware: str | None
    known: bool
    online: bool
    problem: str | None
    needs_token: bool
    token_expires: datetime | None
    token_role: str | None
    counters_held: int
    sources: Sequence[SourceStatus]
    flows_fresh: bool
    readings: Sequence[Reading]


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The broker, and what is still to be sent to it."""

    address: str
    connected: bool
    protocol: str
    connections: int
    sent: int
    topics: int
    unsent: int


@dataclass(frozen=True, slots=True)
class Status:
    """All of it at one instant. `stuck` names the parts that only a new start helps."""

    version: str
    started: datetime
    now: datetime
    stuck: Sequence[str]
    broker: BrokerStatus
    gateways: Sequence[GatewayStatus]

    @property
    def lacks(self) -> Sequence[str]:
        """Why not everything gets from the gateways to the broker, in plain words; empty where it does."""
        broker = [] if self.broker.connected else [f"no connection to the broker {self.broker.address}"]
        gone = (gateway for gateway in self.gateways if not gateway.online)
        return [*broker, *(f"gateway {gateway.host}: {gateway.problem}" for gateway in gone)]

    @property
    def warnings(self) -> Sequence[str]:
        """What somebody should look after soon, though everything works."""
        there = (gateway for gateway in self.gateways if gateway.online and gateway.problem)
        return [f"gateway {gateway.host}: {gateway.problem}" for gateway in there]
