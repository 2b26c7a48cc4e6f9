"""Solar production: the gateway's own sums, and each microinverter's last report, every 5 to 15 minutes.

The sums are `/api/v1/production` and `/ivp/pdm/energy` (brief, appendices E and F), the reports
`/api/v1/production/inverters` (brief, appendix G) and `/ivp/pdm/device_data` (not in the brief, firmware 8).

`device_data` is an object of devices by number, with two counts beside them. It ends at `deviceDataLimit` devices,
of which 49 were seen to be inverters. All others are only in `/api/v1/production/inverters`.

Real answers (8.2.4345, 8.3.5167, 8.3.5169) hold microinverters (`pcu`), AC Batteries (`acb`) and meters (`eim`);
public clients know of relays (`nsrb`), too. The first two are read here: AC Batteries are listed among the
inverters, as in `/api/v1/production/inverters`. `modGone` is true at dusk, when the modules give nothing, and
always for meters: it does not mean that a unit is gone. Channels without a module have empty objects.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from bridge.endpoints.parsing import (
    DeviceId,
    Parsed,
    ParseResult,
    by_axis,
    decode,
    excerpt,
    parse_list,
    parse_object,
    topic_level,
)
from bridge.model import BadAnswer, Facts, Input, Reading
from bridge.records import (
    ABSENT,
    CONNECTIVITY,
    COUNT,
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
    Text,
    UnsignedWattHours,
    UnsignedWattHoursWindow,
    Watts,
    finite,
    measurement,
    wire,
)

ENERGY_PRODUCTION, ENERGY_PCU = "energy/production", "energy/production-pcu"
"""The gateway's own sums of solar, and the sums of its microinverters."""
AC_BATTERY_TYPE = "11"
"""`devType` of an AC Battery, which reports as inverters do."""
REPORTING_WINDOW_S = 30 * 60
"""Seconds without a report after which an inverter no longer counts as reporting."""
REPORTING = measurement("reporting", CONNECTIVITY, diagnostic=True)


class Production(Record):
    """Power and energy of one source. The fields are unsigned in 32 bits: 4294967292 W is -4 W."""

    power: Watts = wire("wattsNow")
    energy_today: UnsignedWattHoursWindow = wire("wattHoursToday")
    energy_7d: UnsignedWattHoursWindow = wire("wattHoursSevenDays", label="Energy last seven days")
    energy_lifetime: UnsignedWattHours = wire("wattHoursLifetime")


def split_production(body: bytes, _facts: Facts, _now: float) -> Parsed:
    result = ParseResult()
    result.add(ENERGY_PRODUCTION, parse_object(Production, body, result.problems))
    return result.parsed()


