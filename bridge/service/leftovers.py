"""What former settings and former gateways have left at the broker, as far as the state folder tells."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from bridge import discovery
from bridge.discovery.devices import SITE_KIND, AnnouncedGateway, AnnouncedHome
from bridge.model import Facts, Message
from bridge.rows import GATEWAY_DEVICE
from bridge.service.homes import HomeFile
from bridge.service.publisher import DIAGNOSTICS_SOURCE, Diagnostics, TreeState
from bridge.service.retained import OF_HOME, RetainedReader
from bridge.settings import CONTROL_GROUPS, SITE_PLACEHOLDER, GatewaySettings, Settings, homes
from bridge.state import IdentityState
from bridge.store import Store
from bridge.topics import Names, Tree, online

LOG = logging.getLogger(__name__)
NO_LONGER_POLLED = "no longer polled"
"""`gateway/problem` of a gateway that left the settings."""
ADVICE = "`iqgateway2mqtt clean` lists it, and `clean --yes` removes it"
COMPARE_PAUSE_S = 1.0
"""Least time between two comparisons of state folder and settings, since thousands of gateways may tell their
serial numbers within seconds."""
HOME_KEY = "home/"
MAX_PARTS = 3
"""Most leftovers that one log line names."""


def names_of(settings: Settings, gateway: GatewaySettings | None = None) -> Names:
    """The topics of the bridge, or of one of its gateways."""
    root = settings.mqtt.root
    base = settings.mqtt.base_topic.replace(SITE_PLACEHOLDER, gateway.level) if gateway else root
    return Names(base, settings.own_name, root)


def current_bases(settings: Settings, known: Mapping[str, GatewaySettings]) -> Mapping[str, str] | None:
    """The base topic of each gateway of the settings by its serial number.

    `known` has the gateways whose serial number is known. The result is `None` while a gateway of this bridge is
    missing there: any serial number that the state folder knows may be its own.
    """
    if not set(settings.all_gateways) <= set(known.values()):
        return None
    others = {(gateway.serial or "").lower(): gateway for gateway in settings.every_gateway if gateway.serial}
    return {serial: names_of(settings, gateway).base for serial, gateway in {**others, **known}.items()}


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What the state folder knows and the settings no longer name.

    `bases` are base topics below which gateways were published, by serial number. `bridges` are the topics of
    former names of the bridge. `gone` are the serial numbers of gateways that left the settings.
    """

    bases: Mapping[str, tuple[str, ...]]
    bridges: tuple[str, ...]
    gone: tuple[str, ...]

    @classmethod
    def of(cls, store: Store, current: Mapping[str, str], bridge: str) -> "Leftovers":
        """Compare the state folder with the settings.

        `current` has the base topic of each gateway of the settings, by its serial number, and `bridge` is the
        topic of the bridge's own state. A gateway that is not in `current` counts as gone.
        """
        known = store.names(TreeState)
        bases = {serial: store.load(serial, IdentityState).bases for serial in known}
        former = {
            serial: tuple(base for base in its if base != current.get(serial)) for serial, its in bases.items()
        }
        return cls(
            bases={serial: its for serial, its in former.items() if its},
            bridges=tuple(topic for topic in store.bridges if topic != bridge),
            gone=tuple(serial for serial in known if serial not in current),
        )

    def __str__(self) -> str:
        """A list in words, for the log; empty if nothing is left."""
        former = sorted({base for serial, its in self.bases.items() if serial not in self.gone for base in its})
        parts = [f"topics below the former base topic {base}" for base in former]
        parts += [f"topics of gateway {serial}, which left the settings" for serial in self.gone]
        parts += [f"the state of the bridge at {topic}" for topic in self.bridges if not parts]
        more = [f"and {len(parts) - MAX_PARTS} more"] if len(parts) > MAX_PARTS else []
        return "; ".join([*parts[:MAX_PARTS], *more])


@dataclass(frozen=True, slots=True)
class CleanOptions:
    """Where `clean` looks: only below this base topic, below this discovery prefix, or for this gateway."""

    base: str | None = None
    prefix: str | None = None
    gateway: str | None = None


