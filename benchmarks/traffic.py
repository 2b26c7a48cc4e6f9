"""What one gateway of 20 inverters gives a broker: topics, messages and bytes (topic and payload) a second.

python benchmarks/traffic.py [SECONDS]
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import lab
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

SECONDS = 310.0
"""One heartbeat and a little more."""
START = 20.0
GATEWAYS = 3
DOCUMENTS = {"BRIDGE_MQTT__PAYLOAD": "json", "BRIDGE_HOMEASSISTANT__DISCOVERY": "off"}
GENTLE = {"BRIDGE_POLL__PROFILE": "gentle", "BRIDGE_MQTT__HEARTBEAT": "3600"}
WAYS: Mapping[str, Mapping[str, str]] = {"default": {}, "documents": DOCUMENTS, "gentle": {**DOCUMENTS, **GENTLE}}


def measured(way: str, seconds: float) -> tuple[object, ...]:
    sizes: list[int] = []
    topics: set[str] = set()

    def arrived(_client: Client, _data: object, message: MQTTMessage) -> None:
        sizes.append(len(message.topic) + len(message.payload))
        topics.add(message.topic)

    with lab.gateways(20, GATEWAYS) as served, lab.broker() as port, TemporaryDirectory() as folder:
        watcher = Client(CallbackAPIVersion.VERSION2)
        watcher.on_message = arrived
        watcher.connect("127.0.0.1", port)
        watcher.subscribe("#")
        watcher.loop_start()
        with lab.bridge(lab.environment(served, port, Path(folder), **WAYS[way])):
            time.sleep(START)
            sizes.clear()
            time.sleep(seconds)
            count, size = len(sizes), sum(sizes)
        watcher.loop_stop()
    each = GATEWAYS * seconds
    return way, len(topics) // GATEWAYS, count / each, size / each, 86_400 * count / each


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    header = ("settings", "topics", "messages/s", "bytes/s", "messages a day")
    lab.table("Traffic of one gateway", header, [measured(way, seconds) for way in WAYS])


if __name__ == "__main__":
    main()
