#!/usr/bin/env python3
"""Makes `dashboard.yaml`: run it after a change here. What is written once here stands in the file for each phase.

The file fits each home: what a home does not have is `unavailable` to Home Assistant, and not shown then.
"""

from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parent / "dashboard.yaml"
HEAD = """\
# A dashboard for what iqgateway2mqtt announces, with cards that Home Assistant has built in. Made by generate.py.
#
# In Home Assistant: Settings, Dashboards, Add dashboard, New dashboard from scratch. Open it, then: the pencil, the
# three dots, Raw configuration editor. Put this file in place of what stands there.
#
# It fits each home: what yours does not have, such as batteries or a third phase, does not show.

"""
Card = dict[str, Any]
SOLAR, GRID, HOME, BATTERY, QUIET = "#f5a623", "#488fc2", "#a864a8", "#3fa796", "#888888"
PLACES = {"solar": (50, 18), "grid": (15, 50), "home": (85, 50), "battery": (50, 82)}
"""Middle of each circle in percent of the picture, from the left and from the top."""
CHARTED = ("grid", "solar", "home", "battery")
"""In this order, the charts' own colours suit them: blue, yellow, red, green."""
ICONS = {
    "solar": "mdi:solar-power-variant",
    "grid": "mdi:transmission-tower",
    "home": "mdi:home",
    "battery": "mdi:home-battery",
}
COLOURS = {"solar": SOLAR, "grid": GRID, "home": HOME, "battery": BATTERY}
ARROWS = [
    ("solar", 1, "down", (50, 40), SOLAR),
    ("grid", 1, "right", (36, 50), GRID),
    ("grid", -1, "left", (36, 50), SOLAR),
    ("home", 1, "right", (64, 50), HOME),
    ("battery", 1, "up", (50, 60), BATTERY),
    ("battery", -1, "down", (50, 60), SOLAR),
]
"""Flow, sign of its power, where the arrow points, its place and colour."""
ARROW_FROM = 5
"""W below which nothing flows."""
METERS = {
    "Grid": ("net_consumption_meter", "mdi:transmission-tower", "blue"),
    "Solar": ("production_meter", "mdi:solar-power-variant", "amber"),
    "Consumption": ("total_consumption_meter", "mdi:home-lightning-bolt", "purple"),
    "Battery": ("storage_meter", "mdi:home-battery", "teal"),
}
WIDTH, HEIGHT, RADIUS = 400, 340, 46
PANELS = """\
{%- set units = states.sensor | selectattr('entity_id', 'match', 'sensor.inverter_[^_]+_power$')
  | sort(attribute='entity_id') | list -%}
{%- set most = [units | map(attribute='state') | map('float', 0) | max | default(1, true), 1] | max -%}
{%- set colours = ['#8a8f98', '#a08a6a', '#b98d4f', '#d39438', '#f5a623', '#ffb937'] -%}
<table width="100%">
{%- for row in units | batch(7) %}
<tr>
{%- for unit in row %}
{%- set watts = unit.state | float(0) %}
<td align="center"><font color="{{ colours[(watts / most * 5) | round | int] }}">
<ha-icon icon="mdi:solar-panel"></ha-icon></font><br>
<b>{{ watts | round | int if is_number(unit.state) else '?' }} W</b><br>
<font color="#8a8f98">{{ unit.entity_id.split('_')[1][-4:] }}</font></td>
{%- endfor %}
</tr>
{%- endfor %}
</table>

{{ units | count }} inverters with the ends of their serial numbers; each value can be 15 minutes old."""
BATTERIES = """\
{%- for unit in states.sensor | selectattr('entity_id', 'match', 'sensor.battery_[^_]+_status$')
  | sort(attribute='entity_id') %}
<ha-icon icon="mdi:home-battery"></ha-icon> **{{ unit.entity_id.split('_')[1] }}** {{ unit.state }}
{% endfor %}"""


