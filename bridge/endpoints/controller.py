"""What the controller does: with the batteries (`/ivp/sc/sched`), and to limit solar power (`/ivp/sc/pvlimit`,
`/ivp/ss/dpel`, `/ivp/ss/pel_settings`, `/ivp/ss/pcs_settings`), and why (`/ivp/sc/status`).

Not in the brief. `pvlimit` and `pel_settings` are as seen on firmware 7.3 to 8.3. The other four are known from few
sites with firmware 8.2 and 8.3, so that what is not as it was seen there is left out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from bridge.endpoints.parsing import Parsed, ParseResult, parse_object
from bridge.endpoints.storage import SCHEDULER_SIGN, STORAGE_CONTROL
from bridge.model import Facts, Reading, printable
from bridge.records import (
    ABSENT,
    FLAG,
    MAX_TEXT_LETTERS,
    POWER,
    SHARE,
    STORED,
    TEXT,
    Absent,
    Amperes,
    Flag,
    FlagKey,
    LowerText,
    MaybeNumber,
    Milliseconds,
    Percentage,
    Record,
    Share,
    Text,
    finite,
    measurement,
    number,
    to_text,
    wire,
)

LIMIT_KIND = "limit"
LIMIT_PRODUCTION, LIMIT_EXPORT, LIMIT_INSTALLER, LIMIT_BREAKER = (
    f"{LIMIT_KIND}/production",
    f"{LIMIT_KIND}/export",
    f"{LIMIT_KIND}/installer",
    f"{LIMIT_KIND}/breaker",
)
FREE_PERCENT = 100
"""Percent of the rated power that are no limit."""

LimitWatts = Annotated[MaybeNumber, POWER, number(least=0)]
EnergyInForce = Annotated[MaybeNumber, STORED, number(least=0)]


# /ivp/sc/sched

MODE_CODE = re.compile(r"[A-Z]{2,3} - (?=.)")
NO_MODE, NO_ACTION = -1, "none"
ACTION = measurement("action", TEXT, label="Present task", enabled=True)


class Scheduler(Record):
    """What the controller has the batteries do, which need not be what the tariff says.

    `mode` is a place in the list `words`. It tells what the batteries were told last: they may rest all the same.
    """

    mode: Any = Field(default=None, validation_alias="acb_current_mode")
    words: Any = Field(default=None, validation_alias=SCHEDULER_SIGN)
    charge_from_grid: Flag = wire("Charge From Grid Allowed", enabled=True)
    forced_discharge: Flag = wire("Force Discharge", diagnostic=True)
    energy_lowest: EnergyInForce = wire("Agg VLS Energy", label="Energy at the lowest charge", diagnostic=True)
    energy_backup: EnergyInForce = wire("Agg Backup Energy", label="Energy reserved", diagnostic=True)
    energy_max: EnergyInForce = wire("max_energy", label="Highest energy in force", diagnostic=True)

    @property
    def action(self) -> str | None:
        """The word of the present mode, such as `Charge From PV`, without its code; `None` if it has none."""
        if self.mode == NO_MODE:
            return NO_ACTION
        place = self.mode if isinstance(self.mode, int) and not isinstance(self.mode, bool) else NO_MODE
        words = self.words if isinstance(self.words, list) else []
        word = to_text(words[place]) if 0 <= place < len(words) else None
        code = MODE_CODE.match(word) if word else None
        return word[code.end() :] if word and code else word


def split_sched(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read what is in force."""
    result = ParseResult()
    found = parse_object(Scheduler, body, result.problems)
    result.add(STORAGE_CONTROL, found)
    if found.mode is not None:
        result.readings.append(Reading(STORAGE_CONTROL, None, ACTION, found.action))
    return result.parsed()


# /ivp/sc/pvlimit


class PercentLimit(Record):
    """The limit on solar power in percent of the rated power. The gateway gives 100 where there is none."""

    is_on: FlagKey = wire("enable")
    percent: Percentage = wire("pv_limit_pct")

    @property
    def in_force(self) -> float | Absent | None:
        """The percentage that is in force; `None` if there is no limit, and absent if that is not known."""
        is_free = self.percent == FREE_PERCENT and self.is_on is not True
        if self.is_on is False or is_free:
            return None
        return ABSENT if self.percent is None else self.percent


