"""Every field of the brief's appendices A to J becomes a topic, with the right number.

The tables below are our own transcription of the ten sample answers of TEB-00060-2.0. A line says where a field
stands on the wire, what topic below `enphase/<serial>/` it must become, and how a sample of it is made:

- `number`, `integer`, `milli`, `epoch`, `text`, `lower`, `list`: a value that no other field of the answer has;
- `13->battery`: exactly this wire value, which must become exactly this payload.

The topic `-` is a field that tells which device or phase is meant: it is the topic's level, not its payload.
A topic in brackets exists only where the device has one phase, since it means nothing for several.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from samples import (
    NO_METERS,
    SERIAL,
    SINGLE,
    SPLIT,
    THREE,
    UNKNOWN,
    documents_of,
    flat,
    home,
    parse,
    publish,
    values,
    values_of,
)

from bridge.endpoints import ENDPOINTS
from bridge.model import Facts

BRIEF = Path(__file__).parents[1].parent / "shared" / "reference" / "TEB-00060-2.0.txt"

# Appendix A, in XML. Packages are only in the document.

INFO = f"""
time                        gateway/time             epoch
device.sn                   gateway/serial_number    "{SERIAL}"->{SERIAL}
device.pn                   gateway/part_number      text
device.software             gateway/firmware         "D7.4.22"->D7.4.22
device.euaid                gateway/euaid            text
device.seqnum               gateway/sequence         integer
device.apiver               gateway/api_version      integer
device.imeter               gateway/metered          "true"->ON
web-tokens                  gateway/web_tokens       "false"->OFF
build_info.build_id         gateway/build_id         text
build_info.build_time_gmt   gateway/build_time       epoch
build_info.release_ver      gateway/release_version  text
build_info.release_stage    gateway/release_stage    text
"""
PACKAGES = [
    *("rootfs", "kernel", "boot", "app", "devimg", "geo"),
    *("backbone", "meter", "agf", "security", "essimg", "full"),
]
PACKAGE = {"pn": "part_number", "version": "version", "build": "build"}

# Appendix B

DEVICES = """
usb.ck2_bridge                  gateway/comms_bridge                  text
usb.auto_scan                   gateway/auto_scan                     "false"->OFF
devices.0.serial_number         -                                     "492203008650"
devices.0.device_type           battery/492203008650/type             13->battery
devices.0.com_interface         battery/492203008650/interface        integer
devices.0.com_interface_str     battery/492203008650/connection       text
devices.0.status                battery/492203008650/status           lower
devices.0.dev_info.capacity     battery/492203008650/capacity         integer
devices.0.dev_info.DER_Index    battery/492203008650/phase            1->l1
devices.1.serial_number         -                                     "122132000709"
devices.1.device_type           device/122132000709/type              0->unidentified
devices.1.com_interface         device/122132000709/interface         integer
devices.1.status                device/122132000709/status            "Unknown"->None
devices.2.serial_number         -                                     "121935144671"
devices.2.device_type           inverter/121935144671/type            14->microinverter
devices.2.com_interface         inverter/121935144671/interface       integer
devices.2.com_interface_str     inverter/121935144671/connection      text
devices.2.status                inverter/121935144671/status          lower
devices.2.dev_info.capacity     inverter/121935144671/capacity        integer
devices.2.dev_info.DER_Index    inverter/121935144671/phase           3->l3
"""

# Appendix C; {role} and {place} stand for the two meters of the sample

METER = """
{place}.eid               meter/{role}/eid              integer
{place}.state             meter/{role}/enabled          "enabled"->ON
{place}.measurementType   -                             "{role}"
{place}.phaseMode         meter/{role}/phase_mode       "split"->split
{place}.phaseCount        meter/{role}/phase_count      2->2
{place}.meteringStatus    meter/{role}/metering_status  lower
{place}.statusFlags       meter/{role}/status_flags     list
"""

# Appendix D: the whole of a meter, and one of its channels

WHOLE = """
{place}.eid                   -                                     {eid}
{place}.timestamp             meter/{role}/measured_at              epoch
{place}.actEnergyDlvd         meter/{role}/energy_delivered         number
{place}.actEnergyRcvd         meter/{role}/energy_received          number
{place}.apparentEnergy        meter/{role}/apparent_energy          number
{place}.reactEnergyLagg       meter/{role}/reactive_energy_lagging  number
{place}.reactEnergyLead       meter/{role}/reactive_energy_leading  number
{place}.instantaneousDemand   meter/{role}/instantaneous_demand     number
{place}.activePower           meter/{role}/power                    number
{place}.apparentPower         meter/{role}/apparent_power           number
{place}.reactivePower         meter/{role}/reactive_power           number
{place}.pwrFactor             [meter/{role}/power_factor]           number
{place}.voltage               [meter/{role}/voltage]                number
{place}.current               [meter/{role}/current]                number
{place}.freq                  meter/{role}/frequency                number
"""
CHANNEL = """
{place}.channels.{index}.eid                   meter/{role}/{phase}/eid                      integer
{place}.channels.{index}.timestamp             meter/{role}/{phase}/measured_at              epoch
{place}.channels.{index}.actEnergyDlvd         meter/{role}/{phase}/energy_delivered         number
{place}.channels.{index}.actEnergyRcvd         meter/{role}/{phase}/energy_received          number
{place}.channels.{index}.apparentEnergy        meter/{role}/{phase}/apparent_energy          number
{place}.channels.{index}.reactEnergyLagg       meter/{role}/{phase}/reactive_energy_lagging  number
{place}.channels.{index}.reactEnergyLead       meter/{role}/{phase}/reactive_energy_leading  number
{place}.channels.{index}.instantaneousDemand   meter/{role}/{phase}/instantaneous_demand     number
{place}.channels.{index}.activePower           meter/{role}/{phase}/power                    number
{place}.channels.{index}.apparentPower         meter/{role}/{phase}/apparent_power           number
{place}.channels.{index}.reactivePower         meter/{role}/{phase}/reactive_power           number
{place}.channels.{index}.pwrFactor             meter/{role}/{phase}/power_factor             number
{place}.channels.{index}.voltage               meter/{role}/{phase}/voltage                  number
{place}.channels.{index}.current               meter/{role}/{phase}/current                  number
{place}.channels.{index}.freq                  meter/{role}/{phase}/frequency                number
"""

# Appendices E and F; F has the fields of E four times

PRODUCTION = """
{path}wattHoursToday       energy/{name}/energy_today     integer
{path}wattHoursSevenDays   energy/{name}/energy_7d        integer
{path}wattHoursLifetime    energy/{name}/energy_lifetime  integer
{path}wattsNow             energy/{name}/power            integer
"""
SIDES = (("production", "pcu"), ("production", "rgm"), ("production", "eim"), ("consumption", "eim"))

# Appendix G

INVERTER = """
{place}.serialNumber      -                              "{serial}"
{place}.lastReportDate    inverter/{serial}/last_report  epoch
{place}.devType           inverter/{serial}/type         integer
{place}.lastReportWatts   inverter/{serial}/power        integer
{place}.maxReportWatts    inverter/{serial}/max_power    integer
"""

# Appendix H; the five flows have the same fields

LIVE = """
connection.mqtt_state                 live/connection/mqtt_state                text
connection.prov_state                 live/connection/prov_state                text
connection.auth_state                 live/connection/auth_state                text
connection.sc_stream                  live/connection/sc_stream                 "enabled"->enabled
connection.sc_debug                   live/connection/sc_debug                  text
meters.last_update                    live/system/measured_at                   epoch
meters.soc                            live/storage/soc                          integer
meters.main_relay_state               live/system/main_relay                    integer
meters.gen_relay_state                live/system/generator_relay               integer
meters.backup_bat_mode                live/storage/backup_mode                  integer
meters.backup_soc                     live/storage/backup_soc                   integer
meters.is_split_phase                 live/system/split_phase                   1->ON
meters.phase_count                    live/system/phase_count                   integer
meters.enc_agg_soc                    live/storage/encharge_soc                 integer
meters.enc_agg_energy                 live/storage/encharge_energy              integer
meters.acb_agg_soc                    live/storage/acb_soc                      integer
meters.acb_agg_energy                 live/storage/acb_energy                   integer
tasks.task_id                         live/tasks/task_id                        integer
tasks.timestamp                       live/tasks/timestamp                      epoch
counters.main_CfgLoad                 live/counters/main_cfgload                integer
counters.main_CfgChanged              live/counters/main_cfgchanged             integer
counters.main_taskUpdate              live/counters/main_taskupdate             integer
counters.MqttClient_publish           live/counters/mqttclient_publish          integer
counters.MqttClient_live_debug        live/counters/mqttclient_live_debug       integer
counters.MqttClient_respond           live/counters/mqttclient_respond          integer
counters.MqttClient_msgarrvd          live/counters/mqttclient_msgarrvd         integer
counters.MqttClient_create            live/counters/mqttclient_create           integer
counters.MqttClient_setCallbacks      live/counters/mqttclient_setcallbacks     integer
counters.MqttClient_connect           live/counters/mqttclient_connect          integer
counters.MqttClient_connect_err       live/counters/mqttclient_connect_err      integer
counters.MqttClient_connect_Err       live/counters/mqttclient_connect_err_2    integer
counters.MqttClient_subscribe         live/counters/mqttclient_subscribe        integer
counters.SSL_Keys_Create              live/counters/ssl_keys_create             integer
counters.sc_hdlDataPub                live/counters/sc_hdldatapub               integer
counters.sc_SendStreamCtrl            live/counters/sc_sendstreamctrl           integer
counters.sc_SendDemandRspCtrl         live/counters/sc_senddemandrspctrl        integer
counters.rest_Meters                  live/counters/rest_meters                 integer
counters.rest_Status                  live/counters/rest_status                 integer
"""
FLOW = """
meters.{flow}.agg_p_mw         live/{flow}/power              milli
meters.{flow}.agg_s_mva        live/{flow}/apparent_power     milli
meters.{flow}.agg_p_ph_a_mw    live/{flow}/l1/power           milli
meters.{flow}.agg_p_ph_b_mw    live/{flow}/l2/power           milli
meters.{flow}.agg_p_ph_c_mw    live/{flow}/l3/power           milli
meters.{flow}.agg_s_ph_a_mva   live/{flow}/l1/apparent_power  milli
meters.{flow}.agg_s_ph_b_mva   live/{flow}/l2/apparent_power  milli
meters.{flow}.agg_s_ph_c_mva   live/{flow}/l3/apparent_power  milli
"""
FLOWS = ("pv", "storage", "grid", "load", "generator")

# Appendix I: the whole of a report, and one of its lines

REPORT = """
createdAt                report/{role}/measured_at              epoch
reportType               -                                      "{role}"
cumulative.currW         report/{role}/instantaneous_demand     number
cumulative.actPower      report/{role}/power                    number
cumulative.apprntPwr     report/{role}/apparent_power           number
cumulative.reactPwr      report/{role}/reactive_power           number
cumulative.whDivdCum     report/{role}/energy_delivered         number
cumulative.whRcvdCum     report/{role}/energy_received          number
cumulative.varhLagCum    report/{role}/reactive_energy_lagging  number
cumulative.varhLeadCum   report/{role}/reactive_energy_leading  number
cumulative.vahCum        report/{role}/apparent_energy          number
cumulative.rmsVoltage    [report/{role}/voltage]                number
cumulative.rmsCurrent    [report/{role}/current]                number
cumulative.pwrFactor     [report/{role}/power_factor]           number
cumulative.freqHz        report/{role}/frequency                number
"""
LINE = """
lines.{index}.currW         report/{role}/{phase}/instantaneous_demand     number
lines.{index}.actPower      report/{role}/{phase}/power                    number
lines.{index}.apprntPwr     report/{role}/{phase}/apparent_power           number
lines.{index}.reactPwr      report/{role}/{phase}/reactive_power           number
lines.{index}.whDivdCum     report/{role}/{phase}/energy_delivered         number
lines.{index}.whRcvdCum     report/{role}/{phase}/energy_received          number
lines.{index}.varhLagCum    report/{role}/{phase}/reactive_energy_lagging  number
lines.{index}.varhLeadCum   report/{role}/{phase}/reactive_energy_leading  number
lines.{index}.vahCum        report/{role}/{phase}/apparent_energy          number
lines.{index}.rmsVoltage    report/{role}/{phase}/voltage                  number
lines.{index}.rmsCurrent    report/{role}/{phase}/current                  number
lines.{index}.pwrFactor     report/{role}/{phase}/power_factor             number
lines.{index}.freqHz        report/{role}/{phase}/frequency                number
"""

# Appendix J

GRID = """
0.channels.{index}.phase           -                                   "{name}"
0.channels.{index}.activePower     report/grid/{phase}/power           number
0.channels.{index}.reactivePower   report/grid/{phase}/reactive_power  number
0.channels.{index}.voltage         report/grid/{phase}/voltage         number
0.channels.{index}.current         report/grid/{phase}/current         number
0.channels.{index}.freq            report/grid/{phase}/frequency       number
"""


@dataclass(frozen=True)
class Field:
    """One field of an answer: its place, the topic that it becomes, and a sample that no other field has."""

    path: str
    topic: str
    single: bool
    wire: Any
    payload: str


def decimal(value: Decimal) -> str:
    return format(value.normalize(), "f")


def sample(kind: str, number: int) -> tuple[Any, str]:
    """A wire value and the payload that it must become; each number makes a different one."""
    exact = Decimal(f"{1000 + number}.{number % 1000:03d}")
    moment = 1_654_000_000 + 61 * number
    if kind in {"number", "milli"}:
        return (float(exact) if kind == "number" else int(exact * 1000)), decimal(exact)
    if "->" in kind or kind[0] in '"0123456789':
        wire, _, payload = kind.partition("->")
        return json.loads(wire), payload
    return {
        "integer": (2000 + number, str(2000 + number)),
        "epoch": (moment, time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(moment))),
        "text": (f"Text {number}", f"Text {number}"),
        "lower": (f"State-{number}", f"state-{number}"),
        "list": ([f"flag-{number}", f"other-{number}"], f"flag-{number},other-{number}"),
    }[kind]


def fields(*tables: str, start: int = 1) -> list[Field]:
    """The fields of one answer, with a sample for each."""
    number = count(start)
    return [
        Field(path, topic.strip("[]"), topic.startswith("["), *sample(kind, next(number)))
        for table in tables
        for path, topic, kind in (line.split(maxsplit=2) for line in table.strip().splitlines())
    ]


def answer(given: list[Field]) -> Any:
    """The answer that contains these fields. A step of a path that is a number is an index of a list."""
    found: dict[str, Any] = {}
    for item in given:
        place = found
        *steps, last = item.path.split(".")
        for step in steps:
            place = place.setdefault(step, {})
        place[last] = item.wire
    return lists(found)


def lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    items = {key: lists(item) for key, item in value.items()}
    return list(items.values()) if items and all(key.isdigit() for key in items) else items


def payloads(given: list[Field], *, several: bool = False) -> dict[str, str]:
    """The expected payloads. Fields that mean nothing for several phases have no topic there."""
    return {item.topic: item.payload for item in given if item.topic != "-" and not (several and item.single)}


def wires(given: list[Field], ending: str) -> list[float]:
    return [item.wire for item in given if item.path.endswith(ending)]


def mean(numbers: list[float]) -> str:
    exact = sum(map(Decimal, map(str, numbers)), Decimal())
    return decimal((exact / len(numbers)).quantize(Decimal("0.001")))


def total(numbers: list[float]) -> str:
    return decimal(Decimal(str(round(sum(numbers), 3))))


PHASES = ("l1", "l2", "l3")


def meters() -> list[Field]:
    roles = enumerate(("production", "net-consumption"))
    return fields(*(METER.format(place=place, role=role) for place, role in roles))


def readings(phases: int) -> list[Field]:
    """The three meters of the sample, whose order in `/ivp/meters/readings` is not that of `/ivp/meters`."""
    eids = {"production": 704643328, "net-consumption": 704643584, "storage": 704643840}
    tables = []
    for place, (role, eid) in enumerate(eids.items()):
        tables.append(WHOLE.format(place=place, role=role, eid=eid))
        channels = [
            CHANNEL.format(place=place, role=role, index=index, phase=phase)
            for index, phase in enumerate(PHASES[:phases])
        ]
        tables += channels if phases > 1 else []
    return fields(*tables)


def production() -> list[Field]:
    return fields(PRODUCTION.format(path="", name="production"))


def energy() -> list[Field]:
    return fields(*(PRODUCTION.format(path=f"{side}.{name}.", name=f"{side}-{name}") for side, name in SIDES))


def inverters() -> list[Field]:
    return fields(*(INVERTER.format(place=place, serial=f"12193514467{place}") for place in range(3)))


def live() -> list[Field]:
    return fields(LIVE, *(FLOW.format(flow=flow) for flow in FLOWS))


def report(role: str, phases: int, start: int = 1) -> list[Field]:
    lines = [LINE.format(role=role, index=index, phase=phase) for index, phase in enumerate(PHASES[:phases])]
    return fields(REPORT.format(role=role), *(lines if phases > 1 else []), start=start)


def grid() -> list[Field]:
    return fields(*(GRID.format(index=index, name=f"L{index + 1}", phase=PHASES[index]) for index in range(3)))


def xml(given: list[Field]) -> bytes:
    """Appendix A as a gateway sends it, with samples for the packages."""

    def element(name: str, value: Any) -> str:
        inner = "".join(element(*item) for item in value.items()) if isinstance(value, dict) else str(value)
        return f"<{name}>{inner}</{name}>\n"

    packages = "".join(
        f'<package name="{name}">' + "".join(element(key, f"{name}-{key}") for key in PACKAGE) + "</package>\n"
        for name in PACKAGES
    )
    content = "".join(element(*item) for item in answer(given).items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<envoy_info>\n{content}{packages}</envoy_info>'.encode()


# The tests: one for each appendix, and both shapes where the brief and real gateways differ


def test_a_system_information() -> None:
    given = fields(INFO)
    messages = publish("info", parse("info", xml(given), UNKNOWN).readings)
    document = documents_of(messages)["gateway"]

    assert values_of(messages) == payloads(given) == flat({"gateway": document})
    assert document["packages"] == {
        package: {name: f"{package}-{wire}" for wire, name in PACKAGE.items()} for package in PACKAGES
    }


def test_b_provisioned_devices() -> None:
    given = fields(DEVICES)
    assert values("device_list", answer(given)) == payloads(given)


@pytest.mark.parametrize(("wire", "payload"), [(False, "OFF"), (True, "ON"), ("false", "OFF"), ("true", "ON")])
def test_b_auto_scan_is_a_boolean_or_a_text(wire: object, payload: str) -> None:
    found = values("device_list", {"usb": {"ck2_bridge": "connected", "auto_scan": wire}, "devices": []})
    assert found == {"gateway/comms_bridge": "connected", "gateway/auto_scan": payload}


def test_b_the_status_may_be_left_out() -> None:
    given = [item for item in fields(DEVICES) if not item.path.endswith("status")]
    assert values("device_list", answer(given)) == payloads(given)


def test_b_a_real_list() -> None:
    """An answer of firmware 8.2.62, with a comms kit (type 22), and devices without `dev_info` or an interface
    name.
    """
    kit = {"serial_number": "122302001234", "device_type": 22, "com_interface": 1, "com_interface_str": "USB"}
    battery = {"serial_number": 122302005678, "device_type": 13, "com_interface": 2, "status": "connected"}
    found = values(
        "device_list",
        {
            "usb": {"ck2_bridge": "connected", "auto_scan": False},
            "devices": [
                {**kit, "status": "connected"},
                {**battery, "com_interface_str": "CAN", "dev_info": {"capacity": 5000, "DER_Index": 2}},
                {"serial_number": "482303009999", "device_type": 17, "com_interface": 3},
            ],
        },
    )
    assert found == {
        "gateway/comms_bridge": "connected",
        "gateway/auto_scan": "OFF",
        "device/122302001234/type": "22",
        "device/122302001234/interface": "1",
        "device/122302001234/connection": "USB",
        "device/122302001234/status": "connected",
        "battery/122302005678/type": "battery",
        "battery/122302005678/interface": "2",
        "battery/122302005678/connection": "CAN",
        "battery/122302005678/status": "connected",
        "battery/122302005678/capacity": "5000",
        "battery/122302005678/phase": "l2",
        "controller/482303009999/type": "controller",
        "controller/482303009999/interface": "3",
    }


def test_c_meters() -> None:
    given = meters()
    assert values("meters", answer(given), UNKNOWN) == payloads(given)


def test_c_a_single_meter_that_is_no_list() -> None:
    """The brief shows objects without the brackets of a list."""
    given = fields(METER.format(place=0, role="production"))
    assert values("meters", answer(given)[0], UNKNOWN) == payloads(given)


ROLES = ("production", "net-consumption", "storage")


def today(device: str, count: int) -> dict[str, str]:
    """The energies of today of phases, which the bridge counts from the values of this answer."""
    return {f"{device}/l{phase}/energy_today": "None" for phase in range(1, count + 1)}


def test_d_readings_of_three_phases() -> None:
    given = readings(3)
    expected = payloads(given, several=True)
    for place, role in enumerate(ROLES):
        channels = [item for item in given if item.path.startswith(f"{place}.channels.")]
        expected[f"meter/{role}/voltage"] = mean(wires(channels, ".voltage"))

    assert values("readings", answer(given), home(3, ROLES)) == expected | today("meter/production", 3)


def test_d_readings_of_a_split_phase_home() -> None:
    """The sample's home, whose third channel is not used."""
    given = readings(3)
    expected = {topic: payload for topic, payload in payloads(given, several=True).items() if "/l3/" not in topic}
    for place, role in enumerate(ROLES):
        channels = [item for item in given if item.path.startswith((f"{place}.channels.0", f"{place}.channels.1"))]
        expected[f"meter/{role}/voltage"] = total(wires(channels, ".voltage"))

    assert values("readings", answer(given), home(2, ROLES)) == expected | today("meter/production", 2)


