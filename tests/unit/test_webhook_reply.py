import gzip
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.sinks.webhook.message import LARGEST_HEAD, NotHttp, Reply, read_reply

OK = b"HTTP/1.1 200 OK\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n"


def read(data: bytes, *, ended: bool = False, after_another: bool = False) -> Reply:
    reply = read_reply(data, ended=ended, after_another=after_another)
    assert reply is not None
    return reply


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (NO_CONTENT + b"\r\n", b""),
        (NO_CONTENT + b"Content-Length: 2\r\n\r\n", b""),
        (OK + b"Content-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"ok"),
        (OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nA: b\r\n\r\n", b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103\r\nLink: <a>\r\n\r\n" + NO_CONTENT + b"\r\n", b""),
        (b"\r\n\r\n" + NO_CONTENT + b"\r\n", b""),
        (b"HTTP/1.1 204No content\r\n\r\n", b""),
        (b"http/1.1\t 204 ok\r\n\r\n", b""),
    ],
)
def test_an_answer_that_ends_as_http_says_leaves_the_connection_to_the_next(data: bytes, body: bytes) -> None:
    reply = read(data)
    assert (reply.whole, reply.reusable, reply.body) == (True, True, body)
    assert 200 <= reply.status < 300
    assert not read(data + b"x").reusable
    assert not read(data, ended=True).reusable


@pytest.mark.parametrize(
    "rest",
    [
        b"Connection: close\r\n\r\n",
        b"Keep Alive: no\r\n\r\n",
        b"no colon\r\n\r\n",
        b": no name\r\n\r\n",
        b"A: b\r\n folded\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: 2\r\n\r\nok",
        b"Content-Length: -2\r\n\r\nok",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n\r\nok",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nok!\r\n0\r\n\r\n",
        b"\r\nok",
        b"Content-Length: 9",
    ],
)
def test_after_an_odd_answer_the_connection_is_given_up(rest: bytes) -> None:
    assert not read(OK + rest).reusable
    assert (read(OK + rest, ended=True).status, read(OK + rest, ended=True).reusable) == (200, False)


def test_what_ends_where_the_connection_does_is_waited_for() -> None:
    assert not read(OK + b"\r\nok").whole
    assert not read(OK + b"Content-Length: 3\r\n\r\nok").whole
    assert not read(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").whole
    assert not read(OK + b"Content-Length: 3\r\n").whole
    assert read(b"HTTP/1.0 200 OK\r\n\r\nok", ended=True).body == b"ok"


def test_a_body_is_read_without_its_framing_as_far_as_that_holds() -> None:
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    assert read(OK + chunked + b"3\r\nhal\r\n1\r\nf", ended=True).body == b"half"
    broken = read(OK + chunked + b"3\r\nhal\r\nnonsense\r\n")
    assert (broken.whole, broken.body) == (True, b"hal")
    zipped = gzip.compress(b"words")[:-4]
    assert read(OK + b"Content-Encoding: gzip\r\n\r\n" + zipped, ended=True).body == zipped


def test_a_head_without_end_is_read_up_to_its_bound() -> None:
    long = b"Retry-After: 7\r\nX: " + b"x" * LARGEST_HEAD
    reply = read(b"HTTP/1.1 503 Later\r\n" + long)
    assert (reply.status, reply.whole, reply.reusable) == (503, True, False)
    assert dict(reply.headers) == {"Retry-After": "7"}
    assert read(OK + b"X: " + b"x" * 9000 + b"\r\nContent-Length: 0\r\n\r\n").reusable


@pytest.mark.parametrize(
    "data",
    [b"220 mail.example ESMTP\r\n", b"HTTP/1.1 20\r\n", b"HTTP/x 200 OK\r\n", b"\x16\x03\x01", b"HTTP/" + b"1" * 40],
)
def test_another_protocol_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(NotHttp):
        read_reply(data, ended=False, after_another=False)


def test_half_a_status_line_says_nothing_yet() -> None:
    for end in range(len(b"HTTP/1.1 200") + 1):
        assert read_reply(OK[:end], ended=False, after_another=False) is None
    assert read(b"HTTP/1.1 200", ended=True).status == 200
    with pytest.raises(NotHttp):
        read_reply(b"HTTP/1.1 20", ended=True, after_another=False)
    assert read_reply(b"HTTP/1.1 100 Continue\r\n\r\n", ended=True, after_another=False) is None


def test_what_is_left_of_the_answer_before_is_no_status_line() -> None:
    assert read_reply(b"ok", ended=False, after_another=True) is None
    assert read(b"ok" + NO_CONTENT + b"\r\n", after_another=True).status == 204
    with pytest.raises(NotHttp):
        read_reply(b"ok", ended=True, after_another=True)


@given(st.integers(200, 299), st.binary(max_size=300), st.booleans())
def test_whatever_follows_a_status_line_it_decides(status: int, rest: bytes, ended: bool) -> None:
    data = b"HTTP/1.1 %d \r\n" % status + rest
    assert read(data, ended=ended).status == status
    assert read(data, ended=True).whole


PIECES = st.sampled_from(
    [b"HTTP/1.1 ", b"200", b"100", b"204", b"\r\n", b"\n", b"\r", b" ", b":", b"Content-Length", b"Transfer-Encoding",
     b"chunked", b"0", b"2", b"ok", b";", b"Connection", b"close", b"\xff", b"\x00"]
)  # fmt: skip


@given(st.lists(st.one_of(PIECES, st.binary(max_size=5)), max_size=30), st.booleans(), st.booleans())
def test_nothing_that_comes_is_too_odd(pieces: list[bytes], ended: bool, after_another: bool) -> None:
    try:
        reply = read_reply(b"".join(pieces), ended=ended, after_another=after_another)
    except NotHttp:
        return
    assert reply is None or reply.whole or not ended


@pytest.mark.parametrize(
    "data",
    [
        OK + b"A: x" + b" " * 60_000 + b"x\r\n\r\n",
        OK + b"A:" + b"\t " * 30_000 + b"\r\n\r\n",
        OK + b"A:b\n" * 15_000,
        OK + b"A:b\n" * 15_000 + b"\n",
        b"HTTP/1.1 100\n\n" * 4_000 + OK,
        b"HTTP/1.1 103\n" + b"A:b\n" * 15_000,
        b"HTTP/1.1" + b" " * 60_000,
        b"HTTP/1" * 10_000,
        b"\r\n" * 30_000 + OK,
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 2_000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"00000001;" + b"x" * 60_000,
    ],
)
@pytest.mark.parametrize("after_another", [False, True])
def test_an_answer_is_read_again_with_each_piece_that_comes_and_that_takes_no_time(
    data: bytes, after_another: bool
) -> None:
    """Else one receiver holds up all: it sends a long answer byte by byte."""
    began = time.process_time()
    for _ in range(20):
        with suppress(NotHttp):
            read_reply(data, ended=False, after_another=after_another)
    assert time.process_time() - began < 0.4
