"""`/ivp/pdm/device_data`: the last report of each microinverter."""

import json
from typing import Any

import pytest
from samples import (
    NOW,
    SERIAL,
    SINGLE,
    UNKNOWN,
    changed,
    channel,
    details,
    documents_of,
    feed,
    known,
    parse,
    publish,
    tree,
    values,
    values_of,
    without,
)

from bridge.discovery import DiscoveryOptions, announce
from bridge.discovery.devices import AnnouncedGateway
from bridge.model import BadAnswer, Input
from bridge.topics import Names

COUNTS = {"deviceCount": 17, "deviceDataLimit": 50}
EIM = {"devName": "eim", "sn": f"{SERIAL}EIM1", "active": True, "modGone": True, "channels": [channel(7)]}
RELAY = {"devName": "nsrb", "sn": "121917000001", "channels": []}
FIRST = "553648384.channels.0"


def answer(*units: dict[str, Any]) -> dict[str, Any]:
    return {str(553648384 + 256 * place): unit for place, unit in enumerate(units)} | COUNTS


def of(serial: str, found: dict[str, str]) -> dict[str, str]:
    prefix = f"inverter/{serial}/"
    return {topic.removeprefix(prefix): text for topic, text in found.items() if topic.startswith(prefix)}


def test_a_unit() -> None:
    assert values("device_data", answer(details("7"))) == {
        "inverter/7/active": "ON",
        "inverter/7/module_gone": "OFF",
        "inverter/7/power": "255",
        "inverter/7/max_power": "371",
        "inverter/7/last_report": "2025-11-22T08:25:40+00:00",
        "inverter/7/last_report_duration": "903",
        "inverter/7/last_report_energy": "64",
        "inverter/7/ac_voltage": "248.156",
        "inverter/7/ac_current": "1.049",
        "inverter/7/frequency": "50.013",
        "inverter/7/temperature": "38",
        "inverter/7/energy_today": "1239",
        "inverter/7/energy_yesterday": "455",
        "inverter/7/energy_7d": "7466",
        "inverter/7/energy_lifetime": "98411.625",
        "inverter/7/reporting": "ON",
        "inverter/7/c1/dc_voltage": "32.363",
        "inverter/7/c1/dc_current": "8.078",
    }


def test_a_unit_with_two_inputs() -> None:
    """Each input has the values of its own module. The unit has sums, highest values, and what is common."""
    found = of("7", values("device_data", answer(details("7", inputs=2))))
    assert found == {
        "active": "ON",
        "module_gone": "OFF",
        "power": "610",
        "max_power": "842",
        "last_report": "2025-11-22T08:25:40+00:00",
        "last_report_duration": "1003",
        "last_report_energy": "153",
        "ac_voltage": "248.156",
        "ac_current": "2.198",
        "frequency": "50.013",
        "temperature": "138",
        "energy_today": "2578",
        "energy_yesterday": "1010",
        "energy_7d": "15032",
        "energy_lifetime": "196824.25",
        "reporting": "ON",
        "c1/power": "255",
        "c1/dc_voltage": "32.363",
        "c1/dc_current": "8.078",
        "c1/temperature": "38",
        "c2/power": "355",
        "c2/dc_voltage": "32.463",
        "c2/dc_current": "8.178",
        "c2/temperature": "138",
        "c1/energy_lifetime": "98411.625",
        "c2/energy_lifetime": "98412.625",
    }


def test_meters_and_relays_are_no_inverters() -> None:
    found = values("device_data", answer(EIM, RELAY, details("7")))
    assert {topic.split("/")[1] for topic in found} == {"7"}
    assert parse("device_data", answer(EIM, RELAY, details("7"))).problems == ()


def test_an_ac_battery_stands_among_the_inverters() -> None:
    """As in the brief's endpoint. Its power is not production, and it has no energy of today."""
    pack = changed(channel(), "lastReading", lambda given: {**given, "SOC": 42, "SOH": 86})
    pack = changed(pack, "lifetime", lambda given: {**given, "joulesUsed": 360_000_000})
    found = of("8", values("device_data", answer(details("8", devName="acb", channels=[pack]))))
    assert {name: found[name] for name in ("soc", "energy_discharged", "energy_charged", "temperature")} == {
        "soc": "42",
        "energy_discharged": "98411.625",
        "energy_charged": "100000",
        "temperature": "38",
    }
    assert found["c1/dc_voltage"] == "32.363"
    assert not {name for name in found if name in {"energy_today", "energy_lifetime", "last_report_energy"}}


@pytest.mark.parametrize("given", [COUNTS, answer(EIM), {"deviceCount": 0}])
def test_a_gateway_without_microinverters_says_so(given: dict[str, Any]) -> None:
    assert parse("device_data", given).readings == ()


