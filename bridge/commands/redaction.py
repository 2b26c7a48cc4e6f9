"""What must not leave the house is replaced: by the names of fields, and by value wherever it stands.

The same thing becomes the same made-up thing in every answer, so that what belongs together still does. Nothing
else changes, not even a blank: the texts are edited, not written anew.
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

REMOVED = "[removed]"
SHORTEST, SURE = 4, 8
"""Characters of a serial number or a secret, and of one that is looked for inside of words too."""
FEW, TELLING = 2, 4
"""Digits, and letters, that tell a number from a word, and a random text from ENS_DEVICE_STATE_READY."""
SERIAL = re.compile(r"(?<!\d)(?<!\d\.)\d{12}(?!\d)(?!\.\d)")
SERIAL_FIELD = re.compile(
    r"\w*(?<!to)serial(s|nos?|nbs?|nums?|numbers?)?|sn|(device|generator|site|system)id|uu?id|imei|iccid"
)
"""Names of fields are spelt in small letters here, without digits and signs. `…ToSerial` counts something."""
BY_SERIAL = "submodules"
"""A field whose keys are serial numbers, as those of `serial_nums` are."""
PERSONAL_FIELD = re.compile(
    r"""(?x)
    (user|first|last|full|nick|customer|load|site|system|host)?name | user | owner | customer | lastupdatedby
    | label | notes | e?mail | phone | telephone
    | address | street | city | town | zip(code)? | post(al)?(code)? | county | province | region | country
    | lat(itude)? | lon(gitude)? | lng | geo | location | timezone
    | b?ssid | essid | psk | passphrase | passw(or)?d | secret | (access)?token | apikey | session(id)? | cookie
    """
)
JSON_FIELD = re.compile(r'("([^"\\]{1,64})"\s*:\s*)("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*)')
XML_FIELD = re.compile(r"(<([A-Za-z_][\w.-]{0,63})[^<>]*>)([^<>]+)(?=</\2>)")
FIELDS = (JSON_FIELD, XML_FIELD)
TOKEN = re.compile(r"eyJ[\w-]*\.[\w-]+\.[\w-]*|(?<![\w+/=-])[\w+/=-]{32,}", re.ASCII)
EMAIL = re.compile(r"[\w.+-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+")
MAC = re.compile(
    r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2}){4}(?:\1[0-9A-Fa-f]{2}){0,2}(?![\w:-])"
)
BARE_MAC = re.compile(r"(?<!\w)(?=\d*[A-Fa-f])(?:[0-9A-Fa-f]{12}|[0-9A-Fa-f]{16})(?!\w)")
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w)(?!\.\w)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
FOR_EXAMPLES = {4: "192.0.2.{}", 6: "2001:db8::{}"}
"""Addresses that nobody has."""
NETWORK_NAME = re.compile(r"(envoy[_ -]?)\d{6}(?!\d)", re.IGNORECASE)
"""A gateway's own Wi-Fi is called after the end of its serial number, which old firmware takes as a password."""


