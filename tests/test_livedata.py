"""`/ivp/livedata/status`: the stream that must be kept on, the phases, and objects with unknown keys."""

import pytest
from samples import FLOWS, NO_METERS, SINGLE, SPLIT, THREE, UNKNOWN, home, known, live, meter, parse, values

from bridge.model import Facts, Request
from bridge.records import COUNT, NUMBER, TEXT, TIME

STREAM_REQUEST = Request("/ivp/livedata/stream", "POST", '{"enable": 1}')


def lines_of(found: dict[str, str]) -> set[str]:
    return {topic.split("/")[2] for topic in found if topic.count("/") == 3}


# The stream


@pytest.mark.parametrize(
    ("stream", "request_", "fresh"),
    [
        ("enabled", None, True),
        ("disabled", STREAM_REQUEST, False),
        ("Disabled", STREAM_REQUEST, False),
        ("something new", None, True),
        (None, None, True),
        ("Unknown", None, True),
        (5, None, True),
        ({}, None, True),
    ],
)
def test_a_stream_that_is_off_is_asked_for(stream: object, request_: Request | None, fresh: bool) -> None:
    parsed = parse("livedata", live(stream))
    assert (parsed.request, parsed.fresh) == (request_, fresh)
    assert parsed.readings


@pytest.mark.parametrize("connection", [None, [], "text", 5])
def test_an_answer_without_a_connection_asks_for_nothing(connection: object) -> None:
    parsed = parse("livedata", {**live(), "connection": connection})
    assert (parsed.request, parsed.fresh) == (None, True)
    assert any(reading.device == "live/pv" for reading in parsed.readings)


def test_an_off_stream_adds_a_text() -> None:
    """The answer has old values then: they are published, and their source is not fresh."""
    parsed = parse("livedata", {**live("disabled"), "info": "Stream is off; post enable to get live data"})
    assert values("livedata", live("disabled"))["live/pv/power"] == "1000.001"
    assert not parsed.fresh
    assert not parsed.problems


def test_the_stream_stands_with_the_system() -> None:
    found = values("livedata", live("disabled"))
    assert (found["live/system/stream"], found["live/connection/sc_stream"]) == ("disabled", "disabled")


# Phases


@pytest.mark.parametrize(
    ("facts", "own", "expected"),
    [
        (THREE, {"phase_count": 1}, 3),
        (SPLIT, {"phase_count": 3, "is_split_phase": 0}, 2),
        (SINGLE, {"phase_count": 3, "is_split_phase": 1}, 0),
        (home(3, ("production", "total-consumption")), {}, 3),
        (home(3, ("production",)), {"phase_count": 2}, 2),
        (known(THREE, meters=(meter("net-consumption", 2, enabled=False),)), {"phase_count": 3}, 3),
        (NO_METERS, {}, 0),
        (NO_METERS, {"phase_count": 3}, 3),
        (NO_METERS, {"phase_count": 3, "is_split_phase": 1}, 3),
        (NO_METERS, {"phase_count": 0, "is_split_phase": 1}, 2),
        (NO_METERS, {"phase_count": 0, "is_split_phase": 0}, 0),
        (NO_METERS, {"is_split_phase": "true"}, 2),
        (NO_METERS, {"phase_count": 1, "is_split_phase": 1}, 0),
        (NO_METERS, {"phase_count": "2"}, 2),
        (NO_METERS, {"phase_count": 17}, 3),
        (NO_METERS, {"phase_count": -1}, 0),
        (NO_METERS, {"phase_count": None, "is_split_phase": None}, 0),
        (UNKNOWN, {"phase_count": 3}, 0),
    ],
)
def test_phases(facts: Facts, own: dict[str, object], expected: int) -> None:
    """The phases are those of the consumption meter, or else those in the answer."""
    assert len(lines_of(values("livedata", live(**own), facts))) == expected


def test_each_phase_has_its_own_numbers() -> None:
    found = values("livedata", live(), THREE)
    assert [found[f"live/{name}/{line}/power"] for name in FLOWS for line in ("l1", "l2", "l3")] == [
        f"{3000 + place * 100}.00{3 + line}" for place in range(5) for line in range(3)
    ]
    assert found["live/load/l2/apparent_power"] == "4300.005"
    assert [found[f"live/{name}/apparent_power"] for name in FLOWS] == [
        *("2000.002", "2100.002", "2200.002", "2300.002", "2400.002"),
    ]


def test_phases_that_old_firmware_does_not_give_have_no_topic() -> None:
    found = values("livedata", live(grid={"agg_p_mw": 5}), THREE)
    assert {topic: payload for topic, payload in found.items() if topic.startswith("live/grid")} == {
        "live/grid/power": "0.005"
    }


@pytest.mark.parametrize("bad", [None, [], "text", 7, {}, {"agg_p_mw": "much", "agg_p_ph_a_mw": []}])
def test_a_bad_flow_costs_only_itself(bad: object) -> None:
    good, found = values("livedata", live(), THREE), values("livedata", live(grid=bad), THREE)
    assert found == {topic: payload for topic, payload in good.items() if not topic.startswith("live/grid")}


