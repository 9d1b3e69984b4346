from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.datapoints import Datapoint, Datatype, Emitted, compare
from bace_bridge.polling.rules.readings import (
    absorb,
    by_window,
    left_out,
    split,
)
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import SPAN, Due, Window, WindowState, halves, left_out_windows

NOON = 1_764_590_400
HOUR, NEXT = Window(NOON, NOON + SPAN), Window(NOON + SPAN, NOON + 2 * SPAN)
KNOWN = KnownSession(session=DataSession("s1", "g1", NOON + 5.0), reading=2)


def point(after: float, *, count: int = 1, value: float = 1.0, series: str = "x") -> Datapoint:
    return Datapoint(series, f"device-{series}", 6000, NOON + after, value, value, value, count)


def read(
    served: dict[Window, Sequence[Datapoint]],
    *,
    known: KnownSession = KNOWN,
    states: Sequence[WindowState] = (),
    emitted: dict[Window, Emitted] | None = None,
    since: int = NOON,
    pages: int = 1,
    now: float = 60.0,
    cloud_ahead: float = 0.0,
) -> Changes:
    return absorb(
        known,
        {one.window: one for one in states},
        Due(HOUR, since),
        served,
        emitted or {},
        {6000: Datatype("Heart rate", "bpm")},
        pages=pages,
        now=NOON + now,
        cloud_now=NOON + now + cloud_ahead,
    )


def emitted_of(*points: Datapoint) -> Emitted:
    return compare({}, points)[0]


def test_new_points_are_told_and_their_window_is_kept() -> None:
    changes = read({HOUR: [point(20), point(10), point(10, series="y")]})
    (window,) = changes.windows
    assert window.emitted == emitted_of(point(20), point(10), point(10, series="y"))
    assert window.state == WindowState(HOUR.start, HOUR.end, 2, samples=3, raw=True, newest=NOON + 20.0)
    (event,) = changes.events
    shown = msgspec.json.decode(event.data)["datapoints"]
    assert [one["timestamp"][-3:] for one in shown] == ["10Z", "10Z", "20Z"]
    assert (event.time, event.observed_at) == (NOON + 20, NOON + 60)


def test_the_newest_point_of_each_series_is_kept_for_its_device() -> None:
    changes = read({HOUR: [point(20), point(10), point(10, series="y")]})
    assert {(one.device_id, one.source_device, one.datatype, one.timestamp - NOON) for one in changes.latest} == {
        ("g1", "device-x", 6000, 20),
        ("g1", "device-y", 6000, 10),
    }
    payloads = [msgspec.json.decode(one.payload) for one in changes.latest]
    assert {one["name"] for one in payloads} == {"Heart rate"}


def test_the_same_points_again_change_nothing_but_the_state() -> None:
    points = [point(10), point(20)]
    changes = read({HOUR: points}, emitted={HOUR: emitted_of(*points)})
    assert (changes.events, changes.latest, changes.windows[0].emitted) == ((), (), None)
    assert changes.windows[0].state.samples == 2


def test_a_changed_point_has_the_next_revision() -> None:
    changes = read({HOUR: [point(0, count=3)]}, emitted={HOUR: emitted_of(point(0, count=2))})
    (shown,) = msgspec.json.decode(changes.events[0].data)["datapoints"]
    assert (shown["revision"], shown["count"]) == (1, 3)


def test_samples_are_those_that_the_cloud_serves_now() -> None:
    """A lone sample has its own time until a second one makes a bucket of them: then it is gone from the cloud."""
    changes = read({HOUR: [point(0, count=2), point(0, count=2)]}, emitted={HOUR: emitted_of(point(10))})
    assert changes.windows[0].state.samples == 2
    onwards = read(
        {HOUR: [point(50)]},
        emitted={HOUR: emitted_of(point(10), point(20))},
        states=[WindowState(HOUR.start, HOUR.end, 2, raw=True, pages=2, samples=2)],
        since=NOON + 45,
    )
    assert onwards.windows[0].state.samples == 3


