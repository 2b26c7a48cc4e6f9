"""The equipment that can be controlled: what it is at first, how batteries are used, and what writes change."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, NamedTuple

from bridge.simulator import ensemble
from bridge.simulator.http import Written
from bridge.simulator.presets import BatterySpec, Home, Personality
from bridge.simulator.truth import BatteryTruth, BatteryUse, Document, Equipment, Place

MICROJOULES_PER_WH = 3_600_000_000
"""One watt-hour in microjoules."""
TAPER_MS = 3_600_000
"""Batteries limit their power so that full or empty is this far away: the longest interval has one power."""
CHARGE_EFFICIENCY = 0.96
FULL_PERCENT = 100
SAVING_MODES = ("economy", "savings-mode")
"""In these modes the batteries give power only in the hours of `PEAK_HOURS`."""
PEAK_HOURS = range(16, 21)


class SimulatedBattery:
    """The state of one battery: its `energy` in uJ, its `power` in mW (positive when it discharges)."""

    def __init__(self, spec: BatterySpec, *, is_ac: bool) -> None:
        self.spec, self.is_ac = spec, is_ac
        self.full = spec.capacity * MICROJOULES_PER_WH
        self.energy = self.full * 55 // 100
        self.power = 0

    def request_power(self, power: int, floor: float) -> int:
        """Set the power (mW, + is discharge) as near to `power` as the battery can, and return it.

        It gives nothing below the charge `floor` (percent).
        """
        limit = self.spec.power * 1000
        spare = (
            self.energy - int(self.full * floor / 100)
            if power > 0
            else int((self.full - self.energy) / CHARGE_EFFICIENCY)
        )
        limit = min(limit, max(0, spare) // TAPER_MS)
        self.power = max(-limit, min(limit, power))
        return self.power

    def integrate(self, duration: int) -> None:
        energy = self.power * duration
        self.energy -= energy if energy > 0 else int(energy * CHARGE_EFFICIENCY)

    def truth(self) -> BatteryTruth:
        return BatteryTruth(
            self.spec.serial,
            soc=100 * self.energy / self.full,
            stored=self.energy / MICROJOULES_PER_WH,
            capacity=float(self.spec.capacity),
            is_ac=self.is_ac,
            power=self.power / 1000,
        )


def dispatch(batteries: Sequence[SimulatedBattery], equipment: Equipment, missing: int, hour: int) -> int:
    """Set the powers of the batteries for the power (mW) that the home misses, and return their sum.

    On the grid they cover nine tenths of it, or take as much of a surplus; off the grid they cover or take all.
    """
    use, on_grid = equipment.use, equipment.on_grid
    wanted = missing * 9 // 10 if on_grid else missing
    if on_grid and (use.mode == "backup" or (use.mode in SAVING_MODES and hour not in PEAK_HOURS)):
        wanted = min(0, wanted)
    floor = use.floor if on_grid else use.lowest
    capacity = sum(battery.full for battery in batteries) or 1
    total = 0
    for battery in batteries:
        power = wanted * battery.full // capacity
        if on_grid and use.charge_from_grid and battery.energy < battery.full * _grid_charge(use) / 100:
            power = -battery.spec.power * 1000
        if equipment.sleeping.get(battery.spec.serial):
            power = 0
        total += battery.request_power(power, floor)
    return total


def _grid_charge(use: BatteryUse) -> float:
    """Return the charge (percent) up to which the grid may charge the batteries."""
    return FULL_PERCENT if use.mode == "backup" else use.reserve


# The first state

NO_GENERATOR = {"admin_state": "unknown", "admin_mode": 0, "schedule": 0, "start_soc": 100, "stop_soc": -1}


def first_equipment(home: Home, personality: Personality | None = None) -> Equipment:
    """Return the equipment before the first write.

    Without a personality the tariff is not what is in force, and batteries are used down to their lowest charge.
    """
    text = resources.files(__package__).joinpath("first_documents.json").read_bytes()
    documents = json.loads(text, parse_float=Written)
    tariff, use, is_stale = documents["tariff"], BatteryUse(), False
    contacts = {item["id"]: item for item in documents["contact_settings"]}
    if personality is not None:
        is_stale = personality.follows == "app"
        tariff["storage_settings"]["opt_schedules"] = personality.optimized
        if personality.optimized is None:
            del tariff["storage_settings"]["opt_schedules"]
        use = BatteryUse("backup", 40.0, 12.0, True, 40.0) if is_stale else use_of(tariff)
        for item in contacts.values() if personality.booleans else ():
            item.update({name: item[name] == "true" for name in OVERRIDES})
    closed = ["NC1", "NO2"]
    if not home.has(*ensemble.SWITCHING_TYPES):
        closed = []
        contacts = {name: {**item, "type": "NONE", "load_name": ""} for name, item in contacts.items()}
    generator = {name: item for name, item in documents.items() if name.startswith("generator")}
    if not home.generator:
        generator = {name: {} for name in generator}
        generator["generator"] = {**documents["generator"], **NO_GENERATOR, "present": 0}
    positions = {name: "closed" if name in closed else "open" for name in contacts}
    return Equipment(tariff, positions, contacts, **generator, use=use, is_stale=is_stale)


def use_of(tariff: Document) -> BatteryUse:
    """Return how a controller that follows a tariff uses the batteries."""
    settings = tariff["storage_settings"]
    reserve, lowest = float(settings["reserved_soc"]), float(settings["very_low_soc"])
    return BatteryUse(settings["mode"], reserve, lowest, settings["charge_from_grid"], max(reserve, lowest))


# Writes

STORAGE_MODES = ("self-consumption", "backup", *SAVING_MODES)
POSITIONS = ("open", "closed")
CONTACT_ACTIONS = ("apply", "shed", "schedule", "none")
OVERRIDES = ("override", "manual_override")
CONTACT_FIELDS = {
    *("id", "type", "grid_action", "micro_grid_action", "gen_action", "essential_start_time", "essential_end_time"),
    *("priority", "black_s_start", *OVERRIDES, "load_name", "mode", "soc_low", "soc_high", "pv_serial_nb"),
}
"""What clients send of a contact. Newer firmware has more fields, and a write without these loses them."""
GENERATOR_MODES = ("off", "on", "auto")
"""The commands for the generator. The place of each is its number as `admin_mode`."""
CRASH_S = 60.0
"""For so long the service for contacts and generator gives no answer after it has crashed."""
CRASHING_PATHS = ("/ivp/ss/", ensemble.CONTACTS_PATH)

Effect = tuple[float | str, Place, Any]
"""When a place gets another value: after a delay with this name, or after this many seconds."""


class Refused(Exception):
    """A write is refused with a status and a reason."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class ServiceCrashed(Exception):
    """The service that a write is for crashes."""


