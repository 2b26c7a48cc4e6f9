"""The identity of a gateway: its serial number, its TLS key, what earlier runs knew of it, and its address."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from bridge.endpoints import BY_SOURCE
from bridge.gateway import mdns
from bridge.gateway.client import Gateway
from bridge.gateway.errors import KeyChanged
from bridge.model import DAY_S, NEVER, BridgeError, Facts, Rejected, SourceName
from bridge.settings import GatewaySettings
from bridge.state import IdentityState
from bridge.store import Store

STRANGE_KEY_S = 120.0
"""How long a gateway must show a changed TLS key before it may be pinned."""
CONFIRMATION_LOOK_S = 60.0
"""Seconds between two looks into the state folder for the owner's confirmation of a key."""
UNCONFIRMED = (
    "the gateway's TLS key changed with a newer firmware and was pinned anew: if it was updated, confirm that with "
    "`iqgateway2mqtt check --accept-key`; if not, something else may answer at its address"
)
SEARCH_PAUSE_S = 300.0
"""Least time between two searches for one gateway."""


class Identity:
    """Keeps what is known of one gateway, in memory and in the store. It is found by its serial number.

    `time` returns monotonic seconds, the same as those of `gateway`.
    """

    def __init__(
        self, settings: GatewaySettings, gateway: Gateway, store: Store, time: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._gateway, self._store, self._time = settings, gateway, store, time
        self._next_look = NEVER
        self.facts = Facts("")

    @property
    def serial(self) -> str | None:
        """The serial number that the gateway has told, or else the one in the settings or of an earlier run."""
        known = self.facts.serial or self._settings.serial or self._store.serial_of(self._settings.host)
        return known.lower() if known else None

    @property
    def known(self) -> bool:
        """Whether the gateway has told its serial number in this run."""
        return bool(self.facts.serial)

    @property
    def is_stranger(self) -> bool:
        """Whether no gateway has ever answered at the address in the settings, which may be wrong then."""
        return not self.known and self._store.serial_of(self._settings.host) is None

    def recognise(self, facts: Facts) -> None:
        """Accept what `/info` tells, if it comes from the gateway that the settings and the store know.

        Raises:
            Rejected: it is another gateway; its data must not be mixed with ours.
            KeyChanged: it has the right serial number and another TLS key.
        """
        wanted = self.facts.serial or (self._settings.serial or "").lower()
        if wanted and facts.serial != wanted:
            raise Rejected(
                f"gateway {facts.serial} answers at {self._settings.host} where {wanted} is expected: "
                "correct BRIDGE_GATEWAY__HOST or BRIDGE_GATEWAY__SERIAL"
            )
        self._check_key(facts)
        facts = replace(facts, mac=self._gateway.mac or self.facts.mac)
        if not self.known:
            self._gateway.identify(facts.serial)
            self._store.remember(self._settings.host, facts.serial)
            # Known from an earlier run: readings need not wait for /ivp/meters, nor storage for the inventory.
            state = self._state(facts.serial)
            facts = replace(facts, meters=state.meters, gear=state.gear, units=state.units)
        self.learn(facts)

    def learn(self, facts: Facts) -> None:
        """Keep what other endpoints are parsed with, for this run and the next one."""
        self.facts = facts
        state = self._state(facts.serial)
        changed = state.changed(
            firmware=facts.firmware, meters=facts.meters, gear=facts.gear, units=dict(facts.units)
        )
        if changed != state:
            self._store.save(facts.serial, changed)

    async def pin_new_key(self, now: float) -> bool:
        """Look at a gateway that shows a changed TLS key, and pin the key if it may be trusted.

        A nightly update can bring a new key, and the house must not stay dark. So a key is trusted that was shown
        for `STRANGE_KEY_S`, with no answer by the old one, together with the same serial number and newer firmware.
        This happens once a day at most, and the owner is asked to confirm it. Whoever holds the gateway's address
        for so long can fulfil that, except where `tls` is `strict`. A key that the owner has accepted is trusted at
        once.

        The gateway is shown nothing secret. `now` is the wall clock. Returns whether the key is pinned now.
        """
        serial, seen = self.serial or "", self._gateway.fingerprint
        known = self._store.reload(serial, IdentityState)
        accepted = known.key_pin is not None and seen == known.key_pin
        if seen is not None and not accepted and self._may_pin_anew(known, now):
            facts, shown = await _look(self._gateway, self.facts, now)
            if facts and (facts.serial, shown) == (serial, seen) and facts.is_newer(known.firmware):
                accepted = True
                anew = known.changed(
                    key_pin=seen, firmware=facts.firmware, key_pinned_anew=now, key_unconfirmed=True
                )
                self._store.save(serial, anew)
        if accepted:
            self._gateway.pin(seen)
        return accepted

    def _may_pin_anew(self, known: IdentityState, now: float) -> bool:
        since, last = self._gateway.key.strange_since, known.key_pinned_anew
        is_long = since is not None and self._time() - since >= STRANGE_KEY_S
        return self._settings.tls == "pin" and is_long and (last is None or now - last >= DAY_S)

    @property
    def problem(self) -> str | None:
        """A request to the owner to confirm a key that was pinned anew; `None` if there is no such key."""
        serial = self.serial
        if serial is None or self._settings.tls == "off":
            return None
        if self._state(serial).key_unconfirmed and self._time() >= self._next_look:
            self._next_look = self._time() + CONFIRMATION_LOOK_S
            self._store.reload(serial, IdentityState)
        return UNCONFIRMED if self._state(serial).key_unconfirmed else None

    def _check_key(self, facts: Facts) -> None:
        """Trust on first use: the key that `/info` came with must be the one known of this serial number."""
        seen = self._gateway.fingerprint
        state = self._state(facts.serial)
        if seen is None or self._settings.tls == "off":
            return
        if state.key_pin not in (None, seen):
            self._gateway.pin(state.key_pin)
            raise KeyChanged(seen)
        self._gateway.pin(seen)
        if state.key_pin is None:
            self._store.save(facts.serial, state.changed(key_pin=seen))

    def _state(self, serial: str) -> IdentityState:
        return self._store.load(serial, IdentityState)


async def _look(gateway: Gateway, known: Facts, now: float) -> tuple[Facts | None, str | None]:
    """Read `/info` without trusting the TLS key. Returns its facts and the key; `None` if there is no answer."""
    info = BY_SOURCE[SourceName.INFO]
    try:
        answer, shown = await gateway.probe_untrusted(info.request)
        return info.parse(answer.body, known, now).facts, shown
    except BridgeError:
        return None, None


class Rediscovery:
    """Searches over mDNS, by its serial number, for a gateway that does not answer at its address.

    The search needs the zeroconf library, which is an extra. `is_possible` is False where TLS is not verified, as
    whoever announced the serial number would get the token. It is also False for an address of this machine, which
    belongs to a tunnel or a simulator, unless `search` names interfaces.

    `time` returns monotonic seconds.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        time: Callable[[], float],
        log: "logging.LoggerAdapter[Any]",
        search: mdns.Search,
    ) -> None:
        self._settings, self._time, self._log, self._search = settings, time, log, search
        self.is_possible = settings.tls != "off" and (bool(search.interfaces) or not _is_local(settings.base_url))
        self._next = time()

    async def find(self, serial: str) -> str | None:
        """Search for the gateway, unless the last search was less than `SEARCH_PAUSE_S` ago.

        Returns its base URL, or `None` if it was not found.
        """
        if not self.is_possible or self._time() < self._next:
            return None
        self._next = self._time() + SEARCH_PAUSE_S
        try:
            host = await self._search.find(serial)
        except ModuleNotFoundError:
            self.is_possible = False
            return None
        except OSError as error:
            self._log.debug("mDNS can't be used: %s", error)
            return None
        found = self._settings.model_copy(update={"host": host}).base_url if host else None
        same_scheme = found is not None and found.split(":")[0] == self._settings.base_url.split(":")[0]
        return found if same_scheme else None


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
