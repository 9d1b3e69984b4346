from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import (
    DAY,
    DIRECT_WINDOWS,
    FINEST_SPAN,
    LATE_EVERY,
    SETTLING,
    SPAN,
    Window,
    WindowState,
    halves,
    is_late_round,
    is_settled,
    leaves,
    likely_news,
    read_from,
    window_at,
    windows_due,
    windows_with_more,
)

NOON = 1_764_590_400
HOUR = Window(NOON, NOON + SPAN)
KNOWN = KnownSession(session=DataSession("s1", "g1", NOON + 900.0))


def ended(end: float, **changes: Any) -> KnownSession:
    return replace(KNOWN, session=replace(KNOWN.session, end=end), **changes)


def started(start: float, **changes: Any) -> KnownSession:
    return replace(KNOWN, session=replace(KNOWN.session, start=start), **changes)


def state(window: Window, reading: int = 0, **changes: Any) -> WindowState:
    return replace(WindowState(window.start, window.end, reading, settled=True), **changes)


def states(*given: WindowState) -> dict[Window, WindowState]:
    return {one.window: one for one in given}


def hours(*numbers: int) -> list[Window]:
    return [Window(NOON + one * SPAN, NOON + (one + 1) * SPAN) for one in numbers]


def due(known: KnownSession, *given: WindowState, now: float, **more: Any) -> list[Window]:
    return windows_due(known, states(*given), now=now, **more)


@pytest.mark.parametrize(
    ("after", "newest", "found"),
    [
        (0.0, 0.0, (0, 1)),
        (50.0, 45.0, (0, 1)),
        (90.0, 85.0, (1,)),
        (90.0, -30.0, (0, 1)),
        (599.0, 590.0, (1,)),
        (600.0, 590.0, (0, 1)),
        (3000.0, 2990.0, (0, 1)),
        (3000.0, 3490.0, (0, 1, 2)),
    ],
    ids=str,
)
def test_most_fetches_of_an_active_session_read_the_present_and_what_is_to_be_settled(
    after: float, newest: float, found: tuple[int, ...]
) -> None:
    """Of the hour from noon, the next one, and the one after it, so many seconds after the first one's end."""
    given = [state(one, settled=False) for one in hours(0, 1, 2)]
    known = replace(KNOWN, newest_point_at=HOUR.end + newest)
    assert likely_news(hours(0, 1, 2), known, states(*given), now=HOUR.end + after) == hours(*found)
    unread, up_to_the_present = replace(known, reading=1), hours(*range(found[-1] + 1))
    assert likely_news(hours(0, 1, 2), unread, states(*given), now=HOUR.end + after) == up_to_the_present
    assert likely_news(hours(0, 1, 2), known, {}, now=HOUR.end + after) == up_to_the_present
    ahead = replace(started(HOUR.end + SPAN + 1.0), newest_point_at=None)
    assert likely_news(hours(0, 1, 2), ahead, {}, now=HOUR.end + after) == hours(0, 1, 2)


def test_every_fourth_round_reads_what_is_late_too() -> None:
    rounds = [is_late_round(NOON + 15.0 * one, 15.0) for one in range(4 * LATE_EVERY)]
    assert rounds.count(True) == 4
    assert rounds[:LATE_EVERY] * 4 == rounds


def with_more(probe: dict[int, int], known: KnownSession, *given: WindowState, span: int = DAY) -> list[Window]:
    return windows_with_more(probe, known, states(*given), span=span)


@given(st.floats(-1e10, 1e10))
def test_the_grid_covers_every_time_once(timestamp: float) -> None:
    window = window_at(timestamp)
    assert window.start <= timestamp < window.end
    assert window.start % SPAN == 0
    assert window.end - window.start == SPAN


