"""Turns readings into messages: the payload of each value, and that topics and documents of a device agree."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import BASE_TOPIC, NOW, SERIAL, documents_of, flat, restored, tree, values_of

from bridge.model import Measurement, Message, Phase, Priority, Reading, Scalar, Structure
from bridge.records import COUNT, POWER, TEXT, TIME, VOLTAGE, measurement
from bridge.rows import Row
from bridge.service.publisher import TreeState
from bridge.topics import Names, Tree, bridge_info, online, text

WHEN = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
STAMP = "2026-11-22T06:00:00+00:00"
POWER_ROW, VOLTAGE_ROW = measurement("power", POWER), measurement("voltage", VOLTAGE)
TYPE_ROW, NOTE_ROW = measurement("type", TEXT), measurement("note", TEXT)


def read(device: str, row: Measurement, value: Scalar | Structure, phase: Phase | None = None) -> Reading:
    return Reading(device, phase, row, value)


def update(into: Tree, source: str, *readings: Reading, when: datetime = WHEN) -> list[Message]:
    return list(into.update(source, readings, when))


# One value


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (-0.0004, "0"),
        (0.0005, "0.001"),
        (-0.001, "-0.001"),
        (1.0, "1"),
        (100.0, "100"),
        (1200, "1200"),
        (0.1 + 0.2, "0.3"),
        (239.916, "239.916"),
        (49.9, "49.9"),
        (-4.5, "-4.5"),
        (1e-9, "0"),
        (1e16, "10000000000000000"),
        (1.5e-2, "0.015"),
        (19338724.495, "19338724.495"),
        (10**15, "1000000000000000"),
        (4294967295, "4294967295"),
        (True, "ON"),
        (False, "OFF"),
        (None, "None"),
        ("", "None"),
        ("normal", "normal"),
        ("None of these", "None of these"),
    ],
)
def test_one_value(value: Scalar, payload: str) -> None:
    assert text(value) == payload


@pytest.mark.parametrize(
    ("moment", "payload"),
    [
        (WHEN, "2026-11-22T06:00:00+00:00"),
        (WHEN.replace(microsecond=250_000), "2026-11-22T06:00:00.250+00:00"),
        (WHEN.replace(microsecond=1), "2026-11-22T06:00:00.000+00:00"),
        (
            datetime(2026, 11, 22, 8, 30, tzinfo=timezone(timedelta(hours=2, minutes=30))),
            "2026-11-22T06:00:00+00:00",
        ),
        (datetime(1970, 1, 1, tzinfo=UTC), "1970-01-01T00:00:00+00:00"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), "9999-12-31T23:59:59+00:00"),
    ],
)
def test_times_have_an_offset(moment: datetime, payload: str) -> None:
    assert text(moment) == payload
    assert abs(datetime.fromisoformat(payload) - moment) < timedelta(milliseconds=1)


PLAIN = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]{0,2}[1-9])?")
"""A number without exponent or padding, with at most three decimals."""


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20))
def test_any_number_can_be_read_back(value: float) -> None:
    payload = text(value)
    assert PLAIN.fullmatch(payload)
    assert payload != "-0"
    assert math.isclose(float(payload), value, rel_tol=1e-15, abs_tol=0.0005 + 1e-12)


@given(st.floats(-1e9, 1e9))
def test_a_document_says_the_same_number(value: float) -> None:
    messages = update(tree(), "readings", read("meter/load", POWER_ROW, value))
    assert flat(documents_of(messages)) == values_of(messages) == {"meter/load/power": text(value)}


# Topics


def test_names() -> None:
    names = Names()
    assert names.bridge == "enphase/bridge"
    assert names.state("1") == "enphase/1/state"
    assert names.availability("1", "site") == "enphase/1/availability/site"
    assert names.device("1", "inverter/2") == "enphase/1/inverter/2"
    assert names.value("1", "inverter/2", None, "power") == "enphase/1/inverter/2/power"
    assert names.value("1", "meter/load", Phase.L3, "power") == "enphase/1/meter/load/l3/power"


def test_names_of_another_base_and_instance() -> None:
    names = Names("home/solar", "attic")
    assert names.bridge == "home/solar/bridge/attic"
    assert names.value("1", "gateway", None, "time") == "home/solar/1/gateway/time"


def test_states() -> None:
    assert online("a/b", is_online=True) == Message("a/b", "online", qos=1, priority=Priority.AVAILABILITY)
    assert online("a/b", is_online=False).payload == "offline"


def test_bridge_info() -> None:
    message = bridge_info(Names(), "1.2.3", WHEN, {"2", "1"}, 60.0, standing_by={"3": "enphase/bridge/a"})
    assert (message.topic, message.qos, message.content_type) == ("enphase/bridge/info", 1, "application/json")
    expected = {"version": "1.2.3", "started": STAMP, "gateways": ["1", "2"], "heartbeat": 60}
    assert json.loads(message.payload) == {**expected, "standing_by": {"3": "enphase/bridge/a"}}


# The tree


def test_a_device_and_its_phases() -> None:
    messages = update(
        tree(),
        "readings",
        read("meter/load", POWER_ROW, 1.25),
        read("meter/load", VOLTAGE_ROW, 230.5, Phase.L1),
        read("meter/load", VOLTAGE_ROW, None, Phase.L2),
        read("meter/evse", POWER_ROW, -3),
    )

    assert values_of(messages) == {
        "meter/load/power": "1.25",
        "meter/load/l1/voltage": "230.5",
        "meter/load/l2/voltage": "None",
        "meter/evse/power": "-3",
    }
    assert documents_of(messages) == {
        "meter/load": {"timestamp": STAMP, "power": 1.25, "l1": {"voltage": 230.5}, "l2": {"voltage": None}},
        "meter/evse": {"timestamp": STAMP, "power": -3},
    }


def test_a_nested_value_that_only_looks_equal_is_published() -> None:
    """True equals 1 in Python, also within a mapping."""
    row = measurement("packages", TEXT, document_only=True)
    shown, documents = tree(), list[object]()
    for value in (1, True):
        for message in update(shown, "info", read("gateway", row, {"a": value})):
            documents.append(json.loads(message.payload)["packages"]["a"])
    assert [str(value) for value in documents] == ["1", "True"]


def test_what_a_message_carries() -> None:
    slow = measurement("task", COUNT, interval=60)
    power, task, *documents = update(tree(), "livedata", read("live/pv", POWER_ROW, 1), read("live/tasks", slow, 2))

    assert power == Message(f"{BASE_TOPIC}live/pv/power", "1", deadband=1, interval=30)
    assert task == Message(f"{BASE_TOPIC}live/tasks/task", "2", interval=60)
    assert [(document.interval, document.qos, document.priority) for document in documents] == [
        (1, 0, Priority.VALUE),
        (60, 0, Priority.VALUE),
    ]


def test_a_document_is_as_fast_as_its_fastest_value() -> None:
    slow, readings = measurement("x", COUNT, interval=60), [read("gateway", POWER_ROW, 1)]
    *_, document = update(tree(), "info", read("gateway", slow, 2), *readings)
    assert document.interval == 1


@pytest.mark.parametrize(("payload", "topics", "documents"), [("both", 2, 1), ("values", 2, 0), ("json", 0, 1)])
def test_payload_modes(payload: str, topics: int, documents: int) -> None:
    into = tree(payload)
    messages = update(into, "readings", read("meter/load", POWER_ROW, 1), read("meter/load", VOLTAGE_ROW, 2))
    assert (len(values_of(messages)), len(documents_of(messages))) == (topics, documents)
    assert len(messages) == topics + documents
    assert len(list(into.rows)) == 2


def test_sources_of_one_device_make_one_document() -> None:
    into = tree()
    update(into, "meters", read("meter/load", TYPE_ROW, "normal"))
    messages = update(into, "readings", read("meter/load", POWER_ROW, 5))
    assert values_of(messages) == {"meter/load/power": "5"}
    assert documents_of(messages)["meter/load"] == {"timestamp": STAMP, "type": "normal", "power": 5}

    later = WHEN + timedelta(seconds=5)
    messages = update(into, "meters", read("meter/load", TYPE_ROW, "check"), when=later)
    assert documents_of(messages)["meter/load"] == {
        "timestamp": "2026-11-22T06:00:05+00:00",
        "type": "check",
        "power": 5,
    }


@pytest.mark.parametrize("order", [("inverters", "device_list"), ("device_list", "inverters")])
def test_the_first_source_of_the_table_owns_a_value_that_two_give(order: Sequence[str]) -> None:
    """An inverter's `type` is the number from `inverters`, whichever source answers first."""
    into, kinds = tree(), {"inverters": "1", "device_list": "microinverter"}
    first = [update(into, source, read("inverter/7", TYPE_ROW, kinds[source])) for source in order]
    documents = [documents_of(messages) for messages in first]
    assert documents[order.index("inverters")]["inverter/7"]["type"] == "1"
    for _ in range(2):
        for source in order:
            update(into, source, read("inverter/7", TYPE_ROW, kinds[source]))
    messages = update(
        into, "device_list", read("inverter/7", TYPE_ROW, "microinverter"), read("inverter/7", NOTE_ROW, "x")
    )

    assert values_of(messages) == {"inverter/7/note": "x"}
    assert documents_of(messages)["inverter/7"] == {"timestamp": STAMP, "type": "1", "note": "x"}
    assert [(row.measurement.name, row.source) for row in into.rows] == [
        ("type", "inverters"),
        ("note", "device_list"),
    ]


