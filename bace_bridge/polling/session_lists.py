"""The lists that a poll reads: the data sessions that were updated, the newest ones, and the active ones."""

from collections.abc import Callable

import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudError, CloudRefused
from bace_bridge.polling.reading import MOST_NARROWING, NOT_SUPPORTED, Reader
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE
from bace_bridge.polling.rules.seen import LostRow

log = structlog.get_logger()

UPDATED = "the updated data sessions"
NEWEST = "the newest data sessions"
ACTIVE = "the active data sessions"

MOST_HEAD_PAGES = 5
"""Pages of the newest sessions in one poll; what is behind them is found by the backfill."""

MOST_SINGLE_ROWS = 20
MOST_BROKEN_ROWS = 5
"""Rows that are read one by one at a head that holds an unreadable record, and how many of them may break."""


class SessionLists:
    """Each is recorded page by page. One that holds an unreadable record rests for a while (`unreadable.rests`)."""

    def __init__(
        self, recorder: SessionRecorder, *, clock: Callable[[], float], cloud_now: Callable[[], float]
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._cloud_now = cloud_now
        self._read_at = self._news_at = clock()
        self._seen: set[str] = set()
        self._order_named = False
        self.newest_first = True

    async def updated(self, state: PollState, reader: Reader) -> tuple[PollState, str | None]:
        """All that was updated since the watermark, and why that cannot be told, where the server does not honour it.

        The watermark passes what cannot be read: the backfill finds it when it can be, and soon. Once nothing new has
        come for long in lists that were read, the next one begins above the watermark.
        """
        bound = session_list.bound_of(state, quiet_for=self._read_at - self._news_at)
        newest, new = None, False
        lost: list[LostRow] = []
        try:
            async for page in reader.pages((*session_list.updated_since(bound), *reader.of_groups)):
                if ignored := session_list.what_was_ignored(page, bound):
                    return state, ignored
                new = bool(await self._recorder.record(page, state, reader)) or new
                lost += page.lost
                newest = session_list.newest_update(page, newest)
        except CloudRefused as refusal:
            if refusal.status in NOT_SUPPORTED:
                return state, str(refusal)
            raise
        after = session_list.with_watermark(state, newest, cloud_now=self._cloud_now())
        self._read_at = self._clock()
        if new or after.watermark > state.watermark:
            self._news_at = self._read_at
        self._recorder.unreadable.name_rows(lost, UPDATED)
        if not lost:
            return after, None
        if reader.breaks >= MOST_NARROWING:
            return session_list.backfilled_at_once(after), None
        return replace(after, backfill_at=min(after.backfill_at, self._clock() + RETRY_UNREADABLE)), None

    async def newest(self, state: PollState, reader: Reader) -> set[str]:
        """The ids at the head by start, down to what the poll before has seen, and as far as it shows anything new.

        While the head rests its rows are read one by one. Where it is not sorted, it is not read at all meanwhile.
        """
        unreadable, resting = self._recorder.unreadable, self._recorder.unreadable.rests(NEWEST)
        if resting and not self.newest_first:
            return set()
        params = (*session_list.NEWEST_FIRST, *reader.of_groups)
        seen: set[str] = set()
        lost: list[LostRow] = []
        in_order = True
        async for page in reader.rows(params, MOST_SINGLE_ROWS, MOST_BROKEN_ROWS) if resting else reader.pages(params):
            found = await self._recorder.record(page, state, reader)
            seen.update(row.session.id for row in page.items)
            lost += page.lost
            in_order = in_order and session_list.newest_come_first(page)
            new = any(one.events and one.events[0].type == "session.started" for one in found)
            # One that starts in the future stays at the head for long, above those that are new.
            past = any(row.session.start <= self._cloud_now() for row in page.items)
            if past and not new and not seen.isdisjoint(self._seen):
                break
            if not resting and (page.page or 1) >= MOST_HEAD_PAGES:
                break
        if resting:
            self._seen |= seen
            return seen
        self._seen, self.newest_first = seen, in_order
        unreadable.name_rows(lost, NEWEST)
        if not in_order and not self._order_named:
            log.warning("cloud.sort_not_honoured", sort="-start", then="new sessions are found by a full scan")
            self._order_named = True
        return seen

    async def active(self, state: PollState, reader: Reader) -> PollState:
        """The sessions that are active at a first start, however old, without reading the history."""
        if state.active_found or self._recorder.unreadable.rests(ACTIVE):
            return state
        if state.start_from <= 0 and not state.joined:
            return replace(state, active_found=True)
        lost: list[LostRow] = []
        ignored: str | None = None
        try:
            async for page in reader.pages((*session_list.ACTIVE, *reader.of_groups)):
                if any(row.session.end is not None for row in page.items):
                    ignored = "filter[end] is ignored"
                    break
                await self._recorder.record(page, state, reader)
                lost += page.lost
        except CloudError as error:  # such as a time-out for want of an index
            ignored = str(error)
        if ignored is not None:
            log.info("cloud.filter_not_honoured", reason=ignored, then="reading the full list once")
            return session_list.backfilled_at_once(replace(state, active_found=True))
        self._recorder.unreadable.name_rows(lost, ACTIVE)
        return replace(state, active_found=not lost)
