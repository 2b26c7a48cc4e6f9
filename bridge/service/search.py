"""A gateway that does not answer at its address is looked for by its serial number, announced over mDNS."""

import logging
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from bridge.config import GatewaySettings
from bridge.gateway.neighbours import ALL, whereabouts

PAUSE = 300.0
"""Seconds between two searches."""
LISTEN = 4.0
"""Seconds that a gateway has to announce itself."""
INTERFACES = ALL


class Search:
    """Where one gateway is. Nobody is found without the zeroconf library, which is an extra.

    With TLS unverified there is no search: whoever announced the serial number would get the token. Nor is there
    one for a gateway behind an address of this machine itself: that is a tunnel or a simulator.
    """

    def __init__(
        self, settings: GatewaySettings, time: Callable[[], float], log: "logging.LoggerAdapter[Any]"
    ) -> None:
        self._settings, self._time, self._log = settings, time, log
        self._is_possible = settings.tls != "off" and (bool(INTERFACES) or not _is_here(settings.base_url))
        self._next = time()

    async def url(self, serial: str) -> str | None:
        """Its base URL, if it is somewhere else than the settings say."""
        if not self._is_possible or self._time() < self._next:
            return None
        self._next = self._time() + PAUSE
        try:
            host = await whereabouts(serial, LISTEN, INTERFACES)
        except ModuleNotFoundError:
            self._is_possible = False
            return None
        except OSError as error:
            self._log.debug("no mDNS here: %s", error)
            return None
        found = self._settings.model_copy(update={"host": host}).base_url if host else None
        same_scheme = found is not None and found.split(":")[0] == self._settings.base_url.split(":")[0]
        return found if same_scheme else None


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
