"""Reads the datapoints of one data session, however they have to be asked for."""

from collections.abc import Iterable
from contextlib import suppress

from bace_bridge.errors import CloudRefused, UnexpectedReply
from bace_bridge.polling.needs import PointCloud
from bace_bridge.polling.point_endpoint import PointEndpoint
from bace_bridge.polling.reading import Reader, Unreadable, pages
from bace_bridge.polling.rules.datapoints import Datapoint, are_raw
from bace_bridge.polling.rules.point_pages import PointQuery, as_set, fit_together, within
from bace_bridge.polling.rules.seen import Page, PointsRead, Urgency
from bace_bridge.polling.rules.sessions import DataSession
from bace_bridge.polling.rules.windows import FINEST_SPAN

MOST_PAGES = 1000
MOST_POINTS = 500_000
"""Pages and datapoints of one query that are held in memory; of what says that it has more, a part is asked for."""

MOST_SERIES = 100
"""BACE serves at most 100 series (group x device x datatype) in one request."""

MOST_PARTS = 1000
"""Datatypes, and source devices, that are asked for one by one."""

TRIES = 2
"""Readings of pages that do not fit together: rows may have come in between."""


class TooMuch(Unreadable):  # control flow: what was asked for at once is asked for in parts
    """The cloud answers, but not everything can be had in one query."""

    def __init__(self, reason: str) -> None:
        super().__init__(UnexpectedReply(reason))


class PointReader:
    """Raises Unreadable where it is this data session, and any other CloudError where it is the cloud as a whole."""

    def __init__(self, cloud: PointCloud, endpoint: PointEndpoint, session: DataSession, urgency: Urgency) -> None:
        self._cloud = cloud
        self._endpoint = endpoint
        self._session = session
        self._urgency = urgency
        self._made_sure = False
        self.parts_asked = 0
        self.requests = Reader(cloud, canaries=[endpoint.check])

    async def read(self, start: int | None, end: int | None) -> PointsRead:
        """Every datapoint in [start, end); without bounds all of them, at day resolution."""
        query = PointQuery(self._session.id, start, end)
        try:
            found = await self._whole(query)
        except TooMuch as reason:
            self.parts_asked += 1
            found = await self._by_series(query, reason)
        rows = as_set(row for page in found for row in page.items)
        unreadable = tuple(name for page in found for name in page.unreadable)
        self._endpoint.name_unreadable(self._session.id, unreadable)
        own = not rows or await self._are_own(query, rows)
        if not own:
            rows = within(rows, self._session)
        held = start is None or end is None or all(start <= row.timestamp < end for row in rows)
        return PointsRead(rows, len(found), held=held, own=own)

    async def are_samples(self, read: PointsRead) -> bool:
        """Asks for the newest point's minute where only that can tell samples from buckets of one sample each."""
        if are_raw(read.points) or any(point.count > 1 for point in read.points):
            return are_raw(read.points)
        minute = int(max(point.timestamp for point in read.points))
        finest = await self.read(minute, minute + FINEST_SPAN)
        return {*finest.points} <= {*read.points}

    async def _are_own(self, query: PointQuery, rows: Iterable[Datapoint]) -> bool:
        """False where the cloud shows rows of other data sessions, too. A session that was moved has two groups."""
        foreign = any(row.group_id not in {None, self._session.group_id} for row in rows)
        doubt, self._made_sure = foreign and not self._made_sure, self._made_sure or foreign
        return await self._endpoint.keeps_to_sessions(query, doubt=doubt, urgency=self._urgency)

    async def _whole(self, query: PointQuery) -> list[Page[Datapoint]]:
        for _ in range(TRIES):
            found = await self._all_pages(query)
            if len({row.series_id for page in found for row in page.items}) >= MOST_SERIES:
                raise TooMuch(f"{MOST_SERIES} series or more, and not all of them come in one answer")
            if fit_together(found, one_series=query.of_one_series):
                return found
        raise TooMuch("the pages of the answer do not fit together")

    async def _all_pages(self, query: PointQuery) -> list[Page[Datapoint]]:
        found: list[Page[Datapoint]] = []
        rows = 0
        async for page in pages(lambda number: self._page(query, number)):
            found.append(page)
            rows += page.count
            if max(page.page_count or 0, len(found)) > MOST_PAGES or max(page.total or 0, rows) > MOST_POINTS:
                raise TooMuch(f"more than {MOST_POINTS} datapoints, or {MOST_PAGES} pages, in one answer")
        return found

    async def _page(self, query: PointQuery, number: int) -> Page[Datapoint]:
        try:
            return await self.requests.ask(lambda: self._cloud.point_page(query.params, number, urgency=self._urgency))
        except CloudRefused as refusal:
            if refusal.status in {400, 422}:
                raise TooMuch(f"the cloud refuses to answer all series at once: {refusal}") from None
            await self._endpoint.check()
            raise Unreadable(refusal) from None

    async def _by_series(self, query: PointQuery, reason: TooMuch) -> list[Page[Datapoint]]:
        """By datatype, and what is still too much by source device: the time stays, and so does the resolution."""
        try:
            datatypes, devices = await self.requests.ask(
                lambda: self._cloud.series_axes(query.session_id, urgency=self._urgency)
            )
        except CloudRefused:
            raise reason from None
        if not datatypes or max(len(datatypes), len(devices)) > MOST_PARTS:
            raise reason
        found: list[Page[Datapoint]] = []
        for datatype in datatypes:
            part = query._replace(datatype=datatype)
            with suppress(TooMuch):
                found += await self._whole(part)
                continue
            if not devices:
                raise reason
            for device in devices:
                found += await self._whole(part._replace(source_device=device))
        return found
