"""How the service gets a token (pasted, by account, or from the other address), keeps it, and handles refusals."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from houses import House, house
from running import running, until

from bridge.simulator.cloud import CHECK_PATH, CLOUD_PATHS
from bridge.simulator.gateway import INFO_PATH

pytestmark = pytest.mark.hasty


async def up(home: House) -> None:
    """Wait until the gateway is read and its values are published."""
    await home.settled()
    await until(lambda: home.topic("state") == "online" and set(home.availability.values()) == {"online"})
    assert home.topic("gateway/problem") == "none"


def asked(home: House) -> list[int]:
    """The number of requests to the cloud: for a login, for a token, and at the second address."""
    return [home.simulator.count(path) for path in CLOUD_PATHS]


async def test_an_account_is_enough(tmp_path: Path) -> None:
    async with house(tmp_path) as home, running(home.settings(gateway=home.account)):
        await up(home)
        assert asked(home) == [1, 1, 0]
        assert home.topic("gateway/token_role") == "owner"
        assert (home.topic("gateway/token_expires") or "") > "2026"


async def test_the_other_road_is_taken_where_the_first_is_closed(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.simulator.faults.add("tokens", "html")
        async with running(home.settings(gateway=home.account)):
            await up(home)
            assert asked(home) == [1, 1, 1]


async def test_a_token_outlives_the_process(tmp_path: Path) -> None:
    """The token is in a file that only its owner may read. The next run does not ask the cloud."""
    async with house(tmp_path) as home:
        async with running(home.settings(gateway=home.account)):
            await up(home)
        file = tmp_path / "state" / f"gateway-{home.serial}.json"
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        async with running(home.settings(gateway=home.account)):
            await until(lambda: home.seen["enphase/bridge/state"] == "online")
            await up(home)
        assert asked(home) == [1, 1, 0]


async def test_a_gateway_that_wants_its_token_checked_first(tmp_path: Path) -> None:
    """The gateway refuses the Bearer header until `/auth/check_jwt` has set a session."""
    async with house(tmp_path) as home:
        home.simulator.gateway.guard.needs_check = True
        async with running(home.settings()):
            await up(home)
            assert home.simulator.count(CHECK_PATH) == 1


async def test_a_refused_token_is_renewed_once(tmp_path: Path) -> None:
    async with house(tmp_path) as home, running(home.settings(gateway=home.account)):
        await up(home)
        home.simulator.revoke_tokens()
        await until(lambda: asked(home) == [2, 2, 0])
        await up(home)
        assert asked(home) == [2, 2, 0]


@pytest.mark.expects_log("WARNING the gateway refuses the token: .*BRIDGE_GATEWAY__TOKEN")
async def test_a_wrong_token_is_told_once_and_asked_for_seldom(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home:
        settings = home.settings()
        home.simulator.revoke_tokens()
        async with running(settings):
            await until(lambda: "refuses the token" in (home.topic("gateway/problem") or ""))
            await until(lambda: home.topic("state") == "offline")
            assert home.topic("gateway/firmware") == home.simulator.home.firmware
            assert home.seen["enphase/bridge/state"] == "online"
            held = home.simulator.count()
            await until(lambda: home.simulator.count() > held)
            assert home.simulator.count() < 3 * held
            assert held < 8
            assert len(warned) == 1
            assert {seen.path for seen in home.simulator.requests if seen.status == 200} == {INFO_PATH}


@pytest.mark.expects_log("WARNING .*the token is for gateway 122399999999, this one is 122301003111")
async def test_another_gateways_token_is_not_even_tried(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home:
        token = home.simulator.token(aud="122399999999")
        async with running(home.settings(gateway={"token": token})):
            await until(lambda: "122399999999" in (home.topic("gateway/problem") or ""))
            assert len(warned) == 1
            assert {seen.path for seen in home.simulator.requests} == {INFO_PATH}


@pytest.mark.expects_log("WARNING .*refuses the password: correct BRIDGE_GATEWAY__USERNAME")
async def test_a_wrong_password_is_tried_once(tmp_path: Path, warned: Sequence[str]) -> None:
    """More attempts would lock the account."""
    async with house(tmp_path) as home:
        account = home.account | {"password": "wrong"}
        async with running(home.settings(gateway=account)):
            await until(lambda: "refuses the password" in (home.topic("gateway/problem") or ""))
            looks = home.simulator.count(INFO_PATH)
            await until(lambda: home.simulator.count(INFO_PATH) > looks)
            assert asked(home) == [1, 0, 0]
            assert len(warned) == 1


@pytest.mark.expects_log("second factor")
async def test_a_second_factor_needs_a_person(tmp_path: Path, warned: Sequence[str]) -> None:
    async with house(tmp_path) as home:
        home.simulator.faults.add("login", "mfa")
        async with running(home.settings(gateway=home.account)):
            await until(lambda: "second factor" in (home.topic("gateway/problem") or ""))
            assert home.topic("gateway/firmware") == home.simulator.home.firmware
            assert asked(home) == [1, 0, 0]
            assert len(warned) == 1


@pytest.mark.expects_log("cloud is down")
async def test_the_old_token_serves_while_the_cloud_is_down(tmp_path: Path) -> None:
    """A tenth of the token's life is left, so it should be renewed. There is no problem until it expires."""
    async with house(tmp_path) as home:
        home.simulator.faults.add("cloud", "503")
        now = int(home.clock())
        nearly = home.simulator.token(exp=now + 3600, iat=now - 86_400)
        async with running(home.settings(gateway={**home.account, "token": nearly})):
            await home.settled()
            await until(lambda: home.topic("state") == "online")
            await until(lambda: "the token serves until" in (home.topic("gateway/problem") or ""))
            assert home.topic("meter/production/power") is not None
