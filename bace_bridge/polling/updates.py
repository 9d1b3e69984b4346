"""Polls the list of what was updated since the last poll, around the seconds in which the cloud breaks on a record."""

from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace

from bace_bridge.domain.timestamps import iso_utc
from bace_bridge.errors import CloudRefused, UnexpectedReply
from bace_bridge.polling.needs import SessionJournal
from bace_bridge.polling.reading import Reader, Unreadable, is_last
from bace_bridge.polling.recheck import Recheck
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import GAP_RETRY, SOON, Gap, Span, spans_around, with_gap
from bace_bridge.polling.rules.seen import Page, SeenSession

MOST_PAGES_OF_A_GAP = 2
"""Pages of a gap that are read in one poll: each may take a request a row."""

NAME = "data sessions updated at"

NOT_SUPPORTED = {400, 404, 422}
"""HTTP statuses of a server that does not know a filter or a sort."""


class NotHonoured(Exception):  # control flow: the other strategy is taken
    """The server ignored or refused what this strategy rests on."""


class _Walk(msgspec.Struct):
    """What one poll of the list showed; `pages` are those of its longest span."""

    seen: set[str] = msgspec.field(default_factory=set)
    newest: float | None = None
    pages: int = 0
    new: bool = False
    filter_held: bool = False


