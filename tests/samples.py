"""Sample homes and answers for several tests, and functions that turn answers into topics."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bridge.endpoints import BY_SOURCE, ENDPOINTS, Parsed
from bridge.model import Facts, Message, MeterFacts, Reading
from bridge.pipeline import repaired
from bridge.state import StateT, decode, encode
from bridge.topics import Names, Tree

SERIAL = "122125067699"
BASE_TOPIC = f"enphase/{SERIAL}/"
NOW = 1_763_800_000.0
ORDER = (*(endpoint.source for endpoint in ENDPOINTS), "bridge")
EIDS = {
    "production": 704643328,
    "net-consumption": 704643584,
    "total-consumption": 704643584,
    "storage": 704643840,
    "backfeed": 704644352,
    "load": 704644608,
    "evse": 704644864,
    "pv3p": 704645120,
}
MODES = {1: "three", 2: "split", 3: "three"}
"""The usual `phaseMode` by `phaseCount`. A European home often has one phase of a three-phase grid."""


def meter(role: str, count: int = 3, *, enabled: bool = True, mode: str | None = None) -> MeterFacts:
    return MeterFacts(EIDS[role], role, enabled, count, mode or MODES[count])


def home(
    count: int = 3, roles: Sequence[str] = ("production", "net-consumption"), mode: str | None = None
) -> Facts:
    """Return the facts of a gateway whose meters are known."""
    return Facts(SERIAL, "D8.3.5169", "800-00654-r06", 0.0, tuple(meter(role, count, mode=mode) for role in roles))


THREE, SPLIT, SINGLE = home(3), home(2), home(1)
NO_METERS = Facts(SERIAL, "D8.3.5169", meters=())
STRUCTURES = {"packages", "modules", "seasons", "seasons_sell", "event_list"}
"""Fields of documents that have no value topic."""
UNKNOWN = Facts(SERIAL, "D8.3.5169")
"""The facts of a gateway whose meters are not known yet."""


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def parse(source: str, answer: object, facts: Facts = THREE, now: float = NOW) -> Parsed:
    """Parse an answer, which is given as bytes or as a JSON value."""
    return BY_SOURCE[source].split(answer if isinstance(answer, bytes) else body(answer), facts, now)


def tree(payload: str = "both") -> Tree:
    return Tree(Names(), SERIAL, ORDER, payload)


def publish(source: str, readings: Sequence[Reading], into: Tree | None = None) -> list[Message]:
    return list((into or tree()).update(source, repaired(source, readings), datetime.fromtimestamp(NOW, UTC)))


def values_of(messages: Iterable[Message]) -> dict[str, str]:
    """Return the payloads of value topics by the name below `enphase/<serial>/`. No topic may occur twice."""
    found: dict[str, str] = {}
    for message in messages:
        if message.content_type is None:
            assert message.topic not in found
            found[message.topic.removeprefix(BASE_TOPIC)] = message.payload
    return found


def documents_of(messages: Iterable[Message]) -> dict[str, dict[str, Any]]:
    """Return the JSON documents by the name below `enphase/<serial>/`."""
    found = [message for message in messages if message.content_type == "application/json"]
    assert len({message.topic for message in found}) == len(found)
    return {message.topic.removeprefix(BASE_TOPIC): json.loads(message.payload) for message in found}


def as_topic_text(value: object) -> str:
    """Return a value of a document as the text of a value topic, independently of the code under test."""
    if isinstance(value, bool):
        return "ON" if value else "OFF"
    return value if isinstance(value, str) else str(value)


def flat(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the values in documents by topic, without their time stamp and the fields that have no topic."""
    found: dict[str, str] = {}
    for device, document in documents.items():
        for key, value in document.items():
            if key in {"l1", "l2", "l3", "c1", "c2", "c3", "c4"}:
                found |= {f"{device}/{key}/{name}": as_topic_text(item) for name, item in value.items()}
            elif key == "timestamp_2":
                found[f"{device}/timestamp"] = as_topic_text(value)
            elif key != "timestamp" and key not in STRUCTURES:
                found[f"{device}/{key}"] = as_topic_text(value)
    return found


