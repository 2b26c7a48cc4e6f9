"""The flows of a home of several gateways, from the flows that each gateway has published of its own site.

Solar, battery and generator are sums, the grid is that of the gateway whose meter is at the grid connection, and
home is the balance of these (docs/topics.md, Homes). Pure: the caller passes all times.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Annotated

from pydantic import Field

from bridge.model import DAY_S, MINUTE_S, Reading, Scalar
from bridge.site.days import DayClock
from bridge.site.flows import (
    ANOTHER_PRODUCER_S,
    BATTERY,
    FLOWS,
    GENERATOR,
    GRID,
    HOME,
    ROWS,
    SOLAR,
    can_be_home,
)
from bridge.site.home_energies import HOME_COUNTER, SIGN_OF_COUNTER, HomeEnergies, HomeEnergiesState
from bridge.site.selection import BALANCE
from bridge.site.totals import NegativeBalance
from bridge.state import SOUND_ENTRIES, State, UnixTime

APART_S, APART_PERIODS = 10.0, 2.0
"""Seconds, or periods of the slowest gateway if these are longer, within which the powers of all gateways must have
been read. Only then do they add up to the power of the home."""
FORGET_S = 7 * DAY_S
"""An online gateway that has not given a value for so many seconds no longer has it."""
FIRST_SUM_S = 20 * MINUTE_S
"""Seconds for which the first sum of a counter waits for a gateway that has the flow, but not yet its counter. A
new counter is confirmed within the first minutes, one that stands at 0 after a quarter of an hour."""
LIVE = "live/"
QUICK = ("meter/", LIVE)
"""Sources of solar power that are measured now; all others are sums of up to 15 minutes ago."""


@dataclass(frozen=True, slots=True)
class MemberFlows:
    """What a gateway of a home has published of its site last.

    `values` has them by `<flow>/<name>`. The answer with the powers came at the monotonic time `read_at`; `period`
    are the seconds between two of these. `is_online`: the powers are up to date. `is_settled`: all sources were
    asked once, and it is known if there is a battery, and so which flows the gateway has. `has_grid_meter`: it has
    a net consumption meter. `has_solar_meter`: it has a production meter. `is_chosen`: the settings say that its
    grid meter is the one of the home. `told` are the values of the newest answer that are published even if they
    have not changed.
    """

    serial: str
    values: Mapping[str, Scalar] = field(default_factory=dict)
    read_at: float = float("-inf")
    period: float = 0.0
    is_online: bool = False
    is_settled: bool = False
    has_grid_meter: bool = False
    has_solar_meter: bool = False
    is_chosen: bool = False
    told: frozenset[str] = frozenset()

    @property
    def has_slow_solar(self) -> bool:
        """Whether its solar power is a sum that the gateway makes only every quarter of an hour."""
        source = self.values.get("solar/source")
        return isinstance(source, str) and not source.startswith(QUICK)

    @property
    def has_slow_counter(self) -> bool:
        """The same of its solar energy. Live data have no energies, so their solar energy is such a sum, too."""
        return self.has_slow_solar or not self.has_solar_meter

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class HomeState(State):
    """What is kept of a home. `given` has, for each gateway, when it last gave each value (unix time).

    `day_time` is the unix time of the last news, by which days begin.
    """

    given: Annotated[dict[str, Annotated[dict[str, UnixTime], SOUND_ENTRIES]], SOUND_ENTRIES] = Field(
        default_factory=dict
    )
    energies: HomeEnergiesState = HomeEnergiesState()
    day_time: UnixTime = 0.0


@dataclass(frozen=True, slots=True)
class HomeUpdate:
    """The readings of a home, whose devices are its flows, and what a person should know.

    `problem` lasts as long as it is given; `warning` is for the log, and is given once.
    """

    readings: Sequence[Reading] = ()
    problem: str | None = None
    warning: str | None = None


class GivenValues:
    """Which values each gateway gives, also while it is silent: when it last gave each (unix time)."""

    def __init__(self, state: Mapping[str, Mapping[str, float]]) -> None:
        self._given = {serial: dict(names) for serial, names in state.items()}

    @property
    def state(self) -> dict[str, dict[str, float]]:
        """What must outlive the process."""
        return {serial: dict(names) for serial, names in self._given.items()}

    def learn(self, members: Sequence[MemberFlows], now: float) -> None:
        """Note what each gateway gives. What an online gateway has not given for a week is forgotten."""
        serials = {member.serial for member in members}
        self._given = {serial: names for serial, names in self._given.items() if serial in serials}
        for member in members:
            if member.is_settled or member.serial in self._given:
                known = self._given.setdefault(member.serial, {})
                known |= dict.fromkeys(member.values, now)
                if member.is_online:
                    self._given[member.serial] = {name: at for name, at in known.items() if now - at <= FORGET_S}

    def knows(self, members: Iterable[MemberFlows]) -> bool:
        """Whether it is known of each of these gateways what it gives."""
        return all(member.serial in self._given for member in members)

    def of(self, member: MemberFlows) -> Collection[str]:
        return self._given[member.serial].keys()

    @property
    def names(self) -> Collection[str]:
        """The values that at least one gateway gives."""
        return dict.fromkeys(name for names in self._given.values() for name in names)

    def having(self, name: str, members: Iterable[MemberFlows], grid: MemberFlows | None) -> list[MemberFlows]:
        """The gateways that a value of the home comes from. `grid` has the meter at its grid connection."""
        if name.startswith(f"{GRID}/"):
            members = [] if grid is None else [grid]
        return [member for member in members if name in self.of(member)]

    def told(self, members: Sequence[MemberFlows], grid: MemberFlows | None) -> Collection[str]:
        """The values that are published even if they have not changed, since a gateway has just told its part."""
        names = {name for member in members for name in member.told}
        told = {name for name in names if any(name in m.told for m in self.having(name, members, grid))}
        return told | ({f"{HOME}/power"} if any(name.endswith("/power") for name in told) else set())

    def counters(
        self, members: Sequence[MemberFlows], grid: MemberFlows | None, begun: Collection[str]
    ) -> Mapping[str, Mapping[str, float]]:
        """The counters that all their gateways give now, by name and serial number.

        A counter that is not in `begun` also needs each gateway that has the flow: what a gateway has counted
        before it is a part of the sum is not added later.
        """
        found = {}
        for name in SIGN_OF_COUNTER:
            flow = name.partition("/")[0]
            having = self.having(name, members, grid)
            needed = having if not having or name in begun else self.having(f"{flow}/power", members, grid)
            numbers = {member.serial: member.number(name) for member in needed if member.is_online}
            known = {serial: value for serial, value in numbers.items() if value is not None}
            if needed and len(known) == len(needed):
                found[name] = known
        return found


class SharedHome:
    """The flows of one home. `name` is what messages call it, `state` is what an earlier run has kept."""

    def __init__(self, name: str, state: HomeState | None = None, zone: tzinfo | None = None) -> None:
        """`zone` is where days begin; `None` is the time zone of this machine."""
        state = state or HomeState()
        self._name = name
        self._given = GivenValues(state.given)
        self._energies = HomeEnergies(state.energies, zone)
        self._day_clock = DayClock(state.day_time)
        self._negative = NegativeBalance()
        self._negative_since: float | None = None
        self._known_since: float | None = None

    @property
    def state(self) -> HomeState:
        """What must outlive the process."""
        return HomeState(given=self._given.state, energies=self._energies.state, day_time=self._day_clock.at)

    def seed(self, retained: Mapping[str, float]) -> None:
        """Take note of what subscribers have of an earlier run, by `<flow>/<name>`: no counter falls below it."""
        self._energies.seed(retained)

    def update(self, members: Sequence[MemberFlows], now: float, steady: float) -> HomeUpdate:
        """Compute the flows from what the gateways have published last.

        `members` are all gateways of the home, `now` is the unix time and `steady` that of a clock that nobody
        sets. There are no readings until it is known of each gateway which flows it has.
        """
        serials, day_time = [member.serial for member in members], self._day_clock.read(now, steady)
        self._given.learn(members, now)
        if not self._given.knows(members):
            return HomeUpdate()
        self._known_since = steady if self._known_since is None else self._known_since
        grid, problem = choose_grid(self._name, members)
        has_home = grid is not None or problem is not None or self._energies.is_of(serials)
        values = dict(self._instant_values(members, grid, is_shown=has_home))
        may_begin = steady - self._known_since >= FIRST_SUM_S
        begun = SIGN_OF_COUNTER.keys() if may_begin else self._energies.totals.keys()
        parts = self._given.counters(members, grid, begun)
        warning = self._count(members, parts, now, day_time, has_grid=grid is not None)
        values |= {name: total for name, total in self._energies.totals.items() if name in self._given.names}
        if has_home:
            power = None if grid is None else self._power(members, values, now)
            values |= dict(
                _home(power, self._energies, day_time, is_estimated=values.get("battery/estimated") is True)
            )
        told = self._given.told(members, grid)
        return HomeUpdate(list(_readings(values, told)), problem or self._negative_problem(now), warning)

    # Values of this instant

    def _instant_values(
        self, members: Sequence[MemberFlows], grid: MemberFlows | None, *, is_shown: bool
    ) -> Iterator[tuple[str, Scalar]]:
        """All values but the counters and those of the flow home. They are unknown while one of their parts is.

        `is_shown` tells whether the home has a grid although it is not known which gateway measures it now.
        """
        for name in self._given.names:
            having = self._given.having(name, members, grid)
            if name in SIGN_OF_COUNTER or name.startswith(f"{HOME}/"):
                continue
            if having and all(member.is_online for member in having):
                yield name, _combined(name, having)
            elif having or is_shown:
                yield name, None

    def _power(self, members: Sequence[MemberFlows], values: Mapping[str, Scalar], now: float) -> float | None:
        """The power of the home (W) by balance; `None` if the parts do not belong together or can't be right."""
        flows = [values[f"{flow}/power"] for flow in (SOLAR, GRID, BATTERY, GENERATOR) if f"{flow}/power" in values]
        known = [flow for flow in flows if isinstance(flow, int | float)]
        is_whole = len(known) == len(flows) and all(map(self._given.of, members))
        if not is_whole or not _are_together(members) or any(member.has_slow_solar for member in members):
            return None
        power = round(sum(known), 3)
        if can_be_home(power, known):
            self._negative_since = None
            return power
        self._negative_since = self._negative_since or now
        return None

    def _negative_problem(self, now: float) -> str | None:
        if self._negative_since is None or now - self._negative_since < ANOTHER_PRODUCER_S:
            return None
        return (
            f"home {self._name}: more flows into the grid than its gateways give: another producer stands behind "
            "the grid meter (if that has a gateway, set home for it, too), or the clamp of a meter is reversed"
        )

    # Energies

    def _count(
        self,
        members: Sequence[MemberFlows],
        parts: Mapping[str, Mapping[str, float]],
        now: float,
        day_time: float,
        *,
        has_grid: bool,
    ) -> str | None:
        """Count what the gateways have counted. Returns a warning."""
        whole = self._energies.sum_up(parts)
        slow = {
            member.serial: member.number("solar/energy_lifetime") for member in members if member.has_slow_counter
        }
        self._energies.note_slow_sums({serial: value for serial, value in slow.items() if value is not None}, now)
        needed = {name for name in SIGN_OF_COUNTER if f"{name.partition('/')[0]}/power" in self._given.names}
        if not has_grid or needed != whole.keys() or not _are_together(members):
            self._energies.lack(now)
            return None
        dropped = self._energies.count_home([member.serial for member in members], whole, now, day_time)
        return self._negative.warning(f"home {self._name}: its", dropped, now)


