"""The state outlives the process, a power cut and a bad disk, and only its owner may read it."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from bridge.model import MeterFacts
from bridge.pipeline import CountersState
from bridge.service.publisher import TreeState
from bridge.site.days import CountedDay
from bridge.state import BridgeState, CloudPause, FileState, IdentityState, decode, encode
from bridge.store import Store

SERIAL = "122125067699"
TOKEN_TEXT = "eyJhbGciOiJFUzI1NiJ9.eyJhdWQiOiIxMjIxIn0.c2ln"
STATE = IdentityState(
    token=SecretStr(TOKEN_TEXT),
    key_pin="ab" * 32,
    firmware="D8.3.5169",
    cloud=CloudPause(account="0a1b", why="Blocked", until=1_800_000_000, seconds=86_400, attempts=3),
    meters=(MeterFacts(704643328, "production", True, 3, "three"),),
    gear=frozenset({"battery/492301002201"}),
)
LARGE_STATE = STATE.changed(gear=frozenset(f"battery/{'0' * 300}{number}" for number in range(256)))
VERSION_1 = Path(__file__).parent / "states/version_1"
OLD_SERIAL = "122303003333"
MANY_BYTES = 4096
"""In larger files only each seventh byte is damaged, to save time."""


def file_of(folder: Path, serial: str = SERIAL) -> Path:
    return folder / f"gateway-{serial}.json"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_state_outlives_the_process(tmp_path: Path) -> None:
    assert Store(tmp_path).save(SERIAL, STATE)
    assert Store(tmp_path).load(SERIAL, IdentityState) == STATE


def test_unknown_gateway_starts_empty_and_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(tmp_path / "new").load(SERIAL, IdentityState) == IdentityState()
    assert not caplog.records


def test_gateways_do_not_share_a_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(SERIAL, STATE)
    store.save("122125067700", STATE.changed(firmware="D7"))
    assert Store(tmp_path).load(SERIAL, IdentityState).firmware == "D8.3.5169"
    assert Store(tmp_path).load("122125067700", IdentityState).firmware == "D7"


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    previous = os.umask(0)
    try:
        Store(folder).save(SERIAL, STATE)
    finally:
        os.umask(previous)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file_of(folder).stat().st_mode & 0o777 == 0o600


def test_a_file_left_open_to_others_is_closed(tmp_path: Path) -> None:
    Store(tmp_path).save(SERIAL, STATE)
    file_of(tmp_path).chmod(0o644)
    Store(tmp_path).load(SERIAL, IdentityState)
    assert file_of(tmp_path).stat().st_mode & 0o777 == 0o600


def test_nothing_but_the_file_shows_the_token(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(SERIAL, STATE)
    shown = f"{STATE} {STATE!r} {STATE.model_dump()} {STATE.model_dump_json()} {store!r}"
    assert TOKEN_TEXT not in shown
    assert TOKEN_TEXT in file_of(tmp_path).read_text()


@pytest.mark.parametrize("serial", ["../../etc/passwd", "/etc/passwd", "a" * 500, "..", "a\0b"])
def test_no_serial_leads_out_of_the_folder(tmp_path: Path, serial: str) -> None:
    folder = tmp_path / "state"
    assert Store(folder).save(serial, STATE)
    assert Store(folder).load(serial, IdentityState) == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"version": 1, "token"',
        b"[]",
        b"\xff\xfe\x00",
        b'{"version": 3, "token": "of a later version"}',
        b"[" * 100_000,
    ],
)
@pytest.mark.expects_log("can't be understood")
def test_what_can_not_be_understood_is_kept_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file_of(tmp_path).write_bytes(content)
    store = Store(tmp_path)
    assert store.load(SERIAL, IdentityState) == IdentityState()
    assert store.load(SERIAL, IdentityState) == IdentityState()
    assert (tmp_path / f"gateway-{SERIAL}.json.corrupt").read_bytes() == content
    assert len(warnings(caplog)) == 1
    assert store.save(SERIAL, STATE)
    assert Store(tmp_path).load(SERIAL, IdentityState) == STATE


def test_fields_of_later_releases_do_no_harm(tmp_path: Path) -> None:
    file_of(tmp_path).write_text(json.dumps({"version": 1, "firmware": "D8", "invented": [1]}))
    assert Store(tmp_path).load(SERIAL, IdentityState).firmware == "D8"


@pytest.mark.expects_log("can't be written")
def test_a_full_disk_leaves_the_old_file_and_the_new_state_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    store = Store(tmp_path)
    store.save(SERIAL, STATE)
    newer = STATE.changed(firmware="D9")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", _full)
        assert not store.save(SERIAL, newer)
        assert not store.save("122125067700", STATE)
        assert store.load(SERIAL, IdentityState) == newer
        assert Store(tmp_path).load(SERIAL, IdentityState) == STATE
    assert len(warnings(caplog)) == 1
    assert "No space left" in warnings(caplog)[0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # no half-written files

    assert store.save("122125067701", STATE)  # the other states are written at the same time
    assert Store(tmp_path).load(SERIAL, IdentityState) == newer
    assert Store(tmp_path).load("122125067700", IdentityState) == STATE
    assert "can be written again" in caplog.text
    assert TOKEN_TEXT not in caplog.text


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.expects_log("can't be written")
def test_a_folder_that_can_not_be_made_is_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "state")
    assert not store.save(SERIAL, STATE)
    assert not store.save(SERIAL, STATE.changed(firmware="D9"))
    assert store.load(SERIAL, IdentityState).firmware == "D9"
    assert len([text for text in warnings(caplog) if "can't be written" in text]) == 1


@pytest.mark.expects_log("can't be read")
def test_an_unreadable_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file_of(tmp_path).mkdir()
    assert Store(tmp_path).load(SERIAL, IdentityState) == IdentityState()
    assert "can't be read" in caplog.text


@pytest.mark.expects_log("can't be read")
@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_what_is_no_ordinary_file_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    """Opening a named pipe waits until somebody writes to it, which would hold up the start for ever."""
    if target == "pipe":
        os.mkfifo(file_of(tmp_path))
    else:
        file_of(tmp_path).symlink_to(target)
    store = Store(tmp_path)
    assert store.load(SERIAL, IdentityState) == IdentityState()
    assert warnings(caplog) == [f"{file_of(tmp_path)} can't be read (it is no ordinary file): starting without it"]
    assert store.save(SERIAL, STATE)
    assert Store(tmp_path).load(SERIAL, IdentityState) == STATE


@pytest.mark.expects_log("can't be read", "can't be written")
def test_a_folder_in_place_of_one_file_costs_only_this_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bridge.json").mkdir()
    store = Store(tmp_path)
    suffix = store.client_suffix()
    assert store.save(SERIAL, STATE)
    assert Store(tmp_path).load(SERIAL, IdentityState) == STATE
    assert store.client_suffix() == suffix
    (tmp_path / "bridge.json").rmdir()
    assert store.save(SERIAL, STATE.changed(firmware="D9"))
    assert Store(tmp_path).client_suffix() == suffix
    assert len([text for text in warnings(caplog) if "can't be written (Is a directory)" in text]) == 1


def test_an_interrupted_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).save(SERIAL, STATE)
    monkeypatch.setattr(Path, "replace", _killed)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).save(SERIAL, STATE.changed(firmware="D9"))
    monkeypatch.undo()
    assert Store(tmp_path).load(SERIAL, IdentityState) == STATE


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_unchanged_state_is_not_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(SERIAL, STATE)
    before = file_of(tmp_path).stat().st_ino
    store.save(SERIAL, STATE.changed())
    assert file_of(tmp_path).stat().st_ino == before
    store.save(SERIAL, STATE.changed(firmware="D9"))
    assert Store(tmp_path).load(SERIAL, IdentityState).firmware == "D9"


def test_client_suffix_is_made_once(tmp_path: Path) -> None:
    suffix = Store(tmp_path).client_suffix()
    assert len(bytes.fromhex(suffix)) == 4
    assert Store(tmp_path).client_suffix() == suffix
    assert Store(tmp_path / "other").client_suffix() != suffix


@pytest.mark.expects_log("can't be (read|written)")
def test_client_suffix_stays_the_same_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    assert store.client_suffix() == store.client_suffix()


def test_serials_are_remembered_by_host(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.serial_of("https://envoy.local") is None
    store.remember("https://envoy.local", SERIAL)
    store.remember("https://envoy.local", SERIAL)
    assert Store(tmp_path).serial_of("https://envoy.local") == SERIAL
    store.remember("https://envoy.local", "122125067700")
    assert Store(tmp_path).serial_of("https://envoy.local") == "122125067700"


def test_remembered_hosts_are_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(70):
        store.remember(f"https://10.0.0.{number}", SERIAL)
    assert store.serial_of("https://10.0.0.69") == SERIAL
    assert store.serial_of("https://10.0.0.0") is None


@pytest.mark.expects_log("can't be understood .*, starting with its token alone")
def test_a_token_of_a_later_version_is_kept_at_once(tmp_path: Path) -> None:
    file_of(tmp_path).write_text(json.dumps({"version": 3, "token": TOKEN_TEXT, "firmware": "D9"}))
    assert Store(tmp_path).load(SERIAL, IdentityState) == IdentityState(token=SecretStr(TOKEN_TEXT))
    assert Store(tmp_path).load(SERIAL, IdentityState) == IdentityState(token=SecretStr(TOKEN_TEXT))


def test_a_large_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    """The next load reads the disk, because the state is no longer in memory."""
    store, large = Store(tmp_path), LARGE_STATE
    store.save(SERIAL, large)
    assert store.load(SERIAL, IdentityState) == large
    other = large.changed(firmware="D9.0.1")
    Store(tmp_path).save(SERIAL, other)
    assert store.load(SERIAL, IdentityState) == other


@pytest.mark.expects_log("can't be written")
def test_a_large_file_that_the_disk_does_not_take_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, large = Store(tmp_path), LARGE_STATE
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        assert not store.save(SERIAL, large)
        assert store.load(SERIAL, IdentityState) == large
    assert len(warnings(caplog)) == 1
    caplog.clear()
    assert store.save("122125067700", STATE)
    assert Store(tmp_path).load(SERIAL, IdentityState) == large


# Damaged files


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize("kind", [IdentityState, CountersState, TreeState, BridgeState])
def test_a_flipped_bit_costs_at_most_what_it_is_in(kind: type[FileState]) -> None:
    """Whatever bit of a file flips, each field has its saved value or its default."""
    (state,) = (state for state in old_states() if type(state) is kind)
    content, default = encode(state), kind()
    damaged_fields = set[str]()
    for place in range(0, len(content), 7 if len(content) > MANY_BYTES else 1):
        try:
            found, damaged = decode(kind, flipped(content, place, place % 8))
        except ValueError:
            continue
        for name in kind.model_fields:
            kept, value = getattr(state, name), getattr(found, name)
            assert value == kept or (value == getattr(default, name) and name in damaged), (place, name)
        damaged_fields.update(damaged)
    assert damaged_fields >= {name for name in kind.model_fields if getattr(state, name) != getattr(default, name)}


@pytest.mark.parametrize("byte", [0x00, 0x20, 0x22, 0x30, 0x31, 0x5C, 0x61, 0x7D, 0xFF])
@pytest.mark.may_log("can't be understood")
def test_any_byte_replaced_gives_no_wrong_identity(tmp_path: Path, byte: int) -> None:
    """A file with one wrong byte is read unchanged, without the damaged field, or only for its token."""
    content = encode(STATE)
    for place in range(len(content)):
        file_of(tmp_path).write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
        found = Store(tmp_path).load(SERIAL, IdentityState)
        for name in IdentityState.model_fields:
            value = getattr(found, name)
            assert value in (getattr(STATE, name), getattr(IdentityState(), name)), (place, name)


@pytest.mark.expects_log("can't be understood .*, starting with its token alone")
def test_the_token_of_a_file_cut_short_is_kept(tmp_path: Path) -> None:
    content = encode(STATE)
    file_of(tmp_path).write_bytes(content[: content.index(b"firmware")])
    assert Store(tmp_path).load(SERIAL, IdentityState) == IdentityState(token=STATE.token)


@pytest.mark.expects_log("can't be understood .*, starting without its firmware$")
def test_only_names_of_fields_are_logged(tmp_path: Path) -> None:
    Store(tmp_path).save(SERIAL, STATE)
    file_of(tmp_path).write_text(file_of(tmp_path).read_text().replace('"firmware": ', f'"{TOKEN_TEXT}": ', 1))
    assert Store(tmp_path).load(SERIAL, IdentityState) == STATE.changed(firmware=None)


@pytest.mark.expects_log("can't be understood .*, starting without its key_pin")
def test_a_damaged_field_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    Store(tmp_path).save(SERIAL, STATE)
    damaged = file_of(tmp_path).read_text().replace("abab", "abaa", 1)
    file_of(tmp_path).write_text(damaged)
    store = Store(tmp_path)
    assert store.load(SERIAL, IdentityState) == STATE.changed(key_pin=None)
    assert file_of(tmp_path).with_suffix(".json.corrupt").read_text() == damaged
    assert Store(tmp_path).load(SERIAL, IdentityState) == STATE.changed(key_pin=None)


@pytest.mark.expects_log("can't be understood .*, starting without its firmware, token")
def test_values_of_an_intruder_are_not_believed_without_their_digest(tmp_path: Path) -> None:
    file_of(tmp_path).write_text(json.dumps({"version": 2, "token": TOKEN_TEXT, "firmware": "D9"}))
    assert Store(tmp_path).load(SERIAL, IdentityState) == IdentityState()


# Files that a killed process has left

KILLED_WHILE_WRITING = """\
import os, signal, sys
from pathlib import Path
from pydantic import SecretStr
from bridge.state import IdentityState
from bridge.store import Store
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
Store(Path(sys.argv[1])).save(sys.argv[2], IdentityState(token=SecretStr(sys.argv[3])))
"""


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    """It holds a token. The next process to be killed is no exception."""
    Store(tmp_path).save(SERIAL, STATE)
    for _ in range(3):
        words = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path), SERIAL, TOKEN_TEXT]
        assert subprocess.run(words, check=False, timeout=60).returncode == -signal.SIGKILL
        (left,) = (path for path in tmp_path.iterdir() if path.suffix == ".tmp")
        assert TOKEN_TEXT in left.read_text()
        assert left.stat().st_mode & 0o777 == 0o600
    assert Store(tmp_path).load(SERIAL, IdentityState) == STATE
    assert [path.name for path in tmp_path.iterdir()] == [f"gateway-{SERIAL}.json"]


def test_only_what_nobody_is_writing_is_removed(tmp_path: Path) -> None:
    """Another command may run beside the service. A number may belong to another program by now."""
    mine, dead, alive, old = (tmp_path / f".bridge.json.{pid}.tmp" for pid in (os.getpid(), 999_999_999, 1, 2))
    other = tmp_path / ".notes.tmp"
    for path in (mine, dead, alive, old, other):
        path.touch()
    os.utime(old, (0, 0))
    Store(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, other.name}


# Files of earlier releases


def old_states() -> list[FileState]:
    """Files of version 1, which have no digests."""
    kinds = (IdentityState, CountersState, TreeState)
    files = [(kind, VERSION_1 / f"gateway-{OLD_SERIAL}{kind.suffix}.json") for kind in kinds]
    return [decode(kind, file.read_bytes())[0] for kind, file in [*files, (BridgeState, VERSION_1 / "bridge.json")]]


def test_files_of_version_1_are_read_whole(tmp_path: Path) -> None:
    for file in VERSION_1.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    store = Store(tmp_path)
    assert store.serial_of("https://192.168.1.50") == OLD_SERIAL
    assert store.client_suffix() == "e854c252"

    identity = store.load(OLD_SERIAL, IdentityState)
    assert identity.token is not None
    assert identity.token.get_secret_value().endswith(".c2ln")
    assert identity.key_pin == "9927cd1d223c80d5b12c36f43322e17f76f868690f8dfcb7d8c0451ddd6b55ac"
    assert (identity.firmware, identity.gear) == ("D8.3.5169", frozenset())
    assert identity.cloud == CloudPause(
        account="0123456789abcdef", why="Blocked", until=1_796_019_600, seconds=86_400, attempts=2
    )
    assert [(meter.eid, meter.role, meter.enabled, meter.phase_count) for meter in identity.meters or ()] == [
        (704643328, "production", True, 1),
        (704643584, "net-consumption", True, 1),
    ]

    counters = store.load(OLD_SERIAL, CountersState)
    assert len(counters.counters) == 9
    held = counters.counters["meter/production/energy_delivered"]
    assert (held.raw, held.offset, held.is_held) == (2549218.333, -12.5, True)
    assert counters.site.energies.tallies["exported"] == (1795933192.9448373, 2.874000000068918, 0.0)
    assert counters.site.energies.published["solar"] == 2549218.333
    assert counters.site.days["home"] == CountedDay("2026-11-29", 0.0, 0.5599999998230487)
    assert counters.site.seen == {"livedata": 0.014617681503295898}
    assert counters.days["inverter/482303001121"] == CountedDay("2026-11-29", 215467.186, 215921.186)

    tree = store.load(OLD_SERIAL, TreeState)
    assert len(tree.rows) == 24
    assert [row.absent_since for row in tree.rows if row.absent_since] == [1795933000.5]
    assert tree.leaving == {"homeassistant/sensor/iqgateway_122303003333_old/config"}


def test_files_of_version_1_become_files_of_version_2(tmp_path: Path) -> None:
    for state in old_states():
        found, damaged = decode(type(state), encode(state))
        assert (found, damaged) == (state, ())
        if isinstance(state, TreeState) and isinstance(found, TreeState):
            assert [row.absent_since for row in found.rows] == [row.absent_since for row in state.rows]
    store = Store(tmp_path)
    store.save(OLD_SERIAL, old_states()[1])
    assert json.loads((tmp_path / f"gateway-{OLD_SERIAL}_counters.json").read_text())["version"] == 2


def test_a_damaged_entry_of_version_1_costs_itself() -> None:
    content = json.loads((VERSION_1 / f"gateway-{OLD_SERIAL}_counters.json").read_text())
    content["extra"]["counters"]["meter/production/energy_received"]["raw"] = 1e300
    content["extra"]["site"]["days"]["solar"] = ["2026-11-29", "x", 1]
    content["extra"]["site"]["energies"]["battery"] = [1, 2]
    state, damaged = decode(CountersState, json.dumps(content).encode())
    assert damaged == ()
    assert len(state.counters) == 8
    assert set(state.site.days) == {"home"}
    assert state.site.energies.battery is None
    assert state.site.energies.published["solar"] == 2549218.333
