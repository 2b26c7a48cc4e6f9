"""`set`: gives a command to the running bridge through the broker, and shows what becomes of it."""

import asyncio
import json
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bridge.commands.report import (
    EXIT_NOT_IN_FORCE,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    Report,
    configure_log,
)
from bridge.commands.session import DEFAULT_TIMING, CommandTiming
from bridge.control import MAX_SHOWN_LETTERS, CommandState, shown
from bridge.control.progress import WATCH_S
from bridge.model import BadSetting, BridgeError, Message, Rejected, Unavailable, printable
from bridge.mqtt import Broker
from bridge.service.leftovers import names_of
from bridge.service.peers import Peer, peer_topics, read_peer
from bridge.settings import SITE_PLACEHOLDER, LogSettings, Settings
from bridge.store import Store
from bridge.topics import text as as_topic

OTHERS_S = 0.5
"""Time after the first gateway in which the broker delivers what it has retained of the others."""
OVERRIDE_DELAY_S = 15.0
"""How much later than expected the bridge may tell that a command is overridden."""
MAX_HEARD, MAX_ANSWERS = 2_000, 100
"""Bridges and gateways, and answers, that are remembered: anybody may write to these topics."""


class StateMeaning(NamedTuple):
    """What a state means, in words, and the exit code of a command that ends so."""

    text: str
    code: int = 0


