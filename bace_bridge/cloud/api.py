"""BACE's resources: data sessions, downsampled datapoints and groups. Endpoints, page sizes and filters live here."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TypeVar

import msgspec

from bace_bridge.cloud.http import CloudHttp, Params
from bace_bridge.cloud.replies import (
    parse_datapoints,
    parse_groups,
    parse_series_axes,
    parse_session,
    parse_sessions,
)
from bace_bridge.errors import CloudFault, CloudRefused
from bace_bridge.polling.rules.datapoints import Datapoint
from bace_bridge.polling.rules.seen import Page, PointsRead, SeenSession, Urgency

T = TypeVar("T")

SESSIONS = "/api/v2/data-session"
ONE_SESSION = "/api/v2/data-session/view"
DATAPOINTS = "/api/v2/data-downsampled"
GROUPS = "/api/v2/group"

SESSIONS_PER_PAGE = 100
DATAPOINTS_PER_PAGE = 5000
"""What is asked for; the server clamps both to its own limits and says so in `_meta`."""

PAGES_AT_ONCE = 3
MOST_POINT_PAGES = 1000
MOST_POINTS = 500_000
"""Pages and datapoints of one query that are held in memory; of what says that it has more, a part is asked for."""

MOST_AXES = 1000
MOST_GROUP_PAGES = 20
MOST_SERIES = 100
"""BACE serves at most 100 series (group x device x datatype) in one request."""


def csv_url(base_url: str, session_id: str) -> str:
    return f"{base_url.rstrip('/')}{SESSIONS}/{session_id}/download-csv"


class BaceCloud:
    """What the bridge asks of the cloud. Every method raises CloudErrors only."""

    def __init__(self, http: CloudHttp) -> None:
        self._http = http

    @property
    def clock_ahead(self) -> float:
        """Seconds that the cloud's clock is ahead of ours, as far as its answers tell."""
        return self._http.clock_ahead

    @property
    def requests_made(self) -> int:
        return self._http.requests_made

    async def session_page(self, params: Params, page: int, *, per_page: int = SESSIONS_PER_PAGE) -> Page[SeenSession]:
        query = [*params, ("expand", "group"), ("per-page", str(per_page)), ("page", str(page))]
        reply = await self._http.get(SESSIONS, query, urgency=Urgency.SESSIONS)
        return parse_sessions(reply.body, reply.headers)

    async def session(self, session_id: str) -> SeenSession:
        """One data session. Raises CloudGone where it cannot be seen any more."""
        query = [("id", session_id), ("expand", "group")]
        reply = await self._http.get(ONE_SESSION, query, urgency=Urgency.SESSIONS)
        return parse_session(reply.body)

    async def group_labels(self, wanted: Collection[str]) -> dict[str, str | None]:
        """The labels of groups, for servers whose sessions do not expand to them; of others, too, where they came."""
        filters = [("filter[id_group][in][]", group_id) for group_id in sorted(wanted)]
        labels: dict[str, str | None] = {}
        pages = 0
        async for page in walk(lambda number: self.group_page(number, filters)):
            labels.update(page.items)
            pages += 1
            if set(wanted) <= labels.keys() or pages >= MOST_GROUP_PAGES:
                break
        return labels

    async def group_page(self, page: int, filters: Params = ()) -> Page[tuple[str, str | None]]:
        """Ids and labels of groups. A poll of the session list waits for them."""
        query = [*filters, ("sort", "id_group"), ("per-page", "100"), ("page", str(page))]
        reply = await self._http.get(GROUPS, query, urgency=Urgency.SESSIONS)
        return parse_groups(reply.body, reply.headers)

    async def datapoints(self, session_id: str, start: int | None, end: int | None, *, urgency: Urgency) -> PointsRead:
        """Every datapoint of a data session in [start, end); without bounds all of them, at day resolution.

        Where pages shift or ties shuffle while they are walked, or there are more series than one request serves, it
        asks again by datatype, then by source device. Raises CloudUnavailable where the pages do not add up even then.
        """
        base = [("filter[id_data_session]", session_id)]
        if start is not None and end is not None:
            base += [
                ("filter[timestamp_seconds][gte]", str(start)),
                ("filter[timestamp_seconds][lt]", str(end)),
            ]
        read = await self._whole(base, urgency)
        if read is None:
            read = await self._split(session_id, base, urgency)
        if start is None or end is None:
            return read
        held = all(start <= point.timestamp < end for point in read.points)
        return msgspec.structs.replace(read, held=held)

    async def _whole(self, params: Params, urgency: Urgency, *, tries: int = 2) -> PointsRead | None:
        """All pages of a query; None where they do not add up or are too many, or where series may be missing."""
        for _ in range(tries):
            try:
                read, total = await self._read_once(params, urgency)
            except CloudRefused as refusal:
                if refusal.status not in {400, 413, 422}:
                    raise
                return None
            if read is None:
                return None
            if _series(read.points) >= MOST_SERIES:
                return None
            distinct = len({(point.series_id, point.timestamp) for point in read.points}) + len(read.unreadable)
            if read.pages == 1 or total is None or distinct >= total:
                return read
        return None

    async def _read_once(self, params: Params, urgency: Urgency) -> tuple[PointsRead | None, int | None]:
        """All pages of a query and how many points they should hold; None where that is too much to read at once."""
        first = await self._datapoint_page(params, 1, urgency)
        last = first.page_count or 1
        if last > MOST_POINT_PAGES or (first.total or 0) > MOST_POINTS:
            return None, first.total
        pages = {1: first}
        numbers = iter(range(2, last + 1))

        async def fetch() -> None:
            for number in numbers:
                if sum(page.count for page in pages.values()) > MOST_POINTS:
                    return
                pages[number] = await self._datapoint_page(params, number, urgency)

        await _all([fetch() for _ in range(min(PAGES_AT_ONCE, last - 1))])
        if len(pages) < last:
            return None, first.total
        read = [pages[number] for number in sorted(pages)]
        unreadable = tuple(name for page in read for name in page.unreadable)
        points = tuple(point for page in read for point in page.items)
        return PointsRead(points, len(read), unreadable=unreadable), read[-1].total

    async def _split(self, session_id: str, base: Params, urgency: Urgency) -> PointsRead:
        """Reads by datatype, and a datatype that is still too much by source device."""
        reply = await self._http.get(
            ONE_SESSION, [("id", session_id), ("expand", "datatypes,physicalDevices")], urgency=urgency
        )
        datatypes, devices = parse_series_axes(reply.body)
        if max(len(datatypes), len(devices)) > MOST_AXES:
            raise CloudFault(f"data session {session_id}: more than {MOST_AXES} datatypes or source devices")
        parts: list[PointsRead] = []
        for datatype in datatypes:
            narrowed = [*base, ("filter[datatype]", str(datatype))]
            part = await self._whole(narrowed, urgency, tries=4)
            if part is not None:
                parts.append(part)
                continue
            for device in devices:
                part = await self._whole([*narrowed, ("filter[source_device]", device)], urgency, tries=4)
                if part is None:
                    raise CloudFault(f"data session {session_id}: the datapoints' pages do not add up")
                parts.append(part)
        if not parts:
            raise CloudFault(f"data session {session_id}: too many series, and the cloud does not name its datatypes")
        unreadable = tuple(name for part in parts for name in part.unreadable)
        points = {(point.series_id, point.timestamp): point for part in parts for point in part.points}
        return PointsRead(tuple(points.values()), sum(part.pages for part in parts), unreadable=unreadable)

    async def _datapoint_page(self, params: Params, page: int, urgency: Urgency) -> Page[Datapoint]:
        query = [*params, ("per-page", str(DATAPOINTS_PER_PAGE)), ("page", str(page))]
        reply = await self._http.get(DATAPOINTS, query, urgency=urgency)
        return parse_datapoints(reply.body, reply.headers)


async def walk(page_at: Callable[[int], Awaitable[Page[T]]], *, first: int = 1) -> AsyncIterator[Page[T]]:
    """The pages of a collection, in order.

    It stops at `pageCount`, or when another page comes than was asked for: beyond the last page the server clamps, so
    a loop until an empty page would never end.
    """
    number = first
    while True:
        page = await page_at(number)
        if page.page is not None and page.page != number:
            return
        yield page
        if page.page_count is None or number >= page.page_count or not page.count:
            return
        number += 1


async def _all(jobs: list[Awaitable[T]]) -> list[T]:
    """Like gather, but the first failure ends the others."""

    async def run(job: Awaitable[T]) -> T:
        return await job

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(job)) for job in jobs]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _series(points: tuple[Datapoint, ...]) -> int:
    return len({point.series_id for point in points})
