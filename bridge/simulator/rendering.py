"""Documents as the gateway's firmware writes them: three decimals, minus zeros and all."""

import json
from collections.abc import Mapping, Sequence
from math import copysign

Json = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None


class Hundredths(float):
    """A number that is shown with two decimals, not three."""

    __slots__ = ()


def pretty(value: Json, step: str = "    ") -> bytes:
    """Indented, a line each."""
    return (_indented(value, "\n", step) + "\n").encode()


def compact(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def tiny(value: float) -> float:
    """`value`, or a zero with its sign where it would be shown as zero: firmware prints -0.000."""
    return value if abs(value) >= 0.0005 else copysign(0.0, value)  # noqa: PLR2004 (half of the last decimal)


def _indented(value: Json, margin: str, step: str) -> str:
    inner = margin + step
    match value:
        case str() | bool() | int() | None:
            return json.dumps(value)
        case float():
            return f"{value:.2f}" if isinstance(value, Hundredths) else f"{value:.3f}"
        case Mapping():
            parts = [f"{json.dumps(key)}: {_indented(item, inner, step)}" for key, item in value.items()]
            return _joined(parts, "{}", margin, inner)
        case _:
            return _joined([_indented(item, inner, step) for item in value], "[]", margin, inner)


def _joined(parts: list[str], brackets: str, margin: str, inner: str) -> str:
    if not parts:
        return brackets
    return f"{brackets[0]}{inner}{f',{inner}'.join(parts)}{margin}{brackets[1]}"


def element(tag: str, *content: str, **attributes: str) -> str:
    """An XML element on lines of its own if it holds others, on one line if it holds text."""
    opening = tag + "".join(f' {name}="{value}"' for name, value in attributes.items())
    text = "".join(content)
    if text.endswith("\n"):
        inner = "".join(f"  {line}\n" for line in text.splitlines())
        return f"<{opening}>\n{inner}</{tag}>\n"
    return f"<{opening}>{text}</{tag}>\n"
