"""A real, headless Node-RED, of two releases: installed once for each machine, started with flows of a test."""

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port
from programs import Program, started
from running import until

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iqgateway2mqtt-tests"
DASHBOARD = "1.31.0"
EXAMPLES = Path(__file__).parents[2] / "examples" / "node-red"
BROKER = "enphase-broker"
READY = "Started flows"
TROUBLE = re.compile(r"\[(warn|error)\] (?!Projects disabled|Using unencrypted)|Waiting for missing types|Error:")
START_TIMEOUT_S = 120.0
"""Real seconds until a test gives up; nothing here takes a tenth of it."""
SETTINGS = {
    "flowFile": "flows.json",
    "credentialSecret": False,
    "httpAdminRoot": False,
    "httpNodeRoot": "/",
    "uiHost": "127.0.0.1",
    "diagnostics": {"enabled": False},
    "telemetry": {"enabled": False},
    "logging": {"console": {"level": "info", "metrics": False, "audit": False}},
}
EAR = "const { topic, payload } = msg; return { payload: JSON.stringify({ topic, payload, ear: node.name }) };"
Node = dict[str, Any]
TAB: Node = {"id": "tab", "type": "tab", "label": "test"}
SHOWN = {"x": 100, "y": 100}
"""What stands nowhere in the editor is taken for configuration, and has no wires."""


