"""Publishes the events of one gateway, and keeps over restarts which of them were told."""

from collections.abc import Iterable, Sequence

from bridge.events import EventsState, GatewayEvent, GatewayEvents
from bridge.gateway.client import Gateway
from bridge.gateway.errors import CloudRejected, TokenRejected
from bridge.model import BridgeError, Event, Message, Reading, SourceName
from bridge.pipeline import Processed
from bridge.service.publisher import Publish
from bridge.service.sources import Source, Sources
from bridge.store import Store


class EventOutput:
    """Publishes to `topic` what happens at the gateway `serial`.

    Events that the broker did not get in an earlier run are published again.
    """

    def __init__(self, serial: str, topic: str, store: Store, publish: Publish) -> None:
        self._serial, self._topic, self._store, self._publish = serial, topic, store, publish
        self._kept = store.load(serial, EventsState)
        self._events = GatewayEvents(serial, self._kept)
        self._tell(self._kept.untold)

    def answered(
        self,
        source: Source,
        processed: Processed,
        flows: Sequence[Reading],
        *,
        lines: Sequence[Event],
        sources: Sources,
        gateway: Gateway,
    ) -> None:
        """Publish what a good answer shows: its readings, the site's `flows` and what is in force after it, and
        `lines` of the log.

        `/info` needs no token, and answers before all else does, so it shows nothing of how the gateway is. Nor do
        the flows and what is in force before every source was asked: the best source may come late in the round.
        """
        now, firmware = processed.answer.now, processed.answer.facts.firmware
        told = (*processed.events, *lines)
        readings = (*((*flows, *processed.in_force) if sources.tried else ()), *processed.readings)
        if source.name is SourceName.INFO:
            self._tell(self._events.observe(readings, told, now=now, firmware=firmware))
            return
        was_starting, sources.was_starting = sources.was_starting, False
        self._tell(self._events.observe(readings, told, now=now, firmware=firmware, was_starting=was_starting))
        expires, problem = gateway.tokens.expires, gateway.tokens.problem
        self._tell(self._events.observe_token(refused=None, now=now, expires=expires, problem=problem))

    def refused(self, error: BridgeError, now: float) -> None:
        """Publish that the gateway refuses the token, or the cloud gives none, at `now` (unix time)."""
        if isinstance(error, TokenRejected | CloudRejected):
            self._tell(self._events.observe_token(refused=str(error), now=now))

    def sent(self, message: Message) -> None:
        """Note that the broker has a message, which may be an event."""
        if message.topic == self._topic:
            self._events.sent(message.payload)
            self._tell(())

    def _tell(self, events: Iterable[GatewayEvent]) -> None:
        """Publish events, after keeping what a restart has to know of them."""
        if self._events.state is not self._kept:
            self._kept = self._events.state
            self._store.save(self._serial, self._kept)
        self._publish(event.message(self._topic) for event in events)
