"""Weight: import time, memory, packages, installed size, and how soon the first value is published.

All of it runs with what a plain installation has and nothing else: httpx, for one, would import the `rich` that
some tool of a developer brings along. The baseline is a process that imports httpx, paho-mqtt, pydantic-settings
and tenacity, and nothing else. httpx loads httpcore, h11 and anyio with its first client only: a second baseline
has them, since no program that uses httpx can be without.

    python benchmarks/weight.py [SECONDS]      memory is looked at again after so many seconds (default 60)
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import lab
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

SECONDS = 60.0
TRIES, STARTS = 5, 3
BARELY = ("-S", "-P")
"""Python's options: no site-packages, and no folder of the source."""
BARE = "import httpx, paho.mqtt.client, pydantic_settings, tenacity"
USED = (
    BARE
    + ", asyncio, anyio; client = httpx.AsyncClient(trust_env=False, verify=False); asyncio.run(anyio.sleep(0))"
)
OURS = "import bridge.commands.run"
REPORT = "; print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"


def imported(code: str, env: dict[str, str]) -> tuple[float, float]:
    """Seconds and MB of a fresh interpreter: the quickest of some, since anything else may disturb."""
    times, memory = [], []
    for _ in range(TRIES):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, *BARELY, "-c", code + REPORT], capture_output=True, text=True, check=True, env=env
        )
        times.append(time.monotonic() - begun)
        memory.append(int(done.stdout) / 1000)
    return min(times), min(memory)


@contextmanager
def installed() -> Iterator[Path]:
    """A folder with the bridge and what it depends on."""
    with TemporaryDirectory() as folder:
        source = Path(__file__).parent.parent
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, str(source)]
        subprocess.run(pip, check=True, capture_output=True)
        yield Path(folder)


def size_of(place: Path) -> tuple[int, float]:
    """Packages and MB, without what Python compiles later."""
    files = [file for file in place.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    return len(list(place.glob("*.dist-info"))), sum(file.stat().st_size for file in files) / 1e6


def running(seconds: float, more: dict[str, str]) -> tuple[float, float, float]:
    """Seconds from the start to the first value at a subscriber, MB then, and MB after `seconds`."""
    first: list[float] = []

    def arrived(_client: Client, _data: object, _message: MQTTMessage) -> None:
        first.append(time.monotonic())

    with lab.gateways(20) as served, lab.broker() as port, TemporaryDirectory() as folder:
        watcher = Client(CallbackAPIVersion.VERSION2)
        watcher.on_message = arrived
        watcher.connect("127.0.0.1", port)
        watcher.subscribe("enphase/+/+/+/power")
        watcher.loop_start()
        begun = time.monotonic()
        with lab.bridge(lab.environment(served, port, Path(folder), **more), *BARELY) as process:
            while not first and time.monotonic() < begun + 30:
                time.sleep(0.01)
            time.sleep(5)
            early = lab.resident(process.pid)
            time.sleep(seconds)
            late = lab.resident(process.pid)
        watcher.loop_stop()
    return (first[0] if first else float("nan")) - begun, early, late


def above(memory: float, bare: tuple[float, float], used: tuple[float, float]) -> str:
    return f"{memory:.1f} MB ({memory - bare[1]:+.1f} above the libraries, {memory - used[1]:+.1f} with a client)"


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with installed() as place:
        packages, size = size_of(place)
        only = {"PYTHONPATH": str(place)}
        bare, used, ours = (imported(code, only) for code in (BARE, USED, OURS))
        starts = [running(0, only)[0] for _ in range(STARTS)]
        _, early, late = running(seconds, only)
    rows = [
        ("import of the four libraries", f"{bare[0]:.2f} s", f"{bare[1]:.1f} MB"),
        ("the same with a client", f"{used[0]:.2f} s", f"{used[1]:.1f} MB ({used[1] - bare[1]:+.1f})"),
        ("import of the service", f"{ours[0]:.2f} s", f"{ours[1]:.1f} MB ({ours[1] - bare[1]:+.1f})"),
        ("start to the first value at a subscriber", f"{min(starts):.2f} s", ""),
        ("one home, 5 s after that", "", above(early, bare, used)),
        (f"one home, {seconds:g} s later", "", above(late, bare, used)),
        ("installed", f"{packages} packages", f"{size:.1f} MB"),
    ]
    lab.table("Weight", ("", "time, number", "memory, size"), rows)


if __name__ == "__main__":
    main()