class Redactor:
    """First `learn` every text, then `apply` it to each. `secrets` are removed wherever they stand."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        """how many different things of each kind were replaced"""
        self._secrets = sorted({text for secret in secrets for text in _spellings(secret)}, key=len)
        self._serials: set[str] = set()
        self._made: dict[tuple[str, str], str] = {}

    def learn(self, body: bytes) -> None:
        """Which serial numbers there are."""
        text = _text(body)
        found = {*SERIAL.findall(text), *_listed(text)}
        for pattern in FIELDS:
            found |= {_bare(value) for _, name, value in pattern.findall(text) if _tells_serial(name)}
        self._serials |= {serial for serial in found if _is_serial(serial)}
        for stale in ("_invented", "_anywhere"):
            self.__dict__.pop(stale, None)

    def apply(self, body: bytes) -> bytes:
        text = _text(body)
        for field in FIELDS:
            text = field.sub(self._field, text)
        for secret in reversed(self._secrets):
            text = _wherever(secret).sub(self._secret, text)
        text = self._anywhere.sub(lambda found: self._serial(found[0]), text)
        steps: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
            (TOKEN, self._token),
            (EMAIL, lambda found: self._numbered("e-mail address", found[0], "user{}@example.com")),
            (MAC, lambda found: self._hardware(found[0])),
            (BARE_MAC, lambda found: self._hardware(found[0])),
            (IPV4, self._address),
            (IPV6, self._address),
            (NETWORK_NAME, lambda found: f"{found[1]}000000"),
        )
        for pattern, replaced in steps:
            text = pattern.sub(replaced, text)
        return text.encode("latin-1")

    @cached_property
    def _invented(self) -> Mapping[str, str]:
        """Of the same length, and in the same order."""
        ordered = sorted(self._serials, key=lambda serial: (len(serial), serial))
        return {serial: _made_up(serial, place) for place, serial in enumerate(ordered, 1)}

    @cached_property
    def _anywhere(self) -> re.Pattern[str]:
        """Those that can't be mistaken for anything else, or not as a text of their own."""
        known = sorted(filter(_recognisable, self._serials), key=len, reverse=True)
        forms = (re.escape(text) if _unmistakable(text) else f'(?<="){re.escape(text)}(?=")' for text in known)
        return re.compile("|".join(forms) or r"(?!)")

    def _field(self, found: re.Match[str]) -> str:
        start, name, value = found.groups()
        text = _bare(value)
        if _tells_serial(name) and text in self._invented and not _recognisable(text):
            return str(start) + value.replace(text, self._serial(text))
        if PERSONAL_FIELD.fullmatch(_plain(name)) and text:
            self._note("name, place or password", text, REMOVED)
            return str(start) + (value.replace(text, REMOVED) if _is_text(value) else "0")
        return found[0]

    def _serial(self, serial: str) -> str:
        return self._note("serial number", serial, self._invented[serial])

    def _secret(self, found: re.Match[str]) -> str:
        """A number must stay one."""
        made = "0" * len(found[0]) if found[0].isdigit() else REMOVED
        return self._note("secret", found[0], made)

    def _token(self, found: re.Match[str]) -> str:
        text = found[0]
        random = text.startswith("eyJ") or _digits(text) >= TELLING <= sum(map(str.isalpha, text))
        return self._note("secret", text, REMOVED) if random else text

    def _hardware(self, text: str) -> str:
        """A MAC address, or the longer one of a radio, written as it was."""
        sign = text[2] if text[2] in ":-" else ""
        plain = text.replace(sign, "") if sign else text
        number = self._numbered("MAC address", plain.lower(), "{}")
        made = f"02{int(number):0{len(plain) - 2}x}"
        return sign.join(made[at : at + 2] for at in range(0, len(made), 2))

    def _address(self, found: re.Match[str]) -> str:
        text = found[0]
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return text
        if address.is_loopback or address.is_unspecified or MAC.fullmatch(text):
            return text
        return self._numbered("IP address", text, FOR_EXAMPLES[address.version])

    def _numbered(self, kind: str, text: str, form: str) -> str:
        return self._made.get((kind, text)) or self._note(kind, text, form.format(self.counts[kind] + 1))

    def _note(self, kind: str, text: str, made: str) -> str:
        if (kind, text) not in self._made:
            self.counts[kind] += 1
            self._made[kind, text] = made
        return made


def _text(body: bytes) -> str:
    """Byte by byte, so that whatever is not touched stays as it is."""
    return body.decode("latin-1")


def _bare(value: str) -> str:
    return value.strip().strip('"').strip()


def _is_text(value: str) -> bool:
    return not re.fullmatch(r"-?\d[\d.eE+-]*", value)


def _plain(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def _tells_serial(name: str) -> bool:
    return SERIAL_FIELD.fullmatch(_plain(name)) is not None


def _is_serial(text: str) -> bool:
    """Of 122301003111EIM1 the number inside counts, so that it still tells whose meter this is."""
    inside = SERIAL.search(text)
    return len(text) >= SHORTEST and bool(text.strip("0")) and (inside is None or inside[0] == text)


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _unmistakable(serial: str) -> bool:
    return len(serial) >= SURE and _digits(serial) >= TELLING


def _recognisable(serial: str) -> bool:
    return _digits(serial) >= FEW


def _spellings(secret: str) -> Iterator[str]:
    """As it is, and as JSON may have it."""
    if len(secret) >= SHORTEST:
        yield from (_text(form.encode()) for form in (secret, json.dumps(secret)[1:-1]))
        yield _text(json.dumps(secret, ensure_ascii=False)[1:-1].encode())


def _wherever(secret: str) -> re.Pattern[str]:
    """A short one must stand alone."""
    inside = re.escape(secret)
    return re.compile(inside if len(secret) >= SURE else rf"(?<!\w){inside}(?!\w)")


def _made_up(serial: str, number: int) -> str:
    """No real one begins so."""
    return f"{'9' if serial.isdigit() else 'X'}{number:0{len(serial) - 1}}"


def _listed(text: str) -> Iterator[str]:
    """Serial numbers in lists, or used as keys."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    waiting: list[tuple[str, Any]] = [("", document)]
    while waiting:
        name, value = waiting.pop()
        known = _tells_serial(name)
        if isinstance(value, dict):
            waiting += value.items()
            if known or name == BY_SERIAL:
                yield from value
        elif isinstance(value, list):
            waiting += (("", item) for item in value)
            if known:
                yield from (str(item) for item in value if isinstance(item, str | int))
