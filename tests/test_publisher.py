"""When the values of an answer may be sent, and what is published after them."""

import json

from samples import NOW, SERIAL

from bridge import discovery
from bridge.endpoints import ENDPOINTS
from bridge.model import Facts, Message, Priority, Reading
from bridge.outbox import Outbox
from bridge.records import ENERGY, FLAG, POWER, VOLTAGE, measurement
from bridge.service.publisher import GatewayPublisher, PublishOptions, TreeState
from bridge.service.sources import Source
from bridge.topics import Names

METER = "meter/production"
POWER_ROW, VOLTAGE_ROW = measurement("power", POWER), measurement("voltage", VOLTAGE)
ENERGY_ROW = measurement("energy_delivered", ENERGY)
FACTS = Facts(SERIAL, "D8.3.5169")


def test_values_wait_for_the_discovery_of_what_is_new_among_them() -> None:
    outbox = Outbox()
    publisher = GatewayPublisher(
        SERIAL, PublishOptions(Names(), announcement=discovery.DiscoveryOptions(Names())), {}, outbox.put_all
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
    publisher = GatewayPublisher(SERIAL, PublishOptions(Names()), {}, told.extend)
    publisher.publish_values("readings", [Reading(METER, None, POWER_ROW, 1.0)], NOW)
    publisher.publish_documents("readings", [Reading("site/solar", None, POWER_ROW, 3.0)], NOW)
    places = [message.topic.removeprefix(f"enphase/{SERIAL}/") for message in told]
    assert places == [f"{METER}/power", METER, "site/solar/power", "site/solar"]


def test_the_site_loses_nothing_before_each_source_was_asked() -> None:
    """The first answers after a restart do not have all of the site."""
    told: list[Message] = []
    flows = [Reading("site/solar", None, row, 3.0) for row in (POWER_ROW, ENERGY_ROW)]
    before = GatewayPublisher(SERIAL, PublishOptions(Names()), {}, told.extend)
    before.publish_documents("site", flows, NOW)
    source = Source(ENDPOINTS[0], 10.0)
    publisher = GatewayPublisher(SERIAL, PublishOptions(Names()), {source.name: source}, told.extend)
    publisher.restore(before.state)
    for asked, lost in ((False, []), (True, ["None"])):
        if asked:
            source.record_answer(0.0)
        told.clear()
        publisher.publish_documents("site", flows[:1], NOW)
        topic = f"enphase/{SERIAL}/site/solar/{ENERGY_ROW.name}"
        assert [message.payload for message in told if message.topic == topic] == lost


def test_what_was_in_force_before_a_restart_ends_once_each_source_was_asked() -> None:
    """The gateway may no longer tell of it, and what is still in force may not change for days."""
    told: list[Message] = []
    limited, obeyed = (measurement(name, FLAG) for name in ("active", "obeyed"))
    in_force = [Reading("storage/settings", None, obeyed, True), Reading("limit/production", None, limited, True)]
    before = GatewayPublisher(SERIAL, PublishOptions(Names()), {}, told.extend)
    before.publish_documents("tariff", [], NOW, in_force)
    source = Source(ENDPOINTS[0], 10.0)
    publisher = GatewayPublisher(SERIAL, PublishOptions(Names()), {source.name: source}, told.extend)
    publisher.restore(before.state)
    told.clear()
    publisher.publish_documents("tariff", [], NOW, in_force[:1])
    source.record_answer(0.0)
    assert [message.payload for message in told if message.topic.endswith("/active")] == []
    told.clear()
    publisher.publish_documents("tariff", [], NOW, in_force[:1])
    assert [message.payload for message in told if message.topic.endswith("/active")] == ["None"]
    assert [message for message in told if message.topic.endswith("/settings")] == [], "the document has no news"


def announced(state: TreeState, form: str = "device") -> tuple[list[Message], GatewayPublisher]:
    """What the broker gets, one message after the other, of a gateway with one meter."""
    outbox, told = Outbox(), list[Message]()
    options = PublishOptions(Names(), announcement=discovery.DiscoveryOptions(Names(), form=form))
    publisher = GatewayPublisher(SERIAL, options, {}, outbox.put_all)
    publisher.restore(state)
    publisher.publish_values("readings", [Reading(METER, None, ENERGY_ROW, 5.0)], NOW)
    publisher.announce(FACTS)
    while message := next(iter(outbox.pending(0.0)), None):
        told.append(message)
        outbox.sent(message, 0.0)
        if message.priority in (Priority.MIGRATE, Priority.CLEANUP):
            publisher.sent(message)
    return told, publisher


def test_entities_in_wh_are_unloaded_before_they_come_back_in_kwh() -> None:
    """Home Assistant would show the last value in Wh as kWh until the next one comes (2026.2)."""
    topics = [f"homeassistant/device/iqgateway_{SERIAL}_{name}/config" for name in ("gateway", "meter_production")]
    told, publisher = announced(TreeState(discovered=frozenset(topics)))
    for topic in topics:
        first, second = [message for message in told if message.topic == topic]
        assert first.payload == discovery.MIGRATE_PAYLOAD
        assert json.loads(second.payload)["components"]
    again, _ = announced(publisher.state)
    assert [message.topic for message in again if message.priority is Priority.DISCOVERY] == topics
    assert not [message for message in again if message.payload == discovery.MIGRATE_PAYLOAD]


def test_component_form_hands_over_what_it_spelt_otherwise() -> None:
    old, new = (
        f"homeassistant/sensor/iqgateway_{SERIAL}_site_{name}_soc/config" for name in ("battery", "batteries")
    )
    told, publisher = announced(TreeState(discovered=frozenset({old, new})), "component")
    assert [message.payload for message in told if message.topic == old] == [discovery.MIGRATE_PAYLOAD, ""]
    assert [message.payload for message in told if message.topic == new] == [""], "it is no more, and not renamed"
    assert publisher.state.leaving == frozenset()
