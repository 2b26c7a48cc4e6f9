"""The answers about what the controller does: how it uses the batteries, and how it limits solar power."""

from collections.abc import Callable, Mapping
from math import sin

from bridge.simulator.http import JsonValue
from bridge.simulator.presets import Home
from bridge.simulator.truth import Truth

SCHEDULER_PATH = "/ivp/sc/sched"
CONTROLLER_PATH = "/ivp/sc/status"
PERCENT_LIMIT_PATH = "/ivp/sc/pvlimit"
DYNAMIC_LIMIT_PATH = "/ivp/ss/dpel"
INSTALLER_LIMIT_PATH = "/ivp/ss/pel_settings"
BREAKER_LIMIT_PATH = "/ivp/ss/pcs_settings"
FIRMWARE_STATE_PATH = "/ivp/firmware_manager/state"
EVENT_LIST_PATH = "/datatab/event_dt.rb"
WIFI_PATH = "/admin/lib/wireless_display.json"

MODE_WORDS: tuple[JsonValue, ...] = (
    "ID - Idle",
    "ZN - Zero Net",
    "CG - Charge From Grid",
    "DG - Discharge to Grid",
    "ND - No Discharge",
    "DL - Discharge to Load",
    "CP - Charge From PV",
    "HEMS Discharge",
    "HEMS Charge",
    "FCR - Charge or discharge",
    "HEMS Charge from Grid",
)
IDLE = 0
MODE_NUMBERS = {"self-consumption": 1, "backup": 6, "economy": 5, "savings-mode": 5}
"""The place of each mode's word in `MODE_WORDS`."""
SAMPLES, SAMPLE_MS = 12, 200
"""How many samples of each meter the controller tells, and the milliseconds between two of them."""
EXPORT_RULE, PANEL_RULE = 14, 61


def makers(home: Home) -> Mapping[str, Callable[[Home, Truth], JsonValue]]:
    """Return the functions that make the answers, by path, for a gateway with firmware 7 or later."""
    found: dict[str, Callable[[Home, Truth], JsonValue]] = {
        PERCENT_LIMIT_PATH: percent_limit,
        INSTALLER_LIMIT_PATH: installer_limit,
        EVENT_LIST_PATH: event_list,
        WIFI_PATH: wifi,
    }
    if home.version >= (8, 0) and home.storing:
        found[FIRMWARE_STATE_PATH] = firmware_state
    if home.version >= (8, 3):
        found |= {DYNAMIC_LIMIT_PATH: dynamic_limit, CONTROLLER_PATH: controller}
    if home.version >= (8, 3) and home.ensemble:
        found[BREAKER_LIMIT_PATH] = breaker_limit
    if home.version >= (8, 0) and home.storing:
        found[SCHEDULER_PATH] = scheduler
    return found


def firmware_state(_home: Home, _truth: Truth) -> JsonValue:
    return {
        "SiteSync": {
            "Current_Status": 10,
            "Current_Status_str": "No Update Running",
            "Last_Status": 10,
            "Last_Status_str": "No Update Running",
            "Type": 0,
            "Type_str": "None",
            "Estimated Time Left": "00::00::00",
            "Total Duration": "00::00::00",
            "Current essimg version": "500-00020-r01-v21.19.82",
            "Failure Reason": "None",
            "auto_update_enable": "true",
            "auto_update_8_hrs_disable": "true",
            "Progress": "0.00",
        },
        "updates": [],
    }


def wifi(home: Home, _truth: Truth) -> JsonValue:
    address, router = "192.168.7.20", "192.168.7.1"
    network: dict[str, JsonValue] = {
        "ssid": "MyHome",
        "status": "connected",
        "ip_address": address,
        "gateway_ip": router,
        "security_mode": "WPA2-PSK",
        "encryption_type": "CCMP",
        "ap_bssid": "AA:BB:CC:DD:EE:FF",
        "channel": "36",
        "bars": 3,
    }
    return {
        "supported": True,
        "present": True,
        "configured": True,
        "up": True,
        "carrier": True,
        "current_network": network,
        "device_info": {"vendor": "Enphase", "mac": "BB:BB:CC:DD:EE:FF"},
        "ap_mode": {"enabled": False, "name": f"ENVOY_{home.serial[-6:]}"},
        "selected_region": "00",
        "regions": ["00", "DE", "US"],
    }


def event_list(home: Home, _truth: Truth) -> JsonValue:
    serial = home.inverters[0].serial if home.inverters else home.serial
    date = "Sat Jun 03, 2023 09:30 PM BST"
    entries: list[JsonValue] = [
        [str(16_320 + place), f"Microinverter failed to report: {state}", serial, "pcu ", date]
        for place, state in enumerate(("Set", "Clear"))
    ]
    return {"recordsTotal": 500, "aaData": entries[::-1]}


def scheduler(home: Home, truth: Truth) -> JsonValue:
    use, capacity = truth.equipment.use, sum(battery.capacity for battery in home.storing)
    stored, stored_ac = (sum(b.stored for b in kind) for kind in (truth.iq_batteries, truth.ac_batteries))
    return {
        "acb_current_mode": MODE_NUMBERS.get(use.mode, IDLE),
        "acb_debug_mode": -1,
        "ENC_agg_energy": round(stored),
        "Agg Backup Energy": round(capacity * use.reserve / 100),
        "Agg VLS Energy": round(capacity * use.lowest / 100),
        "Num_of_enc": len(home.batteries),
        "ENC_agg_soc": truth.charge(truth.iq_batteries),
        "Force Discharge": False,
        "Charge From Grid Allowed": use.charge_from_grid,
        "ACB_agg_soc": truth.charge(truth.ac_batteries),
        "ACB_agg_energy": round(stored_ac),
        "Num_of_acb": len(home.ac_batteries),
        "agg_soc": round(truth.soc),
        "max_energy": capacity,
        "sched_mode_key": list(MODE_WORDS),
    }


