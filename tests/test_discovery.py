"""Home Assistant's discovery must follow the contract exactly, since one wrong key costs a whole device."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import pytest
from samples import NOW, SERIAL, THREE, answers, feed, home, known, meter, publish, tree
from strict import ABSENT, check, entity_id

from bridge import __version__
from bridge.discovery import DiscoveryOptions, announce
from bridge.discovery.devices import AnnouncedDevice, AnnouncedGateway, device_name, entity_name
from bridge.model import Facts, Measurement, Phase, UnitFacts
from bridge.records import CHARGE, CONNECTIVITY, ENERGY, POWER, TEXT, measurement
from bridge.rows import Row
from bridge.service.publisher import DIAGNOSTICS_SOURCE, Diagnostics
from bridge.topics import Names

ID = f"iqgateway_{SERIAL}"
URL = "https://envoy.local"
BATTERY, INVERTER = "492300000001", "482200000001"
BRIDGE_TOPIC = "enphase/bridge/state"
OWN_ENTITIES = 2
"""Entities of a gateway that are no rows: its connection, and what happens."""


def gateway(facts: Facts = THREE, **options: Any) -> AnnouncedGateway:
    return AnnouncedGateway(facts, URL, **options)


def house(count: int = 3, *, batteries: int = 2, inverters: int = 20) -> tuple[Facts, list[Row]]:
    """The rows of a home, with the bridge's own diagnostics."""
    into = tree()
    facts, _ = feed(into, answers(count, inverters, batteries))
    known_ = Diagnostics(None, None, "owner", "ab:cd", None, 0.25, 3)
    publish(DIAGNOSTICS_SOURCE, list(known_.readings()), into)
    return facts, list(into.rows)


def announced(
    rows: Iterable[Row], about: AnnouncedGateway | None = None, form: str = "device", names: Names | None = None
) -> dict[str, dict[str, Any]]:
    """The announced devices, by the part of their id after the gateway's."""
    settings = DiscoveryOptions(names or Names(), form=form)
    messages = list(announce(settings, about or gateway(), rows))
    check(messages)
    bodies = ((message.topic.split("/")[2], json.loads(message.payload)) for message in messages)
    return {name.removeprefix(f"{ID}_"): body for name, body in bodies}


def row(
    device: str, name: str = "power", source: str = "readings", phase: Phase | None = None, **options: Any
) -> Row:
    quantity = options.pop("quantity", POWER)
    return Row(device, phase, measurement(name, quantity, **options), source)


@pytest.fixture(scope="module")
def devices() -> dict[str, dict[str, Any]]:
    """A three-phase home with 20 inverters and two batteries."""
    facts, rows = house()
    return announced(rows, gateway(facts))


# Devices


def test_which_devices_there_are(devices: dict[str, dict[str, Any]]) -> None:
    """There is a device for each serial number, and one for each group."""
    assert next(iter(devices)) == "gateway"
    assert sorted(devices) == sorted(
        [
            *("gateway", "meter_production", "meter_net-consumption", "energy", "live", "report"),
            *(f"inverter_4822{unit:08d}" for unit in range(1, 21)),
            *("battery_492300000001", "battery_492300000002", "controller_482303009999", "device_122302001234"),
            *("storage", "tariff_current", "relay_mains", "relay_nc1", "generator_1"),
        ]
    )


def test_the_gateway(devices: dict[str, dict[str, Any]]) -> None:
    assert devices["gateway"]["device"] == {
        "identifiers": [f"{ID}_gateway"],
        "name": "IQ Gateway",
        "manufacturer": "Enphase",
        "model": "IQ Gateway",
        "model_id": "800-00654-r06",
        "sw_version": "D8.3.5169",
        "hw_version": "r06",
        "serial_number": SERIAL,
        "configuration_url": URL,
    }
    assert devices["gateway"]["origin"]["name"] == "iqgateway2mqtt"
    assert devices["gateway"]["origin"]["sw_version"] == __version__


