"""What is sent: an event as a message; and what goes with any message in MQTT 5, its properties, encoded. Pure."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from paho.mqtt.properties import VariableByteIntegers

from bace_bridge.events.types import (
    DATA_CONTENT_TYPE,
    SEQUENCE_DIGITS,
    SESSION_DATAPOINTS,
    SPECVERSION,
    TYPE_PREFIX,
    Attempt,
    Event,
    LoggedEvent,
)
from bace_bridge.formats import LONGEST, iso_utc, made_sendable
from bace_bridge.sinks.mqtt.topics import Topics

RESPONSE_EXPIRES_AFTER = 60
"""Seconds for which a broker keeps an answer for a subscriber that is away."""

# Identifiers of properties: MQTT 5, table 2-4.
_MESSAGE_EXPIRY = b"\x02"
_CONTENT_TYPE = b"\x03"
_CORRELATION_DATA = b"\x09"
_USER_PROPERTY = b"\x26"
_MAXIMUM_PACKET_SIZE = b"\x27"
_size: Callable[[int], bytes] = VariableByteIntegers.encode


class EncodedProperties:
    """Stands in for paho's `Properties`, of which sending a message needs no more than `pack`."""

    __slots__ = ("_packed",)

    def __init__(self, encoded: bytes) -> None:
        self._packed = _size(len(encoded)) + encoded

    def pack(self) -> bytes:
        return self._packed


class Message(NamedTuple):
    """`event` is the id of the event that it carries, if any."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    properties: EncodedProperties | None = None
    event: str | None = None


def introduction(version: str, largest_packet: int) -> EncodedProperties:
    """Those of CONNECT: who we are, and how many bytes of a packet we take."""
    size = _MAXIMUM_PACKET_SIZE + largest_packet.to_bytes(4, "big")
    return EncodedProperties(size + _pair("bace-bridge", version))


def of_state(payload: bytes) -> EncodedProperties | None:
    """Those of a retained message: what is no JSON is a word, or nothing. It never expires."""
    return _JSON if payload.startswith((b"{", b"[")) else None


def of_response(correlation: bytes | None) -> EncodedProperties:
    """Those of an answer, which is of no use to who asks again."""
    correlated = b"" if correlation is None else _CORRELATION_DATA + len(correlation).to_bytes(2, "big") + correlation
    return EncodedProperties(_JSON_TYPE + _MESSAGE_EXPIRY + RESPONSE_EXPIRES_AFTER.to_bytes(4, "big") + correlated)


def _text(value: str) -> bytes:
    """Nothing that a cloud or a configuration holds may make the broker close the connection."""
    encoded = value.encode() if value.isascii() and value.isprintable() else made_sendable(value).encode()
    # The length of a text has two bytes.
    encoded = encoded[:LONGEST]
    return len(encoded).to_bytes(2, "big") + encoded


def _pair(name: str, value: str) -> bytes:
    return _USER_PROPERTY + _text(name) + _text(value)


_JSON_TYPE = _CONTENT_TYPE + _text(DATA_CONTENT_TYPE)
_JSON = EncodedProperties(_JSON_TYPE)

_Mark = bool | msgspec.UnsetType


class _Head(msgspec.Struct):
    event_type: str
    id: str
    time: str
    replay: _Mark


class _PointsOfEvent(msgspec.Struct):
    datapoints: msgspec.Raw


class _DatapointsMessage(msgspec.Struct):
    id: str
    time: str
    session_id: str | None
    replay: _Mark
    datapoints: msgspec.Raw


# Made once: each event goes through them.
_encode = msgspec.json.Encoder().encode
_decode_points = msgspec.json.Decoder(_PointsOfEvent).decode


class EventMessages:
    """The messages that carry events, with `qos`; `source` is what CloudEvents call the cloud."""

    def __init__(self, source: str, topics: Topics, *, qos: int) -> None:
        self._topics = topics
        self._qos = qos
        self._same_for_all = _JSON_TYPE + _pair("specversion", SPECVERSION) + _pair("source", source)
        self._id, self._subject, self._time = (_USER_PROPERTY + _text(name) for name in ("id", "subject", "time"))
        self._sequence = _USER_PROPERTY + _text("sequence") + SEQUENCE_DIGITS.to_bytes(2, "big")
        self._types: dict[str, bytes] = {}

    def topic(self, event: Event) -> str:
        if event.device_id is None or not event.type.startswith("session."):
            return self._topics.bridge_event
        if event.type == SESSION_DATAPOINTS:
            return self._topics.of(event.device_id).datapoints
        return self._topics.of(event.device_id).event

    def message(self, attempt: Attempt, *, speaks_5: bool) -> Message:
        """Marked where it is a replay. Raises `msgspec.MsgspecError` for broken data."""
        event, time = attempt.logged.event, iso_utc(attempt.logged.event.time)
        mark = True if attempt.replay else msgspec.UNSET
        if event.type == SESSION_DATAPOINTS and event.device_id is not None:
            points = _decode_points(event.data).datapoints
            payload = _encode(_DatapointsMessage(event.id, time, event.session_id, mark, points))
        elif event.data.startswith(b"{"):
            # The event's data, which is an encoded JSON object already, with a few keys before its own.
            head = _encode(_Head(event.type, event.id, time, mark))
            payload = head if event.data == b"{}" else b"%b,%b" % (head[:-1], event.data[1:])
        else:
            raise msgspec.DecodeError("the event's data is no JSON object")
        properties = self._attributes(attempt.logged, time, replay=attempt.replay) if speaks_5 else None
        return Message(self.topic(event), payload, self._qos, properties=properties, event=event.id)

    def _attributes(self, logged: LoggedEvent, time: str, *, replay: bool) -> EncodedProperties:
        """Those of CloudEvents, as user properties."""
        event = logged.event
        subject = b"" if event.session_id is None else self._subject + _text(event.session_id)
        encoded_type = self._types.get(event.type)
        if encoded_type is None:  # there are a few types and many events
            encoded_type = self._types[event.type] = _pair("type", TYPE_PREFIX + event.type)
        parts = (
            self._same_for_all,
            encoded_type,
            self._id,
            _text(event.id),
            subject,
            self._time,
            _text(time),
            self._sequence,
            b"%0*d" % (SEQUENCE_DIGITS, logged.seq),
            _pair("replay", "true") if replay else b"",
        )
        return EncodedProperties(b"".join(parts))
