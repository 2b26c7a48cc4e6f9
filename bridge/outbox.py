"""The retained tree as a map: the newest payload of each topic, and which of them are still to be sent.

An outage costs no memory: a topic has one place here, however often its value changes meanwhile. Only what
was *sent* is remembered, so a value that was dropped on the way is offered again. What the broker has, as far as we
know, and is told once more only to be sure, never holds up what is new. Times come from the caller.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from bridge.model import Message, Rank

ROUNDING = 1e-6
"""Share of the dead band that decimals may lose in a float: 240.1 - 240.0 is a little less than 0.1."""
REPEATS = 100
"""Topics that are told once more in a round: what comes meanwhile waits no longer."""

DISCOVERY = (Rank.HANDOVER, Rank.DISCOVERY, Rank.FAREWELL)
"""Always new, and always in the same order, so that a broker that hangs up over one of them gives it away."""
REPEATED = (Rank.VALUE, Rank.AVAILABILITY)
"""In this order: states are many in a fleet, and each has to be acknowledged."""


@dataclass(slots=True)
class _Topic:
    """`sent` is what the broker has, as far as we know; `refused` what it can't have.

    One that is `doubted` is told again though the broker may have it. One that is `leaving` is forgotten once it is
    sent.
    """

    newest: Message
    leaving: bool = False
    sent: str | None = None
    sent_at: float | None = None
    refused: str | None = None
    doubted: bool = False

    def changed(self, scale: float) -> bool:
        payload = self.newest.payload
        if payload == self.sent:
            return False
        return self.sent is None or not _within(self.sent, payload, band=self.newest.deadband * scale)

    @property
    def recency(self) -> float:
        """Greater for what was sent later. Discovery keeps its order."""
        value = self.newest.rank == Rank.VALUE
        return self.sent_at if value and self.sent_at is not None else -math.inf

    def wait(self, now: float) -> float:
        """Seconds until this may be sent. A clear never waits."""
        if self.sent_at is None or not self.newest.payload:
            return 0.0
        return max(0.0, self.sent_at + self.newest.interval - now)


class Outbox:
    """What the broker's retained tree ought to be. `deadband_scale` 0 sends every change."""

    def __init__(self, deadband_scale: float = 1.0) -> None:
        self._scale = deadband_scale
        self._topics: dict[str, _Topic] = {}
        self._news: dict[Rank, dict[str, _Topic]] = {rank: {} for rank in Rank}
        self._repeats: dict[Rank, dict[str, _Topic]] = {rank: {} for rank in Rank}
        self._rounds = 0

    def __len__(self) -> int:
        """How many topics are unsent, those held back by their interval included."""
        return sum(map(len, chain(self._news.values(), self._repeats.values())))

    @property
    def topics(self) -> int:
        return len(self._topics)

    def put(self, message: Message) -> None:
        """The newest wins, whatever became of those before it."""
        topic = self._topics.get(message.topic)
        if topic is None:
            topic = self._topics[message.topic] = _Topic(message)
        elif topic.newest is message:
            return
        if message.rank != topic.newest.rank:
            self._take_out(topic)
        if message.payload != topic.refused:
            topic.refused = None
        topic.newest, topic.leaving = message, False
        self._file(topic)

    def pending(self, now: float) -> Iterator[Message]:
        """A round of what to send now: discovery by rank, then what has changed, then what is told once more.

        The caller may `put` between two steps: a topic of this round is offered with its newest payload, a
        new one in the next round. `forget` ends the round, since discovery has to go first again.
        """
        current = self._rounds
        for rank, topic in list(self._round()):
            if self._rounds != current:
                return
            message = topic.newest
            if message.rank == rank and self._is_unsent(topic) and not topic.wait(now):
                yield message

    def _round(self) -> Iterator[tuple[Rank, _Topic]]:
        """Discovery is repeated whole and in its order, of the rest no more than `REPEATS` topics."""
        for rank, topics in self._news.items():
            yield from ((rank, topic) for topic in topics.values())
        repeats = ((rank, topic) for rank in REPEATED for topic in self._repeats[rank].values())
        yield from islice(repeats, REPEATS)

    def next_due(self, now: float) -> float | None:
        """Seconds until `pending` offers something (0: it does already), `None` where nothing is unsent."""
        if any(self._repeats.values()):
            return 0.0
        soonest: float | None = None
        for topics in self._news.values():
            for topic in topics.values():
                wait = topic.wait(now)
                if not wait:
                    return 0.0
                soonest = wait if soonest is None else min(soonest, wait)
        return soonest

    def sent(self, message: Message, now: float) -> None:
        """Exactly this payload was handed to the broker; a newer one stays unsent."""
        topic = self._topics.get(message.topic)
        if topic is None:
            return
        topic.sent, topic.sent_at, topic.doubted = message.payload, now, False
        self._file(topic)
        if (not message.payload and not topic.newest.payload) or (topic.leaving and not self._is_unsent(topic)):
            del self._topics[message.topic]

    def refuse(self, message: Message) -> None:
        """This payload can't be sent: it is offered again only when it has changed, or after `forget`."""
        topic = self._topics.get(message.topic)
        if topic is not None:
            topic.refused = message.payload
            self._file(topic)
            if topic.leaving and not self._is_unsent(topic):
                del self._topics[message.topic]

    def drop(self, belongs: Callable[[str], bool]) -> None:
        """These topics are somebody else's: nothing more is sent to them."""
        for name in [name for name in self._topics if belongs(name)]:
            self._take_out(self._topics.pop(name))

    def release(self, belongs: Callable[[str], bool]) -> None:
        """The same, but for what the broker does not have yet."""

        def is_there(topic: _Topic) -> bool:
            return not (self._is_unsent(topic) and topic.changed(self._scale))

        self.drop(lambda name: belongs(name) and is_there(self._topics[name]))
        for name, topic in self._topics.items():
            topic.leaving |= belongs(name)

    def repeat(self, names: Iterable[str]) -> None:
        """Somebody else has written to these topics: they are unsent again."""
        for topic in filter(None, map(self._topics.get, names)):
            topic.sent = topic.sent_at = topic.refused = None
            self._file(topic)

    def clear(self) -> None:
        """Nothing of what was published ought to be there any more."""
        for topic in list(self._topics.values()):
            self.put(replace(topic.newest, payload="", content_type=None))

    def forget(self) -> None:
        """A new connection, a birth message or a heartbeat: everything is unsent again, intervals or not.

        What was sent last may have been lost with the connection, so of the values it is repeated first.
        """
        self._rounds += 1
        for topics in (*self._repeats.values(), *(self._news[rank] for rank in DISCOVERY)):
            topics.clear()
        for topic in sorted(self._topics.values(), key=lambda topic: topic.recency, reverse=True):
            topic.sent_at = topic.refused = None
            topic.doubted = True
            self._file(topic)

    def _is_unsent(self, topic: _Topic) -> bool:
        name, rank = topic.newest.topic, topic.newest.rank
        return (self._news[rank].get(name) or self._repeats[rank].get(name)) is topic

    def _take_out(self, topic: _Topic) -> None:
        for places in (self._news, self._repeats):
            places[topic.newest.rank].pop(topic.newest.topic, None)

    def _file(self, topic: _Topic) -> None:
        """Put the topic where it belongs; one that is there already keeps its place in the order."""
        rank, name = topic.newest.rank, topic.newest.topic
        refused = topic.newest.payload == topic.refused
        news = not refused and (topic.changed(self._scale) or (topic.doubted and rank in DISCOVERY))
        for places, here in ((self._news, news), (self._repeats, topic.doubted and not news and not refused)):
            if here:
                places[rank].setdefault(name, topic)
            else:
                places[rank].pop(name, None)


def _within(sent: str, payload: str, *, band: float) -> bool:
    """Whether a number has moved by less than the band. What is no number is never within."""
    if band <= 0:
        return False
    try:
        old, new = float(sent), float(payload)
    except ValueError:
        return False
    if not (math.isfinite(old) and math.isfinite(new)):
        return False
    slack = max(band * ROUNDING, 2 * math.ulp(max(abs(old), abs(new))))
    return abs(new - old) < band - slack
