"""`/ivp/meters` and `/ivp/meters/readings` (brief, appendices C and D): current transformers and what they measure.

The role of a meter comes from `/ivp/meters` by its eid, never from its place in the list. Readings of disabled
meters and of ids that `/ivp/meters` does not name (1023410688 on firmware 8.3) mean nothing.
"""

from collections import Counter
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from bridge.endpoints.body import (
    PHASES,
    SPLIT_PHASES,
    Identity,
    Parsed,
    Sheet,
    by_phase,
    each,
    phase_voltage,
    phases,
)
from bridge.model import Facts, MeterFacts
from bridge.records import (
    ABSENT,
    FLAG,
    VOLTAGE,
    Absent,
    Amperes,
    Epoch,
    Hertz,
    LowerText,
    Number,
    PowerFactor,
    Record,
    Text,
    Texts,
    VarHours,
    Vars,
    VoltAmpereHours,
    VoltAmperes,
    Volts,
    WattHours,
    Watts,
    wire,
    worded,
)

# Of a device with several phases these say nothing: an unsigned sum, a sum (1.94 on 8.3), and the sum of voltages.
SUMS = frozenset({"current", "power_factor", "voltage", "eid"})
OWN = frozenset({"eid"})
# A wire that isn't connected shows a few volts; a split phase's line to line is the double of its first channel.
LIVE, NOISE = 2 / 3, 0.995


def _eid(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is no number")  # noqa: TRY004 - pydantic takes no TypeError
    return value


# Only `enabled` counts: of any other state, the readings mean nothing.
Enabled = Annotated[bool | Absent | None, FLAG, worded(lambda state: state.lower() == "enabled")]


class Meter(Record):
    """One entry of `/ivp/meters`."""

    key: Annotated[int, Field(validation_alias="eid"), BeforeValidator(_eid)]
    role: Annotated[Identity, Field(validation_alias="measurementType")]
    eid: Number = wire("eid", label="ID", diagnostic=True)
    enabled: Enabled = wire("state", diagnostic=True)
    metering_status: LowerText = wire("meteringStatus", enabled=True, diagnostic=True)
    status_flags: Texts = wire("statusFlags", diagnostic=True)
    phase_mode: Text = wire("phaseMode", diagnostic=True)
    phase_count: Number = wire("phaseCount", diagnostic=True)

    def facts(self, role: str) -> MeterFacts:
        mode = self.phase_mode if isinstance(self.phase_mode, str) else ""
        usual = {"split": SPLIT_PHASES, "three": len(PHASES)}.get(mode, 1)
        count = int(self.phase_count) if isinstance(self.phase_count, int | float) else usual
        counts = self.enabled is True or self.enabled is ABSENT
        return MeterFacts(self.key, role, counts, max(1, min(count, len(PHASES))), mode)


class MeterReading(Record):
    """One meter's reading. One of its channels is the same record."""

    eid: Number = wire("eid", label="Channel id", diagnostic=True)
    power: Watts = wire("activePower", enabled=True, enabled_phases=True)
    instantaneous_demand: Watts = wire("instantaneousDemand")
    apparent_power: VoltAmperes = wire("apparentPower")
    reactive_power: Vars = wire("reactivePower")
    power_factor: PowerFactor = wire("pwrFactor")
    voltage: Volts = wire("voltage", enabled_phases=True)
    current: Amperes = wire("current", enabled_phases=True)
    frequency: Hertz = wire("freq")
    energy_delivered: WattHours = wire("actEnergyDlvd", enabled=True)
    energy_received: WattHours = wire("actEnergyRcvd", enabled=True)
    apparent_energy: VoltAmpereHours = wire("apparentEnergy")
    reactive_energy_lagging: VarHours = wire("reactEnergyLagg")
    reactive_energy_leading: VarHours = wire("reactEnergyLead")
    measured_at: Epoch = wire("timestamp", diagnostic=True)


class MeterWithChannels(MeterReading):
    """A reading as it stands in the answer, always with three channels."""

    channels: Any = None


def split_meters(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Readings of every listed meter, and the facts that `readings`, `grid` and `livedata` need."""
    sheet = Sheet()
    found, seen = [], Counter[str]()
    for meter in each(Meter, body, sheet.problems):
        seen[meter.role] += 1
        known = meter.facts(meter.role if seen[meter.role] == 1 else f"{meter.role}-{seen[meter.role]}")
        found.append(known)
        sheet.add(f"meter/{known.role}", meter)
    return sheet.parsed(facts=replace(facts, meters=tuple(found)))


def split_readings(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Readings of the enabled meters; none before `/ivp/meters` has told which they are."""
    sheet = Sheet()
    for reading in each(MeterWithChannels, body, sheet.problems):
        if reading.eid is ABSENT or reading.eid is None:
            sheet.problems.append("MeterReading.eid: field required")
        elif (meter := facts.meter(int(reading.eid))) and meter.enabled:
            _add(sheet, reading, meter)
    return sheet.parsed()


def _add(sheet: Sheet, reading: MeterWithChannels, meter: MeterFacts) -> None:
    device = f"meter/{meter.role}"
    lines = phases(meter.phase_count)
    if not lines:
        sheet.add(device, _one_phase(reading), without=OWN)
        return
    sheet.add(device, reading, without=SUMS)
    channels = by_phase(MeterReading, reading.channels, lines, sheet.problems)
    voltages = {phase: channel.voltage for phase, channel in channels.items()}
    voltage = phase_voltage(voltages, lines, split=meter.phase_mode == "split")
    if voltage is not None:
        sheet.value(device, "voltage", VOLTAGE, voltage)
    for phase, channel in channels.items():
        sheet.add(device, channel, phase)


def _one_phase(reading: MeterWithChannels) -> MeterReading:
    """A reading whose voltage and current are the phase's own, where the gateway adds what open wires show."""
    first = by_phase(MeterReading, reading.channels, PHASES[:1], []).get(PHASES[0])
    if first is None or not isinstance(first.voltage, int | float) or not isinstance(reading.voltage, int | float):
        return reading
    if not LIVE * reading.voltage < first.voltage < NOISE * reading.voltage:
        return reading
    own = {name: getattr(first, name) for name in SUMS - OWN}
    return reading.model_copy(update={name: value for name, value in own.items() if value is not ABSENT})
