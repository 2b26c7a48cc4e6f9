"""What is kept outlives the process, a power cut and a bad disk; and it is nobody else's business."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from bridge.store import GatewayState, Store

SERIAL = "122125067699"
SECRET = "eyJhbGciOiJFUzI1NiJ9.eyJhdWQiOiIxMjIxIn0.c2ln"
STATE = GatewayState(
    token=SecretStr(SECRET),
    key_pin="ab" * 32,
    firmware="D8.3.5169",
    address="https://envoy.local",
    extra={"topics": ["a", "b"], "counters": {"production": 12.5}},
)


def file_of(folder: Path, serial: str = SERIAL) -> Path:
    return folder / f"gateway-{serial}.json"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_state_outlives_the_process(tmp_path: Path) -> None:
    assert Store(tmp_path).save(SERIAL, STATE)
    assert Store(tmp_path).load(SERIAL) == STATE


def test_unknown_gateway_starts_empty_and_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(tmp_path / "new").load(SERIAL) == GatewayState()
    assert not caplog.records


def test_gateways_do_not_share_a_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(SERIAL, STATE)
    store.save("122125067700", STATE.changed(firmware="D7"))
    assert Store(tmp_path).load(SERIAL).firmware == "D8.3.5169"
    assert Store(tmp_path).load("122125067700").firmware == "D7"


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
    Store(tmp_path).load(SERIAL)
    assert file_of(tmp_path).stat().st_mode & 0o777 == 0o600


def test_nothing_but_the_file_shows_the_token(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(SERIAL, STATE)
    shown = f"{STATE} {STATE!r} {STATE.model_dump()} {STATE.model_dump_json()} {store!r}"
    assert SECRET not in shown
    assert SECRET in file_of(tmp_path).read_text()


@pytest.mark.parametrize("serial", ["../../etc/passwd", "/etc/passwd", "a" * 500, "..", "a\0b"])
def test_no_serial_leads_out_of_the_folder(tmp_path: Path, serial: str) -> None:
    folder = tmp_path / "state"
    assert Store(folder).save(serial, STATE)
    assert Store(folder).load(serial) == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"version": 1, "token"',
        b"[]",
        b"\xff\xfe\x00",
        b'{"version": 2, "token": "of a later version"}',
        b'{"version": 1, "token": 5}',
        b"[" * 100_000,
    ],
)
@pytest.mark.expects_log("can't be understood")
def test_what_can_not_be_understood_is_kept_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file_of(tmp_path).write_bytes(content)
    store = Store(tmp_path)
    assert store.load(SERIAL) == GatewayState()
    assert store.load(SERIAL) == GatewayState()
    assert (tmp_path / f"gateway-{SERIAL}.json.corrupt").read_bytes() == content
    assert len(warnings(caplog)) == 1
    assert store.save(SERIAL, STATE)
    assert Store(tmp_path).load(SERIAL) == STATE


def test_fields_of_later_releases_do_no_harm(tmp_path: Path) -> None:
    file_of(tmp_path).write_text(json.dumps({"version": 1, "firmware": "D8", "invented": [1]}))
    assert Store(tmp_path).load(SERIAL).firmware == "D8"


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
        assert store.load(SERIAL) == newer
        assert Store(tmp_path).load(SERIAL) == STATE
    assert len(warnings(caplog)) == 1
    assert "No space left" in warnings(caplog)[0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # no half-written files

    assert store.save("122125067701", STATE)  # and the others are written along with it
    assert Store(tmp_path).load(SERIAL) == newer
    assert Store(tmp_path).load("122125067700") == STATE
    assert "can be written again" in caplog.text
    assert SECRET not in caplog.text


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
    assert store.load(SERIAL).firmware == "D9"
    assert len([text for text in warnings(caplog) if "can't be written" in text]) == 1


@pytest.mark.expects_log("can't be read")
def test_an_unreadable_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file_of(tmp_path).mkdir()
    assert Store(tmp_path).load(SERIAL) == GatewayState()
    assert "can't be read" in caplog.text


def test_an_interrupted_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).save(SERIAL, STATE)
    monkeypatch.setattr(Path, "replace", _killed)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).save(SERIAL, STATE.changed(firmware="D9"))
    monkeypatch.undo()
    assert Store(tmp_path).load(SERIAL) == STATE


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_unchanged_state_is_not_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(SERIAL, STATE)
    before = file_of(tmp_path).stat().st_ino
    store.save(SERIAL, STATE.changed())
    assert file_of(tmp_path).stat().st_ino == before
    store.save(SERIAL, STATE.changed(firmware="D9"))
    assert Store(tmp_path).load(SERIAL).firmware == "D9"


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
    file_of(tmp_path).write_text(json.dumps({"version": 2, "token": SECRET, "firmware": "D9"}))
    assert Store(tmp_path).load(SERIAL) == GatewayState(token=SecretStr(SECRET))
    assert Store(tmp_path).load(SERIAL) == GatewayState(token=SecretStr(SECRET))


def test_a_large_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    """It is the disk's content that is told next time, for the state in memory is gone."""
    store, large = Store(tmp_path), STATE.changed(extra={"rows": ["x" * 100] * 1000})
    store.save(SERIAL, large)
    assert store.load(SERIAL) == large
    other = large.changed(firmware="D9.0.1")
    Store(tmp_path).save(SERIAL, other)
    assert store.load(SERIAL) == other


@pytest.mark.expects_log("can't be written")
def test_a_large_file_that_the_disk_does_not_take_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, large = Store(tmp_path), STATE.changed(extra={"rows": ["x" * 100] * 1000})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        assert not store.save(SERIAL, large)
        assert store.load(SERIAL) == large
    assert len(warnings(caplog)) == 1
    caplog.clear()
    assert store.save("122125067700", STATE)
    assert Store(tmp_path).load(SERIAL) == large
