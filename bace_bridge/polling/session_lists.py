"""The lists that a poll reads: the data sessions that were updated, the newest, the active, and slowly all of them.

Each is recorded page by page. One that holds an unreadable record rests for a while (`unreadable.rests`).
"""

from collections.abc import Sequence
from functools import partial
from math import inf

import msgspec
import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudError, CloudRefused, CloudUnavailable
from bace_bridge.polling.reading import MOST_NARROWING, MOST_ROWS, NOT_SUPPORTED, Reader, Unreadable, is_last, pages
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import LostRow, PollState
from bace_bridge.polling.rules.session_list import FirstStart, are_ids
from bace_bridge.polling.rules.windows import NO_SUCH_SESSION, RETRY_UNREADABLE, is_recent

log = structlog.get_logger()

UPDATED = "the updated data sessions"
NEWEST = "the newest data sessions"
ACTIVE = "the active data sessions"

MOST_HEAD_PAGES = 5
"""Pages of the newest sessions in one poll; what is behind them is found by the backfill."""

MOST_SINGLE_ROWS = 20
MOST_BROKEN_ROWS = 5
"""Rows that are read one by one at a head that holds an unreadable record, and how many of them may break."""

CHECK_EVERY = 3600.0
"""Seconds after which it is checked again whether the filter is honoured."""

JUST_CHECKED = 60.0
"""Seconds after such a check in which a refused list is not refused for the sake of this filter."""

MOST_GROUPS = 10
"""Groups in a filter: the answer's `Link` header repeats their ids three to five times."""

SHARE = 0.05
SHARE_AT_ONCE = 0.5
"""The part of the request budget that the backfill takes at most; the second where it does not wait."""

LONGEST_WAIT = 3600.0
"""Seconds: a longer wait is that of a clock which was set back."""

PAGES_AT_ONCE = 5
"""Pages in one poll where the backfill does not wait."""


class PollSettings(msgspec.Struct, frozen=True):
    """What the list is polled with. Intervals are in seconds."""

    first_start: FirstStart
    session_interval: float
    recheck_interval: float
    backfill_interval: float
    requests_per_minute: int


async def updated(state: PollState, reader: Reader, recorder: SessionRecorder) -> tuple[PollState, str | None]:
    """All that was updated since the watermark; or what the server ignores or refuses of that request."""
    bound = session_list.bound_of(state, recorder.cloud.now())
    newest, new = None, False
    lost: list[LostRow] = []
    try:
        async for page in pages(partial(reader.page, (*session_list.updated_since(bound), *reader.of_groups))):
            if ignored := session_list.what_was_ignored(page, bound):
                return state, f"{ignored} is ignored"
            new = bool(await recorder.record(page, state, reader)) or new
            lost += page.lost
            newest = session_list.newest_update(page, newest)
    except CloudRefused as refusal:
        # It may be the filter for the groups that is refused, where one of them was deleted since it was checked.
        groups_sure = not reader.of_groups or is_recent(state.groups_checked_at, recorder.clock(), JUST_CHECKED)
        if refusal.status in NOT_SUPPORTED and groups_sure:
            return state, str(refusal)
        raise
    now = recorder.clock()
    # The watermark passes what cannot be read, or one bad row would hold it, and all that is newer would be read again
    # at each poll. The backfill finds the row when it can be read, and soon.
    state = session_list.after_updates(state, newest, new=new, now=now, cloud_now=recorder.cloud.now())
    recorder.unreadable.name_rows(lost, UPDATED)
    if reader.breaks >= MOST_NARROWING:
        return session_list.backfilled_at_once(state), None
    soon = now + RETRY_UNREADABLE if lost else state.backfill_at
    return replace(state, backfill_at=min(state.backfill_at, soon)), None


