"""The state folder: small JSON files that outlive the process, four for each gateway, one for each home of
several gateways and one for the bridge.

Identity, counters and tree of a gateway are files of their own, because the counters are written every few minutes
and the others seldom: a memory card must last for years. A power cut leaves the old file or the new one, never half
of one. Reading and writing are synchronous.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from bridge.state import (
    MAX_PLACES,
    BridgeState,
    CloudPause,
    FileState,
    IdentityState,
    StateT,
    Unreadable,
    decode,
    encode,
    rescue,
)

LOG = logging.getLogger(__name__)
PRIVATE_FILE_MODE, PRIVATE_FOLDER_MODE = 0o600, 0o700
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_CACHED_BYTES = 64 * 1024
"""Larger states are not kept in memory: the published tree is read once, at the start."""
MAX_HOSTS = 64
MAX_NAME_LETTERS = 64
CLIENT_SUFFIX_BYTES = 4
BRIDGE_FILE = "bridge.json"
TEMPORARY = re.compile(r"\..+\.json\.(\d{1,9})\.tmp")
"""Files that are being written, by the number of the process that writes them."""
TEMPORARY_S = 60.0
UNWRITABLE = (
    "%s can't be written (%s): tokens and keys are forgotten at the next start; "
    "make the folder writable for this user, or set BRIDGE_STATE_DIR"
)


class Store:
    """The states that are kept in one folder."""

    def __init__(self, folder: Path) -> None:
        self._files = _Files(folder)

    def __repr__(self) -> str:
        return f"Store({str(self._files.folder)!r})"

    def load(self, serial: str, kind: type[StateT]) -> StateT:
        """The state of this kind of a gateway; one with its defaults if the folder has none."""
        return self._files.load(_file_of(serial, kind), kind)

    def reload(self, serial: str, kind: type[StateT]) -> StateT:
        """The state as it is on the disk now, where a command may have changed it."""
        self._files.forget(_file_of(serial, kind))
        return self.load(serial, kind)

    def save(self, serial: str, state: FileState) -> bool:
        """Write a state of a gateway. Returns False if that failed; the next save of any state tries it again."""
        return self._files.save(_file_of(serial, type(state)), state)

    def names(self, kind: type[FileState]) -> Sequence[str]:
        """The homes, or gateways, of which there is a state of this kind."""
        ending = f"{kind.suffix}.json"
        ours = (name for name in self._files.names() if name.startswith(kind.prefix) and name.endswith(ending))
        return sorted(name.removeprefix(kind.prefix).removesuffix(ending) for name in ours)

    def remove(self, name: str, kind: type[FileState]) -> None:
        """Remove a state of a home or of a gateway."""
        self._files.remove(_file_of(name, kind))

    def set_aside(self, name: str, kind: type[FileState]) -> str:
        """Begin anew with a state that the bridge can't work with. Returns the name that its file is kept under."""
        return self._files.set_aside(_file_of(name, kind))

    def load_tokens(self, serial: str) -> tuple[SecretStr | None, CloudPause | None]:
        """The last token from the cloud, and the pause in requests to the cloud, if there is one."""
        state = self.load(serial, IdentityState)
        return state.token, state.cloud

    def save_token(self, serial: str, token: SecretStr) -> None:
        """Keep a new token for the next run."""
        self.save(serial, self.load(serial, IdentityState).changed(token=token))

    def save_pause(self, serial: str, pause: CloudPause | None) -> None:
        """Keep the pause in requests to the cloud: it locks accounts, so a restart must not end the pause."""
        self.save(serial, self.load(serial, IdentityState).changed(cloud=pause))

    def client_suffix(self) -> str:
        """Eight hex digits that tell this installation from others at the same broker."""
        bridge = self._files.load(BRIDGE_FILE, BridgeState)
        if bridge.client_suffix is None:
            bridge = bridge.changed(client_suffix=secrets.token_hex(CLIENT_SUFFIX_BYTES))
            self._files.save(BRIDGE_FILE, bridge)
        return bridge.client_suffix or ""

    def serial_of(self, host: str) -> str | None:
        """The serial number that answered at `host` last time; its TLS key is known before any request."""
        return self._hosts().get(host)

    def remember(self, host: str, serial: str) -> None:
        """Keep which gateway answers at `host`."""
        hosts = self._hosts()
        if hosts.get(host) == serial:
            return
        others = [(known, its) for known, its in hosts.items() if known != host]
        bridge = self._files.load(BRIDGE_FILE, BridgeState)
        self._files.save(BRIDGE_FILE, bridge.changed(hosts=dict([*others, (host, serial)][-MAX_HOSTS:])))

    def _hosts(self) -> Mapping[str, str]:
        return self._files.load(BRIDGE_FILE, BridgeState).hosts

    def note_base(self, serial: str, base: str) -> None:
        """Keep that a gateway is published below a base topic: `clean` finds it there when the base has changed."""
        state = self.load(serial, IdentityState)
        if base not in state.bases:
            self.save(serial, state.changed(bases=(*state.bases, base)[-MAX_PLACES:]))

    def forget_base(self, serial: str, base: str) -> None:
        """Forget a base topic below which nothing of a gateway is left."""
        state = self.load(serial, IdentityState)
        if base in state.bases:
            self.save(serial, state.changed(bases=tuple(other for other in state.bases if other != base)))

    @property
    def bridges(self) -> Sequence[str]:
        """The topics below which the bridge has published its own state."""
        return self._files.load(BRIDGE_FILE, BridgeState).bridges

    def note_bridge(self, topic: str) -> None:
        """Keep that the bridge publishes its own state below a topic."""
        if topic not in self.bridges:
            self._save_bridges((*self.bridges, topic)[-MAX_PLACES:])

    def forget_bridge(self, topic: str) -> None:
        """Forget a topic below which nothing of the bridge's own state is left."""
        if topic in self.bridges:
            self._save_bridges(tuple(other for other in self.bridges if other != topic))

    def _save_bridges(self, topics: tuple[str, ...]) -> None:
        self._files.save(BRIDGE_FILE, self._files.load(BRIDGE_FILE, BridgeState).changed(bridges=topics))


