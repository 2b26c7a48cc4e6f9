# ruff: noqa: INP001 (a folder of documents is no package)
"""Writes the generated parts of the documents: run `.venv/bin/python docs/generate.py`.

Each stands between `<!-- begin NAME: docs/generate.py -->` and `<!-- end NAME -->`; tests/test_docs.py compares.
Where a value has no meaning or a kind of device is not described, it writes nothing and says what is missing.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from values import Offer, ValueRow, discrepancies, in_order, kinds, meanings, offers, rows, sources

from bridge.control import GRID_GROUP, Control
from bridge.discovery.controls import ControlRow
from bridge.discovery.devices import DEVICE_KINDS, METER_NAMES, entity_name
from bridge.endpoints import BY_SOURCE, CONTROLS, ENDPOINTS, Endpoint
from bridge.model import Measurement, Phase, Platform, Quantity
from bridge.rows import Row
from bridge.settings import CONFIG_VARIABLE, VARIABLE_PREFIX, PollSettings, Settings
from bridge.topics import Names
from bridge.web.metrics import METRIC_PREFIX, METRICS, NAME_ENDINGS

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


# Tables


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in body)


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or " "


def code(items: Iterable[str]) -> str:
    return ", ".join(f"`{item}`" for item in items)


def topic_tree() -> str:
    """The shapes of all topics."""
    names, own, serial = Names(), Names(instance="<instance>"), "<gateway>"
    shapes = (
        (f"{names.bridge}/state", "online | offline: the bridge; the last will"),
        (f"{names.bridge}/info", "JSON: version, start, gateways"),
        (names.state(serial), "online | offline: the gateway answers"),
        (names.availability(serial, "<source>"), "online | offline: the data of this source is fresh"),
        (names.events(serial), "JSON, not retained: what has happened"),
        (names.device(serial, "request"), "JSON: a command to the gateway, if BRIDGE_CONTROL__ALLOW allows it"),
        (names.device(serial, "<device>/<name>/set"), "a command: the value to set, as the value topic has it"),
        (names.device(serial, "response"), "JSON: what becomes of each command; not retained"),
        (names.device(serial, "command"), "JSON: the newest answer, with value topics text, state, id and at"),
        (names.device(serial, "<device>"), "JSON: all values of one device at one instant"),
        (names.device(serial, "<device>/<name>"), "one value"),
        (names.device(serial, "<device>/<phase>/<name>"), "one value of one phase: l1, l2, l3"),
        (
            names.device(serial, "<device>/<input>/<name>"),
            "one value of one DC input of an inverter: c1, c2, c3, c4",
        ),
        (names.home_availability("<home>"), "online | offline: the powers of all gateways of a home are fresh"),
        (f"{names.home('<home>')}/<flow>", "JSON: all values of one flow of a home of several gateways"),
        (names.home_value("<home>", "<flow>", "<name>"), "one value of this flow"),
    )
    room = max(len(topic) for topic, _ in shapes) + 3
    tree = "\n".join(f"{topic:{room}}{text}" for topic, text in shapes)
    instance = f"With `{VARIABLE_PREFIX}INSTANCE` set, the first two are `{own.bridge}/state` and `/info`."
    return f"```text\n{tree}\n```\n\n{instance}"


def device_table() -> str:
    """Each kind of device, what it is, and which sources have values of it."""
    return table(("device", "what it is", "sources"), map(_device_line, kinds().items()))


def _device_line(kind: tuple[str, str]) -> Sequence[str]:
    name, meaning = kind
    mine = [(device, row) for row in rows() for device in row.devices if device.partition("/")[0] == name]
    return [code(_once(device for device, _ in mine)), meaning, code(_once(row.source for _, row in mine))]


def _once(items: Iterable[T]) -> Iterable[T]:
    return dict.fromkeys(items)


def source_table() -> str:
    """Where the values come from, and how often."""
    profiles = get_args(PollSettings.model_fields["profile"].annotation)
    lines = (
        [f"`{e.source}`", f"`{e.path}`", *(_period(e.period(profile)) for profile in profiles)] for e in in_order()
    )
    return table(("source", "endpoint", *(f"`{profile}`" for profile in profiles)), lines)


def precedence() -> str:
    """The sources in the order that decides where two of them report the same value."""
    return code(endpoint.source for endpoint in ENDPOINTS)


def _period(seconds: float) -> str:
    for size, unit in (3600, "h"), (60, "min"):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def topic_tables() -> str:
    """All values, a table for each source."""
    head = ("device", "name", "unit", "field", "meaning", "entity")
    parts = []
    for source in sources():
        path = f"`{BY_SOURCE[source].path}`" if source in BY_SOURCE else "values of the bridge itself"
        lines = [_topic_line(row) for row in rows() if row.source == source]
        parts.append(f"### {source}\n\n{path}\n\n{table(head, lines)}")
    return "\n\n".join(parts)


def _topic_line(row: ValueRow) -> Sequence[str]:
    levels = f" ({'and ' if row.whole else ''}{row.parts})" if row.parts else ""
    name = f"`{row.name}`{levels}"
    return [code(row.devices), name, _unit(row.quantity), code(row.wires), row.meaning, _entity(row)]


def _unit(quantity: Quantity) -> str:
    if quantity.platform is Platform.BINARY_SENSOR:
        return "ON, OFF"
    if quantity.numeric:
        return quantity.unit or "number"
    return "time" if quantity.device_class == "timestamp" else "text"


def _entity(row: ValueRow) -> str:
    if row.document_only:
        return "none: document only"
    shown = {
        (True, True): "yes",
        (True, False): f"yes, not of {row.parts}" if row.parts else "yes",
        (False, True): "yes, of phases",
    }
    return shown.get((row.whole_enabled, row.phases_enabled), "disabled")


def quantity_table() -> str:
    """The classes of numbers for Home Assistant, the smallest change that is published, and how often it is."""
    quantities = _once(row.quantity for row in rows() if row.quantity.numeric and row.quantity.unit)
    return table(
        ("unit", "device class", "state class", "decimals shown", "dead band", "pace"),
        (
            [q.unit or "", q.device_class or "", q.state_class or "", str(q.precision), f"{q.deadband:g}", _pace(q)]
            for q in sorted(quantities, key=lambda q: (q.unit or "", q.state_class or ""))
        ),
    )


def _pace(quantity: Quantity) -> str:
    urgent = f" or {quantity.urgent_change:g} {quantity.unit}" if quantity.urgent_change else ""
    return f"{quantity.pace:g} s{urgent}" if quantity.pace else ""


def entity_tables() -> str:
    """Home Assistant's own integration, entity by entity: what people read there and here, and our topic."""
    head = ("theirs", "reads", "shown", "ours reads", "unit", "shown", "topic", "remark")
    parts = []
    for platform, group in _once((offer.platform, offer.group) for offer in offers()):
        lines = [_offer_line(offer) for offer in offers() if (offer.platform, offer.group) == (platform, group)]
        parts.append(f"### {platform}: {group}\n\n{table(head, lines)}")
    return "\n\n".join(parts)


