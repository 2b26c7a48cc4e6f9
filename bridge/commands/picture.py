"""How a home is shown to people: its flows in words, and the picture that `demo` draws of it."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bridge.model import Message, Priority
from bridge.site.flows import SITE_PREFIX


class FlowLine(NamedTuple):
    """A flow of a site for people: its power with the unit, its direction in a word, and what else is known.

    The arrow points to the right if the power comes into the home, and to the left if it leaves the home.
    """

    name: str
    arrow: str
    power: str
    words: str

    def __str__(self) -> str:
        return f"{self.name} {self.power}{f' ({self.words})' if self.words else ''}"


INTO, OUT_OF = "→", "←"
DIRECTIONS = {
    "solar": ("", "standby"),
    "grid": ("imports", "exports"),
    "battery": ("discharges", "charges"),
    "generator": ("", ""),
    "home": ("", ""),
}
"""The flows in their order, with the words for a positive and a negative power."""


def flows(values: Mapping[str, str]) -> Iterator[FlowLine]:
    """The flows of a site or home, from the payloads of its value topics by the rest of their topics.

    `grid/power` is such a rest. A flow without a power has no line.
    """
    for name, words in DIRECTIONS.items():
        if (text := values.get(f"{name}/power")) is None:
            continue
        watts = 0 if text == "None" else round(float(text))
        arrow = "" if name == "home" or not watts else INTO if watts > 0 else OUT_OF
        charge = values.get(f"{name}/soc", "None")
        details = (words[watts < 0] if watts else "", "" if charge == "None" else f"{charge} %")
        power = "not known" if text == "None" else f"{abs(watts)} W"
        yield FlowLine(name, arrow, power, ", ".join(filter(None, details)))


UNITS = {"power": "W", "soc": "%"}
"""The values that the picture shows, by the last level of their topics, with their units."""
SHOWN_DEVICES = (
    *("meter/production/", "meter/net-consumption/", "meter/storage/", "meter/"),
    *("live/pv/", "live/grid/", "live/storage/", "live/load/", "live/"),
    *("energy/", "inverter/"),
)
"""Beginnings of their topics, in the order of the picture. The tree has hundreds of topics."""
CELL_LETTERS, GAP_LETTERS = 39, 2
"""Least width of a column of topics, which fits `meter/net-consumption/l1/power`, and of the gap between two."""


class Picture:
    """The home at this moment, as lines for a terminal of any size: its flows first, then meters and live data."""

    def __init__(self, title: str, look_on: Sequence[str]) -> None:
        """`look_on` are the parts of a command that shows all topics."""
        self._title, self._look_on = title, look_on
        self._place = ""
        """The beginning of all topics of the gateway."""
        self._values: dict[str, str] = {}
        """Payloads by the rest of their topics."""
        self._topics: set[str] = set()
        self._messages = 0

    def add(self, message: Message) -> None:
        """Take a message that was sent. Those that remove a topic change nothing, so that a last picture stays."""
        self._messages += 1
        if not message.payload:
            return
        self._topics.add(message.topic)
        if message.content_type is None and message.priority in {Priority.SITE, Priority.VALUE}:
            base, serial, rest = message.topic.split("/", 2)
            self._place = f"{base}/{serial}/"
            self._values[rest] = message.payload

    def lines(self, width: int, height: int, *, warnings: Iterable[str] = (), ended: bool = False) -> list[str]:
        """The picture in so many columns and lines. One that has `ended` does not say how to look on or stop."""
        parts = ((rest.partition(SITE_PREFIX), text) for rest, text in self._values.items())
        site = {flow: text for (before, _, flow), text in parts if not before}
        head = [
            *textwrap.wrap(self._title, width),
            "",
            *(f"{flow.name.title():10}{flow.arrow or ' '} {flow.power:>8}  {flow.words}" for flow in flows(site)),
            "",
            *textwrap.wrap(f"Topics below {self._place}" if self._place else "Nothing has been sent yet", width),
        ]
        foot = ["", *textwrap.wrap(f"{len(self._topics)} topics, {self._messages} messages", width)]
        if self._look_on and not ended:
            foot += ["Watch from another terminal:", *_in_lines(self._look_on, width)]
        if not ended:
            foot += ["Ctrl-C stops it."]
        foot += [line for text in warnings for line in textwrap.wrap(text, width)]
        return [*head, *self._table(width, height - len(head) - len(foot)), *foot]

    def _table(self, width: int, room: int) -> Iterator[str]:
        """The topics with their values, in as many columns as fit."""
        columns = max(1, (width + GAP_LETTERS) // (CELL_LETTERS + GAP_LETTERS))
        cell = (width - GAP_LETTERS * (columns - 1)) // columns
        shown = sorted(filter(None, map(_place_of, self._values)))[: columns * max(0, room)]
        cells = [_cell(topic, self._values[topic], cell) for _, _, topic in shown]
        rows = -(-len(cells) // columns)
        for row in range(rows):
            yield (" " * GAP_LETTERS).join(cells[row::rows])


def _place_of(topic: str) -> tuple[int, int, str] | None:
    """The place of a topic in the order of the picture, phases after their sum; `None` if it is not shown."""
    if topic.rpartition("/")[2] not in UNITS:
        return None
    places = (place for place, beginning in enumerate(SHOWN_DEVICES) if topic.startswith(beginning))
    return next(((place, topic.count("/"), topic) for place in places), None)


def _cell(topic: str, payload: str, width: int) -> str:
    """A topic on the left and its value on the right. A topic that is too long is cut."""
    value = payload if payload == "None" else f"{round(float(payload))} {UNITS[topic.rpartition('/')[2]]}"
    room = width - len(value) - 1
    return f"{topic if len(topic) <= room else topic[: room - 1] + '…':{room}} {value}"


def _in_lines(parts: Sequence[str], width: int) -> Iterator[str]:
    """The parts of a command in lines that a shell joins again."""
    line = ""
    for part in parts:
        if line and len(f"{line} {part} \\") > width:
            yield f"{line} \\"
            line = " "
        line = f"{line} {part}" if line else part
    yield line
