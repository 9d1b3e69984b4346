"""One poll of the list of data sessions, by the strategy that the server is seen to honour."""

import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudRefused, UnexpectedReply
from bace_bridge.polling.needs import SessionCloud
from bace_bridge.polling.reading import Reader
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import Changes, PollState
from bace_bridge.polling.rules.first_start import newest_stamp
from bace_bridge.polling.rules.ranges import is_recent
from bace_bridge.polling.rules.selection import with_selection
from bace_bridge.polling.session_lists import (
    NEWEST,
    UPDATED,
    PollSettings,
    active,
    backfill,
    newest,
    updated,
    with_group_filter,
)
from bace_bridge.polling.sessions_by_id import MOST_CHECKS, recheck, some_active

log = structlog.get_logger()

SAVED_EVERY = 120.0
"""Seconds between two writes of what moves at every poll."""

TRY_DELTA_AGAIN = 3600.0
"""Seconds after which the strategy that costs least is tried again: a refusal may have passed."""

CHECKS_SHARE = 0.5
"""The part of the request budget that asking for single sessions takes at most in a full scan."""

FULL_SCAN = "scanning the full list instead"


class ListPoll:
    """Polls the session list. `poll` raises CloudErrors and StoreErrors; then it is simply made again.

    By *delta* it asks for what was updated since the watermark. Where the server ignores that filter, it makes a
    *full scan*: it polls the newest sessions, asks for active ones by id, and reads everything by and by.
    Each step takes the state and returns what it is then, which is committed at once.
    """

    def __init__(self, cloud: SessionCloud, recorder: SessionRecorder, settings: PollSettings) -> None:
        self._cloud = cloud
        self._recorder = recorder
        self._settings = settings
        self._state: PollState | None = None
        self._saved: PollState | None = None
        self._saved_at: float | None = None

    @property
    def strategy(self) -> str:
        return "delta" if self._state is None or self._delta_works(self._state) else "full scan"

    @property
    def unreadable(self) -> list[str]:
        """The records on which the cloud breaks while everything else is read."""
        return self._recorder.unreadable.names

    @property
    def selection_problem(self) -> str | None:
        """What matches no device in `cloud.groups`."""
        return self._recorder.devices.problem

    async def poll(self) -> None:
        recorder, settings = self._recorder, self._settings
        reader = Reader(self._cloud, expand=recorder.devices.expand)
        state = self._state or await self._stored_state() or await self._first_state(reader)
        state = await self._save(await self._with_selection(state, reader))
        state = await self._save(await with_group_filter(state, reader, recorder))
        try:
            state = await self._save(await self._poll_lists(state, reader))
        except CloudRefused:
            # It may be the filter for the groups that is refused, where one of them was deleted: it is checked again.
            await self._save(replace(self._state or state, groups_checked_at=None))
            raise
        if reader.breaks and not reader.rows_read:  # or that breaks
            state = replace(state, groups_checked_at=None)
        if recorder.devices.matched_anew:
            state, recorder.devices.matched_anew = session_list.backfilled_at_once(state), False
        state = await self._save(await recheck(state, reader, recorder, interval=settings.recheck_interval))
        state = await backfill(state, reader, recorder, settings, full_scan=not self._delta_works(state))
        await self._save(replace(state, unstamped=state.unstamped or reader.saw_unstamped))
        await self._ensure_rows_can_be_read(reader)
        await recorder.devices.check_due()

    async def _stored_state(self) -> PollState | None:
        state = await self._recorder.journal.poll_state()
        if state is not None and not self._delta_works(state):
            reason = "seen by the process before, within the last hour"
            log.warning("cloud.filter_not_honoured", reason=reason, then=FULL_SCAN)
        return state

    async def _poll_lists(self, state: PollState, reader: Reader) -> PollState:
        """Delta, or what takes its place while the list of updates is not honoured, or rests."""
        recorder = self._recorder
        by_update = self._delta_works(state) and not recorder.unreadable.rests(UPDATED)
        if by_update:
            state, ignored = await updated(state, reader, recorder)
            by_update = ignored is None
            state = replace(state, ignored_at=None) if ignored is None else self._without_delta(state, ignored)
            await self._save(state)
        if not by_update or state.unstamped:
            state, seen = await newest(state, reader, recorder)
        elif not recorder.unreadable.rests(UPDATED):
            recorder.unreadable.forget(NEWEST)
        if not by_update:
            share = self._settings.requests_per_minute * self._settings.session_interval / 60 * CHECKS_SHARE
            most = min(max(2, int(share)), MOST_CHECKS)
            state = await some_active(state, reader, recorder, most=most, but=seen)
        if not self._delta_works(state):
            return replace(state, active_found=True)
        return await active(state, reader, recorder)

    def _delta_works(self, state: PollState) -> bool:
        return not is_recent(state.ignored_at, self._recorder.clock(), TRY_DELTA_AGAIN)

    def _without_delta(self, state: PollState, ignored: str) -> PollState:
        """Another strategy from now on, for a while; the first time the full list is read without waiting."""
        first = state.ignored_at is None
        say = log.warning if first else log.debug
        say("cloud.filter_not_honoured", reason=ignored, then=FULL_SCAN)
        self._recorder.unreadable.forget(UPDATED)
        state = replace(state, ignored_at=self._recorder.clock())
        return session_list.backfilled_at_once(state) if first else state

    async def _first_state(self, reader: Reader) -> PollState:
        start_from, now = await self._start_from(reader), self._recorder.clock()
        return PollState(
            start_from=start_from,
            watermark=start_from,
            news_at=now,
            groups=tuple(sorted(self._recorder.groups)),
            backfill_at=now + self._settings.backfill_interval,
        )

    async def _with_selection(self, state: PollState, reader: Reader) -> PollState:
        groups = self._recorder.groups
        if state.groups == tuple(sorted(groups)):
            return state
        return with_selection(state, groups, start_from=await self._start_from(reader))

    async def _start_from(self, reader: Reader) -> float:
        """From when on sessions are reported, in the cloud's own time: its newest update, not our clock."""
        page = await reader.page(session_list.LATEST_UPDATE_FIRST, 1)
        rows = [row.session for row in page.items]
        all_seen = not page.lost and (page.page_count == 1 or session_list.updates_descend(rows))
        start_from = self._settings.first_start.start_from(
            newest_stamp(rows) if all_seen else None,
            now=self._recorder.clock(),
            cloud_now=self._recorder.cloud_now(),
            empty=not page.count and not page.total and not page.lost,
        )
        log.info("poll.first_start", reports_from=start_from, sessions_in_cloud=page.total)
        return start_from

    async def _ensure_rows_can_be_read(self, reader: Reader) -> None:
        """A list that shows nothing but rows in another format is a failure, and no silence."""
        if reader.lost_reason is None or reader.rows_read:
            return
        page = await reader.page(session_list.NEWEST_FIRST, 1)
        if page.lost and not page.items:
            raise UnexpectedReply(f"no data session can be read: {page.lost[0].reason}")

    async def _save(self, state: PollState) -> PollState:
        now = self._recorder.clock()
        lately = self._saved if is_recent(self._saved_at, now, SAVED_EVERY) else None
        if state != self._saved and (lately is None or state.without_what_moves != lately.without_what_moves):
            await self._recorder.journal.commit(Changes(watch=state))
            self._saved, self._saved_at = state, now
        self._state = state
        return state
