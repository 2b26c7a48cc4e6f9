"""Whether the production meter measures solar: its clamp may be on no wire, or reversed, as in public reports.

What the meter counts is compared with what the microinverters report. The meter is trusted until three comparisons
in a row speak against it, and again after three that agree. There are none at night, or while the sun is low.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bridge.endpoints.production import ENERGY_PCU, ENERGY_PRODUCTION
from bridge.model import HOUR_S, Facts, Reading, SourceName
from bridge.site.selection import (
    DELIVERED,
    MAX_ANSWER_STEP_S,
    METERS,
    NET,
    PRODUCTION,
    RECEIVED,
    GuardedAnswer,
    Values,
)
from bridge.site.totals import Totals
from bridge.state import State

ROUND_MIN_S, ROUND_MAX_S = 900.0, 7_200.0
"""Shortest and longest time over which the meter is compared with the microinverters."""
ROUNDS, FIRST_ROUNDS = 3, 2
"""Comparisons with one result that decide; fewer for a meter that was suspected from the start."""
SUN_MIN_W, SUN_MIN_SHARE = 100.0, 0.1
"""A comparison needs microinverters that make this much, and this share of the sum of their highest powers."""
BLIND_SHARE, AGREE_SHARE, BATTERY_SHARE = 0.1, 0.5, 0.2
"""Shares of what the microinverters made. A meter that shows less than the first one does not measure them. It
agrees if it differs by no more than the second one. If what a battery has taken leaves less than the third one of a
difference, the battery explains it."""
NEW_SHARE, NEW_MIN_WH = 0.01, 100_000.0
"""A meter is suspected at the start where it has counted less than this share of the microinverters' sum."""
SILENT_S, RECOVERED_S = 900.0, 3_600.0
"""A source is replaced when it has had no good value for the first time, and used again when all its values have
been good for the second one."""
NIGHT_W = 50.0
"""A home exports less than this while nothing is produced or discharged."""
SILENT_MIN_WH = 10.0
"""Energy that the microinverters must have made while the source was silent, for it to be replaced."""

Verdict = Literal["agrees", "differs", "blind", "reversed", "battery"]


class TrustState(State):
    """What is kept of whether the source of solar power is trusted.

    `rounds` counts comparisons in a row with the result `result`; `began` are the counters when the first of them
    began. `suspected` is whether the meter is doubtful from the start; `None` before anything is known. `silent` is
    whether the source has given no good value for long, `battery` whether the meter measures a battery, too.
    """

    result: Verdict | None = None
    rounds: int = 0
    began: Totals | None = None
    distrusted: bool = False
    suspected: bool | None = None
    silent: bool = False
    battery: bool = False
    problem: str = ""

    @property
    def is_distrusted(self) -> bool:
        """Whether the sum of the microinverters takes the place of the source."""
        return self.distrusted or self.silent or bool(self.suspected)

    @property
    def is_doubtful(self) -> bool:
        """Whether the newest comparison speaks against the source."""
        return self.result in ("blind", "reversed", "differs")


@dataclass(frozen=True, slots=True)
class _Round:
    """The meter's counters (Wh) and power (W) when a comparison began.

    `charged` is what the battery has taken less what it has given, in Wh.
    """

    began: Totals
    delivered: float
    received: float
    power: float
    charged: float | None


@dataclass(frozen=True, slots=True)
class _Unit:
    """A microinverter's last report: its unix time, and the power and the highest power so far (W)."""

    at: float
    power: float
    highest: float


