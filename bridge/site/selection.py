"""What answers show of a site, and which source each of its flows comes from (docs/numbers.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from bridge.endpoints.livedata import LIVE_GENERATOR, LIVE_GRID, LIVE_PV, LIVE_STORAGE, LIVE_SYSTEM
from bridge.endpoints.production import AC_BATTERY_TYPE, ENERGY_PCU, ENERGY_PRODUCTION
from bridge.model import DAY_S, Facts, MeterFacts, Reading, SourceName

PRODUCTION, NET, TOTAL, STORAGE, THIRD_PARTY = METER_ROLES = (
    "production",
    "net-consumption",
    "total-consumption",
    "storage",
    "pv3p",
)
METERS = {role: f"meter/{role}" for role in METER_ROLES}
"""The meters that a site's flows can come from, by role."""
BALANCE = "balance"
"""Published as the source of a flow that is computed from the other flows."""
MAIN_RELAY_CLOSED = {1: True, 2: False}
"""`main_relay_state` of live data: 1 is on grid, 2 is off grid. The meaning of other codes is uncertain."""
GENERATOR_ON = frozenset({"close", "closed"})
"""States of the generator's relay in which the generator gives power."""
RELAY_SOURCES: Mapping[str, float] = {
    SourceName.RELAY: 180.0,
    SourceName.LIVEDATA: 180.0,
    SourceName.INVENTORY: 3_600.0,
    SourceName.STATUS: 14_400.0,
}
"""Sources that tell whether the grid is connected, best first, and for how many seconds their answer counts."""
GENERATOR_ANSWER_S = 180.0
"""Seconds for which an answer about the generator counts."""

Values = Mapping[tuple[str, str], float]
"""The numbers of one answer by device and name, without those of single phases."""


@dataclass(frozen=True)
class GuardedAnswer:
    """One good answer of a gateway: its readings with guarded counters, and its unix time.

    `fresh` is False if the gateway itself says that its values are not being updated. `held` has the counters whose
    reading is not believed at present, with the gateway's values; the readings have the last good ones.
    `period` is the usual time between two such answers, in seconds. `day_time` is the unix time by which days
    begin; `None` stands for `now`. `storage_pending` is whether the gateway may still say that it has batteries.
    """

    source: str
    readings: Sequence[Reading]
    facts: Facts
    now: float
    fresh: bool = True
    held: Mapping[tuple[str, str], float] = field(default_factory=dict)
    period: float = 0.0
    day_time: float | None = None
    storage_pending: bool = False

    @property
    def ac_batteries(self) -> int:
        """How many AC Batteries the answer lists. Older homes have them, and they report as inverters do."""
        if self.source != SourceName.INVERTERS:
            return 0
        return sum(reading.name == "type" and reading.value == AC_BATTERY_TYPE for reading in self.readings)

    def connected(self) -> bool | None:
        """Whether the grid is connected; `None` if the answer does not tell. All relays must be closed."""
        if self.source not in RELAY_SOURCES:
            return None
        states = [r.value for r in self.readings if r.name == "grid_connected" and isinstance(r.value, bool)]
        codes = [r.value for r in self.readings if (r.device, r.name) == (LIVE_SYSTEM, "main_relay")]
        states += [
            MAIN_RELAY_CLOSED[int(code)]
            for code in codes
            if isinstance(code, int | float) and int(code) in MAIN_RELAY_CLOSED
        ]
        return all(states) if states else None

    def generating(self) -> bool | None:
        """Whether a generator gives power, by live data or its relay; `None` if the answer does not tell."""
        of_generators = [r for r in self.readings if r.device.startswith((LIVE_GENERATOR, "generator/"))]
        told = [
            reading.value != 0
            for reading in of_generators
            if (reading.device, reading.phase, reading.name) == (LIVE_GENERATOR, None, "power")
            and reading.value is not None
        ]
        told += [
            reading.value in GENERATOR_ON
            for reading in of_generators
            if reading.device.startswith("generator/") and reading.name == "state" and reading.value
        ]
        return any(told) if told else None

    @cached_property
    def values(self) -> Values:
        """The answer's numbers."""
        return {
            (reading.device, reading.name): float(reading.value)
            for reading in self.readings
            if reading.phase is None
            and isinstance(reading.value, int | float)
            and not isinstance(reading.value, bool)
        }


