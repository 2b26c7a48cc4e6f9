"""Publishes homes of several gateways behind one grid meter, from what each gateway publishes of its own site."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import ClassVar

from bridge import discovery
from bridge.discovery.devices import AnnouncedHome
from bridge.model import Facts, Message, Priority, Reading
from bridge.rows import Row
from bridge.service.poller import Poller
from bridge.service.publisher import DiscoveryTopics, Publish, TreeState
from bridge.service.status import HomeStatus
from bridge.settings import GatewaySettings, homes
from bridge.site.flows import SITE_PREFIX
from bridge.site.homes import HomeState, MemberFlows, SharedHome
from bridge.site.selection import NET, PRODUCTION
from bridge.store import Store
from bridge.topics import Names, Tree, online

LOG = logging.getLogger(__name__)
HOME_SOURCE = "home"
"""The source of all values of a home, which the bridge computes."""
SAVE_S = 300.0
"""Seconds between two saves of a home. A memory card has to last for years."""


class HomeFile(TreeState):
    """The file of one home: its flows and energies, and what is published of it and of which gateways."""

    prefix: ClassVar[str] = "home-"
    suffix: ClassVar[str] = ""

    home: HomeState = HomeState()
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HomeOptions:
    """How to publish homes.

    `announcement` is `None` if there is no discovery. `read_retained` reads the numbers that the broker has below
    a topic, by the rest of their topics. `now` is the wall clock. `zone` is where days begin; `None` is the time
    zone of this machine. `paced` value topics have the pace of their quantity.
    """

    names: Names
    payload: str
    announcement: discovery.DiscoveryOptions | None
    publish: Publish
    read_retained: Callable[[str], Awaitable[Mapping[str, float]]]
    now: Callable[[], float]
    zone: tzinfo | None = None
    paced: bool = True


class HomeMember:
    """One gateway of a home: what its poller has published of its site last."""

    def __init__(self, gateway: GatewaySettings, poller: Poller) -> None:
        self._poller = poller
        self._seen: object = None
        """The flows that were looked at last."""
        self.flows = MemberFlows(gateway.serial or "", is_chosen=gateway.grid_meter)
        self.is_polled = False
        """Whether this bridge polls the gateway, which is not so while another bridge does."""

    @property
    def label(self) -> str:
        return self.flows.serial or self._poller.host

    def look(self, now: float) -> bool:
        """Look at the poller at the monotonic time `now`. Returns whether there is news."""
        sources, identity, output = self._poller.sources, self._poller.identity, self._poller.output
        powering, publisher = output.powering, output.publisher
        is_fresh = powering is not None and bool(powering.online(now, waited=0))
        roles = {meter.role for meter in identity.facts.meters or () if meter.enabled}
        noted = replace(
            self.flows,
            serial=identity.serial or "",
            is_online=sources.online(now) and is_fresh,
            is_settled=sources.tried and output.knows_storage,
            period=powering.interval if powering is not None else 0.0,
            has_grid_meter=NET in roles,
            has_solar_meter=PRODUCTION in roles,
        )
        published = publisher.flows if publisher is not None else None
        if published is self._seen and noted == self.flows and self.is_polled:
            return False
        is_same, self._seen, self.is_polled = published is self._seen, published, True
        read_at = None if powering is None else powering.good_at
        given = {
            f"{reading.device.removeprefix(SITE_PREFIX)}/{reading.name}": reading for reading in published or ()
        }
        self.flows = replace(
            noted,
            values={name: each.value for name, each in given.items() if not isinstance(each.value, Mapping)},
            read_at=noted.read_at if read_at is None else read_at,
            told=frozenset(name for name, each in given.items() if each.repeat and not is_same),
        )
        return True


class _HomePublisher:
    """Publishes the topics of one home. `home` is its level in topics, `title` what people call it."""

    def __init__(self, home: str, file: HomeFile, options: HomeOptions) -> None:
        self._home, self._names, self._publish = home, options.names, options.publish
        self.title = home
        self._tree = Tree(options.names, f"home/{home}", [HOME_SOURCE], options.payload, paced=options.paced)
        self._tree.rows.restore(file.rows)
        self._topics = DiscoveryTopics(options.announcement, options.publish)
        self._topics.restore(file)
        self._members = file.members
        self._announced: tuple[int, str] | None = None
        self._removing: set[str] = set()
        self.is_online: bool | None = None

    def restore(self, file: HomeFile) -> None:
        """Take over the discovery topics that have been found at the broker."""
        self._topics.restore(file)

    def publish_availability(self, *, is_online: bool) -> None:
        if is_online != self.is_online:
            self.is_online = is_online
            self._publish([online(self._names.home_availability(self._home), is_online)])

    def publish_flows(self, readings: Sequence[Reading], members: Sequence[str], now: float) -> None:
        """Publish the readings of the home at the unix time `now`.

        When its `members` (serial numbers) have changed, what only another gateway gave is removed.
        """
        self._publish(self._tree.update(HOME_SOURCE, readings, datetime.fromtimestamp(now, UTC)))
        given = {(reading.device, reading.name) for reading in readings}
        if (serials := tuple(sorted(members))) != self._members:
            self._members = serials
            self._clear(row for row in self._tree.rows if (row.device, row.measurement.name) not in given)

    def announce(self) -> bool:
        """Publish discovery if the rows or the title have changed. Returns whether they have."""
        if (version := (self._tree.rows.version, self.title)) == self._announced:
            return False
        self._announced = version
        about, rows = AnnouncedHome(Facts(""), "", self.title, home=self._home), self._tree.rows
        self._topics.announce(about, map(_as_site, rows), map(_as_site, rows.gone.values()))
        return True

    def remove(self) -> None:
        """Begin to remove all topics from the broker."""
        availability = self._names.home_availability(self._home)
        self._publish([Message(availability, "", qos=1, priority=Priority.AVAILABILITY)])
        self._removing = {availability, *self._clear(self._tree.rows)}
        self._topics.replace([])
        self._removing |= self._topics.leaving

    def sent(self, message: Message) -> bool:
        """Note that the broker has a message. Returns whether that was the last one of a removal."""
        is_last = self._topics.sent(message)
        if message.topic not in self._removing or message.payload:
            return is_last and not self._removing
        self._removing.discard(message.topic)
        return not self._removing

    def reset(self) -> None:
        """Forget what was published, since another bridge publishes the home from now on."""
        self.is_online = self._announced = None

    def owns(self, topic: str) -> bool:
        """Whether this is a topic of the home."""
        return topic.startswith(f"{self._names.home(self._home)}/") or topic in self._topics.announced

    @property
    def readings(self) -> Sequence[Reading]:
        """The newest readings; their devices are the flows."""
        return tuple(self._tree.readings(("",)))

    def file(self, home: HomeState) -> HomeFile:
        """What must outlive the process."""
        return HomeFile(rows=tuple(self._tree.rows), home=home, members=self._members, **self._topics.fields)

    def _clear(self, rows: Iterable[Row]) -> Sequence[str]:
        """Remove rows from the broker. Returns the topics."""
        messages = list(self._tree.clear(rows))
        self._publish(messages)
        return [message.topic for message in messages]


def _as_site(row: Row) -> Row:
    """A row of a home as discovery describes the flows of a site."""
    return replace(row, device=SITE_PREFIX + row.device)


class HomeOutput:
    """One home: makes its flows from those of its members, publishes them, and saves its state.

    Nothing is published while another bridge polls one of the gateways.
    """

    def __init__(self, home: str, store: Store, options: HomeOptions) -> None:
        file = store.load(home, HomeFile)
        self._name, self._store, self._options = home, store, options
        self._home = SharedHome(home, file.home, options.zone)
        self.publisher = _HomePublisher(home, file, options)
        self._members: dict[str, HomeMember | None] = {}
        """By the host of the gateway. `None` until it has a poller."""
        self._opening = asyncio.Lock()
        self._is_open = False
        self._time = asyncio.get_running_loop().time
        self._saved_at = self._time()
        self.problem: str | None = None

    def add(self, gateway: GatewaySettings, poller: Poller) -> None:
        """Take the flows of a gateway from this poller."""
        self._members[gateway.host] = HomeMember(gateway, poller)
        self.publisher.title = gateway.home or self._name

    def set_members(self, gateways: Iterable[GatewaySettings]) -> None:
        """Set which gateways the home has. All others have left it."""
        self._members = {gateway.host: self._members.get(gateway.host) for gateway in gateways}

    async def open(self) -> None:
        """Read what the broker has of the home, if that has not been done. Nothing is published before that."""
        async with self._opening:
            if not self._is_open:
                self._home.seed(await self._options.read_retained(self._options.names.home(self._name)))
                self.publisher.restore(self._store.load(self._name, HomeFile))
                self._is_open = True

    def refresh(self, host: str) -> None:
        """Publish the home if there is news of this gateway."""
        member = self._members.get(host)
        if member is None or not member.look(self._time()):
            return
        polled = [each for each in self._members.values() if each is not None and each.is_polled]
        members = [each.flows if each is member else replace(each.flows, told=frozenset()) for each in polled]
        if len(members) < len(self._members) or not all(flows.serial for flows in members):
            return  # without a serial number, nobody knows whether another bridge polls the gateway
        self.publisher.publish_availability(is_online=all(flows.is_online for flows in members))
        if self._is_open:
            self._publish(members)

    def _publish(self, members: Sequence[MemberFlows]) -> None:
        now = self._options.now()
        update = self._home.update(members, now, self._time())
        if update.problem and update.problem != self.problem:
            LOG.warning("%s", update.problem, extra={"event": "home_problem"})
        self.problem = update.problem
        if update.warning:
            LOG.warning("%s", update.warning, extra={"event": "home_energy"})
        if update.readings:
            self.publisher.publish_flows(update.readings, [flows.serial for flows in members], now)
            if self.publisher.announce():
                self.save()
        if self._time() - self._saved_at >= SAVE_S:
            self.save()

    def withdraw(self, host: str) -> None:
        """Publish nothing until this bridge polls the gateway again."""
        if (member := self._members.get(host)) is not None:
            member.is_polled = False
        self.publisher.reset()

    def stop(self) -> None:
        """Publish that the home is offline, and save it."""
        if self.publisher.is_online is not None:
            self.publisher.publish_availability(is_online=False)
        self.save()

    def save(self) -> None:
        self._saved_at = self._time()
        self._store.save(self._name, self.publisher.file(self._home.state))

    def status(self) -> HomeStatus:
        return HomeStatus(
            name=self.publisher.title,
            gateways=[member.label for member in self._members.values() if member is not None],
            online=bool(self.publisher.is_online),
            problem=self.problem,
            readings=self.publisher.readings,
        )


class Homes:
    """All homes of this bridge. `drop` forgets the topics of which a function says that they belong to another."""

    def __init__(self, store: Store, options: HomeOptions, drop: Callable[[Callable[[str], bool]], None]) -> None:
        self._store, self._options, self._drop = store, options, drop
        self._outputs: dict[str, HomeOutput] = {}
        self._leaving: dict[str, HomeOutput] = {}
        """Homes that the settings do not have any more, until their topics have been removed."""

    def add(self, gateway: GatewaySettings, poller: Poller) -> None:
        """Take what a home gets from a gateway from this poller."""
        if gateway.home is not None:
            self._output(gateway).add(gateway, poller)

    def _output(self, gateway: GatewaySettings) -> HomeOutput:
        name = gateway.home_level
        self._leaving.pop(name, None)
        if name not in self._outputs:
            self._outputs[name] = HomeOutput(name, self._store, self._options)
        return self._outputs[name]

    def set_gateways(self, mine: Iterable[GatewaySettings], every: Iterable[GatewaySettings]) -> None:
        """Set the gateways of all homes; those that are `mine` are polled by this bridge.

        Homes that no gateway of `every` names are removed from the broker. Homes that only gateways of other
        bridges name are left to those bridges.
        """
        wanted, elsewhere = homes(mine), homes(every)
        for gateways in wanted.values():
            self._output(gateways[0]).set_members(gateways)
        for name in {*self._outputs, *self._store.names(HomeFile)} - wanted.keys() - self._leaving.keys():
            output = self._outputs.pop(name, None)
            if name not in elsewhere:
                output = self._leaving[name] = output or HomeOutput(name, self._store, self._options)
                output.publisher.remove()
            elif output is not None:
                output.save()
                self._drop(output.publisher.owns)

    async def open(self, gateway: GatewaySettings) -> None:
        """Read what the broker has of the home of a gateway."""
        if gateway.home is not None:
            await self._output(gateway).open()

    def refresh(self, gateway: GatewaySettings) -> str | None:
        """Publish the home of a gateway if there is news. Returns the problem of the home."""
        if (output := self._outputs.get(gateway.home_level)) is None:
            return None
        output.refresh(gateway.host)
        return output.problem

    def withdraw(self, gateway: GatewaySettings) -> None:
        """Leave the home of a gateway to another bridge, which polls this gateway now."""
        if (output := self._outputs.get(gateway.home_level)) is not None:
            output.withdraw(gateway.host)
            self._drop(output.publisher.owns)

    def sent(self, message: Message) -> None:
        """Note that the broker has a message. The state of a home is removed with its last topic."""
        for output in self._outputs.values():
            if output.publisher.sent(message):
                output.save()
        for name, output in tuple(self._leaving.items()):
            if output.publisher.sent(message):
                self._store.remove(name, HomeFile)
                del self._leaving[name]

    def stop(self) -> None:
        for output in self._outputs.values():
            output.stop()

    def statuses(self) -> Sequence[HomeStatus]:
        return [output.status() for output in self._outputs.values()]