def test_d_readings_of_a_single_phase() -> None:
    """A home with one phase, whose values are those of the whole device."""
    given = readings(3)
    expected = {topic: payload for topic, payload in payloads(given).items() if topic.count("/") == 2}

    assert values("readings", answer(given), home(1, ROLES)) == expected
    assert expected.keys() == payloads(readings(1)).keys()


def test_d_a_single_meter_that_is_no_list() -> None:
    given = fields(WHOLE.format(place=0, role="production", eid=704643328))
    assert values("readings", answer(given)[0], SINGLE) == payloads(given)


def test_e_production() -> None:
    given = production()
    assert values("production", answer(given)) == payloads(given)


def test_f_energy() -> None:
    given = energy()
    assert values("energy", answer(given)) == payloads(given)


def test_g_inverters() -> None:
    given = inverters()
    expected = payloads(given)
    for place in range(3):
        expected[f"inverter/12193514467{place}/reporting"] = "OFF"
    expected |= {"gateway/inverters_total": "3", "gateway/inverters_reporting": "0"}

    assert values("inverters", answer(given)) == expected


def test_g_a_single_inverter_that_is_no_list() -> None:
    given = fields(INVERTER.format(place=0, serial="121935144671"))
    found = values("inverters", answer(given)[0])
    assert payloads(given).items() <= found.items()
    assert found["gateway/inverters_total"] == "1"


