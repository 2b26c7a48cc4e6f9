"""What Home Assistant makes of three homes: all devices and entities, their words, units and classes."""

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from assistant import Owned
from install import NEWEST, OLDER, Release
from portrait import MOVING, Portrait, portray, shown
from running import HastyLoop
from strict import entity_id

HOMES = [("three-phase", NEWEST), ("split-phase", NEWEST), ("no-cts", NEWEST), ("three-phase", OLDER)]
BY_UNIT: dict[str, tuple[set[str | None], set[str], set[int]]] = {
    "W": ({"power"}, {"measurement"}, {0}),
    "VA": ({"apparent_power"}, {"measurement"}, {0}),
    "var": ({"reactive_power"}, {"measurement"}, {0}),
    "V": ({"voltage"}, {"measurement"}, {1}),
    "A": ({"current"}, {"measurement"}, {2}),
    "Hz": ({"frequency"}, {"measurement"}, {2}),
    "°C": ({"temperature"}, {"measurement"}, {1}),
    "%": ({"battery", None}, {"measurement"}, {0}),
    "s": ({"duration"}, {"measurement"}, {0, 3}),
    "VAh": ({None}, {"total_increasing", "total"}, {0}),
    "varh": ({None}, {"total_increasing", "total"}, {0}),
}
"""Device classes, state classes and decimals of each unit but kWh."""
WINDOWS = ("_energy_7d", "_energy_yesterday", "_last_report_energy")
"""Energies of a time that moves: no counters. Nor is what the gateway itself calls today."""
PHASED = ("power", "voltage")
SITE = {
    "three-phase": {
        "Solar power",
        "Solar energy produced",
        "Solar energy today",
        "Grid power",
        "Grid energy imported",
        "Grid energy exported",
        "Grid energy counted since",
        "Grid connected",
        "Home power",
        "Home energy consumed",
        "Home energy today",
        "Home energy counted since",
        "Battery power",
        "Battery energy charged",
        "Battery energy discharged",
        "Battery charge",
        "Battery energy stored",
        "Battery capacity",
    },
}
SITE["split-phase"] = SITE["three-phase"] | {"Battery energy counted since"}
SITE["no-cts"] = {"Solar power", "Solar energy produced", "Solar energy today"}
METERS = {
    "three-phase": {
        "Production meter": ("Energy produced", "Standby energy"),
        "Net consumption meter": ("Energy imported", "Energy exported"),
        "Storage meter": ("Energy discharged", "Energy charged"),
    },
    "split-phase": {
        "Production meter": ("Energy produced", "Standby energy"),
        "Net consumption meter": ("Energy imported", "Energy exported"),
    },
    "no-cts": {},
}
GATEWAY = {"Connection", "Event", "Firmware", "Problem", "Token expires", "Inverters reporting"}
STORAGE = {
    "IQ Gateway Firmware update",
    "Storage IQ Battery health",
    "Storage Mode",
    "Storage Reserve",
    "Storage Charge from grid",
    "Storage Present task",
    "Storage Stored settings obeyed",
    "Grid relay Connection",
}
LIMITS = {"Limits Production limit active", "Limits Production limit cause"}
CONTROLLER = {"Grid status", "Communicating", "Temperature", "Last report"}
GEAR = {
    "three-phase": STORAGE,
    "split-phase": STORAGE
    | {f"{name} State" for name in ("Well pump", "Fridge and freezer", "Heat pump")}
    | {f"Controller 122302007001 {name}" for name in CONTROLLER}
    | {"Generator State"},
    "no-cts": set(),
}
PHASES = {"three-phase": ("L1", "L2", "L3"), "split-phase": ("L1", "L2"), "no-cts": ()}
INVERTERS = {"three-phase": 21, "split-phase": 16, "no-cts": 12}
BATTERIES = {"three-phase": 2, "split-phase": 2, "no-cts": 0}
ENABLED = {"three-phase": 93, "split-phase": 83, "no-cts": 23}


