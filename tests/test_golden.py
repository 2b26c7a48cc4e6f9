"""What real gateways' answers become: each captured set, served over a real socket, as a real broker then holds it.

`pytest tests/test_golden.py --update-golden` writes the files anew; read the difference before you keep it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from brokers import Mosquitto, watching
from running import running, settings, settled, tree, until

from bridge.simulator import NEVER
from bridge.simulator.exchange import Receive, Scope, Send
from bridge.simulator.replay import Replay
from bridge.simulator.serve import serve

pytestmark = pytest.mark.hasty

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
CAPTURED = HERE.parents[1] / "shared" / "gateways"
"""Real gateways' answers, which are not ours to copy."""
OURS = sorted(path for path in (HERE / "data").iterdir() if (path / "info").is_file())
REAL = sorted(path for path in CAPTURED.iterdir() if (path / "info").is_file()) if CAPTURED.is_dir() else []
LAST = "/ivp/ensemble/device_list"
"""What the first round asks last."""
FIRST_ROUND = 13

RUN = ("certificate", "token_expires", "last_answer", "answer_time", "energy_since")
IN_DOCUMENTS = (*RUN, "timestamp", "started", "version")
"""What differs from run to run."""


class Witness(Replay):
    """A captured gateway that remembers what it was asked, and over how many connections."""

    def __init__(self, capture: Path) -> None:
        super().__init__(capture)
        self.paths: list[str] = []
        self.connections: set[object] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        self.connections.add(tuple(scope["client"]))
        await super().__call__(scope, receive, send)


def lines(seen: Mapping[str, str]) -> Iterator[str]:
    """`topic payload`, with what the run alone decides left out.

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
            yield f"{topic} {_text(json.loads(payload))}"
        else:
            name = topic.rpartition("/")[2]
            yield f"{topic} {f'<{name}>' if name in RUN else payload}"


def _announced(topic: str, body: dict[str, Any]) -> Iterator[str]:
    topic = re.sub(r"(?<=inverter_)\d+", "<serial>", topic)
    body["origin"]["sw_version"] = "<version>"
    if url := body["device"].get("configuration_url"):
        body["device"]["configuration_url"] = re.sub(r":\d+$", ":<port>", url)
    yield from (f"{topic} {key} {_text(entity)}" for key, entity in body.pop("components").items())
    yield f"{topic} {_text(body)}"


def _text(body: dict[str, Any]) -> str:
    return json.dumps({key: f"<{key}>" if key in IN_DOCUMENTS else value for key, value in body.items()})


async def published(replay: Witness, folder: Path) -> dict[str, str]:
    """The tree that a subscriber finds who comes when all is done."""
    gateway = {"token": replay.token()} if replay.secure else {}
    scheme = "https" if replay.secure else "http"
    with Mosquitto(folder) as broker:
        async with serve(replay, tls=replay.secure) as address, watching(broker.port) as watcher:
            gateway["host"] = f"{scheme}://{address}"
            async with running(settings(folder, broker.url, gateway=gateway)) as service:
                await until(lambda: settled(watcher, replay.serial) or service.done())
                async with watching(broker.port) as late:
                    await until(lambda: tree(late).keys() == tree(watcher).keys())
                    first = {message.topic: message.retained for message in reversed(late.seen)}
                    assert [topic for topic, retained in first.items() if not retained] == []
                    return tree(late)


@pytest.mark.skipif(not REAL, reason="the captured gateways (../shared/gateways) are not on this machine")
def test_the_captures_are_there() -> None:
    """Says in a clone elsewhere that the golden files of real gateways were not compared."""
    assert {path.stem for path in GOLDEN.glob("*.txt")} >= {path.name for path in REAL}


@pytest.mark.may_log("firmware is too old")  # 3.7.0 was captured without any of the endpoints
@pytest.mark.parametrize("folder", [*OURS, *REAL], ids=lambda path: path.name)
async def test_the_tree_of(folder: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    replay, file = Witness(folder), GOLDEN / f"{folder.name}.txt"
    found = "".join(f"{line}\n" for line in sorted(lines(await published(replay, tmp_path))))
    if pytestconfig.getoption("--update-golden"):
        file.write_text(found)
    assert found.splitlines() == file.read_text().splitlines()
    assert not set(NEVER) & set(replay.paths)
    assert replay.paths.index(LAST) < FIRST_ROUND
    assert not replay.secure or len(replay.connections) == 1


def test_each_golden_file_has_its_set() -> None:
    """A file that nothing is compared with any more would say what nobody checks."""
    known = {path.name for path in OURS} | (
        {path.name for path in REAL} or {path.stem for path in GOLDEN.iterdir()}
    )
    assert {path.stem for path in GOLDEN.iterdir()} == known