MEANINGS: Mapping[CommandState, StateMeaning] = {
    CommandState.ACCEPTED: StateMeaning("it waits for its turn"),
    CommandState.SENT: StateMeaning("the gateway has accepted it; the bridge looks whether it is obeyed"),
    CommandState.CONFIRMED: StateMeaning("it is in force"),
    CommandState.UNCONFIRMED: StateMeaning("the gateway has accepted it"),
    CommandState.IGNORED: StateMeaning("it is not in force", EXIT_NOT_IN_FORCE),
    CommandState.OVERRIDDEN: StateMeaning("it is no longer in force", EXIT_NOT_IN_FORCE),
    CommandState.SUPERSEDED: StateMeaning("a newer command sets the same value", EXIT_NOT_IN_FORCE),
    CommandState.REFUSED: StateMeaning("nothing was written", EXIT_REFUSED),
    CommandState.FAILED: StateMeaning("it has failed", EXIT_UNAVAILABLE),
    CommandState.EXPIRED: StateMeaning("it has waited for too long", EXIT_UNAVAILABLE),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks for. With `watch`, what becomes of it after it was confirmed is awaited, too."""

    target: str
    value: str
    hold: float | None = None
    force: bool = False
    dry_run: bool = False
    watch: bool = False

    def request(self, place: str, name: str) -> Message:
        """The request to the gateway with these topics. `name` is its id."""
        fields = {"set": self.target, "value": self.value, "id": name, "force": self.force, "dry_run": self.dry_run}
        body = json.dumps(fields | ({} if self.hold is None else {"hold": self.hold}))
        sender = f"iqgateway2mqtt set on {socket.gethostname()}"
        kind = "application/json"
        return Message(f"{place}/request", body, qos=1, content_type=kind, retain=False, sender=sender)


@dataclass(frozen=True, slots=True)
class ToldAnswer:
    """One answer of the bridge."""

    id: object
    target: object
    state: CommandState
    reason: str
    observed: object
    is_final: bool

    @classmethod
    def read(cls, payload: bytes) -> "ToldAnswer | None":
        """The answer in a message; `None` if no bridge can have written it."""
        try:
            body: dict[str, Any] = json.loads(payload)
            state, reason = CommandState(body["state"]), body.get("reason") or ""
            is_final = body["final"] is True
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        text = printable(str(reason), MAX_SHOWN_LETTERS)
        return cls(body.get("id"), body.get("set"), state, text, body.get("observed"), is_final)

    @property
    def text(self) -> str:
        """What it says, in words."""
        said = self.reason or MEANINGS[self.state].text
        if self.observed is None:
            return said
        in_force = as_topic(self.observed) if isinstance(self.observed, bool) else shown(self.observed)
        return f"{said} (in force: {in_force})"


class PolledGateways:
    """The gateways that bridges poll, as they say at the broker."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._names = settings, names_of(settings)
        self._bridges: dict[str, Peer] = {}
        self._has_sites = SITE_PLACEHOLDER in settings.mqtt.base_topic
        self._places: dict[str, str] = {}
        """What is above the topics of each gateway, by serial number, where that is not the same for all."""

    @property
    def topics(self) -> list[str]:
        """The topic filters of what bridges say."""
        base = self._settings.mqtt.base_topic.replace(SITE_PLACEHOLDER, "+")
        return [*peer_topics(self._names), *([f"{base}/+/state"] if self._has_sites else [])]

    def take(self, topic: str, payload: bytes) -> None:
        """Learn from a message."""
        place, _, kind = topic.rpartition("/")
        if place == self._names.bridges or place.startswith(f"{self._names.bridges}/"):
            peer = read_peer(self._bridges.get(place, Peer()), kind, payload)
            if peer is not None and (place in self._bridges or len(self._bridges) < MAX_HEARD):
                self._bridges[place] = peer
        elif kind == "state" and len(self._places) < MAX_HEARD:
            self._places[place.rpartition("/")[2]] = place

    def place(self, serial: str) -> str:
        """The topic of a gateway."""
        return self._places.get(serial) or f"{self._names.base}/{serial}"

    @property
    def serials(self) -> list[str]:
        """The gateways that are polled now, and whose topics are known."""
        online = [peer.gateways for peer in self._bridges.values() if peer.online]
        polled = frozenset[str]().union(*online)
        return sorted(polled & self._places.keys() if self._has_sites else polled)

    def serial_of(self, name: str | None) -> str | None:
        """The serial number of the gateway with this host or name; without one, of the only one configured."""
        own = self._settings.every_gateway
        found = [one for one in own if name in (one.host, one.base_url, one.name)] if name else own
        store = Store(self._settings.state_dir)
        if len(found) == 1:
            return found[0].serial or store.serial_of(found[0].host) or name
        return name

    def only(self, wanted: str | None) -> str:
        """The gateway that is wanted, or the only one.

        Raises:
            BadSetting: there are several.
            Unavailable: no bridge polls it, or none runs.
        """
        polled = ", ".join(self.serials)
        if not polled:
            raise Unavailable(self._why_none)
        if wanted is not None and wanted not in self.serials:
            raise Unavailable(f"no bridge polls the gateway {wanted} now, but {polled}")
        if wanted is None and len(self.serials) > 1:
            raise BadSetting(f"--gateway: several gateways are polled, name one of {polled}")
        return wanted or self.serials[0]

    @property
    def _why_none(self) -> str:
        """Why no bridge polls a gateway, and what to do."""
        if not self._bridges:
            return (
                f"no bridge publishes at {self._names.bridges}: does `iqgateway2mqtt run` use this broker and "
                f"BRIDGE_MQTT__BASE_TOPIC, and may this user read {self._names.root}/#?"
            )
        if not any(peer.online for peer in self._bridges.values()):
            return "the bridge is offline: start it, and look at its log"
        return "the bridge has not reached its gateway yet: `iqgateway2mqtt check` shows why"


class Conversation:
    """Asks the bridge that polls a gateway over one connection to the broker."""

    def __init__(self, settings: Settings, wish: Wish, report: Report, timing: CommandTiming) -> None:
        self._wish, self._report, self._timing = wish, report, timing
        self._time = asyncio.get_running_loop().time
        self._id = f"set-{secrets.token_hex(6)}"
        self._gateways = PolledGateways(settings)
        self._told: list[ToldAnswer] = []
        """The answers that were not reported yet."""
        self._answers_at: str | None = None
        """The topic of the gateway's answers, once it is known which one is meant."""
        self._refusal: str | None = None
        self._news = asyncio.Event()
        base = settings.mqtt.base_topic.replace(SITE_PLACEHOLDER, "+")
        self._broker = Broker(
            settings.mqtt,
            client_id=f"{settings.mqtt.client_id or 'iqgateway2mqtt'}-{self._id}",
            will=None,
            on_message=self._received,
            on_refusal=self._refused,
            subscriptions=[*self._gateways.topics, f"{base}/+/response"],
        )

    async def run(self, gateway: str | None, seconds: float) -> None:
        """Give the command, and report what becomes of it within so many seconds.

        Raises:
            BadSetting: there are several gateways, and none is named.
            BridgeError: there is no bridge, or the broker refuses us or ends the connection.
        """
        try:
            await self._broker.connect()
            serial = await self._find(gateway)
            self._report.section(f"Gateway {serial}: {self._wish.target} {shown(self._wish.value)}")
            place = self._gateways.place(serial)
            self._answers_at = f"{place}/response"
            await self._broker.send(self._wish.request(place, self._id))
            await self._follow(seconds)
        finally:
            await self._broker.close()
            self._broker.abort()

    async def _find(self, gateway: str | None) -> str:
        """The serial number of the gateway that is meant."""
        gateways = self._gateways
        wanted = gateways.serial_of(gateway)
        is_known = await self._until(
            lambda: wanted in gateways.serials if wanted else bool(gateways.serials), self._timing.echo
        )
        if wanted is None or (gateway is None and not is_known):
            await asyncio.sleep(OTHERS_S)
            wanted = None
        return gateways.only(wanted)

    # Messages

    def _received(self, topic: str, payload: bytes, _retained: bool) -> None:
        self._gateways.take(topic, payload)
        if topic == self._answers_at and len(self._told) < MAX_ANSWERS and (told := ToldAnswer.read(payload)):
            is_ours = told.id == self._id or told.target == self._wish.target
            self._told += [told] if is_ours else []
        self._news.set()

    def _refused(self, _topic: str, text: str) -> None:
        self._refusal = text
        self._news.set()

    async def _until(self, is_enough: Callable[[], bool], seconds: float) -> bool:
        """Wait until it is enough, but no longer than so many seconds. Returns whether it is.

        Raises:
            Rejected: the broker does not let this user ask, or read the answers.
            Unavailable: the connection has ended.
        """
        lost = asyncio.ensure_future(self._broker.lost())
        lost.add_done_callback(lambda _: self._news.set())
        try:
            async with asyncio.timeout(seconds):
                while not is_enough():
                    if self._refusal:
                        advice = "docs/brokers.md has access lists for users who may give commands"
                        raise Rejected(f"{self._refusal}; {advice}")
                    if lost.done():
                        raise Unavailable(f"the connection to the broker ended: {lost.result()}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return is_enough()
        finally:
            lost.cancel()
        return True

    # What becomes of the command

    async def _follow(self, seconds: float) -> None:
        """Report each answer, until what has become of the command is known."""
        ends_at, state, is_answered = self._time() + seconds, None, self._wish.dry_run
        while True:
            most = ends_at - self._time()
            most = most if is_answered else min(most, self._timing.listen)
            if not await self._until(lambda: bool(self._told), most):
                _end_without_answer(self._report, state, seconds)
                return
            reply = self._told.pop(0)
            if reply.id != self._id:
                if state is CommandState.CONFIRMED and reply.state is CommandState.SENT:
                    self._report.note("superseded", MEANINGS[CommandState.SUPERSEDED].text)
                    return
                continue
            state, is_answered = reply.state, True
            _show(self._report, reply)
            if state is CommandState.CONFIRMED and self._wish.watch:
                ends_at = self._time() + WATCH_S + OVERRIDE_DELAY_S
            elif reply.is_final:
                return


def _show(report: Report, told: ToldAnswer) -> None:
    if code := MEANINGS[told.state].code:
        report.problem(told.state, told.text, code)
    elif told.state is CommandState.UNCONFIRMED:
        report.note(told.state, told.text)
    elif told.is_final:
        report.ok(told.state, told.text)
    else:
        report.fact(told.state, told.text)


def _end_without_answer(report: Report, state: CommandState | None, seconds: float) -> None:
    """Report that no more answers have come. `state` is the one of the last answer."""
    if state is CommandState.CONFIRMED:
        report.ok("in force", "nothing has changed it back meanwhile")
    elif state is None:
        text = "the bridge does not answer: does it run, and may this user write requests and read responses?"
        report.problem("no answer", text, EXIT_UNAVAILABLE)
    else:
        text = f"no outcome within {seconds:g} s: the topic command of the gateway has the newest state"
        report.problem("no outcome", text, EXIT_UNAVAILABLE)


def run(
    settings: Settings,
    *,
    target: str,
    value: str,
    gateway: str | None,
    hold: float | None,
    force: bool,
    dry_run: bool,
    watch: bool,
    timeout: float,
    timing: CommandTiming = DEFAULT_TIMING,
) -> int:
    """Give a command, and show what becomes of it. Returns the exit code.

    Raises:
        BadSetting: there are several gateways, and none is named.
    """
    configure_log(LogSettings(level="ERROR", format=settings.log.format))
    report, wish = Report(), Wish(target, value, hold, force=force, dry_run=dry_run, watch=watch)

    async def converse() -> None:
        await Conversation(settings, wish, report, timing).run(gateway, timeout)

    try:
        asyncio.run(converse())
    except BadSetting:
        raise
    except BridgeError as error:
        report.fault("broker", error)
    return report.worst
