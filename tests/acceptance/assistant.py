"""A headless Home Assistant on loopback, and what a person would do with it."""

import asyncio
import itertools
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from brokers import free_port
from install import INSIDE, Release
from running import SPEED_FACTOR
from websockets.asyncio.client import ClientConnection, connect

START_TIMEOUT_S = 300.0
"""Real seconds until a test gives up; nothing here takes a tenth of it."""
POLL_INTERVAL_S = 0.1 * SPEED_FACTOR
"""Seconds between two looks, in a loop that shortens idle waits."""
CONFIGURATION_YAML = """
homeassistant:
  name: Home
  unit_system: metric
  time_zone: UTC
  currency: EUR
  country: DE
http:
  server_host: 127.0.0.1
  server_port: {port}
api:
config:
websocket_api:
history:
energy:
recorder:
  commit_interval: 1
logger:
  default: warning
compile_statistics:
"""
LINE = re.compile(
    r"^\S+ \S+ (WARNING|ERROR|CRITICAL) \(.*?\) \[([\w.]+)\] (.*)((?:\n(?!\d{4}-).+)*)$", re.MULTILINE
)
"""A line of its log: level, logger, text, and the lines that follow it, such as those of a traceback."""
NOT_OURS = (
    "homeassistant.loader",
    "homeassistant.bootstrap",
    "homeassistant.components.camera.img_util",  # which wants a library of the system
    "aiohttp_fast_zlib",
)
"""Loggers of no concern: they warn of the tests' own integration and of how Home Assistant was installed."""
SLOW_MACHINE = re.compile(r"Updating state for \S+ .* took [\d.]+ seconds")
"""Home Assistant says this of any entity when the machine is busy."""


