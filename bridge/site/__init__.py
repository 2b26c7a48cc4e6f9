"""The site's flows: solar, grid, battery, generator, home. Pure: times and the local day come from the caller."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bridge.days import Days
from bridge.model import Facts, Reading, Scalar
from bridge.site import seen
from bridge.site.energies import Energies
from bridge.site.plan import NET, PRODUCTION, STORAGE, Plan, choose
from bridge.site.powers import Powers, Values, balance, fallback
from bridge.site.rows import BATTERY, FLOWS, GENERATOR, GRID, HOME, ROWS, SOLAR
from bridge.site.seen import Seen
from bridge.site.storage import BATTERIES, Storage

__all__ = ["FLOWS", "ROWS", "Answer", "Site"]

STILL = 30.0
"""Seconds after which live data that do not move, or do not come, no longer count: up to 57 s frozen were seen."""
AC_BATTERY = "11"
"""`devType` of an AC Battery in `/api/v1/production/inverters`."""
PATIENCE = 2
"""Answers for which an impossible balance is held."""
RELAY = {1: True, 2: False}
"""`main_relay_state`: on grid, off grid. Other codes are not known for certain."""
RELAYS = ("relay", "livedata", "inventory", "status")
"""Sources that tell whether the grid is connected, the best first."""
SWITCHED = {"inventory": 3600.0, "status": 14_400.0}
"""Seconds for which such an answer counts; others: `RECENT`."""
RECENT = 180.0
CLOSED = frozenset({"close", "closed"})
TALLIES = {
    "imported": "site/grid/energy_imported",
    "exported": "site/grid/energy_exported",
    "charged": "site/battery/energy_charged",
    "discharged": "site/battery/energy_discharged",
    "home": "site/home/energy_lifetime",
    "generator": "site/generator/energy_lifetime",
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

    @property
    def ac_battery(self) -> bool:
        """Whether it names an AC Battery, which old homes have: it stands among the inverters."""
        return self.source == "inverters" and any(
            reading.name == "type" and reading.value == AC_BATTERY for reading in self.readings
        )

    def connected(self) -> bool | None:
        """Whether the grid is connected, where the answer tells: with several relays, through all of them."""
        states = [r.value for r in self.readings if r.name == "grid_connected" and isinstance(r.value, bool)]
        codes = [r.value for r in self.readings if (r.device, r.name) == ("live/system", "main_relay")]
        states += [RELAY[int(code)] for code in codes if isinstance(code, int | float) and int(code) in RELAY]
        return all(states) if states else None

    def generating(self) -> bool | None:
        """Whether a generator gives power, where the answer tells: live data, or the generator's own relay."""
        powers = [
            r.value for r in self.readings if (r.device, r.phase, r.name) == ("live/generator", None, "power")
        ]
        states = [r.value for r in self.readings if r.device.startswith("generator/") and r.name == "state"]
        told = [value != 0 for value in powers if value is not None] + [
            state in CLOSED for state in states if state
        ]
        return any(told) if told else None

    def values(self) -> Values:
        return {
            (reading.device, reading.name): float(reading.value)
            for reading in self.readings
            if reading.phase is None
            and isinstance(reading.value, int | float)
            and not isinstance(reading.value, bool)
        }


