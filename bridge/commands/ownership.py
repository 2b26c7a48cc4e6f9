"""Which topics at the broker belong to this installation, and which of them former settings have left over.

A topic is ours if the state folder knows it, if the `origin` of its discovery message names this program, or if it
contains the serial number of one of our gateways.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from bridge import discovery
from bridge.discovery.devices import DEVICE_KINDS
from bridge.model import Message, Platform
from bridge.service.leftovers import HOME_KEY, CleanOptions, Ownership, joined, root_of
from bridge.settings import RESERVED_SITES
from bridge.site.flows import FLOWS
from bridge.topics import ONLINE

MAX_KEPT_BYTES = 32_000_000
"""Bytes of discovery messages that are kept to be sent again."""
DEFAULT_HEARTBEAT_S, LISTEN_MAX_S = 300.0, 600.0
"""The heartbeat of a bridge that does not publish it, and the longest time to listen for one bridge."""
HEARTBEATS = 1.5
"""A bridge that publishes nothing for so many of its heartbeats does not run, whatever its retained state says."""
MAX_BRIDGES = 400
"""Most bridges that are looked at. Their messages are fewer than mosquitto keeps for a slow reader."""
GATEWAY_LEVELS = frozenset({"state", "availability", "command", *DEVICE_KINDS})
HOME_LEVELS = frozenset({"availability", *FLOWS})
"""First levels of our topics below a gateway and below a home. Topics with another one are not ours."""


# What the broker has


OBJECT_ID = re.compile("iqgateway_[A-Za-z0-9_-]+")
"""The level of a discovery topic that names one of our devices or entities."""
TOPIC_KINDS = ("device", *(platform.value for platform in Platform))
"""The level that follows the prefix in our discovery topics."""


def bridge_of(payload: bytes) -> str | None:
    """The topic of the bridge that has published a discovery message; `None` if it was another program."""
    try:
        body = json.loads(payload)
        topic = body["availability"][0]["topic"]
        is_ours = body["origin"]["name"] == discovery.ORIGIN["name"] and topic.endswith("/state")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    return str(topic).removesuffix("/state") if is_ours else None


@dataclass(slots=True)
class BridgeSeen:
    """What a bridge has published about itself. `is_heard`: it has published something just now."""

    is_online: bool = False
    is_heard: bool = False
    gateways: frozenset[str] = frozenset()
    heartbeat: float = DEFAULT_HEARTBEAT_S
    topics: set[str] = field(default_factory=set)

    def take(self, topic: str, payload: bytes, *, retained: bool) -> None:
        self.is_heard |= not retained
        self.topics.add(topic)
        if topic.endswith("/state"):
            self.is_online = payload == ONLINE.encode()
            return
        self.is_online |= not retained
        try:
            body = json.loads(payload)
            self.gateways = frozenset(map(str, (*body["gateways"], *body.get("standing_by", ()))))
            self.heartbeat = float(body.get("heartbeat", DEFAULT_HEARTBEAT_S))
        except (ValueError, KeyError, TypeError, RecursionError):
            return

    @property
    def listen_s(self) -> float:
        """How long to listen until it is clear that this bridge does not run, in seconds."""
        return min(LISTEN_MAX_S, HEARTBEATS * self.heartbeat)


@dataclass(slots=True)
class TreeSeen:
    """The topics below a gateway or a home. `is_heard`: one of them was published just now."""

    topics: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Topics of another program, which does not use our names."""
    is_heard: bool = False


