"""The edge towards a gateway and Enphase's cloud: bytes come in here, and nothing above knows of tokens or TLS."""

import time
from collections.abc import Callable

from pydantic import SecretStr

from bridge.config import CloudSettings, GatewaySettings
from bridge.gateway.client import Exchange, Gateway, Limits
from bridge.gateway.cloud import Cloud, CloudLimits
from bridge.gateway.errors import (
    Blocked,
    CloudRejected,
    CloudUnavailable,
    EndpointRefused,
    KeyChanged,
    MultiFactor,
    NotOnAccount,
    TokenRejected,
    WrongPassword,
)
from bridge.gateway.http import quiet_libraries
from bridge.gateway.renewal import Kept
from bridge.gateway.token import Token
from bridge.gateway.tokens import TokenSource


def open_gateway(
    settings: GatewaySettings,
    cloud: CloudSettings,
    *,
    pin: str | None = None,
    stored_token: SecretStr | None = None,
    on_new_token: Callable[[Token], None] = lambda _: None,
    on_pause: Callable[[Kept], None] = lambda _: None,
    limits: Limits | None = None,
    cloud_limits: CloudLimits | None = None,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Gateway:
    """A gateway with its tokens, from the settings and what the store knows of it.

    `clock` tells unix time, by which tokens expire; `monotonic` is what pauses are measured by.

    Raises:
        BadSetting: host or CA file can't be used.
    """
    account = _account(settings, cloud, cloud_limits)
    tokens = TokenSource(
        settings,
        account,
        stored=stored_token,
        on_new_token=on_new_token,
        on_pause=on_pause,
        clock=clock,
        monotonic=monotonic,
    )
    return Gateway(settings, tokens, pin=pin, limits=limits, monotonic=monotonic)


def _account(settings: GatewaySettings, cloud: CloudSettings, limits: CloudLimits | None) -> Cloud | None:
    if settings.username is None or settings.password is None:
        return None
    return Cloud(cloud, settings.username, settings.password, limits=limits)


__all__ = [
    "Blocked",
    "Cloud",
    "CloudLimits",
    "CloudRejected",
    "CloudUnavailable",
    "EndpointRefused",
    "Exchange",
    "Gateway",
    "Kept",
    "KeyChanged",
    "Limits",
    "MultiFactor",
    "NotOnAccount",
    "Token",
    "TokenRejected",
    "TokenSource",
    "WrongPassword",
    "open_gateway",
    "quiet_libraries",
]
