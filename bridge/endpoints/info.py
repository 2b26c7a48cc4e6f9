"""What this gateway is, and how it is: `/info` (brief, appendix A), `/ivp/firmware_manager/state`, its Wi-Fi
(`/admin/lib/wireless_display.json`), and its own list of events.

`/info` is the only endpoint that needs no token, and the only XML. The others are not in the brief. Each is known
from one site (Matthew1471's documentation), so that what is not as it was seen there is left out.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from xml.etree import ElementTree as ET

from pydantic import Field

from bridge.endpoints.parsing import Parsed, ParseResult, excerpt, parse_object, topic_level
from bridge.model import BadAnswer, Facts, Reading
from bridge.records import (
    COUNT,
    FLAG,
    TEXT,
    Absent,
    Connected,
    Converter,
    Epoch,
    Flag,
    LowerText,
    MaybeNumber,
    Percentage,
    PlainNumber,
    Record,
    Text,
    clean,
    measurement,
    number,
    to_text,
    wire,
)

MAX_DEPTH = 16
MOST_BARS = 10
"""Bars of a Wi-Fi signal; a gateway shows five at most."""
SERIAL_NUMBER = re.compile(r"[0-9A-Za-z]{1,32}")
"""Real ones have 12 digits."""


class Info(Record):
    """`envoy_info`, its `device` and its `build_info`. `imeter` is missing on firmware 3."""

    firmware: Text = wire("software", enabled=True, diagnostic=True)
    serial_number: Text = wire("sn", diagnostic=True)
    part_number: Text = wire("pn", diagnostic=True)
    euaid: Text = wire("euaid", label="EUA id", diagnostic=True)
    sequence: PlainNumber = wire("seqnum", diagnostic=True)
    api_version: PlainNumber = wire("apiver", label="API version", diagnostic=True)
    metered: Flag = wire("imeter", diagnostic=True)
    web_tokens: Flag = wire("web-tokens", diagnostic=True)
    build_id: Text = wire("build_id", diagnostic=True)
    build_time: Epoch = wire("build_time_gmt", diagnostic=True)
    release_version: Text = wire("release_ver", diagnostic=True)
    release_stage: Text = wire("release_stage", diagnostic=True)
    time: Epoch = wire("time", label="Clock", diagnostic=True)


class _StrictBuilder(ET.TreeBuilder):
    """Builds a tree without namespaces, and refuses what a gateway never sends.

    A document type could define entities that expand without end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, *_: object) -> None:
        raise BadAnswer("the answer has a document type: it is not from a gateway")

    def start(self, tag: str, attrs: dict[str, str]) -> ET.Element:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BadAnswer("the answer is nested too deeply: it is not from a gateway")
        return super().start(tag.rpartition("}")[2], attrs)

    def end(self, tag: str) -> ET.Element:
        self._depth -= 1
        return super().end(tag.rpartition("}")[2])


def _texts(element: ET.Element | None) -> dict[str, str]:
    """The children of an element that hold only text, by name; the first one counts where names repeat."""
    first: dict[str, ET.Element] = {}
    for child in () if element is None else element:
        first.setdefault(child.tag, child)
    return {name: child.text or "" for name, child in first.items() if not len(child)}


def _packages(root: ET.Element) -> dict[str, dict[str, str]]:
    """Part number, version and build of each installed package, by its name as a topic level."""
    wanted = {"pn": "part_number", "version": "version", "build": "build"}
    found: dict[str, dict[str, str]] = {}
    for package in root.findall("package"):
        texts = _texts(package)
        if name := topic_level(package.get("name", "")):
            found.setdefault(name, {wanted[key]: clean(texts[key]) or "" for key in wanted if key in texts})
    return found


def _root(body: bytes) -> ET.Element | None:
    """The root of a gateway's document; `None` for anything else, an empty document, or an unknown encoding."""
    parser = ET.XMLParser(target=_StrictBuilder())  # noqa: S314 - the builder refuses document types
    try:
        parser.feed(body.lstrip())  # XML allows no blank before its declaration
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError, LookupError):
        return None
    return root if root.tag == "envoy_info" and len(root) else None


def split_info(body: bytes, facts: Facts, now: float) -> Parsed:
    """Readings of `gateway`, and the facts that all other endpoints need.

    One byte that is no UTF-8 must not hide the gateway: it is replaced.

    Raises:
        BadAnswer: the answer is not from a gateway, or has no serial number.
    """
    root = _root(body)
    if root is None:
        root = _root(body.decode("utf-8", "replace").encode())
    if root is None:
        raise BadAnswer(f"the answer to /info is not from a gateway: {excerpt(body)}")
    result = ParseResult()
    given = {**_texts(root), **_texts(root.find("build_info")), **_texts(root.find("device"))}
    info = Info.read(given, result.problems)
    serial = info.serial_number if info else None
    if info is None or not isinstance(serial, str):
        raise BadAnswer("the answer to /info has no serial number")
    if not SERIAL_NUMBER.fullmatch(serial):
        raise BadAnswer(f"the answer to /info is not from a gateway: its serial number is {serial[:40]!r}")
    result.add("gateway", info)
    if packages := _packages(root):
        result.value("gateway", "packages", TEXT, packages, document_only=True)
    return result.parsed(facts=_facts(info, facts, now))


