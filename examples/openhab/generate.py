#!/usr/bin/env python3
"""Generates openHAB's things, items and sitemap for your gateway from the discovery messages for Home Assistant.

    iqgateway2mqtt once --discovery | python3 examples/openhab/generate.py /etc/openhab

It reads lines of topic and payload and needs only Python. The files in this folder are generated in this way from
the simulated three-phase home; tests/test_openhab.py checks them.
"""

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

VALUES = ("sensor", "binary_sensor")
"""Platforms whose entities show the value of a topic; events and updates have no item."""
CONTROLS = {"number": "number", "select": "string", "switch": "switch", "text": "string"}
"""Platforms whose entities also send commands, and the kind of their channel."""
CONTROL_SUFFIX = "_control"
"""Ends the ids of the messages that announce what can be set; only bridges that may set something have them."""
POINTS = {"number": "Setpoint", "select": "Control", "switch": "Switch", "text": "Control"}
"""The openHAB semantic point of a control."""
DISCOVERY = re.compile(r"\S*/device/(iqgateway_\w[\w-]*)/config")
DIMENSIONS = {
    "W": "Power",
    "VA": "Power",
    "var": "Power",
    "Wh": "Energy",
    "VAh": "Energy",
    "varh": "Energy",
    "V": "ElectricPotential",
    "A": "ElectricCurrent",
    "Hz": "Frequency",
    "%": "Dimensionless",
    "s": "Time",
    "°C": "Temperature",
}
"""The openHAB dimension of each unit."""
PROPERTIES = {
    "power": "Power",
    "energy": "Energy",
    "voltage": "Voltage",
    "current": "Current",
    "frequency": "Frequency",
    "battery": "Level",
    "temperature": "Temperature",
    "timestamp": "Timestamp",
}
"""The openHAB semantic property of each device class."""
EQUIPMENT = {"inverter": "Inverter", "battery": "Battery"}
ORDER = (
    *("site", "meter", "inverter", "battery", "storage", "controller", "collar", "combiner", "relay", "generator"),
    *("tariff", "device", "gateway", "live", "energy", "report"),
)
"""The order of the kinds of devices. Other kinds come last."""
FRAMES = {"site": "Site", "meter": "Meters", "inverter": "Inverters", "battery": "Batteries", "relay": "Relays"}
BULK = ("live", "energy", "report")
"""Devices with several hundred values that few people need. The option --all includes them."""
PASSING = {"number": "REGEX:s/^None$/NaN/", "switch": "REGEX:(ON|OFF)", "datetime": "REGEX:([0-9].*)"}
"""Transformations of the payload `None`: numbers become UNDEF, others are ignored. Texts need none."""
BANNER = "// Made by examples/openhab/generate.py"