class GridSwitch:
    """Whether the site is connected to the grid, and whether a generator supplies it instead."""

    def __init__(self) -> None:
        self._connected: dict[str, tuple[bool, float]] = {}
        self._generating: dict[str, tuple[bool, float]] = {}

    def observe(self, answer: GuardedAnswer) -> None:
        generating, connected = answer.generating(), answer.connected()
        if generating is not None:
            self._generating[answer.source] = generating, answer.now
        if connected is not None:
            self._connected[answer.source] = connected, answer.now

    def connected(self, now: float) -> bool | None:
        """Whether the grid is connected, by the best source with a recent answer."""
        told = (
            (self._connected[source], longest)
            for source, longest in RELAY_SOURCES.items()
            if source in self._connected
        )
        return next((state for (state, at), longest in told if 0 <= now - at <= longest), None)

    def on_generator(self, now: float) -> bool:
        """Whether a generator supplies the site: the net meter then reads the generator (seen on 8.2.127)."""
        running = any(state and now - at <= GENERATOR_ANSWER_S for state, at in self._generating.values())
        return running and self.connected(now) is False

    @property
    def has_relay(self) -> bool:
        """Whether a source beside live data has told the state of a relay."""
        return bool(self._connected.keys() - {SourceName.LIVEDATA})


# Which source each flow comes from

DELIVERED, RECEIVED = "energy_delivered", "energy_received"
GIVEN = "battery/given"
"""The part of an energy that the battery gives, where it is integrated from its power."""
STANDBY = f"+{METERS[PRODUCTION]}/{RECEIVED}"
"""The part of an energy that the inverters draw at night."""
STANDBY_MAX_W = 100.0
"""Inverters draw no more than this at night. A clamp that shows more is reversed, and shows what they produce."""


@dataclass(frozen=True, slots=True)
class SiteFeatures:
    """What decides on the sources, beside the meters.

    Args:
        battery: batteries were seen.
        livedata: the gateway has live data.
        stalled: `/api/v1/production` has stopped counting.
        storage_known: it is known whether there are batteries.
        meter_distrusted: the production meter, or `/api/v1/production`, gives no good values, but the sum of the
            microinverters does.
        battery_behind_clamp: the production meter measures a battery, too.
        third_party: another maker's panels count as solar if they have a meter.
    """

    battery: bool = False
    livedata: bool = False
    stalled: bool = False
    storage_known: bool = True
    meter_distrusted: bool = False
    battery_behind_clamp: bool = False
    third_party: bool = False


@dataclass(frozen=True, slots=True)
class SourceSelection:
    """The devices that each flow's power and energies are taken from; `None` for a flow that nothing measures.

    All powers come from answers of one source, `answer`, so that they belong to the same instant.
    `meters` are the roles of the enabled meters.
    `third_party` is the meter of another maker's panels, if they are added to solar.
    `home_parts` and `grid_parts` are the counters that the energies of the home and of the grid are made of, by
    `+device/name` or `-device/name`; they are empty where these can't be made.
    `integrates` is whether there is a battery whose energy no meter counts.
    `battery_behind_clamp` is whether the battery's power has to be subtracted from the production meter's.
    """

    answer: str
    solar: str | None = None
    grid: str | None = None
    battery: str | None = None
    home: str | None = None
    meters: frozenset[str] = frozenset()
    third_party: str | None = None
    home_parts: tuple[str, ...] = ()
    grid_parts: tuple[str, ...] = ()
    integrates: bool = False
    battery_behind_clamp: bool = False

    @property
    def solar_source(self) -> str | None:
        """All devices that solar power comes from, as published."""
        return ", ".join(filter(None, (self.solar, self.third_party))) or None

    @property
    def counts_with_sums(self) -> bool:
        """Whether a part of these energies is a sum of the gateway, which changes a few times an hour."""
        return any(key[1:].startswith("energy/") for key in (*self.home_parts, *self.grid_parts))

    @property
    def live(self) -> bool:
        return self.answer == SourceName.LIVEDATA

    @property
    def solar_counters(self) -> tuple[tuple[str, str], ...]:
        """Device and name of the counters of solar energy: the meters', else the gateway's own sum."""
        if self.solar not in SOLAR_SUMS and PRODUCTION in self.meters and not self.battery_behind_clamp:
            own = METERS[PRODUCTION], DELIVERED
        else:
            own = (self.solar if self.solar in SOLAR_SUMS else ENERGY_PCU), "energy_lifetime"
        return (own, (self.third_party, DELIVERED)) if self.third_party else (own,)


