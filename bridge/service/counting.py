"""What of one gateway is counted: lifetime counters that are guarded, and the site's flows made from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from typing import Any

from bridge.counters import Event, Ledger, usual_cap
from bridge.endpoints import Parsed
from bridge.model import Facts, Reading
from bridge.quirks import repaired
from bridge.service.roll import MOST_GONE, Roll
from bridge.service.units import Units
from bridge.site import Answer, Site


@dataclass(frozen=True, slots=True)
class Counted:
    """An answer's readings as they may be published, what the site learns from them, and what a log should say."""

    readings: Sequence[Reading]
    answer: Answer
    events: Sequence[Event]
    held: int


class Counting:
    """Everything with a memory between bytes and topics.

    `zone` is where the days begin; `None`: this machine's. `netted` and `third_party` are the site's. `devices` are
    those that an earlier run has published.
    """

    def __init__(
        self,
        *,
        netted: bool,
        zone: tzinfo | None,
        kept: Mapping[str, Any],
        third_party: bool = False,
        devices: Iterable[str] = (),
    ) -> None:
        self._zone = zone
        self._ledger = Ledger.load(kept.get("counters"))
        self._ledger.forget(published := frozenset(devices), MOST_GONE)
        self._roll = Roll(published | self._ledger.devices)
        self.site = Site(netted=netted, third_party=third_party, kept=kept.get("site"))
        self._units = Units(kept.get("days"), self._roll)
        self._flows: Sequence[Reading] = ()

    def dump(self) -> dict[str, Any]:
        """For the store."""
        return {"counters": self._ledger.dump(), "site": self.site.dump(), "days": self._units.dump()}

    def seed(self, values: Mapping[str, float]) -> None:
        """What subscribers have of counters from an earlier run, by topic below the gateway."""
        for key, value in values.items():
            self._ledger.seed(key, value)
        self.site.seed(values)

    def count(self, source: str, parsed: Parsed, facts: Facts, *, now: float, steady: float) -> Counted:
        """`now` is the wall clock, `steady` one that nobody sets."""
        given = repaired(source, parsed.readings)
        admitted = self._roll.admitted(given)
        readings = self._units.taken(source, admitted, self.site.solar)
        guarded = self._ledger.guard(source, readings, self._cap(facts), now=now, steady=steady)
        day = datetime.fromtimestamp(now, self._zone).strftime("%Y-%m-%d")
        shown = list(self._units.counted(_with_unknown(readings, guarded.readings), day))
        answer = Answer(source, guarded.readings, facts, now, day, parsed.fresh)
        events = [*self._roll.complaint(given, admitted), *guarded.events]
        return Counted(shown, answer, events, guarded.held)

    def flows(self, answer: Answer) -> Sequence[Reading]:
        """The site after an answer, where that is news: after any that its powers come from, and after a change."""
        before, self._flows = self._flows, self.site.update(answer)
        return self._flows if self._flows != before or answer.source == self.site.powered_by else ()

    def _cap(self, facts: Facts) -> Callable[[Reading], float]:
        phases = max((meter.phase_count for meter in facts.meters or () if meter.enabled), default=1)
        return lambda reading: usual_cap(reading, phases=phases, solar=self._units.solar(reading.device))


def _with_unknown(readings: Sequence[Reading], guarded: Sequence[Reading]) -> Sequence[Reading]:
    """A counter that may not be published yet is there all the same: its value is not known."""
    if len(guarded) == len(readings):
        return guarded
    known = {(r.device, r.phase, r.name) for r in guarded}
    unknown = [replace(r, value=None) for r in readings if (r.device, r.phase, r.name) not in known]
    return [*guarded, *unknown]
