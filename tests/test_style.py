"""The tools that check the code pass, and no file has texts that must not be published."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = (
    ("ruff", "check"),
    ("ruff", "format", "--check"),
    ("mypy",),
    ("mypy", "--cache-dir=.mypy_cache/acceptance", "tests/acceptance/conftest.py"),
    ("lint-imports", "--no-cache"),
)
NOT_OURS = re.compile(
    r"(?<![A-Za-z.\w])/(work|root|Users/\w+)/|"
    r"deb\.debian\.org|pythonhosted\.org|pypi\.org/simple|registry\.npmjs\.org|proxy\.golang\.org"
)
"""Paths of one machine, and hosts of package registries."""


@pytest.mark.parametrize("command", TOOLS, ids=" ".join)
def test_tool_finds_nothing(command: tuple[str, ...]) -> None:
    program, *options = command
    path = Path(sys.executable).with_name(program)
    done = subprocess.run([path, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tracked() -> list[Path]:
    """The files that would be published: those that git does not ignore, or all files if there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [path for folder in ("bridge", "tests", "docs") for path in (ROOT / folder).rglob("*.*")]
    return [ROOT / name for name in done.stdout.splitlines()]


def test_no_file_names_this_machine_or_a_registry() -> None:
    found = []
    for path in tracked():
        if path.is_file() and path != Path(__file__):
            text = path.read_text(errors="replace")
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in NOT_OURS.finditer(text)]
    assert found == []
