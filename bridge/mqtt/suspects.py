"""Finds out what a broker closes the connection over: RabbitMQ and others do so instead of refusing."""

TIMES = 3
"""Connections in a row that must end over the same thing: whoever takes over our client id ends them at random."""
ENOUGH = 3
"""Topics of one area that were found guilty until all of it is left out."""


class Suspects:
    """Judges topics by what came of them when nothing else was under way. `Broker` does the asking.

    Guilty is what the broker closed the connection over several times in a row. An area is a topic's first two
    levels: where none of it was ever taken, as with access rules, a few guilty topics stand for all of them.
    """

    def __init__(self) -> None:
        self._last, self._times = "", 0
        self._guilty: set[str] = set()
        self._innocent: set[str] = set()

    def acquit(self, topic: str) -> None:
        """The broker has taken it, so it takes others of this area."""
        self._innocent.add(area(topic))

    def accuse(self, topic: str) -> bool:
        """The connection ended over it, or over nothing known (an empty text). True where it is guilty now."""
        self._times = self._times + 1 if topic == self._last else 1
        self._last = topic
        guilty = bool(topic) and self._times >= TIMES
        if guilty:
            self._guilty.add(topic)
        return guilty

    def guilty(self, topic: str) -> bool:
        """Whether it had better not be sent, or subscribed to."""
        if topic in self._guilty:
            return True
        whole = area(topic)
        return whole not in self._innocent and sum(area(other) == whole for other in self._guilty) >= ENOUGH

    def forget(self) -> None:
        """The broker may have other rules by now."""
        self._last, self._times = "", 0
        self._guilty.clear()
        self._innocent.clear()


def area(topic: str) -> str:
    """A topic's first two levels, such as `homeassistant/device`."""
    return "/".join(topic.split("/")[:2])
