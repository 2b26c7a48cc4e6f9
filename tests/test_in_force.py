"""What is in force: the storage's live values, whether its stored settings are obeyed, and limits on the sun."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from houses import house
from running import running, until
from samples import NOW, THREE, known, parse, restored, values

from bridge.endpoints.parsing import Parsed
from bridge.in_force import COMPARED, ROWS_IN_FORCE, InForce, InForceState
from bridge.model import Facts, Reading
from bridge.pipeline import CountersState

MINUTE = 60.0
OLD, HONEST, MIDDLE, DOUBTFUL, STALE = "D8.2.127", "D8.2.4224", "D8.2.4225", "D8.3.5289", "D8.3.6086"
WORDS = [
    "ID - Idle",
    "ZN - Zero Net",
    "CG - Charge From Grid",
    "DG - Discharge to Grid",
    "ND - No Discharge",
    "DL - Discharge to Load",
    "CP - Charge From PV",
    "HEMS Discharge",
    "HEMS Charge",
    "FCR - Charge or discharge",
    "HEMS Charge from Grid",
]
"""As a gateway with firmware 8.3.6086 lists them."""
SCHED = {
    "acb_current_mode": 6,
    "acb_debug_mode": -1,
    "ENC_agg_energy": 2950,
    "Agg Backup Energy": 4000,
    "Agg VLS Energy": 500,
    "Num_of_enc": 1,
    "ENC_agg_soc": 59,
    "Force Discharge": False,
    "Charge From Grid Allowed": True,
    "ACB_agg_soc": 0,
    "ACB_agg_energy": 0,
    "Num_of_acb": 0,
    "agg_soc": 59,
    "max_energy": 5000,
    "sched_mode_key": WORDS,
}


def firmware(release: str) -> Facts:
    return known(THREE, firmware=release)


# The storage's values in force


def test_what_the_controller_does() -> None:
    assert values("sched", SCHED) == {
        "storage/control/action": "Charge From PV",
        "storage/control/charge_from_grid": "ON",
        "storage/control/forced_discharge": "OFF",
        "storage/control/energy_lowest": "500",
        "storage/control/energy_backup": "4000",
        "storage/control/energy_max": "5000",
    }


@pytest.mark.parametrize(
    ("mode", "words", "action"),
    [
        (0, WORDS, "Idle"),
        (2, WORDS, "Charge From Grid"),
        (9, WORDS, "Charge or discharge"),
        (10, WORDS, "HEMS Charge from Grid"),
        (-1, WORDS, "none"),
        (11, WORDS, "None"),
        (-2, WORDS, "None"),
        ("6", WORDS, "None"),
        (True, WORDS, "None"),
        (2.5, WORDS, "None"),
        (1, [], "None"),
        (1, None, "None"),
        (1, "ID - Idle", "None"),
        (0, [None], "None"),
        (0, [{"x": 1}], "None"),
        (0, [["CG"]], "None"),
    ],
)
def test_the_word_for_what_it_does(mode: object, words: object, action: str) -> None:
    answer = {"acb_current_mode": mode, "sched_mode_key": words, "Force Discharge": False}
    assert values("sched", answer)["storage/control/action"] == action


def test_what_is_not_told_is_absent() -> None:
    assert values("sched", {"sched_mode_key": WORDS, "max_energy": 5000}) == {"storage/control/energy_max": "5000"}


def test_reserves_in_force_are_those_of_the_sums() -> None:
    found = values(
        "secctrl", {"agg_soc": 5, "configured_backup_soc": 30, "adjusted_backup_soc": 55, "VLS_Limit": 10}
    )
    assert found["storage/control/reserve"] == found["storage/totals/reserve"] == "30"
    assert found["storage/control/reserve_lowest"] == found["storage/totals/reserve_lowest"] == "10"


SCHEDULE = {"batt_mode": "savings-mode", "battery_mode": "other", "charge_from_grid": True}


@pytest.mark.parametrize("release", ["D7.3.517", MIDDLE, "D8.3.5167", DOUBTFUL])
def test_the_mode_in_force_is_that_of_the_schedule(release: str) -> None:
    answer = {"tariff": {"storage_settings": {"mode": "backup"}}, "schedule": SCHEDULE}
    found = values("tariff", answer, firmware(release))
    assert found["storage/settings/mode"] == "backup"
    assert (found["storage/control/mode"], found["storage/control/charge_from_grid"]) == ("savings-mode", "ON")


@pytest.mark.parametrize("release", ["D8.3.5290", STALE, "D9.0.1", ""])
def test_newer_firmware_tells_nobody_the_mode_in_force(release: str) -> None:
    answer = {"tariff": {"storage_settings": {"mode": "backup"}}, "schedule": SCHEDULE}
    assert values("tariff", answer, firmware(release)) == {"storage/settings/mode": "backup"}


def test_the_scheduler_has_priority_over_the_schedule() -> None:
    """Where there is no scheduler (404), the schedule tells whether batteries may be charged from the grid."""
    told = [
        r for r in parse("tariff", {"tariff": {}, "schedule": SCHEDULE}).readings if r.name == "charge_from_grid"
    ]
    live = [r for r in parse("sched", SCHED).readings if r.name == "charge_from_grid"]
    assert [r.measurement.fallback for r in (*told, *live)] == [True, False]


# Whether stored settings are obeyed


class Gateway:
    """A gateway whose answers are taken note of, one after the other."""

    def __init__(self, release: str = STALE, state: InForceState | None = None) -> None:
        self.facts, self.now = firmware(release), NOW
        self.in_force = InForce(state or InForceState())
        self.shown: dict[str, object] = {}
        self.asked: list[str] = []

    def hears(self, source: str, answer: object, *, after: float = 0.0, period: float = 0.0) -> Sequence[Reading]:
        self.now += after
        parsed: Parsed = parse(source, answer, self.facts)
        self.facts = parsed.facts or self.facts
        changed = self.in_force.update(source, parsed.readings, self.facts, self.now, period)
        self.shown |= {f"{reading.device}/{reading.name}": reading.value for reading in changed}
        if self.in_force.asks_why:
            self.asked.append(source)
        return changed

    def stores(
        self, *, reserve: object = 20, lowest: object = 10, from_grid: object = False, after: float = 0
    ) -> None:
        settings = {
            "mode": "backup",
            "reserved_soc": reserve,
            "very_low_soc": lowest,
            "charge_from_grid": from_grid,
        }
        self.hears("tariff", {"tariff": {"storage_settings": settings}, "schedule": SCHEDULE}, after=after)

    def does(
        self, *, reserve: object = 20, lowest: object = 10, from_grid: object = False, after: float = 0
    ) -> None:
        self.hears("secctrl", {"agg_soc": 5, "configured_backup_soc": reserve, "VLS_Limit": lowest}, after=after)
        self.hears("sched", {**SCHED, "Charge From Grid Allowed": from_grid})

    @property
    def obeyed(self) -> object:
        return self.shown["storage/settings/obeyed"]


@pytest.mark.parametrize(
    ("release", "obeyed"),
    [
        (OLD, "yes"),
        (HONEST, "yes"),
        (MIDDLE, "yes"),
        ("D8.3.5288", "yes"),
        (DOUBTFUL, None),
        (STALE, None),
        ("", None),
    ],
)
def test_settings_that_agree(release: str, obeyed: str | None) -> None:
    """From firmware 8.3.5289 on equal values may be chance: nobody knows whether a stale copy is obeyed."""
    home = Gateway(release)
    home.does()
    home.stores()
    home.does(after=19 * MINUTE)
    assert home.obeyed == obeyed


@pytest.mark.parametrize("stored", [{"reserve": 30}, {"lowest": 15}, {"from_grid": True}, {"reserve": 21.5}])
@pytest.mark.parametrize(
    ("release", "at_first", "later"),
    [
        (HONEST, "yes", "yes"),
        (MIDDLE, "yes", "no"),
        ("D8.3.5288", "yes", "no"),
        (DOUBTFUL, None, "no"),
        (STALE, None, "no"),
    ],
)
def test_settings_that_differ_for_ten_minutes(
    stored: Mapping[str, Any], release: str, at_first: str | None, later: str
) -> None:
    home = Gateway(release)
    home.does()
    home.stores(**stored)
    home.does(after=9.9 * MINUTE)
    assert home.obeyed == at_first
    home.does(after=0.1 * MINUTE)
    assert home.obeyed == later


def test_ten_minutes_begin_anew_once_the_controller_follows() -> None:
    home = Gateway(MIDDLE)
    home.does()
    home.stores(reserve=30)
    home.does(reserve=30, after=9 * MINUTE)
    home.does(reserve=20, after=MINUTE)
    verdicts = []
    for reserve, minutes in ((20, 9), (20, 1), (30, 0)):
        home.stores(reserve=30)
        home.does(reserve=reserve, after=minutes * MINUTE)
        verdicts.append(home.obeyed)
    assert verdicts == ["yes", "no", "yes"]


def test_decimals_are_no_difference() -> None:
    home = Gateway(MIDDLE)
    home.does(reserve=21)
    home.stores(reserve=21.5)
    home.does(reserve=21, after=19 * MINUTE)
    assert home.obeyed == "yes"


@pytest.mark.parametrize("release", [MIDDLE, STALE])
def test_nothing_to_compare(release: str) -> None:
    """Neither the tariff's own schedule nor values of long ago show what is in force."""
    home = Gateway(release)
    home.stores(from_grid=False)
    assert home.obeyed is None
    home.does(reserve=33)
    home.stores(reserve=20, after=21 * MINUTE)
    assert home.obeyed is None
    home.does(reserve=33, after=21 * MINUTE)  # the file is of long ago, since its source fails
    assert home.obeyed is None


