"""Whether the bridge is alive: each part of it that runs for ever promises when it will show itself again."""

from collections.abc import Callable

FOREVER = float("inf")
LONGEST = 300.0
"""Seconds that one piece of work may take. A request to a gateway that hangs, the token check that follows it and
the look at a changed key are over in less than four minutes."""


class Pulse:
    """One part's promise. `time` tells monotonic seconds."""

    def __init__(self, name: str, time: Callable[[], float]) -> None:
        self.name, self._time = name, time
        self._until = FOREVER
        self.resting = False

    def work(self) -> None:
        """Something begins that can't take longer than `LONGEST`."""
        self.rest(0.0)

    def rest(self, seconds: float) -> None:
        """Nothing will be heard for so long: that is as it should be."""
        self.resting = seconds > 0
        self._until = self._time() + seconds + LONGEST

    def wait(self) -> None:
        """For something that may never come, such as a broker."""
        self.resting = False
        self._until = FOREVER

    @property
    def stuck(self) -> bool:
        """Whether the promise is broken: then only a new start helps."""
        return self._time() > self._until
