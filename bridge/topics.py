"""From readings to messages: the tree that subscribers rely on (docs/topics.md)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bridge.model import Axis, Measurement, Message, Rank, Reading, Scalar, Structure

ONLINE, OFFLINE = "online", "offline"
DOCUMENT_INTERVAL = 1.0
MAX_STATE = 255
"""Home Assistant takes no longer text as a state."""


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
    """the base without a site; `None` where it has none"""

    @property
    def bridges(self) -> str:
        """Above all that bridges say of themselves."""
        return f"{self.root or self.base}/bridge"

    @property
    def bridge(self) -> str:
        return self.bridges + (f"/{self.instance}" if self.instance else "")

    def state(self, serial: str) -> str:
        return f"{self.base}/{serial}/state"

    def availability(self, serial: str, source: str) -> str:
        return f"{self.base}/{serial}/availability/{source}"

    def device(self, serial: str, device: str) -> str:
        return f"{self.base}/{serial}/{device}"

    def value(self, serial: str, device: str, phase: Axis | None, name: str) -> str:
        return "/".join((self.base, serial, device, *((phase.value,) if phase else ()), name))


def online(topic: str, is_online: bool) -> Message:
    """A state or availability topic."""
    return Message(topic, ONLINE if is_online else OFFLINE, qos=1, rank=Rank.AVAILABILITY)


def bridge_info(
    names: Names,
    version: str,
    started: datetime,
    gateways: Iterable[str],
    standing_by: Mapping[str, str] | None = None,
) -> Message:
    """`standing_by` has the gateways that another bridge polls in our place, and which one does."""
    body: dict[str, Any] = {"version": version, "started": text(started), "gateways": sorted(gateways)}
    if standing_by:
        body["standing_by"] = dict(sorted(standing_by.items()))
    return Message(f"{names.bridge}/info", json.dumps(body), qos=1, content_type="application/json")


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

    def is_gone(self, now: float) -> bool:
        return self.absent_since is not None and now - self.absent_since >= GONE


Key = tuple[str, Axis | None, str]
ROWS = TypeAdapter(list[Row])
GATEWAY = "gateway"
FALLBACK, INTERVAL = attrgetter("measurement.fallback"), attrgetter("measurement.interval")
GONE = 7 * 86_400.0
"""Seconds for which a value must be absent from every non-empty good answer before it is gone."""


class Tree:
    """The newest readings of one gateway, kept by source, since a device can have several.

    Where two sources name one value, the one that comes first in `sources` owns it, those last that only fall in.
    """

    def __init__(self, names: Names, serial: str, sources: Sequence[str], payload: str = "both") -> None:
        self.names = names
        self.serial = serial
        self._order = {source: place for place, source in enumerate(sources)}
        self._values, self._documents = payload != "json", payload != "values"
        self._rows: dict[Key, Row] = {}
        self._silent: set[Key] = set()
        self._gone: dict[Key, Row] = {}
        self._readings: dict[str, Mapping[str, Sequence[Reading]]] = {name: {} for name in reversed(sources)}
        """By source, the last of them first, and by device."""
        self._messages: dict[Key, Message] = {}
        """The newest of each value: most say the same as the last one, and are not made anew."""
        self._keys: dict[str, list[Key]] = {}
        """Of each source's rows, until they change."""
        self.version = 0
        """Grows when `rows` change, so that discovery is made anew only then."""

    def restore(self, kept: object) -> bool:
        """Take over the rows of an earlier run, so that none is forgotten while its source fails. False: none."""
        try:
            rows = ROWS.validate_python(kept)
        except ValidationError:
            return False
        known = {(row.device, row.phase, row.measurement.name): row for row in rows if row.source in self._order}
        self._rows = {**known, **self._rows}
        self._keys.clear()
        return bool(known)

    def dump(self) -> list[Any]:
        """The rows for the store. Those of one measurement share what is said of it, which is most of it all."""
        shared: dict[Measurement, Any] = {}
        kept: list[Any] = []
        for row in self.rows():
            (one,) = ROWS.dump_python([row], mode="json", exclude_defaults=True)
            kept.append({**one, "measurement": shared.setdefault(row.measurement, one["measurement"])})
        return kept

    def update(self, source: str, readings: Sequence[Reading], when: datetime) -> Iterator[Message]:
        """What a good answer of a source changes: its value topics, what is gone, and its devices' documents."""
        yield from self.values(source, readings, when)
        yield from self.documents(source, when)

    def values(self, source: str, readings: Sequence[Reading], when: datetime) -> Iterator[Message]:
        """The first part of it; to be taken whole."""
        given = {(reading.device, reading.phase, reading.measurement.name): reading for reading in readings}
        mine = {key: reading for key, reading in given.items() if self._owns(source, key, reading)}
        newest: dict[str, list[Reading]] = {}
        for reading in mine.values():
            newest.setdefault(reading.device, []).append(reading)
        self._readings[source] = newest
        if self._values:
            yield from (self._value(key, r) for key, r in mine.items() if not r.measurement.document_only)
        if mine:
            yield from self._vanish(source, mine, when.timestamp())

    def documents(self, source: str, when: datetime) -> Iterator[Message]:
        """The second part, with the newest of all sources."""
        if self._documents:
            yield from (self._document(device, when) for device in self._readings[source])

    def rows(self) -> Iterator[Row]:
        """All that can be announced, in the order of its first appearance."""
        return (row for key, row in self._rows.items() if key not in self._silent)

    def readings(self, kinds: tuple[str, ...]) -> Iterator[Reading]:
        """The newest readings of devices whose names begin so."""
        for by_device in self._readings.values():
            for device, readings in by_device.items():
                yield from readings if device.startswith(kinds) else ()

    def gone(self) -> Iterator[Row]:
        """What has been announced, and has to be taken back."""
        return iter(self._gone.values())

    def _vanish(self, source: str, present: Mapping[Key, Reading], now: float) -> Iterator[Message]:
        if source not in self._keys:
            self._keys[source] = [key for key, row in self._rows.items() if row.source == source]
        absent = [
            key
            for key in self._keys[source]
            if key not in present and (_names_devices(present) or key[0] == GATEWAY)
        ]
        for key in absent:
            row = self._rows[key]
            if row.absent_since is None:
                self._rows[key] = replace(row, absent_since=now)
        if any(self._rows[key].is_gone(now) for key in absent):
            yield from self._clear_due({device for device, *_ in absent}, now)

    def _clear_due(self, devices: set[str], now: float) -> Iterator[Message]:
        """What is absent of a device goes at once, when all of it is due.

        A device of several sources would go in parts otherwise. Home Assistant (2026.2) removes a device with its
        last enabled entity, clears its discovery topic itself, and keeps what it is told to forget just then.
        """
        missing: dict[str, list[Key]] = {device: [] for device in devices}
        for key, row in self._rows.items():
            if row.absent_since is not None and row.device in missing:
                missing[row.device].append(key)
        for keys in missing.values():
            if all(self._rows[key].is_gone(now) for key in keys):
                for key in keys:
                    yield from self._clear(key)

    def _clear(self, key: Key) -> Iterator[Message]:
        row = self._gone[key] = self._rows.pop(key)
        self._messages.pop(key, None)
        self._keys.clear()
        self.version += 1
        yield Message(self.names.value(self.serial, *key), "")
        if not any(other.device == row.device for other in self._rows.values()):
            yield Message(self.names.device(self.serial, row.device), "")

    def _owns(self, source: str, key: Key, reading: Reading) -> bool:
        known, measurement = self._rows.get(key), reading.measurement
        same = (
            known is not None
            and known.source == source
            and (known.measurement is measurement or known.measurement == measurement)  # equality takes long
        )
        if known and not same and self._rank(known.source, known.measurement) < self._rank(source, measurement):
            return False
        if known is None or not same:
            self._gone.pop(key, None)
            self._rows[key] = Row(reading.device, reading.phase, measurement, source)
            self._messages.pop(key, None)
            self._keys.clear()
            self.version += 1
        elif known.measurement is not measurement or known.absent_since is not None:
            self._rows[key] = replace(known, measurement=measurement, absent_since=None)
        self._mark(key, reading)
        return True

    def _rank(self, source: str, measurement: Measurement) -> tuple[bool, int]:
        return measurement.fallback, self._order[source]

    def _mark(self, key: Key, reading: Reading) -> None:
        """Keep out of discovery what is no entity, such as a text that is too long for one."""
        long = isinstance(reading.value, str) and len(reading.value) > MAX_STATE
        silent = long or reading.measurement.document_only or not reading.measurement.entity
        if silent != (key in self._silent):
            self.version += 1
            self._silent.symmetric_difference_update({key})

    def _value(self, key: Key, reading: Reading) -> Message:
        value, row = reading.value, reading.measurement
        payload = text(None if isinstance(value, Mapping) else value)
        message = self._messages.get(key)
        if message is None or message.payload != payload:
            topic = message.topic if message else self.names.value(self.serial, *key)
            message = Message(topic, payload, deadband=row.quantity.deadband, interval=row.interval)
            self._messages[key] = message
        return message

    def _document(self, device: str, when: datetime) -> Message:
        """What gives way to others comes first, and is overwritten."""
        given = [reading for by_device in self._readings.values() for reading in by_device.get(device, ())]
        readings = sorted(given, key=FALLBACK, reverse=True)
        body: dict[str, Any] = {"timestamp": text(when)}
        for reading in readings:
            place = body if reading.phase is None else body.setdefault(reading.phase.value, {})
            place[_key(reading.measurement.name)] = _json(reading.value)
        interval = max(DOCUMENT_INTERVAL, min(map(INTERVAL, readings)))
        topic = self.names.device(self.serial, device)
        return Message(topic, json.dumps(body), interval=interval, content_type="application/json")


def _names_devices(keys: Iterable[Key]) -> bool:
    """An empty list of inverters (at night, on some gateways) still has its count, on the gateway."""
    return any(device != GATEWAY for device, *_ in keys)


def _key(name: str) -> str:
    """A document's own time stamp comes first; the gateway's `live/tasks` has a value of that name, too."""
    return "timestamp_2" if name == "timestamp" else name
