"""How often each topic is published, judged by a subscriber that knows only docs/topics.md."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from house.clock import LeapingLoop
from house.faults import MAY_28_2026
from house.gateway import READINGS
from house.kinds import BY_NAME
from house.model import HOUR_S, Kind
from house.world import PREFIX, World, world
from running import flat

BATTERY_HOME = replace(
    BY_NAME["net3"], name="battery3", storage_ct=True, battery_wh=10_000, ensemble=True, inverters=20
)
LIVE_HOME = replace(BY_NAME["live1"], name="live", profile="live")
SECCTRL = "/ivp/ensemble/secctrl"
WARM_UP_S, TOLERANCE_S = 600.0, 0.5
BANDS = {
    **dict.fromkeys(("power", "apparent_power", "reactive_power", "instantaneous_demand"), 1.0),
    **dict.fromkeys(("current", "frequency", "power_factor"), 0.01),
    "voltage": 0.1,
}
PACES = {
    **dict.fromkeys(("power", "apparent_power", "reactive_power", "instantaneous_demand", "current"), 30.0),
    **dict.fromkeys(("voltage", "frequency", "power_factor"), 60.0),
}
ENERGY_WH, ENERGY_PACE_S = 10.0, 60.0


@dataclass
class Hour:
    """What a subscriber has heard, each with its time, and when the gateway has answered which path."""

    values: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    documents: dict[str, list[tuple[float, Mapping[str, Any]]]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def listen(self, made: World) -> None:
        def heard(topic: str, payload: bytes) -> None:
            if topic.startswith(PREFIX) and payload.startswith(b"{"):
                self.documents[topic.removeprefix(PREFIX)].append((made.now(), json.loads(payload)))
            elif topic.startswith(PREFIX):
                self.values[topic.removeprefix(PREFIX)].append((made.now(), payload.decode()))

        made.listeners.append(heard)
        made.gateway.listeners.append(lambda path: self.answers[path].append(made.now()))

    def published(self, topic: str, at: float) -> tuple[float, str] | None:
        """The last value of a topic at this time, and since when it is there."""
        return next((told for told in reversed(self.values[topic]) if told[0] <= at), None)


def moved(before: str, after: str) -> float:
    """By how much a value has moved; infinitely, if one is no number."""
    try:
        return abs(float(after) - float(before))
    except ValueError:
        return 0.0 if before == after else float("inf")


def is_energy(name: str) -> bool:
    return "energy" in name and name != "energy_since"


def pace(topic: str, profile: str) -> float:
    """The least seconds between two publications of a topic."""
    name = topic.rpartition("/")[2]
    if profile == "live" or (topic.startswith("site/") and name == "power"):
        return 0.0
    return ENERGY_PACE_S if is_energy(name) else PACES.get(name, 0.0)


def too_early(hour: Hour, profile: str) -> Iterator[str]:
    for topic, told in hour.values.items():
        for (before, old), (after, new) in pairwise(told):
            is_urgent = is_energy(topic.rpartition("/")[2]) and moved(old, new) >= ENERGY_WH
            if after - before < pace(topic, profile) - TOLERANCE_S and not is_urgent:
                yield f"{topic}: {old} and {new} within {after - before:.2f} s"


def too_late(hour: Hour, profile: str) -> Iterator[str]:
    """Documents come with each answer, so they tell what the value topics should have."""
    for device, documents in hour.documents.items():
        for at, document in documents:
            for name, text in flat(dict(document)).items():
                topic, last = f"{device}/{name}", name.rpartition("/")[2]
                known = hour.published(topic, at + TOLERANCE_S)
                if known is None or last in {"last_answer", "answer_time", "failures"}:
                    continue
                since, told = known
                if since > at:
                    continue  # of a later answer, whose document waits for its second
                difference = moved(told, text)
                band = BANDS.get(last, 1.0 if is_energy(last) else 0.0)
                if difference < band - 1e-6 or difference == 0:
                    continue
                is_urgent = is_energy(last) and difference >= ENERGY_WH
                if is_urgent or at - since > pace(topic, profile) + TOLERANCE_S:
                    yield f"{topic}: {text} is not told at {at:.2f}, but {told} of {at - since:.2f} s ago"


def never_told(hour: Hour, at: float) -> Iterator[str]:
    for device, documents in hour.documents.items():
        for name, text in flat(dict(documents[-1][1])).items():
            topic, last = f"{device}/{name}", name.rpartition("/")[2]
            known = hour.published(topic, at)
            band = BANDS.get(last, 1.0 if is_energy(last) else 0.0)
            if known and moved(known[1], text) > band and last not in {"last_answer", "answer_time", "failures"}:
                yield f"{topic}: {text} never comes after {known[1]}"


def _wavering(reading: Mapping[str, Any], chance: random.Random) -> Mapping[str, Any]:
    """A reading of a meter whose voltages, frequencies and power factors are not the same each time."""
    moved = {name: reading[name] + chance.uniform(-0.5, 0.5) for name in ("voltage", "freq", "pwrFactor")}
    channels = {"channels": [_wavering(each, chance) for each in reading.get("channels", ())]}
    return {**reading, **moved, **(channels if "channels" in reading else {})}


def listened(kind: Kind, folder: Path, seconds: float, jitter_s: float = 0.0) -> tuple[Hour, float]:
    """Listen for so many seconds, then let the gateway fall silent. Returns what was heard, and the end."""

    async def work() -> tuple[Hour, float]:
        hour, chance = Hour(), random.Random(7)  # noqa: S311 - no secret
        settings = {"mqtt": {"payload": "both"}}
        async with world(kind, folder, MAY_28_2026 + 11 * HOUR_S, settings=settings) as made:
            await made.start_bridge()
            await made.sleep(WARM_UP_S)
            made.gateway.tweaks.changes[READINGS] = lambda body: [_wavering(meter, chance) for meter in body]
            hour.listen(made)
            end = made.now() + seconds
            while made.now() < end:
                made.gateway.tweaks.delay_s = 0.03 + chance.random() * jitter_s
                await made.sleep(1)
            made.gateway.tweaks.is_down = True
            await made.sleep(ENERGY_PACE_S + 2)
            return hour, made.now()

    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(work())


@pytest.mark.may_log("no connection", "can't be read")
def test_no_value_comes_too_often_or_too_late_and_those_of_the_site_come_with_each_answer(tmp_path: Path) -> None:
    heard, end = listened(BATTERY_HOME, tmp_path, HOUR_S / 2)
    assert len(heard.values) > 100
    assert list(too_early(heard, "normal")) == []
    assert list(too_late(heard, "normal")) == []
    assert list(never_told(heard, end)) == []
    for topic in ("solar/power", "grid/power", "battery/power", "home/power", "battery/soc"):
        told = [at for at, _ in heard.values[f"site/{topic}"]]
        answers = heard.answers[SECCTRL if topic == "battery/soc" else READINGS]
        assert len(answers) > 10
        assert [round(after - before, 1) for before, after in zip(answers, told, strict=True)] == [0] * len(answers)


@pytest.mark.may_log("no connection", "can't be read")
def test_in_profile_live_nothing_is_paced_and_no_document_gets_older(tmp_path: Path) -> None:
    """Answers take 30 to 230 ms, and the site's documents come of two sources."""
    heard, end = listened(LIVE_HOME, tmp_path, 300, jitter_s=0.2)
    assert list(too_late(heard, "live")) == []
    assert list(never_told(heard, end)) == []
    for device in ("live/pv", "live/grid", "site/grid", "site/home"):
        *told, _last = heard.documents[
            device
        ]  # of another source, perhaps, and waits for a livedata that never comes
        ages = [at - datetime.fromisoformat(document["timestamp"]).timestamp() for at, document in told]
        assert len(ages) > 290
        assert max(ages) < 0.02, device
        assert min(after - before for (before, _), (after, _) in pairwise(told)) >= 0.75
