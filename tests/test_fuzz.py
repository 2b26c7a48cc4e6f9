"""Whatever a gateway sends, the result is a refusal or the usable part of it, and never anything else."""

import json
import math
import re
import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import EIDS, NOW, SERIAL, answers, body, documents_of, feed, flat, parse, publish, tree, values_of
from strict import check
from test_endpoints import GOOD

from bridge.discovery import DiscoveryOptions, announce
from bridge.discovery.devices import AnnouncedGateway
from bridge.endpoints import BY_SOURCE, ENDPOINTS
from bridge.model import BadAnswer, Facts, MeterFacts, Phase, Unsupported
from bridge.topics import Names, text

LEVEL = re.compile(r"[a-z0-9_-]+")
PAYLOADS = re.compile(r"(nan|null|unknown|unavailable|-0|)", re.IGNORECASE)
"""Payloads that no value topic may ever have."""
SOURCES = st.sampled_from([endpoint.source for endpoint in ENDPOINTS])
BRISK = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

FACTS = st.builds(
    Facts,
    serial=st.just(SERIAL),
    clock_offset=st.floats(-1e9, 1e9),
    meters=st.none()
    | st.lists(
        st.builds(
            MeterFacts,
            eid=st.sampled_from([*EIDS.values()]),
            role=st.sampled_from([*EIDS]),
            enabled=st.booleans(),
            phase_count=st.integers(1, 3),
            phase_mode=st.sampled_from(["three", "split", "single", ""]),
        ),
        max_size=4,
    ).map(tuple),
)


def names_of(value: Any) -> set[str]:
    """Every key in an answer."""
    if isinstance(value, dict):
        return {*value, *(name for item in value.values() for name in names_of(item))}
    return {name for item in value for name in names_of(item)} if isinstance(value, list) else set()


ANSWERS = GOOD | answers(inverters=2)
KEYS = sorted({name for answer in ANSWERS.values() if not isinstance(answer, bytes) for name in names_of(answer)})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, 2, 3, 13, 14, 2**31, 2**32 - 4, 2**32, 10**15, 10**20, 10**400, *EIDS.values()])
    | st.floats()
    | st.sampled_from([-0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324])
    | st.text(max_size=12)
    | st.sampled_from(["Unknown", "enabled", "disabled", "L1", "l2", "", " ", "4294967292", "nan", "1e999", "None"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner, max_size=6)
    ),
    max_leaves=20,
)


def judge(source: str, answer: bytes, facts: Facts) -> None:
    """Check that an answer is refused, or gives readings that subscribers can rely on."""
    try:
        parsed = parse(source, answer, facts)
    except (BadAnswer, Unsupported) as refusal:
        assert len(str(refusal)) < 300  # noqa: PT017 - either is right
        return
    assert all(len(problem) < 300 for problem in parsed.problems)
    for reading in parsed.readings:
        levels = [*reading.device.split("/"), reading.name, *([reading.phase.value] if reading.phase else [])]
        assert all(LEVEL.fullmatch(level) for level in levels), reading
        assert len(levels) <= 4
        if isinstance(reading.value, float):
            assert math.isfinite(reading.value)
    for message in publish(source, parsed.readings):
        assert message.topic.count("/") <= 6
        message.payload.encode()
        if message.content_type:
            json.loads(message.payload, parse_constant=pytest.fail)
        else:
            assert not PAYLOADS.fullmatch(message.payload), message


def judged(source: str, answer: Any, facts: Facts) -> None:
    judge(source, answer if isinstance(answer, bytes) else body(answer), facts)


@BRISK
@given(SOURCES, st.binary(max_size=200), FACTS)
def test_arbitrary_bytes(source: str, answer: bytes, facts: Facts) -> None:
    judge(source, answer, facts)


@BRISK
@given(SOURCES, JSON, FACTS)
def test_arbitrary_json(source: str, answer: Any, facts: Facts) -> None:
    judged(source, answer, facts)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in an answer that can be changed."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


PLACES = {source: places(answer) for source, answer in ANSWERS.items() if source != "info"}


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, Any]:
    """A real answer with up to four changes."""
    source = draw(st.sampled_from([*PLACES]))
    answer = ANSWERS[source]
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(places(answer)))
        answer = put(answer, path, draw(JSON))
    return source, answer


@settings(BRISK, max_examples=250)
@given(mutated(), FACTS)
def test_answers_with_anything_in_them(given_: tuple[str, Any], facts: Facts) -> None:
    judged(*given_, facts)


