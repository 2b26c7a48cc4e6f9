"""From what a gateway has to Home Assistant's discovery messages: one retained message per device.

Facts about what Home Assistant and openHAB accept stand in docs/topics.md; a key that either does not know at the
root, in `device` or in `origin` would make it refuse the whole device. There is no `default_entity_id`: where an
entity returns after it was deleted, that would undo an id that its owner has changed.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bridge import __version__
from bridge.discovery.controls import (
    CONTROL_SUFFIX,
    ControlRow,
    command_entities,
    control_entity,
    controlled,
)
from bridge.discovery.devices import (
    SITE_KIND,
    AnnouncedDevice,
    AnnouncedGateway,
    AnnouncedHome,
    describe,
    device_key,
    entity_name,
    is_group,
)
from bridge.endpoints import ENDPOINTS
from bridge.endpoints.info import UPDATE_PROGRESS
from bridge.events import EventKind
from bridge.model import Measurement, Message, Platform, Priority
from bridge.records import icon
from bridge.rows import Row
from bridge.topics import OFFLINE, ONLINE, Names

SUPPORT_URL = "https://github.com/iqgateway2mqtt/iqgateway2mqtt"
MIGRATE_PAYLOAD = json.dumps({"migrate_discovery": True})
"""To a discovery topic: Home Assistant unloads the entities, but keeps what it and its owner know of them."""
ORIGIN = {"name": "iqgateway2mqtt", "sw_version": __version__, "support_url": SUPPORT_URL}
REVISION = 1
"""Grows when a device gets other units. Home Assistant would show the last value in the new unit until the next one
comes, and count a thousandfold energy, so that it has to unload the entities first.
"""
KWH_TEMPLATE = "{{ value if value == 'None' else (value | float / 1000) | round(6) }}"
CHARGE_ICON = "mdi:battery"
MORE_DECIMALS_OF_KWH = 2
"""How many more decimals people see of an energy in kWh than of one in Wh."""

HOME_FLOW = f"{SITE_KIND}/home"
MAIN_SOURCES = {endpoint.main_source_of: endpoint.source for endpoint in ENDPOINTS if endpoint.main_source_of}


@dataclass(frozen=True, slots=True)
class DiscoveryOptions:
    """Under which prefix discovery is published, and in which form: `device` or `component`."""

    names: Names
    prefix: str = "homeassistant"
    form: str = "device"


def announce(
    options: DiscoveryOptions, gateway: AnnouncedGateway, rows: Iterable[Row], gone: Iterable[Row] = ()
) -> Iterator[Message]:
    """The discovery messages of one gateway: that of its own device first, since all others refer to it.

    Rows in `gone` are removed from devices that keep other rows. Controls have messages of their own, so that they
    come and go with the permission. The sensor of the same value is disabled then.
    """
    rows, gone = list(rows), list(gone)
    controls = tuple(controlled(rows, gateway.allowed))
    in_force = frozenset(row.proof.key for row in controls)
    by_device: dict[str, list[Row]] = {} if isinstance(gateway, AnnouncedHome) else {"gateway": []}
    disabled = {f"meter/{meter.role}" for meter in gateway.facts.meters or () if not meter.enabled}
    for row in rows:
        if row.device not in disabled:
            by_device.setdefault(device_key(row), []).append(row)
    lost: dict[str, list[Row]] = {}
    for row in gone:
        lost.setdefault(device_key(row), []).append(row)
    for key, members in by_device.items():
        device = AnnouncedDevice(key, tuple(members), tuple(lost.get(key, ())), in_force)
        if options.form == "component":
            yield from _components(options, gateway, device)
        else:
            yield _message(f"{options.prefix}/device/{gateway.id_of(key)}/config", _root(options, gateway, device))
    if gateway.allowed:
        former = (row for row in controlled([*rows, *gone], gateway.allowed) if row not in controls)
        yield from _controls(options, gateway, by_device, controls, tuple(former))


def _controls(
    options: DiscoveryOptions,
    gateway: AnnouncedGateway,
    by_device: Mapping[str, Sequence[Row]],
    controls: Sequence[ControlRow],
    former: Sequence[ControlRow],
) -> Iterator[Message]:
    """The messages of what becomes of commands and of the controls of each device.

    Home Assistant shows them at the device whose identifiers they have. They are available while all that tells
    what is in force is. In component form they have the availability of the device's sensors, since openHAB knows
    one for all entities of a device.
    """
    names, kept = options.names, dict[str, list[ControlRow]]()
    for row in controls:
        kept.setdefault(row.device, []).append(row)
    for key in ("gateway", *kept):
        device, own = AnnouncedDevice(key, tuple(by_device.get(key, ()))), kept.get(key, [])
        sources = dict.fromkeys(row.proof.source for row in own)
        topics = [f"{names.bridge}/state"]
        if options.form == "component" and device.rows:
            topics = list(_availability(names, gateway, device))
        elif own:
            serial = gateway.facts.serial
            topics += [names.state(serial), *(names.availability(serial, source) for source in sources)]
        shared = _shared(gateway, device, topics)
        entities = {row.key: control_entity(names, gateway, row) for row in own}
        entities |= dict(command_entities(names, gateway)) if key == "gateway" else {}
        if options.form == "component":
            yield from _alone(options, shared, entities.values())
            continue
        taken_back = {row.key: {"platform": row.platform.value} for row in former if row.device == key}
        body = {**shared, "components": {**taken_back, **entities}, "qos": 1}
        object_id = gateway.id_of(key).removesuffix(CONTROL_SUFFIX) + CONTROL_SUFFIX
        yield _message(f"{options.prefix}/device/{object_id}/config", body)


def migration(topic: str) -> Message:
    """Tells that the entities of a discovery topic move to a message of the other form, before it is removed."""
    return Message(topic, MIGRATE_PAYLOAD, qos=1, priority=Priority.MIGRATE, content_type="application/json")


def removal(topic: str) -> Message:
    """Removes a discovery message from the broker."""
    return Message(topic, "", qos=1, priority=Priority.CLEANUP)


def of_other_form(options: DiscoveryOptions, topic: str) -> bool:
    """Whether a topic of this prefix is of the form that is not published now, or was spelt otherwise."""
    by_device = topic.startswith(f"{options.prefix}/device/")
    is_outdated = not by_device and _object_id(topic) != topic
    return topic.startswith(f"{options.prefix}/") and (by_device != (options.form == "device") or is_outdated)


def other_topics(options: DiscoveryOptions, gateway: AnnouncedGateway, rows: Iterable[Row]) -> set[str]:
    """The discovery topics of the form that is not published now."""
    other = replace(options, form="component" if options.form == "device" else "device")
    return {message.topic for message in announce(other, gateway, rows)}


def other_filters(options: DiscoveryOptions, device: str) -> Sequence[str]:
    """Filters for the messages that `of_other_form` is true of.

    Some brokers deliver no retained messages for wildcards. For these there is also the topic of a device that is
    always announced, whose id is `device`.
    """
    entities = [f"{options.prefix}/{platform.value}/+/config" for platform in Platform]
    if options.form == "device":
        return [*entities, f"{options.prefix}/{Platform.BINARY_SENSOR.value}/{device}_state/config"]
    return [*entities, f"{options.prefix}/device/+/config", f"{options.prefix}/device/{device}/config"]


def _message(topic: str, body: Mapping[str, Any]) -> Message:
    return Message(topic, json.dumps(body), qos=1, priority=Priority.DISCOVERY, content_type="application/json")


def _component_key(row: Row) -> str:
    """openHAB takes these keys for channel ids, which know no hyphen."""
    kind, _, name = row.device.partition("/")
    parts = [name] if is_group(kind) else []
    parts += [row.phase.value] if row.phase else []
    return re.sub(r"[^a-z0-9_]", "_", "_".join([*parts, row.measurement.name]))


def _root(options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice) -> dict[str, Any]:
    taken_back = {_component_key(row): {"platform": row.measurement.quantity.platform.value} for row in device.gone}
    components = {**taken_back, **dict(_entities(options, gateway, device))}
    topics = _availability(options.names, gateway, device)
    return {**_shared(gateway, device, topics), "components": components, "qos": 1}


def _components(options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice) -> Iterator[Message]:
    shared = _shared(gateway, device, _availability(options.names, gateway, device))
    yield from _alone(options, shared, (entity for _, entity in _entities(options, gateway, device)))


def _alone(
    options: DiscoveryOptions, shared: Mapping[str, Any], entities: Iterable[dict[str, Any]]
) -> Iterator[Message]:
    """A message for each entity of a device."""
    for entity in entities:
        platform = entity.pop("platform")
        object_id = _object_id(entity["unique_id"])
        yield _message(f"{options.prefix}/{platform}/{object_id}/config", {**shared, **entity, "qos": 1})


def _object_id(unique_id: str) -> str:
    """The object id of an entity in component form. Domoticz takes a sensor with `battery` in it for the level of a
    device's own battery, and makes no sensor of it.
    """
    return unique_id.replace("battery", "batteries")


def _shared(gateway: AnnouncedGateway, device: AnnouncedDevice, topics: Iterable[str]) -> dict[str, Any]:
    return {
        "device": describe(gateway, device),
        "origin": ORIGIN,
        "availability": [
            {"topic": topic, "payload_available": ONLINE, "payload_not_available": OFFLINE} for topic in topics
        ],
        "availability_mode": "all",
    }


def _availability(names: Names, gateway: AnnouncedGateway, device: AnnouncedDevice) -> Iterator[str]:
    """The topics that tell whether a device is available: that of the bridge, and that of the device's main source.

    A device with several sources, but not its main one, has the gateway's topic instead. A meter has no main source
    where `readings` are missing or turned off; then it shows its configuration only. The power of an inverter comes
    from its main source; its details may be older, as `last_report` shows.
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


