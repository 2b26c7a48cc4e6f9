"""The outbox: whatever happens meanwhile, the broker gets the newest values, and nothing is sent twice."""

import math
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.model import Message, Priority
from bridge.outbox import JITTER_S, MAX_REPEATS_PER_ROUND, Outbox

POWER_MESSAGE = Message("enphase/1/meter/production/power", "100", deadband=1)


def drain(outbox: Outbox, now: float = 0) -> list[Message]:
    """Take all messages that may be sent now, in as many rounds as needed."""
    taken: list[Message] = []
    while round_ := one_round(outbox, now):
        taken += round_
    return taken


def one_round(outbox: Outbox, now: float = 0) -> list[Message]:
    taken = []
    for message in outbox.pending(now):
        outbox.sent(message, now)
        taken.append(message)
    return taken


def topics(messages: list[Message]) -> list[str]:
    return [message.topic for message in messages]


def payloads(outbox: Outbox, now: float = 0) -> list[str]:
    return [message.payload for message in drain(outbox, now)]


def test_a_message_is_offered_until_it_is_sent() -> None:
    outbox = Outbox()
    outbox.put(POWER_MESSAGE)

    assert list(outbox.pending(0)) == [POWER_MESSAGE] == list(outbox.pending(0))
    outbox.sent(POWER_MESSAGE, 0)

    assert list(outbox.pending(0)) == []
    assert (len(outbox), outbox.topics) == (0, 1)


def test_an_outage_costs_one_place_per_topic_and_ends_with_the_newest_value() -> None:
    outbox = Outbox()
    for watt in range(1000):
        outbox.put(replace(POWER_MESSAGE, payload=str(watt)))

    assert (len(outbox), outbox.topics) == (1, 1)
    assert payloads(outbox) == ["999"]


def test_an_event_that_is_put_again_before_it_is_sent_is_sent_once() -> None:
    outbox, event = Outbox(), Message("enphase/1/events", "{}", qos=1, retain=False)
    for message in (event, replace(event)):
        outbox.put(message)
    assert drain(outbox) == [event]


@pytest.mark.parametrize(
    ("deadband", "sent", "newer", "counts"),
    [
        (1, "100", "100.999", False),
        (1, "100", "101", True),
        (1, "100", "99", True),
        (1, "-0.4", "0.4", False),
        (0.1, "240.0", "240.1", True),
        (0.1, "240.1", "240.0", True),
        (0.1, "0.3", "0.2", True),
        (0.1, "240.0", "240.099", False),
        (0.01, "49.99", "50.0", True),
        (0.001, "1234567.891", "1234567.892", True),
        (1, "123456789", "123456790", True),
        (0, "1", "1.001", True),
        (1, "100", "None", True),
        (1, "None", "100", True),
        (1, "OFF", "ON", True),
        (1, "100", "", True),
        (1, "nan", "inf", True),
        (1, "None", "None", False),
    ],
)
def test_dead_band(deadband: float, sent: str, newer: str, counts: bool) -> None:
    outbox = Outbox()
    outbox.put(Message("a/b", sent, deadband=deadband))
    drain(outbox)

    outbox.put(Message("a/b", newer, deadband=deadband))

    assert payloads(outbox) == ([newer] if counts else [])


@pytest.mark.parametrize(("scale", "moves"), [(0, [0.001, 5]), (1, [5]), (10, [])])
def test_the_dead_band_is_scaled(scale: float, moves: list[float]) -> None:
    outbox = Outbox(scale)
    outbox.put(POWER_MESSAGE)
    drain(outbox)

    for watt in (100.001, 105):
        outbox.put(replace(POWER_MESSAGE, payload=str(watt)))
        assert payloads(outbox) == ([str(watt)] if any(watt - 100 == pytest.approx(move) for move in moves) else [])


def test_a_slow_drift_is_measured_from_what_was_sent() -> None:
    outbox = Outbox()
    outbox.put(POWER_MESSAGE)
    drain(outbox)

    published = []
    for tenth in range(1, 31):
        outbox.put(replace(POWER_MESSAGE, payload=f"{100 + tenth / 10:g}"))
        published += payloads(outbox)

    assert published == ["101", "102", "103"]


