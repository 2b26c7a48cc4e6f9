"""docs/moving.md, "Keep the history": what becomes of statistics that another program's entity has left."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from assistant import HomeAssistant, Owned
from brokers import Mosquitto, watching
from houses import House, housed, publish
from install import NEWEST, Release
from running import running

pytestmark = [pytest.mark.hasty, pytest.mark.slow]
OLD, OURS, ASIDE = "sensor.old_solar", "sensor.enphase_solar_energy_produced", "sensor.old_solar_old"
CONFIG, VALUE = "homeassistant/sensor/old_solar/config", "old/solar"
USED = "because the new (statistic_id|entity_id) is already in use"
KILO = 1000.0
NO_VALUES = ("unknown", "unavailable")


@dataclass(frozen=True, slots=True)
class MovingHome:
    ha: HomeAssistant
    house: House

    @property
    def ours(self) -> float:
        """Our counter, in kWh."""
        return float(self.house.topic("site/solar/energy_lifetime") or "nan") / KILO

    async def shows(self, entity: str, state: str | None) -> None:
        """Until it does; `None` for an entity that is gone."""

        async def true() -> bool:
            return (await self.ha.states()).get(entity, {}).get("state") == state

        await self.ha.until(true)

    async def shows_ours(self, entity: str) -> None:
        """Until this entity shows our counter."""

        async def true() -> bool:
            state = (await self.ha.states()).get(entity, {}).get("state", "unknown")
            return state not in NO_VALUES and float(state) == pytest.approx(self.ours, abs=1e-6)

        await self.ha.until(true)

    async def rename(self, entity: str, new: str) -> None:
        await self.ha.ask("config/entity_registry/update", entity_id=entity, new_entity_id=new)

    async def sums(self, entity: str) -> list[dict[str, float]]:
        """`start` (ms), `state` and `sum` (kWh) of the statistics that the Energy dashboard draws, oldest first."""
        asked = {"start_time": "2000-01-01T00:00:00Z", "statistic_ids": [entity], "period": "5minute"}
        units = {"energy": "kWh"}
        found = await self.ha.ask("recorder/statistics_during_period", units=units, types=["state", "sum"], **asked)
        rows: list[dict[str, float]] = found.get(entity, [])
        return rows


@asynccontextmanager
async def moving(owned: Owned, folder: Path, factor: float) -> AsyncIterator[tuple[MovingHome, float]]:
    """Both run side by side, and statistics are made of both. The other's counter stands at `factor` times ours."""
    ha = HomeAssistant(owned, folder)
    with Mosquitto(folder) as broker:
        async with (
            housed(folder, broker, "no-cts") as house,
            watching(broker.port) as house.watcher,
            ha.running(),
            running(house.settings()),
        ):
            scene = MovingHome(ha, house)
            await ha.use_broker(broker.port)
            await ha.until(lambda: house.topic("site/solar/energy_lifetime"))
            old = round(scene.ours * factor, 3)
            config = {
                "name": "Old solar",
                "unique_id": "old_solar",
                "default_entity_id": OLD,
                "state_topic": VALUE,
                "device_class": "energy",
                "state_class": "total_increasing",
                "unit_of_measurement": "kWh",
            }
            await publish(broker, CONFIG, json.dumps(config), "-r")
            await publish(broker, VALUE, str(old), "-r")
            await scene.shows(OLD, str(old))
            await scene.shows_ours(OURS)
            await ha.act("compile_statistics", "now")
            yield scene, old


async def take_away(scene: MovingHome) -> None:
    await publish(scene.house.broker, CONFIG, "", "-r")
    await scene.shows(OLD, None)


@pytest.mark.parametrize(("factor", "bar"), [(0.5, "the rest"), (1.05, "the rest"), (2.0, "all")])
async def test_ours_goes_on_under_the_old_id_once_the_bar_is_adjusted(
    factor: float, bar: str, owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    """Where it stands much lower, Home Assistant takes it for a counter that began anew, and counts all of it."""
    async with moving(owned(NEWEST), tmp_path, factor) as (scene, old):
        await take_away(scene)
        await scene.rename(OURS, OLD)
        await scene.shows_ours(OLD)
        await scene.ha.act("compile_statistics", "now", later=1)
        began, went_on = await scene.sums(OLD)
        jump = went_on["sum"] - began["sum"]
        assert jump == pytest.approx(went_on["state"] - (old if bar == "the rest" else 0), abs=0.001)
        when = datetime.fromtimestamp(went_on["start"] / 1000, UTC).isoformat()
        what = {"statistic_id": OLD, "start_time": when, "adjustment_unit_of_measurement": "kWh"}
        await scene.ha.ask("recorder/adjust_sum_statistics", adjustment=-jump, **what)

        async def flat() -> bool:
            return [row["sum"] for row in await scene.sums(OLD)] == pytest.approx([0, 0], abs=0.001)

        await scene.ha.until(flat)
        assert all(re.search(USED, line) for line in scene.ha.complaints)
        assert len(await scene.sums(OURS)) == 1, "ours of the time before the renaming stays behind"


async def test_too_late_the_sum_begins_at_zero(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """Home Assistant goes on from the last five minutes, and forgets those after ten days; here at once."""
    async with moving(owned(NEWEST), tmp_path, 0.5) as (scene, _):
        await take_away(scene)
        await scene.ha.act("recorder", "purge", keep_days=0)
        await scene.rename(OURS, OLD)
        await scene.shows_ours(OLD)
        await scene.ha.act("compile_statistics", "now", later=1)
        rows = await scene.sums(OLD)
        assert rows[-1]["state"] == pytest.approx(scene.ours)
        assert {row["sum"] for row in rows} == {0}


async def test_an_old_entity_that_is_renamed_takes_its_statistics_along(
    owned: Callable[[Release], Owned], tmp_path: Path
) -> None:
    """So nothing is left under its id for ours to go on with."""
    async with moving(owned(NEWEST), tmp_path, 0.5) as (scene, old):
        await scene.rename(OLD, ASIDE)
        await scene.shows(ASIDE, str(old))

        async def left() -> bool:
            return await scene.sums(OLD) == []

        await scene.ha.until(left)
        await scene.rename(OURS, OLD)
        await scene.shows_ours(OLD)
        await scene.ha.act("compile_statistics", "now", later=1)
        aside, ours = await scene.sums(ASIDE), await scene.sums(OLD)
        assert [row["state"] for row in aside] == pytest.approx([old, old])
        assert [row["state"] for row in ours] == pytest.approx([scene.ours, scene.ours])
        assert scene.ha.complaints == []


async def test_the_energy_dashboard_keeps_both(owned: Callable[[Release], Owned], tmp_path: Path) -> None:
    """What it says of the old one that is gone, and that what it has drawn stays."""
    async with moving(owned(NEWEST), tmp_path, 0.5) as (scene, _):
        ha = scene.ha
        solar = {"type": "solar", "config_entry_solar_forecast": None}
        sources = [{**solar, "stat_energy_from": entity} for entity in (OLD, OURS)]
        await ha.ask("energy/save_prefs", energy_sources=sources)
        await take_away(scene)
        await ha.act("compile_statistics", "now", later=1)
        assert [len(await scene.sums(entity)) for entity in (OLD, OURS)] == [1, 2]
        checked = (await ha.ask("energy/validate"))["energy_sources"]
        assert [[issue["type"] for issue in one] for one in checked] == [["entity_not_defined"], []]
        repairs = await ha.ask("recorder/validate_statistics")
        assert {name: [issue["type"] for issue in one] for name, one in repairs.items()} == {OLD: ["no_state"]}
        assert ha.complaints == []
