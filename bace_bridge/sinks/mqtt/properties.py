"""MQTT 5 properties, above all those of an event message: the CloudEvents attributes in binary mode.

They are encoded here and not with paho's `Properties`, which takes longer than the whole rest of a message.
"""

from bace_bridge.domain.delivery import Attempt
from bace_bridge.domain.timestamps import iso_utc

_CONTENT_TYPE = b"\x03"
_CORRELATION_DATA = b"\x09"
_USER_PROPERTY = b"\x26"
_LARGEST_IN_ONE_BYTE = 127


class EncodedProperties:
    """Stands in for paho's `Properties`, of which sending a message needs no more than `pack`."""

    __slots__ = ("_packed",)

    def __init__(self, encoded: bytes) -> None:
        self._packed = _variable_integer(len(encoded)) + encoded

    def pack(self) -> bytes:
        return self._packed


def user_property(name: str, value: str) -> EncodedProperties:
    return EncodedProperties(_pair(name, value))


def correlation(data: bytes) -> EncodedProperties:
    return EncodedProperties(_CORRELATION_DATA + len(data).to_bytes(2, "big") + data)


class CloudEventAttributes:
    def __init__(self, source: str) -> None:
        self._same_for_all = (
            _CONTENT_TYPE + _text("application/json") + _pair("specversion", "1.0") + _pair("source", source)
        )
        self._id, self._type = _name("id"), _name("type")
        self._subject, self._time, self._sequence = _name("subject"), _name("time"), _name("sequence")
        self._replay = _pair("replay", "true")

    def of(self, attempt: Attempt) -> EncodedProperties:
        event = attempt.logged.event
        parts = [self._same_for_all, self._id, _text(event.id), self._type, _text(f"bace.{event.type}")]
        if event.session_id is not None:
            parts += self._subject, _text(event.session_id)
        parts += self._time, _text(iso_utc(event.time)), self._sequence, _text(f"{attempt.logged.seq:020d}")
        if attempt.replay:
            parts.append(self._replay)
        return EncodedProperties(b"".join(parts))


def _text(value: str) -> bytes:
    encoded = value.encode()
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
