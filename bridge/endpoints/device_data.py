"""`/ivp/pdm/device_data` (not in the brief, firmware 8): what each microinverter said in its last report.

An object of devices by number, with two counts beside them. It ends at `deviceDataLimit` devices, of which 49 were
seen to be inverters: of all further ones there is only what `/api/v1/production/inverters` says.

Real answers (8.2.4345, 8.3.5167, 8.3.5169) hold microinverters (`pcu`), AC Batteries (`acb`) and meters (`eim`);
public clients know of relays (`nsrb`), too. The first two are read here: an AC Battery stands among the inverters,
as it does in the brief's endpoint. `modGone` is true at dusk, when the modules give nothing, and always of meters:
it does not mean that a unit is gone. Channels without a module have empty objects.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from bridge.endpoints.body import Identity, Parsed, Sheet, by_phase, decode, excerpt
from bridge.endpoints.inverters import is_alive
from bridge.model import BadAnswer, Facts, Input
from bridge.records import (
    ABSENT,
    CONNECTIVITY,
    Absent,
    Celsius,
    Epoch,
    Flag,
    IntervalJoules,
    Joules,
    Milliamperes,
    Millihertz,
    Millivolts,
    Percent,
    Record,
    Seconds,
    UnsignedWattHours,
    UnsignedWattHoursWindow,
    UnsignedWatts,
    finite,
    wire,
)

COUNT = "deviceCount"


class Channel(Record):
    """What one DC input is told of, or a whole unit, which with one input is the same.

    The names that `/api/v1/production/inverters` has, too, mean the same here and there.
    """

    power: UnsignedWatts = wire("watts.now", enabled=True)
    max_power: UnsignedWatts = wire("watts.max", label="Highest power", diagnostic=True)
    last_report: Epoch = wire("lastReading.endDate", diagnostic=True)
    last_report_duration: Seconds = wire("lastReading.duration", diagnostic=True)
    dc_voltage: Millivolts = wire("lastReading.dcVoltageINmV", label="DC voltage")
    dc_current: Milliamperes = wire("lastReading.dcCurrentINmA", label="DC current")
    ac_voltage: Millivolts = wire("lastReading.acVoltageINmV", label="AC voltage")
    ac_current: Milliamperes = wire("lastReading.acCurrentInmA", label="AC current")
    frequency: Millihertz = wire("lastReading.acFrequencyINmHz")
    temperature: Celsius = wire("lastReading.channelTemp", diagnostic=True)


class Microinverter(Channel):
    """What makes energy."""

    last_report_energy: IntervalJoules = wire("lastReading.joulesProduced", label="Energy since previous report")
    energy_today: UnsignedWattHours = wire("wattHours.today")
    energy_yesterday: UnsignedWattHoursWindow = wire("wattHours.yesterday")
    energy_7d: UnsignedWattHoursWindow = wire("wattHours.week", label="Energy last seven days")
    energy_lifetime: Joules = wire("lifetime.joulesProduced", label="Energy produced")


class AcBattery(Channel):
    """What keeps it. Its energy of today adds up for ever (8.3.5169), and is left out."""

    soc: Percent = wire("lastReading.SOC", label="Charge", enabled=True)
    energy_discharged: Joules = wire("lifetime.joulesProduced")
    energy_charged: Joules = wire("lifetime.joulesUsed")


class Unit(Record):
    """One device."""

    serial: Annotated[Identity, Field(validation_alias="sn")]
    kind: Annotated[str, Field(validation_alias="devName")]
    channels: Any = None
    active: Flag = wire("active", diagnostic=True)
    module_gone: Flag = wire("modGone", diagnostic=True)


KINDS: dict[str, type[Channel]] = {"pcu": Microinverter, "acb": AcBattery}
DC = frozenset({"dc_voltage", "dc_current"})
OF_INPUTS = DC | {"power", "temperature", "energy_lifetime"}
"""Where there are several inputs, these tell their modules apart."""
ENERGIES = ("last_report_energy", "energy_today", "energy_yesterday", "energy_7d", "energy_lifetime")
ADDED = ("power", "max_power", "ac_current", *ENERGIES)
HIGHEST = ("last_report", "last_report_duration", "temperature")


def split(body: bytes, facts: Facts, now: float) -> Parsed:
    """Readings of each microinverter and each AC Battery."""
    sheet = Sheet()
    answer = decode(body)
    given = [item for item in answer.values() if isinstance(item, dict)] if isinstance(answer, dict) else []
    units = [unit for unit in (Unit.read(item, sheet.problems) for item in given) if unit is not None]
    if not units and (given or not isinstance(answer, dict) or COUNT not in answer):
        raise BadAnswer(f"the answer has none of the expected fields: {excerpt(body)}")
    for unit in units:
        if unit.kind in KINDS:
            _add(sheet, unit, KINDS[unit.kind], now + facts.clock_offset)
    return sheet.parsed()


def _add(sheet: Sheet, unit: Unit, kind: type[Channel], clock: float) -> None:
    device = f"inverter/{unit.serial}"
    channels = _used(by_phase(kind, unit.channels, tuple(Input), sheet.problems))
    sheet.add(device, unit)
    if channels:
        whole = _joined([*channels.values()])
        sheet.add(device, whole, without=DC)
        sheet.value(device, "reporting", CONNECTIVITY, is_alive(whole.last_report, clock), diagnostic=True)
    shown = DC if len(channels) == 1 else OF_INPUTS
    for place, channel in channels.items():
        sheet.add(device, channel, place, without=frozenset(kind.table) - shown)


def _used(channels: dict[Input, Channel]) -> dict[Input, Channel]:
    """Those that have ever reported, if there are any: others have no module."""
    return {place: item for place, item in channels.items() if isinstance(item.last_report, datetime)} or channels


def _joined(channels: Sequence[Channel]) -> Channel:
    """A unit with several inputs as a whole; what is neither added up nor the highest is that of the first."""
    first, *others = channels
    if not others:
        return first
    added = {name: _total(_known(channels, name)) for name in ADDED if name in first.table}
    highest = {name: max(_known(channels, name), default=ABSENT) for name in HIGHEST}
    return first.model_copy(update=added | highest)


def _known(channels: Sequence[Channel], name: str) -> list[Any]:
    values = (getattr(channel, name) for channel in channels)
    return [value for value in values if isinstance(value, int | float | datetime)]


def _total(values: Sequence[float]) -> float | Absent | None:
    return finite(sum(map(float, values))) if values else ABSENT
