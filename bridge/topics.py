"""Turns readings into messages: the tree of topics that subscribers rely on (docs/topics.md)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any

from bridge.model import DAY_S, Axis, Event, Measurement, Message, Priority, Reading, Scalar, Structure

ONLINE, OFFLINE = "online", "offline"
TIMESTAMP = "timestamp"
"""The key of a document that has the time of its values, in ISO 8601."""
DOCUMENT_INTERVAL_S = 1.0
MAX_DOCUMENT_BYTES = 256_000
"""Longest document. Those of captured gateways have 3 kB at most."""
MAX_STATE_LETTERS = 255
"""Longest text that Home Assistant accepts as a state."""


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


def _json(value: Scalar | Structure) -> Any:
    if isinstance(value, float):
        digits = round(value, 3)  # the number that the text of a value topic stands for
        return int(digits) if digits.is_integer() else digits
    if isinstance(value, datetime):
        return text(value)
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
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
        "heartbeat": _json(heartbeat),
        "gateways": sorted(gateways),
    }
    topic, priority = f"{names.bridge}/info", Priority.AVAILABILITY
    return Message(topic, json.dumps(own | more), qos=1, priority=priority, content_type="application/json")


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement that a device of the tree has, and the source that gives it.

    `absent_since` (seconds since 1970) is set while the source answers without it.
    """

    device: str
    phase: Axis | None
    measurement: Measurement
    source: str
    absent_since: float | None = field(default=None, compare=False)

    @property
    def key(self) -> "Key":
        return self.device, self.phase, self.measurement.name

    @property
    def unknown(self) -> Reading:
        """Its reading where its source has no value for it."""
        return Reading(self.device, self.phase, self.measurement, None)

    def is_gone(self, now: float) -> bool:
        return self.absent_since is not None and now - self.absent_since >= VALUE_GONE_AFTER_S


Key = tuple[str, Axis | None, str]
GATEWAY_DEVICE = "gateway"
FALLBACK_OF_ROW = attrgetter("measurement.fallback")
VALUE_GONE_AFTER_S = 7 * DAY_S
"""Seconds for which a value must be absent from every non-empty good answer before it is gone."""


