"""What is in force, from several answers together: whether the stored settings of the storage are obeyed, whether
solar power is limited, and why. Pure: the caller passes the time.
"""

from collections.abc import Iterable, Iterator, Sequence

from bridge.endpoints.controller import (
    EXPORT_CAUSE,
    FREE_PERCENT,
    LIMIT_EXPORT,
    LIMIT_INSTALLER,
    LIMIT_KIND,
    LIMIT_PRODUCTION,
    NO_CAUSE,
    UNTOLD_CAUSE,
)
from bridge.endpoints.storage import STORAGE_CONTROL, STORAGE_SETTINGS
from bridge.endpoints.switchgear import RELAY_MAINS
from bridge.model import MINUTE_S, Facts, Reading, Scalar, SourceName, Structure, printable
from bridge.records import FLAG, MAX_TEXT_LETTERS, TEXT, measurement
from bridge.state import State, UnixTime

FIRST_DISOBEDIENT, FIRST_DOUBTFUL = "8.2.4225", "8.3.5289"
"""From the first release on, the controller need not obey the stored settings (public reports). From the second one
on they may be a stale copy, so that even equal values show nothing.
"""
DIFFERENT_AFTER_S = 10 * MINUTE_S
"""Seconds for which stored and live values must differ: the controller takes some time to follow a change."""
KEPT_S, KEPT_PERIODS = 20 * MINUTE_S, 3
"""A value counts for so many seconds, or periods of its source if they are longer: a source that fails leaves the
last value of before.
"""
COMPARED = ("reserve", "charge_from_grid", "reserve_lowest")
LIVE_SOURCES = (SourceName.SECCTRL, SourceName.SCHED)
LIMIT_SOURCES = (SourceName.PVLIMIT, SourceName.DPEL, SourceName.PEL_SETTINGS)
GRID_CONNECTED = (RELAY_MAINS, "grid_connected")
CONCERNED = (STORAGE_SETTINGS, STORAGE_CONTROL, f"{LIMIT_KIND}/", RELAY_MAINS)
"""Beginnings of the devices whose values count here."""

OBEYED = measurement("obeyed", TEXT, label="Settings obeyed", enabled=True)
LIMITED = measurement("active", FLAG, enabled=True)
CAUSE = measurement("cause", TEXT, enabled=True)
ROWS_IN_FORCE = {STORAGE_SETTINGS: (OBEYED,), LIMIT_PRODUCTION: (LIMITED, CAUSE)}
"""The measurements by device."""

Value = Scalar | Structure
ValuePlace = tuple[str, str]
"""A device and the name of one of its values."""


