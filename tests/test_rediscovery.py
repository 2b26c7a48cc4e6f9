"""A gateway with a new address is found again by its announcement over real mDNS."""

import logging
from pathlib import Path

import pytest
from houses import house
from nearby import LOOPBACK, alone, announcing
from running import running, until
from test_web import going

from bridge.gateway.mdns import Search
from bridge.service.bridge import Bridge
from bridge.service.identity import Rediscovery
from bridge.settings import GatewaySettings
from bridge.simulator import Simulator
from bridge.simulator.serve import self_signed, serve

__all__ = ["alone"]
pytestmark = [pytest.mark.hasty, pytest.mark.usefixtures("alone")]


def nearby() -> Search:
    """A search on the loopback interface: the loop's time runs fast, the network's does not."""
    return Search((LOOPBACK,), listen=60.0)


@pytest.mark.expects_log("no connection to the gateway", "the gateway can't be read")
async def test_a_gateway_with_a_new_address_is_found_by_its_serial_number(tmp_path: Path) -> None:
    async with house(tmp_path) as home, going((bridge := Bridge(home.settings(), search=nearby())).run()):
        await home.settled()
        await home.unplug()
        await until(lambda: home.topic("state") == "offline")
        with_its_key = serve(home.simulator, tls=True, certificate=home.certificate)
        async with with_its_key as address, announcing(home.serial, int(address.rpartition(":")[2])):
            await until(lambda: home.topic("state") == "online")
            await until(lambda: home.topic("gateway/problem") == "none")
            (shown,) = bridge.status().gateways
            assert (shown.host, shown.address) == (home.url, address)
        await home.plug()
        await until(lambda: home.topic("availability/livedata") == "offline")
        await until(lambda: home.topic("state") == "online" and home.topic("availability/livedata") == "online")
        (shown,) = bridge.status().gateways
        assert (shown.host, shown.address) == (home.url, home.url)


@pytest.mark.expects_log("no connection to the gateway", "the gateway can't be read")
@pytest.mark.may_log("TLS key has changed")
async def test_an_impostor_that_announces_the_serial_number_gets_nothing(tmp_path: Path) -> None:
    """It has another TLS key, so it does not get the token."""
    async with house(tmp_path) as home, running(home.settings(), search=nearby()):
        await home.settled()
        await home.unplug()
        await until(lambda: home.topic("state") == "offline")
        other = Simulator("three-phase")
        async with (
            serve(other, tls=True, certificate=self_signed(other.serial)) as address,
            announcing(home.serial, int(address.rpartition(":")[2])),
        ):
            await until(lambda: "TLS key has changed" in (home.topic("gateway/problem") or ""))
        assert {seen.path for seen in other.requests} <= {"/info"}
        assert home.topic("state") == "offline"
        await home.plug()
        await until(lambda: home.topic("state") == "online")


@pytest.mark.parametrize(
    ("host", "tls", "seen"),
    [
        ("192.168.1.20", "pin", True),
        ("envoy.local", "strict", True),
        ("192.168.1.20", "off", False),
        ("127.0.0.1:8443", "pin", False),
        ("localhost", "pin", False),
        ("[::1]:8443", "pin", False),
    ],
)
async def test_where_a_search_makes_sense(host: str, tls: str, *, seen: bool) -> None:
    settings = GatewaySettings.model_validate({"host": host, "tls": tls})
    log = logging.LoggerAdapter(logging.getLogger(__name__), {})
    search = Rediscovery(settings, lambda: 0.0, log, Search())
    assert search.is_possible is seen
