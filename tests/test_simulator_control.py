"""Tests of what the simulated gateway does with writes, by personality, over TLS."""

import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from running import Clock

from bridge.simulator import HOMES, PERSONALITIES, PERSONALITY_NAMES, Home, Personality, Simulator
from bridge.simulator.presets import DELAYS, NET_CONSUMPTION, BatterySpec
from bridge.simulator.serve import serve
from bridge.simulator.truth import BatteryUse

AFTERNOON = 1_750_000_000.0
"""15:06:40 UTC, when the sun shines and the batteries are full."""
MORNING = AFTERNOON - 8 * 3600
"""When they are nearly empty."""
TARIFF_PATH = "/admin/lib/tariff"
RELAY_PATH = "/ivp/ensemble/relay"
CONTACTS_PATH = "/ivp/ensemble/dry_contacts"
SETTINGS_PATH = "/ivp/ss/dry_contact_settings"
GENERATOR_PATH = "/ivp/ensemble/generator"
MODE_PATH = "/ivp/ss/gen_mode"
CONFIG_PATH = "/ivp/ss/gen_config"
SCHEDULE_PATH = "/ivp/ss/gen_schedule"
SLEEP_PATH = "/admin/lib/acb_config"
SECCTRL_PATH = "/ivp/ensemble/secctrl"
LONG_S = 3600.0


class Control:
    """A simulated gateway and a client of it."""

    def __init__(self, simulator: Simulator, clock: Clock, client: httpx.AsyncClient) -> None:
        self.simulator, self.clock, self.client = simulator, clock, client

    async def get(self, path: str) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def write(self, method: str, path: str, document: Any, **options: Any) -> httpx.Response:
        return await self.client.request(method, path, content=json.dumps(document), **options)

    async def done(self, method: str, path: str, document: Any) -> Any:
        answer = await self.write(method, path, document)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def put_tariff(self, **settings: Any) -> Any:
        """Read the tariff, change its storage settings, and write the whole of it."""
        tariff = (await self.get(TARIFF_PATH))["tariff"]
        tariff["storage_settings"] |= settings
        return await self.done("PUT", TARIFF_PATH, {"tariff": tariff})

    async def post_contact(self, name: str, **settings: Any) -> Any:
        """Read the settings of a contact, change some, and write all of them."""
        contacts = (await self.get(SETTINGS_PATH))["dry_contacts"]
        contact = next(item for item in contacts if item["id"] == name) | settings
        for key in ("override", "manual_override"):
            contact[key] = str(contact[key]).lower()
        return await self.done("POST", SETTINGS_PATH, {"dry_contacts": contact})

    async def contacts(self) -> dict[str, str]:
        return {item["id"]: item["status"] for item in (await self.get(CONTACTS_PATH))["dry_contacts"]}

    async def stored(self) -> Any:
        return (await self.get(TARIFF_PATH))["tariff"]["storage_settings"]

    @property
    def use(self) -> BatteryUse:
        return self.simulator.truth().equipment.use


@asynccontextmanager
async def controlled(
    personality: Personality | str | None = "obeys",
    home: Home | str = "split-phase",
    *,
    role: str = "owner",
    start: float = AFTERNOON,
) -> AsyncIterator[Control]:
    clock = Clock(start)
    simulator = Simulator(home, clock=clock, personality=personality)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {simulator.token(enphaseUser=role)}"}
    async with (
        serve(simulator, tls=True) as address,
        httpx.AsyncClient(verify=context, base_url=f"https://{address}", headers=headers) as client,
    ):
        yield Control(simulator, clock, client)


def test_the_command_line_lists_every_personality() -> None:
    assert list(PERSONALITY_NAMES) == sorted(PERSONALITIES)


def test_the_documents_list_every_personality_with_its_firmware() -> None:
    lines = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    told = dict(re.findall(r"^\| `([a-z-]+)` \| ([\d.]+) \|", lines, re.MULTILINE))
    assert told == {name: kind.firmware.lstrip("D") for name, kind in PERSONALITIES.items()}


# ---------------------------------------------------------------- a gateway that obeys


