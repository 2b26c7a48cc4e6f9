"""What a real Home Assistant shows of a home, and what the broker holds at the same time."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant import HomeAssistant, Owned
from brokers import Mosquitto, watching
from houses import housed
from install import OLDER
from running import running

from bridge.discovery import MIGRATE_PAYLOAD

STATISTICS = "recorder/list_statistic_ids"
FACTORS, ROUNDED_WH = {"Wh": 1.0, "kWh": 1000.0}, 10.0
VALUES = ("sensor", "binary_sensor")
"""Platforms whose states are values of topics; others show events, or make something of a value."""
MOVING = ("last_answer", "answer_time")
"""They change with every answer, so no two looks agree."""


@dataclass(frozen=True)
class Energy:
    """The dashboard's preferences as they were saved, what Home Assistant finds wrong, and units by statistic."""

    preferences: Mapping[str, Any]
    issues: list[Any]
    statistics: Mapping[str, str]


@dataclass(frozen=True)
class Portrait:
    """`states` are those of enabled entities as they come; `all_states` with all disabled ones enabled.

    `entities` are in the registry as they came, `enabled` with all enabled.
    `announced` holds discovery's entities by unique id, each with its `device`.
    """

    home: str
    serial: str
    states: Mapping[str, Mapping[str, Any]]
    all_states: Mapping[str, Mapping[str, Any]]
    entities: Mapping[str, Mapping[str, Any]]
    enabled: Mapping[str, Mapping[str, Any]]
    devices: Mapping[str, Mapping[str, Any]]
    announced: Mapping[str, Mapping[str, Any]]
    topics: Mapping[str, str]
    complaints: list[str]
    energy: Energy

    def state(self, unique_id: str) -> Mapping[str, Any]:
        return self.all_states[self.enabled[unique_id]["entity_id"]]


def is_discovery(topic: str) -> bool:
    return topic.startswith("homeassistant/") and topic.endswith("/config")


def announced(topics: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """By either form of discovery."""
    found = {}
    for topic, text in topics.items():
        if is_discovery(topic) and text != MIGRATE_PAYLOAD:
            body = json.loads(text)
            single = {**body, "platform": topic.split("/")[1]}
            for entity in body.get("components", {"": single}).values():
                if "unique_id" in entity:  # others are taken back
                    found[entity["unique_id"]] = {**entity, "device": body["device"]}
    return found


def shown(text: str, entity: Mapping[str, Any]) -> str:
    """The state that Home Assistant should have of a topic's payload."""
    if entity["platform"] == "binary_sensor":
        return {entity.get("payload_on", "ON"): "on", "None": "unknown"}.get(text, "off")
    if text == "None":
        return "unknown"
    return str(round(float(text) / 1000, 6)) if entity.get("unit_of_measurement") == "kWh" else text


def differences(
    states: Mapping[str, Mapping[str, Any]], registry: Mapping[str, Mapping[str, Any]], topics: Mapping[str, str]
) -> list[str]:
    """Enabled entities that show something else than their topic."""
    found = []
    for unique_id, entity in announced(topics).items():
        known = registry.get(unique_id)
        if known is None:
            found.append(f"{unique_id} is not there")
        elif known["disabled_by"] is None and entity["platform"] in VALUES and not unique_id.endswith(MOVING):
            shown_as = states.get(known["entity_id"], {"state": "missing", "attributes": {}})
            text = topics.get(entity["state_topic"], "")
            state, wanted = shown_as["state"], shown(text, entity) if text else "published yet"
            if state != wanted and not is_converted(shown_as, text):
                found.append(f"{known['entity_id']} is {state}, not {wanted}")
    return found


def is_converted(state: Mapping[str, Any], text: str) -> bool:
    """Whether an energy has the unit that Home Assistant has known from another form of discovery, rounded."""
    factor = FACTORS.get(state["attributes"].get("unit_of_measurement"))
    try:
        return factor is not None and abs(float(state["state"]) * factor - float(text)) <= ROUNDED_WH
    except ValueError:
        return False


async def portray(owned: Owned, home: str, folder: Path) -> Portrait:
    ha = HomeAssistant(owned, folder)
    with Mosquitto(folder) as broker:
        async with (
            housed(folder, broker, home) as house,
            watching(broker.port) as house.watcher,
            running(house.settings(), now=house.clock),  # what is integrated stands still, too
            ha.running(),
        ):
            await ha.use_broker(broker.port)
            await house.settled()

            async def true() -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, str]] | None:
                """States, registry and topics of one moment, once they agree: some counters never rest."""
                states, entities, topics = await ha.states(), await ha.entities(), house.seen
                return None if differences(states, entities, topics) else (states, entities, topics)

            if house.simulator.home.batteries:  # a second look at them comes with the live stream
                await ha.until(lambda: house.topic("site/battery/energy_charged"))
            states, entities, _ = await ha.until(true)
            await ha.enable_all()
            all_states, enabled, topics = await ha.until(true)
            return Portrait(
                home,
                house.serial,
                states,
                all_states,
                entities,
                enabled,
                await ha.devices(),
                announced(topics),
                topics,
                ha.complaints,
                await energy(ha),
            )


async def energy(ha: HomeAssistant) -> Energy:
    """The Energy dashboard, set up with all that the site has."""
    await ha.act("compile_statistics", "now")
    found = {entry["statistic_id"]: entry["statistics_unit_of_measurement"] for entry in await ha.ask(STATISTICS)}
    have = {
        entity.removeprefix("sensor.enphase_"): entity for entity in found if entity.startswith("sensor.enphase_")
    }
    with_power = ha.release is not OLDER
    sources = list(_sources(have, with_power=with_power))
    home = {"stat_consumption": have.get("home_energy_consumed"), "name": "Home"}
    rate = {"stat_rate": have.get("home_power")} if with_power else {}
    devices = [{**home, **rate}] if home["stat_consumption"] else []
    saved = await ha.ask("energy/save_prefs", energy_sources=sources, device_consumption=devices)
    checked = await ha.ask("energy/validate")
    issues = [issue for part in checked.values() for one in part for issue in one]
    assert sum(map(len, checked.values())) == len(sources) + len(devices)
    return Energy(saved, issues, found)


def _sources(have: Mapping[str, str], *, with_power: bool) -> Iterator[dict[str, Any]]:
    """Older ones know energies only. Nothing costs anything."""

    def rate(name: str) -> dict[str, str]:
        return {"stat_rate": have[name]} if with_power else {}

    free = {"stat_cost": None, "entity_energy_price": None, "number_energy_price": None}
    unpaid = {"stat_compensation": None, "entity_energy_price": None, "number_energy_price": None}
    yield {"type": "solar", "stat_energy_from": have["solar_energy_produced"], **rate("solar_power")}
    if "grid_power" in have:
        power = {"power": [rate("grid_power")]} if with_power else {}
        yield {
            "type": "grid",
            "flow_from": [{"stat_energy_from": have["grid_energy_imported"], **free}],
            "flow_to": [{"stat_energy_to": have["grid_energy_exported"], **unpaid}],
            "cost_adjustment_day": 0,
            **power,
        }
    if "battery_power" in have:
        flows = {"from": have["battery_energy_discharged"], "to": have["battery_energy_charged"]}
        yield {
            "type": "battery",
            **{f"stat_energy_{way}": flow for way, flow in flows.items()},
            **rate("battery_power"),
        }
