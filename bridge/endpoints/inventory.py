"""`/ivp/ensemble/inventory` and `/ivp/ensemble/power`: storage gear, unit by unit; `[]` or 404 where there is none.

Firmware 5 on. Not in the brief: fields as seen on firmware 7.3 to 8.3. The key of the powers has a colon in it.
The firmware of 2021 tells a battery's power here, and the grid profile in an item of its own (public clients).
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from bridge.endpoints.body import Identity, Parsed, Sheet, each, level, whole
from bridge.model import Facts
from bridge.records import (
    CONNECTIVITY,
    TEXT,
    Absent,
    Celsius,
    Connected,
    Count,
    Epoch,
    Fahrenheit,
    Flag,
    LowerText,
    MillivoltAmperes,
    Milliwatts,
    NotFlag,
    Number,
    Percent,
    Record,
    StoredWattHours,
    Text,
    Texts,
    Watts,
    spelt,
    wire,
    worded,
)

LINES = {"ph-a": "l1", "ph-b": "l2", "ph-c": "l3", "ph-all": "all", "1": "l1", "2": "l2", "3": "l3"}

Line = Annotated[str | Absent | None, TEXT, worded(lambda name: LINES.get(name.lower(), name.lower()))]


def mains_closed(state: str) -> bool | None:
    """`closed`; off the grid also `open synchronizing` and `open synchronized` (public clients)."""
    return True if state.lower() == "closed" else False if state.lower().startswith("open") else None


def on_grid(state: str) -> bool | None:
    """A collar's `ENCMN_MDE_ON_GRID` or `…_OFF_GRID`; its `grid_state` was seen not to follow (public clients)."""
    return next((value for end, value in (("ON_GRID", True), ("OFF_GRID", False)) if state.endswith(end)), None)


MainsClosed = Annotated[bool | Absent | None, CONNECTIVITY, worded(mains_closed)]
OnGrid = Annotated[bool | Absent | None, CONNECTIVITY, worded(on_grid)]


class Unit(Record):
    """What every unit tells, also one of a type that nobody knows yet."""

    serial: Annotated[Identity, Field(validation_alias="serial_num")]
    status: Texts = wire("device_status", diagnostic=True, fallback=True)
    communicating: Connected = wire("communicating", diagnostic=True)
    operating: Flag = wire("operating", diagnostic=True)
    last_report: Epoch = wire("last_rpt_date", diagnostic=True)
    admin_state: Text = wire("admin_state_str", diagnostic=True)
    admin_state_code: Number = wire("admin_state", "Device State", diagnostic=True)
    firmware: Text = wire("img_pnum_running", "fw_version", "FW Version", diagnostic=True)
    firmware_loaded: Epoch = wire("img_load_date", diagnostic=True)
    part_number: Text = wire("part_num", diagnostic=True)
    installed: Epoch = wire("installed", diagnostic=True)
    created: Epoch = wire("created_date", diagnostic=True)


class Radio(Unit):
    """Units with a radio. Levels are 0 to 5."""

    firmware_zigbee: Text = wire("zigbee_dongle_fw_version", label="ZigBee firmware", diagnostic=True)
    link_sub_ghz: Count = wire("comm_level_sub_ghz", label="Link quality below 1 GHz", diagnostic=True)
    link_2_4_ghz: Count = wire("comm_level_2_4_ghz", label="Link quality at 2.4 GHz", diagnostic=True)


class Battery(Radio):
    """An IQ Battery (Encharge). Home Assistant shows its charge unasked, and its status."""

    status: Texts = wire("device_status", fallback=True, enabled=True)
    soc: Percent = wire("percentFull", label="Charge", enabled=True, fallback=True)
    power: Watts = wire("real_power_w", fallback=True)
    temperature: Celsius = wire("temperature")
    cell_temperature: Celsius = wire("maxCellTemp", label="Highest cell temperature", diagnostic=True)
    capacity: StoredWattHours = wire("encharge_capacity", diagnostic=True)
    phase: Line = wire("phase", diagnostic=True)
    der_index: Number = wire("der_index", label="DER index", diagnostic=True)
    dc_switch: NotFlag = wire("dc_switch_off", label="DC switch", diagnostic=True)
    sleep_enabled: Flag = wire("sleep_enabled", diagnostic=True)
    grid_state: Text = wire("reported_enc_grid_state", diagnostic=True)
    led_status: Number = wire("led_status", label="LED status", diagnostic=True)
    revision: Number = wire("encharge_rev", diagnostic=True)
    firmware_bmu: Text = wire("bmu_fw_version", label="BMU firmware", diagnostic=True)
    bootloader_bmu: Text = wire("bmu_ibl_fw_version", label="BMU boot loader", diagnostic=True)


