"""Reads the whole session list, slowly: some rows are shown by no filter."""

from collections.abc import Callable

from msgspec.structs import replace

from bace_bridge.errors import CloudUnavailable
from bace_bridge.polling.reading import MOST_ROWS, Reader, is_last
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE
from bace_bridge.polling.rules.seen import Page, SeenSession

SHARE = 0.05
SHARE_AT_ONCE = 0.5
"""The part of the request budget that the backfill takes at most; the second where it does not wait."""

LONGEST_WAIT = 3600.0
"""Seconds: a longer wait is that of a clock which was set back."""

PAGES_AT_ONCE = 5
"""Pages in one poll where the backfill does not wait."""


class Backfill:
    """A page now and then, a pass every `interval` seconds; by id, since ids stay where they are while rows change.

    After a first start and for devices that were added it does not wait, nor where new sessions may be on any page.
    One that times out, as a large OFFSET may, fails no poll: the cloud has just answered the rest of it.
    A page is read down to the last row, whatever that takes: what is left out here is found by nothing else.
    """

    def __init__(
        self,
        recorder: SessionRecorder,
        *,
        interval: float,
        requests_per_minute: int,
        clock: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self.interval = interval
        self._seconds_a_request = 60.0 / requests_per_minute
        self._clock = clock
        self._lost = False
        self._at_once_from = 0.0

    async def step(
        self, state: PollState, reader: Reader, *, only_way: bool = False, steady: bool = False
    ) -> PollState:
        """The state after the pages that are due.

        `only_way` says that nothing else finds new sessions, `steady` that a pass is to follow the one before.
        """
        at_once = only_way or state.catching_up
        due_at = self._at_once_from if at_once else state.backfill_at
        if 0 < due_at - self._clock() <= max(self.interval, LONGEST_WAIT):
            return state
        before, ended = reader.requests, False
        for _ in range(PAGES_AT_ONCE if at_once else 1):
            page = await self._read(state, reader, only_way=only_way)
            if page is None:
                self._at_once_from = self._clock() + RETRY_UNREADABLE
                return replace(state, backfill_at=self._at_once_from)
            ended = is_last(page, state.backfill_page)
            state = replace(state, backfill_page=state.backfill_page + 1)
            if ended or page.lost:
                break
        paid = (reader.requests - before) * self._seconds_a_request
        self._at_once_from = self._clock() + paid / SHARE_AT_ONCE
        if ended:
            return self._after_pass(state, steady=steady, paid=paid / SHARE)
        return replace(state, backfill_at=self._clock() + paid / SHARE)

    async def _read(self, state: PollState, reader: Reader, *, only_way: bool) -> Page[SeenSession] | None:
        """The next page, after it was recorded; None where it times out."""
        place = f"data sessions, page {state.backfill_page}"
        reader.most_breaks = reader.breaks + 2 * MOST_ROWS
        try:
            page = await reader.page(session_list.BY_ID, state.backfill_page)
        except CloudUnavailable as error:
            if only_way or error.retry_after:
                raise
            self._recorder.unreadable.failed(place, str(error))
            return None
        self._recorder.unreadable.name_rows(page.lost, place)
        self._lost = self._lost or bool(page.lost)
        if page.page in {None, state.backfill_page}:
            await self._recorder.record(page, state)
        return page

    def _after_pass(self, state: PollState, *, steady: bool, paid: float) -> PollState:
        """A pass in which a record could not be read is repeated earlier, but not before `paid` seconds."""
        wait = 0.0 if steady else min(self.interval, RETRY_UNREADABLE) if self._lost else self.interval
        self._lost = False
        return replace(state, backfill_page=1, backfill_at=self._clock() + max(wait, paid), catching_up=False)
