"""The example dashboard in the real frontend: every card shows what it should, and no card complains.

`--update-golden` takes its picture for the README, with a day of the simulated home behind it.
"""

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from assistant import HomeAssistant, Owned
from brokers import Mosquitto, watching
from browser import Page, browsing
from houses import House, housed
from install import NEWEST, Release
from portrait import announced, differences
from running import SPEED_FACTOR, running

from bridge.model import DAY_S
from bridge.simulator import Simulator

pytestmark = pytest.mark.hasty
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "homeassistant" / "dashboard.yaml"
PICTURE = ROOT / "docs" / "images" / "homeassistant.png"
PATH = "enphase-solar"
COMPLAINTS = {"hui-error-card", "hui-warning", "hui-warning-element", "hui-error-badge", "hui-error-heading-badge"}
VIEWS = {"now", "phases", "inverters"}
STEP_S, HOURS, NEAR_W = 300, 24, 5
"""Seconds, hours, and the W by which a topic may differ from the truth that it follows."""
HOUR_OF_DAY = 13.0
MAX_PICTURE_BYTES = 300_000
"""Bytes of the picture in the README."""


def signed_in(ha: HomeAssistant) -> str:
    """What the frontend keeps in the browser once somebody has signed in, and that the sidebar is hidden."""
    tokens = {
        "access_token": ha.token,
        "token_type": "Bearer",
        "expires_in": int(DAY_S),
        "hassUrl": ha.url,
        "clientId": f"{ha.url}/",
        "expires": int((time.time() + DAY_S) * 1000),
        "refresh_token": "",
    }
    kept = {"hassTokens": json.dumps(tokens), "dockedSidebar": '"always_hidden"'}
    return "".join(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)});" for key, value in kept.items())


def need_browser() -> None:
    if not (shutil.which("chromium") or os.environ.get("CI")):
        pytest.skip("chromium is not installed: apt-get install chromium")


async def put_up(ha: HomeAssistant) -> None:
    """As a person does who pastes the file into the raw configuration editor."""
    about = {"url_path": PATH, "title": "Enphase", "icon": "mdi:solar-power", "mode": "storage"}
    await ha.ask("lovelace/dashboards/create", show_in_sidebar=True, require_admin=False, **about)
    await ha.ask("lovelace/config/save", url_path=PATH, config=yaml.safe_load(EXAMPLE.read_text()))


async def look(ha: HomeAssistant, page: Page, view: str, *words: str) -> str:
    """Open a view, wait until it says these words; all that it says."""
    await page.go(f"{ha.url}/{PATH}/{view}")

    async def says() -> str:
        text = await page.text()
        return text if all(word in text for word in words) else ""

    text = str(await ha.until(says))
    assert not COMPLAINTS & set(await page.tags())
    return text


async def settled(ha: HomeAssistant, house: House) -> None:
    async def true() -> bool:
        return not differences(await ha.states(), await ha.entities(), house.seen)

    if house.simulator.home.batteries:
        await ha.until(lambda: house.topic("site/battery/energy_charged"))
    await ha.until(lambda: house.topic("site/solar/power"))
    await ha.until(true)


def watts(text: str | None) -> str:
    """Return a power as the frontend writes it."""
    return f"{round(float(text or 'nan')):,} W"


def of_panel(text: str | None) -> str:
    """Return a power as the dashboard's table of inverters writes it; `?` where none was ever reported."""
    return "? W" if text == "None" else watts(text)


async def drawn(page: Page) -> bool:
    """Charts draw on a canvas, in a moment of their own."""
    before = await page.picture()
    await asyncio.sleep(SPEED_FACTOR)
    return before == await page.picture()