class Change(NamedTuple):
    """A change that happens at unix time `at`."""

    at: float
    place: Place
    value: Any


class Controls:
    """The equipment of a home, and the changes to it that are under way. The caller tells the time.

    A write replaces the changes of its places that are still under way.
    """

    def __init__(self, home: Home, personality: Personality | None) -> None:
        self.home, self.personality = home, personality or Personality()
        self.equipment = first_equipment(home, personality)
        self._first_tariff = self._cloud_tariff = self.equipment.tariff
        self._coming: list[Change] = []
        self._crashed_until = 0.0

    def advance(self, now: float) -> Iterator[float]:
        """Carry out the changes that are due. Yield the time of each before it is carried out."""
        while self._coming and self._coming[0].at <= now:
            yield self._coming[0].at
            _, place, value = self._coming.pop(0)
            self.equipment = self.equipment.having(place, value)

    def is_down(self, path: str, now: float) -> bool:
        """Return whether the service for a path has crashed and not yet started again."""
        return now < self._crashed_until and path.startswith(CRASHING_PATHS)

    def reboot(self) -> None:
        """End what is under way. A gateway that follows only the app loses what was written to its tariff."""
        self._coming.clear()
        if self.equipment.is_stale:
            self.equipment = replace(self.equipment, tariff=self._first_tariff)

    def write(self, method: str, path: str, body: bytes, now: float) -> None:
        """Carry out a write, at once or with the delays of the personality.

        Raises:
            Refused: the gateway does not accept this.
            ServiceCrashed: the body has crashed the service.
        """
        writer = WRITERS.get((method, path))
        if writer is None:
            raise Refused("Method Not Allowed", 405)
        try:
            effects = writer(self, json.loads(body, parse_float=Written))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Refused("Bad Request") from error
        except ServiceCrashed:
            self._crashed_until = now + CRASH_S
            raise
        delays, places = self.personality.delays, {place for _, place, _ in effects}
        restored: list[Effect] = []
        if "undone" in delays:
            restored += [("undone", place, self.equipment.get(place)) for place in places]
        if "cloud" in delays and ("tariff",) in places:
            tariff = _changed(self._cloud_tariff, now + delays["cloud"], opt_schedules=True)
            restored += [("cloud", ("tariff",), tariff), ("cloud", ("use",), use_of(tariff))]
        self._schedule(now, [*effects, *restored])

    def set_by_app(self, now: float, place: Place, value: Any) -> None:
        """Change a place at once, as somebody does with the app. With `use` the stored tariff changes, too, unless
        it is stale.
        """
        effects: list[Effect] = [(0.0, place, value)]
        if place == ("use",) and not self.equipment.is_stale:
            settings = {"mode": value.mode, "reserved_soc": value.reserve, "very_low_soc": round(value.lowest)}
            tariff = _changed(self.equipment.tariff, now, **settings, charge_from_grid=value.charge_from_grid)
            self._cloud_tariff = tariff
            effects.append((0.0, ("tariff",), tariff))
        self._schedule(now, effects)

    def _schedule(self, now: float, effects: Sequence[Effect]) -> None:
        """Add changes in place of those that the same places have now, and carry out those that have no delay."""
        places = {place for _, place, _ in effects}
        delays = [self.personality.delays[when] if isinstance(when, str) else when for when, _, _ in effects]
        coming = [Change(now + delay, *effect[1:]) for delay, effect in zip(delays, effects, strict=True)]
        coming += [change for change in self._coming if change.place not in places]
        self._coming = sorted(coming, key=lambda change: change.at)
        for _ in self.advance(now):
            pass