def _offer_line(offer: Offer) -> Sequence[str]:
    theirs = [f"`{offer.key}`", _theirs(offer), "yes" if offer.enabled else ""]
    reading = offer.ours
    if offer.topic is None or reading is None:
        return [*theirs, "none", "", "", f"`{offer.topic}`" if offer.topic else "", offer.why or "not yet"]
    measurement = reading.measurement
    is_phase = "<phase>" in offer.topic
    shown = measurement.enabled_phases if is_phase else measurement.enabled or measurement.enabled_phases
    unit = _unit(measurement.quantity)
    ours = [
        _ours(offer, measurement),
        "kWh" if unit == "Wh" else unit,
        "yes" if shown else "",
    ]  # as discovery shows it
    return [*theirs, *ours, f"`{offer.topic}`", offer.note]


def _theirs(offer: Offer) -> str:
    """Their text as people read it: the device's name and the entity's."""
    return _escaped(offer.device if offer.name == "the device's" else f"{offer.device} {offer.name}")


def _ours(offer: Offer, measurement: Measurement) -> str:
    """Our text as people read it."""
    kind, name, *levels = (offer.topic or "").split("/")
    known = DEVICE_KINDS[kind]
    title = known.title if known.is_group else known.names.get(name) or known.title.format(name=name)
    row = Row(f"{kind}/{name}", Phase.L1 if "<phase>" in levels else None, measurement, "")
    return _escaped(f"{title} {entity_name(row)}")


