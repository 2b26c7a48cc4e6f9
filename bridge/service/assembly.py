"""Builds the parts of the service from the settings: the poller of a gateway, and the homes of several gateways."""

import asyncio
import time
from collections.abc import Callable
from zoneinfo import ZoneInfo

from bridge import discovery
from bridge.endpoints import ENDPOINTS
from bridge.gateway import open_gateway
from bridge.gateway.mdns import Search
from bridge.service.answers import AnswerPublisher
from bridge.service.commander import Commander
from bridge.service.homes import HomeOptions, Homes
from bridge.service.identity import Identity, Rediscovery
from bridge.service.leftovers import names_of
from bridge.service.output import GatewayLog, GatewayOutput, RetainedValues, SiteOptions, no_retained_values
from bridge.service.poller import PROFILES, Poller, periods
from bridge.service.publisher import Publish, PublishOptions
from bridge.service.sources import Source, Sources
from bridge.settings import GatewaySettings, Settings
from bridge.state import IdentityState
from bridge.store import Store
from bridge.topics import Names


def _publish_options(settings: Settings, gateway: GatewaySettings) -> Callable[[str], PublishOptions]:
    """How to publish a gateway, by its serial number.

    The suffix of several gateways without a name is of their serial numbers, so it does not depend on their order.
    """
    names = names_of(settings, gateway)
    is_fleet = settings.gateways_file is not None or settings.shard is not None
    is_only = not is_fleet and len(settings.every_gateway) == 1
    announcement, in_home = announcement_of(settings, names), gateway.home is not None
    paced = PROFILES[settings.poll.profile].paced

    def options_of(serial: str) -> PublishOptions:
        suffix = gateway.name or ("" if is_only else serial[-4:])
        site = gateway.name or f"Enphase {suffix}".strip()
        return PublishOptions(
            names,
            settings.mqtt.payload,
            announcement,
            gateway.base_url,
            site,
            suffix,
            in_home,
            paced,
            settings.control.allowed(gateway),
        )

    return options_of


def announcement_of(settings: Settings, names: Names) -> discovery.DiscoveryOptions | None:
    """How Home Assistant is told of devices; `None` if it is not."""
    ha = settings.homeassistant
    return None if ha.discovery == "off" else discovery.DiscoveryOptions(names, ha.prefix, ha.discovery)


def _zone(settings: Settings) -> ZoneInfo | None:
    return ZoneInfo(settings.timezone) if settings.timezone else None


def make_poller(
    settings: Settings,
    gateway: GatewaySettings,
    store: Store,
    publish: Publish,
    *,
    on_identified: Callable[[], None] = lambda: None,
    retained_values: RetainedValues = no_retained_values,
    search: Search | None = None,
    now: Callable[[], float] = time.time,
    on_refresh: Callable[[], str | None] = lambda: None,
) -> Poller:
    """Build the poller of one gateway, with what the store knows of it. `now` is the wall clock.

    Raises:
        BadSetting: the host or a file in the settings of the gateway can't be used.
    """
    monotonic, log = asyncio.get_running_loop().time, GatewayLog(gateway.host)
    known = store.serial_of(gateway.host)
    edge = open_gateway(
        gateway,
        settings.cloud,
        serial=known,
        pin=store.load(known, IdentityState).key_pin if known else None,
        store=store,
        clock=now,
        monotonic=monotonic,
    )
    identity = Identity(gateway, edge, store, monotonic)
    poll, profile, wanted = settings.poll, PROFILES[settings.poll.profile], periods(settings.poll)
    budget = profile.budget if poll.budget is None else poll.budget
    sources = Sources(
        (Source(endpoint, wanted[endpoint.source]) for endpoint in ENDPOINTS), monotonic(), budget=budget, log=log
    )
    output = GatewayOutput(
        edge,
        identity,
        sources,
        store,
        publish=publish,
        options_of=_publish_options(settings, gateway),
        site=SiteOptions(
            netted=settings.site.netting == "sum",
            third_party=settings.site.third_party_pv,
            in_home=gateway.home is not None,
            zone=_zone(settings),
        ),
        retained_values=retained_values,
        now=now,
        log=log,
        on_refresh=on_refresh,
    )
    commander = Commander(
        edge,
        identity,
        sources,
        store,
        publisher=AnswerPublisher(
            publish,
            names_of(settings, gateway),
            settings.mqtt.payload,
            discovery=settings.homeassistant.prefix,
            now=now,
            log=log,
        ),
        allowed=settings.control.allowed(gateway),
        now=now,
        log=log,
    )
    has_own_period = any(poll.period(endpoint.source) is not None for endpoint in ENDPOINTS if endpoint.site_powers)
    return Poller(
        gateway,
        edge,
        identity,
        sources,
        output,
        commander=commander,
        rediscovery=Rediscovery(gateway, monotonic, log, search or Search()),
        site_period=None if has_own_period else profile.site_period,
        on_identified=on_identified,
        now=now,
        log=log,
    )


def make_homes(
    settings: Settings,
    store: Store,
    publish: Publish,
    read_retained: RetainedValues = no_retained_values,
    drop: Callable[[Callable[[str], bool]], None] = lambda _: None,
    *,
    now: Callable[[], float] = time.time,
) -> Homes:
    """Build the homes of several gateways. `read_retained` reads the numbers below a topic."""
    names = names_of(settings)
    announcement, zone = announcement_of(settings, names), _zone(settings)
    paced = PROFILES[settings.poll.profile].paced
    options = HomeOptions(names, settings.mqtt.payload, announcement, publish, read_retained, now, zone, paced)
    return Homes(store, options, drop)
