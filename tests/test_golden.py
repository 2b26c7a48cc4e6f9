"""The topics that real gateways' answers become: each captured set is served over a real socket to a real broker.

`pytest tests/test_golden.py --update-golden` writes the files anew; read the difference before you keep it.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from brokers import Mosquitto, watching
from running import running, settings, settled, tree, until

from bridge.endpoints import ENDPOINTS
from bridge.http_server import Receive, Scope, Send
from bridge.simulator import HARMFUL_PATHS
from bridge.simulator.house import zone_where
from bridge.simulator.replay import Replay
from bridge.simulator.serve import serve

pytestmark = pytest.mark.hasty

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
CAPTURED = HERE.parents[1] / "shared" / "gateways"
"""Answers of real gateways, which are not part of the project."""
OWN_CAPTURES = sorted(path for path in (HERE / "data").iterdir() if (path / "info").is_file())
REAL_CAPTURES = (
    sorted(path for path in CAPTURED.iterdir() if (path / "info").is_file()) if CAPTURED.is_dir() else []
)
LAST = "/ivp/ensemble/device_list"
"""The last request of the first round."""
FIRST_ROUND = 13
READINGS_PATH = "/ivp/meters/readings"
SOURCES_OF_COUNTERS = {"readings", "production", "energy", "device_data"}
COUNTER_ABOVE_0 = re.compile(
    rb'"(wattHoursLifetime|actEnergyDlvd|actEnergyRcvd)"\s*:\s*"?[1-9]|"lifetime"\s*:\s*{\s*"joulesProduced"\s*:\s*[1-9]'
)
INTEGRATED_DEVICES = ("site/battery", "site/home")
INTEGRATED_NAMES = ("energy_charged", "energy_discharged", "energy_lifetime")
INTEGRATED = re.compile(rf'"({"|".join(INTEGRATED_NAMES)})": \d(\.\d+)?(?=[,}}])')
"""Energies below 10 Wh, which the bridge integrates from powers while it runs."""
INTEGRATED_BELOW_WH = 10

RUN = ("certificate", "token_expires", "last_answer", "answer_time", "energy_since")
IN_DOCUMENTS = (*RUN, "timestamp", "started", "version")
"""Fields that differ from run to run."""


class RecordingReplay(Replay):
    """A captured gateway that records its requests and counts its connections."""

    def __init__(self, capture: Path) -> None:
        super().__init__(capture)
        self.paths: list[str] = []
        self.connections: set[object] = set()

    @property
    def has_confirmed(self) -> bool:
        """Whether all sources with counters above 0 were asked twice: the second reading confirms the first.

        The meters are asked once more, since the site's energies need the counters of all sources.
        """
        paths = (endpoint.path for endpoint in ENDPOINTS if endpoint.source in SOURCES_OF_COUNTERS)
        counting = [path for path in paths if path in self.paths and COUNTER_ABOVE_0.search(self.answer(path).body)]
        return all(self.paths.count(path) > 1 + (path == READINGS_PATH) for path in counting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        self.connections.add(tuple(scope["client"]))
        await super().__call__(scope, receive, send)


def lines(seen: Mapping[str, str]) -> Iterator[str]:
    """Lines of topic and payload, without payloads that differ from run to run.

    Of discovery there is a line for each entity; inverters, being alike, are counted.
    """
    announced = Counter(
        line
        for topic, payload in seen.items()
        if topic.startswith("homeassistant/")
        for line in _announced(topic, json.loads(re.sub(r"(?<=inverter.)\d+", "<serial>", payload)))
    )
    yield from (line if times == 1 else f"{line} x{times}" for line, times in announced.items())
    for topic, payload in seen.items():
        if topic.startswith("homeassistant/"):
            continue
        if payload.startswith("{"):
            text = _text(json.loads(payload))
            yield f"{topic} {_without_integrals(text) if topic.endswith(INTEGRATED_DEVICES) else text}"
        else:
            device, _, name = topic.rpartition("/")
            integrates = device.endswith(INTEGRATED_DEVICES) and name in INTEGRATED_NAMES
            varies = name in RUN or (integrates and float(payload) < INTEGRATED_BELOW_WH)
            yield f"{topic} {f'<{name}>' if varies else payload}"


def _without_integrals(text: str) -> str:
    return INTEGRATED.sub(r'"\1": "<\1>"', text)


def _announced(topic: str, body: dict[str, Any]) -> Iterator[str]:
    topic = re.sub(r"(?<=inverter_)\d+", "<serial>", topic)
    body["origin"]["sw_version"] = "<version>"
    if url := body["device"].get("configuration_url"):
        body["device"]["configuration_url"] = re.sub(r":\d+$", ":<port>", url)
    yield from (f"{topic} {key} {_text(entity)}" for key, entity in body.pop("components").items())
    yield f"{topic} {_text(body)}"


def _text(body: dict[str, Any]) -> str:
    return json.dumps({key: f"<{key}>" if key in IN_DOCUMENTS else value for key, value in body.items()})


EVENING = zone_where(20, time.time())
"""A time zone where the day is over, so that it can have brought the energy that the captured gateways tell."""


async def published(replay: RecordingReplay, folder: Path) -> dict[str, str]:
    """The tree that a new subscriber receives at the end."""
    gateway = {"token": replay.token()} if replay.secure else {}
    scheme = "https" if replay.secure else "http"
    with Mosquitto(folder) as broker:
        async with serve(replay, tls=replay.secure) as address, watching(broker.port) as watcher:
            gateway["host"] = f"{scheme}://{address}"
            async with running(settings(folder, broker.url, gateway=gateway, timezone=EVENING)) as service:
                await until(lambda: settled(watcher, replay.serial) or service.done())
                await until(lambda: replay.has_confirmed or service.done())
                asked = len(replay.paths)
                await until(lambda: len(replay.paths) > asked + 1 or service.done())  # the answers are processed
                await until(lambda: settled(watcher, replay.serial, exact=True) or service.done())
                async with watching(broker.port) as late:
                    await until(lambda: tree(late).keys() == tree(watcher).keys())
                    retained = {message.topic for message in late.seen if message.retained}
                    assert {message.topic for message in late.seen} == retained
                    return tree(late)


@pytest.mark.skipif(not REAL_CAPTURES, reason="the captured gateways (../shared/gateways) are not on this machine")
def test_the_captures_are_there() -> None:
    """If this test is skipped, the golden files of real gateways were not compared."""
    assert {path.stem for path in GOLDEN.glob("*.txt")} >= {path.name for path in REAL_CAPTURES}


@pytest.mark.may_log("firmware is too old")  # 3.7.0 was captured without any of the endpoints
@pytest.mark.parametrize("folder", [*OWN_CAPTURES, *REAL_CAPTURES], ids=lambda path: path.name)
async def test_the_tree_of(folder: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    replay, file = RecordingReplay(folder), GOLDEN / f"{folder.name}.txt"
    found = "".join(f"{line}\n" for line in sorted(lines(await published(replay, tmp_path))))
    if pytestconfig.getoption("--update-golden"):
        file.write_text(found)
    assert found.splitlines() == file.read_text().splitlines()
    assert not set(HARMFUL_PATHS) & set(replay.paths)
    assert replay.paths.index(LAST) < FIRST_ROUND
    assert not replay.secure or len(replay.connections) == 1


def test_each_golden_file_has_its_set() -> None:
    """No golden file is left that nothing is compared with."""
    known = {path.name for path in OWN_CAPTURES} | (
        {path.name for path in REAL_CAPTURES} or {path.stem for path in GOLDEN.iterdir()}
    )
    assert {path.stem for path in GOLDEN.iterdir()} == known
