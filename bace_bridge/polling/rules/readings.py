"""What a reading of windows leads to: datapoint events, the windows' new states, and each series' newest point."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from bace_bridge.polling.rules.changes import Changes, LatestSeen, WindowRead
from bace_bridge.polling.rules.datapoints import (
    ChangedPoint,
    Datapoint,
    Datatype,
    Emitted,
    are_raw,
    are_samples,
    compare,
    datapoint_events,
    view,
)
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import States, Window, WindowState, halves, is_settled, leaf_at


def by_window(points: Iterable[Datapoint], asked: Window, states: States) -> dict[Window, list[Datapoint]]:
    """The points by the window in which they are read: all in `asked`, where the server kept to its bounds."""
    found: dict[Window, list[Datapoint]] = {asked: []}
    for point in points:
        inside = asked.start <= point.timestamp < asked.end
        found.setdefault(asked if inside else leaf_at(point.timestamp, states), []).append(point)
    return found


def shown_by_day(
    points: Sequence[Datapoint], windows: Iterable[Window], probe: Mapping[int, int]
) -> dict[Window, list[Datapoint]]:
    """What an answer for a day surely shows of windows: lone samples, as many as a probe found there."""
    shown: dict[Window, list[Datapoint]] = {}
    for window in windows:
        rows = [one for one in points if window.start <= one.timestamp < window.end]
        if all(one.count == 1 for one in rows) and len(rows) >= max(1, probe.get(window.start, 1)):
            shown[window] = rows
    return shown


def absorb(
    known: KnownSession,
    states: States,
    served: Mapping[Window, Sequence[Datapoint]],
    emitted: Mapping[Window, Emitted],
    datatypes: Mapping[int, Datatype],
    *,
    in_part: Window | None = None,
    pages: int,
    now: float,
    cloud_now: float,
) -> Changes:
    """The changes after windows were `served`. The same points again change nothing but the windows' states.

    `in_part` is a window that was read on from where it ended. `now` is when the points were observed; whether a
    window is settled is judged by the cloud's time.
    """
    windows: list[WindowRead] = []
    changed: list[ChangedPoint] = []
    for window, points in served.items():
        after, new = compare(emitted.get(window, {}), points)
        state = WindowState(*window, known.reading, samples=sum(one.count for one in points))
        newest = max((one.timestamp for one in points), default=None)
        if window == in_part and (before := states.get(window)) is not None:
            added = sum(one.point.count for one in new if not one.revision)
            raw_until = before.raw_until if not points else newest if are_raw(points) else None
            state = msgspec.structs.replace(state, samples=before.samples + added, raw_until=raw_until)
        else:
            settled = is_settled(window, known, now=cloud_now)
            raw_until = newest if pages > 1 and are_samples(points) else None
            state = msgspec.structs.replace(state, settled=settled, raw_until=raw_until)
        windows.append(WindowRead(known.session.id, state, after if new else None))
        changed.extend(new)
    changed.sort(key=lambda one: one.point.timestamp)
    last = {one.point.series_id: one for one in changed}.values()
    latest = tuple(
        LatestSeen(
            known.session.group_id,
            one.point.source_device,
            one.point.datatype,
            one.point.timestamp,
            msgspec.json.encode(view(one, datatypes)),
            known.session.id,
        )
        for one in last
    )
    events = tuple(datapoint_events(known, changed, datatypes, now=now))
    return Changes(windows=tuple(windows), latest=latest, events=events)


def split(known: KnownSession, parent: Window, emitted: Emitted) -> tuple[WindowRead, ...]:
    """Has a window read in halves from now on; what was emitted of it belongs to its halves, which are due."""
    session_id = known.session.id
    reads = [WindowRead(session_id, WindowState(*parent, known.reading, settled=True, split=True), {})]
    for part in halves(parent):
        share = {
            series: {stamp: point for stamp, point in points.items() if part.start <= stamp < part.end}
            for series, points in emitted.items()
        }
        reads.append(WindowRead(session_id, WindowState(*part, known.reading - 1), share))
    return tuple(reads)


def left_out(known: KnownSession, state: WindowState | None, window: Window) -> WindowState:
    """A window that cannot be read, so that the session's other windows can go on; how often that was so is counted."""
    before = state or WindowState(*window, known.reading)
    return msgspec.structs.replace(before, reading=known.reading, settled=True, failures=before.failures + 1)
