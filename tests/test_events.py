"""Events: what happens is told once, over restarts too, and what was so before the first start is not told."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from brokers import Seen
from houses import House, house
from running import running, until
from samples import NOW, SERIAL, THREE, answers, changed, parse, restored

from bridge.events import MOST_PER_HOUR, MOST_UNTOLD, EventKind, EventsState, GatewayEvent, GatewayEvents
from bridge.model import DAY_S, HOUR_S, MINUTE_S, Event
from bridge.pipeline import CountersState, Pipeline
from bridge.simulator.ensemble import INVENTORY_PATH, RELAY_PATH
from bridge.simulator.faults import with_body

GIVEN = answers(inverters=4)
QUARTER_S = 15 * MINUTE_S
SILENT_SERIAL = "482200000003"
HELD, BACK = (
    Event(f"counter_{name}", f"meter/production/energy {name}", True, "meter/production/energy")
    for name in ("held", "back")
)


class EventsRun:
    """What a bridge tells of a gateway, by its answers. A restart keeps what the state folder has."""

    def __init__(
        self, now: float = NOW, state: EventsState | None = None, counters: CountersState | None = None
    ) -> None:
        self.now, self.firmware = now, THREE.firmware
        self._pipeline = Pipeline(netted=True, zone=UTC, state=counters, devices=counters.units if counters else ())
        self.events = GatewayEvents(SERIAL, state or EventsState())

    def wait(self, seconds: float) -> "EventsRun":
        self.now += seconds
        return self

    def take(self, source: str, answer: object = None, *, was_starting: bool = False) -> list[str]:
        """Return the types of the events that an answer makes, with the unit where it is not the gateway."""
        parsed = parse(source, GIVEN[source] if answer is None else answer, THREE, self.now)
        shown = self._pipeline.process(source, parsed, THREE, now=self.now, steady=self.now)
        readings = [*shown.readings, *shown.in_force, *self._pipeline.flows(shown.answer)]
        told = self.events.observe(
            readings, shown.events, now=self.now, firmware=self.firmware, was_starting=was_starting
        )
        return names(told)

    def lines(self, *lines: Event) -> list[str]:
        return names(self.events.observe((), lines, now=self.now, firmware=self.firmware))

    def restarted(self) -> "EventsRun":
        run = EventsRun(self.now, restored(self.events.state), restored(self._pipeline.state))
        run.firmware = self.firmware
        return run

    def day(self, hours: float, *silent: str, sun: float = 0.5) -> list[str]:
        """Quarters of an hour in which all inverters but the silent ones report."""
        found = []
        for _ in range(round(hours * 4)):
            found += self.wait(QUARTER_S).take("inverters", roof(self.now, *silent, sun=sun))
        return found


def names(events: Any) -> list[str]:
    return [f"{event.event_type} {event.serial}".removesuffix(f" {SERIAL}") for event in events]


def roof(now: float, *silent: str, sun: float = 0.5) -> Any:
    """The inverters at this time. Silent ones have their last report of two hours ago."""
    return [
        {
            **unit,
            "lastReportDate": int(now) - (2 * int(HOUR_S) if quiet else 60),
            "lastReportWatts": round(300 * sun),
        }
        for unit in GIVEN["inverters"]
        for quiet in [unit["serialNumber"] in silent]
    ]


# Inverters


def test_an_inverter_that_stops_in_the_sun_is_told_once_and_so_is_its_return() -> None:
    run = EventsRun()
    assert run.day(2) == []
    assert run.day(0.75, SILENT_SERIAL) == []
    assert run.day(3, SILENT_SERIAL) == [f"inverter_silent {SILENT_SERIAL}"]
    run = run.restarted()
    assert run.day(3, SILENT_SERIAL) == []
    assert run.day(1) == [f"inverter_back {SILENT_SERIAL}"]
    assert run.restarted().day(2) == []


def test_inverters_that_sleep_at_night_are_not_silent() -> None:
    run = EventsRun()
    everybody = [unit["serialNumber"] for unit in GIVEN["inverters"]]
    assert run.day(2) == []
    assert run.day(14, *everybody) == []
    assert run.day(1, *everybody[1:], sun=0.05) == []  # the first one wakes in the light of dawn
    assert run.day(2) == []


def test_an_inverter_that_fails_at_night_is_told_after_an_hour_of_sun_in_sum() -> None:
    run = EventsRun()
    assert run.day(2) == []
    for _ in range(2):
        assert run.day(0.5, SILENT_SERIAL) == []
        assert run.day(10, SILENT_SERIAL, sun=0.01) == []
    assert run.day(1, SILENT_SERIAL) == [f"inverter_silent {SILENT_SERIAL}"]


def test_an_inverter_that_was_silent_before_the_first_start_is_not_told() -> None:
    run = EventsRun()
    assert run.day(3, SILENT_SERIAL) == []
    assert run.restarted().day(3, SILENT_SERIAL) == []
    assert run.day(1) == [f"inverter_back {SILENT_SERIAL}"]


def test_an_inverter_that_never_worked_here_is_another_gateways() -> None:
    run = EventsRun()
    unused = {
        **GIVEN["inverters"][0],
        "serialNumber": "9",
        "lastReportDate": 0,
        "lastReportWatts": 0,
        "maxReportWatts": 0,
    }
    assert run.day(2) == []
    for _ in range(12):
        assert run.wait(QUARTER_S).take("inverters", [*roof(run.now), unused]) == []


# Storage gear


def test_a_battery_that_no_longer_communicates_is_told_after_ten_minutes() -> None:
    run = EventsRun()
    away = changed(GIVEN["inventory"], "0.devices.0.communicating", lambda _: False)
    serial = GIVEN["inventory"][0]["devices"][0]["serial_num"]
    told = [*run.take("inventory"), *run.wait(QUARTER_S).take("inventory")]
    assert told + run.wait(300).take("inventory", away) == []
    assert run.wait(300).take("inventory", away) == [f"battery_silent {serial}"]
    run = run.restarted()
    assert run.wait(300).take("inventory", away) == []
    assert run.wait(300).take("inventory") == [f"battery_back {serial}"]


def test_the_grid_is_lost_and_back() -> None:
    run = EventsRun()
    opened = {**GIVEN["relay"], "mains_oper_state": "open"}
    run.take("meters")
    assert run.take("relay") == []
    assert run.wait(30).take("relay", opened) == ["grid_lost"]
    assert run.wait(30).take("relay", opened) == []
    run = run.restarted()
    run.take("meters")
    assert run.wait(30).take("relay", opened) == []
    assert run.wait(30).take("relay") == ["grid_back"]


def test_a_bridge_that_starts_off_the_grid_says_nothing_of_it() -> None:
    run = EventsRun()
    run.take("meters")
    assert run.take("relay", {**GIVEN["relay"], "mains_oper_state": "open"}) == []
    assert run.wait(30).take("relay") == ["grid_back"]


def test_the_generator_starts_and_stops() -> None:
    run = EventsRun()
    running_now = {**GIVEN["generator"], "oper_state": "closed"}
    assert run.take("generator") == []
    assert run.wait(60).take("generator", running_now) == ["generator_started"]
    assert run.restarted().wait(60).take("generator", running_now) == []
    assert run.wait(60).take("generator") == ["generator_stopped"]


def test_production_is_limited_and_free() -> None:
    run = EventsRun()
    free, limited = ({"enable": is_on, "pv_limit_pct": share} for is_on, share in ((False, 100), (True, 60)))
    assert run.take("pvlimit", free) == []
    assert run.wait(600).take("pvlimit", limited) == ["production_limited"]
    run = run.restarted()
    assert run.wait(600).take("pvlimit", limited) == []
    assert run.wait(600).take("pvlimit", free) == ["production_free"]


# What the log says, too


def listed(*numbers: int) -> dict[str, Any]:
    """The gateway's own list with these entries, the newest first."""
    return {"aaData": [[str(n), f"event {n}", "48", "pcu ", "Sat 09:30 PM"] for n in sorted(numbers)[::-1]]}


