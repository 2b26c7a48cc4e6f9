"""Records of the gateway's answers: field types that know their unit, and fields that know their wire names.

The field of a record declares everything about a measurement::

    voltage: Volts = wire("voltage")

Its name is the last level of the topic. Its type gives the unit, the conversion and Home Assistant's classes.
`wire` names the field in the gateway's answer. Readings, topics, discovery and the docs are derived from it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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

from bridge.control import Control
from bridge.model import Axis, Measurement, Platform, Quantity, Reading, printable

UINT32 = 2**32
HALF_OF_UINT32 = 2**31
JOULES_PER_WH = 3600
SMALL_NEGATIVE_WH = 100_000
"""Only this many of the highest values of an unsigned field of energy stand for negative numbers: the counter of a
large site passes the middle of the range.
"""
MOST_NUMBER, MOST_MEASURED = 1e15, 1e10
"""A number beyond the first is not taken for a number; one beyond the second is not taken for a power (W), an
energy (Wh) or another measured value.
"""
MAX_TEXT_LETTERS = 255
"""Longest text that Home Assistant accepts as a state."""
LATEST_UNIX_TIME = 253_402_300_799  # the last second of the year 9999, and of datetime
UNKNOWN_TEXTS = frozenset({"", "unknown", "unavailable", "null", "none", "nan"})
"""Texts by which the gateway says that it does not know a value."""


class Absent(Enum):
    """The value of a field that the answer does not have, or has in an unusable form. It has no topic."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Converter:
    """Converts the wire value of a field. The result is not validated again.

    A second validation by pydantic would cost more time than the conversion, and some kB for each field.
    """

    convert: Callable[[Any, ValidationInfo], object]

    def __get_pydantic_core_schema__(self, _type: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.convert)


def _unusable(value: object, info: ValidationInfo) -> PydanticUseDefault:
    """Return the error that drops only this field: a firmware that breaks one field must not cost the record."""
    if isinstance(info.context, list):
        shown = f" {str(value)[:40]!r}" if isinstance(value, str | int | float) else ""
        info.context.append(f"{info.field_name}: {type(value).__name__}{shown} is no value for it")
    return PydanticUseDefault()


def finite(value: object) -> int | float | None:
    """Convert a number, or a text that is one; return `None` for anything else, and beyond `MOST_NUMBER`."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -MOST_NUMBER <= value <= MOST_NUMBER else None


def number(
    *,
    scale: float = 1,
    zero: float = 0,
    digits: int | None = None,
    negatives: float | None = None,
    least: float | None = None,
    most: float = MOST_MEASURED,
) -> Converter:
    """A converter for finite numbers, given as numbers or as texts.

    Args:
        scale: factor from the wire's unit to ours.
        zero: wire value that is 0 in our unit.
        digits: number of decimals to round to; `None` for no rounding.
        negatives: the field has 32 bits without a sign, and shows -4 as 4294967292 (seen on firmware 7 and 8). So
            many of its highest values stand for negative numbers. `None`: the field has a sign.
        least: numbers below this, in our unit, are no values; `None`: those beyond `-most` are none.
        most: numbers beyond this, in our unit, are no values.
    """
    lowest = -most if least is None else least

    def convert(value: object, info: ValidationInfo) -> object:
        found = finite(value)
        if found is None:
            _reject_unless_unknown(value, info)
            return None
        if negatives is not None and UINT32 - negatives <= found < UINT32:
            found -= UINT32
        if scale != 1:
            found = (found - zero) * scale
        if not lowest <= found <= most:
            raise _unusable(value, info)
        return float(found) if digits is None else round(found, digits)

    return Converter(convert)


def clean(text: str) -> str | None:
    """Make a text one line of at most 255 characters; return `None` if it means unknown (docs/topics.md)."""
    text = printable(text, MAX_TEXT_LETTERS)
    return None if text.lower() in UNKNOWN_TEXTS else text


def _is_unknown(value: object) -> bool:
    """Whether a value of any field means unknown: null, or a text such as `Unknown`."""
    return value is None or (isinstance(value, str) and clean(value) is None)


def _reject_unless_unknown(value: object, info: ValidationInfo) -> None:
    """Reject the value unless it is one of the gateway's spellings of unknown."""
    if not _is_unknown(value):
        raise _unusable(value, info)