def test_a_gateway_whose_mac_address_is_known() -> None:
    """Home Assistant shows it as one device with that of other integrations."""
    facts = Facts(SERIAL, mac="00:1d:c0:7f:b6:3b")
    found = check(announce(DiscoveryOptions(Names()), gateway(facts), [row("meter/load")]))
    connections = {entity["device"]["name"]: entity["device"].get("connections") for entity in found.values()}
    assert connections == {"IQ Gateway": [["mac", "00:1d:c0:7f:b6:3b"]], "Load meter": None}


def test_a_gateway_of_which_little_is_known() -> None:
    about = announced([], gateway(Facts(SERIAL)))
    assert list(about) == ["gateway"]
    assert not {"sw_version", "hw_version", "model_id"} & about["gateway"]["device"].keys()
    assert list(about["gateway"]["components"]) == ["state", "events"]


def test_all_others_refer_to_the_gateway(devices: dict[str, dict[str, Any]]) -> None:
    for name, body in devices.items():
        assert body["device"].get("via_device") == (None if name == "gateway" else f"{ID}_gateway")
        assert ("configuration_url" in body["device"]) is (name == "gateway")


def versions(step: int) -> dict[str, str]:
    """What a unit of the inventory in `samples` tells of itself."""
    return {"model_id": f"836-{step:05d}-r32", "hw_version": "r32", "sw_version": f"2.0.{step}"}


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("meter_production", {"name": "Production meter", "model": "Current transformer"}),
        ("meter_net-consumption", {"name": "Net consumption meter", "model": "Current transformer"}),
        (
            f"inverter_{INVERTER}",
            {"name": f"Inverter {INVERTER}", "model": "Microinverter", "serial_number": INVERTER},
        ),
        (
            f"battery_{BATTERY}",
            {
                "name": f"Battery {BATTERY}",
                "model": "IQ Battery",
                "serial_number": BATTERY,
                **versions(1),
            },
        ),
        (
            "controller_482303009999",
            {
                "name": "Controller 482303009999",
                "model": "IQ System Controller",
                "serial_number": "482303009999",
                **versions(30),
            },
        ),
        (
            "device_122302001234",
            {"name": "Device 122302001234", "model": "Device", "serial_number": "122302001234"},
        ),
        ("energy", {"name": "Energy counters", "model": "Energy counters"}),
        ("live", {"name": "Live data", "model": "Live data"}),
        ("storage", {"name": "Storage", "model": "Storage"}),
        ("tariff_current", {"name": "Tariff", "model": "Tariff"}),
        ("relay_mains", {"name": "Grid relay", "model": "Relay"}),
        ("relay_nc1", {"name": "Pool", "model": "Dry contact NC1"}),
        ("generator_1", {"name": "Generator", "model": "Generator", "manufacturer": "Maker"}),
        ("report", {"name": "Meter reports", "model": "Meter reports"}),
    ],
)
def test_about_a_device(devices: dict[str, dict[str, Any]], name: str, about: dict[str, str]) -> None:
    rest = {"identifiers": [f"{ID}_{name}"], "manufacturer": "Enphase", "via_device": f"{ID}_gateway"}
    assert devices[name]["device"] == rest | about


def named(*names: str | None) -> list[str]:
    """What contacts are called that their owner has given these names."""
    units = {f"relay/c{place}": UnitFacts(name=name) for place, name in enumerate(names)}
    about = gateway(Facts(SERIAL, units=units), suffix="Barn")
    return [device_name(about, AnnouncedDevice(device, ())) for device in units]


def test_contacts_have_the_names_of_their_owner_but_no_two_devices_the_same() -> None:
    assert named("AC/Water heater", None) == ["AC/Water heater Barn", "Relay C1 Barn"]
    assert named("Pump", "pump") == ["Pump (Relay C0) Barn", "pump (Relay C1) Barn"]
    assert named("Production meter", "IQ gateway", "enphase", "Tariff") == [
        *("Production meter (Relay C0) Barn", "IQ gateway (Relay C1) Barn"),
        *("enphase (Relay C2) Barn", "Tariff (Relay C3) Barn"),
    ]


