# ruff: noqa: INP001 (a folder of documents is no package)
"""Every value of the tree, found by reading the simulated homes' answers as the bridge does.

So nothing is listed twice; only the meanings are written by hand, in meanings.toml.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import AliasChoices, AliasPath
from pydantic.fields import FieldInfo

from bridge.endpoints import BY_SOURCE, ENDPOINTS, Endpoint
from bridge.endpoints.switchgear import MAINS
from bridge.model import Facts, Input, Phase, Quantity, Reading
from bridge.records import Record
from bridge.service.diagnostics import ROWS, SOURCE
from bridge.service.mirror import SITE
from bridge.simulator import HOMES, Simulator
from bridge.simulator.exchange import Ask
from bridge.site import ROWS as FLOWS

NOON = 1_750_500_000.0
BY_ID = {
    "meter": "<role>",
    "inverter": "<serial>",
    "battery": "<serial>",
    "controller": "<serial>",
    "collar": "<serial>",
    "combiner": "<serial>",
    "device": "<serial>",
    "relay": "<contact>",
}
FREE = ("live/connection", "live/tasks", "live/counters")
"""Devices whose values are the gateway's own affair."""
UNSEEN = {
    "device_list": b'{"devices": [{"serial_number": "1", "device_type": 14, "com_interface": 3, '
    b'"com_interface_str": "PLC", "status": "connected"}]}',
    "device_data": b'{"1": {"devName": "acb", "sn": "1", "channels": [{"lastReading": {"endDate": 1, "SOC": 50}, '
    b'"lifetime": {"joulesProduced": 1, "joulesUsed": 2}}]}}',
    "inventory": b'[{"type": "ENCHARGE", "devices": [{"serial_num": "1", "real_power_w": 1, '
    b'"bmu_ibl_fw_version": "1"}]}, {"grid_profile_name": "a", "grid_profile_version": "1"}]',
    "secctrl": b'{"Recovery_threshold_soc": 1, "offgrid_secctrl": {"seq_reset_needed": false}}',
}
"""What no simulated home answers, but real gateways do."""


@dataclass(slots=True)
class Row:
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
        """`several` tells whether the reading's device has phases of its own; the whole is that phase if not."""
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
        """What else than the whole has the value."""
        return "phases" if self.phases else "inputs" if self.inputs else ""

    @property
    def meaning(self) -> str:
        known = meanings()[self.source]
        return known.get(f"{self.devices[0]}/{self.name}") or known[self.name]


@dataclass(frozen=True, slots=True)
class Offer:
    """An entity of Home Assistant's own integration: `topic` is our value, or `why` we have none."""

    platform: str
    group: str
    key: str
    name: str
    enabled: bool
    unit: str | None = None
    device_class: str | None = None
    state_class: str | None = None
    topic: str | None = None
    note: str = ""
    why: str = ""

    @property
    def ours(self) -> Reading | None:
        """A reading of our value; `None` where no source of this version has it."""
        if self.topic is None:
            return None
        kind, key, *_, name = self.topic.split("/")
        return examples().get((place(f"{kind}/{key}"), name))


# What there is


@cache
def offers() -> Sequence[Offer]:
    """The entities of Home Assistant's own integration."""
    found = tomllib.loads(Path(__file__).with_name("entities.toml").read_text())
    return [Offer(group["platform"], group["name"], **row) for group in found["group"] for row in group["rows"]]


@cache
def examples() -> Mapping[tuple[str, str], Reading]:
    """A reading of every value, by place and name; one that tells of a whole device where there is one."""
    found: dict[tuple[str, str], Reading] = {}
    for home in _seen():
        for _, reading in sorted(home, key=lambda pair: pair[1].phase is not None):
            found.setdefault((place(reading.device), reading.name), reading)
    return found


@cache
def meanings() -> Mapping[str, Mapping[str, str]]:
    return tomllib.loads(Path(__file__).with_name("meanings.toml").read_text())


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
    """What the gateway of a simulated home says, source by source."""
    simulator = Simulator(home, clock=lambda: NOON)
    headers = {"authorization": f"Bearer {simulator.token()}"}
    for endpoint in ENDPOINTS:
        reply = simulator.gateway.answer(Ask("GET", endpoint.path, {}, headers))
        if reply.status == 200:  # noqa: PLR2004 - OK
            yield endpoint, reply.body


def readings(given: Iterable[tuple[Endpoint, bytes]]) -> Iterator[tuple[str, Reading]]:
    """What becomes of the answers, with the source of each reading; of gear that is not there, nothing."""
    facts = Facts("")
    for endpoint, body in given:
        if not endpoint.wanted(facts):
            continue
        parsed = endpoint.split(body, facts, NOON)
        facts = parsed.facts or facts
        yield from ((endpoint.source, reading) for reading in parsed.readings)


def _seen() -> Iterator[list[tuple[str, Reading]]]:
    for home in HOMES:
        yield list(readings(answers(home)))
    yield list(readings((BY_SOURCE[source], body) for source, body in UNSEEN.items()))
    yield [(SITE, Reading(f"site/{flow}", None, row, None)) for flow, own in FLOWS.items() for row in own.values()]
    yield [(SOURCE, Reading("gateway", None, row, None)) for row in ROWS]


@cache
def rows() -> Sequence[Row]:
    """Every value that there is, source by source in the order of the brief, the bridge's own last."""
    found: dict[tuple[str, ...], Row] = {}
    for home in _seen():
        phased = {(source, place(reading.device)) for source, reading in home if isinstance(reading.phase, Phase)}
        for source, reading in home:
            key = _key(source, reading)
            row = found.setdefault(key, Row(source, key[-1], reading.quantity))
            row.add(reading, several=(source, place(reading.device)) in phased)
    for row in found.values():
        row.whole |= row.plain and not row.phases
    return sorted(found.values(), key=lambda row: sources().index(row.source))


def _key(source: str, reading: Reading) -> tuple[str, ...]:
    """Devices of one source share a row where they share a name and are shown alike; one of `FREE` has one row."""
    shown = str(reading.measurement.enabled)
    return (source, reading.device, "<key>") if reading.device in FREE else (source, shown, reading.name)


def sources() -> Sequence[str]:
    return [*(endpoint.source for endpoint in in_order()), SITE, SOURCE]


def in_order() -> Sequence[Endpoint]:
    """The endpoints of the brief in its order, then the others."""
    return sorted(ENDPOINTS, key=lambda endpoint: (not endpoint.appendix, endpoint.appendix))


def place(device: str) -> str:
    kind = device.partition("/")[0]
    if device == MAINS:
        return device
    return f"{kind}/{BY_ID[kind]}" if kind in BY_ID else device