SOLAR_SUMS = (ENERGY_PCU, ENERGY_PRODUCTION)
"""Devices that count solar energy if no meter does."""


def select_sources(facts: Facts, has: SiteFeatures) -> SourceSelection:
    """Choose the source of each flow. `facts` tells which meters there are."""
    return _select(facts.meters, has)


@lru_cache(maxsize=1024)
def _select(listed: tuple[MeterFacts, ...] | None, has: SiteFeatures) -> SourceSelection:
    """The selection, which stays the same until something is learnt. Each gateway of a fleet has one of its own."""
    meters = frozenset(meter.role for meter in listed or () if meter.enabled)
    if meters & {PRODUCTION, NET, TOTAL}:
        return _metered(meters, has)
    if listed or has.stalled or has.meter_distrusted:
        return SourceSelection(SourceName.ENERGY, ENERGY_PCU, meters=meters, integrates=has.battery)
    return SourceSelection(SourceName.PRODUCTION, ENERGY_PRODUCTION, meters=meters, integrates=has.battery)


def _metered(meters: frozenset[str], has: SiteFeatures) -> SourceSelection:
    """The selection for a site with meters.

    Live data come from the same meters, so they are of no use where the production meter is not trusted. It is
    unknown whether they include other makers' panels, so these are not added to live data.
    """
    solar = ENERGY_PCU if has.meter_distrusted or PRODUCTION not in meters else METERS[PRODUCTION]
    others = METERS[THIRD_PARTY] if has.third_party and THIRD_PARTY in meters else None
    storage = METERS[STORAGE] if STORAGE in meters else None
    found = SourceSelection(
        SourceName.READINGS,
        solar,
        battery=storage,
        meters=meters,
        third_party=others,
        integrates=has.battery and storage is None,
        battery_behind_clamp=has.battery_behind_clamp,
    )
    if has.storage_known and PRODUCTION in meters:
        found = replace(found, home_parts=_home_parts(found), grid_parts=_grid_parts(found))
    elif TOTAL in meters and NET not in meters:
        found = replace(found, home_parts=_home_parts(found))
    is_blind = storage is not None and PRODUCTION in meters and not meters & {NET, TOTAL}
    if has.livedata and not has.meter_distrusted and (found.integrates or is_blind):
        flows = replace(found, answer=SourceName.LIVEDATA, solar=LIVE_PV, grid=LIVE_GRID, home=BALANCE)
        return replace(flows, battery=LIVE_STORAGE, third_party=None)
    if NET in meters:
        return replace(found, grid=METERS[NET], home=BALANCE if found.home_parts else None)
    if TOTAL in meters:
        return replace(found, grid=BALANCE if found.grid_parts else None, home=METERS[TOTAL])
    return found


def _home_parts(selected: SourceSelection) -> tuple[str, ...]:
    """The counters that the home's energy is made of. The meter of all consumption leaves out what the inverters
    draw at night, which the other meters contain.
    """
    if NET in selected.meters:
        solar = [f"+{device}/{name}" for device, name in selected.solar_counters]
        return (*solar, *_meter("+", NET), *_battery("+", selected))
    if TOTAL in selected.meters:
        standby = (STANDBY,) if selected.solar == METERS[PRODUCTION] else ()
        return (*_meter("+", TOTAL), *standby)
    return ()


