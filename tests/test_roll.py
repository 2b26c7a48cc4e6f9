"""A gateway that makes up serial numbers fills neither our memory nor the broker."""

from collections.abc import Iterable, Mapping
from typing import Any

from samples import details, home, parse

from bridge.model import Facts
from bridge.service.counting import Counted, Counting
from bridge.service.roll import MOST_DEVICES, MOST_GONE

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


def counted(number: int, facts: Facts, counting: Counting) -> Counted:
    """The same from the endpoint whose inverters have counters."""
    units = {str(place): details(482_200_000_000 + SITE * number + place, place) for place in range(SITE)}
    when = NOW + 300 * number
    return counting.count("device_data", parse("device_data", units, facts), facts, now=when, steady=when)


def kept(count: int) -> dict[str, Any]:
    """What a run leaves behind to which a gateway named `count` sites, one after the other."""
    counting, facts = Counting(netted=True, zone=None, kept={}), home(1, ["production"])
    for number in range(count):
        counted(number, facts, counting)
    return counting.dump()


def owners(kept: Mapping[str, Any]) -> set[str]:
    return {key.removesuffix("/energy_lifetime") for key in kept["counters"]}


def test_counters_of_devices_that_have_gone_count_after_a_restart() -> None:
    """One that is restarted again and again, and told new names each time, does not grow for ever."""
    counting, facts = Counting(netted=True, zone=None, kept=kept(3)), home(1, ["production"])
    assert len(inverters(counted(3, facts, counting))) == SITE
    told = counted(4, facts, counting)
    assert len(inverters(told)) == MOST_DEVICES - MOST_GONE - SITE
    assert [event.warning for event in told.events] == [True]
    left = counting.dump()
    assert (len(left["days"]), len(owners(left))) == (MOST_DEVICES, MOST_DEVICES)


def test_who_went_last_is_remembered_and_who_is_there_in_any_case() -> None:
    there = "inverter/482200000007"
    left = Counting(netted=True, zone=None, kept=kept(3), devices=[there]).dump()
    assert owners(left) > {f"inverter/{482_200_000_000 + 2 * SITE + place}" for place in range(SITE)} | {there}
    assert len(owners(left)) == MOST_GONE + 1
    assert set(left["days"]) == owners(left)


def test_meters_and_phases_are_kept_whole() -> None:
    phases = {f"meter/production{phase}/energy_delivered": {"raw": 7, "seen_at": 1} for phase in ("", "/l1", "/l3")}
    others = {f"inverter/{place}/energy_lifetime": {"raw": 5, "seen_at": 2} for place in range(MOST_GONE)}
    accounts = {"counters": {**phases, **others}}
    for devices, wanted in ((["meter/production"], phases.keys() | others.keys()), ([], others.keys())):
        counting = Counting(netted=True, zone=None, kept=accounts, devices=devices)
        assert counting.dump()["counters"].keys() == wanted
