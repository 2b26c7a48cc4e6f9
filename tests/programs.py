"""Runs the real program as a process, and reads its output."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from brokers import send
from running import until

BRIDGE_COMMAND = (sys.executable, "-m", "bridge")
HEEDING = ("env", "--default-signal=INT,TERM")
"""Runs a program that heeds Ctrl-C: those that a shell starts in the background ignore it."""


@dataclass
class Program:
    """A running program. `out` and `err` hold its lines so far."""

    process: asyncio.subprocess.Process
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    async def stop(self, number: int = signal.SIGINT) -> int:
        """Stop it as Ctrl-C or a service manager does. Returns its exit code."""
        send(self.process, number)
        return await self.ended()

    async def ended(self) -> int:
        await until(lambda: self.process.returncode is not None)
        return self.process.returncode or 0


@asynccontextmanager
async def started(*command: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Program]:
    """Run the program. It is killed at the end if it still runs."""
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, limit=2**24
    )
    program = Program(process)
    readers = [_lines(process.stdout, program.out), _lines(process.stderr, program.err)]
    reading = asyncio.gather(*readers)
    try:
        yield program
    finally:
        send(process, signal.SIGKILL)
        await process.wait()
        await reading


async def _lines(stream: asyncio.StreamReader | None, lines: list[str]) -> None:
    assert stream is not None
    async for line in stream:
        lines.append(line.decode().rstrip("\n"))  # noqa: PERF401 - each as it comes
