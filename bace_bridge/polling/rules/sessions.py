"""Data sessions: what they are, what is known of each, and what another answer about one of them changes."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from bace_bridge.events import types as events
from bace_bridge.events.types import Event, event_id
from bace_bridge.formats import iso_utc

State = Literal["active", "ended", "ingested"]

END_PATIENCE = 30.0
"""Seconds that `session.ended` waits for the datapoints before it, so that a slow cloud cannot hold an alarm."""

BELIEVABLE_AHEAD = 600.0
"""Seconds by which an `updated_at` may lie in the cloud's future: clocks differ, but one of next year says nothing."""

DENIALS = 3
DENIED_FOR = 300.0
"""How often, and for how many seconds, the cloud denies to have a session before it is taken for removed."""


class DataSession(msgspec.Struct, frozen=True):
    """A data session as the cloud showed it. Times are epoch seconds; `end` is None while it is active."""

    id: str
    group_id: str
    start: float
    end: float | None = None
    label: str | None = None
    person_id: str | None = None
    created_at: float | None = None
    updated_at: float | None = None
    datapoint_count: int | None = None
    ingestion_finished: bool = False
    archived: bool = False

    @property
    def state(self) -> State:
        if self.end is None:
            return "active"
        return "ingested" if self.ingestion_finished else "ended"


class SessionView(msgspec.Struct, frozen=True):
    """The `session` object of the contract."""

    id: str
    group_id: str
    label: str | None
    person_id: str | None
    state: State
    started_at: str
    ended_at: str | None
    duration_seconds: float | None
    datapoint_count: int | None
    ingestion_finished: bool
    archived: bool
    updated_at: str | None


class DeviceView(msgspec.Struct, frozen=True):
    """The `device` object of the contract: a BACE Go has a group of its own."""

    id: str
    label: str | None


class KnownSession(msgspec.Struct, frozen=True, kw_only=True):
    """What the bridge knows of a data session that it has reported.

    `updates`, `removals` and `reopenings` count those reported: what comes true again has an id of its own, also
    where the row is the same as the last time.
    `end_emitted` is the `end` of the last `session.ended`; `end_seen_at` is when an end was seen that is not emitted.
    `reading` numbers the readings of all windows; one is complete when every window was read in it.
    `csv_revision` is the revision of the last `session.csv_ready` and `csv_facts` what that was about.
    `fetched_at` is when everything due was read last, or it was first seen; None where its datapoints cannot be had.
    `failed_fetches` counts those that failed at this session while the cloud answered others. `unread` says that its
    CSV was reported without datapoints that could not be had: they are tried again, rarely, and published then.
    `short_reads` counts the readings before its CSV in which less came than its row says that there is.
    `own_group` is the group of all the rows that its last fetch showed, where that is its own.
    `probed` holds, per day (epoch days), the samples that the last probe found there; `searched` in which reading it
    was made, and up to where nothing is unread that it found.
    """

    session: DataSession
    device_label: str | None = None
    over_when_found: bool = False
    updates: int = 0
    removals: int = 0
    reopenings: int = 0
    end_emitted: float | None = None
    end_seen_at: float | None = None
    reading: int = 0
    csv_revision: int | None = None
    csv_facts: tuple[int | None, float | None, int] | None = None
    csv_due: bool = False
    points_since_csv: bool = False
    newest_point_at: float | None = None
    count_fetched: int | None = None
    probed: dict[int, int] = {}
    searched: tuple[int, int] = (-1, 0)
    removed: bool = False
    fetch_at: float | None = None
    fetched_at: float | None = None
    failed_fetches: int = 0
    short_reads: int = 0
    unread: bool = False
    own_group: str | None = None

    @property
    def unfinished(self) -> bool:
        return not self.removed and self.session.state != "ingested"

    @property
    def facts_for_csv(self) -> tuple[int | None, float | None, int]:
        return (self.session.datapoint_count, self.session.end, self.reopenings)


