"""The client against a server that answers whatever it likes: a fact comes of it or a CloudError, and costs little."""

import asyncio
import json
import resource
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bace_bridge.cloud.api import BaceCloud
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp
from bace_bridge.cloud.tokens import FixedToken, RequestToken
from bace_bridge.errors import (
    CloudError,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
    UnexpectedReply,
)
from bace_bridge.polling.reading import Reader, Unreadable, pages
from bace_bridge.polling.rules.changes import Page, Urgency
from tests.integration.peers import speaking
from tests.integration.polling_line import Clock, points_of
from tests.models import examples

ID = "0c7c3d9e-4c53-4a13-9e8b-9d7e3e6a3c11"
SESSION = {"id_data_session": ID, "id_group": "g", "start": 1_764_590_000}
POINT = {"id_container_data_latest": "s", "datatype": 6000, "timestamp_seconds": 1_764_590_000, "count_val": 1}

Answer = Callable[[web.Request], web.Response]


def a_token(_: RequestToken) -> FixedToken:
    return FixedToken("a-token")


class Server:
    """Answers every GET by `answer`."""

    def __init__(self) -> None:
        self.answer: Answer = lambda _: web.json_response({"items": []})
        self.asked: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        return self.answer(request)

    def says(self, body: bytes, *, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer = lambda _: web.Response(status=status, body=body, headers=named)


class Wire:
    """Answers every request with these bytes, and closes the connection."""

    def __init__(self) -> None:
        self.answer = b""
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        with suppress(OSError):
            await reader.read(2**16)
            writer.write(self.answer)
            await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def hostile() -> AsyncIterator[tuple[Server, BaceCloud, CloudHttp]]:
    server, clock = Server(), Clock()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    budget = RequestBudget(6_000_000, clock=clock)
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    http = CloudHttp(url, budget, a_token, timeout=60, version="t", clock=clock, monotonic=clock, jitter=lambda: 0)
    try:
        async with http:
            yield server, BaceCloud(http), http
    finally:
        await runner.cleanup()


def page(*items: Any, **meta: Any) -> bytes:
    return json.dumps({"items": items, "_meta": meta}).encode()


def resources(api: BaceCloud) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "list": lambda: api.session_page((), 1),
        "view": lambda: api.session(ID),
        "points": lambda: api.point_page((), 1, urgency=Urgency.LIVE),
        "groups": lambda: api.group_page(1),
    }


