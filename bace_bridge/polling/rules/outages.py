"""The cloud's troubles: when they are told, and that they are told once."""

from typing import Literal

import msgspec

from bace_bridge.domain.events import (
    CLOUD_AUTH_FAILED,
    CLOUD_RECOVERED,
    CLOUD_UNREACHABLE,
    Event,
    bridge_event,
)
from bace_bridge.domain.timestamps import iso_utc

FAILURES_TO_TELL = 2
"""One failed look may be a hiccup; the second in a row is told."""

Kind = Literal["unreachable", "auth_failed"]


class CloudOutage(msgspec.Struct, frozen=True):
    """How the cloud has behaved: `since` is the time of the first failure in a row, `told` what was told of it."""

    failures: int = 0
    since: float | None = None
    kind: Kind | None = None
    told: Kind | None = None
    reason: str = ""


def after_failure(trouble: CloudOutage, kind: Kind, reason: str, *, now: float) -> tuple[CloudOutage, list[Event]]:
    since = trouble.since if trouble.since is not None else now
    after = CloudOutage(trouble.failures + 1, since, kind, trouble.told, reason)
    if trouble.told == kind or (kind == "unreachable" and after.failures < FAILURES_TO_TELL):
        return after, []
    event_type = CLOUD_AUTH_FAILED if kind == "auth_failed" else CLOUD_UNREACHABLE
    data = {"reason": reason, "since": iso_utc(since), "observed_at": iso_utc(now)}
    told = msgspec.structs.replace(after, told=kind)
    return told, [bridge_event(event_type, at=since, facts=(since,), data=data)]


def after_success(trouble: CloudOutage, *, now: float) -> tuple[CloudOutage, list[Event]]:
    if trouble.told is None or trouble.since is None:
        return CloudOutage(), []
    data = {
        "since": iso_utc(trouble.since),
        "seconds": round(now - trouble.since, 3),
        "observed_at": iso_utc(now),
    }
    return CloudOutage(), [bridge_event(CLOUD_RECOVERED, at=now, facts=(trouble.since, now), data=data)]
