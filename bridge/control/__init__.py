"""What commands can set, and what a message asks for: a message becomes a wish or a refusal (docs/control.md)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from bridge.model import MINUTE_S, NEVER, SourceName, printable

MAX_MESSAGE_BYTES = 4_000
MAX_ID_LETTERS = 100
MAX_KNOWN = 100
"""Newest answers that are kept, one for each command."""
MAX_REFUSALS = 10
"""Refusals that are answered in a minute."""
MAX_SHOWN_LETTERS = 255
"""Longest text in an answer."""
LIMIT_GROUP, GRID_GROUP = "limit", "grid"
LIMITS = ("limit/export/power", "limit/production/power", "limit/production/percent")
"""Targets that are known and can't be set yet."""
TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
NUMBER_TEXT = re.compile(r"-?\d{1,15}(\.\d{1,15})?", re.ASCII)
FLAG_WORDS = {"on": True, "true": True, "off": False, "false": False}
REQUEST_KEYS = frozenset({"set", "value", "id", "hold", "dry_run", "force"})
SAME_NUMBER = 0.5
"""Whole numbers that differ by less are the same one."""

WantedValue = float | bool | str
"""A value that a command sets: a number, a switch, or a word or time of day."""


class CommandRefused(Exception):
    """A command is refused before anything is written. The text tells why.

    `quiet` is set where the command concerns nothing that may be set here: then only the sender is told. It `needs`
    a group that is not allowed.
    """

    def __init__(self, reason: str, *, quiet: bool = False, needs: str | None = None) -> None:
        super().__init__(reason)
        self.quiet, self.needs = quiet, needs