def test_a_value_counts_for_three_periods_of_a_source_that_is_asked_rarely() -> None:
    home = Gateway(MIDDLE)
    home.stores()
    home.hears("secctrl", {"agg_soc": 5, "configured_backup_soc": 20}, period=60 * MINUTE)
    home.stores(after=179 * MINUTE)
    assert home.obeyed == "yes"
    home.stores(after=MINUTE)
    assert home.obeyed is None


def test_a_home_without_stored_settings_has_nothing_to_obey() -> None:
    home = Gateway()
    home.does()
    home.hears("tariff", {"tariff": {"currency": {"code": "EUR"}}})
    assert home.shown == {}


def test_a_restart_does_not_begin_anew() -> None:
    home = Gateway()
    home.does()
    home.stores(reserve=30)
    kept = restored(CountersState(in_force=home.in_force.state)).in_force
    home = Gateway(state=kept)
    home.does(after=10 * MINUTE)
    home.stores(reserve=30)
    assert home.obeyed == "no"
    assert InForce(kept).state == kept


def test_a_clock_that_is_set_back_costs_ten_minutes_at_most() -> None:
    home = Gateway()
    home.does()
    home.stores(reserve=30)
    home.does(after=-1000 * MINUTE)
    home.does(after=10 * MINUTE)
    assert home.obeyed == "no"


