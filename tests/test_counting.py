"""Days begin at local midnight, however long they are."""

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest
from samples import home, parse

from bridge.service.counting import Counting

BERLIN = ZoneInfo("Europe/Berlin")


def test_a_day_of_23_and_one_of_25_hours_end_at_local_midnight() -> None:
    for month, day, hours in ((3, 29, 23), (10, 25, 25)):
        start = datetime(2026, month, day, tzinfo=BERLIN).timestamp()
        end = datetime(2026, month, day + 1, tzinfo=BERLIN).timestamp()
        assert end - start == hours * 3600
        counting = Counting(netted=True, zone=BERLIN, kept={})
        seen = {}
        for when, energy in ((start - 10, 1000), (start + 10, 1001), (end - 10, 9000), (end + 10, 9002)):
            reading = [{"eid": 704643328, "activePower": 5, "actEnergyDlvd": energy}]
            facts = home(1, ["production"])
            counted = counting.count("readings", parse("readings", reading, facts), facts, now=when, steady=when)
            flows = counting.flows(counted.answer)
            seen[when] = {r.name: r.value for r in flows if r.device == "site/solar"}["energy_today"]
        assert [*seen.values()] == [0, 1, 8000, 2]


@pytest.mark.parametrize(("zone", "today"), [(UTC, 500), (BERLIN, 100)])
def test_the_zone_is_the_homes(zone: tzinfo, today: float) -> None:
    """22:30 in Greenwich is past midnight in Berlin's summer."""
    counting, facts = Counting(netted=True, zone=zone, kept={}), home(1, ["production"])
    shown: dict[str, object] = {}
    for hour, minute, energy in ((21, 0, 1000), (21, 59, 1400), (22, 30, 1500)):
        now = datetime(2026, 7, 1, hour, minute, tzinfo=UTC).timestamp()
        reading = [{"eid": 704643328, "activePower": 5, "actEnergyDlvd": energy}]
        counted = counting.count("readings", parse("readings", reading, facts), facts, now=now, steady=now)
        shown = {r.name: r.value for r in counting.flows(counted.answer) if r.device == "site/solar"}
    assert shown["energy_today"] == today


def test_the_site_is_told_by_what_powers_it_and_by_what_changes_it() -> None:
    """Other answers say nothing of it: its documents must not claim to be newer than its powers."""
    counting, facts = Counting(netted=True, zone=UTC, kept={}), home(1, ["production"])
    now = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()

    def told(source: str, answer: object) -> bool:
        counted = counting.count(source, parse(source, answer, facts), facts, now=now, steady=now)
        return bool(counting.flows(counted.answer))

    reading = [{"eid": 704643328, "activePower": 5, "actEnergyDlvd": 1000}]
    assert told("readings", reading)
    assert told("readings", reading)
    assert not told("inverters", [{"serialNumber": "482200000001", "lastReportWatts": 5}])
    assert told("relay", {"mains_admin_state": "closed", "mains_oper_state": "closed"})
    assert not told("relay", {"mains_admin_state": "closed", "mains_oper_state": "closed"})
