"""What the broker allows: the limits that MQTT 5 announces in CONNACK."""

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Without an announcement there is no limit but the protocol's own."""

    in_flight: int = 65535
    packet_size: int | None = None
    qos: int = 2
    retain: bool = True


def announced(connack_properties: object) -> Limits:
    """`connack_properties` is paho's `Properties`, which has an attribute only for what was announced."""
    return Limits(
        in_flight=getattr(connack_properties, "ReceiveMaximum", 65535),
        packet_size=getattr(connack_properties, "MaximumPacketSize", None),
        qos=getattr(connack_properties, "MaximumQoS", 2),
        retain=bool(getattr(connack_properties, "RetainAvailable", 1)),
    )
