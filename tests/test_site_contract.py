"""The numbers of `site/*`, judged from outside.

Written answers go in, and what is published is compared with values that were worked out by hand from the rules of
docs/numbers.md, and not from the code.
"""

from collections.abc import Mapping
from typing import Any

import pytest
from answering import MINUTE, Answering, MeterValues, every, times

Powers = Mapping[str, float | None]


def began(*roles: str, **values: MeterValues) -> Answering:
    """A gateway without batteries whose meters were read twice, as a first start needs."""
    house = Answering(*roles)
    house.inventory(0, soc=None)
    house.meters(0)
    house.readings(1, **values)
    house.readings(6, **values)
    return house


# Powers: one answer, one balance


@pytest.mark.parametrize(
    ("meters", "powers"),
    [
        # home = solar + grid + battery; what the inverters draw at night is part of the home
        ({"production": 3000, "net": -2000}, {"solar": 3000, "grid": -2000, "home": 1000}),
        ({"production": -4, "net": 504}, {"solar": 0, "grid": 504, "home": 504}),
        (
            {"production": 3000, "net": -500, "storage": -1500},
            {"solar": 3000, "grid": -500, "battery": -1500, "home": 1000},
        ),
        # home = total - min(0, production); grid = home - solar - battery
        ({"production": 3000, "total": 1000}, {"solar": 3000, "grid": -2000, "home": 1000}),
        ({"production": -4, "total": 500}, {"solar": 0, "grid": 504, "home": 504}),
        (
            {"production": 2000, "total": 1500, "storage": 300},
            {"solar": 2000, "grid": -800, "battery": 300, "home": 1500},
        ),
        ({"production": 3000}, {"solar": 3000}),
    ],
)
def test_powers_of_meters(meters: Mapping[str, float], powers: Powers) -> None:
    house = began(*meters, **{role: (power, 5e6, 1e6) for role, power in meters.items()})
    assert house.powers() == powers
    assert house["solar/source"] == "meter/production"


def test_a_net_meter_alone_has_the_sun_of_the_inverters_and_no_home() -> None:
    """The sun is then up to a quarter of an hour old."""
    house = began("net", net=(-5000, 1e6, 2e6))
    house.pcu(7, 5180, 17_617_974)
    assert (house["solar/power"], house["solar/source"]) == (5180, "energy/production-pcu")
    house.readings(11, net=(-5000, 1e6, 2e6))
    assert house.powers() == {"solar": 5180, "grid": -5000, "home": None} or "home" not in house.powers()


def test_a_disabled_production_meter_is_noise() -> None:
    """evcc-io/evcc#26019: -3.5 W from a clamp that is not in use, and 5180 W by the inverters."""
    house = Answering("production", "net", phases=3)
    house.inventory(0, soc=None)
    house.meters(0, off=["production"])
    readings: dict[str, MeterValues] = {"production": (-3.5, 0.01, 812), "net": (-4600, 2e6, 9e6)}
    house.readings(1, **readings)
    house.pcu(2, 5180, 17_617_974)
    house.inverters(3, 259)
    house.readings(6, **readings)
    assert (house["solar/power"], house["solar/source"]) == (5180, "energy/production-pcu")
    assert house["grid/power"] == -4600
    assert house["home/power"] is None


def test_a_gateway_without_meters_has_the_sun_of_the_inverters() -> None:
    """`/api/v1/production` stalls there, so it is used only where firmware has nothing better."""
    house = Answering()
    house.say("meters", 0, [{"eid": 1, "state": "disabled", "measurementType": "production", "phaseCount": 1}])
    for t in (1, 301):
        house.production(t, 12, 3_000)
        house.pcu(t + 1, 4000, 8_000_000)
    assert (house["solar/power"], house["solar/source"]) == (4000, "energy/production-pcu")
    assert house["solar/energy_lifetime"] == 8_000_000


