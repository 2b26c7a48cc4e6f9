"""docs/entities.md compares our texts with those that Home Assistant's own integration really has."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assistant import Owned
from install import NEWEST, Release

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import values

PHASE = "{phase_name}"
UNUSED = {"ACB Battery capacity", "Configured reserve battery level"}
"""Texts of the package that no entity has."""
CLASSES = {"Apparent power", "Battery", "Frequency", "Power", "Temperature"}
"""Names of device classes, for entities without a name of their own."""
DEVICES_OWN = "the device's"


def texts(release: Release, component: str) -> Mapping[str, Any]:
    """The English texts of an integration, as its package has them."""
    (folder,) = release.venv.glob(f"lib/python*/site-packages/homeassistant/components/{component}/translations")
    found: dict[str, Any] = json.loads((folder / "en.json").read_text())
    return found


def test_their_texts_are_those_of_the_package(owned: Callable[[Release], Owned]) -> None:
    """Every text of the package is in our list. The list is of a newer release, and has more."""
    release = owned(NEWEST).release
    theirs = texts(release, "enphase_envoy")["entity"]
    for platform in ("sensor", "binary_sensor"):
        listed = {offer.name for offer in values.offers() if offer.platform == platform}
        names = {entity["name"] for entity in theirs[platform].values() if "name" in entity}
        whole = {name for name in names if PHASE not in name}
        assert len(whole) >= {"sensor": 40, "binary_sensor": 3}[platform]
        assert whole - listed == (UNUSED if platform == "sensor" else set())
        of_phases = {offer.name for offer in values.offers() if offer.key.endswith("_l1") and platform == "sensor"}
        assert of_phases <= {name.replace(PHASE, "l1") for name in names}


def test_what_has_no_name_has_that_of_its_device_class(owned: Callable[[Release], Owned]) -> None:
    classes = texts(owned(NEWEST).release, "sensor")["entity_component"]
    assert {entity["name"] for entity in classes.values()} >= CLASSES
    unnamed = [offer for offer in values.offers() if offer.name in CLASSES and offer.device_class]
    assert [o.key for o in unnamed if classes[str(o.device_class)]["name"] != o.name] == []
    assert len(unnamed) > len(CLASSES)


def test_a_worse_text_has_its_reason() -> None:
    worse = [offer for offer in values.offers() if offer.worse]
    assert worse
    assert [offer.key for offer in worse if offer.ours is None or DEVICES_OWN in offer.name] == []
