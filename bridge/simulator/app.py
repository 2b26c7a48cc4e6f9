"""The simulator: a house, its gateway, Enphase's cloud, what goes wrong with them, and who asked for what."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from bridge.simulator import cloud
from bridge.simulator.cloud import Cloud
from bridge.simulator.exchange import Ask, Receive, Reply, Scope, Seen, Send, read
from bridge.simulator.faults import Faults
from bridge.simulator.gateway import Gateway
from bridge.simulator.homes import HOMES, Home
from bridge.simulator.physics import House
from bridge.simulator.tokens import Claim
from bridge.simulator.truth import Truth

PASSWORD = "correct horse"  # noqa: S105 (nobody's)
LOG = 20_000
"""Requests that are remembered."""


class Simulator:
    """A gateway and the cloud behind it, as an ASGI application; the package's docstring tells how to use it."""

    def __init__(
        self,
        home: Home | str = "three-phase",
        *,
        clock: Callable[[], float] = time.time,
        password: str = PASSWORD,
        seed: int = 0,
        start_hour: float | None = None,
        shared_cloud: Cloud | None = None,
    ) -> None:
        home = HOMES[home] if isinstance(home, str) else home
        house = House(home, start=clock(), seed=seed, start_hour=start_hour)
        self.gateway = Gateway(home, house, clock=clock)
        self.cloud = shared_cloud or Cloud(clock=clock, password=password)
        self.cloud.serials.add(home.serial)
        self.faults = Faults()
        self.requests: deque[Seen] = deque(maxlen=LOG)
        self._clock = clock

    @property
    def home(self) -> Home:
        return self.gateway.home

    @property
    def serial(self) -> str:
        return self.home.serial

    def token(self, **claims: Claim) -> str:
        """A new token for this gateway; any claim can be given another value (`exp`, `aud`, `enphaseUser`)."""
        return self.cloud.issue(self.serial, **claims)

    def truth(self) -> Truth:
        """What is so now, by the clock: compare with it."""
        return self.gateway.truth()

    def revoke_tokens(self) -> None:
        """From now on the gateway refuses all tokens that were made before, and has forgotten all sessions."""
        self.gateway.guard.revoke(self.cloud.last_number())

    def reboot(self, *, zeros: float = 0.0) -> None:
        """Sessions and stream are gone; for so many seconds all counters are 0. Order `booting` for the 503s."""
        self.gateway.reboot(zeros)

    def become(self, **changes: Any) -> None:
        """Another gateway, or other firmware, at the same address: any field of `Home`. The house stays."""
        self.gateway.home = replace(self.home, **changes)
        self.cloud.serials.add(self.serial)

    def count(self, path: str | None = None) -> int:
        """How often a path was asked for, or how many requests there were at all."""
        return sum(path in (None, seen.path) for seen in self.requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        ask = await read(scope, receive)
        reply = self._reply(ask)
        self.requests.append(Seen(self._clock(), ask.method, ask.path, reply.status))
        await reply.send(scope, receive, send)

    def _reply(self, ask: Ask) -> Reply:
        normal = partial((self.cloud if ask.path in cloud.PATHS else self.gateway).answer, ask)
        fault = self.faults.take(ask.path)
        return fault.reply(normal) if fault else normal()
