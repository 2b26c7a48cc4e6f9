"""What a gateway tells of the values that can be set, and of those that decide whether they are."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bridge.control import (
    ECONOMY,
    GRID_GROUP,
    LIMIT_GROUP,
    SAVINGS,
    CommandRefused,
    Control,
    WantedValue,
    control_of,
)
from bridge.model import NEVER, Facts, Reading, SourceName

CONTACTS_STAND_S = 90.0
"""After a write of a contact's settings the gateway calls all contacts open for so long, falsely."""
GRID_LEAST_CHARGE = 20.0
"""Charge (%) below which a home should not leave the grid."""
MAX_VALUES = 2_000
"""Values that are kept at most: a gateway may make up contacts."""
OPTIMIZED, BATTERY_CHARGE = "storage/settings/optimized", "storage/totals/soc"
RESERVE_IN_FORCE = "storage/control/reserve"
SLEEP_LEVELS, USUAL_SLEEP_LEVELS = ("sleep_soc_min", "sleep_soc_max"), (25.0, 30.0)
"""The levels for the sleep of an AC Battery, and the usual ones: only one that sleeps tells its own."""
NOT_STORED = "the gateway has not stored it"
OBEYED_ELSEWHERE = "this firmware stores it and obeys Enphase's app instead"


@dataclass(frozen=True, slots=True)
class Observed:
    """A value as it was read last, and the source that gives it."""

    value: object
    source: SourceName
    is_fallback: bool = False


class ControlValues:
    """The newest values of one gateway by topic, as far as commands concern them. `table` has what can be set."""

    def __init__(self, table: Mapping[str, Control]) -> None:
        self._table = table
        self._others = {control.proof for control in table.values() if control.proof}
        self._others |= {BATTERY_CHARGE, RESERVE_IN_FORCE}
        self._kinds = tuple({f"{topic.partition('/')[0]}/" for topic in (*table, *self._others)})
        self._values: dict[str, Observed] = {}
        self.contacts_until = NEVER
        """When the states of contacts can be believed again."""
        self._knows_savings = False

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def __contains__(self, topic: object) -> bool:
        return topic in self._values

    def get(self, topic: str | None) -> Observed | None:
        """The value of a topic, if it was ever read."""
        return self._values.get(topic or "")

    def observed(self, *topics: str | None) -> object:
        """The value of the first of these topics that was ever read; `None` if none was."""
        known = next((found for topic in topics if (found := self.get(topic))), None)
        return known.value if known else None

    def source_of(self, control: Control, proof: str | None) -> SourceName | None:
        """The source that tells what is in force at the topic `proof`; `None` if it is not known."""
        seen = self.get(proof)
        return control.source if control.proof == "" else seen.source if seen else None

    def take(self, source: SourceName, readings: Iterable[Reading]) -> frozenset[str]:
        """Keep what an answer tells. Returns the topics that it has a value for."""
        news = set[str]()
        for reading in readings:
            topic = f"{reading.device}/{reading.name}" if reading.device.startswith(self._kinds) else ""
            is_ours = topic in self._others or topic.endswith(SLEEP_LEVELS) or control_of(self._table, topic)
            if topic and reading.phase is None and is_ours:
                observed = Observed(reading.value, source, reading.measurement.fallback)
                if self._keep(topic, observed) and reading.value is not None:
                    news.add(topic)
        return frozenset(news)

    def _keep(self, topic: str, observed: Observed) -> bool:
        known = self._values.get(topic)
        is_weaker = known and known.source is not observed.source and observed.is_fallback and not known.is_fallback
        if is_weaker or (known is None and len(self._values) >= MAX_VALUES):
            return False
        self._values[topic] = observed
        self._knows_savings |= observed.value == SAVINGS
        return True

    # Contacts

    def contacts_stand(self, now: float) -> bool:
        """Whether the gateway may tell the states of contacts falsely."""
        return now < self.contacts_until

    def contacts_written(self, now: float) -> None:
        """Note a write of a contact's settings."""
        self.contacts_until = now + CONTACTS_STAND_S

    def steady(self, source: SourceName, readings: Sequence[Reading], now: float) -> Sequence[Reading]:
        """The readings, with the states of contacts as they were while the gateway tells them falsely.

        Those of which nothing was read before have no value.
        """
        if source is not SourceName.DRY_CONTACTS or not self.contacts_stand(now):
            return readings
        return [self._held(reading) for reading in readings]

    def _held(self, reading: Reading) -> Reading:
        known = self.observed(f"{reading.device}/{reading.name}")
        return replace(reading, value=known if isinstance(known, str) else None)

    # What they mean for a command

    def spelt(self, wanted: WantedValue) -> WantedValue:
        """The wanted value, with the economy mode as this gateway spells it.

        Raises:
            CommandRefused: it spells it otherwise.
        """
        if wanted == SAVINGS and not self._knows_savings:
            raise CommandRefused(f"this gateway calls it {ECONOMY}")
        return SAVINGS if wanted == ECONOMY and self._knows_savings else wanted

    def check(self, control: Control, wanted: WantedValue, *, force: bool) -> None:
        """Check that a home that is to leave the grid has enough in its batteries.

        Raises:
            CommandRefused: they have too little, or are not known.
        """
        if control.group != GRID_GROUP or wanted is not False or force:
            return
        charge, reserve = (self._number(topic) for topic in (BATTERY_CHARGE, RESERVE_IN_FORCE))
        if charge is None:
            raise CommandRefused("the batteries' charge is not known: ask with force if the home may become dark")
        least = max(GRID_LEAST_CHARGE, reserve or 0.0)
        if charge < least:
            raise CommandRefused(
                f"the batteries have {charge:g} %, but need {least:g} %, unless you ask with force"
            )

    def sleep_levels(self, target: str) -> tuple[float, float]:
        """The charges (%) between which an AC Battery goes to sleep, as they were read last, or the usual ones."""
        least, most = (self._number(f"{target.rpartition('/')[0]}/{name}") for name in SLEEP_LEVELS)
        return USUAL_SLEEP_LEVELS if least is None or most is None else (least, most)

    def _number(self, topic: str) -> float | None:
        known = self._values.get(topic)
        return float(known.value) if known and isinstance(known.value, int | float) else None