def test_each_answer_tells_all() -> None:
    home = Gateway()
    home.does()
    home.stores()
    home.hears("pvlimit", FREE)
    told = home.hears("sched", SCHED, after=MINUTE)
    assert [(r.device, r.name) for r in told] == [(d, r.name) for d, rows in ROWS_IN_FORCE.items() for r in rows]


# Limits


@pytest.mark.parametrize(
    ("answer", "percent", "learnt"),
    [
        ({"enable": False, "pv_limit_pct": 100}, "None", False),
        ({"enable": False, "pv_limit_pct": 40}, "None", False),
        ({"enable": True, "pv_limit_pct": 40}, "40", True),
        ({"enable": True, "pv_limit_pct": 0}, "0", True),
        ({"enable": True, "pv_limit_pct": 100}, "100", False),
        ({"enable": 1, "pv_limit_pct": "40"}, "40", True),
        ({"pv_limit_pct": 40}, "40", True),
        ({"pv_limit_pct": 100}, "None", False),
        ({"enable": None, "pv_limit_pct": 55.5}, "55.5", True),
    ],
)
def test_a_limit_in_percent(answer: object, percent: str, learnt: bool) -> None:
    assert values("pvlimit", answer) == {"limit/production/percent": percent}
    facts = parse("pvlimit", answer).facts
    assert (facts is not None and facts.has("limit")) is learnt


