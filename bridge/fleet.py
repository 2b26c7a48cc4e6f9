"""Many gateways, many bridges: the file that lists gateways, whose each of them is, and its place in the tree."""

import json
import re
import tomllib
import unicodedata
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

MAX_BYTES = 64 * 1024 * 1024
"""Of the file, some 80,000 gateways with tokens; what is longer ends in the middle, so that it does not parse."""
MULTIPLIER, WORD = 2862933555777941757, 2**64
"""Of the generator that the consistent hash was published with."""
AUTO = "auto"


class Shard(NamedTuple):
    """The part of a fleet that is one bridge's: number `number`, from 0 on, of `among`."""

    number: int
    among: int

    @classmethod
    def of(cls, text: str, host: str = "") -> Self:
        """`0/3`, or `auto/3` where the host's name ends with the number, as in a StatefulSet.

        Raises:
            ValueError: there is no such part.
        """
        found = re.fullmatch(r"(auto|\d{1,6})/(\d{1,6})", text)
        if found is None:
            raise ValueError("must look like 0/3 (the first of three) or auto/3")
        number, count = found.groups()
        if number == AUTO:
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
        return place(serial, self.among) == self.number


def place(serial: str, count: int) -> int:
    """The one of `count` bridges whose this gateway is; the same in every process and version."""
    return jump(int.from_bytes(sha256(serial.lower().encode()).digest()[:8]), count)


def jump(key: int, count: int) -> int:
    """Jump consistent hash (Lamping and Veach, 2014, https://arxiv.org/abs/1406.2294).

    One bridge more takes its share from the others, and no gateway moves between those.
    """
    found, following = 0, 0
    while following < count:
        found = following
        key = (key * MULTIPLIER + 1) % WORD
        following = int((found + 1) * (2**31 / ((key >> 33) + 1)))
    return found


def level(name: str) -> str:
    """What people call a site, as a level of a topic; empty where nothing of it can be one."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-")


def listed(path: Path) -> list[Any]:
    """The gateways of a file: a JSON list, or `[[gateways]]` in TOML.

    Raises:
        ValueError: it can't be read; without anything of what it holds.
    """
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8-sig")
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
