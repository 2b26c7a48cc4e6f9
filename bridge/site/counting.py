"""What a site counts: the energies of its flows, from its meters and from its batteries, and those of today."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from functools import partial

from bridge.endpoints.production import ENERGY_PCU
from bridge.model import Event, Facts, Scalar, SourceName
from bridge.site.days import Days, DaysState, GatewayDays
from bridge.site.energies import (
    HOME_MARK,
    LONGEST_STEP_PERIODS,
    LONGEST_STEP_S,
    Energies,
    EnergiesState,
    complete,
)
from bridge.site.flows import HOME, SOLAR
from bridge.site.selection import (
    DELIVERED,
    METERS,
    NET,
    PRODUCTION,
    RECEIVED,
    SOLAR_SUMS,
    STORAGE,
    THIRD_PARTY,
    GuardedAnswer,
    SourceSelection,
    Values,
)
from bridge.site.totals import OURS, InverterSum, NegativeBalance, Totals, devices_of, owner_of

TOPIC_OF_COUNTER = {
    "imported": "site/grid/energy_imported",
    "exported": "site/grid/energy_exported",
    "charged": "site/battery/energy_charged",
    "discharged": "site/battery/energy_discharged",
    "home": "site/home/energy_lifetime",
    "generator": "site/generator/energy_lifetime",
}
"""Topics of the counters that the bridge can make itself, by their names in `Energies`."""
TOPIC_OF_SOLAR = "site/solar/energy_lifetime"
ENERGY_EIM = "energy/production-eim"
"""The gateway's sum of its own production meter."""
HOME_NEGATIVE = "home_negative"
NET_COUNTERS = tuple((METERS[NET], name) for name in (DELIVERED, RECEIVED))
PCU_PAIR = (ENERGY_PCU, "energy_lifetime")
GIVEN_PAIR = ("battery", "given")
SOLAR_PARTS = (f"+{METERS[PRODUCTION]}/", f"+{ENERGY_PCU}/")
"""Beginnings of the home's parts that are solar energy."""


@dataclass(frozen=True, slots=True)
class Moment:
    """An answer, and what else counts at this moment.

    `selected` are the sources of the site's flows, `values` the answer's values, `latest` the newest ones of all
    answers, `lately` those that were read just now. `battery` is the power of a battery that no meter counts, in
    W; `None` where this answer does not have it. `stored` is what the batteries hold, in Wh. `on_generator` is
    whether a generator supplies the site.
    """

    answer: GuardedAnswer
    selected: SourceSelection
    values: Values
    latest: Values
    battery: float | None = None
    stored: float | None = None
    lately: Values = field(default_factory=dict)
    on_generator: bool = False
    has_generator: bool = False

    @property
    def now(self) -> float:
        """The unix time of the answer."""
        return self.answer.now

    @property
    def day_time(self) -> float:
        """The unix time by which the answer belongs to a day."""
        return self.answer.now if self.answer.day_time is None else self.answer.day_time

    def is_read(self, pair: tuple[str, str]) -> bool:
        """Whether the answer has a good reading of this counter, by device and name."""
        return pair in self.values and pair not in self.answer.held

    @property
    def third_party(self) -> float | None:
        """The counter of other makers' panels that are added to solar, in Wh; `None` if there is none."""
        device = self.selected.third_party
        return None if device is None else self.latest.get((device, DELIVERED))


def _retained(name: str, value: float | None) -> Iterator[tuple[str, Scalar]]:
    """A counter as subscribers have it from an earlier run, if they have it: so it does not become unknown."""
    if value is not None:
        yield name, value


def _owner(selected: SourceSelection) -> str:
    """The devices that solar energy is counted by."""
    return owner_of(device for device, _ in selected.solar_counters)


def _others(selected: SourceSelection, latest: Values) -> float | None:
    """What the home's energy is made of beside solar, in Wh; `None` where it is unknown."""
    keys = [key for key in selected.home_parts if not key.startswith(SOLAR_PARTS)]
    known = complete(keys, latest, ())
    return None if known is None else sum(value if key[0] == "+" else -value for key, value in known.items())


def _with_given(values: Values, energies: Energies, now: float, period: float) -> Values:
    """The values, with what a battery that no meter counts has given until now, where that is known."""
    given = energies.given(now, max(LONGEST_STEP_S, LONGEST_STEP_PERIODS * period))
    return values if given is None else {**values, GIVEN_PAIR: given}