async def test_the_controller_follows_the_tariff_after_a_while() -> None:
    async with controlled() as control:
        before = (await control.get(TARIFF_PATH))["tariff"]
        answer = await control.put_tariff(mode="economy", reserved_soc=35.0, charge_from_grid=True, very_low_soc=12)
        assert answer["tariff"]["storage_settings"]["reserved_soc"] == 35
        assert answer["schedule"]["batt_mode"] == "self-consumption"
        assert control.use == BatteryUse("self-consumption", 22.0, 9.0, False, 22.0)
        control.clock.now += DELAYS["storage"]
        assert control.use == BatteryUse("economy", 35.0, 12.0, True, 35.0)
        schedule = (await control.get(TARIFF_PATH))["schedule"]
        assert (schedule["batt_mode"], schedule["reserved_soc"]) == ("economy", 35)
        assert schedule["charge_from_grid"] is True
        secctrl = await control.get(SECCTRL_PATH)
        assert (secctrl["configured_backup_soc"], secctrl["VLS_Limit"]) == (35, 12)
        after = (await control.get(TARIFF_PATH))["tariff"]
        assert {**after, "storage_settings": None} == {**before, "storage_settings": None}
        assert "opt_schedules" not in after["storage_settings"]  # it came with 8.2.42xx


async def test_a_tariff_is_stored_digit_by_digit_and_without_what_it_lacks() -> None:
    async with controlled() as control:
        tariff = (await control.get(TARIFF_PATH))["tariff"]
        tariff["single_rate"] = {"rate": 0.03999900072813034, "sell": 0.0}
        del tariff["seasons_sell"]
        await control.done("PUT", TARIFF_PATH, {"tariff": tariff})
        text = (await control.client.get(TARIFF_PATH)).text
        assert '"rate": 0.03999900072813034' in text
        assert '"sell": 0.0\n' in text
        assert "seasons_sell" not in text


class Change(NamedTuple):
    """A write, the place in the equipment that it changes, to what, and after how many seconds."""

    method: str
    path: str
    document: Any
    place: tuple[str, ...]
    value: str
    delay: float


OPEN_GRID = Change("POST", RELAY_PATH, {"mains_admin_state": "open"}, ("relay", "oper"), "open", 28)
OPEN_NC1 = Change(
    "POST", CONTACTS_PATH, {"dry_contacts": {"id": "NC1", "status": "open"}}, ("contacts", "NC1"), "open", 3
)
CLOSE_NO1 = Change(
    "POST", CONTACTS_PATH, {"dry_contacts": {"id": "NO1", "status": "closed"}}, ("contacts", "NO1"), "closed", 3
)
START = Change("POST", MODE_PATH, {"gen_cmd": "on"}, ("generator", "oper_state"), "close", 5)
CHANGES = [OPEN_GRID, OPEN_NC1, CLOSE_NO1, START]


@pytest.mark.parametrize("change", CHANGES)
async def test_what_takes_its_time(change: Change) -> None:
    async with controlled() as control:
        await control.done(*change[:3])
        control.clock.now += change.delay - 0.1
        assert control.simulator.truth().equipment.get(change.place) != change.value
        control.clock.now += 0.1
        assert control.simulator.truth().equipment.get(change.place) == change.value
        assert [(seen.method, seen.path) for seen in control.simulator.writes()] == [change[:2]]
        assert json.loads(control.simulator.writes()[0].body) == change.document


async def test_a_contact_answers_with_its_old_state_and_the_others_stay() -> None:
    async with controlled() as control:
        before = await control.contacts()
        answer = await control.done("POST", CONTACTS_PATH, OPEN_NC1.document)
        assert answer["dry_contacts"][0] == {"id": "NC1", "status": "closed"}
        await control.done("POST", CONTACTS_PATH, CLOSE_NO1.document)
        control.clock.now += 3
        assert await control.contacts() == {**before, "NC1": "open", "NO1": "closed"}


async def test_a_contacts_settings_change_as_a_whole() -> None:
    async with controlled() as control:
        before = (await control.get(SETTINGS_PATH))["dry_contacts"]
        await control.post_contact("NC1", mode="manual", soc_low=30.0)
        assert (await control.get(SETTINGS_PATH))["dry_contacts"] == before
        control.clock.now += 4
        after = (await control.get(SETTINGS_PATH))["dry_contacts"]
        assert after == [before[0] | {"mode": "manual", "soc_low": 30.0}, *before[1:]]


