import asyncio
import base64
import html
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from aiohttp import web
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from bace_bridge.errors import DeliveryFailed, SinkDisabled, SinkError, SinkUnavailable
from bace_bridge.events.types import Attempt, Event, LoggedEvent
from bace_bridge.sinks.webhook.config import WebhookConfig
from bace_bridge.sinks.webhook.message import LONGEST_ANSWER
from bace_bridge.sinks.webhook.sink import WebhookSink
from tests.integration.peers import speaking

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"n" * 32).decode()
TOKEN = "T0kenT0kenT0ken"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Receiver:
    """A real HTTP server; `answer` is what it does with the requests that it notes."""

    url: str = ""
    answer: Answer | None = None
    requests: list[HTTPMessage] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)
    here: asyncio.Condition = field(default_factory=asyncio.Condition)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with self.here:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.requests.append(HTTPMessage(headers, body))
            self.paths.append(request.path)
            self.connections.add(request.transport)
            self.here.notify_all()
        return web.Response(text="ok") if self.answer is None else await self.answer(request)

    async def arrived(self, count: int) -> None:
        async with self.here:
            await self.here.wait_for(lambda: len(self.requests) >= count)

    async def wait_at_the_gate(self, request: web.Request) -> web.Response:
        await self.gate.wait()
        return web.Response(text=request.method)

    def replies_without_end(self, status: int, beginning: bytes) -> None:
        async def reply(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status)
            await response.prepare(request)
            await response.write(beginning)
            await self.gate.wait()
            return response

        self.answer = reply

    def hangs_up(self) -> None:
        async def hang_up(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.close()
            return await self.wait_at_the_gate(request)

        self.answer = hang_up

    def replies(self, status: int, text: str = "", headers: dict[str, str] | None = None) -> None:
        async def reply(_: web.Request) -> web.Response:
            return web.Response(status=status, text=text, headers=headers)

        self.answer = reply


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    receiver.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/hook/{TOKEN}"
    yield receiver
    receiver.gate.set()
    await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with serving() as receiver:
        yield receiver


def config(url: str, **changes: Any) -> WebhookConfig:
    return WebhookConfig.model_validate({"name": "alerts", "url": url, "secret": SECRET, **changes})


@asynccontextmanager
async def running(
    settings: WebhookConfig,
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    grace: float = 5.0,
) -> AsyncIterator[WebhookSink]:
    sink = WebhookSink(
        settings, source="https://cloud.example", version="1.2.3", clock=clock, monotonic=monotonic, grace=grace
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(sink.run())
        await sink.ready()
        try:
            yield sink
        finally:
            await sink.close()


def attempt(seq: int = 1, number: int = 1, data: bytes = b'{"n":1}') -> Attempt:
    event = Event(f"evt_{seq}", "session.started", f"s{seq}", "d1", 1_769_817_600.0, 1_769_817_605.0, data)
    return Attempt(LoggedEvent(seq, event), number)


async def delivered(sink: WebhookSink, what: Attempt | None = None) -> SinkError | None:
    result: asyncio.Future[SinkError | None] = asyncio.get_running_loop().create_future()
    sink.send(what or attempt(), result.set_result)  # a second `done` would raise InvalidStateError
    return await result


async def test_what_arrives_is_what_the_contract_says(receiver: Receiver) -> None:
    async with running(config(receiver.url, headers={"X-Team": "night shift"})) as sink:
        assert (sink.name, sink.window, sink.pipelined) == ("alerts", 10, False)
        assert await delivered(sink, attempt(7)) is None
    (message,) = receiver.requests
    assert message.headers["content-type"] == "application/cloudevents+json"
    assert message.headers["user-agent"] == "bace-bridge/1.2.3"
    assert message.headers["webhook-id"] == "evt_7"
    assert message.headers["x-team"] == "night shift"
    event = from_http_event(message)
    assert (event.get_id(), event.get_type(), event.get_subject()) == ("evt_7", "bace.session.started", "s7")
    assert event.get_source() == "https://cloud.example"
    assert event.get_extension("sequence") == "00000000000000000007"
    assert Webhook(SECRET).verify(message.body, message.headers)["data"] == {"n": 1}


async def test_both_secrets_sign_while_they_rotate(receiver: Receiver) -> None:
    async with running(config(receiver.url, secret=[NEXT_SECRET, SECRET])) as sink:
        assert await delivered(sink) is None
    (message,) = receiver.requests
    for secret in (SECRET, NEXT_SECRET):
        Webhook(secret).verify(message.body, message.headers)


async def test_another_attempt_has_a_fresh_timestamp_and_the_same_id_and_body(receiver: Receiver) -> None:
    now = int(time.time())
    times = iter([now, now, now + 60, now + 60])
    async with running(config(receiver.url), clock=lambda: next(times)) as sink:
        receiver.replies(500)
        assert isinstance(await delivered(sink, attempt(number=1)), DeliveryFailed)
        receiver.replies(204)
        assert await delivered(sink, attempt(number=2)) is None
    first, second = receiver.requests
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] == str(now)
    assert second.headers["webhook-timestamp"] == str(now + 60)
    for message in (first, second):
        Webhook(SECRET).verify(message.body, message.headers)


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.replies(307, headers={"Location": "/elsewhere"})
    async with running(config(receiver.url)) as sink:
        failed = await delivered(sink)
    assert isinstance(failed, DeliveryFailed)
    assert str(failed).startswith("HTTP 307: redirects are not followed")
    assert receiver.paths == [f"/hook/{TOKEN}"]


@pytest.mark.parametrize(("status", "headers"), [(410, {}), (200, {"webhook-delivery": "disable"})])
async def test_an_endpoint_that_wants_no_more(receiver: Receiver, status: int, headers: dict[str, str]) -> None:
    receiver.replies(status, headers=headers)
    async with running(config(receiver.url)) as sink:
        assert isinstance(await delivered(sink), SinkDisabled)


@pytest.mark.parametrize("value", ["90", "Sat, 31 Jan 2026 00:01:30 GMT"])
async def test_retry_after_is_reported(receiver: Receiver, value: str) -> None:
    receiver.replies(503, "later", headers={"Retry-After": value, "Date": "Sat, 31 Jan 2026 00:00:00 GMT"})
    async with running(config(receiver.url), clock=lambda: 1_769_817_600.0) as sink:
        failed = await delivered(sink)
    assert isinstance(failed, DeliveryFailed)
    assert failed.retry_after == 90.0
    assert str(failed) == "HTTP 503: later"


async def test_a_receiver_that_hangs(receiver: Receiver) -> None:
    receiver.answer = receiver.wait_at_the_gate
    async with running(config(receiver.url, timeout=2)) as sink:
        failed = await delivered(sink)
        assert isinstance(failed, DeliveryFailed)
        assert str(failed) == "no answer within 2 s"
        receiver.gate.set()
        receiver.replies(200)
        assert await delivered(sink) is None


async def dripped(beginning: bytes) -> SinkError | None:
    """Of a receiver whose answer begins so: each further byte comes in time, the whole never."""
    left = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            writer.write(beginning)
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        left.set()

    async with speaking(drip) as port, asyncio.timeout(60):
        async with running(config(f"http://127.0.0.1:{port}/", timeout=2)) as sink:
            result = await delivered(sink)
        await left.wait()
    return result


async def test_a_receiver_that_drips() -> None:
    beginnings = b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 500 Oh no\r\nX: ", b"HTTP/1.1 100 Continue\r\nX: ", b"HTTP/1.1 "
    delivered, *failed = await asyncio.gather(*map(dripped, beginnings))
    assert delivered is None
    assert [str(one) for one in failed] == ["HTTP 500", "no answer within 2 s", "the answer is not HTTP"]


async def test_nobody_listens(unused_port: int) -> None:
    async with running(config(f"http://127.0.0.1:{unused_port}/hook/{TOKEN}")) as sink:
        failed = await delivered(sink)
    assert isinstance(failed, DeliveryFailed)
    assert str(failed) == "cannot connect: Connection refused"


@pytest.fixture
async def unused_port() -> int:
    async with serving() as gone:
        return int(gone.url.split(":")[2].split("/")[0])


async def test_a_long_answer_is_read_in_part(receiver: Receiver) -> None:
    receiver.replies(500, "long " * 200_000)
    async with running(config(receiver.url)) as sink:
        failed = await delivered(sink)
        assert isinstance(failed, DeliveryFailed)
        assert str(failed).startswith("HTTP 500: long long")
        assert len(str(failed)) <= 220
        receiver.replies(200, "long " * 200_000)
        assert await delivered(sink) is None
        receiver.replies(200)
        assert await delivered(sink) is None
    assert len(receiver.connections) == 3


async def test_a_body_that_never_ends_does_not_unsay_the_status(receiver: Receiver) -> None:
    async with running(config(receiver.url, timeout=2)) as sink:
        receiver.replies_without_end(200, b"ok")
        assert await delivered(sink) is None
        receiver.replies_without_end(500, b"half a word")
        assert str(await delivered(sink)) == "HTTP 500: half a word"


async def test_more_than_the_beginning_of_a_body_is_not_waited_for(receiver: Receiver) -> None:
    receiver.replies_without_end(500, b"x" * (LONGEST_ANSWER + 1))
    async with running(config(receiver.url, timeout=3600)) as sink:
        assert isinstance(await delivered(sink), DeliveryFailed)


async def test_a_connection_is_used_again(receiver: Receiver) -> None:
    async with running(config(receiver.url)) as sink:
        for seq in range(1, 21):
            receiver.replies(500 if seq % 3 else 200, "word")
            await delivered(sink, attempt(seq))
    assert len(receiver.requests) == 20
    assert len(receiver.connections) == 1


@pytest.mark.parametrize(("idle", "connections"), [(3.0, 1), (4.9, 2)])
async def test_an_idle_connection_is_left_before_common_servers_close_theirs_after_5_s(
    receiver: Receiver, idle: float, connections: int
) -> None:
    """A POST on a connection that the server is just closing fails for no reason."""
    now = 1000.0
    async with running(config(receiver.url), monotonic=lambda: now) as sink:
        assert await delivered(sink, attempt(1)) is None
        now += idle
        assert await delivered(sink, attempt(2)) is None
    assert len(receiver.connections) == connections


async def test_a_cookie_does_not_come_back(receiver: Receiver) -> None:
    receiver.url = receiver.url.replace("127.0.0.1", "localhost")  # aiohttp keeps no cookie of an address
    receiver.replies(200, headers={"Set-Cookie": "session=1; Path=/"})
    async with running(config(receiver.url)) as sink:
        for seq in (1, 2):
            assert await delivered(sink, attempt(seq)) is None
    assert ["cookie" in message.headers for message in receiver.requests] == [False, False]


async def test_so_many_at_once_as_configured_and_no_more(receiver: Receiver) -> None:
    receiver.answer = receiver.wait_at_the_gate
    async with running(config(receiver.url, max_in_flight=3)) as sink:
        posts = [asyncio.create_task(delivered(sink, attempt(seq))) for seq in range(1, 6)]
        await receiver.arrived(3)
        assert len(receiver.requests) == 3
        receiver.gate.set()
        assert await asyncio.gather(*posts) == [None] * 5
    assert len(receiver.connections) == 3


async def test_a_server_that_hangs_up(receiver: Receiver) -> None:
    receiver.hangs_up()
    async with running(config(receiver.url)) as sink:
        failed = await delivered(sink)
    assert isinstance(failed, DeliveryFailed)
    assert str(failed) == "the connection was closed without an answer"


async def test_a_server_that_does_not_speak_http() -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with speaking(babble) as port, running(config(f"http://127.0.0.1:{port}/")) as sink:
        failed = await delivered(sink)
    assert isinstance(failed, DeliveryFailed)
    assert str(failed) == "the answer is not HTTP"


async def test_https_where_only_http_is_spoken(receiver: Receiver) -> None:
    async with running(config(receiver.url.replace("http:", "https:"))) as sink:
        failed = await delivered(sink)
    assert isinstance(failed, DeliveryFailed)
    assert str(failed).startswith("TLS failed: ")


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=me"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    return tls


async def test_a_certificate_that_nobody_vouches_for(self_signed: ssl.SSLContext) -> None:
    async with serving(self_signed) as receiver, running(config(receiver.url)) as sink:
        failed = await delivered(sink)
    assert isinstance(failed, DeliveryFailed)
    assert str(failed) == "the TLS certificate is refused: self-signed certificate"


async def test_neither_messages_nor_logs_hold_a_credential(receiver: Receiver) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(status=404, text=f"Cannot POST {request.path_qs} {request.headers['X-Key']}")

    receiver.answer = echo
    with capture_logs() as logs:
        settings = config(receiver.url + "?key=Quer1Quer1", headers={"X-Key": "Head3rHead3r"})
        async with running(settings) as sink:
            failed = await delivered(sink)
    assert str(failed) == "HTTP 404: Cannot POST *** ***"
    (opened,) = logs
    assert opened["sink"] == "alerts"
    assert opened["host"] == receiver.url.split("/")[2]
    for secret in (TOKEN, "Quer1Quer1", "Head3rHead3r", SECRET):
        assert secret not in str(logs)


async def echoed(receiver: Receiver, login: str = "", **headers: str) -> str:
    """The reason of a delivery to a debug page that shows the request's headers, its URL, and all of it as HTML."""

    async def echo(request: web.Request) -> web.Response:
        shown = [request.headers.get("authorization", ""), *(request.headers[name] for name in headers)]
        pages = [*shown, *(html.escape(one) for one in shown), *(quote(one, safe="") for one in shown)]
        pages += [quote_plus(one) for one in shown]
        return web.Response(status=500, text=" ".join(page for page in pages if page))

    receiver.answer = echo
    settings = config(receiver.url.replace("//", f"//{login}@") if login else receiver.url, headers=headers)
    async with running(settings) as sink:
        return str(await delivered(sink))


@pytest.mark.parametrize("login", ["bridgeuser:canary-password-1", "us3r:p%C3%A4ss", "t0ken-only", ":p4ss"])
async def test_an_echoed_login_is_masked_also_in_base64(receiver: Receiver, login: str) -> None:
    reported = await echoed(receiver, login)

    sent = receiver.requests[0].headers["authorization"].split()[1]
    assert sent.rstrip("=") not in reported
    assert quote(sent, safe="").rstrip("%3D") not in reported
    assert "***" in reported


@pytest.mark.parametrize("value", ["abcd", "Bearer t0k/en", "a<b&'c\"d", "Token x y+z/é"])
async def test_an_echoed_header_is_masked_however_it_is_written(receiver: Receiver, value: str) -> None:
    reported = await echoed(receiver, **{"X-Key": value})

    assert set(reported.removeprefix("HTTP 500: ").split()) == {"***"}


async def test_an_echoed_signing_secret_and_a_short_token_of_the_url_are_masked(receiver: Receiver) -> None:
    settings = config(receiver.url.replace(TOKEN, "8letters"), secret=[NEXT_SECRET, SECRET])
    receiver.replies(500, f"8letters {SECRET} {NEXT_SECRET.removeprefix('whsec_')} {quote(SECRET, safe='')}")
    async with running(settings) as sink:
        failed = await delivered(sink)
    assert str(failed) == "HTTP 500: *** *** *** ***"


async def test_the_answer_can_be_read_though_the_receiver_compresses_where_it_may(receiver: Receiver) -> None:
    async def compressing(_: web.Request) -> web.Response:
        response = web.Response(status=422, text="the field `n` is missing")
        response.enable_compression()
        return response

    receiver.answer = compressing
    async with running(config(receiver.url)) as sink:
        assert str(await delivered(sink)) == "HTTP 422: the field `n` is missing"


async def test_what_a_login_in_a_configured_header_says_is_masked(receiver: Receiver) -> None:
    async def decoding(request: web.Request) -> web.Response:
        decoded = base64.b64decode(request.headers["authorization"].split()[1]).decode()
        return web.Response(status=403, text=f"bad login {decoded}, {decoded.split(':')[1]}")

    receiver.answer = decoding
    header = "Basic " + base64.b64encode(b"us3r:p4ss").decode()
    async with running(config(receiver.url, headers={"Authorization": header})) as sink:
        failed = await delivered(sink)
    assert str(failed) == "HTTP 403: bad login ***:***, ***"


@pytest.mark.parametrize("name", ["authorization", "Authorization", "AUTHORIZATION"])
async def test_a_configured_authorization_wins_over_a_login_in_the_url(receiver: Receiver, name: str) -> None:
    url = receiver.url.replace("//", "//user:p%40ss@")
    async with running(config(url)) as sink:
        assert await delivered(sink) is None
    async with running(config(url, headers={name: "Bearer b"})) as sink:
        assert await delivered(sink) is None
    sent = [message.headers["authorization"] for message in receiver.requests]
    assert sent == ["Basic " + base64.b64encode(b"user:p@ss").decode(), "Bearer b"]


async def test_closing_waits_for_what_is_in_flight(receiver: Receiver) -> None:
    receiver.answer = receiver.wait_at_the_gate
    async with running(config(receiver.url)) as sink:
        post = asyncio.create_task(delivered(sink))
        await receiver.arrived(1)
        closing = asyncio.create_task(sink.close())
        receiver.gate.set()
        await closing
        assert post.done()
        assert await post is None
        assert isinstance(await delivered(sink), SinkUnavailable)


async def test_closing_cuts_off_what_does_not_end(receiver: Receiver) -> None:
    receiver.answer = receiver.wait_at_the_gate
    async with running(config(receiver.url, max_in_flight=1, timeout=3600), grace=0.0) as sink:
        posts = [asyncio.create_task(delivered(sink, attempt(seq))) for seq in (1, 2)]
        await receiver.arrived(1)
        try:
            async with asyncio.timeout(60):
                await sink.close()
        finally:
            receiver.gate.set()
        assert all(isinstance(error, SinkUnavailable) for error in await asyncio.gather(*posts))
    assert len(receiver.requests) == 1


async def test_cancelling_hands_everything_back(receiver: Receiver) -> None:
    receiver.answer = receiver.wait_at_the_gate
    sink = WebhookSink(config(receiver.url, max_in_flight=1), source="s", version="1")
    run = asyncio.create_task(sink.run())
    posts = [asyncio.create_task(delivered(sink, attempt(seq))) for seq in (1, 2)]
    await receiver.arrived(1)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert all(isinstance(error, SinkUnavailable) for error in await asyncio.gather(*posts))
    await sink.close()


async def test_a_fault_of_our_own_ends_the_sink(receiver: Receiver) -> None:
    def faulty(_: SinkError | None) -> None:
        raise LookupError

    sink = WebhookSink(config(receiver.url), source="s", version="1")
    sink.send(attempt(), faulty)
    with pytest.raises(ExceptionGroup) as ended:
        await sink.run()
    assert ended.group_contains(LookupError)


async def test_closing_before_it_ran_hands_back_too() -> None:
    sink = WebhookSink(config("http://127.0.0.1:9/"), source="s", version="1")
    waiting = asyncio.create_task(delivered(sink))
    await asyncio.sleep(0)
    await sink.close()
    assert isinstance(await waiting, SinkUnavailable)


async def test_a_rate_limit_spreads_the_requests(receiver: Receiver) -> None:
    """The turns are taken from a clock that stands still, so each request waits longer than the one before."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    settings = config(receiver.url, rate_limit=20)
    sink = WebhookSink(settings, source="s", version="1", monotonic=lambda: 100.0, sleep=sleep)
    async with asyncio.TaskGroup() as group:
        group.create_task(sink.run())
        await sink.ready()
        results = await asyncio.gather(*(delivered(sink, attempt(number)) for number in range(1, 6)))
        await sink.close()
    assert results == [None] * 5
    assert [round(one, 3) for one in waits] == [0.05, 0.1, 0.15, 0.2]
