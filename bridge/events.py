"""What happens at a gateway, as events that are told once: an inverter is silent, the grid is lost, and so on.

Events are made from what successive readings show, and what was told is kept over restarts. The first answers of a
gateway only tell how it is, so they make no events. Pure: times and state come from the caller.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, field_serializer

from bridge.endpoints.info import listed_entries
from bridge.endpoints.production import AC_BATTERY_TYPE
from bridge.model import HOUR_S, MINUTE_S, Event, Message, Reading, Scalar, Structure, printable
from bridge.rows import by_kind
from bridge.site.clamp import SUN_MIN_SHARE
from bridge.site.selection import GENERATOR_ON
from bridge.state import FileState, UnixTime
from bridge.topics import text as plain

INVERTER_SILENT_S = HOUR_S
"""Seconds of sunshine after which an inverter that does not report is silent: its last report is older by half an
hour."""
BATTERY_SILENT_S = 10 * MINUTE_S
"""Seconds after which a battery that does not communicate is silent: an update of its firmware takes less."""
OUTAGE_S = 30.0
"""A gateway whose counters of requests begin anew after so many seconds without an answer has restarted."""
MOST_UNTOLD = 100
"""Events that wait for the broker; beyond that the oldest are lost."""
MOST_PER_HOUR = 60
"""Events of one gateway in an hour. A relay that flaps would otherwise never end."""
MAX_COUNTED_STEP_S = HOUR_S
"""Longest time between two answers that counts: a clock that is set makes nothing silent."""
MOST_OPEN, MOST_LETTERS = 3_000, 255


class EventKind(StrEnum):
    """What can happen. Home Assistant has to know these words before the first event."""

    INVERTER_SILENT = "inverter_silent"
    INVERTER_BACK = "inverter_back"
    BATTERY_SILENT = "battery_silent"
    BATTERY_BACK = "battery_back"
    GRID_LOST = "grid_lost"
    GRID_BACK = "grid_back"
    GENERATOR_STARTED = "generator_started"
    GENERATOR_STOPPED = "generator_stopped"
    CLAMP_SUSPICIOUS = "clamp_suspicious"
    COUNTER_HELD = "counter_held"
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - no secret
    TOKEN_EXPIRING = "token_expiring"  # noqa: S105 - no secret
    PRODUCTION_LIMITED = "production_limited"
    PRODUCTION_FREE = "production_free"
    FIRMWARE_CHANGED = "firmware_changed"
    GATEWAY_RESTARTED = "gateway_restarted"
    GATEWAY_EVENT = "gateway_event"
    """An entry of the gateway's own list of events, where it is read."""


@dataclass(frozen=True, slots=True)
class GatewayEvent:
    """Something that has happened at `at` (unix time). `serial` is that of the unit, or of the gateway itself."""

    event_type: EventKind
    at: UnixTime
    id: str
    serial: str
    text: str

    @property
    def payload(self) -> str:
        """The event as JSON. Home Assistant reads `event_type`, and shows the rest as attributes."""
        return json.dumps(asdict(self) | {"at": plain(datetime.fromtimestamp(round(self.at), UTC))})

    def message(self, topic: str) -> Message:
        """The message, which is not retained: whoever connects later must not take it for news."""
        return Message(topic, self.payload, qos=1, content_type="application/json", retain=False)


class EventsState(FileState):
    """What was told of a gateway.

    `begun` are the families of conditions whose first state is known, `open` the conditions that are present, as
    `family/unit`. `firmware` is the newest known one, `listed` the newest number of the gateway's own list.
    `untold` are events that the broker does not have yet.
    """

    suffix: ClassVar[str] = "_events"

    begun: Annotated[frozenset[str], Field(max_length=64)] = frozenset()
    open: Annotated[frozenset[str], Field(max_length=MOST_OPEN)] = frozenset()
    firmware: str = ""
    listed: int | None = None
    untold: Annotated[tuple[GatewayEvent, ...], Field(max_length=MOST_UNTOLD)] = ()

    @field_serializer("begun", "open")
    def _sorted(self, items: frozenset[str]) -> list[str]:
        return sorted(items)


