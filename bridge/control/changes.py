"""From what a gateway has stored and one change to the request that writes it.

The whole object is written back as it was read, but for the one value: a gateway takes what is missing for empty.
Numbers keep their text, so that `0.0` stays `0.0`, and fields that the bridge does not know pass through.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.control import CommandRefused, Control, WantedValue, shown
from bridge.model import Request, SourceName, slug

VOLATILE = frozenset({"date", "last_updated_by", "last_updated"})
"""Fields that the gateway itself changes with each write."""
FLAG_TEXTS = frozenset({"override", "manual_override"})
"""Fields of a contact that the gateway takes only as the texts `true` and `false`, and may give as booleans."""
MAX_DIFFERENCES = 3
"""Most differences that are named."""


class NumberText(str):
    """A number of a JSON document, as its text."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class WriteShape:
    """Where an endpoint is written to. The object lies below `outer`, the value at `inner` in it.

    A list there has one object for each device, which is found by `key`. If `whole`, the object is written back as
    it was read; otherwise the value goes alone, with the device's `key`.
    """

    path: str
    method: str = "POST"
    outer: str = ""
    inner: str = ""
    key: str = ""
    whole: bool = True


DOCUMENTS: Mapping[SourceName, WriteShape] = {
    SourceName.TARIFF: WriteShape("/admin/lib/tariff", "PUT", outer="tariff", inner="storage_settings"),
    SourceName.DRY_CONTACT_SETTINGS: WriteShape("/ivp/ss/dry_contact_settings", outer="dry_contacts", key="id"),
    SourceName.DRY_CONTACTS: WriteShape("/ivp/ensemble/dry_contacts", outer="dry_contacts", key="id", whole=False),
    SourceName.RELAY: WriteShape("/ivp/ensemble/relay", whole=False),
    SourceName.ACB_CONFIG: WriteShape("/admin/lib/acb_config", outer="acb_sleep", key="serial_num", whole=False),
    SourceName.GEN_MODE: WriteShape("/ivp/ss/gen_mode", whole=False),
    SourceName.GEN_CONFIG: WriteShape("/ivp/ss/gen_config"),
    SourceName.GEN_SCHEDULE: WriteShape("/ivp/ss/gen_schedule", inner="exercise_config"),
}
ORDERED = (("very_low_soc", "reserved_soc", True), ("soc_low", "soc_high", False))
"""Numbers of one object of which the first may not be greater than the second, and whether both may be equal."""
NAMES: Mapping[str, str] = {"very_low_soc": "reserve_lowest", "reserved_soc": "reserve"}
"""What the topics call them, where the gateway calls them otherwise."""


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A request that changes one value, and what it was made from."""

    source: SourceName
    request: Request
    told: str
    """what it would do, for people"""
    document: WriteShape
    device: str
    sent: Mapping[str, Any] = field(repr=False)
    """the object with the new value"""
    leaf: str
    is_listed: bool | None = None
    """whether the device is in the list afterwards, where that is the value"""

    def is_stored(self, body: bytes) -> bool:
        """Whether the value is there, in an answer that was read after the write.

        Raises:
            CommandRefused: the answer does not have the object.
        """
        if self.is_listed is not None:
            return (_listed(self.document, self.device, _parse(body)) is not None) is self.is_listed
        after = _inner(_find(self.document, self.device, _parse(body)), self.document)
        return _is_equal(after.get(self.leaf), _inner(self.sent, self.document)[self.leaf])

    def differences(self, body: bytes) -> list[str]:
        """What else has changed, in an answer that was read after the write.

        Raises:
            CommandRefused: the answer does not have the object.
        """
        if not self.document.whole:
            return []
        own = ".".join(filter(None, (self.document.inner, self.leaf)))
        found = _differences(self.sent, _find(self.document, self.device, _parse(body)))
        return [text for place, text in found if place != own][:MAX_DIFFERENCES]


def make_change(control: Control, target: str, wanted: WantedValue, body: bytes) -> SettingChange:
    """The request that sets a value, from the answer that has it now.

    Raises:
        CommandRefused: the answer does not have it, or the new value does not go with the others.
    """
    document, device = DOCUMENTS[control.source], target.split("/")[1]
    present = _find(document, device, _parse(body))
    sent = dict(present)
    inner = dict(_inner(sent, document))
    if control.leaf not in inner:
        raise CommandRefused("this gateway does not have this setting")
    before, inner[control.leaf] = inner[control.leaf], _in_style(inner[control.leaf], control.wire(wanted))
    _check_order(inner)
    sent = {**sent, document.inner: inner} if document.inner else inner
    named = {document.key: sent[document.key]} if document.key else {}
    whole = sent if document.whole else {**named, control.leaf: inner[control.leaf]}
    whole = {key: _flag_text(key, value) for key, value in whole.items()}
    is_ascii = b"\\u" in body or body.isascii()
    text = _text({document.outer: whole} if document.outer else whole, is_ascii=is_ascii)
    change = f"{control.leaf} = {_text(inner[control.leaf])} instead of {_text(before)}"
    told = f"{document.method} {document.path} with {change}" + (", all else as it is" * document.whole)
    request = Request(document.path, document.method, text, once=True)
    return SettingChange(
        control.source, request, told, document, device, whole if document.whole else sent, control.leaf
    )


def make_sleep(target: str, wanted: bool, levels: tuple[float, float], body: bytes) -> SettingChange:
    """The request that puts an AC Battery to sleep between these charges (%), or wakes it.

    Raises:
        CommandRefused: the answer, which lists those that sleep, can't be read.
    """
    document, serial, given = DOCUMENTS[SourceName.ACB_CONFIG], target.split("/")[1], _parse(body)
    if not isinstance(given, dict) or not isinstance(given.get(document.outer), list):
        raise CommandRefused("this gateway does not have this setting now")
    item: dict[str, Any] = {"serial_num": serial}
    if wanted:
        item |= {"sleep_min_soc": int(levels[0]), "sleep_max_soc": int(levels[1])}
    method, text = "PUT" if wanted else "DELETE", _text({document.outer: [item]})
    request, told = Request(document.path, method, text, once=True), f"{method} {document.path} with {text}"
    return SettingChange(SourceName.ACB_CONFIG, request, told, document, serial, item, "", is_listed=wanted)


def _find(document: WriteShape, device: str, given: Any) -> Mapping[str, Any]:
    """The object of a device in an answer.

    Raises:
        CommandRefused: the answer does not have it.
    """
    found = given.get(document.outer) if document.outer and isinstance(given, dict) else given
    found = _listed(document, device, given) if document.key else found
    if not isinstance(found, dict) or not isinstance(_inner(found, document), dict):
        raise CommandRefused("this gateway does not have this setting now")
    return found


def _listed(document: WriteShape, device: str, given: Any) -> Mapping[str, Any] | None:
    """The object of a device in the list of an answer."""
    found = given.get(document.outer) if isinstance(given, dict) else None
    items = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    names = (slug(str(item.get(document.key)).lower(), "-", keep="_-") for item in items)
    return next((item for item, name in zip(items, names, strict=True) if name == device), None)


def _inner(given: Mapping[str, Any], document: WriteShape) -> Any:
    return given.get(document.inner) if document.inner else given


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, parse_float=NumberText, parse_int=NumberText, parse_constant=NumberText)
    except (ValueError, RecursionError):
        raise CommandRefused("the gateway's present settings can't be read: its answer is no JSON") from None


def _in_style(before: object, wanted: WantedValue) -> object:
    """The new value in the style of the present one: a number with or without a point, or a text."""
    if isinstance(wanted, bool):
        if isinstance(before, NumberText):
            return NumberText(int(wanted))
        return ("false", "true")[wanted] if isinstance(before, str) else wanted
    if isinstance(wanted, float):
        has_point = isinstance(before, NumberText) and not before.lstrip("-").isdecimal()
        text = f"{wanted:.1f}" if has_point else f"{wanted:g}"
        return text if isinstance(before, str) and not isinstance(before, NumberText) else NumberText(text)
    return wanted


def _flag_text(key: str, value: object) -> object:
    return ("false", "true")[value] if key in FLAG_TEXTS and isinstance(value, bool) else value


def _check_order(given: Mapping[str, Any]) -> None:
    for low, high, may_be_equal in ORDERED:
        least, most = _float(given.get(low)), _float(given.get(high))
        if least is None or most is None or least < most or (may_be_equal and least == most):
            continue
        relation = "at most" if may_be_equal else "less than"
        less, more = NAMES.get(low, low), NAMES.get(high, high)
        raise CommandRefused(f"{less} ({least:g}) must be {relation} {more} ({most:g}): set the other one first")


def _float(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, NumberText) else None
    except ValueError:
        return None


def _is_equal(one: object, other: object) -> bool:
    if isinstance(one, NumberText) and isinstance(other, NumberText):
        return one == other or _float(one) == _float(other) is not None
    return one == other and type(one) is type(other)


def _differences(before: object, after: object, place: str = "") -> Iterator[tuple[str, str]]:
    """The places at which two documents differ, each with a text about it."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            where = f"{place}.{key}" if place else str(key)
            if key in VOLATILE:
                continue
            if key not in after or key not in before:
                yield where, f"{shown(where)} is {'new' if key in after else 'gone'}"
            else:
                yield from _differences(_flag_text(key, before[key]), _flag_text(key, after[key]), where)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True), 1):
            yield from _differences(one, other, f"{place}.{index}")
    elif not _is_equal(before, after):
        yield place, f"{shown(place)} was {shown(_text(before))[:40]} and is {shown(_text(after))[:40]}"


def _text(value: object, *, is_ascii: bool = True) -> str:
    """A JSON text, in which each number is as it was read."""
    dump: Callable[[object], str] = lambda item: _text(item, is_ascii=is_ascii)  # noqa: E731 - one call, two places
    if isinstance(value, NumberText):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dump(str(key))}: {dump(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value, ensure_ascii=is_ascii)
