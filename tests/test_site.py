"""The site's flows compared with the truth of a simulated home, by the table of docs/numbers.md."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from samples import restored

from bridge.endpoints import BY_SOURCE, ENDPOINTS
from bridge.model import Facts, MeterFacts, Reading
from bridge.pipeline import CountersState, repaired
from bridge.records import CONNECTIVITY, ENERGY, POWER, STORED, TEXT, measurement
from bridge.simulator import Simulator
from bridge.site import GuardedAnswer, Site, SiteState
from bridge.site.clamp import doubts

NOW = 1_790_000_000.0
MINUTE = 60.0
Shown = Mapping[str, object]


class Home:
    """A simulated home that is read as the bridge reads it, without a socket."""

    def __init__(self, name: str, *, start_hour: float, netted: bool = True) -> None:
        self.now = NOW
        self.simulator = Simulator(name, clock=lambda: self.now, start_hour=start_hour)
        self.site = Site(netted=netted)
        self.facts = Facts("")
        self.shown: dict[str, object] = {}
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.simulator),
            base_url="http://gateway",
            headers={"Authorization": f"Bearer {self.simulator.token()}"},
        )

    async def read(self, *sources: str) -> None:
        for source in sources:
            endpoint = BY_SOURCE[source]
            response = await self._client.get(endpoint.path)
            if response.status_code == 200:
                await self._take(source, response.content)
            elif source == "meters":
                self.facts = Facts(self.facts.serial, meters=())

    async def ask(self, source: str) -> tuple[Reading, ...]:
        """Return what an endpoint says now."""
        response = await self._client.get(BY_SOURCE[source].path)
        return tuple(BY_SOURCE[source].parse(response.content, self.facts, self.now).readings)

    async def _take(self, source: str, body: bytes) -> None:
        parsed = BY_SOURCE[source].parse(body, self.facts, self.now)
        self.facts = parsed.facts or self.facts
        if parsed.request:
            await self._client.post(parsed.request.path, content=parsed.request.body)
        answer = GuardedAnswer(source, repaired(source, parsed.readings), self.facts, self.now, parsed.fresh)
        for reading in self.site.update(answer):
            self.shown[f"{reading.device.removeprefix('site/')}/{reading.name}"] = reading.value

    async def live(self, hours: float, *sources: str) -> None:
        for _ in range(int(hours * 60)):
            self.now += MINUTE
            await self.read(*sources)

    def __getitem__(self, name: str) -> float:
        value = self.shown[name]
        assert isinstance(value, int | float)
        return float(value)


async def settled(name: str, *, start_hour: float = 0.0) -> Home:
    home = Home(name, start_hour=start_hour)
    await home.read(*(endpoint.source for endpoint in ENDPOINTS), "livedata", "readings")
    return home


@pytest.mark.parametrize("name", ["three-phase", "single-phase"])
async def test_powers_are_those_of_one_answer_and_add_up(name: str) -> None:
    home = await settled(name, start_hour=9.0)
    for _ in range(20):
        home.now += 7.0
        await home.read("readings")
        true = home.simulator.truth().site
        assert home["solar/power"] == pytest.approx(true.solar.power, abs=0.01)
        assert home["grid/power"] == pytest.approx(true.grid.power, abs=0.01)
        assert home["home/power"] == pytest.approx(true.home.power, abs=0.01)
        flows = [home[f"{flow}/power"] for flow in ("solar", "grid", "battery") if f"{flow}/power" in home.shown]
        assert sum(flows) == pytest.approx(home["home/power"], abs=1e-9)


async def test_a_battery_without_a_meter_is_seen_in_live_data() -> None:
    home = await settled("split-phase", start_hour=9.0)
    assert home.shown["battery/source"] == "live/storage"
    assert home.shown["battery/estimated"] is True
    home.now += 5
    await home.read("livedata")
    true = home.simulator.truth()
    assert home["battery/power"] == pytest.approx(true.site.battery.power, abs=0.01)
    assert home["home/power"] == pytest.approx(true.site.home.power, abs=0.01)
    assert home["battery/soc"] == pytest.approx(true.soc, abs=1)
    assert home["battery/capacity"] == sum(battery.capacity for battery in true.batteries)


@pytest.mark.parametrize("name", ["three-phase", "split-phase", "single-phase"])
async def test_energies_of_a_day(name: str) -> None:
    """Import and export are those of a netting utility meter. Integrated battery energy is right within 2 %."""
    home = await settled(name)
    before, shown = home.simulator.truth().site, dict(home.shown)
    await home.live(24, "livedata", "readings")
    after = home.simulator.truth().site

    def grown(topic: str) -> float:
        start = shown.get(topic, 0.0)
        assert isinstance(start, int | float)
        return home[topic] - start

    assert grown("solar/energy_lifetime") == pytest.approx(after.solar.delivered - before.solar.delivered, abs=0.01)
    # Within a minute a netting meter may count both ways; so the shorter the poll, the nearer.
    imported = after.grid.delivered - before.grid.delivered
    exported = after.grid.received - before.grid.received
    assert grown("grid/energy_imported") == pytest.approx(imported, rel=0.01)
    assert grown("grid/energy_exported") == pytest.approx(exported, rel=0.01)
    assert grown("grid/energy_imported") - grown("grid/energy_exported") == pytest.approx(
        imported - exported, abs=0.01
    )
    if name != "single-phase":
        given = after.battery.delivered - before.battery.delivered
        taken = after.battery.received - before.battery.received
        assert given > 1000
        assert taken > 1000
        assert grown("battery/energy_discharged") == pytest.approx(given, rel=0.02)
        assert grown("battery/energy_charged") == pytest.approx(taken, rel=0.02)
    assert grown("home/energy_lifetime") == pytest.approx(after.home.delivered - before.home.delivered, rel=0.01)


async def test_a_gateway_without_transformers_has_its_sun_from_the_inverters() -> None:
    """`/api/v1/production` gives old values there."""
    home = await settled("no-cts", start_hour=10.0)
    assert home.shown["solar/source"] == "energy/production-pcu"
    assert home["solar/power"] == pytest.approx(home.simulator.truth().site.solar.power, rel=0.2, abs=5)
    assert not any(name.startswith(("grid/", "home/", "battery/")) for name in home.shown)


async def test_an_old_gateway_has_its_sun() -> None:
    home = await settled("legacy", start_hour=10.0)
    assert home.shown["solar/source"] == "energy/production"


# By hand


def again_read(state: SiteState) -> SiteState:
    """The site's state as the next run reads it."""
    return restored(CountersState(site=state)).site


def meters(*roles: str, off: Sequence[str] = (), phases: int = 3) -> Facts:
    found = [MeterFacts(i, role, role not in off, phases, "three") for i, role in enumerate((*roles, *off), 1)]
    return Facts("7", meters=tuple(found))