def test_a_value_that_its_source_lost_leaves_the_document() -> None:
    into = tree()
    update(into, "readings", read("meter/load", POWER_ROW, 1), read("meter/load", VOLTAGE_ROW, 2))
    messages = update(into, "readings", read("meter/load", VOLTAGE_ROW, 3))
    assert documents_of(messages) == {"meter/load": {"timestamp": STAMP, "voltage": 3}}


def test_a_value_that_its_source_lost_becomes_none_once() -> None:
    """Such as the current of a meter that has three phases now, or the power of one that was disabled."""
    into = tree()
    packages = measurement("packages", TEXT, document_only=True)
    both = (read("meter/load", POWER_ROW, 1), read("meter/storage", POWER_ROW, 4), read("gateway", packages, {}))
    update(into, "readings", *both, read("meter/load", VOLTAGE_ROW, 2))
    left = read("meter/load", VOLTAGE_ROW, 3)
    lost = {"meter/load/power": "None", "meter/storage/power": "None"}
    assert values_of(update(into, "readings", left)) == {"meter/load/voltage": "3"} | lost
    assert values_of(update(into, "readings", left)) == {"meter/load/voltage": "3"}
    assert values_of(update(into, "readings", *both, left))["meter/load/power"] == "1"


def test_one_source_does_not_take_away_what_another_gave() -> None:
    into = tree()
    update(into, "info", read("gateway", TYPE_ROW, "a"))
    update(into, "inverters", read("gateway", NOTE_ROW, "b"))
    messages = update(into, "info", read("gateway", TYPE_ROW, "c"))
    assert documents_of(messages)["gateway"] == {"timestamp": STAMP, "type": "c", "note": "b"}
    assert update(into, "inverters") == []


