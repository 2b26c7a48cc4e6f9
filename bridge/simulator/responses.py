"""The answers about the gateway and its inverters.

`/info`, the device list, production, energy, the inverters, and `/ivp/pdm/device_data`: the meters and the last
reports of a limited number of inverters.
"""

from bridge.model import Phase
from bridge.simulator.house import REPORT_PERIOD_S
from bridge.simulator.http import JsonValue, compact_json, indented_json, xml_element
from bridge.simulator.presets import NET_CONSUMPTION, PRODUCTION, BatterySpec, GearSpec, Home, InverterSpec
from bridge.simulator.truth import FIRMWARE_8_3, BatteryTruth, Flow, InverterTruth, Truth, frequency_at, voltage_at

XML_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
PACKAGES = (
    ("rootfs", "500-00001-r01", "02.00.00", "1210"),
    ("kernel", "500-00011-r02", "04.04.225", "3ab4d7"),
    ("boot", "590-00019-r01", "02.00.01", "1f4a1c"),
    ("app", "500-00002-r01", "{version}", "d15fa8"),
    ("devimg", "500-00005-r01", "01.02.398", "0bb5d1"),
    ("geo", "500-00008-r01", "02.01.24", "a74e96"),
    ("backbone", "500-00010-r01", "07.00.20", "1a6d57"),
    ("meter", "500-00013-r01", "03.02.08", "1dd76a"),
    ("agf", "500-00012-r01", "02.02.00", "67d2d2"),
    ("security", "500-00016-r01", "02.00.00", "54a7dc"),
    ("essimg", "500-00020-r01", "22.04.52", "996df8"),
    ("full", "500-00001-r01", "02.00.00", "1210"),
)
"""Name, part number, version and build of the software packages."""
LEGACY_PACKAGES = ("rootfs", "kernel", "boot", "app", "devimg", "geo", "backbone", "security")
FRESH_REPORT_S = 900
"""For this long an inverter's report counts as its present power."""
PCU_FACTOR = 1.0093
"""Inverters count a little more energy than the production meter."""
STALLED_PRODUCTION = {"wattHoursToday": 0, "wattHoursSevenDays": 1583, "wattHoursLifetime": 1583, "wattsNow": 4}
"""From 8.2.4264 on, a metered gateway without CTs always reports this production."""
AC_BATTERY_TYPE = 11


def info(home: Home, truth: Truth) -> bytes:
    """Return `/info`: the only answer that needs no token, and the only one in XML."""
    root = xml_element("envoy_info", xml_element("time", str(int(truth.at))), _device(home), *_software(home))
    return (XML_DECLARATION + root).encode()


def device_list(home: Home) -> bytes:
    """Return `/ivp/ensemble/device_list`: batteries and other storage equipment."""
    devices = [*map(_battery, home.batteries), *map(_gear, home.gear)]
    return compact_json({"usb": {"ck2_bridge": "connected", "auto_scan": False}, "devices": devices})


def production(home: Home, truth: Truth) -> bytes:
    """Return `/api/v1/production`."""
    return indented_json(_production(home, truth), "  ")


def energy(home: Home, truth: Truth) -> bytes:
    """Return `/ivp/pdm/energy`: production by inverters (pcu) and meter (eim), and consumption."""
    nothing = dict.fromkeys(STALLED_PRODUCTION, 0)
    return indented_json(
        {
            "production": {
                "pcu": _pcu(home, truth),
                "rgm": nothing,
                "eim": _production(home, truth) if home.meters else nothing,
            },
            "consumption": {"eim": _consumption(home, truth) if home.measures(PRODUCTION) else nothing},
        }
    )


def inverters(home: Home, truth: Truth) -> bytes:
    """Return the inverters and AC Batteries. Old firmware does not report their type."""
    kind = {"devType": 1} if home.secure else {}
    units: list[JsonValue] = [
        {
            "serialNumber": inverter.serial,
            "lastReportDate": inverter.reported_at,
            **kind,
            "lastReportWatts": inverter.reported,
            "maxReportWatts": inverter.peak,
        }
        for inverter in truth.inverters
    ]
    units += [_ac_battery(battery, place, home, truth) for place, battery in enumerate(truth.ac_batteries)]
    return indented_json(units, "  ")


def _ac_battery(battery: BatteryTruth, place: int, home: Home, truth: Truth) -> JsonValue:
    """Return the entry of an AC Battery, whose power has no sign."""
    return {
        "serialNumber": battery.serial,
        "lastReportDate": int(truth.at) - 30 - 17 * place,
        "devType": AC_BATTERY_TYPE,
        "lastReportWatts": abs(round(battery.power)),
        "maxReportWatts": home.ac_batteries[place].power,
    }


