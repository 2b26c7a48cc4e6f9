# ruff: noqa: INP001 (a folder of documents is no package)
"""Finds all values of the tree: it reads the answers of the simulated homes as the bridge does.

So no value is listed twice. Only meanings.toml and devices.toml are written by hand; `discrepancies` checks them.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import AliasChoices, AliasPath
from pydantic.fields import FieldInfo

from bridge.discovery.devices import DEVICE_KINDS
from bridge.endpoints import BY_SOURCE, ENDPOINTS, Endpoint
from bridge.endpoints.switchgear import RELAY_MAINS
from bridge.in_force import ROWS_IN_FORCE
from bridge.model import Facts, Input, Phase, Quantity, Reading
from bridge.records import Record
from bridge.service.publisher import DIAGNOSTICS, DIAGNOSTICS_SOURCE, IN_FORCE_SOURCE, SITE_SOURCE
from bridge.simulator import HOMES, Simulator
from bridge.simulator.http import HttpRequest
from bridge.site import ROWS as FLOWS

NOW = 1_750_500_000.0
FOLDER = Path(__file__).parent
BY_ID = {
    **{kind: "<serial>" for kind, shown in DEVICE_KINDS.items() if shown.has_serial},
    "meter": "<role>",
    "relay": "<contact>",
}
"""What stands in the tables for the second level of a device's name, by the kind of device."""
FREE = ("live/connection", "live/tasks", "live/counters")
"""Devices with whatever values the gateway has for them."""
UNSEEN = {
    "device_list": b'{"devices": [{"serial_number": "1", "device_type": 14, "com_interface": 3, '
    b'"com_interface_str": "PLC", "status": "connected"}]}',
    "device_data": b'{"1": {"devName": "acb", "sn": "1", "channels": [{"lastReading": {"endDate": 1, "SOC": 50}, '
    b'"lifetime": {"joulesProduced": 1, "joulesUsed": 2}}]}}',
    "inventory": b'[{"type": "ENCHARGE", "devices": [{"serial_num": "1", "real_power_w": 1, '
    b'"bmu_ibl_fw_version": "1"}]}, {"grid_profile_name": "a", "grid_profile_version": "1"}]',
    "inverters": b'[{"serialNumber": "1", "devType": 11, "lastReportWatts": 1}]',
    "acb_config": b'{"acb_sleep": [{"serial_num": "1", "sleep_min_soc": 20, "sleep_max_soc": 30}]}',
    "pel_settings": b'{"PEL": true, "percent": true, "PEL_Limit": 70}',
    "secctrl": b'{"Recovery_threshold_soc": 1, "offgrid_secctrl": {"seq_reset_needed": false}}',
}
"""Answers of real gateways that no simulated home gives."""


Meanings = Mapping[str, Mapping[str, str]]
"""The meanings of values by source and name."""


@dataclass(slots=True)
class ValueRow:
    """A value of one source, and the devices that have it: as a `whole`, of several `phases`, of DC `inputs`."""

    source: str
    name: str
    quantity: Quantity
    devices: list[str] = field(default_factory=list)
    wires: list[str] = field(default_factory=list)
    whole: bool = False
    plain: bool = False
    phases: bool = False
    inputs: bool = False
    whole_enabled: bool = False
    phases_enabled: bool = False
    document_only: bool = False

    def add(self, reading: Reading, *, several: bool) -> None:
        """Add a reading. `several` tells whether its device has phases beside the whole."""
        measurement = reading.measurement
        self.document_only |= measurement.document_only
        for known, new in (self.devices, [place(reading.device)]), (self.wires, wires().get(id(measurement), ())):
            known.extend(item for item in new if item not in known)
        self.plain |= reading.phase is None
        if isinstance(reading.phase, Input):
            self.inputs = True
        elif reading.phase is not None:
            self.phases, self.phases_enabled = True, measurement.enabled_phases
        elif several or not self.phases:
            self.whole_enabled = measurement.enabled
            self.whole |= several

    @property
    def parts(self) -> str:
        """The parts of a device that have the value, beside the whole."""
        return "phases" if self.phases else "inputs" if self.inputs else ""

    @property
    def meaning(self) -> str:
        """The meaning in the documents. Raises KeyError if there is none, as `discrepancies` reports."""
        return meanings()[self.source][self.meaning_key(meanings()) or self.name]

    def meaning_key(self, known: Meanings) -> str | None:
        """The key of the meaning in the table of its source: `device/name`, else `name`; None if it has neither."""
        own = known.get(self.source, {})
        return next((key for key in (f"{self.devices[0]}/{self.name}", self.name) if own.get(key)), None)