class NewestValues:
    """The newest values of a gateway, each for as long as it counts.

    `now` is the unix time of the newest answer.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._values: dict[ValuePlace, tuple[Value, float, float]] = {}
        """Each with the unix time of its answer, and the seconds for which it counts."""

    def update(self, readings: Iterable[Reading], kept: float) -> None:
        """Take note of values that count for so many seconds."""
        self._values |= {(r.device, r.name): (r.value, self.now, kept) for r in readings}

    def forget(self, place: ValuePlace) -> None:
        """Drop a value."""
        self._values.pop(place, None)

    def __contains__(self, place: ValuePlace) -> bool:
        """Whether a value is known; it may be known that there is none."""
        _, told_at, kept = self._values.get(place, (None, self.now, 0.0))
        return self.now - told_at < kept

    def __getitem__(self, place: ValuePlace) -> Value:
        return self._values[place][0] if place in self else None

    def number(self, place: ValuePlace) -> float | None:
        """A value if it is a number."""
        value = self[place]
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(self, place: ValuePlace) -> str | None:
        """A value if it is a text."""
        value = self[place]
        return value if isinstance(value, str) else None


class InForceState(State):
    """What is kept: since when (unix time) stored and live values have differed."""

    different_since: UnixTime | None = None


class StoredSettings:
    """The stored settings of the storage, compared with the newest values in force."""

    def __init__(self, values: NewestValues, different_since: float | None) -> None:
        self._values, self.different_since = values, different_since
        self._has_settings = False

    def update(self, source: str, readings: Sequence[Reading], kept: float) -> None:
        """Take note of an answer. The tariff's own schedule is no value to compare with."""
        device = (
            STORAGE_SETTINGS if source == SourceName.TARIFF else STORAGE_CONTROL if source in LIVE_SOURCES else None
        )
        self._values.update((r for r in readings if r.device == device and r.name in COMPARED), kept)
        if source == SourceName.TARIFF:
            self._has_settings = any(reading.device == STORAGE_SETTINGS for reading in readings)

    def readings(self, facts: Facts) -> Iterator[Reading]:
        """Whether the settings are obeyed; nothing where none are stored."""
        if not self._has_settings:
            return
        values, now = self._values, self._values.now
        pairs = [
            (stored, live)
            for name in COMPARED
            if (stored := values[STORAGE_SETTINGS, name]) is not None
            and (live := values[STORAGE_CONTROL, name]) is not None
        ]
        is_different = any(_differ(stored, live) for stored, live in pairs)
        self.different_since = min(self.different_since or now, now) if is_different else None
        verdict = self._verdict(facts, now, can_compare=bool(pairs))
        yield Reading(STORAGE_SETTINGS, None, OBEYED, verdict)

    def _verdict(self, facts: Facts, now: float, *, can_compare: bool) -> str | None:
        """`yes`, `no`, or `None` where it is not known."""
        if not facts.is_from(FIRST_DISOBEDIENT, if_unknown=True):
            return "yes"
        if self.different_since is not None and now - self.different_since >= DIFFERENT_AFTER_S:
            return "no"
        return "yes" if can_compare and not facts.is_from(FIRST_DOUBTFUL, if_unknown=True) else None


def _differ(stored: Value, live: Value) -> bool:
    """Whether two values differ; percentages do not where only their decimals do."""
    if isinstance(stored, int | float) and isinstance(live, int | float):
        return abs(stored - live) >= 1
    return stored != live


PRODUCTION_PERCENT, PRODUCTION_POWER = (LIMIT_PRODUCTION, "percent"), (LIMIT_PRODUCTION, "power")
TOLD_CAUSE = (LIMIT_PRODUCTION, "controller_cause")
EXPORT_POWER = (LIMIT_EXPORT, "power")
INSTALLER_POWER, INSTALLER_PERCENT = (LIMIT_INSTALLER, "power"), (LIMIT_INSTALLER, "percent")
SETTINGS = (PRODUCTION_PERCENT, PRODUCTION_POWER, EXPORT_POWER, INSTALLER_POWER, INSTALLER_PERCENT)


