"""The site's lifetime energies: meters' counters where there are some, sums of our own where there are none."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.site.plan import NET, PRODUCTION, STORAGE, THIRD_PARTY, TOTAL, Plan

GAP = 60.0
"""Seconds between two powers over which they are no longer joined by a straight line."""
OURS = "ours"
"""Owner of the counters that we make."""
RESET = 0.9
"""Counters come guarded, so that one falls below this share of itself only where it began again at 0."""
DEAD_BAND = 10.0
"""Wh by which two retained topics may differ because they were published at different times."""


@dataclass(frozen=True, slots=True)
class Tally:
    """A counter that we make: starts at 0 `since` then (unix time), and never falls. Wh.

    A negative change is carried over: it is taken from the next positive ones.
    """

    since: float
    total: float = 0.0
    carry: float = 0.0

    def add(self, change: float) -> "Tally":
        change += self.carry
        if change < 0:
            return replace(self, carry=change)
        return replace(self, total=self.total + change, carry=0.0)


@dataclass(slots=True)
class Energies:
    """Counters of one site. `marks` are the meters' counters when they were last looked at."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    battery: tuple[float, float, float | None] | None = None
    """The last battery reading: time, W, and Wh stored."""
    pending: float = 0.0
    """Wh that the battery has given since the meters were last read, for the home's balance."""
    ahead: float = 0.0
    """Wh that the battery has given by what subscribers have, but not yet by `battery`."""
    retained: Mapping[str, float] = field(default_factory=dict)
    """What subscribers have of an earlier run, by topic: for counters of which the store knows nothing."""

    def seed(self, totals: Mapping[str, float], marks: Mapping[str, float], retained: Mapping[str, float]) -> None:
        """What was published may be newer than what the store has: sums, and what they were made from."""
        self.retained = retained
        self.marks = {key: max(mark, marks.get(key, mark)) for key, mark in self.marks.items()}
        for name, total in totals.items():
            known = self.tallies.get(name)
            if known is not None and known.total < total:
                self.tallies[name] = replace(known, total=total)
                self.ahead += {"discharged": 1, "charged": -1}.get(name, 0) * (total - known.total)

    def change(self, key: str, value: float | None) -> float:
        """What a counter has grown by since it was last looked at; 0 the first time."""
        if value is None:
            return 0.0
        before = self.marks.get(key, value)
        self.marks[key] = value
        return value if value < RESET * before else value - before

    def count(self, name: str, change: float, now: float) -> None:
        self.tallies[name] = self.tallies.get(name, Tally(now)).add(change)

    def made(self, name: str) -> Tally | None:
        """A counter of ours. Where it takes the place of one of the gateway's, it goes on from there."""
        tally = self.tallies.get(name)
        if tally is None:
            return None
        if self.owners.get(name, OURS) != OURS:
            tally = self.tallies[name] = replace(tally, total=self.published.get(name, tally.total))
        self.owners[name], self.published[name] = OURS, tally.total
        return tally

    def passed_on(self, name: str, owner: str, value: float, topics: tuple[str, str]) -> float:
        """A counter of the gateway's as ours. Another owner is rebased: what is published goes on from there.

        `topics` are ours and the owner's: what is retained there tells the offset where the store does not.
        """
        offset, before = self.offsets.get(name, 0.0), self.published.get(name)
        if before is None or name not in self.owners:
            offset = self._earlier_offset(value, *topics)
        elif self.owners[name] != owner:
            offset = before - value
        elif value < RESET * (before - offset):
            offset = max(0.0, before) if offset > 0 else 0.0
        self.offsets[name], self.owners[name] = offset, owner
        self.published[name] = round(value + offset, 3)
        return self.published[name]

    def _earlier_offset(self, value: float, ours: str, theirs: str) -> float:
        """Between what was published as ours and as the gateway's; at least, nothing may fall."""
        shown = self.retained.get(ours)
        if shown is None:
            return 0.0
        offset = shown - self.retained.get(theirs, min(shown, value))
        return offset if abs(offset) > DEAD_BAND else 0.0

    def integrate(self, power: float, stored: float | None, now: float) -> None:
        """Battery energy from its power (+ discharge), or over a gap from what it holds."""
        last, self.battery = self.battery, (now, power, stored)
        if last is None:
            given = self.ahead
        elif 0 <= now - last[0] <= GAP:
            given = (last[1] + power) / 2 * (now - last[0]) / 3600
        else:
            given = last[2] - stored if last[2] is not None and stored is not None else 0.0
        given, self.ahead = given - self.ahead, 0.0
        self.count("discharged", max(0.0, given), now)
        self.count("charged", max(0.0, -given), now)
        self.pending += given

    def meters(
        self, plan: Plan, counters: Mapping[tuple[str, str], float], now: float, *, generating: bool = False
    ) -> None:
        """The changes of one answer of the meters: grid by netting, home by balance."""

        def change(role: str, name: str) -> float:
            return self.change(f"{role}/{name}", counters.get((f"meter/{role}", name)))

        solar, others = change(PRODUCTION, "energy_delivered"), change(THIRD_PARTY, "energy_delivered")
        if plan.third_party:
            solar += others
        battery = change(STORAGE, "energy_delivered") - change(STORAGE, "energy_received")
        if STORAGE not in plan.meters:
            battery, self.pending = self.pending, 0.0
        taken, given = change(NET, "energy_delivered"), change(NET, "energy_received")
        net = taken - given
        total = change(TOTAL, "energy_delivered") - change(TOTAL, "energy_received")
        if NET not in plan.meters:
            net = total - solar - battery
        if plan.counts_grid:
            if generating:
                self.count("generator", max(0.0, net), now)
                self._leave_out(imported=taken, exported=given)
            from_grid = 0.0 if generating else net
            self.count("imported", max(0.0, from_grid), now)
            self.count("exported", max(0.0, -from_grid), now)
        if plan.counts_home:
            self.count("home", solar + net + battery if NET in plan.meters else total, now)

    def _leave_out(self, **changes: float) -> None:
        """While a generator stands in for the grid, what the grid's meter counts is the generator's."""
        for name, change in changes.items():
            if name in self.offsets:
                self.offsets[name] -= change

    def dump(self) -> dict[str, Any]:
        """For the store."""
        tallies = {name: [t.since, t.total, t.carry] for name, t in self.tallies.items()}
        kept = {"tallies": tallies, "marks": self.marks, "offsets": self.offsets, "owners": self.owners}
        return {**kept, "published": self.published, "battery": self.battery and list(self.battery)}

    @classmethod
    def load(cls, kept: object) -> "Energies":
        """What the store has; nothing where it is damaged."""
        if not isinstance(kept, dict):
            return cls()
        try:
            battery = kept.get("battery")
            return cls(
                {str(name): Tally(*map(float, values)) for name, values in kept.get("tallies", {}).items()},
                {str(name): float(value) for name, value in kept.get("marks", {}).items()},
                {str(name): float(value) for name, value in kept.get("offsets", {}).items()},
                {str(name): str(value) for name, value in kept.get("owners", {}).items()},
                {str(name): float(value) for name, value in kept.get("published", {}).items()},
                (float(battery[0]), float(battery[1]), battery[2]) if battery else None,
            )
        except (TypeError, ValueError, AttributeError, IndexError):
            return cls()
