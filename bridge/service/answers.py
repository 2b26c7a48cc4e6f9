"""Publishes the answers to commands, logs them, and keeps the newest ones over restarts."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar

from bridge.control import Asked, CommandAnswer, CommandState, shown
from bridge.model import Message, Priority, printable
from bridge.mqtt import Received
from bridge.records import MOST_NUMBER
from bridge.service.output import GatewayLog
from bridge.service.publisher import Publish
from bridge.state import FileState, State
from bridge.topics import Names, text

MAX_REPLY_TOPIC_LETTERS, MAX_CORRELATION_BYTES, MAX_NEWEST_LETTERS = 256, 1_024, 255
REPLY_TOPIC = re.compile(r"[^$+#\x00][^+#\x00]*")
MAX_DATED = 10
"""Commands that the status page shows."""
UNNAMED_DEVICES = frozenset({"settings", "1"})
"""Last levels of devices that people need no name for."""


class SavedAnswer(State):
    """The newest answer to a command."""

    id: str = ""
    set: str | None = None
    value: Any = None
    state: CommandState = CommandState.FAILED
    reason: str | None = None
    observed: Any = None
    final: bool = True


class CommandsState(FileState):
    """The newest answers to the newest commands of a gateway, without refusals: anybody can cause these."""

    suffix: ClassVar[str] = "_commands"

    answers: tuple[SavedAnswer, ...] = ()
    contacts_until: float | None = None
    """until when (unix time) the states of contacts can't be believed"""

    @classmethod
    def of(cls, answers: Iterable[CommandAnswer], contacts_until: float | None) -> "CommandsState":
        """The state with these answers."""
        saved = (
            SavedAnswer(
                id=one.id,
                set=_cut(one.asked.target),
                value=_plain(one.asked.value),
                state=one.state,
                reason=one.reason,
                observed=_plain(one.observed),
                final=one.final,
            )
            for one in answers
            if one.state is not CommandState.REFUSED
        )
        return cls(answers=tuple(saved), contacts_until=contacts_until)

    @property
    def outcomes(self) -> Iterator[CommandAnswer]:
        """The answers."""
        for one in self.answers:
            yield CommandAnswer(Asked(one.set, one.value), one.id, one.state, one.reason, one.observed, one.final)


@dataclass(frozen=True, slots=True)
class DatedAnswer:
    """An answer, and when it was given."""

    answer: CommandAnswer
    at: datetime


class AnswerPublisher:
    """Publishes the answers to commands to one gateway. `now` is the wall clock.

    None can be had below the topic `discovery`: those who give commands need not have the right to write there.
    """

    def __init__(
        self,
        publish: Publish,
        names: Names,
        payload: str,
        *,
        discovery: str,
        now: Callable[[], float],
        log: GatewayLog,
    ) -> None:
        self._publish, self._names, self._payload, self._now, self._log = publish, names, payload, now, log
        self._discovery = discovery
        self.newest: deque[DatedAnswer] = deque(maxlen=MAX_DATED)
        """The newest answer to each of the newest commands of this run, the newest command last."""

    def reply_topic(self, received: Received, serial: str) -> str | None:
        """The response topic of a message. It may be none of ours: an answer there would be taken for a request."""
        topic, root = received.response_topic or "", self._names.root or self._names.base
        own = topic.startswith((f"{root}/", f"{self._discovery}/"))
        is_ours = own and not topic.startswith(f"{self._names.base}/{serial}/response/")
        is_short = (
            len(topic) <= MAX_REPLY_TOPIC_LETTERS and len(received.correlation or b"") <= MAX_CORRELATION_BYTES
        )
        return topic if REPLY_TOPIC.fullmatch(topic) and is_short and not is_ours else None

    def tell(self, outcome: CommandAnswer, serial: str) -> None:
        """Log and publish an answer."""
        self._log_outcome(outcome)
        when = datetime.fromtimestamp(round(self._now(), 3), UTC)
        base, at = f"{self._names.base}/{serial}", text(when)
        self._answer(outcome, base, at)
        if not outcome.quiet:
            self._keep(DatedAnswer(outcome, when))
            self._publish_newest(outcome, f"{base}/command", at)

    def _keep(self, dated: DatedAnswer) -> None:
        """Keep an answer in place of the one before to the same command."""
        for place, older in enumerate(self.newest):
            if older.answer.id == dated.answer.id:
                self.newest[place] = dated
                return
        self.newest.append(dated)

    def _log_outcome(self, outcome: CommandAnswer) -> None:
        asked, why = outcome.asked, f" ({outcome.reason})" if outcome.reason else ""
        extra = {"event": "command", "command": outcome.id, **({"from": asked.sender} if asked.sender else {})}
        line = f"command {outcome.id}: {shown(asked.target or '?')} {shown(asked.value)}: {outcome.state}{why}"
        self._log.info("%s%s", line, f", from {asked.sender}" if asked.sender else "", extra=extra)
        if outcome.note:
            self._log.warning("%s", outcome.note, extra=extra)

    def _answer(self, outcome: CommandAnswer, base: str, at: str) -> None:
        """Publish an answer, also where its sender wants it."""
        asked = outcome.asked
        body = {
            "id": outcome.id or None,
            "set": _cut(asked.target),
            "value": _plain(asked.value),
            "state": outcome.state.value,
            "reason": outcome.reason,
            "observed": _plain(outcome.observed),
            "at": at,
            "final": outcome.final,
            "dry_run": asked.dry_run,
            "event_type": outcome.state.value,
        }
        answer = Message(f"{base}/response", json.dumps(body), qos=1, content_type="application/json", retain=False)
        self._publish([answer])
        if asked.response_topic:
            self._publish([replace(answer, topic=asked.response_topic, correlation=asked.correlation)])

    def _publish_newest(self, outcome: CommandAnswer, topic: str, at: str) -> None:
        """Publish the newest answer as retained topics."""
        _, device, name = (*(outcome.asked.target or "").split("/"), "", "")[:3]
        what = name if device in UNNAMED_DEVICES else f"{device} {name}"
        why = f" ({outcome.reason})" if outcome.reason else ""
        line = printable(f"{what} {shown(outcome.asked.value)}: {outcome.state}{why}", MAX_NEWEST_LETTERS)
        values = {"text": line, "state": outcome.state.value, "id": outcome.id, "at": at}
        priority = Priority.AVAILABILITY
        if self._payload != "json":
            self._publish(
                Message(f"{topic}/{key}", value, qos=1, priority=priority) for key, value in values.items()
            )
        if self._payload != "values":
            body = json.dumps({"timestamp": at, **values})
            self._publish([Message(topic, body, qos=1, priority=priority, content_type="application/json")])


def _cut(value: str | None) -> str | None:
    return None if value is None else shown(value)


def _plain(value: object) -> object:
    """A value as documents have it. What is neither a number, a text nor a switch becomes a text."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float) and abs(value) <= MOST_NUMBER:
        return int(value) if value == int(value) else round(value, 3)
    return shown(value)
