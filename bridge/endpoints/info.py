"""`/info` (brief, appendix A): what this gateway is. The only endpoint that needs no token, and the only XML."""

from datetime import UTC, datetime
from typing import Any
from xml.parsers import expat

from bridge.endpoints.body import Parsed, Sheet, excerpt, level
from bridge.model import BadAnswer, Facts
from bridge.records import TEXT, Epoch, Flag, Number, Record, Text, wire

MAX_DEPTH = 16
REPLACED = "\ufffd"
"""Stands where bytes were no text: no serial number has it."""
PACKAGES = "named packages"  # no element can have this name
Element = dict[str, Any]


class Info(Record):
    """`envoy_info`, its `device` and its `build_info`. `imeter` is missing on firmware 3."""

    firmware: Text = wire("software", enabled=True, diagnostic=True)
    serial_number: Text = wire("sn", diagnostic=True)
    part_number: Text = wire("pn", diagnostic=True)
    euaid: Text = wire("euaid", label="EUA id", diagnostic=True)
    sequence: Number = wire("seqnum", diagnostic=True)
    api_version: Number = wire("apiver", label="API version", diagnostic=True)
    metered: Flag = wire("imeter", diagnostic=True)
    web_tokens: Flag = wire("web-tokens", diagnostic=True)
    build_id: Text = wire("build_id", diagnostic=True)
    build_time: Epoch = wire("build_time_gmt", diagnostic=True)
    release_version: Text = wire("release_ver", diagnostic=True)
    release_stage: Text = wire("release_stage", diagnostic=True)
    time: Epoch = wire("time", label="Clock", diagnostic=True)


class _Tree:
    """A small reader of XML into nested dictionaries that takes no entities, so that no bomb can go off."""

    def __init__(self) -> None:
        self.root: Element = {}
        self._stack: list[Element] = [self.root]
        self._text: list[str] = []
        self._parser = expat.ParserCreate()
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append

    def feed(self, body: bytes) -> Element:
        self._parser.Parse(body, True)
        return self.root

    def _doctype(self, *_: object) -> None:
        raise BadAnswer("the answer has a document type: it is not from a gateway")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._stack) > MAX_DEPTH:
            raise BadAnswer("the answer is nested too deeply: it is not from a gateway")
        element: Element = {}
        if name == "package":
            self._stack[-1].setdefault(PACKAGES, {})[attributes.get("name", "")] = element
        else:
            self._stack[-1].setdefault(name, element)
        self._stack.append(element)
        self._text.clear()

    def _end(self, _name: str) -> None:
        element = self._stack.pop()
        if not element and len(self._stack) > 1:
            element["text"] = "".join(self._text)
        self._text.clear()


def _texts(element: Element) -> dict[str, str]:
    """The elements of an element that hold only text."""
    inner = ((name, item.get("text")) for name, item in element.items() if isinstance(item, dict))
    return {name: text for name, text in inner if isinstance(text, str)}


def _packages(element: Element) -> dict[str, dict[str, str]]:
    wanted = {"pn": "part_number", "version": "version", "build": "build"}
    found = ((level(name), _texts(package)) for name, package in element.get(PACKAGES, {}).items())
    return {name: {wanted[key]: text[key].strip() for key in wanted if key in text} for name, text in found if name}


def _root(body: bytes) -> Element | None:
    """`None` where it is not XML, not a gateway's, or in an encoding that nobody knows."""
    try:
        return _Tree().feed(body.lstrip()).get("envoy_info")  # XML allows no blank before its declaration
    except (expat.ExpatError, ValueError, LookupError):
        return None


def split(body: bytes, facts: Facts, now: float) -> Parsed:
    """Readings of `gateway`, and the facts that all other endpoints need.

    One byte that is no UTF-8 must not hide the gateway: it is replaced.
    """
    root = _root(body) or _root(body.decode("utf-8", "replace").encode())
    if not root:
        raise BadAnswer(f"the answer to /info is not from a gateway: {excerpt(body)}")
    sheet = Sheet()
    given = {**_texts(root), **_texts(root.get("build_info", {})), **_texts(root.get("device", {}))}
    info = Info.read(given, sheet.problems)
    serial = info.serial_number if info else None
    if info is None or not isinstance(serial, str) or not level(serial) or REPLACED in serial:
        raise BadAnswer("the answer to /info has no serial number")
    sheet.add("gateway", info)
    if packages := _packages(root):
        sheet.value("gateway", "packages", TEXT, packages, document_only=True)
    return sheet.parsed(facts=_facts(info, facts, now))


def _facts(info: Info, old: Facts, now: float) -> Facts:
    serial = level(str(info.serial_number))
    clock = info.time if isinstance(info.time, datetime) else datetime.fromtimestamp(now, UTC)
    return Facts(
        serial=serial,
        firmware=info.firmware if isinstance(info.firmware, str) else "",
        part_number=info.part_number if isinstance(info.part_number, str) else None,
        clock_offset=clock.timestamp() - now,
        meters=old.meters if old.serial == serial else None,
        gear=old.gear if old.serial == serial else frozenset(),
    )
