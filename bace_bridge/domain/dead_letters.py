"""What a delivery that was given up tells, and whom."""

from bace_bridge.domain.events import SINK_DEAD_LETTER, Event, bridge_event
from bace_bridge.domain.routing import is_about_a_sink
from bace_bridge.domain.timestamps import iso_utc


def is_told(event: Event) -> bool:
    """False where the dead letter itself is about a sink: two that take nothing would answer each other for ever."""
    return not is_about_a_sink(event)


def dead_letter_told(count: int, *, sink: str, event: Event, attempts: int, reason: str, now: float) -> Event:
    """The event that tells other sinks of a dead letter of `sink`, which has `count` of them by now."""
    about = {
        "id": event.id,
        "type": event.type,
        "session_id": event.session_id,
        "device_id": event.device_id,
        "time": iso_utc(event.time),
    }
    data = {
        "sink": sink,
        "reason": reason,
        "attempts": attempts,
        "count": count,
        "event": about,
        "observed_at": iso_utc(now),
    }
    return bridge_event(SINK_DEAD_LETTER, at=now, facts=(sink, event.id, now), data=data)
