"""Single fields: what a wire value becomes, and that a bad one costs only itself."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from bridge.endpoints import info, inventory, livedata, meters, production, storage, switchgear
from bridge.endpoints.parsing import DeviceId, phase_voltage, phases, topic_level
from bridge.model import Measurement, Phase, Quantity, Reading
from bridge.records import (
    ABSENT,
    ENERGY,
    POWER,
    TEXT,
    Epoch,
    Flag,
    LowerText,
    Milliwatts,
    Record,
    Text,
    Texts,
    UnsignedWattHours,
    WattHours,
    Watts,
    label,
    measurement,
    to_text,
    wire,
)

DROPPED = object()
"""The field has no value, and the answer has a problem."""


class SampleRecord(Record):
    """A record with every kind of field."""

    key: Annotated[str, Field(validation_alias="id")]
    power: Watts = wire("W", enabled=True)
    flow: Milliwatts = wire("mW", label="Flow of power")
    demand: Watts = wire("uW")
    counter: UnsignedWattHours = wire("uWh")
    energy: WattHours = wire("whDlvdCum", "whDivdCum")
    name: Text = wire("name")
    status: LowerText = wire("status")
    flags: Texts = wire("flags")
    on: Flag = wire("on", diagnostic=True)
    at: Epoch = wire("at")


def read(field: str, value: object) -> tuple[Any, list[str]]:
    """The value of one field, and the problems that it caused."""
    problems: list[str] = []
    row = SampleRecord.read({"id": "x", field: value, "untouched": {}, "W" if field != "W" else "mW": 7}, problems)
    assert row is not None
    assert (row.power if field != "W" else row.flow) == (7 if field != "W" else 0.007)
    name = next(name for name, given in SampleRecord.model_fields.items() if field in alias(given.validation_alias))
    return getattr(row, name), problems


def alias(given: object) -> tuple[object, ...]:
    return tuple(getattr(given, "choices", (given,)))


def expect(field: str, value: object, expected: object) -> None:
    found, problems = read(field, value)
    if expected is DROPPED:
        assert found is ABSENT
        assert len(problems) == 1
    else:
        assert (found, type(found), problems) == (expected, type(expected), [])


BAD_NUMBERS = [
    True,
    False,
    "abc",
    "12 W",
    [1],
    {"a": 1},
    float("nan"),
    float("inf"),
    "inf",
    "-Infinity",
    "1e999",
    10**400,
]
NOTHING = [None, "Unknown", "unknown", " UNKNOWN ", "", "  ", "null", "None", "nan", "unavailable"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (-2.5, -2.5),
        ("3.25", 3.25),
        (" -4 ", -4.0),
        ("1e3", 1000.0),
        (0, 0.0),
        (10**10, 1e10),
        (-(10**10), -1e10),
        (10**10 + 1, DROPPED),
        ("-1e11", DROPPED),
        (10**300, DROPPED),
        *((value, None) for value in NOTHING),
        *((value, DROPPED) for value in BAD_NUMBERS),
    ],
)
def test_numbers(value: object, expected: object) -> None:
    expect("W", value, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1500, 1.5), (-220_800, -220.8), (1, 0.001), ("29212", 29.212), (0, 0.0), (None, None), (True, DROPPED)],
)
def test_milli_units(value: object, expected: object) -> None:
    expect("mW", value, expected)


@pytest.mark.parametrize("field", ["uW", "uWh", "W"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (4294967292, -4.0),
        ("4294967292", -4.0),
        (4294967292.5, -3.5),
        (4294967295, -1.0),
        (4294967296, 4294967296.0),
        (2147483647, 2147483647.0),
        (-4, -4.0),
        (0, 0.0),
    ],
)
def test_unsigned_fields_wrap(field: str, value: object, expected: object) -> None:
    expect(field, value, expected)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("uW", 2147483648, -2147483648.0),
        ("W", 2147483648, -2147483648.0),
        ("mW", 4294963296, -4.0),
        ("uWh", 2147483648, 2147483648.0),
        ("uWh", 4294867295, 4294867295.0),
        ("uWh", 4294867296, -100000.0),
    ],
)
def test_of_an_energy_only_the_highest_numbers_are_negative(field: str, value: object, expected: object) -> None:
    """The sum of a site of 1,000 inverters passes 2^31 Wh after some years; no power does."""
    expect(field, value, expected)


def test_other_fields_do_not_wrap() -> None:
    """A meter's counters have more than 32 bits: 4.29 GWh stay 4.29 GWh."""
    expect("whDlvdCum", 4294967292, 4294967292.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("connected", "connected"),
        ("  D8.3.5169\n ", "D8.3.5169"),
        ("two\n  lines", "two lines"),
        (11, "11"),
        (11.0, "11"),
        (2.5, "2.5"),
        ("NaN of a kind", "NaN of a kind"),
        *((value, None) for value in NOTHING),
        (True, DROPPED),
        ([], DROPPED),
        ({}, DROPPED),
        (float("nan"), DROPPED),
        (float("inf"), DROPPED),
        (10**400, DROPPED),
    ],
)
def test_texts(value: object, expected: object) -> None:
    expect("name", value, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("Connected", "connected"), ("Unknown", None), (None, None), (True, DROPPED), ([1], DROPPED)],
)
def test_lower_case_texts(value: object, expected: object) -> None:
    expect("status", value, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "none"),
        (["a"], "a"),
        (["production-imbalance", "power-on-unused-phase"], "production-imbalance,power-on-unused-phase"),
        ([1, 2.0], "1,2"),
        (["a", None, {}, True, "Unknown", "b"], "a,b"),
        ([None], "none"),
        (None, None),
        ("Unknown", None),
        ("a", DROPPED),
        ({}, DROPPED),
        (3, DROPPED),
    ],
)
def test_lists(value: object, expected: object) -> None:
    expect("flags", value, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("true", True),
        ("False", False),
        (" TRUE ", True),
        ("1", True),
        ("0", False),
        (None, None),
        ("Unknown", None),
        (2, DROPPED),
        (-1, DROPPED),
        (1.0, DROPPED),
        ("yes", DROPPED),
        ([], DROPPED),
    ],
)
def test_flags(value: object, expected: object) -> None:
    expect("on", value, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1654218661, datetime(2022, 6, 3, 1, 11, 1, tzinfo=UTC)),
        ("1654218661", datetime(2022, 6, 3, 1, 11, 1, tzinfo=UTC)),
        (1654218661.25, datetime(2022, 6, 3, 1, 11, 1, 250_000, tzinfo=UTC)),
        (253_402_300_799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (0, None),
        ("0", None),
        (None, None),
        ("Unknown", None),
        (253_402_300_800, DROPPED),
        (10**30, DROPPED),
        (-1, DROPPED),
        (True, DROPPED),
        ("yesterday", DROPPED),
        (float("nan"), DROPPED),
    ],
)
def test_times(value: object, expected: object) -> None:
    expect("at", value, expected)