def test_contacts_without_a_load_are_disabled() -> None:
    units = {"relay/nc1": UnitFacts(name="Pump"), "relay/nc2": UnitFacts(is_used=False)}
    rows = [row(f"relay/{name}", "state", "dry_contacts", enabled=True) for name in ("nc1", "nc2", "no1")]
    found = announced(rows, gateway(Facts(SERIAL, units=units)))
    disabled = [name for name, body in found.items() if '"enabled_by_default": false' in json.dumps(body)]
    assert disabled == ["relay_nc2"]


def test_a_unit_tells_its_part_number_and_its_versions() -> None:
    units = {
        "battery/7": UnitFacts(part_number="830-00703-r67", firmware="2.0.5663_rel/22.13"),
        "generator/1": UnitFacts(maker="Generac", model="G007223-0 (14kW)"),
    }
    found = announced([row("battery/7"), row("generator/1")], gateway(Facts(SERIAL, units=units)))
    battery, generator = found["battery_7"]["device"], found["generator_1"]["device"]
    assert (battery["model"], battery["model_id"]) == ("IQ Battery", "830-00703-r67")
    assert (battery["sw_version"], battery["hw_version"]) == ("2.0.5663_rel/22.13", "r67")
    assert (generator["manufacturer"], generator["model"]) == ("Generac", "G007223-0 (14kW)")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("meter/total-consumption", "Total consumption meter"),
        ("meter/storage", "Storage meter"),
        ("meter/evse", "EV charger meter"),
        ("meter/pv3p", "Third-party PV meter"),
        ("meter/heat-pump", "Heat pump meter"),
        ("meter/production-2", "Production 2 meter"),
        ("site", "Enphase"),
    ],
)
def test_names_of_devices(device: str, name: str) -> None:
    assert device_name(gateway(), AnnouncedDevice(device, ())) == name


def test_several_gateways_are_told_apart() -> None:
    """Devices without a serial number in their name get the gateway's last digits or its name."""
    rows = [row("site/solar", source="site"), row("meter/load"), row("inverter/7", source="inverters")]
    rows += [
        row("live/pv", source="livedata"),
        row("energy/production", source="energy"),
        row("report/grid", source="grid"),
    ]
    first, second = (
        {name: body["device"]["name"] for name, body in announced(rows, about).items()}
        for about in (gateway(), gateway(site="Enphase 7699", suffix="7699"))
    )

    assert first == {
        "gateway": "IQ Gateway",
        "site": "Enphase",
        "meter_load": "Load meter",
        "inverter_7": "Inverter 7",
        "live": "Live data",
        "energy": "Energy counters",
        "report": "Meter reports",
    }
    assert second == {
        "gateway": "IQ Gateway 7699",
        "site": "Enphase 7699",
        "meter_load": "Load meter 7699",
        "inverter_7": "Inverter 7",
        "live": "Live data 7699",
        "energy": "Energy counters 7699",
        "report": "Meter reports 7699",
    }


def test_two_gateways_share_no_identity() -> None:
    facts, rows = house(inverters=0, batteries=0)
    rows = [item for item in rows if item.device.partition("/")[0] not in {"controller", "device"}]
    other = known(facts, serial="122125067700")
    one = check(announce(DiscoveryOptions(Names()), gateway(facts), rows))
    two = check(announce(DiscoveryOptions(Names()), gateway(other, site="Cabin", suffix="Cabin"), rows))

    assert len(one) == len(two) == len(rows) + OWN_ENTITIES
    assert not one.keys() & two.keys()
    for of in (itemgetter("state_topic"), entity_id):
        assert not set(map(of, one.values())) & set(map(of, two.values()))


def test_a_unit_of_another_gateway_leaves_the_usual_ids_to_that_one() -> None:
    """It is disabled, and its name has the serial number of the gateway that lists it without using it."""
    used, unused = (
        announced([row(f"inverter/{INVERTER}", "power", "inverters", enabled=True, unused=is_unused)])[
            f"inverter_{INVERTER}"
        ]
        for is_unused in (False, True)
    )
    assert (used["device"]["name"], unused["device"]["name"]) == (
        f"Inverter {INVERTER}",
        f"Inverter {INVERTER} ({SERIAL})",
    )
    shown, hidden = (body["components"]["power"] for body in (used, unused))
    assert (shown.get("enabled_by_default"), hidden["enabled_by_default"]) == (None, False)
    assert shown["unique_id"] == hidden["unique_id"]


