"""What holds for the answers of all endpoints: what is no answer is refused, and nothing else is ever raised."""

import json
from typing import Any

import pytest
from samples import THREE, body, parse, values

from bridge.config import PollSettings
from bridge.endpoints import BY_SOURCE, ENDPOINTS
from bridge.model import BadAnswer, Unsupported

HTML = b"<!DOCTYPE html><html><head><title>401 Authorization Required</title></head><body>no</body></html>"
NO_ANSWER = {
    "nothing": b"",
    "blanks": b" \r\n ",
    "HTML": HTML,
    "XHTML": b'<?xml version="1.0"?><html><body>Please log in</body></html>',
    "plain text": b"Error:401",
    "an error object": b'{"error": "some error"}',
    "an error of old firmware": b'{"status":401,"info":"Authentication required","moreInfo":"see logs"}',
    "null": b"null",
    "a number": b"17",
    "a text": b'"maintenance"',
    "a boolean": b"true",
    "an empty object": b"{}",
    "a list of nothing usable": b'[null, 1, "x", [], {}]',
    "binary": bytes(range(256)),
    "not UTF-8": b'[{"serialNumber":"\xff\xfe","eid":1}]',
    "half a surrogate": b'{"wattsNow":"\\ud800"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "two values": b"{} {}",
    "a huge number": b'{"wattsNow":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("source", BY_SOURCE)
@pytest.mark.parametrize("answer", NO_ANSWER.values(), ids=NO_ANSWER)
def test_what_is_no_answer_is_refused(source: str, answer: bytes) -> None:
    if source == "gen_config" and answer == b"{}":  # a generator of which nothing was said
        assert parse(source, answer).readings == ()
        return
    with pytest.raises(BadAnswer) as refusal:
        parse(source, answer)
    assert 10 < len(str(refusal.value)) < 200
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("source", [source for source in BY_SOURCE if source != "info"])
@pytest.mark.parametrize("answer", [b'{ "error" : "404 - Not Found" }\n', b'{"err": "404 - Not Found"}'])
def test_a_404_is_one_whatever_its_status(source: str, answer: bytes) -> None:
    with pytest.raises(Unsupported, match="does not have this"):
        parse(source, answer)


@pytest.mark.parametrize("source", ["info", "livedata", "grid", "production", "energy", "device_list"])
def test_an_empty_list_is_refused_where_one_is_not_expected(source: str) -> None:
    with pytest.raises(BadAnswer):
        parse(source, b"[]")


def test_an_empty_list_is_an_answer_where_a_list_is_expected() -> None:
    """No meters; `[]` at night on some gateways for inverters."""
    assert parse("meters", b"[]").facts == THREE.__class__(
        THREE.serial, THREE.firmware, THREE.part_number, meters=()
    )
    assert values("readings", b"[]") == values("consumption", b"[]") == values("meters", b"[]") == {}
    assert values("inverters", b"[]") == {"gateway/inverters_total": "0", "gateway/inverters_reporting": "0"}


GOOD: dict[str, Any] = {
    "info": b"<envoy_info><time>1</time><device><sn>122125067699</sn></device></envoy_info>",
    "meters": [{"eid": 704643328, "state": "enabled", "measurementType": "production", "phaseCount": 3}],
    "livedata": {"connection": {"mqtt_state": "connected"}, "meters": {"soc": 5}},
    "readings": [{"eid": 704643328, "activePower": 5}],
    "grid": [{"channels": [{"phase": "L1", "voltage": 5}]}],
    "consumption": [{"reportType": "net-consumption", "cumulative": {"actPower": 5}}],
    "production": {"wattsNow": 5},
    "energy": {"production": {"pcu": {"wattsNow": 5}}},
    "inverters": [{"serialNumber": "1", "lastReportWatts": 5}],
    "device_data": {"1": {"devName": "pcu", "sn": "1", "channels": [{"watts": {"now": 5}}]}},
    "device_list": {"devices": [{"serial_number": "1", "status": "connected"}]},
    "inventory": [{"type": "ENCHARGE", "devices": [{"serial_num": "1", "percentFull": 5}]}],
    "power": {"devices:": [{"serial_num": "1", "real_power_mw": 5}]},
    "secctrl": {"agg_soc": 5},
    "relay": {"mains_oper_state": "closed"},
    "dry_contacts": {"dry_contacts": [{"id": "NC1", "status": "open"}]},
    "dry_contact_settings": {"dry_contacts": [{"id": "NC1", "mode": "manual"}]},
    "generator": {"admin_state": "open", "oper_state": "open"},
    "gen_config": {"manufacturer": "Maker"},
    "tariff": {"tariff": {"storage_settings": {"mode": "backup"}}},
    "status": {"inventory": {"serial_nums": {"1": {"msg_retry_count": 5}}}},
}


def test_there_is_a_good_answer_for_each() -> None:
    assert GOOD.keys() == BY_SOURCE.keys()
    for source, answer in GOOD.items():
        assert values(source, answer), source


@pytest.mark.parametrize("source", BY_SOURCE)
def test_half_an_answer_is_refused(source: str) -> None:
    given = GOOD[source]
    whole = given if isinstance(given, bytes) else body(given)
    for length in range(len(whole)):
        with pytest.raises(BadAnswer):
            parse(source, whole[:length])


@pytest.mark.parametrize("source", [source for source in BY_SOURCE if source != "info"])
def test_extra_and_reordered_fields_are_normal(source: str) -> None:
    def more(value: Any) -> Any:
        if isinstance(value, list):
            return [more(item) for item in value]
        if isinstance(value, dict):
            return {"newField": [1], **{key: more(value[key]) for key in reversed(value)}, "later": {"x": 1}}
        return value

    given = GOOD[source]
    assert values(source, more(given)).items() >= values(source, given).items()


@pytest.mark.parametrize("source", ["meters", "readings", "consumption", "inverters"])
def test_a_bad_item_of_a_list_costs_only_itself(source: str) -> None:
    expected = values(source, GOOD[source])
    bad: list[Any] = [None, 5, "text", [], {}, {"error": "x"}, {"eid": True}]
    parsed = parse(source, [*bad, *GOOD[source], *bad])

    assert values(source, [*bad, *GOOD[source], *bad]) == expected
    assert len(parsed.problems) >= 2


# The table itself

PERIODS = {
    "info": (14400, 14400),
    "device_list": (900, 900),
    "meters": (3600, 3600),
    "readings": (10, 5),
    "production": (60, 60),
    "energy": (60, 60),
    "inverters": (300, 300),
    "device_data": (300, 300),
    "livedata": (5, 1),
    "consumption": (60, 30),
    "grid": (30, 15),
    "inventory": (300, 60),
    "power": (30, 10),
    "secctrl": (60, 30),
    "relay": (30, 10),
    "dry_contacts": (60, 30),
    "dry_contact_settings": (900, 900),
    "generator": (60, 30),
    "gen_config": (3600, 3600),
    "tariff": (300, 300),
    "status": (3600, 3600),
}
"""Seconds between polls in the profiles `normal` and `live`."""


def test_periods() -> None:
    assert {e.source: (e.period("normal"), e.period("live")) for e in ENDPOINTS} == PERIODS
    for endpoint in ENDPOINTS:
        assert endpoint.period("gentle") >= endpoint.period("normal") >= endpoint.period("live") >= 1


def test_info_then_meters_come_first() -> None:
    """All others need what these tell."""
    assert [endpoint.source for endpoint in ENDPOINTS][:2] == ["info", "meters"]


def test_the_fastest_are_the_most_urgent() -> None:
    by_urgency = sorted(ENDPOINTS, key=lambda endpoint: endpoint.urgency)
    assert [endpoint.source for endpoint in by_urgency][:2] == ["livedata", "readings"]


def test_the_names_of_sources_paths_and_settings_agree() -> None:
    assert len({endpoint.path for endpoint in ENDPOINTS}) == len(ENDPOINTS) == len(BY_SOURCE) == 21
    assert {*PollSettings.model_fields} - {"profile", "budget"} == {*BY_SOURCE}
    for source, endpoint in BY_SOURCE.items():
        assert PollSettings.model_fields[source].description == f"`{endpoint.path}`" or source == "info"


def test_the_slow_pages_are_never_polled() -> None:
    """They take 2 to 60 seconds, and the gateway down."""
    never = {"/production", "/production.json", "/home", "/home.json", "/inventory", "/inventory.json"}
    assert not never & {endpoint.path for endpoint in ENDPOINTS}


def test_an_answer_is_bytes_of_json() -> None:
    assert parse("production", json.dumps(GOOD["production"], indent=8).encode()).readings


@pytest.mark.parametrize("source", sorted(set(GOOD) - {"info"}))
def test_a_byte_order_mark_is_no_part_of_an_answer(source: str) -> None:
    plain = body(GOOD[source])
    assert parse(source, b"\xef\xbb\xbf" + plain) == parse(source, plain)
