"""Compares what the bridge publishes with what has really flowed.

Each complaint is a sentence with figures; the time in it is the hour since the first midnight. What nobody can know
is a range: where a meter counts each phase for itself, the import between two answers lies between what all phases
together have taken and what was netted at each instant (in a gap, what each phase has taken); and what has gone
into a battery during a gap, between the change of what it holds and all that went through it.
"""

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field, replace

from house.gateway import LIVE, POWER, READINGS
from house.kinds import INTEGRATED, Counter, counters
from house.model import HOUR_S, TRUTHS, Truth, clear_sky
from house.statistics import Statistics
from house.world import PREFIX, World

SOLAR = "solar/energy_lifetime"
FLOWS = ("solar", "grid", "battery", "generator", "home")
ROUNDING_W = 0.0011
"""Powers have three decimals; the sum of several may differ in the last one."""
LARGEST_LOAD_W = 5_000.0
FLOOR_WH = 15.0
PHANTOM_WH = 250.0
"""By how much a sum may be ahead of the truth for a while, beside its tolerance."""
FROZEN_WH = 1_000.0
"""By how much a sum may be behind the truth without a word."""
OWED_HOURS = 48
"""Of what was published too late, so many hours may be caught up in one."""
LEVEL_WH, LEVEL_SHARE = 1_500.0, 0.01
"""By how much the first solar energy may differ from the gateway's own counter."""
TODAY_WH, TODAY_SHARE = 200.0, 0.01
SHARED_BY_SUN, SHARED_BY_HOURS = 0.5, 0.15
"""By how much a day's share of a gap that spans midnight may differ: the weather of the gap is unknown."""
LOOK_S = 0.3
"""Time from the first document of an answer until all of them are there."""
PAST_HOUR_S = 240.0
"""Sums are compared so long after each hour, when what the inverters reported at the hour has been asked for."""
POWER_SHARE, POWER_W, POWER_AGE_S = 0.02, 30.0, 65.0
NEGATIVE_W = -50.0
"""Below this a home that is calculated looks like a wrong reading of the battery, which is held for two answers."""
LOSSES = 0.12
"""Share of what goes through a battery that may be lost in it."""
GAP_PERIODS = 3.2
BATTERY_GAP_S, BATTERY_GAP_PERIODS = 60.0, 2.5


@dataclass(slots=True)
class Sum:
    """One counter: what was made of it, and the range in which the truth lies since its first value."""

    counter: Counter
    statistics: Statistics = field(default_factory=Statistics)
    low: float = 0.0
    high: float = 0.0
    is_excused: bool = False
    """Whether nobody can count this now. What is published meanwhile must not fall, but is not compared."""
    total: float = 0.0
    """The energy that was published, without what was excused."""
    hours: deque[tuple[float, float]] = field(default_factory=lambda: deque([(0.0, 0.0)], maxlen=OWED_HOURS))
    """What was published and what can have flowed until the last hours in which something was published."""

    def phantom(self, period: float, pending: float) -> float:
        """By how many Wh the hour since the last call shows more than has flowed, or was still owed from before.

        What has flowed in the time without a value before belongs to the hour of the next value.
        """
        (total, high), (first_total, first_high) = self.hours[-1], self.hours[0]
        if self.total == total:
            return 0.0
        owed = max(0.0, high - first_high - (total - first_total))
        flowed, shown = self.high + pending - high, self.total - total
        self.hours.append((self.total, self.high))
        return shown - flowed * (1 + self.counter.tolerance) - owed - self.slack(period)

    def slack(self, period: float) -> float:
        return FLOOR_WH + 2 * LARGEST_LOAD_W * period / HOUR_S

    def ahead(self, period: float) -> float:
        """By how many Wh more was published than possible."""
        return self.total - self.high * (1 + self.counter.tolerance) - self.slack(period)

    def behind(self, period: float) -> float:
        """By how many Wh less was published than there must be."""
        return self.low * (1 - self.counter.tolerance) - self.slack(period) - self.total