def test_a_limit_without_a_number_is_no_limit() -> None:
    for percent in ({}, {"pv_limit_pct": None}, {"pv_limit_pct": -5}, {"pv_limit_pct": 101}, {"pv_limit_pct": "x"}):
        assert values("pvlimit", {"enable": True, **percent}) == {}


def dynamic(**settings: object) -> dict[str, Any]:
    return {"date": "2026-03-14 08:15:25", "dynamic_pel_settings": settings, "filename": "site_settings"}


@pytest.mark.parametrize(
    ("release", "settings", "active", "export", "production"),
    [
        (STALE, {"enable": False}, "OFF", "None", "None"),
        (STALE, {"enable": False, "export_limit": True, "limit_value_W": 500.0}, "OFF", "None", "None"),
        (STALE, {"enable": True, "export_limit": True, "limit_value_W": 500.0}, "ON", "500", "None"),
        (STALE, {"enable": True, "export_limit": False, "limit_value_W": 2000.0}, "OFF", "None", "2000"),
        ("D8.3.5232", {"enable": True, "export_limit": True, "limit_value_W": 0.0}, "ON", "0", "None"),
        ("D8.3.5231", {"enable": True, "export_limit": True, "limit_value_W": 500.0}, "None", "None", "None"),
        ("D8.2.4398", {"enable": True, "export_limit": True, "limit_value_W": 500.0}, "OFF", "None", "500"),
        ("D8.2.4398", {"enable": True, "export_limit": False, "limit_value_W": 500.0}, "ON", "500", "None"),
        (STALE, {"enable": True, "limit_value_W": 500.0}, "None", "None", "None"),
        (STALE, {"enable": True, "export_limit": 100}, "None", "None", "None"),
        (STALE, {"enable": True, "export_limit": True}, "ON", "None", "None"),
        (STALE, {"enable": None}, "None", "None", "None"),
        (STALE, {"enable": True, "export_limit": True, "limit_value_W": -5.0}, "ON", "None", "None"),
        ("", {"enable": True, "export_limit": True, "limit_value_W": 500.0}, "None", "None", "None"),
    ],
)
def test_a_dynamic_limit(
    release: str, settings: Mapping[str, object], active: str, export: str, production: str
) -> None:
    """Firmware 8.2.4398 has `export_limit` the wrong way round; 8.3.5232 has it right; in between nobody knows."""
    assert values("dpel", dynamic(**settings), firmware(release)) == {
        "limit/export/active": active,
        "limit/export/power": export,
        "limit/production/power": production,
    }


INSTALLERS = {
    "PEL": True,
    "Hard_PEL": False,
    "Soft_PEL": True,
    "Export_Limit_Type": "Aggregate",
    "percent": False,
    "apparent": False,
    "PEL_Limit": 0.0,
    "Comm_Time_Loss": 10_000.0,
    "Resp_Time_SoftPEL": 9_000.0,
    "Resp_Time_HardPEL": 0.0,
    "msReset_HardPEL": 500.0,
    "PEL_db": 0.0,
}


def test_the_installers_limit() -> None:
    assert values("pel_settings", INSTALLERS) == {
        "limit/installer/active": "ON",
        "limit/installer/power": "0",
        "limit/installer/hard": "OFF",
        "limit/installer/soft": "ON",
        "limit/installer/scope": "aggregate",
        "limit/installer/response_soft": "9",
        "limit/installer/response_hard": "0",
        "limit/installer/reset_hard": "0.5",
        "limit/installer/silence_allowed": "10",
    }
    assert values("pel_settings", {"PEL": False}) == {
        "limit/installer/active": "OFF",
        "limit/installer/power": "None",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PEL": False}, {"power": "None"}),
        ({"percent": True, "PEL_Limit": 70.0}, {"percent": "70"}),
        ({"percent": True, "PEL": False}, {"percent": "None"}),
        ({"apparent": True, "PEL_Limit": 5000.0}, {}),
        ({"PEL_Limit": -1.0}, {}),
        ({"percent": True, "PEL_Limit": 500}, {}),
        ({"percent": True, "PEL_Limit": -1}, {}),
    ],
)
def test_the_value_of_the_installers_limit(changes: Mapping[str, object], expected: Mapping[str, str]) -> None:
    found = values("pel_settings", {**INSTALLERS, **changes})
    names = {"limit/installer/power": "power", "limit/installer/percent": "percent"}
    assert {names[topic]: text for topic, text in found.items() if topic in names} == expected


