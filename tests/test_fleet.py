"""Fleets: gateways from a file that changes, bridges that share them, and sites in the topics."""

import asyncio
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from brokers import TIMEOUT_S, Mosquitto, watching
from houses import House, housed
from hypothesis import given
from hypothesis import strategies as st
from running import running, settings, until
from test_web import going

from bridge import sharding
from bridge.commands.session import chosen
from bridge.model import BadSetting, Message
from bridge.outbox import Outbox
from bridge.service.bridge import Bridge
from bridge.service.leftovers import NO_LONGER_POLLED, names_of
from bridge.settings import Settings, load, reread
from bridge.sharding import Shard, jump, level, place

FLEET_TOKEN = "eyJ-a-token"
SERIALS = [f"1221{number:08}" for number in range(3000)]


# Which bridge polls a gateway


@pytest.mark.parametrize(("key", "count", "found"), [(42, 57, 43), (0xDEAD10CC, 666, 361), (256, 1024, 520)])
def test_the_hash_is_the_published_one(key: int, count: int, found: int) -> None:
    """The results are those of other implementations."""
    assert jump(key, count) == found


def test_a_gateway_stays_where_it_is() -> None:
    """These numbers must never change: a new version would move all gateways at once."""
    assert [place(serial, 7) for serial in SERIALS[:12]] == [5, 2, 1, 4, 1, 4, 0, 4, 4, 6, 6, 3]
    assert place("12AB", 1000) == place("12ab", 1000) == 55


@pytest.mark.parametrize("count", [1, 2, 3, 10, 60])
def test_all_get_their_share_and_one_more_moves_only_its_own(count: int) -> None:
    before = {serial: place(serial, count) for serial in SERIALS}
    shares = Counter(before.values())
    assert {*shares} == {*range(count)}
    fair = len(SERIALS) / count
    assert max(shares.values()) < fair + 5 * fair**0.5
    after = {serial: place(serial, count + 1) for serial in SERIALS}
    moved = {after[serial] for serial in SERIALS if after[serial] != before[serial]}
    assert moved == {count}


@given(st.text("0123456789abcDEF", min_size=1, max_size=32), st.integers(1, 300))
def test_each_gateway_is_exactly_one_bridge_s(serial: str, count: int) -> None:
    assert [Shard(number, count).owns(serial) for number in range(count)].count(True) == 1


@pytest.mark.parametrize(
    ("text", "host", "found"),
    [("0/1", "", (0, 1)), ("2/3", "bridge-0", (2, 3)), ("auto/12", "iqgateway2mqtt-11", (11, 12))],
)
def test_shards(text: str, host: str, found: tuple[int, int]) -> None:
    assert Shard.of(text, host) == found
    assert Shard.of(str(Shard.of(text, host))) == found


@pytest.mark.parametrize("text", ["3/3", "0/0", "1", "-1/3", "a/b", "auto/3", "1/2/3", "auto"])
@pytest.mark.parametrize("host", ["attic", "bridge-3"])
def test_no_shards(text: str, host: str) -> None:
    with pytest.raises(ValueError, match=r"must look like|auto needs|there is no"):
        Shard.of(text, host)


def listing(*serials: str, **more: Any) -> list[dict[str, Any]]:
    return [{"host": f"gw-{serial}", "serial": serial, **more} for serial in serials]


def written(text: str, name: str = "gateways.toml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def as_toml(*serials: str) -> str:
    return "\n".join(f'[[gateways]]\nhost = "gw-{serial}"\nserial = "{serial}"' for serial in serials)


def hosts(found: Settings) -> list[str]:
    return [gateway.host for gateway in found.all_gateways]


def test_a_bridge_has_its_part_of_the_gateways() -> None:
    parts = [Settings(gateways=listing(*SERIALS[:50]), shard=f"{number}/3") for number in range(3)]
    assert sorted(host for part in parts for host in hosts(part)) == [f"gw-{serial}" for serial in SERIALS[:50]]
    assert all(0 < len(hosts(part)) < 50 for part in parts)
    assert [part.own_name for part in parts] == ["shard-0", "shard-1", "shard-2"]
    assert names_of(parts[1]).bridge == "enphase/bridge/shard-1"
    assert Settings(gateways=listing("1"), shard="0/1", instance="attic").own_name == "attic"


def test_a_bridge_whose_part_is_empty_polls_nothing() -> None:
    parts = [Settings(gateways=listing("1"), shard=f"{number}/2") for number in range(2)]
    assert sorted(len(part.all_gateways) for part in parts) == [0, 1]


def test_the_host_says_which_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "iqgateway2mqtt-2")
    monkeypatch.setenv("BRIDGE_SHARD", "auto/3")
    monkeypatch.setenv("BRIDGE_GATEWAY__SERIAL", "1")
    assert load().shard == "2/3"


