"""The messages for the broker: the newest payload of each retained topic, and which of them are still to be sent.

An outage costs no memory: each topic has one place here, however often its value changes meanwhile. Only a payload
that was *sent* counts as known to the broker, so one that was lost on the way is offered again. Messages that the
broker probably has, and that are repeated only to be sure, never delay new ones. Times are monotonic seconds that
the caller passes in.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from bridge.model import Message, Priority

ROUNDING_SHARE = 1e-6
"""Share of the dead band that rounding may take: as floats, 240.1 - 240.0 is a little less than 0.1."""
MAX_REPEATS_PER_ROUND = 100
"""Most repeated messages in a round. A new change waits for no more than these."""
JITTER_S = 0.25
"""Seconds by which polls may come too early or too late. A payload that comes so shortly before the end of its
topic's interval is sent at once. An earlier one waits until so many seconds after that end, so that the next poll
can replace it. So a value that is polled as often as it may be sent is sent with each poll."""
MAX_EVENTS = 100
"""Messages that are not retained and wait for the broker at most; then the oldest is dropped."""
OVERTAKE_S = 0.25
"""Seconds after which urgent changes overtake the rest of a round. Only rate limits and slow brokers make rounds
that long."""

DISCOVERY_PRIORITIES = (Priority.MIGRATE, Priority.DISCOVERY, Priority.CLEANUP)
"""Discovery is always resent whole and in one order, so that a message that breaks the connection can be found."""
REPEATED_PRIORITIES = (Priority.SITE, Priority.VALUE, Priority.AVAILABILITY)
"""The order of all other repeats. Availability comes last: the broker has to acknowledge each of these messages."""


@dataclass(slots=True)
class _Topic:
    """One topic. `sent` is the payload that the broker has, as far as we know; `refused` one that it can't accept.

    A topic that is `doubted` is sent again although the broker may have its payload, and one that is `repeated`
    although it has it. One that is `leaving` is forgotten once its payload is sent. `changed_at` is set while the
    broker lacks a change: since when. A change may be sent from `due_at` on.
    """

    newest: Message
    leaving: bool = False
    sent: str | None = None
    sent_at: float | None = None
    refused: str | None = None
    doubted: bool = False
    repeated: bool = False
    changed_at: float | None = None
    due_at: float = -math.inf

    @property
    def is_unsettled(self) -> bool:
        """Whether the broker lacks a change, or the topic is to be forgotten."""
        return self.changed_at is not None or self.leaving

    def take(self, message: Message, *, repeated: bool) -> None:
        """Replace the message, and send it even if nothing has changed where it is `repeated`."""
        if message.payload != self.refused:
            self.refused = None
        self.newest, self.leaving = message, False
        self.repeated |= repeated

    def note_sent(self, message: Message, now: float) -> None:
        """Note that a message was sent, which may not be the newest one any more."""
        self.sent, self.sent_at, self.doubted, self.changed_at = message.payload, now, False, None
        self.repeated &= self.newest is not message

    def changed(self, scale: float) -> bool:
        """Whether the newest payload differs from the sent one by the dead band times `scale`, or more."""
        payload = self.newest.payload
        if payload == self.sent:
            return False
        return self.sent is None or not _within(self.sent, payload, band=self.newest.deadband * scale)

    @property
    def recency(self) -> float:
        """A sort key that is greater for a value that was sent later. All other messages keep their order."""
        value = self.newest.priority in {Priority.SITE, Priority.VALUE}
        return self.sent_at if value and self.sent_at is not None else -math.inf

    def plan(self, now: float) -> None:
        """Decide when the newest payload, which came just now, may be sent.

        An empty one, which removes the topic, never waits, and neither does an urgent change.
        """
        newest, sent_at = self.newest, self.sent_at
        is_early = sent_at is not None and now < sent_at + newest.interval - JITTER_S
        if sent_at is None or not is_early or not newest.payload or self._is_urgent:
            self.due_at = -math.inf
        else:
            self.due_at = sent_at + newest.interval + JITTER_S

    @property
    def _is_urgent(self) -> bool:
        band = self.newest.urgent_change
        return band > 0 and self.sent is not None and not _within(self.sent, self.newest.payload, band=band)

    def wait(self, now: float) -> float:
        """Seconds until this may be sent."""
        return max(0.0, self.due_at - now)

    def waited(self, now: float) -> float:
        """Seconds for which a change waits that may be sent; 0 if there is none."""
        if self.changed_at is None:
            return 0.0
        due = self.changed_at if self.sent_at is None else max(self.changed_at, self.sent_at + self.newest.interval)
        return max(0.0, now - due)


class _Unsent:
    """The topics to send, by priority and in the order in which they were filed.

    `news` are those the broker does not have; `repeats` those that it probably has, repeated only to be sure.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self.news: dict[Priority, dict[str, _Topic]] = {priority: {} for priority in Priority}
        self.repeats: dict[Priority, dict[str, _Topic]] = {priority: {} for priority in Priority}

    def __len__(self) -> int:
        return sum(map(len, chain(self.news.values(), self.repeats.values())))

    def __contains__(self, topic: _Topic) -> bool:
        name, priority = topic.newest.topic, topic.newest.priority
        return (self.news[priority].get(name) or self.repeats[priority].get(name)) is topic

    def file(self, topic: _Topic, now: float) -> None:
        """Add the topic to `news`, to `repeats` or to neither. One that is there already keeps its place."""
        priority, name = topic.newest.priority, topic.newest.topic
        refused = topic.newest.payload == topic.refused
        is_resent = topic.repeated or (topic.doubted and priority in DISCOVERY_PRIORITIES)
        news = not refused and (is_resent or topic.changed(self._scale))
        topic.plan(now)
        if not news:
            topic.changed_at = None
        elif topic.changed_at is None:
            topic.changed_at = now
        for places, here in ((self.news, news), (self.repeats, topic.doubted and not news and not refused)):
            if here:
                places[priority].setdefault(name, topic)
            else:
                places[priority].pop(name, None)

    def remove(self, topic: _Topic) -> None:
        for places in (self.news, self.repeats):
            places[topic.newest.priority].pop(topic.newest.topic, None)

    def clear_order(self) -> None:
        """Remove repeats and discovery, so that they can be filed again in their right order."""
        for topics in (*self.repeats.values(), *(self.news[priority] for priority in DISCOVERY_PRIORITIES)):
            topics.clear()

    def round(self) -> Iterator[tuple[Priority, _Topic]]:
        """The topics of one round: all news by priority, then at most `MAX_REPEATS_PER_ROUND` repeats."""
        for priority, topics in self.news.items():
            yield from ((priority, topic) for topic in topics.values())
        repeats = (
            (priority, topic) for priority in REPEATED_PRIORITIES for topic in self.repeats[priority].values()
        )
        yield from islice(repeats, MAX_REPEATS_PER_ROUND)

    def urgent(self, priority: Priority) -> Sequence[tuple[Priority, _Topic]]:
        """The changes that may overtake topics of this priority.

        Those of a site that was announced overtake even discovery. Discovery, sites and states overtake all others.
        """
        if priority in DISCOVERY_PRIORITIES:
            flows = self.news[Priority.SITE].values()
            return [(Priority.SITE, topic) for topic in flows if topic.sent is not None]
        ahead = (*DISCOVERY_PRIORITIES, Priority.SITE, Priority.AVAILABILITY)
        return [(each, topic) for each in ahead for topic in self.news[each].values()]

    def next_due(self, now: float) -> float | None:
        """Seconds until one of these may be sent; `None` if there is none."""
        if any(self.repeats.values()):
            return 0.0
        soonest: float | None = None
        for topics in self.news.values():
            for topic in topics.values():
                wait = topic.wait(now)
                if not wait:
                    return 0.0
                soonest = wait if soonest is None else min(soonest, wait)
        return soonest


