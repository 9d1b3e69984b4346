"""Reads the datapoints of data sessions, in as many requests as that takes."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog

from bace_bridge.errors import (
    CloudBadGateway,
    CloudError,
    CloudGone,
    CloudLoginFailed,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
    UnexpectedReply,
)
from bace_bridge.polling.reading import BREAKS, PagesBroken, Reader, Unreadable, pages
from bace_bridge.polling.rules.batches import FAILURE_COUNTS_FOR, BatchSize
from bace_bridge.polling.rules.changes import Page, PointCloud, PointsRead, Urgency
from bace_bridge.polling.rules.datapoints import Datapoint, are_raw, as_set, is_sample, samples_per_hour
from bace_bridge.polling.rules.fetches import PointQuery, fit_together, shown_by_day, within
from bace_bridge.polling.rules.sessions import DataSession
from bace_bridge.polling.rules.windows import (
    EARLIEST_WINDOW,
    FINEST_SPAN,
    LATEST_FILTER,
    NO_SUCH_SESSION,
    SPAN,
    Window,
    is_recent,
)

log = structlog.get_logger()

CHECKED_AGAIN = 600.0
"""Seconds after which it is checked again what was forbidden, or which sessions' rows come."""

SURE_FOR = 10.0
"""Seconds for which it is sure that only a data session's own rows come, although there are some of another group."""

MOST_NAMED = 1000
"""Rows that are named in the log, so that remembering which were has a bound."""

MOST_PAGES = 1000
MOST_POINTS = 500_000
"""Pages and datapoints of one query that are held in memory; of what has more, a part is requested."""

MOST_SERIES = 100
"""BACE serves at most 100 series (group x device x datatype) in one request."""

MOST_PARTS = 1000
"""Datatypes, and source devices, that are requested in parts."""

MOST_DATATYPES = 40
"""Datatypes in one request, at first: the answer's `Link` header repeats them three to five times."""

SAFE_DATATYPES = 10
"""Datatypes that are requested to see whether the cloud honours a list of them: no `Link` header is too large."""

MOST_OF_A_DAY = 500
"""Samples on a day up to which its windows are read with one request: they fit a page of BACE's."""

TRIES = 2
"""Readings of pages that do not fit together: rows may have come in between."""


class PointsForbidden(CloudError):
    """The account may not read any datapoints. Try again, rarely."""


class TooMuch(Unreadable):  # control flow: what was requested at once is requested in parts
    """The cloud answers, but not everything can be had in one query."""

    def __init__(self, reason: str) -> None:
        super().__init__(UnexpectedReply(reason))


async def whole_answer(
    page_at: Callable[[int], Awaitable[Page[Datapoint]]], *, one_series: bool = False
) -> list[Page[Datapoint]]:
    """All pages of an answer, none of whose rows can be missing. Raises TooMuch where they cannot be had."""
    # Rows that come in while pages are read push others to the next page, where they come twice, or to the one before,
    # where they are missed. Windows of an hour mostly fit a page; else the pages must fit together, or are read again.
    for _ in range(TRIES):
        found: list[Page[Datapoint]] = []
        count = 0
        with suppress(PagesBroken):
            async for page in pages(page_at):
                found.append(page)
                count += page.count
                total = count if page.page_count in {0, 1} else max(page.total or 0, count)
                if max(page.page_count or 0, len(found)) > MOST_PAGES or total > MOST_POINTS:
                    raise TooMuch(f"more than {MOST_POINTS} datapoints, or {MOST_PAGES} pages, in one answer")
            # Of an answer with as many series as BACE serves at most it is unknown whether others were left out.
            if len({row.series_id for one in found for row in one.items}) >= MOST_SERIES:
                raise TooMuch(f"{MOST_SERIES} series or more, and not all of them come in one answer")
            if fit_together(found, one_series=one_series):
                return found
    raise TooMuch("the pages of the answer do not fit together")