@pytest.mark.parametrize("gateway", [{}, {"gateways": [{"host": "a", "serial": "1"}, {"host": "b"}]}])
def test_a_shard_needs_serials(gateway: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match=r"^BRIDGE_SHARD: each gateway needs its serial"):
        load(shard="0/2", **gateway)


# The file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.toml", as_toml("7", "8")),
        ("g.json", json.dumps(listing("7", "8"))),
        ("g.json", json.dumps({"gateways": listing("7", "8")})),
        ("g.json", f"\ufeff{json.dumps(listing('7', '8'))}"),
        ("g.toml", f"\ufeff{as_toml('7', '8')}"),
    ],
)
def test_a_file_of_gateways(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_GATEWAYS_FILE", str(written(text, name)))
    found = load()
    assert hosts(found) == ["gw-7", "gw-8"]
    written(text.replace("8", "9"), name)
    assert hosts(reread(found)) == ["gw-7", "gw-9"]
    assert hosts(found) == ["gw-7", "gw-8"]


def test_an_empty_list_is_no_default_gateway() -> None:
    found = load(gateways_file=written("gateways = []"))
    assert hosts(found) == []
    with pytest.raises(BadSetting, match="this bridge has no gateway"):
        chosen(found, None)


def test_rereading_the_file_changes_no_other_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_MQTT__BASE_TOPIC", "solar")
    found = load(gateways_file=written(as_toml("7")), shard="0/1")
    monkeypatch.setenv("BRIDGE_MQTT__BASE_TOPIC", "other")
    again = reread(found)
    assert again == found
    assert again.mqtt.base_topic == "solar"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f'[[gateways]]\nhost = "a"\ntoken = "{FLEET_TOKEN}', "not valid TOML"),
        ("[gateways]\nhost = 'a'", "must hold a list called gateways"),
        ("gateways = []\nmqtt = 1", "must hold a list called gateways"),
        ("gateways = 7", "must hold a list called gateways"),
        ("", "must hold a list called gateways"),
        (f"gateways = ['{FLEET_TOKEN}']", "BRIDGE_GATEWAYS__0: "),
        (f"gateways = [{{host = 'a', tokn = '{FLEET_TOKEN}'}}]", "BRIDGE_GATEWAYS__0__TOKN: no such setting"),
        ("gateways = [{host = 'a'}, {host = '192.168.1.300'}]", "BRIDGE_GATEWAYS__1__HOST: must be a name"),
        ("gateways = [{host = 'a'}, {host = 'b:99999'}]", "BRIDGE_GATEWAYS__1__HOST: must be a name"),
        ("gateways = [{host = 'fe80::20'}]", "BRIDGE_GATEWAYS__0__HOST: must be .* address .IPv6 in brackets"),
        ('gateways = [{host = "a\\u007f"}]', "BRIDGE_GATEWAYS__0__HOST: must be a name"),
        (as_toml("7", "7"), "same host twice"),
        (as_toml("7") + "\n" + as_toml("7").replace("gw", "wg"), "same serial twice"),
    ],
)
def test_what_is_no_list_of_gateways_is_refused(text: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_GATEWAYS_FILE", str(written(text)))
    with pytest.raises(BadSetting, match=problem) as found:
        load()
    assert FLEET_TOKEN not in str(found.value)
    assert "\n" not in str(found.value)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# \xe9")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name, problem in (
        ("absent", "No such file"),
        ("latin", "UTF-8"),
        ("deep.json", "not valid JSON"),
        (".", ""),
    ):
        with pytest.raises(BadSetting, match=f"^BRIDGE_GATEWAYS_FILE: .*{problem}"):
            load(gateways_file=tmp_path / name)
    long = written("gateways = []")
    assert load(gateways_file=long).gateways == ()
    with pytest.raises(ValueError, match="not valid TOML"):
        sharding.listed(long, max_bytes=len("gateways = []") - 1)


def test_a_file_or_the_environment() -> None:
    for other in ({"gateway": {"host": "a"}}, {"gateways": listing("7")}):
        with pytest.raises(BadSetting, match="either the file, or"):
            load(gateways_file=written(as_toml("7")), **other)


# Sites


@pytest.mark.parametrize(
    ("name", "found"),
    [("Müller & Söhne", "muller-sohne"), ("a/b+c#", "a-b-c"), ("South_2", "south_2"), ("屋根", ""), ("-", "")],
)
def test_a_site_s_level(name: str, found: str) -> None:
    assert level(name) == found


def sited(base: str, **gateway: str) -> Settings:
    return load(gateways=[{"host": "a", **gateway}], mqtt={"base_topic": base})


