"""`clean`: lists what former settings or gateways that are gone left at the broker, and removes it with `--yes`."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Self

from bridge import discovery
from bridge.commands.ownership import MAX_BRIDGES, Found, Judgement, judge, title_of
from bridge.commands.report import EXIT_REFUSED, EXIT_UNAVAILABLE, Report, configure_log, plural
from bridge.commands.session import DEFAULT_TIMING, CommandTiming
from bridge.model import BridgeError, Message, Unavailable
from bridge.mqtt import Broker, MessageRefused
from bridge.service.leftovers import HOME_KEY, CleanOptions, Ownership, joined, root_of
from bridge.service.publisher import TreeState
from bridge.settings import LogSettings, MqttSettings, Settings
from bridge.store import Store

MAX_MESSAGES, MAX_KEPT = 1_000_000, 500_000
"""Retained messages that are read, and those that are kept: other programs may have filled the broker."""
MAX_SHOWN = 3
"""Most gateways of unknown origin that the report names."""
MAX_EXACT = 20_000
"""Most discovery topics that are subscribed to one by one."""
MANY_MESSAGES = 1_000
"""Messages that mosquitto keeps for a client that does not read them at once. It drops what comes beyond that."""
MAX_ROUNDS = 100
"""Most rounds of removing and reading again: a broker may not deliver all messages in one round."""
READ_S = 120.0
"""Longest time for reading retained messages."""
ECHO_S, SILENCE_S = 5.0, 0.5
"""How long to wait for the next retained message: before our own markers have come back, and after that."""


class RetainedMessages:
    """Reads retained messages over one connection, and then listens to what is published.

    `take` gets the topic of each message, its payload and whether it was retained, and returns whether it has kept
    it. `markers` are topics to which an empty message is sent: its return shows that this user may write and read
    there, and that the retained messages have come.
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        filters: Iterable[str],
        markers: Sequence[str],
        take: Callable[[str, bytes, bool], bool],
    ) -> None:
        self._markers, self._take = markers, take
        self.read = self._kept = 0
        self._progress, self._news = asyncio.Event(), asyncio.Event()
        self._time = asyncio.get_running_loop().time
        self.is_complete = True
        """Whether all retained messages were read, and not only as many as the limits allow."""
        self.has_gaps = False
        """Whether the broker has dropped messages. It has if a marker came back only when it was sent again."""
        self.echoed: set[str] = set()
        """The markers that have come back."""
        self.refused: set[str] = set()
        """The topics that the broker has refused to accept or to deliver."""
        self._broker = Broker(
            settings,
            client_id=client_id,
            will=Message(markers[0], "", qos=1),
            on_message=self._received,
            on_refusal=self._refuse,
            subscriptions=[*filters, *markers],
        )

    async def __aenter__(self) -> Self:
        """Connect, and read until no more retained messages come.

        Raises:
            BridgeError: the broker can't be reached, refuses us, or ends the connection.
        """
        try:
            await self._broker.connect()
            await self._send_markers()
            await self._wait_until_quiet()
            if before := self._silent:  # mosquitto drops messages beyond its queue, also markers
                await self._send_markers()
                await self._wait_until_quiet()
                self.has_gaps = before != self._silent
        except BaseException:
            self._broker.abort()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._broker.close()
        self._broker.abort()

    async def listen(self, is_enough: Callable[[], bool], seconds: float) -> None:
        """Listen to what is published until `is_enough`, but no longer than this many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not is_enough():
                    self._news.clear()
                    await self._news.wait()

    @property
    def _silent(self) -> set[str]:
        """The markers that have neither come back nor been refused."""
        return {*self._markers} - self.echoed - self.refused

    async def _send_markers(self) -> None:
        for topic in sorted(self._silent):
            try:
                await self._broker.send(Message(topic, "", qos=1))
            except MessageRefused as refusal:
                self._refuse(topic, str(refusal))

    async def _wait_until_quiet(self) -> None:
        """Read until no more retained messages come."""
        until = self._time() + READ_S
        while self.is_complete:
            self._progress.clear()
            try:
                async with asyncio.timeout(ECHO_S if self._silent else SILENCE_S):
                    await self._progress.wait()
            except TimeoutError:
                break
            self.is_complete &= self._time() < until
        if not self._broker.connected:
            doubt = "some brokers end it if this user may not write to these topics or read them"
            raise Unavailable(f"the connection ended: {await self._broker.lost()}; {doubt}")

    def _received(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic in self._markers:
            self.echoed.add(topic)
        elif self.is_complete:
            self._kept += self._take(topic, payload, retained)
            self.read += retained
            self.is_complete = self.read < MAX_MESSAGES and self._kept < MAX_KEPT
        if retained or topic in self._markers:
            self._progress.set()
        self._news.set()

    def _refuse(self, topic: str, _text: str) -> None:
        self.refused.add(topic)
        self._progress.set()


async def send_all(settings: MqttSettings, client_id: str, will: str, messages: Iterable[Message]) -> set[str]:
    """Send messages to the broker in their order. Returns the topics that it refuses.

    `will` is the topic of the connection's last will, an empty message. MQTT 3.1.1 reports no refusals.

    Raises:
        BridgeError: the broker can't be reached, refuses us, or ends the connection.
    """
    refused: set[str] = set()
    broker = Broker(
        settings,
        client_id=client_id,
        will=Message(will, "", qos=1),
        on_message=lambda *_: None,
        on_refusal=lambda topic, _: refused.add(topic),
    )
    try:
        await broker.connect()
        for message in messages:
            try:
                if not await broker.send(message):
                    raise Unavailable(f"the connection ended: {await broker.lost()}")
            except MessageRefused:
                refused.add(message.topic)
            if settings.rate:
                await asyncio.sleep(1 / settings.rate)
        await broker.close()
    finally:
        broker.abort()
    return refused


class Cleaner:
    """Reports which topics at the broker are left over, and removes them on request."""

    def __init__(self, settings: Settings, options: CleanOptions, report: Report, timing: CommandTiming) -> None:
        self._settings, self._options, self._report, self._timing = settings, options, report, timing
        self._store = Store(settings.state_dir)
        self._own = Ownership.of(settings, self._store, options)
        self._client_id = f"{settings.mqtt.client_id or f'iqgateway2mqtt-{self._store.client_suffix()}'}-clean"
        self._marker = f"{root_of(self._own.bridge)}/bridge/clean"
        self._is_complete = True

    async def run(self, *, remove: bool) -> None:
        """Report what is left over, and with `remove` remove it.

        Raises:
            BridgeError: the broker can't be reached, refuses us, or ends the connection.
        """
        found = await self._read(is_first=True)
        judgement = judge(
            found, {name for name, bridge in found.bridges.items() if bridge.is_online and bridge.is_heard}
        )
        if remove and judgement.left:
            found = await self._remove(judgement)
        else:
            for left in judgement.left:
                self._report.note(left.step, f"{left.text}: {plural(len(left.topics), 'topic')}")
        for what, why in sorted(judgement.blocked.items()):
            self._report.note("left alone", f"{what}: {why}")
        _report_unknown(self._report, found, judgement)
        count = sum(len(left.topics) for left in judgement.left)
        if not judgement.left and not judgement.blocked and not self._report.problems:
            self._report.ok("leftovers", "none")
        elif count and not remove:
            self._report.fact("", f"the same command with --yes removes {plural(count, 'topic')}")
        if self._is_complete:
            _forget(Store(self._settings.state_dir), found)

    async def _read(self, *, is_first: bool) -> Found:
        """Read what the broker has. The first time, report what can't be read, and find the running bridges."""
        own, options, found = self._own, self._options, Found(self._own, self._options)
        self._is_complete, unreadable, report = True, set[str](), self._report if is_first else None
        if prefixes := own.prefixes(options):
            markers = {f"{prefix}/sensor/iqgateway2mqtt_clean/config": prefix for prefix in prefixes}
            exact = islice(own.discovery_topics(self._store, options), MAX_EXACT)
            filters = (
                *exact,
                *found.discovery_filters(),
            )  # in this order, as the first ones are delivered for sure
            async with self._retained(filters, markers, found.take_discovery) as reading:
                needed = options.prefix is not None
                unreadable = _silent_places(reading, markers, report, needed=needed)
                self._is_complete = reading.is_complete and not reading.has_gaps and not (unreadable and needed)
            strangers = reading.read - len(found.announced)
            if report is not None and (strangers >= MANY_MESSAGES or reading.has_gaps):
                where = ", ".join(prefixes)
                text = f"{strangers} messages of others below {where}: the broker may not deliver all messages"
                report.note("limits", text)
            for topics in own.announced.values():  # the state knows them, even if this user may not read them
                known = (topic for topic in topics if topic.rsplit("/", 3)[0] in unreadable)
                found.announced |= dict.fromkeys(known, own.bridge) if is_first else {}
        if options.prefix is not None and options.base is None:
            roots = {root_of(own.bridge)}
        else:
            roots = {joined(base.split("/")) for base, _ in own.trees(options)} | {*map(root_of, own.bridges)}
        markers = {f"{root}/bridge/clean": root for root in sorted(roots | {root_of(own.bridge)})}
        async with self._retained(found.tree_filters(), markers, found.take_tree) as reading:
            silent = _silent_places(reading, markers, report, needed=True)
            self._is_complete &= reading.is_complete and not reading.has_gaps and not silent
            if report is not None and not found.is_complete:
                text = f"more than {MAX_BRIDGES} bridges have published their state: nothing below them is touched"
                report.problem("limits", text, EXIT_UNAVAILABLE)
            if is_first:
                await self._listen(found, reading)
        return found

    def _retained(
        self, filters: Iterable[str], markers: Mapping[str, str], take: Callable[[str, bytes, bool], bool]
    ) -> RetainedMessages:
        return RetainedMessages(self._settings.mqtt, self._client_id, filters, tuple(markers), take)

    async def _listen(self, found: Found, reading: RetainedMessages) -> None:
        """Find out which bridges run, of those that are `online` by a retained message and protect topics."""
        online = {name for name, bridge in found.bridges.items() if bridge.is_online}
        doubted = [found.bridges[name] for name in judge(found, online).bridges]
        is_shared = bool(online and found.trees)
        if not doubted and not is_shared:
            return
        seconds = max([self._timing.listen, *(bridge.listen_s for bridge in doubted if not bridge.is_heard)])
        self._report.fact("", f"listening for at most {seconds:.0f} s to find out which bridges are running")
        await reading.listen(lambda: False, self._timing.listen if is_shared else 0)
        await reading.listen(lambda: all(bridge.is_heard for bridge in doubted), seconds - self._timing.listen)

    async def _remove(self, judgement: Judgement) -> Found:
        """Remove what is left over and read again, until nothing is left. Returns what was read last."""
        groups: dict[tuple[str, str], tuple[int, list[str]]] = {}
        found, left, refused, known = Found(self._own, self._options), judgement.left, set[str](), set[str]()
        for _ in range(MAX_ROUNDS):
            messages = [message for each in left for message in each.migration]
            messages += [discovery.removal(topic) for each in left for topic in each.topics]
            refused |= await send_all(self._settings.mqtt, self._client_id, self._marker, messages)
            known |= {topic for each in left for topic in each.topics}
            found = await self._read(is_first=False)
            there = refused | found.topics
            for each in left:
                count, kept = groups.get((each.step, each.text), (0, []))
                stays = [topic for topic in each.topics if topic in there]
                groups[each.step, each.text] = count + len(each.topics) - len(stays), [*kept, *stays]
            left = [each.without(known) for each in judge(found, judgement.running).left]
            if not any(each.topics for each in left):
                break
        for (step, text), (count, kept) in groups.items():
            done = f"{text}: {plural(count, 'topic')} removed"
            if kept:
                reason = f"{len(kept)} still there: may this user write {kept[0]}?"
                self._report.problem(step, f"{done}, {reason}", EXIT_REFUSED)
            else:
                self._report.ok(step, done)
        return found


