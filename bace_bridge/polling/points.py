"""Reads the datapoints of data sessions, however they have to be asked for."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import structlog

from bace_bridge.domain.retry import backoff
from bace_bridge.errors import (
    CloudBadGateway,
    CloudError,
    CloudLoginFailed,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
    UnexpectedReply,
)
from bace_bridge.polling.needs import PointCloud
from bace_bridge.polling.reading import BREAKS, Reader, Unreadable, pages
from bace_bridge.polling.rules.datapoints import Datapoint, are_raw
from bace_bridge.polling.rules.point_pages import PointQuery, as_set, fit_together, within
from bace_bridge.polling.rules.ranges import NOBODY
from bace_bridge.polling.rules.seen import Page, PointsRead, Urgency
from bace_bridge.polling.rules.sessions import DataSession
from bace_bridge.polling.rules.windows import FINEST_SPAN

log = structlog.get_logger()

FIRST_REST, LONGEST_REST = 600.0, 21_600.0
"""Seconds after which datapoints that the account may not read are asked for again, at first and at last."""

MOST_NAMED = 1000
"""Rows that are named in the log, so that remembering which were has a bound."""

MOST_PAGES = 1000
MOST_POINTS = 500_000
"""Pages and datapoints of one query that are held in memory; of what says that it has more, a part is asked for."""

MOST_SERIES = 100
"""BACE serves at most 100 series (group x device x datatype) in one request."""

MOST_PARTS = 1000
"""Datatypes, and source devices, that are asked for in parts."""

MOST_DATATYPES = 40
"""Datatypes in one request, at first: the answer's `Link` header repeats them three to five times."""

SAFE_DATATYPES = 10
"""Datatypes that are asked for to see whether the cloud honours a list of them: no `Link` header is too large."""

TRIES = 2
"""Readings of pages that do not fit together: rows may have come in between."""


class PointsForbidden(CloudError):
    """The account may not read any datapoints. Try again, rarely."""


class TooMuch(Unreadable):  # control flow: what was asked for at once is asked for in parts
    """The cloud answers, but not everything can be had in one query."""

    def __init__(self, reason: str) -> None:
        super().__init__(UnexpectedReply(reason))


class Refused(NamedTuple):
    """Why the account may not read datapoints, how often that was said, and when last."""

    reason: str
    times: int
    at: float


class PointEndpoint:
    """What the fetches of a process have learned of the cloud's datapoints, so that it costs a request only once.

    `datatypes_at_once` is how many may go into a request, as far as that is known.
    """

    def __init__(self, cloud: PointCloud, *, clock: Callable[[], float]) -> None:
        self._cloud = cloud
        self._clock = clock
        self._checking = asyncio.Lock()
        self._refused: Refused | None = None
        self._kept: tuple[bool, float] | None = None  # whether it keeps to sessions, and when that was asked
        self.datatypes_at_once: int | None = None
        self._named: set[tuple[str, str]] = set()

    @property
    def problem(self) -> str | None:
        if self._refused is not None:
            return f"this account may not read datapoints: {self._refused.reason}"
        if self._kept is not None and not self._kept[0]:
            return (
                "the cloud ignores filter[id_data_session] of datapoints: "
                "only those of a data session's own device and time are published"
            )
        return None

    @property
    def rest(self) -> float:
        """Seconds for which datapoints are not asked for, because the account may not read them."""
        if self._refused is None:
            return 0.0
        rest = backoff(self._refused.times, jitter=0.0, first=FIRST_REST, longest=LONGEST_REST)
        waited = self._clock() - self._refused.at
        return rest - waited if 0 <= waited < rest else 0.0

    async def ensure_allowed(self) -> None:
        """Raises PointsForbidden while the account may not read any datapoints."""
        if self._refused is not None:
            await self.check()

    async def check(self) -> None:
        """The canary request: returns where the datapoints of no data session can be had, so that it is not the cloud.

        An outage seems to be a broken data session: a 500, a hotel's HTML with 200, a 401 by a login service that is
        away. Where also the session list is refused it is one; where it is not, the account lacks the permission.
        """
        async with self._checking:
            before = self._refused
            if before is not None and self.rest > 0:
                raise PointsForbidden(before.reason)
            try:
                await self._cloud.point_page(PointQuery(NOBODY, 0, 60).params, 1, urgency=Urgency.LIVE)
            except CloudRefused as refusal:
                try:
                    await self._cloud.session_page((), 1, per_page=1)
                except (CloudRefused, CloudLoginFailed, *BREAKS):
                    raise CloudUnavailable(f"the cloud answers nothing: {refusal}") from None
                reason, then = str(refusal), "asking again in 10 min, then ever more rarely"
                if before is None:
                    log.warning("datapoints.forbidden", reason=reason, then=then)
                self._refused = Refused(reason, before.times + 1 if before else 1, self._clock())
                raise PointsForbidden(reason) from None
            if before is not None:
                log.info("datapoints.allowed_again")
            self._refused = None

    async def keeps_to_sessions(self, query: PointQuery, *, doubt: bool, urgency: Urgency) -> bool:
        """Whether rows that came for `query` are its data session's; `doubt` where some are of another group.

        The same query for no data session must show nothing. That is asked once, and again where there is a doubt.
        """
        before, asked_at = self._kept or (None, 0.0)
        if (before and not doubt) or (before is False and 0 <= self._clock() - asked_at < LONGEST_REST):
            return before
        try:
            page = await self._cloud.point_page(query._replace(session_id=NOBODY).params, 1, urgency=urgency)
            kept = not page.count
        except CloudRefused:
            kept = True
        except BREAKS:
            return before is not False and not doubt
        if not kept and before is not False:
            log.error("cloud.session_filter_not_honoured", then="only the device's own datapoints are published")
        self._kept = (kept, self._clock())
        return kept

    def name_unreadable(self, session_id: str, rows: tuple[str, ...]) -> None:
        """Names each row that cannot be read once."""
        for row in rows:
            if (session_id, row) not in self._named and len(self._named) < MOST_NAMED:
                self._named.add((session_id, row))
                log.warning("cloud.datapoint_unreadable", session=session_id, row=row)


