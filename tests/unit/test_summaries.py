import math
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.datapoints import Datapoint, Datatype, Emitted, EmittedPoint, Series, compare
from bace_bridge.polling.rules.fetches import conclude
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.summaries import EMPTY, PARTS, Summary, Tally

NOON = 1_764_590_400.0
HEART_RATE = {6000: Datatype("Heart rate", "bpm")}
SERIES = {"a": Series("a", "d1", 6000), "b": Series("b", "d1", 6001), "c": Series("c", "d1", 6000)}


def point(avg: float | None, count: int = 1, *, gone: bool = False) -> EmittedPoint:
    return EmittedPoint(avg, avg, avg, count, 0, gone)


def summary_of(*windows: Emitted, series: dict[str, Series] | None = None) -> Summary:
    tally = Tally()
    for emitted in windows:
        tally.add(emitted)
    return tally.summary(SERIES if series is None else series, HEART_RATE)


def test_a_summary_of_two_series() -> None:
    first = {"a": {NOON: EmittedPoint(58.0, 64.0, 60.0, 3, 0), NOON + 60: point(70.0)}, "b": {NOON + 10: point(12.0)}}
    assert msgspec.to_builtins(summary_of(first, {"a": {NOON + 3700.5: point(61.0, 2)}})) == {
        "datapoints": 4,
        "first_at": "2025-12-01T12:00:00Z",
        "last_at": "2025-12-01T13:01:40.500Z",
        "longest_gap_seconds": 3640.5,
        "series": (
            {
                "source_device": "d1",
                "datatype": 6000,
                "name": "Heart rate",
                "unit": "bpm",
                "min": 58.0,
                "max": 70.0,
                "avg": pytest.approx((3 * 60 + 70 + 2 * 61) / 6),
                "count": 6,
                "first": 60.0,
                "last": 61.0,
                "first_at": "2025-12-01T12:00:00Z",
                "last_at": "2025-12-01T13:01:40.500Z",
            },
            {
                "source_device": "d1",
                "datatype": 6001,
                "name": None,
                "unit": None,
                "min": 12.0,
                "max": 12.0,
                "avg": 12.0,
                "count": 1,
                "first": 12.0,
                "last": 12.0,
                "first_at": "2025-12-01T12:00:10Z",
                "last_at": "2025-12-01T12:00:10Z",
            },
        ),
    }


VALUES = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e3, 1e3))
POINTS = st.builds(EmittedPoint, VALUES, VALUES, VALUES, st.integers(-2, 2**53), st.just(0), st.booleans())
WINDOWS = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.integers(0, 60), POINTS, max_size=8), max_size=3),
    max_size=6,
)


@given(WINDOWS)
def test_it_adds_up_to_what_is_there(windows: list[dict[str, dict[int, EmittedPoint]]]) -> None:
    # Of `a` and `c`, which are one series to people, no two points have the same time.
    placed: list[Emitted] = [
        {
            name: {NOON + 100 * number + at + (name == "c") / 2: one for at, one in points.items()}
            for name, points in window.items()
        }
        for number, window in enumerate(windows)
    ]
    there: dict[tuple[str, int], dict[float, EmittedPoint]] = defaultdict(dict)
    for window in placed:
        for name, points in window.items():
            known = {at: each for at, each in points.items() if not each.gone}
            there[SERIES[name].source_device, SERIES[name].datatype].update(known)
    there = {key: points for key, points in there.items() if points}
    times = sorted({at for points in there.values() for at in points})
    found = summary_of(*placed)
    assert (found.datapoints, found.series_omitted) == (sum(map(len, there.values())), msgspec.UNSET)
    assert found.first_at == (iso_utc(times[0]) if times else None)
    assert found.longest_gap_seconds == max((later - earlier for earlier, later in pairwise(times)), default=None)
    assert [(one.source_device, one.datatype) for one in found.series] == sorted(there)
    for one in found.series:
        points = there[one.source_device, one.datatype]
        every = [points[at] for at in sorted(points)]
        assert one.min == min((each.min for each in every if each.min is not None), default=None)
        assert one.max == max((each.max for each in every if each.max is not None), default=None)
        assert (one.count, one.first, one.last) == (sum(each.count for each in every), every[0].avg, every[-1].avg)
        weighed = [(Fraction(each.avg), each.count) for each in every if each.avg is not None and each.count > 0]
        if not weighed:
            assert one.avg is None
            continue
        assert one.avg is not None
        assert math.isfinite(one.avg)
        largest = max(abs(float(value)) for value, _ in weighed)
        exact = float(sum(value * count for value, count in weighed) / sum(count for _, count in weighed))
        assert one.avg == pytest.approx(exact, rel=1e-12, abs=max(1e-280, largest * 1e-15))


