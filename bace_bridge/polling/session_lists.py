"""The lists that a poll reads: the data sessions that were updated, the newest ones, and the active ones.

Each is recorded page by page. One that holds an unreadable record rests for a while (`unreadable.rests`).
"""

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


async def updated(state: PollState, reader: Reader, recorder: SessionRecorder) -> tuple[PollState, str | None]:
    """All that was updated since the watermark; or what the server ignores or refuses, so that it cannot be told.

    The watermark passes what cannot be read: the backfill finds it when it can be, and soon.
    """
    bound = session_list.bound_of(state)
    newest, new = None, False
    lost: list[LostRow] = []
    try:
        async for page in reader.pages((*session_list.updated_since(bound), *reader.of_groups)):
            if ignored := session_list.what_was_ignored(page, bound):
                return state, f"{ignored} is ignored"
            new = bool(await recorder.record(page, state, reader)) or new
            lost += page.lost
            newest = session_list.newest_update(page, newest)
    except CloudRefused as refusal:
        if refusal.status in NOT_SUPPORTED:
            return state, str(refusal)
        raise
    now = recorder.clock()
    state = session_list.after_updates(state, newest, new=new, now=now, cloud_now=recorder.cloud_now())
    recorder.unreadable.name_rows(lost, UPDATED)
    if reader.breaks >= MOST_NARROWING:
        return session_list.backfilled_at_once(state), None
    soon = now + RETRY_UNREADABLE if lost else state.backfill_at
    return replace(state, backfill_at=min(state.backfill_at, soon)), None


async def newest(state: PollState, reader: Reader, recorder: SessionRecorder) -> tuple[PollState, set[str]]:
    """The head by start, down to what the poll before has seen, and as far as it shows anything new; and the ids there.

    While the head rests its rows are read one by one. Where it is not sorted, it is not read at all meanwhile.
    """
    resting, sorted_before = recorder.unreadable.rests(NEWEST), state.newest_first
    if resting and not sorted_before:
        return state, set()
    params = (*session_list.NEWEST_FIRST, *reader.of_groups)
    seen: set[str] = set()
    lost: list[LostRow] = []
    starts: list[float] = []
    in_order = True
    async for page in reader.rows(params, MOST_SINGLE_ROWS, MOST_BROKEN_ROWS) if resting else reader.pages(params):
        found = await recorder.record(page, state, reader)
        in_order = in_order and session_list.newest_come_first(page)
        seen.update(row.session.id for row in page.items)
        lost += page.lost
        # One that starts in the future stays at the head for long, above those that are new.
        starts += [row.session.start for row in page.items if row.session.start <= recorder.cloud_now()]
        new = any(one.events and one.events[0].type == "session.started" for one in found)
        if not new and min(starts, default=state.head_start + 1) <= state.head_start:
            break
        if not resting and (page.page or 1) >= MOST_HEAD_PAGES:
            break
    if not resting:
        recorder.unreadable.name_rows(lost, NEWEST)
    if sorted_before and not in_order:
        log.warning("cloud.sort_not_honoured", sort="-start", then="new sessions are found by a full scan")
    head_start = max(starts, default=state.head_start)
    return replace(state, head_start=head_start, newest_first=in_order), seen


async def active(state: PollState, reader: Reader, recorder: SessionRecorder) -> PollState:
    """The sessions that are active at a first start, however old, without reading the history."""
    if state.active_found or recorder.unreadable.rests(ACTIVE):
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
            await recorder.record(page, state, reader)
            lost += page.lost
    except CloudError as error:  # such as a time-out for want of an index
        ignored = str(error)
    if ignored is not None:
        log.info("cloud.filter_not_honoured", reason=ignored, then="reading the full list once")
        return session_list.backfilled_at_once(replace(state, active_found=True))
    recorder.unreadable.name_rows(lost, ACTIVE)
    return replace(state, active_found=not lost)
