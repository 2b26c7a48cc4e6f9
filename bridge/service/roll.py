"""The devices of one gateway, and their end: one that makes up serial numbers must not fill our memory."""

from collections.abc import Iterable, Sequence

from bridge.counters import Event
from bridge.model import Reading

MOST_DEVICES = 3_000
"""A site of 1,000 inverters may have all of them replaced twice."""
MOST_GONE = MOST_DEVICES // 2
"""Of those that have gone, how many a restart takes over: they may come back, and their counters must go on."""


class Roll:
    """Whoever is on it stays there, also when it has gone: else new names could come for ever."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._devices = set(known)
        self._is_told = False

    def __contains__(self, device: object) -> bool:
        return device in self._devices

    def admitted(self, readings: Sequence[Reading]) -> Sequence[Reading]:
        """Without those of devices that are too many."""
        for device in dict.fromkeys(reading.device for reading in readings):
            if len(self._devices) >= MOST_DEVICES:
                break
            self._devices.add(device)
        return [reading for reading in readings if reading.device in self._devices]

    def complaint(self, readings: Sequence[Reading], admitted: Sequence[Reading]) -> Sequence[Event]:
        """What a log should say where any are left out: once, for their number only grows."""
        if self._is_told or len(admitted) == len(readings):
            return ()
        self._is_told = True
        stranger = next(reading.device for reading in readings if reading.device not in self._devices)
        text = (
            f"{stranger} and all devices that are new after it are left out: the gateway has named {MOST_DEVICES} "
            "devices, more than any home has; a restart forgets most of those that have gone"
        )
        return (Event(text, warning=True),)
