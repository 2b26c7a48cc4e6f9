"""Questions at a real terminal: what is typed, what the program gets, and what can be seen."""

import io
import os
import pty
import sys
import termios
from collections.abc import Iterator
from threading import Thread

import pytest

from bridge.commands.terminal import InputEnded, ask, looks_like_token, unseen

TOKEN = f"eyJraWQiOiI3ZDEw.eyJhdWQiOiIx{'A' * 300}.{'s' * 86}"
HIDDEN = "***"


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of a terminal from which the program reads: what it shows by itself can be read there."""
    ours, its = pty.openpty()
    with open(its, encoding="utf-8") as stdin:  # noqa: PTH123 - a descriptor, no path
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours
    os.close(ours)


def asked(keyboard: int, *typed: str, secret: bool = False) -> str:
    """The answer to a question, while these keys are typed, some at a time."""

    def type_all() -> None:
        for keys in typed:
            os.write(keyboard, keys.encode())

    with unseen():  # from here on, the terminal itself shows nothing
        typing = Thread(target=type_all)
        typing.start()
        try:
            return ask("Question", "default", secret=secret)
        finally:
            typing.join()
            os.set_blocking(keyboard, False)
            with pytest.raises(BlockingIOError):
                os.read(keyboard, 1)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """What is seen of the line, with its erased letters gone."""
    line = capsys.readouterr().out.removeprefix("Question [default]: ")
    assert TOKEN[:9] not in line
    while "\b \b" in line:
        at = line.index("\b \b")
        line = line[: at - 1] + line[at + 3 :]
    assert line.endswith("\n")
    return line.rstrip("\n")


@pytest.mark.parametrize(
    ("typed", "answer", "seen"),
    [
        ("envoy.local\n", "envoy.local", "envoy.local"),
        ("\n", "default", ""),
        ("  envoy.local \r", "envoy.local", "  envoy.local "),
        ("envoi\x7fy\n", "envoy", "envoy"),
        ("xx\b\b\b\bhaus\n", "haus", "haus"),
        ("wrong\x15right\n", "right", "right"),
        ("\x1b[D\x1b[200~Häuschen\x1b[201~\x1bOA\n", "Häuschen", "Häuschen"),
        ("a\x04b\n", "ab", "ab"),
        ("a\x00\tb\n", "ab", "ab"),
        (f"{TOKEN}\n", TOKEN, HIDDEN),
        (f"Bearer {TOKEN}\n", f"Bearer {TOKEN}", f"Bearer {HIDDEN}"),
        (f"{TOKEN[:100]}\n{TOKEN[100:]}\n", TOKEN, HIDDEN),
        (f"{TOKEN[9:]}\n", TOKEN[9:], HIDDEN),
        ("eyJane@example.com\n", "eyJane@example.com", "eyJane@example.com"),
        ("mqtt://me:secret@host:1883\n", "mqtt://me:secret@host:1883", "mqtt://me:***@host:1883"),
        ("me:1234@host\n", "me:1234@host", "me:***@host"),
        ("mqtt://host:1883\n", "mqtt://host:1883", "mqtt://host:1883"),
        ("https://192.168.1.20:443/home\n", "https://192.168.1.20:443/home", "https://192.168.1.20:443/home"),
        ("[fd00::1]:1883\n", "[fd00::1]:1883", "[fd00::1]:1883"),
    ],
)
def test_what_is_typed_is_got_and_seen_unless_it_is_secret(
    keyboard: int, capsys: pytest.CaptureFixture[str], typed: str, answer: str, seen: str
) -> None:
    assert asked(keyboard, typed) == answer
    assert shown(capsys) == seen


def test_nothing_is_seen_of_a_secret(keyboard: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(keyboard, "correct ", "horsf\x7fe\n", secret=True) == "correct horse"
    assert shown(capsys) == ""


@pytest.mark.parametrize("typed", ["\x04", "x\x15\x04"])
def test_ctrl_d_ends_the_input(keyboard: int, typed: str) -> None:
    with pytest.raises(InputEnded):
        asked(keyboard, typed)


def test_the_terminal_is_afterwards_as_before(keyboard: int) -> None:
    before = termios.tcgetattr(keyboard)
    with unseen():
        assert termios.tcgetattr(keyboard) != before
    assert termios.tcgetattr(keyboard) == before
    asked(keyboard, "x\n")
    assert termios.tcgetattr(keyboard) == before


@pytest.mark.parametrize("text", ["", "bridge", "me@example.com", "mqtt://broker.example.com:8883", "192.168.1.20"])
def test_what_is_no_token(text: str) -> None:
    assert not looks_like_token(text)


class QuickPerson(io.StringIO):
    """Standard output that types into a terminal as soon as something is shown."""

    def __init__(self, keyboard: int, keys: str) -> None:
        super().__init__()
        self._keyboard, self._keys = keyboard, keys

    def write(self, text: str) -> int:
        os.write(self._keyboard, self._keys.encode())
        self._keys = ""
        return super().write(text)


def test_what_is_pasted_at_once_does_not_show_either(keyboard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", QuickPerson(keyboard, f"{TOKEN}\n"))
    assert ask("Question", secret=True) == TOKEN
    os.set_blocking(keyboard, False)
    with pytest.raises(BlockingIOError):
        os.read(keyboard, 1)
