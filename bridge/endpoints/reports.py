"""`/ivp/meters/reports/consumption` and `/ivp/meters/gridReading` (brief, appendices I and J)."""

from typing import Annotated, Any

from pydantic import Field

from bridge.endpoints.body import (
    PHASES,
    SPLIT_PHASES,
    Identity,
    Parsed,
    Sheet,
    by_phase,
    each,
    items,
    phase_voltage,
    phases,
)
from bridge.model import BadAnswer, Facts, MeterFacts, Phase
from bridge.records import (
    POWER,
    REACTIVE_POWER,
    VOLTAGE,
    Amperes,
    Epoch,
    Hertz,
    PowerFactor,
    Record,
    VarHoursReport,
    Vars,
    VoltAmpereHoursReport,
    VoltAmperes,
    Volts,
    WattHoursReport,
    Watts,
    wire,
)

# The cumulative current is a signed sum, the power factor a quotient of sums, the voltage the sum of the phases.
SUMS = frozenset({"current", "power_factor", "voltage"})


class Figures(Record):
    """`cumulative`, or one of the `lines`. The brief spells whDlvdCum also whDivdCum."""

    power: Watts = wire("actPower")
    instantaneous_demand: Watts = wire("currW")
    apparent_power: VoltAmperes = wire("apprntPwr")
    reactive_power: Vars = wire("reactPwr")
    voltage: Volts = wire("rmsVoltage")
    current: Amperes = wire("rmsCurrent")
    power_factor: PowerFactor = wire("pwrFactor")
    frequency: Hertz = wire("freqHz")
    energy_delivered: WattHoursReport = wire("whDlvdCum", "whDivdCum")
    energy_received: WattHoursReport = wire("whRcvdCum")
    apparent_energy: VoltAmpereHoursReport = wire("vahCum")
    reactive_energy_lagging: VarHoursReport = wire("varhLagCum")
    reactive_energy_leading: VarHoursReport = wire("varhLeadCum")


class Report(Record):
    """Net consumption is the load less solar production; total consumption is the load alone."""

    kind: Annotated[Identity, Field(validation_alias="reportType")]
    cumulative: Any = None
    lines: Any = None
    measured_at: Epoch = wire("createdAt", diagnostic=True)


class Channel(Record):
    """One phase at the point of grid connection: import positive, export negative."""

    line: Any = Field(default=None, validation_alias="phase")
    power: Watts = wire("activePower")
    reactive_power: Vars = wire("reactivePower")
    voltage: Volts = wire("voltage")
    current: Amperes = wire("current")
    frequency: Hertz = wire("freq")


class Grid(Record):
    """The whole: no total, no time stamp, always three channels."""

    channels: Any = None


def split_consumption(body: bytes, facts: Facts, _now: float) -> Parsed:
    sheet = Sheet()
    for report in each(Report, body, sheet.problems):
        device, meter = f"report/{report.kind}", facts.consumption()
        lines = phases(meter.phase_count if meter else _count(report.lines))
        if isinstance(report.cumulative, dict) and (total := Figures.read(report.cumulative, sheet.problems)):
            sheet.add(device, total, without=SUMS if lines else frozenset())
        sheet.add(device, report)
        _lines(sheet, device, by_phase(Figures, report.lines, lines, sheet.problems), lines, meter)
    return sheet.parsed()


def _count(lines: object) -> int:
    """Where no meter tells how many phases there are: `lines` holds the active ones only."""
    return len(lines) if isinstance(lines, list) else 1


def _lines(
    sheet: Sheet, device: str, given: dict[Phase, Figures], lines: tuple[Phase, ...], meter: MeterFacts | None
) -> None:
    split = meter.phase_mode == "split" if meter else len(lines) == SPLIT_PHASES
    voltage = phase_voltage({phase: line.voltage for phase, line in given.items()}, lines, split=split)
    if voltage is not None:
        sheet.value(device, "voltage", VOLTAGE, voltage)
    for phase, line in given.items():
        sheet.add(device, line, phase)


def split_grid(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Unused phases read a few volts of noise: only those of the consumption meter exist."""
    sheet = Sheet()
    given = next((item for item in items(body) if isinstance(item, dict) and "channels" in item), None)
    if given is None:
        raise BadAnswer("the answer has no channels")
    if facts.meters is None:
        return sheet.parsed()
    meter = facts.consumption()
    lines = phases(meter.phase_count if meter else 1)
    channels = _channels(given["channels"], sheet.problems)
    if not lines:
        _single(sheet, channels)
        return sheet.parsed()
    real = [channels[phase] for phase in lines if phase in channels]
    _total(sheet, "power", POWER, [channel.power for channel in real], len(lines))
    _total(sheet, "reactive_power", REACTIVE_POWER, [channel.reactive_power for channel in real], len(lines))
    for phase in lines:
        if phase in channels:
            sheet.add("report/grid", channels[phase], phase)
    return sheet.parsed()


def _single(sheet: Sheet, channels: dict[Phase, Channel]) -> None:
    if Phase.L1 in channels:
        sheet.add("report/grid", channels[Phase.L1])


def _channels(given: object, problems: list[str]) -> dict[Phase, Channel]:
    found = {}
    for place, channel in by_phase(Channel, given, PHASES, problems).items():
        name = str(channel.line or place).lower()
        found[Phase(name) if name in PHASES else place] = channel
    return found


def _total(sheet: Sheet, name: str, quantity: Any, values: list[Any], count: int) -> None:
    known = [value for value in values if isinstance(value, int | float)]
    if len(known) == count:
        sheet.value("report/grid", name, quantity, round(sum(known), 3))
