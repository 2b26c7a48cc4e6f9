"""Several brokers for one bridge: where one dies, the next one is taken, and the tree is right again."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from brokers import watching
from clusters import Cluster
from houses import House, housed
from running import disagreements, running, settings, tree, until

OLD = ("-V", "311")
"""NATS speaks no MQTT 5, and shows messages of its own to who subscribes to everything."""
TOPICS = ("enphase/#", "homeassistant/#")
HOMES = ("no-cts", "single-phase")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster.running(tmp_path) as found:
        yield found


def truth(homes: list[House]) -> dict[str, str]:
    """What each inverter gives now."""
    return {
        f"enphase/{home.serial}/inverter/{unit.serial}/power": str(unit.reported)
        for home in homes
        for unit in home.simulator.truth().inverters
    }


def right(seen: Mapping[str, str], homes: list[House]) -> bool:
    """Whether the tree is whole, agrees with itself and says what is so."""
    states = {seen.get(f"enphase/{home.serial}/state") for home in homes} | {seen.get("enphase/bridge/state")}
    odd = [topic for home in homes for topic in disagreements(seen, home.serial)]
    return states == {"online"} and not odd and truth(homes).items() <= seen.items()


async def _kept(port: int, homes: list[House]) -> None:
    """Until that is what a new subscriber gets."""
    async with watching(port, *TOPICS, qos=0, options=OLD) as watcher:

        def retained() -> dict[str, str]:
            return {message.topic: message.payload for message in watcher.seen if message.retained}

        await until(lambda: right(retained(), homes))


@pytest.mark.expects_log("the connection to the broker ended", "no broker listens there; trying mqtt://")
@pytest.mark.may_log(
    "no MQTT answer", "after a moment; does another client", "does not let us subscribe"
)  # while the servers agree on new leaders
async def test_a_server_of_the_cluster_dies(cluster: Cluster, tmp_path: Path) -> None:
    dies, stays, _ = cluster.members
    async with AsyncExitStack() as stack:
        homes = [await stack.enter_async_context(housed(tmp_path, dies, home)) for home in HOMES]
        fleet = [{"host": home.url, "token": home.simulator.token()} for home in homes]
        given = settings(tmp_path, cluster.url, gateways=fleet, poll={"inverters": 1})
        watcher = await stack.enter_async_context(watching(stays.port, *TOPICS, qos=0, options=OLD))
        async with running(given):
            await until(lambda: right(tree(watcher), homes))
            settled = time.monotonic() + 11  # a connection that was lost sooner would hardly count as one
            await until(lambda: time.monotonic() > settled)
            before = truth(homes)
            dies.kill()
            for home in homes:
                home.clock.forward(3600)
            assert before.items().isdisjoint(truth(homes).items())
            await until(lambda: right(tree(watcher), homes))
            await _kept(stays.port, homes)
        await until(lambda: tree(watcher)["enphase/bridge/state"] == "offline")