@pytest.mark.parametrize(
    "given", [b"", b"<html>", [], 5, {}, {"error": "x"}, {"error": {"code": 5}}, {"status": 401, "moreInfo": "x"}]
)
def test_what_is_no_answer_is_refused(given: object) -> None:
    with pytest.raises(BadAnswer):
        parse("device_data", given)


@pytest.mark.parametrize(
    "bad", [None, 5, "text", [], {}, {"devName": "pcu"}, {"sn": "1"}, details(True), details("")]
)
def test_a_bad_unit_costs_only_itself(bad: object) -> None:
    good = answer(details("7"))
    assert values("device_data", {"1": bad, **good, "2": bad}) == values("device_data", good)


@pytest.mark.parametrize("bad", [None, 5, [], {"watts": 5}, "text"])
def test_a_bad_channel_does_not_move_the_other(bad: object) -> None:
    found = of("7", values("device_data", answer(details("7", channels=[bad, channel(1)]))))
    assert found["c2/dc_voltage"] == "32.364"
    assert not any(name.startswith("c1/") for name in found)
    assert found["power"] == "256"


# Answers as real gateways give them


def test_an_input_without_a_module_has_empty_objects() -> None:
    nothing = {"today": 0, "yesterday": 0, "week": 0}
    empty = {"created": 0, "wattHours": nothing, "watts": {"now": 0, "max": 0}, "lastReading": {}, "lifetime": {}}
    one = of("7", values("device_data", answer(details("7"))))
    assert of("7", values("device_data", answer(details("7", channels=[channel(), empty])))) == one

    never = of("7", values("device_data", answer(details("7", channels=[empty, empty], active=False))))
    assert never == {
        "active": "OFF",
        "module_gone": "OFF",
        "power": "0",
        "max_power": "0",
        "reporting": "OFF",
        "energy_today": "0",
        "energy_yesterday": "0",
        "energy_7d": "0",
        "c1/power": "0",
        "c2/power": "0",
    }


def test_a_unit_at_dusk_keeps_its_last_report() -> None:
    """Firmware 8.3.5169: `modGone`, no energy, and a report whose interval was 13 seconds."""
    dark = changed(answer(details("7", modGone=True)), f"{FIRST}.lastReading.duration", lambda _: 0)
    dark = changed(dark, f"{FIRST}.lastReading.joulesProduced", lambda _: 0)
    found = of("7", values("device_data", dark, now=NOW + 7200))
    assert (found["module_gone"], found["reporting"]) == ("ON", "OFF")
    assert (found["last_report_duration"], found["last_report_energy"]) == ("0", "0")
    assert (found["ac_voltage"], found["energy_lifetime"]) == ("248.156", "98411.625")


@pytest.mark.parametrize(
    ("field", "wire", "name", "payload"),
    [
        ("watts.now", 4294967292, "power", "-4"),
        ("lastReading.dcCurrentINmA", 4294967290, "c1/dc_current", "-0.006"),
        ("lastReading.acCurrentInmA", 4294967290, "ac_current", "-0.006"),
        ("lastReading.channelTemp", 4294967285, "temperature", "-11"),
        ("lastReading.channelTemp", -11, "temperature", "-11"),
        ("lastReading.joulesProduced", 4294963696, "last_report_energy", "-1"),
        ("lifetime.joulesProduced", 2**31, "energy_lifetime", "596523.236"),
        ("lifetime.joulesProduced", 2**32 - 1, "energy_lifetime", "1193046.471"),
        ("lifetime.joulesProduced", None, "energy_lifetime", "None"),
        ("lastReading.endDate", 0, "last_report", "None"),
    ],
)
def test_values_of_32_bits(field: str, wire: object, name: str, payload: str) -> None:
    """A lifetime above 2^31 J is not a small negative number, but half of the counter's range."""
    found = of("7", values("device_data", changed(answer(details("7")), f"{FIRST}.{field}", lambda _: wire)))
    assert found[name] == payload


@pytest.mark.parametrize("part", ["lastReading", "lifetime", "watts", "wattHours"])
def test_what_is_not_given_has_no_topic(part: str) -> None:
    whole = of("7", values("device_data", answer(details("7"))))
    found = of("7", values("device_data", without(answer(details("7")), f"{FIRST}.{part}")))
    lost = whole.items() - found.items()
    assert found.items() - whole.items() == ({("reporting", "OFF")} if part == "lastReading" else set())
    assert len(lost) >= (3 if part == "wattHours" else 1)


def test_the_clock_that_counts_is_the_gateways() -> None:
    slow = known(SINGLE, clock_offset=-7200.0)
    late = details("7", channels=[changed(channel(), "lastReading.endDate", lambda at: at - 7200)])
    assert of("7", values("device_data", answer(late)))["reporting"] == "OFF"
    assert of("7", values("device_data", answer(late), slow))["reporting"] == "ON"


