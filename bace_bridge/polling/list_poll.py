"""One poll of the session list, and the re-check of known sessions by their ids: a removed one is in no list."""

from collections.abc import Collection, Sequence

import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudRefused, UnexpectedReply
from bace_bridge.polling.reading import Reader, Unreadable, pages
from bace_bridge.polling.recording import SessionRecorder, record_of
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import Changes, PollState, SessionCloud, SessionJournal, Stage
from bace_bridge.polling.rules.session_list import newest_stamp, one_of, with_selection
from bace_bridge.polling.rules.windows import is_recent
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

log = structlog.get_logger()

MOST_RECHECKED = 50
MOST_UNFINISHED = 40
"""Sessions in one round, and how many of them are unfinished ones at most: finished ones have their turn, too."""

MOST_CHECKS = 20
"""Sessions that are requested one by one in a round, so that a poll stays short."""

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
    suspects = [*recorder.denied_at][:MOST_CHECKS]
    unfinished = await _next(recorder.journal, "unfinished", state.recheck_after, MOST_UNFINISHED)
    if not (unfinished or suspects) and is_recent(state.rechecked_at, now, RARELY * interval):
        return state
    most_finished = MOST_RECHECKED - len(unfinished)
    finished = await _next(recorder.journal, "finished", state.recheck_finished_after, most_finished)
    ids = dict.fromkeys([*suspects, *unfinished, *finished])
    state, done = await _request([*ids], state, reader, recorder)
    return replace(
        state,
        rechecked_at=now,
        recheck_after=_last(unfinished, done, state.recheck_after),
        recheck_finished_after=_last(finished, done, state.recheck_finished_after),
    )


async def some_active(
    state: PollState, reader: Reader, recorder: SessionRecorder, *, most: int, but: Collection[str]
) -> PollState:
    """Requests the next active sessions, in turn, `but` those that were just seen: an end is not to wait."""
    ids = await _next(recorder.journal, "active", state.active_after, most)
    state, done = await _request([one for one in ids if one not in but], state, reader, recorder)
    return replace(state, active_after=_last(ids, {*done, *but}, state.active_after))


async def _request(
    ids: Sequence[str], state: PollState, reader: Reader, recorder: SessionRecorder
) -> tuple[PollState, set[str]]:
    """Requests sessions, in their order, as far as single requests are left; and which were requested, or rest."""
    # Many go into one request. An id that its answer lacks says nothing yet, for the filter may be ignored and the page
    # full of others: it is requested alone, and only its own 404 counts. So is each where the whole request fails.
    done: set[str] = set()
    checks = 0
    for first in range(0, len(ids), MOST_IDS):
        together = ids[first : first + MOST_IDS]
        part = [one for one in together if not recorder.unreadable.rests(record_of(one))]
        alone = len(part) < 2 or is_recent(state.alone_since, recorder.clock(), FILTER_RETRY)  # noqa: PLR2004  # one has its own address
        answered = set() if alone else await _request_together(part, state, reader, recorder)
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


async def _request_together(
    ids: Sequence[str], state: PollState, reader: Reader, recorder: SessionRecorder
) -> set[str] | None:
    """The ids that were answered for; None where the answer is not to this request."""
    answered: set[str] = set()
    try:
        async for page in pages(
            lambda number: reader.plain_page(one_of("id_data_session", ids), number, MOST_IDS, long=True)
        ):
            if not {row.session.id for row in page.items} <= set(ids):
                return None  # the filter is ignored: these are rows of the whole list
            await recorder.record(page, state, reader)
            answered.update(row.session.id for row in page.items)
    except (CloudRefused, Unreadable):
        return None
    return answered


async def _next(journal: SessionJournal, stage: Stage, cursor: str, most: int) -> list[str]:
    # By id and not by time: rows change their times, and one that moves behind the cursor would never be its turn.
    ids = [one.session.id for one in await journal.known_after(stage, cursor, most)]
    if cursor and len(ids) < most:
        ids += [one.session.id for one in await journal.known_after(stage, "", most - len(ids))]
    return [*dict.fromkeys(ids)]