def answer(facts: Facts, source: str, now: float = 0.0, *, fresh: Any = True, **values: float) -> GuardedAnswer:
    """Values by `kind__id__name`. `fresh` is `Any`, since to mypy a caller's `**values` may contain it."""
    quantity = {"power": POWER, "capacity": STORED, "energy": STORED}
    readings = []
    for key, value in values.items():
        kind, device, name = key.split("__")
        row = measurement(name, quantity.get(name, ENERGY))
        readings.append(Reading(f"{kind}/{device.replace('_', '-')}", None, row, value))
    return GuardedAnswer(source, readings, facts, NOW + now, fresh)


def powers(readings: Sequence[Reading]) -> dict[str, object]:
    return {r.device.removeprefix("site/"): r.value for r in readings if r.name == "power"}


def values(readings: Sequence[Reading]) -> dict[str, object]:
    return {f"{r.device.removeprefix('site/')}/{r.name}": r.value for r in readings}


def test_total_consumption_makes_the_grid() -> None:
    facts = meters("production", "total-consumption")
    shown = powers(
        Site().update(
            answer(facts, "readings", meter__production__power=3000, meter__total_consumption__power=1200)
        )
    )
    assert shown == {"solar": 3000, "grid": -1800, "home": 1200}


def test_a_storage_meter_is_the_battery() -> None:
    facts = meters("production", "net-consumption", "storage")
    given = answer(
        facts,
        "readings",
        meter__production__power=2000,
        meter__net_consumption__power=-500,
        meter__storage__power=-900,
    )
    assert powers(Site().update(given)) == {"solar": 2000, "grid": -500, "battery": -900, "home": 600}


def test_standby_at_night_is_consumption() -> None:
    facts = meters("production", "net-consumption")
    given = answer(facts, "readings", meter__production__power=-6, meter__net_consumption__power=206)
    assert powers(Site().update(given)) == {"solar": 0, "grid": 206, "home": 206}


@pytest.mark.parametrize(("drawn", "standby"), [(6.0, 6.0), (2_400.0, 100.0)])
def test_what_a_reversed_clamp_shows_is_no_standby(drawn: float, standby: float) -> None:
    """At a site with a meter of all consumption; inverters never draw kilowatts."""
    facts, site = meters("production", "total-consumption"), Site()
    counters = dict.fromkeys(("energy_delivered", "energy_received"), 1e6)
    shown: Shown = {}
    for hour in range(3):
        told = {f"meter__total_consumption__{name}": value for name, value in counters.items()}
        told |= {f"meter__production__{name}": value for name, value in counters.items()}
        told["meter__total_consumption__energy_delivered"] += 300 * hour
        told["meter__production__energy_received"] += drawn * hour
        powers_now = {"meter__production__power": -drawn, "meter__total_consumption__power": 300.0}
        shown = values(site.update(answer(facts, "readings", 3600.0 * hour, **told, **powers_now)))
    assert shown["home/power"] == 300 + standby
    assert shown["home/energy_lifetime"] == 2 * (300 + standby)
    assert shown["grid/energy_imported"] == 2 * (300 + standby)


@pytest.mark.parametrize("roles", [("production",), ("production", "load", "evse", "backfeed", "pv3p")])
def test_production_alone_is_the_sun_alone(roles: tuple[str, ...]) -> None:
    given = answer(meters(*roles), "readings", meter__production__power=700, meter__load__power=9)
    assert powers(Site().update(given)) == {"solar": 700}


def test_the_net_alone_is_the_grid_and_an_old_sun() -> None:
    facts, site = meters("net-consumption"), Site()
    site.update(
        answer(facts, "energy", energy__production_pcu__power=800, energy__production_pcu__energy_lifetime=5)
    )
    shown = values(site.update(answer(facts, "readings", meter__net_consumption__power=-300)))
    assert shown["grid/power"] == -300
    assert shown["solar/energy_lifetime"] == 5
    assert "home/power" not in shown


def test_disabled_meters_are_no_meters() -> None:
    facts = meters(off=("production", "net-consumption"))
    site = Site()
    assert powers(site.update(answer(facts, "readings", meter__production__power=700))) == {"solar": None}
    assert powers(site.update(answer(facts, "energy", energy__production_pcu__power=650))) == {"solar": 650}


def counted(now: float, source: str, device: str, **given: float) -> GuardedAnswer:
    return answer(meters(), source, now, **{f"energy__{device}__{name}": value for name, value in given.items()})


def production(now: float, lifetime: float, week: float, power: float) -> GuardedAnswer:
    return counted(now, "production", "production", energy_lifetime=lifetime, energy_7d=week, power=power)


def inverters(now: float, lifetime: float, week: float, power: float) -> GuardedAnswer:
    return counted(now, "energy", "production_pcu", energy_lifetime=lifetime, energy_7d=week, power=power)


def test_a_production_that_counts_nothing_any_more_gives_way_to_the_inverters() -> None:
    """Firmware 8.3.5422 without meters: after the update all values are 0, except the lifetime, which is held."""
    site = Site()
    site.update(production(0, 5000, 70, 440))
    shown = values(site.update(inverters(1, 5010, 80, 450)))
    assert shown["solar/source"] == "energy/production"

    for minute in range(1, 15):
        site.update(production(60 * minute, 5000, 0, 0))
        shown = values(site.update(inverters(60 * minute + 1, 5010 + minute, 80, 460)))
        assert shown["solar/source"] == "energy/production"
    site.update(production(900, 5000, 0, 0))
    shown = values(site.update(inverters(901, 5025, 80, 460)))
    assert (shown["solar/source"], shown["solar/power"]) == ("energy/production-pcu", 460)
    assert shown["solar/energy_lifetime"] == 5015  # what the inverters have made since the last good value
    shown = values(site.update(inverters(961, 5032, 80, 470)))
    assert (shown["solar/power"], shown["solar/energy_lifetime"]) == (470, 5022)


def test_one_answer_of_zeros_changes_no_source() -> None:
    site = Site()
    site.update(production(0, 5000, 70, 440))
    site.update(inverters(1, 5010, 80, 450))
    site.update(production(60, 5000, 0, 0))
    site.update(inverters(61, 5020, 90, 460))
    shown = values(site.update(production(120, 5015, 85, 445)))
    assert (shown["solar/source"], shown["solar/energy_lifetime"]) == ("energy/production", 5015)


def test_a_week_without_sun_is_no_reason_to_doubt_the_production() -> None:
    site = Site()
    site.update(production(0, 5000, 0, 0))
    assert values(site.update(inverters(1, 5010, 0, 0)))["solar/source"] == "energy/production"


def test_nothing_before_the_meters_are_known() -> None:
    assert Site().update(answer(Facts("7"), "readings", meter__production__power=700)) == []


def test_netting_counts_the_net_of_each_poll() -> None:
    facts, site = meters("production", "net-consumption"), Site()
    shown: dict[str, object] = {}
    steps = [(100, 50), (130, 50), (130, 70), (140, 90)]
    for now, (taken, given) in enumerate(steps):
        reading = answer(
            facts,
            "readings",
            now * 10.0,
            meter__net_consumption__energy_delivered=taken,
            meter__net_consumption__energy_received=given,
            meter__production__energy_delivered=1000 + now * 40,
        )
        shown = values(site.update(reading))
    assert (shown["grid/energy_imported"], shown["grid/energy_exported"]) == (30, 30)
    assert shown["home/energy_lifetime"] == 120  # 3 x 40 of sun, 30 in, 30 out
    assert shown["grid/energy_since"] == datetime.fromtimestamp(NOW, UTC)


