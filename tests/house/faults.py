"""What may go wrong, each fault as a play: times are hours since the midnight on which the house was built.

A play begins with a bridge that starts at two in the morning, or at seven where the night plays no part. It ends in
the evening, when inverters are silent and all counters have caught up.
"""

import re
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from house.gateway import ENERGY, METERS, PRODUCTION, READINGS, Body
from house.judge import Judge
from house.model import HOUR_S, Kind
from house.world import World

BEGIN_H, MORNING_H, END_H = 2.0, 7.0, 21.6
MAY_28_2026 = datetime(2026, 5, 28, tzinfo=ZoneInfo("UTC")).timestamp()
BERLIN = "Europe/Berlin"
MINUTE_H = 1 / 60
WRAP_WH = 1_193_046.471
"""2^32 J."""
HANDOVER_WH = 1_500.0
"""What the sun can make in a quarter of an hour: as long the inverters' sum may be behind when it takes over."""

LONG_NUMBER = re.compile(r"\b([1-8])(\d{6}\.)")

BATTERIES: Mapping[str, float] = {"power": 30}
"""Seconds between polls where the batteries' own word takes the place of the storage meter or of live data."""
CHANGING: Mapping[str, float] = {"meters": 120, **BATTERIES}
"""The same where meters are disabled."""

Play = Callable[[World, Judge], Awaitable[None]]
Part = Callable[[World, Judge], Awaitable[None]]


def everywhere(kind: Kind) -> bool:
    """Say that a fault may happen at any kind of site."""
    return bool(kind)


def has_meters(kind: Kind) -> bool:
    return kind.has_ct


@dataclass(frozen=True, slots=True)
class Fault:
    """One column of the matrix. `suits` says at which kinds of sites it may happen."""

    name: str
    play: Play
    suits: Callable[[Kind], bool] = everywhere
    period_s: float = 60.0
    start: float = MAY_28_2026
    zone: str = "UTC"
    poll: Mapping[str, float] = field(default_factory=dict)
    mqtt: Mapping[str, Any] = field(default_factory=dict)
    reset_allowed: bool = False
    handover_wh: float = 0.0
    tolerance: float | None = None
    """The share of the truth by which all energies may be wrong, if it is not their usual one."""


def many_days(days: int) -> Fault:
    """Nothing goes wrong for so many days; then all energies are right within half a percent."""
    return Fault(f"nothing for {days} days", usual(nothing, 24 * days + END_H), period_s=60, tolerance=0.005)


def usual(part: Part, end: float = END_H, begin: float = BEGIN_H) -> Play:
    """Return a play in which the bridge starts, a part is played, and the day ends."""

    async def play(world: World, judge: Judge) -> None:
        await world.until(begin)
        await world.start_bridge()
        await part(world, judge)
        await world.until(end)

    return play


def by_day(part: Part, end: float = END_H) -> Play:
    """Return a usual play of what has nothing to do with the night before it: the bridge starts in the morning."""
    return usual(part, end, MORNING_H)


async def nothing(_world: World, _judge: Judge) -> None:
    """Nothing goes wrong."""


# The bridge is gone


def down(begin: float, end: float) -> Part:
    async def part(world: World, judge: Judge) -> None:
        await world.until(begin)
        with world.trouble():
            judge.begin_gap()
            await world.stop_bridge()
            await world.until(end)
            await world.start_bridge()
            await world.sleep(60)
            judge.end_gap()

    return part


async def _killed_twice(world: World, _judge: Judge) -> None:
    await world.until(12.04)
    with world.trouble():
        await world.kill_bridge()
        await world.start_bridge()
        await world.sleep(25)
        await world.kill_bridge()
        await world.start_bridge()


def lost_state(*, with_topics: bool) -> Part:
    async def part(world: World, judge: Judge) -> None:
        await world.until(12.0)
        with world.trouble():
            await world.stop_bridge()
            shutil.rmtree(world.state)
            if not with_topics:
                world.broker.retained.clear()
            await world.start_bridge()
            if not with_topics and world.house.kind.total_ct:
                # what the meter of all consumption has received is 0, which is believed after a quarter of an hour
                judge.excuse("grid")
                await world.sleep(1_200)
                judge.resume()

    return part


async def _damaged_state(world: World, _judge: Judge) -> None:
    """The first digit of each large number in the state is another one after a restart."""
    await world.until(12.0)
    with world.trouble():
        await world.stop_bridge()
        for file in world.state.rglob("*.json"):
            file.write_text(LONG_NUMBER.sub(lambda found: str(9 - int(found[1])) + found[2], file.read_text()))
        await world.start_bridge()


