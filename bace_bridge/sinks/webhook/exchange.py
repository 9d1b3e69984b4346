"""One request on a connection, its answer, and what went wrong below HTTP, in words without a credential."""

import asyncio
import os
import ssl
import weakref

import aiohttp
from yarl import URL

from bace_bridge.errors import DeliveryFailed
from bace_bridge.sinks.webhook.reply import MOST_READ, NotHttp, Reply, read_reply

_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, "no answer within {timeout:g} s"),
    (aiohttp.ClientConnectorDNSError, "the host's name cannot be resolved"),
    (NotHttp, "the answer is not HTTP"),
    (UnicodeError, "the host's name cannot be resolved"),
    (aiohttp.ClientConnectorCertificateError, "the TLS certificate is refused: {reason}"),
    (ssl.SSLError, "TLS failed: {reason}"),
    (aiohttp.ClientConnectorError, "cannot connect: {reason}"),
    (aiohttp.ServerDisconnectedError, "the connection was closed without an answer"),
    (OSError, "the connection broke: {reason}"),
    (ValueError, "the host cannot be used"),
    (Exception, "the connection broke: {reason}"),
)
"""The first class that fits counts. aiohttp's own texts may hold the URL, which is a credential."""


def what_went_wrong(error: Exception, *, timeout: float) -> DeliveryFailed:
    words = next(words for kind, words in _WORDS if isinstance(error, kind))
    return DeliveryFailed(words.format(timeout=timeout, reason=_reason(error)))


def _reason(error: Exception) -> str:
    cause = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return cause.reason.replace("_", " ").lower()
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)
    return type(cause).__name__


GRACE = 1.0
"""Seconds that the rest of an answer has after a status line of 2xx: it matters to the connection alone."""


class Exchange:
    """Requests to one origin. A connection is used again only where its answer ended as HTTP says."""

    def __init__(self, connector: aiohttp.BaseConnector, origin: URL, *, timeout: float) -> None:
        self._connector = connector
        self._timeout = timeout
        self._where = aiohttp.ClientRequest("POST", origin, loop=asyncio.get_running_loop())
        self._used: weakref.WeakSet[object] = weakref.WeakSet()

    async def post(self, request: bytes) -> Reply:
        """Raises aiohttp.ClientError, OSError (TimeoutError among them) and ValueError where no status line came."""
        answer: _Answer | None = None
        connection: aiohttp.connector.Connection | None = None
        reply: Reply | None = None
        try:
            async with asyncio.timeout(self._timeout) as limit:
                connection = await self._connect()
                protocol, transport = connection.protocol, connection.transport
                assert protocol is not None
                if transport is None:
                    raise aiohttp.ServerDisconnectedError
                answer = _Answer(transport, after_another=protocol in self._used)
                self._used.add(protocol)
                transport.set_protocol(answer)
                transport.write(request)
                reply = await answer.whole(limit)
        except TimeoutError:
            reply = None if answer is None else answer.so_far()
            if reply is None:
                raise
        finally:
            if connection is not None:
                self._give_back(connection, reply)
        return reply

    async def _connect(self) -> aiohttp.connector.Connection:
        while True:
            connection = await self._connector.connect(self._where, [], aiohttp.ClientTimeout())
            protocol = connection.protocol
            if protocol is None or protocol not in self._used or not protocol.should_close:
                return connection
            connection.close()  # something came on it while nothing was asked for

    def _give_back(self, connection: aiohttp.connector.Connection, reply: Reply | None) -> None:
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None:
            connection.close()
            return
        transport.set_protocol(protocol)
        if reply is not None and reply.reusable and not transport.is_closing():
            connection.release()
            return
        transport.abort()  # closing would wait for a receiver that reads no further
        connection.close()


class _Answer(asyncio.Protocol):
    """Collects what comes, and no more than is worth reading."""

    def __init__(self, transport: asyncio.Transport, *, after_another: bool) -> None:
        self._transport = transport
        self._after_another = after_another
        self._data = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MOST_READ:
            self._ended = True
            self._transport.pause_reading()
        self._news.set()

    def eof_received(self) -> None:
        self._ended = True
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._error = True, exc
        self._news.set()

    async def whole(self, limit: asyncio.Timeout) -> Reply:
        """The answer, as soon as the rest of it does not matter."""
        succeeded = False
        while True:
            reply = read_reply(bytes(self._data), ended=self._ended, after_another=self._after_another)
            if reply is not None and reply.whole:
                return reply
            if self._ended:
                raise self._error or aiohttp.ServerDisconnectedError
            if reply is not None and 200 <= reply.status < 300 and not succeeded:  # noqa: PLR2004  # HTTP
                succeeded = True
                soon = asyncio.get_running_loop().time() + GRACE
                limit.reschedule(min(soon, limit.when() or soon))
            await self._news.wait()
            self._news.clear()

    def so_far(self) -> Reply | None:
        """What has come when the time is over."""
        return read_reply(bytes(self._data), ended=True, after_another=self._after_another) if self._data else None