def test_a_resend_tells_the_newest_value_though_it_is_within_the_band() -> None:
    outbox = Outbox()
    outbox.put(POWER_MESSAGE)
    drain(outbox)
    outbox.put(replace(POWER_MESSAGE, payload="100.4"))

    outbox.forget()

    assert payloads(outbox) == ["100.4"]


def test_a_value_that_comes_back_before_it_is_sent_is_not_sent() -> None:
    outbox = Outbox()
    outbox.put(POWER_MESSAGE)
    drain(outbox)
    outbox.put(replace(POWER_MESSAGE, payload="None"))
    outbox.put(POWER_MESSAGE)

    assert payloads(outbox) == []


def test_what_is_put_while_a_message_is_on_its_way_stays_unsent() -> None:
    outbox = Outbox()
    outbox.put(POWER_MESSAGE)
    (leaving,) = outbox.pending(0)
    outbox.put(replace(POWER_MESSAGE, payload="200"))

    outbox.sent(leaving, 0)

    assert payloads(outbox) == ["200"]


def test_discovery_goes_first_then_the_site_then_states_then_values_in_the_order_they_came() -> None:
    outbox = Outbox()
    priorities = [Priority.VALUE, Priority.AVAILABILITY, Priority.DISCOVERY, Priority.SITE, Priority.VALUE]
    for number, priority in enumerate([*priorities, Priority.DISCOVERY]):
        outbox.put(Message(f"topic/{number}", "x", priority=priority))

    assert [message.topic for message in outbox.pending(0)] == [f"topic/{n}" for n in (2, 5, 3, 1, 0, 4)]


SITE_MESSAGE = Message("enphase/1/site/grid/power", "7", priority=Priority.SITE)
STATE_MESSAGE = Message("enphase/1/state", "online", priority=Priority.AVAILABILITY)


def test_under_a_rate_limit_the_site_and_then_states_overtake_values_that_wait() -> None:
    """One message a second: 100 values take more than a minute and a half, but the grid's power does not."""
    outbox = Outbox()
    for message in (SITE_MESSAGE, STATE_MESSAGE):
        outbox.put(message)
    drain(outbox)
    values = [Message(f"value/{number}", "1") for number in range(100)]
    for message in values:
        outbox.put(message)
    told = []
    for now, message in enumerate(outbox.pending(0)):
        outbox.sent(message, now)
        told.append(message.topic)
        if now in {10, 20}:
            outbox.put(replace(STATE_MESSAGE, payload=str(now)))
            outbox.put(replace(SITE_MESSAGE, payload=str(now)))

    assert [told.index(SITE_MESSAGE.topic), told.index(STATE_MESSAGE.topic)] == [11, 12]
    assert told[21:23] == [SITE_MESSAGE.topic, STATE_MESSAGE.topic]
    assert [topic for topic in told if topic.startswith("value/")] == topics(values)


def test_the_site_overtakes_discovery_once_it_is_announced() -> None:
    outbox = Outbox()
    configs = [Message(f"config/{number}", "{}", priority=Priority.DISCOVERY) for number in range(4)]
    for message in (*configs, SITE_MESSAGE):
        outbox.put(message)
    for now, message in enumerate(first := outbox.pending(0)):
        outbox.sent(message, now)
        if now == 1:
            outbox.put(replace(SITE_MESSAGE, payload="8"))
    assert list(first) == []
    assert not len(outbox)
    outbox.forget()
    told = []
    for now, message in enumerate(outbox.pending(10), 10):
        outbox.sent(message, now)
        told.append(message.topic)
        if now == 11:
            outbox.put(replace(SITE_MESSAGE, payload="9"))
    assert told == ["config/0", "config/1", SITE_MESSAGE.topic, "config/2", "config/3"]


def test_a_site_that_changes_all_the_time_stops_nothing_else() -> None:
    outbox = Outbox()
    outbox.put(SITE_MESSAGE)
    drain(outbox)
    for number in range(10):
        outbox.put(Message(f"value/{number}", "1"))
    told = []
    for now, message in enumerate(outbox.pending(0)):
        outbox.sent(message, now)
        told.append(message.topic)
        outbox.put(replace(SITE_MESSAGE, payload=f"{now} W"))
    assert [topic for topic in told if topic != SITE_MESSAGE.topic] == [f"value/{number}" for number in range(10)]
    assert told.count(SITE_MESSAGE.topic) == 8  # before each value, after the first two


