"""`/ivp/ensemble/device_list` (brief, appendix B): provisioned devices; 404 where there is no storage gear."""

from typing import Annotated, Any

from pydantic import Field

from bridge.endpoints.body import PHASES, Identity, Parsed, Sheet, whole
from bridge.model import Facts
from bridge.records import (
    TEXT,
    Absent,
    Flag,
    LowerText,
    Number,
    Record,
    StoredWattHours,
    Text,
    wire,
    worded,
)

# Types 17 (System Controller), 22 (comms kit), 27 (collar) and 125 (the controller of a Combiner 6C) were seen on
# firmware 8; the brief names 0, 13 and 14.
TYPES = {
    "0": "unidentified",
    "13": "battery",
    "14": "microinverter",
    "17": "controller",
    "27": "collar",
    "125": "combiner",
}
KINDS = {"microinverter": "inverter", **{kind: kind for kind in ("battery", "controller", "collar", "combiner")}}
LINES = {str(place): phase.value for place, phase in enumerate(PHASES, 1)}

Type = Annotated[str | Absent | None, TEXT, worded(lambda number: TYPES.get(number, number))]
Line = Annotated[str | Absent | None, TEXT, worded(LINES.get)]


class Usb(Record):
    """The stick that talks to the storage gear. `auto_scan` is a boolean or a text."""

    comms_bridge: Text = wire("ck2_bridge", diagnostic=True)
    auto_scan: Flag = wire("auto_scan", diagnostic=True)


class Capacity(Record):
    """`dev_info`, absent on many devices. An inventory knows the phase better: index 2 was seen for `ph-a`."""

    capacity: StoredWattHours = wire("capacity", diagnostic=True)
    phase: Line = wire("DER_Index", diagnostic=True, fallback=True)


class Device(Record):
    """One provisioned device."""

    serial: Annotated[Identity, Field(validation_alias="serial_number")]
    details: Any = Field(default=None, validation_alias="dev_info")
    type: Type = wire("device_type", diagnostic=True)
    status: LowerText = wire("status")
    connection: Text = wire("com_interface_str", diagnostic=True)
    interface: Number = wire("com_interface", diagnostic=True)


class Battery(Device):
    """Home Assistant shows its status unasked: it is the one that an owner looks for."""

    status: LowerText = wire("status", enabled=True)


class DeviceList(Record):
    """The whole answer."""

    usb: Any = None
    devices: Any = None


def kind_of(kind: object, serial: str, facts: Facts) -> str:
    """The kind of device in the tree, by what is known of its type, or else of its serial number."""
    known = KINDS.get(kind) if isinstance(kind, str) else None
    return known or facts.kind_of(serial) or "device"


def _device(item: object, problems: list[str]) -> Device | None:
    device = Device.read(item, problems)
    return Battery.read(item, []) if device and device.type == "battery" else device


def split(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Readings of each device, and of the stick on `gateway`; what gear there is."""
    sheet, seen = Sheet(), set[str]()
    answer = whole(DeviceList, body, sheet.problems)
    if isinstance(answer.usb, dict) and (usb := Usb.read(answer.usb, sheet.problems)):
        sheet.add("gateway", usb)
    for item in answer.devices if isinstance(answer.devices, list) else ():
        device = _device(item, sheet.problems)
        if device is None:
            continue
        kind = kind_of(device.type, device.serial, facts)
        topic = f"{kind}/{device.serial}"
        if kind not in {"inverter", "device"}:
            seen.add(topic)
        sheet.add(topic, device)
        if isinstance(device.details, dict) and (details := Capacity.read(device.details, sheet.problems)):
            sheet.add(topic, details)
    return sheet.parsed(facts=facts.with_gear(seen))
