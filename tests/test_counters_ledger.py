"""All counters of a gateway: which readings are guarded, what is saved and reported, and which clock is used."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from samples import restored

from bridge.counters import FROM_BROKER, Ledger, is_counter, usual_cap
from bridge.counters.rules import WRAP_WH
from bridge.counters.state import Cause, CounterState, Held
from bridge.model import Phase, Quantity, Reading
from bridge.pipeline import CountersState
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


def of_file(counters: object) -> Ledger:
    """The ledger of a run whose state file has this content and no digest."""
    return Ledger.load(CountersState.model_validate({"counters": counters}).counters)


def again_read(ledger: Ledger) -> Ledger:
    """The ledger of the next run."""
    return Ledger.load(restored(CountersState(counters=ledger.states)).counters)


class Gateway:
    """A ledger with a wall clock and a steady one."""

    def __init__(self, ledger: Ledger | None = None, wall: float = START, steady: float = 5.0) -> None:
        self.ledger = ledger or Ledger()
        self.wall, self.steady = wall, steady
        self.cap = CAP
        self.events: list[str] = []
        self.event_names: list[str] = []
        self.warnings: list[str] = []
        self.held = 0

    def wait(self, seconds: float) -> "Gateway":
        self.wall += seconds
        self.steady += seconds
        return self

    def begin(self, *readings: Reading, source: str = "readings") -> "Gateway":
        """Read counters for the first time, and confirm them with a reading ten seconds later."""
        self.guard(*readings, source=source)
        self.wait(10).guard(*readings, source=source)
        return self

    def guard(self, *readings: Reading, source: str = "readings") -> Sequence[Reading]:
        guarded = self.ledger.guard(source, readings, lambda _: self.cap, now=self.wall, steady=self.steady)
        self.events += [event.text for event in guarded.events]
        self.event_names += [event.name for event in guarded.events]
        self.warnings += [event.text for event in guarded.events if event.warning]
        self.held = guarded.held
        return guarded.readings

    def values(self, *readings: Reading, source: str = "readings") -> list[Any]:
        return [item.value for item in self.guard(*readings, source=source)]

    def restarted(self, wall: float) -> "Gateway":
        """Another process, with the content of the state file."""
        return Gateway(again_read(self.ledger), wall=wall, steady=17.0)


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
    gateway.begin(delivered(PRODUCTION, Phase.L2))

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
    assert set(gateway.ledger.states) == {
        "meter/production/energy_delivered",
        "meter/production/l1/energy_delivered",
        "meter/storage/energy_delivered",
        "meter/production/energy_received",
    }


def test_a_reboot_is_one_warning_and_one_line_when_it_is_over() -> None:
    gateway = Gateway()
    counters = [delivered(1e6 * n, phase) for n, phase in enumerate((None, *Phase), 1)]
    zeros = [replace(counter, value=0.0) for counter in counters]
    gateway.begin(*counters)

    for _ in range(3):
        assert gateway.wait(10).guard(*zeros) == counters
        assert gateway.held == 4
    gateway.wait(10).guard(*counters)

    assert gateway.held == 0
    assert gateway.events == [
        f"{KEY} fell from 1000000 to 0, which can't be: held at the last good value (and 3 more counters)",
        f"{KEY} is back at 1000000: no longer held (and 3 more counters)",
    ]
    assert gateway.event_names == ["counter_held", "counter_back"]
    assert gateway.warnings == gateway.events[:1]


def test_a_counter_that_is_held_again_and_again_is_told_once_an_hour() -> None:
    gateway = Gateway().begin(delivered(1e6))
    for _ in range(300):
        gateway.wait(10).guard(delivered(1e6))
        gateway.wait(10).guard(delivered(0.0))

    assert len(gateway.warnings) == 2
    assert len(gateway.events) == 4


def test_each_rebase_is_told() -> None:
    gateway, guarded = Gateway().begin(delivered(9e6), delivered(9e6, Phase.L1)), list[Any]()
    for seconds, value in ((10, 3e6), (450, 3e6 + 1), (450, 3e6 + 2)):
        guarded = gateway.wait(seconds).values(delivered(value), delivered(value, Phase.L1))

    assert guarded == [9e6 + 2, 9e6 + 2]
    assert [text.rsplit(";")[-1] for text in gateway.warnings[1:]] == [
        " the step is not counted, offset +6000000.000 from now on"
    ] * 2


@pytest.mark.parametrize(("source", "confirm"), [("readings", 900), ("production", 3_600), ("energy", 3_600)])
def test_how_long_a_fall_must_last(source: str, confirm: float) -> None:
    gateway = Gateway().begin(delivered(9e6), source=source)
    steps = ((60, 3e6), (confirm / 2, 3e6 + 1), (confirm / 2 - 1, 3e6 + 2))

    values = [gateway.wait(seconds).values(delivered(value), source=source)[0] for seconds, value in steps]

    assert values == [9e6] * 3
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
    gateway = Gateway().begin(delivered(8e6, device=device), source="energy")
    values = [
        gateway.wait(60).values(delivered(value, device=device), source="energy")[0]
        for value in (8e6 - WRAP_WH, 8e6 - WRAP_WH + 5, 8e6 - WRAP_WH + 10)
    ]

    assert values == [8e6, 8e6, 8e6 + 10 if wraps else 8e6]


def test_a_stalled_quarter_hour_source_that_begins_again_is_passed_on() -> None:
    gateway = Gateway().begin(delivered(8e6), source="energy")
    steps = [(60, 8e6)] * 15 + [(60, 4_000.0), (1_800, 4_001.0), (1_800, 4_002.0)]

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
    """A plant that is larger than anybody thought, and that was not read for an hour."""
    gateway = Gateway().begin(*loaded(-100_000, 1e6, device))
    gateway.wait(1).guard(*loaded(110_000, 1e6 + 1, device))

    gateway.wait(3_600).guard(*loaded(0, 1e6 + rise, device))

    assert (gateway.held == 0) is good


def test_a_catch_up_has_had_a_power_and_a_step_has_not() -> None:
    """The sun's counter stands still from 20:30 to 03:00, and then rises by 50 kWh at once."""
    gateway = Gateway().begin(*loaded(0, 5e6, "meter/production"))
    gateway.cap = 7_500
    for _ in range(6 * 180):
        gateway.wait(20).guard(*loaded(0, 5e6, "meter/production"))

    assert gateway.wait(20).values(*loaded(0, 5_050_000, "meter/production"))[1] == 5e6
    assert gateway.wait(20).values(*loaded(0, 5e6 + 5, "meter/production"))[1] == 5e6 + 5
    for _ in range(6 * 180):
        gateway.wait(20).guard(*loaded(4_000, 5e6 + 5, "meter/production"))
    assert gateway.wait(20).values(*loaded(4_000, 5_024_000, "meter/production"))[1] == 5_024_000