def _last(ids: Sequence[str], done: Collection[str], before: str) -> str:
    return next((one for one in reversed(ids) if one in done), before)


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
        return [*self._recorder.unreadable.failed_at]

    @property
    def selection_problem(self) -> str | None:
        """What matches no device in `cloud.groups`."""
        return self._recorder.devices.problem

    async def poll(self) -> None:
        recorder, settings = self._recorder, self._settings
        reader = Reader(self._cloud, expand=recorder.devices.expand)
        state = self._state or await self._first_state(reader)
        if state.groups != tuple(sorted(recorder.groups)):
            state = with_selection(state, recorder.groups, start_from=await self._start_from(reader))
        state = await self._save(state)
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
        # A list that shows nothing but rows in another format is a failure, and no silence.
        if reader.lost_reason is not None and not reader.rows_read:
            page = await reader.page(session_list.NEWEST_FIRST, 1)
            if page.lost and not page.items:
                raise UnexpectedReply(f"no data session can be read: {page.lost[0].reason}")
        await recorder.devices.check_due()

    async def _poll_lists(self, state: PollState, reader: Reader) -> PollState:
        """Delta, or what stands in for it while the list of updates is not honoured, or rests."""
        recorder = self._recorder
        by_update = self._delta_works(state) and not recorder.unreadable.rests(UPDATED)
        if by_update:
            state, ignored = await updated(state, reader, recorder)
            by_update = ignored is None
            if ignored is None:
                state = replace(state, ignored_at=None)
            else:
                first = state.ignored_at is None
                say = log.warning if first else log.debug
                say("cloud.filter_not_honoured", reason=ignored, then=FULL_SCAN)
                recorder.unreadable.forget(UPDATED)
                state = replace(state, ignored_at=recorder.clock())
                # What delta has missed so far is found by reading everything, but not at each refusal again.
                state = session_list.backfilled_at_once(state) if first else state
            await self._save(state)
        # A row without an `updated_at` is in no list of updates, so the head is read as well.
        if not by_update or state.unstamped:
            state, seen = await newest(state, reader, recorder)
        elif not recorder.unreadable.rests(UPDATED):
            recorder.unreadable.forget(NEWEST)
        if not by_update:
            # No list shows that an old session has ended, so the active ones are requested one by one, in turn.
            share = self._settings.requests_per_minute * self._settings.session_interval / 60 * CHECKS_SHARE
            most = min(max(2, int(share)), MOST_CHECKS)
            state = await some_active(state, reader, recorder, most=most, but=seen)
        if not self._delta_works(state):
            return replace(state, active_found=True)
        return await active(state, reader, recorder)

    def _delta_works(self, state: PollState) -> bool:
        return not is_recent(state.ignored_at, self._recorder.clock(), TRY_DELTA_AGAIN)

    async def _first_state(self, reader: Reader) -> PollState:
        """That of the process before, or of a first start."""
        state = await self._recorder.journal.poll_state()
        if state is not None:
            if not self._delta_works(state):
                reason = "seen by the process before, within the last hour"
                log.warning("cloud.filter_not_honoured", reason=reason, then=FULL_SCAN)
            return state
        start_from, now = await self._start_from(reader), self._recorder.clock()
        return PollState(
            start_from=start_from,
            watermark=start_from,
            news_at=now,
            groups=tuple(sorted(self._recorder.groups)),
            backfill_at=now + self._settings.backfill_interval,
        )

    async def _start_from(self, reader: Reader) -> float:
        # In the cloud's own time, its newest update: our clock may be hours off, and events would be lost or repeated.
        page = await reader.page(session_list.LATEST_UPDATE_FIRST, 1)
        rows = [row.session for row in page.items]
        # Where the sort was ignored, and there is more than a page, the newest may be anywhere.
        all_seen = not page.lost and session_list.descends(page, [row.updated_at for row in rows])
        start_from = self._settings.first_start.start_from(
            newest_stamp(rows) if all_seen else None,
            now=self._recorder.clock(),
            cloud_now=self._cloud.now(),
            empty=not page.count and not page.total and not page.lost,
        )
        log.info("poll.first_start", reports_from=start_from, sessions_in_cloud=page.total)
        return start_from

    async def _save(self, state: PollState) -> PollState:
        now = self._recorder.clock()
        # Every write is an fsync, and the watermark moves at each poll of a busy account. What moves may be a little
        # behind in the store: after a crash known rows are read again, and are no news.
        lately = self._saved if is_recent(self._saved_at, now, SAVED_EVERY) else None
        if state != self._saved and (lately is None or state.without_what_moves != lately.without_what_moves):
            await self._recorder.journal.commit(Changes(watch=state))
            self._saved, self._saved_at = state, now
        self._state = state
        return state