def split_pvlimit(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the limit in percent, and learn whether there was ever one."""
    result = ParseResult()
    found = parse_object(PercentLimit, body, result.problems)
    percent = found.in_force
    result.add(LIMIT_PRODUCTION, found.model_copy(update={"percent": percent}))
    is_limited = isinstance(percent, int | float) and percent < FREE_PERCENT
    return result.parsed(facts=facts.with_gear([LIMIT_PRODUCTION] if is_limited else ()))


# /ivp/ss/dpel

FIRST_OF_UNKNOWN_KIND, FIRST_AS_NAMED = "8.3", "8.3.5232"
"""Before the first release, `export_limit` was seen to mean the opposite (8.2.4398); from the second one on it
means what it says. For those in between nobody has told.
"""


class DynamicLimit(Record):
    """The dynamic limit (DPEL): either on the power to the grid, or on the production."""

    active: Flag = wire("dynamic_pel_settings.enable")
    is_export: FlagKey = wire("dynamic_pel_settings.export_limit")
    power: LimitWatts = wire("dynamic_pel_settings.limit_value_W")

    def limits_export(self, facts: Facts) -> bool | None:
        """Whether it is on the power to the grid, not on the production; `None` if that is not known."""
        if not isinstance(self.is_export, bool):
            return None
        if not facts.is_from(FIRST_OF_UNKNOWN_KIND, if_unknown=True):
            return not self.is_export
        return self.is_export if facts.is_from(FIRST_AS_NAMED) else None


def split_dpel(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the limit: its power at what it limits, `None` at what it does not limit.

    `limit/export/active` is `None` where there is a limit, but it is not known what it limits.
    """
    result = ParseResult()
    found = parse_object(DynamicLimit, body, result.problems)
    is_on, for_export = found.active is True, found.limits_export(facts)
    if found.active is ABSENT:
        return result.parsed()
    row, power = DynamicLimit.table["power"], None if found.power is ABSENT else found.power
    active = for_export if is_on else found.active
    result.readings += (
        Reading(LIMIT_EXPORT, None, DynamicLimit.table["active"], active),
        Reading(LIMIT_EXPORT, None, row, power if is_on and for_export else None),
        Reading(LIMIT_PRODUCTION, None, row, power if is_on and for_export is False else None),
    )
    return result.parsed(facts=facts.with_gear([LIMIT_EXPORT] if is_on else ()))


# /ivp/ss/pel_settings


class InstallerLimit(Record):
    """The limit on the power to the grid that an installer has set (PEL). Times are in ms on the wire.

    The gateway has one field for its value, whose unit two other fields tell.
    """

    active: Flag = wire("PEL", diagnostic=True)
    power: LimitWatts = wire("PEL_Limit", diagnostic=True)
    percent: Share = wire("PEL_Limit", diagnostic=True)
    is_percent: FlagKey = wire("percent")
    is_apparent: FlagKey = wire("apparent")
    hard: Flag = wire("Hard_PEL", diagnostic=True)
    soft: Flag = wire("Soft_PEL", diagnostic=True)
    scope: LowerText = wire("Export_Limit_Type", diagnostic=True)
    response_soft: Milliseconds = wire("Resp_Time_SoftPEL", label="Response time, soft", diagnostic=True)
    response_hard: Milliseconds = wire("Resp_Time_HardPEL", label="Response time, hard", diagnostic=True)
    reset_hard: Milliseconds = wire("msReset_HardPEL", label="Reset time, hard", diagnostic=True)
    silence_allowed: Milliseconds = wire("Comm_Time_Loss", label="Time without meter", diagnostic=True)

    @property
    def unit(self) -> str | None:
        """The name of the field that has the value in its unit.

        `None` for no possible share, and for a limit in VA, which nobody has seen.
        """
        if self.is_percent is True:
            is_odd = isinstance(self.percent, int | float) and not 0 <= self.percent <= FREE_PERCENT
            return None if is_odd else "percent"
        return None if self.is_apparent is True else "power"


LIMIT_VALUES = frozenset({"power", "percent"})


def split_pel_settings(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the limit, whose value is `None` where it is off, and learn whether there was ever one."""
    result = ParseResult()
    found = parse_object(InstallerLimit, body, result.problems)
    none = dict.fromkeys(LIMIT_VALUES, None)
    shown = found if found.active is True else found.model_copy(update=none)
    result.add(LIMIT_INSTALLER, shown, without=LIMIT_VALUES - {found.unit})
    return result.parsed(facts=facts.with_gear([LIMIT_INSTALLER] if found.active is True else ()))


# /ivp/ss/pcs_settings

BREAKER_ACTIVE = measurement("active", FLAG, diagnostic=True)


class BreakerLimit(Record):
    """The control that protects the main panel (PCS): which parts of it are on, and the sizes that it goes by."""

    solar: Flag = wire("pcsOffering.PVOversubscription", diagnostic=True)
    battery: Flag = wire("pcsOffering.EnchargeOversubscription", diagnostic=True)
    ev_charger: Flag = wire("pcsOffering.EVSEMBTAvoidance", label="EV charger", diagnostic=True)
    panel: Flag = wire("pcsOffering.MPUAvoidance", label="Upgrade avoidance", diagnostic=True)
    busbar: Flag = wire("pcsOffering.BusbarPCS", diagnostic=True)
    main_breaker: Amperes = wire("mainCircuitBreaker", diagnostic=True)
    main_busbar: Amperes = wire("mainPanelBusbar", diagnostic=True)
    der_breaker: Amperes = wire("mainPanelDERBreaker", label="DER breaker", diagnostic=True)
    der3_breaker: Amperes = wire("der3Breaker", label="DER 3 breaker", diagnostic=True)
    solar_breaker: Amperes = wire("pvBreaker", diagnostic=True)
    battery_breaker: Amperes = wire("enchargeBreaker", diagnostic=True)
    meter_location: Text = wire("consumptionMeterLocation", label="Consumption meter's location", diagnostic=True)
    relay_action: LowerText = wire("relay_action", diagnostic=True)


PROTECTIONS = ("solar", "battery", "ev_charger", "panel", "busbar")


def split_pcs_settings(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read the control; it is active if a part of it is."""
    result = ParseResult()
    found = parse_object(BreakerLimit, body, result.problems)
    result.add(LIMIT_BREAKER, found)
    parts = [value for name in PROTECTIONS if isinstance(value := getattr(found, name), bool)]
    if parts:
        result.readings.append(Reading(LIMIT_BREAKER, None, BREAKER_ACTIVE, any(parts)))
    return result.parsed()


# /ivp/sc/status

NO_CAUSE, UNTOLD_CAUSE, OFF_GRID_CAUSE = (
    "none",
    "not told by the gateway",
    "off the grid, where the home and its batteries take no more",
)
EXPORT_CAUSE = "export limit"
CAUSES = {
    "pel": EXPORT_CAUSE,
    "export": EXPORT_CAUSE,
    "pcs": "protection of the main panel",
    "mpu": "protection of the main panel",
    "busbar": "protection of the main panel",
    "freq": "frequency",
    "volt": "voltage",
    "soc": "full batteries",
    "full": "full batteries",
}
"""Plain words for the controller's rules and events, by a part of their names in lower case."""
NO_EVENTS = frozenset({"", "0"})

SETPOINT = measurement("setpoint", SHARE, diagnostic=True)
CONTROLLER_CAUSE = measurement("controller_cause", TEXT, label="Cause by controller", diagnostic=True)
RULE_NAMES = measurement("rules", TEXT, diagnostic=True)
ACTIVE_RULES = measurement("rules_active", TEXT, label="Active rules", diagnostic=True)
EVENT_NAMES = measurement("events", TEXT, diagnostic=True)


class ControllerStatus(Record):
    """The useful parts of the answer. It has the meters' last samples, too, and is long."""

    nameplate: Any = None
    rules: Any = Field(default=None, validation_alias="profile")
    events: Any = None
    grid: Any = Field(default=None, validation_alias="disco")
    response: Any = None
    grid_profile: Text = wire("profile.profile_name", diagnostic=True)

    @property
    def rule_names(self) -> Mapping[int, str]:
        """The rules that the controller knows, by their numbers."""
        rules = [rule for kind in ("agg_rules", "phase_rules") for rule in _items(_part(self.rules).get(kind))]
        named = ((rule.get("RuleNum"), to_text(rule.get("RuleId"))) for rule in rules)
        return {number: name for number, name in named if isinstance(number, int) and name}

    @property
    def event_names(self) -> list[str]:
        """The controller's events."""
        given = self.events if isinstance(self.events, list) else []
        return [name for name in map(to_text, given) if name and name not in NO_EVENTS]

    @property
    def active_rules(self) -> list[str]:
        """The rules that steer phases on which solar power is limited."""
        known = self.rule_names
        numbers = [
            number
            for phase in _items(_part(self.response).get("phases"))
            if _is_limited(_setpoint(phase, "PV"))
            for name in ("active_f_rule", "active_v_rule")
            if isinstance(number := phase.get(name), int)
        ]
        return [known[number] for number in dict.fromkeys(numbers) if number in known]

    @property
    def cause(self) -> str | None:
        """Why solar power is limited, in plain words; `none` if it is not, `None` if that is not known."""
        solar = _setpoint(self.response, "PV")
        phases = [_setpoint(phase, "PV") for phase in _items(_part(self.response).get("phases"))]
        if solar is None:
            return None
        if not any(map(_is_limited, (solar, *phases))):
            return NO_CAUSE
        state = to_text(_part(self.grid).get("status"))
        off_grid = [OFF_GRID_CAUSE] if state and state.lower() != "closed" else []
        told = [_plain(name) or f"rule {name}" for name in self.active_rules]
        hinted = [words for words in map(_plain, self.event_names) if words]
        return ", ".join(dict.fromkeys(off_grid + told or hinted)) or UNTOLD_CAUSE

    def is_rated(self, kind: str) -> bool:
        """Whether there is equipment of this kind: ENC, ACB, PV."""
        powers = _part(self.nameplate).get(kind)
        return isinstance(powers, list) and any(map(finite, powers))


def _part(given: object) -> Mapping[str, Any]:
    return given if isinstance(given, dict) else {}


def _items(given: object) -> Iterator[Mapping[str, Any]]:
    return (item for item in (given if isinstance(given, list) else ()) if isinstance(item, dict))


def _setpoint(given: object, group: str) -> float | None:
    """The setpoint (%) of a group of equipment: 100 is free for PV, -100 is full charge for ENC."""
    groups = _items(_part(given).get("groups"))
    return next((finite(item.get("setpoint_val")) for item in groups if item.get("id") == group), None)


def _is_limited(setpoint: float | None) -> bool:
    return setpoint is not None and setpoint < FREE_PERCENT


def _plain(name: str) -> str | None:
    return next((words for part, words in CAUSES.items() if part in name.lower()), None)


def _listed(names: Iterable[str]) -> str:
    return printable(",".join(names), MAX_TEXT_LETTERS) or "none"


def split_sc_status(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read why solar power is limited, and what the batteries are steered to."""
    result = ParseResult()
    found = parse_object(ControllerStatus, body, result.problems)
    if (solar := _setpoint(found.response, "PV")) is not None:
        result.add(LIMIT_PRODUCTION, found)
        lists = (
            (RULE_NAMES, found.rule_names.values()),
            (ACTIVE_RULES, found.active_rules),
            (EVENT_NAMES, found.event_names),
        )
        result.readings += [
            Reading(LIMIT_PRODUCTION, None, SETPOINT, solar),
            Reading(LIMIT_PRODUCTION, None, CONTROLLER_CAUSE, printable(found.cause or "", MAX_TEXT_LETTERS)),
            *(Reading(LIMIT_PRODUCTION, None, row, _listed(names)) for row, names in lists),
        ]
    if found.is_rated("ENC") and (battery := _setpoint(found.response, "ENC")) is not None:
        result.readings.append(Reading(STORAGE_CONTROL, None, SETPOINT, battery))
    return result.parsed()
