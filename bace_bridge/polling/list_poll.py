"""One poll of the list of data sessions, by the strategy that the server is seen to honour."""

from collections.abc import Callable

import msgspec
import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudError, UnexpectedReply
from bace_bridge.polling import newest, updates
from bace_bridge.polling.backfill import Backfill
from bace_bridge.polling.group_filter import GroupFilter
from bace_bridge.polling.needs import SessionCloud, SessionJournal
from bace_bridge.polling.newest import NewestSessions
from bace_bridge.polling.reading import MOST_ROWS, Reader
from bace_bridge.polling.recheck import MOST_CHECKS, Recheck
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import Changes, PollState
from bace_bridge.polling.rules.first_start import FirstStart, newest_stamp
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE
from bace_bridge.polling.rules.seen import LostRow
from bace_bridge.polling.rules.selection import with_selection
from bace_bridge.polling.selection_check import SelectionCheck
from bace_bridge.polling.updates import NotHonoured, Updates

log = structlog.get_logger()

SAVED_EVERY = 60.0
"""Seconds between two writes of a watermark that moves while nothing else does."""

TRY_DELTA_AGAIN = 3600.0
"""Seconds after which the strategy that costs least is tried again: a refusal may have passed."""

CHECKS_SHARE = 0.5
"""The part of the request budget that asking for single sessions takes at most in a full scan."""

ACTIVE = "the active data sessions"


class PollSettings(msgspec.Struct, frozen=True):
    """What the list is polled with. Intervals are in seconds."""

    first_start: FirstStart
    session_interval: float
    recheck_interval: float
    backfill_interval: float
    requests_per_minute: int