def test_storage_and_production_meters_leave_the_grid_to_live_data() -> None:
    """While live data are fresh, they have all flows; without them only what the meters measure is known."""
    house = Answering("production", "storage")
    house.meters(0)
    meters: dict[str, MeterValues] = {"production": (3000, 5e6, 0), "storage": (-1000, 1e6, 1e6)}
    house.readings(1, **meters)
    house.live(2, pv=3000, storage=-1000, grid=-1500)
    assert house.powers() == {"solar": 3000, "battery": -1000, "grid": -1500, "home": 500}
    house.live(7, pv=3000, storage=-1000, grid=-1500.5)
    every(11, 91, 5, lambda t: house.readings(t, production=(3000 + t, 5e6, 0), storage=(-1000, 1e6, 1e6)))
    assert house.powers() == {"solar": 3091, "battery": -1000, "grid": None, "home": None}


def test_no_home_is_left_over_when_a_meter_is_disabled() -> None:
    """With the answer that says so, the grid is unknown: what is left does not add up to the home."""
    house = began("production", "total", production=(3000, 5e6, 0), total=(1000, 1e6, 0))
    house.pcu(7, 2900, 17_617_974)
    assert house.powers() == {"solar": 3000, "grid": -2000, "home": 1000}
    house.meters(8, off=["production"])
    assert (house["grid/power"], house["home/power"]) == (None, None)


# P1 and P2: live data that stop, or repeat themselves


def live_home() -> Answering:
    """A home with a battery that no meter measures: all flows come from live data."""
    house = Answering("production", "net")
    house.inventory(0)
    house.meters(0)
    house.readings(1, production=(3000, 5e6, 0), net=(0, 1e6, 1e6))
    house.live(2, pv=3000, storage=-2000, grid=0)
    assert house.powers() == {"solar": 3000, "battery": -2000, "grid": 0, "home": 1000}
    return house


@pytest.mark.parametrize("first", ["power", "readings"])
def test_no_home_is_left_over_when_live_data_stop(first: str) -> None:
    """P1, sequence R2: the batteries' own word comes first, or the meters. `say` compares the sum each time."""
    house = live_home()
    house.live(7, pv=3000, storage=-2000, grid=1)
    for source in (first, "readings" if first == "power" else "power"):
        if source == "power":
            house.batteries(45, 1500)
        else:
            house.readings(45, production=(3100, 5e6, 0), net=(9, 1e6, 1e6))
        assert house["home/power"] is None
    assert house.powers() == {"solar": 3100, "battery": 1500, "grid": 9, "home": None}
    assert house["battery/source"] == "battery"
    house.live(50, pv=3200, storage=-2000, grid=2)
    assert house.powers() == {"solar": 3200, "battery": -2000, "grid": 2, "home": 1202}


def test_powers_and_charge_are_repeated_with_the_answers_that_they_come_from() -> None:
    """Silence means death to a charger: an old value must not look alive because of an answer that lacks it."""
    house, powers = live_home(), {f"{flow}/power" for flow in ("solar", "grid", "battery", "home")}
    meters: dict[str, MeterValues] = {"production": (3000, 5e6, 0), "net": (0, 1e6, 1e6)}
    for t in (7, 12):
        house.live(t, pv=3000, storage=-2000, grid=1)
        assert house.repeated == powers | {"battery/soc"}
    house.readings(13, **meters)
    assert house.repeated == set()
    house.batteries(14, -2000)
    assert house.repeated == set()
    house.readings(50, **meters)  # live data have stopped
    assert house.repeated == powers - {"battery/power"}
    house.batteries(51, 1500)
    assert house.repeated == {"battery/power"}
    house.live(52, pv=9, storage=9, grid=9, stream="disabled")
    assert not house.repeated & powers


def test_the_sum_of_the_inverters_is_repeated_with_its_own_answers() -> None:
    house = began("net", net=(-5000, 1e6, 2e6))
    for t in (7, 67):
        house.pcu(t, 5180, 17_617_974)
        assert house.repeated == {"solar/power"}
        house.readings(t + 1, net=(-5000, 1e6, 2e6))
        assert "solar/power" not in house.repeated
        assert "grid/power" in house.repeated