def dashboard() -> Card:
    views = [now(), phases(), inverters()]
    return {"title": "Enphase", "views": views}


def view(title: str, path: str, icon: str, columns: int, sections: list[Card]) -> Card:
    about = {"title": title, "path": path, "icon": icon}
    return {**about, "type": "sections", "max_columns": columns, "sections": sections}


def now() -> Card:
    flow = [heading("Power flow", "mdi:swap-horizontal"), power_flow()]
    today = [
        heading("Today", "mdi:white-balance-sunny"),
        tile("sensor.enphase_solar_energy_today", "Solar", "amber", icon="mdi:solar-power", everywhere=True),
        tile("sensor.enphase_home_energy_today", "Home", "purple", icon="mdi:home-lightning-bolt"),
        tile("sensor.enphase_battery_charge", "Battery", "teal"),
        tile("binary_sensor.enphase_grid_connected", "Grid", "blue", icon="mdi:transmission-tower"),
        history([f"sensor.enphase_{flow}_power" for flow in CHARTED], [flow.capitalize() for flow in CHARTED]),
    ]
    gateway = [
        heading("Gateway", "mdi:router-network"),
        tile("binary_sensor.iq_gateway_connection", "Connection", "green", everywhere=True),
        tile(
            "sensor.iq_gateway_inverters_reporting",
            "Inverters",
            "amber",
            icon="mdi:solar-panel",
            everywhere=True,
        ),
        tile("sensor.iq_gateway_token_expires", "Token expires", "grey", icon="mdi:key-variant"),
        tile("sensor.iq_gateway_firmware", "Firmware", "grey", icon="mdi:chip", everywhere=True),
        tile(
            "sensor.iq_gateway_problem",
            "Problem",
            "grey",
            icon="mdi:alert-circle-outline",
            columns="full",
            everywhere=True,
        ),
    ]
    return view("Now", "now", "mdi:solar-power-variant", 3, [section(flow), section(today), section(gateway)])


def power_flow() -> Card:
    """Four circles, whose lines meet in the middle, with an arrow on each line where something flows."""
    elements: list[Card] = []
    for flow, (left, top) in PLACES.items():
        entity, colour = f"sensor.enphase_{flow}_power", COLOURS[flow]
        label = {"type": "state-label", "entity": entity, "style": at(left, top + 4, **{"font-weight": "bold"})}
        icon = {
            "type": "icon",
            "icon": ICONS[flow],
            "title": flow.capitalize(),
            "style": at(left, top - 4, color=colour),
        }
        elements.append({"type": "conditional", "conditions": there(entity), "elements": [icon, label]})
    for flow, sign, way, (left, top), colour in ARROWS:
        beyond = {"above": ARROW_FROM} if sign > 0 else {"below": -ARROW_FROM}
        flows = [{"condition": "numeric_state", "entity": f"sensor.enphase_{flow}_power", **beyond}]
        arrow = {"type": "icon", "icon": f"mdi:chevron-triple-{way}", "style": at(left, top, color=colour)}
        elements.append({"type": "conditional", "conditions": flows, "elements": [arrow]})
    return {"type": "picture-elements", "image": picture(), "elements": elements}


def at(left: float, top: float, **style: str) -> Card:
    return {"left": f"{left}%", "top": f"{top}%", **style}


def picture() -> str:
    """An SVG within the file itself, so that nothing need be copied to the server."""
    circles = "".join(
        f"<circle cx='{WIDTH * left // 100}' cy='{HEIGHT * top // 100}' r='{RADIUS}' stroke='{COLOURS[flow]}'/>"
        for flow, (left, top) in PLACES.items()
    )
    edges = (
        f"M{WIDTH // 2} {HEIGHT * 18 // 100 + RADIUS}V{HEIGHT * 82 // 100 - RADIUS}",
        f"M{60 + RADIUS} 170H{340 - RADIUS}",
    )
    lines = f"<path d='{''.join(edges)}' stroke='{QUIET}' stroke-dasharray='1 7' stroke-linecap='round'/>"
    hub = f"<circle cx='200' cy='170' r='5' fill='{QUIET}' stroke='none'/>"
    size = f"viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' {size} fill='none' stroke-width='3'>{lines}{circles}{hub}</svg>"
    return "data:image/svg+xml;utf8," + svg.replace("#", "%23")