def _entities(
    options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice
) -> Iterator[tuple[str, dict[str, Any]]]:
    if device.kind == "gateway":
        yield "state", _connectivity(options, gateway, device)
        yield "events", _events(options, gateway, device)
        for row in _progress(device) if options.form == "device" else ():  # it needs a template
            yield f"{row.measurement.name}_update", _update(options, gateway, row)
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


def _progress(device: AnnouncedDevice) -> list[Row]:
    """The row of the progress of an update, if the gateway tells it."""
    return [row for row in device.rows if row.measurement.name == UPDATE_PROGRESS]


def _update(options: DiscoveryOptions, gateway: AnnouncedGateway, row: Row) -> dict[str, Any]:
    """Whether an update of firmware runs, and how far it is. There is nothing to press: the gateway does it alone.

    The gateway does not tell the version that comes. Its own has only harmless letters in the template.
    """
    installed = re.sub(r"[^\w.-]", "", gateway.facts.firmware) or "unknown"
    running = '"latest_version": "newer", "in_progress": true, "update_percentage": {{ value | float(0) | round }}'
    idle = f'"latest_version": "{installed}", "in_progress": false'
    return {
        "platform": Platform.UPDATE.value,
        "name": "Firmware update",
        "unique_id": f"{gateway.id_of(row.device)}_update",
        "state_topic": gateway.value_topic(options.names, row),
        "value_template": f'{{"installed_version": "{installed}", '
        f"{{% if value == 'None' %}}{idle}{{% else %}}{running}{{% endif %}}}}",
        "device_class": "firmware",
        "entity_category": "diagnostic",
    }


