"""Disks that are full or read-only, damaged state, a clock that is not set: nothing stops, nothing is lost."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from houses import House, house
from machines import mounted, required
from running import running, until

from bridge import counters
from bridge.counters import rules
from bridge.counters.state import CounterState
from bridge.model import DAY_S
from bridge.simulator.cloud import CLOUD_PATHS
from bridge.state import IdentityState
from bridge.store import Store

pytestmark = pytest.mark.hasty
CLOCK_IN_1970 = 90.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A state folder on a small disk of its own."""
    required("mount")
    place = tmp_path / "state"
    place.mkdir()
    with mounted("tmpfs", place, "size=4m"):
        yield place


def fill(disk: Path) -> Path:
    """Fill the disk to the last byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))
    assert shutil.disk_usage(disk).free == 0
    return ballast


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def kept_token(home: House) -> str | None:
    state = Store(home.folder / "state").load(home.serial, IdentityState)
    return state.token.get_secret_value() if state.token else None


REQUESTS_PER_LOGIN = 2
"""The number of requests for one token."""


def logins(home: House) -> int:
    return sum(home.simulator.count(path) for path in CLOUD_PATHS)


@pytest.mark.expects_log("can't be written .Read-only file system.")
def test_a_state_that_needs_no_write_says_nothing_of_the_disk(disk: Path, warned: list[str]) -> None:
    """It counted as a write, and so the disk as good again: each further change was warned of."""
    store, saved = Store(disk), IdentityState(firmware="D8")
    store.save("1", saved)
    remount(disk, "ro")
    try:
        for _ in range(3):
            assert not store.save("1", saved.changed(firmware="D9"))
            assert store.save("1", saved)
    finally:
        remount(disk, "rw")
    assert len(warned) == 1


@pytest.mark.expects_log("state has lost its files: writing them again")
@pytest.mark.parametrize("is_folder_gone", [True, False])
async def test_a_state_folder_that_was_emptied_is_written_again(is_folder_gone: bool, tmp_path: Path) -> None:
    """Another volume is mounted there, or somebody cleaned up: only what changed later was written, and the pinned
    key and the token from the cloud were missing at the next start.
    """
    async with house(tmp_path, "no-cts") as home:
        state = tmp_path / "state"
        async with running(home.settings(gateway=home.account)):
            await home.settled()
            files, token = {file.name for file in state.iterdir()}, kept_token(home)
            assert token is not None
            shutil.rmtree(state)
            if not is_folder_gone:
                state.mkdir()
        assert {file.name for file in state.iterdir()} >= files
        assert kept_token(home) == token


@pytest.mark.expects_log("can't be written .No space left on device.")
async def test_a_full_disk(disk: Path, tmp_path: Path, warned: list[str]) -> None:
    """The token from the account is used from memory, and is written when there is room again."""
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
    """A worn memory card becomes read-only. The state that was saved before is still used."""
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
        newer = json.dumps({**json.loads(text), "version": 3})
        file.write_text(newer if damage == "newer" else text[: text.index("key_pin")])
        async with running(config):
            await until(lambda: home.topic("state") == "online")
        assert (kept_token(home), logins(home)) == (token, asked)
    assert len(warned) == 1


# A state file that is damaged, or right and impossible


def counted(home: House) -> dict[str, float]:
    """All lifetime counters and counts of today that the broker has."""
    prefix = f"enphase/{home.serial}/"
    found = {topic.removeprefix(prefix): text for topic, text in home.seen.items() if topic.startswith(prefix)}
    names = ("energy_lifetime", "energy_delivered", "energy_received", "energy_imported", "energy_exported")
    return {
        topic: float(text)
        for topic, text in found.items()
        if topic.endswith((*names, "energy_today")) and text not in {"", "None"}
    }


async def asked_again(home: House) -> None:
    """Wait until each source has answered anew, and is online."""
    answered = home.simulator.count()
    await until(lambda: home.topic("state") == "online" and home.simulator.count() > answered + 60)
    assert set(home.availability.values()) == {"online"}


def with_values(content: bytes, field: str, change: Callable[[Any], Any]) -> bytes:
    """The content of a state file with another value of a field, and the digest that belongs to it."""
    given = json.loads(content)
    given[field] = change(given[field])
    text = json.dumps(given[field], separators=(",", ":"))
    given["digests"][field] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return json.dumps(given).encode()


def everywhere(value: Any, wanted: str, put: float) -> Any:
    """A copy in which each value of this name is `put`; in a list, the first one."""
    if isinstance(value, dict):
        return {
            key: ([put, *item[1:]] if isinstance(item, list) else put)
            if key in wanted.split() and item is not None
            else everywhere(item, wanted, put)
            for key, item in value.items()
        }
    return value


@pytest.mark.may_log("can't be understood")
async def test_one_flipped_bit_costs_only_what_it_is_in(tmp_path: Path) -> None:
    """Over one restart after the other, with a bit flipped at another place of the counters' file each time."""
    async with house(tmp_path) as home:
        config = home.settings(gateway=home.account)
        async with running(config):
            await home.settled()
            await until(lambda: kept_token(home) is not None)
        before, file = counted(home), tmp_path / "state" / f"gateway-{home.serial}_counters.json"
        assert len(before) > 20
        content = file.read_bytes()
        for place in range(40, len(content), len(content) // 9):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
            async with running(config):
                await asked_again(home)
            now = counted(home)
            assert now.keys() == before.keys()
            assert {
                topic: (before[topic], now[topic]) for topic in before if abs(now[topic] - before[topic]) > 1
            } == {}


@pytest.mark.parametrize("impossible", [1e12, 1e15, -1e9])
async def test_an_impossible_time_costs_only_itself(tmp_path: Path, impossible: float) -> None:
    """Each time in the file, in a file whose digests are right."""
    times = "changed_at seen_at since undo_at at day_time last_report missing_since imported exported home solar"
    async with house(tmp_path) as home:
        config = home.settings()
        async with running(config):
            await home.settled()
        before, file = counted(home), tmp_path / "state" / f"gateway-{home.serial}_counters.json"
        content = file.read_bytes()
        assert len(before) > 20
        for field in ("counters", "site", "days", "day_time"):
            if field in json.loads(content)["digests"]:
                content = with_values(
                    content, field, lambda value: everywhere({"x": value, "day_time": 0}, times, impossible)["x"]
                )
        file.write_bytes(content)
        async with running(config):
            await asked_again(home)
        now = counted(home)
        assert {topic: (before[topic], now.get(topic)) for topic in before if now.get(topic) != before[topic]} == {}


@pytest.mark.expects_log("can't be understood .*, starting without its key_pin")
async def test_a_flipped_pin_costs_the_pin(tmp_path: Path) -> None:
    """The gateway is trusted anew, as at the first time, and its token stays."""
    async with house(tmp_path) as home:
        config = home.settings(gateway=home.account)
        async with running(config):
            await home.settled()
            await until(lambda: kept_token(home) is not None)
        token, asked, file = kept_token(home), logins(home), tmp_path / "state" / f"gateway-{home.serial}.json"
        pin = Store(tmp_path / "state").load(home.serial, IdentityState).key_pin or ""
        file.write_text(file.read_text().replace(pin, f"{'1' if pin[0] == '0' else '0'}{pin[1:]}"))
        async with running(config):
            await asked_again(home)
        assert (kept_token(home), logins(home)) == (token, asked)
        assert Store(tmp_path / "state").load(home.serial, IdentityState).key_pin == pin


def no_shortcut(*_given: object, **_named: object) -> None:
    """Leave each reading of a counter to the rules."""


def failing(is_reason: Callable[[CounterState], bool]) -> Callable[..., Any]:
    """The counters' rules, which fail for some states, as a mistake in them would."""

    def apply(state: CounterState, *others: Any) -> Any:
        if is_reason(state):
            raise ZeroDivisionError("a mistake")
        return rules.apply(state, *others)

    return apply


@pytest.mark.expects_log(
    "fault while polling .*; starting again", "the same fault in counting came twice: starting"
)
async def test_a_fault_of_ours_comes_twice_at_most(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter in the file makes the counting fail. With fresh counters it works, and no energy is lost."""
    async with house(tmp_path) as home:
        config = home.settings()
        async with running(config):
            await home.settled()
        before, file = counted(home), tmp_path / "state" / f"gateway-{home.serial}_counters.json"
        assert len(before) > 20
        poison = 123.456
        file.write_bytes(
            with_values(
                file.read_bytes(),
                "counters",
                lambda value: {key: {**its, "peak": poison} for key, its in value.items()},
            )
        )
        monkeypatch.setattr(counters, "usual", no_shortcut)
        monkeypatch.setattr(counters, "apply", failing(lambda state: state.peak == poison))
        async with running(config):
            await asked_again(home)
        assert counted(home) == before
    assert len([line for line in warned if "fault while polling" in line]) == 2
    assert [line for line in warned if "fresh counters; those before are kept as" in line] != []


@pytest.mark.expects_log(
    "fault while polling .*; starting again", "the same fault in counting came twice", "a fault of the bridge, Zero"
)
@pytest.mark.may_log(".")
async def test_a_fault_of_ours_that_lasts_costs_its_answers(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh counters do not help; the gateway is polled all the same, without the source whose counters fail."""
    async with house(tmp_path) as home:
        monkeypatch.setattr(counters, "usual", no_shortcut)
        monkeypatch.setattr(counters, "apply", failing(lambda state: state.interval == 0))
        async with running(home.settings()):
            await until(lambda: home.topic("availability/livedata") == "online")
            await until(lambda: any("a fault of the bridge, ZeroDivisionError" in line for line in warned))
            assert home.topic("state") == "online"
            assert home.topic("live/grid/power") is not None
    assert len([line for line in warned if "fault while polling" in line]) == 2


@pytest.mark.expects_log("this machine's clock says 1970-01-01T00:01:30.00:00: until it is set, times are wrong")
async def test_a_clock_that_starts_in_1970(tmp_path: Path, warned: list[str]) -> None:
    """Values are published. No new token is requested, neither then nor when the clock is set."""
    clock = [CLOCK_IN_1970]
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
    """No token is lost, the cloud gets few requests and no counter decreases. With the right time, all is as
    before.
    """
    async with house(tmp_path) as home:
        wrong_by = [0.0]
        async with running(home.settings(gateway=home.account), now=lambda: home.clock() + wrong_by[0]):
            await home.settled()
            await until(lambda: kept_token(home) is not None)
            token, asked = kept_token(home), logins(home)
            lifetime = "site/solar/energy_lifetime"
            before = home.topic(lifetime)

            wrong_by[0] = -DAY_S
            answered = home.simulator.count()
            await until(lambda: home.simulator.count() > answered + 100)
            assert set(home.availability.values()) == {"online"}
            assert (home.topic(lifetime), kept_token(home), logins(home)) == (before, token, asked)

            wrong_by[0] = 400 * DAY_S
            await until(lambda: "the token expired on" in (home.topic("gateway/problem") or ""))
            assert home.topic(lifetime) == before
            wrong_by[0] = 0.0
            await until(lambda: set(home.availability.values()) == {"online"})
            await until(lambda: home.topic("gateway/problem") == "none")
            assert home.topic(lifetime) == before
            assert kept_token(home) is not None
        assert logins(home) - asked <= 2 * REQUESTS_PER_LOGIN