def test_disabled_meters_are_not_announced() -> None:
    facts = known(THREE, meters=(meter("production"), meter("load", enabled=False)))
    rows = [row("meter/load", "eid", "meters"), row("meter/production", "eid", "meters"), row("meter/load")]
    assert list(announced(rows, gateway(facts))) == ["gateway", "meter_production"]


def test_a_device_that_two_endpoints_name_is_one() -> None:
    rows = [row("inverter/7", "power", "inverters"), row("inverter/7", "status", "device_list", quantity=TEXT)]
    assert list(announced(rows)["inverter_7"]["components"]) == ["power", "status"]


# Availability


@pytest.mark.parametrize(
    ("name", "topic"),
    [
        ("gateway", None),
        ("meter_production", "availability/readings"),
        (f"battery_{BATTERY}", "state"),
        ("tariff_current", "availability/tariff"),
        ("relay_nc1", "state"),
        (f"inverter_{INVERTER}", "availability/inverters"),
        ("device_122302001234", "availability/device_list"),
        ("live", "availability/livedata"),
        ("energy", "state"),
        ("report", "state"),
    ],
)
def test_availability(devices: dict[str, dict[str, Any]], name: str, topic: str | None) -> None:
    """The gateway's own device stays available, because it is needed most when the gateway is offline."""
    expected = [BRIDGE_TOPIC, *([f"enphase/{SERIAL}/{topic}"] if topic else [])]
    assert [item["topic"] for item in devices[name]["availability"]] == expected


@pytest.mark.parametrize(
    ("rows", "topic"),
    [
        ([row("site/solar", source="site")], "availability/site"),
        ([row("energy/production", source="production")], "availability/production"),
        ([row("report/grid", source="grid")], "availability/grid"),
        (
            [row("inverter/7", source="inverters"), row("inverter/7", "status", "device_list")],
            "availability/inverters",
        ),
        (
            [row("inverter/7", "temperature", "device_data"), row("inverter/7", source="inverters")],
            "availability/inverters",
        ),
        ([row("inverter/7", "temperature", "device_data")], "availability/device_data"),
        ([row("inverter/7", "temperature", "device_data"), row("inverter/7", "status", "device_list")], "state"),
        ([row("inverter/7", "status", "device_list")], "availability/device_list"),
        ([row("meter/load", "eid", "meters"), row("meter/load")], "availability/readings"),
        ([row("meter/load", "eid", "meters")], "availability/meters"),
    ],
)
def test_availability_goes_by_the_sources(rows: list[Row], topic: str) -> None:
    """A meter that is not read must not depend on a topic that nobody publishes."""
    _, body = announced(rows).values()
    assert [item["topic"] for item in body["availability"]] == [BRIDGE_TOPIC, f"enphase/{SERIAL}/{topic}"]


def test_an_instance_has_its_own_state() -> None:
    body = announced([row("meter/load")], names=Names("solar", "attic"))["meter_load"]
    assert [item["topic"] for item in body["availability"]] == [
        "solar/bridge/attic/state",
        f"solar/{SERIAL}/availability/readings",
    ]
    assert body["components"]["power"]["state_topic"] == f"solar/{SERIAL}/meter/load/power"


# Entities


def test_whether_the_gateway_answers_is_an_entity_of_its_own(devices: dict[str, dict[str, Any]]) -> None:
    assert devices["gateway"]["components"]["state"] == {
        "platform": "binary_sensor",
        "name": "Connection",
        "unique_id": f"{ID}_gateway_state",
        "state_topic": f"enphase/{SERIAL}/state",
        "payload_on": "online",
        "payload_off": "offline",
        "device_class": "connectivity",
        "entity_category": "diagnostic",
    }


