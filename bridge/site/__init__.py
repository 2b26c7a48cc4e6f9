"""The flows of a site: solar, grid, battery, generator and home. Pure: time and local day come from the caller."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Annotated

from pydantic import Field

from bridge.endpoints.livedata import LIVE_GENERATOR, LIVE_STORAGE
from bridge.endpoints.production import ENERGY_PCU
from bridge.model import NEVER, Event, Facts, Reading, Scalar, SourceName
from bridge.site import selection
from bridge.site.battery import BATTERIES, BatteryState
from bridge.site.clamp import SolarTrust, TrustState
from bridge.site.counting import HOME_NEGATIVE, Moment, SiteEnergies
from bridge.site.days import DaysState
from bridge.site.energies import EnergiesState
from bridge.site.flows import (
    BATTERY,
    BATTERY_REPORTS_S,
    FLOWS,
    GENERATOR,
    GRID,
    HOME,
    ROWS,
    SOLAR,
    LiveStream,
    PowerContext,
    Powers,
    SitePowers,
    balance,
    fallback,
)
from bridge.site.selection import (
    SOLAR_SUMS,
    STORAGE,
    GridSwitch,
    GuardedAnswer,
    Presence,
    SiteFeatures,
    SourceSelection,
    Values,
    select_sources,
    without_livedata,
)
from bridge.site.totals import FrozenCounters
from bridge.state import SOUND_ENTRIES, State

__all__ = ["FLOWS", "ROWS", "GuardedAnswer", "Site", "SiteState"]

STORAGE_WAIT_S = 600.0
"""Seconds after which a home without any sign of batteries has none, though the inventory has not answered."""
SILENT = "the source of solar power gives no good values: the microinverters' sum takes its place"

TRUSTED = "the production meter measures what the microinverters report again"


class SiteState(State):
    """What is kept of a site.

    `seen` has what was seen there (`Presence`), each with the seconds of answers since its last sign.
    `storage_known` is whether it is known if there are batteries.
    """

    energies: EnergiesState = EnergiesState()
    days: DaysState = Field(default_factory=dict)
    seen: Annotated[dict[str, Annotated[float, Field(strict=True)]], SOUND_ENTRIES] = Field(default_factory=dict)
    storage_known: bool = False
    trust: TrustState = TrustState()


LATEST_MIN_S, LATEST_PERIODS = 60.0, 2.5
"""Time, in seconds and in periods of its source, for which a value counts as read just now."""


class LatestValues:
    """The newest values of all answers."""

    def __init__(self) -> None:
        self.all: dict[tuple[str, str], float] = {}
        self._good_until: dict[tuple[str, str], float] = {}

    def update(self, answer: GuardedAnswer, values: Values) -> None:
        self.all.update(values)
        until = answer.now + max(LATEST_MIN_S, LATEST_PERIODS * answer.period)
        self._good_until |= {pair: 0.0 if pair in answer.held else until for pair in values}

    def good(self, now: float) -> "RecentValues":
        """The values that were read lately, without counters that are held."""
        return RecentValues(self.all, self._good_until, now)


@dataclass(frozen=True, slots=True)
class RecentValues(Mapping[tuple[str, str], float]):
    """Those of all values that count at `now`: a view, since most answers need two or three of them."""

    _values: Values
    _good_until: Mapping[tuple[str, str], float]
    now: float

    def __getitem__(self, pair: tuple[str, str]) -> float:
        if self.now > self._good_until.get(pair, NEVER):
            raise KeyError(pair)
        return self._values[pair]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (pair for pair in self._values if pair in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Site:
    """The flows of one site.

    `netted` counts grid energy as the net of all phases, as most utilities do. `third_party` adds another maker's
    panels to solar if they have a meter. `zone` is where days begin. `state` is what an earlier run has kept.
    """

    def __init__(
        self,
        *,
        netted: bool = True,
        third_party: bool = False,
        in_home: bool = False,
        zone: tzinfo | None = None,
        state: SiteState | None = None,
    ) -> None:
        state = state or SiteState()
        self._third_party, self._in_home = third_party, in_home
        self.storage_known = state.storage_known
        """Whether it is known if there is a battery."""
        self._energies = SiteEnergies(state.energies, state.days, netted=netted, zone=zone)
        self._presence = Presence(dict(state.seen))
        self._trust = SolarTrust(state.trust)
        self._latest = LatestValues()
        self._powers = SitePowers(in_home=in_home)
        self._batteries = BatteryState()
        self._switch = GridSwitch()
        self._live = LiveStream()
        self._frozen = FrozenCounters()
        self._began_at: float | None = None
        self._asks_batteries = False
        self._shown: set[str] = set()
        """Flows that were published. One that nothing measures any more becomes unknown, and keeps no old value."""

    def update(self, answer: GuardedAnswer) -> list[Reading]:
        """Take note of an answer, and return the readings of all flows after it."""
        values = answer.values
        if answer.source == SourceName.READINGS and (still := self._frozen.observe(values, answer.now)):
            answer = replace(answer, held={**{pair: values[pair] for pair in still}, **answer.held})
        self._latest.update(answer, values)
        self._observe(answer, values)
        if answer.facts.meters is None:
            return []
        moment = self._judge_solar(self._moment(answer, values))
        self._asks_batteries = moment.selected.integrates and not moment.selected.live
        self._update_powers(moment)
        moment = replace(moment, battery=self._integrated_power(moment), stored=self._batteries.stored(answer.now))
        self._energies.count(moment)
        return list(self._readings(moment))

    def _moment(self, answer: GuardedAnswer, values: Values) -> Moment:
        return Moment(
            answer,
            self._select(answer.facts),
            values,
            self._latest.all,
            lately=self._latest.good(answer.now),
            on_generator=self._switch.on_generator(answer.now),
            has_generator=selection.HAS_GENERATOR in self._presence,
        )

    def take_events(self) -> list[Event]:
        """Return what has happened since the last call, for the log."""
        events, self._energies.events = self._energies.events, []
        return [event for event in events if not (self._in_home and event.name == HOME_NEGATIVE)]

    def _select(self, facts: Facts) -> SourceSelection:
        features = SiteFeatures(
            battery=selection.HAS_BATTERY in self._presence,
            livedata=selection.HAS_LIVEDATA in self._presence,
            stalled=selection.PRODUCTION_STALLED in self._presence,
            storage_known=self.storage_known,
            meter_distrusted=self._trust.state.is_distrusted,
            battery_behind_clamp=self._trust.state.battery,
            third_party=self._third_party,
        )
        return select_sources(facts, features)

    @property
    def solar(self) -> float | None:
        """Solar power in W."""
        return self._powers.now.solar

    @property
    def powered_by(self) -> str | None:
        """The source of the last published powers."""
        return self._powers.powered_by

    @property
    def asks_batteries(self) -> bool:
        """Whether only the batteries report their power, so that they have to be asked as often as the meters."""
        return self._asks_batteries

    def is_live(self, now: float) -> bool:
        """Whether the live data that came at this unix time are current; firmware repeats old ones for a while."""
        return self._live.was_live_at(now)

    def problem(self, now: float) -> str | None:
        """What the owner should know or do about the site; `None` where all is well."""
        if self._trust.problem or self._trust.state.is_doubtful:
            return self._trust.problem
        return self._powers.problem(now)

    def seed(self, values: Mapping[str, float]) -> None:
        """Adopt retained values of an earlier run, by topic, so that no counter falls if the state was lost."""
        self._energies.seed(values)

    @property
    def state(self) -> SiteState:
        """What must outlive the process: counters of our own go on after a restart."""
        return SiteState(
            energies=self._energies.energies_state,
            days=self._energies.days_state,
            seen=self._presence.lacking,
            storage_known=self.storage_known,
            trust=self._trust.state,
        )

    def _observe(self, answer: GuardedAnswer, values: Values) -> None:
        self._switch.observe(answer)
        self._batteries.observe(answer, values)
        battery, generator = self._batteries.are_listed, answer.generating() is True
        self._presence.observe(
            answer.source, values, self._latest.all, answer.now, battery=battery, generator=generator
        )
        if answer.source == SourceName.LIVEDATA:
            self._live.observe(values, answer.now, fresh=answer.fresh, period=answer.period)
        self._began_at = answer.now if self._began_at is None else self._began_at
        self.storage_known = (
            self.storage_known
            or not answer.storage_pending
            or answer.source == SourceName.INVENTORY
            or selection.HAS_BATTERY in self._presence
            or any(meter.enabled and meter.role == STORAGE for meter in answer.facts.meters or ())
            or answer.now - self._began_at >= STORAGE_WAIT_S
        )

    # Whether the production meter is trusted

    def _judge_solar(self, moment: Moment) -> Moment:
        """Compare the production meter with the microinverters, whose sum takes over where the meter is wrong.

        Returns the moment with the sources that are selected after that.
        """
        totals, before = self._energies.totals(moment), self._trust.state
        connected = self._switch.connected(moment.now)
        charged = self._energies.charged(moment)
        self._trust.observe(moment.answer, self._latest.all, totals, charged, is_closed=connected)
        now, began = self._trust.state, self._trust.began
        if (now.is_distrusted, now.battery) != (before.is_distrusted, before.battery):
            moment = self._moment(moment.answer, moment.values)
        if now.problem != before.problem:
            name, text = ("clamp_suspicious", now.problem) if now.problem else ("clamp_trusted", TRUSTED)
            self._energies.events.append(Event(name, text, warning=bool(now.problem)))
        elif now.silent and not before.silent:
            self._energies.events.append(Event("sun_silent", SILENT, warning=True))
        if began is not None and now.is_distrusted and not before.is_distrusted:
            self._energies.take_over(began, moment)
        return moment

    # Powers

    def _update_powers(self, moment: Moment) -> None:
        now = moment.now
        context = PowerContext(
            moment.on_generator, moment.has_generator, self._batteries.given(now, BATTERY_REPORTS_S)
        )
        self._powers.take(self._balanced(moment), moment.answer.source, now, context)
        told = moment.values.get((ENERGY_PCU, "power")) if moment.selected.solar == ENERGY_PCU else None
        if told is not None and moment.selected.answer == SourceName.READINGS:
            self._powers.use_sum(_with_third_party(told, moment.selected, moment.lately))
        elif moment.selected.solar in SOLAR_SUMS and (moment.selected.solar, "power") not in moment.values:
            self._powers.told -= {SOLAR}
        if self._batteries_alone(moment.selected, now):
            is_told = self._batteries.given(now, longest=0.0) is not None
            self._powers.use_batteries(self._batteries.given(now), told=is_told)

    def _balanced(self, moment: Moment) -> Powers | None:
        """The powers by this answer; `None` if it has none that count."""
        answer, selected, found = moment.answer, moment.selected, None
        if answer.source == selected.answer:
            is_current = not selected.live or self._live.was_live_at(answer.now)
            found = balance(selected, moment.values) if is_current else None
        elif selected.live and answer.source == SourceName.READINGS and self._live.is_stale(answer.now):
            found = fallback(moment.values, selected)
        if found and found.solar is None and selected.solar in SOLAR_SUMS and answer.source == SourceName.READINGS:
            older = self._latest.all.get((selected.solar, "power"))
            return replace(found, solar=_with_third_party(older, selected, moment.values), home=None)
        return found

    def _integrated_power(self, moment: Moment) -> float | None:
        """The battery's power in this answer, if no meter counts its energy (W)."""
        if not moment.selected.integrates:
            return None
        if moment.answer.source == SourceName.LIVEDATA and self._live.was_live_at(moment.now):
            return moment.values.get((LIVE_STORAGE, "power"))
        is_own = moment.answer.source == SourceName.POWER and self._batteries_alone(moment.selected, moment.now)
        return self._batteries.given(moment.now) if is_own else None

    def _batteries_alone(self, selected: SourceSelection, now: float) -> bool:
        """Whether only the batteries themselves tell their power: no meter does, and live data are stale."""
        live = selected.live and not self._live.is_stale(now)
        return selected.integrates and not live

    # Readings

    def _readings(self, moment: Moment) -> Iterator[Reading]:
        now, selected = moment.now, moment.selected
        alone = self._batteries_alone(selected, now)
        shown = without_livedata(selected) if selected.live and self._live.is_stale(now) else selected
        sources = self._sources(shown, alone=alone)
        self._powers.keep({flow for flow, source in sources.items() if source})
        for flow, source in sources.items():
            if not self._is_shown(flow, source):
                yield from self._relay_alone(now) if flow == GRID else ()
                continue
            self._shown.add(flow)
            found: dict[str, Scalar] = {
                "power": getattr(self._powers.now, flow) if source else None,
                "source": source,
                "estimated": (shown.live and flow in {BATTERY, HOME}) or (alone and flow == BATTERY),
                **dict(self._energies.readings(flow, moment)),
                **dict(self._details(flow, now)),
            }
            told = {"power": flow in self._powers.told, "soc": self._batteries.tell_charge(moment.values, now)}
            for name, value in found.items():
                yield Reading(f"site/{flow}", None, ROWS[flow][name], value, repeat=told.get(name, False))

    def _details(self, flow: str, now: float) -> Iterator[tuple[str, Scalar]]:
        """What a flow has beside power and energy, as far as it is known."""
        told: dict[str, Scalar] = {}
        if flow == GRID:
            told = {"connected": self._switch.connected(now)}
        elif flow == BATTERY:
            known = self._batteries
            told = {"soc": known.charge(now), "energy_stored": known.stored(now), "capacity": known.capacity(now)}
        yield from ((name, value) for name, value in told.items() if value is not None)

    def _sources(self, selected: SourceSelection, *, alone: bool) -> Mapping[str, str | None]:
        """The source that is published for each flow."""
        generator = LIVE_GENERATOR if selected.live else selected.grid
        return {
            SOLAR: selected.solar_source,
            GRID: selected.grid,
            HOME: selected.home,
            BATTERY: BATTERIES if alone and self._powers.now.battery is not None else selected.battery,
            GENERATOR: generator if selection.HAS_GENERATOR in self._presence else None,
        }

    def _is_shown(self, flow: str, source: str | None) -> bool:
        """Whether a flow is published: it has a source, or had one, or is a battery that nothing measures."""
        has_battery = flow == BATTERY and selection.HAS_BATTERY in self._presence
        return source is not None or has_battery or flow in self._shown

    def _relay_alone(self, now: float) -> Iterator[Reading]:
        """The relay of a grid whose power nothing measures."""
        connected = self._switch.connected(now) if self._switch.has_relay else None
        if connected is not None:
            yield Reading(f"site/{GRID}", None, ROWS[GRID]["connected"], connected)


def _with_third_party(told: float | None, selected: SourceSelection, values: Values) -> float | None:
    """Solar power (W) by the microinverters' sum, and by the meter of other makers' panels if they count."""
    others = 0.0 if selected.third_party is None else values.get((selected.third_party, "power"))
    return None if told is None or others is None else max(0.0, told) + max(0.0, others)
