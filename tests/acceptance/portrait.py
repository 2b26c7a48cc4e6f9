"""What a real Home Assistant shows of a home, and what the broker holds at the same time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant import HomeAssistant, Owned
from brokers import Mosquitto, watching
from houses import housed
from running import running

PREFIX = "homeassistant/device/"
MOVING = ("last_answer", "answer_time")
"""They change with every answer, so no two looks agree."""


@dataclass(frozen=True)
class Portrait:
    """`states` are those of enabled entities as they come; `all_states` with all disabled ones enabled.

    `entities` are in the registry as they came, `enabled` with all enabled. `announced` holds discovery's entities by unique id, each with its `device` and `key`.
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

    def state(self, unique_id: str) -> Mapping[str, Any]:
        return self.all_states[self.enabled[unique_id]["entity_id"]]


def announced(topics: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    bodies = [json.loads(text) for topic, text in topics.items() if topic.startswith(PREFIX)]
    return {
        entity["unique_id"]: {**entity, "key": key, "device": body["device"]}
        for body in bodies
        for key, entity in body["components"].items()
    }


def shown(text: str, entity: Mapping[str, Any]) -> str:
    """The state that Home Assistant should have of a topic's payload."""
    if entity["platform"] == "binary_sensor":
        return {entity.get("payload_on", "ON"): "on", "None": "unknown"}.get(text, "off")
    return "unknown" if text == "None" else text


def differences(
    states: Mapping[str, Mapping[str, Any]], registry: Mapping[str, Mapping[str, Any]], topics: Mapping[str, str]
) -> list[str]:
    """Enabled entities that show something else than their topic."""
    found = []
    for unique_id, entity in announced(topics).items():
        known = registry.get(unique_id)
        if known is None:
            found.append(f"{unique_id} is not there")
        elif known["disabled_by"] is None and not unique_id.endswith(MOVING):
            state = states.get(known["entity_id"], {"state": "missing"})["state"]
            wanted = shown(topics[entity["state_topic"]], entity)
            if state != wanted:
                found.append(f"{known['entity_id']} is {state}, not {wanted}")
    return found


async def portray(owned: Owned, home: str, folder: Path) -> Portrait:
    ha = HomeAssistant(owned, folder)
    with Mosquitto(folder) as broker:
        async with (
            housed(folder, broker, home) as house,
            watching(broker.port) as house.watcher,
            running(house.settings()),
            ha.running(),
        ):
            await ha.use_broker(broker.port)
            await house.settled()

            async def true() -> bool:
                return not differences(await ha.states(), await ha.entities(), house.seen)

            if house.simulator.home.batteries:  # a second look at them comes with the live stream
                await ha.until(lambda: house.topic("site/battery/energy_charged"))
            await ha.until(true)
            entities, states = await ha.entities(), await ha.states()
            await ha.enable_all()
            await ha.until(true)
            return Portrait(
                home,
                house.serial,
                states,
                await ha.states(),
                entities,
                await ha.entities(),
                await ha.devices(),
                announced(house.seen),
                house.seen,
                ha.complaints,
            )
