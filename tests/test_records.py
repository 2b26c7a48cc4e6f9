"""One field at a time: what a wire value becomes, and what a bad one costs (only itself)."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from bridge.endpoints import device_list, info, inverters, livedata, meters, production, reports
from bridge.endpoints.body import Identity, level, phase_voltage, phases
from bridge.model import Phase, Quantity, Reading
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
    UnsignedWatts,
    WattHours,
    Watts,
    label,
    measurement,
    spelt,
    value_of,
    wire,
)

DROPPED = object()
"""The field has no value, and the answer a problem."""


class Sample(Record):
    """A record of every kind of field."""

    key: Annotated[str, Field(validation_alias="id")]
    power: Watts = wire("W", enabled=True)
    flow: Milliwatts = wire("mW", label="Flow of power")
    demand: UnsignedWatts = wire("uW")
    counter: UnsignedWattHours = wire("uWh")
    energy: WattHours = wire("whDlvdCum", "whDivdCum")
    name: Text = wire("name")
    status: LowerText = wire("status")
    flags: Texts = wire("flags")
    on: Flag = wire("on", diagnostic=True)
    at: Epoch = wire("at")


def read(field: str, value: object) -> tuple[Any, list[str]]:
    """A wire value of one field, and the problems it made."""
    problems: list[str] = []
    row = Sample.read({"id": "x", field: value, "untouched": {}, "W" if field != "W" else "mW": 7}, problems)
    assert row is not None
    assert (row.power if field != "W" else row.flow) == (7 if field != "W" else 0.007)
    name = next(name for name, given in Sample.model_fields.items() if field in alias(given.validation_alias))
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
        (2**53, 9007199254740992.0),
        (10**300, 1e300),
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


@pytest.mark.parametrize("field", ["uW", "uWh"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (4294967292, -4.0),
        ("4294967292", -4.0),
        (4294967292.5, -3.5),
        (4294967295, -1.0),
        (2147483648, -2147483648.0),
        (2147483647, 2147483647.0),
        (4294967296, 4294967296.0),
        (-4, -4.0),
        (0, 0.0),
    ],
)
def test_unsigned_fields_wrap(field: str, value: object, expected: object) -> None:
    expect(field, value, expected)


def test_other_fields_do_not_wrap() -> None:
    """A meter's counters have more than 32 bits: 4.29 GWh is 4.29 GWh."""
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
    both = Sample.read({"id": "x", "whDivdCum": 2, "whDlvdCum": 1}, [])
    assert both is not None
    assert both.energy == 1


def test_a_field_is_known_by_its_wire_name_only() -> None:
    row = Sample.read({"id": "x", "power": 5, "W": 6}, [])
    assert row is not None
    assert row.power == 6


def test_a_bad_field_costs_only_itself_and_is_named() -> None:
    problems: list[str] = []
    row = Sample.read({"id": "x", "W": [1], "mW": 2000, "at": "soon", "name": 7}, problems)

    assert row is not None
    assert {(reading.name, reading.value) for reading in row.readings("device")} == {("flow", 2.0), ("name", "7")}
    assert problems == [
        "Sample.power: list '[1]' is no value for it",
        "Sample.at: str 'soon' is no value for it",
    ]


def test_a_problem_does_not_repeat_a_whole_answer() -> None:
    problems: list[str] = []
    Sample.read({"id": "x", "W": "9x" * 10_000}, problems)
    assert problems == [f"Sample.power: str '{'9x' * 20}' is no value for it"]


@pytest.mark.parametrize("item", [None, 1, True, "text", [], [{"id": "x"}], {}, {"W": 1}, {"id": None}, {"id": {}}])
def test_what_is_no_record_is_said_in_one_line(item: object) -> None:
    problems: list[str] = []
    assert Sample.read(item, problems) is None
    assert len(problems) == 1
    assert problems[0].startswith("Sample")
    assert "\n" not in problems[0]
    assert "http" not in problems[0]


def test_readings_hold_what_was_given() -> None:
    row = Sample.read({"id": "x", "W": -1, "mW": None, "on": False, "other": 3}, [])
    assert row is not None

    assert list(row.readings("meter/load", Phase.L2)) == [
        Reading("meter/load", Phase.L2, Sample.table["power"], -1),
        Reading("meter/load", Phase.L2, Sample.table["flow"], None),
        Reading("meter/load", Phase.L2, Sample.table["on"], False),
    ]
    assert [reading.name for reading in row.readings("a", without=frozenset({"power", "on"}))] == ["flow"]


