"""The part of the example dashboard that commands: discovery announces what it has, and it asks before it harms."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from houses import House, house
from running import running

EXAMPLE = Path(__file__).parents[1] / "examples" / "homeassistant" / "dashboard.yaml"
DANGEROUS = {"switch.grid_relay_connection", "switch.storage_control_charge_from_grid"}


def section() -> dict[str, Any]:
    (found,) = [
        one
        for view in yaml.safe_load(EXAMPLE.read_text())["views"]
        for one in view["sections"]
        if one["cards"][0].get("heading") == "Control"
    ]
    return dict(found)


ENTITIES = {card["entity"]: card for card in section()["cards"] if "entity" in card}


def announced(home: House) -> set[str]:
    """The ids that Home Assistant makes of the names of devices and entities."""
    found = set()
    for topic, text in home.seen.items():
        if topic.startswith("homeassistant/"):
            body = json.loads(text)
            for one in body["components"].values():
                name = " ".join(filter(None, (body["device"]["name"], one.get("name"))))
                found.add(f"{one['platform']}.{re.sub('[^a-z0-9]+', '_', name.lower())}")
    return found


@pytest.mark.hasty
@pytest.mark.parametrize("allow", ["all,grid", ""])
async def test_its_entities_are_announced_only_where_commands_are_allowed(tmp_path: Path, allow: str) -> None:
    async with house(tmp_path, "split-phase") as home, running(home.settings(control={"allow": allow})):
        await home.settled()
        assert ENTITIES.keys() & announced(home) == (ENTITIES.keys() if allow else set())


def test_what_is_dangerous_asks_first_wherever_it_is_tapped() -> None:
    for entity, card in ENTITIES.items():
        actions = [card.get("tap_action", {}), card.get("icon_tap_action", {})]
        asks = [action["confirmation"]["text"] for action in actions if "confirmation" in action]
        assert len(asks) == (2 if entity in DANGEROUS else 0), entity
    switches = {entity for entity in ENTITIES if entity.startswith("switch.")}
    assert switches == DANGEROUS
    assert "dark" in ENTITIES["switch.grid_relay_connection"]["tap_action"]["confirmation"]["text"]


def test_all_of_it_is_hidden_without_entities() -> None:
    (condition,) = section()["visibility"]
    assert condition["condition"] == "or"
    assert {one["entity"] for one in condition["conditions"]} == ENTITIES.keys()
    assert {tuple(one["state_not"]) for one in condition["conditions"]} == {("unavailable", "unknown")}
