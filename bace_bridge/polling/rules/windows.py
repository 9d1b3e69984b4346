"""Ranges that are read: windows of time of a data session, and pages of the list around what cannot be read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from bace_bridge.polling.rules.sessions import KnownSession

T = TypeVar("T")

RETRY_UNREADABLE = 300.0
"""Seconds after which what could not be read is tried again."""

LATEST_FILTER = 2**31 - 1
"""The largest integer that a filter may hold: PostgreSQL answers a larger one with a 500 (int4)."""

NO_SUCH_SESSION = "00000000-0000-0000-0000-000000000000"
"""The id of no data session: a request for its rows must be answered, with none."""


def is_recent(at: float | None, now: float, within: float) -> bool:
    """True for `within` seconds after `at`; a time ahead of `now` is that of a clock which was set back since."""
    return at is not None and 0 <= now - at < within


class PageRange(NamedTuple):
    """The rows of a page; `first` is counted from 0."""

    number: int
    size: int

    @property
    def first(self) -> int:
        return (self.number - 1) * self.size

    def parts(self, *, total: int | None = None) -> list["PageRange"]:
        """The smaller pages that hold the same rows, without those behind the list's end; none for a single row."""
        # Pages begin at multiples of their size only, so a page is divided by its smallest factor: of 100 rows one bad
        # one is found in 15 requests.
        if self.size == 1:
            return []
        by = next(factor for factor in range(2, self.size + 1) if self.size % factor == 0)
        parts = [PageRange((self.number - 1) * by + one, self.size // by) for one in range(1, by + 1)]
        return [one for one in parts if total is None or one.first < total]


def halves_of(ids: Sequence[T]) -> list[Sequence[T]]:
    middle = len(ids) // 2
    return [ids[:middle], ids[middle:]] if middle else []


SPAN = 3600
"""Seconds of a window: an hour at most is requested, the finest interval that BACE's documentation distinguishes."""

FINEST_SPAN = 60
"""Seconds below which no window is halved: aggregates are per minute at the finest."""

SETTLING = 600.0
"""Seconds after its end until which a window of an active session is read again: gateways upload late."""

MARGIN = 600.0
"""Seconds around a data session's time, and ahead of ours, in which points may lie: clocks differ."""

OVER_FOR, AHEAD, LATE_EVERY = 60.0, 120.0, 4
"""Seconds after its end from which a window is read in every fourth round only, for what comes now is late anyway; and
those past its newest point that are read of a device whose clock is ahead of ours."""

DIRECT_WINDOWS = 24
"""With more windows than this, a probe first shows in which of them there is anything to read."""

DAY = 86400

EARLIEST_WINDOW = -LATEST_FILTER // SPAN * SPAN
"""Times beyond what a filter may hold cannot be requested."""


class Window(NamedTuple):
    """[start, end) in epoch seconds."""

    start: int
    end: int


class WindowState(msgspec.Struct, frozen=True):
    """How far a window has been read.

    `samples` is the sum of the counts that the cloud serves of it. What was emitted can sum up to more: a point
    vanishes from the cloud when a bucket takes it in. `raw_until` is the newest point where all of them are samples and
    take several pages. `failures` counts how often it was left out.
    """

    start: int
    end: int
    reading: int
    settled: bool = False
    split: bool = False
    samples: int = 0
    raw_until: float | None = None
    failures: int = 0

    @property
    def window(self) -> Window:
        return Window(self.start, self.end)


States = Mapping[Window, WindowState]


def is_late_round(now: float, interval: float) -> bool:
    # By the clock, so that it is the same round for all data sessions: else no batch would have equal windows.
    return int(now // interval) % LATE_EVERY == 0


def window_at(timestamp: float) -> Window:
    start = int(timestamp // SPAN) * SPAN
    return Window(start, start + SPAN)


def halves(window: Window) -> tuple[Window, ...]:
    """The window's two halves, on whole minutes; none where it is too short to be halved."""
    minutes = (window.end - window.start) // FINEST_SPAN
    middle = window.start + minutes // 2 * FINEST_SPAN
    return (Window(window.start, middle), Window(middle, window.end)) if minutes > 1 else ()


def leaves(window: Window, states: States) -> Iterator[Window]:
    """The windows in which it is read: itself or, where it was split, its parts; none beyond what a filter may hold."""
    if not EARLIEST_WINDOW <= window.start < LATEST_FILTER:
        return
    state = states.get(window)
    parts = halves(window) if state is not None and state.split else ()
    for part in parts:
        yield from leaves(part, states)
    if not parts:
        yield window


def windows_due(known: KnownSession, states: States, *, now: float, hours: Iterable[int] | None = None) -> list[Window]:
    """The windows of a data session that are to be read now, oldest first.

    `hours` (their beginnings) restricts them to those in which there is something to read. Without them they end after
    a few more than DIRECT_WINDOWS.
    """
    ahead = max(now, known.session.start, known.newest_point_at or now) + MARGIN
    if known.session.end is not None:
        ahead = LATEST_FILTER
    due: set[Window] = set()
    for start in _starts(known, states, now=now) if hours is None else hours:
        for window in leaves(window_at(start), states):
            state = states.get(window)
            unread = state is None or state.reading < known.reading or not state.settled
            if unread and window.start <= ahead:
                due.add(window)
        if hours is None and len(due) > DIRECT_WINDOWS:
            break
    return sorted(due)


def likely_news(windows: Iterable[Window], known: KnownSession, states: States, *, now: float) -> list[Window]:
    """Those windows of an active session that were not read yet, are to be settled, or hold the present.

    The present is now, and by the device's clock the time of its newest point; what lies further ahead can wait.
    """
    newest = known.newest_point_at if known.newest_point_at is not None else now
    first, last = min(now, newest) - OVER_FOR, max(now, newest, known.session.start) + AHEAD
    return [
        one
        for one in windows
        if one.start <= last
        and (one not in states or states[one].reading < known.reading or one.end + SETTLING <= now or first < one.end)
    ]


def windows_with_more(probe: Mapping[int, int], known: KnownSession, states: States, *, span: int) -> list[Window]:
    """The windows, also settled ones, of the hours or days in which a probe found more samples than they hold."""
    # Where the sums never agree, a day counts again only when its sum has changed since the last probe.
    days = summed(probe.items(), DAY)
    changed = ((hour, many) for hour, many in probe.items() if days[hour // DAY] != known.probed.get(hour // DAY))
    wanted, found = summed(changed, span), summed(((one.start, one.samples) for one in states.values()), span)
    short = [one * span for one in wanted if wanted[one] > found[one]]
    # A cloud's buckets need not begin where ours do, so the hour or the day after one is read, too.
    hours = sorted({hour for start in short for hour in range(start, start + 2 * span, SPAN)})
    windows = [window for hour in hours for window in leaves(window_at(hour), states)]
    # Before a CSV everything was just read.
    return [one for one in windows if not known.csv_due or one not in states or states[one].reading < known.reading]


def summed(samples: Iterable[tuple[float, int]], span: int) -> Counter[int]:
    """Numbers of samples at their times, by the number of the span (in seconds, from the epoch) that they are in."""
    sums: Counter[int] = Counter()
    for at, many in samples:
        sums[int(at // span)] += many
    return sums


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
    reading, until = known.searched
    first_unread = max(first.start, EARLIEST_WINDOW, until if reading == known.reading else EARLIEST_WINDOW)
    yield from range(first_unread, min(last.end, LATEST_FILTER), SPAN)


def read_from(window: Window, state: WindowState | None, known: KnownSession, *, now: float) -> int:
    # Raw points do not change with the interval, so a window of many of them is continued where it ended. Once it is
    # time to settle it, it is read as a whole: late points may lie anywhere in it.
    if state is None or state.raw_until is None or state.reading < known.reading or is_settled(window, known, now=now):
        return window.start
    return max(window.start, int(state.raw_until) - FINEST_SPAN)


def left_out_windows(states: States) -> list[Window]:
    """The windows that are settled only because the cloud breaks on them, those first that were tried least."""
    out = [one for one in states.values() if one.settled and not one.split and one.failures]
    return [one.window for one in sorted(out, key=lambda one: (one.failures, one.start))]


def is_settled(window: Window, known: KnownSession, *, now: float) -> bool:
    """True when a window that is read as a whole now need not be read again in this reading."""
    over_at = window.end if known.session.end is None else min(window.end, known.session.end)
    return known.csv_due or known.unread or now >= over_at + SETTLING


def may_be_forgotten(known: KnownSession, *, unchanged_since: float) -> bool:
    """True when nothing more is expected of a session: what was emitted of its windows need not be kept.

    Should the cloud change it all the same, its datapoints are emitted again from the beginning.
    """
    session = known.session
    changed = max(session.start, session.end or 0.0, session.created_at or 0.0, session.updated_at or 0.0)
    return not known.unfinished and known.fetch_at is None and not known.csv_due and changed < unchanged_since
