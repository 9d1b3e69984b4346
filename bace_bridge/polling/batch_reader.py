"""Reads the datapoints of many data sessions in one request, and learns what the cloud and its proxies make of that."""

import asyncio
from collections.abc import Callable
from typing import NoReturn

import structlog

from bace_bridge.errors import (
    CloudBadGateway,
    CloudError,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
)
from bace_bridge.polling.needs import PointCloud
from bace_bridge.polling.points import PointEndpoint, TooMuch, whole_answer
from bace_bridge.polling.reading import Reader, Unreadable
from bace_bridge.polling.rules.batch_size import BatchSize
from bace_bridge.polling.rules.datapoints import Datapoint
from bace_bridge.polling.rules.point_pages import PointQuery, as_set
from bace_bridge.polling.rules.seen import Page, Urgency

log = structlog.get_logger()

PROOF_LASTS = 3600.0
"""Seconds after which it is asked again whether the cloud honours `in`, or honours it now."""

ROWS_OF_A_PAGE = 500
"""Where the cloud does not say: BACE's own default."""

TOO_SLOW = {None, 504}
"""HTTP statuses of what takes the cloud, or a proxy, too long; None where no answer came."""


class NotHonoured(Exception):  # control flow: every data session is fetched on its own
    """The cloud ignores or refuses `in`, or the bounds of the time."""


class BatchReader:
    """One for a process. `size` is how many data sessions a request may ask for, `page_size` the rows of a page."""

    def __init__(self, cloud: PointCloud, endpoint: PointEndpoint, *, clock: Callable[[], float]) -> None:
        self._cloud = cloud
        self._endpoint = endpoint
        self._clock = clock
        self._proving = asyncio.Lock()
        self._honoured: tuple[bool, float] | None = None  # whether it honours `in`, and when that was asked
        self.size = BatchSize()
        self.page_size = ROWS_OF_A_PAGE

    @property
    def is_refused(self) -> bool:
        """True while the cloud is known not to honour batches."""
        return self._known is False

    @property
    def _known(self) -> bool | None:
        """Whether the cloud honours `in`, where that was asked lately."""
        honoured, at = self._honoured or (None, 0.0)
        return honoured if 0 <= self._clock() - at < PROOF_LASTS else None

    def note_passed(self, ids: int) -> None:
        """All that was asked for with so many ids was answered."""
        self.size = self.size.after_success(ids, now=self._clock())

    async def rows(self, query: PointQuery, requests: Reader) -> tuple[Datapoint, ...]:
        """Every row. Raises Unreadable where less has to be asked for at once, and NotHonoured."""
        await self.prove(query, requests)
        found = await whole_answer(lambda number: self._page(query, number, requests))
        self.page_size = found[0].per_page or ROWS_OF_A_PAGE
        if lost := [row for page in found for row in page.unreadable]:
            raise TooMuch(lost[0])
        rows = as_set(row for page in found for row in page.items)
        if not all(query.start <= row.timestamp < query.end for row in rows):
            self._refuse("it shows rows of another time than was asked for")
        return rows

    async def prove(self, query: PointQuery, requests: Reader, *, doubt: bool = False) -> None:
        """The same query for no data session must show nothing: asked once an hour, and where there is a doubt."""
        async with self._proving:
            if self.is_refused:
                raise NotHonoured
            if self._known and not doubt:
                return
            try:
                page = await requests.ask(lambda: self._ask(query.of_nobody, 1), long=True)
            except (CloudRefused, Unreadable) as refusal:
                self._refuse(str(refusal))
            if page.count:
                self._refuse("it shows rows of no data session")
            if self._honoured is not None and not self._honoured[0]:
                log.info("cloud.in_filter_honoured_again")
            self._honoured = True, self._clock()

    def _refuse(self, reason: str) -> NoReturn:
        if self._honoured is None or self._honoured[0]:
            log.warning("cloud.in_filter_not_honoured", reason=reason, then="datapoints cost a request a data session")
        self._honoured = False, self._clock()
        raise NotHonoured

    async def _page(self, query: PointQuery, number: int, requests: Reader) -> Page[Datapoint]:
        fault: CloudError
        try:
            return await requests.ask(lambda: self._ask(query, number), long=True)
        except Unreadable as broken:
            if not isinstance(broken.cause, CloudRequestTooLarge | CloudBadGateway):
                raise
            fault = broken.cause
        except CloudUnavailable as away:
            if away.status not in TOO_SLOW:
                raise
            await self._endpoint.check()
            fault = away
        except CloudRefused as refusal:
            if refusal.status not in {400, 422}:
                await self._endpoint.check()
            await self.prove(query, requests, doubt=True)
            fault = refusal
        self.size = self.size.after_failure(len(query.sessions), now=self._clock())
        raise Unreadable(fault)

    async def _ask(self, query: PointQuery, number: int) -> Page[Datapoint]:
        return await self._cloud.point_page(query.params, number, urgency=Urgency.LIVE)