def split_energy(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read the sums: `pcu` of microinverters, `rgm` of a revenue grade meter, `eim` of the gateway's own meter.

    Raises:
        BadAnswer: the answer has none of the expected fields.
    """
    result = ParseResult()
    answer = decode(body)
    for side in ("production", "consumption"):
        sources = answer.get(side) if isinstance(answer, dict) else None
        for name, given in sources.items() if isinstance(sources, dict) else ():
            found = Production.read(given, result.problems)
            if found is not None and not found.empty and topic_level(name):
                result.add(f"energy/{side}-{topic_level(name)}", found)
    if not result.readings:
        raise BadAnswer(f"the answer has none of the expected fields: {excerpt(body)}")
    return result.parsed()


class Inverter(Record):
    """One inverter. Removed ones stay in the list with a report date of 0."""

    serial: Annotated[DeviceId, Field(validation_alias="serialNumber")]
    power: Watts = wire("lastReportWatts", enabled=True)
    max_power: Watts = wire("maxReportWatts", label="Highest power", diagnostic=True)
    type: Text = wire("devType", diagnostic=True)
    last_report: Epoch = wire("lastReportDate", diagnostic=True)


def is_alive(last_report: object, clock: float) -> bool:
    """Whether a unit has reported lately. `clock` is the unix time of the gateway."""
    return isinstance(last_report, datetime) and clock - last_report.timestamp() < REPORTING_WINDOW_S


def split_inverters(body: bytes, facts: Facts, now: float) -> Parsed:
    """Read each inverter, and count them for `gateway`."""
    result = ParseResult()
    inverters = parse_list(Inverter, body, result.problems)
    reporting = 0
    for inverter in inverters:
        device = f"inverter/{inverter.serial}"
        result.add(device, inverter)
        alive = is_alive(inverter.last_report, now + facts.clock_offset)
        reporting += alive
        result.readings.append(Reading(device, None, REPORTING, alive))
    result.value("gateway", "inverters_total", COUNT, len(inverters), label="Inverters", diagnostic=True)
    result.value(
        "gateway",
        "inverters_reporting",
        COUNT,
        reporting,
        label="Inverters reporting",
        enabled=True,
        diagnostic=True,
    )
    storing = [f"acb/{inverter.serial}" for inverter in inverters if inverter.type == AC_BATTERY_TYPE]
    return result.parsed(facts=facts.with_gear(storing))


DEVICE_COUNT = "deviceCount"


class InverterChannel(Record):
    """The values of one DC input, or of a whole unit; these are the same for a unit with one input.

    Names that `/api/v1/production/inverters` also has mean the same in both.
    """

    power: Watts = wire("watts.now", enabled=True)
    max_power: Watts = wire("watts.max", label="Highest power", diagnostic=True)
    last_report: Epoch = wire("lastReading.endDate", diagnostic=True)
    last_report_duration: Seconds = wire("lastReading.duration", diagnostic=True)
    dc_voltage: Millivolts = wire("lastReading.dcVoltageINmV", label="DC voltage")
    dc_current: Milliamperes = wire("lastReading.dcCurrentINmA", label="DC current")
    ac_voltage: Millivolts = wire("lastReading.acVoltageINmV", label="AC voltage")
    ac_current: Milliamperes = wire("lastReading.acCurrentInmA", label="AC current")
    frequency: Millihertz = wire("lastReading.acFrequencyINmHz")
    temperature: Celsius = wire("lastReading.channelTemp", diagnostic=True)


class Microinverter(InverterChannel):
    """An input of a microinverter."""

    last_report_energy: IntervalJoules = wire("lastReading.joulesProduced", label="Energy since previous report")
    energy_today: UnsignedWattHours = wire("wattHours.today")
    energy_yesterday: UnsignedWattHoursWindow = wire("wattHours.yesterday")
    energy_7d: UnsignedWattHoursWindow = wire("wattHours.week", label="Energy last seven days")
    energy_lifetime: Joules = wire("lifetime.joulesProduced", label="Energy produced")


class AcBattery(InverterChannel):
    """An AC Battery. Its energy of today never restarts (8.3.5169), so it is left out."""

    soc: Percent = wire("lastReading.SOC", label="Charge", enabled=True)
    energy_discharged: Joules = wire("lifetime.joulesProduced")
    energy_charged: Joules = wire("lifetime.joulesUsed")


class ReportedDevice(Record):
    """One device of `device_data`."""

    serial: Annotated[DeviceId, Field(validation_alias="sn")]
    kind: Annotated[str, Field(validation_alias="devName")]
    channels: Any = None
    active: Flag = wire("active", diagnostic=True)
    module_gone: Flag = wire("modGone", diagnostic=True)


CHANNEL_OF_DEVICE: dict[str, type[InverterChannel]] = {"pcu": Microinverter, "acb": AcBattery}
DC_VALUES = frozenset({"dc_voltage", "dc_current"})
INPUT_VALUES = DC_VALUES | {"power", "temperature", "energy_lifetime"}
"""Values that are published for each input of a unit with several inputs."""
INVERTER_ENERGIES = ("last_report_energy", "energy_today", "energy_yesterday", "energy_7d", "energy_lifetime")
SUMS_OF_INPUTS = ("power", "max_power", "ac_current", *INVERTER_ENERGIES)
HIGHEST_OF_INPUTS = ("last_report", "last_report_duration", "temperature")


def split_device_data(body: bytes, facts: Facts, now: float) -> Parsed:
    """Read each microinverter and each AC Battery.

    Raises:
        BadAnswer: the answer has none of the expected fields.
    """
    result = ParseResult()
    answer = decode(body)
    given = [item for item in answer.values() if isinstance(item, dict)] if isinstance(answer, dict) else []
    units = [unit for unit in (ReportedDevice.read(item, result.problems) for item in given) if unit is not None]
    if not units and (given or not isinstance(answer, dict) or DEVICE_COUNT not in answer):
        raise BadAnswer(f"the answer has none of the expected fields: {excerpt(body)}")
    for unit in units:
        if unit.kind in CHANNEL_OF_DEVICE:
            _add(result, unit, CHANNEL_OF_DEVICE[unit.kind], now + facts.clock_offset)
    return result.parsed()


def _add(result: ParseResult, unit: ReportedDevice, kind: type[InverterChannel], clock: float) -> None:
    device = f"inverter/{unit.serial}"
    channels = _in_use(by_axis(kind, unit.channels, tuple(Input), result.problems))
    result.add(device, unit)
    if channels:
        whole = _whole_unit([*channels.values()])
        result.add(device, whole, without=DC_VALUES)
        result.readings.append(Reading(device, None, REPORTING, is_alive(whole.last_report, clock)))
    shown = DC_VALUES if len(channels) == 1 else INPUT_VALUES
    for place, channel in channels.items():
        result.add(device, channel, place, without=frozenset(kind.table) - shown)


def _in_use(channels: dict[Input, InverterChannel]) -> dict[Input, InverterChannel]:
    """The inputs that have ever reported, since the others have no module; all inputs if none has reported."""
    return {place: item for place, item in channels.items() if isinstance(item.last_report, datetime)} or channels


def _whole_unit(channels: Sequence[InverterChannel]) -> InverterChannel:
    """The values of a whole unit: sums, highest values, and the first input's for all others."""
    first, *others = channels
    if not others:
        return first
    added = {name: _total(_known(channels, name)) for name in SUMS_OF_INPUTS if name in first.table}
    highest = {name: max(_known(channels, name), default=ABSENT) for name in HIGHEST_OF_INPUTS}
    return first.model_copy(update=added | highest)


def _known(channels: Sequence[InverterChannel], name: str) -> list[Any]:
    values = (getattr(channel, name) for channel in channels)
    return [value for value in values if isinstance(value, int | float | datetime)]


def _total(values: Sequence[float]) -> float | Absent | None:
    return finite(sum(map(float, values))) if values else ABSENT
