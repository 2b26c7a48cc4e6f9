"""A gateway that invents serial numbers fills neither the memory nor the broker."""

from collections.abc import Iterable

from samples import details, home, parse, restored

from bridge.model import Facts
from bridge.pipeline import MAX_DEVICES, MAX_GONE_DEVICES, CountersState, Pipeline, Processed

NOW = 1_790_000_000.0
DEVICES_PER_SITE = 1_000
"""The number of inverters of the largest possible site."""


def named(number: int, facts: Facts, pipeline: Pipeline) -> Processed:
    """An answer with a full site of inverters. Each number gives other serial numbers."""
    body = [
        {
            "serialNumber": str(482_200_000_000 + DEVICES_PER_SITE * number + place),
            "lastReportDate": int(NOW),
            "devType": 1,
            "lastReportWatts": 100 + place,
            "maxReportWatts": 1_200,
        }
        for place in range(DEVICES_PER_SITE)
    ]
    when = NOW + 300 * number
    return pipeline.process("inverters", parse("inverters", body, facts), facts, now=when, steady=when)


def inverters(counted: Processed) -> set[str]:
    return {reading.device for reading in counted.readings if reading.device.startswith("inverter/")}


def answers(count: int, devices: Iterable[str] = ()) -> list[Processed]:
    pipeline, facts = Pipeline(netted=True, zone=None, devices=devices), home(1, ["production"])
    return [named(number, facts, pipeline) for number in (*range(count), 0)]


def test_a_site_that_is_replaced_once_is_told_of_whole_and_without_a_word() -> None:
    """Units that have left the list are published for another day, as units that do not report."""
    told = answers(2)
    assert [len(inverters(counted)) for counted in told] == [
        DEVICES_PER_SITE,
        2 * DEVICES_PER_SITE,
        2 * DEVICES_PER_SITE,
    ]
    assert not any(counted.events for counted in told)


def test_new_names_in_each_answer_come_to_an_end_with_one_warning() -> None:
    *others, known = answers(8)
    assert len({device for counted in others for device in inverters(counted)}) <= MAX_DEVICES
    assert len(inverters(others[-1])) == MAX_DEVICES - 1, "all beside the gateway, as units that have left"
    events = [event for counted in others for event in counted.events]
    assert [event.warning for event in events] == [True]
    assert [event.name for event in events] == ["device_limit"]
    assert f"{MAX_DEVICES} devices" in events[0].text
    assert "inverter/4822" in events[0].text
    assert len(inverters(known)) == MAX_DEVICES - 1, "who came first stays"
    assert {r.value for r in known.readings if r.name == "power"} >= {
        100 + place for place in range(DEVICES_PER_SITE)
    }


def test_what_an_earlier_run_has_published_counts() -> None:
    first, *_ = answers(1, [f"inverter/{place}" for place in range(MAX_DEVICES - 1)])
    assert len(inverters(first)) == 1
    assert [event.warning for event in first.events] == [True]


def counted(number: int, facts: Facts, pipeline: Pipeline, seconds: float = 0.0) -> Processed:
    """Such an answer of the endpoint whose inverters have counters, `seconds` later than the first one."""
    units = {
        str(place): details(482_200_000_000 + DEVICES_PER_SITE * number + place, place)
        for place in range(DEVICES_PER_SITE)
    }
    when = NOW + 300 * number + seconds
    return pipeline.process("device_data", parse("device_data", units, facts), facts, now=when, steady=when)


def kept(count: int) -> CountersState:
    """The state after a run in which a gateway named `count` sites, one after the other."""
    pipeline, facts = Pipeline(netted=True, zone=None), home(1, ["production"])
    for number in range(count):
        counted(number, facts, pipeline)
        counted(number, facts, pipeline, 60.0)  # a first reading needs a second one that confirms it
    return restored(pipeline.state)


def owners(kept: CountersState) -> set[str]:
    return {key.removesuffix("/energy_lifetime") for key in kept.counters}


def test_counters_of_devices_that_have_gone_count_after_a_restart() -> None:
    """A bridge that is restarted again and again, with new names each time, does not grow without limit."""
    pipeline, facts = Pipeline(netted=True, zone=None, state=kept(3)), home(1, ["production"])
    assert len(inverters(counted(3, facts, pipeline))) == MAX_GONE_DEVICES + DEVICES_PER_SITE
    told = counted(4, facts, pipeline)
    assert len(inverters(told)) == MAX_DEVICES
    assert [event.warning for event in told.events] == [True]
    left = pipeline.state
    # The counters of this run were read once, so their days have not begun.
    assert (len(left.days), len(owners(left))) == (MAX_GONE_DEVICES, MAX_DEVICES)


def test_who_went_last_is_remembered_and_who_is_there_in_any_case() -> None:
    there = "inverter/482200000007"
    left = Pipeline(netted=True, zone=None, state=kept(3), devices=[there]).state
    assert owners(left) > {
        f"inverter/{482_200_000_000 + 2 * DEVICES_PER_SITE + place}" for place in range(DEVICES_PER_SITE)
    } | {there}
    assert len(owners(left)) == MAX_GONE_DEVICES + 1
    assert set(left.days) == owners(left)


def test_meters_and_phases_are_kept_whole() -> None:
    phases = {f"meter/production{phase}/energy_delivered": {"raw": 7, "seen_at": 1} for phase in ("", "/l1", "/l3")}
    others = {f"inverter/{place}/energy_lifetime": {"raw": 5, "seen_at": 2} for place in range(MAX_GONE_DEVICES)}
    state = CountersState.model_validate({"counters": {**phases, **others}})
    for devices, wanted in ((["meter/production"], phases.keys() | others.keys()), ([], others.keys())):
        pipeline = Pipeline(netted=True, zone=None, state=state, devices=devices)
        assert pipeline.state.counters.keys() == wanted
