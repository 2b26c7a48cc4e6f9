"""Holds for every test: no setting of this machine has an effect, and no warning goes unnoticed."""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from authority import Authority
from brokers import Mosquitto
from hypothesis import HealthCheck, settings
from running import HastyLoop

OWN_VARIABLES = ("BRIDGE_", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME")
GROUPED_FILES = {
    **dict.fromkeys(("test_systemd.py", "test_image.py", "test_package.py"), "machines"),
    **dict.fromkeys(("acceptance", "test_page.py"), "people"),
}
"""Files and folders of tests that need much of the machine, and the kind of program that they need."""
settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("search", settings.get_profile("unhurried"), derandomize=False)
settings.load_profile("unhurried")  # neither a busy machine nor chance makes a test fail
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="FOLDER", help="where tests/test_page.py leaves pictures of the page")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden with what is published now")
    parser.addoption("--install-home-assistant", action="store_true", help="in CI it is installed anyway")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "expects_log(*patterns): log records at WARNING or above that must come; any other one fails the test",
    )
    config.addinivalue_line("markers", "may_log(*patterns): such records may come as well, or not")
    config.addinivalue_line("markers", "shell(name): the shell whose completion a test tries")
    config.addinivalue_line("markers", "slow: only in the second command, `pytest -m slow`")
    config.addinivalue_line("markers", "acceptance: with a real Home Assistant (tests/acceptance)")
    config.addinivalue_line("markers", "hasty: in a loop that shortens idle waits (tests/running.py)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that start machines and large programs first, one of a kind at a time, for two cores."""
    for item in items:
        names = (item.path.name, item.path.parent.name)
        for group in {GROUPED_FILES[name] for name in names if name in GROUPED_FILES}:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"hasty": HastyLoop} if item.get_closest_marker("hasty") else {"usual": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove settings, secrets, proxies and a stray .env of this machine."""
    for name in os.environ:
        if name.upper().startswith(OWN_VARIABLES) or name.lower() in PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The certificate authority of the brokers."""
    return Authority.make(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


class Recorder(logging.Handler):
    """Keeps the log lines that a person should read."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture(autouse=True)
def warned(request: pytest.FixtureRequest) -> Iterator[Sequence[str]]:
    """The lines at WARNING or above so far. Those that no marker announced fail the test."""
    root, recorder = logging.getLogger(), Recorder()
    handlers, level = list(root.handlers), root.level
    root.addHandler(recorder)
    yield recorder.lines
    root.removeHandler(recorder)
    root.handlers[:] = handlers
    root.setLevel(level)
    expected, tolerated = _patterns(request, "expects_log"), _patterns(request, "may_log")
    surprises = [line for line in recorder.lines if not any(re.search(text, line) for text in expected + tolerated)]
    missed = [text for text in expected if not any(re.search(text, line) for line in recorder.lines)]
    assert not surprises, "logged, but not expected"
    assert not missed, "expected, but not logged"


def _patterns(request: pytest.FixtureRequest, marker: str) -> list[str]:
    return [text for found in request.node.iter_markers(marker) for text in found.args]