@dataclass
class Found:
    """The topics at the broker that may be ours. All others are dropped on arrival."""

    own: Ownership
    options: CleanOptions
    announced: dict[str, str] = field(default_factory=dict)
    """The topic of the bridge that has published it, by discovery topic."""
    payloads: dict[str, str] = field(default_factory=dict)
    """Discovery messages of the present form, which may have to be sent again."""
    bridges: dict[str, BridgeSeen] = field(default_factory=dict)
    trees: dict[tuple[str, str], TreeSeen] = field(default_factory=dict)
    is_complete: bool = True
    """Whether all bridges are known. If not, topics that an unknown bridge may use are left alone."""
    _room: int = MAX_KEPT_BYTES

    @cached_property
    def patterns(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """The levels of the base topics below which there may be leftovers of a gateway or home, by its key."""
        found: dict[str, list[Sequence[str]]] = {}
        for base, key in self.own.trees(self.options):
            found.setdefault(key, []).append(base.split("/"))
        return found

    @property
    def topics(self) -> set[str]:
        """All topics of ours."""
        trees, bridges = self.trees.values(), self.bridges.values()
        return {
            *self.announced,
            *(t for tree in trees for t in tree.topics),
            *(t for b in bridges for t in b.topics),
        }

    def discovery_filters(self) -> Iterator[str]:
        for prefix in self.own.prefixes(self.options):
            yield from (f"{prefix}/{kind}/+/config" for kind in TOPIC_KINDS)

    def take_discovery(self, topic: str, payload: bytes, retained: bool) -> bool:
        """Keep a discovery message of ours. Returns whether it is one."""
        *_, kind, object_id, _ = topic.split("/")
        if not (retained and payload and OBJECT_ID.fullmatch(object_id)):
            return False
        is_migrating = payload == discovery.MIGRATE_PAYLOAD.encode()
        bridge = self.own.bridge if is_migrating else bridge_of(payload)
        if bridge is None:
            return False
        self.announced[topic] = bridge
        if (kind == "device") == (self.own.form == "device") and not is_migrating and self._room > len(payload):
            self.payloads[topic] = payload.decode(errors="replace")
            self._room -= len(payload)
        return True

    def tree_filters(self) -> Iterator[str]:
        """Filters for the states of all bridges above the trees and in discovery messages, and for the trees.

        The filters for bridges come first, since bridges protect topics and a broker may not deliver everything.
        """
        places = list(self.own.trees(self.options))
        roots = {root_of(bridge) for bridge in (self.own.bridge, *self.own.bridges, *self.announced.values())}
        for levels in {tuple(base.split("/")) for base, _ in places}:
            roots |= {joined(levels[:count]) for count in range(1, len(levels) + 1)} - {""}
        for level in ("bridge", "bridge/+"):
            yield from (
                f"{root}/{level}/{name}" for root in sorted(roots)[:MAX_BRIDGES] for name in ("state", "info")
            )
        yield from (f"{base}/{key}/#" for base, key in places)

    def take_tree(self, topic: str, payload: bytes, retained: bool) -> bool:
        """Keep a topic of a tree or of a bridge. Returns whether it is one of a tree."""
        place = self._place_of(topic)
        if not payload:
            return False
        if place is None:
            bridge = topic.rpartition("/")[0]
            if bridge in self.bridges or len(self.bridges) < MAX_BRIDGES:
                self.bridges.setdefault(bridge, BridgeSeen()).take(topic, payload, retained=retained)
            self.is_complete &= len(self.bridges) < MAX_BRIDGES
            return False
        base, key, level = place
        tree = self.trees.setdefault((base, key), TreeSeen())
        if not retained:
            tree.is_heard = True
        elif level in (HOME_LEVELS if key.startswith(HOME_KEY) else GATEWAY_LEVELS):
            tree.topics.append(topic)
        else:
            tree.others.append(topic)
        return retained

    def _place_of(self, topic: str) -> tuple[str, str, str] | None:
        """The base topic and the key of the tree that a topic belongs to, and the first level below them."""
        levels = topic.split("/")
        for depth in range(1, len(levels) - 1):
            is_home = levels[depth] == "home" and depth + 2 < len(levels)
            key = "/".join(levels[depth : depth + 2]) if is_home else levels[depth].lower()
            if any(_fits(levels[:depth], pattern) for pattern in self.patterns.get(key, ())):
                return "/".join(levels[:depth]), key, levels[depth + 1 + is_home]
        return None


def _fits(levels: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the levels are those of the pattern, in which `+` stands for the level of a site."""
    return len(levels) == len(pattern) and all(
        level not in RESERVED_SITES if wanted == "+" else level == wanted
        for level, wanted in zip(levels, pattern, strict=True)
    )


# What is left over


@dataclass(slots=True)
class Leftover:
    """Topics that are left over for one reason, and what they belong to.

    `migration` are the messages to send before the topics are removed.
    """

    step: str
    text: str
    topics: Sequence[str]
    place: tuple[str, str] = ("", "")
    """The base topic and the key of a tree."""
    migration: Sequence[Message] = ()

    def without(self, topics: Collection[str]) -> "Leftover":
        """A copy without these topics."""
        return replace(self, topics=[topic for topic in self.topics if topic not in topics])


@dataclass(slots=True)
class Judgement:
    """What is left over, and what is left alone: `blocked` has the reasons, by what they protect."""

    left: list[Leftover] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)
    bridges: set[str] = field(default_factory=set)
    """The bridges because of which something is left alone."""
    running: Collection[str] = ()
    """The bridges that count as running."""

    def block(self, what: str, bridge: str) -> None:
        self.blocked[what] = f"its bridge {bridge} is running"
        self.bridges.add(bridge)


def judge(found: Found, running: Collection[str]) -> Judgement:
    """Find out what is left over, if these bridges are running."""
    result, running = Judgement(running=running), {*running} & found.bridges.keys()
    _judge_discovery(found, running, result)
    for place, tree in sorted(found.trees.items()):
        _judge_tree(found, running, result, place, tree)
    if found.options.gateway is None and (found.options.prefix is None or found.options.base is not None):
        _judge_bridges(found, running, result)
    return result


def _judge_discovery(found: Found, running: Collection[str], result: Judgement) -> None:
    own, groups = found.own, dict[tuple[str, str, str], list[str]]()
    for topic, bridge in sorted(found.announced.items()):
        prefix, kind, object_id, _ = topic.rsplit("/", 3)
        key = own.key_of(object_id)
        is_form, is_current = (kind == "device") == (own.form == "device"), key in own.current
        if key not in own.keys(found.options) or (
            own.form != "off" and prefix == own.prefix and is_current and is_form
        ):
            continue
        reason = "gateway" if not is_current else "prefix" if prefix != own.prefix else "form"
        if not is_current and key not in own.gone:
            continue
        others = sorted(({bridge} & {*running}) - {own.bridge})
        pollers = [] if is_current else [name for name in running if key in found.bridges[name].gateways]
        if others or pollers:
            result.block(f"{prefix}: discovery of {key}", (others or pollers)[0])
        else:
            groups.setdefault((reason, prefix, key), []).append(topic)
    for (reason, prefix, key), topics in groups.items():
        text = f"{prefix}: discovery of {title_of(key)}"
        migration = tuple(_migration(found, key, topics)) if reason == "form" and own.form != "off" else ()
        result.left.append(Leftover(reason, text, topics, migration=migration))


def _migration(found: Found, key: str, topics: Iterable[str]) -> Iterator[Message]:
    """The messages that make Home Assistant move the entities to the present form: they keep names and history."""
    yield from map(discovery.migration, topics)
    for topic, payload in found.payloads.items():
        if topic.startswith(f"{found.own.prefix}/") and found.own.key_of(topic.rsplit("/", 2)[1]) == key:
            yield Message(topic, payload, qos=1, content_type="application/json")


def _judge_tree(
    found: Found, running: Collection[str], result: Judgement, place: tuple[str, str], tree: TreeSeen
) -> None:
    (base, key), own = place, found.own
    above = [name for name in running if f"{base}/".startswith(f"{root_of(name)}/")]
    pollers = [name for name in above if key in found.bridges[name].gateways]
    others = [name for name in above if root_of(name) != root_of(own.bridge)]
    if not found.is_complete:
        result.blocked[f"{base}/{key}"] = "a bridge may be running there, since not all are known"
    elif tree.is_heard:
        result.blocked[f"{base}/{key}"] = "something is published there"
    elif blocking := [*others, *(name for name in pollers if name != own.bridge or key not in own.current)]:
        result.block(f"{base}/{key}", blocking[0])
    elif tree.topics:
        step = "gateway" if key in own.gone else "base topic"
        result.left.append(Leftover(step, f"{base}: values of {title_of(key)}", tree.topics, place=place))


def _judge_bridges(found: Found, running: Collection[str], result: Judgement) -> None:
    """Judge the topics with bridges' own states.

    A bridge was this one under a former name if the state folder knows it, or if it lists only gateways of ours.
    """
    own = found.own
    for name, bridge in sorted(found.bridges.items()):
        listed = found.options.base is not None and root_of(name) == joined(found.options.base.split("/"))
        is_ours = name in own.bridges or (
            listed and bridge.gateways and bridge.gateways <= {*own.keys(found.options)}
        )
        if name == own.bridge or not is_ours:
            continue
        if name in running:
            result.block(name, name)
        elif bridge.topics:
            result.left.append(Leftover("bridge", f"{name}: state of the bridge", sorted(bridge.topics)))


def title_of(key: str) -> str:
    """What messages to people call the gateway or home with this key."""
    return key.replace("/", " ") if key.startswith(HOME_KEY) else f"gateway {key}"
