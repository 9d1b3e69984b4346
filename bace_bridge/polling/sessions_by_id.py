"""Asks for known data sessions by their ids: a removed one shows up in no list."""

from collections.abc import Awaitable, Callable, Collection, Sequence

from msgspec.structs import replace

from bace_bridge.errors import CloudRefused
from bace_bridge.polling.needs import SessionCloud, SessionJournal
from bace_bridge.polling.reading import Reader, Unreadable, pages
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import is_recent
from bace_bridge.polling.rules.seen import Page, SeenSession
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


class SessionsById:
    """Ten in one request. Who is not in its answer is asked for alone, and all where there is none."""

    def __init__(
        self,
        cloud: SessionCloud,
        journal: SessionJournal,
        recorder: SessionRecorder,
        *,
        interval: float,
        clock: Callable[[], float],
    ) -> None:
        self._cloud = cloud
        self._journal = journal
        self._recorder = recorder
        self._interval = interval
        self._clock = clock
        self._active_after = ""
        self._alone_since: float | None = None

    async def recheck(self, state: PollState, reader: Reader) -> PollState:
        """The state after a round over the known sessions, where it is time for one."""
        now = self._clock()
        if is_recent(state.rechecked_at, now, self._interval):
            return state
        suspects = self._recorder.suspects[:MOST_CHECKS]
        unfinished = await _next(self._journal.unfinished_after, state.recheck_after, MOST_UNFINISHED)
        if not (unfinished or suspects) and is_recent(state.rechecked_at, now, RARELY * self._interval):
            return state
        places = MOST_RECHECKED - len(unfinished)
        finished = await _next(self._journal.finished_after, state.recheck_finished_after, places)
        ids = dict.fromkeys([*suspects, *unfinished, *finished])
        done = await self._ask_for([*ids], state, reader)
        return replace(
            state,
            rechecked_at=now,
            recheck_after=_last(unfinished, done) or state.recheck_after,
            recheck_finished_after=_last(finished, done) or state.recheck_finished_after,
        )

    async def some_active(self, state: PollState, reader: Reader, *, most: int, but: Collection[str]) -> None:
        """Asks for the next active sessions, in turn, `but` those that were just seen: an end is not to wait."""
        active = await _next(self._journal.active_after, self._active_after, most)
        done = await self._ask_for([one for one in active if one not in but], state, reader)
        self._active_after = _last(active, done | set(but)) or self._active_after

    async def _ask_for(self, ids: Sequence[str], state: PollState, reader: Reader) -> set[str]:
        """Asks for sessions, in their order, as far as single requests are left; returns which were asked for."""
        done: set[str] = set()
        checks = 0
        for first in range(0, len(ids), MOST_IDS):
            part = [one for one in ids[first : first + MOST_IDS] if not self._rests(one)]
            answered = await self._ask_together(part, state, reader)
            for one in part:
                if one not in (answered or ()):
                    if checks == MOST_CHECKS:
                        return done
                    checks += 1
                    await self._recorder.check(one, state, reader)
                done.add(one)
            if answered is None and not any(self._rests(one) for one in part):
                # It is not one of them that breaks: the filter is ignored or refused, or the query is too long.
                self._alone_since = self._clock()
        return done

    def _rests(self, session_id: str) -> bool:
        return self._recorder.unreadable.rests(record_of(session_id))

    async def _ask_together(self, ids: Sequence[str], state: PollState, reader: Reader) -> set[str] | None:
        """The ids that were answered for; None where the answer is none to this question."""
        answered: set[str] = set()
        if len(ids) < 2 or is_recent(self._alone_since, self._clock(), FILTER_RETRY):  # noqa: PLR2004  # one has its own address
            return answered
        try:
            async for page in pages(lambda number: self._page(ids, number, reader)):
                if not {row.session.id for row in page.items} <= set(ids):
                    return None
                await self._recorder.record(page, state, reader)
                answered.update(row.session.id for row in page.items)
        except (CloudRefused, Unreadable):
            return None
        return answered

    async def _page(self, ids: Sequence[str], number: int, reader: Reader) -> Page[SeenSession]:
        params = session_list.by_ids(ids)
        return await reader.ask(
            lambda: self._cloud.session_page(params, number, per_page=MOST_IDS, expand=reader.expand), long=True
        )


async def _next(after: Callable[[str, int], Awaitable[list[KnownSession]]], cursor: str, most: int) -> list[str]:
    """The ids of the next sessions behind the cursor; the first ones where the last have had their turn."""
    return [one.session.id for one in await after(cursor, most) or (await after("", most) if cursor else [])]


def _last(ids: Sequence[str], done: Collection[str]) -> str | None:
    return next((one for one in reversed(ids) if one in done), None)
