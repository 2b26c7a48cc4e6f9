"""Checks discovery messages as strictly as the stricter of Home Assistant (2024.11 to 2026.11) and openHAB.

Home Assistant refuses a whole device because of one unknown key at the root, in `device` or in `origin`; openHAB
because of one bad component. The tables are written from what both accept, not from what the bridge sends.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.model import Message, Priority

ROOT = {"device", "origin", "components", "availability", "availability_mode", "qos"}
DEVICE = {
    *("identifiers", "name", "manufacturer", "model", "model_id", "sw_version", "hw_version", "connections"),
    *("serial_number", "configuration_url", "via_device"),
}
SHARED = {
    "unique_id",
    "name",
    "state_topic",
    "device_class",
    "icon",
    "entity_category",
    "enabled_by_default",
}
ENTITY = {
    "sensor": SHARED | {"unit_of_measurement", "state_class", "suggested_display_precision", "value_template"},
    "binary_sensor": SHARED | {"payload_on", "payload_off"},
    "event": SHARED | {"event_types"},
    "update": SHARED | {"value_template"},
}
SETTABLE = SHARED | {"command_topic", "optimistic", "retain", "message_expiry_interval"}
CONTROL = {
    "number": {"min", "max", "step"},
    "select": {"options", "value_template", "command_template"},
    "switch": set[str](),
    "text": {"max", "pattern"},
}
"""What each platform of controls must have beside what all have."""
OPTIONAL = {
    "number": {"unit_of_measurement"},
    "switch": {"payload_on", "payload_off", "state_on", "state_off"},
}
REQUIRED = {"unique_id", "name", "state_topic"}
NUMERIC: dict[str | None, tuple[str | None, set[str | None]]] = {
    "power": ("W", {"measurement"}),
    "apparent_power": ("VA", {"measurement"}),
    "reactive_power": ("var", {"measurement"}),
    "voltage": ("V", {"measurement"}),
    "current": ("A", {"measurement"}),
    "frequency": ("Hz", {"measurement"}),
    "power_factor": (None, {"measurement"}),
    "energy": ("kWh", {"total_increasing", "total", None}),
    "energy_storage": ("kWh", {"measurement"}),
    "battery": ("%", {"measurement"}),
    "duration": ("s", {"measurement"}),
    "temperature": ("°C", {"measurement"}),
    None: (None, {"measurement", "total_increasing", None}),
}
"""The device classes of sensors with their unit and the state classes that they allow."""
UNCLASSED = {"VAh", "varh", "%"}
"""Units without a fitting device class in all supported versions of Home Assistant."""
TOPICS_IN_WH = "{{ value if value == 'None' else (value | float / 1000) | round(6) }}"
"""The only template: it shows Wh in kWh, and leaves alone what means unknown."""
ABSENT = object()
MOST_AVAILABILITIES = 5
"""Bridge, gateway and the sources of what is in force."""


def check_entity(platform: str, entity: Mapping[str, Any], *, is_whole: bool = True) -> None:
    """`is_whole`: it is in the message of a whole device, and not in one of its own, as Domoticz takes it."""
    if platform in CONTROL:
        check_control(platform, entity)
        return
    assert platform in ENTITY, platform
    assert set(entity) - {"json_attributes_topic"} <= ENTITY[platform]
    assert set(entity) >= REQUIRED
    assert all(value is not None for value in entity.values())
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", entity["unique_id"])
    assert entity["name"].strip() == entity["name"] != ""
    assert not re.search(r"[+#\s]", entity["state_topic"])
    assert ("device_class" in entity) != ("icon" in entity), "Home Assistant has an icon for each device class"
    assert re.fullmatch("mdi:[a-z-]+", entity.get("icon", "mdi:none"))
    assert entity.get("entity_category", "diagnostic") == "diagnostic"
    assert entity.get("enabled_by_default", False) is False, "true is the default and is not sent"
    if platform == "sensor":
        check_sensor(entity, is_whole=is_whole)
    elif platform == "update":
        assert entity["device_class"] == "firmware"
    elif platform == "event":
        assert all(re.fullmatch("[a-z_]+", kind) for kind in entity["event_types"])
        assert len(set(entity["event_types"])) == len(entity["event_types"]) > 0
    else:
        assert entity.get("device_class", "connectivity") == "connectivity"


def check_control(platform: str, entity: Mapping[str, Any]) -> None:
    """A state that is no wish, and a command that neither stays at the broker nor comes late."""
    own = SETTABLE | CONTROL[platform]
    assert set(entity) <= own | OPTIONAL.get(platform, set[str]())
    assert set(entity) >= own - {"device_class", "entity_category", "enabled_by_default"}
    assert entity["name"] is None or entity["name"].strip() == entity["name"] != ""
    assert (entity["optimistic"], entity["retain"], entity["message_expiry_interval"]) == (False, False, 30)
    assert re.fullmatch(r"[^+#\s]+/set", entity["command_topic"])
    assert not re.search(r"[+#\s]", entity["state_topic"])
    assert entity.get("entity_category", "config") == "config"
    assert entity.get("enabled_by_default", False) is False
    assert re.fullmatch("mdi:[a-z-]+", entity["icon"])
    if platform == "number":
        assert entity["min"] < entity["max"]
        assert entity["step"] > 0
        assert None not in entity.values()
    elif platform == "select":
        assert len(set(entity["options"])) == len(entity["options"]) > 1
        assert "none" not in [option.lower() for option in entity["options"]], "it is shown as unknown for ever"
    elif platform == "text":
        assert re.match(entity["pattern"], "07:30")
        assert re.match(entity["pattern"], "None"), "a state outside the pattern is an error in the log"


def check_sensor(entity: Mapping[str, Any], *, is_whole: bool) -> None:
    kind, unit = entity.get("device_class"), entity.get("unit_of_measurement")
    state_class, precision = entity.get("state_class"), entity.get("suggested_display_precision", ABSENT)
    if kind == "timestamp":
        assert (unit, state_class, precision) == (None, None, ABSENT)
        return
    expected, classes = NUMERIC[kind]
    assert ("value_template" in entity) == (unit == "kWh")
    assert entity.get("value_template", TOPICS_IN_WH) == TOPICS_IN_WH
    if not is_whole:
        assert kind != "battery", "Domoticz takes it for the level of the device's own battery"
        assert "value_template" not in entity, "Domoticz ignores templates"
        expected = "Wh" if expected == "kWh" else expected
    assert unit == expected or (kind is None and unit in UNCLASSED)
    assert state_class in classes or (unit in UNCLASSED and state_class == "total")
    numeric = bool(kind or unit or state_class)
    assert not numeric or (isinstance(precision, int) and 0 <= precision <= 4)


def check_shared(body: Mapping[str, Any]) -> None:
    device, origin = body["device"], body["origin"]
    assert set(device) <= DEVICE
    assert set(device) >= {"identifiers", "name", "manufacturer", "model"}
    texts = device.keys() - {"identifiers", "connections"}
    assert all(isinstance(device[key], str) and device[key] for key in texts)
    assert all(re.fullmatch("([0-9a-f]{2}:){5}[0-9a-f]{2}", mac) for _, mac in device.get("connections", ()))
    assert [re.fullmatch(r"[a-zA-Z0-9_-]+", item) is not None for item in device["identifiers"]] == [True]
    assert set(origin) == {"name", "sw_version", "support_url"}
    assert body["availability_mode"] == "all"
    assert body["qos"] == 1
    assert 1 <= len(body["availability"]) <= MOST_AVAILABILITIES
    for item in body["availability"]:
        assert set(item) == {"topic", "payload_available", "payload_not_available"}
        assert (item["payload_available"], item["payload_not_available"]) == ("online", "offline")


def entity_id(entity: Mapping[str, Any]) -> str:
    """Return the id that Home Assistant makes of the names of an entity and of its device, if these are ASCII."""
    words = re.findall("[a-z0-9]+", f"{entity['device']['name']} {entity['name'] or ''}".lower())
    return f"{entity['platform']}.{'_'.join(words)}"


def check(messages: Iterable[Message], prefix: str = "homeassistant") -> dict[str, dict[str, Any]]:
    """Check discovery messages of either form, and return each announced entity with its device by unique id."""
    found: dict[str, dict[str, Any]] = {}
    for message in messages:
        assert (message.qos, message.priority) == (1, Priority.DISCOVERY)
        match = re.fullmatch(rf"{re.escape(prefix)}/([a-z_]+)/([a-zA-Z0-9_-]+)/config", message.topic)
        assert match, message.topic
        body = json.loads(message.payload)
        check_shared(body)
        if match[1] == "device":
            assert set(body) == ROOT
            assert body["device"]["identifiers"][0] in {match[2], match[2].removesuffix("_control")}
            entities = dict(body["components"])
            assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in entities)
        else:
            own = {key: value for key, value in body.items() if key not in ROOT}
            entities = {"one": {**own, "platform": match[1]}}
            assert match[2] == own["unique_id"].replace("battery", "batteries")
        for entity in entities.values():
            platform = entity.pop("platform")
            assert platform in {*ENTITY, *CONTROL}
            if not entity and match[1] == "device":
                continue  # an empty component removes an entity
            check_entity(platform, entity, is_whole=match[1] == "device")
            assert entity["unique_id"] not in found
            found[entity["unique_id"]] = {**entity, "platform": platform, "device": body["device"]}
    ids = [entity_id(entity) for entity in found.values()]
    assert len(set(ids)) == len(ids)
    return found