# Meters


def disabled(role: str, hours: float, begin: float = 10.2) -> Part:
    async def part(world: World, judge: Judge) -> None:
        await world.until(begin)
        with world.trouble():
            judge.begin_gap()
            world.gateway.tweaks.disabled.add(role)
            await world.sleep(hours * HOUR_S)
            world.gateway.tweaks.disabled.discard(role)
            await world.sleep(300)
            judge.end_gap("home")

    return part


async def _lying_meters(world: World, judge: Judge) -> None:
    """One answer says that all meters are disabled; another follows an hour later."""
    tweaks = world.gateway.tweaks

    def disable(body: Body) -> Body:
        return [{**meter, "state": "disabled"} for meter in body]

    await world.until(9.5)
    with world.trouble():
        await world.one_answer(METERS, lambda: tweaks.changes.update({METERS: disable}), tweaks.changes.clear)
        judge.is_misled = True
        await world.sleep(HOUR_S)
        judge.is_misled = False


async def _no_meters(world: World, _judge: Judge) -> None:
    await world.until(10.2)
    with world.trouble():
        world.gateway.tweaks.has_no_meters = True
        await world.sleep(HOUR_S)
        world.gateway.tweaks.has_no_meters = False


# Counters


def counter_names(kind: Kind) -> list[str]:
    """The counters behind the site's energies, as `Tweaks.offsets` names them."""
    return [
        *(["production/delivered", "production/received"] if kind.production_ct else ["pcu"]),
        *(["net-consumption/delivered", "net-consumption/received"] if kind.net_ct else []),
        *(["total-consumption/delivered"] if kind.total_ct else []),
        *(["storage/delivered", "storage/received"] if kind.storage_ct else []),
    ]


def rewind(amount: float) -> Part:
    """Each counter goes back by so many Wh, one after another, and goes on from there."""

    async def part(world: World, _judge: Judge) -> None:
        await world.until(9.1)
        with world.trouble():
            for name in counter_names(world.house.kind):
                world.gateway.tweaks.offsets[name] = -amount
                await world.sleep(1_500)

    return part


def glitch(hour: float, amount: float) -> Part:
    """One reading of each counter is so many Wh too high."""

    async def part(world: World, _judge: Judge) -> None:
        await world.until(hour)
        with world.trouble():
            for name in counter_names(world.house.kind):
                await _wrong_once(world, name, amount)
                await world.sleep(400)

    return part


def rewind_all(amount: float, hour: float) -> Part:
    """All counters of the gateway go back by so many Wh at once, and go on from there."""

    async def part(world: World, _judge: Judge) -> None:
        await world.until(hour)
        with world.trouble():
            world.gateway.tweaks.offsets.update(dict.fromkeys(counter_names(world.house.kind), -amount))
            await world.sleep(1_500)

    return part


async def _wrong_once(world: World, name: str, amount: float) -> None:
    offsets = world.gateway.tweaks.offsets
    path = _path(world.house.kind, name)
    await world.one_answer(path, lambda: offsets.update({name: amount}), lambda: offsets.update({name: 0.0}))


def _path(kind: Kind, name: str) -> str:
    """Return the path whose answers hold this counter."""
    if name != "pcu":
        return READINGS
    return PRODUCTION if kind.is_standard else ENERGY


def step(amount: float) -> Part:
    """Each counter jumps up by so many Wh and stays there."""

    async def part(world: World, _judge: Judge) -> None:
        await world.until(9.1)
        with world.trouble():
            for name in counter_names(world.house.kind):
                world.gateway.tweaks.offsets[name] = amount
                await world.sleep(1_500)

    return part


async def _glitch_at_start(world: World, judge: Judge) -> None:
    """The very first reading of each counter is 995 MWh too high."""
    names = counter_names(world.house.kind)
    tweaks = world.gateway.tweaks
    tweaks.offsets.update(dict.fromkeys(names, 995e6))
    path = _path(world.house.kind, names[0])

    def answered(found: str) -> None:
        if found == path:
            tweaks.offsets.update(dict.fromkeys(names, 0.0))

    world.gateway.listeners.append(answered)
    await usual(nothing)(world, judge)


async def _all_freeze(world: World, _judge: Judge) -> None:
    """All counters stand still for two hours and catch up, while the powers are right."""
    await world.until(10.5)
    with world.trouble():
        for role in world.gateway.clamps:
            world.gateway.freeze(role, "delivered", "received")
        await world.sleep(2 * HOUR_S)
        for role in world.gateway.clamps:
            world.gateway.thaw(role)