def choose_grid(home: str, members: Sequence[MemberFlows]) -> tuple[MemberFlows | None, str | None]:
    """The gateway whose meter is at the grid connection of the home, and what is wrong if that can't be told."""
    for candidates in (
        [member for member in members if member.is_chosen],
        [member for member in members if member.has_grid_meter],
        [member for member in members if str(member.values.get("grid/source")).startswith(LIVE)],
    ):
        if len(candidates) == 1:
            return candidates[0], None
        if candidates:
            serials = " and ".join(sorted(member.serial for member in candidates))
            return None, (
                f"home {home}: the gateways {serials} each have a grid meter: set grid_meter = true for the one "
                "whose meter measures the whole home (BRIDGE_GATEWAYS)"
            )
    return None, None


def _home(
    power: float | None, energies: HomeEnergies, day_time: float, *, is_estimated: bool
) -> Iterator[tuple[str, Scalar]]:
    yield "home/power", power
    yield "home/source", BALANCE
    yield "home/estimated", is_estimated
    if (energy := energies.home) is not None:
        yield HOME_COUNTER, energy.total
        yield "home/energy_today", energies.home_today(day_time)
        yield "home/energy_since", datetime.fromtimestamp(energy.since, UTC)


def _are_together(members: Sequence[MemberFlows]) -> bool:
    """Whether the powers of all gateways are of about the same time."""
    times = [member.read_at for member in members]
    longest = max(APART_S, APART_PERIODS * max(member.period for member in members))
    return all(member.is_online and member.is_settled for member in members) and max(times) - min(times) <= longest