def phases() -> Card:
    sections = []
    for name, (meter, icon, colour) in METERS.items():
        cards = [heading(name, icon, badge=f"sensor.{meter}_power")]
        for quantity in ("power", "voltage", "current"):
            for phase in ("l1", "l2", "l3"):
                entity = f"sensor.{meter}_{phase}_{quantity}"
                shade = colour if quantity == "power" else "grey"
                cards.append(tile(entity, phase.upper(), shade, columns=4, vertical=True))
        sections.append({**section(cards), "visibility": there(f"sensor.{meter}_l1_power")})
    net = [f"sensor.net_consumption_meter_{phase}_voltage" for phase in ("l1", "l2", "l3")]
    voltages = [heading("Voltages", "mdi:sine-wave"), history(net, ["L1", "L2", "L3"])]
    sections.append({**section(voltages), "visibility": there(net[0])})
    return view("Phases", "phases", "mdi:sine-wave", 3, sections)


def inverters() -> Card:
    """Serial numbers differ from home to home, so a template finds them."""
    panels = {"type": "markdown", "content": PANELS, "grid_options": {"columns": "full"}}
    batteries = {"type": "markdown", "content": BATTERIES, "grid_options": {"columns": "full"}}
    roof = {**section([heading("Inverters", "mdi:solar-panel"), panels]), "column_span": 2}
    stored = [
        heading("Batteries", "mdi:home-battery"),
        tile("sensor.enphase_battery_charge", "Charge", "teal"),
        tile("sensor.enphase_battery_energy_stored", "Stored", "teal", icon="mdi:battery-charging"),
        batteries,
    ]
    cellar = {**section(stored), "visibility": there("sensor.enphase_battery_charge")}
    return view("Inverters", "inverters", "mdi:solar-panel", 3, [roof, cellar])


def section(cards: list[Card]) -> Card:
    return {"type": "grid", "cards": cards}


def there(entity: str) -> list[Card]:
    """An entity that is not there counts as unknown."""
    return [{"condition": "state", "entity": entity, "state_not": ["unavailable", "unknown"]}]


def heading(text: str, icon: str, badge: str | None = None) -> Card:
    badges = {"badges": [{"type": "entity", "entity": badge}]} if badge else {}
    return {"type": "heading", "heading": text, "icon": icon, **badges}


def tile(
    entity: str,
    name: str,
    color: str,
    *,
    columns: int | str = 6,
    icon: str = "",
    vertical: bool = False,
    everywhere: bool = False,
) -> Card:
    """What not every home has is shown while it is there; so it hides while the gateway is down, too."""
    card: Card = {
        "type": "tile",
        "entity": entity,
        "name": name,
        "color": color,
        **({"icon": icon} if icon else {}),
    }
    card |= {"vertical": True} if vertical else {}
    card["grid_options"] = {"columns": columns}
    return card if everywhere else card | {"visibility": there(entity)}


def history(entities: list[str], names: list[str]) -> Card:
    shown = [{"entity": entity, "name": name} for entity, name in zip(entities, names, strict=True)]
    return {"type": "history-graph", "hours_to_show": 24, "entities": shown, "grid_options": {"columns": "full"}}


class _Plain(yaml.SafeDumper):
    """Long texts as blocks, and each value in full where it stands."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Plain.add_representer(str, _text)


def written() -> str:
    """The file's content."""
    body: str = yaml.dump(dashboard(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=4096)
    return HEAD + body


if __name__ == "__main__":
    FILE.write_text(written())