class PointEndpoint:
    """What the fetches of a process have learned of the cloud's datapoints, so that it costs a request only once.

    `datatypes` is how many may go into a request, None while it is not known whether the cloud honours a list of them.
    `shows_samples` says that of an hour samples were seen at their own time.
    """

    def __init__(self, cloud: PointCloud, *, clock: Callable[[], float]) -> None:
        self._cloud = cloud
        self._clock = clock
        self._forbidden: tuple[str, float] | None = None  # why, and when that was checked
        self._kept: tuple[bool, float] | None = None  # whether it keeps to sessions, and when that was checked
        self._named: set[tuple[str, str]] = set()
        self.datatypes: BatchSize | None = None
        self._lists_ignored_at: float | None = None
        self.shows_samples = False

    @property
    def problem(self) -> str | None:
        if self._forbidden is not None:
            return f"this account may not read datapoints: {self._forbidden[0]}"
        if self._kept is not None and not self._kept[0]:
            return (
                "the cloud ignores filter[id_data_session] of datapoints: "
                "only those of a data session's own device and time are published"
            )
        return None

    @property
    def rest(self) -> float:
        """Seconds for which datapoints are not requested, because the account may not read them."""
        waited = self._clock() - self._forbidden[1] if self._forbidden is not None else -1.0
        return CHECKED_AGAIN - waited if 0 <= waited < CHECKED_AGAIN else 0.0

    async def ensure_allowed(self) -> None:
        """Raises PointsForbidden while the account may not read any datapoints."""
        if self._forbidden is not None:
            await self.check()

    async def check(self) -> None:
        """The canary request: returns where the datapoints of no data session can be had, so that it is not the cloud.

        Raises PointsForbidden where the account lacks the permission, else the CloudError.
        """
        # To one fetch an outage looks like a broken data session: both are a 500, a hotel's HTML with 200, or
        # a 401 of a login service that is away. Without this every session would be marked as unreadable in it.
        if self._forbidden is not None:
            if self.rest > 0:
                raise PointsForbidden(self._forbidden[0])
            self._forbidden = (self._forbidden[0], self._clock())  # so that one fetch asks, while the others rest
        try:
            await self._cloud.point_page(PointQuery(NO_SUCH_SESSION, 0, 60).params, 1, urgency=Urgency.LIVE)
        except CloudRefused as refusal:
            # BACE answers 401 also for a lacking permission: it is that where the same token may read the list.
            try:
                await self._cloud.session_page((), 1, per_page=1)
            except (CloudRefused, CloudLoginFailed, *BREAKS):
                raise CloudUnavailable(f"the cloud answers nothing: {refusal}") from None
            if self._forbidden is None:
                log.warning("datapoints.forbidden", reason=str(refusal), then="asking again every 10 min")
            self._forbidden = (str(refusal), self._clock())
            raise PointsForbidden(str(refusal)) from None
        if self._forbidden is not None:
            log.info("datapoints.allowed_again")
        self._forbidden = None

    async def keeps_to_sessions(self, query: PointQuery, reader: Reader, *, doubt: bool) -> bool:
        """Whether rows that came for `query` are its data session's; `doubt` where some are of another group.

        Raises Unreadable where that cannot be found out.
        """
        # An endpoint without a filter definition ignores filters and answers 200 with everything: then the same query
        # for no data session shows rows. Rows of another group alone prove nothing, for a session may have been moved.
        before, checked_at = self._kept or (None, 0.0)
        waited = self._clock() - checked_at
        if (before and not doubt) or (before is not None and 0 <= waited < (SURE_FOR if before else CHECKED_AGAIN)):
            return before
        try:
            request = partial(self._cloud.point_page, query.as_canary.params, 1, urgency=Urgency.LIVE)
            kept = not (await reader.request(request)).count
        except CloudRefused:
            kept = True  # a server that validates ids knows the filter
        if not kept and before is not False:
            log.error("cloud.session_filter_not_honoured", then="only the device's own datapoints are published")
        self._kept = (kept, self._clock())
        return kept

    @property
    def lists_known(self) -> bool:
        """True where the cloud honours a list of datatypes, or was seen in the last hour not to."""
        return self.datatypes is not None or is_recent(self._lists_ignored_at, self._clock(), FAILURE_COUNTS_FOR)

    def ignores_lists(self) -> None:
        self.datatypes, self._lists_ignored_at = None, self._clock()

    def note_datatypes(self, count: int, *, passed: bool) -> None:
        """So many in a request have passed, or were too many while the cloud answers."""
        if self.datatypes is not None:
            size, now = self.datatypes, self._clock()
            self.datatypes = size.after_success(count, now=now) if passed else size.after_failure(count, now=now)

    def name_unreadable(self, session_id: str, rows: tuple[str, ...]) -> None:
        """Names each row that cannot be read once."""
        for row in rows:
            if (session_id, row) not in self._named and len(self._named) < MOST_NAMED:
                self._named.add((session_id, row))
                log.warning("cloud.datapoint_unreadable", session=session_id, row=row)


