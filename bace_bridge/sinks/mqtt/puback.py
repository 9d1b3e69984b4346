"""QoS 1: consent without paho's decoding of it, which takes longer than all the rest that is done for an event."""

from typing import Any, Literal

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

_REASON_AT = 2
_NO_SUBSCRIBERS = 0x10


def read_consent(client: Client) -> None:
    """A PUBACK that says anything else, or more, is left to paho, which has no public way to do less."""
    inside: Any = client
    decode = inside._handle_pubackcomp  # noqa: SLF001
    taken, unheard = (ReasonCode(PacketTypes.PUBACK, identifier=code) for code in (0, _NO_SUBSCRIBERS))
    consents = {b"": taken}
    if client.protocol == MQTTProtocolVersion.MQTTv5:
        consents |= {bytes([taken.value]): taken, bytes([unheard.value]): unheard}

    def handle(command: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        packet: bytes = inside._in_packet["packet"]  # noqa: SLF001
        consent = consents.get(bytes(packet[_REASON_AT:])) if command == "PUBACK" else None
        mid = int.from_bytes(packet[:_REASON_AT], "big")
        if consent is None or len(packet) < _REASON_AT or mid not in inside._out_messages:  # noqa: SLF001
            return MQTTErrorCode(decode(command))
        return MQTTErrorCode(inside._do_on_publish(mid, consent, None))  # noqa: SLF001

    inside._handle_pubackcomp = handle  # noqa: SLF001
