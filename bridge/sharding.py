"""Fleets: the file that lists gateways, which bridge polls which gateway, and the topic level of a site."""

import json
import re
import tomllib
import unicodedata
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

from bridge.model import slug

MAX_FLEET_FILE_BYTES = 64 * 1024 * 1024
"""Bytes that are read of the file: about 80,000 gateways with tokens. A longer file is cut off, and so invalid."""
HASH_MULTIPLIER, UINT64_RANGE = 2862933555777941757, 2**64
"""Constants of the random generator in the published algorithm of `jump`."""
AUTO_NUMBER = "auto"


class Shard(NamedTuple):
    """The part of a fleet that one bridge polls: number `number`, from 0 on, of `among` parts."""

    number: int
    among: int

    @classmethod
    def of(cls, text: str, host: str = "") -> Self:
        """Parse `0/3`, or `auto/3`, which takes the number that ends the name `host`, as in a StatefulSet.

        Raises:
            ValueError: the text names no part.
        """
        found = re.fullmatch(r"(auto|\d{1,6})/(\d{1,6})", text)
        if found is None:
            raise ValueError("must look like 0/3 (the first of three) or auto/3")
        number, count = found.groups()
        if number == AUTO_NUMBER:
            ordinal = re.search(r"\d{1,6}$", host)
            if ordinal is None:
                raise ValueError("auto needs a host name that ends with a number, such as bridge-0")
            number = ordinal[0]
        if int(number) >= int(count):
            raise ValueError(f"there is no {number}/{count}: the numbers begin with 0")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.among}"

    def owns(self, serial: str) -> bool:
        """Whether the gateway with this serial number belongs to this part."""
        return place(serial, self.among) == self.number


def place(serial: str, count: int) -> int:
    """The number of the bridge that polls this gateway, of `count`. It is the same in every process and version."""
    return jump(int.from_bytes(sha256(serial.lower().encode()).digest()[:8]), count)


def jump(key: int, count: int) -> int:
    """Jump consistent hash (Lamping and Veach, 2014, https://arxiv.org/abs/1406.2294).

    A bridge that is added takes its share from the others, and no gateway moves between those.
    """
    found, following = 0, 0
    while following < count:
        found = following
        key = (key * HASH_MULTIPLIER + 1) % UINT64_RANGE
        following = int((found + 1) * (2**31 / ((key >> 33) + 1)))
    return found


def without_accents(text: str) -> str:
    """Replace accented letters by ASCII letters, and remove all characters that have no ASCII equivalent."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def level(name: str) -> str:
    """The name of a site as a level of a topic; empty if none of its letters can be used."""
    return slug(without_accents(name).lower(), "-", keep="_")


def listed(path: Path, max_bytes: int = MAX_FLEET_FILE_BYTES) -> list[Any]:
    """Read the gateways of a file: a JSON list, or `[[gateways]]` in TOML.

    Raises:
        ValueError: the file can't be read. The text has nothing of its content, which may be secret.
    """
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes).decode("utf-8-sig")
        found = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except OSError as error:
        problem = f"{path}: {error.strerror}"
    except UnicodeDecodeError:
        problem = f"{path}: not UTF-8 text"
    except (ValueError, RecursionError) as error:
        problem = f"{path}: not valid {kind} ({error})"
    else:
        if isinstance(found, dict) and found.keys() == {"gateways"}:
            found = found["gateways"]
        if isinstance(found, list):
            return found
        problem = f"{path}: must hold a list called gateways ([[gateways]] in TOML), and nothing else"
    raise ValueError(problem)