class RetainedTopics:
    """Keeps the retained messages that the broker should have, and offers those that it does not have.

    All dead bands are multiplied by `deadband_scale`; with 0 every change is sent. Without `repeats`, messages that
    ask to be repeated are sent only if they have changed, as all others.
    """

    def __init__(self, deadband_scale: float = 1.0, *, repeats: bool = True) -> None:
        self._scale, self._repeats = deadband_scale, repeats
        self._topics: dict[str, _Topic] = {}
        self._unsent = _Unsent(deadband_scale)
        self._rounds = 0
        self._now = -math.inf
        """The newest time that a caller has given."""

    def __len__(self) -> int:
        """The number of unsent topics, including those that wait for their interval."""
        return len(self._unsent)

    @property
    def topics(self) -> int:
        return len(self._topics)

    def put(self, message: Message, now: float = -math.inf) -> float:
        """Replace the message of this topic, sent or not. Returns how long a change of it has waited (seconds)."""
        self._now = max(now, self._now)
        topic = self._topics.get(message.topic)
        if topic is None:
            topic = self._topics[message.topic] = _Topic(message)
        elif topic.newest is message and not message.repeat and not topic.leaving:
            return topic.waited(self._now)
        if message.priority != topic.newest.priority:
            self._unsent.remove(topic)
        topic.take(message, repeated=message.repeat and self._repeats)
        self._unsent.file(topic, self._now)
        return topic.waited(self._now)

    def pending(self, now: float) -> Iterator[Message]:
        """The messages of one round: discovery by priority, then other changes, then repeats.

        The caller may call `put` meanwhile: a topic of this round is offered with its newest payload, a new topic
        in the next round. If the round takes long, by the times given to `sent`, urgent changes overtake the rest.
        `forget` ends the round, since discovery has to come first again.
        """
        current, self._now, looked_at = self._rounds, now, now
        for priority, topic in list(self._unsent.round()):
            turns = [(priority, topic)]
            if self._now >= looked_at + OVERTAKE_S:
                looked_at, turns = self._now, [*self._unsent.urgent(priority), *turns]
            for expected, chosen in turns:
                if self._rounds != current:
                    return
                message = chosen.newest
                if message.priority == expected and chosen in self._unsent and not chosen.wait(self._now):
                    yield message

    def next_due(self, now: float) -> float | None:
        """Seconds until `pending` offers something, 0 if it does already; `None` if nothing is unsent."""
        return self._unsent.next_due(now)

    def sent(self, message: Message, now: float) -> None:
        """Note that this message was handed to the broker. A newer payload of its topic stays unsent."""
        self._now = max(now, self._now)
        topic = self._topics.get(message.topic)
        if topic is None:
            return
        topic.note_sent(message, now)
        self._unsent.file(topic, self._now)
        if (not message.payload and not topic.newest.payload) or (topic.leaving and topic not in self._unsent):
            del self._topics[message.topic]

    def refuse(self, message: Message) -> None:
        """Note that this payload can't be sent. The topic is offered again with another one, or after `forget`."""
        topic = self._topics.get(message.topic)
        if topic is not None:
            topic.refused = message.payload
            self._unsent.file(topic, self._now)
            if topic.leaving and topic not in self._unsent:
                del self._topics[message.topic]

    def drop(self, belongs: Callable[[str], bool]) -> None:
        """Forget the topics that `belongs` selects: nothing more is sent to them."""
        for name in [name for name in self._topics if belongs(name)]:
            self._unsent.remove(self._topics.pop(name))

    def release(self, belongs: Callable[[str], bool]) -> None:
        """Like `drop`, but unsent changes of these topics are still sent before they are forgotten."""
        for name, topic in self._topics.items():
            topic.leaving |= belongs(name) and topic in self._unsent and topic.changed(self._scale)
        self.drop(lambda name: belongs(name) and not self._topics[name].leaving)

    def repeat(self, names: Iterable[str]) -> None:
        """Mark these topics as unsent: another program has written there, or the messages are lost."""
        for topic in filter(None, map(self._topics.get, names)):
            topic.sent = topic.sent_at = topic.refused = None
            self._unsent.file(topic, self._now)

    def hurry(self) -> None:
        """Let no change wait for its interval any more, since no later one will come."""
        for topic in self._topics.values():
            topic.due_at = -math.inf

    def clear(self) -> None:
        """Remove all published topics from the broker, with an empty message to each."""
        for topic in list(self._topics.values()):
            self.put(replace(topic.newest, payload="", content_type=None))

    def forget(self) -> None:
        """Mark everything as unsent, whatever the intervals: after a connection, a birth message or a heartbeat.

        Of the values, those that were sent last are repeated first: they may have been lost with a connection.
        """
        self._rounds += 1
        self._unsent.clear_order()
        for topic in sorted(self._topics.values(), key=lambda topic: topic.recency, reverse=True):
            topic.sent_at = topic.refused = None
            topic.doubted = True
            self._unsent.file(topic, self._now)


