"""Holds for all endpoints: an unusable answer is refused, and no other error is ever raised."""

import json
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import pytest
from samples import THREE, answers, body, parse, values

from bridge.endpoints import BY_SOURCE, ENDPOINTS, LARGEST_SITE
from bridge.model import BadAnswer, SourceName, Unsupported
from bridge.settings import PollSettings

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


def is_refused(source: str, answer: bytes) -> bool:
    """Whether the answer is refused with one short line."""
    try:
        parsed = parse(source, answer)
    except BadAnswer as refusal:
        return 10 < len(str(refusal)) < 200 and "\n" not in str(refusal)
    # the settings of a generator, which nobody has described, are an empty object
    return source in {"gen_config", "gen_mode", "gen_schedule"} and (answer, parsed.readings) == (b"{}", ())


@pytest.mark.parametrize("source", BY_SOURCE)
def test_what_is_no_answer_is_refused(source: str) -> None:
    assert [name for name, answer in NO_ANSWER.items() if not is_refused(source, answer)] == []


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
    """There may be no meters, and some gateways answer `[]` for inverters at night."""
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
    "energy": {"production": {"pcu": {"wattsNow": 5}, "eim": {"wattsNow": 5}}},
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
    "gen_mode": {"gen_cmd": "auto"},
    "gen_schedule": {"exercise_config": {"start": 750, "day": "Sun"}, "default_soc": {"start_soc": 30}},
    "tariff": {"tariff": {"storage_settings": {"mode": "backup"}}},
    "status": {"inventory": {"serial_nums": {"1": {"msg_retry_count": 5}}}},
    "sched": {"acb_current_mode": 0, "sched_mode_key": ["ID - Idle"]},
    "acb_config": {"acb_sleep": [{"serial_num": "1", "sleep_min_soc": 5}]},
    "pel_settings": {"PEL": False},
    "pcs_settings": {"mainCircuitBreaker": 200.0},
    "dpel": {"dynamic_pel_settings": {"enable": False}},
    "pvlimit": {"enable": False, "pv_limit_pct": 100},
    "sc_status": {"response": {"groups": [{"id": "PV", "setpoint_val": 100.0}]}},
    "firmware": {"SiteSync": {"Current_Status_str": "No Update Running"}},
    "errors": {"enpower_error_flags": 0},
    "wifi": {"carrier": True, "current_network": {"bars": 3}},
    "event_list": {"aaData": [["1", "Microinverter failed to report: Set", "1", "pcu ", "Sat Jun 03, 2023"]]},
}


def test_there_is_a_good_answer_for_each() -> None:
    assert GOOD.keys() == BY_SOURCE.keys()
    for source, answer in GOOD.items():
        assert parse(source, answer).readings, source


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


@pytest.mark.parametrize("asked", BY_SOURCE)
def test_the_answer_of_another_endpoint_is_refused(asked: str) -> None:
    """A gateway that mixes up its answers must not give the meters' powers as those of the grid.

    Nor may such an answer count as a good one, which would keep old values fresh.
    """
    taken = []
    given = answers()
    given["status"]["counters"] = {"api_ecagtInit": 1, "api_AggNameplate": 19}  # as on firmware 7.3 to 8.2
    given["generator"] |= {"admin_mode": 2, "schedule": 1, "exc_on": 0}
    for source, answer in given.items():
        with suppress(BadAnswer, Unsupported):
            if source != asked:
                BY_SOURCE[asked].parse(answer if isinstance(answer, bytes) else body(answer), THREE, 0.0)
                taken.append(source)
    assert taken == []


NOTHING_THERE: dict[str, Any] = {
    "meters": [],
    "readings": [],
    "inventory": [{"type": "ENCHARGE", "devices": []}],
    "power": {"devices:": []},
    "device_list": {"devices": []},
    "dry_contacts": {"dry_contacts": []},
    "generator": {"admin_state": "unknown", "oper_state": "unknown", "present": 0, "type": 0},
    "gen_config": {},
    "gen_mode": {},
    "gen_schedule": {"default_soc": {"start_soc": 30}},
    "acb_config": {"acb_sleep": []},
    "sc_status": {"events": []},
}


@pytest.mark.parametrize("source", NOTHING_THERE)
def test_an_answer_that_names_nothing_is_a_good_one(source: str) -> None:
    parsed = BY_SOURCE[source].parse(body(NOTHING_THERE[source]), THREE, 0.0)
    assert (parsed.readings, parsed.problems) == ((), ())


# What no gateway sends

NOT_SENT = {
    "too many bytes": b"[" + b" " * 3_000_000 + b"]",
    "700,000 elements": b"<envoy_info>" + b"<a/>" * 15_900 + b"</envoy_info>",
    "deep lists": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 200_000,
    "a million keys": b"{" + b",".join(b'"%d":1' % number for number in range(300_000)) + b"}",
    "items": b"[" + b"{}," * 300_000 + b"{}]",
    "numbers": b"[" + b"1," * 400_000 + b"1]",
    "a long text": b'{"wattsNow": "' + b"x" * 100_000 + b'"}',
    "a long key": b'{"' + b"x" * 100_000 + b'": 1}',
}


