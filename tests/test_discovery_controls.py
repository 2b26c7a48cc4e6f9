"""Controls in discovery: which there are, what they send and show, and that they come and go without a trace."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import openhab
import pytest
from jinja2 import Environment
from samples import NOW
from strict import check

from bridge import discovery
from bridge.control import CommandState, control_of
from bridge.discovery.devices import AnnouncedGateway
from bridge.endpoints import CONTROLS, ENDPOINTS
from bridge.model import Facts, Message, Priority, Reading
from bridge.outbox import Outbox
from bridge.rows import Row
from bridge.service.publisher import GatewayPublisher, PublishOptions, TreeState
from bridge.simulator import Simulator
from bridge.simulator.http import HttpRequest
from bridge.topics import Names, Tree

GOLDEN = Path(__file__).parent / "controls"
EVERYTHING = frozenset({"storage", "contacts", "generator", "limit", "acb", "grid"})
ORDER = [endpoint.source for endpoint in ENDPOINTS]
HOMES = ("split-phase", "ac-batteries", "collar", "three-phase")
WHEN = datetime.fromtimestamp(NOW, UTC)


@cache
def answered(home: str, personality: str | None = None) -> tuple[Facts, tuple[tuple[str, Reading], ...]]:
    """What a simulated gateway tells in the first round, by source."""
    simulator = Simulator(home, clock=lambda: NOW, personality=personality)
    headers = {"authorization": f"Bearer {simulator.token()}"}
    facts, found = Facts(simulator.serial), list[tuple[str, Reading]]()
    for endpoint in ENDPOINTS:
        reply = simulator.gateway.answer(HttpRequest("GET", endpoint.path, {}, headers))
        if reply.status != 200 or not endpoint.wanted(facts):
            continue
        parsed = endpoint.parse(reply.body, facts, NOW)
        facts = parsed.facts or facts
        found += [(endpoint.source, reading) for reading in parsed.readings]
    return facts, tuple(found)


def rows_of(readings: Sequence[tuple[str, Reading]], serial: str) -> list[Row]:
    tree = Tree(Names(), serial, ORDER)
    for source in dict.fromkeys(source for source, _ in readings):
        list(tree.update(source, [reading for own, reading in readings if own == source], WHEN))
    return list(tree.rows)


def messages_of(
    home: str, allowed: frozenset[str] = EVERYTHING, *, form: str = "device", personality: str | None = None
) -> list[Message]:
    facts, readings = answered(home, personality)
    about = AnnouncedGateway(facts, "https://envoy.local", allowed=allowed)
    options = discovery.DiscoveryOptions(Names(), form=form)
    return list(discovery.announce(options, about, rows_of(readings, facts.serial)))


def controls_of(messages: Sequence[Message]) -> dict[str, dict[str, Any]]:
    """The controls by the topic below the gateway that they show a command to."""
    found = check(messages).values()
    return {
        entity["command_topic"].split("/", 2)[2].removesuffix("/set"): entity
        for entity in found
        if "command_topic" in entity
    }


def generic(target: str) -> str:
    """A target as the table has it."""
    kind, _, rest = target.partition("/")
    return target if target in CONTROLS else f"{kind}/+/{rest.partition('/')[2]}"


# Which there are


def test_each_control_whose_effect_can_be_read_is_in_discovery() -> None:
    found = {generic(target) for home in HOMES for target in controls_of(messages_of(home))}
    assert found == {topic for topic, control in CONTROLS.items() if control.proof is not None}


@pytest.mark.parametrize("group", sorted(EVERYTHING))
def test_a_group_allows_its_own_controls_only(group: str) -> None:
    found = [
        control
        for home in HOMES
        for target in controls_of(messages_of(home, frozenset({group})))
        if (control := control_of(CONTROLS, target))
    ]
    assert {control.group for control in found} == ({group} if group != "limit" else set())


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("form", ["device", "component"])
def test_without_permission_nothing_tells_of_commands(home: str, form: str) -> None:
    text = " ".join(f"{one.topic} {one.payload}" for one in messages_of(home, frozenset(), form=form))
    assert not re.search(r"command_topic|/set\"|_control(\"|/config)|/response|last_command", text)


@pytest.mark.parametrize("home", HOMES)
def test_with_permission_only_the_sensors_of_the_same_values_change(home: str) -> None:
    """They stay, and are disabled where Home Assistant does not know them yet."""
    before, after = (check(messages_of(home, allowed)) for allowed in (frozenset[str](), EVERYTHING))
    shown = {entity["state_topic"] for entity in controls_of(messages_of(home)).values()}
    for unique_id, entity in before.items():
        hidden = {"enabled_by_default": False} if entity["state_topic"] in shown else {}
        assert after[unique_id] == {**entity, **hidden}


@pytest.mark.parametrize(
    ("personality", "missing"), [("obeys", set[str]()), ("stale-file", {"storage/settings/mode"})]
)
def test_firmware_that_tells_no_mode_in_force_has_no_control_of_it(personality: str, missing: set[str]) -> None:
    storage = {topic for topic in CONTROLS if topic.startswith("storage/")} - {"storage/settings/optimized"}
    found = controls_of(messages_of("split-phase", frozenset({"storage"}), personality=personality))
    assert found.keys() == storage - missing


def test_what_the_answer_that_is_written_back_does_not_have_can_not_be_set() -> None:
    """Also where another answer has a value of the same name."""
    facts, readings = answered("split-phase")
    lacking = [(source, one) for source, one in readings if (source, one.name) != ("tariff", "reserve")]
    about = AnnouncedGateway(facts, "https://envoy.local", allowed=EVERYTHING)
    options = discovery.DiscoveryOptions(Names())
    found = controls_of(list(discovery.announce(options, about, rows_of(lacking, facts.serial))))
    assert "storage/settings/reserve" not in found
    assert "storage/settings/mode" in found
    assert "relay/mains/state" not in found


# What they are


def test_controls_as_they_are_announced(pytestconfig: pytest.Config) -> None:
    """`--update-golden` writes the files anew; read the difference before you keep it."""
    for home in ("split-phase", "ac-batteries"):
        found = "".join(f"{line}\n" for line in lines(messages_of(home)))
        file = GOLDEN / f"{home}.txt"
        if pytestconfig.getoption("--update-golden"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(found)
        assert found.splitlines() == file.read_text().splitlines()


def lines(messages: Sequence[Message]) -> Iterator[str]:
    """A line for each control, and one for what those of a device share."""
    for message in messages:
        body = json.loads(message.payload)
        if message.topic.endswith("_control/config"):
            del body["origin"]
            for key, entity in body.pop("components").items():
                yield f"{message.topic} {key} {json.dumps(entity)}"
            yield f"{message.topic} {json.dumps(body)}"


def test_a_control_shows_what_is_in_force_and_not_what_is_stored() -> None:
    found = controls_of(messages_of("split-phase"))
    for target, entity in found.items():
        control = control_of(CONTROLS, target)
        assert control is not None
        assert entity["state_topic"].split("/", 2)[2] == (control.proof or target)


@pytest.mark.parametrize("home", ["split-phase", "ac-batteries"])
def test_controls_are_available_while_what_is_in_force_can_be_read(home: str) -> None:
    sources = {f"{one.device}/{one.name}": source for source, one in reversed(answered(home)[1])}
    for message in messages_of(home):
        body = json.loads(message.payload)
        shown = [entity for entity in body["components"].values() if "command_topic" in entity]
        if not shown:
            continue
        bridge, gateway, *others = (item["topic"] for item in body["availability"])
        base = shown[0]["command_topic"].rpartition("/relay/")[0] or "/".join(
            shown[0]["command_topic"].split("/")[:2]
        )
        assert (bridge, gateway) == ("enphase/bridge/state", f"{base}/state")
        wanted = {sources[entity["state_topic"].removeprefix(f"{base}/")] for entity in shown}
        assert {topic.removeprefix(f"{base}/availability/") for topic in others} == wanted


@pytest.mark.parametrize("home", HOMES)
def test_each_word_that_is_chosen_is_the_word_that_is_shown(home: str) -> None:
    """The templates, as Home Assistant runs them; an unknown word, and what is not known, are shown as unknown."""
    seen = 0
    for target, entity in controls_of(messages_of(home)).items():
        if entity["platform"] != "select":
            continue
        seen += 1
        show, send = (
            Environment(autoescape=False).from_string(entity[key]).render  # noqa: S701 - it makes no HTML
            for key in ("value_template", "command_template")
        )
        control = control_of(CONTROLS, target)
        assert control is not None
        words = [send(value=option) for option in entity["options"]]
        assert [show(value=word) for word in words] == entity["options"]
        assert [control.read(word) for word in words] == words
        assert {show(value=word) for word in control.options} == set(entity["options"])
        assert show(value="None") == show(value="of another kind") == "None"
    assert seen or home in {"three-phase", "collar"}


def test_leaving_the_grid_and_contacts_without_a_load_are_disabled_at_first() -> None:
    found = controls_of(messages_of("split-phase"))
    disabled = {target.rpartition("/")[0] for target, one in found.items() if "enabled_by_default" in one}
    assert disabled == {"relay/mains", "relay/nc2"}


def test_commands_have_a_sensor_and_an_event_for_each_state() -> None:
    found = check(messages_of("single-phase", frozenset({"storage"})))
    newest, event = (next(e for e in found.values() if e["name"] == name) for name in ("Last command", "Command"))
    base = f"enphase/{answered('single-phase')[0].serial}"
    assert (newest["state_topic"], newest["json_attributes_topic"]) == (f"{base}/command/text", f"{base}/command")
    assert event["state_topic"] == f"{base}/response"
    assert event["event_types"] == list(CommandState)
    assert {one["device"]["name"] for one in (newest, event)} == {"IQ Gateway"}


@pytest.mark.parametrize("form", ["device", "component"])
@pytest.mark.parametrize("home", HOMES)
def test_openhab_takes_them(home: str, form: str) -> None:
    told = {one.topic: one.payload for one in messages_of(home, form=form)}
    assert [text for topic, body in told.items() for text in openhab.discovery(topic, body)] == []
    assert openhab.one_thing_each(told) == [] or form == "device"


# Numbers outside of the range


def published(state: TreeState, *given: tuple[str, Reading]) -> tuple[list[Message], TreeState]:
    """What the broker gets of a gateway with these readings, in its order, and what is saved then."""
    outbox, told = Outbox(), list[Message]()
    announcement = discovery.DiscoveryOptions(Names())
    options = PublishOptions(Names(), announcement=announcement, allowed=frozenset({"storage"}))
    facts, readings = answered("split-phase")
    publisher = GatewayPublisher(facts.serial, options, {}, outbox.put_all)
    publisher.restore(state)
    for source in dict.fromkeys(source for source, _ in readings) if not state.rows else ():
        publisher.publish_values(source, [one for own, one in readings if own == source], NOW)
        publisher.publish_documents(source, (), NOW)
    publisher.announce(facts)
    for source, reading in given:
        assert not publisher.publish_values(source, [reading], NOW), "they have to wait"
        publisher.announce(facts)
    while message := next(iter(outbox.pending(0.0)), None):
        told.append(message)
        outbox.sent(message, 0.0)
    return told, publisher.state


def limits(messages: Sequence[Message]) -> tuple[int, int]:
    """The last announced range of the lowest reserve, and whether it came before the value."""
    topic = f"homeassistant/device/iqgateway_{answered('split-phase')[0].serial}_storage_control/config"
    (body,) = [json.loads(one.payload) for one in messages if one.topic == topic]
    found = body["components"]["reserve_lowest_control"]
    return found["min"], found["max"]


def test_a_range_grows_before_a_value_outside_of_it_comes() -> None:
    """Home Assistant logs an error for each state outside."""
    lowest = next(
        (source, one)
        for source, one in answered("split-phase")[1]
        if (one.device, one.name) == ("storage/control", "reserve_lowest")
    )
    told, state = published(TreeState())
    assert limits(told) == (5, 25)
    assert state.ranges == {}
    below, above = (lowest[0], replace(lowest[1], value=2.0)), (lowest[0], replace(lowest[1], value=40.5))
    told, state = published(TreeState(), below, above)
    assert limits(told) == (2, 40.5)
    places = [one.priority for one in told]
    assert places.index(Priority.DISCOVERY) < places.index(Priority.VALUE)
    again, _ = published(state)
    assert limits(again) == (2, 40.5), "the broker still has the value"


# Coming and going


def discovered(
    allowed: frozenset[str], state: TreeState, *, form: str = "device", skip: tuple[str, str] | None = None
) -> tuple[dict[str, str], TreeState]:
    """The newest discovery messages of a run, and what is saved at its end."""
    told = list[Message]()
    options = PublishOptions(Names(), announcement=discovery.DiscoveryOptions(Names(), form=form), allowed=allowed)
    facts, readings = answered("split-phase")
    publisher = GatewayPublisher(facts.serial, options, {}, told.extend)
    publisher.restore(state)
    for week in (0, 1, 2):
        for source in dict.fromkeys(source for source, _ in readings):
            own = [
                one
                for its, one in readings
                if its == source and (not week or skip is None or (one.device, one.name) != skip)
            ]
            publisher.publish_values(source, own, NOW + 8 * week * 86_400)
        publisher.announce(facts)
    for message in told:  # what the broker's answers cause is appended
        publisher.sent(message)
    found = {message.topic: message.payload for message in told if message.topic.startswith("homeassistant/")}
    return found, publisher.state


@pytest.mark.parametrize("form", ["device", "component"])
def test_what_is_no_longer_allowed_is_removed(form: str) -> None:
    allowed, state = discovered(frozenset({"storage", "contacts"}), TreeState(), form=form)
    given = {topic for topic in allowed if re.search("_control/|_gateway_(commands|last_command)/", topic)}
    assert len(given) == (6 if form == "device" else 4 + 4 * 9 + 2)
    taken, state = discovered(frozenset({"storage"}), state, form=form)
    removed = {topic for topic, payload in taken.items() if not payload}
    assert removed == {topic for topic in given if "_relay_" in topic}
    none, state = discovered(frozenset(), state, form=form)
    assert {topic for topic, payload in none.items() if not payload} == given - removed
    assert not given & state.discovered


def test_a_control_goes_with_what_it_shows_and_leaves_no_ghost() -> None:
    """A component that is only left out would stay in Home Assistant for ever."""
    topic = f"homeassistant/device/iqgateway_{answered('split-phase')[0].serial}_storage_control/config"
    told, _ = discovered(frozenset({"storage"}), TreeState(), skip=("storage/control", "mode"))
    components: Mapping[str, Mapping[str, Any]] = json.loads(told[topic])["components"]
    assert components["mode_control"] == {"platform": "select"}
    assert "command_topic" in components["reserve_control"]


def test_the_form_of_discovery_may_change_with_the_permission() -> None:
    device, state = discovered(frozenset({"storage"}), TreeState())
    component, _ = discovered(frozenset({"storage"}), state, form="component")
    assert {topic for topic, payload in component.items() if not payload} == device.keys()
    assert "homeassistant/select/" in " ".join(component)