def test_h_live_data_of_three_phases() -> None:
    given = live()
    assert values("livedata", answer(given)) == payloads(given) | {"live/system/stream": "enabled"}


def without_phases(found: Mapping[str, str], *phases: str) -> dict[str, str]:
    return {
        topic: payload for topic, payload in found.items() if not any(f"/{phase}/" in topic for phase in phases)
    }


def test_h_live_data_of_other_homes() -> None:
    given, expected = live(), payloads(live()) | {"live/system/stream": "enabled"}

    assert values("livedata", answer(given), SPLIT) == without_phases(expected, "l3")
    assert values("livedata", answer(given), SINGLE) == without_phases(expected, *PHASES)


def test_h_the_phases_of_the_sample() -> None:
    """The sample has split phase and a phase count of 0. Without meters, only its fields tell the phases."""
    given = [item for item in live() if item.path != "meters.phase_count"]
    given += fields("meters.phase_count live/system/phase_count 0->0")
    expected = without_phases(payloads(given) | {"live/system/stream": "enabled"}, "l3")

    assert values("livedata", answer(given), NO_METERS) == expected


def test_h_old_firmware() -> None:
    """A real answer of firmware 7, without phases, sums of the batteries and kind of grid."""
    found = values(
        "livedata",
        {
            "connection": {"mqtt_state": "connected", "auth_state": "ok", "sc_stream": "enabled"},
            "meters": {
                "last_update": 1686081089,
                "soc": 7,
                "main_relay_state": 1,
                "gen_relay_state": 5,
                "backup_bat_mode": 3,
                "backup_soc": 9,
                "pv": {"agg_p_mw": 29212, "agg_s_mva": 248309},
                "storage": {"agg_p_mw": 0, "agg_s_mva": -1},
                "grid": {"agg_p_mw": 340582, "agg_s_mva": 934790},
                "load": {"agg_p_mw": 369794, "agg_s_mva": 1183099},
                "generator": {"agg_p_mw": 4, "agg_s_mva": 400},
            },
            "tasks": {"task_id": 1813978567, "timestamp": 1685743309},
            "counters": {"main_CfgLoad": 1, "rest_Status": 71872},
        },
        THREE,
    )
    assert found == {
        "live/connection/mqtt_state": "connected",
        "live/connection/auth_state": "ok",
        "live/connection/sc_stream": "enabled",
        "live/system/stream": "enabled",
        "live/system/measured_at": "2023-06-06T19:51:29+00:00",
        "live/system/main_relay": "1",
        "live/system/generator_relay": "5",
        "live/storage/soc": "7",
        "live/storage/backup_soc": "9",
        "live/storage/backup_mode": "3",
        "live/pv/power": "29.212",
        "live/pv/apparent_power": "248.309",
        "live/storage/power": "0",
        "live/storage/apparent_power": "-0.001",
        "live/grid/power": "340.582",
        "live/grid/apparent_power": "934.79",
        "live/load/power": "369.794",
        "live/load/apparent_power": "1183.099",
        "live/generator/power": "0.004",
        "live/generator/apparent_power": "0.4",
        "live/tasks/task_id": "1813978567",
        "live/tasks/timestamp": "2023-06-02T22:01:49+00:00",
        "live/counters/main_cfgload": "1",
        "live/counters/rest_status": "71872",
    }