def test_sites_in_topics() -> None:
    found = sited("fleet/{site}/enphase", name="House", site="Customer 7")
    names = names_of(found, found.all_gateways[0])
    assert names.state("1") == "fleet/customer-7/enphase/1/state"
    assert names.bridge == names_of(found).bridge == "fleet/enphase/bridge"
    named = sited("{site}/enphase", name="House")
    assert names_of(named, named.all_gateways[0]).state("1") == "house/enphase/1/state"


@pytest.mark.parametrize(
    ("base", "gateway", "problem"),
    [
        ("{site}", {"name": "a"}, "a whole level beside another one"),
        ("a/x{site}", {"name": "a"}, "a whole level"),
        ("a/{serial}", {"name": "a"}, "a whole level"),
        ("a/{site}", {}, "needs a name or a site for a"),
        ("a/{site}", {"name": "屋根"}, "needs a name or a site for a"),
        ("a/{site}", {"site": "Bridge"}, "can't be called bridge"),
    ],
)
def test_no_sites_in_topics(base: str, gateway: dict[str, str], problem: str) -> None:
    with pytest.raises(BadSetting, match=problem):
        sited(base, **gateway)


# The topics of a gateway that another bridge polls now


def outbox() -> Outbox:
    found = Outbox()
    for name in ("a/1/x", "a/1/y", "a/2/x"):
        found.put(Message(name, "1"))
    for message in list(found.pending(0)):
        found.sent(message, 0)
    return found


def unsent(found: Outbox) -> list[tuple[str, str]]:
    return [(message.topic, message.payload) for message in found.pending(0)]


def test_dropped_topics_are_never_sent_again() -> None:
    found = outbox()
    found.put(Message("a/1/y", "2"))
    found.drop(lambda topic: "/1/" in topic)
    assert unsent(found) == []
    found.forget()
    assert unsent(found) == [("a/2/x", "1")]


def test_changes_of_released_topics_are_still_sent() -> None:
    found = outbox()
    found.put(Message("a/1/y", "2"))
    found.release(lambda topic: "/1/" in topic)
    assert found.topics == 2
    found.forget()
    assert unsent(found) == [("a/1/y", "2"), ("a/2/x", "1")]
    for message in list(found.pending(0)):
        found.sent(message, 0)
    found.forget()
    assert unsent(found) == [("a/2/x", "1")]


def test_released_topics_that_are_refused_are_forgotten() -> None:
    found = outbox()
    found.put(Message("a/1/y", "2"))
    found.release(lambda topic: "/1/" in topic)
    found.refuse(Message("a/1/y", "2"))
    assert found.topics == 1


def test_released_topics_may_come_back() -> None:
    found = outbox()
    found.put(Message("a/1/y", "2"))
    found.release(lambda topic: "/1/" in topic)
    found.put(Message("a/1/y", "3"))
    found.sent(Message("a/1/y", "3"), 0)
    found.forget()
    assert sorted(unsent(found)) == [("a/1/y", "3"), ("a/2/x", "1")]


def test_repeated_topics_are_unsent() -> None:
    found = outbox()
    found.repeat(["a/1/y", "a/9/z"])
    assert unsent(found) == [("a/1/y", "1")]


# Whole bridges


def entry(home: House) -> dict[str, str]:
    return {"host": home.url, "token": home.simulator.token(), "serial": home.serial}


