"""The retained tree of one gateway: what its answers and its health become."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bridge import discovery
from bridge.endpoints import ENDPOINTS
from bridge.model import Facts, Message, Rank, Reading
from bridge.service.diagnostics import SOURCE, Diagnostics
from bridge.service.sources import Source
from bridge.topics import Names, Tree, online

Publish = Callable[[Message], None]
SITE = "site"
DIAGNOSTICS_INTERVAL = 60.0
"""Seconds between publications of the diagnostics that change with every answer."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a gateway is shown: topics, payloads, discovery (`None`: none), and what people call it."""

    names: Names
    payload: str = "both"
    announcement: discovery.Settings | None = None
    url: str = ""
    site: str = "Enphase"
    suffix: str = ""


class Mirror:
    """Keeps one gateway's topics as they should be. The outbox drops what has not changed."""

    def __init__(self, serial: str, style: Style, sources: Mapping[str, Source], publish: Publish) -> None:
        self._serial, self._style, self._sources, self._publish = serial, style, sources, publish
        order = [*(endpoint.source for endpoint in ENDPOINTS), SITE, SOURCE]
        self._tree = Tree(style.names, serial, order, style.payload)
        self._announced: tuple[int, Facts] | None = None
        self._discovered: set[str] = set()
        self._leaving: set[str] = set()
        """Discovery topics to be cleared; until the broker has been told, the store remembers them."""
        self._has_site = False
        self._cleared: set[str] = set()
        """Sources that the gateway does not have: their topics were cleared once."""
        self._diagnosed: tuple[tuple[object, ...], float] | None = None

    def show(self, source: str, readings: Sequence[Reading], when: float) -> bool:
        """The values of a good answer that came at `when` (seconds since 1970).

        Whether they may leave now: not where discovery has to tell of them first.
        """
        self._send(self._tree.values(source, readings, datetime.fromtimestamp(when, UTC)))
        return self._announced is not None and self._announced[0] == self._tree.version

    def complete(self, source: str, flows: Sequence[Reading], when: float) -> None:
        """What follows them: the documents, and the site where it has changed."""
        self._send(self._tree.documents(source, datetime.fromtimestamp(when, UTC)))
        if flows:
            self._has_site = True
            self._update(SITE, flows, when)

    def health(self, now: float, *, is_online: bool, powered_by: str | None = None) -> None:
        """State of the gateway and of its sources; no source is fresh where the gateway is gone.

        The site is as fresh as the source that its powers come from.
        """
        names = self._style.names
        self._publish(online(names.state(self._serial), is_online))
        if self._has_site:
            power = self._sources.get(powered_by or "")
            powered = power is not None and bool(power.online(now))
            self._publish(online(names.availability(self._serial, SITE), powered and is_online))
        for name, source in self._sources.items():
            fresh = source.online(now)
            topic = names.availability(self._serial, name)
            if fresh is not None:
                self._cleared.discard(name)
                self._publish(online(topic, fresh and is_online))
            elif name not in self._cleared:
                self._cleared.add(name)
                self._publish(Message(topic, "", qos=1, rank=Rank.AVAILABILITY))

    def diagnose(self, diagnostics: Diagnostics, now: float, when: float) -> None:
        """What the bridge knows of the gateway: what a person must know at once, the rest each minute."""
        urgent = diagnostics.urgent
        if self._diagnosed and self._diagnosed[0] == urgent and now - self._diagnosed[1] < DIAGNOSTICS_INTERVAL:
            return
        self._diagnosed = (urgent, now)
        self._update(SOURCE, list(diagnostics.readings()), when)

    def readings(self, kinds: tuple[str, ...]) -> tuple[Reading, ...]:
        """The newest readings of devices whose names begin so."""
        return tuple(self._tree.readings(kinds))

    def restore(self, kept: object) -> bool:
        """Take over what an earlier run has published. False where there is nothing."""
        kept = kept if isinstance(kept, dict) else {}
        # What the broker was not told of leaving is taken for announced: it is told again, from the beginning.
        self._discovered = _topics(kept.get("discovered")) | _topics(kept.get("leaving"))
        return self._tree.restore(kept.get("rows"))

    @property
    def devices(self) -> Iterable[str]:
        """Those that have been published."""
        return {row.device for row in self._tree.rows()}

    def dump(self) -> dict[str, Any]:
        """What has been published, for the store."""
        discovery = {"discovered": sorted(self._discovered), "leaving": sorted(self._leaving)}
        return {"rows": self._tree.dump(), **discovery}

    def announce(self, facts: Facts) -> bool:
        """Discovery, where there is something new to announce. True where there was."""
        style = self._style
        version = (self._tree.version, replace(facts, clock_offset=0.0))
        if version == self._announced:
            return False
        self._announced = version
        messages: list[Message] = []
        if style.announcement is not None:
            about = discovery.Gateway(facts, style.url, style.site, style.suffix)
            messages += discovery.announce(style.announcement, about, self._tree.rows(), self._tree.gone())
        topics = {message.topic for message in messages}
        gone = self._discovered - topics  # told once: `sent` says what comes next
        self._send(self._first_word(topic) for topic in sorted(gone))
        self._send(messages)
        self._discovered, self._leaving = topics, (self._leaving | gone) - topics
        return True

    def sent(self, message: Message) -> bool:
        """The broker has it. True where that was the last of what had to go."""
        if message.topic not in self._leaving:
            return False
        if message.payload:
            self._publish(discovery.farewell(message.topic))
            return False
        self._leaving.discard(message.topic)
        return not self._leaving

    def _first_word(self, topic: str) -> Message:
        """The first that is said to a discovery topic which has to go."""
        form = self._style.announcement
        handed_over = form is not None and discovery.of_other_form(form, topic)
        return discovery.handover(topic) if handed_over else discovery.farewell(topic)

    def _update(self, source: str, readings: Sequence[Reading], when: float) -> None:
        self._send(self._tree.update(source, readings, datetime.fromtimestamp(when, UTC)))

    def _send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._publish(message)


def _topics(kept: object) -> set[str]:
    """From the store, which anybody may have edited."""
    return {topic for topic in kept if isinstance(topic, str)} if isinstance(kept, list) else set()
