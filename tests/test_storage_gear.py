"""Storage gear: batteries, controllers, collars, combiners, relays, generators, and their settings."""

import json
from typing import Any

import pytest
from samples import NOW, SERIAL, SINGLE, THREE, feed, known, parse, publish, tree, unit, values, values_of

from bridge.endpoints import BY_SOURCE, ENDPOINTS
from bridge.model import MAX_GEAR, BadAnswer, Facts, UnitFacts

BATTERY, CONTROLLER, COLLAR, COMBINER = "492300000001", "482303009999", "482520020939", "482523040549"


def inventory(*groups: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": kind, "devices": [device]} for kind, device in groups]


def told(source: str, answer: object, device: str, facts: Facts = THREE) -> dict[str, str]:
    """The values of one device, by name."""
    found = values(source, answer, facts)
    return {
        topic.removeprefix(f"{device}/"): text for topic, text in found.items() if topic.startswith(f"{device}/")
    }


# Inventory

ENCHARGE = {
    "percentFull": 98,
    "temperature": 27,
    "maxCellTemp": 28,
    "encharge_capacity": 3360,
    "phase": "ph-b",
    "der_index": 2,
    "dc_switch_off": False,
    "sleep_enabled": True,
    "reported_enc_grid_state": "grid-tied",
    "comm_level_sub_ghz": 4,
    "comm_level_2_4_ghz": 5,
    "led_status": 12,
    "encharge_rev": 3,
    "bmu_fw_version": "2.1.34",
    "zigbee_dongle_fw_version": "100B",
    "operating": False,
}


def test_a_battery() -> None:
    found = told("inventory", inventory(("ENCHARGE", unit(BATTERY, 6, **ENCHARGE))), f"battery/{BATTERY}")
    assert found == {
        "status": "envoy.global.ok,prop.done",
        "communicating": "ON",
        "operating": "OFF",
        "last_report": "2025-11-22T08:24:54+00:00",
        "admin_state": "STATE_6",
        "admin_state_code": "6",
        "firmware": "2.0.6",
        "firmware_loaded": "2024-07-03T09:46:46+00:00",
        "part_number": "836-00006-r32",
        "installed": "2024-06-10T06:13:26+00:00",
        "created": "2024-06-21T20:00:06+00:00",
        "firmware_zigbee": "100B",
        "link_sub_ghz": "4",
        "link_2_4_ghz": "5",
        "soc": "98",
        "temperature": "27",
        "cell_temperature": "28",
        "capacity": "3360",
        "phase": "l2",
        "der_index": "2",
        "dc_switch": "ON",
        "sleep_enabled": "ON",
        "grid_state": "grid-tied",
        "led_status": "12",
        "revision": "3",
        "firmware_bmu": "2.1.34",
    }


@pytest.mark.parametrize(
    ("wire", "line"),
    [("ph-a", "l1"), ("PH-C", "l3"), ("ph-all", "all"), (2, "l2"), ("ph-x", "ph-x"), (None, "None")],
)
def test_phases_of_a_battery(wire: object, line: str) -> None:
    device = unit(BATTERY, 6, encharge_capacity=5000, phase=wire)
    assert told("inventory", inventory(("ENCHARGE", device)), f"battery/{BATTERY}")["phase"] == line


@pytest.mark.parametrize(
    ("fahrenheit", "celsius"), [(72, "22.2"), (91, "32.8"), (32, "0"), (-40, "-40"), (None, "None")]
)
def test_a_controller_thinks_in_fahrenheit(fahrenheit: object, celsius: str) -> None:
    device = unit(CONTROLLER, 30, temperature=fahrenheit)
    assert told("inventory", inventory(("ENPOWER", device)), f"controller/{CONTROLLER}")["temperature"] == celsius


@pytest.mark.parametrize(
    ("state", "connected"),
    [
        ("closed", "ON"),
        ("CLOSED", "ON"),
        ("open", "OFF"),
        ("open synchronizing", "OFF"),
        ("open synchronized", "OFF"),
        ("unknown", "None"),
        ("stuck", "None"),
    ],
)
def test_whether_the_grid_is_connected(state: str, connected: str) -> None:
    device = unit(CONTROLLER, 30, mains_oper_state=state)
    assert (
        told("inventory", inventory(("ENPOWER", device)), f"controller/{CONTROLLER}")["grid_connected"] == connected
    )
    assert told("relay", {"mains_oper_state": state}, "relay/mains")["grid_connected"] == connected


@pytest.mark.parametrize(
    ("state", "connected"),
    [("ENCMN_MDE_ON_GRID", "ON"), ("ENCMN_MDE_OFF_GRID", "OFF"), ("ENCMN_MDE_SYNCING", "None")],
)
def test_a_collar_tells_of_the_grid_in_its_state(state: str, connected: str) -> None:
    """A collar's `grid_state` was seen to stay the same without the grid."""
    device = unit(COLLAR, 88, admin_state_str=state, grid_state="on_grid", mid_state="close", control_error=0)
    found = told("inventory", inventory(("COLLAR", device)), f"collar/{COLLAR}")
    assert (found["grid_connected"], found["admin_state"], found["grid_state"]) == (connected, state, "on_grid")
    assert (found["mid_state"], found["control_error"], found["temperature"]) == ("close", "0", "108")


def test_a_combiner_and_its_meter() -> None:
    meter = {"serial_num": "482523040550", "FW Version": "2.2.1-D4119", "Device State": 80, "part_num": "800-02403"}
    combiner = unit(COMBINER, 82, fw_version="0.1.20-D1", dmir_version="0.1.21-D1")
    del combiner["img_pnum_running"]
    answer = inventory(("C6 COMBINER CONTROLLER", combiner), ("C6 RGM", meter))
    found = told("inventory", answer, f"combiner/{COMBINER}")
    assert (found["firmware"], found["firmware_dmir"], found["communicating"]) == ("0.1.20-D1", "0.1.21-D1", "ON")
    assert told("inventory", answer, "device/482523040550") == {
        "type": "c6 rgm",
        "firmware": "2.2.1-D4119",
        "admin_state_code": "80",
        "part_number": "800-02403",
    }


@pytest.mark.parametrize(
    ("field", "device"),
    [("encharge_capacity", "battery"), ("mains_oper_state", "controller"), ("mid_state", "collar")],
)
def test_a_new_type_shows_what_it_is(field: str, device: str) -> None:
    """An IQ Battery of the next generation must not become a device without a name."""
    found = values("inventory", inventory(("ENCHARGE GEN5", unit("1", 2, **{field: "5"}))))
    assert {topic.split("/")[0] for topic in found} == {device}


def test_a_device_that_is_known_stays_what_it_is() -> None:
    facts = known(THREE, gear=frozenset({"collar/7"}))
    assert {topic.split("/")[0] for topic in values("inventory", inventory(("NEW", unit("7", 2))), facts)} == {
        "collar"
    }
    listed = {"devices": [{"serial_number": "7", "device_type": 99, "status": "Connected"}]}
    assert values("device_list", listed, facts)["collar/7/status"] == "connected"
    assert {topic.split("/")[0] for topic in values("device_list", listed)} == {"device"}


@pytest.mark.parametrize(
    "bad", [None, 5, "x", [], {}, {"serial_num": None}, {"serial_num": "***"}, {"percentFull": 5}]
)
def test_a_bad_unit_costs_only_itself(bad: object) -> None:
    answer = [
        {"type": "ENCHARGE", "devices": [bad, unit(BATTERY, 6), bad]},
        {"type": "X", "devices": bad},
        {"type": 5},
    ]
    parsed = parse("inventory", answer)
    assert {reading.device for reading in parsed.readings} == {f"battery/{BATTERY}"}
    assert parsed.problems


def test_the_firmware_of_2021_tells_more_in_its_inventory() -> None:
    """It has each battery's power, and the grid profile in an item that has no units."""
    profile = {
        "grid_profile_name": "EN 50549 2019",
        "id": "9f:0",
        "grid_profile_version": "1.0.7",
        "item_count": 71,
    }
    device = unit(BATTERY, 6, real_power_w=-516, bmu_ibl_fw_version="1.2.5")
    answer = [*inventory(("ENCHARGE", device)), profile]
    assert parse("inventory", answer).problems == ()
    assert told("inventory", answer, "gateway") == {
        "grid_profile": "EN 50549 2019",
        "grid_profile_version": "1.0.7",
    }
    battery = told("inventory", answer, f"battery/{BATTERY}")
    assert (battery["power"], battery["bootloader_bmu"]) == ("-516", "1.2.5")
    assert values("inventory", [profile]).keys() == {"gateway/grid_profile", "gateway/grid_profile_version"}


def test_the_power_of_a_battery_is_taken_from_its_own_source() -> None:
    given = {
        "inventory": inventory(("ENCHARGE", unit(BATTERY, 6, real_power_w=-516))),
        "power": {"devices:": [{"serial_num": BATTERY, "real_power_mw": -1_316_000}]},
    }
    into = tree()
    facts, messages = feed(into, given, THREE)
    _, again = feed(into, {"inventory": given["inventory"]}, facts)
    powers = [m.payload for m in (*messages, *again) if m.topic.endswith(f"{BATTERY}/power")]
    assert powers == ["-516", "-1316"]


def test_an_empty_inventory_is_an_answer() -> None:
    assert parse("inventory", []).readings == ()
    assert parse("inventory", [{"type": "ENCHARGE", "devices": []}]).readings == ()


@pytest.mark.parametrize("key", ["devices:", "devices"])
def test_powers_of_batteries(key: str) -> None:
    """The firmware's key has a colon."""
    battery = {"serial_num": BATTERY, "real_power_mw": -1250000, "apparent_power_mva": -1260500, "soc": 98}
    assert values("power", {key: [battery, None]}) == {
        f"battery/{BATTERY}/power": "-1250",
        f"battery/{BATTERY}/apparent_power": "-1260.5",
        f"battery/{BATTERY}/soc": "98",
    }


# The best source of each value


def test_each_value_comes_from_who_knows_it_best() -> None:
    """The charge comes from the powers, which are newer, status and capacity from the list, the phase from the
    inventory.
    """
    into = tree()
    device = unit(BATTERY, 6, percentFull=90, phase="ph-a", encharge_capacity=3360)
    listed = {"serial_number": BATTERY, "device_type": 13, "status": "Connected", "dev_info": {"DER_Index": 2}}
    given = {
        "inventory": inventory(("ENCHARGE", device)),
        "device_list": {"devices": [listed]},
        "power": {"devices:": [{"serial_num": BATTERY, "soc": 41}]},
    }
    _, messages = feed(into, given, THREE)
    newest = {message.topic: message.payload for message in messages}
    _, again = feed(into, {"inventory": given["inventory"]}, THREE)
    newest |= {message.topic: message.payload for message in again}

    place = f"enphase/{SERIAL}/battery/{BATTERY}"
    assert {name: newest[f"{place}/{name}"] for name in ("soc", "status", "phase")} == {
        "soc": "41",
        "status": "connected",
        "phase": "l1",
    }
    document = json.loads(newest[place])
    assert (document["soc"], document["status"], document["phase"]) == (41, "connected", "l1")
    assert {row.measurement.name: row.source for row in into.rows} | {"soc": "power", "phase": "inventory"} == {
        row.measurement.name: row.source for row in into.rows
    }


def test_without_the_others_the_inventory_tells_charge_and_status() -> None:
    found = told("inventory", inventory(("ENCHARGE", unit(BATTERY, 6, percentFull=90))), f"battery/{BATTERY}")
    assert (found["soc"], found["status"]) == ("90", "envoy.global.ok,prop.done")


# Which endpoints are asked

GEAR = (
    "power",
    "secctrl",
    "relay",
    "dry_contacts",
    "dry_contact_settings",
    "generator",
    "gen_config",
    "gen_mode",
    "gen_schedule",
    "tariff",
    "status",
    "sched",
    "pcs_settings",
    "sc_status",
    "firmware",
)
OF_GENERATOR = ("gen_config", "gen_mode", "gen_schedule")
OF_EVERY_HOME = {"device_data", "pvlimit", "dpel", "pel_settings", "wifi", "event_list"}
"""Sources outside the brief that no gear is needed for."""


STORED = {"secctrl", "tariff", "status", "sched", "pcs_settings", "firmware"}
"""Sources of each storage."""


def asked(facts: Facts) -> set[str]:
    return {str(endpoint.source) for endpoint in ENDPOINTS if endpoint.wanted(facts)} - {
        endpoint.source for endpoint in ENDPOINTS if endpoint.appendix or endpoint.source in OF_EVERY_HOME
    }


@pytest.mark.parametrize("firmware", ["R3.17.3", "D4.10.35", "M4.2.33"])
def test_old_firmware_is_not_asked_for_storage_gear(firmware: str) -> None:
    assert asked(Facts(SERIAL, firmware, gear=frozenset({"battery/1", "controller/2", "generator/1"}))) == set()


@pytest.mark.parametrize(
    ("gear", "sources"),
    [
        ((), {"inventory"}),
        (("battery/1",), {"inventory", "power", *STORED}),
        (("acb/1",), {"inventory", "acb_config", *STORED}),
        (("controller/1",), {"inventory", "errors", *GEAR} - {"power", *OF_GENERATOR, "sched"}),
        (("collar/1",), {"inventory", *GEAR} - {"power", *OF_GENERATOR, "sched"}),
        (("battery/1", "combiner/2", "generator/1"), {"inventory", *GEAR} - {"sc_status"}),
        (("limit/installer",), {"inventory", "sc_status"}),
    ],
)
@pytest.mark.parametrize("firmware", ["D8.3.5169", "D5.0.62", ""])
def test_what_is_asked_by_the_gear_that_was_seen(firmware: str, gear: tuple[str, ...], sources: set[str]) -> None:
    assert asked(Facts(SERIAL, firmware, gear=frozenset(gear))) == sources


@pytest.mark.parametrize(
    ("source", "answer", "gear"),
    [
        (
            "inventory",
            inventory(("ENCHARGE", unit("1", 1)), ("ENPOWER", unit("2", 2)), ("X", unit("3", 3))),
            "battery/1 controller/2",
        ),
        (
            "inventory",
            inventory(("COLLAR", unit("1", 1)), ("C6 COMBINER CONTROLLER", unit("2", 2))),
            "collar/1 combiner/2",
        ),
        (
            "device_list",
            {
                "devices": [
                    {"serial_number": str(kind), "device_type": kind} for kind in (0, 13, 14, 17, 22, 27, 125)
                ]
            },
            "battery/13 controller/17 collar/27 combiner/125",
        ),
        ("inverters", [{"serialNumber": "1", "devType": 11}, {"serialNumber": "2", "devType": 1}], "acb/1"),
        ("generator", {"admin_state": "close", "present": 1, "type": 1}, "generator/1"),
    ],
)
def test_gear_is_learnt(source: str, answer: object, gear: str) -> None:
    learnt = parse(source, answer).facts
    assert learnt is not None
    assert learnt.gear == frozenset(gear.split())
    assert parse(source, answer, learnt).facts is None
    assert parse(
        "info", f"<envoy_info><device><sn>{SERIAL}</sn></device></envoy_info>".encode(), learnt
    ).facts == Facts(SERIAL, meters=learnt.meters, gear=learnt.gear, clock_offset=0.0, units=learnt.units)


CONTACT: dict[str, str | None] = {"id": "NC1", "mode": "manual"}


@pytest.mark.parametrize(
    ("contact", "unit"),
    [
        ({"type": "LOAD", "load_name": "AC/Water heater"}, UnitFacts(name="AC/Water heater")),
        ({"type": "3RD-PV", "load_name": ""}, UnitFacts()),
        ({"type": "NONE", "load_name": ""}, UnitFacts(is_used=False)),
        ({"type": "NONE", "load_name": "Spare"}, UnitFacts(name="Spare")),
        ({"type": None}, UnitFacts(is_used=False)),
        ({}, UnitFacts()),
    ],
)
def test_what_a_contact_is_for_is_learnt(contact: dict[str, str | None], unit: UnitFacts) -> None:
    learnt = parse("dry_contact_settings", {"dry_contacts": [CONTACT | contact]}).facts
    assert learnt is not None
    assert learnt.units == {"relay/nc1": unit}


def test_what_a_unit_is_is_learnt() -> None:
    battery = {"serial_num": "7", "part_num": "830-00703-r67", "img_pnum_running": "2.0.5663_rel/22.13"}
    learnt = parse("inventory", [{"type": "ENCHARGE", "devices": [battery]}]).facts
    assert learnt is not None
    assert learnt.units == {"battery/7": UnitFacts(part_number="830-00703-r67", firmware="2.0.5663_rel/22.13")}
    updated = parse("inventory", [{"type": "ENCHARGE", "devices": [battery | {"img_pnum_running": "3"}]}], learnt)
    assert updated.facts is not None
    assert updated.facts.units["battery/7"].firmware == "3"
    maker = parse("gen_config", {"manufacturer": "Generac", "model": "G007223-0 (14kW)"}, learnt).facts
    assert maker is not None
    assert maker.units == dict(learnt.units) | {"generator/1": UnitFacts(maker="Generac", model="G007223-0 (14kW)")}


def test_gear_is_never_more_than_a_home_can_have() -> None:
    answer = [{"type": "ENCHARGE", "devices": [{"serial_num": str(place)} for place in range(1000)]}]
    learnt = parse("inventory", answer).facts
    assert learnt is not None
    assert len(learnt.gear) == MAX_GEAR
    assert parse("inventory", inventory(("COLLAR", unit("x", 1))), learnt).facts is None


# The storage as a whole


def test_totals() -> None:
    answer = {
        "agg_soc": 41,
        "ENC_agg_soc": 42,
        "ACB_agg_soc": 43,
        "ENC_agg_soh": 99,
        "ENC_agg_avail_energy": 4400,
        "ENC_agg_backup_energy": 4500,
        "ACB_agg_energy": 46,
        "Max_energy": 4700,
        "Enc_commissioned_capacity": 4800,
        "Enc_max_available_capacity": 4900,
        "configured_backup_soc": 50,
        "adjusted_backup_soc": 51,
        "VLS_Limit": 5,
        "soc_rec_enabled": True,
        "soc_recovery_entry": 2,
        "soc_recovery_exit": 10,
        "shutdown": False,
        "Commission_in_progress": False,
        "ESS_in_progress": True,
        "Recovery_threshold_soc": 13,
    }
    assert told("secctrl", answer, "storage/totals") == {
        "soc": "41",
        "encharge_soc": "42",
        "acb_soc": "43",
        "encharge_soh": "99",
        "encharge_energy": "4400",
        "reserve_energy": "4500",
        "acb_energy": "46",
        "max_energy": "4700",
        "commissioned_capacity": "4800",
        "capacity": "4900",
        "reserve": "50",
        "reserve_now": "51",
        "reserve_lowest": "5",
        "recovery": "ON",
        "recovery_entry": "2",
        "recovery_exit": "10",
        "recovery_threshold": "13",
        "shutdown": "OFF",
        "commissioning": "OFF",
        "updating": "ON",
    }


BIAS = {"agg_soc": 1, "freq_bias_hz": -1.25, "freq_bias_hz_phaseb": 0.5, "freq_bias_hz_phasec": 0.25}


def test_bias_of_each_phase() -> None:
    found = told("secctrl", BIAS, "storage/totals")
    assert {name: text for name, text in found.items() if "bias" in name} == {
        "l1/frequency_bias": "-1.25",
        "l2/frequency_bias": "0.5",
        "l3/frequency_bias": "0.25",
    }
    assert told("secctrl", BIAS, "storage/totals", SINGLE) == {"soc": "1", "frequency_bias": "-1.25"}


def test_the_controller_off_the_grid() -> None:
    answer = {
        "is_active": True,
        "is_system_balanced": False,
        "seq_reset_needed": False,
        "F": 59.5,
        "Vq_zero": -0.25,
    }
    assert told("secctrl", {"agg_soc": 1, "offgrid_secctrl": answer}, "storage/offgrid") == {
        "active": "ON",
        "balanced": "OFF",
        "reset_needed": "OFF",
        "f": "59.5",
        "vq_zero": "-0.25",
    }


SETTINGS = {"mode": "self-consumption", "operation_mode_sub_type": "", "reserved_soc": 20.5, "date": "1709339757"}


def test_settings_of_the_storage() -> None:
    settings = {**SETTINGS, "very_low_soc": 10, "charge_from_grid": False, "opt_schedules": True}
    schedule = {
        "override": True,
        "override_backup_soc": 30.0,
        "override_tou_mode": "DEFAULT",
        "schedule": {"x": []},
    }
    answer = {"tariff": {"storage_settings": settings, "seasons": []}, "schedule": schedule}
    assert values("tariff", answer) == {
        "storage/settings/mode": "self-consumption",
        "storage/settings/mode_subtype": "None",
        "storage/settings/reserve": "20.5",
        "storage/settings/reserve_lowest": "10",
        "storage/settings/charge_from_grid": "OFF",
        "storage/settings/optimized": "ON",
        "storage/settings/changed": "2024-03-02T00:35:57+00:00",
        "storage/settings/override": "ON",
        "storage/settings/override_reserve": "30",
        "storage/settings/override_mode": "DEFAULT",
    }


@pytest.mark.parametrize(
    ("wire", "text"), [(0.3213700056, "0.32137"), (0, "0"), (-0.0, "0"), ("0.08", "0.08"), (None, "None")]
)
def test_prices_keep_their_decimals(wire: object, text: str) -> None:
    answer = {"tariff": {"currency": {"code": "EUR"}, "single_rate": {"rate": wire}}}
    assert values("tariff", answer) == {"tariff/current/currency": "EUR", "tariff/current/rate": text}


def test_seasons_stand_in_the_document_only() -> None:
    seasons = [
        {"id": "summer", "days": [{"id": "all", "periods": [{"start": 480, "rate": 0.14}, True]}], "on": None}
    ]
    messages = publish("tariff", parse("tariff", {"tariff": {"seasons": seasons}}).readings)
    assert values_of(messages) == {}
    [document] = [json.loads(message.payload) for message in messages]
    assert document["seasons"] == {
        "1": {
            "id": "summer",
            "days": {"1": {"id": "all", "periods": {"1": {"start": 480, "rate": 0.14}, "2": True}}},
            "on": None,
        }
    }


def test_details_of_units() -> None:
    inside = {
        "device_type": 13,
        "com_interface_str": "CAN",
        "assembly_number": "836-01250",
        "encharge_rated_power": 3540,
        "msg_retry_count": 4,
        "swift_asic_fw_version": "",
        "submodules": {"122231063227": {"device_type": 14, "dmir": {"part_number": "549"}}},
    }
    answer = {"inventory": {"serial_nums": {BATTERY: inside, "5": {"device_type": 30}, "***": {}, "6": 7}}}
    messages = publish("status", parse("status", answer).readings)
    assert values_of(messages) == {
        f"battery/{BATTERY}/type": "battery",
        f"battery/{BATTERY}/connection": "CAN",
        f"battery/{BATTERY}/assembly_number": "836-01250",
        f"battery/{BATTERY}/rated_power": "3540",
        f"battery/{BATTERY}/retries": "4",
        f"battery/{BATTERY}/firmware_asic": "None",
        "device/5/type": "30",
    }
    document = next(json.loads(message.payload) for message in messages if message.topic.endswith(BATTERY))
    assert document["modules"] == {"122231063227": {"device_type": 14, "dmir": {"part_number": "549"}}}


# Relays and the generator


def test_dry_contacts() -> None:
    answer = {
        "dry_contacts": [
            {"id": "NC1", "status": "closed"},
            {"id": "NO2", "status": "OPEN"},
            {"status": "open"},
            None,
        ]
    }
    assert values("dry_contacts", answer) == {"relay/nc1/state": "closed", "relay/no2/state": "open"}


def test_settings_of_a_dry_contact() -> None:
    answer = {
        "id": "NO1",
        "type": "NONE",
        "grid_action": "shed",
        "micro_grid_action": "none",
        "gen_action": "APPLY",
        "essential_start_time": 32400.0,
        "priority": 1.0,
        "override": "true",
        "manual_override": "false",
        "load_name": "",
        "mode": "manual",
        "soc_low": 30.0,
        "soc_high": 70.5,
        "pv_serial_nb": [],
    }
    assert values("dry_contact_settings", {"dry_contacts": [answer]}) == {
        "relay/no1/name": "None",
        "relay/no1/type": "none",
        "relay/no1/mode": "manual",
        "relay/no1/grid_action": "shed",
        "relay/no1/microgrid_action": "none",
        "relay/no1/generator_action": "apply",
        "relay/no1/soc_low": "30",
        "relay/no1/soc_high": "70.5",
        "relay/no1/priority": "1",
        "relay/no1/override": "ON",
        "relay/no1/manual_override": "OFF",
        "relay/no1/essential_start": "09:00",
        "relay/no1/pv_serials": "none",
    }


GENERATOR = {
    "admin_state": "close",
    "oper_state": "close",
    "start_soc": 30,
    "stop_soc": -1,
    "exc_on": 0,
    "present": 1,
    "type": 1,
}


def test_a_generator() -> None:
    assert values("generator", GENERATOR) == {
        "generator/1/state": "close",
        "generator/1/admin_state": "close",
        "generator/1/start_soc": "30",
        "generator/1/stop_soc": "-1",
        "generator/1/exercising": "OFF",
        "generator/1/present": "ON",
        "generator/1/type": "1",
    }


@pytest.mark.parametrize(("present", "kind"), [(1, 0), (0, 1), (0, 0)])
def test_no_generator(present: int, kind: int) -> None:
    """Each of these three answers was seen in a home without a generator."""
    answer = {**GENERATOR, "admin_state": "unknown", "oper_state": "open", "present": present, "type": kind}
    assert parse("generator", answer).readings == ()
    assert parse("generator", answer).facts is None


@pytest.mark.parametrize(("wire", "watts"), [(14.0, "14000"), (14000, "14000"), (7.5, "7500"), (None, "None")])
def test_a_generator_of_14_kilowatts_says_14(wire: object, watts: str) -> None:
    assert values("gen_config", {"name_plate_rating_wat": wire})["generator/1/rated_power"] == watts


@pytest.mark.parametrize("source", [source for source in BY_SOURCE if not BY_SOURCE[source].appendix])
@pytest.mark.parametrize("answer", [{"error": "500 - Internal Error"}, {"err": "x"}])
def test_an_error_with_status_200_is_no_answer(source: str, answer: object) -> None:
    with pytest.raises(BadAnswer):
        parse(source, answer, THREE, NOW)
