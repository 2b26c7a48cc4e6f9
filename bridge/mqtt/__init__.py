"""The broker: one message at a time out, subscriptions in. paho runs on the event loop, without a thread.

`broker` is what the service uses, `dial` makes a connection, `link` is one. Each connection has a paho client of
its own, so that nothing of a dead connection reaches the next one, and paho's queue holds next to nothing: what is
still to be sent is the outbox's business.
"""

from bridge.mqtt.broker import Broker
from bridge.mqtt.link import Limits, MessageRefused, OnMessage
from bridge.mqtt.suspects import area

__all__ = ["Broker", "Limits", "MessageRefused", "OnMessage", "area"]
