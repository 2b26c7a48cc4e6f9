"""The storage as a whole, its details, and its settings: `/ivp/ensemble/secctrl`, `/ivp/ensemble/status`,
`/admin/lib/tariff` and `/admin/lib/acb_config`. Not in the brief: fields as seen on firmware 7.3 to 8.3.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from bridge.control import ECONOMY, SAVINGS, flag, number, words
from bridge.endpoints.inventory import TYPE_NUMBERS, PhaseName, kind_of
from bridge.endpoints.parsing import (
    PHASES,
    DeviceId,
    Parsed,
    ParseResult,
    decode,
    excerpt,
    parse_object,
    phases,
    topic_level,
)
from bridge.endpoints.switchgear import MainsRelay
from bridge.model import BadAnswer, Facts, Phase, Reading, SourceName, Structure
from bridge.records import (
    FLAG,
    TEXT,
    Absent,
    Converter,
    Epoch,
    Flag,
    Hertz,
    Percent,
    Percentage,
    PlainNumber,
    Record,
    Share,
    StoredWattHours,
    Text,
    Volts,
    Watts,
    finite,
    mapped,
    measurement,
    to_text,
    wire,
)

STORAGE_TOTALS, STORAGE_OFFGRID, STORAGE_CONTROL, STORAGE_SETTINGS, TARIFF_CURRENT = (
    "storage/totals",
    "storage/offgrid",
    "storage/control",
    "storage/settings",
    "tariff/current",
)
WIRE_SUFFIXES = {Phase.L1: "", Phase.L2: "_phaseb", Phase.L3: "_phasec"}
MAX_DOCUMENT_DEPTH = 6
"""Levels of an object that a document has; a tariff has four."""


# /ivp/ensemble/secctrl


class StorageTotals(Record):
    """All batteries together. `agg_soc` was seen to be 0 where there are AC Batteries only."""

    soc: Percent = wire("agg_soc", label="Charge")
    encharge_soc: Percent = wire("ENC_agg_soc", label="IQ Battery charge")
    acb_soc: Percent = wire("ACB_agg_soc", label="AC Battery charge")
    encharge_energy: StoredWattHours = wire("ENC_agg_avail_energy", label="IQ Battery energy")
    acb_energy: StoredWattHours = wire("ACB_agg_energy", label="AC Battery energy")
    max_energy: StoredWattHours = wire("Max_energy", label="Highest energy")
    encharge_soh: Share = wire("ENC_agg_soh", label="IQ Battery health", diagnostic=True, enabled=True)
    capacity: StoredWattHours = wire("Enc_max_available_capacity", diagnostic=True)
    commissioned_capacity: StoredWattHours = wire("Enc_commissioned_capacity", diagnostic=True)
    reserve: Share = wire("configured_backup_soc", label="Reserve configured")
    reserve_now: Share = wire("adjusted_backup_soc", label="Reserve in effect")
    reserve_energy: StoredWattHours = wire("ENC_agg_backup_energy")
    reserve_lowest: Share = wire("VLS_Limit", label="Lowest charge in effect", diagnostic=True)
    recovery: Flag = wire("soc_rec_enabled", label="Charge recovery", diagnostic=True)
    recovery_entry: Share = wire("soc_recovery_entry", label="Charge recovery begins", diagnostic=True)
    recovery_exit: Share = wire("soc_recovery_exit", label="Charge recovery ends", diagnostic=True)
    recovery_threshold: Share = wire("Recovery_threshold_soc", label="Charge recovery threshold", diagnostic=True)
    shutdown: Flag = wire("shutdown", diagnostic=True)
    commissioning: Flag = wire("Commission_in_progress", diagnostic=True)
    updating: Flag = wire("ESS_in_progress", label="ESS in progress", diagnostic=True)
    upgrading: Flag = wire("ESS_R3_To_R4_in_progress", label="ESS R3 to R4 in progress", diagnostic=True)


SCHEDULER_SIGN = "sched_mode_key"
"""A field that only an answer of `/ivp/sc/sched` has, which has some of the sums, too."""


class ReservesInForce(Record):
    """Two of the sums once more, so that `storage/control` has all that is in force."""

    reserve: Percentage = wire("configured_backup_soc", enabled=True)
    reserve_lowest: Percentage = wire("VLS_Limit", label="Lowest charge", diagnostic=True)


class PhaseBias(Record):
    """The bias that the controller adds to frequency and voltage of a phase, to steer inverters and batteries."""

    frequency_bias: Hertz = wire("freq_bias_hz", diagnostic=True)
    voltage_bias: Volts = wire("voltage_bias_v", diagnostic=True)
    frequency_bias_raw: PlainNumber = wire("freq_bias_hz_q8", diagnostic=True)
    voltage_bias_raw: PlainNumber = wire("voltage_bias_v_q5", diagnostic=True)


class OffgridControl(Record):
    """The controller of a home off the grid (`offgrid_secctrl`, from 8.3); names as the gateway's."""

    active: Flag = wire("is_active", diagnostic=True)
    balanced: Flag = wire("is_system_balanced", diagnostic=True)
    reset_needed: Flag = wire("seq_reset_needed", label="Reset needed", diagnostic=True)
    f: PlainNumber = wire("F", label="F", diagnostic=True)
    v: PlainNumber = wire("V", label="V", diagnostic=True)
    vd_neg: PlainNumber = wire("Vd_neg", diagnostic=True)
    vq_neg: PlainNumber = wire("Vq_neg", diagnostic=True)
    vd_zero: PlainNumber = wire("Vd_zero", diagnostic=True)
    vq_zero: PlainNumber = wire("Vq_zero", diagnostic=True)