async def test_the_generators_schedule_is_in_force_at_once() -> None:
    async with controlled() as control:
        schedule = await control.get(SCHEDULE_PATH)
        schedule["exercise_config"]["duration"] = 7  # out of the domain, and taken all the same
        schedule["default_soc"] = {"start_soc": 25, "stop_soc": 60}
        assert await control.done("POST", SCHEDULE_PATH, schedule) == schedule == await control.get(SCHEDULE_PATH)
        generator = await control.get(GENERATOR_PATH)
        assert (generator["start_soc"], generator["stop_soc"]) == (25, 60)


@pytest.mark.parametrize(("batteries", "comes_back"), [(HOMES["split-phase"].batteries, False), ((), True)])
async def test_charging_by_generator_comes_back_without_batteries(
    batteries: tuple[BatterySpec, ...], comes_back: bool
) -> None:
    home = replace(HOMES["split-phase"], batteries=batteries)
    async with controlled(home=home) as control:
        config = await control.get(CONFIG_PATH)
        answer = await control.done("POST", CONFIG_PATH, config | {"charge_from_generator": False})
        assert answer == config | {"charge_from_generator": comes_back}


async def test_a_command_of_the_generator_survives_a_schedule() -> None:
    async with controlled() as control:
        await control.done("POST", MODE_PATH, {"gen_cmd": "on"})
        await control.done("POST", SCHEDULE_PATH, await control.get(SCHEDULE_PATH))
        control.clock.now += 5
        assert (await control.get(MODE_PATH))["gen_cmd"] == "on"
        generator = await control.get(GENERATOR_PATH)
        assert (generator["oper_state"], generator["admin_mode"]) == ("close", 1)


async def test_ac_batteries_sleep_and_wake() -> None:
    async with controlled(home="ac-batteries", start=AFTERNOON - 5 * LONG_S) as control:
        first, second = (battery.serial for battery in control.simulator.home.ac_batteries)
        levels = {"sleep_min_soc": 25, "sleep_max_soc": 31}
        sleeping = [{"serial_num": serial, **levels} for serial in (first, second)]
        assert await control.done("PUT", SLEEP_PATH, {"acb_sleep": sleeping}) == {"message": "success"}
        assert await control.get(SLEEP_PATH) == {"acb_sleep": sleeping}
        control.clock.now += 60
        assert [battery.power for battery in control.simulator.truth().ac_batteries] == [0, 0]
        await control.done("DELETE", SLEEP_PATH, {"acb_sleep": [{"serial_num": first}]})
        assert await control.get(SLEEP_PATH) == {"acb_sleep": sleeping[1:]}
        control.clock.now += 60
        assert [bool(battery.power) for battery in control.simulator.truth().ac_batteries] == [True, False]


async def test_the_last_of_two_opposite_commands_counts() -> None:
    async with controlled() as control:
        await control.done("POST", RELAY_PATH, {"mains_admin_state": "open"})
        control.clock.now += 5
        await control.done("POST", RELAY_PATH, {"mains_admin_state": "closed"})
        control.clock.now += LONG_S
        relay = await control.get(RELAY_PATH)
        assert (relay["mains_admin_state"], relay["mains_oper_state"]) == ("closed", "closed")


async def test_a_home_without_a_personality_obeys() -> None:
    async with controlled(None) as control:
        assert (await control.get(SECCTRL_PATH))["configured_backup_soc"] == 20
        await control.put_tariff(reserved_soc=40.0)
        control.clock.now += 10
        assert (await control.get(SECCTRL_PATH))["configured_backup_soc"] == 40
        assert control.simulator.home.firmware == HOMES["split-phase"].firmware


# ---------------------------------------------------------------- the house follows


