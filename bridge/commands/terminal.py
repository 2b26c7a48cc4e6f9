"""Reads the answers of a person: a terminal shows neither secrets nor what looks like a token, typed or pasted."""

import codecs
import os
import re
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bridge.gateway.token import MAX_TOKEN_LETTERS

HIDDEN = "***"
TOKEN_LIKE = re.compile(r"(?<!\w)eyJ[\w.-]*(?![\w.-]*@)|[\w.-]{100,}", re.ASCII)
"""A token begins like this; where its beginning is missing, its length gives it away."""
URL_PASSWORD = re.compile(r"^((?:\w+://)?[^\s:/@\[]+:)(?![\d/:]*(?:[/,]|$))[^@]*")
"""User and password before a broker's address; digits alone after the colon may be a port."""
CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|)")
"""What keys such as the arrows send."""
END_OF_INPUT, ERASE_LINE, ERASE = "\x04", "\x15", {"\x7f", "\b"}
"""Ctrl-D, Ctrl-U and both forms of the backspace key."""


class InputEnded(Exception):
    """The input has ended: there is no answer, and there will be none."""


def looks_like_token(text: str) -> bool:
    """Whether a text has a gateway's token in it, or a part of one, so that nobody may see it."""
    return TOKEN_LIKE.search(text) is not None


def ask(question: str, default: str = "", *, secret: bool = False) -> str:
    """Read one line; an empty one gives the default. A terminal shows nothing of a `secret` one.

    Raises:
        InputEnded: the input has ended.
    """
    with unseen():  # before the question: what is pasted at once must not show either
        print(f"{question}{f' [{default}]' if default else ''}: ", end="", flush=True)
        if sys.stdin.isatty():
            line = _line(sys.stdin.fileno(), (lambda _: "") if secret else _visible)
        elif not (line := sys.stdin.readline(2 * MAX_TOKEN_LETTERS)):
            raise InputEnded
        else:
            print()  # a terminal shows the end of the line
    return line.strip() or default


def _visible(line: str) -> str:
    return URL_PASSWORD.sub(rf"\1{HIDDEN}", TOKEN_LIKE.sub(HIDDEN, line))


@contextmanager
def unseen() -> Iterator[None]:
    """Keep the terminal from showing what is typed, also between two questions; `ask` shows what may be seen."""
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _line(terminal: int, visible: Callable[[str], str]) -> str:
    """A line from the terminal, which shows what `visible` makes of it."""
    text = shown = ""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    while read := os.read(terminal, MAX_TOKEN_LETTERS):
        given, end, more = CONTROL_SEQUENCE.sub("", decode(read)).replace("\r", "\n").partition("\n")
        if looks_like_token(text + given):  # mail programs break a long line, and it is pasted in one go
            given += "".join(more.split())
        for key in given:
            text = _after(text, key)
        shown = _redraw(shown, visible(text))
        if end:
            print(flush=True)
            return text
    raise InputEnded


def _after(text: str, key: str) -> str:
    """The line after one more key.

    Raises:
        InputEnded: it is Ctrl-D in an empty line.
    """
    if key in ERASE:
        return text[:-1]
    if key == END_OF_INPUT and not text:
        raise InputEnded
    if key == ERASE_LINE:
        return ""
    return text + key if key.isprintable() and len(text) < 2 * MAX_TOKEN_LETTERS else text


def _redraw(before: str, after: str) -> str:
    """Change what the terminal shows of the line. Returns what it shows then."""
    while not after.startswith(before):
        before = before[:-1]
        print("\b \b", end="")
    print(after[len(before) :], end="", flush=True)
    return after
