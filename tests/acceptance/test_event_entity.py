"""The `event` entity in a real Home Assistant: an event comes once, and no restart repeats it."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from assistant import HomeAssistant, Owned
from houses import House, house
from install import NEWEST, Release
from running import running

from bridge.simulator.controller import FIRMWARE_STATE_PATH
from bridge.simulator.ensemble import INVENTORY_PATH, RELAY_PATH
from bridge.simulator.faults import with_body

pytestmark = [pytest.mark.hasty, pytest.mark.slow]

ENTITY = "event.iq_gateway_event"
UPDATE = "update.iq_gateway_firmware_update"


async def event(ha: HomeAssistant) -> Mapping[str, Any]:
    states = await ha.states()
    return states.get(ENTITY, {"state": "missing", "attributes": {}})


def lose_grid(home: House, *, lost: bool = True) -> None:
    home.simulator.faults.clear()
    for path in (RELAY_PATH, INVENTORY_PATH) if lost else ():
        home.simulator.faults.add(path, with_body("open", lambda body: body.replace(b"closed", b"open")))


async def test_an_event_comes_once_and_restarts_do_not_repeat_it(
    owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    ha = HomeAssistant(owned(NEWEST), tmp_path)

    async def shows(state: str) -> bool:
        return bool((await event(ha))["state"] == state)

    async def updates(state: str, *, in_progress: bool) -> bool:
        found = (await ha.states()).get(UPDATE, {"state": "missing", "attributes": {}})
        return (found["state"], found["attributes"].get("in_progress")) == (state, in_progress)

    async def tells(kind: str) -> bool:
        return bool((await event(ha))["attributes"].get("event_type") == kind)

    async with house(tmp_path, "split-phase") as home, AsyncExitStack() as bridge:
        async with ha.running():
            await ha.use_broker(home.broker.port)
            async with running(home.settings()):
                await ha.until(lambda: shows("unknown"))
                await ha.until(lambda: home.topic("site/grid/connected") == "ON")
                await ha.until(lambda: updates("off", in_progress=False))
                lose_grid(home)
                await ha.until(lambda: tells("grid_lost"))
                first = await event(ha)
                assert first["attributes"]["text"] == "the home is disconnected from the grid"
                assert first["attributes"]["serial"] == home.serial
                assert "grid_back" in first["attributes"]["event_types"]
            await ha.until(lambda: shows("unavailable"))
            await bridge.enter_async_context(running(home.settings()))
            asked = home.simulator.count(RELAY_PATH)
            await ha.until(lambda: home.simulator.count(RELAY_PATH) > asked + 2)
            await ha.until(lambda: shows(first["state"]))
        async with ha.running():  # while the bridge goes on: Home Assistant forgets the event of an absent one
            await ha.until(lambda: shows(first["state"]))
            assert await tells("grid_lost")
            lose_grid(home, lost=False)
            await ha.until(lambda: tells("grid_back"))
            running_now = with_body("update", lambda body: body.replace(b"No Update Running", b"Updating"))
            home.simulator.faults.add(FIRMWARE_STATE_PATH, running_now)
            await ha.until(lambda: updates("on", in_progress=True))
            known = {row["s"] for row in await ha.history(ENTITY)} - {"unknown", "unavailable"}
            assert known == {first["state"], (await event(ha))["state"]}
        assert ha.complaints == []
