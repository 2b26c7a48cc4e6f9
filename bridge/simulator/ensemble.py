"""The answers about storage equipment as firmware 8 gives them.

Inventory, powers, sums (secctrl), relays, dry contacts, generator and tariff.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count

from bridge.simulator import controller
from bridge.simulator.http import JsonValue, indented_json
from bridge.simulator.presets import BatterySpec, GearSpec, Home
from bridge.simulator.truth import BatteryTruth, BatteryUse, Equipment, Truth

INVENTORY_PATH = "/ivp/ensemble/inventory"
POWER_PATH = "/ivp/ensemble/power"
SECCTRL_PATH = "/ivp/ensemble/secctrl"
RELAY_PATH = "/ivp/ensemble/relay"
ERRORS_PATH = "/ivp/ensemble/errors"
STATUS_PATH = "/ivp/ensemble/status"
CONTACTS_PATH = "/ivp/ensemble/dry_contacts"
CONTACT_SETTINGS_PATH = "/ivp/ss/dry_contact_settings"
GENERATOR_PATH = "/ivp/ensemble/generator"
GENERATOR_MODE_PATH = "/ivp/ss/gen_mode"
GENERATOR_SETTINGS_PATH = "/ivp/ss/gen_config"
GENERATOR_SCHEDULE_PATH = "/ivp/ss/gen_schedule"
TARIFF_PATH = "/admin/lib/tariff"
AC_BATTERIES_PATH = "/admin/lib/acb_config"

BATTERY_TYPE, CONTROLLER_TYPE, COLLAR_TYPE, COMBINER_TYPE = 13, 17, 27, 125
SWITCHING_TYPES = (CONTROLLER_TYPE, COLLAR_TYPE, COMBINER_TYPE)
"""Equipment of these kinds has dry contacts."""
PHASE_WORDS = ("ph-a", "ph-b", "ph-c")
INSTALLED_AT = 1_718_209_911

MakeBody = Callable[[], bytes]


def documents(home: Home, truth: Truth) -> Mapping[str, MakeBody]:
    """Return the functions that make the answers, by path.

    A home without such equipment has an empty inventory only; firmware before 7 has none of the paths.
    """
    if not home.secure:
        return {}
    makers: dict[str, Callable[[Home, Truth], JsonValue]] = {INVENTORY_PATH: inventory}
    makers |= controller.makers(home)
    if home.ensemble or home.ac_batteries:
        makers |= {SECCTRL_PATH: secctrl, TARIFF_PATH: tariff, STATUS_PATH: status}
    if home.ensemble:
        makers |= {
            POWER_PATH: power,
            RELAY_PATH: relay,
            CONTACTS_PATH: contacts,
            CONTACT_SETTINGS_PATH: contact_settings,
        }
        makers |= {
            GENERATOR_PATH: generator,
            GENERATOR_MODE_PATH: generator_mode,
            GENERATOR_SETTINGS_PATH: generator_settings,
            GENERATOR_SCHEDULE_PATH: generator_schedule,
        }
    if home.has(CONTROLLER_TYPE):
        makers[ERRORS_PATH] = errors
    if home.ac_batteries:
        makers[AC_BATTERIES_PATH] = ac_batteries
    return {path: partial(_rendered, make, home, truth) for path, make in makers.items()}


def _rendered(make: Callable[[Home, Truth], JsonValue], home: Home, truth: Truth) -> bytes:
    return indented_json(make(home, truth))


def inventory(home: Home, truth: Truth) -> JsonValue:
    """Return the inventory, grouped by type. It has only types of which there are devices."""
    known = {battery.serial: battery for battery in truth.batteries}
    groups: dict[str, list[JsonValue]] = {
        "ENCHARGE": [
            _battery(battery, known[battery.serial], place, truth) for place, battery in enumerate(home.batteries)
        ],
        "ENPOWER": [_controller(gear, truth) for gear in _of(home, CONTROLLER_TYPE)],
        "COLLAR": [_collar(gear, truth) for gear in _of(home, COLLAR_TYPE)],
        "C6 COMBINER CONTROLLER": [_combiner(gear, truth) for gear in _of(home, COMBINER_TYPE)],
        "C6 RGM": [_rgm(gear) for gear in _of(home, COMBINER_TYPE)],
    }
    return [{"type": kind, "devices": devices} for kind, devices in groups.items() if devices]


def _of(home: Home, kind: int) -> list[GearSpec]:
    return [gear for gear in home.gear if gear.kind == kind]


def _unit(serial: str, part: str, truth: Truth, *, age: int, code: int, state: str) -> dict[str, JsonValue]:
    return {
        "part_num": part,
        "serial_num": serial,
        "installed": INSTALLED_AT + age,
        "device_status": ["envoy.global.ok", "prop.done"],
        "last_rpt_date": int(truth.at) - age,
        "admin_state": code,
        "admin_state_str": state,
        "created_date": INSTALLED_AT + age,
        "img_load_date": INSTALLED_AT + 2 * age,
    }


def _battery(battery: BatterySpec, state: BatteryTruth, place: int, truth: Truth) -> JsonValue:
    part, age = f"836-0075{place}-r32", 61 + 17 * place
    return {
        **_unit(battery.serial, part, truth, age=age, code=6, state="ENCHG_STATE_READY"),
        "img_pnum_running": f"2.0.672{place}_rel/22.15",
        "zigbee_dongle_fw_version": f"100{place}",
        "bmu_fw_version": f"2.1.3{place}",
        "operating": True,
        "communicating": True,
        "sleep_enabled": False,
        "percentFull": round(state.soc),
        "temperature": 21 + 2 * place,
        "maxCellTemp": 22 + 2 * place,
        "reported_enc_grid_state": "grid-tied",
        "comm_level_sub_ghz": 5 - place,
        "comm_level_2_4_ghz": 4 - place,
        "led_status": 12 + place,
        "dc_switch_off": False,
        "encharge_rev": 2 + place,
        "encharge_capacity": battery.capacity,
        "phase": PHASE_WORDS[battery.leg],
        "der_index": 2,
    }


def _controller(gear: GearSpec, truth: Truth) -> JsonValue:
    """Return the system controller. Its temperature is in Fahrenheit: 88 °F are 31.1 °C."""
    relay = truth.equipment.relay
    return {
        **_unit(
            gear.serial, "860-00376-r37", truth, age=95, code=24, state=f"ENPWR_STATE_OPER_{relay['oper'].upper()}"
        ),
        "img_pnum_running": "2.0.5729_rel/22.15",
        "zigbee_dongle_fw_version": "100C",
        "operating": True,
        "communicating": True,
        "temperature": 88,
        "comm_level_sub_ghz": 3,
        "comm_level_2_4_ghz": 2,
        "mains_admin_state": relay["admin"],
        "mains_oper_state": relay["oper"],
        "Enpwr_grid_mode": _grid_mode(truth),
        "Enchg_grid_mode": "grid-tied",
        "Enpwr_relay_state_bm": 15664,
        "Enpwr_curr_state_id": 16,
    }


def _collar(gear: GearSpec, truth: Truth) -> JsonValue:
    return {
        **_unit(gear.serial, "865-00400-r22", truth, age=43, code=88, state="ENCMN_MDE_ON_GRID"),
        "img_pnum_running": "3.0.6-D0",
        "communicating": True,
        "temperature": 42,
        "mid_state": "close",
        "grid_state": "on_grid",
        "control_error": 0,
        "collar_state": "Installed",
    }


def _combiner(gear: GearSpec, truth: Truth) -> JsonValue:
    unit = _unit(gear.serial, "800-02403-r08", truth, age=51, code=82, state="ENCMN_C6_CC_READY")
    del unit["device_status"]
    return {**unit, "fw_version": "0.1.20-D1", "dmir_version": "0.1.21-D1", "communicating": True}


def _rgm(gear: GearSpec) -> JsonValue:
    """Return the combiner's meter. It has the next serial number, and field names unlike those of other devices."""
    return {
        "part_num": "800-02403-r08",
        "serial_num": str(int(gear.serial) + 1),
        "installed": INSTALLED_AT,
        "FW Version": "2.2.1-D4119",
        "Device State": 80,
    }