def test_many_windows_are_added_up_as_well() -> None:
    many = 3 * PARTS + 7
    found = summary_of(*({"a": {NOON + 3600 * hour: point(72.1, 60)}} for hour in range(many)))
    (series,) = found.series
    assert (found.datapoints, series.count, series.avg) == (many, 60 * many, 72.1)
    assert (series.first_at, series.last_at) == (iso_utc(NOON), iso_utc(NOON + 3600 * (many - 1)))
    assert found.longest_gap_seconds == 3600


def test_what_is_gone_counts_no_more_until_it_comes_again() -> None:
    served = [Datapoint("a", "d1", 6000, NOON + 60 * one, 1.0, 1.0, 1.0, 1) for one in range(3)]
    emitted, _ = compare({}, served)
    emitted, changed = compare(emitted, served[:1])
    assert (summary_of(emitted).datapoints, changed) == (3, []), "a part of a window says nothing of the others"
    emitted, changed = compare(emitted, served[:1], complete=True)
    assert (summary_of(emitted).datapoints, changed) == (1, [])
    emitted, changed = compare(emitted, [served[0], served[1], replace(served[2], avg=2.0)], complete=True)
    assert summary_of(emitted).datapoints == 3
    assert [(one.timestamp, one.revision) for one in changed] == [(NOON + 120, 1)], "the same again is no news"


@pytest.mark.parametrize("value", [0.1, -0.1, 1 / 3, 36.6])
def test_the_average_of_a_constant_series_is_its_value(value: float) -> None:
    """The sum of three times 0.1, divided by three, is more than 0.1."""
    for number in range(2, 40):
        (series,) = summary_of({"a": {NOON + one: point(value) for one in range(number)}}).series
        assert series.min == series.avg == series.max == value


def test_one_timestamp_has_no_gap() -> None:
    assert summary_of({"a": {NOON: point(1.0)}, "b": {NOON: point(2.0)}}).longest_gap_seconds is None
    assert summary_of({}, {"a": {NOON: point(1.0, gone=True)}}) == EMPTY


def test_a_series_of_which_nothing_is_known_counts_but_is_not_shown() -> None:
    found = summary_of({"a": {NOON: point(1.0)}, "x": {NOON + 1: point(2.0)}})
    assert (found.datapoints, [one.datatype for one in found.series], found.series_omitted) == (2, [6000], 1)


def events_of(series: int, *, length: int, name: str) -> tuple[list[dict[str, Any]], list[int], Summary | None]:
    """The data of both events of a session of so many series, their sizes, and the summary that is kept."""
    ids = {f"{one}": Series(f"{one}", f"{one:03}".rjust(length, "d"), 6000 + one) for one in range(series)}
    tally = Tally()
    tally.add({one: {NOON + 1 / 3: point(-1.2345678901234567e-100, 10**12)} for one in ids})
    summary = tally.summary(ids, {one.datatype: Datatype(name, name) for one in ids.values()})
    session = DataSession("s" * 64, "g" * 64, NOON, NOON + 60, label="ü" * 250, ingestion_finished=True)
    known = KnownSession(session=session, device_label="ü" * 250, csv_due=True)
    made = conclude(known, "read", summary=summary, csv_url="https://" + "x" * 200, interval=15.0, now=NOON + 90)
    bodies = [msgspec.json.decode(one.data, type=dict[str, Any]) for one in made.events]
    return bodies, [len(one.data) for one in made.events], made.summary


@pytest.mark.parametrize(("series", "length", "name"), [(150, 36, "Heart rate"), (150, 250, "Herzfrequenz" * 20)])
def test_an_event_stays_below_64_kib(series: int, length: int, name: str) -> None:
    bodies, sizes, kept = events_of(series, length=length, name=name)
    assert max(sizes) <= 60 * 1024
    for body in bodies:
        summary = body["summary"]
        assert len(summary["series"]) + summary["series_omitted"] == summary["datapoints"] == series
        assert (len(summary["series"]) == 100) is (length == 36)
        assert [one["source_device"][-3:] for one in summary["series"]] == [
            f"{one:03}" for one in range(len(summary["series"]))
        ]
    assert msgspec.json.decode(msgspec.json.encode(kept)) == bodies[-1]["summary"]


def test_of_a_hundred_series_none_is_omitted() -> None:
    bodies, _, _ = events_of(100, length=36, name="Heart rate")
    assert all("series_omitted" not in body["summary"] for body in bodies)


def test_an_event_has_its_id_whatever_its_summary() -> None:
    known = KnownSession(session=DataSession("s1", "g1", NOON, NOON + 60, ingestion_finished=True), csv_due=True)
    ids = [
        [one.id for one in conclude(known, "read", summary=summary, csv_url="u", interval=15.0, now=NOON).events]
        for summary in (EMPTY, summary_of({"a": {NOON: point(1.0)}}))
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2
