"""Logging to standard error: one line for one event."""

import json
import logging
import os
import sys
from datetime import UTC, datetime

from bridge.config import LogSettings
from bridge.gateway import quiet_libraries


class _Text(logging.Formatter):
    """`2026-11-22 06:00:00 WARNING envoy.local: readings: no answer`."""

    def __init__(self, *, timed: bool = True) -> None:
        when = "%(asctime)s " if timed else ""
        super().__init__(f"{when}%(levelname)s %(source)s%(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        gateway = getattr(record, "gateway", None)
        record.source = f"{gateway}: " if gateway else ""
        return super().format(record)


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if gateway := getattr(record, "gateway", None):
            event["gateway"] = gateway
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event)


PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
"""Those of syslog, by our levels."""


class _Journal(logging.Formatter):
    """For systemd's journal, which knows the time, and takes a line's priority from its beginning."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{PRIORITIES.get(record.levelno, 2)}>"
        return "\n".join(mark + line for line in self._inner.format(record).splitlines())


def _into_journal() -> bool:
    """systemd names the journal's end of a pipe; standard error may have been sent elsewhere since."""
    try:
        seen = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or no real file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{seen.st_dev}:{seen.st_ino}"


def _formatter(settings: LogSettings) -> logging.Formatter:
    journal = _into_journal()
    plain = _Json() if settings.format == "json" else _Text(timed=not journal)
    return _Journal(plain) if journal else plain


def configure(settings: LogSettings) -> None:
    """Set up the root logger. The HTTP libraries log headers, tokens included, so they are kept quiet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    quiet_libraries()