async def test_off_the_grid_nothing_flows_and_the_phases_balance() -> None:
    async with controlled() as control:
        await control.client.post("/ivp/livedata/stream", json={"enable": 1})
        await control.done("POST", RELAY_PATH, {"mains_admin_state": "open"})
        for state in (3, 3, 2):
            live = await control.get("/ivp/livedata/status")
            assert live["meters"]["main_relay_state"] == state
            control.clock.now += 14
        for _ in range(12):
            control.clock.now += 2 * LONG_S
            truth = control.simulator.truth()
            for flow in (truth.site, *truth.phases.values()):
                assert flow.grid.power == 0
                milliwatts = [round(1000 * part.power) for part in (flow.home, flow.solar, flow.battery)]
                assert milliwatts[0] == milliwatts[1] + milliwatts[2]
            given = sum(round(1000 * battery.power) for battery in truth.batteries)
            assert given == round(1000 * truth.site.battery.power)
        inventory = await control.get("/ivp/ensemble/inventory")
        controller = next(item for item in inventory if item["type"] == "ENPOWER")["devices"][0]
        assert (controller["mains_oper_state"], controller["Enpwr_grid_mode"]) == ("open", "multimode-offgrid")
        await control.done("POST", RELAY_PATH, {"mains_admin_state": "closed"})
        control.clock.now += 15
        assert control.simulator.truth().site.grid.power != 0


async def test_off_the_grid_the_reserve_is_used_and_then_the_house_is_dark() -> None:
    async with controlled(start=MORNING + 14 * LONG_S) as control:
        await control.put_tariff(reserved_soc=90.0)
        await control.done(*OPEN_GRID[:3])
        control.clock.now += LONG_S
        assert control.simulator.truth().site.battery.power > 0
        control.clock.now += 31 * LONG_S
        assert control.simulator.truth().soc == pytest.approx(9, abs=1)
        needed = control.simulator.home.load
        assert control.simulator.truth().site.home.power < sum(needed) / 3


async def test_the_grid_is_gone_at_its_time_even_if_nobody_looks() -> None:
    async with controlled(start=MORNING - 4 * LONG_S) as control:
        before = control.simulator.truth().site.grid
        assert before.power > 100
        await control.done(*OPEN_GRID[:3])
        control.clock.now += LONG_S
        imported = control.simulator.truth().site.grid.delivered - before.delivered
        assert imported == pytest.approx(before.power * 28 / 3600, rel=0.5)


@pytest.mark.parametrize("hours", [4, 8])  # evening, and then no sun
async def test_a_backup_battery_does_not_discharge_on_the_grid(hours: float) -> None:
    async with controlled() as control:
        await control.put_tariff(mode="backup")
        control.clock.now += hours * LONG_S
        truth = control.simulator.truth()
        assert truth.site.home.power > truth.site.solar.power
        assert truth.site.battery.power <= 0


async def test_the_batteries_keep_their_reserve_and_the_grid_fills_it() -> None:
    async with controlled(start=MORNING) as control:
        soc = control.simulator.truth().soc
        await control.put_tariff(reserved_soc=round(soc) + 3.0, charge_from_grid=True)
        control.clock.now += 10
        first = control.simulator.truth()
        assert first.site.battery.power < 0
        control.clock.now += 20 * LONG_S  # in the night
        assert control.simulator.truth().soc == pytest.approx(round(soc) + 3, abs=1)
        assert control.simulator.truth().meters[NET_CONSUMPTION].total.power > 0


# ---------------------------------------------------------------- firmware that does not obey


async def test_8_2_42_ignores_the_tariff_while_the_cloud_optimizes() -> None:
    async with controlled("ignores") as control:
        before = control.use
        await control.put_tariff(mode="backup", reserved_soc=60.0)
        control.clock.now += LONG_S
        stored = await control.stored()
        assert (stored["mode"], stored["reserved_soc"], stored["opt_schedules"]) == ("backup", 60, True)
        assert (await control.get(TARIFF_PATH))["schedule"]["batt_mode"] == "self-consumption"
        assert control.use == before
        await control.put_tariff(opt_schedules=False)
        control.clock.now += LONG_S
        assert (control.use.mode, control.use.reserve) == ("backup", 60)


async def test_8_3_5169_obeys_until_the_cloud_comes_back() -> None:
    async with controlled("cloud-restores") as control:
        before, date = control.use, (await control.stored())["date"]
        await control.put_tariff(mode="backup", reserved_soc=60.0)
        control.clock.now += 89
        assert (control.use.mode, control.use.reserve) == ("backup", 60)
        assert (await control.get(TARIFF_PATH))["schedule"]["batt_mode"] == "backup"
        assert (await control.stored())["date"] == date
        control.clock.now += 1
        assert control.use == before
        stored = await control.stored()
        assert (stored["mode"], stored["reserved_soc"], stored["opt_schedules"]) == ("self-consumption", 22, True)
        assert stored["date"] == str(int(control.clock.now))
        await control.put_tariff(mode="backup")
        control.clock.now += 60
        assert control.use == before  # since the cloud optimizes again


