"""The values that the devices of one gateway have, and which source gives each."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bridge.model import DAY_S, Axis, Measurement, Reading

MAX_STATE_LETTERS = 255
"""Longest text that Home Assistant accepts as a state."""


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
VALUE_GONE_AFTER_S = 7 * DAY_S
"""Seconds for which a value must be absent from every non-empty good answer before it is gone."""


def by_kind(readings: Iterable[Reading]) -> defaultdict[str, list[Reading]]:
    """The readings by the first level of their devices; none for other kinds."""
    kinds = defaultdict[str, list[Reading]](list)
    for reading in readings:
        kinds[reading.device.partition("/")[0]].append(reading)
    return kinds


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

    def note_absent(self, source: str, present: Collection[Key], now: float) -> tuple[Sequence[Row], Sequence[Key]]:
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
