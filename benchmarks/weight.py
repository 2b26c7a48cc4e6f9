"""Measures import time, memory, packages, installed size, and the time until the first value is published.

All processes use a fresh installation without development tools, because httpx, for example, imports `rich` if it
is installed. The baseline is a process that only imports httpx, paho-mqtt, pydantic-settings and tenacity. httpx
loads httpcore, h11 and anyio with its first client, so a second baseline includes them.

    python benchmarks/weight.py [SECONDS]      memory is measured again after SECONDS (default 60)
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import lab
from paho.mqtt.client import MQTTMessage

DURATION_S = 60.0
TRIES, STARTS = 5, 3
ISOLATED = ("-S", "-P")
"""Options of the Python interpreter: no site-packages, and no source folder in the path."""
LIBRARIES_CODE = "import httpx, paho.mqtt.client, pydantic_settings, tenacity"
CLIENT_CODE = (
    LIBRARIES_CODE
    + ", asyncio, anyio; client = httpx.AsyncClient(trust_env=False, verify=False); asyncio.run(anyio.sleep(0))"
)
SERVICE_CODE = "import bridge.commands.run"
REPORT_CODE = "; print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"


def imported(code: str, env: dict[str, str]) -> tuple[float, float]:
    """Return seconds and MB of a fresh interpreter that runs `code`: the least of some tries."""
    times, memory = [], []
    for _ in range(TRIES):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, *ISOLATED, "-c", code + REPORT_CODE],
            capture_output=True,
            text=True,
            check=True,
            env=env,
        )
        times.append(time.monotonic() - begun)
        memory.append(int(done.stdout) / 1000)
    return min(times), min(memory)


@contextmanager
def installed() -> Iterator[Path]:
    """Install the bridge and its dependencies into a temporary folder."""
    with TemporaryDirectory() as folder:
        source = Path(__file__).parent.parent
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, str(source)]
        subprocess.run(pip, check=True, capture_output=True)
        yield Path(folder)


def size_of(place: Path) -> tuple[int, float]:
    """Return the number of packages and their size in MB, without compiled bytecode."""
    files = [file for file in place.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    return len(list(place.glob("*.dist-info"))), sum(file.stat().st_size for file in files) / 1e6


def running(seconds: float, more: dict[str, str]) -> tuple[float, float, float]:
    """Return the seconds from start to first value at a subscriber, the MB then, and the MB after `seconds`."""
    first: list[float] = []

    def arrived(_message: MQTTMessage) -> None:
        first.append(time.monotonic())

    with (
        lab.gateways(20) as served,
        lab.broker() as port,
        TemporaryDirectory() as folder,
        lab.watching(port, "enphase/+/+/+/power", arrived),
    ):
        begun = time.monotonic()
        with lab.bridge(lab.environment(served, port, Path(folder), **more), *ISOLATED) as process:
            while not first and time.monotonic() < begun + 30:
                time.sleep(0.01)
            time.sleep(5)
            early = lab.resident(process.pid)
            time.sleep(seconds)
            late = lab.resident(process.pid)
    return (first[0] if first else float("nan")) - begun, early, late


def above(memory: float, bare: tuple[float, float], used: tuple[float, float]) -> str:
    return f"{memory:.1f} MB ({memory - bare[1]:+.1f} above the libraries, {memory - used[1]:+.1f} with a client)"


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else DURATION_S
    with installed() as place:
        packages, size = size_of(place)
        only = {"PYTHONPATH": str(place)}
        bare, used, ours = (imported(code, only) for code in (LIBRARIES_CODE, CLIENT_CODE, SERVICE_CODE))
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
