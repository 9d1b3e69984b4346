"""What a reading of windows leads to: datapoint events, the windows' new states, and each series' newest point."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from bace_bridge.polling.rules.changes import Changes, LatestSeen, WindowRead
from bace_bridge.polling.rules.datapoints import (
    ChangedPoint,
    Datapoint,
    Datatype,
    Emitted,
    are_raw,
    compare,
    datapoint_events,
    newest_per_series,
    samples_emitted,
    view,
)
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import Due, States, Window, WindowState, is_settled, leaf_at


def by_window(points: Sequence[Datapoint], due: Due, states: States, *, held: bool) -> dict[Window, list[Datapoint]]:
    """The points by the window of the grid that they belong to; where the server kept to the bounds that is `due`'s."""
    if held:
        return {due.window: list(points)}
    found: dict[Window, list[Datapoint]] = defaultdict(list)
    found[due.window] = []
    for point in points:
        found[leaf_at(point.timestamp, states)].append(point)
    return dict(found)


def absorb(
    known: KnownSession,
    states: States,
    due: Due,
    served: Mapping[Window, Sequence[Datapoint]],
    emitted: Mapping[Window, Emitted],
    datatypes: Mapping[int, Datatype],
    *,
    pages: int,
    now: float,
    cloud_now: float,
) -> Changes:
    """The changes after `served` came back for `due`. The same points again change nothing but the window's state.

    `now` is when they were observed; whether a window is settled is judged by the cloud's time.
    """
    windows: list[WindowRead] = []
    changed: list[ChangedPoint] = []
    for window, points in served.items():
        after, new = compare(emitted.get(window, {}), points)
        whole = window != due.window or due.since <= window.start
        state = _read_state(
            known, states.get(window), window, after, points, whole=whole, pages=pages, cloud_now=cloud_now
        )
        windows.append(WindowRead(known.session.id, state, after if new else None))
        changed.extend(new)
    changed.sort(key=lambda one: one.point.timestamp)
    latest = tuple(
        LatestSeen(
            device_id=known.session.group_id,
            source_device=one.point.source_device,
            datatype=one.point.datatype,
            timestamp=one.point.timestamp,
            payload=msgspec.json.encode(view(one, datatypes)),
        )
        for one in newest_per_series(changed).values()
    )
    events = tuple(datapoint_events(known, changed, datatypes, now=now))
    return Changes(windows=tuple(windows), latest=latest, events=events)


def _read_state(
    known: KnownSession,
    before: WindowState | None,
    window: Window,
    emitted: Emitted,
    points: Sequence[Datapoint],
    *,
    whole: bool,
    pages: int,
    cloud_now: float,
) -> WindowState:
    served = {(point.series_id, point.timestamp): point.count for point in points}
    newest = max((point.timestamp for point in points), default=before.newest if before else None)
    raw = are_raw(points) and (before is None or before.raw or whole)
    return WindowState(
        start=window.start,
        end=window.end,
        reading=known.reading,
        settled=is_settled(window, known, whole=whole, now=cloud_now) and whole,
        samples=sum(served.values()) if whole else samples_emitted(emitted),
        pages=pages if whole or before is None else before.pages,
        raw=raw,
        newest=newest,
    )


def split(known: KnownSession, parent: Window, parts: Sequence[Window], emitted: Emitted) -> tuple[WindowRead, ...]:
    """Has a window read in halves from now on; what was emitted of it belongs to its halves."""
    never_read = known.reading - 1
    reads = [
        WindowRead(
            known.session.id,
            WindowState(parent.start, parent.end, known.reading, settled=True, split=True),
            {},
        )
    ]
    for part in parts:
        share = {
            series: {stamp: point for stamp, point in points.items() if part.start <= stamp < part.end}
            for series, points in emitted.items()
        }
        state = WindowState(part.start, part.end, never_read, samples=samples_emitted(share))
        reads.append(WindowRead(known.session.id, state, share))
    return tuple(reads)


def left_out(known: KnownSession, state: WindowState | None, window: Window) -> WindowState:
    """A window that cannot be read, so that the session's other windows can go on; how often that was so is counted."""
    before = state or WindowState(window.start, window.end, known.reading)
    return msgspec.structs.replace(before, reading=known.reading, settled=True, failures=before.failures + 1)