def is_ignored(control: Control, facts: Facts | None) -> bool:
    """Whether this firmware is known to ignore such a command."""
    return control.ignored_from is not None and facts is not None and facts.is_from(control.ignored_from)


def why_ignored(values: ControlValues, control: Control, facts: Facts | None, *, is_stored: bool) -> str:
    """Why the value in force does not follow the one that was written, as far as it is known."""
    optimized = values.get(OPTIMIZED)
    if control.source is not SourceName.TARIFF:
        return "the gateway has taken it, and has not followed in time"
    if not is_stored:
        return NOT_STORED
    if is_ignored(control, facts):
        return OBEYED_ELSEWHERE
    if optimized is not None and optimized.value is True:
        return f"{OPTIMIZED} is ON: the battery follows Enphase's schedules instead"
    return "the gateway has stored it, and the battery has not followed in time"


@dataclass(frozen=True, slots=True)
class Prospects:
    """What commands would do, as far as reading can tell. `table` has what can be set, `values` what was read.

    `allowed` are the groups that commands may set, and `unread` the sources whose answers could not be read. Each
    item is whether that is as wished, and a text for people.
    """

    table: Mapping[str, Control]
    values: ControlValues
    facts: Facts
    allowed: frozenset[str]
    unread: frozenset[str]

    def __iter__(self) -> Iterator[tuple[bool, str]]:
        groups = dict.fromkeys(control.group for control in self.table.values())
        if not self.allowed:
            could = ", ".join(group for group in groups if self._targets(group)) or "nothing that can be set"
            yield True, f"none is allowed; this gateway has {could}, which BRIDGE_CONTROL__ALLOW may name"
            return
        for group in groups:
            yield from self._of_group(group, self._targets(group))
        if LIMIT_GROUP in self.allowed:
            yield False, f"{LIMIT_GROUP}: allowed, but limits can't be set yet"

    def _targets(self, group: str) -> Mapping[str, Control]:
        known = {topic: control_of(self.table, topic) for topic in self.values}
        return {topic: control for topic, control in known.items() if control and control.group == group}

    def _of_group(self, group: str, targets: Mapping[str, Control]) -> Iterator[tuple[bool, str]]:
        ignored = [topic for topic, control in targets.items() if is_ignored(control, self.facts)]
        sources = {control.source for control in self.table.values() if control.group == group}
        if group not in self.allowed:
            if targets:
                yield True, f"{group}: not allowed by BRIDGE_CONTROL__ALLOW"
        elif not targets:
            is_unread = not self.unread.isdisjoint(sources)
            what = "what the gateway has of it could not be read" if is_unread else "this gateway has nothing of it"
            yield not is_unread, f"{group}: allowed, but {what}"
        elif ignored:
            yield False, f"{group}: refused unless forced: {_by_device(ignored)}: {OBEYED_ELSEWHERE}"
        if group in self.allowed and (taken := [topic for topic in targets if topic not in ignored]):
            yield True, f"{group}: may set {_by_device(taken)}"
            if OPTIMIZED in taken and self.values.observed(OPTIMIZED) is True:
                yield False, f"{OPTIMIZED} is ON: with it, newer firmware follows Enphase's schedules instead"


def _by_device(topics: Iterable[str]) -> str:
    """Topics for people: the devices, and what can be set of them."""
    pairs = [topic.rsplit("/", 1) for topic in topics]
    devices, names = (dict.fromkeys(part) for part in zip(*pairs, strict=True))
    return f"{', '.join(sorted(names))} of {', '.join(devices)}"
