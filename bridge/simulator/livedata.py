"""`/ivp/livedata/status`: powers in mW and mVA, fresh only while somebody has asked for the stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign

from bridge.simulator.electrics import used
from bridge.simulator.homes import NET, PRODUCTION, STORAGE, TOTAL, Home
from bridge.simulator.rendering import Json, pretty
from bridge.simulator.truth import Truth

STREAM = 900.0
"""Seconds after which the gateway turns the stream off by itself."""
SOURCES = {"pv": PRODUCTION, "storage": STORAGE, "grid": NET, "load": TOTAL}
ON_GRID = 1
GENERATOR_ABSENT = 5
BACKUP = 10
OFF = "Live data stream is off, meters hold the last values. Enable it at /ivp/livedata/stream"


@dataclass(slots=True)
class Stream:
    """The live data stream of a gateway: until when it is on, and the last truth that went through it."""

    shown: Truth
    until: float = 0.0
    asked: int = 0
    switched: int = 0

    def switch(self, on: bool, truth: Truth) -> None:
        self.switched += 1
        self.until = truth.at + STREAM if on else 0.0
        self.shown = truth

    def look(self, truth: Truth) -> bool:
        """Whether the stream is on. If so, what is shown moves on to `truth`."""
        self.asked += 1
        on = truth.at < self.until
        if on:
            self.shown = truth
        return on


def status(home: Home, stream: Stream, truth: Truth) -> bytes:
    on = stream.look(truth)
    answer: dict[str, Json] = {
        "connection": _connection(on=on),
        "meters": {**_state(home, stream.shown), **_flows(home, stream.shown)},
        "tasks": {"task_id": 27672112, "timestamp": int(stream.shown.at) - 1764},
        "counters": _counters(stream),
    }
    if not on:
        answer["info"] = OFF
    return pretty(answer, "\t")


def switched(*, on: bool) -> bytes:
    return pretty({"sc_stream": "enabled" if on else "disabled"})


def _connection(*, on: bool) -> Json:
    return {
        "mqtt_state": "connected",
        "prov_state": "configured",
        "auth_state": "ok",
        "sc_stream": "enabled" if on else "disabled",
        "sc_debug": "disabled",
    }


def _state(home: Home, truth: Truth) -> dict[str, Json]:
    return {
        "last_update": int(truth.at),
        "soc": round(truth.soc),
        "main_relay_state": ON_GRID,
        "gen_relay_state": GENERATOR_ABSENT,
        "backup_bat_mode": 1,
        "backup_soc": BACKUP if home.storing else 0,
        "is_split_phase": int(home.phase_mode == "split"),
        "phase_count": home.legs,
        "enc_agg_soc": truth.charge(truth.iq_batteries),
        "enc_agg_energy": round(sum(battery.stored for battery in truth.iq_batteries)),
        "acb_agg_soc": truth.charge(truth.ac_batteries),
        "acb_agg_energy": round(sum(battery.stored for battery in truth.ac_batteries)),
    }


def _flows(home: Home, truth: Truth) -> dict[str, Json]:
    """Without CTs the gateway sees nothing live but the batteries, which it need not measure."""
    metered = home.measures(PRODUCTION)
    flows = {
        name: _flow(_legs(home, truth, role) if metered or role == STORAGE else [])
        for name, role in SOURCES.items()
    }
    return {**flows, "generator": _flow([])}


def _legs(home: Home, truth: Truth, role: str) -> list[tuple[int, int]]:
    """Active and apparent power of each phase; the apparent one has the sign of the active one."""
    return [
        (round(e.flow.power * 1000), round(copysign(e.apparent, e.flow.power) * 1000))
        for e in used(home, truth, role)
    ]


def _flow(legs: Sequence[tuple[int, int]]) -> Json:
    three = (*legs, *[(0, 0)] * (3 - len(legs)))
    return {
        "agg_p_mw": sum(active for active, _ in legs),
        "agg_s_mva": sum(apparent for _, apparent in legs),
        **{f"agg_p_ph_{letter}_mw": active for letter, (active, _) in zip("abc", three, strict=True)},
        **{f"agg_s_ph_{letter}_mva": apparent for letter, (_, apparent) in zip("abc", three, strict=True)},
    }


def _counters(stream: Stream) -> Json:
    """Both spellings of the failed connections, as the brief has them."""
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
