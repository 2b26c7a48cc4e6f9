"""Logging to standard error: one line for one event."""

import json
import logging
import sys
from datetime import UTC, datetime

from bridge.config import LogSettings
from bridge.gateway import quiet_libraries


class _Text(logging.Formatter):
    """`2026-11-22 06:00:00 WARNING envoy.local: readings: no answer`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(source)s%(message)s", "%Y-%m-%d %H:%M:%S")

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


def configure(settings: LogSettings) -> None:
    """Set up the root logger. The HTTP libraries log headers, tokens included, so they are kept quiet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    quiet_libraries()
