"""The ranges in which the session list is read around a record on which the cloud breaks, and their parts.

One bad record makes every page that holds it a 500, so what breaks is asked for in ever smaller parts.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

GAP_RETRY = 300.0
"""Seconds after which what could not be read is tried again."""

SOON = 15.0
"""Seconds after which a new gap is tried for the first time: other rows may still be updated in its second."""

MOST_GAPS = 50
"""Gaps that are kept apart; of more, neighbours become one."""

LATEST_FILTER = 2**31 - 1
"""The largest integer that a filter may hold: PostgreSQL answers a larger one with a 500 (int4)."""

NOBODY = "00000000-0000-0000-0000-000000000000"
"""The id of no data session: what is asked about it must be answered, with nothing."""


class PageRange(NamedTuple):
    """The rows of a page, counted from 0: [first, end)."""

    number: int
    size: int

    @property
    def first(self) -> int:
        return (self.number - 1) * self.size

    @property
    def end(self) -> int:
        return self.number * self.size

    def parts(self, *, total: int | None = None) -> list["PageRange"]:
        """The smaller pages that hold the same rows, without those behind the list's end; none for a single row.

        Pages begin at multiples of their size only, so a page is divided by its smallest factor.
        """
        if self.size == 1:
            return []
        by = next(factor for factor in range(2, self.size + 1) if self.size % factor == 0)
        parts = [PageRange((self.number - 1) * by + one, self.size // by) for one in range(1, by + 1)]
        return [one for one in parts if total is None or one.first < total]


class Span(NamedTuple):
    """The rows with `since` <= updated_at < `until`; None: no bound."""

    since: float
    until: int | None

    def halves(self, *, now: float) -> list["Span"]:
        """Both halves, the earlier first; none for a single second. Without a bound the first cut is at `now`."""
        first, last = max(0, int(self.since)), LATEST_FILTER if self.until is None else self.until
        if last - first <= 1:
            return []
        soon = int(now) + 2
        middle = soon if self.until is None and first < soon < last else (first + last) // 2
        return [Span(self.since, middle), Span(middle, self.until)]


class Gap(msgspec.Struct, frozen=True):
    """The rows with `since` <= updated_at < `until` that could not be read.

    `tried_at` is our clock's. Where it is a single second its rows are read page by page, over several polls: `page`
    is the next one, and `lost` tells whether one of those before it could not be read as a whole.
    """

    since: int
    until: int
    tried_at: float
    page: int = 1
    lost: bool = False

    @property
    def span(self) -> Span:
        return Span(self.since, self.until)

    def is_due(self, now: float) -> bool:
        """True when it has rested, is being read, or when the clock was set back."""
        return self.page > 1 or not 0 <= now - self.tried_at < GAP_RETRY


def spans_around(bound: float, gaps: Sequence[Gap]) -> list[Span]:
    """What is to be read from `bound` on, in the order of time."""
    spans: list[Span] = []
    since = bound
    for gap in sorted(gaps, key=lambda one: one.since):
        if gap.since > since:
            spans.append(Span(since, gap.since))
        since = max(since, gap.until)
    return [*spans, Span(since, None)]


def with_gap(gaps: Sequence[Gap], new: Gap) -> tuple[Gap, ...]:
    """The gaps with one more. What is in one already makes none; beyond MOST_GAPS the closest neighbours are joined."""
    if any(one.since <= new.since and new.until <= one.until for one in gaps):
        return tuple(gaps)
    kept = sorted([*gaps, new], key=lambda one: one.since)
    while len(kept) > MOST_GAPS:
        place = min(range(len(kept) - 1), key=lambda one: kept[one + 1].since - kept[one].until)
        one, other = kept[place : place + 2]
        kept[place : place + 2] = [Gap(one.since, max(one.until, other.until), max(one.tried_at, other.tried_at))]
    return tuple(kept)


def halves_of(ids: Sequence[T]) -> list[Sequence[T]]:
    middle = len(ids) // 2
    return [ids[:middle], ids[middle:]] if middle else []
