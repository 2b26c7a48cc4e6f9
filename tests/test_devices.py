"""Production sums, inverters and provisioned devices."""

from typing import Any

import pytest
from samples import NOW, THREE, changed, known, parse, values, without

from bridge.model import BadAnswer

# /api/v1/production and /ivp/pdm/energy


def sums(step: int = 0) -> dict[str, int]:
    return {
        "wattHoursToday": 21_674 + step,
        "wattHoursSevenDays": 719_543 + step,
        "wattHoursLifetime": 1_608_587 + step,
        "wattsNow": 227 + step,
    }


def test_production() -> None:
    assert values("production", sums()) == {
        "energy/production/power": "227",
        "energy/production/energy_today": "21674",
        "energy/production/energy_7d": "719543",
        "energy/production/energy_lifetime": "1608587",
    }


def test_small_negatives_of_unsigned_fields() -> None:
    wrapped = {"wattsNow": 4294967292, "wattHoursToday": 4294967295, "wattHoursLifetime": 4294966296}
    assert values("production", wrapped | {"wattHoursSevenDays": -0.0}) == {
        "energy/production/power": "-4",
        "energy/production/energy_today": "-1",
        "energy/production/energy_7d": "0",
        "energy/production/energy_lifetime": "-1000",
    }


def test_a_bad_field_of_production_costs_only_itself() -> None:
    found = values("production", sums() | {"wattsNow": "lots", "wattHoursToday": None})
    assert "energy/production/power" not in found
    assert found["energy/production/energy_today"] == "None"
    assert found["energy/production/energy_lifetime"] == "1608587"


def test_energy_keeps_its_sources_apart() -> None:
    answer = {
        "production": {"pcu": sums(1), "rgm": sums(2), "eim": sums(3)},
        "consumption": {"eim": sums(4)},
        "storage": {"eim": sums(5)},
    }
    found = values("energy", answer)
    assert {topic: payload for topic, payload in found.items() if topic.endswith("power")} == {
        "energy/production-pcu/power": "228",
        "energy/production-rgm/power": "229",
        "energy/production-eim/power": "230",
        "energy/consumption-eim/power": "231",
    }
    assert len(found) == 16


@pytest.mark.parametrize("bad", [None, 5, [], "x", {}, {"error": 1}])
def test_a_bad_source_of_energy_costs_only_itself(bad: object) -> None:
    answer = {"production": {"pcu": bad, "eim": sums(3), "***": sums(9)}, "consumption": bad}
    assert {topic.split("/")[1] for topic in values("energy", answer)} == {"production-eim"}
    with pytest.raises(BadAnswer):
        parse("energy", {"production": {"pcu": bad}, "consumption": bad})


# /api/v1/production/inverters


def inverter(serial: object, age: int = 60, step: int = 0, **changes: object) -> dict[str, Any]:
    return {
        "serialNumber": serial,
        "lastReportDate": int(NOW) - age,
        "devType": 1,
        "lastReportWatts": 15 + step,
        "maxReportWatts": 338 + step,
        **changes,
    }


def test_inverters() -> None:
    answer = [inverter("121935144671"), inverter("121935144672", 7200, 1, devType=11)]
    assert values("inverters", answer) == {
        "inverter/121935144671/power": "15",
        "inverter/121935144671/max_power": "338",
        "inverter/121935144671/type": "1",
        "inverter/121935144671/last_report": "2025-11-22T08:25:40+00:00",
        "inverter/121935144671/reporting": "ON",
        "inverter/121935144672/power": "16",
        "inverter/121935144672/max_power": "339",
        "inverter/121935144672/type": "11",
        "inverter/121935144672/last_report": "2025-11-22T06:26:40+00:00",
        "inverter/121935144672/reporting": "OFF",
        "gateway/inverters_total": "2",
        "gateway/inverters_reporting": "1",
    }


@pytest.mark.parametrize(
    ("age", "offset", "reporting"),
    [
        (0, 0.0, "ON"),
        (1799, 0.0, "ON"),
        (1800, 0.0, "OFF"),
        (1750, 100.0, "OFF"),
        (5400, -3650.0, "ON"),
        (-600, 0.0, "ON"),
    ],
)
def test_reporting_goes_by_the_gateways_own_clock(age: int, offset: float, reporting: str) -> None:
    """An inverter is reporting if its report is less than 30 minutes old by the gateway's clock."""
    found = values("inverters", [inverter("1", age)], known(THREE, clock_offset=offset))
    assert found["inverter/1/reporting"] == reporting
    assert found["gateway/inverters_reporting"] == ("1" if reporting == "ON" else "0")


@pytest.mark.parametrize(("date", "payload"), [(0, "None"), (None, "None"), ("never", None), (-1, None)])
def test_a_removed_inverter_stays_in_the_list(date: object, payload: str | None) -> None:
    found = values("inverters", [inverter("1", lastReportDate=date)])
    assert found.get("inverter/1/last_report") == payload
    assert found["inverter/1/reporting"] == "OFF"
    assert found["gateway/inverters_total"] == "1"