def test_a_value_called_timestamp_does_not_hide_the_documents_own() -> None:
    row = measurement("timestamp", TIME)
    messages = update(tree(), "livedata", read("live/tasks", row, WHEN - timedelta(days=1)))
    assert values_of(messages) == {"live/tasks/timestamp": "2026-11-21T06:00:00+00:00"}
    assert documents_of(messages)["live/tasks"] == {"timestamp": STAMP, "timestamp_2": "2026-11-21T06:00:00+00:00"}


def test_a_document_that_is_too_long_is_cleared_and_told_once_and_its_values_go_on() -> None:
    into = tree()
    short, long = ({f"p{n}": "x" * 250 for n in range(count)} for count in (10, 1_100))
    packages = measurement("packages", TEXT, document_only=True)

    def given(note: str, value: Structure) -> tuple[str, str | None]:
        """The payload of the value topic, and that of the document if there is one."""
        found = update(into, "info", read("gateway", NOTE_ROW, note), read("gateway", packages, value))
        payloads = {message.topic: message.payload for message in found}
        return payloads[f"enphase/{SERIAL}/gateway/note"], payloads.get(f"enphase/{SERIAL}/gateway")

    def events() -> list[str]:
        return [event.name for event in into.take_events()]

    assert len(given("a", short)[1] or "") > 2_500
    assert events() == []
    assert given("b", long) == ("b", "")
    assert events() == ["long_document"]
    assert given("c", long) == ("c", None)
    assert len(given("d", short)[1] or "") > 2_500
    assert given("e", long) == ("e", "")
    assert events() == []


