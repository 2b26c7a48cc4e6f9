"""The state of a source, when it is asked again, and the diagnostics that the bridge publishes."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from bridge.endpoints import BY_SOURCE, ENDPOINTS, Parsed
from bridge.model import Reading, SourceName, Unavailable, Unsupported
from bridge.records import TEXT
from bridge.service.output import LOG_BURST, GatewayLog
from bridge.service.publisher import DIAGNOSTICS, MAX_PROBLEM_LETTERS, Diagnostics
from bridge.service.sources import Source, Sources, SourceState


def source(period: float = 10.0) -> Source:
    return Source(BY_SOURCE[SourceName.READINGS], period)


def sources(**periods: float) -> Sources:
    log = logging.LoggerAdapter(logging.getLogger(__name__), {})
    return Sources([Source(BY_SOURCE[name], period) for name, period in periods.items()], 0.0, budget=1.0, log=log)


def answers(found: Sources, name: str, now: float) -> None:
    found.record_answer(found.by_name[name], Parsed(), 0.1, now)


def fails(found: Sources, name: str, text: str = "connection refused") -> None:
    found.record_failure(found.by_name[name], Unavailable(text))


def misses(found: Sources, name: str) -> None:
    found.record_missing(found.by_name[name], Unsupported("404"))


# Fresh or not


def test_a_source_is_offline_until_its_first_good_answer() -> None:
    fresh = source()
    assert fresh.online(0) is False
    assert fresh.state.value == "waiting"
    fresh.record_failure()
    assert fresh.online(0) is False
    assert fresh.state.value == "failing"
    fresh.record_answer(0, fresh=True)
    assert fresh.online(0) is True


@pytest.mark.parametrize(
    ("period", "patience"), [(1, 30), (5, 30), (10, 30), (10.5, 31.5), (60, 180), (900, 2700), (14400, 43200)]
)
def test_it_is_offline_after_three_periods_and_at_least_30_seconds(period: float, patience: float) -> None:
    given = source(period)
    given.record_answer(1000, fresh=True)
    assert given.stale_after == patience
    assert given.online(1000 + patience - 0.001) is True
    assert given.online(1000 + patience) is False


def test_every_source_outlives_two_missed_polls() -> None:
    for endpoint in ENDPOINTS:
        given = source(endpoint.every.normal)
        given.record_answer(0, fresh=True)
        assert given.online(2.9 * endpoint.every.normal) is True


def test_failures_do_not_make_it_stale_before_its_time() -> None:
    given = source()
    given.record_answer(0, fresh=True)
    for _ in range(20):
        given.record_failure()
    assert given.online(29) is True
    assert given.online(30) is False


def test_data_that_stands_still_is_not_fresh() -> None:
    given = source()
    assert given.record_answer(0, fresh=False) is True
    assert given.online(0) is False
    assert given.record_answer(1, fresh=True) is False
    assert given.online(1) is True


# Changes of state


def test_only_changes_of_state_are_reported() -> None:
    given = source()
    assert [given.record_failure(), given.record_failure()] == [True, False]
    assert [given.record_answer(0, fresh=True), given.record_answer(1, fresh=True)] == [True, False]
    assert [given.record_failure(), given.record_failure()] == [True, False]
    assert [given.record_missing() for _ in range(4)] == [False, False, True, False]


# Absent


def test_a_source_that_never_answered_is_absent_at_the_first_404() -> None:
    given = source()
    assert given.record_missing() is True
    assert given.state is SourceState.ABSENT
    assert given.online(0) is None


def test_a_source_that_has_answered_is_absent_after_three_404s() -> None:
    """Updates and reboots cause passing 404s."""
    given = source()
    given.record_answer(0, fresh=True)
    for _ in range(2):
        given.record_missing()
        assert given.state is SourceState.FAILING
        assert given.online(1) is True
    given.record_missing()
    assert given.state is SourceState.ABSENT
    assert given.online(1) is None


def test_a_good_answer_in_between_starts_the_count_anew() -> None:
    given = source()
    given.record_answer(0, fresh=True)
    for _ in range(5):
        given.record_missing()
        given.record_missing()
        assert given.state is SourceState.FAILING
        given.record_answer(1, fresh=True)
    assert given.pause == 0


def test_an_absent_source_comes_back() -> None:
    given = source()
    given.record_missing()
    assert given.record_answer(5, fresh=True) is True
    assert (given.online(5), given.pause, given.state) == (True, 0, SourceState.GOOD)


def test_an_absent_source_is_asked_ever_more_seldom() -> None:
    given, pauses = source(), []
    for _ in range(14):
        given.record_missing()
        pauses.append(given.pause)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3840, 7680, 15360, 30720, 61440, 86400, 86400, 86400]
    for _ in range(5000):
        given.record_missing()
    assert given.pause == 86_400


def test_an_absent_source_can_not_fail() -> None:
    """An outage must not create availability topics for sources that the gateway does not have."""
    given = source()
    given.record_missing()
    assert given.record_failure() is False
    assert (given.state, given.online(0), given.pause) == (SourceState.ABSENT, None, 60)


def test_absent_sources_do_not_shorten_the_time_until_a_gateway_is_offline() -> None:
    """livedata would be asked every 5 s, but this gateway only has sources with a period of a minute."""
    found = sources(production=60.0, livedata=5.0)
    answers(found, "production", 0)
    found.record_success(0)
    misses(found, "livedata")
    fails(found, "livedata")
    assert found.by_name["livedata"].online(61) is None
    assert found.online(179)
    assert not found.online(180)


@pytest.mark.expects_log("production: connection refused")
def test_an_outage_is_logged_though_an_absent_source_meets_it_first() -> None:
    found = sources(production=60.0, livedata=5.0)
    answers(found, "production", 0)
    misses(found, "livedata")
    fails(found, "livedata")
    fails(found, "production")


@pytest.mark.expects_log("livedata: no answer", "readings: the gateway fails")
def test_a_source_that_fails_behind_another_is_logged_once_it_fails_alone(warned: Sequence[str]) -> None:
    found = sources(livedata=5.0, readings=10.0, production=60.0)
    for now in range(3):
        fails(found, "livedata", "no answer")
        fails(found, "readings", "the gateway fails")
        assert len(warned) == 1 + (now > 1)
        answers(found, "production", now)
        if now:
            fails(found, "readings", "the gateway fails")
            assert len(warned) == 2


@pytest.mark.expects_log("livedata: no answer", "skipped unusable values: power: not a number")
def test_records_have_keys_for_the_gateway_the_source_and_the_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    live = Source(BY_SOURCE[SourceName.LIVEDATA], 5.0)
    log = GatewayLog("envoy.local")
    found = Sources([live], 0.0, budget=1.0, log=log)
    found.record_missing(live, Unsupported("404"))
    answers(found, "livedata", 1)
    fails(found, "livedata", "no answer")
    answers(found, "livedata", 2)
    found.record_answer(live, Parsed(problems=["power: not a number"]), 0.1, 3)
    keys = [(r.__dict__["gateway"], r.__dict__["source"], r.__dict__["event"]) for r in caplog.records]
    events = ["source_absent", "source_online", "source_failed", "source_recovered", "values_left_out"]
    assert keys == [("envoy.local", "livedata", event) for event in events]


def test_a_new_firmware_may_have_what_the_old_one_lacked() -> None:
    given = source()
    for _ in range(10):
        given.record_missing()
    given.forget_absence()
    assert (given.state, given.pause, given.absences) == (SourceState.WAITING, 0, 0)
    given.record_missing()
    assert given.pause == 60


def test_only_absent_sources_are_forgotten() -> None:
    given = source()
    given.record_answer(3, fresh=True)
    given.forget_absence()
    assert given.state is SourceState.GOOD
    assert given.online(4) is True


# Failing again and again


def test_a_source_that_fails_again_and_again_is_asked_more_seldom() -> None:
    """Two failures change nothing. Then the pause doubles each time, up to a quarter of an hour."""
    given, pauses = source(10), []
    given.record_answer(0, fresh=True)
    for _ in range(11):
        given.record_failure()
        pauses.append(given.pause)
    assert pauses == [0, 0, 20, 40, 80, 160, 320, 640, 900, 900, 900]
    given.record_answer(1, fresh=True)
    assert given.pause == 0


def test_a_slow_source_is_not_asked_more_often_for_failing() -> None:
    given = source(3600)
    for _ in range(30):
        given.record_failure()
    assert given.pause == 3600


# What the bridge itself knows

WHEN = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)


def told(diagnostics: Diagnostics) -> dict[str, object]:
    readings = list(diagnostics.readings())
    assert {reading.device for reading in readings} <= {"gateway"}
    assert {reading.phase for reading in readings} <= {None}
    return {reading.name: reading.value for reading in readings}


def test_unknown_diagnostics_have_no_topic() -> None:
    found = told(Diagnostics())
    assert found["problem"] == "none"
    assert {
        name for name in found if name in {"token_expires", "token_role", "certificate", "last_answer"}
    } == set()
    assert found["failures"] == 0


def test_known_diagnostics() -> None:
    found = told(Diagnostics("get a new token", WHEN, "owner", "ab:cd", WHEN, 0.25, 3))
    assert {name: found[name] for name in KNOWN} == KNOWN


KNOWN = {
    "problem": "get a new token",
    "token_expires": WHEN,
    "token_role": "owner",
    "certificate": "ab:cd",
    "last_answer": WHEN,
    "answer_time": 0.25,
    "failures": 3,
}


def test_a_long_problem_is_cut() -> None:
    """Home Assistant accepts no longer state."""
    assert told(Diagnostics("x" * 1000))["problem"] == "x" * MAX_PROBLEM_LETTERS
    assert MAX_PROBLEM_LETTERS == 255


def test_urgent_diagnostics_are_published_at_once() -> None:
    given = Diagnostics("a", WHEN, "owner", "ab", WHEN, 0.1, 1)
    before = given.urgent
    given.last_answer, given.answer_time, given.failures = WHEN.replace(hour=7), 0.2, 2
    assert given.urgent == before
    for name, value in (
        ("problem", "b"),
        ("token_expires", WHEN.replace(hour=8)),
        ("token_role", "x"),
        ("certificate", "y"),
    ):
        before = given.urgent
        setattr(given, name, value)
        assert given.urgent != before


def test_rows_of_the_bridge() -> None:
    rows = {row.name: row for row in DIAGNOSTICS}
    assert {name for name, row in rows.items() if row.enabled} == {"problem", "token_expires"}
    assert all(row.diagnostic for row in DIAGNOSTICS)
    assert {name for name, row in rows.items() if row.interval} >= {"last_answer", "answer_time", "failures"}
    assert all(row.interval == 60 for row in DIAGNOSTICS if row.interval)
    assert rows["token_expires"].quantity.device_class == "timestamp"
    assert rows["answer_time"].quantity.unit == "s"
    assert Reading("gateway", None, rows["problem"], "none").quantity is TEXT


def test_no_answers_can_make_the_log_grow(caplog: pytest.LogCaptureFixture) -> None:
    """A source that answers and fails in turns could write two lines a second."""
    now = 0.0
    log = GatewayLog("envoy.local", lambda: now)
    caplog.set_level(logging.INFO)
    for number in range(LOG_BURST + 500):
        log.info("line %d", number)
        log.debug("is not written, and does not count")
    assert len(caplog.messages) == LOG_BURST
    now = 60.0
    log.info("later")
    assert caplog.messages[-1] == "later (500 lines before this one were left out)"
    now = 60.0 * (LOG_BURST + 2)
    for number in range(LOG_BURST + 7):
        log.info("line %d", number)
    assert len(caplog.messages) == 2 * LOG_BURST + 1
    assert caplog.messages[-1] == f"line {LOG_BURST - 1}"
