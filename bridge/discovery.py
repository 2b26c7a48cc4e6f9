"""From what a gateway has to Home Assistant's discovery messages: one retained message per device.

Facts about what Home Assistant and openHAB accept stand in docs/topics.md; a key that either does not know at the
root, in `device` or in `origin` would make it refuse the whole device.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge import __version__
from bridge.model import Facts, Input, Message, Phase, Platform, Rank
from bridge.topics import OFFLINE, ONLINE, Names, Row

SUPPORT_URL = "https://github.com/iqgateway2mqtt/iqgateway2mqtt"
HANDOVER = json.dumps({"migrate_discovery": True})
"""To a discovery topic: Home Assistant unloads the entities, but keeps what it and its owner know of them."""
ORIGIN = {"name": "iqgateway2mqtt", "sw_version": __version__, "support_url": SUPPORT_URL}

METERS = {
    "production": "Production meter",
    "net-consumption": "Net consumption meter",
    "total-consumption": "Total consumption meter",
    "storage": "Storage meter",
    "backfeed": "Backfeed meter",
    "load": "Load meter",
    "evse": "EV charger meter",
    "pv3p": "Third-party PV meter",
}
"""Device names by role; another role becomes "<Role> meter"."""

ENERGIES = {
    "production": ("Energy produced", "Energy consumed"),
    "net-consumption": ("Energy imported", "Energy exported"),
    "total-consumption": ("Energy consumed", "Energy returned"),
    "storage": ("Energy discharged", "Energy charged"),
}
"""What `energy_delivered` and `energy_received` of a meter or a report are to people."""

GROUPS = {
    "site": "Enphase",
    "energy": "Energy counters",
    "live": "Live data",
    "report": "Meter reports",
    "storage": "Storage",
}
"""Kinds whose devices of the tree are one device of Home Assistant."""

PARTS = {
    "production-pcu": "Microinverters",
    "production-rgm": "Revenue grade meter",
    "production-eim": "Production meter",
    "consumption-eim": "Consumption meter",
    "pv": "PV",
    "totals": "",
    "settings": "",
    "offgrid": "Off-grid",
}
"""What the devices of a group are called in its entities' names; others by their own name."""

MAIN = {"meter": "readings", "inverter": "inverters"}
"""The source that a kind of device lives by, where it is one of several."""
NAMES = {"relay/mains": "Grid relay", "generator/1": "Generator", "tariff/current": "Tariff"}
"""Devices that a home has one of."""

SERIAL_KINDS = frozenset({"inverter", "battery", "controller", "collar", "combiner", "device"})
"""Kinds whose devices are named by their serial numbers."""

MODELS = {
    "gateway": "IQ Gateway",
    "meter": "Current transformer",
    "inverter": "Microinverter",
    "battery": "IQ Battery",
    "controller": "IQ System Controller",
    "collar": "IQ Meter Collar",
    "combiner": "IQ Combiner",
    "relay": "Relay",
    "generator": "Generator",
    "tariff": "Tariff",
}


