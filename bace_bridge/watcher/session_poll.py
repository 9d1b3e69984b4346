"""One look at the list of data sessions, by the strategy that the server is seen to honour."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence

import structlog
from msgspec.structs import replace

from bace_bridge.domain import session_list
from bace_bridge.domain.changes import Changes, WatchState
from bace_bridge.domain.seen import Page, SeenSession
from bace_bridge.domain.sessions import DataSession, KnownSession
from bace_bridge.errors import CloudRefused
from bace_bridge.watcher.needs import SessionCloud, SessionJournal
from bace_bridge.watcher.recording import MOST_CHECKS, SessionRecorder

log = structlog.get_logger()

FIRST_HEAD_PAGES = 5
ROLL_CALL = 50
RARE_ROLL_CALL = 10
"""With no unfinished session, only every so many-th roll call is made."""

UNSORTED_PAGES = 5
"""Pages of the slow walk at each poll where the server does not even sort: new sessions may be on any of them."""


class NotHonoured(Exception):  # a turn in the road, not an error
    """The server ignored or refused what this strategy rests on."""


class SessionPoll:
    """Looks at the session list. `poll` raises CloudErrors and StoreErrors; then it is simply made again.

    *Delta* asks for what was updated since the watermark. Where the server ignores that filter, *documented only* looks
    at the newest sessions, asks for each unfinished one by id, and walks everything slowly, a page at each poll.
    """

    def __init__(
        self,
        cloud: SessionCloud,
        journal: SessionJournal,
        recorder: SessionRecorder,
        *,
        first_start_from: Callable[[Sequence[DataSession]], float],
        reconcile_interval: float,
        clock: Callable[[], float],
    ) -> None:
        self._cloud = cloud
        self._journal = journal
        self._recorder = recorder
        self._first_start_from = first_start_from
        self._reconcile_interval = reconcile_interval
        self._clock = clock
        self._state: WatchState | None = None
        self._delta_works = True
        self._sort_warned = False
        self._missed: set[DataSession] = set()

    @property
    def strategy(self) -> str:
        return "delta" if self._delta_works else "documented"

    async def poll(self) -> None:
        state = self._state or await self._journal.watch_state() or await self._first_state()
        if self._delta_works:
            try:
                state = await self._poll_delta(state)
            except NotHonoured as reason:
                self._delta_works = False
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
        page = await self._cloud.session_page(session_list.LATEST_UPDATE_FIRST, 1)
        rows = [row.session for row in page.items]
        if not session_list.updates_descend(rows) and (page.page_count or 1) > 1:
            self._delta_works = False
        start_from = self._first_start_from(rows)
        log.info("watch.first_start", reports_from=start_from, sessions_in_cloud=page.total)
        crowded = (page.page_count or 1) > 1 and session_list.is_one_bulk(rows)
        return WatchState(start_from=start_from, watermark=start_from, floor=start_from + 1 if crowded else 0.0)

    # -- delta ---------------------------------------------------------------------------------------------------

    async def _poll_delta(self, state: WatchState) -> WatchState:
        if not state.active_found:
            await self._find_active(state)
        bound = session_list.bound_of(state)
        if not state.active_found and state.start_from > 0:
            bound = max(bound, state.watermark)
        params = session_list.updated_since(bound)
        seen: set[str] = set()
        newest: float | None = None
        news, pages, last_id = False, 0, ""
        async for page in self._checked_pages(params, bound):
            rows = [row.session for row in page.items]
            if (pages or (page.page_count or 1) > 1) and not session_list.ids_ascend(rows, last_id):
                raise NotHonoured("sort=id_data_session is ignored")
            last_id = rows[-1].id.lower() if rows else last_id
            pages += 1
            seen.update(row.id for row in rows)
            newest = max((row.updated_at for row in rows if row.updated_at is not None), default=newest or 0.0)
            news = bool(await self._recorder.record(page.items, start_from=state.start_from)) or news
        await self._check_missing(await self._journal.recently_updated(bound), seen, state.start_from)
        cloud_now = self._clock() + self._cloud.clock_ahead
        after = session_list.after_walk(state, newest, pages=pages, news=news, cloud_now=cloud_now)
        return await self._roll_call(replace(after, active_found=True))

    async def _checked_pages(self, params: session_list.Params, bound: float) -> AsyncIterator[Page[SeenSession]]:
        try:
            async for page in self._cloud.session_pages(params):
                name_unreadable(page)
                if not session_list.updates_held([row.session for row in page.items], bound):
                    raise NotHonoured("filter[updated_at][gte] is ignored")
                yield page
        except CloudRefused as refusal:
            if refusal.status in {400, 404, 422}:
                raise NotHonoured(str(refusal)) from None
            raise

    async def _find_active(self, state: WatchState) -> None:
        """The sessions that are active at the first start, however old, without reading the history."""
        if state.start_from <= 0:
            return
        try:
            async for page in self._cloud.session_pages(session_list.ACTIVE):
                if any(row.session.end is not None for row in page.items):
                    raise NotHonoured("filter[end]=NULL is ignored")
                await self._recorder.record(page.items, start_from=state.start_from)
        except CloudRefused as refusal:
            raise NotHonoured(str(refusal)) from None

    async def _roll_call(self, state: WatchState) -> WatchState:
        """Asks for known sessions by id: a removed one shows up in no list of updates."""
        now = self._clock()
        waited = now - state.roll_called_at
        if 0 <= waited < self._reconcile_interval:
            return state
        unfinished = await self._journal.unfinished_after(state.roll_call_after, ROLL_CALL)
        if not unfinished and 0 <= waited < RARE_ROLL_CALL * self._reconcile_interval:
            return state
        room = ROLL_CALL - len(unfinished)
        finished = await self._journal.finished_after(state.roll_call_finished_after, room)
        if unfinished or finished:
            await self._call([*unfinished, *finished], state.start_from)
        return replace(
            state,
            roll_called_at=now,
            roll_call_after=unfinished[-1].session.id if not room else "",
            roll_call_finished_after=finished[-1].session.id if len(finished) == room and finished else "",
        )

    async def _call(self, called: Sequence[KnownSession], start_from: float) -> None:
        ids = [known.session.id for known in called]
        page = await self._cloud.session_page(session_list.by_ids(ids), 1)
        answered = {row.session.id for row in page.items}
        if answered <= set(ids):
            await self._recorder.record(page.items, start_from=start_from)
            called = [known for known in called if known.session.id not in answered]
        await self._recorder.check(called, start_from=start_from)

    async def _check_missing(self, expected: Sequence[KnownSession], seen: set[str], start_from: float) -> None:
        """Asks once for each session that a complete list should have shown and did not."""
        missing = [one for one in expected if one.session.id not in seen]
        new = [one for one in missing if one.session not in self._missed][:MOST_CHECKS]
        await self._recorder.check(new, start_from=start_from)
        self._missed = {one.session for one in missing} & (self._missed | {one.session for one in new})

    # -- documented only -----------------------------------------------------------------------------------------

    async def _poll_documented(self, state: WatchState) -> WatchState:
        seen, in_order, page_count = await self._newest_sessions(state)
        unfinished = [one for one in await self._journal.unfinished() if one.session.id not in seen]
        await self._check_all(unfinished, state.start_from)
        if page_count > 1:
            for _ in range(1 if in_order else UNSORTED_PAGES):
                state = await self._reconcile(state)
        return replace(state, active_found=True)

    async def _newest_sessions(self, state: WatchState) -> tuple[set[str], bool, int]:
        """The head of the list, as far as it shows anything new; at a first start a few pages of it."""
        seen: set[str] = set()
        pages, page_count, oldest = 0, 1, float("inf")
        in_order = True
        async for page in self._cloud.session_pages(session_list.NEWEST_FIRST):
            name_unreadable(page)
            rows = [row.session for row in page.items]
            page_count = page.page_count or 1
            if page_count > 1 and not session_list.starts_descend(rows):
                in_order = False
                self._warn_unsorted()
            pages += 1
            seen.update(row.id for row in rows)
            oldest = min((row.start for row in rows), default=oldest)
            found = await self._recorder.record(page.items, start_from=state.start_from)
            started = any(one.events and one.events[0].type == "session.started" for one in found)
            if not started and (state.active_found or pages >= FIRST_HEAD_PAGES):
                break
        if in_order and seen:
            await self._check_missing(await self._journal.started_since(oldest), seen, state.start_from)
        return seen, in_order, page_count

    async def _check_all(self, known: Collection[KnownSession], start_from: float) -> None:
        for one in known:
            await self._recorder.check([one], start_from=start_from)

    async def _reconcile(self, state: WatchState) -> WatchState:
        """One more page of everything: sessions that appeared with an old start are found here."""
        number = max(2, state.reconcile_page)
        page = await self._cloud.session_page(session_list.NEWEST_FIRST, number)
        await self._recorder.record(page.items, start_from=state.start_from)
        at_end = page.page_count is None or number >= page.page_count
        return replace(state, reconcile_page=2 if at_end else number + 1)

    def _warn_unsorted(self) -> None:
        if not self._sort_warned:
            self._sort_warned = True
            log.warning("cloud.sort_not_honoured", sort="-start", then="new sessions are found by walking all pages")


def name_unreadable(page: Page[SeenSession]) -> None:
    for name in page.unreadable:
        log.warning("cloud.session_unreadable", row=name)
