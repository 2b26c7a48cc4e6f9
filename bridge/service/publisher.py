"""Publishes the retained topics of one gateway: values, availability, discovery and diagnostics."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, TypeAdapter, field_serializer

from bridge import discovery
from bridge.discovery.controls import ObservedRanges
from bridge.discovery.devices import AnnouncedGateway, Ranges
from bridge.endpoints import ENDPOINTS
from bridge.model import Event, Facts, Measurement, Message, Priority, Quantity, Reading, Scalar
from bridge.records import COUNT, DURATION, TEXT, TIME, measurement
from bridge.rows import Row
from bridge.service.sources import Source, SourceState
from bridge.state import FileState
from bridge.topics import Names, Tree, online

Readings = Sequence[Reading]
Publish = Callable[[Iterable[Message]], float | None]
"""Publishes messages. Returns for how many seconds one of them has waited for the broker, if that is known."""
SITE_SOURCE = "site"
"""The source of the site's flows, which the bridge computes."""
IN_FORCE_SOURCE = "in_force"
"""The source of what is in force, which the bridge tells from several answers."""
DIAGNOSTICS_INTERVAL_S = 60.0
"""Seconds between publications of the diagnostics that change with every answer."""
FAILURE_COUNT = Quantity(None, None, "total_increasing", 0)
MAX_PROBLEM_LETTERS = 255

PROBLEM = measurement("problem", TEXT, enabled=True, diagnostic=True)
TOKEN_EXPIRES = measurement("token_expires", TIME, enabled=True, diagnostic=True)
TOKEN_ROLE = measurement("token_role", TEXT, diagnostic=True)
CERTIFICATE = measurement("certificate", TEXT, diagnostic=True)
LAST_ANSWER = measurement("last_answer", TIME, diagnostic=True, interval=DIAGNOSTICS_INTERVAL_S)
ANSWER_TIME = measurement("answer_time", DURATION, diagnostic=True, interval=DIAGNOSTICS_INTERVAL_S)
COUNTERS_HELD = measurement("counters_held", COUNT, diagnostic=True)
FAILURES = measurement("failures", FAILURE_COUNT, diagnostic=True, interval=DIAGNOSTICS_INTERVAL_S)

STATUS_DEVICES = ("site/", "meter/", "limit/production", "storage/control", "storage/settings")
"""Devices whose readings a status contains."""
DIAGNOSTICS_SOURCE = "bridge"
"""The source of the diagnostics, on device `gateway`."""
DIAGNOSTICS = (PROBLEM, TOKEN_EXPIRES, TOKEN_ROLE, CERTIFICATE, COUNTERS_HELD, LAST_ANSWER, ANSWER_TIME, FAILURES)


@dataclass(slots=True)
class Diagnostics:
    """What the bridge itself knows of a gateway. `answer_time` is in seconds, `failures` counts since the start.

    A value that is not known is not published, except `problem`, which is `none` if there is none.
    """

    problem: str | None = None
    token_expires: datetime | None = None
    token_role: str | None = None
    certificate: str | None = None
    last_answer: datetime | None = None
    answer_time: float | None = None
    failures: int = 0
    counters_held: int = 0

    def readings(self) -> Iterator[Reading]:
        """The diagnostics as readings of device `gateway`."""
        yield _diagnostic(PROBLEM, (self.problem or "none")[:MAX_PROBLEM_LETTERS])
        known: tuple[tuple[Measurement, Scalar], ...] = (
            (TOKEN_EXPIRES, self.token_expires),
            (TOKEN_ROLE, self.token_role),
            (CERTIFICATE, self.certificate),
            (COUNTERS_HELD, self.counters_held),
            (LAST_ANSWER, self.last_answer),
            (ANSWER_TIME, self.answer_time),
            (FAILURES, self.failures),
        )
        yield from (_diagnostic(row, value) for row, value in known if value is not None)

    @property
    def urgent(self) -> tuple[object, ...]:
        """The part that is published at once when it changes; the rest may wait a minute."""
        return self.problem, self.token_expires, self.token_role, self.certificate, self.counters_held


def _diagnostic(row: Measurement, value: Scalar) -> Reading:
    return Reading("gateway", None, row, value)


_MEASUREMENTS = TypeAdapter(tuple[Measurement, ...])