def _grid_parts(selected: SourceSelection) -> tuple[str, ...]:
    """The counters that the grid's energy is made of, where its own meter is missing."""
    if NET in selected.meters or TOTAL not in selected.meters:
        return ()
    solar = [f"-{device}/{name}" for device, name in selected.solar_counters]
    standby = (STANDBY,) if selected.solar == METERS[PRODUCTION] else ()
    return (*_meter("+", TOTAL), *solar, *standby, *_battery("-", selected))


def _meter(sign: str, role: str) -> tuple[str, str]:
    """What a meter has delivered less what it has received, or the opposite."""
    other = "-" if sign == "+" else "+"
    return f"{sign}{METERS[role]}/{DELIVERED}", f"{other}{METERS[role]}/{RECEIVED}"


def _battery(sign: str, selected: SourceSelection) -> tuple[str, ...]:
    if STORAGE in selected.meters:
        return _meter(sign, STORAGE)
    return (f"{sign}{GIVEN}",) if selected.integrates else ()


def without_livedata(selected: SourceSelection) -> SourceSelection:
    """The selection while live data are stale: the meters alone, which do not know the battery."""
    behind = selected.battery_behind_clamp
    return _metered(selected.meters, SiteFeatures(battery=selected.integrates, battery_behind_clamp=behind))


# What a site has

FEATURE_GONE_AFTER_S = 7 * DAY_S
"""Seconds of answers without a sign of something after which the site no longer has it."""
MAX_ANSWER_STEP_S = 300.0
"""Most seconds between two answers that count as time with answers: more is an outage or a changed clock."""
HAS_BATTERY, HAS_LIVEDATA, PRODUCTION_STALLED, HAS_GENERATOR = EVIDENCE = (
    "battery",
    "livedata",
    "stalled",
    "generator",
)
"""What can be present: batteries, live data, an `/api/v1/production` that has stopped counting, a generator."""
NEVER_GONE = frozenset({HAS_GENERATOR})
"""A generator shows no sign of itself for months."""


@dataclass(slots=True)
class Presence:
    """Which things a site has. `lacking` has them, each with the seconds of answers since its last sign.

    It is stored, since the selection of the sources depends on it.
    """

    lacking: dict[str, float] = field(default_factory=dict)
    _answered_at: float | None = None

    def __contains__(self, thing: str) -> bool:
        return thing in self.lacking

    def observe(
        self,
        source: str,
        values: Values,
        latest: Values,
        now: float,
        *,
        battery: bool = False,
        generator: bool = False,
    ) -> None:
        """Take note of an answer's values, and of the latest values of all answers.

        `battery` and `generator` are set if something else in the answer shows one.
        """
        passed = 0.0 if self._answered_at is None else now - self._answered_at
        self._answered_at = now
        self.lacking = {
            thing: seconds + min(max(0.0, passed), MAX_ANSWER_STEP_S)
            for thing, seconds in self.lacking.items()
            if thing in NEVER_GONE or seconds < FEATURE_GONE_AFTER_S
        }
        self.lacking |= dict.fromkeys(_evidence(source, values, latest), 0.0)
        self.lacking |= {HAS_BATTERY: 0.0} if battery else {}
        self.lacking |= {HAS_GENERATOR: 0.0} if generator else {}


def _evidence(source: str, values: Values, latest: Values) -> set[str]:
    """What the values show.

    `/api/v1/production` is stalled if it has never counted anything while the inverters' sum has.
    """
    storage = ("encharge_energy", "acb_energy", "encharge_soc", "acb_soc")
    found = {
        HAS_LIVEDATA: source == SourceName.LIVEDATA and (LIVE_GRID, "power") in values,
        HAS_BATTERY: any(values.get((LIVE_STORAGE, name), 0) > 0 for name in storage)
        or any(device.startswith("battery/") for device, _ in values),
        PRODUCTION_STALLED: latest.get((ENERGY_PRODUCTION, "energy_lifetime")) == 0
        and latest.get((ENERGY_PCU, "energy_lifetime"), 0) > 0,
    }
    return {thing for thing, is_there in found.items() if is_there}
