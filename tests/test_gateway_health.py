"""How the gateway itself is: its firmware update, its controller's errors, and its own list of events.

The answers are those of Matthew1471's public documentation of one gateway.
"""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from houses import house
from running import running, until
from samples import THREE, changed, parse, publish, tree, values
from strict import check

from bridge.discovery import DiscoveryOptions, announce
from bridge.discovery.devices import AnnouncedGateway
from bridge.model import Facts
from bridge.simulator.controller import EVENT_LIST_PATH
from bridge.topics import Names

FIRMWARE_STATE = {
    "SiteSync": {
        "Current_Status": 10,
        "Current_Status_str": "No Update Running",
        "Estimated Time Left": "00::00::00",
        "Current essimg version": "500-00020-r01-v21.19.82",
        "Failure Reason": "None",
        "auto_update_enable": "true",
        "Progress": "0.00",
    },
    "updates": [],
}


def test_no_update_runs() -> None:
    assert values("firmware", FIRMWARE_STATE) == {
        "gateway/update_running": "OFF",
        "gateway/update_status": "no update running",
        "gateway/update_progress": "None",
        "gateway/update_failure": "none",
        "gateway/auto_update": "ON",
        "gateway/storage_firmware": "500-00020-r01-v21.19.82",
    }


def test_an_update_runs() -> None:
    answer = changed(FIRMWARE_STATE, "SiteSync.Current_Status_str", lambda _: "Updating Encharge")
    found = values("firmware", changed(answer, "SiteSync.Progress", lambda _: "41.50"))
    shown = {name: found[f"gateway/update_{name}"] for name in ("running", "status", "progress")}
    assert shown == {"running": "ON", "status": "updating encharge", "progress": "41.5"}


def test_without_its_status_nothing_is_said_of_an_update() -> None:
    answer = {"SiteSync": {"Progress": "41.50", "auto_update_enable": "false"}}
    assert values("firmware", answer) == {"gateway/auto_update": "OFF"}


def test_errors_of_the_controller() -> None:
    assert values("errors", {"enpower_error_flags": 5}) == {"gateway/controller_errors": "5"}


WIFI: dict[str, Any] = {
    "supported": True,
    "carrier": True,
    "current_network": {"ssid": "MyHome", "status": "connected", "ap_bssid": "AA:BB:CC:DD:EE:FF", "bars": 2},
    "ap_mode": {"enabled": False, "name": "ENVOY_099999"},
}


@pytest.mark.parametrize(
    ("changes", "connected", "signal"),
    [
        ({}, "ON", "2"),
        ({"carrier": False}, "OFF", "None"),
        ({"carrier": False, "current_network": {}}, "OFF", "None"),
        ({"carrier": None}, "None", "None"),
        ({"current_network": {}}, "ON", None),
        ({"current_network": {"bars": -1}}, "ON", None),
        ({"current_network": {"bars": 99}}, "ON", None),
        ({"current_network": "MyHome"}, "ON", None),
    ],
)
def test_the_gateways_wifi(changes: dict[str, Any], connected: str, signal: str | None) -> None:
    """Neither its network nor its address is told to anybody."""
    found = values("wifi", {**WIFI, **changes})
    assert found.pop("gateway/wifi_connected") == connected
    assert found.pop("gateway/wifi_signal", None) == signal
    assert found == {}


def test_the_list_of_events_is_in_the_document_alone() -> None:
    date = "Sat Jun 03, 2023 09:30 PM BST"
    entries = [
        ["16326", "Microinverter failed to report: Set", "123456789111", "pcu ", date],
        ["x"],
        [],
        None,
        ["7"],
    ]
    (reading,) = parse("event_list", {"recordsTotal": 500, "aaData": entries}).readings
    assert reading.measurement.document_only
    assert reading.value == {
        "16326": {
            "text": "Microinverter failed to report: Set",
            "serial": "123456789111",
            "kind": "pcu",
            "date": date,
        },
        "7": {},
    }


@pytest.mark.parametrize(
    ("changes", "running"),
    [
        ({}, "OFF"),
        ({"Current_Status_str": "Downloading", "Progress": "0.00"}, "ON"),
        ({"Current_Status_str": "Updating", "Progress": "99.9"}, "ON"),
        ({"Current_Status_str": "Update Successful", "Progress": "100.00"}, "None"),
        ({"Current_Status_str": "Update Failed", "Progress": "40", "Failure Reason": "No space"}, "None"),
        ({"Current_Status_str": "Updating", "Progress": "250"}, "None"),
        ({"Current_Status_str": "Updating", "Progress": None}, "None"),
    ],
)
def test_an_update_runs_only_where_that_is_plain(changes: dict[str, object], running: str) -> None:
    """Only the words for no update were ever seen, so other words may as well tell of one that is over."""
    site: Any = FIRMWARE_STATE["SiteSync"]
    found = values("firmware", {"SiteSync": {**site, **changes}})
    assert found["gateway/update_running"] == running
    assert (found.get("gateway/update_progress", "None") == "None") is (running != "ON")


# Home Assistant's update entity


def shown(template: str, value: str) -> Any:
    """What Home Assistant makes of a value."""
    environment = jinja2.Environment(autoescape=False)  # noqa: S701 - it makes JSON, not HTML
    return json.loads(environment.from_string(template).render(value=value))


@pytest.mark.parametrize("firmware", ["D8.3.5169", 'D8"}}{{ 7 }}'])
def test_the_update_entity_says_what_runs(firmware: str) -> None:
    """A key that Home Assistant does not know, or a null for a version, would make it drop the message."""
    into = tree()
    publish("firmware", parse("firmware", FIRMWARE_STATE).readings, into)
    facts = Facts(THREE.serial, firmware)
    found = check(announce(DiscoveryOptions(Names()), AnnouncedGateway(facts, "https://envoy.local"), into.rows))
    entity = found[f"iqgateway_{THREE.serial}_gateway_update"]
    assert (entity["platform"], entity["state_topic"]) == (
        "update",
        f"enphase/{THREE.serial}/gateway/update_progress",
    )
    version = {"D8.3.5169": "D8.3.5169"}.get(firmware, "D87")
    idle = {"installed_version": version, "latest_version": version, "in_progress": False}
    assert shown(entity["value_template"], "None") == idle
    assert shown(entity["value_template"], "41.5") == {
        "installed_version": version,
        "latest_version": "newer",
        "in_progress": True,
        "update_percentage": 42,
    }


def test_there_is_no_update_entity_where_the_gateway_tells_nothing_of_it() -> None:
    gateway = AnnouncedGateway(THREE, "https://envoy.local")
    assert not [key for key in check(announce(DiscoveryOptions(Names()), gateway, ())) if key.endswith("_update")]


@pytest.mark.hasty
async def test_the_list_is_asked_for_where_the_owner_turns_it_on(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        async with running(home.settings()):
            await home.settled()
        assert home.simulator.count(EVENT_LIST_PATH) == 0
        async with running(home.settings(poll={"event_list": 900})):
            await until(lambda: "Microinverter failed to report: Set" in (home.topic("gateway") or ""))
            text = home.topic("gateway")
            assert text is not None
            assert {*json.loads(text)["event_list"]} == {"16320", "16321"}
        assert not [seen for seen in home.watcher.seen if seen.topic.endswith("/events")]  # they were there before