def test_it_is_known_how_long_a_change_waits() -> None:
    outbox = Outbox()
    document = Message("enphase/1/meter/production", "1", interval=60)
    assert [outbox.put(document, now) for now in (100, 130)] == [0, 30]
    assert outbox.put(replace(document, payload="2"), 150) == 50
    outbox.sent(replace(document, payload="2"), 160)
    assert outbox.put(replace(document, payload="2"), 500) == 0
    outbox.sent(replace(document, payload="2"), 500)
    assert [outbox.put(replace(document, payload="3"), now) for now in (510, 559, 570)] == [0, 0, 10]
    outbox.forget()
    assert outbox.put(replace(document, payload="2"), 1_000) == 0  # the broker has this one, it is only repeated


def test_a_round_offers_newest_payloads_and_leaves_new_topics_to_the_next() -> None:
    outbox = Outbox()
    outbox.put(Message("a", "1"))
    outbox.put(Message("b", "1"))
    round_ = outbox.pending(0)
    outbox.sent(next(round_), 0)

    outbox.put(Message("b", "2"))
    outbox.put(Message("c", "1"))
    outbox.put(Message("d/config", "{}", priority=Priority.DISCOVERY))

    assert [message.payload for message in round_] == ["2"]
    assert [message.topic for message in outbox.pending(0)] == ["d/config", "b", "c"]


def test_a_birth_message_in_the_middle_of_a_round_starts_again_with_discovery() -> None:
    outbox = Outbox()
    outbox.put(Message("config", "{}", priority=Priority.DISCOVERY))
    outbox.put(Message("value", "1"))
    round_ = outbox.pending(0)
    outbox.sent(next(round_), 0)

    outbox.forget()

    assert list(round_) == []
    assert [message.topic for message in outbox.pending(0)] == ["config", "value"]


def test_what_has_changed_goes_before_what_is_told_once_more_and_that_begins_with_what_was_sent_last() -> None:
    outbox = Outbox()
    for second, topic in enumerate("cadb"):
        outbox.put(Message(topic, "1"))
        drain(outbox, now=second)
    outbox.put(Message("d", "2"))
    outbox.put(Message("new", "1"))
    outbox.put(Message("config", "{}", priority=Priority.DISCOVERY))

    outbox.forget()

    assert topics(drain(outbox, now=10)) == ["config", "d", "new", "b", "a", "c"]


def test_discovery_is_told_once_more_in_its_own_order() -> None:
    outbox = Outbox()
    for second, topic in enumerate(["gateway", "meter", "phase"]):
        outbox.put(Message(topic, "{}", priority=Priority.DISCOVERY))
        drain(outbox, now=second)

    outbox.forget()

    assert topics(drain(outbox, now=10)) == ["gateway", "meter", "phase"]


def test_what_changes_while_it_waits_to_be_told_once_more_waits_no_longer() -> None:
    outbox = Outbox()
    for topic in "abc":
        outbox.put(Message(topic, "1"))
    drain(outbox)
    outbox.forget()

    outbox.put(Message("c", "2"))
    outbox.put(Message("b", "2"))
    outbox.put(Message("b", "1"))  # the broker probably has this message

    assert topics(drain(outbox)) == ["c", "a", "b"]


def test_telling_everything_once_more_holds_nothing_up_and_comes_to_an_end() -> None:
    outbox = Outbox()
    many = [Message(f"topic/{number}", "1") for number in range(3 * MAX_REPEATS_PER_ROUND)]
    for message in many:
        outbox.put(message)
    drain(outbox)
    outbox.forget()

    told = []
    for number in range(3):
        outbox.put(Message("live", str(number)))
        first, *rest = one_round(outbox)
        assert first == Message("live", str(number))
        told += rest

    assert told == many
    assert len(outbox) == 0


def test_a_change_waits_for_few_repeated_messages() -> None:
    """A round of a thousand messages takes seconds with a slow broker, and a live value must not wait for all of
    them.
    """
    outbox = Outbox()
    for number in range(1000):
        outbox.put(Message(f"topic/{number}", "1"))
    drain(outbox)

    outbox.forget()

    assert 10 <= len(one_round(outbox)) <= 200


