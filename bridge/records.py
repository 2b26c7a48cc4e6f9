"""How a line of the table is written: types that know their unit, and records that know their wire names.

A record's field declares all there is to say of a measurement::

    voltage: Volts = wire("voltage")

Its name is the topic's last part, its type gives unit, conversion and Home Assistant's classes, and `wire`
says where the number stands in the gateway's answer. Readings, topics, discovery and the docs derive from it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticUseDefault, core_schema

from bridge.model import Axis, Measurement, Platform, Quantity, Reading, Scalar

UINT32 = 2**32
JOULES = 3600
"""Joules of a watt-hour."""
LATEST = 253_402_300_799  # the last second of the year 9999; datetime knows none after it
NOTHING = frozenset({"", "unknown", "unavailable", "null", "none", "nan"})


class Absent(Enum):
    """A field that the gateway did not give, or gave in a form that can't be used: it has no topic."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Reads:
    """In a field's type: what `convert` makes of the wire's value is the field's, and is not looked at again.

    pydantic's own validators would check it against the type once more, which costs more than the conversion, and
    keeps some kB for each field.
    """

    convert: Callable[[Any, ValidationInfo], object]

    def __get_pydantic_core_schema__(self, _type: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.convert)


def _unusable(value: object, info: ValidationInfo) -> PydanticUseDefault:
    """Drop one field instead of its whole record: a firmware update that breaks one must not take the others."""
    if isinstance(info.context, list):
        info.context.append(f"{info.field_name}: {type(value).__name__} {str(value)[:40]!r} is no value for it")
    return PydanticUseDefault()


def finite(value: object) -> int | float | None:
    """A number, also one given as text; `None` where it is none, or one that no float can hold."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def number(*, scale: float = 1, zero: float = 0, digits: int | None = None, unsigned: bool = False) -> Reads:
    """A finite number, given as a number or as text.

    `scale` turns the wire's unit into ours, counted from the wire's `zero`, and `digits` keeps so many decimals.
    `unsigned` fields of 32 bits show small negatives as 4294967292 (seen on firmware 7 and 8).
    """

    def convert(value: object, info: ValidationInfo) -> object:
        found = finite(value)
        if found is None:
            _refuse(value, info)
            return None
        if unsigned and UINT32 / 2 <= found < UINT32:
            found -= UINT32
        if scale != 1:
            found = (found - zero) * scale
        return float(found) if digits is None else round(found, digits)

    return Reads(convert)


def plain(text: str) -> str | None:
    """A text as subscribers may see it; what says nothing is `None` (docs/topics.md)."""
    text = " ".join(text.split())
    return None if text.lower() in NOTHING else text


def _says_nothing(value: object) -> bool:
    """Null, or a text such as `Unknown`, in a field of whatever type."""
    return value is None or (isinstance(value, str) and plain(value) is None)


def _refuse(value: object, info: ValidationInfo) -> None:
    """What is no number may be a way to say nothing."""
    if not _says_nothing(value):
        raise _unusable(value, info)


def _text(value: object, info: ValidationInfo) -> str | None:
    if _says_nothing(value):
        return None
    found = spelt(value)
    if found is None:
        raise _unusable(value, info)
    return found


def spelt(value: object) -> str | None:
    """A text, or a number as one; `None` where it is neither."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return plain(value)
    return None if isinstance(value, bool) or finite(value) is None else str(value)


def worded(convert: Callable[[str], str | bool | None]) -> Reads:
    """A text, or a number as one, that stands for something else."""

    def read(value: object, info: ValidationInfo) -> object:
        text = _text(value, info)
        return None if text is None else convert(text)

    return Reads(read)


def _flag(value: object, info: ValidationInfo) -> object:
    """Some firmware sends booleans as text, others as 0 and 1."""
    if _says_nothing(value):
        return None
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower(), value)
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise _unusable(value, info)


def _not_flag(value: object, info: ValidationInfo) -> object:
    found = _flag(value, info)
    return None if found is None else not found


