"""Signals: SIGHUP makes the service read settings and tokens again, without losing its state."""

import asyncio
import gc
import os
import pty
import signal
import weakref
from pathlib import Path

import pytest
from houses import house
from programs import BRIDGE_COMMAND, started
from running import until

from bridge.service.bridge import collect_seldom

GOOD_FILE = """
[gateway]
host = "{host}"
token_file = "{token}"
[mqtt]
url = "{broker}"
base_topic = "{base}"
"""


async def test_what_a_bridge_keeps_is_exempt_from_collections_but_no_garbage() -> None:
    class Thing:
        myself: object = None

    garbage = Thing()
    garbage.myself, watch = garbage, weakref.ref(garbage)
    del garbage
    task = asyncio.create_task(collect_seldom(0.0))
    await until(lambda: gc.get_freeze_count() > 0)
    assert watch() is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gc.get_freeze_count() == 0, "a bridge that is replaced becomes garbage"


async def test_reload(tmp_path: Path) -> None:
    """A token that is added later, settings that are wrong, and settings that change."""
    config, token = tmp_path / "settings.toml", tmp_path / "token"
    async with house(tmp_path) as home:

        def write(base: str, extra: str = "") -> None:
            text = GOOD_FILE.format(host=home.url, token=token, broker=home.broker.url, base=base)
            config.write_text(text + extra)

        def state(base: str) -> str | None:
            return home.seen.get(f"{base}/{home.serial}/state")

        write("enphase")
        token.write_text("no token yet")
        kept = {"BRIDGE_CONFIG": str(config), "BRIDGE_STATE_DIR": str(tmp_path / "state")}
        async with started(*BRIDGE_COMMAND, "run", env=kept) as bridge:
            await until(
                lambda: any("BRIDGE_GATEWAY__TOKEN_FILE: this is not a token" in line for line in bridge.err)
            )
            token.write_text(home.simulator.token())
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: state("enphase") == "online")

            write("enphase", "[poll]\nbudget = 7\n")
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: any("ERROR the new settings can't be used" in line for line in bridge.err))
            assert [line for line in bridge.err if "BRIDGE_POLL__BUDGET" in line and "ERROR" in line] != []
            assert state("enphase") == "online"

            write("elsewhere", "[log]\nformat = 'json'\n")
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: state("elsewhere") == "online")
            assert (state("enphase"), home.seen["enphase/bridge/state"]) == ("offline", "offline")
            assert bridge.err[-1].startswith("{")
            assert await bridge.stop(signal.SIGTERM) == 0
            await until(lambda: state("elsewhere") == "offline")
        assert not [line for line in bridge.err if "Traceback" in line]


def _withstands(pid: int, number: signal.Signals) -> bool:
    """Whether the process blocks or handles the signal, instead of ending."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return any(int(status[kind], 16) >> (number - 1) & 1 for kind in ("SigBlk", "SigCgt"))


async def test_a_reload_that_comes_while_it_starts_is_done(tmp_path: Path) -> None:
    given = {"BRIDGE_GATEWAY__HOST": "http://127.0.0.1:9", "BRIDGE_STATE_DIR": str(tmp_path / "state")}
    async with started(*BRIDGE_COMMAND, "run", env={**given, "BRIDGE_MQTT__URL": "mqtt://127.0.0.1:9"}) as bridge:
        await until(lambda: _withstands(bridge.process.pid, signal.SIGHUP))
        bridge.process.send_signal(signal.SIGHUP)
        await until(lambda: any("settings and tokens were read again" in line for line in bridge.err))
        assert await bridge.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stop(tmp_path: Path, number: signal.Signals) -> None:
    async with house(tmp_path, "legacy") as home:
        given = {"BRIDGE_GATEWAY__HOST": home.url, "BRIDGE_MQTT__URL": home.broker.url}
        async with started(
            *BRIDGE_COMMAND, "run", env={**given, "BRIDGE_STATE_DIR": str(tmp_path / "state")}
        ) as bridge:
            await until(lambda: home.topic("state") == "online")
            assert await bridge.stop(number) == 0
        await until(lambda: home.topic("state") == "offline")


async def test_a_terminal_that_goes_takes_the_service_along(tmp_path: Path) -> None:
    """The terminal closes as when a connection by ssh breaks."""
    ours, its = pty.openpty()
    given = {"BRIDGE_GATEWAY__HOST": "http://127.0.0.1:9", "BRIDGE_STATE_DIR": str(tmp_path / "state")}
    environment = {**os.environ, **given, "BRIDGE_MQTT__URL": "mqtt://127.0.0.1:9"}
    process = await asyncio.create_subprocess_exec(
        *("setsid", "--ctty", *BRIDGE_COMMAND, "run"), env=environment, stdin=its, stderr=asyncio.subprocess.PIPE
    )
    os.close(its)
    assert process.stderr is not None
    assert b"127.0.0.1:9" in await process.stderr.readline()
    os.close(ours)
    await process.stderr.read()
    assert await process.wait() == 0
