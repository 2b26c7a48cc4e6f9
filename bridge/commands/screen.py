"""What the demo shows: a live table in a terminal, plain lines elsewhere."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge.model import Message, Rank

WORTH_SHOWING = (
    "/live/pv/",
    "/live/grid/",
    "/live/storage/",
    "/live/load/",
    "/meter/production/",
    "/meter/net-consumption/",
    "/meter/storage/",
    "/energy/production/",
    "/gateway/inverters",
    "/gateway/firmware",
)
"""What a person wants to see first; the tree has hundreds of topics."""

QUANTITIES = frozenset(
    {"power", "soc", "energy_today", "energy_lifetime", "inverters_total", "inverters_reporting", "firmware"}
)


BORDER = 12
"""Lines of the screen that the table's values can't have."""


class Screen:
    """Call `show` with each message that was sent."""

    def __init__(self, title: str, look_on: str) -> None:
        self._title, self._look_on = title, look_on
        self._values: dict[str, str] = {}
        self._count = 0
        self._topics: set[str] = set()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        print(f"Simulated home: {self._title}\nLook on from another terminal:  {self._look_on}\nCtrl-C stops it.\n")
        if sys.stdout.isatty():
            self._live = Live(get_renderable=self._table, console=Console(), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, message: Message) -> None:
        self._count += 1
        self._topics.add(message.topic)
        if self._live is None:
            if message.rank > Rank.FAREWELL:
                print(message.topic, message.payload, flush=True)
        elif message.content_type is None and self._wanted(message.topic):
            self._values[message.topic] = message.payload

    def _wanted(self, topic: str) -> bool:
        return topic.rpartition("/")[2] in QUANTITIES and any(part in topic for part in WORTH_SHOWING)

    def _table(self) -> Group:
        table = Table("topic", "value")
        table.columns[1].justify = "right"
        room = max(5, Console().size.height - BORDER)
        for topic in sorted(self._values, key=self._order)[:room]:
            table.add_row(topic, self._values[topic])
        note = f"{len(self._topics)} topics, {self._count} messages.  {self._look_on}"
        return Group(table, Text(note))

    def _order(self, topic: str) -> tuple[int, str]:
        place = next((i for i, part in enumerate(WORTH_SHOWING) if part in topic), len(WORTH_SHOWING))
        return place, topic
