"""CSV links, answered: from the cloud to whoever has the link, with the bridge's own token, checked on the way."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Protocol

import structlog

from bace_bridge.csv.checks import CsvCheck
from bace_bridge.csv.links import PATH, Link, Links
from bace_bridge.errors import CloudError, CloudGone, CloudUnavailable, StoreError, UnexpectedReply
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.status.listener import Answer, BrokenOff, Long, Peer, Request, encoded, head

log = structlog.get_logger()

MOST_AT_ONCE = 8

MOST_OF_ONE = 4
"""Of one data session at once, so that who has the link to it leaves room for the others."""

LONGEST = 3600.0
"""Seconds that a download lasts at most: a peer that takes a few bytes now and then would last for ever."""

BEGUN_WITHIN = 150.0
"""Seconds until the cloud's answer begins: the request's turn, a login, and a server that makes the file first."""

AGAIN_IN = 10
"""Seconds, for Retry-After."""


class Download(Protocol):
    """A CSV that is read as it comes. `framed`: the connection says where it ends."""

    @property
    def framed(self) -> bool: ...
    def pieces(self) -> AsyncIterator[bytes]:
        """Raises CloudError where it does not come to its end."""


OpenCsv = Callable[[str], AbstractAsyncContextManager[Download]]
"""By a data session's id. Raises CloudError."""

Known = Callable[[Collection[str]], Awaitable[Mapping[str, KnownSession]]]


async def checked(download: Download, check: CsvCheck, *, datapoints: int | None) -> AsyncIterator[bytes]:
    """The pieces of a CSV. Raises CloudError where it is not whole, which may show at its end only."""
    async for piece in download.pieces():
        if problem := check.feed(piece):
            raise UnexpectedReply(f"the CSV is not whole: {problem}")
        yield piece
    if problem := check.end(datapoints=datapoints, framed=download.framed):
        raise UnexpectedReply(f"the CSV is not whole: {problem}")


def least_datapoints(session: DataSession) -> int | None:
    """How many datapoints the CSV has at least; None where that is not known, as while ingestion goes on."""
    return session.datapoint_count if session.state == "ingested" else None


def refusal(status: HTTPStatus, why: str, **fields: str) -> Answer:
    return Answer(status, {"error": why}, {name.replace("_", "-"): value for name, value in fields.items()})


_REFUSED = {
    "unknown": (HTTPStatus.NOT_FOUND, "not found"),
    "changed": (HTTPStatus.FORBIDDEN, "this is not a link of this bridge as it was made"),
    "expired": (HTTPStatus.GONE, "this link has expired"),
}


_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\s]+)(?::[0-9]*)?")


