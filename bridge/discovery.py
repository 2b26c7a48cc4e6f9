"""From what a gateway has to Home Assistant's discovery messages: one retained message per device.

Facts about what Home Assistant and openHAB accept stand in docs/topics.md; a key that either does not know at the
root, in `device` or in `origin` would make it refuse the whole device. There is no `default_entity_id`: where an
entity returns after it was deleted, that would undo an id that its owner has changed.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge import __version__
from bridge.endpoints import ENDPOINTS
from bridge.model import Facts, Input, Message, Phase, Platform, Priority
from bridge.records import icon
from bridge.topics import OFFLINE, ONLINE, Names, Row

SUPPORT_URL = "https://github.com/iqgateway2mqtt/iqgateway2mqtt"
MIGRATE_PAYLOAD = json.dumps({"migrate_discovery": True})
"""To a discovery topic: Home Assistant unloads the entities, but keeps what it and its owner know of them."""
ORIGIN = {"name": "iqgateway2mqtt", "sw_version": __version__, "support_url": SUPPORT_URL}

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
    `has_serial` is set if that second level is a serial number.
    `is_group` is set if all devices of the kind are one device of Home Assistant.
    `names` has the titles of single devices, and in a group the first words of the entities' names.
    """

    title: str
    model: str = ""
    has_serial: bool = False
    is_group: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


AC_BATTERY_KIND, SITE_KIND = "acb", "site"
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
    "storage": DeviceKind("Storage", is_group=True, names={"totals": "", "settings": "", "offgrid": "Off-grid"}),
    "meter": DeviceKind("{words} meter", "Current transformer", names=METER_NAMES),
    "inverter": DeviceKind("Inverter {name}", "Microinverter", has_serial=True),
    AC_BATTERY_KIND: DeviceKind("AC Battery {name}", "AC Battery", has_serial=True),
    "battery": DeviceKind("Battery {name}", "IQ Battery", has_serial=True),
    "controller": DeviceKind("Controller {name}", "IQ System Controller", has_serial=True),
    "collar": DeviceKind("Collar {name}", "IQ Meter Collar", has_serial=True),
    "combiner": DeviceKind("Combiner {name}", "IQ Combiner", has_serial=True),
    "device": DeviceKind("Device {name}", "Device", has_serial=True),
    "relay": DeviceKind("Relay {capitals}", "Relay", names={"mains": "Grid relay"}),
    "generator": DeviceKind("Generator {capitals}", "Generator", names={"1": "Generator"}),
    "tariff": DeviceKind("Tariff {capitals}", "Tariff", names={"current": "Tariff"}),
}
HOME_FLOW = f"{SITE_KIND}/home"
MAIN_SOURCES = {endpoint.main_source_of: endpoint.source for endpoint in ENDPOINTS if endpoint.main_source_of}


@dataclass(frozen=True, slots=True)
class AnnouncedGateway:
    """A gateway, as discovery describes it.

    `url` is the address of its own page, and `site` the name of its site. `suffix` is added to the names of its
    devices if there are several gateways. `in_home`: it is one of several in a home, and does not know its load.
    """

    facts: Facts
    url: str
    site: str = "Enphase"
    suffix: str = ""
    in_home: bool = False

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
class DiscoveryOptions:
    """Under which prefix discovery is published, and in which form: `device` or `component`."""

    names: Names
    prefix: str = "homeassistant"
    form: str = "device"


@dataclass(frozen=True, slots=True)
class AnnouncedDevice:
    """One device of Home Assistant, with the rows of the tree that belong to it.

    `key` is the device's name in the tree, or the kind if the kind is a group.
    `gone` are rows that it had, and that are removed from Home Assistant.
    """

    key: str
    rows: tuple[Row, ...]
    gone: tuple[Row, ...] = ()

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


