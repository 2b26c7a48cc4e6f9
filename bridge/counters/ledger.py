"""All lifetime counters of one gateway, and the clock that judges them."""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bridge.counters.account import CONFIRM, MOST, Account, Kind, Limits, Verdict
from bridge.counters.judge import DAY, advance
from bridge.model import Phase, Reading

UNITS = {"Wh": "power", "VAh": "apparent_power", "varh": "reactive_power"}
"""Units of lifetime counters, and the power that each of them counts."""
POWERS = frozenset(UNITS.values())
QUARTER, QUARTERS = 900.0, frozenset({"production", "energy", "device_data"})
"""Sources that may stand still for a quarter of an hour, and the seconds of one."""
CONFIRM_QUARTERS = 3_600.0
WRAPPING = frozenset({"energy/production", "energy/production-pcu"})
"""Devices whose counter is a sum over the inverters'."""
INVERTER = "inverter/"
SOLAR = ("meter/production", "energy/production", "site/solar", INVERTER)
PHASES = frozenset(phase.value for phase in Phase)
SOLAR_HEADROOM, HEADROOM = 1.25, 2.0
WATTS_PER_PHASE, WATTS_PER_INVERTER = 25_000.0, 1_000.0
MOST_WATTS = 1_000_000.0
"""No gateway measures more: a power above is a fault."""
JUMP = 60.0
"""Seconds by which the wall clock may leave the steady one before we say that it was set."""
QUIET = 3_600.0
"""Seconds for which nothing more is said of a counter that is held and comes back again and again."""