@given(st.integers(-(10**6), 10**6), st.integers(0, 7))
def test_halves_share_out_a_window_on_whole_minutes(hour: int, depth: int) -> None:
    window = Window(hour * SPAN, (hour + 1) * SPAN)
    for _ in range(depth):
        parts = halves(window)
        if not parts:
            assert window.end - window.start == FINEST_SPAN
            return
        first, second = parts
        assert (first.start, first.end, second.end) == (window.start, second.start, window.end)
        assert first.end % FINEST_SPAN == 0
        assert 0 < first.end - first.start <= second.end - second.start
        window = second


def test_a_window_is_read_in_the_parts_that_were_split_out() -> None:
    first, second = halves(HOUR)
    quarter, next_quarter = halves(first)
    known = states(state(HOUR, split=True), state(first, split=True), state(second))
    assert list(leaves(HOUR, known)) == [quarter, next_quarter, second]
    assert list(leaves(hours(1)[0], known)) == hours(1)
    minute = Window(NOON, NOON + FINEST_SPAN)
    assert list(leaves(HOUR, {**known, minute: state(minute)})) == [quarter, next_quarter, second]


@pytest.mark.parametrize(
    ("known", "given", "now", "expected"),
    [
        (KNOWN, (), NOON + 1200, hours(0)),
        (KNOWN, (), NOON - 10_000, hours(-3, 0)),
        (KNOWN, (), NOON + SPAN, hours(0, 1)),
        (KNOWN, (state(HOUR),), NOON + SPAN, hours(1)),
        (KNOWN, (state(HOUR, settled=False),), NOON + SPAN, hours(0, 1)),
        (replace(KNOWN, reading=1), (state(HOUR),), NOON + SPAN, hours(0, 1)),
        (replace(KNOWN, reading=1), (state(HOUR, reading=1),), NOON + SPAN, hours(1)),
        (ended(NOON + 1800.0), (), NOON + 10 * SPAN, hours(0)),
        (ended(NOON + SPAN + 0.0), (), NOON + 10 * SPAN, hours(0, 1)),
        (ended(NOON + 1800.0, newest_point_at=NOON + 2 * SPAN + 1.0), (), NOON + 10 * SPAN, hours(0, 1, 2)),
        (ended(NOON + 1800.0, newest_point_at=NOON + 1000.0), (), NOON + 10 * SPAN, hours(0)),
        (ended(NOON + 1800.0, newest_point_at=NOON + 99 * SPAN + 900.0), (), NOON + 10 * SPAN, hours(0, 99)),
        (ended(NOON - 7200.0), (), NOON + 10 * SPAN, hours(0)),
        (KNOWN, (state(hours(-1)[0], settled=False),), NOON + 1200, hours(-1, 0)),
        (KNOWN, (state(hours(-1)[0]),), NOON + 1200, hours(0)),
        (ended(NOON + 1800.0, reading=1), (state(hours(-2)[0]), state(hours(3)[0])), NOON + 1900, hours(-2, 0, 3)),
        (started(NOON + 599.0), (), NOON + 1200, hours(-1, 0)),
        (KNOWN, (), NOON + SPAN - 600, hours(0, 1)),
        (ended(NOON + SPAN - 600.0), (), NOON + 10 * SPAN, hours(0, 1)),
        (started(NOON + DAY + 900.0), (), NOON + 1200, hours(0, 24)),
        (started(NOON + DAY + 900.0, newest_point_at=NOON + DAY + SPAN + 900.0), (), NOON + 4900, hours(1, 24, 25)),
        (replace(KNOWN, newest_point_at=NOON + 9 * SPAN + 900.0), (), NOON + 1200, hours(0, 9)),
        (replace(KNOWN, newest_point_at=NOON + 9 * SPAN + 100.0), (), NOON + 1200, hours(0, 8, 9)),
        (replace(KNOWN, newest_point_at=NOON + 9 * SPAN - 100.0), (), NOON + 1200, hours(0, 8, 9)),
        (
            replace(KNOWN, newest_point_at=NOON + 9e6 + 900),
            (state(hours(9)[0], settled=False),),
            NOON + 1200,
            hours(0, 2500),
        ),
        (started(-9e10), (), NOON, None),
        (started(2.5e11), (), NOON + 1200, hours(0)),
        (replace(KNOWN, session=DataSession("s1", "g1", 2.5e11, end=2.6e11)), (), NOON, []),
    ],
    ids=[
        "it has just begun",
        "our clock is behind",
        "an hour is over",
        "the first hour is settled",
        "the first hour is not settled",
        "everything again",
        "the first hour is read again",
        "it is over",
        "it ends on the hour",
        "points after its end",
        "the newest point is before its end",
        "points days after its end",
        "it ends before it begins",
        "points before its start",
        "they are settled",
        "everything again, also around it",
        "points may lie just before its start",
        "and a little ahead of our clock",
        "and just after its end",
        "it starts a day ahead",
        "and goes on there",
        "the device's clock runs ahead",
        "and late points come",
        "and the next hour is near",
        "a year ahead, of which only the newest are read live",
        "it starts before any calendar",
        "it starts later than a filter can say",
        "and ends then",
    ],
)
def test_which_windows_are_due(
    known: KnownSession, given: tuple[WindowState, ...], now: float, expected: list[Window] | None
) -> None:
    found = due(known, *given, now=now)
    assert len(found) > DIRECT_WINDOWS if expected is None else found == expected


