"""Relays and the generator: `/ivp/ensemble/relay`, `/ivp/ensemble/dry_contacts`, `/ivp/ss/dry_contact_settings`,
`/ivp/ensemble/generator`, `/ivp/ss/gen_config`, `/ivp/ss/gen_mode` and `/ivp/ss/gen_schedule`.

Not in the brief: fields as seen on firmware 7.3 to 8.3.
"""

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import Field

from bridge.control import flag, number, time_of_day, words
from bridge.endpoints.inventory import MainsClosed
from bridge.endpoints.parsing import DeviceId, Parsed, ParseResult, decode, parse_object
from bridge.model import DAY_S, MINUTE_S, Facts, SourceName, UnitFacts
from bridge.records import (
    POWER,
    TEXT,
    Absent,
    Amperes,
    Converter,
    Flag,
    LowerText,
    PlainNumber,
    Record,
    Share,
    Text,
    Texts,
    finite,
    known_text,
    to_text,
    wire,
)

RELAY_MAINS, GENERATOR_DEVICE = "relay/mains", "generator/1"


def _choice(value: object, _info: object) -> str | None:
    """Convert a word to lower case. Here `none` is a value, and does not mean unknown."""
    is_none = isinstance(value, str) and value.strip().lower() == "none"
    return "none" if is_none else (to_text(value) or "").lower() or None


Choice = Annotated[str | Absent | None, TEXT, Converter(_choice)]