def test_what_stands_in_the_document_only() -> None:
    into, row = tree(), measurement("packages", TEXT, document_only=True)
    messages = update(into, "info", read("gateway", row, {"app": {"version": "7", "size": 1.0, "ok": True}}))
    assert values_of(messages) == {}
    assert documents_of(messages)["gateway"]["packages"] == {"app": {"version": "7", "size": 1, "ok": True}}
    assert list(into.rows) == []


# What can be announced


def test_rows_are_told_in_the_order_of_their_first_appearance() -> None:
    into = tree()
    update(into, "readings", read("meter/load", POWER_ROW, 1), read("meter/load", POWER_ROW, 2, Phase.L1))
    update(into, "info", read("gateway", TYPE_ROW, "x"))
    update(into, "readings", read("meter/load", POWER_ROW, 1))
    assert list(into.rows) == [
        Row("meter/load", None, POWER_ROW, "readings"),
        Row("meter/load", Phase.L1, POWER_ROW, "readings"),
        Row("gateway", None, TYPE_ROW, "info"),
    ]


def test_the_version_grows_only_when_there_is_something_new() -> None:
    into, versions = tree(), [0]
    for source, reading in (
        ("device_list", read("inverter/7", TYPE_ROW, "a")),
        ("device_list", read("inverter/7", TYPE_ROW, "b")),
        ("inverters", read("inverter/7", TYPE_ROW, "1")),
        ("device_list", read("inverter/7", TYPE_ROW, "c")),
        ("readings", read("meter/load", POWER_ROW, 1)),
        ("readings", read("meter/load", POWER_ROW, 1, Phase.L1)),
        ("readings", read("meter/load", POWER_ROW, 2, Phase.L1)),
    ):
        update(into, source, reading)
        versions.append(into.rows.version)
    assert [new > old for old, new in pairwise(versions)] == [
        *(True, False, True, False),
        *(True, True, False),
    ]


def test_a_long_text_is_published_but_is_no_entity_until_it_is_short() -> None:
    """Home Assistant accepts no state of more than 255 characters."""
    into = tree()
    messages = update(into, "info", read("gateway", NOTE_ROW, "x" * 255), read("gateway", TYPE_ROW, "y" * 256))
    assert [row.measurement.name for row in into.rows] == ["note"]
    assert values_of(messages) == {"gateway/note": "x" * 255, "gateway/type": "y" * 256}

    before = into.rows.version
    update(into, "info", read("gateway", NOTE_ROW, "x" * 256), read("gateway", TYPE_ROW, "y"))
    assert [row.measurement.name for row in into.rows] == ["type"]
    assert into.rows.version > before


