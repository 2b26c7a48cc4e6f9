"""The example dashboard in the real frontend, for every simulated home, on a phone and on a desktop.

Each card shows what it should, and none complains; the pixels show that nothing is empty, cut or wrapped.
`--update-golden` takes the picture for the README, with a day of the simulated home behind it.
"""

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
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
from portrait import announced, differences, energy
from running import SPEED_FACTOR, running

from bridge.model import DAY_S
from bridge.simulator import HOMES, Simulator

pytestmark = pytest.mark.hasty
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "homeassistant" / "dashboard.yaml"
PICTURE = ROOT / "docs" / "images" / "homeassistant.png"
PATH = "enphase-solar"
COMPLAINTS = {"hui-error-card", "hui-warning", "hui-warning-element", "hui-error-badge", "hui-error-heading-badge"}
WIDTHS_PX = {"phone": 390, "desktop": 1280}
HEIGHT_PX = 2600
"""Enough for the longest view, so that one picture has all of it."""
MOST_HOLLOW_PX = 48
"""The most pixel rows of a card that may show nothing. A missing circle leaves a hundred."""
CIRCLES = {
    "solar": (200, 60, 54, "#f5a623"),
    "grid": (60, 180, 54, "#488fc2"),
    "home": (340, 180, 54, "#a864a8"),
    "battery": (200, 300, 54, "#3fa796"),
}
"""Centre, radius and colour of each circle, in a picture that is 400 wide."""
MOST_PANELS = 60
LATE = "No ACK from MQTT server in 10 seconds"
"""A complaint about the broker, which is slow where it shares a small machine with a large home."""
FLOWING = ("#ff9800", "#f06292", "#8353d1", "#009ac7")
"""The colours of solar, battery, export and home where Home Assistant draws what flows."""
LEAST_PAINTED, LEAST_EXPORTED_W = 300, 600
"""Pixels: each flow ends in a bar of its colour, whose height is its power."""
STEP_S, HOURS, NEAR_W = 300, 24, 5
"""Seconds, hours, and the W by which a topic may differ from the truth that it follows."""
HOUR_OF_DAY = 13.0
GRID_SWITCH, IN_THE_DARK = "switch.grid_relay_connection", "When they are empty, it is dark."
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
    text = await said(ha, page, *words)
    assert not COMPLAINTS & set(await page.tags())
    return text


async def said(ha: HomeAssistant, page: Page, *words: str) -> str:
    """All that the page says, once it says these words."""

    async def says() -> str:
        text = await page.text()
        return text if all(word in text for word in words) else ""

    return str(await ha.until(says))


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


def feed_the_grid(house: House) -> None:
    """Let time pass until the sun gives more than home and battery take, before the bridge looks."""
    steps = 0
    while house.simulator.truth().site.grid.power > -LEAST_EXPORTED_W:
        house.clock.forward(STEP_S)
        steps += 1
        assert steps < HOURS * 3600 // STEP_S


@asynccontextmanager
async def shown(
    owned: Callable[[Release], Owned],
    folder: Path,
    home: str,
    *,
    lived: bool = False,
    feeding: bool = False,
    allow: str = "",
) -> AsyncIterator[tuple[HomeAssistant, House, Page]]:
    """The dashboard of a home, in a browser. What is integrated stands still.

    `lived` gives it a day of history; `feeding` waits for a time at which it exports. `allow` are the groups that
    may be set, and the gateway obeys.
    """
    need_browser()
    ha = HomeAssistant(owned(NEWEST), folder, extra="frontend:\n")
    with Mosquitto(folder) as broker:
        obeys = "obeys" if allow else None
        async with (
            housed(folder, broker, home, personality=obeys) as house,
            watching(broker.port) as house.watcher,
        ):
            if lived:
                await live_a_day(ha, house)
            if feeding:
                feed_the_grid(house)
            async with (
                running(house.settings(control={"allow": allow}), now=house.clock),
                ha.running(),
                browsing(folder) as page,
            ):
                if not lived:
                    await ha.use_broker(broker.port)
                if not allow:  # controls show words of their own
                    await settled(ha, house)
                await put_up(ha)
                await page.open(WIDTHS_PX["desktop"], HEIGHT_PX, 1, signed_in(ha))
                yield ha, house, page
    assert [complaint for complaint in ha.complaints if LATE not in complaint] == []