def _changed(tariff: Document, at: float, **settings: Any) -> Document:
    """Return a tariff with other storage settings, of unix time `at`."""
    date = str(int(at))
    return {**tariff, "date": date, "storage_settings": {**tariff["storage_settings"], **settings, "date": date}}


def write_tariff(controls: Controls, given: Document) -> list[Effect]:
    """Store the given tariff, whatever it lacks. The controller follows it later, or not at all."""
    tariff, personality = given["tariff"], controls.personality
    use = use_of(tariff)
    _one_of(use.mode, STORAGE_MODES)
    if not isinstance(tariff["storage_settings"]["charge_from_grid"], bool):
        raise Refused("charge_from_grid")
    if not 0 <= max(use.lowest, use.reserve) <= FULL_PERCENT:
        raise Refused("storage_settings")
    follows = personality.follows == "stored"
    if personality.follows == "unoptimized":
        follows = not tariff["storage_settings"].get("opt_schedules")
    if personality.spoils_rates:
        tariff = {**tariff, "single_rate": {**tariff["single_rate"], "sell": 0}}
    return [(0.0, ("tariff",), tariff), *([("storage", ("use",), use)] if follows else [])]


def write_relay(controls: Controls, given: Document) -> list[Effect]:
    """Command the grid relay, which takes its time."""
    _need(controls.home.has(ensemble.CONTROLLER_TYPE))
    wanted = _one_of(given["mains_admin_state"], POSITIONS)
    return [(0.0, ("relay", "admin"), wanted), (wanted, ("relay", "oper"), wanted)]


def write_contact(controls: Controls, given: Document) -> list[Effect]:
    contact = given["dry_contacts"]
    return [("contact", ("contacts", _contact(controls, contact)), _one_of(contact["status"], POSITIONS))]


def write_contact_settings(controls: Controls, given: Document) -> list[Effect]:
    """Store the settings of a contact. An object that lacks one of `CONTACT_FIELDS` crashes the service.

    Some firmware refuses overrides that are no texts.
    """
    contact = given["dry_contacts"]
    name = _contact(controls, contact)
    if CONTACT_FIELDS - contact.keys():
        raise ServiceCrashed
    if controls.personality.booleans and any(isinstance(contact[key], bool) for key in OVERRIDES):
        raise Refused("field missing", 500)
    contact = {**contact, **{key: str(contact[key]).lower() for key in OVERRIDES}}
    _one_of(contact["mode"], ("manual", "soc"))
    for key in ("grid_action", "micro_grid_action", "gen_action"):
        _one_of(contact[key], CONTACT_ACTIONS)
    effects: list[Effect] = [("settings", ("contact_settings", name), contact)]
    if "hidden" in controls.personality.delays:
        effects += [(0.0, ("contacts_hidden",), True), ("hidden", ("contacts_hidden",), False)]
    return effects


