import pytest

from bace_bridge.polling.rules.session_list import (
    BEFORE_EVERYTHING,
    PLAUSIBLE_AHEAD,
    FirstStart,
    StartKind,
    newest_stamp,
)
from bace_bridge.polling.rules.sessions import DataSession, is_history

NOW = 1_764_590_400.0


def row(updated_at: float | None, created_at: float | None = None, *, end: float | None = None) -> DataSession:
    return DataSession("s1", "g1", 0.0, end=end, updated_at=updated_at, created_at=created_at)


def begin(kind: StartKind, seconds: float, rows: list[DataSession], *, now: float = NOW) -> float:
    return FirstStart(kind, seconds).start_from(newest_stamp(rows), now=now, cloud_now=now, empty=not rows)


@pytest.mark.parametrize(
    ("kind", "seconds", "rows", "expected"),
    [
        ("all", 0.0, [row(NOW - 5)], BEFORE_EVERYTHING),
        ("since", 77.0, [row(NOW - 5)], 77.0),
        ("since", 77.0, [], 77.0),
        ("ago", 3600.0, [row(NOW - 5)], NOW - 3600),
        ("now", 0.0, [], BEFORE_EVERYTHING),
        ("now", 0.0, [row(NOW - 9), row(NOW - 5)], NOW - 5),
        ("now", 0.0, [row(None, NOW - 7), row(NOW - 9, NOW - 8)], NOW - 7),
        ("now", 0.0, [row(None)], NOW),
        ("now", 0.0, [row(None, NOW - 900, end=NOW - 60)], NOW - 60),
        ("now", 0.0, [row(NOW + PLAUSIBLE_AHEAD)], NOW + PLAUSIBLE_AHEAD),
        ("now", 0.0, [row(NOW + PLAUSIBLE_AHEAD + 1)], NOW),
        ("now", 0.0, [row(NOW + 9 * 60.0)], NOW + 9 * 60.0),
        ("now", 0.0, [row(NOW + 11 * 60.0)], NOW),
    ],
    ids=[
        "all",
        "since",
        "since, in an empty cloud",
        "ago",
        "an empty cloud has no history",
        "its newest update",
        "its newest record",
        "rows without times",
        "an end of which updated_at says nothing",
        "a difference between the clocks",
        "a row from the future",
        "nine minutes ahead",
        "eleven minutes ahead",
    ],
)
def test_from_when_on_a_first_start_reports(
    kind: StartKind, seconds: float, rows: list[DataSession], expected: float
) -> None:
    assert begin(kind, seconds, rows) == expected


def test_now_makes_history_of_all_that_is_over() -> None:
    rows = [row(NOW - 5, NOW - 50, end=NOW - 5), row(NOW - 50, NOW - 60, end=NOW - 50)]
    assert all(is_history(one, begin("now", 0.0, rows, now=NOW - 500)) for one in rows)


def test_all_makes_history_of_nothing() -> None:
    assert not is_history(row(NOW, NOW), begin("all", 0.0, [row(NOW)]))


def test_rows_that_cannot_be_read_are_no_empty_cloud() -> None:
    assert FirstStart("now").start_from(None, now=NOW, cloud_now=NOW + 70) == NOW + 70


def test_a_device_that_is_added_begins_now_unless_a_time_is_given() -> None:
    assert FirstStart("now").start_from(None, now=NOW, cloud_now=NOW) == NOW
    assert FirstStart("since", 77.0).start_from(None, now=NOW, cloud_now=NOW) == 77.0
