"""docs/entities.md: each entity of Home Assistant's own integration has its counterpart here, or a good reason."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import values  # noqa: E402 - it stands beside the documents

from bridge.endpoints import BY_SOURCE  # noqa: E402

BAR = ROOT.parent / "shared" / "ENTITIES.md"
SLOW = re.compile(r"only `/(production|home|inventory)\.json` has it")
DETAILS = "device_data"
"""The source of inverters' details; without it their rows are not there."""
DETAILED = {
    *("dc_voltage", "dc_current", "ac_voltage", "ac_current", "ac_frequency", "temperature", "lifetime_energy"),
    *("energy_today", "last_report_duration", "energy_produced", "acb_battery_soc", "acb_battery_temperature"),
}
OFFERS = values.offers()
OURS = [offer for offer in OFFERS if offer.ours]


@pytest.mark.skipif(not BAR.is_file(), reason="no list of Home Assistant's entities here (it is not ours)")
def test_no_entity_is_forgotten() -> None:
    sections = re.findall(r"\*\*(sensor|binary_sensor) — (.+?)\*\* .*?\n\n(.+?)\n\n", BAR.read_text(), re.DOTALL)
    wanted = [
        (platform, group, row.split("|")[1].strip())
        for platform, group, table in sections
        for row in table.splitlines()[2:]
    ]
    assert [(offer.platform, offer.group, offer.key) for offer in OFFERS] == wanted
    assert len(wanted) == 151


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: f"{offer.group}-{offer.key}")
def test_it_has_a_topic_or_only_the_slow_pages_have_it(offer: values.Offer) -> None:
    assert bool(offer.topic) is not bool(offer.why)
    assert not offer.why or SLOW.fullmatch(offer.why)
    is_known = offer.ours is not None
    assert is_known is (offer.topic is not None) or (DETAILS not in BY_SOURCE and offer.key in DETAILED)


@pytest.mark.parametrize("offer", OURS, ids=lambda offer: f"{offer.group}-{offer.key}")
def test_it_is_as_good(offer: values.Offer) -> None:
    """Units and classes; a list of values is a text, so that new ones show; counters count."""
    reading = offer.ours
    assert reading is not None
    quantity = reading.quantity
    assert quantity.platform == offer.platform
    if offer.device_class != "enum":
        assert (
            quantity.device_class == offer.device_class or offer.device_class is None or offer.key == "reserve_soc"
        )
    if offer.unit:
        assert quantity.unit == {"°F": "°C", "mWh": "Wh"}.get(offer.unit, offer.unit)
    if offer.state_class == "total_increasing":
        assert quantity.state_class == ("total" if "report/" in str(offer.topic) else "total_increasing")


@pytest.mark.parametrize("offer", OURS, ids=lambda offer: f"{offer.group}-{offer.key}")
def test_phases_are_told_of_phases(offer: values.Offer) -> None:
    assert ("/<phase>/" in str(offer.topic)) is offer.key.endswith("_l1")