def test_old_firmware_does_not_name_the_type() -> None:
    assert "inverter/1/type" not in values("inverters", without([inverter("1")], "0.devType"))


def test_a_serial_number_may_be_a_number() -> None:
    assert values("inverters", [inverter(121935144671)]) == values("inverters", [inverter("121935144671")])


@pytest.mark.parametrize("serial", [None, "", "***", True, {}, "Unknown"])
def test_an_inverter_without_a_serial_number_costs_only_itself(serial: object) -> None:
    answer = [inverter(serial), inverter("7")]
    found = values("inverters", answer)
    assert {topic.split("/")[1] for topic in found if topic.startswith("inverter")} == {"7"}
    assert found["gateway/inverters_total"] == "1"
    assert len(parse("inverters", answer).problems) == 1


def test_power_at_night() -> None:
    """Inverters draw a little power, which unsigned fields show as 4294967295."""
    found = values("inverters", [inverter("1", lastReportWatts=4294967295)])
    assert found["inverter/1/power"] == "-1"


# /ivp/ensemble/device_list


def device(serial: object, kind: object, **changes: object) -> dict[str, Any]:
    return {"serial_number": serial, "device_type": kind, "status": "Connected", **changes}


def devices(*given: object) -> dict[str, Any]:
    return {"usb": {"ck2_bridge": "connected", "auto_scan": False}, "devices": list(given)}


@pytest.mark.parametrize(
    ("wire", "kind", "payload"),
    [
        (13, "battery", "battery"),
        (14, "inverter", "microinverter"),
        (17, "controller", "controller"),
        (0, "device", "unidentified"),
        (22, "device", "22"),
        ("13", "battery", "battery"),
        (13.0, "battery", "battery"),
        ("0", "device", "unidentified"),
        (None, "device", "None"),
        (True, "device", None),
        ([], "device", None),
    ],
)
def test_types_of_devices(wire: object, kind: str, payload: str | None) -> None:
    found = values("device_list", {"devices": [device("5", wire)]})
    expected = {f"{kind}/5/status": "connected", f"{kind}/5/type": payload}
    assert found == {topic: value for topic, value in expected.items() if value is not None}


def test_a_device_without_a_type() -> None:
    assert values("device_list", without(devices(device("5", 13)), "devices.0.device_type"))["device/5/status"] == (
        "connected"
    )


@pytest.mark.parametrize(
    ("index", "payload"),
    [
        (1, "l1"),
        (2, "l2"),
        (3, "l3"),
        ("2", "l2"),
        (3.0, "l3"),
        (0, "None"),
        (4, "None"),
        (None, "None"),
        ([], None),
    ],
)
def test_the_phase_of_a_battery(index: object, payload: str | None) -> None:
    answer = devices(device("5", 13, dev_info={"capacity": 4960, "DER_Index": index}))
    found = values("device_list", answer)
    assert found.get("battery/5/phase") == payload
    assert found["battery/5/capacity"] == "4960"


@pytest.mark.parametrize("details", [None, [], "text", 5, {}])
def test_details_that_are_none(details: object) -> None:
    found = values("device_list", devices(device("5", 13, dev_info=details)))
    assert {topic for topic in found if topic.startswith("battery")} == {"battery/5/type", "battery/5/status"}


def test_only_the_status_of_batteries_is_shown_unasked() -> None:
    answer = devices(device("5", 13, dev_info={"capacity": 1}), device("6", 14), device("7", 17), device("8", 22))
    shown = [
        (reading.device, reading.name)
        for reading in parse("device_list", answer).readings
        if reading.measurement.enabled
    ]
    assert shown == [("battery/5", "status")]
    assert len([reading for reading in parse("device_list", answer).readings if reading.name == "status"]) == 4


@pytest.mark.parametrize("bad", [None, 5, "text", [], {}, {"device_type": 13}, device(None, 13), device("-", 13)])
def test_a_bad_device_costs_only_itself(bad: object) -> None:
    answer = devices(bad, device("5", 13), bad)
    assert values("device_list", answer) == values("device_list", devices(device("5", 13)))
    assert len(parse("device_list", answer).problems) == 2


def test_a_bad_field_of_a_device_costs_only_itself_and_is_told_once() -> None:
    answer = devices(device("5", 13, com_interface="CAN", com_interface_str=["x"]))
    assert {topic for topic in values("device_list", answer) if topic.startswith("battery")} == {
        "battery/5/type",
        "battery/5/status",
    }
    assert len(parse("device_list", answer).problems) == 2


@pytest.mark.parametrize("bad", [None, [], "text", 5])
def test_one_part_of_the_list_does_not_cost_the_other(bad: object) -> None:
    answer = devices(device("5", 13))
    assert {topic.split("/")[0] for topic in values("device_list", changed(answer, "usb", lambda _: bad))} == {
        "battery"
    }
    assert {topic.split("/")[0] for topic in values("device_list", changed(answer, "devices", lambda _: bad))} == {
        "gateway"
    }