def _time(value: object, info: ValidationInfo) -> object:
    """Seconds since 1970; 0 means never."""
    seconds = finite(value)
    if seconds is None or not 0 <= seconds <= LATEST:
        _refuse(value, info)
        return None
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _list(value: object, info: ValidationInfo) -> object:
    """What is no text or number in it is left out."""
    if _says_nothing(value):
        return None
    if not isinstance(value, list):
        raise _unusable(value, info)
    return ",".join(filter(None, map(spelt, value))) or "none"


POWER = Quantity("W", "power", "measurement", 0, 1)
APPARENT_POWER = Quantity("VA", "apparent_power", "measurement", 0, 1)
REACTIVE_POWER = Quantity("var", "reactive_power", "measurement", 0, 1)
VOLTAGE = Quantity("V", "voltage", "measurement", 1, 0.1)
CURRENT = Quantity("A", "current", "measurement", 2, 0.01)
FREQUENCY = Quantity("Hz", "frequency", "measurement", 2, 0.01)
POWER_FACTOR = Quantity(None, "power_factor", "measurement", 2, 0.01)
ENERGY = Quantity("Wh", "energy", "total_increasing", 0, 1)
ENERGY_WINDOW = Quantity("Wh", "energy", None, 0, 1)
ENERGY_INTERVAL = Quantity("Wh", "energy", None, 2)
ENERGY_REPORT = Quantity("Wh", "energy", "total", 0, 1)
# Home Assistant knows the device class reactive_energy from 2025.6 only, and none for VAh.
APPARENT_ENERGY = Quantity("VAh", None, "total_increasing", 0, 1)
REACTIVE_ENERGY = Quantity("varh", None, "total_increasing", 0, 1)
APPARENT_ENERGY_REPORT = Quantity("VAh", None, "total", 0, 1)
REACTIVE_ENERGY_REPORT = Quantity("varh", None, "total", 0, 1)
CHARGE = Quantity("%", "battery", "measurement", 0)
STORED = Quantity("Wh", "energy_storage", "measurement", 0, 1)
TEMPERATURE = Quantity("°C", "temperature", "measurement", 1, 0.1)
SHARE = Quantity("%", None, "measurement", 0)
DURATION = Quantity("s", "duration", "measurement", 3)
INTERVAL = Quantity("s", "duration", "measurement", 0)
COUNT = Quantity(None, None, "measurement", 0)
NUMBER = Quantity(None, None, None, 0)
TEXT = Quantity(numeric=False)
TIME = Quantity(None, "timestamp", numeric=False)
FLAG = Quantity(platform=Platform.BINARY_SENSOR, numeric=False)
CONNECTIVITY = Quantity(device_class="connectivity", platform=Platform.BINARY_SENSOR, numeric=False)

