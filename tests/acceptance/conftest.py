"""The real Home Assistant, for tests that need it. In CI it is installed, and nothing is skipped."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from assistant import Owned
from install import Release

OPTION = "--install-home-assistant"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They may be left out: `-m 'not acceptance'`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.acceptance)


@pytest.fixture(scope="session")
def owned(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Release], Owned]:
    """A fresh installation of a release; the first time it takes a moment."""
    made: dict[Release, Owned] = {}

    def get(release: Release) -> Owned:
        if not (release.installed or os.environ.get("CI") or pytestconfig.getoption(OPTION)):
            pytest.skip(f"Home Assistant {release.version} is not installed yet: pytest {OPTION} does it (0.7 GB)")
        release.install()
        if release not in made:
            made[release] = Owned.make(release, tmp_path_factory.mktemp("owned") / "config")
        return made[release]

    return get