def _unpacked(value: object) -> object:
    """Rows in full, from the form in which `TreeState` writes them. Files of version 1 have them in full."""
    if not isinstance(value, Mapping):
        return value
    try:
        shared = _MEASUREMENTS.validate_python(value["measurements"])
        return [
            {
                "device": device,
                "phase": phase,
                "measurement": shared[place],
                "source": source,
                "absent_since": since,
            }
            for device, phase, place, source, since in value["rows"]
        ]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("no rows") from error


class TreeState(FileState):
    """What was published of a gateway: the rows of the tree, and the discovery topics.

    `leaving` are discovery topics that are being removed: the broker does not have all messages for that yet.
    `revision` is the one of discovery that announced them; files of earlier versions have none.
    `ranges` are those of numbers that commands may set, where they are wider than in the table.
    """

    suffix: ClassVar[str] = "_tree"

    rows: Annotated[tuple[Row, ...], BeforeValidator(_unpacked)] = ()
    discovered: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    revision: int = 0
    ranges: Ranges = Field(default_factory=dict)

    @field_serializer("rows")
    def _packed(self, rows: tuple[Row, ...]) -> dict[str, Any]:
        """Write each measurement once, and in each row only its place in that list.

        1,000 inverters share a few measurements, whose descriptions would be the largest part of the file. The file
        is made on the event loop, so it should be small.
        """
        places: dict[Measurement, int] = {}
        packed = [
            (row.device, row.phase, places.setdefault(row.measurement, len(places)), row.source, row.absent_since)
            for row in rows
        ]
        described = _MEASUREMENTS.dump_python(tuple(places), mode="json", exclude_defaults=True)
        return {"measurements": described, "rows": packed}

    @field_serializer("discovered", "leaving")
    def _topics(self, topics: frozenset[str]) -> list[str]:
        return sorted(topics)


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """How to publish a gateway.

    `announcement` is `None` if there is no discovery. `url` is the address of the gateway's own page, `site` the
    name of the site for people. `suffix` ends the names of devices without a serial number. `in_home` tells that
    the gateway is a part of a home of several gateways. `paced` value topics have the pace of their quantity.
    `allowed` are the groups of values that commands may set.
    """

    names: Names
    payload: str = "both"
    announcement: discovery.DiscoveryOptions | None = None
    url: str = ""
    site: str = "Enphase"
    suffix: str = ""
    in_home: bool = False
    paced: bool = True
    allowed: frozenset[str] = frozenset()

    def about(self, facts: Facts, ranges: Ranges) -> AnnouncedGateway:
        """The gateway, as discovery describes it."""
        return AnnouncedGateway(facts, self.url, self.site, self.suffix, self.in_home, self.allowed, ranges)


