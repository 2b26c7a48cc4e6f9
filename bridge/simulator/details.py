"""`/ivp/pdm/device_data`: what each inverter said in its last report, up to a limit, and the meters beside them."""

from bridge.model import Phase
from bridge.simulator.answers import FRESH
from bridge.simulator.electrics import frequency_of, volts_of
from bridge.simulator.homes import NET, PRODUCTION, Home, Inverter
from bridge.simulator.physics import REPORT
from bridge.simulator.rendering import Json, pretty
from bridge.simulator.truth import Flow, InverterTruth, Truth

LIMIT = 50
UNITS = LIMIT - 1
"""How many inverters real gateways show at most."""
FIRST_UNIT, FIRST_CHANNEL, STEP = 553648384, 1627390225, 256
FIRST_METER_CHANNEL = 1778385169
UINT32 = 2**32
JOULES = 3600
SHARES = {1: (1.0,), 2: (0.53, 0.47)}
"""How the power of an inverter is spread over its inputs."""
NOTHING = {"today": 0, "yesterday": 0, "week": 0}


def device_data(home: Home, truth: Truth) -> bytes:
    units = [*enumerate(zip(home.inverters, truth.inverters, strict=True))][:UNITS]
    meters = [meter for meter in home.meters if meter.enabled and meter.role in (PRODUCTION, NET)]
    return pretty(
        {
            **{str(FIRST_UNIT + STEP * place): _unit(home, truth, place, *unit) for place, unit in units},
            **{str(meter.eid): _meter(home, truth, place, meter.role) for place, meter in enumerate(meters)},
            "deviceCount": min(LIMIT, len(units) + len(meters)),
            "deviceDataLimit": LIMIT,
        }
    )


def _unit(home: Home, truth: Truth, place: int, unit: Inverter, told: InverterTruth) -> Json:
    shares = SHARES[unit.inputs]
    return {
        "devName": "pcu",
        "sn": unit.serial,
        "active": not unit.removed,
        "modGone": truth.at - told.reported_at >= FRESH,
        "channels": [_channel(home, place, unit, told, number) for number in range(len(shares))],
    }


def _channel(home: Home, place: int, unit: Inverter, told: InverterTruth, number: int) -> Json:
    eid, share = FIRST_CHANNEL + STEP * place + number, SHARES[unit.inputs][number]
    energies = {"today": told.today, "yesterday": told.yesterday, "week": told.week}
    return {
        "chanEid": eid,
        "created": told.reported_at,
        "wattHours": {name: round(energy * share) for name, energy in energies.items()},
        "watts": {"now": round(told.reported * share), "nowUsed": 0, "max": round(told.peak * share)},
        "lastReading": {} if unit.removed else _reading(home, place, unit, told, number),
        "lifetime": {}
        if unit.removed
        else {
            "createdTime": 1_600_000_000 + place,
            "duration": 30_000_000 + 977 * place,
            "joulesProduced": int(told.lifetime * share * JOULES) % UINT32,
        },
    }


def _reading(home: Home, place: int, unit: Inverter, told: InverterTruth, number: int) -> dict[str, Json]:
    """Inverters on split phases are connected to both."""
    at, share = told.reported_at, SHARES[unit.inputs][number]
    legs = range(home.legs) if home.phase_mode == "split" else (unit.leg,)
    watts, volts = told.reported * share, sum(volts_of(home, at, leg) for leg in legs) + 0.013 * place
    panel = 30.6 + 0.17 * (place % 23) + 1.9 * number
    return {
        "eid": FIRST_CHANNEL + STEP * place + number,
        "interval_type": 0,
        "endDate": at,
        "duration": REPORT,
        "flags": 0,
        "flags_hex": "0x0000000000000000",
        "joulesProduced": round(watts * REPORT),
        "acVoltageINmV": round(1000 * volts),
        "acFrequencyINmHz": round(1000 * frequency_of(home, at)),
        "dcVoltageINmV": round(1000 * panel),
        "dcCurrentINmA": round(1030 * watts / panel),
        "channelTemp": round(16 + watts / 14 + place % 5 + 2 * number),
        "pwrConvErrSecs": 0,
        "pwrConvMaxErrCycles": 0,
        "joulesUsed": 0,
        "leadingVArs": 0,
        "laggingVArs": 38,
        "acCurrentInmA": round(1000 * watts / volts) + 7,
        **{f"{phase.value}NAcVoltageInmV": 0 for phase in Phase},
        "rssi": 90 + place % 31,
        "issi": 60 + place % 17,
    }


def _meter(home: Home, truth: Truth, place: int, role: str) -> Json:
    """Small negatives are shown as they stand in 32 bits."""
    flows = truth.meters[role].phases.values()
    return {
        "devName": "eim",
        "sn": f"{home.serial}EIM{place + 1}",
        "active": True,
        "modGone": True,
        "channels": [
            _flow(truth, FIRST_METER_CHANNEL + STEP * place + leg, flow) for leg, flow in enumerate(flows)
        ],
    }


def _flow(truth: Truth, eid: int, flow: Flow) -> Json:
    end = int(truth.at // FRESH * FRESH)
    return {
        "chanEid": eid,
        "created": end,
        "wattHours": NOTHING,
        "watts": {"now": int(flow.power) % UINT32, "nowUsed": 0, "max": int(abs(flow.power)) + 1},
        "lastReading": {
            "eid": eid,
            "interval_type": 0,
            "endDate": end,
            "duration": FRESH,
            "curr_w": int(flow.power),
        },
        "lifetime": {"createdTime": 1_600_000_000, "duration": 30_000_600, "wh_dlvd_cum": int(flow.delivered)},
    }