class Controller(Radio):
    """An IQ System Controller (Enpower). Its temperature is in Fahrenheit: 72 where its batteries have 12."""

    communicating: Connected = wire("communicating", diagnostic=True, enabled=True)
    last_report: Epoch = wire("last_rpt_date", diagnostic=True, enabled=True)
    grid_connected: MainsClosed = wire("mains_oper_state", label="Grid status", enabled=True)
    temperature: Fahrenheit = wire("temperature", enabled=True)
    mains_state: LowerText = wire("mains_oper_state", diagnostic=True)
    mains_admin_state: LowerText = wire("mains_admin_state", diagnostic=True)
    grid_mode: Text = wire("Enpwr_grid_mode", diagnostic=True)
    battery_grid_mode: Text = wire("Enchg_grid_mode", diagnostic=True)
    relay_bits: Number = wire("Enpwr_relay_state_bm", diagnostic=True)
    state_code: Number = wire("Enpwr_curr_state_id", diagnostic=True)


class Collar(Unit):
    """An IQ Meter Collar."""

    communicating: Connected = wire("communicating", diagnostic=True, enabled=True)
    last_report: Epoch = wire("last_rpt_date", diagnostic=True, enabled=True)
    admin_state: Text = wire("admin_state_str", diagnostic=True, enabled=True)
    grid_connected: OnGrid = wire("admin_state_str", label="Grid connection", enabled=True)
    temperature: Celsius = wire("temperature", enabled=True)
    grid_state: LowerText = wire("grid_state", label="Grid status", enabled=True)
    mid_state: LowerText = wire("mid_state", label="MID state", enabled=True)
    control_error: Number = wire("control_error", diagnostic=True)
    collar_state: Text = wire("collar_state", diagnostic=True)


class Combiner(Unit):
    """The controller of an IQ Combiner 6C."""

    communicating: Connected = wire("communicating", diagnostic=True, enabled=True)
    last_report: Epoch = wire("last_rpt_date", diagnostic=True, enabled=True)
    firmware_dmir: Text = wire("dmir_version", label="DMIR firmware", diagnostic=True)


class Other(Unit):
    """A unit of a type that has no kind of its own here: the type is told as the gateway does."""

    type: LowerText = wire("type", diagnostic=True, fallback=True)


UNITS: dict[str, type[Unit]] = {
    "battery": Battery,
    "controller": Controller,
    "collar": Collar,
    "combiner": Combiner,
}
TYPES = {
    "ENCHARGE": "battery",
    "ENPOWER": "controller",
    "COLLAR": "collar",
    "C6 COMBINER CONTROLLER": "combiner",
}
SIGNS = {"encharge_capacity": "battery", "mains_oper_state": "controller", "mid_state": "collar"}
"""Fields by which a unit of a type that nobody knows shows what it is."""


class Group(Record):
    """The units of one type, or what stands beside them."""

    type: Any = None
    devices: Any = None
    grid_profile: Text = wire("grid_profile_name", diagnostic=True)
    grid_profile_version: Text = wire("grid_profile_version", diagnostic=True)


class Power(Record):
    """What one battery gives (+) or takes now."""

    serial: Annotated[Identity, Field(validation_alias="serial_num")]
    power: Milliwatts = wire("real_power_mw")
    apparent_power: MillivoltAmperes = wire("apparent_power_mva")
    soc: Percent = wire("soc", label="Charge", enabled=True)


class Powers(Record):
    """The whole answer."""

    devices: Any = Field(default=None, validation_alias=AliasChoices("devices:", "devices"))


def split(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Readings of each unit, and what gear there is."""
    sheet, seen = Sheet(), set[str]()
    groups = each(Group, body, sheet.problems)
    for group in groups:
        sheet.add("gateway", group)
    for type_name, item in _items(groups):
        kind = _kind(type_name, item, facts)
        typed = {**item, "type": type_name} if isinstance(item, dict) else item
        unit = UNITS.get(kind, Other).read(typed, sheet.problems)
        if unit is not None:
            sheet.add(f"{kind}/{unit.serial}", unit)
            if kind in UNITS:
                seen.add(f"{kind}/{unit.serial}")
    return sheet.parsed(facts=facts.with_gear(seen))


def split_power(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Power and charge of each battery."""
    sheet = Sheet()
    answer = whole(Powers, body, sheet.problems)
    for item in answer.devices if isinstance(answer.devices, list) else ():
        if battery := Power.read(item, sheet.problems):
            sheet.add(f"battery/{battery.serial}", battery)
    return sheet.parsed()


def _items(groups: Sequence[Group]) -> Iterator[tuple[str, Any]]:
    for group in groups:
        for item in group.devices if isinstance(group.devices, list) else ():
            yield spelt(group.type) or "", item


def _kind(group: str, item: object, facts: Facts) -> str:
    """By the type's name, else by what others say of the serial number, else by what only one kind has."""
    if (known := TYPES.get(group.upper())) or not isinstance(item, dict):
        return known or "device"
    serial = spelt(item.get("serial_num")) or ""
    shown = (kind for sign, kind in SIGNS.items() if sign in item)
    return facts.kind_of(level(serial)) or next(shown, "device")
