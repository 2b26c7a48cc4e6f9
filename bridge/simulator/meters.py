"""The answers about meters and live data.

`/ivp/meters`, its readings, the grid reading, the consumption reports, and `/ivp/livedata/status`, whose powers are
in mW and mVA and only move while the live data stream is on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import copysign

from bridge.model import Phase
from bridge.simulator.http import JsonValue, hundredths, indented_json, with_signed_zero
from bridge.simulator.presets import NET_CONSUMPTION, PRODUCTION, STORAGE, TOTAL_CONSUMPTION, Home, MeterSpec
from bridge.simulator.truth import (
    FIRMWARE_8_3,
    ElectricalValues,
    Truth,
    channel_values,
    phase_values,
    sum_currents,
    whole_meter,
)

CHANNEL_EID_OFFSET = 0x40000011
"""The identifier of a channel is that of its meter plus this offset plus its index."""
UNKNOWN_METER_EID = 1023410688
"""Firmware 8.3 reports a meter with this identifier that `/ivp/meters` does not list."""
UNKNOWN_CHANNEL_EIDS = (2097152513, 2097152258, 2097152515)
NO_VALUES = ElectricalValues()


def meters(home: Home) -> bytes:
    """Return `/ivp/meters`: the list of meters."""
    return indented_json([_facts(home, meter) for meter in home.meters])


def readings(home: Home, truth: Truth) -> bytes:
    """Return `/ivp/meters/readings`: the values of all meters and their channels."""
    answer = [_reading(home, truth, meter) for meter in home.meters]
    if home.version >= FIRMWARE_8_3:
        answer.append(_unknown(int(truth.at) - 27))
    return indented_json(answer)


def grid_reading(home: Home, truth: Truth) -> bytes:
    """Return the grid reading: it always has three channels, and no time."""
    meter = next((meter for meter in home.meters if meter.role in (NET_CONSUMPTION, TOTAL_CONSUMPTION)), None)
    if meter is None:
        return indented_json([])
    legs = zip(Phase, channel_values(home, truth, meter), strict=True)
    return indented_json([{"channels": [_grid_channel(phase, values) for phase, values in legs]}])


def consumption_reports(home: Home, truth: Truth) -> bytes:
    """Return net consumption as measured and total consumption as the firmware calculates it from all meters."""
    if not home.measures(NET_CONSUMPTION):
        return indented_json([])
    measured = [
        phase_values(home, truth, role) for role in (PRODUCTION, NET_CONSUMPTION, STORAGE) if home.measures(role)
    ]
    net = phase_values(home, truth, NET_CONSUMPTION)
    total = [sum_currents(parts) for parts in zip(*measured, strict=True)]
    at = int(truth.at)
    return indented_json([_report(home, at, NET_CONSUMPTION, net), _report(home, at, TOTAL_CONSUMPTION, total)])


def _facts(home: Home, meter: MeterSpec) -> JsonValue:
    return {
        "eid": meter.eid,
        "state": "enabled" if meter.enabled else "disabled",
        "measurementType": meter.role,
        "phaseMode": home.phase_mode,
        "phaseCount": home.legs,
        "meteringStatus": "normal",
        "statusFlags": [],
    }


def _reading(home: Home, truth: Truth, meter: MeterSpec) -> JsonValue:
    legs = channel_values(home, truth, meter)
    at = int(truth.at)
    return {
        **_measured(meter.eid, at, whole_meter(home, legs[: home.legs])),
        "channels": [_measured(meter.eid + CHANNEL_EID_OFFSET + i, at, leg) for i, leg in enumerate(legs)],
    }


def _unknown(at: int) -> JsonValue:
    legs = [_measured(eid, at, NO_VALUES) for eid in UNKNOWN_CHANNEL_EIDS]
    return {**_measured(UNKNOWN_METER_EID, at, NO_VALUES), "channels": legs}


def _measured(eid: int, at: int, values: ElectricalValues) -> Mapping[str, JsonValue]:
    return {
        "eid": eid,
        "timestamp": at,
        "actEnergyDlvd": values.flow.delivered,
        "actEnergyRcvd": values.flow.received,
        "apparentEnergy": values.apparent_energy,
        "reactEnergyLagg": values.lagging,
        "reactEnergyLead": values.leading,
        "instantaneousDemand": with_signed_zero(values.flow.power),
        "activePower": with_signed_zero(values.flow.power),
        "apparentPower": with_signed_zero(values.apparent),
        "reactivePower": with_signed_zero(values.reactive),
        "pwrFactor": with_signed_zero(values.factor),
        "voltage": values.voltage,
        "current": with_signed_zero(values.current),
        "freq": values.frequency,
    }


def _grid_channel(phase: Phase, values: ElectricalValues) -> JsonValue:
    return {
        "phase": phase.name,
        "activePower": with_signed_zero(values.flow.power),
        "reactivePower": with_signed_zero(values.reactive),
        "voltage": values.voltage,
        "current": with_signed_zero(values.current),
        "freq": values.frequency,
    }


def _report(home: Home, at: int, kind: str, legs: Sequence[ElectricalValues]) -> JsonValue:
    return {
        "createdAt": at,
        "reportType": kind,
        "cumulative": _line(home, _cumulative(legs)),
        "lines": [_line(home, leg) for leg in legs],
    }


def _cumulative(legs: Sequence[ElectricalValues]) -> ElectricalValues:
    """Return the values of all phases together. Unlike in readings, amperes have the signs of their watts."""
    current = sum(copysign(leg.current, leg.flow.power) for leg in legs)
    return replace(sum_currents(legs), voltage=sum(leg.voltage for leg in legs), current=current)


def _line(home: Home, values: ElectricalValues) -> JsonValue:
    """Return a line of a report. From 8.3 on, the received energy is subtracted from the delivered one."""
    delivered, received = values.flow.delivered, values.flow.received
    if home.version >= FIRMWARE_8_3:
        delivered, received = delivered - received, 0.0
    return {
        "currW": with_signed_zero(values.flow.power),
        "actPower": with_signed_zero(values.flow.power),
        "apprntPwr": values.apparent,
        "reactPwr": values.reactive,
        "whDlvdCum": delivered,
        "whRcvdCum": received,
        "varhLagCum": values.lagging,
        "varhLeadCum": values.leading,
        "vahCum": values.apparent_energy,
        "rmsVoltage": values.voltage,
        "rmsCurrent": values.current,
        "pwrFactor": hundredths(values.factor),
        "freqHz": hundredths(values.frequency),
    }


STREAM_DURATION_S = 900.0
"""The gateway turns the stream off by itself after this time."""
STREAM_PATH = "/ivp/livedata/stream"
LIVE_ROLES = {"pv": PRODUCTION, "storage": STORAGE, "grid": NET_CONSUMPTION, "load": TOTAL_CONSUMPTION}
ON_GRID, OFF_GRID, CHANGING = 1, 2, 3
GENERATOR_ABSENT = 5
STREAM_OFF_INFO = "Live data stream is off, meters hold the last values. Enable it at /ivp/livedata/stream"


@dataclass(slots=True)
class SimulatedStream:
    """The live data stream of a gateway: until when it is on, and the values that it showed last."""

    shown: Truth
    until: float = 0.0
    asked: int = 0
    switched: int = 0

    def switch(self, on: bool, truth: Truth) -> None:
        """Turn the stream on, for `STREAM_DURATION_S` from now, or off."""
        self.switched += 1
        self.until = truth.at + STREAM_DURATION_S if on else 0.0
        self.shown = truth

    def update(self, truth: Truth) -> bool:
        """Show the values of `truth` if the stream is on, and return whether it is on."""
        self.asked += 1
        on = truth.at < self.until
        if on:
            self.shown = truth
        return on


def livedata_status(home: Home, stream: SimulatedStream, truth: Truth) -> bytes:
    """Return `/ivp/livedata/status`. While the stream is off it shows the values of when it was last on."""
    on = stream.update(truth)
    answer: dict[str, JsonValue] = {
        "connection": _connection(on=on),
        "meters": {**_state(home, stream.shown), **_flows(home, stream.shown)},
        "tasks": {"task_id": 27672112, "timestamp": int(stream.shown.at) - 1764},
        "counters": _counters(stream),
    }
    if not on:
        answer["info"] = STREAM_OFF_INFO
    return indented_json(answer, "\t")


def stream_state(*, on: bool) -> bytes:
    """Return the answer to a request that switches the stream."""
    return indented_json({"sc_stream": "enabled" if on else "disabled"})


def _connection(*, on: bool) -> JsonValue:
    return {
        "mqtt_state": "connected",
        "prov_state": "configured",
        "auth_state": "ok",
        "sc_stream": "enabled" if on else "disabled",
        "sc_debug": "disabled",
    }


def _state(home: Home, truth: Truth) -> dict[str, JsonValue]:
    return {
        "last_update": int(truth.at),
        "soc": round(truth.soc),
        "main_relay_state": _relay_state(truth),
        "gen_relay_state": GENERATOR_ABSENT,
        "backup_bat_mode": 1,
        "backup_soc": round(truth.equipment.use.floor) if home.storing else 0,
        "is_split_phase": int(home.phase_mode == "split"),
        "phase_count": home.legs,
        "enc_agg_soc": truth.charge(truth.iq_batteries),
        "enc_agg_energy": round(sum(battery.stored for battery in truth.iq_batteries)),
        "acb_agg_soc": truth.charge(truth.ac_batteries),
        "acb_agg_energy": round(sum(battery.stored for battery in truth.ac_batteries)),
    }


def _relay_state(truth: Truth) -> int:
    relay = truth.equipment.relay
    if relay["admin"] != relay["oper"]:
        return CHANGING
    return ON_GRID if truth.equipment.on_grid else OFF_GRID


def _flows(home: Home, truth: Truth) -> dict[str, JsonValue]:
    """Return the powers of solar, batteries, grid, load and generator; without CTs only the batteries have any."""
    metered = home.measures(PRODUCTION)
    flows = {
        name: _flow(_legs(home, truth, role) if metered or role == STORAGE else [])
        for name, role in LIVE_ROLES.items()
    }
    return {**flows, "generator": _flow([])}


def _legs(home: Home, truth: Truth, role: str) -> list[tuple[int, int]]:
    """Return active (mW) and apparent power (mVA) of each phase. Both have the same sign."""
    return [
        (round(e.flow.power * 1000), round(copysign(e.apparent, e.flow.power) * 1000))
        for e in phase_values(home, truth, role)
    ]


def _flow(legs: Sequence[tuple[int, int]]) -> JsonValue:
    three = (*legs, *[(0, 0)] * (3 - len(legs)))
    return {
        "agg_p_mw": sum(active for active, _ in legs),
        "agg_s_mva": sum(apparent for _, apparent in legs),
        **{f"agg_p_ph_{letter}_mw": active for letter, (active, _) in zip("abc", three, strict=True)},
        **{f"agg_s_ph_{letter}_mva": apparent for letter, (_, apparent) in zip("abc", three, strict=True)},
    }


def _counters(stream: SimulatedStream) -> JsonValue:
    """Return the counters. Failed connections appear in both spellings, as in the brief."""
    return {
        "main_CfgLoad": 1,
        "main_CfgChanged": 2,
        "main_taskUpdate": 63,
        "MqttClient_publish": 10260 + 3 * stream.asked,
        "MqttClient_live_debug": 190,
        "MqttClient_respond": 264,
        "MqttClient_msgarrvd": 131,
        "MqttClient_create": 14,
        "MqttClient_setCallbacks": 15,
        "MqttClient_connect": 16,
        "MqttClient_connect_err": 5,
        "MqttClient_connect_Err": 6,
        "MqttClient_subscribe": 8,
        "SSL_Keys_Create": 17,
        "sc_hdlDataPub": 9440 + 2 * stream.asked,
        "sc_SendStreamCtrl": 72 + stream.switched,
        "sc_SendDemandRspCtrl": 65517,
        "rest_Meters": 7,
        "rest_Status": 579 + stream.asked,
    }