def test_what_is_let_go_is_not_told_once_more_but_what_is_new_is() -> None:
    outbox = Outbox()
    for topic in ("state", "value"):
        outbox.put(Message(topic, "1"))
    drain(outbox)
    outbox.put(Message("state", "2"))
    outbox.forget()

    outbox.release(lambda _: True)

    assert topics(drain(outbox)) == ["state"]
    assert outbox.topics == 0


def test_no_value_is_told_until_discovery_has_been_told_once_more() -> None:
    outbox = Outbox()
    configs = [
        Message(f"config/{number}", "{}", priority=Priority.DISCOVERY)
        for number in range(MAX_REPEATS_PER_ROUND + 1)
    ]
    for message in configs:
        outbox.put(message)
    drain(outbox)
    outbox.put(POWER_MESSAGE)
    outbox.forget()

    assert one_round(outbox) == [*configs, POWER_MESSAGE]


def test_discovery_is_always_told_in_the_same_order() -> None:
    """Whatever has changed: a message that breaks the connection is found because it does so again and again."""
    outbox = Outbox()
    configs = [Message(f"config/{number}", "{}", priority=Priority.DISCOVERY) for number in range(4)]
    for message in configs:
        outbox.put(message)
    for message in configs[:2]:
        outbox.sent(message, 0)
    newer = replace(configs[2], payload="[]")
    outbox.put(newer)
    outbox.forget()

    assert one_round(outbox) == [*configs[:2], newer, configs[3]]


def test_states_are_told_once_more_after_the_values_and_hold_no_new_value_up() -> None:
    outbox = Outbox()
    states = [Message(f"state/{number}", "online", priority=Priority.AVAILABILITY) for number in range(2)]
    for message in (*states, POWER_MESSAGE):
        outbox.put(message)
    drain(outbox)
    outbox.forget()

    outbox.put(Message("new", "1"))
    outbox.put(replace(states[1], payload="offline"))

    assert topics(drain(outbox)) == ["state/1", "new", POWER_MESSAGE.topic, "state/0"]


def test_a_message_with_an_interval_is_held_back_not_lost() -> None:
    outbox = Outbox()
    document = Message("enphase/1/live/system", '{"a": 1}', interval=60)
    outbox.put(document)
    assert outbox.next_due(10) == 0
    drain(outbox, now=10)
    assert outbox.next_due(10) is None

    outbox.put(replace(document, payload='{"a": 2}'))
    outbox.put(replace(document, payload='{"a": 3}'))

    assert payloads(outbox, now=30) == []
    assert (len(outbox), outbox.next_due(30)) == (1, 40 + JITTER_S)
    assert payloads(outbox, now=70) == []
    assert outbox.next_due(71) == 0
    assert payloads(outbox, now=71) == ['{"a": 3}']


def test_what_is_polled_as_often_as_it_may_be_sent_is_sent_with_each_poll() -> None:
    """However late an answer is: none waits because of the one before, or it gives way to the next."""
    outbox, delays, sent = Outbox(), [0.0, 0.003, 0.2, 0.1, 0.003, 0.0, 0.9, 0.003, 0.003], []
    for second, delay in enumerate(delays):
        assert payloads(outbox, second) == []
        outbox.put(Message("document", f"{second}", interval=1), now := second + delay)
        for message in outbox.pending(now):
            outbox.sent(message, now + 0.0025)
            sent.append(message.payload)
    assert sent == ["0", "1", "2", "3", "4", "5", "6", "8"]


def test_a_pace_gives_the_value_of_a_poll_and_not_the_one_before_it() -> None:
    outbox, sent = Outbox(), []
    for poll in range(0, 100, 5):
        outbox.put(replace(POWER_MESSAGE, payload=f"{100 + poll}", interval=30), poll)
        sent += [(poll, payload) for payload in payloads(outbox, poll)]
    assert sent == [(0, "100"), (30, "130"), (60, "160"), (90, "190")]


