"""How the session list is read around rows on which the cloud breaks.

One bad row makes every page that holds it a 500. A list whose rows keep their places is read in pages that leave the
row out; a list of updates, whose rows move, in spans of time that leave out the second of the row's update.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

PLACE_RETRY = 300.0
"""Seconds after which a place that could not be read is tried again."""

MOST_FAULTS = 80
"""Faults in one look after which it is given up: what was narrowed so far is kept, the next look goes on with it."""

MOST_HOLES = 50
"""Places that are left out of the list of updates at once; with more of them the cloud counts as broken."""

NOBODY = "00000000-0000-0000-0000-000000000000"
"""The id of no data session: what is asked about it must be answered, with nothing."""

FAR = 253_000_000_000
"""Epoch seconds after everything that a row can say."""


class PageAsk(NamedTuple):
    """A page to ask for: it holds the rows [first, end) of the list, counted from 0."""

    number: int
    size: int

    @property
    def first(self) -> int:
        return (self.number - 1) * self.size

    @property
    def end(self) -> int:
        return self.number * self.size


def page_around(row: int, holes: Collection[int], *, most: int, upto: int | None = None) -> PageAsk:
    """Of the pages that hold `row` and no hole, and end at `upto` at the latest, the one that reaches furthest.

    Pages can only begin at multiples of their size, so it may begin before `row`.
    """
    best = PageAsk(row + 1, 1)
    for size in range(2, most + 1):
        page = PageAsk(row // size + 1, size)
        if page.end <= best.end or (upto is not None and page.end > upto):
            continue
        if not any(page.first <= hole < page.end for hole in holes):
            best = page
    return best


class Hole(msgspec.Struct, frozen=True):
    """A second of `updated_at` in which the cloud breaks on a row; `tried_at` is our clock's."""

    second: int
    tried_at: float


class Span(NamedTuple):
    """The rows with `since` <= updated_at < `until`; None: no bound."""

    since: float
    until: int | None


def spans_around(bound: float, holes: Sequence[Hole]) -> list[Span]:
    """What is to be read from `bound` on, in the order of time."""
    spans: list[Span] = []
    since = bound
    for second in sorted(one.second for one in holes):
        if second > since:
            spans.append(Span(since, second))
        since = max(since, second + 1)
    return [*spans, Span(since, None)]


def halved(span: Span, *, now: float) -> tuple[Span, Span] | None:
    """The span in two parts; None where it is a single second."""
    first, last = max(0, int(span.since)), FAR if span.until is None else span.until
    if last - first <= 1:
        return None
    soon = int(now) + 2
    middle = soon if span.until is None and first < soon else (first + last) // 2
    return Span(span.since, middle), Span(middle, span.until)
