"""From the bytes of an answer to records. The gateway's content types are wrong, so only the bytes count."""

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator
from pydantic_core import from_json

from bridge.model import (
    MEGABYTE,
    Axis,
    BadAnswer,
    Facts,
    Input,
    Measurement,
    Phase,
    Quantity,
    Reading,
    Request,
    Scalar,
    Structure,
    Unsupported,
    slug,
)
from bridge.records import Record, measurement, to_text

PHASES = (Phase.L1, Phase.L2, Phase.L3)
PHASES_OF_SPLIT_PHASE = 2
MAX_LEVEL_LETTERS = 64
STRUCTURE = (b",", b":", b"[", b"{", b"<")
"""Bytes of which there is one at least for each value, key, list, object and XML element."""
LONG_TEXT = re.compile(rb'(?:^|["<])[^"<]{16384}')
"""16 kB without a quotation mark. The search is linear, since it begins only at marks."""
NOT_FOUND = ({"error": "404 - Not Found"}, {"err": "404 - Not Found"})
MAX_MEASUREMENTS = 256
"""The real number is smaller; some names come from the gateway, and the limit keeps them from growing memory."""


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What an answer may have at most. It is counted before any object is made of it.

    `items` are its values, keys, lists, objects and elements together. Real answers have up to 1,600.
    """

    size: int = MEGABYTE
    """bytes"""
    items: int = 20_000

    def check(self, body: bytes) -> None:
        """Check an answer.

        Raises:
            BadAnswer: it has more than any gateway sends.
        """
        if len(body) > self.size:
            raise BadAnswer(f"the answer is longer than {self.size} bytes")
        if sum(map(body.count, STRUCTURE)) > self.items:
            raise BadAnswer(f"the answer has more than {self.items} values: {excerpt(body)}")
        if LONG_TEXT.search(body):
            raise BadAnswer(f"the answer has 16 kB without a quotation mark: {excerpt(body)}")


RecordT = TypeVar("RecordT", bound=Record)
AxisT = TypeVar("AxisT", Phase, Input)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The content of one answer.

    `problems` are texts about its unusable parts. `facts` is set if the answer changes what is known of the
    gateway. `request` is to be sent to the gateway next. `fresh` is False if the gateway says that its values are
    not updated.
    """

    readings: Sequence[Reading] = ()
    problems: Sequence[str] = ()
    facts: Facts | None = None
    request: Request | None = None
    fresh: bool = True


@lru_cache(MAX_MEASUREMENTS)
def _measurement(name: str, quantity: Quantity, **options: Any) -> Measurement:
    """A measurement that is in no record; it is the same object for each answer."""
    return measurement(name, quantity, **options)


@dataclass(slots=True)
class ParseResult:
    """Collects the readings of one answer."""

    readings: list[Reading] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(
        self, device: str, item: Record, phase: Axis | None = None, *, without: frozenset[str] = frozenset()
    ) -> None:
        self.readings.extend(item.readings(device, phase, without=without))

    def value(
        self,
        device: str,
        name: str,
        quantity: Quantity,
        value: Scalar | Structure,
        **options: Any,
    ) -> None:
        self.readings.append(Reading(device, None, _measurement(name, quantity, **options), value))

    def parsed(self, *, facts: Facts | None = None, request: Request | None = None, fresh: bool = True) -> Parsed:
        return Parsed(tuple(self.readings), tuple(self.problems), facts, request, fresh)


def excerpt(body: bytes) -> str:
    """The beginning of an answer, for error texts."""
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return repr(text[:60]) if text else "nothing"


def decode(body: bytes) -> Any:
    """Decode the JSON value of an answer.

    Raises:
        BadAnswer: the answer is not JSON, but HTML, half an answer, or empty.
        Unsupported: the answer is the error object of a 404, which some gateways send with another status.
    """
    try:
        found = from_json(body.removeprefix(BOM_UTF8), cache_strings="keys")
    except ValueError:
        raise BadAnswer(f"the answer is not JSON: {excerpt(body)}") from None
    if found in NOT_FOUND:
        raise Unsupported(f"the gateway does not have this: {excerpt(body)}")
    return found


def parse_object(kind: type[RecordT], body: bytes, problems: list[str]) -> RecordT:
    """Read an answer that is one record.

    Raises:
        BadAnswer: it has none of the record's fields, as an error object with status 200.
        Unsupported: see `decode`.
    """
    found = kind.read(decode(body), problems)
    if found is None or found.empty:
        raise BadAnswer(f"the answer has none of the expected fields: {excerpt(body)}")
    return found


def decode_list(body: bytes) -> list[Any]:
    """Decode an answer that is a list. A single object, as the brief shows some, becomes a list of one.

    Raises:
        BadAnswer: the answer is neither.
        Unsupported: see `decode`.
    """
    found = decode(body)
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list):
        raise BadAnswer(f"the answer is not a list: {excerpt(body)}")
    return found


def parse_list(kind: type[RecordT], body: bytes, problems: list[str]) -> list[RecordT]:
    """Read an answer that is a list of records; unusable items are dropped.

    Raises:
        BadAnswer: no item is usable.
        Unsupported: see `decode`.
    """
    given = decode_list(body)
    found = [item for item in (kind.read(item, problems) for item in given) if item and not item.empty]
    if given and not found:
        raise BadAnswer(f"the answer has none of the expected fields: {excerpt(body)}")
    return found


def by_axis(
    kind: type[RecordT], given: object, lines: Sequence[AxisT], problems: list[str]
) -> dict[AxisT, RecordT]:
    """Read a list with one record for each phase or input. Unusable items are dropped without moving the others."""
    pairs = zip(lines, given if isinstance(given, list) else (), strict=False)
    found = {phase: kind.read(item, problems) for phase, item in pairs}
    return {phase: item for phase, item in found.items() if item is not None}


def topic_level(text: str) -> str:
    """Turn a text into a topic level of lower-case letters, digits, `_` and `-`; it is empty if there is none."""
    level = slug(text.lower(), "-", keep="_-")
    return level if len(level) <= MAX_LEVEL_LETTERS else ""


def _device_id(value: object) -> str:
    text = to_text(value)
    name = topic_level(text) if text else ""
    if not name:
        raise ValueError("names no device")
    return name


DeviceId = Annotated[str, BeforeValidator(_device_id)]
"""The serial number (a number or a text) or the role of a device, as a topic level."""


def phases(count: int) -> tuple[Phase, ...]:
    """The phases of a device; none for a device with one phase, whose own values are those of the phase."""
    return PHASES[:count] if count > 1 else ()


def phase_voltage(voltages: Mapping[Phase, object], lines: Sequence[Phase], *, split: bool) -> float | None:
    """The voltage of a device with several phases: line to line for a split phase, else the mean."""
    given = (voltages.get(phase) for phase in lines)
    known = [float(value) for value in given if isinstance(value, int | float)]
    if not known or len(known) < len(lines):
        return None
    return round(sum(known) if split else sum(known) / len(known), 3)
