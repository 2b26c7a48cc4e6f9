"""openHAB: discovery in both forms, and the text files of examples/openhab, by the rules of tests/openhab.py."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import openhab
import pytest
from cli import Shell, home, served, shell
from houses import NOON_HOUR

from bridge.simulator import HOMES, Simulator
from bridge.simulator.replay import Replay
from bridge.simulator.serve import serve_in_thread

__all__ = ["shell"]

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "openhab"
CAPTURED = HERE.parents[1] / "shared" / "gateways"
"""Answers of real gateways, which are not part of the project."""
SETS = [
    *sorted(path for path in (HERE / "data").iterdir() if (path / "info").is_file()),
    *(sorted(path for path in CAPTURED.iterdir() if (path / "info").is_file()) if CAPTURED.is_dir() else []),
]
FILES = ("things/enphase.things", "items/enphase.items", "sitemaps/enphase.sitemap")
DEMO_HOME = "three-phase"
"""The home in the example."""
VERSIONS = {"device": (5, 2), "component": (5, 1)}
"""The oldest version of openHAB for each form."""


def once(shell: Shell, form: str = "device") -> dict[str, str]:
    """All messages of the bridge, by topic. If an endpoint fails, the others are still there."""
    told = shell.set(homeassistant__discovery=form).run("once", "--all")
    return dict(line.split(" ", 1) for line in told.text.splitlines())


def simulated(shell: Shell, name: str, form: str = "device") -> dict[str, str]:
    with home(shell, name):
        return once(shell, form)


def captured(shell: Shell, folder: Path, form: str = "device") -> dict[str, str]:
    replay = Replay(folder)
    with served(shell, replay, tls=replay.secure):
        if replay.secure:
            shell.set(gateway__token=replay.token())
        return once(shell, form)


def announced(tree: Mapping[str, str]) -> dict[str, str]:
    return {topic: text for topic, text in tree.items() if topic.startswith(openhab.DISCOVERY_PREFIX)}


def made(folder: Path, tree: Mapping[str, str], *options: str) -> list[str]:
    """The texts of the three files, from the example's generator."""
    lines = "".join(f"{topic} {text}\n" for topic, text in tree.items())
    command = [sys.executable, str(EXAMPLE / "generate.py"), str(folder), *options]
    subprocess.run(command, input=lines, text=True, check=True, capture_output=True)
    return [(folder / name).read_text() for name in FILES]


def complaints(texts: list[str]) -> list[str]:
    things, items = openhab.things(texts[0]), openhab.items(texts[1])
    own = [*things.complaints, *items.complaints, *openhab.linked(items, things)]
    return [*own, *openhab.sitemap(texts[2], items.items)]


def unshown(texts: list[str], tree: Mapping[str, str]) -> list[str]:
    """The channels without a topic in the tree, or with a payload that openHAB could not show."""
    things = openhab.things(texts[0])
    topics = {channel.parameters["stateTopic"] for channel in things.channels.values()} | things.topics
    values = ((channel, tree.get(channel.parameters["stateTopic"], "None")) for channel in things.channels.values())
    odd = [channel.uid for channel, text in values if text != "None" and not openhab.shows(channel, text)]
    # No bridge runs, so there is no such message; and nothing has happened.
    absent = {"enphase/bridge/state", *(topic for topic in topics if topic.endswith("/events"))}
    return [*sorted(topics - tree.keys() - absent), *odd]


@pytest.mark.parametrize("form", ["component", "device", "off"])
def test_a_home_has_as_many_retained_messages_as_the_page_on_brokers_says(shell: Shell, form: str) -> None:
    """Some brokers keep a certain number only. A bridge that runs has two more: its state and its info."""
    page = (HERE.parent / "docs" / "brokers.md").read_text().partition("| retained messages |")[2]
    told = re.search(rf"\| `{form}` \| (\d+) \|", page)
    assert told is not None
    assert int(told[1]) == pytest.approx(len(simulated(shell, DEMO_HOME, form)) + 2, abs=10)


# Discovery and the generator, for every home there is


