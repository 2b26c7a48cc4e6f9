"""How far the commands to one gateway are: from `accepted` to what has become of them (docs/control.md).

Pure: times are monotonic seconds that the caller passes in. The caller carries out the command that `next` gives,
tells with `sent`, `lost` or `end` what came of it, hands in all readings, and publishes the answers.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.control import (
    LIMIT_GROUP,
    LIMITS,
    MAX_SHOWN_LETTERS,
    Answers,
    Asked,
    CommandAnswer,
    CommandRefused,
    CommandState,
    Control,
    RefusalLimit,
    WantedValue,
    control_of,
    is_same,
)
from bridge.control.changes import SettingChange, make_change, make_sleep
from bridge.control.values import NOT_STORED, OBEYED_ELSEWHERE, ControlValues, is_ignored, why_ignored
from bridge.model import NEVER, Facts, Reading, SourceName, printable

MAX_WAITING = 8
"""Commands that may wait."""
WAIT_MAX_S = 60.0
"""A command that has waited for longer is not carried out any more."""
WRITE_PAUSE_S = 5.0
"""Least time from the end of a write to the next one."""
LOOK_PAUSE_S = 5.0
"""Time between two looks at what is in force."""
LOST_S = 60.0
"""Time in which it must be seen that a write whose answer was lost has taken effect."""
WATCH_S = 300.0
"""Time after a write in which it is noticed that something else changes the value back."""
REPEATED_S, MAX_RECENT = 10.0, 100
"""Time in which a message that may have been delivered before counts as the one before, and how many are known."""
NEWER = "a newer command asks for another value"
LACKING = "this gateway does not have it now"
NOT_TOLD = "it is stored, and this firmware does not tell whether it is in force"


@dataclass(slots=True, eq=False)
class Command:
    """A command that was accepted. `sent_at` is when the gateway took it, `lost_at` when its answer was lost, and
    `why_lost` tells why.

    `is_over` is set once its outcome is known. `is_stored` is whether the settings had it after the write, as far
    as is known, and `was_seen` whether its proof was read since.
    """

    asked: Asked
    id: str
    control: Control
    target: str
    wanted: WantedValue
    received_at: float
    sent_at: float | None = None
    lost_at: float | None = None
    why_lost: str = ""
    is_stored: bool = True
    was_seen: bool = False
    is_over: bool = False
    looked_at: float = NEVER

    @property
    def proof(self) -> str | None:
        """The topic that tells what is in force."""
        return self.control.proof_of(self.target)

    @property
    def ends_at(self) -> float:
        """When its outcome is decided at the latest, or when the watch after it ends."""
        if self.sent_at is None:
            return (self.lost_at or 0.0) + (WATCH_S if self.is_over else LOST_S)
        return self.sent_at + (WATCH_S if self.is_over else self.control.within)

    def expires_at(self, contacts_until: float) -> float:
        """When it has waited for too long. The time in which contacts stand does not count."""
        expires = self.asked.expires
        if expires is not None and expires < WAIT_MAX_S:
            return self.received_at + expires
        stands = self.control.source is SourceName.DRY_CONTACTS
        return max(self.received_at, contacts_until if stands else NEVER) + WAIT_MAX_S

    def unfulfilled(self, why_ignored: str) -> tuple[CommandState, str]:
        """What has become of it where its time is over and the value was not seen in force, and why."""
        lost = f"{self.why_lost}; " if self.sent_at is None else ""
        if not self.was_seen:
            return CommandState.FAILED, f"{lost}the gateway has not told since what is in force"
        return (CommandState.FAILED, f"{lost}it is not in force") if lost else (CommandState.IGNORED, why_ignored)


class Commands:
    """The commands to one gateway. `table` has what can be set, `allowed` are the groups that may be set."""

    def __init__(self, table: Mapping[str, Control], allowed: frozenset[str]) -> None:
        self._table, self._allowed = table, allowed
        self.values = ControlValues(table)
        self.facts: Facts | None = None
        self.all_known = False
        """Whether every source was asked since the start."""
        self._waiting: list[Command] = []
        self._watched: list[Command] = []
        self.answers = Answers()
        self._recent: deque[tuple[float, str, object, str]] = deque(maxlen=MAX_RECENT)
        """When each of the newest values was asked for, its target, the value, and the command's id."""
        self._written_at = NEVER
        self.refusals = RefusalLimit()
        self._warned: set[str] = set()
        """Groups whose refusal the log has told as a warning."""

    def __bool__(self) -> bool:
        """Whether there is something to do or to tell, now or later."""
        return bool(self._waiting or self._watched or self.refusals)

    # What is asked

    def ask(
        self, asked: Asked, own_id: str, now: float, *, is_away: bool, refusal: CommandRefused | None = None
    ) -> None:
        """Take a command, or refuse it. `own_id` is its id where the message has none.

        `is_away` is whether the gateway is known to be offline, and `refusal` why the message can't be read. Such a
        message does not end another command with its id.
        """
        if known := self._known(asked, now):
            self.answers.repeat(known, asked)
            return
        if refusal is not None:
            self.refuse(asked, refusal, "", now)
            return
        try:
            command = self._command(asked, asked.id or own_id, now)
        except CommandRefused as why:
            self.refuse(asked, why, own_id, now)
            return
        self._recent.append((now, command.target, asked.value, command.id))
        if is_away:
            self.end(command, CommandState.FAILED, "the gateway does not answer")
            return
        if not asked.dry_run:
            self._supersede(command.target)
            self._tell(command, CommandState.ACCEPTED, final=False)
        self._waiting.append(command)

    def refuse(self, asked: Asked, refusal: CommandRefused, own_id: str, now: float) -> None:
        """Refuse what a message asks for. The log warns once of each group that is not allowed."""
        if not self.refusals.accepts(now):
            return
        reason, group, note = str(refusal), refusal.needs, None
        if group and group not in self._warned:
            self._warned.add(group)
            note = f"a command for {printable(asked.target or '', MAX_SHOWN_LETTERS)} is {reason}"
        target, state = asked.target or "", CommandState.REFUSED
        control = control_of(self._table, target)
        value = self.values.observed(control.proof_of(target), target) if control else None
        answer = CommandAnswer(asked, asked.id or own_id, state, reason, value, quiet=refusal.quiet, note=note)
        self.answers.tell(answer)

    def _known(self, asked: Asked, now: float) -> CommandAnswer | None:
        """The newest answer to the same command, if it was asked for before."""
        if asked.id is not None:
            return self.answers.get(asked.id)
        if asked.duplicate:
            for when, target, value, name in reversed(self._recent):
                if target == asked.target and value == asked.value and now - when <= REPEATED_S:
                    return self.answers.get(name)
        return None

    def _command(self, asked: Asked, name: str, now: float) -> Command:
        """The command that a message asks for.

        Raises:
            CommandRefused: it can't be set, not to this value, or not now.
        """
        target = asked.target or ""
        control = control_of(self._table, target)
        group = LIMIT_GROUP if target in LIMITS else control.group if control else None
        if group is None:
            raise CommandRefused("there is nothing of this name that can be set", quiet=True)
        if group not in self._allowed:
            raise CommandRefused(f"not allowed: add {group} to BRIDGE_CONTROL__ALLOW", quiet=True, needs=group)
        if control is None:
            raise CommandRefused("not built yet")
        if self.all_known and target not in self.values:
            raise CommandRefused(LACKING, quiet=True)
        if asked.hold:
            raise CommandRefused("hold is for limits only")
        wanted = self.values.spelt(control.read(asked.value))
        if is_ignored(control, self.facts) and not asked.force:
            raise CommandRefused(f"{OBEYED_ELSEWHERE}: set it there, or ask with force")
        if len(self._waiting) >= MAX_WAITING:
            raise CommandRefused(f"{MAX_WAITING} commands wait already")
        return Command(asked, name, control, target, wanted, now)

    def _supersede(self, target: str) -> None:
        for kept in (self._waiting, self._watched):
            for older in [one for one in kept if one.target == target and not one.asked.dry_run]:
                kept.remove(older)
                if not older.is_over:
                    self.end(older, CommandState.SUPERSEDED, NEWER)

    # What to do

    def next(self, now: float) -> Command | None:
        """The command to carry out now. One for a value that was never read waits until all sources were asked."""
        if now < self._written_at + WRITE_PAUSE_S:
            return None
        for command in tuple(self._waiting):
            if self._must_wait(command, now):
                continue
            if command.target in self.values:
                self._waiting.remove(command)
                return command
            if self.all_known:
                self._waiting.remove(command)
                self.end(command, CommandState.REFUSED, LACKING)
        return None

    def _must_wait(self, command: Command, now: float) -> bool:
        """Whether the gateway can't tell at present what becomes of this command, or of one before it."""
        source, states = command.control.source, SourceName.DRY_CONTACTS
        if source is states:
            return self.values.contacts_stand(now)
        is_open = any(one.control.source is states and not one.is_over for one in self._watched)
        return source is SourceName.DRY_CONTACT_SETTINGS and is_open

    def look(self, now: float) -> SourceName | None:
        """The source to ask now, since it tells whether a written value is in force."""
        due = (one for one in self._watched if now - one.looked_at >= LOOK_PAUSE_S)
        source = next(filter(None, (self.values.source_of(one.control, one.proof) for one in due)), None)
        for command in self._watched if source else ():
            if self.values.source_of(command.control, command.proof) is source:
                command.looked_at = now
        return source

    def delay(self, now: float) -> float:
        """Seconds until `next`, `look` or `tick` may have something to do."""
        times = [command.ends_at for command in self._watched]
        times += [one.looked_at + LOOK_PAUSE_S for one in self._watched if one.proof in self.values]
        times += [command.expires_at(self.values.contacts_until) for command in self._waiting]
        if self.refusals:
            times.append(self.refusals.ends_at)
        if self._waiting:
            times.append(max(now + 1.0, self._written_at + WRITE_PAUSE_S))
        return max(0.0, min(times, default=now + WATCH_S) - now)

    def change(self, command: Command, body: bytes) -> SettingChange:
        """The request that carries a command out, from what is stored now.

        Raises:
            CommandRefused: something speaks against it.
        """
        control, target, wanted = command.control, command.target, command.wanted
        self.values.check(control, wanted, force=command.asked.force)
        if control.source is SourceName.ACB_CONFIG:
            return make_sleep(target, wanted is True, self.values.sleep_levels(target), body)
        return make_change(control, target, wanted, body)

    # What becomes of it

    def wrote(self, command: Command, now: float) -> None:
        """A write is over, whatever came of it."""
        self._written_at = now
        if command.control.source is SourceName.DRY_CONTACT_SETTINGS:
            self.values.contacts_written(now)

    def sent(self, command: Command, now: float) -> None:
        """The gateway has taken the write."""
        command.sent_at = now
        self._tell(command, CommandState.SENT, final=False)
        self._watched.append(command)

    def lost(self, command: Command, now: float, why: str) -> None:
        """The answer to the write was lost: it may have taken effect."""
        command.lost_at, command.why_lost = now, why
        self._watched.append(command)

    def checked(self, command: Command, *, is_stored: bool, differences: Sequence[str]) -> None:
        """The settings were read again after the write. Of those that were not asked for, some may differ."""
        command.is_stored = is_stored
        if differences:
            note = f"{command.target}: more than this has changed: {'; '.join(differences)}"
            state = CommandState.ACCEPTED if command.sent_at is None else CommandState.SENT
            self._tell(command, state, note, final=False, note=note)
        if command.proof in self.values or command.is_over or command not in self._watched:
            return
        self._watched.remove(command)
        if not is_stored:
            self.end(command, CommandState.FAILED if command.sent_at is None else CommandState.IGNORED, NOT_STORED)
        else:
            lost = "the answer was lost; " if command.sent_at is None else ""
            self.end(command, CommandState.UNCONFIRMED, lost + NOT_TOLD)

    def is_watched(self, command: Command) -> bool:
        """Whether it was written, and its outcome is not known yet or may change."""
        return command in self._watched

    def observe(self, source: SourceName, readings: Iterable[Reading]) -> None:
        """Take what an answer tells, and decide what has become of the commands that it concerns."""
        news = self.values.take(source, readings)
        for command in [one for one in self._watched if one.proof in news]:
            self._judge(command, follows=is_same(command.wanted, self.values.observed(command.proof)))

    def _judge(self, command: Command, *, follows: bool) -> None:
        command.was_seen = True
        if follows and not command.is_over:
            command.is_over = True
            lost = "the answer was lost" if command.sent_at is None else None
            self._tell(command, CommandState.CONFIRMED, lost)
        elif command.is_over and not follows:
            self._watched.remove(command)
            self.end(command, CommandState.OVERRIDDEN, "something else has changed it, such as Enphase's cloud")

    def tick(self, now: float) -> None:
        """End what has waited for too long, and what was watched for long enough."""
        until = self.values.contacts_until
        for command in [one for one in self._waiting if now >= one.expires_at(until)]:
            self._waiting.remove(command)
            self.end(command, CommandState.EXPIRED, "it has waited for too long")
        for command in [one for one in self._watched if now >= one.ends_at]:
            self._watched.remove(command)
            if not command.is_over:
                why = why_ignored(self.values, command.control, self.facts, is_stored=command.is_stored)
                self.end(command, *command.unfulfilled(why))

    def fail_waiting(self, reason: str) -> None:
        """End the commands that wait, since they can't be carried out."""
        given, self._waiting = self._waiting, []
        for command in given:
            self.end(command, CommandState.FAILED, reason)

    def abandon(self, reason: str) -> None:
        """End all open commands, since nothing more can be learnt of them."""
        given, self._watched = self._watched, []
        for command in given:
            if not command.is_over:
                self.end(command, CommandState.FAILED, reason)
        self.fail_waiting(reason)

    # Answers

    def end(self, command: Command, state: CommandState, reason: str) -> None:
        """Tell the last answer to a command, unless it is overridden later."""
        command.is_over = True
        self._tell(command, state, reason)

    def _tell(self, command: Command, state: CommandState, reason: str | None = None, **more: Any) -> None:
        value = self.values.observed(command.proof, command.target)
        self.answers.tell(CommandAnswer(command.asked, command.id, state, reason, value, **more))
