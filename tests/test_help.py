"""The help of each command, and tab completion in real shells."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bridge import commands
from bridge.commands import DESCRIPTIONS

COMMANDS = sorted(next(a for a in commands.parser()._actions if a.dest == "command").choices or ())


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        commands.main([command, "--help"])
    assert end.value.code == 0
    assert DESCRIPTIONS[command].split()[0] in capsys.readouterr().out


def test_help_begins_with_the_first_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        commands.main(["--help"])
    said = capsys.readouterr().out
    steps = [line.split()[1] for line in said.partition("first steps:")[2].splitlines() if line.startswith("  iqg")]
    assert steps[-1] == "run"
    assert set(steps) <= {*COMMANDS}
    assert max(map(len, said.splitlines())) <= 100


def test_without_a_command_it_shows_the_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "first steps:" in said.err


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed")
    return found or pytest.skip(f"{name} is not installed")


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Path:
    """The output of `completion` for a shell, in the place where this shell looks for it."""
    name = request.node.get_closest_marker("shell").args[0]
    assert commands.main(["completion", name]) == 0
    path = tmp_path / ("_iqgateway2mqtt" if name == "zsh" else f"script.{name}")
    path.write_text(capsys.readouterr().out)
    return path


def said(*command: str | Path) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.shell("bash")
def test_bash_completes(script: Path) -> None:
    ask = f"source {script}; COMP_WORDS=(iqgateway2mqtt s); COMP_CWORD=1; "
    function = "$(complete -p iqgateway2mqtt | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    assert said(shell("bash"), "-c", f'{ask}{function} iqgateway2mqtt s; echo "${{COMPREPLY[@]}}"') == [
        "set",
        "setup",
        "simulate",
    ]


@pytest.mark.shell("fish")
def test_fish_completes(script: Path) -> None:
    found = said(shell("fish"), "--no-config", "-c", f"source {script}; complete -C 'iqgateway2mqtt token '")
    assert {"get", "paste", "show"} <= {*found}


@pytest.mark.shell("zsh")
def test_zsh_completes(script: Path) -> None:
    load = f"fpath=({script.parent} $fpath); autoload -Uz compinit; compinit -D; "
    assert said(shell("zsh"), "-f", "-c", f"{load} echo $_comps[iqgateway2mqtt]; autoload +X _iqgateway2mqtt") == [
        script.name
    ]
