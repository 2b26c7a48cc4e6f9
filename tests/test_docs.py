"""The documents are true: their tables, settings, commands, topics, entities and links."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import openhab
import pytest
import yaml
from paho.mqtt.client import topic_matches_sub
from strict import entity_id

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402 - it stands beside the documents
import values  # noqa: E402

from bridge import __version__, discovery  # noqa: E402
from bridge.commands import parser, report  # noqa: E402
from bridge.discovery.devices import AnnouncedGateway  # noqa: E402
from bridge.endpoints import ENDPOINTS  # noqa: E402
from bridge.events import EventKind, GatewayEvent  # noqa: E402
from bridge.model import Facts, Message  # noqa: E402
from bridge.pipeline import Pipeline  # noqa: E402
from bridge.records import TEXT  # noqa: E402
from bridge.service.publisher import (  # noqa: E402
    DIAGNOSTICS,
    DIAGNOSTICS_SOURCE,
    SITE_SOURCE,
    Diagnostics,
)
from bridge.settings import CONFIG_VARIABLE, VARIABLE_PREFIX, load, names  # noqa: E402
from bridge.simulator import HOMES  # noqa: E402
from bridge.topics import Names, Tree, bridge_info, online  # noqa: E402
from bridge.web.metrics import METRICS, NAME_ENDINGS  # noqa: E402

DOCUMENTS = generate.documents()
README = ROOT / "README.md"
COMMANDS, SETTINGS_PAGE = ROOT / "docs/commands.md", ROOT / "docs/settings.md"
TOPICS, MOVING = ROOT / "docs/topics.md", ROOT / "docs/moving.md"
DEMO_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -q '.[demo]' && .venv/bin/iqgateway2mqtt demo"
TEST_COMMAND = (
    "python3 -m venv .venv && .venv/bin/pip install -q -r requirements-dev.txt "
    "&& .venv/bin/pip install -q --no-deps -e . && .venv/bin/pytest"
)
ENDS = {"&&", "||", "|", ";", ">", "…"}
DEMO_HOME = "three-phase"
"""The home of the demo, which the documents describe."""
Assignments = dict[str, str]

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


CONSUMERS = "consumers.md:"
"""Its blocks are settings of other programs: tests/acceptance/test_consumers.py reads them."""


def blocks(*languages: str) -> list[tuple[str, str]]:
    """The fenced code blocks of all documents, each with a name."""
    found = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        (f"{path.name}:{text[: block.start()].count(chr(10)) + 1}", block[2])
        for path in DOCUMENTS
        for text in [path.read_text()]
        for block in found.finditer(text)
        if block[1] in languages
    ]


def settings_of(block: str) -> Assignments:
    """The settings that a block of shell lines sets."""
    words = shlex.split(block, comments=True)
    return dict(word.split("=", 1) for word in words if re.match(rf"{VARIABLE_PREFIX}\w+=", word))


def commands() -> Iterator[list[str]]:
    """The arguments of each command that a document shows."""
    inline = (match for path in DOCUMENTS for match in re.findall(r"`(iqgateway2mqtt [^`]+)`", path.read_text()))
    for line in (*(line for _, block in blocks("sh") for line in block.splitlines()), *inline):
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word.endswith("iqgateway2mqtt"):
                end = next((i for i in range(place, len(words)) if words[i] in ENDS), len(words))
                yield words[place + 1 : end]


QUOTED_COMMANDS = sorted({shlex.join(command) for command in commands() if command})
SETTINGS = [(name, text) for name, text in blocks("sh") if settings_of(text)]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Only the test's own settings apply."""
    for name in [name for name in os.environ if name.startswith((VARIABLE_PREFIX, "CREDENTIALS_DIRECTORY"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


# The generated parts


@each_document
def test_generated_parts_are_what_the_generator_gives_now(path: Path) -> None:
    text = path.read_text()
    assert generate.renewed(text) == text, "run .venv/bin/python docs/generate.py"


MEASURED = re.compile(r"<!-- begin matrix: benchmarks/true_numbers\.py -->\n.*?<!-- end matrix -->", re.DOTALL)
"""What a benchmark writes into a document."""


def test_every_part_stands_somewhere_and_every_mark_is_a_whole_block() -> None:
    texts = [path.read_text() for path in DOCUMENTS]
    found = [block[2] for text in texts for block in generate.BLOCK.finditer(text)]
    measured = [block for text in texts for block in MEASURED.findall(text)]
    assert set(found) == set(generate.PARTS)
    assert len(found) + len(measured) == sum(text.count("<!-- ") for text in texts) / 2


def test_the_tables_that_are_written_by_hand_are_complete() -> None:
    assert list(values.discrepancies(values.rows(), values.meanings(), values.kinds())) == []


WITHOUT_RATE = {**values.meanings(), "tariff": {**values.meanings()["tariff"], "rate": ""}}
WITH_MORE = {
    **values.meanings(),
    "tariff": {**values.meanings()["tariff"], "rates": "prices"},
    "wind": {"w": "wind"},
}
WITHOUT_RELAY = {kind: text for kind, text in values.kinds().items() if kind != "relay"}
WINDMILL = values.ValueRow("status", "msg_retry_count", TEXT, devices=["windmill/<serial>"])
"""A value of a kind of device that no table knows."""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"known": WITHOUT_RATE}, ["docs/meanings.toml: [tariff] has no meaning of `rate` (tariff/current)"]),
        (
            {"known": WITH_MORE},
            [
                "docs/meanings.toml: [tariff] explains `rates`, which is no value",
                "docs/meanings.toml: [wind] explains `w`, which is no value",
            ],
        ),
        ({"described": WITHOUT_RELAY}, ["docs/devices.toml does not say what `relay` is"]),
        (
            {"described": {**values.kinds(), "windmill": "a windmill"}},
            ["docs/devices.toml has `windmill`, which no value has"],
        ),
        (
            {"found": [*values.rows(), WINDMILL]},
            [
                "docs/meanings.toml: [status] has no meaning of `msg_retry_count` (windmill/<serial>)",
                "docs/devices.toml does not say what `windmill` is",
                "DEVICE_KINDS of bridge.discovery.devices lacks `windmill`",
            ],
        ),
        (
            {"found": [row for row in values.rows() if row.name != "der1_state"]},
            [
                "no simulated home has `der1_state`, nor has UNSEEN in docs/values.py",
                "docs/meanings.toml: [relay] explains `der1_state`, which is no value",
                "docs/meanings.toml: [status] explains `der1_state`, which is no value",
            ],
        ),
    ],
)
def test_each_gap_and_each_rest_of_the_tables_is_named(changes: dict[str, Any], expected: list[str]) -> None:
    tables = {"found": values.rows(), "known": values.meanings(), "described": values.kinds()}
    assert list(values.discrepancies(**{**tables, **changes})) == expected


