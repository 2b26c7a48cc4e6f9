"""Runs commands as a person does, against a simulated home on real sockets, with settings of the test."""

import io
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import pytest
from houses import NOON_HOUR
from programs import BRIDGE_COMMAND

from bridge import commands
from bridge.commands.session import CommandTiming
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.serve import ServedGateway, serve_in_thread

REPORT_LINE = re.compile(r"  (ok|note|problem|) {0,9}(?<=.{11})(.{13}) (.*)")
EXIT_UNAVAILABLE, EXIT_REFUSED, EXIT_CONFIGURATION = 69, 77, 78
"""Exit codes of the commands, as in sysexits.h."""
NOWHERE = "127.0.0.1:9"
TOKEN_IN_OUTPUT = re.compile(r"eyJ[\w-]+\.[\w-]+")


class ReportLine(NamedTuple):
    """A line of output: a word (`ok`, `note`, `problem` or none), the step, and the text."""

    word: str
    step: str
    text: str


@dataclass(frozen=True)
class Told:
    """The output of a command, and its exit code."""

    code: int
    text: str
    errors: str

    @property
    def lines(self) -> list[ReportLine]:
        found = (REPORT_LINE.fullmatch(line) for line in self.text.splitlines())
        return [ReportLine(match[1], match[2].strip(), match[3].strip()) for match in found if match]

    def of(self, word: str) -> list[ReportLine]:
        return [line for line in self.lines if line.word == word]

    def about(self, step: str) -> ReportLine:
        """Return the only line about a step."""
        (line,) = [line for line in self.lines if line.step == step]
        return line


@dataclass
class Shell:
    """Runs commands, and checks that none of them prints a secret."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]
    secrets: set[str] = field(default_factory=lambda: {PASSWORD})

    def set(self, **settings: str) -> Self:
        """Set environment variables: `gateway__host=` sets BRIDGE_GATEWAY__HOST."""
        for name, value in settings.items():
            self.patch.setenv(f"BRIDGE_{name.upper()}", value)
            if name.endswith(("token", "password")):
                self.secrets.add(value)
        return self

    def unset(self, *names: str) -> None:
        for name in names:
            self.patch.delenv(f"BRIDGE_{name.upper()}", raising=False)

    def run(self, *arguments: str, stdin: str = "", timing: CommandTiming | None = None) -> Told:
        self.patch.setattr(sys, "stdin", io.StringIO(stdin))
        self.capture.readouterr()
        code = commands.main(arguments, timing)
        said = self.capture.readouterr()
        for text in said:
            assert not TOKEN_IN_OUTPUT.search(text)
            assert not [secret for secret in self.secrets if secret in text]
            assert "Traceback" not in text
        return Told(code, said.out, said.err)


class Person:
    """Types at a real terminal, and sees what it shows."""

    def __init__(self, *command: str) -> None:
        self.seen = b""
        self._ours, its = pty.openpty()
        heeding = ("env", "--default-signal=INT")  # programs that a shell starts in the background ignore Ctrl-C
        self._process = subprocess.Popen(
            (*heeding, "setsid", "--ctty", "--wait", *BRIDGE_COMMAND, *command), stdin=its, stdout=its, stderr=its
        )
        os.close(its)

    def type(self, after: str, keys: str) -> None:
        """Type when this text is shown. If it does not come, the test fails."""
        start = len(self.seen)
        while after.encode() not in self.seen[start:]:
            assert select.select([self._ours], [], [], 60)[0], f"not shown: {after!r}, but {self.seen!r}"
            if not (more := self._read()):
                break
            self.seen += more
        os.write(self._ours, keys.encode())

    def end(self) -> int:
        """Read to the end. Returns the exit code."""
        while select.select([self._ours], [], [], 60)[0] and (more := self._read()):
            self.seen += more
        os.close(self._ours)
        return self._process.wait(60)

    def _read(self) -> bytes:
        try:
            return os.read(self._ours, 4096)
        except OSError:  # no process has the terminal open any more
            return b""


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys).set(state_dir="state")


@contextmanager
def served(
    shell: Shell,
    app: ServedGateway,
    *,
    tls: bool = True,
    port: int = 0,
    with_cloud: bool = False,
) -> Iterator[str]:
    """Serve a gateway, and its cloud if asked for, and set the settings for both."""
    with ExitStack() as stack:
        address = stack.enter_context(serve_in_thread(app, tls=tls, port=port))
        cloud = stack.enter_context(serve_in_thread(app, tls=False)) if with_cloud else NOWHERE
        shell.set(
            gateway__host=f"{'https' if tls else 'http'}://{address}",
            cloud__login_url=f"http://{cloud}/login/login.json",
            cloud__token_url=f"http://{cloud}/tokens",
            cloud__entrez_url=f"http://{cloud}/entrez-auth-token",
        )
        yield address


@contextmanager
def home(
    shell: Shell, name: str = "three-phase", *, token: bool = True, account: bool = False
) -> Iterator[Simulator]:
    """Serve a simulated home, and set a valid token or account for it."""
    simulator = Simulator(name, start_hour=NOON_HOUR)
    with served(shell, simulator, tls=simulator.home.secure, with_cloud=account):
        if token and simulator.home.secure:
            shell.set(gateway__token=simulator.token())
        if account:
            shell.set(gateway__username=USER, gateway__password=PASSWORD)
        yield simulator