async def live_a_day(ha: HomeAssistant, house: House) -> None:
    """From yesterday until now, in steps of five minutes; Home Assistant's recorder gets what the topics said."""
    names = [f"site/{flow}/power" for flow in ("solar", "grid", "home", "battery")]
    names += [f"meter/net-consumption/l{n}/voltage" for n in (1, 2, 3)]
    seen: list[tuple[float, str, str]] = []
    await house.unplug()
    house.clock.now -= HOURS * 3600
    sun: dict[str, Any] = {"clock": house.clock, "start_hour": (HOUR_OF_DAY - HOURS) % 24}
    house.simulator = Simulator("three-phase", shared_cloud=house.simulator.cloud, **sun)
    await house.plug()
    async with running(house.settings(), now=house.clock):
        await ha.until(lambda: house.topic("site/battery/energy_charged"))
        for _ in range(HOURS * 3600 // STEP_S):
            house.clock.forward(STEP_S)
            power = house.simulator.truth().site.home.power
            await ha.until(
                partial(lambda power: abs(float(house.topic("site/home/power") or "nan") - power) < NEAR_W, power)
            )
            seen += [(house.clock.now, name, house.topic(name) or "") for name in names]
        async with ha.running():
            await ha.use_broker(house.broker.port)
            await settled(ha, house)
            known = {e["state_topic"]: unique_id for unique_id, e in announced(house.seen).items()}
            ids = {unique_id: entity["entity_id"] for unique_id, entity in (await ha.entities()).items()}
    rows = [(when, ids[known[f"enphase/{house.serial}/{name}"]], text) for when, name, text in seen]
    ha.remember(rows)


@asynccontextmanager
async def shown(
    owned: Callable[[Release], Owned], folder: Path, home: str
) -> AsyncIterator[tuple[HomeAssistant, House, Page]]:
    """The dashboard of a home, in a browser. What is integrated stands still."""
    need_browser()
    ha = HomeAssistant(owned(NEWEST), folder, extra="frontend:\n")
    with Mosquitto(folder) as broker:
        async with (
            housed(folder, broker, home) as house,
            watching(broker.port) as house.watcher,
            running(house.settings(), now=house.clock),
            ha.running(),
            browsing(folder) as page,
        ):
            await ha.use_broker(broker.port)
            await settled(ha, house)
            await put_up(ha)
            await page.open(1240, 840, 1, signed_in(ha))
            yield ha, house, page


async def test_the_dashboard_shows_a_three_phase_home(
    owned: Callable[[Release], Owned], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    need_browser()
    ha = HomeAssistant(owned(NEWEST), tmp_path, extra="frontend:\n")
    with Mosquitto(tmp_path) as broker:
        async with housed(tmp_path, broker, "three-phase") as house, watching(broker.port) as house.watcher:
            if pytestconfig.getoption("--update-golden"):
                await live_a_day(ha, house)
            async with running(house.settings()), ha.running(), browsing(tmp_path) as page:
                if not pytestconfig.getoption("--update-golden"):
                    await ha.use_broker(broker.port)
                await settled(ha, house)
                await put_up(ha)
                await page.open(1240, 540, 1, signed_in(ha))
                flows = [watts(house.topic(f"site/{flow}/power")) for flow in ("solar", "grid", "home", "battery")]
                await look(ha, page, "now", *flows, "Connected")
                if pytestconfig.getoption("--update-golden"):
                    await ha.until(lambda: drawn(page))
                    PICTURE.parent.mkdir(exist_ok=True)
                    PICTURE.write_bytes(await page.picture())
                phases = [watts(house.topic(f"meter/net-consumption/l{n}/power")) for n in (1, 2, 3)]
                await look(ha, page, "phases", "Voltages", *phases)
                serials = [unit.serial for unit in house.simulator.home.inverters]
                units = [f"{of_panel(house.topic(f'inverter/{serial}/power'))} {serial[-4:]}" for serial in serials]
                assert [unit.startswith("?") for unit in units] == [False] * 20 + [True]
                text = await look(ha, page, "inverters", "21 inverters", *units)
                assert "492301002201" in text
        assert ha.complaints == []


async def test_it_hides_what_a_home_does_not_have(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    async with shown(owned, tmp_path, "no-cts") as (ha, house, page):
        text = await look(ha, page, "now", watts(house.topic("site/solar/power")), "Connected")
        assert not [word for word in ("Battery", "Unavailable", "Entity not found") if word in text]
        await look(ha, page, "inverters", "12 inverters")
        highest = f"sensor.inverter_{house.simulator.home.inverters[0].serial}_highest_power"
        assert highest not in await ha.states()
        await ha.enable_all()

        async def more() -> bool:
            return highest in await ha.states()

        await ha.until(more)
        await look(ha, page, "inverters", "12 inverters")


async def test_two_phases_are_shown_as_two(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """In the home of the USA, where there are no l3 and no storage meter."""
    async with shown(owned, tmp_path, "split-phase") as (ha, house, page):
        phases = [watts(house.topic(f"meter/net-consumption/l{n}/power")) for n in (1, 2)]
        text = await look(ha, page, "phases", "Voltages", "Grid", "Solar", *phases)
        assert not [word for word in ("L3", "Battery", "Consumption", "navailable", "not found") if word in text]
        flows = [watts(house.topic(f"site/{flow}/power")) for flow in ("solar", "grid", "home", "battery")]
        text = await look(ha, page, "now", *flows)
        assert not [word for word in ("navailable", "not found") if word in text]
        await look(ha, page, "inverters", "16 inverters", "492302002102")
        assert ha.complaints == []


def test_the_file_is_what_the_generator_writes() -> None:
    names: dict[str, Any] = {"__name__": "generate", "__file__": str(EXAMPLE.parent / "generate.py")}
    exec((EXAMPLE.parent / "generate.py").read_text(), names)  # noqa: S102 - our own
    assert EXAMPLE.read_text() == names["written"]()


def test_the_picture_is_small_enough_for_a_readme() -> None:
    assert PICTURE.stat().st_size < MAX_PICTURE_BYTES
