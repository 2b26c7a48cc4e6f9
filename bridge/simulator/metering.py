"""What the meters say: `/ivp/meters`, its readings, the grid reading and the consumption reports."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import copysign

from bridge.model import Phase
from bridge.simulator.electrics import NEW, Electrics, added, channels, total, used
from bridge.simulator.homes import NET, PRODUCTION, STORAGE, TOTAL, Home, Meter
from bridge.simulator.rendering import Hundredths, Json, pretty, tiny
from bridge.simulator.truth import Truth

CHANNEL = 0x40000011
"""A channel's identifier is its meter's plus this plus its number."""
UNKNOWN = 1023410688
"""Reported by firmware 8.3 and listed nowhere."""
UNKNOWN_CHANNELS = (2097152513, 2097152258, 2097152515)
NOTHING = Electrics()


def meters(home: Home) -> bytes:
    return pretty([_facts(home, meter) for meter in home.meters])


def readings(home: Home, truth: Truth) -> bytes:
    answer = [_reading(home, truth, meter) for meter in home.meters]
    if home.version >= NEW:
        answer.append(_unknown(int(truth.at) - 27))
    return pretty(answer)


def grid_reading(home: Home, truth: Truth) -> bytes:
    """Always three channels, and no time."""
    meter = next((meter for meter in home.meters if meter.role in (NET, TOTAL)), None)
    if meter is None:
        return pretty([])
    legs = zip(Phase, channels(home, truth, meter), strict=True)
    return pretty([{"channels": [_grid_channel(phase, values) for phase, values in legs]}])


def consumption_reports(home: Home, truth: Truth) -> bytes:
    """Net consumption as measured; total consumption as firmware works it out from the other meters."""
    if not home.measures(NET):
        return pretty([])
    measured = [used(home, truth, role) for role in (PRODUCTION, NET, STORAGE) if home.measures(role)]
    net = used(home, truth, NET)
    total = [added(parts) for parts in zip(*measured, strict=True)]
    at = int(truth.at)
    return pretty([_report(home, at, NET, net), _report(home, at, TOTAL, total)])


def _facts(home: Home, meter: Meter) -> Json:
    return {
        "eid": meter.eid,
        "state": "enabled" if meter.enabled else "disabled",
        "measurementType": meter.role,
        "phaseMode": home.phase_mode,
        "phaseCount": home.legs,
        "meteringStatus": "normal",
        "statusFlags": [],
    }


def _reading(home: Home, truth: Truth, meter: Meter) -> Json:
    legs = channels(home, truth, meter)
    at = int(truth.at)
    return {
        **_measured(meter.eid, at, total(home, legs[: home.legs])),
        "channels": [_measured(meter.eid + CHANNEL + i, at, leg) for i, leg in enumerate(legs)],
    }


def _unknown(at: int) -> Json:
    legs = [_measured(eid, at, NOTHING) for eid in UNKNOWN_CHANNELS]
    return {**_measured(UNKNOWN, at, NOTHING), "channels": legs}


def _measured(eid: int, at: int, values: Electrics) -> Mapping[str, Json]:
    return {
        "eid": eid,
        "timestamp": at,
        "actEnergyDlvd": values.flow.delivered,
        "actEnergyRcvd": values.flow.received,
        "apparentEnergy": values.apparent_energy,
        "reactEnergyLagg": values.lagging,
        "reactEnergyLead": values.leading,
        "instantaneousDemand": tiny(values.flow.power),
        "activePower": tiny(values.flow.power),
        "apparentPower": tiny(values.apparent),
        "reactivePower": tiny(values.reactive),
        "pwrFactor": tiny(values.factor),
        "voltage": values.voltage,
        "current": tiny(values.current),
        "freq": values.frequency,
    }


def _grid_channel(phase: Phase, values: Electrics) -> Json:
    return {
        "phase": phase.name,
        "activePower": tiny(values.flow.power),
        "reactivePower": tiny(values.reactive),
        "voltage": values.voltage,
        "current": tiny(values.current),
        "freq": values.frequency,
    }


def _report(home: Home, at: int, kind: str, legs: Sequence[Electrics]) -> Json:
    return {
        "createdAt": at,
        "reportType": kind,
        "cumulative": _line(home, _cumulative(legs)),
        "lines": [_line(home, leg) for leg in legs],
    }


def _cumulative(legs: Sequence[Electrics]) -> Electrics:
    """As the total of a reading, but the amperes have the signs of their watts."""
    current = sum(copysign(leg.current, leg.flow.power) for leg in legs)
    return replace(added(legs), voltage=sum(leg.voltage for leg in legs), current=current)


def _line(home: Home, values: Electrics) -> Json:
    """From 8.3 the energies of a report are netted into the first."""
    delivered, received = values.flow.delivered, values.flow.received
    if home.version >= NEW:
        delivered, received = delivered - received, 0.0
    return {
        "currW": tiny(values.flow.power),
        "actPower": tiny(values.flow.power),
        "apprntPwr": values.apparent,
        "reactPwr": values.reactive,
        "whDlvdCum": delivered,
        "whRcvdCum": received,
        "varhLagCum": values.lagging,
        "varhLeadCum": values.leading,
        "vahCum": values.apparent_energy,
        "rmsVoltage": values.voltage,
        "rmsCurrent": values.current,
        "pwrFactor": Hundredths(values.factor),
        "freqHz": Hundredths(values.frequency),
    }
