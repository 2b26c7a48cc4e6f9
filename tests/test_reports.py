"""`/ivp/meters/reports/consumption` and `/ivp/meters/gridReading`: the phases that exist, each in its place."""

from typing import Any

import pytest
from samples import NO_METERS, SINGLE, SPLIT, THREE, UNKNOWN, changed, home, known, meter, parse, values, without

from bridge.model import BadAnswer, Facts, Phase

FIGURES = {
    "currW": 100.5,
    "actPower": 101.25,
    "apprntPwr": 102.5,
    "reactPwr": -103.75,
    "whDlvdCum": 104_000.5,
    "whRcvdCum": 105_000.25,
    "varhLagCum": -106_000.5,
    "varhLeadCum": 107_000.75,
    "vahCum": 108_000.125,
    "rmsVoltage": 240.5,
    "rmsCurrent": -9.5,
    "pwrFactor": 1.5,
    "freqHz": 50.0,
}


def figures(step: float) -> dict[str, float]:
    return {name: value + step for name, value in FIGURES.items()}


def report(kind: str, lines: int, step: float = 0, **changes: object) -> dict[str, Any]:
    return {
        "createdAt": 1654625079 + int(step),
        "reportType": kind,
        "cumulative": figures(step),
        "lines": [figures(step + (place + 1) / 8) for place in range(lines)],
        **changes,
    }


def grid(**changes: object) -> list[dict[str, Any]]:
    channels = [
        {
            "phase": f"L{place}",
            "activePower": -600.5 - place,
            "reactivePower": 60.25 + place,
            "voltage": 230.5 + place,
            "current": 2.75 + place,
            "freq": 50.0 + place / 8,
        }
        for place in (1, 2, 3)
    ]
    return [{"channels": channels, **changes}]


def lines_of(found: dict[str, str]) -> set[str]:
    return {topic.split("/")[2] for topic in found if topic.count("/") == 3}


# Reports


def test_both_reports_keep_their_numbers() -> None:
    answer = [report("total-consumption", 3, 40), report("net-consumption", 3)]
    found = values("consumption", answer)

    assert found["report/net-consumption/power"] == "101.25"
    assert found["report/total-consumption/power"] == "141.25"
    assert found["report/net-consumption/l3/power"] == "101.625"
    assert found["report/total-consumption/l1/power"] == "141.375"
    assert found["report/net-consumption/measured_at"] == "2022-06-07T18:04:39+00:00"
    assert found["report/total-consumption/measured_at"] == "2022-06-07T18:05:19+00:00"


def test_cumulative_values_that_mean_nothing_for_several_phases() -> None:
    """There the current is a signed sum, the power factor a quotient, and the voltage the sum of the phases."""
    for facts in (SPLIT, THREE):
        found = values("consumption", report("net-consumption", 3), facts)
        assert "report/net-consumption/current" not in found
        assert "report/net-consumption/power_factor" not in found
        assert found["report/net-consumption/l2/current"] == "-9.25"

    single = values("consumption", report("net-consumption", 1), SINGLE)
    assert single["report/net-consumption/current"] == "-9.5"
    assert single["report/net-consumption/voltage"] == "240.5"
    assert lines_of(single) == set()
    assert len(single) == 14


def test_voltage_of_several_phases() -> None:
    answer = report("net-consumption", 3)
    assert values("consumption", answer, THREE)["report/net-consumption/voltage"] == "240.75"
    assert values("consumption", answer, SPLIT)["report/net-consumption/voltage"] == "481.375"
    assert values("consumption", answer, home(2, mode="three"))["report/net-consumption/voltage"] == "240.688"


@pytest.mark.parametrize(
    ("facts", "expected"), [(SINGLE, 0), (SPLIT, 2), (THREE, 3), (NO_METERS, 3), (UNKNOWN, 3)], ids=str
)
def test_the_consumption_meter_tells_the_phases_else_the_lines(facts: Facts, expected: int) -> None:
    assert len(lines_of(values("consumption", report("total-consumption", 3), facts))) == expected


def test_lines_alone_tell_what_kind_of_grid_it_is() -> None:
    two, three = (values("consumption", report("net-consumption", count), NO_METERS) for count in (2, 3))
    assert two["report/net-consumption/voltage"] == "481.375"
    assert three["report/net-consumption/voltage"] == "240.75"
    assert (
        values("consumption", report("net-consumption", 1), NO_METERS)["report/net-consumption/voltage"] == "240.5"
    )
    assert len(lines_of(values("consumption", report("net-consumption", 5), NO_METERS))) == 3


def test_a_disabled_consumption_meter_tells_nothing() -> None:
    facts = known(THREE, meters=(meter("net-consumption", 1, enabled=False),))
    assert len(lines_of(values("consumption", report("net-consumption", 2), facts))) == 2


