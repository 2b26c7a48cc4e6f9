"""Turns readings into messages: the tree of topics that subscribers rely on (docs/topics.md)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any

from bridge.model import Axis, Event, Message, Priority, Reading, Scalar, Structure
from bridge.rows import Key, Row, RowTable

ONLINE, OFFLINE = "online", "offline"
TIMESTAMP = "timestamp"
"""The key of a document that has the time of its values, in ISO 8601."""
DOCUMENT_INTERVAL_S = 1.0
MAX_DOCUMENT_BYTES = 256_000
"""Longest document. Those of captured gateways have 3 kB at most."""


def text(value: Scalar) -> str:
    """One plain value as a payload: no exponent, no padding, no -0, never empty."""
    if isinstance(value, float):
        digits = f"{value:.3f}".rstrip("0").rstrip(".")
        return "0" if digits == "-0" else digits
    if isinstance(value, bool):
        return "ON" if value else "OFF"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds" if value.microsecond else "seconds")
    return str(value) if isinstance(value, int) else value or "None"


def _json(value: Scalar | Structure, payload: str) -> str:
    """A value as JSON. A number looks as in its value topic, whose `payload` is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return payload if is_number else json.dumps(_plain(value))


def _plain(value: Scalar | Structure) -> Any:
    if isinstance(value, float):
        digits = round(value, 3)
        return int(digits) if digits.is_integer() else digits
    if isinstance(value, datetime):
        return text(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class Names:
    """The topics of one bridge."""

    base: str = "enphase"
    instance: str | None = None
    root: str | None = None
    """the base topic without its level for the site; `None` if it has no such level"""

    @property
    def bridges(self) -> str:
        """The topic below which all bridges publish their own state."""
        return f"{self.root or self.base}/bridge"

    @property
    def bridge(self) -> str:
        """The topic below which this bridge publishes its own state."""
        return self.bridges + (f"/{self.instance}" if self.instance else "")

    def events(self, serial: str) -> str:
        return f"{self.base}/{serial}/events"

    def state(self, serial: str) -> str:
        return f"{self.base}/{serial}/state"

    def availability(self, serial: str, source: str) -> str:
        return f"{self.base}/{serial}/availability/{source}"

    def device(self, serial: str, device: str) -> str:
        return f"{self.base}/{serial}/{device}"

    def command(self, serial: str, device: str, name: str) -> str:
        return f"{self.base}/{serial}/{device}/{name}/set"

    def home(self, home: str) -> str:
        """Above all topics of a home of several gateways. A home is not below a site."""
        return f"{self.root or self.base}/home/{home}"

    def home_availability(self, home: str) -> str:
        return f"{self.home(home)}/availability"

    def home_value(self, home: str, flow: str, name: str) -> str:
        return f"{self.home(home)}/{flow}/{name}"

    def value(self, serial: str, device: str, phase: Axis | None, name: str) -> str:
        return "/".join((self.base, serial, device, *((phase.value,) if phase else ()), name))


@lru_cache(maxsize=100_000)
def online(topic: str, is_online: bool) -> Message:
    """The message for a state or availability topic: always the same one, which the outbox knows at once."""
    return Message(topic, ONLINE if is_online else OFFLINE, qos=1, priority=Priority.AVAILABILITY)


def bridge_info(
    names: Names, version: str, started: datetime, gateways: Iterable[str], heartbeat: float, **more: object
) -> Message:
    """The message that lists the gateways that this bridge polls; it is sent at least every `heartbeat` seconds.

    `more` goes into the document: `standing_by` holds, by serial number, the gateways that another bridge polls
    instead, and the name of that bridge.
    """
    own = {
        "version": version,
        "started": text(started),
        "heartbeat": _plain(heartbeat),
        "gateways": sorted(gateways),
    }
    topic, priority = f"{names.bridge}/info", Priority.AVAILABILITY
    return Message(topic, json.dumps(own | more), qos=1, priority=priority, content_type="application/json")


FALLBACK_OF_SHOWN = attrgetter("reading.measurement.fallback")


@dataclass(frozen=True, slots=True)
class _Shown:
    """The newest reading of one value, as it is published: its message, and its part of a document.

    Most readings equal the ones before; then this is kept, and nothing is rendered anew. `source` is empty where
    the row's source answers without it.
    """

    source: str
    reading: Reading
    message: Message
    part: str

    def shows(self, source: str, reading: Reading) -> bool:
        """Whether a source's reading is published in the same way. `True` equals 1, but is published as ON."""
        own, value = self.reading, reading.value
        if own.measurement is not reading.measurement or self.source != source or own.repeat != reading.repeat:
            return False
        return type(own.value) is type(value) and own.value == value and not isinstance(value, Mapping)


@dataclass(frozen=True, slots=True)
class _Content:
    """The text of a device's document without its time, made of values that several sources have `given`."""

    given: Sequence[Sequence[_Shown]]
    text: str
    interval: float

    @classmethod
    def of(cls, given: Sequence[Sequence[_Shown]]) -> "_Content":
        """The text of these values. Of several values with one name the last one counts, but no fallback."""
        shown = sorted((one for each in given for one in each), key=FALLBACK_OF_SHOWN, reverse=True)
        parts: dict[str, str | dict[str, str]] = {}
        for one in shown:
            name, phase = one.reading.measurement.name, one.reading.phase
            if phase is None:
                parts[name] = one.part
            elif isinstance(axis := parts.setdefault(phase.value, {}), dict):
                axis[name] = one.part
        texts = (
            part if isinstance(part, str) else f'"{name}": {{{", ".join(part.values())}}}'
            for name, part in parts.items()
        )
        interval = min(one.reading.measurement.interval or 0.0 for one in shown)
        return cls(given, ", ".join(texts), max(DOCUMENT_INTERVAL_S, interval))


class Tree:
    """The newest readings of one gateway, by source and device, as messages. If `paced`, quantities set a pace."""

    def __init__(
        self, names: Names, serial: str, sources: Sequence[str], payload: str = "both", *, paced: bool = True
    ) -> None:
        self.names = names
        self.serial = serial
        self.rows = RowTable(sources)
        self._values, self._documents, self._paced = payload != "json", payload != "values", paced
        self._newest: dict[str, Mapping[str, Sequence[_Shown]]] = {name: {} for name in reversed(sources)}
        """What each source gives, by device; the last source first, so that earlier ones overwrite later ones."""
        self._bodies: dict[str, _Content] = {}
        self._is_long: dict[str, bool] = {}
        """Devices whose documents have been too long, and whether the newest one is."""
        self._events: list[Event] = []
        self._shown: dict[Key, _Shown] = {}

    def update(self, source: str, readings: Sequence[Reading], when: datetime) -> Iterator[Message]:
        """The messages of a good answer: value topics, removals, and documents of the devices."""
        yield from self.values(source, readings, when)
        yield from self.documents(source, when)

    def values(self, source: str, readings: Sequence[Reading], when: datetime) -> Sequence[Message]:
        """The value topics and removals of a good answer."""
        given = {(reading.device, reading.phase, reading.measurement.name): reading for reading in readings}
        mine: dict[Key, _Shown] = {}
        for key, reading in given.items():
            known = self._shown.get(key)
            if known is not None and known.shows(source, reading):
                mine[key] = known
            elif self.rows.take(source, key, reading):
                mine[key] = self._show(source, key, reading)
        self._newest[source] = _by_device(mine.values(), self._newest[source])
        absent, gone = self.rows.note_absent(source, mine, when.timestamp()) if mine else ((), ())
        # The last value of an absent row would stay, and nothing would say that it is old.
        shown = [*mine.values(), *(self._show("", row.key, row.unknown) for row in absent)]
        messages = [one.message for one in shown if not one.reading.measurement.document_only]
        removals = [message for key in gone for message in self._clear(key)]
        return [*(messages if self._values else ()), *removals]

    def documents(self, source: str, when: datetime) -> Iterator[Message]:
        """The documents of the source's devices, with the newest readings of all sources.

        A document that is too long is cleared: its values still have topics.
        """
        for device in self._newest[source] if self._documents else ():
            message = self._document(device, when)
            was_long, is_long = self._is_long.get(device), len(message.payload) > MAX_DOCUMENT_BYTES
            if was_long is None and is_long:
                text = f"{device}: its document of {len(message.payload)} bytes is too long, and is not published"
                self._events.append(Event("long_document", text, warning=True))
            if is_long or was_long:
                self._is_long[device] = is_long
            if not is_long:
                yield message
            elif not was_long:
                yield Message(message.topic, "")

    def take_events(self) -> Sequence[Event]:
        """What has happened since the last call."""
        taken, self._events = self._events, []
        return taken

    def readings(self, kinds: tuple[str, ...]) -> Iterator[Reading]:
        """The newest readings of devices whose names begin with one of `kinds`."""
        for by_device in self._newest.values():
            for device, shown in by_device.items():
                yield from (one.reading for one in shown) if device.startswith(kinds) else ()

    def clear(self, rows: Iterable[Row]) -> Iterator[Message]:
        """The messages that remove these rows at once."""
        for row in tuple(rows):
            yield from self._clear(row.key)

    def _clear(self, key: Key) -> Iterator[Message]:
        was_last = self.rows.remove(key)
        self._shown.pop(key, None)
        yield Message(self.names.value(self.serial, *key), "")
        if was_last:
            self._bodies.pop(key[0], None)
            yield Message(self.names.device(self.serial, key[0]), "")

    def _show(self, source: str, key: Key, reading: Reading) -> _Shown:
        known = self._shown.get(key)
        value, row = reading.value, reading.measurement
        quantity, is_paced = row.quantity, self._paced and row.interval is None
        message = Message(
            known.message.topic if known else self.names.value(self.serial, *key),
            text(None if isinstance(value, Mapping) else value),
            priority=self._priority(key[0]),
            deadband=quantity.deadband,
            interval=quantity.pace if is_paced else row.interval or 0.0,
            urgent_change=quantity.urgent_change if is_paced else 0.0,
            repeat=reading.repeat,
        )
        part = f'"{_key(row.name)}": {_json(value, message.payload)}'
        shown = self._shown[key] = _Shown(source, reading, message, part)
        return shown

    def _document(self, device: str, when: datetime) -> Message:
        given = [by_device[device] for by_device in self._newest.values() if device in by_device]
        body = self._bodies.get(device)
        if body is None or body.given != given:
            body = self._bodies[device] = _Content.of(given)
        return Message(
            self.names.device(self.serial, device),
            f'{{"{TIMESTAMP}": "{text(when)}", {body.text}}}',
            priority=self._priority(device),
            interval=body.interval,
            content_type="application/json",
        )

    def _priority(self, device: str) -> Priority:
        is_flow = device.startswith("site/") or self.serial.startswith("home/")
        return Priority.SITE if is_flow else Priority.VALUE


def _by_device(shown: Iterable[_Shown], before: Mapping[str, Sequence[_Shown]]) -> Mapping[str, Sequence[_Shown]]:
    """Values by their device. A list that equals the one `before` is the same object, to be compared fast."""
    found: dict[str, list[_Shown]] = {}
    for one in shown:
        found.setdefault(one.reading.device, []).append(one)
    return {device: old if (old := before.get(device)) == new else new for device, new in found.items()}


def _key(name: str) -> str:
    """The key of a value in a document. `timestamp` is the document's own, so that of `live/tasks` is renamed."""
    return "timestamp_2" if name == TIMESTAMP else name