class Outbox(RetainedTopics):
    """The messages for the broker. Those that are not retained go first; each of them is sent, and sent once."""

    def __init__(self, deadband_scale: float = 1.0, *, repeats: bool = True) -> None:
        super().__init__(deadband_scale, repeats=repeats)
        self._events: deque[Message] = deque(maxlen=MAX_EVENTS)

    def __len__(self) -> int:
        return super().__len__() + len(self._events)

    def put(self, message: Message, now: float = -math.inf) -> float:
        if message.retain:
            return super().put(message, now)
        if message not in self._events:
            self._events.append(message)
        return 0.0

    def put_all(self, messages: Iterable[Message], now: float = -math.inf) -> float:
        """Put all these messages. Returns the longest time that a change of one of them has waited (seconds).

        Most messages of an answer are the same objects as the last time, and cost no more than a look here.
        """
        longest, topics = 0.0, self._topics
        for message in messages:
            topic = topics.get(message.topic)
            if topic is None or topic.newest is not message or message.repeat or topic.is_unsettled:
                longest = max(longest, self.put(message, now))
        return longest

    def pending(self, now: float) -> Iterator[Message]:
        yield from tuple(self._events)
        for message in super().pending(now):
            yield message
            yield from tuple(self._events)

    def next_due(self, now: float) -> float | None:
        return 0.0 if self._events else super().next_due(now)

    def sent(self, message: Message, now: float) -> None:
        if message.retain:
            super().sent(message, now)
        else:
            self._forget(message)

    def refuse(self, message: Message) -> None:
        if message.retain:
            super().refuse(message)
        else:
            self._forget(message)

    def _forget(self, event: Message) -> None:
        if self._events and self._events[0] is event:  # otherwise it was dropped meanwhile
            self._events.popleft()


def _within(sent: str, payload: str, *, band: float) -> bool:
    """Whether both payloads are numbers that differ by less than the band."""
    if band <= 0:
        return False
    try:
        old, new = float(sent), float(payload)
    except ValueError:
        return False
    if not (math.isfinite(old) and math.isfinite(new)):
        return False
    slack = max(band * ROUNDING_SHARE, 2 * math.ulp(max(abs(old), abs(new))))
    return abs(new - old) < band - slack