class SolarTrust:
    """Decides whether solar comes from its own source, or from the sum of the microinverters instead."""

    def __init__(self, state: TrustState) -> None:
        self.state = state
        """What must outlive the process."""
        self._units: dict[str, _Unit] = {}
        self._round: _Round | None = None
        self._earlier: Totals | None = None
        """The counters when the comparison before the newest one began."""
        self._good = _GoodValues()
        self._told: dict[tuple[str, str], float] = {}
        """The gateway's values of its counters, also of those that are held."""

    @property
    def began(self) -> Totals | None:
        """The counters before the source began to be wrong; `None` if it was wrong from the start."""
        return self.state.began if self.state.distrusted else self._good.last if self.state.silent else None

    @property
    def problem(self) -> str | None:
        """What the owner should do about the meter; `None` where all is well."""
        return self.state.problem or None

    def observe(
        self,
        answer: GuardedAnswer,
        latest: Values,
        totals: Totals | None,
        charged: float | None,
        *,
        is_closed: bool | None,
    ) -> None:
        """Take note of an answer.

        Args:
            answer: the answer.
            latest: the newest values of all sources.
            totals: the counters as they are now; `None` while the microinverters' sum is unknown.
            charged: Wh that the battery has taken, less what it has given; `None` if unknown.
            is_closed: whether the site is connected to the grid; `None` if unknown. Without the grid the
                microinverters may have to make less than they could.
        """
        if self.state.suspected is None:
            self._told |= {**answer.values, **answer.held}
            if _has_meter(answer.facts):
                self.state = self.state.changed(suspected=_has_counted_nothing(self._told))
        if answer.facts.meters is None or totals is None:
            return
        silent = self._good.is_silent(answer, totals, was_silent=self.state.silent)
        if silent != self.state.silent:
            self.state = self.state.changed(silent=silent)
        meter = _meter(latest) if _has_meter(answer.facts) else None
        if meter is None:
            self._round = None
            return
        if answer.source == SourceName.INVERTERS:
            self._units |= _units(answer)
            self._compare(_Round(totals, *meter, charged), answer.facts.clock_offset, is_closed=is_closed)

    # Comparisons of the meter with the microinverters

    def _compare(self, now: _Round, clock_offset: float, *, is_closed: bool | None) -> None:
        before = self._round
        if before is None or not before.began.at <= now.began.at <= before.began.at + ROUND_MAX_S:
            self._round = now
            return
        if now.began.at - before.began.at < ROUND_MIN_S:
            return
        made = now.began.pcu - before.began.pcu
        fresh = [unit for unit in self._units.values() if unit.at > before.began.at + clock_offset]
        power, highest = sum(unit.power for unit in fresh), sum(unit.highest for unit in self._units.values())
        reported = power * (now.began.at - before.began.at) / HOUR_S
        if not _is_bright(power, highest) or is_closed is False:
            self._round = now
        elif 2 * len(fresh) >= len(self._units) and abs(made - reported) <= AGREE_SHARE * reported:
            self._round = now
            self._judge(before, now, made, power)

    def _judge(self, before: _Round, now: _Round, made: float, power: float) -> None:
        """Compare what the meter has counted with what the microinverters made (Wh); `power` is theirs (W)."""
        shown = now.delivered - before.delivered - (now.received - before.received)
        charged = None if now.charged is None or before.charged is None else now.charged - before.charged
        is_explained = abs(shown + (charged or 0.0) - made) <= BATTERY_SHARE * made < made - shown
        if is_explained:
            result: Verdict = "battery"
        elif shown >= BLIND_SHARE * made or now.power >= BLIND_SHARE * power:  # a counter may only stand still
            result = "agrees" if abs(shown - made) <= AGREE_SHARE * made else "differs"
        else:
            result = "reversed" if shown < -AGREE_SHARE * made else "blind"
        if result == "agrees" and self.state.battery and abs(charged or 0.0) < BATTERY_SHARE * made:
            return  # the battery is idle, so this says nothing of it
        is_same = result == self.state.result
        rounds = self.state.rounds + 1 if is_same else 1
        began = self.state.began if is_same else self._began(before)
        self._earlier = before.began
        self.state = self.state.changed(result=result, rounds=rounds, began=began)
        if rounds >= (FIRST_ROUNDS if self.state.suspected else ROUNDS):
            self._decide(result, shown, made)

    def _began(self, before: _Round) -> Totals:
        """The counters when a new result began: a clamp may have failed in the middle of the comparison before."""
        is_usual = self.state.result == "differs" and self.state.rounds > 1
        return before.began if is_usual or self._earlier is None else self._earlier

    def _decide(self, result: Verdict, shown: float, made: float) -> None:
        if result in ("blind", "reversed"):
            problem = self.state.problem or _clamp_problem(result, shown, made)
            self.state = self.state.changed(distrusted=True, suspected=False, problem=problem)
        elif result == "battery":
            self.state = self.state.changed(suspected=False, battery=True, problem=BATTERY_BEHIND_CLAMP)
        elif result == "agrees":
            self.state = self.state.changed(distrusted=False, suspected=False, battery=False, problem="")
        else:
            self.state = self.state.changed(suspected=False)