@pytest.mark.parametrize(
    ("now", "cloud_ahead", "since", "settled"),
    [
        (SPAN + 600, 0.0, NOON, True),
        (SPAN + 599, 0.0, NOON, False),
        (SPAN + 600, 0.0, NOON + 1, False),
        (60, SPAN + 600.0, NOON, True),
        (SPAN + 600, -1.0, NOON, False),
    ],
    ids=["late enough", "too early", "read in part", "our clock is behind", "our clock is ahead"],
)
def test_a_window_is_settled_by_the_clock_of_the_cloud(
    now: float, cloud_ahead: float, since: int, settled: bool
) -> None:
    changes = read({HOUR: []}, now=now, cloud_ahead=cloud_ahead, since=since)
    assert changes.windows[0].state.settled is settled


@pytest.mark.parametrize(
    ("before", "since", "points", "raw", "pages", "newest"),
    [
        (None, NOON, [point(1)], True, 3, NOON + 1.0),
        (None, NOON, [point(1), point(2, count=2)], False, 3, NOON + 2.0),
        (None, NOON, [], True, 3, None),
        ({"raw": True, "pages": 9}, NOON + 1, [point(2)], True, 9, NOON + 2.0),
        ({"raw": True, "pages": 9, "newest": NOON + 7.0}, NOON + 1, [], True, 9, NOON + 7.0),
        ({"raw": False, "pages": 9}, NOON + 1, [point(2)], False, 9, NOON + 2.0),
        ({"raw": False, "pages": 9, "failures": 2}, NOON, [point(2)], True, 3, NOON + 2.0),
    ],
)
def test_the_state_of_a_window_after_a_reading(
    before: dict[str, Any] | None, since: int, points: list[Datapoint], raw: bool, pages: int, newest: float | None
) -> None:
    states = [] if before is None else [replace(WindowState(HOUR.start, HOUR.end, 2), **before)]
    state = read({HOUR: points}, states=states, since=since, pages=3).windows[0].state
    assert (state.raw, state.pages, state.newest, state.failures) == (raw, pages, newest, 0)


def test_rows_outside_the_bounds_go_to_the_windows_they_belong_to() -> None:
    first, second = halves(NEXT) or (NEXT, NEXT)
    states = {NEXT: WindowState(NEXT.start, NEXT.end, 2, split=True)}
    points = [point(-1), point(10), point(SPAN), point(SPAN + 1800)]
    assert by_window(points, Due(HOUR, NOON), states, held=True) == {HOUR: points}
    found = by_window(points, Due(HOUR, NOON), states, held=False)
    assert found == {HOUR: [points[1]], Window(NOON - SPAN, NOON): [points[0]], first: [points[2]], second: [points[3]]}
    assert by_window(points[:1], Due(HOUR, NOON), states, held=False)[HOUR] == []


def test_several_windows_at_once_are_told_in_one_order() -> None:
    changes = read({NEXT: [point(SPAN + 5)], HOUR: [point(10), point(5)]}, since=NOON + 2)
    shown = msgspec.json.decode(changes.events[0].data)["datapoints"]
    assert [one["timestamp"][11:19] for one in shown] == ["12:00:05", "12:00:10", "13:00:05"]
    assert len(changes.events) == 1


def test_a_split_shares_out_what_was_told() -> None:
    first, second = halves(HOUR) or (HOUR, HOUR)
    points = [point(0), point(1799.9), point(1800, count=4), point(3599, series="y")]
    parent, left, right = split(KNOWN, HOUR, (first, second), emitted_of(*points))
    assert (parent.state.split, parent.state.settled, parent.state.samples, parent.emitted) == (True, True, 0, {})
    assert left.emitted == {"x": emitted_of(*points[:2])["x"], "y": {}}
    assert right.emitted == emitted_of(*points[2:])
    assert (left.state.samples, right.state.samples) == (2, 5)
    assert left.state.reading < KNOWN.reading, "a half that was never read is due"
    again = read({first: points[:2]}, emitted={first: left.emitted or {}})
    assert again.events == ()


def test_a_window_that_is_left_out_is_counted() -> None:
    out = left_out(KNOWN, None, HOUR)
    assert (out.window, out.reading, out.settled, out.failures) == (HOUR, KNOWN.reading, True, 1)
    read_before = WindowState(HOUR.start, HOUR.end, 1, samples=4, newest=NOON + 1.0)
    assert left_out(KNOWN, read_before, HOUR) == replace(read_before, reading=2, settled=True, failures=1)
    other = left_out(KNOWN, left_out(KNOWN, None, NEXT), NEXT)
    assert left_out_windows({NEXT: other, HOUR: out}) == [HOUR, NEXT], "those first that were tried least"
