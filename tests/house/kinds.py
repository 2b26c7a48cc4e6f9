"""The kinds of sites, and what each of them can know."""

from dataclasses import dataclass

from house.model import Kind

EXACT, INTEGRATED = 0.01, 0.02
"""The share of the truth by which an energy may be wrong."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A lifetime energy of `site/*`: its topic below `site`, the sum of `Truth` behind it, and its tolerance."""

    topic: str
    truth: str
    tolerance: float = EXACT

    @property
    def flow(self) -> str:
        return self.topic.partition("/")[0]


KINDS = (
    Kind("net1"),
    Kind("net2", phases=2, pv_shares=(0.5, 0.5)),
    Kind("net3", phases=3, report_s=300),
    Kind("total1", net_ct=False, total_ct=True),
    Kind("storage1", storage_ct=True, battery_wh=10_000, ensemble=True),
    Kind("storage2", phases=2, pv_shares=(0.5, 0.5), storage_ct=True, battery_wh=10_000, ensemble=True),
    Kind("live1", battery_wh=10_000, live=True, ensemble=True),
    Kind("power1", battery_wh=10_000, ensemble=True),
    Kind("gentle1", battery_wh=10_000, ensemble=True, profile="gentle"),
    Kind("no-ct", production_ct=False, net_ct=False),
    Kind("standard", production_ct=False, net_ct=False, is_standard=True, report_s=300),
    Kind("production1", net_ct=False),
    Kind("net-only1", production_ct=False),
    Kind("generator2", phases=2, pv_shares=(0.5, 0.5), has_generator=True),
    Kind("ac-battery1", battery_wh=5_000, ac_battery_wh=3_600, live=True, ensemble=True),
    Kind("foreign1", foreign_w=4_000, storage_ct=True, battery_wh=10_000, ensemble=True),
    Kind(
        "collar2",
        phases=2,
        pv_shares=(0.5, 0.5),
        storage_ct=True,
        battery_wh=10_000,
        ensemble=True,
        has_collar=True,
    ),
    Kind("third-party3", phases=3, pv_shares=(0.4, 0.35, 0.25), third_party_w=3_000),
)
BY_NAME = {kind.name: kind for kind in KINDS}


def counters(kind: Kind) -> list[Counter]:
    """The energies that a site of this kind can know."""
    found = [Counter("solar/energy_lifetime", "solar" if kind.production_ct else "pcu")]
    is_estimated = kind.has_storage and not kind.storage_ct
    if kind.net_ct or kind.total_ct:
        found += [Counter("grid/energy_imported", "imported"), Counter("grid/energy_exported", "exported")]
    if kind.production_ct and (kind.net_ct or kind.total_ct) and not kind.foreign_w:
        found.append(Counter("home/energy_lifetime", "home", INTEGRATED if is_estimated else EXACT))
    if kind.has_storage:
        tolerance = INTEGRATED if is_estimated else EXACT
        found.append(Counter("battery/energy_charged", "charged", tolerance))
        found.append(Counter("battery/energy_discharged", "discharged", tolerance))
    if kind.has_generator:
        found.append(Counter("generator/energy_lifetime", "generator"))
    return found
