"""`/ivp/meters` and `/ivp/meters/readings`: the roles of meters, the phases that exist, and what sums mean."""

from itertools import permutations
from typing import Any

import pytest
from samples import (
    EIDS,
    MODES,
    NO_METERS,
    SINGLE,
    SPLIT,
    THREE,
    UNKNOWN,
    changed,
    entry,
    home,
    known,
    meter,
    parse,
    reading,
    values,
    without,
)

from bridge.model import Facts, MeterFacts, Phase

TWO = [reading("production"), reading("net-consumption", 7)]
ALL = ("production", "net-consumption", "storage", "backfeed", "load", "evse", "pv3p")


def facts_of(answer: object, facts: Facts = UNKNOWN) -> tuple[MeterFacts, ...]:
    found = parse("meters", answer, facts).facts
    assert found is not None
    assert found.meters is not None
    return found.meters


# /ivp/meters


def test_facts_of_seven_meters() -> None:
    answer = [
        entry(role, count, state="enabled" if count else "disabled")
        for role, count in zip(ALL, (3, 3, 2, 1, 0, 0, 0), strict=True)
        if count
    ]
    answer += [entry("evse", 2, state="disabled"), entry("pv3p", 1, state="disabled")]
    assert facts_of(answer) == (
        MeterFacts(704643328, "production", True, 3, "three"),
        MeterFacts(704643584, "net-consumption", True, 3, "three"),
        MeterFacts(704643840, "storage", True, 2, "split"),
        MeterFacts(704644352, "backfeed", True, 1, "three"),
        MeterFacts(704644864, "evse", False, 2, "split"),
        MeterFacts(704645120, "pv3p", False, 1, "three"),
    )


def test_every_listed_meter_has_topics_enabled_or_not() -> None:
    """Disabled meters have no readings."""
    flags = ["production-imbalance", "negative-production"]
    assert values(
        "meters", [entry("load", 2, state="disabled", meteringStatus="Check-Wiring", statusFlags=flags)]
    ) == {
        "meter/load/eid": "704644608",
        "meter/load/enabled": "OFF",
        "meter/load/metering_status": "check-wiring",
        "meter/load/status_flags": "production-imbalance,negative-production",
        "meter/load/phase_mode": "split",
        "meter/load/phase_count": "2",
    }


def test_a_role_that_nobody_knows_is_a_meter_all_the_same() -> None:
    answer = entry("load", measurementType="Heat Pump", eid=704699999)
    assert facts_of([answer])[0].role == "heat-pump"
    assert values("meters", [answer])["meter/heat-pump/eid"] == "704699999"


def test_two_meters_of_one_role_do_not_mix() -> None:
    answer = [entry("production"), entry("production", eid=5), entry("production", eid=6), entry("load")]
    found = values("meters", answer)

    assert [item.role for item in facts_of(answer)] == ["production", "production-2", "production-3", "load"]
    assert [found[f"meter/{role}/eid"] for role in ("production", "production-2", "production-3")] == [
        *("704643328", "5", "6"),
    ]


def test_facts_keep_what_info_taught() -> None:
    found = parse("meters", [entry("load")], known(UNKNOWN, clock_offset=12.5)).facts
    assert found == known(UNKNOWN, clock_offset=12.5, meters=(meter("load"),))


@pytest.mark.parametrize(
    ("state", "enabled", "payload"),
    [
        ("enabled", True, "ON"),
        ("Enabled", True, "ON"),
        ("disabled", False, "OFF"),
        ("not-provisioned", False, "OFF"),
        (None, False, "None"),
        ("Unknown", False, "None"),
    ],
)
def test_only_enabled_counts(state: object, enabled: bool, payload: str) -> None:
    answer = [entry("load", state=state)]
    assert facts_of(answer)[0].enabled is enabled
    assert values("meters", answer)["meter/load/enabled"] == payload


def test_a_state_that_is_not_given_disables_nothing() -> None:
    answer = without([entry("load")], "0.state")
    assert facts_of(answer)[0].enabled
    assert "meter/load/enabled" not in values("meters", answer)


