"""The edge towards a gateway and Enphase's cloud: nothing above it needs to know of tokens, cookies or TLS."""

import time
from collections.abc import Callable

from bridge.gateway.client import Gateway, HttpLimits
from bridge.gateway.cloud import Cloud, CloudLimits
from bridge.gateway.tokens import TokenSource, TokenStore
from bridge.settings import CloudSettings, GatewaySettings

__all__ = ["open_gateway"]


def open_gateway(
    settings: GatewaySettings,
    cloud: CloudSettings,
    *,
    serial: str | None = None,
    pin: str | None = None,
    store: TokenStore | None = None,
    limits: HttpLimits | None = None,
    cloud_limits: CloudLimits | None = None,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Gateway:
    """A gateway with its tokens.

    `serial` and `pin` are the serial number and TLS key (SHA-256, hex) that are known of it from an earlier run,
    and `store` is where its tokens outlive the process. `clock` tells unix time, by which tokens expire;
    `monotonic` is what pauses are measured by.

    Raises:
        BadSetting: host or CA file can't be used.
    """
    account = None
    if settings.username is not None and settings.password is not None:
        account = Cloud(cloud, settings.username, settings.password, limits=cloud_limits)
    tokens = TokenSource(settings, account, store=store, serial=serial, clock=clock, monotonic=monotonic)
    return Gateway(settings, tokens, pin=pin, limits=limits, monotonic=monotonic)