class GatewayPublisher:
    """Publishes one gateway. It may publish a message twice, since the outbox drops what changes nothing."""

    def __init__(
        self, serial: str, options: PublishOptions, sources: Mapping[str, Source], publish: Publish
    ) -> None:
        self._serial, self._options, self._sources, self._publish = serial, options, sources, publish
        order = [*(endpoint.source for endpoint in ENDPOINTS), SITE_SOURCE, IN_FORCE_SOURCE, DIAGNOSTICS_SOURCE]
        self._tree = Tree(options.names, serial, order, options.payload, paced=options.paced)
        self._observed = ObservedRanges(options.allowed)
        self._announced: tuple[tuple[int, int], Facts] | None = None
        self._discovery_topics = DiscoveryTopics(options.announcement, publish)
        self._states: Mapping[str, bool | None] = {}
        """What was published last of the gateway (empty name) and of its sources; `None` for those it lacks."""
        self._in_force: Sequence[Reading] = ()
        self.flows: Sequence[Reading] = ()
        """The newest readings of the site: another object with each publication."""
        self._waited: dict[str, float] = {}
        """By source, for how long (seconds) one of its values has been waiting for the broker."""
        self._diagnosed: tuple[tuple[object, ...], float] | None = None

    def publish_values(self, source: str, readings: Sequence[Reading], when: float) -> bool:
        """Publish values of `when` (unix time). Returns whether they may be sent before discovery announces any."""
        self._observed.take(readings)
        self._send(source, self._tree.values(source, readings, datetime.fromtimestamp(when, UTC)))
        return self._announced is not None and self._announced[0] == self._version

    def lose(self, source: str, when: float) -> None:
        """Publish `None` for the values of a source that the gateway no longer has: old ones would look new."""
        self._update(source, [row.unknown for row in self._tree.rows.given_by(source)], when)

    def publish_documents(self, source: str, flows: Readings, when: float, in_force: Readings = ()) -> list[Event]:
        """Publish an answer's documents, the site's `flows`, and what is `in_force`. Returns events."""
        self._send(source, self._tree.documents(source, datetime.fromtimestamp(when, UTC)), more=True)
        if in_force:
            known, self._in_force = self._in_force, [*in_force]
            self._update(IN_FORCE_SOURCE, in_force, when, whole=known != self._in_force)
        if flows:
            before, self.flows = self.flows, [*flows]
            self._update(SITE_SOURCE, flows, when, whole=_have_news(self.flows, before))
        return list(self._tree.take_events())

    def publish_availability(self, now: float, *, is_online: bool, powered_by: str | None = None) -> None:
        """Publish the state of the gateway and the availability of its sources at the monotonic time `now`.

        Nothing is available while the gateway is offline, or its values wait for the broker for too long. The site
        is available while the source `powered_by`, from which its powers come, is.
        """
        states: dict[str, bool | None] = {"": is_online}
        if SITE_SOURCE in self._waited:
            power = self._sources.get(powered_by or "")
            powered = power is not None and bool(power.online(now, self._waited[SITE_SOURCE]))
            states[SITE_SOURCE] = powered and is_online
        for name, source in self._sources.items():
            source.waited = self._waited.get(name, 0.0)
            fresh = source.online(now)
            states[name] = fresh if fresh is None else fresh and is_online
        if news := states.items() - self._states.items():
            names, serial = self._options.names, self._serial
            self._publish(
                _state(names, serial, name, states[name]) for name in states if (name, states[name]) in news
            )
        self._states = states

    def publish_diagnostics(self, diagnostics: Diagnostics, now: float, when: float) -> None:
        """Publish diagnostics (`now`: monotonic, `when`: unix) each minute, or when an urgent one has changed."""
        urgent = diagnostics.urgent
        if self._diagnosed and self._diagnosed[0] == urgent and now - self._diagnosed[1] < DIAGNOSTICS_INTERVAL_S:
            return
        self._diagnosed = (urgent, now)
        self._update(DIAGNOSTICS_SOURCE, list(diagnostics.readings()), when)

    def readings(self, kinds: tuple[str, ...] = STATUS_DEVICES) -> tuple[Reading, ...]:
        """The newest readings of devices whose names begin so; by default those that a status contains."""
        return tuple(self._tree.readings(kinds))

    @property
    def _version(self) -> tuple[int, int]:
        return self._tree.rows.version, self._observed.version

    def restore(self, state: TreeState) -> bool:
        """Take over what an earlier run has published. Returns whether there was anything."""
        self._discovery_topics.restore(state)
        self._observed = ObservedRanges(self._options.allowed, state.ranges)
        return self._tree.rows.restore(state.rows)

    @property
    def devices(self) -> Iterable[str]:
        """The devices that have been published."""
        return {row.device for row in self._tree.rows}

    @property
    def state(self) -> TreeState:
        """What has been published, for the state file."""
        return TreeState(rows=tuple(self._tree.rows), ranges=self._observed.ranges, **self._discovery_topics.fields)

    def announce(self, facts: Facts) -> bool:
        """Publish discovery if the rows or the facts have changed. Returns whether they have."""
        if (version := (self._version, replace(facts, clock_offset=0.0))) == self._announced:
            return False
        self._announced, rows = version, self._tree.rows
        about = self._options.about(facts, self._observed.ranges)
        self._discovery_topics.announce(about, rows, rows.gone.values())
        return True

    def sent(self, message: Message) -> bool:
        """Continue the removal of a topic when the broker has a message. Returns whether that was the last one."""
        return self._discovery_topics.sent(message)

    def _update(self, source: str, readings: Sequence[Reading], when: float, *, whole: bool = True) -> None:
        self._tree.rows.partial = _partial(self._sources.values())
        messages = self._tree.update if whole else self._tree.values
        self._send(source, messages(source, readings, datetime.fromtimestamp(when, UTC)))

    def _send(self, source: str, messages: Iterable[Message], *, more: bool = False) -> None:
        """Publish messages of a source, the first or `more` of an answer, and note how long they wait."""
        waited, known = self._publish(messages) or 0.0, self._waited.get(source, 0.0)
        self._waited[source] = max(waited, known) if more else waited