@pytest.mark.parametrize(
    ("stands_still", "rise", "good"), [(10, 8_400, True), (10, 8_700, False), (40, 13_600, False)]
)
def test_without_a_power_half_an_hour_of_standing_still_may_be_made_up(
    stands_still: int, rise: float, good: bool
) -> None:
    """25 kW for ten minutes is 4.2 kWh, for half an hour 12.5 kWh; 1 kWh is always possible."""
    gateway = Gateway().begin(delivered(9e6), source="energy")
    gateway.cap = 25_000 * (1 if stands_still > 10 else 1.8)
    for _ in range(stands_still - 1):
        gateway.wait(60).guard(delivered(9e6), source="energy")

    gateway.wait(60).guard(delivered(9e6 + rise), source="energy")

    assert (gateway.held == 0) is good


def test_phases_that_cancel_each_other_count_all_the_same() -> None:
    """One phase exports 3 kW, another imports them: the meter's power is 0 while both its counters stand still."""

    def answer(energy: float) -> list[Reading]:
        powers = [
            reading("power", watts, POWER, phase=phase) for watts, phase in zip((-3e3, 3e3), Phase, strict=False)
        ]
        return [reading("power", 0, POWER), *powers, delivered(energy)]

    gateway = Gateway().begin(*answer(1e6))
    for _ in range(360):
        gateway.wait(10).guard(*answer(1e6))

    assert gateway.wait(10).guard(*answer(1_003_000))[-1].value == 1_003_000


def test_a_spike_of_power_makes_nothing_possible() -> None:
    gateway = Gateway().begin(*loaded(100, 1e6))
    for watts in (100.0, 4_294_967_292.0, 100.0, None, 4_294_967_292.0):
        gateway.wait(10).guard(*loaded(watts, 1e6))

    gateway.wait(3_600).guard(*loaded(0, 1_100_000))

    assert gateway.held == 1


