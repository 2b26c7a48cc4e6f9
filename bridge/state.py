"""The state that is kept between runs, as typed models, and how a model becomes the content of a file.

Each file holds one model. Beside each of its fields stands a digest of that field's content. A field whose digest
does not match is damaged: it gets its default, and the other fields stay. Within a field that has no digest (files
of version 1), values that do not fit their type or their bounds are left out one by one. Of a file that is not
JSON, or of a newer version, only the token is taken.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializationInfo,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_serializer,
    field_validator,
)
from pydantic_core import PydanticUseDefault

from bridge.model import MAX_GEAR, MeterFacts, UnitFacts

FILE_VERSION = 2
DIGEST_LETTERS = 16
MAX_PLACES = 16
"""Most former base topics that are remembered of a gateway, and most topics of former names of the bridge."""
FOR_FILE = {"file": True}
"""The serialization context in which secrets are written out."""
TOKEN_FIELD = re.compile(rb'"token"\s*:\s*"(eyJ[\w-]+\.[\w-]+\.[\w-]+)"', re.ASCII)


def _sound_entries(value: object, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validate a mapping; where that fails, leave out the entries that are not valid."""
    try:
        return handler(value)
    except ValidationError:
        if not isinstance(value, Mapping):
            raise
    sound: dict[Any, Any] = {}
    for key, item in value.items():
        try:
            sound |= handler({key: item})
        except ValidationError:
            continue
    return sound


SOUND_ENTRIES = WrapValidator(_sound_entries)
"""For a mapping in a state: an entry that is not valid is left out, the others stay."""
SavedWattHours = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Places = Annotated[tuple[str, ...], Field(max_length=MAX_PLACES)]
UnixTime = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
"""From 1970 to 2286: no calendar has a date for a time far beyond that."""


class State(BaseModel):
    """Base of all states. Each field has a default, which replaces a damaged value."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _default_where_damaged(cls, value: object, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticUseDefault from None

    def changed(self, **fields: object) -> Self:
        """A copy with other values for these fields."""
        return self.model_copy(update=fields)


class FileState(State):
    """The content of one file. `prefix` tells what the file is of, `suffix` tells the files of a gateway apart."""

    prefix: ClassVar[str] = "gateway-"
    suffix: ClassVar[str] = ""


class CloudPause(State):
    """A pause in requests to Enphase's cloud.

    `account` identifies the account and password without revealing them, `why` names the error class, `until` is a
    unix time, and `seconds` is the longest that the pause may last from now; both are `None` where it lasts until
    the settings change.
    """

    account: str = ""
    why: str | None = None
    until: UnixTime | None = None
    seconds: UnixTime | None = None
    attempts: int = 1


class IdentityState(FileState):
    """The identity of a gateway, and the token for it. This changes seldom and must not be lost.

    `key_pinned_anew` is when another TLS key was pinned last without being asked, and `key_unconfirmed` whether the
    owner has still to confirm it. `bases` are the base topics below which the gateway was published, until `clean`
    has removed it there.
    """

    token: SecretStr | None = None
    key_pin: str | None = None
    key_pinned_anew: UnixTime | None = None
    key_unconfirmed: bool = False
    firmware: str | None = None
    cloud: CloudPause | None = None
    meters: tuple[MeterFacts, ...] | None = None
    gear: Annotated[frozenset[str], Field(max_length=MAX_GEAR)] = frozenset()
    units: Annotated[dict[str, UnitFacts], Field(max_length=MAX_GEAR)] = Field(default_factory=dict)
    bases: Places = ()

    @field_serializer("token", when_used="json-unless-none")
    def _token(self, token: SecretStr, info: SerializationInfo) -> str:
        """Write the token into the file; any other dump of a state shows stars."""
        return token.get_secret_value() if info.context == FOR_FILE else str(token)

    @field_serializer("gear")
    def _gear(self, gear: frozenset[str]) -> list[str]:
        return sorted(gear)


class BridgeState(FileState):
    """The state of the bridge as a whole: the end of its client id, and which gateway answered at which host.

    `bridges` are the topics below which the bridge published its own state, until `clean` has removed them.
    """

    client_suffix: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")] | None = None
    hosts: Annotated[dict[str, str], SOUND_ENTRIES] = Field(default_factory=dict)
    bridges: Places = ()


StateT = TypeVar("StateT", bound=FileState)


class Unreadable(ValueError):
    """The content is not a state: not JSON, not an object, or of a newer version."""


def encode(state: FileState) -> bytes:
    """The content of the file that holds this state, secrets included.

    Each field is one line without spaces, which the digest is made of, too. A state may have a megabyte and is
    encoded on the event loop, so each line is made only once.
    """
    fields = state.model_dump(mode="json", exclude_defaults=True, context=FOR_FILE)
    texts = {name: _canonical(value) for name, value in fields.items()}
    digests = {name: _digest(text) for name, text in texts.items()}
    texts = {"version": _canonical(FILE_VERSION), **texts, "digests": _canonical(digests)}
    return ("{\n" + ",\n".join(f'"{name}": {text}' for name, text in texts.items()) + "\n}\n").encode()


def decode(kind: type[StateT], content: bytes) -> tuple[StateT, tuple[str, ...]]:
    """The state that a file holds, and the names of its damaged fields, which have their defaults.

    Raises:
        Unreadable: nothing can be read from the content.
    """
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        raise Unreadable("not JSON") from None
    if not isinstance(given, dict):
        raise Unreadable("not an object")
    version, digests = given.pop("version", None), given.pop("digests", None)
    if version == 1 and digests is None:
        extra = given.pop("extra", None)
        fields = {**given, **(extra if isinstance(extra, dict) else {})}
        return kind.model_validate(fields), ()
    if version != FILE_VERSION:
        raise Unreadable(f"version {version!s:.10}")
    digests = digests if isinstance(digests, dict) else {}
    sound = {name: value for name, value in given.items() if digests.get(name) == _digest(_canonical(value))}
    # Only names of known fields, since the log shows them and other names may contain anything.
    damaged = ((given.keys() | digests.keys()) - sound.keys()) & kind.model_fields.keys()
    return kind.model_validate(sound), tuple(sorted(damaged))


def rescue(kind: type[StateT], content: bytes) -> StateT:
    """A state with the token alone, from the content of a file that can't be read.

    If the content has digests, the token's must be one of them: in a damaged file the token may be incomplete.
    """
    found = TOKEN_FIELD.search(content) if "token" in kind.model_fields else None
    if found is None:
        return kind()
    token = found[1].decode()
    if b'"digests"' in content and _digest(_canonical(token)).encode() not in content:
        return kind()
    return kind.model_validate({"token": token})


def _canonical(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _digest(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LETTERS]