def _escaped(text: str) -> str:
    """A text that Markdown shall not take for a tag."""
    return text.replace("<", r"\<")


def worse_texts() -> str:
    """Where their text is the better one, and why ours is not the same."""
    lines = [
        [_theirs(offer), _ours(offer, offer.ours.measurement), offer.worse]
        for offer in offers()
        if offer.ours and offer.worse
    ]
    return table(("theirs", "ours", "why"), lines)


def roles() -> str:
    return table(("role", "device in Home Assistant"), ([f"`{role}`", name] for role, name in METER_NAMES.items()))


# Commands

COMMAND_VALUES = {
    "text": "the newest answer in a line, such as `reserve 30: confirmed`; Home Assistant's *Last command*",
    "state": "its state, such as `confirmed`",
    "id": "the id of the command, its sender's or the bridge's",
    "at": "when it was answered",
}
"""The values of `command`, which are retained."""


def control_table() -> str:
    """What can be set, what tells whether it is in force, and how it appears in Home Assistant."""
    head = ("topic, with `/set`", "group", "takes", "in force", "within", "in Home Assistant")
    return table(head, map(_control_line, CONTROLS.items()))


def _control_line(item: tuple[str, Control]) -> Sequence[str]:
    target, control = item
    proof = "nothing tells it" if control.proof is None else f"`{control.proof}`" if control.proof else "the topic"
    device, _, name = target.replace("+", "x").rpartition("/")
    row = Row(device, None, Measurement(name, Quantity(), name), control.source)
    shown = "" if control.proof is None else ControlRow(row, row, control).platform.value
    shown += ", disabled at first" if control.group == GRID_GROUP else ""
    topic = target.replace("acb/+", "acb/<serial>").replace("+", "<contact>")
    return [f"`{topic}`", control.group, control.described, proof, f"{control.within:g} s", shown or "none"]


def command_table() -> str:
    """The values of the newest answer to a command."""
    return table(("topic", "meaning"), ([f"`command/{name}`", text] for name, text in COMMAND_VALUES.items()))


# Settings


def settings_table() -> str:
    lines = [
        *_settings(Settings, VARIABLE_PREFIX),
        [f"`{CONFIG_VARIABLE}`", "", "path of a TOML file with settings"],
    ]
    return table(("setting", "default", "meaning"), lines)


def _settings(model: type[BaseModel], prefix: str) -> Iterator[Sequence[str]]:
    for key, info in model.model_fields.items():
        name = f"{prefix}{key.upper()}"
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            text = (section.__doc__ or "").splitlines()[0]
            yield [f"`{name}`", "", f"**{text.rstrip('.')}**; this name takes the whole section as JSON"]
            yield from _settings(section, f"{name}__")
        else:
            endpoint = BY_SOURCE.get(key) if model is PollSettings else None
            yield [f"`{name}`", "by profile" if endpoint else _default(info), _meaning(info, endpoint)]


def _default(info: FieldInfo) -> str:
    value = None if info.default_factory else info.default
    return f"`{value}`" if value not in (None, (), "") else ""


def _meaning(info: FieldInfo, endpoint: Endpoint | None = None) -> str:
    """The description of a setting; that of a period begins with the path of its endpoint."""
    text = "; ".join(filter(None, [f"`{endpoint.path}`" if endpoint else "", info.description]))
    missing = [choice for choice in _choices(info.annotation) if choice not in text and choice != info.default]
    return f"{text}; also {code(missing)}" if missing else text


