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
"""Rows that are read one by one at a head that holds an unreadable record."""

NAME = "the newest data sessions"


class NewestSessions:
    """Reads the head as far as it shows anything new.

    While it holds a record on which the cloud breaks, its rows are read one by one up to the first that is known; the
    whole page is tried again from time to time.
    """

    def __init__(self, recorder: SessionRecorder, *, clock: Callable[[], float]) -> None:
        self._recorder = recorder
        self._clock = clock
        self._broke_at: float | None = None
        self._interrupted = False
        self.sorted = True

    async def poll(self, state: PollState, reader: Reader) -> set[str]:
        """The ids that were seen."""
        if self._broke_at is not None and 0 <= self._clock() - self._broke_at < RETRY_UNREADABLE and self.sorted:
            return await self._poll_rows(state, reader)
        seen: set[str] = set()
        lost: list[LostRow] = []
        # After a poll that failed behind the first page, that page shows nothing new any more.
        to_the_end, self._interrupted = self._interrupted, True
        async for page in reader.pages((*session_list.NEWEST_FIRST, *reader.of_groups)):
            self._note_order(page)
            seen.update(row.session.id for row in page.items)
            lost += page.lost
            new = await self._shows_new(page, state)
            if not (new or to_the_end) or (page.page or 1) >= MOST_HEAD_PAGES:
                break
        self._interrupted = False
        self._broke_at = self._clock() if self._recorder.unreadable.name_rows(lost, NAME) else None
        return seen

    async def _poll_rows(self, state: PollState, reader: Reader) -> set[str]:
        seen: set[str] = set()
        async for page in reader.rows((*session_list.NEWEST_FIRST, *reader.of_groups), most=MOST_SINGLE_ROWS):
            seen.update(row.session.id for row in page.items)
            if page.items and not await self._shows_new(page, state):
                break
        return seen

    async def _shows_new(self, page: Page[SeenSession], state: PollState) -> bool:
        found = await self._recorder.record(page, state)
        return any(one.events and one.events[0].type == "session.started" for one in found)

    def _note_order(self, page: Page[SeenSession]) -> None:
        if (page.page_count or 1) > 1 and not session_list.starts_descend([row.session for row in page.items]):
            if self.sorted:
                log.warning("cloud.sort_not_honoured", sort="-start", then="new sessions are found by a full scan")
            self.sorted = False
