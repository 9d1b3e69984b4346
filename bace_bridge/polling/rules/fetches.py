"""A fetch of datapoints: how they are requested, what the pages of an answer hold, and what follows from them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import msgspec

from bace_bridge.events import types
from bace_bridge.events.types import Event
from bace_bridge.polling.rules.changes import Changes, LatestSeen, Page, WindowRead
from bace_bridge.polling.rules.datapoints import (
    BYTES_PER_EVENT,
    Datapoint,
    Datatype,
    Emitted,
    Series,
    are_samples,
    compare,
    datapoint_events,
    view,
)
from bace_bridge.polling.rules.sessions import END_PATIENCE, DataSession, KnownSession, session_event
from bace_bridge.polling.rules.summaries import Summary
from bace_bridge.polling.rules.windows import LATEST_FILTER, NO_SUCH_SESSION, Window, WindowState, halves, is_settled
from bace_bridge.retry import backoff

Params = tuple[tuple[str, str], ...]


class PointQuery(NamedTuple):
    """The datapoints of a data session, or of several, in [start, end)."""

    sessions: str | tuple[str, ...]
    start: int = -LATEST_FILTER
    end: int = LATEST_FILTER
    datatypes: tuple[int, ...] = ()
    source_device: str | None = None

    @property
    def as_canary(self) -> "PointQuery":
        """The same for no data session: a cloud that honours the filter shows nothing."""
        return self._replace(sessions=NO_SUCH_SESSION if isinstance(self.sessions, str) else (NO_SUCH_SESSION,))

    def divided(self, at: int) -> list["PointQuery"]:
        """The same for some of the datatypes each: those from index `at` on, and those before it."""
        return [self._replace(datatypes=some) for some in (self.datatypes[at:], self.datatypes[:at])]

    @property
    def params(self) -> Params:
        # Sorted, since the pages of an answer without an order need not be cut from the same one. Short names and few
        # of them: a server may repeat all this five times in a `Link` header.
        session = "filter[id_data_session]"
        sessions = [(session, self.sessions)]
        if not isinstance(self.sessions, str):
            sessions = [(f"{session}[in][]", one) for one in self.sessions]
        name = "filter[datatype]" if len(self.datatypes) == 1 else "filter[datatype][in][]"
        wanted = (
            *sessions,
            ("filter[timestamp_seconds][gte]", max(-LATEST_FILTER, min(self.start, LATEST_FILTER))),
            ("filter[timestamp_seconds][lt]", max(-LATEST_FILTER, min(self.end, LATEST_FILTER))),
            *((name, datatype) for datatype in self.datatypes),
            ("filter[source_device]", self.source_device),
            ("sort", "timestamp_seconds"),
        )
        return tuple((name, str(value)) for name, value in wanted if value is not None)


def fit_together(pages: Sequence[Page[Datapoint]], *, one_series: bool) -> bool:
    """True where no row can be missing from the pages of an answer."""
    # A row that is on two pages stands for another one that is on none: the order changed between them. Only where the
    # query was for one series, whose rows are sorted all the same, it is one that the cloud has twice. The total says
    # nothing, for it counts those.
    if not pages or len(pages) < (pages[-1].page_count or 1):
        return False
    keys = [{(row.series_id, row.timestamp) for row in page.items} for page in pages]
    if sum(map(len, keys)) == len(set().union(*keys)):
        return (pages[-1].total or 0) >= (pages[0].total or 0)
    rows = [row for page in pages for row in page.items]
    ordered = all(one.timestamp <= other.timestamp for one, other in pairwise(rows))
    return one_series and ordered and len({row.series_id for row in rows}) == 1


def within(rows: Iterable[Datapoint], session: DataSession) -> tuple[Datapoint, ...]:
    """The rows that can only be the session's, of a cloud that serves those of all sessions."""
    end = float("inf") if session.end is None else session.end
    return tuple(row for row in rows if row.group_id == session.group_id and session.start <= row.timestamp <= end)


def shown_by_day(
    points: Sequence[Datapoint], windows: Iterable[Window], probe: Mapping[int, int]
) -> dict[Window, tuple[Datapoint, ...]]:
    """What an answer for a day surely shows of windows: lone samples, as many as a probe found there."""
    shown: dict[Window, tuple[Datapoint, ...]] = {}
    for window in windows:
        rows = tuple(one for one in points if window.start <= one.timestamp < window.end)
        if all(one.count == 1 for one in rows) and len(rows) >= max(1, probe.get(window.start, 1)):
            shown[window] = rows
    return shown


SLOWEST_LATE_FETCH = 600.0
"""Seconds: an ended session whose ingestion does not finish is fetched ever more rarely, down to this."""

SLOWEST_FETCH = 21_600.0
"""Seconds: a session of which something could not be read is tried ever more rarely, down to this."""

MOST_FAILED_FETCHES = 5
"""After so many failed fetches a session's CSV is ready without the datapoints that cannot be had; it is tried on."""