async def _one_freezes(world: World, _judge: Judge) -> None:
    """One counter of each clamp stands still for an hour and catches up; the other goes on."""
    await world.until(9.5)
    with world.trouble():
        for role in world.gateway.clamps:
            for direction in ("delivered", "received"):
                world.gateway.freeze(role, direction)
                await world.sleep(HOUR_S)
                world.gateway.thaw(role)
                await world.sleep(300)


async def _reboot(world: World, _judge: Judge) -> None:
    """The gateway is away for a minute and a half and then shows zeros for two and a half minutes, twice."""
    for hour in (5.0, 13.0):
        await world.until(hour)
        with world.trouble():
            world.gateway.tweaks.is_down = True
            await world.sleep(90)
            world.gateway.tweaks.is_down, world.gateway.tweaks.has_zeros = False, True
            await world.sleep(150)
            world.gateway.tweaks.has_zeros = False


def _with_offsets(offsets: Callable[[World], Mapping[str, float]]) -> Play:
    async def play(world: World, judge: Judge) -> None:
        world.gateway.tweaks.offsets.update(offsets(world))
        await usual(nothing)(world, judge)

    return play


def _to_2_31(world: World) -> Mapping[str, float]:
    """Bring each counter so near to 2^31 Wh that it passes it during the day."""
    house, offsets = world.house, {}
    channels = {"production": house.production, "net-consumption": house.net, "total-consumption": house.total}
    channels["storage"] = house.storage
    for name in counter_names(house.kind):
        role, _, direction = name.partition("/")
        shown = house.pcu_wh if name == "pcu" else sum(getattr(c, direction) for c in channels[role])
        offsets[name] = 2.0**31 - shown - 2_000
    return offsets


async def _unsigned(world: World, judge: Judge) -> None:
    """Negative powers and energies show as 32-bit fields without a sign do, all day."""
    _without_sign(world)
    await usual(nothing)(world, judge)


def _without_sign(world: World) -> None:
    world.gateway.tweaks.is_unsigned = True
    world.gateway.tweaks.offsets["production/received"] = -905.0 * world.house.kind.phases


def _to_wrap(world: World) -> None:
    """Let the inverters' sum fall by 2^32 J."""
    world.gateway.tweaks.offsets["pcu"] = -WRAP_WH


def happens(change: Callable[[World], None], hours_down: float) -> Part:
    """Something changes in the gateway, while the bridge runs or during an outage of so many hours."""

    async def part(world: World, judge: Judge) -> None:
        await world.until(11.0)
        with world.trouble():
            if hours_down:
                judge.begin_gap()
                await world.stop_bridge()
            change(world)
            if hours_down:
                await world.sleep(hours_down * HOUR_S)
                await world.start_bridge()
                await world.sleep(60)
                judge.end_gap()

    return part


# Clamps


def reversed_clamp(role: str, hours: float) -> Part:
    """A clamp is reversed and put right. Only of the production clamp can the bridge know it."""

    async def part(world: World, judge: Judge) -> None:
        await world.until(10.0)
        if role == "production":
            judge.problem_expected = True
            judge.excuse(*(["grid"] if world.house.kind.total_ct else []))
        else:
            judge.excuse("home", "battery" if role == "storage" else "grid")
        with world.trouble():
            world.gateway.clamp(role, "reversed")
            await world.sleep(hours * HOUR_S)
            world.gateway.clamp(role, "right")
            await world.sleep(1_800)
        judge.resume()

    return part


def absent_clamp(begin: float) -> Play:
    """The production clamp measures nothing from this hour on; before the bridge starts means: it never did."""

    async def play(world: World, judge: Judge) -> None:
        if begin < BEGIN_H:
            world.gateway.clamp("production", "absent")
            for clamp in world.gateway.clamps["production"]:
                clamp.shown.delivered, clamp.shown.received = 0.01, 0.02
        if world.house.kind.total_ct:
            judge.excuse("grid")
        await world.until(BEGIN_H)
        await world.start_bridge()
        await world.until(begin)
        judge.problem_expected = True
        with world.trouble():
            world.gateway.clamp("production", "absent")
        await world.until(END_H)

    return play


