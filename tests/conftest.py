"""What holds for every test: nothing of this machine gets in, and no warning goes unnoticed."""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from authority import Authority
from brokers import Mosquitto
from running import HastyLoop

OURS = ("BRIDGE_", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME")
LARGE = {
    **dict.fromkeys(("test_systemd.py", "test_image.py", "test_package.py"), "machines"),
    **dict.fromkeys(("acceptance", "test_page.py"), "people"),
}
"""Files and folders of tests, and what kind of weight they are."""
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
    config.addinivalue_line("markers", "acceptance: with a real Home Assistant (tests/acceptance)")
    config.addinivalue_line("markers", "hasty: in a loop that shortens idle waits (tests/running.py)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts machines and large programs comes first, one of a kind at a time: two cores bear no more."""
    for item in items:
        names = (item.path.name, item.path.parent.name)
        for group in {LARGE[name] for name in names if name in LARGE}:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"hasty": HastyLoop} if item.get_closest_marker("hasty") else {"usual": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings, secrets, proxies and a stray .env of this machine must not matter."""
    for name in os.environ:
        if name.upper().startswith(OURS) or name.lower() in PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whoever signs the brokers' certificates."""
    return Authority.make(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


class Recorder(logging.Handler):
    """Keeps what is worth a person's attention."""

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
    root.handlers[:], _ = handlers, root.setLevel(level)
    expected, tolerated = _patterns(request, "expects_log"), _patterns(request, "may_log")
    surprises = [line for line in recorder.lines if not any(re.search(text, line) for text in expected + tolerated)]
    missed = [text for text in expected if not any(re.search(text, line) for line in recorder.lines)]
    assert not surprises, "logged, but not expected"
    assert not missed, "expected, but not logged"


def _patterns(request: pytest.FixtureRequest, marker: str) -> list[str]:
    return [text for found in request.node.iter_markers(marker) for text in found.args]