async def newest(state: PollState, reader: Reader, recorder: SessionRecorder) -> tuple[PollState, set[str]]:
    """The head by start, down to what was seen before and as far as it shows anything new; and the ids there."""
    # While the head rests its rows are read one by one: a new session is always among the first of them. Where the sort
    # is ignored it is not, so then the rest goes on, and the backfill finds it.
    resting, sorted_before = recorder.unreadable.rests(NEWEST), state.newest_first
    if resting and not sorted_before:
        return state, set()
    params = (*session_list.NEWEST_FIRST, *reader.of_groups)
    seen: set[str] = set()
    lost: list[LostRow] = []
    starts: list[float] = []
    in_order, head_pages = True, 0
    head = reader.rows(params, MOST_SINGLE_ROWS, MOST_BROKEN_ROWS) if resting else pages(partial(reader.page, params))
    async for page in head:
        found = await recorder.record(page, state, reader)
        in_order = in_order and session_list.descends(page, [row.session.start for row in page.items])
        seen.update(row.session.id for row in page.items)
        lost += page.lost
        # One that starts in the future stays at the head for long, above those that are new.
        starts += [row.session.start for row in page.items if row.session.start <= recorder.cloud.now()]
        new = any(one.events and one.events[0].type == "session.started" for one in found)
        if not new and min(starts, default=state.head_start + 1) <= state.head_start:
            break
        head_pages += 1
        if not resting and head_pages >= MOST_HEAD_PAGES:
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
        async for page in pages(partial(reader.page, (*session_list.ACTIVE, *reader.of_groups))):
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


async def backfill(
    state: PollState, reader: Reader, recorder: SessionRecorder, settings: PollSettings, *, full_scan: bool
) -> PollState:
    """Reads all, a page now and then, since some rows are shown by no filter; the state after the pages that are due.

    A pass every `backfill_interval`, in a full scan one after the other. After a first start and for devices that were
    added it does not wait, nor where new sessions may be on any page.
    """
    # By id, since ids stay where they are while rows change: a list by `updated_at` loses rows that move meanwhile.
    if 0 < state.backfill_at - recorder.clock() <= max(settings.backfill_interval, LONGEST_WAIT):
        return state
    only_way = full_scan and not state.newest_first
    at_once, before, ended = only_way or state.catching_up, reader.requests, False
    for _ in range(PAGES_AT_ONCE if at_once else 1):
        number, part = state.backfill_page, f"data sessions, page {state.backfill_page}"
        # Down to the last row, whatever that takes: what is left out here is found by nothing else.
        reader.most_breaks = reader.breaks + 2 * MOST_ROWS
        try:
            page = await reader.page(session_list.BY_ID, number)
        except CloudUnavailable as error:
            # A large OFFSET may take a database too long. What the poll has read before is no worse for that, so it
            # does not fail, unless nothing else finds new sessions.
            if only_way or error.retry_after:
                raise
            if state.timed_out == number:  # once may be a hiccup
                recorder.unreadable.failed(part, str(error))
            return session_list.after_time_out(replace(state, backfill_at=recorder.clock() + RETRY_UNREADABLE))
        recorder.unreadable.name_rows(page.lost, part)
        if page.page in {None, number}:
            await recorder.record(page, state, reader)
        last = page.items[-1].session.id if page.items else ""
        ended = is_last(page, number) or (page.page_count is None and last == state.backfill_last != "")
        state = replace(state, backfill_page=1 if ended else number + 1, backfill_last=last, timed_out=None)
        if ended or page.lost:
            break
    wait = (reader.requests - before) * 60 / settings.requests_per_minute / (SHARE_AT_ONCE if at_once else SHARE)
    if ended and not full_scan:
        wait = max(wait, min(settings.backfill_interval, RETRY_UNREADABLE if recorder.unreadable.failed_at else inf))
    return replace(state, backfill_at=recorder.clock() + wait, catching_up=state.catching_up and not ended)


async def with_group_filter(state: PollState, reader: Reader, recorder: SessionRecorder) -> PollState:
    """Sets `reader.of_groups`, if the groups are ids and the server honours a filter for them."""
    # Ids only: a label may become another device's at any time. An ignored filter is answered with 200, so it is
    # believed where it shows rows, all of these devices, and none for a device that does not exist.
    groups, now = recorder.groups, recorder.clock()
    if not 0 < len(groups) <= MOST_GROUPS or not are_ids(groups):
        return state
    if not is_recent(state.groups_checked_at, now, CHECK_EVERY):
        try:
            shown = await _groups_shown(reader, groups)
            honoured = bool(shown) and shown <= {*groups} and not await _groups_shown(reader, [NO_SUCH_SESSION])
        except (CloudRefused, Unreadable):
            honoured = False
        log.debug("cloud.group_filter", honoured=honoured)
        state = replace(state, groups_checked_at=now, groups_honoured=honoured)
    reader.of_groups = session_list.one_of("id_group", groups) if state.groups_honoured else ()
    return state


async def _groups_shown(reader: Reader, groups: Sequence[str]) -> set[str]:
    page = await reader.plain_page((*session_list.NEWEST_FIRST, *session_list.one_of("id_group", groups)), 1, 1)
    return {row.session.group_id for row in page.items}