def check_all(folder: Path, tree: Mapping[str, str], form: str) -> None:
    messages = announced(tree)
    assert messages
    assert [
        text for topic, body in messages.items() for text in openhab.discovery(topic, body, VERSIONS[form])
    ] == []
    assert openhab.one_thing_each(messages) == [] or form == "device"
    if form == "device":
        texts: list[str] = []
        for options in (), ("--all", "--regex", "--broker", "mqtt:broker:other"):
            texts = made(folder, tree, *options)
            assert complaints(texts) == []
            assert unshown(texts, tree) == []
        entities = {entity["state_topic"] for body in messages.values() for entity in parts(body)}
        channels = openhab.things(texts[0]).channels.values()
        assert entities <= {channel.parameters["stateTopic"] for channel in channels}


def parts(body: str) -> list[dict[str, str]]:
    """The entities that show the value of a topic; those of events and updates have no item."""
    found = json.loads(body)["components"].values()
    return [entity for entity in found if entity["platform"] in {"sensor", "binary_sensor"}]


@pytest.mark.parametrize("form", VERSIONS)
@pytest.mark.parametrize("name", HOMES)
def test_simulated_homes(shell: Shell, tmp_path: Path, name: str, form: str) -> None:
    check_all(tmp_path, simulated(shell, name, form), form)


@pytest.mark.parametrize("form", VERSIONS)
@pytest.mark.parametrize("folder", SETS, ids=lambda path: path.name)
def test_captured_gateways(shell: Shell, tmp_path: Path, folder: Path, form: str) -> None:
    check_all(tmp_path, captured(shell, folder, form), form)


@pytest.mark.skipif(
    not CAPTURED.is_dir(), reason="the captured gateways (../shared/gateways) are not on this machine"
)
def test_the_captures_are_there() -> None:
    """If this test is skipped, real gateways were not checked."""
    assert len(SETS) > 20


@pytest.mark.parametrize(
    "names", [("", ""), ("House", "Barn"), ('The "old" [mill] \\', "Bär, 2%"), ("日本", "東京")]
)
def test_two_gateways(shell: Shell, tmp_path: Path, names: tuple[str, str]) -> None:
    """The files have everything of both gateways, each name once, whatever the names. There is one bridge."""
    with ExitStack() as stack:
        homes = [Simulator(name, start_hour=NOON_HOUR) for name in ("split-phase", "no-cts")]
        gateways = [
            {
                "host": f"https://{stack.enter_context(serve_in_thread(one, tls=True))}",
                "token": one.token(),
                **({"name": name} if name else {}),
            }
            for one, name in zip(homes, names, strict=True)
        ]
        tree = once(shell.set(gateways=json.dumps(gateways)))
    assert {one.serial for one in homes} <= {topic.split("/")[1] for topic in tree}
    texts = made(tmp_path, tree, "--all")
    assert complaints(texts) == []
    assert unshown(texts, tree) == []
    entities = {entity["state_topic"] for body in announced(tree).values() for entity in parts(body)}
    shown = [channel.parameters["stateTopic"] for channel in openhab.things(texts[0]).channels.values()]
    assert entities <= set(shown)
    assert shown.count("enphase/bridge/state") == 1


@pytest.mark.parametrize("name", ["split-phase", "ac-batteries"])
def test_what_may_be_set_is_a_thing_that_sends_commands(shell: Shell, tmp_path: Path, name: str) -> None:
    """Those that Home Assistant disables at first, such as leaving the grid, come with --all only."""
    tree = simulated(shell.set(control__allow="all,grid"), name)
    found = [entity for body in announced(tree).values() for entity in json.loads(body)["components"].values()]
    offered = [entity for entity in found if "command_topic" in entity]
    texts = list[str]()
    for options, wanted in ((), [one for one in offered if "enabled_by_default" not in one]), (("--all",), offered):
        texts = made(tmp_path, tree, *options)
        assert complaints(texts) == []
        assert [topic for topic in unshown(texts, tree) if not topic.endswith("/command/text")] == []
        channels = openhab.things(texts[0]).channels.values()
        sending = {one.parameters.get("commandTopic"): one for one in channels} | {None: None}
        del sending[None]
        assert sending.keys() == {entity["command_topic"] for entity in wanted}
        assert len(sending) > 4 or name == "ac-batteries"
    entries = re.findall(r"(Switch|Selection|Setpoint|Input) item", texts[2])
    assert len(entries) == len(offered)


# The example