AT_REST = {"event": "unknown", "update": "off"}
"""The states of platforms that show no value, while no event has come and no update is running."""


def _param(home: str, release: Release) -> Any:
    """All tests of one home one after another, so that it is looked at once."""
    marks = pytest.mark.slow if release is OLDER else ()
    return pytest.param((home, release), id=f"{home} {release.version}", marks=marks)


@pytest.fixture(scope="module", params=[_param(*home) for home in HOMES])
def portrait(
    request: pytest.FixtureRequest,
    owned: Callable[[Release], Owned],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Portrait]:
    home, release = request.param
    installation = owned(release)
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=HastyLoop) as runner:
        for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
            patch.delenv(name)  # this runs before the fixture that does so for each test
        yield runner.run(portray(installation, home, Path(tmp_path_factory.mktemp("portrait"))))


def people_see(portrait: Portrait) -> set[str]:
    """Names of enabled entities, the device's name first, as cards show them."""
    mine = {e["entity_id"] for e in portrait.entities.values() if e["disabled_by"] is None}
    return {str(portrait.states[entity]["attributes"]["friendly_name"]) for entity in mine}


def attributes(portrait: Portrait) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for unique_id in portrait.announced:
        yield unique_id, portrait.state(unique_id)["attributes"]


def test_every_entity_is_there_with_the_id_that_the_documents_promise(portrait: Portrait) -> None:
    assert portrait.entities.keys() == portrait.announced.keys()
    wanted = {unique_id: entity_id(entity) for unique_id, entity in portrait.announced.items()}
    assert {unique_id: entity["entity_id"] for unique_id, entity in portrait.entities.items()} == wanted


def test_every_device_is_there_behind_its_gateway(portrait: Portrait) -> None:
    gateway = f"iqgateway_{portrait.serial}_gateway"
    assert portrait.devices.keys() == {entity["device"]["identifiers"][0] for entity in portrait.announced.values()}
    root = portrait.devices[gateway]
    assert (root["name"], root["manufacturer"], root["model"]) == ("IQ Gateway", "Enphase", "IQ Gateway")
    assert (root["serial_number"], root["via_device_id"]) == (portrait.serial, None)
    assert root["sw_version"] == portrait.topics[f"enphase/{portrait.serial}/gateway/firmware"]
    assert root["model_id"] == portrait.topics[f"enphase/{portrait.serial}/gateway/part_number"]
    assert root["hw_version"] == root["model_id"].rpartition("-")[2]
    assert root["configuration_url"].startswith("https://127.0.0.1:")
    prefix = f"enphase/{portrait.serial}/"
    told = {"model_id": "part_number", "sw_version": "firmware"}
    units = [topic.removeprefix(prefix).split("/") for topic in portrait.topics if topic.startswith(prefix)]
    for kind, unit in {(words[0], words[1]) for words in units if words[-1] == "part_number" and len(words) > 2}:
        device = portrait.devices[f"iqgateway_{portrait.serial}_{kind}_{unit}"]
        for key, name in told.items():
            assert device[key] == portrait.topics.get(f"{prefix}{kind}/{unit}/{name}")
    others = [device for key, device in portrait.devices.items() if key != gateway]
    assert {device["via_device_id"] for device in others} == {root["id"]}
    names = [device["name"] for device in portrait.devices.values()]
    assert len(set(names)) == len(names)
    kinds = Counter(device["model"] for device in portrait.devices.values())
    assert kinds["Microinverter"] == INVERTERS[portrait.home]
    assert kinds["IQ Battery"] == BATTERIES[portrait.home]
    assert kinds["Current transformer"] == len(METERS[portrait.home])


