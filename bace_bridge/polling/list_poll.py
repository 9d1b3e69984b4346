"""One poll of the list of data sessions, by the strategy that the server is seen to honour."""

from collections.abc import Callable

import msgspec
import structlog
from msgspec.structs import replace

from bace_bridge.errors import UnexpectedReply
from bace_bridge.polling.backfill import Backfill
from bace_bridge.polling.group_filter import GroupFilter
from bace_bridge.polling.needs import SessionCloud, SessionJournal
from bace_bridge.polling.reading import Reader
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import Changes, PollState
from bace_bridge.polling.rules.first_start import FirstStart, newest_stamp
from bace_bridge.polling.rules.ranges import is_recent
from bace_bridge.polling.rules.selection import with_selection
from bace_bridge.polling.session_lists import NEWEST, UPDATED, SessionLists
from bace_bridge.polling.sessions_by_id import MOST_CHECKS, SessionsById

log = structlog.get_logger()

TRY_DELTA_AGAIN = 3600.0
"""Seconds after which the strategy that costs least is tried again: a refusal may have passed."""

CHECKS_SHARE = 0.5
"""The part of the request budget that asking for single sessions takes at most in a full scan."""


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
        self._settings = settings
        self._clock = clock
        self._state: PollState | None = None
        self._ignored_at: float | None = None
        share = int(settings.requests_per_minute * settings.session_interval / 60 * CHECKS_SHARE)
        self._checks = min(max(2, share), MOST_CHECKS)
        self._groups = GroupFilter(cloud, recorder.groups, clock=clock)
        self._lists = SessionLists(recorder, clock=clock, cloud_now=self._cloud_now)
        self._by_id = SessionsById(cloud, journal, recorder, interval=settings.recheck_interval, clock=clock)
        self._backfill = Backfill(
            recorder,
            interval=settings.backfill_interval,
            requests_per_minute=settings.requests_per_minute,
            clock=clock,
        )

    @property
    def strategy(self) -> str:
        return "full scan" if is_recent(self._ignored_at, self._clock(), TRY_DELTA_AGAIN) else "delta"

    @property
    def unreadable(self) -> list[str]:
        """The records on which the cloud breaks while everything else is read."""
        return self._recorder.unreadable.names

    @property
    def selection_problem(self) -> str | None:
        """What matches no device in `cloud.groups`."""
        return self._recorder.devices.problem

    async def poll(self) -> None:
        reader = Reader(self._cloud, expand=self._recorder.devices.expand)
        state = self._state or await self._journal.poll_state() or await self._first_state(reader)
        state = await self._save(await self._with_selection(state, reader))
        reader.of_groups = await self._groups.params()
        state = await self._save(await self._poll_lists(state, reader))
        state = await self._save(await self._by_id.recheck(state, reader))
        steady = self.strategy == "full scan"
        state = await self._backfill.step(
            state, reader, only_way=steady and not self._lists.newest_first, steady=steady
        )
        await self._save(replace(state, unstamped=state.unstamped or reader.saw_unstamped))
        await self._ensure_rows_can_be_read(reader)
        await self._recorder.devices.check_due()

    async def _poll_lists(self, state: PollState, reader: Reader) -> PollState:
        """Delta, or what takes its place while the list of updates is not honoured, or rests."""
        unreadable = self._recorder.unreadable
        by_update = self.strategy == "delta" and not unreadable.rests(UPDATED)
        if by_update:
            state, ignored = await self._lists.updated(state, reader)
            if ignored is not None:
                by_update, state = False, self._without_delta(state, ignored)
            await self._save(state)
        if not by_update:
            seen = await self._lists.newest(state, reader)
            await self._by_id.some_active(state, reader, most=self._checks, but=seen)
        elif state.unstamped:
            await self._lists.newest(state, reader)
        elif not unreadable.rests(UPDATED):
            unreadable.forget(NEWEST)
        if self.strategy == "full scan":
            return replace(state, active_found=True)
        return await self._lists.active(state, reader)

    def _without_delta(self, state: PollState, ignored: str) -> PollState:
        """Another strategy from now on, for a while; the first time the full list is read without waiting."""
        first = self._ignored_at is None
        say = log.warning if first else log.debug
        say("cloud.filter_not_honoured", reason=ignored, then="scanning the full list instead")
        self._ignored_at = self._clock()
        self._recorder.unreadable.forget(UPDATED)
        return session_list.backfilled_at_once(state) if first else state

    async def _first_state(self, reader: Reader) -> PollState:
        start_from = await self._start_from(reader)
        return PollState(
            start_from=start_from,
            watermark=start_from,
            groups=tuple(sorted(self._recorder.groups)),
            backfill_at=self._clock() + self._settings.backfill_interval,
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
        all_seen = not page.lost and ((page.page_count or 1) <= 1 or session_list.updates_descend(rows))
        start_from = self._settings.first_start.start_from(
            newest_stamp(rows) if all_seen else None,
            now=self._clock(),
            cloud_now=self._cloud_now(),
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
        if state != self._state:
            await self._journal.commit(Changes(watch=state))
            self._state = state
        return state

    def _cloud_now(self) -> float:
        return self._clock() + self._cloud.clock_ahead
