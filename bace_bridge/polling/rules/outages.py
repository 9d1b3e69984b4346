"""The cloud's outages: when they are reported as events, and that they are reported once."""

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

FAILURES_TO_REPORT = 2
"""One failed poll may be a hiccup; the second in a row is reported."""

Kind = Literal["unreachable", "auth_failed"]


class CloudOutage(msgspec.Struct, frozen=True, rename={"reported": "told"}):  # its name in stores of earlier versions
    """How the cloud has behaved: `since` is the time of the first failure in a row, `reported` the last event of it."""

    failures: int = 0
    since: float | None = None
    kind: Kind | None = None
    reported: Kind | None = None
    reason: str = ""


def after_failure(outage: CloudOutage, kind: Kind, reason: str, *, now: float) -> tuple[CloudOutage, list[Event]]:
    since = outage.since if outage.since is not None else now
    after = CloudOutage(outage.failures + 1, since, kind, outage.reported, reason)
    if outage.reported == kind or (kind == "unreachable" and after.failures < FAILURES_TO_REPORT):
        return after, []
    event_type = CLOUD_AUTH_FAILED if kind == "auth_failed" else CLOUD_UNREACHABLE
    data = {"reason": reason, "since": iso_utc(since), "observed_at": iso_utc(now)}
    reported = msgspec.structs.replace(after, reported=kind)
    return reported, [bridge_event(event_type, at=since, facts=(since,), data=data)]


def after_success(outage: CloudOutage, *, now: float) -> tuple[CloudOutage, list[Event]]:
    if outage.reported is None or outage.since is None:
        return CloudOutage(), []
    data = {
        "since": iso_utc(outage.since),
        "seconds": round(now - outage.since, 3),
        "observed_at": iso_utc(now),
    }
    return CloudOutage(), [bridge_event(CLOUD_RECOVERED, at=now, facts=(outage.since, now), data=data)]