def _clock(unit: float) -> Converter:
    """A converter for times of day, counted from midnight in units of so many seconds, to texts such as `07:30`."""

    def convert(value: object, _info: object) -> str | None:
        found = finite(value)
        if found is None or not 0 <= found * unit <= DAY_S:
            return None
        minutes = int(found * unit // MINUTE_S)
        return f"{minutes // 60:02d}:{minutes % 60:02d}"

    return Converter(convert)


TimeOfDay = Annotated[str | Absent | None, TEXT, _clock(1)]
MinuteOfDay = Annotated[str | Absent | None, TEXT, _clock(MINUTE_S)]


# Relays

GRID_SWITCH = flag(
    "grid", SourceName.RELAY, 90, words=(("ON", "closed"), ("OFF", "open")), leaf="mains_admin_state"
)
"""It opens after about 28 s and closes after 15 s (firmware 8.3.6086)."""
CONTACT_SWITCH = words("contacts", SourceName.DRY_CONTACTS, 15, "open", "closed")
CONTACT_SETTINGS, CONTACT_SETTLES_S = SourceName.DRY_CONTACT_SETTINGS, 10
CONTACT_MODES = words("contacts", CONTACT_SETTINGS, CONTACT_SETTLES_S, "manual", "soc")
CONTACT_ACTIONS = words("contacts", CONTACT_SETTINGS, CONTACT_SETTLES_S, "apply", "shed", "schedule", "none")
CONTACT_CHARGES = number("contacts", CONTACT_SETTINGS, CONTACT_SETTLES_S, 0, 100)
CONTACT_TIMES = time_of_day("contacts", CONTACT_SETTINGS, CONTACT_SETTLES_S, unit=1)


class MainsRelay(Record):
    """The relay between home and grid, and those of the sources behind it."""

    grid_connected: MainsClosed = wire("mains_oper_state", label="Connection", enabled=True, control=GRID_SWITCH)
    state: LowerText = wire("mains_oper_state", diagnostic=True)
    admin_state: LowerText = wire("mains_admin_state", diagnostic=True)
    der1_state: PlainNumber = wire("der1_state", label="DER 1 state", diagnostic=True)
    der2_state: PlainNumber = wire("der2_state", label="DER 2 state", diagnostic=True)
    der3_state: PlainNumber = wire("der3_state", label="DER 3 state", diagnostic=True)
    srt12_state: LowerText = wire("srt12_state", label="SRT 12 state", diagnostic=True)
    srt13_state: LowerText = wire("srt13_state", label="SRT 13 state", diagnostic=True)
    battery_grid_mode: Text = wire("Enchg_grid_mode", diagnostic=True)
    solar_grid_mode: Text = wire("Solar_grid_mode", diagnostic=True)


class DryContact(Record):
    """A dry contact: `open` or `closed`."""

    id: Annotated[DeviceId, Field(validation_alias="id")]
    state: LowerText = wire("status", enabled=True, control=CONTACT_SWITCH)


class DryContactSettings(Record):
    """What a dry contact does, and when."""

    id: Annotated[DeviceId, Field(validation_alias="id")]
    name: Text = wire("load_name")
    type: Choice = wire("type", diagnostic=True)
    mode: Choice = wire("mode", control=CONTACT_MODES)
    grid_action: Choice = wire("grid_action", control=CONTACT_ACTIONS)
    microgrid_action: Choice = wire("micro_grid_action", control=CONTACT_ACTIONS)
    generator_action: Choice = wire("gen_action", control=CONTACT_ACTIONS)
    safe_state_action: Choice = wire("safe_state_action", diagnostic=True)
    soc_low: Share = wire("soc_low", label="Cut-off charge", control=CONTACT_CHARGES)
    soc_high: Share = wire("soc_high", label="Restore charge", control=CONTACT_CHARGES)
    priority: PlainNumber = wire("priority", diagnostic=True)
    override: Flag = wire("override", diagnostic=True)
    manual_override: Flag = wire("manual_override", diagnostic=True)
    essential_start: TimeOfDay = wire("essential_start_time", diagnostic=True, control=CONTACT_TIMES)
    essential_end: TimeOfDay = wire("essential_end_time", diagnostic=True, control=CONTACT_TIMES)
    black_start: PlainNumber = wire("black_s_start", diagnostic=True)
    black_start_retries: PlainNumber = wire("black_start_retries", diagnostic=True)
    action_retries: PlainNumber = wire("action_retries", diagnostic=True)
    pv_serials: Texts = wire("pv_serial_nb", label="PV serial numbers", diagnostic=True)
    pv_phases: Texts = wire("pv_phase_select", label="PV phases", diagnostic=True)

    @property
    def unit(self) -> UnitFacts:
        """What the contact is for."""
        name = known_text(self.name)
        return UnitFacts(name=name, is_used=name is not None or self.type not in {"none", None})


ContactT = TypeVar("ContactT", DryContact, DryContactSettings)


class DryContacts(Record):
    """The answer of both endpoints of dry contacts."""

    contacts: Any = Field(default=None, validation_alias="dry_contacts")


def split_relay(body: bytes, _facts: Facts, _now: float) -> Parsed:
    result = ParseResult()
    result.add(RELAY_MAINS, parse_object(MainsRelay, body, result.problems))
    return result.parsed()


class ControllerErrors(Record):
    """What is wrong with the system controller: bits whose meaning is not documented; 0 is nothing."""

    controller_errors: PlainNumber = wire("enpower_error_flags", diagnostic=True)


def split_errors(body: bytes, _facts: Facts, _now: float) -> Parsed:
    result = ParseResult()
    result.add("gateway", parse_object(ControllerErrors, body, result.problems))
    return result.parsed()


def split_contacts(body: bytes, _facts: Facts, _now: float) -> Parsed:
    result = ParseResult()
    for contact in _contacts(DryContact, body, result.problems):
        result.add(f"relay/{contact.id}", contact)
    return result.parsed()


def split_contact_settings(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the settings; learn what the owner calls each contact, and which ones have a load."""
    result, units = ParseResult(), dict[str, UnitFacts]()
    for contact in _contacts(DryContactSettings, body, result.problems):
        result.add(f"relay/{contact.id}", contact)
        units[f"relay/{contact.id}"] = contact.unit
    return result.parsed(facts=facts.with_gear((), units))


def _contacts(kind: type[ContactT], body: bytes, problems: list[str]) -> Iterator[ContactT]:
    answer = parse_object(DryContacts, body, problems)
    for item in answer.contacts if isinstance(answer.contacts, list) else ():
        contact = kind.read(item, problems)
        if contact and contact.model_fields_set == {"id"}:
            problems.append(f"{kind.__name__}: it has only an id")
        elif contact:
            yield contact


# Generator


def _rating(value: object, _info: object) -> float | None:
    """Convert a rating to W. `name_plate_rating_wat` was seen as 14 for a generator of 14 kW."""
    found = finite(value)
    return found * 1000 if found is not None and abs(found) < SMALLEST_RATING_W else found


GENERATOR_SETTLES_S = 30
GENERATOR_COMMANDS = words("generator", SourceName.GEN_MODE, GENERATOR_SETTLES_S, "off", "on", "auto")
GENERATOR_CHARGING = flag("generator", SourceName.GEN_CONFIG, GENERATOR_SETTLES_S)
EXERCISE_START = time_of_day("generator", SourceName.GEN_SCHEDULE, GENERATOR_SETTLES_S, unit=60)
EXERCISE_MINUTES = number("generator", SourceName.GEN_SCHEDULE, GENERATOR_SETTLES_S, 10, 60, step=10)
EXERCISE_WEEKS = number("generator", SourceName.GEN_SCHEDULE, GENERATOR_SETTLES_S, 1, 4)
WEEKDAYS = tuple((day.lower(), day) for day in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"))
EXERCISE_DAYS = words("generator", SourceName.GEN_SCHEDULE, GENERATOR_SETTLES_S, *WEEKDAYS)

SMALLEST_RATING_W = 1000
"""No smaller generator supplies a home, so smaller ratings are in kW."""
Rating = Annotated[float | Absent | None, POWER, Converter(_rating)]


class Generator(Record):
    """The generator. A `stop_soc` of -1 means none."""

    state: LowerText = wire("oper_state", enabled=True)
    admin_state: LowerText = wire("admin_state", diagnostic=True)
    mode: PlainNumber = wire("admin_mode", diagnostic=True)
    schedule: PlainNumber = wire("schedule", diagnostic=True)
    start_soc: Share = wire("start_soc", label="Start at charge")
    stop_soc: Share = wire("stop_soc", label="Stop at charge")
    exercising: Flag = wire("exc_on", diagnostic=True)
    present: Flag = wire("present", diagnostic=True)
    type: PlainNumber = wire("type", diagnostic=True)

    @property
    def there(self) -> bool:
        """Whether there is a generator. Without one, `admin_state` is `unknown`, and `present` or `type` is 0."""
        return bool(self.admin_state) or (self.present is True and self.type not in (0, None))


class GeneratorSettings(Record):
    """What the installer has entered. The installer's name is not read."""

    manufacturer: Text = wire("manufacturer", diagnostic=True)
    model: Text = wire("model", diagnostic=True)
    kind: Text = wire("gen_type", diagnostic=True)
    identifier: Text = wire("generator_id", diagnostic=True)
    rated_power: Rating = wire("name_plate_rating_wat", diagnostic=True)
    rated_current: Amperes = wire("max_cont_gen_amps", label="Highest continuous current", diagnostic=True)
    load_min: Share = wire("min_gen_loading_perc", label="Lowest load", diagnostic=True)
    efficiency_max: Share = wire("max_gen_efficiency_perc", label="Highest efficiency", diagnostic=True)
    start_method: Text = wire("start_method", diagnostic=True)
    warm_up: PlainNumber = wire("warm_up_mins", label="Warm-up minutes", diagnostic=True)
    cool_down: PlainNumber = wire("cool_down_mins", label="Cool-down minutes", diagnostic=True)
    charge_from_generator: Flag = wire("charge_from_generator", diagnostic=True, control=GENERATOR_CHARGING)


class GeneratorMode(Record):
    """What the generator is told to do."""

    command: LowerText = wire("gen_cmd", diagnostic=True, control=GENERATOR_COMMANDS)


class GeneratorSchedule(Record):
    """When the generator runs for exercise, if that was ever set: other answers have no `levels`."""

    levels: Any = Field(default=None, validation_alias="default_soc")
    exercise_start: MinuteOfDay = wire("exercise_config.start", diagnostic=True, control=EXERCISE_START)
    exercise_minutes: PlainNumber = wire("exercise_config.duration", diagnostic=True, control=EXERCISE_MINUTES)
    exercise_day: LowerText = wire("exercise_config.day", diagnostic=True, control=EXERCISE_DAYS)
    exercise_weeks: PlainNumber = wire(
        "exercise_config.freq_in_weeks", label="Weeks between exercises", diagnostic=True, control=EXERCISE_WEEKS
    )


def split_generator(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the generator, if there is one."""
    result = ParseResult()
    generator = parse_object(Generator, body, result.problems)
    if not generator.there:
        return result.parsed()
    result.add(GENERATOR_DEVICE, generator)
    return result.parsed(facts=facts.with_gear([GENERATOR_DEVICE]))


def split_generator_settings(body: bytes, facts: Facts, _now: float) -> Parsed:
    """Read the settings, and learn who made the generator; the answer is `{}` if nothing was ever set."""
    result = ParseResult()
    if decode(body) == {}:
        return result.parsed()
    found = parse_object(GeneratorSettings, body, result.problems)
    result.add(GENERATOR_DEVICE, found)
    unit = UnitFacts(maker=known_text(found.manufacturer), model=known_text(found.model))
    return result.parsed(facts=facts.with_gear((), {GENERATOR_DEVICE: unit}))


def split_generator_mode(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read what the generator is told to do."""
    return _of_generator(GeneratorMode, body)


def split_generator_schedule(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """Read when the generator runs for exercise."""
    return _of_generator(GeneratorSchedule, body)


def _of_generator(kind: type[Record], body: bytes) -> Parsed:
    """Read a record of the generator; the answer is `{}` if nothing was ever set."""
    result = ParseResult()
    if decode(body) != {}:
        result.add(GENERATOR_DEVICE, parse_object(kind, body, result.problems))
    return result.parsed()
