"""Turns the add-on's options into settings of the bridge, and becomes the bridge.

    start.py /data/options.json http://supervisor

The broker is the one that the supervisor knows, unless the options name another.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BRIDGE = "iqgateway2mqtt"
WRONG_SETTING = 78
TIMEOUT = 10


def settings(options: Mapping[str, Any], path: str = "BRIDGE") -> Iterator[tuple[str, str]]:
    """`gateway`, `host` is BRIDGE_GATEWAY__HOST; `more` has names and values of its own."""
    separator = "_" if path == "BRIDGE" else "__"
    for name, value in options.items():
        if name == "more":
            yield from ((str(one["name"]), str(one["value"])) for one in value)
        elif isinstance(value, Mapping):
            yield from settings(value, f"{path}{separator}{name.upper()}")
        elif value not in (None, ""):
            yield f"{path}{separator}{name.upper()}", str(value)


def broker(supervisor: str) -> dict[str, str]:
    """Settings of the broker that the supervisor knows, such as the Mosquitto add-on; none where it knows none."""
    headers = {"Authorization": f"Bearer {os.environ.get('SUPERVISOR_TOKEN', '')}"}
    request = urllib.request.Request(f"{supervisor}/services/mqtt", headers=headers)  # noqa: S310 - http, as told
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            found = json.load(answer)["data"]
            scheme = "mqtts" if found.get("ssl") else "mqtt"
            given = {"URL": f"{scheme}://{found['host']}:{found['port']}"}
    except (urllib.error.URLError, ValueError, KeyError, TypeError, OSError):
        return {}
    given |= {name.upper(): found[name] for name in ("username", "password") if found.get(name)}
    return {f"BRIDGE_MQTT__{name}": str(value) for name, value in given.items()}


def main(options: Path, supervisor: str) -> None:
    chosen = dict(settings(json.loads(options.read_text())))
    if "BRIDGE_MQTT__URL" not in chosen:
        known = broker(supervisor)
        if not known:
            sys.stderr.write(
                "There is no MQTT broker: install the Mosquitto broker add-on, or name one in this add-on's "
                "configuration (mqtt, url: mqtt://host:1883), then start this again.\n"
            )
            sys.exit(WRONG_SETTING)
        chosen = known | chosen
    os.execvpe(BRIDGE, [BRIDGE, "run"], os.environ | chosen)  # noqa: S606 - no shell


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
