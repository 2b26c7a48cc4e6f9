"""What commands write: a report on standard output, a line for each step, and the log on standard error."""

import io
import json
import logging
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from urllib.parse import unquote, urlsplit

from bridge import __version__
from bridge.gateway.transport import quiet_libraries
from bridge.model import BadSetting, BridgeError, Rejected, Unsupported, printable
from bridge.settings import LogSettings

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FAILING_ADVICE = "if this lasts, restart the gateway; to report it, see `iqgateway2mqtt capture`"

# Exit codes as in sysexits.h. `run` ends only with 0 or EXIT_CONFIGURATION, since it
# reports a failure as a state.
EXIT_NOT_IN_FORCE = 1
"""Of `set`: the gateway does not do what was asked, or no longer."""
EXIT_USAGE = 2
"""The command line is wrong."""
EXIT_UNAVAILABLE = 69
EXIT_REFUSED = 77
EXIT_CONFIGURATION = 78
EXIT_STOPPED = 130
"""Stopped by Ctrl-C, or since nobody reads the output any more; shells use the same code."""

STATE_WIDTH, STEP_WIDTH = 9, 13
"""Widths of the first two columns."""
MIN_WIDTH = 60
COLOURS = {"ok": "32", "note": "33", "problem": "31"}


def code_of(error: BridgeError) -> int:
    """The exit code for one error; 0 for `Unsupported`, which is no failure."""
    match error:
        case Unsupported():
            return 0
        case BadSetting():
            return EXIT_CONFIGURATION
        case Rejected():
            return EXIT_REFUSED
        case _:
            return EXIT_UNAVAILABLE


class OutputLost(Exception):
    """Standard output can't be written. `is_unread`: since the program that reads it, such as `head`, has ended."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.is_unread = isinstance(error, BrokenPipeError)


class _Output(io.FileIO):
    """Standard output whose failure is told apart from all other errors of the operating system."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost(error) from None


def guard_output() -> None:
    """From now on, writing to standard output raises OutputLost where it fails."""
    given = sys.stdout
    if isinstance(given, io.TextIOWrapper):
        raw = _Output(given.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            raw if given.write_through else io.BufferedWriter(raw),  # as Python itself does
            encoding=given.encoding,
            errors=given.errors,
            line_buffering=given.line_buffering,
            write_through=given.write_through,
        )


def give_up_output(lost: BaseExceptionGroup[OutputLost]) -> int:
    """Drop what could not be written, and say so where somebody would miss it. Returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    first: BaseException = lost
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if isinstance(first, OutputLost) and first.is_unread:
        return EXIT_STOPPED
    print(f"iqgateway2mqtt: the output can't be written: {first}", file=sys.stderr)
    return EXIT_UNAVAILABLE


class Report:
    """Prints each step at once. `worst` is the exit code of the worst problem so far, `problems` their number.

    On a terminal, lines are wrapped and coloured; a pipe gets one line for each step.
    """

    def __init__(self, stream: TextIO | None = None, words: Callable[[str], str] = str) -> None:
        """`words` may put what is said of a step into other words."""
        self._words = words
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
        self.outcome(step, f"{error}; {advice}" if advice else str(error), code_of(error))

    def outcome(self, step: str, text: str, code: int) -> None:
        """Print a problem with this exit code, or a note where the code is 0."""
        if code:
            self.problem(step, text, code)
        else:
            self.note(step, text)

    def fact(self, name: str, text: str) -> None:
        """Print a detail that is neither good nor bad."""
        self._line("", name, text)

    def already_said(self, text: str) -> bool:
        """Whether a note or problem with this text, or with a part of it, was printed already."""
        return any(text in said or said in text for said in self._said)

    def _line(self, word: str, step: str, text: str) -> None:
        if word != "ok":
            self._said.append(text)
        head = f"  {word:{STATE_WIDTH}}{step:{STEP_WIDTH}} "
        line = head + self._words(text)
        if self._terminal:
            width = max(MIN_WIDTH, shutil.get_terminal_size().columns)
            line = textwrap.fill(line, width, subsequent_indent=" " * len(head), break_on_hyphens=False)
        if self._coloured and word:
            line = line.replace(word, f"\033[{COLOURS[word]}m{word}\033[0m", 1)
        print(line, file=self._stream, flush=True)


class LogCollector(logging.Handler):
    """Collects warnings and errors from the log, so that the report can show those that it does not have yet."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def flush_to(self, report: Report) -> None:
        for text in self._texts:
            if not report.already_said(text):
                report.note("also", text)
        self._texts.clear()


def size(count: int) -> str:
    return f"{count} B" if count < 1000 else f"{count / 1000:.1f} kB"  # noqa: PLR2004 - a kilobyte


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


