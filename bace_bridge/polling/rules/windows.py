"""The fixed grid of time windows in which datapoints are asked for.

The cloud chooses a resolution by the requested interval. Asking only in windows of a fixed grid makes the resolution,
and with it the identity of a datapoint (its series and timestamp), independent of when it was asked.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from bace_bridge.polling.rules.ranges import LATEST_FILTER
from bace_bridge.polling.rules.sessions import KnownSession

SPAN = 3600
"""Seconds of a window: at most an hour is asked at once, the finest interval that BACE's documentation tells apart."""

FINEST_SPAN = 60
"""Seconds below which no window is halved: aggregates are per minute at the finest."""

SETTLING = 600.0
"""Seconds after its end until which a window of an active session is read again: gateways upload late."""

MARGIN = 600.0
"""Seconds around a data session's time, and ahead of ours, in which points may lie: clocks differ."""

DIRECT_WINDOWS = 24
"""With more windows than this, a probe without a window first tells on which days there is anything to read."""

DAY = 86400

EARLIEST_WINDOW = -LATEST_FILTER // SPAN * SPAN
"""Times beyond what a filter may hold cannot be asked for."""

MOST_FAILURES = 3
"""After so many failed fetches what the cloud breaks on is halved, and left out where it cannot be: a 500 may be a
hiccup, but halves may be served in another resolution, and they stay."""


class Window(NamedTuple):
    """[start, end) in epoch seconds."""

    start: int
    end: int


class WindowState(msgspec.Struct, frozen=True):
    """How far a window has been read; `pages` is what its last reading took.

    `samples` is the sum of the counts that the cloud serves of it. What was emitted can sum up to more: a point
    vanishes from the cloud when a bucket takes it in. `failures` counts how often it was left out.
    """

    start: int
    end: int
    reading: int
    settled: bool = False
    split: bool = False
    samples: int = 0
    pages: int = 1
    raw: bool = False
    newest: float | None = None
    failures: int = 0

    @property
    def window(self) -> Window:
        return Window(self.start, self.end)


States = Mapping[Window, WindowState]


class Due(NamedTuple):
    """A window to read; `since` is later than its start where only the newest raw points are asked for."""

    window: Window
    since: int


def window_at(timestamp: float) -> Window:
    start = int(timestamp // SPAN) * SPAN
    return Window(start, start + SPAN)


def halves(window: Window) -> tuple[Window, Window] | None:
    """The window's two halves, on whole minutes; None where it is too short to be halved."""
    minutes = (window.end - window.start) // FINEST_SPAN
    if minutes <= 1:
        return None
    middle = window.start + minutes // 2 * FINEST_SPAN
    return Window(window.start, middle), Window(middle, window.end)


def leaf_at(timestamp: float, states: States) -> Window:
    """The window of the grid that a point belongs to, following the splits."""
    window = window_at(timestamp)
    while (state := states.get(window)) is not None and state.split and (parts := halves(window)) is not None:
        window = parts[0] if timestamp < parts[0].end else parts[1]
    return window


def windows_due(
    known: KnownSession,
    states: States,
    *,
    now: float,
    days: frozenset[int] | None = None,
    missing: bool = False,
) -> list[Due]:
    """The windows of a data session that are to be read now, oldest first.

    `days` (epoch days) restricts them to days on which there is something to read, `missing` to read more of them:
    settled ones, and those that lie ahead. Without `days` they end after a few more than DIRECT_WINDOWS.
    """
    ahead = max(now, known.session.start, known.newest_point_at or now) + MARGIN
    if missing or known.session.end is not None:
        ahead = LATEST_FILTER
    due: dict[Window, Due] = {}
    for start in _starts(known, states, now=now) if days is None else _starts_on(days):
        for one in _due_in(Window(start, start + SPAN), known, states, now=now, missing=missing):
            if EARLIEST_WINDOW <= start < LATEST_FILTER and one.window.start <= ahead:
                due[one.window] = one
        if days is None and len(due) > DIRECT_WINDOWS:
            break
    return sorted(due.values())


def _starts(known: KnownSession, states: States, *, now: float) -> Iterator[int]:
    """Where new points come; the windows around those in which a point was found before; then those of its time.

    New points come now, and around the newest one: a device's clock, and with it a session, may be ahead of ours.
    """
    session, newest = known.session, known.newest_point_at
    over = session.end if session.end is not None else now
    if session.end is not None and newest is not None and newest - over < DAY:
        over = max(over, newest)
    live = [now] if session.end is None else []
    if newest is not None:
        live += [newest - MARGIN, newest, newest + MARGIN]
    yield from (window_at(one).start for one in live)
    yield from sorted(window_at(one.start).start for one in states if session.end is not None or one.start <= now)
    first, last = window_at(session.start - MARGIN), window_at(max(over, session.start) + MARGIN)
    yield from range(max(first.start, EARLIEST_WINDOW), min(last.end, LATEST_FILTER), SPAN)


def _starts_on(days: frozenset[int]) -> Iterator[int]:
    return (start for day in sorted(days) for start in range(day * DAY, (day + 1) * DAY, SPAN))


def _due_in(window: Window, known: KnownSession, states: States, *, now: float, missing: bool) -> Iterator[Due]:
    state = states.get(window)
    if state is not None and state.split and (parts := halves(window)) is not None:
        for part in parts:
            yield from _due_in(part, known, states, now=now, missing=missing)
    elif state is None or state.reading < known.reading or not state.settled or (missing and not known.csv_due):
        yield Due(window, _since(window, state, known, now=now))


def _since(window: Window, state: WindowState | None, known: KnownSession, *, now: float) -> int:
    """Raw points do not change with the interval, so a large window of them is continued where it ended.

    Once it is time to settle it, it is read as a whole: late points may lie anywhere in it.
    """
    if is_settled(window, known, whole=True, now=now):
        return window.start
    if state is None or not state.raw or state.pages <= 1 or state.newest is None or state.reading < known.reading:
        return window.start
    return max(window.start, int(state.newest) - FINEST_SPAN)


def left_out_windows(states: States) -> list[Window]:
    """The windows that are settled only because the cloud breaks on them, those first that were tried least."""
    out = [one for one in states.values() if one.settled and not one.split and one.failures]
    return [one.window for one in sorted(out, key=lambda one: (one.failures, one.start))]


def days_with_more(probe: Mapping[int, int], known: KnownSession, states: States) -> frozenset[int]:
    """The days (epoch days) on which a probe found more samples than the windows.

    Where the sums never agree, a day counts again only when its sum has changed since the last probe.
    """
    found: dict[int, int] = {}
    for state in states.values():
        found[state.start // DAY] = found.get(state.start // DAY, 0) + state.samples
    return frozenset(
        day for day, samples in probe.items() if samples > found.get(day, 0) and samples != known.probed.get(day)
    )


def is_settled(window: Window, known: KnownSession, *, whole: bool, now: float) -> bool:
    """True when a window need not be read again in this reading."""
    if known.csv_due or known.unread:
        return True
    end = known.session.end
    over_at = window.end if end is None else min(window.end, end)
    return whole and now >= over_at + SETTLING


def may_be_forgotten(known: KnownSession, *, unchanged_since: float) -> bool:
    """True when nothing more is expected of a session: what was emitted of its windows need not be kept.

    Should the cloud change it all the same, its datapoints are emitted again from the beginning.
    """
    session = known.session
    changed = max(session.start, session.end or 0.0, session.created_at or 0.0, session.updated_at or 0.0)
    return not known.unfinished and known.fetch_at is None and not known.csv_due and changed < unchanged_since
