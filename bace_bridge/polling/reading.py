"""Reads from a cloud that may break on single records: is it this request, or the cloud, and how is it narrowed?"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from bace_bridge.errors import (
    CloudBadGateway,
    CloudError,
    CloudFault,
    CloudGone,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
    UnexpectedReply,
)
from bace_bridge.polling.rules.changes import LostRow, Page, SeenSession, SessionCloud
from bace_bridge.polling.rules.session_list import NEWEST_FIRST, Params, one_of
from bace_bridge.polling.rules.windows import NO_SUCH_SESSION, PageRange

T = TypeVar("T")
Range = TypeVar("Range")

MOST_ROWS = 100
"""Rows of a page of the session list; a server with a lower limit says so."""

MOST_PAGES = 10_000
"""Pages of one list, after which it is taken for one that has no end."""

MOST_NARROWING = 80
"""Requests that broke in one poll, after which the rest of what breaks is left for the backfill."""

MOST_PROBES = 16
"""Rows of the whole list that are requested in search of one that can be read."""

NOT_SUPPORTED = {400, 404, 422}
"""HTTP statuses of a server that does not know a filter or a sort."""

BREAKS = (CloudFault, UnexpectedReply, CloudRequestTooLarge, CloudBadGateway)
"""What one bad record, or one request that is too long, can lead to."""


class PagesBroken(UnexpectedReply):
    """Another page came than was requested, or there is no last one."""


class Unreadable(Exception):  # control flow: `cause` is the error
    """The cloud breaks on this very request while it answers others: request less."""

    def __init__(self, cause: CloudError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Reader:
    """The requests of one poll. What it raises, but for Unreadable, is about the cloud as a whole.

    `canaries` are requests of which the cloud must be able to answer one; else they are about the session list.
    `expand` asks for the devices' labels, too; `of_groups` is the filter for the watched devices, where the server
    honours it. After `most_breaks` nothing is narrowed any more.
    """

    def __init__(
        self,
        cloud: SessionCloud,
        *,
        canaries: Sequence[Callable[[], Awaitable[object]]] = (),
        expand: bool = True,
    ) -> None:
        self._cloud = cloud
        self._canaries = canaries or (
            lambda: cloud.session(NO_SUCH_SESSION),
            lambda: cloud.session_page(one_of("id_data_session", [NO_SUCH_SESSION]), 1, per_page=1),
        )
        self._cloud_answers = False
        self.breaks = 0
        self.most_breaks = MOST_NARROWING
        self.expand = expand
        self.of_groups: Params = ()
        self._size = MOST_ROWS
        self.requests = 0
        self.rows_read = 0
        self.lost_reason: str | None = None
        self.saw_unstamped = False

    async def request(self, request: Callable[[], Awaitable[T]], *, long: bool = False) -> T:
        """The answer. Raises Unreadable where the cloud breaks on this request alone, else the CloudError itself."""
        self.requests += 1
        try:
            return await request()
        except BREAKS as fault:
            # Behind nginx a 502 is what becomes of an answer whose `Link` header, which repeats the query, is too
            # large. For a short query it is what it says: the gateway has lost its server.
            if isinstance(fault, CloudBadGateway) and not long:
                raise
            self.breaks += 1
            # Once the cloud has answered something in this poll, a break is about this request: no canary needed.
            if self._cloud_answers or isinstance(fault, CloudRequestTooLarge):
                raise Unreadable(fault) from None
        # The first break of a poll: a 500 may be a hiccup, so once more. Then a canary shows whether it is a bad row or
        # an outage, which look alike from here.
        self.requests += 1
        try:
            return await request()
        except BREAKS as fault:
            await self._request_canaries(fault)
            raise Unreadable(fault) from None

    async def session(self, session_id: str) -> SeenSession:
        """A data session by its id."""
        try:
            return await self.request(lambda: self._cloud.session(session_id))
        except CloudUnavailable as fault:
            # A time-out or a 503 is about this session alone where the list is answered (the last canary); but who
            # says for how long to wait means everybody.
            if fault.retry_after:
                raise
            await self._request_canaries(fault, self._canaries[-1:])
            raise Unreadable(fault) from None

    async def denies_all(self, *, but: str = "") -> bool:
        """True where the cloud denies to have even the sessions, `but` this one, that its list shows."""
        # So a permission that was taken away, or a broken view, does not remove all sessions at once.
        try:
            page = await self.plain_page(NEWEST_FIRST, 1, 4)
        except Unreadable:
            return False
        rows = [row for row in page.items if row.session.id != but]
        for row in rows:
            try:
                await self.session(row.session.id)
            except CloudGone:
                continue
            except (CloudRefused, Unreadable):
                pass
            return False
        return bool(rows)

    async def _request_canaries(
        self, fault: CloudError, canaries: Sequence[Callable[[], Awaitable[object]]] = ()
    ) -> None:
        """One of them has to be answered, or `fault` is about the cloud."""
        for canary in canaries or self._canaries:
            try:
                await canary()
            except CloudGone:
                pass
            except BREAKS:
                continue
            self._cloud_answers = True
            return
        raise fault

    async def bisect(
        self, whole: Range, read: Callable[[Range], Awaitable[None]], parts: Callable[[Range], Sequence[Range]]
    ) -> list[tuple[Range, str]]:
        """Reads `whole` and, where the cloud breaks on it, its `parts`, the last one first.

        Returns the ranges that could not be read, with the reason: those without parts and, where a poll has met too
        many breaks, larger ones.
        """
        broken: list[tuple[Range, str]] = []
        todo = [whole]
        while todo:
            one = todo.pop()
            try:
                await read(one)
            except Unreadable as fault:
                # Each bad row costs some 15 requests, and a poll must end: the rest is left for the backfill.
                smaller = parts(one) if self.breaks < self.most_breaks else ()
                todo += smaller
                if not smaller:
                    broken.append((one, str(fault)))
        return broken

    async def page(self, params: Params, number: int) -> Page[SeenSession]:
        """A page, in parts where the cloud breaks on it: `lost` holds the rows that could not be read."""
        try:
            return await self.plain_page(params, number)
        except Unreadable as fault:
            size = 0
            # The server may turn out to clamp `per-page`: then its page 2 is not the second half of what was meant.
            while size != self._size:
                size = self._size
                page = await self._page_in_parts(params, PageRange(number, size), fault)
            return page

    async def rows(self, params: Params, most: int, most_broken: int) -> AsyncIterator[Page[SeenSession]]:
        """The rows of a list one by one, but those on which the cloud breaks, until so many of them have been met."""
        # A row that can be read proves that the cloud answers, so a break costs one request, without a canary.
        fault: CloudError | None = None
        broken = number = 0
        while number < most and broken < most_broken:
            number += 1
            self.requests += 1
            try:
                page = await self._cloud.session_page(params, number, per_page=1, expand=self.expand)
            except BREAKS as error:
                fault, broken = error, broken + 1
                continue
            if not (page.items or page.lost) or page.page not in {None, number}:
                return
            yield page
        if fault is not None and broken == number:
            await self._request_canaries(fault)

    async def plain_page(
        self, params: Params, number: int, size: int = MOST_ROWS, *, long: bool = False
    ) -> Page[SeenSession]:
        """A page as it comes. Raises Unreadable where the cloud breaks on it."""
        page_of = partial(self._cloud.session_page, page=number, per_page=size, expand=self.expand)
        try:
            page = await self.request(lambda: page_of(params), long=long)
        except CloudRefused as refusal:
            if refusal.status not in NOT_SUPPORTED or not params or params[0][0] != "sort":
                raise
            # A refused sort is like an ignored one: whether the order held is seen on the rows.
            page = await self.request(lambda: page_of(params[1:]))
        if page.per_page is not None and page.per_page < size:
            self._size = page.per_page
        self.rows_read += len(page.items)
        self.lost_reason = page.lost[0].reason if page.lost else self.lost_reason
        self.saw_unstamped = self.saw_unstamped or any(row.session.updated_at is None for row in page.items)
        return page

    async def _page_in_parts(self, params: Params, page: PageRange, fault: Unreadable) -> Page[SeenSession]:
        # A page beyond the last is clamped to the last one, so rows behind the end would be read again and again as
        # those of smaller pages: the length of the list has to be known before it is divided.
        total = await self._total(params)
        if total is None:
            return Page((), 0, page.number, None, None, lost=(LostRow(str(fault)),))
        read_parts: dict[int, Page[SeenSession]] = {}

        async def read(part: PageRange) -> None:
            served = await self.plain_page(params, part.number, part.size)
            if served.per_page is not None and served.per_page < part.size:
                self._size = served.per_page
                raise Unreadable(UnexpectedReply("the server serves smaller pages"))
            read_parts[part.first] = served

        broken: list[tuple[PageRange, str]] = []
        for part in page.parts(total=total):
            broken += await self.bisect(part, read, lambda one: one.parts(total=total))
        found = [served for _, served in sorted(read_parts.items())]
        # The list may have moved between the requests, so a row may have come with two parts.
        rows = {row.session.id: row for served in found for row in served.items}
        return Page(
            items=tuple(rows.values()),
            count=sum(served.count for served in found) + len(broken),
            page=page.number,
            page_count=-(-total // page.size),
            total=total,
            lost=(*(row for served in found for row in served.lost), *(LostRow(reason) for _, reason in broken)),
            odd=tuple(odd for served in found for odd in served.odd),
        )

    async def _total(self, params: Params) -> int | None:
        """The length of the list, from a row that can be read; None where none is found."""
        # The rows 1, 2, 4, 8, ...: bad ones may lie side by side, so the next one is no good guess.
        for probe in range(MOST_PROBES):
            try:
                return (await self.plain_page(params, 2**probe, 1)).total
            except Unreadable:
                continue
        return None


async def pages(page_at: Callable[[int], Awaitable[Page[T]]], *, most: int = MOST_PAGES) -> AsyncIterator[Page[T]]:
    """The pages of a collection, in order. Raises PagesBroken where they do not end."""
    # The page walk. Yii clamps a page beyond the last to the last one, so a loop until an empty page would never end:
    # it stops at `pageCount`, or where another page comes than was requested. With `validatePage=false` such a page is
    # empty instead, and keeps its number: that is the end, too. Where no figures come at all, only the same rows once
    # more show that it was the last page.
    before: Sequence[T] = ()
    for number in range(1, most + 1):
        page = await page_at(number)
        # Another page although this one exists, as where a cache drops `page`: rows would be missing.
        if page.page is not None and page.page != number <= (page.page_count or 0):
            raise PagesBroken(f"got page {page.page} instead of page {number} of {page.page_count}")
        if (page.page is not None and page.page != number) or (
            page.page is None and page.items and page.items == before
        ):
            return
        yield page
        if is_last(page, number):
            return
        before = page.items
    raise PagesBroken(f"the list does not end after {most} pages")


def is_last(page: Page[T], number: int) -> bool:
    """True for the last page of a collection, or where another page came than the one with this number."""
    if (page.page is not None and page.page != number) or not (page.count or page.lost):
        return True
    return not page.count if page.page_count is None else number >= page.page_count
