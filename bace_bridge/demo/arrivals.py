"""What arrived over MQTT or by HTTP, as the little of it that is shown. Pure."""

from typing import Any

import msgspec

BASE_TOPIC = "bace"
_TYPE_PREFIX = "bace."
_DATAPOINTS = "session.datapoints"


class Arrival(msgspec.Struct, frozen=True):
    """An event that arrived; the labels are None where the message does not hold them."""

    id: str
    type: str
    device_id: str | None
    device_label: str | None
    detail: str
    points: int


def from_mqtt(topic: str, payload: bytes) -> Arrival | None:
    """The event of an `event` or `datapoints` topic; None for topics that hold a state."""
    match topic.split("/"):
        case [_, "bridge", "event"]:
            return _arrival(None, _decoded(payload))
        case [_, device_id, "event"]:
            return _arrival(device_id, _decoded(payload))
        case [_, device_id, "datapoints"]:
            return _arrival(device_id, {"event_type": _DATAPOINTS, **_decoded(payload)})
    return None


def from_webhook(body: bytes) -> Arrival:
    event = _decoded(body)
    data = event["data"]
    told = {**data, "event_type": event["type"].removeprefix(_TYPE_PREFIX), "id": event["id"]}
    return _arrival((data.get("device") or {}).get("id"), told)


def topic_pattern(topic: str) -> str:
    """The topic with its ids left out: `bace/<device>/latest/<source>/<datatype>`."""
    match topic.split("/"):
        case [base, "bridge", *_] as parts:
            return "/".join([base, *parts[1:]])
        case [base, _, "latest", *_]:
            return f"{base}/<device>/latest/<source>/<datatype>"
        case [base, _, *rest]:
            return "/".join([base, "<device>", *rest])
    return topic


def _decoded(payload: bytes) -> dict[str, Any]:
    return msgspec.json.decode(payload, type=dict[str, Any])


def _arrival(device_id: str | None, message: dict[str, Any]) -> Arrival:
    return Arrival(
        id=message["id"],
        type=message["event_type"],
        device_id=device_id,
        device_label=(message.get("device") or {}).get("label"),
        detail=_detail(message),
        points=len(message.get("datapoints", ())),
    )


def _detail(message: dict[str, Any]) -> str:
    if (points := message.get("datapoints")) is not None:
        return f"{len(points)} point{'' if len(points) == 1 else 's'}"
    if (changed := message.get("changed")) is not None:
        return f"changed: {', '.join(changed)}"
    if (csv := message.get("csv")) is not None:
        return f"revision {csv['revision']}"
    if message["event_type"] == "session.ended":
        return f"lasted {message['session']['duration_seconds']:g} s"
    return str((message.get("session") or {}).get("label") or message.get("reason") or "")
