"""What a command tells: one line for each step, with `ok`, `note` or `problem`, and the exit code that follows."""

import os
import shutil
import sys
import textwrap
from typing import TextIO

from bridge.commands.codes import CONFIGURATION, REFUSED, UNAVAILABLE
from bridge.model import BadSetting, BridgeError, Rejected, Unsupported

WORD, STEP = 9, 13
"""Widths of the first two columns."""
NARROWEST = 60
COLOURS = {"ok": "32", "note": "33", "problem": "31"}


def code_of(error: BridgeError) -> int:
    """The exit code that an error alone would have."""
    match error:
        case Unsupported():
            return 0
        case BadSetting():
            return CONFIGURATION
        case Rejected():
            return REFUSED
        case _:
            return UNAVAILABLE


class Report:
    """Prints as it goes. `worst` is the exit code of the worst fault so far.

    A terminal gets its lines wrapped, and the words in colour; a pipe gets one line for each step.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._coloured = self._terminal and "NO_COLOR" not in os.environ
        self._begun = False
        self._said: list[str] = []
        self.worst = 0
        self.problems = 0

    def section(self, title: str) -> None:
        print(f"\n{title}" if self._begun else title, file=self._stream, flush=True)
        self._begun = True

    def ok(self, step: str, text: str) -> None:
        self._line("ok", step, text)

    def note(self, step: str, text: str) -> None:
        self._line("note", step, text)

    def problem(self, step: str, text: str, code: int) -> None:
        self.worst = max(self.worst, code)
        self.problems += 1
        self._line("problem", step, text)

    def fault(self, step: str, error: BridgeError, advice: str = "") -> None:
        text = f"{error}; {advice}" if advice else str(error)
        if code := code_of(error):
            self.problem(step, text, code)
        else:
            self.note(step, text)

    def fact(self, name: str, text: str) -> None:
        """Something to know, neither good nor bad."""
        self._line("", name, text)

    def heard(self, text: str) -> bool:
        """Whether this was said already, in more words or in fewer."""
        return any(text in said or said in text for said in self._said)

    def _line(self, word: str, step: str, text: str) -> None:
        if word != "ok":
            self._said.append(text)
        head = f"  {word:{WORD}}{step:{STEP}} "
        line = head + text
        if self._terminal:
            width = max(NARROWEST, shutil.get_terminal_size().columns)
            line = textwrap.fill(line, width, subsequent_indent=" " * len(head), break_on_hyphens=False)
        if self._coloured and word:
            line = line.replace(word, f"\033[{COLOURS[word]}m{word}\033[0m", 1)
        print(line, file=self._stream, flush=True)


def size(count: int) -> str:
    return f"{count} B" if count < 1000 else f"{count / 1000:.1f} kB"  # noqa: PLR2004 - a kilobyte


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"
