"""What Home Assistant (2024.11 to 2026.11) and openHAB both take as discovery, as strict as the stricter of them.

Home Assistant refuses a whole device for one unknown key at the root, in `device` or in `origin`; openHAB for one
bad component. Written from what they accept, not from what we send.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.model import Message, Rank

ROOT = {"device", "origin", "components", "availability", "availability_mode", "qos"}
DEVICE = {
    *("identifiers", "name", "manufacturer", "model", "model_id", "sw_version"),
    *("serial_number", "configuration_url", "via_device"),
}
SHARED = {
    "unique_id",
    "default_entity_id",
    "name",
    "state_topic",
    "device_class",
    "entity_category",
    "enabled_by_default",
}
ENTITY = {
    "sensor": SHARED | {"unit_of_measurement", "state_class", "suggested_display_precision"},
    "binary_sensor": SHARED | {"payload_on", "payload_off"},
}
REQUIRED = {"unique_id", "default_entity_id", "name", "state_topic"}
NUMERIC = {
    "power": ("W", {"measurement"}),
    "apparent_power": ("VA", {"measurement"}),
    "reactive_power": ("var", {"measurement"}),
    "voltage": ("V", {"measurement"}),
    "current": ("A", {"measurement"}),
    "frequency": ("Hz", {"measurement"}),
    "power_factor": (None, {"measurement"}),
    "energy": ("Wh", {"total_increasing", "total", None}),
    "energy_storage": ("Wh", {"measurement"}),
    "battery": ("%", {"measurement"}),
    "duration": ("s", {"measurement"}),
    "temperature": ("°C", {"measurement"}),
    None: (None, {"measurement", "total_increasing", None}),
}
"""Device classes of sensors with their unit and the state classes that may go with it."""
UNCLASSED = {"VAh", "varh", "%"}
"""Units for which Home Assistant has no device class that all supported versions know, or none that is meant."""
ABSENT = object()


def check_entity(platform: str, entity: Mapping[str, Any]) -> None:
    assert platform in ENTITY, platform
    assert set(entity) <= ENTITY[platform]
    assert set(entity) >= REQUIRED
    assert all(value is not None for value in entity.values())
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", entity["unique_id"])
    assert re.fullmatch(rf"{platform}\.[a-z0-9]+(_[a-z0-9]+)*", entity["default_entity_id"])
    assert entity["name"].strip() == entity["name"] != ""
    assert not re.search(r"[+#\s]", entity["state_topic"])
    assert entity.get("entity_category", "diagnostic") == "diagnostic"
    assert entity.get("enabled_by_default", False) is False, "true is the default and is not sent"
    if platform == "sensor":
        check_sensor(entity)
    else:
        assert entity.get("device_class", "connectivity") == "connectivity"


def check_sensor(entity: Mapping[str, Any]) -> None:
    kind, unit = entity.get("device_class"), entity.get("unit_of_measurement")
    state_class, precision = entity.get("state_class"), entity.get("suggested_display_precision", ABSENT)
    if kind == "timestamp":
        assert (unit, state_class, precision) == (None, None, ABSENT)
        return
    expected, classes = NUMERIC[kind]
    assert unit == expected or (kind is None and unit in UNCLASSED)
    assert state_class in classes or (unit in UNCLASSED and state_class == "total")
    numeric = bool(kind or unit or state_class)
    assert not numeric or (isinstance(precision, int) and 0 <= precision <= 3)


def check_shared(body: Mapping[str, Any]) -> None:
    device, origin = body["device"], body["origin"]
    assert set(device) <= DEVICE
    assert set(device) >= {"identifiers", "name", "manufacturer", "model"}
    assert all(isinstance(value, str) and value for key, value in device.items() if key != "identifiers")
    assert [re.fullmatch(r"[a-zA-Z0-9_-]+", item) is not None for item in device["identifiers"]] == [True]
    assert set(origin) == {"name", "sw_version", "support_url"}
    assert body["availability_mode"] == "all"
    assert body["qos"] == 1
    assert 1 <= len(body["availability"]) <= 2
    for item in body["availability"]:
        assert set(item) == {"topic", "payload_available", "payload_not_available"}
        assert (item["payload_available"], item["payload_not_available"]) == ("online", "offline")


def check(messages: Iterable[Message], prefix: str = "homeassistant") -> dict[str, dict[str, Any]]:
    """Every entity that is announced, by its unique id, each with its device. Both forms of discovery."""
    found: dict[str, dict[str, Any]] = {}
    for message in messages:
        assert (message.qos, message.rank) == (1, Rank.DISCOVERY)
        match = re.fullmatch(rf"{re.escape(prefix)}/([a-z_]+)/([a-zA-Z0-9_-]+)/config", message.topic)
        assert match, message.topic
        body = json.loads(message.payload)
        check_shared(body)
        if match[1] == "device":
            assert set(body) == ROOT
            assert body["device"]["identifiers"] == [match[2]]
            entities = dict(body["components"])
            assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in entities)
        else:
            own = {key: value for key, value in body.items() if key not in ROOT}
            entities = {"one": {**own, "platform": match[1]}}
            assert match[2] == own["unique_id"]
        for entity in entities.values():
            platform = entity.pop("platform")
            assert platform in ENTITY
            if not entity and match[1] == "device":
                continue  # what is taken back
            check_entity(platform, entity)
            assert entity["unique_id"] not in found
            found[entity["unique_id"]] = {**entity, "platform": platform, "device": body["device"]}
    ids = [entity["default_entity_id"] for entity in found.values()]
    assert len(set(ids)) == len(ids)
    return found
