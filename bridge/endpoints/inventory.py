"""Storage gear, unit by unit: `/ivp/ensemble/inventory`, `/ivp/ensemble/power` and `/ivp/ensemble/device_list`
(brief, appendix B); `[]` or 404 where there is none.

Firmware 5 on. Not in the brief: fields as seen on firmware 7.3 to 8.3. The key of the powers has a colon in it.
The firmware of 2021 tells a battery's power here, and the grid profile in an item of its own (public clients).
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from bridge.endpoints.parsing import PHASES, DeviceId, Parsed, ParseResult, parse_list, parse_object, topic_level
from bridge.model import Facts, UnitFacts
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
    Percent,
    PlainNumber,
    Record,
    StoredWattHours,
    Text,
    Texts,
    Watts,
    known_text,
    mapped,
    to_text,
    wire,
)

PHASE_OF_LINE = {"ph-a": "l1", "ph-b": "l2", "ph-c": "l3", "ph-all": "all", "1": "l1", "2": "l2", "3": "l3"}

PhaseName = Annotated[str | Absent | None, TEXT, mapped(lambda name: PHASE_OF_LINE.get(name.lower(), name.lower()))]


def mains_closed(state: str) -> bool | None:
    """`closed`; off the grid also `open synchronizing` and `open synchronized` (public clients)."""
    return True if state.lower() == "closed" else False if state.lower().startswith("open") else None


def on_grid(state: str) -> bool | None:
    """A collar's `ENCMN_MDE_ON_GRID` or `…_OFF_GRID`; its `grid_state` was seen not to follow (public clients)."""
    return next((value for end, value in (("ON_GRID", True), ("OFF_GRID", False)) if state.endswith(end)), None)


MainsClosed = Annotated[bool | Absent | None, CONNECTIVITY, mapped(mains_closed)]
OnGrid = Annotated[bool | Absent | None, CONNECTIVITY, mapped(on_grid)]


class StorageUnit(Record):
    """What units of all types report, also of unknown types."""

    serial: Annotated[DeviceId, Field(validation_alias="serial_num")]
    status: Texts = wire("device_status", diagnostic=True, fallback=True)
    communicating: Connected = wire("communicating", diagnostic=True)
    operating: Flag = wire("operating", diagnostic=True)
    last_report: Epoch = wire("last_rpt_date", diagnostic=True)
    admin_state: Text = wire("admin_state_str", diagnostic=True)
    admin_state_code: PlainNumber = wire("admin_state", "Device State", diagnostic=True)
    firmware: Text = wire("img_pnum_running", "fw_version", "FW Version", diagnostic=True)
    firmware_loaded: Epoch = wire("img_load_date", diagnostic=True)
    part_number: Text = wire("part_num", diagnostic=True)
    installed: Epoch = wire("installed", diagnostic=True)
    created: Epoch = wire("created_date", diagnostic=True)

    @property
    def unit(self) -> UnitFacts:
        return UnitFacts(part_number=known_text(self.part_number), firmware=known_text(self.firmware))


class RadioUnit(StorageUnit):
    """A unit with a radio. Link qualities are 0 to 5."""

    firmware_zigbee: Text = wire("zigbee_dongle_fw_version", label="ZigBee firmware", diagnostic=True)
    link_sub_ghz: Count = wire("comm_level_sub_ghz", label="Link quality below 1 GHz", diagnostic=True)
    link_2_4_ghz: Count = wire("comm_level_2_4_ghz", label="Link quality at 2.4 GHz", diagnostic=True)


class IqBattery(RadioUnit):
    """An IQ Battery (Encharge). Home Assistant enables its charge and its status."""

    status: Texts = wire("device_status", fallback=True, enabled=True)
    soc: Percent = wire("percentFull", label="Charge", enabled=True, fallback=True)
    power: Watts = wire("real_power_w", fallback=True, enabled=True)
    temperature: Celsius = wire("temperature", enabled=True)
    cell_temperature: Celsius = wire("maxCellTemp", label="Highest cell temperature", diagnostic=True)
    capacity: StoredWattHours = wire("encharge_capacity", diagnostic=True)
    phase: PhaseName = wire("phase", diagnostic=True)
    der_index: PlainNumber = wire("der_index", label="DER index", diagnostic=True)
    dc_switch: NotFlag = wire("dc_switch_off", label="DC switch", diagnostic=True)
    sleep_enabled: Flag = wire("sleep_enabled", diagnostic=True)
    grid_state: Text = wire("reported_enc_grid_state", diagnostic=True)
    led_status: PlainNumber = wire("led_status", label="LED status", diagnostic=True)
    revision: PlainNumber = wire("encharge_rev", diagnostic=True)
    firmware_bmu: Text = wire("bmu_fw_version", label="BMU firmware", diagnostic=True)
    bootloader_bmu: Text = wire("bmu_ibl_fw_version", label="BMU boot loader", diagnostic=True)


