"""Replaces serial numbers, addresses, names and secrets in the answers of a gateway.

They are found by the names of fields, and by their form anywhere in the text. The same value gets the same
replacement in every answer, so that references still match. Nothing else changes, not even white space, because
the texts are edited and not serialized anew.
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

REMOVED = "[removed]"
MIN_SECRET_LETTERS, MIN_SECRET_LETTERS_INSIDE_WORDS = 4, 8
"""Shortest serial number or secret, and shortest one that is also replaced inside of words."""
MIN_SERIAL_DIGITS, MIN_RANDOM_CHARACTERS = 2, 4
"""Digits that tell a serial number from a word; digits and letters that tell a random text from a constant such as
ENS_DEVICE_STATE_READY."""
SERIAL_PATTERN = re.compile(r"(?<!\d)(?<!\d\.)\d{12}(?!\d)(?!\.\d)")
SERIAL_FIELD = re.compile(
    r"\w*(?<!to)serial(s|nos?|nbs?|nums?|numbers?)?|sn|(device|generator|site|system)id|uu?id|imei|iccid"
)
"""Compared with field names in lower case, letters only. `…ToSerial` is left out, since such a field is a count."""
KEYED_BY_SERIAL = "submodules"
"""A field whose keys are serial numbers; those of `serial_nums` are too."""
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
FIELD_PATTERNS = (JSON_FIELD, XML_FIELD)
TOKEN_PATTERN = re.compile(r"eyJ[\w-]*\.[\w-]+\.[\w-]*|(?<![\w+/=-])[\w+/=-]{32,}", re.ASCII)
EMAIL_PATTERN = re.compile(r"[\w.+-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+")
MAC_PATTERN = re.compile(
    r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2}){4}(?:\1[0-9A-Fa-f]{2}){0,2}(?![\w:-])"
)
BARE_MAC_PATTERN = re.compile(r"(?<!\w)(?=\d*[A-Fa-f])(?:[0-9A-Fa-f]{12}|[0-9A-Fa-f]{16})(?!\w)")
IPV4_PATTERN = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w)(?!\.\w)")
IPV6_PATTERN = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
EXAMPLE_ADDRESSES = {4: "192.0.2.{}", 6: "2001:db8::{}"}
"""Addresses reserved for documentation."""
NETWORK_NAME_PATTERN = re.compile(r"(envoy[_ -]?)\d{6}(?!\d)", re.IGNORECASE)
"""The name of a gateway's own Wi-Fi ends with digits of its serial number, the password of old firmware."""


