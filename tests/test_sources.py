"""How a source is doing, when it is asked again, and what the bridge says of itself."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from bridge.endpoints import ENDPOINTS, Parsed
from bridge.model import Reading, Unavailable, Unsupported
from bridge.records import TEXT
from bridge.service.diagnostics import MAX_TEXT, ROWS, Diagnostics
from bridge.service.health import Health
from bridge.service.sources import Source, State


def source(period: float = 10.0) -> Source:
    return Source("readings", period)


# Fresh or not


def test_a_source_is_offline_until_its_first_good_answer() -> None:
    fresh = source()
    assert fresh.online(0) is False
    assert not fresh.tried
    fresh.failed()
    assert fresh.online(0) is False
    assert fresh.tried
    fresh.good(0, fresh=True)
    assert fresh.online(0) is True


@pytest.mark.parametrize(
    ("period", "patience"), [(1, 30), (5, 30), (10, 30), (10.5, 31.5), (60, 180), (900, 2700), (14400, 43200)]
)
def test_it_is_offline_after_three_periods_and_at_least_30_seconds(period: float, patience: float) -> None:
    given = source(period)
    given.good(1000, fresh=True)
    assert given.patience == patience
    assert given.online(1000 + patience - 0.001) is True
    assert given.online(1000 + patience) is False


def test_every_source_outlives_two_missed_polls() -> None:
    for endpoint in ENDPOINTS:
        given = source(endpoint.normal)
        given.good(0, fresh=True)
        assert given.online(2.9 * endpoint.normal) is True


def test_failures_do_not_make_it_stale_before_its_time() -> None:
    given = source()
    given.good(0, fresh=True)
    for _ in range(20):
        given.failed()
    assert given.online(29) is True
    assert given.online(30) is False


def test_data_that_stands_still_is_not_fresh() -> None:
    given = source()
    assert given.good(0, fresh=False) is True
    assert given.online(0) is False
    assert given.good(1, fresh=True) is False
    assert given.online(1) is True


# News


def test_only_changes_are_news() -> None:
    given = source()
    assert [given.failed(), given.failed()] == [True, False]
    assert [given.good(0, fresh=True), given.good(1, fresh=True)] == [True, False]
    assert [given.failed(), given.failed()] == [True, False]
    assert [given.missing(), given.missing(), given.missing(), given.missing()] == [False, False, True, False]


# Absent


def test_what_was_never_there_is_absent_at_the_first_404() -> None:
    given = source()
    assert given.missing() is True
    assert given.state is State.ABSENT
    assert given.online(0) is None


def test_what_was_there_before_is_absent_after_three() -> None:
    """Updates and reboots bring passing 404s."""
    given = source()
    given.good(0, fresh=True)
    for _ in range(2):
        given.missing()
        assert given.state is State.FAILING
        assert given.online(1) is True
    given.missing()
    assert given.state is State.ABSENT
    assert given.online(1) is None


def test_a_good_answer_in_between_starts_the_count_anew() -> None:
    given = source()
    given.good(0, fresh=True)
    for _ in range(5):
        given.missing()
        given.missing()
        assert given.state is State.FAILING
        given.good(1, fresh=True)
    assert given.pause == 0


def test_it_comes_back() -> None:
    given = source()
    given.missing()
    assert given.good(5, fresh=True) is True
    assert (given.online(5), given.pause, given.state) == (True, 0, State.GOOD)


def test_an_absent_source_is_asked_ever_more_seldom() -> None:
    given, pauses = source(), []
    for _ in range(14):
        given.missing()
        pauses.append(given.pause)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3840, 7680, 15360, 30720, 61440, 86400, 86400, 86400]
    for _ in range(5000):
        given.missing()
    assert given.pause == 86_400


def test_what_is_absent_can_not_fail() -> None:
    """An outage is no reason to promise what the gateway has never had."""
    given = source()
    given.missing()
    assert given.failed() is False
    assert (given.state, given.online(0), given.pause) == (State.ABSENT, None, 60)


def test_what_a_gateway_lacks_does_not_shorten_the_patience_with_it() -> None:
    """livedata would be asked every 5 s if it were there; the gateway has only what is asked each minute."""
    log = logging.LoggerAdapter(logging.getLogger(__name__), {})
    health = Health({"production": 60.0, "livedata": 5.0}, 0.0, log)
    health.good("production", Parsed(), 0.1, 0)
    health.succeeded(0)
    health.missing("livedata", Unsupported("404"))
    health.failed("livedata", Unavailable("connection refused"))
    assert health.sources["livedata"].online(61) is None
    assert health.online(179)
    assert not health.online(180)


@pytest.mark.expects_log("production: connection refused")
def test_an_outage_is_told_though_an_absent_source_meets_it_first() -> None:
    health = Health({"production": 60.0, "livedata": 5.0}, 0.0, logging.LoggerAdapter(logging.getLogger(__name__)))
    health.good("production", Parsed(), 0.1, 0)
    health.missing("livedata", Unsupported("404"))
    health.failed("livedata", Unavailable("connection refused"))
    health.failed("production", Unavailable("connection refused"))


@pytest.mark.expects_log("livedata: no answer", "readings: the gateway fails")
def test_a_source_that_fails_behind_another_is_told_once_it_fails_alone(warned: Sequence[str]) -> None:
    log = logging.LoggerAdapter(logging.getLogger(__name__), {})
    health = Health({"livedata": 5.0, "readings": 10.0, "production": 60.0}, 0.0, log)
    for now in range(3):
        health.failed("livedata", Unavailable("no answer"))
        health.failed("readings", Unavailable("the gateway fails"))
        assert len(warned) == 1 + (now > 1)
        health.good("production", Parsed(), 0.1, now)
        if now:
            health.failed("readings", Unavailable("the gateway fails"))
            assert len(warned) == 2


def test_a_new_firmware_may_have_what_the_old_one_lacked() -> None:
    given = source()
    for _ in range(10):
        given.missing()
    given.forget()
    assert (given.state, given.pause, given.absences) == (State.WAITING, 0, 0)
    given.missing()
    assert given.pause == 60


def test_forgetting_leaves_the_others_alone() -> None:
    given = source()
    given.good(3, fresh=True)
    given.forget()
    assert given.state is State.GOOD
    assert given.online(4) is True


# Failing again and again


def test_one_that_fails_again_and_again_is_asked_more_seldom() -> None:
    """Two failures cost nothing; then twice as long each time, a quarter of an hour at most."""
    given, pauses = source(10), []
    given.good(0, fresh=True)
    for _ in range(11):
        given.failed()
        pauses.append(given.pause)
    assert pauses == [0, 0, 20, 40, 80, 160, 320, 640, 900, 900, 900]
    given.good(1, fresh=True)
    assert given.pause == 0


def test_a_slow_source_is_not_asked_more_often_for_failing() -> None:
    given = source(3600)
    for _ in range(30):
        given.failed()
    assert given.pause == 3600


# What the bridge itself knows

WHEN = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)


def told(diagnostics: Diagnostics) -> dict[str, object]:
    readings = list(diagnostics.readings())
    assert {reading.device for reading in readings} <= {"gateway"}
    assert {reading.phase for reading in readings} <= {None}
    return {reading.name: reading.value for reading in readings}


def test_what_is_not_known_has_no_topic() -> None:
    found = told(Diagnostics())
    assert found["problem"] == "none"
    assert {
        name for name in found if name in {"token_expires", "token_role", "certificate", "last_answer"}
    } == set()
    assert found["failures"] == 0


def test_what_is_known() -> None:
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
    """Home Assistant takes no longer state."""
    assert told(Diagnostics("x" * 1000))["problem"] == "x" * MAX_TEXT
    assert MAX_TEXT == 255


def test_what_a_person_must_know_is_told_at_once() -> None:
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
    rows = {row.name: row for row in ROWS}
    assert {name for name, row in rows.items() if row.enabled} == {"problem", "token_expires"}
    assert all(row.diagnostic for row in ROWS)
    assert {name for name, row in rows.items() if row.interval} >= {"last_answer", "answer_time", "failures"}
    assert all(row.interval == 60 for row in ROWS if row.interval)
    assert rows["token_expires"].quantity.device_class == "timestamp"
    assert rows["answer_time"].quantity.unit == "s"
    assert Reading("gateway", None, rows["problem"], "none").quantity is TEXT