class Updates:
    """The newest rows first, and the gaps last: what breaks must not keep anything else from being read."""

    def __init__(
        self,
        journal: SessionJournal,
        recorder: SessionRecorder,
        recheck: Recheck,
        *,
        clock: Callable[[], float],
        cloud_now: Callable[[], float],
        save: Callable[[PollState], Awaitable[None]],
    ) -> None:
        self._journal = journal
        self._recorder = recorder
        self._recheck = recheck
        self._clock = clock
        self._cloud_now = cloud_now
        self._save = save

    async def poll(self, state: PollState, reader: Reader) -> PollState:
        """The state after a poll. Raises NotHonoured and CloudErrors; gaps that were found are saved before."""
        self._name_gaps(state)
        bound = session_list.bound_of(state)
        walk = _Walk()
        spans = spans_around(bound, state.gaps)
        while spans:
            state = await self._read(spans.pop(), state, reader, walk)
        await self._recheck.ask_for_missing(await self._journal.recently_updated(bound), walk.seen, state)
        state = await self._read_due_gap(state, reader, walk)
        return session_list.after_walk(state, walk.newest, pages=walk.pages, new=walk.new, cloud_now=self._cloud_now())

    async def _read(self, span: Span, state: PollState, reader: Reader, walk: _Walk) -> PollState:
        """Reads a span; what the cloud breaks on in it is a gap from now on, whatever happens later."""
        gaps: list[Gap] = []

        async def read(part: Span) -> None:
            try:
                gaps.extend(await self._read_span(part, state, reader, walk))
            except Unreadable:
                await self._make_sure_of_the_filter(reader, walk)
                raise

        for part, reason in await reader.bisect(span, read, lambda one: one.halves(now=self._clock())):
            if part.since > self._cloud_now():
                continue  # nothing that has happened can be in it
            if part.until is None:
                raise UnexpectedReply(reason)
            gaps.append(self._gap(max(0, int(part.since)), part.until, reason))
        after = state
        for gap in gaps:
            after = replace(after, gaps=with_gap(after.gaps, gap))
        if after != state:
            await self._save(after)
        return after

    async def _read_span(self, span: Span, state: PollState, reader: Reader, walk: _Walk) -> list[Gap]:
        """Reads the pages of a span. Returns the seconds of single rows that cannot be read."""
        gaps: list[Gap] = []
        number, last_id = 0, ""
        try:
            async for page in reader.pages(session_list.updated_between(*span), whole=True):
                number += 1
                rows = [row.session for row in page.items]
                if not session_list.updates_held(rows, *span):
                    raise NotHonoured("filter[updated_at] is ignored")
                if (number > 1 or (page.page_count or 1) > 1) and not session_list.ids_ascend(rows, last_id):
                    raise NotHonoured("sort=id_data_session is ignored")
                last_id = rows[-1].id.lower() if rows else last_id
                walk.pages = max(walk.pages, number)
                gaps += await self._take(page, state, walk)
        except CloudRefused as refusal:
            if refusal.status in NOT_SUPPORTED:
                raise NotHonoured(str(refusal)) from None
            raise
        return gaps

    async def _take(self, page: Page[SeenSession], state: PollState, walk: _Walk) -> list[Gap]:
        walk.new = bool(await self._recorder.record(page, state)) or walk.new
        walk.seen.update(row.session.id for row in page.items)
        stamps = [row.session.updated_at for row in page.items if row.session.updated_at is not None]
        walk.newest = max([*stamps, walk.newest] if walk.newest is not None else stamps, default=None)
        lost = {row.updated_at: row.reason for row in page.lost}
        if None in lost:
            raise Unreadable(UnexpectedReply(lost[None]))
        believable = {stamp: why for stamp, why in lost.items() if stamp is not None and stamp <= self._cloud_now()}
        walk.newest = max([*believable, walk.newest] if walk.newest is not None else believable, default=None)
        later = self._clock() - GAP_RETRY + SOON
        return [self._gap(int(stamp), int(stamp) + 1, why, tried_at=later) for stamp, why in believable.items()]

    async def _make_sure_of_the_filter(self, reader: Reader, walk: _Walk) -> None:
        """Where it is ignored, every span breaks in the same way, however small it is."""
        if walk.filter_held:
            return
        try:
            async for page in reader.pages(session_list.NONE_UPDATED, whole=True):
                if page.count:
                    raise NotHonoured("filter[updated_at] is ignored")
        except Unreadable:
            raise NotHonoured("filter[updated_at] is ignored") from None
        walk.filter_held = True

    async def _read_due_gap(self, state: PollState, reader: Reader, walk: _Walk) -> PollState:
        """A new gap, and one that has rested: a record that was repaired, removed or updated leaves it readable."""
        due = [one for one in state.gaps if one.is_due(self._clock())]
        new = [one for one in due if not one.tried_at][:1]
        rested = sorted((one for one in due if one.tried_at), key=lambda one: (one.page == 1, one.tried_at))[:1]
        for gap in (*new, *rested):
            state = await self._read_gap(gap, state, reader, walk)
        return state

    async def _read_gap(self, gap: Gap, state: PollState, reader: Reader, walk: _Walk) -> PollState:
        others = replace(state, gaps=tuple(one for one in state.gaps if one != gap))
        if gap.until - gap.since > 1:
            after = await self._read(gap.span, others, reader, walk)
        else:
            after = await self._read_rows(gap, others, reader)
        if not any(one.since == gap.since for one in after.gaps):
            self._recorder.unreadable.was_read(_name(gap))
        return after

    async def _read_rows(self, gap: Gap, others: PollState, reader: Reader) -> PollState:
        """Some pages of a gap of a single second, row by row where the cloud breaks on them."""
        params = session_list.updated_between(*gap.span)
        number, lost = gap.page, gap.lost
        for _ in range(MOST_PAGES_OF_A_GAP):
            page = await reader.page(params, number)
            await self._recorder.record(page, others)
            lost = lost or bool(page.lost)
            if is_last(page, number):
                rested = self._clock() if gap.tried_at else self._clock() - GAP_RETRY + SOON
                rest = Gap(gap.since, gap.until, rested)
                return replace(others, gaps=with_gap(others.gaps, rest)) if lost else others
            number += 1
        rest = replace(gap, tried_at=self._clock(), page=number, lost=lost)
        return replace(others, gaps=with_gap(others.gaps, rest))

    def _gap(self, since: int, until: int, reason: str, *, tried_at: float = 0.0) -> Gap:
        gap = Gap(since, until, tried_at)
        self._recorder.unreadable.failed(_name(gap), reason, sure=True)
        return gap

    def _name_gaps(self, state: PollState) -> None:
        """Of gaps that became one, the others' names go; those of the process before come back."""
        self._recorder.unreadable.retain(NAME, {_name(gap) for gap in state.gaps})
        for gap in state.gaps:
            if not self._recorder.unreadable.knows(_name(gap)):
                self._recorder.unreadable.failed(_name(gap), "it could not be read before", sure=True)


def _name(gap: Gap) -> str:
    return f"{NAME} {iso_utc(gap.since)}"