def test_a_stream_that_is_off_gives_no_powers() -> None:
    house = live_home()
    house.live(7, pv=100, storage=100, grid=100, stream="disabled")
    assert house["home/power"] in (None, 1000)
    assert house["solar/power"] != 100


@pytest.mark.parametrize(("period", "frozen_after"), [(5.0, 30.0), (60.0, 120.0)])
def test_live_data_that_do_not_move_are_frozen(period: float, frozen_after: float) -> None:
    """P2: not a milliwatt moves for 30 s or two polls, though `last_update` runs on."""
    house = live_home()
    house.periods["livedata"] = period
    is_live = {}
    for t in times(10, 10 + frozen_after + period, period):
        house.live(t, pv=3000.001, storage=-2000, grid=0)
        is_live[t - 10] = house.pipeline.site.is_live(house.start + t)
    assert all(is_live[age] for age in is_live if age < frozen_after)
    assert not is_live[max(is_live)]
    house.readings(house.now + 1, production=(2500, 5e6, 0), net=(70, 1e6, 1e6))
    assert house.powers()["solar"] == 2500
    assert house["home/power"] is None
    house.live(house.now + 1, pv=3000.002, storage=-2000, grid=0)
    assert house["home/power"] == pytest.approx(1000.002)


# P3: whether there are batteries


def test_no_home_before_it_is_known_whether_there_are_batteries() -> None:
    """P3, sequence R7: the first poll of a home with batteries, without live data and without their meter."""
    house = Answering("production", "net")
    house.storage_pending = True
    house.meters(0)
    house.readings(1, production=(3000, 5e6, 0), net=(0, 1e6, 1e6))
    assert house["home/power"] is None
    house.readings(6, production=(3000, 5e6, 0), net=(0, 1e6, 1e6))
    assert house["home/power"] is None
    assert house["home/energy_lifetime"] is None
    house.inventory(7)
    house.storage_pending = False
    for minute in range(1, 101):
        t = minute * MINUTE
        house.readings(t, production=(3000, 5e6 + minute * 50, 0), net=(0, 1e6, 1e6))
        house.batteries(t + 1, -2000)
        house.batteries(t + 31, -2000)
        assert house["home/power"] is None
    assert house.powers() == {"solar": 3000, "grid": 0, "battery": -2000, "home": None}
    assert house["battery/estimated"] is True
    # 50 Wh of the sun a minute, of which 33.3 go into the battery: 99 minutes of 1 kW
    assert house["home/energy_lifetime"] == pytest.approx(1650, abs=50)
    assert house["battery/energy_charged"] == pytest.approx(3300, abs=50)


def test_a_home_without_batteries_is_published_when_the_inventory_says_so() -> None:
    house = Answering("production", "net")
    house.storage_pending = True
    house.meters(0)
    for t in (1, 6):
        house.readings(t, production=(3000, 5e6, 0), net=(-2000, 1e6, 1e6))
    assert house["home/power"] is None
    house.inventory(8, soc=None)
    house.readings(11, production=(3000, 5e6, 0), net=(-2000, 1e6, 1e6))
    assert house["home/power"] == 1000
    again = house.later()
    again.storage_pending = True  # what is known once is known in the next run
    again.readings(20, production=(3000, 5e6, 0), net=(-2000, 1e6, 1e6))
    assert again["home/power"] == 1000


def test_ten_minutes_of_silence_show_that_there_are_no_batteries() -> None:
    house = Answering("production", "net")
    house.storage_pending = True
    house.meters(0)
    for t in times(0, 900, 30):
        house.readings(t, production=(3000, 5e6 + t / 1.2, 0), net=(-2000, 1e6, 1e6 + t / 1.8))
        assert (house["home/power"] == 1000) == (t >= 600), t
    assert house["home/energy_lifetime"] == pytest.approx(1000 * 300 / 3600, abs=1)


