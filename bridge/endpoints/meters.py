"""Meters and reports: `/ivp/meters` (brief, appendix C), `/ivp/meters/readings` (D),
`/ivp/meters/gridReading` (J) and `/ivp/meters/reports/consumption` (I).

The role of a meter comes from `/ivp/meters` by its eid, never from its place in the list. Readings of disabled
meters and of ids that `/ivp/meters` does not name (1023410688 on firmware 8.3) mean nothing.
"""

from collections import Counter
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from bridge.endpoints.parsing import (
    PHASES,
    PHASES_OF_SPLIT_PHASE,
    DeviceId,
    Parsed,
    ParseResult,
    by_axis,
    decode_list,
    parse_list,
    phase_voltage,
    phases,
)
from bridge.model import BadAnswer, Facts, MeterFacts, Phase, Reading
from bridge.records import (
    ABSENT,
    ENERGY,
    FLAG,
    POWER,
    REACTIVE_POWER,
    VOLTAGE,
    Absent,
    Amperes,
    Epoch,
    Hertz,
    LowerText,
    PlainNumber,
    PowerFactor,
    Record,
    Text,
    Texts,
    VarHours,
    VarHoursReport,
    Vars,
    VoltAmpereHours,
    VoltAmpereHoursReport,
    VoltAmperes,
    Volts,
    WattHours,
    WattHoursReport,
    Watts,
    mapped,
    measurement,
    wire,
)

MAX_METERS = 32
# Where a meter has several phases, the gateway adds up currents without their signs, power factors (to 1.94 on 8.3)
# and voltages. None of these sums means anything.
MEANINGLESS_SUMS = frozenset({"current", "power_factor", "voltage"})
CHANNEL_ONLY = frozenset({"eid"})
# An unconnected wire shows a few volts; the line-to-line voltage of a split phase is twice that of a channel.
LIVE_WIRE_SHARE, NOISE_SHARE = 2 / 3, 0.995


