"""The metrics for Prometheus: a table with a line for each, whose values are read from a status at each scrape."""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from bridge.model import HOUR_S, Reading
from bridge.service.status import GatewayStatus, SourceStatus, Status
from bridge.site.flows import SITE_PREFIX
from bridge.web.report import days_left

METRIC_PREFIX = "iqgateway2mqtt_"
GAUGE, COUNTER, SUMMARY = "gauge", "counter", "summary"
NAME_ENDINGS = {GAUGE: ("",), COUNTER: ("_total",), SUMMARY: ("_count", "_sum")}
"""Suffixes that Prometheus requires for the names of the samples."""
SampleValues = Sequence[float | None]
"""A number for each suffix. `None` leaves the sample out."""
Samples = Iterable[tuple[Sequence[str], SampleValues]]


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
        return METRIC_PREFIX + self.name

    def family(self, status: Status) -> Family:
        family = Family(self.full_name, self.meaning, self.kind)
        for labels, values in self.samples(status):
            for ending, value in zip(NAME_ENDINGS[self.kind], values, strict=True):
                if value is not None:
                    named = dict(zip(self.labels, labels, strict=True))
                    family.add_sample(self.full_name + ending, named, float(value))
        return family


def _named(status: Status) -> Iterator[tuple[str, GatewayStatus]]:
    """Each gateway with its label: the serial number, or the host if that is unknown or not unique."""
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
    """The site's powers, only while they are up to date: an old number would look like a new one."""
    for name, gateway in _named(status):
        for reading in gateway.readings if gateway.flows_fresh else ():
            if reading.name == "power" and reading.device.startswith(SITE_PREFIX):
                yield from _sample(reading, name, reading.device.removeprefix(SITE_PREFIX))


def _energies(status: Status) -> Samples:
    """The site's lifetime counters. They never fall, so that an old one is no harm."""
    for name, gateway in _named(status):
        for reading in gateway.readings:
            if reading.name in SITE_COUNTERS and reading.device.startswith(SITE_PREFIX):
                flow = reading.device.removeprefix(SITE_PREFIX)
                yield from _sample(reading, name, flow, SITE_COUNTERS[reading.name])


def _inverters(value: str) -> Callable[[Status], Samples]:
    """This value of all inverters, up to a limit: a fleet has more than a scrape can read."""

    def samples(status: Status) -> Samples:
        found = (
            sample
            for name, gateway in _named(status)
            for reading in gateway.inverters
            if reading.name == value
            for sample in _sample(reading, name, reading.device.partition("/")[2])
        )
        return islice(found, MOST_INVERTERS)

    return samples


def _sample(reading: Reading, *labels: str) -> Iterator[tuple[Sequence[str], SampleValues]]:
    """The value with its labels, if it is a number; an energy in joules, as Prometheus wants them."""
    if isinstance(reading.value, int | float):
        factor = HOUR_S if reading.quantity.unit == "Wh" else 1.0
        yield labels, (float(reading.value) * factor,)


GATEWAY_LABELS, SOURCE_LABELS, INVERTER_LABELS = ("gateway",), ("gateway", "source"), ("gateway", "serial")
SITE_COUNTERS = {
    "energy_lifetime": "counted",
    "energy_imported": "imported",
    "energy_exported": "exported",
    "energy_charged": "charged",
    "energy_discharged": "discharged",
}
"""The site's counters, and the words for them."""
MOST_INVERTERS = 5_000
"""Inverters of all gateways together that a scrape reads."""

