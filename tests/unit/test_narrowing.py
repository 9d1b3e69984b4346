from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.polling.rules.narrowing import Hole, PageAsk, Span, halved, page_around, spans_around

ROWS = st.integers(0, 400)


@given(ROWS, st.sets(ROWS, max_size=5), st.integers(1, 100))
def test_a_page_around_holes_holds_its_row_and_no_hole(row: int, holes: set[int], most: int) -> None:
    page = page_around(row, holes - {row}, most=most)
    assert page.first <= row < page.end
    assert page.size <= most
    assert not any(page.first <= hole < page.end for hole in holes - {row})


@given(st.integers(0, 300), st.sets(st.integers(0, 399), max_size=1))
def test_a_hole_costs_few_pages(first: int, holes: set[int]) -> None:
    row, pages = first, 0
    while row < 400:
        if row not in holes:
            row, pages = page_around(row, holes, most=100).end, pages + 1
        else:
            row += 1
    assert pages <= 400 // 100 + 1 + 8 * len(holes)


def test_without_holes_pages_are_as_large_as_may_be() -> None:
    assert page_around(100, (), most=100) == PageAsk(2, 100)


def test_half_of_what_is_suspect_is_asked_for() -> None:
    assert page_around(0, (), most=100, upto=50) == PageAsk(1, 50)
    assert page_around(50, (), most=100, upto=75).end == 75


def test_spans_leave_the_seconds_of_the_holes_out() -> None:
    holes = [Hole(100, 0.0), Hole(101, 0.0), Hole(50, 0.0), Hole(10, 0.0)]
    assert spans_around(20.5, holes) == [Span(20.5, 50), Span(51, 100), Span(102, None)]
    assert spans_around(101, holes) == [Span(102, None)]
    assert spans_around(-1.0, []) == [Span(-1.0, None)]


@given(st.integers(0, 2_000_000_000), st.integers(1_700_000_000, 1_800_000_000))
def test_halving_finds_every_second(second: int, now: int) -> None:
    span, steps = Span(0, None), 0
    while (parts := halved(span, now=now)) is not None:
        one, other = parts
        assert (one.since, one.until, other.until) == (span.since, other.since, span.until)
        span = one if one.until is not None and second < one.until else other
        steps += 1
    assert (span.since, span.until) == (second, second + 1)
    assert steps <= 40