def test_what_is_no_entity_is_published_all_the_same() -> None:
    into = tree()
    messages = update(into, "info", read("gateway", measurement("x", COUNT, entity=False), 1))
    assert values_of(messages) == {"gateway/x": "1"}
    assert list(into.rows) == []


# Rows that are gone, and rows that are remembered

ONE_DAY = timedelta(days=1)


def cleared(messages: Sequence[Message]) -> list[str]:
    return [message.topic.removeprefix(BASE_TOPIC) for message in messages if not message.payload]


def test_what_is_absent_for_seven_days_is_gone() -> None:
    into = tree()
    power, voltage = read("meter/load", POWER_ROW, 1), read("meter/load", VOLTAGE_ROW, 2, Phase.L2)
    update(into, "readings", power, voltage)
    assert cleared(update(into, "readings", power, when=WHEN + ONE_DAY)) == []
    assert cleared(update(into, "readings", power, when=WHEN + 7.99 * ONE_DAY)) == []
    assert len(list(into.rows)) == 2

    before = into.rows.version
    assert cleared(update(into, "readings", power, when=WHEN + 8 * ONE_DAY)) == ["meter/load/l2/voltage"]
    assert into.rows.version > before
    assert [row.measurement.name for row in into.rows] == ["power"]
    assert [(row.measurement.name, row.phase) for row in into.rows.gone.values()] == [("voltage", Phase.L2)]
    assert cleared(update(into, "readings", power, when=WHEN + 30 * ONE_DAY)) == []


def test_a_device_that_is_gone_takes_its_document_along() -> None:
    into = tree()
    unit, other = read("inverter/7", POWER_ROW, 1), read("inverter/8", POWER_ROW, 2)
    update(into, "inverters", unit, other)
    update(into, "inverters", other, when=WHEN + ONE_DAY)
    assert cleared(update(into, "inverters", other, when=WHEN + 8 * ONE_DAY)) == ["inverter/7/power", "inverter/7"]
    assert {row.device for row in into.rows} == {"inverter/8"}


def test_a_device_of_which_another_source_tells_stays() -> None:
    into = tree()
    update(into, "device_list", read("inverter/7", NOTE_ROW, "x"))
    update(into, "inverters", read("inverter/7", POWER_ROW, 1), read("inverter/8", POWER_ROW, 2))
    update(into, "inverters", read("inverter/8", POWER_ROW, 2), when=WHEN + ONE_DAY)
    found = update(into, "inverters", read("inverter/8", POWER_ROW, 2), when=WHEN + 8 * ONE_DAY)
    assert cleared(found) == ["inverter/7/power"]


def test_what_comes_back_in_time_is_not_gone() -> None:
    into = tree()
    power, voltage = read("meter/load", POWER_ROW, 1), read("meter/load", VOLTAGE_ROW, 2)
    for day in range(0, 40, 4):
        update(into, "readings", power, voltage, when=WHEN + day * ONE_DAY)
        assert cleared(update(into, "readings", power, when=WHEN + (day + 2) * ONE_DAY)) == []


def test_what_comes_back_too_late_is_new() -> None:
    into = tree()
    power, voltage = read("meter/load", POWER_ROW, 1), read("meter/load", VOLTAGE_ROW, 2)
    update(into, "readings", power, voltage)
    for day in (1, 9):
        update(into, "readings", power, when=WHEN + day * ONE_DAY)
    found = update(into, "readings", power, voltage, when=WHEN + 10 * ONE_DAY)

    assert values_of(found)["meter/load/voltage"] == "2"
    assert list(into.rows.gone.values()) == []
    assert len(list(into.rows)) == 2


@pytest.mark.parametrize("answer", [[], [read("inverter/7", POWER_ROW, 1)]])
def test_an_empty_answer_and_another_source_say_nothing_of_what_is_gone(answer: list[Reading]) -> None:
    into = tree()
    update(into, "readings", read("meter/load", POWER_ROW, 1))
    for day in range(20):
        source = "inverters" if answer else "readings"
        assert cleared(update(into, source, *answer, when=WHEN + day * ONE_DAY)) == []