def test_the_names_of_what_is_enabled_read_well(portrait: Portrait) -> None:
    """The whole list, so that nothing is enabled by accident."""
    home = portrait.home
    units = [device["name"] for device in portrait.devices.values() if device["model"] == "Microinverter"]
    batteries = [device["name"] for device in portrait.devices.values() if device["model"] == "IQ Battery"]
    names = {f"Enphase {name}" for name in SITE[home]} | {f"IQ Gateway {name}" for name in GATEWAY}
    names |= {f"{unit} Power" for unit in units} | GEAR[home] | LIMITS
    names |= {f"{battery} {name}" for battery in batteries for name in ("Status", "Charge", "Power", "Temperature")}
    for meter, energies in METERS[home].items():
        names |= {f"{meter} {name}" for name in ("Power", "Metering status", *energies)}
        names |= {f"{meter} {phase} {name}" for phase in PHASES[home] for name in PHASED}
    assert people_see(portrait) == names
    assert len(names) == ENABLED[home]


def test_no_name_says_its_device_twice(portrait: Portrait) -> None:
    for unique_id, found in attributes(portrait):
        entity = portrait.announced[unique_id]
        device, name = entity["device"]["name"], entity["name"]
        assert found["friendly_name"] == f"{device} {name}"
        assert name.lower().split()[0] not in device.lower().split(), (device, name)
        words = str(found["friendly_name"]).lower().split()
        assert all(one != next_ for one, next_ in itertools.pairwise(words)), words
        assert name[0].isupper()
        assert "_" not in name


def test_units_classes_and_decimals(portrait: Portrait) -> None:
    for unique_id, found in attributes(portrait):
        unit, device_class, state_class = (
            found.get(key) for key in ("unit_of_measurement", "device_class", "state_class")
        )
        options = portrait.enabled[unique_id]["options"].get("sensor", {})
        decimals = options.get("suggested_display_precision")
        if unit == "kWh":
            assert device_class in {"energy", "energy_storage"}, unique_id
            assert decimals == (4 if unique_id.endswith("_last_report_energy") else 2), unique_id
            theirs = f"_{portrait.serial}_energy_" in unique_id and unique_id.endswith("_energy_today")
            moving = theirs or unique_id.endswith(WINDOWS)
            may_fall = f"_{portrait.serial}_report_" in unique_id and not unique_id.endswith("_energy_today")
            counter = "total" if may_fall else None if moving else "total_increasing"
            assert state_class == ("measurement" if device_class == "energy_storage" else counter), unique_id
        elif unit is not None:
            device_classes, state_classes, precisions = BY_UNIT[unit]
            assert device_class in device_classes, unique_id
            assert state_class in state_classes, unique_id
            assert decimals in precisions, unique_id
        else:
            assert device_class in {None, "power_factor", "timestamp", "connectivity", "firmware"}, unique_id


def test_every_state_is_its_topic(portrait: Portrait) -> None:
    """Those included that are disabled when they come."""
    checked = 0
    for unique_id, entity in portrait.announced.items():
        if unique_id.endswith(MOVING):
            continue
        if entity["platform"] in AT_REST:
            assert portrait.state(unique_id)["state"] == AT_REST[entity["platform"]]
            continue
        text = portrait.topics[entity["state_topic"]]
        assert portrait.state(unique_id)["state"] == shown(text, entity), unique_id
        checked += text != "None"
    assert checked > len(portrait.announced) * 0.8


def test_the_energy_dashboard_takes_what_the_site_has(portrait: Portrait) -> None:
    energy = portrait.energy
    flows = {"no-cts": ["solar"]}.get(portrait.home, ["solar", "grid", "battery"])
    assert [source["type"] for source in energy.preferences["energy_sources"]] == flows
    assert len(energy.preferences["device_consumption"]) == (len(flows) > 1)
    assert energy.issues == []
    charge = {"sensor.enphase_battery_charge": "%"} if "battery" in flows else {}
    assert charge.items() <= energy.statistics.items()


def test_home_assistant_has_nothing_to_complain_of(portrait: Portrait) -> None:
    assert portrait.complaints == []