def test_a_great_change_does_not_wait_for_the_pace() -> None:
    outbox, energy = Outbox(), Message("energy", "1000", deadband=1, interval=60, urgent_change=10)
    told, steps = [], ["1000", "1009.9", "1010", "1019", "1000", "None", "7"]
    for now, payload in zip(range(0, 35, 5), steps, strict=True):
        outbox.put(replace(energy, payload=payload), now)
        told += [(now, payload) for payload in payloads(outbox, now)]
    assert told == [(0, "1000"), (10, "1010"), (20, "1000"), (25, "None"), (30, "7")]
    outbox.put(replace(energy, payload="9"), 31)
    assert (payloads(outbox, 60), payloads(outbox, 91)) == ([], ["9"])


def test_nothing_waits_for_its_pace_when_the_bridge_stops() -> None:
    outbox = Outbox()
    for watt, sent in {"100": ["100"], "200": []}.items():
        outbox.put(replace(POWER_MESSAGE, payload=watt, interval=30), 0)
        assert payloads(outbox, 1) == sent
    outbox.hurry()
    assert payloads(outbox, 2) == ["200"]


def test_what_asks_for_it_is_sent_again_though_it_has_not_moved() -> None:
    told_again = replace(POWER_MESSAGE, repeat=True)
    outbox = Outbox()
    for message in (told_again, told_again, POWER_MESSAGE, told_again, replace(told_again, payload="100.1")):
        outbox.put(message)
        outbox.put(message)
        assert payloads(outbox) == ([message.payload] if message.repeat else [])
    outbox.put(told_again)
    (leaving,) = outbox.pending(0)
    outbox.put(replace(told_again))
    outbox.sent(leaving, 0)
    assert payloads(outbox) == ["100"]


def test_nothing_is_sent_again_where_the_owner_does_not_want_it() -> None:
    outbox = Outbox(repeats=False)
    for payload in ("100", "100", "100.1", "101"):
        outbox.put(replace(POWER_MESSAGE, payload=payload, repeat=True))
    assert payloads(outbox) == ["101"]
    outbox.put(replace(POWER_MESSAGE, payload="101.1", repeat=True))
    assert payloads(outbox) == []


def test_a_clear_does_not_wait_for_the_interval() -> None:
    outbox = Outbox()
    outbox.put(Message("a", "1", interval=60))
    drain(outbox)

    outbox.put(Message("a", "", interval=60))

    assert payloads(outbox, now=1) == [""]


def test_forgetting_ends_the_intervals_too() -> None:
    outbox = Outbox()
    outbox.put(Message("a", "1", interval=60))
    drain(outbox)

    outbox.forget()

    assert payloads(outbox, now=1) == ["1"]


def test_a_cleared_topic_leaves_memory_once_the_broker_knows() -> None:
    outbox = Outbox()
    outbox.put(POWER_MESSAGE)
    drain(outbox)

    outbox.put(replace(POWER_MESSAGE, payload=""))
    outbox.forget()
    assert payloads(outbox) == [""]
    assert (len(outbox), outbox.topics) == (0, 0)

    outbox.forget()
    assert payloads(outbox) == []


def test_a_topic_of_an_earlier_life_can_be_cleared() -> None:
    outbox = Outbox()
    outbox.put(Message("enphase/1/inverter/9/power", ""))

    assert payloads(outbox) == [""]


def test_everything_can_be_cleared() -> None:
    outbox = Outbox()
    outbox.put(Message("value", "1"))
    outbox.put(Message("config", "{}", qos=1, priority=Priority.DISCOVERY, content_type="application/json"))
    drain(outbox)
    outbox.put(Message("unsent", "1"))

    outbox.clear()

    cleared = drain(outbox)
    assert {message.topic for message in cleared} == {"config", "value", "unsent"}
    assert {message.payload for message in cleared} == {""}
    assert (cleared[0].topic, cleared[0].qos) == ("config", 1)
    assert outbox.topics == 0


def test_a_refused_message_blocks_nobody_and_comes_back_when_it_has_changed() -> None:
    outbox = Outbox()
    large = Message("large", "x" * 9)
    outbox.put(large)
    outbox.put(Message("small", "x"))
    outbox.refuse(large)

    outbox.put(large)
    assert [message.topic for message in drain(outbox)] == ["small"]

    outbox.put(replace(large, payload="x" * 8))
    assert payloads(outbox) == ["x" * 8]