@pytest.fixture
def mosquitto_here(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


def online(home: House, site: str) -> bool:
    return home.seen.get(f"fleet/{site}/{home.serial}/state") == "online" and bool(
        home.seen.get(f"fleet/{site}/{home.serial}/site/solar/power")
    )


@pytest.mark.hasty
@pytest.mark.expects_log(
    "gateways.json can't be used, the earlier list stays: BRIDGE_GATEWAYS_FILE: .* not valid JSON"
)
async def test_gateways_come_and_go(mosquitto_here: Mosquitto, tmp_path: Path) -> None:
    file = tmp_path / "gateways.json"
    async with (
        housed(tmp_path, mosquitto_here, "no-cts") as one,
        housed(tmp_path, mosquitto_here, "single-phase") as other,
        watching(mosquitto_here.port) as watcher,
    ):
        one.watcher = other.watcher = watcher

        def listed(*gateways: dict[str, str]) -> None:
            (tmp_path / "new").write_text(json.dumps(gateways))
            os.replace(tmp_path / "new", file)  # noqa: PTH105 - what people do

        north, south = ({**entry(home), "site": site} for home, site in ((one, "North"), (other, "South")))
        listed(north)
        given = settings(
            tmp_path, mosquitto_here.url, gateways_file=file, mqtt={"base_topic": "fleet/{site}", "heartbeat": 10}
        )
        async with running(given):
            await until(lambda: online(one, "north"))
            handshakes = one.simulator.count("/info")
            listed(north, south)
            await until(lambda: online(other, "south"))
            file.write_text("[{")
            await until(lambda: other.simulator.count("/ivp/livedata/status") > 5)
            assert online(one, "north")
            assert online(other, "south")
            listed(north, {**south, "site": "West"})
            await until(lambda: online(other, "west"))
            assert other.seen[f"fleet/south/{other.serial}/state"] == "offline"
            listed(north)
            await until(lambda: other.seen[f"fleet/west/{other.serial}/state"] == "offline")
            await until(lambda: NO_LONGER_POLLED in other.seen[f"fleet/west/{other.serial}/gateway"])
            await until(lambda: json.loads(one.seen["fleet/bridge/info"])["gateways"] == [one.serial])
            gone, said = other.simulator.count("/ivp/livedata/status"), len(watcher.seen)
            seen = one.simulator.count("/api/v1/production")
            await until(lambda: one.simulator.count("/api/v1/production") > seen)
            assert other.simulator.count("/ivp/livedata/status") == gone

            def later() -> list[str]:
                return [message.topic for message in watcher.seen[said:]]

            await until(lambda: later().count("fleet/bridge/state") >= 2)  # heartbeats
            assert not [topic for topic in later() if other.serial in topic]
            assert one.simulator.count("/info") == handshakes  # the bridge has not noticed anything
        states = [message.payload for message in watcher.seen if message.topic == f"fleet/north/{one.serial}/state"]
        assert states[-1] == "offline"
        assert states.count("offline") <= 2  # before the first answer, and at the end


@pytest.mark.hasty
@pytest.mark.expects_log(
    "localhost:[0-9]+ is gateway [0-9]+, which is polled at https://127.0.0.1.* already: remove"
)
async def test_a_gateway_that_is_listed_under_two_addresses_is_polled_once(
    mosquitto_here: Mosquitto, tmp_path: Path
) -> None:
    """Both were polled: all requests twice, and two counters of each energy at one topic, by turns."""
    file = tmp_path / "gateways.json"
    async with housed(tmp_path, mosquitto_here, "no-cts") as home, watching(mosquitto_here.port) as home.watcher:
        first = {"host": home.url, "token": home.simulator.token()}
        second = {**first, "host": home.url.replace("127.0.0.1", "localhost")}
        file.write_text(json.dumps([first, second]))
        bridge = Bridge(settings(tmp_path, mosquitto_here.url, gateways_file=file))
        async with going(bridge.run()):
            await home.settled()
            before = {path: home.simulator.count(path) for path in ("/info", "/api/v1/production")}
            assert before["/info"] == 2  # one of each address
            (gateway,) = bridge.status().gateways
            assert gateway.host in {first["host"], second["host"]}
            assert bridge.status().standing_by == {home.serial: f"this bridge at {gateway.host}"}
            await until(lambda: home.simulator.count("/api/v1/production") >= before["/api/v1/production"] + 2)
            assert home.simulator.count("/info") == 2
            assert home.topic("state") == "online"
            (tmp_path / "new").write_text(
                json.dumps([one for one in (first, second) if one["host"] != gateway.host])
            )
            os.replace(tmp_path / "new", file)  # noqa: PTH105 - what people do
            await until(lambda: home.topic("state") == "offline")
            await until(lambda: home.topic("state") == "online")
            assert not bridge.status().standing_by


@pytest.mark.hasty
@pytest.mark.expects_log("values wait for more than 30 s: BRIDGE_MQTT__RATE=10 allows fewer .*BRIDGE_MQTT__PAYLOAD")
async def test_under_a_rate_limit_below_what_changes_the_site_goes_first(
    mosquitto_here: Mosquitto, tmp_path: Path, warned: Sequence[str]
) -> None:
    """The home makes more than 30 messages a second."""
    async with (
        housed(tmp_path, mosquitto_here, "three-phase") as home,
        watching(mosquitto_here.port) as home.watcher,
        running(home.settings(mqtt={"rate": 10})),
    ):
        moved = asyncio.create_task(moving(home))
        await until(lambda: home.availability.get("readings") == "offline" and bool(warned), 2 * TIMEOUT_S)
        places = [n for n, m in enumerate(home.watcher.seen) if m.topic.endswith("/site/grid/power")]
        moved.cancel()
        assert len(places) > 20
        assert max(later - earlier for earlier, later in pairwise(places)) < 200
        states = [m.payload for m in home.watcher.seen if m.topic.endswith("/availability/site")]
        assert states[states.index("online") :] == ["online"]
        assert len(warned) == 1


async def moving(home: House) -> None:
    """Let the time of the simulated home pass as that of the loop does."""
    while True:
        await asyncio.sleep(5)
        home.clock.forward(5)