@pytest.mark.parametrize("sign", ["meter", "type 13", "live data"])
def test_a_sign_of_a_battery_is_enough(sign: str) -> None:
    """The inventory hangs for hours, but something else tells of a battery: a home without it would be wrong."""
    house = Answering("production", "net", *(["storage"] if sign == "meter" else []))
    house.storage_pending = True
    house.meters(0)
    if sign == "type 13":
        house.say("device_list", 0, {"devices": [{"serial_number": "492500000001", "device_type": 13}]})
    for t in times(1, 901, 30):
        storage: Mapping[str, MeterValues] = {"storage": (-1500, 1e6, 1e6)} if sign == "meter" else {}
        if sign == "live data":
            house.live(t, pv=3000 + t, storage=-1500, grid=-500)
        house.readings(t, production=(3000, 5e6, 0), net=(-500, 1e6, 1e6), **storage)
        home = house["home/power"]
        assert home in {"meter": (1000,), "type 13": (None,), "live data": (1000 + t,)}[sign]


# P4: all counters are 0 while a gateway starts


def test_the_powers_stay_when_a_gateway_starts() -> None:
    house = began("production", "net", production=(3000, 5e6, 100), net=(-2000, 1e6, 2e6))
    house.inverters(7, 150)
    house.pcu(8, 3000, 4.9e6)
    for t in (11, 16):
        assert not house.readings(t, production=(0, 0, 0), net=(0, 0, 0))
    assert house.powers() == {"solar": 3000, "grid": -2000, "home": 1000}
    assert house["solar/energy_lifetime"] == 5e6
    assert house["grid/energy_exported"] == 2e6
    assert house.readings(121, production=(3100, 5e6 + 100, 100), net=(-2100, 1e6, 2e6 + 70))
    assert house.powers() == {"solar": 3100, "grid": -2100, "home": 1000}
    assert house["solar/energy_lifetime"] == 5e6 + 100
    assert house["home/energy_lifetime"] == 30


@pytest.mark.parametrize("each", [0, 150])
def test_zeros_at_a_first_start_wait(each: float) -> None:
    """They are believed at once only where `production-pcu` and the inverters are 0 as well."""
    house = Answering("production", "net")
    house.inventory(0, soc=None)
    house.meters(0)
    house.inverters(0, each, highest=2 * each)
    house.pcu(0, 20 * each, 4.9e6 if each else 0)
    taken = [house.readings(t, production=(0, 0, 0), net=(0, 0, 0)) for t in times(1, 1201, 60)]
    assert taken[0] is (each == 0)
    assert all(taken[16:])
    assert (True in taken[:15]) is (each == 0)


# P5: a home that would be negative


WORD_W = -500.3
"""What the batteries of the home with two gateways say that they give."""


def leader(
    t: float, house: Answering, other: float, *, word: float | None = WORD_W, battery: float = WORD_W
) -> None:
    """The home uses 1250.5 W; a second gateway makes `other` W behind the clamp of this one's grid meter."""
    grid = 1250.5 - 1001.3 - other + 500.3
    if word is not None:
        house.batteries(t, word)
    house.readings(t + 1, production=(1001.3, 5e6, 0), net=(grid, 1e6, 1e6), storage=(battery, 1e6, 1e6))


def test_another_producer_behind_the_clamp_does_not_hide_the_battery() -> None:
    """home-assistant/core#151108: meter and batteries agree, so only the home is unknown, and its owner is told."""
    house = Answering("production", "net", "storage")
    house.inventory(0)
    house.meters(0)
    for t in times(0, 1080, 30):
        leader(t, house, 4000)
        assert house["battery/power"] == -500.3
        assert house["home/power"] is None
        assert (house.problem is None) or t >= 870
    assert house.problem is not None
    for t in times(1110, 5000, 30):
        leader(t, house, 0)
        assert house["home/power"] == pytest.approx(1250.5)
    assert house.problem is None


