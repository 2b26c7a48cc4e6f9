"""The site's flows: solar, grid, battery, generator, home. Pure: times and the local day come from the caller."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bridge.days import Days
from bridge.model import Facts, Reading, Scalar
from bridge.site.energies import Energies
from bridge.site.plan import NET, PRODUCTION, STORAGE, Plan, choose
from bridge.site.powers import Powers, Values, balance, fallback
from bridge.site.rows import BATTERY, FLOWS, GENERATOR, GRID, HOME, ROWS, SOLAR
from bridge.site.storage import BATTERIES, Storage

__all__ = ["FLOWS", "ROWS", "Answer", "Site"]

STILL = 30.0
"""Seconds after which live data that do not move, or do not come, no longer count: up to 57 s frozen were seen."""
PATIENCE = 2
"""Answers for which an impossible balance is held."""
RELAY = {1: True, 2: False}
"""`main_relay_state`: on grid, off grid. Other codes are not known for certain."""
RELAYS = ("relay", "livedata", "inventory", "status")
"""Sources that tell whether the grid is connected, the best first."""
SWITCHED = {"inventory": 3600.0, "status": 14_400.0}
"""Seconds for which such an answer counts; others: `RECENT`."""
RECENT = 180.0
TALLIES = {
    "imported": "site/grid/energy_imported",
    "exported": "site/grid/energy_exported",
    "charged": "site/battery/energy_charged",
    "discharged": "site/battery/energy_discharged",
    "home": "site/home/energy_lifetime",
}
"""Topics of the counters that we make."""
COUNTED = {"energy/production-pcu": "energy_lifetime", "energy/production": "energy_lifetime"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One good answer of a gateway: its guarded readings, when it came (unix time), and the local day.

    `fresh` is False where the gateway says that its values stand still.
    """

    source: str
    readings: Sequence[Reading]
    facts: Facts
    now: float
    day: str
    fresh: bool = True

    def connected(self) -> bool | None:
        """Whether the grid is connected, where the answer tells: with several relays, through all of them."""
        states = [r.value for r in self.readings if r.name == "grid_connected" and isinstance(r.value, bool)]
        codes = [r.value for r in self.readings if (r.device, r.name) == ("live/system", "main_relay")]
        states += [RELAY[int(code)] for code in codes if isinstance(code, int | float) and int(code) in RELAY]
        return all(states) if states else None

    def values(self) -> Values:
        return {
            (reading.device, reading.name): float(reading.value)
            for reading in self.readings
            if reading.phase is None
            and isinstance(reading.value, int | float)
            and not isinstance(reading.value, bool)
        }


@dataclass(slots=True)
class Seen:
    """What has been seen of a site, for the choice of its sources: it only grows, so that the choice is kept."""

    battery: bool = False
    livedata: bool = False
    stalled: bool = False
    generator: bool = False

    def observe(self, answer: Answer, values: Values, latest: Values) -> None:
        self.livedata |= answer.source == "livedata" and ("live/grid", "power") in values
        held = ("encharge_energy", "acb_energy", "encharge_soc", "acb_soc")
        self.battery |= any(values.get(("live/storage", name), 0) > 0 for name in held)
        self.battery |= answer.facts.has("battery", "acb")
        self.generator |= values.get(("live/generator", "power"), 0) != 0
        counted = latest.get(("energy/production", "energy_lifetime"))
        self.stalled |= counted == 0 and latest.get(("energy/production-pcu", "energy_lifetime"), 0) > 0