@BRISK
@given(SOURCES, st.data(), FACTS)
def test_answers_with_damaged_bytes(source: str, data: st.DataObject, facts: Facts) -> None:
    given_ = ANSWERS[source]
    answer = given_ if isinstance(given_, bytes) else body(given_)
    start = data.draw(st.integers(0, len(answer)))
    end = data.draw(st.integers(start, min(len(answer), start + 20)))
    judge(source, answer[:start] + data.draw(st.binary(max_size=6)) + answer[end:], facts)


NAMES = st.sampled_from(
    [
        "envoy_info",
        "device",
        "sn",
        "pn",
        "software",
        "package",
        "packages",
        "build_info",
        "build_id",
        "time",
        "text",
        "x",
    ]
)
XML = st.recursive(
    st.text(string.printable, max_size=8)
    | st.sampled_from(["<!-- -->", "<![CDATA[ x ]]>", "&amp;", "&lt;", "&x;", "<?pi?>"]),
    lambda inner: st.builds(
        lambda name, attribute, parts: f"<{name}{attribute}>{''.join(parts)}</{name}>",
        NAMES,
        st.sampled_from(["", " name='a'", ' name="b c"', " name=''", " name='1' name='2'", " xmlns='u'"]),
        st.lists(inner, max_size=4),
    ),
    max_leaves=20,
)


@settings(BRISK, max_examples=200)
@given(st.lists(XML, max_size=4), st.booleans(), FACTS)
def test_arbitrary_xml(parts: list[str], is_gateway: bool, facts: Facts) -> None:
    inner = "".join(parts)
    device = f"<device><sn>{SERIAL}</sn></device>" if is_gateway else ""
    judge("info", f"<envoy_info>{inner}{device}</envoy_info>".encode(), facts)


@settings(BRISK, max_examples=40)
@given(st.dictionaries(st.sampled_from([*PLACES]), mutated().map(lambda pair: pair[1]), max_size=4))
def test_discovery_of_whatever_was_understood(changes: dict[str, Any]) -> None:
    """A half wrong answer, or that of another endpoint, must not make a message that Home Assistant refuses."""
    into, given_ = tree(), {}
    for source, answer in {**ANSWERS, **changes}.items():
        try:
            parse(source, answer)
        except (BadAnswer, Unsupported):
            continue
        given_[source] = answer
    facts, _ = feed(into, given_)
    for form in ("device", "component"):
        found = check_unique(facts, list(into.rows), form)
        assert f"iqgateway_{facts.serial}_gateway_state" in found


def check_unique(facts: Facts, rows: list[Any], form: str) -> dict[str, Any]:
    return check(
        announce(DiscoveryOptions(Names(), form=form), AnnouncedGateway(facts, "https://envoy.local"), rows)
    )


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from([None, *Phase]), st.sampled_from(["power", "voltage", "current", "energy_delivered"])
        ),
        st.floats(-2e9, 2e9, allow_nan=False) | st.none(),
        min_size=1,
    )
)
def test_documents_equal_the_value_topics(values: dict[tuple[Phase | None, str], float | None]) -> None:
    wires = {
        "power": "activePower",
        "voltage": "voltage",
        "current": "current",
        "energy_delivered": "actEnergyDlvd",
    }
    channels = [{wires[name]: value for (line, name), value in values.items() if line is phase} for phase in Phase]
    whole = {wires[name]: value for (line, name), value in values.items() if line is None}
    answer = [{"eid": EIDS["load"], **whole, "channels": channels}]
    facts = Facts(SERIAL, meters=(MeterFacts(EIDS["load"], "load", True, 3, "three"),))

    messages = publish("readings", parse("readings", answer, facts, NOW).readings)
    assert flat(documents_of(messages)) == values_of(messages)
    for (line, name), value in values.items():
        if line:
            is_wrapped = name == "power" and value is not None and 2**31 <= value < 2**32  # a negative int32
            expected = value - 2**32 if is_wrapped and value is not None else value
            assert values_of(messages)[f"meter/load/{line.value}/{name}"] == text(expected)


def test_every_endpoint_is_fuzzed() -> None:
    assert {*PLACES, "info"} == {*BY_SOURCE} == {*ANSWERS}
    assert min(map(len, PLACES.values())) > 1  # the whole answer, and a part of it
    assert len(KEYS) > 80