async def measured(ha: HomeAssistant, page: Page) -> Any:
    """What a view looks like, once all is drawn. What holds for every view is checked here."""
    await ha.until(lambda: drawn(page))
    found = await page.measured(CIRCLES)
    assert (found["wrapped"], found["cut"], found["outside"]) == ([], [], [])
    assert found["cards"] > 1
    assert found["hollow"] < MOST_HOLLOW_PX
    return found


def ring(*, there: bool) -> Any:
    """What a circle of the power flow looks like: drawn all around, and three things in it; or nothing at all."""
    least = pytest.approx(1, abs=0.05) if there else 0
    return {"ring": least, **dict.fromkeys(("word", "icon", "number"), there)}


def powers(house: House) -> dict[str, str]:
    """The flows that have a power, as the frontend writes it."""
    found = {flow: house.topic(f"site/{flow}/power") for flow in CIRCLES}
    return {flow: watts(text) for flow, text in found.items() if text not in {None, "None"}}


def of_meters(house: House) -> list[str]:
    """The powers of the meters as the frontend writes them: of each phase, or of the whole where there is one."""
    found = []
    for meter in house.simulator.home.meters:
        if meter.enabled:
            whole, *phases = (
                house.topic(f"meter/{meter.role}/{phase}power") for phase in ("", "l1/", "l2/", "l3/")
            )
            found += [watts(text) for text in phases if text] or [watts(whole)]
    return found


async def check_now(ha: HomeAssistant, house: House, page: Page) -> None:
    """A circle for each flow and none without one. Where the grid is not measured, there is a number only."""
    flows = powers(house)
    text = await look(ha, page, "now", "Connected", *(power.removesuffix(" W") for power in flows.values()))
    assert not [word for word in ("navailable", "not found", "nknown") if word in text]
    found = await measured(ha, page)
    circles = [
        {
            name: {part: value if part == "ring" else value > 0.1 for part, value in circle.items()}
            for name, circle in picture.items()
        }
        for picture in found["pictures"]
    ]
    wanted = {flow: ring(there=flow in flows) for flow in CIRCLES}
    assert circles == ([wanted] if "grid" in flows else [])


async def check_equipment(ha: HomeAssistant, house: House, page: Page) -> None:
    home = house.simulator.home
    panels = [f"{of_panel(house.topic(f'inverter/{u.serial}/power'))} {u.serial[-4:]}" for u in home.inverters]
    words = panels if len(panels) <= MOST_PANELS else [f"The {MOST_PANELS} weakest of {len(panels)}"]
    meters = of_meters(house)
    batteries = [unit.serial for unit in home.storing]
    text = await look(ha, page, "equipment", f"{len(panels)} inverters", *words, *meters, *batteries)
    assert ("There are no values of meters" in text) is not bool(meters)
    assert not [word for word in ("navailable", "not found") if word in text]
    await measured(ha, page)


@pytest.mark.may_log("values wait for more than 30 s")
@pytest.mark.parametrize(
    "home", [pytest.param(home, marks=() if home == "three-phase" else pytest.mark.slow) for home in HOMES]
)
async def test_the_dashboard_fits_each_home(
    owned: Callable[[Release], Owned], tmp_path: Path, home: str, pytestconfig: pytest.Config
) -> None:
    renewed = home == "three-phase" and pytestconfig.getoption("--update-golden")
    async with shown(owned, tmp_path, home, lived=renewed) as (ha, house, page):
        if renewed:
            await page.resize(1240, 540)
            await look(ha, page, "now", "Connected")
            await ha.until(lambda: drawn(page))
            PICTURE.write_bytes(await page.picture())
        for width in WIDTHS_PX.values():
            await page.resize(width, HEIGHT_PX)
            await check_now(ha, house, page)
            await check_equipment(ha, house, page)