@dataclass(frozen=True)
class Channel:
    """A value: a channel of a thing and the item that is linked to it."""

    key: str
    label: str
    kind: str
    topic: str
    item: str
    phase: str = ""
    unit: str | None = None
    decimals: int = 0
    device_class: str | None = None
    on: str | None = None
    off: str | None = None
    first: bool = True
    """True if Home Assistant enables the entity by default."""
    control: str = ""
    """The platform of a value that can be set."""
    command: str = ""
    """The topic for commands."""
    words: tuple[str, ...] = ()
    """The words that can be set, as the topic has them."""
    limits: tuple[str, ...] = ()
    """The lowest and the highest number that can be set, and the step."""

    def parameters(self, *, regex: bool) -> Iterator[tuple[str, str]]:
        yield "stateTopic", self.topic
        if self.command:
            yield "commandTopic", self.command
        if self.words:
            yield "allowedStates", ",".join(self.words)
        if self.unit:
            yield "unit", self.unit
        if self.on and self.off:
            yield "on", self.on
            yield "off", self.off
        elif regex and self.kind in PASSING:
            yield "transformationPattern", PASSING[self.kind]
        if self.kind == "string":
            yield "nullValue", "None"

    @property
    def item_type(self) -> str:
        if self.kind == "number":
            return f"Number:{DIMENSIONS[self.unit]}" if self.unit else "Number"
        return {"switch": "Switch", "datetime": "DateTime", "string": "String"}[self.kind]

    @property
    def pattern(self) -> str:
        """The format in which openHAB shows the value. openHAB converts to the unit in the format."""
        if self.unit == "Wh":
            return "[%.1f kWh]"
        if self.kind == "number":
            return f"[%.{self.decimals}f{' %unit%' if self.unit else ''}]"
        return {"switch": "[%s]", "datetime": "[%1$tF %1$tT]", "string": "[%s]"}[self.kind]

    @property
    def tags(self) -> Sequence[str]:
        point = "Measurement" if self.kind == "number" else "Status"
        found = PROPERTIES.get(self.device_class or "")
        if self.control:
            return [POINTS[self.control]]
        return [point, found] if found else [point]

    @property
    def entry(self) -> str:
        """Its entry in the sitemap."""
        match self.control:
            case "switch":
                return f"Switch item={self.item}"
            case "select":
                return f"Selection item={self.item}"
            case "text":
                return f'Input item={self.item} inputHint="text"'
            case "number":
                low, high, step = self.limits
                return f"Setpoint item={self.item} minValue={low} maxValue={high} step={step}"
        return f"Text item={self.item}"


@dataclass(frozen=True)
class Thing:
    """A device as Home Assistant shows it. It may contain several devices of the topic tree.

    What can be set at a device is a thing of its own, since it is available while other data is fresh.
    """

    uid: str
    kind: str
    label: str
    availability: str
    channels: tuple[Channel, ...]
    suffix: str = ""
    """The suffix that distinguishes its group from another gateway's."""

    @property
    def group(self) -> str:
        return _item(self.label if self.kind != "site" else f"{self.label} site") + self.suffix

    @property
    def names(self) -> set[str]:
        """The names of its items and of their group."""
        return {self.group, *(channel.item for channel in self.channels)}

    def renamed(self) -> "Thing":
        """Return the thing with the gateway's serial number at the end of all names."""
        suffix = f"_{self.uid.split('_')[1]}"
        channels = tuple(replace(channel, item=f"{channel.item}{suffix}") for channel in self.channels)
        return replace(self, channels=channels, suffix=suffix)


def read(lines: Iterable[str], *, bulk: bool = False) -> list[Thing]:
    """Return the announced devices, the site first."""
    bodies = {}
    for line in lines:
        topic, _, payload = line.strip().partition(" ")
        if (found := DISCOVERY.fullmatch(topic)) and payload:
            bodies[found[1]] = json.loads(payload)
    things = [_thing(identity, body, bodies, bulk=bulk) for identity, body in bodies.items()]
    chosen = _told_apart(thing for thing in things if thing.channels and (bulk or thing.kind not in BULK))
    return sorted(chosen, key=lambda thing: (*ORDER, thing.kind).index(thing.kind))


def _told_apart(things: Iterable[Thing]) -> Iterator[Thing]:
    """Rename things whose names are taken. Names keep only Latin letters and digits, so they can collide."""
    taken: set[str] = set()
    for thing in things:
        own = thing.renamed() if thing.names & taken else thing
        taken |= own.names
        yield own


