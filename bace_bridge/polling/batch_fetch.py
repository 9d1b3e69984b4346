"""Reads the datapoints of many data sessions in one request, and learns what the cloud and its proxies make of that."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn

import structlog
from msgspec.structs import replace

from bace_bridge.errors import (
    CloudBadGateway,
    CloudError,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
)
from bace_bridge.polling.datapoint_fetch import DatapointFetch, FetchSettings
from bace_bridge.polling.points import PointEndpoint, PointsForbidden, TooMuch, whole_answer
from bace_bridge.polling.reading import Reader, Unreadable
from bace_bridge.polling.rules.batches import (
    FORGOTTEN_AFTER,
    LEAST_IDS,
    Batch,
    BatchSize,
    Member,
    Plan,
    absorb_batch,
    attribute,
    is_due,
    not_proven,
    plan,
)
from bace_bridge.polling.rules.changes import Changes, Page, PointCloud, PointJournal, Urgency
from bace_bridge.polling.rules.datapoints import Datapoint, are_raw, as_set
from bace_bridge.polling.rules.fetches import PointQuery
from bace_bridge.polling.rules.followed import Followed, Read, conclude_batch, follow, is_plain
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import halves_of

log = structlog.get_logger()

PROOF_LASTS = 3600.0
"""Seconds after which it is checked again whether the cloud honours `in`, or honours it now."""

ROWS_OF_A_PAGE = 500
"""Where the cloud does not say: BACE's own default."""

TOO_SLOW = {None, 504}
"""HTTP statuses of what takes the cloud, or a proxy, too long; None where no answer came."""


class NotHonoured(Exception):  # control flow: every data session is fetched on its own
    """The cloud ignores or refuses `in`, or the bounds of the time."""


class BatchReader:
    """One for a process. `size` is how many data sessions a request may name, `page_size` the rows of a page."""

    def __init__(self, cloud: PointCloud, endpoint: PointEndpoint, *, clock: Callable[[], float]) -> None:
        self._cloud = cloud
        self._endpoint = endpoint
        self._clock = clock
        self._proving = asyncio.Lock()
        self._honoured: tuple[bool, float] | None = None  # whether it honours `in`, and when that was checked
        self.size = BatchSize()
        self.page_size = ROWS_OF_A_PAGE

    @property
    def honoured(self) -> bool | None:
        """Whether the cloud honours `in`, where that was checked lately."""
        honoured, at = self._honoured or (None, 0.0)
        return honoured if 0 <= self._clock() - at < PROOF_LASTS else None

    async def rows(self, query: PointQuery, reader: Reader) -> tuple[Datapoint, ...]:
        """Every row. Raises Unreadable where less has to be requested at once, and NotHonoured."""
        await self.prove(query, reader)
        found = await whole_answer(lambda number: self._page(query, number, reader))
        self.page_size = found[0].per_page or ROWS_OF_A_PAGE
        if lost := [row for page in found for row in page.unreadable]:
            raise TooMuch(lost[0])
        rows = as_set(row for page in found for row in page.items)
        if not all(query.start <= row.timestamp < query.end for row in rows):
            self._refuse("its rows are outside the requested time range")
        return rows

    async def prove(self, query: PointQuery, reader: Reader, *, doubt: bool = False) -> None:
        """Raises NotHonoured where the same query for no data session shows anything: once an hour, and in `doubt`."""
        # A cloud that ignores `in` answers 200 with the rows of all sessions, which would be published as those of the
        # ones that were requested. One fetch finds out, and the others wait for that.
        async with self._proving:
            if self.honoured is False:
                raise NotHonoured
            if self.honoured and not doubt:
                return
            try:
                request = partial(self._cloud.point_page, query.as_canary.params, 1, urgency=Urgency.LIVE)
                page = await reader.request(request, long=True)
            except (CloudRefused, Unreadable) as refusal:
                self._refuse(str(refusal))
            if page.count:
                self._refuse("its rows belong to no data session")
            if self._honoured is not None and not self._honoured[0]:
                log.info("cloud.in_filter_honoured_again")
            self._honoured = True, self._clock()

    def _refuse(self, reason: str) -> NoReturn:
        if self._honoured is None or self._honoured[0]:
            log.warning(
                "cloud.in_filter_not_honoured", reason=reason, then="datapoints take one request per data session"
            )
        self._honoured = False, self._clock()
        raise NotHonoured

    async def _page(self, query: PointQuery, number: int, reader: Reader) -> Page[Datapoint]:
        fault: CloudError
        request = partial(self._cloud.point_page, query.params, number, urgency=Urgency.LIVE)
        try:
            return await reader.request(request, long=True)
        except Unreadable as broken:
            if not isinstance(broken.cause, CloudRequestTooLarge | CloudBadGateway):
                raise
            fault = broken.cause
        except CloudUnavailable as away:
            # So many sessions may take the cloud too long; where the canary is answered, fewer may do.
            if away.status not in TOO_SLOW:
                raise
            await self._endpoint.check()
            fault = away
        except CloudRefused as refusal:
            # 400 and 422 are about the query; 401, 403 and 404 may be about the account, which the canary shows.
            if refusal.status not in {400, 422}:
                await self._endpoint.check()
            await self.prove(query, reader, doubt=True)
            fault = refusal
        self.size = self.size.after_failure(len(query.sessions), now=self._clock())
        raise Unreadable(fault)


