"""Reads the list of what was updated since a bound, around the seconds in which the cloud breaks on a row."""

from collections.abc import Callable
from typing import NamedTuple

from bace_bridge.domain.timestamps import iso_utc
from bace_bridge.errors import CloudError, CloudRefused, UnexpectedReply
from bace_bridge.polling.list_walk import BREAKS, MOST_ROWS, AllBroken, FaultBudget, ListWalk
from bace_bridge.polling.needs import SessionCloud
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.narrowing import FAR, MOST_HOLES, PLACE_RETRY, Hole, PageAsk, Span, halved, spans_around
from bace_bridge.polling.rules.seen import Page, SeenSession
from bace_bridge.polling.unread import Unread

SOON = 15.0
"""Seconds after which a new hole is looked at again: other rows may still have been updated in its second."""


class NotHonoured(Exception):  # a turn in the road, not an error
    """The server ignored or refused what this strategy rests on."""


class Read(NamedTuple):
    """What a reading of the list showed; `pages` are those of its longest span."""

    seen: set[str]
    newest: float | None
    pages: int
    news: bool
    holes: tuple[Hole, ...]


class UpdatedList:
    """One reading. `holes` grows while it goes on, so that a reading that is cut off leaves what it has found.

    `walks` are those through the seconds of holes: kept from look to look, a long one goes on where it was cut off.
    """

    def __init__(
        self,
        cloud: SessionCloud,
        recorder: SessionRecorder,
        unread: Unread,
        budget: FaultBudget,
        *,
        holes: tuple[Hole, ...],
        start_from: float,
        clock: Callable[[], float],
        walks: dict[int, ListWalk] | None = None,
    ) -> None:
        self._cloud = cloud
        self._recorder = recorder
        self._unread = unread
        self._budget = budget
        self._start_from = start_from
        self._clock = clock
        self.holes = holes
        self._walks = {} if walks is None else walks
        self._seen: set[str] = set()
        self._newest: float | None = None
        self._pages, self._news = 0, False
        self._filter_holds = False
        self._lost: set[int] = set()

    async def read(self, bound: float) -> Read:
        """Raises NotHonoured, AllBroken and CloudErrors.

        The newest first, and what breaks in a single second last: it must not keep anything else from being read.
        """
        spans = spans_around(bound, self.holes)
        broken: list[int] = []
        while spans:
            span = spans.pop()
            try:
                await self._read_span(span)
            except BREAKS as fault:
                await self._make_sure_of_the_filter()
                parts = halved(span, now=self._clock())
                if parts is not None:
                    spans += parts
                else:
                    self._leave_out(int(span.since), fault)
                    broken.append(int(span.since))
        for second in broken:
            await self._read_within(second)
        await self._try_again()
        return Read(self._seen, self._newest, self._pages, self._news, self.holes)

    async def _read_span(self, span: Span) -> None:
        params = session_list.updated_between(*span)
        number, size, last_id = 1, MOST_ROWS, ""
        while True:
            page = await self._asked(params, PageAsk(number, size))
            if page.page is not None and page.page != number:
                return
            rows = [row.session for row in page.items]
            if not session_list.updates_held(rows, *span):
                raise NotHonoured("filter[updated_at] is ignored")
            if (number > 1 or (page.page_count or 1) > 1) and not session_list.ids_ascend(rows, last_id):
                raise NotHonoured("sort=id_data_session is ignored")
            last_id = rows[-1].id.lower() if rows else last_id
            self._pages = max(self._pages, number)
            await self._record(page)
            if page.page_count is None or number >= page.page_count or not page.count:
                return
            number += 1

    async def _make_sure_of_the_filter(self) -> None:
        """Where it is ignored, every span breaks in the same way, however small it is."""
        if self._filter_holds:
            return
        nothing = session_list.updated_between(FAR - 1, FAR)
        try:
            page = await self._asked(nothing, PageAsk(1, 1))
        except BREAKS:
            raise NotHonoured("filter[updated_at] is ignored") from None
        if page.count:
            raise NotHonoured("filter[updated_at] is ignored")
        self._filter_holds = True

    async def _asked(self, params: session_list.Params, ask: PageAsk) -> Page[SeenSession]:
        try:
            return await self._budget.asked(params, ask)
        except CloudRefused as refusal:
            if refusal.status in {400, 404, 422}:
                raise NotHonoured(str(refusal)) from None
            raise

    async def _record(self, page: Page[SeenSession], *, within: int | None = None) -> None:
        """What was seen is committed. Raises UnexpectedReply where a lost row may be anywhere: it is to be narrowed."""
        self._recorder.name_unreadable(page)
        rows = [row.session for row in page.items]
        self._seen.update(row.id for row in rows)
        self._newest = max((row.updated_at for row in rows if row.updated_at is not None), default=self._newest or 0.0)
        self._news = bool(await self._recorder.record(page.items, start_from=self._start_from)) or self._news
        for row in page.lost:
            fault = UnexpectedReply(row.reason)
            second = within if row.updated_at is None else int(row.updated_at)
            if second is None:
                raise fault
            self._lost.add(second)
            self._leave_out(second, fault)

    def _leave_out(self, second: int, fault: CloudError) -> None:
        """It is a hole from now on, whatever happens later: the watermark may pass it."""
        if any(one.second == second for one in self.holes):
            return
        if len(self.holes) >= MOST_HOLES:
            raise AllBroken(fault)
        self._unread.failed(_name(second), str(fault), sure=True)
        self.holes = (*self.holes, Hole(second, self._clock() - PLACE_RETRY + SOON))

    async def _read_within(self, second: int) -> None:
        """Reads what can be read of a hole; where all of it can be, it is none any more."""
        walk = self._walks.setdefault(second, ListWalk(session_list.updated_between(second, second + 1)))
        self._lost.discard(second)
        try:
            async for page in walk.pages(self._budget):
                await self._record(page, within=second)
        except AllBroken:
            return
        del self._walks[second]
        if not walk.lost and not walk.from_end and second not in self._lost:
            self._close(second)

    def _close(self, second: int) -> None:
        self.holes = tuple(one for one in self.holes if one.second != second)
        self._unread.read(_name(second))

    async def _try_again(self) -> None:
        """One place that has rested: a row that was mended, removed or updated since leaves its second readable."""
        now = self._clock()
        rested = [one for one in self.holes if not 0 <= now - one.tried_at < PLACE_RETRY]
        for hole in self.holes:
            if not self._unread.knows(_name(hole.second)):
                self._unread.failed(_name(hole.second), "it could not be read before", sure=True)
        if not rested:
            return
        oldest = min(rested, key=lambda one: one.tried_at)
        self.holes = (*(one for one in self.holes if one != oldest), Hole(oldest.second, now))
        self._lost.discard(oldest.second)
        try:
            await self._read_span(Span(oldest.second, oldest.second + 1))
        except BREAKS:
            await self._read_within(oldest.second)
        except AllBroken:
            return
        else:
            if oldest.second not in self._lost:
                self._close(oldest.second)


def _name(second: int) -> str:
    return f"data sessions updated at {iso_utc(second)}"
