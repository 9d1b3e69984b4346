import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.simulator.query import All, AnyOf, Bounds, Compare, Order, PageRules, bounds, order, page

NEWEST = Order("start", descending=True)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        (None, NEWEST),
        ("start", Order("start")),
        ("-label", Order("label", descending=True)),
        ("-star", None),
        ("", None),
        ("-star,label,start", Order("label")),
        ("label,start", Order("label")),
    ],
)
def test_the_first_known_sort_key_counts(sort: str | None, expected: Order | None) -> None:
    pairs = [] if sort is None else [("sort", sort)]
    assert order(pairs, ["start", "label"], NEWEST) == expected


@pytest.mark.parametrize(
    ("query", "total", "number", "per_page", "count"),
    [
        ({}, 45, 1, 20, 3),
        ({"page": "2"}, 45, 2, 20, 3),
        ({"page": "9"}, 45, 3, 20, 3),
        ({"page": "0"}, 45, 1, 20, 3),
        ({"page": "-4"}, 45, 1, 20, 3),
        ({"page": "two"}, 45, 1, 20, 3),
        ({"page": "2nd"}, 45, 2, 20, 3),
        ({"per-page": "10"}, 45, 1, 10, 5),
        ({"per-page": "9999"}, 450, 1, 100, 5),
        ({"per-page": "0"}, 45, 1, 1, 45),
        ({"per-page": ""}, 45, 1, 1, 45),
        ({"page": "3"}, 0, 1, 20, 0),
    ],
)
def test_pages_are_clamped(query: dict[str, str], total: int, number: int, per_page: int, count: int) -> None:
    shown = page(list(query.items()), total, PageRules(default=20, maximum=100))
    assert (shown.number, shown.per_page, shown.count) == (number, per_page, count)


def test_without_the_clamp_a_page_behind_the_last_is_empty() -> None:
    shown = page([("page", "9")], 45, PageRules(default=20, maximum=100, clamp=False))
    assert shown.number == 9
    assert not list(range(45))[shown.rows]


@given(total=st.integers(0, 300), per_page=st.integers(1, 120))
def test_walking_to_the_page_count_shows_every_row_once(total: int, per_page: int) -> None:
    rules = PageRules(default=20, maximum=100)
    rows = list(range(total))
    first = page([("per-page", str(per_page))], total, rules)
    seen = [
        row
        for number in range(1, first.count + 1)
        for row in rows[page([("per-page", str(per_page)), ("page", str(number))], total, rules).rows]
    ]
    assert seen == rows


@pytest.mark.parametrize(
    ("number", "names"),
    [(1, {"next"}), (2, {"next", "prev"}), (3, {"prev"})],
)
def test_links_name_the_neighbours(number: int, names: set[str]) -> None:
    shown = page([("page", str(number))], 45, PageRules(default=20, maximum=100))
    assert set(shown.neighbours) == {"self", "first", "last", *names}


def test_an_empty_collection_links_only_to_itself() -> None:
    assert set(page([], 0, PageRules(default=20, maximum=100)).neighbours) == {"self"}


def test_bounds_come_from_what_must_hold() -> None:
    low, high = Compare("at", "gte", 5), Compare("at", "lt", 9)
    assert bounds(All((low, high)), "at") == Bounds(5, 9)
    assert bounds(All((Compare("at", "eq", 7),)), "at") == Bounds(7, 7)
    assert bounds(All((AnyOf((low, high)),)), "at") == Bounds()
    assert bounds(All((low,)), "other") == Bounds()