class CsvServer:
    """Answers `GET /csv/...`. `known` reads the store, `cloud` is the account that runs now, None while there is none.

    No log and no answer repeats a link: only the id of its data session, once the link has proved good.
    """

    def __init__(
        self,
        links: Links,
        known: Known,
        cloud: Callable[[], OpenCsv | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._links = links
        self._known = known
        self._cloud = cloud
        self._clock = clock
        self._running: list[str] = []

    def answer(self, request: Request) -> Answer | Long | None:
        """None where it is not about a link."""
        path, _, query = request.target.partition("?")
        if not self._links.base or not self._links.below_base(path).startswith(PATH):
            return None
        if not _is_meant(request, self._links.host):
            return refusal(HTTPStatus.MISDIRECTED_REQUEST, "this host name is not the bridge's: see csv.link_base")
        # A HEAD that says 200 would promise what only the cloud knows, and asking it takes a request of the budget.
        if request.method != "GET":
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "a CSV link takes GET only", Allow="GET")
        link = self._links.verified(path, query)
        if not isinstance(link, Link):
            return refusal(*_REFUSED[link])
        # Counted for genuine links only: nobody else can take the places.
        if len(self._running) >= MOST_AT_ONCE or self._running.count(link.session_id) >= MOST_OF_ONE:
            why = f"{MOST_AT_ONCE} downloads are running already, or {MOST_OF_ONE} of this data session"
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, why, Retry_After=str(AGAIN_IN))
        self._running.append(link.session_id)
        return partial(self._serve, link, chunked=request.version == "1.1")

    async def _serve(self, link: Link, peer: Peer, *, chunked: bool) -> None:
        try:
            async with asyncio.timeout(LONGEST):
                known = await self._judged(link)
                if isinstance(known, Answer):
                    await peer.send(encoded(known))
                else:
                    await self._download(link.session_id, known, peer, chunked=chunked)
        finally:
            self._running.remove(link.session_id)

    async def _judged(self, link: Link) -> KnownSession | Answer:
        try:
            known = (await self._known([link.session_id])).get(link.session_id)
        except StoreError:
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "try again later", Retry_After=str(AGAIN_IN))
        if known is None or known.removed or known.csv_revision is None:
            return refusal(HTTPStatus.NOT_FOUND, "the bridge does not know this data session any more")
        if link.revision < known.csv_revision:
            return refusal(HTTPStatus.GONE, "there is a newer revision of this CSV, which has a link of its own")
        return known

    async def _download(self, session_id: str, known: KnownSession, peer: Peer, *, chunked: bool) -> None:
        begun, check, started, held = self._clock(), CsvCheck(), False, b""
        first = _head(session_id, chunked=chunked)
        try:
            open_csv = self._cloud()
            if open_csv is None:
                raise CloudUnavailable("the bridge is not connected to the cloud")
            async with AsyncExitStack() as stack:
                download = await _opened(open_csv(session_id), stack)
                async for piece in checked(download, check, datapoints=least_datapoints(known.session)):
                    # With the first line: what the cloud refuses, or answers in its place, has a status of its own.
                    held += piece
                    if check.header is not None:
                        await peer.send((b"" if started else first) + _framed(held, chunked=chunked))
                        started, held = True, b""
            await peer.send((b"" if started else first) + _framed(held, chunked=chunked, last=True))
        except CloudError as error:
            log.warning("csv.broken_off", session=session_id, reason=str(error), bytes=check.size)
            if check.header is not None:
                await peer.send(b"" if started else first)
                raise BrokenOff from None
            await peer.send(encoded(_of(error)))
        except (OSError, asyncio.CancelledError):  # it is gone, takes nothing or is too slow; or the bridge stops
            log.info("csv.not_finished", session=session_id, bytes=check.size)
            raise
        else:
            seconds = round(self._clock() - begun, 1)
            log.info("csv.downloaded", session=session_id, rows=check.rows, bytes=check.size, seconds=seconds)


async def _opened(csv: AbstractAsyncContextManager[Download], stack: AsyncExitStack) -> Download:
    try:
        async with asyncio.timeout(BEGUN_WITHIN):
            return await stack.enter_async_context(csv)
    except TimeoutError:
        raise CloudUnavailable(f"no answer within {BEGUN_WITHIN:g} s") from None


def _head(session_id: str, *, chunked: bool) -> bytes:
    """Never with a Content-Length: a file that turns out to be broken at its last line would look like a whole one.

    `Accept-Ranges: none` and 200 for a Range: a server may ignore it (RFC 9110, 14.2), and must not send a part of what
    may be another file by then. 416 would be worse: curl and wget take it for "already complete".
    """
    fields = {
        "Content-Type": "text/csv; charset=UTF-8",
        "Content-Disposition": f'attachment; filename="data-session-{session_id}.csv"',
        "Cache-Control": "no-store",
        "Accept-Ranges": "none",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
    }
    return head(HTTPStatus.OK, {**fields, "Transfer-Encoding": "chunked"} if chunked else fields)


def _framed(piece: bytes, *, chunked: bool, last: bool = False) -> bytes:
    if not chunked:
        return piece
    return (b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"") + (b"0\r\n\r\n" if last else b"")


def _of(error: CloudError) -> Answer:
    """What the peer gets where the cloud gave nothing; the reason is in the log, and none of its business."""
    if isinstance(error, CloudGone):
        return refusal(HTTPStatus.NOT_FOUND, "the cloud does not have this data session any more")
    if isinstance(error, CloudUnavailable):
        after = max(AGAIN_IN, round(error.retry_after))
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the cloud cannot be reached now", Retry_After=str(after))
    return refusal(HTTPStatus.BAD_GATEWAY, "the cloud does not give this CSV")


def _is_meant(request: Request, link_host: str) -> bool:
    """Whether the request names this bridge: a page in a browser may reach it under any name (DNS rebinding)."""
    named = request.fields.get("host", ())
    found = _HOST.fullmatch(named[0]) if len(named) == 1 else None
    if found is None:
        return False
    host = found[1].strip("[]").removesuffix(".").lower()
    if host in {link_host.removesuffix("."), request.local}:
        return True
    return host == "localhost" and ip_address(request.local).is_loopback