def test_a_field_may_have_two_names() -> None:
    assert read("whDlvdCum", 1)[0] == read("whDivdCum", 1)[0] == 1
    both = SampleRecord.read({"id": "x", "whDivdCum": 2, "whDlvdCum": 1}, [])
    assert both is not None
    assert both.energy == 1


def test_a_field_is_known_by_its_wire_name_only() -> None:
    row = SampleRecord.read({"id": "x", "power": 5, "W": 6}, [])
    assert row is not None
    assert row.power == 6


def test_a_bad_field_costs_only_itself_and_is_named() -> None:
    problems: list[str] = []
    row = SampleRecord.read({"id": "x", "W": [1], "mW": 2000, "at": "soon", "name": 7}, problems)

    assert row is not None
    assert {(reading.name, reading.value) for reading in row.readings("device")} == {("flow", 2.0), ("name", "7")}
    assert problems == [
        "SampleRecord.power: list is no value for it",
        "SampleRecord.at: str 'soon' is no value for it",
    ]


def test_a_problem_does_not_repeat_a_whole_answer() -> None:
    problems: list[str] = []
    SampleRecord.read({"id": "x", "W": "9x" * 10_000}, problems)
    assert problems == [f"SampleRecord.power: str '{'9x' * 20}' is no value for it"]