def _thing(identity: str, body: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], *, bulk: bool) -> Thing:
    kind = identity.split("_")[2]
    name, is_control = body["device"]["name"], identity.endswith(CONTROL_SUFFIX)
    if is_control and not name.endswith("control"):
        name = f"{name} control"
    channels = [
        _channel(key, name, entity)
        for key, entity in body["components"].items()
        if len(entity) > 1
        and (entity["platform"] in VALUES or (entity["platform"] in CONTROLS and (bulk or _is_first(entity))))
    ]
    # Discovery has values in the order in which the gateway gave them first, which differs from run to run.
    channels.sort(key=lambda channel: (channel.phase, not channel.first, channel.key))
    if kind == "gateway" and not is_control:
        serial = identity.split("_")[1]
        mine = [other for name, other in others.items() if name.startswith(f"iqgateway_{serial}_")]
        topics = {topic for other in mine for topic in _availability(other)}
        if identity != next(name for name in others if name.endswith("_gateway")):
            topics -= set(_availability(body))  # only the first gateway shows the bridge's state
        channels += _online(topics)
    return Thing(identity, kind, _plain(name), _availability(body)[-1], tuple(channels))


def _plain(label: str) -> str:
    """Replace the characters that end a text or begin a pattern in openHAB's files."""
    return label.translate(str.maketrans('"[]\\', "'()/"))


def _availability(body: Mapping[str, Any]) -> list[str]:
    """Return the availability topics. A generic thing can use one: the last, that of the device's data."""
    return [item["topic"] for item in body["availability"]]


def _channel(key: str, device: str, entity: Mapping[str, Any]) -> Channel:
    """Discovery has templates only where it shows the Wh of a topic in kWh, and for the words of a control."""
    phase = re.search(r"/(l[123])/", entity["state_topic"])
    name = entity["name"] or "Switch"  # the main entity of a device has no name of its own
    is_energy = entity["platform"] == "sensor" and "value_template" in entity
    control = entity["platform"] if entity["platform"] in CONTROLS else ""
    words = re.search(r"(?<={{ ){.*}(?=\.get)", entity.get("value_template", "")) if control else None
    return Channel(
        key,
        name,
        _kind(entity),
        entity["state_topic"],
        _item(_unaccented(f"{device} {name}")),
        phase[1].upper() if phase else "",
        "Wh" if is_energy else entity.get("unit_of_measurement"),
        entity.get("suggested_display_precision", 0),
        entity.get("device_class"),
        entity.get("payload_on"),
        entity.get("payload_off"),
        _is_first(entity),
        control,
        entity.get("command_topic", ""),
        tuple(json.loads(words[0])) if words else (),
        tuple(str(entity.get(key)) for key in ("min", "max", "step")),
    )


def _is_first(entity: Mapping[str, Any]) -> bool:
    return bool(entity.get("enabled_by_default", True))


def _kind(entity: Mapping[str, Any]) -> str:
    if entity["platform"] in CONTROLS:
        return CONTROLS[entity["platform"]]
    if entity["platform"] == "binary_sensor":
        return "switch"
    if entity.get("device_class") == "timestamp":
        return "datetime"
    return "number" if "suggested_display_precision" in entity else "string"


def _online(topics: Iterable[str]) -> Iterator[Channel]:
    """Yield channels for the state of the bridge and of each source. The gateway's state is a value already."""
    for topic in sorted(set(topics)):
        *above, last = topic.split("/")
        name = last if "availability" in above else "bridge"
        if "availability" in above or "bridge" in above:
            serial = "" if name == "bridge" else f"_{above[-2]}"
            label = "Bridge runs" if name == "bridge" else f"Fresh: {name.replace('_', ' ')}"
            yield Channel(
                f"online_{name}",
                label,
                "switch",
                topic,
                _item(f"online_{name}{serial}"),
                on="online",
                off="offline",
            )


def _unaccented(name: str) -> str:
    """Return the name in small letters, and without accents where there is such a letter."""
    return unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()


def _item(name: str) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", " ", name).split()
    own = words[1:] if words[0].lower() == "enphase" else words
    return "_".join(["Enphase", *(word[:1].upper() + word[1:] for word in own)])


# The three files


def things_file(things: Sequence[Thing], broker: str, *, regex: bool) -> str:
    return "\n".join([BANNER, *(_thing_text(thing, broker, regex=regex) for thing in things)])