TEXTS: Mapping[EventKind, str] = {
    EventKind.INVERTER_SILENT: "inverter {unit} does not report while the sun shines",
    EventKind.INVERTER_BACK: "inverter {unit} reports again",
    EventKind.BATTERY_SILENT: "battery {unit} does not communicate with the gateway",
    EventKind.BATTERY_BACK: "battery {unit} communicates again",
    EventKind.GRID_LOST: "the home is disconnected from the grid",
    EventKind.GRID_BACK: "the home is connected to the grid again",
    EventKind.GENERATOR_STARTED: "the generator gives power",
    EventKind.GENERATOR_STOPPED: "the generator no longer gives power",
    EventKind.PRODUCTION_LIMITED: "the gateway limits production",
    EventKind.PRODUCTION_FREE: "the gateway no longer limits production",
}
"""What is said of an event, unless it has a text of its own. `{unit}` is a serial number."""
CONDITIONS: Mapping[str, tuple[EventKind, EventKind | None]] = {
    "inverter": (EventKind.INVERTER_SILENT, EventKind.INVERTER_BACK),
    "battery": (EventKind.BATTERY_SILENT, EventKind.BATTERY_BACK),
    "grid": (EventKind.GRID_LOST, EventKind.GRID_BACK),
    "generator": (EventKind.GENERATOR_STARTED, EventKind.GENERATOR_STOPPED),
    "limit": (EventKind.PRODUCTION_LIMITED, EventKind.PRODUCTION_FREE),
    "clamp": (EventKind.CLAMP_SUSPICIOUS, None),
    "counter": (EventKind.COUNTER_HELD, None),
    "token": (EventKind.TOKEN_REFUSED, None),
    "expiry": (EventKind.TOKEN_EXPIRING, None),
}
"""What is told when a condition begins and when it ends, by the family of the condition."""
BEGINNINGS = frozenset({"counter_held", "clamp_suspicious"})
"""Lines of the log that tell of the beginning of a condition. All others of counters or clamps tell of an end."""
UNIT_KINDS = ("inverter", "battery")
"""Kinds of units that have a serial number."""


@dataclass(frozen=True, slots=True)
class _States:
    """Which conditions of a family are present, by unit, and why.

    The first time that a family is observed only tells how it is, unless these `are_news`.
    """

    family: str
    present: Mapping[str, bool]
    why: str = ""
    are_news: bool = False


class _Silence:
    """Which units have said nothing for so many `seconds` of those answers that count."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._quiet: dict[str, float] = {}
        self._counted, self._at = 0.0, math.inf

    def observe(self, talks: Mapping[str, bool], now: float, *, counts: bool = True) -> Mapping[str, bool]:
        """Whether each unit is silent, without those that are quiet for too short a time to know.

        `talks` is whether each says something in this answer. Time counts where answers before and after it do.
        """
        step = max(0.0, min(now - self._at, MAX_COUNTED_STEP_S)) if counts else 0.0
        self._at = now if counts else math.inf
        self._counted += step
        self._quiet = {unit: self._quiet.get(unit, 0.0) + step for unit, heard in talks.items() if not heard}
        long = {unit for unit, seconds in self._quiet.items() if seconds >= self._seconds}
        return {unit: unit in long for unit in talks if unit in long or unit not in self._quiet}

    @property
    def is_decided(self) -> bool:
        """Whether enough time has counted to know every unit that is silent."""
        return self._counted >= self._seconds


class _Silences:
    """Which inverters and batteries are silent."""

    def __init__(self) -> None:
        self._inverters, self._batteries = _Silence(INVERTER_SILENT_S), _Silence(BATTERY_SILENT_S)

    def states(self, given: Mapping[str, Sequence[Reading]], now: float, begun: Iterable[str]) -> Iterator[_States]:
        """What an answer shows; nothing of a family that has not `begun` until all its units are known."""
        for family, silence, silent in (
            ("inverter", self._inverters, self._of_inverters(_by_unit(given.get("inverter", ())), now)),
            ("battery", self._batteries, self._of_batteries(_by_unit(given.get("battery", ())), now)),
        ):
            if silent and (family in begun or silence.is_decided):
                yield _States(family, silent)

    def _of_inverters(self, units: "_Units", now: float) -> Mapping[str, bool]:
        """Only sunshine counts, by what the others make: all sleep at night. AC Batteries may sleep by day."""
        talks = {
            serial: values["reporting"] is True
            for serial, values in units.items()
            if "reporting" in values and values.get("type") != AC_BATTERY_TYPE
        }
        awake = [units[serial] for serial, reports in talks.items() if reports]
        power, highest = (sum(_number(values.get(name)) for values in awake) for name in ("power", "max_power"))
        is_bright = 0 < SUN_MIN_SHARE * highest <= power
        return self._inverters.observe(talks, now, counts=is_bright) if talks else {}

    def _of_batteries(self, units: "_Units", now: float) -> Mapping[str, bool]:
        told = ((serial, values.get("communicating")) for serial, values in units.items())
        talks = {serial: value for serial, value in told if isinstance(value, bool)}
        return self._batteries.observe(talks, now) if talks else {}


def _switches(readings: Iterable[Reading]) -> Iterator[_States]:
    """The grid, the generator and the limit of production: each answer tells how they are."""
    for reading in readings:
        place, value = (reading.device, reading.name), reading.value
        if place == ("site/grid", "connected") and isinstance(value, bool):
            yield _States("grid", {"": not value})
        elif place == ("limit/production", "active") and isinstance(value, bool):
            yield _States("limit", {"": value})
        elif reading.device.startswith("generator/") and reading.name == "state" and isinstance(value, str):
            yield _States("generator", {"": value in GENERATOR_ON})


def _lines(lines: Iterable[Event]) -> Iterator[_States]:
    """Counters and clamps: what the log says of them is about a change."""
    for line in lines:
        family = line.name.partition("_")[0]
        if family in {"counter", "clamp"}:
            yield _States(family, {line.about: line.name in BEGINNINGS}, line.text, are_news=True)


@dataclass(slots=True)
class _RequestCounts:
    """The gateway's counters of requests, in live data, and when they were read."""

    values: Mapping[str, float] = field(default_factory=dict)
    at: float = math.inf

    def begin_anew(self, readings: Iterable[Reading], now: float) -> bool:
        """Take note of an answer. Returns whether they have fallen while there was none."""
        given = {r.name: _number(r.value) for r in readings if r.device == "live/counters"}
        if not given:
            return False
        both = given.keys() & self.values.keys()
        fallen = sum(given[name] for name in both) < sum(self.values[name] for name in both)
        was_away = now - self.at >= OUTAGE_S
        self.values, self.at = given, now
        return fallen and was_away