@pytest.mark.parametrize("bad", [None, 5, "text", []])
def test_a_bad_line_does_not_move_the_others(bad: object) -> None:
    good = values("consumption", report("net-consumption", 3))
    found = values("consumption", changed(report("net-consumption", 3), "lines.0", lambda _: bad))

    expected = {topic: payload for topic, payload in good.items() if "/l1/" not in topic}
    del expected["report/net-consumption/voltage"]
    assert found == expected


@pytest.mark.parametrize("part", ["cumulative", "lines"])
@pytest.mark.parametrize("bad", [None, "text", 5])
def test_a_bad_part_costs_only_itself(part: str, bad: object) -> None:
    found = values("consumption", report("net-consumption", 3) | {part: bad})
    assert ("report/net-consumption/power" in found) is (part != "cumulative")
    assert ("report/net-consumption/l2/power" in found) is (part != "lines")
    assert "report/net-consumption/measured_at" in found


def test_negative_energies_are_passed_on() -> None:
    """These energies are differences that the gateway computes."""
    assert values("consumption", report("net-consumption", 1), SINGLE)[
        "report/net-consumption/reactive_energy_lagging"
    ] == ("-106000.5")


@pytest.mark.parametrize("kind", [None, "", "***", {}, True])
def test_a_report_of_nothing_costs_only_itself(kind: object) -> None:
    answer = [report("x", 1, reportType=kind), report("net-consumption", 1)]
    assert {topic.split("/")[1] for topic in values("consumption", answer, SINGLE)} == {"net-consumption"}
    with pytest.raises(BadAnswer):
        parse("consumption", answer[:1])


# Grid


def test_unused_phases_of_the_grid_are_noise() -> None:
    assert lines_of(values("grid", grid(), THREE)) == {"l1", "l2", "l3"}
    assert lines_of(values("grid", grid(), SPLIT)) == {"l1", "l2"}
    assert values("grid", grid(), SINGLE) == {
        "report/grid/power": "-601.5",
        "report/grid/reactive_power": "61.25",
        "report/grid/voltage": "231.5",
        "report/grid/current": "3.75",
        "report/grid/frequency": "50.125",
    }


def test_the_whole_of_the_grid_is_the_sum_of_its_phases() -> None:
    for facts, power, reactive in ((SPLIT, "-1204", "123.5"), (THREE, "-1807.5", "186.75")):
        found = values("grid", grid(), facts)
        assert (found["report/grid/power"], found["report/grid/reactive_power"]) == (power, reactive)
        assert {topic for topic in found if topic.count("/") == 2} == {
            "report/grid/power",
            "report/grid/reactive_power",
        }


def test_phases_of_the_grid_are_known_by_their_names() -> None:
    turned = [{"channels": grid()[0]["channels"][::-1]}]
    assert values("grid", turned) == values("grid", grid())
    assert values("grid", turned, SINGLE)["report/grid/voltage"] == "231.5"


@pytest.mark.parametrize("name", [None, "", 1, True, [], "A", "L4"])
def test_a_phase_without_a_name_is_known_by_its_place(name: object) -> None:
    answer = changed(grid(), "0.channels.1.phase", lambda _: name)
    assert values("grid", answer) == values("grid", grid())
    assert values("grid", without(grid(), "0.channels.1.phase")) == values("grid", grid())


@pytest.mark.parametrize("bad", [None, "text", 5, []])
def test_a_bad_channel_of_the_grid_costs_itself_and_the_whole(bad: object) -> None:
    """The sum of two phases would be false for three."""
    found = values("grid", changed(grid(), "0.channels.0", lambda _: bad))
    assert lines_of(found) == {"l2", "l3"}
    assert found["report/grid/l2/voltage"] == "232.5"
    assert "report/grid/power" not in found


def test_a_bad_field_of_the_grid_costs_itself_and_its_sum() -> None:
    found = values("grid", changed(grid(), "0.channels.2.activePower", lambda _: "much"))
    assert "report/grid/power" not in found
    assert "report/grid/l3/power" not in found
    assert found["report/grid/reactive_power"] == "186.75"


def test_without_facts_no_phase_is_known() -> None:
    assert values("grid", grid(), UNKNOWN) == {}
    assert parse("grid", grid(), UNKNOWN).problems == ()


def test_a_gateway_without_meters_has_one_phase() -> None:
    assert values("grid", grid(), NO_METERS) == values("grid", grid(), SINGLE)


@pytest.mark.parametrize("channels", [None, [], "text", 5, {}])
def test_channels_that_are_none(channels: object) -> None:
    assert values("grid", grid(channels=channels)) == {}


def test_an_object_in_place_of_the_list() -> None:
    assert values("grid", grid()[0]) == values("grid", grid())


def test_phase_names_are_those_of_the_tree() -> None:
    assert [phase.value for phase in Phase] == ["l1", "l2", "l3"]