PROGRAM = "iqgateway2mqtt"
SYSTEMD_FOLDER = Path("/etc/iqgateway2mqtt")
"""Where the units in systemd/ look for settings; each instance has its own subfolder."""
IMAGE_PREFIX, CONTAINER_MARKS = "/opt/iqgateway2mqtt", (Path("/.dockerenv"), Path("/run/.containerenv"))
"""Where the program is in the image, and what Docker and Podman put into a container."""


def install_command(extra: str) -> str:
    """The shell command that adds an extra to the Python environment in which this program runs."""
    python = shlex.quote(sys.executable)
    installer = f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"
    needs_root = "" if os.access(sys.prefix, os.W_OK) else "sudo "
    return f"{needs_root}{installer} {shlex.quote(_source(extra))}"


def _source(extra: str) -> str:
    """What pip and uv install with this extra: the folder, wheel or index that this program was installed from."""
    from importlib.metadata import Distribution  # noqa: PLC0415 - takes long, and is needed only after a mistake

    texts = (found.read_text("direct_url.json") for found in Distribution.discover(name=PROGRAM))
    origin = json.loads(next(filter(None, texts), "{}"))  # PEP 610: absent where it comes from an index
    url = origin.get("url", "")
    if repository := origin.get("vcs_info"):
        return f"{PROGRAM}[{extra}] @ {repository['vcs']}+{url}"
    checkout = Path(__file__).parents[2]
    for place in (Path(unquote(urlsplit(url).path)), checkout):
        if (place.suffix == ".whl" and place.is_file()) or (place / "pyproject.toml").is_file():
            return f"{place}[{extra}]"
    return f"{PROGRAM}[{extra}]=={__version__}"


def _program_name() -> str:
    """The name to call this program by: its path if the name alone is not found, as in a venv not activated."""
    called = sys.argv[0]
    own = Path(called).name == PROGRAM and shutil.which(PROGRAM) != called
    return shlex.quote(called) if own else PROGRAM


def in_container() -> bool:
    """Whether this is the container image, in which compose.yaml has some of the settings."""
    return sys.prefix == IMAGE_PREFIX and any(mark.exists() for mark in CONTAINER_MARKS)


def next_command(file: Path, *, existed: bool = False) -> str:
    """The command that starts the service, of this kind of installation, with the settings in this file."""
    place = file.resolve()
    if in_container():
        return "docker compose up --build --detach"
    if place.name == "settings.toml" and SYSTEMD_FOLDER in (place.parent, place.parent.parent):
        instance = "" if place.parent == SYSTEMD_FOLDER else f"@{place.parent.name}"
        return f"sudo systemctl {'restart' if existed else 'enable --now'} iqgateway2mqtt{instance}"
    if place.suffix == ".toml":
        return f"BRIDGE_CONFIG={shlex.quote(str(file))} {_program_name()} run"
    if place == Path(".env").resolve():
        return f"{_program_name()} run"
    return f"set -a; . {shlex.quote(str(file))}; set +a; {_program_name()} run"


# The log


MAX_LINE_LETTERS = 2_000
"""Length at which a line is cut: texts from outside may stand in it."""


class _Text(logging.Formatter):
    """Text such as `2026-11-22 06:00:00 WARNING envoy.local: readings: no answer`."""

    def __init__(self, *, timed: bool = True) -> None:
        when = "%(asctime)s " if timed else ""
        super().__init__(f"{when}%(levelname)s %(prefix)s%(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        gateway = getattr(record, "gateway", None)
        record.prefix = f"{gateway}: " if gateway else ""
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its name in the library
        record.message = printable(record.message, MAX_LINE_LETTERS)
        return super().formatMessage(record)


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": printable(record.getMessage(), MAX_LINE_LETTERS),
        }
        event |= {key: value for key in ("gateway", "source", "event") if (value := getattr(record, key, None))}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event)


SYSLOG_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
"""Syslog priorities by Python's log levels."""


class _Journal(logging.Formatter):
    """Prefixes each line with its syslog priority, which systemd's journal reads."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{SYSLOG_PRIORITIES.get(record.levelno, 2)}>"
        return "\n".join(mark + line for line in self._inner.format(record).splitlines())


def _into_journal() -> bool:
    """Whether standard error goes to systemd's journal: JOURNAL_STREAM names the device and inode of its pipe."""
    try:
        seen = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or no real file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{seen.st_dev}:{seen.st_ino}"


def _formatter(settings: LogSettings) -> logging.Formatter:
    journal = _into_journal()
    plain = _Json() if settings.format == "json" else _Text(timed=not journal)
    return _Journal(plain) if journal else plain


def configure_log(settings: LogSettings) -> None:
    """Set up the root logger. The HTTP libraries are silenced, because they log headers, which hold tokens."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    quiet_libraries()