def test_an_empty_list_with_a_count_says_nothing_of_what_is_gone() -> None:
    """With snow on the roof, the list is `[]` for two weeks, and no inverter is gone."""
    into = tree()
    count = read("gateway", POWER_ROW, 1), read("gateway", VOLTAGE_ROW, 2)
    update(into, "inverters", *count, read("inverter/7", POWER_ROW, 1))
    for day in range(14):
        found = cleared(update(into, "inverters", count[0], when=WHEN + day * ONE_DAY))
        assert found == (["gateway/voltage"] if day == 7 else [])
    assert {row.device for row in into.rows} == {"gateway", "inverter/7"}


def rows_of(into: Tree) -> tuple[Row, ...]:
    """The rows of a tree that the next run reads."""
    return restored(TreeState(rows=tuple(into.rows))).rows


def test_seven_days_are_seven_days_over_restarts() -> None:
    """A bridge that is restarted each night must remove an inverter that was taken off the roof."""
    unit, other = read("inverter/7", POWER_ROW, 1), read("inverter/8", POWER_ROW, 2)
    into = tree()
    update(into, "inverters", unit, other)
    seen = []
    for night in range(1, 10):
        kept, into = rows_of(into), tree()
        assert into.rows.restore(kept)
        seen += [(night, topic) for topic in cleared(update(into, "inverters", other, when=WHEN + night * ONE_DAY))]
    assert seen == [(8, "inverter/7/power"), (8, "inverter/7")]


def test_what_was_back_before_a_restart_is_not_gone() -> None:
    unit, other = read("inverter/7", POWER_ROW, 1), read("inverter/8", POWER_ROW, 2)
    into = tree()
    update(into, "inverters", unit, other)
    update(into, "inverters", other, when=WHEN + ONE_DAY)
    update(into, "inverters", unit, other, when=WHEN + 2 * ONE_DAY)
    kept, into = rows_of(into), tree()
    assert into.rows.restore(kept)
    assert cleared(update(into, "inverters", other, when=WHEN + 9 * ONE_DAY)) == []


def test_rows_outlive_the_process() -> None:
    """So topics that were published before a restart can be cleared after it."""
    into = tree()
    power, other = read("inverter/7", POWER_ROW, 1), read("inverter/8", VOLTAGE_ROW, 2, Phase.L3)
    update(into, "inverters", power, other)
    kept = rows_of(into)

    again = tree()
    assert again.rows.restore(kept)
    assert list(again.rows) == list(into.rows)
    before = again.rows.version
    update(again, "inverters", power, when=WHEN + ONE_DAY)
    assert again.rows.version == before, "what was restored is nothing new"
    assert next(iter(again.rows)).measurement is POWER_ROW, "it would be compared word for word with each answer"
    assert cleared(update(again, "inverters", power, when=WHEN + 8 * ONE_DAY)) == [
        "inverter/8/l3/voltage",
        "inverter/8",
    ]


@pytest.mark.parametrize("kept", [None, [], "x", [1], [{}], {"a": 1}, [{"device": "x", "source": "inverters"}]])
def test_what_can_not_be_restored_is_nothing(kept: object) -> None:
    assert TreeState.model_validate({"rows": kept}).rows == ()


def test_rows_of_a_source_that_is_no_more_are_not_restored() -> None:
    into = tree()
    update(into, "info", read("gateway", TYPE_ROW, "x"))
    kept = [replace(row, source="another") for row in into.rows]
    assert not tree().rows.restore(kept)


def test_the_serial_number_is_a_level() -> None:
    assert f"enphase/{SERIAL}/" == BASE_TOPIC
    assert datetime.fromtimestamp(NOW, UTC).isoformat() == "2025-11-22T08:26:40+00:00"