def _text(value: object, info: ValidationInfo) -> str | None:
    if _is_unknown(value):
        return None
    found = to_text(value)
    if found is None:
        raise _unusable(value, info)
    return found


def to_text(value: object) -> str | None:
    """Convert a text or a number to a text; return `None` for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return clean(value)
    return None if isinstance(value, bool) or finite(value) is None else str(value)


def known_text(value: object) -> str | None:
    """The value of a field, if it is a text."""
    return value if isinstance(value, str) else None


def mapped(convert: Callable[[str], str | bool | None]) -> Converter:
    """A converter for texts and numbers that stand for something else; `convert` gets them as a text."""

    def read(value: object, info: ValidationInfo) -> object:
        text = _text(value, info)
        return None if text is None else convert(text)

    return Converter(read)


def _flag(value: object, info: ValidationInfo) -> object:
    """Convert a boolean. Some firmware sends texts, some sends 0 and 1."""
    if _is_unknown(value):
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
    """Convert a unix time in seconds. The gateway sends 0 for never, which becomes `None`."""
    seconds = finite(value)
    if seconds is None or not 0 <= seconds <= LATEST_UNIX_TIME:
        _reject_unless_unknown(value, info)
        return None
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _list(value: object, info: ValidationInfo) -> object:
    """Join the texts and numbers of a list with commas; leave out anything else."""
    if _is_unknown(value):
        return None
    if not isinstance(value, list):
        raise _unusable(value, info)
    return ",".join(filter(None, map(to_text, value))) or "none"


POWER = Quantity("W", "power", "measurement", 0, 1, pace=30)
APPARENT_POWER = Quantity("VA", "apparent_power", "measurement", 0, 1, pace=30)
REACTIVE_POWER = Quantity("var", "reactive_power", "measurement", 0, 1, pace=30)
VOLTAGE = Quantity("V", "voltage", "measurement", 1, 0.1, pace=60)
CURRENT = Quantity("A", "current", "measurement", 2, 0.01, pace=30)
FREQUENCY = Quantity("Hz", "frequency", "measurement", 2, 0.01, pace=60)
POWER_FACTOR = Quantity(None, "power_factor", "measurement", 2, 0.01, pace=60)
ENERGY = Quantity("Wh", "energy", "total_increasing", 0, 1, pace=60, urgent_change=10)
ENERGY_WINDOW = Quantity("Wh", "energy", None, 0, 1, pace=60, urgent_change=10)
ENERGY_INTERVAL = Quantity("Wh", "energy", None, 2, pace=60, urgent_change=10)
ENERGY_REPORT = Quantity("Wh", "energy", "total", 0, 1, pace=60, urgent_change=10)
# Home Assistant knows the device class reactive_energy from 2025.6 only, and none for VAh.
APPARENT_ENERGY = Quantity("VAh", None, "total_increasing", 0, 1, pace=60, urgent_change=10)
REACTIVE_ENERGY = Quantity("varh", None, "total_increasing", 0, 1, pace=60, urgent_change=10)
APPARENT_ENERGY_REPORT = Quantity("VAh", None, "total", 0, 1, pace=60, urgent_change=10)
REACTIVE_ENERGY_REPORT = Quantity("varh", None, "total", 0, 1, pace=60, urgent_change=10)
CHARGE = Quantity("%", "battery", "measurement", 0)
STORED = Quantity("Wh", "energy_storage", "measurement", 0, 1, pace=60, urgent_change=10)
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

MaybeNumber = float | Absent | None
# No power reaches 2^31, in W or mW: such a number is a small negative one, also where other firmware gives a sign.
Watts = Annotated[MaybeNumber, POWER, number(negatives=HALF_OF_UINT32)]
Milliwatts = Annotated[MaybeNumber, POWER, number(scale=0.001, negatives=HALF_OF_UINT32)]
VoltAmperes = Annotated[MaybeNumber, APPARENT_POWER, number()]
MillivoltAmperes = Annotated[MaybeNumber, APPARENT_POWER, number(scale=0.001)]
Vars = Annotated[MaybeNumber, REACTIVE_POWER, number()]
Volts = Annotated[MaybeNumber, VOLTAGE, number()]
Millivolts = Annotated[MaybeNumber, VOLTAGE, number(scale=0.001, negatives=HALF_OF_UINT32)]
Amperes = Annotated[MaybeNumber, CURRENT, number()]
Milliamperes = Annotated[MaybeNumber, CURRENT, number(scale=0.001, negatives=HALF_OF_UINT32)]
Hertz = Annotated[MaybeNumber, FREQUENCY, number()]
Millihertz = Annotated[MaybeNumber, FREQUENCY, number(scale=0.001)]
PowerFactor = Annotated[MaybeNumber, POWER_FACTOR, number()]
WattHours = Annotated[MaybeNumber, ENERGY, number()]
UnsignedWattHours = Annotated[MaybeNumber, ENERGY, number(negatives=SMALL_NEGATIVE_WH)]
UnsignedWattHoursWindow = Annotated[MaybeNumber, ENERGY_WINDOW, number(negatives=SMALL_NEGATIVE_WH)]
WattHoursReport = Annotated[MaybeNumber, ENERGY_REPORT, number()]
# This counter reaches 2^32 J and restarts, so a value above 2^31 J is not a small negative number.
Joules = Annotated[MaybeNumber, ENERGY, number(scale=1 / JOULES_PER_WH)]
IntervalJoules = Annotated[
    MaybeNumber, ENERGY_INTERVAL, number(scale=1 / JOULES_PER_WH, negatives=SMALL_NEGATIVE_WH * JOULES_PER_WH)
]
VoltAmpereHours = Annotated[MaybeNumber, APPARENT_ENERGY, number()]
VoltAmpereHoursReport = Annotated[MaybeNumber, APPARENT_ENERGY_REPORT, number()]
VarHours = Annotated[MaybeNumber, REACTIVE_ENERGY, number()]
VarHoursReport = Annotated[MaybeNumber, REACTIVE_ENERGY_REPORT, number()]
Percent = Annotated[MaybeNumber, CHARGE, number()]
StoredWattHours = Annotated[MaybeNumber, STORED, number()]
Celsius = Annotated[MaybeNumber, TEMPERATURE, number(negatives=HALF_OF_UINT32)]
Fahrenheit = Annotated[MaybeNumber, TEMPERATURE, number(scale=5 / 9, zero=32, digits=1)]
Share = Annotated[MaybeNumber, SHARE, number()]
Percentage = Annotated[MaybeNumber, SHARE, number(least=0, most=100)]
"""A share that is never less than nothing or more than all."""
Seconds = Annotated[MaybeNumber, INTERVAL, number()]
Milliseconds = Annotated[MaybeNumber, DURATION, number(scale=0.001)]
PlainNumber = Annotated[MaybeNumber, NUMBER, number(most=MOST_NUMBER)]
Count = Annotated[MaybeNumber, COUNT, number(most=MOST_NUMBER)]
Text = Annotated[str | Absent | None, TEXT, Converter(_text)]
LowerText = Annotated[str | Absent | None, TEXT, mapped(str.lower)]
Texts = Annotated[str | Absent | None, TEXT, Converter(_list)]
Flag = Annotated[bool | Absent | None, FLAG, Converter(_flag)]
NotFlag = Annotated[bool | Absent | None, FLAG, Converter(_not_flag)]
FlagKey = Annotated[bool | Absent | None, Converter(_flag)]
"""A boolean that tells how to read other fields, and is no value of its own."""
Connected = Annotated[bool | Absent | None, CONNECTIVITY, Converter(_flag)]
Epoch = Annotated[datetime | Absent | None, TIME, Converter(_time)]


def wire(*names: str, **options: Any) -> Any:
    """Bind a field to its name, or names, in the answer. The options are those of `Measurement`.

    `watts.now` is the field `now` of the object `watts`. A `control` tells how it is set, under its first name.
    """
    if control := options.get("control"):
        options["control"] = replace(control, leaf=control.leaf or names[0].rpartition(".")[2])
    places = (AliasPath(*name.split(".")) if "." in name else name for name in names)
    return Field(default=ABSENT, validation_alias=AliasChoices(*places), json_schema_extra=dict(options))


def label(name: str) -> str:
    """The label that is made from a name: `Energy 7d` for `energy_7d`."""
    return name.replace("_", " ").capitalize()


class Record(BaseModel):
    """One object of an answer. Fields without a quantity are keys: they become no readings.

    `table` has the measurement of each other field, by its name, and `controls` how some of them are set.
    """

    # Validators are built with the first answer, since most homes lack most kinds of storage gear.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)
    table: ClassVar[Mapping[str, Measurement]] = {}
    controls: ClassVar[Mapping[str, Control]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        rows = ((name, quantity_of(info), info.json_schema_extra) for name, info in cls.model_fields.items())
        table, controls = dict[str, Measurement](), dict[str, Control]()
        for name, quantity, given in rows:
            options: dict[str, Any] = {**given} if isinstance(given, dict) else {}
            if control := options.pop("control", None):
                controls[name] = control
            if quantity and isinstance(given, dict):
                table[name] = measurement(name, quantity, **options)
        cls.table, cls.controls = table, controls

    def readings(
        self, device: str, phase: Axis | None = None, *, without: frozenset[str] = frozenset()
    ) -> Iterator[Reading]:
        """The readings of all fields that the answer has, except for those `without`."""
        for name, row in self.table.items():
            value = getattr(self, name)
            if value is not ABSENT and name not in without:
                yield Reading(device, phase, row, value)

    @classmethod
    def read(cls, item: object, problems: list[str]) -> Self | None:
        """Read an item of an answer; return `None` if it is unusable. Faults are added to `problems`."""
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
        """Whether the item has none of the record's fields, as an error object that comes in place of an answer."""
        return not self.model_fields_set