class PointReader:
    """The datapoints of one data session, for one fetch.

    Raises Unreadable where it is this data session, and any other CloudError where it is the cloud as a whole.
    """

    def __init__(self, cloud: PointCloud, endpoint: PointEndpoint, session: DataSession, urgency: Urgency) -> None:
        self._cloud = cloud
        self._endpoint = endpoint
        self._session = session
        self._urgency = urgency
        self._made_sure = False
        self._requests = Reader(cloud, canaries=[endpoint.check])

    async def read(self, start: int | None, end: int | None) -> PointsRead:
        """Every datapoint in [start, end); without bounds all of them, however coarse."""
        query = PointQuery(self._session.id, start, end)
        try:
            found = await self._whole(query)
        except TooMuch as reason:
            found = await self._by_series(query, reason)
        rows = as_set(row for page in found for row in page.items)
        for page in found:
            self._endpoint.name_unreadable(self._session.id, page.unreadable)
        foreign = any(row.group_id not in {None, self._session.group_id} for row in rows)  # or it was moved
        doubt, self._made_sure = foreign and not self._made_sure, self._made_sure or foreign
        own = not rows or await self._endpoint.keeps_to_sessions(query, doubt=doubt, urgency=self._urgency)
        if not own:
            rows = within(rows, self._session)
        return PointsRead(rows, len(found), own=own)

    async def are_samples(self, points: Sequence[Datapoint]) -> bool:
        """Asks for the newest point's minute where only that can tell samples from buckets of one sample each."""
        if are_raw(points) or any(point.count > 1 for point in points):
            return are_raw(points)
        minute = int(max(point.timestamp for point in points))
        return {*(await self.read(minute, minute + FINEST_SPAN)).points} <= {*points}

    async def _whole(self, query: PointQuery) -> list[Page[Datapoint]]:
        for _ in range(TRIES):
            found = await self._all_pages(query)
            rows = [row for page in found for row in page.items]
            if len(query.datatypes) > 1 and not {row.datatype for row in rows} <= {*query.datatypes}:
                self._endpoint.datatypes_at_once = 1
                raise TooMuch("the cloud does not honour a list of datatypes")
            if len({row.series_id for row in rows}) >= MOST_SERIES:
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
        several = len(query.datatypes)
        ask = partial(self._cloud.point_page, query.params, number, urgency=self._urgency)
        try:
            return await self._requests.ask(ask, long=several > 1)
        except CloudRefused as refusal:
            if refusal.status in {400, 422}:
                raise TooMuch(f"the cloud refuses to answer all series at once: {refusal}") from None
            await self._endpoint.check()
            raise Unreadable(refusal) from None
        except Unreadable as fault:
            if several > 1 and isinstance(fault.cause, CloudRequestTooLarge | CloudBadGateway):
                self._endpoint.datatypes_at_once = several // 2
                raise TooMuch(f"so many datatypes make the request too long: {fault}") from None
            raise

    async def _by_series(self, query: PointQuery, reason: TooMuch) -> list[Page[Datapoint]]:
        """By datatypes, and what is still too much by source device: the time stays, and so does the resolution."""
        try:
            datatypes, devices = await self._requests.ask(
                lambda: self._cloud.series_axes(query.session_id, urgency=self._urgency)
            )
        except CloudRefused:
            raise reason from None
        if not datatypes or max(len(datatypes), len(devices)) > MOST_PARTS:
            raise reason
        at_once = await self._datatypes_at_once(datatypes)
        found: list[Page[Datapoint]] = []
        while datatypes:
            part = query._replace(datatypes=datatypes[:at_once])
            try:
                found += await self._whole(part)
            except TooMuch:
                if at_once > 1:
                    at_once = min(at_once // 2, self._endpoint.datatypes_at_once or 1)
                    continue
                if not devices:
                    raise reason from None
                for device in devices:
                    found += await self._whole(part._replace(source_device=device))
            datatypes = datatypes[at_once:]
        return found

    async def _datatypes_at_once(self, datatypes: tuple[int, ...]) -> int:
        """Several where the cloud was seen to honour a list: it shows two of them at least, and no other."""
        asked = datatypes[:SAFE_DATATYPES]
        if self._endpoint.datatypes_at_once is None and len(asked) > 1:
            honoured = False
            with suppress(TooMuch):
                page = await self._page(PointQuery(self._session.id, datatypes=asked), 1)
                shown = {row.datatype for row in page.items}
                honoured = shown <= {*asked}
                if honoured and len(shown) < 2:  # noqa: PLR2004  # it may have taken the list for one of them
                    return 1
            self._endpoint.datatypes_at_once = MOST_DATATYPES if honoured else 1
        return self._endpoint.datatypes_at_once or 1