def percent_limit(home: Home, _truth: Truth) -> JsonValue:
    return {"enable": home.limit is not None, "pv_limit_pct": 100 if home.limit is None else home.limit.percent}


def installer_limit(home: Home, _truth: Truth) -> JsonValue:
    """Return the installer's limit. Without one the gateway answers with that alone."""
    if home.limit is None:
        return {"PEL": False}
    return {
        "PEL": True,
        "Hard_PEL": False,
        "Soft_PEL": True,
        "Export_Limit_Type": "Aggregate",
        "percent": False,
        "apparent": False,
        "PEL_Limit": home.limit.power,
        "Comm_Time_Loss": 11_000.0,
        "Resp_Time_SoftPEL": 10_000.0,
        "Resp_Time_HardPEL": 2_000.0,
        "msReset_HardPEL": 3_000.0,
        "PEL_db": 0.0,
    }


def dynamic_limit(_home: Home, _truth: Truth) -> JsonValue:
    return {
        "date": "2026-03-14 08:15:25",
        "dynamic_pel_settings": {"enable": False},
        "filename": "site_settings",
        "version": "00.00.01",
    }


def breaker_limit(_home: Home, _truth: Truth) -> JsonValue:
    return {
        "pcsOffering": {
            "PVOversubscription": False,
            "EnchargeOversubscription": False,
            "EVSEMBTAvoidance": False,
            "MPUAvoidance": True,
            "BusbarPCS": False,
        },
        "mainCircuitBreaker": 200.0,
        "mainPanelBusbar": 225.0,
        "mainPanelDERBreaker": 40.0,
        "pvBreaker": 20.0,
        "enchargeBreaker": 25.0,
        "consumptionMeterLocation": "Between_Mains_Supply_and_Main_Load_Panel",
        "override": False,
        "max_back_feed": 0.0,
        "der3Breaker": 15.0,
        "mp_debounce_timeout": 10000.0,
        "der_debounce_timeout": 10000.0,
        "offset_debounce_ms": 5000.0,
        "relay_action": "open",
    }


def controller(home: Home, truth: Truth) -> JsonValue:
    """Return the controller's state. It is long, since it has the meters' last samples."""
    rated = [float(sum(battery.power for battery in home.batteries if battery.leg == leg)) for leg in range(3)]
    rules = [
        ("Acb CG", 2, 0.0),
        ("PEL W", EXPORT_RULE, 0.0),
        ("PCS - Import", 21, 3840.0),
        ("PCS MPU Avoidance", PANEL_RULE, 7680.0),
        ("Shutdown Recovery", 68, 0.0),
    ]
    events = ["0"] if home.limit is None else ["PEL Active", "ECL Prod Limit Needs Meter", "0"]
    return {
        "AggregateMeteringMode": False,
        "EnchargeCtSupportEnabled": True,
        "nameplate": {"PV": [0, 0, 0], "ENC": list(rated), "ACB": [0, 0, 0], "SLP": [0, 0, 0]},
        "profile": {
            "ts": "Thu Sep 24 09:52:20 2026\n",
            "profile_name": "IEEE 1547 default 2015",
            "agg_rules": [],
            "phase_rules": [{"RuleId": name, "RuleNum": number, "Threshold": w} for name, number, w in rules],
        },
        "events": list(events),
        "disco": {
            "status": "Closed",
            "reason": "",
            "reason_id": 0,
            "soft_start_remain": 30.0,
            "soft_start_max": 30.0,
            "aggregate_triggers": [],
            "phase_a_triggers": [],
            "phase_b_triggers": [],
            "phase_c_triggers": [],
        },
        "response": {
            "f_state": 0.0,
            "v_state": 0.0,
            "groups": _groups(home),
            "phases": [_steered(home, name) for name in ("ph-a", "ph-b", "ph-c")],
        },
        "acbstats": {"acb_soc": [0] * 4, "slp_soc": [0] * 4, "encharge_feedback": {"raw_setpt": 0.0}},
        "meter": {kind: [_sample(home, truth, place) for place in range(SAMPLES)] for kind in ("ECP", "PV", "ENC")},
    }


def _groups(home: Home) -> JsonValue:
    solar = 100.0 if home.limit is None else float(home.limit.percent)
    return [
        _group("ACB", -74, 0, 0.0),
        _group("ENC", -74, 0, -42.0),
        _group("PV", 0, 100, solar),
        _group("SLP", 0, 0, 0.0),
    ]


def _group(name: str, least: int, most: int, setpoint: float) -> JsonValue:
    return {"id": name, "min": least, "max": most, "f_width": 1.0, "f_offset": 0.0, "setpoint_val": setpoint}


def _steered(home: Home, phase: str) -> JsonValue:
    return {
        "phase": phase,
        "f_state": 0.0,
        "v_state": 0.0,
        "active_f_rule": PANEL_RULE if home.limit is None else EXPORT_RULE,
        "active_f_rule_ctx": 0,
        "active_v_rule": 0,
        "active_v_rule_ctx": 0,
        "groups": _groups(home),
    }


def _sample(home: Home, truth: Truth, place: int) -> JsonValue:
    at = round(truth.at * 1000) % 1_000_000 + place * SAMPLE_MS
    phases: dict[str, JsonValue] = {
        name: {
            "vrms": home.nominal + sin(at + leg),
            "P": 0.0,
            "S": 5.0 + leg,
            "F": home.frequency,
            "Q": 5.0 + leg,
        }
        for leg, name in enumerate(("ph-a", "ph-b", "ph-c"))
    }
    return {"ts": at, **phases}
