"""What a site's batteries hold and give, from what tells it best: live data, the sums, or the batteries."""

from collections.abc import Mapping

from bridge.site.powers import Values

BATTERIES = "battery"
"""Shown as the source of a power that the batteries themselves tell."""
LIVE, TOTALS = "live/storage", "storage/totals"
KINDS = ("encharge", "acb")
"""IQ Batteries and AC Batteries: charge and energy are told of each kind."""
RECENT = {LIVE: 30.0, TOTALS: 900.0}
"""Seconds after which the other one is asked first."""
GIVEN = 180.0
"""Seconds for which the powers that batteries tell of themselves count."""


class Storage:
    """The newest that is known. Times come from the caller (unix time)."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], float] = {}
        self._told: dict[str, float] = {}
        self._given: tuple[float, float] | None = None
        """What all batteries gave together (W), and when they said so."""

    def observe(self, source: str, values: Values, now: float, *, fresh: bool) -> None:
        """One answer. What stands still is kept, but is not news."""
        own = {key: value for key, value in values.items() if key[0] in RECENT or key[0].startswith("battery/")}
        self._latest.update(own)
        if fresh:
            self._told.update({device: now for device, _ in own if device in RECENT})
        if source == "power" and own:
            self._given = sum(value for (_, name), value in own.items() if name == "power"), now

    def given(self, now: float) -> float | None:
        """W that all batteries give together, as they say themselves."""
        return self._given[0] if self._given and now - self._given[1] <= GIVEN else None

    def charge(self, now: float) -> float | None:
        """Percent. Of both kinds of battery, weighted by what they can hold; of the one that is there."""
        device = self._best(now)
        packs = [(self._of(device, f"{kind}_soc"), self._of(device, f"{kind}_energy")) for kind in KINDS]
        there = [(soc or 0.0, energy or 0.0) for soc, energy in packs if soc or energy]
        if len(there) > 1 and all(soc > 0 for soc, _ in there):
            room = sum(energy / soc for soc, energy in there)
            return round(sum(energy for _, energy in there) / room, 1) if room else None
        if there:
            return there[0][0]
        told = next((v for name in ("encharge_soc", "soc") if (v := self._of(device, name)) is not None), None)
        return self._mean_charge() if told is None else told

    def stored(self, now: float) -> float | None:
        """Wh."""
        device = self._best(now)
        told = [value for kind in KINDS if (value := self._of(device, f"{kind}_energy")) is not None]
        if told:
            return sum(told)
        charge, capacity = self._mean_charge(), sum(self._each("capacity").values())
        return None if charge is None or not capacity else round(charge * capacity / 100)

    def capacity(self, now: float) -> float | None:
        """Wh. `Max_energy` alone was seen to be less than what is stored: then nobody knows."""
        known = sum(self._each("capacity").values()) or self._of(TOTALS, "capacity")
        highest = self._of(TOTALS, "max_energy") or 0.0
        return known or (highest if highest >= (self.stored(now) or 0.0) else None) or None

    def _best(self, now: float) -> str:
        recent = (device for device, patience in RECENT.items() if now - self._told.get(device, 0.0) <= patience)
        return next(recent, max(RECENT, key=lambda device: self._told.get(device, 0.0)))

    def _of(self, device: str, name: str) -> float | None:
        return self._latest.get((device, name))

    def _each(self, name: str) -> Mapping[str, float]:
        found = self._latest.items()
        return {device: value for (device, key), value in found if key == name and device.startswith("battery/")}

    def _mean_charge(self) -> float | None:
        """Of all batteries that tell theirs, weighted by their capacities where these are known."""
        charges, capacities = self._each("soc"), self._each("capacity")
        weights = {device: capacities.get(device, 1.0) for device in charges}
        whole = sum(weights.values())
        mean = sum(charges[device] * weight for device, weight in weights.items())
        return round(mean / whole, 1) if whole else None