async def test_8_3_6086_has_a_stale_file() -> None:
    async with controlled("stale-file") as control:
        before, file = control.use, await control.stored()
        assert (before.mode, file["mode"]) == ("backup", "self-consumption")
        await control.put_tariff(mode="economy", reserved_soc=60.0)
        control.clock.now += LONG_S
        answer = await control.get(TARIFF_PATH)
        assert answer["tariff"]["storage_settings"]["mode"] == answer["schedule"]["batt_mode"] == "economy"
        assert control.use == before
        assert (await control.get(SECCTRL_PATH))["configured_backup_soc"] == 40
        now = control.clock.now
        control.simulator.gateway.controls.set_by_app(now, ("use",), replace(before, reserve=70.0, floor=70.0))
        assert (await control.get(SECCTRL_PATH))["configured_backup_soc"] == 70
        assert (await control.stored())["reserved_soc"] == 60  # the app's changes do not appear in the file
        control.simulator.reboot()
        assert await control.stored() == file
        assert control.use.reserve == 70


@pytest.mark.parametrize("personality", ["obeys", "ignores", "cloud-restores", "stale-file"])
async def test_the_controller_tells_what_is_in_force_whatever_is_stored(personality: str) -> None:
    async with controlled(personality) as control:
        await control.put_tariff(reserved_soc=60.0, charge_from_grid=True)
        for seconds in (0, 10, 80):
            control.clock.now += seconds
            schedule, use = await control.get("/ivp/sc/sched"), control.use
            assert schedule["Charge From Grid Allowed"] is use.charge_from_grid
            assert schedule["Agg Backup Energy"] == round(schedule["max_energy"] * use.reserve / 100)
            assert (await control.get(SECCTRL_PATH))["configured_backup_soc"] == use.reserve


async def test_the_app_changes_file_and_use_of_a_gateway_that_obeys() -> None:
    async with controlled() as control:
        wanted = BatteryUse("backup", 50.0, 11.0, True, 50.0)
        control.simulator.gateway.controls.set_by_app(control.clock.now, ("use",), wanted)
        assert control.use == wanted
        assert (await control.stored())["reserved_soc"] == 50
        assert control.simulator.writes() == []


async def test_after_a_change_of_settings_contacts_are_falsely_open() -> None:
    async with controlled("hides-contacts") as control:
        before = await control.contacts()
        assert before == {"NC1": "closed", "NC2": "open", "NO1": "open", "NO2": "closed"}
        await control.post_contact("NO1", soc_low=33.0)
        assert await control.contacts() == {**before, "NC1": "open"}
        control.clock.now += 89
        assert await control.contacts() == {**before, "NC1": "open"}
        assert control.simulator.truth().equipment.contacts == before
        control.clock.now += 1
        assert await control.contacts() == before


async def test_some_firmware_has_overrides_as_booleans_and_refuses_them() -> None:
    async with controlled("stale-file") as control:
        contact = (await control.get(SETTINGS_PATH))["dry_contacts"][1]
        assert (contact["override"], contact["manual_override"]) == (True, False)
        refused = await control.write("POST", SETTINGS_PATH, {"dry_contacts": contact})
        assert (refused.status_code, refused.json()) == (500, {"error": "field missing"})
        await control.post_contact("NC2", mode="soc")
        control.clock.now += 4
        contact = (await control.get(SETTINGS_PATH))["dry_contacts"][1]
        assert (contact["override"], contact["manual_override"], contact["mode"]) == ("true", "false", "soc")


async def test_other_firmware_takes_booleans_as_home_assistant_sends_them() -> None:
    async with controlled() as control:
        before = (await control.get(SETTINGS_PATH))["dry_contacts"]
        contact = before[1] | {"override": False, "manual_override": True, "soc_high": 80}
        newer = ("safe_state_action", "black_start_retries", "action_retries", "pv_phase_select")
        known = {key: value for key, value in contact.items() if key not in newer}
        await control.done("POST", SETTINGS_PATH, {"dry_contacts": known})
        control.clock.now += 3
        after = (await control.get(SETTINGS_PATH))["dry_contacts"]
        assert after[1] == known | {"override": "false", "manual_override": "true"}
        assert [*after[:1], *after[2:]] == [*before[:1], *before[2:]]


