"""What a broker's answer to our CONNECT means for us."""

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from bridge.model import Rejected, Unavailable
from bridge.mqtt.dial import Address, Manner, refused_tls
from bridge.mqtt.link import Link

NO_RETAIN = 0x9A
REFUSALS = {
    0x85: "the broker does not accept the client id: set BRIDGE_MQTT__CLIENT_ID",
    0x86: "wrong user name or password: set BRIDGE_MQTT__USERNAME and BRIDGE_MQTT__PASSWORD",
    0x87: "not authorized: check BRIDGE_MQTT__USERNAME, BRIDGE_MQTT__PASSWORD and the broker's access rules",
    0x8A: "the broker has banned this client",
    0x8C: "the broker wants another way to log in than user name and password",
    0x90: "the broker does not accept the topic of the last will: check BRIDGE_MQTT__BASE_TOPIC",
    0x9C: "the broker sends its clients to another server: set BRIDGE_MQTT__URL",
    0x9D: "the broker has moved: set BRIDGE_MQTT__URL",
}
"""What the owner must do about a CONNACK's reason code; the other codes may pass by themselves."""


class NoMqtt5(Unavailable):
    """It does not understand MQTT 5, or nothing at all."""

    @staticmethod
    def lower(manner: Manner) -> Manner:
        return manner._replace(protocol=MQTTProtocolVersion.MQTTv311)


class NoQos(Unavailable):
    """It takes no last will of this QoS."""

    @staticmethod
    def lower(manner: Manner) -> Manner:
        return manner._replace(will_qos=0)


class NoRetain(Unavailable):
    """It takes no last will that it would have to keep."""

    @staticmethod
    def lower(manner: Manner) -> Manner:
        return manner._replace(will_retain=False)


def judge(where: Address, will: str, answer: ReasonCode | None, link: Link) -> None:
    """Let a welcome pass. `will` is the topic of the last will.

    Raises:
        NoMqtt5, NoQos, NoRetain: a simpler manner may do.
        Unavailable: not now.
        Rejected: the owner must do something.
    """
    if answer is None:
        raise _speechless(where, will, link.ended.result())
    if answer == "Unsupported protocol version":
        raise NoMqtt5(f"{where}: the broker speaks neither MQTT 5 nor 3.1.1")
    if answer == "QoS not supported":
        raise NoQos(f"{where}: the broker refuses a last will of any QoS")
    if answer.value == NO_RETAIN:
        raise NoRetain(f"{where}: the broker refuses a last will, kept or not")
    if answer.value in REFUSALS:
        raise Rejected(f"{where}: {REFUSALS[answer.value]}")
    if answer.is_failure:
        raise Unavailable(f"{where}: the broker says: {answer}")


def _speechless(where: Address, will: str, reason: str) -> Unavailable | Rejected:
    """It closed without an answer: what brokers do that do not know MQTT 5, and others."""
    if "alert" in reason.lower():
        return refused_tls(where, reason)
    wish = "BRIDGE_MQTT__CERT_FILE" if where.tls else "TLS"
    doubt = ", and does it take a . in topics (BRIDGE_MQTT__BASE_TOPIC)" if "." in will else ""
    return NoMqtt5(f"{where}: no MQTT answer ({reason}): is it an MQTT port, and does it want {wish}{doubt}?")
