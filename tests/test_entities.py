"""docs/entities.md: each entity of Home Assistant's own integration has a counterpart here, or a reason why not."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import values  # noqa: E402 - it stands beside the documents

from bridge.endpoints import BY_SOURCE  # noqa: E402

BAR = ROOT.parent / "shared" / "ENTITIES.md"
SLOW = re.compile(r"only `/(production|home|inventory)\.json` has it")
DETAILS = "device_data"
"""The source of inverters' details. Without it, there are no rows for them."""
DETAILED = {
    *("dc_voltage", "dc_current", "ac_voltage", "ac_current", "ac_frequency", "temperature", "lifetime_energy"),
    *("energy_today", "last_report_duration", "energy_produced", "acb_battery_soc", "acb_battery_temperature"),
}
OFFERS = values.offers()
OWN_OFFERS = [offer for offer in OFFERS if offer.ours]


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


def lacks_a_topic(offer: values.Offer) -> bool:
    """Whether it has neither a topic nor a reason, or both."""
    is_known = offer.ours is not None
    is_placed = is_known is (offer.topic is not None) or (DETAILS not in BY_SOURCE and offer.key in DETAILED)
    reason_is_good = not offer.why or SLOW.fullmatch(offer.why)
    return bool(offer.topic) is bool(offer.why) or not reason_is_good or not is_placed


def test_each_has_a_topic_or_only_the_slow_pages_have_it() -> None:
    assert [f"{offer.group} {offer.key}" for offer in OFFERS if lacks_a_topic(offer)] == []


def differences(offer: values.Offer) -> Iterator[str]:
    """Differences of unit and class. A list of values is a text here, so that new values show. Counters are
    counters. Sleep is ON or OFF, since no light endpoint tells more.
    """
    reading = offer.ours
    assert reading is not None
    quantity = reading.quantity
    if quantity.platform != offer.platform and not offer.key.endswith("sleep_state"):
        yield "platform"
    if offer.device_class not in {"enum", None, quantity.device_class} and offer.key != "reserve_soc":
        yield "device class"
    if offer.unit and quantity.unit != {"°F": "°C", "mWh": "Wh"}.get(offer.unit, offer.unit):
        yield "unit"
    is_report = "report/" in str(offer.topic) and reading.name != "energy_today"
    counts = "total" if is_report else "total_increasing"
    if offer.state_class == "total_increasing" and quantity.state_class != counts:
        yield "state class"
    if ("/<phase>/" in str(offer.topic)) is not offer.key.endswith("_l1"):
        yield "phase"


def test_each_is_as_good() -> None:
    assert len(OWN_OFFERS) > 100
    assert [f"{offer.group} {offer.key}: {what}" for offer in OWN_OFFERS for what in differences(offer)] == []
