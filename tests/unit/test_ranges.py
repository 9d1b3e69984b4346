from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.polling.rules.ranges import (
    GAP_RETRY,
    LATEST_FILTER,
    MOST_GAPS,
    Gap,
    PageRange,
    Span,
    halves_of,
    spans_around,
    with_gap,
)


@given(st.integers(1, 50), st.integers(1, 120))
def test_the_parts_of_a_page_hold_its_rows_once(number: int, size: int) -> None:
    page = PageRange(number, size)
    parts = page.parts()
    rows = [row for part in parts for row in range(part.first, part.end)]
    assert rows == (list(range(page.first, page.end)) if size > 1 else [])
    assert all(part.size < size for part in parts)


@given(st.integers(1, 100), st.integers(0, 150))
def test_no_part_lies_behind_the_end_of_the_list(size: int, total: int) -> None:
    assert all(part.first < total for part in PageRange(1, size).parts(total=total))


def test_one_bad_row_of_a_hundred_is_found_in_few_requests() -> None:
    requests, todo = 0, [PageRange(1, 100)]
    while todo:
        page = todo.pop()
        requests += 1
        if page.first <= 61 < page.end:
            todo += page.parts()
    assert requests == 15


def test_spans_leave_the_gaps_out() -> None:
    gaps = [Gap(100, 102, 0.0), Gap(50, 51, 0.0), Gap(10, 11, 0.0)]
    assert spans_around(20.5, gaps) == [Span(20.5, 50), Span(51, 100), Span(102, None)]
    assert spans_around(101, gaps) == [Span(102, None)]
    assert spans_around(-1.0, []) == [Span(-1.0, None)]


@given(st.integers(0, 2_000_000_000), st.integers(1_700_000_000, 1_800_000_000))
def test_halving_finds_every_second(second: int, now: int) -> None:
    span, steps = Span(0, None), 0
    while parts := span.halves(now=now):
        one, other = parts
        assert (one.since, one.until, other.until) == (span.since, other.since, span.until)
        span = one if one.until is not None and second < one.until else other
        steps += 1
    assert (span.since, span.until) == (second, second + 1)
    assert steps <= 40


def test_no_filter_holds_more_than_the_server_takes() -> None:
    span = Span(LATEST_FILTER - 1, None)
    assert span.halves(now=0) == []
    assert Span(LATEST_FILTER - 2, None).halves(now=5e9)[0].until == LATEST_FILTER - 1


def test_what_is_in_a_gap_makes_no_other_one() -> None:
    wide = (Gap(10, 20, 5.0),)
    assert with_gap(wide, Gap(12, 13, 0.0)) == wide
    assert with_gap(wide, Gap(30, 31, 0.0)) == (Gap(10, 20, 5.0), Gap(30, 31, 0.0))


@given(st.lists(st.integers(0, 10_000), min_size=MOST_GAPS + 1, max_size=3 * MOST_GAPS, unique=True))
def test_gaps_have_a_bound_and_lose_no_second(seconds: list[int]) -> None:
    gaps: tuple[Gap, ...] = ()
    for second in seconds:
        gaps = with_gap(gaps, Gap(second, second + 1, 0.0))
    assert len(gaps) <= MOST_GAPS
    assert all(any(gap.since <= second < gap.until for gap in gaps) for second in seconds)


def test_a_gap_rests_and_goes_on_while_it_is_read() -> None:
    gap = Gap(1, 2, tried_at=1000.0)
    assert not gap.is_due(1000.0)
    assert not gap.is_due(1000.0 + GAP_RETRY - 1)
    assert gap.is_due(1000.0 + GAP_RETRY)
    assert gap.is_due(999.0), "the clock was set back"
    assert Gap(1, 2, 1000.0, page=2).is_due(1000.0)


def test_ids_are_halved_down_to_one() -> None:
    assert halves_of(["a", "b", "c"]) == [["a"], ["b", "c"]]
    assert halves_of(["a"]) == []