def test_per_phase_counters_are_the_meters_own() -> None:
    facts, site = meters("production", "net-consumption"), Site(netted=False)
    reading = answer(
        facts,
        "readings",
        meter__net_consumption__energy_delivered=4000,
        meter__net_consumption__energy_received=1500,
    )
    shown = values(site.update(reading))
    assert (shown["grid/energy_imported"], shown["grid/energy_exported"]) == (4000, 1500)
    assert "grid/energy_since" not in shown


def test_a_meter_of_one_phase_counts_as_the_utility_does() -> None:
    """Its own counters count what flowed each way between two polls, too."""
    facts, site = meters("production", "net-consumption", phases=1), Site()
    shown: dict[str, object] = {}
    for now, (taken, given) in enumerate([(100, 50), (130, 70), (150, 95)]):
        shown = values(
            site.update(
                metered(facts, 60.0 * now, net_consumption__delivered=taken, net_consumption__received=given)
            )
        )
    assert (shown["grid/energy_imported"], shown["grid/energy_exported"]) == (150, 95)


def test_an_impossible_home_is_held_and_then_unknown() -> None:
    """A storage transformer that repeats the grid's leg made a home power of -736 W."""
    facts, site = meters("production", "net-consumption", "storage"), Site()

    def read(storage: float) -> dict[str, object]:
        return powers(
            site.update(
                answer(
                    facts,
                    "readings",
                    meter__production__power=0,
                    meter__net_consumption__power=100,
                    meter__storage__power=storage,
                )
            )
        )

    good = {"solar": 0, "grid": 100, "battery": 50, "home": 150}
    assert read(50) == good
    assert read(-836) == good
    assert read(-836) == good
    assert read(-836) == {"solar": 0, "grid": 100, "battery": None, "home": None}
    assert read(60) == {"solar": 0, "grid": 100, "battery": 60, "home": 160}


def test_a_gateway_of_a_shared_home_keeps_its_battery_where_its_own_home_would_be_negative() -> None:
    """Another gateway makes 4,000 W behind the same grid meter: the sun and the battery of this one are right."""
    facts, site = meters("production", "net-consumption", "storage"), Site(in_home=True)
    for minute in range(30):
        shown = powers(
            site.update(
                answer(
                    facts,
                    "readings",
                    60.0 * minute,
                    meter__production__power=1000,
                    meter__net_consumption__power=-3250,
                    meter__storage__power=-500,
                )
            )
        )
        assert shown == {"solar": 1000, "grid": -3250, "battery": -500, "home": None}
    assert site.problem(NOW + 1800) is None


@pytest.mark.parametrize("in_home", [False, True])
def test_a_negative_energy_of_its_own_home_is_no_news_of_a_gateway_of_a_shared_home(in_home: bool) -> None:
    facts, site = meters("production", "net-consumption"), Site(in_home=in_home)
    for given in (0, 5000):
        site.update(metered(facts, given, production__delivered=0, net_consumption__delivered=0))
        energies = {
            "production__delivered": 100,
            "net_consumption__delivered": 0,
            "net_consumption__received": given,
        }
        site.update(metered(facts, given + 5, **energies))
    assert [event.name for event in site.take_events()] == ([] if in_home else ["home_negative"])


@pytest.mark.parametrize(
    ("solar", "home", "possible"), [(0, -51, True), (0, -52, False), (10_000, -255, True), (10_000, -256, False)]
)
def test_a_home_below_zero_is_possible_within_what_meters_err(solar: float, home: float, possible: bool) -> None:
    """The tolerance is 50 W and 2 % of the largest flow, which is the battery's here."""
    facts = meters("production", "net-consumption", "storage")
    flows = {"meter__production__power": solar, "meter__storage__power": home - solar}
    shown = powers(Site().update(answer(facts, "readings", meter__net_consumption__power=0, **flows)))
    assert shown["home"] == (home if possible else None)


def live(now: float, storage: float, *, fresh: bool = True, held: float = 4000) -> GuardedAnswer:
    facts = meters("production", "net-consumption")
    return answer(
        facts,
        "livedata",
        now,
        fresh=fresh,
        live__pv__power=1000 + now / 1000,
        live__grid__power=20,
        live__storage__power=storage,
        live__load__power=1020 + storage,
        live__storage__encharge_energy=held,
    )


def test_live_data_that_stand_still_leave_the_battery_unknown() -> None:
    facts, site = meters("production", "net-consumption"), Site()
    metered = {"meter__production__power": 990.0, "meter__net_consumption__power": 30.0}
    shown = powers(site.update(live(0, 300)))
    assert shown == {"solar": 1000, "grid": 20, "battery": 300, "home": 1320}
    site.update(live(10, 300, fresh=False))
    assert powers(site.update(answer(facts, "readings", 20, **metered)))["battery"] == 300
    shown = powers(site.update(answer(facts, "readings", 40, **metered)))
    assert shown == {"solar": 990, "grid": 30, "battery": None, "home": None}
    assert powers(site.update(live(50, 310)))["battery"] == 310


def test_a_gap_is_bridged_by_what_the_battery_holds() -> None:
    site = Site()
    site.update(live(0, 360))
    shown = values(site.update(live(10, 360)))
    assert shown["battery/energy_discharged"] == pytest.approx(1)
    shown = values(site.update(live(3610, 360, held=3500)))
    assert shown["battery/energy_discharged"] == pytest.approx(501)
    assert shown["battery/energy_charged"] == 0


def test_our_counters_survive_a_restart_and_catch_up() -> None:
    facts = meters("production", "net-consumption")

    def read(site: Site, now: float, taken: float) -> dict[str, object]:
        return values(
            site.update(
                answer(
                    facts,
                    "readings",
                    now,
                    meter__net_consumption__energy_delivered=taken,
                    meter__net_consumption__energy_received=0,
                )
            )
        )

    site = Site()
    read(site, 0, 100)
    assert read(site, 10, 110)["grid/energy_imported"] == 10
    again = Site(state=again_read(site.state))
    assert read(again, 5000, 150)["grid/energy_imported"] == 50
    assert read(again, 5010, 151)["grid/energy_imported"] == 51
    damaged = SiteState.model_validate({"energies": {"tallies": [1]}, "days": 3})
    assert read(Site(state=damaged), 0, 7)["grid/energy_imported"] == 0


def test_subscribers_know_more_than_an_old_state() -> None:
    """The bridge is killed after the last save: no counter falls, and nothing is counted twice."""
    facts = meters("net-consumption")

    def read(site: Site, taken: float) -> object:
        given = {"meter__net_consumption__energy_delivered": taken, "meter__net_consumption__energy_received": 0.0}
        return values(site.update(answer(facts, "readings", **given)))["grid/energy_imported"]

    site = Site()
    read(site, 100)
    state = again_read(site.state)
    assert read(site, 140) == 40
    again = Site(state=state)
    again.seed({"site/grid/energy_imported": 40, "meter/net-consumption/energy_delivered": 140})
    assert read(again, 150) == 50


MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
"""The beginning of a day of the tests."""


def today(site: Site, hours: float, lifetime: float) -> object:
    """The energy of today after a reading so many hours after midnight."""
    reading = metered(meters("production"), MIDNIGHT - NOW + 3600 * hours, production__delivered=lifetime)
    return values(site.update(reading))["solar/energy_today"]


def test_today_begins_at_midnight() -> None:
    site = Site(zone=UTC)
    assert today(site, -1, 900) is None  # nobody knows what it was at the midnight before
    assert today(site, -0.001, 1000) is None
    assert today(site, 0, 1000) == 0
    assert today(site, 12, 1400) == 400
    assert today(site, 23.999, 1500) == 500
    assert today(site, 24, 1500) == 0
    assert today(site, 36, 1900) == 400


def test_the_first_day_begins_with_what_the_gateway_has_counted_of_it() -> None:
    site, facts = Site(zone=UTC), meters("production")
    told = {"energy_lifetime": 9_400.0, "energy_today": 3_400.0}
    named = {f"energy__production_eim__{name}": value for name, value in told.items()}
    noon = MIDNIGHT - NOW + 12 * 3600
    site.update(answer(facts, "energy", noon, **named))
    shown = values(site.update(metered(facts, noon + 5, production__delivered=9_405)))
    assert shown["solar/energy_today"] == 3_405
    assert today(site, 13, 9_500) == 3_500
    assert today(site, 24, 9_500) == 0


def test_a_count_of_today_that_can_not_be_true_is_none() -> None:
    site, facts = Site(zone=UTC), meters("production")
    noon = MIDNIGHT - NOW + 12 * 3600
    for told in (9_400_000.0, -5.0):
        named = {"energy__production_eim__energy_lifetime": 9e6, "energy__production_eim__energy_today": told}
        site.update(answer(facts, "energy", noon, **named))
        shown = values(site.update(metered(facts, noon + 5, production__delivered=9e6)))
        assert shown["solar/energy_today"] is None


def test_another_source_goes_on_where_the_old_one_ended() -> None:
    site = Site()

    def lifetime(given: GuardedAnswer) -> object:
        return values(site.update(given))["solar/energy_lifetime"]

    assert lifetime(answer(meters(), "production", energy__production__energy_lifetime=5000)) == 5000
    facts = meters("production")
    assert lifetime(answer(facts, "readings", meter__production__energy_delivered=300)) == 5000
    assert lifetime(answer(facts, "readings", meter__production__energy_delivered=310)) == 5010


# Batteries and relays, by what storage gear says of itself

BATTERIES = ("battery/1", "battery/2")
CTS = Facts(
    "1", meters=(MeterFacts(1, "production", True, 1, "three"), MeterFacts(2, "net-consumption", True, 1, "three"))
)
WITH_BATTERIES = Facts("1", meters=CTS.meters, gear=frozenset(BATTERIES))
FLAG_ROW = measurement("grid_connected", CONNECTIVITY)
METERED = {"meter/production/power": 3000.0, "meter/net-consumption/power": -400.0}


def reading_of(topic: str, value: float | bool) -> Reading:
    device, _, name = topic.rpartition("/")
    return Reading(device, None, FLAG_ROW if isinstance(value, bool) else measurement(name, POWER), value)


class Told:
    """A site that gets values by topic, as from their sources."""

    def __init__(self, facts: Facts = WITH_BATTERIES) -> None:
        self.site, self.facts, self.now = Site(), facts, NOW
        self.shown: dict[str, object] = {}

    def tell(self, source: str, given: Mapping[str, float | bool], *, fresh: bool = True) -> None:
        readings = [reading_of(topic, value) for topic, value in given.items()]
        answer = GuardedAnswer(source, readings, self.facts, self.now, fresh)
        for reading in self.site.update(answer):
            self.shown[f"{reading.device.removeprefix('site/')}/{reading.name}"] = reading.value

    def powers(self, *watts: float) -> None:
        self.tell("power", {f"{name}/power": value for name, value in zip(BATTERIES, watts, strict=True)})


def test_batteries_that_nobody_measures_tell_their_power_themselves() -> None:
    told = Told()
    told.tell("readings", METERED)
    assert (told.shown["battery/power"], told.shown["battery/source"]) == (None, None)
    told.powers(-700.5, -600.25)
    assert (told.shown["battery/power"], told.shown["battery/source"]) == (-1300.75, "battery")
    assert told.shown["battery/estimated"] is True
    assert (told.shown["solar/power"], told.shown["grid/power"]) == (3000.0, -400.0)
    assert told.shown["home/power"] is None


def test_their_power_counts_for_three_minutes() -> None:
    told = Told()
    told.powers(100.0, 200.0)
    told.now += 180
    told.tell("readings", METERED)
    assert told.shown["battery/power"] == 300.0
    told.now += 1
    told.tell("readings", METERED)
    assert told.shown["battery/power"] is None


def test_their_energy_is_added_up() -> None:
    """Answers come every half minute: a quarter of an hour with 1200 W is 300 Wh."""
    told = Told()
    told.tell("readings", METERED)
    for _ in range(31):
        told.powers(700.0, 500.0)
        told.now += 30
    assert told.shown["battery/energy_discharged"] == pytest.approx(300.0)
    assert told.shown["battery/energy_charged"] == 0
    for _ in range(31):
        told.powers(-1000.0, -200.0)
        told.now += 30
    assert told.shown["battery/energy_charged"] == pytest.approx(300.0, abs=5)


def test_a_meter_and_live_data_come_first() -> None:
    metered = Told(
        Facts(
            "1", meters=(*(CTS.meters or ()), MeterFacts(3, "storage", True, 1, "three")), gear=WITH_BATTERIES.gear
        )
    )
    metered.tell("readings", {**METERED, "meter/storage/power": 55.0})
    metered.powers(1.0, 2.0)
    assert (metered.shown["battery/power"], metered.shown["battery/source"]) == (55.0, "meter/storage")

    live = Told()
    flows = {
        "live/pv/power": 3000.0,
        "live/grid/power": -400.0,
        "live/storage/power": 66.0,
        "live/load/power": 2666.0,
    }
    live.tell("livedata", flows)
    live.powers(1.0, 2.0)
    assert (live.shown["battery/power"], live.shown["battery/source"]) == (66.0, "live/storage")
    live.now += 31
    live.tell("readings", METERED)
    assert (live.shown["battery/power"], live.shown["battery/source"], live.shown["home/power"]) == (
        3.0,
        "battery",
        None,
    )
    live.tell("livedata", {**flows, "live/grid/power": -390.0})
    assert (live.shown["battery/power"], live.shown["battery/source"]) == (66.0, "live/storage")


TOTALS = {"encharge_soc": 40.0, "encharge_energy": 4000.0, "acb_soc": 0.0, "acb_energy": 0.0, "capacity": 10_000.0}


def under(device: str, given: Mapping[str, float]) -> dict[str, float]:
    return {f"{device}/{name}": value for name, value in given.items()}