@dataclass(frozen=True, slots=True)
class Owned:
    """A new configuration folder that has an owner already. It is copied for each test."""

    release: Release
    folder: Path
    token: str

    @classmethod
    def make(cls, release: Release, folder: Path) -> Self:
        shutil.copytree(INSIDE / "custom_components", folder / "custom_components")
        command = [release.interpreter, INSIDE / "settle_in.py", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return cls(release, folder, done.stdout.split()[-1])


class HomeAssistant:
    """One installation. It may be stopped and started again; what it knows stays in its folder."""

    def __init__(
        self, owned: "Owned", folder: Path, *, extra: str = "", files: Mapping[str, str] | None = None
    ) -> None:
        self.release = owned.release
        self.token = owned.token
        self._folder = folder / "homeassistant"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._http = httpx.AsyncClient()
        self._socket: ClientConnection | None = None
        self._ids = itertools.count(1)
        shutil.copytree(owned.folder, self._folder)
        (self._folder / "configuration.yaml").write_text(CONFIGURATION_YAML.format(port=self._port) + extra)
        for name, text in (files or {}).items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(text)

    @property
    def log(self) -> str:
        file = self._folder / "printed.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def complaints(self) -> list[str]:
        """What its log holds at WARNING or above, as far as a bridge can be the reason."""
        found = LINE.findall(self.log)
        return [
            f"{level} {logger}: {text}{more}"
            for level, logger, text, more in found
            if not logger.startswith(NOT_OURS) and not SLOW_MACHINE.match(text)
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """From its start until it has written everything down."""
        with (self._folder / "printed.log").open("ab") as log:
            command: list[str | Path] = [self.release.interpreter, INSIDE / "boot.py", "-c", self._folder]
            options = ("--skip-pip", "--log-no-color")
            process = await asyncio.create_subprocess_exec(
                *command, *options, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            async with AsyncExitStack() as stack:
                headers = {"Authorization": f"Bearer {self.token}"}
                client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=None)  # noqa: S113 - `until`
                self._http = await stack.enter_async_context(client)
                await self.until(lambda: self._is_up(process))
                await stack.enter_async_context(self._introduced())
                yield
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()

    async def _is_up(self, process: asyncio.subprocess.Process) -> bool:
        assert process.returncode is None, self.log[-3000:]
        try:
            answer = await self._http.get("/api/config")
        except httpx.TransportError:
            return False
        return bool(answer.is_success and answer.json()["state"] == "RUNNING")

    @asynccontextmanager
    async def _introduced(self) -> AsyncIterator[None]:
        address = f"ws://127.0.0.1:{self._port}/api/websocket"
        options: dict[str, Any] = {
            "max_size": None,
            "ping_interval": None,
            "open_timeout": None,
            "close_timeout": None,
        }
        async with connect(address, proxy=None, **options) as self._socket:
            await self._socket.recv()
            await self._socket.send(json.dumps({"type": "auth", "access_token": self.token}))
            assert json.loads(await self._socket.recv())["type"] == "auth_ok"
            self._ids = itertools.count(1)
            yield

    async def ask(self, what: str, **more: Any) -> Any:
        """A command of its WebSocket API, and the result."""
        assert self._socket is not None
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "type": what, **more}))
        while True:
            answer = json.loads(await self._socket.recv())
            if (answer["id"], answer["type"]) == (number, "result"):
                assert answer["success"], f"{what}: {answer['error']}"
                return answer["result"]

    async def until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once that is true. It may be asynchronous."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            assert time.monotonic() < deadline, f"it never came; the log ends with\n{self.log[-2000:]}"
            await asyncio.sleep(POLL_INTERVAL_S)

    def remember(self, rows: Iterable[tuple[float, str, str]]) -> None:
        """States that it shall have seen: time (seconds since 1970), entity and state. It must not run."""
        with closing(sqlite3.connect(self._folder / "home-assistant_v2.db")) as database, database:
            known = dict(database.execute("select entity_id, metadata_id from states_meta"))
            shared = dict(
                database.execute("select metadata_id, max(attributes_id) from states group by metadata_id")
            )
            put = "insert into states (state, last_updated_ts, metadata_id, attributes_id) values (?, ?, ?, ?)"
            for when, entity, state in rows:
                database.execute(put, (state, when, known[entity], shared[known[entity]]))

    async def use_broker(self, port: int) -> None:
        """As in Settings, Devices & services, Add integration, MQTT."""
        flows = "/api/config/config_entries/flow"
        flow = (await self._http.post(flows, json={"handler": "mqtt", "show_advanced_options": True})).json()
        if flow["type"] == "menu":
            flow = (await self._http.post(f"{flows}/{flow['flow_id']}", json={"next_step_id": "broker"})).json()
        fields = {field["name"] for field in flow["data_schema"]}
        advanced = {"set_client_cert": False, "set_ca_cert": "off", "transport": "tcp"}
        answers = {"broker": "127.0.0.1", "port": port, "protocol": "5", "other_settings": advanced, **advanced}
        data = {name: value for name, value in answers.items() if name in fields}
        done = (await self._http.post(f"{flows}/{flow['flow_id']}", json=data)).json()
        assert done["type"] == "create_entry", done

    async def use_prefix(self, prefix: str) -> None:
        """As in the options of the integration: where it looks for discovery."""
        (entry,) = await self.ask("config_entries/get", domain="mqtt")
        flows = "/api/config/config_entries/options/flow"
        flow = (await self._http.post(flows, json={"handler": entry["entry_id"]})).json()
        kept = {f["name"]: f["default"] for f in flow["data_schema"] if f.get("required") and "default" in f}
        answers = {**kept, "discovery": True, "discovery_prefix": prefix}
        done = (await self._http.post(f"{flows}/{flow['flow_id']}", json=answers)).json()
        assert done["type"] == "create_entry", done

    async def discovered(self) -> dict[str, tuple[str, str]]:
        """The discovery topic of each enabled entity, and the version of the program that it comes from."""
        found = {}
        for device in (await self.devices()).values():
            info = await self.ask("mqtt/device/debug_info", device_id=device["id"])
            for entity in info["entities"]:
                data = entity["discovery_data"]
                found[entity["entity_id"]] = (data["topic"], data["payload"]["origin"]["sw_version"])
        return found

    async def history(self, entity_id: str) -> list[dict[str, Any]]:
        """What the recorder has of an entity, oldest first."""
        await self.act("compile_statistics", "now")  # everything is written down then
        asked = {"start_time": "2000-01-01T00:00:00Z", "entity_ids": [entity_id], "minimal_response": True}
        found: dict[str, list[dict[str, Any]]] = await self.ask("history/history_during_period", **asked)
        return found.get(entity_id, [])

    async def recorded(self) -> Counter[str]:
        """How many rows the recorder has of each of MQTT's entities."""
        await self.act("compile_statistics", "now")  # everything is written down then
        mine = {entity["entity_id"] for entity in (await self.entities()).values()}
        query = "select m.entity_id, count(*) from states join states_meta m using (metadata_id) group by 1"
        with closing(sqlite3.connect(self._folder / "home-assistant_v2.db")) as database:
            return Counter({entity: count for entity, count in database.execute(query) if entity in mine})

    async def enable_all(self) -> None:
        """Every entity that was disabled when it came."""
        for entity in (await self.entities()).values():
            if entity["disabled_by"] is not None:
                await self.ask("config/entity_registry/update", entity_id=entity["entity_id"], disabled_by=None)
        await self.restart_mqtt()

    async def restart_mqtt(self) -> None:
        """As in the menu of the integration: what was enabled comes to life."""
        (entry,) = await self.ask("config_entries/get", domain="mqtt")
        done = await self._http.post(f"/api/config/config_entries/entry/{entry['entry_id']}/reload")
        assert done.is_success, done.text

    async def configure(self, domain: str, identity: str, body: Mapping[str, Any]) -> None:
        """As the editor of automations does."""
        done = await self._http.post(f"/api/config/{domain}/config/{identity}", json=body)
        assert done.is_success, done.text

    async def act(self, domain: str, action: str, **data: Any) -> None:
        await self.ask("call_service", domain=domain, service=action, service_data=data)

    async def states(self) -> dict[str, dict[str, Any]]:
        return {state["entity_id"]: state for state in await self.ask("get_states")}

    async def entities(self) -> dict[str, dict[str, Any]]:
        """MQTT's entities in the registry, disabled ones included, by unique id."""
        known = await self.ask("config/entity_registry/list")
        return {entity["unique_id"]: entity for entity in known if entity["platform"] == "mqtt"}

    async def devices(self) -> dict[str, dict[str, Any]]:
        """MQTT's devices by their id in discovery."""
        known = await self.ask("config/device_registry/list")
        pairs = [(pair, device) for device in known for pair in device["identifiers"]]
        return {pair[1]: device for pair, device in pairs if pair[0] == "mqtt"}
