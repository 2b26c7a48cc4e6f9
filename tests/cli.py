"""The command line as a person uses it, against a simulated home on real sockets, with settings of its own."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import pytest

from bridge import commands
from bridge.simulator import PASSWORD, USER, Simulator
from bridge.simulator.serve import App, serve_in_thread

LINE = re.compile(r"  (ok|note|problem|) {0,9}(?<=.{11})(.{13}) (.*)")
NOWHERE = "127.0.0.1:9"
TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+")


class Line(NamedTuple):
    """`ok`, `note`, `problem` or nothing; what it is about; what it says."""

    word: str
    step: str
    text: str


@dataclass(frozen=True)
class Told:
    """What a command said, and its exit code."""

    code: int
    text: str
    errors: str

    @property
    def lines(self) -> list[Line]:
        found = (LINE.fullmatch(line) for line in self.text.splitlines())
        return [Line(match[1], match[2].strip(), match[3].strip()) for match in found if match]

    def of(self, word: str) -> list[Line]:
        return [line for line in self.lines if line.word == word]

    def about(self, step: str) -> Line:
        """The one line about a step."""
        (line,) = [line for line in self.lines if line.step == step]
        return line


class _Typing(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Shell:
    """Runs commands. Whatever they are and however they fail, no secret may show."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]
    secrets: set[str] = field(default_factory=lambda: {PASSWORD})

    def set(self, **settings: str) -> Self:
        """`gateway__host=` for `BRIDGE_GATEWAY__HOST`."""
        for name, value in settings.items():
            self.patch.setenv(f"BRIDGE_{name.upper()}", value)
            if name.endswith(("token", "password")):
                self.secrets.add(value)
        return self

    def unset(self, *names: str) -> None:
        for name in names:
            self.patch.delenv(f"BRIDGE_{name.upper()}", raising=False)

    def run(self, *arguments: str, stdin: str = "", typing: bool = False) -> Told:
        self.patch.setattr(sys, "stdin", _Typing(stdin) if typing else io.StringIO(stdin))
        self.capture.readouterr()
        code = commands.main(arguments)
        said = self.capture.readouterr()
        for text in said:
            assert not TOKEN.search(text)
            assert not [secret for secret in self.secrets if secret in text]
            assert "Traceback" not in text
        return Told(code, said.out, said.err)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys).set(state_dir="state")


@contextmanager
def served(
    shell: Shell,
    app: App,
    *,
    tls: bool = True,
    port: int = 0,
    with_cloud: bool = False,
) -> Iterator[str]:
    """A gateway, and the cloud behind it where somebody may ask it; the settings name both."""
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
    """A simulated home, with a token or an account that is good for it."""
    simulator = Simulator(name)
    with served(shell, simulator, tls=simulator.home.secure, with_cloud=account):
        if token and simulator.home.secure:
            shell.set(gateway__token=simulator.token())
        if account:
            shell.set(gateway__username=USER, gateway__password=PASSWORD)
        yield simulator