class SystemController(RadioUnit):
    """An IQ System Controller (Enpower). Its temperature is in Fahrenheit: 72 where its batteries have 12."""

    communicating: Connected = wire("communicating", diagnostic=True, enabled=True)
    last_report: Epoch = wire("last_rpt_date", diagnostic=True, enabled=True)
    grid_connected: MainsClosed = wire("mains_oper_state", label="Grid status", enabled=True)
    temperature: Fahrenheit = wire("temperature", enabled=True)
    mains_state: LowerText = wire("mains_oper_state", diagnostic=True)
    mains_admin_state: LowerText = wire("mains_admin_state", diagnostic=True)
    grid_mode: Text = wire("Enpwr_grid_mode", diagnostic=True)
    battery_grid_mode: Text = wire("Enchg_grid_mode", diagnostic=True)
    relay_bits: PlainNumber = wire("Enpwr_relay_state_bm", diagnostic=True)
    state_code: PlainNumber = wire("Enpwr_curr_state_id", diagnostic=True)


class MeterCollar(StorageUnit):
    """An IQ Meter Collar."""

    communicating: Connected = wire("communicating", diagnostic=True, enabled=True)
    last_report: Epoch = wire("last_rpt_date", diagnostic=True, enabled=True)
    admin_state: Text = wire("admin_state_str", diagnostic=True)
    grid_connected: OnGrid = wire("admin_state_str", label="Grid connection", enabled=True)
    temperature: Celsius = wire("temperature", enabled=True)
    grid_state: LowerText = wire("grid_state", label="Grid status")
    mid_state: LowerText = wire("mid_state", label="MID state")
    control_error: PlainNumber = wire("control_error", diagnostic=True)
    collar_state: Text = wire("collar_state", diagnostic=True)


class CombinerController(StorageUnit):
    """The controller of an IQ Combiner 6C."""

    communicating: Connected = wire("communicating", diagnostic=True, enabled=True)
    last_report: Epoch = wire("last_rpt_date", diagnostic=True, enabled=True)
    firmware_dmir: Text = wire("dmir_version", label="DMIR firmware", diagnostic=True)


class UnknownUnit(StorageUnit):
    """A unit of a type that has no kind here. Its type is published as the gateway spells it."""

    type: LowerText = wire("type", diagnostic=True, fallback=True)


RECORD_OF_KIND: dict[str, type[StorageUnit]] = {
    "battery": IqBattery,
    "controller": SystemController,
    "collar": MeterCollar,
    "combiner": CombinerController,
}
KIND_OF_TYPE = {
    "ENCHARGE": "battery",
    "ENPOWER": "controller",
    "COLLAR": "collar",
    "C6 COMBINER CONTROLLER": "combiner",
}
KIND_OF_FIELD = {"encharge_capacity": "battery", "mains_oper_state": "controller", "mid_state": "collar"}
"""Fields that tell the kind of a unit of an unknown type."""


class UnitGroup(Record):
    """The units of one type, or an item beside them."""

    type: Any = None
    devices: Any = None
    grid_profile: Text = wire("grid_profile_name", diagnostic=True)
    grid_profile_version: Text = wire("grid_profile_version", diagnostic=True)


class BatteryPower(Record):
    """The power of one battery; + is discharging."""

    serial: Annotated[DeviceId, Field(validation_alias="serial_num")]
    power: Milliwatts = wire("real_power_mw", enabled=True)
    apparent_power: MillivoltAmperes = wire("apparent_power_mva")
    soc: Percent = wire("soc", label="Charge", enabled=True)


class BatteryPowers(Record):
    """The answer."""

    devices: Any = Field(default=None, validation_alias=AliasChoices("devices:", "devices"))