def consumption(role: str, phases: int, start: int = 1) -> tuple[Any, dict[str, str]]:
    """One report, and the values that it must become."""
    given = report(role, phases, start)
    expected = payloads(given, several=phases > 1)
    voltages = wires([item for item in given if item.path.startswith("lines.")], ".rmsVoltage")
    if phases > 1:
        expected[f"report/{role}/voltage"] = total(voltages) if phases == 2 else mean(voltages)
    return answer(given), expected


@pytest.mark.parametrize(("phases", "facts"), [(1, SINGLE), (2, SPLIT), (3, THREE)])
def test_i_one_report(phases: int, facts: Facts) -> None:
    """The brief shows one object."""
    given, expected = consumption("net-consumption", phases)
    assert values("consumption", given, facts) == expected


@pytest.mark.parametrize("turned", [False, True])
def test_i_two_reports_in_either_order(turned: bool) -> None:
    """Real gateways send an array of two; their order differs by firmware."""
    net, net_topics = consumption("net-consumption", 3)
    whole, whole_topics = consumption("total-consumption", 3, start=100)
    both = [whole, net] if turned else [net, whole]

    counted = today("report/total-consumption", 3)
    assert values("consumption", both) == net_topics | whole_topics | counted


@pytest.mark.parametrize("phases", [1, 3])
def test_i_energy_delivered_has_two_spellings(phases: int) -> None:
    given, expected = consumption("net-consumption", phases)
    real = json.loads(json.dumps(given).replace("whDivdCum", "whDlvdCum"))
    assert real != given

    assert values("consumption", real, home(phases)) == expected