@dataclass(frozen=True, slots=True)
class Gateway:
    """What discovery must know of a gateway besides its rows.

    `suffix` tells several gateways' equal devices apart; `site` is the name of its site.
    """

    facts: Facts
    url: str
    site: str = "Enphase"
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where discovery is published, and in which form: `device` or `component`."""

    names: Names
    prefix: str = "homeassistant"
    form: str = "device"


@dataclass(frozen=True, slots=True)
class Device:
    """One device of Home Assistant, with the rows of the tree that belong to it."""

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
    settings: Settings, gateway: Gateway, rows: Iterable[Row], gone: Iterable[Row] = ()
) -> Iterator[Message]:
    """Discovery of one gateway, its own device first, since all others refer to it.

    Of a device that goes on without some of its rows those in `gone` are taken back.
    """
    by_device: dict[str, list[Row]] = {"gateway": []}
    disabled = {f"meter/{meter.role}" for meter in gateway.facts.meters or () if not meter.enabled}
    for row in rows:
        if row.device not in disabled:
            by_device.setdefault(_device_key(row), []).append(row)
    lost: dict[str, list[Row]] = {}
    for row in gone:
        lost.setdefault(_device_key(row), []).append(row)
    for key, members in by_device.items():
        device = Device(key, tuple(members), tuple(lost.get(key, ())))
        if settings.form == "component":
            yield from _components(settings, gateway, device)
        else:
            yield _message(f"{settings.prefix}/device/{_id(gateway, key)}/config", _root(settings, gateway, device))


def handover(topic: str) -> Message:
    """Before a discovery topic is cleared whose entities go on in a message of the other form."""
    return Message(topic, HANDOVER, qos=1, rank=Rank.HANDOVER, content_type="application/json")


def farewell(topic: str) -> Message:
    """Takes a discovery message back."""
    return Message(topic, "", qos=1, rank=Rank.FAREWELL)


def of_other_form(settings: Settings, topic: str) -> bool:
    """Whether a discovery topic of this prefix is of the form that is not published now."""
    by_device = topic.startswith(f"{settings.prefix}/device/")
    return topic.startswith(f"{settings.prefix}/") and by_device != (settings.form == "device")


def _message(topic: str, body: Mapping[str, Any]) -> Message:
    return Message(topic, json.dumps(body), qos=1, rank=Rank.DISCOVERY, content_type="application/json")


def _id(gateway: Gateway, device: str) -> str:
    return f"iqgateway_{gateway.facts.serial}_{device.replace('/', '_')}"


def _device_key(row: Row) -> str:
    kind = row.device.partition("/")[0]
    return kind if kind in GROUPS else row.device


def _component_key(row: Row) -> str:
    """openHAB takes these keys for channel ids, which know no hyphen."""
    parts = [row.device.partition("/")[2]] if row.device.partition("/")[0] in GROUPS else []
    parts += [row.phase.value] if row.phase else []
    return re.sub(r"[^a-z0-9_]", "_", "_".join([*parts, row.measurement.name]))


def _root(settings: Settings, gateway: Gateway, device: Device) -> dict[str, Any]:
    taken_back = {_component_key(row): {"platform": row.measurement.quantity.platform.value} for row in device.gone}
    components = {**taken_back, **dict(_entities(settings, gateway, device))}
    return {**_shared(settings, gateway, device), "components": components, "qos": 1}


def _components(settings: Settings, gateway: Gateway, device: Device) -> Iterator[Message]:
    shared = _shared(settings, gateway, device)
    for _, entity in _entities(settings, gateway, device):
        platform = entity.pop("platform")
        yield _message(f"{settings.prefix}/{platform}/{entity['unique_id']}/config", {**shared, **entity, "qos": 1})


def _shared(settings: Settings, gateway: Gateway, device: Device) -> dict[str, Any]:
    return {
        "device": _device(gateway, device),
        "origin": ORIGIN,
        "availability": [
            {"topic": topic, "payload_available": ONLINE, "payload_not_available": OFFLINE}
            for topic in _availability(settings.names, gateway, device)
        ],
        "availability_mode": "all",
    }


def _availability(names: Names, gateway: Gateway, device: Device) -> Iterator[str]:
    """The bridge's state, and that of the device's main source; of the gateway where it has several.

    A meter that is not read, since the gateway lacks `readings` or they are turned off, has its configuration only.
    What an inverter shows unasked is its power; its details may be older, and say so by `last_report`.
    """
    serial = gateway.facts.serial
    yield f"{names.bridge}/state"
    sources, main = device.sources, MAIN.get(device.kind)
    if device.kind == "gateway":
        return
    if main in sources or len(sources) == 1:
        yield names.availability(serial, main if main in sources else next(iter(sources)))
    else:
        yield names.state(serial)


def _device(gateway: Gateway, device: Device) -> dict[str, Any]:
    facts = gateway.facts
    about: dict[str, Any] = {
        "identifiers": [_id(gateway, device.key)],
        "name": device_name(gateway, device),
        "manufacturer": "Enphase",
        "model": _model(gateway, device),
    }
    if device.kind == "gateway":
        about |= {
            "sw_version": facts.firmware or None,
            "model_id": facts.part_number,
            "serial_number": facts.serial,
        }
        about |= {"configuration_url": gateway.url}
    else:
        about["via_device"] = _id(gateway, "gateway")
    if device.kind in SERIAL_KINDS:
        about["serial_number"] = device.name
    return {key: value for key, value in about.items() if value is not None}


def _is_ac_battery(gateway: Gateway, device: Device) -> bool:
    """They report as inverters do, and stand among them."""
    return device.kind == "inverter" and f"acb/{device.name}" in gateway.facts.gear


def _model(gateway: Gateway, device: Device) -> str:
    if _is_ac_battery(gateway, device):
        return "AC Battery"
    return MODELS.get(device.kind) or GROUPS.get(device.kind) or "Device"


def device_name(gateway: Gateway, device: Device) -> str:
    """What people call the device. Serial numbers tell their own kind apart, `suffix` all others."""
    if device.kind == "site":
        return gateway.site
    if device.kind in GROUPS:
        base = GROUPS[device.kind]
    elif device.kind == "meter":
        base = METERS.get(device.name) or f"{_words(device.name)} meter"
    elif device.kind == "gateway":
        base = "IQ Gateway"
    elif device.kind in SERIAL_KINDS:
        kind = "AC Battery" if _is_ac_battery(gateway, device) else _words(device.kind)
        return f"{kind} {device.name}"
    else:
        base = NAMES.get(device.key) or f"{_words(device.kind)} {device.name.upper()}"
    return f"{base} {gateway.suffix}".strip()


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
    part = PARTS.get(name, _words(name)) if kind in GROUPS else ""
    return _phrase(
        part,
        row.phase.label if row.phase and not (lone and isinstance(row.phase, Input)) else "",
        _label(kind, name, row.measurement.name) or row.measurement.label,
    )


def _label(kind: str, role: str, name: str) -> str | None:
    if kind not in {"meter", "report"} or role not in ENERGIES:
        return None
    delivered, received = ENERGIES[role]
    return {"energy_delivered": delivered, "energy_received": received}.get(name)


def _entities(settings: Settings, gateway: Gateway, device: Device) -> Iterator[tuple[str, dict[str, Any]]]:
    if device.kind == "gateway":
        yield "state", _connectivity(settings, gateway, device)
    for row in device.rows:
        yield _component_key(row), _entity(settings, gateway, row, device)


def _connectivity(settings: Settings, gateway: Gateway, device: Device) -> dict[str, Any]:
    name = device_name(gateway, device)
    return {
        "platform": Platform.BINARY_SENSOR.value,
        "name": "Connection",
        "unique_id": f"{_id(gateway, device.key)}_state",
        "default_entity_id": f"binary_sensor.{_slug(f'{name} connection')}",
        "state_topic": settings.names.state(gateway.facts.serial),
        "payload_on": ONLINE,
        "payload_off": OFFLINE,
        "device_class": "connectivity",
        "entity_category": "diagnostic",
    }


def _slug(text: str) -> str:
    """As Home Assistant makes it where it chooses an id itself: without accents, ß as ss."""
    plain = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def _entity(settings: Settings, gateway: Gateway, row: Row, device: Device) -> dict[str, Any]:
    measurement, quantity, phase = row.measurement, row.measurement.quantity, row.phase
    name = entity_name(row, lone=device.has_one_input)
    # A device with one phase is that phase, so it shows what a phase would.
    own = measurement.enabled or (measurement.enabled_phases and not device.has_phases)
    enabled = measurement.enabled_phases if phase else own
    unique = "_".join([_id(gateway, row.device), *([phase.value] if phase else []), measurement.name])
    entity: dict[str, Any] = {
        "platform": quantity.platform.value,
        "name": name,
        "unique_id": unique,
        "default_entity_id": f"{quantity.platform.value}.{_slug(f'{device_name(gateway, device)} {name}')}",
        "state_topic": settings.names.value(gateway.facts.serial, row.device, phase, measurement.name),
        "device_class": quantity.device_class,
        "unit_of_measurement": quantity.unit,
        "state_class": quantity.state_class,
        "suggested_display_precision": quantity.precision if quantity.numeric else None,
        "entity_category": "diagnostic" if measurement.diagnostic else None,
        "enabled_by_default": None if enabled else False,
    }
    return {key: value for key, value in entity.items() if value is not None}