@pytest.mark.parametrize("word", [None, 1800.0], ids=["silent", "another"])
def test_a_battery_that_nobody_confirms_is_doubted(word: float | None) -> None:
    """Two polls are bridged; then battery and home are unknown."""
    house = Answering("production", "net", "storage")
    house.inventory(0)
    house.meters(0)
    every(0, 5, 5, lambda t: leader(t, house, 0))
    assert house.powers()["home"] == pytest.approx(1250.5)
    seen: list[tuple[object, object]] = []
    for t in times(100, 130, 10):
        leader(t, house, 0, word=word, battery=-5000)
        seen.append((house["battery/power"], house["home/power"]))
    assert [battery for battery, _ in seen] == [-500.3, -500.3, None, None]
    assert seen[-1] == (None, None)
    assert house["solar/power"] == 1001.3


def test_a_small_negative_home_is_published() -> None:
    """Up to 50 W and 2 % of the largest flow are no fault: meters are read one after the other."""
    house = began("production", "net", production=(5000, 5e6, 0), net=(-5100, 1e6, 1e6))
    assert house["home/power"] == -100
    house.readings(11, production=(5000, 5e6, 0), net=(-5160, 1e6, 1e6))
    assert house["home/power"] is None
    assert house.powers()["grid"] == -5160


# P6: a clamp that measures nothing, or backwards

ROUND = 15 * MINUTE
"""Seconds between two reports of a microinverter."""


NOISE_W = 1.6
"""What a clamp takes that is on no wire."""


class Roof:
    """Twenty microinverters that make `made` W together, and a home that uses 700 W, in rounds of 15 minutes.

    The production meter shows `share` of what is made. No meter counts the battery, which gives `battery` W.
    """

    def __init__(
        self,
        house: Answering,
        *,
        made: float = 3600,
        share: float = 1.0,
        relay: str = "closed",
        battery: float = 0.0,
    ) -> None:
        self.house, self.made, self.share, self.relay, self.t = house, made, share, relay, 0.0
        self.battery = battery
        self.pcu, self.delivered, self.received = 4.9e6, 5e6, 0.0
        self.imported, self.exported = 1e6, 2e6
        self.reports = True
        house.inventory(0, soc=50 if battery else None)
        house.meters(0)
        self.read()
        self.read()
        house.inverters(2, made / 20)
        house.pcu(3, made, self.pcu)

    def read(self) -> None:
        meter = self.made * self.share - NOISE_W, self.delivered, self.received
        if self.battery:
            self.house.batteries(self.t, self.battery)
        net = 700 - self.made - self.battery
        self.house.readings(self.t, production=meter, net=(net, self.imported, self.exported))

    def round(self, count: int = 1, *, share: float | None = None, made: float | None = None) -> None:
        self.share = self.share if share is None else share
        self.made = self.made if made is None else made
        for _ in range(count):
            every(self.t + MINUTE, self.t + ROUND, MINUTE, self._minute)
            self.pcu += self.made / 4
            self.house.say("relay", self.t, {"mains_admin_state": self.relay, "mains_oper_state": self.relay})
            self.house.inverters(self.t + 1, self.made / 20, reported=self.t if self.reports else 0)
            self.house.pcu(self.t + 2, self.made, self.pcu)

    def _minute(self, t: float) -> None:
        self.t = t
        counted, net = self.made * self.share / 60, (700 - self.made - self.battery) / 60
        self.delivered += max(0, counted)
        self.received += NOISE_W / 60 - min(0, counted)
        self.imported, self.exported = self.imported + max(0, net), self.exported - min(0, net)
        self.read()
        if t % (5 * MINUTE) == 0:
            self.house.pcu(t, self.made, self.pcu)  # it changes with the next reports only

    @property
    def complaints(self) -> list[str]:
        return [event.text for event in self.house.log if event.warning and "clamp" in event.text]