@dataclass(frozen=True, slots=True)
class Ownership:
    """What belongs to this installation, by its settings and its state folder.

    Gateways have their serial number as key, homes `home/<level>`. `current` has the base topic of each of the
    settings, and `former` base topics of earlier settings. `gone` left the settings. `are_known` tells whether the
    serial numbers of all gateways of the settings are known: only then it is known which gateways are gone.
    `bridge` is the topic of the bridge's own state, `bridges` are its former ones. `announced` are the discovery
    topics of the gateways that are gone.
    """

    current: Mapping[str, str]
    former: Mapping[str, Collection[str]]
    gone: frozenset[str]
    are_known: bool
    bridge: str
    bridges: frozenset[str]
    pattern: str
    """The base topic of the settings, with `+` for the level of a site."""
    prefix: str
    form: str
    announced: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, settings: Settings, store: Store, options: CleanOptions) -> "Ownership":
        """Read the settings and the state folder. A gateway that `options` names belongs to this installation."""
        found = {
            serial.lower(): gateway
            for gateway in settings.every_gateway
            if (serial := gateway.serial or store.serial_of(gateway.host))
        }
        names, every = names_of(settings), current_bases(settings, found)
        current = {serial: names_of(settings, gateway).base for serial, gateway in found.items()}
        left = Leftovers.of(store, current, names.bridge)
        named = frozenset({options.gateway} if options.gateway else ())
        gone = (frozenset(left.gone) if every is not None else frozenset()) | (named - current.keys())
        roots = {root for topic in left.bridges if (root := root_of(topic)) != names.base}
        levels = {HOME_KEY + home for home in (*homes(settings.every_gateway), *store.names(HomeFile))}
        return cls(
            current=current | dict.fromkeys(levels, names.base),
            former={**left.bases, **dict.fromkeys(levels, sorted(roots))},
            gone=gone,
            are_known=every is not None,
            bridge=names.bridge,
            bridges=frozenset(left.bridges),
            pattern=settings.mqtt.base_topic.replace(SITE_PLACEHOLDER, "+"),
            prefix=settings.homeassistant.prefix,
            form=settings.homeassistant.discovery,
            announced={serial: store.load(serial, TreeState).discovered for serial in gone},
        )

    def keys(self, options: CleanOptions) -> Collection[str]:
        """The gateways and homes that are ours, or the one that `options` names."""
        return {options.gateway} if options.gateway else self.current.keys() | self.former.keys() | self.gone

    def trees(self, options: CleanOptions) -> Iterator[tuple[str, str]]:
        """The base topics, which may contain `+`, and the keys of all trees that may be leftovers."""
        if options.prefix is not None and options.base is None:
            return
        for key in sorted(self.keys(options)):
            bases = {*self.former.get(key, ()), *([self.pattern] if key in self.gone else ())}
            for base in sorted({options.base.replace(SITE_PLACEHOLDER, "+")} if options.base else bases):
                if base != self.current.get(key):
                    yield base, key

    def prefixes(self, options: CleanOptions) -> Sequence[str]:
        """The discovery prefixes below which there may be leftovers."""
        if options.base is not None and options.prefix is None:
            return ()
        known = {topic.rsplit("/", 3)[0] for topics in self.announced.values() for topic in topics}
        return (options.prefix,) if options.prefix is not None else sorted({self.prefix, *known})

    def discovery_topics(self, store: Store, options: CleanOptions) -> Iterator[str]:
        """The discovery topics, in both forms, of all gateways whose values the state folder knows.

        They are subscribed to one by one: other programs may have announced so many devices that a broker does not
        deliver all messages that match a wildcard.
        """
        for prefix in self.prefixes(options):
            for serial in sorted(self.keys(options)):
                about = AnnouncedGateway(Facts(serial), "", allowed=frozenset(CONTROL_GROUPS))
                for form in ("device", "component"):
                    place = discovery.DiscoveryOptions(Names(), prefix, form)
                    rows = () if serial.startswith(HOME_KEY) else store.load(serial, TreeState).rows
                    yield from (message.topic for message in discovery.announce(place, about, rows) if rows)

    def key_of(self, object_id: str) -> str:
        """The gateway or home whose device or entity has this id in discovery."""
        if not object_id.startswith("iqgateway_home_"):
            return object_id.split("_")[1].lower()
        level = object_id.removeprefix("iqgateway_home_")
        known = (key.removeprefix(HOME_KEY) for key in self.current if key.startswith(HOME_KEY))
        fitting = [home for home in known if level == home or level.startswith(f"{home}_")]
        return HOME_KEY + max(fitting, key=len, default=level)


def joined(levels: Iterable[str]) -> str:
    """A base topic without the level of a site."""
    return "/".join(level for level in levels if level != "+")


def root_of(bridge: str) -> str:
    """The base topic of a bridge's own topic: `enphase` of `enphase/bridge` and `enphase/bridge/attic`."""
    root, _, name = bridge.rpartition("/")
    return root if name == "bridge" else root.removesuffix("/bridge")


