"""Answers that were rebuilt from public reports, fed to the whole pipeline, and what the site has to show for them.

The folders are no part of the project: where they are absent, these tests are skipped.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from answering import Answering

from bridge.endpoints import ENDPOINTS

FAULTS = Path(__file__).parents[1].parent / "shared" / "faults"
ORDER = ("meters", "inventory", "inverters", "secctrl", "readings", "production", "energy", "livedata", "power")
POLLS = 4
"""How often each folder is read, so that first readings are confirmed."""

pytestmark = pytest.mark.skipif(not FAULTS.is_dir(), reason="the faults (../shared/faults) are not on this machine")


def answers(folder: Path) -> dict[str, Any]:
    """The answers in a folder, by source."""
    found = {}
    for endpoint in ENDPOINTS:
        file = folder / re.sub(r"[/?=& ]", "_", endpoint.path[1:])
        if endpoint.source in ORDER and file.is_file():
            found[str(endpoint.source)] = json.loads(file.read_text())
    return found


def read(name: str) -> Answering:
    """Read a folder some times. The inverters have reported just now, as they had when it was captured."""
    house = Answering(periods={"readings": 5.0})
    given = answers(FAULTS / name)
    for unit in given.get("inverters", ()):
        unit["lastReportDate"] = int(house.start)
    for poll in range(POLLS):
        for place, source in enumerate(source for source in ORDER if source in given):
            house.say(source, poll * 7 + place / 10, given[source])
    return house


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("prod_disabled_net3", {"solar/power": 5180, "home/power": None}),
        (
            "ct_enabled_no_clamp",
            {
                "solar/power": 3567,
                "solar/source": "energy/production-pcu",
                "solar/energy_lifetime": 23_425_693,
                "home/power": None,
            },
        ),
        ("acb_with_3t", {"battery/energy_stored": 5548, "battery/power": 2009.999}),
        ("acb_with_3t_no_live", {"battery/power": None}),
        ("two_gateways_leader", {"battery/power": -500.3, "home/power": None}),
    ],
)
def test_a_fault_that_was_seen(name: str, shown: Mapping[str, object]) -> None:
    if not (FAULTS / name).is_dir():
        pytest.skip(f"there is no {name} in ../shared/faults")
    house = read(name)
    assert {topic: house[topic] for topic in shown} == shown


def test_the_capacity_is_that_of_both_kinds() -> None:
    if not (FAULTS / "acb_with_3t").is_dir():
        pytest.skip("there is no acb_with_3t in ../shared/faults")
    assert read("acb_with_3t")["battery/capacity"] == pytest.approx(7219, abs=5)
