"""Controls in a real Home Assistant: what they show is what the gateway does, whatever was asked for.

Three simulated gateways are behind one bridge: one obeys, one stores everything and ignores it, and one has the
firmware whose settings nobody obeys.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from assistant import HomeAssistant, Owned
from brokers import Mosquitto
from browser import browsing
from houses import House, housed
from install import NEWEST, Release
from running import running, settings, ticking
from test_dashboard import need_browser, signed_in

from bridge.settings import Settings
from bridge.simulator import HOMES

pytestmark = [pytest.mark.hasty, pytest.mark.slow]

HOME = HOMES["split-phase"]
SERIALS = {"obeys": "122302003222", "ignores": "122302003223", "stale-file": "122302003224"}
"""Serial numbers of the gateways, by their personality, which is also their name."""
RESERVE, MODE = "number.storage_control_{}_reserve", "select.storage_control_{}_mode"
FROM_GRID = "switch.storage_control_{}_charge_from_grid"
PUMP, PUMP_STARTS = "switch.well_pump_{}", "text.well_pump_{}_essential_start"
LAST_COMMAND, EVENT = "sensor.iq_gateway_{}_last_command", "event.iq_gateway_{}_command"
RESERVES = {"obeys": "22", "ignores": "22", "stale-file": "40"}
"""The reserve in force at first."""
DELETED = "No device components to cleanup"
"""Home Assistant says this of each device that is deleted."""


@dataclass
class Street:
    """A Home Assistant, and gateways of several personalities behind one bridge."""

    ha: HomeAssistant
    houses: Mapping[str, House]
    folder: Path
    broker: Mosquitto

    def settings(self, allow: str) -> Settings:
        gateways = [
            {"host": one.url, "token": one.simulator.token(), "name": name} for name, one in self.houses.items()
        ]
        return settings(self.folder, self.broker.url, gateways=gateways, control={"allow": allow})

    async def shown(self, entity: str, name: str) -> str:
        found = (await self.ha.states()).get(entity.format(name.replace("-", "_")), {"state": "missing"})
        return str(found["state"])

    def shows(self, entity: str, name: str, state: str) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return await self.shown(entity, name) == state

        return look

    def tells(self, name: str, *words: str) -> Callable[[], Awaitable[bool]]:
        """Whether the newest command is told with these words."""

        async def look() -> bool:
            text = await self.shown(LAST_COMMAND, name)
            return all(word in text for word in words)

        return look

    async def act(self, action: str, entity: str, name: str, **data: Any) -> None:
        domain = entity.partition(".")[0]
        await self.ha.act(domain, action, entity_id=entity.format(name.replace("-", "_")), **data)

    async def registered(self, *, disabled: bool = False) -> set[str]:
        """The unique ids of the entities that concern commands.

        Home Assistant knows of a disabled entity only that it is there, so that only its owner can remove it.
        """
        return {
            unique_id
            for unique_id, entity in (await self.ha.entities()).items()
            if unique_id.endswith(("_control", "_gateway_last_command", "_gateway_commands"))
            and (entity["disabled_by"] is not None) is disabled
        }


@asynccontextmanager
async def street(owned: Owned, folder: Path, *names: str) -> AsyncIterator[Street]:
    ha = HomeAssistant(owned, folder)
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(Mosquitto(folder))
        houses = {}
        for name in names:
            home = replace(HOME, serial=SERIALS[name])
            houses[name] = await stack.enter_async_context(housed(folder, broker, home, personality=name))
            await stack.enter_async_context(ticking(houses[name].clock))
        await stack.enter_async_context(ha.running())
        await ha.use_broker(broker.port)
        yield Street(ha, houses, folder, broker)


def troubles(ha: HomeAssistant) -> list[str]:
    return [line for line in ha.complaints if DELETED not in line]


@pytest.mark.may_log("values wait for more than 30 s")  # of which one lasts a twentieth here
async def test_each_platform_shows_what_the_gateway_does(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    async with street(owned(NEWEST), tmp_path, *SERIALS) as at, running(at.settings("all,grid")):
        ha = at.ha
        for name in SERIALS:
            await ha.until(at.shows(RESERVE, name, RESERVES[name]))
            await ha.until(at.shows(PUMP, name, "on"))
        await ha.until(at.shows(MODE, "obeys", "Self-consumption"))
        assert await at.shown(MODE, "stale-file") == "missing", "this firmware tells no mode in force"

        await at.act("set_value", RESERVE, "obeys", value=35)
        await ha.until(at.tells("obeys", "reserve 35: confirmed"))
        await ha.until(at.shows(RESERVE, "obeys", "35"))
        await at.act("select_option", MODE, "obeys", option="Economy")
        await ha.until(at.tells("obeys", "mode economy: confirmed"))
        await ha.until(at.shows(MODE, "obeys", "Economy"))
        await at.act("turn_on", FROM_GRID, "obeys")
        await ha.until(at.shows(FROM_GRID, "obeys", "on"))
        await at.act("turn_off", PUMP, "obeys")
        await ha.until(at.tells("obeys", "nc1 state open: confirmed"))
        await ha.until(at.shows(PUMP, "obeys", "off"))
        await at.act("set_value", PUMP_STARTS, "obeys", value="07:30")
        await ha.until(at.tells("obeys", "nc1 essential_start 07:30: confirmed"))
        await ha.until(at.shows(PUMP_STARTS, "obeys", "07:30"))
        last = (await ha.states())[LAST_COMMAND.format("obeys")]["attributes"]
        told = (await ha.states())[EVENT.format("obeys")]["attributes"]
        assert (told["event_type"], told["set"], told["final"]) == ("confirmed", "relay/nc1/essential_start", True)
        assert last["id"] == told["id"]

        await at.act("set_value", RESERVE, "ignores", value=35)
        await ha.until(at.tells("ignores", "reserve 35: ignored", "Enphase's schedules"))
        await at.act("set_value", RESERVE, "stale-file", value=35)
        await ha.until(at.tells("stale-file", "reserve 35: refused", "obeys Enphase's app"))
        for name in ("ignores", "stale-file"):
            assert await at.shown(RESERVE, name) == RESERVES[name]
            assert {row["s"] for row in await ha.history(RESERVE.format(name.replace("-", "_")))} <= {
                RESERVES[name],
                "unknown",
                "unavailable",
            }
        writes = {name: len(one.simulator.writes()) for name, one in at.houses.items()}
        assert writes == {"obeys": 5, "ignores": 1, "stale-file": 0}
        assert troubles(ha) == []


CARD: Mapping[str, Any] = {
    "type": "entities",
    "show_header_toggle": False,
    "entities": [entity.format("obeys") for entity in (RESERVE, MODE, PUMP, PUMP_STARTS)],
}


@pytest.mark.may_log("values wait for more than 30 s")
async def test_a_person_can_operate_each_platform(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """The slider's middle is 50 %."""
    need_browser()
    async with (
        street(owned(NEWEST), tmp_path, "obeys") as at,
        running(at.settings("all,grid")),
        browsing(tmp_path) as page,
    ):
        ha = at.ha
        await ha.until(at.shows(PUMP, "obeys", "on"))
        about = {"url_path": "set-it", "title": "Set it", "mode": "storage"}
        await ha.ask("lovelace/dashboards/create", show_in_sidebar=True, require_admin=False, **about)
        await ha.ask("lovelace/config/save", url_path="set-it", config={"views": [{"cards": [CARD]}]})
        await page.open(600, 900, 1, signed_in(ha))
        await page.go(f"{ha.url}/set-it/0")

        async def press(tag: str, text: str = "", times: int = 1) -> None:
            await ha.until(lambda: page.click(tag, text, times=times))

        await press("ha-slider")
        await ha.until(at.tells("obeys", "reserve 50: confirmed"))
        await press("ha-select")
        await press("ha-list-item", "Economy")
        await ha.until(at.tells("obeys", "mode economy: confirmed"))
        await press("ha-switch")
        await ha.until(at.tells("obeys", "nc1 state open: confirmed"))
        await press("ha-textfield", times=3)
        await page.write("07:45")
        await ha.until(at.tells("obeys", "nc1 essential_start 07:45: confirmed"))
        for entity, state in (RESERVE, "50"), (MODE, "Economy"), (PUMP, "off"), (PUMP_STARTS, "07:45"):
            await ha.until(at.shows(entity, "obeys", state))
        assert len(at.houses["obeys"].simulator.writes()) == len(CARD["entities"])
        assert troubles(ha) == []


