"""What `data-downsampled` answers: which rows, and how fine."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import merge
from math import inf
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple
from zlib import crc32

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Series, Session
from bace_bridge.simulator.query import (
    All,
    Bounds,
    Compare,
    Condition,
    FilterRefused,
    Kind,
    Order,
    bounds,
    comparisons,
    holds,
)
from bace_bridge.simulator.samples import buckets
from bace_bridge.simulator.shelf import sort_key

MAX_SERIES = 100
FIELDS: Mapping[str, Kind] = {
    "id_data_session": Kind.UUID,
    "id_container_data_latest": Kind.UUID,
    "id_group": Kind.UUID,
    "datatype": Kind.INTEGER,
    "source_device": Kind.UUID,
    "timestamp_seconds": Kind.NUMBER,
    "min_val": Kind.NUMBER,
    "max_val": Kind.NUMBER,
    "avg_val": Kind.NUMBER,
    "count_val": Kind.INTEGER,
}
SORTABLE = tuple(field for field in FIELDS if field != "id_data_session")
DEFAULT_ORDER = Order("timestamp_seconds")
_OF_SERIES = frozenset(("id_container_data_latest", "id_group", "datatype", "source_device"))


class Row(NamedTuple):
    timestamp_seconds: float
    series: Series
    min_val: float
    max_val: float
    avg_val: float
    count_val: int


def reader(field: str) -> Callable[[Any], Any]:
    return attrgetter(f"series.{field}" if field in _OF_SERIES else field)


@dataclass(frozen=True, slots=True)
class Asked:
    """A filter on data-downsampled, taken apart into the questions that are answered in turn."""

    sessions: tuple[Compare, ...]
    series: tuple[Compare, ...]
    rows: tuple[Condition, ...]
    times: Bounds

    def named_sessions(self) -> tuple[str, ...] | None:
        """The only sessions that it asks for, if it names them."""
        for part in self.sessions:
            if part.operator in ("eq", "in"):
                values = part.value if isinstance(part.value, tuple) else (part.value,)
                return tuple(value for value in values if isinstance(value, str))
        return None


def asked(condition: All) -> Asked:
    """Raises FilterRefused: a data session is named inside of and, or, not, where it cannot be taken out."""
    sessions: list[Compare] = []
    series: list[Compare] = []
    rows: list[Condition] = []
    for part in condition.parts:
        if isinstance(part, Compare) and part.field == "id_data_session":
            sessions.append(part)
        elif isinstance(part, Compare) and part.field in _OF_SERIES:
            series.append(part)
        elif any(one.field == "id_data_session" for one in comparisons(part)):
            raise FilterRefused("id_data_session cannot be filtered within and, or, not.")
        else:
            rows.append(part)
    return Asked(tuple(sessions), tuple(series), tuple(rows), bounds(condition, "timestamp_seconds"))


def rows(cloud: SimulatedCloud, question: Asked, order: Order | None) -> list[Row]:
    """The rows that answer it, in order.

    Raises:
        FilterRefused: they would be of more than 100 series.
    """
    named = question.named_sessions()
    candidates: Iterable[str] = cloud.samples.by_session if named is None else dict.fromkeys(named)
    is_asked = holds(All(question.sessions), lambda _field: lambda session: session)
    sessions = [session for session in candidates if is_asked(session)]
    seconds = width(cloud, question)
    # A row counts by its own time stamp, so the bucket that begins at the lower bound must be whole.
    lower = question.times.lower // seconds * seconds if seconds and question.times.lower > -inf else None
    upper = question.times.upper + seconds
    found: list[Row] = []
    for one in _series(cloud, question, sessions):
        tracks = [
            track.between(question.times.lower if lower is None else lower, upper)
            for session in sessions
            if (track := cloud.samples.of(session).get(one.id_container_data_latest))
        ]
        # A series in several sessions is one series: its samples share buckets, as those of one session do.
        pairs = [*merge(*(zip(*track, strict=True) for track in tracks))]
        times, values = [at for at, _ in pairs], [value for _, value in pairs]
        made = buckets(times, values, seconds, lone_at_start=cloud.quirks.bucket_start)
        found.extend(Row(at, one, low, high, average, count) for at, low, high, average, count in made)
    test = holds(All(question.rows), reader) if question.rows else None
    kept = found if test is None else [row for row in found if test(row)]
    if order is not None:
        # Series come in the order of their ids, and a stable sort keeps that among equal times.
        kept.sort(key=itemgetter(0))
        if order != DEFAULT_ORDER:
            kept.sort(key=sort_key(order, reader), reverse=order.descending)
    return kept


def _series(cloud: SimulatedCloud, question: Asked, sessions: list[str]) -> list[Series]:
    test = holds(All(question.series), attrgetter)
    measured = sorted({series for session in sessions for series in cloud.samples.of(session)})
    found = [series for identifier in measured if test(series := cloud.series[identifier])]
    if len(found) > MAX_SERIES and not cloud.quirks.series_truncated:
        raise FilterRefused(f"At most {MAX_SERIES} data series can be requested, this is {len(found)}.")
    return found[:MAX_SERIES]


def width(cloud: SimulatedCloud, question: Asked) -> float:
    """The seconds in one row's bucket; 0: raw samples."""
    times, interval = question.times, None
    if times.lower > -inf:  # without an upper bound the interval reaches until now
        interval = max(0.0, (cloud.clock() if times.upper == inf else times.upper) - times.lower)
    # BACE documents a row a day without an interval, and shows raw samples in its own example of that request.
    if interval is None and cloud.quirks.no_interval_raw:
        return 0.0
    if interval is not None and 0 < cloud.quirks.long_by_day < interval:
        interval = None
    return cloud.resolution.width(interval)


OTHER_VALUE = 0.5
"""By how much the average of a conflicting datapoint differs."""

_POINTS = 20
_SESSIONS = 2


def sessions(rows: Iterable[Session]) -> Iterator[Session]:
    """About each second session is followed by itself, active and with another label, but equally new."""
    # Equally new, so that a client has nothing to choose by: it must not report an end and a beginning in turn.
    for session in rows:
        yield session
        if _is_chosen(session.id_data_session, _SESSIONS):
            yield replace(session, label=f"{session.label} (copy)", end=None, is_ingestion_finished=False)


def points(rows: Iterable[Row], *, conflicting: bool) -> Iterator[Row]:
    """About each twentieth datapoint is followed by itself, or by one with other values."""
    for row in rows:
        yield row
        if _is_chosen(f"{row.series.id_container_data_latest} {row.timestamp_seconds}", _POINTS):
            low, high, average = row.min_val - 1, row.max_val + 1, row.avg_val + OTHER_VALUE
            yield row._replace(min_val=low, max_val=high, avg_val=average) if conflicting else row


def _is_chosen(name: str, one_in: int) -> bool:
    """The same rows at each request, in each process."""
    return crc32(name.encode()) % one_in == 0