@dataclass(frozen=True)
class Release:
    """A Node-RED with its dashboard. `node` is the version of npm's package that runs it, not the machine's."""

    version: str
    node: str = ""

    @property
    def there(self) -> Path:
        return CACHE / f"node-red-{self.version}-{DASHBOARD}"

    @property
    def interpreter(self) -> str:
        return str(self.there / "node_modules" / _npms_node() / "bin" / "node") if self.node else "node"

    @property
    def packages(self) -> list[str]:
        found = [f"node-red@{self.version}", f"@flowfuse/node-red-dashboard@{DASHBOARD}"]
        return [*found, *([f"{_npms_node()}@{self.node}"] if self.node else [])]

    def install(self) -> None:
        """Unless it is there. In CI it must be had; elsewhere a test is skipped with the reason why not."""
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{self.there.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run at the same time waits
            problem = None if self.there.is_dir() else self._install()
        if problem and os.environ.get("CI"):
            pytest.fail(problem)
        if problem:
            pytest.skip(problem)

    def _install(self) -> str | None:
        """Beside its place, then moved there: a run that is stopped halfway leaves nothing that looks whole."""
        if not (shutil.which("npm") and shutil.which("node")):
            return "Node-RED needs node (18.5 or later) and npm: apt-get install nodejs npm"
        half = self.there.with_name(f"{self.there.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        options = ["--no-audit", "--no-fund", "--no-update-notifier", "--omit=optional", "--ignore-scripts"]
        command: list[str | Path] = ["npm", "install", *options, "--prefix", half, *self.packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"npm can't install {' '.join(self.packages)}: {done.stderr[-500:]}"
        half.rename(self.there)
        return None


NODE_RED_4 = Release("4.1.15")
"""It is content with Node 18.5, so that Debian 12's will do."""
NODE_RED_5 = Release("5.0.7", node="22.22.3")
"""It needs Node 22.9."""


def _npms_node() -> str:
    """The package that npm's package `node` installs by a script, which npm may refuse to run."""
    said = subprocess.run(
        ["node", "-p", "process.platform + '-' + process.arch"], capture_output=True, text=True, check=True
    )
    return f"node-{said.stdout.strip()}"


def example(name: str, port: int, **settings: float | str) -> list[Node]:
    """An example's nodes, at a broker of the test. `settings` replace environment variables of the flow."""
    nodes: list[Node] = json.loads((EXAMPLES / f"{name}.json").read_text())
    nodes = [at_home(node, port) for node in nodes]
    for node in nodes:
        if node["type"] == "inject" and node["repeat"]:
            node["repeat"] = "0.2"  # a test has no patience for a tick
        for variable in node.get("env", ()):
            variable["value"] = str(settings.pop(variable["name"], variable["value"]))
    assert not settings, "no such setting"
    return nodes


def at_home(node: Node, port: int) -> Node:
    """A node of somebody's flow, at a broker of the test. What is imported lands in the tab that is open."""
    if node["type"] == "mqtt-broker":
        return {**node, "broker": "127.0.0.1", "port": str(port)}
    return {"z": TAB["id"], **node} if "x" in node else node


def broker(identity: str, port: int, version: str) -> Node:
    """A broker as Node-RED has it; `version` is 4 (MQTT 3.1.1) or 5."""
    named = {"id": identity, "type": "mqtt-broker", "broker": "127.0.0.1", "port": str(port)}
    return {**named, "protocolVersion": version, "keepalive": "60", "cleansession": True, "autoConnect": True}


def subscription(identity: str, topic: str, at: str, *to: str) -> Node:
    """An `mqtt in` node as the editor makes it: QoS 2, auto-detect."""
    node = {"id": identity, "type": "mqtt in", "z": TAB["id"], "topic": topic, "broker": at, "wires": [list(to)]}
    return {**node, **SHOWN, "qos": "2", "datatype": "auto-detect", "nl": False, "rap": True, "rh": 0, "inputs": 0}


def ear(identity: str, tab: str, file: Path) -> list[Node]:
    """Writes down what it hears."""
    hand, place = f"{identity}-file", {"z": tab, **SHOWN}
    function = {"id": identity, "type": "function", "name": identity, "func": EAR, "outputs": 1, "wires": [[hand]]}
    writer = {"id": hand, "type": "file", "filename": str(file), "filenameType": "str", "wires": [[]]}
    options = {"appendNewline": True, "overwriteFile": "false", "encoding": "utf8"}
    return [{**function, **place}, {**writer, **options, **place}]


@dataclass(frozen=True)
class NodeRed:
    """One that runs. `url` is where its dashboard is."""

    program: Program
    url: str
    file: Path

    def heard(self, name: str) -> list[Mapping[str, Any]]:
        """What an ear has heard, oldest first: topic and payload."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [message for message in map(json.loads, lines) if message["ear"] == name]

    @property
    def log(self) -> list[str]:
        return [*self.program.out, *self.program.err]

    @property
    def trouble(self) -> list[str]:
        return [line for line in self.log if TROUBLE.search(line)]


@asynccontextmanager
async def node_red(
    folder: Path,
    nodes: Iterable[Node],
    ears: Mapping[str, str] | None = None,
    release: Release = NODE_RED_5,
) -> AsyncIterator[NodeRed]:
    """Runs with these nodes until the end of the test. It may neither warn nor complain.

    `ears` are nodes whose outputs are written down, each `id` or `id:output` with a name for what is heard.
    """
    release.install()
    port, file = free_port(), folder / "heard.jsonl"
    flows = list(nodes)
    for place, name in (ears or {}).items():
        identity, _, output = place.partition(":")
        (source,) = [node for node in flows if node["id"] == identity]
        source["wires"][int(output or 0)].append(name)
        flows += ear(name, source["z"], file)
    settings = {**SETTINGS, "uiPort": port, "userDir": str(folder)}
    (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)};\n")
    (folder / "flows.json").write_text(json.dumps(flows))
    red = release.there / "node_modules" / "node-red" / "red.js"
    command = (release.interpreter, "--max-old-space-size=256", str(red), "-s", str(folder / "settings.js"))
    async with started(*command) as program:
        found = NodeRed(program, f"http://127.0.0.1:{port}", file)
        await until(
            lambda: any(READY in line for line in found.log) or program.process.returncode is not None,
            START_TIMEOUT_S,
        )
        assert program.process.returncode is None, found.log
        try:
            yield found
        except AssertionError as error:
            error.add_note("\n".join(found.log))
            raise
        assert found.trouble == [], found.log