async def test_controls_come_and_go_with_the_permission(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    async with street(owned(NEWEST), tmp_path, "obeys") as at:
        ha = at.ha
        sensor = f"iqgateway_{SERIALS['obeys']}_storage_control_reserve"
        async with running(at.settings("")):
            await ha.until(at.shows("sensor.storage_{}_reserve", "obeys", RESERVES["obeys"]))
            assert await at.registered() == await at.registered(disabled=True) == set()
        async with running(at.settings("all,grid")):
            await ha.until(at.shows(PUMP, "obeys", "on"))
            given = await at.registered()
            assert {one for one in await at.registered(disabled=True) if "_nc2_" not in one} == {
                f"iqgateway_{SERIALS['obeys']}_relay_mains_grid_connected_control"
            }
            assert (await ha.entities())[sensor]["disabled_by"] is None, "its owner has it already"
            assert await at.shown("sensor.storage_{}_reserve", "obeys") == RESERVES["obeys"]
        async with running(at.settings("storage")):

            async def has_storage_only() -> bool:
                kept = {one for one in given if "_storage_settings_" in one or "_gateway_" in one}
                return await at.registered() == kept

            await ha.until(has_storage_only)
            await ha.until(at.shows(RESERVE, "obeys", RESERVES["obeys"]))
        async with running(at.settings("")):

            async def has_none() -> bool:
                return not await at.registered()

            await ha.until(has_none)
            await ha.until(at.shows("sensor.storage_{}_reserve", "obeys", RESERVES["obeys"]))
            names = {device["name"] for device in (await ha.devices()).values()}
            assert "Storage control obeys" not in names
            assert "Well pump obeys" in names
        async with running(at.settings("all,grid")):
            await ha.until(at.shows(PUMP, "obeys", "on"))
            assert await at.registered() == given
        assert troubles(ha) == []