def quantity_of(field: FieldInfo) -> Quantity | None:
    return next((item for item in field.metadata if isinstance(item, Quantity)), None)


def measurement(name: str, quantity: Quantity, **options: Any) -> Measurement:
    """Make a measurement; use this directly only for values that are in no record."""
    return Measurement(**{"name": name, "quantity": quantity, "label": label(name), **options})


ICONS = {
    "problem|error|failures|retries|held": "mdi:alert-circle-outline",
    "firmware|loader|build|release|version|asic": "mdi:chip",
    "serial|number|euaid|eid|sequence|_id$": "mdi:identifier",
    "certificate|token": "mdi:certificate-outline",
    "inverters": "mdi:solar-panel",
    "apparent_energy|reactive_energy": "mdi:sine-wave",
    "percent|setpoint": "mdi:speedometer",
    "soh|soc|reserve|share": "mdi:battery-heart-variant",
    "phase": "mdi:numeric",
    "mode": "mdi:cog-outline",
    "status|state": "mdi:state-machine",
    "connection|interface": "mdi:lan",
    "type": "mdi:tag-outline",
    "source": "mdi:source-branch",
}
"""Icons by words of a measurement's name; the first one that fits is used."""
FLAG_ICON, NUMBER_ICON, TEXT_ICON = "mdi:toggle-switch-outline", "mdi:counter", "mdi:information-outline"


def icon(measurement: Measurement) -> str:
    """The icon of an entity without a device class, for which Home Assistant has none but its default."""
    fitting = (found for words, found in ICONS.items() if re.search(words, measurement.name))
    default = NUMBER_ICON if measurement.quantity.numeric else TEXT_ICON
    return next(fitting, FLAG_ICON if measurement.quantity.platform is Platform.BINARY_SENSOR else default)
