"""What only GitHub runs: workflows and forms have the right form, and the workflows are safe by zizmor's rules."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".github"
SCHEMAS = {
    "vendor.github-workflows": sorted(FOLDER.glob("workflows/*")),
    "vendor.github-issue-forms": sorted(
        {*FOLDER.glob("ISSUE_TEMPLATE/*")} - {FOLDER / "ISSUE_TEMPLATE/config.yml"}
    ),
    "vendor.github-issue-config": [FOLDER / "ISSUE_TEMPLATE/config.yml"],
    "vendor.dependabot": [FOLDER / "dependabot.yml"],
}

pytestmark = pytest.mark.skipif(
    not (FOLDER.exists() or os.environ.get("CI")), reason="a source distribution is without .github"
)


def assert_finds_nothing(program: str, *arguments: str | Path) -> None:
    path = Path(sys.executable).with_name(program)
    done = subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("schema", "files"), SCHEMAS.items(), ids=SCHEMAS)
def test_files_have_the_form_that_github_reads(schema: str, files: list[Path]) -> None:
    assert_finds_nothing("check-jsonschema", "--builtin-schema", schema, *files)


def test_every_file_has_a_schema() -> None:
    checked = {file for files in SCHEMAS.values() for file in files}
    assert {*FOLDER.rglob("*.yml"), *FOLDER.rglob("*.yaml")} == checked


def test_workflows_are_safe() -> None:
    """All actions are pinned by commit, and no job has more rights than it needs."""
    assert_finds_nothing("zizmor", "--offline", "--pedantic", "--no-progress", ".")


def test_an_action_has_one_version() -> None:
    used = {
        tuple(found)
        for file in SCHEMAS["vendor.github-workflows"]
        for found in re.findall(r"([\w/-]+)@(\w+) # v", file.read_text())
    }
    assert len(used) == len({action for action, _ in used}) > 0


def test_workflows_run_what_the_documents_say() -> None:
    ci, docs = ((FOLDER / f"workflows/{name}.yml").read_text() for name in ("ci", "docs"))
    build = re.search(r"`(\.venv/bin/sphinx-build [^`]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert build is not None
    assert build[1] in docs
    assert "bash .ci/run" in ci
