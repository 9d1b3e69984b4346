"""QoS 2: a broker's refusal is in its PUBREC, which paho takes for consent."""

from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from bace_bridge.sinks.mqtt.endings import FIRST_FAILURE

_REASON_AT = 2


def heed_refusals(client: Client) -> None:
    """Ends a message that PUBREC refuses with `on_publish` and the reason code, as PUBACK does at QoS 1.

    paho has no public way to see that code; it would send PUBREL, and the broker would answer with success.
    """
    inside: Any = client
    consent = inside._handle_pubrec  # noqa: SLF001

    def handle_pubrec() -> MQTTErrorCode:
        packet: bytes = inside._in_packet["packet"]  # noqa: SLF001
        mid = int.from_bytes(packet[:2], "big")
        if len(packet) <= _REASON_AT or packet[_REASON_AT] < FIRST_FAILURE or mid not in inside._out_messages:  # noqa: SLF001
            return MQTTErrorCode(consent())
        reason = ReasonCode(PacketTypes.PUBREC, identifier=packet[_REASON_AT])
        return MQTTErrorCode(inside._do_on_publish(mid, reason, None))  # noqa: SLF001

    inside._handle_pubrec = handle_pubrec  # noqa: SLF001