def split_inventory(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read each unit, and learn what gear there is, of which part number and firmware."""
    result, seen, units = ParseResult(), set[str](), dict[str, UnitFacts]()
    groups = parse_list(UnitGroup, body, result.problems)
    for group in groups:
        result.add("gateway", group)
        if group.model_fields_set == {"type"}:
            result.problems.append("UnitGroup: it has only a type")
    for type_name, item in _items(groups):
        kind = _kind(type_name, item, facts)
        typed = {**item, "type": type_name} if isinstance(item, dict) else item
        unit = RECORD_OF_KIND.get(kind, UnknownUnit).read(typed, result.problems)
        if unit is not None:
            result.add(f"{kind}/{unit.serial}", unit)
            units[f"{kind}/{unit.serial}"] = unit.unit
            if kind in RECORD_OF_KIND:
                seen.add(f"{kind}/{unit.serial}")
    return result.parsed(facts=facts.with_gear(seen, units))


def split_power(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read the power and charge of each battery."""
    result = ParseResult()
    answer = parse_object(BatteryPowers, body, result.problems)
    for item in answer.devices if isinstance(answer.devices, list) else ():
        if battery := BatteryPower.read(item, result.problems):
            result.add(f"battery/{battery.serial}", battery)
    return result.parsed()


def _items(groups: Sequence[UnitGroup]) -> Iterator[tuple[str, Any]]:
    for group in groups:
        for item in group.devices if isinstance(group.devices, list) else ():
            yield to_text(group.type) or "", item


def _kind(group: str, item: object, facts: Facts) -> str:
    """The kind of a unit: by its type, else by its serial number, else by a field that only one kind has."""
    if (known := KIND_OF_TYPE.get(group.upper())) or not isinstance(item, dict):
        return known or "device"
    serial = to_text(item.get("serial_num")) or ""
    shown = (kind for sign, kind in KIND_OF_FIELD.items() if sign in item)
    return facts.kind_of(topic_level(serial)) or next(shown, "device")


# Types 17 (System Controller), 22 (comms kit), 27 (collar) and 125 (the controller of a Combiner 6C) were seen on
# firmware 8; the brief names 0, 13 and 14.
TYPE_NUMBERS = {
    "0": "unidentified",
    "13": "battery",
    "14": "microinverter",
    "17": "controller",
    "27": "collar",
    "125": "combiner",
}
KIND_OF_PROVISIONED = {
    "microinverter": "inverter",
    **{kind: kind for kind in ("battery", "controller", "collar", "combiner")},
}
DER_INDEXES = {str(place): phase.value for place, phase in enumerate(PHASES, 1)}

TypeNumber = Annotated[str | Absent | None, TEXT, mapped(lambda number: TYPE_NUMBERS.get(number, number))]
DerIndex = Annotated[str | Absent | None, TEXT, mapped(DER_INDEXES.get)]


class UsbStick(Record):
    """The USB stick that talks to the storage gear. `auto_scan` is a boolean or a text."""

    comms_bridge: Text = wire("ck2_bridge", diagnostic=True)
    auto_scan: Flag = wire("auto_scan", diagnostic=True)


class DeviceDetails(Record):
    """`dev_info`, absent on many devices. An inventory knows the phase better: index 2 was seen for `ph-a`."""

    capacity: StoredWattHours = wire("capacity", diagnostic=True)
    phase: DerIndex = wire("DER_Index", diagnostic=True, fallback=True)


class ListedDevice(Record):
    """One provisioned device."""

    serial: Annotated[DeviceId, Field(validation_alias="serial_number")]
    details: Any = Field(default=None, validation_alias="dev_info")
    type: TypeNumber = wire("device_type", diagnostic=True)
    status: LowerText = wire("status")
    connection: Text = wire("com_interface_str", diagnostic=True)
    interface: PlainNumber = wire("com_interface", diagnostic=True)


class ListedBattery(ListedDevice):
    """A battery. Home Assistant enables its status, which owners look for."""

    status: LowerText = wire("status", enabled=True)


class DeviceList(Record):
    """The answer."""

    usb: Any = None
    devices: Any = None


def kind_of(kind: object, serial: str, facts: Facts) -> str:
    """The kind of a device in the tree, by its type, else by its serial number."""
    known = KIND_OF_PROVISIONED.get(kind) if isinstance(kind, str) else None
    return known or facts.kind_of(serial) or "device"


def _device(item: object, problems: list[str]) -> ListedDevice | None:
    device = ListedDevice.read(item, problems)
    return ListedBattery.read(item, []) if device and device.type == "battery" else device


def split_device_list(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read each device, and the USB stick for `gateway`; learn what gear there is."""
    result, seen = ParseResult(), set[str]()
    answer = parse_object(DeviceList, body, result.problems)
    if isinstance(answer.usb, dict) and (usb := UsbStick.read(answer.usb, result.problems)):
        result.add("gateway", usb)
    for item in answer.devices if isinstance(answer.devices, list) else ():
        device = _device(item, result.problems)
        if device is None:
            continue
        kind = kind_of(device.type, device.serial, facts)
        topic = f"{kind}/{device.serial}"
        if kind not in {"inverter", "device"}:
            seen.add(topic)
        result.add(topic, device)
        if isinstance(device.details, dict) and (details := DeviceDetails.read(device.details, result.problems)):
            result.add(topic, details)
    return result.parsed(facts=facts.with_gear(seen))
