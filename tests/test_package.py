"""The package: it is built once, then tested without the sources, with every Python and the oldest libraries."""

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from bridge import __version__

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
OLDEST = PYTHONS[0]
UV = str(Path(sys.executable).with_name("uv"))
PYPROJECT = ROOT / "pyproject.toml"
QUICK_TESTS = (
    "test_settings.py",
    "test_store.py",
    "test_records.py",
    "test_endpoints.py",
    "test_topics.py",
    "test_discovery.py",
    "test_supervisor.py::test_the_program_tells_what_it_does",
    "test_web.py::test_ready_says_why_not",
    "test_service.py::test_values_are_those_of_the_house",
)
"""Tests that use all libraries of the program in the shortest time. The last one uses all of them together."""
LOCK = (
    "pip",
    "compile",
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-header",
    "--no-annotate",
)
LOCKED = {"requirements.txt": ("--extra=discover", "--extra=web"), "requirements-dev.txt": ("--extra=dev",)}
"""Files of locked versions, for the image and for CI."""
TESTING = ("pytest", "pytest-asyncio", "pytest-httpx", "hypothesis")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without this test run's settings and environment. Returns its output."""
    kept = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    environment = {**kept, "UV_PYTHON_DOWNLOADS": "never", "UV_CACHE_DIR": cache(), "UV_NATIVE_TLS": "true"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def cache() -> str:
    """uv's usual cache, although the tests have another home folder."""
    return os.environ.get(
        "UV_CACHE_DIR", str(Path("~root" if os.geteuid() == 0 else "~").expanduser() / ".cache/uv")
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(UV, "build", "-q", "-o", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def python_of(version: str) -> str:
    """The path of a Python version. Debian has one, and others are not in a package registry."""
    places: list[str | Path | None] = [
        shutil.which(f"python{version}"),
        *sorted(Path("~root").expanduser().glob(f".pyenv/versions/{version}.*")),
    ]
    for place in (place for place in places if place):
        path = Path(place)
        path = path / "bin" / "python3" if path.is_dir() else path
        done = subprocess.run([path, "-c", "import ssl, ctypes"], capture_output=True, check=False)
        if done.returncode == 0:
            return str(path)
    pytest.skip(f"there is no Python {version} on this machine")


def environment(folder: Path, version: str, *packages: str | Path, options: tuple[str, ...] = ()) -> Path:
    """The Python of an environment with only these packages."""
    python = folder / "venv" / "bin" / "python"
    run(UV, "venv", "-q", "--python", python_of(version), folder / "venv", cwd=folder)
    run(UV, "pip", "install", "-q", "--python", python, *options, *packages, cwd=folder)
    return python


def try_out(python: Path, folder: Path) -> None:
    """Run the quick tests in a folder without sources."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PYPROJECT, folder)
    where = run(python, "-c", "import bridge; print(bridge.__file__)", cwd=folder)
    assert where.startswith(str(folder / "venv"))
    options = ("-q", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers")
    run(python, "-m", "pytest", *options, *(f"tests/{name}" for name in QUICK_TESTS), cwd=folder)


def test_wheel_has_what_is_needed_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        told = email.message_from_bytes(archive.read(f"iqgateway2mqtt-{__version__}.dist-info/METADATA"))
    assert "bridge/py.typed" in names
    others = {name.split("/")[0] for name in names} - {"bridge"}
    assert {name.partition(".data")[0].partition(".dist-info")[0] for name in others} == {
        f"iqgateway2mqtt-{__version__}"
    }
    units = {path.name for path in (ROOT / "systemd").iterdir()}
    assert {Path(name).name for name in names if "/share/iqgateway2mqtt/systemd/" in name} == units
    assert (told["Version"], told["Requires-Python"], told["License-Expression"]) == (
        __version__,
        f">={OLDEST}",
        "MIT",
    )
    links = re.findall(r"\]\(([^)]+)\)", str(told.get_payload()))
    assert [link for link in links if not link.startswith("https://")] == []
    assert [link for link in links if link.endswith(".png") and "/raw." not in link] == []
    assert len(links) > 10
    wanted = r"\.(py|typed|service)$|-as-service$|/page/\w+\.(html|css|js|svg)$|/simulator/\w+\.json$|dist-info/"
    assert not [name for name in names if not re.search(wanted, name)]
    assert "bridge/simulator/first_documents.json" in names


@pytest.mark.parametrize("version", PYTHONS)
def test_wheel_works(wheel: Path, tmp_path: Path, version: str) -> None:
    python = environment(tmp_path, version, f"{wheel}[demo,discover,completion,web]", *TESTING)
    program = python.with_name("iqgateway2mqtt")
    assert run(program, "--version", cwd=tmp_path) == f"iqgateway2mqtt {__version__}\n"
    try_out(python, tmp_path)


def test_oldest_libraries_will_do(wheel: Path, tmp_path: Path) -> None:
    python = environment(
        tmp_path, OLDEST, f"{wheel}[demo,discover,completion,web]", options=("--resolution=lowest-direct",)
    )
    run(UV, "pip", "install", "-q", "--python", python, *TESTING, cwd=tmp_path)
    try_out(python, tmp_path)


def test_types_are_seen_from_outside(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path, OLDEST, wheel)
    mypy = (Path(sys.executable).with_name("mypy"), "--strict", "--python-executable", python)
    code = "import bridge\nnumber: int = bridge.__version__\n"
    done = subprocess.run([*mypy, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'expression has type "str", variable has type "int"' in done.stdout


@pytest.mark.parametrize("seeded", [True, False], ids=["with pip", "with uv alone"])
def test_the_command_for_a_missing_extra_installs_it(wheel: Path, tmp_path: Path, *, seeded: bool) -> None:
    """Once it comes from a wheel and once from a folder with the sources."""
    source = wheel if seeded else ROOT
    python = environment(tmp_path, OLDEST, *(["pip"] if seeded else []), source)
    command = (str(python.with_name("iqgateway2mqtt")), "completion", "bash")
    before = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert before.returncode == 78
    advice = before.stderr.partition("this installs it: ")[2].strip()
    assert advice.endswith(f" '{source}[completion]'")
    run("env", f"PATH={Path(UV).parent}:{os.environ['PATH']}", "sh", "-c", advice, cwd=tmp_path)
    assert "complete -" in run(*command, cwd=tmp_path)


def test_uv_runs_it_without_installing(wheel: Path, tmp_path: Path) -> None:
    said = run(
        UV,
        "tool",
        "run",
        "--from",
        wheel,
        "--python",
        python_of(OLDEST),
        "iqgateway2mqtt",
        "--version",
        cwd=tmp_path,
    )
    assert said == f"iqgateway2mqtt {__version__}\n"


@pytest.mark.parametrize(("name", "extras"), LOCKED.items(), ids=str)
def test_locked_sets_are_what_is_needed(tmp_path: Path, name: str, extras: tuple[str, ...]) -> None:
    """Locked versions stay although newer ones exist, but no package may be missing."""
    locked = tmp_path / name
    shutil.copy(ROOT / name, locked)
    run(UV, *LOCK, *extras, "-q", PYPROJECT, "-o", locked, cwd=tmp_path)
    assert locked.read_text() == (ROOT / name).read_text()


def test_the_development_tools_are_the_same_in_the_extra_and_in_the_groups() -> None:
    project = tomllib.loads(PYPROJECT.read_text())
    groups = project["dependency-groups"]
    tools = [tool for tool in project["project"]["optional-dependencies"]["dev"] if "iqgateway2mqtt[" not in tool]
    assert sorted(tools) == sorted(groups["docs"] + groups["lint"] + groups["test"])


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_locked_set_needs_no_compiler(tmp_path: Path, machine: str) -> None:
    """This holds for the image's Python, on both architectures."""
    where = (
        "--target",
        tmp_path / "site",
        "--python-platform",
        f"{machine}-manylinux_2_28",
        "--python-version",
        "3.13",
    )
    what = ("--only-binary=:all:", "--require-hashes", "-r", ROOT / "requirements.txt")
    run(UV, "pip", "install", "-q", *where, *what, cwd=tmp_path)
    assert list((tmp_path / "site").glob(f"pydantic_core/*{machine}-linux-gnu.so"))