DIGITS = "9" * 5000
ODD_HEADERS = [
    {"X_Pagination_Total_Count": DIGITS},
    {"X_Pagination_Page_Count": "²"},
    {"Date": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
    {"Date": "Mon, 01 Jan 2020 00:00:00 +99999999999999"},
    {"Date": "Fri, 31 Dec 9999 23:59:59 GMT"},
    {"Retry_After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
    {"Retry_After": DIGITS},
]


@pytest.mark.parametrize("status", [200, 429, 503])
@pytest.mark.parametrize("headers", ODD_HEADERS)
async def test_odd_headers_are_no_headers(headers: dict[str, str], status: int) -> None:
    async with hostile() as (server, api, http):
        server.says(b'{"items":[]}', status=status, **headers)
        try:
            found = await api.session_page((), 1)
        except CloudError:
            assert status != 200
            return
        assert (found.total, found.page_count, http.clock_ahead < 1e12) == (None, None, True)


@given(
    status=st.sampled_from([200, 200, 200, 302, 400, 403, 404, 422, 500, 503]),
    body=st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["items", "_meta", "name", "message", *SESSION, *POINT, "datatypes", "group"]),
        st.recursive(
            st.none() | st.integers() | st.integers(2**50, 2**80) | st.floats() | st.text(max_size=5) | st.just(DIGITS),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from([*SESSION, *POINT, "totalCount", "pageCount", "perPage", "id"]), inner, max_size=6
                )
            ),
            max_leaves=12,
        ),
        max_size=8,
    ).map(lambda shape: json.dumps(shape).encode()),
    headers=st.dictionaries(
        st.sampled_from(["Date", "Retry-After", "X-Rate-Limit-Reset", "X-Pagination-Total-Count", "Content-Encoding"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
        | st.sampled_from([next(iter(one.values())) for one in ODD_HEADERS if "²" not in one.values()]),
        max_size=3,
    ),
)
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
async def test_any_bytes_and_headers_are_a_fact_or_a_cloud_error(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    async with hostile() as (server, api, _):
        server.answer = lambda _: web.Response(status=status, body=body, headers=headers)
        for name, ask in resources(api).items():
            try:
                found = await ask()
            except CloudError:
                continue
            assert isinstance(found, {"list": Page, "points": Page, "groups": dict}.get(name, object))


def packed(megabytes: int) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(squeeze.compress(b" " * 2**20) for _ in range(megabytes)) + squeeze.flush()


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_without_end_is_given_up(status: int) -> None:
    """400 kB that unpack to 400 MiB."""
    async with hostile() as (server, api, _):
        server.says(packed(400), status=status, Content_Encoding="gzip")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UnexpectedReply, match="more than 16 MiB"):
            await api.session_page((), 1)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


@pytest.mark.parametrize("within", [b'{"items":[%b]}', b'{"items":[{"id_data_session":"a","group":[%b]}]}'])
async def test_an_answer_of_millions_of_rows_is_not_unfolded(within: bytes) -> None:
    """15 MB that took 1 GB and 9 s of the loop."""
    async with hostile() as (server, api, _):
        server.says(within % b",".join([b"{}"] * 5_000_000))
        with pytest.raises(UnexpectedReply, match="more than 500000 values"):
            await api.session_page((), 1)


async def test_a_packed_answer_is_read() -> None:
    async with hostile() as (server, api, _):
        server.says(zlib.compress(page(SESSION), wbits=31), Content_Encoding="gzip")
        assert (await api.session_page((), 1)).count == 1


@pytest.mark.parametrize("figures", [{"pageCount": 300_000}, {"pageCount": 40, "totalCount": 10_000_000}])
async def test_datapoints_that_are_too_many_are_not_asked_for(figures: dict[str, int]) -> None:
    async with hostile() as (server, api, _):
        server.says(page(POINT, **figures))
        with pytest.raises(Unreadable, match="more than 500000 datapoints"):
            await points_of(api, ID, Clock()).read(0, 2**31 - 1)
        assert len(server.asked) == 2


async def test_pages_that_are_larger_than_they_say_end_at_a_bound() -> None:
    """A server that clamps no page: what is held is bounded, whatever it says of its pages."""
    async with hostile() as (server, api, _):
        points = [POINT | {"timestamp_seconds": second} for second in range(60_000)]
        body = page(*points, pageCount=1000)
        server.says(body)
        with pytest.raises(Unreadable, match="do not fit together"):
            await points_of(api, ID, Clock()).read(0, 2**31 - 1)
        assert len(server.asked) < 20


async def walked(answer: Answer) -> tuple[list[str], int]:
    """What a walk shows, and the requests that it took; not one that does not end."""
    async with hostile() as (server, api, _):
        server.answer = answer
        seen: list[str] = []
        async for found in pages(partial(Reader(api).page, ())):
            seen += [row.session.id for row in found.items]
            assert len(server.asked) < 500
        return seen, len(server.asked)


def rows_of(request: web.Request, total: int) -> list[dict[str, Any]]:
    """The page that was asked for, and the last one behind it, as Yii does."""
    size = int(request.query["per-page"])
    last = (total - 1) // size
    start = min(int(request.query["page"]) - 1, last) * size
    return [SESSION | {"id_data_session": f"s{number}"} for number in range(start, min(start + size, total))]


@pytest.mark.parametrize(
    "meta",
    [
        {"totalCount": 250, "pageCount": 3, "perPage": 0},
        {"totalCount": 10**12},
        {"totalCount": 10**12, "pageCount": 10**10, "perPage": 100},
    ],
)
async def test_a_walk_ends_whatever_the_server_says_of_its_pages(meta: dict[str, int]) -> None:
    seen, requests = await walked(lambda asked: web.json_response({"items": rows_of(asked, 250), "_meta": meta}))
    assert (seen, requests <= 4) == ([f"s{number}" for number in range(250)], True)


async def test_a_walk_ends_at_an_empty_page() -> None:
    meta = {"totalCount": 10**12}
    seen, requests = await walked(lambda _: web.json_response({"items": [], "_meta": meta}))
    assert (seen, requests) == ([], 1)


async def test_a_list_that_has_no_end_fails_the_look() -> None:
    async with hostile() as (server, api, _):
        server.answer = lambda asked: web.json_response(
            {"items": rows_of(asked, 10**12), "_meta": {"totalCount": 10**12}}
        )
        walk = pages(partial(Reader(api).page, ()), most=20)
        for _ in range(20):
            await anext(walk)
        with pytest.raises(UnexpectedReply, match="does not end after 20 pages"):
            await anext(walk)


# --- below JSON: whatever comes over the wire


@asynccontextmanager
async def on_the_wire(*, secure: bool = False) -> AsyncIterator[tuple[Wire, BaceCloud, CloudHttp]]:
    wire, clock = Wire(), Clock()
    async with speaking(wire.serve) as port:
        url = f"http{'s' if secure else ''}://127.0.0.1:{port}"
        budget = RequestBudget(6_000_000, clock=clock)
        http = CloudHttp(url, budget, a_token, timeout=2, version="t", clock=clock, monotonic=clock, jitter=lambda: 0)
        async with http:
            yield wire, BaceCloud(http), http


HEAD = b"HTTP/1.1 200 OK\r\n"
JSON_BODY = b'{"items":[]}'
FORM = {"grant_type": "password", "username": "u"}


def encoded(name: str, body: bytes) -> bytes:
    return HEAD + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (name.encode(), len(body)) + body


GZIPPED = zlib.compress(JSON_BODY * 50, wbits=31)
WIRES = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 8,
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
    "HTTP/0.9": b"<html>hello</html>",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "HTTP/9.9": b"HTTP/9.9 200 OK\r\n\r\n",
    "an endless status line": b"HTTP/1.1 200 " + b"O" * 200_000 + b"\r\n\r\n",
    "a header without a colon": HEAD + b"nothing\r\n\r\n",
    "a header of NULs": HEAD + b"X: \0\0\r\n\r\n",
    "a header that is not UTF-8": HEAD + b"Date: \xff\xfe\r\nX: \xe4\r\nContent-Length: 12\r\n\r\n" + JSON_BODY,
    "a length that is no number": HEAD + b"Content-Length: many\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "an endless length": HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "fewer bytes than said": HEAD + b"Content-Length: 500\r\n\r\n" + JSON_BODY,
    "a chunk without a size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + JSON_BODY,
    "an endless chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 200_000,
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\n" + JSON_BODY,
    "unknown transfer": HEAD + b"Transfer-Encoding: rot13\r\n\r\n" + JSON_BODY,
    "many headers": HEAD + b"X-A: b\r\n" * 5000 + b"\r\n",
    "a cookie": HEAD + b"Set-Cookie: \xff=;;;==\x01; expires=never\r\nContent-Length: 12\r\n\r\n" + JSON_BODY,
    "links": HEAD + b"Link: <http://[::1>; rel=\xff\r\nLocation: http://[\r\nContent-Length: 12\r\n\r\n" + JSON_BODY,
    "a type": HEAD + b"Content-Type: \xff/;charset=klingon\r\nContent-Length: 12\r\n\r\n" + JSON_BODY,
    "a redirect to nowhere": b"HTTP/1.1 302 Found\r\nLocation: http://[::\r\nContent-Length: 0\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "continue without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 500,
    "not gzip": encoded("gzip", JSON_BODY),
    "half of gzip": encoded("gzip", GZIPPED[:30]),
    "gzip with a wrong sum": encoded("gzip", GZIPPED[:-8] + b"\0" * 8),
    "gzip and more": encoded("gzip", GZIPPED + b"more"),
    "gzip that is empty": encoded("gzip", b""),
    "not deflate": encoded("deflate", JSON_BODY),
    "not brotli": encoded("br", JSON_BODY),
    "not zstd": encoded("zstd", JSON_BODY),
    "zstd's beginning": encoded("zstd", b"\x28\xb5\x2f\xfd" + b"\xff" * 50),
    "gzip twice": encoded("gzip, gzip", zlib.compress(GZIPPED, wbits=31)),
    "unknown coding": encoded("rot13", JSON_BODY),
    "401 that asks oddly": b'HTTP/1.1 401 X\r\nWWW-Authenticate: Digest \xff,,="\r\nContent-Length: 0\r\n\r\n',
}


