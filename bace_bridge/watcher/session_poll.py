"""One look at the list of data sessions, by the strategy that the server is seen to honour."""

from collections.abc import AsyncIterator, Callable, Sequence

import structlog
from msgspec.structs import replace

from bace_bridge.domain import session_list
from bace_bridge.domain.changes import Changes, WatchState
from bace_bridge.domain.narrowing import PLACE_RETRY
from bace_bridge.domain.seen import Page, SeenSession
from bace_bridge.domain.sessions import DataSession, KnownSession
from bace_bridge.errors import CloudRefused
from bace_bridge.watcher.list_walk import AllBroken, FaultBudget, ListWalk
from bace_bridge.watcher.needs import SessionCloud, SessionJournal
from bace_bridge.watcher.recording import MOST_CHECKS, SessionRecorder
from bace_bridge.watcher.roll_call import RollCall
from bace_bridge.watcher.updated_list import NotHonoured, UpdatedList

log = structlog.get_logger()

FIRST_HEAD_PAGES = 5
UNSORTED_PAGES = 5
"""Pages of the slow walk at each poll where the server does not even sort: new sessions may be on any of them."""


class SessionPoll:
    """Looks at the session list. `poll` raises CloudErrors and StoreErrors; then it is simply made again.

    *Delta* asks for what was updated since the watermark. Where the server ignores that filter, *documented only* looks
    at the newest sessions, asks for unfinished ones by id, some at a time, and walks everything slowly, a page at each
    poll.
    """

    def __init__(
        self,
        cloud: SessionCloud,
        journal: SessionJournal,
        recorder: SessionRecorder,
        *,
        first_start_from: Callable[[Sequence[DataSession]], float],
        recheck_interval: float,
        clock: Callable[[], float],
    ) -> None:
        self._cloud = cloud
        self._journal = journal
        self._recorder = recorder
        self._first_start_from = first_start_from
        self._roll_call = RollCall(journal, recorder, interval=recheck_interval, clock=clock)
        self._clock = clock
        self._state: WatchState | None = None
        self._delta_works = True
        self._sort_warned = False
        self._missed: set[DataSession] = set()
        self._newest = ListWalk(session_list.NEWEST_FIRST)
        self._active = ListWalk(session_list.ACTIVE)
        self._walked_anew_at = clock()
        self._budget = FaultBudget(cloud)
        self._walks: dict[int, ListWalk] = {}
        self._asked_upto = ""

    @property
    def strategy(self) -> str:
        return "delta" if self._delta_works else "documented"

    @property
    def unreadable(self) -> list[str]:
        """The places on which the cloud breaks while everything else is read."""
        return self._recorder.unread.places

    async def poll(self) -> None:
        self._budget = FaultBudget(self._cloud)
        try:
            await self._poll()
        except AllBroken as broken:
            raise broken.cause from None

    async def _poll(self) -> None:
        state = self._state or await self._journal.watch_state() or await self._first_state()
        if self._delta_works:
            try:
                state = await self._poll_delta(state)
            except NotHonoured as reason:
                self._delta_works = False
                self._recorder.unread.begin_anew()
                log.warning(
                    "cloud.filter_not_honoured",
                    reason=str(reason),
                    then="watching the newest sessions instead",
                )
        if not self._delta_works:
            state = await self._poll_documented(state)
        if state != self._state:
            await self._journal.commit(Changes(watch=state))
            self._state = state

    async def _first_state(self) -> WatchState:
        """Where a first start begins, in the cloud's own time: its newest update, not our clock."""
        rows: list[DataSession] = []
        walk = ListWalk(session_list.LATEST_UPDATE_FIRST)
        async for page in walk.pages(self._budget, 0, walk.size):
            rows += [row.session for row in page.items]
        more = walk.total is not None and walk.total > walk.size
        if not session_list.updates_descend(rows) and more:
            self._delta_works = False
        start_from = self._first_start_from(rows)
        log.info("watch.first_start", reports_from=start_from, sessions_in_cloud=walk.total)
        crowded = more and session_list.is_one_bulk(rows)
        return WatchState(start_from=start_from, watermark=start_from, floor=start_from + 1 if crowded else 0.0)

    async def _pages(self, walk: ListWalk, first: int = 0, end: int | None = None) -> AsyncIterator[Page[SeenSession]]:
        """The pages of a walk; the rows that break it are named."""
        async for page in walk.pages(self._budget, first, end):
            self._recorder.name_unreadable(page)
            for row in page.lost:
                name = f"data session {row.id}" if row.id else "a data session without a readable id"
                self._recorder.unread.failed(name, row.reason, sure=True)
            self._note(walk)
            yield page
        self._note(walk)

    def _note(self, walk: ListWalk) -> None:
        what = "active data sessions" if walk is self._active else "data sessions by start"
        for distance in walk.mended:
            self._recorder.unread.read(f"{what}, row {distance} from the end")
        for distance, reason in walk.from_end.items():
            self._recorder.unread.failed(f"{what}, row {distance} from the end", reason, sure=True)

    # -- delta ---------------------------------------------------------------------------------------------------

    async def _poll_delta(self, state: WatchState) -> WatchState:
        if not state.active_found or (state.active_missed and self._time_to_try_again()):
            state = replace(state, active_missed=await self._find_active(state))
        bound = session_list.bound_of(state)
        if not state.active_found and state.start_from > 0:
            bound = max(bound, state.watermark)
        updated = UpdatedList(
            self._cloud,
            self._recorder,
            self._recorder.unread,
            self._budget,
            holes=state.holes,
            walks=self._walks,
            start_from=state.start_from,
            clock=self._clock,
        )
        try:
            read = await updated.read(bound)
        except AllBroken:
            self._state = replace(state, holes=updated.holes)
            await self._journal.commit(Changes(watch=self._state))
            raise
        await self._check_missing(await self._journal.recently_updated(bound), read.seen, state.start_from)
        cloud_now = self._clock() + self._cloud.clock_ahead
        after = session_list.after_walk(state, read.newest, pages=read.pages, news=read.news, cloud_now=cloud_now)
        return await self._roll_call.made(replace(after, active_found=True, holes=read.holes), self._budget)

    async def _find_active(self, state: WatchState) -> bool:
        """The sessions that are active at the first start, however old, without reading the history.

        Returns whether the cloud broke on one of them.
        """
        if state.start_from <= 0:
            return False
        walk = self._active
        walk.forget()
        lost = False
        try:
            async for page in self._pages(walk):
                lost = lost or bool(page.lost)
                if any(row.session.end is not None for row in page.items):
                    raise NotHonoured("filter[end]=NULL is ignored")
                await self._recorder.record(page.items, start_from=state.start_from)
        except CloudRefused as refusal:
            raise NotHonoured(str(refusal)) from None
        return bool(walk.from_end) or lost

    def _time_to_try_again(self, *, places: int = 1) -> bool:
        now = self._clock()
        if 0 <= now - self._walked_anew_at < PLACE_RETRY / places:
            return False
        self._walked_anew_at = now
        return True

    async def _check_missing(self, expected: Sequence[KnownSession], seen: set[str], start_from: float) -> None:
        """Asks once for each session that a complete list should have shown and did not."""
        missing = [one for one in expected if one.session.id not in seen]
        new = [one for one in missing if one.session not in self._missed][:MOST_CHECKS]
        await self._recorder.check(new, start_from=start_from)
        self._missed = {one.session for one in missing} & (self._missed | {one.session for one in new})

    # -- documented only -----------------------------------------------------------------------------------------

    async def _poll_documented(self, state: WatchState) -> WatchState:
        seen, in_order, more = await self._newest_sessions(state)
        unfinished = [one for one in await self._journal.unfinished() if one.session.id not in seen]
        asked, self._asked_upto = session_list.to_ask_by_id(unfinished, self._asked_upto, most=MOST_CHECKS)
        await self._recorder.check(asked, start_from=state.start_from)
        if more:
            for _ in range(1 if in_order else UNSORTED_PAGES):
                state = await self._reconcile(state)
        return replace(state, active_found=True)

    async def _newest_sessions(self, state: WatchState) -> tuple[set[str], bool, bool]:
        """The head of the list, as far as it shows anything new; at a first start a few pages of it.

        Returns the ids that were seen, whether they came in order, and whether there is more than a page.
        """
        walk = self._newest
        seen: set[str] = set()
        oldest, in_order = float("inf"), True
        async for page in self._pages(walk):
            rows = [row.session for row in page.items]
            if (page.page_count or 1) > 1 and not session_list.starts_descend(rows):
                in_order = False
                self._warn_unsorted()
            seen.update(row.id for row in rows)
            oldest = min((row.start for row in rows), default=oldest)
            found = await self._recorder.record(page.items, start_from=state.start_from)
            started = any(one.events and one.events[0].type == "session.started" for one in found)
            if not started and not walk.searching and (state.active_found or len(seen) >= FIRST_HEAD_PAGES * walk.size):
                break
        if walk.from_end and self._time_to_try_again(places=len(walk.from_end)):
            page_again = await walk.try_again(self._budget)
            self._note(walk)
            if page_again is not None:
                await self._recorder.record(page_again.items, start_from=state.start_from)
        whole = walk.total is not None and len(seen) >= walk.total
        if in_order or whole:
            # Of a list that was seen to its end no session may be missing, not even one older than all that it shows.
            since = float("-inf") if whole else oldest
            await self._check_missing(await self._journal.started_since(since), seen, state.start_from)
        return seen, in_order, walk.total is None or walk.total > walk.size

    async def _reconcile(self, state: WatchState) -> WatchState:
        """One more page of everything: sessions that appeared with an old start are found here."""
        walk, number = self._newest, max(2, state.reconcile_page)
        served: Page[SeenSession] | None = None
        async for page in self._pages(walk, (number - 1) * walk.size, number * walk.size):
            served = page
            await self._recorder.record(page.items, start_from=state.start_from)
        at_end = walk.total is None or number * walk.size >= walk.total or (served is None and not walk.lost)
        return replace(state, reconcile_page=2 if at_end else number + 1)

    def _warn_unsorted(self) -> None:
        if not self._sort_warned:
            self._sort_warned = True
            log.warning("cloud.sort_not_honoured", sort="-start", then="new sessions are found by walking all pages")
