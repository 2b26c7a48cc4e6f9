"""All counters of a gateway: which readings are guarded, what is kept and told, and which clock judges them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from bridge.counters import WRAP, Account, Cause, Held, Ledger, is_counter, usual_cap
from bridge.model import Phase, Quantity, Reading
from bridge.records import (
    APPARENT_ENERGY,
    APPARENT_POWER,
    COUNT,
    ENERGY,
    ENERGY_REPORT,
    ENERGY_WINDOW,
    FLAG,
    POWER,
    REACTIVE_ENERGY,
    VOLTAGE,
    measurement,
)

START = 1_795_000_000.0
PRODUCTION = 26_785_327.449
CAP = 75_000.0
KEY = "meter/production/energy_delivered"


def reading(
    name: str,
    value: Any,
    quantity: Quantity = ENERGY,
    device: str = "meter/production",
    phase: Phase | None = None,
) -> Reading:
    return Reading(device, phase, measurement(name, quantity), value)


def delivered(value: Any, phase: Phase | None = None, device: str = "meter/production") -> Reading:
    return reading("energy_delivered", value, device=device, phase=phase)


class Gateway:
    """A ledger with a wall clock and a steady one."""

    def __init__(self, ledger: Ledger | None = None, wall: float = START, steady: float = 5.0) -> None:
        self.ledger = ledger or Ledger()
        self.wall, self.steady = wall, steady
        self.cap = CAP
        self.events: list[str] = []
        self.warnings: list[str] = []
        self.held = 0

    def wait(self, seconds: float) -> "Gateway":
        self.wall += seconds
        self.steady += seconds
        return self

    def guard(self, *readings: Reading, source: str = "readings") -> Sequence[Reading]:
        guarded = self.ledger.guard(source, readings, lambda _: self.cap, now=self.wall, steady=self.steady)
        self.events += [event.text for event in guarded.events]
        self.warnings += [event.text for event in guarded.events if event.warning]
        self.held = guarded.held
        return guarded.readings

    def values(self, *readings: Reading, source: str = "readings") -> list[Any]:
        return [item.value for item in self.guard(*readings, source=source)]

    def restarted(self, wall: float) -> "Gateway":
        """Another process, with what the file holds."""
        return Gateway(Ledger.load(json.loads(json.dumps(self.ledger.dump()))), wall=wall, steady=17.0)


@pytest.mark.parametrize(
    ("name", "quantity", "counts"),
    [
        ("energy_delivered", ENERGY, True),
        ("apparent_energy", APPARENT_ENERGY, True),
        ("reactive_energy_lagging", REACTIVE_ENERGY, True),
        ("energy_delivered", ENERGY_REPORT, False),
        ("energy_7d", ENERGY_WINDOW, False),
        ("energy_today", ENERGY, False),
        ("power", POWER, False),
        ("inverters_total", COUNT, False),
        ("count", Quantity(None, None, "total_increasing"), False),
    ],
)
def test_which_readings_are_counters(name: str, quantity: Quantity, counts: bool) -> None:
    assert is_counter(reading(name, 1.0, quantity)) is counts


def test_only_counters_are_touched_and_the_order_stays() -> None:
    gateway = Gateway()
    others = [
        reading("power", 5, POWER),
        reading("enabled", True, FLAG),
        reading("voltage", None, VOLTAGE),
        delivered(None),
        delivered(True),
        delivered("much"),
        delivered(float("nan"), Phase.L1),
        reading("energy_delivered", 7.0, ENERGY_REPORT, "report/grid"),
    ]
    gateway.guard(delivered(PRODUCTION, Phase.L2))

    guarded = gateway.wait(10).guard(*others[:4], delivered(0.0, Phase.L2), *others[4:])

    assert [*guarded[:4], *guarded[5:]] == others
    assert guarded[4] == delivered(PRODUCTION, Phase.L2)


def test_what_may_not_be_published_is_left_out() -> None:
    gateway = Gateway()
    power = reading("power", 5, POWER)

    assert gateway.guard(power, delivered(0.0)) == [power]
    assert (gateway.held, gateway.events) == (0, [])
    assert gateway.wait(900).values(power, delivered(-0.5)) == [5, 0]


def test_device_phase_and_name_are_a_counter_of_their_own() -> None:
    gateway = Gateway()
    readings = [
        delivered(1e6),
        delivered(2e6, Phase.L1),
        delivered(3e6, device="meter/storage"),
        reading("energy_received", 4e6),
    ]
    gateway.guard(*readings)

    assert gateway.wait(10).guard(*readings) == readings
    assert set(gateway.ledger.dump()) == {
        "meter/production/energy_delivered",
        "meter/production/l1/energy_delivered",
        "meter/storage/energy_delivered",
        "meter/production/energy_received",
    }


def test_a_reboot_is_one_warning_and_one_line_when_it_is_over() -> None:
    gateway = Gateway()
    counters = [delivered(1e6 * n, phase) for n, phase in enumerate((None, *Phase), 1)]
    zeros = [replace(counter, value=0.0) for counter in counters]
    gateway.guard(*counters)

    for _ in range(3):
        assert gateway.wait(10).guard(*zeros) == counters
        assert gateway.held == 4
    gateway.wait(10).guard(*counters)

    assert gateway.held == 0
    assert gateway.events == [
        f"{KEY} fell from 1000000 to 0, which can't be: held at the last good value (and 3 more counters)",
        f"{KEY} is back at 1000000: no longer held (and 3 more counters)",
    ]
    assert gateway.warnings == gateway.events[:1]


def test_a_counter_that_is_held_again_and_again_is_told_once_an_hour() -> None:
    gateway = Gateway()
    for _ in range(300):
        gateway.wait(10).guard(delivered(1e6))
        gateway.wait(10).guard(delivered(0.0))

    assert len(gateway.warnings) == 2
    assert len(gateway.events) == 4


def test_each_rebase_is_told() -> None:
    gateway = Gateway()
    for seconds, value in ((0, 9e6), (10, 3e6), (450, 3e6 + 1), (450, 3e6 + 2)):
        guarded = gateway.wait(seconds).values(delivered(value), delivered(value, Phase.L1))

    assert guarded == [9e6 + 2, 9e6 + 2]
    assert [text.rsplit(";")[-1] for text in gateway.warnings[1:]] == [
        " the step is not counted, offset +6000000.000 from now on"
    ] * 2


@pytest.mark.parametrize(("source", "confirm"), [("readings", 900), ("production", 3_600), ("energy", 3_600)])
def test_how_long_a_fall_must_last(source: str, confirm: float) -> None:
    gateway = Gateway()
    steps = ((0, 9e6), (60, 3e6), (confirm / 2, 3e6 + 1), (confirm / 2 - 1, 3e6 + 2))

    values = [gateway.wait(seconds).values(delivered(value), source=source)[0] for seconds, value in steps]

    assert values == [9e6] * 4
    assert gateway.wait(1).values(delivered(3e6 + 2), source=source) == [9e6 + 2]


@pytest.mark.parametrize(
    ("device", "wraps"),
    [
        ("energy/production-pcu", True),
        ("energy/production", True),
        ("energy/production-eim", False),
        ("energy/consumption-eim", False),
        ("meter/production", False),
    ],
)
def test_where_2_to_the_32_joules_are_expected(device: str, wraps: bool) -> None:
    gateway = Gateway()
    values = [
        gateway.wait(60).values(delivered(value, device=device), source="energy")[0]
        for value in (8e6, 8e6 - WRAP, 8e6 - WRAP + 10)
    ]

    assert values == [8e6, 8e6, 8e6 + 10 if wraps else 8e6]


def test_a_stalled_quarter_hour_source_that_begins_again_is_passed_on() -> None:
    gateway = Gateway()
    steps = [(60, 8e6)] * 16 + [(60, 4_000.0), (1_800, 4_001.0), (1_800, 4_002.0)]

    values = [gateway.wait(seconds).values(delivered(value), source="energy")[0] for seconds, value in steps]

    assert values[-1] == 4_002


# Highest power


def loaded(watts: float | None, energy: float, device: str = "meter/net-consumption") -> list[Reading]:
    power = reading("power", watts, POWER, device)
    return [power, delivered(energy, device=device)]


@pytest.mark.parametrize(
    ("device", "rise", "good"),
    [
        ("meter/net-consumption", 200_000, True),
        ("meter/net-consumption", 202_000, False),
        ("meter/production", 125_000, True),
        ("meter/production", 127_000, False),
    ],
)
def test_a_power_that_was_read_twice_is_possible(device: str, rise: float, good: bool) -> None:
    """A plant that is larger than anybody thought."""
    gateway = Gateway()
    gateway.guard(*loaded(-100_000, 1e6, device))
    gateway.wait(1).guard(*loaded(110_000, 1e6 + 1, device))

    gateway.wait(3_600).guard(*loaded(0, 1e6 + rise, device))

    assert (gateway.held == 0) is good


def test_a_spike_of_power_makes_nothing_possible() -> None:
    gateway = Gateway()
    for watts in (100.0, 4_294_967_292.0, 100.0, None, 4_294_967_292.0):
        gateway.wait(10).guard(*loaded(watts, 1e6))

    gateway.wait(3_600).guard(*loaded(0, 1_100_000))

    assert gateway.held == 1


def test_apparent_energy_is_measured_by_apparent_power() -> None:
    gateway = Gateway()
    for energy in (1e6, 1e6, 1_150_000):
        gateway.wait(3_600).guard(
            reading("power", 0, POWER),
            reading("apparent_power", 200_000, APPARENT_POWER),
            reading("apparent_energy", energy, APPARENT_ENERGY),
        )

    assert gateway.held == 0


def test_the_highest_power_outlives_a_restart() -> None:
    gateway = Gateway()
    for energy in (1e6, 1e6 + 1):
        gateway.wait(1).guard(*loaded(100_000, energy))
    gateway = gateway.restarted(gateway.wall + 3_600)

    assert gateway.values(*loaded(0, 1_190_000))[1] == 1_190_000


# Reactive energy


def test_a_reactive_energy_that_was_ever_negative_passes_as_it_is() -> None:
    gateway = Gateway()

    def lagging(value: float) -> list[Any]:
        return gateway.wait(10).values(reading("reactive_energy_lagging", value, REACTIVE_ENERGY))

    assert [lagging(value) for value in (500_000.0, 0.0, -3.0, 400_000.0, 900_000.0, 0.0)] == [
        [500_000],
        [500_000],
        [-3],
        [400_000],
        [900_000],
        [0],
    ]
    assert gateway.held == 0
    gateway = gateway.restarted(gateway.wall + 10)
    assert lagging(1.0) == [1]


def test_active_energy_is_guarded_though_it_was_negative() -> None:
    gateway = Gateway()

    assert [gateway.wait(10).values(delivered(value)) for value in (5_000.0, -3.0, 10.0)] == [[5_000]] * 3


# State, retained topics


def settled(*readings: Reading) -> Gateway:
    """A gateway whose counters have a history."""
    gateway = Gateway()
    gateway.guard(*readings)
    gateway.wait(700).guard(*readings)
    return gateway


def test_a_restart_goes_on_with_the_offset() -> None:
    gateway = Gateway()
    for value in (9e6, 3e6, 3e6 + 1):
        gateway.wait(450).guard(delivered(value))
    gateway = gateway.restarted(gateway.wall + 450)
    assert gateway.values(delivered(3e6 + 2)) == [9e6 + 2]

    gateway = gateway.restarted(gateway.wall + 7 * 86_400)
    assert gateway.values(delivered(3e6 + 500_000)) == [9e6 + 500_000]


def test_what_is_held_over_a_restart_is_told_when_it_is_back() -> None:
    gateway = Gateway()
    for value in (9e6, 0.0):
        gateway.wait(10).guard(delivered(value))
    gateway = gateway.restarted(gateway.wall + 60)
    assert gateway.ledger.held == 1

    gateway.guard(delivered(9e6))

    assert len(gateway.events) == 1


@pytest.mark.parametrize("first", [0.0, PRODUCTION / 2, PRODUCTION - 20])
def test_without_state_nothing_below_the_retained_value_is_published(first: float) -> None:
    gateway = Gateway()
    gateway.ledger.seed(KEY, PRODUCTION)

    assert gateway.values(delivered(first)) == [PRODUCTION]
    assert gateway.wait(10).values(delivered(PRODUCTION + 5)) == [PRODUCTION + 5]


def test_without_state_the_retained_offset_comes_back() -> None:
    """The counter of 3 MWh was published as 9 MWh."""
    gateway = Gateway()
    gateway.ledger.seed(KEY, 9e6, START - 60)

    values = [gateway.wait(450).values(delivered(3e6 + n))[0] for n in range(4)]

    assert values == [9e6, 9e6, 9e6 + 2, 9e6 + 3]


def test_a_month_without_the_bridge_is_published_at_once() -> None:
    """State lost, retained topics a month old, and nobody knows how old."""
    gateway = Gateway()
    gateway.ledger.seed(KEY, PRODUCTION)

    assert gateway.values(delivered(PRODUCTION + 900_000)) == [PRODUCTION + 900_000]
    assert gateway.wait(10).values(delivered(PRODUCTION * 2)) == [PRODUCTION + 900_000]


@pytest.mark.parametrize(("age", "published"), [(60, 1e6), (30 * 86_400, 6e6)])
def test_a_retained_value_of_known_age_protects_against_spikes(age: float, published: float) -> None:
    gateway = Gateway()
    gateway.ledger.seed(KEY, 1e6, START - age)

    assert gateway.values(delivered(6e6)) == [published]


def test_a_fresh_install_after_a_month_begins_with_what_the_counter_says() -> None:
    assert Gateway().values(delivered(PRODUCTION)) == [PRODUCTION]


def test_a_state_that_is_older_than_the_retained_value_publishes_no_fall() -> None:
    gateway = Gateway()
    gateway.guard(delivered(1e6))
    gateway = gateway.restarted(gateway.wall + 600)
    gateway.ledger.seed(KEY, 1e6 + 500)

    assert [gateway.wait(10).values(delivered(1e6 + rise))[0] for rise in (490, 499, 501)] == [
        1e6 + 500,
        1e6 + 500,
        1e6 + 501,
    ]


def test_a_retained_value_that_is_newer_leaves_the_offset() -> None:
    gateway = Gateway()
    for value in (9e6, 3e6, 3e6 + 1, 3e6 + 2):
        gateway.wait(450).guard(delivered(value))
    gateway = gateway.restarted(gateway.wall + 600)
    gateway.ledger.seed(KEY, 9e6 + 500, gateway.wall - 10)

    assert gateway.values(delivered(3e6 + 499)) == [9e6 + 500]
    assert gateway.wait(10).values(delivered(3e6 + 501)) == [9e6 + 501]


def test_a_state_is_as_new_as_the_retained_value() -> None:
    gateway = settled(delivered(1e6))
    gateway = gateway.restarted(gateway.wall + 7 * 86_400)
    gateway.ledger.seed(KEY, 1_500_000, gateway.wall - 60)

    assert gateway.values(delivered(2e6)) == [1_500_000]


def test_a_state_that_is_newer_than_the_retained_value_wins() -> None:
    gateway = Gateway()
    gateway.guard(delivered(1e6))
    gateway = gateway.restarted(gateway.wall + 600)
    gateway.ledger.seed(KEY, 1e6 - 500)

    assert gateway.values(delivered(1e6 - 400)) == [1e6]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_retained_value_that_is_none_is_ignored(value: float) -> None:
    gateway = Gateway()
    gateway.ledger.seed(KEY, value)

    assert gateway.values(delivered(5.0)) == [5]


def test_an_account_outlives_json() -> None:
    account = Account(
        raw=1.5,
        offset=-2.0,
        changed_at=START,
        seen_at=START + 1,
        started_at=START - 5,
        wraps=2,
        held=Held(Cause.WRAP, 1.0, START, 2.0, START, START, readings=2, wraps=-1),
        signed=True,
        peak=3.0,
        power=4.0,
    )
    ledger = Ledger({KEY: account})

    assert Ledger.load(json.loads(json.dumps(ledger.dump())))._accounts == {KEY: account}


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        5,
        [],
        {"raw": "much"},
        {"raw": float("nan")},
        {"raw": 1e300},
        {"raw": 1, "held": {"cause": "whim"}},
        {"raw": 1, "held": 7},
    ],
)
def test_a_damaged_account_costs_itself(damaged: object) -> None:
    ledger = Ledger.load({"bad": damaged, KEY: {"raw": 5.0, "from_a_later_version": 1}})

    assert set(ledger.dump()) == {KEY}


@pytest.mark.parametrize("damaged", [None, 5, "text", [1], {}])
def test_a_damaged_state_is_no_state(damaged: object) -> None:
    assert Ledger.load(damaged).dump() == {}


# Clocks


def test_without_a_clock_a_rise_is_accepted_in_1970() -> None:
    gateway = Gateway(wall=1_000.0)
    gateway.guard(delivered(1e6))

    assert gateway.wait(3_600).values(delivered(5e6)) == [5e6]
    assert gateway.wait(10).values(delivered(0.0)) == [5e6]


def test_a_clock_that_starts_in_1970_and_is_set_then() -> None:
    gateway = settled(delivered(1e6))
    gateway = gateway.restarted(1_000.0)
    assert gateway.values(delivered(1_300_000.0)) == [1_300_000]

    gateway.wait(20).wall = START + 7 * 86_400
    assert gateway.values(delivered(1_300_005.0)) == [1_300_005]
    assert gateway.wait(10).values(delivered(9e6)) == [1_300_005]


def test_a_clock_that_stood_still_while_the_power_was_off_and_is_set_then() -> None:
    """A Raspberry Pi starts with the time of its last shutdown."""
    gateway = settled(delivered(1e6))
    gateway = gateway.restarted(gateway.wall + 20)
    assert gateway.values(delivered(1_100_000.0)) == [1e6]

    gateway.wait(10).wall += 10 * 3_600

    assert gateway.values(delivered(1_100_001.0)) == [1_100_001]


def test_a_clock_that_went_back_while_we_were_away() -> None:
    gateway = settled(delivered(1e6), delivered(2e6, Phase.L1))
    gateway = gateway.restarted(gateway.wall - 3_600)

    assert gateway.values(delivered(1_100_000.0)) == [1_100_000]
    assert gateway.wait(10).values(delivered(1_200_000.0)) == [1_100_000]
    assert gateway.wait(10).values(delivered(2_300_000.0, Phase.L1)) == [2_300_000], "not yet read since then"


def test_after_a_clock_went_back_time_passes_as_ever() -> None:
    gateway = settled(delivered(1e6), delivered(2e6, Phase.L1))
    gateway = gateway.restarted(gateway.wall - 3_600)
    gateway.guard(delivered(1e6))

    assert gateway.wait(1_200).values(delivered(1_020_000.0)) == [1_020_000]
    assert gateway.wait(6_000).values(delivered(2_300_000.0, Phase.L1)) == [2_300_000], "not yet read since then"


def test_a_clock_that_went_back_while_nothing_was_published_yet() -> None:
    gateway = Gateway()
    gateway.guard(delivered(0.0))
    gateway = gateway.restarted(gateway.wall - 86_400)
    assert gateway.values(delivered(0.0)) == []

    assert gateway.wait(900).values(delivered(0.0)) == [0]


def test_a_clock_that_is_set_back_while_we_run_changes_nothing() -> None:
    gateway = settled(delivered(1e6))
    gateway.wait(10).wall -= 86_400

    assert gateway.values(delivered(1_050_000.0)) == [1e6]
    values = [gateway.wait(450).values(delivered(1_050_000.0 + n))[0] for n in (1, 2)]
    assert values == [1e6, 1_000_002]


def test_a_clock_that_is_set_forward_proves_nothing() -> None:
    gateway = Gateway()
    for value in (9e6, 3e6, 3e6 + 1):
        gateway.wait(10).guard(delivered(value))
    gateway.wall += 3_600

    assert gateway.wait(10).values(delivered(3e6 + 2)) == [9e6]
    assert gateway.wait(450).values(delivered(3e6 + 3)) == [9e6]
    assert gateway.wait(450).values(delivered(3e6 + 4)) == [9e6 + 2]


def test_a_clock_that_is_set_forward_by_days_makes_every_rise_possible_once() -> None:
    gateway = settled(delivered(1e6), delivered(2e6, Phase.L1))
    gateway.cap = 0
    gateway.wait(10).wall += 2 * 86_400

    assert gateway.values(delivered(1_300_000.0)) == [1_300_000]
    assert gateway.wait(10).values(delivered(1_600_000.0)) == [1_300_000]
    assert gateway.values(delivered(2_300_000.0, Phase.L1)) == [2_300_000]


def test_clocks_may_drift_apart_a_little() -> None:
    gateway = Gateway()
    for value in (9e6, 3e6, 3e6 + 1, 3e6 + 2):
        gateway.wait(450).guard(delivered(value))
        gateway.wall += 20

    assert gateway.values(delivered(3e6 + 3)) == [9e6 + 3]


# Caps


@pytest.mark.parametrize(
    ("device", "phase", "solar", "cap"),
    [
        ("meter/production", None, 6_000, 7_500),
        ("meter/production", Phase.L1, 6_000, 7_500),
        ("energy/production-pcu", None, 6_000, 7_500),
        ("meter/production", None, 0, 75_000),
        ("meter/net-consumption", None, 6_000, 75_000),
        ("meter/net-consumption", Phase.L2, 6_000, 25_000),
        ("energy/consumption-eim", None, 6_000, 75_000),
        ("inverter/482301001005", None, 371, 463.75),
        ("inverter/482301001005", None, 0, 1_000),
    ],
)
def test_what_a_home_can_count(device: str, phase: Phase | None, solar: float, cap: float) -> None:
    assert usual_cap(delivered(1.0, phase, device), phases=3, solar=solar) == cap


def test_a_home_has_a_phase() -> None:
    assert usual_cap(delivered(1.0, device="meter/storage"), phases=0) == 25_000