def test_apparent_energy_is_measured_by_apparent_power() -> None:
    gateway = Gateway()
    for energy in (1e6, 1e6, 1e6, 1_150_000):
        gateway.wait(3_600).guard(
            reading("power", 0, POWER),
            reading("apparent_power", 200_000, APPARENT_POWER),
            reading("apparent_energy", energy, APPARENT_ENERGY),
        )

    assert gateway.held == 0


def test_the_highest_power_outlives_a_restart() -> None:
    gateway = Gateway()
    for energy in (1e6, 1e6, 1e6 + 1, 1e6 + 2):
        gateway.wait(1).guard(*loaded(100_000, energy))
    gateway = gateway.restarted(gateway.wall + 3_600)

    assert gateway.values(*loaded(0, 1_190_000))[1] == 1_190_000


# Reactive energy


def test_a_reactive_energy_that_was_ever_negative_passes_as_it_is() -> None:
    gateway = Gateway()

    def lagging(value: float) -> list[Any]:
        return gateway.wait(10).values(reading("reactive_energy_lagging", value, REACTIVE_ENERGY))

    assert [lagging(value) for value in (500_000.0, 500_000.0, 0.0, -3.0, 400_000.0, 900_000.0, 0.0)] == [
        [],
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
    gateway = Gateway().begin(delivered(5_000.0))

    assert [gateway.wait(10).values(delivered(value)) for value in (5_000.0, -3.0, 10.0)] == [[5_000]] * 3


# State, retained topics


def settled(*readings: Reading) -> Gateway:
    """A gateway whose counters have a history."""
    gateway = Gateway().begin(*readings)
    gateway.wait(60).guard(*readings)
    return gateway


def test_a_restart_goes_on_with_the_offset() -> None:
    gateway = Gateway().begin(delivered(9e6))
    for value in (3e6, 3e6 + 1, 3e6 + 1):
        gateway.wait(450).guard(delivered(value))
    gateway = gateway.restarted(gateway.wall + 450)
    assert gateway.values(delivered(3e6 + 2)) == [9e6 + 2]

    gateway = gateway.restarted(gateway.wall + 7 * 86_400)
    assert gateway.values(delivered(3e6 + 500_000)) == [9e6 + 500_000]


def test_what_is_held_over_a_restart_is_told_when_it_is_back() -> None:
    gateway = Gateway().begin(delivered(9e6))
    gateway.wait(10).guard(delivered(0.0))
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
    """The state is lost; the retained topics say that they are a month old."""
    gateway = Gateway()
    gateway.ledger.seed(KEY, PRODUCTION, START - 31 * 86_400)

    assert gateway.values(delivered(PRODUCTION + 900_000)) == [PRODUCTION + 900_000]
    assert gateway.wait(10).values(delivered(PRODUCTION * 2)) == [PRODUCTION + 900_000]


@pytest.mark.parametrize(
    ("when", "rise", "good"), [(0.0, 1_000, True), (0.0, 1_100, False), (START + 99, 1_100, False)]
)
def test_a_retained_value_of_unknown_age_may_have_risen_by_1_kwh(when: float, rise: float, good: bool) -> None:
    """A time in the future is none."""
    gateway = Gateway()
    gateway.ledger.seed(KEY, PRODUCTION, when)

    assert gateway.values(delivered(PRODUCTION + rise)) == [PRODUCTION + (rise if good else 0)]


def test_a_retained_sum_may_have_stood_still_for_a_quarter_of_an_hour() -> None:
    """The sum of 8 kW changes every 15 minutes, and the topic is a minute old: it has risen by 2 kWh at once."""
    gateway = Gateway()
    gateway.cap = 8_000.0
    pcu = "energy/production-pcu"
    gateway.ledger.seed(f"{pcu}/energy_delivered", 1e6, START - 60)

    assert gateway.values(delivered(1e6 + 2_000, device=pcu), source="energy") == [1e6 + 2_000]
    assert gateway.wait(900).values(delivered(1e6 + 9_000, device=pcu), source="energy") == [1e6 + 2_000]


@pytest.mark.parametrize(("age", "published"), [(60, 1e6), (30 * 86_400, 6e6)])
def test_a_retained_value_of_known_age_protects_against_spikes(age: float, published: float) -> None:
    gateway = Gateway()
    gateway.ledger.seed(KEY, 1e6, START - age)

    assert gateway.values(delivered(6e6)) == [published]


def test_a_fresh_install_after_a_month_begins_with_what_the_counter_says() -> None:
    gateway = Gateway()

    assert gateway.values(delivered(PRODUCTION)) == []
    assert gateway.wait(10).values(delivered(PRODUCTION)) == [PRODUCTION]


def test_a_state_that_is_older_than_the_retained_value_publishes_no_fall() -> None:
    gateway = Gateway().begin(delivered(1e6))
    gateway = gateway.restarted(gateway.wall + 600)
    gateway.ledger.seed(KEY, 1e6 + 500)

    assert [gateway.wait(10).values(delivered(1e6 + rise))[0] for rise in (490, 499, 501)] == [
        1e6 + 500,
        1e6 + 500,
        1e6 + 501,
    ]


def test_a_gateway_that_goes_back_a_little_raises_no_suspicion() -> None:
    """What it loses at a restart lies between our state and what was published later."""
    gateway = Gateway().begin(delivered(1e6))
    gateway = gateway.restarted(gateway.wall + 600)
    gateway.ledger.seed(KEY, 1e6 + 500)
    gateway.wait(10).guard(delivered(1e6 - 100))
    assert not [event for event in gateway.events if FROM_BROKER in event]


def test_a_retained_value_that_is_newer_leaves_the_offset() -> None:
    gateway = Gateway().begin(delivered(9e6))
    for value in (3e6, 3e6 + 1, 3e6 + 2):
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
    gateway = Gateway().begin(delivered(1e6))
    gateway = gateway.restarted(gateway.wall + 600)
    gateway.ledger.seed(KEY, 1e6 - 500)

    assert gateway.values(delivered(1e6 - 400)) == [1e6]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1.1e10, 1e300])
