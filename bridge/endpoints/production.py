"""`/api/v1/production` and `/ivp/pdm/energy` (brief, appendices E and F): the gateway's own sums."""

from bridge.endpoints.body import Parsed, Sheet, decode, excerpt, level, whole
from bridge.model import BadAnswer, Facts
from bridge.records import Record, UnsignedWattHours, UnsignedWattHoursWindow, UnsignedWatts, wire


class Production(Record):
    """Power and energy of one source. The fields are unsigned in 32 bits: 4294967292 W is -4 W."""

    power: UnsignedWatts = wire("wattsNow")
    energy_today: UnsignedWattHoursWindow = wire("wattHoursToday")
    energy_7d: UnsignedWattHoursWindow = wire("wattHoursSevenDays", label="Energy last seven days")
    energy_lifetime: UnsignedWattHours = wire("wattHoursLifetime")


def split_production(body: bytes, _facts: Facts, _now: float) -> Parsed:
    sheet = Sheet()
    sheet.add("energy/production", whole(Production, body, sheet.problems))
    return sheet.parsed()


def split_energy(body: bytes, _facts: Facts, _now: float) -> Parsed:
    """`pcu` sums the microinverters, `rgm` is a revenue grade meter, `eim` the gateway's own meter."""
    sheet = Sheet()
    answer = decode(body)
    for side in ("production", "consumption"):
        sources = answer.get(side) if isinstance(answer, dict) else None
        for name, given in sources.items() if isinstance(sources, dict) else ():
            found = Production.read(given, sheet.problems)
            if found is not None and not found.empty and level(name):
                sheet.add(f"energy/{side}-{level(name)}", found)
    if not sheet.readings:
        raise BadAnswer(f"the answer has none of the expected fields: {excerpt(body)}")
    return sheet.parsed()
