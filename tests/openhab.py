"""Checks as strictly as openHAB: Home Assistant's discovery, and things, items and sitemaps as text.

openHAB itself cannot run in the tests. The checks are written from its source code (openhab-addons:
mqtt.homeassistant, mqtt.generic; openhab-core: Units, DateTimeType), not from what the bridge sends. Each check
returns its complaints.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

# Discovery

DISCOVERY_PREFIX = "homeassistant/"
TOPIC = re.compile(r"homeassistant/(\w+)/(?:[a-zA-Z0-9_-]+/)?([a-zA-Z0-9_-]+)/config")
"""openHAB has no setting for another prefix."""
PLATFORMS = {
    *("alarm_control_panel", "binary_sensor", "button", "camera", "climate", "cover", "device_tracker"),
    *("device_automation", "event", "fan", "humidifier", "light", "lock", "number", "scene", "select", "sensor"),
    *("switch", "tag", "text", "update", "vacuum", "valve", "water_heater"),
}
COMMANDING, MIN_OPTIONS = {"button", "number", "select", "switch", "text"}, 2
"""Platforms whose channels send commands, and how many options a select needs."""
ROOT = {"device", "origin", "components", "availability", "availability_mode", "qos", "state_topic", "encoding"}
DEVICE = {
    *("identifiers", "connections", "manufacturer", "model", "model_id", "name", "hw_version", "serial_number"),
    *("sw_version", "via_device", "suggested_area", "configuration_url"),
}
UNKNOWN_CLASSES = {"uptime"}
TEXTUAL_CLASSES = {None, "timestamp", "date", "enum"}


def discovery(topic: str, payload: str, version: tuple[int, int] = (5, 2)) -> list[str]:
    """Return why this version of openHAB refuses or misreads a message. A bad component costs the whole device."""
    match = TOPIC.fullmatch(topic)
    if not match:
        return [f"no topic of discovery: {topic}"]
    body: dict[str, Any] = json.loads(payload)
    return [f"{topic}: {text}" for text in _refusals(match[1], match[2], body, version)]


def _refusals(platform: str, name: str, body: Mapping[str, Any], version: tuple[int, int]) -> Iterator[str]:
    if not body.get("device", {}).get("identifiers"):
        yield "without identifiers every component is a thing of its own"
    if platform != "device":
        yield from _component(name, platform, body)
        return
    if version < (5, 2):
        yield "device discovery is not understood before 5.2"
    yield from (f"unknown key {key} at the root" for key in body.keys() - ROOT)
    yield from (f"unknown key {key} in device" for key in body.get("device", {}).keys() - DEVICE)
    if not body.get("origin", {}).get("name"):
        yield "origin has no name"
    yield from _components(body.get("components") or {})


def _components(components: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not components:
        yield "no components"
    channels = [key.replace("-", "_") for key in components]
    yield from (f"{channel}: twice" for channel in {c for c in channels if channels.count(c) > 1})
    for key, component in components.items():
        if len(component) > 1:  # an empty payload removes it
            yield from _component(key, str(component.get("platform")), component)
            if "availability" in component or "availability_topic" in component:
                yield f"{key}: its availability would become that of the whole thing"


def _component(key: str, platform: str, component: Mapping[str, Any]) -> Iterator[str]:
    if platform not in PLATFORMS:
        yield f"{key}: unknown platform {platform}"
    if not component.get("unique_id"):
        yield f"{key}: no unique_id"
    if not re.fullmatch(r"[A-Za-z0-9_]+", key.replace("-", "_")):
        yield f"{key}: no id of a channel"
    if platform == "sensor":
        yield from _sensor(key, component)
    if platform in COMMANDING and not re.fullmatch(r"[^+#\s]+", str(component.get("command_topic"))):
        yield f"{key}: nothing to send commands to"
    if platform == "select" and len(set(component.get("options") or ())) < MIN_OPTIONS:
        yield f"{key}: nothing to select from"
    is_rare = platform in {"update", "select"}
    if "value_template" in component and component.get("unit_of_measurement") != "kWh" and not is_rare:
        yield f"{key}: a template costs a run of Python for each message"


def _sensor(key: str, component: Mapping[str, Any]) -> Iterator[str]:
    kind, unit = component.get("device_class"), component.get("unit_of_measurement")
    if kind in UNKNOWN_CLASSES:
        yield f"{key}: device class {kind} is unknown"
    if unit is not None and unit not in DIMENSIONS:
        yield f"{key}: {unit} is no unit"
    if kind not in TEXTUAL_CLASSES and not unit and not component.get("state_class"):
        yield f"{key}: would become a text"


def one_thing_each(messages: Mapping[str, str]) -> list[str]:
    """Return devices in component form with differing availability: openHAB uses the last one for all."""
    found: dict[str, set[str]] = {}
    for payload in messages.values():
        body = json.loads(payload)
        agreed = json.dumps([body.get("availability"), body.get("availability_mode")])
        found.setdefault(str(body["device"]["identifiers"]), set()).add(agreed)
    return [f"{device}: several availabilities" for device, agreed in found.items() if len(agreed) > 1]


# Things

DIMENSIONS = {
    **dict.fromkeys(("W", "kW", "VA", "kVA", "var", "kvar"), "Power"),
    **dict.fromkeys(("Wh", "kWh", "VAh", "varh", "kvarh"), "Energy"),
    "V": "ElectricPotential",
    "A": "ElectricCurrent",
    "Hz": "Frequency",
    "%": "Dimensionless",
    "s": "Time",
    "°C": "Temperature",
}
"""The units that openHAB knows, of those that may occur here."""
PARAMETERS = {
    "number": {"stateTopic", "commandTopic", "unit", "transformationPattern"},
    "switch": {"stateTopic", "commandTopic", "on", "off", "transformationPattern"},
    "datetime": {"stateTopic", "transformationPattern"},
    "string": {"stateTopic", "commandTopic", "nullValue", "allowedStates"},
}
"""The parameters of channels. Those without `commandTopic` are read only."""
ITEM_OF = {"switch": "Switch", "datetime": "DateTime", "string": "String"}
STRING = r'"(?:[^"\\]|\\.)*"'
SETTING = rf"\w+=(?:{STRING}|true|false|[\d.]+)"
SETTINGS = rf"\[ {SETTING}(?:, {SETTING})* \]"
BROKER = re.compile(rf"Bridge (mqtt:broker:[\w-]+)(?: {STRING})? {SETTINGS}")
THING = re.compile(rf"Thing (mqtt:topic(?::[\w-]+)+) ({STRING}) \((mqtt:broker:[\w-]+)\)(?: ({SETTINGS}))? \{{")
CHANNEL = re.compile(rf"Type (\w+) : ([\w-]+) +({STRING}) +({SETTINGS})")


class ThingChannel(NamedTuple):
    uid: str
    kind: str
    parameters: Mapping[str, str]


@dataclass
class Things:
    """The content of a things file. `topics` are the availability topics."""

    channels: dict[str, ThingChannel]
    topics: set[str]
    complaints: list[str]


def _settings(text: str | None) -> dict[str, str]:
    found = re.findall(rf"(\w+)=({STRING}|true|false|[\d.]+)", text or "")
    return {name: value.strip('"') for name, value in found}


def things(text: str) -> Things:
    """Parse a file. Every line must be valid."""
    found, thing = Things({}, set(), []), ""
    for line in _lines(text):
        if not thing and (match := THING.fullmatch(line)):
            thing, options = match[1], _settings(match[4])
            found.complaints += [f"{thing}: {text}" for text in _available(options)]
            found.topics |= {options["availabilityTopic"]} if "availabilityTopic" in options else set()
        elif thing and (match := CHANNEL.fullmatch(line)):
            channel = ThingChannel(f"{thing}:{match[2]}", match[1], _settings(match[4]))
            found.complaints += [f"{channel.uid}: twice"] if channel.uid in found.channels else []
            found.complaints += [f"{channel.uid}: {text}" for text in _channel(channel)]
            found.channels[channel.uid] = channel
        elif line == "}" and thing:
            thing = ""
        elif not BROKER.fullmatch(line) and not (line == "Channels:" and thing):
            found.complaints.append(f"not understood: {line}")
    return found if not thing else Things(found.channels, found.topics, [*found.complaints, "a brace is open"])


def _lines(text: str) -> Iterator[str]:
    stripped = (line.strip() for line in text.splitlines())
    return (line for line in stripped if line and not line.startswith("//"))


def _available(options: Mapping[str, str]) -> Iterator[str]:
    known = {"availabilityTopic", "payloadAvailable", "payloadNotAvailable"}
    yield from (f"unknown parameter {name}" for name in options.keys() - known)
    if (options.get("payloadAvailable"), options.get("payloadNotAvailable")) != ("online", "offline"):
        yield "by default it looks for ON and OFF"


def _channel(channel: ThingChannel) -> Iterator[str]:
    if channel.kind not in PARAMETERS:
        yield f"unknown kind {channel.kind}"
        return
    yield from (f"unknown parameter {name}" for name in channel.parameters.keys() - PARAMETERS[channel.kind])
    if not re.fullmatch(r"[^+#\s]+", channel.parameters.get("stateTopic", "")):
        yield "no state topic"
    if re.search(r"[+#\s]", channel.parameters.get("commandTopic", "")):
        yield "no command topic"
    if (unit := channel.parameters.get("unit")) is not None and unit not in DIMENSIONS:
        yield f"{unit} is no unit"
    if ("on" in channel.parameters) != ("off" in channel.parameters):
        yield "on without off"


def shows(channel: ThingChannel, payload: str) -> bool:
    """Return whether openHAB can convert a payload to a state. Only texts can treat `None` as no value."""
    match channel.kind:
        case "number":
            return re.fullmatch(r"-?\d+(\.\d+)?", payload) is not None
        case "switch":
            return payload in {channel.parameters.get("on", "ON"), channel.parameters.get("off", "OFF")}
        case "datetime":
            return payload[10:11] == "T" and datetime.fromisoformat(payload).tzinfo is not None
        case _:
            return True


# Items

TYPE = r"Switch|DateTime|String|Number(?::\w+)?"
LABEL = rf"({STRING})"
TAGS = r'\["\w+"(?:, "\w+")*\]'
GROUP = re.compile(rf"Group (\w+) {LABEL}(?: {TAGS})?")
ITEM = re.compile(rf"({TYPE}) +(\w+) +{LABEL} +(?:\((\w+)\) )?(?:({TAGS}) )?\{{ (.+) \}}")
LINK = re.compile(r'channel="([\w:-]+)"(?:, unit="([^"]+)")?(?:, autoupdate="(false)")?')
SEMANTIC = {
    *("Equipment", "Inverter", "Battery", "Measurement", "Status", "Control", "Setpoint", "Switch"),
    *("Power", "Energy", "Voltage", "Current", "Frequency", "Level", "Temperature", "Timestamp"),
}


class Item(NamedTuple):
    kind: str
    label: str
    channel: str
    unit: str | None
    is_truthful: bool
    """Whether its state is that of the topic, also just after a command."""


@dataclass
class Items:
    """The content of an items file by name. `groups` are the items without a value."""

    items: dict[str, Item]
    groups: set[str]
    complaints: list[str]


def items(text: str) -> Items:
    """Parse a file. Every line must be valid."""
    found = Items({}, set(), [])
    for line in _lines(text):
        tags = re.findall(r'"(\w+)"', " ".join(re.findall(TAGS, line)))
        found.complaints += [f"no tag of the semantic model: {tag}" for tag in tags if tag not in SEMANTIC]
        if match := GROUP.fullmatch(line):
            found.complaints += [f"{match[1]}: twice"] if match[1] in found.groups else []
            found.groups.add(match[1])
        elif (match := ITEM.fullmatch(line)) and (link := LINK.fullmatch(match[6])):
            name, item = match[2], Item(match[1], match[3].strip('"'), link[1], link[2], link[3] is not None)
            found.complaints += [f"{name}: twice"] if name in {*found.items, *found.groups} else []
            found.complaints += (
                [f"{name}: no group {match[4]}"] if match[4] and match[4] not in found.groups else []
            )
            found.complaints += [f"{name}: no name of an item"] if name[0].isdigit() else []
            found.items[name] = item
        else:
            found.complaints.append(f"not understood: {line}")
    return found


def linked(found: Items, known: Things) -> list[str]:
    """Return mismatches of items and channels: each channel must have one item of its kind and unit."""
    targets = [item.channel for item in found.items.values()]
    odd = {uid for uid in {*targets, *known.channels} if targets.count(uid) != 1 or uid not in known.channels}
    fits = (
        (name, item, known.channels[item.channel])
        for name, item in found.items.items()
        if item.channel in known.channels
    )
    return [
        *(f"{uid}: not one channel with one item" for uid in sorted(odd)),
        *(f"{name}: {text}" for name, item, channel in fits for text in _fit(item, channel)),
    ]


def _fit(item: Item, channel: ThingChannel) -> Iterator[str]:
    unit = channel.parameters.get("unit")
    number = f"Number:{DIMENSIONS.get(unit)}" if unit else "Number"
    if item.kind != (number if channel.kind == "number" else ITEM_OF.get(channel.kind)):
        yield f"{item.kind} for a channel {channel.kind} {unit or ''}"
    if item.is_truthful != ("commandTopic" in channel.parameters):
        yield "a command would change its state at once, whatever the gateway does"
    if item.unit != unit:
        yield f"without its unit {unit} the values are kept in another one"
    shown = re.search(r"\[%[\d.$]*\w+ ?(.*)\]$", item.label)
    if channel.kind == "number":
        said = shown[1] if shown else None
        if not unit and said != "":
            yield "shows a unit that it has not"
        if unit and said != "%unit%" and DIMENSIONS.get(said or "") != DIMENSIONS.get(unit):
            yield "does not show its unit"


# Sitemaps

TEXT = rf'Text(?: item=(\w+))?(?: label={STRING})?(?: icon="\w+")?(?: \{{)?'
NUMBER = r"-?\d+(?:\.\d+)?"
SETPOINT = rf"Setpoint item=(\w+) minValue={NUMBER} maxValue={NUMBER} step={NUMBER}"
COMMANDS = rf'(?:Switch|Selection) item=(\w+)|{SETPOINT}|Input item=(\w+) inputHint="text"'
PAGE = re.compile(rf"sitemap \w+ label={STRING} \{{|Frame label={STRING} \{{|{TEXT}|{COMMANDS}")


def sitemap(text: str, known: Iterable[str]) -> list[str]:
    """Check a sitemap: every line must be valid, every item must exist, and frames only have frames beside them."""
    complaints: list[str] = []
    levels: list[set[str]] = [set()]
    for line in _lines(text):
        if line == "}":
            inside = levels.pop()
            complaints += ["frames among others"] if len(inside) > 1 else []
            complaints += ["empty"] if not inside else []
        elif match := PAGE.fullmatch(line):
            levels[-1].add("Frame" if line.startswith("Frame") else "other")
            complaints += [f"no item {name}" for name in match.groups() if name and name not in known]
            levels += [set()] if line.endswith("{") else []
        else:
            complaints.append(f"not understood: {line}")
        if not levels:
            return [*complaints, "a brace too many"]
    return complaints if len(levels) == 1 else [*complaints, "a brace is open"]