def test_a_retained_value_that_can_not_be_is_ignored(value: float) -> None:
    gateway = Gateway()
    gateway.ledger.seed(KEY, value)

    assert gateway.begin(delivered(5.0)).values(delivered(5.0)) == [5]


def test_an_account_outlives_json() -> None:
    state = CounterState(
        raw=1.5,
        offset=-2.0,
        changed_at=START,
        seen_at=START + 1,
        wraps=2,
        held=Held(Cause.WRAP, 1.0, START, 2.0, START, START, readings=2, wraps=-1),
        signed=True,
        peak=3.0,
        power=4.0,
    )
    ledger = Ledger({KEY: state})

    assert again_read(ledger).states == {KEY: state}


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
    ledger = of_file({"bad": damaged, KEY: {"raw": 5.0, "from_a_later_version": 1}})

    assert set(ledger.states) == {KEY}


@pytest.mark.parametrize("damaged", [None, 5, "text", [1], {}])
def test_a_damaged_state_is_no_state(damaged: object) -> None:
    assert of_file(damaged).states == {}


# Clocks


def test_without_a_clock_a_rise_is_accepted_in_1970() -> None:
    gateway = Gateway(wall=1_000.0).begin(delivered(1e6))

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
    gateway = Gateway().begin(delivered(9e6))
    for value in (3e6, 3e6 + 1):
        gateway.wait(10).guard(delivered(value))
    gateway.wall += 3_600

    assert gateway.wait(10).values(delivered(3e6 + 2)) == [9e6]
    assert gateway.wait(450).values(delivered(3e6 + 3)) == [9e6]
    assert gateway.wait(450).values(delivered(3e6 + 4)) == [9e6 + 2]


def test_a_clock_that_is_set_forward_by_days_makes_every_rise_possible_once() -> None:
    gateway = settled(delivered(1e6), delivered(2e6, Phase.L1))
    gateway.cap = 1_000
    gateway.wait(10).wall += 2 * 86_400

    assert gateway.values(delivered(1_300_000.0)) == [1_300_000]
    assert gateway.wait(10).values(delivered(1_600_000.0)) == [1_300_000]
    assert gateway.values(delivered(2_300_000.0, Phase.L1)) == [2_300_000]


def test_clocks_may_drift_apart_a_little() -> None:
    gateway = Gateway().begin(delivered(9e6))
    for value in (3e6, 3e6 + 1, 3e6 + 2):
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