def _silent_places(
    reading: RetainedMessages, markers: Mapping[str, str], report: Report | None, *, needed: bool
) -> set[str]:
    """Returns the topics whose marker has not come back, so that this user may not read below them.

    They are reported: as a problem if they are `needed`, or if the broker has refused the marker.
    """
    if report is not None and not (reading.is_complete and not (needed and reading.has_gaps)):
        where = ", ".join(sorted({*markers.values()}))
        text = f"there are more retained messages below {where} than the broker delivers or this program reads"
        report.problem("limits", text, EXIT_UNAVAILABLE)
    silent = {place: marker in reading.refused for marker, place in markers.items() if marker not in reading.echoed}
    for place, is_refused in sorted(silent.items()):
        if report is None:
            break
        advice = f"allow this user to write and read {place}/#"
        if is_refused or needed:
            text = f"the broker does not let this user write and read there: {advice}"
            report.problem("access", text, EXIT_REFUSED)
        else:
            text = f"this user may not read {place}: only what the state folder knows is listed; {advice}"
            report.note("access", text)
    return set(silent)


def _report_unknown(report: Report, found: Found, judgement: Judgement) -> None:
    """Report what may be left over, but is not known to be ours."""
    if not found.own.are_known:
        text = (
            "the serial number of a gateway is not known yet, so it is not known which gateways have left the "
            "settings: run the bridge once"
        )
        report.note("gateway", text)
    strangers = {
        key: bridge
        for topic, bridge in sorted(found.announced.items())
        if (key := found.own.key_of(topic.rsplit("/", 2)[1])) not in found.own.keys(CleanOptions())
    }
    for key, bridge in list(strangers.items())[:MAX_SHOWN] if found.options.gateway is None else ():
        if bridge not in judgement.running:
            advice = f"if it is yours, clean --gateway {key} lists it"
            report.note("unknown", f"discovery of {title_of(key)} by the bridge {bridge}: {advice}")