def _combined(name: str, having: Sequence[MemberFlows]) -> Scalar:
    """A value of the home from those of its gateways."""
    given = [member.values.get(name) for member in having]
    match name.partition("/")[2]:
        case "source":
            return ", ".join(sorted({str(value) for value in given if value is not None})) or None
        case "estimated":
            return any(value is True for value in given)
        case "energy_since":
            return max((value for value in given if isinstance(value, datetime)), default=None)
        case "connected":
            return given[0]
        case "soc":
            return _charge(having)
    return _total(member.number(name) for member in having)


def _total(numbers: Iterable[float | None]) -> float | None:
    """The sum; `None` if a number is not known."""
    total = 0.0
    for number in numbers:
        if number is None:
            return None
        total += number
    return round(total, 3)


def _charge(having: Sequence[MemberFlows]) -> float | None:
    """The charge of all batteries in %. Each gateway's is weighted by the capacity of its batteries."""
    if len(having) == 1:
        return having[0].number("battery/soc")
    capacities = [member.number("battery/capacity") or 0.0 for member in having]
    charges = [member.number("battery/soc") for member in having]
    energy = _total(
        None if charge is None else charge * capacity for charge, capacity in zip(charges, capacities, strict=True)
    )
    return round(energy / sum(capacities), 1) if energy is not None and all(capacities) else None


def _readings(values: Mapping[str, Scalar], told: Collection[str]) -> Iterator[Reading]:
    for flow in FLOWS:
        for name, row in ROWS[flow].items():
            if (key := f"{flow}/{name}") in values:
                yield Reading(flow, None, row, values[key], repeat=key in told)
