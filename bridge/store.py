"""What must outlive the process: one small JSON file for each gateway, one for the bridge itself.

A power cut leaves the old file or the new one, never half of one. What can't be written is kept in memory; a large
file that is on the disk is not.
File access is tiny and synchronous; the caller decides about threads.
"""

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    SerializationInfo,
    ValidationError,
    field_serializer,
)

LOG = logging.getLogger(__name__)
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
MAX_BYTES = 8 * 1024 * 1024
SMALL = 64 * 1024
"""Bytes of a file that stays in memory. Of larger ones there is the list of what was published, read once."""
MAX_HOSTS = 64
CLIENT_SUFFIX_BYTES = 4
TO_DISK = {"disk": True}
TOKEN = re.compile(rb'"token"\s*:\s*"(eyJ[\w-]+\.[\w-]+\.[\w-]+)"', re.ASCII)


class _Kept(BaseModel):
    """A file's content. A file of another `version` is not understood, and is kept aside."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    version: Literal[1] = 1

    def changed(self, **fields: object) -> Self:
        return self.model_copy(update=fields)

    @classmethod
    def rescued(cls, content: bytes) -> Self:  # noqa: ARG003 - what there is differs
        """What can be had of a file that is not understood."""
        return cls()

    def to_bytes(self) -> bytes:
        return self.model_dump_json(indent=1, context=TO_DISK).encode()


class GatewayState(_Kept):
    """What is known of one gateway from earlier runs. `extra` is for what other stages must keep."""

    token: SecretStr | None = None
    key_pin: str | None = None
    firmware: str | None = None
    address: str | None = None
    extra: Mapping[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def rescued(cls, content: bytes) -> Self:
        """The token. If it is damaged, too, the gateway refuses it, and that is all."""
        found = TOKEN.search(content)
        return cls(token=SecretStr(found[1].decode())) if found else cls()

    @field_serializer("token", when_used="json-unless-none")
    def _token(self, token: SecretStr, info: SerializationInfo) -> str:
        """The file alone gets the token; any other dump of a state shows stars."""
        return token.get_secret_value() if info.context == TO_DISK else str(token)


class _BridgeState(_Kept):
    client_suffix: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")] | None = None
    hosts: Mapping[str, str] = Field(default_factory=dict)


_State = TypeVar("_State", bound=_Kept)


class Store:
    """The files of one state folder, and in memory what the disk did not take."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, _Kept] = {}
        self._on_disk: dict[str, bytes] = {}
        """Digests of the files, to see whether anything has changed."""
        self._size: dict[str, int] = {}
        self._unsaved: set[str] = set()
        self._writable = True

    def __repr__(self) -> str:
        return f"Store({str(self._folder)!r})"

    def load(self, serial: str) -> GatewayState:
        return self._load(_gateway_file(serial), GatewayState)

    def save(self, serial: str, state: GatewayState) -> bool:
        """Whether the disk has it; if not, it is tried again together with the next save."""
        return self._save(_gateway_file(serial), state)

    def client_suffix(self) -> str:
        """Eight hex digits that tell this installation from others at the same broker."""
        bridge = self._bridge()
        if bridge.client_suffix is None:
            bridge = bridge.changed(client_suffix=secrets.token_hex(CLIENT_SUFFIX_BYTES))
            self._save("bridge.json", bridge)
        return bridge.client_suffix or ""

    def serial_of(self, host: str) -> str | None:
        """The gateway that answered at `host` last time: its pin holds from the first handshake on."""
        return self._bridge().hosts.get(host)

    def remember(self, host: str, serial: str) -> None:
        bridge = self._bridge()
        if bridge.hosts.get(host) == serial:
            return
        others = [(known, its) for known, its in bridge.hosts.items() if known != host]
        self._save("bridge.json", bridge.changed(hosts=dict([*others, (host, serial)][-MAX_HOSTS:])))

    def _bridge(self) -> _BridgeState:
        return self._load("bridge.json", _BridgeState)

    def _load(self, name: str, kind: type[_State]) -> _State:
        known = self._known.get(name)
        if isinstance(known, kind):
            return known
        state = self._read(name, kind) or kind()
        if self._size.get(name, 0) <= SMALL:
            self._known[name] = state
        return state

    def _read(self, name: str, kind: type[_State]) -> _State | None:
        path = self._folder / name
        try:
            content = _read_bounded(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            LOG.warning("%s can't be read (%s): starting without it", path, error.strerror)
            return None
        _shut(path)
        try:
            state = kind.model_validate_json(content)
        except ValidationError:
            return self._rescued(name, kind, content)
        self._note(name, content)
        return state

    def _rescued(self, name: str, kind: type[_State], content: bytes) -> _State | None:
        """What can be had of the file is written at once: the file itself is out of the way now."""
        state = kind.rescued(content)
        if state == kind():
            _keep_aside(self._folder / name, "without it")
            return None
        _keep_aside(self._folder / name, "with its token alone")
        self._save(name, state)
        return state

    def _save(self, name: str, state: _Kept) -> bool:
        """Writes this file and whatever an earlier attempt could not write."""
        self._known[name] = state
        self._unsaved.add(name)
        try:
            for waiting in sorted(self._unsaved):
                self._write(waiting)
                self._unsaved.discard(waiting)
        except OSError as error:
            self._report(writable=False, reason=error.strerror or "unknown error")
            return False
        return True

    def _write(self, name: str) -> None:
        """Nothing where the disk has it already: memory cards wear out."""
        content = self._known[name].to_bytes()
        if _digest(content) != self._on_disk.get(name):
            _replace(self._folder / name, content)
            self._note(name, content)
            self._report(writable=True)
        if len(content) > SMALL:
            del self._known[name]

    def _note(self, name: str, content: bytes) -> None:
        self._on_disk[name], self._size[name] = _digest(content), len(content)

    def _report(self, *, writable: bool, reason: str = "") -> None:
        if writable == self._writable:
            return
        self._writable = writable
        if writable:
            LOG.info("%s can be written again", self._folder)
        else:
            LOG.warning(
                "%s can't be written (%s): tokens and keys are forgotten at the next start; "
                "make the folder writable for this user, or set BRIDGE_STATE_DIR",
                self._folder,
                reason,
            )


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _gateway_file(serial: str) -> str:
    """Serials come from outside: nothing in one may lead out of the folder."""
    return f"gateway-{re.sub('[^A-Za-z0-9]', '_', serial)[:64]}.json"


def _read_bounded(path: Path) -> bytes:
    """Too long a file ends in the middle, so that it does not parse."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


def _shut(path: Path) -> None:
    """Restored from a backup, it may be open to others."""
    with suppress(OSError):  # a read-only disk
        path.chmod(PRIVATE_FILE)


def _keep_aside(path: Path, starting: str) -> None:
    aside = path.with_name(f"{path.name}.corrupt")
    LOG.warning(
        "%s can't be understood (damaged, or of a newer version): kept as %s, starting %s",
        path,
        aside.name,
        starting,
    )
    with suppress(OSError):  # a read-only folder: the file stays where it is
        path.replace(aside)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
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
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, PRIVATE_FILE)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, no path
        os.fchmod(descriptor, PRIVATE_FILE)  # left over by a killed process, it may be readable for others
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    """The rename itself must be on the disk; some network file systems can't promise that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
