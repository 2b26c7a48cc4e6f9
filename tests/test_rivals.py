"""Two bridges and one gateway: who polls it, and what the other one does meanwhile."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from houses import House, house, publish
from running import running, until

from bridge.service.rivals import Rivals
from bridge.topics import Names

OURS, EARLIER, LATER = "2026-11-25T08:00:00+00:00", "2026-11-25T07:59:59.999000+00:00", "2026-11-25T08:00:01+00:00"
GATEWAY = "122125067699"


class Heard:
    """What a bridge of name `us` makes of others' messages."""

    def __init__(self, name: str | None = "us") -> None:
        self.repeated = 0
        self.rivals = Rivals(Names("solar", name), OURS, self._repeat)

    def _repeat(self) -> None:
        self.repeated += 1

    def info(self, name: str, started: str, *gateways: str, retained: bool = True) -> None:
        body = {"version": "9", "started": started, "gateways": gateways}
        self.rivals.hear(f"solar/bridge{name}/info", json.dumps(body).encode(), retained=retained)

    def state(self, name: str, text: str, *, retained: bool = True) -> None:
        self.rivals.hear(f"solar/bridge{name}/state", text.encode(), retained=retained)


async def test_who_is_there_already_goes_first() -> None:
    heard = Heard()
    heard.info("/them", EARLIER, "1", GATEWAY)
    assert heard.rivals.ahead(GATEWAY) is None  # not known to be there
    heard.state("/them", "online")
    assert heard.rivals.ahead(GATEWAY) == "solar/bridge/them"
    assert heard.rivals.ahead("2") is None
    assert heard.rivals.ahead(None) is None
    heard.state("/them", "offline")
    assert heard.rivals.ahead(GATEWAY) is None


@pytest.mark.parametrize(
    ("name", "started", "ahead"),
    [("/a", OURS, True), ("/z", OURS, False), ("", OURS, True), ("/a", LATER, False), ("/z", EARLIER, True)],
)
async def test_one_of_two_is_first_and_never_both(name: str, started: str, ahead: bool) -> None:
    heard = Heard()
    heard.state(name, "online")
    heard.info(name, started, GATEWAY)
    assert (heard.rivals.ahead(GATEWAY) == f"solar/bridge{name}") is ahead


async def test_a_gateway_that_is_given_up_is_free() -> None:
    heard = Heard()
    heard.state("/a", "online")
    heard.info("/a", EARLIER, GATEWAY)
    change = asyncio.ensure_future(heard.rivals.change())
    await asyncio.sleep(0)
    heard.info("/a", EARLIER, GATEWAY)
    await asyncio.sleep(0)
    assert not change.done()
    heard.info("/a", EARLIER)
    await change
    assert heard.rivals.ahead(GATEWAY) is None


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[]", b"{}", b'{"started": "2000", "gateways": 7}', b"[" * 100_000, b"null"]
)
async def test_what_is_no_bridge_counts_for_nothing(payload: bytes) -> None:
    heard = Heard()
    heard.state("/a", "online")
    heard.rivals.hear("solar/bridge/a/info", payload, retained=True)
    heard.info("s/a", EARLIER, GATEWAY)
    heard.rivals.hear("other/bridge/a/info", payload, retained=True)
    assert heard.rivals.ahead(GATEWAY) is None


async def test_an_earlier_run_of_ours_is_no_rival() -> None:
    heard = Heard()
    heard.state("/us", "online")
    heard.info("/us", EARLIER, GATEWAY)
    assert heard.rivals.ahead(GATEWAY) is None
    assert heard.repeated == 0
    waiting = asyncio.ensure_future(heard.rivals.known())
    await asyncio.sleep(0)
    assert not waiting.done()
    heard.info("/us", OURS, retained=False)
    await waiting
    assert heard.repeated == 0


async def test_a_namesake_that_was_there_already_goes_first() -> None:
    heard = Heard()
    heard.info("/us", EARLIER, GATEWAY, retained=False)
    assert heard.rivals.ahead(GATEWAY) == "solar/bridge/us"
    assert heard.repeated == 0
    heard.state("/us", "offline", retained=False)
    assert heard.rivals.ahead(GATEWAY) is None
    assert heard.repeated == 1  # it said so of us, too


