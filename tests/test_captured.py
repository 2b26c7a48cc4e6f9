"""Captured gateways, through the pure middle of the bridge: all values are there, and each phase is in its place.

The captures are no part of the project: where they are absent, these tests are skipped.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from samples import ORDER, STRUCTURES, UNKNOWN, as_topic_text, parse, publish
from strict import check

from bridge.discovery import DiscoveryOptions, announce
from bridge.discovery.devices import AnnouncedGateway
from bridge.endpoints import BY_SOURCE, ENDPOINTS
from bridge.model import BadAnswer, Facts, Message
from bridge.topics import Names, Tree

CAPTURED = Path(__file__).parents[1].parent / "shared" / "gateways"
SETS = sorted(folder.name for folder in CAPTURED.glob("*/")) if CAPTURED.is_dir() else []
TOPIC = re.compile(r"enphase(/[a-z0-9_-]+){2,6}")
PHASES = ("l1", "l2", "l3")
INPUTS = ("c1", "c2", "c3", "c4")

pytestmark = pytest.mark.skipif(not SETS, reason="no captured gateways here (they are not part of the project)")


def captured(name: str) -> dict[str, bytes]:
    """The answers with status 200, by source."""
    found: dict[str, bytes] = {}
    for endpoint in ENDPOINTS:
        file = CAPTURED / name / re.sub(r"[/?=& ]", "_", endpoint.path[1:])
        log = file.with_name(f"{file.name}_log.json")
        status = json.loads(log.read_text())["code"] if log.is_file() else 200
        if file.is_file() and status == 200:
            found[endpoint.source] = file.read_bytes()
    reports = CAPTURED / name / "ivp_meters_reports"
    if reports.is_file():
        given = [item for item in json.loads(reports.read_text()) if item["reportType"] != "production"]
        found["consumption"] = json.dumps(given).encode()
    return found


class CapturedHome:
    """A parsed capture: its facts, its newest messages by topic, and the values that could not be used."""

    def __init__(self, name: str, payload: str = "both") -> None:
        self.facts: Facts = UNKNOWN
        self.messages: dict[str, Message] = {}
        self.problems: list[str] = []
        self.refused: set[str] = set()
        given = captured(name)
        self.sources = {*given}
        info = parse("info", given["info"], UNKNOWN)
        self.serial = info.facts.serial if info.facts else ""
        self.tree = Tree(Names(), self.serial, ORDER, payload)
        for source in (source for source in ORDER if source in given):
            if BY_SOURCE[source].wanted(self.facts):
                self.take(source, given[source])

    def take(self, source: str, answer: bytes) -> None:
        try:
            parsed = parse(source, answer, self.facts)
        except BadAnswer:
            self.refused.add(source)
            return
        self.facts = parsed.facts or self.facts
        self.problems += parsed.problems
        self.messages |= {message.topic: message for message in publish(source, parsed.readings, self.tree)}

    def values(self) -> dict[str, str]:
        found = {topic: m.payload for topic, m in self.messages.items() if m.content_type is None}
        return {topic.removeprefix(f"enphase/{self.serial}/"): payload for topic, payload in found.items()}

    def documents(self) -> dict[str, Any]:
        found = {topic: json.loads(m.payload) for topic, m in self.messages.items() if m.content_type}
        return {topic.removeprefix(f"enphase/{self.serial}/"): document for topic, document in found.items()}


@pytest.fixture(scope="module", params=SETS)
def home(request: pytest.FixtureRequest) -> CapturedHome:
    return CapturedHome(request.param)


def test_everything_is_understood(home: CapturedHome) -> None:
    assert home.problems == []
    assert home.refused == set()
    assert "info" in home.sources
    assert len(home.values()) >= 6


def flat(device: str, document: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in document.items():
        if key in (*PHASES, *INPUTS):
            found |= {f"{device}/{key}/{name}": as_topic_text(item) for name, item in value.items()}
        elif key != "timestamp" and key not in STRUCTURES:
            found[f"{device}/{key}"] = as_topic_text(value)
    return found


def test_documents_equal_the_value_topics(home: CapturedHome) -> None:
    parts = [flat(device, document) for device, document in home.documents().items()]
    assert {topic: payload for part in parts for topic, payload in part.items()} == home.values()


def test_topics_and_payloads(home: CapturedHome) -> None:
    for topic, message in home.messages.items():
        assert TOPIC.fullmatch(topic)
        assert topic.count("/") <= 6
        assert message.payload.lower() not in {"", "nan", "null", "unknown", "unavailable", "-0", "inf"}
        assert not re.search(r"(?<!\w)-0(\.0*)?([,}]|$)|NaN|Infinity", message.payload)
        if message.content_type is None:
            assert not re.fullmatch(r"-?[\d.]+[eE][-+]?\d+|-?\d+\.\d*0|-0", message.payload)


def test_only_real_phases_of_enabled_meters(home: CapturedHome) -> None:
    values = home.values()
    for meter in home.facts.meters or ():
        lines = {topic.split("/")[2] for topic in values if re.match(rf"meter/{meter.role}/l\d/", topic)}
        read = f"meter/{meter.role}/power" in values
        expected = {*PHASES[: meter.phase_count]} if meter.enabled and meter.phase_count > 1 else set()
        assert lines == expected
        assert read is meter.enabled
        if expected:
            assert f"meter/{meter.role}/current" not in values
            volts = [float(values[f"meter/{meter.role}/{line}/voltage"]) for line in sorted(lines)]
            whole = sum(volts) if meter.phase_mode == "split" else sum(volts) / len(volts)
            assert float(values[f"meter/{meter.role}/voltage"]) == pytest.approx(whole, abs=0.0006)


def test_phases_add_up(home: CapturedHome) -> None:
    """This holds even where the channels' activePower do not add up (D8.3.1598). The single CT of a backfeed is not
    counted twice.
    """
    values = home.values()
    for meter in home.facts.meters or ():
        if not meter.enabled or meter.phase_count == 1 or meter.role in {"storage", "backfeed"}:
            continue
        lines = [float(values[f"meter/{meter.role}/{line}/power"]) for line in PHASES[: meter.phase_count]]
        total = float(values[f"meter/{meter.role}/power"])
        assert sum(lines) == pytest.approx(total, abs=1.05 + 0.005 * abs(total))


@pytest.mark.parametrize("form", ["device", "component"])
def test_discovery(home: CapturedHome, form: str) -> None:
    about = AnnouncedGateway(home.facts, f"https://{home.serial}")
    entities = check(announce(DiscoveryOptions(Names(), form=form), about, home.tree.rows))
    announced = {item["state_topic"].removeprefix(f"enphase/{home.serial}/") for item in entities.values()}
    disabled = {f"meter/{meter.role}" for meter in home.facts.meters or () if not meter.enabled}

    assert announced - {"state", "events"} == {
        topic for topic in home.values() if "/".join(topic.split("/")[:2]) not in disabled
    }


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("payload", "values", "documents"), [("values", True, False), ("json", False, True)])
def test_payload_modes(name: str, payload: str, values: bool, documents: bool) -> None:
    home, both = CapturedHome(name, payload), CapturedHome(name)
    assert home.values() == (both.values() if values else {})
    assert home.documents().keys() == (both.documents().keys() if documents else set())


def test_what_the_captures_hold() -> None:
    """These tests must not pass just because captures are missing."""
    seen = {source for name in SETS for source in captured(name)}
    assert len(SETS) >= 20
    asked_later = {"gen_mode", "sched", "acb_config", "pcs_settings", "dpel", "sc_status"}
    asked_later |= {"firmware", "errors", "wifi", "event_list"}
    assert seen >= {*BY_SOURCE} - {"livedata", "device_list", "relay"} - asked_later
