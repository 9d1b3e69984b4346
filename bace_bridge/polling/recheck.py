"""Asks for known data sessions by their ids: a removed one shows up in no list."""

from collections.abc import Awaitable, Callable, Collection, Sequence

from msgspec.structs import replace

from bace_bridge.errors import CloudBadGateway, CloudRefused, CloudRequestTooLarge
from bace_bridge.polling.needs import SessionCloud, SessionJournal
from bace_bridge.polling.reading import Reader, Unreadable, pages
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import NOBODY, halves_of
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
"""Seconds after which a filter that was not honoured, or as many ids as before, are tried again."""

RARELY = 10
"""With no unfinished session, only every so many-th round is made."""


class Recheck:
    """Many sessions in one request where the server honours that; who is not in the answer is asked for alone."""

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
        self._most_ids = MOST_IDS
        self._active_after = ""
        self._fewer_since: float | None = None
        self._filter_broke_at: float | None = None

    def is_due(self, state: PollState) -> bool:
        return not 0 <= self._clock() - state.rechecked_at < self._interval

    async def round_due(self, state: PollState, reader: Reader) -> PollState:
        """The state after a round over the known sessions, where it is time for one."""
        if not self.is_due(state):
            return state
        now = self._clock()
        waited = now - state.rechecked_at
        suspects = await self._journal.known(self._recorder.suspects[:MOST_CHECKS])
        unfinished = await _next(self._journal.unfinished_after, state.recheck_after, MOST_UNFINISHED)
        if not unfinished and not suspects and 0 <= waited < RARELY * self._interval:
            return state
        places = MOST_RECHECKED - len(unfinished)
        finished = await _next(self._journal.finished_after, state.recheck_finished_after, places)
        for known in suspects.values():
            await self._recorder.check(known, state)
        called = [*unfinished, *finished]
        done = called[: await self._ask_for(called, state, reader, but=suspects)]
        return replace(
            state,
            rechecked_at=now,
            recheck_after=_cursor(unfinished, done, state.recheck_after, MOST_UNFINISHED),
            recheck_finished_after=_cursor(finished, done, state.recheck_finished_after, places),
        )

    async def some_active(self, state: PollState, reader: Reader, *, most: int, but: Collection[str]) -> None:
        """Asks for the next active sessions, in turn, `but` those that were just seen: an end is not to wait."""
        active = await _next(self._journal.active_after, self._active_after, most)
        done = active[: await self._ask_for(active, state, reader, but=but)]
        self._active_after = _cursor(active, done, self._active_after, most)

    async def _ask_for(
        self, known: Sequence[KnownSession], state: PollState, reader: Reader, *, but: Collection[str] = ()
    ) -> int:
        """Asks for sessions by their ids; returns how many of them, from the first on, were asked for."""
        if not self._is_recent(self._fewer_since):
            self._most_ids = MOST_IDS
        checks_left = MOST_CHECKS
        done = 0
        while done < len(known):
            batch = known[done : done + self._most_ids]
            to_ask = [one for one in batch if not self._rests(one) and one.session.id not in but]
            answered = await self._ask_together([one.session.id for one in to_ask], state, reader)
            for one in batch:
                if one in to_ask and one.session.id not in answered:
                    if not checks_left:
                        return done
                    checks_left -= 1
                    await self._recorder.check(one, state)
                done += 1
        return done

    def _rests(self, known: KnownSession) -> bool:
        return self._recorder.unreadable.rests(record_of(known.session.id))

    async def _ask_together(self, ids: Sequence[str], state: PollState, reader: Reader) -> set[str]:
        """The ids that were answered for; none where the server does not honour the filter."""
        answered: set[str] = set()
        if len(ids) < 2 or self._is_recent(self._filter_broke_at):  # noqa: PLR2004  # one alone is asked for by its own address
            return answered

        async def read(part: Sequence[str]) -> None:
            try:
                async for page in pages(lambda number: self._page(part, number, reader)):
                    if not {row.session.id for row in page.items} <= set(part):
                        self._filter_broke_at = self._clock()
                        return
                    await self._recorder.record(page, state)
                    answered.update(row.session.id for row in page.items)
            except Unreadable as fault:
                if isinstance(fault.cause, CloudRequestTooLarge | CloudBadGateway):
                    self._most_ids = max(1, min(self._most_ids, len(part) // 2))
                    self._fewer_since = self._clock()
                elif not await self._filter_is_honoured(reader):
                    return
                raise

        try:
            await reader.bisect(ids, read, halves_of)
        except CloudRefused:
            self._filter_broke_at = self._clock()
        return answered

    def _is_recent(self, at: float | None) -> bool:
        return at is not None and 0 <= self._clock() - at < FILTER_RETRY

    async def _filter_is_honoured(self, reader: Reader) -> bool:
        """Where it is ignored, every part breaks in the same way, on a row that nobody asked for."""
        try:
            honoured = not (await self._page([NOBODY], 1, reader)).count
        except Unreadable:
            honoured = False
        self._filter_broke_at = None if honoured else self._clock()
        return honoured

    async def _page(self, ids: Sequence[str], number: int, reader: Reader) -> Page[SeenSession]:
        return await reader.ask(
            lambda: self._cloud.session_page(session_list.by_ids(ids), number, per_page=MOST_IDS, expand=reader.expand),
            long=len(ids) > 1,
        )


async def _next(
    after: Callable[[str, int], Awaitable[list[KnownSession]]], cursor: str, most: int
) -> list[KnownSession]:
    """The next sessions behind the cursor; the first ones where the last have had their turn."""
    return await after(cursor, most) or (await after("", most) if cursor else [])


def _cursor(called: Sequence[KnownSession], done: Sequence[KnownSession], before: str, most: int) -> str:
    """The id after which the next round begins; empty where it begins anew, since there were fewer than `most`."""
    ids = {one.session.id for one in done}
    for known in called:
        if known.session.id not in ids:
            return before
        before = known.session.id
    return before if len(called) == most else ""