def test_what_happens_is_an_entity_of_its_own(devices: dict[str, dict[str, Any]]) -> None:
    """The types are those of the contract, and one for the entries of the gateway's own list."""
    entity = devices["gateway"]["components"]["events"]
    assert (entity["platform"], entity["state_topic"]) == ("event", f"enphase/{SERIAL}/events")
    assert " ".join(sorted(entity["event_types"])) == (
        "battery_back battery_silent clamp_suspicious counter_held firmware_changed gateway_event "
        "gateway_restarted generator_started generator_stopped grid_back grid_lost inverter_back inverter_silent "
        "production_free production_limited token_expiring token_refused"
    )


@pytest.mark.parametrize(
    ("device", "key", "entity"),
    [
        (
            f"inverter_{INVERTER}",
            "power",
            {
                "platform": "sensor",
                "name": "Power",
                "unique_id": f"{ID}_inverter_{INVERTER}_power",
                "state_topic": f"enphase/{SERIAL}/inverter/{INVERTER}/power",
                "device_class": "power",
                "unit_of_measurement": "W",
                "state_class": "measurement",
                "suggested_display_precision": 0,
            },
        ),
        (
            "meter_net-consumption",
            "l2_voltage",
            {
                "platform": "sensor",
                "name": "L2 voltage",
                "unique_id": f"{ID}_meter_net-consumption_l2_voltage",
                "state_topic": f"enphase/{SERIAL}/meter/net-consumption/l2/voltage",
                "device_class": "voltage",
                "unit_of_measurement": "V",
                "state_class": "measurement",
                "suggested_display_precision": 1,
            },
        ),
        (
            "meter_production",
            "reactive_energy_lagging",
            {
                "platform": "sensor",
                "name": "Reactive energy lagging",
                "unique_id": f"{ID}_meter_production_reactive_energy_lagging",
                "state_topic": f"enphase/{SERIAL}/meter/production/reactive_energy_lagging",
                "icon": "mdi:sine-wave",
                "unit_of_measurement": "varh",
                "state_class": "total_increasing",
                "suggested_display_precision": 0,
                "enabled_by_default": False,
            },
        ),
        (
            "energy",
            "production_pcu_energy_7d",
            {
                "platform": "sensor",
                "name": "Microinverters energy last seven days",
                "unique_id": f"{ID}_energy_production-pcu_energy_7d",
                "state_topic": f"enphase/{SERIAL}/energy/production-pcu/energy_7d",
                "device_class": "energy",
                "unit_of_measurement": "kWh",
                "value_template": "{{ value if value == 'None' else (value | float / 1000) | round(6) }}",
                "suggested_display_precision": 2,
                "enabled_by_default": False,
            },
        ),
        (
            "report",
            "net_consumption_energy_received",
            {
                "platform": "sensor",
                "name": "Net consumption energy exported",
                "unique_id": f"{ID}_report_net-consumption_energy_received",
                "state_topic": f"enphase/{SERIAL}/report/net-consumption/energy_received",
                "device_class": "energy",
                "unit_of_measurement": "kWh",
                "value_template": "{{ value if value == 'None' else (value | float / 1000) | round(6) }}",
                "state_class": "total",
                "suggested_display_precision": 2,
                "enabled_by_default": False,
            },
        ),
        (
            "live",
            "system_measured_at",
            {
                "platform": "sensor",
                "name": "System measured at",
                "unique_id": f"{ID}_live_system_measured_at",
                "state_topic": f"enphase/{SERIAL}/live/system/measured_at",
                "device_class": "timestamp",
                "entity_category": "diagnostic",
                "enabled_by_default": False,
            },
        ),
        (
            "meter_production",
            "enabled",
            {
                "platform": "binary_sensor",
                "name": "Enabled",
                "unique_id": f"{ID}_meter_production_enabled",
                "state_topic": f"enphase/{SERIAL}/meter/production/enabled",
                "icon": "mdi:toggle-switch-outline",
                "entity_category": "diagnostic",
                "enabled_by_default": False,
            },
        ),
        (
            "gateway",
            "failures",
            {
                "platform": "sensor",
                "name": "Failures",
                "unique_id": f"{ID}_gateway_failures",
                "state_topic": f"enphase/{SERIAL}/gateway/failures",
                "icon": "mdi:alert-circle-outline",
                "state_class": "total_increasing",
                "suggested_display_precision": 0,
                "entity_category": "diagnostic",
                "enabled_by_default": False,
            },
        ),
    ],
)
def test_an_entity(devices: dict[str, dict[str, Any]], device: str, key: str, entity: dict[str, Any]) -> None:
    assert devices[device]["components"][key] == entity