@pytest.mark.parametrize(
    ("mode", "count", "expected"),
    [
        ("three", 3, 3),
        ("three", 1, 1),
        ("three", 2, 2),
        ("split", 2, 2),
        ("split", 1, 1),
        ("single", 1, 1),
        ("three", "3", 3),
        ("three", None, 3),
        ("split", None, 2),
        ("other", None, 1),
        (None, None, 1),
        ("three", "many", 3),
        ("three", 0, 1),
        ("three", -2, 1),
        ("three", 7, 3),
        ("split", 1e300, 2),
        ("split", 1e15, 3),
        ("split", True, 2),
    ],
)
def test_phases_of_a_meter(mode: object, count: object, expected: int) -> None:
    assert facts_of([entry("load", phaseMode=mode, phaseCount=count)])[0].phase_count == expected


def test_status_flags_may_be_absent_or_null() -> None:
    assert "meter/load/status_flags" not in values("meters", without([entry("load")], "0.statusFlags"))
    assert values("meters", [entry("load", statusFlags=None)])["meter/load/status_flags"] == "None"
    assert values("meters", [entry("load", statusFlags=[])])["meter/load/status_flags"] == "none"


@pytest.mark.parametrize(
    "bad",
    [
        {"eid": None},
        {"eid": True},
        {"eid": "x"},
        {"eid": 1.5},
        {"eid": [1]},
        {"measurementType": ""},
        {"measurementType": None},
        {"measurementType": "***"},
        {"measurementType": {}},
    ],
)
def test_a_meter_without_name_or_id_costs_only_itself(bad: dict[str, Any]) -> None:
    answer = [entry("production", **bad), entry("load")]
    assert [item.role for item in facts_of(answer)] == ["load"]
    assert len(parse("meters", answer).problems) == 1


@pytest.mark.parametrize("eid", ["704643328", 704643328.0])
def test_an_id_may_be_a_text(eid: object) -> None:
    assert facts_of([entry("production", eid=eid)])[0].eid == 704643328


# /ivp/meters/readings: which meter is which


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_roles_are_known_by_eid_whatever_the_order(order: tuple[int, ...]) -> None:
    given = [reading("storage", 5), reading("production", 6), reading("net-consumption", 7)]
    found = values(
        "readings", [given[place] for place in order], home(3, ("net-consumption", "storage", "production"))
    )

    assert [found[f"meter/{role}/power"] for role in ("storage", "production", "net-consumption")] == [
        *("1006.25", "1007.25", "1008.25"),
    ]
    assert len({topic for topic in found if topic.endswith("/power")}) == 12


def test_the_same_id_can_be_another_role() -> None:
    """The meter 704643584 is net-consumption or total-consumption."""
    answer = [reading("net-consumption")]
    assert {topic.split("/")[1] for topic in values("readings", answer, home(1, ("total-consumption",)))} == {
        "total-consumption"
    }


def test_unknown_ids_and_disabled_meters_have_no_readings() -> None:
    facts = known(THREE, meters=(meter("production"), meter("load", enabled=False)))
    answer = [reading("load", 3), reading("production"), reading("evse", 4), reading("pv3p", 5, eid=1023410688)]

    found = values("readings", answer, facts)

    assert {topic.split("/")[1] for topic in found} == {"production"}
    assert parse("readings", answer, facts).problems == ()


@pytest.mark.parametrize("facts", [UNKNOWN, NO_METERS], ids=["not known yet", "no meters"])
def test_no_readings_without_facts(facts: Facts) -> None:
    parsed = parse("readings", TWO, facts)
    assert (parsed.readings, parsed.problems, parsed.facts) == ((), (), None)


@pytest.mark.parametrize("eid", [None, True, "x", {}, float("inf")])
def test_a_reading_without_an_id_costs_only_itself(eid: object) -> None:
    answer = [reading("production", eid=eid), reading("net-consumption", 7)]
    assert {topic.split("/")[1] for topic in values("readings", answer)} == {"net-consumption"}
    assert parse("readings", answer).problems


