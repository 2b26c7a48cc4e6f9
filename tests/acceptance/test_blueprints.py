"""The example blueprints in a real Home Assistant: loaded as a person does it, and fired by what the broker says.

The bridge announces a home and goes. Its topics are then what the test says.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from assistant import HomeAssistant, Owned
from brokers import Mosquitto, watching
from houses import House, housed, publish
from install import NEWEST, Release
from portrait import differences
from running import running

pytestmark = pytest.mark.hasty
BLUEPRINTS = Path(__file__).parents[2] / "examples" / "homeassistant" / "blueprints"
LOAD, LEAD = "input_boolean.load", timedelta(seconds=10)
"""What stands for a water heater, and how long before a time of day its automation is made."""
EXTRA = """
automation: !include automations.yaml
input_boolean:
  load:
"""


class Bench:
    """A Home Assistant that knows a home whose topics are the test's."""

    def __init__(self, ha: HomeAssistant, house: House) -> None:
        self.ha, self.house = ha, house

    async def tell(self, topic: str, payload: str) -> None:
        await publish(self.house.broker, f"enphase/{self.house.serial}/{topic}", payload, "-r")

    async def automate(self, blueprint: str, **inputs: Any) -> None:
        """As a person does who creates an automation from a blueprint."""
        body = {"alias": blueprint, "use_blueprint": {"path": f"enphase/{blueprint}.yaml", "input": inputs}}
        await self.ha.configure("automation", blueprint, body)

        async def is_on() -> bool:
            states = await self.ha.states()
            return f"automation.{blueprint}" in states and states[f"automation.{blueprint}"]["state"] == "on"

        await self.ha.until(is_on)

    async def automate_soon(self, blueprint: str, **inputs: Any) -> None:
        """The same with a time that comes soon, and that is still to come once the automation is there."""
        soon = datetime.now(UTC)
        while soon <= datetime.now(UTC):
            soon = datetime.now(UTC) + LEAD
            await self.automate(blueprint, time=f"{soon:%H:%M:%S}", **inputs)

    async def until_said(self, *messages: str) -> None:
        """Until these notifications are there, and no other."""

        async def said() -> bool:
            found = [notification["message"] for notification in await self.ha.ask("persistent_notification/get")]
            return sorted(found) == sorted(messages)

        await self.ha.until(said)

    async def until_load(self, state: str) -> None:
        async def has() -> bool:
            return bool((await self.ha.states())[LOAD]["state"] == state)

        await self.ha.until(has)


@asynccontextmanager
async def bench(owned: Callable[[Release], Owned], folder: Path) -> AsyncIterator[Bench]:
    ha = HomeAssistant(owned(NEWEST), folder, extra=EXTRA, files=blueprints())
    with Mosquitto(folder) as broker:
        async with (
            housed(folder, broker, "three-phase") as house,
            watching(broker.port) as house.watcher,
            ha.running(),
        ):
            async with running(house.settings(), now=house.clock):
                await ha.use_broker(broker.port)
                await house.settled()

                async def true() -> bool:
                    return not differences(await ha.states(), await ha.entities(), house.seen)

                await ha.until(true)
                online = {topic: text for topic, text in house.seen.items() if text == "online"}
            for topic, text in online.items():
                await publish(broker, topic, text, "-r")
            found = Bench(ha, house)
            await ha.until(true)
            yield found
    assert ha.complaints == []


def blueprints() -> Mapping[str, str]:
    found = {f"blueprints/automation/enphase/{path.name}": path.read_text() for path in BLUEPRINTS.glob("*.yaml")}
    return {**found, "automations.yaml": "[]"}


async def test_each_blueprint_is_fired(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    async with bench(owned, tmp_path) as home:
        listed = await home.ha.ask("blueprint/list", domain="automation")
        ours = {path: found for path, found in listed.items() if path.startswith("enphase/")}
        assert ours.keys() == {f"enphase/{path.name}" for path in BLUEPRINTS.glob("*.yaml")}
        assert [found for found in ours.values() if "error" in found] == []
        await check_surplus(home)
        await check_outage(home)
        await check_panels(home)
        await check_token(home)


async def check_surplus(home: Bench) -> None:
    await home.tell("site/grid/power", "500")
    await home.tell("site/battery/power", "0")
    await home.automate("surplus_load", load=LOAD, hold=0)
    steps = (
        ("grid", "-2500", "on"),  # 2.5 kW are exported
        ("grid", "150", "on"),  # some import is allowed
        ("grid", "250", "off"),
        ("grid", "-2500", "on"),
        ("battery", "2800", "off"),  # what a battery gives is no surplus
        ("battery", "-900", "on"),
        ("grid", "None", "off"),
        ("grid", "-2500", "on"),
    )
    for flow, power, state in steps:
        await home.tell(f"site/{flow}/power", power)
        await home.until_load(state)
    await home.tell("availability/site", "offline")
    await home.until_load("off")
    await home.tell("availability/site", "online")


async def check_outage(home: Bench) -> None:
    await home.automate("outage", patience=0)
    await home.tell("site/grid/connected", "OFF")
    await home.until_said("The grid has failed.")
    await home.tell("site/grid/connected", "ON")
    await home.tell("state", "offline")
    away = "The gateway does not answer."
    await home.until_said("The grid has failed.", "The grid is back.", away)
    await home.tell("state", "online")
    await home.until_said("The grid has failed.", "The grid is back.", away, "The gateway answers again.")
    await home.ha.act("persistent_notification", "dismiss_all")


async def check_panels(home: Bench) -> None:
    working = home.house.simulator.home.working
    for unit in working:
        await home.tell(f"inverter/{unit.serial}/power", "200")
    silent, weak, fair = (unit.serial for unit in working[:3])
    (removed,) = (unit.serial for unit in home.house.simulator.home.inverters if unit.removed)
    for serial, power in ((silent, "None"), (weak, "79"), (fair, "81")):
        await home.tell(f"inverter/{serial}/power", power)

    async def known() -> bool:
        states = await home.ha.states()
        return bool(states[f"sensor.inverter_{fair}_power"]["state"] == "81")

    await home.ha.until(known)
    await home.automate_soon("panels", ignored=[f"sensor.inverter_{removed}_power"])
    await home.until_said(f"Inverter {silent} is silent.\nInverter {weak} makes 79 W, most make 200 W.")
    await home.ha.act("persistent_notification", "dismiss_all")


async def check_token(home: Bench) -> None:
    """A token that is valid for long is not worth a word; the other is told at the same time of day."""
    late, soon = (datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) for days in (300, 7))
    await home.tell("gateway/token_expires", late.isoformat())
    await home.automate_soon("token")
    fired = (await home.ha.states())["automation.token"]["attributes"]["last_triggered"]
    assert fired is None
    await home.tell("gateway/token_expires", soon.isoformat())
    await home.until_said(
        f"The token of the IQ Gateway expires on {soon:%Y-%m-%d}. Get a new one: iqgateway2mqtt token paste"
    )
