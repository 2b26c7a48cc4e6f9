"""What Prometheus is told: one line of a table for each metric, read from a status when somebody asks."""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from bridge.service import GatewayStatus, SourceStatus, Status
from bridge.web.report import SITE, days_left

PREFIX = "iqgateway2mqtt_"
GAUGE, COUNTER, SUMMARY = "gauge", "counter", "summary"
ENDINGS = {GAUGE: ("",), COUNTER: ("_total",), SUMMARY: ("_count", "_sum")}
"""What Prometheus wants behind the names of the samples."""
Values = Sequence[float | None]
"""A number for each ending. A sample without one is left out."""
Samples = Iterable[tuple[Sequence[str], Values]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its kind in Prometheus' terms, what it means, its labels, and where its samples come from."""

    name: str
    kind: str
    meaning: str
    labels: Sequence[str] = field(default=())
    samples: Callable[[Status], Samples] = field(kw_only=True)

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    def family(self, status: Status) -> Family:
        family = Family(self.full_name, self.meaning, self.kind)
        for labels, values in self.samples(status):
            for ending, value in zip(ENDINGS[self.kind], values, strict=True):
                if value is not None:
                    named = dict(zip(self.labels, labels, strict=True))
                    family.add_sample(self.full_name + ending, named, float(value))
        return family


def _named(status: Status) -> Iterator[tuple[str, GatewayStatus]]:
    """Gateways by serial number; by host until it is known, or where another has the same."""
    taken: set[str] = set()
    for gateway in status.gateways:
        name = gateway.serial or gateway.host
        name = gateway.host if name in taken else name
        taken.add(name)
        yield name, gateway


def _one(value: Callable[[Status], float | None]) -> Callable[[Status], Samples]:
    return lambda status: [((), (value(status),))]


def _gateways(value: Callable[[GatewayStatus], float | None]) -> Callable[[Status], Samples]:
    return lambda status: (((name,), (value(gateway),)) for name, gateway in _named(status))


def _sources(*values: Callable[[SourceStatus], float | None]) -> Callable[[Status], Samples]:
    return lambda status: (
        ((name, source.name), tuple(value(source) for value in values))
        for name, gateway in _named(status)
        for source in gateway.sources
    )


def _build(status: Status) -> Samples:
    return [((status.version, platform.python_version()), (1,))]


def _identities(status: Status) -> Samples:
    return (((name, g.address, g.serial or "", g.firmware or ""), (1,)) for name, g in _named(status))


def _days(status: Status) -> Samples:
    return (((name,), (days_left(gateway, status.now),)) for name, gateway in _named(status))


def _powers(status: Status) -> Samples:
    """Only while they are of now: an old number would look like a new one."""
    for name, gateway in _named(status):
        for reading in gateway.readings if gateway.flows_fresh else ():
            if (
                reading.name == "power"
                and reading.device.startswith(SITE)
                and isinstance(reading.value, int | float)
            ):
                yield (name, reading.device.removeprefix(SITE)), (float(reading.value),)


GATEWAY, SOURCE = ("gateway",), ("gateway", "source")

METRICS: Sequence[Metric] = (
    Metric("build_info", GAUGE, "1; the version stands in the label", ("version", "python"), samples=_build),
    Metric(
        "start_time_seconds",
        GAUGE,
        "when the bridge started, in seconds since 1970",
        samples=_one(lambda status: status.started.timestamp()),
    ),
    Metric("alive", GAUGE, "0 where /healthz says what is stuck", samples=_one(lambda status: not status.stuck)),
    Metric("ready", GAUGE, "1 where /readyz says ready", samples=_one(lambda status: not status.lacks)),
    Metric(
        "broker_connected",
        GAUGE,
        "1 while there is a connection",
        samples=_one(lambda status: status.broker.connected),
    ),
    Metric(
        "broker_connections",
        COUNTER,
        "connections made to the broker",
        samples=_one(lambda status: status.broker.connections),
    ),
    Metric(
        "messages_sent", COUNTER, "messages handed to the broker", samples=_one(lambda status: status.broker.sent)
    ),
    Metric(
        "outbox_topics", GAUGE, "retained topics that are kept", samples=_one(lambda status: status.broker.topics)
    ),
    Metric(
        "outbox_unsent",
        GAUGE,
        "topics whose newest value is still to be sent",
        samples=_one(lambda status: status.broker.unsent),
    ),
    Metric(
        "gateway_info",
        GAUGE,
        "1; address, serial number and firmware stand in the labels",
        ("gateway", "host", "serial", "firmware"),
        samples=_identities,
    ),
    Metric("gateway_online", GAUGE, "1 while the gateway answers", GATEWAY, samples=_gateways(lambda g: g.online)),
    Metric(
        "gateway_problem",
        GAUGE,
        "1 while somebody should look after it; /readyz and the page say why",
        GATEWAY,
        samples=_gateways(lambda g: g.problem is not None),
    ),
    Metric("token_days", GAUGE, "days until the gateway's token ends", GATEWAY, samples=_days),
    Metric(
        "counters_held",
        GAUGE,
        "counters whose new values can't be true",
        GATEWAY,
        samples=_gateways(lambda g: g.counters_held),
    ),
    Metric("polls", COUNTER, "how often the source was asked for", SOURCE, samples=_sources(lambda s: s.polls)),
    Metric("poll_failures", COUNTER, "how often that failed", SOURCE, samples=_sources(lambda s: s.failures)),
    Metric(
        "requests",
        COUNTER,
        "requests that the polls needed, retries and token checks included",
        SOURCE,
        samples=_sources(lambda s: s.requests),
    ),
    Metric(
        "poll_seconds",
        SUMMARY,
        "seconds that the polls took, retries included",
        SOURCE,
        samples=_sources(lambda s: s.polls, lambda s: s.seconds),
    ),
    Metric(
        "answer_seconds",
        GAUGE,
        "seconds that the newest good answer took",
        SOURCE,
        samples=_sources(lambda s: s.took),
    ),
    Metric(
        "answer_age_seconds",
        GAUGE,
        "seconds since the newest good answer",
        SOURCE,
        samples=_sources(lambda s: s.age),
    ),
    Metric("period_seconds", GAUGE, "seconds between two polls", SOURCE, samples=_sources(lambda s: s.period)),
    Metric(
        "source_fresh",
        GAUGE,
        "1 while its data is fresh; absent where the gateway does not have it",
        SOURCE,
        samples=_sources(lambda s: s.fresh),
    ),
    Metric(
        "site_power_watts",
        GAUGE,
        "solar, grid (+ importing), battery (+ discharging), generator, home; absent while it is not known",
        ("gateway", "flow"),
        samples=_powers,
    ),
)


class _Bridge(Collector):
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Family]:
        status = self._status()
        return (metric.family(status) for metric in METRICS)


def registry(status: Callable[[], Status]) -> CollectorRegistry:
    """What a scrape reads, with the process's own memory, processor time and files, where the system tells them."""
    found = CollectorRegistry()
    found.register(_Bridge(status))
    ProcessCollector(registry=found)
    return found