def test_entries_of_the_gateways_own_list_are_told_once_over_restarts() -> None:
    run = EventsRun()
    assert run.take("event_list", listed(5, 6)) == []  # they were there before
    assert run.take("event_list", listed(5, 6, 8, 7)) == ["gateway_event"] * 2
    run = run.restarted()
    assert run.take("event_list", listed(7, 8, 9)) == ["gateway_event"]
    assert run.take("event_list", {"aaData": []}) == run.take("event_list", {"aaData": [["x", "y"]]}) == []
    assert run.take("event_list", listed(9)) == []


def test_what_an_entry_says() -> None:
    run = EventsRun()
    run.take("event_list", listed(1))
    run.take("event_list", {"aaData": [["2", "Failed: Set", "48", "pcu ", "Sat"], ["3", "x\u202e", None, "", {}]]})
    assert [event.text for event in run.events.state.untold] == ["Failed: Set, 48, pcu, Sat", "x"]


@pytest.mark.parametrize("known", [30, 16_000])
def test_a_list_that_begins_anew_is_told_from_its_third_answer_on(known: int) -> None:
    """One answer with older numbers may be chance; what it has would otherwise be told twice."""
    run = EventsRun()
    run.take("event_list", listed(known))
    assert run.take("event_list", listed(known - 20)) == run.take("event_list", listed(known)) == []
    assert run.take("event_list", listed(1)) == run.take("event_list", listed(1, 2)) == []
    assert run.take("event_list", listed(1, 2, 3)) == ["gateway_event"]