def split_secctrl(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the sums, and the bias of each phase.

    Raises:
        BadAnswer: it is no such answer, but for example one of `/ivp/sc/sched`, which has some of the sums.
    """
    result = ParseResult()
    result.add(STORAGE_TOTALS, parse_object(StorageTotals, body, result.problems))
    given = _object(body)
    if SCHEDULER_SIGN in given:
        raise BadAnswer(f"the answer is one of another endpoint: {excerpt(body)}")
    if reserves := ReservesInForce.read(given, result.problems):
        result.add(STORAGE_CONTROL, reserves)
    meter = facts.consumption()
    lines = phases(meter.phase_count if meter else 1)
    for line in lines or PHASES[:1]:
        wires = {name: f"{name}{WIRE_SUFFIXES[line]}" for name in BIAS_FIELDS}
        bias = PhaseBias.read({name: given[key] for name, key in wires.items() if key in given}, result.problems)
        if bias:
            result.add(STORAGE_TOTALS, bias, line if lines else None)
    offgrid = given.get("offgrid_secctrl")
    if isinstance(offgrid, dict) and (found := OffgridControl.read(offgrid, result.problems)):
        result.add(STORAGE_OFFGRID, found)
    return result.parsed()


BIAS_FIELDS = ("freq_bias_hz", "voltage_bias_v", "freq_bias_hz_q8", "voltage_bias_v_q5")


# /ivp/ensemble/status


class UnitDetail(Record):
    """The parts of a unit, and its connection. The inventory has better values for the rest."""

    serial: Annotated[DeviceId, Field(validation_alias="device_id")]
    type: Annotated[str | Absent | None, TEXT, mapped(lambda number: TYPE_NUMBERS.get(number, number))] = wire(
        "device_type", diagnostic=True, fallback=True
    )
    connection: Text = wire("com_interface_str", diagnostic=True, fallback=True)
    admin_state: Text = wire("admin_state_str", diagnostic=True, fallback=True)
    admin_state_code: PlainNumber = wire("admin_state", diagnostic=True, fallback=True)
    firmware: Text = wire("app_fw_version", diagnostic=True, fallback=True)
    part_number: Text = wire("part_number", diagnostic=True, fallback=True)
    phase: PhaseName = wire("phase", diagnostic=True, fallback=True)
    assembly_number: Text = wire("assembly_number", diagnostic=True)
    rated_power: Watts = wire("encharge_rated_power", diagnostic=True)
    grid_mode: Text = wire("reported_grid_mode", diagnostic=True, fallback=True)
    retries: PlainNumber = wire("msg_retry_count", label="Message retries", diagnostic=True)
    configured: Flag = wire("prop_set", diagnostic=True)
    firmware_bmu: Text = wire("bmu_fw_version", label="BMU firmware", diagnostic=True, fallback=True)
    firmware_zigbee: Text = wire("zb_fw_version", label="ZigBee firmware", diagnostic=True, fallback=True)
    firmware_asic: Text = wire("swift_asic_fw_version", label="ASIC firmware", diagnostic=True)
    bootloader: Text = wire("ibl_fw_version", label="Boot loader", diagnostic=True)
    bootloader_zigbee: Text = wire("zb_bootloader_vers", label="ZigBee boot loader", diagnostic=True)


class EnsembleStatus(Record):
    """The useful parts of `status`. Its `secctrl` has an endpoint of its own, and its `counters` count requests."""

    inventory: Any = None
    relay: Any = None


def split_status(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the details of each unit, and the relays."""
    result = ParseResult()
    answer = parse_object(EnsembleStatus, body, result.problems)
    units = answer.inventory.get("serial_nums") if isinstance(answer.inventory, dict) else None
    for serial, item in units.items() if isinstance(units, dict) else ():
        detail = UnitDetail.read({**item, "device_id": serial} if isinstance(item, dict) else item, result.problems)
        if detail is None:
            continue
        device = f"{kind_of(detail.type, detail.serial, facts)}/{detail.serial}"
        result.add(device, detail)
        if modules := item.get("submodules"):
            result.value(device, "modules", TEXT, structure(modules), document_only=True)
    if isinstance(answer.relay, dict) and (mains := MainsRelay.read(answer.relay, result.problems)):
        result.add("relay/mains", mains)
    return result.parsed()


# /admin/lib/acb_config

SLEEP = measurement("sleep", FLAG, enabled=True)
SLEEPING = flag("acb", SourceName.ACB_CONFIG, 30)


class AcBatterySleep(Record):
    """An AC Battery that sleeps, and the charges between which it goes to sleep."""

    serial: Annotated[DeviceId, Field(validation_alias="serial_num")]
    sleep_soc_min: Share = wire("sleep_min_soc", label="Lowest charge for sleep", diagnostic=True)
    sleep_soc_max: Share = wire("sleep_max_soc", label="Highest charge for sleep", diagnostic=True)


class AcBatterySettings(Record):
    """The answer. Only those that sleep are listed (public clients)."""

    sleeping: Any = Field(default=None, validation_alias="acb_sleep")


def split_acb_config(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read which AC Batteries sleep. The others are awake, unless an item of the list can't be read."""
    result = ParseResult()
    answer = parse_object(AcBatterySettings, body, result.problems)
    if not isinstance(answer.sleeping, list):
        result.problems.append("AcBatterySettings: acb_sleep is no list")
        return result.parsed()
    units = [AcBatterySleep.read(item, result.problems) for item in answer.sleeping]
    asleep = {f"acb/{unit.serial}": unit for unit in units if unit}
    for device, unit in asleep.items():
        result.add(device, unit)
    known = {item for item in facts.gear if item.startswith("acb/")} if all(units) else set()
    for device in sorted(known | asleep.keys()):
        result.readings.append(Reading(device, None, SLEEP, device in asleep))
    return result.parsed()


# /admin/lib/tariff


SETTLES_S = 90.0
"""Time in which the batteries follow a setting."""
NEVER_OBEYED = "8.3.6086"
"""This firmware stores what is written, and does what Enphase's app says (measured at one site)."""
MODES = words(
    "storage",
    SourceName.TARIFF,
    SETTLES_S,
    *("self-consumption", "backup", ECONOMY, SAVINGS),
    proof="storage/control/mode",
    ignored_from=NEVER_OBEYED,
)
RESERVES = number(
    "storage", SourceName.TARIFF, SETTLES_S, 0, 100, proof="storage/control/reserve", ignored_from=NEVER_OBEYED
)
LOWEST = number(
    "storage",
    SourceName.TARIFF,
    SETTLES_S,
    5,
    25,
    proof="storage/control/reserve_lowest",
    ignored_from=NEVER_OBEYED,
)
GRID_CHARGING = flag(
    "storage", SourceName.TARIFF, SETTLES_S, proof="storage/control/charge_from_grid", ignored_from=NEVER_OBEYED
)
OPTIMIZING = flag("storage", SourceName.TARIFF, SETTLES_S, proof=None, ignored_from=NEVER_OBEYED)


class StorageSettings(Record):
    """The stored settings for the use of the batteries. From firmware 8.2.4225 on they need not be obeyed."""

    mode: Text = wire("mode", control=MODES)
    mode_subtype: Text = wire("operation_mode_sub_type", diagnostic=True)
    reserve: Share = wire("reserved_soc", control=RESERVES)
    reserve_lowest: Share = wire("very_low_soc", label="Lowest charge allowed", diagnostic=True, control=LOWEST)
    charge_from_grid: Flag = wire("charge_from_grid", control=GRID_CHARGING)
    optimized: Flag = wire("opt_schedules", label="Optimized schedules", diagnostic=True, control=OPTIMIZING)
    changed: Epoch = wire("date", label="Last change", diagnostic=True)


class ScheduleInForce(Record):
    """What the controller has computed from the settings, on firmware that computes it."""

    mode: Text = wire("batt_mode", "battery_mode", enabled=True)
    charge_from_grid: Flag = wire("charge_from_grid", enabled=True, fallback=True)


FIRST_WITHOUT_SCHEDULE = "8.3.5290"
"""This firmware or later fills the schedule with defaults at each reading (seen on 8.3.6086)."""


class ScheduleOverride(Record):
    """The override of the schedule."""

    override: Flag = wire("override", diagnostic=True)
    override_reserve: Share = wire("override_backup_soc", diagnostic=True)
    override_rate: PlainNumber = wire("override_chg_dischg_rate", diagnostic=True)
    override_mode: Text = wire("override_tou_mode", diagnostic=True)


def _rate(value: object, _info: object) -> str | None:
    """Convert a price to a text, since prices have more decimals than measurements."""
    found = finite(value)
    if found is None:
        return None
    digits = f"{found:.5f}".rstrip("0").rstrip(".")
    return "0" if digits == "-0" else digits


Rate = Annotated[str | Absent | None, TEXT, Converter(_rate)]


class Tariff(Record):
    """The price of a kilowatt-hour, if there is a single one. The document has the seasons of other tariffs."""

    currency: Text = wire("code", diagnostic=True)
    rate: Rate = wire("rate", diagnostic=True)
    rate_sell: Rate = wire("sell", label="Rate for selling", diagnostic=True)


class TariffAnswer(Record):
    """The answer."""

    tariff: Any = None
    schedule: Any = None


def split_tariff(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the settings of the storage, and the prices. `/ivp/ensemble/generator` has a number as `schedule`."""
    result = ParseResult()
    answer = parse_object(TariffAnswer, body, result.problems)
    tariff, schedule = (item if isinstance(item, dict) else {} for item in (answer.tariff, answer.schedule))
    if answer.tariff is None and not schedule:
        result.problems.append("TariffAnswer: it has no tariff")
    computes = not facts.is_from(FIRST_WITHOUT_SCHEDULE, if_unknown=True)
    for device, kind, given in (
        (STORAGE_SETTINGS, StorageSettings, tariff.get("storage_settings")),
        (STORAGE_CONTROL, ScheduleInForce, schedule if computes else None),
        (STORAGE_SETTINGS, ScheduleOverride, schedule),
        (TARIFF_CURRENT, Tariff, {**_part(tariff, "currency"), **_part(tariff, "single_rate")}),
    ):
        if isinstance(given, dict) and given and (found := kind.read(given, result.problems)):
            result.add(device, found)
    for name in ("seasons", "seasons_sell"):
        if given := tariff.get(name):
            result.value(TARIFF_CURRENT, name, TEXT, structure(given), document_only=True)
    return result.parsed()


def _part(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = given.get(name)
    return part if isinstance(part, dict) else {}


def _object(body: bytes) -> Mapping[str, Any]:
    found = decode(body)
    return found if isinstance(found, dict) else {}


def structure(given: object, depth: int = MAX_DOCUMENT_DEPTH) -> Structure:
    """Convert an object or a list to a structure for a document; items of lists are numbered from 1."""
    return dict(_entries(given, depth))


def _entries(given: object, depth: int) -> Iterator[tuple[str, Any]]:
    items = given.items() if isinstance(given, dict) else enumerate(given, 1) if isinstance(given, list) else ()
    for key, value in items:
        name = topic_level(str(key))
        if not name or not depth:
            continue
        if isinstance(value, dict | list):
            yield name, structure(value, depth - 1)
        elif isinstance(value, bool) or value is None:
            yield name, value
        else:
            yield name, to_text(value) if isinstance(value, str) else finite(value)