def power(_home: Home, truth: Truth) -> JsonValue:
    """Return the powers of the batteries. The firmware writes the key with a colon."""
    return {
        "devices:": [
            {
                "serial_num": battery.serial,
                "real_power_mw": round(battery.power * 1000),
                "apparent_power_mva": round(battery.power * 1004),
                "soc": round(battery.soc),
            }
            for battery in truth.iq_batteries
        ]
    }


def secctrl(home: Home, truth: Truth) -> JsonValue:
    """Return the sums over the batteries. `agg_soc` is that of both kinds of battery."""
    capacity, reserve = sum(battery.capacity for battery in home.batteries), round(truth.equipment.use.reserve)
    stored, stored_ac = (sum(b.stored for b in kind) for kind in (truth.iq_batteries, truth.ac_batteries))
    bias = [("", -1.32, -2123), ("_phaseb", 0.25, 402), ("_phasec", 0.125, 201)]
    biases: dict[str, JsonValue] = {}
    for name, hertz, raw in bias:
        biases |= {f"freq_bias_hz{name}": hertz, f"voltage_bias_v{name}": hertz * 12}
        biases |= {f"freq_bias_hz_q8{name}": raw, f"voltage_bias_v_q5{name}": raw // 4}
    return {
        "shutdown": False,
        **biases,
        "offgrid_secctrl": {
            "F": 0.769,
            "V": -0.014,
            "Vd_neg": 5.127,
            "Vq_neg": 1.584,
            "Vd_zero": 0.874,
            "Vq_zero": 5.889,
            "is_active": False,
            "is_system_balanced": True,
        },
        "configured_backup_soc": reserve,
        "adjusted_backup_soc": reserve + 1,
        "agg_soc": round(truth.soc),
        "Max_energy": capacity + sum(battery.capacity for battery in home.ac_batteries),
        "ENC_agg_soc": truth.charge(truth.iq_batteries),
        "ENC_agg_soh": 99 if home.batteries else 0,
        "ENC_agg_backup_energy": capacity * reserve // 100,
        "ENC_agg_avail_energy": round(stored),
        "Enc_commissioned_capacity": capacity,
        "Enc_max_available_capacity": capacity,
        "ACB_agg_soc": truth.charge(truth.ac_batteries),
        "ACB_agg_energy": round(stored_ac),
        "VLS_Limit": round(truth.equipment.use.lowest),
        "soc_rec_enabled": True,
        "soc_recovery_entry": 2,
        "soc_recovery_exit": 11,
        "Commission_in_progress": False,
        "ESS_in_progress": False,
        "ESS_R3_To_R4_in_progress": False,
    }


def errors(_home: Home, _truth: Truth) -> JsonValue:
    return {"enpower_error_flags": 0}


def relay(_home: Home, truth: Truth) -> JsonValue:
    return {
        "mains_admin_state": truth.equipment.relay["admin"],
        "mains_oper_state": truth.equipment.relay["oper"],
        "srt12_state": "open",
        "srt13_state": "closed",
        "der1_state": 1,
        "der2_state": 2,
        "der3_state": 0,
        "Enchg_grid_mode": _grid_mode(truth),
        "Solar_grid_mode": "grid-tied",
    }


def _grid_mode(truth: Truth) -> str:
    return "multimode-ongrid" if truth.equipment.on_grid else "multimode-offgrid"


def status(home: Home, truth: Truth) -> JsonValue:
    gear = [gear for kind in SWITCHING_TYPES for gear in _of(home, kind)]
    places = count(1)
    units = {b.serial: _detail(b.serial, BATTERY_TYPE, next(places), _inside(b)) for b in home.batteries}
    units |= {item.serial: _detail(item.serial, item.kind, next(places), {}) for item in gear}
    return {
        "inventory": {"serial_nums": units},
        "secctrl": secctrl(home, truth),
        "relay": relay(home, truth),
    }


def _detail(serial: str, kind: int, place: int, more: Mapping[str, JsonValue]) -> JsonValue:
    return {
        "device_type": kind,
        "com_interface_str": "ZigBee",
        "device_id": serial,
        "admin_state": 6,
        "admin_state_str": "ENS_DEVICE_STATE_READY",
        "prop_set": True,
        **more,
        "msg_retry_count": place,
        "part_number": f"860-00{place}76-r37",
        "assembly_number": f"880-00{place}76-r39",
        "app_fw_version": f"2.{place}.5729_rel/22.15",
        "zb_fw_version": f"100{place}",
        "zb_bootloader_vers": f"1.8.{place}",
        "ibl_fw_version": f"1.3.41{place}",
        "swift_asic_fw_version": f"001.002.1.7.{place}",
        "bmu_fw_version": f"2.1.3{place}",
        "submodule_count": 1,
        "submodules": {f"{int(serial) + 5}": {"device_type": 18, "part_number": f"800-0{place}346-r02"}},
    }


def _inside(battery: BatterySpec) -> Mapping[str, JsonValue]:
    return {
        "reported_grid_mode": "multimode-ongrid",
        "phase": PHASE_WORDS[battery.leg],
        "der_index": 2,
        "encharge_revision": 2,
        "encharge_capacity": battery.capacity,
        "encharge_rated_power": battery.power,
        "reported_enc_grid_state": "grid-tied",
    }


def contacts(_home: Home, truth: Truth) -> JsonValue:
    """Return the dry contacts. Gateways list them even without a device that has contacts; then all are open."""
    hidden = "NC" if truth.equipment.contacts_hidden else "-"
    return {
        "dry_contacts": [
            {"id": name, "status": "open" if name.startswith(hidden) else position}
            for name, position in truth.equipment.contacts.items()
        ]
    }


def contact_settings(_home: Home, truth: Truth) -> JsonValue:
    return {"dry_contacts": list(truth.equipment.contact_settings.values())}


def generator(_home: Home, truth: Truth) -> JsonValue:
    """Return the generator. Without one the gateway answers with the state `unknown`."""
    return truth.equipment.generator


def generator_mode(_home: Home, truth: Truth) -> JsonValue:
    return truth.equipment.generator_mode


def generator_settings(_home: Home, truth: Truth) -> JsonValue:
    return truth.equipment.generator_settings


def generator_schedule(_home: Home, truth: Truth) -> JsonValue:
    return truth.equipment.generator_schedule


def ac_batteries(_home: Home, truth: Truth) -> JsonValue:
    """Return the AC Batteries that sleep."""
    sleeping = truth.equipment.sleeping
    return {"acb_sleep": [{"serial_num": serial, **levels} for serial, levels in sleeping.items() if levels]}


def tariff(_home: Home, truth: Truth) -> JsonValue:
    return {
        "tariff": truth.equipment.tariff,
        "schedule": {
            "source": "Tariff",
            "date": str(int(truth.at)),
            "version": "00.00.02",
            **_scheduled(truth.equipment),
            "override": False,
            "override_backup_soc": 33.0,
            "override_chg_dischg_rate": 0.0,
            "override_tou_mode": "StorageTouMode_DEFAULT_TOU_MODE",
        },
    }


def _scheduled(equipment: Equipment) -> Mapping[str, JsonValue]:
    """Return the settings that the schedule repeats: those in force, or in a stale answer those stored."""
    stored, use = equipment.tariff["storage_settings"], equipment.use
    if equipment.is_stale:
        use = BatteryUse(stored["mode"], stored["reserved_soc"], stored["very_low_soc"], stored["charge_from_grid"])
    return {
        "reserved_soc": use.reserve,
        "very_low_soc": round(use.lowest),
        "charge_from_grid": use.charge_from_grid,
        "batt_mode": use.mode,
        "battery_mode": use.mode,
    }
