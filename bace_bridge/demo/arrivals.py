"""What arrived over MQTT or by HTTP, as far as it is shown. Pure; raises `msgspec.MsgspecError` for junk."""

import msgspec

BASE_TOPIC = "bace"
_TYPE_PREFIX = "bace."


class Arrival(msgspec.Struct, frozen=True):
    """An event that arrived; the label is None where the message does not hold it."""

    id: str
    type: str
    device_id: str | None
    device_label: str | None
    detail: str
    points: int


class SessionSeen(msgspec.Struct, frozen=True):
    """The contract's session object, as far as it is shown."""

    id: str
    label: str | None
    state: str
    duration_seconds: float | None


class PointSeen(msgspec.Struct, frozen=True):
    """The contract's datapoint, as far as it is shown."""

    name: str | None
    unit: str | None
    avg: float | None


class _Device(msgspec.Struct, frozen=True):
    id: str
    label: str | None


class _Csv(msgspec.Struct, frozen=True):
    revision: int


class _Facts(msgspec.Struct, frozen=True):
    """The data of an event of any type."""

    session: SessionSeen | None = None
    device: _Device | None = None
    datapoints: list[msgspec.Raw] | None = None
    changed: list[str] | None = None
    csv: _Csv | None = None
    reason: str = ""


class _Message(msgspec.Struct, frozen=True):
    """What an MQTT message has beside the facts; one with datapoints does not name its type."""

    id: str
    event_type: str = "session.datapoints"


class _CloudEvent(msgspec.Struct, frozen=True):
    id: str
    type: str
    data: _Facts


def from_mqtt(topic: str, payload: bytes) -> Arrival | None:
    """The event of an `event` or `datapoints` topic; None for topics that hold a state."""
    match topic.split("/"):
        case [_, device_id, "event" | "datapoints"]:
            message = msgspec.json.decode(payload, type=_Message)
            facts = msgspec.json.decode(payload, type=_Facts)
            return _arrival(message.id, message.event_type, None if device_id == "bridge" else device_id, facts)
    return None


def from_webhook(body: bytes) -> Arrival:
    event = msgspec.json.decode(body, type=_CloudEvent)
    device_id = None if event.data.device is None else event.data.device.id
    return _arrival(event.id, event.type.removeprefix(_TYPE_PREFIX), device_id, event.data)


def topic_pattern(topic: str) -> str:
    """The topic with its ids left out: `bace/<device>/latest/<source>/<datatype>`."""
    match topic.split("/"):
        case [_, "bridge", *_]:
            return topic
        case [base, _, "latest", *_]:
            return f"{base}/<device>/latest/<source>/<datatype>"
        case [base, _, *rest]:
            return "/".join([base, "<device>", *rest])
    return topic


def _arrival(event_id: str, event_type: str, device_id: str | None, facts: _Facts) -> Arrival:
    return Arrival(
        id=event_id,
        type=event_type,
        device_id=device_id,
        device_label=None if facts.device is None else facts.device.label,
        detail=_detail(event_type, facts),
        points=len(facts.datapoints or ()),
    )


def _detail(event_type: str, facts: _Facts) -> str:
    session = facts.session
    if facts.datapoints is not None:
        return f"{len(facts.datapoints)} point{'' if len(facts.datapoints) == 1 else 's'}"
    if facts.changed is not None:
        return f"changed: {', '.join(facts.changed)}"
    if facts.csv is not None:
        return f"revision {facts.csv.revision}"
    if session is not None and event_type == "session.ended":
        return f"lasted {session.duration_seconds or 0:g} s"
    return facts.reason if session is None else session.label or session.id