def test_a_payload_that_was_refused_is_offered_again_once_it_had_changed() -> None:
    outbox = Outbox()
    outbox.put(POWER_MESSAGE)
    outbox.refuse(POWER_MESSAGE)
    outbox.put(replace(POWER_MESSAGE, payload="None"))
    outbox.put(POWER_MESSAGE)

    assert payloads(outbox) == ["100"]


def test_a_value_that_comes_while_its_clear_is_on_the_way_is_not_lost() -> None:
    outbox = Outbox()
    outbox.put(replace(POWER_MESSAGE, payload=""))
    (leaving,) = outbox.pending(0)
    outbox.put(POWER_MESSAGE)

    outbox.sent(leaving, 0)

    assert payloads(outbox) == ["100"]


def test_a_refused_message_is_tried_again_at_another_broker() -> None:
    outbox = Outbox()
    outbox.put(POWER_MESSAGE)
    outbox.refuse(POWER_MESSAGE)

    outbox.forget()

    assert payloads(outbox) == ["100"]


def test_what_it_has_never_heard_of_is_no_fault() -> None:
    outbox = Outbox()
    outbox.sent(POWER_MESSAGE, 0)
    outbox.refuse(POWER_MESSAGE)

    assert (len(outbox), outbox.topics) == (0, 0)


def test_a_topic_may_change_its_rank() -> None:
    outbox = Outbox()
    outbox.put(Message("a", "1"))
    outbox.put(Message("a", "1", priority=Priority.AVAILABILITY))

    assert [message.priority for message in drain(outbox)] == [Priority.AVAILABILITY]
    assert len(outbox) == 0


def test_a_poll_costs_nothing_where_nothing_has_changed() -> None:
    outbox = Outbox()
    for number in range(20_000):
        outbox.put(Message(f"topic/{number}", "1"))
    drain(outbox)

    for _ in range(20_000):  # if each step looked at all topics, the test would take 800 million steps
        assert next(outbox.pending(0), None) is None
        assert outbox.next_due(0) is None


NUMBERS = st.decimals(-3, 3, places=1).map(str)
PAYLOADS = st.one_of(NUMBERS, st.sampled_from(["None", "ON", "OFF", ""]))