class PointReader:
    """The datapoints of one data session, for one fetch.

    Raises Unreadable where it is this data session, and any other CloudError where it is the cloud as a whole.
    `hours` is what the probe of this fetch has found: the samples in each hour.
    """

    def __init__(self, cloud: PointCloud, endpoint: PointEndpoint, session: DataSession, urgency: Urgency) -> None:
        self._cloud = cloud
        self._endpoint = endpoint
        self._session = session
        self._urgency = urgency
        self._reader = Reader(cloud, canaries=[endpoint.check])
        self._same_by_day: bool | None = None
        self._there = False
        self.hours: dict[int, int] | None = None

    async def read(self, start: int, end: int) -> PointsRead:
        """Every datapoint in [start, end)."""
        query = PointQuery(self._session.id, start, end)
        every_series = True
        try:
            found = await self._whole(query)
        except TooMuch as reason:
            found = await self._in_parts(query, reason)
            every_series = False  # the list of what to request need not name all that there is
        for page in found:
            self._endpoint.name_unreadable(self._session.id, page.unreadable)
        served = as_set(row for page in found for row in page.items)
        # The filter of the time may be ignored, too; what another window holds is read with that one's resolution.
        rows = tuple(row for row in served if start <= row.timestamp < end)
        foreign = any(row.group_id not in {None, self._session.group_id} for row in rows)  # or it was moved
        own = not rows or await self._endpoint.keeps_to_sessions(query, self._reader, doubt=foreign)
        rows = rows if own else within(rows, self._session)
        if end - start <= SPAN and any(map(is_sample, rows)):
            self._endpoint.shows_samples = True
        own = own and len(rows) == len(served)
        complete = own and not any(page.unreadable for page in found)
        return PointsRead(rows, len(found), own=own, complete=complete, every_series=every_series)

    async def ensure_there(self) -> None:
        """Raises CloudGone where the cloud denies to have the data session: its empty answers say nothing."""
        # In maintenance a list is empty, with 200. One request a fetch, and only where nothing is where something was.
        if not self._there:
            try:
                await self._reader.request(lambda: self._cloud.session(self._session.id))
            except CloudGone:
                raise
            except (CloudRefused, Unreadable):
                pass  # about the endpoint, and not about the session
            self._there = True

    async def are_samples(self, points: Sequence[Datapoint]) -> bool:
        """Whether these are samples, and no buckets."""
        if are_raw(points) or any(point.count > 1 for point in points):
            return are_raw(points)
        # All count 1 and lie on full minutes: samples, or buckets of one sample each, which carry the minute's time.
        # The shorter the interval the finer the answer, so the newest one's minute shows which.
        minute = int(max(point.timestamp for point in points))
        return {*(await self.read(minute, minute + FINEST_SPAN)).points} <= {*points}

    async def probe(self) -> dict[int, int] | None:
        """The samples in each hour, from one request; None where that cannot be had."""
        # Without an interval BACE serves a long session by the hour or the day, that is, in few rows. That only saves
        # requests: nothing may depend on where its buckets begin, nor on whether it answers at all.
        if self.hours is None:
            try:
                read = await self.read(EARLIEST_WINDOW, LATEST_FILTER)
            except Unreadable as fault:
                log.debug("datapoints.not_probed", session=self._session.id, reason=str(fault))
                return None
            self.hours = samples_per_hour(read.points) if read.own else None
        return self.hours

    async def read_day(self, day: Window, windows: Sequence[Window]) -> dict[Window, tuple[Datapoint, ...]]:
        """What one request shows of the windows of a day in which the probe has found few samples."""
        # Lone samples come as they are, however long the interval. BACE does not promise it, so each fetch reads one
        # window at both widths: a point that depends on when it was requested would be published twice.
        hours = self.hours or {}
        samples = sum(hours.get(window.start, 0) for window in windows)
        if len(windows) == 1 or not 0 < samples <= MOST_OF_A_DAY or self._same_by_day is False:
            return {}
        try:
            read = await self.read(*day)
            points = read.points
            if not (read.complete and read.every_series):
                return {}
            if self._endpoint.shows_samples and not any(map(is_sample, points)):
                return {}  # they may be buckets of one sample each, at the minute's time and not at their own
            shown = shown_by_day(points, windows, hours)
            if shown and self._same_by_day is None:
                fullest = max(shown, key=lambda window: len(shown[window]))
                self._same_by_day = {*(await self.read(*fullest)).points} == {*shown[fullest]}
        except Unreadable:
            return {}
        return shown if self._same_by_day else {}

    async def _whole(self, query: PointQuery) -> list[Page[Datapoint]]:
        one_series = len(query.datatypes) == 1 and query.source_device is not None
        return await whole_answer(partial(self._page, query), one_series=one_series)

    async def _page(self, query: PointQuery, number: int) -> Page[Datapoint]:
        several = len(query.datatypes)
        request = partial(self._cloud.point_page, query.params, number, urgency=self._urgency)
        try:
            page = await self._reader.request(request, long=several > 1)
        except CloudRefused as refusal:
            if refusal.status in {400, 422}:
                raise TooMuch(f"the cloud refuses to answer all series at once: {refusal}") from None
            await self._endpoint.check()
            raise Unreadable(refusal) from None
        except Unreadable as fault:
            # Less in the query makes the `Link` header shorter; a 502 for one datatype is none of the query's doing.
            if several > 1 and isinstance(fault.cause, CloudRequestTooLarge | CloudBadGateway):
                self._endpoint.note_datatypes(several, passed=False)
                raise TooMuch(f"so many datatypes make the request too long: {fault}") from None
            raise
        if several > 1 and any(row.datatype not in query.datatypes for row in page.items):
            self._endpoint.ignores_lists()
            raise TooMuch("the cloud does not honour a list of datatypes")
        return page

    async def _in_parts(self, query: PointQuery, reason: TooMuch) -> list[Page[Datapoint]]:
        """By datatypes, and what is still too much by source device."""
        # Not by time: a shorter interval may come in another resolution, and then other points are published.
        try:
            datatypes, devices = await self._reader.request(
                lambda: self._cloud.series_axes(self._session.id, urgency=self._urgency)
            )
        except CloudRefused:
            raise reason from None
        if not datatypes or max(len(datatypes), len(devices)) > MOST_PARTS:
            raise reason
        await self._learn_datatypes_at_once(datatypes)
        found: list[Page[Datapoint]] = []
        todo = [query._replace(datatypes=datatypes)]
        while todo:
            part = todo.pop()
            several, size = len(part.datatypes), self._endpoint.datatypes
            at_once = size.ids if size is not None else 1
            if several > at_once:
                todo += part.divided(at_once)
                continue
            try:
                found += await self._whole(part)
                self._endpoint.note_datatypes(several, passed=True)
            except TooMuch:
                if several > 1:
                    todo += part.divided(several // 2)
                elif part.source_device is None and devices:
                    todo += [part._replace(source_device=device) for device in devices]
                else:
                    raise reason from None
        return found

    async def _learn_datatypes_at_once(self, datatypes: tuple[int, ...]) -> None:
        """Several where the cloud was seen to honour a list: it shows two of them at least, and no other."""
        some = datatypes[:SAFE_DATATYPES]
        if self._endpoint.lists_known or len(some) == 1:
            return
        try:
            page = await self._page(PointQuery(self._session.id, datatypes=some), 1)
        except TooMuch:
            self._endpoint.ignores_lists()
        else:
            if len({row.datatype for row in page.items}) > 1:  # else it may have taken the list for one of them
                self._endpoint.datatypes = BatchSize(MOST_DATATYPES, MOST_DATATYPES)
