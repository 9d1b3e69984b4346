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
        self._interval = interval
        self._seconds_a_request = 60.0 / requests_per_minute
        self._clock = clock
        self._timed_out: int | None = None

    async def step(
        self, state: PollState, reader: Reader, *, only_way: bool = False, steady: bool = False
    ) -> PollState:
        """The state after the pages that are due.

        `only_way` says that nothing else finds new sessions, `steady` that a pass is to follow the one before. A pass
        is repeated earlier while a record cannot be read.
        """
        if 0 < state.backfill_at - self._clock() <= max(self._interval, LONGEST_WAIT):
            return state
        at_once = only_way or state.catching_up
        before, ended = reader.requests, False
        for _ in range(PAGES_AT_ONCE if at_once else 1):
            page = await self._read(state, reader, only_way=only_way)
            if page is None:
                return replace(state, backfill_at=self._clock() + RETRY_UNREADABLE)
            ended = is_last(page, state.backfill_page)
            state = replace(state, backfill_page=1 if ended else state.backfill_page + 1)
            if ended or page.lost:
                break
        wait = (reader.requests - before) * self._seconds_a_request / (SHARE_AT_ONCE if at_once else SHARE)
        if ended:
            pause = min(self._interval, RETRY_UNREADABLE) if self._recorder.unreadable.names else self._interval
            state = replace(state, catching_up=False)
            wait = max(wait, 0.0 if steady else pause)
        return replace(state, backfill_at=self._clock() + wait)

    async def _read(self, state: PollState, reader: Reader, *, only_way: bool) -> Page[SeenSession] | None:
        """The next page, after it was recorded; None where it times out."""
        place = f"data sessions, page {state.backfill_page}"
        reader.most_breaks = reader.breaks + 2 * MOST_ROWS
        try:
            page = await reader.page(session_list.BY_ID, state.backfill_page)
        except CloudUnavailable as error:
            if only_way or error.retry_after:
                raise
            if self._timed_out == state.backfill_page:  # once may be a hiccup
                self._recorder.unreadable.failed(place, str(error))
            self._timed_out = state.backfill_page
            return None
        self._recorder.unreadable.name_rows(page.lost, place)
        if page.page in {None, state.backfill_page}:
            await self._recorder.record(page, state, reader)
        return page