@dataclass(frozen=True, slots=True)
class Offer:
    """An entity of Home Assistant's own integration: our `topic` for it, or `why` there is none.

    `device` and `name` are what people read of it. `worse` says why our text is worse than theirs.
    """

    platform: str
    group: str
    key: str
    device: str
    name: str
    enabled: bool
    unit: str | None = None
    device_class: str | None = None
    state_class: str | None = None
    topic: str | None = None
    note: str = ""
    why: str = ""
    worse: str = ""

    @property
    def ours(self) -> Reading | None:
        """A reading of our value; `None` if no source has it."""
        if self.topic is None:
            return None
        kind, key, *_, name = self.topic.split("/")
        return examples().get((place(f"{kind}/{key}"), name))


# What there is


@cache
def offers() -> Sequence[Offer]:
    """The entities of Home Assistant's own integration."""
    found = tomllib.loads((FOLDER / "entities.toml").read_text())
    groups = [
        ({"platform": g["platform"], "group": g["name"], "device": g["device"]}, g["rows"]) for g in found["group"]
    ]
    return [Offer(**group, **row) for group, rows in groups for row in rows]


@cache
def examples() -> Mapping[tuple[str, str], Reading]:
    """A reading of every value, by place and name: that of the whole device if there is one."""
    found: dict[tuple[str, str], Reading] = {}
    for home in _seen():
        for _, reading in sorted(home, key=lambda pair: pair[1].phase is not None):
            found.setdefault((place(reading.device), reading.name), reading)
    return found


@cache
def meanings() -> Meanings:
    return tomllib.loads((FOLDER / "meanings.toml").read_text())


@cache
def kinds() -> Mapping[str, str]:
    """What each kind of device is, by the first level of the names of its devices."""
    return tomllib.loads((FOLDER / "devices.toml").read_text())


def records(kind: type[Record] = Record) -> Iterator[type[Record]]:
    for record in kind.__subclasses__():
        if record.__module__.startswith("bridge."):  # a test may have records of its own
            yield record
            yield from records(record)


@cache
def wires() -> Mapping[int, Sequence[str]]:
    """The gateway's own names of each measurement, by the measurement's identity."""
    return {
        id(measurement): _aliases(record.model_fields[name])
        for record in records()
        for name, measurement in record.table.items()
    }


def _aliases(info: FieldInfo) -> Sequence[str]:
    alias = info.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else ()
    return [".".join(map(str, c.path)) if isinstance(c, AliasPath) else c for c in choices]


def answers(home: str) -> Iterator[tuple[Endpoint, bytes]]:
    """The answers of a simulated home's gateway, source by source."""
    simulator = Simulator(home, clock=lambda: NOW)
    headers = {"authorization": f"Bearer {simulator.token()}"}
    for endpoint in ENDPOINTS:
        reply = simulator.gateway.answer(HttpRequest("GET", endpoint.path, {}, headers))
        if reply.status == 200:  # noqa: PLR2004 - OK
            yield endpoint, reply.body


def readings(given: Iterable[tuple[Endpoint, bytes]]) -> Iterator[tuple[str, Reading]]:
    """The readings of these answers, each with its source. Endpoints of gear that is not there are skipped."""
    facts = Facts("")
    for endpoint, body in given:
        if not endpoint.wanted(facts):
            continue
        parsed = endpoint.parse(body, facts, NOW)
        facts = parsed.facts or facts
        yield from ((endpoint.source, reading) for reading in parsed.readings)