@pytest.mark.parametrize("source", BY_SOURCE)
@pytest.mark.parametrize("answer", NOT_SENT)
def test_what_no_gateway_sends_is_refused_before_anything_is_made_of_it(source: str, answer: str) -> None:
    endpoint = BY_SOURCE[source]
    tracemalloc.start()
    try:
        with pytest.raises(BadAnswer) as refusal:
            endpoint.parse(NOT_SENT[answer], THREE, 0.0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(refusal.value)) < 200
    assert most < 100_000


def test_the_largest_site_is_within_the_limits() -> None:
    """Units as a real gateway lists them (firmware 8.2), indented as it indents them."""
    one = answers(inverters=1)
    unit = one["device_data"]["1"]
    serials = [str(482301000000 + number) for number in range(LARGEST_SITE)]
    details = {"deviceCount": 1000, **{serial: {**unit, "sn": serial} for serial in serials}}
    listed = [{**one["inverters"][0], "serialNumber": serial} for serial in serials]
    for source, answer in (("device_data", details), ("inverters", listed)):
        found = BY_SOURCE[source].parse(json.dumps(answer, indent=2).encode(), THREE, 0.0)
        assert len({reading.device for reading in found.readings} - {"gateway"}) == LARGEST_SITE


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
    "gen_mode": (300, 300),
    "gen_schedule": (3600, 3600),
    "tariff": (300, 300),
    "status": (3600, 3600),
    "sched": (90, 90),
    "acb_config": (900, 900),
    "pel_settings": (14400, 14400),
    "pcs_settings": (14400, 14400),
    "dpel": (1800, 1800),
    "pvlimit": (600, 600),
    "sc_status": (1800, 1800),
    "firmware": (900, 900),
    "errors": (900, 900),
    "wifi": (3600, 3600),
    "event_list": (0, 0),
}
"""Seconds between polls in the profiles `normal` and `live`."""


def test_periods() -> None:
    assert {e.source: (e.period("normal"), e.period("live")) for e in ENDPOINTS} == PERIODS
    for endpoint in ENDPOINTS:
        is_off = PERIODS[endpoint.source] == (0, 0)
        assert endpoint.period("gentle") >= endpoint.period("normal") >= endpoint.period("live") >= 1 - is_off


FIRST_SOURCES = {
    *("info", "device_list", "meters", "readings", "production", "energy", "inverters", "device_data", "livedata"),
    *("consumption", "grid", "inventory", "power", "secctrl", "relay", "dry_contacts", "dry_contact_settings"),
    *("generator", "gen_config", "tariff", "status"),
}
"""Sources whose cost was accepted before there were those of limits and of what is in force."""


@pytest.mark.parametrize("profile", ["normal", "live"])
@pytest.mark.parametrize(
    ("gear", "most_in_five_minutes"),
    [
        ((), 1),
        (("limit/production",), 1),
        (("battery/1", "controller/2", "limit/export"), 5),
        (("acb/1", "limit/export"), 5),
    ],
)
def test_what_the_newer_sources_cost(
    profile: Literal["normal", "live"], gear: tuple[str, ...], most_in_five_minutes: float
) -> None:
    """At most one request more in five minutes for a home without storage, and one in a minute for one with."""
    facts = replace(THREE, gear=frozenset(gear))
    added = [e for e in ENDPOINTS if e.source not in FIRST_SOURCES and e.period(profile)]
    newer = [endpoint for endpoint in added if endpoint.wanted(facts)]
    assert 0 < sum(300 / endpoint.period(profile) for endpoint in newer) <= most_in_five_minutes
    assert not [endpoint.source for endpoint in newer if endpoint.period(profile) < 60]


def test_info_then_meters_come_first() -> None:
    """All other endpoints need their facts."""
    assert [endpoint.source for endpoint in ENDPOINTS][:2] == ["info", "meters"]


def test_the_fastest_are_the_most_urgent() -> None:
    by_urgency = sorted(ENDPOINTS, key=lambda endpoint: endpoint.urgency)
    assert [endpoint.source for endpoint in by_urgency][:2] == ["livedata", "readings"]


def test_the_names_of_sources_paths_and_settings_agree() -> None:
    assert len({endpoint.path for endpoint in ENDPOINTS}) == len(ENDPOINTS) == len(BY_SOURCE)
    assert {*PollSettings.model_fields} - {"profile", "budget"} == {*BY_SOURCE}
    assert {*SourceName} == {*BY_SOURCE}


def test_the_slow_pages_are_never_polled() -> None:
    """These pages take 2 to 60 seconds and can make the gateway crash."""
    never = {"/production", "/production.json", "/home", "/home.json", "/inventory", "/inventory.json"}
    assert not never & {endpoint.path for endpoint in ENDPOINTS}


def test_an_answer_is_bytes_of_json() -> None:
    assert parse("production", json.dumps(GOOD["production"], indent=8).encode()).readings


@pytest.mark.parametrize("source", sorted(set(GOOD) - {"info"}))
def test_a_byte_order_mark_is_no_part_of_an_answer(source: str) -> None:
    plain = body(GOOD[source])
    assert parse(source, b"\xef\xbb\xbf" + plain) == parse(source, plain)