BATTERY_BEHIND_CLAMP = (
    "the clamp of the production meter also measures a battery: what that takes and gives is missing from solar; "
    "move the clamp to the wire that carries the microinverters alone"
)


def _clamp_problem(result: Verdict, shown: float, made: float) -> str:
    measured = f"the production meter counts {shown:.0f} Wh while the microinverters report {made:.0f} Wh"
    if result == "reversed":
        return f"{measured}: its clamp is reversed; turn it round. Until then solar is the microinverters' sum"
    return (
        f"{measured}: its clamp is not on the wire of the microinverters; clamp it there, or disable the meter. "
        "Until then solar is the microinverters' sum"
    )


class _GoodValues:
    """When the source of solar power last had a good value: a power that is not 0, or a counter that moved."""

    def __init__(self) -> None:
        self._own: tuple[str, str, str] | None = None
        self.last: Totals | None = None
        """The counters at the last good value."""
        self._time, self._at, self._last_time = 0.0, -math.inf, 0.0
        """Seconds in which the source or the microinverters' sum answered, the unix time of the last such answer,
        and those seconds at the last good value. So neither an outage, in which `/info` may still answer, nor a
        clock that is set makes a source silent."""
        self._since: float | None = None
        self._counter: float | None = None

    def is_silent(self, answer: GuardedAnswer, now: Totals, *, was_silent: bool) -> bool:
        """Whether the source is silent: it gives nothing while the microinverters work.

        A silent source stays silent until its values have been good for `RECOVERED_S`.
        """
        own = _own_source(answer.facts)
        if answer.source in (SourceName.ENERGY, own[0] if own else None):
            self._time += min(max(0.0, now.at - self._at), MAX_ANSWER_STEP_S)
            self._at = now.at
        before, self._own = self._own or own, own
        if own is None or own != before:
            self.last, self._since, self._counter = None, None, None
            return False
        source, device, counter = own
        if answer.source == source:
            values = answer.values
            self._observe(values.get((device, "power")), values.get((device, counter)), now)
        elif answer.source == SourceName.ENERGY and not was_silent:
            is_bright = answer.values.get((ENERGY_PCU, "power"), 0.0) >= SUN_MIN_W
            is_silent = is_bright and self._is_missing(now)
            self._since = None if is_silent else self._since
            return is_silent
        return was_silent and not self._is_lasting

    def _observe(self, power: float | None, counter: float | None, now: Totals) -> None:
        """Take note of an answer: its power (W) and its counter (Wh), `None` where it has none."""
        is_good = bool(power) or (counter is not None and self._counter is not None and counter > self._counter)
        self._counter = counter
        if not is_good:
            self._since = None
            return
        is_new = self._since is None or self.last is None or self._time - self._last_time > SILENT_S
        self._since = self._time if is_new else self._since
        self.last, self._last_time = now, self._time

    def _is_missing(self, now: Totals) -> bool:
        """Whether there was no good value for `SILENT_S`, although the microinverters produce."""
        if self.last is None:
            self.last, self._last_time = now, self._time
        return self._time - self._last_time >= SILENT_S and now.pcu - self.last.pcu >= SILENT_MIN_WH

    @property
    def _is_lasting(self) -> bool:
        """Whether all values have been good for `RECOVERED_S`."""
        return self._since is not None and self._time - self._since >= RECOVERED_S


def _is_bright(power: float, highest: float) -> bool:
    """Whether microinverters make enough to compare a meter with: their power, and the sum of their highest (W)."""
    return power >= max(SUN_MIN_W, SUN_MIN_SHARE * highest)


