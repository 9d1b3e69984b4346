"""Reads the whole session list, slowly: some rows are shown by no filter.

A page now and then, a pass every `interval` seconds; by id, since ids stay where they are while rows change. After a
first start and for devices that were added it does not wait, nor where new sessions may be on any page.
"""

from msgspec.structs import replace

from bace_bridge.errors import CloudUnavailable
from bace_bridge.polling.reading import MOST_ROWS, Reader, is_last
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE

SHARE = 0.05
SHARE_AT_ONCE = 0.5
"""The part of the request budget that the backfill takes at most; the second where it does not wait."""

LONGEST_WAIT = 3600.0
"""Seconds: a longer wait is that of a clock which was set back."""

PAGES_AT_ONCE = 5
"""Pages in one poll where the backfill does not wait."""


async def backfill(
    state: PollState,
    reader: Reader,
    recorder: SessionRecorder,
    *,
    interval: float,
    requests_per_minute: int,
    full_scan: bool,
) -> PollState:
    """The state after the pages that are due. In a full scan one pass follows the other.

    A page is read down to the last row, whatever that takes: what is left out here is found by nothing else. One that
    times out, as a large OFFSET may, fails no poll, unless nothing else finds new sessions.
    """
    if 0 < state.backfill_at - recorder.clock() <= max(interval, LONGEST_WAIT):
        return state
    only_way = full_scan and not state.newest_first
    at_once = only_way or state.catching_up
    before, ended = reader.requests, False
    for _ in range(PAGES_AT_ONCE if at_once else 1):
        number = state.backfill_page
        place = f"data sessions, page {number}"
        reader.most_breaks = reader.breaks + 2 * MOST_ROWS
        try:
            page = await reader.page(session_list.BY_ID, number)
        except CloudUnavailable as error:
            if only_way or error.retry_after:
                raise
            if state.timed_out == number:  # once may be a hiccup
                recorder.unreadable.failed(place, str(error))
            return replace(state, backfill_at=recorder.clock() + RETRY_UNREADABLE, timed_out=number)
        recorder.unreadable.name_rows(page.lost, place)
        if page.page in {None, number}:
            await recorder.record(page, state, reader)
        ended = is_last(page, number)
        state = replace(state, backfill_page=1 if ended else number + 1, timed_out=None)
        if ended or page.lost:
            break
    wait = (reader.requests - before) * 60 / requests_per_minute / (SHARE_AT_ONCE if at_once else SHARE)
    if ended:
        state = replace(state, catching_up=False)
        if not full_scan:  # sooner while a record cannot be read
            wait = max(wait, min(interval, RETRY_UNREADABLE) if recorder.unreadable.names else interval)
    return replace(state, backfill_at=recorder.clock() + wait)