class ListPoll:
    """Polls the session list. `poll` raises CloudErrors and StoreErrors; then it is simply made again.

    By *delta* it asks for what was updated since the watermark. Where the server ignores that filter, it makes a
    *full scan*: it polls the newest sessions, asks for active ones by id, and reads everything by and by.
    What is known is committed as soon as it is.
    """

    def __init__(
        self,
        cloud: SessionCloud,
        journal: SessionJournal,
        recorder: SessionRecorder,
        settings: PollSettings,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._cloud = cloud
        self._journal = journal
        self._recorder = recorder
        self._first_start = settings.first_start
        self._clock = clock
        self._state: PollState | None = None
        self._saved: PollState | None = None
        self._saved_at = 0.0
        self._updates_work = True
        self._updates_broke_at = 0.0
        self._page_size = MOST_ROWS
        share = int(settings.requests_per_minute * settings.session_interval / 60 * CHECKS_SHARE)
        self._checks = min(max(2, share), MOST_CHECKS)
        self._groups = GroupFilter(recorder.groups, clock=clock)
        self._selection = SelectionCheck(cloud, journal, recorder.labels, recorder.groups, clock=clock)
        self._recheck = Recheck(cloud, journal, recorder, interval=settings.recheck_interval, clock=clock)
        self._newest = NewestSessions(recorder, clock=clock, cloud_now=self._cloud_now)
        self._backfill = Backfill(
            recorder,
            interval=settings.backfill_interval,
            requests_per_minute=settings.requests_per_minute,
            clock=clock,
        )
        self._updates = Updates(recorder, clock=clock, cloud_now=self._cloud_now)

    @property
    def strategy(self) -> str:
        return "delta" if self._updates_work else "full scan"

    @property
    def unreadable(self) -> list[str]:
        """The records on which the cloud breaks while everything else is read."""
        return self._recorder.unreadable.names

    @property
    def selection_problem(self) -> str | None:
        """What matches no device in `cloud.groups`."""
        return self._selection.problem

    async def poll(self) -> None:
        reader = Reader(
            self._cloud, size=self._page_size, expand=self._recorder.labels.wanted, of_groups=self._groups.params
        )
        if not 0 <= self._clock() - self._updates_broke_at < TRY_DELTA_AGAIN:
            self._updates_work = True
        state = self._state or await self._journal.poll_state() or await self._first_state(reader)
        state = await self._with_selection(state, reader)
        await self._save(state)
        if self._updates_work:
            try:
                state = await self._poll_updates(state, reader)
            except NotHonoured as reason:
                state = self._without_delta(self._state or state, str(reason))
        if not self._updates_work:
            await self._poll_without_updates(state, reader)
            state = replace(state, active_found=True)
        await self._save(state)
        state = await self._recheck.round_due(state, reader)
        await self._save(state)
        state = await self._backfill.step(
            state, reader, only_way=not self._updates_work and not self._newest.sorted, steady=not self._updates_work
        )
        await self._save(replace(state, unstamped=state.unstamped or reader.saw_unstamped))
        self._page_size = reader.size
        await self._groups.check_due(reader)
        await self._make_sure_that_rows_can_be_read(reader)
        await self._selection.check_due()

    async def _with_selection(self, state: PollState, reader: Reader) -> PollState:
        groups = self._recorder.groups
        if state.groups is None or sorted(groups) == [*state.groups]:
            return with_selection(state, groups, {}, start_from=0.0)
        await reader.page(session_list.NEWEST_FIRST, 1)  # an answer shows the cloud's time
        start_from = self._first_start.start_from(None, now=self._clock(), cloud_now=self._cloud_now())
        return with_selection(state, groups, await self._journal.device_labels(), start_from=start_from)

    async def _make_sure_that_rows_can_be_read(self, reader: Reader) -> None:
        """A list that shows nothing but rows in another format is a failure, and no silence."""
        if reader.lost_reason is None or reader.rows_read:
            return
        page = await reader.page(session_list.NEWEST_FIRST, 1)
        if page.lost and not page.items:
            raise UnexpectedReply(f"no data session can be read: {page.lost[0].reason}")

    def _without_delta(self, state: PollState, reason: str) -> PollState:
        """Another strategy from now on, for a while; the first time the full list is read without waiting."""
        first = not self._updates_broke_at
        say = log.warning if first else log.debug
        say("cloud.filter_not_honoured", reason=reason, then="scanning the full list instead")
        self._updates_work, self._updates_broke_at = False, self._clock()
        self._recorder.unreadable.forget(updates.NAME)
        return replace(state, catching_up=first or state.catching_up)

    async def _save(self, state: PollState) -> None:
        """A watermark that is a little behind costs nothing, so it alone is written once a minute."""
        saved, now = self._saved, self._clock()
        if state == saved:
            self._state = state
            return
        lately = saved is not None and 0 <= now - self._saved_at < SAVED_EVERY
        if not (lately and saved is not None and replace(state, watermark=saved.watermark) == saved):
            await self._journal.commit(Changes(watch=state))
            self._saved, self._saved_at = state, now
        self._state = state

    def _cloud_now(self) -> float:
        return self._clock() + self._cloud.clock_ahead

    async def _first_state(self, reader: Reader) -> PollState:
        """Where a first start begins, in the cloud's own time: its newest update, not our clock."""
        page = await reader.page(session_list.LATEST_UPDATE_FIRST, 1)
        rows = [row.session for row in page.items]
        all_seen = not page.lost and ((page.page_count or 1) <= 1 or session_list.updates_descend(rows))
        newest = newest_stamp(rows) if all_seen else None
        start_from = self._first_start.start_from(
            newest, now=self._clock(), cloud_now=self._cloud_now(), empty=not page.count and not page.total
        )
        log.info("poll.first_start", reports_from=start_from, sessions_in_cloud=page.total)
        return PollState(
            start_from=start_from,
            watermark=start_from,
            groups=tuple(sorted(self._recorder.groups)),
            backfill_at=self._clock() + self._backfill.interval,
        )

    async def _poll_updates(self, state: PollState, reader: Reader) -> PollState:
        if self._updates.rests:
            await self._poll_without_updates(state, reader)
        else:
            state = await self._updates.poll(state, reader)
            await self._save(state)
            if state.unstamped:
                await self._newest.poll(state, reader)
            elif not self._updates.rests:
                self._recorder.unreadable.forget(newest.NAME)
        try:
            return await self._find_active(state, reader)
        except CloudError as error:
            log.info("cloud.filter_not_honoured", reason=str(error), then="reading the full list once")
            return replace(state, active_tried_at=self._clock(), catching_up=True)

    async def _find_active(self, state: PollState, reader: Reader) -> PollState:
        """The sessions that are active at a first start, however old, without reading the history."""
        now = self._clock()
        if state.active_found or 0 <= now - state.active_tried_at < RETRY_UNREADABLE:
            return state
        if state.start_from <= 0 and not state.joined:
            return replace(state, active_found=True)
        lost: list[LostRow] = []
        async for page in reader.pages((*session_list.ACTIVE, *reader.of_groups)):
            if any(row.session.end is not None for row in page.items):
                log.info("cloud.filter_not_honoured", reason="filter[end]=NULL", then="reading the full list once")
                return replace(state, active_found=True, backfill_page=1, catching_up=True)
            await self._recorder.record(page, state)
            lost += page.lost
        self._recorder.unreadable.name_rows(lost, ACTIVE)
        return replace(state, active_found=not lost, active_tried_at=now)

    async def _poll_without_updates(self, state: PollState, reader: Reader) -> None:
        """Finds new sessions at the head of the list, and the ends of active ones by their ids."""
        seen = await self._newest.poll(state, reader)
        await self._recheck.some_active(state, reader, most=self._checks, but=seen)
