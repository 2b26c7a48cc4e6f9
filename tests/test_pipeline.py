"""Days begin at local midnight, also when they have 23 or 25 hours."""

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest
from samples import home, parse

from bridge.pipeline import Pipeline

BERLIN = ZoneInfo("Europe/Berlin")


def test_a_day_of_23_and_one_of_25_hours_end_at_local_midnight() -> None:
    for month, day, hours in ((3, 29, 23), (10, 25, 25)):
        start = datetime(2026, month, day, tzinfo=BERLIN).timestamp()
        end = datetime(2026, month, day + 1, tzinfo=BERLIN).timestamp()
        assert end - start == hours * 3600
        pipeline = Pipeline(netted=True, zone=BERLIN)
        seen = {}
        for when, energy in (
            (start - 20, 1000),
            (start - 10, 1000),
            (start + 10, 1001),
            (end - 10, 9000),
            (end + 10, 9002),
        ):
            reading = [{"eid": 704643328, "activePower": 5, "actEnergyDlvd": energy}]
            facts = home(1, ["production"])
            counted = pipeline.process("readings", parse("readings", reading, facts), facts, now=when, steady=when)
            flows = pipeline.flows(counted.answer)
            seen[when] = {r.name: r.value for r in flows if r.device == "site/solar"}.get("energy_today")
        assert [*seen.values()] == [None, None, 0.5, 7999.5, 1]  # what was counted over midnight is shared


@pytest.mark.parametrize(("zone", "today"), [(UTC, 500), (BERLIN, 100)])
def test_the_zone_is_the_homes(zone: tzinfo, today: float) -> None:
    """22:30 UTC is after midnight in Berlin in summer."""
    pipeline, facts = Pipeline(netted=True, zone=zone), home(1, ["production"])
    shown: dict[str, object] = {}
    given = ((0, 11, 59, 900), (0, 12, 0, 900), (1, 0, 0, 1000), (1, 22, 0, 1400), (1, 22, 30, 1500))
    for day, hour, minute, energy in given:
        now = datetime(2026, 7, 1, hour, minute, tzinfo=UTC).timestamp() + 86_400 * (day - 1)
        reading = [{"eid": 704643328, "activePower": 5, "actEnergyDlvd": energy}]
        counted = pipeline.process("readings", parse("readings", reading, facts), facts, now=now, steady=now)
        shown = {r.name: r.value for r in pipeline.flows(counted.answer) if r.device == "site/solar"}
    assert shown["energy_today"] == today


def test_only_answers_with_its_powers_or_a_change_publish_the_site() -> None:
    """Other answers do not publish the site: its documents must not look newer than its powers."""
    pipeline, facts = Pipeline(netted=True, zone=UTC), home(1, ["production"])
    now = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()

    def told(source: str, answer: object) -> bool:
        counted = pipeline.process(source, parse(source, answer, facts), facts, now=now, steady=now)
        return bool(pipeline.flows(counted.answer))

    reading = [{"eid": 704643328, "activePower": 5, "actEnergyDlvd": 1000}]
    assert told("readings", reading)
    assert told("readings", reading)
    assert not told("inverters", [{"serialNumber": "482200000001", "lastReportWatts": 5}])
    assert told("relay", {"mains_admin_state": "closed", "mains_oper_state": "closed"})
    assert not told("relay", {"mains_admin_state": "closed", "mains_oper_state": "closed"})