def test_names_of_a_three_phase_meter(devices: dict[str, dict[str, Any]]) -> None:
    """Names are words for people, without the device's name."""
    phase = [
        *(
            "Power",
            "Instantaneous demand",
            "Apparent power",
            "Reactive power",
            "Power factor",
            "Voltage",
            "Current",
        ),
        *("Frequency", "Energy imported", "Energy exported", "Apparent energy", "Reactive energy lagging"),
        *("Reactive energy leading", "Measured at"),
    ]
    whole = [name for name in phase if name not in {"Power factor", "Current"}]
    own = ["ID", "Enabled", "Metering status", "Status flags", "Phase mode", "Phase count"]
    lines = [f"L{line} {name.lower()}" for line in (1, 2, 3) for name in ["Channel id", *phase]]

    names = [item["name"] for item in devices["meter_net-consumption"]["components"].values()]
    assert sorted(names) == sorted([*own, *whole, *lines])
    assert len(names) == 63


@pytest.mark.parametrize(
    ("device", "name", "phase", "expected"),
    [
        ("meter/production", "energy_delivered", None, "Energy produced"),
        ("meter/production", "energy_received", None, "Standby energy"),
        ("meter/net-consumption", "energy_delivered", Phase.L1, "L1 energy imported"),
        ("meter/storage", "energy_delivered", None, "Energy discharged"),
        ("meter/storage", "energy_received", None, "Energy charged"),
        ("meter/total-consumption", "energy_delivered", None, "Energy consumed"),
        ("meter/total-consumption", "energy_received", None, "Energy returned"),
        ("meter/load", "energy_delivered", None, "Energy delivered"),
        ("report/total-consumption", "energy_delivered", Phase.L3, "Total consumption L3 energy consumed"),
        ("report/grid", "power", Phase.L2, "Grid L2 power"),
        ("live/pv", "power", None, "PV power"),
        ("live/pv", "apparent_power", Phase.L1, "PV L1 apparent power"),
        ("live/storage", "soc", None, "Storage soc"),
        ("site/solar", "power", None, "Solar power"),
        ("energy/production-eim", "power", None, "Production meter power"),
        ("energy/production", "power", None, "Production power"),
        ("inverter/7", "max_power", None, "Max power"),
        ("gateway", "token_expires", None, "Token expires"),
    ],
)
def test_names_of_entities(device: str, name: str, phase: Phase | None, expected: str) -> None:
    assert entity_name(row(device, name, phase=phase)) == expected


def test_labels_speak_for_themselves() -> None:
    about = row("gateway", "euaid", label="EUA id"), row("live/storage", "encharge_soc", label="IQ Battery charge")
    assert [entity_name(item) for item in about] == ["EUA id", "Storage IQ Battery charge"]


def test_what_the_energy_dashboard_needs_of_the_site() -> None:
    rows = [
        row("site/solar", "power", "site", enabled=True),
        row("site/solar", "energy_lifetime", "site", quantity=ENERGY, label="Energy produced", enabled=True),
        row("site/grid", "energy_imported", "site", quantity=ENERGY, enabled=True),
        row("site/battery", "soc", "site", quantity=CHARGE, label="Charge", enabled=True),
        row("site/grid", "connected", "site", quantity=CONNECTIVITY),
    ]
    body = announced(rows)["site"]
    site = body["components"]

    assert {key: (entity_id({**item, "device": body["device"]}), item["name"]) for key, item in site.items()} == {
        "solar_power": ("sensor.enphase_solar_power", "Solar power"),
        "solar_energy_lifetime": ("sensor.enphase_solar_energy_produced", "Solar energy produced"),
        "grid_energy_imported": ("sensor.enphase_grid_energy_imported", "Grid energy imported"),
        "battery_soc": ("sensor.enphase_battery_charge", "Battery charge"),
        "grid_connected": ("binary_sensor.enphase_grid_connected", "Grid connected"),
    }
    assert site["solar_energy_lifetime"]["state_class"] == "total_increasing"
    assert site["grid_connected"]["device_class"] == "connectivity"
    assert site["battery_soc"]["unit_of_measurement"] == "%"