@pytest.mark.parametrize("answer", WIRES)
async def test_whatever_comes_over_the_wire_is_a_fact_or_a_cloud_error(answer: str) -> None:
    async with on_the_wire() as (wire, api, http):
        wire.answer = WIRES[answer]
        for ask in resources(api).values():
            with suppress(CloudError):
                await ask()
        with suppress(CloudRefused, CloudUnavailable):
            await http.request_token(FORM)
        assert wire.asked >= 4
        wire.answer = HEAD + b"Content-Length: 12\r\n\r\n" + JSON_BODY
        assert (await api.session_page((), 1)).count == 0, "what was odd harms no later answer"


@given(head=st.binary(max_size=80), body=st.binary(max_size=80), at=st.integers(0, 60), put=st.binary(max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_any_bytes_on_the_wire_are_a_fact_or_a_cloud_error(head: bytes, body: bytes, at: int, put: bytes) -> None:
    async with on_the_wire() as (wire, api, http):
        plain = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(GZIPPED) + GZIPPED
        for answer in (HEAD + head + b"\r\n\r\n" + body, plain[:at] + put + plain[at + len(put) :], head + body):
            wire.answer = answer
            with suppress(CloudError):
                await api.session_page((), 1)
            with suppress(CloudRefused, CloudUnavailable):
                await http.request_token(FORM)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("asked", ["Retry-After: 20.5", "Retry-After: 3\r\nretry-after: 20.5\r\nRetry-After: -60"])
async def test_the_cloud_s_longest_retry_after_counts(status: int, asked: str) -> None:
    async with on_the_wire() as (wire, api, _):
        wire.answer = f"HTTP/1.1 {status} Later\r\n{asked}\r\nContent-Length: 0\r\n\r\n".encode()
        with pytest.raises(CloudUnavailable) as caught:
            await api.session_page((), 1)
    assert 20.5 <= caught.value.retry_after <= 22.5


async def test_a_port_that_does_not_speak_tls_is_a_cloud_error() -> None:
    async with on_the_wire(secure=True) as (wire, api, _):
        for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", bytes(range(256))):
            wire.answer = answer
            with pytest.raises(CloudUnavailable):
                await api.session_page((), 1)


URLS = [
    "http://a..b",
    "http://" + "a" * 70 + ".b",
    "http://\ud800",
    "http://[::1",
    "http://a:99999",
    "http://",
    "ftp://a",
]


@pytest.mark.parametrize("url", URLS, ids=[str(number) for number in range(len(URLS))])
async def test_an_odd_address_is_a_cloud_error(url: str) -> None:
    clock = Clock()
    http = CloudHttp(
        url, RequestBudget(600, clock=clock), a_token, timeout=2, version="t", clock=clock, monotonic=clock
    )
    async with http:
        with pytest.raises(CloudUnavailable):
            await BaceCloud(http).session_page((), 1)
        with pytest.raises(CloudUnavailable):
            await http.request_token(FORM)


@pytest.mark.parametrize("value", ["\ud800", "a\0b", "\r\n"])
async def test_odd_credentials_and_parameters_are_a_cloud_error_or_sent(value: str) -> None:
    async with hostile() as (server, api, http):
        with suppress(CloudError):
            await api.session_page([("filter[label]", value)], 1)
        with pytest.raises(CloudError):
            await http.request_token(FORM | {"password": value})
        assert all(request.method == "GET" for request in server.asked)


async def test_a_client_that_is_closed_is_a_cloud_error() -> None:
    async with hostile() as (_, api, http):
        await http.__aexit__()
        with pytest.raises(CloudUnavailable):
            await api.session_page((), 1)


# --- large headers

LARGE = [9_000, 30_000, 60_000]
TOO_LARGE = [70_000, 300_000]


def linked(size: int, *, name: str = "Link", status: int = 200) -> bytes:
    head = b"HTTP/1.1 %d OK\r\n" % status
    return head + b"%b: <%b>\r\nContent-Length: 12\r\n\r\n" % (name.encode(), b"x" * size) + JSON_BODY


@pytest.mark.parametrize("size", LARGE)
async def test_an_answer_with_large_headers_is_read(size: int) -> None:
    """50 ids in a query made a `Link` header of 12 kB; aiohttp by itself gives up at 8,190 bytes."""
    async with on_the_wire() as (wire, api, _):
        wire.answer = linked(size)
        assert (await api.session_page((), 1)).count == 0
        wire.answer = b"HTTP/1.1 200 %b\r\nContent-Length: 12\r\n\r\n" % (b"O" * size) + JSON_BODY
        assert (await api.session_page((), 1)).count == 0


@pytest.mark.parametrize("size", TOO_LARGE)
@pytest.mark.parametrize("status", [200, 404, 500])
async def test_an_answer_with_headers_without_end_asks_for_less(size: int, status: int) -> None:
    async with on_the_wire() as (wire, api, http):
        for answer in (linked(size, status=status), linked(5, name="X" * size, status=status)):
            wire.answer = answer
            with pytest.raises(CloudRequestTooLarge, match="more than 64 KiB"):
                await api.session_page((), 1)
            with pytest.raises(CloudUnavailable):
                await http.request_token(FORM)
        wire.answer = linked(5)
        assert (await api.session_page((), 1)).count == 0