def test_a_split_window_is_due_in_its_parts() -> None:
    first, second = halves(HOUR)
    assert due(KNOWN, state(HOUR, split=True), state(first), now=NOON + 1200) == [second]


def test_minutes_to_come_are_not_due() -> None:
    parts = [HOUR]
    given = []
    while parts:
        window = parts.pop()
        given.append(state(window, -1, split=bool(halves(window))))
        parts += halves(window)
    found = due(KNOWN, *given, now=NOON + 1200)
    assert found[-1].start == NOON + 1800
    assert len(with_more({NOON: 1}, KNOWN, *given, span=SPAN)) == 60 + 1


def test_settled_windows_are_read_again_where_something_is_missing() -> None:
    assert due(KNOWN, state(HOUR), now=NOON + 1200) == []
    assert with_more({NOON: 1}, KNOWN, state(HOUR), span=SPAN) == hours(0, 1)
    assert with_more({NOON: 1}, KNOWN, state(HOUR), span=DAY) == hours(*range(-12, 36)), "also those ahead"
    assert with_more({NOON: 1}, KNOWN, state(HOUR, samples=1), span=SPAN) == []


def test_before_a_csv_what_was_just_read_is_not_read_again() -> None:
    last = replace(KNOWN, csv_due=True, reading=1)
    assert with_more({NOON: 1}, last, state(HOUR, reading=1), span=SPAN) == hours(1)
    assert with_more({NOON: 1}, last, state(HOUR), span=SPAN) == hours(0, 1)


def test_new_points_are_read_first_where_a_long_session_is_read_without_a_probe() -> None:
    years = started(900.0, newest_point_at=NOON + 900.0)
    found = due(years, now=NOON + 1200)
    assert found[-1] == HOUR
    assert found[0] == Window(0, SPAN)


def test_a_long_session_is_not_laid_out_window_by_window() -> None:
    years = replace(KNOWN, session=replace(KNOWN.session, start=1.0))
    assert len(due(years, now=NOON)) == DIRECT_WINDOWS + 1


def test_hours_name_the_windows_that_are_worth_a_request() -> None:
    known = replace(KNOWN, session=replace(KNOWN.session, start=1.0))
    found = due(known, now=NOON + 60, hours=[NOON + 3 * SPAN, NOON, NOON - DAY])
    assert found == hours(-24, 0), "nothing can be in the hours to come"