@pytest.mark.parametrize("share", [0.0, 0.05, -1.0], ids=["on no wire", "on a wire beside", "reversed"])
def test_a_clamp_that_falls_off_is_found_in_three_rounds(share: float) -> None:
    """Nothing of the day is lost: the sun goes on from what the inverters had made when the suspicion began."""
    roof = Roof(house := Answering("production", "net", periods={"readings": MINUTE}))
    roof.round(4)
    assert house["solar/energy_lifetime"] == pytest.approx(5e6 + 4 * 900)
    assert house["home/energy_lifetime"] == pytest.approx(4 * 175, abs=15)
    roof.round(2, share=share)
    assert house.problem is None
    roof.round(2)
    roof.read()
    assert (house["solar/power"], house["solar/source"]) == (3600, "energy/production-pcu")
    assert house["home/power"] is None
    assert house["solar/energy_lifetime"] == pytest.approx(5e6 + 8 * 900, abs=5)
    assert house["home/energy_lifetime"] == pytest.approx(8 * 175, abs=20)
    assert house.problem is not None
    assert f"counts {share * 900:.0f} Wh" in house.problem.replace("-0 ", "0 ").replace("901", "900")
    assert "900 Wh" in house.problem
    roof.round(8)
    assert house["solar/energy_lifetime"] == pytest.approx(5e6 + 16 * 900, abs=5)
    assert house["home/energy_lifetime"] == pytest.approx(16 * 175, abs=20)
    assert len([text for text in roof.complaints if "microinverters report" in text]) == 1
    # the clamp is put right: three rounds give the meter back, and nothing is counted twice
    roof.round(2, share=1.0)
    assert house["solar/source"] == "energy/production-pcu"
    roof.round(3)
    assert house["solar/source"] == "meter/production"
    assert house.problem is None
    assert house.powers() == {"solar": 3598.4, "grid": -2900, "home": 698.4}
    assert house["solar/energy_lifetime"] == pytest.approx(5e6 + 21 * 900, abs=965)
    assert house["solar/energy_lifetime"] <= 5e6 + 21 * 900 + 5
    assert house["home/energy_lifetime"] == pytest.approx(21 * 175, abs=205)


@pytest.mark.parametrize("battery", [500.0, -1500.0])
def test_the_home_loses_nothing_beside_a_battery_without_a_meter(battery: float) -> None:
    """What the battery gives or takes belongs to what is made up for when the clamp is found to be reversed."""
    roof = Roof(house := Answering("production", "net", periods={"readings": MINUTE}), battery=battery)
    roof.round(4)
    roof.round(8, share=-1.0)
    assert house["solar/source"] == "energy/production-pcu"
    assert house["home/energy_lifetime"] == pytest.approx(12 * 175, abs=40)


def test_a_suspicion_outlives_a_restart() -> None:
    roof = Roof(house := Answering("production", "net", periods={"readings": MINUTE}))
    roof.round(4)
    roof.round(4, share=0.0)
    problem, lifetime = house.problem, house["solar/energy_lifetime"]
    assert problem is not None
    roof.house = again = house.later()
    roof.round()
    assert again.problem == problem
    assert again["solar/energy_lifetime"] == pytest.approx(lifetime + 900, abs=5)


@pytest.mark.parametrize(
    ("made", "share", "relay", "reports"),
    [
        (3600, 0.5, "closed", True),
        (0, 0.0, "closed", True),
        (60, 0.0, "closed", True),
        (500, 0.0, "closed", True),
        (3600, 0.0, "open", True),
        (3600, 0.0, "closed", False),
    ],
    ids=["half a roof", "night", "snow", "dawn", "island", "old reports"],
)
def test_a_meter_is_not_accused_without_cause(made: float, share: float, relay: str, *, reports: bool) -> None:
    roof = Roof(house := Answering("production", "net", periods={"readings": MINUTE}), made=made, relay=relay)
    roof.reports = reports
    roof.round(12, share=share)
    assert house["solar/source"] == "meter/production"
    assert not any("microinverters report" in text for text in roof.complaints)
    assert "microinverters" not in (house.problem or "")
    if made < 700:
        assert house.problem is None