def _device(home: Home) -> str:
    imeter = () if home.imeter is None else (xml_element("imeter", str(home.imeter).lower()),)
    return xml_element(
        "device",
        xml_element("sn", home.serial),
        xml_element("pn", home.part_number),
        xml_element("software", home.firmware),
        xml_element("euaid", "4c8675"),
        xml_element("seqnum", "0"),
        xml_element("apiver", "1"),
        *imeter,
    )


def _software(home: Home) -> list[str]:
    if not home.secure:
        return [_package(home, *row) for row in PACKAGES if row[0] in LEGACY_PACKAGES]
    build = xml_element(
        "build_info",
        xml_element("build_id", "ec2-user-envoy_uber-pkg_master:pkg-Jul-18-22-08:54:12"),
        xml_element("build_time_gmt", "1658134579"),
        xml_element("release_ver", "02.00.2923"),
        xml_element("release_stage", "700-GA"),
    )
    return [xml_element("web-tokens", "true"), *(_package(home, *row) for row in PACKAGES), build]


def _package(home: Home, name: str, part: str, version: str, build: str) -> str:
    """Return a package. The version of `app` is the firmware's, each part with at least two digits."""
    parts = ".".join(number.zfill(2) for number in home.firmware[1:].split("."))
    version = version.format(version=parts)
    return xml_element(
        "package", xml_element("pn", part), xml_element("version", version), xml_element("build", build), name=name
    )


def _battery(battery: BatterySpec) -> JsonValue:
    return {
        "serial_number": battery.serial,
        "device_type": 13,
        "com_interface": 2,
        "com_interface_str": "CAN",
        "dev_info": {"capacity": battery.capacity, "DER_Index": battery.leg + 1},
        "status": "connected",
    }


def _gear(gear: GearSpec) -> JsonValue:
    if not gear.kind:
        return {"serial_number": gear.serial, "device_type": 0, "com_interface": 2, "status": "Unknown"}
    return {
        "serial_number": gear.serial,
        "device_type": gear.kind,
        "com_interface": 1,
        "com_interface_str": "USB",
        "status": "connected",
    }


def _pcu(home: Home, truth: Truth) -> dict[str, int]:
    """Return the sums over the inverters. Without a meter they are the only values and equal the true ones."""
    factor = PCU_FACTOR if home.measures(PRODUCTION) else 1.0
    return {
        "wattHoursToday": int(truth.today * factor),
        "wattHoursSevenDays": int(truth.week * factor),
        "wattHoursLifetime": int(truth.site.solar.delivered * factor),
        "wattsNow": sum(i.reported for i in truth.inverters if truth.at - i.reported_at < FRESH_REPORT_S),
    }


def _production(home: Home, truth: Truth) -> dict[str, int]:
    if not home.measures(PRODUCTION):
        return STALLED_PRODUCTION if home.meters else _pcu(home, truth)
    meter = truth.meters[PRODUCTION].total
    return {
        "wattHoursToday": int(truth.today),
        "wattHoursSevenDays": int(truth.week),
        "wattHoursLifetime": int(meter.delivered),
        "wattsNow": int(meter.power),
    }


def _consumption(home: Home, truth: Truth) -> dict[str, int]:
    """Return the consumption. Firmware 8.3 reports about half as much again as the home has used."""
    factor = 1.56 if home.version >= FIRMWARE_8_3 else 1.0
    used = 5_103_221.0 + truth.site.home.delivered
    return {
        "wattHoursToday": int(truth.site.home.delivered * factor),
        "wattHoursSevenDays": 0 if home.version >= FIRMWARE_8_3 else int(truth.site.home.delivered),
        "wattHoursLifetime": int(used * factor),
        "wattsNow": int(truth.site.home.power),
    }


DEVICE_LIMIT = 50
MAX_UNITS = DEVICE_LIMIT - 1
"""Real gateways show at most this many inverters."""
FIRST_UNIT_EID, FIRST_CHANNEL_EID, EID_STEP = 553648384, 1627390225, 256
FIRST_METER_CHANNEL_EID = 1778385169
UINT32_RANGE = 2**32
JOULES_PER_WH = 3600
INPUT_SHARES = {1: (1.0,), 2: (0.53, 0.47)}
"""The shares of the inputs in an inverter's power, by the number of inputs."""
NO_ENERGY = {"today": 0, "yesterday": 0, "week": 0}


