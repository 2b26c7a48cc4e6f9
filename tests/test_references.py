"""Sources, devices and measurements that the code names in texts exist: a typing error would go unnoticed."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import THREE
from test_endpoints import GOOD

import bridge
from bridge import endpoints
from bridge.discovery.devices import DEVICE_KINDS
from bridge.endpoints import controller, info, inventory, livedata, meters, production, storage, switchgear
from bridge.model import SourceName
from bridge.records import Record
from bridge.site import FLOWS, ROWS
from bridge.site.counting import TOPIC_OF_COUNTER
from bridge.site.selection import EVIDENCE, METER_ROLES, METERS
from bridge.web.report import SHOWN_VALUES

ROOT = Path(bridge.__file__).parent
MODULES = (
    *sorted(file.relative_to(ROOT).with_suffix("").as_posix() for file in (ROOT / "site").glob("*.py")),
    *("counters/__init__", "pipeline", "inverters", "service/homes", "web/report"),
)
NAME = re.compile(r"[a-z][a-z0-9-]*[_/][a-z0-9_/-]+")
"""Texts that look like a device, or like a measurement of several words."""
KIND = re.compile(r"[a-z]+/")
"""Texts that look like the beginning of a device's name."""
OTHER_KINDS = {"home"}
"""The level of homes of several gateways."""
OWN = {
    "total_increasing",
    "meter/",
    "battery/",
    "generator/",
    "inverter/",
    "site/solar",
    "battery/given",
    "home/timestamp",
    "meters_source",
    "in_force",
}
"""Texts that are no such names: Home Assistant's word for a counter, beginnings of devices, a part of sums,
the time of a document, and keys of the page."""
EVENTS = {
    "device_limit",
    "clamp_suspicious",
    "clamp_trusted",
    "sun_silent",
    "home_negative",
    "home_problem",
    "home_energy",
    "grid_estimated",
}
"""The `event` of lines of the log."""


def names() -> Iterator[str]:
    yield from SourceName
    yield from (*FLOWS, *EVIDENCE, *METER_ROLES, *METERS.values(), *TOPIC_OF_COUNTER)
    for flow, rows in ROWS.items():
        yield from rows
        yield from (f"{place}{flow}/{name}" for name in rows for place in ("site/", ""))
    for module in (controller, info, inventory, livedata, meters, production, storage, switchgear):
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, Record):
                yield from item.table
    for source, answer in GOOD.items():
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        parsed = endpoints.BY_SOURCE[source].parse(body, THREE, 1e9)
        yield from (reading.device for reading in parsed.readings)
        yield from (reading.name for reading in parsed.readings)


KNOWN = {*map(str, names())} | OWN | EVENTS


def texts(*nodes: ast.AST) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
            yield node.value


def referred(module: str) -> Iterator[str]:
    """Texts of a module that look like names, or are used as names. Docstrings are left out."""
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        match node:
            case ast.Constant(value=str(text)) if NAME.fullmatch(text):
                yield text
            case ast.Tuple(elts=[ast.Name(), ast.Constant(value=str(text))]):
                yield text
            case ast.Compare(left=ast.Attribute(attr="name"), comparators=[compared]):
                yield from texts(*ast.walk(compared))
            case ast.Call(func=ast.Attribute(attr="get" | "_of" | "_each" | "number"), args=args):
                yield from texts(*args)
            case ast.MatchValue(value=ast.Constant(value=str(text))):
                yield text


def kinds(file: Path) -> Iterator[str]:
    """The kinds of devices that a module names as such."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Constant(value=str(text)) if KIND.fullmatch(text):
                yield text.removesuffix("/")
            case ast.Call(func=ast.Attribute(attr="has") | ast.Name(id="where"), args=names):
                yield from texts(*names)
            case ast.keyword(arg="main_source_of", value=ast.Constant(value=str(text))):
                yield text


def test_kinds_of_devices_in_the_code_exist() -> None:
    files = [file for file in ROOT.rglob("*.py") if "simulator" not in file.parts]
    found = {kind: file.relative_to(ROOT).as_posix() for file in files for kind in kinds(file)}
    assert {kind: file for kind, file in found.items() if kind not in {*DEVICE_KINDS, *OTHER_KINDS}} == {}
    assert found.keys() >= {"meter", "battery", "acb", "generator", "inverter"}


def test_the_page_shows_values_that_exist() -> None:
    assert {*SHOWN_VALUES} <= KNOWN


@pytest.mark.parametrize("module", MODULES)
def test_names_in_the_code_exist(module: str) -> None:
    assert [name for name in referred(module) if name not in KNOWN] == []