def _choices(annotation: Any) -> Sequence[str]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


# Metrics


def metric_table() -> str:
    """The metrics of /metrics, by the names that queries use."""
    lines = (
        [
            code(metric.full_name.removeprefix(METRIC_PREFIX) + ending for ending in NAME_ENDINGS[metric.kind]),
            metric.kind,
            code(metric.labels),
            metric.meaning,
        ]
        for metric in METRICS
    )
    return table(("metric", "kind", "labels", "means"), lines)


# Architecture


def layers() -> Sequence[Sequence[str]]:
    """The modules of each layer, the highest first, from the configuration of import-linter."""
    return [[name.strip() for name in line.split("|")] for line in _contracts()[0]["layers"]]


def _contracts() -> Sequence[Mapping[str, Any]]:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    contracts: Sequence[Mapping[str, Any]] = tools["importlinter"]["contracts"]
    return contracts


def layer_table() -> str:
    """What each module does, and which others it may import."""
    lines = []
    for place, names in enumerate(layers()):
        below = [name for layer in layers()[place + 1 :] for name in layer]
        lines += [[f"`{name}`", _first_sentence(_file(name)), _may(name, below), _pure(name)] for name in names]
    foreign = code(_once(module for contract in _contracts()[1:] for module in _foreign(contract)))
    shown = table(("module", "what it does", "may import", "pure"), lines)
    return f"{shown}\n\nPure modules may not import {foreign}."


def _may(name: str, below: Sequence[str]) -> str:
    """The modules that may be imported: those below by the first contract, unless another contract forbids them."""
    banned = {
        module.removeprefix("bridge.") for contract in _about(name) for module in contract["forbidden_modules"]
    }
    if not below:
        return "nothing"
    return code(module for module in below if module not in banned) if banned & set(below) else "all below"


def _about(name: str) -> Iterator[Mapping[str, Any]]:
    return (contract for contract in _contracts()[1:] if f"bridge.{name}" in contract["source_modules"])


def _foreign(contract: Mapping[str, Any]) -> Sequence[str]:
    return [module for module in contract["forbidden_modules"] if not module.startswith("bridge.")]


def _pure(name: str) -> str:
    return "yes" if any(_foreign(contract) for contract in _about(name)) else ""


def _file(name: str) -> Path:
    folder = ROOT / "bridge" / name
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _first_sentence(path: Path) -> str:
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".")


def part_table() -> str:
    """The modules of the packages."""
    folders = [ROOT / "bridge" / name for layer in layers() for name in layer]
    files = (path for folder in folders for path in sorted(folder.glob("*.py")) if path.name != "__init__.py")
    return table(
        ("module", "what it does"),
        ([f"`{path.parent.name}/{path.stem}`", _first_sentence(path)] for path in files),
    )


# Documents

PARTS: Mapping[str, Callable[[], str]] = {
    "topic-tree": topic_tree,
    "devices": device_table,
    "sources": source_table,
    "precedence": precedence,
    "settings": settings_table,
    "topics": topic_tables,
    "quantities": quantity_table,
    "roles": roles,
    "entities": entity_tables,
    "worse-texts": worse_texts,
    "metrics": metric_table,
    "controls": control_table,
    "command": command_table,
    "layers": layer_table,
    "parts": part_table,
}
BLOCK = re.compile(r"(<!-- begin ([a-z-]+): docs/generate\.py -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def documents() -> Sequence[Path]:
    return sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/*.md")))


def renewed(text: str) -> str:
    """A document with its generated parts as they should be."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{PARTS[block[2]]()}\n\n{block[3]}", text)


def main() -> None:
    """Write all documents anew, or none, with exit code 1, while the tables written by hand are not complete."""
    if missing := list(discrepancies(rows(), meanings(), kinds())):
        raise SystemExit("\n".join(missing))
    for path in documents():
        path.write_text(renewed(path.read_text()))


if __name__ == "__main__":
    main()