async def test_the_energy_dashboard_shows_what_flows_now(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """Set up as the documents say. Around noon the sun feeds the home, the battery and the grid."""
    async with shown(owned, tmp_path, "three-phase", feeding=True) as (ha, _, page):
        assert (await energy(ha)).issues == []
        await page.go(f"{ha.url}/energy/now")
        await said(ha, page, "Power sources", "Current power flow")

        async def flows() -> bool:
            found = await page.measured({}, *FLOWING)
            return bool(min(found["painted"]) > LEAST_PAINTED)

        await ha.until(flows)


@pytest.mark.slow
async def test_it_asks_once_before_it_leaves_the_grid(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """Its switch is disabled until the owner enables it."""
    async with shown(owned, tmp_path, "split-phase", allow="all,grid") as (ha, house, page):
        text = await look(ha, page, "now", "Control", "Reserve", "Charge from grid")
        assert "Connection to the grid" not in text
        await ha.ask("config/entity_registry/update", entity_id=GRID_SWITCH, disabled_by=None)
        await ha.restart_mqtt()
        await look(ha, page, "now", "Connection to the grid")
        await measured(ha, page)

        async def press(tag: str, text: str) -> None:
            await ha.until(lambda: page.click(tag, text))

        async def is_answered() -> bool:
            return IN_THE_DARK not in await page.text()

        for answer in "Cancel", "OK":
            await press("ha-tile-info", "Connection to the grid")
            await said(ha, page, IN_THE_DARK)
            assert (await page.tags()).count("dialog-box") == 1
            assert house.simulator.writes() == []
            await press("ha-button", answer)
            await ha.until(is_answered)
        await ha.until(lambda: house.topic("command/state") == "sent")
        house.clock.forward(30)
        await ha.until(lambda: house.topic("relay/mains/grid_connected") == "OFF")
        assert len(house.simulator.writes()) == 1
        await look(ha, page, "now", "mains grid_connected OFF: confirmed")


async def test_what_an_owner_enables_is_not_taken_for_an_inverter(
    owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    async with shown(owned, tmp_path, "no-cts") as (ha, house, page):
        highest = f"sensor.inverter_{house.simulator.home.inverters[0].serial}_highest_power"
        assert highest not in await ha.states()
        await ha.enable_all()

        async def more() -> bool:
            return highest in await ha.states()

        await ha.until(more)
        await look(ha, page, "equipment", "12 inverters")


def conditions(part: object) -> Iterator[dict[str, Any]]:
    """Every condition of the dashboard."""
    if isinstance(part, dict):
        if "condition" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from conditions(value)


def test_what_is_true_of_no_entity_is_not_left_to_the_server() -> None:
    """Home Assistant 2026.11, which no test can run, asks its server about states unless one is an entity's id."""
    absent = [found["state"] for found in conditions(yaml.safe_load(EXAMPLE.read_text())) if "state" in found]
    absent = [states for states in absent if "unknown" in states]
    assert len(absent) > 10
    assert [states for states in absent if not any("." in state for state in states)] == []


def test_the_file_is_what_the_generator_writes() -> None:
    names: dict[str, Any] = {"__name__": "generate", "__file__": str(EXAMPLE.parent / "generate.py")}
    exec((EXAMPLE.parent / "generate.py").read_text(), names)  # noqa: S102 - our own
    assert EXAMPLE.read_text() == names["written"]()


def test_the_picture_is_small_enough_for_a_readme() -> None:
    assert PICTURE.stat().st_size < MAX_PICTURE_BYTES