class Site:
    """The flows of one site.

    `netted` makes grid energy from the net of all phases, as most utilities count it; `third_party` counts another
    maker's panels as sun where they have a meter.
    """

    def __init__(
        self, *, netted: bool = True, third_party: bool = False, kept: Mapping[str, Any] | None = None
    ) -> None:
        kept = kept or {}
        self._netted, self._third_party = netted, third_party
        self._energies = Energies.load(kept.get("energies"))
        self._days = Days.load(kept.get("days"))
        self._seen = Seen.load(kept.get("seen"))
        self._latest: dict[tuple[str, str], float] = {}
        self._powers = Powers()
        self._storage = Storage()
        self._relays: dict[str, tuple[bool, float]] = {}
        self._generators: dict[str, tuple[bool, float]] = {}
        self._was_generating = False
        self._measured: tuple[Powers, str] | None = None
        """The last balance as measured, and its source: the net meter may turn out to read a generator."""
        self._impossible = 0
        self._live_at = self._moved_at = float("-inf")
        self._flows: tuple[float | None, ...] = ()
        self._shown: set[str] = set()
        """Flows that subscribers have a value of: one that nothing gives any more must not stay at its last."""
        self.powered_by: str | None = None
        """The source whose answer gave the powers last."""

    def update(self, answer: Answer) -> list[Reading]:
        """The site as it is after an answer."""
        values = answer.values()
        self._latest.update(values)
        self._observe(answer, values)
        plan = choose(
            answer.facts,
            battery=seen.BATTERY in self._seen,
            livedata=seen.LIVEDATA in self._seen,
            stalled=seen.STALLED in self._seen,
            third_party=self._third_party,
        )
        if answer.facts.meters is None:
            return []
        found, generating = self._balanced(plan, answer, values), self._generating(answer.now)
        if found is not None:
            self._measured = found, answer.source
        if self._measured and (found is not None or generating != self._was_generating):
            measured, source = self._measured
            self._take(self._completed(measured, plan, answer.now), source)
        self._was_generating = generating
        if self._alone(plan, answer.now):
            self._powers = replace(self._powers, battery=self._storage.given(answer.now))
        self._count(plan, answer, values)
        return list(self._readings(plan, answer))

    def _observe(self, answer: Answer, values: Values) -> None:
        generating, connected = answer.generating(), answer.connected()
        if generating is not None:
            self._generators[answer.source] = generating, answer.now
        if connected is not None:
            self._relays[answer.source] = connected, answer.now
        battery = answer.ac_battery or answer.facts.has("battery", "acb")
        self._seen.observe(
            answer.source, values, self._latest, answer.now, battery=battery, generator=generating is True
        )
        self._storage.observe(answer.source, values, answer.now, fresh=answer.fresh)

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
        self._energies.seed(totals, marks, values)

    def dump(self) -> dict[str, Any]:
        """For the store: counters of ours must go on after a restart."""
        return {"energies": self._energies.dump(), "days": self._days.dump(), "seen": self._seen.lacking}

    # Powers

    def _balanced(self, plan: Plan, answer: Answer, values: Values) -> Powers | None:
        if answer.source == plan.answer:
            if plan.live and not self._moving(answer, values):
                return None
            return balance(plan, values)
        stale = answer.now - self._live_at > STILL
        return fallback(values, plan) if plan.live and answer.source == "readings" and stale else None

    def _completed(self, found: Powers, plan: Plan, now: float) -> Powers:
        """What the answer with the powers does not tell: an old sun, and a generator where there is one."""
        if plan.solar in COUNTED and plan.answer == "readings" and found.solar is None:
            old = self._latest.get((plan.solar, "power"))
            found = replace(found, solar=None if old is None else max(0.0, old))
        if self._generating(now):
            return found.on_generator()
        if seen.GENERATOR in self._seen and found.generator is None:
            return replace(found, generator=0.0)
        return found

    def _generating(self, now: float) -> bool:
        """Whether a generator stands in for the grid: the net meter reads it then (seen on 8.2.127)."""
        running = any(state and now - at <= RECENT for state, at in self._generators.values())
        return running and self._connected(now) is False

    def _alone(self, plan: Plan, now: float) -> bool:
        """Whether the batteries' own word is all there is: no meter measures them, and no live data move."""
        live = plan.live and now - self._live_at <= STILL
        return seen.BATTERY in self._seen and STORAGE not in plan.meters and not live

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
        if seen.GENERATOR in self._seen:
            self._energies.count("generator", 0.0, answer.now)
        if answer.source == "readings":
            generating = self._generating(answer.now)
            self._energies.meters(plan, values, answer.now, generating=generating)

    # Readings

    def _readings(self, plan: Plan, answer: Answer) -> Iterator[Reading]:
        shown = {SOLAR: plan.solar_source, GRID: plan.grid, HOME: plan.home, BATTERY: plan.battery}
        shown[GENERATOR] = self._generator_source(plan)
        alone = self._alone(plan, answer.now)
        if alone and self._powers.battery is not None:
            shown[BATTERY] = BATTERIES
        for flow, source in shown.items():
            battery = flow == BATTERY and seen.BATTERY in self._seen
            if source is None and not battery and flow not in self._shown:
                yield from self._relay_alone(answer.now) if flow == GRID else ()
                continue
            self._shown.add(flow)
            estimated = (plan.live and flow in {BATTERY, HOME}) or (alone and flow == BATTERY)
            power = getattr(self._powers, flow) if source else None  # the last choice's, until the next answer
            facts = {"power": power, "source": source, "estimated": estimated}
            facts |= {name: value for name, value in self._more(flow, plan, answer) if value is not None}
            yield from (Reading(f"site/{flow}", None, ROWS[flow][name], value) for name, value in facts.items())

    def _relay_alone(self, now: float) -> Iterator[Reading]:
        """The relay of a grid that nobody measures."""
        connected = self._connected(now) if self._relays.keys() - {"livedata"} else None
        if connected is not None:
            yield Reading("site/grid", None, ROWS[GRID]["connected"], connected)

    def _more(self, flow: str, plan: Plan, answer: Answer) -> Iterator[tuple[str, Scalar]]:
        match flow:
            case "solar":
                yield from self._solar(plan, answer.day)
            case "grid":
                yield from self._grid(plan, answer.now)
            case "battery":
                yield from self._battery(plan, answer.now)
            case "generator":
                yield from self._made("generator", "energy_lifetime")
            case "home":
                yield from self._made("home", "energy_lifetime")
                if (tally := self._energies.tallies.get("home")) is not None:
                    yield "energy_today", self._days.today(HOME, tally.total, answer.day)

    def _generator_source(self, plan: Plan) -> str | None:
        if seen.GENERATOR not in self._seen:
            return None
        return "live/generator" if plan.live else plan.grid

    def _solar(self, plan: Plan, day: str) -> Iterator[tuple[str, Scalar]]:
        device = "meter/production" if PRODUCTION in plan.meters else self._old_sun(plan)
        devices = list(filter(None, (device, plan.third_party)))
        names = [COUNTED.get(device, "energy_delivered") for device in devices]
        known = [self._latest.get(pair) for pair in zip(devices, names, strict=True)]
        if None not in known:
            value = sum(value for value in known if value is not None)
            topics = "site/solar/energy_lifetime", f"{device}/{names[0]}" if len(devices) == 1 else ""
            lifetime = self._energies.passed_on(SOLAR, ", ".join(devices), value, topics)
            yield "energy_lifetime", lifetime
            yield "energy_today", self._days.today(SOLAR, lifetime, day)

    def _old_sun(self, plan: Plan) -> str:
        """The inverters' own sum, where no meter counts the sun."""
        return plan.solar if plan.solar in COUNTED else "energy/production-pcu"

    def _connected(self, now: float) -> bool | None:
        told = ((source, *self._relays[source]) for source in RELAYS if source in self._relays)
        return next((state for source, state, at in told if 0 <= now - at <= SWITCHED.get(source, RECENT)), None)

    def _grid(self, plan: Plan, now: float) -> Iterator[tuple[str, Scalar]]:
        yield "connected", self._connected(now)
        if NET in plan.meters and not self._netted:
            yield from self._counted("meter/net-consumption", imported="delivered", exported="received")
        else:
            yield from self._made("imported", "energy_imported")
            yield from (
                (name, value) for name, value in self._made("exported", "energy_exported") if name != "energy_since"
            )

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
                topics = TALLIES[ours], f"{device}/energy_{theirs}"
                yield f"energy_{ours}", self._energies.passed_on(ours, device, value, topics)

    def _made(self, tally: str, name: str) -> Iterator[tuple[str, Scalar]]:
        made = self._energies.made(tally)
        if made is not None:
            yield name, round(made.total, 3)
            yield "energy_since", datetime.fromtimestamp(int(made.since), UTC)