def test_a_counter_is_held_until_it_is_back() -> None:
    run = EventsRun()
    assert run.lines(HELD) == ["counter_held"]
    assert run.restarted().lines(HELD) == []
    assert run.lines(BACK) == []
    assert run.restarted().lines(HELD) == ["counter_held"]


def test_a_counter_of_an_inverter_tells_its_serial_number() -> None:
    about = "inverter/482200000002/energy_lifetime"
    assert EventsRun().lines(Event("counter_held", "x", True, about)) == ["counter_held 482200000002"]


def test_a_clamp_is_suspicious_until_it_is_trusted() -> None:
    run = EventsRun()
    suspicious, trusted = Event("clamp_suspicious", "reversed", True), Event("clamp_trusted", "good", False)
    assert run.lines(suspicious) == ["clamp_suspicious"]
    assert run.restarted().lines(suspicious) == []
    assert run.lines(trusted) == []
    assert run.lines(suspicious) == ["clamp_suspicious"]


# The gateway and its token


def test_firmware_changes_are_told_over_restarts() -> None:
    run = EventsRun()
    assert run.take("production") == []
    run = run.restarted()
    run.firmware = "D8.3.6000"
    assert run.take("production") == ["firmware_changed"]
    assert run.take("production") == run.restarted().take("production") == []


def test_a_gateway_that_says_it_starts_has_restarted() -> None:
    run = EventsRun()
    assert run.take("production", was_starting=True) == []  # the bridge begins together with the gateway
    assert run.take("production") == []
    assert run.take("production", was_starting=True) == ["gateway_restarted"]


def test_counters_of_requests_that_begin_anew_after_an_outage_tell_of_a_restart() -> None:
    run = EventsRun()
    anew = changed(GIVEN["livedata"], "counters", lambda _: {"rest_Status": 3, "rest_status": 4})
    assert run.take("livedata") == run.wait(5).take("livedata") == []
    assert run.wait(90).take("livedata") == []  # an outage alone is none
    assert run.wait(90).take("livedata", anew) == ["gateway_restarted"]
    assert run.wait(90).take("livedata", anew) == []


def test_a_token_is_refused_until_one_is_accepted() -> None:
    run = EventsRun()

    def token(refused: str | None) -> list[str]:
        return names(run.events.observe_token(refused=refused, now=run.now))

    assert token("revoked") == []  # since the first start
    assert token(None) == []
    assert token("revoked") == ["token_refused"]
    run = run.restarted()
    assert token("revoked") == token(None) == []
    assert token("revoked") == ["token_refused"]


def test_that_a_token_expires_is_told_once_for_each_token() -> None:
    run = EventsRun()
    first, second = (datetime.fromtimestamp(NOW, UTC) + timedelta(days=days) for days in (20, 30))

    def token(expires: datetime, problem: str | None) -> list[str]:
        told = run.events.observe_token(refused=None, now=run.now, expires=expires, problem=problem)
        return names(told)

    assert token(first, None) == []
    assert token(first, "paste another") == ["token_expiring"]
    run = run.restarted()
    assert token(first, "paste another") == token(first, None) == token(first, "paste another") == []
    assert token(second, None) == []
    assert token(second, "paste another") == ["token_expiring"]