class Observation(msgspec.Struct, frozen=True):
    """What an answer about one data session changed."""

    known: KnownSession
    events: tuple[Event, ...] = ()


def view(session: DataSession) -> SessionView:
    return SessionView(
        id=session.id,
        group_id=session.group_id,
        label=session.label,
        person_id=session.person_id,
        state=session.state,
        started_at=iso_utc(session.start),
        ended_at=None if session.end is None else iso_utc(session.end),
        duration_seconds=None if session.end is None else session.end - session.start,
        datapoint_count=session.datapoint_count,
        ingestion_finished=session.ingestion_finished,
        archived=session.archived,
        updated_at=None if session.updated_at is None else iso_utc(session.updated_at),
    )


def session_event(
    event_type: str, known: KnownSession, *, time: float, now: float, facts: tuple[object, ...], **data: Any
) -> Event:
    """An event about a data session; `facts` are what its id is made of besides its type and the session."""
    session = known.session
    body = {
        "session": view(session),
        "device": DeviceView(id=session.group_id, label=known.device_label),
        "observed_at": iso_utc(now),
        **data,
    }
    return Event(
        id=event_id(event_type, session.id, *facts),
        type=event_type,
        session_id=session.id,
        device_id=session.group_id,
        time=time,
        observed_at=now,
        data=msgspec.json.encode(body),
    )


def in_the_log(event: Event, known: KnownSession) -> dict[str, str | int | None]:
    """The fields of an event's log line: labels for people, ids for machines; `known` is as it is with the event."""
    return {
        "device_label": known.device_label or known.session.group_id,
        "session_label": known.session.label or known.session.id,
        "device": event.device_id,
        "session": event.session_id,
        "id": event.id,
        **({"revision": known.csv_revision} if event.type == events.SESSION_CSV_READY else {}),
    }


def is_history(session: DataSession, start_from: float) -> bool:
    """True when the session was over before the time from which a first start reports."""
    # One that was recorded offline has an old `start` and `end`, but its record was created later.
    if session.end is None or session.end > start_from:
        return False
    return session.created_at is None or session.created_at <= start_from


def observe(
    known: KnownSession | None,
    seen: DataSession,
    *,
    device_label: str | None,
    start_from: float,
    now: float,
    cloud_now: float | None = None,
) -> Observation | None:
    """What is new in `seen`. None where there is nothing to keep: history, or a row older than what is known.

    `session.ended` and `session.csv_ready` are not emitted here but by a fetch, after the points before them.
    """
    if known is None:
        return None if is_history(seen, start_from) else _started(seen, device_label, now)
    before = known.session
    # An `updated_at` of next year, which a wrong clock may have written, must not make every other row an older one.
    newest_believable = (now if cloud_now is None else cloud_now) + BELIEVABLE_AHEAD
    if seen.updated_at is not None and seen.updated_at < (before.updated_at or 0.0) <= newest_believable:
        return None
    moved = seen.group_id != before.group_id
    label = device_label if device_label is not None or moved else known.device_label
    over = known.over_when_found and seen.end is not None
    after = msgspec.structs.replace(known, session=seen, device_label=label, over_when_found=over)
    emitted: list[Event] = []
    if changed := [name for name in ("label", "person_id", "group_id") if getattr(before, name) != getattr(seen, name)]:
        after = msgspec.structs.replace(after, updates=known.updates + 1)
        names = [{"person_id": "person", "group_id": "group"}.get(name, name) for name in changed]
        facts = (seen.updated_at, [[name, getattr(seen, name)] for name in changed], after.updates)
        emitted.append(_changed(events.SESSION_UPDATED, after, now=now, facts=facts, changed=names))
    if seen.end is None and (known.end_emitted is not None or known.removed):
        after = msgspec.structs.replace(
            after, reopenings=known.reopenings + 1, end_emitted=None, end_seen_at=None, csv_due=False
        )
        emitted.append(_changed(events.SESSION_REOPENED, after, now=now, facts=(seen.start, after.reopenings)))
    after = msgspec.structs.replace(after, removed=False)
    after = _with_fetch(known, after, now)
    return Observation(after, tuple(emitted)) if emitted or after != known else None


