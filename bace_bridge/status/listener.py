"""As much of HTTP/1.1 as health and downloads need, over a bounded number of connections."""

import asyncio
import contextlib
import errno
import re
import socket
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec
import structlog

LARGEST_HEAD = 8 * 1024
"""Bytes of the request line and the header fields together."""

END_OF_HEAD = re.compile(rb"\r?\n\r?\n")

_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (\S+) HTTP/(1\.[01])")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")


class NotHttp(Exception):
    """What came is no request of HTTP/1; `status` is what it is answered with."""

    def __init__(self, problem: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(problem)
        self.status = status


class Request(msgspec.Struct, frozen=True):
    """`path` is decoded and without the query; the names of `fields` are in lower case. A body is never read.

    `target` is path and query as they were sent. It may hold a credential: no log shows it, nor a Request.
    """

    method: str
    path: str
    fields: Mapping[str, Sequence[str]]
    target: str = ""
    version: str = "1.1"
    local: str = ""
    """The address of this machine that was asked."""


class Answer(msgspec.Struct, frozen=True):
    status: HTTPStatus
    content: object
    fields: Mapping[str, str] = {}


class Peer(NamedTuple):
    """Who asked, to be sent something for longer than an `Answer` may take."""

    connection: socket.socket
    taken_within: float

    async def send(self, data: bytes) -> None:
        """Returns when the system has it. Raises OSError where the peer is gone, or takes nothing (TimeoutError)."""
        async with asyncio.timeout(self.taken_within):
            await asyncio.get_running_loop().sock_sendall(self.connection, data)


class BrokenOff(Exception):
    """What was begun cannot be ended in order: the connection is reset, so that it looks like no end."""


Long = Callable[[Peer], Coroutine[Any, Any, None]]
"""An answer that takes its time. Its author bounds how many there are, and how long one lasts. Raises BrokenOff."""


def parse_head(head: bytes) -> Request:
    """The request whose head this is, up to its empty line. Raises NotHttp."""
    first, *rest = head.decode("latin-1").replace("\r\n", "\n").rstrip("\n").split("\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise NotHttp("not an HTTP/1 request line")
    fields: dict[str, list[str]] = {}
    for one in rest:
        field = _FIELD.fullmatch(one)
        if field is None:
            raise NotHttp("a header field cannot be read")
        fields.setdefault(field[1].lower(), []).append(field[2].strip())
    target = line[2]
    if not target.startswith("/"):
        # Proxies ask with the whole URL, whose host counts in place of the field's (RFC 9112, 3.2.2).
        try:
            parts = urlsplit(target)
        except ValueError:
            raise NotHttp("the address cannot be read") from None
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        if parts.netloc:
            fields["host"] = [parts.netloc]
    return Request(line[1], unquote(target.partition("?")[0]), fields, target, line[3])


def encoded(answer: Answer, *, with_body: bool = True) -> bytes:
    """The connection is closed after each answer, and none says which software wrote it."""
    body = msgspec.json.encode(answer.content)
    fields = {
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        **answer.fields,
    }
    return head(answer.status, fields) + (body if with_body else b"")


def head(status: HTTPStatus, fields: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


log = structlog.get_logger()

MOST_CONNECTIONS = 64
"""Open at the same time of those that have said nothing, and as many of those that have begun to.

One more closes the oldest of its kind: amid a flood of idle ones who asks at once is answered, and who asks slowly too.
"""

WITHIN = 5.0
"""Seconds that a connection lasts at most, from its acceptance to its end, unless its answer is a `Long` one."""

TAKEN_WITHIN = 120.0
"""Seconds in which the peer must have taken one piece of a long answer.

One that reads slowly, as a proxy does for a slow client, takes megabytes into its buffer and then nothing until some of
it is read: at 20 kB a second, nothing for a minute.
"""

UNTAKEN = 256 * 1024
"""Bytes of a long answer that the system may hold for the peer; left to itself it holds megabytes, too."""

AGAIN_AFTER = 1.0
"""Seconds without accepting after the system refused a connection, as without a free file descriptor."""

SAID_EVERY = 60.0
"""Seconds between two lines in the log about the same problem."""

_QUEUE = 128
_PIECE = 4096
_MOST_UNREAD = 16
"""Pieces of a body that are read and thrown away."""


_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

_Connections = dict[asyncio.Task[None], None]
"""The oldest first."""


class Listener:
    """Answers one request a connection; `answer` gets what could be read. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        answer: Callable[[Request], Answer | Long],
        *,
        clock: Callable[[], float],
        taken_within: float = TAKEN_WITHIN,
    ) -> None:
        self._answer = answer
        self._taken_within = taken_within
        self._clock = clock
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._silent: _Connections = {}
        self._speaking: _Connections = {}
        self._long: _Connections = {}
        self._say_after: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [one.getsockname()[:2] for one in self._sockets]

    async def open(self, host: str, port: int) -> None:
        """Listens on every address of the host that this machine has.

        In a container `localhost` often has an address of IPv6 by name only. Raises OSError, or UnicodeError for what
        can be no host.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        missing: OSError | None = None
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            try:
                self._sockets.append(socket.create_server(address, family=family, backlog=_QUEUE))
            except OSError as error:
                # `localhost` resolves to ::1 where IPv6 is off, too; any other error is a mistake in the configuration.
                if error.errno not in _NOT_HERE:
                    await self.close()
                    raise
                missing = error
        if missing is not None and not self._sockets:
            raise missing
        for one in self._sockets:
            one.setblocking(False)
        self._accepting = [loop.create_task(self._accept(one)) for one in self._sockets]

    async def close(self) -> None:
        tasks = [*self._accepting, *self._silent, *self._speaking, *self._long]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self._sockets:
            one.close()
        self._accepting, self._sockets = [], []

    async def _accept(self, listening: socket.socket) -> None:
        """Not asyncio's own server: without a free descriptor that tries, and logs, a hundred times as fast."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._say("http.cannot_accept", reason=error.strerror, then="trying again")
                await asyncio.sleep(AGAIN_AFTER)
                continue
            task = loop.create_task(self._serve(connection))
            self._silent[task] = None
            task.add_done_callback(partial(self._ended, connection))
            # The new task reads first: one that has sent its request already is no idle connection.
            await asyncio.sleep(0)
            for kind in (self._silent, self._speaking):
                await self._make_room(kind)

    async def _make_room(self, kind: _Connections) -> None:
        while len(kind) > MOST_CONNECTIONS:
            oldest = next(iter(kind))
            oldest.cancel()
            await asyncio.wait((oldest,))  # its descriptor is free before the next one is accepted
            self._say("http.connections_dropped", most=MOST_CONNECTIONS, hint="something keeps connections open")

    def _now(self, kind: _Connections) -> None:
        """This task's connection is of another kind now."""
        task = asyncio.current_task()
        for before in (self._silent, self._speaking):
            if before is not kind and task in before:
                kind[task] = before.pop(task)

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        for kind in (self._silent, self._speaking, self._long):
            kind.pop(task, None)
        connection.close()

    async def _serve(self, connection: socket.socket) -> None:
        """A peer that is slow, goes away or speaks something else costs its own connection."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError, BrokenOff):
            async with asyncio.timeout(WITHIN):
                answer = await self._answered(connection)
                if answer is None:
                    return
                if isinstance(answer, bytes):
                    await loop.sock_sendall(connection, answer)
                    await _close(connection)
                    return
            self._now(self._long)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNTAKEN)
            try:
                await _while_there(connection, answer(Peer(connection, self._taken_within)))
            except BaseException:
                # Closed in order, what came so far could pass for all of it.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise
            async with asyncio.timeout(WITHIN):
                await _close(connection)

    async def _answered(self, connection: socket.socket) -> bytes | Long | None:
        """None where the peer closed without a request."""
        try:
            read = await _read_head(connection, spoken=lambda: self._now(self._speaking))
            if read is None:
                return None
            local = connection.getsockname()[0]
            request = msgspec.structs.replace(parse_head(read), local=local)
        except NotHttp as error:
            log.debug("http.bad_request", reason=str(error), status=error.status.value)
            return encoded(Answer(error.status, {"error": str(error)}))
        answer = self._answer(request)
        return encoded(answer, with_body=request.method != "HEAD") if isinstance(answer, Answer) else answer

    def _say(self, event: str, **fields: object) -> None:
        now = self._clock()
        if now < self._say_after.get(event, now):
            self._unsaid[event] = self._unsaid.get(event, 0) + 1
            return
        self._say_after[event] = now + SAID_EVERY
        log.warning(event, **fields, more_before=self._unsaid.pop(event, 0))


async def _while_there(connection: socket.socket, answering: Coroutine[Any, Any, None]) -> None:
    """Raises ConnectionError where the peer has gone: while nothing is sent to it, only reading shows that."""

    async def until_it_goes() -> None:
        while await asyncio.get_running_loop().sock_recv(connection, _PIECE):
            pass  # another request, or a body: neither is answered

    tasks = [asyncio.ensure_future(answering), asyncio.ensure_future(until_it_goes())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ConnectionResetError
        await tasks[0]
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close(connection: socket.socket) -> None:
    # Closed with something unread, the connection would be reset, and the answer lost with it.
    connection.shutdown(socket.SHUT_WR)
    for _ in range(_MOST_UNREAD):
        if not await asyncio.get_running_loop().sock_recv(connection, _PIECE):
            break


async def _read_head(connection: socket.socket, *, spoken: Callable[[], None]) -> bytes | None:
    """Calls `spoken` when something has come. Raises NotHttp where it is too large, or is none from its start on."""
    loop = asyncio.get_running_loop()
    read = bytearray()
    while (end := END_OF_HEAD.search(read)) is None:
        if len(read) > LARGEST_HEAD:
            raise NotHttp("the request head is too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if read and not read[:1].isalpha():
            raise NotHttp("not an HTTP/1 request line")
        more = await loop.sock_recv(connection, _PIECE)
        if not more:
            if not read.strip():
                return None
            raise NotHttp("the request ends within its head")
        spoken()
        read = (read + more).lstrip(b"\r\n")  # empty lines before a request mean nothing
    if end.start() > LARGEST_HEAD:
        raise NotHttp("the request head is too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    return bytes(read[: end.start()])