def _facts(info: Info, old: Facts, now: float) -> Facts:
    serial = str(info.serial_number).lower()
    clock = info.time if isinstance(info.time, datetime) else datetime.fromtimestamp(now, UTC)
    return Facts(
        serial=serial,
        firmware=info.firmware if isinstance(info.firmware, str) else "",
        part_number=info.part_number if isinstance(info.part_number, str) else None,
        clock_offset=clock.timestamp() - now,
        meters=old.meters if old.serial == serial else None,
        gear=old.gear if old.serial == serial else frozenset(),
        units=old.units if old.serial == serial else {},
    )


# /ivp/firmware_manager/state

NO_UPDATE, UPDATE_PROGRESS, NO_FAILURE, COMPLETE = "no update running", "update_progress", "none", 100
UPDATE_RUNNING = measurement("update_running", FLAG, diagnostic=True)


def _reason(value: object, _info: object) -> str:
    """Convert why an update failed. The gateway gives a text `None` where none did."""
    text = to_text(value) or ""
    return NO_FAILURE if text.lower() in {"", NO_FAILURE} else text


class FirmwareState(Record):
    """The update of firmware that runs, of the gateway or of storage gear. The progress is a text on the wire."""

    update_status: LowerText = wire("SiteSync.Current_Status_str", diagnostic=True)
    update_progress: Percentage = wire("SiteSync.Progress", diagnostic=True)
    update_failure: Annotated[str | Absent | None, TEXT, Converter(_reason)] = wire(
        "SiteSync.Failure Reason", diagnostic=True
    )
    auto_update: Flag = wire("SiteSync.auto_update_enable", label="Automatic updates", diagnostic=True)
    storage_firmware: Text = wire("SiteSync.Current essimg version", diagnostic=True)

    @property
    def is_running(self) -> bool | None:
        """Whether an update runs; `None` if that is not known: only the words for no update were ever seen.

        One that has failed, or is complete, no longer runs.
        """
        if self.update_status == NO_UPDATE:
            return False
        progress = self.update_progress
        is_under_way = isinstance(progress, int | float) and progress < COMPLETE
        return True if is_under_way and self.update_failure == NO_FAILURE else None


def split_firmware_state(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read whether an update runs, and how far it is; the progress is `None` unless one runs."""
    result = ParseResult()
    found = parse_object(FirmwareState, body, result.problems)
    if not isinstance(found.update_status, str):
        result.add("gateway", found, without=frozenset({UPDATE_PROGRESS}))
        return result.parsed()
    is_running = found.is_running
    result.add("gateway", found if is_running else found.model_copy(update={UPDATE_PROGRESS: None}))
    result.readings.append(Reading("gateway", None, UPDATE_RUNNING, is_running))
    return result.parsed()


# /admin/lib/wireless_display.json


class WirelessLink(Record):
    """The gateway's Wi-Fi. The names and addresses of networks in the answer are private, and left out."""

    wifi_connected: Connected = wire("carrier", label="Wi-Fi connected", diagnostic=True)
    wifi_signal: Annotated[MaybeNumber, COUNT, number(least=0, most=MOST_BARS)] = wire(
        "current_network.bars", label="Wi-Fi signal", diagnostic=True
    )


def split_wifi(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read whether the gateway is connected by Wi-Fi, and how well; one with a cable has no signal."""
    result = ParseResult()
    found = parse_object(WirelessLink, body, result.problems)
    is_connected = found.wifi_connected is True
    result.add("gateway", found if is_connected else found.model_copy(update={"wifi_signal": None}))
    return result.parsed()


# /datatab/event_dt.rb

EVENT_LIST = "event_list"
"""The value of `gateway` that has the entries."""
NUMBER_OF_ENTRY = re.compile(r"[0-9]{1,15}")
ENTRY_PARTS = ("text", "serial", "kind", "date")
"""What an entry of the list has after its number."""
MOST_ENTRIES = 10
MAX_ENTRY_LETTERS = 160


class EventList(Record):
    """The newest entries of the gateway's own list of events."""

    entries: Any = Field(default=None, validation_alias="aaData")


def split_event_list(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read the entries: each is a list of a number, a text, a serial number, a kind of device and a date.

    Raises:
        BadAnswer: the answer has no list.
    """
    result = ParseResult()
    entries = parse_object(EventList, body, result.problems).entries
    if not isinstance(entries, list):
        raise BadAnswer(f"the answer has no list of events: {excerpt(body)}")
    found = {}
    for entry in entries[:MOST_ENTRIES]:
        number, *parts = map(to_text, entry) if isinstance(entry, list) and entry else [None]
        if number and NUMBER_OF_ENTRY.fullmatch(number):
            texts = [(clean(part or "") or "")[:MAX_ENTRY_LETTERS] for part in parts]
            found[number] = dict(zip(ENTRY_PARTS, texts, strict=False))
    result.value("gateway", EVENT_LIST, TEXT, found, document_only=True)
    return result.parsed()


def listed_entries(readings: Iterable[Reading]) -> Mapping[int, str]:
    """What each entry of the list says, by its number, if these readings are those of its answer."""
    given = next((r.value for r in readings if (r.device, r.name) == ("gateway", EVENT_LIST)), None)
    entries = given.items() if isinstance(given, Mapping) else ()
    parts = {int(number): entry for number, entry in entries if isinstance(entry, Mapping)}
    return {number: ", ".join(filter(None, map(str, entry.values()))) for number, entry in parts.items()}
