"""The log on standard error: for people, for programs, and for systemd's journal."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SAYS = """
import logging
from bridge.commands.report import configure_log
from bridge.settings import LogSettings
configure_log(LogSettings(level={level!r}, format={form!r}))
log = logging.getLogger("bridge.example")
log.debug("details")
log.info("all is well")
keys = {{"gateway": "envoy.local", "source": "readings", "event": "source_failed"}}
log.warning("no answer", extra=keys)
try:
    raise ValueError("one\\ntwo")
except ValueError:
    log.exception("a fault")
logging.getLogger("httpx").info("not for any log")
"""


FROM_OUTSIDE = """
import logging
from bridge.commands.report import configure_log
from bridge.settings import LogSettings
configure_log(LogSettings(level={level!r}, format={form!r}))
logging.getLogger("bridge.example").info("from outside: %s", "a\\x1b[31m\\u202eb\\nWARNING c" + "x" * 3000)
"""


def said(
    tmp_path: Path, form: str = "text", level: str = "INFO", *, journal: bool = False, program: str = SAYS
) -> list[str]:
    """The log of a program that logs one event of each level."""
    file = tmp_path / "log"
    with file.open("wb") as stream:
        status = os.fstat(stream.fileno())
        place = f"{status.st_dev}:{status.st_ino}" if journal else "1:2"
        environment = {**os.environ, "JOURNAL_STREAM": place}
        command = [sys.executable, "-c", program.format(level=level, form=form)]
        subprocess.run(command, stderr=stream, env=environment, check=True)
    return file.read_text().splitlines()


def events(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_text_has_time_level_gateway_and_message(tmp_path: Path) -> None:
    first, second, third, *trace = said(tmp_path)
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(f"{time} INFO all is well", first)
    assert re.fullmatch(f"{time} WARNING envoy.local: no answer", second)
    assert re.fullmatch(f"{time} ERROR a fault", third)
    assert trace[0] == "Traceback (most recent call last):"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_text_from_outside_is_one_short_line_without_control_characters(form: str, tmp_path: Path) -> None:
    (line,) = said(tmp_path, form, program=FROM_OUTSIDE)
    assert re.search(r"from outside: a\[31mb WARNING cx+(\W|$)", line)
    assert 2_000 <= len(line) < 2_200


def test_json_is_one_object_a_line_tracebacks_included(tmp_path: Path) -> None:
    found = events(said(tmp_path, "json"))
    assert [event["level"] for event in found] == ["INFO", "WARNING", "ERROR"]
    keys = {"gateway": "envoy.local", "source": "readings", "event": "source_failed"}
    assert [{key: event[key] for key in keys if key in event} for event in found] == [{}, keys, {}]
    assert found[0]["message"] == "all is well"
    assert found[0]["logger"] == "bridge.example"
    assert found[2]["exception"].endswith("ValueError: one\ntwo")


@pytest.mark.parametrize(("level", "first"), [("DEBUG", "details"), ("WARNING", "no answer"), ("ERROR", "a fault")])
def test_the_level_is_the_least_severe_that_is_written(tmp_path: Path, level: str, first: str) -> None:
    assert events(said(tmp_path, "json", level))[0]["message"] == first


def test_the_journal_gets_priorities_and_no_time_of_ours(tmp_path: Path) -> None:
    lines = said(tmp_path, level="DEBUG", journal=True)
    assert lines[:4] == [
        "<7>DEBUG details",
        "<6>INFO all is well",
        "<4>WARNING envoy.local: no answer",
        "<3>ERROR a fault",
    ]
    assert all(line.startswith("<3>") for line in lines[3:]), "each line of a traceback is an entry of its own"
    assert len(lines) > 6


def test_the_journal_takes_json_too(tmp_path: Path) -> None:
    lines = said(tmp_path, "json", journal=True)
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>"]
    assert events([line[3:] for line in lines])[1]["gateway"] == "envoy.local"