def values(source: str, answer: object, facts: Facts = THREE, now: float = NOW) -> dict[str, str]:
    """Return the values that an answer is published as. Documents must have the same values."""
    messages = publish(source, parse(source, answer, facts, now).readings)
    found = values_of(messages)
    assert flat(documents_of(messages)) == found
    return found


def at(value: object, path: str) -> Any:
    """Return the part of an answer at a dotted path."""
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]  # type: ignore[index]
    return value


def changed(answer: object, path: str, change: Callable[[Any], object]) -> Any:
    """Return a copy of an answer with the part at a dotted path changed."""
    copy = json.loads(json.dumps(answer))
    parent, _, last = path.rpartition(".")
    place = at(copy, parent) if parent else copy
    key = int(last) if isinstance(place, list) else last
    place[key] = change(place[key])
    return copy


def without(answer: object, path: str) -> Any:
    """Return a copy of an answer without the part at a dotted path."""
    copy = json.loads(json.dumps(answer))
    parent, _, last = path.rpartition(".")
    place = at(copy, parent) if parent else copy
    del place[int(last) if isinstance(place, list) else last]
    return copy


def known(facts: Facts, **options: Any) -> Facts:
    return replace(facts, **options)


# Answers in which no number occurs twice

QUANTITIES = {
    "actEnergyDlvd": 100_000.125,
    "actEnergyRcvd": 200_000.25,
    "apparentEnergy": 300_000.5,
    "reactEnergyLagg": 400_000.75,
    "reactEnergyLead": 500_000.375,
    "instantaneousDemand": 1_000.5,
    "activePower": 1_001.25,
    "apparentPower": 2_002.5,
    "reactivePower": 3_003.75,
    "pwrFactor": 0.5,
    "voltage": 230.125,
    "current": 10.5,
    "freq": 50.0625,
}


def numbers(step: float) -> dict[str, float]:
    """Return all quantities of a channel. Each step has other values."""
    return {name: value + step for name, value in QUANTITIES.items()}


def reading(role: str, step: float = 0, **changes: object) -> dict[str, Any]:
    """Return a meter's entry of `/ivp/meters/readings`. It always has three channels."""
    eid = EIDS[role]
    channels = [
        {"eid": eid + 1073741841 + place, "timestamp": int(NOW) - 10 - place, **numbers(step + (place + 1) / 8)}
        for place in range(3)
    ]
    return {"eid": eid, "timestamp": int(NOW) - 5, **numbers(step), "channels": channels, **changes}


def entry(role: str, count: int = 3, **changes: object) -> dict[str, Any]:
    """Return a meter's entry of `/ivp/meters`."""
    return {
        "eid": EIDS[role],
        "state": "enabled",
        "measurementType": role,
        "phaseMode": MODES[count],
        "phaseCount": count,
        "meteringStatus": "normal",
        "statusFlags": [],
        **changes,
    }


def flow(step: int) -> dict[str, int]:
    """Return a flow of `/ivp/livedata/status` with all of its phases."""
    return {
        "agg_p_mw": 1_000_001 + step,
        "agg_s_mva": 2_000_002 + step,
        **{f"agg_p_ph_{letter}_mw": 3_000_003 + step + place for place, letter in enumerate("abc")},
        **{f"agg_s_ph_{letter}_mva": 4_000_004 + step + place for place, letter in enumerate("abc")},
    }


FLOWS = ("pv", "storage", "grid", "load", "generator")


def live(stream: object = "enabled", **meters: object) -> dict[str, Any]:
    flows = {name: flow(100_000 * place) for place, name in enumerate(FLOWS)}
    return {"connection": {"sc_stream": stream}, "meters": {"last_update": 1654221647, **flows, **meters}}


def channel(step: int = 0, **changes: object) -> dict[str, Any]:
    """Return a channel of `/ivp/pdm/device_data`. Each step has other values."""
    return {
        "chanEid": 1627390225 + step,
        "created": int(NOW) - 60 - step,
        "wattHours": {"today": 1239 + step, "yesterday": 455 + step, "week": 7466 + step},
        "watts": {"now": 255 + step, "nowUsed": 0, "max": 371 + step},
        "lastReading": {
            "endDate": int(NOW) - 60 - step,
            "duration": 903 + step,
            "joulesProduced": 230_400 + 900 * step,
            "acVoltageINmV": 248_156 + step,
            "acFrequencyINmHz": 50_013 + step,
            "dcVoltageINmV": 32_363 + step,
            "dcCurrentINmA": 8_078 + step,
            "channelTemp": 38 + step,
            "acCurrentInmA": 1_049 + step,
        },
        "lifetime": {
            "createdTime": 1_744_834_453,
            "duration": 6_124_463,
            "joulesProduced": 354_281_850 + 36 * step,
        },
        **changes,
    }