def contradicts(known: KnownSession, seen: DataSession) -> bool:
    """True where a row differs from what is known without a newer `updated_at`, or takes an end back."""
    # It may be a stale answer of a replica, or a change within the second: the session has to be requested once more.
    before = known.session
    if known.removed or _emitted_facts(seen) == _emitted_facts(before):
        return False
    reopened = before.end is not None and seen.end is None
    return reopened or seen.updated_at == before.updated_at


def is_doubtful(known: KnownSession | None, seen: Sequence[DataSession]) -> bool:
    """True where rows of one session differ, but for counters, or where one of them contradicts what is known."""
    versions = {(one.updated_at, _emitted_facts(one)) for one in seen}
    return len(versions) > 1 or (known is not None and any(contradicts(known, one) for one in seen))


def _emitted_facts(session: DataSession) -> tuple[object, ...]:
    return (session.state, session.end, session.label, session.person_id, session.group_id)


def is_removed(denied_at: Sequence[float]) -> bool:
    """True when the cloud denied a session (404 or 410) at so many times (s, ascending), in a row and by its id."""
    # During maintenance a cloud may deny what it has, for a while; and that a list lacks a session says nothing.
    return len(denied_at) >= DENIALS and denied_at[-1] - denied_at[0] >= DENIED_FOR


def observe_absence(known: KnownSession, *, now: float) -> Observation | None:
    """The cloud itself said that this session cannot be seen; merely not having seen it is not enough."""
    if known.removed:
        return None
    after = msgspec.structs.replace(known, removed=True, removals=known.removals + 1, fetch_at=None, csv_due=False)
    facts = (known.session.updated_at, after.removals)
    return Observation(after, (_changed(events.SESSION_REMOVED, after, now=now, facts=facts),))


def _started(seen: DataSession, device_label: str | None, now: float) -> Observation:
    over = seen.end is not None
    known = KnownSession(
        session=seen,
        device_label=device_label,
        over_when_found=over,
        end_seen_at=now if over else None,
        csv_due=seen.state == "ingested",
        fetch_at=now,
        fetched_at=now,
    )
    return Observation(
        known,
        (session_event(events.SESSION_STARTED, known, time=seen.start, now=now, facts=(seen.start,)),),
    )


def _changed(event_type: str, after: KnownSession, *, now: float, facts: tuple[object, ...], **data: Any) -> Event:
    """An event about a change of which the cloud has no other time than the row's."""
    time = after.session.updated_at if after.session.updated_at is not None else now
    return session_event(event_type, after, time=time, now=now, facts=facts, **data)


def _with_fetch(before: KnownSession, after: KnownSession, now: float) -> KnownSession:
    """Has it fetched at once where the row says that there is something to read or to emit."""
    was, seen = before.session, after.session
    changes: dict[str, Any] = {}
    if seen.end is None:
        changes["end_seen_at"] = None
    elif after.end_emitted is None and after.end_seen_at is None:
        changes["end_seen_at"] = now
    # `updated_at` moves for minutes after the end, while points are still ingested: the CSV, and the reading of all
    # windows before it, wait for the end of that, and come again where the row counts more later.
    newly_ingested = seen.state == "ingested" and (was.state != "ingested" or before.removed)
    grown = after.csv_facts is not None and after.facts_for_csv != after.csv_facts
    if seen.state == "ingested" and not after.csv_due and (newly_ingested or grown):
        changes["csv_due"] = True
        changes["reading"] = after.reading + 1
    elif seen.state != "ingested" and after.csv_due:
        changes["csv_due"] = False
    moved = seen.end != was.end or seen.state != was.state or seen.datapoint_count != was.datapoint_count
    if changes.get("csv_due") or before.removed or (moved and (seen.end is not None or after.fetch_at is None)):
        changes["fetch_at"] = now
    return msgspec.structs.replace(after, **changes)
