"""Which source each flow of a site comes from (docs/numbers.md). All powers come from one answer."""

from dataclasses import dataclass

from bridge.model import Facts

PRODUCTION, NET, TOTAL, STORAGE, THIRD_PARTY = (
    "production",
    "net-consumption",
    "total-consumption",
    "storage",
    "pv3p",
)
BALANCE = "balance"
"""Shown as the source of a flow that follows from the others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Devices of the tree that give each flow's power and energies; `None` where nothing does.

    `answer` is the source whose answers give the powers, `meters` the enabled roles.
    """

    answer: str
    solar: str | None = None
    grid: str | None = None
    battery: str | None = None
    home: str | None = None
    meters: frozenset[str] = frozenset()

    @property
    def live(self) -> bool:
        return self.answer == "livedata"


def choose(facts: Facts, *, battery: bool, livedata: bool, stalled: bool) -> Plan:
    """The plan for a gateway.

    `battery` is whether batteries were seen, `livedata` whether the gateway has live data, `stalled` whether
    `/api/v1/production` counts nothing.
    """
    meters = frozenset(meter.role for meter in facts.meters or () if meter.enabled)
    if meters & {PRODUCTION, NET, TOTAL}:
        return _metered(meters, battery=battery, livedata=livedata)
    metered = bool(facts.meters)
    solar = "energy/production-pcu" if metered or stalled else "energy/production"
    return Plan("energy" if metered or stalled else "production", solar, meters=meters)


def _metered(meters: frozenset[str], *, battery: bool, livedata: bool) -> Plan:
    solar = "meter/production" if PRODUCTION in meters else "energy/production-pcu"
    if battery and STORAGE not in meters and livedata:
        return Plan("livedata", "live/pv", "live/grid", "live/storage", BALANCE, meters)
    storage = "meter/storage" if STORAGE in meters else None
    whole = PRODUCTION in meters and not (battery and storage is None)
    if NET in meters:
        return Plan("readings", solar, "meter/net-consumption", storage, BALANCE if whole else None, meters)
    if TOTAL in meters:
        grid = BALANCE if whole else None
        return Plan("readings", solar, grid, storage, "meter/total-consumption", meters)
    return Plan("readings", solar, None, storage, None, meters)