class Limits:
    """The limits on solar power, as several answers tell of them."""

    def __init__(self, values: NewestValues) -> None:
        self._values = values
        self._is_told = False
        """Whether it was ever known if solar power is limited."""

    def update(self, source: str, readings: Sequence[Reading], kept: float) -> bool:
        """Take note of an answer. Returns whether the controller should explain what it shows.

        Its long answer is wanted when a limit begins or ends, and when the home leaves or joins the grid. A limit
        whose number changes again and again is the same limit.
        """
        grid, limits, was_set, was_limited = self._values[GRID_CONNECTED], self._kinds, self._is_set, self.is_active
        self._values.update((r for r in readings if r.device.startswith(f"{LIMIT_KIND}/")), kept)
        self._values.update((r for r in readings if (r.device, r.name) == GRID_CONNECTED), kept)
        if was_set and not self._is_set:  # what the controller said was about the limit that has ended
            self._values.forget(TOLD_CAUSE)
        has_changed = source in LIMIT_SOURCES and self._kinds != limits and bool(was_limited or self.is_active)
        return has_changed or (grid is not None and self._values[GRID_CONNECTED] != grid)

    @property
    def _kinds(self) -> Sequence[bool]:
        """Which limits there are."""
        return [self._percent is not None, *(self._values[place] is not None for place in SETTINGS[1:])]

    @property
    def _is_set(self) -> bool:
        """Whether a setting limits solar power."""
        return self._percent is not None or self._values.number(PRODUCTION_POWER) is not None

    @property
    def _percent(self) -> float | None:
        """The limit in percent of the rated power; `None` if there is none."""
        percent = self._values.number(PRODUCTION_PERCENT)
        return percent if percent is not None and percent < FREE_PERCENT else None

    @property
    def _told_cause(self) -> str | None:
        """Why the controller limits solar power now; `None` if it does not, or does not tell."""
        told = self._values.text(TOLD_CAUSE)
        return None if told == NO_CAUSE else told

    @property
    def is_active(self) -> bool | None:
        """Whether solar power is limited; `None` while that is not known.

        That there is no dynamic limit does not show it: there are others.
        """
        if self._is_set or self._told_cause is not None:
            return True
        return False if PRODUCTION_PERCENT in self._values or TOLD_CAUSE in self._values else None

    def readings(self) -> Iterator[Reading]:
        """Whether solar power is limited, and why; nothing while that was never known."""
        is_active = self.is_active
        self._is_told |= is_active is not None
        if self._is_told:
            cause = self._cause() if is_active else None if is_active is None else NO_CAUSE
            yield Reading(LIMIT_PRODUCTION, None, LIMITED, is_active)
            yield Reading(LIMIT_PRODUCTION, None, CAUSE, cause)

    def _cause(self) -> str:
        """Why solar power is limited, in plain words: as the controller says, else which limits are set."""
        exports = self._texts(
            (EXPORT_CAUSE, EXPORT_POWER),
            (f"installer's {EXPORT_CAUSE}", INSTALLER_POWER),
            (f"installer's {EXPORT_CAUSE}", INSTALLER_PERCENT),
        )
        told = self._told_cause
        if told is None:
            words = [*self._texts(("production limit", PRODUCTION_POWER)), *exports] or [UNTOLD_CAUSE]
        else:
            words = told.split(", ")
            words = [text for part in words for text in (exports or [part] if part == EXPORT_CAUSE else [part])]
        share = "" if self._percent is None else f" ({self._percent:g} % of the rated power)"
        return printable(", ".join(words), MAX_TEXT_LETTERS - len(share)) + share

    def _texts(self, *limits: tuple[str, ValuePlace]) -> list[str]:
        """The limits that are set, in words, each with its value."""
        values = ((words, self._values.number(place), place[1]) for words, place in limits)
        return [
            f"{words} of {value:g} {'W' if name == 'power' else '%'}"
            for words, value, name in values
            if value is not None
        ]


class InForce:
    """What is in force at one gateway. `state` is what an earlier run has kept."""

    def __init__(self, state: InForceState) -> None:
        self._values = NewestValues()
        self._settings, self._limits = StoredSettings(self._values, state.different_since), Limits(self._values)
        self.asks_why = False
        """Whether the controller should explain what the last answer has shown."""

    @property
    def state(self) -> InForceState:
        """What the next run must know."""
        return InForceState(different_since=self._settings.different_since)

    def update(
        self, source: str, readings: Sequence[Reading], facts: Facts, now: float, period: float = 0.0
    ) -> Sequence[Reading]:
        """Take note of an answer that came at `now` (unix time) from a source with this period (seconds).

        Returns all that is in force after it.
        """
        kept = max(KEPT_S, KEPT_PERIODS * period)
        self._values.now = now
        concerned = [reading for reading in readings if reading.device.startswith(CONCERNED)]
        self._settings.update(source, concerned, kept)
        self.asks_why = self._limits.update(source, concerned, kept)
        return [*self._settings.readings(facts), *self._limits.readings()]