async def test_a_later_namesake_is_told_that_we_are_here() -> None:
    heard = Heard()
    heard.info("/us", LATER, GATEWAY, retained=False)
    assert heard.rivals.ahead(GATEWAY) is None
    assert heard.repeated == 1


# The real thing


def info(home: House, name: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.seen.get(f"enphase/bridge{name}/info", "{}"))
    return found


@pytest.mark.expects_log(r"gateway \d+ is polled by another bridge already \(enphase/bridge/one\): standing by")
@pytest.mark.parametrize("known", [True, False])
async def test_the_later_one_stands_by_and_takes_over(known: bool, tmp_path: Path) -> None:
    async with house(tmp_path, "no-cts") as home, AsyncExitStack() as first:
        gateway = {"token": home.simulator.token()} | ({"serial": home.serial} if known else {})
        one = home.settings(gateway=gateway, instance="one")
        two = home.settings(gateway=gateway, instance="two").model_copy(update={"state_dir": tmp_path / "two"})
        await first.enter_async_context(running(one))
        await until(lambda: set(home.availability.values()) == {"online"})
        before = len(home.watcher.seen)
        own = {topic for topic in home.seen if topic.startswith(f"enphase/{home.serial}/")}
        async with running(two):
            await until(lambda: "standing_by" in info(home, "/two"))
            assert info(home, "/two")["standing_by"] == {home.serial: "enphase/bridge/one"}
            assert info(home, "/two")["gateways"] == []
            asked = home.simulator.count("/info")
            seen = len(home.watcher.seen)
            await until(lambda: len(home.watcher.seen) > seen)
            assert home.simulator.count("/info") == asked
            assert info(home, "/one")["gateways"] == [home.serial]
            assert not [m for m in home.watcher.seen[before:] if m.topic in own and m.payload == "offline"]
            await first.aclose()
            await until(lambda: home.seen["enphase/bridge/one/state"] == "offline")
            await until(lambda: info(home, "/two")["gateways"] == [home.serial])
            assert "standing_by" not in info(home, "/two")
            await until(lambda: set(home.availability.values()) == {"online"})
            assert home.topic("state") == "online"


@pytest.mark.expects_log(r"gateway \d+ is polled by another bridge already \(enphase/bridge\): standing by")
async def test_two_bridges_that_nobody_has_named(tmp_path: Path) -> None:
    async with house(tmp_path, "no-cts") as home, AsyncExitStack() as second:
        one = home.settings()
        two = one.model_copy(update={"state_dir": tmp_path / "two"})
        async with running(one):
            await until(lambda: set(home.availability.values()) == {"online"})
            started = info(home)["started"]
            await second.enter_async_context(running(two))
            await until(lambda: any("standing_by" in message.payload for message in home.watcher.seen))
            await until(lambda: info(home)["started"] == started)
            await second.aclose()
            await until(lambda: any(m.payload == "offline" for m in home.watcher.seen if "bridge/state" in m.topic))
            await until(lambda: home.seen["enphase/bridge/state"] == "online")
            assert info(home)["gateways"] == [home.serial]
            assert home.topic("state") == "online"


@pytest.mark.hasty
@pytest.mark.expects_log(r"gateway \d+ is polled by another bridge already \(enphase/bridge/ghost\): standing by")
async def test_who_stands_by_repeats_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, "no-cts") as home, running(home.settings(mqtt={"heartbeat": 10})):
        await until(lambda: set(home.availability.values()) == {"online"})
        ghost = {"version": "9", "started": "2000-01-01T00:00:00+00:00", "gateways": [home.serial]}
        await publish(home.broker, "enphase/bridge/ghost/state", "online", "-r")
        await publish(home.broker, "enphase/bridge/ghost/info", json.dumps(ghost), "-r")
        await until(lambda: "standing_by" in info(home))
        said = len(home.watcher.seen)

        def later() -> list[str]:
            return [message.topic for message in home.watcher.seen[said:]]

        await until(lambda: later().count("enphase/bridge/state") >= 2)
        assert not [topic for topic in later() if home.serial in topic]
        await publish(home.broker, "enphase/bridge/ghost/state", "offline", "-r")
        await until(lambda: f"enphase/{home.serial}/site/solar/power" in later())
        assert info(home)["gateways"] == [home.serial]