@dataclass(slots=True)
class Gap:
    """By how much energy_today may differ from the truth because a gap that spans midnight had to be shared."""

    low: float = 0.0
    high: float = 0.0


class Judge:
    """Watches a world. `period` is the time between two readings; `reset_allowed` that counters may begin anew.

    `handover_wh` is what solar may lose or gain where another source takes over and back. `tolerance` replaces the
    tolerances of the counters. With `integrates` the batteries' energy comes from their power for a while.
    """

    def __init__(
        self,
        world: World,
        period: float,
        *,
        reset_allowed: bool = False,
        handover_wh: float = 0.0,
        tolerance: float | None = None,
        integrates: bool = False,
    ) -> None:
        self.world, self.period = world, period
        self.complaints: list[str] = []
        found = counters(world.house.kind)
        if integrates:
            found = [replace(c, tolerance=INTEGRATED) if c.flow == "battery" else c for c in found]
        if tolerance is not None:
            found = [replace(counter, tolerance=tolerance) for counter in found]
        self.sums = {counter.topic: Sum(counter) for counter in found}
        self._behind: dict[str, list[Sum]] = {name: [] for name in TRUTHS}
        for made in self.sums.values():
            self._behind[made.counter.truth].append(made)
        self.reset_allowed, self.handover_wh = reset_allowed, handover_wh
        self.problem_expected = world.house.kind.foreign_w > 0
        """Whether `gateway/problem` has to say something: of a clamp, or of a producer that no meter sees."""
        self._problems: set[str] = set()
        self.is_misled = False
        """Whether the bridge has to take the meters for disabled, because the gateway has said so."""
        self._is_netted = world.house.kind.phases > 1 or world.house.kind.total_ct
        self._by_value = False
        self._seen = world.house.truth.copy()
        self._grid_seen, self._grid_at = world.house.truth.copy(), world.now()
        self._battery_seen, self._battery_at = world.house.truth.copy(), world.now()
        self._look: asyncio.TimerHandle | None = None
        self._powers: deque[tuple[float, dict[str, float]]] = deque()
        self._wrong_since: dict[str, float] = {}
        self._gap_from: tuple[float, Truth] | None = None
        self._gap_day = 0.0
        self._today: dict[str, Gap] = {}
        world.listeners.append(self._heard)
        world.gateway.listeners.append(self._answered)
        self._task = asyncio.create_task(self._watch())

    def excuse(self, *topics: str) -> None:
        """Compare these counters no more (those whose topic begins so)."""
        self._advance()
        for topic, found in self.sums.items():
            if topic.startswith(topics):
                found.is_excused = True

    def resume(self) -> None:
        """Compare all counters again, from now on."""
        self._advance()
        for found in self.sums.values():
            found.is_excused = False

    # Truth

    def _answered(self, path: str) -> None:
        now, gateway = self.world.now(), self.world.gateway
        self._advance()
        of_grid = ("total-consumption", "production") if self.world.house.kind.total_ct else ("net-consumption",)
        if path == READINGS and all(map(gateway.reads_well, of_grid)) and not self.is_misled:
            self._look_at_grid(now)
        if (path == LIVE and gateway.live_is_fresh) or path == POWER:
            self._look_at_battery(now)
        if path in (READINGS, LIVE, POWER):
            self._remember_powers(now)

    def _advance(self) -> None:
        """Add what has flowed since the last look to what every meter counts by itself."""
        house = self.world.house
        house.advance(self.world.now())
        change, self._seen = house.truth.since(self._seen), house.truth.copy()
        exact = ["solar", "pcu", "home", "generator"]
        if not self._is_netted:
            exact += ["imported", "exported"]
        if house.kind.storage_ct:
            exact += ["charged", "discharged"]
        for name in exact:
            self._add(name, getattr(change, name), getattr(change, name))

    def _add(self, name: str, low: float, high: float) -> None:
        for found in self._behind[name]:
            if found.statistics.last is not None and not found.is_excused:
                found.low += low
                found.high += high

    def _look_at_grid(self, now: float) -> None:
        truth = self.world.house.truth
        change, is_gap = truth.since(self._grid_seen), now - self._grid_at > GAP_PERIODS * self.period
        self._grid_seen, self._grid_at = truth.copy(), now
        if not self._is_netted:
            return
        net = change.imported - change.exported
        imported = change.phases_imported if is_gap else change.imported
        exported = change.phases_exported if is_gap else change.exported
        if is_gap and self.world.house.kind.total_ct:  # only the net is known: both are what is usual then
            imported, exported = imported * (1 + SHARED_BY_HOURS), exported * (1 + SHARED_BY_HOURS)
        self._add("imported", max(0.0, net), imported)
        self._add("exported", max(0.0, -net), exported)

    def _look_at_battery(self, now: float) -> None:
        kind, truth = self.world.house.kind, self.world.house.truth
        gap_s = max(BATTERY_GAP_S, BATTERY_GAP_PERIODS * self.period)
        change, is_gap = truth.since(self._battery_seen), now - self._battery_at > gap_s
        self._battery_seen, self._battery_at = truth.copy(), now
        if kind.storage_ct:
            return
        net, losses = change.discharged - change.charged, LOSSES * change.charged
        if is_gap:
            self._add("discharged", max(0.0, net - losses), change.discharged + losses)
            self._add("charged", max(0.0, -net - losses), change.charged + losses)
            self._add("home", -losses, losses)
        else:
            self._add("discharged", change.discharged, change.discharged)
            self._add("charged", change.charged, change.charged)

    # What is published

    def _heard(self, topic: str, payload: bytes) -> None:
        if topic == PREFIX + "gateway" and payload:
            self._hear_problem(str(json.loads(payload).get("problem") or "none"))
        if not topic.startswith(PREFIX + "site/") or not payload:
            return
        name = topic.removeprefix(PREFIX + "site/")
        if name in FLOWS:
            self._document(name, json.loads(payload))
        elif name in self.sums:
            self._by_value = True
            self._take(name, None if payload == b"None" else float(payload))

    def _hear_problem(self, problem: str) -> None:
        if problem != "none" and problem not in self._problems:
            self._problems.add(problem)
            if not self.problem_expected and self.world.is_calm:
                self._complain(f"problem without reason: {problem}")

    def _document(self, flow: str, document: dict[str, object]) -> None:
        if not self._by_value:
            for name, value in document.items():
                if f"{flow}/{name}" in self.sums and not isinstance(value, str):
                    self._take(f"{flow}/{name}", value)  # type: ignore[arg-type]
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._balance)

    def _take(self, topic: str, value: float | None) -> None:
        if value is None:
            return
        self._advance()
        found = self.sums[topic]
        last = found.statistics.last
        if last is not None and value < last - 0.0005 and not self.reset_allowed:
            self._complain(f"{topic} falls by {last - value:.0f} Wh")
        if last is None and topic == SOLAR:
            shown = self.world.gateway.solar_wh
            if abs(value - shown) > LEVEL_WH + LEVEL_SHARE * shown:
                self._complain(f"{topic} begins at {value:.0f} Wh, the gateway shows {shown:.0f} Wh")
        change = found.statistics.take(value, self.world.now())
        if not found.is_excused:
            found.total += change

    def _balance(self) -> None:
        """Check that the powers of one moment add up, and that they are true."""
        self._look = None
        powers = {flow: self.world.document(f"site/{flow}").get("power") for flow in FLOWS}
        known = {flow: power for flow, power in powers.items() if isinstance(power, int | float)}
        if "home" in known:
            rest = sum(power for flow, power in known.items() if flow != "home")
            if abs(rest - known["home"]) > ROUNDING_W:
                self._complain(f"powers do not add up by {rest - known['home']:.1f} W")
        if self.world.is_calm and self.world.value("availability/site") == "online":
            self._check_powers(known)

    def _remember_powers(self, now: float) -> None:
        house, flows = self.world.house, self.world.house.powers
        solar, third = sum(flows.solar), sum(channel.power for channel in house.third_party)
        grid, battery, generator = sum(flows.grid), sum(flows.battery), sum(flows.generator)
        if not self.world.gateway.reads_well("production"):
            solar = house.reported_w * house.kind.inverters
        solar = max(0.0, solar) + (third if house.kind.third_party_w else 0.0)
        true = {"solar": solar, "grid": grid, "battery": battery, "generator": generator}
        self._powers.append((now, {**true, "home": solar + grid + battery + generator}))
        while self._powers[0][0] < now - max(POWER_AGE_S, 3 * self.period):
            self._powers.popleft()

    def _check_powers(self, known: dict[str, int | float]) -> None:
        """Complain of a power that has not been true at any moment of the last minute, for a minute long."""
        now = self.world.now()
        is_held = any(found["home"] < NEGATIVE_W for _, found in self._powers)
        for flow, power in known.items():
            true = [found[flow] for _, found in self._powers]
            is_right = (
                not true
                or (is_held and flow in ("home", "battery"))
                or any(abs(power - value) <= POWER_W + POWER_SHARE * abs(value) for value in true)
            )
            if is_right:
                self._wrong_since.pop(flow, None)
            elif now - self._wrong_since.setdefault(flow, now) > POWER_AGE_S:
                self._wrong_since[flow] = float("inf")
                self._complain(f"{flow} power is {power:.0f} W for a minute, true is {true[-1]:.0f} W")

    # Each hour

    async def _watch(self) -> None:
        """Compare each hour, and energy_today shortly before midnight."""
        world = self.world
        while True:
            await asyncio.sleep(HOUR_S - (world.now() - PAST_HOUR_S) % HOUR_S)
            self._compare()
            if world.house.midnight - world.now() < HOUR_S:
                await asyncio.sleep(world.house.midnight - world.now() - 300)
                if world.is_calm:
                    self.check_today()

    def _compare(self) -> None:
        self._advance()
        for topic, found in self.sums.items():
            if found.statistics.last is None or found.is_excused:
                continue
            slack, pending = PHANTOM_WH + self._handover(topic), self._pending(found)
            if (ahead := found.ahead(self.period) - slack - pending) > 0:
                self._complain(f"{topic} is {ahead:.0f} Wh ahead")
            if (phantom := found.phantom(self.period, pending) - slack) > 0:
                self._complain(f"{topic} shows {phantom:.0f} Wh in an hour that have not flowed")
            is_silent = self.world.is_calm and not self.world.document("gateway").get("counters_held")
            if is_silent and found.behind(self.period) > FROZEN_WH + self._handover(topic):
                self._complain(f"{topic} is {found.behind(self.period):.0f} Wh behind")

    def _pending(self, found: Sum) -> float:
        """Return what has flowed at most since the last look at the grid, where the phases are netted."""
        name = f"phases_{found.counter.truth}"
        if not self._is_netted or name not in TRUTHS:
            return 0.0
        flowed: float = getattr(self.world.house.truth.since(self._grid_seen), name)
        return flowed

    def _handover(self, topic: str) -> float:
        return self.handover_wh if topic.startswith("solar") else 0.0

    def begin_gap(self) -> None:
        """Something is not counted from now on."""
        self._advance()
        self._gap_from = (self.world.now(), self.world.house.truth.copy())

    def end_gap(self, *flows: str) -> None:
        """These flows (all, if none is named) are counted again.

        What flowed in a gap that spans midnight is shared by hours, solar by those with sun.
        """
        self._advance()
        house, now = self.world.house, self.world.now()
        assert self._gap_from is not None
        (begin, before), self._gap_from = self._gap_from, None
        midnight = house.day_began
        if begin >= midnight:
            return
        self._gap_day = midnight
        change, rest = house.truth.since(before), house.truth.since(house.today)
        sun = _sun(midnight, now) / max(1e-9, _sun(begin, now))
        hours = (now - midnight) / (now - begin)
        self._today = {
            name: _share(getattr(change, name), getattr(rest, name), share, spread)
            for name, share, spread in (
                ("solar", sun, SHARED_BY_SUN),
                ("pcu", sun, SHARED_BY_SUN),
                ("home", hours, SHARED_BY_HOURS),
            )
            if not flows or name in flows
        }

    def check_today(self) -> None:
        """Compare energy_today of solar and home with the truth since local midnight."""
        self._advance()
        house = self.world.house
        is_first_day = house.day_began <= self.world.start
        for flow in ("solar", "home"):
            found = self.sums.get(f"{flow}/energy_lifetime")
            value = self.world.document(f"site/{flow}").get("energy_today")
            may_be_unknown = self.reset_allowed or (is_first_day and not self._is_counted_by_gateway(flow))
            if found is None or found.is_excused or (value is None and may_be_unknown):
                continue
            name = found.counter.truth
            true, gap = getattr(house.truth.since(house.today), name), Gap()
            if house.day_began == self._gap_day:
                gap = self._today.get(name, gap)
            slack = TODAY_WH + TODAY_SHARE * true + found.slack(self.period) + self._handover(f"{flow}/")
            if value is None:
                self._complain(f"{flow} energy_today is None, true is {true:.0f} Wh")
            elif not true + gap.low - slack <= value <= true + gap.high + slack:
                self._complain(f"{flow} energy_today is {value:.0f} Wh, true is {true:.0f} Wh")

    def _is_counted_by_gateway(self, flow: str) -> bool:
        """Whether the gateway itself counts a flow of today, so that the first day is known, too."""
        return flow == "solar" and not self.world.house.kind.third_party_w

    def finish(self) -> list[str]:
        """Compare everything for the last time and return all complaints."""
        self._task.cancel()
        self._advance()
        self.check_today()
        for topic, found in self.sums.items():
            if found.statistics.last is None:
                if getattr(self.world.house.truth, found.counter.truth) > FLOOR_WH:
                    self._complain(f"{topic} has no value")
            elif found.ahead(self.period) > self._handover(topic) or found.behind(self.period) > self._handover(
                topic
            ):
                self._complain(f"{topic} counted {found.total:.0f} Wh, true is {_range(found)} Wh")
        self._check_net()
        if self.problem_expected and not self._problems:
            self._complain("problem says nothing")
        return self.complaints

    def _check_net(self) -> None:
        """Import minus export is always exact."""
        grid = [self.sums.get(f"grid/energy_{name}") for name in ("imported", "exported")]
        if any(found is None or found.is_excused or found.statistics.last is None for found in grid):
            return
        imported, exported = (found for found in grid if found is not None)
        difference = imported.total - exported.total - (imported.low - exported.low)
        if abs(difference) > 2 * imported.slack(self.period):
            self._complain(f"import minus export is wrong by {difference:.0f} Wh")

    def _complain(self, text: str) -> None:
        hour = (self.world.now() - self.world.start) / HOUR_S
        if not any(text.split(" ")[:2] == known.split(" ")[1:3] for known in self.complaints[-20:]):
            self.complaints.append(f"{hour:.2f}h: {text}")


def _sun(begin: float, end: float) -> float:
    return sum(clear_sky(begin + step) for step in range(0, round(end - begin), 600))


def _share(gap: float, today: float, share: float, spread: float) -> Gap:
    """Return by how much energy_today may differ from what flowed today, if `share` of the gap is today's."""
    expected = gap * share
    return Gap(max(0.0, expected * (1 - spread)) - today, min(gap, expected * (1 + spread)) - today)


def _range(found: Sum) -> str:
    if found.high - found.low < 1:
        return f"{found.low:.0f}"
    return f"{found.low:.0f} to {found.high:.0f}"