type_number = float | Absent | None
Watts = Annotated[type_number, POWER, number()]
UnsignedWatts = Annotated[type_number, POWER, number(unsigned=True)]
Milliwatts = Annotated[type_number, POWER, number(scale=0.001)]
VoltAmperes = Annotated[type_number, APPARENT_POWER, number()]
MillivoltAmperes = Annotated[type_number, APPARENT_POWER, number(scale=0.001)]
Vars = Annotated[type_number, REACTIVE_POWER, number()]
Volts = Annotated[type_number, VOLTAGE, number()]
Millivolts = Annotated[type_number, VOLTAGE, number(scale=0.001, unsigned=True)]
Amperes = Annotated[type_number, CURRENT, number()]
Milliamperes = Annotated[type_number, CURRENT, number(scale=0.001, unsigned=True)]
Hertz = Annotated[type_number, FREQUENCY, number()]
Millihertz = Annotated[type_number, FREQUENCY, number(scale=0.001)]
PowerFactor = Annotated[type_number, POWER_FACTOR, number()]
WattHours = Annotated[type_number, ENERGY, number()]
UnsignedWattHours = Annotated[type_number, ENERGY, number(unsigned=True)]
UnsignedWattHoursWindow = Annotated[type_number, ENERGY_WINDOW, number(unsigned=True)]
WattHoursReport = Annotated[type_number, ENERGY_REPORT, number()]
# A counter that really reaches 2^32 J and then begins again: what is above 2^31 J is no small negative.
Joules = Annotated[type_number, ENERGY, number(scale=1 / JOULES)]
IntervalJoules = Annotated[type_number, ENERGY_INTERVAL, number(scale=1 / JOULES, unsigned=True)]
VoltAmpereHours = Annotated[type_number, APPARENT_ENERGY, number()]
VoltAmpereHoursReport = Annotated[type_number, APPARENT_ENERGY_REPORT, number()]
VarHours = Annotated[type_number, REACTIVE_ENERGY, number()]
VarHoursReport = Annotated[type_number, REACTIVE_ENERGY_REPORT, number()]
Percent = Annotated[type_number, CHARGE, number()]
StoredWattHours = Annotated[type_number, STORED, number()]
Celsius = Annotated[type_number, TEMPERATURE, number(unsigned=True)]
Fahrenheit = Annotated[type_number, TEMPERATURE, number(scale=5 / 9, zero=32, digits=1)]
Share = Annotated[type_number, SHARE, number()]
Seconds = Annotated[type_number, INTERVAL, number()]
Number = Annotated[type_number, NUMBER, number()]
Count = Annotated[type_number, COUNT, number()]
Text = Annotated[str | Absent | None, TEXT, Reads(_text)]
LowerText = Annotated[str | Absent | None, TEXT, worded(str.lower)]
Texts = Annotated[str | Absent | None, TEXT, Reads(_list)]
Flag = Annotated[bool | Absent | None, FLAG, Reads(_flag)]
NotFlag = Annotated[bool | Absent | None, FLAG, Reads(_not_flag)]
Connected = Annotated[bool | Absent | None, CONNECTIVITY, Reads(_flag)]
Epoch = Annotated[datetime | Absent | None, TIME, Reads(_time)]


def wire(*names: str, **options: Any) -> Any:
    """Bind a field to the wire names under which it may stand; options are those of `Measurement`.

    `watts.now` is the field `now` of the object `watts`.
    """
    places = (AliasPath(*name.split(".")) if "." in name else name for name in names)
    return Field(default=ABSENT, validation_alias=AliasChoices(*places), json_schema_extra=dict(options))


def label(name: str) -> str:
    """`energy_7d` in people's words."""
    return name.replace("_", " ").capitalize()


class Record(BaseModel):
    """One object of an answer. Fields without a quantity are keys: they are required and become no reading."""

    # built when an answer is first read: most homes lack most kinds of storage gear
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)
    table: ClassVar[Mapping[str, Measurement]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        rows = ((name, quantity_of(info), info) for name, info in cls.model_fields.items())
        cls.table = {
            name: measurement(name, quantity, **info.json_schema_extra)
            for name, quantity, info in rows
            if quantity and isinstance(info.json_schema_extra, dict)
        }

    def readings(
        self, device: str, phase: Axis | None = None, *, without: frozenset[str] = frozenset()
    ) -> Iterator[Reading]:
        for name, row in self.table.items():
            value = getattr(self, name)
            if value is not ABSENT and name not in without:
                yield Reading(device, phase, row, value)

    @classmethod
    def read(cls, item: object, problems: list[str]) -> Self | None:
        """The record, or `None` where the item is none; what was unusable is appended to `problems`."""
        found: list[str] = []
        try:
            record = cls.model_validate(item, context=found)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            problems.append(f"{cls.__name__}{'.' if where else ''}{where}: {first['msg']}")
            return None
        problems.extend(f"{cls.__name__}.{problem}" for problem in found)
        return record

    @property
    def empty(self) -> bool:
        """Whether nothing of the record was given: an error object instead of an answer."""
        return not self.model_fields_set


def quantity_of(field: FieldInfo) -> Quantity | None:
    return next((item for item in field.metadata if isinstance(item, Quantity)), None)


def measurement(name: str, quantity: Quantity, **options: Any) -> Measurement:
    """A line of the table, also for values that stand in no record."""
    return Measurement(**{"name": name, "quantity": quantity, "label": label(name), **options})


def value_of(value: object) -> Scalar:
    """A record's field as a value: absent becomes `None`."""
    return None if value is ABSENT else value  # type: ignore[return-value]
