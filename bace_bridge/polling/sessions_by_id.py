"""Asks for known data sessions by their ids: a removed one shows up in no list."""

from collections.abc import Awaitable, Callable, Collection, Sequence

from msgspec.structs import replace

from bace_bridge.errors import CloudRefused
from bace_bridge.polling.reading import Reader, Unreadable, pages
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import is_recent
from bace_bridge.polling.rules.session_list import by_ids
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.unreadable import record_of

MOST_RECHECKED = 50
MOST_UNFINISHED = 40
"""Sessions in one round, and how many of them are unfinished ones at most: finished ones have their turn, too."""

MOST_CHECKS = 20
"""Sessions that are asked for one by one in a round, so that a poll stays short."""

MOST_IDS = 10
"""Ids in one request: the answer's `Link` header repeats them three to five times, and nginx takes 4 KB of headers."""

FILTER_RETRY = 3600.0
"""Seconds after which many ids in one request are tried again where the server did not honour that."""

RARELY = 10
"""With no unfinished session, only every so many-th round is made."""


async def recheck(state: PollState, reader: Reader, recorder: SessionRecorder, *, interval: float) -> PollState:
    """The state after a round over the known sessions, where it is time for one."""
    now = recorder.clock()
    if is_recent(state.rechecked_at, now, interval):
        return state
    suspects = recorder.suspects[:MOST_CHECKS]
    unfinished = await _next(recorder.journal.unfinished_after, state.recheck_after, MOST_UNFINISHED)
    if not (unfinished or suspects) and is_recent(state.rechecked_at, now, RARELY * interval):
        return state
    places = MOST_RECHECKED - len(unfinished)
    finished = await _next(recorder.journal.finished_after, state.recheck_finished_after, places)
    ids = dict.fromkeys([*suspects, *unfinished, *finished])
    state, done = await _ask_for([*ids], state, reader, recorder)
    return replace(
        state,
        rechecked_at=now,
        recheck_after=_last(unfinished, done, state.recheck_after),
        recheck_finished_after=_last(finished, done, state.recheck_finished_after),
    )


async def some_active(
    state: PollState, reader: Reader, recorder: SessionRecorder, *, most: int, but: Collection[str]
) -> PollState:
    """Asks for the next active sessions, in turn, `but` those that were just seen: an end is not to wait."""
    ids = await _next(recorder.journal.active_after, state.active_after, most)
    state, done = await _ask_for([one for one in ids if one not in but], state, reader, recorder)
    return replace(state, active_after=_last(ids, {*done, *but}, state.active_after))


async def _ask_for(
    ids: Sequence[str], state: PollState, reader: Reader, recorder: SessionRecorder
) -> tuple[PollState, set[str]]:
    """Asks for sessions, in their order, as far as single requests are left; and which were asked for, or rest.

    Many go into one request. Who is not in its answer is asked for alone, and all where there is none.
    """
    done: set[str] = set()
    checks = 0
    for first in range(0, len(ids), MOST_IDS):
        together = ids[first : first + MOST_IDS]
        part = [one for one in together if not recorder.unreadable.rests(record_of(one))]
        alone = len(part) < 2 or is_recent(state.alone_since, recorder.clock(), FILTER_RETRY)  # noqa: PLR2004  # one has its own address
        answered = set() if alone else await _ask_together(part, state, reader, recorder)
        for one in part:
            if one not in (answered or ()):
                if checks == MOST_CHECKS:
                    return state, done
                checks += 1
                if not await recorder.check(one, state, reader):
                    return state, done | {one}
            done.add(one)
        done.update(together)
        if answered is None and not any(recorder.unreadable.rests(record_of(one)) for one in part):
            # It is not one of them that breaks: the filter is ignored or refused, or the query is too long.
            state = replace(state, alone_since=recorder.clock())
    return state, done


async def _ask_together(
    ids: Sequence[str], state: PollState, reader: Reader, recorder: SessionRecorder
) -> set[str] | None:
    """The ids that were answered for; None where the answer is none to this question."""
    answered: set[str] = set()
    try:
        async for page in pages(lambda number: reader.plain_page(by_ids(ids), number, MOST_IDS, long=True)):
            if not {row.session.id for row in page.items} <= set(ids):
                return None
            await recorder.record(page, state, reader)
            answered.update(row.session.id for row in page.items)
    except (CloudRefused, Unreadable):
        return None
    return answered


async def _next(after: Callable[[str, int], Awaitable[list[KnownSession]]], cursor: str, most: int) -> list[str]:
    """The ids of the next sessions behind the cursor, and behind the last one those of the first."""
    ids = [one.session.id for one in await after(cursor, most)]
    if cursor and len(ids) < most:
        ids += [one.session.id for one in await after("", most - len(ids))]
    return [*dict.fromkeys(ids)]


def _last(ids: Sequence[str], done: Collection[str], before: str) -> str:
    return next((one for one in reversed(ids) if one in done), before)
