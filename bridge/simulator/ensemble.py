"""The answers about storage equipment as firmware 8 gives them.

Inventory, powers, sums (secctrl), relays, dry contacts, generator and tariff.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count

from bridge.simulator.http import Hundredths, JsonValue, indented_json
from bridge.simulator.presets import BatterySpec, GearSpec, Home
from bridge.simulator.truth import BatteryTruth, Truth

INVENTORY_PATH = "/ivp/ensemble/inventory"
POWER_PATH = "/ivp/ensemble/power"
SECCTRL_PATH = "/ivp/ensemble/secctrl"
RELAY_PATH = "/ivp/ensemble/relay"
STATUS_PATH = "/ivp/ensemble/status"
CONTACTS_PATH = "/ivp/ensemble/dry_contacts"
CONTACT_SETTINGS_PATH = "/ivp/ss/dry_contact_settings"
GENERATOR_PATH = "/ivp/ensemble/generator"
GENERATOR_SETTINGS_PATH = "/ivp/ss/gen_config"
TARIFF_PATH = "/admin/lib/tariff"

BATTERY_TYPE, CONTROLLER_TYPE, COLLAR_TYPE, COMBINER_TYPE = 13, 17, 27, 125
PHASE_WORDS = ("ph-a", "ph-b", "ph-c")
CONTACT_IDS = ("NC1", "NC2", "NO1", "NO2")
CONTACT_LOADS = ("Well pump", "", "Fridge and freezer", "Heat pump")
INSTALLED_AT = 1_718_209_911
RESERVE_PERCENT = 20

MakeBody = Callable[[], bytes]


def documents(home: Home, truth: Truth) -> Mapping[str, MakeBody]:
    """Return the functions that make the answers, by path.

    A home without such equipment has an empty inventory only; firmware before 7 has none of the paths.
    """
    if not home.secure:
        return {}
    makers: dict[str, Callable[[Home, Truth], JsonValue]] = {INVENTORY_PATH: inventory}
    if home.ensemble or home.ac_batteries:
        makers |= {SECCTRL_PATH: secctrl, TARIFF_PATH: tariff, STATUS_PATH: status}
    if home.ensemble:
        makers |= {
            POWER_PATH: power,
            RELAY_PATH: relay,
            CONTACTS_PATH: contacts,
            CONTACT_SETTINGS_PATH: contact_settings,
        }
        makers |= {GENERATOR_PATH: generator, GENERATOR_SETTINGS_PATH: generator_settings}
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
    return {
        **_unit(gear.serial, "860-00376-r37", truth, age=95, code=24, state="ENPWR_STATE_OPER_CLOSED"),
        "img_pnum_running": "2.0.5729_rel/22.15",
        "zigbee_dongle_fw_version": "100C",
        "operating": True,
        "communicating": True,
        "temperature": 88,
        "comm_level_sub_ghz": 3,
        "comm_level_2_4_ghz": 2,
        "mains_admin_state": "closed",
        "mains_oper_state": "closed",
        "Enpwr_grid_mode": "multimode-ongrid",
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
    capacity = sum(battery.capacity for battery in home.batteries)
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
        "configured_backup_soc": RESERVE_PERCENT,
        "adjusted_backup_soc": RESERVE_PERCENT + 1,
        "agg_soc": round(truth.soc),
        "Max_energy": capacity + sum(battery.capacity for battery in home.ac_batteries),
        "ENC_agg_soc": truth.charge(truth.iq_batteries),
        "ENC_agg_soh": 99 if home.batteries else 0,
        "ENC_agg_backup_energy": capacity * RESERVE_PERCENT // 100,
        "ENC_agg_avail_energy": round(stored),
        "Enc_commissioned_capacity": capacity,
        "Enc_max_available_capacity": capacity,
        "ACB_agg_soc": truth.charge(truth.ac_batteries),
        "ACB_agg_energy": round(stored_ac),
        "VLS_Limit": 10,
        "soc_rec_enabled": True,
        "soc_recovery_entry": 2,
        "soc_recovery_exit": 11,
        "Commission_in_progress": False,
        "ESS_in_progress": False,
        "ESS_R3_To_R4_in_progress": False,
    }


def relay(_home: Home, _truth: Truth) -> JsonValue:
    return {
        "mains_admin_state": "closed",
        "mains_oper_state": "closed",
        "srt12_state": "open",
        "srt13_state": "closed",
        "der1_state": 1,
        "der2_state": 2,
        "der3_state": 0,
        "Enchg_grid_mode": "multimode-ongrid",
        "Solar_grid_mode": "grid-tied",
    }


def status(home: Home, truth: Truth) -> JsonValue:
    gear = [gear for kind in (CONTROLLER_TYPE, COLLAR_TYPE, COMBINER_TYPE) for gear in _of(home, kind)]
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


def contacts(home: Home, _truth: Truth) -> JsonValue:
    """Return the dry contacts. Gateways list them even without a device that has contacts; then all are open."""
    closed = {"NC1", "NO2"} if home.has(CONTROLLER_TYPE, COLLAR_TYPE, COMBINER_TYPE) else set()
    return {
        "dry_contacts": [{"id": name, "status": "closed" if name in closed else "open"} for name in CONTACT_IDS]
    }


def contact_settings(home: Home, _truth: Truth) -> JsonValue:
    loads = CONTACT_LOADS if home.has(CONTROLLER_TYPE, COLLAR_TYPE, COMBINER_TYPE) else ("",) * len(CONTACT_IDS)
    return {"dry_contacts": [_contact(place, name, loads[place]) for place, name in enumerate(CONTACT_IDS)]}


def _contact(place: int, name: str, load: str) -> JsonValue:
    return {
        "id": name,
        "type": "LOAD" if load else "NONE",
        "grid_action": ("apply", "none", "shed", "schedule")[place],
        "micro_grid_action": ("shed", "none", "apply", "shed")[place],
        "gen_action": ("none", "none", "shed", "apply")[place],
        "safe_state_action": "shed",
        "essential_start_time": 28_800.0 + 3600 * place,
        "essential_end_time": 64_800.0 + 3600 * place,
        "priority": 1.0 + place,
        "black_s_start": 5.0 + place,
        "black_start_retries": 10.0 + place,
        "action_retries": 2.0 + place,
        "override": "true" if place else "false",
        "manual_override": "false" if place else "true",
        "load_name": load,
        "mode": "soc" if place == 0 else "manual",
        "soc_low": 25.0 + place,
        "soc_high": 70.0 + place,
        "pv_phase_select": [],
        "pv_serial_nb": [],
    }


def generator(home: Home, _truth: Truth) -> JsonValue:
    """Return the generator. Without one the gateway answers with the state `unknown`."""
    return {
        "admin_state": "open" if home.generator else "unknown",
        "oper_state": "open",
        "admin_mode": 2 if home.generator else 0,
        "schedule": int(home.generator),
        "start_soc": 30 if home.generator else 100,
        "stop_soc": 72 if home.generator else -1,
        "exc_on": 0,
        "present": int(home.generator),
        "type": 1,
    }


def generator_settings(home: Home, _truth: Truth) -> JsonValue:
    if not home.generator:
        return {}
    return {
        "max_cont_gen_amps": 58.3,
        "min_gen_loading_perc": 5,
        "max_gen_efficiency_perc": 97,
        "name_plate_rating_wat": 14.0,
        "start_method": "Auto",
        "warm_up_mins": 3,
        "cool_down_mins": 4,
        "gen_type": "Standby",
        "model": "G-14",
        "manufacturer": "Simulated",
        "last_updated_by": "ITK",
        "generator_id": "42",
        "charge_from_generator": True,
    }


def tariff(_home: Home, truth: Truth) -> JsonValue:
    changed = str(INSTALLED_AT + 86_400)
    return {
        "tariff": {
            "currency": {"code": "EUR"},
            "logger": "mylogger",
            "date": changed,
            "storage_settings": {
                "mode": "self-consumption",
                "operation_mode_sub_type": "prioritize-energy",
                "very_low_soc": 9,
                "charge_from_grid": False,
                "reserved_soc": RESERVE_PERCENT + 2.0,
                "date": changed,
                "opt_schedules": True,
            },
            "single_rate": {"rate": Hundredths(0.31), "sell": Hundredths(0.08)},
            "seasons": [
                {"id": "winter", "start": "1/1", "days": [{"id": "all_days", "days": "Mon,Tue", "periods": []}]}
            ],
            "seasons_sell": [{"id": "summer", "start": "6/1", "days": []}],
        },
        "schedule": {
            "source": "Tariff",
            "date": str(int(truth.at)),
            "version": "00.00.02",
            "override": False,
            "override_backup_soc": 33.0,
            "override_chg_dischg_rate": 0.0,
            "override_tou_mode": "StorageTouMode_DEFAULT_TOU_MODE",
        },
    }
