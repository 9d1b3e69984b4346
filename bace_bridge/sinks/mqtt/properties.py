"""MQTT 5 properties, above all those of an event message: the CloudEvents attributes in binary mode.

They are encoded here and not with paho's `Properties`, which takes longer than the whole rest of a message.
"""

from bace_bridge.domain.lanes import Attempt
from bace_bridge.domain.mqtt_text import LONGEST, made_sendable

_CONTENT_TYPE = b"\x03"
_CORRELATION_DATA = b"\x09"
_USER_PROPERTY = b"\x26"
_MAXIMUM_PACKET_SIZE = b"\x27"
_LARGEST_IN_ONE_BYTE = 127

SEQUENCE_DIGITS = 20


class EncodedProperties:
    """Stands in for paho's `Properties`, of which sending a message needs no more than `pack`."""

    __slots__ = ("_packed",)

    def __init__(self, encoded: bytes) -> None:
        self._packed = _variable_integer(len(encoded)) + encoded

    def pack(self) -> bytes:
        return self._packed


def introduction(version: str, largest_packet: int) -> EncodedProperties:
    """Those of CONNECT: who we are, and how many bytes of a packet we take."""
    size = _MAXIMUM_PACKET_SIZE + largest_packet.to_bytes(4, "big")
    return EncodedProperties(size + _pair("bace-bridge", version))


def correlation(data: bytes) -> EncodedProperties:
    return EncodedProperties(_CORRELATION_DATA + len(data).to_bytes(2, "big") + data)


class CloudEventAttributes:
    def __init__(self, source: str) -> None:
        self._same_for_all = (
            _CONTENT_TYPE + _text("application/json") + _pair("specversion", "1.0") + _pair("source", source)
        )
        self._id, self._subject, self._time = _name("id"), _name("subject"), _name("time")
        self._sequence = _name("sequence") + SEQUENCE_DIGITS.to_bytes(2, "big")
        self._types: dict[str, bytes] = {}
        self._replay = _pair("replay", "true")

    def of(self, attempt: Attempt, *, time: str) -> EncodedProperties:
        """`time` is the event's, as text."""
        logged = attempt.logged
        event = logged.event
        subject = b"" if event.session_id is None else self._subject + _text(event.session_id)
        parts = (
            self._same_for_all,
            self._type_of(event.type),
            self._id,
            _text(event.id),
            subject,
            self._time,
            _text(time),
            self._sequence,
            b"%020d" % logged.seq,
            self._replay if attempt.replay else b"",
        )
        return EncodedProperties(b"".join(parts))

    def _type_of(self, event_type: str) -> bytes:
        """There are a few types and many events."""
        encoded = self._types.get(event_type)
        if encoded is None:
            encoded = self._types[event_type] = _pair("type", f"bace.{event_type}")
        return encoded


def _text(value: str) -> bytes:
    """Nothing that a cloud or a configuration holds may make the broker close the connection."""
    encoded = value.encode() if value.isascii() and value.isprintable() else made_sendable(value).encode()
    encoded = encoded[:LONGEST]
    return len(encoded).to_bytes(2, "big") + encoded


def _name(name: str) -> bytes:
    return _USER_PROPERTY + _text(name)


def _pair(name: str, value: str) -> bytes:
    return _name(name) + _text(value)


def _variable_integer(number: int) -> bytes:
    encoded = bytearray()
    while number > _LARGEST_IN_ONE_BYTE:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
