"""Datapoints: which are new or changed, their revisions, and their events."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from bace_bridge.events import types
from bace_bridge.events.types import Event
from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.sessions import KnownSession, session_event
from bace_bridge.polling.rules.windows import SPAN, summed

POINTS_PER_EVENT = 200
BYTES_PER_EVENT = 60 * 1024
"""Leaves room for the envelope below 64 KiB."""


class Datapoint(msgspec.Struct, frozen=True, gc=False):
    """A downsampled datapoint. `timestamp` is in epoch seconds; `count` 1 means a raw sample.

    A series is the combination of group, source device and datatype. `group_id` is the row's, where it has one.
    `revision` is how often other values were emitted of this (series, timestamp).
    """

    series_id: str
    source_device: str
    datatype: int
    timestamp: float
    min: float | None
    max: float | None
    avg: float | None
    count: int
    group_id: str | None = None
    revision: int = 0

    @property
    def values(self) -> tuple[float | None, float | None, float | None, int]:
        return (self.min, self.max, self.avg, self.count)


class Series(NamedTuple):
    """What a series is of; its id stands for that, and for a device."""

    id: str
    source_device: str
    datatype: int


class EmittedPoint(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The values of a (series, timestamp) as they were emitted last.

    It is `gone` where the cloud does not serve it any more: a bucket took it in, or it was deleted.
    """

    min: float | None
    max: float | None
    avg: float | None
    count: int
    revision: int
    gone: bool = False


Emitted = dict[str, dict[float, EmittedPoint]]
"""What was emitted of a window: series -> timestamp -> values."""


class Datatype(msgspec.Struct, frozen=True):
    """What a datatype's numbers mean to people."""

    name: str | None = None
    unit: str | None = None


class DatapointView(msgspec.Struct, frozen=True, gc=False):
    """A datapoint as the contract shows it."""

    series_id: str
    source_device: str
    datatype: int
    name: str | None
    unit: str | None
    timestamp: str
    min: float | None
    max: float | None
    avg: float | None
    count: int
    revision: int


def as_set(rows: Iterable[Datapoint]) -> tuple[Datapoint, ...]:
    """One row for each (series, timestamp). Of two with different values it is always the same one."""
    found: dict[tuple[str, float], Datapoint] = {}
    for row in rows:
        other = found.setdefault((row.series_id, row.timestamp), row)
        if other is not row and _rank(row) > _rank(other):
            found[row.series_id, row.timestamp] = row
    return tuple(found.values())


def _rank(row: Datapoint) -> tuple[object, ...]:
    """The larger count has seen more; the rest is an order, no more."""
    values = [(value is not None, value or 0.0) for value in (row.max, row.avg, row.min)]
    return (row.count, *values, row.datatype, row.source_device)


def compare(
    emitted: Emitted, served: Sequence[Datapoint], *, complete: bool = False, every_series: bool = True
) -> tuple[Emitted, list[Datapoint]]:
    """What has been emitted with `served`, and what of it is new or changed, oldest first.

    `complete` says that these are all points that there are, of `every_series` or of those that are shown: the others
    are gone.
    """
    after = {series: dict(points) for series, points in emitted.items()}
    changed: list[Datapoint] = []
    for point in served:
        series = after.setdefault(point.series_id, {})
        before = series.get(point.timestamp)
        # The last bucket grows while a session runs: the same (series, timestamp) comes again with other values.
        if before is not None and before == EmittedPoint(*point.values, before.revision, before.gone):
            if before.gone:
                series[point.timestamp] = EmittedPoint(*point.values, before.revision)
            continue
        revision = 0 if before is None else before.revision + 1
        series[point.timestamp] = EmittedPoint(*point.values, revision)
        changed.append(msgspec.structs.replace(point, revision=revision) if revision else point)
    if complete:
        shown = {(one.series_id, one.timestamp) for one in served}
        there = after if every_series else {one.series_id for one in served}
        for identifier in there:
            points = after[identifier]
            missing = [at for at, one in points.items() if not one.gone and (identifier, at) not in shown]
            points.update({at: msgspec.structs.replace(points[at], gone=True) for at in missing})
    changed.sort(key=lambda one: one.timestamp)
    return after, changed


def is_sample(point: Datapoint) -> bool:
    """True where it can be no bucket, for these begin on full minutes."""
    return point.count == 1 and bool(point.timestamp % 60)


def are_raw(points: Sequence[Datapoint]) -> bool:
    """False where the points may be aggregates: also a bucket of one sample counts 1, at the time that it begins."""
    return not points or (all(one.count == 1 for one in points) and any(map(is_sample, points)))


def are_samples(points: Sequence[Datapoint]) -> bool:
    """True where two points of a series lie in one minute: no bucket is so short, so they stay at any interval."""
    minutes = Counter((one.series_id, one.timestamp // 60) for one in points)
    return any(many > 1 for many in minutes.values()) and all(one.count == 1 for one in points)


def samples_per_hour(points: Iterable[Datapoint]) -> dict[int, int]:
    """By the beginning of the hour."""
    hours = summed(((point.timestamp, point.count) for point in points), SPAN)
    return {hour * SPAN: many for hour, many in hours.items()}


def datapoint_events(
    known: KnownSession, changed: Sequence[Datapoint], datatypes: Mapping[int, Datatype], *, now: float
) -> list[Event]:
    """Events of at most 200 datapoints, each below 64 KiB."""
    if len(changed) > POINTS_PER_EVENT:
        parts = (changed[first : first + POINTS_PER_EVENT] for first in range(0, len(changed), POINTS_PER_EVENT))
        return [event for part in parts for event in datapoint_events(known, part, datatypes, now=now)]
    if not changed:
        return []
    # What the event's id is made of is everything that it says: the same points again are the same event.
    facts = (
        [(one.series_id, one.source_device, one.datatype, one.timestamp, *one.values, one.revision) for one in changed],
    )
    views = [view(one, datatypes) for one in changed]
    at = changed[-1].timestamp
    event = session_event(types.SESSION_DATAPOINTS, known, time=at, now=now, facts=facts, datapoints=views)
    if len(event.data) <= BYTES_PER_EVENT or len(changed) == 1:
        return [event]
    middle = len(changed) // 2
    halves = (changed[:middle], changed[middle:])
    return [event for half in halves for event in datapoint_events(known, half, datatypes, now=now)]


def view(point: Datapoint, datatypes: Mapping[int, Datatype]) -> DatapointView:
    meaning = datatypes.get(point.datatype) or Datatype()
    identity = (point.series_id, point.source_device, point.datatype, meaning.name, meaning.unit)
    return DatapointView(*identity, iso_utc(point.timestamp), *point.values, point.revision)