class RowTable:
    """The rows of one gateway, and which source gives each.

    If two sources give one value, the one that comes first in `sources` owns the row. A fallback is used only if no
    other source gives the value.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._order = {source: place for place, source in enumerate(sources)}
        self._rows: dict[Key, Row] = {}
        self._silent: set[Key] = set()
        """Rows that discovery does not announce."""
        self._by_source: dict[str, list[Key]] = {}
        """The rows of each source, until they change."""
        self.partial: frozenset[str] = frozenset()
        """Sources whose missing values are not absent, but only unknown so far."""
        self.gone: dict[Key, Row] = {}
        """Rows that were announced and that discovery has to remove."""
        self.version = 0
        """A number that grows when the rows change, so that discovery is made anew only then."""

    def __iter__(self) -> Iterator[Row]:
        return (row for key, row in self._rows.items() if key not in self._silent)

    def restore(self, rows: Iterable[Row]) -> bool:
        """Add the rows of an earlier run, which stay while their source fails. Returns whether there are any."""
        known = {row.key: row for row in rows if row.source in self._order}
        self._rows = {**known, **self._rows}
        self._by_source.clear()
        return bool(known)

    def take(self, source: str, key: Key, reading: Reading) -> bool:
        """Note that a source gives a reading. Returns False if another source owns the row."""
        known, measurement = self._rows.get(key), reading.measurement
        same = (
            known is not None
            and known.source == source
            and (known.measurement is measurement or known.measurement == measurement)  # comparing is slow
        )
        if known and not same and self._rank(known.source, known.measurement) < self._rank(source, measurement):
            return False
        if known is None or not same:
            self.gone.pop(key, None)
            self._rows[key] = Row(reading.device, reading.phase, measurement, source)
            self._by_source.clear()
            self.version += 1
        elif known.measurement is not measurement or known.absent_since is not None:
            self._rows[key] = replace(known, measurement=measurement, absent_since=None)
        self._note_silence(key, reading)
        return True

    def _rank(self, source: str, measurement: Measurement) -> tuple[bool, int]:
        return measurement.fallback, self._order[source]

    def _note_silence(self, key: Key, reading: Reading) -> None:
        """Note whether discovery has to leave the row out: it is no entity, or its text is too long for one."""
        long = isinstance(reading.value, str) and len(reading.value) > MAX_STATE_LETTERS
        silent = long or reading.measurement.document_only or not reading.measurement.entity
        if silent != (key in self._silent):
            self.version += 1
            self._silent.symmetric_difference_update({key})

    def note_absent(
        self, source: str, present: Mapping[Key, Reading], now: float
    ) -> tuple[Sequence[Row], Sequence[Key]]:
        """Note which rows of a source a good answer at `now` (unix time) lacks.

        Returns those that the answer before still had, and those that are gone now. The absent rows of a device are
        gone all at once, when each has been absent for long enough: otherwise a device with several sources would
        disappear in parts. Home Assistant (2026.2) removes a device together with its last enabled entity and then
        clears the discovery topic itself. Entities that it is told to remove just at that moment are ignored for
        ever.
        """
        if source in self.partial:
            return (), ()
        names_devices = any(device != GATEWAY_DEVICE for device, *_ in present)
        absent = [
            key
            for key in self._keys_of(source)
            if key not in present and (names_devices or key[0] == GATEWAY_DEVICE)
        ]
        fresh = [row for row in map(self._rows.__getitem__, absent) if row.absent_since is None]
        self._rows |= {row.key: replace(row, absent_since=now) for row in fresh}
        if not any(self._rows[key].is_gone(now) for key in absent):
            return fresh, ()
        missing: dict[str, list[Key]] = {device: [] for device, *_ in absent}
        for key, row in self._rows.items():
            if row.absent_since is not None and row.device in missing:
                missing[row.device].append(key)
        due = (keys for keys in missing.values() if all(self._rows[key].is_gone(now) for key in keys))
        return fresh, [key for keys in due for key in keys]

    def given_by(self, source: str) -> list[Row]:
        """The rows that a source gives."""
        rows = (self._rows[key] for key in self._keys_of(source))
        return [row for row in rows if row.absent_since is None]

    def _keys_of(self, source: str) -> list[Key]:
        if source not in self._by_source:
            self._by_source[source] = [key for key, row in self._rows.items() if row.source == source]
        return self._by_source[source]

    def remove(self, key: Key) -> bool:
        """Remove a row that is gone. Returns whether it was the last one of its device."""
        row = self.gone[key] = self._rows.pop(key)
        self._by_source.clear()
        self.version += 1
        return not any(other.device == row.device for other in self._rows.values())


class Tree:
    """The newest readings of one gateway, by source and device, as messages. If `paced`, quantities set a pace."""

    def __init__(
        self, names: Names, serial: str, sources: Sequence[str], payload: str = "both", *, paced: bool = True
    ) -> None:
        self.names = names
        self.serial = serial
        self.rows = RowTable(sources)
        self._values, self._documents, self._paced = payload != "json", payload != "values", paced
        self._readings: dict[str, Mapping[str, Sequence[Reading]]] = {name: {} for name in reversed(sources)}
        """Readings by source, the last source first, so that in documents earlier sources overwrite later ones."""
        self._is_long: dict[str, bool] = {}
        """Devices whose documents have been too long, and whether the newest one is."""
        self._events: list[Event] = []
        self._messages: dict[Key, tuple[Measurement, Message]] = {}
        """The newest message of each value: most readings equal the one before, and need no new message."""

    def update(self, source: str, readings: Sequence[Reading], when: datetime) -> Iterator[Message]:
        """The messages of a good answer: value topics, removals, and documents of the devices."""
        yield from self.values(source, readings, when)
        yield from self.documents(source, when)

    def values(self, source: str, readings: Sequence[Reading], when: datetime) -> Iterator[Message]:
        """The value topics and removals of a good answer. The caller must take all of them."""
        given = {(reading.device, reading.phase, reading.measurement.name): reading for reading in readings}
        mine = {key: reading for key, reading in given.items() if self.rows.take(source, key, reading)}
        newest: dict[str, list[Reading]] = {}
        for reading in mine.values():
            newest.setdefault(reading.device, []).append(reading)
        self._readings[source] = newest
        absent, gone = self.rows.note_absent(source, mine, when.timestamp()) if mine else ((), ())
        for row in absent:  # its last value would stay, and nothing would say that it is old
            mine[row.key] = row.unknown
        if self._values:
            yield from (self._value(key, r) for key, r in mine.items() if not r.measurement.document_only)
        for key in gone:
            yield from self._clear(key)

    def documents(self, source: str, when: datetime) -> Iterator[Message]:
        """The documents of the source's devices, with the newest readings of all sources.

        A document that is too long is cleared: its values still have topics.
        """
        for device in self._readings[source] if self._documents else ():
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
        for by_device in self._readings.values():
            for device, readings in by_device.items():
                yield from readings if device.startswith(kinds) else ()

    def newest(self, source: str) -> Mapping[str, Sequence[Reading]]:
        """The newest readings of a source by device: another mapping with each answer."""
        return self._readings[source]

    def clear(self, rows: Iterable[Row]) -> Iterator[Message]:
        """The messages that remove these rows at once."""
        for row in tuple(rows):
            yield from self._clear(row.key)

    def _clear(self, key: Key) -> Iterator[Message]:
        was_last = self.rows.remove(key)
        self._messages.pop(key, None)
        yield Message(self.names.value(self.serial, *key), "")
        if was_last:
            yield Message(self.names.device(self.serial, key[0]), "")

    def _value(self, key: Key, reading: Reading) -> Message:
        value, row = reading.value, reading.measurement
        payload = text(None if isinstance(value, Mapping) else value)
        measurement, message = self._messages.get(key, (None, None))
        is_same = message is not None and measurement is row and message.payload == payload
        if message is None or not is_same or message.repeat != reading.repeat:
            topic = message.topic if message else self.names.value(self.serial, *key)
            quantity, is_paced = row.quantity, self._paced and row.interval is None
            message = Message(
                topic,
                payload,
                priority=self._priority(key[0]),
                deadband=quantity.deadband,
                interval=quantity.pace if is_paced else row.interval or 0.0,
                urgent_change=quantity.urgent_change if is_paced else 0.0,
                repeat=reading.repeat,
            )
            self._messages[key] = row, message
        return message

    def _document(self, device: str, when: datetime) -> Message:
        """The document of one device. Fallbacks come first, so that others overwrite them."""
        given = [reading for by_device in self._readings.values() for reading in by_device.get(device, ())]
        readings = sorted(given, key=FALLBACK_OF_ROW, reverse=True)
        return Message(
            self.names.device(self.serial, device),
            json.dumps(_body(readings, when)),
            priority=self._priority(device),
            interval=max(DOCUMENT_INTERVAL_S, min(reading.measurement.interval or 0.0 for reading in readings)),
            content_type="application/json",
        )

    def _priority(self, device: str) -> Priority:
        is_flow = device.startswith("site/") or self.serial.startswith("home/")
        return Priority.SITE if is_flow else Priority.VALUE


def _body(readings: Iterable[Reading], when: datetime) -> Mapping[str, Any]:
    """The content of a document; of readings with one name, the last one counts."""
    body: dict[str, Any] = {TIMESTAMP: text(when)}
    for reading in readings:
        place = body if reading.phase is None else body.setdefault(reading.phase.value, {})
        place[_key(reading.measurement.name)] = _json(reading.value)
    return body


def _key(name: str) -> str:
    """The key of a value in a document. `timestamp` is the document's own, so that of `live/tasks` is renamed."""
    return "timestamp_2" if name == TIMESTAMP else name
