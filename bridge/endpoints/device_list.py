"""`/ivp/ensemble/device_list` (brief, appendix B): provisioned devices; 404 where there is no storage gear."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from bridge.endpoints.body import Parsed, Sheet, level, some, whole
from bridge.model import Facts
from bridge.records import (
    ABSENT,
    TEXT,
    Absent,
    Flag,
    LowerText,
    Number,
    Record,
    StoredWattHours,
    Text,
    wire,
)

# Types 17 (System Controller 3) and 22 (comms kit) were seen on firmware 8; the brief names 0, 13 and 14.
TYPES = {0: "unidentified", 13: "battery", 14: "microinverter", 17: "controller"}
KINDS = {13: "battery", 14: "inverter", 17: "controller"}


def _type(value: object) -> object:
    known = TYPES.get(value) if isinstance(value, int) else None
    return known or (str(value) if isinstance(value, int | str) else ABSENT)


def _line(value: object, _: ValidationInfo) -> object:
    return f"l{value}" if value in (1, 2, 3) else None


Type = Annotated[str | Absent | None, TEXT, BeforeValidator(_type)]
Line = Annotated[str | Absent | None, TEXT, BeforeValidator(_line)]


class Usb(Record):
    """The stick that talks to the storage gear. `auto_scan` is a boolean or a text."""

    comms_bridge: Text = wire("ck2_bridge", diagnostic=True)
    auto_scan: Flag = wire("auto_scan", diagnostic=True)


class Capacity(Record):
    """`dev_info`, absent on many devices."""

    capacity: StoredWattHours = wire("capacity", diagnostic=True)
    phase: Line = wire("DER_Index", diagnostic=True)


class Device(Record):
    """One provisioned device."""

    serial: Annotated[str, Field(validation_alias="serial_number"), BeforeValidator(str)]
    details: Any = Field(default=None, validation_alias="dev_info")
    type: Type = wire("device_type", diagnostic=True)
    status: LowerText = wire("status", enabled=True)
    connection: Text = wire("com_interface_str", diagnostic=True)
    interface: Number = wire("com_interface", diagnostic=True)


class DeviceList(Record):
    """The whole answer."""

    usb: Any = None
    devices: Any = None


def _topic(device: Device, kind: object) -> str:
    return f"{KINDS.get(kind, 'device') if isinstance(kind, int) else 'device'}/{level(device.serial)}"


def split(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Readings of each device, and of the stick on `gateway`."""
    sheet = Sheet()
    answer = whole(DeviceList, body, sheet.problems)
    if isinstance(answer.usb, dict) and (usb := Usb.read(answer.usb, sheet.problems)):
        sheet.add("gateway", usb)
    kinds = {name: kind for kind, name in TYPES.items()}
    for device in some(Device, answer.devices, sheet.problems):
        topic = _topic(device, kinds.get(device.type) if isinstance(device.type, str) else None)
        sheet.add(topic, device)
        if isinstance(device.details, dict) and (details := Capacity.read(device.details, sheet.problems)):
            sheet.add(topic, details)
    return sheet.parsed()
