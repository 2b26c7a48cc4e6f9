"""Runs all generators, the tools and the quick tests: `.venv/bin/python tests/quick.py`.

This takes less than a minute and ends with a line that says what was done. The exit code is 1 if something failed.
The whole suite has more tests: those of the service, with brokers, with browsers and with machines.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from bridge.settings import VARIABLE_PREFIX
from bridge.simulator import Simulator
from bridge.simulator.serve import serve_in_thread

ROOT = Path(__file__).resolve().parents[1]
GENERATORS = ("docs/generate.py", "examples/homeassistant/generate.py")
OPENHAB_EXAMPLE, OPENHAB_HOME = ROOT / "examples/openhab", "three-phase"
GENERATED = ("*.md", "docs/*.md", "examples/**/*.*")
"""Where the generators write."""
QUICK = (
    *("brief", "captured", "counters", "device_data", "devices", "discovery", "docs", "endpoints", "entities"),
    *("fuzz", "golden", "help", "layout", "livedata", "meters", "outbox", "pipeline", "publisher", "records"),
    *("references", "settings", "sources", "storage_gear", "style", "topics"),
)
"""The files of tests that run: those of the pure middle, the documents and the tools, and `golden`."""


def run(*command: str | Path, told: str | None = None, **options: str) -> str:
    """Run a command in a folder of its own, with these environment variables and no settings of this machine.

    Raises:
        SystemExit: the command failed; its output says why.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLE_PREFIX)}
    with TemporaryDirectory() as folder:
        environment = {**kept, "HOME": folder, **options}
        done = subprocess.run(
            command, input=told, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}quick: failed: {' '.join(map(str, command))}")
    return done.stdout


def write_openhab_example() -> None:
    """Write openHAB's files anew from what the bridge publishes of the simulated home."""
    simulator = Simulator(OPENHAB_HOME)
    with serve_in_thread(simulator, tls=True) as address:
        gateway = {
            f"{VARIABLE_PREFIX}GATEWAY__HOST": f"https://{address}",
            f"{VARIABLE_PREFIX}GATEWAY__TOKEN": simulator.token(),
        }
        published = run(sys.executable, "-m", "bridge", "once", "--discovery", **gateway)
    run(sys.executable, OPENHAB_EXAMPLE / "generate.py", OPENHAB_EXAMPLE, told=published)


def generated() -> Mapping[Path, bytes]:
    return {path: path.read_bytes() for pattern in GENERATED for path in ROOT.glob(pattern)}


def main() -> int:
    """Run everything; return the exit code."""
    before = generated()
    for generator in GENERATORS:
        run(sys.executable, ROOT / generator)
    write_openhab_example()
    changed = sorted(str(path.relative_to(ROOT)) for path, text in generated().items() if before.get(path) != text)
    files = [ROOT / f"tests/test_{name}.py" for name in QUICK]
    tests = subprocess.run([sys.executable, "-m", "pytest", "-n", "2", "-q", *files], cwd=ROOT, check=False)
    outcome = "some FAILED" if tests.returncode else "all passed"
    sys.stdout.write(
        f"quick: all generators have run and changed {', '.join(changed) or 'nothing'}; "
        f"of the tests in {len(files)} files {outcome}. Run the whole suite before you publish a change.\n"
    )
    return min(tests.returncode, 1)


if __name__ == "__main__":
    sys.exit(main())