def test_j_grid_of_three_phases() -> None:
    given = grid()
    expected = payloads(given)
    expected["report/grid/power"] = total(wires(given, ".activePower"))
    expected["report/grid/reactive_power"] = total(wires(given, ".reactivePower"))

    assert values("grid", answer(given)) == expected


def test_j_grid_of_a_split_phase_home() -> None:
    given = grid()
    expected = without_phases(payloads(given), "l3")
    expected["report/grid/power"] = total(wires(given, ".activePower")[:2])
    expected["report/grid/reactive_power"] = total(wires(given, ".reactivePower")[:2])

    assert values("grid", answer(given), SPLIT) == expected


def test_j_grid_of_a_single_phase() -> None:
    """The first channel is the device. The other two contain noise."""
    expected = {
        topic.replace("/l1/", "/"): payload for topic, payload in payloads(grid()).items() if "/l1/" in topic
    }
    assert len(expected) == 5

    assert values("grid", answer(grid()), SINGLE) == expected


# The tables themselves: is anything missing?

TABLES = {
    "A": fields(INFO),
    "B": fields(DEVICES),
    "C": meters(),
    "D": readings(3),
    "E": production(),
    "F": energy(),
    "G": inverters(),
    "H": live(),
    "I": report("net-consumption", 3),
    "J": grid(),
}
STRUCTURE = {
    "A": {"envoy_info", "device", "package", "build_info"},
    "B": {"usb", "devices", "dev_info"},
    "D": {"channels"},
    "F": {"production", "consumption", "pcu", "rgm", "eim"},
    "H": {"connection", "meters", "tasks", "counters", *FLOWS},
    "I": {"cumulative", "lines"},
    "J": {"channels"},
}
"""Names that only contain other fields."""


