"""A gateway that makes up serial numbers fills neither our memory nor the broker."""

from collections.abc import Iterable

from samples import home, parse

from bridge.model import Facts
from bridge.service.counting import Counted, Counting
from bridge.service.roll import MOST_DEVICES

NOW = 1_790_000_000.0
SITE = 1_000
"""Inverters of the largest site that there may be."""


def named(number: int, facts: Facts, counting: Counting) -> Counted:
    """An answer that names a site's worth of inverters, all other ones for each number."""
    body = [
        {
            "serialNumber": str(482_200_000_000 + SITE * number + place),
            "lastReportDate": int(NOW),
            "devType": 1,
            "lastReportWatts": 100 + place,
            "maxReportWatts": 1_200,
        }
        for place in range(SITE)
    ]
    when = NOW + 300 * number
    return counting.count("inverters", parse("inverters", body, facts), facts, now=when, steady=when)


def inverters(counted: Counted) -> set[str]:
    return {reading.device for reading in counted.readings if reading.device.startswith("inverter/")}


def answers(count: int, devices: Iterable[str] = ()) -> list[Counted]:
    counting, facts = Counting(netted=True, zone=None, kept={}, devices=devices), home(1, ["production"])
    return [named(number, facts, counting) for number in (*range(count), 0)]


def test_a_site_that_is_replaced_once_is_told_of_whole_and_without_a_word() -> None:
    told = answers(2)
    assert [len(inverters(counted)) for counted in told] == [SITE, SITE, SITE]
    assert not any(counted.events for counted in told)


def test_new_names_in_each_answer_come_to_an_end_with_one_warning() -> None:
    *others, known = answers(8)
    assert len({device for counted in others for device in inverters(counted)}) <= MOST_DEVICES
    assert inverters(others[-1]) == set()
    events = [event for counted in others for event in counted.events]
    assert [event.warning for event in events] == [True]
    assert f"{MOST_DEVICES} devices" in events[0].text
    assert "inverter/4822" in events[0].text
    assert len(inverters(known)) == SITE, "who came first stays"
    assert {r.value for r in known.readings if r.name == "power"} == {100 + place for place in range(SITE)}


def test_what_an_earlier_run_has_published_counts() -> None:
    first, *_ = answers(1, [f"inverter/{place}" for place in range(MOST_DEVICES - 1)])
    assert len(inverters(first)) == 1
    assert [event.warning for event in first.events] == [True]