def test_what_a_probe_has_found_empty_is_not_due_in_that_reading() -> None:
    years = replace(KNOWN, session=replace(KNOWN.session, start=1.0), searched=(0, NOON - SPAN))
    assert due(years, now=NOON + 60) == hours(-1, 0)
    assert due(years, state(hours(-9)[0], settled=False), now=NOON + 60) == hours(-9, -1, 0)
    assert len(due(replace(years, reading=1), now=NOON + 60)) > DIRECT_WINDOWS


@pytest.mark.parametrize(
    ("changes", "now", "since"),
    [
        ({}, 1200, NOON + 940),
        ({"raw_until": None}, 1200, NOON),
        ({"raw_until": NOON + 5.0}, 1200, NOON),
        ({"reading": -1}, 1200, NOON),
        ({}, SPAN + SETTLING - 1, NOON + 940),
        ({}, SPAN + SETTLING, NOON),
    ],
    ids=[
        "a large one goes on where it ended",
        "a small one, or buckets, which grow, are read whole",
        "no earlier than it begins",
        "a new reading",
        "it may still grow",
        "read whole when it is time to settle it",
    ],
)
def test_where_a_window_of_raw_points_is_continued(changes: dict[str, Any], now: float, since: int) -> None:
    before = state(HOUR, settled=False, raw_until=NOON + 1000.5)
    assert read_from(HOUR, replace(before, **changes), KNOWN, now=NOON + now) == since


def test_a_window_that_was_never_read_is_read_whole() -> None:
    assert read_from(HOUR, None, KNOWN, now=NOON + 1200) == NOON


@pytest.mark.parametrize(
    ("known", "now", "settled"),
    [
        (KNOWN, SPAN + SETTLING - 1, False),
        (KNOWN, SPAN + SETTLING, True),
        (ended(NOON + 60.0), 60 + SETTLING - 1, False),
        (ended(NOON + 60.0), 60 + SETTLING, True),
        (ended(NOON + 9000.0), SPAN + SETTLING, True),
        (ended(NOON + 60.0, csv_due=True), 61, True),
    ],
)
def test_when_a_window_is_settled(known: KnownSession, now: float, settled: bool) -> None:
    assert is_settled(HOUR, known, now=NOON + now) is settled


@pytest.mark.parametrize(
    ("probe", "probed", "expected"),
    [
        ({}, {}, []),
        ({0: 1, 23: 2}, {}, []),
        ({0: 1, 23: 3}, {}, [23, 24]),
        ({0: 1, 23: 3}, {0: 4}, []),
        ({0: 1, 23: 3}, {0: 3}, [23, 24]),
        ({0: 1, 23: 1}, {}, []),
        ({24: 1, 48: 9}, {2: 9}, [24, 25]),
    ],
    ids=["nothing", "all found", "one more", "the sums never agree", "and one more", "fewer", "other days"],
)
def test_the_hours_in_which_there_is_something_new(
    probe: dict[int, int], probed: dict[int, int], expected: list[int]
) -> None:
    found = [state(Window(0, SPAN), samples=1), state(Window(DAY - SPAN, DAY), samples=2)]
    given = {hour * SPAN: samples for hour, samples in probe.items()}
    more = with_more(given, replace(KNOWN, probed=probed), *found, span=SPAN)
    assert [window.start // SPAN for window in more] == expected


def test_a_cloud_that_answers_a_probe_by_the_day_hides_no_hour() -> None:
    """Its days begin at 23:00 UTC, so that a bucket stands in the hour before the day of most of its samples."""
    bucket = NOON - 13 * SPAN
    found = [state(Window(bucket, bucket + SPAN), samples=1)]
    assert with_more({bucket: 9}, KNOWN, *found)[-1].end == bucket - 23 * SPAN + 2 * DAY
    assert with_more({bucket: 9}, KNOWN, *found, state(HOUR, samples=8)) != []
    found.append(state(Window(bucket - SPAN, bucket), samples=8))
    assert with_more({bucket: 9}, KNOWN, *found) == []
