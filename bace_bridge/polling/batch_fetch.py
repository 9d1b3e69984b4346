"""One request for the datapoints of many active data sessions, where the cloud honours that."""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudBadGateway, CloudError, CloudRefused, CloudRequestTooLarge, UnexpectedReply
from bace_bridge.polling.datapoint_fetch import DatapointFetch, FetchSettings
from bace_bridge.polling.needs import PointCloud, PointJournal
from bace_bridge.polling.points import MOST_PAGES, MOST_SERIES, TRIES, PointEndpoint, PointsForbidden
from bace_bridge.polling.reading import Reader, Unreadable, pages
from bace_bridge.polling.rules.batch_size import BatchSize
from bace_bridge.polling.rules.batches import (
    FORGOTTEN_AFTER,
    Batch,
    BatchQuery,
    Followed,
    Member,
    Plan,
    Shown,
    after_batch,
    as_partial,
    attribute,
    conclude_batch,
    is_due,
    plan,
)
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.datapoints import Datapoint, are_raw
from bace_bridge.polling.rules.point_pages import as_set, fit_together
from bace_bridge.polling.rules.ranges import NOBODY, halves_of
from bace_bridge.polling.rules.readings import absorb
from bace_bridge.polling.rules.seen import Page, Urgency
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import Window

log = structlog.get_logger()

PROOF_LASTS = 3600.0
"""Seconds after which it is asked again whether the cloud honours `in`, or honours it now."""

ROWS_OF_A_PAGE = 500
"""Where the cloud does not say: BACE's own default."""

ALONE_FOR = 3600.0
"""Seconds for which a data session on which batches break is fetched on its own."""

MOST_UNANSWERED = 2
"""Batches in a row that the cloud did not answer, after which a fetch of one session finds out whether it is away."""

MOST_DOUBTS = 3
"""Rows of unknown series after which a data session is fetched on its own for a while: it does not get clearer."""


class NotHonoured(Exception):  # control flow: every data session is fetched on its own
    """The cloud ignores or refuses `in`, or the bounds of the time."""