def _state(names: Names, serial: str, source: str, is_online: bool | None) -> Message:
    """The message of a source's availability; of the gateway's state, if `source` is empty."""
    topic = names.availability(serial, source) if source else names.state(serial)
    if is_online is None:
        return Message(topic, "", qos=1, priority=Priority.AVAILABILITY)
    return online(topic, is_online)


def _have_news(flows: Sequence[Reading], before: Sequence[Reading]) -> bool:
    """Whether a site's readings differ from those before, or an answer has told its powers once more.

    The site's documents contain powers, so they are not published again with other values that are repeated.
    """
    return flows != before or any(reading.repeat and reading.name == "power" for reading in flows)


def _partial(sources: Iterable[Source]) -> frozenset[str]:
    """The sources that the bridge makes of answers, until each source was asked in this run: they keep the values
    that an earlier run has published.
    """
    made = {SITE_SOURCE, IN_FORCE_SOURCE}
    return frozenset(made if any(source.state is SourceState.WAITING for source in sources) else ())


class DiscoveryTopics:
    """The discovery topics of one gateway or home: those that are `announced`, and those that are being removed.

    The state file keeps the `leaving` ones until the broker has the messages that remove them.
    """

    def __init__(self, settings: discovery.DiscoveryOptions | None, publish: Publish) -> None:
        self._settings, self._publish = settings, publish
        self.announced: frozenset[str] = frozenset()
        self.leaving: frozenset[str] = frozenset()
        self._outdated: frozenset[str] = frozenset()
        """Topics of an earlier revision, whose entities Home Assistant has to unload first."""
        self._held: dict[str, Message] = {}
        """Messages that wait until the broker has the one that unloads the entities of their topic."""

    @property
    def fields(self) -> dict[str, Any]:
        """The part of a state file."""
        return {"discovered": self.announced, "leaving": self.leaving, "revision": discovery.REVISION}

    def announce(self, about: AnnouncedGateway, rows: Iterable[Row], gone: Iterable[Row]) -> None:
        """Publish the discovery of these rows, if there is one.

        If the other form was announced, assume that all rows were: a broker may not deliver everything.
        """
        settings, rows = self._settings, tuple(rows)
        if settings is None:
            self.replace([])
            return
        if any(discovery.of_other_form(settings, topic) for topic in self.announced):
            self.announced |= discovery.other_topics(settings, about, rows)
        self.replace(list(discovery.announce(settings, about, rows, gone)))

    def replace(self, messages: Sequence[Message]) -> None:
        """Publish these messages, after beginning to remove the topics that are not among them."""
        topics = frozenset(message.topic for message in messages)
        gone = self.announced - topics
        self._publish(map(self._begin_removal, sorted(gone)))
        self._held = {topic: message for topic, message in self._held.items() if topic in topics}
        for message in messages:
            is_first = message.topic in self._outdated
            if is_first or message.topic in self._held:
                self._held[message.topic] = message
            if is_first or message.topic not in self._held:
                self._publish([discovery.migration(message.topic) if is_first else message])
        self._outdated = frozenset()
        self.announced, self.leaving = topics, (self.leaving | gone) - topics

    def restore(self, state: TreeState) -> None:
        """Take over the topics of an earlier run.

        The broker may not have the messages that remove the leaving ones, so they are removed once more.
        """
        self.announced = state.discovered | state.leaving
        self._outdated = state.discovered if state.revision < discovery.REVISION else frozenset()

    def sent(self, message: Message) -> bool:
        """Continue the removal of a topic when the broker has a message. Returns whether that was the last one."""
        if message.priority is Priority.MIGRATE and (held := self._held.pop(message.topic, None)):
            self._publish([held])
        if message.topic not in self.leaving:
            return False
        if message.payload:
            self._publish([discovery.removal(message.topic)])
            return False
        self.leaving -= {message.topic}
        return not self.leaving

    def _begin_removal(self, topic: str) -> Message:
        """The first message to a topic that has to be removed; one of the other form of discovery is migrated."""
        is_migrated = self._settings is not None and discovery.of_other_form(self._settings, topic)
        return discovery.migration(topic) if is_migrated else discovery.removal(topic)
