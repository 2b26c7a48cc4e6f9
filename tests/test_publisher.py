"""When the values of an answer may be sent, and what is published after them."""

from samples import NOW, SERIAL

from bridge import discovery
from bridge.model import Facts, Message, Priority, Reading
from bridge.outbox import Outbox
from bridge.records import POWER, VOLTAGE, measurement
from bridge.service.publisher import GatewayPublisher, PublishOptions
from bridge.topics import Names

METER = "meter/production"
POWER_ROW, VOLTAGE_ROW = measurement("power", POWER), measurement("voltage", VOLTAGE)
FACTS = Facts(SERIAL, "D8.3.5169")


def test_values_wait_for_the_discovery_of_what_is_new_among_them() -> None:
    outbox = Outbox()
    publisher = GatewayPublisher(
        SERIAL, PublishOptions(Names(), announcement=discovery.DiscoveryOptions(Names())), {}, outbox.put
    )
    power, voltage = Reading(METER, None, POWER_ROW, 1.0), Reading(METER, None, VOLTAGE_ROW, 2.0)
    assert not publisher.publish_values("readings", [power], NOW), "nothing was announced yet"
    publisher.publish_documents("readings", [], NOW)
    publisher.announce(FACTS)
    assert publisher.publish_values("readings", [power], NOW)
    assert not publisher.publish_values("readings", [power, voltage], NOW), "a new value"
    publisher.publish_documents("readings", [], NOW)
    publisher.announce(FACTS)
    assert publisher.publish_values("readings", [power, voltage], NOW)
    assert next(outbox.pending(0.0)).priority is Priority.DISCOVERY


def test_values_first_then_documents_then_the_site() -> None:
    told: list[Message] = []
    publisher = GatewayPublisher(SERIAL, PublishOptions(Names()), {}, told.append)
    publisher.publish_values("readings", [Reading(METER, None, POWER_ROW, 1.0)], NOW)
    publisher.publish_documents("readings", [Reading("site/solar", None, POWER_ROW, 3.0)], NOW)
    places = [message.topic.removeprefix(f"enphase/{SERIAL}/") for message in told]
    assert places == [f"{METER}/power", METER, "site/solar/power", "site/solar"]