async def _dead_leg(world: World, _judge: Judge) -> None:
    """One phase of the storage meter reads 0 V for one answer, every half hour of a day."""
    tweaks = world.gateway.tweaks
    await world.until(8.0)
    with world.trouble():
        for _ in range(12):
            await world.one_answer(
                READINGS,
                lambda: setattr(tweaks, "dead_storage_leg", True),
                lambda: setattr(tweaks, "dead_storage_leg", False),
            )
            await world.sleep(1_800)


# Clocks


async def _host_clock(world: World, _judge: Judge) -> None:
    """The clock of the bridge's computer is a day ahead for ten minutes, and later a day behind."""
    for hour, offset in ((9.0, 86_400.0), (13.0, -86_400.0)):
        await world.until(hour)
        with world.trouble():
            world.clock_offset_s = offset
            await world.sleep(600)
            world.clock_offset_s = 0.0


async def _host_clock_at_start(world: World, _judge: Judge) -> None:
    """After a restart the host's clock is a day behind for ten minutes, and after another one a day ahead."""
    for hour, offset in ((10.0, -86_400.0), (14.0, 86_400.0)):
        await world.until(hour)
        with world.trouble():
            await world.stop_bridge()
            world.clock_offset_s = offset
            await world.sleep(20)
            await world.start_bridge()
            await world.sleep(600)
            world.clock_offset_s = 0.0
            await world.sleep(1_200)  # a clock that was set is believed after a quarter of an hour


async def _gateway_clock(world: World, _judge: Judge) -> None:
    await world.until(9.0)
    for offset in (86_400.0, 0.0, -7_200.0):
        world.gateway.tweaks.clock_offset_s = offset
        await world.sleep(2 * HOUR_S)


# Live data


def _live(name: str) -> Part:
    async def part(world: World, _judge: Judge) -> None:
        await world.until(10.1)
        with world.trouble():
            setattr(world.gateway.tweaks, name, True)
            await world.sleep(2 * HOUR_S)
            setattr(world.gateway.tweaks, name, False)

    return part


async def _slow(world: World, _judge: Judge) -> None:
    await world.until(8.0)
    world.gateway.tweaks.delay_s = 3.0
    await world.until(16.0)
    world.gateway.tweaks.delay_s = 0.08


async def _off_grid(world: World, _judge: Judge) -> None:
    """The grid fails for two hours, and the generator runs after a minute."""
    await world.until(9.0)
    world.house.grid_is_open = True
    await world.sleep(60)
    world.house.generator_is_on = True
    await world.sleep(2 * HOUR_S)
    world.house.generator_is_on = False
    await world.sleep(30)
    world.house.grid_is_open = False


# The list


def _berlin(year: int, month: int, day: int) -> float:
    return datetime(year, month, day, tzinfo=ZoneInfo(BERLIN)).timestamp()


def _has(role: str) -> Callable[[Kind], bool]:
    def suits(kind: Kind) -> bool:
        return {
            "production": kind.production_ct,
            "net-consumption": kind.net_ct,
            "total-consumption": kind.total_ct,
            "storage": kind.storage_ct,
        }[role]

    return suits


def _disabled() -> list[Fault]:
    lengths = (("5 min", 5 * MINUTE_H, END_H), ("2 h", 2.0, END_H), ("a day", 24.0, 24 + END_H))
    return [
        Fault(
            f"{role} disabled {name}",
            by_day(disabled(role, hours), end),
            _has(role),
            poll=CHANGING,
            handover_wh=HANDOVER_WH,
        )
        for role in ("production", "net-consumption", "total-consumption", "storage")
        for name, hours, end in lengths
    ]


def _reversed() -> list[Fault]:
    roles = ("production", "net-consumption", "total-consumption", "storage")
    return [
        Fault(f"{role} clamp reversed", by_day(reversed_clamp(role, 5.0)), _has(role), handover_wh=HANDOVER_WH)
        for role in roles
    ]


def _has_live(kind: Kind) -> bool:
    return kind.live


def _counts_inverters(kind: Kind) -> bool:
    return not kind.production_ct