def test_charge_and_energy_come_from_live_data_while_they_are_fresh() -> None:
    told = Told()
    told.tell("secctrl", under("storage/totals", TOTALS))
    assert [told.shown[f"battery/{name}"] for name in ("soc", "energy_stored", "capacity")] == [
        40.0,
        4000.0,
        10_000.0,
    ]
    told.tell("livedata", {"live/storage/encharge_soc": 41.0, "live/storage/encharge_energy": 4100.0})
    assert [told.shown[f"battery/{name}"] for name in ("soc", "energy_stored")] == [41.0, 4100.0]
    told.now += 31
    told.tell("livedata", {"live/storage/encharge_soc": 41.0, "live/storage/encharge_energy": 4100.0}, fresh=False)
    assert [told.shown[f"battery/{name}"] for name in ("soc", "energy_stored")] == [40.0, 4000.0]


def test_each_batterys_charge_where_nobody_adds_them_up() -> None:
    told = Told()
    told.tell("power", {"battery/1/soc": 80.0, "battery/2/soc": 20.0})
    assert told.shown["battery/soc"] == 50.0
    assert "battery/energy_stored" not in told.shown
    told.tell("inventory", {"battery/1/capacity": 5000.0, "battery/2/capacity": 2500.0})
    assert [told.shown[f"battery/{name}"] for name in ("soc", "energy_stored", "capacity")] == [60.0, 4500, 7500.0]


def test_ac_batteries() -> None:
    """Answers of two real gateways: on one, the highest energy is less than the stored energy."""
    told = Told(Facts("1", meters=CTS.meters, gear=frozenset({"acb/1"})))
    nothing = dict.fromkeys(("encharge_soc", "encharge_energy", "capacity", "soc"), 0.0)
    told.tell(
        "secctrl", under("storage/totals", {**nothing, "acb_soc": 18.0, "acb_energy": 446.0, "max_energy": 412.0})
    )
    assert [told.shown[f"battery/{name}"] for name in ("soc", "energy_stored")] == [18.0, 446.0]
    assert told.shown["battery/capacity"] == 2478  # 446 Wh are 18 %
    told.tell(
        "secctrl", under("storage/totals", {**nothing, "acb_soc": 1.0, "acb_energy": 24.0, "max_energy": 2480.0})
    )
    assert [told.shown[f"battery/{name}"] for name in ("soc", "energy_stored", "capacity")] == [1.0, 24.0, 2480.0]


IQ_CAPACITY = {"battery/1/capacity": 5000.0, "battery/2/capacity": 5000.0}


@pytest.mark.parametrize(
    ("source", "capacity"), [("inventory", IQ_CAPACITY), ("secctrl", {"storage/totals/capacity": 10_000.0})]
)
@pytest.mark.parametrize(
    ("iq_soc", "acb_soc", "expected"),
    [
        (30.0, 50.0, 32.1),
        (3.0, 50.0, 8.0),
        (1.0, 50.0, 6.2),
        (0.0, 50.0, 5.4),
        (100.0, 10.0, 90.4),
        (0.0, 0.0, 0.0),
    ],
)
def test_both_kinds_of_battery_are_weighted_by_capacity(
    source: str, capacity: Mapping[str, float], iq_soc: float, acb_soc: float, expected: float
) -> None:
    """10 kWh of IQ Batteries and 1.2 kWh of AC Batteries, also when the larger ones are empty."""
    told = Told(Facts("1", meters=CTS.meters, gear=frozenset({"acb/1", "battery/1", "battery/2"})))
    told.tell(source, capacity)
    charges = {"encharge_soc": iq_soc, "acb_soc": acb_soc}
    energies = {"encharge_energy": 100 * iq_soc, "acb_energy": 12 * acb_soc}
    told.tell("livedata", under("live/storage", charges | energies))
    assert told.shown["battery/soc"] == expected
    assert told.shown["battery/energy_stored"] == sum(energies.values())


def test_where_no_capacity_is_told_it_follows_from_charge_and_energy() -> None:
    """3 kWh are 30 % of the IQ Batteries, and 600 Wh are 50 % of the AC Batteries."""
    told = Told(Facts("1", meters=CTS.meters, gear=frozenset({"acb/1"})))
    totals = {"encharge_soc": 30.0, "encharge_energy": 3000.0, "acb_soc": 50.0, "acb_energy": 600.0}
    told.tell("secctrl", under("storage/totals", totals))
    assert [told.shown[f"battery/{name}"] for name in ("soc", "energy_stored", "capacity")] == [32.1, 3600, 11_200]


def test_the_relay_tells_best_whether_the_grid_is_connected() -> None:
    told = Told(CTS)
    told.tell("inventory", {"collar/1/grid_connected": True})
    assert told.shown["grid/connected"] is True
    told.tell("livedata", {"live/system/main_relay": 2.0})
    assert told.shown["grid/connected"] is False
    told.tell("relay", {"relay/mains/grid_connected": True})
    assert told.shown["grid/connected"] is True
    told.now += 181
    told.tell("livedata", {"live/system/main_relay": 2.0})
    assert told.shown["grid/connected"] is False
    told.shown.clear()
    told.now += 181
    told.tell("livedata", {"live/system/main_relay": 7.0})
    assert told.shown["grid/connected"] is True
    told.shown.clear()
    told.now += 3600
    told.tell("livedata", {"live/system/main_relay": 7.0})
    assert "grid/connected" not in told.shown


def test_two_relays_must_both_be_closed() -> None:
    told = Told(CTS)
    told.tell("inventory", {"controller/1/grid_connected": True, "collar/2/grid_connected": False})
    assert told.shown["grid/connected"] is False


def test_a_relay_tells_it_also_where_no_meter_measures_the_grid() -> None:
    told = Told(Facts("1", meters=()))
    told.tell("livedata", {"live/system/main_relay": 1.0})
    assert told.shown.keys() == {"solar/power", "solar/source", "solar/estimated"}
    told.tell("relay", {"relay/mains/grid_connected": False})
    assert {name: value for name, value in told.shown.items() if name.startswith("grid/")} == {
        "grid/connected": False
    }


async def test_a_home_with_a_collar_and_one_with_ac_batteries() -> None:
    collar, ac = await settled("collar", start_hour=9.0), await settled("ac-batteries", start_hour=9.0)
    for home, capacity in (collar, 10_010), (ac, 2410):
        true = home.simulator.truth()
        assert home.shown["battery/source"] == "live/storage"
        assert home["battery/soc"] == pytest.approx(true.soc, abs=1)
        assert home["battery/energy_stored"] == pytest.approx(
            sum(battery.stored for battery in true.batteries), abs=5
        )
        assert home["battery/capacity"] == capacity
        assert home.shown["grid/connected"] is True


# What takes another's place goes on from there, and what began again is no flow


def metered(facts: Facts, now: float, **energies: float) -> GuardedAnswer:
    """An answer of the meters with energies by `role__name` (`delivered`, `received`)."""
    given: dict[str, Any] = {f"meter__{key.replace('__', '__energy_')}": value for key, value in energies.items()}
    return answer(facts, "readings", now, **given)


