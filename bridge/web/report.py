"""A status as JSON, for the page and for health probes."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bridge.control import shown
from bridge.discovery.devices import METER_NAMES
from bridge.model import DAY_S, Reading, SourceName
from bridge.service.answers import DatedAnswer
from bridge.service.status import BrokerStatus, GatewayStatus, HomeStatus, SourceStatus, Status
from bridge.site.flows import SITE_PREFIX

Json = Mapping[str, Any]
METER_PREFIX = "meter/"
SHOWN_VALUES = ("power", "voltage", "current", "power_factor", "frequency")
"""The values of a meter that the page shows for each phase."""
IN_FORCE_VALUES = {
    ("limit/production", "active"): "limited",
    ("limit/production", "cause"): "cause",
    ("storage/control", "action"): "task",
    ("storage/control", "reserve"): "reserve",
    ("storage/settings", "obeyed"): "obeyed",
}
"""What the page shows of what is in force, by device and name, and what it is called there."""


def alive(status: Status) -> Json:
    """Liveness: false if a part of the bridge is stuck. An answer at all shows that the event loop runs."""
    return {"alive": not status.stuck, "stuck": list(status.stuck)}


def ready(status: Status) -> Json:
    """Readiness: whether data get from all gateways to the broker, and if not, why."""
    return {
        "ready": not status.problems,
        "reasons": list(status.problems),
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


def status_report(status: Status) -> Json:
    """All that the page shows."""
    return {
        "version": status.version,
        "now": status.now.isoformat(),
        "uptime": int((status.now - status.started).total_seconds()),
        "reasons": list(status.problems),
        "warnings": list(status.warnings),
        "broker": _broker(status.broker),
        "homes": [_home(home) for home in status.homes],
        "gateways": [_gateway(gateway, status.now) for gateway in status.gateways],
    }


def days_left(gateway: GatewayStatus, now: datetime) -> float | None:
    """Days until the gateway's token expires; negative if it has expired, `None` if there is none."""
    return None if gateway.token_expires is None else (gateway.token_expires - now).total_seconds() / DAY_S


def _token(gateway: GatewayStatus, now: datetime) -> Json | None:
    """The expiry and the role of a gateway's token; `None` if the gateway needs no token."""
    if not gateway.needs_token:
        return None
    days, expires = days_left(gateway, now), gateway.token_expires
    return {
        "expires": None if expires is None else expires.isoformat(),
        "days": None if days is None else round(days, 1),
        "role": gateway.token_role,
        "set": gateway.has_token,
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


def _home(home: HomeStatus) -> Json:
    return {
        "name": home.name,
        "gateways": list(home.gateways),
        "problem": home.problem,
        "fresh": home.online,
        "flows": _flows(home.readings),
    }


def _gateway(gateway: GatewayStatus, now: datetime) -> Json:
    return {
        "host": gateway.host,
        "address": gateway.address,
        "serial": gateway.serial,
        "name": gateway.name,
        "firmware": gateway.firmware or None,
        "online": gateway.online,
        "refusing": gateway.is_refusing,
        "asked": any(source.polls for source in gateway.sources),
        "problem": gateway.problem,
        "token": _token(gateway, now),
        "held": gateway.counters_held,
        "fresh": gateway.flows_fresh,
        "at": None if gateway.flows_at is None else gateway.flows_at.isoformat(),
        "flows": _flows(reading for reading in gateway.readings if reading.device.startswith(SITE_PREFIX)),
        "controller": _in_force(gateway.readings),
        "meters": _meters(gateway.readings),
        "meters_source": next((_source(its) for its in gateway.sources if its.name == SourceName.READINGS), None),
        "sources": [_source(source) for source in gateway.sources],
        "commands": [_command(dated) for dated in reversed(gateway.commands)],
    }


def _command(dated: DatedAnswer) -> Json:
    answer = dated.answer
    return {
        "set": shown(answer.asked.target or "?"),
        "value": shown(answer.asked.value),
        "state": answer.state.value,
        "reason": answer.reason,
        "at": dated.at.isoformat(),
        "final": answer.final,
        "from": answer.asked.sender,
    }


def _source(source: SourceStatus) -> Json:
    return {
        "name": source.name,
        "state": source.state,
        "fresh": source.fresh,
        "period": source.period,
        "age": source.age,
        "took": source.took,
        "polls": source.polls,
        "requests": source.requests,
        "failures": source.failures,
        "error": source.error,
    }


def _flows(readings: Iterable[Reading]) -> Json:
    """The known values of each flow of a site or a home."""
    found: dict[str, dict[str, Any]] = {}
    for reading in readings:
        if reading.name in {"power", "soc", "connected"}:
            found.setdefault(reading.device.removeprefix(SITE_PREFIX), {})[reading.name] = reading.value
    return found


def _in_force(readings: Iterable[Reading]) -> Json:
    """What the controller does: what is not known is absent."""
    return {
        IN_FORCE_VALUES[key]: reading.value
        for reading in readings
        if (key := (reading.device, reading.name)) in IN_FORCE_VALUES
    }


def _meters(readings: Iterable[Reading]) -> Sequence[Json]:
    """Each meter, with a row for each of its phases, or one row if it has no phases."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for reading in readings:
        if reading.device.startswith(METER_PREFIX) and reading.name in SHOWN_VALUES:
            role, phase = reading.device.removeprefix(METER_PREFIX), reading.phase.value if reading.phase else ""
            found.setdefault(role, {}).setdefault(phase, {})[reading.name] = reading.value
    return [
        {
            "name": METER_NAMES.get(role, role),
            "rows": [
                {"phase": phase, **values} for phase, values in sorted(rows.items()) if phase or len(rows) == 1
            ],
        }
        for role, rows in found.items()
    ]