def test_a_new_meter_that_has_counted_nothing_is_not_used() -> None:
    """home-assistant/core#127593: 0.01 Wh beside 23 MWh of the inverters, which make 3567 W."""
    house = Answering("production", "net")
    house.inventory(0, soc=None)
    house.meters(0)
    wh = 0.0
    house.pcu(0, 3567, 23_425_693)
    for t in times(0, 2700, 60):
        wh = t * 3567 / 3600
        house.readings(t, production=(-1.648, 0.01, 812), net=(-2900, 1e6, 2e6 + t * 2900 / 3600))
        if t % 900 == 0:
            house.inverters(t + 1, 178.35, reported=t - 1)
            house.pcu(t + 2, 3567, 23_425_693 + wh)
        if t >= 5:
            assert (house["solar/power"], house["solar/source"]) == (3567, "energy/production-pcu")
            assert house["home/power"] is None
            assert house["solar/energy_lifetime"] >= 23_425_693
    assert house["solar/energy_lifetime"] == pytest.approx(23_425_693 + wh, abs=1)
    assert house.problem is not None


def test_a_new_meter_that_measures_is_used_after_two_rounds() -> None:
    roof = Roof(house := Answering("production", "net", periods={"readings": MINUTE}))
    roof.delivered = 20_000.0
    roof.house = house = Answering("production", "net", periods={"readings": MINUTE})
    house.inventory(0, soc=None)
    house.meters(0)
    house.inverters(0, 180)
    house.pcu(0, 3600, roof.pcu)
    roof.round()
    assert house["solar/source"] == "energy/production-pcu"
    roof.round(3)
    assert house["solar/source"] == "meter/production"
    assert house["solar/energy_lifetime"] == pytest.approx(4.9e6 + 4 * 900, abs=965)
    assert house.problem is None


def test_a_battery_behind_the_production_clamp_is_no_fault() -> None:
    """The inverters make 3600 W, of which the battery takes 3500: the meter shows the remaining 100 W."""
    house = Answering("production", "net", "storage", periods={"readings": MINUTE})
    house.inventory(0)
    house.meters(0)
    house.inverters(0, 180)
    house.pcu(0, 3600, 4.9e6)
    for t in times(60, 6 * ROUND, 60):
        house.readings(
            t,
            production=(100, 5e6 + t * 100 / 3600, 0),
            net=(600, 1e6 + t * 600 / 3600, 2e6),
            storage=(-3500, 1e6, 1e6 + t * 3500 / 3600),
        )
        if t % ROUND == 0:
            house.inverters(t + 1, 180, reported=t)
            house.pcu(t + 2, 3600, 4.9e6 + t)
    assert house.problem is not None
    assert "battery" in house.problem
    assert house["solar/power"] == 3600
    assert house["battery/power"] == -3500
    assert house["home/power"] == 700


# Sources that give no good value


class Standard:
    """A gateway without meters, whose `/api/v1/production` gives 3600 W; `/ivp/pdm/energy` says so, too."""

    def __init__(self) -> None:
        self.house = Answering(periods={"production": MINUTE})
        self.house.say("meters", 0, [])
        self.house.inverters(0, 180)
        self.t = 0.0
        self.lowest = self.last = 0.0

    def live(self, minutes: int, *, good: bool = True) -> str:
        """Let minutes pass; return the source of the sun at their end."""
        for t in times(self.t + MINUTE, self.t + minutes * MINUTE, MINUTE):
            self.t = t
            self.house.production(self.t, *((3600, 8e6 + self.t) if good else (0, 0)))
            if self.t % (5 * MINUTE) == 0:
                self.house.pcu(self.t + 1, 3600, 7.9e6 + self.t)
            lifetime = self.house["solar/energy_lifetime"] or 0.0
            assert lifetime >= self.last
            assert lifetime <= 8e6 + self.t + 1
            self.last = lifetime
        return str(self.house["solar/source"])


@pytest.mark.parametrize("minutes", [1, 10])
def test_a_poll_of_zeros_and_a_reboot_change_no_source(minutes: int) -> None:
    gateway = Standard()
    assert gateway.live(30) == "energy/production"
    assert gateway.live(minutes, good=False) == "energy/production"
    assert gateway.house["solar/power"] == 3600
    assert gateway.live(5) == "energy/production"
    assert gateway.last == 8e6 + gateway.t


