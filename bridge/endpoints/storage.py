"""`/ivp/ensemble/secctrl`, `/ivp/ensemble/status` and `/admin/lib/tariff`: the storage as a whole, its details, its
settings. Not in the brief: fields as seen on firmware 7.3 to 8.3.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from bridge.endpoints.body import PHASES, Identity, Parsed, Sheet, decode, level, phases, whole
from bridge.endpoints.device_list import TYPES, kind_of
from bridge.endpoints.inventory import Line
from bridge.endpoints.switchgear import Mains
from bridge.model import Facts, Phase, Structure
from bridge.records import (
    TEXT,
    Absent,
    Epoch,
    Flag,
    Hertz,
    Number,
    Percent,
    Reads,
    Record,
    Share,
    StoredWattHours,
    Text,
    Volts,
    Watts,
    finite,
    spelt,
    wire,
    worded,
)

TOTALS, OFFGRID, SETTINGS, TARIFF = "storage/totals", "storage/offgrid", "storage/settings", "tariff/current"
WIRE_PHASES = {Phase.L1: "", Phase.L2: "_phaseb", Phase.L3: "_phasec"}
DEEPEST = 6
"""Levels of an object that a document shows; a tariff has four."""


# /ivp/ensemble/secctrl


class Totals(Record):
    """All batteries together. `agg_soc` was seen to be 0 where there are AC Batteries only."""

    soc: Percent = wire("agg_soc", label="Charge")
    encharge_soc: Percent = wire("ENC_agg_soc", label="IQ Battery charge")
    acb_soc: Percent = wire("ACB_agg_soc", label="AC Battery charge")
    encharge_energy: StoredWattHours = wire("ENC_agg_avail_energy", label="IQ Battery energy")
    acb_energy: StoredWattHours = wire("ACB_agg_energy", label="AC Battery energy")
    max_energy: StoredWattHours = wire("Max_energy", label="Highest energy")
    encharge_soh: Share = wire("ENC_agg_soh", label="IQ Battery health", diagnostic=True)
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


class Bias(Record):
    """What the controller adds to a phase's frequency and voltage to steer inverters and batteries."""

    frequency_bias: Hertz = wire("freq_bias_hz", diagnostic=True)
    voltage_bias: Volts = wire("voltage_bias_v", diagnostic=True)
    frequency_bias_raw: Number = wire("freq_bias_hz_q8", diagnostic=True)
    voltage_bias_raw: Number = wire("voltage_bias_v_q5", diagnostic=True)


class Offgrid(Record):
    """The controller of a home off the grid (`offgrid_secctrl`, from 8.3); names as the gateway's."""

    active: Flag = wire("is_active", diagnostic=True)
    balanced: Flag = wire("is_system_balanced", diagnostic=True)
    reset_needed: Flag = wire("seq_reset_needed", label="Reset needed", diagnostic=True)
    f: Number = wire("F", label="F", diagnostic=True)
    v: Number = wire("V", label="V", diagnostic=True)
    vd_neg: Number = wire("Vd_neg", diagnostic=True)
    vq_neg: Number = wire("Vq_neg", diagnostic=True)
    vd_zero: Number = wire("Vd_zero", diagnostic=True)
    vq_zero: Number = wire("Vq_zero", diagnostic=True)


def split_secctrl(body: bytes, facts: Facts, _now: float) -> Parsed:
    """The sums, and the bias of each phase."""
    sheet = Sheet()
    sheet.add(TOTALS, whole(Totals, body, sheet.problems))
    given = _object(body)
    meter = facts.consumption()
    lines = phases(meter.phase_count if meter else 1)
    for line in lines or PHASES[:1]:
        wires = {name: f"{name}{WIRE_PHASES[line]}" for name in BIAS}
        bias = Bias.read({name: given[key] for name, key in wires.items() if key in given}, sheet.problems)
        if bias:
            sheet.add(TOTALS, bias, line if lines else None)
    offgrid = given.get("offgrid_secctrl")
    if isinstance(offgrid, dict) and (found := Offgrid.read(offgrid, sheet.problems)):
        sheet.add(OFFGRID, found)
    return sheet.parsed()


BIAS = ("freq_bias_hz", "voltage_bias_v", "freq_bias_hz_q8", "voltage_bias_v_q5")


# /ivp/ensemble/status


class Detail(Record):
    """What is inside a unit, and how it is reached. The rest of it is known better from the inventory."""

    serial: Annotated[Identity, Field(validation_alias="device_id")]
    type: Annotated[str | Absent | None, TEXT, worded(lambda number: TYPES.get(number, number))] = wire(
        "device_type", diagnostic=True, fallback=True
    )
    connection: Text = wire("com_interface_str", diagnostic=True, fallback=True)
    admin_state: Text = wire("admin_state_str", diagnostic=True, fallback=True)
    admin_state_code: Number = wire("admin_state", diagnostic=True, fallback=True)
    firmware: Text = wire("app_fw_version", diagnostic=True, fallback=True)
    part_number: Text = wire("part_number", diagnostic=True, fallback=True)
    phase: Line = wire("phase", diagnostic=True, fallback=True)
    assembly_number: Text = wire("assembly_number", diagnostic=True)
    rated_power: Watts = wire("encharge_rated_power", diagnostic=True)
    grid_mode: Text = wire("reported_grid_mode", diagnostic=True, fallback=True)
    retries: Number = wire("msg_retry_count", label="Message retries", diagnostic=True)
    configured: Flag = wire("prop_set", diagnostic=True)
    firmware_bmu: Text = wire("bmu_fw_version", label="BMU firmware", diagnostic=True, fallback=True)
    firmware_zigbee: Text = wire("zb_fw_version", label="ZigBee firmware", diagnostic=True, fallback=True)
    firmware_asic: Text = wire("swift_asic_fw_version", label="ASIC firmware", diagnostic=True)
    bootloader: Text = wire("ibl_fw_version", label="Boot loader", diagnostic=True)
    bootloader_zigbee: Text = wire("zb_bootloader_vers", label="ZigBee boot loader", diagnostic=True)