def announce(
    options: DiscoveryOptions, gateway: AnnouncedGateway, rows: Iterable[Row], gone: Iterable[Row] = ()
) -> Iterator[Message]:
    """Discovery of one gateway, its own device first, since all others refer to it.

    Of a device that goes on without some of its rows those in `gone` are taken back.
    """
    by_device: dict[str, list[Row]] = {} if isinstance(gateway, AnnouncedHome) else {"gateway": []}
    disabled = {f"meter/{meter.role}" for meter in gateway.facts.meters or () if not meter.enabled}
    for row in rows:
        if row.device not in disabled:
            by_device.setdefault(_device_key(row), []).append(row)
    lost: dict[str, list[Row]] = {}
    for row in gone:
        lost.setdefault(_device_key(row), []).append(row)
    for key, members in by_device.items():
        device = AnnouncedDevice(key, tuple(members), tuple(lost.get(key, ())))
        if options.form == "component":
            yield from _components(options, gateway, device)
        else:
            yield _message(f"{options.prefix}/device/{gateway.id_of(key)}/config", _root(options, gateway, device))


def migration(topic: str) -> Message:
    """Tells that the entities of a discovery topic move to a message of the other form, before it is removed."""
    return Message(topic, MIGRATE_PAYLOAD, qos=1, priority=Priority.MIGRATE, content_type="application/json")


def removal(topic: str) -> Message:
    """Removes a discovery message from the broker."""
    return Message(topic, "", qos=1, priority=Priority.CLEANUP)


def of_other_form(options: DiscoveryOptions, topic: str) -> bool:
    """Whether a discovery topic of this prefix is of the form that is not published now."""
    by_device = topic.startswith(f"{options.prefix}/device/")
    return topic.startswith(f"{options.prefix}/") and by_device != (options.form == "device")


def _message(topic: str, body: Mapping[str, Any]) -> Message:
    return Message(topic, json.dumps(body), qos=1, priority=Priority.DISCOVERY, content_type="application/json")


def _device_key(row: Row) -> str:
    kind = row.device.partition("/")[0]
    return kind if _is_group(kind) else row.device


def _is_group(kind: str) -> bool:
    return kind in DEVICE_KINDS and DEVICE_KINDS[kind].is_group


def _component_key(row: Row) -> str:
    """openHAB takes these keys for channel ids, which know no hyphen."""
    kind, _, name = row.device.partition("/")
    parts = [name] if _is_group(kind) else []
    parts += [row.phase.value] if row.phase else []
    return re.sub(r"[^a-z0-9_]", "_", "_".join([*parts, row.measurement.name]))


def _root(options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice) -> dict[str, Any]:
    taken_back = {_component_key(row): {"platform": row.measurement.quantity.platform.value} for row in device.gone}
    components = {**taken_back, **dict(_entities(options, gateway, device))}
    return {**_shared(options, gateway, device), "components": components, "qos": 1}


def _components(options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice) -> Iterator[Message]:
    shared = _shared(options, gateway, device)
    for _, entity in _entities(options, gateway, device):
        platform = entity.pop("platform")
        yield _message(f"{options.prefix}/{platform}/{entity['unique_id']}/config", {**shared, **entity, "qos": 1})


def _shared(options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice) -> dict[str, Any]:
    return {
        "device": _device(gateway, device),
        "origin": ORIGIN,
        "availability": [
            {"topic": topic, "payload_available": ONLINE, "payload_not_available": OFFLINE}
            for topic in _availability(options.names, gateway, device)
        ],
        "availability_mode": "all",
    }


def _availability(names: Names, gateway: AnnouncedGateway, device: AnnouncedDevice) -> Iterator[str]:
    """The bridge's state, and that of the device's main source; of the gateway where it has several.

    A meter that is not read, since the gateway lacks `readings` or they are turned off, has its configuration only.
    What an inverter shows unasked is its power; its details may be older, and say so by `last_report`.
    """
    serial = gateway.facts.serial
    yield f"{names.bridge}/state"
    sources, main = device.sources, MAIN_SOURCES.get(device.kind)
    if device.kind == "gateway":
        return
    if main in sources or len(sources) == 1:
        yield gateway.availability(names, main if main in sources else next(iter(sources)))
    else:
        yield names.state(serial)


