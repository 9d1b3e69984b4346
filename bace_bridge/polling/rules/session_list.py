"""How the list of data sessions is requested, and whether the server honoured the filter and the sort.

A Yii server ignores what it does not know and still answers 200, so every filter and sort is checked on its rows.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import msgspec
from msgspec.structs import replace

from bace_bridge.polling.rules.changes import Page, PollState, SeenSession
from bace_bridge.polling.rules.sessions import DataSession
from bace_bridge.polling.rules.windows import LATEST_FILTER

OVERLAP = 120.0
"""Seconds below the watermark from which a list is requested: rows may become visible after newer ones.

Where nothing new has come for as long, the next list begins above the watermark: a bulk edit can put thousands of rows
into one second, which would be read at every poll.
"""

Params = tuple[tuple[str, str], ...]

BY_ID = (("sort", "id_data_session"),)
NEWEST_FIRST = (("sort", "-start"),)
LATEST_UPDATE_FIRST = (("sort", "-updated_at"),)
ACTIVE = (("filter[end]", "NULL"), *BY_ID)


def updated_since(bound: float) -> Params:
    # Sorted by id: a list by `updated_at` loses rows that move while it is read; ids stay where they are.
    if bound <= 0:
        return BY_ID
    # As a plain integer, for a fraction is a 422; and no larger than int4, for that is a 500 on PostgreSQL.
    return (("filter[updated_at][gte]", str(min(int(bound), LATEST_FILTER))), *BY_ID)


def one_of(field: str, ids: Sequence[str]) -> Params:
    return tuple((f"filter[{field}][in][]", one) for one in ids)


def bound_of(state: PollState, cloud_now: float) -> float:
    """Where the next list of updates begins: above nothing that is still to come, where their clock was set back."""
    if state.watermark > cloud_now:
        return cloud_now - OVERLAP
    return state.watermark + 1 if state.settled and state.watermark > 0 else state.watermark - OVERLAP


def what_was_ignored(page: Page[SeenSession], bound: float) -> str | None:
    """The filter or the sort of a list of updates that its page shows to be ignored; None where both held."""
    stamps = [row.session.updated_at for row in page.items]
    odd = [row.updated_at for row in page.lost if row.updated_at is not None]
    if bound > 0 and not all(stamp is not None and int(bound) <= stamp for stamp in (*stamps, *odd)):
        return "filter[updated_at]"
    # Within a page only: rows that are updated meanwhile move others to the next one.
    ids = [row.session.id.lower() for row in page.items]
    as_numbers = sorted(ids, key=lambda one: (len(one), one))  # ids may be numbers
    if page.page_count != 1 and ids not in (sorted(ids), as_numbers):
        return "sort=id_data_session"
    return None


def descends(page: Page[SeenSession], stamps: Sequence[float | None]) -> bool:
    """True where its rows' `stamps` show no other order; a list of one page is read to its end, in any order."""
    in_order = (one is not None and other is not None and one >= other for one, other in pairwise(stamps))
    return page.page_count == 1 or all(in_order)


def newest_update(page: Page[SeenSession], before: float | None) -> float | None:
    """The newest `updated_at`, also of rows of which nothing else can be read."""
    # `start` stands for one that is missing: such rows come in the whole list only, which would else be read to its end
    # at every poll.
    stamps = [row.session.start if row.session.updated_at is None else row.session.updated_at for row in page.items]
    lost = [row.updated_at for row in page.lost]
    return max((stamp for stamp in (before, *stamps, *lost) if stamp is not None), default=None)


def after_updates(state: PollState, newest: float | None, *, new: bool, now: float, cloud_now: float) -> PollState:
    """The state after a list of updates was read; `new` says that it showed anything new."""
    # A row from the future cannot push the watermark past what is to come. Only what a list showed counts, so time in
    # which none was read, in an outage or a rest, settles nothing.
    watermark = min(state.watermark if newest is None else max(state.watermark, newest), cloud_now)
    if new or watermark != state.watermark:
        return replace(state, watermark=watermark, news_at=now, settled=False)
    return replace(state, settled=state.settled or now - state.news_at >= OVERLAP)


