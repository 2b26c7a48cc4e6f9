"""`/ivp/livedata/status` (brief, appendix H): the flows of this second, while the stream is on.

The gateway turns the stream off again after 15 minutes, so `sc_stream` is looked at in every answer. Firmware 7
lacks the per-phase keys, `phase_count`, `is_split_phase` and `enc_agg_*`.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from typing import Any

from bridge.endpoints.body import SPLIT_PHASES, Parsed, Sheet, phases, whole
from bridge.model import Facts, Phase, Quantity, Request
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
    Number,
    Percent,
    Record,
    StoredWattHours,
    finite,
    plain,
    wire,
)

STREAM_ON = Request("/ivp/livedata/stream", json={"enable": 1})
FLOWS = ("pv", "storage", "grid", "load", "generator")
WIRE_PHASES = {Phase.L1: "a", Phase.L2: "b", Phase.L3: "c"}
ONCE_A_MINUTE = 60.0
MOST_KEYS = 256


class Flow(Record):
    """Power of one flow, of the whole or of one phase."""

    power: Milliwatts = wire("agg_p_mw")
    apparent_power: MillivoltAmperes = wire("agg_s_mva")


class Storage(Record):
    """What `meters` says of the batteries."""

    soc: Percent = wire("soc", label="Charge")
    backup_soc: Percent = wire("backup_soc", label="Backup charge")
    encharge_soc: Percent = wire("enc_agg_soc", label="IQ Battery charge")
    acb_soc: Percent = wire("acb_agg_soc", label="AC Battery charge")
    encharge_energy: StoredWattHours = wire("enc_agg_energy", label="IQ Battery energy")
    acb_energy: StoredWattHours = wire("acb_agg_energy", label="AC Battery energy")
    backup_mode: Number = wire("backup_bat_mode", diagnostic=True)


class System(Record):
    """What `meters` says of the whole. The meaning of the relay codes is not documented."""

    main_relay: Number = wire("main_relay_state", diagnostic=True)
    generator_relay: Number = wire("gen_relay_state", diagnostic=True)
    split_phase: Flag = wire("is_split_phase", diagnostic=True)
    phase_count: Number = wire("phase_count", diagnostic=True)
    measured_at: Epoch = wire("last_update", diagnostic=True)

    def count(self, facts: Facts) -> int:
        """Phases that exist: those of the consumption meter, else what this answer says of itself."""
        if facts.meters is None:
            return 1
        if meter := facts.consumption():
            return meter.phase_count
        own = int(self.phase_count) if isinstance(self.phase_count, int | float) else 0
        return own or (SPLIT_PHASES if self.split_phase is True else 1)


class Connection(Record):
    """Only what is acted on; all of it is published."""

    stream: LowerText = wire("sc_stream", diagnostic=True)


class Status(Record):
    """The whole answer."""

    connection: Any = None
    meters: Any = None
    tasks: Any = None
    counters: Any = None


def split(body: bytes, facts: Facts, _now: float) -> Parsed:
    sheet = Sheet()
    status = whole(Status, body, sheet.problems)
    if isinstance(status.meters, dict):
        _meters(sheet, status.meters, facts)
    for name, quantity in (("connection", TEXT), ("tasks", NUMBER), ("counters", COUNT)):
        given = getattr(status, name)
        if isinstance(given, dict):
            _free(sheet, f"live/{name}", given, quantity)
    stream = _stream(sheet, status.connection)
    return sheet.parsed(request=STREAM_ON if stream == "disabled" else None, fresh=stream != "disabled")


def _stream(sheet: Sheet, given: object) -> str | None:
    connection = Connection.read(given, sheet.problems) if isinstance(given, dict) else None
    if connection is None or not isinstance(connection.stream, str):
        return None
    sheet.add("live/system", connection)
    return connection.stream


def _meters(sheet: Sheet, given: dict[str, Any], facts: Facts) -> None:
    system = System.read(given, sheet.problems)
    storage = Storage.read(given, sheet.problems)
    lines = phases(system.count(facts)) if system else ()
    for name in FLOWS:
        if isinstance(given.get(name), dict):
            _flow(sheet, f"live/{name}", given[name], lines)
    if storage:
        sheet.add("live/storage", storage)
    if system:
        sheet.add("live/system", system)


def _flow(sheet: Sheet, device: str, given: dict[str, Any], lines: tuple[Phase, ...]) -> None:
    if total := Flow.read(given, sheet.problems):
        sheet.add(device, total)
    for phase in lines:
        letter = WIRE_PHASES[phase]
        wires = {"agg_p_mw": f"agg_p_ph_{letter}_mw", "agg_s_mva": f"agg_s_ph_{letter}_mva"}
        line = Flow.read({key: given[name] for key, name in wires.items() if name in given}, sheet.problems)
        if line:
            sheet.add(device, line, phase)


def _free(sheet: Sheet, device: str, given: Mapping[str, object], quantity: Quantity) -> None:
    """An object whose keys are the gateway's own affair; equal keys but for their case are numbered."""
    seen: set[str] = set()
    for key, value in given.items():
        plain_name = _plain_name(key)
        name = next(name for name in _numbered(plain_name) if name not in seen)
        seen.add(name)
        found = _free_value(name, value, quantity)
        if plain_name and found is not ABSENT:
            sheet.value(device, name, *found, diagnostic=True, interval=ONCE_A_MINUTE)


@lru_cache(MOST_KEYS)
def _plain_name(key: str) -> str:
    """The same keys come with each answer."""
    return re.sub(r"[^a-z0-9_]+", "_", key.lower()).strip("_")


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in count(2))


def _free_value(name: str, value: object, quantity: Quantity) -> Any:
    """What such a value is: its quantity and itself."""
    if value is None:
        return quantity, None
    if name == "timestamp" and (seconds := finite(value)) is not None:
        return TIME, datetime.fromtimestamp(seconds, UTC) if 0 < seconds < UINT32 else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = finite(value)
        return ((quantity if quantity.numeric else NUMBER), number) if number is not None else ABSENT
    if isinstance(value, str):
        return TEXT, plain(value)
    return (TEXT, value) if isinstance(value, bool) else ABSENT