FAULTS = (
    Fault("nothing, 5 s", usual(nothing, 26), period_s=5),
    Fault("nothing, 15 s", usual(nothing), period_s=15),
    Fault("nothing, 60 s", usual(nothing, 26), period_s=60),
    Fault("started at noon", usual(nothing, 24 + END_H, 12.0), period_s=60),
    Fault("down a day", usual(down(10.0, 34.0), 24 + END_H)),
    Fault("down three days", usual(down(10.0, 82.0), 72 + END_H)),
    Fault("down a month", usual(down(10.0, 724.0), 720 + END_H)),
    Fault("down over two midnights", usual(down(24.1, 71.9), 71.98)),
    *_disabled(),
    Fault(
        "meters lie once",
        by_day(_lying_meters),
        has_meters,
        poll={**CHANGING, "meters": 3600},
        handover_wh=HANDOVER_WH,
    ),
    Fault("no meters for an hour", by_day(_no_meters), has_meters, poll=CHANGING, handover_wh=HANDOVER_WH),
    Fault("rewind of 30 Wh", by_day(rewind(30))),
    Fault("rewind of 3 kWh", by_day(rewind(3_000))),
    Fault("rewind of 300 kWh", by_day(rewind(300_000))),
    Fault("all counters rewind by 30 Wh at night", usual(rewind_all(30, 3.0))),
    Fault("all counters rewind by 300 Wh at night", usual(rewind_all(300, 3.0))),
    Fault("all counters rewind by 30 Wh", by_day(rewind_all(30, 9.1))),
    Fault("all counters rewind by 300 Wh", by_day(rewind_all(300, 9.1))),
    Fault("glitch of 50 kWh at 3:00", usual(glitch(3.0, 50_000))),
    Fault("glitch of 50 kWh at noon", by_day(glitch(12.0, 50_000))),
    Fault("glitch of 10^12", by_day(glitch(12.0, 1e12))),
    Fault("glitch at the first start", _glitch_at_start),
    Fault("step of 50 kWh", by_day(step(50_000))),
    Fault("all counters freeze", by_day(_all_freeze), has_meters),
    Fault("one counter freezes", by_day(_one_freezes), has_meters),
    Fault("zeros at reboot", usual(_reboot)),
    *_reversed(),
    Fault("clamp measures nothing from the start", absent_clamp(0.0), _has("production"), handover_wh=HANDOVER_WH),
    Fault(
        "clamp measures nothing from one day on", absent_clamp(10.0), _has("production"), handover_wh=HANDOVER_WH
    ),
    Fault("storage phase at 0 V", by_day(_dead_leg), lambda kind: kind.storage_ct and kind.phases > 1),
    Fault("wraps of uint32", _unsigned, has_meters),
    Fault("wraps of uint32 in an outage", by_day(happens(_without_sign, 4)), has_meters),
    Fault("wrap of 2^32 J", by_day(happens(_to_wrap, 0)), _counts_inverters),
    Fault("wrap of 2^32 J in an outage", by_day(happens(_to_wrap, 4)), _counts_inverters),
    Fault("2^31 Wh passed", _with_offsets(_to_2_31)),
    Fault("killed twice", by_day(_killed_twice)),
    Fault("state lost", by_day(lost_state(with_topics=True)), mqtt={"payload": "both"}),
    Fault("state damaged", by_day(_damaged_state), mqtt={"payload": "both"}),
    Fault("state and topics lost", by_day(lost_state(with_topics=False)), reset_allowed=True),
    Fault("host clock off by a day", by_day(_host_clock)),
    Fault("host clock off at a restart", by_day(_host_clock_at_start)),
    Fault("gateway clock off", by_day(_gateway_clock)),
    Fault("daylight saving begins", usual(nothing, 46.5), start=_berlin(2026, 3, 28), zone=BERLIN, period_s=60),
    Fault("daylight saving ends", usual(nothing, 48.5), start=_berlin(2026, 10, 24), zone=BERLIN, period_s=60),
    Fault("live data stop", by_day(_live("live_is_off")), _has_live, poll=BATTERIES),
    Fault("live data freeze", by_day(_live("live_is_frozen")), _has_live, poll=BATTERIES),
    Fault("live data every 60 s", usual(nothing), _has_live, poll={"livedata": 60}),
    Fault("answers of 3 s", by_day(_slow)),
    Fault("off the grid", by_day(_off_grid), lambda kind: kind.has_generator),
)
BY_NAME = {fault.name: fault for fault in FAULTS}


GENTLE = (
    "nothing, 60 s",
    "started at noon",
    "down a day",
    "zeros at reboot",
    "killed twice",
    "glitch of 50 kWh at noon",
)
"""What is played in the profile `gentle`, which keeps its own periods: the rest does not depend on them."""


def combinations(kinds: Sequence[Kind]) -> list[tuple[Kind, Fault]]:
    """Return all pairs of a kind of site and a fault that may happen there."""
    return [
        (kind, fault)
        for kind in kinds
        for fault in FAULTS
        if fault.suits(kind) and (kind.profile == "normal" or fault.name in GENTLE)
    ]
