"""Walks a list of data sessions page by page, and around the rows on which the cloud breaks."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from bace_bridge.errors import CloudError, CloudFault, UnexpectedReply
from bace_bridge.polling.needs import SessionCloud
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.narrowing import MOST_FAULTS, PageAsk, page_around
from bace_bridge.polling.rules.seen import Page, SeenSession

T = TypeVar("T")

MOST_ROWS = 100
MOST_PAGES = 10_000
"""Pages in one look, after which its list is taken for one that has no end."""

BEHIND_THE_END = 1_000_000
NOBODY = ("00000000-0000-0000-0000-000000000000",)

BREAKS = (CloudFault, UnexpectedReply)
"""What one bad row can do to its page: a 500, or JSON that ends where the row begins."""


class FaultBudget:
    """How many faults one look may meet before it is given up; `trusted` once the cloud is known to answer others."""

    def __init__(self, cloud: SessionCloud, *, most_pages: int = MOST_PAGES) -> None:
        self._cloud = cloud
        self._left = MOST_FAULTS
        self._most_pages = self._pages_left = most_pages
        self.trusted = False

    async def asked(self, params: Sequence[tuple[str, str]], ask: PageAsk) -> Page[SeenSession]:
        """A page. Raises one of BREAKS only where it is this page that is broken, and not the cloud as a whole."""
        self._pages_left -= 1
        if self._pages_left < 0:
            raise AllBroken(UnexpectedReply(f"the list of data sessions does not end after {self._most_pages} pages"))
        return await self.sure(lambda: self._cloud.session_page(params, ask.number, per_page=ask.size), params)

    async def sure(self, request: Callable[[], Awaitable[T]], params: Sequence[tuple[str, str]]) -> T:
        """The first fault of a look is asked about again; then the list must answer to something else."""
        try:
            return await request()
        except BREAKS as fault:
            self._spend(fault)
            if self.trusted:
                raise
        try:
            return await request()
        except BREAKS as fault:
            await self._make_sure(params, fault)
            raise

    def _spend(self, fault: CloudError) -> None:
        self._left -= 1
        if self._left < 0:
            raise AllBroken(fault)

    async def _make_sure(self, params: Sequence[tuple[str, str]], fault: CloudError) -> None:
        for witness, number in ((params, BEHIND_THE_END), (session_list.by_ids(NOBODY), 1)):
            try:
                await self._cloud.session_page(witness, number, per_page=1)
            except BREAKS:
                continue
            self.trusted = True
            return
        raise AllBroken(fault)


class AllBroken(Exception):  # a turn in the road, not an error: `cause` is
    """It is not one place: the list does not answer at all, or breaks at more places than can be looked for."""

    def __init__(self, cause: CloudError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ListWalk:
    """A list whose rows keep their places: new ones come at its head only.

    The rows that break their page are found by halving, and remembered by their distance from the list's end, so that
    the next walk goes around them at the cost of a few smaller pages.
    """

    def __init__(self, params: Sequence[tuple[str, str]]) -> None:
        self._params = params
        self.size = MOST_ROWS
        self.total: int | None = None
        self.from_end: dict[int, str] = {}
        """What broke, by its distance from the list's end."""
        self.lost: dict[int, str] = {}
        """What broke in the walk that goes on, by row."""
        self.mended: set[int] = set()
        """What broke once and was read now, by its distance from the list's end."""
        self._doubtful: set[int] = set()
        self._suspect: int | None = None

    def forget(self) -> None:
        """From now on the places that were broken are tried again."""
        self._doubtful |= self.from_end.keys()
        self.from_end = {}

    async def try_again(self, budget: FaultBudget) -> Page[SeenSession] | None:
        """The place that has waited longest, on its own: what it shows now, or None where it still breaks."""
        distance = next(iter(self.from_end), None)
        if distance is None or self.total is None:
            return None
        reason = self.from_end.pop(distance)
        try:
            page = await budget.asked(self._params, PageAsk(self.total - distance + 1, 1))
        except BREAKS:
            self.from_end[distance] = reason
            return None
        self.mended = {distance}
        return page

    @property
    def searching(self) -> bool:
        """True while a page broke and the row that breaks it has not been found yet."""
        return self._suspect is not None

    async def pages(
        self, budget: FaultBudget, first: int = 0, end: int | None = None
    ) -> AsyncIterator[Page[SeenSession]]:
        """The pages that hold the rows from `first` to `end`, but those that break. Raises AllBroken, CloudError."""
        self.lost = {}
        row = first
        self._suspect = None
        known_end: int | None = None
        before: list[str] = []
        while (end is None or row < end) and (known_end is None or row < known_end):
            holes = self._holes()
            if row in holes:
                row += 1
                continue
            ask = page_around(row, holes, most=self.size, upto=self._half_of_what_is_suspect(row))
            try:
                page = await budget.asked(self._params, ask)
            except BREAKS as fault:
                row, self._suspect = self._after_fault(ask, row, known_end, str(fault))
                if known_end is None and len(self.lost) > 1:
                    return  # behind its end a list is its last page again and again
                continue
            if page.per_page is not None and page.per_page < ask.size:
                self.size, self._suspect = page.per_page, None
                if ask.number > 1:
                    continue
                ask = PageAsk(1, page.per_page)
            rows = [one.session.id for one in page.items]
            if page.page != ask.number and (page.page is not None or _came_again(rows, before, ask)):
                return
            before = rows
            self.total = known_end = page.total
            self._settle(ask)
            yield page
            if not page.count or (page.total is None and _is_last(page, ask)):
                return
            row = ask.end
            if self._suspect is not None:
                self._suspect = min(self._suspect, known_end or self._suspect)
                self._suspect = None if row >= self._suspect else self._suspect

    def _half_of_what_is_suspect(self, row: int) -> int | None:
        return None if self._suspect is None else row + max(1, (self._suspect - row) // 2)

    def _holes(self) -> set[int]:
        if self.total is None:
            return set(self.lost)
        return {self.total - distance for distance in self.from_end} | set(self.lost)

    def _after_fault(self, ask: PageAsk, row: int, known_end: int | None, reason: str) -> tuple[int, int | None]:
        """Where to go on, and up to where a row must be that breaks its page."""
        if ask.end - row > 1:
            return row, ask.end
        self._lose(row, known_end, reason)
        return row + 1, None

    def _lose(self, row: int, known_end: int | None, reason: str) -> None:
        self.lost[row] = reason
        if known_end is not None:
            self.from_end[known_end - row] = reason
            self._doubtful.discard(known_end - row)

    def _settle(self, ask: PageAsk) -> None:
        """What was lost before the list's length was known is remembered from its end, too."""
        if self.total is None:
            return
        self.from_end |= {self.total - row: reason for row, reason in self.lost.items()}
        self._doubtful -= self.from_end.keys()
        self.mended = {one for one in self._doubtful if ask.first <= self.total - one < ask.end}
        self._doubtful -= self.mended


def _is_last(page: Page[SeenSession], ask: PageAsk) -> bool:
    return page.page_count is None or ask.number >= page.page_count


def _came_again(rows: list[str], before: list[str], ask: PageAsk) -> bool:
    """True for the last page of a server that shows it again behind the list's end and does not say which it shows.

    A single row may come again since a new one came before it; a whole page does not.
    """
    return ask.size > 1 and bool(rows) and rows == before