def _has_counted_nothing(told: Values) -> bool | None:
    """Whether a meter has counted nearly nothing beside the microinverters; `None` while that is unknown."""
    counted, pcu = map(told.get, ((METERS[PRODUCTION], DELIVERED), (ENERGY_PCU, "energy_lifetime")))
    if counted is None or pcu is None:
        return None
    return pcu > NEW_MIN_WH and counted < NEW_SHARE * pcu


def _own_source(facts: Facts) -> tuple[str, str, str] | None:
    """The source of solar power, and its device and counter; `None` if it is the microinverters' sum."""
    if _has_meter(facts):
        return SourceName.READINGS, METERS[PRODUCTION], DELIVERED
    return None if facts.meters else (SourceName.PRODUCTION, ENERGY_PRODUCTION, "energy_lifetime")


def _has_meter(facts: Facts) -> bool:
    return any(meter.enabled and meter.role == PRODUCTION for meter in facts.meters or ())


def _meter(latest: Values) -> tuple[float, float, float] | None:
    """What the production meter has delivered and received (Wh), and its power (W)."""
    delivered, *others = (latest.get((METERS[PRODUCTION], name)) for name in (DELIVERED, RECEIVED, "power"))
    received, power = (value or 0.0 for value in others)
    return None if delivered is None else (delivered, received, power)


def _units(answer: GuardedAnswer) -> dict[str, _Unit]:
    """The microinverters of an answer that have reported."""
    reports = {
        r.device: r.value.timestamp()
        for r in answer.readings
        if r.name == "last_report" and r.phase is None and isinstance(r.value, datetime)
    }
    values = answer.values
    return {
        device: _Unit(at, max(0.0, values.get((device, "power"), 0.0)), values.get((device, "max_power"), 0.0))
        for device, at in reports.items()
    }


def doubts(facts: Facts, readings: Iterable[Reading]) -> Iterator[str]:
    """What one answer of each source says against the clamps; the meters' history decides in `SolarTrust`.

    `readings` are those of all sources. A battery may export at night, so nothing is said of a home that has one.
    """
    values = {(r.device, r.name): r.value for r in readings if r.phase is None}

    def number(device: str, name: str) -> float:
        value = values.get((device, name))
        return float(value) if isinstance(value, int | float) else 0.0

    reporting = [device for (device, name), value in values.items() if name == "reporting" and value is True]
    made = sum(max(0.0, number(device, "power")) for device in reporting)
    # Reports are up to a quarter of an hour old, so at dusk they show more than the meter.
    is_bright = _is_bright(made, sum(number(device, "max_power") for device in reporting))
    shown, counted = (number(METERS[PRODUCTION], name) for name in ("power", DELIVERED))
    summed, exported = number(ENERGY_PCU, "energy_lifetime"), -number(METERS[NET], "power")
    passed = number(METERS[NET], DELIVERED) + number(METERS[NET], RECEIVED)
    is_told = (ENERGY_PCU, "power") in values or any(name == "reporting" for _, name in values)
    if _has_meter(facts) and is_bright and shown < BLIND_SHARE * made:
        where = "is reversed" if shown < -BLIND_SHARE * made else "is not on the wire of the microinverters"
        yield f"the production meter shows {shown:.0f} W, the microinverters report {made:.0f} W: its clamp {where}"
    elif _has_meter(facts) and summed > NEW_MIN_WH and counted < NEW_SHARE * summed:
        energies = f"{counted / 1000:.0f} kWh, the microinverters {summed / 1000:.0f} kWh"
        yield f"the production meter has counted {energies}: it is new, or its clamp is not on their wire"
    is_dark = is_told and max(made, number(ENERGY_PCU, "power"), shown) < NIGHT_W
    if is_dark and exported > NIGHT_W and not facts.has("battery", "acb"):
        yield f"the grid meter exports {exported:.0f} W while nothing is produced: its clamp may be reversed"
    if (METERS[NET], "power") in values and summed > NEW_MIN_WH and passed < NEW_SHARE * summed:
        energies = f"{passed / 1000:.0f} kWh in both directions, the microinverters {summed / 1000:.0f} kWh"
        yield f"the grid meter has counted {energies}: it is new, or its clamp is not on the mains"