class _Found:
    """What a batch has found of one data session."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.changes = Changes()
        self.shown = Shown()

    def add(self, changes: Changes, shown: Shown) -> None:
        self.shown = shown
        self.changes = Changes(
            windows=self.changes.windows + changes.windows,
            latest=self.changes.latest + changes.latest,
            events=self.changes.events + changes.events,
        )


class BatchFetch:
    """One for a process: it knows the data sessions that may be fetched together, and how many at once."""

    def __init__(
        self,
        cloud: PointCloud,
        endpoint: PointEndpoint,
        journal: PointJournal,
        settings: FetchSettings,
        *,
        deciding: asyncio.Lock,
        clock: Callable[[], float],
    ) -> None:
        self._cloud = cloud
        self._endpoint = endpoint
        self._journal = journal
        self._settings = settings
        self._deciding = deciding
        self._clock = clock
        self._followed: dict[str, Followed] = {}
        self._alone: dict[str, float] = {}
        self._proving = asyncio.Lock()
        self._proven_at: float | None = None
        self._refused_at: float | None = None
        self._page_size = ROWS_OF_A_PAGE
        self._unanswered = 0
        self._unanswered_ids = 0
        self._suspected = False
        self.size = BatchSize()

    def plan(self, sessions: Sequence[KnownSession], *, checks: int) -> Plan:
        """How these live sessions, those first that are due first, are fetched."""
        now = self._clock()
        self._alone = {one: until for one, until in self._alone.items() if 0 < until - now <= ALONE_FOR}
        if self._is_refused or self._unanswered >= MOST_UNANSWERED:
            return Plan(singles=tuple(one for one in sessions if is_due(one, now)))
        forgotten = max(FORGOTTEN_AFTER, 4 * self._settings.interval)
        self._followed = {one: it for one, it in self._followed.items() if 0 <= now - it.at < forgotten}
        return plan(
            sessions,
            self._followed,
            alone=self._alone,
            size=self.size.ids,
            rows=self._page_size,
            checks=checks,
            now=now,
            cloud_now=self._cloud_now(),
            interval=self._settings.interval,
        )

    async def alone(self, fetch: DatapointFetch) -> CloudError | None:
        """Makes a fetch of one data session, and notes whether it can be in a batch from now on."""
        session_id = fetch.session_id
        before = self._followed.pop(session_id, None)
        away = await fetch.make()
        if away is None:
            self._note_answered(1)
        if (after := fetch.followed(before)) is not None:
            self._followed[session_id] = after
        return away

    async def read_batch(self, batch: Batch) -> CloudError | None:
        """Reads what is new of the sessions of a batch, in parts where that cannot be had at once.

        Returns why the cloud as a whole gives no datapoints, where that is so. Raises StoreError.
        """
        requests = Reader(self._cloud, canaries=[self._endpoint.check])

        async def read(members: Sequence[Member]) -> None:
            await self._read(batch._replace(members=tuple(members)), requests)

        members: Sequence[Member] = batch.members
        try:
            await self._endpoint.ensure_allowed()
            broken = await requests.bisect(members, read, halves_of)
        except (NotHonoured, PointsForbidden):
            for member in batch.members:
                self._followed.pop(member.id, None)
        except CloudError as error:
            self._note_unanswered(len(members))
            return error
        else:
            self._note_answered(len(members))
            for these, reason in broken:
                self._leave_alone(these, reason)
        return None

    def _note_unanswered(self, ids: int) -> None:
        """One that takes the cloud too long seems to be an outage, which smaller ones show to be none."""
        self._unanswered, self._unanswered_ids = self._unanswered + 1, ids
        if self._suspected:
            self.size = self.size.after_failure(ids, now=self._clock())
            self._note_answered(ids)

    def _note_answered(self, ids: int) -> None:
        if ids >= self._unanswered_ids:
            self._unanswered, self._unanswered_ids, self._suspected = 0, 0, False
        elif self._unanswered:
            self._unanswered, self._suspected = 0, True

    async def _read(self, batch: Batch, requests: Reader) -> None:
        """Raises Unreadable where less has to be asked for at once."""
        self._journal.ensure_room()
        found = {member.id: _Found(member) for member in batch.members}
        for window in batch.windows:
            query = batch.query(window)
            await self._prove(query, requests)
            rows = await self._rows(query, requests)
            shares = attribute(rows, batch.members)
            if shares is None:
                await self._prove(query, requests, doubt=True)
                raise Unreadable(UnexpectedReply("rows of a group that was not asked for"))
            await self._absorb(query, window, shares, found)
        self.size = self.size.after_success(len(batch.members), now=self._clock())
        await self._commit(list(found.values()))

    async def _prove(self, query: BatchQuery, requests: Reader, *, doubt: bool = False) -> None:
        """The same query for no data session must show nothing: asked once an hour, and where there is a doubt."""
        async with self._proving:
            if self._is_refused:
                raise NotHonoured
            if self._proven_at is not None and 0 <= self._clock() - self._proven_at < PROOF_LASTS and not doubt:
                return
            try:
                page = await requests.ask(lambda: self._page_of(query._replace(ids=(NOBODY,)), 1))
                reason = "it shows rows of no data session" if page.count else None
            except (CloudRefused, Unreadable) as refusal:
                reason = str(refusal)
            if reason is not None:
                self._refuse(reason)
            if self._refused_at is not None:
                log.info("cloud.in_filter_honoured_again")
            self._proven_at, self._refused_at = self._clock(), None

    @property
    def _is_refused(self) -> bool:
        return self._refused_at is not None and 0 <= self._clock() - self._refused_at < PROOF_LASTS

    def _refuse(self, reason: str) -> None:
        if self._refused_at is None:
            log.warning("cloud.in_filter_not_honoured", reason=reason, then="datapoints cost a request a data session")
        self._proven_at, self._refused_at = None, self._clock()
        raise NotHonoured

    async def _rows(self, query: BatchQuery, requests: Reader) -> tuple[Datapoint, ...]:
        """Every row. Raises Unreadable where not all that there is can be had at once."""
        for _ in range(TRIES):
            found: list[Page[Datapoint]] = []
            async for page in pages(lambda number: self._page(query, number, requests)):
                found.append(page)
                self._page_size = page.per_page or ROWS_OF_A_PAGE
                if page.unreadable:
                    raise Unreadable(UnexpectedReply(page.unreadable[0]))
                if max(page.page_count or 0, len(found)) > MOST_PAGES:
                    raise Unreadable(UnexpectedReply(f"more than {MOST_PAGES} pages"))
            if fit_together(found, one_series=False):
                break
        else:
            raise Unreadable(UnexpectedReply("the pages of the answer do not fit together"))
        rows = as_set(row for page in found for row in page.items)
        if not all(query.start <= row.timestamp < query.end for row in rows):
            self._refuse("it shows rows of another time than was asked for")
        if any(row.group_id is None for row in rows):
            self._refuse("its rows name no group")
        if len({row.series_id for row in rows}) >= MOST_SERIES:
            raise Unreadable(UnexpectedReply(f"{MOST_SERIES} series or more"))
        return rows

    async def _page(self, query: BatchQuery, number: int, requests: Reader) -> Page[Datapoint]:
        try:
            return await requests.ask(lambda: self._page_of(query, number), long=True)
        except Unreadable as fault:
            if isinstance(fault.cause, CloudRequestTooLarge | CloudBadGateway):
                self.size = self.size.after_failure(len(query.ids), now=self._clock())
            raise
        except CloudRefused as refusal:
            if refusal.status not in {400, 422}:
                await self._endpoint.check()
            await self._prove(query, requests, doubt=True)
            self.size = self.size.after_failure(len(query.ids), now=self._clock())
            raise Unreadable(refusal) from None

    async def _page_of(self, query: BatchQuery, number: int) -> Page[Datapoint]:
        return await self._cloud.point_page(query.params, number, urgency=Urgency.LIVE)

    async def _absorb(
        self, query: BatchQuery, window: Window, shares: dict[str, list[Datapoint]], found: dict[str, _Found]
    ) -> None:
        """Adds to what was `found`; takes out of it the sessions that have to be fetched on their own."""
        emitted = await self._journal.emitted_of(window, list(found))
        for session_id, rows in shares.items():
            one = found.get(session_id)
            if one is None:
                continue
            well = one.member.followed
            aggregated = self._settings.resolution == "finest" and not are_raw(rows)
            if aggregated or any(row.series_id not in well.series for row in rows):
                del found[session_id]
                self._doubt(one.member)
                continue
            whole = query.start == window.start
            changes = absorb(
                one.member.known,
                well.windows,
                {window: rows},
                {window: emitted[session_id]},
                self._settings.datatypes,
                in_part=None if whole else window,
                pages=1,
                now=self._clock(),
                cloud_now=self._cloud_now(),
            )
            one.add(
                as_partial(changes, well.windows.get(window), whole=whole),
                one.shown.with_rows({window: rows}, since=query.start, own=True),
            )

    def _doubt(self, member: Member) -> None:
        """Only a fetch of its own tells whether such rows are the session's."""
        doubts = member.followed.doubts + 1
        if doubts >= MOST_DOUBTS:
            self._leave_alone([member], "rows that no fetch of its own shows")
        else:
            self._followed[member.id] = replace(member.followed, doubts=doubts, alone=True)

    async def _commit(self, found: Sequence[_Found]) -> None:
        async with self._deciding:
            known = await self._journal.known([one.member.id for one in found])
            now = self._clock()
            after: dict[str, Followed] = {}
            for one in found:
                if (fresh := known.get(one.member.id)) is None:
                    continue
                states = {read.state.window: read.state for read in one.changes.windows}
                count = one.member.known.session.datapoint_count
                after[one.member.id] = after_batch(one.member.followed, states, one.shown, count=count, now=now)
                newest = max((event.time for event in one.changes.events), default=None)
                known[one.member.id] = conclude_batch(
                    fresh, after[one.member.id], newest=newest, interval=self._settings.interval, now=now
                )
            kept = [one for one in found if one.member.id in after]
            await self._journal.commit(
                Changes(
                    known=tuple(known.values()),
                    windows=tuple(read for one in kept for read in one.changes.windows),
                    latest=tuple(point for one in kept for point in one.changes.latest),
                    events=tuple(event for one in kept for event in one.changes.events),
                )
            )
        self._followed.update(after)

    def _leave_alone(self, members: Sequence[Member], reason: str) -> None:
        for member in members:
            log.info("datapoints.fetched_alone", session=member.id, reason=reason)
            self._alone[member.id] = self._clock() + ALONE_FOR

    def _cloud_now(self) -> float:
        return self._clock() + self._cloud.clock_ahead