def _thing_text(thing: Thing, broker: str, *, regex: bool) -> str:
    available = (
        f'availabilityTopic="{thing.availability}", payloadAvailable="online", payloadNotAvailable="offline"'
    )
    lines = [f'\nThing mqtt:topic:{thing.uid} "{thing.label}" ({broker}) [ {available} ] {{', "    Channels:"]
    for channel in thing.channels:
        parameters = ", ".join(f'{name}="{value}"' for name, value in channel.parameters(regex=regex))
        lines.append(f'        Type {channel.kind} : {channel.key} "{channel.label}" [ {parameters} ]')
    return "\n".join([*lines, "}"])


def items_file(things: Sequence[Thing]) -> str:
    return "\n".join([BANNER, *(_items_text(thing) for thing in things)])


def _items_text(thing: Thing) -> str:
    lines = [f'\nGroup {thing.group} "{thing.label}" ["{EQUIPMENT.get(thing.kind, "Equipment")}"]']
    for channel in thing.channels:
        tags = ", ".join(f'"{tag}"' for tag in channel.tags)
        metadata = [f'channel="mqtt:topic:{thing.uid}:{channel.key}"']
        metadata += [f'unit="{channel.unit}"'] if channel.unit else []
        # otherwise openHAB shows what was asked for, whatever the gateway does
        metadata += ['autoupdate="false"'] if channel.control else []
        head = f'{channel.item_type} {channel.item} "{channel.label} {channel.pattern}"'
        lines.append(f"{head} ({thing.group}) [{tags}] {{ {', '.join(metadata)} }}")
    return "\n".join(lines)


def sitemap_file(things: Sequence[Thing]) -> str:
    lines = [BANNER, 'sitemap enphase label="Enphase" {']
    for kind in dict.fromkeys(thing.kind for thing in things):
        lines.append(f'    Frame label="{FRAMES.get(kind, kind.capitalize())}" {{')
        for thing in (thing for thing in things if thing.kind == kind):
            lines += _page(thing)
        lines.append("    }")
    return "\n".join([*lines, "}"])


def _page(thing: Thing) -> Iterator[str]:
    """Yield a thing's entries: the site's main values directly, others on a page with a frame per phase."""
    power = next((channel for channel in thing.channels if channel.first and channel.device_class == "power"), None)
    head = f'label="{thing.label}" icon="energy"'
    if thing.kind == "site":
        yield from (f"        {channel.entry}" for channel in thing.channels if channel.first)
        head = 'label="More" icon="energy"'
    elif power:
        head = f'item={power.item} label="{thing.label} {power.pattern}" icon="energy"'
    yield f"        Text {head} {{"
    for phase in dict.fromkeys(channel.phase for channel in thing.channels):
        yield f'            Frame label="{phase or thing.label}" {{'
        yield from (f"                {channel.entry}" for channel in thing.channels if channel.phase == phase)
        yield "            }"
    yield "        }"


def write(folder: Path, things: Sequence[Thing], broker: str, *, regex: bool) -> None:
    files = {
        "things/enphase.things": things_file(things, broker, regex=regex),
        "items/enphase.items": items_file(things),
        "sitemaps/enphase.sitemap": sitemap_file(things),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="openHAB's configuration folder, such as /etc/openhab")
    parser.add_argument(
        "--broker", default="mqtt:broker:home", help="UID of the broker's thing (default %(default)s)"
    )
    parser.add_argument("--all", action="store_true", help="include live data, energy counters and meter reports")
    parser.add_argument(
        "--regex", action="store_true", help="turn None into UNDEF; this needs openHAB's add-on transform-regex"
    )
    options = parser.parse_args()
    things = read(sys.stdin, bulk=options.all)
    if not things:
        command = "`iqgateway2mqtt once --discovery`"
        parser.error(f"no discovery messages: pipe in the output of {command}, with discovery = device")
    write(options.folder, things, options.broker, regex=options.regex)


if __name__ == "__main__":
    main()