class Site:
    """The flows of one site. `netted` makes grid energy from the net of all phases, as most utilities count it."""

    def __init__(self, *, netted: bool = True, kept: Mapping[str, Any] | None = None) -> None:
        kept = kept or {}
        self._netted = netted
        self._energies = Energies.load(kept.get("energies"))
        self._days = Days.load(kept.get("days"))
        self._seen = Seen()
        self._latest: dict[tuple[str, str], float] = {}
        self._powers = Powers()
        self._storage = Storage()
        self._relays: dict[str, tuple[bool, float]] = {}
        self._impossible = 0
        self._live_at = self._moved_at = float("-inf")
        self._flows: tuple[float | None, ...] = ()
        self.powered_by: str | None = None
        """The source whose answer gave the powers last."""

    def update(self, answer: Answer) -> list[Reading]:
        """The site as it is after an answer."""
        values = answer.values()
        self._latest.update(values)
        self._seen.observe(answer, values, self._latest)
        self._storage.observe(answer.source, values, answer.now, fresh=answer.fresh)
        if (connected := answer.connected()) is not None:
            self._relays[answer.source] = connected, answer.now
        plan = choose(
            answer.facts, battery=self._seen.battery, livedata=self._seen.livedata, stalled=self._seen.stalled
        )
        if answer.facts.meters is None:
            return []
        found = self._balanced(plan, answer, values)
        if found is not None:
            self._take(found, answer.source)
        if self._alone(plan, answer.now):
            self._powers = replace(self._powers, battery=self._storage.given(answer.now))
        self._count(plan, answer, values)
        return list(self._readings(plan, answer))

    @property
    def solar(self) -> float | None:
        """W that the sun gives now."""
        return self._powers.solar

    def seed(self, values: Mapping[str, float]) -> None:
        """Counters of ours that subscribers have, by topic: they must not fall because a state was lost."""
        totals = {name: values[topic] for name, topic in TALLIES.items() if topic in values}
        marks = {
            topic.removeprefix("meter/"): value for topic, value in values.items() if topic.startswith("meter/")
        }
        self._energies.seed(totals, marks)

    def dump(self) -> dict[str, Any]:
        """For the store: counters of ours must go on after a restart."""
        return {"energies": self._energies.dump(), "days": self._days.dump()}

    # Powers

    def _balanced(self, plan: Plan, answer: Answer, values: Values) -> Powers | None:
        if answer.source == plan.answer:
            if plan.live and not self._moving(answer, values):
                return None
            return balance(plan, values)
        stale = answer.now - self._live_at > STILL
        return fallback(values, plan) if plan.live and answer.source == "readings" and stale else None

    def _alone(self, plan: Plan, now: float) -> bool:
        """Whether the batteries' own word is all there is: no meter measures them, and no live data move."""
        live = plan.live and now - self._live_at <= STILL
        return self._seen.battery and STORAGE not in plan.meters and not live

    def _moving(self, answer: Answer, values: Values) -> bool:
        flows = tuple(
            values.get((f"live/{name}", kind))
            for name in ("pv", "storage", "grid", "load")
            for kind in ("power", "apparent_power")
        )
        if flows != self._flows:
            self._flows, self._moved_at = flows, answer.now
        moving = answer.fresh and answer.now - self._moved_at <= STILL
        if moving:
            self._live_at = answer.now
        return moving

    def _take(self, found: Powers, source: str) -> None:
        """An impossible balance is held for two answers; then the battery, which makes it so, is not known."""
        self._impossible = 0 if found.plausible else self._impossible + 1
        if 0 < self._impossible <= PATIENCE and self.powered_by is not None:
            return
        self._powers = found if found.plausible else found.without_battery()
        self.powered_by = source

    # Energies

    def _count(self, plan: Plan, answer: Answer, values: Values) -> None:
        if answer.source == "livedata" and plan.battery == "live/storage" and self._live_at == answer.now:
            stored = self._storage.stored(answer.now)
            self._energies.integrate(values.get(("live/storage", "power"), 0.0), stored, answer.now)
        given = self._storage.given(answer.now) if answer.source == "power" else None
        if given is not None and self._alone(plan, answer.now):
            self._energies.integrate(given, self._storage.stored(answer.now), answer.now)
        if answer.source == "readings":
            self._energies.meters(plan, values, answer.now, netted=self._netted)

    # Readings

    def _readings(self, plan: Plan, answer: Answer) -> Iterator[Reading]:
        shown = {SOLAR: plan.solar, GRID: plan.grid, HOME: plan.home, BATTERY: plan.battery}
        shown[GENERATOR] = "live/generator" if plan.live and self._seen.generator else None
        alone = self._alone(plan, answer.now)
        if alone and self._powers.battery is not None:
            shown[BATTERY] = BATTERIES
        for flow, source in shown.items():
            battery = flow == BATTERY and self._seen.battery
            if source is None and not battery:
                switched = flow == GRID and self._relays.keys() - {"livedata"}
                if switched and (connected := self._connected(answer.now)) is not None:  # without a meter, too
                    yield Reading("site/grid", None, ROWS[GRID]["connected"], connected)
                continue
            estimated = (plan.live and flow in {BATTERY, HOME}) or (alone and flow == BATTERY)
            facts = {"power": getattr(self._powers, flow), "source": source, "estimated": estimated}
            facts |= {name: value for name, value in self._more(flow, plan, answer) if value is not None}
            yield from (Reading(f"site/{flow}", None, ROWS[flow][name], value) for name, value in facts.items())

    def _more(self, flow: str, plan: Plan, answer: Answer) -> Iterator[tuple[str, Scalar]]:
        match flow:
            case "solar":
                yield from self._solar(plan, answer.day)
            case "grid":
                yield from self._grid(plan, answer.now)
            case "battery":
                yield from self._battery(plan, answer.now)
            case "home":
                yield from self._made("home", "energy_lifetime")
                if (tally := self._energies.tallies.get("home")) is not None:
                    yield "energy_today", self._days.today(HOME, tally.total, answer.day)

    def _solar(self, plan: Plan, day: str) -> Iterator[tuple[str, Scalar]]:
        device = "meter/production" if PRODUCTION in plan.meters else plan.solar or ""
        value = self._latest.get((device, COUNTED.get(device, "energy_delivered")))
        if value is not None:
            lifetime = self._energies.passed_on(SOLAR, device, value)
            yield "energy_lifetime", lifetime
            yield "energy_today", self._days.today(SOLAR, lifetime, day)

    def _grid(self, plan: Plan, now: float) -> Iterator[tuple[str, Scalar]]:
        yield "connected", self._connected(now)
        if NET in plan.meters and not self._netted:
            yield from self._counted("meter/net-consumption", imported="delivered", exported="received")
        else:
            yield from self._made("imported", "energy_imported")
            yield from (
                (name, value) for name, value in self._made("exported", "energy_exported") if name != "energy_since"
            )

    def _connected(self, now: float) -> bool | None:
        told = ((source, *self._relays[source]) for source in RELAYS if source in self._relays)
        return next((state for source, state, at in told if now - at <= SWITCHED.get(source, RECENT)), None)

    def _battery(self, plan: Plan, now: float) -> Iterator[tuple[str, Scalar]]:
        if STORAGE in plan.meters:
            yield from self._counted("meter/storage", discharged="delivered", charged="received")
        else:
            yield from self._made("charged", "energy_charged")
            yield from (
                (name, value)
                for name, value in self._made("discharged", "energy_discharged")
                if name != "energy_since"
            )
        yield "soc", self._storage.charge(now)
        yield "energy_stored", self._storage.stored(now)
        yield "capacity", self._storage.capacity(now)

    def _counted(self, device: str, **names: str) -> Iterator[tuple[str, Scalar]]:
        for ours, theirs in names.items():
            value = self._latest.get((device, f"energy_{theirs}"))
            if value is not None:
                yield f"energy_{ours}", self._energies.passed_on(ours, device, value)

    def _made(self, tally: str, name: str) -> Iterator[tuple[str, Scalar]]:
        made = self._energies.tallies.get(tally)
        if made is not None:
            yield name, round(made.total, 3)
            yield "energy_since", datetime.fromtimestamp(int(made.since), UTC)
