"""Disks that are full or read-only, damaged state, a clock that is not set: nothing stops, nothing is lost."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from houses import House, house
from machines import mounted, required
from running import running, until

from bridge.store import Store

pytestmark = pytest.mark.hasty
NINETEEN_SEVENTY = 90.0
DAY = 86_400.0
CLOUD = ("/login/login.json", "/tokens", "/entrez-auth-token")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The state folder, as a small disk of its own."""
    required("mount")
    place = tmp_path / "state"
    place.mkdir()
    with mounted("tmpfs", place, "size=4m"):
        yield place


def fill(disk: Path) -> Path:
    """To the last byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))
    assert shutil.disk_usage(disk).free == 0
    return ballast


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def kept_token(home: House) -> str | None:
    state = Store(home.folder / "state").load(home.serial)
    return state.token.get_secret_value() if state.token else None


LOGIN = 2
"""Requests that it takes to get one token."""


def logins(home: House) -> int:
    return sum(home.simulator.count(path) for path in CLOUD)


@pytest.mark.expects_log("can't be written .No space left on device.")
async def test_a_full_disk(disk: Path, tmp_path: Path, warned: list[str]) -> None:
    """The token that the account brought serves from memory, and is written once there is room."""
    ballast = fill(disk)
    async with house(tmp_path) as home, running(home.settings(gateway=home.account)):
        await home.settled()
        await until(lambda: set(home.availability.values()) == {"online"})
        assert kept_token(home) is None
        assert os.listdir(disk) == ["ballast"]  # noqa: PTH208 - Path's would block the loop, says ruff
        ballast.unlink()
        await until(lambda: kept_token(home) is not None)
    assert len(warned) == 1


@pytest.mark.expects_log("can't be written .Read-only file system.")
async def test_a_disk_that_becomes_read_only(disk: Path, tmp_path: Path, warned: list[str]) -> None:
    """A worn memory card does that. What was kept before still serves."""
    async with house(tmp_path) as home:
        config = home.settings(gateway=home.account)
        async with running(config):
            await home.settled()
            await until(lambda: kept_token(home) is not None)
        token, asked = kept_token(home), logins(home)
        remount(disk, "ro")
        try:
            async with running(config):
                await until(lambda: home.topic("state") == "online")
            assert (kept_token(home), logins(home)) == (token, asked)
        finally:
            remount(disk, "rw")
    assert len(warned) == 1


@pytest.mark.parametrize("damage", ["newer", "torn"])
@pytest.mark.expects_log(r"gateway-\d+.json can't be understood .*: kept as .*, starting with its token alone")
async def test_damaged_state_keeps_its_token(tmp_path: Path, warned: list[str], damage: str) -> None:
    async with house(tmp_path) as home:
        config = home.settings(gateway=home.account)
        async with running(config):
            await home.settled()
            await until(lambda: kept_token(home) is not None)
        file = tmp_path / "state" / f"gateway-{home.serial}.json"
        token, asked, text = kept_token(home), logins(home), file.read_text()
        newer = json.dumps({**json.loads(text), "version": 2})
        file.write_text(newer if damage == "newer" else text[: text.index("key_pin")])
        async with running(config):
            await until(lambda: home.topic("state") == "online")
        assert (kept_token(home), logins(home)) == (token, asked)
    assert len(warned) == 1


@pytest.mark.expects_log("this machine's clock says 1970-01-01T00:01:30.00:00: until it is set, times are wrong")
async def test_a_clock_that_starts_in_1970(tmp_path: Path, warned: list[str]) -> None:
    """Values are published, no token is asked for anew, neither then nor when the clock is set."""
    clock = [NINETEEN_SEVENTY]
    async with house(tmp_path) as home:
        config = home.settings(gateway=home.account)
        async with running(config):
            await home.settled()
            await until(lambda: kept_token(home) is not None)
        token, asked = kept_token(home), logins(home)
        lifetime = "site/solar/energy_lifetime"
        before = home.topic(lifetime)
        async with running(config, now=lambda: clock[0]):
            await until(lambda: set(home.availability.values()) == {"online"})
            clock[0] = home.clock()
            answered = home.simulator.count()
            await until(lambda: home.simulator.count() > answered + 10)
            assert set(home.availability.values()) == {"online"}
            assert home.topic(lifetime) == before
        assert (kept_token(home), logins(home)) == (token, asked)
    assert len(warned) == 1


@pytest.mark.may_log("token")
async def test_a_clock_that_leaps_back_a_day_and_ahead_a_year(tmp_path: Path) -> None:
    """No token is lost, the cloud is hardly asked, no counter falls, and once it is right all is as before."""
    async with house(tmp_path) as home:
        wrong_by = [0.0]
        async with running(home.settings(gateway=home.account), now=lambda: home.clock() + wrong_by[0]):
            await home.settled()
            await until(lambda: kept_token(home) is not None)
            token, asked = kept_token(home), logins(home)
            lifetime = "site/solar/energy_lifetime"
            before = home.topic(lifetime)

            wrong_by[0] = -DAY
            answered = home.simulator.count()
            await until(lambda: home.simulator.count() > answered + 100)
            assert set(home.availability.values()) == {"online"}
            assert (home.topic(lifetime), kept_token(home), logins(home)) == (before, token, asked)

            wrong_by[0] = 400 * DAY
            await until(lambda: "the token expired on" in (home.topic("gateway/problem") or ""))
            assert home.topic(lifetime) == before
            wrong_by[0] = 0.0
            await until(lambda: set(home.availability.values()) == {"online"})
            await until(lambda: home.topic("gateway/problem") == "none")
            assert home.topic(lifetime) == before
            assert kept_token(home) is not None
        assert logins(home) - asked <= 2 * LOGIN
