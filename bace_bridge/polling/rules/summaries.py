"""The summary of a data session: what all datapoints add up to that were published of it and are still there."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import fsum
from typing import Annotated

import msgspec

from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.datapoints import Datatype, Emitted, EmittedPoint, Series

MOST_SERIES = 100
"""Series in a summary; of the others it says how many there are."""

PARTS = 256
"""Windows of a series that are added up together: few enough for the memory, and a rounding error for each."""

SCALE = 2.0**-64
"""Keeps the sum of products from overflowing; a power of two loses no digit of an average above 1e-280."""


class SeriesSummary(msgspec.Struct, frozen=True):
    """A series of a data session. `count` is in samples, `avg` weighted by it; `first` and `last` are averages, too."""

    source_device: str
    datatype: int
    name: str | None
    unit: str | None
    min: float | None
    max: float | None
    avg: float | None
    count: int
    first: float | None
    last: float | None
    first_at: str
    last_at: str


class Summary(msgspec.Struct, frozen=True):
    """The `summary` object of the contract. `datapoints` counts points, not samples.

    `longest_gap_seconds` is between consecutive timestamps of all series together: null with fewer than two of them.
    """

    datapoints: int
    first_at: str | None
    last_at: str | None
    longest_gap_seconds: float | None
    series: Annotated[tuple[SeriesSummary, ...], msgspec.Meta(max_length=MOST_SERIES)]
    series_omitted: int | msgspec.UnsetType = msgspec.UNSET

    def shortened(self, most: int) -> "Summary":
        """With so many of its series at most."""
        omitted = max(0, len(self.series) - most) + (self.series_omitted or 0)
        return msgspec.structs.replace(self, series=self.series[:most], series_omitted=omitted or msgspec.UNSET)


EMPTY = Summary(0, None, None, None, ())


class _Part(msgspec.Struct, frozen=True, gc=False):
    """Points of a series that were added up. `weighted` is the sum of average times `weight`, scaled.

    `least` and `most` are the bounds of these averages.
    """

    points: int
    count: int
    low: float | None
    high: float | None
    weighted: float
    weight: int
    least: float | None
    most: float | None
    first_at: float
    first: float | None
    last_at: float
    last: float | None


class Tally:
    """Adds up what was emitted of a data session; its windows come in the order of time, and overlap nowhere."""

    def __init__(self) -> None:
        self._parts: dict[str, list[_Part]] = defaultdict(list)
        self._first_at: float | None = None
        self._last_at: float | None = None
        self._gap: float | None = None

    @property
    def series(self) -> list[str]:
        """The ids of the series that were found."""
        return list(self._parts)

    def add(self, emitted: Emitted) -> None:
        """What was emitted of the next window."""
        there = {
            series: found
            for series, points in emitted.items()
            if (found := {at: one for at, one in points.items() if not one.gone})
        }
        for series, found in there.items():
            parts = self._parts[series]
            parts.append(_part(found))
            if len(parts) >= PARTS:
                parts[:] = [_combined(parts)]
        stamps = sorted(set[float]().union(*there.values()))
        if stamps:
            before = [] if self._last_at is None else [self._last_at]
            gaps = [later - earlier for earlier, later in pairwise(before + stamps)]
            self._gap = max(gaps if self._gap is None else [self._gap, *gaps], default=None)
            self._first_at = stamps[0] if self._first_at is None else self._first_at
            self._last_at = stamps[-1]

    def summary(self, series: Mapping[str, Series], datatypes: Mapping[int, Datatype]) -> Summary:
        """What was added; `series` says what the ids stand for. One of which that is not known counts as omitted."""
        known: dict[tuple[str, int], list[_Part]] = defaultdict(list)
        for one, parts in self._parts.items():
            if one in series:
                # A session that was moved to another device may have two ids of what people know as one series.
                known[series[one].source_device, series[one].datatype] += parts
        found = Summary(
            datapoints=sum(part.points for parts in self._parts.values() for part in parts),
            first_at=None if self._first_at is None else iso_utc(self._first_at),
            last_at=None if self._last_at is None else iso_utc(self._last_at),
            # The difference of two timestamps has digits that neither of them has.
            longest_gap_seconds=None if self._gap is None else round(self._gap, 6),
            series=tuple(
                _series(*key, datatypes.get(key[1]) or Datatype(), _combined(known[key])) for key in sorted(known)
            ),
            series_omitted=sum(one not in series for one in self._parts),
        )
        return found.shortened(MOST_SERIES)


def _part(points: Mapping[float, EmittedPoint]) -> _Part:
    every = points.values()
    first_at, last_at = min(points), max(points)
    weights = [(one.avg, one.count) for one in every if one.avg is not None and one.count > 0]
    return _Part(
        points=len(points),
        count=sum(one.count for one in every),
        low=min((one.min for one in every if one.min is not None), default=None),
        high=max((one.max for one in every if one.max is not None), default=None),
        weighted=fsum(average * SCALE * count for average, count in weights),
        weight=sum(count for _, count in weights),
        least=min((average for average, _ in weights), default=None),
        most=max((average for average, _ in weights), default=None),
        first_at=first_at,
        first=points[first_at].avg,
        last_at=last_at,
        last=points[last_at].avg,
    )


def _combined(parts: Sequence[_Part]) -> _Part:
    first, last = min(parts, key=lambda one: one.first_at), max(parts, key=lambda one: one.last_at)
    return _Part(
        points=sum(one.points for one in parts),
        count=sum(one.count for one in parts),
        low=min(_values(one.low for one in parts), default=None),
        high=max(_values(one.high for one in parts), default=None),
        weighted=fsum(one.weighted for one in parts),
        weight=sum(one.weight for one in parts),
        least=min(_values(one.least for one in parts), default=None),
        most=max(_values(one.most for one in parts), default=None),
        first_at=first.first_at,
        first=first.first,
        last_at=last.last_at,
        last=last.last,
    )


def _average(part: _Part) -> float | None:
    if part.least is None or part.most is None:
        return None
    # The mean of three times 0.1 is more than 0.1 otherwise, and more than the maximum of the series.
    return min(max(part.weighted / part.weight / SCALE, part.least), part.most)


def _values(found: Iterable[float | None]) -> list[float]:
    return [one for one in found if one is not None]


def _series(source_device: str, datatype: int, meaning: Datatype, part: _Part) -> SeriesSummary:
    return SeriesSummary(
        source_device,
        datatype,
        meaning.name,
        meaning.unit,
        min=part.low,
        max=part.high,
        avg=_average(part),
        count=part.count,
        first=part.first,
        last=part.last,
        first_at=iso_utc(part.first_at),
        last_at=iso_utc(part.last_at),
    )
