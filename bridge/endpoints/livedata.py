"""`/ivp/livedata/status` (brief, appendix H): the flows of this second, while the stream is on.

The gateway turns the stream off again after 15 minutes, so `sc_stream` is looked at in every answer. Firmware 7
lacks the per-phase keys, `phase_count`, `is_split_phase` and `enc_agg_*`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count, islice
from typing import Any

from bridge.endpoints.parsing import (
    MAX_LEVEL_LETTERS,
    PHASES_OF_SPLIT_PHASE,
    Parsed,
    ParseResult,
    parse_object,
    phases,
)
from bridge.model import BadAnswer, Facts, Phase, Quantity, Request, slug
from bridge.records import (
    ABSENT,
    COUNT,
    NUMBER,
    TEXT,
    TIME,
    UINT32,
    Epoch,
    Flag,
    LowerText,
    MillivoltAmperes,
    Milliwatts,
    Percent,
    PlainNumber,
    Record,
    StoredWattHours,
    clean,
    finite,
    wire,
)

STREAM_ON = Request("/ivp/livedata/stream", "POST", '{"enable": 1}')
LIVE_PV, LIVE_STORAGE, LIVE_GRID = "live/pv", "live/storage", "live/grid"
LIVE_LOAD, LIVE_GENERATOR, LIVE_SYSTEM = "live/load", "live/generator", "live/system"
DEVICE_OF_FLOW = {
    "pv": LIVE_PV,
    "storage": LIVE_STORAGE,
    "grid": LIVE_GRID,
    "load": LIVE_LOAD,
    "generator": LIVE_GENERATOR,
}
WIRE_PHASES = {Phase.L1: "a", Phase.L2: "b", Phase.L3: "c"}
FREE_INTERVAL_S = 60.0
MAX_KEYS = 256


class LiveFlow(Record):
    """The power of a flow, as a whole or in one phase."""

    power: Milliwatts = wire("agg_p_mw")
    apparent_power: MillivoltAmperes = wire("agg_s_mva")


class LiveStorage(Record):
    """The batteries, as `meters` has them."""

    soc: Percent = wire("soc", label="Charge")
    backup_soc: Percent = wire("backup_soc", label="Backup charge")
    encharge_soc: Percent = wire("enc_agg_soc", label="IQ Battery charge")
    acb_soc: Percent = wire("acb_agg_soc", label="AC Battery charge")
    encharge_energy: StoredWattHours = wire("enc_agg_energy", label="IQ Battery energy")
    acb_energy: StoredWattHours = wire("acb_agg_energy", label="AC Battery energy")
    backup_mode: PlainNumber = wire("backup_bat_mode", diagnostic=True)


class LiveSystem(Record):
    """The system as a whole, as `meters` has it. The relay codes are not documented."""

    main_relay: PlainNumber = wire("main_relay_state", diagnostic=True)
    generator_relay: PlainNumber = wire("gen_relay_state", diagnostic=True)
    split_phase: Flag = wire("is_split_phase", diagnostic=True)
    phase_count: PlainNumber = wire("phase_count", diagnostic=True)
    measured_at: Epoch = wire("last_update", diagnostic=True)

    def count(self, facts: Facts) -> int:
        """The number of phases, by the consumption meter, else by this answer."""
        if facts.meters is None:
            return 1
        if meter := facts.consumption():
            return meter.phase_count
        own = int(self.phase_count) if isinstance(self.phase_count, int | float) else 0
        return own or (PHASES_OF_SPLIT_PHASE if self.split_phase is True else 1)


class LiveConnection(Record):
    """The part of `connection` that the bridge acts on; all parts are published."""

    stream: LowerText = wire("sc_stream", diagnostic=True)


class LiveData(Record):
    """The answer."""

    connection: Any = None
    meters: Any = None
    tasks: Any = None
    counters: Any = None


def split_livedata(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the flows, and the objects beside them. `/ivp/ensemble/status` has `counters`, too.

    Raises:
        BadAnswer: the answer is none of this endpoint.
    """
    result = ParseResult()
    status = parse_object(LiveData, body, result.problems)
    if status.meters is None and status.connection is None:
        raise BadAnswer("the answer has neither meters nor a connection")
    if isinstance(status.meters, dict):
        _add_meters(result, status.meters, facts)
    for name, quantity in (("connection", TEXT), ("tasks", NUMBER), ("counters", COUNT)):
        given = getattr(status, name)
        if isinstance(given, dict):
            _add_free_values(result, f"live/{name}", given, quantity)
    stream = _add_stream(result, status.connection)
    return result.parsed(request=STREAM_ON if stream == "disabled" else None, fresh=stream != "disabled")


def _add_stream(result: ParseResult, given: object) -> str | None:
    connection = LiveConnection.read(given, result.problems) if isinstance(given, dict) else None
    if connection is None or not isinstance(connection.stream, str):
        return None
    result.add(LIVE_SYSTEM, connection)
    return connection.stream


def _add_meters(result: ParseResult, given: dict[str, Any], facts: Facts) -> None:
    system = LiveSystem.read(given, result.problems)
    storage = LiveStorage.read(given, result.problems)
    lines = phases(system.count(facts)) if system else ()
    for name, device in DEVICE_OF_FLOW.items():
        if isinstance(given.get(name), dict):
            _add_flow(result, device, given[name], lines)
    if storage:
        result.add(LIVE_STORAGE, storage)
    if system:
        result.add(LIVE_SYSTEM, system)


def _add_flow(result: ParseResult, device: str, given: dict[str, Any], lines: tuple[Phase, ...]) -> None:
    if total := LiveFlow.read(given, result.problems):
        result.add(device, total)
    for phase in lines:
        letter = WIRE_PHASES[phase]
        wires = {"agg_p_mw": f"agg_p_ph_{letter}_mw", "agg_s_mva": f"agg_s_ph_{letter}_mva"}
        line = LiveFlow.read({key: given[name] for key, name in wires.items() if name in given}, result.problems)
        if line:
            result.add(device, line, phase)


def _add_free_values(result: ParseResult, device: str, given: Mapping[str, object], quantity: Quantity) -> None:
    """Add all values of an object with arbitrary keys. Keys that differ only in case are numbered."""
    seen: set[str] = set()
    for key, value in islice(given.items(), MAX_KEYS):
        plain_name = _plain_name(key)
        name = next(name for name in _numbered(plain_name) if name not in seen)
        seen.add(name)
        found = _free_value(name, value, quantity)
        if 0 < len(name) <= MAX_LEVEL_LETTERS and plain_name and found is not ABSENT:
            result.value(device, name, *found, diagnostic=True, interval=FREE_INTERVAL_S)


@lru_cache(MAX_KEYS)
def _plain_name(key: str) -> str:
    """A key as a name of a measurement. Results are kept, since each answer has the same keys."""
    return slug(key.lower(), "_", keep="_")


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in count(2))


def _free_value(name: str, value: object, quantity: Quantity) -> Any:
    """The quantity and the value; `ABSENT` for a value that can't be published."""
    if value is None:
        return quantity, None
    if name == "timestamp" and (seconds := finite(value)) is not None:
        return TIME, datetime.fromtimestamp(seconds, UTC) if 0 < seconds < UINT32 else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = finite(value)
        return ((quantity if quantity.numeric else NUMBER), number) if number is not None else ABSENT
    if isinstance(value, str):
        return TEXT, clean(value)
    return (TEXT, value) if isinstance(value, bool) else ABSENT
