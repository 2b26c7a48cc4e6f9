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

    `answer` is the source whose answers give the powers, `meters` the enabled roles. `third_party` is another
    meter whose power and energy belong to the sun. `whole` is whether both sun and battery are known, so that the
    home's energy follows from the grid's, or the grid's from the home's.
    """

    answer: str
    solar: str | None = None
    grid: str | None = None
    battery: str | None = None
    home: str | None = None
    meters: frozenset[str] = frozenset()
    third_party: str | None = None
    whole: bool = False

    @property
    def solar_source(self) -> str | None:
        """For people: every device that the sun's power comes from."""
        return ", ".join(filter(None, (self.solar, self.third_party))) or None

    @property
    def counts_grid(self) -> bool:
        """Whether the meters tell the grid's energy."""
        return NET in self.meters or (TOTAL in self.meters and self.whole)

    @property
    def counts_home(self) -> bool:
        """Whether the meters, and the battery's power, tell the home's energy."""
        return TOTAL in self.meters or (NET in self.meters and self.whole)

    @property
    def live(self) -> bool:
        return self.answer == "livedata"


def choose(facts: Facts, *, battery: bool, livedata: bool, stalled: bool, third_party: bool = False) -> Plan:
    """The plan for a gateway.

    `battery` is whether batteries were seen, `livedata` whether the gateway has live data, `stalled` whether
    `/api/v1/production` counts nothing, `third_party` whether another maker's panels are counted where they have
    a meter.
    """
    meters = frozenset(meter.role for meter in facts.meters or () if meter.enabled)
    if meters & {PRODUCTION, NET, TOTAL}:
        others = f"meter/{THIRD_PARTY}" if third_party and {THIRD_PARTY, PRODUCTION} <= meters else None
        return _metered(meters, others, battery=battery, livedata=livedata)
    metered = bool(facts.meters)
    solar = "energy/production-pcu" if metered or stalled else "energy/production"
    return Plan("energy" if metered or stalled else "production", solar, meters=meters)


def without_livedata(plan: Plan) -> Plan:
    """What the meters alone know while live data stand still: not the battery."""
    return _metered(plan.meters, None, battery=True, livedata=False)


def _metered(meters: frozenset[str], others: str | None, *, battery: bool, livedata: bool) -> Plan:
    """In live data nobody knows whether other makers' panels are part of the sun, so they are not added there."""
    solar = "meter/production" if PRODUCTION in meters else "energy/production-pcu"
    if battery and STORAGE not in meters and livedata:
        is_whole = PRODUCTION in meters
        return Plan("livedata", "live/pv", "live/grid", "live/storage", BALANCE, meters, whole=is_whole)
    storage = "meter/storage" if STORAGE in meters else None
    whole = PRODUCTION in meters and not (battery and storage is None)
    grid = home = None
    if NET in meters:
        grid, home = "meter/net-consumption", BALANCE if whole else None
    elif TOTAL in meters:
        grid, home = BALANCE if whole else None, "meter/total-consumption"
    return Plan("readings", solar, grid, storage, home, meters, others, whole)
