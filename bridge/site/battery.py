"""What the batteries of a site hold and give, by the best source: live data, the sums, or each battery.

Pure: times are unix times that the caller passes.
"""

from collections.abc import Mapping

from bridge.endpoints.livedata import LIVE_STORAGE
from bridge.endpoints.storage import STORAGE_TOTALS
from bridge.model import SourceName
from bridge.site.selection import GuardedAnswer, Values

BATTERIES = "battery"
"""Published as the source of a battery power that is the sum of what the batteries report themselves."""
CURRENT_S = {LIVE_STORAGE: 30.0, STORAGE_TOTALS: 900.0}
"""Devices that tell the charge, best first, and for how many seconds their values are current."""
GIVEN_CURRENT_S = 180.0
"""Seconds for which the powers that batteries report themselves are current."""
CHARGES = ("encharge_soc", "acb_soc", "soc")
"""The names of the charges that the devices of `CURRENT_S` tell."""
AC_BATTERY_WH = 1_200.0
"""What an AC Battery holds, by its data sheet; used until a charge above 0 tells how much the ones here hold."""
AC_CHARGE_MIN = 10.0
"""Charges are whole percents, so a charge (%) below this one tells the capacity only roughly."""


class BatteryState:
    """Charge, energy, capacity and power of all batteries.

    There are IQ Batteries and the older AC Batteries; a home may have both. A kind that is empty is still there.
    Energy, capacity and power are those of all batteries together, or unknown.
    """

    def __init__(self) -> None:
        self._totals: dict[tuple[str, str], float] = {}
        self._told_at: dict[str, float] = {}
        self._units: dict[str, Values] = {}
        """What each source says of single batteries, the newest source last."""
        self._given: tuple[float, float] | None = None
        """The power of all batteries together (W), and its time."""
        self._ac_listed: int | None = None
        """How many AC Batteries the inverters' newest answer lists; `None` before the first one."""
        self._iq_listed: bool | None = None
        """Whether the newest inventory lists IQ Batteries; `None` before the first one."""
        self._iq_known = False
        self._ac_count, self._ac_wh = 0, 0.0

    def observe(self, answer: GuardedAnswer, values: Values) -> None:
        """Take note of an answer. Values that are not fresh are kept, but do not count as current."""
        totals = {key: value for key, value in values.items() if key[0] in CURRENT_S}
        self._totals.update(totals)
        if answer.fresh:
            self._told_at.update({device: answer.now for device, _ in totals})
        units = {key: value for key, value in values.items() if _is_battery(key[0])}
        if units or answer.source in self._units:
            self._units.pop(answer.source, None)
            self._units[answer.source] = units  # a battery that has left the answer leaves the sums
        if answer.source == SourceName.POWER and units:
            self._given = sum(value for (_, name), value in units.items() if name == "power"), answer.now
        if answer.source == SourceName.INVENTORY:
            self._iq_listed = bool(units)
        if answer.source == SourceName.INVERTERS and answer.readings:
            self._ac_wh = self._ac_wh if answer.ac_batteries or not self._ac_listed else 0.0
            self._ac_listed = answer.ac_batteries
        known = sum(item.startswith("acb/") for item in answer.facts.gear)  # also those that were removed
        self._ac_count = known if self._ac_listed is None else self._ac_listed
        self._iq_known = answer.facts.has("battery") if self._iq_listed is None else self._iq_listed
        for device in {device for device, _ in totals}:
            charge, energy = self._of(device, "acb_soc"), self._of(device, "acb_energy")
            if charge and energy and (charge >= AC_CHARGE_MIN or not self._ac_wh):
                self._ac_wh = energy / charge * 100

    @property
    def are_listed(self) -> bool:
        """Whether the gateway lists any battery. Before its first answer, those of earlier runs count."""
        return self._iq_known or self._ac_count > 0

    @property
    def _ac_capacity(self) -> float:
        """Wh that all AC Batteries can hold; 0 if there are none."""
        return self._ac_wh or self._ac_count * AC_BATTERY_WH

    def given(self, now: float, longest: float = GIVEN_CURRENT_S) -> float | None:
        """The power (W) of all batteries, + discharging, by their own reports of the last `longest` seconds.

        `None` if unknown, as where there are AC Batteries, which do not report their power.
        """
        if self._given is None or self._ac_capacity or now - self._given[1] > longest:
            return None
        return self._given[0]

    def charge(self, now: float) -> float | None:
        """State of charge in %. If there are both kinds of battery, each is weighted by its capacity."""
        device, capacity = self._best(now), self.capacity(now)
        charge = self._of(device, "encharge_soc")
        if self._ac_capacity and not self._has_iq:
            return self._of(device, "acb_soc")
        if self._ac_capacity:
            stored = self.stored(now)
            return self._of(device, "soc") if stored is None or not capacity else round(stored / capacity * 100, 1)
        told = (charge, self._of(device, "soc"))
        return next((soc for soc in told if soc is not None), self._mean_charge())

    def tell_charge(self, values: Values, now: float) -> bool:
        """Whether the charge comes from the answer with these values."""
        best = self._best(now)
        if any(self._of(best, name) is not None for name in CHARGES):
            return any((best, name) in values for name in CHARGES)
        return any(_is_battery(device) and name == "soc" for device, name in values)

    def stored(self, now: float) -> float | None:
        """The energy (Wh) in all batteries."""
        device = self._best(now)
        iq, ac = self._of(device, "encharge_energy"), self._of(device, "acb_energy")
        if self._ac_capacity:
            return ac if not self._has_iq else None if iq is None or ac is None else iq + ac
        if iq is not None:
            return iq
        charges, capacities = self._each("soc"), self._each("capacity")
        if not charges or charges.keys() != capacities.keys():
            return None
        return round(sum(charges[unit] * capacities[unit] for unit in charges) / 100)

    def capacity(self, now: float) -> float | None:
        """Wh that all batteries can hold. The highest energy so far is used unless they hold more now."""
        iq, ac = self._iq_capacity, self._ac_capacity
        if ac and self._has_iq:
            return round(iq + ac) if iq else None
        highest = self._of(STORAGE_TOTALS, "max_energy") or 0.0
        known = highest if highest >= (self.stored(now) or 0.0) else 0.0
        return iq or known or round(ac) or None

    @property
    def _has_iq(self) -> bool:
        """Whether there are IQ Batteries. Gateways report 0 % for a kind that is missing and for an empty one."""
        told = (self._of(device, name) for device in CURRENT_S for name in ("encharge_soc", "encharge_energy"))
        return bool(self._iq_capacity) or any(self._units.values()) or any(told)

    @property
    def _iq_capacity(self) -> float:
        """Wh that all IQ Batteries can hold; 0 if unknown."""
        units = sum(self._each("capacity").values()) or self._of(STORAGE_TOTALS, "capacity")
        return units or next(filter(None, map(self._iq_capacity_by, CURRENT_S)), 0.0)

    def _iq_capacity_by(self, device: str) -> float | None:
        """Wh that all IQ Batteries can hold, by the charge and the energy that this device tells."""
        charge, energy = self._of(device, "encharge_soc"), self._of(device, "encharge_energy")
        return energy / charge * 100 if charge and energy and self._ac_capacity else None

    def _best(self, now: float) -> str:
        """The device whose values are current, else the one with the newest values."""
        current = (
            device for device, longest in CURRENT_S.items() if now - self._told_at.get(device, 0.0) <= longest
        )
        return next(current, max(CURRENT_S, key=lambda device: self._told_at.get(device, 0.0)))

    def _of(self, device: str, name: str) -> float | None:
        return self._totals.get((device, name))

    def _each(self, name: str) -> Mapping[str, float]:
        """This value of each battery, by the newest source that has it."""
        for units in reversed(self._units.values()):
            if found := {device: value for (device, key), value in units.items() if key == name}:
                return found
        return {}

    def _mean_charge(self) -> float | None:
        """Mean charge of the batteries that report it, weighted by their capacities as far as these are known."""
        charges, capacities = self._each("soc"), self._each("capacity")
        weights = {device: capacities.get(device, 1.0) for device in charges}
        total = sum(weights.values())
        mean = sum(charges[device] * weight for device, weight in weights.items())
        return round(mean / total, 1) if total else None


def _is_battery(device: str) -> bool:
    return device.startswith("battery/")