def test_a_source_without_good_values_is_left_and_taken_back() -> None:
    gateway = Standard()
    assert gateway.live(30) == "energy/production"
    assert gateway.live(25, good=False) == "energy/production-pcu"
    assert gateway.house["solar/power"] == 3600
    gateway.live(60, good=False)
    assert gateway.last == pytest.approx(8e6 + gateway.t, abs=1200)
    assert gateway.live(50) == "energy/production-pcu"
    assert gateway.live(15) == "energy/production"
    gateway.live(30)
    assert gateway.last == pytest.approx(8e6 + gateway.t, abs=1500)


def test_an_outage_in_which_only_other_sources_answer_changes_no_source() -> None:
    """A gateway answers /info also without a valid token; then the microinverters may be the first to answer."""
    gateway = Standard()
    assert gateway.live(30) == "energy/production"
    for t in times(gateway.t + MINUTE, gateway.t + 20 * MINUTE, MINUTE):
        gateway.t = t
        gateway.house.say("meters", t, [])
    gateway.house.pcu(gateway.t + 1, 3600, 7.9e6 + gateway.t)
    assert gateway.house["solar/source"] == "energy/production"
    assert gateway.live(5) == "energy/production"
    assert gateway.last == 8e6 + gateway.t


# Batteries: charge, energy, capacity and power of one set


def both_kinds(t: float, house: Answering, *, iq: float, ac: float, power: float | None = None) -> None:
    """10 kWh of IQ Batteries and 1.2 kWh of AC Batteries, with charges in %."""
    charge: dict[str, Any] = {
        "enc_agg_soc": iq,
        "enc_agg_energy": 100 * iq,
        "acb_agg_soc": ac,
        "acb_agg_energy": 12 * ac,
    }
    charge["soc"] = round((100 * iq + 12 * ac) / 112)
    house.inventory(t, soc=iq, capacity=10_000)
    unit = {"serialNumber": "1", "lastReportDate": int(house.start + t), "devType": 11, "lastReportWatts": 1}
    house.say("inverters", t, [unit])
    if power is not None:
        house.live(t + 1, pv=2255, storage=power, grid=-100, **charge)


@pytest.mark.parametrize(
    ("iq", "ac", "soc", "stored"), [(60, 50, 58.9, 6600), (0, 50, 5.4, 600), (80, 0, 71.4, 8000)]
)
def test_two_kinds_of_battery(iq: float, ac: float, soc: float, stored: float) -> None:
    """A kind that is empty is still there."""
    house = Answering("production", "net")
    house.meters(0)
    both_kinds(1, house, iq=50, ac=50, power=2010)
    both_kinds(10, house, iq=iq, ac=ac, power=2009)
    assert house["battery/soc"] == pytest.approx(soc, abs=0.05)
    assert house["battery/energy_stored"] == stored
    assert house["battery/capacity"] == pytest.approx(11_200, abs=20)
    assert house["battery/power"] == 2009


def test_iq_batteries_alone_do_not_speak_for_ac_batteries() -> None:
    """Domoticz#5798: the IQ Battery gives 1438 W, both kinds 2010 W. Without live data nobody knows that."""
    house = Answering("production", "net")
    house.meters(0)
    both_kinds(1, house, iq=80, ac=70)
    for t in times(5, 605, 30):
        house.readings(t, production=(2255, 5e6, 0), net=(-100, 1e6, 1e6))
        house.batteries(t + 1, 1438)
    assert house["battery/power"] is None
    assert house["home/power"] is None
    assert not house["battery/energy_discharged"]


def test_a_battery_that_leaves_the_answer_leaves_the_sums() -> None:
    house = Answering("production", "net")
    house.meters(0)
    unit = {"percentFull": 50, "encharge_capacity": 5000, "communicating": True}
    two = [{"serial_num": f"49250000000{number}", **unit} for number in (1, 2)]
    for t, units in ((1, two), (2, two[:1])):
        house.say("inventory", t, [{"type": "ENCHARGE", "devices": units}])
        house.readings(t + 5, production=(0, 5e6, 0), net=(0, 1e6, 1e6))
        assert house["battery/capacity"] == 5000 * len(units)
        assert house["battery/energy_stored"] == 2500 * len(units)