class _Files:
    """The files of a folder by name, and their states. A state that can't be written is kept in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, FileState] = {}
        self._on_disk: dict[str, bytes] = {}
        """The SHA-256 of each file as it is on the disk, to write only what has changed."""
        self._bytes: dict[str, int] = {}
        self._unsaved: set[str] = set()
        self._writable = True
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed: each holds a whole state, also tokens."""
        for name in self.names():
            if (found := TEMPORARY.fullmatch(name)) and not _may_be_writing(self.folder / name, int(found[1])):
                with suppress(OSError):  # a read-only folder
                    (self.folder / name).unlink()

    def names(self) -> Sequence[str]:
        try:
            return [path.name for path in self.folder.iterdir()]
        except OSError:
            return []

    def forget(self, name: str) -> None:
        """Read this state from the disk again, unless it could not be written there."""
        if name not in self._unsaved:
            self._known.pop(name, None)

    def remove(self, name: str) -> None:
        self._forget(name)
        with suppress(OSError):  # if the folder can't be written, the file stays for a later run
            (self.folder / name).unlink()

    def _forget(self, name: str) -> None:
        for known in (self._known, self._on_disk, self._bytes):
            known.pop(name, None)
        self._unsaved.discard(name)

    def set_aside(self, name: str) -> str:
        self._forget(name)
        return _rename_aside(self.folder / name)

    def load(self, name: str, kind: type[StateT]) -> StateT:
        known = self._known.get(name)
        if isinstance(known, kind):
            return known
        state = self._read(name, kind) or kind()
        if self._bytes.get(name, 0) <= MAX_CACHED_BYTES:
            self._known[name] = state
        return state

    def _read(self, name: str, kind: type[StateT]) -> StateT | None:
        path = self.folder / name
        try:
            content = _read_bounded(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            LOG.warning("%s can't be read (%s): starting without it", path, error.strerror)
            return None
        _make_private(path)
        state, starting = _decode_or_rescue(kind, content)
        if starting is None:
            self._note(name, content)
            return state
        _keep_aside(path, starting)
        if state != kind():
            self.save(name, state)  # the file itself is out of the way now
        return state

    def save(self, name: str, state: FileState) -> bool:
        """Write this file and those that could not be written before."""
        self._notice_loss()
        self._known[name] = state
        self._unsaved.add(name)
        failure, has_written = None, False
        for waiting in sorted(self._unsaved):
            try:
                has_written |= self._write(waiting)
            except OSError as error:  # one name may be taken by a folder: the others are written all the same
                failure = error
            else:
                self._unsaved.discard(waiting)
        if failure is not None or has_written:  # otherwise nothing is known of the disk
            self._report(failure)
        return name not in self._unsaved

    def _notice_loss(self) -> None:
        """Write everything again if all files are gone: the folder was emptied, or is another volume now."""
        if self._on_disk and self._on_disk.keys().isdisjoint(self.names()):
            LOG.warning("%s has lost its files: writing them again", self.folder)
            self._unsaved |= self._on_disk.keys() & self._known.keys()
            self._on_disk.clear()

    def _write(self, name: str) -> bool:
        """Write only changed content, to spare memory cards. Returns whether it has changed."""
        content = encode(self._known[name])
        if has_changed := _sha256(content) != self._on_disk.get(name):
            _replace(self.folder / name, content)
            self._note(name, content)
        if len(content) > MAX_CACHED_BYTES:
            del self._known[name]
        return has_changed

    def _note(self, name: str, content: bytes) -> None:
        self._on_disk[name], self._bytes[name] = _sha256(content), len(content)

    def _report(self, failure: OSError | None) -> None:
        if failure is None and not self._writable:
            LOG.info("%s can be written again", self.folder)
        elif self._writable and failure is not None:
            LOG.warning(UNWRITABLE, self.folder, failure.strerror or "unknown error")
        self._writable = failure is None


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _file_of(name: str, kind: type[FileState]) -> str:
    """The name of a file. A serial number comes from the network, so nothing in it may lead out of the folder."""
    return f"{kind.prefix}{re.sub('[^A-Za-z0-9-]', '_', name)[:MAX_NAME_LETTERS]}{kind.suffix}.json"


def _decode_or_rescue(kind: type[StateT], content: bytes) -> tuple[StateT, str | None]:
    """The state in a file, and for the log what the bridge starts without; `None` if the file is not damaged."""
    try:
        state, damaged = decode(kind, content)
    except Unreadable:
        state = rescue(kind, content)
        return state, "without it" if state == kind() else "with its token alone"
    return state, f"without its {', '.join(damaged)}" if damaged else None


def _read_bounded(path: Path) -> bytes:
    """Read at most `MAX_FILE_BYTES`. A longer file is cut off there, and so can't be parsed.

    Raises:
        OSError: it can't be read, or is no ordinary file: a named pipe or a device could hold up the loop for ever.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - a descriptor, no path
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file")
        return file.read(MAX_FILE_BYTES)


def _make_private(path: Path) -> None:
    """Let only the owner read the file: one that was restored from a backup may be readable for others."""
    with suppress(OSError):  # a read-only disk
        path.chmod(PRIVATE_FILE_MODE)


def _keep_aside(path: Path, starting: str) -> None:
    text = "%s can't be understood (damaged, or of a newer version): kept as %s, starting %s"
    LOG.warning(text, path, _rename_aside(path), starting)


def _rename_aside(path: Path) -> str:
    aside = path.with_name(f"{path.name}.corrupt")
    with suppress(OSError):  # a read-only folder, or no file: it stays as it is
        path.replace(aside)
    return aside.name


def _may_be_writing(path: Path, writer: int) -> bool:
    """Whether another process, such as `check`, is just writing this temporary file. That takes seconds at most."""
    if writer == os.getpid():  # in a container, each process that is started has the same number
        return False
    try:
        with suppress(PermissionError):  # it is another user's
            os.kill(writer, 0)
        return abs(time.time() - path.stat().st_mtime) < TEMPORARY_S
    except OSError:
        return False


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_private(temporary, content)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, PRIVATE_FILE_MODE)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, no path
        os.fchmod(descriptor, PRIVATE_FILE_MODE)  # left over by a killed process, it may be readable for others
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    """Write the rename itself to the disk. Some network file systems can't do that, which is no error here."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
