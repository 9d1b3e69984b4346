"""How the list of data sessions is asked for, and whether the server did what it was asked.

A Yii server ignores what it does not know and still answers 200, so every filter and sort is checked on its rows.
"""

from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import replace

from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import LATEST_FILTER
from bace_bridge.polling.rules.sessions import DataSession, KnownSession

OVERLAP = 120.0
"""Seconds below the watermark from which a list is asked for: rows may become visible after newer ones."""

QUIET_WALKS = 3
"""After so many long walks with nothing new, the overlap is given up, and then the watermark's own second."""

Params = tuple[tuple[str, str], ...]

BY_ID = (("sort", "id_data_session"),)
NEWEST_FIRST = (("sort", "-start"),)
LATEST_UPDATE_FIRST = (("sort", "-updated_at"),)
ACTIVE = (("filter[end]", "NULL"), *BY_ID)


def updated_between(since: float, until: int | None = None) -> Params:
    """Sorted by id: a walk by `updated_at` loses rows that move while it lasts; ids stay where they are."""
    first = min(max(0, int(since)), LATEST_FILTER)
    if until is None:
        return (("filter[updated_at][gte]", str(first)), *BY_ID) if since > 0 else BY_ID
    return (("filter[updated_at][gte]", str(first)), ("filter[updated_at][lt]", str(until)), *BY_ID)


NONE_UPDATED = updated_between(LATEST_FILTER - 1, LATEST_FILTER)
"""Shows nothing, unless its filter is ignored."""


def by_ids(ids: Sequence[str]) -> Params:
    return tuple(("filter[id_data_session][in][]", one) for one in ids)


def bound_of(state: PollState) -> float:
    """Where the next list of updates begins.

    A bulk edit can put thousands of rows into one second. As long as nothing newer comes they would be walked at every
    poll, so after some such walks that showed nothing new the bound moves up to the watermark, then past it.
    """
    bound = state.watermark - OVERLAP if state.quiet_walks < QUIET_WALKS else state.watermark
    return max(bound, state.floor)


def updates_held(rows: Sequence[DataSession], bound: float, until: int | None = None) -> bool:
    """True when every row was updated since `bound` and before `until`."""
    if bound <= 0 and until is None:
        return True
    stamps = [row.updated_at for row in rows]
    return all(one is not None and int(bound) <= one and (until is None or one < until) for one in stamps)


def ids_ascend(rows: Sequence[DataSession], after: str) -> bool:
    ids = [after, *(row.id.lower() for row in rows)]
    return all(one <= other for one, other in pairwise(ids))


def starts_descend(rows: Sequence[DataSession]) -> bool:
    return all(one.start >= other.start for one, other in pairwise(rows))


def updates_descend(rows: Sequence[DataSession]) -> bool:
    stamps = [row.updated_at for row in rows]
    return all(one is not None and other is not None and one >= other for one, other in pairwise(stamps))


def in_turn(unfinished: Sequence[KnownSession], after: str, *, most: int) -> tuple[list[KnownSession], str]:
    """The unfinished sessions to ask for in this poll, and the id after which the next turn begins; before, `after`.

    Half of the places go to those that most likely change: the active ones, then those that changed last. All others
    take turns, by id: sessions that never become ingested pile up, and a poll must not cost more for them.
    """
    if len(unfinished) <= most:
        return list(unfinished), ""
    likely = sorted(unfinished, key=_likely_to_change, reverse=True)
    first, rest = likely[: most // 2], sorted(likely[most // 2 :], key=lambda one: one.session.id)
    turn = [one for one in rest if one.session.id > after] + [one for one in rest if one.session.id <= after]
    turn = turn[: most - len(first)]
    return [*first, *turn], turn[-1].session.id


def _likely_to_change(known: KnownSession) -> tuple[bool, float]:
    session = known.session
    return session.end is None, max(session.start, session.end or 0.0, session.updated_at or 0.0)


def after_walk(state: PollState, rows_newest: float | None, *, pages: int, new: bool, cloud_now: float) -> PollState:
    """The state after a complete walk. A row from the future cannot push the watermark past what is to come."""
    watermark = state.watermark
    if rows_newest is not None:
        watermark = max(watermark, min(rows_newest, cloud_now))
    grown = new or watermark > state.watermark
    quiet = 0 if grown else state.quiet_walks + (1 if pages > 1 else 0)
    floor = watermark + 1 if quiet >= 2 * QUIET_WALKS else state.floor
    return replace(state, watermark=watermark, quiet_walks=quiet, floor=floor)


def is_one_bulk(rows: Sequence[DataSession]) -> bool:
    """True when all these rows, the latest ones, were updated in the same second."""
    return len(rows) > 1 and len({row.updated_at for row in rows}) == 1
