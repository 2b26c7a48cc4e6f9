"""A real Home Assistant in a venv of its own, kept between runs. It takes half a minute and 0.8 GB, once."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSIDE = Path(__file__).parent / "inside"
"""What runs with Home Assistant's Python instead of ours."""
HOME = Path.home()
"""Read once, at import: while a test runs, HOME is a folder of that test's own, without any Python."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or HOME / ".cache") / "iqgateway2mqtt-tests"


@dataclass(frozen=True, slots=True)
class Release:
    """A Home Assistant. It asks for a patch release of Python that is not everywhere: `pretended`."""

    version: str
    python: str
    pretended: str

    @property
    def venv(self) -> Path:
        return CACHE / f"homeassistant-{self.version}"

    @property
    def interpreter(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def installed(self) -> bool:
        return self._done.exists() and self._done.read_text() == self._recipe

    @property
    def _done(self) -> Path:
        return self.venv / "complete"

    @property
    def _recipe(self) -> str:
        """Changes with what is installed, so that nothing old is taken for the new."""
        used = (INSIDE / "requirements.py").read_bytes()
        return hashlib.sha256(used + repr(self).encode()).hexdigest()

    def install(self) -> None:
        """Unless it is there. Another run at the same time waits."""
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{self.version}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.installed:
                shutil.rmtree(self.venv, ignore_errors=True)
                self._build()
                self._done.write_text(self._recipe)

    def _build(self) -> None:
        _uv("venv", "--quiet", "--python", _python(self.python), str(self.venv))
        self._add(f"homeassistant=={self.version}", "setuptools")
        where = "import homeassistant, os; print(os.path.dirname(homeassistant.__file__))"
        package = Path(_output(str(self.interpreter), "-c", where))
        wanted = _output(str(self.interpreter), str(INSIDE / "requirements.py")).splitlines()
        self._add(*wanted, "--constraint", str(package / "package_constraints.txt"))

    def _add(self, *what: str) -> None:
        _uv(
            "pip",
            "install",
            "--quiet",
            "--python",
            str(self.interpreter),
            "--python-version",
            self.pretended,
            *what,
        )


NEWEST = Release("2026.2.3", "3.13", "3.13.2")
OLDER = Release("2025.1.4", "3.12", "3.12.4")


def _uv(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", "--no-config", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"uv {' '.join(arguments[:3])} failed:\n{done.stderr}")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _python(version: str) -> str:
    """One that is there; failing that, the version alone: uv knows where to get it."""
    return next((str(found) for found in _candidates(version) if _runs(found, version)), version)


def _candidates(version: str) -> Iterator[Path]:
    if there := shutil.which(f"python{version}"):
        yield Path(there)
    yield from sorted(HOME.glob(f".pyenv/versions/{version}.*/bin/python"))


def _runs(python: Path, version: str) -> bool:
    """A shim of pyenv may stand for nothing."""
    done = subprocess.run([python, "-V"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.startswith(f"Python {version}.")