def _eid(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is no number")  # noqa: TRY004 - pydantic takes no TypeError
    return value


# The readings of a meter in any other state than `enabled` mean nothing.
Enabled = Annotated[bool | Absent | None, FLAG, mapped(lambda state: state.lower() == "enabled")]


class Meter(Record):
    """One entry of `/ivp/meters`."""

    key: Annotated[int, Field(validation_alias="eid"), BeforeValidator(_eid)]
    role: Annotated[DeviceId, Field(validation_alias="measurementType")]
    eid: PlainNumber = wire("eid", label="ID", diagnostic=True)
    enabled: Enabled = wire("state", diagnostic=True)
    metering_status: LowerText = wire("meteringStatus", enabled=True, diagnostic=True)
    status_flags: Texts = wire("statusFlags", diagnostic=True)
    phase_mode: Text = wire("phaseMode", diagnostic=True)
    phase_count: PlainNumber = wire("phaseCount", diagnostic=True)

    def facts(self, role: str) -> MeterFacts:
        mode = self.phase_mode if isinstance(self.phase_mode, str) else ""
        usual = {"split": PHASES_OF_SPLIT_PHASE, "three": len(PHASES)}.get(mode, 1)
        count = int(self.phase_count) if isinstance(self.phase_count, int | float) else usual
        counts = self.enabled is True or self.enabled is ABSENT
        return MeterFacts(self.key, role, counts, max(1, min(count, len(PHASES))), mode)


PHASE_TODAY = measurement("energy_today", ENERGY)
"""Energy of today of a phase. The bridge counts it: the gateway does not tell it here."""
COUNTED_BY_PHASE = frozenset({"production", "total-consumption"})
"""Roles of meters, and kinds of reports, whose phases have energies of today."""


class MeterReading(Record):
    """The reading of a meter, or of one of its channels."""

    eid: PlainNumber = wire("eid", label="Channel id", diagnostic=True)
    power: Watts = wire("activePower", enabled=True, enabled_phases=True)
    instantaneous_demand: Watts = wire("instantaneousDemand")
    apparent_power: VoltAmperes = wire("apparentPower")
    reactive_power: Vars = wire("reactivePower")
    power_factor: PowerFactor = wire("pwrFactor")
    voltage: Volts = wire("voltage", enabled_phases=True)
    current: Amperes = wire("current")
    frequency: Hertz = wire("freq")
    energy_delivered: WattHours = wire("actEnergyDlvd", enabled=True)
    energy_received: WattHours = wire("actEnergyRcvd", enabled=True)
    apparent_energy: VoltAmpereHours = wire("apparentEnergy")
    reactive_energy_lagging: VarHours = wire("reactEnergyLagg")
    reactive_energy_leading: VarHours = wire("reactEnergyLead")
    measured_at: Epoch = wire("timestamp", diagnostic=True)


class MeterWithChannels(MeterReading):
    """A reading of a meter as it is in the answer, always with three channels."""

    channels: Any = None


def split_meters(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read every listed meter, and learn the facts that `readings`, `grid` and `livedata` need."""
    result = ParseResult()
    found, seen = [], Counter[str]()
    for meter in parse_list(Meter, body, result.problems)[:MAX_METERS]:
        seen[meter.role] += 1
        known = meter.facts(meter.role if seen[meter.role] == 1 else f"{meter.role}-{seen[meter.role]}")
        found.append(known)
        result.add(f"meter/{known.role}", meter)
    return result.parsed(facts=replace(facts, meters=tuple(found)))


def split_readings(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the enabled meters; there are no readings before `/ivp/meters` has told which these are."""
    result = ParseResult()
    for reading in parse_list(MeterWithChannels, body, result.problems):
        if reading.eid is ABSENT or reading.eid is None:
            result.problems.append("MeterReading.eid: field required")
        elif reading.model_fields_set == {"eid"}:
            result.problems.append("MeterReading: it has only an eid")
        elif (meter := facts.meter(int(reading.eid))) and meter.enabled:
            _add_reading(result, reading, meter)
    return result.parsed()


def _add_reading(result: ParseResult, reading: MeterWithChannels, meter: MeterFacts) -> None:
    device = f"meter/{meter.role}"
    lines = phases(meter.phase_count)
    if not lines:
        result.add(device, _one_phase(reading), without=CHANNEL_ONLY)
        return
    result.add(device, reading, without=MEANINGLESS_SUMS | CHANNEL_ONLY)
    channels = by_axis(MeterReading, reading.channels, lines, result.problems)
    voltages = {phase: channel.voltage for phase, channel in channels.items()}
    voltage = phase_voltage(voltages, lines, split=meter.phase_mode == "split")
    if voltage is not None:
        result.value(device, "voltage", VOLTAGE, voltage)
    for phase, channel in channels.items():
        _add_phase(result, device, channel, phase)


def _add_phase(result: ParseResult, device: str, values: Record, phase: Phase) -> None:
    """Add a phase, and its energy of today, which is unknown here."""
    result.add(device, values, phase)
    if device.partition("/")[2] in COUNTED_BY_PHASE:
        result.readings.append(Reading(device, phase, PHASE_TODAY, None))


def _one_phase(reading: MeterWithChannels) -> MeterReading:
    """A copy with the voltage and current of the only phase. The gateway adds what unconnected wires show."""
    first = by_axis(MeterReading, reading.channels, PHASES[:1], []).get(PHASES[0])
    if first is None or not isinstance(first.voltage, int | float) or not isinstance(reading.voltage, int | float):
        return reading
    if not LIVE_WIRE_SHARE * reading.voltage < first.voltage < NOISE_SHARE * reading.voltage:
        return reading
    own = {name: getattr(first, name) for name in MEANINGLESS_SUMS}
    return reading.model_copy(update={name: value for name, value in own.items() if value is not ABSENT})


class ReportValues(Record):
    """The values of `cumulative`, or of one of the `lines`. The brief also spells whDlvdCum as whDivdCum."""

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


class ConsumptionReport(Record):
    """Net consumption is the load less solar production; total consumption is the load alone."""

    kind: Annotated[DeviceId, Field(validation_alias="reportType")]
    cumulative: Any = None
    lines: Any = None
    measured_at: Epoch = wire("createdAt", diagnostic=True)


class GridChannel(Record):
    """One phase at the point of grid connection: import positive, export negative."""

    line: Any = Field(default=None, validation_alias="phase")
    power: Watts = wire("activePower")
    reactive_power: Vars = wire("reactivePower")
    voltage: Volts = wire("voltage")
    current: Amperes = wire("current")
    frequency: Hertz = wire("freq")


def split_consumption(body: bytes, facts: Facts, _now: float) -> Parsed:
    result = ParseResult()
    for report in parse_list(ConsumptionReport, body, result.problems):
        device, meter = f"report/{report.kind}", facts.consumption()
        lines = phases(meter.phase_count if meter else _count(report.lines))
        if isinstance(report.cumulative, dict) and (total := ReportValues.read(report.cumulative, result.problems)):
            result.add(device, total, without=MEANINGLESS_SUMS if lines else frozenset())
        result.add(device, report)
        _lines(result, device, by_axis(ReportValues, report.lines, lines, result.problems), lines, meter)
    return result.parsed()


def _count(lines: object) -> int:
    """The number of phases if no meter tells it: `lines` has the active ones only."""
    return len(lines) if isinstance(lines, list) else 1


def _lines(
    result: ParseResult,
    device: str,
    given: dict[Phase, ReportValues],
    lines: tuple[Phase, ...],
    meter: MeterFacts | None,
) -> None:
    split = meter.phase_mode == "split" if meter else len(lines) == PHASES_OF_SPLIT_PHASE
    voltage = phase_voltage({phase: line.voltage for phase, line in given.items()}, lines, split=split)
    if voltage is not None:
        result.value(device, "voltage", VOLTAGE, voltage)
    for phase, line in given.items():
        _add_phase(result, device, line, phase)


def split_grid(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the phases of the consumption meter; the channels of others show a few volts of noise.

    Raises:
        BadAnswer: the answer has no channels.
    """
    result = ParseResult()
    given = next((item for item in decode_list(body) if isinstance(item, dict) and "channels" in item), None)
    if given is None:
        raise BadAnswer("the answer has no channels")
    if "actEnergyDlvd" in given:
        raise BadAnswer("the answer is that of /ivp/meters/readings")
    if facts.meters is None:
        return result.parsed()
    meter = facts.consumption()
    lines = phases(meter.phase_count if meter else 1)
    channels = _channels(given["channels"], result.problems)
    if not lines:
        _single(result, channels)
        return result.parsed()
    real = [channels[phase] for phase in lines if phase in channels]
    _total(result, "power", POWER, [channel.power for channel in real], len(lines))
    _total(result, "reactive_power", REACTIVE_POWER, [channel.reactive_power for channel in real], len(lines))
    for phase in lines:
        if phase in channels:
            result.add("report/grid", channels[phase], phase)
    return result.parsed()


def _single(result: ParseResult, channels: dict[Phase, GridChannel]) -> None:
    if Phase.L1 in channels:
        result.add("report/grid", channels[Phase.L1])


def _channels(given: object, problems: list[str]) -> dict[Phase, GridChannel]:
    found = {}
    for place, channel in by_axis(GridChannel, given, PHASES, problems).items():
        name = str(channel.line or place).lower()
        found[Phase(name) if name in PHASES else place] = channel
    return found


def _total(result: ParseResult, name: str, quantity: Any, values: list[Any], count: int) -> None:
    known = [value for value in values if isinstance(value, int | float)]
    if len(known) == count:
        result.value("report/grid", name, quantity, round(sum(known), 3))