def details(serial: object, step: int = 0, *, inputs: int = 1, **changes: object) -> dict[str, Any]:
    """Return a microinverter of `/ivp/pdm/device_data`."""
    channels = [channel(step + 100 * place) for place in range(inputs)]
    return {"devName": "pcu", "sn": serial, "active": True, "modGone": False, "channels": channels, **changes}


def answers(count: int = 3, inverters: int = 20, batteries: int = 2) -> dict[str, Any]:
    """Return the answers of all endpoints of a home, by source."""
    roles = ("production", "net-consumption")
    device = f"<sn>{SERIAL}</sn><pn>800-00654-r06</pn><software>D8.3.5169</software>"
    info = f"<time>{int(NOW)}</time><device>{device}</device>"
    sums = {"wattHoursToday": 1, "wattHoursSevenDays": 2, "wattHoursLifetime": 3, "wattsNow": 4}
    figures = {"actPower": 5.5, "rmsVoltage": 230.5, "rmsCurrent": 1.5, "whDlvdCum": 6.5, "whRcvdCum": 7.5}
    units = range(1, inverters + 1)
    return {
        "info": f"<envoy_info>{info}<package name='app'><version>7</version></package></envoy_info>".encode(),
        "meters": [entry(role, count) for role in roles],
        "livedata": {
            **live(soc=97, phase_count=count, main_relay_state=1, backup_bat_mode=1),
            "tasks": {"task_id": 1, "timestamp": 1654219883},
            "counters": {"rest_Status": 579, "rest_status": 580},
        },
        "readings": [reading(role, place) for place, role in enumerate(roles)],
        "grid": [
            {"channels": [{"phase": f"L{phase}", "activePower": phase, "voltage": 230} for phase in (1, 2, 3)]}
        ],
        "consumption": [
            {"reportType": kind, "createdAt": int(NOW), "cumulative": figures, "lines": [figures] * count}
            for kind in ("net-consumption", "total-consumption")
        ],
        "production": sums,
        "energy": {"production": {"pcu": sums, "eim": sums}, "consumption": {"eim": sums}},
        "inverters": [
            {
                "serialNumber": f"4822{unit:08d}",
                "lastReportDate": int(NOW) - unit,
                "devType": 1,
                "lastReportWatts": 100 + unit,
                "maxReportWatts": 300 + unit,
            }
            for unit in units
        ],
        "device_data": {
            **{str(unit): details(f"4822{unit:08d}", unit) for unit in units},
            "704643328": {"devName": "eim", "sn": f"{SERIAL}EIM1", "active": True, "modGone": True, "channels": []},
            "deviceCount": inverters + 1,
            "deviceDataLimit": 50,
        },
        "device_list": {
            "usb": {"ck2_bridge": "connected", "auto_scan": False},
            "devices": [
                *(
                    {
                        "serial_number": f"4923{unit:08d}",
                        "device_type": 13,
                        "status": "Connected",
                        "dev_info": {"capacity": 4960, "DER_Index": unit},
                    }
                    for unit in range(1, batteries + 1)
                ),
                {"serial_number": "482303009999", "device_type": 17, "status": "Connected"},
                {"serial_number": "122302001234", "device_type": 22, "status": "Connected"},
            ],
        },
        **storage(batteries),
    }


def unit(serial: str, step: int, **more: object) -> dict[str, Any]:
    """Return the common fields of a device in `/ivp/ensemble/inventory`."""
    return {
        "serial_num": serial,
        "part_num": f"836-{step:05d}-r32",
        "installed": 1_718_000_000 + step,
        "device_status": ["envoy.global.ok", "prop.done"],
        "last_rpt_date": int(NOW) - 100 - step,
        "admin_state": step,
        "admin_state_str": f"STATE_{step}",
        "created_date": 1_719_000_000 + step,
        "img_load_date": 1_720_000_000 + step,
        "img_pnum_running": f"2.0.{step}",
        "communicating": True,
        "temperature": 20 + step,
        **more,
    }


