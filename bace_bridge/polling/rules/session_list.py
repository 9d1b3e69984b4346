"""How the list of data sessions is asked for, and whether the server did what it was asked.

A Yii server ignores what it does not know and still answers 200, so every filter and sort is checked on its rows.
"""

from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import replace

from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import LATEST_FILTER
from bace_bridge.polling.rules.seen import Page, SeenSession
from bace_bridge.polling.rules.sessions import DataSession

OVERLAP = 120.0
"""Seconds below the watermark from which a list is asked for: rows may become visible after newer ones.

Where nothing new has come for as long, the next list begins above the watermark: a bulk edit can put thousands of rows
into one second, which would be read at every poll.
"""

Params = tuple[tuple[str, str], ...]

BY_ID = (("sort", "id_data_session"),)
NEWEST_FIRST = (("sort", "-start"),)
LATEST_UPDATE_FIRST = (("sort", "-updated_at"),)
ACTIVE = (("filter[end]", "NULL"), *BY_ID)


def updated_since(bound: float) -> Params:
    """Sorted by id: a list by `updated_at` loses rows that move while it is read; ids stay where they are."""
    if bound <= 0:
        return BY_ID
    return (("filter[updated_at][gte]", str(min(int(bound), LATEST_FILTER))), *BY_ID)


def by_ids(ids: Sequence[str]) -> Params:
    return tuple(("filter[id_data_session][in][]", one) for one in ids)


def of_groups(ids: Sequence[str]) -> Params:
    return tuple(("filter[id_group][in][]", one) for one in ids)


def bound_of(state: PollState, cloud_now: float) -> float:
    """Where the next list of updates begins: above nothing that is still to come, where their clock was set back."""
    if state.watermark > cloud_now:
        return cloud_now - OVERLAP
    return state.watermark + 1 if state.settled and state.watermark > 0 else state.watermark - OVERLAP


def what_was_ignored(page: Page[SeenSession], bound: float) -> str | None:
    """The filter or the sort of a list of updates that its page shows to be ignored; None where both held.

    The order is that within a page: rows that are updated meanwhile move others to the next one.
    """
    stamps = [row.session.updated_at for row in page.items]
    odd = [row.updated_at for row in page.lost if row.updated_at is not None]
    if bound > 0 and not all(stamp is not None and int(bound) <= stamp for stamp in (*stamps, *odd)):
        return "filter[updated_at]"
    ids = [row.session.id.lower() for row in page.items]
    as_numbers = sorted(ids, key=lambda one: (len(one), one))  # ids may be numbers
    if page.page_count != 1 and ids not in (sorted(ids), as_numbers):
        return "sort=id_data_session"
    return None


def newest_come_first(page: Page[SeenSession]) -> bool:
    """True for a page of a list by start; a list of one page is read to its end, however it is sorted."""
    return page.page_count == 1 or all(one.session.start >= other.session.start for one, other in pairwise(page.items))


def updates_descend(rows: Sequence[DataSession]) -> bool:
    stamps = [row.updated_at for row in rows]
    return all(one is not None and other is not None and one >= other for one, other in pairwise(stamps))


def newest_update(page: Page[SeenSession], before: float | None) -> float | None:
    """The newest `updated_at`, also of rows of which nothing else can be read; `start` stands for one that is missing.

    Rows without one come in the whole list only, which would else be read to its end at every poll.
    """
    stamps = [row.session.start if row.session.updated_at is None else row.session.updated_at for row in page.items]
    lost = [row.updated_at for row in page.lost]
    return max((stamp for stamp in (before, *stamps, *lost) if stamp is not None), default=None)


def after_updates(state: PollState, newest: float | None, *, new: bool, now: float, cloud_now: float) -> PollState:
    """The state after a list of updates was read; `new` says that it showed anything new.

    A row from the future cannot push the watermark past what is to come. Only what a list showed counts, so time in
    which none was read, in an outage or a rest, settles nothing.
    """
    watermark = min(state.watermark if newest is None else max(state.watermark, newest), cloud_now)
    if new or watermark != state.watermark:
        return replace(state, watermark=watermark, news_at=now, settled=False)
    return replace(state, settled=state.settled or now - state.news_at >= OVERLAP)


def backfilled_at_once(state: PollState) -> PollState:
    """The state from which the whole list is read without waiting."""
    return replace(state, backfill_page=1, backfill_at=0.0, catching_up=True)


def after_time_out(state: PollState) -> PollState:
    """The state after a page of the whole list timed out: it is asked for once more, then left out.

    Where the next one times out, too, it is all that is so far away. What comes before it is not to wait for that.
    """
    if state.timed_out == state.backfill_page:
        return replace(state, backfill_page=state.backfill_page + 1)
    if state.timed_out == state.backfill_page - 1:
        return replace(state, backfill_page=1, timed_out=None)
    return replace(state, timed_out=state.backfill_page)
