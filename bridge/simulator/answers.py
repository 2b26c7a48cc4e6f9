"""What a gateway says of itself and of its inverters: `/info`, the device list, production and energy."""

from bridge.simulator.homes import PRODUCTION, Battery, Gear, Home
from bridge.simulator.rendering import Json, compact, element, pretty
from bridge.simulator.truth import BatteryTruth, Truth

DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
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
"""Name, part number, version and build of what a gateway runs."""
LEGACY_PACKAGES = ("rootfs", "kernel", "boot", "app", "devimg", "geo", "backbone", "security")
FRESH = 900
"""Seconds for which an inverter's report counts as what it makes now."""
PCU = 1.0093
"""Inverters count a little more than the meter behind them."""
STALLED = {"wattHoursToday": 0, "wattHoursSevenDays": 1583, "wattHoursLifetime": 1583, "wattsNow": 4}
"""What a metered gateway without CTs says of its production for ever, from 8.2.4264."""
NEW = (8, 3)
AC_BATTERY = 11


def info(home: Home, truth: Truth) -> bytes:
    """The only answer that needs no token, and the only one in XML."""
    root = element("envoy_info", element("time", str(int(truth.at))), _device(home), *_software(home))
    return (DECLARATION + root).encode()


def device_list(home: Home) -> bytes:
    devices = [*map(_battery, home.batteries), *map(_gear, home.gear)]
    return compact({"usb": {"ck2_bridge": "connected", "auto_scan": False}, "devices": devices})


def production(home: Home, truth: Truth) -> bytes:
    return pretty(_production(home, truth), "  ")


def energy(home: Home, truth: Truth) -> bytes:
    nothing = dict.fromkeys(STALLED, 0)
    return pretty(
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
    """Old firmware does not name the type."""
    kind = {"devType": 1} if home.secure else {}
    units: list[Json] = [
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
    return pretty(units, "  ")


def _ac_battery(battery: BatteryTruth, place: int, home: Home, truth: Truth) -> Json:
    """It tells what it gives or takes without a sign."""
    return {
        "serialNumber": battery.serial,
        "lastReportDate": int(truth.at) - 30 - 17 * place,
        "devType": AC_BATTERY,
        "lastReportWatts": abs(round(battery.power)),
        "maxReportWatts": home.ac_batteries[place].power,
    }


def _device(home: Home) -> str:
    imeter = () if home.imeter is None else (element("imeter", str(home.imeter).lower()),)
    return element(
        "device",
        element("sn", home.serial),
        element("pn", home.part_number),
        element("software", home.firmware),
        element("euaid", "4c8675"),
        element("seqnum", "0"),
        element("apiver", "1"),
        *imeter,
    )


def _software(home: Home) -> list[str]:
    if not home.secure:
        return [_package(home, *row) for row in PACKAGES if row[0] in LEGACY_PACKAGES]
    build = element(
        "build_info",
        element("build_id", "ec2-user-envoy_uber-pkg_master:pkg-Jul-18-22-08:54:12"),
        element("build_time_gmt", "1658134579"),
        element("release_ver", "02.00.2923"),
        element("release_stage", "700-GA"),
    )
    return [element("web-tokens", "true"), *(_package(home, *row) for row in PACKAGES), build]


def _package(home: Home, name: str, part: str, version: str, build: str) -> str:
    """The version of `app` is the firmware's, each part of it with two digits at least."""
    parts = ".".join(number.zfill(2) for number in home.firmware[1:].split("."))
    version = version.format(version=parts)
    return element("package", element("pn", part), element("version", version), element("build", build), name=name)


def _battery(battery: Battery) -> Json:
    return {
        "serial_number": battery.serial,
        "device_type": 13,
        "com_interface": 2,
        "com_interface_str": "CAN",
        "dev_info": {"capacity": battery.capacity, "DER_Index": battery.leg + 1},
        "status": "connected",
    }


def _gear(gear: Gear) -> Json:
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
    """The sum of the inverters: in a home without a meter it is all that is known, and so it is the truth."""
    factor = PCU if home.measures(PRODUCTION) else 1.0
    return {
        "wattHoursToday": int(truth.today * factor),
        "wattHoursSevenDays": int(truth.week * factor),
        "wattHoursLifetime": int(truth.site.solar.delivered * factor),
        "wattsNow": sum(i.reported for i in truth.inverters if truth.at - i.reported_at < FRESH),
    }


def _production(home: Home, truth: Truth) -> dict[str, int]:
    if not home.measures(PRODUCTION):
        return STALLED if home.meters else _pcu(home, truth)
    meter = truth.meters[PRODUCTION].total
    return {
        "wattHoursToday": int(truth.today),
        "wattHoursSevenDays": int(truth.week),
        "wattHoursLifetime": int(meter.delivered),
        "wattsNow": int(meter.power),
    }


def _consumption(home: Home, truth: Truth) -> dict[str, int]:
    """Not to be trusted on 8.3: half as much again as the home really used."""
    factor = 1.56 if home.version >= NEW else 1.0
    used = 5_103_221.0 + truth.site.home.delivered
    return {
        "wattHoursToday": int(truth.site.home.delivered * factor),
        "wattHoursSevenDays": 0 if home.version >= NEW else int(truth.site.home.delivered),
        "wattHoursLifetime": int(used * factor),
        "wattsNow": int(truth.site.home.power),
    }
