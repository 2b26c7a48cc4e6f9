"""A gateway that shows another TLS key: an update can bring one, and so can a stranger at its address."""

import asyncio
import ssl
import time
from pathlib import Path

import pytest
from houses import House, house
from running import running, settled, until

from bridge.gateway.transport import fingerprint
from bridge.model import HOUR_S, Facts
from bridge.simulator.gateway import INFO_PATH
from bridge.simulator.serve import self_signed
from bridge.state import IdentityState
from bridge.store import Store

LONG_S = 300.0
"""The bridge pauses for up to a quarter of an hour, which takes 45 s here, or more on a busy machine."""

pytestmark = pytest.mark.hasty


def all_are(home: House, text: str) -> bool:
    """Return whether the gateway and all of its sources have this state."""
    return {home.topic("state"), *home.availability.values()} == {text}


@pytest.mark.parametrize(
    ("firmware", "before", "is_newer"),
    [
        ("D8.3.5170", "D8.3.5169", True),
        ("D8.3.5169", "D8.3.5169", False),
        ("D8.3.5168", "D8.3.5169", False),
        ("D8.3.10000", "D8.3.9999", True),
        ("D8.10.1", "D8.9.9999", True),
        ("R5.0.49", "R4.10.35 (6ed292)", True),
        ("R4.10.36", "R4.10.35 (6ed292)", True),
        ("D7.6.175", "D8.3.5169", False),
        ("", "D8.3.5169", False),
        ("new", "D8.3.5169", False),
        ("D8.3.5169", None, False),
        ("D8.3.5169", "", False),
    ],
)
def test_which_release_is_newer(firmware: str, before: str | None, *, is_newer: bool) -> None:
    assert Facts("1", firmware).is_newer(before) is is_newer


@pytest.mark.may_log("no connection")
@pytest.mark.expects_log("TLS key has changed", "TLS key changed with a newer firmware and was pinned anew")
async def test_an_update_that_brings_a_new_key_is_followed(tmp_path: Path) -> None:
    """A bridge that nobody attends must survive a nightly update. Its owner hears of it until it is confirmed."""
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"), seconds=LONG_S)
        await home.unplug()
        home.simulator.become(firmware="D8.3.9999")
        await home.plug(self_signed(home.serial))
        await until(lambda: "TLS key has changed" in (home.topic("gateway/problem") or ""), seconds=LONG_S)
        changed = asyncio.get_running_loop().time()
        await until(lambda: home.topic("state") == "offline", seconds=LONG_S)
        await until(lambda: all_are(home, "online"), seconds=LONG_S)
        assert asyncio.get_running_loop().time() - changed > 110
        assert home.topic("gateway/firmware") == "D8.3.9999"
        await until(lambda: "pinned anew" in (home.topic("gateway/problem") or ""), seconds=LONG_S)
        command = Store(home.settings().state_dir)  # as another process, which `check --accept-key` is
        state = command.load(home.serial, IdentityState)
        assert command.save(home.serial, state.changed(key_unconfirmed=False))
        await until(lambda: home.topic("gateway/problem") == "none", seconds=LONG_S)


@pytest.mark.may_log("no connection")
@pytest.mark.expects_log("TLS key has changed")
@pytest.mark.parametrize(
    ("tls", "firmware", "pinned_hours_ago"),
    [
        ("pin", "D8.3.5166", None),
        ("pin", "D8.3.5167", None),
        ("pin", "", None),
        ("strict", "D8.3.9999", None),
        ("pin", "D8.3.9999", 23),
    ],
)
async def test_a_new_key_that_is_not_trusted(
    tls: str, firmware: str, pinned_hours_ago: int | None, tmp_path: Path
) -> None:
    """An older or the same release proves nothing; one new key a day is enough; `strict` trusts none."""
    async with house(tmp_path) as home:
        settings = home.settings(gateway={"token": home.simulator.token(), "tls": tls})
        async with running(settings):
            await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"), seconds=LONG_S)
        store = Store(settings.state_dir)
        at = None if pinned_hours_ago is None else time.time() - pinned_hours_ago * HOUR_S
        store.save(home.serial, store.load(home.serial, IdentityState).changed(key_pinned_anew=at))
        await home.unplug()
        home.simulator.become(firmware=firmware)
        await home.plug(self_signed(home.serial))
        before = home.simulator.count()
        async with running(settings):
            await asyncio.sleep(420)  # the gateway is looked at four times, the last time after 210 s
            assert "TLS key has changed" in (home.topic("gateway/problem") or "")
            assert home.topic("state") == "offline"
        assert {seen.path for seen in list(home.simulator.requests)[before:]} <= {INFO_PATH}


@pytest.mark.may_log("no connection")
@pytest.mark.expects_log("TLS key has changed")
async def test_a_gateway_that_comes_back_with_its_old_key_begins_the_two_minutes_anew(tmp_path: Path) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"), seconds=LONG_S)
        own, stranger = home.certificate, self_signed(home.serial)
        home.simulator.become(firmware="D8.3.9999")
        for _ in range(3):
            await home.unplug()
            await home.plug(stranger)
            await until(lambda: "TLS key has changed" in (home.topic("gateway/problem") or ""), seconds=LONG_S)
            await asyncio.sleep(60)
            await home.unplug()
            await home.plug(own)
            await until(lambda: home.topic("gateway/problem") == "none", seconds=LONG_S)
        assert Store(home.settings().state_dir).load(home.serial, IdentityState).key_pinned_anew is None


@pytest.mark.may_log("no connection")
@pytest.mark.expects_log("TLS key has changed")
async def test_a_key_that_the_owner_accepts_is_taken_over_without_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path) as home, running(home.settings()):
        await until(lambda: settled(home.watcher, home.serial) and all_are(home, "online"), seconds=LONG_S)
        await home.unplug()
        new = self_signed(home.serial)
        await home.plug(new)
        await until(lambda: "TLS key has changed" in (home.topic("gateway/problem") or ""), seconds=LONG_S)
        key = fingerprint(ssl.PEM_cert_to_DER_cert(new[0].decode()))
        command = Store(home.settings().state_dir)
        command.save(home.serial, command.load(home.serial, IdentityState).changed(key_pin=key))
        await until(lambda: all_are(home, "online"), seconds=LONG_S)
        await until(lambda: home.topic("gateway/problem") == "none", seconds=LONG_S)
