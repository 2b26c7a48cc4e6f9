"""The simulator as an ASGI application: a house, its gateway, Enphase's cloud, faults, a request log."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bridge.simulator import cloud
from bridge.simulator.cloud import Claim, SimulatedCloud
from bridge.simulator.faults import Faults
from bridge.simulator.gateway import SimulatedGateway
from bridge.simulator.house import House
from bridge.simulator.http import HttpReply, HttpRequest, LoggedRequest, read_request
from bridge.simulator.presets import HOMES, Home
from bridge.simulator.truth import Truth

if TYPE_CHECKING:
    from bridge.http_server import Receive, Scope, Send

PASSWORD = "correct horse"  # noqa: S105 (of no real account)
MAX_LOGGED_REQUESTS = 20_000
"""The log keeps this many requests, the newest ones."""


class Simulator:
    """A gateway and the cloud behind it, as an ASGI application. The package's docstring shows how to use it."""

    def __init__(
        self,
        home: Home | str = "three-phase",
        *,
        clock: Callable[[], float] = time.time,
        password: str = PASSWORD,
        seed: int = 0,
        start_hour: float | None = None,
        shared_cloud: SimulatedCloud | None = None,
    ) -> None:
        home = HOMES[home] if isinstance(home, str) else home
        self.house: House = House(home, start=clock(), seed=seed, start_hour=start_hour)
        self.gateway = SimulatedGateway(home, self.house, clock=clock)
        self.cloud = shared_cloud or SimulatedCloud(clock=clock, password=password)
        self.cloud.serials.add(home.serial)
        self.faults = Faults()
        self.requests: deque[LoggedRequest] = deque(maxlen=MAX_LOGGED_REQUESTS)
        self._clock = clock

    @property
    def home(self) -> Home:
        return self.gateway.home

    @property
    def serial(self) -> str:
        return self.home.serial

    def token(self, **claims: Claim) -> str:
        """Return a new token for this gateway. Arguments replace claims (`exp`, `aud`, `enphaseUser`, ...)."""
        return self.cloud.issue(self.serial, **claims)

    def truth(self) -> Truth:
        """Return the true values of this moment, to compare published values with."""
        return self.gateway.truth()

    def revoke_tokens(self) -> None:
        """Make the gateway refuse all tokens that were issued so far, and end all sessions."""
        self.gateway.guard.revoke(self.cloud.last_number())

    def reboot(self, *, zeros: float = 0.0) -> None:
        """End sessions and the live stream; for `zeros` seconds all powers and counters are 0.

        The gateway goes on answering. Add the fault `booting` to get the 503 answers of a reboot as well.
        """
        self.gateway.reboot(zeros)

    def become(self, **changes: Any) -> None:
        """Replace fields of `Home`: other firmware or another gateway at the same address. The house stays."""
        self.gateway.home = replace(self.home, **changes)
        self.cloud.serials.add(self.serial)

    def count(self, path: str | None = None) -> int:
        """Return the number of logged requests for `path`, or of all requests."""
        return sum(path in (None, seen.path) for seen in self.requests)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return
        request = await read_request(scope, receive)
        reply = self._reply(request)
        self.requests.append(LoggedRequest(self._clock(), request.method, request.path, reply.status))
        await reply.send(scope, receive, send)

    def _reply(self, request: HttpRequest) -> HttpReply:
        normal = partial((self.cloud if request.path in cloud.CLOUD_PATHS else self.gateway).answer, request)
        fault = self.faults.take(request.path)
        return fault.reply(normal) if fault else normal()
