"""The status of the bridge for systemd, health probes, the web page and Prometheus. It contains no secrets."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self

from bridge.model import Reading
from bridge.service.answers import DatedAnswer
from bridge.service.sources import Source

if TYPE_CHECKING:
    from bridge.service.poller import Poller

MAX_WORK_S = 300.0
"""Longest time that one piece of work may take. A request to a gateway that hangs, the token check that follows it
and the look at a changed TLS key together take less than four minutes."""


class Watchdog:
    """Finds out whether one part of the bridge is stuck. The part tells it how long it may show no activity.

    `time` returns monotonic seconds. Call `busy` when work begins, and `idle` before a wait.
    """

    def __init__(self, name: str, time: Callable[[], float]) -> None:
        self.name, self._time = name, time
        self._until = float("inf")
        self.is_idle = False

    def busy(self) -> None:
        """Expect the next call within `MAX_WORK_S`: a piece of work begins."""
        self.idle(0.0)

    def idle(self, seconds: float) -> None:
        """Expect no activity for so many seconds."""
        self.is_idle = seconds > 0
        self._until = self._time() + seconds + MAX_WORK_S

    def disarm(self) -> None:
        """Expect nothing: the part waits for something that may never come, such as a broker."""
        self.is_idle = False
        self._until = float("inf")

    @property
    def expired(self) -> bool:
        """Whether the part is stuck. Only a restart helps then."""
        return self._time() > self._until


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """The status of one source of a gateway.

    `period`, the `age` of the last good answer and the time that it `took` are in seconds. `fresh` is what its
    availability topic says; `None` if the gateway does not have the source. `seconds` is the time that all polls
    together took. `error` is why the last poll failed, in one line.
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
    error: str | None = None

    @classmethod
    def of(cls, source: Source, now: float, *, is_online: bool) -> Self:
        """The status at the monotonic time `now`. `is_online`: the gateway is; without it no source is fresh."""
        fresh = source.online(now)
        age = None if source.good_at is None else max(0.0, now - source.good_at)
        stats = source.stats
        return cls(
            source.name.value,
            source.state.value,
            None if fresh is None else fresh and is_online,
            source.interval,
            age,
            source.took,
            stats.polls,
            stats.requests,
            stats.failures,
            stats.seconds,
            None if source.error is None else str(source.error),
        )


INVERTER_VALUES = ("power", "energy_lifetime")
"""Values of inverters that a status has: a site may have 1,000 inverters."""


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """The status of one gateway that is polled.

    `host` is its address in the settings; `address` is where it is asked now, which differs after it has moved.
    `known` tells whether it has told its serial number, `online` whether it answers, `is_refusing` whether it
    answers and refuses the bridge, and `flows_fresh` whether the site's powers are up to date; `flows_at` is when
    they were read. `has_token` tells whether there is a token, usable or not; `token_expires` is that of a usable
    one. `readings` are the newest ones of the site, of the meters and of what is in force, `inverters` the powers
    and counters of inverters, `commands` the newest answers to commands; these are empty without details.
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
    is_refusing: bool = False
    has_token: bool = False
    flows_at: datetime | None = None
    inverters: Sequence[Reading] = ()
    commands: Sequence[DatedAnswer] = ()

    @classmethod
    def of(cls, poller: "Poller", when: datetime, *, details: bool) -> Self:
        """The status of the gateway of a poller at the time `when`, which is now."""
        settings, identity, sources, output = poller.settings, poller.identity, poller.sources, poller.output
        now, known, powering = asyncio.get_running_loop().time(), output.diagnostics(), output.powering
        url, is_online = poller.gateway.url, sources.online(now)
        has_moved, is_silent = url != settings.base_url, output.problem is None and not is_online
        read_at = powering.good_at if powering else None
        publisher = output.publisher if details else None
        return cls(
            host=settings.host,
            address=url.removeprefix("https://") if has_moved else settings.host,
            serial=identity.serial,
            name=settings.name,
            firmware=identity.facts.firmware,
            known=identity.known,
            online=is_online,
            problem=str(sources.last_error or "no answer yet") if is_silent else known.problem,
            needs_token=settings.base_url.startswith("https"),
            token_expires=known.token_expires,
            token_role=known.token_role,
            counters_held=known.counters_held,
            sources=tuple(SourceStatus.of(source, now, is_online=is_online) for source in sources)
            if details
            else (),
            flows_fresh=is_online and powering is not None and bool(powering.online(now, waited=0)),
            readings=publisher.readings() if publisher else (),
            is_refusing=output.is_refused,
            has_token=poller.gateway.tokens.is_set,
            inverters=tuple(
                reading
                for reading in (publisher.readings(("inverter/",)) if publisher else ())
                if reading.phase is None and reading.name in INVERTER_VALUES
            ),
            commands=poller.commander.newest if details else (),
            flows_at=None if read_at is None else when - timedelta(seconds=now - read_at),
        )


@dataclass(frozen=True, slots=True)
class HomeStatus:
    """One home of several gateways.

    `gateways` are their serial numbers, or hosts of those whose serial number is unknown. `online`: the powers of
    all are up to date. `readings` are the newest ones; their devices are the flows.
    """

    name: str
    gateways: Sequence[str]
    online: bool
    problem: str | None
    readings: Sequence[Reading]


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The connection to the broker, and the messages that wait for it."""

    address: str
    connected: bool
    protocol: str
    connections: int
    sent: int
    topics: int
    unsent: int
    problem: str | None = None
    """Why the last attempt to connect has failed, while there is no connection."""


@dataclass(frozen=True, slots=True)
class Status:
    """The status of the whole bridge at one instant.

    `stuck` names the parts whose watchdog has expired. `standing_by` holds, by serial number, the gateways that
    another bridge polls, and the name of that bridge.
    """

    version: str
    started: datetime
    now: datetime
    stuck: Sequence[str]
    broker: BrokerStatus
    gateways: Sequence[GatewayStatus]
    standing_by: Mapping[str, str] = field(default_factory=dict)
    homes: Sequence[HomeStatus] = ()

    @property
    def problems(self) -> Sequence[str]:
        """The reasons why data do not get from the gateways to the broker; empty if all data do."""
        cause = f": {self.broker.problem}" if self.broker.problem else ""
        broker = [] if self.broker.connected else [f"no connection to the broker {self.broker.address}{cause}"]
        gone = (gateway for gateway in self.gateways if not gateway.online)
        return [*broker, *(f"gateway {gateway.host}: {gateway.problem}" for gateway in gone)]

    @property
    def warnings(self) -> Sequence[str]:
        """Problems that a person should know of although the data get to the broker."""
        there = (gateway for gateway in self.gateways if gateway.online and gateway.problem)
        others = (f"gateway {serial}: polled by {bridge}" for serial, bridge in self.standing_by.items())
        return [*(f"gateway {gateway.host}: {gateway.problem}" for gateway in there), *others]

    @property
    def summary(self) -> str:
        """One line for `systemctl status`."""
        count = len(self.gateways)
        working = f"publishing {'one gateway' if count == 1 else f'{count} gateways'}"
        return "; ".join((*self.problems, *self.warnings)) or working
