"""What a delivery's outcome leads to: a line in the log after several failures, an event about a dead letter."""

from typing import Literal

import msgspec

from bace_bridge.events.types import SINK_DEAD_LETTER, Event, bridge_event, is_about_a_sink
from bace_bridge.formats import iso_utc


def is_reported(event: Event) -> bool:
    """False where the dead letter itself is about a sink: two that take nothing would answer each other for ever."""
    return not is_about_a_sink(event)


def dead_letter_event(count: int, *, sink: str, event: Event, attempts: int, reason: str, now: float) -> Event:
    """The event for other sinks about a dead letter of `sink`, which has `count` of them by now."""
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


FAILURES_TO_TELL = 2
"""Failed attempts in a row; a single one is that event's own problem, or a hiccup."""


class Reception(msgspec.Struct, frozen=True):
    """`problem` is why the last attempt failed, without secrets; None where it did not. Times are epoch seconds."""

    last_success_at: float | None = None
    failures: int = 0
    failing_since: float | None = None
    problem: str | None = None

    @property
    def failing(self) -> bool:
        return self.failures >= FAILURES_TO_TELL


def after_attempt(
    before: Reception, problem: str | None, *, now: float
) -> tuple[Reception, Literal["failing", "recovered"] | None]:
    if problem is None:
        return Reception(last_success_at=now), "recovered" if before.failing else None
    since = now if before.failing_since is None else before.failing_since
    after = Reception(before.last_success_at, before.failures + 1, since, problem)
    return after, "failing" if after.failing and not before.failing else None