@pytest.mark.parametrize(("place", "name"), [*enumerate(FILES)])
def test_the_example_is_what_the_generator_makes_now(shell: Shell, tmp_path: Path, place: int, name: str) -> None:
    text = made(tmp_path, simulated(shell, DEMO_HOME))[place]
    assert (EXAMPLE / name).read_text() == text, "run what examples/openhab/README.md says"


def test_the_example_is_complete(shell: Shell) -> None:
    """It has all of the site, the meters with their phases, the inverters, the storage and the gateway."""
    tree = simulated(shell, DEMO_HOME)
    things = openhab.things((EXAMPLE / FILES[0]).read_text())
    shown = {channel.parameters["stateTopic"] for channel in things.channels.values()}
    wanted = {
        entity["state_topic"]
        for topic, body in announced(tree).items()
        if not re.search(r"_(live|energy|report)/config$", topic)
        for entity in parts(body)
    }
    assert len(wanted) > 300
    assert shown - wanted == {topic for topic in shown if "/availability/" in topic} | {"enphase/bridge/state"}
    assert wanted <= shown


def test_with_regex_none_is_no_value(shell: Shell, tmp_path: Path) -> None:
    """openHAB's add-on reads a pattern as a replacement or as one group, and skips payloads that do not match."""
    channels = openhab.things(made(tmp_path, simulated(shell, DEMO_HOME), "--regex")[0]).channels.values()
    patterns = {
        channel.kind: channel.parameters["transformationPattern"].removeprefix("REGEX:")
        for channel in channels
        if "transformationPattern" in channel.parameters
    }
    assert patterns.keys() == {"number", "switch", "datetime"}
    replaced = re.fullmatch(r"s/(.+)/(.+)/", patterns.pop("number"))
    assert replaced is not None
    assert [re.sub(replaced[1], replaced[2], text, count=1) for text in ("None", "-1.5")] == ["NaN", "-1.5"]
    for kind, text in ("switch", "ON"), ("datetime", "2026-11-22T06:00:00+00:00"):
        found = re.fullmatch(patterns[kind], text)
        assert found is not None
        assert found[1] == text
        assert re.fullmatch(patterns[kind], "None") is None


def test_without_discovery_the_generator_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "generate.py"), str(tmp_path / "openhab")]
    done = subprocess.run(command, input="enphase/1/state online\n", text=True, check=False, capture_output=True)
    assert done.returncode == 2
    assert "`iqgateway2mqtt once --discovery`" in done.stderr
    assert not (tmp_path / "openhab").exists()


@pytest.mark.parametrize("page", ["docs/openhab.md", "examples/openhab/README.md"])
def test_the_lines_that_the_pages_show_work(shell: Shell, tmp_path: Path, page: str) -> None:
    """The pages also show every option."""
    text = (EXAMPLE.parents[1] / page).read_text()
    lines = re.findall(
        r"^iqgateway2mqtt once --discovery \| python3 examples/openhab/generate\.py(.*) (\S+)$", text, re.MULTILINE
    )
    assert lines
    tree = simulated(shell, DEMO_HOME)
    for options, folder in lines:
        made(tmp_path / folder.strip("/"), tree, *options.split())
        assert (tmp_path / folder.strip("/") / FILES[0]).is_file()
    helped = subprocess.run(
        [sys.executable, EXAMPLE / "generate.py", "-h"], check=True, capture_output=True, text=True
    )
    known = set(re.findall(r"--[a-z]+", helped.stdout)) - {"--help"}
    assert known == set(re.findall(r"--[a-z]+", text)) - {"--discovery"} or "openhab.md" not in page


# The rules notice


