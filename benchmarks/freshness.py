"""Measures the time from the gateway's answer to the value at an MQTT subscriber, at one poll per second.

The floor is a bare loop that requests the same answer with the same HTTP library and publishes one value with paho.
Both are measured in turns, because the load of the machine changes by the minute.

    python benchmarks/freshness.py [SECONDS]
"""

import json
import ssl
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import lab
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

DURATION_S = 120
TURNS = 3
WARM_UP_S = 5
POWER_TOPIC = "enphase/floor/live/pv/power"


def floor(address: str, token: str, port: int) -> None:
    """Run the bare loop until the process is killed."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"https://{address}", verify=context, headers=headers, trust_env=False) as http:
        due = time.monotonic()
        while True:
            answer = json.loads(http.get(lab.LIVEDATA_PATH).content)
            client.publish(POWER_TOPIC, answer["meters"]["pv"]["agg_p_mw"] / 1000, retain=True)
            due += 1
            time.sleep(max(0.0, due - time.monotonic()))


def measured(
    command: list[str], env: dict[str, str] | None, served: lab.RunningGateways, port: int, seconds: float
) -> list[float]:
    """Return the milliseconds that each value took from the gateway to the subscriber."""
    arrivals: dict[int, float] = {}

    def arrived(_client: Client, _data: object, message: MQTTMessage) -> None:
        arrivals.setdefault(round(float(message.payload)), time.monotonic())

    watcher = Client(CallbackAPIVersion.VERSION2)
    watcher.on_message = arrived
    watcher.connect("127.0.0.1", port)
    watcher.subscribe("enphase/+/live/pv/power")
    watcher.loop_start()
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    time.sleep(WARM_UP_S + seconds)
    process.terminate()
    process.wait(20)
    watcher.loop_stop()
    _, address, _ = served.only
    stamps = httpx.get(f"https://{address}{lab.STAMPS_PATH}", verify=False, trust_env=False).json()  # noqa: S501 - loopback
    left = {int(watts): when for watts, when in stamps.items()}
    begun = min(left.values(), default=0.0) + WARM_UP_S
    return [1000 * (arrivals[watts] - when) for watts, when in left.items() if watts in arrivals and when > begun]


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else DURATION_S
    found: dict[str, list[float]] = {"floor": [], "bridge": []}
    for name in [*found] * TURNS:
        with lab.gateways(20) as served, lab.broker() as port, TemporaryDirectory() as folder:
            _, address, token = served.only
            bare = [sys.executable, __file__, "floor", address, token, str(port)]
            live = {"BRIDGE_POLL__PROFILE": "live"}
            env = lab.environment(served, port, Path(folder), **live) if name == "bridge" else None
            command = [sys.executable, "-m", "bridge", "run"] if name == "bridge" else bare
            print(f"{name}: {seconds / TURNS:g} s ...", file=sys.stderr)
            found[name] += measured(command, env, served, port, seconds / TURNS)
    base = lab.percentile(found["floor"], 0.5)
    rows = [
        (
            name,
            len(times),
            lab.percentile(times, 0.5),
            lab.percentile(times, 0.99),
            lab.percentile(times, 0.5) / base,
        )
        for name, times in found.items()
    ]
    lab.table("Freshness", ("", "values", "p50, ms", "p99, ms", "p50 / floor"), rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["floor"]:
        floor(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
