"""A status as JSON: what the page shows, and what probes are told."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bridge.discovery import METERS
from bridge.model import Reading
from bridge.service import BrokerStatus, GatewayStatus, SourceStatus, Status

Json = Mapping[str, Any]
DAY = 86_400
METER, SITE = "meter/", "site/"
SHOWN = ("power", "voltage", "current", "power_factor", "frequency")
"""What the table of phases shows of a meter."""


def alive(status: Status) -> Json:
    """Whoever is answered knows that the loop runs; parts of the bridge may be stuck all the same."""
    return {"alive": not status.stuck, "stuck": list(status.stuck)}


def ready(status: Status) -> Json:
    """Whether everything gets from the gateways to the broker, and why not."""
    return {
        "ready": not status.lacks,
        "reasons": list(status.lacks),
        "warnings": list(status.warnings),
        "broker": {"address": status.broker.address, "connected": status.broker.connected},
        "gateways": [
            {
                "host": gateway.host,
                "serial": gateway.serial,
                "known": gateway.known,
                "answering": gateway.online,
                "token": _token(gateway, status.now),
                "problem": gateway.problem,
            }
            for gateway in status.gateways
        ],
    }


def whole(status: Status) -> Json:
    """All that the page shows."""
    return {
        "version": status.version,
        "now": status.now.isoformat(),
        "uptime": int((status.now - status.started).total_seconds()),
        "reasons": list(status.lacks),
        "warnings": list(status.warnings),
        "broker": _broker(status.broker),
        "gateways": [_gateway(gateway, status.now) for gateway in status.gateways],
    }


def days_left(gateway: GatewayStatus, now: datetime) -> float | None:
    """Days until the gateway's token ends; negative where it has ended."""
    return None if gateway.token_expires is None else (gateway.token_expires - now).total_seconds() / DAY


def _token(gateway: GatewayStatus, now: datetime) -> Json | None:
    """`None` where the gateway wants none."""
    if not gateway.needs_token:
        return None
    days, expires = days_left(gateway, now), gateway.token_expires
    return {
        "expires": None if expires is None else expires.isoformat(),
        "days": None if days is None else round(days, 1),
        "role": gateway.token_role,
    }


def _broker(broker: BrokerStatus) -> Json:
    return {
        "address": broker.address,
        "connected": broker.connected,
        "protocol": broker.protocol,
        "topics": broker.topics,
        "unsent": broker.unsent,
        "sent": broker.sent,
    }


def _gateway(gateway: GatewayStatus, now: datetime) -> Json:
    return {
        "host": gateway.host,
        "address": gateway.address,
        "serial": gateway.serial,
        "name": gateway.name,
        "firmware": gateway.firmware or None,
        "online": gateway.online,
        "problem": gateway.problem,
        "token": _token(gateway, now),
        "held": gateway.counters_held,
        "fresh": gateway.flows_fresh,
        "flows": _flows(gateway.readings),
        "meters": _meters(gateway.readings),
        "sources": [_source(source) for source in gateway.sources],
    }


def _source(source: SourceStatus) -> Json:
    return {
        "name": source.name,
        "state": source.state,
        "fresh": source.fresh,
        "period": source.period,
        "age": source.age,
        "took": source.took,
        "requests": source.requests,
        "failures": source.failures,
    }


def _flows(readings: Iterable[Reading]) -> Json:
    """Each flow of the site with what is known of it."""
    found: dict[str, dict[str, Any]] = {}
    for reading in readings:
        kind, _, flow = reading.device.partition("/")
        if f"{kind}/" == SITE and reading.name in {"power", "soc", "connected"}:
            found.setdefault(flow, {})[reading.name] = reading.value
    return found


def _meters(readings: Iterable[Reading]) -> Sequence[Json]:
    """Each meter, with a row for each of its phases, or with one where it has none."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for reading in readings:
        if reading.device.startswith(METER) and reading.name in SHOWN:
            role, phase = reading.device.removeprefix(METER), reading.phase.value if reading.phase else ""
            found.setdefault(role, {}).setdefault(phase, {})[reading.name] = reading.value
    return [
        {
            "name": METERS.get(role, role),
            "rows": [
                {"phase": phase, **values} for phase, values in sorted(rows.items()) if phase or len(rows) == 1
            ],
        }
        for role, rows in found.items()
    ]