def test_a_counter_that_began_again_is_neither_import_nor_export() -> None:
    facts, site = meters("production", "net-consumption"), Site()
    site.update(metered(facts, 0, net_consumption__delivered=9500, net_consumption__received=100))
    shown = values(site.update(metered(facts, 10, net_consumption__delivered=2, net_consumption__received=101)))
    assert (shown["grid/energy_imported"], shown["grid/energy_exported"]) == (1, 0)


def test_another_netting_goes_on_from_what_was_published() -> None:
    """The meter is the same, so nothing is lost of the time in which the setting was changed."""
    facts = meters("production", "net-consumption")

    def read(site: Site, now: float, taken: float) -> object:
        given = metered(facts, now, net_consumption__delivered=taken, net_consumption__received=0)
        return values(site.update(given))["grid/energy_imported"]

    site = Site()
    assert read(site, 0, 4_000_000) == 0
    assert read(site, 10, 4_000_020) == 20
    site = Site(netted=False, state=again_read(site.state))
    assert read(site, 20, 4_000_050) == 50
    assert read(site, 30, 4_000_060) == 60
    site = Site(state=again_read(site.state))
    assert read(site, 40, 4_000_065) == 65
    assert read(site, 50, 4_000_070) == 70


def test_a_storage_meter_that_is_built_in_goes_on_from_the_integrated_energy() -> None:
    site = Site()
    site.update(live(0, 3600))
    assert values(site.update(live(10, 3600)))["battery/energy_discharged"] == 10
    facts = meters("production", "net-consumption", "storage")
    shown = values(site.update(metered(facts, 20, storage__delivered=8_000_000, storage__received=9_000_000)))
    assert (shown["battery/energy_discharged"], shown["battery/energy_charged"]) == (10, 0)
    shown = values(site.update(metered(facts, 30, storage__delivered=8_000_004, storage__received=9_000_000)))
    assert shown["battery/energy_discharged"] == 14


def test_a_step_between_sources_outlives_a_lost_state() -> None:
    """Our own retained topics show how far our counter is from the gateway's."""
    site = Site()
    site.seed({"site/solar/energy_lifetime": 5020, "meter/production/energy_delivered": 320})
    shown = values(site.update(metered(meters("production"), 0, production__delivered=330)))
    assert shown["solar/energy_lifetime"] == 5030
    site = Site()
    site.seed({"site/solar/energy_lifetime": 5020})
    shown = values(site.update(metered(meters("production"), 0, production__delivered=330)))
    assert shown["solar/energy_lifetime"] == 5020


def test_a_counter_that_begins_again_behind_a_step_does_not_fall_to_the_step() -> None:
    """Home Assistant would count the rest, which is the step, as the energy of this hour."""
    site = Site()
    site.update(answer(meters(), "production", energy__production__energy_lifetime=5000))
    facts = meters("production")
    site.update(metered(facts, 0, production__delivered=3000))
    assert values(site.update(metered(facts, 10, production__delivered=3400)))["solar/energy_lifetime"] == 5400
    assert values(site.update(metered(facts, 20, production__delivered=3)))["solar/energy_lifetime"] == 5403
    assert values(site.update(metered(facts, 30, production__delivered=5)))["solar/energy_lifetime"] == 5405


def test_battery_energy_that_subscribers_have_already_is_not_counted_twice() -> None:
    """The bridge is killed after the last save: the batteries' content gives the whole gap, part of which was
    published.
    """
    site = Site()
    site.update(live(0, 3600, held=4000))
    site.update(live(10, 3600, held=3990))
    state = again_read(site.state)
    again = Site(state=state)
    again.seed({"site/battery/energy_discharged": 110, "site/battery/energy_charged": 0})
    shown = values(again.update(live(200, 3600, held=3800)))
    assert shown["battery/energy_discharged"] == 200
    assert shown["battery/energy_charged"] == 0


# Every kind of site


@pytest.mark.parametrize(
    ("roles", "counted"),
    [
        (("production", "net-consumption"), {"imported": 20, "exported": 0, "home": 60}),
        (("net-consumption",), {"imported": 20, "exported": 0}),
        (("production",), {}),
        (("total-consumption",), {"home": 90}),
        (("production", "total-consumption"), {"imported": 50, "exported": 0, "home": 90}),
    ],
)
@pytest.mark.parametrize("netted", [True, False])
def test_only_what_the_meters_tell_is_counted(
    roles: tuple[str, ...], counted: Mapping[str, int], *, netted: bool
) -> None:
    """Without a production meter there is no balance, and netted phases need a net meter."""
    facts, site = meters(*roles), Site(netted=netted)
    given = {"production": (1000, 0), "net-consumption": (500, 0), "total-consumption": (700, 0)}
    grown = {"production": (1040, 0), "net-consumption": (520, 0), "total-consumption": (790, 0)}
    shown: dict[str, object] = {}
    for now, energies in enumerate((given, grown)):
        named = {
            f"{role.replace('-', '_')}__{name}": float(value)
            for role in roles
            for name, value in zip(("delivered", "received"), energies[role], strict=True)
        }
        shown = values(site.update(metered(facts, now, **named)))
    found = {
        "imported": shown.get("grid/energy_imported"),
        "exported": shown.get("grid/energy_exported"),
        "home": shown.get("home/energy_lifetime"),
    }
    if not netted and "net-consumption" in roles:
        counted = {**counted, "imported": 520}
    assert {name: value for name, value in found.items() if value is not None} == counted


@pytest.mark.parametrize("roles", [("production",), ("net-consumption",), ("total-consumption",)])
def test_with_a_battery_and_one_meter_nothing_is_guessed(roles: tuple[str, ...]) -> None:
    """All powers are live, but one meter's energy makes no balance."""
    facts, site = meters(*roles), Site()
    role = roles[0].replace("-", "_")
    site.update(replace(live(0, 300), facts=facts))
    site.update(metered(facts, 1, **{f"{role}__delivered": 100.0, f"{role}__received": 0.0}))
    shown = values(site.update(metered(facts, 2, **{f"{role}__delivered": 130.0, f"{role}__received": 0.0})))
    known = {
        name for name in ("grid/energy_imported", "grid/energy_exported", "home/energy_lifetime") if name in shown
    }
    assert (
        known
        == {
            "production": set(),
            "net-consumption": {"grid/energy_imported", "grid/energy_exported"},
            "total-consumption": {"home/energy_lifetime"},
        }[roles[0]]
    )


def test_the_net_alone_shows_the_last_sun_of_the_inverters() -> None:
    facts, site = meters("net-consumption"), Site()
    site.update(answer(facts, "energy", energy__production_pcu__power=800))
    shown = powers(site.update(answer(facts, "readings", meter__net_consumption__power=-300)))
    assert shown == {"solar": 800, "grid": -300}


THIRD = ("production", "net-consumption", "pv3p")


