"""When an answer's values may leave, and what follows them."""

from samples import NOW, SERIAL

from bridge import discovery
from bridge.model import Facts, Message, Rank, Reading
from bridge.outbox import Outbox
from bridge.records import POWER, VOLTAGE, measurement
from bridge.service.mirror import Mirror, Style
from bridge.topics import Names

METER = "meter/production"
POWER_ROW, VOLTAGE_ROW = measurement("power", POWER), measurement("voltage", VOLTAGE)
FACTS = Facts(SERIAL, "D8.3.5169")


def test_values_wait_for_the_discovery_of_what_is_new_among_them() -> None:
    outbox = Outbox()
    mirror = Mirror(SERIAL, Style(Names(), announcement=discovery.Settings(Names())), {}, outbox.put)
    power, voltage = Reading(METER, None, POWER_ROW, 1.0), Reading(METER, None, VOLTAGE_ROW, 2.0)
    assert not mirror.show("readings", [power], NOW), "nothing was announced yet"
    mirror.complete("readings", [], NOW)
    mirror.announce(FACTS)
    assert mirror.show("readings", [power], NOW)
    assert not mirror.show("readings", [power, voltage], NOW), "a new value"
    mirror.complete("readings", [], NOW)
    mirror.announce(FACTS)
    assert mirror.show("readings", [power, voltage], NOW)
    assert next(outbox.pending(0.0)).rank is Rank.DISCOVERY


def test_values_first_then_documents_then_the_site() -> None:
    told: list[Message] = []
    mirror = Mirror(SERIAL, Style(Names()), {}, told.append)
    mirror.show("readings", [Reading(METER, None, POWER_ROW, 1.0)], NOW)
    mirror.complete("readings", [Reading("site/solar", None, POWER_ROW, 3.0)], NOW)
    places = [message.topic.removeprefix(f"enphase/{SERIAL}/") for message in told]
    assert places == [f"{METER}/power", METER, "site/solar/power", "site/solar"]