def test_the_protection_of_the_main_panel() -> None:
    parts = dict.fromkeys(("PVOversubscription", "EnchargeOversubscription", "BusbarPCS"), False)
    answer = {"pcsOffering": {**parts, "MPUAvoidance": True}, "mainCircuitBreaker": 200.0, "relay_action": "open"}
    found = values("pcs_settings", answer)
    assert found == {
        "limit/breaker/active": "ON",
        "limit/breaker/solar": "OFF",
        "limit/breaker/battery": "OFF",
        "limit/breaker/busbar": "OFF",
        "limit/breaker/panel": "ON",
        "limit/breaker/main_breaker": "200",
        "limit/breaker/relay_action": "open",
    }
    assert values("pcs_settings", {"pcsOffering": parts})["limit/breaker/active"] == "OFF"
    assert "limit/breaker/active" not in values("pcs_settings", {"mainCircuitBreaker": 200.0})


# Why


def groups(solar: object, battery: object = 0.0) -> list[dict[str, object]]:
    return [
        {"id": "ACB", "setpoint_val": 1.0},
        {"id": "ENC", "setpoint_val": battery},
        {"id": "PV", "setpoint_val": solar},
    ]


RULES = [("Acb CG", 2), ("PEL W", 14), ("PCS - Import", 21), ("PCS MPU Avoidance", 61), ("Odd", 70)]
"""The first four as a gateway with firmware 8.3.6086 lists them."""


def controller(
    solar: object = 60.0,
    *,
    steered_by: Sequence[int] = (14,),
    phases: Sequence[object] = (60.0,),
    events: object = ("PEL Active", "ECL Prod Limit Needs Meter", "0"),
    grid: object = "Closed",
) -> dict[str, Any]:
    """The useful parts of the answer."""
    lines = [
        {"phase": f"ph-{place}", "active_f_rule": rule, "active_v_rule": 0, "groups": groups(setpoint)}
        for place, (rule, setpoint) in enumerate(zip(steered_by, phases, strict=True))
    ]
    rules = [{"RuleId": name, "RuleNum": number, "Threshold": 0.0} for name, number in RULES]
    return {
        "nameplate": {"PV": [0, 0, 0], "ENC": [3840, 0, 0]},
        "profile": {"profile_name": "IEEE 1547 default 2015", "agg_rules": [], "phase_rules": rules},
        "events": list(events) if isinstance(events, tuple) else events,
        "disco": {"status": grid},
        "response": {"groups": groups(solar, -42.5), "phases": lines},
    }


def test_a_controller_that_limits() -> None:
    assert values("sc_status", controller()) == {
        "limit/production/setpoint": "60",
        "limit/production/controller_cause": "export limit",
        "limit/production/rules": "Acb CG,PEL W,PCS - Import,PCS MPU Avoidance,Odd",
        "limit/production/rules_active": "PEL W",
        "limit/production/events": "PEL Active,ECL Prod Limit Needs Meter",
        "limit/production/grid_profile": "IEEE 1547 default 2015",
        "storage/control/setpoint": "-42.5",
    }


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (controller(100.0, phases=(100.0,)), "none"),
        (controller(100.0, steered_by=(61, 14, 14), phases=(100.0, 100.0, 100.0)), "none"),
        (controller(100.0, steered_by=(61, 14), phases=(100.0, 30.0)), "export limit"),
        (controller(0.0, steered_by=(14, 61), phases=(0.0, 0.0)), "export limit, protection of the main panel"),
        (controller(steered_by=(61,)), "protection of the main panel"),
        (controller(steered_by=(70,)), "rule Odd"),
        (controller(steered_by=(99,)), "export limit"),
        (controller(steered_by=(0,), events=[]), "not told by the gateway"),
        (controller(steered_by=(0,), events=None), "not told by the gateway"),
        (controller(steered_by=(0,), events=["Over Frequency"]), "frequency"),
        (controller(steered_by=(0,), events=["Over Voltage L1"]), "voltage"),
        (
            controller(steered_by=(0,), events=[], grid="Open"),
            "off the grid, where the home and its batteries take no more",
        ),
    ],
)
def test_why_the_controller_limits(answer: object, cause: str) -> None:
    assert values("sc_status", answer)["limit/production/controller_cause"] == cause