def test_other_makers_panels_are_counted_where_the_owner_says_so() -> None:
    facts = meters(*THIRD)
    given = {
        "meter__production__power": 2000.0,
        "meter__pv3p__power": 700.0,
        "meter__net_consumption__power": -1500.0,
    }
    assert powers(Site().update(answer(facts, "readings", **given))) == {"solar": 2000, "grid": -1500, "home": 500}
    shown = Site(third_party=True).update(answer(facts, "readings", **given))
    assert powers(shown) == {"solar": 2700, "grid": -1500, "home": 1200}
    assert values(shown)["solar/source"] == "meter/production, meter/pv3p"
    del given["meter__pv3p__power"]
    shown = Site(third_party=True).update(answer(facts, "readings", **given))
    assert powers(shown) == {"solar": None, "grid": -1500, "home": None}


def test_the_energy_of_other_makers_panels_is_counted_from_then_on() -> None:
    facts = meters(*THIRD)

    def read(site: Site, now: float, own: float, others: float) -> tuple[object, object]:
        given = {"net_consumption__delivered": 0.0, "net_consumption__received": 0.0}
        reading = metered(facts, now, production__delivered=own, pv3p__delivered=others, **given)
        shown = values(site.update(reading))
        return shown["solar/energy_lifetime"], shown["home/energy_lifetime"]

    site = Site()
    assert read(site, 0, 1000, 300_000) == (1000, 0)
    assert read(site, 1, 1010, 300_005) == (1010, 10)
    site = Site(third_party=True, state=again_read(site.state))
    assert read(site, 2, 1020, 300_009) == (1010, 10)  # the home is made of other parts from here on
    assert read(site, 3, 1030, 300_010) == (1021, 21)


def test_other_makers_panels_without_a_meter_change_nothing() -> None:
    """Firmware 8.3.5167 with panels of another maker, whose energy is in no meter of its own."""
    facts = meters("production", "net-consumption")
    given = {"meter__production__power": 5235.674, "meter__net_consumption__power": -4912.241}
    shown = powers(Site(third_party=True).update(answer(facts, "readings", **given)))
    assert shown == {"solar": 5235.674, "grid": -4912.241, "home": 323.433}


def on_generator(now: float, *, relay: float = 2, power: float = 195.6) -> GuardedAnswer:
    """Firmware 8.2.127 with a generator that runs while the mains are open."""
    return answer(
        meters("production", "net-consumption"),
        "livedata",
        now,
        live__system__main_relay=relay,
        live__generator__power=power,
        live__pv__power=2336.1 + now,
        live__grid__power=power or 40,
        live__storage__power=-800,
    )


def generator_readings(now: float, taken: float) -> GuardedAnswer:
    return answer(
        meters("production", "net-consumption"),
        "readings",
        now,
        meter__production__power=2336.093,
        meter__production__energy_delivered=15_097_304.67,
        meter__net_consumption__power=195.575,
        meter__net_consumption__energy_delivered=taken,
        meter__net_consumption__energy_received=6_336_017.38,
    )


def test_the_net_meter_reads_the_generator_while_the_grid_is_open() -> None:
    site = Site()
    site.update(generator_readings(0, 13_632_000))
    site.update(on_generator(1))
    shown = site.update(generator_readings(2, 13_632_727.119))
    assert powers(shown) == {"solar": 2336.093, "grid": 0, "generator": 195.575, "home": 2531.668}
    assert values(shown)["generator/energy_lifetime"] == pytest.approx(727.119)
    assert values(shown)["grid/energy_imported"] == 0
    assert values(shown)["home/energy_lifetime"] == pytest.approx(727.119)
    site.update(on_generator(3, relay=1, power=0))
    shown = site.update(generator_readings(4, 13_632_737.119))
    assert powers(shown) == {"solar": 2336.093, "grid": 195.575, "generator": 0, "home": 2531.668}
    assert values(shown)["grid/energy_imported"] == pytest.approx(10)
    assert values(shown)["generator/energy_lifetime"] == pytest.approx(727.119)


def test_per_phase_counters_leave_the_generator_out() -> None:
    site = Site(netted=False)
    assert values(site.update(generator_readings(0, 13_632_000)))["grid/energy_imported"] == 13_632_000
    site.update(on_generator(1))
    shown = values(site.update(generator_readings(2, 13_632_500)))
    assert (shown["grid/energy_imported"], shown["generator/energy_lifetime"]) == (13_632_000, 500)
    site.update(on_generator(3, relay=1, power=0))
    assert values(site.update(generator_readings(4, 13_632_510)))["grid/energy_imported"] == 13_632_010


def test_a_generator_beside_a_battery_is_not_counted_twice() -> None:
    site = Site()
    site.update(live(0, 300))
    shown = powers(site.update(on_generator(10)))
    assert shown == {"solar": 2346.1, "grid": 0, "generator": 195.6, "battery": -800, "home": 1741.7}


def test_an_old_state_of_the_relay_is_not_believed() -> None:
    site = Site()
    site.update(on_generator(0))
    site.update(generator_readings(10, 100))
    assert powers(site.update(generator_readings(400, 150)))["grid"] == 195.575


# The choice of sources is kept


def hours_of_readings(site: Site, start: float, hours: float) -> Mapping[str, object]:
    facts = meters("production", "net-consumption")
    shown: Mapping[str, object] = {}
    for step in range(int(hours * 12)):
        now = start + step * 300.0
        given = {"meter__production__power": 990.0, "meter__net_consumption__power": 30.0}
        shown = values(site.update(answer(facts, "readings", now, **given)))
    return shown


def test_an_ac_battery_among_the_inverters_is_a_battery() -> None:
    """Firmware 8.3.5169 with AC Batteries and no storage meter: without live data the home's power is unknown."""
    facts, site = meters("production", "net-consumption"), Site()
    assert hours_of_readings(site, 0, 1)["home/power"] == 1020
    kind = measurement("type", TEXT)
    units = [Reading(f"inverter/{serial}", None, kind, text) for serial, text in (("1", "1"), ("2", "11"))]
    site.update(GuardedAnswer("inverters", units[:1], facts, NOW + 4000))
    assert hours_of_readings(site, 4100, 1)["home/power"] == 1020
    shown: Mapping[str, object] = values(site.update(GuardedAnswer("inverters", units, facts, NOW + 8000)))
    assert shown["home/power"] is None  # at once, not only with the next answer that has powers
    shown = hours_of_readings(site, 8100, 1)
    assert (shown["solar/power"], shown["grid/power"]) == (990, 30)
    assert (shown["battery/power"], shown["home/power"]) == (None, None)


def test_the_choice_outlives_a_restart() -> None:
    """Otherwise a home with a battery has a wrong balance until live data come again."""
    site = Site()
    site.update(live(0, 300))
    again = Site(state=again_read(site.state))
    shown = hours_of_readings(again, 60, 1)
    assert (shown["battery/source"], shown["battery/power"], shown["home/power"]) == (None, None, None)
    assert (shown["solar/power"], shown["solar/source"]) == (990, "meter/production")