class Inside(Record):
    """The parts of `status` that add something: `secctrl` is asked for by itself, `counters` count requests."""

    inventory: Any = None
    relay: Any = None


def split_status(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Details of each unit, and the relays where nobody else tells of them."""
    sheet = Sheet()
    answer = whole(Inside, body, sheet.problems)
    units = answer.inventory.get("serial_nums") if isinstance(answer.inventory, dict) else None
    for serial, item in units.items() if isinstance(units, dict) else ():
        detail = Detail.read({**item, "device_id": serial} if isinstance(item, dict) else item, sheet.problems)
        if detail is None:
            continue
        device = f"{kind_of(detail.type, detail.serial, facts)}/{detail.serial}"
        sheet.add(device, detail)
        if modules := item.get("submodules"):
            sheet.value(device, "modules", TEXT, structure(modules), document_only=True)
    if isinstance(answer.relay, dict) and (mains := Mains.read(answer.relay, sheet.problems)):
        sheet.add("relay/mains", mains)
    return sheet.parsed()


# /admin/lib/tariff


class Settings(Record):
    """How the batteries are used."""

    mode: Text = wire("mode", enabled=True)
    mode_subtype: Text = wire("operation_mode_sub_type", diagnostic=True)
    reserve: Share = wire("reserved_soc", enabled=True)
    reserve_lowest: Share = wire("very_low_soc", label="Lowest charge allowed", diagnostic=True)
    charge_from_grid: Flag = wire("charge_from_grid", enabled=True)
    optimized: Flag = wire("opt_schedules", label="Optimized schedules", diagnostic=True)
    changed: Epoch = wire("date", label="Last change", diagnostic=True)


class Override(Record):
    """What the schedule is overridden with."""

    override: Flag = wire("override", diagnostic=True)
    override_reserve: Share = wire("override_backup_soc", diagnostic=True)
    override_rate: Number = wire("override_chg_dischg_rate", diagnostic=True)
    override_mode: Text = wire("override_tou_mode", diagnostic=True)


def _rate(value: object, _info: object) -> str | None:
    """Prices have more decimals than measurements: they are texts."""
    found = finite(value)
    if found is None:
        return None
    digits = f"{found:.5f}".rstrip("0").rstrip(".")
    return "0" if digits == "-0" else digits


Rate = Annotated[str | Absent | None, TEXT, Reads(_rate)]


class Tariff(Record):
    """What a kilowatt-hour costs, where it is one price; else see the seasons in the document."""

    currency: Text = wire("code", diagnostic=True)
    rate: Rate = wire("rate", diagnostic=True)
    rate_sell: Rate = wire("sell", label="Rate for selling", diagnostic=True)


class Library(Record):
    """The whole answer."""

    tariff: Any = None
    schedule: Any = None


def split_tariff(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """The storage's settings, and the prices."""
    sheet = Sheet()
    answer = whole(Library, body, sheet.problems)
    tariff, schedule = (item if isinstance(item, dict) else {} for item in (answer.tariff, answer.schedule))
    for device, kind, given in (
        (SETTINGS, Settings, tariff.get("storage_settings")),
        (SETTINGS, Override, schedule),
        (TARIFF, Tariff, {**_part(tariff, "currency"), **_part(tariff, "single_rate")}),
    ):
        if isinstance(given, dict) and given and (found := kind.read(given, sheet.problems)):
            sheet.add(device, found)
    for name in ("seasons", "seasons_sell"):
        if given := tariff.get(name):
            sheet.value(TARIFF, name, TEXT, structure(given), document_only=True)
    return sheet.parsed()


def _part(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = given.get(name)
    return part if isinstance(part, dict) else {}


def _object(body: bytes) -> Mapping[str, Any]:
    found = decode(body)
    return found if isinstance(found, dict) else {}


def structure(given: object, depth: int = DEEPEST) -> Structure:
    """What only a document can hold, key by key; the items of lists are numbered from 1."""
    return dict(_entries(given, depth))


def _entries(given: object, depth: int) -> Iterator[tuple[str, Any]]:
    items = given.items() if isinstance(given, dict) else enumerate(given, 1) if isinstance(given, list) else ()
    for key, value in items:
        name = level(str(key))
        if not name or not depth:
            continue
        if isinstance(value, dict | list):
            yield name, structure(value, depth - 1)
        elif isinstance(value, bool) or value is None:
            yield name, value
        else:
            yield name, spelt(value) if isinstance(value, str) else finite(value)