@pytest.mark.parametrize("change", CHANGES)
async def test_somebody_undoes_what_was_commanded(change: Change) -> None:
    async with controlled("app-undoes") as control:
        before = control.simulator.truth().equipment
        await control.done(*change[:3])
        control.clock.now += 119
        assert control.simulator.truth().equipment.get(change.place) == change.value
        control.clock.now += 1
        assert control.simulator.truth().equipment == before
        assert len(control.simulator.writes()) == 1


async def test_somebody_undoes_settings() -> None:
    async with controlled("app-undoes") as control:
        before = control.simulator.truth().equipment
        await control.put_tariff(mode="backup")
        await control.post_contact("NC1", mode="manual")
        control.clock.now += 119
        after = control.simulator.truth().equipment
        assert (after.use.mode, after.contact_settings["NC1"]["mode"]) == ("backup", "manual")
        control.clock.now += 1
        assert control.simulator.truth().equipment == before


async def test_a_write_may_spoil_a_rate_that_nobody_asked_for() -> None:
    async with controlled("spoils-rates") as control:
        before = (await control.get(TARIFF_PATH))["tariff"]
        after = (await control.put_tariff(reserved_soc=40.0))["tariff"]
        assert after["storage_settings"]["reserved_soc"] == 40
        assert (before["single_rate"]["sell"], after["single_rate"]["sell"]) == (0.08, 0)


# ---------------------------------------------------------------- refusals and lost answers


@pytest.mark.parametrize("has_session", [False, True])
async def test_an_owners_token_may_not_write_where_only_installers_may(has_session: bool) -> None:
    async with controlled("installer-only") as control:
        if has_session:
            await control.client.get("/auth/check_jwt")
            del control.client.headers["Authorization"]
        before = control.simulator.truth().equipment
        refused = await control.write(*OPEN_GRID[:3])
        assert (refused.status_code, refused.headers["content-type"]) == (401, "text/html")
        assert "401 Authorization Required" in refused.text
        await control.get(RELAY_PATH)  # reading is allowed
        control.clock.now += LONG_S
        assert control.simulator.truth().equipment == before
        assert len(control.simulator.writes()) == 1


@pytest.mark.parametrize("has_session", [False, True])
async def test_an_installers_token_may_write_where_only_installers_may(has_session: bool) -> None:
    async with controlled("installer-only", role="installer") as control:
        if has_session:
            await control.client.get("/auth/check_jwt")
            del control.client.headers["Authorization"]
        await control.done(*OPEN_GRID[:3])


@pytest.mark.parametrize(("personality", "status"), [("refuses", 400), ("fails", 500)])
async def test_refused_writes_change_nothing(personality: str, status: int) -> None:
    async with controlled(personality) as control:
        before = control.simulator.truth().equipment
        for change in CHANGES:
            assert (await control.write(*change[:3])).status_code == status
        tariff = {"tariff": (await control.get(TARIFF_PATH))["tariff"]}
        assert (await control.write("PUT", TARIFF_PATH, tariff)).status_code == status
        control.clock.now += LONG_S
        assert control.simulator.truth().equipment == before
        assert len(control.simulator.writes()) == len(CHANGES) + 1


async def test_a_write_may_get_no_answer() -> None:
    async with controlled("hangs") as control:
        before = control.simulator.truth().equipment
        with pytest.raises(httpx.ReadTimeout):
            await control.write(*OPEN_GRID[:3], timeout=0.2)
        await control.get(RELAY_PATH)
        control.clock.now += LONG_S
        assert control.simulator.truth().equipment == before
        assert len(control.simulator.writes()) == 1


async def test_a_write_may_take_effect_and_its_answer_get_lost() -> None:
    async with controlled("loses-answers") as control:
        with pytest.raises(httpx.TransportError):
            await control.write(*OPEN_GRID[:3])
        await control.get(RELAY_PATH)
        control.clock.now += 28
        assert not control.simulator.truth().equipment.on_grid
        assert len(control.simulator.writes()) == 1


