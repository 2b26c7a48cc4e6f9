"""A gateway whose answers a test writes by hand. They go from JSON through the whole pipeline of the bridge."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from samples import EIDS, SERIAL, parse, restored

from bridge.model import BadAnswer, Event, Facts, Reading
from bridge.pipeline import CountersState, Pipeline

SHORT = {
    "production": "production",
    "net": "net-consumption",
    "total": "total-consumption",
    "storage": "storage",
    "pv3p": "pv3p",
}
"""The roles of meters, by the short names that the tests use."""
MODES = {1: "single", 2: "split", 3: "three"}
PANEL_W = 290
"""The highest power of each microinverter."""
BATTERY = "492500000001"
MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
MORNING = datetime(2026, 6, 1, 8, tzinfo=UTC)
"""A Monday."""

MeterValues = tuple[float, float, float]
"""What a meter shows: W, and the Wh that it has delivered and received."""


class Answering:
    """One gateway and the bridge's pipeline for it.

    All times are seconds after `start`. `periods` are the seconds between two answers of a source, which the
    pipeline is told. `retained` is what an earlier run has left at the broker.
    """

    def __init__(
        self,
        *meters: str,
        phases: int = 1,
        start: datetime = MORNING,
        zone: tzinfo = UTC,
        netted: bool = True,
        third_party: bool = False,
        state: CountersState | None = None,
        retained: Mapping[str, float] | None = None,
        periods: Mapping[str, float] | None = None,
    ) -> None:
        self.roles, self.phases, self.start = meters, phases, start.timestamp()
        self.options: dict[str, Any] = {"netted": netted, "zone": zone, "third_party": third_party}
        self.periods = {"readings": 5.0, "livedata": 5.0, "power": 30.0, "energy": 300.0, **(periods or {})}
        self.pipeline = Pipeline(**self.options, state=state)
        self.facts = Facts(SERIAL, "D8.3.5167")
        self.shown: dict[str, Any] = {}
        self.highest: dict[str, float] = {}
        """The highest number that was ever published, by topic."""
        self.log: list[Event] = []
        self.storage_pending = False
        self.clock_error = 0.0
        """Seconds by which the wall clock of the bridge's machine is ahead."""
        self.eids = EIDS | {"total-consumption": 704643585}
        self.repeated: set[str] = set()
        """The values of the site that the last answer publishes even if they have not changed."""
        self.now = 0.0
        if retained:
            self.pipeline.seed(retained)

    # Answers

    def say(self, source: str, t: float, answer: object) -> bool:
        """Give the bridge an answer; return whether it was of use."""
        self.now = t
        wall = self.start + t + self.clock_error
        try:
            parsed = parse(source, answer, self.facts, wall)
            self.facts = parsed.facts or self.facts
            processed = self.pipeline.process(
                source,
                parsed,
                self.facts,
                now=wall,
                steady=t,
                period=self.periods.get(source, 0.0),
                storage_pending=self.storage_pending,
            )
        except BadAnswer:
            return False
        flows = self.pipeline.flows(processed.answer)
        self.repeated = {f"{each.device.removeprefix('site/')}/{each.name}" for each in flows if each.repeat}
        for reading in (*processed.readings, *flows):
            self._show(reading, wall)
        self.log += [*processed.events, *self.pipeline.site.take_events()]
        if flows:
            self.check_sum()
        return True

    def _show(self, reading: Reading, wall: float) -> None:
        phase = f"{reading.phase.value}/" if reading.phase else ""
        topic = f"{reading.device.removeprefix('site/')}/{phase}{reading.name}"
        self.shown[topic] = reading.value
        self.shown[f"{reading.device.removeprefix('site/')}/timestamp"] = wall
        if isinstance(reading.value, int | float):
            self.highest[topic] = max(reading.value, self.highest.get(topic, reading.value))

    def check_sum(self) -> None:
        """Home is the sum of the published flows, or unknown."""
        home = self.shown.get("home/power")
        if home is not None and self.shown.get("home/source") == "balance":
            parts = [self.shown.get(f"{flow}/power") or 0.0 for flow in ("solar", "grid", "battery", "generator")]
            assert abs(sum(parts) - home) < 0.002, (home, parts)

    def meters(self, t: float, *, off: Sequence[str] = (), roles: Sequence[str] | None = None) -> None:
        roles = self.roles if roles is None else roles
        self.say("meters", t, [self._meter(role, enabled=role not in off) for role in roles])

    def _meter(self, role: str, *, enabled: bool) -> dict[str, object]:
        return {
            "eid": self.eids[SHORT[role]],
            "state": "enabled" if enabled else "disabled",
            "measurementType": SHORT[role],
            "phaseMode": MODES[self.phases],
            "phaseCount": self.phases,
        }

    def readings(self, t: float, **meters: MeterValues) -> bool:
        answer = [
            {"eid": self.eids[SHORT[role]], "activePower": power, "actEnergyDlvd": given, "actEnergyRcvd": taken}
            for role, (power, given, taken) in meters.items()
        ]
        return self.say("readings", t, answer)

    def pcu(self, t: float, power: float, energy: float, *, today: float | None = None) -> bool:
        """The sum of the microinverters in `/ivp/pdm/energy`."""
        sums = {"wattHoursLifetime": energy, "wattsNow": power} | (
            {} if today is None else {"wattHoursToday": today}
        )
        return self.say("energy", t, {"production": {"pcu": sums}})

    def production(self, t: float, power: float, energy: float) -> bool:
        answer = {"wattHoursToday": 0, "wattHoursSevenDays": 0, "wattHoursLifetime": energy, "wattsNow": power}
        return self.say("production", t, answer)

    def inverters(
        self, t: float, each: float, *, count: int = 20, reported: float | None = None, highest: float = PANEL_W
    ) -> None:
        """Inverters that have last reported at the time `reported`."""
        date = self.start + (t - 60 if reported is None else reported)
        units = [
            {
                "serialNumber": f"1220000000{number:02}",
                "lastReportDate": int(date),
                "devType": 1,
                "lastReportWatts": each,
                "maxReportWatts": highest,
            }
            for number in range(count)
        ]
        self.say("inverters", t, units)

    def live(
        self, t: float, *, pv: float, storage: float = 0.0, grid: float, stream: str = "enabled", **more: object
    ) -> None:
        flows = {"pv": pv, "storage": storage, "grid": grid, "load": pv + storage + grid, "generator": 0.0}
        values = {name: {"agg_p_mw": round(power * 1000)} for name, power in flows.items()}
        charge = {"soc": 50, "enc_agg_soc": 50, "enc_agg_energy": 5000}
        system = {"last_update": int(self.start + t), "main_relay_state": 1}
        answer = {"connection": {"sc_stream": stream}, "meters": {**system, **charge, **values, **more}}
        self.say("livedata", t, answer)

    def batteries(self, t: float, power: float, *, soc: float = 50) -> None:
        """What the batteries themselves say in `/ivp/ensemble/power`."""
        unit = {"serial_num": BATTERY, "real_power_mw": round(power * 1000), "soc": soc}
        self.say("power", t, {"devices:": [unit]})

    def inventory(self, t: float, *, soc: float | None = 50, capacity: float = 10_000) -> None:
        """The storage gear: one battery, or none where `soc` is `None`."""
        unit = {"serial_num": BATTERY, "percentFull": soc, "encharge_capacity": capacity, "communicating": True}
        self.say("inventory", t, [] if soc is None else [{"type": "ENCHARGE", "devices": [unit]}])

    # What came of them

    def __getitem__(self, topic: str) -> Any:
        return self.shown.get(topic)

    @property
    def problem(self) -> str | None:
        return self.pipeline.site.problem(self.start + self.now + self.clock_error)

    def powers(self) -> dict[str, float | None]:
        flows = ("solar", "grid", "battery", "home")
        return {flow: self.shown[f"{flow}/power"] for flow in flows if f"{flow}/power" in self.shown}

    def later(self, **changes: Any) -> "Answering":
        """The next run of the bridge, with the state that this one has kept."""
        return self._next(state=restored(self.pipeline.state), **changes)

    def without_state(self, **changes: Any) -> "Answering":
        """The next run after the state was lost; what the broker retains is still there."""
        return self._next(retained=self.retained(), **changes)

    def retained(self) -> dict[str, float]:
        """The numbers at the broker, by topic below the gateway."""
        flows = ("solar", "grid", "battery", "home", "generator")
        return {
            f"site/{topic}" if topic.startswith(flows) else topic: float(value)
            for topic, value in self.shown.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def _next(self, **changes: Any) -> "Answering":
        run = Answering(*self.roles, phases=self.phases, periods=self.periods, **self.options, **changes)
        run.start, run.facts, run.eids, run.now = self.start, self.facts, self.eids, self.now
        return run


def times(first: float, last: float, step: float) -> list[float]:
    """Times from the first one to the last one, which is included where the steps reach it."""
    return [first + index * step for index in range(int((last - first) / step + 1e-9) + 1)]


def every(first: float, last: float, step: float, do: Callable[[float], object]) -> None:
    for t in times(first, last, step):
        do(t)
