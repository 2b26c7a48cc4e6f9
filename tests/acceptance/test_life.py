"""The life of an installation: outages, restarts, updates, changes of settings, hardware that goes."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from assistant import HomeAssistant, Owned
from brokers import Mosquitto
from houses import NOON_HOUR, House, publish, two_gateways
from houses import house as home_of
from install import NEWEST, OLDER, Release
from portrait import differences, is_discovery
from programs import BRIDGE_COMMAND, started
from running import running, ticking

from bridge import discovery
from bridge.model import DAY_S, MINUTE_S
from bridge.service.publisher import TreeState
from bridge.simulator import Simulator
from bridge.simulator.faults import with_body
from bridge.simulator.gateway import INVERTERS_PATH, READINGS_PATH
from bridge.store import Store

pytestmark = [pytest.mark.hasty, pytest.mark.slow]

ROOF = "sensor.roof"
NO_VALUES = ("unknown", "unavailable")
LITTLE_WH = 10_000.0
"""No roof makes so much while a test runs."""
CLEARED = re.compile(r"mqtt\.discovery: No device components to cleanup for iqgateway_")
"""Home Assistant says so of a device's topic that is cleared as its manual wants it, once the device was handed
over; and where a device goes, it clears the topic again itself for each entity that was disabled."""


def complaints(ha: HomeAssistant) -> list[str]:
    return [line for line in ha.complaints if not CLEARED.search(line)]


async def settled(ha: HomeAssistant, house: House, form: str = "device") -> None:
    """Until Home Assistant shows what the broker holds, by this form of discovery."""

    async def true() -> bool:
        return not differences(await ha.states(), await ha.entities(), house.seen)

    async def by_this_form() -> bool:
        topics = [topic for topic, _ in (await ha.discovered()).values()]
        return bool(topics) and all(("/device/" in topic) == (form == "device") for topic in topics)

    await ha.until(lambda: set(house.availability.values()) == {"online"} and "site" in house.availability)
    await ha.until(true)
    await ha.until(by_this_form)
    await ha.until(lambda: all(("/device/" in t) == (form == "device") for t in house.seen if is_discovery(t)))


async def unavailable(ha: HomeAssistant) -> dict[str, bool]:
    """Enabled entities by unique id, and whether they are unavailable."""
    states = await ha.states()
    mine = {key: entity["entity_id"] for key, entity in (await ha.entities()).items() if not entity["disabled_by"]}
    return {key: states[entity]["state"] == "unavailable" for key, entity in mine.items()}


async def kept(ha: HomeAssistant) -> Mapping[str, tuple[Any, ...]]:
    """What must outlive everything: ids, names and devices of all entities."""
    entities = await ha.entities()
    keys = ("id", "entity_id", "device_id", "name", "original_name", "disabled_by")
    return {unique_id: tuple(entity[key] for key in keys) for unique_id, entity in entities.items()}


@pytest.mark.may_log("(readings|livedata): no connection", "the gateway can't be read: no connection")
async def test_outages_show_and_end(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    ha = HomeAssistant(owned(NEWEST), tmp_path)
    async with home_of(tmp_path) as house, ha.running():
        await ha.use_broker(house.broker.port)
        own = f"iqgateway_{house.serial}_gateway_"

        async def only_the_gateway_itself() -> bool:
            return all(away != key.startswith(own) for key, away in (await unavailable(ha)).items())

        async def everything() -> bool:
            return all((await unavailable(ha)).values())

        async with running(house.settings()):
            await settled(ha, house)
            await house.unplug()
            await ha.until(only_the_gateway_itself)
            states = await ha.states()
            assert states["binary_sensor.iq_gateway_connection"]["state"] == "off"
            assert states["sensor.iq_gateway_problem"]["state"].startswith("the gateway can't be read: ")
            await house.plug()
            await settled(ha, house)
            assert not any((await unavailable(ha)).values())
        await ha.until(everything)
        given = house.settings()
        environment = {
            "BRIDGE_GATEWAY__HOST": house.url,
            "BRIDGE_GATEWAY__TOKEN": house.simulator.token(),
            "BRIDGE_MQTT__URL": house.broker.url,
            "BRIDGE_STATE_DIR": str(given.state_dir),
        }
        async with started(*BRIDGE_COMMAND, "run", env=environment) as program:
            await settled(ha, house)
            program.process.kill()
            await ha.until(everything)
        assert ha.complaints == []


async def test_a_device_that_was_deleted_comes_back_under_the_ids_of_its_owner(
    owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    """Home Assistant (2026.2; not yet 2025.1) remembers what it has deleted, unless a message asks for an id."""
    ha = HomeAssistant(owned(NEWEST), tmp_path)
    async with home_of(tmp_path, "no-cts") as house, ha.running():
        solar = f"iqgateway_{house.serial}_site_solar_power"
        await ha.use_broker(house.broker.port)
        async with running(house.settings()):
            await settled(ha, house)
            entity = (await ha.entities())[solar]
            await ha.ask("config/entity_registry/update", entity_id=entity["entity_id"], new_entity_id=ROOF)
            (entry,) = await ha.ask("config_entries/get", domain="mqtt")
            await ha.ask(
                "config/device_registry/remove_config_entry",
                config_entry_id=entry["entry_id"],
                device_id=entity["device_id"],
            )

            async def gone() -> bool:
                return solar not in await ha.entities()

            await ha.until(gone)
        async with running(house.settings()):
            await settled(ha, house)
            assert (await ha.entities())[solar]["entity_id"] == ROOF
        assert complaints(ha) == []


@pytest.mark.parametrize("release", [NEWEST, OLDER], ids=lambda release: release.version)
async def test_energies_of_an_installation_that_had_them_in_wh_go_on(
    release: Release, owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    """Home Assistant keeps the unit that it knows, and never takes a value in Wh for one in kWh."""
    ha = HomeAssistant(owned(release), tmp_path)
    async with home_of(tmp_path, "no-cts") as house, ha.running():
        solar = f"iqgateway_{house.serial}_site_solar_energy_lifetime"
        energy = "sensor.enphase_solar_energy_produced"
        async with running(house.settings()):
            await house.settled()
            topic = f"homeassistant/device/iqgateway_{house.serial}_site/config"
            new = house.seen[topic]
        store = Store(tmp_path / "state")
        store.save(house.serial, store.load(house.serial, TreeState).changed(revision=0))
        await publish(house.broker, topic, in_wh(new), "-r")
        await publish(house.broker, "enphase/bridge/state", "online", "-r")  # it was killed
        await publish(house.broker, f"enphase/{house.serial}/availability/site", "online", "-r")
        wh = float(house.seen[f"enphase/{house.serial}/site/solar/energy_lifetime"])

        async def is_in_wh() -> bool:
            found = (await ha.states()).get(energy, {"state": "", "attributes": {}})
            has_value = found["state"] not in {"", *NO_VALUES}
            return has_value and found["attributes"]["unit_of_measurement"] == "Wh"

        await ha.use_broker(house.broker.port)
        await ha.until(is_in_wh)
        await ha.act("compile_statistics", "now")
        async with running(house.settings()):
            await ha.until(lambda: house.seen[topic] == new)
            await ha.until(is_in_wh)
            assert (await ha.entities())[solar]["entity_id"] == energy
            await ha.act("compile_statistics", "now")
            asked = {
                "start_time": "2000-01-01T00:00:00Z",
                "entity_ids": [energy],
                "significant_changes_only": False,
            }
            rows = (await ha.ask("history/history_during_period", **asked))[energy]
            values = [row for row in rows if row["s"] not in {None, *NO_VALUES}]
            factors = {"Wh": 1, "kWh": 1000}
            states = [float(row["s"]) * factors[row["a"]["unit_of_measurement"]] for row in values]
            assert states[0] == wh
            assert wh <= min(states) <= max(states) < wh + LITTLE_WH
            known = await ha.ask("recorder/list_statistic_ids")
            assert [row["statistics_unit_of_measurement"] for row in known if row["statistic_id"] == energy] == [
                "Wh"
            ]
        assert complaints(ha) == []


def in_wh(discovery_message: str) -> str:
    """The message as versions before wrote it."""
    body = json.loads(discovery_message)
    for component in body["components"].values():
        if component.pop("value_template", None):
            component["unit_of_measurement"] = "Wh"
    return json.dumps(body)


@pytest.mark.parametrize("release", [NEWEST, OLDER], ids=lambda release: release.version)
async def test_ids_names_and_history_outlive_everything(
    release: Release, owned: Callable[[Release], Owned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ha = HomeAssistant(owned(release), tmp_path)
    async with home_of(tmp_path) as house:
        solar = f"iqgateway_{house.serial}_site_solar_power"
        by_component = house.settings(homeassistant={"discovery": "component"})

        async with ha.running():
            await ha.use_broker(house.broker.port)
            async with running(house.settings()):
                await settled(ha, house)
                entity = (await ha.entities())[solar]["entity_id"]
                await ha.ask("config/entity_registry/update", entity_id=entity, name="Roof", new_entity_id=ROOF)
                await settled(ha, house)
                first = await kept(ha)
                assert first[solar][1:4:2] == (ROOF, "Roof")
                began = (await ha.history(ROOF))[0]

        async with ha.running(), running(house.settings()):
            await settled(ha, house)
            assert await kept(ha) == first

        monkeypatch.setitem(discovery.ORIGIN, "sw_version", "99.0.0")
        async with ha.running():
            async with running(house.settings()):
                await settled(ha, house)

                async def updated() -> bool:
                    return {version for _, version in (await ha.discovered()).values()} == {"99.0.0"}

                await ha.until(updated)
                assert await kept(ha) == first
            async with running(by_component):
                await settled(ha, house, "component")
                assert await kept(ha) == first

        async with ha.running():
            async with running(by_component):
                await settled(ha, house, "component")
                assert await kept(ha) == first
            async with running(house.settings()):
                await settled(ha, house)
                assert await kept(ha) == first
            assert (await ha.history(ROOF))[0] == began
        assert complaints(ha) == []


@pytest.mark.may_log("energy_lifetime (fell|rose)")  # the house that is simulated anew has produced a little less
async def test_an_inverter_that_is_gone_goes(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """Eight days after its last sign of life, with its device and all entities."""
    ha, days = HomeAssistant(owned(NEWEST), tmp_path), [0.0]
    async with home_of(tmp_path, "no-cts") as house, ha.running():
        await ha.use_broker(house.broker.port)
        settings = house.settings(poll={"inverters": 10, "device_data": 10})
        async with running(settings):
            await settled(ha, house)
        devices, entities = await ha.devices(), await ha.entities()
        unit = await take_one_inverter(house)
        gone = {key for key in entities if f"_inverter_{unit}_" in key}
        assert f"iqgateway_{house.serial}_inverter_{unit}_power" in gone
        async with running(settings, now=lambda: time.time() + days[0] * DAY_S):
            for day in (1, 2, 8, 10):  # it counts as not reporting for a day, then its values are absent for a week
                assert (await ha.entities()).keys() == entities.keys()
                asked, days[0] = house.simulator.count(INVERTERS_PATH), day
                await ha.until(partial(lambda asked: house.simulator.count(INVERTERS_PATH) > asked + 1, asked))

            async def is_gone() -> bool:
                return (await ha.entities()).keys() == entities.keys() - gone

            await ha.until(is_gone)
            assert (await ha.devices()).keys() == devices.keys() - {f"iqgateway_{house.serial}_inverter_{unit}"}
        assert complaints(ha) == []


async def take_one_inverter(house: House) -> str:
    """From the roof; its serial number."""
    before = house.simulator
    unit, *others = before.home.inverters
    home = replace(before.home, inverters=tuple(others))
    await house.unplug()
    house.simulator = Simulator(home, clock=house.clock, start_hour=NOON_HOUR, shared_cloud=before.cloud)
    await house.plug()
    return unit.serial


async def test_a_value_that_is_gone_takes_no_other_along(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """A gateway that tells no voltages any more, since an update perhaps."""
    ha, days = HomeAssistant(owned(NEWEST), tmp_path), [0.0]
    async with home_of(tmp_path) as house, ha.running():
        await ha.use_broker(house.broker.port)
        async with running(house.settings()):
            await settled(ha, house)
        devices, entities = await ha.devices(), await ha.entities()
        voltage = re.compile("_meter_.+_voltage$")
        gone = {key for key in entities if voltage.search(key)}
        disabled = {key for key in gone if entities[key]["disabled_by"]}  # 2026.2 keeps these; 2026.11 does not
        assert any("_l1_" in key for key in gone - disabled)
        renamed = with_body("no voltage", lambda body: body.replace(b'"voltage"', b'"unheard"'))
        house.simulator.faults.add(READINGS_PATH, renamed)
        async with running(house.settings(), now=lambda: time.time() + days[0] * DAY_S):
            for days[0] in (1.0, 9.0):
                asked = house.simulator.count(READINGS_PATH)
                await ha.until(partial(lambda asked: house.simulator.count(READINGS_PATH) > asked + 1, asked))

            async def is_gone() -> bool:
                return (await ha.entities()).keys() - disabled == entities.keys() - gone

            await ha.until(is_gone)
            await settled(ha, house)
            assert (await ha.devices()).keys() == devices.keys()
        assert complaints(ha) == []


@pytest.mark.may_log("no connection to the gateway")
async def test_a_home_of_two_gateways_is_a_device_of_its_own(
    owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    """Its powers are those that the Energy dashboard needs; each gateway's own consumption is not enabled."""
    ha = HomeAssistant(owned(NEWEST), tmp_path)
    with Mosquitto(tmp_path) as broker:
        async with two_gateways(broker, tmp_path) as two, ha.running():
            await ha.use_broker(broker.port)

            async def true() -> bool:
                return two.is_known() and not differences(await ha.states(), await ha.entities(), two.seen)

            async with running(two.settings("Villa", "Villa"), now=two.roof.clock):
                await ha.until(lambda: "homeassistant/device/iqgateway_home_villa/config" in two.seen)
                await ha.until(true)
                devices, entities, states = await ha.devices(), await ha.entities(), await ha.states()
                villa = devices["iqgateway_home_villa"]
                assert (villa["name"], villa["model"]) == ("Villa", "Start here: solar, grid, battery, home")
                mine = {e["entity_id"] for e in entities.values() if e["device_id"] == villa["id"]}
                shown = {entity for entity in mine if entity in states}
                assert {
                    *("sensor.villa_home_power", "sensor.villa_solar_power", "sensor.villa_grid_power"),
                    *("sensor.villa_solar_energy_produced", "sensor.villa_grid_energy_imported"),
                } <= shown
                watts = {entity: float(states[entity]["state"]) for entity in shown if entity.endswith("_power")}
                parts = watts["sensor.villa_solar_power"] + watts["sensor.villa_grid_power"]
                assert watts["sensor.villa_home_power"] == pytest.approx(parts, abs=1)
                own = {key: entity["disabled_by"] for key, entity in entities.items() if "_site_home_" in key}
                assert own
                assert set(own.values()) == {"integration"}
                await two.barn.unplug()

                async def unknown() -> bool:
                    return (await ha.states())["sensor.villa_home_power"]["state"] in NO_VALUES

                await ha.until(unknown)
        assert complaints(ha) == []


MOST_ROWS_A_MINUTE = 130.0
"""At noon, when counters pass 10 Wh every ten seconds. At other hours there are 51 to 106 (docs/performance.md)."""
RECORDED_MINUTES = 10


async def test_the_recorder_of_a_home_writes_few_rows(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """By day, three phases, two batteries and 20 inverters, as everything comes by default."""
    ha = HomeAssistant(owned(NEWEST), tmp_path)
    async with home_of(tmp_path) as house, ticking(house.clock), ha.running():
        await ha.use_broker(house.broker.port)
        async with running(house.settings(), now=house.clock):
            await settled(ha, house)
            began, before = house.clock(), await ha.recorded()
            await ha.until(lambda: house.clock() >= began + RECORDED_MINUTES * MINUTE_S)
            rows = await ha.recorded() - before
    counts = Counter({entity: count / RECORDED_MINUTES for entity, count in rows.items()})
    assert counts.total() <= MOST_ROWS_A_MINUTE, counts.most_common(20)
    assert counts["sensor.enphase_home_power"] > 10