class Redactor:
    """Redacts a set of answers: call `learn` for every text first, then `apply` for each.

    `secrets` are removed wherever they occur.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        """number of different values of each kind that were replaced"""
        self._secrets = sorted({text for secret in secrets for text in _encodings(secret)}, key=len)
        self._serials: set[str] = set()
        self._made: dict[tuple[str, str], str] = {}

    def learn(self, body: bytes) -> None:
        """Collect the serial numbers in a text."""
        text = _text(body)
        found = {*SERIAL_PATTERN.findall(text), *_serials_in_lists(text)}
        for pattern in FIELD_PATTERNS:
            found |= {_bare(value) for _, name, value in pattern.findall(text) if _names_serial(name)}
        self._serials |= {serial for serial in found if _is_serial(serial)}
        for stale in ("_replacements", "_anywhere"):
            self.__dict__.pop(stale, None)

    def apply(self, body: bytes) -> bytes:
        """The text with all replacements."""
        text = _text(body)
        for field in FIELD_PATTERNS:
            text = field.sub(self._field, text)
        for secret in reversed(self._secrets):
            text = _pattern_of(secret).sub(self._secret, text)
        text = self._anywhere.sub(lambda found: self._serial(found[0]), text)
        steps: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
            (TOKEN_PATTERN, self._token),
            (EMAIL_PATTERN, lambda found: self._numbered("e-mail address", found[0], "user{}@example.com")),
            (MAC_PATTERN, lambda found: self._hardware(found[0])),
            (BARE_MAC_PATTERN, lambda found: self._hardware(found[0])),
            (IPV4_PATTERN, self._address),
            (IPV6_PATTERN, self._address),
            (NETWORK_NAME_PATTERN, lambda found: f"{found[1]}000000"),
        )
        for pattern, replaced in steps:
            text = pattern.sub(replaced, text)
        return text.encode("latin-1")

    @cached_property
    def _replacements(self) -> Mapping[str, str]:
        """A replacement of the same length for each serial number; they sort like the originals."""
        ordered = sorted(self._serials, key=lambda serial: (len(serial), serial))
        return {serial: _invented_serial(serial, place) for place, serial in enumerate(ordered, 1)}

    @cached_property
    def _anywhere(self) -> re.Pattern[str]:
        """Matches serial numbers anywhere if they are unmistakable, otherwise only as a whole quoted text."""
        known = sorted(filter(_is_unique_in_quotes, self._serials), key=len, reverse=True)
        forms = (
            re.escape(text) if _is_unique_anywhere(text) else f'(?<="){re.escape(text)}(?=")' for text in known
        )
        return re.compile("|".join(forms) or r"(?!)")

    def _field(self, found: re.Match[str]) -> str:
        start, name, value = found.groups()
        text = _bare(value)
        if _names_serial(name) and text in self._replacements and not _is_unique_in_quotes(text):
            return str(start) + value.replace(text, self._serial(text))
        if PERSONAL_FIELD.fullmatch(_plain(name)) and text:
            self._note("name, place or password", text, REMOVED)
            return str(start) + (value.replace(text, REMOVED) if _is_text(value) else "0")
        return found[0]

    def _serial(self, serial: str) -> str:
        return self._note("serial number", serial, self._replacements[serial])

    def _secret(self, found: re.Match[str]) -> str:
        """Replace a secret; digits become zeros, so that a number remains a number."""
        made = "0" * len(found[0]) if found[0].isdigit() else REMOVED
        return self._note("secret", found[0], made)

    def _token(self, found: re.Match[str]) -> str:
        text = found[0]
        random = text.startswith("eyJ") or _digits(text) >= MIN_RANDOM_CHARACTERS <= sum(map(str.isalpha, text))
        return self._note("secret", text, REMOVED) if random else text

    def _hardware(self, text: str) -> str:
        """Replace a MAC address or the longer address of a radio, keeping its separators."""
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
        if address.is_loopback or address.is_unspecified or MAC_PATTERN.fullmatch(text):
            return text
        return self._numbered("IP address", text, EXAMPLE_ADDRESSES[address.version])

    def _numbered(self, kind: str, text: str, form: str) -> str:
        return self._made.get((kind, text)) or self._note(kind, text, form.format(self.counts[kind] + 1))

    def _note(self, kind: str, text: str, made: str) -> str:
        if (kind, text) not in self._made:
            self.counts[kind] += 1
            self._made[kind, text] = made
        return made


def _text(body: bytes) -> str:
    """Decode each byte to one character, so that all other bytes are preserved."""
    return body.decode("latin-1")


def _bare(value: str) -> str:
    return value.strip().strip('"').strip()


def _is_text(value: str) -> bool:
    return not re.fullmatch(r"-?\d[\d.eE+-]*", value)


def _plain(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def _names_serial(name: str) -> bool:
    return SERIAL_FIELD.fullmatch(_plain(name)) is not None


def _is_serial(text: str) -> bool:
    """Whether a text is a serial number. Of 122301003111EIM1 only the number is, so that the suffix is kept."""
    inside = SERIAL_PATTERN.search(text)
    return len(text) >= MIN_SECRET_LETTERS and bool(text.strip("0")) and (inside is None or inside[0] == text)


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _is_unique_anywhere(serial: str) -> bool:
    return len(serial) >= MIN_SECRET_LETTERS_INSIDE_WORDS and _digits(serial) >= MIN_RANDOM_CHARACTERS


def _is_unique_in_quotes(serial: str) -> bool:
    return _digits(serial) >= MIN_SERIAL_DIGITS


def _encodings(secret: str) -> Iterator[str]:
    """The secret as plain text and as JSON may encode it."""
    if len(secret) >= MIN_SECRET_LETTERS:
        yield from (_text(form.encode()) for form in (secret, json.dumps(secret)[1:-1]))
        yield _text(json.dumps(secret, ensure_ascii=False)[1:-1].encode())


def _pattern_of(secret: str) -> re.Pattern[str]:
    """Matches a secret anywhere; a short one only as a whole word."""
    inside = re.escape(secret)
    return re.compile(inside if len(secret) >= MIN_SECRET_LETTERS_INSIDE_WORDS else rf"(?<!\w){inside}(?!\w)")


def _invented_serial(serial: str, number: int) -> str:
    """A serial number that begins like no real one."""
    return f"{'9' if serial.isdigit() else 'X'}{number:0{len(serial) - 1}}"


def _serials_in_lists(text: str) -> Iterator[str]:
    """Serial numbers in lists and in keys of a JSON document."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    waiting: list[tuple[str, Any]] = [("", document)]
    while waiting:
        name, value = waiting.pop()
        known = _names_serial(name)
        if isinstance(value, dict):
            waiting += value.items()
            if known or name == KEYED_BY_SERIAL:
                yield from value
        elif isinstance(value, list):
            waiting += (("", item) for item in value)
            if known:
                yield from (str(item) for item in value if isinstance(item, str | int))