class BrokerMemory:
    """What earlier runs have left at the broker for the present one: counters, and discovery of the other form.

    `options` says which form is published; with `None` there is no discovery.
    """

    def __init__(self, store: Store, reader: RetainedReader, options: discovery.DiscoveryOptions | None) -> None:
        self._store, self._reader, self._options = store, reader, options

    async def of_gateway(self, serial: str, place: str) -> Mapping[str, float]:
        """Read the numbers of a gateway, which is published below `place`."""
        about = AnnouncedGateway(Facts(serial), "")
        await self._find_other_form(TreeState, serial, place, about.id_of(""), about.id_of(GATEWAY_DEVICE))
        return await self._reader.read(place)

    async def of_home(self, place: str) -> Mapping[str, float]:
        """Read the numbers of a home, which is published below `place`."""
        home = place.rpartition("/")[2]
        device = AnnouncedHome(Facts(""), "", home=home).id_of(SITE_KIND)
        await self._find_other_form(HomeFile, home, place, device, device)
        return await self._reader.read(place, OF_HOME)

    async def _find_other_form(self, kind: type[TreeState], key: str, place: str, own: str, device: str) -> None:
        """Remember the other form of discovery if the broker alone knows of it: the state folder was lost.

        `own` is the beginning of our ids, `device` one that is always announced.
        """
        state = self._store.load(key, kind)
        if self._options is None or state.discovered:
            return
        filters = discovery.other_filters(self._options, device)
        found = await self._reader.announced(own.rstrip("_"), place, filters)
        if other := frozenset(topic for topic in found if discovery.of_other_form(self._options, topic)):
            self._store.save(key, state.changed(discovered=other, revision=discovery.REVISION))


class DepartedGateways:
    """Publishes, once in a run, that each gateway which left the settings is offline, and logs all that is left.

    `current` gives the base topic of each gateway of the settings by its serial number, or `None` while not all
    serial numbers are known, and with them the gateways that have left. `publish` gets the serial number and
    the messages of a gateway, publishes them and then forgets them, since another bridge may poll it later.
    `is_elsewhere` tells whether another bridge polls a gateway now, `now` is the wall clock.
    """

    def __init__(
        self,
        store: Store,
        names: Names,
        payload: str,
        *,
        current: Callable[[], Mapping[str, str] | None],
        publish: Callable[[str, Iterable[Message]], None],
        is_elsewhere: Callable[[str], bool],
        now: Callable[[], float],
    ) -> None:
        self._store, self._names, self._payload = store, names, payload
        self._current, self._publish, self._is_elsewhere, self._now = current, publish, is_elsewhere, now
        self._changed = asyncio.Event()
        self._told = ""
        self._gone: frozenset[str] = frozenset()

    def notify(self) -> None:
        """Note that the list of gateways or one of their serial numbers may have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Look at the gateways after each change until cancelled, at most once in `COMPARE_PAUSE_S`."""
        seen: Mapping[str, str] | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            current = self._current()
            if current is not None and current != seen:
                seen = current
                self._look(current)
            await asyncio.sleep(COMPARE_PAUSE_S)

    def _look(self, current: Mapping[str, str]) -> None:
        left = Leftovers.of(self._store, current, self._names.bridge)
        left = replace(left, gone=tuple(serial for serial in left.gone if not self._is_elsewhere(serial)))
        for serial in left.gone:
            if serial not in self._gone:
                for base in left.bases.get(serial, ()):
                    self._publish(serial, self._last_messages(serial, replace(self._names, base=base)))
        self._gone = frozenset(left.gone)
        if (text := str(left)) and text != self._told:
            LOG.info("left at the broker: %s; %s", text, ADVICE, extra={"event": "leftovers"})
        self._told = text

    def _last_messages(self, serial: str, names: Names) -> Iterator[Message]:
        """The messages by which a gateway that left the settings becomes offline, and says why."""
        tree, now = self._store.load(serial, TreeState), datetime.fromtimestamp(self._now(), UTC)
        yield online(names.state(serial), is_online=False)
        for source in sorted({row.source for row in tree.rows} - {DIAGNOSTICS_SOURCE}):
            yield online(names.availability(serial, source), is_online=False)
        told = [next(Diagnostics(problem=NO_LONGER_POLLED).readings())]
        yield from Tree(names, serial, [DIAGNOSTICS_SOURCE], self._payload).update(DIAGNOSTICS_SOURCE, told, now)