def _events(options: DiscoveryOptions, gateway: AnnouncedGateway, device: AnnouncedDevice) -> dict[str, Any]:
    """What happens at the gateway. Home Assistant drops events of a type that was not announced before."""
    return {
        "platform": Platform.EVENT.value,
        "name": "Event",
        "unique_id": f"{gateway.id_of(device.key)}_events",
        "state_topic": options.names.events(gateway.facts.serial),
        "event_types": [kind.value for kind in EventKind],
        "icon": "mdi:bell-outline",
    }


def _entity(
    options: DiscoveryOptions, gateway: AnnouncedGateway, row: Row, device: AnnouncedDevice
) -> dict[str, Any]:
    measurement, quantity, phase = row.measurement, row.measurement.quantity, row.phase
    name = entity_name(row, lone=device.has_one_input)
    # A device with one phase is that phase, so it shows what a phase would.
    own = measurement.enabled or (measurement.enabled_phases and not device.has_phases)
    enabled = (measurement.enabled_phases if phase else own) and not measurement.unused
    enabled = enabled and gateway.facts.uses(row.device) and not (gateway.in_home and row.device == HOME_FLOW)
    enabled = enabled and row.key not in device.in_force
    unique = "_".join([gateway.id_of(row.device), *([phase.value] if phase else []), measurement.name])
    entity: dict[str, Any] = {
        "platform": quantity.platform.value,
        "name": name,
        "unique_id": unique,
        "state_topic": gateway.value_topic(options.names, row),
        "icon": None if quantity.device_class else icon(measurement),
        **_shown(options, measurement),
        "state_class": quantity.state_class,
        "entity_category": "diagnostic" if measurement.diagnostic else None,
        "enabled_by_default": None if enabled else False,
    }
    return {key: value for key, value in entity.items() if value is not None}


def _shown(options: DiscoveryOptions, measurement: Measurement) -> dict[str, Any]:
    """How people see a value: energies, which have Wh in their topics, in kWh.

    The component form is for Domoticz, too, which ignores templates, so that its energies are in Wh. It takes each
    sensor of class `battery` for the level of a device's own battery, so that a charge has no class there.
    """
    quantity = measurement.quantity
    shown: dict[str, Any] = {
        "device_class": quantity.device_class,
        "unit_of_measurement": quantity.unit,
        "suggested_display_precision": quantity.precision if quantity.numeric else None,
    }
    if options.form == "component":
        return shown | ({"device_class": None, "icon": CHARGE_ICON} if quantity.device_class == "battery" else {})
    if quantity.unit == "Wh":
        decimals = (quantity.precision or 0) + MORE_DECIMALS_OF_KWH
        shown |= {
            "unit_of_measurement": "kWh",
            "value_template": KWH_TEMPLATE,
            "suggested_display_precision": decimals,
        }
    return shown