@pytest.mark.parametrize("item", [None, 1, True, "text", [], [{"id": "x"}], {}, {"W": 1}, {"id": None}, {"id": {}}])
def test_what_is_no_record_is_said_in_one_line(item: object) -> None:
    problems: list[str] = []
    assert SampleRecord.read(item, problems) is None
    assert len(problems) == 1
    assert problems[0].startswith("SampleRecord")
    assert "\n" not in problems[0]
    assert "http" not in problems[0]


def test_readings_hold_what_was_given() -> None:
    row = SampleRecord.read({"id": "x", "W": -1, "mW": None, "on": False, "other": 3}, [])
    assert row is not None

    assert list(row.readings("meter/load", Phase.L2)) == [
        Reading("meter/load", Phase.L2, SampleRecord.table["power"], -1),
        Reading("meter/load", Phase.L2, SampleRecord.table["flow"], None),
        Reading("meter/load", Phase.L2, SampleRecord.table["on"], False),
    ]
    assert [reading.name for reading in row.readings("a", without=frozenset({"power", "on"}))] == ["flow"]


def test_a_line_of_the_table() -> None:
    assert list(SampleRecord.table) == [name for name in SampleRecord.model_fields if name != "key"]
    assert SampleRecord.table["power"] == measurement("power", POWER, label="Power", enabled=True)
    assert SampleRecord.table["flow"].label == "Flow of power"
    assert SampleRecord.table["energy"].quantity is ENERGY
    assert SampleRecord.table["status"].label == "Status"
    assert [name for name, row in SampleRecord.table.items() if row.diagnostic] == ["on"]
    assert [name for name, row in SampleRecord.table.items() if row.enabled] == ["power"]


def test_empty_is_an_answer_without_any_of_the_fields() -> None:
    class Loose(Record):
        power: Watts = wire("W")

    for item, empty in (({"error": 1}, True), ({}, True), ({"W": 1}, False), ({"W": None}, False)):
        row = Loose.read(item, [])
        assert row is not None
        assert row.empty is empty


def test_a_record_can_not_be_changed() -> None:
    row = SampleRecord.read({"id": "x", "W": 1}, [])
    assert row is not None
    with pytest.raises(ValueError, match="frozen"):
        row.power = 2  # type: ignore[misc] # that it can not be is what is tested


def test_small_helpers() -> None:
    assert label("energy_7d") == "Energy 7d"
    given: tuple[object, ...] = (1, 1.0, "1", True, None, float("inf"), [])
    assert [to_text(value) for value in given] == [
        *("1", "1", "1"),
        *(None, None, None, None),
    ]


# Names of devices

IDENTITY: TypeAdapter[str] = TypeAdapter(DeviceId)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("122125067699", "122125067699"),
        (122125067699, "122125067699"),
        (122125067699.0, "122125067699"),
        ("net-consumption", "net-consumption"),
        (" AB_12 ", "ab_12"),
        ("a/b+c#", "a-b-c"),
        ("x" * 64, "x" * 64),
    ],
)
def test_identities(value: object, expected: str) -> None:
    assert IDENTITY.validate_python(value) == expected


@pytest.mark.parametrize(
    "value", [None, "", " ", "Unknown", "***", "-", True, [], {}, 1.5e400, float("nan"), "x" * 65, "é", b"12"]
)
def test_what_names_no_device(value: object) -> None:
    with pytest.raises(ValueError, match="names no device"):
        IDENTITY.validate_python(value)


def test_levels() -> None:
    assert [topic_level(text) for text in ("Net Consumption", " L1/+# ", "ÄÖ", "a--b", "_a_")] == [
        *("net-consumption", "l1", ""),
        *("a--b", "_a_"),
    ]


def test_phases() -> None:
    l1, l2, l3 = Phase
    assert [phases(count) for count in (0, 1, 2, 3)] == [(), (), (l1, l2), (l1, l2, l3)]