def _seen() -> Iterator[list[tuple[str, Reading]]]:
    for home in HOMES:
        yield list(readings(answers(home)))
    yield list(readings((BY_SOURCE[source], body) for source, body in UNSEEN.items()))
    yield [
        (SITE_SOURCE, Reading(f"site/{flow}", None, row, None))
        for flow, own in FLOWS.items()
        for row in own.values()
    ]
    yield [
        (IN_FORCE_SOURCE, Reading(device, None, row, None)) for device, own in ROWS_IN_FORCE.items() for row in own
    ]
    yield [(DIAGNOSTICS_SOURCE, Reading("gateway", None, row, None)) for row in DIAGNOSTICS]


@cache
def rows() -> Sequence[ValueRow]:
    """All values, by source in the order of the brief. Those of the bridge itself come last."""
    found: dict[tuple[str, ...], ValueRow] = {}
    for home in _seen():
        phased = {(source, place(reading.device)) for source, reading in home if isinstance(reading.phase, Phase)}
        for source, reading in home:
            key = _key(source, reading)
            row = found.setdefault(key, ValueRow(source, key[-1], reading.quantity))
            row.add(reading, several=(source, place(reading.device)) in phased)
    for row in found.values():
        row.whole |= row.plain and not row.phases
    return sorted(found.values(), key=lambda row: sources().index(row.source))


def _key(source: str, reading: Reading) -> tuple[str, ...]:
    """The row of a reading. Values of one source share it if their names are equal and both are shown or hidden."""
    shown = str(reading.measurement.enabled)
    return (source, reading.device, "<key>") if reading.device in FREE else (source, shown, reading.name)


def sources() -> Sequence[str]:
    return [*(endpoint.source for endpoint in in_order()), SITE_SOURCE, IN_FORCE_SOURCE, DIAGNOSTICS_SOURCE]


def in_order() -> Sequence[Endpoint]:
    """The endpoints of the brief in its order, then the others."""
    return sorted(ENDPOINTS, key=lambda endpoint: (not endpoint.appendix, endpoint.appendix))


def place(device: str) -> str:
    kind = device.partition("/")[0]
    if device == RELAY_MAINS:
        return device
    return f"{kind}/{BY_ID[kind]}" if kind in BY_ID else device


# What the tables lack


def discrepancies(found: Sequence[ValueRow], known: Meanings, described: Mapping[str, str]) -> Iterator[str]:
    """What is missing in the tables that are written by hand, and what is left over in them: a line for each.

    `found` are all values, `known` is the content of meanings.toml, and `described` that of devices.toml.
    """
    unseen = {wire for own in wires().values() for wire in own} - {wire for row in found for wire in row.wires}
    yield from (f"no simulated home has `{wire}`, nor has UNSEEN in docs/values.py" for wire in sorted(unseen))
    yield from _discrepancies_of_meanings(found, known)
    shown = {device.partition("/")[0] for row in found for device in row.devices}
    yield from (f"docs/devices.toml does not say what `{kind}` is" for kind in sorted(shown - described.keys()))
    yield from (f"docs/devices.toml has `{kind}`, which no value has" for kind in sorted(described.keys() - shown))
    yield from (
        f"DEVICE_KINDS of bridge.discovery.devices lacks `{kind}`" for kind in sorted(shown - DEVICE_KINDS.keys())
    )


def _discrepancies_of_meanings(found: Sequence[ValueRow], known: Meanings) -> Iterator[str]:
    used = set()
    for row in found:
        used.add((row.source, row.meaning_key(known)))
        if row.meaning_key(known) is None:
            yield f"docs/meanings.toml: [{row.source}] has no meaning of `{row.name}` ({row.devices[0]})"
    for source, own in known.items():
        left_over = (key for key, text in own.items() if text and (source, key) not in used)
        yield from (f"docs/meanings.toml: [{source}] explains `{key}`, which is no value" for key in left_over)