def storage(batteries: int) -> dict[str, Any]:
    """Return the answers of the endpoints beside the brief, with batteries and a controller."""
    serials = [f"4923{unit:08d}" for unit in range(1, batteries + 1)]
    encharge = [
        unit(serial, step, percentFull=50 + step, encharge_capacity=4960, phase="ph-a", dc_switch_off=False)
        for step, serial in enumerate(serials, 1)
    ]
    enpower = unit("482303009999", 30, temperature=77, mains_oper_state="closed", mains_admin_state="closed")
    contact = {"id": "NC1", "status": "closed"}
    return {
        "inventory": [{"type": "ENCHARGE", "devices": encharge}, {"type": "ENPOWER", "devices": [enpower]}],
        "power": {
            "devices:": [
                {"serial_num": serial, "real_power_mw": 1000 * step, "apparent_power_mva": 2000 * step, "soc": step}
                for step, serial in enumerate(serials, 41)
            ]
        },
        "secctrl": {
            "agg_soc": 43,
            "ENC_agg_soc": 44,
            "ENC_agg_avail_energy": 4450,
            "ENC_agg_backup_energy": 1984,
            "Enc_max_available_capacity": 9920,
            "configured_backup_soc": 22,
            "VLS_Limit": 12,
            "freq_bias_hz": 0.5,
            "freq_bias_hz_phaseb": 0.25,
            "freq_bias_hz_phasec": 0.125,
            "offgrid_secctrl": {"F": 0.75, "is_active": False},
        },
        "relay": {"mains_admin_state": "closed", "mains_oper_state": "closed", "der1_state": 1},
        "dry_contacts": {"dry_contacts": [contact]},
        "dry_contact_settings": {
            "dry_contacts": [{"id": "NC1", "load_name": "Pool", "soc_low": 25.5, "type": "NONE"}]
        },
        "generator": {"admin_state": "close", "oper_state": "open", "present": 1, "type": 1, "start_soc": 30},
        "gen_config": {"manufacturer": "Maker", "name_plate_rating_wat": 14.0, "max_cont_gen_amps": 58.25},
        "gen_mode": {"gen_cmd": "auto"},
        "gen_schedule": {"exercise_config": {"freq_in_weeks": 1, "start": 750, "duration": 30, "day": "Sun"}},
        "tariff": {
            "tariff": {
                "currency": {"code": "EUR"},
                "storage_settings": {"mode": "backup", "reserved_soc": 21.5, "charge_from_grid": True},
                "single_rate": {"rate": 0.21835, "sell": 0.08},
                "seasons": [{"id": "winter"}],
            },
            "schedule": {"override": False, "override_backup_soc": 33.0, "batt_mode": "economy"},
        },
        "sched": {
            "acb_current_mode": 1,
            "Charge From Grid Allowed": False,
            "Agg VLS Energy": 1190,
            "sched_mode_key": ["ID - Idle", "ZN - Zero Net"],
        },
        "status": {
            "inventory": {
                "serial_nums": {
                    serial: {"device_type": 13, "encharge_rated_power": 1280, "msg_retry_count": step}
                    for step, serial in enumerate(serials, 3)
                }
            },
            "relay": {"mains_oper_state": "open", "srt12_state": "closed"},
        },
    }


def feed(into: Tree, given: Mapping[str, Any], facts: Facts = UNKNOWN) -> tuple[Facts, list[Message]]:
    """Publish all answers of a gateway in the order of the table; return the facts and all messages."""
    messages: list[Message] = []
    for source in (source for source in ORDER if source in given):
        if not BY_SOURCE[source].wanted(facts):
            continue
        parsed = parse(source, given[source], facts)
        facts = parsed.facts or facts
        messages += publish(source, parsed.readings, into)
    return facts, messages


def restored(state: StateT) -> StateT:
    """Return a state as the next run reads it from its file."""
    found, damaged = decode(type(state), encode(state))
    assert damaged == ()
    return found
