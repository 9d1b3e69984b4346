"""HTTP/1.1 to one endpoint: its connections, and what went wrong below HTTP in words that hold no credential."""

import asyncio
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from functools import cache

from yarl import URL

from bace_bridge.errors import DeliveryFailed
from bace_bridge.sinks.webhook.message import MOST_READ, NotHttp, Reply, read_reply

KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than the 5 s after which common servers close theirs."""

GRACE = 1.0
"""Seconds that the rest of an answer has after a status line of 2xx: it matters to the connection alone."""

NEXT_ADDRESS_AFTER = 0.25
"""Seconds until the host's next address is tried beside one that does not answer (RFC 8305)."""


class Exchange:
    """Requests to one origin. A connection is used again only where its answer ended as HTTP says."""

    def __init__(self, origin: URL, *, timeout: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._origin = origin
        self._timeout = timeout
        self._monotonic = monotonic
        self._idle: list[_Connection] = []

    async def post(self, request: bytes) -> Reply:
        """Raises DeliveryFailed where no status line came.

        A receiver may close a connection that is kept at any time. A request that meets this goes out again at once:
        it has the same id, and the next attempt would be no different.
        """
        # One deadline for look-up, connection, TLS and answer together, the second attempt included.
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            if kept := self._kept():
                try:
                    return await self._exchange(kept, request, deadline)
                # Once more, on a new connection: the receiver may have closed the idle one as the request left, no
                # fault of its own.
                except (_Closed, NotHttp):
                    pass
            return await self._exchange(await self._connect(deadline), request, deadline)
        except TimeoutError:
            raise DeliveryFailed(f"no answer within {self._timeout:g} s") from None
        except (OSError, ValueError) as error:
            raise DeliveryFailed(_in_words(error)) from None

    def close(self) -> None:
        """Closes what is idle."""
        while kept := self._kept():
            kept.transport.close()

    async def _exchange(self, connection: "_Connection", request: bytes, deadline: float) -> Reply:
        reply: Reply | None = None
        try:
            reply = await connection.answer(request, deadline)
        finally:
            if reply is None or not reply.reusable or not connection.usable:
                connection.transport.abort()  # closing would wait for a receiver that reads no further
            else:
                connection.rest(self._monotonic() + KEEP_ALIVE)
                self._idle.append(connection)
        return reply

    def _kept(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.resting is not None:
                connection.resting.cancel()
                connection.resting = None
            # The last one first: it is the least likely to be closed by the receiver in this moment.
            if connection.usable and self._monotonic() < connection.kept_until:
                return connection
            connection.transport.close()
        return None

    async def _connect(self, deadline: float) -> "_Connection":
        """Raises OSError, and ValueError for a host that can be none (UnicodeError)."""
        loop = asyncio.get_running_loop()
        host, is_tls = self._origin.raw_host or "", self._origin.scheme == "https"
        try:
            async with asyncio.timeout_at(deadline):
                _, connection = await loop.create_connection(
                    _Connection,
                    host,
                    self._origin.port or 0,
                    ssl=_verifying() if is_tls else None,
                    server_hostname=host.rstrip(".") if is_tls else None,  # no certificate has the dot of the root
                    ssl_handshake_timeout=self._timeout if is_tls else None,
                    happy_eyeballs_delay=NEXT_ADDRESS_AFTER,
                )
        except (TimeoutError, ssl.SSLError, socket.gaierror):
            raise
        except OSError as error:
            raise _CannotConnect(_reason(error)) from None
        return connection


_verifying = cache(ssl.create_default_context)
"""One for all endpoints, as it takes a megabyte and tens of milliseconds."""


class _Connection(asyncio.Protocol):
    """Collects what comes of one answer after the other, and no more than is worth reading."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.kept_until = 0.0
        self._data = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._after_another = False
        self.resting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.resting is not None:
            self.transport.abort()  # nothing was asked: whatever this is, it must not be taken for the next answer
        self._data += data
        if len(self._data) > MOST_READ:
            self._ended = True
            self.transport.pause_reading()
        self._news.set()

    def eof_received(self) -> None:
        self._ended = True
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._error = True, exc
        self._news.set()

    @property
    def usable(self) -> bool:
        return not self._ended and not self.transport.is_closing()

    def rest(self, until: float) -> None:
        self.kept_until = until
        self._data.clear()
        self._after_another = True
        self.resting = asyncio.get_running_loop().call_later(KEEP_ALIVE, self.transport.close)

    async def answer(self, request: bytes, deadline: float) -> Reply:
        """The answer, as soon as the rest of it does not matter; what there is of it when the time is over.

        Raises TimeoutError, `_Closed`, another OSError or NotHttp where no status line came.
        """
        self.transport.write(request)
        succeeded = False
        while True:
            reply = read_reply(bytes(self._data), ended=self._ended, after_another=self._after_another)
            if reply is not None and reply.whole:
                return reply
            if self._ended:
                if isinstance(self._error, TimeoutError):
                    raise self._error
                raise _Closed from self._error
            if reply is not None and 200 <= reply.status < 300 and not succeeded:  # noqa: PLR2004  # HTTP
                # Delivered by now. Reading on serves the reuse of the connection only, which is worth a second and no
                # more.
                succeeded = True
                deadline = min(deadline, asyncio.get_running_loop().time() + GRACE)
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError as error:
                self._ended, self._error = True, error
            self._news.clear()


class _CannotConnect(OSError):
    """With the reason."""


class _Closed(OSError):
    """The peer has closed the connection, or it broke: then its cause says how."""


def _in_words(error: Exception) -> str:
    match error:
        case NotHttp():
            words = "the answer is not HTTP"
        case UnicodeError() | socket.gaierror():
            words = "the host's name cannot be resolved"
        case ssl.SSLCertVerificationError():
            words = f"the TLS certificate is refused: {error.verify_message}"
        case ssl.SSLError():
            words = f"TLS failed: {_reason(error)}"
        case _Closed(__cause__=ssl.SSLError() as cause):
            words = f"TLS failed: {_reason(cause)}"
        case _CannotConnect():
            words = f"cannot connect: {error}"
        case _Closed(__cause__=None):
            words = "the connection was closed without an answer"
        case _Closed(__cause__=Exception() as cause):
            words = f"the connection broke: {_reason(cause)}"
        case _:
            words = "the host cannot be used"
    return words


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    # asyncio puts the errors of several addresses into one text without a number of its own.
    found = re.search(r"\[Errno (\d+)\]", str(error))
    number = (error.errno if isinstance(error, OSError) else None) or (found and int(found[1]))
    return os.strerror(number) if number else type(error).__name__
