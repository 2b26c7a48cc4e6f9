"""What a cluster of brokers has read of the messages, and which it may have lost."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from edge import CONNACK_5, PUBLISH, fake_broker, packet, publish_id, soon, using, within
from running import running, settings

from bridge.model import Message
from bridge.mqtt import Broker
from bridge.mqtt.loop import MAX_PINGS, PING_AFTER, STALL_S, Receipts
from bridge.service import bridge as service

PINGREQ, PINGRESP = b"\xc0", b"\xd0\x00"
WINDOW = PING_AFTER * MAX_PINGS


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Conversation:
    """Receipts that send their pings nowhere."""

    def __init__(self) -> None:
        self.clock, self.doubted = Clock(), list[str]()
        self.pings = self.answers = 0
        self.receipts = Receipts(self._ping, self._answer, self.doubted.extend, self.clock)

    def _ping(self) -> None:
        self.pings += 1
        self.receipts.asked()

    def _answer(self) -> None:
        self.answers += 1

    def send(self, count: int, name: str = "t") -> list[str]:
        topics = [f"{name}/{number}" for number in range(count)]
        for topic in topics:
            self.receipts.sent(topic)
        return topics

    def answer(self, after: float) -> None:
        self.clock.now += after
        self.receipts.answered()


def test_a_ping_follows_so_many_messages_or_a_second() -> None:
    talk = Conversation()
    talk.receipts.ask()
    talk.send(PING_AFTER - 1)
    assert talk.pings == 0
    talk.send(1)
    assert talk.pings == 1
    talk.receipts.ask()
    assert talk.pings == 1
    talk.send(1)
    talk.receipts.ask()
    assert talk.pings == 2


def test_sending_waits_while_too_many_pings_are_not_answered() -> None:
    talk = Conversation()
    talk.send(WINDOW - 1)
    assert not talk.receipts.full
    talk.send(1)
    assert talk.receipts.full
    talk.answer(0)
    assert (talk.receipts.full, talk.answers) == (False, 1)


@pytest.mark.parametrize(("seconds", "in_doubt"), [(STALL_S - 0.1, False), (STALL_S + 0.1, True)])
def test_all_that_was_under_way_in_a_stall_is_in_doubt(seconds: float, in_doubt: bool) -> None:
    talk = Conversation()
    talk.send(PING_AFTER, "read")
    talk.answer(0.1)
    stuck = talk.send(PING_AFTER + 1, "stuck")
    talk.answer(seconds)
    assert talk.doubted == (stuck if in_doubt else [])


def test_a_broker_that_reads_slowly_but_steadily_has_lost_nothing() -> None:
    talk = Conversation()
    talk.send(WINDOW)
    for _ in range(MAX_PINGS):
        talk.answer(STALL_S - 0.1)
    assert talk.doubted == []


def test_a_pause_without_messages_is_no_stall() -> None:
    talk = Conversation()
    talk.send(PING_AFTER)
    talk.answer(0.1)
    talk.clock.now += 60
    talk.send(PING_AFTER)
    talk.answer(0.1)
    assert talk.doubted == []


def test_an_answer_that_nobody_waits_for_says_nothing() -> None:
    talk = Conversation()
    talk.answer(60)
    talk.send(PING_AFTER)
    assert (talk.answers, talk.doubted) == (0, [])


@contextmanager
def sending(broker: Broker, count: int) -> Iterator[Callable[[], int]]:
    """Send messages in the background. Yields how many were handed over."""
    handed = 0

    async def send() -> None:
        nonlocal handed
        for number in range(count):
            handed += await broker.send(Message(f"enphase/{number}", str(number)))

    task = asyncio.create_task(send())
    yield lambda: handed
    task.cancel()


async def test_a_cluster_gets_no_more_than_it_reads() -> None:
    """A second address makes a cluster; nobody listens there."""
    go_on, seen = asyncio.Event(), list[int]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK_5)
        while True:
            kind = await packet(reader)
            seen.append(kind[0] & 0xF0)
            if kind == PINGREQ:
                await go_on.wait()
                writer.write(PINGRESP)

    async with fake_broker(talk) as url, using(f"{url},mqtt://127.0.0.1:9", on_doubt=lambda _: None) as broker:
        await broker.connect()
        with sending(broker, 1000) as handed:
            await soon(lambda: handed() == WINDOW)
            await asyncio.sleep(0.2)
            assert handed() == WINDOW
            go_on.set()
            await soon(lambda: seen.count(PUBLISH) == 1000)


async def test_what_was_under_way_when_the_connection_ended_is_in_doubt() -> None:
    doubted: list[str] = []
    read = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK_5)
        while (await packet(reader))[0] & 0xF0 != PUBLISH:
            pass
        await read.wait()

    def doubt(topics: Sequence[str]) -> None:
        doubted.extend(topics)

    async with fake_broker(talk) as url, using(f"{url},mqtt://127.0.0.1:9", on_doubt=doubt) as broker:
        await broker.connect()
        assert await broker.send(Message("enphase/a", "1"))
        assert await broker.send(Message("enphase/b", "1"))
        read.set()
        await within(broker.lost())
    assert doubted == ["enphase/a", "enphase/b"]


async def test_a_single_broker_is_not_asked() -> None:
    pings = messages = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings, messages
        writer.write(CONNACK_5)
        while True:
            kind = await packet(reader)
            pings += kind == PINGREQ
            messages += kind[0] & 0xF0 == PUBLISH

    async with fake_broker(talk) as url, using(url, on_doubt=lambda _: None) as broker:
        await broker.connect()
        with sending(broker, 1000):
            await soon(lambda: messages == 1000)
    assert pings == 0


async def test_the_service_sends_again_what_may_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is stuck once, for longer than `STALL_S`. Nothing else makes the bridge repeat its messages."""
    monkeypatch.setattr(service, "CLUSTER_REPEAT_S", 600.0)
    (tmp_path / "gateways.json").write_text("[]")
    told: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK_5)
        stuck = STALL_S + 0.2
        while True:
            kind = await packet(reader)
            if kind == PINGREQ:
                await asyncio.sleep(stuck)
                stuck = 0
                writer.write(PINGRESP)
            if kind[0] & 0xF0 == PUBLISH:
                told.append(kind[3 : 3 + int.from_bytes(kind[1:3])].decode())
                if kind[0] & 0x06:
                    writer.write(b"\x40\x02" + publish_id(kind))

    async with fake_broker(talk) as url:
        given = settings(tmp_path, f"{url},mqtt://127.0.0.1:9", gateways_file=tmp_path / "gateways.json")
        async with running(given):
            await soon(lambda: told.count("enphase/bridge/info") == 2)


def test_a_slow_broker_is_not_sent_the_same_for_ever() -> None:
    """It reads 12 messages a second. After some answers that is known, and nothing is in doubt any more."""
    talk, waiting, doubts = Conversation(), [f"t/{number}" for number in range(600)], list[int]()
    for _ in range(200):
        while waiting and not talk.receipts.full:
            talk.receipts.sent(waiting.pop(0))
        _, count, _ = talk.receipts._asked[0]
        talk.answer(count / 12)
        doubts.append(len(talk.doubted))
        waiting += talk.doubted
        talk.doubted.clear()
        talk.receipts.ask()
        if not talk.receipts._asked:
            break
    assert doubts[0] > 0
    assert not waiting
    assert len(doubts) < 60


def test_a_stall_is_noticed_again_and_again() -> None:
    talk = Conversation()
    for _ in range(5):
        for _ in range(10):
            talk.send(PING_AFTER)
            talk.answer(0.05)
        assert not talk.doubted
        talk.send(PING_AFTER)
        talk.answer(4.0)
        assert len(talk.doubted) == PING_AFTER
        talk.doubted.clear()