def test_voltage_of_several_phases() -> None:
    l1, l2, l3 = Phase
    three = {l1: 230.1, l2: 231.2, l3: 232.6}
    assert phase_voltage(three, (l1, l2, l3), split=False) == 231.3
    assert phase_voltage(three, (l1, l2), split=True) == 461.3
    assert phase_voltage({l1: 230.1, l2: 231.2}, (l1, l2, l3), split=False) is None
    assert phase_voltage({**three, l2: None}, (l1, l2, l3), split=False) is None
    assert phase_voltage({**three, l2: ABSENT}, (l1, l2, l3), split=False) is None
    assert phase_voltage({}, (), split=False) is None


# The table as a whole


def records() -> Iterator[type[Record]]:
    for module in (info, inventory, livedata, meters, production, storage, switchgear):
        found = [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Record)]
        yield from (item for item in found if item.__module__ == module.__name__)


ROWS = [(record, row) for record in records() for row in record.table.values()]
UNITS: dict[str, set[str | None]] = {
    "power": {"W"},
    "apparent_power": {"VA"},
    "reactive_power": {"var"},
    "voltage": {"V"},
    "current": {"A"},
    "frequency": {"Hz"},
    "power_factor": {None},
    "energy": {"Wh"},
    "energy_storage": {"Wh"},
    "battery": {"%"},
    "temperature": {"°C"},
    "duration": {"s"},
    "timestamp": {None},
    "connectivity": {None},
}
"""Home Assistant's device classes and their units."""


def test_the_table_is_found() -> None:
    assert len({record for record, _ in ROWS}) >= 35
    assert len(ROWS) > 250


def faults_of(record: type[Record], row: Measurement) -> Iterator[str]:
    """The mistakes in one line of the table."""
    quantity = row.quantity
    units_of_class = UNITS.get(quantity.device_class) if quantity.device_class else {None, "VAh", "varh", "%"}
    checks = {
        "it is in the table under its name": record.table[row.name] is row,
        "its name is a topic level": row.name.replace("_", "").isalnum() and row.name == row.name.lower(),
        "its label begins with a capital letter": row.label[:1].isupper(),
        "its device class is known, and has this unit": units_of_class and quantity.unit in units_of_class,
        "a unit has a precision": quantity.precision is not None or not quantity.unit,
        "a unit has a dead band": quantity.deadband > 0
        or quantity.unit in {None, "%", "s"}
        or row in WITHOUT_DEAD_BAND,
        "a text or a time is no number": not (
            (quantity is TEXT or quantity.device_class == "timestamp")
            and (quantity.numeric or quantity.state_class)
        ),
        "its state class fits": quantity.state_class in state_classes(quantity),
    }
    yield from (f"{record.__name__}.{row.name}: {check}" for check, is_right in checks.items() if not is_right)


WITHOUT_DEAD_BAND = (production.Microinverter.table["last_report_energy"],)
"""Each report has an energy of its own."""


def state_classes(quantity: Quantity) -> set[str | None]:
    if quantity.device_class == "energy":
        return {"total_increasing", "total", None}
    if quantity.unit in {"VAh", "varh"}:
        return {"total_increasing", "total"}
    if quantity.unit or quantity.device_class == "power_factor":
        return {"measurement"}
    return {"measurement", None}


def test_every_line_of_the_table() -> None:
    assert [fault for record, row in ROWS for fault in faults_of(record, row)] == []


def test_energies_that_count_and_those_that_do_not() -> None:
    """Seven-day sums and the firmware's own energy of today must not be counters. Energies of reports may fall."""

    def classes(record: type[Record]) -> dict[str, str | None]:
        rows = ((name, row.quantity) for name, row in record.table.items())
        return {name: quantity.state_class for name, quantity in rows if (quantity.unit or "").endswith("h")}

    assert classes(production.Production) == {
        "energy_today": None,
        "energy_7d": None,
        "energy_lifetime": "total_increasing",
    }
    assert set(classes(meters.MeterReading).values()) == {"total_increasing"}
    assert set(classes(meters.ReportValues).values()) == {"total"}
    assert len(classes(meters.MeterReading)) == len(classes(meters.ReportValues)) == 5
    assert classes(livedata.LiveStorage) == {"encharge_energy": "measurement", "acb_energy": "measurement"}
