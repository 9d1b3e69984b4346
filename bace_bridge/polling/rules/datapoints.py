"""Datapoints: which are new or changed, their revisions, and the events that tell them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from bace_bridge.domain import events
from bace_bridge.domain.events import Event
from bace_bridge.domain.timestamps import iso_utc
from bace_bridge.polling.rules.sessions import KnownSession, session_event
from bace_bridge.polling.rules.windows import DAY

POINTS_PER_EVENT = 200
BYTES_PER_EVENT = 60 * 1024
"""Leaves room for the envelope below 64 KiB."""


class Datapoint(msgspec.Struct, frozen=True, gc=False):
    """A downsampled datapoint. `timestamp` is in epoch seconds; `count` 1 means a raw sample.

    A series is the combination of group, source device and datatype.
    """

    series_id: str
    source_device: str
    datatype: int
    timestamp: float
    min: float | None
    max: float | None
    avg: float | None
    count: int


class EmittedPoint(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The values of a (series, timestamp) as they were told last."""

    min: float | None
    max: float | None
    avg: float | None
    count: int
    revision: int


Emitted = dict[str, dict[float, EmittedPoint]]
"""What was told of a window: series -> timestamp -> values."""


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


class ChangedPoint(msgspec.Struct, frozen=True, gc=False):
    """A new or changed datapoint and its revision."""

    point: Datapoint
    revision: int


def tell(told: Emitted, served: Iterable[Datapoint]) -> tuple[Emitted, list[ChangedPoint]]:
    """What is new or changed in `served`, oldest first, and what has been told with it."""
    after = {series: dict(points) for series, points in told.items()}
    news: list[ChangedPoint] = []
    for point in served:
        series = after.setdefault(point.series_id, {})
        before = series.get(point.timestamp)
        if before is None:
            revision = 0
        elif (before.min, before.max, before.avg, before.count) == (
            point.min,
            point.max,
            point.avg,
            point.count,
        ):
            continue
        else:
            revision = before.revision + 1
        series[point.timestamp] = EmittedPoint(point.min, point.max, point.avg, point.count, revision)
        news.append(ChangedPoint(point, revision))
    news.sort(key=lambda one: one.point.timestamp)
    return after, news


def samples_emitted(told: Emitted) -> int:
    return sum(point.count for series in told.values() for point in series.values())


def samples_per_day(points: Iterable[Datapoint]) -> dict[int, int]:
    days: Counter[int] = Counter()
    for point in points:
        days[int(point.timestamp // DAY)] += point.count
    return dict(days)


def datapoint_events(
    known: KnownSession, news: Sequence[ChangedPoint], datatypes: Mapping[int, Datatype], *, now: float
) -> list[Event]:
    """Events of at most 200 datapoints, each below 64 KiB."""
    told: list[Event] = []
    for first in range(0, len(news), POINTS_PER_EVENT):
        told.extend(_fitting(known, news[first : first + POINTS_PER_EVENT], datatypes, now))
    return told


def _fitting(
    known: KnownSession, news: Sequence[ChangedPoint], datatypes: Mapping[int, Datatype], now: float
) -> list[Event]:
    views = [view(one, datatypes) for one in news]
    event = session_event(
        events.SESSION_DATAPOINTS,
        known,
        time=news[-1].point.timestamp,
        now=now,
        facts=([[one.point, one.revision] for one in news],),
        datapoints=views,
    )
    if len(event.data) <= BYTES_PER_EVENT or len(news) == 1:
        return [event]
    middle = len(news) // 2
    return [*_fitting(known, news[:middle], datatypes, now), *_fitting(known, news[middle:], datatypes, now)]


def view(news: ChangedPoint, datatypes: Mapping[int, Datatype]) -> DatapointView:
    point = news.point
    meaning = datatypes.get(point.datatype)
    return DatapointView(
        series_id=point.series_id,
        source_device=point.source_device,
        datatype=point.datatype,
        name=meaning.name if meaning else None,
        unit=meaning.unit if meaning else None,
        timestamp=iso_utc(point.timestamp),
        min=point.min,
        max=point.max,
        avg=point.avg,
        count=point.count,
        revision=news.revision,
    )


def newest_per_series(news: Iterable[ChangedPoint]) -> dict[str, ChangedPoint]:
    """The newest datapoint of each series; `news` is oldest first."""
    return {one.point.series_id: one for one in news}