def _contact(controls: Controls, contact: Document) -> str:
    _need(controls.home.has(*ensemble.SWITCHING_TYPES))
    return _one_of(contact["id"], controls.equipment.contacts)


def write_generator_mode(controls: Controls, given: Document) -> list[Effect]:
    """Command the generator, which then starts or stops. In the mode `auto` it runs only when it is needed."""
    _need(controls.home.generator)
    command = _one_of(given["gen_cmd"], GENERATOR_MODES)
    position = "close" if command == "on" else "open"
    state = {"admin_mode": GENERATOR_MODES.index(command), "admin_state": position, "oper_state": position}
    mode = {**controls.equipment.generator_mode, "gen_cmd": command}
    started: list[Effect] = [("generator", ("generator", name), value) for name, value in state.items()]
    return [("generator", ("generator_mode",), mode), *started]


def write_generator_settings(controls: Controls, given: Document) -> list[Effect]:
    """Store the settings. Without IQ Batteries `charge_from_generator` comes back true."""
    _need(controls.home.generator)
    if controls.equipment.generator_settings.keys() - given.keys():
        raise Refused("incomplete")
    settings = given if controls.home.batteries else {**given, "charge_from_generator": True}
    return [(0.0, ("generator_settings",), settings)]


def write_generator_schedule(controls: Controls, given: Document) -> list[Effect]:
    """Store the schedule, and apply its `default_soc`. Durations are not checked."""
    _need(controls.home.generator)
    start, stop = (given["default_soc"][name] for name in ("start_soc", "stop_soc"))
    if not start < stop or "schedule" not in given:
        raise Refused("default_soc")
    levels: list[Effect] = [(0.0, ("generator", "start_soc"), start), (0.0, ("generator", "stop_soc"), stop)]
    return [(0.0, ("generator_schedule",), given), *levels]


def write_sleep(controls: Controls, given: Document) -> list[Effect]:
    """Put AC Batteries to sleep, each with its two levels of charge."""
    effects: list[Effect] = []
    for item in given["acb_sleep"]:
        levels = {name: item[name] for name in ("sleep_min_soc", "sleep_max_soc")}
        if not 0 <= levels["sleep_min_soc"] <= levels["sleep_max_soc"] <= FULL_PERCENT:
            raise Refused("bad level")
        effects.append((0.0, ("sleeping", _ac_battery(controls, item)), levels))
    return effects


def write_waking(controls: Controls, given: Document) -> list[Effect]:
    return [(0.0, ("sleeping", _ac_battery(controls, item)), None) for item in given["acb_sleep"]]


def _ac_battery(controls: Controls, item: Document) -> str:
    return _one_of(item["serial_num"], [battery.serial for battery in controls.home.ac_batteries])


def _need(there: bool) -> None:
    """Refuse a write for equipment that a home does not have."""
    if not there:
        raise Refused("404 - Not Found", 404)


def _one_of(value: Any, known: Collection[str]) -> str:
    """Return a value, which must be one of those that are known."""
    if not isinstance(value, str) or value not in known:
        raise Refused("Bad Request")
    return value


WRITERS: Mapping[tuple[str, str], Callable[[Controls, Document], list[Effect]]] = {
    ("PUT", ensemble.TARIFF_PATH): write_tariff,
    ("POST", ensemble.RELAY_PATH): write_relay,
    ("POST", ensemble.CONTACTS_PATH): write_contact,
    ("POST", ensemble.CONTACT_SETTINGS_PATH): write_contact_settings,
    ("POST", ensemble.GENERATOR_MODE_PATH): write_generator_mode,
    ("POST", ensemble.GENERATOR_SETTINGS_PATH): write_generator_settings,
    ("POST", ensemble.GENERATOR_SCHEDULE_PATH): write_generator_schedule,
    ("PUT", ensemble.AC_BATTERIES_PATH): write_sleep,
    ("DELETE", ensemble.AC_BATTERIES_PATH): write_waking,
}
"""How a write is carried out, by method and path."""
