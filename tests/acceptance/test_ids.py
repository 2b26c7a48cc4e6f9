"""The ids that Home Assistant makes of names: whose they are, and that they outlive what an installation meets."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from assistant import HomeAssistant, Owned
from brokers import Mosquitto
from houses import NOON_HOUR, TwoGateways, two_gateways
from houses import house as home_of
from install import NEWEST, OLDER, Release
from portrait import announced, differences
from running import running, settings
from strict import entity_id

from bridge.model import DAY_S
from bridge.settings import Settings
from bridge.simulator import Simulator
from bridge.simulator.faults import with_body
from bridge.simulator.gateway import INVERTERS_PATH

pytestmark = [pytest.mark.hasty, pytest.mark.slow]

ROOF = "sensor.my_own_id"
OTHER_PREFIX = "hass"


async def settled(ha: HomeAssistant, seen: Callable[[], Mapping[str, str]], count: int = 1) -> None:
    """Until Home Assistant shows what is announced, of so many sites at least."""

    async def true() -> bool:
        sites = {topic for topic in seen() if topic.startswith("homeassistant/device/") and "_site/" in topic}
        return len(sites) >= count and not differences(await ha.states(), await ha.entities(), seen())

    await ha.until(true)


async def rename(ha: HomeAssistant, unique_id: str) -> None:
    """Give an entity another id and another name, as its owner may."""
    entity = (await ha.entities())[unique_id]["entity_id"]
    await ha.ask("config/entity_registry/update", entity_id=entity, name="Mine", new_entity_id=ROOF)


async def ids(ha: HomeAssistant) -> dict[str, str]:
    return {unique_id: entity["entity_id"] for unique_id, entity in (await ha.entities()).items()}


async def test_an_owner_s_id_outlives_another_prefix(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """The bridge and Home Assistant get the new prefix one after the other, and later the old one.

    A name of the site that comes later changes the names of devices, and no id.
    """
    ha = HomeAssistant(owned(NEWEST), tmp_path)
    async with home_of(tmp_path, "no-cts") as house, ha.running():
        solar = f"iqgateway_{house.serial}_site_solar_power"

        async def is_there() -> bool:
            return solar in await ha.entities()

        async def is_gone() -> bool:
            return not await is_there()

        await ha.use_broker(house.broker.port)
        async with running(house.settings()):
            await settled(ha, lambda: house.seen)
            await rename(ha, solar)
            before = await ids(ha)
        for prefix in (OTHER_PREFIX, "homeassistant"):
            async with running(house.settings(homeassistant={"prefix": prefix})):
                await ha.until(is_gone)
                await ha.use_prefix(prefix)
                await ha.until(is_there)
                await ha.until(lambda: shows(ha, ROOF))
                assert (await ids(ha)).items() >= {solar: ROOF}.items()
        async with running(house.settings()):
            await settled(ha, lambda: house.seen)
            assert (await ids(ha)) == before
        async with running(house.settings(gateway={"token": house.simulator.token(), "name": "Cabin"})):

            async def is_named() -> bool:
                names = {device["name"] for device in (await ha.devices()).values()}
                return {"Cabin", "IQ Gateway Cabin"} <= names

            await ha.until(is_named)
            await settled(ha, lambda: house.seen)
            assert (await ids(ha)) == before


async def shows(ha: HomeAssistant, entity: str) -> bool:
    return (await ha.states()).get(entity, {"state": "unknown"})["state"] not in {"unknown", "unavailable"}


@pytest.mark.may_log("energy_lifetime (fell|rose)")  # the house that is simulated anew has produced a little less
async def test_an_owner_s_id_waits_for_a_unit_that_returns(
    owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    ha, days = HomeAssistant(owned(NEWEST), tmp_path), [0.0]
    async with home_of(tmp_path, "no-cts") as house, ha.running():
        await ha.use_broker(house.broker.port)
        often, whole = house.settings(poll={"inverters": 10, "device_data": 10}), house.simulator.home
        unit = f"iqgateway_{house.serial}_inverter_{whole.inverters[0].serial}_power"

        async def is_there() -> bool:
            return unit in await ha.entities()

        async def is_gone() -> bool:
            return not await is_there()

        async def have(inverters: tuple[Any, ...]) -> None:
            cloud = house.simulator.cloud
            await house.unplug()
            home = replace(whole, inverters=inverters)
            house.simulator = Simulator(home, clock=house.clock, start_hour=NOON_HOUR, shared_cloud=cloud)
            await house.plug()

        async with running(often):
            await settled(ha, lambda: house.seen)
            await rename(ha, unit)
        await have(whole.inverters[1:])
        async with running(often, now=lambda: time.time() + days[0] * DAY_S):
            for days[0] in (1.0, 2.0, 8.0, 10.0):
                asked = house.simulator.count(INVERTERS_PATH)
                await ha.until(partial(lambda asked: house.simulator.count(INVERTERS_PATH) > asked + 1, asked))
            await ha.until(is_gone)
        await have(whole.inverters)
        async with running(often, now=lambda: time.time() + days[0] * DAY_S):
            await ha.until(is_there)
            assert (await ids(ha))[unit] == ROOF


@pytest.mark.parametrize("is_reversed", [False, True], ids=["in order", "reversed"])
async def test_two_gateways_have_ids_of_their_own_in_any_order(
    is_reversed: bool, owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    """The one has a name in the settings, the other none. Nothing depends on which comes first."""
    ha = HomeAssistant(owned(NEWEST), tmp_path)
    with Mosquitto(tmp_path) as broker:
        async with two_gateways(broker, tmp_path, "no-cts") as two, ha.running():
            await ha.use_broker(broker.port)
            barn, roof = two.entry(two.barn, None, name="Barn"), two.entry(two.roof, None)
            async with running(both(two, *([roof, barn] if is_reversed else [barn, roof]))):
                await settled(ha, lambda: two.seen, 2)
                found = await ids(ha)
                wanted = {unique_id: entity_id(entity) for unique_id, entity in announced(two.seen).items()}
                assert {unique_id: found.get(unique_id) for unique_id in wanted} == wanted
                digits, names = two.roof.serial[-4:], set(found.values())
                assert {"sensor.barn_solar_power", f"sensor.enphase_{digits}_solar_power"} <= names
                assert {f"sensor.production_meter_{digits}_power", f"sensor.iq_gateway_{digits}_problem"} <= names
                assert "sensor.iq_gateway_barn_problem" in names
                assert len(names) == len(found)
        assert ha.complaints == []


def both(two: TwoGateways, *entries: dict[str, Any]) -> Settings:
    """Settings with these gateways, in this order."""
    return settings(two.folder, two.broker.url, gateways=list(entries))


@pytest.mark.parametrize("ghost_first", [True, False], ids=["ghost first", "both at once"])
async def test_an_inverter_that_moved_to_another_gateway_keeps_its_id(
    ghost_first: bool, owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    """The gateway that it has left still lists it, with zeros: that one's entity is disabled and has another id."""
    ha = HomeAssistant(owned(NEWEST), tmp_path)
    with Mosquitto(tmp_path) as broker:
        async with two_gateways(broker, tmp_path, "no-cts") as two, ha.running():
            moved = two.roof.simulator.home.inverters[0].serial
            ghost = {
                "serialNumber": moved,
                "lastReportDate": 0,
                "devType": 1,
                "lastReportWatts": 0,
                "maxReportWatts": 0,
            }
            two.barn.simulator.faults.add(
                INVERTERS_PATH, with_body("ghost", lambda body: json.dumps([*json.loads(body), ghost]).encode())
            )
            await ha.use_broker(broker.port)
            entries = [two.entry(two.barn, None), two.entry(two.roof, None)]
            if ghost_first:
                async with running(both(two, entries[0])):
                    await settled(ha, lambda: two.seen)
            async with running(both(two, *entries)):
                await settled(ha, lambda: two.seen, 2)
                entities = await ha.entities()
                live = entities[f"iqgateway_{two.roof.serial}_inverter_{moved}_power"]
                left = entities[f"iqgateway_{two.barn.serial}_inverter_{moved}_power"]
                assert (live["entity_id"], live["disabled_by"]) == (f"sensor.inverter_{moved}_power", None)
                assert float((await ha.states())[live["entity_id"]]["state"]) > 0
                assert left["entity_id"] == f"sensor.inverter_{moved}_{two.barn.serial}_power"
                assert left["disabled_by"] == "integration"
        assert ha.complaints == []


@pytest.mark.parametrize("release", [NEWEST, OLDER], ids=lambda release: release.version)
async def test_a_lost_state_and_another_form_leave_one_of_each_entity(
    release: Release, owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    ha = HomeAssistant(owned(release), tmp_path)
    async with home_of(tmp_path, "no-cts") as house, ha.running():
        solar = f"iqgateway_{house.serial}_site_solar_power"
        await ha.use_broker(house.broker.port)
        async with running(house.settings()):
            await settled(ha, lambda: house.seen)
            await rename(ha, solar)
            before = await ids(ha)
        shutil.rmtree(tmp_path / "state")
        async with running(house.settings(homeassistant={"discovery": "component"})):
            await ha.until(lambda: not [topic for topic in house.seen if "/device/" in topic])
            await ha.until(lambda: f"homeassistant/sensor/{solar}/config" in house.seen)

            async def true() -> bool:
                return not differences(await ha.states(), await ha.entities(), house.seen)

            await ha.until(true)
            assert (await ids(ha)).items() >= before.items()
            assert await shows(ha, ROOF)
        assert [line for line in ha.complaints if "No device components to cleanup" not in line] == []
