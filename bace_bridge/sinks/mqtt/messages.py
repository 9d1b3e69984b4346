"""What the contract's MQTT messages say: pure functions of the events."""

import msgspec

from bace_bridge.domain.events import SESSION_DATAPOINTS, Event
from bace_bridge.sinks.mqtt.topics import Topics

_EMPTY_OBJECT = b"{}"
_OF_A_SESSION = "session."

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


_encode = msgspec.json.Encoder().encode
_decode_points = msgspec.json.Decoder(_PointsOfEvent).decode


def topic_and_payload(event: Event, topics: Topics, *, time: str, replay: bool = False) -> tuple[str, bytes]:
    """The message that tells the event, marked where it is a replay; `time` is the event's, as text.

    Raises `msgspec.MsgspecError` for broken data.
    """
    mark = True if replay else msgspec.UNSET
    topic = topic_of(event, topics)
    of_points = event.type == SESSION_DATAPOINTS and event.device_id is not None
    return topic, _datapoints(event, time, mark) if of_points else _whole_event(event, time, mark)


def topic_of(event: Event, topics: Topics) -> str:
    if event.device_id is None or not event.type.startswith(_OF_A_SESSION):
        return topics.bridge_event
    return topics.datapoints(event.device_id) if event.type == SESSION_DATAPOINTS else topics.event(event.device_id)


def _whole_event(event: Event, time: str, replay: _Mark) -> bytes:
    """The event's data, which is an encoded JSON object already, with a few keys before its own."""
    if not event.data.startswith(b"{"):
        raise msgspec.DecodeError("the event's data is no JSON object")
    head = _encode(_Head(event.type, event.id, time, replay))
    if event.data == _EMPTY_OBJECT:
        return head
    return b"%b,%b" % (head[:-1], event.data[1:])


def _datapoints(event: Event, time: str, replay: _Mark) -> bytes:
    points = _decode_points(event.data).datapoints
    return _encode(_DatapointsMessage(event.id, time, event.session_id, replay, points))