def test_a_line_of_the_table() -> None:
    assert list(Sample.table) == [name for name in Sample.model_fields if name != "key"]
    assert Sample.table["power"] == measurement("power", POWER, label="Power", enabled=True)
    assert Sample.table["flow"].label == "Flow of power"
    assert Sample.table["energy"].quantity is ENERGY
    assert Sample.table["status"].label == "Status"
    assert [name for name, row in Sample.table.items() if row.diagnostic] == ["on"]
    assert [name for name, row in Sample.table.items() if row.enabled] == ["power"]


def test_empty_is_an_answer_without_any_of_the_fields() -> None:
    class Loose(Record):
        power: Watts = wire("W")

    for item, empty in (({"error": 1}, True), ({}, True), ({"W": 1}, False), ({"W": None}, False)):
        row = Loose.read(item, [])
        assert row is not None
        assert row.empty is empty


def test_a_record_can_not_be_changed() -> None:
    row = Sample.read({"id": "x", "W": 1}, [])
    assert row is not None
    with pytest.raises(ValueError, match="frozen"):
        row.power = 2


def test_small_helpers() -> None:
    assert (value_of(ABSENT), value_of(0.0), value_of(None)) == (None, 0.0, None)
    assert label("energy_7d") == "Energy 7d"
    assert [spelt(value) for value in (1, 1.0, "1", True, None, float("inf"), [])] == [
        *("1", "1", "1"),
        *(None, None, None, None),
    ]


# What names a device

IDENTITY: TypeAdapter[str] = TypeAdapter(Identity)


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
    assert [level(text) for text in ("Net Consumption", " L1/+# ", "ÄÖ", "a--b", "_a_")] == [
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
    for module in (device_list, info, inverters, livedata, meters, production, reports):
        found = [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Record)]
        yield from (item for item in found if item.__module__ == module.__name__)


ROWS = [(record, row) for record in records() for row in record.table.values()]
UNITS = {
    "power": "W",
    "apparent_power": "VA",
    "reactive_power": "var",
    "voltage": "V",
    "current": "A",
    "frequency": "Hz",
    "power_factor": None,
    "energy": "Wh",
    "energy_storage": "Wh",
    "battery": "%",
    "timestamp": None,
}
"""Home Assistant's device classes and their units."""


def test_the_table_is_found() -> None:
    assert len({record for record, _ in ROWS}) >= 15
    assert len(ROWS) > 90


@pytest.mark.parametrize(
    ("record", "row"), ROWS, ids=lambda item: getattr(item, "name", getattr(item, "__name__", ""))
)
def test_every_line_of_the_table(record: type[Record], row: Any) -> None:
    quantity: Quantity = row.quantity
    assert record.table[row.name] is row
    assert row.name.replace("_", "").isalnum()
    assert row.name == row.name.lower()
    assert row.label
    assert row.label[0].isupper()
    if quantity.device_class in UNITS:
        assert quantity.unit == UNITS[quantity.device_class]
    else:
        assert quantity.device_class is None
        assert quantity.unit in {None, "VAh", "varh"}
    if quantity.unit:
        assert quantity.precision is not None
        assert quantity.deadband > 0 or quantity.unit == "%"
    if quantity.device_class == "energy":
        assert quantity.state_class in {"total_increasing", "total", None}
    elif quantity.unit in {"VAh", "varh"}:
        assert quantity.state_class in {"total_increasing", "total"}
    elif quantity.unit or quantity.device_class == "power_factor":
        assert quantity.state_class == "measurement"
    if quantity is TEXT or quantity.device_class == "timestamp":
        assert not quantity.numeric
        assert quantity.state_class is None


def test_energies_that_count_and_those_that_do_not() -> None:
    """Seven-day sums and the firmware's own "today" must never be taken for counters, reports may fall."""

    def classes(record: type[Record]) -> dict[str, str | None]:
        rows = ((name, row.quantity) for name, row in record.table.items())
        return {name: quantity.state_class for name, quantity in rows if (quantity.unit or "").endswith("h")}

    assert classes(production.Production) == {
        "energy_today": None,
        "energy_7d": None,
        "energy_lifetime": "total_increasing",
    }
    assert set(classes(meters.MeterReading).values()) == {"total_increasing"}
    assert set(classes(reports.Figures).values()) == {"total"}
    assert len(classes(meters.MeterReading)) == len(classes(reports.Figures)) == 5
    assert classes(livedata.Storage) == {"encharge_energy": "measurement", "acb_energy": "measurement"}
