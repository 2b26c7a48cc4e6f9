"""Commands: what is asked, what is written, and how far a command is. The promises are those of docs/control.md."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from bridge.control import Asked, CommandAnswer, CommandRefused, control_of, read_request, read_value
from bridge.control.changes import make_change
from bridge.control.progress import Command, Commands
from bridge.endpoints import CONTROLS
from bridge.model import Facts, Measurement, Quantity, Reading, SourceName

TARIFF: Mapping[str, Any] = {
    "tariff": {
        "currency": {"code": "EUR"},
        "logger": "mylogger",
        "date": "1752958498",
        "storage_settings": {
            "mode": "self-consumption",
            "operation_mode_sub_type": "",
            "reserved_soc": 20.0,
            "very_low_soc": 5,
            "charge_from_grid": False,
            "date": "1752766997",
            "opt_schedules": True,
            "field_of_2027": {"deep": [1, 2.50, None]},
        },
        "single_rate": {"rate": 0.15199999511241913, "sell": 0.0},
        "seasons": [{"id": "all_year_long", "rate": 1e-7, "start": "1/1"}],
        "seasons_sell": [],
    },
    "schedule": {"source": "Tariff"},
}
BODY = json.dumps(TARIFF, indent=4).encode()
STORAGE, EVERYTHING = frozenset({"storage"}), frozenset({"storage", "contacts", "generator", "limit", "acb"})
RESERVE, PROOF = "storage/settings/reserve", "storage/control/reserve"


def reading(topic: str, value: Any) -> Reading:
    device, _, name = topic.rpartition("/")
    return Reading(device, None, Measurement(name, Quantity(), name), value)


LOST = "the connection broke off"


class Gateway:
    """The commands to a gateway that a test plays, second by second. `said` are the answers."""

    def __init__(self, allowed: frozenset[str] = STORAGE, firmware: str = "D8.2.127", **values: Any) -> None:
        self.commands = Commands(CONTROLS, allowed)
        self.commands.facts = Facts("122301003111", firmware)
        self.now, self.said = 1000.0, list[CommandAnswer]()
        self._ids = iter(f"own{number}" for number in range(1000))
        stored = {"mode": "self-consumption", "reserve": 20.0, "reserve_lowest": 5.0, "charge_from_grid": False}
        self.tells(SourceName.TARIFF, {f"storage/settings/{name}": value for name, value in stored.items()})
        self.tells(SourceName.TARIFF, {"storage/settings/optimized": values.get("optimized", False)})
        self.tells(SourceName.SECCTRL, {PROOF: 20.0})

    def tells(self, source: SourceName, values: Mapping[str, Any]) -> None:
        self.commands.observe(source, [reading(topic, value) for topic, value in values.items()])
        self._listen()

    def asks(
        self,
        target: str,
        value: Any,
        *,
        is_away: bool = False,
        all_known: bool = True,
        refusal: CommandRefused | None = None,
        **more: Any,
    ) -> None:
        self.commands.all_known = all_known
        asked = Asked(target, value, **more)
        self.commands.ask(asked, next(self._ids), self.now, is_away=is_away, refusal=refusal)
        self._listen()

    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.commands.tick(self.now)
        self._listen()

    def takes(self) -> Command | None:
        """The command to carry out now."""
        self.commands.all_known = True
        command = self.commands.next(self.now)
        self._listen()
        return command

    def does(self) -> Command:
        """Carry out the next command as a gateway that answers 200."""
        command = self.takes()
        assert command is not None
        self.commands.sent(command, self.now)
        self.commands.wrote(command, self.now)
        self._listen()
        return command

    def _listen(self) -> None:
        self.said += self.commands.answers.take()

    @property
    def states(self) -> list[str]:
        return [answer.state.value for answer in self.said]

    @property
    def last(self) -> CommandAnswer:
        return self.said[-1]


# What is asked


@pytest.mark.parametrize(
    ("target", "value", "wanted"),
    [
        ("reserve", "35", 35.0),
        ("reserve", 35, 35.0),
        ("reserve", 35.0, 35.0),
        ("reserve", "0", 0.0),
        ("reserve", "100", 100.0),
        ("reserve_lowest", "25", 25.0),
        ("charge_from_grid", "ON", True),
        ("charge_from_grid", False, False),
        ("mode", "backup", "backup"),
        ("mode", "economy", "economy"),
    ],
)
def test_a_text_or_the_json_value_that_means_the_same_is_taken(target: str, value: Any, wanted: Any) -> None:
    assert CONTROLS[f"storage/settings/{target}"].read(value) == wanted


@pytest.mark.parametrize(
    ("target", "value"),
    [
        *(("reserve", value) for value in (True, None, [35], {"a": 1}, "", "nan", float("nan"), "1e2", "101", -1)),
        *(("reserve", value) for value in ("35.5", "35 %", float("inf"), 10**400)),
        ("reserve_lowest", 4),
        ("reserve_lowest", 26),
        ("charge_from_grid", "maybe"),
        ("charge_from_grid", 1),
        ("mode", "none"),
        ("mode", 7),
        ("mode", None),
    ],
)
def test_anything_else_is_refused_with_what_it_takes(target: str, value: Any) -> None:
    control = CONTROLS[f"storage/settings/{target}"]
    with pytest.raises(CommandRefused, match="it takes ") as refused:
        control.read(value)
    assert control.described in str(refused.value)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"set": "a", "value": NaN}', "not valid JSON"),
        (b"[" * 4000, "not valid JSON"),
        (b"[1]", "no JSON object"),
        (b"35", "no JSON object"),
        (b'{"value": 1}', "no text set"),
        (b'{"set": 1, "value": 1}', "no text set"),
        (b'{"set": "a"}', "no value"),
        (b'{"set": "a", "value": 1, "dryrun": true}', "unknown field dryrun"),
        (b'{"set": "a", "value": 1, "dry_run": "yes"}', "dry_run must be"),
        (b'{"set": "a", "value": 1, "force": 1}', "force must be"),
        (b'{"set": "a", "value": 1, "id": ["x"]}', "the id must be"),
        (b'{"set": "a", "value": 1, "id": "' + b"x" * 101 + b'"}', "the id must be"),
        (b'{"set": "a", "value": 1, "id": "two\\nlines"}', "the id must be"),
        (b'{"set": "a", "value": 1, "id": true}', "the id must be"),
    ],
)
def test_a_request_that_can_not_be_read_says_why(payload: bytes, reason: str) -> None:
    fields, refusal = read_request(payload)
    Asked(**fields)
    assert refusal is not None
    assert reason in str(refusal)


def test_a_request_that_is_refused_keeps_its_id() -> None:
    fields, refusal = read_request(b'{"set": "a", "id": "mine"}')
    assert (fields["id"], refusal is not None) == ("mine", True)


def test_a_request_is_read() -> None:
    payload = (
        b'{"set": "storage/settings/reserve", "value": 30, "id": 7, "dry_run": true, "force": true, "hold": 900}'
    )
    fields, refusal = read_request(payload)
    assert refusal is None
    assert Asked(**fields) == Asked(RESERVE, 30, "7", hold=True, dry_run=True, force=True)


def test_a_value_that_is_no_text_is_refused() -> None:
    assert read_value(b" 35\n") == "35"
    with pytest.raises(CommandRefused, match="no text"):
        read_value(b"\xff")


# What is written


def written(target: str, value: Any, body: bytes = BODY) -> Any:
    control = CONTROLS[target]
    change = make_change(control, target, control.read(value), body)
    assert (change.request.path, change.request.method, change.request.once) == ("/admin/lib/tariff", "PUT", True)
    return change


@pytest.mark.parametrize(
    ("name", "value", "leaf", "text"),
    [
        ("reserve", "30", "reserved_soc", "30.0"),
        ("reserve_lowest", "10", "very_low_soc", "10"),
        ("charge_from_grid", "ON", "charge_from_grid", "true"),
        ("optimized", "OFF", "opt_schedules", "false"),
        ("mode", "economy", "mode", '"economy"'),
    ],
)
def test_the_whole_tariff_is_written_with_one_value_changed(name: str, value: str, leaf: str, text: str) -> None:
    change = written(f"storage/settings/{name}", value)
    body = json.loads(change.request.body)
    assert body.keys() == {"tariff"}
    expected = json.loads(BODY)["tariff"]
    expected["storage_settings"][leaf] = json.loads(text)
    assert body["tariff"] == expected
    assert list(body["tariff"]) == list(expected)
    assert f'"{leaf}": {text}' in change.request.body


def test_numbers_that_were_not_asked_for_keep_every_digit() -> None:
    text = written(RESERVE, "30").request.body
    for kept in ('"sell": 0.0}', '"rate": 0.15199999511241913', '"deep": [1, 2.5, null]', '"rate": 1e-07'):
        assert kept in text


@pytest.mark.parametrize("number", ["0.0", "-0.000", "1E5", "100", "1e-7", "12345678901234567890", "0.10"])
def test_each_number_is_written_as_it_was_read(number: str) -> None:
    body = BODY.replace(b'"sell": 0.0', f'"sell": {number}'.encode())
    assert f'"sell": {number}' in written(RESERVE, "30", body).request.body


def test_letters_beyond_ascii_are_written_as_they_were_read() -> None:
    raw = json.dumps({**TARIFF, "tariff": {**TARIFF["tariff"], "logger": "Küche"}}, ensure_ascii=False).encode()
    assert "Küche" in written(RESERVE, "30", raw).request.body
    escaped = json.dumps({**TARIFF, "tariff": {**TARIFF["tariff"], "logger": "Küche"}}).encode()
    assert "K\\u00fcche" in written(RESERVE, "30", escaped).request.body


@pytest.mark.parametrize(
    ("target", "value", "settings"),
    [
        (RESERVE, 4, {"very_low_soc": 5}),
        ("storage/settings/reserve_lowest", 25, {"reserved_soc": 20.0}),
    ],
)
def test_numbers_that_depend_on_one_another_are_checked_together(
    target: str, value: float, settings: Mapping[str, Any]
) -> None:
    with pytest.raises(CommandRefused, match=r"reserve_lowest .* must be at most reserve "):
        written(target, value, tariff(**settings))


def tariff(**settings: Any) -> bytes:
    given = json.loads(BODY)
    given["tariff"]["storage_settings"].update(settings)
    return json.dumps(given).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'"text"',
        b'{"tariff": null}',
        b'{"tariff": {"storage_settings": null}}',
        b'{"tariff": {"storage_settings": []}}',
        b'{"schedule": {"reserved_soc": 3}}',
        b'{"tariff": {"storage_settings": {"mode": "backup"}}}',
    ],
)
def test_what_has_no_such_setting_is_not_written(body: bytes) -> None:
    with pytest.raises(CommandRefused):
        written(RESERVE, 30, body)


def test_what_else_has_changed_after_a_write_is_named() -> None:
    change = written(RESERVE, 30)
    after = json.loads(BODY)
    after["tariff"]["storage_settings"]["reserved_soc"] = 30
    assert change.differences(json.dumps(after).encode()) == []
    after["tariff"]["date"] = after["tariff"]["storage_settings"]["date"] = "1800000000"
    assert change.differences(json.dumps(after).encode()) == []
    after["tariff"]["single_rate"]["sell"] = 0.1
    del after["tariff"]["seasons"][0]["start"]
    after["tariff"]["extra"] = 1
    assert change.differences(json.dumps(after).encode()) == [
        "single_rate.sell was 0.0 and is 0.1",
        "seasons.1.start is gone",
        "extra is new",
    ]
    assert change.is_stored(json.dumps(after).encode())
    assert not change.is_stored(BODY)


# Contacts, generator, grid and AC Batteries

CONTACT: Mapping[str, Any] = {
    "id": "NC1",
    "type": "LOAD",
    "grid_action": "apply",
    "micro_grid_action": "shed",
    "gen_action": "none",
    "essential_start_time": 32400.0,
    "essential_end_time": 57600.0,
    "priority": 1.0,
    "override": False,
    "manual_override": "true",
    "load_name": "Küche",
    "mode": "manual",
    "soc_low": 30.0,
    "soc_high": 70.0,
    "pv_serial_nb": [],
}
SCHEDULE: Mapping[str, Any] = {
    "exercise_config": {"freq_in_weeks": 1, "start": 750, "duration": 30, "day": "Sun"},
    "default_soc": {"start_soc": 30, "stop_soc": 70},
    "schedule": {"default": [{"start": 0.0, "stop_soc": -1.0}]},
}
CONTACTS = json.dumps({"dry_contacts": [{**CONTACT, "id": "NC2"}, CONTACT]}).encode()


@pytest.mark.parametrize(
    ("target", "value", "body", "request_", "sent"),
    [
        (
            "relay/nc1/soc_low",
            25,
            CONTACTS,
            ("POST", "/ivp/ss/dry_contact_settings"),
            {"dry_contacts": {**CONTACT, "override": "false", "soc_low": 25.0}},
        ),
        (
            "relay/nc1/essential_end",
            "17:45",
            CONTACTS,
            ("POST", "/ivp/ss/dry_contact_settings"),
            {"dry_contacts": {**CONTACT, "override": "false", "essential_end_time": 63900.0}},
        ),
        (
            "relay/nc1/state",
            "open",
            b'{"dry_contacts": [{"id": "NC1", "status": "closed"}, {"id": "NC2", "status": "closed"}]}',
            ("POST", "/ivp/ensemble/dry_contacts"),
            {"dry_contacts": {"id": "NC1", "status": "open"}},
        ),
        (
            "relay/mains/grid_connected",
            "OFF",
            b'{"mains_admin_state": "closed", "mains_oper_state": "closed", "der1_state": 2}',
            ("POST", "/ivp/ensemble/relay"),
            {"mains_admin_state": "open"},
        ),
        (
            "generator/1/command",
            "auto",
            b'{"gen_cmd": "off", "last_updated_by": "ITK"}',
            ("POST", "/ivp/ss/gen_mode"),
            {"gen_cmd": "auto"},
        ),
        (
            "generator/1/charge_from_generator",
            "OFF",
            b'{"model": "G-14", "charge_from_generator": true, "max_cont_gen_amps": 58.3}',
            ("POST", "/ivp/ss/gen_config"),
            {"model": "G-14", "charge_from_generator": False, "max_cont_gen_amps": 58.3},
        ),
        (
            "generator/1/exercise_start",
            "08:15",
            json.dumps(SCHEDULE).encode(),
            ("POST", "/ivp/ss/gen_schedule"),
            {**SCHEDULE, "exercise_config": {"freq_in_weeks": 1, "start": 495, "duration": 30, "day": "Sun"}},
        ),
        (
            "generator/1/exercise_day",
            "wed",
            json.dumps(SCHEDULE).encode(),
            ("POST", "/ivp/ss/gen_schedule"),
            {**SCHEDULE, "exercise_config": {"freq_in_weeks": 1, "start": 750, "duration": 30, "day": "Wed"}},
        ),
        (
            "acb/121908002401/sleep",
            "ON",
            b'{"acb_sleep": []}',
            ("PUT", "/admin/lib/acb_config"),
            {"acb_sleep": [{"serial_num": "121908002401", "sleep_min_soc": 25, "sleep_max_soc": 30}]},
        ),
        (
            "acb/121908002401/sleep",
            "OFF",
            b'{"acb_sleep": [{"serial_num": "121908002401", "sleep_min_soc": 25, "sleep_max_soc": 30}]}',
            ("DELETE", "/admin/lib/acb_config"),
            {"acb_sleep": [{"serial_num": "121908002401"}]},
        ),
    ],
)
def test_what_is_written_is_what_the_gateway_takes(
    target: str, value: Any, body: bytes, request_: tuple[str, str], sent: Any
) -> None:
    gateway = Gateway(EVERYTHING | {"grid"})
    gateway.tells(SourceName.INFO, {target: None})
    gateway.asks(target, value, force=True)
    command = gateway.takes()
    assert command is not None
    request = gateway.commands.change(command, body).request
    assert (request.method, request.path) == request_
    assert json.loads(request.body or "") == sent
    assert list(json.loads(request.body or "")) == list(sent)


def test_an_ac_battery_sleeps_between_the_levels_that_were_read_last() -> None:
    gateway = Gateway(EVERYTHING)
    own = "acb/121908002401"
    gateway.tells(
        SourceName.ACB_CONFIG, {f"{own}/sleep": True, f"{own}/sleep_soc_min": 20, f"{own}/sleep_soc_max": 40}
    )
    gateway.tells(SourceName.ACB_CONFIG, {f"{own}/sleep": False})
    gateway.asks(f"{own}/sleep", "ON")
    change = gateway.commands.change(gateway.does(), b'{"acb_sleep": []}')
    assert '"sleep_min_soc": 20, "sleep_max_soc": 40' in (change.request.body or "")
    listed = b'{"acb_sleep": [{"serial_num": "121908002401", "sleep_min_soc": 20, "sleep_max_soc": 40}]}'
    assert (change.is_stored(listed), change.is_stored(b'{"acb_sleep": []}')) == (True, False)


def test_the_relay_to_the_grid_is_no_contact() -> None:
    """It has a state as contacts have, and only the group `grid` may set it."""
    assert control_of(CONTROLS, "relay/nc1/state") is CONTROLS["relay/+/state"]
    assert control_of(CONTROLS, "relay/mains/grid_connected") is CONTROLS["relay/mains/grid_connected"]
    assert control_of(CONTROLS, "relay/mains/state") is None
    assert control_of(CONTROLS, "relay/mains/mode") is None


def test_the_lower_charge_of_a_contact_stays_below_the_higher_one() -> None:
    control = CONTROLS["relay/+/soc_low"]
    with pytest.raises(CommandRefused, match=r"soc_low \(70\) must be less than soc_high \(70\)"):
        make_change(control, "relay/nc1/soc_low", 70.0, CONTACTS)


@pytest.mark.parametrize("wanted", ["soc_low", "override"])
def test_flags_that_come_back_as_booleans_are_no_other_settings(wanted: str) -> None:
    change = make_change(CONTROLS["relay/+/soc_low"], "relay/nc1/soc_low", 25.0, CONTACTS)
    after = {**CONTACT, "soc_low": 25, "override": wanted == "override"}
    differences = change.differences(json.dumps({"dry_contacts": [after]}).encode())
    assert bool(differences) is (wanted == "override")


@pytest.mark.parametrize(
    ("charge", "reserve", "force", "may"),
    [
        (19.0, 10.0, False, False),
        (20.0, 10.0, False, True),
        (40.0, 50.0, False, False),
        (50.0, 50.0, False, True),
        (None, 50.0, False, False),
        (5.0, 50.0, True, True),
    ],
)
def test_a_home_with_too_little_charge_leaves_the_grid_only_by_force(
    charge: float | None, reserve: float, force: bool, may: bool
) -> None:
    gateway = Gateway(frozenset({"grid"}))
    gateway.tells(SourceName.SECCTRL, {"storage/totals/soc": charge, PROOF: reserve})
    gateway.tells(SourceName.RELAY, {"relay/mains/grid_connected": True})
    gateway.asks("relay/mains/grid_connected", "OFF", force=force)
    command = gateway.takes()
    assert command is not None
    body = b'{"mains_admin_state": "closed", "mains_oper_state": "closed"}'
    with nullcontext() if may else pytest.raises(CommandRefused, match="force"):
        gateway.commands.change(command, body)


def test_after_a_write_of_settings_contacts_stand_and_their_commands_wait() -> None:
    gateway = Gateway(EVERYTHING)
    gateway.tells(SourceName.DRY_CONTACTS, {"relay/nc1/state": "closed"})
    gateway.tells(SourceName.DRY_CONTACT_SETTINGS, {"relay/nc1/mode": "manual"})
    gateway.asks("relay/nc1/mode", "soc")
    gateway.does()
    gateway.asks("relay/nc1/state", "open")
    gateway.asks("relay/nc1/state", "closed", expires=30, id="short")
    for second in range(90):
        assert gateway.takes() is None or second == 90
        (held,) = gateway.commands.values.steady(
            SourceName.DRY_CONTACTS, [reading("relay/nc1/state", "open")], gateway.now
        )
        assert held.value == "closed"
        gateway.waits(1)
    assert [answer.state.value for answer in gateway.said if answer.id == "short"] == ["accepted", "expired"]
    (told,) = gateway.commands.values.steady(
        SourceName.DRY_CONTACTS, [reading("relay/nc1/state", "open")], gateway.now
    )
    assert told.value == "open"


def test_settings_of_a_contact_wait_while_it_is_not_known_whether_one_has_switched() -> None:
    gateway = Gateway(EVERYTHING)
    gateway.tells(SourceName.DRY_CONTACTS, {"relay/nc1/state": "closed"})
    gateway.tells(SourceName.DRY_CONTACT_SETTINGS, {"relay/nc1/mode": "manual"})
    gateway.asks("relay/nc1/state", "open")
    gateway.does()
    gateway.asks("relay/nc1/mode", "soc")
    gateway.waits(6)
    assert gateway.takes() is None
    gateway.tells(SourceName.DRY_CONTACTS, {"relay/nc1/state": "open"})
    assert gateway.does().target == "relay/nc1/mode"


# What becomes of it


def test_a_command_is_accepted_sent_and_confirmed_by_what_is_in_force() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30", id="abc")
    gateway.does()
    gateway.tells(SourceName.TARIFF, {RESERVE: 30.0})
    assert gateway.states == ["accepted", "sent"]  # what is stored is no proof
    gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
    assert gateway.states == ["accepted", "sent", "confirmed"]
    assert [answer.final for answer in gateway.said] == [False, False, True]
    assert {answer.id for answer in gateway.said} == {"abc"}
    assert (gateway.last.observed, gateway.last.reason) == (30.0, None)


def test_the_value_in_force_is_looked_at_every_five_seconds_for_five_minutes() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    gateway.does()
    looks = []
    for _ in range(400):
        if source := gateway.commands.look(gateway.now):
            looks.append((gateway.now - 1000, source))
            gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
        gateway.waits(1)
    assert [when for when, _ in looks] == [5.0 * number for number in range(60)]
    assert {source for _, source in looks} == {SourceName.SECCTRL}


def test_what_does_not_follow_in_time_is_ignored() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    gateway.does()
    gateway.waits(5)
    gateway.tells(SourceName.SECCTRL, {PROOF: 20.0})
    gateway.waits(84.9)
    assert gateway.states[-1] == "sent"
    gateway.waits(0.1)
    assert (gateway.last.state, gateway.last.final, gateway.last.observed) == ("ignored", True, 20.0)
    gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
    assert gateway.states[-1] == "ignored"


def test_the_setting_that_stands_in_the_way_is_named() -> None:
    gateway = Gateway(firmware="D8.2.4264", optimized=True)
    gateway.asks(RESERVE, "30")
    gateway.does()
    gateway.tells(SourceName.SECCTRL, {PROOF: 20.0})
    gateway.waits(90)
    assert gateway.last.state == "ignored"
    assert "storage/settings/optimized is ON" in str(gateway.last.reason)


def test_what_is_not_stored_is_not_said_to_be() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    command = gateway.does()
    gateway.commands.checked(command, is_stored=False, differences=())
    gateway.tells(SourceName.SECCTRL, {PROOF: 20.0})
    gateway.waits(90)
    assert (gateway.last.state, gateway.last.reason) == ("ignored", "the gateway has not stored it")


def test_a_gateway_that_tells_nothing_any_more_is_not_said_to_ignore() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    gateway.does()
    gateway.waits(90)
    assert (gateway.last.state, gateway.last.reason) == (
        "failed",
        "the gateway has not told since what is in force",
    )


def test_what_changes_back_is_overridden_with_the_same_id() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30", id="abc")
    gateway.does()
    gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
    gateway.waits(120)
    gateway.tells(SourceName.SECCTRL, {PROOF: None})  # unknown for a moment
    assert gateway.states[-1] == "confirmed"
    gateway.tells(SourceName.SECCTRL, {PROOF: 20.0})
    assert (gateway.last.state, gateway.last.id, gateway.last.final) == ("overridden", "abc", True)
    gateway.tells(SourceName.SECCTRL, {PROOF: 20.0})
    assert gateway.states.count("overridden") == 1


def test_five_minutes_after_the_write_the_watch_is_over() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    gateway.does()
    gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
    gateway.waits(300)
    assert not gateway.commands
    gateway.tells(SourceName.SECCTRL, {PROOF: 20.0})
    assert gateway.states[-1] == "confirmed"


@pytest.mark.parametrize(("is_stored", "state"), [(True, "unconfirmed"), (False, "ignored")])
def test_where_nothing_tells_what_is_in_force_it_is_unconfirmed(is_stored: bool, state: str) -> None:
    gateway = Gateway()
    gateway.asks("storage/settings/optimized", "OFF")
    command = gateway.does()
    gateway.commands.checked(command, is_stored=is_stored, differences=())
    gateway.waits(0)
    assert (gateway.last.state, gateway.last.final) == (state, True)
    assert not gateway.commands


def test_more_than_was_asked_for_is_told_as_a_fault() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    command = gateway.does()
    gateway.commands.checked(command, is_stored=True, differences=["single_rate.sell was 0.1 and is 0.0"])
    gateway.waits(0)
    assert (gateway.last.state, gateway.last.final) == ("sent", False)
    assert "single_rate.sell was 0.1 and is 0.0" in str(gateway.last.note)
    gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
    assert gateway.last.state == "confirmed"


@pytest.mark.parametrize(("in_force", "state"), [(30.0, "confirmed"), (20.0, "failed")])
def test_a_write_whose_answer_is_lost_is_decided_within_a_minute_and_never_repeated(
    in_force: float, state: str
) -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    command = gateway.takes()
    assert command is not None
    gateway.commands.lost(command, gateway.now, LOST)
    gateway.commands.wrote(command, gateway.now)
    assert gateway.commands.look(gateway.now) is SourceName.SECCTRL
    for _ in range(60):
        assert gateway.takes() is None
        gateway.tells(SourceName.SECCTRL, {PROOF: in_force})
        gateway.waits(1)
    assert (gateway.states, gateway.last.final) == (["accepted", state], True)
    reasons = {"confirmed": "the answer was lost", "failed": f"{LOST}; it is not in force"}
    assert gateway.last.reason == reasons[state]


def test_after_a_lost_answer_nothing_is_said_of_what_could_not_be_read() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    command = gateway.takes()
    assert command is not None
    gateway.commands.lost(command, gateway.now, LOST)
    gateway.waits(60)
    assert gateway.last.reason == f"{LOST}; the gateway has not told since what is in force"


@pytest.mark.parametrize(("is_stored", "state"), [(True, "unconfirmed"), (False, "failed")])
def test_a_lost_answer_where_nothing_tells_what_is_in_force(is_stored: bool, state: str) -> None:
    gateway = Gateway()
    gateway.asks("storage/settings/optimized", "OFF")
    command = gateway.takes()
    assert command is not None
    gateway.commands.lost(command, gateway.now, LOST)
    gateway.commands.checked(command, is_stored=is_stored, differences=())
    gateway.waits(0)
    assert gateway.last.state == state


# Refusals


@pytest.mark.parametrize(
    ("target", "value", "more", "reason", "quiet"),
    [
        ("storage/settings/colour", "red", {}, "nothing of this name", True),
        ("", "red", {}, "nothing of this name", True),
        ("site/grid/power", "1", {}, "nothing of this name", True),
        ("limit/export/power", "1000", {}, "not built yet", False),
        (RESERVE, "130", {}, "whole numbers from 0 to 100", False),
        (RESERVE, "30", {"hold": True}, "hold is for limits", False),
        ("storage/settings/mode", "savings-mode", {}, "this gateway calls it economy", False),
    ],
)
def test_what_can_not_be_done_is_refused_with_the_reason(
    target: str, value: str, more: Any, reason: str, quiet: bool
) -> None:
    gateway = Gateway(EVERYTHING)
    gateway.asks(target, value, **more)
    assert (gateway.states, gateway.last.final, gateway.last.quiet) == (["refused"], True, quiet)
    assert reason in str(gateway.last.reason)
    assert gateway.takes() is None


@pytest.mark.parametrize("target", [RESERVE, "limit/export/power"])
def test_what_is_not_allowed_names_the_setting_once_in_the_log(target: str) -> None:
    gateway = Gateway(frozenset({"contacts"}))
    gateway.asks(target, "30")
    gateway.asks(target, "31")
    assert gateway.states == ["refused", "refused"]
    assert all("BRIDGE_CONTROL__ALLOW" in str(answer.reason) and answer.quiet for answer in gateway.said)
    assert [bool(answer.note) for answer in gateway.said] == [True, False]


def test_what_this_firmware_is_known_to_ignore_is_refused_unless_forced() -> None:
    gateway = Gateway(firmware="D8.3.6086")
    gateway.asks(RESERVE, "30")
    assert gateway.states == ["refused"]
    assert "force" in str(gateway.last.reason)
    gateway.asks(RESERVE, "30", force=True)
    gateway.does()
    gateway.tells(SourceName.SECCTRL, {PROOF: 20.0})
    gateway.waits(90)
    assert gateway.states == ["refused", "accepted", "sent", "ignored"]


def test_a_spelling_that_the_gateway_has_told_is_used() -> None:
    gateway = Gateway()
    gateway.tells(SourceName.TARIFF, {"storage/settings/mode": "savings-mode"})
    gateway.tells(SourceName.TARIFF, {"storage/settings/mode": "backup"})
    gateway.asks("storage/settings/mode", "economy")
    assert gateway.does().wanted == "savings-mode"


def test_what_the_gateway_lacks_is_refused_once_everything_was_asked() -> None:
    """What was accepted for all to see is refused for all to see."""
    gateway = Gateway(EVERYTHING)
    gateway.asks("relay/nc9/state", "open", all_known=False)
    assert gateway.commands.next(gateway.now) is None
    assert gateway.states == ["accepted"]
    assert gateway.takes() is None
    assert (gateway.states, gateway.last.quiet) == (["accepted", "refused"], False)


def test_what_the_gateway_is_known_to_lack_is_refused_at_once_and_only_its_sender_hears_of_it() -> None:
    gateway = Gateway(EVERYTHING)
    for number in range(15):
        gateway.asks(f"relay/nc{number}/state", "open")
    assert gateway.states == ["refused"] * 10
    assert gateway.last.quiet
    assert gateway.takes() is None


@pytest.mark.parametrize(("target", "observed"), [(RESERVE, 20.0), ("limit/export/power", None), ("x/y/z", None)])
def test_a_refusal_tells_what_is_in_force(target: str, observed: object) -> None:
    gateway = Gateway(EVERYTHING)
    gateway.asks(target, "130")
    assert (gateway.states, gateway.last.observed) == (["refused"], observed)


def test_a_message_that_can_not_be_read_does_not_end_the_command_whose_id_it_has() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30", id="a")
    gateway.does()
    gateway.asks(RESERVE, "31", id="a", refusal=CommandRefused("the request has an unknown field"))
    gateway.asks(RESERVE, "31", id="b", refusal=CommandRefused("the request has an unknown field"))
    assert [(answer.id, answer.state.value, answer.final) for answer in gateway.said[2:]] == [
        ("a", "sent", False),
        ("b", "refused", True),
    ]


# Order and bounds


def test_there_is_one_write_in_five_seconds_from_the_end_of_the_last() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    gateway.asks("storage/settings/charge_from_grid", "ON")
    assert gateway.does().target == RESERVE
    gateway.waits(4.9)
    assert gateway.takes() is None
    assert gateway.commands.delay(gateway.now) <= 1.0
    gateway.waits(0.1)
    assert gateway.does().target == "storage/settings/charge_from_grid"


def test_eight_wait_and_a_ninth_is_refused() -> None:
    gateway = Gateway()
    for number in range(9):
        gateway.asks(RESERVE, str(10 + number), dry_run=True)
    assert gateway.states == ["refused"]
    assert "8 commands wait" in str(gateway.last.reason)


def test_a_newer_command_supersedes_one_that_waits_and_one_that_was_sent() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30", id="a")
    gateway.does()
    gateway.asks(RESERVE, "31", id="b")
    gateway.asks(RESERVE, "32", id="c")
    assert [(answer.id, answer.state.value) for answer in gateway.said] == [
        ("a", "accepted"),
        ("a", "sent"),
        ("a", "superseded"),
        ("b", "accepted"),
        ("b", "superseded"),
        ("c", "accepted"),
    ]
    gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
    assert gateway.states[-1] == "accepted"
    gateway.waits(5)
    assert gateway.does().wanted == 32.0


def test_a_command_that_has_waited_for_a_minute_expires() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    gateway.asks("storage/settings/charge_from_grid", "ON", expires=20)
    gateway.waits(20)
    assert gateway.states == ["accepted", "accepted", "expired"]
    gateway.waits(40)
    assert gateway.states == ["accepted", "accepted", "expired", "expired"]
    assert gateway.takes() is None


def test_the_same_id_is_answered_and_not_done_again() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30", id="abc")
    gateway.does()
    gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
    gateway.asks(RESERVE, "30", id="abc", response_topic="answers/here", correlation=b"7")
    assert gateway.states == ["accepted", "sent", "confirmed", "confirmed"]
    assert (gateway.last.asked.response_topic, gateway.last.asked.correlation) == ("answers/here", b"7")
    gateway.waits(10)
    assert gateway.takes() is None


def test_a_hundred_ids_are_known() -> None:
    gateway = Gateway()
    for number in range(150):
        gateway.asks(RESERVE, str(number % 100), id=f"id{number}")
    assert len(list(gateway.commands.answers)) == 100
    gateway.asks(RESERVE, "1", id="id51")
    assert gateway.last.state == "superseded"
    gateway.asks(RESERVE, "1", id="id0")
    assert gateway.last.state == "accepted"


@pytest.mark.parametrize(
    ("seconds", "value", "duplicate", "again"),
    [(9, "30", True, False), (11, "30", True, True), (9, "31", True, True), (9, "30", False, True)],
)
def test_a_message_that_may_have_been_delivered_before_is_not_done_again(
    seconds: float, value: str, duplicate: bool, again: bool
) -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    gateway.does()
    gateway.tells(SourceName.SECCTRL, {PROOF: 30.0})
    gateway.waits(seconds)
    gateway.asks(RESERVE, value, duplicate=duplicate)
    assert (gateway.takes() is not None) is again
    assert gateway.states[-1] == ("accepted" if again else "confirmed")


def test_ten_refusals_a_minute_are_answered() -> None:
    gateway = Gateway()
    for number in range(15):
        gateway.asks("no/such/thing", str(number))
    assert gateway.states == ["refused"] * 10
    gateway.waits(59)
    assert gateway.commands.refusals.take(gateway.now) == 0
    gateway.waits(1)
    assert gateway.commands.refusals.take(gateway.now) == 5
    gateway.asks("no/such/thing", "16")
    assert gateway.states == ["refused"] * 11


def test_a_gateway_that_is_away_fails_at_once() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30", is_away=True)
    assert (gateway.states, gateway.last.final) == (["failed"], True)
    assert not gateway.commands


def test_what_is_open_at_the_end_has_failed() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30", id="a")
    gateway.does()
    gateway.asks("storage/settings/charge_from_grid", "ON", id="b")
    gateway.commands.abandon("the bridge was stopped")
    gateway.waits(0)
    assert [(answer.id, answer.state.value) for answer in gateway.said[3:]] == [("a", "failed"), ("b", "failed")]
    assert not gateway.commands


def test_what_was_open_at_a_crash_has_failed_at_the_next_start() -> None:
    before = Gateway()
    before.asks(RESERVE, "30", id="a")
    before.does()
    before.tells(SourceName.SECCTRL, {PROOF: 30.0})
    before.asks("storage/settings/charge_from_grid", "ON", id="b")
    after = Gateway()
    after.commands.answers.restore(before.commands.answers, "the bridge was stopped")
    after.waits(0)
    assert [(answer.id, answer.state.value, answer.final) for answer in after.said] == [("b", "failed", True)]
    after.asks(RESERVE, "30", id="a")
    assert after.last.state == "confirmed"


def test_a_dry_run_is_answered_once_and_changes_nothing() -> None:
    gateway = Gateway()
    gateway.asks(RESERVE, "30")
    gateway.asks(RESERVE, "40", dry_run=True)
    assert gateway.states == ["accepted"]
    first, second = gateway.takes(), gateway.takes()
    assert first is not None
    assert second is not None
    assert (first.wanted, second.wanted, second.asked.dry_run) == (30.0, 40.0, True)


def test_a_value_of_a_weaker_source_does_not_replace_a_better_one() -> None:
    gateway = Gateway()
    weak = reading("storage/control/charge_from_grid", value=True)
    weak = replace(weak, measurement=replace(weak.measurement, fallback=True))
    gateway.tells(SourceName.SECCTRL, {"storage/control/charge_from_grid": False})
    gateway.commands.observe(SourceName.TARIFF, [weak])
    seen = gateway.commands.values.get("storage/control/charge_from_grid")
    assert seen is not None
    assert seen.value is False


def test_the_table_is_that_of_the_contract() -> None:
    """By topic: group, what it takes, seconds to prove it, and the topic that does."""
    shown = {topic: (c.group, c.described, c.within, c.proof) for topic, c in CONTROLS.items()}
    assert shown == TABLE


def rows(*given: Sequence[Any]) -> Mapping[str, Any]:
    return {topic: tuple(rest) for topic, *rest in given}


GRIDS = ("grid", "microgrid", "generator")
TABLE = rows(
    (
        "storage/settings/mode",
        "storage",
        "self-consumption, backup, economy, savings-mode",
        90,
        "storage/control/mode",
    ),
    (RESERVE, "storage", "whole numbers from 0 to 100", 90, PROOF),
    ("storage/settings/charge_from_grid", "storage", "ON or OFF", 90, "storage/control/charge_from_grid"),
    (
        "storage/settings/reserve_lowest",
        "storage",
        "whole numbers from 5 to 25",
        90,
        "storage/control/reserve_lowest",
    ),
    ("storage/settings/optimized", "storage", "ON or OFF", 90, None),
    ("relay/+/state", "contacts", "open, closed", 15, ""),
    ("relay/+/mode", "contacts", "manual, soc", 10, ""),
    *((f"relay/+/{name}_action", "contacts", "apply, shed, schedule, none", 10, "") for name in GRIDS),
    *((f"relay/+/soc_{name}", "contacts", "whole numbers from 0 to 100", 10, "") for name in ("low", "high")),
    *(
        (f"relay/+/essential_{name}", "contacts", "a time of day such as 07:30", 10, "")
        for name in ("start", "end")
    ),
    ("relay/mains/grid_connected", "grid", "ON or OFF", 90, ""),
    ("generator/1/command", "generator", "off, on, auto", 30, ""),
    ("generator/1/charge_from_generator", "generator", "ON or OFF", 30, ""),
    ("generator/1/exercise_start", "generator", "a time of day such as 07:30", 30, ""),
    ("generator/1/exercise_minutes", "generator", "steps of 10 from 10 to 60", 30, ""),
    ("generator/1/exercise_day", "generator", "mon, tue, wed, thu, fri, sat, sun", 30, ""),
    ("generator/1/exercise_weeks", "generator", "whole numbers from 1 to 4", 30, ""),
    ("acb/+/sleep", "acb", "ON or OFF", 30, ""),
)
