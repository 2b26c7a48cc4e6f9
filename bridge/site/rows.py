"""The rows of `site/*`: the one best number for each flow. Signs: solar + producing, grid + importing,
battery + discharging, generator + producing, home + consuming; the first four add up to home.
"""

from typing import Any

from bridge.model import Measurement, Quantity
from bridge.records import CHARGE, CONNECTIVITY, ENERGY, FLAG, POWER, STORED, TEXT, TIME, measurement

SOLAR, GRID, BATTERY, GENERATOR, HOME = FLOWS = ("solar", "grid", "battery", "generator", "home")


def _shown(name: str, quantity: Quantity, **options: Any) -> Measurement:
    return measurement(name, quantity, **{"enabled": True, **options})


def _common() -> dict[str, Measurement]:
    return {
        "power": _shown("power", POWER),
        "source": measurement("source", TEXT, diagnostic=True),
        "estimated": measurement("estimated", FLAG, diagnostic=True),
    }


SINCE = measurement("energy_since", TIME, diagnostic=True)
TODAY = _shown("energy_today", ENERGY)

ROWS: dict[str, dict[str, Measurement]] = {
    SOLAR: {
        **_common(),
        "energy_lifetime": _shown("energy_lifetime", ENERGY, label="Energy produced"),
        "energy_today": TODAY,
    },
    GRID: {
        **_common(),
        "energy_imported": _shown("energy_imported", ENERGY),
        "energy_exported": _shown("energy_exported", ENERGY),
        "energy_since": SINCE,
        "connected": _shown("connected", CONNECTIVITY),
    },
    BATTERY: {
        **_common(),
        "energy_charged": _shown("energy_charged", ENERGY),
        "energy_discharged": _shown("energy_discharged", ENERGY),
        "energy_since": SINCE,
        "soc": _shown("soc", CHARGE, label="Charge"),
        "energy_stored": _shown("energy_stored", STORED),
        "capacity": _shown("capacity", STORED),
    },
    GENERATOR: {
        **_common(),
        "energy_lifetime": _shown("energy_lifetime", ENERGY, label="Energy produced"),
        "energy_since": SINCE,
    },
    HOME: {
        **_common(),
        "energy_lifetime": _shown("energy_lifetime", ENERGY, label="Energy consumed"),
        "energy_today": TODAY,
        "energy_since": SINCE,
    },
}
