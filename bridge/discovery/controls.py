"""The controls of Home Assistant: entities that send commands, and show what is in force (docs/control.md)."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bridge.control import GRID_GROUP, SPELLINGS, CommandState, Control, control_of
from bridge.discovery.devices import STORAGE_CONTROL_KIND, AnnouncedGateway, Ranges, device_key
from bridge.endpoints import CONTROLS
from bridge.endpoints.storage import STORAGE_SETTINGS
from bridge.model import Platform, Reading
from bridge.records import icon
from bridge.rows import Row
from bridge.topics import Names

CONTROL_SUFFIX = "_control"
"""Ends the ids of controls and of the messages that announce them."""
EXPIRY_S = 30
"""Seconds after which the broker drops a command that has not reached the bridge."""
MAX_RANGES = 256
"""Values whose range is kept at most: a gateway may make up contacts."""
TIME_PATTERN = r"^(([01]\d|2[0-4]):[0-5]\d|None)$"
"""Home Assistant also checks what it shows by this pattern: the topic may have `None`, or `24:00`."""
OFF_AND_ON = ("open", "closed")
"""The words of a value that is shown as a switch."""
LABELS = {
    "none": "No action",
    "soc": "By charge",
    "mon": "Monday",
    "tue": "Tuesday",
    "wed": "Wednesday",
    "thu": "Thursday",
    "fri": "Friday",
    "sat": "Saturday",
    "sun": "Sunday",
}
"""Words as people read them, where that is not the word with a capital. A state `none` would mean unknown."""
CONTROL_ICONS = {
    "charge_from_grid": "mdi:battery-charging",
    "charge_from_generator": "mdi:battery-charging",
    "command": "mdi:engine",
    "exercise_day": "mdi:calendar",
    "exercise_minutes": "mdi:timer-outline",
    "exercise_weeks": "mdi:calendar",
    "generator_action": "mdi:electric-switch",
    "grid_action": "mdi:electric-switch",
    "grid_connected": "mdi:transmission-tower",
    "microgrid_action": "mdi:electric-switch",
    "sleep": "mdi:sleep",
    "state": "mdi:electric-switch",
}
"""Icons by the name of a value. Times of day have that of a clock, the rest that of their sensor."""
CLOCK_ICON = "mdi:clock-outline"
PLATFORMS = {"number": Platform.NUMBER, "flag": Platform.SWITCH, "word": Platform.SELECT, "time": Platform.TEXT}


@dataclass(frozen=True, slots=True)
class ControlRow:
    """A value that can be set: its own row, that of what is in force, and how it is set."""

    target: Row
    proof: Row
    control: Control

    @property
    def device(self) -> str:
        """The device of Home Assistant that has the control. Settings of the storage have one of their own."""
        return STORAGE_CONTROL_KIND if self.target.device == STORAGE_SETTINGS else device_key(self.target)

    @property
    def key(self) -> str:
        return f"{self.target.measurement.name}{CONTROL_SUFFIX}"

    @property
    def is_switch(self) -> bool:
        return self.control.takes == "flag" or self.control.options == OFF_AND_ON

    @property
    def platform(self) -> Platform:
        return Platform.SWITCH if self.is_switch else PLATFORMS[self.control.takes]

    @property
    def icon(self) -> str:
        usual = CLOCK_ICON if self.control.takes == "time" else icon(self.target.measurement)
        return CONTROL_ICONS.get(self.target.measurement.name, usual)


def controlled(rows: Iterable[Row], allowed: frozenset[str]) -> Iterator[ControlRow]:
    """The values that may be set: the answer that is written back has them, and what is in force can be read."""
    if not allowed:
        return
    by_topic = {f"{row.device}/{row.measurement.name}": row for row in rows if row.phase is None}
    for topic, row in by_topic.items():
        control = control_of(CONTROLS, topic)
        if control is None or control.group not in allowed:
            continue
        proof = by_topic.get(control.proof_of(topic) or "")
        if proof is not None and row.source == control.source:
            yield ControlRow(row, proof, control)


def control_entity(names: Names, gateway: AnnouncedGateway, row: ControlRow) -> dict[str, Any]:
    """The component of a control.

    Its state is what is in force: a command changes it only once the gateway obeys. What is not usual has the
    category `config`, which keeps it off area cards and voice assistants. Who wants to leave the grid enables that
    control first.
    """
    target, control, serial = row.target, row.control, gateway.facts.serial
    is_main = row.is_switch and control.takes == "word"
    entity: dict[str, Any] = {
        "platform": row.platform.value,
        "name": None if is_main else target.measurement.label,
        "unique_id": f"{gateway.id_of(target.device)}_{row.key}",
        "state_topic": gateway.value_topic(names, row.proof),
        "command_topic": names.command(serial, target.device, target.measurement.name),
        "optimistic": False,
        "retain": False,
        "message_expiry_interval": EXPIRY_S,
        "icon": row.icon,
    }
    if not row.proof.measurement.enabled:
        entity["entity_category"] = "config"
    if control.group == GRID_GROUP or not gateway.facts.uses(target.device):
        entity["enabled_by_default"] = False
    return entity | _taken(row, gateway.ranges)


def _taken(row: ControlRow, ranges: Ranges) -> dict[str, Any]:
    """What the control takes, and how it is shown."""
    match row.platform:
        case Platform.NUMBER:
            topic = f"{row.proof.device}/{row.proof.measurement.name}"
            low, high = ranges.get(topic, (row.control.lowest, row.control.highest))
            unit = row.target.measurement.quantity.unit
            numbers = {"min": low, "max": high, "step": row.control.step}
            plain = {key: int(value) if value == int(value) else value for key, value in numbers.items()}
            return plain | ({"unit_of_measurement": unit} if unit else {})
        case Platform.SELECT:
            return _choices(row.control)
        case Platform.TEXT:
            return {"max": 5, "pattern": TIME_PATTERN}
        case _ if row.control.takes == "word":
            off, on = OFF_AND_ON
            return {"payload_on": on, "payload_off": off, "state_on": on, "state_off": off}
    return {}


def _choices(control: Control) -> dict[str, Any]:
    """The options of a select with the templates that turn words into them and back.

    Another word is shown as unknown. Of two spellings of a word the first one is sent.
    """
    shown = {word: _label(SPELLINGS.get(word, word)) for word in control.options}
    sent = {label: next(word for word in shown if shown[word] == label) for label in shown.values()}
    return {
        "options": list(sent),
        "value_template": f"{{{{ {json.dumps(shown)}.get(value, 'None') }}}}",
        "command_template": f"{{{{ {json.dumps(sent)}.get(value, value) }}}}",
    }


def _label(word: str) -> str:
    return LABELS.get(word, word.capitalize())


def command_entities(names: Names, gateway: AnnouncedGateway) -> Iterator[tuple[str, dict[str, Any]]]:
    """What becomes of commands: the newest answer as a sensor, and each answer as an event."""
    serial, own_id = gateway.facts.serial, gateway.id_of("gateway")
    newest = names.device(serial, "command")
    shared = {"icon": "mdi:message-processing-outline", "entity_category": "diagnostic"}
    yield (
        "last_command",
        {
            "platform": Platform.SENSOR.value,
            "name": "Last command",
            "unique_id": f"{own_id}_last_command",
            "state_topic": f"{newest}/text",
            "json_attributes_topic": newest,
            **shared,
        },
    )
    yield (
        "commands",
        {
            "platform": Platform.EVENT.value,
            "name": "Command",
            "unique_id": f"{own_id}_commands",
            "state_topic": names.device(serial, "response"),
            "event_types": [state.value for state in CommandState],
            **shared,
        },
    )


class ObservedRanges:
    """The ranges of numbers that may be set, widened to what was read: Home Assistant refuses a state outside.

    `version` grows with each change. Ranges that are as the table has them are left out.
    """

    def __init__(self, allowed: frozenset[str], known: Ranges | None = None) -> None:
        self._controls = {
            proof: control
            for topic, control in CONTROLS.items()
            if control.takes == "number" and control.group in allowed and (proof := control.proof_of(topic))
        }
        self._kinds = tuple({f"{topic.partition('/')[0]}/" for topic in self._controls})
        self.ranges: Ranges = known or {}
        self.version = 0

    def take(self, readings: Iterable[Reading]) -> None:
        """Widen the ranges by what an answer tells."""
        for reading in readings if self._kinds else ():
            value = reading.value
            if not reading.device.startswith(self._kinds) or isinstance(value, bool):
                continue
            topic = f"{reading.device}/{reading.name}"
            if isinstance(value, int | float) and (control := control_of(self._controls, topic)):
                low, high = self.ranges.get(topic, (control.lowest, control.highest))
                is_new = topic not in self.ranges
                if not low <= value <= high and not (is_new and len(self.ranges) >= MAX_RANGES):
                    self.ranges = {**self.ranges, topic: (min(low, value), max(high, value))}
                    self.version += 1
