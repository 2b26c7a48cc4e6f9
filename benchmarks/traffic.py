"""Measures the MQTT traffic of one gateway with 20 inverters: topics, messages and bytes per second.

The bytes are those of topics and payloads.

    python benchmarks/traffic.py [SECONDS]
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import lab
from paho.mqtt.client import MQTTMessage

DURATION_S = 310.0
"""One heartbeat period and a little more."""
FIRST_ROUND_S = 20.0
GATEWAY_COUNT = 3
DOCUMENTS = {"BRIDGE_MQTT__PAYLOAD": "json", "BRIDGE_HOMEASSISTANT__DISCOVERY": "off"}
GENTLE = {"BRIDGE_POLL__PROFILE": "gentle", "BRIDGE_MQTT__HEARTBEAT": "3600"}
SETTINGS_BY_NAME: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "documents": DOCUMENTS,
    "gentle": {**DOCUMENTS, **GENTLE},
}


def measured(name: str, seconds: float) -> tuple[object, ...]:
    sizes: list[int] = []
    topics: set[str] = set()

    def arrived(message: MQTTMessage) -> None:
        sizes.append(len(message.topic) + len(message.payload))
        topics.add(message.topic)

    with (
        lab.gateways(20, GATEWAY_COUNT) as served,
        lab.broker() as port,
        TemporaryDirectory() as folder,
        lab.watching(port, "#", arrived),
        lab.bridge(lab.environment(served, port, Path(folder), **SETTINGS_BY_NAME[name])),
    ):
        time.sleep(FIRST_ROUND_S)
        sizes.clear()
        time.sleep(seconds)
        count, size = len(sizes), sum(sizes)
    each = GATEWAY_COUNT * seconds
    return name, len(topics) // GATEWAY_COUNT, count / each, size / each, 86_400 * count / each


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else DURATION_S
    header = ("settings", "topics", "messages/s", "bytes/s", "messages a day")
    lab.table("Traffic of one gateway", header, [measured(name, seconds) for name in SETTINGS_BY_NAME])


if __name__ == "__main__":
    main()