class SiteEnergies:
    """Counts the energies of one site. `netted` nets the phases of the grid's meter; `zone` is where days begin."""

    def __init__(self, energies: EnergiesState, days: DaysState, *, netted: bool, zone: tzinfo | None) -> None:
        self._netted = netted
        self._energies, self._days = Energies(energies, zone), Days(days, zone)
        self._battery_period = 0.0
        self._battery_read = False
        """Whether the battery's energy was integrated since the home was counted last."""
        self._home_read_at: float | None = None
        self._gateway_days = GatewayDays()
        self._solar_read: tuple[float, float] | None = None
        self._sum = InverterSum(paired=energies.paired)
        self._negative = NegativeBalance()
        self.events: list[Event] = []
        """What has happened since the events were taken from here, for the log."""

    @property
    def energies_state(self) -> EnergiesState:
        """What must outlive the process of the counters."""
        read_at = self._solar_read[1] if self._solar_read else None
        return self._energies.state.changed(paired=self._sum.paired_until(read_at))

    @property
    def days_state(self) -> DaysState:
        """What must outlive the process of the current day."""
        return self._days.state

    def seed(self, values: Mapping[str, float]) -> None:
        """Adopt retained values of an earlier run, by topic, so that no counter falls if the state was lost."""
        totals = {name: values[topic] for name, topic in TOPIC_OF_COUNTER.items() if topic in values}
        self._energies.seed(totals, values)
        for flow in (SOLAR, HOME):
            names = ("energy_lifetime", "energy_today", "timestamp")
            lifetime, today, at = (values.get(f"site/{flow}/{name}") for name in names)
            if lifetime is not None and today is not None and at is not None:
                self._days.seed(flow, lifetime, today, at)

    def count(self, moment: Moment) -> None:
        """Count what an answer adds to the energies."""
        answer, own = moment.answer, self._energies
        if moment.battery is not None:
            own.integrate(moment.battery, moment.stored, moment.now, answer.period)
            self._battery_read, self._battery_period = True, answer.period
        if moment.has_generator:
            own.counters.count("generator", 0.0, moment.now)
        for device in (ENERGY_EIM, *SOLAR_SUMS):
            pair = device, "energy_lifetime"
            lifetime = answer.held.get(pair, moment.values.get(pair))
            self._gateway_days.observe(
                device, lifetime, moment.values.get((device, "energy_today")), moment.day_time
            )
        if not moment.selected.home_parts:
            own.growth(HOME_MARK, None, moment.now)
        if answer.source == SourceName.ENERGY and moment.is_read(PCU_PAIR):
            self._observe_sum(moment)
        if answer.source == SourceName.READINGS:
            self._count_net(moment)
        if answer.source == (SourceName.ENERGY if moment.selected.counts_with_sums else SourceName.READINGS):
            self._count_balances(moment)

    def _observe_sum(self, moment: Moment) -> None:
        """Note the microinverters' sum, and the site's counters if its meter was read since the sum changed."""
        pcu = moment.values[PCU_PAIR]
        is_metered = ENERGY_PCU not in devices_of(self._energies.counters.owners.get(SOLAR, ""))
        self._sum.observe(pcu, moment.now)
        is_fresh = self._solar_read is not None and self._solar_read[1] > self._sum.paired_at
        if self._sum.is_new and is_metered and is_fresh:
            self._sum.paired = self._totals(moment, pcu)

    # The grid

    def _count_net(self, moment: Moment) -> None:
        """Count the grid, or a generator in its place, by the meter of the grid."""
        if NET not in moment.selected.meters:
            return
        answer, values, own = moment.answer, moment.values, self._energies
        raw = [answer.held.get(pair, values.get(pair)) for pair in NET_COUNTERS]
        is_held = any(given != values.get(pair) for given, pair in zip(raw, NET_COUNTERS, strict=True))
        given = raw if is_held else [values.get((METERS[NET], "power"))]
        told = tuple(value for value in given if value is not None)
        keys = [f"{sign}{device}/{name}" for sign, (device, name) in zip("+-", NET_COUNTERS, strict=True)]
        step = own.count_net(complete(keys, values, answer.held), told, answer.now, answer.period)
        if step is not None and moment.on_generator:
            own.counters.count("generator", max(0.0, step.delivered - step.received), answer.now)
            own.counters.leave_out(imported=step.delivered, exported=step.received)
        elif self._nets(answer.facts) or own.counters.owners.get("imported") == OURS:
            own.count_grid(step.imported if step else 0.0, step.exported if step else 0.0, answer.now)
            self._report_estimate(step.estimated if step else 0.0)

    def _nets(self, facts: Facts) -> bool:
        """Whether the bridge nets the phases of the grid's meter. One phase is counted as the utility counts."""
        phases = max((meter.phase_count for meter in facts.meters or () if meter.role == NET), default=1)
        return self._netted and phases > 1

    # What is made of several counters

    def _count_balances(self, moment: Moment) -> None:
        """Count the home, and the grid where it has no meter, once all their parts were read."""
        selected, answer, own = moment.selected, moment.answer, self._energies
        has_begun = "home" in own.counters.tallies
        if selected.integrates and not self._battery_read and has_begun:
            return
        by_sum = selected.counts_with_sums
        if by_sum and not self._sum.is_moment(answer.now):
            return
        values = moment.lately if by_sum else moment.values
        period = max(answer.period, self._battery_period) if selected.integrates else answer.period
        if selected.integrates:
            values = _with_given(values, own, answer.now, period)
        if selected.grid_parts:
            parts = complete(selected.grid_parts, values, answer.held)
            one, generator = not (selected.integrates or by_sum), moment.on_generator
            step = own.count_balance(parts, answer.now, period, is_one_answer=one, on_generator=generator)
            self._report_estimate(step)
        if selected.home_parts:
            parts = complete(selected.home_parts, values, answer.held)
            self._home_read_at = self._home_read_at if parts is None else answer.now
            dropped = own.count_home(parts, answer.now)
            if text := self._negative.warning("the home's", dropped, answer.now):
                self.events.append(Event(HOME_NEGATIVE, text, warning=True))
        self._battery_read = False

    def totals(self, moment: Moment) -> Totals | None:
        """The microinverters' sum, and the site's counters when it changed; `None` while it is unknown."""
        pcu = moment.latest.get(PCU_PAIR)
        if pcu is None:
            return None
        then = self._sum.paired if self._sum.paired and self._sum.paired.pcu == pcu else self._totals(moment, pcu)
        return replace(then, at=moment.now)

    def _totals(self, moment: Moment, pcu: float) -> Totals:
        home, solar = self._energies.counters.tallies.get("home"), self._energies.counters.published.get(SOLAR)
        latest = _with_given(moment.latest, self._energies, moment.now, self._battery_period)
        others = _others(moment.selected, latest), moment.third_party
        return Totals(moment.now, pcu, solar, home.total if home else None, *others)

    def charged(self, moment: Moment) -> float | None:
        """Wh that the battery has taken, less what it has given, by its meter or by our own counters."""
        taken, given = (moment.latest.get((METERS[STORAGE], name)) for name in (RECEIVED, DELIVERED))
        if taken is not None and given is not None:
            return taken - given
        charged, discharged = (self._energies.counters.tallies.get(name) for name in ("charged", "discharged"))
        return charged.total - discharged.total if charged and discharged else None

    def take_over(self, began: Totals, moment: Moment) -> None:
        """Count what the production meter has missed since `began`, by the microinverters' sum."""
        own, pcu = self._energies.counters, moment.latest[PCU_PAIR]
        latest = _with_given(moment.latest, self._energies, moment.now, self._battery_period)
        others, home = _others(moment.selected, latest), own.tallies.get("home")
        offset = began.offset(moment.third_party)
        if offset is not None:
            own.take_over(SOLAR, _owner(moment.selected), pcu + (moment.third_party or 0.0), offset)
            own.left.pop(SOLAR, None)  # what the meter counts meanwhile is not believed
        is_of_solar = any(key.startswith(SOLAR_PARTS) for key in moment.selected.home_parts)
        if not is_of_solar or home is None or began.home is None or began.others is None or others is None:
            return
        own.tallies["home"] = replace(home, carry=0.0, carry_at=None)
        own.count("home", pcu - began.pcu + others - began.others - (home.total - began.home), moment.now)
        self._energies.begin(HOME_MARK, complete(moment.selected.home_parts, latest, ()), moment.now)

    def _report_estimate(self, energy: float) -> None:
        if energy > 0:
            how = f"{energy:.0f} Wh of both are taken to have cancelled out between the phases"
            text = f"import and export went on without readings: {how}, as usual at these hours"
            self.events.append(Event("grid_estimated", text, warning=False))

    # What is published

    def readings(self, flow: str, moment: Moment) -> Iterator[tuple[str, Scalar]]:
        """Name and value of the energies of a flow."""
        selected = moment.selected
        match flow:
            case "solar":
                yield from self._solar(moment)
            case "home":
                yield from self._home(moment)
            case "grid" if NET in selected.meters and not self._nets(moment.answer.facts):
                yield from self._passed_on("imported", "energy_imported", (METERS[NET], DELIVERED), moment)
                yield from self._passed_on("exported", "energy_exported", (METERS[NET], RECEIVED), moment)
            case "grid":
                yield from self._own("imported", "energy_imported")
                yield from self._own("exported", "energy_exported", since=False)
            case "battery" if STORAGE in selected.meters:
                yield from self._passed_on("discharged", "energy_discharged", (METERS[STORAGE], DELIVERED), moment)
                yield from self._passed_on("charged", "energy_charged", (METERS[STORAGE], RECEIVED), moment)
            case "battery":
                yield from self._own("charged", "energy_charged")
                yield from self._own("discharged", "energy_discharged", since=False)
            case "generator":
                yield from self._own("generator", "energy_lifetime")

    def _home(self, moment: Moment) -> Iterator[tuple[str, Scalar]]:
        yield from self._own("home", "energy_lifetime")
        if (made := self._energies.counters.tallies.get("home")) is not None:
            is_read = self._home_read_at == moment.now
            yield "energy_today", self._days.today(HOME, made.total, moment.day_time, is_read=is_read)

    def _solar(self, moment: Moment) -> Iterator[tuple[str, Scalar]]:
        own, owner = self._energies.counters, _owner(moment.selected)
        pair, *others = moment.selected.solar_counters
        is_read = moment.is_read(pair) and all(other in moment.lately for other in others)
        is_given = pair in moment.values and all(other in moment.latest for other in others)
        if is_read or (own.is_unread(SOLAR, owner) and is_given):
            topic = "" if others else "/".join(pair)
            value = moment.values[pair] + sum(moment.latest[other] for other in others)
            is_from_meter = ENERGY_PCU not in devices_of(own.owners.get(SOLAR, owner))
            if ENERGY_PCU in devices_of(owner) and is_from_meter:
                read_at = self._solar_read[1] if self._solar_read else None
                offset = self._sum.offset(read_at, moment.third_party, own.published[SOLAR] - value)
                own.take_over(SOLAR, owner, value, offset)
            lifetime = own.passed_on(SOLAR, owner, value, (TOPIC_OF_SOLAR, topic))
            self._learn_solar(lifetime, moment.now)
        if SOLAR not in own.read:
            yield from _retained("energy_lifetime", own.retained.get(TOPIC_OF_SOLAR))
            return
        lifetime, at = own.published[SOLAR], moment.day_time
        yield "energy_lifetime", lifetime
        already, share = partial(self._already_today, moment, lifetime), self._energies.solar.share
        today = self._days.today(SOLAR, lifetime, at, already=already, share=share, is_read=is_read)
        yield "energy_today", today

    def _learn_solar(self, lifetime: float, now: float) -> None:
        if known := self._solar_read:
            self._energies.solar.add(max(0.0, lifetime - known[0]), max(0.0, now - known[1]), now)
        self._solar_read = lifetime, now

    def _already_today(self, moment: Moment, lifetime: float) -> float | None:
        """Solar energy (Wh) of a first day by the gateway's own count, if that can be true; without `pv3p`."""
        solar, own = moment.selected.solar, self._energies.counters
        if METERS[THIRD_PARTY] in own.latest_devices(SOLAR):
            return None
        device, counted = solar if solar in SOLAR_SUMS else ENERGY_EIM, lifetime - own.offsets.get(SOLAR, 0.0)
        peak = sum(value for (_, name), value in moment.latest.items() if name == "max_power")
        return self._gateway_days.counted(device, counted, self._days, moment.day_time, peak)

    def _passed_on(
        self, counter: str, name: str, pair: tuple[str, str], moment: Moment
    ) -> Iterator[tuple[str, Scalar]]:
        """A counter of a meter as the site's counter `name`: until it was read, as an earlier run published it."""
        own = self._energies.counters
        if moment.is_read(pair) or (own.is_unread(counter, pair[0]) and pair in moment.values):
            yield (
                name,
                own.passed_on(counter, pair[0], moment.values[pair], (TOPIC_OF_COUNTER[counter], "/".join(pair))),
            )
        elif counter in own.read:
            yield name, own.published[counter]
        else:
            yield from _retained(name, own.retained.get(TOPIC_OF_COUNTER[counter]))

    def _own(self, counter: str, name: str, *, since: bool = True) -> Iterator[tuple[str, Scalar]]:
        """A counter of our own as the site's counter `name`, with the time when it began."""
        made = self._energies.counters.made(counter)
        if made is not None:
            yield name, round(made.total, 3)
            if since and made.since is not None:
                yield "energy_since", datetime.fromtimestamp(int(made.since), UTC)
