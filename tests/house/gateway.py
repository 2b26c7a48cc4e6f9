"""A gateway that answers for a `House` over a socket, as firmware 8 does, and what may be wrong with it.

The shapes of the answers follow Enphase's brief TEB-00060 (appendices A to J) and captures of real gateways.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from house.model import HOUR_S, Channel, House

SERIAL = "482312004711"
FIRMWARE = "D8.2.4345"
EIDS = {
    "production": 704643328,
    "net-consumption": 704643584,
    "total-consumption": 704643584,
    "storage": 704643840,
    "pv3p": 704645120,
}
READINGS, METERS, LIVE = "/ivp/meters/readings", "/ivp/meters", "/ivp/livedata/status"
PRODUCTION, ENERGY, INVERTERS = "/api/v1/production", "/ivp/pdm/energy", "/api/v1/production/inverters"
POWER = "/ivp/ensemble/power"
STREAM_S = 900
"""Seconds for which live data stay on after they were turned on."""
LINE_V, IDLE_LINE_V = (229.7, 231.2, 233.9), 4.3
SPLIT_LINE_V = (120.6, 121.3, 0.0)
STOP_S = 1.0
"""Simulated time for open connections to end."""
UINT32 = 2**32
NOT_FOUND = 404
REASONS = {200: "OK", 401: "Unauthorized", 404: "Not Found", 503: "Service Unavailable"}

Body = Any
Change = Callable[[Body], Body]
Clamping = Literal["right", "reversed", "absent"]


@dataclass(slots=True)
class Tweaks:
    """What is wrong at the moment. With the values that stand here all is well.

    `offsets` are Wh by "role/direction" such as `production/delivered`, or `pcu`; `frozen` holds such names while
    these counters stand still. `changes` alters the answer of a path after everything else.
    """

    is_down: bool = False
    delay_s: float = 0.08
    statuses: dict[str, int] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    disabled: set[str] = field(default_factory=set)
    has_no_meters: bool = False
    has_zeros: bool = False
    offsets: dict[str, float] = field(default_factory=dict)
    is_unsigned: bool = False
    dead_storage_leg: bool = False
    clock_offset_s: float = 0.0
    live_is_frozen: bool = False
    live_is_off: bool = False


class Clamp:
    """What one clamp has counted, which depends on how it sits on its wire."""

    def __init__(self, channel: Channel) -> None:
        self.clamping: Clamping = "right"
        self.shown = Channel(0.0, channel.delivered, channel.received)
        self.frozen: dict[str, float] = {}
        self._channel, self._delivered, self._received = channel, channel.delivered, channel.received

    def look(self) -> Channel:
        """Count what has flowed since the last look, and return what the clamp shows."""
        delivered = self._channel.delivered - self._delivered
        received = self._channel.received - self._received
        self._delivered, self._received = self._channel.delivered, self._channel.received
        shown, power = self.shown, self._channel.power
        if self.clamping == "reversed":
            delivered, received, power = received, delivered, -power
        elif self.clamping == "absent":
            delivered, received, power = 0.0, 0.0, 0.0
        shown.power = power
        shown.delivered += delivered
        shown.received += received
        return Channel(power, **{name: self.frozen.get(name, getattr(shown, name)) for name in DIRECTIONS})


DIRECTIONS = ("delivered", "received")


class Gateway:
    """One gateway on a port of the loopback interface. `now` tells the simulated time."""

    def __init__(self, house: House, now: Callable[[], float]) -> None:
        self.house, self.tweaks = house, Tweaks()
        self.requests: dict[str, int] = {}
        self.listeners: list[Callable[[str], None]] = []
        """They get the path of each request that is answered well."""
        self.port = 0
        self._now = now
        self._stream_until = 0.0
        self._live: Body = None
        self._quarter: tuple[float, float, float] = (0.0, 0.0, 0.0)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        kind = house.kind
        channels = {
            "production": house.production if kind.production_ct else None,
            "net-consumption": house.net if kind.net_ct else None,
            "total-consumption": house.total if kind.total_ct else None,
            "storage": house.storage if kind.storage_ct else None,
            "pv3p": house.third_party if kind.third_party_w else None,
        }
        self.clamps: Mapping[str, Sequence[Clamp]] = {
            role: [Clamp(channel) for channel in found] for role, found in channels.items() if found is not None
        }
        self._answers: Mapping[str, Callable[[], Body]] = {
            METERS: self._meters,
            READINGS: self._readings,
            LIVE: self._livedata,
            PRODUCTION: self._production,
            ENERGY: self._energy,
            INVERTERS: self._inverters,
            "/ivp/ensemble/inventory": self._inventory,
            POWER: self._battery_power,
            "/ivp/ensemble/secctrl": self._secctrl,
            "/ivp/ensemble/relay": self._relay,
            "/ivp/ensemble/generator": self._generator,
        }

    # HTTP

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and cut those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.close()
        await asyncio.sleep(STOP_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not self.tweaks.is_down:
                method, path = await _request(reader)
                await asyncio.sleep(self.tweaks.delay_s)
                if self.tweaks.is_down:
                    break
                status, body = self.answer(method, path)
                head = f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()

    def answer(self, method: str, path: str) -> tuple[int, bytes]:
        """Return status and body of one request."""
        self.requests[path] = self.requests.get(path, 0) + 1
        self.house.advance(self._now())
        if path == "/ivp/livedata/stream" and method == "POST":
            self._stream_until = self._now() + STREAM_S
            return 200, b'{"sc_stream":"enabled"}'
        if status := self.tweaks.statuses.get(path):
            return status, b"{}"
        if path == "/info":
            return 200, self._info().encode()
        make = self._answers.get(path)
        body = make() if make else None
        if body is None:
            return NOT_FOUND, b'{"err":"404 - Not Found"}'
        if path in self.tweaks.changes:
            body = self.tweaks.changes[path](body)
        for listener in self.listeners:
            listener(path)
        return 200, json.dumps(body).encode()

    @property
    def _time(self) -> int:
        return int(self.house.time + self.tweaks.clock_offset_s)

    def _info(self) -> str:
        metered = "false" if self.house.kind.is_standard else "true"
        return (
            "<?xml version='1.0' encoding='UTF-8'?><envoy_info>"
            f"<time>{self._time}</time><device><sn>{SERIAL}</sn><pn>800-00654-r08</pn>"
            f"<software>{FIRMWARE}</software><euaid>4c8675</euaid><seqnum>0</seqnum><apiver>1</apiver>"
            f"<imeter>{metered}</imeter></device><web-tokens>true</web-tokens></envoy_info>"
        )

    # Meters

    def clamp(self, role: str, clamping: Clamping) -> None:
        """Put the clamps of a role on their wires in this way from now on."""
        self.house.advance(self._now())
        for clamp in self.clamps[role]:
            clamp.look()
            clamp.clamping = clamping

    def freeze(self, role: str, *directions: str) -> None:
        """Let these counters stand still."""
        self.house.advance(self._now())
        for clamp in self.clamps[role]:
            shown = clamp.look()
            clamp.frozen = {name: getattr(shown, name) for name in directions}

    def thaw(self, role: str) -> None:
        """Let the counters catch up at once."""
        for clamp in self.clamps[role]:
            clamp.frozen = {}

    def reads_well(self, role: str) -> bool:
        """Say whether the readings of these clamps are right at the moment."""
        tweaks = self.tweaks
        is_off = tweaks.has_no_meters or tweaks.has_zeros or role in tweaks.disabled or READINGS in tweaks.changes
        clamps = self.clamps.get(role, ())
        return bool(clamps) and not is_off and all(c.clamping == "right" and not c.frozen for c in clamps)

    @property
    def solar_wh(self) -> float:
        """What the counters behind the site's solar energy show: the production meter's or the inverters' sum, and
        that of other makers' panels.
        """
        offsets, others = self.tweaks.offsets, sum(clamp.look().delivered for clamp in self.clamps.get("pv3p", ()))
        if not self.reads_well("production"):
            return self.house.pcu_wh + others + offsets.get("pcu", 0.0)
        own = sum(clamp.look().delivered for clamp in self.clamps["production"])
        return own + others + offsets.get("production/delivered", 0.0)

    def _meters(self) -> Body:
        kind = self.house.kind
        if kind.is_standard:
            return None
        if self.tweaks.has_no_meters:
            return []
        roles = list(self.clamps) if kind.has_ct else ["production", "net-consumption"]
        return [
            {
                "eid": EIDS[role],
                "state": "disabled" if role in self.tweaks.disabled or not kind.has_ct else "enabled",
                "measurementType": role,
                "phaseMode": "split" if kind.phases == 2 else "three",
                "phaseCount": kind.phases,
                "meteringStatus": "normal",
                "statusFlags": [],
            }
            for role in roles
        ]

    def _readings(self) -> Body:
        kind = self.house.kind
        if kind.is_standard:
            return None
        if not kind.has_ct:
            idle = [Channel(0.0, 0.01, 0.02)]
            return [self._reading(role, idle) for role in ("production", "net-consumption")]
        return [self._reading(role, [clamp.look() for clamp in clamps]) for role, clamps in self.clamps.items()]

    def _reading(self, role: str, channels: Sequence[Channel]) -> Body:
        eid, volts = EIDS[role], SPLIT_LINE_V if self.house.kind.phases == 2 else LINE_V
        parts = []
        for place in range(3):
            eid_of_part = 1778385169 + place + (eid & 0xFFFF)
            if place >= len(channels):
                parts.append(self._values(eid_of_part, Channel(), IDLE_LINE_V))
            elif role == "storage" and self.tweaks.dead_storage_leg and place == len(channels) - 1:
                parts.append(self._values(eid_of_part, Channel(), 0.0))
            else:
                parts.append(self._values(eid_of_part, self._tweaked(role, place, channels[place]), volts[place]))
        real = parts[: len(channels)]
        total = Channel(*(sum(p[name] for p in real) for name in ("activePower", "actEnergyDlvd", "actEnergyRcvd")))
        answer = {**self._values(eid, total, sum(p["voltage"] for p in real)), "channels": parts}
        if self.tweaks.is_unsigned:
            for values in (answer, *parts):
                _make_unsigned(values)
        return answer

    def _tweaked(self, role: str, place: int, channel: Channel) -> Channel:
        if self.tweaks.has_zeros:
            return Channel()
        offsets = [self.tweaks.offsets.get(f"{role}/{name}", 0.0) if place == 0 else 0.0 for name in DIRECTIONS]
        return Channel(channel.power, channel.delivered + offsets[0], channel.received + offsets[1])

    def _values(self, eid: int, channel: Channel, volts: float) -> dict[str, Any]:
        power, apparent = channel.power, abs(channel.power) * 1.04 + 11.3
        return {
            "eid": eid,
            "timestamp": self._time,
            "actEnergyDlvd": round(channel.delivered, 3),
            "actEnergyRcvd": round(channel.received, 3),
            "apparentEnergy": round((channel.delivered + channel.received) * 1.06, 3),
            "reactEnergyLagg": round(channel.delivered * 0.11 + 17, 3),
            "reactEnergyLead": round(channel.received * 0.07 + 5, 3),
            "instantaneousDemand": round(power, 3),
            "activePower": round(power, 3),
            "apparentPower": round(apparent, 3),
            "reactivePower": round(apparent * 0.2, 3),
            "pwrFactor": round(power / apparent, 2),
            "voltage": round(volts, 3),
            "current": round(apparent / max(volts, 1), 3),
            "freq": 50.0,
        }

    # Sums of the gateway

    def _pcu(self) -> dict[str, Any]:
        house = self.house
        today = house.truth.pcu - house.today.pcu
        return self._sums(house.pcu_wh + self.tweaks.offsets.get("pcu", 0.0), today, self._pcu_w)

    @property
    def _pcu_w(self) -> float:
        return self.house.reported_w * self.house.kind.inverters

    def _eim(self) -> dict[str, Any]:
        """Return the production meter's sums; they change each quarter of an hour."""
        now = self.house.time
        if now - self._quarter[0] >= HOUR_S / 4:
            shown = [clamp.look() for clamp in self.clamps["production"]]
            made, offset = sum(c.delivered for c in shown), self.tweaks.offsets.get("production/delivered", 0.0)
            self._quarter = (now - now % (HOUR_S / 4), made + offset, sum(channel.power for channel in shown))
        today = self.house.truth.solar - self.house.today.solar
        return self._sums(self._quarter[1], today, self._quarter[2])

    def _sums(self, lifetime: float, today: float, watts: float) -> dict[str, Any]:
        if self.tweaks.has_zeros:
            lifetime = today = watts = 0.0
        return {
            "wattHoursToday": round(today),
            "wattHoursSevenDays": round(today * 6.1),
            "wattHoursLifetime": round(lifetime),
            "wattsNow": round(watts),
        }

    def _production(self) -> Body:
        kind = self.house.kind
        if kind.is_standard:
            return self._pcu()
        return self._eim() if kind.production_ct else _NOTHING

    def _energy(self) -> Body:
        eim = self._eim() if self.house.kind.production_ct else _NOTHING
        return {"production": {"pcu": self._pcu(), "rgm": _NOTHING, "eim": eim}, "consumption": {"eim": _NOTHING}}

    def _inverters(self) -> Body:
        house = self.house
        if self.tweaks.has_zeros:
            return []
        reported = int(house.reported_at + self.tweaks.clock_offset_s)
        units = [
            {
                "serialNumber": f"4822430{index:05d}",
                "lastReportDate": reported - 2 * index,
                "devType": 1,
                "lastReportWatts": round(house.reported_w),
                "maxReportWatts": round(house.inverter_max_w),
            }
            for index in range(house.kind.inverters)
        ]
        if house.kind.ac_battery_wh:
            ac = {"serialNumber": "121700088001", "lastReportDate": self._time, "devType": 11}
            units.append({**ac, "lastReportWatts": 0, "maxReportWatts": 271})
        return units

    # Live data

    @property
    def live_is_fresh(self) -> bool:
        """Say whether live data are on and move."""
        tweaks = self.tweaks
        return self._now() < self._stream_until and not tweaks.live_is_off and not tweaks.live_is_frozen

    def _livedata(self) -> Body:
        if not self.house.kind.live:
            return None
        is_on = self._now() < self._stream_until and not self.tweaks.live_is_off
        if self._live is None or self.live_is_fresh:
            self._live = self._live_meters()
        if is_on:
            self._live["last_update"] = self._time
        return {
            "connection": {
                "mqtt_state": "connected",
                "prov_state": "configured",
                "auth_state": "ok",
                "sc_stream": "enabled" if is_on else "disabled",
                "sc_debug": "disabled",
            },
            "meters": dict(self._live),
            "tasks": {"task_id": 27672012, "timestamp": 1654219883},
            "counters": {"main_CfgLoad": 1, "rest_Status": self.requests.get(LIVE, 0)},
        }

    def _live_meters(self) -> dict[str, Any]:
        house, kind = self.house, self.house.kind
        flows = house.powers
        return {
            "last_update": self._time,
            "soc": round(house.soc),
            "main_relay_state": 2 if house.grid_is_open else 1,
            "gen_relay_state": 1 if house.generator_is_on else 5,
            "backup_bat_mode": 1,
            "backup_soc": 10,
            "is_split_phase": int(kind.phases == 2),
            "phase_count": kind.phases,
            "enc_agg_soc": round(house.soc),
            "enc_agg_energy": round(house.stored_wh),
            "acb_agg_soc": round(house.ac_soc),
            "acb_agg_energy": round(house.ac_stored_wh),
            "pv": _live_flow(flows.solar),
            "storage": _live_flow(flows.battery),
            "grid": _live_flow(flows.grid),
            "load": _live_flow([sum(found) for found in zip(flows.grid, flows.solar, flows.battery, strict=True)]),
            "generator": _live_flow(flows.generator),
        }

    # Storage gear

    def _inventory(self) -> Body:
        kind = self.house.kind
        gear: list[dict[str, Any]] = []
        if kind.battery_wh:
            gear.append({"type": "ENCHARGE", "devices": [self._battery(index) for index in range(2)]})
        if kind.has_generator:
            gear.append({"type": "ENPOWER", "devices": [self._controller()]})
        if kind.has_collar:
            gear.append({"type": "COLLAR", "devices": [self._collar()]})
        return gear

    def _battery(self, index: int) -> dict[str, Any]:
        return {
            "part_num": "836-01826-r76",
            "serial_num": f"49230100220{index + 1}",
            "installed": 1_709_749_530,
            "device_status": ["envoy.global.ok", "prop.done"],
            "last_rpt_date": self._time - 20 - index,
            "admin_state": 6,
            "admin_state_str": "ENCHG_STATE_READY",
            "communicating": True,
            "sleep_enabled": False,
            "percentFull": round(self.house.soc),
            "temperature": 21 + index,
            "reported_enc_grid_state": "grid-tied",
            "encharge_rev": 3,
            "encharge_capacity": round(self.house.kind.battery_wh / 2),
            "phase": "ph-a",
        }

    def _controller(self) -> dict[str, Any]:
        return {
            "part_num": "860-00376-r37",
            "serial_num": "482530001122",
            "installed": 1_709_749_530,
            "device_status": ["envoy.global.ok", "prop.done"],
            "last_rpt_date": self._time - 11,
            "admin_state": 30 if self.house.generator_is_on else 24,
            "admin_state_str": "ENPWR_STATE_OPER_GEN_CLOSE"
            if self.house.generator_is_on
            else "ENPWR_STATE_OPER_CLOSED",
            "communicating": True,
            "mains_admin_state": "closed",
            "mains_oper_state": self._mains,
        }

    def _collar(self) -> dict[str, Any]:
        is_open = self.house.grid_is_open
        return {
            "part_num": "865-00400-r22",
            "serial_num": "482520020939",
            "installed": 1_752_939_759,
            "device_status": ["envoy.global.ok", "prop.done"],
            "last_rpt_date": self._time - 14,
            "admin_state": 88,
            "admin_state_str": "ENCMN_MDE_OFF_GRID" if is_open else "ENCMN_MDE_ON_GRID",
            "communicating": True,
            "temperature": 42,
            "mid_state": "open" if is_open else "close",
            "grid_state": "on_grid",
            "control_error": 0,
            "collar_state": "Installed",
        }

    @property
    def _mains(self) -> str:
        return "open" if self.house.grid_is_open else "closed"

    def _battery_power(self) -> Body:
        house, kind = self.house, self.house.kind
        if not (kind.battery_wh and kind.ensemble):
            return None
        share = house.iq_battery_w / 2
        return {
            "devices:": [
                {
                    "serial_num": f"49230100220{index + 1}",
                    "real_power_mw": round(share * 1000),
                    "apparent_power_mva": round(share * 1000),
                    "soc": round(house.soc),
                }
                for index in range(2)
            ]
        }

    def _secctrl(self) -> Body:
        house, kind = self.house, self.house.kind
        if not kind.has_storage:
            return None
        capacity = kind.battery_wh + kind.ac_battery_wh
        return {
            "shutdown": False,
            "configured_backup_soc": 10,
            "adjusted_backup_soc": 10,
            "agg_soc": round(100 * (house.stored_wh + house.ac_stored_wh) / capacity),
            "Max_energy": round(capacity),
            "ENC_agg_soc": round(house.soc),
            "ENC_agg_soh": 100,
            "ENC_agg_backup_energy": round(kind.battery_wh * 0.1),
            "ENC_agg_avail_energy": round(house.stored_wh),
            "Enc_commissioned_capacity": round(kind.battery_wh),
            "Enc_max_available_capacity": round(kind.battery_wh),
            "ACB_agg_soc": round(house.ac_soc),
            "ACB_agg_energy": round(house.ac_stored_wh),
            "VLS_Limit": 5,
        }

    def _relay(self) -> Body:
        if not (self.house.kind.has_generator or self.house.kind.has_collar):
            return None
        return {"mains_admin_state": "closed", "mains_oper_state": self._mains}

    def _generator(self) -> Body:
        if not self.house.kind.has_generator:
            return None
        state = "close" if self.house.generator_is_on else "open"
        return {
            "admin_state": state,
            "oper_state": state,
            "admin_mode": 2,
            "schedule": 1,
            "start_soc": 100,
            "stop_soc": -1,
            "exc_on": 0,
            "present": 1,
            "type": 1,
        }


_NOTHING = {"wattHoursToday": 0, "wattHoursSevenDays": 0, "wattHoursLifetime": 0, "wattsNow": 0}


async def _request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Read one request and return its method and path."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    method, path, _ = lines[0].split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    if length := int(headers.get("content-length", 0)):
        await reader.readexactly(length)
    return method, path


def _make_unsigned(values: dict[str, Any]) -> None:
    """Show negative powers and energies as a 32-bit field without a sign does."""
    for name in ("activePower", "instantaneousDemand", "actEnergyDlvd", "actEnergyRcvd"):
        if values[name] < 0:
            values[name] = UINT32 + round(values[name])


def _live_flow(powers: Sequence[float]) -> dict[str, int]:
    given = [round(power * 1000) for power in powers]
    lines = [*given, 0, 0, 0][:3]
    phases = {f"agg_p_ph_{letter}_mw": lines[index] for index, letter in enumerate("abc")}
    apparent = {f"agg_s_ph_{letter}_mva": round(lines[index] * 1.05) for index, letter in enumerate("abc")}
    return {"agg_p_mw": sum(given), "agg_s_mva": round(sum(given) * 1.05), **phases, **apparent}