Cap = Callable[[Reading], float]
_ACCOUNTS = TypeAdapter(Account)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to counters: what a log should say once."""

    text: str
    warning: bool


@dataclass(frozen=True, slots=True)
class Guarded:
    """Readings as they may be published. `held` is how many counters of the gateway are held."""

    readings: Sequence[Reading]
    events: Sequence[Event]
    held: int


def is_counter(reading: Reading) -> bool:
    """Whether it counts for ever: a count of today begins again each night."""
    quantity = reading.measurement.quantity
    rises = quantity.state_class == "total_increasing" and quantity.unit in UNITS
    return rises and not reading.name.endswith("_today")


def usual_cap(reading: Reading, *, phases: int, solar: float = 0.0) -> float:
    """W that a counter can count. `solar` is the highest power of the inverter, or the sum of all, where known."""
    if solar > 0 and reading.device.startswith(SOLAR):
        return SOLAR_HEADROOM * solar
    if reading.device.startswith(INVERTER):
        return WATTS_PER_INVERTER
    return WATTS_PER_PHASE * (1 if reading.phase else max(1, phases))


@dataclass(slots=True)
class _Clock:
    """Unix time that never goes back while we run, and moves on with the wall clock when that is set forward.

    What was last seen up to `doubted`, was seen nobody knows how long ago.
    """

    time: float = 0.0
    steady: float | None = None
    doubted: float = -math.inf

    def read(self, wall: float, steady: float) -> bool:
        """Whether the clock was set meanwhile, so that no length of time can be told."""
        passed = 0.0 if self.steady is None else max(0.0, steady - self.steady)
        is_first, self.steady = self.steady is None, steady
        before, expected = self.time, self.time + passed
        is_back = is_first and wall < before
        is_set = is_back or (not is_first and wall > expected + JUMP)
        self.time = wall if is_first else max(wall, expected)
        if is_back or (is_set and wall > expected + DAY):
            self.doubted = min(wall - 1, before)
        return is_set


@dataclass(slots=True)
class _News:
    """What is worth telling: changes of state, not polls, and not each of a fault that comes and goes.

    `told` is when a counter was last said to be held, `open` those for which nobody has said yet that it is over.
    """

    told: dict[str, float] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)

    def of(self, verdicts: Mapping[str, Verdict], now: float) -> Sequence[Event]:
        """One line for all counters that are held from now on, one for all that are back: a reboot takes all."""
        told = [(key, item) for key, item in verdicts.items() if item.text and self._is_news(key, item, now)]
        events: list[Event] = []
        for kind in Kind:
            texts = [f"{key} {item.text}" for key, item in told if item.kind is kind]
            if kind in (Kind.HELD, Kind.BACK) and len(texts) > 1:
                texts = [f"{texts[0]} (and {len(texts) - 1} more counters)"]
            events.extend(Event(text, warning=kind not in (Kind.BACK, Kind.TAKEN)) for text in texts)
        return events

    def _is_news(self, key: str, verdict: Verdict, now: float) -> bool:
        if verdict.kind is not Kind.HELD:
            is_open = key in self.open
            self.open.discard(key)
            return is_open or verdict.kind is not Kind.BACK
        if now - self.told.get(key, -math.inf) < QUIET:
            return False
        self.told[key] = now
        self.open.add(key)
        return True


@dataclass(slots=True)
class Ledger:
    """Accounts by "device[/phase]/name". Bounded by the number of counters."""

    _accounts: dict[str, Account] = field(default_factory=dict)
    _seeds: dict[str, tuple[float, float]] = field(default_factory=dict)
    _clock: _Clock = field(default_factory=_Clock)
    _news: _News = field(default_factory=_News)

    @classmethod
    def load(cls, data: object) -> "Ledger":
        """What `dump` gave, as far as it can still be understood: a damaged account costs itself."""
        given = data if isinstance(data, Mapping) else {}
        accounts = {str(key): account for key, item in given.items() if (account := _account(item))}
        newest = max((account.newest for account in accounts.values()), default=0.0)
        is_open = {key for key, account in accounts.items() if account.is_held}
        return cls(accounts, _clock=_Clock(newest), _news=_News(open=is_open))

    def dump(self) -> dict[str, Any]:
        """For a JSON file."""
        items = self._accounts.items()
        return {key: _ACCOUNTS.dump_python(account, mode="json", exclude_defaults=True) for key, account in items}

    @property
    def devices(self) -> set[str]:
        """Whose counters there are."""
        return {_device(key) for key in self._accounts}

    def forget(self, there: Container[str], most: int) -> None:
        """Of the devices that are not `there`, only the `most` that were seen last stay."""
        seen: dict[str, float] = {}
        for key, account in self._accounts.items():
            if (device := _device(key)) not in there:
                seen[device] = max(account.newest, seen.get(device, 0.0))
        gone = set(sorted(seen, key=seen.__getitem__, reverse=True)[most:])
        self._accounts = {key: account for key, account in self._accounts.items() if _device(key) not in gone}

    @property
    def held(self) -> int:
        return sum(account.is_held for account in self._accounts.values())

    def seed(self, key: str, value: float, when: float = 0.0) -> None:
        """A value that subscribers have from an earlier run, from our own retained topic; `when` it was published.

        To be called before the first `guard`. Without state it is all that is known of a counter; with a state
        that is older, nothing below it will be published. 0 means that nobody knows when.
        """
        if 0 <= value <= MOST:
            self._seeds[key] = (value, when)

    def guard(self, source: str, readings: Sequence[Reading], cap: Cap, *, now: float, steady: float) -> Guarded:
        """An answer's readings with counters as they may be published; those without a value are left out.

        `now` is the wall clock, `steady` one that nobody sets; both in seconds.
        """
        if self._clock.read(now, steady):
            self._accounts = {key: account.untimed(now) for key, account in self._accounts.items()}
        powers = {(r.device, r.phase, r.name): _number(r) for r in readings if r.name in POWERS}
        passed: list[Reading] = []
        verdicts: dict[str, Verdict] = {}
        for reading in readings:
            raw = _number(reading) if is_counter(reading) else None
            if raw is None:
                passed.append(reading)
                continue
            power = powers.get((reading.device, reading.phase, UNITS[reading.quantity.unit or ""]))
            verdict = self._judge(source, reading, raw, power or 0.0, cap)
            verdicts[_key(reading)] = verdict
            if verdict.value is not None:
                passed.append(reading if verdict.value == raw else replace(reading, value=verdict.value))
        return Guarded(passed, self._news.of(verdicts, self._clock.time), self.held)

    def _judge(self, source: str, reading: Reading, raw: float, power: float, cap: Cap) -> Verdict:
        key = _key(reading)
        account = (self._accounts.get(key) or Account()).with_power(min(abs(power), MOST_WATTS))
        if seed := self._seeds.pop(key, None):
            account = account.at_least(*seed)
        if account.signed or (reading.quantity.unit == "varh" and raw < 0):
            self._accounts[key] = replace(account, signed=True, held=None)
            return Verdict(Kind.PUBLISHED, raw)
        is_doubtful = account.seen_at <= self._clock.doubted
        limits = _limits(source, reading, max(cap(reading), _headroom(reading) * account.peak), is_doubtful)
        self._accounts[key], verdict = advance(account, raw, self._clock.time, limits)
        return verdict


def _account(item: object) -> Account | None:
    try:
        return _ACCOUNTS.validate_python(item)
    except ValidationError:
        return None


def _key(reading: Reading) -> str:
    return "/".join((reading.device, *((reading.phase.value,) if reading.phase else ()), reading.name))


def _device(key: str) -> str:
    """The other way round."""
    device, _, _ = key.rpartition("/")
    above, _, last = device.rpartition("/")
    return above if above and last in PHASES else device


def _number(reading: Reading) -> float | None:
    value = reading.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _headroom(reading: Reading) -> float:
    return SOLAR_HEADROOM if reading.device.startswith(SOLAR) else HEADROOM


def _limits(source: str, reading: Reading, cap: float, is_doubtful: bool) -> Limits:
    quarters = source in QUARTERS
    return Limits(
        cap,
        confirm=CONFIRM_QUARTERS if quarters else CONFIRM,
        stall=QUARTER if quarters else 0.0,
        wrap=reading.device in WRAPPING or reading.device.startswith(INVERTER),
        doubtful=is_doubtful,
    )