class AnyInterleaving(RuleBasedStateMachine):
    """The outbox with a broker that remembers its messages, and with a plain dict of the newest values."""

    @initialize(scale=st.sampled_from([0.0, 1.0, 2.5]))
    def start(self, scale: float) -> None:
        self.outbox = Outbox(scale)
        self.scale = scale
        self.now = 0.0
        self.newest: dict[str, Message] = {}
        self.broker = {"cleared": "from an earlier life"}
        self.given: dict[str, tuple[str, float]] = {}
        self.refused: dict[str, str] = {}
        self.told: dict[str, str] = {}

    @rule(
        topic=st.sampled_from(["plain", "banded", "slow", "cleared"]),
        payload=PAYLOADS,
        priority=st.sampled_from(Priority),
    )
    def put(self, topic: str, payload: str, priority: Priority) -> None:
        band = 1.0 if topic == "banded" else 0.0
        interval = 30.0 if topic == "slow" else 0.0
        self.put_message(Message(topic, payload, priority=priority, deadband=band, interval=interval))

    def put_message(self, message: Message) -> None:
        self.newest[message.topic] = message
        if self.refused.get(message.topic) != message.payload:
            self.refused.pop(message.topic, None)
        self.outbox.put(message)

    @rule(meanwhile=st.none() | PAYLOADS, arrives=st.booleans(), birth=st.booleans())
    def one_leaves(self, meanwhile: str | None, arrives: bool, birth: bool) -> None:
        """There is one sender, so only one message is under way while other things happen."""
        message = next(self.outbox.pending(self.now), None)
        if message is None:
            return
        self.check_worth(message)
        if meanwhile is not None:
            self.put_message(replace(message, payload=meanwhile))
        if birth:
            self.a_new_connection(lost=False)
        if arrives:
            self.deliver(message)

    @rule()
    def the_first_is_refused(self) -> None:
        message = next(self.outbox.pending(self.now), None)
        if message is not None:
            self.refused[message.topic] = message.payload
            self.outbox.refuse(message)

    @rule(lost=st.booleans())
    def a_new_connection(self, lost: bool) -> None:
        if lost:  # a broker without persistence was restarted
            self.broker.clear()
        self.given.clear()
        self.refused.clear()
        self.outbox.forget()

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.newest)
    @rule()
    def everything_arrives(self) -> None:
        self.now += 31
        for _ in range(100):
            batch = list(self.outbox.pending(self.now))
            order = [self.place(message) for message in batch]
            assert order == sorted(order)
            for message in batch:
                self.check_worth(message)
                self.deliver(message)
            if not batch:
                break
        else:
            pytest.fail("it never ends")
        for topic, message in self.newest.items():
            if topic not in self.refused:
                assert self.same(self.broker.get(topic, ""), message)
        assert len(self.outbox) == 0
        assert self.outbox.next_due(self.now) is None

    def deliver(self, message: Message) -> None:
        if message.payload:
            self.broker[message.topic] = message.payload
        else:
            self.broker.pop(message.topic, None)
        self.given[message.topic] = (message.payload, self.now)
        self.told[message.topic] = message.payload
        self.outbox.sent(message, self.now)

    def check_worth(self, message: Message) -> None:
        """A message is new to the broker, not refused, and not too early. A clear may come twice: removed topics
        are forgotten.
        """
        assert self.refused.get(message.topic) != message.payload
        payload, at = self.given.get(message.topic, ("", -math.inf))
        if message.payload and payload:
            assert not self.same(payload, message)
            assert self.now - at >= message.interval - JITTER_S

    def place(self, message: Message) -> tuple[int, bool, int]:
        """The place of a message in a round."""
        repeated = self.repeated(message)
        if message.priority < Priority.SITE:
            return message.priority, False, 0
        repeats = (Priority.SITE, Priority.VALUE, Priority.AVAILABILITY)
        return Priority.SITE, repeated, repeats.index(message.priority) if repeated else message.priority

    def repeated(self, message: Message) -> bool:
        """Whether the broker probably has this message already. Cleared topics are forgotten."""
        told = self.told.get(message.topic, "")
        return told != "" and self.same(told, message)

    def same(self, held: str, message: Message) -> bool:
        if held == message.payload:
            return True
        try:
            moved = abs(float(held) - float(message.payload))
        except ValueError:
            return False
        return round(moved, 6) < message.deadband * self.scale

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.outbox) <= self.outbox.topics <= 4


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=200, stateful_step_count=60)


def test_messages_that_are_not_retained_are_all_sent_once_and_first() -> None:
    outbox = Outbox()
    outbox.put(Message("value", "1"))
    events = [Message("response", text, retain=False) for text in ("accepted", "sent", "failed")]
    for event in events:
        outbox.put(event)
    assert (outbox.next_due(0), len(outbox)) == (0.0, 4)
    sent = []
    for message in outbox.pending(0):
        outbox.sent(message, 0)
        sent.append(message.payload)
        if message.payload == "1":
            outbox.put(Message("response", "confirmed", retain=False))
    assert sent == ["accepted", "sent", "failed", "1", "confirmed"]
    outbox.forget()
    assert [message.payload for message in outbox.pending(0)] == ["1"]


def test_a_broker_that_refuses_one_does_not_get_it_again() -> None:
    outbox = Outbox()
    outbox.put(Message("response", "accepted", retain=False))
    (message,) = outbox.pending(0)
    outbox.refuse(message)
    assert not list(outbox.pending(0))


def test_an_outage_costs_a_hundred_of_them_at_most() -> None:
    outbox = Outbox()
    for number in range(150):
        outbox.put(Message("response", str(number), retain=False))
    assert [message.payload for message in outbox.pending(0)] == [str(number) for number in range(50, 150)]


def test_a_released_topic_that_is_put_again_stays() -> None:
    """A gateway leaves the settings and comes back before the broker has its last state, the same message."""
    outbox, state = Outbox(), Message("enphase/1/state", "offline", qos=1)
    outbox.put(state, 0)
    outbox.release(lambda _: True)
    outbox.put_all([state], 1)
    for message in outbox.pending(2):
        outbox.sent(message, 2)
    outbox.forget()
    assert list(outbox.pending(3)) == [state]