@dataclass(frozen=True, slots=True)
class Control:
    """How a value is set. It stands in the table beside the measurement that has the value.

    `source` is the endpoint whose answer has the value as it is stored, and `leaf` the name of the value there.
    `proof` is the topic, below the gateway, that tells what is in force. It is empty for the value's own topic, and
    `None` where nothing tells it. The proof follows within `within` seconds.
    A number is at least `lowest` and at most `highest`, in steps of `step`. `words` are the topic's, each with the
    gateway's own; a switch without words is a JSON boolean there. A time of day counts `unit` seconds.
    Firmware of the release `ignored_from` and later is known to ignore it.
    """

    group: str
    source: SourceName
    within: float
    takes: Literal["number", "word", "flag", "time"]
    proof: str | None = ""
    lowest: float = 0
    highest: float = 0
    step: float = 1
    words: tuple[tuple[str, str], ...] = ()
    unit: int = 1
    ignored_from: str | None = None
    leaf: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """The words that may be asked for."""
        return tuple(word for word, _ in self.words) if self.takes == "word" else ()

    def proof_of(self, target: str) -> str | None:
        """The topic that tells what is in force at a target; `None` where nothing tells it."""
        return target if self.proof == "" else self.proof

    def read(self, value: object) -> WantedValue:
        """The wanted value, from a text or from the JSON value that means the same.

        Raises:
            CommandRefused: it is none that this control takes.
        """
        found: WantedValue | None = None
        match self.takes:
            case "number":
                found = self._number(value)
            case "flag":
                found = value if isinstance(value, bool) else FLAG_WORDS.get(str(value).strip().lower())
            case "word":
                word = value.strip().lower() if isinstance(value, str) else None
                found = word if word in self.options else None
            case "time":
                text = value.strip() if isinstance(value, str) else ""
                found = text if TIME_OF_DAY.fullmatch(text) else None
        if found is None:
            raise CommandRefused(f"{shown(value)} can't be set: it takes {self.described}")
        return found

    def _number(self, value: object) -> float | None:
        if isinstance(value, str) and NUMBER_TEXT.fullmatch(value.strip()):
            value = float(value)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.lowest <= value <= self.highest
        ):
            return None
        return float(value) if (value - self.lowest) % self.step == 0 else None

    @property
    def described(self) -> str:
        """What it takes, in words."""
        match self.takes:
            case "number":
                steps = "whole numbers" if self.step == 1 else f"steps of {self.step:g}"
                return f"{steps} from {self.lowest:g} to {self.highest:g}"
            case "flag":
                return "ON or OFF"
            case "word":
                return ", ".join(self.options)
            case "time":
                return "a time of day such as 07:30"

    def wire(self, wanted: WantedValue) -> WantedValue:
        """The value as the gateway has it."""
        if isinstance(wanted, bool) and not self.words:
            return wanted
        if self.takes == "time" and (found := TIME_OF_DAY.fullmatch(str(wanted))):
            return float((int(found[1]) * 3600 + int(found[2]) * 60) // self.unit)
        key = {True: "ON", False: "OFF"}[wanted] if isinstance(wanted, bool) else wanted
        return next((own for word, own in self.words if word == key), wanted)


def is_same(wanted: WantedValue, value: object) -> bool:
    """Whether a value that was read is the wanted one. Both spellings of the economy mode mean the same."""
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    if isinstance(wanted, float):
        return isinstance(value, int | float) and abs(value - wanted) < SAME_NUMBER
    return SPELLINGS.get(str(value), value) == SPELLINGS.get(wanted, wanted)


SAVINGS, ECONOMY = "savings-mode", "economy"
SPELLINGS = {SAVINGS: ECONOMY}
"""Other spellings of a word that mean the same."""


def number(group: str, source: SourceName, within: float, lowest: float, highest: float, **more: Any) -> Control:
    """A number in a range."""
    return Control(group, source, within, "number", lowest=lowest, highest=highest, **more)


def words(group: str, source: SourceName, within: float, *given: str | tuple[str, str], **more: Any) -> Control:
    """One of these words, each alone where the gateway has the same one, or with the gateway's own."""
    pairs = tuple((word, word) if isinstance(word, str) else word for word in given)
    return Control(group, source, within, "word", words=pairs, **more)


def flag(group: str, source: SourceName, within: float, **more: Any) -> Control:
    """A switch."""
    return Control(group, source, within, "flag", **more)


def time_of_day(group: str, source: SourceName, within: float, unit: int) -> Control:
    """A time of day, which the gateway counts from midnight in units of so many seconds."""
    return Control(group, source, within, "time", unit=unit)


def control_of(table: Mapping[str, Control], target: str) -> Control | None:
    """The control of a target such as `relay/nc1/state`.

    In the table, `+` stands for the id of any device that the table does not name itself, as it does `relay/mains`.
    """
    device, _, name = target.rpartition("/")
    if target in table or any(own.startswith(f"{device}/") for own in table):
        return table.get(target)
    return table.get(f"{device.partition('/')[0]}/+/{name}")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a message asks for.

    `sender` is who it says to be from. The answers go to `response_topic` as well, with `correlation`. It may be
    carried out for `expires` seconds. `duplicate` is set where the message may have been delivered before.
    """

    target: str | None
    value: object = None
    id: str | None = None
    hold: bool = False
    dry_run: bool = False
    force: bool = False
    sender: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = field(default=None, repr=False)
    expires: float | None = None
    duplicate: bool = False


def read_value(payload: bytes) -> str:
    """The text of a message to the `set` topic of a target.

    Raises:
        CommandRefused: it is no text.
    """
    try:
        return payload.decode().strip()
    except UnicodeDecodeError:
        raise CommandRefused("the value is no text") from None


def read_request(payload: bytes) -> tuple[dict[str, Any], CommandRefused | None]:
    """The fields of a request, as those of `Asked`, and why it is refused, if it is.

    A request that is refused has the fields that could be read, so that the answer can name them.
    """
    try:
        given = json.loads(payload, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return {"target": None}, CommandRefused("the request is not valid JSON", quiet=True)
    if not isinstance(given, dict):
        return {"target": None}, CommandRefused("the request is no JSON object", quiet=True)
    target, value, own_id = given.get("set"), given.get("value"), given.get("id")
    name = str(own_id) if isinstance(own_id, str | int) and not isinstance(own_id, bool) else None
    is_id = name is not None and 0 < len(name) <= MAX_ID_LETTERS and printable(name, MAX_ID_LETTERS) == name
    fields = {
        "target": target if isinstance(target, str) else None,
        "value": value,
        "id": name if is_id else None,
        "hold": given.get("hold") is not None,
        "dry_run": given.get("dry_run") is True,
        "force": given.get("force") is True,
    }
    return fields, _refusal(given, is_id=is_id)


def _refusal(given: Mapping[str, Any], *, is_id: bool) -> CommandRefused | None:
    if own_unknown := sorted(given.keys() - REQUEST_KEYS):
        return CommandRefused(f"the request has an unknown field {shown(own_unknown[0])}", quiet=True)
    if not isinstance(given.get("set"), str):
        return CommandRefused("the request has no text set, such as storage/settings/reserve", quiet=True)
    if given.get("id") is not None and not is_id:
        return CommandRefused(f"the id must be a text of at most {MAX_ID_LETTERS} characters", quiet=True)
    for name in ("dry_run", "force"):
        if not isinstance(given.get(name, False), bool):
            return CommandRefused(f"{name} must be true or false", quiet=True)
    if "value" not in given:
        return CommandRefused("the request has no value", quiet=True)
    return None


def _no_number(text: str) -> None:
    raise ValueError(text)


def shown(value: object) -> str:
    """A value from outside, for people and for answers: one line of at most 255 characters."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value)
        except (ValueError, TypeError, RecursionError):
            value = "?"
    return printable(value, MAX_SHOWN_LETTERS)


class CommandState(StrEnum):
    """What has become of a command."""

    ACCEPTED = "accepted"
    SENT = "sent"
    CONFIRMED = "confirmed"
    IGNORED = "ignored"
    UNCONFIRMED = "unconfirmed"
    OVERRIDDEN = "overridden"
    REFUSED = "refused"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class CommandAnswer:
    """One answer to a command. The `id` is empty where none could be read.

    `observed` is what is in force, as it was read last.

    `quiet` answers go to the sender only. `note` is what the log has to warn of.
    """

    asked: Asked
    id: str
    state: CommandState
    reason: str | None = None
    observed: object = None
    final: bool = True
    quiet: bool = False
    note: str | None = None


class RefusalLimit:
    """Limits how many refusals are answered: who sends nonsense without end gets few answers, and costs little."""

    def __init__(self) -> None:
        self._since, self._answered, self._left_out = NEVER, 0, 0

    def accepts(self, now: float) -> bool:
        """Whether one more refusal is answered."""
        if now >= self.ends_at and not self._left_out:
            self._since, self._answered = now, 0
        self._answered += 1
        self._left_out += self._answered > MAX_REFUSALS
        return self._answered <= MAX_REFUSALS

    @property
    def ends_at(self) -> float:
        """When as many may be answered again."""
        return self._since + MINUTE_S

    def __bool__(self) -> bool:
        """Whether some were left out."""
        return self._left_out > 0

    def take(self, now: float) -> int:
        """How many were left out, once the time is over; 0 before."""
        if now < self.ends_at:
            return 0
        left_out, self._since, self._left_out = self._left_out, NEVER, 0
        return left_out


class Answers:
    """The answers that were not published yet, and the newest answer to each of the newest commands."""

    def __init__(self) -> None:
        self._newest: dict[str, CommandAnswer] = {}
        self._told: list[CommandAnswer] = []

    def __iter__(self) -> Iterator[CommandAnswer]:
        return iter(tuple(self._newest.values()))

    def get(self, name: str) -> CommandAnswer | None:
        """The newest answer to the command with this id."""
        return self._newest.get(name)

    def take(self) -> Sequence[CommandAnswer]:
        """The answers since the last call."""
        told, self._told = self._told, []
        return told

    def tell(self, outcome: CommandAnswer) -> None:
        """Give an answer, and keep it as the newest one to its command."""
        reason = printable(outcome.reason, MAX_SHOWN_LETTERS) if outcome.reason else None
        outcome = replace(outcome, reason=reason)
        self._told.append(outcome)
        self._newest.pop(outcome.id, None)
        self._newest[outcome.id] = outcome
        while len(self._newest) > MAX_KNOWN:
            del self._newest[next(iter(self._newest))]

    def repeat(self, known: CommandAnswer, asked: Asked) -> None:
        """Give an answer once more, to who asks now."""
        again = replace(known.asked, response_topic=asked.response_topic, correlation=asked.correlation)
        self._told.append(replace(known, asked=again))

    def restore(self, answers: Iterable[CommandAnswer], reason: str) -> None:
        """Take the newest answers of an earlier run. The commands that were open then have failed."""
        self._newest = {answer.id: answer for answer in answers}
        for answer in self:
            if not answer.final:
                self.tell(replace(answer, state=CommandState.FAILED, reason=reason, final=True))
