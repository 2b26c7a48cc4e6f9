"""Carries out commands to one gateway between two polls, and learns what has become of them (docs/control.md)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

from bridge.control import (
    GRID_GROUP,
    MAX_MESSAGE_BYTES,
    Asked,
    CommandRefused,
    CommandState,
    read_request,
    read_value,
)
from bridge.control.changes import SettingChange
from bridge.control.progress import LACKING, LOOK_PAUSE_S, Command, Commands
from bridge.control.values import CONTACTS_STAND_S
from bridge.endpoints import CONTROLS, Parsed
from bridge.gateway.client import Gateway
from bridge.gateway.errors import EndpointRefused, GatewayFault, KeyChanged, RequestRefused, TokenRejected
from bridge.model import (
    NEVER,
    BridgeError,
    Rejected,
    SourceName,
    Unsupported,
    printable,
)
from bridge.mqtt import Received
from bridge.service.answers import AnswerPublisher, CommandsState, DatedAnswer
from bridge.service.identity import Identity
from bridge.service.output import GatewayLog
from bridge.service.sources import Source, Sources
from bridge.store import Store

WRITE_TIMEOUT_S = 30.0
"""Longest time for a write. Then its answer counts as lost."""
SAVE_PAUSE_S = 1.0
"""Least time between two saves of the newest answers, except before a write."""
MAX_SENDER_LETTERS = 64
Poll = Callable[[Source], Awaitable[BridgeError | None]]


class Commander:
    """The commands to one gateway. `allowed` are the groups of values that they may set.

    Times are the loop's, except those of `now`, which is the wall clock.
    """

    def __init__(
        self,
        gateway: Gateway,
        identity: Identity,
        sources: Sources,
        store: Store,
        *,
        publisher: AnswerPublisher,
        allowed: frozenset[str],
        now: Callable[[], float],
        log: GatewayLog,
    ) -> None:
        self._gateway, self._identity, self._sources, self._store = gateway, identity, sources, store
        self._publisher, self._log, self._is_on = publisher, log, bool(allowed)
        self._time, self._now = asyncio.get_running_loop().time, now
        self._commands = Commands(CONTROLS, allowed)
        self._news = asyncio.Event()
        self._unchecked: dict[Command, tuple[SettingChange, float]] = {}
        """The writes whose effect on what is stored was not looked at yet, and when that is due."""
        self._bodies: dict[SourceName, bytes] = {}
        self._saved_at, self._is_saved = NEVER, True

    @property
    def newest(self) -> Sequence[DatedAnswer]:
        """The newest answer to each of the newest commands of this run."""
        return tuple(self._publisher.newest)

    # Messages

    def receive(self, received: Received, place: str) -> None:
        """Take a message to this gateway. `place` is its topic below the gateway."""
        if received.retained or not received.payload:
            return
        asked, refusal = self._read(received, place)
        own_id, now = uuid4().hex[:12], self._time()
        self._commands.facts, self._commands.all_known = self._identity.facts, self._sources.tried
        is_away = self._sources.away(now) or self._sources.held(now)
        self._commands.ask(asked, own_id, now, is_away=is_away, refusal=refusal)
        self._news.set()
        self._tell()

    def _read(self, received: Received, place: str) -> tuple[Asked, CommandRefused | None]:
        asked = Asked(
            place.removesuffix("/set"),
            sender=printable(received.sender or "", MAX_SENDER_LETTERS) or None,
            response_topic=self._publisher.reply_topic(received, self._identity.serial or ""),
            correlation=received.correlation,
            expires=received.expires,
            duplicate=received.duplicate,
        )
        if len(received.payload) > MAX_MESSAGE_BYTES:
            return asked, CommandRefused(f"the message is longer than {MAX_MESSAGE_BYTES} bytes", quiet=True)
        if place == "request":
            fields, refusal = read_request(received.payload)
            return replace(asked, duplicate=False, **fields), refusal
        try:
            return replace(asked, value=read_value(received.payload)), None
        except CommandRefused as refusal:
            return asked, refusal

    # Work

    def open(self, serial: str) -> None:
        """Close the commands that were open when the bridge ended last."""
        state = self._store.load(serial, CommandsState)
        self._commands.answers.restore(state.outcomes, "the bridge was stopped")
        left = min(CONTACTS_STAND_S, (state.contacts_until or 0.0) - self._now())
        self._commands.values.contacts_until = self._time() + left
        self._tell()

    async def step(self, poll: Poll, *, is_away: bool) -> bool:
        """Do one thing, if there is one to do: carry out a command, or look at what became of one.

        `poll` asks a source, and `is_away` is whether the gateway is known to be offline. Returns whether it was
        asked for something.
        """
        self._news.clear()
        if not self._commands and self._is_saved:
            return False
        now = self._time()
        self._commands.tick(now)
        if left_out := self._commands.refusals.take(now):
            self._log.info("%d more commands were refused", left_out, extra={"event": "command"})
        if is_away:
            self._commands.fail_waiting("the gateway does not answer")
        has_asked = not is_away and await self._work(poll, now)
        self._tell()
        if not self._is_saved and now - self._saved_at >= SAVE_PAUSE_S:
            self._save()
        return has_asked

    async def _work(self, poll: Poll, now: float) -> bool:
        self._unchecked = {one: due for one, due in self._unchecked.items() if self._commands.is_watched(one)}
        self._commands.all_known = self._sources.tried
        if command := self._commands.next(now):
            await self._carry_out(command, poll)
            return True
        unchecked = next((change.source for change, due in self._unchecked.values() if now >= due), None)
        name = unchecked or self._commands.look(now)
        source = self._sources.by_name.get(name) if name else None
        if source is None:
            return False
        self._unchecked = {
            one: (change, now + LOOK_PAUSE_S if change.source is name else due)
            for one, (change, due) in self._unchecked.items()
        }
        await self._ask(poll, source)
        return True

    async def _ask(self, poll: Poll, source: Source) -> BridgeError | None:
        """Ask a source now, which does not move its next poll further away."""
        source.due = self._time()
        return await poll(source)

    async def _carry_out(self, command: Command, poll: Poll) -> None:
        """Carry a command out. Its sender hears of it also where that is broken off."""
        why = "the bridge was stopped"
        try:
            await self._change(command, poll)
        except Exception as fault:
            why = f"a fault of the bridge, {type(fault).__name__}"
            raise
        finally:
            if not command.is_over and not self._commands.is_watched(command):
                self._commands.end(command, CommandState.FAILED, why)

    async def _change(self, command: Command, poll: Poll) -> None:
        """Read what is stored, change one value, and write it: once, whatever comes of it."""
        source = self._sources.by_name.get(command.control.source)
        if source is None:
            why = f"BRIDGE_POLL__{command.control.source.upper()} is 0, so that it can't be read"
            self._commands.end(command, CommandState.FAILED, why)
            return
        if command.control.group == GRID_GROUP and (storage := self._sources.by_name.get(SourceName.SECCTRL)):
            await self._ask(poll, storage)  # the charge decides whether the home may leave the grid
        self._bodies[source.name] = b""
        error = await self._ask(poll, source)
        body = self._bodies.pop(source.name)
        is_lacking = error is None and not body  # it is not asked for devices that it does not have
        if is_lacking or isinstance(error, Unsupported):
            self._commands.end(command, CommandState.REFUSED, str(error or LACKING))
            return
        if error is not None:
            self._commands.end(command, CommandState.FAILED, f"what is stored can't be read: {error}")
            return
        try:
            change = self._commands.change(command, body)
        except CommandRefused as refusal:
            self._commands.end(command, CommandState.REFUSED, str(refusal))
            return
        if command.asked.dry_run:
            self._commands.end(command, CommandState.ACCEPTED, change.told)
            return
        if change.source is SourceName.DRY_CONTACT_SETTINGS:  # kept before the write: a restart may follow it
            self._commands.values.contacts_written(self._time())
            self._is_saved = False
        self._save()
        await self._write(command, change)

    async def _write(self, command: Command, change: SettingChange) -> None:
        commands = self._commands
        try:
            await self._gateway.fetch(change.request, deadline=WRITE_TIMEOUT_S)
        except (GatewayFault, KeyChanged, TokenRejected) as error:
            commands.end(command, CommandState.FAILED, str(error))
        except EndpointRefused as error:
            why = f"{error}: a token of the installer's role may be needed"
            commands.end(command, CommandState.REFUSED, why)
        except (Unsupported, Rejected, RequestRefused) as error:
            commands.end(command, CommandState.REFUSED, str(error))
        except BridgeError as error:  # also an answer that can't be used: it may come after the effect
            self._log.info("command %s: the answer was lost: %s", command.id, error, extra={"event": "command"})
            commands.lost(command, self._time(), str(error))
        else:
            commands.sent(command, self._time())
        commands.wrote(command, self._time())
        self._tell()
        if commands.is_watched(command):
            self._unchecked[command] = (change, self._time())

    # What polls bring

    def observe(self, source: Source, parsed: Parsed, body: bytes) -> Parsed:
        """Take what an answer tells. Returns it with the states of contacts that can be believed."""
        if not self._is_on:
            return parsed
        steady = self._commands.values.steady(source.name, parsed.readings, self._time())
        if source.name in self._bodies:
            self._bodies[source.name] = body
        self._commands.observe(source.name, steady)
        for command, (change, _) in tuple(self._unchecked.items()):
            if change.source is source.name:
                self._check(command, change, body)
        self._tell()
        if steady is parsed.readings:
            return parsed
        known = [reading for reading in steady if reading.value is not None]
        return replace(parsed, readings=known)  # what an earlier run has published stands

    def _check(self, command: Command, change: SettingChange, body: bytes) -> None:
        """Compare what is stored now with what was written."""
        try:
            is_stored, differences = change.is_stored(body), change.differences(body)
        except CommandRefused as refusal:
            is_stored, differences = False, [str(refusal)]
        del self._unchecked[command]
        self._commands.checked(command, is_stored=is_stored, differences=differences)

    # Time

    def delay(self, now: float) -> float:
        """Seconds until `step` may have something to do."""
        times = [due for _, due in self._unchecked.values()]
        if not self._is_saved:
            times.append(self._saved_at + SAVE_PAUSE_S)
        if self._commands:
            times.append(now + self._commands.delay(now))
        return max(0.0, min(times, default=float("inf")) - now)

    async def rest(self, seconds: float) -> None:
        """Wait so many seconds, or until a command comes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def stop(self, reason: str) -> None:
        """End all commands, since this bridge polls the gateway no more."""
        self._commands.abandon(reason)
        self._tell()
        if not self._is_saved:
            self._save()

    def _save(self) -> None:
        serial = self._identity.serial
        if serial is None or self._is_saved:
            return
        self._is_saved, self._saved_at = True, self._time()
        left = self._commands.values.contacts_until - self._time()
        until = self._now() + left if left > 0 else None
        self._store.save(serial, CommandsState.of(self._commands.answers, until))

    def _tell(self) -> None:
        for outcome in self._commands.answers.take():
            self._is_saved &= outcome.state is CommandState.REFUSED
            self._publisher.tell(outcome, self._identity.serial or "")
