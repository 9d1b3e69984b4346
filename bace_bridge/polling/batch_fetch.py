"""One fetch of the datapoints of many active data sessions, where the cloud honours that."""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudError, UnexpectedReply
from bace_bridge.polling.batch_reader import BatchReader, NotHonoured
from bace_bridge.polling.datapoint_fetch import DatapointFetch, FetchSettings
from bace_bridge.polling.needs import PointCloud, PointJournal
from bace_bridge.polling.points import PointEndpoint, PointsForbidden
from bace_bridge.polling.reading import Reader, Unreadable
from bace_bridge.polling.rules.batch_size import BatchSize
from bace_bridge.polling.rules.batches import (
    FORGOTTEN_AFTER,
    Batch,
    BatchQuery,
    Member,
    Plan,
    as_partial,
    attribute,
    is_due,
    plan,
)
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.datapoints import Datapoint, are_raw
from bace_bridge.polling.rules.fetches import absorb
from bace_bridge.polling.rules.followed import Followed, Shown, after_batch, conclude_batch, remembered
from bace_bridge.polling.rules.ranges import halves_of
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import Window

log = structlog.get_logger()

ALONE_FOR = 3600.0
"""Seconds for which a data session on which batches break is fetched on its own."""

MOST_DOUBTS = 3
"""Rows of unknown series after which a data session is fetched on its own for a while: it does not get clearer."""


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
    """One for a process: it knows the data sessions that may be fetched together, and fetches them."""

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
        self._points = BatchReader(cloud, endpoint, clock=clock)
        self._followed: dict[str, Followed] = {}
        self._alone: dict[str, float] = {}

    @property
    def size(self) -> BatchSize:
        return self._points.size

    async def plan(self, sessions: Sequence[KnownSession], *, checks: int) -> Plan:
        """How these live sessions, those first that are due first, are fetched."""
        now = self._clock()
        if not self._points.is_usable or self._endpoint.rest > 0:
            return Plan(singles=tuple(one for one in sessions if is_due(one, now)))
        self._alone = {one: until for one, until in self._alone.items() if 0 < until - now <= ALONE_FOR}
        forgotten = max(FORGOTTEN_AFTER, 4 * self._settings.interval)
        self._followed = {one: it for one, it in self._followed.items() if 0 <= now - it.at < forgotten}
        await self._remember([one for one in sessions if one.own_group and one.session.id not in self._followed])
        return plan(
            sessions,
            self._followed,
            alone=self._alone,
            size=self.size.ids,
            rows=self._points.page_size,
            checks=checks,
            now=now,
            cloud_now=self._cloud_now(),
            interval=self._settings.interval,
        )

    async def _remember(self, sessions: Sequence[KnownSession]) -> None:
        """After a restart what the store tells of them, so that not each one has to be fetched on its own first."""
        if not sessions:
            return
        ids = [one.session.id for one in sessions]
        states = await self._journal.windows_of(ids)
        unsettled = {window for one in states.values() for window, state in one.items() if not state.settled}
        emitted = {window: await self._journal.emitted_of(window, ids) for window in sorted(unsettled)}
        for known in sessions:
            one = known.session.id
            published = {window: emitted[window][one] for window, state in states[one].items() if not state.settled}
            cloud_now = self._cloud_now()
            if (it := remembered(known, states[one], published, now=self._clock(), cloud_now=cloud_now)) is not None:
                self._followed[one] = it

    async def alone(self, fetch: DatapointFetch) -> CloudError | None:
        """Makes a fetch of one data session, and notes whether it can be in a batch from now on."""
        before = self._followed.pop(fetch.session_id, None)
        away = await fetch.make()
        if away is None:
            self._points.note_answered(1)
        if (after := fetch.followed(before)) is not None:
            self._followed[fetch.session_id] = after
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
            for member in members:
                self._followed.pop(member.id, None)
        except CloudError as error:
            self._points.note_unanswered(len(members))
            return error
        else:
            self._points.note_answered(len(members))
            for these, reason in broken:
                self._leave_alone(these, reason)
        return None

    async def _read(self, batch: Batch, requests: Reader) -> None:
        """Raises Unreadable where less has to be asked for at once."""
        self._journal.ensure_room()
        found = {member.id: _Found(member) for member in batch.members}
        for window in batch.windows:
            query = batch.query(window)
            shares = attribute(await self._points.rows(query, requests), batch.members)
            if shares is None:
                await self._points.prove(query, requests, doubt=True)
                raise Unreadable(UnexpectedReply("rows of a group that was not asked for"))
            await self._absorb(query, window, shares, found)
        self._points.note_passed(len(batch.members))
        await self._commit(list(found.values()))

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
                window,
                rows,
                before=well.windows.get(window),
                emitted=emitted[session_id],
                datatypes=self._settings.datatypes,
                in_part=not whole,
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
