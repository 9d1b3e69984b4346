import msgspec
import pytest
from msgspec.structs import replace

from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.datapoints import Datapoint, Datatype, Emitted, compare
from bace_bridge.polling.rules.fetches import absorb, left_out, split
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import SPAN, Window, WindowState, halves, left_out_windows

NOON = 1_764_590_400
HOUR, NEXT = Window(NOON, NOON + SPAN), Window(NOON + SPAN, NOON + 2 * SPAN)
KNOWN = KnownSession(session=DataSession("s1", "g1", NOON + 5.0), reading=2)


def point(after: float, *, count: int = 1, value: float = 1.0, series: str = "x") -> Datapoint:
    return Datapoint(series, f"device-{series}", 6000, NOON + after, value, value, value, count)


def read(
    *served: Datapoint,
    window: Window = HOUR,
    known: KnownSession = KNOWN,
    before: WindowState | None = None,
    emitted: Emitted | None = None,
    in_part: bool = False,
    pages: int = 1,
    now: float = 60.0,
    cloud_ahead: float = 0.0,
) -> Changes:
    return absorb(
        known,
        window,
        served,
        before=before,
        emitted=emitted or {},
        datatypes={6000: Datatype("Heart rate", "bpm")},
        in_part=in_part,
        pages=pages,
        now=NOON + now,
        cloud_now=NOON + now + cloud_ahead,
    )


def emitted_of(*points: Datapoint) -> Emitted:
    return compare({}, points)[0]


def test_new_points_are_reported_and_their_window_is_kept() -> None:
    changes = read(point(20), point(10), point(10, series="y"))
    (window,) = changes.windows
    assert window.emitted == emitted_of(point(20), point(10), point(10, series="y"))
    assert window.state == WindowState(HOUR.start, HOUR.end, 2, samples=3)
    (event,) = changes.events
    shown = msgspec.json.decode(event.data)["datapoints"]
    assert [one["timestamp"][-3:] for one in shown] == ["10Z", "10Z", "20Z"]
    assert (event.time, event.observed_at) == (NOON + 20, NOON + 60)


def test_the_newest_point_of_each_series_is_kept_for_its_device() -> None:
    changes = read(point(20), point(10), point(10, series="y"))
    assert {(one.device_id, one.source_device, one.datatype, one.timestamp - NOON) for one in changes.latest} == {
        ("g1", "device-x", 6000, 20),
        ("g1", "device-y", 6000, 10),
    }
    payloads = [msgspec.json.decode(one.payload) for one in changes.latest]
    assert {one["name"] for one in payloads} == {"Heart rate"}


def test_the_same_points_again_change_nothing_but_the_state() -> None:
    points = [point(10), point(20)]
    changes = read(*points, emitted=emitted_of(*points))
    assert (changes.events, changes.latest, changes.windows[0].emitted) == ((), (), None)
    assert changes.windows[0].state.samples == 2


def test_a_changed_point_has_the_next_revision() -> None:
    changes = read(point(0, count=3), emitted=emitted_of(point(0, count=2)))
    (shown,) = msgspec.json.decode(changes.events[0].data)["datapoints"]
    assert (shown["revision"], shown["count"]) == (1, 3)


def test_samples_are_those_that_the_cloud_serves_now() -> None:
    """A lone sample has its own time until a second one makes a bucket of them: then it is gone from the cloud."""
    changes = read(point(0, count=2), emitted=emitted_of(point(10)))
    assert changes.windows[0].state.samples == 2
    onwards = read(
        point(20),
        point(50),
        emitted=emitted_of(point(10), point(20)),
        before=WindowState(HOUR.start, HOUR.end, 2, raw_until=NOON + 20.0, samples=2),
        in_part=True,
    )
    assert onwards.windows[0].state.samples == 3


@pytest.mark.parametrize(
    ("now", "cloud_ahead", "in_part", "settled"),
    [
        (SPAN + 600, 0.0, False, True),
        (SPAN + 599, 0.0, False, False),
        (SPAN + 600, 0.0, True, False),
        (60, SPAN + 600.0, False, True),
        (SPAN + 600, -1.0, False, False),
    ],
    ids=["late enough", "too early", "read in part", "our clock is behind", "our clock is ahead"],
)
def test_a_window_is_settled_by_the_clock_of_the_cloud(
    now: float, cloud_ahead: float, in_part: bool, settled: bool
) -> None:
    changes = read(before=WindowState(*HOUR, 2), now=now, cloud_ahead=cloud_ahead, in_part=in_part)
    assert changes.windows[0].state.settled is settled


@pytest.mark.parametrize(
    ("points", "pages", "in_part", "until"),
    [
        ([point(1), point(3)], 2, False, 3.0),
        ([point(1), point(3)], 1, False, None),
        ([point(1), point(2, count=2)], 2, False, None),
        ([], 2, False, None),
        ([point(9)], 1, True, 9.0),
        ([], 1, True, 7.0),
        ([point(8), point(9, count=2)], 1, True, None),
    ],
    ids=[
        "many raw points",
        "few of them",
        "buckets",
        "none",
        "more of them",
        "no more of them",
        "and then buckets",
    ],
)
def test_where_a_window_of_many_raw_points_goes_on(
    points: list[Datapoint], pages: int, in_part: bool, until: float | None
) -> None:
    before = WindowState(*HOUR, 2, raw_until=NOON + 7.0, failures=2)
    state = read(*points, before=before, pages=pages, in_part=in_part).windows[0].state
    assert (state.raw_until, state.failures) == (None if until is None else NOON + until, 0)


def test_a_split_shares_out_what_was_reported() -> None:
    points = [point(0), point(1799.9), point(1800, count=4), point(3599, series="y")]
    parent, left, right = split(KNOWN, HOUR, emitted_of(*points)).windows
    first = left.state.window
    assert (parent.state.split, parent.state.settled, parent.state.samples, parent.emitted) == (True, True, 0, {})
    assert left.emitted == {"x": emitted_of(*points[:2])["x"], "y": {}}
    assert right.emitted == emitted_of(*points[2:])
    assert (first, right.state.window) == halves(HOUR)
    assert left.state.reading < KNOWN.reading, "a half that was never read is due"
    again = read(*points[:2], window=first, emitted=left.emitted or {})
    assert again.events == ()


def out(before: WindowState | None, window: Window = HOUR) -> WindowState:
    (read,) = left_out(KNOWN, before, window).windows
    assert read.emitted is None
    return read.state


def test_a_window_that_is_left_out_is_counted() -> None:
    once = out(None)
    assert (once.window, once.reading, once.settled, once.failures) == (HOUR, KNOWN.reading, True, 1)
    read_before = WindowState(HOUR.start, HOUR.end, 1, samples=4)
    assert out(read_before) == replace(read_before, reading=2, settled=True, failures=1)
    twice = out(out(None, NEXT), NEXT)
    assert left_out_windows({NEXT: twice, HOUR: once}) == [HOUR, NEXT], "those first that were tried least"