ALONE_FOR = 3600.0
"""Seconds for which a data session on which batches break is fetched on its own."""


class BatchFetch:
    """One for a process: it knows the data sessions that may be fetched together, and fetches them.

    `points` has learned how many go into a request.
    `deciding` is held from reading what is known of them to the commit.
    """

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
        self.points = BatchReader(cloud, endpoint, clock=clock)
        self._followed: dict[str, Followed] = {}
        self._alone: dict[str, float] = {}

    async def plan(self, sessions: Sequence[KnownSession], *, checks: int) -> Plan:
        """How these live sessions, those first that are due first, are fetched."""
        now = self._clock()
        if self.points.honoured is False or self._endpoint.rest > 0:
            return Plan(singles=tuple(one for one in sessions if is_due(one, now)))
        self._alone = {one: until for one, until in self._alone.items() if 0 < until - now <= ALONE_FOR}
        forgotten = max(FORGOTTEN_AFTER, 4 * self._settings.interval)
        self._followed = {one: it for one, it in self._followed.items() if 0 <= now - it.at < forgotten}
        new = [one for one in sessions if one.session.id not in self._followed]
        if len(self._followed) + len(new) >= LEAST_IDS:
            await self._follow(new)
        return plan(
            sessions,
            self._followed,
            alone=self._alone,
            size=self.points.size.ids,
            rows=self.points.page_size,
            checks=checks,
            now=now,
            cloud_now=self._cloud.now(),
            interval=self._settings.interval,
        )

    async def _follow(self, sessions: Sequence[KnownSession], before: Followed | None = None) -> None:
        """Reads what the store has of these sessions, where they may be in a batch; `before` is what was known."""
        ids = [one.session.id for one in sessions if is_plain(one)]
        if not ids:
            return
        states = await self._journal.windows(ids)
        unsettled = {window for one in states.values() for window, state in one.items() if not state.settled}
        emitted = {window: await self._journal.emitted(window, ids) for window in sorted(unsettled)}
        times = {"now": self._clock(), "cloud_now": self._cloud.now()}
        for known in sessions:
            own = states.get(one := known.session.id, {})
            published = {window: emitted[window][one] for window, state in own.items() if not state.settled}
            if (it := follow(known, own, published, before, **times)) is not None:
                self._followed[one] = it

    async def alone(self, fetch: DatapointFetch) -> CloudError | None:
        """Makes a fetch of one data session, which may be in a batch after that."""
        before = self._followed.pop(fetch.session_id, None)
        away = await fetch.make()
        if before is not None:
            known = await self._journal.known([fetch.session_id])
            await self._follow([*known.values()], before)
        return away

    async def read_batch(self, batch: Batch) -> CloudError | None:
        """Reads what is new of the sessions of a batch, in parts where that cannot be had at once.

        Returns why the cloud as a whole gives no datapoints, where that is so. Raises StoreError.
        """
        reader = Reader(self._cloud, canaries=[self._endpoint.check])

        async def read(members: Sequence[Member]) -> None:
            await self._read(batch._replace(members=tuple(members)), reader)

        broken: list[tuple[Sequence[Member], str]] = []
        most = self.points.size.ids  # it may have shrunk since this was planned
        try:
            await self._endpoint.ensure_allowed()
            for first in range(0, len(batch.members), most):
                broken += await reader.bisect(batch.members[first : first + most], read, halves_of)
        except (NotHonoured, PointsForbidden):
            log.debug("datapoints.batch_given_up", sessions=len(batch.members))
        except CloudError as error:
            return error
        else:
            for these, reason in broken:
                for member in these:
                    log.info("datapoints.fetched_alone", session=member.id, reason=reason)
                    self._alone[member.id] = self._clock() + ALONE_FOR
        return None

    async def _read(self, batch: Batch, reader: Reader) -> None:
        """Raises Unreadable where less has to be requested at once."""
        self._journal.ensure_room()
        reads: dict[str, list[Read]] = {member.id: [] for member in batch.members}
        for window in batch.windows:
            query = batch.query(window)
            shares = attribute(await self.points.rows(query, reader), batch.members)
            if shares is None:
                await self.points.prove(query, reader, doubt=True)
                raise TooMuch("rows that were not requested")
            for one, rows in shares.items():
                reads[one].append(Read(window, rows, query.start == window.start))
        self.points.size = self.points.size.after_success(len(batch.members), now=self._clock())
        # One row that was taken for another session's would be published under the wrong device: so nothing of such a
        # batch counts. The others are still due, and are read again.
        if hidden := not_proven(batch.members, reads):
            self._fetch_alone_next(hidden)
        else:
            await self._absorb(batch, reads)

    async def _absorb(self, batch: Batch, reads: Mapping[str, Sequence[Read]]) -> None:
        """Commits what is new, but of sessions that have to be fetched on their own."""
        settings, times = self._settings, {"now": self._clock(), "cloud_now": self._cloud.now()}
        emitted = {window: await self._journal.emitted(window, list(reads)) for window in batch.windows}
        found: dict[str, tuple[Changes, Followed]] = {}
        for member in batch.members:
            published = {window: each[member.id] for window, each in emitted.items()}
            made = absorb_batch(member, reads[member.id], published, settings.datatypes, **times)
            coarse = settings.resolution == "finest" and not all(are_raw(read.rows) for read in reads[member.id])
            if made is None or coarse:
                self._fetch_alone_next([member])
            else:
                found[member.id] = made
        # All sessions in one transaction: a commit costs an fsync, and a fleet has many sessions with a point or two.
        async with self._deciding:
            known = await self._journal.known(list(found))
            for one, (changes, after) in ((one, found[one]) for one in known):
                newest = max((event.time for event in changes.events), default=None)
                known[one] = conclude_batch(
                    known[one], after, newest=newest, interval=settings.interval, now=self._clock()
                )
            await self._journal.commit(Changes.of_points((found[one][0] for one in known), known.values()))
        self._followed.update({one: found[one][1] for one in known})

    def _fetch_alone_next(self, members: Sequence[Member]) -> None:
        # Only a fetch of its own shows whether such rows are the session's.
        self._followed.update({member.id: replace(member.followed, alone=True) for member in members})
