"""Polls the newest sessions: the head of the list by start."""

from collections.abc import Callable

import structlog

from bace_bridge.polling.reading import Reader
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE
from bace_bridge.polling.rules.seen import LostRow, Page, SeenSession

log = structlog.get_logger()

MOST_HEAD_PAGES = 5
"""Pages of the head in one poll; what is behind them is found by the backfill."""

MOST_SINGLE_ROWS = 20
MOST_BROKEN_ROWS = 5
"""Rows that are read one by one at a head that holds an unreadable record, and how many of them may break."""

NAME = "the newest data sessions"


class NewestSessions:
    """Reads the head down to what the poll before has seen, and as far as it shows anything new.

    While it holds a record on which the cloud breaks, its rows are read one by one; the whole page is tried again from
    time to time. Where the head is not sorted it is not read at all meanwhile: the backfill finds new sessions.
    """

    def __init__(
        self, recorder: SessionRecorder, *, clock: Callable[[], float], cloud_now: Callable[[], float]
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._cloud_now = cloud_now
        self._broke_at: float | None = None
        self._seen: set[str] = set()
        self._order_named = False
        self.sorted = True

    async def poll(self, state: PollState, reader: Reader) -> set[str]:
        """The ids that were seen."""
        if self._broke_at is not None and 0 <= self._clock() - self._broke_at < RETRY_UNREADABLE:
            return await self._poll_rows(state, reader) if self.sorted else set()
        seen: set[str] = set()
        lost: list[LostRow] = []
        in_order = True
        async for page in reader.pages((*session_list.NEWEST_FIRST, *reader.of_groups)):
            in_order = in_order and session_list.newest_come_first(page)
            seen.update(row.session.id for row in page.items)
            lost += page.lost
            new = await self._shows_new(page, state)
            if (not new and not seen.isdisjoint(self._seen)) or (page.page or 1) >= MOST_HEAD_PAGES:
                break
        self._note_order(in_order=in_order)
        self._seen = seen
        self._broke_at = self._clock() if self._recorder.unreadable.name_rows(lost, NAME) else None
        return seen

    async def _poll_rows(self, state: PollState, reader: Reader) -> set[str]:
        """One that starts in the future stays at the head for long, above those that are new."""
        seen: set[str] = set()
        newest_first = (*session_list.NEWEST_FIRST, *reader.of_groups)
        async for page in reader.rows(newest_first, most=MOST_SINGLE_ROWS, most_broken=MOST_BROKEN_ROWS):
            seen.update(row.session.id for row in page.items)
            new = await self._shows_new(page, state)
            past = any(row.session.start <= self._cloud_now() for row in page.items)
            if not new and past and not seen.isdisjoint(self._seen):
                break
        self._seen |= seen
        return seen

    async def _shows_new(self, page: Page[SeenSession], state: PollState) -> bool:
        found = await self._recorder.record(page, state)
        return any(one.events and one.events[0].type == "session.started" for one in found)

    def _note_order(self, *, in_order: bool) -> None:
        self.sorted = in_order
        if not in_order and not self._order_named:
            log.warning("cloud.sort_not_honoured", sort="-start", then="new sessions are found by a full scan")
            self._order_named = True