def _device(gateway: AnnouncedGateway, device: AnnouncedDevice) -> dict[str, Any]:
    facts, kind = gateway.facts, _kind(gateway, device)
    about: dict[str, Any] = {
        "identifiers": [gateway.id_of(device.key)],
        "name": device_name(gateway, device),
        "manufacturer": "Enphase",
        "model": kind.model or kind.title,
    }
    if device.kind == "gateway":
        about |= {
            "sw_version": facts.firmware or None,
            "model_id": facts.part_number,
            "serial_number": facts.serial,
        }
        about |= {"configuration_url": gateway.url}
    else:
        about["via_device"] = None if isinstance(gateway, AnnouncedHome) else gateway.id_of("gateway")
    if kind.has_serial:
        about["serial_number"] = device.name
    return {key: value for key, value in about.items() if value is not None}


def _kind(gateway: AnnouncedGateway, device: AnnouncedDevice) -> DeviceKind:
    """The kind of a device. AC Batteries report as inverters do, and are inverters in the tree."""
    is_ac_battery = device.kind == "inverter" and f"{AC_BATTERY_KIND}/{device.name}" in gateway.facts.gear
    unknown = DeviceKind(f"{_words(device.kind)} {{capitals}}", "Device")
    return DEVICE_KINDS.get(AC_BATTERY_KIND if is_ac_battery else device.kind, unknown)


def device_name(gateway: AnnouncedGateway, device: AnnouncedDevice) -> str:
    """The name of the device in Home Assistant, which makes entity ids of it and of the names of entities.

    No two devices have the same name: names without a serial number end with the gateway's suffix, and a unit that
    has never worked at this gateway is probably another one's, so its name has the gateway's serial number.
    """
    if device.kind == SITE_KIND:
        return gateway.site
    kind, name = _kind(gateway, device), device.name
    title = kind.names.get(name) or kind.title.format(name=name, words=_words(name), capitals=name.upper())
    if not kind.has_serial:
        return f"{title} {gateway.suffix}".strip()
    return f"{title} ({gateway.facts.serial})" if any(row.measurement.unused for row in device.rows) else title


def _words(name: str) -> str:
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
    part = DEVICE_KINDS[kind].names.get(name, _words(name)) if _is_group(kind) else ""
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


def _entities(
    options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice
) -> Iterator[tuple[str, dict[str, Any]]]:
    if device.kind == "gateway":
        yield "state", _connectivity(options, gateway, device)
    for row in device.rows:
        yield _component_key(row), _entity(options, gateway, row, device)


def _connectivity(options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice) -> dict[str, Any]:
    return {
        "platform": Platform.BINARY_SENSOR.value,
        "name": "Connection",
        "unique_id": f"{gateway.id_of(device.key)}_state",
        "state_topic": options.names.state(gateway.facts.serial),
        "payload_on": ONLINE,
        "payload_off": OFFLINE,
        "device_class": "connectivity",
        "entity_category": "diagnostic",
    }


def _entity(
    options: DiscoveryOptions, gateway: AnnouncedGateway, row: Row, device: AnnouncedDevice
) -> dict[str, Any]:
    measurement, quantity, phase = row.measurement, row.measurement.quantity, row.phase
    name = entity_name(row, lone=device.has_one_input)
    # A device with one phase is that phase, so it shows what a phase would.
    own = measurement.enabled or (measurement.enabled_phases and not device.has_phases)
    enabled = (measurement.enabled_phases if phase else own) and not measurement.unused
    enabled = enabled and not (gateway.in_home and row.device == HOME_FLOW)
    unique = "_".join([gateway.id_of(row.device), *([phase.value] if phase else []), measurement.name])
    entity: dict[str, Any] = {
        "platform": quantity.platform.value,
        "name": name,
        "unique_id": unique,
        "state_topic": gateway.value_topic(options.names, row),
        "device_class": quantity.device_class,
        "icon": None if quantity.device_class else icon(measurement),
        "unit_of_measurement": quantity.unit,
        "state_class": quantity.state_class,
        "suggested_display_precision": quantity.precision if quantity.numeric else None,
        "entity_category": "diagnostic" if measurement.diagnostic else None,
        "enabled_by_default": None if enabled else False,
    }
    return {key: value for key, value in entity.items() if value is not None}