@pytest.mark.parametrize("meters", [None, [], "text"])
def test_without_meters_the_rest_remains(meters: object) -> None:
    answer = {**live(), "meters": meters, "tasks": {"task_id": 7}}
    assert values("livedata", answer) == {
        "live/connection/sc_stream": "enabled",
        "live/system/stream": "enabled",
        "live/tasks/task_id": "7",
    }


def test_signs_are_the_gateways_own() -> None:
    found = values(
        "livedata", live(storage={"agg_p_mw": -220800, "agg_s_mva": -559446, "agg_p_ph_a_mw": -0.0}), SPLIT
    )
    assert found["live/storage/power"] == "-220.8"
    assert found["live/storage/apparent_power"] == "-559.446"
    assert found["live/storage/l1/power"] == "0"


def test_charge() -> None:
    wire = {"soc": 97, "backup_soc": 10, "enc_agg_soc": 98, "acb_agg_soc": 0, "enc_agg_energy": 24800}
    found = values("livedata", live(**wire, acb_agg_energy=None, backup_bat_mode=1), SINGLE)
    assert {name: found[f"live/storage/{name}"] for name in CHARGE} == CHARGE


CHARGE = {
    "soc": "97",
    "backup_soc": "10",
    "encharge_soc": "98",
    "acb_soc": "0",
    "encharge_energy": "24800",
    "acb_energy": "None",
    "backup_mode": "1",
}


# Objects whose keys are the gateway's own


def free(name: str, given: object) -> dict[str, str]:
    found = values("livedata", {"connection": {"x": "y"}, name: given})
    return {
        topic: payload
        for topic, payload in found.items()
        if topic.startswith(f"live/{name}/") and topic[-2:] != "/x"
    }


def test_equal_keys_but_for_their_case_are_numbered() -> None:
    assert free("counters", {"a": 1, "A": 2, "a!": 3, "b": 4}) == {
        "live/counters/a": "1",
        "live/counters/a_2": "2",
        "live/counters/a_3": "3",
        "live/counters/b": "4",
    }


def test_a_number_that_is_taken_is_not_given_twice() -> None:
    found = free("counters", {"a": 1, "A": 2, "a_2": 3})
    assert found == {"live/counters/a": "1", "live/counters/a_2": "2", "live/counters/a_2_2": "3"}


def test_keys_that_say_nothing_have_no_topic() -> None:
    assert free("counters", {"": 1, "!!": 2, "?": 3, "__": 4, "é": 5, "A b/c+#": 6}) == {"live/counters/a_b_c": "6"}


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        (5, "5"),
        (-0.0, "0"),
        (1.25, "1.25"),
        ("ok", "ok"),
        (" Two  words ", "Two words"),
        ("Unknown", "None"),
        ("", "None"),
        (None, "None"),
        (True, "ON"),
        (10**15, "1000000000000000"),
        (10**15 + 1, None),
        ([1], None),
        ({"a": 1}, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
    ],
)
@pytest.mark.parametrize("name", ["connection", "tasks", "counters"])
def test_values_of_free_objects(name: str, value: object, payload: str | None) -> None:
    found = free(name, {"key": value, "other": 7})
    assert found == {f"live/{name}/other": "7"} | ({} if payload is None else {f"live/{name}/key": payload})


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        (1654219883, "2022-06-03T01:31:23+00:00"),
        (0, "None"),
        (-5, "None"),
        (2**32, "None"),
        (None, "None"),
        ("soon", "soon"),
        (1654219883.5, "2022-06-03T01:31:23.500+00:00"),
        ("1654219883", "2022-06-03T01:31:23+00:00"),
    ],
)
def test_the_time_of_a_task(value: object, payload: str) -> None:
    assert free("tasks", {"timestamp": value}) == {"live/tasks/timestamp": payload}


@pytest.mark.parametrize("given", [None, [], "text", 5, {}])
def test_free_objects_that_are_none(given: object) -> None:
    assert free("counters", given) == {}


def test_quantities_of_free_values() -> None:
    """A null must not turn a counter into a text: Home Assistant would keep it as one."""
    answer = {
        "connection": {"mqtt_state": "connected", "retries": 5, "other": None},
        "tasks": {"task_id": 1, "timestamp": 1654219883, "none": None},
        "counters": {"rest_Status": 579, "null": None, "text": "x"},
    }
    found = {
        (reading.device, reading.name): reading.quantity
        for reading in parse("livedata", answer).readings
        if reading.device != "live/system"
    }
    assert found == {
        ("live/connection", "mqtt_state"): TEXT,
        ("live/connection", "retries"): NUMBER,
        ("live/connection", "other"): TEXT,
        ("live/tasks", "task_id"): NUMBER,
        ("live/tasks", "timestamp"): TIME,
        ("live/tasks", "none"): NUMBER,
        ("live/counters", "rest_status"): COUNT,
        ("live/counters", "null"): COUNT,
        ("live/counters", "text"): TEXT,
    }


def test_free_values_are_sent_once_a_minute_at_most() -> None:
    answer = {**live(), "tasks": {"task_id": 1}, "counters": {"a": 1}}
    for reading in parse("livedata", answer).readings:
        free_one = reading.device in {"live/connection", "live/tasks", "live/counters"}
        assert reading.measurement.interval == (60 if free_one else None), reading