def test_an_id_as_text_is_the_same_id() -> None:
    assert values("readings", changed(TWO, "0.eid", str)) == values("readings", TWO)


# Phases


def lines_of(found: dict[str, str], role: str = "production") -> set[str]:
    steps = [topic.split("/") for topic in found if topic.startswith(f"meter/{role}/")]
    return {step[2] for step in steps if len(step) == 4}


@pytest.mark.parametrize(
    ("count", "lines"), [(1, set[str]()), (2, {"l1", "l2"}), (3, {"l1", "l2", "l3"})], ids=["one", "two", "three"]
)
@pytest.mark.parametrize("mode", ["three", "split", "single", ""])
def test_the_phase_count_tells_which_channels_are_real(count: int, lines: set[str], mode: str) -> None:
    """`phaseMode` is the kind of grid: most European homes have `three` and one phase."""
    assert lines_of(values("readings", TWO, home(count, mode=mode))) == lines


def test_meters_of_one_home_may_differ() -> None:
    """A home with three phases may have an inverter with a single phase."""
    found = values("readings", TWO, known(THREE, meters=(meter("production", 1), meter("net-consumption", 3))))
    assert (lines_of(found), lines_of(found, "net-consumption")) == (set(), {"l1", "l2", "l3"})


def test_each_phase_has_its_own_numbers() -> None:
    found = values("readings", [reading("production")], THREE)
    assert [found[f"meter/production/{line}/current"] for line in Phase] == ["10.625", "10.75", "10.875"]
    assert [found[f"meter/production/{line}/energy_delivered"] for line in Phase] == [
        *("100000.25", "100000.375", "100000.5"),
    ]
    assert found["meter/production/energy_delivered"] == "100000.125"
    assert [found[f"meter/production/{line}/eid"] for line in Phase] == ["1778385169", "1778385170", "1778385171"]
    assert "meter/production/eid" not in found


def test_where_there_is_one_phase_the_device_is_that_phase() -> None:
    found = values("readings", [reading("production")], SINGLE)
    assert {name: found[f"meter/production/{name}"] for name in ("voltage", "current", "power_factor")} == {
        "voltage": "230.125",
        "current": "10.5",
        "power_factor": "0.5",
    }
    assert len(found) == 14


def test_one_phase_does_not_count_the_volts_of_open_wires() -> None:
    """Some gateways add up three channels although only one wire is connected. Power and energy are right."""
    sums = reading("production", voltage=247.5, current=10.875, pwrFactor=0.9)
    for place, (volts, amperes) in enumerate([(236.25, 10.5), (4.5, 0.0), (6.75, 0.375)]):
        sums["channels"][place] |= {"voltage": volts, "current": amperes, "pwrFactor": 0.95}
    found = values("readings", [sums], SINGLE)

    shown = ("voltage", "current", "power_factor", "power")
    assert {name: found[f"meter/production/{name}"] for name in shown} == {
        "voltage": "236.25",
        "current": "10.5",
        "power_factor": "0.95",
        "power": "1001.25",
    }
    assert lines_of(found) == set()


@pytest.mark.parametrize("first", [239.75, 120.125, 0.0, None, "x"], ids=["same", "split", "dead", "null", "text"])
def test_one_phase_is_the_whole_where_its_channel_tells_nothing_else(first: object) -> None:
    answer = reading("production", voltage=240.25, current=10.25)
    answer["channels"][0] |= {"voltage": first, "current": 5.0}
    found = values("readings", [answer], SINGLE)
    assert (found["meter/production/voltage"], found["meter/production/current"]) == ("240.25", "10.25")


def test_voltage_of_several_phases() -> None:
    """The gateway gives the sum of the phases, whatever the kind of grid."""
    three, split = values("readings", TWO, THREE), values("readings", TWO, SPLIT)
    assert three["meter/production/voltage"] == "230.375"
    assert split["meter/production/voltage"] == "460.625"
    assert three["meter/net-consumption/voltage"] == "237.375"


def test_two_of_three_phases_are_no_split_phase() -> None:
    found = values("readings", TWO, home(2, mode="three"))
    assert found["meter/production/voltage"] == "230.312"


