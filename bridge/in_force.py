"""What is in force, from several answers together: whether the stored settings of the storage are obeyed, whether
solar power is limited, and why. Pure: the caller passes the time.
"""

from collections.abc import Iterator, Mapping, Sequence

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
from bridge.model import MINUTE_S, Facts, Reading, Scalar, SourceName, Structure
from bridge.records import FLAG, TEXT, measurement
from bridge.state import State, UnixTime

FIRST_DISOBEDIENT, FIRST_DOUBTFUL = "8.2.4225", "8.3.5289"
"""From the first release on, the controller need not obey the stored settings (public reports). From the second one
on they may be a stale copy, so that even equal values show nothing.
"""
DIFFERENT_AFTER_S = 10 * MINUTE_S
"""Seconds for which stored and live values must differ: the controller takes some time to follow a change."""
COMPARED_FOR_S = 20 * MINUTE_S
"""Seconds after which a live value is too old to be compared."""
COMPARED = ("reserve", "charge_from_grid", "reserve_lowest")
LIVE_SOURCES = (SourceName.SECCTRL, SourceName.SCHED)
LIMIT_SOURCES = (SourceName.PVLIMIT, SourceName.DPEL, SourceName.PEL_SETTINGS)

OBEYED = measurement("obeyed", TEXT, label="Settings obeyed", enabled=True)
LIMITED = measurement("active", FLAG, enabled=True)
CAUSE = measurement("cause", TEXT, enabled=True)
ROWS_IN_FORCE = {STORAGE_SETTINGS: (OBEYED,), LIMIT_PRODUCTION: (LIMITED, CAUSE)}
"""The measurements by device."""

Value = Scalar | Structure


class InForceState(State):
    """What is kept: since when (unix time) stored and live values have differed."""

    different_since: UnixTime | None = None


class StoredSettings:
    """The stored settings of the storage, and the values in force that they are compared with."""

    def __init__(self, different_since: float | None) -> None:
        self.different_since = different_since
        self._stored: Mapping[str, Value] = {}
        self._live: dict[str, tuple[Value, float]] = {}
        """The newest values in force, each with the unix time of its answer."""

    def update(self, source: str, readings: Sequence[Reading], now: float) -> None:
        """Take note of an answer. The tariff's own schedule is no value to compare with."""
        if source == SourceName.TARIFF:
            self._stored = {r.name: r.value for r in readings if r.device == STORAGE_SETTINGS}
        elif source in LIVE_SOURCES:
            self._live |= {r.name: (r.value, now) for r in readings if r.device == STORAGE_CONTROL}

    def readings(self, facts: Facts, now: float) -> Iterator[Reading]:
        """Whether the settings are obeyed; nothing where none are stored."""
        if not self._stored:
            return
        pairs = [
            (stored, live)
            for name in COMPARED
            if (stored := self._stored.get(name)) is not None and (live := self._in_force(name, now)) is not None
        ]
        is_different = any(_differ(stored, live) for stored, live in pairs)
        self.different_since = min(self.different_since or now, now) if is_different else None
        verdict = self._verdict(facts, now, can_compare=bool(pairs))
        yield Reading(STORAGE_SETTINGS, None, OBEYED, verdict)

    def _in_force(self, name: str, now: float) -> Value:
        value, told_at = self._live.get(name, (None, 0.0))
        return value if now - told_at < COMPARED_FOR_S else None

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


class Limits:
    """The limits on solar power, as several answers tell of them."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Value] = {}
        """The newest values by device and name."""

    def update(self, source: str, readings: Sequence[Reading]) -> bool:
        """Take note of an answer. Returns whether it shows a limit that the controller should explain."""
        set_before, was_limited = self._settings, self.is_active
        self._values |= {(r.device, r.name): r.value for r in readings if r.device.startswith(f"{LIMIT_KIND}/")}
        if source not in LIMIT_SOURCES or self._settings == set_before:
            return False
        self._values.pop((LIMIT_PRODUCTION, "controller_cause"), None)  # it was told about the limits before
        return bool(self.is_active) and not was_limited

    @property
    def _settings(self) -> Sequence[Value]:
        """The values of all limits, which tell whether one has changed."""
        devices, names = (LIMIT_PRODUCTION, LIMIT_EXPORT, LIMIT_INSTALLER), ("percent", "power")
        return [self._values.get((device, name)) for device in devices for name in names]

    def _number(self, device: str, name: str) -> float | None:
        value = self._values.get((device, name))
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def _percent(self) -> float | None:
        """The limit in percent of the rated power; `None` if there is none."""
        percent = self._number(LIMIT_PRODUCTION, "percent")
        return percent if percent is not None and percent < FREE_PERCENT else None

    @property
    def _told_cause(self) -> str | None:
        """Why the controller limits solar power now; `None` if it does not, or does not tell."""
        told = self._values.get((LIMIT_PRODUCTION, "controller_cause"))
        return told if isinstance(told, str) and told != NO_CAUSE else None

    @property
    def is_active(self) -> bool | None:
        """Whether solar power is limited; `None` while nothing is known of limits."""
        if not any(device == LIMIT_PRODUCTION for device, _ in self._values):
            return None
        limits = self._percent, self._number(LIMIT_PRODUCTION, "power"), self._told_cause
        return any(limit is not None for limit in limits)

    def readings(self) -> Iterator[Reading]:
        """Whether solar power is limited, and why; nothing while that is not known."""
        is_active = self.is_active
        if is_active is not None:
            yield Reading(LIMIT_PRODUCTION, None, LIMITED, is_active)
            yield Reading(LIMIT_PRODUCTION, None, CAUSE, self._cause() if is_active else NO_CAUSE)

    def _cause(self) -> str:
        """Why solar power is limited, in plain words: as the controller says, else which limits are set."""
        exports = self._texts(
            (EXPORT_CAUSE, LIMIT_EXPORT, "power"),
            (f"installer's {EXPORT_CAUSE}", LIMIT_INSTALLER, "power"),
            (f"installer's {EXPORT_CAUSE}", LIMIT_INSTALLER, "percent"),
        )
        told = self._told_cause
        if told is None:
            words = [*self._texts(("production limit", LIMIT_PRODUCTION, "power")), *exports] or [UNTOLD_CAUSE]
        else:
            words = told.split(", ")
            words = [text for part in words for text in (exports or [part] if part == EXPORT_CAUSE else [part])]
        text = ", ".join(words)
        return text if self._percent is None else f"{text} ({self._percent:g} % of the rated power)"

    def _texts(self, *limits: tuple[str, str, str]) -> list[str]:
        """The limits that are set, in words, each with its value."""
        values = ((words, self._number(device, name), name) for words, device, name in limits)
        return [
            f"{words} of {value:g} {'W' if name == 'power' else '%'}"
            for words, value, name in values
            if value is not None
        ]


class InForce:
    """What is in force at one gateway. `state` is what an earlier run has kept."""

    def __init__(self, state: InForceState) -> None:
        self._settings, self._limits = StoredSettings(state.different_since), Limits()
        self.asks_why = False
        """Whether the last answer has shown a limit that the controller should explain."""

    @property
    def state(self) -> InForceState:
        """What the next run must know."""
        return InForceState(different_since=self._settings.different_since)

    def update(self, source: str, readings: Sequence[Reading], facts: Facts, now: float) -> Sequence[Reading]:
        """Take note of an answer that came at `now` (unix time). Returns all that is in force after it."""
        self._settings.update(source, readings, now)
        self.asks_why = self._limits.update(source, readings)
        return [*self._settings.readings(facts, now), *self._limits.readings()]