# The message


def test_an_event_as_subscribers_get_it() -> None:
    """The keys are those of the contract."""
    run = EventsRun()
    run.take("production")
    (event,) = run.events.observe((), (), now=NOW + 1.4, firmware="D8.3.6000")
    message = event.message(f"enphase/{SERIAL}/events")
    assert (message.retain, message.qos, message.content_type) == (False, 1, "application/json")
    assert json.loads(message.payload) == {
        "event_type": "firmware_changed",
        "at": "2025-11-22T08:26:41+00:00",
        "id": f"{SERIAL}-1763800001400-firmware_changed",
        "serial": SERIAL,
        "text": f"the firmware changed from {THREE.firmware} to D8.3.6000",
    }


def test_each_event_has_an_id_of_its_own() -> None:
    run = EventsRun()
    run.lines(*(Event("counter_held", "x", True, f"inverter/{unit}/energy_lifetime") for unit in range(9)))
    assert len({event.id for event in run.events.state.untold}) == 9


def test_events_that_the_broker_lacks_are_kept_and_bounded() -> None:
    run = EventsRun()
    for number in range(4 * MOST_UNTOLD):
        run.wait(HOUR_S / 8).lines(Event("counter_held", str(number), True, f"meter/m/{number}"))
    kept = run.restarted().events.state.untold
    assert [event.text for event in kept] == [str(number) for number in range(3 * MOST_UNTOLD, 4 * MOST_UNTOLD)]
    run.events.sent(kept[0].payload)
    assert run.events.state.untold == kept[1:]


def test_a_relay_that_flaps_has_an_end() -> None:
    run = EventsRun()
    run.take("meters")
    states = [{**GIVEN["relay"], "mains_oper_state": state} for state in ("closed", "open")]
    told = [name for turn in range(500) for name in run.wait(1).take("relay", states[turn % 2])]
    assert len(told) == MOST_PER_HOUR
    assert run.wait(DAY_S).take("relay", states[0]) == ["grid_back"]


# With a broker


def events_of(home: House) -> list[Seen]:
    return [seen for seen in home.watcher.seen if seen.topic == f"enphase/{home.serial}/events"]


def grid(home: House, state: bytes) -> None:
    """Let the controller and its relay say so."""
    home.simulator.faults.clear()
    for path in (RELAY_PATH, INVENTORY_PATH):
        home.simulator.faults.add(path, with_body("relay", lambda body: body.replace(b"closed", state)))


@pytest.mark.hasty
async def test_an_event_comes_once_also_over_restarts_and_is_not_retained(tmp_path: Path) -> None:
    async with house(tmp_path, "split-phase") as home:
        async with running(home.settings()):
            await until(lambda: home.topic("site/grid/connected") == "ON")
            await home.settled()  # what is so when every source was asked for the first time is no event
            asked = home.simulator.count(RELAY_PATH)
            await until(lambda: home.simulator.count(RELAY_PATH) > asked + 1)
            assert events_of(home) == []
            grid(home, b"open")
            await until(lambda: home.topic("site/grid/connected") == "OFF" and len(events_of(home)) > 0)
        async with running(home.settings()):
            asked = home.simulator.count(RELAY_PATH)
            await until(lambda: home.simulator.count(RELAY_PATH) > asked + 2)
            grid(home, b"closed")
            await until(lambda: len(events_of(home)) > 1)
        told = events_of(home)
        assert [json.loads(seen.payload)["event_type"] for seen in told] == ["grid_lost", "grid_back"]
        assert [(seen.qos, seen.retained, seen.content_type) for seen in told] == [
            (1, False, "application/json")
        ] * 2


def test_the_types_are_in_the_state_file_as_words() -> None:
    event = GatewayEvent(EventKind.GRID_LOST, NOW, "1", SERIAL, "gone")
    assert restored(EventsState(untold=(event,))).untold == (event,)


def test_the_manual_explains_each_type() -> None:
    manual = Path(__file__).parents[1] / "docs" / "topics.md"
    section = manual.read_text().partition("\n## Events\n")[2].partition("\n## ")[0]
    table = "\n".join(line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `"))
    assert {*re.findall(r"`(\w+)`", table)} - {"event_type"} == {*map(str, EventKind)}