@pytest.mark.parametrize(
    "response",
    [None, [], "x", {}, {"groups": None}, {"groups": [5]}, {"groups": [{"id": "PV"}]}, {"groups": groups("much")}],
)
def test_a_controller_of_another_kind_tells_nothing(response: object) -> None:
    """The answer is known from one site: what is not as it was there is left out."""
    parsed = parse("sc_status", {**controller(), "response": response})
    assert [reading for reading in parsed.readings if reading.device == "limit/production"] == []
    assert parsed.problems == ()


@pytest.mark.parametrize(
    "broken", [None, 5, [], "x", {}, {"phase_rules": [None, {"RuleId": None, "RuleNum": "x"}]}]
)
def test_rules_of_another_kind(broken: object) -> None:
    found = values("sc_status", {**controller(), "profile": broken, "nameplate": broken, "disco": broken})
    assert found["limit/production/rules"] == "none"
    assert found["limit/production/controller_cause"] == "export limit"
    assert "storage/control/setpoint" not in found


@pytest.mark.parametrize("odd", [None, "14", [], {}, [14], {"x": 14}, 14.5])
def test_a_rule_without_a_number_is_none(odd: object) -> None:
    answer = controller(events=[])
    answer["response"]["phases"][0]["active_f_rule"] = odd
    assert values("sc_status", answer)["limit/production/rules_active"] == "none"


LIMITED, WHY = "limit/production/active", "limit/production/cause"
FREE = {"enable": False, "pv_limit_pct": 100}


def test_a_roof_that_is_free() -> None:
    home = Gateway()
    home.hears("pvlimit", FREE)
    assert home.shown == {LIMITED: False, WHY: "none"}
    home.hears("pel_settings", INSTALLERS)  # it is set, but does not limit now
    home.hears("sc_status", controller(100.0, phases=(100.0,)))
    assert home.shown == {LIMITED: False, WHY: "none"}
    assert home.asked == []


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ({}, "not told by the gateway (35 % of the rated power)"),
        (
            {"pel_settings": {**INSTALLERS, "PEL_Limit": 500.0}},
            "installer's export limit of 500 W (35 % of the rated power)",
        ),
        (
            {"pel_settings": {"PEL": True, "percent": True, "PEL_Limit": 70}},
            "installer's export limit of 70 % (35 % of the rated power)",
        ),
        (
            {"dpel": dynamic(enable=True, export_limit=True, limit_value_W=0.0)},
            "export limit of 0 W (35 % of the rated power)",
        ),
        (
            {"dpel": dynamic(enable=True, export_limit=False, limit_value_W=2e3)},
            "production limit of 2000 W (35 % of the rated power)",
        ),
        ({"sc_status": controller()}, "export limit (35 % of the rated power)"),
        ({"sc_status": controller(steered_by=(61,))}, "protection of the main panel (35 % of the rated power)"),
        (
            {"pel_settings": INSTALLERS, "sc_status": controller(steered_by=(61, 14), phases=(1.0, 1.0))},
            "protection of the main panel, installer's export limit of 0 W (35 % of the rated power)",
        ),
    ],
)
def test_why_a_roof_is_limited(answers: Mapping[str, object], cause: str) -> None:
    home = Gateway()
    home.hears("pvlimit", {"enable": True, "pv_limit_pct": 35})
    for source, answer in answers.items():
        home.hears(source, answer)
    assert home.shown == {LIMITED: True, WHY: cause}


def test_a_limit_in_watts_alone() -> None:
    home = Gateway()
    home.hears("pvlimit", FREE)
    home.hears("dpel", dynamic(enable=True, export_limit=False, limit_value_W=2000.0))
    assert home.shown == {LIMITED: True, WHY: "production limit of 2000 W"}
    home.hears("dpel", dynamic(enable=False))
    assert home.shown == {LIMITED: False, WHY: "none"}