def test_the_generator_fails_and_writes_nothing_where_a_meaning_is_missing(tmp_path: Path) -> None:
    copied = Path(shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__")))
    lines = (copied / "meanings.toml").read_text().splitlines(keepends=True)
    (copied / "meanings.toml").write_text("".join(line for line in lines if not line.startswith("release_stage")))
    before = {path: path.read_bytes() for path in copied.glob("*.md")}
    done = subprocess.run([sys.executable, copied / "generate.py"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "docs/meanings.toml: [info] has no meaning of `release_stage` (gateway)\n"
    assert {path: path.read_bytes() for path in copied.glob("*.md")} == before


def test_every_diagnostic_is_in_the_tables() -> None:
    shown = {row.name for row in values.rows() if row.source == DIAGNOSTICS_SOURCE}
    assert shown == {row.name for row in DIAGNOSTICS}


# Settings


def test_every_setting_stands_in_the_documents() -> None:
    table = generate.settings_table()
    assert table in SETTINGS_PAGE.read_text()
    assert [name for name in (*names(), CONFIG_VARIABLE) if f"| `{name}` |" not in table] == []


@each_document
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(rf"{VARIABLE_PREFIX}[A-Z0-9_]+", path.read_text()))
    assert named - {*names(), CONFIG_VARIABLE} == set()


@pytest.mark.parametrize(("name", "block"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_settings_of_a_shell_block_load(clean: pytest.MonkeyPatch, name: str, block: str) -> None:
    for setting, value in settings_of(block).items():
        clean.setenv(setting, value)
    assert load().all_gateways, name


def test_settings_of_a_dotenv_file_load(clean: pytest.MonkeyPatch) -> None:
    block = next(text for name, text in SETTINGS if name.startswith("settings.md"))
    Path(".env").write_text(block)
    from_file = load()
    Path(".env").unlink()
    for setting, value in settings_of(block).items():
        clean.setenv(setting, value)
    assert from_file == load()


@pytest.mark.parametrize("block", [text for name, text in blocks("toml") if not name.startswith(CONSUMERS)])
def test_settings_of_a_toml_block_load(clean: pytest.MonkeyPatch, block: str) -> None:
    Path("bridge.toml").write_text(block)
    clean.setenv(CONFIG_VARIABLE, "bridge.toml")
    assert load().all_gateways[0].host == "192.168.1.20"


# Commands


@pytest.mark.parametrize("command", QUOTED_COMMANDS)
def test_commands_that_are_shown_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(command)
    if "--help" not in arguments:
        assert parser().parse_args(arguments).command == arguments[0]
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([arguments[0], "--help"])
    assert ended.value.code == 0
    assert arguments[0] in capsys.readouterr().out


def test_every_command_is_shown() -> None:
    helped = subprocess.run(
        [sys.executable, "-m", "bridge", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    known = re.search(r"^  command\n((?:    .*\n)+)", helped.stdout, re.MULTILINE)
    assert known is not None
    assert set(re.findall(r"^    (\w+)", known[1], re.MULTILINE)) == {
        command.split()[0] for command in QUOTED_COMMANDS
    }


def test_every_home_of_the_simulator_is_named() -> None:
    assert [home for home in HOMES if f"`{home}`" not in COMMANDS.read_text()] == []


def test_exit_codes_are_those_of_the_commands() -> None:
    table = COMMANDS.read_text().partition("\n## Exit codes")[2].partition("##")[0]
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert shown == {
        *(0, report.EXIT_NOT_IN_FORCE, 2, report.EXIT_UNAVAILABLE, report.EXIT_REFUSED),
        *(report.EXIT_CONFIGURATION, report.EXIT_STOPPED),
    }


@pytest.mark.parametrize("command", [DEMO_COMMAND, TEST_COMMAND])
def test_the_readme_has_the_demo_and_the_test_as_one_command_each(command: str) -> None:
    found = [name for name, block in blocks("sh") if command in block.splitlines()]
    assert [name.partition(":")[0] for name in found] == ["README.md"]


def test_the_readme_is_short_and_shows_a_picture_first() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 125
    assert any(line.startswith("![") for line in lines[:10])


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """CI contains this command, or reads it from the README."""
    script = (ROOT / ".ci/run").read_text()
    assert TEST_COMMAND in script or "README.md" in script


# Topics and entities


@dataclass(frozen=True)
class PublishedValues:
    """The values that the bridge publishes of the simulated home in the documents."""

    topics: frozenset[str]
    discovery: frozenset[str]
    entities: frozenset[str]
    documents: tuple[frozenset[str], ...]
    values: dict[str, str]
    """The payloads of the topics below the gateway's own, such as `site/grid/power`."""


@cache
def home() -> PublishedValues:
    facts, when, sent = Facts(""), datetime.fromtimestamp(values.NOW, UTC), list[Message]()
    tree = Tree(
        Names(),
        HOMES[DEMO_HOME].serial,
        [*(endpoint.source for endpoint in ENDPOINTS), SITE_SOURCE, DIAGNOSTICS_SOURCE],
    )
    pipeline = Pipeline(netted=True, zone=UTC)
    answers = list(values.answers(DEMO_HOME))
    for endpoint, body in answers + answers:  # the second round confirms the first readings of counters
        if not endpoint.wanted(facts):
            continue
        parsed = endpoint.parse(body, facts, values.NOW)
        facts = parsed.facts or facts
        counted = pipeline.process(endpoint.source, parsed, facts, now=values.NOW, steady=0)
        sent += tree.update(endpoint.source, counted.readings, when)
        sent += tree.update(SITE_SOURCE, flows, when) if (flows := pipeline.flows(counted.answer)) else ()
        sent += (
            online(tree.names.availability(facts.serial, source), is_online=True)
            for source in (endpoint.source, SITE_SOURCE)
        )
    known = Diagnostics(None, when, "owner", "9af8de14", when, 0.1)
    sent += tree.update(DIAGNOSTICS_SOURCE, list(known.readings()), when)
    sent.append(online(f"{tree.names.bridge}/state", is_online=True))
    sent.append(online(tree.names.state(facts.serial), is_online=True))
    event = GatewayEvent(EventKind.INVERTER_SILENT, values.NOW, "1", facts.serial, "")
    sent.append(event.message(tree.names.events(facts.serial)))
    sent.append(bridge_info(tree.names, __version__, when, [facts.serial], 60))
    gateway = AnnouncedGateway(facts, "https://envoy.local")
    found = list(discovery.announce(discovery.DiscoveryOptions(tree.names), gateway, tree.rows))
    devices = [json.loads(message.payload) for message in found]
    entities = [{**one, "device": body["device"]} for body in devices for one in body["components"].values()]
    return PublishedValues(
        frozenset(message.topic for message in sent),
        frozenset(message.topic for message in found),
        frozenset(map(entity_id, entities)),
        tuple(frozenset(json.loads(message.payload)) for message in sent if message.content_type),
        {message.topic.split("/", 2)[2]: str(message.payload) for message in sent},
    )


COMMAND_TOPIC = re.compile(r"/(set|request|response|command)$")
"""Topics that are there only once somebody has sent a command."""


@each_document
def test_topics_that_are_shown_exist(path: Path) -> None:
    found = re.findall(r"\benphase/(?:\d{12}|\+|bridge|<gateway>)/[\w/+#<>-]+", path.read_text())
    named = {re.sub(r"<\w+>", "+", name) for name in found}
    unknown = [
        name
        for name in named
        if not any(topic_matches_sub(name, t) for t in home().topics)
        and not name.startswith("enphase/bridge/+/")
        and not COMMAND_TOPIC.search(name)
    ]
    assert unknown == []


@each_document
def test_entities_that_are_shown_exist(path: Path) -> None:
    named = set(re.findall(r"\b(?:binary_)?sensor\.[a-z0-9_*]+", path.read_text()))
    assert {name for name in named if not fnmatch.filter(home().entities, name)} == set()


def test_the_topics_that_others_move_to_exist() -> None:
    """The tables of moving.md have the topics without their common beginning."""
    tables = re.findall(r"^\| .* \|$", MOVING.read_text(), re.MULTILINE)
    named = {
        topic
        for line in tables
        for topic in re.findall(r"`((?:site|meter|live|energy|report|inverter|battery|gateway)/[^`]+)`", line)
    }
    known = {re.sub(r"^enphase/\d+/", "", topic) for topic in home().topics}
    one_phase = {re.sub(r"/l1/", "/", topic) for topic in known}
    filters = {topic: re.sub(r"<\w+>", "+", topic).replace("*", "#") for topic in named}
    assert len(named) > len(values.FREE)
    assert [
        topic for topic, like in filters.items() if not any(topic_matches_sub(like, t) for t in known | one_phase)
    ] == []


def moved(heading: str) -> list[tuple[str, str]]:
    """The rows of a table of moving.md: a path in the gateway's answer, such as `["soc"]`, and our name."""
    section = MOVING.read_text().partition(f"\n### {heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    return re.findall(r'^\| `(\["[^`]+)` \| `([^`]+)`', section, re.MULTILINE)


def answer(source: str) -> Any:
    return next(json.loads(body) for endpoint, body in values.answers(DEMO_HOME) if endpoint.source == source)


def picked(document: Any, path: str) -> Any:
    """The value at a path as templates of Home Assistant have it, such as `["pv"]["agg_p_mw"]/1000`."""
    for level in re.findall(r'\["(\w+)"\]', path):
        document = document[level]
    return document / 1000 if path.endswith("/1000") else document


def assert_same(topic: str, theirs: Any) -> None:
    text = home().values[topic]
    if re.fullmatch(r"ON|OFF|.*T.*", text):
        expected = text == "ON" if text in {"ON", "OFF"} else datetime.fromisoformat(text).timestamp()
        assert theirs == expected, topic
    else:
        assert theirs == pytest.approx(float(text), abs=0.001), topic


def test_whoever_moves_from_the_readings_finds_the_same_values() -> None:
    rows, compared = moved("Firmware 7 and 8"), 0
    for meter, role in zip(answer("readings"), ("production", "net-consumption"), strict=False):
        for parts, level in [(meter, ""), *((meter["channels"][place], f"l{place + 1}/") for place in range(3))]:
            for path, name in rows:
                if level or name not in {"power_factor", "current"}:
                    phases = len(parts["channels"]) if not level and name == "voltage" else 1
                    assert_same(f"meter/{role}/{level}{name}", picked(parts, path) / phases)
                    compared += 1
    assert len(rows) == len(meter.keys() - {"channels"})
    assert compared == 2 * (4 * len(rows) - 2)


def test_whoever_moves_from_the_live_data_finds_the_same_values() -> None:
    rows, meters = moved("Firmware 8 with batteries"), answer("livedata")["meters"]
    for path, topic in rows:
        assert_same(topic, picked(meters, path))
    named = {re.findall(r"\w+", path)[0] for path, _ in rows}
    assert named == meters.keys()


def test_every_document_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (ROOT / "docs/README.md").read_text()))
    assert linked == {path.name for path in DOCUMENTS if path.parent == ROOT / "docs"} - {"README.md"}


@pytest.mark.parametrize("block", [text for _, text in blocks("json")])
def test_json_blocks_are_a_flow_or_a_document_of_a_device(block: str) -> None:
    shown = json.loads(block)
    if isinstance(shown, list):
        nodes = {node["id"] for node in shown}
        wires = {end for node in shown for port in node.get("wires", ()) for end in port}
        assert wires | {node["broker"] for node in shown if node["type"] == "mqtt in"} <= nodes
    else:
        assert shown.keys() in home().documents


@pytest.mark.parametrize("block", [text for name, text in blocks("yaml") if not name.startswith(CONSUMERS)])
def test_yaml_blocks_are_what_their_readers_take(block: str) -> None:
    """A block is an automation or the recorder's part for Home Assistant, or settings or alerts for Prometheus."""
    (part,) = yaml.safe_load(block).items()
    match part:
        case "automation", automations:
            assert all({"alias", "triggers", "actions"} <= each.keys() for each in automations)
        case "recorder", recorder:
            assert recorder["exclude"].keys() == {"entity_globs"}
        case "scrape_configs", jobs:
            assert [job["static_configs"][0]["targets"] for job in jobs] == [["127.0.0.1:8080"]]
            assert ['job="' + job["job_name"] in (ROOT / "docs/health.md").read_text() for job in jobs] == [True]
        case "groups", groups:
            assert_alerts([rule for group in groups for rule in group["rules"]])
        case other:
            raise AssertionError(other)


def assert_alerts(rules: list[dict[str, Any]]) -> None:
    """Check that the alerts use existing metrics with existing labels."""
    known = {
        metric.full_name + ending: {*metric.labels} for metric in METRICS for ending in NAME_ENDINGS[metric.kind]
    }
    assert len({rule["alert"] for rule in rules}) == len(rules) > 0
    for rule in rules:
        named = re.findall(r"\biqgateway2mqtt_\w+", rule["expr"])
        assert named
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert all(labels <= known[name] for name in named[:1])
        assert {*named} <= known.keys()


@pytest.mark.parametrize(("name", "block"), blocks("java"))
def test_java_blocks_are_what_openhab_reads(name: str, block: str) -> None:
    """Things come first, because the items after them are linked to them."""
    things, items = openhab.things(block), openhab.items(block)
    assert [] in (things.complaints, items.complaints)
    if not things.complaints:
        topics = {channel.parameters["stateTopic"] for channel in things.channels.values()} | things.topics
        assert topics <= home().topics
        return
    before = [text for other, text in blocks("java") if other.partition(":")[0] == name.partition(":")[0]]
    known = before[before.index(block) - 1]
    assert openhab.linked(items, openhab.things(known)) == []


# Links and versions


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes for headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_internal_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_files_that_are_named_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`((?:docs|tests|bridge)/[\w/.]+\.\w+)`", path.read_text()):
            assert (ROOT / name).is_file(), f"{path.name}: {name}"


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
