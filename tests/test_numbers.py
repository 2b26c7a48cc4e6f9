"""The bridge's numbers are true: a part of the matrix of `benchmarks/true_numbers.py`, with each kind of fault.

The whole bridge runs against the model of a house in tests/house, in simulated time.
"""

import pytest
from house.faults import BY_NAME as FAULTS
from house.kinds import BY_NAME as KINDS
from house.runs import play

COMBINATIONS = (
    ("net1", "nothing, 60 s"),
    ("total1", "nothing, 60 s"),
    ("power1", "nothing, 60 s"),
    ("ac-battery1", "nothing, 60 s"),
    ("foreign1", "nothing, 60 s"),
    ("net1", "started at noon"),
    ("net1", "down a day"),
    ("net3", "down a day"),
    ("live1", "down a day"),
    ("net1", "down over two midnights"),
    ("net1", "production disabled 2 h"),
    ("net3", "net-consumption disabled 2 h"),
    ("storage1", "storage disabled 2 h"),
    ("net1", "meters lie once"),
    ("net1", "rewind of 3 kWh"),
    ("net1", "rewind of 300 kWh"),
    ("total1", "all counters rewind by 30 Wh"),
    ("net1", "glitch of 50 kWh at 3:00"),
    ("net3", "glitch of 10^12"),
    ("no-ct", "glitch at the first start"),
    ("net1", "step of 50 kWh"),
    ("net1", "one counter freezes"),
    ("net3", "zeros at reboot"),
    ("standard", "zeros at reboot"),
    ("net1", "production clamp reversed"),
    ("net1", "net-consumption clamp reversed"),
    ("net1", "clamp measures nothing from the start"),
    ("net1", "clamp measures nothing from one day on"),
    ("storage2", "storage phase at 0 V"),
    ("net1", "wraps of uint32"),
    ("total1", "wraps of uint32 in an outage"),
    ("no-ct", "wrap of 2^32 J"),
    ("no-ct", "wrap of 2^32 J in an outage"),
    ("standard", "2^31 Wh passed"),
    ("net3", "killed twice"),
    ("net3", "state lost"),
    ("net1", "state damaged"),
    ("net1", "state and topics lost"),
    ("net1", "host clock off by a day"),
    ("net1", "host clock off at a restart"),
    ("net1", "gateway clock off"),
    ("live1", "live data freeze"),
    ("net1", "answers of 3 s"),
    ("generator2", "off the grid"),
)


@pytest.mark.may_log(".")
@pytest.mark.parametrize(("kind", "fault"), COMBINATIONS, ids=map(" x ".join, COMBINATIONS))
def test_the_numbers_are_true(kind: str, fault: str) -> None:
    assert play(KINDS[kind], FAULTS[fault]).complaints == ()