# Beside `/api/v1/production/inverters`

OTHER = [
    {
        "serialNumber": serial,
        "lastReportDate": int(NOW) - 5,
        "devType": 1,
        "lastReportWatts": 11,
        "maxReportWatts": 12,
    }
    for serial in ("7", "8")
]
SHARED = {"power", "max_power", "last_report", "reporting"}


@pytest.mark.parametrize("order", [("inverters", "device_data"), ("device_data", "inverters", "device_data")])
def test_what_both_name_is_the_inverters_own(order: tuple[str, ...]) -> None:
    """No value is lost: neither one that only one endpoint has, nor a unit that only one endpoint names."""
    given = {"inverters": OTHER, "device_data": answer(details("7"), details("9", 1))}
    into, found = tree(), dict[str, str]()
    documents: dict[str, Any] = {}
    for source in order:
        messages = publish(source, parse(source, given[source], UNKNOWN).readings, into)
        found |= values_of(messages)
        documents |= documents_of(messages)
    assert {name: found[f"inverter/7/{name}"] for name in ("power", "max_power")} == {
        "power": "11",
        "max_power": "12",
    }
    assert found["inverter/7/ac_voltage"] == "248.156"
    assert of("8", found).keys() == SHARED | {"type"}
    assert of("9", found)["power"] == "256"
    assert {row.source for row in into.rows if row.device == "inverter/7" and row.measurement.name in SHARED} == {
        "inverters"
    }
    assert (documents["inverter/7"]["power"], documents["inverter/7"]["temperature"]) == (11, 38)
    assert documents["inverter/7"]["c1"] == {"dc_voltage": 32.363, "dc_current": 8.078}


# Discovery


def announced(*units: dict[str, Any]) -> dict[str, Any]:
    into = tree()
    facts, _ = feed(into, {"inverters": OTHER, "device_data": answer(*units)})
    messages = announce(DiscoveryOptions(Names()), AnnouncedGateway(facts, "https://envoy.local"), into.rows)
    found = {message.topic.split("/")[2]: json.loads(message.payload) for message in messages}
    components: dict[str, Any] = found[f"iqgateway_{SERIAL}_inverter_7"]["components"]
    return components


def test_one_input_needs_no_number() -> None:
    found = announced(details("7"))
    assert found["c1_dc_voltage"] == {
        "platform": "sensor",
        "name": "DC voltage",
        "unique_id": f"iqgateway_{SERIAL}_inverter_7_c1_dc_voltage",
        "state_topic": f"enphase/{SERIAL}/inverter/7/c1/dc_voltage",
        "device_class": "voltage",
        "unit_of_measurement": "V",
        "state_class": "measurement",
        "suggested_display_precision": 1,
        "enabled_by_default": False,
    }


def test_several_inputs_are_numbered() -> None:
    found = announced(details("7", inputs=2))
    names = {key: found[key]["name"] for key in ("c1_dc_voltage", "c2_dc_current", "c2_power", "power")}
    assert names == {
        "c1_dc_voltage": "Input 1 DC voltage",
        "c2_dc_current": "Input 2 DC current",
        "c2_power": "Input 2 power",
        "power": "Power",
    }


def test_nothing_more_is_enabled_than_the_power() -> None:
    assert [key for key, item in announced(details("7", inputs=2)).items() if "enabled_by_default" not in item] == [
        "power"
    ]


@pytest.mark.parametrize(
    ("key", "name", "kind", "unit", "state_class"),
    [
        ("ac_voltage", "AC voltage", "voltage", "V", "measurement"),
        ("ac_current", "AC current", "current", "A", "measurement"),
        ("frequency", "Frequency", "frequency", "Hz", "measurement"),
        ("temperature", "Temperature", "temperature", "°C", "measurement"),
        ("energy_lifetime", "Energy produced", "energy", "kWh", "total_increasing"),
        ("energy_today", "Energy today", "energy", "kWh", "total_increasing"),
        ("energy_yesterday", "Energy yesterday", "energy", "kWh", None),
        ("last_report_duration", "Last report duration", "duration", "s", "measurement"),
        ("last_report_energy", "Energy since previous report", "energy", "kWh", None),
        ("max_power", "Highest power", "power", "W", "measurement"),
        ("last_report", "Last report", "timestamp", None, None),
    ],
)
def test_entities(key: str, name: str, kind: str, unit: str | None, state_class: str | None) -> None:
    found = announced(details("7"))[key]
    assert (found["name"], found["device_class"]) == (name, kind)
    assert (found.get("unit_of_measurement"), found.get("state_class")) == (unit, state_class)


def test_there_are_names_for_all_inputs() -> None:
    assert [place.label for place in Input] == ["Input 1", "Input 2", "Input 3", "Input 4"]
