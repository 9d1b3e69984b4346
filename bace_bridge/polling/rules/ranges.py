"""The ranges in which the session list is read around a record on which the cloud breaks, and their parts.

One bad record makes every page that holds it a 500, so what breaks is asked for in ever smaller parts.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

RETRY_UNREADABLE = 300.0
"""Seconds after which what could not be read is tried again."""

LATEST_FILTER = 2**31 - 1
"""The largest integer that a filter may hold: PostgreSQL answers a larger one with a 500 (int4)."""

NOBODY = "00000000-0000-0000-0000-000000000000"
"""The id of no data session: what is asked about it must be answered, with nothing."""


def is_recent(at: float | None, now: float, within: float) -> bool:
    """True for `within` seconds after `at`; a time ahead of `now` is that of a clock which was set back since."""
    return at is not None and 0 <= now - at < within


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


def halves_of(ids: Sequence[T]) -> list[Sequence[T]]:
    middle = len(ids) // 2
    return [ids[:middle], ids[middle:]] if middle else []