def test_a_controller_alone() -> None:
    """Off the grid the controller limits the sun without any limit that is set."""
    home = Gateway()
    home.hears("sc_status", controller(steered_by=(0,), events=[], grid="Open"))
    assert home.shown == {LIMITED: True, WHY: "off the grid, where the home and its batteries take no more"}


def test_the_controller_is_asked_when_a_limit_begins() -> None:
    """Its answer is long, so it is asked rarely otherwise. What it said of other limits no longer counts."""
    home = Gateway()
    home.hears("pvlimit", FREE)
    home.hears("pvlimit", {"enable": True, "pv_limit_pct": 35})
    assert home.asked == ["pvlimit"]
    home.hears("sc_status", controller(steered_by=(61,)))
    assert home.shown[WHY] == "protection of the main panel (35 % of the rated power)"
    home.hears("pvlimit", {"enable": True, "pv_limit_pct": 35})
    assert home.shown[WHY] == "protection of the main panel (35 % of the rated power)"
    home.hears("pvlimit", FREE)
    assert home.shown == {LIMITED: False, WHY: "none"}
    assert home.asked == ["pvlimit"] * 2  # it may limit for another reason


def test_a_limit_whose_number_changes_keeps_its_cause() -> None:
    home = Gateway()
    home.hears("pvlimit", {"enable": True, "pv_limit_pct": 35})
    home.hears("sc_status", controller(steered_by=(61,)))
    home.hears("pvlimit", {"enable": True, "pv_limit_pct": 40})
    assert home.shown[WHY] == "protection of the main panel (40 % of the rated power)"
    assert home.asked == ["pvlimit"]


def test_another_setting_does_not_end_what_the_controller_limits() -> None:
    home = Gateway()
    home.hears("pvlimit", FREE)
    home.hears("sc_status", controller(steered_by=(0,), events=["Over Frequency"]))
    told = home.hears("dpel", dynamic(enable=True, export_limit=True, limit_value_W=5000.0))
    assert [reading.value for reading in told] == [True, "frequency"]
    assert home.asked == ["dpel"]


def test_the_controller_is_asked_when_the_home_leaves_or_joins_the_grid() -> None:
    home = Gateway()
    for state in ("closed", "closed", "open", "open", "closed"):
        home.hears("relay", {"mains_admin_state": "closed", "mains_oper_state": state})
        home.asked += [state] if home.asked else []
    assert home.asked == ["relay", "open", "open", "relay", "closed"]


def test_that_no_dynamic_limit_is_set_does_not_show_that_there_is_none() -> None:
    home = Gateway()
    assert home.hears("dpel", dynamic(enable=False)) == []
    assert home.hears("pel_settings", {"PEL": True, "PEL_Limit": 500.0, "percent": False}) == []
    home.hears("pvlimit", FREE)
    assert home.shown == {LIMITED: False, WHY: "none"}


def test_a_limit_of_long_ago_is_not_known() -> None:
    """Its source fails: what it said would otherwise stay for ever."""
    home = Gateway()
    home.hears("pvlimit", {"enable": True, "pv_limit_pct": 35}, period=10 * MINUTE)
    home.hears("energy", {"production": {"pcu": {"wattsNow": 5}}}, after=29 * MINUTE)
    assert home.shown[LIMITED] is True
    home.hears("energy", {"production": {"pcu": {"wattsNow": 5}}}, after=MINUTE)
    assert home.shown == {LIMITED: None, WHY: None}


def test_a_cause_is_never_too_long() -> None:
    home = Gateway()
    home.hears("pvlimit", {"enable": True, "pv_limit_pct": 35})
    home.hears("sc_status", controller(steered_by=(0,), events=[], grid="Open" * 100))
    rules = [{"RuleId": f"{number}" * 99, "RuleNum": number} for number in range(1, 9)]
    answer = controller(steered_by=range(1, 9), phases=[1.0] * 8)
    home.hears("sc_status", {**answer, "profile": {"phase_rules": rules}})
    assert len(str(home.shown[WHY])) == 255
    assert str(home.shown[WHY]).endswith(" (35 % of the rated power)")


