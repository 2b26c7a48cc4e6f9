"""The devices of Home Assistant: which rows of the tree belong to each, and what people read of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.model import Facts, Input, Phase, UnitFacts
from bridge.rows import Key, Row
from bridge.topics import Names

METER_NAMES = {
    "production": "Production meter",
    "net-consumption": "Net consumption meter",
    "total-consumption": "Total consumption meter",
    "storage": "Storage meter",
    "backfeed": "Backfeed meter",
    "load": "Load meter",
    "evse": "EV charger meter",
    "pv3p": "Third-party PV meter",
}
"""Names of meters by their role. Another role becomes "<Role> meter"."""

ENERGY_LABELS = {
    "production": ("Energy produced", "Standby energy"),
    "net-consumption": ("Energy imported", "Energy exported"),
    "total-consumption": ("Energy consumed", "Energy returned"),
    "storage": ("Energy discharged", "Energy charged"),
}
"""Labels of `energy_delivered` and `energy_received`, by the role of a meter or a report."""


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """How devices of one kind appear in Home Assistant. The kind is the first level of a device's name in the tree.

    `title` is the name of a device: `{name}` in it is the second level of the name in the tree, `{words}` and
    `{capitals}` are the same with a first capital and in capitals. `model` is the model; the title if empty.
    `models` has the models of single devices.
    `has_serial` is set if that second level is a serial number.
    `is_group` is set if all devices of the kind are one device of Home Assistant.
    `names` has the titles of single devices, and in a group the first words of the entities' names.
    """

    title: str
    model: str = ""
    has_serial: bool = False
    is_group: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    def filled(self, text: str, name: str) -> str:
        """A title or a model of this kind for the device with this second level of its name."""
        return text.format(name=name, words=words(name), capitals=name.upper())


AC_BATTERY_KIND, SITE_KIND, STORAGE_CONTROL_KIND = "acb", "site", "storage_control"
DEVICE_KINDS = {
    "gateway": DeviceKind("IQ Gateway"),
    SITE_KIND: DeviceKind("Enphase", "Start here: solar, grid, battery, home", is_group=True),
    "energy": DeviceKind(
        "Energy counters",
        is_group=True,
        names={
            "production-pcu": "Microinverters",
            "production-rgm": "Revenue grade meter",
            "production-eim": "Production meter",
            "consumption-eim": "Consumption meter",
        },
    ),
    "live": DeviceKind("Live data", is_group=True, names={"pv": "PV"}),
    "report": DeviceKind("Meter reports", is_group=True),
    "storage": DeviceKind(
        "Storage",
        is_group=True,
        names={"totals": "", "control": "", "settings": "Stored", "offgrid": "Off-grid"},
    ),
    STORAGE_CONTROL_KIND: DeviceKind("Storage control"),
    "limit": DeviceKind(
        "Limits",
        is_group=True,
        names={
            "production": "Production limit",
            "export": "Export limit",
            "installer": "Installer's export limit",
            "breaker": "Main panel",
        },
    ),
    "meter": DeviceKind("{words} meter", "Current transformer", names=METER_NAMES),
    "inverter": DeviceKind("Inverter {name}", "Microinverter", has_serial=True),
    AC_BATTERY_KIND: DeviceKind("AC Battery {name}", "AC Battery", has_serial=True),
    "battery": DeviceKind("Battery {name}", "IQ Battery", has_serial=True),
    "controller": DeviceKind("Controller {name}", "IQ System Controller", has_serial=True),
    "collar": DeviceKind("Collar {name}", "IQ Meter Collar", has_serial=True),
    "combiner": DeviceKind("Combiner {name}", "IQ Combiner", has_serial=True),
    "device": DeviceKind("Device {name}", "Device", has_serial=True),
    "relay": DeviceKind(
        "Relay {capitals}",
        "Dry contact {capitals}",
        names={"mains": "Grid relay"},
        models={"mains": "Relay"},
    ),
    "generator": DeviceKind("Generator {capitals}", "Generator", names={"1": "Generator"}),
    "tariff": DeviceKind("Tariff {capitals}", "Tariff", names={"current": "Tariff"}),
}


TITLES = (
    *(kind.title for kind in DEVICE_KINDS.values() if "{" not in kind.title),
    *(name for kind in DEVICE_KINDS.values() if not kind.is_group for name in kind.names.values()),
)
"""The names of devices that need no number."""


Ranges = Mapping[str, tuple[float, float]]
"""The lowest and the highest of numbers, by topic below a gateway."""


@dataclass(frozen=True, slots=True)
class AnnouncedGateway:
    """A gateway, as discovery describes it.

    `url` is the address of its own page, and `site` the name of its site. `suffix` is added to the names of its
    devices if it has a name or there are several gateways. `in_home`: it is one of several in a home, and does not
    know its load. `allowed` are the groups of values that commands may set, and `ranges` of which topics numbers
    outside of the table's range were read.
    """

    facts: Facts
    url: str
    site: str = "Enphase"
    suffix: str = ""
    in_home: bool = False
    allowed: frozenset[str] = frozenset()
    ranges: Ranges = field(default_factory=dict)

    def id_of(self, device: str) -> str:
        return f"iqgateway_{self.facts.serial}_{device.replace('/', '_')}"

    def availability(self, names: Names, source: str) -> str:
        return names.availability(self.facts.serial, source)

    def value_topic(self, names: Names, row: Row) -> str:
        return names.value(self.facts.serial, row.device, row.phase, row.measurement.name)


@dataclass(frozen=True, slots=True)
class AnnouncedHome(AnnouncedGateway):
    """A home of several gateways: a site without a gateway. `home` is its level in topics."""

    home: str = ""

    def id_of(self, device: str) -> str:
        return f"iqgateway_home_{self.home}{device.removeprefix(SITE_KIND).replace('/', '_')}"

    def availability(self, names: Names, source: str) -> str:  # noqa: ARG002 - a home has one source
        return names.home_availability(self.home)

    def value_topic(self, names: Names, row: Row) -> str:
        return names.home_value(self.home, row.device.removeprefix(f"{SITE_KIND}/"), row.measurement.name)


@dataclass(frozen=True, slots=True)
class AnnouncedDevice:
    """One device of Home Assistant, with the rows of the tree that belong to it.

    `key` is the device's name in the tree, or the kind if the kind is a group.
    `gone` are rows that it had, and that are removed from Home Assistant. `in_force` are the keys of those that a
    control shows, too.
    """

    key: str
    rows: tuple[Row, ...]
    gone: tuple[Row, ...] = ()
    in_force: frozenset[Key] = frozenset()

    @property
    def kind(self) -> str:
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        return self.key.partition("/")[2]

    @property
    def sources(self) -> set[str]:
        return {row.source for row in self.rows}

    @property
    def has_phases(self) -> bool:
        return any(isinstance(row.phase, Phase) for row in self.rows)

    @property
    def has_one_input(self) -> bool:
        return len({row.phase for row in self.rows if isinstance(row.phase, Input)}) == 1


def device_key(row: Row) -> str:
    """The device to which a row belongs. AC Batteries report as inverters do, and have the device of one."""
    kind, _, name = row.device.partition("/")
    if kind == AC_BATTERY_KIND:
        return f"inverter/{name}"
    return kind if is_group(kind) else row.device


def is_group(kind: str) -> bool:
    return kind in DEVICE_KINDS and DEVICE_KINDS[kind].is_group


def describe(gateway: AnnouncedGateway, device: AnnouncedDevice) -> dict[str, Any]:
    facts, kind = gateway.facts, _kind(gateway, device)
    unit = facts.units.get(device.key, UnitFacts())
    if device.kind == "gateway":
        unit = UnitFacts(part_number=facts.part_number, firmware=facts.firmware or None)
    model = kind.models.get(device.name) or kind.filled(kind.model, device.name)
    about: dict[str, Any] = {
        "identifiers": [gateway.id_of(device.key)],
        "name": device_name(gateway, device),
        "manufacturer": unit.maker or "Enphase",
        "model": unit.model or model or kind.title,
        "model_id": unit.part_number,
        "sw_version": unit.firmware,
        "hw_version": _revision(unit.part_number),
    }
    if device.kind == "gateway":
        about |= {"serial_number": facts.serial, "configuration_url": gateway.url}
        about["connections"] = [["mac", facts.mac]] if facts.mac else None
    else:
        about["via_device"] = None if isinstance(gateway, AnnouncedHome) else gateway.id_of("gateway")
    if kind.has_serial:
        about["serial_number"] = device.name
    return {key: value for key, value in about.items() if value is not None}


def _kind(gateway: AnnouncedGateway, device: AnnouncedDevice) -> DeviceKind:
    """The kind of a device. AC Batteries report as inverters do, and are inverters in the tree."""
    is_ac_battery = device.kind == "inverter" and f"{AC_BATTERY_KIND}/{device.name}" in gateway.facts.gear
    unknown = DeviceKind(f"{words(device.kind)} {{capitals}}", "Device")
    return DEVICE_KINDS.get(AC_BATTERY_KIND if is_ac_battery else device.kind, unknown)


def device_name(gateway: AnnouncedGateway, device: AnnouncedDevice) -> str:
    """The name of the device in Home Assistant, which makes entity ids of it and of the names of entities.

    No two devices have the same name: names without a serial number end with the gateway's suffix, and a unit that
    has never worked at this gateway is probably another one's, so its name has the gateway's serial number. If the
    owner has named a device, it has that name; where another has it, too, the usual one follows.
    """
    if device.kind == SITE_KIND:
        return gateway.site
    kind, name, units = _kind(gateway, device), device.name, gateway.facts.units
    title = kind.names.get(name) or kind.filled(kind.title, name)
    if device.key in units and (own := units[device.key].name):
        others = [unit.name for key, unit in units.items() if key != device.key and unit.name]
        is_taken = _comparable(own) in map(_comparable, (*others, *TITLES, gateway.site))
        title = f"{own} ({title})" if is_taken else own
    if not kind.has_serial:
        return f"{title} {gateway.suffix}".strip()
    return f"{title} ({gateway.facts.serial})" if any(row.measurement.unused for row in device.rows) else title


def _comparable(name: str) -> str:
    """A name as Home Assistant writes it in ids: names that would get one id become equal."""
    return re.sub(r"\W|_", "", name.casefold())


def _revision(part_number: str | None) -> str | None:
    """The hardware revision, which a part number ends with: `r08` of `800-00654-r08`."""
    found = re.search(r"-(r\d+)$", part_number or "")
    return found[1] if found else None


def words(name: str) -> str:
    text = re.sub(r"[-_]+", " ", name)
    return text[:1].upper() + text[1:]


def _phrase(*parts: str) -> str:
    """Parts of a name as one: only the first keeps its capital, abbreviations (EUA, L1) aside."""
    first, *others = [part for part in parts if part]
    short = re.compile(r"[A-Z][A-Z0-9]")
    return " ".join([first, *(part if short.match(part) else part[0].lower() + part[1:] for part in others)])


def entity_name(row: Row, *, lone: bool = False) -> str:
    """`lone` tells that the device has one DC input only, which needs no number."""
    kind, _, name = row.device.partition("/")
    part = DEVICE_KINDS[kind].names.get(name, words(name)) if is_group(kind) else ""
    return _phrase(
        part,
        row.phase.label if row.phase and not (lone and isinstance(row.phase, Input)) else "",
        _label(kind, name, row.measurement.name) or row.measurement.label,
    )


def _label(kind: str, role: str, name: str) -> str | None:
    if kind not in {"meter", "report"} or role not in ENERGY_LABELS:
        return None
    delivered, received = ENERGY_LABELS[role]
    return {"energy_delivered": delivered, "energy_received": received}.get(name)