METRICS: Sequence[Metric] = (
    Metric("build_info", GAUGE, "always 1; the label has the version", ("version", "python"), samples=_build),
    Metric(
        "start_time_seconds",
        GAUGE,
        "when the bridge started, in seconds since 1970",
        samples=_one(lambda status: status.started.timestamp()),
    ),
    Metric(
        "alive",
        GAUGE,
        "0 while a part of the bridge is stuck, see /healthz",
        samples=_one(lambda status: not status.stuck),
    ),
    Metric("ready", GAUGE, "1 while /readyz says ready", samples=_one(lambda status: not status.problems)),
    Metric(
        "broker_connected",
        GAUGE,
        "1 while the broker is connected",
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
        "outbox_topics",
        GAUGE,
        "retained topics that the bridge publishes",
        samples=_one(lambda status: status.broker.topics),
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
        "always 1; the labels have address, serial number and firmware",
        ("gateway", "host", "serial", "firmware"),
        samples=_identities,
    ),
    Metric(
        "gateway_online",
        GAUGE,
        "1 while the gateway answers",
        GATEWAY_LABELS,
        samples=_gateways(lambda g: g.online),
    ),
    Metric(
        "gateway_problem",
        GAUGE,
        "1 while the gateway has a problem; /readyz and the page describe it",
        GATEWAY_LABELS,
        samples=_gateways(lambda g: g.problem is not None),
    ),
    Metric("token_days", GAUGE, "days until the gateway's token expires", GATEWAY_LABELS, samples=_days),
    Metric(
        "counters_held",
        GAUGE,
        "counters that keep their last value because the new ones can't be true",
        GATEWAY_LABELS,
        samples=_gateways(lambda g: g.counters_held),
    ),
    Metric("polls", COUNTER, "polls of the source", SOURCE_LABELS, samples=_sources(lambda s: s.polls)),
    Metric("poll_failures", COUNTER, "polls that failed", SOURCE_LABELS, samples=_sources(lambda s: s.failures)),
    Metric(
        "requests",
        COUNTER,
        "requests that the polls needed, retries and token checks included",
        SOURCE_LABELS,
        samples=_sources(lambda s: s.requests),
    ),
    Metric(
        "poll_seconds",
        SUMMARY,
        "seconds that the polls took, retries included",
        SOURCE_LABELS,
        samples=_sources(lambda s: s.polls, lambda s: s.seconds),
    ),
    Metric(
        "answer_seconds",
        GAUGE,
        "seconds that the newest good answer took",
        SOURCE_LABELS,
        samples=_sources(lambda s: s.took),
    ),
    Metric(
        "answer_age_seconds",
        GAUGE,
        "seconds since the newest good answer",
        SOURCE_LABELS,
        samples=_sources(lambda s: s.age),
    ),
    Metric(
        "period_seconds", GAUGE, "seconds between two polls", SOURCE_LABELS, samples=_sources(lambda s: s.period)
    ),
    Metric(
        "source_fresh",
        GAUGE,
        "1 while the data of the source is fresh; absent if the gateway does not have the source",
        SOURCE_LABELS,
        samples=_sources(lambda s: s.fresh),
    ),
    Metric(
        "site_power_watts",
        GAUGE,
        "solar, grid (+ importing), battery (+ discharging), generator, home; absent while the power is unknown",
        ("gateway", "flow"),
        samples=_powers,
    ),
    Metric(
        "site_energy_joules",
        COUNTER,
        "lifetime energies of the flows; `kind` is `counted` for solar and home, `imported` or `exported` for the "
        "grid, `charged` or `discharged` for the battery",
        ("gateway", "flow", "kind"),
        samples=_energies,
    ),
    Metric(
        "inverter_power_watts",
        GAUGE,
        "power of an inverter by its last report; absent while it is unknown, and beyond 5,000 inverters",
        INVERTER_LABELS,
        samples=_inverters("power"),
    ),
    Metric(
        "inverter_energy_joules",
        COUNTER,
        "lifetime energy of an inverter, where the gateway gives its details",
        INVERTER_LABELS,
        samples=_inverters("energy_lifetime"),
    ),
)


class _Bridge(Collector):
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Family]:
        status = self._status()
        return (metric.family(status) for metric in METRICS)


def registry(status: Callable[[], Status]) -> CollectorRegistry:
    """The metrics that a scrape reads, with memory, CPU time and files of the process if the system gives them."""
    found = CollectorRegistry()
    found.register(_Bridge(status))
    ProcessCollector(registry=found)
    return found