@cache
def good() -> dict[str, object]:
    component = {"platform": "sensor", "unique_id": "a_power", "unit_of_measurement": "W", "device_class": "power"}
    return {"device": {"identifiers": ["a"]}, "origin": {"name": "x"}, "components": {"power": component}}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda body: body["device"].pop("identifiers"), "identifiers"),
        (lambda body: body.update(expire_after=1), "unknown key expire_after"),
        (lambda body: body["device"].update(room=1), "unknown key room"),
        (lambda body: body["origin"].pop("name"), "origin has no name"),
        (lambda body: body["components"].clear(), "no components"),
        (lambda body: body["components"].update({"a-b": {"platform": "x"}, "a_b": {"platform": "y"}}), "twice"),
        (lambda body: body["components"]["power"].update(platform="sensors"), "unknown platform"),
        (lambda body: body["components"]["power"].pop("unique_id"), "no unique_id"),
        (lambda body: body["components"]["power"].update(device_class="uptime"), "uptime is unknown"),
        (lambda body: body["components"]["power"].update(unit_of_measurement="Watt"), "Watt is no unit"),
        (lambda body: body["components"]["power"].pop("unit_of_measurement"), "become a text"),
        (lambda body: body["components"]["power"].update(value_template="{{ 1 }}"), "template"),
        (lambda body: body["components"]["power"].update(availability=[]), "availability would become"),
        (lambda body: body["components"].update({"l1 power": body["components"]["power"]}), "no id of a channel"),
    ],
)
def test_the_rules_of_discovery_notice(change: Callable[..., object], why: str) -> None:
    body = json.loads(json.dumps(good()))
    assert openhab.discovery("homeassistant/device/a/config", json.dumps(body)) == []
    change(body)
    assert why in " ".join(openhab.discovery("homeassistant/device/a/config", json.dumps(body)))


def test_the_rules_know_the_versions_and_the_prefix() -> None:
    text = json.dumps(good())
    assert "before 5.2" in openhab.discovery("homeassistant/device/a/config", text, (5, 1))[0]
    assert openhab.discovery("other/device/a/config", text) == ["no topic of discovery: other/device/a/config"]
    one = json.dumps({"device": {"identifiers": ["a"]}, "availability": [{"topic": "x"}]})
    two = json.dumps({"device": {"identifiers": ["a"]}, "availability": [{"topic": "y"}]})
    assert openhab.one_thing_each({"1": one, "2": two}) == ["['a']: several availabilities"]


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        (0, 'unit="W"', 'unit="Watt"', "Watt is no unit"),
        (0, "Type number : solar_power", "Type numbr : solar_power", "unknown kind"),
        (0, "site/solar/power", "site/+/power", "no state topic"),
        (0, ', payloadAvailable="online"', "", "by default"),
        (0, "solar_source", "solar_power", "twice"),
        (0, "\n}", "\n", "not understood"),
        (0, 'on="online", ', "", "on without off"),
        (0, "unit=", "units=", "unknown parameter"),
        (1, "Number:Power", "Number:Energy", "Number:Energy for a channel number W"),
        (1, ', unit="W"', "", "without its unit"),
        (1, "%unit%", "V", "does not show its unit"),
        (1, "site:grid_power", "site:grid_pwr", "not one channel"),
        (1, "Enphase_Grid_Power", "Enphase_Solar_Power", "twice"),
        (1, "(Enphase_Site)", "(Enphase)", "no group"),
        (1, '"Measurement"', '"Measure"', "no tag"),
        (1, "Switch ", "Swich ", "not understood"),
        (2, "item=Enphase_Solar_Power", "item=Enphase_Solar", "no item"),
        (2, "Text item=Enphase_Grid_Power", 'Frame label="x" {', "a brace is open"),
        (2, "    Frame label", "    Fram label", "not understood"),
        (2, '    Frame label="Meters" {', '    Text label="Meters" {', "frames among others"),
    ],
)
def test_the_rules_of_text_files_notice(file: int, old: str, new: str, why: str) -> None:
    texts = [(EXAMPLE / name).read_text() for name in FILES]
    assert complaints(texts) == []
    assert old in texts[file]
    texts[file] = texts[file].replace(old, new, 1)
    assert why in " ".join(complaints(texts))


def test_what_a_channel_shows() -> None:
    def channel(kind: str, **parameters: str) -> openhab.ThingChannel:
        return openhab.ThingChannel("x", kind, parameters)

    number, time = channel("number"), channel("datetime")
    assert [openhab.shows(number, text) for text in ("-1.5", "0", "None", "1e3", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert openhab.shows(time, "2026-11-22T06:00:00+00:00")
    assert not openhab.shows(time, "2026-11-22T06:00:00")
    assert openhab.shows(channel("switch", on="online", off="offline"), "online")
    assert not openhab.shows(channel("switch"), "online")
    assert openhab.shows(channel("string", nullValue="None"), "None")