def test_every_endpoint_of_the_brief_is_in_the_table() -> None:
    assert {endpoint.appendix: endpoint.path for endpoint in ENDPOINTS if endpoint.appendix} == {
        "A": "/info",
        "B": "/ivp/ensemble/device_list",
        "C": "/ivp/meters",
        "D": "/ivp/meters/readings",
        "E": "/api/v1/production",
        "F": "/ivp/pdm/energy",
        "G": "/api/v1/production/inverters",
        "H": "/ivp/livedata/status",
        "I": "/ivp/meters/reports/consumption",
        "J": "/ivp/meters/gridReading",
    }


@pytest.mark.parametrize("appendix", TABLES)
def test_a_swap_would_show(appendix: str) -> None:
    """All fields of an answer have different samples, except the few with a fixed one."""
    given = [
        item for item in TABLES[appendix] if len(item.payload) > 3 and item.payload not in {"split", "enabled"}
    ]
    assert len({item.payload for item in given}) == len(given) >= 4
    assert len({item.topic for item in TABLES[appendix] if item.topic != "-"}) == len(
        [item for item in TABLES[appendix] if item.topic != "-"]
    )


def sections(text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^## ", text, flags=re.MULTILINE):
        if match := re.match(r"Appendix ([A-J])\b", part):
            yield match[1], part


@pytest.mark.skipif(not BRIEF.is_file(), reason="Enphase's brief is not here (it is not part of the project)")
@pytest.mark.parametrize("appendix", TABLES)
def test_nothing_of_the_brief_is_left_out(appendix: str) -> None:
    """Our tables have all names of the brief's text, and no others."""
    text = dict(sections(BRIEF.read_text(encoding="utf-8", errors="replace")))[appendix]
    names = set(re.findall(r'(?<![\w-])([A-Za-z]\w*)"?: ?[-\d"\[{]', text)) | set(
        re.findall(r"<([a-z][\w-]*)", text)
    )
    ours = {item.path.rpartition(".")[2] for item in TABLES[appendix]} | STRUCTURE.get(appendix, set())
    ours |= set(PACKAGE) if appendix == "A" else set()

    assert names == ours
    path = next(endpoint.path for endpoint in ENDPOINTS if endpoint.appendix == appendix)
    assert re.search(rf"^GET https:\S*.*\}}{re.escape(path)}$", text.replace("\\_", "_"), re.MULTILINE)


@pytest.mark.skipif(not BRIEF.is_file(), reason="Enphase's brief is not here (it is not part of the project)")
def test_no_package_of_the_brief_is_left_out() -> None:
    text = dict(sections(BRIEF.read_text(encoding="utf-8", errors="replace")))["A"]
    assert re.findall(r'<package name="(\w+)"', text) == PACKAGES
