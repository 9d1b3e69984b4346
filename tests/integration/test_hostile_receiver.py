"""The webhook sink against a socket that answers whatever it likes: delivered, or a named error, by one request."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bace_bridge.errors import DeliveryFailed, SinkDisabled, SinkError
from tests.integration.peers import speaking
from tests.integration.test_webhook_sink import attempt, config, delivered, running
from tests.models import examples

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


class Socket:
    """Answers every request with these bytes; `closes` the connection after them, or leaves it open."""

    def __init__(self) -> None:
        self.url = ""
        self.answer = NO_CONTENT
        self.closes = False
        self.heads: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.rpartition(b"Content-Length: ")[2]))
                self.heads.append(head)
                writer.write(self.answer)
                await writer.drain()
                if self.closes:
                    break
        writer.close()


@asynccontextmanager
async def answering() -> AsyncIterator[Socket]:
    one = Socket()
    async with speaking(one.serve) as port:
        one.url = f"http://127.0.0.1:{port}/"
        yield one


PIECES = st.sampled_from(
    [b"HTTP/1.1 ", b"200 OK", b"100", b"204", b"503", b"410", b"\r\n", b"\n", b"\r", b" ", b":", b"Content-Length: 2",
     b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Encoding: gzip\r\n", b"0\r\n\r\n", b"2\r\nok\r\n", b"ok", b";",
     b"Connection: close\r\n", b"Retry-After: ", b"9" * 5000, b"Date: ", b"\xff", b"\x00", b"webhook-delivery: disable"]
)  # fmt: skip
BYTES = st.lists(st.one_of(PIECES, st.binary(max_size=8)), max_size=20).map(b"".join)


@given(BYTES, BYTES)
@example(b"", b"")
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
async def test_any_bytes_are_a_delivery_or_a_named_error(anything: bytes, rest: bytes) -> None:
    async with answering() as socket, running(config(socket.url, timeout=60)) as sink:
        socket.closes = True
        for beginning in (b"", b"HTTP/1.1 503 Later\r\n", b"HTTP/1.1 200 OK\r\n"):
            socket.answer = beginning + (anything if not beginning else rest)
            result = await delivered(sink)
            assert result is None or isinstance(result, SinkError)
            if b" 503 " in beginning:
                assert isinstance(result, DeliveryFailed | SinkDisabled)
            if b" 200 " in beginning:
                assert result is None or (isinstance(result, SinkDisabled) and b"disable" in rest)
        socket.answer = NO_CONTENT
        assert await delivered(sink) is None
    assert len(socket.heads) == 4


@given(BYTES)
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.too_slow])
async def test_what_is_left_of_an_answer_makes_no_failure_of_the_next(rest: bytes) -> None:
    """The connection stays open after it, and perhaps in use."""
    async with answering() as socket, running(config(socket.url, timeout=60)) as sink:
        socket.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + rest
        for seq in range(3):
            result = await delivered(sink, attempt(seq + 1))
            assert result is None
    assert len(socket.heads) == 3
    assert socket.connections == (3 if rest else 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!",
        b"HTTP/1.1 204 No\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: foo, Close\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n",
        b"SSH-2.0\r\n",
    ],
)
async def test_a_connection_of_which_the_state_is_unknown_is_closed(answer: bytes) -> None:
    async with answering() as socket, running(config(socket.url, timeout=2)) as sink:
        socket.answer = answer
        await delivered(sink)
        socket.answer = NO_CONTENT
        assert await delivered(sink) is None
        assert await delivered(sink) is None
    assert socket.connections == 2


async def test_a_receiver_that_closes_after_each_answer_without_saying_so_costs_no_attempt() -> None:
    """What is sent on a connection that it has just closed goes out again, on another one, at once."""
    heads = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heads
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.rpartition(b"Content-Length: ")[2]))
        heads += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read(1)  # the next request: it comes too late, and is not read
        writer.close()

    async with speaking(serve) as port, running(config(f"http://127.0.0.1:{port}/")) as sink:
        for seq in range(6):
            assert await delivered(sink, attempt(seq + 1)) is None
    assert heads == 6


async def test_no_answer_holds_up_the_loop() -> None:
    """One of 64 kB took seconds to read, in which nothing else was done."""
    async with answering() as socket, running(config(socket.url, timeout=60)) as sink:
        socket.answer = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nA: x" + b" " * 60_000 + b"x\r\n\r\n"
        began = time.process_time()
        assert str(await delivered(sink)) == "HTTP 500"
        assert time.process_time() - began < 1.0


async def test_a_second_answer_to_one_request_is_not_taken_for_the_next() -> None:
    """It comes while nothing is asked: that connection is not used again."""
    second = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.rpartition(b"Content-Length: ")[2]))
        writer.write(NO_CONTENT if len(writers) == 1 else b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n")
        await second.wait()
        writer.write(NO_CONTENT)
        with suppress(ConnectionError):
            await reader.read()  # until the peer closes, as it does
        writer.close()
        closed.set()

    closed = asyncio.Event()
    async with speaking(serve) as port, running(config(f"http://127.0.0.1:{port}/")) as sink:
        assert await delivered(sink) is None
        second.set()
        await closed.wait()
        assert str(await delivered(sink, attempt(2))) == "HTTP 503"
    assert len(writers) == 2


async def test_what_comes_late_of_an_answer_is_not_taken_for_the_next() -> None:
    async with answering() as socket, running(config(socket.url, timeout=2)) as sink:
        assert await delivered(sink) is None
        socket.answer = b"the body of the 204 before" + NO_CONTENT
        assert await delivered(sink) is None
        socket.answer = b"or this" + NO_CONTENT.replace(b"204 No Content", b"500 Oh no")
        assert str(await delivered(sink)) == "HTTP 500"
    assert socket.connections == 1


@pytest.mark.parametrize("reads", [False, True])
async def test_an_answer_that_is_there_before_the_request_counts(reads: bool) -> None:
    """So does a socket that answers every connection with the same words; perhaps it resets what it has not read."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(ConnectionError):
            if reads:
                await reader.readuntil(b"\r\n\r\n")
            await writer.drain()
        writer.close()

    large = b'{"x":"' + b"x" * 60_000 + b'"}'
    async with speaking(greet) as port, running(config(f"http://127.0.0.1:{port}/")) as sink:
        for seq in range(20):
            assert await delivered(sink, attempt(seq + 1, data=large)) is None


@given(st.dictionaries(st.text(max_size=8).map("X-".__add__), st.text(max_size=30), max_size=3))
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow])
async def test_headers_that_are_accepted_arrive_as_they_are_written(headers: dict[str, str]) -> None:
    accepted: dict[str, str] = {}
    for name, value in headers.items():
        with suppress(ValidationError):
            config("http://127.0.0.1:1/", headers={**accepted, name: value})
            accepted[name] = value
    async with answering() as socket, running(config(socket.url, headers=accepted, timeout=60)) as sink:
        assert await delivered(sink) is None
    (head,) = socket.heads
    for name, value in accepted.items():
        assert f"\r\n{name}: {value}\r\n".encode() in head
