"""The event types, their shape in the event log, and their stable ids."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

SESSION_STARTED = "session.started"
SESSION_DATAPOINTS = "session.datapoints"
SESSION_UPDATED = "session.updated"
SESSION_ENDED = "session.ended"
SESSION_REOPENED = "session.reopened"
SESSION_CSV_READY = "session.csv_ready"
SESSION_REMOVED = "session.removed"
CLOUD_UNREACHABLE = "cloud.unreachable"
CLOUD_RECOVERED = "cloud.recovered"
CLOUD_AUTH_FAILED = "cloud.auth_failed"
SINK_DISABLED = "sink.disabled"
SINK_DEAD_LETTER = "sink.dead_letter"

EVENT_TYPES = (
    SESSION_STARTED,
    SESSION_DATAPOINTS,
    SESSION_UPDATED,
    SESSION_ENDED,
    SESSION_REOPENED,
    SESSION_CSV_READY,
    SESSION_REMOVED,
    CLOUD_UNREACHABLE,
    CLOUD_RECOVERED,
    CLOUD_AUTH_FAILED,
    SINK_DISABLED,
    SINK_DEAD_LETTER,
)


class Event(msgspec.Struct, frozen=True):
    """One fact, as it stands in the event log: once, however many sinks there are.

    `time` is the cloud's time of the fact and `observed_at` that of the poll, both in epoch seconds.
    `data` is a JSON object, encoded when the fact was found; sinks wrap it, none encodes it again.
    """

    id: str
    type: str
    session_id: str | None
    device_id: str | None
    time: float
    observed_at: float
    data: bytes


class LoggedEvent(msgspec.Struct, frozen=True):
    """An event and its place in the event log; `alone` where it is delivered apart from its data session's others."""

    seq: int
    event: Event
    alone: bool = False


def event_id(event_type: str, *facts: object) -> str:
    """The same facts give the same id, on every machine and after every crash. It holds no dots."""
    digest = blake2b(msgspec.json.encode([event_type, *facts]), digest_size=16)
    return f"evt_{digest.hexdigest()}"


def bridge_event(event_type: str, *, at: float, facts: tuple[object, ...], data: Mapping[str, Any]) -> Event:
    """An event about the bridge's own troubles; it belongs to no data session."""
    return Event(
        id=event_id(event_type, *facts),
        type=event_type,
        session_id=None,
        device_id=None,
        time=at,
        observed_at=at,
        data=msgspec.json.encode(data),
    )