def test_a_source_that_is_gone_is_given_up_after_a_week() -> None:
    site = Site()
    site.update(live(0, 300))
    assert hours_of_readings(site, 300, 24 * 6.9)["home/power"] is None
    shown = hours_of_readings(site, 300 + 86_400 * 6.9, 24 * 0.2)
    assert (shown["battery/source"], shown["battery/power"]) == (None, None)
    assert (shown["grid/source"], shown["home/power"]) == ("meter/net-consumption", 1020)


def test_a_month_without_the_bridge_or_a_clock_that_is_set_takes_nothing_away() -> None:
    site = Site()
    site.update(live(0, 300))
    assert hours_of_readings(site, 40 * 86_400.0, 1)["home/power"] is None
    again = Site(state=again_read(site.state))
    assert hours_of_readings(again, 80 * 86_400.0, 1)["home/power"] is None


@pytest.mark.parametrize("damaged", [3, [], {"battery": "x"}, {"battery": True}, {"other": 5}, {"battery": None}])
def test_a_damaged_memory_of_sources_is_none(damaged: object) -> None:
    shown = hours_of_readings(Site(state=SiteState.model_validate({"seen": damaged})), 0, 1)
    assert shown["home/power"] == 1020


# Today


def test_a_gap_over_midnight_is_shared_by_the_hours_of_the_sun() -> None:
    """Nobody knows the week's sun yet, so the hours from 7 to 19 count alike."""
    site = Site(zone=UTC)
    today(site, -30, 0)
    today(site, 13, 1000)
    assert today(site, 19, 1400) is not None
    again = Site(zone=UTC, state=again_read(site.state))
    assert today(again, 24 + 13, 1600) == 200  # all of it was made on the second day
    again = Site(zone=UTC, state=again_read(site.state))
    assert (
        today(again, 72 + 13, 1400 + 250) == 250 * 6 / 30
    )  # 12 hours of sun on each of the two days between, 6 today


def test_a_clock_that_was_never_set_ends_no_day() -> None:
    site = Site(zone=UTC)
    today(site, -1, 1000)
    assert today(site, 12, 1400) == 400
    site = Site(zone=UTC, state=again_read(site.state))
    assert today(site, -MIDNIGHT / 3600, 1450) == 450
    assert today(site, 13, 1500) == 500
    assert today(Site(zone=UTC), -MIDNIGHT / 3600, 1500) is None


def test_a_counter_that_begins_again_leaves_today() -> None:
    site = Site(zone=UTC)
    today(site, -1, 1000)
    today(site, 0, 1000)
    assert today(site, 12, 1400) == 400
    assert today(site, 12.01, 10) == 410
    assert today(site, 12.02, 15) == 415
    assert today(site, 24, 15) == 0


def test_a_clock_that_was_a_day_ahead_gives_the_day_back() -> None:
    site = Site(zone=UTC)
    today(site, -1, 1000)
    today(site, 0, 1000)
    assert today(site, 12, 1400) == 400
    assert today(site, 36, 1410) is not None
    assert today(site, 12.5, 1450) == 450


# What one answer of each source says against the clamps


@pytest.mark.parametrize(
    ("roles", "told", "doubt"),
    [
        (
            ("production",),
            {"meter/production/power": 1.3},
            "1 W, the microinverters report 1820 W: its clamp is not",
        ),
        (
            ("production",),
            {"meter/production/power": -900.0},
            "-900 W, the microinverters report 1820 W: its clamp is r",
        ),
        (("production",), {"meter/production/power": 910.0}, None),  # half of the roof has no clamp
        ((), {"meter/production/power": 1.3}, None),
        (
            ("production",),
            {"meter/production/power": 1810.0, "meter/production/energy_delivered": 10.0},
            "has counted 0 kWh, the microinverters 23426 kWh: it is new, or",
        ),
    ],
)
def test_a_clamp_is_doubted(roles: tuple[str, ...], told: Mapping[str, float], doubt: str | None) -> None:
    lifetime = {"meter/production/energy_delivered": 9e6, "energy/production-pcu/energy_lifetime": 23_425_693.0}
    units = {f"inverter/{number}/power": 130.0 for number in range(14)}
    readings = [reading_of(topic, value) for topic, value in (lifetime | units | dict(told)).items()]
    readings += [
        Reading(f"inverter/{number}", None, measurement("reporting", CONNECTIVITY), True) for number in range(14)
    ]
    found = list(doubts(meters(*roles), readings))
    assert len(found) == (0 if doubt is None else 1)
    assert doubt is None or doubt in found[0]


@pytest.mark.parametrize("name", ["three-phase", "split-phase", "single-phase", "large"])
async def test_no_right_clamp_is_doubted_at_any_hour(name: str) -> None:
    home = await settled(name)
    reporting = set[object]()
    for _ in range(24 * 12):
        home.now += 5 * MINUTE
        told = [
            reading
            for source in ("inverters", "readings", "energy")
            for reading in await home.ask(source)
            if reading.phase is None
        ]
        reporting |= {reading.value for reading in told if reading.name == "reporting"}
        assert not list(doubts(home.facts, told)), (home.now - NOW) / MINUTE
    assert reporting == {True, False}  # the day had a night


ASLEEP = Reading("inverter/1", None, measurement("reporting", CONNECTIVITY), False)


@pytest.mark.parametrize(("gear", "count"), [(frozenset[str](), 1), (frozenset({"battery/1"}), 0)])
def test_export_at_night_is_doubted_without_a_battery(gear: frozenset[str], count: int) -> None:
    facts = replace(meters("production", "net-consumption"), gear=gear)
    told = {"meter/production/power": -3.0, "meter/net-consumption/power": -420.0, "inverter/1/power": 0.0}
    found = list(doubts(facts, [*(reading_of(topic, value) for topic, value in told.items()), ASLEEP]))
    assert len(found) == count
    assert all("exports 420 W while nothing is produced" in text for text in found)


@pytest.mark.parametrize(
    ("told", "is_doubted"),
    [({}, False), ({"energy/production-pcu/power": 3500.0}, False), ({"energy/production-pcu/power": 0.0}, True)],
)
def test_export_is_not_doubted_where_nobody_says_what_is_produced(
    told: Mapping[str, float], is_doubted: bool
) -> None:
    """A home without a production meter, whose inverters have not answered."""
    found = {"meter/net-consumption/power": -3000.0, **told}
    readings = [reading_of(topic, value) for topic, value in found.items()]
    assert bool(list(doubts(meters("net-consumption"), readings))) == is_doubted


@pytest.mark.parametrize(("imported", "exported", "doubted"), [(0, 0, 1), (0, 20_000, 1), (0, 300_000, 0)])
def test_a_grid_meter_that_never_moves_is_doubted(imported: float, exported: float, doubted: int) -> None:
    told = {
        "meter/net-consumption/power": 0.4,
        "meter/net-consumption/energy_delivered": imported,
        "meter/net-consumption/energy_received": exported,
        "energy/production-pcu/energy_lifetime": 23_425_693.0,
    }
    readings = [reading_of(topic, value) for topic, value in told.items()]
    found = list(doubts(meters("net-consumption"), [*readings, ASLEEP]))
    assert len(found) == doubted
    assert all("in both directions, the microinverters 23426 kWh" in text for text in found)