async def test_a_part_of_a_contact_crashes_the_service_for_a_minute() -> None:
    async with controlled() as control:
        before = control.simulator.truth().equipment
        part = {"dry_contacts": {"id": "NC1", "mode": "manual"}}
        assert (await control.write("POST", SETTINGS_PATH, part)).status_code == 502
        for path in (SETTINGS_PATH, CONTACTS_PATH, MODE_PATH):
            assert (await control.client.get(path)).status_code == 502
        await control.get(RELAY_PATH)
        control.clock.now += 60
        await control.get(SETTINGS_PATH)
        assert control.simulator.truth().equipment == before


REFUSED: list[tuple[str, str, str, Any, int]] = [
    ("split-phase", "PUT", TARIFF_PATH, {"tariff": {}}, 400),
    ("split-phase", "PUT", TARIFF_PATH, [], 400),
    ("split-phase", "POST", TARIFF_PATH, {}, 405),
    ("split-phase", "POST", RELAY_PATH, {"mains_admin_state": "off"}, 400),
    ("three-phase", "POST", RELAY_PATH, {"mains_admin_state": "open"}, 404),
    ("single-phase", "POST", RELAY_PATH, {"mains_admin_state": "open"}, 404),
    ("split-phase", "POST", CONTACTS_PATH, {"dry_contacts": {"id": "NC9", "status": "open"}}, 400),
    ("split-phase", "POST", CONTACTS_PATH, {"dry_contacts": {"id": "NC1", "status": True}}, 400),
    ("three-phase", "POST", CONTACTS_PATH, {"dry_contacts": {"id": "NC1", "status": "open"}}, 404),
    ("split-phase", "POST", MODE_PATH, {"gen_cmd": "run"}, 400),
    ("collar", "POST", MODE_PATH, {"gen_cmd": "on"}, 404),
    ("split-phase", "POST", CONFIG_PATH, {"charge_from_generator": True}, 400),
    ("split-phase", "POST", SCHEDULE_PATH, {"default_soc": {"start_soc": 60, "stop_soc": 30}, "schedule": {}}, 400),
    ("split-phase", "POST", SCHEDULE_PATH, {"default_soc": {"start_soc": 30, "stop_soc": 60}}, 400),
    ("ac-batteries", "PUT", SLEEP_PATH, {"acb_sleep": [{"serial_num": "121908002401", "sleep_min_soc": 25}]}, 400),
    ("ac-batteries", "DELETE", SLEEP_PATH, {"acb_sleep": [{"serial_num": "1"}]}, 400),
    ("split-phase", "PUT", SLEEP_PATH, {"acb_sleep": []}, 404),
    ("split-phase", "PUT", "/ivp/mod/603980032/mode/power", {"length": 1, "arr": [1]}, 404),
]


@pytest.mark.parametrize(("home", "method", "path", "document", "status"), REFUSED)
async def test_refused_bodies(home: str, method: str, path: str, document: Any, status: int) -> None:
    async with controlled(home=home) as control:
        before = control.simulator.truth().equipment
        assert (await control.write(method, path, document)).status_code == status
        control.clock.now += LONG_S
        assert control.simulator.truth().equipment == before
        assert len(control.simulator.writes()) == 1


@pytest.mark.parametrize(
    "settings",
    [{"mode": "party"}, {"reserved_soc": 101.0}, {"reserved_soc": "much"}, {"charge_from_grid": 1}, {"mode": None}],
)
async def test_bad_storage_settings_are_refused(settings: dict[str, Any]) -> None:
    async with controlled() as control:
        tariff = (await control.get(TARIFF_PATH))["tariff"]
        tariff["storage_settings"] |= settings
        assert (await control.write("PUT", TARIFF_PATH, {"tariff": tariff})).status_code == 400
        assert (await control.get(TARIFF_PATH))["tariff"]["storage_settings"]["mode"] == "self-consumption"


async def test_reading_and_the_live_stream_are_no_writes() -> None:
    async with controlled() as control:
        await control.get(TARIFF_PATH)
        await control.client.post("/ivp/livedata/stream", json={"enable": 1})
        assert control.simulator.writes() == []
        assert control.simulator.count() == 2
