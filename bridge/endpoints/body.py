"""From an answer's bytes to records. Go by the bytes: the gateway's content types say nothing."""

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator
from pydantic_core import from_json

from bridge.model import (
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
)
from bridge.records import Record, measurement, spelt

PHASES = (Phase.L1, Phase.L2, Phase.L3)
SPLIT_PHASES = 2
LONGEST_LEVEL = 64
NOT_FOUND = ({"error": "404 - Not Found"}, {"err": "404 - Not Found"})
MOST_ROWS = 256
"""There are fewer, but some names are the gateway's own affair, and must not fill our memory."""

R = TypeVar("R", bound=Record)
A = TypeVar("A", Phase, Input)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one answer says.

    `problems` names what could not be used, `facts` is set where the answer teaches them, `request` is what the
    gateway must be asked to do now. `fresh` is False where the gateway itself says that its values stand still.
    """

    readings: Sequence[Reading] = ()
    problems: Sequence[str] = ()
    facts: Facts | None = None
    request: Request | None = None
    fresh: bool = True


@lru_cache(MOST_ROWS)
def _row(name: str, quantity: Quantity, **options: Any) -> Measurement:
    """A line of the table that stands in no record; the same one for each answer."""
    return measurement(name, quantity, **options)


@dataclass(slots=True)
class Sheet:
    """The readings of one answer while they are being collected."""

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
        self.readings.append(Reading(device, None, _row(name, quantity, **options), value))

    def parsed(self, *, facts: Facts | None = None, request: Request | None = None, fresh: bool = True) -> Parsed:
        return Parsed(tuple(self.readings), tuple(self.problems), facts, request, fresh)


def excerpt(body: bytes) -> str:
    """Enough of an answer to recognise it by."""
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return repr(text[:60]) if text else "nothing"


def decode(body: bytes) -> Any:
    """The JSON value of an answer.

    Raises:
        BadAnswer: it is none (HTML, half an answer, nothing).
        Unsupported: it is what gateways send with a 404, with another status.
    """
    try:
        found = from_json(body.removeprefix(BOM_UTF8))
    except ValueError:
        raise BadAnswer(f"the answer is not JSON: {excerpt(body)}") from None
    if found in NOT_FOUND:
        raise Unsupported(f"the gateway does not have this: {excerpt(body)}")
    return found


def whole(kind: type[R], body: bytes, problems: list[str]) -> R:
    """The one record that an answer must be. An error object with status 200 has none of its fields."""
    found = kind.read(decode(body), problems)
    if found is None or found.empty:
        raise BadAnswer(f"the answer has none of the expected fields: {excerpt(body)}")
    return found


def items(body: bytes) -> list[Any]:
    """The list that an answer must be; the brief shows a single object where gateways send a list of them."""
    found = decode(body)
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list):
        raise BadAnswer(f"the answer is not a list: {excerpt(body)}")
    return found


def each(kind: type[R], body: bytes, problems: list[str]) -> list[R]:
    """The records of a list, item by item: a bad one costs only itself."""
    given = items(body)
    found = [item for item in (kind.read(item, problems) for item in given) if item and not item.empty]
    if given and not found:
        raise BadAnswer(f"the answer has none of the expected fields: {excerpt(body)}")
    return found


def by_phase(kind: type[R], given: object, lines: Sequence[A], problems: list[str]) -> dict[A, R]:
    """The records of a list whose places are phases or inputs: one that can't be used must not move the others."""
    pairs = zip(lines, given if isinstance(given, list) else (), strict=False)
    found = {phase: kind.read(item, problems) for phase, item in pairs}
    return {phase: item for phase, item in found.items() if item is not None}


def level(text: str) -> str:
    """A text as a topic level: lower case, digits, `_` and `-` only."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.strip().lower()).strip("-")


def _identity(value: object) -> str:
    text = spelt(value)
    name = level(text) if text else ""
    if not 0 < len(name) <= LONGEST_LEVEL:
        raise ValueError("names no device")
    return name


Identity = Annotated[str, BeforeValidator(_identity)]
"""What tells a device from others, as a topic level: its serial number (a number or a text) or its role."""


def phases(count: int) -> tuple[Phase, ...]:
    """The phase levels of a device: none where there is one phase, since the device itself is the phase."""
    return PHASES[:count] if count > 1 else ()


def phase_voltage(voltages: Mapping[Phase, object], lines: Sequence[Phase], *, split: bool) -> float | None:
    """Voltage of a device with several phases: line to line where they are split, else their mean."""
    given = (voltages.get(phase) for phase in lines)
    known = [float(value) for value in given if isinstance(value, int | float)]
    if not known or len(known) < len(lines):
        return None
    return round(sum(known) if split else sum(known) / len(known), 3)
