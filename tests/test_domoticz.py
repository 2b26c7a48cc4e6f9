"""Domoticz: what becomes of the component form by the rules of its source, hardware/MQTTAutoDiscover.cpp.

Domoticz itself cannot run in the tests. Versions before the middle of 2026 go by a word in the object id, later
ones by the device class.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from cli import Shell, home, shell

from bridge.simulator import HOMES

__all__ = ["shell"]

SKIPPED_PREFIXES, SKIPPED_SUFFIXES = ("min_", "max_"), ("_min", "_max")
SKIPPED_WORDS = ("_sensitivity", "_alarm", "_calibration", "_address", "_ssid", "_signal_sensor")
FACTORS = {"kWh": 1000.0, "Wh": 1.0}
"""Domoticz counts in Wh."""


@dataclass(frozen=True)
class Outcome:
    """What Domoticz makes of a sensor: a device with a value, the level of a battery for all others, or nothing."""

    unique_id: str
    shown: float | str | None = None
    is_level: bool = False


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def outcome(topic: str, entity: Mapping[str, Any], payload: str) -> Outcome:
    """Return what becomes of a sensor with this payload, which no template changes, as it is no JSON object."""
    object_id, unique_id = topic.split("/")[-2], entity["unique_id"]
    if (
        object_id.startswith(SKIPPED_PREFIXES)
        or object_id.endswith(SKIPPED_SUFFIXES)
        or any(word in object_id for word in SKIPPED_WORDS)
    ):
        return Outcome(unique_id)
    if is_number(payload) and ("battery" in object_id or entity.get("device_class") == "battery"):
        return Outcome(unique_id, is_level=True)
    factor = FACTORS.get(entity.get("unit_of_measurement", ""), 1.0)
    return Outcome(unique_id, float(payload) * factor if is_number(payload) else payload)


def outcomes(told: Mapping[str, str]) -> Iterator[tuple[Outcome, str]]:
    """The outcome of each sensor, and the payload of its topic."""
    for topic, text in told.items():
        if topic.startswith("homeassistant/sensor/"):
            entity = json.loads(text)
            payload = told[entity["state_topic"]]
            yield outcome(topic, entity, payload), payload


def once(shell: Shell, name: str) -> dict[str, str]:
    with home(shell, name):
        told = shell.set(homeassistant__discovery="component").run("once", "--all")
    return dict(line.split(" ", 1) for line in told.text.splitlines())


LEFT_OUT = {
    *("generator_1_load_min", "generator_1_efficiency_max", "storage_control_energy_max"),
    *("sleep_soc_min", "sleep_soc_max"),
}
"""Sensors that Domoticz leaves out because of their last word."""


@pytest.mark.parametrize("name", HOMES)
def test_every_number_is_a_sensor_with_the_value_of_its_topic(shell: Shell, name: str) -> None:
    found = list(outcomes(once(shell, name)))
    assert len(found) > 20
    assert [item.unique_id for item, _ in found if item.is_level] == []
    missing = {re.sub(r"iqgateway_\d+_(acb_\d+_)?", "", item.unique_id) for item, _ in found if item.shown is None}
    assert missing <= LEFT_OUT
    shown = [(item.shown, float(text) if is_number(text) else text) for item, text in found]
    assert [pair for pair in shown if pair[0] not in (None, pair[1])] == []


@pytest.mark.parametrize(
    ("object_id", "changes", "expected"),
    [
        ("x_site_batteries_soc", {}, Outcome("x_site_battery_soc", 35.0)),
        ("x_site_battery_soc", {}, Outcome("x_site_battery_soc", is_level=True)),
        ("x_site_batteries_soc", {"device_class": "battery"}, Outcome("x_site_battery_soc", is_level=True)),
        ("x_site_batteries_soc", {"unit_of_measurement": "kWh"}, Outcome("x_site_battery_soc", 35_000.0)),
        ("x_load_min", {}, Outcome("x_site_battery_soc")),
        ("max_power", {}, Outcome("x_site_battery_soc")),
    ],
)
def test_the_rules_notice(object_id: str, changes: Mapping[str, str], expected: Outcome) -> None:
    entity = {"unique_id": "x_site_battery_soc", "unit_of_measurement": "%", **changes}
    assert outcome(f"homeassistant/sensor/{object_id}/config", entity, "35") == expected
