import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.polling.rules.windows import PageRange, halves_of, is_recent


@given(st.integers(1, 50), st.integers(1, 120))
def test_the_parts_of_a_page_hold_its_rows_once(number: int, size: int) -> None:
    page = PageRange(number, size)
    parts = page.parts()
    rows = [row for part in parts for row in range(part.first, part.first + part.size)]
    assert rows == (list(range(page.first, page.first + size)) if size > 1 else [])
    assert all(part.size < size for part in parts)


@given(st.integers(1, 100), st.integers(0, 150))
def test_no_part_lies_behind_the_end_of_the_list(size: int, total: int) -> None:
    assert all(part.first < total for part in PageRange(1, size).parts(total=total))


def test_one_bad_row_of_a_hundred_is_found_in_few_requests() -> None:
    requests, todo = 0, [PageRange(1, 100)]
    while todo:
        page = todo.pop()
        requests += 1
        if page.first <= 61 < page.first + page.size:
            todo += page.parts()
    assert requests == 15


def test_ids_are_halved_down_to_one() -> None:
    assert halves_of(["a", "b", "c"]) == [["a"], ["b", "c"]]
    assert halves_of(["a"]) == []


@pytest.mark.parametrize(
    ("at", "recent"), [(None, False), (100.0, True), (90.1, True), (90.0, False), (100.1, False)], ids=str
)
def test_what_is_ahead_of_the_clock_is_not_recent(at: float | None, recent: bool) -> None:
    assert is_recent(at, 100.0, 10.0) is recent