def device_data(home: Home, truth: Truth) -> bytes:
    """Return `/ivp/pdm/device_data`."""
    units = [*enumerate(zip(home.inverters, truth.inverters, strict=True))][:MAX_UNITS]
    meters = [meter for meter in home.meters if meter.enabled and meter.role in (PRODUCTION, NET_CONSUMPTION)]
    return indented_json(
        {
            **{str(FIRST_UNIT_EID + EID_STEP * place): _unit(home, truth, place, *unit) for place, unit in units},
            **{str(meter.eid): _meter(home, truth, place, meter.role) for place, meter in enumerate(meters)},
            "deviceCount": min(DEVICE_LIMIT, len(units) + len(meters)),
            "deviceDataLimit": DEVICE_LIMIT,
        }
    )


def _unit(home: Home, truth: Truth, place: int, unit: InverterSpec, told: InverterTruth) -> JsonValue:
    shares = INPUT_SHARES[unit.inputs]
    return {
        "devName": "pcu",
        "sn": unit.serial,
        "active": not unit.removed,
        "modGone": truth.at - told.reported_at >= FRESH_REPORT_S,
        "channels": [_channel(home, place, unit, told, number) for number in range(len(shares))],
    }


def _channel(home: Home, place: int, unit: InverterSpec, told: InverterTruth, number: int) -> JsonValue:
    eid, share = FIRST_CHANNEL_EID + EID_STEP * place + number, INPUT_SHARES[unit.inputs][number]
    energies = {"today": told.today, "yesterday": told.yesterday, "week": told.week}
    return {
        "chanEid": eid,
        "created": told.reported_at,
        "wattHours": {name: round(energy * share) for name, energy in energies.items()},
        "watts": {"now": round(told.reported * share), "nowUsed": 0, "max": round(told.peak * share)},
        "lastReading": {} if unit.removed else _reading(home, place, unit, told, number),
        "lifetime": {}
        if unit.removed
        else {
            "createdTime": 1_600_000_000 + place,
            "duration": 30_000_000 + 977 * place,
            "joulesProduced": int(told.lifetime * share * JOULES_PER_WH) % UINT32_RANGE,
        },
    }


def _reading(home: Home, place: int, unit: InverterSpec, told: InverterTruth, number: int) -> dict[str, JsonValue]:
    """Return the last reading of an input. On split phase an inverter is connected to both phases."""
    at, share = told.reported_at, INPUT_SHARES[unit.inputs][number]
    legs = range(home.legs) if home.phase_mode == "split" else (unit.leg,)
    watts, volts = told.reported * share, sum(voltage_at(home, at, leg) for leg in legs) + 0.013 * place
    panel = 30.6 + 0.17 * (place % 23) + 1.9 * number
    return {
        "eid": FIRST_CHANNEL_EID + EID_STEP * place + number,
        "interval_type": 0,
        "endDate": at,
        "duration": REPORT_PERIOD_S,
        "flags": 0,
        "flags_hex": "0x0000000000000000",
        "joulesProduced": round(watts * REPORT_PERIOD_S),
        "acVoltageINmV": round(1000 * volts),
        "acFrequencyINmHz": round(1000 * frequency_at(home, at)),
        "dcVoltageINmV": round(1000 * panel),
        "dcCurrentINmA": round(1030 * watts / panel),
        "channelTemp": round(16 + watts / 14 + place % 5 + 2 * number),
        "pwrConvErrSecs": 0,
        "pwrConvMaxErrCycles": 0,
        "joulesUsed": 0,
        "leadingVArs": 0,
        "laggingVArs": 38,
        "acCurrentInmA": round(1000 * watts / volts) + 7,
        **{f"{phase.value}NAcVoltageInmV": 0 for phase in Phase},
        "rssi": 90 + place % 31,
        "issi": 60 + place % 17,
    }


def _meter(home: Home, truth: Truth, place: int, role: str) -> JsonValue:
    """Return a meter. Negative watts appear as unsigned 32-bit numbers, as on a real gateway."""
    flows = truth.meters[role].phases.values()
    return {
        "devName": "eim",
        "sn": f"{home.serial}EIM{place + 1}",
        "active": True,
        "modGone": True,
        "channels": [
            _flow(truth, FIRST_METER_CHANNEL_EID + EID_STEP * place + leg, flow) for leg, flow in enumerate(flows)
        ],
    }


def _flow(truth: Truth, eid: int, flow: Flow) -> JsonValue:
    end = int(truth.at // FRESH_REPORT_S * FRESH_REPORT_S)
    return {
        "chanEid": eid,
        "created": end,
        "wattHours": NO_ENERGY,
        "watts": {"now": int(flow.power) % UINT32_RANGE, "nowUsed": 0, "max": int(abs(flow.power)) + 1},
        "lastReading": {
            "eid": eid,
            "interval_type": 0,
            "endDate": end,
            "duration": FRESH_REPORT_S,
            "curr_w": int(flow.power),
        },
        "lifetime": {"createdTime": 1_600_000_000, "duration": 30_000_600, "wh_dlvd_cum": int(flow.delivered)},
    }