@pytest.mark.parametrize("facts", [SPLIT, THREE])
def test_current_and_power_factor_of_several_phases_mean_nothing(facts: Facts) -> None:
    found = values("readings", TWO, facts)
    for name in ("current", "power_factor"):
        assert f"meter/production/{name}" not in found
        assert f"meter/production/l2/{name}" in found


def test_with_a_storage_ct_the_third_channel_of_the_net_meter_is_not_published() -> None:
    """This channel repeats the storage leg in the captured answers of an 8.2.127 home. The aggregate is right."""
    net = reading("net-consumption", activePower=129.407)
    for place, (power, demand) in enumerate([(-201.39, -201.39), (330.797, 330.797), (-464.966, -464.966)]):
        net["channels"][place] |= {"activePower": power, "instantaneousDemand": demand}
    net["instantaneousDemand"] = 129.407
    found = values("readings", [net], home(2, ("production", "net-consumption", "storage")))

    assert {topic: payload for topic, payload in found.items() if topic.endswith("/power")} == {
        "meter/net-consumption/power": "129.407",
        "meter/net-consumption/l1/power": "-201.39",
        "meter/net-consumption/l2/power": "330.797",
    }


@pytest.mark.parametrize("bad", [None, 5, "text", []])
def test_a_bad_channel_does_not_move_the_others(bad: object) -> None:
    """L2 must never be published as L1. The device's voltage needs all channels."""
    answer = changed([reading("production")], "0.channels.0", lambda _: bad)
    good, found = values("readings", [reading("production")]), values("readings", answer)

    expected = {topic: payload for topic, payload in good.items() if "/l1/" not in topic}
    del expected["meter/production/voltage"]
    assert found == expected
    assert len(parse("readings", answer).problems) == 1


@pytest.mark.parametrize("channels", [[], None, "text", {}, 5])
def test_without_channels_the_total_remains(channels: object) -> None:
    found = values("readings", [reading("production", channels=channels)], SPLIT)
    assert found["meter/production/power"] == "1001.25"
    assert lines_of(found) == set()
    assert "meter/production/voltage" not in found


@pytest.mark.parametrize("voltage", [None, "x", True])
def test_a_voltage_that_is_missing_is_not_made_up(voltage: object) -> None:
    answer = changed([reading("production")], "0.channels.1.voltage", lambda _: voltage)
    found = values("readings", answer, SPLIT)
    assert "meter/production/voltage" not in found
    assert found["meter/production/l1/voltage"] == "230.25"
    assert found.get("meter/production/l2/voltage") == ("None" if voltage is None else None)


# Values


def test_signs_zeros_and_nothing() -> None:
    wire: dict[str, Any] = {
        "activePower": -0.0,
        "reactivePower": -5328.778,
        "apparentPower": -0.0004,
        "actEnergyDlvd": None,
        "actEnergyRcvd": 1.0,
        "apparentEnergy": 0.0004,
        "freq": "49.938",
        "current": True,
        "voltage": {},
    }
    answer = without([reading("production", **wire)], "0.reactEnergyLagg")
    found = values("readings", answer, SINGLE)

    assert {name: found.get(f"meter/production/{name}") for name in SHOWN} == SHOWN
    assert [problem.partition(":")[0] for problem in parse("readings", answer, SINGLE).problems] == [
        "MeterWithChannels.voltage",
        "MeterWithChannels.current",
    ]


SHOWN = {
    "power": "0",
    "reactive_power": "-5328.778",
    "apparent_power": "0",
    "energy_delivered": "None",
    "energy_received": "1",
    "apparent_energy": "0",
    "frequency": "49.938",
    "current": None,
    "voltage": None,
    "reactive_energy_lagging": None,
}


def test_a_fixed_eid_for_each_role_of_the_samples() -> None:
    """With fixed ids, a swap within the samples themselves would show."""
    assert len(set(EIDS.values())) == len(EIDS) - 1
    assert MODES[1] == MODES[3] != MODES[2]