@pytest.mark.parametrize("odd", [-1, 101, 1e9, "x", True, []])
def test_no_odd_reserve_is_in_force(odd: object) -> None:
    found = values("secctrl", {"agg_soc": 5, "configured_backup_soc": odd, "VLS_Limit": odd})
    assert not [topic for topic in found if topic.startswith("storage/control")]
    odd = -1 if odd == 101 else odd
    found = values(
        "sched", {"sched_mode_key": WORDS, "acb_current_mode": 1, "max_energy": odd if odd != 1e9 else -5}
    )
    assert found == {"storage/control/action": "Zero Net"}


# AC Batteries


def test_ac_batteries_that_sleep() -> None:
    facts = known(THREE, gear=frozenset({"acb/1", "acb/2", "battery/3"}))
    answer = {"acb_sleep": [{"serial_num": 2, "sleep_min_soc": 25, "sleep_max_soc": 30}]}
    assert values("acb_config", answer, facts) == {
        "acb/2/sleep_soc_min": "25",
        "acb/2/sleep": "ON",
        "acb/2/sleep_soc_max": "30",
        "acb/1/sleep": "OFF",
    }
    assert values("acb_config", {"acb_sleep": []}, facts) == {"acb/1/sleep": "OFF", "acb/2/sleep": "OFF"}


@pytest.mark.parametrize("odd", [[5], {"serial_num": "x"}, [{"sleep": True}], None, "none"])
def test_nobody_is_said_to_be_awake_where_the_list_is_not_understood(odd: object) -> None:
    facts = known(THREE, gear=frozenset({"acb/1", "acb/2"}))
    assert [r for r in parse("acb_config", {"acb_sleep": odd}, facts).readings if r.value is False] == []


# The whole bridge


@pytest.mark.hasty
async def test_a_stale_file_and_a_limited_roof_are_shown_truthfully(tmp_path: Path) -> None:
    """Firmware 8.3.6086: the file says one thing, the controller does another, and a limit begins and ends."""
    async with (
        house(tmp_path, "limited", "stale-file") as home,
        running(home.settings(poll={"pvlimit": 5}), now=home.clock),
    ):
        await home.settled()
        stored, use = (
            home.simulator.truth().equipment.tariff["storage_settings"],
            home.simulator.truth().equipment.use,
        )
        assert (home.topic("storage/settings/mode"), home.topic("storage/control/mode")) == (stored["mode"], None)
        assert use.reserve != stored["reserved_soc"]
        for device, reserve, lowest, from_grid in (
            ("control", use.reserve, use.lowest, use.charge_from_grid),
            ("settings", stored["reserved_soc"], stored["very_low_soc"], stored["charge_from_grid"]),
        ):
            told = [home.topic(f"storage/{device}/{name}") for name in COMPARED]
            assert told == [f"{reserve:g}", "ON" if from_grid else "OFF", f"{lowest:g}"]
        assert home.topic("storage/control/action") == "Charge From PV"
        assert home.topic("storage/settings/obeyed") == "None"
        home.clock.forward(10 * MINUTE)
        await until(lambda: home.topic("storage/settings/obeyed") == "no")

        cause = "installer's export limit of 500 W (35 % of the rated power)"
        assert (home.topic(LIMITED), home.topic(WHY)) == ("ON", cause)
        assert home.topic("limit/production/setpoint") == "35"
        assert not [m for m in home.watcher.seen if m.topic.endswith(f"{home.serial}/events")]  # it was so before
        home.simulator.become(limit=None)
        await until(lambda: (home.topic(LIMITED), home.topic(WHY)) == ("OFF", "none"))
        assert home.topic("limit/production/percent") == "None"
        await until(lambda: "production_free" in str(home.topic("events")))

        shown = json.loads(home.seen[f"homeassistant/device/iqgateway_{home.serial}_storage/config"])["components"]
        for name, label in (("reserve", "Reserve"), ("charge_from_grid", "Charge from grid")):
            live, file = shown[f"control_{name}"], shown[f"settings_{name}"]
            assert (live["name"], live["state_topic"].partition("storage/")[2]) == (label, f"control/{name}")
            assert "enabled_by_default" not in live
            assert (file["name"].partition(" ")[0], file["enabled_by_default"]) == ("Stored", False)
            assert file["unique_id"] == f"iqgateway_{home.serial}_storage_settings_{name}"  # its history goes on
        assert shown["settings_mode"]["name"] == "Stored mode"
