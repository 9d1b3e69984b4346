from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bace_bridge.polling.rules.changes import Page
from bace_bridge.polling.rules.datapoints import Datapoint, are_raw, as_set
from bace_bridge.polling.rules.fetches import PointQuery, fit_together, within
from bace_bridge.polling.rules.sessions import DataSession
from bace_bridge.polling.rules.windows import NO_SUCH_SESSION

BOUNDS = ("filter[timestamp_seconds][gte]", "filter[timestamp_seconds][lt]")
POINT = Datapoint("x", "device", 6000, 100.0, 1.0, 3.0, 2.0, 4, "g1")


def at(timestamp: float, series: str = "x") -> Datapoint:
    return replace(POINT, timestamp=timestamp, series_id=series)


def paged(*rows: Sequence[Datapoint], count: int | None = None, total: int | None = None) -> list[Page[Datapoint]]:
    return [Page(tuple(page), len(page), number, count or len(rows), total) for number, page in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("pages", "fits"),
    [
        (paged([]), True),
        (paged([at(1), at(1)], total=9), True),
        (paged([at(1), at(2)], [at(3)]), True),
        (paged([at(2), at(3)], [at(1)]), True),
        (paged([at(1), at(2)], count=2), False),
        ([], False),
        (paged([at(1), at(1, "y")], [at(1, "y")]), False),
        (paged([at(2), at(1)], [at(2)]), False),
        (paged([at(1), at(2)], [at(2), at(3)]), True),
        (paged([at(1), at(2), at(2, "y")], [at(2, "y"), at(3)]), False),
        ([replace(one, total=total) for one, total in zip(paged([at(1)], [at(2)]), (5, 4), strict=True)], False),
        ([replace(one, total=total) for one, total in zip(paged([at(1)], [at(2)]), (4, 5), strict=True)], True),
    ],
    ids=[
        "nothing",
        "a single page, whatever the cloud says of its rows",
        "two pages",
        "in no order, but nothing twice",
        "a page is missing",
        "no page at all",
        "a row on two pages",
        "also of one series, in no order",
        "a sorted series with a row that the cloud has twice",
        "where another series may have been left out",
        "rows have gone meanwhile",
        "rows have come meanwhile",
    ],
)
def test_pages_that_fit_together_hold_every_row(pages: list[Page[Datapoint]], fits: bool) -> None:
    assert fit_together(pages, one_series=True) is fits


def test_one_series_among_what_was_read_is_not_all_that_there_is() -> None:
    """The row of another one may be what the row that is on two pages stands for."""
    assert not fit_together(paged([at(1), at(2)], [at(2), at(3)]), one_series=False)


@given(st.lists(st.sampled_from([at(float(one), series) for one in range(6) for series in "xy"])), st.integers(1, 4))
def test_whatever_comes_twice_sorted_pages_that_fit_lose_nothing(rows: list[Datapoint], size: int) -> None:
    """Each page is cut from another order of the rows with one timestamp, as a database may do."""
    found: list[list[Datapoint]] = []
    for number in range(-(-len(rows) // size)):
        order = sorted(rows if number % 2 else rows[::-1], key=lambda row: row.timestamp)
        found.append(order[number * size : (number + 1) * size])
    if fit_together(paged(*found), one_series=len({row.series_id for row in rows}) == 1):
        assert {*as_set(row for page in found for row in page)} == {*rows}


def test_of_two_rows_with_other_values_it_is_always_the_same_that_counts() -> None:
    rows = [POINT, replace(POINT, avg=None), replace(POINT, avg=9.0), replace(POINT, min=None), replace(POINT, count=3)]
    assert {as_set(some) for some in permutations(rows)} == {(rows[2],)}
    assert as_set([POINT, replace(POINT, count=5, avg=None)]) == (replace(POINT, count=5, avg=None),)
    assert as_set([at(1), at(2), at(1), at(1, "y")]) == (at(1), at(2), at(1, "y"))


def test_only_the_sessions_own_rows_are_taken_where_all_come() -> None:
    session = DataSession("s1", "g1", 100.0, end=200.0)
    rows = [
        at(99.9),
        at(100.0),
        at(200.0),
        at(200.1),
        replace(at(150.0), group_id="g2"),
        replace(at(1.0), group_id=None),
    ]
    assert within(rows, session) == tuple(rows[1:3])
    assert within(rows, replace(session, end=None)) == tuple(rows[1:4])


def test_a_query_is_sorted_and_within_what_a_database_takes() -> None:
    asked = dict(PointQuery("s1", -(2**40), 2**40, (6000,), "device").params)
    assert asked["sort"] == "timestamp_seconds"
    assert asked["filter[timestamp_seconds][gte]"] == str(-(2**31 - 1))
    assert asked["filter[timestamp_seconds][lt]"] == str(2**31 - 1)
    assert (asked["filter[datatype]"], asked["filter[source_device]"]) == ("6000", "device")
    several = PointQuery("s1", datatypes=(6000, 6001))
    assert [pair for pair in several.params if "datatype" in pair[0]] == [
        ("filter[datatype][in][]", "6000"),
        ("filter[datatype][in][]", "6001"),
    ]
    assert set(dict(PointQuery("s1").params)) == {"filter[id_data_session]", *BOUNDS, "sort"}


def test_several_data_sessions_are_a_list_also_where_it_is_one() -> None:
    several = PointQuery(("s1", "s2"), 0, 60)
    bounds = (*zip(BOUNDS, ("0", "60"), strict=True), ("sort", "timestamp_seconds"))
    assert several.params == (("filter[id_data_session][in][]", "s1"), ("filter[id_data_session][in][]", "s2"), *bounds)
    assert several.as_canary.params == (("filter[id_data_session][in][]", NO_SUCH_SESSION), *bounds)
    assert PointQuery("s1", 0, 60).as_canary.params == (("filter[id_data_session]", NO_SUCH_SESSION), *bounds)


@pytest.mark.parametrize(
    ("points", "raw"),
    [
        ([], True),
        ([replace(at(61.0), count=1)], True),
        ([replace(at(60.0), count=1)], False),
        ([replace(at(60.0), count=1), replace(at(61.0), count=1)], True),
        ([replace(at(61.0), count=1), at(120.0)], False),
    ],
    ids=["nothing", "a sample", "a bucket, or a sample", "samples", "buckets beside a lone sample"],
)
def test_what_is_surely_raw(points: list[Datapoint], raw: bool) -> None:
    assert are_raw(points) is raw
