"""The inverters of one gateway: what is known of them beyond a single answer."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bridge.days import Days
from bridge.model import Reading

MAIN, DETAILS = "inverters", "device_data"
"""The sources of inverters: all of them, and the first 49."""
UNIT = "inverter/"
DARK = 0.01
"""Share of all inverters' highest power below which those that do not report are taken to be asleep."""
DAY_HOURS = 24


class Units:
    """`highest` is the power that each unit has reached, in W."""

    def __init__(self, kept: object, known: Container[str]) -> None:
        """What is `kept` of an earlier run, of units that are `known`."""
        self._days = Days.load(kept).of(known)
        self._by_source: dict[str, Mapping[str, float]] = {}
        self.highest: Mapping[str, float] = {}

    def dump(self) -> Mapping[str, Any]:
        """For the store."""
        return self._days.dump()

    def solar(self, device: str) -> float:
        """The highest power of the inverter, or of all where the device is none. 0 where it is not known."""
        return self.highest.get(device, 0.0) if device.startswith(UNIT) else sum(self.highest.values())

    def taken(self, source: str, readings: Sequence[Reading], solar: float | None) -> Sequence[Reading]:
        """Readings of an answer as they may be published. `solar` is what the sun gives now, in W.

        A unit that sleeps does not say so: its last power stays in the gateway for the whole night.
        """
        if source not in (MAIN, DETAILS):
            return readings
        given = {r.device: _number(r) for r in readings if r.name == "max_power" and r.phase is None}
        self._by_source[source] = {device: watts for device, watts in given.items() if watts is not None}
        self.highest = {**self._by_source.get(DETAILS, {}), **self._by_source.get(MAIN, {})}
        if solar is None or solar >= DARK * self.solar(""):
            return readings
        asleep = {r.device for r in readings if r.name == "reporting" and r.value is False}
        return [replace(r, value=0) if r.name == "power" and r.device in asleep else r for r in readings]

    def counted(self, readings: Sequence[Reading], day: str) -> Iterator[Reading]:
        """The same with our own `energy_today`, made from guarded lifetimes; `day` is the local day.

        Of the hours before we came only the gateway knows: there its own count is taken, if it can be true.
        """
        lifetimes = {r.device: _number(r) for r in readings if r.name == "energy_lifetime" and r.phase is None}
        for reading in readings:
            if reading.name != "energy_today" or not reading.device.startswith(UNIT):
                yield reading
                continue
            told, lifetime = _number(reading) or 0.0, lifetimes.get(reading.device)
            already = told if 0 <= told <= DAY_HOURS * self.solar(reading.device) else 0.0
            ours = lifetime and self._days.today(reading.device, lifetime, day, already=already)
            yield replace(reading, value=ours)


def _number(reading: Reading) -> float | None:
    return float(reading.value) if isinstance(reading.value, int | float) else None