def _forget(store: Store, found: Found) -> None:
    """Let the state folder forget places where nothing is left, so that `run` does not offer to clean them."""
    there = {place for place, tree in found.trees.items() if tree.topics}
    for base, key in found.own.trees(found.options):
        if (base, key) not in there and not key.startswith(HOME_KEY):
            store.forget_base(key, base)
    for name in found.own.bridges:
        if not (name in found.bridges and found.bridges[name].topics):
            store.forget_bridge(name)
    if found.options.base is not None or found.options.prefix is not None:
        return
    announced = {found.own.key_of(topic.rsplit("/", 2)[1]) for topic in found.announced}
    for key in found.own.gone - announced - {key for _, key in there}:
        store.remove(key, TreeState)


def run(
    settings: Settings,
    *,
    yes: bool,
    base: str | None,
    prefix: str | None,
    gateway: str | None,
    timing: CommandTiming = DEFAULT_TIMING,
) -> int:
    """List what former settings have left at the broker, and remove it with `yes`. Returns the exit code."""
    configure_log(LogSettings(level="ERROR", format=settings.log.format))
    serial = (Store(settings.state_dir).serial_of(gateway) or gateway).lower() if gateway else None
    report = Report()
    report.section(f"Broker {settings.mqtt.url}")
    try:
        asyncio.run(Cleaner(settings, CleanOptions(base, prefix, serial), report, timing).run(remove=yes))
    except BridgeError as error:
        report.fault("broker", error)
    return report.worst
