"""`check`: tells in plain words, step by step, what works and what does not."""

import asyncio
import logging
import os
from pathlib import Path

from bridge.commands import log
from bridge.commands.check_broker import check_broker
from bridge.commands.check_gateway import Inspection
from bridge.commands.report import Report, plural
from bridge.commands.visit import Visit, chosen
from bridge.config import ENVIRONMENT, GatewaySettings, LogSettings, Settings, found
from bridge.model import BadSetting
from bridge.service import periods
from bridge.store import Store


class Overheard(logging.Handler):
    """What the parts of the bridge would write to the log belongs into the report, once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def tell(self, report: Report) -> None:
        for text in self._texts:
            if not report.heard(text):
                report.note("also", text)
        self._texts.clear()


def _check_settings(settings: Settings, report: Report) -> None:
    report.section("Settings")
    places = {place: names for place, names in found().items() if names}
    if not places:
        report.note("none", f"the defaults hold: gateway {settings.gateway.host}, broker {settings.mqtt.url}")
    above: set[str] = set()
    for place, names in places.items():
        step, text = ("environment", "") if place == ENVIRONMENT else ("file", f"{place}: ")
        text += ", ".join(names)
        if twice := above.intersection(names):
            report.note(step, f"{text}; without effect, since set above too: {', '.join(sorted(twice))}")
        else:
            report.ok(step, text)
        above.update(names)
    _check_folder(settings.state_dir, report)


def _check_folder(folder: Path, report: Report) -> None:
    """What is kept there: tokens and keys."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        report.ok("state folder", str(folder))
    else:
        advice = "make it writable for this user, or set BRIDGE_STATE_DIR"
        report.note("state folder", f"{folder} can't be written: tokens and keys will be forgotten; {advice}")


async def _check_gateway(
    settings: Settings, own: GatewaySettings, store: Store, report: Report, *, accept_key: bool
) -> None:
    report.section(f"Gateway {own.base_url}")
    try:
        visit = Visit(settings, own, store)
    except BadSetting as problem:
        report.fault("settings", problem)
        return
    async with visit:
        await Inspection(visit, report, periods(settings.poll), accept_key=accept_key).run()


async def _check(settings: Settings, gateway: str | None, *, accept_key: bool, overheard: Overheard) -> int:
    report, store = Report(), Store(settings.state_dir)
    gateways = chosen(settings, gateway)
    _check_settings(settings, report)
    overheard.tell(report)
    for own in gateways:
        await _check_gateway(settings, own, store, report, accept_key=accept_key)
        overheard.tell(report)
    await check_broker(settings, store, report)
    overheard.tell(report)
    report.section(f"{plural(report.problems, 'problem')}." if report.problems else "All well.")
    return report.worst


def run(settings: Settings, gateway: str | None, accept_key: bool) -> int:
    """The exit code is that of the worst fault."""
    overheard = Overheard()
    log.configure(LogSettings(level="WARNING"))
    logging.getLogger().handlers[:] = [overheard]
    return asyncio.run(_check(settings, gateway, accept_key=accept_key, overheard=overheard))