# Enabled by default


def shown(given: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The entities that Home Assistant shows by default, by device."""
    found = {
        name: [key for key, item in body["components"].items() if "enabled_by_default" not in item]
        for name, body in given.items()
    }
    return {name: keys for name, keys in found.items() if keys}


LINES = [f"l{line}_{name}" for line in (1, 2, 3) for name in ("power", "voltage")]
METER = ["energy_delivered", "energy_received", *LINES, "metering_status", "power"]


def test_enabled_by_default_in_a_three_phase_home(devices: dict[str, dict[str, Any]]) -> None:
    """Together with the site's 18 entities these are about 70."""
    found = shown(devices)
    assert {name: sorted(keys) for name, keys in found.items()} == {
        "gateway": ["events", "firmware", "inverters_reporting", "problem", "state"],
        "meter_production": METER,
        "meter_net-consumption": METER,
        **{f"inverter_4822{unit:08d}": ["power"] for unit in range(1, 21)},
        "battery_492300000001": ["power", "soc", "status", "temperature"],
        "battery_492300000002": ["power", "soc", "status", "temperature"],
        "storage": ["control_action", "control_charge_from_grid", "control_mode", "control_reserve"],
        "controller_482303009999": ["communicating", "grid_connected", "last_report", "temperature"],
        "relay_mains": ["grid_connected"],
        "relay_nc1": ["state"],
        "generator_1": ["state"],
    }
    without_controller = [keys for name, keys in found.items() if not name.startswith(("contr", "relay", "gen"))]
    assert sum(map(len, without_controller)) - len(found["gateway"]) == 52


def test_the_token_is_shown_where_there_is_one() -> None:
    into = tree()
    publish(DIAGNOSTICS_SOURCE, list(Diagnostics(token_expires=datetime.fromtimestamp(NOW, UTC)).readings()), into)
    assert shown(announced(into.rows)) == {"gateway": ["state", "events", "problem", "token_expires"]}


def test_a_device_with_one_phase_shows_what_a_phase_would() -> None:
    facts, rows = house(1, batteries=0, inverters=0)
    found = shown(announced(rows, gateway(facts)))
    assert sorted(found["meter_production"]) == [
        *("energy_delivered", "energy_received", "metering_status", "power", "voltage"),
    ]


def test_groups_show_nothing_unasked(devices: dict[str, dict[str, Any]]) -> None:
    assert not {"live", "energy", "report"} & shown(devices).keys()
    assert all(len(devices[name]["components"]) > 10 for name in ("live", "energy", "report"))


# The other form, and what holds for both


def test_component_form_says_the_same_of_each_entity() -> None:
    """For openHAB up to 5.1 and Home Assistant before 2024.11, there is one message for each entity.

    For Domoticz, which ignores templates and knows only the batteries of devices, energies are in Wh there, and a
    charge has no class.
    """
    facts, rows = house(inverters=2)
    device, component = (
        check(announce(DiscoveryOptions(Names(), form=form), gateway(facts), rows))
        for form in ("device", "component")
    )
    assert device.keys() == component.keys()
    assert len(device) == len(rows) + OWN_ENTITIES
    for unique_id, entity in device.items():
        different = {key for key, value in entity.items() if component[unique_id].get(key, ABSENT) != value}
        different |= component[unique_id].keys() - entity.keys()
        if entity.get("unit_of_measurement") == "kWh":
            assert different == {"unit_of_measurement", "value_template", "suggested_display_precision"}, unique_id
            assert component[unique_id]["unit_of_measurement"] == "Wh"
        else:
            assert different == ({"device_class", "icon"} if entity.get("device_class") == "battery" else set())


def test_component_form_announces_the_gateway_first() -> None:
    facts, rows = house(inverters=1)
    messages = list(announce(DiscoveryOptions(Names(), form="component"), gateway(facts), rows))
    assert messages[0].topic == f"homeassistant/binary_sensor/{ID}_gateway_state/config"
    body = json.loads(messages[0].payload)
    assert set(body) == {
        *("device", "origin", "availability", "availability_mode", "qos", "name", "unique_id", "state_topic"),
        *("payload_on", "payload_off", "device_class", "entity_category"),
    }
    first = [json.loads(message.payload)["device"]["name"] for message in messages]
    assert first.index("Production meter") > max(place for place, name in enumerate(first) if name == "IQ Gateway")


@pytest.mark.parametrize("form", ["device", "component"])
def test_another_prefix(form: str) -> None:
    settings = DiscoveryOptions(Names(), "hass/discovery", form)
    assert len(check(announce(settings, gateway(), [row("meter/load")]), "hass/discovery")) == 1 + OWN_ENTITIES


@pytest.mark.parametrize("form", ["device", "component"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_entity_has_a_value_topic(count: int, form: str) -> None:
    """Every published value has an entity, unless its measurement is no entity."""
    into = tree()
    facts, messages = feed(into, answers(count, inverters=3))
    entities = check(announce(DiscoveryOptions(Names(), form=form), gateway(facts), into.rows))

    topics = {message.topic for message in messages if message.content_type is None}
    assert {item["state_topic"] for item in entities.values()} - topics == {
        f"enphase/{SERIAL}/state",
        f"enphase/{SERIAL}/events",
    }
    assert topics <= {item["state_topic"] for item in entities.values()}


def test_the_same_rows_make_the_same_messages() -> None:
    facts, rows = house(inverters=2)
    one, two = (list(announce(DiscoveryOptions(Names()), gateway(facts), rows)) for _ in range(2))
    assert one == two


def test_rows_of_the_bridge_itself() -> None:
    rows: list[Measurement] = [
        item.measurement for item in house(inverters=0, batteries=0)[1] if item.source == DIAGNOSTICS_SOURCE
    ]
    assert [item.name for item in rows] == [
        "problem",
        "token_role",
        "certificate",
        "counters_held",
        "answer_time",
        "failures",
    ]
    assert home(3) == THREE


# What is gone


def test_an_entity_that_is_gone_is_taken_back() -> None:
    """Home Assistant requires one message in which the component has only its platform. Then it is left out."""
    rows = [row("meter/load"), row("live/pv", source="livedata")]
    gone = [
        row("meter/load", "voltage", phase=Phase.L2),
        row("live/net-x", "on", "livedata", quantity=CONNECTIVITY),
        row("inverter/7", source="inverters"),
    ]
    messages = list(announce(DiscoveryOptions(Names()), gateway(), rows, gone))
    bodies = {
        message.topic.split("/")[2].removeprefix(f"{ID}_"): json.loads(message.payload) for message in messages
    }

    check(messages)
    assert bodies.keys() == {"gateway", "meter_load", "live"}
    assert bodies["meter_load"]["components"]["l2_voltage"] == {"platform": "sensor"}
    assert bodies["live"]["components"]["net_x_on"] == {"platform": "binary_sensor"}
    assert {*bodies["meter_load"]["components"]} == {"power", "l2_voltage"}


def test_what_is_gone_in_component_form_is_left_out() -> None:
    """The topic of the entity is cleared."""
    messages = list(
        announce(
            DiscoveryOptions(Names(), form="component"), gateway(), [row("meter/load")], [row("meter/load", "x")]
        )
    )
    assert len(check(messages)) == 1 + OWN_ENTITIES


def test_what_is_there_is_not_taken_back() -> None:
    both = [row("meter/load")]
    assert check(announce(DiscoveryOptions(Names()), gateway(), both, both)).keys() == {
        f"{ID}_gateway_state",
        f"{ID}_gateway_events",
        f"{ID}_meter_load_power",
    }