MOST_FAILURES = 3
"""After so many failed fetches what the cloud breaks on is halved, and left out where it cannot be: a 500 may be a
hiccup, but halves may be served in another resolution, and they stay."""

INTERVALS_CURRENT = 3
"""Fetch intervals for which what was read last is current."""

MOST_SHORT_READS = 2
SHORTLY = 90.0
"""Seconds since the last change of a session in which a replica may still be behind."""

Outcome = Literal["short", "read", "more", "failed", "forbidden", "unavailable"]
"""How a fetch went: every window was read, but less came than there is (`short`); every window was read; there is more
to read at once; the cloud refused or broke on this session while it answered others; the account may not read any
datapoints; the cloud is away, which says nothing of this session."""


def absorb(
    known: KnownSession,
    window: Window,
    served: Sequence[Datapoint],
    *,
    before: WindowState | None,
    emitted: Emitted,
    datatypes: Mapping[int, Datatype],
    in_part: bool = False,
    complete: bool = True,
    every_series: bool = True,
    pages: int = 1,
    now: float,
    cloud_now: float,
) -> Changes:
    """The changes after a window was `served`. The same points again change nothing but its state.

    `in_part` says that it was read on from where it ended; without `complete` there may be more of it, and without
    `every_series` more series. `now` is when the points were observed; whether the window is settled is judged by the
    cloud's time.
    """
    # `samples` is what the cloud serves, not what was emitted: a point vanishes there when a bucket takes it in.
    after, new = compare(emitted, served, complete=complete and not in_part, every_series=every_series)
    state = WindowState(*window, known.reading, samples=sum(one.count for one in served))
    newest = max((one.timestamp for one in served), default=None)
    if in_part and before is not None:
        added = sum(one.count for one in new if not one.revision)
        raw_until = newest or before.raw_until if all(one.count == 1 for one in served) else None
        state = msgspec.structs.replace(state, samples=before.samples + added, raw_until=raw_until)
    else:
        settled = is_settled(window, known, now=cloud_now)
        raw_until = newest if pages > 1 and are_samples(served) else None
        state = msgspec.structs.replace(state, settled=settled, raw_until=raw_until)
    group_id, session_id, encode = known.session.group_id, known.session.id, msgspec.json.encode
    latest = tuple(
        LatestSeen(group_id, one.source_device, one.datatype, one.timestamp, encode(view(one, datatypes)), session_id)
        for one in {one.series_id: one for one in new}.values()
    )
    events_of_points = tuple(datapoint_events(known, new, datatypes, now=now))
    read = WindowRead(session_id, state, after if after != emitted else None)
    series = tuple({Series(one.series_id, one.source_device, one.datatype) for one in served})
    return Changes(windows=(read,), latest=latest, series=series, events=events_of_points)


def split(known: KnownSession, parent: Window, emitted: Emitted) -> Changes:
    """Has a window read in halves from now on; what was emitted of it belongs to its halves, which are due."""
    session_id = known.session.id
    reads = [WindowRead(session_id, WindowState(*parent, known.reading, settled=True, split=True), {})]
    for part in halves(parent):
        share = {
            series: {stamp: point for stamp, point in points.items() if part.start <= stamp < part.end}
            for series, points in emitted.items()
        }
        reads.append(WindowRead(session_id, WindowState(*part, known.reading - 1), share))
    return Changes(windows=tuple(reads))


def left_out(known: KnownSession, before: WindowState | None, window: Window) -> Changes:
    """A window that cannot be read, so that the session's other windows can go on; how often that was so is counted."""
    before = before or WindowState(*window, known.reading)
    state = msgspec.structs.replace(before, reading=known.reading, settled=True, failures=before.failures + 1)
    return Changes(windows=(WindowRead(known.session.id, state, None),))


def judge(fresh: KnownSession, seen: DataSession, *, reading: int, samples: int | None, cloud_now: float) -> Outcome:
    """What it is worth that everything was read of what was `seen` of a session; `fresh` is what is known by now.

    `samples` is how many were found, None where windows were left out. A session that was ingested a moment ago and has
    more may be that of a replica that is behind: it is read once more, a few times, so a cloud that counts in another
    way holds up no CSV for long.
    """
    session = fresh.session
    count, changed = session.datapoint_count, session.updated_at
    if (fresh.reading, session.end) != (reading, seen.end) or (fresh.csv_due and count != seen.datapoint_count):
        return "more"
    lately = changed is not None and cloud_now - changed < SHORTLY
    missing = count is not None and samples is not None and samples < count
    return "short" if fresh.csv_due and missing and lately and fresh.short_reads < MOST_SHORT_READS else "read"


def end_is_due(known: KnownSession, *, read: bool, failed: bool, now: float) -> bool:
    """`session.ended` follows the datapoints before it, but does not wait for a slow or broken cloud."""
    if known.session.end is None or known.end_emitted is not None or known.removed:
        return False
    waited = now - (known.end_seen_at if known.end_seen_at is not None else now)
    return read or failed or (not known.over_when_found and waited >= END_PATIENCE)


