"""`/api/v1/production/inverters` (brief, appendix G): each microinverter's last report, every 5 to 15 minutes."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from bridge.endpoints.body import Identity, Parsed, Sheet, each
from bridge.model import Facts
from bridge.records import CONNECTIVITY, COUNT, Epoch, Record, Text, UnsignedWatts, wire

AC_BATTERY = "11"
"""Their `devType`: they report as inverters do."""
REPORTING = 30 * 60
"""Seconds after which an inverter that sent nothing is no longer reporting."""


class Inverter(Record):
    """One unit. Removed units stay in the list with a report date of 0; `devType` 11 is an AC Battery."""

    serial: Annotated[Identity, Field(validation_alias="serialNumber")]
    power: UnsignedWatts = wire("lastReportWatts", enabled=True)
    max_power: UnsignedWatts = wire("maxReportWatts", label="Highest power", diagnostic=True)
    type: Text = wire("devType", diagnostic=True)
    last_report: Epoch = wire("lastReportDate", diagnostic=True)


def is_alive(last_report: object, clock: float) -> bool:
    """Whether a unit has reported lately, `clock` being the gateway's own time."""
    return isinstance(last_report, datetime) and clock - last_report.timestamp() < REPORTING


def split(body: bytes, facts: Facts, now: float) -> Parsed:
    """Readings of each inverter, and how many there are on `gateway`."""
    sheet = Sheet()
    inverters = each(Inverter, body, sheet.problems)
    reporting = 0
    for inverter in inverters:
        device = f"inverter/{inverter.serial}"
        sheet.add(device, inverter)
        alive = is_alive(inverter.last_report, now + facts.clock_offset)
        reporting += alive
        sheet.value(device, "reporting", CONNECTIVITY, alive, diagnostic=True)
    sheet.value("gateway", "inverters_total", COUNT, len(inverters), label="Inverters", diagnostic=True)
    sheet.value(
        "gateway",
        "inverters_reporting",
        COUNT,
        reporting,
        label="Inverters reporting",
        enabled=True,
        diagnostic=True,
    )
    storing = [f"acb/{inverter.serial}" for inverter in inverters if inverter.type == AC_BATTERY]
    return sheet.parsed(facts=facts.with_gear(storing))