def backfilled_at_once(state: PollState) -> PollState:
    """The state from which the whole list is read without waiting."""
    return replace(state, backfill_page=1, backfill_at=0.0, catching_up=True)


def after_time_out(state: PollState) -> PollState:
    """The state after a page of the whole list timed out: it is requested once more, then left out."""
    # Where the next one times out, too, it is all that is so far away. What comes before it is not to wait for that.
    if state.timed_out == state.backfill_page:
        return replace(state, backfill_page=state.backfill_page + 1)
    if state.timed_out == state.backfill_page - 1:
        return replace(state, backfill_page=1, timed_out=None)
    return replace(state, timed_out=state.backfill_page)


BEFORE_EVERYTHING = -1.0
PLAUSIBLE_AHEAD = 600.0
"""Seconds that the cloud's newest record may be ahead of its answers' `Date` before it is taken for a wrong one."""

StartKind = Literal["now", "all", "since", "ago"]


class FirstStart(msgspec.Struct, frozen=True):
    """`watch.start_from`. `seconds` is a time (epoch) for `since` and a duration for `ago`."""

    kind: StartKind
    seconds: float = 0.0

    def start_from(self, newest: float | None, *, now: float, cloud_now: float, empty: bool = False) -> float:
        """Epoch seconds in the cloud's time.

        For `now` that is `newest`, the newest stamp of all its rows: then a difference between its clock and ours is
        harmless. Where there is none, or not every row could be read, it is the time of the cloud's answers; only an
        `empty` cloud has no history.
        """
        if self.kind == "all" or (self.kind == "now" and empty):
            return BEFORE_EVERYTHING
        if self.kind == "since":
            return self.seconds
        if self.kind == "ago":
            return now - self.seconds
        return newest if newest is not None and newest <= cloud_now + PLAUSIBLE_AHEAD else cloud_now


def newest_stamp(rows: Sequence[DataSession]) -> float | None:
    """The time of the latest change that the rows show; their ends count where `updated_at` is null."""
    stamps = [stamp for row in rows for stamp in (row.updated_at, row.created_at, row.end) if stamp is not None]
    return max(stamps, default=None)


_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_selected(groups: Collection[str], group_id: str, label: str | None) -> bool:
    """True when `groups` name the device by id or by label; without any, every device is watched."""
    return not groups or group_id in groups or (label is not None and label in groups)


def decides_by_label(groups: Collection[str], group_id: str) -> bool:
    """True when the device's label decides whether it is watched: its id does not, and some entry may be a label."""
    return bool(groups) and group_id not in groups and not are_ids(groups)


def are_ids(groups: Collection[str]) -> bool:
    return all(_ID.fullmatch(one) for one in groups)


def unmatched(groups: Collection[str], devices: Mapping[str, str | None]) -> list[str]:
    """The entries that are neither the id nor the label of one of these devices (labels by id)."""
    labels = set(devices.values())
    return [one for one in groups if one not in devices and one not in labels]


def starts_from(state: PollState, group_id: str, label: str | None) -> float:
    """The time (epoch seconds, the cloud's) from which a device's sessions are reported."""
    names = [name for name in (group_id, label) if name is not None]
    named = [name for name in names if name in (state.groups or ())] or [one for one in names if one in state.joined]
    return min((state.joined.get(name, state.start_from) for name in named), default=state.start_from)


def with_selection(state: PollState, groups: Sequence[str], *, start_from: float) -> PollState:
    """The state with another selection. Devices that it adds are reported from `start_from`, and read at once."""
    now, before = tuple(sorted(groups)), state.groups
    state = replace(state, groups=now, groups_checked_at=None)
    if not before or before == now:
        return state
    if now:
        added = dict.fromkeys(set(now) - set(before), start_from)
        state = replace(state, joined={name: since for name, since in state.joined.items() if name in now} | added)
        if not added:
            return state
    else:
        joined = {name: state.joined.get(name, state.start_from) for name in before}
        state = replace(state, start_from=start_from, joined=joined)
    return replace(backfilled_at_once(state), active_found=False)