class _EntryList:
    """The gateway's own list of events, where it is read."""

    def __init__(self) -> None:
        self._goes_back = False
        """Whether its numbers were smaller than the known one in the last answer."""

    def read(self, entries: Mapping[int, str], known: int | None) -> tuple[int | None, Mapping[int, str]]:
        """The number that is known after an answer, and its entries with greater ones.

        Numbers that are smaller twice are those of a new list.
        """
        newest = max(entries, default=None)
        if known is None or newest is None:
            return (newest if known is None else known), {}
        went_back, self._goes_back = self._goes_back, newest < known
        newer = {number: text for number, text in entries.items() if number > known}
        return (newest if went_back and self._goes_back else max(newest, known)), newer


class GatewayEvents:
    """Makes the events of one gateway. `state` is what an earlier run has kept."""

    def __init__(self, serial: str, state: EventsState) -> None:
        self._serial = serial
        self.state = state
        """What must outlive the process."""
        self._silences, self._requests, self._list = _Silences(), _RequestCounts(), _EntryList()
        self._recent: list[float] = []
        """When events were told within the last hour."""

    def observe(
        self,
        readings: Iterable[Reading],
        lines: Iterable[Event],
        *,
        now: float,
        firmware: str,
        was_starting: bool = False,
    ) -> Sequence[GatewayEvent]:
        """Make events from an answer.

        Args:
            readings: those of the answer, and the site's after it.
            lines: what the log says of it.
            now: unix time of the answer.
            firmware: of the gateway.
            was_starting: whether the gateway has said, since the answer before, that it starts.
        """
        given = by_kind(readings)
        switches = _switches([*given["site"], *given["limit"], *given["generator"]])
        shown = [*self._silences.states(given, now, self.state.begun), *switches, *_lines(lines)]
        found = [event for states in shown for event in self._changes(states, now)]
        has_restarted = self._requests.begin_anew(given["live"], now) or was_starting
        of_gateway = self._of_gateway(now, firmware, has_restarted=has_restarted)
        found += [*of_gateway, *self._of_list(given["gateway"], now)]
        return self._kept(found, now)

    def observe_token(
        self, *, refused: str | None, now: float, expires: datetime | None = None, problem: str | None = None
    ) -> Sequence[GatewayEvent]:
        """Make events from how the gateway takes the token.

        Args:
            refused: why it is refused; `None` where it is accepted.
            now: unix time.
            expires: when the token that serves ends.
            problem: what a person has to do about it.
        """
        found = [*self._changes(_States("token", {"": refused is not None}, refused or ""), now)]
        if refused is None and expires is not None:
            token = plain(expires)
            opened = (key.partition("/") for key in self.state.open)
            known = {unit: False for family, _, unit in opened if family == "expiry"}
            states = _States("expiry", {**known, token: bool(problem) or token in known}, problem or "")
            found += self._changes(states, now)
        return self._kept(found, now)

    def sent(self, payload: str) -> None:
        """Note that the broker has an event."""
        self.state = self.state.changed(untold=tuple(one for one in self.state.untold if one.payload != payload))

    def _changes(self, states: _States, now: float) -> Iterator[GatewayEvent]:
        """The events of conditions that have begun or ended."""
        family, before = states.family, self.state
        begins, ends = CONDITIONS[family]
        keys = {f"{family}/{unit}": is_present for unit, is_present in states.present.items()}
        begun = [key for key, is_present in keys.items() if is_present and key not in before.open]
        begun = begun[: MOST_OPEN - len(before.open)]
        ended = [key for key, is_present in keys.items() if not is_present and key in before.open]
        if begun or ended or family not in before.begun:
            opened = before.open.difference(ended).union(begun)
            self.state = before.changed(open=opened, begun=before.begun | {family})
        if family not in before.begun and not states.are_news:
            return
        told = [(begins, key) for key in begun] + [(ends, key) for key in ended if ends]
        for kind, key in told:
            unit = key.partition("/")[2]
            serial = self._serial_of(key if family in UNIT_KINDS else unit)
            text = states.why or TEXTS[kind].format(unit=unit)
            yield self._event(kind, text, now, serial, unit)

    def _of_gateway(self, now: float, firmware: str, *, has_restarted: bool) -> Iterator[GatewayEvent]:
        before, is_first = self.state.firmware, "gateway" not in self.state.begun
        if is_first or (firmware and firmware != before):
            self.state = self.state.changed(firmware=firmware or before, begun=self.state.begun | {"gateway"})
        if before and firmware and firmware != before:
            yield self._event(EventKind.FIRMWARE_CHANGED, f"the firmware changed from {before} to {firmware}", now)
        if has_restarted and not is_first:
            yield self._event(EventKind.GATEWAY_RESTARTED, "the gateway has restarted", now)

    def _of_list(self, readings: Iterable[Reading], now: float) -> Iterator[GatewayEvent]:
        listed, texts = self._list.read(listed_entries(readings), self.state.listed)
        if listed != self.state.listed:
            self.state = self.state.changed(listed=listed)
        for number, text in sorted(texts.items()):
            yield self._event(EventKind.GATEWAY_EVENT, text or "an event without a text", now, name=str(number))

    def _serial_of(self, device: str) -> str:
        """The serial number of the unit that something belongs to; the gateway's where it has none."""
        kind, _, rest = device.partition("/")
        return rest.partition("/")[0] if kind in UNIT_KINDS else self._serial

    def _event(self, kind: EventKind, text: str, now: float, serial: str = "", name: str = "") -> GatewayEvent:
        own = "-".join(filter(None, (self._serial, str(int(now * 1000)), kind.value, name)))
        identity = re.sub(r"[^\w.:-]", "-", own)[:MOST_LETTERS]
        return GatewayEvent(kind, now, identity, serial or self._serial, printable(text, MOST_LETTERS))

    def _kept(self, found: Sequence[GatewayEvent], now: float) -> Sequence[GatewayEvent]:
        """The events that may be told. They wait in the state until the broker has them."""
        self._recent = [at for at in self._recent if now - HOUR_S < at <= now]
        kept = found[: max(0, MOST_PER_HOUR - len(self._recent))]
        if kept:
            self._recent += [now] * len(kept)
            self.state = self.state.changed(untold=(*self.state.untold, *kept)[-MOST_UNTOLD:])
        return kept


_Units = Mapping[str, Mapping[str, Scalar | Structure]]


def _by_unit(readings: Iterable[Reading]) -> _Units:
    """The values of whole units, by serial number. Units that were never used here are left out."""
    units: dict[str, dict[str, Scalar | Structure]] = {}
    for reading in readings:
        if reading.phase is None and not reading.measurement.unused:
            units.setdefault(reading.device.partition("/")[2], {})[reading.name] = reading.value
    return units


def _number(value: Scalar | Structure) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