class Conclusion(NamedTuple):
    """What follows from a fetch; `summary` is the one of the last event, where there is one."""

    known: KnownSession
    events: tuple[Event, ...] = ()
    summary: Summary | None = None


def conclude(
    known: KnownSession,
    outcome: Outcome | None,
    *,
    summary: Summary,
    csv_url: str,
    interval: float,
    now: float,
    left_out: bool = False,
) -> Conclusion:
    """What follows from a fetch; `outcome` is None in the middle of one. `interval` is in seconds, up to the next one.

    Every event has the `summary`. `left_out` says that the cloud broke on some windows so often that the others go on
    without them.
    """
    emitted: list[tuple[Event, Summary]] = []
    failed = outcome in {"failed", "forbidden"}
    gave_up = outcome == "forbidden" or (failed and known.failed_fetches + 1 >= MOST_FAILED_FETCHES)
    read = outcome == "read" or gave_up
    if end_is_due(known, read=read or outcome == "short", failed=failed, now=now):
        end = known.session.end
        assert end is not None
        known = msgspec.structs.replace(known, end_emitted=end)
        facts = (end, known.reopenings)
        emitted.append(_summarised(types.SESSION_ENDED, known, summary, time=end, now=now, facts=facts))
    ingested = known.session.state == "ingested" and not known.removed
    if (known.csv_due or known.unread) and read and ingested and known.end_emitted is not None:
        known, more = _csv_ready(known, summary, csv_url, now)
        emitted.extend(more)
    if outcome is not None:
        still_unread = known.unread and outcome in {"failed", "unavailable"}
        unread = ingested and (gave_up or still_unread or (outcome == "read" and left_out))
        known = msgspec.structs.replace(known, unread=unread, **_counted(known, outcome, now))
        known = msgspec.structs.replace(known, fetch_at=_next_fetch(known, outcome, interval, now))
    return Conclusion(known, tuple(event for event, _ in emitted), emitted[-1][1] if emitted else None)


def _summarised(event_type: str, known: KnownSession, summary: Summary, **given: Any) -> tuple[Event, Summary]:
    """An event with the summary, or with as much of it as leaves it below 64 KiB."""
    while True:
        event = session_event(event_type, known, summary=summary, **given)
        if len(event.data) <= BYTES_PER_EVENT or not summary.series:
            return event, summary
        summary = summary.shortened(len(summary.series) * BYTES_PER_EVENT // len(event.data))


def _counted(known: KnownSession, outcome: Outcome, now: float) -> dict[str, Any]:
    shorter = {"short_reads": known.short_reads + 1, "reading": known.reading + 1}
    counted: dict[Outcome, dict[str, Any]] = {
        "failed": {"failed_fetches": known.failed_fetches + 1},
        "read": {"failed_fetches": 0, "short_reads": 0, "fetched_at": now},
        "short": {"failed_fetches": 0, "fetched_at": now, **shorter},
        "more": {"failed_fetches": 0},
        "forbidden": {"fetched_at": None},
        "unavailable": {},
    }
    return counted[outcome]


def is_current(known: KnownSession, *, interval: float, now: float) -> bool:
    """False makes the device unavailable: no datapoints of its active data session came for three fetch intervals."""
    if known.session.end is not None or known.removed or known.fetched_at is None:
        return True
    return 0 <= now - known.fetched_at < INTERVALS_CURRENT * interval


def _csv_ready(
    known: KnownSession, summary: Summary, csv_url: str, now: float
) -> tuple[KnownSession, list[tuple[Event, Summary]]]:
    session, facts = known.session, known.facts_for_csv
    done: dict[str, Any] = {"csv_due": False, "points_since_csv": False, "csv_facts": facts}
    if known.csv_revision is not None and facts == known.csv_facts and not known.points_since_csv:
        return msgspec.structs.replace(known, **done), []
    revision = 0 if known.csv_revision is None else known.csv_revision + 1
    known = msgspec.structs.replace(known, csv_revision=revision, **done)
    at = next((one for one in (session.updated_at, session.end) if one is not None), now)
    csv = {"url": csv_url, "revision": revision, "datapoint_count": session.datapoint_count}
    facts_of_event = (revision, *facts)
    return known, [
        _summarised(types.SESSION_CSV_READY, known, summary, time=at, now=now, facts=facts_of_event, csv=csv)
    ]


def _next_fetch(known: KnownSession, outcome: Outcome, interval: float, now: float) -> float | None:
    session = known.session
    if known.removed:
        return None
    if outcome == "more":
        return now
    if outcome == "failed" and (session.state != "ingested" or known.csv_due):
        return now + max(interval, backoff(known.failed_fetches, jitter=0.0))
    if outcome in {"unavailable", "short"} or session.end is None:
        return now + interval
    changed = max(session.start, session.end, session.created_at or 0.0, session.updated_at or 0.0)
    if known.unread:
        return now + min(max(SLOWEST_LATE_FETCH, (now - changed) / 20), SLOWEST_FETCH)
    wait = min(max(interval, (now - session.end) / 20), SLOWEST_LATE_FETCH)
    return now + wait if session.state == "ended" else None
