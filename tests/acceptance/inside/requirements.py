"""Prints what the integrations need that the tests use. Home Assistant would install it itself while it runs."""

import json
from pathlib import Path

import homeassistant
from homeassistant import bootstrap

USED = {"api", "config", "energy", "frontend", "history", "logger", "mqtt", "recorder", "websocket_api"}
FOR_UPDATE = {"ai_task", "assist_satellite", "camera", "ffmpeg", "stream"}
"""What Home Assistant imports to describe the services of an `update` entity."""
FOLDER = Path(homeassistant.__file__).parent / "components"


def main() -> None:
    todo = USED | FOR_UPDATE | set(bootstrap.DEFAULT_INTEGRATIONS) | set(bootstrap.CORE_INTEGRATIONS)
    done: set[str] = set()
    needed: set[str] = set()
    while todo:
        name = todo.pop()
        done.add(name)
        manifest = json.loads((FOLDER / name / "manifest.json").read_text())
        needed.update(manifest.get("requirements", []))
        todo |= set(manifest.get("dependencies", [])) - done
    print("\n".join(sorted(needed)))  # noqa: T201 - that is what it is for


main()
